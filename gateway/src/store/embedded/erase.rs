//! Erasure: everything of a space, or of a user in it, in small steps while the space is closed.
//!
//! The first step is on disk before the next is begun. It says in the space's record what is being erased,
//! begins an epoch in an emptied lineage and raises the floor to the head, so that every position resets.
//! From then on the space takes no reads and no commits, until the last step says that it is done. The writer
//! goes on with it between batches, whoever asked for it; whatever ends the process in between, it is begun
//! again from the start when the store is opened, and meets only what is left.
//!
//! What is erased is gone for every reader at once. The bytes leave the database's files as those are merged.

use super::collect::{STEP, forget_results};
use super::commit::Space;
use super::disk::{Cut, Look, Table, damaged, told};
use super::document::{self, Form, StoredCell};
use super::overlay::Overlay;
use super::records::{Client, Erasing, Record};
use super::writer::stopped;
use super::{EmbeddedStore, keys};
use crate::store::{
    Begun, ConflictRecord, Erase, Erased, Header, Lineage, LineageEntry, NOBODY, Stamp, StoreError, Usage, UserTag,
};
use std::collections::{HashSet, VecDeque};
use std::ops::Bound;
use std::time::{Duration, Instant};
use tidegate_protocol::{DocPath, Epoch, FieldPath, Seq, SpaceId, Writer};
use tokio::sync::oneshot;

/// Writers whose records and results go in a step.
const WRITERS: usize = 16;
/// How long after a step that failed it is tried again; twice as long after each time that fails.
const FIRST_AGAIN: Duration = Duration::from_millis(100);
/// At most.
const LAST_AGAIN: Duration = Duration::from_secs(5);

/// What there is to do, in this order.
#[derive(Clone, Copy)]
enum Part {
    /// All records of a table.
    Table(Table),
    /// The marks of time.
    Marks,
    /// Conflicts in which a value of the user's occurs.
    Conflicts,
    /// Cells that the user wrote.
    Docs,
    /// The record of every client becomes a marker.
    Clients,
    /// The records of the user's writers become markers, and their results go.
    Writers,
    /// Which writers the user has had.
    User,
}

const OF_SPACE: &[Part] = &[
    Part::Table(Table::Log),
    Part::Table(Table::Conflicts),
    Part::Table(Table::Idx),
    Part::Table(Table::Dead),
    Part::Table(Table::Fields),
    Part::Table(Table::Cells),
    Part::Table(Table::Results),
    Part::Table(Table::Users),
    Part::Marks,
    Part::Clients,
];
const OF_USER: &[Part] = &[
    Part::Table(Table::Log),
    Part::Marks,
    Part::Conflicts,
    Part::Docs,
    Part::Writers,
    Part::User,
];

fn parts(whom: Erase) -> &'static [Part] {
    match whom {
        Erase::Space => OF_SPACE,
        Erase::User(_) => OF_USER,
    }
}

/// Where the erasure of a space has got to. The writer remembers it with the space; forgotten, it is the
/// start, where the erasure meets only what is left.
#[derive(Clone, Debug, Default)]
pub(super) struct Stage {
    part: usize,
    at: At,
}

/// Where a part has got to.
#[derive(Clone, Debug, Default)]
enum At {
    #[default]
    Start,
    /// The key to go on with.
    Key(Vec<u8>),
    /// The document to go on with, by its key in the index.
    Doc { idx: Vec<u8>, within: Option<Within> },
    /// The entry to go on with, and the number that the next one kept gets.
    Conflict { from: u64, to: u64 },
}

/// In the middle of a document.
#[derive(Clone, Debug)]
struct Within {
    /// The name to go on with.
    from: Vec<u8>,
    /// Whether a cell of it has been kept.
    kept: bool,
}

/// What a part has done in a step, and where it is to go on.
type Step = (Erased, Option<At>);

