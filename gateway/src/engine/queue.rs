//! The commit queue of each space, and its worker: while one store call is in flight the next group
//! gathers, so throughput rises with load and latency at low load stays one round trip.

use super::answer::{Answer, Pending};
use super::bounds::cells_share;
use super::evaluate::readable;
use super::hot::{self, Hot};
use super::plan::{Plan, Planner};
use super::{Done, Engine, Report, WriteRequest};
use crate::store::{
    Cell, CommitGroup, Committed, DocState, Kept, Lineage, LogEntry, LogReply, Outcome, ReadCut, StoreError,
};
use std::collections::{BTreeMap, BTreeSet, HashSet, VecDeque};
use std::sync::Arc;
use tidegate_protocol::{Code, DocPath, Epoch, Invalid, Position, Seq, SpaceId, Writer};

/// What waits in a space. It is in the engine's map exactly as long as its worker lives.
#[derive(Default)]
pub(super) struct Queue {
    waiting: VecDeque<Pending>,
    bytes: usize,
}

/// Documents read for a group at most, unless one mutation alone is about more.
const GROUP_DOCS: usize = 1_024;
/// Documents read in one store call at most: so many may come beyond
/// [`EngineConfig::read_bytes`](super::EngineConfig::read_bytes), and beyond
/// [`EngineConfig::mutation_bytes`](super::EngineConfig::mutation_bytes).
const READ_DOCS: usize = 64;

/// Documents that are read for a group in one store call.
struct Read {
    docs: Vec<DocPath>,
    /// How many of the group's mutations have all of their documents with it, and those before.
    mutations: usize,
}

/// What a group is planned on.
#[derive(Default)]
struct Known {
    /// In the order of the cut's.
    docs: Vec<DocPath>,
    cut: ReadCut,
    /// How many of the group's mutations have all of their documents there. None: the first is about too much.
    mutations: usize,
    /// About how large those are that have been read.
    bytes: usize,
    /// The last epoch as of the first call.
    planned_on: Option<Epoch>,
    /// What is kept of other documents of the space.
    hot: Hot,
}

impl Engine {
    /// Takes a mutation in. Returns at once; `done` is called exactly once, from here if the queue is
    /// full, else from the space's worker.
    pub fn submit(self: &Arc<Self>, request: WriteRequest, done: Done) {
        let space = request.head.space.clone();
        let pending = Pending::new(request, done, self);
        if self.stats.waiting_bytes.get() > self.config.node_bytes as u64 {
            self.stats.node_full.add(1);
            return pending.later(
                Code::Unavailable,
                "too many writes are waiting on this node; send it again later",
            );
        }
        // The map's lock is held to the end of this block: a worker that finds its queue empty removes
        // it under the same lock, so that no mutation is left without a worker.
        let refused = {
            let entry = self.queues.entry(space.clone());
            let idle = matches!(entry, dashmap::Entry::Vacant(_));
            let mut slot = entry.or_default();
            let queue = slot.get_mut();
            let full =
                queue.waiting.len() >= self.config.space_items || queue.bytes + pending.bytes > self.config.space_bytes;
            // One that is larger than the bound alone still passes when nothing else waits.
            if full && !queue.waiting.is_empty() {
                Some(pending)
            } else {
                queue.bytes += pending.bytes;
                queue.waiting.push_back(pending);
                if idle {
                    self.tasks.spawn(work(Arc::clone(self), space));
                }
                None
            }
        };
        if let Some(pending) = refused {
            self.stats.space_full.add(1);
            pending.later(
                Code::Unavailable,
                "too many writes are waiting in this space; send it again later",
            );
        }
    }

    /// The next group: what has to be planned again, then what waits. `None`: nothing does, and the
    /// queue is removed.
    fn take(&self, space: &SpaceId, again: VecDeque<Pending>) -> Option<Vec<Pending>> {
        let mut group: Vec<Pending> = again.into();
        let mut docs = group.iter().map(docs_of).sum::<usize>();
        let mut bytes = group.iter().map(|pending| pending.bytes).sum::<usize>();
        let room = |group: &Vec<Pending>, bytes: usize, docs: usize| {
            group.is_empty()
                || group.len() < self.config.group_items && bytes <= self.config.group_bytes && docs <= GROUP_DOCS
        };
        if let Some(mut entry) = self.queues.get_mut(space) {
            let queue = entry.get_mut();
            while let Some(next) = queue.waiting.front() {
                (bytes, docs) = (bytes + next.bytes, docs + docs_of(next));
                if !room(&group, bytes, docs) {
                    break;
                }
                if let Some(next) = queue.waiting.pop_front() {
                    queue.bytes -= next.bytes;
                    group.push(next);
                }
            }
        }
        let idle = group.is_empty()
            && self
                .queues
                .remove_if_mut(space, |_, queue| queue.get_mut().waiting.is_empty())
                .is_some();
        (!idle).then_some(group)
    }

