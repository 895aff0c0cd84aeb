//! What the engine counts, for the metrics page.

use std::sync::atomic::{AtomicU64, Ordering};
use tidegate_protocol::Code;
use tidegate_protocol::error::TABLE;

/// Counters since the start, and the node's queue as it is.
#[derive(Debug, Default)]
pub struct EngineStats {
    /// Mutations applied.
    pub commits: Counter,
    /// Store calls that wrote.
    pub groups: Counter,
    /// Plans made again because what they were made on did not hold.
    pub stale_replans: Counter,
    /// Mutations given up after too many of those.
    pub stale_given_up: Counter,
    /// Mutations answered with their first result.
    pub duplicates: Counter,
    /// Store calls that failed, and were made again.
    pub store_errors: Counter,
    /// Mutations turned away because too many wait in their space.
    pub space_full: Counter,
    /// Mutations turned away because too many wait on the node.
    pub node_full: Counter,
    /// Units in conflict that were written over another writer's.
    pub conflicts_overwritten: Counter,
    /// Units in conflict that were left out.
    pub conflicts_skipped: Counter,
    /// Mutations that a conflict rejected.
    pub conflicts_rejected: Counter,
    /// Mutations refused, by code.
    pub refusals: Refusals,
    /// Mutations submitted and not answered.
    pub waiting: Counter,
    /// About how many bytes those take.
    pub waiting_bytes: Counter,
}

/// One number.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// The number now.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    pub(super) fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    pub(super) fn sub(&self, n: u64) {
        self.0.fetch_sub(n, Ordering::Relaxed);
    }
}

/// One number a code.
#[derive(Debug)]
pub struct Refusals(Vec<Counter>);

impl Default for Refusals {
    fn default() -> Self {
        Self(TABLE.iter().map(|_| Counter::default()).collect())
    }
}

impl Refusals {
    /// How many were refused with this code.
    pub fn of(&self, code: Code) -> u64 {
        self.0[code as usize].get()
    }

    pub(super) fn count(&self, code: Code) {
        self.0[code as usize].add(1);
    }
}
