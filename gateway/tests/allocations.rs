//! What the hot paths allocate: counted, since counts do not sway. One test, as the count is the process's.

#![allow(clippy::print_stdout, reason = "what was counted")]

#[path = "support/hub.rs"]
mod hub;

use bytes::Bytes;
use hub::{Socket, commit, first_epoch};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};
use std::alloc::System;
use std::io::{self, IoSlice};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker};
use tidegate::admission::Admitted;
use tidegate::auth::DevAuthoriser;
use tidegate::engine::{Engine, EngineConfig, Publish};
use tidegate::env::SystemEnv;
use tidegate::hub::{Hub, HubConfig, Joining, Lease, LocalPublish};
use tidegate::metrics::Metrics;
use tidegate::outbox::{Bounds, Outbox, Transport};
use tidegate::session::{Accepted, Node, NodeConfig, SessionConfig, serve};
use tidegate::store::model::Model;
use tidegate::store::{Lineage, Retention, Store, View};
use tidegate_protocol::form::Form;
use tidegate_protocol::{ClientMessage, Hello, Limits, Position, Seq, SpaceId, Sub, ViewId};
use tokio::io::ReadBuf;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// A socket that takes everything.
struct Taking;

impl Transport for Taking {
    fn poll_read(&self, _: &mut Context<'_>, _: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Poll::Pending
    }
    fn try_write_vectored(&self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        Ok(bufs.iter().map(|buf| buf.len()).sum())
    }
    fn poll_write_ready(&self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
    fn shutdown_write(&self) {}
}

/// A space with so many subscribers, and what brings them commits.
struct Followed {
    hub: Arc<Hub>,
    space: SpaceId,
    lineage: Lineage,
    metrics: Arc<Metrics>,
    _leases: Vec<Lease>,
}

impl Followed {
    async fn by(members: u64) -> Self {
        let space = SpaceId::parse("list:42").expect("a space");
        let metrics = Arc::new(Metrics::default());
        let store = Arc::new(Model::new(Retention::default()));
        let lineage = first_epoch(&store, &space).await;
        let start = Position::new(lineage.last_epoch(), Seq::ZERO);
        let hub = Hub::new(store, HubConfig::default(), metrics.clone(), TaskTracker::new());
        let mut leases = Vec::new();
        for id in 0..members {
            let bounds = Bounds {
                soft: 1 << 20,
                hard: 1 << 20,
            };
            let joining = Joining {
                to: Arc::new(Socket(id, Arc::new(Outbox::new(Taking, bounds, Arc::default())))),
                sub: 1,
                stream: 1,
                view: View {
                    id: ViewId(0),
                    collections: None,
                },
                form: Form::Msgpack,
                z: None,
            };
            let mut lease = hub.lease(&space).await.expect("the model answers");
            assert!(lease.go_live(joining, start, &lineage, Bytes::from_static(b"\x82\x00")));
            leases.push(lease);
        }
        Self {
            hub,
            space,
            lineage,
            metrics,
            _leases: leases,
        }
    }

    /// Brings commits to everybody, one a round; returns what that allocated.
    async fn bring(&self, seqs: std::ops::RangeInclusive<u64>) -> usize {
        let commits: Vec<_> = seqs.map(commit).collect();
        let before = self.metrics.deliveries.get();
        let members = self._leases.len() as u64;
        let region = Region::new(ALLOCATOR);
        for (commit, round) in commits.iter().zip(1..) {
            LocalPublish(self.hub.clone()).publish(&self.space, &self.lineage, std::slice::from_ref(commit));
            while self.metrics.deliveries.get() < before + round * members {
                tokio::task::yield_now().await;
            }
        }
        region.change().allocations
    }
}

async fn a_delivery_allocates_nothing() {
    let mut counts = Vec::new();
    for members in [10, 1_000, 4_000] {
        let followed = Followed::by(members).await;
        followed.bring(1..=50).await;
        counts.push(followed.bring(51..=150).await);
    }
    println!("allocations of 100 rounds to 10, 1,000 and 4,000 subscribers: {counts:?}");
    // A round costs its commit's frame and the tasks that bring it, whoever is subscribed.
    assert!(counts.iter().all(|count| *count <= 16 * 100), "{counts:?}");
}

/// A client that sends one frame again and again, as often as it is told, and counts what it is sent.
#[derive(Default)]
struct Client {
    frame: parking_lot::Mutex<Vec<u8>>,
    left: AtomicUsize,
    answers: AtomicUsize,
    waker: parking_lot::Mutex<Option<Waker>>,
}

struct Wire(Arc<Client>);

impl Transport for Wire {
    fn poll_read(&self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let client = &self.0;
        if client.left.load(Ordering::Relaxed) == 0 {
            let mut waker = client.waker.lock();
            if !waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
                *waker = Some(cx.waker().clone());
            }
            return Poll::Pending;
        }
        client.left.fetch_sub(1, Ordering::Relaxed);
        buf.put_slice(&client.frame.lock());
        Poll::Ready(Ok(()))
    }
    fn try_write_vectored(&self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        self.0.answers.fetch_add(1, Ordering::Relaxed);
        Ok(bufs.iter().map(|buf| buf.len()).sum())
    }
    fn poll_write_ready(&self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Pending
    }
    fn shutdown_write(&self) {}
}

