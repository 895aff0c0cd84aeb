//! Readers that take too little: they get less, converge, and slow nobody.

use crate::access::metric;
use crate::support::*;
use std::time::Duration;
use tidegate::server::ServerConfig;
use tidegate::store::Retention;
use tidegate_protocol::*;

const WRITES: u64 = 200;

/// Writes more than the sockets between take, each commit 100,000 bytes to one of two documents.
async fn write_much(gateway: &Gateway) -> Replica {
    let mut fast = gateway.peer("fast").await;
    let mut replica = Replica::default();
    fast.follow("s", &mut replica, None).await;
    let mut writer = WriterState::new("s", 1, fast.now);
    let value = Value::str(&"x".repeat(100_000));
    for n in 0..WRITES {
        let name = format!("d/{}", n % 2);
        let ops = vec![op(
            &name,
            OpKind::Set(fields(&[("v", value.clone()), ("n", Value::int(n as i64))])),
        )];
        fast.send(&ClientMessage::Write(writer.write(ops))).await;
        fast.answer(&mut replica).await.unwrap();
    }
    assert_eq!(replica.at.seq.get(), WRITES);
    replica
}

#[tokio::test]
async fn a_reader_that_takes_nothing_for_a_while_is_brought_what_changed_and_not_what_was_queued() {
    let gateway = Gateway::start().await;
    let mut slow = gateway.peer("slow").await;
    let mut replica = Replica::default();
    slow.follow("s", &mut replica, None).await;
    // In another space of the same connection little happens, and nothing of it is dropped.
    let mut quiet = Replica::default();
    slow.follow("quiet", &mut quiet, None).await;
    let whole = write_much(&gateway).await;
    let mut other = gateway.peer("other").await;
    let mut writer = WriterState::new("quiet", 2, other.now);
    other
        .send(&ClientMessage::Write(writer.write(vec![set("d/x", "n", 1)])))
        .await;
    other.answer(&mut Replica::default()).await.unwrap();

    let mut bytes = 0;
    while replica.at != whole.at || replica.staging || quiet.at.seq.get() < 1 {
        let message = slow.next().await;
        bytes += Form::Msgpack.encode_server(&message).len();
        let n = match &message {
            ServerMessage::Change(change) => Some(change.n),
            ServerMessage::Epoch { n, .. } | ServerMessage::Progress { n, .. } => Some(*n),
            _ => None,
        };
        let of = if n.is_some() && n == quiet.n {
            &mut quiet
        } else {
            &mut replica
        };
        of.take(&message);
    }
    assert_eq!(replica.docs, whole.docs);
    assert_eq!(quiet.seen.len(), 1, "each commit of the quiet space");
    assert_eq!(quiet.modes, [Mode::Reset]);
    assert!(
        replica.modes[1..].iter().all(|mode| *mode != Mode::Reset),
        "{:?}",
        replica.modes
    );
    // It fell behind each time that the sockets between took another half megabyte and then no more, not with each commit.
    let behind = metric(&gateway, "tidegate_behind_total{reason=\"slow\"}").await;
    assert!((1..=8).contains(&behind), "{behind}");
    assert!(bytes < 15 << 20, "of 20 MB it was sent {bytes}");
}

