//! A gateway in this process on a free port, and a client that speaks the protocol by hand, so that
//! nothing of the client library hides what the gateway sends.

use futures_util::{SinkExt, StreamExt};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tempfile::TempDir;
use tidegate::auth::DevAuthoriser;
use tidegate::env::SystemEnv;
use tidegate::server::{Parts, ServerConfig};
use tidegate::store::embedded::{self, Durability, EmbeddedOptions, EmbeddedStore};
use tidegate::store::{Retention, Store};
use tidegate_history::{Checker, ConnectionId, Counts, Docs, Event, Installation};
use tidegate_protocol::form::Form;
use tidegate_protocol::*;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_util::sync::CancellationToken;

#[path = "between.rs"]
mod between;

#[allow(unused_imports, reason = "each test binary uses a part of it")]
pub use between::{Cutter, Gate};

pub const PATIENCE: Duration = Duration::from_secs(20);

pub fn open_store(dir: &std::path::Path, retention: Retention) -> Arc<EmbeddedStore> {
    let options = EmbeddedOptions {
        durability: Durability::Memory,
        retention,
        reserve_bytes: embedded::RESERVE_BYTES,
        env: Arc::new(SystemEnv),
    };
    Arc::new(embedded::open(dir, options).unwrap())
}

/// A gateway. Dropping it stops it without a drain.
pub struct Gateway {
    pub addr: SocketAddr,
    pub store: Arc<EmbeddedStore>,
    pub engine: Arc<tidegate::engine::Engine>,
    pub metrics: Arc<tidegate::metrics::Metrics>,
    pub dir: Arc<TempDir>,
    stop: CancellationToken,
    task: Option<JoinHandle<std::io::Result<()>>>,
}

impl Gateway {
    pub async fn start() -> Self {
        Self::with(ServerConfig::default(), Retention::default()).await
    }

    pub async fn with(config: ServerConfig, retention: Retention) -> Self {
        Self::in_dir(Arc::new(TempDir::new().unwrap()), config, retention).await
    }

    pub async fn in_dir(dir: Arc<TempDir>, config: ServerConfig, retention: Retention) -> Self {
        let store = open_store(dir.path(), retention);
        Self::on(dir, store.clone(), store, config).await
    }

    /// With something between the gateway and its store.
    pub async fn on(dir: Arc<TempDir>, store: Arc<EmbeddedStore>, front: Arc<dyn Store>, config: ServerConfig) -> Self {
        Self::at("127.0.0.1:0".parse().unwrap(), dir, store, front, config).await
    }

    /// At an address.
    pub async fn at(
        addr: SocketAddr,
        dir: Arc<TempDir>,
        store: Arc<EmbeddedStore>,
        front: Arc<dyn Store>,
        config: ServerConfig,
    ) -> Self {
        Self::guarded(addr, dir, store, front, Arc::new(DevAuthoriser), config).await
    }

    /// With another authoriser than that of dev mode.
    pub async fn guarded(
        addr: SocketAddr,
        dir: Arc<TempDir>,
        store: Arc<EmbeddedStore>,
        front: Arc<dyn Store>,
        authoriser: Arc<dyn tidegate::auth::Authoriser>,
        config: ServerConfig,
    ) -> Self {
        let parts = Parts {
            store: front,
            authoriser,
            env: Arc::new(SystemEnv),
            bus: None,
            metrics: Arc::default(),
        };
        Self::of(addr, dir, store, parts, config).await
    }

