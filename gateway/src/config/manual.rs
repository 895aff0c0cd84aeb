//! The manual's tables and the sample file, written from the table of settings. Tests compare them with `docs/`.

use super::table::{ROWS, Row, SECTIONS};
use super::value::{Kind, Value};
use std::fmt::Write as _;

/// Width of the sample's comments.
const WIDTH: usize = 100;

/// The tables of `docs/CONFIG.md`: the top of the file, then each section.
pub fn tables() -> String {
    let mut text = String::new();
    for (section, about) in sections() {
        match section {
            None => text.push_str("\n### The top of the file\n\nBefore the first section.\n"),
            Some(section) => {
                let _ = write!(text, "\n### \\[{section}\\]\n\n{about}\n");
            }
        }
        text.push_str("\n| Key, variable | Default | It may be | Meaning |\n| --- | --- | --- | --- |\n");
        for row in rows(section) {
            let option = match row.option {
                Some(option) => format!("<br>`{option}`"),
                None => String::new(),
            };
            let _ = writeln!(
                text,
                "| `{}`<br>`{}`{option} | `{}` | {} | {} |",
                row.key,
                row.variable(),
                row.kind.show(&row.default()),
                row.kind.range(row.optional()),
                row.meaning
            );
        }
    }
    text.push('\n');
    text
}

/// A file with every setting, each commented out at its default.
pub fn sample() -> String {
    let mut text = String::from(
        "# Every setting of a Tidegate gateway, at its default. Remove the # before what you change; docs/CONFIG.md says more.\n\
         # `tidegate config check` finds every mistake, `tidegate config show` tells what is in force and why.\n\
         # Sizes: 65536, 512KiB, 1MiB, 2GiB. Times: 500ms, 30s, 5m, 2h, 90d.\n",
    );
    for (section, about) in sections() {
        if let Some(section) = section {
            let _ = write!(text, "\n\n[{section}]\n");
            comment(&mut text, about);
        }
        for row in rows(section) {
            text.push('\n');
            let range = row.kind.range(row.optional());
            comment(&mut text, &format!("{} ({range})", row.meaning));
            let _ = writeln!(text, "#{} = {}", row.name(), toml(row));
        }
    }
    text
}

/// The top, and the sections.
fn sections() -> impl Iterator<Item = (Option<&'static str>, &'static str)> {
    let rest = SECTIONS.iter().map(|(section, about)| (Some(*section), *about));
    std::iter::once((None, "")).chain(rest)
}

fn rows(section: Option<&str>) -> impl Iterator<Item = &'static Row> {
    ROWS.iter().filter(move |row| row.section() == section)
}

/// A default as the file has it.
fn toml(row: &Row) -> String {
    let shown = row.kind.show(&row.default());
    match (row.kind, row.default()) {
        (Kind::Switch | Kind::Count(..), Value::Switch(_) | Value::Number(_)) => shown,
        (Kind::Bytes(..), Value::Number(_)) if shown.bytes().all(|b| b.is_ascii_digit()) => shown,
        _ => format!("{shown:?}"),
    }
}

/// A comment of lines that are not too long.
fn comment(text: &mut String, words: &str) {
    let mut line = String::from("#");
    for word in words.split(' ') {
        if line.len() + 1 + word.len() > WIDTH {
            let _ = writeln!(text, "{line}");
            line.truncate(1);
        }
        line.push(' ');
        line.push_str(word);
    }
    let _ = writeln!(text, "{line}");
}
