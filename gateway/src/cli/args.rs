//! The command line's grammar. `docs/CLI.md` shows its tables, and a test compares the two.

use clap::{Args, Parser, Subcommand, ValueEnum};
use std::ffi::OsString;
use std::path::PathBuf;
use tidegate_protocol::{Collection, DocPath, Number, SpaceId};

use super::assign::{self, Assignment};
use crate::config::{Argument, DEFAULT_DATA_DIR};
use crate::store::redis::RedisTls;

/// A self-hosted real-time sync gateway, and the commands to read and write with it.
#[derive(Parser, Debug)]
#[command(name = "tidegate", version, max_term_width = 100, disable_help_subcommand = true)]
pub(crate) struct Cli {
    /// Which gateway, and as whom.
    #[command(flatten)]
    pub gateway: GatewayArgs,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Which gateway a command talks to, and as whom.
#[derive(Args, Clone, Debug)]
pub(crate) struct GatewayArgs {
    /// The gateway to talk to: ws, wss, http or https, with or without /v1/ws
    #[arg(long, global = true, env = "TIDEGATE_URL", default_value = DEFAULT_URL)]
    pub url: String,
    /// The token to show it; in dev mode, the user's name
    #[arg(long, global = true, env = "TIDEGATE_TOKEN", hide_env_values = true)]
    pub token: Option<String>,
}

/// Where `serve` listens and the other commands look, unless told otherwise.
pub(crate) const DEFAULT_URL: &str = "ws://127.0.0.1:8080";

/// The commands.
#[derive(Subcommand, Debug)]
pub(crate) enum Command {
    /// Run a gateway
    Serve(ServeArgs),
    /// Check a gateway's configuration, or show what is in force
    Config(ConfigArgs),
    /// Show a space's present state, then its changes as they come
    Watch(WatchArgs),
    /// Print a document as JSON
    Get(DocArgs),
    /// Write fields of a document, which need not exist
    Set(SetArgs),
    /// Remove fields of a document
    Unset(UnsetArgs),
    /// Delete a document
    Delete(DocArgs),
    /// Add to a number in a document
    Inc(IncArgs),
    /// Create a document, which must not exist
    Create(CreateArgs),
    /// Load a file of records into a collection: a JSON array, NDJSON or GeoJSON
    Import(ImportArgs),
    /// Write every document of a space to standard output, as NDJSON
    Export(ExportArgs),
    /// Check every record of a stopped gateway's store
    Check(DataArgs),
    /// Write all of a store to a file, also while a gateway runs on it
    Backup(BackupArgs),
    /// Make a store of a backup, in a directory that is missing or empty
    Restore(RestoreArgs),
    /// Erase a space, or all data of a user in it, for good
    Erase(EraseArgs),
    /// Carry a stopped gateway's embedded store over to Redis; devices go on as if nothing had happened
    Migrate(MigrateArgs),
    /// Look over a Redis server's settings: what would lose data, and what to do
    Doctor(DoctorArgs),
}

/// Options of `serve`, which `config` takes too. A value stays a text here: what is wrong with it is said together with
/// what is wrong in the file and in variables.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct ServeArgs {
    /// The address to listen on [default: 127.0.0.1:8080]
    #[arg(long, value_name = "ADDR")]
    pub listen: Option<OsString>,
    /// Where the embedded store keeps its files [default: ./tidegate-data]
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<OsString>,
    /// Where Redis is, for several nodes on one store, as in redis://localhost:6379 [default: none, the embedded store]
    #[arg(long, value_name = "URL")]
    pub redis: Option<OsString>,
    /// For rediss://: the authorities that may have signed its certificate, in PEM [default: none, the system's]
    #[arg(long, value_name = "FILE")]
    pub redis_ca: Option<OsString>,
    /// For rediss://: this node's certificate, in PEM, if Redis asks for one
    #[arg(long, value_name = "FILE")]
    pub redis_cert: Option<OsString>,
    /// For rediss://: the key of that certificate, in PEM
    #[arg(long, value_name = "FILE")]
    pub redis_key: Option<OsString>,
    /// The configuration file [env: TIDEGATE_CONFIG] [default: ./tidegate.toml, if it is there]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Any setting, as in limits.ops=1000; may be given several times
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<OsString>,
    /// Documents that a space may have at most [default: none, no limit]
    #[arg(long, value_name = "N")]
    pub max_space_docs: Option<OsString>,
    /// Bytes that the documents of a space may take at most [default: none, no limit]
    #[arg(long, value_name = "SIZE")]
    pub max_space_bytes: Option<OsString>,
    /// Bytes that all documents together may take at most [default: none, no limit]
    #[arg(long, value_name = "SIZE")]
    pub max_total_bytes: Option<OsString>,
    /// Admit anyone, but from this machine only
    #[arg(long)]
    pub dev: bool,
}

