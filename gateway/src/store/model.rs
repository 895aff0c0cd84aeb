//! The reference model: the store's contract in plain maps, as naive as it can be. The contract suite
//! compares every implementation with it; it is no production store, and keeps nothing on disk.

use super::{
    Action, Begun, Cell, ChangesReply, ChangesRequest, CommitGroup, Committed, ConflictRecord, Cursor, DocState,
    Effects, Erase, Erased, Header, KEPT_RESULTS, Kept, Lineage, LineageEntry, LogEntry, LogReply, NOBODY, Outcome,
    Prepared, ReadCut, ResetReason, Retention, SpaceState, Stamp, Store, StoreError, Usage, UserTag, Version,
};
use async_trait::async_trait;
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tidegate_protocol::{
    DocChange, DocChangeKind, DocPath, Epoch, Mid, MutationKey, Position, Seq, SpaceId, Writer, msgpack,
};

/// A store in memory, with knobs that bring about what happens to real ones.
pub struct Model {
    retention: Retention,
    /// Which life of the store this is; no two in a process are the same.
    life: u64,
    state: Mutex<Spaces>,
}

/// Everything that a model holds at some moment, to go back to.
#[derive(Clone, Default)]
pub struct Spaces {
    spaces: BTreeMap<SpaceId, Space>,
}

#[derive(Clone, Default)]
struct Space {
    head: Seq,
    lineage: Lineage,
    floor: Seq,
    last_ms: u64,
    docs: BTreeMap<DocPath, DocState>,
    /// The newest commits, without a gap up to the head.
    log: Vec<LogEntry>,
    clients: BTreeMap<Writer, Client>,
    /// When the newest of the records that were forgotten last wrote, ms since 1970.
    forgotten: Option<u64>,
    /// Which writers a user has had.
    users: BTreeMap<UserTag, BTreeSet<Writer>>,
    /// Oldest first.
    conflicts: Vec<ConflictRecord>,
}

#[derive(Clone)]
struct Client {
    last: Mid,
    /// By mid: the mutation's key and its result.
    results: BTreeMap<Mid, (MutationKey, Kept)>,
    wrote_ms: u64,
    /// Its data was erased: all that is known is that it is to be told so.
    erased: bool,
}

impl Default for Model {
    fn default() -> Self {
        Self::new(Retention::default())
    }
}

impl Model {
    /// An empty store.
    pub fn new(retention: Retention) -> Self {
        Self::restored(retention, Spaces::default())
    }

    /// The same store opened again: a new life of it, which commits find at the next call.
    #[must_use]
    pub fn reopened(&self) -> Self {
        Self::restored(self.retention.clone(), self.checkpoint())
    }

    /// What it holds now.
    pub fn checkpoint(&self) -> Spaces {
        self.state.lock().clone()
    }

    /// A store that holds what another held: what came after is lost, as in a failover or a restore.
    #[must_use]
    pub fn restored(retention: Retention, spaces: Spaces) -> Self {
        static LIVES: AtomicU64 = AtomicU64::new(1);
        Self {
            retention,
            life: LIVES.fetch_add(1, Ordering::Relaxed),
            state: Mutex::new(spaces),
        }
    }

    /// Raises a space's tombstone floor to `to`, the head at most, and drops what lies below it.
    /// Returns the floor that now holds.
    pub fn raise_floor(&self, space: &SpaceId, to: Seq) -> Seq {
        let mut state = self.state.lock();
        let space = state.spaces.entry(space.clone()).or_default();
        space.floor = space.floor.max(to.min(space.head));
        let floor = space.floor;
        space.lineage.forget_below(floor);
        space
            .docs
            .retain(|_, doc| doc.alive() || doc.header.is_some_and(|header| header.last.seq > floor));
        for doc in space.docs.values_mut() {
            doc.cells
                .retain(|_, cell| cell.value.is_some() || cell.stamp.seq > floor);
        }
        floor
    }

    /// Trims a space's log up to and with the commit `to`.
    pub fn trim_log(&self, space: &SpaceId, to: Seq) {
        if let Some(space) = self.state.lock().spaces.get_mut(space) {
            space.log.retain(|entry| entry.seq > to);
        }
    }