/// Begins an erasure, or finds the one under way: then that must come to its end first. `None` without such a space.
pub(super) fn begin(wanted: &Wanted, space: &mut Space, incarnation: &[u8]) -> Option<Erasing> {
    let Wanted {
        whom, fresh, now_ms, ..
    } = *wanted;
    if space.meta.erasing.is_none() && !space.lineage.0.is_empty() {
        let meta = &mut space.meta;
        meta.erasing = Some(Erasing {
            whom,
            epoch: fresh,
            at_ms: now_ms,
        });
        meta.floor = meta.head;
        (meta.log_first, meta.log_bytes) = (meta.head.next(), 0);
        if whom == Erase::Space {
            (meta.conflicts_first, meta.conflicts_bytes) = (meta.conflicts_next, 0);
            meta.usage = Usage::default();
        }
        space.lineage = Lineage(vec![LineageEntry {
            epoch: fresh,
            incarnation: incarnation.to_vec(),
            start: meta.head,
        }]);
        (space.meta_changed, space.lineage_changed) = (true, true);
        space.stage = Stage::default();
    }
    space.meta.erasing.clone()
}

/// Does a step of the erasure under way.
pub(super) fn step(
    name: &SpaceId,
    space: &mut Space,
    cut: &Cut<'_>,
    overlay: &mut Overlay<'_>,
) -> Result<Erased, StoreError> {
    let Some(erasing) = space.meta.erasing.clone() else {
        return Ok(Erased::default());
    };
    let Stage { part, at } = std::mem::take(&mut space.stage);
    let todo = parts(erasing.whom);
    let mut run = Run {
        name,
        at_ms: erasing.at_ms,
        space,
        cut,
        overlay,
    };
    let (erased, next) = match (todo[part], erasing.whom) {
        (Part::Table(table), _) => run.table(table, at)?,
        (Part::Marks, _) => run.marks(at)?,
        (Part::Clients, _) => run.clients(at)?,
        (Part::Conflicts, Erase::User(user)) => run.conflicts(&at, &run.writers_of(user)?)?,
        (Part::Docs, Erase::User(user)) => run.docs(at, &run.writers_of(user)?)?,
        (Part::Writers, Erase::User(user)) => run.writers(user, at)?,
        (Part::User, Erase::User(user)) => run.user(user, at)?,
        (Part::Conflicts | Part::Docs | Part::Writers | Part::User, Erase::Space) => unreachable!("no part of it"),
    };
    match next {
        Some(at) => space.stage = Stage { part, at },
        None if part + 1 < todo.len() => {
            space.stage = Stage {
                part: part + 1,
                at: At::Start,
            };
        }
        None => {
            space.meta.erasing = None;
            space.meta_changed = true;
        }
    }
    Ok(erased)
}

struct Run<'r, 'c, 'd> {
    name: &'r SpaceId,
    /// When it was begun.
    at_ms: u64,
    space: &'r mut Space,
    cut: &'r Cut<'c>,
    overlay: &'r mut Overlay<'d>,
}

