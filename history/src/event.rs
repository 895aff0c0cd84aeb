//! What happened, told to the checker in the order in which it happened.
//!
//! Messages are handed in as they are; which subscription, client or mutation they are about, the checker
//! finds out. Nothing is kept but what it needs.

use std::collections::BTreeMap;
use tidegate_protocol::{
    ClientId, ClientMessage, Collection, Commit, DocPath, Epoch, FieldPath, Mid, Position, Seq, ServerMessage, SpaceId,
    Value, ViewId,
};

/// Documents by path, each as its leaves by path. A document without leaves exists.
pub type Docs = BTreeMap<DocPath, BTreeMap<FieldPath, Value>>;

/// One connection; never used again for another.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ConnectionId(pub u64);

/// One installation's storage. It holds one local copy, a *replica*, of each space that it uses, and
/// survives connections and restarts.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Installation(pub u32);

/// The app's own label of a mutation, unique within a space. A counting mutation (see `workload`) creates
/// the document of this number.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Tag(pub u64);

/// What became of a mutation, as its app was told.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Fate {
    /// Accepted.
    Acked,
    /// Refused for good, by the gateway or before it was queued: it has no effect anywhere.
    Refused,
    /// Taken back before it was sent.
    Cancelled,
    /// The gateway can no longer say whether it was applied.
    Uncertain,
    /// Nobody will ever tell: the storage that held it was thrown away, or is an older one now.
    Forgotten,
}

/// Something that happened. Events of one space come in real time: what is observed later did not happen before.
/// `Sent` is observed before the bytes leave, `Received` after they came, `Commit` before anybody is told.
#[derive(Clone, Copy, Debug)]
pub enum Event<'a> {
    // The store's own account. Where there is none, the truth is what subscribers of the full view agree on.
    /// The lineage goes on under a new name after `after`, a position of an epoch before (`Position::START`
    /// for the first). Whatever lay beyond `after` is lost.
    Epoch {
        /// The space.
        space: &'a SpaceId,
        /// The new name.
        epoch: Epoch,
        /// From where it goes on.
        after: Position,
    },
    /// The store failed over to, or was restored from, a copy whose head is this. The rest is lost; where that is no
    /// commit, refusals may be.
    /// It stays in the present epoch until the next commit mints one.
    FellBack {
        /// The space.
        space: &'a SpaceId,
        /// The head now; `Position::START` if the copy knows nothing of the space.
        head: Position,
    },
    /// The space's data was erased, or a user's in it, and its lineage begins anew with this epoch, after `start`.
    Erased {
        /// The space.
        space: &'a SpaceId,
        /// The new name.
        epoch: Epoch,
        /// The head; the first commit is the one after it.
        start: Seq,
        /// Whose data; `None` is everybody's.
        user: Option<&'a str>,
        /// All documents that are left.
        docs: &'a Docs,
    },
    /// A commit was applied.
    Commit {
        /// The space.
        space: &'a SpaceId,
        /// The epoch in which it was.
        epoch: Epoch,
        /// Its content in full.
        commit: &'a Commit,
    },
    /// More time has passed, for the store or for a client, than records of clients are kept: what was acked
    /// before may be lost without a word, and `last_mid` may be nil.
    RecordsAged,

    // What goes over connections.
    /// A connection was opened.
    Connected {
        /// Its name.
        connection: ConnectionId,
        /// By whose client.
        installation: Installation,
        /// As whom (`welcome.user`).
        user: &'a str,
    },
    /// A client hands a message to the socket.
    Sent {
        /// Where.
        connection: ConnectionId,
        /// What.
        message: &'a ClientMessage,
    },
    /// A client takes a message.
    Received {
        /// Where.
        connection: ConnectionId,
        /// What.
        message: &'a ServerMessage,
    },
    /// The connection is gone, for the client.
    Disconnected {
        /// Which.
        connection: ConnectionId,
    },
    /// What a view covers, where that is not what the `sub`'s filter says: rules restrict what its user may
    /// read. To be told before the first `begin` with this view.
    Covers {
        /// The view.
        view: ViewId,
        /// The collections; `None` is all.
        collections: Option<&'a [Collection]>,
    },

    // What becomes of an installation's storage.
    /// The program ended with its memory, and what its storage holds of the space is what it goes on from,
    /// with nothing staged. To be told once for each space, after the end of its connections. A mutation that
    /// was not stored was never `Issued`.
    Restarted {
        /// Whose.
        installation: Installation,
        /// The space.
        space: &'a SpaceId,
        /// The position and the view that the storage holds.
        standing: Option<(Position, ViewId)>,
    },
    /// The storage is a copy of an older one, its own or another installation's. Mutations that it holds may be
    /// known elsewhere, too, and be applied once for each of the two. Before this, what was open in the storage
    /// that is replaced is settled as `Forgotten`; after it, what the copy's queue holds is `Issued` again.
    Replaced {
        /// Whose.
        installation: Installation,
        /// The space.
        space: &'a SpaceId,
        /// The position and the view that the copy holds.
        standing: Option<(Position, ViewId)>,
    },

    // What apps see and are told.
    /// An app's mutation is in the queue, and that is stored.
    Issued {
        /// Whose.
        installation: Installation,
        /// The space.
        space: &'a SpaceId,
        /// The app's label.
        tag: Tag,
        /// Whether it is a counting mutation, made of `workload::counting`; as an upsert, where its view may leave out or
        /// lose the counter.
        counts: bool,
    },
    /// The app is told what became of it, and that is stored.
    Settled {
        /// Whose.
        installation: Installation,
        /// The space.
        space: &'a SpaceId,
        /// Which.
        tag: Tag,
        /// What became of it.
        fate: Fate,
    },
    /// The app is told that acked mutations are lost.
    Lost {
        /// Whose.
        installation: Installation,
        /// The space.
        space: &'a SpaceId,
        /// The client whose mids these are.
        client: ClientId,
        /// The first lost.
        from: Mid,
        /// The last.
        through: Mid,
    },
    /// A look at the local view (confirmed state and own mutations over it), after every `Settled` and `Lost`
    /// that came before it was told.
    Shown {
        /// Whose.
        installation: Installation,
        /// The space.
        space: &'a SpaceId,
        /// The confirmed position; `None` if nothing is confirmed.
        position: Option<Position>,
        /// The counter of `workload::counting`; 0 if it is not there.
        count: i64,
        /// Both halves of pairs of `workload::pair`.
        pairs: &'a [(Option<&'a Value>, Option<&'a Value>)],
    },
    /// All that is confirmed and shown as such, at any time.
    Held {
        /// Whose.
        installation: Installation,
        /// The space.
        space: &'a SpaceId,
        /// Where it stands.
        position: Option<Position>,
        /// The documents.
        docs: &'a Docs,
    },

    // The end: no faults any more, everything sent has arrived.
    /// What the store, or a new subscriber, has at rest.
    Rest {
        /// The space.
        space: &'a SpaceId,
        /// The head.
        position: Position,
        /// All documents.
        docs: &'a Docs,
    },
    /// What a subscribed replica holds at rest. After `Rest`.
    AtRest {
        /// Whose.
        installation: Installation,
        /// The space.
        space: &'a SpaceId,
        /// Where it stands.
        position: Option<Position>,
        /// The confirmed documents.
        docs: &'a Docs,
        /// Mutations that wait in its queue.
        queued: usize,
    },
}
