//! The store: truth about every space. One trait, a reference model, and the implementations.
//!
//! What a commit is to do has been decided by the engine (`crate::engine`): a *prepared* item lists the
//! cells to write and what must still hold for that to be right. The store checks and writes in one
//! atomic step, and knows nothing of ops, rules or policies.

pub mod embedded;
pub mod lineage;
pub mod model;
pub mod redis;

use crate::metrics::Reading;
use async_trait::async_trait;
use bytes::Bytes;
pub use lineage::{Lineage, LineageEntry};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use tidegate_protocol::msgpack::DocChanges;
use tidegate_protocol::{
    Code, Collection, DocPath, Epoch, FieldPath, Mid, MutationKey, Position, Seq, SpaceId, Value, ViewId, Writer,
};

/// Holds spaces. Every implementation passes the contract suite (`tests/contract`) and agrees with
/// the model on every answer.
///
/// Guarantees: `commit` is atomic per item and in the order of its items, seqs are contiguous per
/// space, and once it has answered, every later call sees it. `read`, each page of `log` and of
/// `changes`, and each space of `positions` is one consistent cut, with the checks of its positions
/// made in the same step. An error of `commit` means *unknown*, never *failed*: retry with the same
/// (`writer`, `mid`, `key`). No call is lost half-done: what was applied was applied whole.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// Applies prepared items in order, each or not at all; answers one outcome an item. Where none is applied, refused
    /// or a duplicate, nothing is written: a space exists once it was written to.
    async fn commit(&self, group: CommitGroup) -> Result<Committed, StoreError>;

    /// Documents with their cells, as of one position.
    async fn read(&self, space: &SpaceId, docs: &[DocPath]) -> Result<ReadCut, StoreError>;

    /// Exact commits after `after`, at most `limit` of them and about `bytes` of payload.
    async fn log(
        &self,
        space: &SpaceId,
        after: Position,
        limit: usize,
        bytes: usize,
        writer: Option<Writer>,
    ) -> Result<LogReply, StoreError>;

    /// A page of what changed (see [`ChangesRequest`]).
    async fn changes(&self, space: &SpaceId, request: ChangesRequest) -> Result<ChangesReply, StoreError>;

    /// Head, lineage and floor of each space, in order. A space without history is at `Position::START`. Where one of
    /// them is damaged, the answer is `Damaged`, whatever the others are.
    async fn positions(&self, spaces: &[SpaceId]) -> Result<Vec<SpaceState>, StoreError>;

    /// As [`Store::positions`], but a damaged space is said to be so in its own place, and holds up none of the others.
    async fn each_position(&self, spaces: &[SpaceId]) -> Result<Vec<Result<SpaceState, StoreError>>, StoreError> {
        match self.positions(spaces).await {
            Ok(states) => Ok(states.into_iter().map(Ok).collect()),
            // They are few: halves without any answer as a whole.
            Err(StoreError::Damaged(_)) if spaces.len() > 1 => {
                let (some, others) = spaces.split_at(spaces.len() / 2);
                let mut states = self.each_position(some).await?;
                states.extend(self.each_position(others).await?);
                Ok(states)
            }
            Err(damaged @ StoreError::Damaged(_)) => Ok(vec![Err(damaged)]),
            Err(error) => Err(error),
        }
    }

    /// The newest `limit` entries of a space's conflict log, newest first.
    async fn conflicts(&self, space: &SpaceId, limit: usize) -> Result<Vec<ConflictRecord>, StoreError>;

    /// Erases a space, or all data of a user in it, and returns once it is gone.
    ///
    /// From its first step on, which is durable, the space answers `Unavailable` to all but `positions`,
    /// until it is done. `begun` is called after that step, with the lineage then. What has begun goes on
    /// without its caller, after a failure, and after whatever ended the process; an error means that
    /// nothing has begun, or that nobody knows. Asked again for the same while it is under way, the call
    /// waits for that one; asked for another, it waits for its turn. `fresh` is a new random name,
    /// not 0, for the one epoch of the lineage then, which starts at the head: every position resets, and
    /// seqs go on. The log is emptied, the floor rises to the head.
    ///
    /// [`Erase::Space`]: nothing stays but where the space stands. [`Erase::User`]: the cells that the user
    /// wrote last go, tombstones too; documents that are left without a cell and were touched by nobody else; conflicts in which a value of
    /// the user's occurs; results of the user's mutations. A header that names the user names [`NOBODY`].
    ///
    /// The record of each erased client becomes a marker that answers `ClientUnknown` for as long as records
    /// are kept. A space that does not exist stays so.
    async fn erase(
        &self,
        space: &SpaceId,
        whom: Erase,
        fresh: Epoch,
        now_ms: u64,
        begun: Begun<'_>,
    ) -> Result<Erased, StoreError>;

    /// What the documents of all spaces take, as of the last commit that was answered or later. Does not block.
    fn usage(&self) -> Usage;

    /// What the store counts, for the metrics page: the same names at every call.
    fn readings(&self) -> Vec<Reading> {
        vec![]
    }
}

