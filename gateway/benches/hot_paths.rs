//! What the gateway's own parts cost, each beside the least that could stand in its place: planning a
//! write beside encoding its change, the hub's fan-out beside a bare loop over the same transports, a
//! store commit beside appending the same bytes to a file. Read the ratios, not the times.

use bytes::Bytes;
use criterion::{BatchSize, BenchmarkId, Criterion, Throughput};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::fs::File;
use std::hint::black_box;
use std::io::{self, IoSlice, Write as _};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tidegate::auth::{DevAuthoriser, Identity};
use tidegate::engine::{Plan, Planner, Publish, WriteBody, WriteRequest};
use tidegate::env::{Env, SystemEnv};
use tidegate::frame;
use tidegate::hub::{Hub, HubConfig, Joining, Lease, LocalPublish, Subscriber};
use tidegate::outbox::{Bounds, Outbox, Transport};
use tidegate::store::embedded::{self, Durability, EmbeddedOptions};
use tidegate::store::model::Model;
use tidegate::store::{
    Action, Cell, CommitGroup, DocEffect, DocState, Effects, Header, Lineage, LineageEntry, LogEntry, Outcome,
    Prepared, ReadCut, Retention, SpaceState, Stamp, Store, Usage, UserTag, Version, View,
};
use tidegate_protocol::form::Form;
use tidegate_protocol::{
    ClientId, DocChange, DocChangeKind, DocPath, Epoch, FieldPath, Fields, Limits, Mid, MutationKey, Op, OpKind,
    Position, Seq, SpaceId, Value, ViewId, WriteHead, Writer, msgpack,
};
use tokio::io::ReadBuf;
use tokio::runtime::Runtime;
use tokio_util::task::TaskTracker;

fn main() {
    let mut criterion = Criterion::default()
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1))
        .configure_from_args();
    plan_a_set(&mut criterion);
    fan_out(&mut criterion);
    commit(&mut criterion);
    criterion.final_summary();
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime")
}

fn seq(n: u64) -> Seq {
    Seq::new(n).expect("a seq")
}

fn field(index: u64) -> FieldPath {
    FieldPath::parse(&format!("field-{index}")).expect("a field")
}

/// About 100 bytes of text.
fn text() -> Value {
    Value::str(&"fan-out ".repeat(12))
}

fn space() -> SpaceId {
    SpaceId::parse("list:42").expect("a space")
}

const WRITER: Writer = Writer(0x5555_6666_7777_8888);

/// A commit's body: one field of one document set.
fn body(mid: Mid, doc: &DocPath) -> Bytes {
    let kind = DocChangeKind::Change {
        set: vec![(field(3), text())],
        unset: vec![],
    };
    msgpack::encode_body(WRITER, mid, &[DocChange { doc: doc.clone(), kind }])
}

fn plan_a_set(criterion: &mut Criterion) {
    let (space, limits) = (space(), Limits::default());
    let doc = DocPath::parse("tasks/t-000417").expect("a document");
    let stamp = Stamp {
        seq: seq(900),
        writer: WRITER,
    };
    let cell = Cell {
        stamp,
        value: Some(text()),
    };
    let cells: BTreeMap<_, _> = (0..10).map(|n| (field(n), cell.clone())).collect();
    let size = cells
        .keys()
        .map(|path| (path.as_str().len() + text().as_bytes().len()) as u64)
        .sum();
    let header = Header {
        last: stamp,
        born: stamp,
        deleted: None,
        alive: true,
        size,
    };
    let lineage = lineage();
    let cut = ReadCut {
        state: SpaceState {
            head: Position::new(lineage.last_epoch(), seq(1_000)),
            lineage,
            floor: Seq::ZERO,
            last_ms: 1,
            usage: Usage::default(),
        },
        docs: vec![DocState {
            header: Some(header),
            cells,
        }],
    };
    let request = WriteRequest::new(
        Arc::new(Identity::new("ada", None)),
        WriteHead {
            space: space.clone(),
            client: ClientId(1),
            mid: Mid::new(8).expect("a mid"),
            key: MutationKey(8),
            prev: Some(MutationKey(7)),
            first: None,
        },
        Ok(WriteBody {
            base: None,
            policy: None,
            ops: vec![Op {
                doc: doc.clone(),
                kind: OpKind::Set(Fields::new([(field(3), text())], &limits).expect("fields")),
                exists: None,
                unchanged_since: None,
            }],
        }),
    );
    let mut group = criterion.benchmark_group("plan a set in a document of 10 fields");
    group.bench_function("plan", |b| {
        b.iter_batched(
            || Planner::new(&DevAuthoriser, &limits, &space, vec![doc.clone()], cut.clone(), 2),
            |mut planner| {
                let Plan::Item(item, _) = planner.plan(black_box(&request)) else {
                    panic!("not planned")
                };
                (planner, item)
            },
            BatchSize::SmallInput,
        );
    });
    group.bench_function("against encoding its change", |b| {
        b.iter(|| body(black_box(Mid::ZERO), black_box(&doc)));
    });
    group.finish();
}

