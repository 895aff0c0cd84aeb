//! What the node counts. A gauge is a guard, so that it cannot be left wrong.

use crate::engine::EngineStats;
use crate::store::Store;
use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{IntCounter, IntCounterVec, IntGauge, Opts, Registry, TextEncoder};
use std::sync::Arc;

/// The node's metrics, each registered once.
pub struct Metrics {
    registry: Registry,
    /// Open WebSocket connections.
    pub connections: IntGauge,
    /// Live subscriptions and running catch-ups.
    pub subscriptions: IntGauge,
    /// Spaces that the hub follows.
    pub spaces: IntGauge,
    /// Bytes that wait for sockets that would block, with what keeping them takes.
    pub queued: IntGauge,
    /// Calls that wrote to a socket.
    pub sends: IntCounter,
    /// Frames with a change handed to connections.
    pub deliveries: IntCounter,
    /// Encodings of a change: once per commit, form and view.
    pub encodes: IntCounter,
    /// Frames compressed: a change once for all who get it, other messages for each.
    pub compressions: IntCounter,
    /// Bytes by which that made them shorter; sent to many, they count once.
    pub compression_saved: IntCounter,
    /// Commits handed to the hub.
    pub commits: IntCounter,
    /// Commits that the hub read from the log because it had missed them.
    pub gap_commits: IntCounter,
    /// Catch-ups by mode: `log`, `delta`, `reset`.
    pub catch_ups: IntCounterVec,
    /// Subscriptions that are catching up, or wait for it.
    pub catching_up: IntGauge,
    /// Why a position was not taken up: `lost`, `below_floor`, `foreign_cursor`, `view`.
    pub resets: IntCounterVec,
    /// Subscriptions that fell behind because their socket takes too little.
    pub behind_slow: IntCounter,
    /// Subscriptions that the node could not bring what it heard, since it came too fast.
    pub behind_trimmed: IntCounter,
    /// Subscriptions that stood on a lost history.
    pub behind_lost: IntCounter,
    /// Connections that the node closed, by the error's code.
    pub closes: IntCounterVec,
    /// Mutations answered: `ack`, or the refusal's code.
    pub writes: IntCounterVec,
    /// Connections that have not been welcomed yet.
    pub handshakes: IntGauge,
    /// Of these, those that had to make room for others.
    pub evicted: IntCounter,
    /// Errors of accepting connections: `files`, `memory`, `connection` (of that one alone), `other`.
    pub accept_errors: IntCounterVec,
    /// HTTP requests refused before a WebSocket was there, by reason.
    pub refused: IntCounterVec,
}

impl Default for Metrics {
    fn default() -> Self {
        let registry = Registry::new();
        let gauge = |name: &str, help: &str| {
            let gauge = IntGauge::new(name, help).expect("a constant name");
            registry.register(Box::new(gauge.clone())).expect("registered once");
            gauge
        };
        let counter = |name: &str, help: &str| {
            let counter = IntCounter::new(name, help).expect("a constant name");
            registry.register(Box::new(counter.clone())).expect("registered once");
            counter
        };
        let counters = |name: &str, help: &str, label: &str| {
            let counters = IntCounterVec::new(Opts::new(name, help), &[label]).expect("a constant name");
            registry.register(Box::new(counters.clone())).expect("registered once");
            counters
        };
        let behind = counters(
            "tidegate_behind_total",
            "Live subscriptions that had to catch up anew.",
            "reason",
        );
        Self {
            behind_slow: behind.with_label_values(&["slow"]),
            behind_trimmed: behind.with_label_values(&["trimmed"]),
            behind_lost: behind.with_label_values(&["lost"]),
            connections: gauge("tidegate_connections", "Open WebSocket connections."),
            subscriptions: gauge("tidegate_subscriptions", "Live subscriptions and running catch-ups."),
            spaces: gauge("tidegate_spaces", "Spaces that this node follows."),
            queued: gauge("tidegate_queued_bytes", "Bytes that wait for sockets that would block."),
            sends: counter("tidegate_sends_total", "Calls that wrote to a socket."),
            deliveries: counter(
                "tidegate_deliveries_total",
                "Frames with a change handed to connections.",
            ),
            encodes: counter(
                "tidegate_encodes_total",
                "Encodings of a change: once per commit, form and view.",
            ),
            compressions: counter(
                "tidegate_compressions_total",
                "Frames compressed: a change once for all who get it.",
            ),
            compression_saved: counter(
                "tidegate_compression_saved_bytes_total",
                "Bytes by which compressing frames made them shorter.",
            ),
            commits: counter("tidegate_commits_total", "Commits handed to the hub."),
            gap_commits: counter(
                "tidegate_gap_commits_total",
                "Commits read from the log because they were missed.",
            ),
            catch_ups: counters("tidegate_catch_ups_total", "Catch-ups begun.", "mode"),
            catching_up: gauge(
                "tidegate_catching_up",
                "Subscriptions that are catching up, or wait for it.",
            ),
            resets: counters(
                "tidegate_resets_total",
                "Positions that could not be taken up.",
                "reason",
            ),
            closes: counters("tidegate_closes_total", "Connections that the node closed.", "code"),
            writes: counters("tidegate_writes_total", "Mutations answered.", "result"),
            handshakes: gauge("tidegate_handshakes", "Connections that have not been welcomed yet."),
            evicted: counter(
                "tidegate_evicted_total",
                "Connections that had not been welcomed and made room for others.",
            ),
            accept_errors: counters(
                "tidegate_accept_errors_total",
                "Errors of accepting connections.",
                "reason",
            ),
            refused: counters("tidegate_refused_total", "HTTP requests refused.", "reason"),
            registry,
        }
    }
}

