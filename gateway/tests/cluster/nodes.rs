//! Gateways that die or stand still.

use crate::fleet::{Fleet, Plan, durable, nodes};
use crate::order::{HEAD_CHECK, PLAN, SLACK};
use crate::setting;
use std::time::Duration;

const WITHIN: Duration = Duration::from_secs(HEAD_CHECK.as_secs() + 2 * SLACK.as_secs());
/// How long a gateway stands still.
const FROZEN: Duration = Duration::from_secs(10);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn gateways_that_are_killed_in_the_middle_of_writes_cost_time_and_nothing_else() {
    let redis = durable();
    let mut nodes = nodes(&redis.url(), 3, &[]).await;
    let fleet = Fleet::start(&nodes, PLAN).await;
    for (n, part) in [(0, 5), (1, 3), (2, 2)] {
        fleet.reaches(PLAN.all() / part).await;
        nodes[n].kill();
        tokio::time::sleep(Duration::from_millis(300)).await;
        nodes[n].run();
    }
    let (took, counts) = fleet.converge(WITHIN).await;
    println!("each of three killed once: converged in {took:?}");
    assert_eq!((counts.commits, counts.foreign_commits), (PLAN.all(), 0));
    assert_eq!(counts.unverified, 0);
    for node in &nodes {
        node.ready().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_that_stands_still_and_goes_on_costs_time_and_nothing_else() {
    let frozen = setting("CLUSTER_FROZEN_SECONDS").map_or(FROZEN, Duration::from_secs);
    let redis = durable();
    let nodes = nodes(&redis.url(), 3, &[]).await;
    // As long as it stands still, the others are written to.
    let each = 4 + u64::try_from(frozen.as_millis()).unwrap() / 400;
    let plan = Plan {
        each,
        pause: Duration::from_millis(400),
        ..PLAN
    };
    let fleet = Fleet::start(&nodes, plan).await;
    fleet.reaches(plan.all() / each).await;
    nodes[1].freeze();
    tokio::time::sleep(frozen).await;
    let acked = fleet.acked();
    nodes[1].thaw();
    let (took, counts) = fleet.converge(WITHIN).await;
    println!("{frozen:?} frozen, {acked} acknowledged meanwhile, converged in {took:?}");
    assert!(
        acked > plan.all() / 2,
        "those on the others went on: {acked} of {}",
        plan.all()
    );
    assert_eq!((counts.commits, counts.foreign_commits), (plan.all(), 0));
    assert_eq!(counts.unverified, 0);
    nodes[1].ready().await;
}
