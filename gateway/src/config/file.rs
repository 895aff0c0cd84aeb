//! The configuration file: TOML, of which every mistake is found in one go, of syntax too.

use super::table::{ROWS, SECTIONS};
use super::{Config, File, Mistake, Origin, Value, find, variables};
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::ops::Range;
use toml::de::{DeTable, DeValue};

/// The most of a file's text that a message repeats, in characters.
const QUOTED: usize = 60;

pub(super) fn read(file: File<'_>, config: &mut Config) -> Vec<Mistake> {
    let (rest, unreadable) = readable(file.text);
    let mut reader = Reader {
        file,
        config,
        wrong: Vec::new(),
    };
    for (line, message) in &unreadable {
        reader.syntax(*line, message);
    }
    reader.file.text = &rest;
    let (table, _) = DeTable::parse_recoverable(&rest);
    for (key, value) in table.get_ref() {
        let (at, name) = (key.span(), key.get_ref().as_ref());
        let is_section = SECTIONS.iter().any(|(section, _)| *section == name);
        match value.get_ref() {
            DeValue::Table(inner) if is_section => {
                for (key, value) in inner {
                    let full = format!("{name}.{}", key.get_ref());
                    reader.entry(&full, key.span(), value.get_ref(), value.span());
                }
            }
            _ if is_section => reader.say(
                at,
                format!("{name} is a section; write [{name}], and its settings below it"),
            ),
            DeValue::Table(inner) if find(name).is_none() && !name.contains('.') => {
                reader.no_section(name, at, inner);
            }
            value_of => reader.entry(name, at, value_of, value.span()),
        }
    }
    let mut wrong = reader.wrong;
    // What stands in for a section that cannot be read is no section, which need not be said.
    let mut said = BTreeSet::new();
    wrong.retain(|(line, _)| !unreadable.contains_key(line) || said.insert(*line));
    wrong.sort_by_key(|(line, _)| *line);
    wrong.into_iter().map(|(_, mistake)| mistake).collect()
}

/// The text with the same lines, but without what cannot be read, and the lines that cannot be, each with why. A parser may
/// give up at such a line, or skip what is behind it: so it is taken out, and the rest read again. No text, if there is none
/// that can be read.
fn readable(text: &str) -> (String, BTreeMap<usize, String>) {
    let (mut rest, mut unreadable) = (text.to_owned(), BTreeMap::new());
    let last = text.lines().count().max(1);
    loop {
        let (_, errors) = DeTable::parse_recoverable(&rest);
        if errors.is_empty() {
            return (rest, unreadable);
        }
        let before = unreadable.len();
        for error in errors {
            let line = line_of(&rest, error.span().map_or(0, |span| span.start)).min(last);
            unreadable.entry(line).or_insert_with(|| error.message().to_owned());
        }
        let lines = text
            .lines()
            .zip(1..)
            .map(|(line, at)| match unreadable.contains_key(&at) {
                false => line.to_owned(),
                true => stand_in(line, at),
            });
        let next = lines.collect::<Vec<_>>().join("\n");
        if unreadable.len() == before && next == rest {
            return (String::new(), unreadable);
        }
        rest = next;
    }
}

/// What stands for a line that cannot be read: a section for a section's, so that what is below it stays in one.
fn stand_in(line: &str, at: usize) -> String {
    let Some(header) = line.trim().strip_prefix('[') else {
        return String::new();
    };
    let is_of_a_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let name = header.trim_start_matches('[').split(|c| !is_of_a_name(c)).next();
    match name {
        Some(name) if !header.contains(']') && SECTIONS.iter().any(|(section, _)| *section == name) => {
            format!("[{name}]")
        }
        _ => format!("[line-{at}]"),
    }
}

struct Reader<'a> {
    file: File<'a>,
    config: &'a mut Config,
    /// Each with its line.
    wrong: Vec<(usize, Mistake)>,
}