impl ServeArgs {
    /// The settings that were given.
    pub(crate) fn settings(&self) -> Vec<Argument> {
        let on = self.dev.then(|| OsString::from("true"));
        let own = [
            ("--dev", &on),
            ("--listen", &self.listen),
            ("--data-dir", &self.data_dir),
            ("--redis", &self.redis),
            ("--redis-ca", &self.redis_ca),
            ("--redis-cert", &self.redis_cert),
            ("--redis-key", &self.redis_key),
            ("--max-space-docs", &self.max_space_docs),
            ("--max-space-bytes", &self.max_space_bytes),
            ("--max-total-bytes", &self.max_total_bytes),
        ];
        let own = own
            .into_iter()
            .filter_map(|(option, value)| Some(Argument::Own(option, value.clone()?)));
        own.chain(self.set.iter().cloned().map(Argument::Set)).collect()
    }
}

/// Arguments of `config`.
#[derive(Args, Clone, Debug)]
pub(crate) struct ConfigArgs {
    /// check: name every mistake; show: print what is in force, and who says so
    #[arg(value_enum, hide_possible_values = true, value_name = "WHAT")]
    pub what: Look,
    /// As `serve` would be called.
    #[command(flatten)]
    pub serve: ServeArgs,
}

/// What `config` does.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(crate) enum Look {
    /// Name every mistake.
    Check,
    /// Print every setting.
    Show,
}

/// Which store.
#[derive(Args, Clone, Debug)]
pub(crate) struct DataArgs {
    /// Where the embedded store keeps its files, as in serve
    #[arg(long, value_name = "DIR", env = "TIDEGATE_DATA_DIR", default_value = DEFAULT_DATA_DIR)]
    pub data_dir: PathBuf,
}

/// Options of `migrate`.
#[derive(Args, Clone, Debug)]
pub(crate) struct MigrateArgs {
    /// Where the embedded store keeps its files; it stays as it is
    #[arg(long, value_name = "DIR")]
    pub from: PathBuf,
    /// Where Redis is, as in redis://localhost:6379
    #[arg(long, value_name = "URL")]
    pub to: String,
    /// Certificates.
    #[command(flatten)]
    pub tls: RedisTlsArgs,
}

/// Options of a command that goes to Redis.
#[derive(Args, Clone, Debug)]
pub(crate) struct RedisTlsArgs {
    /// For rediss://: the authorities that may have signed its certificate, in PEM [default: the system's]
    #[arg(long, value_name = "FILE", env = "TIDEGATE_REDIS_CA")]
    redis_ca: Option<PathBuf>,
    /// For rediss://: a certificate of this side, in PEM, if Redis asks for one
    #[arg(long, value_name = "FILE", env = "TIDEGATE_REDIS_CERT", requires = "redis_key")]
    redis_cert: Option<PathBuf>,
    /// For rediss://: the key of that certificate, in PEM
    #[arg(long, value_name = "FILE", env = "TIDEGATE_REDIS_KEY", requires = "redis_cert")]
    redis_key: Option<PathBuf>,
}

impl RedisTlsArgs {
    /// What they name.
    pub(crate) fn files(&self) -> RedisTls {
        RedisTls {
            ca: self.redis_ca.clone(),
            cert: self.redis_cert.clone(),
            key: self.redis_key.clone(),
        }
    }
}

/// Options of `doctor`.
#[derive(Args, Clone, Debug)]
pub(crate) struct DoctorArgs {
    /// Where Redis is, as in redis://localhost:6379
    #[arg(long, value_name = "URL", env = "TIDEGATE_REDIS_URL", hide_env_values = true)]
    pub redis: String,
    /// Certificates.
    #[command(flatten)]
    pub tls: RedisTlsArgs,
}

/// Options of `backup`.
#[derive(Args, Clone, Debug)]
pub(crate) struct BackupArgs {
    /// Which store.
    #[command(flatten)]
    pub data: DataArgs,
    /// The file to write; - is standard output
    pub file: PathBuf,
    /// Write over the file if it is there
    #[arg(long)]
    pub force: bool,
}

/// Options of `restore`.
#[derive(Args, Clone, Debug)]
pub(crate) struct RestoreArgs {
    /// Which store.
    #[command(flatten)]
    pub data: DataArgs,
    /// The backup; - is standard input
    pub file: PathBuf,
}

