//! Collection: raising the floor, and deleting what lies below it, in small steps between commits.
//!
//! The floor rises first, in a write of its own that is on disk before the first deletion: a reader
//! either sees the tombstones that its position needs, or a floor that tells it to start over.

use super::commit::Space;
use super::disk::{Cut, Disk, Look, Table, damaged, told};
use super::document::{self, Document, Form};
use super::erase::{self, Wanted};
use super::overlay::Overlay;
use super::read::spaces_after;
use super::records::{self, Client, Erasing, Record};
use super::{EmbeddedStore, keys};
use crate::store::{ConflictRecord, Erased, SpaceState, Stamp, StoreError};
use std::collections::HashMap;
use std::ops::Bound;
use tidegate_protocol::{DocPath, FieldPath, Seq, SpaceId, Writer};

/// Entries that one step deletes at most: a few milliseconds between commits.
pub(super) const STEP: usize = 512;
/// Spaces or clients that are looked at in one read.
const PAGE: usize = 1_024;

/// What a step of collection is to do.
pub(super) enum Task {
    /// Raises a space's floor, to the head at most, and forgets the epochs below.
    Raise { space: SpaceId, to: Seq },
    /// Deletes tombstones, dead documents and marks at or below the floor.
    Sweep { space: SpaceId },
    /// Deletes the log up to and with the commit `to`.
    Trim { space: SpaceId, to: Seq },
    /// Deletes a client's record if it last wrote before `before`.
    Forget {
        space: SpaceId,
        writer: Writer,
        before: u64,
    },
    /// Begins an erasure.
    BeginErasure(Wanted),
    /// Does a step of the erasure under way, if there is one.
    Erase { space: SpaceId },
    /// Deletes entries of the conflict log that are older than `before`.
    Age { space: SpaceId, before: u64 },
}

impl Task {
    /// The space that it works on.
    pub(super) fn space(&self) -> &SpaceId {
        let (Self::Raise { space, .. }
        | Self::Sweep { space }
        | Self::Trim { space, .. }
        | Self::Forget { space, .. }
        | Self::BeginErasure(Wanted { space, .. })
        | Self::Erase { space }
        | Self::Age { space, .. }) = self;
        space
    }
}

/// What a step did.
#[derive(Clone, Debug, Default)]
pub(super) struct TaskDone {
    /// Entries deleted.
    deleted: usize,
    /// Whether there may be more to do.
    more: bool,
    /// The space's floor.
    floor: Seq,
    /// Of an erasure: what it erased.
    pub(super) erased: Erased,
    /// Of an erasure: the one that is under way now.
    pub(super) erasing: Option<Erasing>,
}

/// What a round of collection did.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Collected {
    /// Spaces looked at.
    pub spaces: u64,
    /// Floors raised.
    pub floors: u64,
    /// Commits deleted from logs.
    pub log: u64,
    /// Tombstones, cells of dead documents, and dead documents deleted.
    pub tombstones: u64,
    /// Client records deleted.
    pub clients: u64,
    /// Entries of conflict logs deleted.
    pub conflicts: u64,
    /// Spaces that were left as they are, since something of them cannot be read.
    pub damaged: u64,
}

/// Runs a step on the writer's thread; also says whether its write must be synced at once.
pub(super) fn run(
    task: &Task,
    disk: &Disk,
    spaces: &mut HashMap<SpaceId, Space>,
    overlay: &mut Overlay<'_>,
    incarnation: &[u8],
) -> Result<(TaskDone, bool), StoreError> {
    let name = task.space();
    let space = match spaces.get_mut(name) {
        Some(space) => space,
        None => spaces.entry(name.clone()).or_insert(Space::load(overlay, name)?),
    };
    let cut = disk.cut();
    let (mut done, mut durable) = (TaskDone::default(), false);
    match task {
        Task::BeginErasure(wanted) => {
            done.erasing = erase::begin(wanted, space, incarnation);
            durable = true;
        }
        Task::Erase { .. } => {
            done.erased = erase::step(name, space, &cut, overlay)?;
            done.erasing = space.meta.erasing.clone();
        }
        // Erasure collects it all.
        _ if space.meta.erasing.is_some() => {}
        Task::Raise { to, .. } => durable = raise(*to, space),
        Task::Sweep { .. } => (done.deleted, done.more) = sweep(name, space.meta.floor, &cut, overlay)?,
        Task::Trim { to, .. } => (done.deleted, done.more) = trim(name, *to, space, overlay)?,
        Task::Forget { writer, before, .. } => {
            done.deleted = forget(name, *writer, *before, space, &cut, overlay)?;
        }
        Task::Age { before, .. } => (done.deleted, done.more) = age(name, *before, space, &cut, overlay)?,
    }
    space.save(name, overlay);
    done.floor = space.meta.floor;
    Ok((done, durable))
}

