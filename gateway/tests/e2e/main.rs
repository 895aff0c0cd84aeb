//! The gateway's promises, over real sockets and the embedded store. Each test's name is what it proves.

#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    clippy::print_stdout,
    missing_docs,
    unreachable_pub
)]

mod access;
mod admission;
mod compression;
mod fan_out;
mod hostile;
#[path = "../support/hub.rs"]
mod hub;
mod keeping;
mod limits;
mod metrics;
mod order;
mod overload;
mod pressure;
mod real_data;
#[path = "../support/redis.rs"]
#[allow(dead_code, reason = "each test binary uses a part of it")]
mod redis_server;
mod restore;
mod resume;
mod slow;
#[allow(dead_code, reason = "each test binary uses a part of it")]
mod support;
mod views;
mod writes;
