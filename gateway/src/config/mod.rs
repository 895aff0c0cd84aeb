//! Settings: a table of all there are, and how the file, the variables and the options fill it in.
//!
//! Pure: it is handed what the file says and what the environment holds, so that a test can hand it both. Everything
//! that is wrong in any of them is reported at once, each mistake with its place. Of what sets the same thing, an option
//! comes before a variable, a variable before the file, and the file before the default.

mod check;
mod file;
mod manual;
mod table;
#[cfg(test)]
mod tests;
mod value;
mod variables;

use crate::server::ServerConfig;
use crate::store::Retention;
use crate::store::embedded::{Durability, RESERVE_BYTES};
use crate::store::redis::RedisConfig;
pub use check::NO_AUTHENTICATION;
pub use manual::{sample, tables};
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;
pub use table::{ROWS, Row, SECTIONS, find};
pub use value::{Kind, Value};
pub use variables::{CONFIG, PREFIX};

/// Where the gateway listens unless told otherwise.
pub const DEFAULT_LISTEN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8080);
/// Where the embedded store keeps its files unless told otherwise.
pub const DEFAULT_DATA_DIR: &str = "./tidegate-data";
/// The file that is read if it is there and no other is named.
pub const DEFAULT_FILE: &str = "tidegate.toml";

/// What a gateway runs with. A setting's place is in its row of [`ROWS`]; no module but the command line sees all.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The address to listen on; loopback in dev mode.
    pub listen: SocketAddr,
    /// Where the embedded store keeps its files.
    pub data_dir: PathBuf,
    /// Admit anyone, from this machine only.
    pub dev: bool,
    /// What the log shows.
    pub log: String,
    /// What an `ack` means.
    pub durability: Durability,
    /// Where Redis is, if the store is there.
    pub redis_url: Option<String>,
    /// How Redis is used.
    pub redis: RedisConfig,
    /// Bytes of the file system that are kept free.
    pub reserve_bytes: u64,
    /// What the store keeps.
    pub retention: Retention,
    /// How often what is older than that is removed.
    pub collect_every: Duration,
    /// How the gateway runs.
    pub server: ServerConfig,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            listen: DEFAULT_LISTEN,
            data_dir: DEFAULT_DATA_DIR.into(),
            dev: false,
            log: "info".to_owned(),
            durability: Durability::Fsync,
            redis_url: None,
            redis: RedisConfig::default(),
            reserve_bytes: RESERVE_BYTES,
            retention: Retention::default(),
            collect_every: Duration::from_secs(60 * 60),
            server: ServerConfig::default(),
        }
    }
}

/// Who set a setting.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Origin {
    /// Nobody.
    Default,
    /// The file.
    File {
        /// Its path, as it was named.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
    },
    /// A variable of the environment.
    Variable(String),
    /// An option.
    Option(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File { path, line } => write!(f, "{}:{line}", path.display()),
            Self::Variable(name) => f.write_str(name),
            Self::Option(option) => f.write_str(option),
        }
    }
}

/// Something that is wrong in a configuration, in words for whoever wrote it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Mistake {
    /// Where it is: a file and its line, or a variable or an option as it was given.
    pub at: String,
    /// What is wrong, and what to do about it.
    pub why: String,
    /// The setting, if it is one.
    key: Option<&'static str>,
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.at, self.why)
    }
}

impl Mistake {
    fn new(at: impl fmt::Display, why: impl Into<String>) -> Self {
        Self {
            at: at.to_string(),
            why: why.into(),
            key: None,
        }
    }

    fn about(self, row: usize) -> Self {
        Self {
            key: Some(ROWS[row].key),
            ..self
        }
    }
}

/// A setting on the command line.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Argument {
    /// One with an option of its own: the option and its value.
    Own(&'static str, OsString),
    /// `--set key=value`.
    Set(OsString),
}

