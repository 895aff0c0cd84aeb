//! How fast histories are judged: `cargo bench -p tidegate-history`.

#![allow(clippy::print_stdout, clippy::cast_precision_loss, missing_docs)] // it prints, and its counts are small

#[path = "../tests/world/mod.rs"]
mod world;

use std::time::{Duration, Instant};

fn main() {
    let histories: Vec<_> = (0..300)
        .map(|seed| world::generate::generate(seed, true).events)
        .collect();
    let events: usize = histories.iter().map(Vec::len).sum();
    // The best of several rounds: the others were disturbed.
    let mut best = Duration::MAX;
    for _ in 0..10 {
        let start = Instant::now();
        for events in &histories {
            assert!(world::judge(events).violations.is_empty());
        }
        best = best.min(start.elapsed());
    }
    let each = best.as_secs_f64() * 1e6 / histories.len() as f64;
    let per_second = events as f64 / best.as_secs_f64() / 1e6;
    let length = events / histories.len();
    println!("{each:.0} µs a history of {length} events; {per_second:.1} million events a second");
}