impl Client {
    /// Sends a frame so many times, and waits for as many answers; returns what that allocated.
    async fn send(&self, first: u8, payload: &[u8], times: usize) -> usize {
        let len = u8::try_from(payload.len()).expect("a short one");
        *self.frame.lock() = [&[first, 0x80 | len, 0, 0, 0, 0][..], payload].concat();
        self.answers.store(0, Ordering::Relaxed);
        let region = Region::new(ALLOCATOR);
        self.left.store(times, Ordering::Relaxed);
        if let Some(waker) = self.waker.lock().take() {
            waker.wake();
        }
        while self.answers.load(Ordering::Relaxed) < times {
            tokio::task::yield_now().await;
        }
        region.change().allocations
    }
}

fn node() -> Arc<Node> {
    let (metrics, tasks) = (Arc::new(Metrics::default()), TaskTracker::new());
    let store: Arc<dyn Store> = Arc::new(Model::new(Retention::default()));
    let hub = Hub::new(store.clone(), HubConfig::default(), metrics.clone(), tasks.clone());
    let config = NodeConfig::default();
    let engine = Engine::new(
        store.clone(),
        Arc::new(LocalPublish(hub.clone())),
        Arc::new(DevAuthoriser),
        Arc::new(SystemEnv),
        Limits::default(),
        EngineConfig::default(),
        tasks,
    );
    Arc::new(Node {
        engine,
        hub,
        store,
        authoriser: Arc::new(DevAuthoriser),
        env: Arc::new(SystemEnv),
        budget: config.budget(&metrics),
        metrics,
        config,
        session: Arc::new(SessionConfig {
            node: "node".into(),
            limits: Limits::default(),
            ping_ms: 45_000,
            hello_ms: 10_000,
        }),
        catch_ups: Semaphore::new(1),
        stopping: CancellationToken::new(),
        draining: CancellationToken::new(),
        started: Instant::now(),
        connections: dashmap::DashMap::new(),
        last_id: AtomicU64::new(0),
    })
}

async fn an_idle_ping_allocates_nothing() {
    let client = Arc::new(Client::default());
    let accepted = Accepted {
        socket: Wire(client.clone()),
        leftover: Bytes::new(),
        form: Form::Msgpack,
        token: None,
        since: Instant::now(),
        peer: "test".into(),
        admitted: Admitted::default(),
    };
    let mut sessions = JoinSet::new();
    sessions.spawn(serve(node(), accepted));
    tokio::task::yield_now().await;
    let hello = ClientMessage::Hello(Hello {
        token: Some("alice".into()),
        ..Hello::default()
    });
    client.send(0x82, &Form::Msgpack.encode_client(&hello), 1).await;
    let ping = Form::Msgpack.encode_client(&ClientMessage::Ping { at: 1_700_000_000_000 });
    let mut counts = Vec::new();
    for (first, payload) in [(0x89, &b"ping"[..]), (0x82, &ping)] {
        client.send(first, payload, 10).await;
        counts.push(client.send(first, payload, 1_000).await);
    }
    println!("allocations of 1,000 pings of WebSocket's, and of the protocol's: {counts:?}");
    assert_eq!(counts, [0, 0]);
    sessions.abort_all();
}

/// Each is subscribed to a space of its own, as in the pressure bench. The socket's and the runtime's part is apart.
async fn an_idle_connection_takes_little() {
    const COUNT: usize = 200;
    let (node, hello) = (node(), Hello::default());
    let mut sessions = JoinSet::new();
    let mut clients = Vec::with_capacity(COUNT);
    let mut region = Region::new(ALLOCATOR);
    let mut future = 0;
    for i in 0..2 * COUNT {
        // The first ones fill what the node keeps for all.
        if i == COUNT {
            clients.clear();
            region.reset();
        }
        let client = Arc::new(Client::default());
        let accepted = Accepted {
            socket: Wire(client.clone()),
            leftover: Bytes::new(),
            form: Form::Msgpack,
            token: None,
            since: Instant::now(),
            peer: "127.0.0.1:12345".into(),
            admitted: Admitted::default(),
        };
        let served = serve(node.clone(), accepted);
        future = size_of_val(&served);
        sessions.spawn(served);
        tokio::task::yield_now().await;
        let sub = Sub {
            id: 1,
            space: SpaceId::parse(&format!("idle:{i}")).expect("a space"),
            client: None,
            from: None,
            filter: None,
        };
        for message in [ClientMessage::Hello(hello.clone()), ClientMessage::Sub(sub)] {
            client.send(0x82, &Form::Msgpack.encode_client(&message), 1).await;
        }
        while node.metrics.catching_up.get() > 0 {
            tokio::task::yield_now().await;
        }
        *client.frame.lock() = Vec::new();
        clients.push(client);
    }
    let change = region.change();
    let held = (change.bytes_allocated - change.bytes_deallocated) / COUNT;
    let blocks = (change.allocations - change.deallocations) / COUNT;
    println!("an idle connection: {held} bytes in {blocks} pieces, of them its future {future}");
    assert_eq!(node.metrics.subscriptions.get(), 2 * COUNT as i64);
    // Without what the runtime keeps of a socket; with what this test keeps of its client.
    assert!(held <= 1_900 && future <= 440, "{held} {future}");
    sessions.abort_all();
}

#[tokio::test]
async fn a_delivery_and_an_idle_ping_allocate_nothing() {
    an_idle_connection_takes_little().await;
    a_delivery_allocates_nothing().await;
    an_idle_ping_allocates_nothing().await;
}
