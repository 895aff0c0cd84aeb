//! Good histories, generated: nothing is found, and everything was judged.

#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, missing_docs)] // a test may panic

mod world;

use tidegate_history::Counts;
use world::generate::generate;
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