impl Run<'_, '_, '_> {
    /// Deletes up to a step of what lies in a range of a table.
    fn range(&mut self, table: Table, start: Vec<u8>, end: Vec<u8>, at: At) -> Result<(u64, Option<At>), StoreError> {
        self.range_seen(table, (start, end), at, |_| {})
    }

    /// As [`Self::range`]; `see` is shown every record.
    fn range_seen(
        &mut self,
        table: Table,
        (start, end): (Vec<u8>, Vec<u8>),
        at: At,
        mut see: impl FnMut(&[u8]),
    ) -> Result<(u64, Option<At>), StoreError> {
        let start = match at {
            At::Key(key) => key,
            _ => start,
        };
        let mut deleted = 0;
        for guard in self.cut.range(table, Bound::Included(start), end) {
            let (key, record) = guard.into_inner().map_err(told)?;
            let key = key.to_vec();
            if deleted >= STEP as u64 {
                return Ok((deleted, Some(At::Key(key))));
            }
            see(&record);
            self.overlay.remove(table, key);
            deleted += 1;
        }
        Ok((deleted, None))
    }

    fn table(&mut self, table: Table, at: At) -> Result<Step, StoreError> {
        let (start, end) = (keys::space(self.name), keys::space_end(self.name));
        let mut packed = 0;
        let (n, next) = self.range_seen(table, (start, end), at, |record| {
            if let (Table::Cells, Some(Form::Packed(cells))) = (table, document::parse(record).map(|found| found.form))
            {
                packed += cells.into_iter().count() as u64;
            }
        })?;
        let mut erased = Erased::default();
        match table {
            Table::Log => erased.commits = n,
            Table::Conflicts => erased.conflicts = n,
            Table::Idx => erased.docs = n,
            // Every cell once: the others are under keys of their own.
            Table::Fields => erased.cells = n,
            Table::Cells => erased.cells = packed,
            _ => {}
        }
        Ok((erased, next))
    }

    fn marks(&mut self, at: At) -> Result<Step, StoreError> {
        let (start, end) = (keys::mark(self.name, 0), keys::mark(self.name, u64::MAX));
        let (_, next) = self.range(Table::Spaces, start, end, at)?;
        if next.is_none() {
            self.space.meta.mark_ms = None;
            self.space.meta_changed = true;
        }
        Ok((Erased::default(), next))
    }

    fn user(&mut self, user: UserTag, at: At) -> Result<Step, StoreError> {
        let (start, end) = (keys::users(self.name, user), keys::users_end(self.name, user));
        let (_, next) = self.range(Table::Users, start, end, at)?;
        Ok((Erased::default(), next))
    }

    /// Which writers a user has had.
    fn writers_of(&self, user: UserTag) -> Result<HashSet<Writer>, StoreError> {
        let start = Bound::Included(keys::users(self.name, user));
        let rows = self.cut.range(Table::Users, start, keys::users_end(self.name, user));
        rows.map(|guard| {
            let key = guard.key().map_err(told)?;
            keys::user_writer(&key).ok_or_else(|| damaged(Table::Users, &key))
        })
        .collect()
    }

    /// Puts a marker in the place of a client's record, if there is one.
    fn mark_client(&mut self, key: Vec<u8>) -> Result<u64, StoreError> {
        let Some(bytes) = self.overlay.get(Table::Clients, &key)? else {
            return Ok(0);
        };
        // One that cannot be read is not worth more.
        let client = Client::decode(&bytes);
        if client.as_ref().is_some_and(Client::is_erased) {
            return Ok(0);
        }
        let when = client.map_or(self.at_ms, |client| client.when.max(self.at_ms));
        self.overlay.put_record(Table::Clients, key, &Client::erased(when));
        Ok(1)
    }

    fn clients(&mut self, at: At) -> Result<Step, StoreError> {
        let start = match at {
            At::Key(key) => key,
            _ => keys::space(self.name),
        };
        let mut erased = Erased::default();
        let rows = self
            .cut
            .range(Table::Clients, Bound::Included(start), keys::space_end(self.name));
        for (n, guard) in rows.enumerate() {
            let key = guard.key().map_err(told)?.to_vec();
            if n >= STEP {
                return Ok((erased, Some(At::Key(key))));
            }
            erased.clients += self.mark_client(key)?;
        }
        Ok((erased, None))
    }

    fn writers(&mut self, user: UserTag, at: At) -> Result<Step, StoreError> {
        let start = match at {
            At::Key(key) => key,
            _ => keys::users(self.name, user),
        };
        let mut erased = Erased::default();
        let end = keys::users_end(self.name, user);
        for (n, guard) in self.cut.range(Table::Users, Bound::Included(start), end).enumerate() {
            let key = guard.key().map_err(told)?;
            if n >= WRITERS {
                return Ok((erased, Some(At::Key(key.to_vec()))));
            }
            let writer = keys::user_writer(&key).ok_or_else(|| damaged(Table::Users, &key))?;
            forget_results(self.name, writer, self.cut, self.overlay)?;
            erased.clients += self.mark_client(keys::client(self.name, writer))?;
        }
        Ok((erased, None))
    }

    /// Those that are kept move up, so that their numbers have no gap.
    fn conflicts(&mut self, at: &At, whose: &HashSet<Writer>) -> Result<Step, StoreError> {
        let first = self.space.meta.conflicts_first;
        let (from, mut to) = match at {
            At::Conflict { from, to } => (*from, *to),
            _ => (first, first),
        };
        let mut erased = Erased::default();
        let start = Bound::Included(keys::conflict(self.name, from));
        let rows = self.cut.range(Table::Conflicts, start, keys::space_end(self.name));
        for (visited, guard) in rows.enumerate() {
            let (key, value) = guard.into_inner().map_err(told)?;
            let n = keys::conflict_number(&key).ok_or_else(|| damaged(Table::Conflicts, &key))?;
            if visited >= STEP {
                return Ok((erased, Some(At::Conflict { from: n, to })));
            }
            // One that cannot be read may be theirs.
            if ConflictRecord::decode(&value).is_none_or(|record| record.names(|writer| whose.contains(writer))) {
                let bytes = &mut self.space.meta.conflicts_bytes;
                *bytes = bytes.saturating_sub(value.len() as u64);
                self.overlay.remove(Table::Conflicts, key.to_vec());
                erased.conflicts += 1;
            } else {
                if to < n {
                    self.overlay.remove(Table::Conflicts, key.to_vec());
                    self.overlay.put(Table::Conflicts, keys::conflict(self.name, to), value);
                }
                to += 1;
            }
            self.space.meta_changed = true;
        }
        self.space.meta.conflicts_next = to;
        self.space.meta_changed = true;
        Ok((erased, None))
    }

    fn docs(&mut self, at: At, whose: &HashSet<Writer>) -> Result<Step, StoreError> {
        let (start, mut within) = match at {
            At::Doc { idx, within } => (idx, within),
            _ => (keys::space(self.name), None),
        };
        let (mut erased, mut visited) = (Erased::default(), 0);
        for guard in self
            .cut
            .range(Table::Idx, Bound::Included(start), keys::space_end(self.name))
        {
            let idx = guard.key().map_err(told)?.to_vec();
            if visited >= STEP {
                return Ok((erased, Some(At::Doc { idx, within: None })));
            }
            visited += 1;
            let (seq, doc) = keys::idx_parts(self.name, &idx).ok_or_else(|| damaged(Table::Idx, &idx))?;
            let more = self.doc(seq, &doc, within.take(), whose, &mut visited, &mut erased)?;
            if more.is_some() {
                return Ok((erased, Some(At::Doc { idx, within: more })));
            }
        }
        Ok((erased, None))
    }

    /// Erases what is theirs of a document. `Some`: there is more of it than fits into the step.
    fn doc(
        &mut self,
        seq: Seq,
        doc: &DocPath,
        within: Option<Within>,
        whose: &HashSet<Writer>,
        visited: &mut usize,
        erased: &mut Erased,
    ) -> Result<Option<Within>, StoreError> {
        let header_key = keys::doc(self.name, doc);
        let unreadable = || damaged(Table::Cells, &header_key);
        let stored = self.overlay.get(Table::Cells, &header_key)?;
        let document = stored.as_deref().and_then(document::parse);
        let packed = match document.map(|document| document.form) {
            Some(Form::Packed(cells)) => Some(cells.all()),
            _ => None,
        };
        // What cannot be read may be theirs: a document without its header goes altogether.
        let before = document.map(|document| document.header);
        let before = before.filter(|_| packed != Some(None));
        let mut size = before.map_or(0, |header| header.size);
        let (start, mut kept) = match within {
            Some(Within { from, kept }) => (from, kept),
            None => (header_key.clone(), false),
        };
        let mut left = packed.flatten();
        if let Some(cells) = &mut left {
            *visited += cells.len();
            cells.retain(|cell| {
                let is_kept = !whose.contains(&cell.stamp.writer);
                if !is_kept {
                    self.cell_goes(doc, cell, &mut size);
                    erased.cells += 1;
                }
                is_kept
            });
            kept = !cells.is_empty();
        }
        let mut more = None;
        // Of a packed one there are none.
        for guard in self
            .cut
            .range(Table::Fields, Bound::Included(start), keys::doc_end(self.name, doc))
        {
            let key = guard.key().map_err(told)?.to_vec();
            if *visited >= STEP {
                more = Some(Within { from: key, kept });
                break;
            }
            *visited += 1;
            let record = self.overlay.get(Table::Cells, &key)?;
            let cell = record
                .as_deref()
                .and_then(|record| document::cell(&header_key, &key, record));
            if before.is_some() && cell.is_some_and(|cell| !whose.contains(&cell.stamp.writer)) {
                kept = true;
                continue;
            }
            if let Some(cell) = &cell {
                self.cell_goes(doc, cell, &mut size);
            }
            self.overlay.remove(Table::Fields, key.clone());
            self.overlay.remove(Table::Cells, key);
            erased.cells += 1;
        }
        let theirs = |stamp: &Stamp| whose.contains(&stamp.writer);
        // Nobody's is what was another's whose data was erased before.
        let nobodys = |stamp: &Stamp| theirs(stamp) || stamp.writer == NOBODY;
        let wholly = |header: &Header| {
            !kept && nobodys(&header.last) && nobodys(&header.born) && header.deleted.as_ref().is_none_or(nobodys)
        };
        let anonymous = |stamp: Stamp| match theirs(&stamp) {
            true => Stamp {
                writer: NOBODY,
                ..stamp
            },
            false => stamp,
        };
        let after = before
            .filter(|header| more.is_some() || !wholly(header))
            .map(|header| Header {
                last: anonymous_unless(more.is_some(), header.last, anonymous),
                born: anonymous_unless(more.is_some(), header.born, anonymous),
                deleted: header
                    .deleted
                    .map(|stamp| anonymous_unless(more.is_some(), stamp, anonymous)),
                size,
                ..header
            });
        match &after {
            Some(header) => {
                let record = match (&left, document.map(|document| document.form)) {
                    (Some(left), _) => document::packed(header, left).ok_or_else(unreadable)?,
                    (None, Some(Form::Spread { is_large })) => document::spread(header, is_large),
                    (None, _) => return Err(unreadable()),
                };
                self.overlay.put(Table::Cells, header_key, record);
            }
            None if more.is_none() => {
                self.overlay.remove(Table::Cells, header_key);
                self.overlay.remove(Table::Idx, keys::idx(self.name, seq, doc));
                self.overlay.remove(Table::Dead, keys::dead(self.name, seq, doc, None));
                erased.docs += 1;
            }
            None => {}
        }
        let usage = &mut self.space.meta.usage;
        usage.replace(Usage::of(before.as_ref()), Usage::of(after.as_ref()));
        self.space.meta_changed = true;
        Ok(more)
    }

    /// A cell is erased: its document has so many bytes less, and its tombstone goes.
    fn cell_goes(&mut self, doc: &DocPath, cell: &StoredCell<'_>, size: &mut u64) {
        match cell.value {
            Some(value) => *size = size.saturating_sub((cell.field.len() + value.len()) as u64),
            None => {
                if let Ok(field) = FieldPath::parse(cell.field) {
                    let dead = keys::dead(self.name, cell.stamp.seq, doc, Some(&field));
                    self.overlay.remove(Table::Dead, dead);
                }
            }
        }
    }
}

