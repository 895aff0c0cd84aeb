//! Keys that are gone: never a hole that nobody is told of.

use crate::clients::{Pen, Reader, name, truth};
use crate::fleet::{Fleet, Node, durable, nodes, until};
use crate::loss::{LOSSY, WITHIN};
use crate::order::{HEAD_CHECK, SLACK};
use crate::redis_server::Server;
use crate::support::{Judge, Peer, Replica, WriterState, fields, op, set};
use std::net::SocketAddr;
use std::time::{Duration, Instant};
use tidegate_protocol::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_that_is_emptied_under_load_resets_everybody_and_all_agree_again() {
    let redis = durable();
    let nodes = nodes(&redis.url(), 3, &[]).await;
    let fleet = Fleet::start(&nodes, LOSSY).await;
    fleet.all_beyond(LOSSY.spaces, 5).await;
    let judge = Judge::new();
    let mut late: Vec<_> = (0..LOSSY.spaces)
        .map(|space| Reader::new(&judge, 4_000 + space, space))
        .collect();
    for reader in &mut late {
        reader.visit(nodes[2].addr).await;
    }
    redis.command(&["FLUSHALL"]);
    let ended = fleet.end(WITHIN).await;
    println!("{} reported lost, converged in {:?}", ended.lost, ended.took);
    assert!(ended.lost > 0);
    assert_eq!(ended.reset() as u64, LOSSY.subscribers);
    for reader in &mut late {
        reader.visit(nodes[1].addr).await;
        reader.assert_is(&ended.truths[&reader.space]);
        assert_eq!(reader.resets, 1);
    }
}

/// A space, who follows it on two nodes, who was there, and who writes to it.
struct World {
    redis: Server,
    nodes: Vec<Node>,
    live: Vec<Reader>,
    offline: Reader,
    pen: Pen,
    judge: Judge,
}

impl World {
    async fn new() -> Self {
        let redis = durable();
        let nodes = nodes(
            &redis.url(),
            2,
            &["redis.patience=4s", "limits.page_bytes=8192", "retention.log_commits=4"],
        )
        .await;
        let judge = Judge::new();
        let mut pen = Pen::new(&judge, 2_000, 0);
        let mut live = vec![Reader::new(&judge, 1, 0), Reader::new(&judge, 2, 0)];
        let mut offline = Reader::new(&judge, 3, 0);
        for (reader, node) in live.iter_mut().zip(&nodes) {
            reader.follow(node.addr).await;
        }
        pen.write(nodes[0].addr, 4).await;
        offline.visit(nodes[1].addr).await;
        // It is behind by these.
        pen.write(nodes[0].addr, 4).await;
        Self {
            redis,
            nodes,
            live,
            offline,
            pen,
            judge,
        }
    }

    fn key(part: &str) -> String {
        format!("tg:{{{}}}:{part}", name(0))
    }

    fn delete(&self, part: &str) {
        let deleted = self.redis.command(&["DEL", &Self::key(part)]);
        assert_eq!(deleted, redis::Value::Int(1), "{part}");
    }

