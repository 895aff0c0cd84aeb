//! What the node counts. A gauge is a guard, so that it cannot be left wrong.

mod table;

pub use table::*;

use crate::engine::EngineStats;
use crate::store::Store;
use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, Opts, Registry, TextEncoder};
use std::sync::Arc;
use tidegate_protocol::ServerMessage;

/// The node's metrics, each registered once.
pub struct Metrics {
    registry: Registry,
    /// Open WebSocket connections.
    pub connections: IntGauge,
    /// Connections that have not been welcomed yet.
    pub handshakes: IntGauge,
    /// Errors of accepting connections: [`ACCEPT_ERRORS`].
    pub accept_errors: IntCounterVec,
    /// HTTP requests and connections refused: [`REFUSED`].
    pub refused: IntCounterVec,
    /// Connections refused without a word.
    pub untold: IntCounter,
    /// Connections that ended in the middle of HTTP: [`HTTP_ERRORS`].
    pub http_errors: IntCounterVec,
    /// Connections that had not been welcomed and had to make room for others.
    pub evicted: IntCounter,
    /// WebSocket connections that ended, each once: [`CLOSES`].
    pub closes: IntCounterVec,
    /// Errors that clients were told and that do not end the connection: [`ERRORS`]; see [`Metrics::told`].
    pub errors: IntCounterVec,
    /// Live subscriptions and running catch-ups.
    pub subscriptions: IntGauge,
    /// Spaces that the hub follows.
    pub spaces: IntGauge,
    /// Catch-ups by mode: [`CATCH_UPS`].
    pub catch_ups: IntCounterVec,
    /// Subscriptions that are catching up, or wait for it.
    pub catching_up: IntGauge,
    /// Why a position was not taken up: [`RESETS`].
    pub resets: IntCounterVec,
    /// Subscriptions that fell behind because their socket takes too little.
    pub behind_slow: IntCounter,
    /// Subscriptions that the node could not bring what it heard, since it came too fast.
    pub behind_trimmed: IntCounter,
    /// Subscriptions that stood on a lost history.
    pub behind_lost: IntCounter,
    /// Commits handed to the hub.
    pub commits: IntCounter,
    /// Commits that the hub read from the log because it had missed them.
    pub gap_commits: IntCounter,
    /// Gaps that were filled from the log.
    pub gaps_filled: IntCounter,
    /// Commits that came before those that precede them, and were not kept.
    pub ahead_dropped: IntCounter,
    /// Spaces of which a head check found the store elsewhere than the hub.
    pub head_mismatches: IntCounter,
    /// Spaces of which a head check could read nothing, since they are damaged.
    pub heads_damaged: IntCounter,
    /// From another node's commits to their delivery.
    pub delivery_lag: Histogram,
    /// Encodings of a change: once per commit, form and view.
    pub encodes: IntCounter,
    /// Frames with a change handed to connections.
    pub deliveries: IntCounter,
    /// Calls that wrote to a socket.
    pub sends: IntCounter,
    /// Bytes that wait for sockets that would block, with what keeping them takes.
    pub queued: IntGauge,
    /// Frames that were to be sent and were not: [`DROPPED`].
    pub dropped: Dropped,
    /// Frames compressed: a change once for all who get it, other messages for each.
    pub compressions: IntCounter,
    /// Bytes by which that made them shorter; sent to many, they count once.
    pub compression_saved: IntCounter,
    /// Mutations answered: [`WRITES`].
    pub writes: IntCounterVec,
    /// Those of them that were applied: looking a label up takes longer than counting.
    pub acks: IntCounter,
}

