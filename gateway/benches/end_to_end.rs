//! A whole gateway on loopback: one writer, 200 subscribers, at 20 commits a second and in a burst.
//!
//! Server and clients share one process, but not their threads: what is counted is the CPU time of the
//! gateway's threads alone (`/proc/self/task/*/schedstat`, by thread name), over deliveries that the
//! clients have seen. Beside it, in the same process and before the same clients, a bare loop that
//! writes the prebuilt frame to every socket. What sharing a machine's cores and caches with the
//! clients costs is in both figures; a load tool on another machine would show less of it.

use futures_util::{SinkExt, StreamExt};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tidegate::auth::DevAuthoriser;
use tidegate::env::SystemEnv;
use tidegate::frame;
use tidegate::server::{Parts, ServerConfig};
use tidegate::store::Retention;
use tidegate::store::embedded::{self, Durability, EmbeddedOptions};
use tidegate_protocol::form::Form;
use tidegate_protocol::{
    ClientId, ClientMessage, DocPath, Fields, Hello, Limits, Mid, MutationKey, Op, OpKind, Seq, ServerMessage, SpaceId,
    Sub, Value, Write, WriteHead, Writer, msgpack,
};
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinSet;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_util::sync::CancellationToken;

type Socket = WebSocketStream<TcpStream>;

/// How much of it.
struct Scale {
    subscribers: usize,
    /// Commits at 20 a second.
    paced: u64,
    /// Commits as fast as they go, at most `IN_FLIGHT` unanswered.
    burst: u64,
}

const BETWEEN: Duration = Duration::from_millis(50);
const IN_FLIGHT: u64 = 64;
const PATIENCE: Duration = Duration::from_secs(20);
/// Prefixes of thread names.
const CLIENTS: &str = "clients";
const LIMIT: &str = "limit";

fn main() {
    // Without `--bench` it is `cargo test` that asks: does it run?
    let scale = if std::env::args().any(|arg| arg == "--bench") {
        Scale {
            subscribers: 200,
            paced: 80,
            burst: 2_000,
        }
    } else {
        Scale {
            subscribers: 2,
            paced: 2,
            burst: 2,
        }
    };
    let clients = runtime(CLIENTS);
    let limit = limit(&clients, &scale);
    let gateway = gateway(&clients, &scale);
    for (name, gateway, limit) in [
        ("paced", gateway.paced, limit.paced),
        ("burst", gateway.burst, limit.burst),
    ] {
        let (ours, bare) = (gateway.cpu_us(), limit.cpu_us());
        say(&format!(
            "end to end, {name}: {ours:.2} µs of CPU a delivery, {:.2} times a bare loop's ({bare:.2}), {} deliveries",
            ours / bare,
            gateway.deliveries
        ));
    }
}

#[allow(clippy::print_stdout, reason = "this is what it is run for")]
fn say(line: &str) {
    println!("{line}");
}

/// One side's figures.
struct Figures {
    paced: Figure,
    burst: Figure,
}

struct Figure {
    cpu: Duration,
    deliveries: u64,
}

impl Figure {
    #[allow(clippy::cast_precision_loss, reason = "a few thousand deliveries")]
    fn cpu_us(&self) -> f64 {
        self.cpu.as_secs_f64() * 1e6 / self.deliveries as f64
    }
}

fn runtime(name: &str) -> Runtime {
    Builder::new_multi_thread()
        .worker_threads(1)
        .thread_name(name)
        .enable_all()
        .build()
        .expect("a runtime")
}

/// CPU time so far of the threads of this process whose names `wanted` accepts.
fn cpu_of(wanted: impl Fn(&str) -> bool) -> Duration {
    let threads = std::fs::read_dir("/proc/self/task").expect("Linux");
    let one = |thread: io::Result<std::fs::DirEntry>| {
        let path = thread.ok()?.path();
        let name = std::fs::read_to_string(path.join("comm")).ok()?;
        let stat = std::fs::read_to_string(path.join("schedstat")).ok()?;
        let ns = stat.split_ascii_whitespace().next()?.parse().ok()?;
        wanted(name.trim_end()).then_some(Duration::from_nanos(ns))
    };
    threads.filter_map(one).sum()
}

/// Everything of the gateway, its store's threads too. This thread only waits.
fn gateway_cpu() -> Duration {
    cpu_of(|name| !name.starts_with(CLIENTS) && !name.starts_with(LIMIT))
}

fn space() -> SpaceId {
    SpaceId::parse("bench").expect("a space")
}

/// About 200 bytes of text.
fn text() -> Value {
    Value::str(&"end to end ".repeat(18))
}