impl Argument {
    /// The key that it sets.
    pub fn key(&self) -> Option<&'static str> {
        let row = match self {
            Self::Own(option, _) => ROWS.iter().find(|row| row.option == Some(option)),
            Self::Set(text) => {
                let key = text.to_str()?.split_once('=')?.0.trim();
                ROWS.iter().find(|row| row.key == key)
            }
        };
        row.map(|row| row.key)
    }
}

/// A file, as it was named, and what it says.
#[derive(Clone, Copy, Debug)]
pub struct File<'a> {
    /// Its path.
    pub path: &'a Path,
    /// Its text.
    pub text: &'a str,
}

/// Settings, and where each of them comes from.
#[derive(Clone, Debug)]
pub struct Config {
    /// The values in force.
    pub settings: Settings,
    /// A row each.
    origins: Vec<Origin>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            settings: Settings::default(),
            origins: vec![Origin::Default; ROWS.len()],
        }
    }
}

impl Config {
    /// What a file, variables and options come to, and everything that is wrong with them. What is wrong sets nothing.
    /// `variables` may be all of the environment: others than the gateway's own are passed over.
    pub fn load(
        file: Option<File<'_>>,
        variables: &[(OsString, OsString)],
        arguments: &[Argument],
    ) -> (Self, Vec<Mistake>) {
        let (mut config, mut wrong) = (Self::default(), Vec::new());
        if let Some(file) = file {
            wrong.extend(file::read(file, &mut config));
        }
        wrong.extend(variables::read(variables, &mut config));
        wrong.extend(config.arguments(arguments));
        wrong.extend(check::check(&config, &wrong));
        (config, wrong)
    }

    /// Each setting with its value and where it comes from.
    pub fn rows(&self) -> impl Iterator<Item = (&'static Row, String, &Origin)> {
        let rows = ROWS.iter().zip(&self.origins);
        rows.map(|(row, origin)| (row, row.show(&self.settings), origin))
    }

    /// Where the setting of a key comes from.
    pub fn origin(&self, key: &str) -> &Origin {
        find(key).map_or(&Origin::Default, |row| &self.origins[row])
    }

    fn arguments(&mut self, arguments: &[Argument]) -> Vec<Mistake> {
        let mut wrong = Vec::new();
        for argument in arguments {
            let (key, text, option, at) = match argument {
                Argument::Own(option, value) => {
                    let key = argument.key().unwrap_or_default();
                    let at = format!("{option} {}", value.display());
                    (key, value.as_os_str(), (*option).to_owned(), at)
                }
                Argument::Set(set) => {
                    let at = format!("--set {}", set.display());
                    let Some((key, value)) = set.to_str().and_then(|set| set.split_once('=')) else {
                        wrong.push(Mistake::new(at, "write --set key=value, as in --set limits.ops=1000"));
                        continue;
                    };
                    (key.trim(), OsStr::new(value), format!("--set {}", key.trim()), at)
                }
            };
            let Some(row) = find(key) else {
                wrong.push(Mistake::new(at, variables::unknown(key, |row| row.key.to_owned())));
                continue;
            };
            if let Origin::Option(other) = &self.origins[row] {
                wrong.push(Mistake::new(at, format!("{key} is set by {other} already")).about(row));
                continue;
            }
            wrong.extend(self.text(row, text, Origin::Option(option), at));
        }
        wrong
    }

    /// Sets a setting to what a text says.
    fn text(&mut self, row: usize, text: &OsStr, origin: Origin, at: String) -> Option<Mistake> {
        let value = ROWS[row].kind.parse(text, ROWS[row].optional());
        self.put(row, value, origin, at)
    }

    fn put(&mut self, row: usize, value: Result<Value, String>, origin: Origin, at: String) -> Option<Mistake> {
        let row_of = &ROWS[row];
        let put = value.and_then(|value| match (row_of.put)(&mut self.settings, value) {
            true => Ok(()),
            false => Err(row_of.kind.example(row_of.optional())),
        });
        match put {
            Ok(()) => {
                self.origins[row] = origin;
                None
            }
            Err(why) => Some(Mistake::new(at, why).about(row)),
        }
    }
}