    /// Forgets a space's client records that last wrote before `before`, ms since 1970.
    pub fn forget(&self, space: &SpaceId, before: u64) {
        if let Some(space) = self.state.lock().spaces.get_mut(space) {
            let forgotten = &mut space.forgotten;
            space.clients.retain(|_, client| {
                let keep = client.wrote_ms >= before;
                if !keep {
                    *forgotten = (*forgotten).max(Some(client.wrote_ms));
                }
                keep
            });
        }
    }

    /// Loses a space altogether.
    pub fn wipe(&self, space: &SpaceId) {
        self.state.lock().spaces.remove(space);
    }

    fn with<R>(&self, space: &SpaceId, look: impl FnOnce(&Space) -> R) -> R {
        look(self.state.lock().spaces.get(space).unwrap_or(&Space::default()))
    }
}

#[async_trait]
impl Store for Model {
    async fn commit(&self, group: CommitGroup) -> Result<Committed, StoreError> {
        let mut state = self.state.lock();
        let space = state.spaces.entry(group.space.clone()).or_default();
        let planned = group.planned_on == space.lineage.last_epoch();
        let incarnation = self.life.to_be_bytes().to_vec();
        let before = space.lineage.clone();
        if space
            .lineage
            .0
            .last()
            .is_none_or(|last| last.incarnation != incarnation)
        {
            space.lineage.mint(group.fresh, incarnation, space.head, space.floor);
        }
        let mut outcomes: Vec<Outcome> = vec![];
        for item in group.items {
            let outcome = space.commit(item, planned, group.now_ms, &outcomes, &self.retention);
            outcomes.push(outcome);
        }
        if !outcomes.iter().any(Outcome::is_kept) {
            space.lineage = before;
        }
        space.retain(&self.retention);
        Ok(Committed {
            outcomes,
            lineage: space.lineage.clone(),
        })
    }

    async fn read(&self, space: &SpaceId, docs: &[DocPath]) -> Result<ReadCut, StoreError> {
        Ok(self.with(space, |space| ReadCut {
            state: space.state(),
            docs: docs
                .iter()
                .map(|doc| space.docs.get(doc).cloned().unwrap_or_default())
                .collect(),
        }))
    }

    async fn log(
        &self,
        space: &SpaceId,
        after: Position,
        limit: usize,
        bytes: usize,
        writer: Option<Writer>,
    ) -> Result<LogReply, StoreError> {
        Ok(self.with(space, |space| space.log(after, limit, bytes, writer)))
    }

    async fn changes(&self, space: &SpaceId, request: ChangesRequest) -> Result<ChangesReply, StoreError> {
        Ok(self.with(space, |space| space.changes(&request)))
    }

    async fn positions(&self, spaces: &[SpaceId]) -> Result<Vec<SpaceState>, StoreError> {
        Ok(spaces.iter().map(|space| self.with(space, Space::state)).collect())
    }

    async fn conflicts(&self, space: &SpaceId, limit: usize) -> Result<Vec<ConflictRecord>, StoreError> {
        Ok(self.with(space, |space| {
            space.conflicts.iter().rev().take(limit).cloned().collect()
        }))
    }

    async fn erase(
        &self,
        space: &SpaceId,
        whom: Erase,
        fresh: Epoch,
        now_ms: u64,
        begun: Begun<'_>,
    ) -> Result<Erased, StoreError> {
        let mut state = self.state.lock();
        let Some(space) = state.spaces.get_mut(space).filter(|space| !space.lineage.0.is_empty()) else {
            return Ok(Erased::default());
        };
        space.lineage = Lineage(vec![LineageEntry {
            epoch: fresh,
            incarnation: self.life.to_be_bytes().to_vec(),
            start: space.head,
        }]);
        space.floor = space.head;
        begun(&space.lineage);
        Ok(space.erase(whom, now_ms))
    }

    fn usage(&self) -> Usage {
        let state = self.state.lock();
        state
            .spaces
            .values()
            .map(Space::usage)
            .fold(Usage::default(), Usage::plus)
    }
}

