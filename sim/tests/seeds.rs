//! Thousands of histories, each of its own seed, on every core.
//!
//! `TIDEGATE_SIM_SEEDS` says how many (3,000), `TIDEGATE_SIM_FIRST` from which on (0). A failure names the
//! lowest seed that was found wrong; `make sim SEED=n` tells its story.

use sim::{Coverage, Simulator};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

fn number(name: &str) -> Option<u64> {
    #[expect(clippy::disallowed_methods, reason = "how long a test runs is the caller's to say")]
    std::env::var(name).ok()?.parse().ok()
}

#[test]
fn every_promise_holds_in_every_history() {
    let first = number("TIDEGATE_SIM_FIRST").unwrap_or(0);
    let seeds = number("TIDEGATE_SIM_SEEDS").unwrap_or(3_000);
    let next = AtomicU64::new(0);
    let found = AtomicBool::new(false);
    let coverage = Mutex::new(Coverage::default());
    let wrong = Mutex::new(Vec::new());
    let start = Instant::now();
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..cores {
            scope.spawn(|| {
                let mut simulator = Simulator::new();
                let mut met = Coverage::default();
                // Seeds are taken in order, so those below the one that fails have been run.
                while !found.load(Ordering::Relaxed) {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds {
                        break;
                    }
                    let outcome = simulator.run(first + seed, false);
                    met.join(&outcome.coverage);
                    if let Some(failure) = outcome.failure {
                        found.store(true, Ordering::Relaxed);
                        wrong.lock().unwrap().push((first + seed, failure));
                    }
                }
                coverage.lock().unwrap().join(&met);
            });
        }
    });
    let run = next.load(Ordering::Relaxed).min(seeds);
    let seconds = start.elapsed().as_secs_f64();
    let coverage = coverage.into_inner().unwrap();
    println!("{coverage}");
    println!(
        "{run} histories in {seconds:.1} s on {cores} cores: {:.0} a second, {} operations each",
        run as f64 / seconds,
        coverage.operations() / run.max(1)
    );
    let mut wrong = wrong.into_inner().unwrap();
    wrong.sort();
    if let Some((seed, failure)) = wrong.first() {
        panic!("seed {seed}, after {run} seeds: {failure}\nmake sim SEED={seed}");
    }
    // In a few histories not everything comes to pass.
    if run >= 5_000 {
        let missing = coverage.missing();
        assert!(missing.is_empty(), "never met: {missing:?}");
    }
}

#[test]
fn a_seed_is_one_history() {
    let digests = |first: u64| -> Vec<u64> {
        let mut simulator = Simulator::new();
        (0..300).map(|n| simulator.run(first + n, false).digest).collect()
    };
    // In another thread, after other histories, with other hash keys.
    let again = std::thread::spawn(move || {
        let mut simulator = Simulator::new();
        simulator.run(1, false);
        (0..300)
            .map(|n| simulator.run(n, n % 10 == 0).digest)
            .collect::<Vec<_>>()
    });
    assert_eq!(digests(0), again.join().unwrap());
}