/// Whose a document is has to be known until all of it has been looked at.
fn anonymous_unless(unfinished: bool, stamp: Stamp, anonymous: impl Fn(Stamp) -> Stamp) -> Stamp {
    if unfinished { stamp } else { anonymous(stamp) }
}

/// The erasures under way. Those of several spaces take turns, a step each.
#[derive(Default)]
pub(super) struct UnderWay(VecDeque<Erasure>);

/// One of them.
struct Erasure {
    space: SpaceId,
    /// What the steps since the store was opened have erased.
    erased: Erased,
    /// Who waits for its end.
    asked: Vec<oneshot::Sender<Erased>>,
    /// When the next step is due.
    next: Instant,
    /// How long it is put off if that fails.
    wait: Duration,
}

impl UnderWay {
    /// Takes up what was found on disk.
    pub(super) fn found(&mut self, spaces: Vec<SpaceId>) {
        for space in spaces {
            self.of(space);
        }
    }

    /// Tells also this one when the erasure of a space is done.
    pub(super) fn asked(&mut self, space: SpaceId, by: oneshot::Sender<Erased>) {
        self.of(space).asked.push(by);
    }

    fn of(&mut self, space: SpaceId) -> &mut Erasure {
        let at = self.0.iter().position(|erasure| erasure.space == space);
        let at = at.unwrap_or_else(|| {
            self.0.push_back(Erasure {
                space,
                erased: Erased::default(),
                asked: Vec::new(),
                next: Instant::now(),
                wait: FIRST_AGAIN,
            });
            self.0.len() - 1
        });
        &mut self.0[at]
    }

