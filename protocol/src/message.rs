//! The messages, as types. `msgpack` and `json` give them their two wire forms.

use crate::error::{Code, Invalid};
use crate::ids::{ClientId, Epoch, Mid, MutationKey, Position, Seq, ViewId, Writer};
use crate::limits::Limits;
use crate::name::{Collection, DocPath, FieldPath, SpaceId};
use crate::tree;
use crate::value::{Number, Value};
use bytes::Bytes;

/// The subprotocol of binary frames.
pub const SUBPROTOCOL_MSGPACK: &str = "tidegate.v1.msgpack";
/// The subprotocol of text frames.
pub const SUBPROTOCOL_JSON: &str = "tidegate.v1.json";

/// What a client sends.
#[derive(Clone, PartialEq, Debug)]
pub enum ClientMessage {
    /// First on every connection.
    Hello(Hello),
    /// Renews the token of a live connection.
    Auth {
        /// The new token, of the same user.
        token: String,
    },
    /// Subscribes to a space, or replaces the subscription's filter.
    Sub(Sub),
    /// Ends a subscription.
    Unsub {
        /// The `id` of the `sub`.
        id: u64,
    },
    /// A mutation.
    Write(Write),
    /// One read without a subscription.
    Get(Get),
    /// Answered by `pong`.
    Ping {
        /// Any number; it comes back.
        at: u64,
    },
}

/// `hello`.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Hello {
    /// Where it is not in the `Authorization` header.
    pub token: Option<String>,
    /// Name and version of the client library, for the log.
    pub sdk: Option<String>,
    /// What the client understands beyond the base protocol.
    pub caps: Vec<String>,
    /// Largest message it can take, in bytes, if more than 1 MiB.
    pub max_message: Option<u64>,
}

/// `sub`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Sub {
    /// Chosen by the client; names the subscription in answers.
    pub id: u64,
    /// The space.
    pub space: SpaceId,
    /// Whose `last_mid` the `current` is to carry.
    pub client: Option<ClientId>,
    /// Where the client stands; `None` asks for the whole.
    pub from: Option<ResumeFrom>,
    /// Collections to cover, sorted and without repeats; `None` is all of them.
    pub filter: Option<Vec<Collection>>,
}

/// Where a client stands.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ResumeFrom {
    /// Up to where its confirmed state goes.
    pub position: Position,
    /// The view in which it got there.
    pub view: ViewId,
    /// The last staged page's cursor, opaque.
    pub cursor: Option<Bytes>,
}

/// A mutation: ops on documents of one space, applied all or none.
#[derive(Clone, PartialEq, Debug)]
pub struct Write {
    /// Which mutation it is.
    pub head: WriteHead,
    /// Up to where the client had seen the space when the mutation was made.
    pub base: Option<Position>,
    /// What to do on conflict, if not what the collection says.
    pub policy: Option<Policy>,
    /// Empty only to settle a mid whose mutation has become too large to send.
    pub ops: Vec<Op>,
}

/// What names a mutation, and guards its order. Known even where the rest of a `write` is refused,
/// so that the refusal can consume the mid.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct WriteHead {
    /// The space.
    pub space: SpaceId,
    /// The client whose mid this is.
    pub client: ClientId,
    /// Contiguous per writer and space, from 1.
    pub mid: Mid,
    /// 64 random bits.
    pub key: MutationKey,
    /// The key of mutation `mid - 1`; absent exactly at mid 1.
    pub prev: Option<MutationKey>,
    /// Present exactly at mid 1: the `now` of a `welcome` received before it was first sent, ms since 1970.
    pub first: Option<u64>,
}

/// What becomes of a unit in conflict.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Policy {
    /// Last writer wins: it is written.
    Lww,
    /// First writer wins: the whole mutation is rejected.
    Reject,
    /// The unit is left out, the others are written.
    Merge,
}

impl Policy {
    /// All of them, with their wire names.
    pub const ALL: [(Self, &'static str); 3] = [(Self::Lww, "lww"), (Self::Reject, "reject"), (Self::Merge, "merge")];

    /// The wire name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Lww => "lww",
            Self::Reject => "reject",
            Self::Merge => "merge",
        }
    }
}

