//! The server: accepts connections, speaks HTTP on them, and turns some into WebSockets.

pub mod control;
mod dev;
mod http;

use crate::admission::{Admission, AdmissionConfig, Admitted};
use crate::auth::Authoriser;
use crate::bus::Bus;
use crate::engine::{Engine, EngineConfig};
use crate::env::Env;
use crate::hub::{Hub, HubConfig, LocalPublish};
use crate::metrics::Metrics;
use crate::session::{Node, NodeConfig, SessionConfig};
use crate::store::Store;
use dashmap::DashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// What a gateway is made of.
pub struct Parts {
    /// The store.
    pub store: Arc<dyn Store>,
    /// Who may do what.
    pub authoriser: Arc<dyn Authoriser>,
    /// Clock and randomness.
    pub env: Arc<dyn Env>,
    /// What other nodes commit, if there are any.
    pub bus: Option<Arc<dyn Bus>>,
    /// What is counted.
    pub metrics: Arc<Metrics>,
}

/// How a gateway runs.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// Admit only what comes from this machine: peers, and the `Host` and `Origin` of requests.
    pub loopback_only: bool,
    /// Name of the node, in `welcome` and logs.
    pub name: String,
    /// Clients ping after this long without sending.
    pub ping: Duration,
    /// From accepting a connection to `hello`.
    pub hello: Duration,
    /// After a stop has been asked for: how long connections are still taken, while the node says that it is not ready.
    pub ready_delay: Duration,
    /// Over how long connections are sent away then.
    pub drain: Duration,
    /// Who is let in.
    pub admission: AdmissionConfig,
    /// Connections' bounds.
    pub node: NodeConfig,
    /// The hub's bounds.
    pub hub: HubConfig,
    /// The engine's bounds.
    pub engine: EngineConfig,
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self {
            loopback_only: false,
            name: "tidegate".into(),
            ping: Duration::from_secs(45),
            hello: Duration::from_secs(10),
            ready_delay: Duration::ZERO,
            drain: Duration::from_secs(10),
            admission: AdmissionConfig::default(),
            node: NodeConfig::default(),
            hub: HubConfig::default(),
            engine: EngineConfig::default(),
        }
    }
}

/// A connection that HTTP is spoken on.
#[derive(Clone)]
struct Peer {
    addr: SocketAddr,
    since: Instant,
    admitted: Admitted,
}

/// A gateway that is put together, and serves nobody yet.
pub struct Server {
    node: Arc<Node>,
    bus: Option<Arc<dyn Bus>>,
    config: ServerConfig,
    /// What connections depend on.
    work: TaskTracker,
}

/// Puts a gateway together, and runs it (see [`Server::run`]).
pub async fn run(listener: TcpListener, parts: Parts, config: ServerConfig, stop: CancellationToken) -> io::Result<()> {
    Server::new(parts, config).run(listener, stop).await
}

impl Server {
    /// Puts a gateway together.
    pub fn new(parts: Parts, config: ServerConfig) -> Self {
        let work = TaskTracker::new();
        let bus = parts.bus.clone();
        let node = assemble(parts, &config, &work);
        Self {
            node,
            bus,
            config,
            work,
        }
    }

    /// Its engine, for what does not come over connections.
    pub fn engine(&self) -> Arc<Engine> {
        self.node.engine.clone()
    }

    /// What it counts.
    pub fn metrics(&self) -> Arc<Metrics> {
        self.node.metrics.clone()
    }

    /// Serves until `stop`, then drains: not ready; after a delay no new connections; `goaway` to some at a time, their
    /// answers flushed, closed.
    ///
    /// Errors only if the listener itself cannot be used.
    pub async fn run(self, listener: TcpListener, stop: CancellationToken) -> io::Result<()> {
        let Self {
            node,
            bus,
            config,
            work,
        } = self;
        serve(listener, (node, bus), &config, work, stop).await
    }
}

