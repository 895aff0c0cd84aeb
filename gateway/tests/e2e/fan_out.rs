//! What a round of the fan-out costs in write calls and encodings: counted, since counts do not sway.

use bytes::Bytes;
use std::io::{self, IoSlice};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use tidegate::engine::Publish;
use tidegate::hub::{Hub, HubConfig, Joining, LocalPublish, Subscriber};
use tidegate::metrics::Metrics;
use tidegate::outbox::{Bounds, Outbox, Transport};
use tidegate::store::model::Model;
use tidegate::store::{Action, CommitGroup, Lineage, LogEntry, Prepared, Retention, Store, UserTag, View};
use tidegate_protocol::form::Form;
use tidegate_protocol::{
    Code, DocChange, DocChangeKind, DocPath, Epoch, Mid, MutationKey, Position, Seq, SpaceId, ViewId, Writer, msgpack,
};
use tokio::io::ReadBuf;
use tokio_util::task::TaskTracker;

/// A socket that takes everything and counts the calls.
struct Counting(Arc<AtomicUsize>);

impl Transport for Counting {
    fn poll_read(&self, _: &mut Context<'_>, _: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Poll::Pending
    }
    fn try_write_vectored(&self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        self.0.fetch_add(1, Ordering::Relaxed);
        Ok(bufs.iter().map(|buf| buf.len()).sum())
    }
    fn poll_write_ready(&self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
    fn shutdown_write(&self) {}
}

struct Peer(u64, Box<Outbox>);

impl Subscriber for Peer {
    fn id(&self) -> u64 {
        self.0
    }
    fn outbox(&self) -> &Outbox {
        &self.1
    }
    fn behind(&self, _: u64, _: Position) {
        panic!("nothing is missing");
    }
    fn cut(&self) {
        panic!("everything is taken");
    }
}

fn commit(n: u64) -> LogEntry {
    let doc = DocPath::parse("notes/n1").expect("a document");
    let kind = DocChangeKind::Deleted;
    let body = msgpack::encode_body(Writer(1), Mid::new(n).expect("a mid"), &[DocChange { doc, kind }]);
    let seq = Seq::new(n).expect("a seq");
    let payload = msgpack::payload(seq, n, &body);
    LogEntry { seq, payload }
}

/// A refusal begins the history of a space.
async fn first_epoch(store: &Model, space: &SpaceId) -> Lineage {
    let refused = Prepared {
        writer: Writer(1),
        user: UserTag::of("alice"),
        mid: Mid::new(1).expect("a mid"),
        key: MutationKey(1),
        prev: None,
        first: None,
        expects: vec![],
        action: Action::Refuse {
            code: Code::Invalid,
            conflicts: vec![],
            detail: Bytes::new(),
        },
    };
    let group = CommitGroup {
        space: space.clone(),
        planned_on: Epoch(0),
        fresh: Epoch(7),
        now_ms: 0,
        items: vec![refused],
    };
    store.commit(group).await.unwrap().lineage
}

#[tokio::test]
async fn a_round_of_commits_is_one_write_call_per_writable_socket() {
    let space = SpaceId::parse("list:42").unwrap();
    let metrics = Arc::new(Metrics::default());
    let store = Arc::new(Model::new(Retention::default()));
    let lineage = first_epoch(&store, &space).await;
    let start = Position::new(lineage.last_epoch(), Seq::ZERO);
    let hub = Hub::new(store, HubConfig::default(), metrics.clone(), TaskTracker::new());
    let mut leases = Vec::new();
    let calls: Vec<_> = (0..10).map(|_| Arc::new(AtomicUsize::new(0))).collect();
    for (id, calls) in (0..).zip(&calls) {
        let to = Arc::new(Peer(
            id,
            Box::new(Outbox::new(
                Counting(calls.clone()),
                Bounds {
                    soft: 1 << 20,
                    hard: 1 << 20,
                },
            )),
        ));
        let view = View {
            id: ViewId(0),
            collections: None,
        };
        let form = Form::Msgpack;
        let joining = Joining {
            to,
            sub: 1,
            stream: 1,
            view,
            form,
        };
        let mut lease = hub.lease(&space).await.unwrap();
        assert!(lease.go_live(joining, start, &lineage, Bytes::from_static(b"\x82\x00")));
        leases.push(lease);
    }
    let mut before = 0;
    let mut round = |commits: &[LogEntry]| {
        calls.iter().for_each(|calls| calls.store(0, Ordering::Relaxed));
        LocalPublish(hub.clone()).publish(&space, &lineage, commits);
        let encodes = metrics.encodes.get() - std::mem::replace(&mut before, metrics.encodes.get());
        let calls: Vec<_> = calls.iter().map(|calls| calls.load(Ordering::Relaxed)).collect();
        (encodes, calls)
    };
    assert_eq!(round(&[commit(1)]), (1, vec![1; 10]));
    assert_eq!(round(&[commit(2), commit(3), commit(4)]), (3, vec![1; 10]));
    assert_eq!(round(&[commit(4)]), (0, vec![0; 10]), "a repeat costs nothing");
    assert_eq!(metrics.deliveries.get(), 40);
}