impl Space {
    fn erase(&mut self, whom: Erase, now_ms: u64) -> Erased {
        let whose = match whom {
            Erase::Space => None,
            Erase::User(user) => Some(self.users.remove(&user).unwrap_or_default()),
        };
        let theirs = |writer: &Writer| whose.as_ref().is_none_or(|whose| whose.contains(writer));
        let mut erased = Erased {
            commits: self.log.len() as u64,
            ..Erased::default()
        };
        self.log.clear();
        if whom == Erase::Space {
            self.users.clear();
        }
        self.conflicts.retain(|record| {
            let entry = &record.entry;
            let gone = theirs(&record.writer)
                || whose.is_none()
                || entry.theirs.iter().any(|(_, cell)| theirs(&cell.stamp.writer));
            erased.conflicts += u64::from(gone);
            !gone
        });
        self.docs.retain(|_, doc| {
            let cells = doc.cells.len();
            doc.cells.retain(|_, cell| !theirs(&cell.stamp.writer));
            erased.cells += (cells - doc.cells.len()) as u64;
            let Some(header) = &mut doc.header else { return true };
            let stamps = [Some(&mut header.last), Some(&mut header.born), header.deleted.as_mut()];
            let mut others = doc.cells.len();
            for stamp in stamps.into_iter().flatten() {
                if theirs(&stamp.writer) {
                    stamp.writer = NOBODY;
                }
                others += usize::from(stamp.writer != NOBODY);
            }
            let live = doc
                .cells
                .iter()
                .filter_map(|(path, cell)| Some((path, cell.value.as_ref()?)));
            header.size = live
                .map(|(path, value)| (path.as_str().len() + value.as_bytes().len()) as u64)
                .sum();
            erased.docs += u64::from(others == 0);
            others > 0
        });
        for (_, client) in self
            .clients
            .iter_mut()
            .filter(|(writer, client)| theirs(writer) && !client.erased)
        {
            client.erased = true;
            client.results.clear();
            client.wrote_ms = client.wrote_ms.max(now_ms);
            erased.clients += 1;
        }
        erased
    }

    fn state(&self) -> SpaceState {
        SpaceState {
            head: self.head(),
            lineage: self.lineage.clone(),
            floor: self.floor,
            last_ms: self.last_ms,
            usage: self.usage(),
        }
    }

    fn usage(&self) -> Usage {
        let alive = || self.docs.values().filter(|doc| doc.alive());
        Usage {
            docs: alive().count() as u64,
            bytes: alive().filter_map(|doc| doc.header).map(|header| header.size).sum(),
        }
    }

    fn head(&self) -> Position {
        Position::new(self.lineage.last_epoch(), self.head)
    }

    fn last_mid(&self, writer: Option<Writer>) -> Option<Mid> {
        let client = self.clients.get(&writer?)?;
        (!client.erased).then_some(client.last)
    }

    fn commit(
        &mut self,
        item: Prepared,
        planned: bool,
        now_ms: u64,
        before: &[Outcome],
        retention: &Retention,
    ) -> Outcome {
        let known = self
            .clients
            .get_mut(&item.writer)
            .filter(|client| client.wrote_ms + retention.clients_ms >= now_ms);
        match known {
            None => {
                let too_old = item
                    .first
                    .is_some_and(|first| retention.first_is_too_old(first, now_ms, self.forgotten));
                if item.mid.get() != 1 || too_old {
                    return Outcome::ClientUnknown;
                }
            }
            Some(client) if client.erased => return Outcome::ClientUnknown,
            Some(client) => {
                if item.mid <= client.last {
                    return match client.results.get(&item.mid) {
                        None => Outcome::ClientUnknown,
                        Some((key, _)) if *key != item.key => Outcome::ClientCloned,
                        Some((_, kept)) => {
                            client.wrote_ms = client.wrote_ms.max(now_ms);
                            Outcome::Duplicate(kept.clone())
                        }
                    };
                }
                if item.mid > client.last.next() {
                    return Outcome::OutOfOrder {
                        expected: client.last.next(),
                    };
                }
                if client.results.get(&client.last).map(|(key, _)| *key) != item.prev {
                    return Outcome::ClientCloned;
                }
            }
        }
        let holds = |(doc, version): &(DocPath, Version)| {
            let stands = self
                .docs
                .get(doc)
                .and_then(|doc| doc.header)
                .map(|header| header.last.seq);
            match version {
                Version::Absent => stands.is_none(),
                Version::Seq(seq) => stands == Some(*seq),
                Version::Item(index) => stands.is_some() && stands == applied(before, *index),
            }
        };
        let at = now_ms.max(self.last_ms);
        let other_time = matches!(&item.action, Action::Apply(effects) if effects.now_ms.is_some_and(|now| now != at));
        if !planned || other_time || !item.expects.iter().all(holds) {
            return Outcome::Stale { last_ms: self.last_ms };
        }
        let (kept, conflicts, outcome) = match item.action {
            Action::Apply(effects) => self.apply(item.writer, effects, now_ms),
            Action::Refuse {
                code,
                conflicts,
                detail,
            } => {
                let kept = Kept {
                    refused: Some(code),
                    position: self.head(),
                    detail,
                };
                (kept, conflicts, Outcome::Refused { position: self.head() })
            }
        };
        for mut entry in conflicts {
            entry.resolve(|index| applied(before, index));
            self.conflicts.push(ConflictRecord {
                position: kept.position,
                at: now_ms.max(self.last_ms),
                writer: item.writer,
                mid: item.mid,
                entry,
            });
        }
        // A first mutation comes to pass without a record only, or with one that has expired.
        if item.mid == Mid::ZERO.next() {
            self.clients.remove(&item.writer);
        }
        let client = self.clients.entry(item.writer).or_insert_with(|| Client {
            last: Mid::ZERO,
            results: BTreeMap::new(),
            wrote_ms: 0,
            erased: false,
        });
        self.users.entry(item.user).or_default().insert(item.writer);
        client.last = item.mid;
        client.wrote_ms = client.wrote_ms.max(now_ms);
        client.results.insert(item.mid, (item.key, kept));
        client
            .results
            .retain(|mid, _| mid.get() + KEPT_RESULTS > item.mid.get());
        outcome
    }