/// One op on one document.
#[derive(Clone, PartialEq, Debug)]
pub struct Op {
    /// The document.
    pub doc: DocPath,
    /// What to do.
    pub kind: OpKind,
    /// Precondition: the document exists, or does not.
    pub exists: Option<bool>,
    /// Precondition: nothing of the fields touched (`create`, `replace`, `delete`, `check`: of the
    /// document) was written after this, by anybody.
    pub unchanged_since: Option<Position>,
}

/// What an op does.
#[derive(Clone, PartialEq, Debug)]
pub enum OpKind {
    /// Writes leaves; a map replaces the subtree at its path. Creates the document.
    Set(Fields),
    /// As `Set`, but a map merges into the subtree.
    Merge(Fields),
    /// Removes leaves and subtrees. Does not create the document.
    Unset(Vec<FieldPath>),
    /// As `Replace`, but the document must not exist.
    Create(Fields),
    /// The document becomes exactly this.
    Replace(Fields),
    /// The document ceases to exist.
    Delete,
    /// Adds to a number.
    Inc {
        /// The leaf.
        path: FieldPath,
        /// What to add.
        by: Number,
    },
    /// Keeps the larger: of two numbers or two timestamps; anything else counts as absent.
    Max {
        /// The leaf.
        path: FieldPath,
        /// A number or a timestamp.
        value: Value,
    },
    /// Keeps the smaller.
    Min {
        /// The leaf.
        path: FieldPath,
        /// A number or a timestamp.
        value: Value,
    },
    /// Array union: appends what is missing. Anything but an array counts as an empty one.
    Add {
        /// The leaf.
        path: FieldPath,
        /// What to append, without repeats.
        values: Vec<Value>,
    },
    /// Array difference. Leaves anything but an array alone.
    Remove {
        /// The leaf.
        path: FieldPath,
        /// What to take out.
        values: Vec<Value>,
    },
    /// Writes the commit's server time as a timestamp.
    Now {
        /// The leaf.
        path: FieldPath,
    },
    /// Nothing but its preconditions.
    Check,
}

impl OpKind {
    /// The wire names of the ops.
    pub const NAMES: [&'static str; 13] = [
        "set", "merge", "unset", "create", "replace", "delete", "inc", "max", "min", "add", "remove", "now", "check",
    ];

    /// The wire name.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Set(_) => "set",
            Self::Merge(_) => "merge",
            Self::Unset(_) => "unset",
            Self::Create(_) => "create",
            Self::Replace(_) => "replace",
            Self::Delete => "delete",
            Self::Inc { .. } => "inc",
            Self::Max { .. } => "max",
            Self::Min { .. } => "min",
            Self::Add { .. } => "add",
            Self::Remove { .. } => "remove",
            Self::Now { .. } => "now",
            Self::Check => "check",
        }
    }
}

/// The fields of `set`, `merge`, `create`, `replace`: no path overlaps another. Sorted by path.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Fields(Vec<(FieldPath, Content)>);

/// What is written at a path.
#[derive(Clone, PartialEq, Debug)]
pub enum Content {
    /// A leaf.
    Leaf(Value),
    /// A non-empty map, flattened: every leaf below the path, by its absolute path, sorted.
    Map(Vec<(FieldPath, Value)>),
}

impl Fields {
    /// Fields at the given paths; overlapping paths are `invalid`. A map value is flattened.
    pub fn new(fields: impl IntoIterator<Item = (FieldPath, Value)>, limits: &Limits) -> Result<Self, Invalid> {
        let mut all = Vec::new();
        for (path, value) in fields {
            let content = tree::flatten(&path, &value, limits)?;
            all.push((path, content));
        }
        Self::of(all)
    }

    /// Fields whose values are flattened already.
    pub(crate) fn of(mut all: Vec<(FieldPath, Content)>) -> Result<Self, Invalid> {
        all.sort_by(|a, b| a.0.cmp(&b.0));
        // In text order a path's descendants need not directly follow it ("a", "a b", "a.b").
        tree::refuse_overlaps(all.iter().map(|(path, _)| path))?;
        Ok(Self(all))
    }