async fn serve(
    listener: TcpListener,
    (node, bus): (Arc<Node>, Option<Arc<dyn Bus>>),
    config: &ServerConfig,
    work: TaskTracker,
    stop: CancellationToken,
) -> io::Result<()> {
    let local = listener.local_addr()?;
    if config.loopback_only && !local.ip().is_loopback() {
        let why = format!("{local} is not a loopback address; dev mode admits anyone, and only from this machine");
        return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
    }
    // Two trackers: connections end before what they depend on.
    let connections = TaskTracker::new();
    let background = CancellationToken::new();
    work.spawn(node.hub.clone().run(background.clone()));
    work.spawn(node.clone().sweep(background.clone()));
    if let Some(bus) = bus {
        work.spawn(bus.run(node.hub.clone(), background.clone()));
    }
    let app = http::router(node.clone(), config.loopback_only, connections.clone());

    let closed = CancellationToken::new();
    let door = Door {
        loopback_only: config.loopback_only,
        hello: config.hello,
        admission: Admission::new(config.admission.clone(), node.metrics.clone()),
        node: node.clone(),
        app,
        connections: connections.clone(),
        stop: closed.clone(),
        refusals: Arc::new(Semaphore::new(REFUSALS)),
    };
    // A task of its own takes turns with the connections, wherever this runs. It ends by itself only of a defect.
    let mut accepting = JoinSet::new();
    accepting.spawn(async move { door.accept(&listener).await });
    stop.run_until_cancelled(accepting.join_next()).await;
    node.stopping.cancel();
    let _ = tokio::time::timeout(config.ready_delay, accepting.join_next()).await;

    accepting.shutdown().await;
    // Requests that are under way end; those on which nothing is are closed.
    closed.cancel();
    node.clone().drain(config.drain).await;
    connections.close();
    // Each connection has its own bounds for answering and flushing; this is the sum of them.
    if tokio::time::timeout(config.node.flush * 3, connections.wait())
        .await
        .is_err()
    {
        tracing::warn!(
            left = connections.len(),
            "connections were still open when the drain's time was over"
        );
    }
    background.cancel();
    work.close();
    if tokio::time::timeout(config.node.flush, work.wait()).await.is_err() {
        tracing::warn!(
            left = work.len(),
            "work was still under way when the drain's time was over"
        );
    }
    Ok(())
}

fn assemble(parts: Parts, config: &ServerConfig, work: &TaskTracker) -> Arc<Node> {
    let Parts {
        store,
        authoriser,
        env,
        bus,
        metrics,
    } = parts;
    let ms = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    let hub = Hub::with_bus(
        store.clone(),
        bus,
        env.clone(),
        config.hub.clone(),
        metrics.clone(),
        work.clone(),
    );
    let engine = Engine::new(
        store.clone(),
        Arc::new(LocalPublish(hub.clone())),
        authoriser.clone(),
        env.clone(),
        config.node.limits.clone(),
        config.engine.clone(),
        work.clone(),
    );
    metrics.watch(engine.stats().clone(), store.clone());
    Arc::new(Node {
        engine,
        hub,
        store,
        authoriser,
        env,
        budget: config.node.budget(&metrics),
        metrics,
        session: Arc::new(SessionConfig {
            node: config.name.clone(),
            limits: config.node.limits.clone(),
            ping_ms: ms(config.ping),
            hello_ms: ms(config.hello),
        }),
        catch_ups: Semaphore::new(config.node.catch_ups),
        config: config.node.clone(),
        stopping: CancellationToken::new(),
        draining: CancellationToken::new(),
        started: Instant::now(),
        connections: DashMap::new(),
        last_id: AtomicU64::new(0),
    })
}

/// Connections that are told that there is no room, at a time. Those over it are told nothing.
const REFUSALS: usize = 256;

/// Bytes that the kernel may hold for a connection before they are on their way: what waits is to wait where it is
/// counted, and can be cut. What is on its way is not bounded by this, so a fast connection stays as fast.
const UNSENT: u32 = 128 << 10;

/// How long one that is told so may take.
const REFUSAL: Duration = Duration::from_secs(1);

/// Where connections come in.
struct Door {
    /// See `ServerConfig`.
    loopback_only: bool,
    hello: Duration,
    admission: Arc<Admission>,
    node: Arc<Node>,
    app: axum::Router,
    connections: TaskTracker,
    /// When no request is taken any more.
    stop: CancellationToken,
    refusals: Arc<Semaphore>,
}

impl Door {
    /// Lets connections in until it is dropped: one, then all others have their turn, so that a crowd delays nobody who
    /// is in.
    async fn accept(&self, listener: &TcpListener) {
        let mut pause = Duration::from_millis(10);
        loop {
            self.admission.room().await;
            match listener.accept().await {
                Ok((socket, addr)) => {
                    pause = Duration::from_millis(10);
                    self.enter(socket, addr);
                    tokio::task::yield_now().await;
                }
                Err(error) => {
                    let reason = self.failed(&error);
                    if reason == "connection" {
                        continue;
                    }
                    // Accepting at once would spin.
                    tracing::warn!(%error, ?pause, "cannot accept connections; trying again");
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(Duration::from_secs(1));
                }
            }
        }
    }