    fn apply(&mut self, writer: Writer, effects: Effects, now_ms: u64) -> (Kept, Vec<super::ConflictEntry>, Outcome) {
        let seq = self.head.next();
        let at = now_ms.max(self.last_ms);
        (self.head, self.last_ms) = (seq, at);
        let stamp = Stamp { seq, writer };
        for effect in effects.docs {
            let doc = self.docs.entry(effect.doc).or_default();
            let old = doc.header;
            doc.header = Some(Header {
                last: stamp,
                born: match old {
                    Some(old) if !effect.born => old.born,
                    _ => stamp,
                },
                deleted: match old {
                    _ if effect.deleted => Some(stamp),
                    Some(old) => old.deleted,
                    None => None,
                },
                alive: effect.alive,
                size: effect.size,
            });
            for (path, value) in effect.cells {
                doc.cells.insert(path, Cell { stamp, value });
            }
        }
        let payload = msgpack::payload(seq, at, &effects.body);
        self.log.push(LogEntry {
            seq,
            payload: payload.clone(),
        });
        let position = self.head();
        let kept = Kept {
            refused: None,
            position,
            detail: effects.detail,
        };
        (kept, effects.conflicts, Outcome::Applied { position, at, payload })
    }

    fn retain(&mut self, retention: &Retention) {
        let bytes = |log: &[LogEntry]| log.iter().map(|entry| entry.payload.len() as u64).sum::<u64>();
        while self.log.len() as u64 > retention.log_commits || bytes(&self.log) > retention.log_bytes {
            self.log.remove(0);
        }
        let bytes = |log: &[ConflictRecord]| log.iter().map(ConflictRecord::size).sum::<u64>();
        while self.conflicts.len() as u64 > retention.conflicts || bytes(&self.conflicts) > retention.conflicts_bytes {
            self.conflicts.remove(0);
        }
    }

    fn log(&self, after: Position, limit: usize, bytes: usize, writer: Option<Writer>) -> LogReply {
        if !self.lineage.holds(after, self.head) {
            return LogReply::Reset(ResetReason::Lost);
        }
        let trimmed = (self.log.len() as u64) < self.head.get() - after.seq.get();
        if trimmed || !self.lineage.names_all_after(after) {
            return LogReply::Trimmed;
        }
        let mut commits: Vec<LogEntry> = vec![];
        let mut spent = 0;
        for entry in self.log.iter().filter(|entry| entry.seq > after.seq) {
            if commits.len() >= limit || (spent >= bytes && !commits.is_empty()) {
                break;
            }
            spent += entry.payload.len();
            commits.push(entry.clone());
        }
        LogReply::Commits {
            commits,
            state: self.state(),
            last_mid: self.last_mid(writer),
        }
    }