/// The store could not answer. Nothing is known of a commit that ended so.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// For now; try again.
    #[error("the store is unavailable: {0}")]
    Unavailable(String),
    /// What is stored contradicts itself.
    #[error("the store is damaged: {0}")]
    Damaged(String),
}

/// How long and how much a store keeps.
#[derive(Clone, Debug)]
pub struct Retention {
    /// Commits kept in a space's log at most.
    pub log_commits: u64,
    /// Bytes of payload kept in a space's log at most.
    pub log_bytes: u64,
    /// Commits are kept in a space's log this long, ms.
    pub log_ms: u64,
    /// Tombstones are kept this long, ms.
    pub tombstones_ms: u64,
    /// Client records are kept this long after their last write, ms.
    pub clients_ms: u64,
    /// Entries kept in a space's conflict log at most.
    pub conflicts: u64,
    /// Bytes of entries kept in a space's conflict log at most, as [`ConflictRecord::size`] counts.
    pub conflicts_bytes: u64,
}

/// Results of mutations kept per client; older ones are `client_unknown`.
pub const KEPT_RESULTS: u64 = 256;
const DAY_MS: u64 = 24 * 60 * 60 * 1000;

impl Default for Retention {
    fn default() -> Self {
        Self {
            log_commits: 10_000,
            log_bytes: 16 << 20,
            log_ms: 7 * DAY_MS,
            tombstones_ms: 90 * DAY_MS,
            clients_ms: 90 * DAY_MS,
            conflicts: 10_000,
            conflicts_bytes: 16 << 20,
        }
    }
}

impl Retention {
    /// How old the `first` of a client without a record may be, ms.
    fn firsts_ms(&self) -> u64 {
        self.clients_ms.checked_sub(DAY_MS).unwrap_or(self.clients_ms)
    }

    /// Whether a `first` (see `WriteHead`) is too old for a client without a record to be new: older
    /// than record retention less a day (a retention of less than a day counts in full), or not newer than
    /// `forgotten`, the newest last write of a record that the space has forgotten. The latter holds also
    /// where the clock that forgot it was far ahead, and is right again.
    pub fn first_is_too_old(&self, first: u64, now_ms: u64, forgotten: Option<u64>) -> bool {
        first.saturating_add(self.firsts_ms()) < now_ms || forgotten.is_some_and(|forgotten| first <= forgotten)
    }
}

/// Prepared items of one space.
#[derive(Clone, Debug)]
pub struct CommitGroup {
    /// The space.
    pub space: SpaceId,
    /// The last epoch of the lineage that the items were planned on (`Epoch(0)`: none). Where the
    /// store's is another, every item that passes the mid check is `Stale`.
    pub planned_on: Epoch,
    /// A new random name, not 0, in case a new epoch has to be minted: with the first group of another life of the
    /// store that writes something.
    pub fresh: Epoch,
    /// The caller's clock, ms since 1970, by which the records of clients age. A commit's time is this,
    /// raised to the last commit's: a clock that was ahead for a moment holds the space's time up, and
    /// makes nobody old.
    pub now_ms: u64,
    /// The items, in order.
    pub items: Vec<Prepared>,
}

/// A user, as the store knows one: the first 8 bytes, big-endian, of SHA-256 of the user's name.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct UserTag(pub u64);

impl UserTag {
    /// The tag of a user.
    pub fn of(user: &str) -> Self {
        let digest = Sha256::digest(user.as_bytes());
        let (first, _) = digest.split_first_chunk().expect("32 bytes");
        Self(u64::from_be_bytes(*first))
    }
}

