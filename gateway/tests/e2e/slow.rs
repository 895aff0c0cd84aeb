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
        while metric(&gateway, "tidegate_closes_total{code=\"slow_reader\"}").await == 0 {
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