fn gateway(clients: &Runtime, scale: &Scale) -> Figures {
    let dir = TempDir::new().expect("a folder");
    let options = EmbeddedOptions {
        durability: Durability::Memory,
        retention: Retention::default(),
        reserve_bytes: embedded::RESERVE_BYTES,
        env: Arc::new(SystemEnv),
    };
    let parts = Parts {
        store: Arc::new(embedded::open(dir.path(), options).expect("a store")),
        authoriser: Arc::new(DevAuthoriser),
        env: Arc::new(SystemEnv),
    };
    let config = ServerConfig {
        loopback_only: true,
        ..ServerConfig::default()
    };
    let server = runtime("gateway");
    let listener = server.block_on(TcpListener::bind("127.0.0.1:0")).expect("a port");
    let addr = listener.local_addr().expect("an address");
    let stop = CancellationToken::new();
    let mut running = JoinSet::new();
    running.spawn_on(
        tidegate::server::run(listener, parts, config, stop.clone()),
        server.handle(),
    );

    let seen = Arc::new(AtomicU64::new(0));
    let count = scale.subscribers;
    // The writer, too, runs on the clients' thread, so that its work is not counted.
    let run = {
        let (paced, burst) = (scale.paced, scale.burst);
        async move {
            let mut listening = JoinSet::new();
            for _ in 0..count {
                let mut socket = connect(addr).await;
                subscribe(&mut socket).await;
                let seen = seen.clone();
                listening.spawn(async move {
                    while let Some(Ok(message)) = socket.next().await {
                        seen.fetch_add(u64::from(is_change(&message)), Ordering::Relaxed);
                    }
                });
            }
            let mut author = Author::new(addr).await;
            author.write(Duration::ZERO, 1).await;
            let paced = measure(&seen, count, gateway_cpu, paced, async || author.paced(paced).await).await;
            let burst = measure(&seen, count, gateway_cpu, burst, async || author.burst(burst).await).await;
            Figures { paced, burst }
        }
    };
    let figures = on(clients, run);
    stop.cancel();
    server.block_on(running.join_next());
    figures
}

/// Runs a future on the runtime's own thread.
fn on<T: Send + 'static>(runtime: &Runtime, future: impl Future<Output = T> + Send + 'static) -> T {
    let mut tasks = JoinSet::new();
    tasks.spawn_on(future, runtime.handle());
    let done = runtime.block_on(tasks.join_next()).expect("spawned");
    done.expect("it does not panic")
}