#[tokio::test]
async fn a_reader_that_takes_nothing_for_too_long_is_closed_and_slows_nobody() {
    let mut config = ServerConfig::default();
    config.node.stall = Duration::from_secs(1);
    config.node.flush = Duration::from_secs(1);
    let gateway = Gateway::with(config, Retention::default()).await;
    let mut slow = gateway.peer("slow").await;
    slow.follow("s", &mut Replica::default(), None).await;
    write_much(&gateway).await;
    tokio::time::timeout(PATIENCE, async {
        while metric(&gateway, "tidegate_closes_total{reason=\"slow_reader\"}").await == 0 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await
    .unwrap();
    // What it was sent before is whole and in order, then comes the reason.
    let mut seen = 0;
    let mut reason = None;
    while let Some(message) = slow.maybe_next().await {
        match message {
            ServerMessage::Change(change) => {
                seen += 1;
                assert_eq!(change.commit.seq.get(), seen);
            }
            ServerMessage::Error { code, .. } => reason = Some(code),
            ServerMessage::Epoch { .. } => {}
            other => panic!("{other:?}"),
        }
    }
    assert!(seen < WRITES, "it must not have been kept in memory");
    assert!(matches!(reason, None | Some(Code::SlowReader)));
}

/// Readers that take nothing, each of a space of its own and of one that all share.
async fn stalled(gateway: &Gateway, count: usize) -> Vec<(Peer, Replica, Replica)> {
    let mut readers = Vec::new();
    for n in 0..count {
        let mut peer = gateway.peer("slow").await;
        let (mut own, mut shared) = (Replica::default(), Replica::default());
        peer.follow(&format!("own/{n}"), &mut own, None).await;
        peer.follow("shared", &mut shared, None).await;
        readers.push((peer, own, shared));
    }
    readers
}

/// Writes so many documents' worth to a space; returns what stands then.
async fn fill(gateway: &Gateway, space: &str, client: u64, writes: i64, bytes: usize) -> Replica {
    let mut author = gateway.peer("author").await;
    let mut replica = Replica::default();
    author.follow(space, &mut replica, None).await;
    let mut writer = WriterState::new(space, client, author.now);
    // Nothing that a compressor could make small.
    let value = Value::str(&"x".repeat(bytes));
    for n in 0..writes {
        let ops = vec![op(
            &format!("d/{}", n % 4),
            OpKind::Set(fields(&[("v", value.clone()), ("n", Value::int(n))])),
        )];
        author.send(&ClientMessage::Write(writer.write(ops))).await;
        author.answer(&mut replica).await.unwrap();
    }
    replica
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_readers_that_take_nothing_keep_within_the_nodes_bound_and_end_equal() {
    const READERS: usize = 1_000;
    const BOUND: usize = 8 << 20;
    let mut config = ServerConfig::default();
    config.node.queued_bytes = BOUND;
    config.node.stall = Duration::from_secs(600);
    let gateway = Gateway::with(config, Retention::default()).await;
    let mut readers = stalled(&gateway, READERS).await;
    // Half a gigabyte would wait for them otherwise, beyond what the sockets between take.
    let mut owns = Vec::new();
    for n in 0..20 {
        owns.push(fill(&gateway, &format!("own/{n}"), 100 + n, 30, 100_000).await);
    }
    let shared = fill(&gateway, "shared", 1, 60, 40_000).await;
    let queued = metric(&gateway, "tidegate_queued_bytes").await;
    // Beyond the bound: one frame of each connection that is partly written, and the pages that are under way.
    println!(
        "{READERS} stalled readers: {queued} bytes wait, {} a reader",
        queued / READERS as u64
    );
    assert!(queued as usize <= BOUND + READERS * 42_000 + 64 * 300_000, "{queued}");
    let behind = metric(&gateway, "tidegate_behind_total{reason=\"slow\"}").await;
    // Once each, and not with every commit.
    assert!((1..=2 * READERS as u64).contains(&behind), "{behind}");
    for (n, (peer, own, mine)) in readers.iter_mut().enumerate() {
        let end = owns.get(n).map_or(own.at, |own| own.at);
        while mine.at != shared.at || mine.staging || own.at != end || own.staging {
            let message = peer.next().await;
            let of = match &message {
                ServerMessage::Change(change) => Some(change.n),
                ServerMessage::Epoch { n, .. } | ServerMessage::Progress { n, .. } => Some(*n),
                ServerMessage::Begin(begin) => Some(if begin.id == 1 { own.n } else { mine.n }.unwrap_or(begin.n)),
                ServerMessage::Page { id, .. } | ServerMessage::Current { id, .. } => {
                    if *id == 1 {
                        own.n
                    } else {
                        mine.n
                    }
                }
                _ => None,
            };
            if of == own.n {
                own.take(&message)
            } else {
                mine.take(&message)
            }
        }
        assert_eq!(mine.docs, shared.docs, "reader {n}");
        if let Some(whole) = owns.get(n) {
            assert_eq!(own.docs, whole.docs, "reader {n}");
        }
    }
    let began = std::time::Instant::now();
    while metric(&gateway, "tidegate_queued_bytes").await != 0 {
        assert!(began.elapsed() < PATIENCE, "what waits is not counted right");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