impl Reader<'_> {
    /// A setting, or what is none.
    fn entry(&mut self, key: &str, at: Range<usize>, value: &DeValue<'_>, value_at: Range<usize>) {
        let text = quoted(self.file.text.get(value_at).unwrap_or_default());
        // `"limits.ops"` in quotes is another name than `limits.ops`.
        let quoted_dot = self.file.text.get(at.clone()).is_some_and(|name| name.contains('.'));
        let Some(row) = find(key).filter(|_| !quoted_dot) else {
            let why = variables::unknown(key, |row| row.key.to_owned());
            return self.say(at, format!("{key}: {why}"));
        };
        let (kind, optional) = (ROWS[row].kind, ROWS[row].optional());
        let read = match value {
            DeValue::String(text) => kind.parse(OsStr::new(text.as_ref()), optional),
            DeValue::Integer(n) => match i128::from_str_radix(n.as_str(), n.radix()).map(u64::try_from) {
                Ok(Ok(n)) => kind.number(n),
                _ => Err(kind.example(optional)),
            },
            DeValue::Boolean(on) => kind.parse(OsStr::new(if *on { "true" } else { "false" }), optional),
            DeValue::Float(_) | DeValue::Datetime(_) | DeValue::Array(_) | DeValue::Table(_) => {
                Err(kind.example(optional))
            }
        };
        // A relative path is relative to the file.
        let read = read.map(|value| match (value, self.file.path.parent()) {
            (Value::Path(path), Some(folder)) => Value::Path(folder.join(path)),
            (value, _) => value,
        });
        let line = self.line(at.start);
        let origin = Origin::File {
            path: self.file.path.to_owned(),
            line,
        };
        let place = origin.to_string();
        if let Some(mut mistake) = self.config.put(row, read, origin, place) {
            mistake.why = format!("{key} = {text}: {}", mistake.why);
            self.wrong.push((line, mistake));
        }
    }

    /// A section that is none: one message, and not one for each of its settings.
    fn no_section(&mut self, name: &str, at: Range<usize>, inner: &DeTable<'_>) {
        let alike = |(section, _): &&(&str, &str)| strsim::normalized_damerau_levenshtein(section, name) >= 0.6;
        let why = match SECTIONS.iter().find(alike) {
            Some((section, _)) => format!("[{name}]: no section is called so; [{section}] is one"),
            None => {
                let names: Vec<_> = SECTIONS.iter().map(|(section, _)| format!("[{section}]")).collect();
                format!("[{name}]: no section is called so; there are {}", names.join(", "))
            }
        };
        let all_known_above = !inner.is_empty() && inner.keys().all(|key| find(key.get_ref()).is_some());
        let hint = match all_known_above {
            true => "; what is in it belongs at the top of the file, before the first section",
            false => "",
        };
        self.say(at, format!("{why}{hint}"));
    }

    fn syntax(&mut self, line: usize, message: &str) {
        let text = self.file.text.lines().nth(line - 1).unwrap_or_default().trim();
        let bare = text.split_once('=').map(|(_, value)| value.trim());
        let hint = match bare.filter(|value| value.starts_with(|c: char| c.is_alphanumeric() || ".:/~-".contains(c))) {
            Some(value) if !message.contains("duplicate") => {
                format!(
                    "; what is no plain number, true or false stands in quotes: \"{}\"",
                    quoted(value)
                )
            }
            _ => String::new(),
        };
        self.say_in(line, format!("{}: this is not TOML: {message}{hint}", quoted(text)));
    }

    fn say(&mut self, at: Range<usize>, why: String) {
        self.say_in(self.line(at.start), why);
    }

    fn say_in(&mut self, line: usize, why: String) {
        let place = format!("{}:{line}", self.file.path.display());
        self.wrong.push((line, Mistake::new(place, why)));
    }

    /// The line of a place, from 1.
    fn line(&self, at: usize) -> usize {
        line_of(self.file.text, at)
    }
}

fn line_of(text: &str, at: usize) -> usize {
    let before = &text.as_bytes()[..at.min(text.len())];
    1 + before.iter().filter(|byte| **byte == b'\n').count()
}

/// The first line of a text, not all of a long one.
fn quoted(text: &str) -> String {
    let line = text.lines().next().unwrap_or_default();
    match line.char_indices().nth(QUOTED) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line.to_owned(),
    }
}
