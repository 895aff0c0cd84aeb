//! Many nodes on one Redis: real processes, and histories that are judged.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test")]

mod bus;
#[path = "../support/cli.rs"]
mod cli;
mod clients;
mod counts;
mod failover;
mod faults;
mod fleet;
mod hearing;
mod loss;
mod many;
mod migrate;
mod nodes;
mod order;
mod proxy;
#[path = "../support/redis.rs"]
#[allow(dead_code, reason = "each test binary uses a part of it")]
mod redis_server;
mod settings;
#[path = "../e2e/support.rs"]
#[allow(dead_code, unreachable_pub, reason = "each test binary uses a part of it")]
mod support;
mod tls;
mod tour;
mod wiped;

/// A number from the environment, for longer runs.
#[expect(
    clippy::disallowed_methods,
    reason = "a test is told how long to run by whoever runs it"
)]
fn setting(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().expect(name))
}
