//! The judge.

use crate::event::Event;
use crate::report::{Breach, Report, Violation};
use std::collections::HashMap;
use tidegate_protocol::{Epoch, Mid, Position, Seq, SpaceId, Writer};

/// Judges one history. Memory and time grow with the history, linearly.
#[derive(Debug, Default)]
pub struct Checker {
    report: Report,
    spaces: HashMap<SpaceId, Space>,
}

#[derive(Debug, Default)]
struct Space {
    head: Option<Position>,
    commits: HashMap<(Epoch, Seq), (Writer, Mid)>,
}

impl Checker {
    /// Nothing observed yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes in what happened next.
    pub fn observe(&mut self, event: Event<'_>) {
        self.report.counts.events += 1;
        match event {
            Event::Epoch { space, epoch, after } => {
                self.space(space).head = Some(Position::new(epoch, after.seq));
            }
            Event::Commit { space, epoch, commit } => {
                self.report.counts.commits += 1;
                let at = Position::new(epoch, commit.seq);
                let named = (commit.writer, commit.mid);
                let state = self.space(space);
                let head = state.head.replace(at);
                let before = state.commits.insert((epoch, commit.seq), named);
                if let Some(before) = before.filter(|before| *before != named) {
                    self.breach(Breach::SeqReused, space, at, format!("was {before:?}, is {named:?}"));
                } else if head.is_none_or(|head| head.epoch != epoch || head.seq.next() != commit.seq) {
                    self.breach(Breach::StoreGap, space, at, format!("after {head:?}"));
                }
            }
            _ => {}
        }
    }

    /// The verdict.
    pub fn finish(self) -> Report {
        self.report
    }

    fn space(&mut self, name: &SpaceId) -> &mut Space {
        self.spaces.entry(name.clone()).or_default()
    }

    fn breach(&mut self, breach: Breach, space: &SpaceId, position: Position, text: String) {
        let event = usize::try_from(self.report.counts.events).unwrap_or(usize::MAX) - 1;
        self.report.violations.push(Violation {
            breach,
            space: space.clone(),
            position: Some(position),
            event,
            text,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tidegate_protocol::Commit;

    #[test]
    fn a_seq_that_leaves_one_out_or_comes_again_is_named() {
        let space: SpaceId = "s".parse().expect("valid");
        let run = |seqs: &[(u64, u64)]| {
            let mut checker = Checker::new();
            let epoch = Epoch(1);
            let after = Position::START;
            checker.observe(Event::Epoch {
                space: &space,
                epoch,
                after,
            });
            for &(seq, mid) in seqs {
                let commit = Commit {
                    seq: Seq::new(seq).expect("small"),
                    at: 0,
                    writer: Writer(1),
                    mid: Mid::new(mid).expect("small"),
                    docs: vec![],
                };
                let commit = &commit;
                checker.observe(Event::Commit {
                    space: &space,
                    epoch,
                    commit,
                });
            }
            checker.finish().violations.iter().map(|v| v.breach).collect::<Vec<_>>()
        };
        assert_eq!(run(&[(1, 1), (2, 2)]), []);
        assert_eq!(run(&[(1, 1), (3, 2)]), [Breach::StoreGap]);
        assert_eq!(run(&[(1, 1), (1, 2)]), [Breach::SeqReused]);
    }
}
