#![allow(
    warnings,
    clippy::all,
    clippy::pedantic,
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::disallowed_methods
)]
use sim::Simulator;
use std::sync::atomic::{AtomicU64, Ordering};
fn main() {
    let a: Vec<u64> = std::env::args().skip(1).map(|s| s.parse().unwrap()).collect();
    let (first, end) = (a[0], a[1]);
    let next = AtomicU64::new(first);
    let n = a.get(2).copied().unwrap_or(2);
    std::thread::scope(|scope| {
        for _ in 0..n {
            scope.spawn(|| {
                let mut simulator = Simulator::new();
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= end {
                        break;
                    }
                    if let Some(f) = simulator.run(seed, false).failure {
                        let f = f.to_string();
                        println!(
                            "{seed} {}",
                            f.lines().next().unwrap_or("").chars().take(200).collect::<String>()
                        );
                    }
                }
            });
        }
    });
}