    /// When the next step is due; `None` if nothing is being erased.
    pub(super) fn next(&self) -> Option<Instant> {
        self.0.iter().map(|erasure| erasure.next).min()
    }

    /// Whose turn it is.
    pub(super) fn due(&self, now: Instant) -> Option<SpaceId> {
        let due = self.0.iter().find(|erasure| erasure.next <= now);
        due.map(|erasure| erasure.space.clone())
    }

    /// Notes what a step has come to, and whether there is more to do.
    pub(super) fn stepped(&mut self, space: &SpaceId, step: Result<(Erased, bool), StoreError>) {
        let at = self.0.iter().position(|erasure| erasure.space == *space);
        let Some(mut erasure) = at.and_then(|at| self.0.remove(at)) else {
            return;
        };
        match step {
            Ok((erased, more)) => {
                erasure.erased = erasure.erased.plus(erased);
                erasure.wait = FIRST_AGAIN;
                if !more {
                    tracing::info!(%space, erased = ?erasure.erased, "erased");
                    // Who asked may have gone.
                    for asked in erasure.asked {
                        let _ = asked.send(erasure.erased);
                    }
                    return;
                }
            }
            Err(error) => {
                tracing::warn!(%space, %error, "an erasure is held up");
                erasure.next = Instant::now() + erasure.wait;
                erasure.wait = (erasure.wait * 2).min(LAST_AGAIN);
            }
        }
        self.0.push_back(erasure);
    }
}

