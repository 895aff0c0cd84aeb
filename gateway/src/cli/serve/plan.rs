//! What `serve` is to run: options before the configuration file before defaults. All that is wrong
//! is reported together.

use crate::cli::args::ServeArgs;
use crate::engine::Quota;
use crate::store::embedded::{Durability, RESERVE_BYTES};
use serde::Deserialize;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

/// Where the gateway listens unless told otherwise.
pub(crate) const DEFAULT_LISTEN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8080);
/// Where the embedded store keeps its files unless told otherwise.
pub(crate) const DEFAULT_DATA_DIR: &str = "./tidegate-data";

/// As the configuration file names it.
#[derive(Clone, Copy, Deserialize, Debug)]
#[serde(rename_all = "lowercase")]
enum DurabilityName {
    Fsync,
    Memory,
}

/// The configuration file. `docs/CLI.md` shows its keys, and a test compares the two.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ConfigFile {
    listen: Option<String>,
    data_dir: Option<PathBuf>,
    durability: Option<DurabilityName>,
    reserve_bytes: Option<u64>,
    max_space_docs: Option<u64>,
    max_space_bytes: Option<u64>,
    max_total_bytes: Option<u64>,
}

/// What to run.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Plan {
    /// The address to listen on; loopback in dev mode.
    pub(crate) listen: SocketAddr,
    /// Where the embedded store keeps its files.
    pub(crate) data_dir: PathBuf,
    /// What an `ack` means.
    pub(crate) durability: Durability,
    /// Bytes of the file system that are kept free.
    pub(crate) reserve_bytes: u64,
    /// What documents may take.
    pub(crate) quota: Quota,
}

/// What there is to configure, in the words of the refusal to start without it.
const NO_AUTHENTICATION: &str = "\
no authentication is configured, so anyone who reaches this gateway could read and write everything.
Today only dev mode runs: add --dev. It admits anyone, but only from this machine.
Authentication by tokens (JWT) comes with a later release, and will be configured in tidegate.toml.";

impl Plan {
    /// The plan that options and, where they name one, the configuration file make.
    /// `read` reads a file.
    pub(crate) fn new(args: &ServeArgs, read: impl Fn(&Path) -> std::io::Result<String>) -> Result<Self, String> {
        let mut wrong = Vec::new();
        let file = match args.config.as_deref().map(|path| config(path, &read)) {
            None => ConfigFile::default(),
            Some(Ok(file)) => file,
            Some(Err(e)) => {
                wrong.push(e);
                ConfigFile::default()
            }
        };
        let (listen, origin) = match (&args.listen, &file.listen) {
            (Some(text), _) => (Some(text), "--listen".to_owned()),
            (None, text) => (text.as_ref(), format!("{}: listen", show(args.config.as_deref()))),
        };
        let listen = listen
            .map_or(Ok(DEFAULT_LISTEN), |text| address(text))
            .unwrap_or_else(|why| {
                wrong.push(format!("{origin}: {why}"));
                DEFAULT_LISTEN
            });
        if !args.dev {
            wrong.push(NO_AUTHENTICATION.to_owned());
        } else if !listen.ip().is_loopback() {
            wrong.push(format!(
                "{origin}: {listen} can be reached from other machines, and dev mode admits anyone.\n\
                 With --dev, listen on a loopback address: {DEFAULT_LISTEN} or [::1]:8080."
            ));
        }
        if !wrong.is_empty() {
            return Err(wrong.join("\n"));
        }
        let durability = match file.durability {
            None | Some(DurabilityName::Fsync) => Durability::Fsync,
            Some(DurabilityName::Memory) => Durability::Memory,
        };
        let data_dir = match (&args.data_dir, file.data_dir) {
            (Some(dir), _) => dir.clone(),
            (None, Some(dir)) => beside(args.config.as_deref(), &dir),
            (None, None) => PathBuf::from(DEFAULT_DATA_DIR),
        };
        Ok(Self {
            listen,
            data_dir,
            durability,
            reserve_bytes: file.reserve_bytes.unwrap_or(RESERVE_BYTES),
            quota: Quota {
                space_docs: args.max_space_docs.or(file.max_space_docs),
                space_bytes: args.max_space_bytes.or(file.max_space_bytes),
                total_bytes: args.max_total_bytes.or(file.max_total_bytes),
            },
        })
    }
}

fn show(path: Option<&Path>) -> String {
    path.unwrap_or(Path::new("tidegate.toml")).display().to_string()
}

/// A relative path in a configuration file is relative to that file.
fn beside(config: Option<&Path>, path: &Path) -> PathBuf {
    config
        .and_then(Path::parent)
        .map_or_else(|| path.to_owned(), |dir| dir.join(path))
}

fn config(path: &Path, read: impl Fn(&Path) -> std::io::Result<String>) -> Result<ConfigFile, String> {
    let text = read(path).map_err(|e| format!("--config {}: {e}", path.display()))?;
    toml::from_str(&text).map_err(|e| format!("{}: {e}", path.display()).trim_end().to_owned())
}