    /// All hold the same within a head check, and what they hold is what a new reader is given.
    async fn agree(&mut self, is_expected: impl Fn(u64) -> bool) {
        self.offline.visit(self.nodes[1].addr).await;
        let truth = truth(self.nodes[0].addr, 0).await;
        let began = Instant::now();
        for reader in &mut self.live {
            reader.reach(truth.at).await;
            let Reader { number, resets, .. } = reader;
            assert!(is_expected(*resets), "live reader {number}: {resets} resets");
            reader.assert_is(&truth);
        }
        assert!(began.elapsed() < HEAD_CHECK + SLACK);
        assert!(is_expected(self.offline.resets), "{}", self.offline.resets);
        self.offline.assert_is(&truth);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_space_without_its_meta_goes_on_from_its_highest_number_and_every_position_resets() {
    let mut world = World::new().await;
    let text = "x".repeat(3_000);
    for n in 0..6 {
        let more = vec![op(
            &format!("big/{n}"),
            OpKind::Set(fields(&[("v", Value::str(&text))])),
        )];
        world.pen.write_with(world.nodes[0].addr, more).await;
    }
    world.delete("meta");
    // It has several pages.
    world.agree(|resets| resets >= 1).await;
    // And once more with the commit that begins an epoch: what came before it has no name.
    world.pen.write(world.nodes[1].addr, 2).await;
    world.agree(|resets| resets >= 2).await;
    assert_eq!(world.live[0].replica.at.seq.get(), 16);
    assert_eq!((world.pen.lost, world.pen.uncertain), (0, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_space_without_its_log_brings_what_has_changed_and_nobody_resets() {
    let mut world = World::new().await;
    world.delete("log");
    world.pen.write(world.nodes[1].addr, 2).await;
    world.agree(|resets| resets == 0).await;
    assert_eq!(world.offline.replica.mode(), Mode::Delta);
    // From here on it holds what it should.
    world.pen.write(world.nodes[0].addr, 3).await;
    world.agree(|resets| resets == 0).await;
    assert_eq!(world.offline.replica.mode(), Mode::Log);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_lacks_a_commit_is_read_up_to_that_and_what_has_changed_after_it() {
    let mut world = World::new().await;
    let deleted = world.redis.command(&["XDEL", &World::key("log"), "6-0"]);
    assert_eq!(deleted, redis::Value::Int(1));
    world.agree(|resets| resets == 0).await;
    assert_eq!(world.offline.replica.modes[1..], [Mode::Log, Mode::Delta]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_space_without_its_clients_knows_none_and_nobody_else_notices() {
    let mut world = World::new().await;
    world.delete("clients");
    world.pen.write(world.nodes[1].addr, 3).await;
    assert_eq!(
        (world.pen.lost, world.pen.uncertain),
        (8, 1),
        "the first of the three is refused"
    );
    world.agree(|resets| resets == 0).await;
}

/// The answer to a mutation.
async fn answer(addr: SocketAddr, writer: &mut WriterState, doc: &str) -> Result<Ack, Reject> {
    let mut peer = Peer::try_welcomed(addr, "somebody").await.unwrap();
    peer.send(&ClientMessage::Write(writer.write(vec![set(doc, "n", 1)])))
        .await;
    peer.answer(&mut Replica::default()).await
}

/// A key that documents are found by, or a document: what needs it is `unavailable` until it is back.
async fn unavailable_until_it_is_back(part: &str, unharmed: Option<&str>) {
    let mut world = World::new().await;
    let (a, b) = (world.nodes[0].addr, world.nodes[1].addr);
    let mut now = Peer::try_welcomed(a, "somebody").await.unwrap().now;
    let mut writer = || {
        now += 1;
        WriterState::new(&name(0), now, now)
    };
    let key = World::key(part);
    world.redis.command(&["COPY", &key, "kept"]);
    world.delete(part);
    let refused = answer(b, &mut writer(), "counters/c").await.unwrap_err();
    assert_eq!(refused.code, Code::Unavailable, "{}", refused.message);
    if let Some(doc) = unharmed {
        answer(a, &mut writer(), doc).await.unwrap();
    }
    // Whoever needs the whole waits, and is told nothing in place of it.
    let mut newcomer = Reader::new(&world.judge, 9, 0);
    let waits = tokio::time::timeout(Duration::from_secs(2), newcomer.visit(b)).await;
    assert!(waits.is_err(), "{:?}", newcomer.replica.docs);
    assert!(newcomer.replica.docs.is_empty() && newcomer.replica.at == Position::START);
    newcomer.leave();
    world.redis.command(&["RENAME", "kept", &key]);
    let began = Instant::now();
    newcomer = Reader::new(&world.judge, 10, 0);
    newcomer.visit(b).await;
    assert!(began.elapsed() < HEAD_CHECK + SLACK);
    answer(b, &mut writer(), "counters/d").await.unwrap();
    world.agree(|resets| resets == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_space_without_its_index_is_unavailable_until_it_is_back() {
    unavailable_until_it_is_back("idx", None).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_document_that_is_gone_is_unavailable_and_the_others_are_not() {
    unavailable_until_it_is_back("d:counters/c", Some("counters/other")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_document_that_is_gone_holds_up_nobody_who_does_not_write_to_it() {
    let mut world = World::new().await;
    let addr = world.nodes[0].addr;
    let now = Peer::try_welcomed(addr, "somebody").await.unwrap().now;
    let mut writer = WriterState::new(&name(0), 1, now);
    answer(addr, &mut writer, "d/x").await.unwrap();
    world.delete("d:d/x");
    let mut others = tokio::task::JoinSet::new();
    for n in 0..4 {
        others.spawn(async move {
            for client in 0.. {
                let now = Peer::try_welcomed(addr, "somebody").await.unwrap().now;
                let mut writer = WriterState::new(&name(0), 10 + n + 10 * client, now);
                let refused = answer(addr, &mut writer, "d/x").await.unwrap_err();
                assert_eq!(refused.code, Code::Unavailable, "{}", refused.message);
            }
        });
    }
    let began = Instant::now();
    world.pen.write(addr, 5).await;
    println!("five commits in {:?}, {} refusals", began.elapsed(), world.pen.refused);
    assert_eq!(world.pen.refused, 0);
    assert!(others.try_join_next().is_none(), "they still try");
    for reader in &mut world.live {
        reader.reach_seq(14).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_goes_missing_under_load_holds_nobody_up() {
    let redis = durable();
    let nodes = nodes(&redis.url(), 3, &[]).await;
    let fleet = Fleet::start(&nodes, crate::order::PLAN).await;
    for part in [4, 2] {
        fleet.reaches(crate::order::PLAN.all() / part).await;
        for space in 0..crate::order::PLAN.spaces {
            redis.command(&["DEL", &format!("tg:{{{}}}:log", name(space))]);
        }
    }
    let (took, _) = fleet.converge(WITHIN).await;
    println!("converged in {took:?}");
    until("the nodes are ready", async || {
        nodes[0].is_ready().await && nodes[1].is_ready().await
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_space_of_which_nothing_can_be_read_holds_up_no_other_and_no_node() {
    let mut world = World::new().await;
    let (a, b) = (world.nodes[0].addr, world.nodes[1].addr);
    let mut pen = Pen::new(&world.judge, 2_001, 1);
    pen.write(b, 3).await;
    let mut other = Reader::new(&world.judge, 20, 1);
    other.follow(a).await;
    let (meta, others) = (World::key("meta"), format!("tg:{{{}}}:meta", name(1)));
    for (n, damage) in (1..).zip([
        &["SET", &meta, "foo"][..],
        &["HSET", &meta, "lineage", "foo"],
        &["HSET", &meta, "head", "foo"],
    ]) {
        world.redis.command(&["COPY", &meta, "kept"]);
        world.redis.command(damage);
        // Nothing but a comparison of heads finds that the other space stands elsewhere.
        world.redis.command(&["DEL", &others]);
        let seen = world.nodes[0].metric("tidegate_heads_damaged_total").await;
        let resets = other.resets;
        other.reach(truth(b, 1).await.at).await;
        assert!(other.resets > resets);
        until("the space is found damaged", async || {
            world.nodes[0].metric("tidegate_heads_damaged_total").await > seen
        })
        .await;
        assert!(world.nodes[0].is_ready().await);
        // A node that is started now serves the others, too.
        let late = &nodes(&world.redis.url(), 1, &[]).await[0];
        assert_eq!(truth(late.addr, 1).await.at, other.replica.at);
        world.redis.command(&["RENAME", "kept", &meta]);
        pen.write(b, 1).await;
        other.reach_seq(3 + n).await;
    }
    world.pen.write(a, 1).await;
    world.agree(|resets| resets == 0).await;
}
