//! What administrators and full machines do to Redis under load.

use crate::clients::name;
use crate::fleet::{Fleet, Node, Plan, durable, nodes};
use crate::order::{HEAD_CHECK, PLAN, SLACK};
use crate::proxy::{Fault, Proxy};
use crate::redis_server::Server;
use std::time::Duration;

const WITHIN: Duration = Duration::from_secs(HEAD_CHECK.as_secs() + 2 * SLACK.as_secs());

/// While `fault` happens a fleet is at work: each of its writes settles once, and the nodes are ready again by themselves.
async fn with_fault(plan: Plan, fault: impl AsyncFnOnce(&Server, &Proxy, &[Node])) -> Vec<Node> {
    let redis = durable();
    let proxy = Proxy::before(redis.addr()).await;
    let nodes = nodes(&proxy.url(), 3, &["redis.patience=4s"]).await;
    let fleet = Fleet::start(&nodes, plan).await;
    fleet.reaches(plan.all() / 10).await;
    fault(&redis, &proxy, &nodes).await;
    let ended = fleet.end(WITHIN).await;
    let counts = ended.counts;
    println!("converged in {:?}, {} refusals on the way", ended.took, ended.refused);
    assert_eq!((counts.commits, counts.foreign_commits), (plan.all(), 0));
    assert_eq!((counts.lost_commits, counts.unverified), (0, 0));
    for node in &nodes {
        node.ready().await;
    }
    nodes
}

/// Errors of this kind on all nodes.
async fn errors(nodes: &[Node], kind: &str) -> u64 {
    let mut all = 0;
    for node in nodes {
        let series = format!("tidegate_redis_errors_total{{kind=\"{kind}\"}}");
        all += node.metric(&series).await.unwrap_or(0);
    }
    all
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn scripts_that_are_flushed_are_loaded_again_and_every_write_settles_once() {
    let nodes = with_fault(PLAN, async |redis, _, _| {
        for _ in 0..10 {
            redis.command(&["SCRIPT", "FLUSH"]);
            tokio::time::sleep(Duration::from_millis(60)).await;
        }
    })
    .await;
    assert!(errors(&nodes, "script").await > 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_are_killed_are_made_again_and_every_write_settles_once() {
    let nodes = with_fault(PLAN, async |redis, _, _| {
        for kind in ["normal", "pubsub", "normal", "pubsub", "normal"] {
            redis.command(&["CLIENT", "KILL", "TYPE", kind]);
            tokio::time::sleep(Duration::from_millis(150)).await;
        }
    })
    .await;
    assert!(errors(&nodes, "connection").await > 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_that_pauses_for_longer_than_an_answer_may_take_costs_time_and_nothing_else() {
    let nodes = with_fault(PLAN, async |redis, _, _| {
        redis.command(&["CLIENT", "PAUSE", "3500", "ALL"]);
    })
    .await;
    assert!(errors(&nodes, "timeout").await > 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_network_that_stalls_in_silence_is_noticed_and_every_write_settles_once() {
    let nodes = with_fault(PLAN, async |_, proxy, nodes| {
        proxy.set(Fault::Stall);
        // Beyond the time in which an answer has to come, and in which a command is tried again.
        tokio::time::sleep(Duration::from_secs(6)).await;
        for node in nodes {
            node.not_ready().await;
        }
        proxy.set(Fault::None);
    })
    .await;
    assert!(errors(&nodes, "timeout").await > 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_network_that_is_cut_or_slow_costs_time_and_nothing_else() {
    let nodes = with_fault(PLAN, async |_, proxy, nodes| {
        proxy.set(Fault::Delay(Duration::from_millis(5)));
        tokio::time::sleep(Duration::from_secs(1)).await;
        proxy.set(Fault::Cut);
        // Beyond the time in which a command is tried again.
        tokio::time::sleep(Duration::from_secs(5)).await;
        for node in nodes {
            node.not_ready().await;
        }
        proxy.set(Fault::None);
    })
    .await;
    assert!(errors(&nodes, "connection").await > 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_without_memory_refuses_for_a_while_and_every_write_settles_once() {
    let heads = |redis: &Server| -> Vec<_> {
        let meta = |space| format!("tg:{{{}}}:meta", name(space));
        (0..PLAN.spaces)
            .map(|space| redis.command(&["HGET", &meta(space), "head"]))
            .collect()
    };
    let nodes = with_fault(PLAN, async |redis, _, _| {
        redis.command(&["CONFIG", "SET", "maxmemory", "1"]);
        let before = heads(redis);
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(heads(redis), before, "nothing is written");
        redis.command(&["CONFIG", "SET", "maxmemory", "0"]);
    })
    .await;
    assert!(errors(&nodes, "oom").await > 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn by_default_a_redis_that_pauses_for_seven_seconds_costs_time_and_nothing_else() {
    let redis = durable();
    let nodes: Vec<_> = (0..2).map(|_| Node::as_it_is(&redis.url(), &[])).collect();
    for node in &nodes {
        node.ready().await;
    }
    let fleet = Fleet::start(&nodes, PLAN).await;
    fleet.reaches(PLAN.all() / 10).await;
    redis.command(&["CLIENT", "PAUSE", "7000", "ALL"]);
    let ended = fleet.end(WITHIN).await;
    println!("converged in {:?}", ended.took);
    assert_eq!((ended.counts.commits, ended.refused), (PLAN.all(), 0));
    assert!(errors(&nodes, "timeout").await > 0);
}
