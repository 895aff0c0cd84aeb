//! Commands for who runs a gateway: they work on a data directory, not on a URL.

mod file;
mod gateway;

use super::Failure;
use super::args::{BackupArgs, DataArgs, RestoreArgs};
use crate::env::SystemEnv;
use crate::server::control::{Done, Request};
use crate::store::embedded::{self, BackedUp, BackupError, OpenError, RestoreError};
use file::{Part, Tee};
use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use std::time::Instant;

/// Checks a stopped store.
pub(crate) fn check(args: &DataArgs, out: &mut impl Write) -> Result<(), Failure> {
    let started = Instant::now();
    let mut written = Ok(());
    let checked = embedded::check(&args.data_dir, &mut |violation| {
        if written.is_ok() {
            written = writeln!(out, "{violation}");
        }
    });
    let checked = checked.map_err(|error| error.to_string())?;
    written?;
    writeln!(
        out,
        "{} records looked at in {:.1} s: {} spaces, {} documents",
        checked.records,
        started.elapsed().as_secs_f64(),
        checked.spaces,
        checked.docs
    )?;
    match checked.violations {
        0 => Ok(()),
        n => Err(format!("{}: {n} things are wrong", args.data_dir.display()).into()),
    }
}

/// Backs up a store: through the gateway that runs on it, or by itself.
pub(crate) fn backup(args: &BackupArgs, out: &mut impl Write) -> Result<(), Failure> {
    if is_dash(&args.file) {
        take(&args.data.data_dir, out, Path::new("standard output"))?;
        return Ok(());
    }
    let mut part = Part::create(&args.file, args.force)?;
    let path = part.path().to_owned();
    let done = take(&args.data.data_dir, part.file(), &path)?;
    part.finish()?;
    let BackedUp { spaces, records, bytes } = done;
    writeln!(
        out,
        "{}: {spaces} spaces, {records} records, {bytes} bytes",
        args.file.display()
    )?;
    Ok(())
}

/// Writes a backup of the store in `dir` to `out`.
fn take(dir: &Path, out: &mut impl Write, name: &Path) -> Result<BackedUp, String> {
    let Some(connection) = gateway::connect(dir)? else {
        return embedded::backup(dir, &mut *out).map_err(|error| match error {
            BackupError::Open(error) => opened(&error),
            BackupError::Store(error) => format!("{}: {error}", dir.display()),
        });
    };
    let (Done {}, follows) = gateway::ask(connection, &Request::Backup {})?;
    let mut tee = Tee::new(follows, out);
    // Only what was seen to be whole counts.
    let verified = embedded::verify(&mut tee);
    tee.written().map_err(|error| format!("{}: {error}", name.display()))?;
    verified.map_err(|error| format!("the gateway's answer, {error}"))
}

/// Why a directory could not be opened, where no gateway has answered either.
fn opened(error: &OpenError) -> String {
    match error {
        OpenError::InUse { .. } => format!("{error}, and it does not answer at its control socket"),
        error => error.to_string(),
    }
}

/// Makes a store of a backup.
pub(crate) fn restore(args: &RestoreArgs, out: &mut impl Write) -> Result<(), Failure> {
    let dir = &args.data.data_dir;
    let restored = if is_dash(&args.file) {
        embedded::restore(io::stdin().lock(), dir, &SystemEnv)
    } else {
        let file = File::open(&args.file).map_err(|error| format!("{}: {error}", args.file.display()))?;
        embedded::restore(file, dir, &SystemEnv)
    };
    let BackedUp { spaces, records, .. } = restored.map_err(|error| match error {
        RestoreError::Backup(error) => format!("{}: {error}", args.file.display()),
        RestoreError::Open(error) => error.to_string(),
        RestoreError::Store(error) => format!("{}: {error}", dir.display()),
    })?;
    writeln!(
        out,
        "{}: {spaces} spaces, {records} records, each space under a new epoch",
        dir.display()
    )?;
    Ok(())
}

fn is_dash(path: &Path) -> bool {
    path == Path::new("-")
}