/// Raises the floor. Says whether it did.
fn raise(to: Seq, space: &mut Space) -> bool {
    let to = to.min(space.meta.head);
    if to <= space.meta.floor {
        return false;
    }
    space.meta.floor = to;
    space.meta_changed = true;
    space.lineage_changed |= space.lineage.forget_below(to);
    true
}

/// Deletes up to a step of what is dead at or below the floor.
fn sweep(name: &SpaceId, floor: Seq, cut: &Cut<'_>, overlay: &mut Overlay<'_>) -> Result<(usize, bool), StoreError> {
    let mut deleted = 0;
    let end = keys::idx_after(name, floor);
    for (n, guard) in cut
        .range(Table::Dead, Bound::Included(keys::space(name)), end)
        .enumerate()
    {
        if n >= STEP || deleted >= STEP {
            return Ok((deleted, true));
        }
        let key = guard.key().map_err(told)?;
        let (seq, doc, field) = keys::dead_parts(name, &key).ok_or_else(|| damaged(Table::Dead, &key))?;
        match field {
            Some(field) => deleted += usize::from(sweep_cell(name, seq, &doc, &field, overlay)?),
            None => {
                let (gone, more) = sweep_doc(name, seq, &doc, STEP - deleted, cut, overlay)?;
                deleted += gone;
                if more {
                    return Ok((deleted, true));
                }
            }
        }
        overlay.remove(Table::Dead, key.to_vec());
    }
    // Marks of time at or below the floor can raise it no more.
    for (n, guard) in cut
        .range(
            Table::Spaces,
            Bound::Included(keys::mark(name, 0)),
            keys::mark(name, u64::MAX),
        )
        .enumerate()
    {
        let (key, value) = guard.into_inner().map_err(told)?;
        if Seq::decode(&value).ok_or_else(|| damaged(Table::Spaces, &key))? > floor {
            break;
        }
        if n >= STEP {
            return Ok((deleted, true));
        }
        overlay.remove(Table::Spaces, key.to_vec());
    }
    Ok((deleted, false))
}

/// Deletes a tombstone of a field, if that still is one of this seq: it may have been written again, or have gone with
/// its document.
fn sweep_cell(
    name: &SpaceId,
    seq: Seq,
    doc: &DocPath,
    field: &FieldPath,
    overlay: &mut Overlay<'_>,
) -> Result<bool, StoreError> {
    let doc_key = keys::doc(name, doc);
    let stored = overlay.get(Table::Cells, &doc_key)?;
    let unreadable = || damaged(Table::Cells, &doc_key);
    let is_gone = |stamp: Stamp, value: Option<&[u8]>| value.is_none() && stamp.seq == seq;
    let document = stored
        .as_deref()
        .map(|bytes| document::parse(bytes).ok_or_else(unreadable));
    if let Some(Document {
        header,
        form: Form::Packed(cells),
    }) = document.transpose()?
    {
        let mut cells = cells.all().ok_or_else(unreadable)?;
        let before = cells.len();
        cells.retain(|cell| cell.field != field.as_str() || !is_gone(cell.stamp, cell.value));
        let is_swept = cells.len() < before;
        if is_swept {
            let record = document::packed(&header, &cells).ok_or_else(unreadable)?;
            overlay.put(Table::Cells, doc_key, record);
        }
        return Ok(is_swept);
    }
    let key = keys::cell(name, doc, field);
    let Some(record) = overlay.get(Table::Cells, &key)? else {
        return Ok(false);
    };
    let (stamp, value) = records::cell_parts(&record).ok_or_else(|| damaged(Table::Cells, &key))?;
    let is_swept = is_gone(stamp, value);
    if is_swept {
        overlay.remove(Table::Fields, key.clone());
        overlay.remove(Table::Cells, key);
    }
    Ok(is_swept)
}

