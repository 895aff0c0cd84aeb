//! One order, and no gap in it, whatever happens to the bus.

use crate::fleet::{Fleet, Node, Plan, durable, nodes};
use crate::proxy::{Fault, Proxy};
use std::time::Duration;

pub(crate) const PLAN: Plan = Plan {
    spaces: 50,
    writers: 20,
    subscribers: 60,
    each: 30,
    wide: 5,
    pause: Duration::from_millis(60),
    hop: Duration::from_millis(700),
    may_lose: false,
};
/// The head check's interval, and what a loaded machine needs beside.
pub(crate) const HEAD_CHECK: Duration = Duration::from_secs(3);
pub(crate) const SLACK: Duration = Duration::from_secs(3);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_hop_between_three_nodes_agree_on_one_order_and_nothing_is_applied_twice() {
    let redis = durable();
    let nodes = nodes(&redis.url(), 3, &[]).await;
    let mut fleet = Fleet::start(&nodes, PLAN).await;
    fleet.written().await;
    let twice = fleet.twice();
    let (took, counts) = fleet.converge(HEAD_CHECK + SLACK).await;
    println!(
        "{} commits, {twice} sent twice at once, converged in {took:?}",
        PLAN.all()
    );
    assert_eq!((counts.commits, counts.foreign_commits), (PLAN.all(), 0));
    assert_eq!((counts.at_rest, counts.unverified), (PLAN.subscribers, 0));
    assert!(twice >= PLAN.all() / 11, "{twice}");
}

/// With a proxy before the nodes' Redis, while `faults` run; the last one stays.
async fn with_faults(faults: impl AsyncFnOnce(&Proxy, &[Node])) {
    let redis = durable();
    let proxy = Proxy::before(redis.addr()).await;
    let nodes = nodes(&proxy.url(), 3, &["redis.ping=500ms"]).await;
    let mut fleet = Fleet::start(&nodes, PLAN).await;
    faults(&proxy, &nodes).await;
    fleet.written().await;
    let (took, counts) = fleet.converge(HEAD_CHECK + SLACK).await;
    println!(
        "converged {took:?} after the last write; {} commits seen one by one",
        counts.commits
    );
    assert_eq!(counts.foreign_commits, 0);
    assert_eq!((counts.at_rest, counts.unverified), (PLAN.subscribers, 0));
    for node in &nodes {
        node.ready().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bus_that_loses_a_fifth_of_its_messages_costs_time_and_nothing_else() {
    with_faults(async |proxy, _| {
        proxy.set(Fault::Drop(5));
        tokio::time::sleep(Duration::from_secs(3)).await;
        let (messages, dropped) = proxy.messages();
        assert!(dropped > 30 && dropped * 6 > messages, "{dropped} of {messages}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bus_that_is_cut_again_and_again_costs_time_and_nothing_else() {
    with_faults(async |proxy, nodes| {
        for _ in 0..4 {
            tokio::time::sleep(Duration::from_millis(400)).await;
            proxy.set(Fault::CutBus);
            tokio::time::sleep(Duration::from_millis(200)).await;
            for node in nodes {
                node.not_ready().await;
            }
            proxy.set(Fault::None);
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bus_that_stalls_in_silence_is_noticed_and_made_anew() {
    with_faults(async |proxy, nodes| {
        tokio::time::sleep(Duration::from_millis(300)).await;
        proxy.set(Fault::StallBus);
        // Beyond the time in which a ping has to be answered.
        tokio::time::sleep(Duration::from_secs(4)).await;
        for node in nodes {
            node.not_ready().await;
        }
        proxy.set(Fault::None);
    })
    .await;
}