/// Whose data to erase.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Erase {
    /// Everybody's.
    Space,
    /// A user's. The store knows the writers that a user has had from the mutations that it was handed, as
    /// long as the space exists; one that last wrote before format 2 is not known to be anybody's.
    User(UserTag),
}

/// The writer that a header names in the place of an erased one.
pub const NOBODY: Writer = Writer(0);

/// Told of the lineage as of the first step of an erasure.
pub type Begun<'a> = &'a (dyn Fn(&Lineage) + Sync);

/// What an erasure has removed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Erased {
    /// Documents, deleted ones too.
    pub docs: u64,
    /// Cells, tombstones too.
    pub cells: u64,
    /// Commits from the log.
    pub commits: u64,
    /// Entries of the conflict log.
    pub conflicts: u64,
    /// Clients that a marker stands for now.
    pub clients: u64,
}

impl Erased {
    /// Both together.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self {
            docs: self.docs + other.docs,
            cells: self.cells + other.cells,
            commits: self.commits + other.commits,
            conflicts: self.conflicts + other.conflicts,
            clients: self.clients + other.clients,
        }
    }
}

/// A mutation, planned.
#[derive(Clone, Debug)]
pub struct Prepared {
    /// Who writes.
    pub writer: Writer,
    /// Whose writer that is.
    pub user: UserTag,
    /// Which of the writer's mutations.
    pub mid: Mid,
    /// Its mark.
    pub key: MutationKey,
    /// The mark of the one before; `None` exactly at mid 1.
    pub prev: Option<MutationKey>,
    /// At mid 1: when the client was new, ms since 1970.
    pub first: Option<u64>,
    /// What it was planned on: each document it looked at. Any other state is `Stale`.
    pub expects: Vec<(DocPath, Version)>,
    /// What to do.
    pub action: Action,
}

/// The seq by which a plan names the commit of the group's item `index`, before the store has given
/// it one. It is greater than any commit's. Outside the engine's planning it occurs in
/// [`ConflictEntry::theirs`] alone, where the store resolves it (see [`ConflictEntry::resolve`]).
pub fn planned_seq(index: usize) -> Seq {
    Seq::new(PLANNED + index as u64).expect("a group is far smaller than 2^52")
}

/// The index that [`planned_seq`] was given; `None` for a commit's seq.
pub fn planned_index(seq: Seq) -> Option<usize> {
    usize::try_from(seq.get().checked_sub(PLANNED)?).ok()
}

/// Half of the seqs there are: no space gets here.
const PLANNED: u64 = 1 << 52;

/// The state of a document that a plan was made on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Version {
    /// No header: never written, or collected.
    Absent,
    /// Last touched by this commit.
    Seq(Seq),
    /// Last touched by the item of this index in the same group, as planned.
    Item(usize),
}

/// What a prepared item does.
#[derive(Clone, Debug)]
pub enum Action {
    /// Takes the next seq and writes.
    Apply(Effects),
    /// Consumes the mid and keeps the refusal as its result, without a commit.
    Refuse {
        /// A code that consumes the mid.
        code: Code,
        /// Goes into the conflict log in the same step.
        conflicts: Vec<ConflictEntry>,
        /// Kept with the result, opaque, at most a few KiB.
        detail: Bytes,
    },
}

/// What a commit writes.
#[derive(Clone, Debug, Default)]
pub struct Effects {
    /// A document at most once.
    pub docs: Vec<DocEffect>,
    /// The change from its `b` on: `msgpack::encode_body`. The store puts seq and time in front.
    pub body: Bytes,
    /// The commit's time, ms since 1970, if the body or a cell holds it; where the commit would have
    /// another, the item is `Stale`.
    pub now_ms: Option<u64>,
    /// Goes into the conflict log in the same step.
    pub conflicts: Vec<ConflictEntry>,
    /// Kept with the result, opaque, at most a few KiB.
    pub detail: Bytes,
}

/// What a commit does to a document.
#[derive(Clone, Debug)]
pub struct DocEffect {
    /// The document.
    pub doc: DocPath,
    /// Created or replaced: `born` becomes this commit's seq.
    pub born: bool,
    /// Deleted at some point in this commit (a later op may have created it again): `deleted` becomes this commit's seq.
    pub deleted: bool,
    /// Whether it exists afterwards.
    pub alive: bool,
    /// Its size afterwards: the bytes of its live leaves' paths and values.
    pub size: u64,
    /// Cells written: a value, or `None` for a tombstone.
    pub cells: Vec<(FieldPath, Option<Value>)>,
}

