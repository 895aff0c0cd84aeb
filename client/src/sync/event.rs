//! What the machine tells: of connections, of spaces, and of what became of mutations.

use crate::sync::queue::MutationId;
use tidegate_protocol::{
    At, ClientId, Code, ConflictUnit, DocChange, DocPath, Mid, Op, Position, Seq, SpaceId, Welcome,
};

/// Something that happened.
#[derive(Clone, PartialEq, Debug)]
pub enum Event {
    /// The connection's state is another.
    State(ConnectionState),
    /// In a space.
    Space(SpaceId, SpaceEvent),
    /// A `get` was answered, or refused.
    Got {
        /// The number that `Machine::get` gave.
        id: u64,
        /// The position of the consistent cut and the documents in the order asked for, or why not.
        result: Result<(Position, Vec<DocChange>), Refusal>,
    },
    /// An error that ends nothing, for the developer.
    Problem {
        /// Its code.
        code: Code,
        /// The gateway's words.
        message: String,
    },
}

/// How the connection stands.
#[derive(Clone, PartialEq, Debug)]
pub enum ConnectionState {
    /// Not connected; the next attempt comes by itself.
    Offline {
        /// In how many ms.
        retry_ms: u64,
        /// Why the last connection or attempt ended, if there was one.
        why: Option<String>,
    },
    /// A socket is being opened, or waits for `welcome`.
    Connecting,
    /// Connected.
    Online(Box<Welcome>),
    /// It does not come back by itself: the program, the configuration or the token must change first.
    Stopped {
        /// Why.
        code: Code,
        /// The gateway's words.
        message: String,
    },
    /// Closed by the app.
    Closed,
}

/// Something that happened in a space.
#[derive(Clone, PartialEq, Debug)]
pub enum SpaceEvent {
    /// The confirmed state moved; the items are in order.
    Confirmed(Vec<WatchItem>),
    /// The local views of these documents are others: value, existence or `pending`.
    Views(Vec<DocPath>),
    /// Whether local views may be behind the gateway is another than before.
    FromCache(bool),
    /// The history goes on under a new name.
    Epoch(Position),
    /// A mutation was answered, or will not be.
    Settled {
        /// Its number in the queue.
        id: MutationId,
        /// What became of it.
        outcome: Outcome,
        /// What it was to do, if it was not done.
        ops: Vec<Op>,
    },
    /// The gateway lost mutations that it had acked.
    Lost(Loss),
    /// The space's client has a new id.
    NewId {
        /// The id.
        client: ClientId,
        /// Why.
        why: NewIdReason,
    },
    /// The rules ended the subscription, or it did not begin.
    Denied {
        /// Why.
        code: Code,
        /// Whether what was held of the space is forgotten.
        purged: bool,
    },
}

/// A step of the confirmed state.
#[derive(Clone, PartialEq, Debug)]
pub enum WatchItem {
    /// Everything held is void; the changes up to the next `Current` are the whole.
    Reset,
    /// A document changed. In a catch-up `seq` is that of the catch-up's end.
    Change {
        /// The commit, or the position at the end of the catch-up.
        seq: Seq,
        /// The document, and what became of it, as received.
        change: DocChange,
    },
    /// The state is the gateway's as of this position.
    Current {
        /// The position.
        position: Position,
    },
    /// The rules ended the subscription, or it did not begin.
    Denied {
        /// Why.
        code: Code,
        /// Whether what was held of the space is forgotten.
        purged: bool,
    },
}

/// What became of a mutation.
pub type Outcome = Result<Acked, WriteError>;

/// A mutation was accepted.
#[derive(Clone, PartialEq, Debug)]
pub struct Acked {
    /// Its commit.
    pub position: Position,
    /// Which of the client's mutations it was.
    pub mid: Mid,
    /// Units written over another writer's newer ones (policy `lww`), with what they overwrote.
    pub conflicts: Vec<ConflictUnit>,
    /// Units left out (policy `merge`), with what stands: for the app or its user to settle.
    pub skipped: Vec<ConflictUnit>,
}

/// A mutation was not accepted, or may not have been.
#[derive(Clone, PartialEq, Debug, thiserror::Error)]
pub enum WriteError {
    /// It was refused, by the gateway or before it was queued.
    #[error("{0}")]
    Refused(Box<Refusal>),
    /// It was sent and never answered, and the gateway keeps no record by which a repeat could be told: it
    /// may have been applied or not.
    #[error("the gateway can no longer say whether it was applied")]
    Uncertain,
    /// The app took it back before it was sent.
    #[error("cancelled before it was sent")]
    Cancelled,
    /// The client was closed before the answer. A queue that is stored keeps it.
    #[error("the client was closed before the answer")]
    Closed,
}

impl WriteError {
    /// The refusal, if it is one.
    pub fn refusal(&self) -> Option<&Refusal> {
        match self {
            Self::Refused(refusal) => Some(refusal),
            _ => None,
        }
    }

    /// The code of the refusal, if it is one; `client_unknown` for [`Self::Uncertain`].
    pub fn code(&self) -> Option<Code> {
        match self {
            Self::Refused(refusal) => Some(refusal.code),
            Self::Uncertain => Some(Code::ClientUnknown),
            Self::Cancelled | Self::Closed => None,
        }
    }
}

impl From<Refusal> for WriteError {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(Box::new(refusal))
    }
}

impl From<tidegate_protocol::Invalid> for WriteError {
    fn from(invalid: tidegate_protocol::Invalid) -> Self {
        Refusal::from(invalid).into()
    }
}

/// A refusal.
#[derive(Clone, PartialEq, Debug, thiserror::Error)]
#[error("{code}: {message}")]
pub struct Refusal {
    /// Why.
    pub code: Code,
    /// What to do next, for a developer.
    pub message: String,
    /// Which op and field.
    pub at: Option<At>,
    /// With `conflict` and `precondition_failed`: what stands.
    pub cells: Vec<ConflictUnit>,
}

impl Refusal {
    /// A refusal without further detail.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            at: None,
            cells: Vec::new(),
        }
    }
}

impl From<tidegate_protocol::Invalid> for Refusal {
    fn from(invalid: tidegate_protocol::Invalid) -> Self {
        Self::new(invalid.code, invalid.message)
    }
}

/// Mutations that were acked and are not in the gateway's history any more.
#[derive(Clone, PartialEq, Debug)]
pub struct Loss {
    /// The client whose mids these are.
    pub client: ClientId,
    /// The first lost mid.
    pub from: Mid,
    /// The last.
    pub through: Mid,
    /// Those of which the content is still held: acked, and not yet seen in the confirmed state.
    pub known: Vec<LostMutation>,
}

/// A lost mutation.
#[derive(Clone, PartialEq, Debug)]
pub struct LostMutation {
    /// Its number in the queue.
    pub id: MutationId,
    /// Its mid.
    pub mid: Mid,
    /// What it did.
    pub ops: Vec<Op>,
}

/// Why a space's client takes a new id.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NewIdReason {
    /// Another copy of this client's database has written.
    Cloned,
    /// The gateway keeps no record of it.
    Unknown,
    /// The gateway lost what it had acked.
    Loss,
    /// The gateway waits for a mid that this client does not hold: the record of a refusal was lost, or
    /// the queue that held it.
    Gap,
}
