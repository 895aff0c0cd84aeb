//! Every metric moves: gateways with small bounds are driven through all that is counted, then the pages are walked.

mod steps;

use crate::access::http;
use crate::support::*;
use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};
use tidegate::metrics::{Row, TABLE};

/// What no client can bring about, why, and the test that moves it: its file, and its name.
const ELSEWHERE: &[(&str, &str, &str, &str)] = &[
    (
        "tidegate_behind_total{reason=\"trimmed\"}",
        "a gateway's own writers wait before it comes to that; others would have to publish faster than it brings",
        "gateway/src/hub/tests/rounds.rs",
        "who_cannot_be_brought_what_the_ring_has_forgotten_catches_up",
    ),
    (
        "tidegate_refused_total{reason=\"catching_up\"}",
        "the store has to be held while many subscribe",
        "gateway/tests/e2e/admission.rs",
        "more_subscriptions_than_can_catch_up_are_told_to_come_back_and_all_are_served_in_the_end",
    ),
    (
        "tidegate_refused_total{reason=\"peer\"}",
        "dev mode listens on a loopback address alone, which nobody else can reach",
        "gateway/src/server/tests.rs",
        "what_accepting_fails_of_is_counted_and_who_comes_from_elsewhere_to_dev_mode",
    ),
    (
        "tidegate_untold_total",
        "it takes more in a second than a busy machine may let in",
        "gateway/src/server/tests.rs",
        "of_those_for_whom_there_is_no_room_so_many_are_told_at_a_time_and_the_others_counted",
    ),
    (
        "tidegate_accept_errors_total",
        "the operating system gives no such error on request",
        "gateway/src/server/tests.rs",
        "what_accepting_fails_of_is_counted_and_who_comes_from_elsewhere_to_dev_mode",
    ),
    (
        "tidegate_store_write_failures_total",
        "it takes a disk that fails",
        "gateway/tests/faults/full.rs",
        "while_the_disk_is_full_or_fails_reads_go_on_and_afterwards_writes_do",
    ),
    (
        "tidegate_store_reopened_total",
        "it takes a disk that fails",
        "gateway/tests/faults/full.rs",
        "while_the_disk_is_full_or_fails_reads_go_on_and_afterwards_writes_do",
    ),
    (
        "tidegate_store_damaged_spaces",
        "it takes a record that cannot be read",
        "gateway/src/store/embedded/tests/collection.rs",
        "a_space_of_which_something_cannot_be_read_holds_up_no_other",
    ),
    (
        "tidegate_heads_damaged_total",
        "it takes somebody who writes to a space's keys",
        "gateway/tests/cluster/wiped.rs",
        "a_space_of_which_nothing_can_be_read_holds_up_no_other_and_no_node",
    ),
    (
        "tidegate_redis_errors_total{kind=\"loading\"}",
        "a server that holds much, and is starting",
        "gateway/src/store/redis/link.rs",
        "each_refusal_has_its_kind",
    ),
    (
        "tidegate_redis_errors_total{kind=\"misconf\"}",
        "it takes a disk that fails",
        "gateway/src/store/redis/link.rs",
        "each_refusal_has_its_kind",
    ),
    (
        "tidegate_redis_errors_total{kind=\"busy\"}",
        "it takes a script that runs for seconds",
        "gateway/src/store/redis/link.rs",
        "each_refusal_has_its_kind",
    ),
    (
        "tidegate_redis_errors_total{kind=\"other\"}",
        "what nobody thought of",
        "gateway/src/store/redis/link.rs",
        "each_refusal_has_its_kind",
    ),
    (
        "tidegate_bus_cut_total",
        "a node takes in faster than a test can publish",
        "gateway/src/bus/inbox.rs",
        "arrivals_come_in_order_and_a_flood_is_cut_to_nothing",
    ),
];

/// Gauges that are guards: at rest they are 0.
const GUARDS: [&str; 7] = [
    "tidegate_catching_up",
    "tidegate_connections",
    "tidegate_subscriptions",
    "tidegate_spaces",
    "tidegate_queued_bytes",
    "tidegate_engine_waiting",
    "tidegate_engine_waiting_bytes",
];

/// The largest number that each series was seen with.
#[derive(Default)]
struct Seen(parking_lot::Mutex<BTreeMap<String, u64>>);

impl Seen {
    /// Reads a page.
    async fn page(&self, gateway: &Gateway) -> BTreeMap<String, u64> {
        let answer = http(gateway, "/metrics", "Host: localhost\r\n").await;
        let (_, text) = answer.split_once("\r\n\r\n").expect("a page");
        self.take(text)
    }

