//! The Tidegate gateway. `docs/ARCHITECTURE.md` is the map.
//!
//! Data flows one way: socket → session → engine → store → bus → hub → outbox → socket. A module
//! imports only what is downstream of it; hub and session never import each other.

pub mod admission;
pub mod auth;
pub mod bus;
pub mod cli;
pub mod config;
pub mod engine;
pub mod env;
pub mod frame;
pub mod hub;
pub mod metrics;
pub mod outbox;
pub mod server;
pub mod session;
pub mod store;
pub mod ws;
