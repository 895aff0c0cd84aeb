//! Commands for who runs a gateway: they work on a data directory, not on a URL.

mod file;
mod gateway;

use super::Failure;
use super::args::{BackupArgs, DataArgs, EraseArgs, MigrateArgs, RedisTlsArgs, RestoreArgs};
use super::serve::{self, quote};
use crate::config::{Kind, Value};
use crate::env::{Env as _, SystemEnv};
use crate::metrics::{Metrics, RedisMetrics};
use crate::server::control::{self, Done, ErasedCounts, Request};
use crate::store::embedded::export::Export;
use crate::store::embedded::{self, BackedUp, BackupError, Durability, EmbeddedOptions, OpenError, RestoreError};
use crate::store::redis::{Imported, Level, RedisConfig, RedisStore};
use crate::store::{Retention, Store as _};
use file::{Part, Tee};
use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;
use tidegate_protocol::Epoch;

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
    let (Done {}, follows) = gateway::ask(connection, &Request::Backup {}, Some(gateway::PATIENCE))?;
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

/// Erases a space, or a user's data in it: through the gateway that runs on the store, or by itself.
pub(crate) fn erase(args: &EraseArgs, out: &mut impl Write) -> Result<(), Failure> {
    let dir = &args.data.data_dir;
    let space = args.space.as_str();
    let what = match &args.user {
        None => format!("everything of the space {space}"),
        Some(user) => format!("everything of the user {user} in the space {space}"),
    };
    if !args.yes {
        let mut command = format!("{} erase {}", serve::call(), quote(space));
        if let Some(user) = &args.user {
            command.push_str(&format!(" --user={}", quote(user)));
        }
        match &args.redis {
            // Not with its password.
            Some(url) => command.push_str(&format!(
                " --redis={} --yes",
                quote(&Kind::Redis.show(&Value::Text(url.clone())))
            )),
            None => command.push_str(&format!(" --data-dir={} --yes", quote(&dir.display().to_string()))),
        }
        return Err(format!(
            "nothing was erased. This erases {what}:\n{}\nIt cannot be undone. The command that does it is:\n\n  {command}\n",
            match args.user {
                None => "every document, the log, the conflicts, and what is kept of the clients.",
                Some(_) => "the fields that the user wrote last, the log, the user's conflicts and clients.",
            }
        )
        .into());
    }
    let ErasedCounts {
        docs,
        cells,
        commits,
        conflicts,
        clients,
    } = match (
        &args.redis,
        args.redis
            .is_none()
            .then(|| gateway::connect(dir))
            .transpose()?
            .flatten(),
    ) {
        (Some(url), _) => erase_on_redis(url, &args.tls, space, args.user.as_deref())?,
        (None, Some(connection)) => {
            let request = Request::Erase {
                space: space.to_owned(),
                user: args.user.clone(),
            };
            // It takes as long as there is something to erase.
            gateway::ask(connection, &request, None)?.0
        }
        (None, None) => erase_stopped(dir, space, args.user.as_deref())?,
    };
    writeln!(
        out,
        "erased {what}: {docs} documents, {cells} fields, {commits} commits of the log, {conflicts} conflicts, {clients} clients"
    )?;
    Ok(())
}

fn erase_stopped(dir: &Path, space: &str, user: Option<&str>) -> Result<ErasedCounts, String> {
    let (space, whom) = control::to_erase(space, user)?;
    let options = EmbeddedOptions {
        durability: Durability::Fsync,
        retention: Retention::default(),
        env: Arc::new(SystemEnv),
        reserve_bytes: embedded::RESERVE_BYTES,
    };
    let store = embedded::open_existing(dir, options).map_err(|error| opened(&error))?;
    let runtime = super::runtime()?;
    let fresh = Epoch(SystemEnv.random().max(1));
    let erased = runtime.block_on(store.erase(&space, whom, fresh, SystemEnv.now_ms(), &|_| {}));
    store.close();
    erased.map(ErasedCounts::from).map_err(|error| error.to_string())
}

/// Carries an embedded store over to Redis.
pub(crate) fn migrate(args: &MigrateArgs, out: &mut impl Write) -> Result<(), Failure> {
    let from = Export::open(&args.from).map_err(|error| error.to_string())?;
    let store = on_redis(&args.to, &args.tls)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build();
    let runtime = runtime.map_err(|error| format!("cannot start: {error}"))?;
    let findings = runtime.block_on(store.doctor()).map_err(|error| error.to_string())?;
    if let Some(wrong) = findings.iter().find(|finding| finding.level == Level::Wrong) {
        return Err(format!("Redis: {}\n{}", wrong.what, wrong.advice).into());
    }
    let Imported {
        spaces,
        before,
        docs,
        commits,
        clients,
    } = store
        .import(&from, runtime.handle())
        .map_err(|error| error.to_string())?;
    if before > 0 {
        writeln!(out, "{before} spaces were carried over before")?;
    }
    writeln!(
        out,
        "carried over: {spaces} spaces, {docs} documents, {commits} commits of logs, {clients} clients"
    )?;
    Ok(())
}

/// A store on Redis, for a command.
pub(super) fn on_redis(url: &str, tls: &RedisTlsArgs) -> Result<Arc<RedisStore>, String> {
    let metrics = RedisMetrics::new(&Metrics::default());
    let config = RedisConfig {
        tls: tls.files(),
        ..RedisConfig::default()
    };
    let store = RedisStore::new(url, config, Retention::default(), metrics);
    store.map_err(|error| error.to_string())
}

/// Erases on Redis. Gateways that run on it are told by the bus.
fn erase_on_redis(url: &str, tls: &RedisTlsArgs, space: &str, user: Option<&str>) -> Result<ErasedCounts, String> {
    let (space, whom) = control::to_erase(space, user)?;
    let store = on_redis(url, tls)?;
    let runtime = super::runtime()?;
    let fresh = Epoch(SystemEnv.random().max(1));
    let erased = runtime.block_on(store.erase(&space, whom, fresh, SystemEnv.now_ms(), &|_| {}));
    erased.map(ErasedCounts::from).map_err(|error| error.to_string())
}

fn is_dash(path: &Path) -> bool {
    path == Path::new("-")
}
