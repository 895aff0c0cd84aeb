//! What the bus loses is found at once wherever that can be known: head checks are an hour apart here.

use crate::clients::{Pen, Reader, connect, name};
use crate::fleet::Node;
use crate::proxy::{Fault, Proxy};
use crate::redis_server::Server;
use crate::support::{Judge, Replica, WriterState, fields, inc, op};
use std::time::Duration;
use tidegate_protocol::{ClientMessage, OpKind, ServerMessage, Value};

const SELDOM: [&str; 2] = ["fan_out.head_check=1h", "redis.ping=500ms"];

/// A node that is on Redis directly, and one behind a proxy.
struct Two {
    proxy: Proxy,
    near: Node,
    far: Node,
    judge: Judge,
    redis: Server,
}

async fn two() -> Two {
    let redis = Server::start(&[]);
    let proxy = Proxy::before(redis.addr()).await;
    let (near, far) = (Node::start(&redis.url(), &SELDOM), Node::start(&proxy.url(), &SELDOM));
    near.ready().await;
    far.ready().await;
    Two {
        proxy,
        near,
        far,
        judge: Judge::new(),
        redis,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_written_while_the_bus_is_away_is_there_as_soon_as_the_node_is_ready_again() {
    let two = two().await;
    let mut pens = [0, 1].map(|space| Pen::new(&two.judge, 2_000 + space, space));
    let mut readers = [0, 1].map(|space| Reader::new(&two.judge, space, space));
    for (pen, reader) in pens.iter_mut().zip(&mut readers) {
        pen.write(two.near.addr, 1).await;
        reader.follow(two.far.addr).await;
    }
    let mut written = 1;
    for fault in [Fault::CutBus, Fault::StallBus] {
        two.proxy.set(fault);
        two.far.not_ready().await;
        pens[0].write(two.near.addr, 5).await;
        two.proxy.set(Fault::None);
        two.far.ready().await;
        // Heads have been compared by now: it is late for no more than a read of the log.
        let reach = readers[0].reach_seq(written + 5);
        let in_time = tokio::time::timeout(Duration::from_secs(5), reach).await;
        assert!(in_time.is_ok(), "{fault:?}");
        // What was followed before is followed again.
        for (pen, reader) in pens.iter_mut().zip(&mut readers) {
            pen.write(two.near.addr, 5).await;
            reader.reach_seq(pen.made()).await;
        }
        written += 10;
    }
    two.judge.verdict();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_that_is_too_large_to_be_taken_in_at_once_is_read_from_the_log() {
    let two = two().await;
    let mut reader = Reader::new(&two.judge, 1, 0);
    reader.follow(two.far.addr).await;
    let mut peer = connect(two.near.addr, &two.judge, 2_000, "writer").await.unwrap();
    let mut writer = WriterState::new(&name(0), 1, peer.now);
    // While the first waits for Redis the others gather: more than the bus takes in of a space, and nothing comes
    // behind them that would tell of a gap.
    two.redis.command(&["CLIENT", "PAUSE", "1000", "ALL"]);
    let sizes = [1, 400_000, 400_000, 400_000];
    for (n, bytes) in sizes.into_iter().enumerate() {
        let set = OpKind::Set(fields(&[("v", Value::str(&"x".repeat(bytes)))]));
        let write = writer.write(vec![op(&format!("d/{n}"), set)]);
        assert!(peer.try_send(&ClientMessage::Write(write)).await);
    }
    for _ in sizes {
        let message = peer.next().await;
        assert!(matches!(message, ServerMessage::Ack(_)), "{message:?}");
    }
    let groups = two.near.metric("tidegate_engine_groups_total").await;
    assert_eq!(groups, Some(2));
    reader.reach_seq(4).await;
    let cut = two.far.metric("tidegate_bus_cut_total").await;
    assert_eq!(cut, Some(1));
    two.judge.verdict();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_repeat_has_its_commit_read_where_the_bus_has_lost_it() {
    let two = two().await;
    let mut peer = connect(two.near.addr, &two.judge, 2_000, "writer").await.unwrap();
    let mut writer = WriterState::new(&name(0), 1, peer.now);
    let mut reader = Reader::new(&two.judge, 1, 0);
    reader.follow(two.far.addr).await;
    two.proxy.set(Fault::Drop(1));
    // Sent again by one who watches the space, and by one who does not.
    for watches in [true, false] {
        let mut again = connect(two.far.addr, &two.judge, 2_001 + u64::from(watches), "writer")
            .await
            .unwrap();
        if watches {
            assert!(again.try_sub(&name(0), &Replica::default()).await);
            while !matches!(again.next().await, ServerMessage::Current { .. }) {}
        }
        let write = ClientMessage::Write(writer.write(vec![inc("d/1", "n")]));
        assert!(peer.try_send(&write).await);
        let ServerMessage::Ack(first) = peer.next().await else {
            panic!("not written")
        };
        assert!(again.try_send(&write).await);
        loop {
            match again.next().await {
                ServerMessage::Ack(ack) => break assert_eq!(ack.position, first.position),
                ServerMessage::Change(_) | ServerMessage::Epoch { .. } => {}
                other => panic!("{other:?}"),
            }
        }
        reader.reach_seq(first.position.seq.get()).await;
    }
    two.judge.verdict();
}
