//! The power goes while a process writes: what was not synced is gone, or partly there. At `fsync` the
//! store still has all that it answered; at `memory` it has not, which shows that this disk forgets.
//! More rounds: `TIDEGATE_CONTRACT_KILLS=50 cargo test --test contract power`.

use crate::disk::{Disk, Unsynced};
use crate::kill::{Acked, Writing, count_lost, kill, verify};
use crate::process::runtime;
use crate::setting;
use crate::value::Dice;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tidegate::store::embedded::Durability;

const KINDS: [Unsynced; 3] = [Unsynced::Gone, Unsynced::Torn, Unsynced::Scattered];

/// Rounds of one history: a process goes on where the power cut has left the one before.
fn cuts(rounds: u64, ballast: usize, answers: (usize, usize), seed: u64) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().expect("a folder");
    let disk = Disk::new(folder.path());
    let dir = disk.root().join("data");
    let runtime = runtime();
    let mut dice = Dice(seed);
    let mut acked = Acked::new();
    for (round, kind) in (0..rounds).zip(KINDS.into_iter().cycle()) {
        let writing = Writing {
            dir: &dir,
            durability: Durability::Fsync,
            ballast,
            answers: dice.between(answers.0, answers.1),
            more: Duration::from_micros(dice.bits() % 20_000),
        };
        let flying = kill(&writing, &mut acked, |command| disk.attach(command, true));
        disk.cut_power(kind, &mut |n| dice.below(n));
        println!(
            "round {round}: {} answers, {flying} were awaited, what was not synced is {kind:?}",
            acked.len()
        );
        runtime.block_on(verify(&dir, &acked, ballast, &mut dice));
    }
    (folder, dir)
}

#[test]
fn at_fsync_what_was_answered_survives_a_power_cut() {
    cuts(setting("TIDEGATE_CONTRACT_KILLS").unwrap_or(9), 0, (1, 150), 2);
}

#[test]
fn at_fsync_what_was_answered_survives_a_power_cut_while_tables_and_journals_turn_over() {
    let rounds = setting("TIDEGATE_CONTRACT_KILLS").map_or(3, |rounds| rounds / 5);
    let (_folder, dir) = cuts(rounds, 60_000, (200, 700), 3);
    let names = |dir: &Path| {
        let entries = fs::read_dir(dir).expect("reads");
        let names = entries.map(|entry| entry.expect("reads").file_name().into_string().expect("text"));
        names.collect::<Vec<_>>()
    };
    let journals: Vec<_> = names(&dir.join("db"))
        .iter()
        .filter_map(|name| name.strip_suffix(".jnl")?.parse::<u64>().ok())
        .collect();
    assert!(
        journals.iter().any(|id| *id > 0),
        "a journal after the first: {journals:?}"
    );
    let keyspaces = dir.join("db/keyspaces");
    let tables: usize = (names(&keyspaces).iter().filter(|id| *id != "0"))
        .map(|id| names(&keyspaces.join(id).join("tables")).len())
        .sum();
    assert!(tables > 0, "tables on disk");
}

#[test]
fn at_memory_a_power_cut_loses_what_was_answered() {
    let runtime = runtime();
    let mut dice = Dice(4);
    let mut lost = Vec::new();
    for kind in KINDS {
        let folder = tempfile::tempdir().expect("a folder");
        let disk = Disk::new(folder.path());
        let dir = disk.root().join("data");
        let writing = Writing {
            dir: &dir,
            durability: Durability::Memory,
            ballast: 0,
            answers: 200,
            more: Duration::ZERO,
        };
        let mut acked = Acked::new();
        kill(&writing, &mut acked, |command| disk.attach(command, true));
        disk.cut_power(kind, &mut |n| dice.below(n));
        let gone = runtime.block_on(count_lost(&dir, &acked));
        println!(
            "what was not synced is {kind:?}: {gone} of {} answers lost",
            acked.len()
        );
        lost.push(gone);
    }
    assert!(
        lost[0] >= 200 && lost.iter().filter(|gone| **gone > 0).count() >= 2,
        "{lost:?}"
    );
}
