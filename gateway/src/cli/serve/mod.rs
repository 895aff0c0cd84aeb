//! `serve`: reads what to run, binds the address, says so, and hands over to the server.

mod words;

use super::args::ServeArgs;
use super::config::{self, Found};
use super::{Failure, variable};
use crate::auth::DevAuthoriser;
use crate::bus::Bus;
use crate::bus::redis::RedisBus;
use crate::config::Settings;
use crate::env::{Env, SystemEnv};
use crate::metrics::{Metrics, RedisMetrics};
use crate::server::control::{Control, STALLED};
use crate::server::{Parts, Server, ServerConfig};
use crate::store::embedded::{self, Collected, EmbeddedOptions, EmbeddedStore};
use crate::store::redis::{Level, RedisStore};
use crate::store::{Store, StoreError};
use std::fs;
use std::io::{self, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
pub(crate) use words::quote;

/// Runs a gateway until it is told to stop.
pub(crate) fn main(args: &ServeArgs) -> Result<(), Failure> {
    let (settings, found) = config::find(args).settings()?;
    log(&settings.log)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|e| format!("cannot start: {e}"))?;
    runtime.block_on(run(args, &settings, &found))
}

async fn run(args: &ServeArgs, settings: &Settings, found: &Found) -> Result<(), Failure> {
    let call = call();
    // Before the store: that a port is taken is said for what it is, and not as a folder in use.
    let listener = bind(args, settings.listen, &call)?;
    let address = listener.local_addr().map_err(|e| format!("{}: {e}", settings.listen))?;
    let file = found.file.as_deref().unwrap_or(Path::new("none"));
    tracing::info!(file = %file.display(), set = %found.set(), "configuration");
    let env: Arc<dyn Env> = Arc::new(SystemEnv);
    let listener = tokio::net::TcpListener::from_std(listener).map_err(|e| format!("{address}: {e}"))?;
    let metrics = Arc::new(Metrics::default());
    let opened = match &settings.redis_url {
        Some(url) => on_redis(url, settings, &env, &metrics).await?,
        None => embedded(settings, found, &env).await?,
    };

    let stop = CancellationToken::new();
    let parts = Parts {
        store: opened.store.store(),
        authoriser: Arc::new(DevAuthoriser),
        env: env.clone(),
        bus: opened.bus,
        metrics,
    };
    let config = ServerConfig {
        loopback_only: true,
        ..settings.server.clone()
    };
    let mut background = JoinSet::new();
    background.spawn(collect(opened.store.clone(), env, settings.collect_every));
    if let Opened::Redis(store) = &opened.store {
        background.spawn(resume_erasures(store.clone()));
        background.spawn(count(store.clone()));
    }
    background.spawn(stop_when_told(told()?, stop.clone()));
    let server = Server::new(parts, config);
    let mut operators = JoinSet::new();
    if let (Some(control), Opened::Embedded(store)) = (opened.control, &opened.store) {
        operators.spawn(control.run(store.clone(), server.engine(), STALLED, stop.clone()));
    }

    let mut out = io::stdout();
    out.write_all(words::up(settings, found.file.as_deref(), address, &call).as_bytes())?;
    out.flush()?;
    let ended = server.run(listener, stop.clone()).await;
    // Also where the server has ended by itself.
    stop.cancel();
    while operators.join_next().await.is_some() {}
    background.shutdown().await;
    // The last handle: what is in line is made durable, and the folder is free.
    tokio::task::spawn_blocking(move || drop(opened.store))
        .await
        .map_err(|e| format!("the store did not end well: {e}"))?;
    Ok(ended.map_err(|e| e.to_string())?)
}

/// A store, whichever it is.
#[derive(Clone)]
enum Opened {
    Embedded(Arc<EmbeddedStore>),
    Redis(Arc<RedisStore>),
}

impl Opened {
    fn store(&self) -> Arc<dyn Store> {
        match self {
            Self::Embedded(store) => store.clone(),
            Self::Redis(store) => store.clone(),
        }
    }

    async fn collect(&self, now_ms: u64) -> Result<Collected, StoreError> {
        match self {
            Self::Embedded(store) => store.collect(now_ms).await,
            Self::Redis(store) => store.collect(now_ms).await,
        }
    }
}

/// What a gateway keeps its data in, and what comes with that.
struct Kept {
    store: Opened,
    bus: Option<Arc<dyn Bus>>,
    control: Option<Control>,
}

async fn embedded(settings: &Settings, found: &Found, env: &Arc<dyn Env>) -> Result<Kept, Failure> {
    let options = EmbeddedOptions {
        durability: settings.durability,
        retention: settings.retention.clone(),
        reserve_bytes: settings.reserve_bytes,
        env: env.clone(),
    };
    let folder = settings.data_dir.clone();
    let store = tokio::task::spawn_blocking(move || embedded::open(&folder, options));
    let store = store
        .await
        .map_err(|e| format!("cannot open the store: {e}"))?
        .map_err(|e| e.to_string())?;
    reserve_fits(found)?;
    // Not every file system has sockets; the gateway serves without.
    let control = Control::bind(&settings.data_dir)
        .inspect_err(|error| {
            let dir = settings.data_dir.display();
            tracing::warn!(%dir, %error, "no control socket: backup and erase need the gateway stopped");
        })
        .ok();
    Ok(Kept {
        store: Opened::Embedded(Arc::new(store)),
        bus: None,
        control,
    })
}