/// A socket that takes everything: it copies, as a kernel would, and keeps nothing.
struct Sink(Mutex<[u8; 1024]>);

impl Transport for Sink {
    fn poll_read(&self, _: &mut Context<'_>, _: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Poll::Pending
    }
    fn try_write_vectored(&self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        let mut kept = self.0.lock();
        let mut written = 0;
        for buf in bufs {
            for part in buf.chunks(kept.len()) {
                kept[..part.len()].copy_from_slice(part);
            }
            written += buf.len();
        }
        Ok(written)
    }
    fn poll_write_ready(&self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
    fn shutdown_write(&self) {}
}

struct Peer {
    id: u64,
    outbox: Arc<Outbox>,
}

impl Subscriber for Peer {
    fn id(&self) -> u64 {
        self.id
    }
    fn outbox(&self) -> &Arc<Outbox> {
        &self.outbox
    }
    fn behind(&self, _: u64, _: Position) {
        panic!("the fan-out has a gap");
    }
    fn cut(&self) {
        panic!("everything is taken");
    }
}

fn lineage() -> Lineage {
    Lineage(vec![LineageEntry {
        epoch: Epoch(7),
        incarnation: vec![],
        start: Seq::ZERO,
    }])
}

/// A hub that follows one space, with `count` subscribers to all of it.
fn followed(runtime: &Runtime, count: u64) -> (Arc<Hub>, Vec<Lease>, Vec<Arc<Peer>>) {
    let store = Arc::new(Model::new(Retention::default()));
    let hub = Hub::new(store, HubConfig::default(), Arc::default(), TaskTracker::new());
    let mut leases = Vec::new();
    let peers: Vec<_> = (0..count)
        .map(|id| {
            let outbox = Arc::new(Outbox::new(
                Sink(Mutex::new([0; 1024])),
                Bounds {
                    soft: 1 << 20,
                    hard: 1 << 20,
                },
                Arc::default(),
            ));
            Arc::new(Peer { id, outbox })
        })
        .collect();
    for peer in &peers {
        let joining = Joining {
            to: peer.clone(),
            sub: 1,
            stream: 1,
            view: View {
                id: ViewId(0),
                collections: None,
            },
            form: Form::Msgpack,
            z: None,
        };
        let mut lease = runtime.block_on(hub.lease(&space())).expect("the model answers");
        assert!(lease.go_live(
            joining,
            Position::START,
            &Lineage::default(),
            Bytes::from_static(b"\x82\x00")
        ));
        leases.push(lease);
    }
    (hub, leases, peers)
}

fn fan_out(criterion: &mut Criterion) {
    let runtime = runtime();
    let payload = {
        let doc = DocPath::parse("tasks/t-000417").expect("a document");
        msgpack::payload(seq(1), 1_794_000_000_123, &body(Mid::ZERO, &doc))
    };
    let frame = frame::change(Form::Msgpack, 1, &payload);
    let (space, lineage) = (space(), lineage());
    let mut group = criterion.benchmark_group("fan out one commit");
    for count in [1, 100, 1_000] {
        group.throughput(Throughput::Elements(count));
        let (hub, _leases, peers) = followed(&runtime, count);
        let publish = LocalPublish(hub);
        let mut last = Seq::ZERO;
        group.bench_function(BenchmarkId::new("hub", count), |b| {
            b.iter(|| {
                last = last.next();
                // The hub goes by the entry's seq and never looks into the payload.
                let entry = LogEntry {
                    seq: last,
                    payload: payload.clone(),
                };
                publish.publish(&space, &lineage, black_box(&[entry]));
            });
        });
        assert!(
            last > Seq::ZERO
                && peers
                    .iter()
                    .all(|peer| peer.outbox.queued() == 0 && peer.outbox.ended().is_none())
        );
        group.bench_function(BenchmarkId::new("against a bare loop", count), |b| {
            b.iter(|| {
                for peer in &peers {
                    let written = peer
                        .outbox
                        .transport()
                        .try_write_vectored(&[IoSlice::new(black_box(&frame))]);
                    assert_eq!(written.ok(), Some(frame.len()));
                }
            });
        });
    }
    group.finish();
}

/// Sets of one field each, of `size` documents: what comes out of a group of so many writers' writes.
struct Groups {
    size: u64,
    /// Commits so far.
    head: u64,
    epoch: Epoch,
}

impl Groups {
    fn new(size: u64) -> Self {
        Self {
            size,
            head: 0,
            epoch: Epoch(0),
        }
    }