    /// Plans, commits, publishes and answers a group. Returns what has to be done again.
    async fn group(&self, space: &SpaceId, mut group: Vec<Pending>) -> VecDeque<Pending> {
        if group.is_empty() {
            // The queue was found empty just before the next one came.
            return VecDeque::new();
        }
        let hot = self.hot.take(space).filter(|hot| hot.knows_positions_of(&group));
        let known = match self.known(space, reads(&group), hot).await {
            Ok(known) => known,
            Err(StoreError::Damaged(why)) if group.len() > 1 => return self.one_by_one(space, group, &why).await,
            Err(error) => return self.unknown(space, group, &error).await,
        };
        let rest = group.split_off(known.mutations.max(1));
        let mut again = self.plan(space, group, known).await;
        // Behind those of the same writers.
        again.extend(rest);
        again
    }

    /// The documents of a group, as far as they are not too much at a time: those that are kept, and the others read.
    async fn known(&self, space: &SpaceId, reads: Vec<Read>, hot: Option<Hot>) -> Result<Known, StoreError> {
        if let Some(hot) = hot
            && let Some(known) = self.read(space, &reads, Some(hot)).await?
        {
            return Ok(known);
        }
        let known = self.read(space, &reads, None).await?;
        Ok(known.unwrap_or_default())
    }

    /// Reads the documents of a group that are not kept. `None` if those that are may be out of date.
    ///
    /// Those of a later call may be newer: what each was planned on is checked when it is committed, and that the
    /// first call's epoch is still the last, since a version tells nothing across a loss. The state is the last
    /// call's, so that no tombstone is missed that a floor of before would promise.
    async fn read(&self, space: &SpaceId, reads: &[Read], hot: Option<Hot>) -> Result<Option<Known>, StoreError> {
        let mut known = Known::default();
        let mut hot = hot.inspect(|hot| {
            known.planned_on = Some(hot.state.lineage.last_epoch());
            known.cut.state = hot.state.clone();
        });
        for Read { docs, mutations } in reads {
            let mut missing = Vec::new();
            for doc in docs {
                match hot.as_mut().and_then(|hot| hot.take(doc)) {
                    Some(state) => known.take(doc.clone(), state),
                    None => missing.push(doc.clone()),
                }
            }
            if !missing.is_empty() || known.planned_on.is_none() {
                let cut = self.store.read(space, &missing).await?;
                if hot.as_ref().is_some_and(|hot| !hot.is_as_of(&cut.state)) {
                    return Ok(None);
                }
                missing
                    .into_iter()
                    .zip(cut.docs)
                    .for_each(|(doc, state)| known.take(doc, state));
                known.planned_on.get_or_insert(cut.state.lineage.last_epoch());
                known.cut.state = cut.state;
            }
            known.mutations = *mutations;
            let enough = match mutations {
                0 => self.config.mutation_bytes,
                _ => self.config.read_bytes,
            };
            if known.bytes >= enough {
                break;
            }
        }
        known.hot = hot.unwrap_or_default();
        known.hot.state = known.cut.state.clone();
        Ok(Some(known))
    }

