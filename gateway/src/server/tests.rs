//! Sessions on a socket that a test scripts, where the moment of an input matters.

use super::*;
use crate::auth::DevAuthoriser;
use crate::env::SystemEnv;
use crate::hub::Subscriber;
use crate::outbox::Transport;
use crate::session::{self, Accepted};
use crate::store::model::Model;
use crate::store::{
    Begun, ChangesReply, ChangesRequest, CommitGroup, Committed, ConflictRecord, Erase, Erased, LogReply, ReadCut,
    Retention, SpaceState, StoreError, Usage,
};
use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::io::IoSlice;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker};
use tidegate_protocol::form::Form;
use tidegate_protocol::{
    ClientMessage, Code, Collection, DocPath, Get, Hello, Mode, Position, Seq, ServerMessage, SpaceId, Sub, Writer,
};
use tokio::io::ReadBuf;

/// A peer: what it sends is put in by the test, what it gets is kept.
#[derive(Default)]
struct Script(Mutex<Tape>);

#[derive(Default)]
struct Tape {
    input: VecDeque<u8>,
    output: Vec<u8>,
    reader: Option<Waker>,
    /// Done when something is next read.
    on_read: Option<Box<dyn FnMut() + Send>>,
}

impl Transport for Arc<Script> {
    fn poll_read(&self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut tape = self.0.lock();
        if tape.input.is_empty() {
            tape.reader = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let count = buf.remaining().min(tape.input.len());
        let bytes: Vec<u8> = tape.input.drain(..count).collect();
        buf.put_slice(&bytes);
        let mut on_read = tape.on_read.take();
        drop(tape);
        if let Some(on_read) = &mut on_read {
            on_read();
        }
        self.0.lock().on_read = on_read;
        Poll::Ready(Ok(()))
    }
    fn try_write_vectored(&self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        let mut tape = self.0.lock();
        bufs.iter().for_each(|buf| tape.output.extend_from_slice(buf));
        Ok(bufs.iter().map(|buf| buf.len()).sum())
    }
    fn poll_write_ready(&self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
    fn shutdown_write(&self) {}
}

impl Script {
    /// Sends messages, all at once. A mask of zeros leaves the bytes as they are.
    fn send(&self, messages: impl IntoIterator<Item = ClientMessage>) {
        let mut tape = self.0.lock();
        for message in messages {
            let body = Form::Msgpack.encode_client(&message);
            let len = u8::try_from(body.len()).ok().filter(|len| *len < 126).unwrap();
            tape.input.extend([0x82, 0x80 | len, 0, 0, 0, 0]);
            tape.input.extend(body);
        }
        if let Some(reader) = tape.reader.take() {
            reader.wake();
        }
    }

    /// What has come since the last call, but for `welcome`.
    async fn received(&self) -> Vec<ServerMessage> {
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        self.taken()
    }

    /// What has come since the last call, but for `welcome`, without waiting.
    fn taken(&self) -> Vec<ServerMessage> {
        let output = std::mem::take(&mut self.0.lock().output);
        let mut rest = &output[..];
        let mut messages = Vec::new();
        while let [kind, len, tail @ ..] = rest {
            let (len, tail) = match len {
                126 => (usize::from(u16::from_be_bytes([tail[0], tail[1]])), &tail[2..]),
                short => (usize::from(*short), tail),
            };
            let (body, after) = tail.split_at(len);
            rest = after;
            // But for the frame that closes.
            if *kind == 0x82 {
                messages.push(Form::Msgpack.decode_server(body).unwrap());
            }
        }
        messages.retain(|message| !matches!(message, ServerMessage::Welcome(_)));
        messages
    }
}

/// The model, with faults.
struct Faulty {
    store: Model,
    /// `positions` does not answer.
    hangs: AtomicBool,
    /// Reads of the log.
    logs: AtomicUsize,
}

#[async_trait]
impl Store for Faulty {
    async fn commit(&self, group: CommitGroup) -> Result<Committed, StoreError> {
        self.store.commit(group).await
    }
    async fn read(&self, space: &SpaceId, docs: &[DocPath]) -> Result<ReadCut, StoreError> {
        self.store.read(space, docs).await
    }
    async fn log(
        &self,
        space: &SpaceId,
        after: Position,
        limit: usize,
        bytes: usize,
        writer: Option<Writer>,
    ) -> Result<LogReply, StoreError> {
        self.logs.fetch_add(1, Ordering::Relaxed);
        tokio::task::yield_now().await;
        self.store.log(space, after, limit, bytes, writer).await
    }
    async fn changes(&self, space: &SpaceId, request: ChangesRequest) -> Result<ChangesReply, StoreError> {
        self.store.changes(space, request).await
    }
    async fn positions(&self, spaces: &[SpaceId]) -> Result<Vec<SpaceState>, StoreError> {
        if self.hangs.load(Ordering::Relaxed) {
            std::future::pending::<()>().await;
        }
        self.store.positions(spaces).await
    }
    async fn erase(
        &self,
        space: &SpaceId,
        whom: Erase,
        fresh: tidegate_protocol::Epoch,
        now_ms: u64,
        begun: Begun<'_>,
    ) -> Result<Erased, StoreError> {
        self.store.erase(space, whom, fresh, now_ms, begun).await
    }
    fn usage(&self) -> Usage {
        self.store.usage()
    }
    async fn conflicts(&self, space: &SpaceId, limit: usize) -> Result<Vec<ConflictRecord>, StoreError> {
        self.store.conflicts(space, limit).await
    }
}

/// A connection that has just become a WebSocket.
fn accepted(socket: Arc<Script>) -> Accepted<Arc<Script>> {
    Accepted {
        socket,
        leftover: Bytes::new(),
        form: Form::Msgpack,
        token: None,
        since: Instant::now(),
        peer: "test".into(),
        admitted: Admitted::default(),
    }
}

/// A node and one connection on it that has said hello.
struct Rig {
    node: Arc<Node>,
    store: Arc<Faulty>,
    script: Arc<Script>,
    work: TaskTracker,
}

fn rig() -> Rig {
    rig_with(None, &ServerConfig::default())
}

fn rig_with(bus: Option<Arc<dyn Bus>>, config: &ServerConfig) -> Rig {
    let store = Arc::new(Faulty {
        store: Model::new(Retention::default()),
        hangs: AtomicBool::new(false),
        logs: AtomicUsize::new(0),
    });
    let parts = Parts {
        store: store.clone(),
        authoriser: Arc::new(DevAuthoriser),
        env: Arc::new(SystemEnv),
        bus,
        metrics: Arc::default(),
    };
    let work = TaskTracker::new();
    let node = assemble(parts, config, &work);
    let script = Arc::new(Script::default());
    let accepted = accepted(script.clone());
    work.spawn(session::serve(node.clone(), accepted));
    script.send([ClientMessage::Hello(Hello::default())]);
    Rig {
        node,
        store,
        script,
        work,
    }
}

fn sub(id: u64, filter: Option<&str>) -> ClientMessage {
    sub_to(id, "s", filter)
}

fn sub_to(id: u64, space: &str, filter: Option<&str>) -> ClientMessage {
    ClientMessage::Sub(Sub {
        id,
        space: space.parse().unwrap(),
        client: None,
        from: None,
        filter: filter.map(|name| vec![Collection::parse(name).unwrap()]),
    })
}

/// Commits a document.
async fn commit(rig: &Rig, mid: u64, doc: &str) {
    use crate::engine::{WriteBody, WriteReply, WriteRequest};
    use tidegate_protocol::{ClientId, Mid, MutationKey, Op, OpKind, WriteHead};
    let request = WriteRequest::new(
        Arc::new(crate::auth::Identity::new("w", None)),
        WriteHead {
            space: "s".parse().unwrap(),
            client: ClientId(1),
            mid: Mid::new(mid).unwrap(),
            key: MutationKey(mid),
            prev: (mid > 1).then(|| MutationKey(mid - 1)),
            first: (mid == 1).then(|| rig.node.env.now_ms()),
        },
        Ok(WriteBody {
            base: None,
            policy: None,
            ops: vec![Op {
                doc: doc.parse().unwrap(),
                kind: OpKind::Set(tidegate_protocol::Fields::default()),
                exists: None,
                unchanged_since: None,
            }],
        }),
    );
    let (done, answer) = tokio::sync::oneshot::channel();
    rig.node.engine.submit(
        request,
        Box::new(move |reply| assert!(done.send(matches!(reply, WriteReply::Ack(_))).is_ok())),
    );
    assert!(answer.await.unwrap(), "refused");
}

#[tokio::test]
async fn what_the_hub_said_of_a_subscription_is_not_taken_for_the_one_that_replaces_it() {
    let rig = rig();
    commit(&rig, 1, "a/x").await;
    commit(&rig, 2, "b/x").await;
    rig.script.send([sub(1, Some("a"))]);
    let seen = rig.script.received().await;
    let Some(ServerMessage::Current { position: at, .. }) = seen.last().cloned() else {
        panic!("{seen:?}");
    };
    // In the moment in which the filter changes, the hub says that it has to catch up from where it stands.
    let node = rig.node.clone();
    let mut once = Some(at);
    rig.script.0.lock().on_read = Some(Box::new(move || {
        if let Some(at) = once.take() {
            let open = node.connections.iter().filter_map(|conn| conn.upgrade());
            open.for_each(|conn| conn.behind(1, at));
        }
    }));
    rig.script.send([sub(1, Some("b"))]);
    let seen = rig.script.received().await;
    let modes: Vec<_> = seen
        .iter()
        .filter_map(|message| match message {
            ServerMessage::Begin(begin) => Some(begin.mode),
            _ => None,
        })
        .collect();
    assert_eq!(
        modes,
        [Mode::Reset],
        "a position of the other view must not be taken up: {seen:?}"
    );
    assert!(
        seen.iter()
            .any(|message| matches!(message, ServerMessage::Page { docs, .. } if docs[0].doc.as_str() == "b/x")),
        "{seen:?}"
    );
    rig.node.draining.cancel();
    rig.work.close();
}

/// The most that something moves by, from one turn of everybody's to the next, until it has come to `end`.
async fn most_in_a_turn(end: usize, mut moved: impl FnMut() -> usize) -> usize {
    let (mut all, mut most) = (0, 0);
    for _ in 0..100_000 {
        tokio::task::yield_now().await;
        let some = moved();
        (all, most) = (all + some, most.max(some));
        if all >= end {
            return most;
        }
    }
    panic!("{all} of {end}");
}

#[tokio::test]
async fn what_one_connection_sends_at_once_is_handled_some_at_a_time_so_that_others_have_their_turn() {
    let rig = rig();
    rig.script.received().await;
    rig.script.send((0..1_000).map(|at| ClientMessage::Ping { at }));
    let pongs = most_in_a_turn(1_000, || rig.script.taken().len()).await;
    assert!((2..=32).contains(&pongs), "{pongs} answers in a turn");
    // A subscription is more work: `begin` and `current`, one subscription a turn.
    rig.script.send((0..300).map(|n| sub_to(n, &format!("s/{n}"), None)));
    let answers = most_in_a_turn(600, || rig.script.taken().len()).await;
    assert!(answers <= 4, "{answers} answers in a turn");
    // And so is leaving.
    let subscriptions = rig.node.metrics.subscriptions.clone();
    assert_eq!(subscriptions.get(), 300);
    {
        let mut tape = rig.script.0.lock();
        tape.input.extend([0xff; 16]);
        tape.reader.take().unwrap().wake();
    }
    let mut left = 300;
    let ended = most_in_a_turn(300, || {
        let before = std::mem::replace(&mut left, usize::try_from(subscriptions.get()).unwrap());
        before - left
    });
    let ended = ended.await;
    assert!((2..=32).contains(&ended), "{ended} subscriptions ended in a turn");
    rig.node.draining.cancel();
    rig.work.close();
}

#[tokio::test]
async fn of_many_spaces_that_one_connection_subscribes_to_one_is_read_at_a_time() {
    let rig = rig();
    rig.script.received().await;
    rig.store.hangs.store(true, Ordering::Relaxed);
    rig.script.send((0..100).map(|n| sub_to(n, &format!("s/{n}"), None)));
    for _ in 0..10 {
        rig.script.received().await;
    }
    assert_eq!(rig.node.metrics.catching_up.get(), 100, "all have come");
    assert_eq!(rig.node.metrics.spaces.get(), 1, "the others wait for their turn");
    rig.node.draining.cancel();
    rig.work.close();
}

/// A bus that confirms a subscription, unless it hangs.
#[derive(Default)]
struct Unsure(AtomicBool);

#[async_trait]
impl Bus for Unsure {
    async fn follow(&self, _: &SpaceId) -> Result<(), StoreError> {
        if self.0.load(Ordering::Relaxed) {
            std::future::pending::<()>().await;
        }
        Ok(())
    }
    fn leave(&self, _: &SpaceId) {}
    fn is_connected(&self) -> bool {
        true
    }
    async fn run(self: Arc<Self>, _: Arc<Hub>, _: CancellationToken) {}
}

#[tokio::test]
async fn while_a_bus_confirms_no_subscription_what_is_open_is_read_all_the_same() {
    let bus = Arc::new(Unsure::default());
    let mut config = ServerConfig::default();
    config.node.catch_ups = 1;
    let rig = rig_with(Some(bus.clone()), &config);
    commit(&rig, 1, "a/x").await;
    rig.script.send([sub(1, None)]);
    rig.script.received().await;
    bus.0.store(true, Ordering::Relaxed);
    let other = Arc::new(Script::default());
    rig.work
        .spawn(session::serve(rig.node.clone(), accepted(other.clone())));
    other.send([ClientMessage::Hello(Hello::default()), sub_to(1, "new", None)]);
    assert_eq!(other.received().await, []);
    assert_eq!(rig.node.metrics.spaces.get(), 2, "it waits for the bus");
    let get = Get {
        id: 2,
        space: "s".parse().unwrap(),
        docs: vec!["a/x".parse().unwrap()],
    };
    rig.script.send([ClientMessage::Get(get), sub(1, Some("a"))]);
    let got = rig.script.received().await;
    let is_there = |is: fn(&ServerMessage) -> bool| got.iter().any(is);
    assert!(is_there(|got| matches!(got, ServerMessage::Docs { .. })), "{got:?}");
    assert!(is_there(|got| matches!(got, ServerMessage::Current { .. })), "{got:?}");
    rig.node.draining.cancel();
    rig.work.close();
}

#[tokio::test]
async fn a_flood_of_subs_does_not_pile_up_catch_ups_that_were_given_up() {
    let rig = rig();
    rig.script.received().await;
    rig.store.hangs.store(true, Ordering::Relaxed);
    // Each catch-up holds on to the node.
    let peak = Arc::new(AtomicUsize::new(0));
    let (node, most) = (Arc::downgrade(&rig.node), peak.clone());
    rig.script.0.lock().on_read = Some(Box::new(move || {
        most.fetch_max(node.strong_count(), Ordering::Relaxed);
    }));
    rig.script.send((0..5_000).map(|n| sub(n % 2, None)));
    rig.script.received().await;
    assert!(rig.script.0.lock().input.is_empty(), "all of it was read");
    let peak = peak.load(Ordering::Relaxed);
    assert!(peak < 20, "{peak}");
    rig.node.draining.cancel();
    rig.work.close();
}

#[tokio::test]
async fn news_of_a_commit_that_no_log_has_are_waited_for_without_haste() {
    let rig = rig();
    commit(&rig, 1, "a/x").await;
    rig.script.send([sub(1, None)]);
    assert!(matches!(
        rig.script.received().await.last(),
        Some(ServerMessage::Current { .. })
    ));
    let space: SpaceId = "s".parse().unwrap();
    let lineage = rig.store.positions(std::slice::from_ref(&space)).await.unwrap()[0]
        .lineage
        .clone();
    let never = crate::store::LogEntry {
        seq: Seq::new(5).unwrap(),
        payload: Bytes::new(),
    };
    let before = rig.store.logs.load(Ordering::Relaxed);
    crate::engine::Publish::publish(&LocalPublish(rig.node.hub.clone()), &space, &lineage, &[never]);
    tokio::time::sleep(Duration::from_millis(300)).await;
    let reads = rig.store.logs.load(Ordering::Relaxed) - before;
    assert!((1..10).contains(&reads), "{reads} reads of the log");
    commit(&rig, 2, "a/y").await;
    let seen = rig.script.received().await;
    assert!(
        seen.iter()
            .any(|message| matches!(message, ServerMessage::Change(change) if change.commit.seq.get() == 2)),
        "{seen:?}"
    );
    rig.node.draining.cancel();
    rig.work.close();
}

#[tokio::test]
async fn a_session_that_is_cut_off_leaves_nothing_behind_in_the_hub() {
    let rig = rig();
    commit(&rig, 1, "a/x").await;
    // Not tracked with the others: it is dropped in the middle, as a panic would.
    let script = Arc::new(Script::default());
    let accepted = accepted(script.clone());
    let session = session::serve(rig.node.clone(), accepted);
    script.send([ClientMessage::Hello(Hello::default()), sub(1, None)]);
    tokio::select! {
        () = session => panic!("it ended"),
        seen = script.received() => assert!(matches!(seen.last(), Some(ServerMessage::Current { .. }))),
    }
    assert_eq!(rig.node.connections.len(), 1, "the rig's own");
    let closes = &rig.node.metrics.closes;
    assert_eq!(
        closes.with_label_values(&["internal"]).get(),
        1,
        "also this end is counted"
    );
    commit(&rig, 2, "a/y").await;
    assert_eq!(script.received().await, [], "the fan-out no longer knows it");
    rig.node.draining.cancel();
    rig.work.close();
}

/// So many connections that have said hello, on a node that is swept.
async fn welcomed(config: &ServerConfig, count: usize) -> (Arc<Node>, Vec<Arc<Script>>, TaskTracker) {
    let parts = Parts {
        store: Arc::new(Model::new(Retention::default())),
        authoriser: Arc::new(DevAuthoriser),
        env: Arc::new(SystemEnv),
        bus: None,
        metrics: Arc::default(),
    };
    let work = TaskTracker::new();
    let node = assemble(parts, config, &work);
    work.spawn(node.clone().sweep(CancellationToken::new()));
    let scripts: Vec<_> = (0..count).map(|_| Arc::new(Script::default())).collect();
    for script in &scripts {
        let accepted = accepted(script.clone());
        work.spawn(session::serve(node.clone(), accepted));
        script.send([ClientMessage::Hello(Hello::default())]);
    }
    for script in &scripts {
        assert_eq!(script.received().await, []);
    }
    (node, scripts, work)
}

/// How many have been asked to leave since the last call.
async fn asked_to_leave(scripts: &[Arc<Script>]) -> usize {
    let mut asked = 0;
    for script in scripts {
        let received = script.received().await;
        asked += received
            .iter()
            .filter(|message| matches!(message, ServerMessage::Goaway { .. }))
            .count();
    }
    asked
}

#[tokio::test(start_paused = true)]
async fn a_drain_sends_some_away_at_a_time_and_the_last_within_its_time() {
    let (node, scripts, work) = welcomed(&ServerConfig::default(), 250).await;
    let began = Instant::now();
    let draining = work.spawn(node.clone().drain(Duration::from_secs(10)));
    let mut left = Vec::new();
    for _ in 0..6 {
        left.push(asked_to_leave(&scripts).await);
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
    assert_eq!(left, [100, 0, 100, 0, 50, 0]);
    draining.await.unwrap();
    assert!(began.elapsed() <= Duration::from_secs(10));
    // Who comes now leaves at once.
    let late = Arc::new(Script::default());
    let accepted = accepted(late.clone());
    late.send([ClientMessage::Hello(Hello::default())]);
    work.spawn(session::serve(node.clone(), accepted));
    assert!(matches!(
        late.received().await.last(),
        Some(ServerMessage::Error {
            code: Code::GoingAway,
            ..
        })
    ));
}

#[tokio::test(start_paused = true)]
async fn a_connection_of_age_is_asked_to_go_elsewhere_and_not_all_at_once() {
    let mut config = ServerConfig::default();
    config.node.age = Some(Duration::from_secs(40));
    let (_node, scripts, _work) = welcomed(&config, 100).await;
    tokio::time::sleep(Duration::from_secs(35)).await;
    assert_eq!(asked_to_leave(&scripts).await, 0, "nobody before nine tenths");
    let mut left = Vec::new();
    for _ in 0..10 {
        tokio::time::sleep(Duration::from_secs(1)).await;
        left.push(asked_to_leave(&scripts).await);
    }
    assert_eq!(left.iter().sum::<usize>(), 100, "{left:?}");
    assert!(left.iter().all(|left| *left < 50), "{left:?}");
}

fn door(node: &Arc<Node>, config: &ServerConfig) -> Door {
    let connections = TaskTracker::new();
    Door {
        loopback_only: config.loopback_only,
        hello: config.hello,
        admission: Admission::new(config.admission.clone(), node.metrics.clone()),
        node: node.clone(),
        app: http::router(node.clone(), config.loopback_only, connections.clone()),
        connections,
        stop: CancellationToken::new(),
        refusals: Arc::new(Semaphore::new(REFUSALS)),
    }
}

#[tokio::test]
async fn what_accepting_fails_of_is_counted_and_who_comes_from_elsewhere_to_dev_mode() {
    use rustix::io::Errno;
    let config = ServerConfig {
        loopback_only: true,
        ..ServerConfig::default()
    };
    let (node, ..) = welcomed(&config, 0).await;
    let door = door(&node, &config);
    for (errno, reason) in [
        (Errno::MFILE, "files"),
        (Errno::NOMEM, "memory"),
        (Errno::CONNABORTED, "connection"),
        (Errno::INVAL, "other"),
    ] {
        assert_eq!(door.failed(&io::Error::from_raw_os_error(errno.raw_os_error())), reason);
        assert_eq!(node.metrics.accept_errors.with_label_values(&[reason]).get(), 1);
    }
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (_client, accepted) = tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
    door.enter(accepted.unwrap().0, "192.0.2.1:9".parse().unwrap());
    assert_eq!(node.metrics.refused.with_label_values(&["peer"]).get(), 1);
    assert!(door.connections.is_empty(), "it is not served");
}

#[tokio::test]
async fn of_those_for_whom_there_is_no_room_so_many_are_told_at_a_time_and_the_others_counted() {
    let mut config = ServerConfig::default();
    config.admission.connections = Some(0);
    let (node, ..) = welcomed(&config, 0).await;
    let door = Door {
        refusals: Arc::new(Semaphore::new(2)),
        ..door(&node, &config)
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut crowd = Vec::new();
    for n in 1..=4_u64 {
        let (came, accepted) = tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
        let (socket, addr) = accepted.unwrap();
        door.enter(socket, addr);
        crowd.push(came.unwrap());
        let metrics = &node.metrics;
        assert_eq!(metrics.untold.get(), n.saturating_sub(2));
        assert_eq!(metrics.refused.with_label_values(&["connections"]).get(), n);
    }
}

#[tokio::test]
async fn of_a_crowd_one_is_let_in_at_a_time_so_that_who_is_in_has_its_turn() {
    let config = ServerConfig::default();
    let (node, ..) = welcomed(&config, 0).await;
    let door = door(&node, &config);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut crowd = Vec::new();
    for _ in 0..50 {
        crowd.push(std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap());
    }
    let mut accepting = JoinSet::new();
    accepting.spawn(async move { door.accept(&listener).await });
    let mut in_before = 0;
    let most = most_in_a_turn(50, || {
        let now_in = usize::try_from(node.metrics.handshakes.get()).unwrap();
        now_in - std::mem::replace(&mut in_before, now_in)
    });
    assert!(most.await <= 2);
    accepting.shutdown().await;
}

#[tokio::test]
async fn a_connection_that_waits_takes_no_more_than_it_needs() {
    let node = rig().node;
    let accepted = accepted(Arc::new(Script::default()));
    let task = size_of_val(&session::serve(node, accepted));
    println!("a connection's task: {task} bytes");
    assert!(task <= 1_400, "{task}");
}
