//! Good histories, generated: nothing is found, and everything was judged.

#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, missing_docs)] // a test may panic

mod world;

use tidegate_history::Counts;
use world::generate::{generate, generate_steps};
use world::{judge, judge_outside};

#[test]
fn nothing_is_found_in_good_histories_and_everything_is_judged() {
    let mut counts = Counts::default();
    for seed in 0..1_500 {
        let world = generate(seed, true);
        match judge(&world.events).verdict() {
            Ok(judged) => counts.add(&judged),
            Err(text) => panic!("seed {seed}:\n{text}"),
        }
    }
    println!("{counts:#?}");
    // No toy of mine loses records, copies storage, or is asked by `get`.
    let beyond = [
        "repeated_acks",
        "contested",
        "gets",
        "aged_losses",
        "foreign_commits",
        "unverified",
        "violations",
    ];
    let missing: Vec<_> = counts
        .all()
        .into_iter()
        .filter(|(name, count)| beyond.contains(name) != (*count == 0))
        .collect();
    assert!(missing.is_empty(), "never judged, or without reason: {missing:?}");
}

#[test]
fn without_the_stores_account_subscribers_tell_the_truth() {
    let mut counts = Counts::default();
    for seed in 0..500 {
        let world = generate(seed, false);
        match judge_outside(&world.events).verdict() {
            Ok(judged) => counts.add(&judged),
            Err(text) => panic!("seed {seed}:\n{text}"),
        }
    }
    println!("{counts:#?}");
    assert!(
        counts.unverified * 2 < counts.changes,
        "{} of {}",
        counts.unverified,
        counts.changes
    );
    for (name, count) in [
        ("resets", counts.resets),
        ("deltas", counts.deltas),
        ("acks", counts.acks),
        ("held", counts.held),
    ] {
        assert!(count > 500, "{name}: {count}");
    }
}

/// Time on a core so far, ns, whoever else is busy.
fn cpu() -> u64 {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    stat.split_whitespace().next().unwrap().parse().unwrap()
}

#[test]
fn a_history_sixteen_times_as_large_takes_about_sixteen_times_as_long() {
    let per_byte = |steps: usize, account: bool| {
        let world = generate_steps(7, account, steps);
        let bytes = format!("{:?}", world.events).len();
        let (start, mut times) = (cpu(), 0);
        // The kernel counts by ticks of milliseconds.
        while cpu() - start < 200_000_000 {
            let judged = if account {
                judge(&world.events).verdict()
            } else {
                judge_outside(&world.events).verdict()
            };
            judged.unwrap();
            times += 1;
        }
        (bytes, (cpu() - start) as f64 / f64::from(times) / bytes as f64)
    };
    for account in [true, false] {
        let (small, large) = (per_byte(400, account), per_byte(3_000, account));
        println!("account {account}: {small:?} {large:?} bytes and ns a byte");
        assert!(large.0 > 16 * small.0, "{} and {}", small.0, large.0);
        assert!(large.1 < 2.0 * small.1, "{} and {} ns a byte", small.1, large.1);
    }
}
