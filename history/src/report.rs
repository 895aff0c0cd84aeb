//! The verdict: what was judged, how often, and what broke a promise.

use std::fmt;
use tidegate_protocol::{Position, SpaceId};

/// A promise that was broken. Everything that the checker can say is one of these.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[non_exhaustive]
pub enum Breach {
    /// The store gave out a seq that is not the one after its head.
    StoreGap,
    /// One (epoch, seq) has two contents.
    SeqReused,
}

/// A broken promise.
#[derive(Clone, Debug)]
pub struct Violation {
    /// Which.
    pub breach: Breach,
    /// Where.
    pub space: SpaceId,
    /// At or about which position.
    pub position: Option<Position>,
    /// The number of the event at which it showed, from 0.
    pub event: usize,
    /// What was seen, and what should have been.
    pub text: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} in {} at event {}", self.breach, self.space, self.event)?;
        if let Some(position) = self.position {
            write!(f, ", {position}")?;
        }
        write!(f, ": {}", self.text)
    }
}

/// How often each thing was judged. A thing that was never judged was not proved.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub struct Counts {
    /// Events observed.
    pub events: u64,
    /// Commits of the truth.
    pub commits: u64,
}

/// The verdict on a history.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Broken promises, in the order in which they showed; the first 100.
    pub violations: Vec<Violation>,
    /// What was judged.
    pub counts: Counts,
}
