//! Clients whose very first mutation was refused for now.
//!
//! The store has no record of such a client, so to it the mutations that the client had sent right
//! behind the first are those of an unknown one, and the client would have to give its id up. The
//! engine knows better: they came out of order.

use parking_lot::Mutex;
use std::collections::{HashSet, VecDeque};
use tidegate_protocol::{SpaceId, Writer};

/// Remembered at most. One that is forgotten is `client_unknown`, and takes a new id.
const MOST: usize = 4_096;

/// The clients, bounded; the oldest are forgotten first.
#[derive(Default)]
pub(super) struct Newcomers(Mutex<Known>);

#[derive(Default)]
struct Known {
    set: HashSet<(SpaceId, Writer)>,
    order: VecDeque<(SpaceId, Writer)>,
}

impl Newcomers {
    /// Its first mutation was refused for now.
    pub(super) fn remember(&self, space: &SpaceId, writer: Writer) {
        let name = (space.clone(), writer);
        let mut known = self.0.lock();
        if known.set.insert(name.clone()) {
            known.order.push_back(name);
        }
        while known.order.len() > MOST {
            if let Some(oldest) = known.order.pop_front() {
                known.set.remove(&oldest);
            }
        }
    }

    /// Its first mutation was settled.
    pub(super) fn forget(&self, space: &SpaceId, writer: Writer) {
        self.0.lock().set.remove(&(space.clone(), writer));
    }

    /// Whether its first mutation is still to come.
    pub(super) fn holds(&self, space: &SpaceId, writer: Writer) -> bool {
        self.0.lock().set.contains(&(space.clone(), writer))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn newcomers_are_remembered_until_settled_and_never_too_many() {
        let newcomers = Newcomers::default();
        let space = SpaceId::parse("s").expect("valid");
        for n in 0..=MOST as u64 {
            newcomers.remember(&space, Writer(n));
            newcomers.remember(&space, Writer(n));
        }
        assert!(!newcomers.holds(&space, Writer(0)));
        assert!(newcomers.holds(&space, Writer(1)));
        newcomers.forget(&space, Writer(1));
        assert!(!newcomers.holds(&space, Writer(1)));
        assert!(newcomers.0.lock().order.len() <= MOST);
    }
}