/// Options of `erase`.
#[derive(Args, Clone, Debug)]
pub(crate) struct EraseArgs {
    /// Which store.
    #[command(flatten)]
    pub data: DataArgs,
    /// Where Redis is, if the store is there: gateways on it may run
    #[arg(long, value_name = "URL", env = "TIDEGATE_REDIS_URL", hide_env_values = true)]
    pub redis: Option<String>,
    /// Certificates.
    #[command(flatten)]
    pub tls: RedisTlsArgs,
    /// The space, as in user:alice
    pub space: SpaceId,
    /// Only what this user wrote, and what is kept of the user's clients
    #[arg(long, value_name = "USER")]
    pub user: Option<String>,
    /// Do it; without this, say what would be done
    #[arg(long)]
    pub yes: bool,
}

/// Options of `watch`.
#[derive(Args, Clone, Debug)]
pub(crate) struct WatchArgs {
    /// The space, as in user:alice
    pub space: SpaceId,
    /// Print one JSON object a line
    #[arg(long)]
    pub json: bool,
    /// Watch this collection only; may be given several times
    #[arg(long = "collection", value_name = "COLLECTION")]
    pub collections: Vec<Collection>,
}

/// A document of a space.
#[derive(Args, Clone, Debug)]
pub(crate) struct DocArgs {
    /// The space, as in user:alice
    pub space: SpaceId,
    /// The document, as in notes/n1
    pub doc: DocPath,
}

/// Options of `set`.
#[derive(Args, Clone, Debug)]
pub(crate) struct SetArgs {
    /// Which document.
    #[command(flatten)]
    pub at: DocArgs,
    /// What to write: path=text or path:=JSON, as in title=Hello address.city=Oslo stars:=5
    #[arg(required = true, value_name = "FIELD", value_parser = assign::parse)]
    pub fields: Vec<Assignment>,
}

/// Options of `create`.
#[derive(Args, Clone, Debug)]
pub(crate) struct CreateArgs {
    /// Which document.
    #[command(flatten)]
    pub at: DocArgs,
    /// What to write: path=text or path:=JSON
    #[arg(value_name = "FIELD", value_parser = assign::parse)]
    pub fields: Vec<Assignment>,
}

/// Options of `unset`.
#[derive(Args, Clone, Debug)]
pub(crate) struct UnsetArgs {
    /// Which document.
    #[command(flatten)]
    pub at: DocArgs,
    /// The fields to remove, with everything below them, as in address.city
    #[arg(required = true, value_name = "PATH")]
    pub paths: Vec<tidegate_protocol::FieldPath>,
}

/// Options of `inc`.
#[derive(Args, Clone, Debug)]
pub(crate) struct IncArgs {
    /// Which document.
    #[command(flatten)]
    pub at: DocArgs,
    /// The field, as in stars
    pub path: tidegate_protocol::FieldPath,
    /// What to add: a whole number or a decimal one, negative to subtract
    #[arg(default_value = "1", allow_negative_numbers = true, value_parser = assign::number)]
    pub by: Number,
}

/// Options of `import`.
#[derive(Args, Clone, Debug)]
pub(crate) struct ImportArgs {
    /// The space, as in user:alice
    pub space: SpaceId,
    /// The collection to load the records into
    pub collection: Collection,
    /// The file: a JSON array, NDJSON or GeoJSON; - is standard input
    pub file: PathBuf,
    /// The field that names each record's document [default: id; in GeoJSON the feature's id]
    #[arg(long, value_name = "FIELD")]
    pub id_from: Option<String>,
}

/// Options of `export`.
#[derive(Args, Clone, Debug)]
pub(crate) struct ExportArgs {
    /// The space, as in user:alice
    pub space: SpaceId,
    /// Export this collection only; may be given several times
    #[arg(long = "collection", value_name = "COLLECTION")]
    pub collections: Vec<Collection>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::{Arg, CommandFactory as _};
    use std::fmt::Write as _;

    fn name(arg: &Arg) -> String {
        let value = arg
            .get_value_names()
            .and_then(|names| names.first())
            .map(|name| name.to_string());
        match arg.get_long() {
            None => {
                let name = value.unwrap_or_default();
                let many = if arg.get_num_args().is_some_and(|n| n.max_values() > 1) {
                    "…"
                } else {
                    ""
                };
                if arg.is_required_set() {
                    format!("{name}{many}")
                } else {
                    format!("[{name}{many}]")
                }
            }
            Some(long) if arg.get_action().takes_values() => format!("--{long} {}", value.unwrap_or_default()),
            Some(long) => format!("--{long}"),
        }
    }

