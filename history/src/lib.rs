//! The history checker: what stores, subscribers, writers and apps saw, judged in one pass.
//!
//! An observer tells a [`Checker`] what happens, [`Event`] by [`Event`]; [`Checker::finish`] says which
//! promises were broken, and how often each was put to the test. It applies changes by an interpreter of its
//! own, and shares no code with what it judges but the types of the protocol.

mod app;
mod checker;
mod connection;
mod doc;
mod erasure;
mod event;
mod fold;
mod judge;
mod report;
mod space;
mod trace;
mod truth;
mod view;
pub mod workload;

pub use checker::Checker;
pub use doc::{apply, plain};
pub use event::{ConnectionId, Docs, Event, Fate, Installation, Tag};
pub use report::{Breach, Counts, Report, Violation};
