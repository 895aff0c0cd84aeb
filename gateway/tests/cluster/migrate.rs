//! From the embedded store to Redis.

use crate::cli::{Gateway, tidegate};
use crate::fleet::{durable, nodes};
use crate::support::{Peer, Replica, WriterState, delete, inc, op, set};
use tidegate_protocol::*;

/// Where a gateway of a process is.
fn addr(gateway: &Gateway) -> std::net::SocketAddr {
    gateway.url.strip_prefix("ws://").unwrap().parse().unwrap()
}

async fn write(peer: &mut Peer, write: &Write) -> Result<Ack, Reject> {
    peer.send(&ClientMessage::Write(write.clone())).await;
    peer.answer(&mut Replica::default()).await
}

fn migrate(from: &std::path::Path, to: &str) -> (bool, String) {
    let output = tidegate(&["migrate", "--from", from.to_str().unwrap(), "--to", to])
        .output()
        .unwrap();
    (output.status.success(), crate::cli::said(&output))
}

#[tokio::test]
async fn a_store_that_is_carried_over_is_gone_on_with_without_a_reset_and_nothing_is_applied_twice() {
    let mut gateway = Gateway::start();
    let mut peer = Peer::try_welcomed(addr(&gateway), "ann").await.unwrap();
    let (mut s, mut t) = (WriterState::new("s", 1, peer.now), WriterState::new("t", 2, peer.now));
    let large = |n: usize| {
        let value = Value::str(&"x".repeat(3_000));
        op(
            &format!("large/{n}"),
            OpKind::Set(crate::support::fields(&[("v", value), ("n", Value::int(1))])),
        )
    };
    let first = s.write(vec![
        set("d/1", "x", 1),
        set("d/2", "x", 1),
        large(1),
        set("d/9", "x", 1),
    ]);
    write(&mut peer, &first).await.unwrap();
    let mut away = Replica::default();
    Peer::try_welcomed(addr(&gateway), "eve")
        .await
        .unwrap()
        .follow("s", &mut away, None)
        .await;
    let unset = op("d/1", OpKind::Unset(vec!["x".parse().unwrap()]));
    write(&mut peer, &s.write(vec![unset, set("d/1", "y", 2), delete("d/2")]))
        .await
        .unwrap();
    write(&mut peer, &t.write(vec![inc("d/1", "n")])).await.unwrap();
    let last = s.write(vec![inc("d/3", "n")]);
    let acked = write(&mut peer, &last).await.unwrap();
    let mut here = Replica::default();
    Peer::try_welcomed(addr(&gateway), "bob")
        .await
        .unwrap()
        .follow("s", &mut here, None)
        .await;
    drop(peer);
    let (running, why) = migrate(&gateway.data(), "redis://127.0.0.1:1/");
    assert!(!running && why.contains("in use"), "{why}");
    gateway.stop();

    let redis = durable();
    redis.command(&["HSET", "tg:{t}:meta", "head", "1"]);
    let (done, why) = migrate(&gateway.data(), &redis.url());
    assert!(!done && why.contains("t is in Redis already"), "{why}");
    redis.command(&["FLUSHALL"]);
    // A run that was cut short.
    let (done, said) = migrate(&gateway.data(), &redis.url());
    assert!(done, "{said}");
    assert!(
        said.contains("2 spaces, 6 documents, 4 commits of logs, 2 clients"),
        "{said}"
    );
    redis.command(&["HSET", "tg:{s}:meta", "erasing", "carried over"]);
    redis.command(&["HSET", "tg:{s}:d:d/7", "", "half"]);
    redis.command(&["ZADD", "tg:{s}:idx", "7", "d/7"]);
    let (done, said) = migrate(&gateway.data(), &redis.url());
    assert!(done && said.contains("1 spaces were carried over before"), "{said}");

    let nodes = nodes(&redis.url(), 1, &[]).await;
    let mut peer = Peer::try_welcomed(nodes[0].addr, "ann").await.unwrap();
    for replica in [&mut away, &mut here] {
        let held = replica.at;
        replica.modes.clear();
        let mut eve = Peer::try_welcomed(nodes[0].addr, "eve").await.unwrap();
        eve.follow("s", replica, None).await;
        assert_ne!(replica.mode(), Mode::Reset, "from {held}");
        assert_eq!(replica.at, acked.position);
    }
    assert_eq!(away.docs, here.docs);
    assert_eq!(away.docs.keys().collect::<Vec<_>>(), ["d/1", "d/3", "d/9", "large/1"]);
    // What was answered before is answered so again, and the next mutation follows it.
    assert_eq!(write(&mut peer, &last).await.unwrap(), acked);
    let next = write(&mut peer, &s.write(vec![inc("d/3", "n")])).await.unwrap();
    assert_eq!(next.position.seq, acked.position.seq.next());
    let mut eve = Peer::try_welcomed(nodes[0].addr, "eve").await.unwrap();
    away.modes.clear();
    eve.follow("s", &mut away, None).await;
    assert_eq!((away.mode(), away.int("d/3", "n")), (Mode::Log, Some(2)));
    // The whole, as somebody new gets it.
    let mut all = Replica::default();
    eve.follow("t", &mut all, None).await;
    assert_eq!(all.int("d/1", "n"), Some(1));
    write(&mut peer, &t.write(vec![inc("d/1", "n")])).await.unwrap();
}