/// Deletes a document if it has been dead since `seq`: up to `most` of its cells, and the header and
/// its place in the index with the last of them, so that cells never stand without a header.
fn sweep_doc(
    name: &SpaceId,
    seq: Seq,
    doc: &DocPath,
    most: usize,
    cut: &Cut<'_>,
    overlay: &mut Overlay<'_>,
) -> Result<(usize, bool), StoreError> {
    let header_key = keys::doc(name, doc);
    let stored = overlay.get(Table::Cells, &header_key)?;
    let header = stored.map(|bytes| document::header(&bytes).ok_or_else(|| damaged(Table::Cells, &header_key)));
    let header = header.transpose()?;
    if header.is_none_or(|header| header.alive || header.last.seq != seq) {
        return Ok((0, false));
    }
    // Of a packed one there are none.
    let start = Bound::Included(header_key.clone());
    for (n, guard) in cut.range(Table::Fields, start, keys::doc_end(name, doc)).enumerate() {
        if n >= most {
            return Ok((n, true));
        }
        let key = guard.key().map_err(told)?.to_vec();
        overlay.remove(Table::Fields, key.clone());
        overlay.remove(Table::Cells, key);
    }
    overlay.remove(Table::Cells, header_key);
    overlay.remove(Table::Idx, keys::idx(name, seq, doc));
    Ok((1, false))
}

/// Deletes up to a step of the log's oldest commits.
fn trim(name: &SpaceId, to: Seq, space: &mut Space, overlay: &mut Overlay<'_>) -> Result<(usize, bool), StoreError> {
    let to = to.min(space.meta.head);
    let mut deleted = 0;
    while space.meta.log_first <= to {
        if deleted >= STEP {
            return Ok((deleted, true));
        }
        space.drop_commit(name, overlay)?;
        deleted += 1;
    }
    Ok((deleted, false))
}

/// Deletes an expired client with its results, and keeps in mind how new it was.
fn forget(
    name: &SpaceId,
    writer: Writer,
    before: u64,
    space: &mut Space,
    cut: &Cut<'_>,
    overlay: &mut Overlay<'_>,
) -> Result<usize, StoreError> {
    let key = keys::client(name, writer);
    let client: Option<Client> = overlay.record(Table::Clients, &key)?;
    // It may have written since it was found.
    let Some(client) = client.filter(|client| client.when < before) else {
        return Ok(0);
    };
    forget_results(name, writer, cut, overlay)?;
    overlay.remove(Table::Clients, key);
    space.meta.forgotten_ms = space.meta.forgotten_ms.max(Some(client.when));
    space.meta_changed = true;
    Ok(1)
}

/// Deletes all results of a writer: a few hundred.
pub(super) fn forget_results(
    name: &SpaceId,
    writer: Writer,
    cut: &Cut<'_>,
    overlay: &mut Overlay<'_>,
) -> Result<usize, StoreError> {
    let start = Bound::Included(keys::results(name, writer));
    let mut deleted = 0;
    for guard in cut.range(Table::Results, start, keys::results_end(name, writer)) {
        overlay.remove(Table::Results, guard.key().map_err(told)?.to_vec());
        deleted += 1;
    }
    Ok(deleted)
}

/// Deletes up to a step of old conflicts.
fn age(
    name: &SpaceId,
    before: u64,
    space: &mut Space,
    cut: &Cut<'_>,
    overlay: &mut Overlay<'_>,
) -> Result<(usize, bool), StoreError> {
    let mut deleted = 0;
    while space.meta.conflicts_first < space.meta.conflicts_next {
        let key = keys::conflict(name, space.meta.conflicts_first);
        let record: Option<ConflictRecord> = cut.record(Table::Conflicts, &key)?;
        if record.is_some_and(|record| record.at >= before) {
            break;
        }
        if deleted >= STEP {
            return Ok((deleted, true));
        }
        space.drop_conflict(name, overlay)?;
        deleted += 1;
    }
    Ok((deleted, false))
}