    /// Made of these parts.
    pub async fn of(
        addr: SocketAddr,
        dir: Arc<TempDir>,
        store: Arc<EmbeddedStore>,
        parts: Parts,
        config: ServerConfig,
    ) -> Self {
        let listener = TcpListener::bind(addr).await.unwrap();
        let addr = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        let config = ServerConfig {
            loopback_only: true,
            ..config
        };
        let server = tidegate::server::Server::new(parts, config);
        let (engine, metrics) = (server.engine(), server.metrics());
        #[allow(
            clippy::disallowed_methods,
            reason = "owned by this struct, which awaits or aborts it"
        )]
        let task = tokio::spawn(server.run(listener, stop.clone()));
        Self {
            addr,
            store,
            engine,
            metrics,
            dir,
            stop,
            task: Some(task),
        }
    }

    /// Drains and stops; returns the folder for the next one.
    pub async fn stop(mut self) -> Arc<TempDir> {
        self.stop.cancel();
        self.task.take().unwrap().await.unwrap().unwrap();
        self.dir.clone()
    }

    /// Stops, and starts again on the same folder, as a deployment does.
    pub async fn restart(self) -> Self {
        let dir = self.stop().await;
        Self::in_dir(dir, ServerConfig::default(), Retention::default()).await
    }

    pub async fn peer(&self, user: &str) -> Peer {
        self.peer_in(user, Form::Msgpack).await
    }

    pub async fn peer_in(&self, user: &str, form: Form) -> Peer {
        self.peer_with(user, form, &[]).await.0
    }

    /// One that declares capabilities, and those that were agreed on.
    pub async fn peer_with(&self, user: &str, form: Form, caps: &[&str]) -> (Peer, Vec<String>) {
        let mut peer = Peer::connect(self.addr, form).await;
        let hello = Hello {
            token: Some(user.to_owned()),
            caps: caps.iter().map(ToString::to_string).collect(),
            ..Hello::default()
        };
        peer.send(&ClientMessage::Hello(hello)).await;
        let ServerMessage::Welcome(welcome) = peer.next().await else {
            panic!("no welcome")
        };
        assert_eq!(welcome.user, user);
        peer.now = welcome.now;
        (peer, welcome.caps)
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(task) = self.task.take() {
            task.abort();
        }
    }
}

/// Judges what peers and apps see; the gateway's store is silent.
#[derive(Clone)]
pub struct Judge(Arc<parking_lot::Mutex<Checker>>);

impl Judge {
    pub fn new() -> Self {
        Self(Arc::new(parking_lot::Mutex::new(Checker::outside())))
    }

    pub fn observe(&self, event: Event<'_>) {
        self.0.lock().observe(event);
    }

    /// From here on it is told what a peer sends and receives.
    pub fn follow(&self, peer: &mut Peer, installation: u32, user: &str) {
        static CONNECTIONS: AtomicU64 = AtomicU64::new(0);
        let connection = ConnectionId(CONNECTIONS.fetch_add(1, Ordering::Relaxed));
        let installation = Installation(installation);
        self.observe(Event::Connected {
            connection,
            installation,
            user,
        });
        peer.judge = Some((self.clone(), connection));
    }

    /// Tells it that all is still: where the truth is, and each installation, with what is in its queue.
    pub fn rest(
        &self,
        space: &str,
        truth: &Replica,
        ends: impl IntoIterator<Item = (Installation, Option<Position>, Docs, usize)>,
    ) {
        let space = &space.parse().unwrap();
        let (position, docs) = (truth.at, &truth.by_path());
        self.observe(Event::Rest { space, position, docs });
        for (installation, position, docs, queued) in ends {
            let docs = &docs;
            self.observe(Event::AtRest {
                installation,
                space,
                position,
                docs,
                queued,
            });
        }
    }

    /// The counts of a history without a violation.
    pub fn verdict(self) -> Counts {
        let checker = std::mem::take(&mut *self.0.lock());
        checker.finish().verdict().unwrap_or_else(|text| panic!("{text}"))
    }
}

/// A connection that speaks the protocol by hand.
pub struct Peer {
    pub socket: WebSocketStream<TcpStream>,
    pub form: Form,
    pub now: u64,
    /// Compressed messages that came.
    pub compressed: usize,
    next_sub: u64,
    judge: Option<(Judge, ConnectionId)>,
}

impl Peer {
    /// A WebSocket without a `hello`.
    pub async fn connect(addr: SocketAddr, form: Form) -> Self {
        let mut request = format!("ws://{addr}/v1/ws").into_client_request().unwrap();
        request
            .headers_mut()
            .insert("Sec-WebSocket-Protocol", form.subprotocol().parse().unwrap());
        let stream = TcpStream::connect(addr).await.unwrap();
        stream.set_nodelay(true).unwrap();
        let (socket, _) = tokio_tungstenite::client_async(request, stream).await.unwrap();
        Self {
            socket,
            form,
            now: 0,
            compressed: 0,
            next_sub: 1,
            judge: None,
        }
    }