    /// The table of one command's arguments, as it stands in the manual.
    fn table<'a>(args: impl Iterator<Item = &'a Arg>) -> String {
        let mut text = String::from("| Argument | Meaning |\n| --- | --- |\n");
        for arg in args {
            let mut help = arg.get_help().map(ToString::to_string).unwrap_or_default();
            if let Some(variable) = arg.get_env() {
                let _ = write!(help, " [env: {}]", variable.display());
            }
            if let Some(default) = arg
                .get_default_values()
                .first()
                .filter(|_| arg.get_action().takes_values())
            {
                let _ = write!(help, " [default: {}]", default.display());
            }
            let _ = writeln!(text, "| `{}` | {help} |", name(arg));
        }
        text
    }

    #[test]
    fn the_manual_shows_every_command_and_argument_as_the_program_takes_them() {
        let manual =
            std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/CLI.md")).expect("the manual");
        let mut command = Cli::command();
        command.build();
        let is_own = |arg: &&Arg| !arg.is_global_set() && !matches!(arg.get_id().as_str(), "help" | "version");
        let mut wanted = vec![(
            "## Which gateway".to_owned(),
            String::new(),
            table(command.get_arguments().filter(|arg| arg.is_global_set())),
        )];
        for sub in command.get_subcommands() {
            let about = format!("{}.\n", sub.get_about().expect("described"));
            wanted.push((
                format!("### {}", sub.get_name()),
                about,
                table(sub.get_arguments().filter(is_own)),
            ));
        }
        for (heading, about, table) in wanted {
            let (_, section) = manual
                .split_once(&format!("\n{heading}\n"))
                .unwrap_or_else(|| panic!("no section {heading}"));
            let section = section.split("\n##").next().expect("at least one part");
            assert!(section.contains(&about), "{heading} should say:\n\n{about}");
            assert!(section.contains(&table), "{heading} should have the table\n\n{table}\n");
        }
    }

    #[test]
    fn every_option_of_a_setting_is_one_of_serve_and_sets_it() {
        let command = Cli::command();
        let serve = command.find_subcommand("serve").expect("serve");
        let options: Vec<_> = serve.get_arguments().filter_map(|arg| arg.get_long()).collect();
        let own: Vec<_> = crate::config::ROWS.iter().filter_map(|row| row.option).collect();
        assert_eq!(
            options.len(),
            own.len() + 2,
            "the others are --config and --set: {options:?}"
        );
        for option in own {
            let mut line = vec!["tidegate", "serve", option];
            let value = if option == "--dev" { "true" } else { "1" };
            line.extend((option != "--dev").then_some(value));
            let Command::Serve(args) = Cli::try_parse_from(line).expect(option).command else {
                panic!("serve was given")
            };
            assert_eq!(args.settings(), [Argument::Own(option, value.into())]);
        }
    }

    #[test]
    fn the_grammar_holds_together() {
        Cli::command().debug_assert();
    }

    #[test]
    fn an_error_names_the_argument_that_is_wrong() {
        for (line, wants) in [
            ("set demo notes/n1 title", "'title' for '<FIELD>...'"),
            ("set demo notes/n1 a=1 n:=x", "'n:=x' for '<FIELD>...'"),
            ("set demo notes a=1", "'notes' for '<DOC>'"),
            ("set de%mo notes/n1 a=1", "'de%mo' for '<SPACE>'"),
            ("inc demo notes/n1 stars many", "'many' for '[BY]'"),
            ("watch demo --collection a//b", "'a//b' for '--collection <COLLECTION>'"),
        ] {
            let error = Cli::try_parse_from(["tidegate"].into_iter().chain(line.split(' ')))
                .expect_err(line)
                .to_string();
            assert!(error.contains(wants), "{line}: {error}");
        }
    }

    #[test]
    fn negative_numbers_and_options_before_or_after_the_command_are_understood() {
        let cli =
            Cli::try_parse_from(["tidegate", "--url", "ws://a", "inc", "demo", "c/d", "n", "-2.5"]).expect("valid");
        assert_eq!(cli.gateway.url, "ws://a");
        assert!(matches!(cli.command, Command::Inc(IncArgs { by: Number::Float(x), .. }) if x == -2.5));
        let cli = Cli::try_parse_from(["tidegate", "get", "demo", "c/d", "--token", "alice"]).expect("valid");
        assert_eq!(cli.gateway.token.as_deref(), Some("alice"));
    }
}
