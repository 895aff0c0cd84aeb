//! Commits that came before those between: kept until these are there, within bounds.

use crate::store::LogEntry;
use std::collections::BTreeMap;
use tidegate_protocol::Seq;

/// Of a space so many at most; of what is over it the last are dropped, since the log has them.
const COMMITS: usize = 1_024;
/// So many bytes of them.
const BYTES: usize = 1 << 20;

/// The commits, by seq.
#[derive(Default)]
pub(super) struct Ahead {
    commits: BTreeMap<Seq, LogEntry>,
    bytes: usize,
}

fn bytes_of(commit: &LogEntry) -> usize {
    size_of::<LogEntry>() + commit.payload.len()
}

impl Ahead {
    /// Puts in those that `is_new`, and drops what is over the bounds; but what has come together may all follow at once
    /// what is there, and is within them. Returns how many were dropped.
    pub(super) fn put(&mut self, commits: &[LogEntry], is_new: impl Fn(&LogEntry) -> bool) -> u64 {
        for commit in commits.iter().filter(|commit| is_new(commit)) {
            self.bytes += bytes_of(commit);
            let same = self.commits.insert(commit.seq, commit.clone());
            self.bytes -= same.as_ref().map_or(0, bytes_of);
        }
        let bytes = BYTES.max(commits.iter().map(bytes_of).sum());
        let mut dropped = 0;
        while self.commits.len() > COMMITS.max(commits.len()) || self.bytes > bytes {
            let Some((_, last)) = self.commits.pop_last() else {
                break;
            };
            self.bytes -= bytes_of(&last);
            dropped += 1;
        }
        dropped
    }

    /// Takes the one that follows `at`, and forgets those up to there.
    pub(super) fn next(&mut self, at: Seq) -> Option<LogEntry> {
        loop {
            let first = self.commits.first_entry()?;
            if *first.key() > at.next() {
                return None;
            }
            let commit = first.remove();
            self.bytes -= bytes_of(&commit);
            if commit.seq > at {
                return Some(commit);
            }
        }
    }

    /// Takes all.
    pub(super) fn take(&mut self) -> Vec<LogEntry> {
        std::mem::take(self).commits.into_values().collect()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.commits.is_empty()
    }
}