    /// Plans, commits, publishes and answers mutations of which all is known, or one that is about too much. Returns
    /// what has to be done again.
    async fn plan(&self, space: &SpaceId, group: Vec<Pending>, known: Known) -> VecDeque<Pending> {
        let Known {
            docs,
            cut,
            mutations,
            bytes,
            planned_on,
            hot,
        } = known;
        let limit = self.config.mutation_bytes;
        let too_large = || Invalid::too_large("bytes of the documents that a mutation is about", limit, bytes);
        let planned_on = planned_on.unwrap_or_default();
        let now_ms = self.env.now_ms();
        let mut planner = Planner::new(&*self.rules, &self.limits, space, docs, cut, now_ms)
            .within(self.config.quota, self.store.usage().bytes)
            .about_too_much((mutations == 0).then(too_large));
        let mut items = Vec::with_capacity(group.len());
        let mut planned = Vec::with_capacity(group.len());
        for pending in group {
            match planner.plan(&pending.request) {
                Plan::Item(item, report) => {
                    planned.push((pending, item.writer, report));
                    items.push(*item);
                }
                Plan::Later(refusal) => {
                    let limited = refusal.code == Code::RateLimited;
                    let code = if limited { Code::RateLimited } else { Code::Unavailable };
                    pending.later(code, &refusal.message);
                }
            }
        }
        if items.is_empty() {
            return VecDeque::new();
        }
        let fresh = Epoch(self.env.random().max(1));
        let call = CommitGroup {
            space: space.clone(),
            planned_on,
            fresh,
            now_ms,
            items,
        };
        // Many bytes of documents need not stay in memory while the store works.
        let left = (bytes <= hot::SPACE_BYTES).then(|| planner.left());
        match self.store.commit(call).await {
            Ok(committed) if committed.outcomes.len() == planned.len() => {
                let left = left.filter(|_| committed.lineage == hot.state.lineage);
                if let Some(hot) = left.and_then(|(docs, usage)| hot.after(docs, usage, &committed.outcomes)) {
                    self.hot.put(space, hot);
                }
                self.settle(space, planned, committed).await
            }
            Ok(_) => {
                let error = StoreError::Damaged("an outcome for each item was due".into());
                self.unknown(
                    space,
                    planned.into_iter().map(|(pending, ..)| pending).collect(),
                    &error,
                )
                .await
            }
            Err(StoreError::Damaged(why)) if planned.len() > 1 => {
                let group = planned.into_iter().map(|(pending, ..)| pending).collect();
                self.one_by_one(space, group, &why).await
            }
            Err(error) => {
                self.unknown(
                    space,
                    planned.into_iter().map(|(pending, ..)| pending).collect(),
                    &error,
                )
                .await
            }
        }
    }

    /// After a call that met something damaged: each by itself, so that what is damaged holds up nobody but
    /// those who need it, and who comes behind them.
    async fn one_by_one(&self, space: &SpaceId, group: Vec<Pending>, why: &str) -> VecDeque<Pending> {
        tracing::warn!(%space, %why, mutations = group.len(), "the mutations of a group are tried one by one");
        let mut again = VecDeque::new();
        let mut held: HashSet<Writer> = HashSet::new();
        for pending in group {
            let writer = pending.request.writer();
            if held.contains(&writer) {
                again.push_back(pending);
                continue;
            }
            let failed = Box::pin(self.group(space, vec![pending])).await;
            if !failed.is_empty() {
                held.insert(writer);
                again.extend(failed);
            }
        }
        again
    }