    fn changes(&self, request: &ChangesRequest) -> ChangesReply {
        let lost = |position: Position| !self.lineage.holds(position, self.head);
        let after = request.after.map(|after| after.seq);
        let begin = request.cursor.as_ref().map_or(self.head, |cursor| cursor.begin);
        if request.after.is_some_and(lost) {
            return ChangesReply::Reset(ResetReason::Lost);
        }
        if let Some(cursor) = &request.cursor {
            if cursor.after != request.after || cursor.view != request.view.id {
                return ChangesReply::Reset(ResetReason::ForeignCursor);
            }
            if lost(cursor.head) {
                return ChangesReply::Reset(ResetReason::Lost);
            }
        }
        if self.floor > after.unwrap_or(begin) {
            return ChangesReply::Reset(ResetReason::BelowFloor);
        }
        // Everything that was touched after the position, in order of the seq that last touched it.
        let mut touched: Vec<(Seq, &DocPath, &DocState)> = vec![];
        for (path, doc) in &self.docs {
            if let Some(header) = doc.header
                && after.is_none_or(|after| header.last.seq > after)
                && request.view.covers(path)
            {
                touched.push((header.last.seq, path, doc));
            }
        }
        touched.sort_by_key(|(seq, path, _)| (*seq, *path));
        if let Some(cursor) = &request.cursor {
            touched.retain(|(seq, path, _)| (*seq, *path) > (cursor.at, &cursor.doc));
        }
        let mut docs: Vec<DocChange> = vec![];
        let mut spent = 0;
        let mut last = None;
        for (seq, path, doc) in touched {
            if let Some(kind) = what_changed(doc, after, begin) {
                let size = size_of(path, &kind);
                if let Some((at, doc)) = last.filter(|_| !docs.is_empty() && spent + size > request.budget) {
                    let cursor = Cursor {
                        after: request.after,
                        at,
                        doc,
                        begin,
                        head: self.head(),
                        view: request.view.id,
                    };
                    return ChangesReply::Page {
                        docs: Arc::new(docs.iter().collect()),
                        cursor,
                        head: self.head(),
                    };
                }
                spent += size;
                docs.push(DocChange {
                    doc: path.clone(),
                    kind,
                });
            }
            last = Some((seq, path.clone()));
        }
        ChangesReply::Done {
            docs: Arc::new(docs.iter().collect()),
            state: self.state(),
            last_mid: self.last_mid(request.writer),
        }
    }
}

/// What one lacks of a document who holds it as of `after`, or nothing but what a scan that began at
/// `begin` has brought (`None`).
fn what_changed(doc: &DocState, after: Option<Seq>, begin: Seq) -> Option<DocChangeKind> {
    let header = doc.header?;
    if !header.alive {
        // In a reset only an earlier page can have brought it.
        return (after.is_some() || header.last.seq > begin).then_some(DocChangeKind::Deleted);
    }
    let Some(after) = after.filter(|after| header.born.seq <= *after) else {
        let leaves = doc.leaves().map(|(path, value)| (path.clone(), value.clone()));
        return Some(DocChangeKind::Whole(leaves.collect()));
    };
    let (mut set, mut unset) = (vec![], vec![]);
    for (path, cell) in doc.cells.iter().filter(|(_, cell)| cell.stamp.seq > after) {
        match &cell.value {
            Some(value) => set.push((path.clone(), value.clone())),
            None => unset.push(path.clone()),
        }
    }
    Some(DocChangeKind::Change { set, unset })
}

fn size_of(doc: &DocPath, kind: &DocChangeKind) -> usize {
    let leaves = match kind {
        DocChangeKind::Change { set, unset } => {
            set.iter()
                .map(|(path, value)| path.as_str().len() + value.as_bytes().len() + 8)
                .sum::<usize>()
                + unset.iter().map(|path| path.as_str().len() + 8).sum::<usize>()
        }
        DocChangeKind::Whole(set) => set
            .iter()
            .map(|(path, value)| path.as_str().len() + value.as_bytes().len() + 8)
            .sum(),
        DocChangeKind::Deleted => 0,
    };
    doc.as_str().len() + 8 + leaves
}

/// The seq that the item of an index was applied as, earlier in the same call.
fn applied(outcomes: &[Outcome], index: usize) -> Option<Seq> {
    match outcomes.get(index)? {
        Outcome::Applied { position, .. } => Some(position.seq),
        _ => None,
    }
}