impl EmbeddedStore {
    /// Raises a space's tombstone floor to `to`, the head at most, and deletes what lies below.
    /// Returns the floor that now holds; one that is higher already stays.
    pub async fn raise_floor(&self, space: &SpaceId, to: Seq) -> Result<Seq, StoreError> {
        let raised = self
            .task(Task::Raise {
                space: space.clone(),
                to,
            })
            .await?;
        self.sweep(space).await?;
        Ok(raised.floor)
    }

    /// Deletes a space's log up to and with the commit `to`.
    pub async fn trim_log(&self, space: &SpaceId, to: Seq) -> Result<u64, StoreError> {
        let space = || space.clone();
        self.steps(|| Task::Trim { space: space(), to }).await
    }

    /// Deletes a space's client records that last wrote before `before`, ms since 1970.
    pub async fn forget(&self, space: &SpaceId, before: u64) -> Result<u64, StoreError> {
        let (mut last, mut deleted) = (None, 0);
        loop {
            let (name, from) = (space.clone(), last.take());
            let (expired, end) = self
                .snapshot(move |cut| clients_before(cut, &name, from, before))
                .await?;
            for writer in expired {
                let space = space.clone();
                deleted += self.task(Task::Forget { space, writer, before }).await?.deleted as u64;
            }
            if end.is_none() {
                return Ok(deleted);
            }
            last = end;
        }
    }

    /// Runs a task again until there is no more of it to do; returns how much was deleted.
    async fn steps(&self, task: impl Fn() -> Task) -> Result<u64, StoreError> {
        let mut deleted = 0;
        loop {
            let step = self.task(task()).await?;
            deleted += step.deleted as u64;
            if !step.more {
                return Ok(deleted);
            }
        }
    }

    /// One round of collection: everything older than the retention goes, as of `now_ms`. It works
    /// in small steps between commits; a round that is dropped halfway is taken up by the next.
    pub async fn collect(&self, now_ms: u64) -> Result<Collected, StoreError> {
        self.packs.tidy();
        let ages = Ages {
            log: now_ms.saturating_sub(self.retention().log_ms),
            tombstones: now_ms.saturating_sub(self.retention().tombstones_ms),
            clients: now_ms.saturating_sub(self.retention().clients_ms),
        };
        let mut done = Collected::default();
        let mut last: Option<SpaceId> = None;
        loop {
            let from = last.take();
            let spaces = self.snapshot(move |cut| due_after(cut, from.as_ref(), ages)).await?;
            let Some((end, _)) = spaces.last() else { return Ok(done) };
            last = Some(end.clone());
            for (space, due) in spaces {
                done.spaces += 1;
                let collected = match due {
                    Ok(due) => self.collect_space(&space, &due, ages, &mut done).await,
                    Err(error) => Err(error),
                };
                match collected {
                    // The others' is not held up by it.
                    Err(StoreError::Damaged(why)) => {
                        if self.damaged.lock().insert(space.clone()) {
                            tracing::warn!(%space, %why, "what is older than the retention cannot be collected");
                        }
                        done.damaged += 1;
                    }
                    Err(error) => return Err(error),
                    Ok(()) => {
                        self.damaged.lock().remove(&space);
                    }
                }
            }
        }
    }

    async fn collect_space(
        &self,
        space: &SpaceId,
        due: &Due,
        ages: Ages,
        done: &mut Collected,
    ) -> Result<(), StoreError> {
        if let Some(to) = due.raise {
            self.task(Task::Raise {
                space: space.clone(),
                to,
            })
            .await?;
            done.floors += 1;
        }
        if due.sweep {
            done.tombstones += self.sweep(space).await?;
        }
        if let Some(to) = due.trim {
            done.log += self.trim_log(space, to).await?;
        }
        if due.age {
            let (space, before) = (|| space.clone(), ages.tombstones);
            done.conflicts += self.steps(|| Task::Age { space: space(), before }).await?;
        }
        done.clients += self.forget(space, ages.clients).await?;
        Ok(())
    }

