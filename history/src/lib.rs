//! The history checker: what stores, subscribers, writers and apps saw, judged in one pass.
//!
//! An observer tells a [`Checker`] what happens, [`Event`] by [`Event`]; [`Checker::finish`] says which
//! promises were broken, and how often each was put to the test. It applies changes by an interpreter of its
//! own, and shares no code with what it judges but the types of the protocol.

mod checker;
mod event;
mod report;
pub mod workload;

pub use checker::Checker;
pub use event::{ConnectionId, Docs, Event, Fate, Installation, Tag};
pub use report::{Breach, Counts, Report, Violation};
