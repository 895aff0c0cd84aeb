//! More spaces than anybody should follow on one node, come to and left while traffic flows.

use crate::clients::connect;
use crate::fleet::{Node, PATIENCE, nodes};
use crate::redis_server::Server;
use crate::support::{Judge, Peer, WriterState, set};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use tidegate_protocol::*;
use tokio::task::JoinSet;

/// Spaces, unless the environment says otherwise.
const SPACES: u64 = 4_000;
/// Subscriptions of a connection.
const EACH: u64 = 1_000;
/// What every value of a space's is a multiple of, but for what is less than this.
const FACTOR: u64 = 1_000_000;

fn name(number: u64) -> String {
    format!("many:{number}")
}

/// Values of a space say which it is.
fn value(number: u64, n: u64) -> i64 {
    (number * FACTOR + n).cast_signed()
}

/// Whether all that was sent for a space is that space's.
fn assert_of(number: u64, docs: &[DocChange]) {
    let values = docs.iter().flat_map(|change| match &change.kind {
        DocChangeKind::Deleted => &[][..],
        DocChangeKind::Whole(set) | DocChangeKind::Change { set, .. } => set,
    });
    for (_, value) in values {
        let ValueRef::Int(n) = value.get() else {
            panic!("{value:?}")
        };
        assert_eq!(
            n.cast_unsigned() / FACTOR,
            number,
            "space {number} gets what is another's"
        );
    }
}

/// Writes to spaces in turn until told to stop, many at a time, each of its own space.
async fn write(addr: SocketAddr, spaces: std::ops::Range<u64>, rounds: u64, stop: Arc<AtomicBool>) -> u64 {
    let user = format!("writer{}", spaces.start);
    let mut peer = connect(addr, &Judge::new(), 1, &user).await.expect("a gateway");
    let mut writers: HashMap<u64, WriterState> = HashMap::new();
    let mut written = 0;
    for round in 0..rounds {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let mut numbers = spaces.clone();
        while !stop.load(Ordering::Relaxed) {
            let some: Vec<u64> = numbers.by_ref().take(64).collect();
            if some.is_empty() {
                break;
            }
            for number in &some {
                let now = peer.now;
                let writer = writers
                    .entry(*number)
                    .or_insert_with(|| WriterState::new(&name(*number), *number + 1, now));
                let ops = vec![set("who/me", "v", value(*number, round))];
                peer.send(&ClientMessage::Write(writer.write(ops))).await;
            }
            for _ in &some {
                match peer.next().await {
                    ServerMessage::Ack(_) => written += 1,
                    other => panic!("{other:?}"),
                }
            }
        }
    }
    written
}

/// Subscribes to spaces, leaves them, and comes to others, until each has been its own; judges whatever arrives.
async fn probe(addr: SocketAddr, mine: Vec<u64>, changes: Arc<AtomicU64>) {
    let user = format!("probe{}", mine[0]);
    let mut peer: Peer = connect(addr, &Judge::new(), 1, &user).await.expect("a gateway");
    // By the subscription's id and by the node's number.
    let (mut by_id, mut by_n): (HashMap<u64, u64>, HashMap<u32, u64>) = (HashMap::new(), HashMap::new());
    for some in mine.chunks(100) {
        let mut first = None;
        for number in some {
            let id = peer.sub(&name(*number), None, None, None).await;
            by_id.insert(id, *number);
            first.get_or_insert(id);
        }
        let mut waiting = some.len();
        while waiting > 0 {
            match peer.next().await {
                ServerMessage::Begin(begin) => {
                    by_n.insert(begin.n, by_id[&begin.id]);
                }
                ServerMessage::Page { id, docs, .. } => {
                    assert!(!docs.is_empty());
                    assert_of(by_id[&id], &docs);
                }
                ServerMessage::Current { .. } => waiting -= 1,
                ServerMessage::Change(change) => {
                    assert_of(by_n[&change.n], &change.commit.docs);
                    changes.fetch_add(1, Ordering::Relaxed);
                }
                other => panic!("{other:?}"),
            }
        }
        // Every second is left at once, the others stay.
        for id in (first.unwrap()..).take(some.len()).step_by(2) {
            peer.send(&ClientMessage::Unsub { id }).await;
        }
    }
}

async fn bus_subscriptions(redis: &Server) -> u64 {
    match redis.command(&["PUBSUB", "CHANNELS", "tg:{*"]) {
        redis::Value::Array(channels) => channels.len() as u64,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_sent_for_a_space_is_that_spaces_however_many_come_and_go() {
    let spaces = crate::setting("CLUSTER_SPACES").unwrap_or(SPACES);
    let redis = Server::start(&["--appendonly", "no"]);
    let settings = ["fan_out.linger=300ms", "fan_out.head_check=500ms"];
    let nodes: Vec<Node> = nodes(&redis.url(), 2, &settings).await;
    let stop = Arc::new(AtomicBool::new(false));
    // Each space exists before anybody comes to it, and is written to by the other node from then on.
    let half = spaces / 2;
    let both = [0..half, half..spaces];
    let mut first = JoinSet::new();
    for range in both.clone() {
        first.spawn(write(nodes[1].addr, range, 1, stop.clone()));
    }
    while let Some(written) = first.join_next().await {
        assert_eq!(written.unwrap(), half);
    }
    let mut writers = JoinSet::new();
    for range in both {
        // By other users, whose mids begin anew.
        let range = range.start + 1..range.end;
        writers.spawn(write(nodes[1].addr, range, u64::MAX, stop.clone()));
    }
    let changes = Arc::new(AtomicU64::new(0));
    let mut probes = JoinSet::new();
    for from in (0..spaces).step_by(usize::try_from(EACH).unwrap()) {
        let mine = (from..spaces.min(from + EACH)).collect();
        probes.spawn(probe(nodes[0].addr, mine, changes.clone()));
    }
    let all = async {
        while let Some(done) = probes.join_next().await {
            done.unwrap();
        }
    };
    let within = PATIENCE + Duration::from_millis(10 * spaces);
    assert!(tokio::time::timeout(within, all).await.is_ok(), "not within {within:?}");
    stop.store(true, Ordering::Relaxed);
    let mut written = 0;
    while let Some(done) = writers.join_next().await {
        written += done.unwrap();
    }
    let changes = changes.load(Ordering::Relaxed);
    println!("{spaces} spaces, {written} commits meanwhile, {changes} changes judged");
    assert!(written > 0 && changes > 0);
    // And in the end nobody follows anything.
    crate::fleet::until("all are left", async || bus_subscriptions(&redis).await == 0).await;
    nodes[0].ready().await;
}
