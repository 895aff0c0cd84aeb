//! The contract of the store and the planner, held against every implementation.
//!
//! `world` runs clients, replicas and accidents by chance, against oracles that share no code with
//! what they judge. More seeds: `TIDEGATE_CONTRACT_SEEDS=500 cargo test --test contract`; one again:
//! `TIDEGATE_CONTRACT_SEED=…`, which a failing run prints.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test")]

mod coverage;
#[path = "../support/disk.rs"]
mod disk;
mod erased;
mod follow;
mod format;
mod generate;
mod harness;
mod interpret;
mod kill;
mod named;
mod power;
mod process;
mod race;
#[path = "../support/redis.rs"]
#[allow(dead_code, reason = "each test binary uses a part of it")]
mod redis_server;
mod replica;
mod value;
mod world;
mod write;

use coverage::Coverage;
use harness::Make;
use tidegate::store::Retention;
use world::World;

/// Things that happen in a run.
const STEPS: usize = 700;

/// Says how to see a failure again.
struct Seed(u64, usize);

impl Drop for Seed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!(
                "seed {0}, step {1}: see it again with TIDEGATE_CONTRACT_SEED={0}",
                self.0, self.1
            );
        }
    }
}

#[allow(
    clippy::disallowed_methods,
    reason = "how many seeds is the caller's to say, and a test has no command line"
)]
fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// Runs as many seeds as asked for, or `usual` of them, and shows that together they have met everything.
fn run(title: &str, stores: &[Make], usual: u64) {
    let runtime = process::runtime();
    let mut cover = Coverage::default();
    let one = setting("TIDEGATE_CONTRACT_SEED");
    let seeds = one.map_or_else(
        || (0..setting("TIDEGATE_CONTRACT_SEEDS").unwrap_or(usual)).collect(),
        |seed| vec![seed],
    );
    for seed in seeds {
        let mut told = Seed(seed, 0);
        let retention = Retention {
            log_commits: 40,
            clients_ms: u64::MAX / 4,
            ..Retention::default()
        };
        runtime.block_on(async {
            let stores = stores.iter().map(|make| make(retention.clone()));
            let mut world = World::new(seed, futures_util::future::join_all(stores).await);
            for step in 0..STEPS {
                told.1 = step;
                world.step().await;
            }
            world.compare().await;
            cover.join(&world.cover);
        });
    }
    if one.is_none() {
        cover.show(title);
    }
}

#[test]
fn the_model_keeps_every_promise() {
    run("the model", &[harness::model], 16);
}

#[test]
fn the_embedded_store_keeps_every_promise_and_answers_as_the_model_does() {
    run(
        "the model and the embedded store",
        &[harness::model, harness::embedded],
        6,
    );
}

#[test]
fn the_redis_store_keeps_every_promise_and_answers_as_the_model_does() {
    run("the model and the store on Redis", &[harness::model, harness::redis], 6);
}