/// A document's header. Writers stand beside the seqs so that a conflict can be told from one's own write.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Header {
    /// The commit that last touched it.
    pub last: Stamp,
    /// The commit that created or last replaced it.
    pub born: Stamp,
    /// The commit that last deleted it, if any is remembered.
    pub deleted: Option<Stamp>,
    /// Whether it exists.
    pub alive: bool,
    /// The bytes of its live leaves' paths and values.
    pub size: u64,
}

/// Which commit, and whose.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Stamp {
    /// The commit.
    pub seq: Seq,
    /// Its writer.
    pub writer: Writer,
}

/// A leaf's stored state.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Cell {
    /// The commit that wrote it.
    pub stamp: Stamp,
    /// Its value; `None` is a tombstone.
    pub value: Option<Value>,
}

/// A document as stored: tombstones too.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct DocState {
    /// `None`: never written, or collected.
    pub header: Option<Header>,
    /// Its cells.
    pub cells: BTreeMap<FieldPath, Cell>,
}

impl DocState {
    /// Whether it exists.
    pub fn alive(&self) -> bool {
        self.header.is_some_and(|header| header.alive)
    }

    /// Its live leaves, sorted by path.
    pub fn leaves(&self) -> impl Iterator<Item = (&FieldPath, &Value)> {
        self.cells
            .iter()
            .filter_map(|(path, cell)| Some((path, cell.value.as_ref()?)))
    }
}

/// Answer of `commit`.
#[derive(Clone, Debug)]
pub struct Committed {
    /// One an item, in order.
    pub outcomes: Vec<Outcome>,
    /// The lineage after the call.
    pub lineage: Lineage,
}

/// What became of an item.
#[derive(Clone, PartialEq, Debug)]
pub enum Outcome {
    /// Applied as the commit of this position.
    Applied {
        /// Where.
        position: Position,
        /// The commit's time, ms since 1970.
        at: u64,
        /// The change as subscribers get it, from its seq on.
        payload: Bytes,
    },
    /// Refused, as planned; the mid is consumed. The position is the head at that time.
    Refused {
        /// The head.
        position: Position,
    },
    /// It was answered before: the first result, for the same key.
    Duplicate(Kept),
    /// What it was planned on does not hold. Plan again.
    Stale {
        /// Time of the last commit, ms since 1970: plan with a clock that is not below it.
        last_ms: u64,
    },
    /// A mid before it has not arrived.
    OutOfOrder {
        /// The mid to send next.
        expected: Mid,
    },
    /// Another copy of this client's database has written.
    ClientCloned,
    /// No record is kept that could tell whether it was applied.
    ClientUnknown,
}

impl Outcome {
    /// Whether the store writes for it. A group without any such outcome leaves no trace, and begins no epoch.
    fn is_kept(&self) -> bool {
        matches!(self, Self::Applied { .. } | Self::Refused { .. } | Self::Duplicate(_))
    }
}

/// The kept result of a mutation.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Kept {
    /// `None`: applied.
    pub refused: Option<Code>,
    /// The commit's position, or the head when it was refused.
    pub position: Position,
    /// As given.
    pub detail: Bytes,
}

/// A conflict, as it goes into the conflict log.
#[derive(Clone, PartialEq, Debug)]
pub struct ConflictEntry {
    /// The document.
    pub doc: DocPath,
    /// The unit's path; `None` is the whole document.
    pub path: Option<FieldPath>,
    /// What was there: cells at, above and below that path, newer than the base, by other writers.
    /// A cell that several units of a mutation meet stands with the first of them.
    /// One written by an earlier item of the same group has that item's [`planned_seq`].
    pub theirs: Vec<(FieldPath, Cell)>,
    /// What the mutation wanted there, rebuilt; `None` is removal.
    pub ours: Option<Value>,
    /// What was done.
    pub done: ConflictDone,
}

impl ConflictEntry {
    /// Puts the seqs of commits in the place of planned ones. A store calls it before it writes the
    /// entry; `seq_of` gives the seq that the item of an index was applied as in this very call (the
    /// item's `expects` make sure that it was).
    pub fn resolve(&mut self, seq_of: impl Fn(usize) -> Option<Seq>) {
        for (_, cell) in &mut self.theirs {
            if let Some(seq) = planned_index(cell.stamp.seq).and_then(&seq_of) {
                cell.stamp.seq = seq;
            }
        }
    }
}