/// Runs `commits` and waits until every subscriber has seen every one.
async fn measure(
    seen: &AtomicU64,
    subscribers: usize,
    cpu: fn() -> Duration,
    commits: u64,
    run: impl AsyncFnOnce(),
) -> Figure {
    let deliveries = commits * subscribers as u64;
    let (from, before) = (seen.load(Ordering::Relaxed), cpu());
    run().await;
    let start = Instant::now();
    while seen.load(Ordering::Relaxed) < from + deliveries {
        assert!(
            start.elapsed() < PATIENCE,
            "{} of {deliveries}",
            seen.load(Ordering::Relaxed) - from
        );
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    Figure {
        cpu: cpu() - before,
        deliveries,
    }
}

async fn connect(addr: SocketAddr) -> Socket {
    let mut request = format!("ws://{addr}/v1/ws").into_client_request().expect("a request");
    let form = Form::Msgpack.subprotocol().parse().expect("a header");
    request.headers_mut().insert("Sec-WebSocket-Protocol", form);
    let stream = TcpStream::connect(addr).await.expect("connected");
    stream.set_nodelay(true).expect("a socket");
    let (mut socket, _) = tokio_tungstenite::client_async(request, stream)
        .await
        .expect("upgraded");
    let hello = Hello {
        token: Some("ada".into()),
        ..Hello::default()
    };
    send(&mut socket, &ClientMessage::Hello(hello)).await;
    until(&mut socket, |message| matches!(message, ServerMessage::Welcome(_))).await;
    socket
}

async fn subscribe(socket: &mut Socket) {
    let sub = Sub {
        id: 1,
        space: space(),
        client: None,
        from: None,
        filter: None,
    };
    send(socket, &ClientMessage::Sub(sub)).await;
    until(socket, |message| matches!(message, ServerMessage::Current { .. })).await;
}

async fn send(socket: &mut Socket, message: &ClientMessage) {
    let bytes = Form::Msgpack.encode_client(message);
    socket.send(Message::binary(bytes)).await.expect("sent");
}

async fn until(socket: &mut Socket, wanted: impl Fn(&ServerMessage) -> bool) -> ServerMessage {
    loop {
        let next = tokio::time::timeout(PATIENCE, socket.next()).await.expect("no silence");
        if let Message::Binary(bytes) = next.expect("connected").expect("a frame") {
            let message = Form::Msgpack.decode_server(&bytes).expect("a message");
            if wanted(&message) {
                return message;
            }
        }
    }
}

/// A change is an array of six whose first element is `"c"`.
fn is_change(message: &Message) -> bool {
    matches!(message, Message::Binary(bytes) if bytes.starts_with(b"\x96\xa1c"))
}

/// Writes, and subscribes to nothing.
struct Author {
    socket: Socket,
    now: u64,
    mid: u64,
    unanswered: u64,
}

impl Author {
    async fn new(addr: SocketAddr) -> Self {
        let socket = connect(addr).await;
        let now = u64::try_from(std::time::UNIX_EPOCH.elapsed().expect("after 1970").as_millis()).expect("64 bits");
        Self {
            socket,
            now,
            mid: 0,
            unanswered: 0,
        }
    }

    /// Sends one, then waits until less than `most` are unanswered.
    async fn write(&mut self, after: Duration, most: u64) {
        tokio::time::sleep(after).await;
        self.mid += 1;
        let fields = [("text".parse().expect("a field"), text())];
        let op = Op {
            doc: DocPath::parse("notes/n1").expect("a document"),
            kind: OpKind::Set(Fields::new(fields, &Limits::default()).expect("fields")),
            exists: None,
            unchanged_since: None,
        };
        let head = WriteHead {
            space: space(),
            client: ClientId(1),
            mid: Mid::new(self.mid).expect("a mid"),
            key: MutationKey(self.mid),
            prev: (self.mid > 1).then(|| MutationKey(self.mid - 1)),
            first: (self.mid == 1).then_some(self.now),
        };
        let write = Write {
            head,
            base: None,
            policy: None,
            ops: vec![op],
        };
        send(&mut self.socket, &ClientMessage::Write(write)).await;
        self.unanswered += 1;
        while self.unanswered >= most {
            let answer = |message: &ServerMessage| matches!(message, ServerMessage::Ack(_) | ServerMessage::Reject(_));
            let answer = until(&mut self.socket, answer).await;
            assert!(matches!(answer, ServerMessage::Ack(_)), "{answer:?}");
            self.unanswered -= 1;
        }
    }

    async fn paced(&mut self, commits: u64) {
        for _ in 0..commits {
            self.write(BETWEEN, 1).await;
        }
    }

    async fn burst(&mut self, commits: u64) {
        for _ in 0..commits {
            self.write(Duration::ZERO, IN_FLIGHT).await;
        }
    }
}

/// The least there is: one thread that writes the same frame to as many sockets, one call each.
fn limit(clients: &Runtime, scale: &Scale) -> Figures {
    let frame = {
        let doc = DocPath::parse("notes/n1").expect("a document");
        let kind = tidegate_protocol::DocChangeKind::Change {
            set: vec![("text".parse().expect("a field"), text())],
            unset: vec![],
        };
        let body = msgpack::encode_body(
            Writer(1 << 60),
            Mid::ZERO,
            &[tidegate_protocol::DocChange { doc, kind }],
        );
        frame::change(Form::Msgpack, 1, &msgpack::payload(Seq::ZERO, 0, &body))
    };
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let addr = listener.local_addr().expect("an address");
    let mut listening = JoinSet::new();
    let mut sockets = Vec::new();
    for _ in 0..scale.subscribers {
        listening.spawn_on(
            async move {
                let mut socket = TcpStream::connect(addr).await.expect("connected");
                let mut buffer = [0; 4096];
                while let Ok(1..) = socket.read(&mut buffer).await {}
            },
            clients.handle(),
        );
        let (socket, _) = listener.accept().expect("accepted");
        socket.set_nodelay(true).expect("a socket");
        sockets.push(socket);
    }
    let writing = std::thread::Builder::new().name(LIMIT.into());
    let (paced, burst) = (scale.paced, scale.burst);
    let round = move |commits: u64, between: Duration| {
        let before = cpu_of(|name| name == LIMIT);
        for _ in 0..commits {
            pause(between);
            for mut socket in &sockets {
                io::Write::write_all(&mut socket, &frame).expect("written");
            }
        }
        let cpu = cpu_of(|name| name == LIMIT) - before;
        Figure {
            cpu,
            deliveries: commits * sockets.len() as u64,
        }
    };
    let writing = writing.spawn(move || {
        round(1, Duration::ZERO);
        Figures {
            paced: round(paced, BETWEEN),
            burst: round(burst, Duration::ZERO),
        }
    });
    writing.expect("a thread").join().expect("it does not panic")
}

#[allow(clippy::disallowed_methods, reason = "on the bare loop's own thread")]
fn pause(time: Duration) {
    if !time.is_zero() {
        std::thread::sleep(time);
    }
}
