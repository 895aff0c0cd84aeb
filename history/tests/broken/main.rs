//! Broken histories: each is called what it is, and nothing else.

#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, missing_docs)] // a test may panic

mod allowed;
mod catch_up;
mod mutations;
mod spoil;
mod store;
mod stream;
mod views;
#[path = "../world/mod.rs"]
mod world;