/// What was done about a conflict.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum ConflictDone {
    /// The mutation's value was written over the other's (`lww`).
    Overwritten,
    /// The mutation was refused (`reject`).
    Rejected,
    /// The unit was left out (`merge`).
    Skipped,
}

/// An entry of the conflict log.
#[derive(Clone, PartialEq, Debug)]
pub struct ConflictRecord {
    /// The position of the commit, or the head when it was refused.
    pub position: Position,
    /// Server time, ms since 1970.
    pub at: u64,
    /// Whose mutation.
    pub writer: Writer,
    /// Which.
    pub mid: Mid,
    /// The conflict.
    pub entry: ConflictEntry,
}

impl ConflictRecord {
    /// Whether a value of one of these writers occurs in it.
    fn names(&self, is_theirs: impl Fn(&Writer) -> bool) -> bool {
        let mut cells = self.entry.theirs.iter();
        is_theirs(&self.writer) || cells.any(|(_, cell)| is_theirs(&cell.stamp.writer))
    }

    /// Bytes that count against the bound of the conflict log: paths, values, and what stands beside them.
    pub fn size(&self) -> u64 {
        let text = |text: &str| 4 + text.len();
        let value = |value: &Value| value.as_bytes().len();
        let theirs =
            |(path, cell): &(FieldPath, Cell)| text(path.as_str()) + 4 + 16 + cell.value.as_ref().map_or(0, value);
        let entry = &self.entry;
        let size = 5 * 8
            + text(entry.doc.as_str())
            + 3
            + entry.path.as_ref().map_or(0, |path| text(path.as_str()))
            + entry.ours.as_ref().map_or(0, |ours| 4 + value(ours))
            + entry.theirs.iter().map(theirs).sum::<usize>();
        size as u64
    }
}

/// Answer of `read`.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct ReadCut {
    /// The space as of this cut.
    pub state: SpaceState,
    /// The documents, in the order asked for.
    pub docs: Vec<DocState>,
}

/// Where a space stands.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct SpaceState {
    /// Last epoch and last seq.
    pub head: Position,
    /// The epochs that positions may name.
    pub lineage: Lineage,
    /// Tombstones at or below it may be gone.
    pub floor: Seq,
    /// Time of the last commit, ms since 1970.
    pub last_ms: u64,
    /// What its documents take.
    pub usage: Usage,
}

/// What documents take.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Usage {
    /// Documents that exist.
    pub docs: u64,
    /// Their sizes together, as [`Header::size`] counts.
    pub bytes: u64,
}

impl Usage {
    /// What a document with this header takes: nothing, if it does not exist.
    pub fn of(header: Option<&Header>) -> Self {
        header
            .filter(|header| header.alive)
            .map_or(Self::default(), |header| Self {
                docs: 1,
                bytes: header.size,
            })
    }

    /// Both together.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self {
            docs: self.docs + other.docs,
            bytes: self.bytes + other.bytes,
        }
    }

    /// Takes `before` out and puts `after` in.
    pub fn replace(&mut self, before: Self, after: Self) {
        self.docs = (self.docs + after.docs).saturating_sub(before.docs);
        self.bytes = (self.bytes + after.bytes).saturating_sub(before.bytes);
    }
}

/// Answer of `log`.
#[derive(Clone, PartialEq, Debug)]
pub enum LogReply {
    /// The commits after the position, contiguous; all of them if the last one's seq is the head's.
    Commits {
        /// Payloads with their seqs.
        commits: Vec<LogEntry>,
        /// The space at that moment.
        state: SpaceState,
        /// Last mid of the writer asked for, at that moment.
        last_mid: Option<Mid>,
    },
    /// The log no longer reaches back that far, or has commits of epochs that the lineage has forgotten: use `changes`.
    Trimmed,
    /// The position is none of this space's history.
    Reset(ResetReason),
}

/// A commit as published.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LogEntry {
    /// Its number.
    pub seq: Seq,
    /// The change from its seq on.
    pub payload: Bytes,
}