    /// Publishes and answers what the store decided.
    async fn settle(
        &self,
        space: &SpaceId,
        planned: Vec<(Pending, Writer, Report)>,
        committed: Committed,
    ) -> VecDeque<Pending> {
        let Committed { outcomes, lineage } = committed;
        self.stats.groups.add(1);
        let seqs: Vec<Option<Seq>> = outcomes.iter().map(applied_seq).collect();
        let seq_of = |index: usize| seqs.get(index).copied().flatten();
        let mut commits = Vec::new();
        // With the place in the group: they are given in its order, as a client tells by it which of two sendings of
        // a mid is answered.
        let mut answers: Vec<(usize, Pending, Answer)> = Vec::new();
        let mut repeats: Vec<(usize, Pending, Kept)> = Vec::new();
        let mut again = VecDeque::new();
        // Writers of whom a mutation has to be planned again: those behind it have to wait for it. If it
        // is a client's first, the store does not know the client yet.
        let mut held: HashSet<Writer> = HashSet::new();
        for (place, ((mut pending, writer, mut report), outcome)) in planned.into_iter().zip(outcomes).enumerate() {
            match outcome {
                Outcome::Applied { position, payload, .. } => {
                    self.stats.commits.add(1);
                    self.stats.conflicts_overwritten.add(report.conflicts.len() as u64);
                    self.stats.conflicts_skipped.add(report.skipped.len() as u64);
                    commits.push(LogEntry {
                        seq: position.seq,
                        payload,
                    });
                    report.resolve(&seq_of);
                    answers.push((place, pending, Answer::Ack(position, report)));
                }
                Outcome::Refused { .. } => {
                    let conflict = report
                        .refusal
                        .as_ref()
                        .is_some_and(|refusal| refusal.code == Code::Conflict);
                    self.stats.conflicts_rejected.add(u64::from(conflict));
                    report.resolve(&seq_of);
                    answers.push((place, pending, Answer::Refused(report)));
                }
                Outcome::Duplicate(kept) => {
                    self.stats.duplicates.add(1);
                    repeats.push((place, pending, kept));
                }
                Outcome::Stale { .. } => {
                    pending.stale += 1;
                    if pending.stale > self.config.stale_tries {
                        self.stats.stale_given_up.add(1);
                        answers.push((place, pending, Answer::Later(Code::Unavailable, TOO_BUSY)));
                    } else {
                        self.stats.stale_replans.add(1);
                        held.insert(writer);
                        again.push_back(pending);
                    }
                }
                Outcome::OutOfOrder { .. } | Outcome::ClientUnknown if held.contains(&writer) => {
                    again.push_back(pending)
                }
                Outcome::OutOfOrder { expected } => answers.push((place, pending, Answer::OutOfOrder(expected))),
                Outcome::ClientCloned => answers.push((place, pending, Answer::Later(Code::ClientCloned, CLONED))),
                Outcome::ClientUnknown => answers.push((place, pending, Answer::Later(Code::ClientUnknown, UNKNOWN))),
            }
        }
        let missed = |(_, pending, kept): &(usize, Pending, Kept)| {
            let is_missed = || pending.unknown > 0 || self.publish.lacks(space, kept.position);
            (kept.refused.is_none() && is_missed()).then_some(kept.position)
        };
        let missed = repeats.iter().filter_map(missed).min_by_key(|position| position.seq);
        self.publish_all(space, &lineage, commits, missed).await;
        if !repeats.is_empty() {
            answers.extend(self.repeat(space, repeats).await);
            answers.sort_by_key(|(place, ..)| *place);
        }
        for (_, pending, answer) in answers {
            pending.give(answer);
        }
        again
    }

    /// Hands the commits of a group on. A repeat of a mutation whose first store call ended unknown
    /// was committed then, and not published; of one that was sent elsewhere before, or that the store's own
    /// connection sent again, it may be that nobody has told of it here. What follows `missed`, the first such commit,
    /// is read from the log, so that no change is delayed until somebody compares heads.
    async fn publish_all(
        &self,
        space: &SpaceId,
        lineage: &Lineage,
        mut commits: Vec<LogEntry>,
        missed: Option<Position>,
    ) {
        if let Some(first) = missed {
            let before = Seq::new(first.seq.get().saturating_sub(1)).unwrap_or(Seq::ZERO);
            let (limit, bytes) = (2 * self.config.group_items, 2 * self.config.group_bytes);
            match self
                .store
                .log(space, Position::new(first.epoch, before), limit, bytes, None)
                .await
            {
                Ok(LogReply::Commits {
                    commits: logged, state, ..
                }) => {
                    let last = logged.last().map_or(Seq::ZERO, |entry| entry.seq);
                    // What was read may go beyond the end of the last epoch of before.
                    self.publish.publish(space, &state.lineage, &logged);
                    commits.retain(|entry| entry.seq > last);
                }
                // The hub finds them with its next head check.
                Ok(LogReply::Trimmed | LogReply::Reset(_)) | Err(_) => {}
            }
        }
        if !commits.is_empty() {
            self.publish.publish(space, lineage, &commits);
        }
    }

    /// Answers what was answered before, with cells read afresh.
    async fn repeat(&self, space: &SpaceId, repeats: Vec<(usize, Pending, Kept)>) -> Vec<(usize, Pending, Answer)> {
        let mut repeats: Vec<_> = repeats
            .into_iter()
            .map(|(place, p, kept)| {
                let report = Report::kept(kept.refused, &kept.detail);
                ((place, p), kept.position, cells_share(&self.limits), report)
            })
            .collect();
        let docs: BTreeSet<&DocPath> = repeats.iter().flat_map(|(.., report)| report.docs()).collect();
        let docs: Vec<DocPath> = docs.into_iter().cloned().collect();
        for docs in docs.chunks(READ_DOCS) {
            match self.store.read(space, docs).await {
                Ok(cut) => {
                    let docs: BTreeMap<DocPath, DocState> = docs.iter().cloned().zip(cut.docs).collect();
                    for ((_, pending), _, left, report) in &mut repeats {
                        let scope = self.rules.read(&pending.request.who, space).ok();
                        report.fill(&docs, |doc| readable(scope.as_ref(), doc), left);
                    }
                }
                Err(error) => {
                    tracing::warn!(%space, %error, "could not read what stands for a repeated mutation");
                    return repeats
                        .into_iter()
                        .map(|((place, pending), ..)| (place, pending, Answer::Later(Code::Unavailable, NO_STORE)))
                        .collect();
                }
            }
        }
        let answer = |((place, pending), position, _, report): (_, _, _, Report)| {
            let refused = report.refusal.is_some();
            let answer = match refused {
                true => Answer::Refused(report),
                false => Answer::Ack(position, report),
            };
            (place, pending, answer)
        };
        repeats.into_iter().map(answer).collect()
    }

