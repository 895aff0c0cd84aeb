//! A gateway's configuration: read for `serve`, and looked at by `config`.

use super::args::{ConfigArgs, Look, ServeArgs};
use super::{Failure, variable, variables};
use crate::config::{CONFIG, Config, DEFAULT_FILE, File, NO_AUTHENTICATION, Origin, Settings};
use std::fmt::Write as _;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::{fs, io};

/// What was found.
pub(super) struct Found {
    /// What is in force, as far as it is right.
    pub(super) config: Config,
    /// The file that was read.
    pub(super) file: Option<PathBuf>,
    /// What is wrong.
    wrong: Vec<String>,
}

/// Reads the configuration as `serve` does with these options.
pub(super) fn find(args: &ServeArgs) -> Found {
    let (text, mut wrong) = match read(args) {
        Ok(text) => (text, Vec::new()),
        Err(why) => (None, vec![why]),
    };
    let file = text.as_ref().map(|(path, text)| File { path, text });
    let (config, mistakes) = Config::load(file, &variables(), &args.settings());
    wrong.extend(mistakes.iter().map(ToString::to_string));
    Found {
        config,
        file: text.map(|(path, _)| path),
        wrong,
    }
}

/// The file that an option names, or a variable, or that is there.
fn read(args: &ServeArgs) -> Result<Option<(PathBuf, String)>, String> {
    let named = match &args.config {
        Some(path) => Some((path.clone(), format!("--config {}", path.display()))),
        None => variable(CONFIG).map(|path| (path.clone(), format!("{CONFIG}={}", path.display()))),
    };
    let path = named.as_ref().map_or_else(|| Path::new(DEFAULT_FILE), |(path, _)| path);
    match (fs::read_to_string(path), &named) {
        (Ok(text), _) => Ok(Some((path.to_owned(), text))),
        (Err(error), None) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        (Err(error), None) => Err(format!("{DEFAULT_FILE}: {error}")),
        (Err(error), Some((_, by))) => Err(format!("{by}: {error}")),
    }
}

impl Found {
    /// What to serve with, if nothing is wrong.
    pub(super) fn settings(mut self) -> Result<(Settings, Self), String> {
        let settings = self.config.settings.clone();
        if !settings.dev {
            self.wrong.push(NO_AUTHENTICATION.to_owned());
        }
        match self.complaint() {
            None => Ok((settings, self)),
            Some(text) => Err(text),
        }
    }

    fn complaint(&self) -> Option<String> {
        let mut text = match self.wrong.as_slice() {
            [] => return None,
            [one] => return Some(one.clone()),
            many => format!("the configuration has {} mistakes:", many.len()),
        };
        for one in &self.wrong {
            let _ = write!(text, "\n  {}", one.replace('\n', "\n  "));
        }
        Some(text)
    }

    /// The settings that somebody set, in a line.
    pub(super) fn set(&self) -> String {
        let set = self.config.rows().filter(|(_, _, origin)| **origin != Origin::Default);
        let set: Vec<_> = set
            .map(|(row, value, origin)| format!("{}={value} ({origin})", row.key))
            .collect();
        set.join(", ")
    }
}

/// Runs `config`.
pub(super) fn main(args: &ConfigArgs, out: &mut impl Write) -> Result<(), Failure> {
    let found = find(&args.serve);
    match args.what {
        Look::Check => {
            let (_, found) = found.settings()?;
            let from = match &found.file {
                Some(path) => path.display().to_string(),
                None => format!("no {DEFAULT_FILE} here, and none named"),
            };
            match found.set().as_str() {
                "" => writeln!(out, "in order ({from}): everything is at its default")?,
                set => writeln!(out, "in order ({from}): {set}")?,
            }
        }
        Look::Show => {
            out.write_all(table(&found.config).as_bytes())?;
            if let Some(text) = found.complaint() {
                return Err(text.into());
            }
        }
    }
    Ok(())
}

/// Every setting in a line: the key, the value, who says so.
fn table(config: &Config) -> String {
    let rows: Vec<_> = config
        .rows()
        .map(|(row, value, origin)| (row.key, value, origin.to_string()))
        .collect();
    let width = |of: fn(&(&str, String, String)) -> usize| rows.iter().map(of).max().unwrap_or_default();
    let (key, value) = (
        width(|(key, ..)| key.chars().count()),
        width(|(_, value, _)| value.chars().count()),
    );
    let line = |a: &str, b: &str, c: &str| format!("{a:key$}  {b:value$}  {c}\n");
    let mut text = line("SETTING", "VALUE", "FROM");
    text.extend(rows.iter().map(|(a, b, c)| line(a, b, c)));
    text
}
