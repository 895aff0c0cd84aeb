//! The engine: turns mutations into prepared commits, and groups them per space.

use crate::auth::Identity;
use crate::store::{Lineage, LogEntry};
use std::sync::Arc;
use tidegate_protocol::{Ack, At, Code, Op, Policy, Position, Reject, SpaceId, WriteHead};

/// A mutation on its way in.
#[derive(Clone, Debug)]
pub struct WriteRequest {
    /// Who sent it.
    pub who: Arc<Identity>,
    /// What names it.
    pub head: WriteHead,
    /// What it asks for, or why that could not be understood: such a refusal still consumes the mid.
    pub body: Result<WriteBody, Refusal>,
}

/// What a mutation asks for.
#[derive(Clone, PartialEq, Debug)]
pub struct WriteBody {
    /// As in `write`.
    pub base: Option<Position>,
    /// As in `write`.
    pub policy: Option<Policy>,
    /// As in `write`.
    pub ops: Vec<Op>,
}

/// A refusal of a mutation.
#[derive(Clone, PartialEq, Debug)]
pub struct Refusal {
    /// Why.
    pub code: Code,
    /// What to do next.
    pub message: String,
    /// Where.
    pub at: Option<At>,
}

/// The answer to a mutation.
#[derive(Clone, PartialEq, Debug)]
pub enum WriteReply {
    /// Applied (now or before).
    Ack(Ack),
    /// Not applied.
    Reject(Reject),
}

/// Called exactly once with the answer, from the space's worker: it must not block.
pub type Done = Box<dyn FnOnce(WriteReply) + Send>;

/// Where the engine hands commits on, in order per space, before it answers the mutations: the
/// local side of the bus.
pub trait Publish: Send + Sync + 'static {
    /// Commits of one space that follow each other, and the lineage they belong to.
    fn publish(&self, space: &SpaceId, lineage: &Lineage, commits: &[LogEntry]);
}
