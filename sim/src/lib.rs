//! Whole fleets in virtual time: clients, sessions, engine, hub and store in one thread, with everything
//! between them – networks, bus, store, clocks, crashes – going wrong by a seed.
//!
//! Nothing of the product is replaced or switched: its own session serves a simulated `Transport`, its own
//! engine and hub stand on a store and a bus that misbehave, its own client machine is driven step by step.
//! Time is tokio's, paused: it jumps to the next thing that is due when nobody has anything left to do.
//! The same seed gives the same history, to the byte, in every process. `history` judges it.

mod app;
mod coverage;
mod install;
mod net;
mod node;
mod plan;
mod rng;
mod rules;
mod shared;
mod store;
mod world;

pub use coverage::Coverage;

use crate::coverage::Row;
use crate::plan::Plan;
use crate::rng::Rng;
use crate::shared::Shared;
use crate::world::World;
use std::cell::RefCell;
use std::fmt::Write as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Once};
use tidegate::metrics::Metrics;
use tidegate_history::Counts;

/// A history is some ten thousand small allocations: with the system's allocator a fifth of its time.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// What came of a history.
pub struct Outcome {
    /// Of everything that happened: equal digests, equal histories.
    pub digest: u64,
    /// What it has met.
    pub coverage: Coverage,
    /// How often each promise was put to the test.
    pub counts: Counts,
    /// What was wrong, for people; `None` if nothing was.
    pub failure: Option<String>,
    /// The story, if it was asked for.
    pub story: Vec<String>,
}

/// Runs histories, one after another, in this thread.
pub struct Simulator {
    /// Registering metrics takes longer than a short history.
    metrics: Arc<Metrics>,
    counted: [u64; 5],
}

thread_local! {
    /// What panicked in this thread since a history began: a panic in a task ends only that task.
    static PANICS: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

fn note_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            PANICS.with_borrow_mut(|panics| panics.push(info.to_string()));
            before(info);
        }));
    });
}

impl Default for Simulator {
    fn default() -> Self {
        Self::new()
    }
}

impl Simulator {
    /// A simulator.
    pub fn new() -> Self {
        note_panics();
        Self {
            metrics: Arc::new(Metrics::default()),
            counted: [0; 5],
        }
    }

    /// Runs the history of a seed. `tells`: whether its story is to be kept.
    pub fn run(&mut self, seed: u64, tells: bool) -> Outcome {
        PANICS.with_borrow_mut(Vec::clear);
        // The clock stands still but while all wait.
        let passed = Arc::new(AtomicBool::new(true));
        let waited = Arc::clone(&passed);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .on_thread_unpark(move || waited.store(true, Ordering::Relaxed))
            .build()
            .expect("a runtime without threads or sockets");
        let mut rng = Rng::new(seed);
        let plan = Plan::draw(&mut rng);
        let metrics = Arc::clone(&self.metrics);
        let shared = runtime.block_on(async move {
            let shared = Shared::new(rng, plan.clone(), tells, passed);
            let mut world = World::new(Arc::clone(&shared), metrics, plan);
            world.run().await;
            shared
        });
        // What still runs ends here, and is no longer part of the history.
        let (digest, failures, judge, mut coverage, story) = {
            let core = &mut *shared.core.lock();
            (
                core.trace.digest(),
                std::mem::take(&mut core.failures),
                std::mem::take(&mut core.judge),
                core.cover.clone(),
                core.trace.lines.take().unwrap_or_default(),
            )
        };
        drop(runtime);
        self.count(&mut coverage);
        let report = judge.finish();
        let mut failure = String::new();
        for line in PANICS.with_borrow(Clone::clone).iter().chain(&failures) {
            let _ = writeln!(failure, "{line}");
        }
        for violation in report.violations.iter().take(10) {
            let _ = writeln!(failure, "{violation}");
            if tells {
                let _ = writeln!(failure, "{}", violation.trace);
            }
        }
        Outcome {
            digest,
            coverage,
            counts: report.counts,
            failure: (!failure.is_empty()).then_some(failure),
            story,
        }
    }

    /// Takes what the nodes have counted in this history.
    fn count(&mut self, coverage: &mut Coverage) {
        let resets = |reason| self.metrics.resets.with_label_values(&[reason]).get();
        let now = [
            resets("lost"),
            resets("below_floor"),
            resets("view"),
            resets("foreign_cursor"),
            self.metrics.gap_commits.get(),
        ];
        let rows = [
            Row::ResetLost,
            Row::ResetFloor,
            Row::ResetView,
            Row::ResetCursor,
            Row::GapFilled,
        ];
        for ((row, now), before) in rows.into_iter().zip(now).zip(self.counted) {
            coverage.add(row, now - before);
        }
        self.counted = now;
    }
}
