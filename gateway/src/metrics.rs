//! What the node counts. A gauge is a guard, so that it cannot be left wrong.

use prometheus::{IntCounter, IntCounterVec, IntGauge, Opts, Registry, TextEncoder};

/// The node's metrics, each registered once.
pub struct Metrics {
    registry: Registry,
    /// Open WebSocket connections.
    pub connections: IntGauge,
    /// Live subscriptions and running catch-ups.
    pub subscriptions: IntGauge,
    /// Spaces that the hub follows.
    pub spaces: IntGauge,
    /// Frames with a change handed to connections.
    pub deliveries: IntCounter,
    /// Encodings of a change: once per commit, form and view.
    pub encodes: IntCounter,
    /// Commits handed to the hub.
    pub commits: IntCounter,
    /// Commits that the hub read from the log because it had missed them.
    pub gap_commits: IntCounter,
    /// Catch-ups by mode: `log`, `delta`, `reset`.
    pub catch_ups: IntCounterVec,
    /// Why a position was not taken up: `lost`, `below_floor`, `foreign_cursor`, `view`.
    pub resets: IntCounterVec,
    /// Connections that the node closed, by the error's code.
    pub closes: IntCounterVec,
    /// Mutations answered: `ack`, or the refusal's code.
    pub writes: IntCounterVec,
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
        Self {
            connections: gauge("tidegate_connections", "Open WebSocket connections."),
            subscriptions: gauge("tidegate_subscriptions", "Live subscriptions and running catch-ups."),
            spaces: gauge("tidegate_spaces", "Spaces that this node follows."),
            deliveries: counter(
                "tidegate_deliveries_total",
                "Frames with a change handed to connections.",
            ),
            encodes: counter(
                "tidegate_encodes_total",
                "Encodings of a change: once per commit, form and view.",
            ),
            commits: counter("tidegate_commits_total", "Commits handed to the hub."),
            gap_commits: counter(
                "tidegate_gap_commits_total",
                "Commits read from the log because they were missed.",
            ),
            catch_ups: counters("tidegate_catch_ups_total", "Catch-ups begun.", "mode"),
            resets: counters(
                "tidegate_resets_total",
                "Positions that could not be taken up.",
                "reason",
            ),
            closes: counters("tidegate_closes_total", "Connections that the node closed.", "code"),
            writes: counters("tidegate_writes_total", "Mutations answered.", "result"),
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