    /// After a store call that may or may not have done its work: waits, and hands back what is to be
    /// tried again under the same mids and keys.
    async fn unknown(&self, space: &SpaceId, group: Vec<Pending>, error: &StoreError) -> VecDeque<Pending> {
        tracing::warn!(%space, %error, mutations = group.len(), "a store call failed");
        self.stats.store_errors.add(1);
        let mut again = VecDeque::new();
        for mut pending in group {
            pending.unknown += 1;
            if pending.unknown > self.config.unknown_tries {
                pending.later(Code::Unavailable, NO_STORE);
            } else {
                again.push_back(pending);
            }
        }
        let tries = again.iter().map(|pending| pending.unknown).max();
        if let Some(tries) = tries {
            tokio::time::sleep(self.config.unknown_wait * 2_u32.saturating_pow(tries - 1)).await;
        }
        again
    }
}

impl Known {
    fn take(&mut self, doc: DocPath, state: DocState) {
        self.bytes += bytes_of(&state);
        self.docs.push(doc);
        self.cut.docs.push(state);
    }
}

const TOO_BUSY: &str = "its documents change too fast; send it again later";
const NO_STORE: &str = "the store does not answer now, and may or may not have taken the write; send it again";
const CLONED: &str = "another copy of this client's database has written; take a new client id in this space and send \
                      what is unanswered under it";
const UNKNOWN: &str = "no record of this client is kept; take a new client id in this space, and ask the app about what \
                       was sent and not answered: it may have been applied";

/// What to read for a group, a document once; at least one, for the state.
fn reads(group: &[Pending]) -> Vec<Read> {
    let (mut reads, mut docs, mut asked) = (Vec::new(), Vec::new(), BTreeSet::new());
    for (n, pending) in group.iter().enumerate() {
        let body = pending.request.body.as_ref();
        let ops = body.into_iter().flat_map(|body| &body.ops);
        for op in ops.filter(|op| asked.insert(&op.doc)) {
            if docs.len() == READ_DOCS {
                let docs = std::mem::take(&mut docs);
                reads.push(Read { docs, mutations: n });
            }
            docs.push(op.doc.clone());
        }
    }
    let mutations = group.len();
    reads.push(Read { docs, mutations });
    reads
}

/// Bytes of a document as it is held here: tombstones too.
pub(super) fn bytes_of(doc: &DocState) -> usize {
    let value = |cell: &Cell| cell.value.as_ref().map_or(0, |value| value.as_bytes().len());
    let cells = doc.cells.iter();
    cells
        .map(|(path, cell)| path.as_str().len() + size_of::<Cell>() + value(cell))
        .sum()
}

fn docs_of(pending: &Pending) -> usize {
    pending.request.body.as_ref().map_or(0, |body| body.ops.len())
}

fn applied_seq(outcome: &Outcome) -> Option<Seq> {
    match outcome {
        Outcome::Applied { position, .. } => Some(position.seq),
        _ => None,
    }
}

/// A space's worker. It lives as long as its queue is in the map.
async fn work(engine: Arc<Engine>, space: SpaceId) {
    let mut worker = Worker {
        engine,
        space,
        running: true,
    };
    let mut again = VecDeque::new();
    loop {
        worker.engine.publish.room(&worker.space).await;
        let Some(group) = worker.engine.take(&worker.space, again) else {
            break;
        };
        again = worker.engine.group(&worker.space, group).await;
    }
    worker.running = false;
}

/// Takes the queue with it if the worker ends before its work: what waits is answered by its drop.
struct Worker {
    engine: Arc<Engine>,
    space: SpaceId,
    running: bool,
}

impl Drop for Worker {
    fn drop(&mut self) {
        if self.running {
            drop(self.engine.queues.remove(&self.space));
        }
    }
}
