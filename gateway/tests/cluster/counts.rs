//! What of Redis a commit takes, and a delivery.

use crate::clients::{Pen, Reader, connect, name};
use crate::fleet::{Node, nodes};
use crate::redis_server::Server;
use crate::support::{Judge, WriterState, inc};
use redis::Value;
use std::collections::BTreeMap;
use tidegate_protocol::{ClientMessage, ServerMessage};

const WRITES: u64 = 40;
/// Mutations that are sent before the first is answered.
const AT_ONCE: u64 = 200;

/// Calls of each command since `CONFIG RESETSTAT`, those in scripts among them.
fn calls(server: &Server) -> BTreeMap<String, u64> {
    let Value::BulkString(stats) = server.command(&["INFO", "commandstats"]) else {
        panic!("no statistics")
    };
    let stats = String::from_utf8(stats).unwrap();
    let line = |line: &str| {
        let (command, rest) = line.strip_prefix("cmdstat_")?.split_once(":calls=")?;
        Some((command.to_owned(), rest.split(',').next()?.parse().ok()?))
    };
    let mut calls: BTreeMap<_, _> = stats.lines().filter_map(line).collect();
    // The test's own, and those that come by time.
    calls.retain(|command, _| !["info", "config|resetstat", "ping"].contains(&command.as_str()));
    calls
}

/// Nodes that ask Redis for nothing by time, while the test lasts.
async fn quiet(server: &Server) -> Vec<Node> {
    nodes(&server.url(), 2, &["fan_out.head_check=1h", "redis.ping=1m"]).await
}

/// What Redis has to do for some commits, each seen by so many subscribers on each of two nodes.
async fn commands(readers: u64) -> BTreeMap<String, u64> {
    let server = Server::start(&[]);
    let nodes = quiet(&server).await;
    let judge = Judge::new();
    let mut pen = Pen::new(&judge, 2_000, 0);
    pen.write(nodes[0].addr, 1).await;
    let mut all = vec![];
    for number in 0..2 * readers {
        let mut reader = Reader::new(&judge, number, 0);
        let node = usize::try_from(number).unwrap() % 2;
        reader.follow(nodes[node].addr).await;
        all.push(reader);
    }
    server.command(&["CONFIG", "RESETSTAT"]);
    pen.write(nodes[0].addr, WRITES).await;
    for reader in &mut all {
        reader.reach_seq(1 + WRITES).await;
    }
    judge.verdict();
    for node in &nodes {
        let delivered = node.metric("tidegate_deliveries_total").await;
        assert!(delivered >= Some(readers * WRITES), "{delivered:?}");
    }
    calls(&server)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_delivery_asks_redis_for_nothing() {
    let (few, many) = (commands(1).await, commands(20).await);
    assert_eq!(few, many, "whoever is told, it is the same for Redis");
    // Each is a group, and makes a document that has to be looked for before.
    assert_eq!((few["evalsha"], few["publish"]), (2 * WRITES, WRITES), "{few:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_is_one_call_and_one_message() {
    let server = Server::start(&[]);
    let nodes = quiet(&server).await;
    let judge = Judge::new();
    let mut peer = connect(nodes[0].addr, &judge, 2_000, "writer").await.unwrap();
    let mut writer = WriterState::new(&name(0), 1, peer.now);
    let mut reader = Reader::new(&judge, 1, 0);
    let mut write = || ClientMessage::Write(writer.write(vec![inc("d/1", "n")]));
    assert!(peer.try_send(&write()).await);
    assert!(matches!(peer.next().await, ServerMessage::Ack(_)));
    reader.follow(nodes[1].addr).await;
    let groups = async || nodes[0].metric("tidegate_engine_groups_total").await.unwrap();
    let before = groups().await;
    server.command(&["CONFIG", "RESETSTAT"]);
    for _ in 0..AT_ONCE {
        assert!(peer.try_send(&write()).await);
    }
    for _ in 0..AT_ONCE {
        let message = peer.next().await;
        assert!(matches!(message, ServerMessage::Ack(_)), "{message:?}");
    }
    reader.reach_seq(1 + AT_ONCE).await;
    let (groups, calls) = (groups().await - before, calls(&server));
    println!("{AT_ONCE} mutations in {groups} groups");
    assert!(groups < AT_ONCE / 4, "{groups}");
    // The first reads the document; those after it know what they have made of it.
    assert_eq!((calls["evalsha"], calls["publish"]), (1 + groups, groups), "{calls:?}");
    judge.verdict();
}