/// What is wanted to be erased.
#[derive(Clone)]
pub(super) struct Wanted {
    pub(super) space: SpaceId,
    pub(super) whom: Erase,
    pub(super) fresh: Epoch,
    pub(super) now_ms: u64,
}

/// Whose data is being erased now, and the space's lineage. `None` without such a space.
pub(super) type Under = Option<(Erase, Lineage)>;

impl EmbeddedStore {
    /// Erases (see `Store::erase`); one that is under way comes first.
    pub(super) async fn run_erasure(
        &self,
        space: &SpaceId,
        whom: Erase,
        fresh: Epoch,
        now_ms: u64,
        begun: Begun<'_>,
    ) -> Result<Erased, StoreError> {
        let space = space.clone();
        let wanted = Wanted {
            space,
            whom,
            fresh,
            now_ms,
        };
        loop {
            let (sender, gone) = oneshot::channel();
            let under = self.queue()?.erase(wanted.clone(), sender)?;
            let Some((whose, lineage)) = under.await.map_err(|_| stopped())?? else {
                return Ok(Erased::default());
            };
            self.packs.erased(&wanted.space);
            begun(&lineage);
            let erased = gone.await.map_err(|_| stopped())?;
            if whose == whom {
                return Ok(erased);
            }
        }
    }
}