/// The store on Redis. Where that does not answer now, the gateway serves, is not ready, and is by itself once it does.
async fn on_redis(url: &str, settings: &Settings, env: &Arc<dyn Env>, metrics: &Metrics) -> Result<Kept, Failure> {
    let metrics = RedisMetrics::new(metrics);
    let (config, retention) = (settings.redis.clone(), settings.retention.clone());
    let any_policy = config.any_policy;
    let store = RedisStore::new(url, config, retention, metrics).map_err(|e| e.to_string())?;
    match store.doctor().await {
        Ok(findings) => {
            for finding in findings.iter().filter(|finding| finding.level == Level::Warning) {
                tracing::warn!(redis = %finding.what, "{}", finding.advice);
            }
            if let Some(wrong) = findings.iter().find(|finding| finding.forbids(any_policy)) {
                return Err(format!("Redis: {}\n{}", wrong.what, wrong.advice).into());
            }
        }
        Err(error) => tracing::error!(%error, "Redis does not answer; the node is not ready until it does"),
    }
    Ok(Kept {
        store: Opened::Redis(store.clone()),
        bus: Some(RedisBus::new(store, env.clone())),
        control: None,
    })
}

/// More than the whole disk cannot be kept free: every write would be refused.
fn reserve_fits(found: &Found) -> Result<(), String> {
    let settings = &found.config.settings;
    let (reserve, dir) = (settings.reserve_bytes, settings.data_dir.display());
    let disk = rustix::fs::statvfs(&settings.data_dir).map_err(|e| format!("{dir}: {e}"))?;
    let size = disk.f_blocks.saturating_mul(disk.f_frsize);
    match reserve == 0 || reserve < size {
        true => Ok(()),
        false => Err(format!(
            "{}: reserve_bytes: {reserve} bytes cannot be kept free on the disk of {dir}, which has {size} in all; set fewer",
            found.config.origin("reserve_bytes")
        )),
    }
}

/// Removes what is older than the retention, now and then at every so long.
async fn collect(store: Opened, env: Arc<dyn Env>, every: Duration) {
    loop {
        match store.collect(env.now_ms()).await {
            Ok(collected) => tracing::debug!(?collected, "collected what is older than the retention"),
            Err(error) => {
                tracing::warn!(%error, "collecting what is older than the retention failed; it is tried again")
            }
        }
        tokio::time::sleep(every).await;
    }
}

/// A space that has been closed for so long is being erased by a node that may have ended.
const ABANDONED: Duration = Duration::from_secs(10);

/// Counts what documents take, as soon as Redis answers: it may hold millions of keys, and nobody waits for that.
async fn count(store: Arc<RedisStore>) {
    while let Err(error) = store.count().await {
        tracing::warn!(%error, "what documents take could not be counted; it is tried again");
        tokio::time::sleep(ABANDONED / 2).await;
    }
}

/// Goes on with erasures that other nodes have left.
async fn resume_erasures(store: Arc<RedisStore>) {
    loop {
        tokio::time::sleep(ABANDONED / 2).await;
        if let Err(error) = store.resume_erasures(ABANDONED).await {
            tracing::warn!(%error, "an erasure could not be gone on with; it is tried again");
        }
    }
}

/// Connections that the kernel keeps until they are accepted: as many as come at once when a node takes over from
/// another. The kernel has a bound of its own, `net.core.somaxconn`.
const BACKLOG: i32 = 4_096;

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    use socket2::{Domain, Protocol, Socket, Type};
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

fn bind(args: &ServeArgs, address: SocketAddr, call: &str) -> Result<TcpListener, String> {
    let listener = listen(address).map_err(|e| match e.kind() {
        io::ErrorKind::AddrInUse => words::port_taken(args, address, words::free_after(address), call),
        _ => format!("cannot listen on {address}: {e}"),
    })?;
    // Tokio takes none that blocks.
    listener
        .set_nonblocking(true)
        .map_err(|e| format!("cannot listen on {address}: {e}"))?;
    Ok(listener)
}

/// Ctrl-C, and the system's wish that the gateway stop.
fn told() -> Result<[Signal; 2], String> {
    let listen = |kind| signal(kind).map_err(|e| format!("cannot listen for signals: {e}"));
    Ok([listen(SignalKind::terminate())?, listen(SignalKind::interrupt())?])
}

async fn stop_when_told([mut terminate, mut interrupt]: [Signal; 2], stop: CancellationToken) {
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::info!("stopping: connections are told, and what is under way is answered");
    stop.cancel();
}

/// The log goes to standard error, so that standard output stays readable.
fn log(filter: &str) -> Result<(), String> {
    use tracing_subscriber::EnvFilter;
    let filter = EnvFilter::try_new(filter).map_err(|e| format!("log: {filter:?}: {e}"))?;
    let colour = super::show::colour(io::IsTerminal::is_terminal(&io::stderr()));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(colour)
        // A log on a disk that is full loses lines; to complain of that on the same log would panic.
        .log_internal_errors(false)
        .init();
    Ok(())
}

/// How to call this executable in a shell.
pub(crate) fn call() -> String {
    let Ok(exe) = std::env::current_exe() else {
        return "tidegate".into();
    };
    let folder = std::env::current_dir().unwrap_or_default();
    let found = variable("PATH")
        .and_then(|path| {
            std::env::split_paths(&path)
                .map(|folder| folder.join("tidegate"))
                .find(|path| path.is_file())
        })
        .and_then(|path| fs::canonicalize(path).ok());
    words::call(&exe, &folder, found.as_deref().map(Path::new))
}
