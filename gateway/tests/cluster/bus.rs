//! What the bus brings, and whose it is.

use crate::clients::{Pen, Reader, connect, name, truth};
use crate::fleet::{Node, nodes, until};
use crate::proxy::Proxy;
use crate::redis_server::Server;
use crate::support::{Judge, WriterState, fields, op};
use std::time::{Duration, Instant};
use tidegate_protocol::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_hears_nothing_of_another_even_where_one_was_copied_from_the_other() {
    let redis = Server::start(&[]);
    let at = |db: u64| format!("{}{db}", redis.url());
    let first = Node::start(&at(0), &["fan_out.head_check=1h"]);
    first.ready().await;
    let judge = Judge::new();
    let (mut pen, mut reader) = (Pen::new(&judge, 2_000, 0), Reader::new(&judge, 1, 0));
    pen.write(first.addr, 1).await;
    redis.copy_to(3);
    let second = Node::start(&at(3), &[]);
    second.ready().await;
    reader.follow(first.addr).await;
    // The same epoch and the same seqs, and something else.
    let mut other = Pen::new(&Judge::new(), 3_000, 0);
    other.write(second.addr, 3).await;
    pen.write(first.addr, 2).await;
    reader.reach_seq(3).await;
    reader.assert_is(&truth(first.addr, 0).await);
    judge.verdict();
    // Those of one database hear one another.
    let third = Node::start(&at(3), &["fan_out.head_check=1h"]);
    third.ready().await;
    let mut reader = Reader::new(&Judge::new(), 2, 0);
    reader.follow(third.addr).await;
    other.write(second.addr, 1).await;
    reader.reach_seq(5).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bus_on_a_server_that_the_store_has_left_is_made_anew() {
    let (one, two) = (Server::start(&[]), Server::start(&[]));
    two.replicate(&one);
    let proxy = Proxy::before(one.addr()).await;
    let nodes = nodes(&proxy.url(), 2, &["fan_out.head_check=1s"]).await;
    let judge = Judge::new();
    let (mut pen, mut reader) = (Pen::new(&judge, 2_000, 0), Reader::new(&judge, 1, 0));
    pen.write(nodes[0].addr, 1).await;
    reader.follow(nodes[1].addr).await;
    two.in_sync(&one);
    two.detach();
    // The old one lives on as a replica of nobody, and its connections with it.
    proxy.lead_to(two.addr());
    one.command(&["REPLICAOF", "127.0.0.1", "1"]);
    pen.write(nodes[0].addr, 1).await;
    for node in &nodes {
        let breaks = async || node.metric("tidegate_bus_breaks_total").await;
        until("the bus is made anew", async || breaks().await > Some(0)).await;
        node.ready().await;
    }
    // From now on nothing has to wait for a head check.
    let began = Instant::now();
    for _ in 0..5 {
        pen.write(nodes[0].addr, 1).await;
        let seq = reader.replica.at.seq.get();
        reader.reach_seq(seq + 1).await;
    }
    reader.reach_seq(7).await;
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
    judge.verdict();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_channel_that_redis_does_not_allow_costs_its_space_and_no_other() {
    let redis = Server::start(&[]);
    redis.command(&[
        "ACL",
        "SETUSER",
        "gateway",
        "on",
        ">secret",
        "~*",
        "+@all",
        "resetchannels",
        "&tg:{space:0}",
        "&tg:probe:*",
    ]);
    let url = redis.url().replace("redis://", "redis://gateway:secret@");
    let node = Node::start(&url, &["redis.patience=4s"]);
    node.ready().await;
    let judge = Judge::new();
    let mut reader = Reader::new(&judge, 1, 0);
    reader.follow(node.addr).await;
    let mut peer = connect(node.addr, &Judge::new(), 2, "other").await.unwrap();
    assert!(peer.try_sub(&name(1), &Default::default()).await);
    // It waits, as for a store that does not answer.
    let said = "give its user &tg:*";
    until("it is said", async || node.log().contains(said)).await;
    assert_eq!(node.metric("tidegate_bus_breaks_total").await, Some(0));
    assert!(node.is_ready().await);
    Pen::new(&judge, 2_000, 0).write(node.addr, 1).await;
    reader.reach_seq(1).await;
    judge.verdict();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_of_any_size_is_brought_as_it_is() {
    let redis = Server::start(&[]);
    let nodes = nodes(&redis.url(), 2, &["fan_out.head_check=1h"]).await;
    let judge = Judge::new();
    let mut reader = Reader::new(&judge, 1, 0);
    let mut peer = connect(nodes[0].addr, &judge, 2, "writer").await.unwrap();
    let mut writer = WriterState::new(&name(0), 1, peer.now);
    let mut write = |bytes| {
        let text = Value::str(&"x".repeat(bytes));
        ClientMessage::Write(writer.write(vec![op("d/1", OpKind::Set(fields(&[("v", text)])))]))
    };
    assert!(peer.try_send(&write(1)).await);
    assert!(matches!(peer.next().await, ServerMessage::Ack(_)));
    reader.follow(nodes[1].addr).await;
    // All but the first are one group, and one message.
    for _ in 0..6 {
        assert!(peer.try_send(&write(400_000)).await);
    }
    for _ in 0..6 {
        assert!(matches!(peer.next().await, ServerMessage::Ack(_)));
    }
    reader.reach_seq(7).await;
    assert!(nodes[0].metric("tidegate_engine_groups_total").await <= Some(4));
    let count = async |series: &str| nodes[1].metric(series).await;
    assert_eq!(count("tidegate_bus_cut_total").await, Some(0));
    assert_eq!(count("tidegate_gap_commits_total").await, Some(0));
    judge.verdict();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn however_many_wait_for_a_redis_that_stands_still_each_is_answered_in_time() {
    let redis = Server::start(&[]);
    let settings = ["redis.patience=4s", "connections.catch_ups=1000"];
    let node = Node::start(&redis.url(), &settings);
    node.ready().await;
    redis.freeze();
    let mut asking = tokio::task::JoinSet::new();
    for number in 0..60 {
        let addr = node.addr;
        asking.spawn(async move {
            let mut peer = connect(addr, &Judge::new(), number, "reader").await.unwrap();
            // The first finds the connections as they were, the second none.
            for id in 0..2 {
                let get = Get {
                    id,
                    space: name(u64::from(id == 0)).parse().unwrap(),
                    docs: vec!["d/1".parse().unwrap()],
                };
                let asked = Instant::now();
                assert!(peer.try_send(&ClientMessage::Get(get)).await);
                let answer = peer.next().await;
                assert!(matches!(answer, ServerMessage::Error { .. }), "{answer:?}");
                let took = asked.elapsed();
                assert!(took < Duration::from_secs(8), "{took:?}");
            }
        });
    }
    while let Some(asked) = asking.join_next().await {
        asked.unwrap();
    }
    redis.thaw();
    node.ready().await;
}