    /// The fields, sorted by path.
    pub fn iter(&self) -> std::slice::Iter<'_, (FieldPath, Content)> {
        self.0.iter()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Every leaf by its absolute path.
    pub fn leaves(&self) -> impl Iterator<Item = (&FieldPath, &Value)> {
        self.0.iter().flat_map(|(path, content)| match content {
            Content::Leaf(value) => vec![(path, value)],
            Content::Map(leaves) => leaves.iter().map(|(p, v)| (p, v)).collect(),
        })
    }
}

/// `get`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Get {
    /// Chosen by the client; names the answer.
    pub id: u64,
    /// The space.
    pub space: SpaceId,
    /// The documents.
    pub docs: Vec<DocPath>,
}

/// What a server sends.
#[derive(Clone, PartialEq, Debug)]
pub enum ServerMessage {
    /// Answer to `hello`.
    Welcome(Welcome),
    /// A catch-up begins.
    Begin(Begin),
    /// A page of it.
    Page {
        /// The subscription.
        id: u64,
        /// Documents, whole or changed or deleted.
        docs: Vec<DocChange>,
        /// Where to go on from, opaque.
        cursor: Bytes,
    },
    /// The catch-up ends: apply what was staged; the state is that of this position.
    Current {
        /// The subscription.
        id: u64,
        /// The position.
        position: Position,
        /// The client's mutations up to it are in this state or were refused; `None` without a record.
        last_mid: Option<Mid>,
    },
    /// One commit.
    Change(Change),
    /// The history goes on under a new name.
    Epoch {
        /// The space's number.
        n: u32,
        /// The new epoch, and the seq at which it starts.
        position: Position,
    },
    /// Everything up to `seq` has been delivered.
    Progress {
        /// The space's number.
        n: u32,
        /// Up to here.
        seq: Seq,
    },
    /// A mutation was accepted, and is as durable as the gateway is configured for.
    Ack(Ack),
    /// A mutation was refused.
    Reject(Reject),
    /// Answer to `get`: one consistent cut.
    Docs {
        /// The `id` of the `get`.
        id: u64,
        /// As of when.
        position: Position,
        /// Every document asked for, `Whole` or `Deleted` (also if it never was), in that order.
        docs: Vec<DocChange>,
    },
    /// A subscription ended by the rules, or not begun.
    Denied {
        /// The subscription.
        id: u64,
        /// Why.
        code: Code,
        /// Whether to forget confirmed and staged data.
        purge: bool,
    },
    /// Before a drain.
    Goaway {
        /// Reconnect after this many ms
        retry_ms: u64,
        /// plus a random part of this.
        jitter_ms: u64,
    },
    /// Answer to `ping`.
    Pong {
        /// The `at` of the `ping`.
        at: u64,
        /// Server time, ms since 1970.
        now: u64,
    },
    /// Something went wrong that no other message says.
    Error {
        /// Code.
        code: Code,
        /// Text for a developer.
        message: String,
        /// The `id` it is about.
        re: Option<u64>,
    },
}

/// `welcome`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Welcome {
    /// Name of this connection, for the support desk.
    pub session: String,
    /// Name of the node.
    pub node: String,
    /// The user's name; part of the writer.
    pub user: String,
    /// Server time, ms since 1970.
    pub now: u64,
    /// The limits in force.
    pub limits: Limits,
    /// What the server understands beyond the base protocol, and the client declared.
    pub caps: Vec<String>,
    /// Ping after this long without sending.
    pub ping_ms: u64,
    /// When the token expires, ms since 1970.
    pub token_expires: Option<u64>,
}

/// `begin`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Begin {
    /// The subscription.
    pub id: u64,
    /// The node's number for the space, never reused in a process.
    pub n: u32,
    /// What follows.
    pub mode: Mode,
    /// The view that positions and cursors of this subscription are valid for.
    pub view: ViewId,
    /// The epoch of the head.
    pub epoch: Epoch,
    /// Whether the cursor was taken up; if not, drop what was staged.
    pub resumed: bool,
}

