//! What becomes of clients when Redis comes back with less than it had acknowledged.

use crate::clients::{Pen, Reader};
use crate::fleet::{End, Fleet, Plan, durable, nodes};
use crate::order::{HEAD_CHECK, PLAN, SLACK};
use crate::redis_server::Server;
use crate::support::Judge;
use std::time::Duration;
use tidegate_protocol::Mode;

pub(crate) const WITHIN: Duration = Duration::from_secs(HEAD_CHECK.as_secs() + 2 * SLACK.as_secs());
/// Where something is lost.
pub(crate) const LOSSY: Plan = Plan {
    spaces: 20,
    writers: 10,
    subscribers: 50,
    each: 40,
    wide: 2,
    pause: Duration::from_millis(60),
    hop: Duration::from_millis(900),
    may_lose: true,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_that_is_killed_and_keeps_all_costs_time_and_nothing_else() {
    let mut redis = durable();
    let nodes = nodes(&redis.url(), 3, &[]).await;
    let fleet = Fleet::start(&nodes, PLAN).await;
    for part in [4, 2] {
        fleet.reaches(PLAN.all() / part).await;
        redis.kill();
        tokio::time::sleep(Duration::from_millis(400)).await;
        redis.run();
    }
    let ended = fleet.end(WITHIN).await;
    let counts = ended.counts;
    println!("two kills: converged in {:?}, {} epochs", ended.took, counts.epochs);
    assert_eq!((counts.commits, counts.foreign_commits), (PLAN.all(), 0));
    assert_eq!((counts.lost_commits, counts.unverified), (0, 0));
    // The first, and one after each kill.
    assert_eq!(counts.epochs, 3 * PLAN.spaces);
    for node in &nodes {
        node.ready().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_kill_that_loses_a_tail_those_who_saw_it_reset_and_no_others() {
    let mut redis = Server::start(&["--appendonly", "yes", "--appendfsync", "everysec"]);
    let nodes = nodes(&redis.url(), 3, &[]).await;
    // The first half of the spaces loses its tail.
    let plan = Plan { writers: 5, ..LOSSY };
    let half = plan.spaces / 2;
    assert_eq!(plan.writers * plan.wide, half);
    let first = 3;
    let judge = Judge::new();
    let mut pens: Vec<_> = (0..plan.spaces)
        .map(|space| Pen::new(&judge, 2_000 + space, space))
        .collect();
    for pen in &mut pens {
        pen.write(nodes[0].addr, first).await;
    }
    let mut early: Vec<_> = (0..plan.spaces)
        .map(|space| Reader::new(&judge, 3_000 + space, space))
        .collect();
    for reader in &mut early {
        reader.visit(nodes[1].addr).await;
    }
    let size = redis.appended().metadata().unwrap().len();
    let fleet = Fleet::start(&nodes, plan).await;
    fleet.all_beyond(half, first + 2).await;
    let mut late: Vec<_> = (0..half)
        .map(|space| Reader::new(&judge, 4_000 + space, space))
        .collect();
    for reader in &mut late {
        reader.visit(nodes[2].addr).await;
        assert!(reader.replica.at.seq.get() > first);
    }
    let acked = fleet.acked();
    redis.kill();
    let file = std::fs::File::options().write(true).open(redis.appended()).unwrap();
    assert!(file.metadata().unwrap().len() > size);
    file.set_len(size).unwrap();
    redis.run();
    assert!(acked > half, "something that was acknowledged is lost: {acked}");
    // A new epoch begins with a commit, in the other half as well.
    for pen in &mut pens {
        pen.write(nodes[0].addr, 1).await;
    }
    let ended = fleet.end(WITHIN).await;
    println!(
        "{acked} acknowledged and lost, {} reported, converged in {:?}",
        ended.lost, ended.took
    );
    assert!(ended.lost > 0, "writers have heard of it");
    for End {
        number,
        space,
        replica,
        resets,
    } in &ended.ends
    {
        match *space < half {
            true => assert!(*resets > 0, "subscriber {number} saw what is lost"),
            false => assert_eq!(*resets, 0, "subscriber {number} saw nothing that is lost"),
        }
        // Whoever followed was told how the history goes on.
        if *space >= half && *number < plan.spaces {
            assert_eq!(replica.epochs.len(), 1, "subscriber {number}");
        }
    }
    for reader in early.iter_mut().chain(&mut late) {
        let resets = reader.resets;
        let was = reader.replica.at.epoch;
        reader.visit(nodes[1].addr).await;
        reader.assert_is(&ended.truths[&reader.space]);
        assert_ne!(reader.replica.at.epoch, was);
        let is_lost = u64::from(reader.number >= 4_000);
        assert_eq!(reader.resets - resets, is_lost, "reader {}", reader.number);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_kill_that_loses_everything_all_reset_and_agree_again() {
    let mut redis = Server::start(&["--appendonly", "no"]);
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
    redis.kill();
    redis.run();
    let ended = fleet.end(WITHIN).await;
    println!("{} reported lost, converged in {:?}", ended.lost, ended.took);
    assert!(ended.lost > 0);
    assert_eq!(ended.reset() as u64, LOSSY.subscribers);
    for reader in &mut late {
        reader.visit(nodes[1].addr).await;
        reader.assert_is(&ended.truths[&reader.space]);
        assert_eq!((reader.resets, reader.replica.mode()), (1, Mode::Reset));
    }
}