    fn take(&self, text: &str) -> BTreeMap<String, u64> {
        // Of a histogram the count is enough.
        let lines = text
            .lines()
            .filter(|line| !line.starts_with('#') && !line.contains("_bucket{"));
        let page: BTreeMap<_, _> = lines
            .filter_map(|line| line.rsplit_once(' '))
            .filter(|(series, _)| !series.ends_with("_seconds_sum"))
            .filter_map(|(series, value)| Some((series.to_owned(), value.parse().ok()?)))
            .collect();
        let mut seen = self.0.lock();
        for (series, value) in &page {
            let most = seen.entry(series.clone()).or_default();
            *most = (*most).max(*value);
        }
        page
    }

    /// Reads pages until a series has moved.
    async fn moves(&self, gateway: &Gateway, series: &str) {
        let began = Instant::now();
        while self.page(gateway).await.get(series).is_none_or(|value| *value == 0) {
            assert!(began.elapsed() < PATIENCE, "{series} does not move");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Reads pages until nobody is left on a gateway: all guards are 0, but for the asking itself.
    async fn rests(&self, gateway: &Gateway) {
        let began = Instant::now();
        loop {
            let page = self.page(gateway).await;
            let held: Vec<_> = GUARDS.iter().filter(|gauge| page[**gauge] != 0).collect();
            if held.is_empty() && page["tidegate_handshakes"] == 1 {
                return;
            }
            assert!(began.elapsed() < PATIENCE, "{held:?} {}", page["tidegate_handshakes"]);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// Runs a part on a thread of its own: so none waits for another's work.
fn part<'a>(scope: &'a std::thread::Scope<'a, '_>, work: impl AsyncFnOnce() + Send + 'a) {
    scope.spawn(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.unwrap().block_on(work());
    });
}

#[test]
fn every_metric_moves() {
    let seen = Seen::default();
    std::thread::scope(|scope| {
        part(scope, async || steps::closes(&seen).await);
        part(scope, async || steps::requests(&seen).await);
        part(scope, async || steps::admission(&seen).await);
        part(scope, async || steps::stopping(&seen).await);
        part(scope, async || steps::writes(&seen).await);
        part(scope, async || steps::queues(&seen).await);
        part(scope, async || steps::errors(&seen).await);
        part(scope, async || steps::subscriptions(&seen).await);
        part(scope, async || steps::opening(&seen).await);
        part(scope, async || steps::readers(&seen).await);
        part(scope, async || steps::disk(&seen).await);
        part(scope, async || steps::redis(&seen).await);
    });
    let seen = seen.0.into_inner();
    // The page has what the table says, and nothing else.
    let series = |row: &Row| -> Vec<String> {
        match row.label {
            None if row.is_histogram() => vec![format!("{}_count", row.name)],
            None => vec![row.name.to_owned()],
            Some((label, values)) => {
                let each = values
                    .iter()
                    .map(|value| format!("{}{{{label}=\"{value}\"}}", row.name));
                each.collect()
            }
        }
    };
    let all: Vec<_> = TABLE.iter().flat_map(series).collect();
    let unknown: Vec<_> = seen.keys().filter(|series| !all.contains(series)).collect();
    assert!(unknown.is_empty(), "not in the table of metrics: {unknown:?}");
    let missing: Vec<_> = all.iter().filter(|series| !seen.contains_key(*series)).collect();
    assert!(missing.is_empty(), "in the table, and on no page: {missing:?}");
    let elsewhere = |series: &str| {
        let mut all = ELSEWHERE.iter();
        all.any(|(name, ..)| *name == series || series.split('{').next() == Some(*name))
    };
    let still: Vec<_> = all
        .iter()
        .filter(|series| seen[*series] == 0 && !elsewhere(series))
        .collect();
    assert!(
        still.is_empty(),
        "these have not moved: give each a step here, or a line in ELSEWHERE: {still:?}"
    );
    let moved: Vec<_> = all
        .iter()
        .filter(|series| seen[*series] > 0 && elsewhere(series))
        .collect();
    assert!(moved.is_empty(), "these do move here: {moved:?}");
}

#[test]
fn what_no_client_can_move_a_test_elsewhere_does() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    for (series, why, file, test) in ELSEWHERE {
        let text = std::fs::read_to_string(root.join(file)).expect(file);
        assert!(
            text.contains(&format!("fn {test}")),
            "{series}, {why}: no test {test} in {file}"
        );
    }
}