/// Mode of a catch-up.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Mode {
    /// Exact commits follow as changes.
    Log,
    /// Pages of what changed.
    Delta,
    /// Pages of the whole; drop what you hold at `current`.
    Reset,
}

impl Mode {
    /// All of them, with their wire names.
    pub const ALL: [(Self, &'static str); 3] = [(Self::Log, "log"), (Self::Delta, "delta"), (Self::Reset, "reset")];

    /// The wire name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Log => "log",
            Self::Delta => "delta",
            Self::Reset => "reset",
        }
    }
}

/// `["c", n, s, a, b, d]`: one commit as a subscriber gets it.
#[derive(Clone, PartialEq, Debug)]
pub struct Change {
    /// The node's number for the space, from `begin`.
    pub n: u32,
    /// The commit.
    pub commit: Commit,
}

/// A commit's content, the same for every subscriber of a view.
#[derive(Clone, PartialEq, Debug)]
pub struct Commit {
    /// Its number.
    pub seq: Seq,
    /// Server time, ms since 1970; never goes back within a space.
    pub at: u64,
    /// Who wrote it.
    pub writer: Writer,
    /// Which of the writer's mutations it is.
    pub mid: Mid,
    /// What it did, a document at most once, sorted by path.
    pub docs: Vec<DocChange>,
}

/// What became of a document.
#[derive(Clone, PartialEq, Debug)]
pub struct DocChange {
    /// Its path.
    pub doc: DocPath,
    /// What to do with what one holds.
    pub kind: DocChangeKind,
}

/// What to do with what one holds of a document.
#[derive(Clone, PartialEq, Debug)]
pub enum DocChangeKind {
    /// Remove the subtrees `unset`, then write the leaves `set`.
    Change {
        /// Leaves, sorted by path.
        set: Vec<(FieldPath, Value)>,
        /// Roots of subtrees, sorted.
        unset: Vec<FieldPath>,
    },
    /// Replace it by exactly these leaves, sorted by path.
    Whole(Vec<(FieldPath, Value)>),
    /// Forget it.
    Deleted,
}

/// `ack`.
#[derive(Clone, PartialEq, Debug)]
pub struct Ack {
    /// The space.
    pub space: SpaceId,
    /// The mutation.
    pub mid: Mid,
    /// Its commit.
    pub position: Position,
    /// Units that were written over another writer's newer ones (policy `lww`), with what they overwrote.
    pub conflicts: Vec<ConflictUnit>,
    /// Units that were left out (policy `merge`), with what stands.
    pub skipped: Vec<ConflictUnit>,
}

/// A unit in conflict: a leaf, a map value, or a whole document.
#[derive(Clone, PartialEq, Debug)]
pub struct ConflictUnit {
    /// Index into the mutation's ops.
    pub op: u32,
    /// The document.
    pub doc: DocPath,
    /// The path written; `None` is the whole document.
    pub path: Option<FieldPath>,
    /// The cells at, above and below that path. Empty if the document itself was deleted.
    pub cells: Vec<CellState>,
}

/// A cell as stored.
#[derive(Clone, PartialEq, Debug)]
pub struct CellState {
    /// The leaf.
    pub path: FieldPath,
    /// The commit that wrote it.
    pub seq: Seq,
    /// The writer of that.
    pub writer: Writer,
    /// Its value; `None` is a tombstone.
    pub value: Option<Value>,
}

/// `reject`.
#[derive(Clone, PartialEq, Debug)]
pub struct Reject {
    /// The space.
    pub space: SpaceId,
    /// The mutation.
    pub mid: Mid,
    /// Why.
    pub code: Code,
    /// What to do next, for a developer.
    pub message: String,
    /// Which op and field.
    pub at: Option<At>,
    /// For temporary refusals: when to try again.
    pub retry_ms: Option<u64>,
    /// With `out_of_order`: the mid to send next.
    pub expected: Option<Mid>,
    /// With `conflict` and `precondition_failed`: what stands.
    pub cells: Vec<ConflictUnit>,
}

/// A place in a mutation.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct At {
    /// Index into the ops.
    pub op: u32,
    /// The field.
    pub path: Option<FieldPath>,
}
