//! Lineage: which positions belong to a space's history.
//!
//! This is Kafka's leader-epoch rule (KIP-101, KIP-320) with names that cannot collide.

use tidegate_protocol::{Epoch, Position, Seq};

/// Entries kept at most.
pub const MAX_ENTRIES: usize = 4_096;

/// One unbroken stretch of history.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LineageEntry {
    /// Its random name.
    pub epoch: Epoch,
    /// Which life of the store wrote it, opaque.
    pub incarnation: Vec<u8>,
    /// The seq after which it starts: the head when it was minted.
    pub start: Seq,
}

/// The stretches of a space's history, oldest first, starts never going back.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Lineage(pub Vec<LineageEntry>);

impl Lineage {
    /// The last epoch's name; `Epoch(0)` without history.
    pub fn last_epoch(&self) -> Epoch {
        self.0.last().map_or(Epoch(0), |entry| entry.epoch)
    }

    /// Whether an epoch is one of them.
    pub fn names(&self, epoch: Epoch) -> bool {
        self.0.iter().any(|entry| entry.epoch == epoch)
    }

    /// The seq at which an epoch ends: the next one's start, or `head` for the last. `None` for an unknown epoch.
    pub fn end_of(&self, epoch: Epoch, head: Seq) -> Option<Seq> {
        let at = self.0.iter().position(|entry| entry.epoch == epoch)?;
        Some(self.0.get(at + 1).map_or(head, |next| next.start))
    }

    /// Whether a client at `position` holds a prefix of this history. (`e`, 0) always does.
    pub fn holds(&self, position: Position, head: Seq) -> bool {
        position.seq == Seq::ZERO || self.end_of(position.epoch, head).is_some_and(|end| position.seq <= end)
    }

    /// Whether every commit after a position is of an epoch that is still named. Those at or below the floor may
    /// be forgotten; whoever was cut off among such commits would stand at a position without a name.
    pub fn names_all_after(&self, at: Position) -> bool {
        self.names(at.epoch) || self.0.first().is_none_or(|first| first.start <= at.seq)
    }

    /// The epoch that starts exactly at `at`, after `at`'s own. A position without an epoch of its own is at 0.
    pub fn next_epoch(&self, at: Position) -> Option<Position> {
        let index = self
            .0
            .iter()
            .position(|entry| entry.epoch == at.epoch)
            .map_or(0, |own| own + 1);
        let next = self.0.get(index)?;
        (next.start == at.seq).then(|| Position::new(next.epoch, next.start))
    }

    /// A mutation's base, cut to the end of its epoch; an unknown epoch counts as 0.
    pub fn cut(&self, base: Position, head: Seq) -> Seq {
        self.end_of(base.epoch, head).map_or(Seq::ZERO, |end| base.seq.min(end))
    }

    /// Appends a new epoch that starts after `head`. Drops entries that no position at or above the floor
    /// can name: those whose next one starts below it, and the oldest over [`MAX_ENTRIES`].
    pub fn mint(&mut self, epoch: Epoch, incarnation: Vec<u8>, head: Seq, floor: Seq) {
        self.0.push(LineageEntry {
            epoch,
            incarnation,
            start: head,
        });
        self.forget_below(floor);
    }

    /// Drops what [`Self::mint`] drops, for a floor that has risen. Says whether there was any.
    pub fn forget_below(&mut self, floor: Seq) -> bool {
        let beyond = self.0.windows(2).take_while(|pair| pair[1].start < floor).count();
        let surplus = self.0.len().saturating_sub(MAX_ENTRIES);
        self.0.drain(..beyond.max(surplus)).count() > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seq(n: u64) -> Seq {
        Seq::new(n).expect("small")
    }

    #[test]
    fn a_position_is_held_up_to_the_end_of_its_epoch() {
        let mut lineage = Lineage::default();
        assert!(lineage.holds(Position::START, Seq::ZERO));
        assert!(!lineage.holds(Position::new(Epoch(7), seq(1)), Seq::ZERO));
        lineage.mint(Epoch(1), b"a".to_vec(), Seq::ZERO, Seq::ZERO);
        lineage.mint(Epoch(2), b"b".to_vec(), seq(100), Seq::ZERO);
        for (epoch, n, held) in [
            (1, 100, true),
            (1, 101, false),
            (2, 105, true),
            (2, 106, false),
            (3, 1, false),
            (3, 0, true),
        ] {
            assert_eq!(
                lineage.holds(Position::new(Epoch(epoch), seq(n)), seq(105)),
                held,
                "{epoch} {n}"
            );
        }
        assert_eq!(lineage.cut(Position::new(Epoch(1), seq(105)), seq(105)), seq(100));
        assert_eq!(lineage.cut(Position::new(Epoch(9), seq(105)), seq(105)), Seq::ZERO);
    }

    #[test]
    fn entries_go_when_the_floor_passes_the_next_ones_start() {
        let mut lineage = Lineage::default();
        lineage.mint(Epoch(1), vec![], Seq::ZERO, Seq::ZERO);
        lineage.mint(Epoch(2), vec![], seq(10), Seq::ZERO);
        lineage.mint(Epoch(3), vec![], seq(20), seq(11));
        let names = |lineage: &Lineage| lineage.0.iter().map(|e| e.epoch.0).collect::<Vec<_>>();
        assert_eq!(names(&lineage), [2, 3]);
        // Who stands at the floor lacks no tombstone: such a position keeps its name.
        assert!(!lineage.forget_below(seq(20)));
        assert!(lineage.forget_below(seq(21)));
        assert_eq!(names(&lineage), [3]);
    }
}
