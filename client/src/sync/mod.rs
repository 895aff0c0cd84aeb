//! The sync machine: `(now, input) → effects`, without runtime, socket, clock or randomness of its own.
//!
//! [`Machine`] holds a connection's state and the spaces; a [`Space`] holds its confirmed state
//! ([`Replica`]), the queue of own mutations ([`Queue`]) and the overlay of these on that. A driver opens
//! sockets, passes messages and time in, commits what changed to storage, and sends what comes out.
//!
//! The same machine is written in other languages; `protocol/scenarios/*.json` holds all of them to one
//! behaviour.

mod connection;
mod event;
mod overlay;
mod queue;
mod replica;
mod space;

pub use connection::{Command, Config, ConnectFailure, Machine};
pub use event::{
    Acked, ConnectionState, Event, Loss, LostMutation, NewIdReason, Outcome, Refusal, SpaceEvent, WatchItem, WriteError,
};
pub use overlay::LocalDoc;
pub use queue::{Identity, Mutation, MutationId, QUEUED, Queue, Seal};
pub use replica::{Replica, Standing, Violation};
pub use space::{Request, Space};

use tidegate_protocol::Number;

/// The time, passed in with every input.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Now {
    /// A clock that never goes back, ms from any start: deadlines and backoff.
    pub mono_ms: u64,
    /// ms since 1970: what a pending `now` shows, and how old the last ack is.
    pub wall_ms: u64,
}

/// Randomness, passed in.
///
/// It must not be a generator whose state is restored with a database: two copies would draw the same
/// keys, and the gateway could not tell them apart.
pub trait Entropy: Send {
    /// 64 random bits: a client id, or a mutation's key.
    fn next_u64(&mut self) -> u64;

    /// A number from 0 to `bound`, inclusive: jitter.
    fn up_to(&mut self, bound: u64) -> u64 {
        let wide = u128::from(self.next_u64()) * (u128::from(bound) + 1);
        u64::try_from(wide >> 64).unwrap_or(bound)
    }
}

impl<F: FnMut() -> u64 + Send> Entropy for F {
    fn next_u64(&mut self) -> u64 {
        self()
    }
}

/// The sum of two whole numbers, if it is exact; folding of two `inc`s.
fn exact_sum(a: Number, b: Number) -> Option<Number> {
    match (a, b) {
        (Number::Int(a), Number::Int(b)) => a.checked_add(b).map(Number::Int),
        _ => None,
    }
}