impl Default for Metrics {
    fn default() -> Self {
        let registry = Registry::new();
        let gauge = |name: &str| {
            let gauge = IntGauge::new(name, row(name).help).expect("a constant name");
            registry.register(Box::new(gauge.clone())).expect("registered once");
            gauge
        };
        let counter = |name: &str| {
            let counter = IntCounter::new(name, row(name).help).expect("a constant name");
            registry.register(Box::new(counter.clone())).expect("registered once");
            counter
        };
        let counters = |name: &str| {
            let counters = by_label(row(name));
            registry.register(Box::new(counters.clone())).expect("registered once");
            counters
        };
        let delivery_lag = histogram("tidegate_delivery_lag_seconds");
        registry
            .register(Box::new(delivery_lag.clone()))
            .expect("registered once");
        let behind = counters("tidegate_behind_total");
        let writes = counters("tidegate_writes_total");
        Self {
            connections: gauge("tidegate_connections"),
            handshakes: gauge("tidegate_handshakes"),
            accept_errors: counters("tidegate_accept_errors_total"),
            refused: counters("tidegate_refused_total"),
            untold: counter("tidegate_untold_total"),
            http_errors: counters("tidegate_http_errors_total"),
            evicted: counter("tidegate_evicted_total"),
            closes: counters("tidegate_closes_total"),
            errors: counters("tidegate_errors_total"),
            subscriptions: gauge("tidegate_subscriptions"),
            spaces: gauge("tidegate_spaces"),
            catch_ups: counters("tidegate_catch_ups_total"),
            resets: counters("tidegate_resets_total"),
            behind_slow: behind.with_label_values(&["slow"]),
            behind_trimmed: behind.with_label_values(&["trimmed"]),
            behind_lost: behind.with_label_values(&["lost"]),
            commits: counter("tidegate_commits_total"),
            gap_commits: counter("tidegate_gap_commits_total"),
            gaps_filled: counter("tidegate_gaps_filled_total"),
            ahead_dropped: counter("tidegate_ahead_dropped_total"),
            head_mismatches: counter("tidegate_head_mismatches_total"),
            heads_damaged: counter("tidegate_heads_damaged_total"),
            delivery_lag,
            encodes: counter("tidegate_encodes_total"),
            deliveries: counter("tidegate_deliveries_total"),
            sends: counter("tidegate_sends_total"),
            queued: gauge("tidegate_queued_bytes"),
            dropped: Dropped::of(
                &counters("tidegate_dropped_frames_total"),
                &counters("tidegate_dropped_bytes_total"),
            ),
            catching_up: gauge("tidegate_catching_up"),
            compressions: counter("tidegate_compressions_total"),
            compression_saved: counter("tidegate_compression_saved_bytes_total"),
            acks: writes.with_label_values(&["ack"]),
            writes,
            registry,
        }
    }
}

fn histogram(name: &str) -> Histogram {
    let options = HistogramOpts::new(name, row(name).help).buckets(TIMES.to_vec());
    Histogram::with_opts(options).expect("a constant name")
}

/// Counters of a family with a label, one for each of its values: what has not happened shows as 0.
fn by_label(row: &Row) -> IntCounterVec {
    let (label, values) = row.label.unwrap_or_default();
    let counters = IntCounterVec::new(Opts::new(row.name, row.help), &[label]).expect("a constant name");
    for value in values {
        counters.with_label_values(&[value]);
    }
    counters
}

/// Why frames are dropped, in the order of [`DROPPED`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Drops {
    /// Of a subscription that falls behind.
    Cut,
    /// The queue went over its bound.
    Overflow,
    /// The connection is closed since its socket takes nothing.
    Stalled,
    /// The socket failed.
    Broken,
    /// The connection ended before they had gone out.
    Unflushed,
    /// They came when nothing more could be sent.
    Ended,
}

/// Frames that were to be sent and were not, by [`Drops`].
#[derive(Clone, Debug)]
pub struct Dropped(Vec<(IntCounter, IntCounter)>);

impl Dropped {
    fn of(frames: &IntCounterVec, bytes: &IntCounterVec) -> Self {
        let each = |reason: &&str| (frames.with_label_values(&[reason]), bytes.with_label_values(&[reason]));
        Self(DROPPED.iter().map(each).collect())
    }

    /// Counts some, with their bytes.
    pub fn count(&self, why: Drops, frames: usize, bytes: usize) {
        let (all_frames, all_bytes) = &self.0[why as usize];
        all_frames.inc_by(frames as u64);
        all_bytes.inc_by(bytes as u64);
    }

    /// How many frames were, and how many bytes.
    pub fn get(&self, why: Drops) -> (u64, u64) {
        let (frames, bytes) = &self.0[why as usize];
        (frames.get(), bytes.get())
    }
}

/// On no page.
impl Default for Dropped {
    fn default() -> Self {
        let counters = |name| by_label(row(name));
        Self::of(
            &counters("tidegate_dropped_frames_total"),
            &counters("tidegate_dropped_bytes_total"),
        )
    }
}

impl Metrics {
    /// All of them in Prometheus' text form.
    pub fn render(&self) -> String {
        TextEncoder::new()
            .encode_to_string(&self.registry.gather())
            .unwrap_or_default()
    }

    /// Counts a message to a client that tells an error.
    pub fn told(&self, message: &ServerMessage) {
        if let ServerMessage::Error { code, .. } | ServerMessage::Denied { code, .. } = message {
            self.errors.with_label_values(&[code.name()]).inc();
        }
    }
}

/// A number that something else counts, read when the metrics are asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Reading {
    /// The metric's name, one of [`TABLE`].
    pub name: &'static str,
    /// The label's value, if it has a label.
    pub label: Option<&'static str>,
    /// The number.
    pub value: u64,
}

impl Reading {
    /// A reading of a metric without a label.
    pub const fn new(name: &'static str, value: u64) -> Self {
        Self {
            name,
            label: None,
            value,
        }
    }

    /// One of a metric with a label. Those of one metric have to follow each other.
    pub const fn of(name: &'static str, label: &'static str, value: u64) -> Self {
        Self {
            name,
            label: Some(label),
            value,
        }
    }
}

