//! The command line: `docs/CLI.md` is its manual.
//!
//! The only part of the gateway that reads the environment, and that prints.

pub(crate) mod args;
mod assign;
mod config;
mod connection;
mod doctor;
mod edit;
mod import;
mod json;
mod operate;
mod read;
mod serve;
mod show;
mod state;

use args::{Cli, Command, GatewayArgs};
use clap::Parser as _;
use show::Form;
use std::ffi::OsString;
use std::io::{self, BufWriter, IsTerminal as _, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;

/// Why a command did not do what it was asked to.
#[derive(Debug)]
pub(crate) enum Failure {
    /// In words for the one who asked.
    Said(String),
    /// Whoever read the output has gone (`tidegate export demo | head`): nothing to say, and nobody to say it to.
    NobodyReads,
}

impl From<String> for Failure {
    fn from(text: String) -> Self {
        Self::Said(text)
    }
}

impl From<&str> for Failure {
    fn from(text: &str) -> Self {
        Self::Said(text.to_owned())
    }
}

/// Of standard output.
impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Self::NobodyReads,
            _ => Self::Said(format!("cannot write to standard output: {error}")),
        }
    }
}

/// Runs the command that the process was started with. The status is 0 if it did what it was asked to,
/// 1 if not, 2 if it was not understood.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let ended = match &cli.command {
        Command::Serve(args) => serve::main(args),
        Command::Config(args) => config::main(args, &mut io::stdout().lock()),
        Command::Check(args) => operate::check(args, &mut io::stdout().lock()),
        Command::Backup(args) => operate::backup(args, &mut io::stdout().lock()),
        Command::Restore(args) => operate::restore(args, &mut io::stdout().lock()),
        Command::Erase(args) => operate::erase(args, &mut io::stdout().lock()),
        Command::Migrate(args) => operate::migrate(args, &mut io::stdout().lock()),
        Command::Doctor(args) => doctor::main(args, &mut io::stdout().lock()),
        command => client(&cli.gateway, command),
    };
    match ended {
        Ok(()) | Err(Failure::NobodyReads) => ExitCode::SUCCESS,
        Err(Failure::Said(text)) => {
            let _ = writeln!(io::stderr(), "tidegate: {}", text.trim_end());
            ExitCode::FAILURE
        }
    }
}

/// A runtime for one command's work.
fn runtime() -> Result<tokio::runtime::Runtime, String> {
    let built = tokio::runtime::Builder::new_current_thread().enable_all().build();
    built.map_err(|e| format!("cannot start: {e}"))
}

/// Runs a command against a gateway.
fn client(gateway: &GatewayArgs, command: &Command) -> Result<(), Failure> {
    let runtime = runtime()?;
    let stdout = io::stdout();
    let form = |json| match json {
        true => Form::Json,
        false => Form::Text {
            colour: show::colour(stdout.is_terminal()),
        },
    };
    let mut out = BufWriter::new(stdout.lock());
    let ended = runtime.block_on(async {
        match command {
            Command::Get(at) => read::get(gateway, at, &mut out).await,
            Command::Watch(args) => read::watch(gateway, args, form(args.json), &mut out).await,
            Command::Export(args) => read::export(gateway, args, &mut out).await,
            Command::Import(args) => import::run(gateway, args, &mut out).await,
            command => edit::run(gateway, command, &mut out).await,
        }
    });
    out.flush()?;
    ended
}

/// A variable of the environment, if it is set and not empty.
#[expect(clippy::disallowed_methods, reason = "this is where settings are read")]
fn variable(name: &str) -> Option<PathBuf> {
    std::env::var_os(name)
        .filter(|value| !value.is_empty())
        .map(PathBuf::from)
}

/// All of the environment.
#[expect(clippy::disallowed_methods, reason = "this is where settings are read")]
fn variables() -> Vec<(OsString, OsString)> {
    std::env::vars_os().collect()
}