    async fn sweep(&self, space: &SpaceId) -> Result<u64, StoreError> {
        let space = || space.clone();
        self.steps(|| Task::Sweep { space: space() }).await
    }
}

/// What is older than these times is deleted, ms since 1970.
#[derive(Clone, Copy)]
struct Ages {
    /// Commits in logs.
    log: u64,
    /// Tombstones and entries of conflict logs.
    tombstones: u64,
    /// Client records.
    clients: u64,
}

/// What of a space is to be collected, so that a space at rest costs the writer nothing.
#[derive(Default)]
struct Due {
    /// Where the floor is to rise to.
    raise: Option<Seq>,
    /// Whether something lies below the floor, or below where it is to rise to. Also where a floor
    /// stays: a round before may not have come to its end.
    sweep: bool,
    /// Up to where the log is too old.
    trim: Option<Seq>,
    /// Whether the oldest conflict is too old.
    age: bool,
}

/// A space, and what of it is due, where that can be read.
type Next = (SpaceId, Result<Due, StoreError>);

/// The next spaces in the order of their names, and what of them is due.
fn due_after(cut: &Cut<'_>, last: Option<&SpaceId>, ages: Ages) -> Result<Vec<Next>, StoreError> {
    let spaces = spaces_after(cut, last).take(PAGE);
    spaces
        .map(|space| space.map(|space| (space.clone(), due(cut, &space, ages))))
        .collect()
}

fn due(cut: &Cut<'_>, space: &SpaceId, ages: Ages) -> Result<Due, StoreError> {
    let (state, meta) = cut.state(space)?;
    if meta.erasing.is_some() {
        // Erasure collects it all.
        return Ok(Due::default());
    }
    let raise = Some(seq_before(cut, space, &state, ages.tombstones)?).filter(|to| *to > state.floor);
    let floor = raise.unwrap_or(state.floor);
    let dead = cut
        .range(
            Table::Dead,
            Bound::Included(keys::space(space)),
            keys::idx_after(space, floor),
        )
        .next();
    let age = meta.conflicts_first < meta.conflicts_next && {
        let oldest: Option<ConflictRecord> =
            cut.record(Table::Conflicts, &keys::conflict(space, meta.conflicts_first))?;
        oldest.is_none_or(|oldest| oldest.at < ages.tombstones)
    };
    Ok(Due {
        raise,
        sweep: raise.is_some() || dead.is_some(),
        trim: Some(seq_before(cut, space, &state, ages.log)?).filter(|to| *to >= meta.log_first),
        age,
    })
}

/// The head that a space had at a time before `old`, as far as its marks tell.
fn seq_before(cut: &Cut<'_>, space: &SpaceId, state: &SpaceState, old: u64) -> Result<Seq, StoreError> {
    if state.last_ms < old {
        return Ok(state.head.seq);
    }
    let mut marks = cut.range(
        Table::Spaces,
        Bound::Included(keys::mark(space, 0)),
        keys::mark(space, old),
    );
    let Some(guard) = marks.next_back() else {
        return Ok(Seq::ZERO);
    };
    let (key, value) = guard.into_inner().map_err(told)?;
    Seq::decode(&value).ok_or_else(|| damaged(Table::Spaces, &key))
}

/// The expired ones of the next clients, and the last looked at, if there are more.
fn clients_before(
    cut: &Cut<'_>,
    space: &SpaceId,
    last: Option<Writer>,
    before: u64,
) -> Result<(Vec<Writer>, Option<Writer>), StoreError> {
    let mut expired = Vec::new();
    let start = last.map_or(Bound::Included(keys::space(space)), |last| {
        Bound::Excluded(keys::client(space, last))
    });
    for (n, guard) in cut.range(Table::Clients, start, keys::space_end(space)).enumerate() {
        let (key, value) = guard.into_inner().map_err(told)?;
        let writer = keys::client_writer(&key).ok_or_else(|| damaged(Table::Clients, &key))?;
        let client = Client::decode(&value).ok_or_else(|| damaged(Table::Clients, &key))?;
        if client.when < before {
            expired.push(writer);
        }
        if n + 1 == PAGE {
            return Ok((expired, Some(writer)));
        }
    }
    Ok((expired, None))
}