/// The family of readings that have one name.
fn family(readings: &[Reading]) -> (Vec<Desc>, Vec<MetricFamily>) {
    let row = row(readings[0].name);
    if row.label.is_some() {
        let counters = by_label(row);
        for reading in readings {
            let label = reading.label.unwrap_or_default();
            counters.with_label_values(&[label]).inc_by(reading.value);
        }
        return parts(&counters);
    }
    let value = readings.iter().map(|reading| reading.value).sum::<u64>();
    if row.is_counter() {
        let counter = IntCounter::new(row.name, row.help).expect("a constant name");
        counter.inc_by(value);
        parts(&counter)
    } else {
        let gauge = IntGauge::new(row.name, row.help).expect("a constant name");
        gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
        parts(&gauge)
    }
}

fn parts(collector: &impl Collector) -> (Vec<Desc>, Vec<MetricFamily>) {
    (collector.desc().into_iter().cloned().collect(), collector.collect())
}

fn families(readings: &[Reading]) -> impl Iterator<Item = (Vec<Desc>, Vec<MetricFamily>)> {
    readings.chunk_by(|a, b| a.name == b.name).map(family)
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
        families(&(self.read)()).flat_map(|(_, families)| families).collect()
    }
}

impl Metrics {
    /// Shows what engine and store count themselves. Once.
    pub fn watch(&self, engine: Arc<EngineStats>, store: Arc<dyn Store>) {
        self.add(move || {
            let e = &engine;
            vec![
                Reading::new("tidegate_engine_waiting", e.waiting.get()),
                Reading::new("tidegate_engine_waiting_bytes", e.waiting_bytes.get()),
                Reading::of("tidegate_engine_queue_full_total", "space", e.space_full.get()),
                Reading::of("tidegate_engine_queue_full_total", "node", e.node_full.get()),
                Reading::new("tidegate_engine_commits_total", e.commits.get()),
                Reading::new("tidegate_engine_groups_total", e.groups.get()),
                Reading::new("tidegate_engine_stale_total", e.stale_replans.get()),
                Reading::new("tidegate_engine_stale_given_up_total", e.stale_given_up.get()),
                Reading::new("tidegate_engine_duplicates_total", e.duplicates.get()),
                Reading::new("tidegate_engine_store_errors_total", e.store_errors.get()),
                Reading::new("tidegate_conflicts_overwritten_total", e.conflicts_overwritten.get()),
                Reading::new("tidegate_conflicts_skipped_total", e.conflicts_skipped.get()),
                Reading::new("tidegate_conflicts_rejected_total", e.conflicts_rejected.get()),
            ]
        });
        self.add(move || store.readings());
    }

    fn add(&self, read: impl Fn() -> Vec<Reading> + Send + Sync + 'static) {
        let descs: Vec<_> = families(&read()).flat_map(|(descs, _)| descs).collect();
        if !descs.is_empty() {
            let registered = self.registry.register(Box::new(Read { read, descs }));
            registered.expect("constant names, each once");
        }
    }
}

/// Bounds of times, seconds: from a fast call on the same machine to what nobody waits for.
const TIMES: [f64; 12] = [
    0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0,
];

/// What the store on Redis and the bus count.
pub struct RedisMetrics {
    /// Calls that were not done: [`REDIS_ERRORS`].
    pub errors: IntCounterVec,
    /// Times of calls.
    pub seconds: Histogram,
    /// Open connections for calls.
    pub connections: IntGauge,
    /// Whether the bus is connected.
    pub bus_connected: IntGauge,
    /// Connections of the bus that ended.
    pub bus_breaks: IntCounter,
    /// Messages of the bus that were not kept.
    pub bus_cut: IntCounter,
}

impl RedisMetrics {
    /// Shows them on a page. Once a page.
    pub fn new(metrics: &Metrics) -> Arc<Self> {
        let gauge = |name: &str| IntGauge::new(name, row(name).help).expect("a constant name");
        let counter = |name: &str| IntCounter::new(name, row(name).help).expect("a constant name");
        let all = Self {
            errors: by_label(row("tidegate_redis_errors_total")),
            seconds: histogram("tidegate_redis_seconds"),
            connections: gauge("tidegate_redis_connections"),
            bus_connected: gauge("tidegate_bus_connected"),
            bus_breaks: counter("tidegate_bus_breaks_total"),
            bus_cut: counter("tidegate_bus_cut_total"),
        };
        let collectors: [Box<dyn Collector>; 6] = [
            Box::new(all.errors.clone()),
            Box::new(all.seconds.clone()),
            Box::new(all.connections.clone()),
            Box::new(all.bus_connected.clone()),
            Box::new(all.bus_breaks.clone()),
            Box::new(all.bus_cut.clone()),
        ];
        for collector in collectors {
            metrics.registry.register(collector).expect("registered once");
        }
        Arc::new(all)
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
