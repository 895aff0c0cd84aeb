//! From the embedded store to Redis.

use crate::cli::{Gateway, tidegate};
use crate::fleet::{durable, nodes, until};
use crate::proxy::{Fault, Proxy};
use crate::support::{Peer, Replica, WriterState, delete, inc, op, set};
use std::time::Duration;
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

/// Documents of the store that a run is ended or held up in the middle of.
const MANY: u64 = 3_000;

/// A gateway's store of two spaces, one of which holds much. Stopped.
async fn much() -> Gateway {
    let mut gateway = Gateway::start();
    let mut peer = Peer::try_welcomed(addr(&gateway), "ann").await.unwrap();
    let (mut s, mut t) = (WriterState::new("s", 1, peer.now), WriterState::new("t", 2, peer.now));
    for from in (0..MANY).step_by(100) {
        let ops = (from..from + 100).map(|n| set(&format!("d/{n}"), "x", 1)).collect();
        write(&mut peer, &s.write(ops)).await.unwrap();
    }
    write(&mut peer, &t.write(vec![set("d/1", "x", 1)])).await.unwrap();
    drop(peer);
    gateway.stop();
    gateway
}

fn count(redis: &crate::redis_server::Server, command: &str, key: &str) -> i64 {
    match redis.command(&[command, key]) {
        redis::Value::Int(n) => n,
        other => panic!("{other:?}"),
    }
}

/// Starts a run through a proxy that slows it down, and waits until it is in the middle of the space.
async fn in_the_middle(
    data: &std::path::Path,
    proxy: &Proxy,
    redis: &crate::redis_server::Server,
) -> std::process::Child {
    proxy.set(Fault::Delay(Duration::from_millis(20)));
    let child = tidegate(&["migrate", "--from", data.to_str().unwrap(), "--to", &proxy.url()])
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    until("it is in the middle", async || {
        count(redis, "ZCARD", "tg:{s}:idx") > 200
    })
    .await;
    proxy.set(Fault::Stall);
    child
}

async fn assert_all_is_there(redis: &crate::redis_server::Server) {
    let nodes = nodes(&redis.url(), 1, &[]).await;
    let mut eve = Peer::try_welcomed(nodes[0].addr, "eve").await.unwrap();
    for (space, docs) in [("s", MANY), ("t", 1)] {
        let mut all = Replica::default();
        eve.follow(space, &mut all, None).await;
        assert_eq!(all.docs.len() as u64, docs, "{space}");
    }
}

#[tokio::test]
async fn a_run_that_is_killed_leaves_its_spaces_closed_and_the_next_one_ends_it() {
    let (gateway, redis) = (much().await, durable());
    let proxy = Proxy::before(redis.addr()).await;
    let mut child = in_the_middle(&gateway.data(), &proxy, &redis).await;
    child.kill().unwrap();
    child.wait().unwrap();
    let there = count(&redis, "ZCARD", "tg:{s}:idx");
    assert!(there < MANY as i64, "{there}");
    // Also the one of which nothing is there yet.
    for space in ["s", "t"] {
        let meta = format!("tg:{{{space}}}:meta");
        assert_eq!(
            redis.command(&["HEXISTS", &meta, "erasing"]),
            redis::Value::Int(1),
            "{space}"
        );
    }
    let node = nodes(&redis.url(), 1, &[]).await;
    let mut peer = Peer::try_welcomed(node[0].addr, "ann").await.unwrap();
    let mut t = WriterState::new("t", 3, peer.now);
    let first = t.write(vec![set("d/2", "x", 1)]);
    let refused = write(&mut peer, &first).await.unwrap_err();
    assert_eq!(refused.code, Code::Unavailable);
    drop((peer, node));
    let (done, said) = migrate(&gateway.data(), &redis.url());
    assert!(done && said.contains("2 spaces, 3001 documents"), "{said}");
    assert_all_is_there(&redis).await;
}

#[tokio::test]
async fn a_run_that_another_one_has_overtaken_writes_nothing_more() {
    let (gateway, redis) = (much().await, durable());
    let copy = tempfile::tempdir().unwrap();
    let from = gateway.data().join(".");
    let copied = std::process::Command::new("cp")
        .arg("-R")
        .arg(&from)
        .arg(copy.path())
        .status();
    assert!(copied.unwrap().success());
    let proxy = Proxy::before(redis.addr()).await;
    let child = in_the_middle(&gateway.data(), &proxy, &redis).await;
    let (done, said) = migrate(copy.path(), &redis.url());
    assert!(done && said.contains("2 spaces, 3001 documents"), "{said}");
    // A device writes, and is answered.
    let nodes = nodes(&redis.url(), 1, &[]).await;
    let mut peer = Peer::try_welcomed(nodes[0].addr, "ann").await.unwrap();
    let mut s = WriterState::new("s", 3, peer.now);
    write(&mut peer, &s.write(vec![set("d/1", "x", 7)])).await.unwrap();
    proxy.set(Fault::None);
    let output = tokio::task::spawn_blocking(|| child.wait_with_output().unwrap())
        .await
        .unwrap();
    let said = crate::cli::said(&output);
    assert!(
        !output.status.success() && said.contains("another run carries this space over"),
        "{said}"
    );
    let mut all = Replica::default();
    peer.follow("s", &mut all, None).await;
    assert_eq!((all.docs.len() as u64, all.int("d/1", "x")), (MANY, Some(7)));
    drop((peer, nodes));
    assert_all_is_there(&redis).await;
}

#[tokio::test]
async fn a_space_that_is_in_the_way_can_be_erased_and_no_position_of_it_is_taken_for_another() {
    let (gateway, redis) = (much().await, durable());
    let nodes = nodes(&redis.url(), 1, &[]).await;
    let mut peer = Peer::try_welcomed(nodes[0].addr, "ann").await.unwrap();
    let mut s = WriterState::new("s", 3, peer.now);
    write(&mut peer, &s.write(vec![set("e/1", "x", 1)])).await.unwrap();
    let mut eve = Peer::try_welcomed(nodes[0].addr, "eve").await.unwrap();
    let mut held = Replica::default();
    eve.follow("s", &mut held, None).await;
    let (done, said) = migrate(&gateway.data(), &redis.url());
    assert!(!done && said.contains("s is in Redis already"), "{said}");
    assert_eq!(count(&redis, "EXISTS", "tg:{t}:meta"), 0, "nothing was carried over");
    let erase = ["erase", "s", "--yes", "--redis", &redis.url()];
    let output = tidegate(&erase).output().unwrap();
    assert!(output.status.success(), "{}", crate::cli::said(&output));
    let (done, said) = migrate(&gateway.data(), &redis.url());
    assert!(done && said.contains("2 spaces, 3001 documents"), "{said}");
    drop(eve);
    held.modes.clear();
    let mut eve = Peer::try_welcomed(nodes[0].addr, "eve").await.unwrap();
    eve.follow("s", &mut held, None).await;
    assert_eq!((held.mode(), held.docs.len() as u64), (Mode::Reset, MANY));
    // What was erased after it had been carried over stays so.
    let output = tidegate(&erase).output().unwrap();
    assert!(output.status.success(), "{}", crate::cli::said(&output));
    let (done, said) = migrate(&gateway.data(), &redis.url());
    assert!(done && said.contains("2 spaces were carried over before"), "{said}");
    assert_eq!(count(&redis, "EXISTS", "tg:{s}:idx"), 0);
}