    /// A WebSocket on which `hello` was said, if there is a gateway that answers.
    pub async fn try_welcomed(addr: SocketAddr, user: &str) -> Option<Self> {
        let mut request = format!("ws://{addr}/v1/ws").into_client_request().unwrap();
        let form = Form::Msgpack;
        let protocol = form.subprotocol().parse().unwrap();
        request.headers_mut().insert("Sec-WebSocket-Protocol", protocol);
        let connecting = async {
            let stream = TcpStream::connect(addr).await.ok()?;
            stream.set_nodelay(true).ok()?;
            let (socket, _) = tokio_tungstenite::client_async(request, stream).await.ok()?;
            let mut peer = Self {
                socket,
                form,
                now: 0,
                compressed: 0,
                next_sub: 1,
                judge: None,
            };
            let hello = Hello {
                token: Some(user.to_owned()),
                ..Hello::default()
            };
            let hello = ClientMessage::Hello(hello);
            peer.try_send(&hello).await.then_some(())?;
            match peer.maybe_next().await? {
                ServerMessage::Welcome(welcome) => peer.now = welcome.now,
                _ => return None,
            }
            Some(peer)
        };
        tokio::time::timeout(Duration::from_secs(3), connecting).await.ok()?
    }

    /// Sends, and says whether the connection took it.
    pub async fn try_send(&mut self, message: &ClientMessage) -> bool {
        if let Some((judge, connection)) = &self.judge {
            let connection = *connection;
            judge.observe(Event::Sent { connection, message });
        }
        let frame = Message::binary(self.form.encode_client(message));
        self.socket.send(frame).await.is_ok()
    }

    pub async fn send(&mut self, message: &ClientMessage) {
        if let Some((judge, connection)) = &self.judge {
            let connection = *connection;
            judge.observe(Event::Sent { connection, message });
        }
        self.send_raw(self.form.encode_client(message)).await;
    }

    pub async fn send_raw(&mut self, bytes: Vec<u8>) {
        let frame = match self.form {
            Form::Json => Message::text(String::from_utf8(bytes).unwrap()),
            Form::Msgpack => Message::binary(bytes),
        };
        self.socket.send(frame).await.unwrap();
    }

    /// The next message; panics if there is none within `PATIENCE`.
    pub async fn next(&mut self) -> ServerMessage {
        self.maybe_next().await.expect("the connection has ended")
    }

    /// The next message, or `None` if the connection has ended.
    pub async fn maybe_next(&mut self) -> Option<ServerMessage> {
        loop {
            let frame = tokio::time::timeout(PATIENCE, self.socket.next())
                .await
                .expect("silence");
            let message = match frame? {
                Ok(Message::Binary(bytes)) => {
                    let message = deflate::expand(&bytes, Limits::default().message_bytes).unwrap();
                    self.compressed += usize::from(*message != *bytes);
                    self.form.decode_server(&message).unwrap()
                }
                Ok(Message::Text(text)) => self.form.decode_server(text.as_bytes()).unwrap(),
                Ok(Message::Close(_)) | Err(_) => return None,
                Ok(_) => continue,
            };
            if let Some((judge, connection)) = &self.judge {
                let (connection, message) = (*connection, &message);
                judge.observe(Event::Received { connection, message });
            }
            return Some(message);
        }
    }

    /// Subscribes to a space from where a replica stands, and says whether the connection took it.
    pub async fn try_sub(&mut self, space: &str, replica: &Replica) -> bool {
        let id = self.next_sub;
        self.next_sub += 1;
        let sub = Sub {
            id,
            space: space.parse().unwrap(),
            client: None,
            from: replica.from(),
            filter: None,
        };
        self.try_send(&ClientMessage::Sub(sub)).await
    }

