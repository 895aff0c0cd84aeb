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
mod restore;
mod resume;
mod slow;
mod support;
mod views;
mod writes;
