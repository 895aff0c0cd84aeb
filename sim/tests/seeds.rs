//! Thousands of histories, each of its own seed, on every core.
//!
//! `TIDEGATE_SIM_SEEDS` says how many (20,000), `TIDEGATE_SIM_FIRST` from which on (0). So many of them have to meet,
//! between them, everything that a history can. A failure names the lowest seed that was found wrong; `make sim SEED=n`
//! tells its story.

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
    let seeds = number("TIDEGATE_SIM_SEEDS").unwrap_or(20_000);
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
        "{run} histories in {seconds:.1} s on {cores} cores: {:.0} a second, {:.0} a core, {} operations each",
        run as f64 / seconds,
        run as f64 / seconds / cores as f64,
        coverage.operations() / run.max(1)
    );
    let mut wrong = wrong.into_inner().unwrap();
    wrong.sort();
    if let Some((seed, failure)) = wrong.first() {
        panic!("seed {seed}, after {run} seeds: {failure}\nmake sim SEED={seed}");
    }
    // In a few histories not everything comes to pass.
    if run >= 20_000 {
        let missing = coverage.missing();
        assert!(missing.is_empty(), "never met: {missing:?}");
    }
}

/// Set in the process that is to say its digests.
const CHILD: &str = "TIDEGATE_SIM_DIGESTS";

/// Digests of the first histories, after `before` another one.
fn digests(before: Option<u64>, tells: impl Fn(u64) -> bool) -> Vec<u64> {
    let mut simulator = Simulator::new();
    if let Some(seed) = before {
        simulator.run(seed, false);
    }
    (0..200).map(|seed| simulator.run(seed, tells(seed)).digest).collect()
}

#[test]
fn a_seed_is_one_history() {
    if number(CHILD).is_some() {
        println!("digests {:?}", digests(None, |_| false));
        return;
    }
    // In another thread, after another history, with its story told.
    let thread = std::thread::spawn(|| digests(Some(1), |seed| seed % 10 == 0));
    // In another process, whose hash keys and addresses are others.
    #[allow(clippy::disallowed_methods, reason = "nothing else waits for this thread")]
    let child = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "a_seed_is_one_history", "--nocapture"])
        .env(CHILD, "1")
        .output()
        .unwrap();
    let here = digests(None, |_| false);
    assert_eq!(here, thread.join().unwrap());
    let said = String::from_utf8(child.stdout).unwrap();
    let there = said.lines().find_map(|line| Some(line.split_once("digests ")?.1));
    assert_eq!(there, Some(format!("{here:?}").as_str()), "{}", child.status);
}