    pub async fn sub(
        &mut self,
        space: &str,
        client: Option<ClientId>,
        from: Option<ResumeFrom>,
        filter: Option<&[&str]>,
    ) -> u64 {
        let id = self.next_sub;
        self.next_sub += 1;
        let filter = filter.map(|list| list.iter().map(|name| Collection::parse(name).unwrap()).collect());
        self.send(&ClientMessage::Sub(Sub {
            id,
            space: space.parse().unwrap(),
            client,
            from,
            filter,
        }))
        .await;
        id
    }

    /// Subscribes and brings `replica` up to `current`.
    pub async fn follow(&mut self, space: &str, replica: &mut Replica, client: Option<ClientId>) {
        let from = replica.from();
        self.sub(space, client, from, None).await;
        self.catch_up(replica).await;
    }

    /// Feeds messages to the replica until the catch-up that is on its way has ended.
    pub async fn catch_up(&mut self, replica: &mut Replica) {
        loop {
            let message = self.next().await;
            replica.take(&message);
            if matches!(message, ServerMessage::Current { .. }) {
                return;
            }
        }
    }

    /// Feeds messages to the replica until it stands at `seq` or beyond.
    pub async fn reach(&mut self, replica: &mut Replica, seq: u64) {
        while replica.at.seq.get() < seq || replica.staging {
            let message = self.next().await;
            replica.take(&message);
        }
    }

    /// The answer to a mutation; everything else goes to the replica.
    pub async fn answer(&mut self, replica: &mut Replica) -> Result<Ack, Reject> {
        loop {
            match self.next().await {
                ServerMessage::Ack(ack) => return Ok(ack),
                ServerMessage::Reject(reject) => return Err(reject),
                other => replica.take(&other),
            }
        }
    }
}

/// A client's copy of a space, kept by hand. Panics at anything that breaks a promise: a gap, a
/// repeat, a step back, a change in the middle of a catch-up.
#[derive(Clone, Default)]
pub struct Replica {
    pub at: Position,
    pub view: ViewId,
    pub cursor: Option<bytes::Bytes>,
    pub docs: BTreeMap<String, BTreeMap<FieldPath, Value>>,
    pub modes: Vec<Mode>,
    pub resumed: Vec<bool>,
    pub last_mid: Option<Mid>,
    /// Where each new epoch began.
    pub epochs: Vec<Position>,
    /// Every commit seen live or by log: seq, writer, mid.
    pub seen: Vec<(u64, Writer, u64)>,
    pub staged: Vec<DocChange>,
    pub staging: bool,
    pub n: Option<u32>,
}

impl Replica {
    pub fn from(&self) -> Option<ResumeFrom> {
        let known = self.at != Position::START || self.cursor.is_some();
        known.then(|| ResumeFrom {
            position: self.at,
            view: self.view,
            cursor: self.cursor.clone(),
        })
    }

    pub fn mode(&self) -> Mode {
        *self.modes.last().unwrap()
    }

    pub fn take(&mut self, message: &ServerMessage) {
        match message {
            ServerMessage::Begin(begin) => {
                if !begin.resumed {
                    self.staged.clear();
                    self.cursor = None;
                }
                self.staging = begin.mode != Mode::Log;
                self.modes.push(begin.mode);
                self.resumed.push(begin.resumed);
                self.view = begin.view;
                self.n = Some(begin.n);
            }
            ServerMessage::Page { docs, cursor, .. } => {
                assert!(self.staging, "a page outside a catch-up by pages");
                self.staged.extend(docs.iter().cloned());
                self.cursor = Some(cursor.clone());
            }
            ServerMessage::Current { position, last_mid, .. } => {
                if self.mode() == Mode::Reset {
                    self.docs.clear();
                } else if position.epoch == self.at.epoch {
                    assert!(position.seq >= self.at.seq, "backwards: {} after {}", position, self.at);
                }
                if self.mode() == Mode::Log {
                    assert_eq!(position.seq, self.at.seq, "log mode left a hole");
                }
                for change in std::mem::take(&mut self.staged) {
                    self.apply(&change);
                }
                self.cursor = None;
                self.staging = false;
                self.at = *position;
                self.last_mid = *last_mid;
            }
            ServerMessage::Change(change) => {
                assert!(!self.staging, "a change within a catch-up by pages");
                assert_eq!(Some(change.n), self.n, "a change of another space");
                let commit = &change.commit;
                let seq = commit.seq.get();
                assert_eq!(seq, self.at.seq.get() + 1, "a gap or a repeat");
                self.seen.push((seq, commit.writer, commit.mid.get()));
                commit.docs.iter().for_each(|doc| self.apply(doc));
                self.at.seq = commit.seq;
            }
            ServerMessage::Epoch { position, .. } => {
                assert_eq!(position.seq, self.at.seq, "an epoch that does not start here");
                self.at.epoch = position.epoch;
                self.epochs.push(*position);
            }
            ServerMessage::Progress { seq, .. } => {
                assert!(*seq >= self.at.seq, "progress backwards");
                self.at.seq = *seq;
            }
            ServerMessage::Ack(_) | ServerMessage::Reject(_) | ServerMessage::Pong { .. } => {}
            other => panic!("unexpected {other:?}"),
        }
    }