/// An address to listen on: `127.0.0.1:8080`, `[::1]:8080`, `localhost:8080`.
fn address(text: &str) -> Result<SocketAddr, String> {
    let plain = text
        .strip_prefix("localhost:")
        .map(|port| format!("{}:{port}", Ipv4Addr::LOCALHOST));
    plain.as_deref().unwrap_or(text).parse().map_err(|_| {
        let hint = if text.parse::<IpAddr>().is_ok() {
            "it lacks a port"
        } else {
            "that is no address and port"
        };
        format!("{text:?}: {hint}; one looks like {DEFAULT_LISTEN} or [::1]:8080")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(args: &[&str], file: &str) -> Result<Plan, String> {
        use clap::Parser as _;
        let line = ["tidegate", "serve"].iter().chain(args);
        let crate::cli::args::Command::Serve(args) = crate::cli::args::Cli::parse_from(line).command else {
            unreachable!("serve was given")
        };
        Plan::new(&args, |path| {
            assert_eq!(path, Path::new("etc/tidegate.toml"));
            Ok(file.to_owned())
        })
    }

    #[test]
    fn options_come_before_the_file_and_the_file_before_defaults() {
        let plain = plan(&["--dev"], "").expect("valid");
        assert_eq!(
            plain,
            Plan {
                listen: DEFAULT_LISTEN,
                data_dir: "./tidegate-data".into(),
                durability: Durability::Fsync,
                reserve_bytes: RESERVE_BYTES,
                quota: Quota::default(),
            }
        );
        let file = "listen = \"[::1]:1\"\ndata_dir = \"data\"\ndurability = \"memory\"\nreserve_bytes = 5";
        let from_file = plan(&["--dev", "--config", "etc/tidegate.toml"], file).expect("valid");
        assert_eq!(from_file.listen, "[::1]:1".parse().unwrap());
        assert_eq!(
            (from_file.data_dir, from_file.durability, from_file.reserve_bytes),
            ("etc/data".into(), Durability::Memory, 5)
        );
        let args = [
            "--dev",
            "--config",
            "etc/tidegate.toml",
            "--listen",
            "localhost:2",
            "--data-dir",
            "d",
        ];
        let from_args = plan(&args, file).expect("valid");
        assert_eq!(
            (from_args.listen.to_string(), from_args.data_dir),
            ("127.0.0.1:2".into(), "d".into())
        );
    }

    #[test]
    fn each_quota_is_its_option_or_what_the_file_says_or_none() {
        let file = "max_space_docs = 1\nmax_space_bytes = 2";
        let args = ["--dev", "--config", "etc/tidegate.toml", "--max-space-bytes", "3"];
        let quota = plan(&args, file).expect("valid").quota;
        let expected = Quota {
            space_docs: Some(1),
            space_bytes: Some(3),
            total_bytes: None,
        };
        assert_eq!(quota, expected);
        let args = ["--dev", "--max-space-docs", "4", "--max-total-bytes", "5"];
        let quota = plan(&args, "").expect("valid").quota;
        assert_eq!(
            (quota.space_docs, quota.space_bytes, quota.total_bytes),
            (Some(4), None, Some(5))
        );
    }

    #[test]
    fn without_dev_it_refuses_and_says_what_to_configure() {
        let error = plan(&[], "").expect_err("no authentication");
        assert!(
            error.contains("add --dev") && error.contains("later release"),
            "{error}"
        );
    }

    #[test]
    fn dev_mode_refuses_an_address_that_others_can_reach() {
        for listen in ["0.0.0.0:8080", "192.168.1.2:8080", "[::]:8080", "[::ffff:10.0.0.1]:80"] {
            let error = plan(&["--dev", "--listen", listen], "").expect_err(listen);
            assert!(error.contains("loopback") && error.contains("--listen"), "{error}");
        }
        for listen in ["127.0.0.2:1", "[::1]:1", "localhost:1"] {
            plan(&["--dev", "--listen", listen], "").expect(listen);
        }
    }

    #[test]
    fn everything_wrong_is_reported_together() {
        let error =
            plan(&["--listen", "here", "--config", "etc/tidegate.toml"], "lisen = 1").expect_err("three things");
        for wants in ["--listen: \"here\"", "unknown field `lisen`", "no authentication"] {
            assert!(error.contains(wants), "{wants}: {error}");
        }
        let error = plan(&["--dev", "--config", "etc/tidegate.toml"], "listen = \"127.0.0.1\"").expect_err("no port");
        assert!(
            error.contains("etc/tidegate.toml: listen: \"127.0.0.1\": it lacks a port"),
            "{error}"
        );
        let error = plan(&["--dev", "--config", "etc/tidegate.toml"], "durability = \"disk\"").expect_err("unknown");
        assert!(error.contains("fsync") && error.contains("memory"), "{error}");
    }

    #[test]
    fn the_manual_lists_the_keys_of_the_configuration_file() {
        let manual =
            std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/CLI.md")).expect("the manual");
        let (_, section) = manual.split_once("#### The configuration file").expect("the section");
        let section = section.split("\n##").next().expect("at least one part");
        let listed: Vec<_> = section
            .lines()
            .filter_map(|line| line.strip_prefix("| `"))
            .filter_map(|row| row.split_once('`'))
            .map(|(key, _)| format!("`{key}`"))
            .collect();
        let error = toml::from_str::<ConfigFile>("unknown = 1")
            .expect_err("unknown")
            .to_string();
        assert!(error.contains(&listed.join(", ")), "listed {listed:?}: {error}");
        let example = section
            .split("```toml\n")
            .nth(1)
            .and_then(|rest| rest.split("```").next())
            .expect("an example");
        toml::from_str::<ConfigFile>(example).expect("the example is valid");
    }
}
