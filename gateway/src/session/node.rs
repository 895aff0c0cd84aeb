//! What all connections of a node share: its parts, bounds and times, the sweep of what is due, the drain.

use super::conn::Conn;
use super::machine::{Now, SessionConfig};
use crate::auth::Authoriser;
use crate::engine::Engine;
use crate::env::Env;
use crate::hub::Hub;
use crate::metrics::Metrics;
use crate::outbox::{Bounds, Budget};
use crate::store::Store;
use dashmap::DashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;
use tidegate_protocol::{Limits, deflate};
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Connections are sent away in so many steps, or fewer where that would be less at a time than these.
const DRAIN_STEPS: u32 = 20;
const DRAIN_AT_ONCE: usize = 100;

/// Bounds and times of a node's connections.
#[derive(Clone, Debug)]
pub struct NodeConfig {
    /// The limits in force.
    pub limits: Limits,
    /// A catch-up waits while more than this is queued on its connection; and where the socket takes no more, live
    /// subscriptions fall behind: the one with most waiting first.
    pub soft_bytes: usize,
    /// Over this a connection is closed.
    pub hard_bytes: usize,
    /// Bytes that may wait on all connections together. Over it, a connection whose socket would block counts as one
    /// that has reached `soft_bytes`.
    pub queued_bytes: usize,
    /// A connection that takes nothing of what waits for it for so long is closed.
    pub stall: Duration,
    /// Mutations of a connection that are not answered yet, one more for every 4 KiB that one has; over it, the connection
    /// is not read. So one connection cannot fill the node's queues for all.
    pub in_flight: usize,
    /// Reads of the store for catch-ups and `get` at a time, on the node; the others wait.
    pub catch_ups: usize,
    /// Subscriptions that are catching up or wait for it, on the node; over it, a new one is told to come back.
    pub catching_up: usize,
    /// How long a closing connection may take to be flushed.
    pub flush: Duration,
    /// After so long, a tenth more or less, a connection is asked to go elsewhere: so load moves to new nodes. `None`: never.
    pub age: Option<Duration>,
    /// Pages, commits of a catch-up and answers to `get` of so many bytes are compressed for a client that takes that.
    pub compress_bytes: usize,
}

impl Default for NodeConfig {
    fn default() -> Self {
        Self {
            limits: Limits::default(),
            soft_bytes: 512 << 10,
            hard_bytes: 8 << 20,
            queued_bytes: 256 << 20,
            stall: Duration::from_secs(30),
            in_flight: 1_024,
            catch_ups: 64,
            catching_up: 50_000,
            flush: Duration::from_secs(5),
            age: None,
            compress_bytes: deflate::THRESHOLD,
        }
    }
}

impl NodeConfig {
    /// A node's budget for what waits on its connections.
    pub fn budget(&self, metrics: &Metrics) -> Arc<Budget> {
        Arc::new(Budget {
            limit: self.queued_bytes,
            queued: metrics.queued.clone(),
            sends: metrics.sends.clone(),
            dropped: metrics.dropped.clone(),
        })
    }

    pub(super) fn bounds(&self) -> Bounds {
        Bounds {
            soft: self.soft_bytes,
            hard: self.hard_bytes,
        }
    }
}

/// What all connections of a node share.
pub struct Node {
    /// The engine.
    pub engine: Arc<Engine>,
    /// The hub.
    pub hub: Arc<Hub>,
    /// The store.
    pub store: Arc<dyn Store>,
    /// Who may do what.
    pub authoriser: Arc<dyn Authoriser>,
    /// Clock and randomness.
    pub env: Arc<dyn Env>,
    /// Metrics.
    pub metrics: Arc<Metrics>,
    /// Bounds.
    pub config: NodeConfig,
    /// For every session.
    pub session: Arc<SessionConfig>,
    /// What waits on its connections.
    pub budget: Arc<Budget>,
    /// One permit a read of the store for a catch-up or a `get`.
    pub catch_ups: Semaphore,
    /// Set when the node is about to stop: it is not ready any more, and still takes connections.
    pub stopping: CancellationToken,
    /// Set when it takes no more.
    pub draining: CancellationToken,
    /// Start of the monotonic clock.
    pub started: Instant,
    /// Open connections, for the sweep of deadlines.
    pub connections: DashMap<u64, Weak<Conn>>,
    /// Number of the last connection.
    pub last_id: AtomicU64,
}

impl Node {
    pub(super) fn now(&self) -> Now {
        Now {
            mono: self.mono(Instant::now()),
            wall: self.env.now_ms(),
        }
    }

    pub(super) fn mono(&self, at: Instant) -> u64 {
        u64::try_from(at.saturating_duration_since(self.started).as_millis()).unwrap_or(u64::MAX)
    }

    /// Sends all connections away, some at a time, so that not all of them come to other nodes at once; the last begin to
    /// leave when `over` has passed. Those that come from now on leave at once.
    pub async fn drain(self: Arc<Self>, over: Duration) {
        self.stopping.cancel();
        self.draining.cancel();
        let mut all: Vec<_> = self.connections.iter().filter_map(|entry| entry.upgrade()).collect();
        // The map's order is another in every process.
        all.sort_unstable_by_key(|conn| conn.id);
        let some = all.len().div_ceil(DRAIN_STEPS as usize).max(DRAIN_AT_ONCE);
        let steps = all.len().div_ceil(some);
        for (step, conns) in all.chunks(some).enumerate() {
            for conn in conns {
                conn.leave_at.store(0, Ordering::Relaxed);
                conn.wake();
            }
            if step + 1 < steps {
                tokio::time::sleep(over / DRAIN_STEPS).await;
            }
        }
    }

    /// When a connection that begins now is asked to go elsewhere.
    pub(super) fn leave_at(&self) -> u64 {
        let Some(age) = self.config.age else { return u64::MAX };
        let age = u64::try_from(age.as_millis()).unwrap_or(u64::MAX);
        let spread = self.env.random() % (age / 5).max(1);
        let age = age.saturating_sub(age / 10).saturating_add(spread);
        self.mono(Instant::now()).saturating_add(age)
    }

    /// Wakes every connection whose deadline has passed, or that takes nothing; one sweep for all in place of a timer each.
    pub async fn sweep(self: Arc<Self>, stop: CancellationToken) {
        let mut ticks = tokio::time::interval(Duration::from_millis(500));
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        while stop.run_until_cancelled(ticks.tick()).await.is_some() {
            let now = self.now().mono;
            let stall = self.config.stall;
            let late = |conn: &Arc<Conn>| conn.due.load(Ordering::Relaxed) <= now || conn.outbox.stalled() >= stall;
            let open = self.connections.iter();
            let mut due: Vec<_> = open.filter_map(|entry| entry.upgrade().filter(late)).collect();
            // The map's order is another in every process.
            due.sort_unstable_by_key(|conn| conn.id);
            due.iter().for_each(|conn| conn.wake());
        }
    }
}