    fn next(&mut self, now_ms: u64) -> CommitGroup {
        let first = self.head;
        self.head += self.size;
        CommitGroup {
            space: space(),
            planned_on: self.epoch,
            fresh: Epoch(9),
            now_ms,
            items: (0..self.size).map(|index| self.item(first, index, now_ms)).collect(),
        }
    }

    fn item(&self, before: u64, index: u64, now_ms: u64) -> Prepared {
        let n = before + index + 1;
        let mid = Mid::new(n).expect("a mid");
        let doc = DocPath::parse(&format!("tasks/t-{index:06}")).expect("a document");
        let is_new = before == 0;
        let version = if is_new {
            Version::Absent
        } else {
            Version::Seq(seq(n - self.size))
        };
        Prepared {
            writer: WRITER,
            user: UserTag(7),
            mid,
            key: MutationKey(n),
            prev: (n > 1).then(|| MutationKey(n - 1)),
            first: (n == 1).then_some(now_ms),
            expects: vec![(doc.clone(), version)],
            action: Action::Apply(Effects {
                body: body(mid, &doc),
                docs: vec![DocEffect {
                    doc,
                    born: is_new,
                    deleted: false,
                    alive: true,
                    size: 105,
                    cells: vec![(field(3), Some(text()))],
                }],
                ..Effects::default()
            }),
        }
    }
}

fn commit(criterion: &mut Criterion) {
    let runtime = runtime();
    let env = SystemEnv;
    let payload = {
        let doc = DocPath::parse("tasks/t-000417").expect("a document");
        msgpack::payload(seq(1), env.now_ms(), &body(Mid::ZERO, &doc))
    };
    let mut group = criterion.benchmark_group("commit to the embedded store, without sync");
    group.sample_size(30);
    for size in [1, 64] {
        group.throughput(Throughput::Elements(size));
        let dir = TempDir::new().expect("a folder");
        let options = EmbeddedOptions {
            durability: Durability::Memory,
            retention: Retention::default(),
            reserve_bytes: embedded::RESERVE_BYTES,
            env: Arc::new(env),
        };
        let store = embedded::open(dir.path(), options).expect("a store");
        let mut groups = Groups::new(size);
        let mut commit = |store: &dyn Store| {
            let next = groups.next(env.now_ms());
            let start = Instant::now();
            let committed = runtime.block_on(store.commit(next)).expect("committed");
            let taken = start.elapsed();
            let applied = |outcome: &Outcome| matches!(outcome, Outcome::Applied { .. });
            assert!(committed.outcomes.iter().all(applied), "{:?}", committed.outcomes);
            groups.epoch = committed.lineage.last_epoch();
            taken
        };
        commit(&store);
        group.bench_function(BenchmarkId::new("groups of", size), |b| {
            b.iter_custom(|times| (0..times).map(|_| commit(&store)).sum());
        });
        let mut file = File::create(dir.path().join("bare")).expect("a file");
        let bytes = payload.repeat(usize::try_from(size).expect("small"));
        group.bench_function(BenchmarkId::new("against a bare append of the payloads", size), |b| {
            b.iter(|| file.write_all(black_box(&bytes)).expect("written"));
        });
    }
    group.finish();
}