    fn apply(&mut self, change: &DocChange) {
        let name = change.doc.to_string();
        match &change.kind {
            DocChangeKind::Deleted => {
                self.docs.remove(&name);
            }
            DocChangeKind::Whole(set) => {
                self.docs.insert(name, set.iter().cloned().collect());
            }
            DocChangeKind::Change { set, unset } => {
                let doc = self.docs.entry(name).or_default();
                for root in unset {
                    doc.retain(|path, _| path != root && !path.is_below(root));
                }
                doc.extend(set.iter().cloned());
            }
        }
    }

    /// The documents by their paths.
    pub fn by_path(&self) -> Docs {
        let named = |(name, leaves): (&String, &BTreeMap<FieldPath, Value>)| (name.parse().unwrap(), leaves.clone());
        self.docs.iter().map(named).collect()
    }

    pub fn int(&self, doc: &str, path: &str) -> Option<i64> {
        match self.docs.get(doc)?.get(path)?.get() {
            ValueRef::Int(n) => Some(n),
            other => panic!("{other:?} is no integer"),
        }
    }
}

/// Makes the mutations of one client, numbered and keyed as the protocol wants.
#[derive(Clone)]
pub struct WriterState {
    pub client: ClientId,
    pub space: SpaceId,
    pub first: u64,
    pub mid: u64,
    pub key: Option<MutationKey>,
}

impl WriterState {
    pub fn new(space: &str, client: u64, first: u64) -> Self {
        Self {
            client: ClientId(client),
            space: space.parse().unwrap(),
            first,
            mid: 0,
            key: None,
        }
    }

    pub fn write(&mut self, ops: Vec<Op>) -> Write {
        self.mid += 1;
        let key = MutationKey(self.client.0.wrapping_mul(1_000_003) ^ self.mid << 20 ^ 0x5eed);
        let prev = self.key.replace(key);
        let first = (self.mid == 1).then_some(self.first);
        let mid = Mid::new(self.mid).unwrap();
        let head = WriteHead {
            space: self.space.clone(),
            client: self.client,
            mid,
            key,
            prev,
            first,
        };
        Write {
            head,
            base: None,
            policy: None,
            ops,
        }
    }
}

pub fn op(doc: &str, kind: OpKind) -> Op {
    Op {
        doc: doc.parse().unwrap(),
        kind,
        exists: None,
        unchanged_since: None,
    }
}

pub fn fields(list: &[(&str, Value)]) -> Fields {
    Fields::new(
        list.iter().map(|(path, v)| (path.parse().unwrap(), v.clone())),
        &Limits::default(),
    )
    .unwrap()
}

pub fn set(doc: &str, path: &str, value: impl Into<i64>) -> Op {
    op(doc, OpKind::Set(fields(&[(path, Value::int(value.into()))])))
}

pub fn inc(doc: &str, path: &str) -> Op {
    op(
        doc,
        OpKind::Inc {
            path: path.parse().unwrap(),
            by: Number::Int(1),
        },
    )
}

pub fn delete(doc: &str) -> Op {
    op(doc, OpKind::Delete)
}