/// What a `changes` scan is to bring.
///
/// Cost grows with what changed after `after`, not with the space or its log: documents are visited
/// in the order (seq that last touched them, path), starting after the cursor, and the scan follows
/// the tail: a document touched meanwhile moves ahead of the cursor and is met again. In a reset a store may first bring
/// what was there when the scan began and has not been touched since, in an order of its own.
#[derive(Clone, PartialEq, Debug)]
pub struct ChangesRequest {
    /// `Some`: what changed after it. `None`: the whole (`reset`).
    pub after: Option<Position>,
    /// Where the page before ended.
    pub cursor: Option<Cursor>,
    /// What is covered.
    pub view: View,
    /// Whose last mid to report at the end.
    pub writer: Option<Writer>,
    /// About how many bytes of changes a page holds; at least one document is sent. One whose changes and
    /// tombstones take more than that, and more than it does itself, may be sent whole.
    pub budget: usize,
}

impl ChangesRequest {
    /// Why the scan cannot go on from where it says.
    fn invalid(&self, state: &SpaceState) -> Option<ResetReason> {
        let lost = |position: Position| !state.lineage.holds(position, state.head.seq);
        if self.after.is_some_and(lost) {
            return Some(ResetReason::Lost);
        }
        if let Some(cursor) = &self.cursor {
            if cursor.after != self.after || cursor.view != self.view.id {
                return Some(ResetReason::ForeignCursor);
            }
            // Of a space that has lost what says where it stands, no epoch is there that the head could be of.
            if cursor.head != state.head && lost(cursor.head) {
                return Some(ResetReason::Lost);
            }
        }
        // What lies below the floor may have been deleted without leaving a trace: a delta must begin
        // above it, and of a reset the staged pages must not be older.
        let trusted = match (self.after, &self.cursor) {
            (Some(after), _) => after.seq,
            (None, Some(cursor)) => cursor.begin,
            (None, None) => state.head.seq,
        };
        (trusted < state.floor).then_some(ResetReason::BelowFloor)
    }
}

/// Where a scan stands. Opaque to clients; survives a broken connection and a change of node.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Cursor {
    /// As in the request that began the scan.
    pub after: Option<Position>,
    /// The seq that last touched the last document visited; 0 as long as the scan has not come to what was touched
    /// since it began, and brings the rest in an order of the store's own.
    pub at: Seq,
    /// The last document visited.
    pub doc: DocPath,
    /// The seq of the head when the scan began.
    pub begin: Seq,
    /// The head when the page was read. Where a failover has cut history off below it, documents that had moved ahead
    /// of the cursor are behind it again, so the scan cannot go on.
    pub head: Position,
    /// The view.
    pub view: ViewId,
}

/// What a subscription covers.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct View {
    /// Its digest.
    pub id: ViewId,
    /// Collections; `None` is all.
    pub collections: Option<BTreeSet<Collection>>,
}

impl View {
    /// Whether a document is in the view.
    pub fn covers(&self, doc: &DocPath) -> bool {
        self.covers_path(doc.as_str())
    }

    /// As `covers`, of a document's path.
    pub fn covers_path(&self, doc: &str) -> bool {
        self.collections.as_ref().is_none_or(|set| {
            doc.rsplit_once('/')
                .is_some_and(|(collection, _)| set.contains(collection))
        })
    }
}

/// Answer of `changes`.
#[derive(Clone, PartialEq, Debug)]
pub enum ChangesReply {
    /// More follows.
    Page {
        /// In order of the seq that last touched them, but for the first part of a reset.
        docs: Arc<DocChanges>,
        /// Where to go on.
        cursor: Cursor,
        /// The head when the page was read.
        head: Position,
    },
    /// The last page, read in one step with the position and the mid.
    Done {
        /// In order of the seq that last touched them, but for the first part of a reset.
        docs: Arc<DocChanges>,
        /// The space as of which all pages together are complete.
        state: SpaceState,
        /// Last mid of the writer asked for; `None` without a record.
        last_mid: Option<Mid>,
    },
    /// `after` or the cursor is not valid: start over without them.
    Reset(ResetReason),
}

/// Why a position does not hold.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum ResetReason {
    /// Its epoch is none of the lineage, or it lies beyond the epoch's end.
    Lost,
    /// Tombstones after it may be gone.
    BelowFloor,
    /// The cursor belongs to another view or another scan.
    ForeignCursor,
}