impl Metrics {
    /// All of them in Prometheus' text form.
    pub fn render(&self) -> String {
        TextEncoder::new()
            .encode_to_string(&self.registry.gather())
            .unwrap_or_default()
    }
}

/// A number that something else counts, read when the metrics are asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Reading {
    /// The metric's name; one that ends in `_total` never goes down.
    pub name: &'static str,
    /// What it counts.
    pub help: &'static str,
    /// The number.
    pub value: u64,
}

impl Reading {
    /// A reading.
    pub const fn new(name: &'static str, value: u64, help: &'static str) -> Self {
        Self { name, help, value }
    }

    fn families(self) -> (Vec<Desc>, Vec<MetricFamily>) {
        if self.name.ends_with("_total") {
            let counter = IntCounter::new(self.name, self.help).expect("a constant name");
            counter.inc_by(self.value);
            (counter.desc().into_iter().cloned().collect(), counter.collect())
        } else {
            let gauge = IntGauge::new(self.name, self.help).expect("a constant name");
            gauge.set(i64::try_from(self.value).unwrap_or(i64::MAX));
            (gauge.desc().into_iter().cloned().collect(), gauge.collect())
        }
    }
}

/// Readings as a part of the registry.
struct Read<F> {
    read: F,
    descs: Vec<Desc>,
}

impl<F: Fn() -> Vec<Reading> + Send + Sync> Collector for Read<F> {
    fn desc(&self) -> Vec<&Desc> {
        self.descs.iter().collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        (self.read)()
            .into_iter()
            .flat_map(|reading| reading.families().1)
            .collect()
    }
}

impl Metrics {
    /// Shows what engine and store count themselves. Once.
    pub fn watch(&self, engine: Arc<EngineStats>, store: Arc<dyn Store>) {
        self.add(move || {
            let e = &engine;
            vec![
                Reading::new("tidegate_engine_commits_total", e.commits.get(), "Mutations applied."),
                Reading::new(
                    "tidegate_engine_groups_total",
                    e.groups.get(),
                    "Store calls that wrote.",
                ),
                Reading::new(
                    "tidegate_engine_stale_total",
                    e.stale_replans.get(),
                    "Plans made again.",
                ),
                Reading::new(
                    "tidegate_engine_stale_given_up_total",
                    e.stale_given_up.get(),
                    "Plans given up.",
                ),
                Reading::new(
                    "tidegate_engine_duplicates_total",
                    e.duplicates.get(),
                    "Mutations answered again.",
                ),
                Reading::new(
                    "tidegate_engine_store_errors_total",
                    e.store_errors.get(),
                    "Store calls that failed.",
                ),
                Reading::new(
                    "tidegate_engine_queue_full_total",
                    e.queue_full.get(),
                    "Mutations turned away.",
                ),
                Reading::new(
                    "tidegate_conflicts_overwritten_total",
                    e.conflicts_overwritten.get(),
                    "Units in conflict written over another writer's.",
                ),
                Reading::new(
                    "tidegate_conflicts_skipped_total",
                    e.conflicts_skipped.get(),
                    "Units in conflict left out.",
                ),
                Reading::new(
                    "tidegate_conflicts_rejected_total",
                    e.conflicts_rejected.get(),
                    "Mutations rejected by a conflict.",
                ),
                Reading::new(
                    "tidegate_engine_waiting",
                    e.waiting.get(),
                    "Mutations not answered yet.",
                ),
                Reading::new(
                    "tidegate_engine_waiting_bytes",
                    e.waiting_bytes.get(),
                    "About their bytes.",
                ),
            ]
        });
        self.add(move || store.readings());
    }

    fn add(&self, read: impl Fn() -> Vec<Reading> + Send + Sync + 'static) {
        let descs: Vec<_> = read().into_iter().flat_map(|reading| reading.families().0).collect();
        if !descs.is_empty() {
            let registered = self.registry.register(Box::new(Read { read, descs }));
            registered.expect("constant names, each once");
        }
    }
}

/// Counts one as long as it lives.
pub struct Gauged(IntGauge);

impl Gauged {
    /// One more.
    pub fn new(gauge: &IntGauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for Gauged {
    fn drop(&mut self) {
        self.0.dec();
    }
}