    /// Counts an error of accepting, and says what it is about.
    fn failed(&self, error: &io::Error) -> &'static str {
        let reason = error_of_accept(error);
        self.node.metrics.accept_errors.with_label_values(&[reason]).inc();
        reason
    }

    fn enter(&self, socket: TcpStream, addr: SocketAddr) {
        if self.loopback_only && !addr.ip().is_loopback() {
            self.node.metrics.refused.with_label_values(&["peer"]).inc();
            tracing::warn!(%addr, "dev mode admits connections from this machine only");
            return;
        }
        let Some(admitted) = self.admission.admit() else {
            return self.refuse(socket);
        };
        // A change is one small write: it must not wait for the acknowledgement of the one before.
        let socket_options = socket2::SockRef::from(&socket);
        let set = socket_options
            .set_tcp_nodelay(true)
            .and_then(|()| socket_options.set_tcp_notsent_lowat(UNSENT));
        if let Err(error) = set {
            self.node.metrics.http_errors.with_label_values(&["lost"]).inc();
            tracing::debug!(%addr, %error, "gone before it was served");
            return;
        }
        let peer = Peer {
            addr,
            since: Instant::now(),
            admitted,
        };
        let metrics = self.node.metrics.clone();
        let served = serve_http(socket, peer, self.app.clone(), self.hello, self.stop.clone(), metrics);
        self.connections.spawn(served);
    }

    /// There are as many connections as there may be: says when to come back.
    fn refuse(&self, socket: TcpStream) {
        self.node.metrics.refused.with_label_values(&["connections"]).inc();
        let Ok(turn) = self.refusals.clone().try_acquire_owned() else {
            return self.node.metrics.untold.inc();
        };
        // Spread out, so that they do not all come back at once.
        let after = 2 + self.node.env.random() % 8;
        let message = format!("too many connections on this node; come back in {after} s\n");
        let answer = format!(
            "HTTP/1.1 503 Service Unavailable\r\n{}: {}\r\nRetry-After: {after}\r\nContent-Type: text/plain; \
             charset=utf-8\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{message}",
            http::ERROR_HEADER,
            tidegate_protocol::Code::Overloaded.name(),
            message.len()
        );
        self.connections.spawn(async move {
            let _turn = turn;
            let _ = tokio::time::timeout(REFUSAL, tell(socket, answer)).await;
        });
    }
}

/// Answers whatever is asked. Closing a socket with unread input would make the kernel throw the answer away.
async fn tell(mut socket: TcpStream, answer: String) -> io::Result<()> {
    let mut request = [0; 4096];
    if socket.read(&mut request).await? == 0 {
        return Ok(());
    }
    socket.write_all(answer.as_bytes()).await?;
    socket.shutdown().await?;
    while socket.read(&mut request).await? > 0 {}
    Ok(())
}

/// What an error of accepting is about: this connection alone, or what the process has run out of.
fn error_of_accept(error: &io::Error) -> &'static str {
    use rustix::io::Errno;
    match error.raw_os_error().map(Errno::from_raw_os_error) {
        Some(Errno::MFILE | Errno::NFILE) => "files",
        Some(Errno::NOBUFS | Errno::NOMEM) => "memory",
        Some(Errno::CONNABORTED | Errno::CONNRESET | Errno::PROTO | Errno::INTR | Errno::PERM) => "connection",
        _ => "other",
    }
}

/// What HTTP on a connection ended of.
fn error_of_http(error: &hyper::Error) -> &'static str {
    if error.is_timeout() {
        "timeout"
    } else if error.is_parse() {
        "malformed"
    } else {
        "lost"
    }
}

async fn serve_http(
    socket: TcpStream,
    peer: Peer,
    app: axum::Router,
    hello: Duration,
    stop: CancellationToken,
    metrics: Arc<Metrics>,
) {
    use hyper_util::rt::{TokioIo, TokioTimer};
    use tower_service::Service;
    let (addr, guest) = (peer.addr, peer.admitted.guest.clone());
    let service = hyper::service::service_fn(move |mut request: hyper::Request<hyper::body::Incoming>| {
        request.extensions_mut().insert(peer.clone());
        app.clone().call(request)
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(hello)
        .max_buf_size(16 << 10)
        .serve_connection(TokioIo::new(socket), service)
        .with_upgrades();
    tokio::pin!(connection);
    let evicted = async {
        match &guest {
            Some(guest) => guest.evicted().await,
            None => std::future::pending().await,
        }
    };
    let result = tokio::select! {
        result = connection.as_mut() => result,
        // It has taken longer than others had to wait for it.
        () = evicted => return metrics.http_errors.with_label_values(&["evicted"]).inc(),
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            // A request that is under way may end; one that is half sent does not hold up the stop.
            match tokio::time::timeout(Duration::from_secs(1), connection).await {
                Ok(result) => result,
                Err(_) => return metrics.http_errors.with_label_values(&["stopping"]).inc(),
            }
        }
    };
    if let Err(error) = result {
        metrics.http_errors.with_label_values(&[error_of_http(&error)]).inc();
        tracing::debug!(%addr, %error, "HTTP ended");
    }
}

#[cfg(test)]
mod tests;
