//! What a round of the fan-out costs in write calls and encodings: counted, since counts do not sway.

use crate::access::metric;
use crate::hub::{Socket, commit, first_epoch};
use crate::support::{Gateway, Replica, WriterState, open_store, set};
use bytes::Bytes;
use futures_util::future::join_all;
use futures_util::{SinkExt, StreamExt};
use std::io::{self, IoSlice};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use tidegate::engine::Publish;
use tidegate::hub::{Hub, HubConfig, Joining, LocalPublish};
use tidegate::metrics::Metrics;
use tidegate::outbox::{Bounds, Outbox, Transport};
use tidegate::server::ServerConfig;
use tidegate::store::model::Model;
use tidegate::store::{LogEntry, Retention, View};
use tidegate_protocol::form::Form;
use tidegate_protocol::{Position, Seq, SpaceId, ViewId};
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
        let to = Arc::new(Socket(
            id,
            Arc::new(Outbox::new(
                Counting(calls.clone()),
                Bounds {
                    soft: 1 << 20,
                    hard: 1 << 20,
                },
                Arc::default(),
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
            z: None,
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

/// Sends per delivery where a writer has so many mutations in flight; each subscriber gets each commit by itself.
async fn sends_per_delivery(subscribers: usize, commits: u64, in_flight: u64) -> f64 {
    // A store without a disk: what is counted is the fan-out of commits that come fast.
    let dir = Arc::new(tempfile::TempDir::new().unwrap());
    let store = open_store(dir.path(), Retention::default());
    let front = Arc::new(Model::new(Retention::default()));
    let gateway = Gateway::on(dir, store, front, ServerConfig::default()).await;
    let mut peers = Vec::new();
    for _ in 0..subscribers {
        let mut peer = gateway.peer("reader").await;
        peer.follow("s", &mut Replica::default(), None).await;
        peers.push(peer);
    }
    let mut author = gateway.peer("author").await;
    let mut writer = WriterState::new("s", 1, author.now);
    let names = [
        "tidegate_sends_total",
        "tidegate_deliveries_total",
        "tidegate_encodes_total",
    ];
    let mut before = Vec::new();
    for name in names {
        before.push(metric(&gateway, name).await);
    }
    // A change is the one message that is an array.
    let read = |mut peer: crate::support::Peer, count: u64| async move {
        let mut left = count;
        while left > 0 {
            let frame = peer
                .socket
                .next()
                .await
                .expect("the connection has ended")
                .expect("a frame");
            left -= u64::from(frame.into_data()[0] & 0xf0 == 0x90);
        }
        peer
    };
    if in_flight == 1 {
        for n in 1..=commits {
            let ops = vec![set("d/x", "n", n as i64)];
            author
                .send(&tidegate_protocol::ClientMessage::Write(writer.write(ops)))
                .await;
            author.answer(&mut Replica::default()).await.expect("an ack");
            peers = join_all(peers.into_iter().map(|peer| read(peer, 1))).await;
        }
    } else {
        let write = async {
            let (mut sent, mut answered) = (0, 0);
            while answered < commits {
                while sent < commits && sent - answered < in_flight {
                    sent += 1;
                    let ops = vec![set("d/x", "n", sent as i64)];
                    author
                        .send(&tidegate_protocol::ClientMessage::Write(writer.write(ops)))
                        .await;
                }
                author.answer(&mut Replica::default()).await.expect("an ack");
                answered += 1;
            }
        };
        tokio::join!(write, join_all(peers.into_iter().map(|peer| read(peer, commits))));
    }
    let mut moved = Vec::new();
    for (name, before) in names.iter().zip(before) {
        moved.push(metric(&gateway, name).await - before);
    }
    assert_eq!(metric(&gateway, "tidegate_behind_total{reason=\"slow\"}").await, 0);
    assert_eq!(moved[1], subscribers as u64 * commits);
    assert_eq!(moved[2], commits, "one encoding a commit");
    let ratio = moved[0] as f64 / moved[1] as f64;
    println!("{subscribers} subscribers, {in_flight} in flight: {ratio:.4} sends a delivery");
    ratio
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_delivery_is_a_call_when_paced_and_a_tenth_of_one_in_a_burst() {
    assert!(sends_per_delivery(100, 20, 1).await <= 1.02);
    assert!(sends_per_delivery(500, 800, 16).await <= 0.1);
}

#[tokio::test]
async fn the_answers_of_a_group_leave_in_one_call() {
    let gateway = Gateway::start().await;
    let mut author = gateway.peer("author").await;
    let mut replica = Replica::default();
    author.follow("s", &mut replica, None).await;
    let mut writer = WriterState::new("s", 1, author.now);
    let before = metric(&gateway, "tidegate_sends_total").await;
    // Sent in one piece, they are read in one and committed in few groups.
    let mut frames = Vec::new();
    for n in 0..200 {
        let message = tidegate_protocol::ClientMessage::Write(writer.write(vec![set("d/x", "n", n)]));
        frames.push(author.form.encode_client(&message));
    }
    for frame in frames {
        author
            .socket
            .feed(tokio_tungstenite::tungstenite::Message::binary(frame))
            .await
            .unwrap();
    }
    author.socket.flush().await.unwrap();
    for _ in 0..200 {
        author.answer(&mut replica).await.expect("an ack");
    }
    let sends = metric(&gateway, "tidegate_sends_total").await - before;
    println!("200 mutations: {sends} sends for their changes and acks");
    assert!(sends <= 40, "{sends}");
}
