//! What the runs have met. A suite that never gets somewhere proves nothing about it.

use std::collections::BTreeMap;

/// Everything that has to occur.
const ALL: [&str; 46] = [
    "commits",
    "groups of several",
    "catch-up by log",
    "catch-up by delta",
    "catch-up by reset",
    "catch-up in a filtered view",
    "cursor resumed after writes",
    "cursor resumed after a restart",
    "document met again in a scan",
    "document deleted during a reset",
    "log trimmed",
    "position of a lost history",
    "position below the floor",
    "scan that began below the floor",
    "cursor of another view",
    "restart",
    "restore of an older state",
    "floor raised",
    "duplicate",
    "duplicate of a refusal",
    "cloned client",
    "unknown client",
    "out of order",
    "conflict lww",
    "conflict reject",
    "conflict merge",
    "conflict within a group",
    "base below the floor",
    "base of a lost history",
    "precondition refused",
    "refusal handed in",
    "mutation without ops",
    "structure rule removal",
    "recreation",
    "deletion",
    "stale replan",
    "stale replan of a refusal",
    "stale within a group",
    "stale for its time",
    "commit without effect",
    "refused over a quota",
    "client records forgotten",
    "space erased",
    "cells of a user erased",
    "mutation of an erased client",
    "first mutation of a forgotten client",
];

#[derive(Clone, Default)]
pub(crate) struct Coverage(BTreeMap<&'static str, u64>);

impl Coverage {
    pub(crate) fn add(&mut self, what: &'static str, n: u64) {
        assert!(ALL.contains(&what), "{what} is not in the table");
        *self.0.entry(what).or_default() += n;
    }

    pub(crate) fn hit(&mut self, what: &'static str) {
        self.add(what, 1);
    }

    pub(crate) fn join(&mut self, other: &Self) {
        other.0.iter().for_each(|(what, n)| self.add(what, *n));
    }

    /// Prints the table; a zero in it fails.
    pub(crate) fn show(&self, title: &str) {
        println!("{title}");
        for what in ALL {
            println!("{:>9}  {what}", self.0.get(what).unwrap_or(&0));
        }
        let missing: Vec<_> = ALL.iter().filter(|what| !self.0.contains_key(**what)).collect();
        assert!(missing.is_empty(), "{title}: never met: {missing:?}");
    }
}
