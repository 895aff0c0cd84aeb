//! The writer: one thread that applies everything waiting as one atomic write with one sync.
//!
//! Throughput so rises with load, while a lone commit pays for one sync and nothing more.

use super::collect::{self, Task, TaskDone};
use super::commit::{self, Space};
use super::erase::{Under, UnderWay, Wanted};
use super::overlay::Overlay;
use super::recent::Recent;
use super::shared::Shared;
use super::totals::Totals;
use super::{Durability, EmbeddedOptions};
use crate::store::{Action, CommitGroup, Committed, ConflictEntry, Erased, Outcome, Prepared, StoreError};
use fjall::PersistMode;
use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::time::{Duration, Instant};
use tidegate_protocol::{SpaceId, Value};
use tokio::sync::oneshot;

/// Groups that may wait for the writer; over it, `Unavailable`, and the caller tries again.
pub(super) const QUEUE_GROUPS: usize = 1_024;
/// Bytes of groups that may wait or be written; over it, `Unavailable`.
pub(super) const QUEUE_BYTES: usize = 64 << 20;
/// Spaces that the writer remembers between batches; over it, it forgets them all and reads again.
const CACHED_SPACES: usize = 4_096;

/// How often a writer with nothing to do looks whether the database still takes writes.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How long after a failed write the database is opened again; twice as long after each time that fails.
const FIRST_REOPEN: Duration = Duration::from_millis(100);
/// At most.
const LAST_REOPEN: Duration = Duration::from_secs(5);

/// What the writer has done since the store was opened.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Stats {
    /// Syncs to disk.
    pub syncs: u64,
    /// Atomic writes.
    pub batches: u64,
    /// Records that these wrote or removed.
    pub records: u64,
    /// Calls of `commit` answered.
    pub groups: u64,
    /// Commits: items applied.
    pub commits: u64,
    /// Calls refused because too much was waiting.
    pub refused: u64,
    /// Writes that failed, also those that the database makes by itself.
    pub write_failures: u64,
    /// Times that the database was opened again after one.
    pub reopened: u64,
}

#[derive(Default)]
pub(super) struct Counters {
    syncs: AtomicU64,
    batches: AtomicU64,
    records: AtomicU64,
    groups: AtomicU64,
    commits: AtomicU64,
    refused: AtomicU64,
    write_failures: AtomicU64,
    reopened: AtomicU64,
}

impl Counters {
    pub(super) fn stats(&self) -> Stats {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Stats {
            syncs: read(&self.syncs),
            batches: read(&self.batches),
            records: read(&self.records),
            groups: read(&self.groups),
            commits: read(&self.commits),
            refused: read(&self.refused),
            write_failures: read(&self.write_failures),
            reopened: read(&self.reopened),
        }
    }

    pub(super) fn synced(&self) {
        self.syncs.fetch_add(1, Ordering::Relaxed);
    }
}

/// Work for the writer. Dropping its reply answers `Unavailable`.
pub(super) enum Job {
    Commit(Waiting),
    Task(Task, oneshot::Sender<Result<TaskDone, StoreError>>),
    Erase(Erasure),
}

/// An erasure that is asked for.
pub(super) struct Erasure {
    wanted: Wanted,
    begun: oneshot::Sender<Result<Under, StoreError>>,
    gone: oneshot::Sender<Erased>,
}

/// A group, and where its answer goes.
pub(super) struct Waiting {
    group: CommitGroup,
    reply: oneshot::Sender<Result<Committed, StoreError>>,
    reserved: Reserved,
}

/// The sending end of the writer's bounded queue.
pub(super) struct Queue {
    sender: SyncSender<Job>,
    bytes: Arc<AtomicUsize>,
    most_bytes: usize,
    counters: Arc<Counters>,
}

impl Queue {
    pub(super) fn new(groups: usize, bytes: usize, counters: Arc<Counters>) -> (Self, Receiver<Job>) {
        let (sender, receiver) = sync_channel(groups);
        (
            Self {
                sender,
                bytes: Arc::default(),
                most_bytes: bytes,
                counters,
            },
            receiver,
        )
    }

    /// Puts a group in line.
    pub(super) fn commit(
        &self,
        group: CommitGroup,
    ) -> Result<oneshot::Receiver<Result<Committed, StoreError>>, StoreError> {
        let size = bytes_of(&group);
        let waiting = self.bytes.fetch_add(size, Ordering::Relaxed);
        let reserved = Reserved {
            bytes: self.bytes.clone(),
            size,
        };
        // One alone is always let in, however large: refused it would be for ever.
        if waiting > 0 && waiting + size > self.most_bytes {
            return Err(self.full());
        }
        let (reply, answer) = oneshot::channel();
        self.send(Job::Commit(Waiting { group, reply, reserved }))?;
        Ok(answer)
    }

    /// Puts a task in line.
    pub(super) fn task(&self, task: Task) -> Result<oneshot::Receiver<Result<TaskDone, StoreError>>, StoreError> {
        let (reply, answer) = oneshot::channel();
        self.send(Job::Task(task, reply))?;
        Ok(answer)
    }

    /// Puts an erasure in line. `gone` is told when the one is done that is under way then.
    pub(super) fn erase(
        &self,
        wanted: Wanted,
        gone: oneshot::Sender<Erased>,
    ) -> Result<oneshot::Receiver<Result<Under, StoreError>>, StoreError> {
        let (begun, under) = oneshot::channel();
        self.send(Job::Erase(Erasure { wanted, begun, gone }))?;
        Ok(under)
    }

    fn send(&self, job: Job) -> Result<(), StoreError> {
        self.sender.try_send(job).map_err(|error| match error {
            TrySendError::Full(_) => self.full(),
            TrySendError::Disconnected(_) => stopped(),
        })
    }

    fn full(&self) -> StoreError {
        self.counters.refused.fetch_add(1, Ordering::Relaxed);
        StoreError::Unavailable("too many writes are waiting".to_owned())
    }
}

/// The answer where the writer is gone, or dropped the question.
pub(super) fn stopped() -> StoreError {
    StoreError::Unavailable("the writer has stopped".to_owned())
}

/// Bytes counted as waiting until this is dropped.
struct Reserved {
    bytes: Arc<AtomicUsize>,
    size: usize,
}

impl Drop for Reserved {
    fn drop(&mut self) {
        self.bytes.fetch_sub(self.size, Ordering::Relaxed);
    }
}

/// About how much memory a group takes.
fn bytes_of(group: &CommitGroup) -> usize {
    let value = |value: Option<&Value>| value.map_or(0, |value| value.as_bytes().len());
    let conflict = |entry: &ConflictEntry| {
        let theirs = entry
            .theirs
            .iter()
            .map(|(path, cell)| path.as_str().len() + value(cell.value.as_ref()));
        value(entry.ours.as_ref()) + theirs.sum::<usize>()
    };
    let item = |prepared: &Prepared| match &prepared.action {
        Action::Apply(effects) => {
            let cells = effects.docs.iter().flat_map(|doc| &doc.cells);
            let cells: usize = cells
                .map(|(path, cell)| path.as_str().len() + value(cell.as_ref()))
                .sum();
            effects.body.len() + effects.detail.len() + cells + effects.conflicts.iter().map(conflict).sum::<usize>()
        }
        Action::Refuse { detail, conflicts, .. } => detail.len() + conflicts.iter().map(conflict).sum::<usize>(),
    };
    group
        .items
        .iter()
        .map(|prepared| size_of::<Prepared>() + item(prepared))
        .sum()
}

/// A database that takes no more writes until it is opened again.
struct Failed {
    why: String,
    /// When that is tried.
    again: Instant,
    /// How long until the next time, should it fail.
    wait: Duration,
}

/// The writer's own state; lives on its thread.
pub(super) struct Writer {
    shared: Arc<Shared>,
    options: EmbeddedOptions,
    incarnation: Vec<u8>,
    counters: Arc<Counters>,
    totals: Arc<Totals>,
    spaces: HashMap<SpaceId, Space>,
    /// An overlay has it while there is one, and gives it back once it is written.
    recent: Recent,
    /// What the batch at hand is about, and the totals do not count yet.
    touched: Vec<SpaceId>,
    failed: Option<Failed>,
    erasures: UnderWay,
}

impl Writer {
    /// `erasing` are the spaces whose erasure it is to go on with.
    pub(super) fn new(
        shared: Arc<Shared>,
        options: EmbeddedOptions,
        counters: Arc<Counters>,
        totals: Arc<Totals>,
        erasing: Vec<SpaceId>,
    ) -> Self {
        let mut erasures = UnderWay::default();
        erasures.found(erasing);
        Self {
            erasures,
            shared,
            incarnation: options.env.random().to_be_bytes().to_vec(),
            options,
            counters,
            totals,
            spaces: HashMap::new(),
            recent: Recent::default(),
            touched: Vec::new(),
            failed: None,
        }
    }

    /// Works until every sender is gone and the queue is empty; then makes all of it durable.
    pub(super) fn run(mut self, jobs: &Receiver<Job>) {
        loop {
            let due = self
                .erasures
                .next()
                .map(|next| next.saturating_duration_since(Instant::now()));
            let first = match jobs.recv_timeout(due.unwrap_or(LOOK_EVERY).min(LOOK_EVERY)) {
                Ok(first) => Some(first),
                Err(RecvTimeoutError::Timeout) => {
                    // What fails in the background shows before the next write meets it.
                    let _ = self.ready();
                    None
                }
                Err(RecvTimeoutError::Disconnected) => break,
            };
            let mut waiting = Vec::new();
            for job in first.into_iter().chain(jobs.try_iter().take(QUEUE_GROUPS)) {
                match job {
                    Job::Commit(group) => waiting.push(group),
                    // Tasks scan the disk, so what came before them has to be there.
                    Job::Task(task, reply) => {
                        self.commit(std::mem::take(&mut waiting));
                        let _ = reply.send(self.task(&task));
                    }
                    Job::Erase(erasure) => {
                        self.commit(std::mem::take(&mut waiting));
                        self.begin_erasure(erasure);
                    }
                }
            }
            self.commit(waiting);
            self.erase();
            if self.spaces.len() > CACHED_SPACES {
                // An erasure that is begun again from the start may never come to its end.
                self.spaces.retain(|_, space| space.meta.erasing.is_some());
            }
        }
        match self.shared.disk().and_then(|disk| disk.sync()) {
            Ok(()) => self.counters.synced(),
            Err(error) => tracing::error!(%error, "the last sync of the store failed"),
        }
    }

    /// Whether a write can be tried: with the database open and sound, which may mean to open it again.
    fn ready(&mut self) -> Result<(), StoreError> {
        if self.failed.is_none() {
            match self.shared.takes_writes() {
                Ok(()) => return Ok(()),
                // A flush or a merge in the background; nothing is lost by trying at once.
                Err(error) => self.fail(&error, Duration::ZERO),
            }
        }
        let Some(failed) = &mut self.failed else { return Ok(()) };
        if Instant::now() < failed.again {
            return Err(StoreError::Unavailable(failed.why.clone()));
        }
        match self.shared.reopen(self.options.reserve_bytes) {
            Ok(()) => {
                self.failed = None;
                self.counters.reopened.fetch_add(1, Ordering::Relaxed);
                self.reopened();
                tracing::info!("the database is open again and takes writes");
                Ok(())
            }
            Err(error) => {
                failed.again = Instant::now() + failed.wait;
                failed.wait = (failed.wait * 2).min(LAST_REOPEN);
                failed.why = reason(&error);
                tracing::warn!(%error, "the database cannot be opened again yet");
                Err(error)
            }
        }
    }

    /// Forgets what it remembers of the disk.
    fn forget(&mut self) {
        self.spaces.clear();
        self.recent = Recent::default();
    }

    /// Notes that a write failed.
    fn fail(&mut self, error: &StoreError, wait: Duration) {
        // Nobody knows what is on disk, so nothing remembered may be trusted.
        self.forget();
        self.counters.write_failures.fetch_add(1, Ordering::Relaxed);
        self.failed = Some(Failed {
            why: reason(error),
            again: Instant::now() + wait,
            wait: FIRST_REOPEN,
        });
        tracing::error!(%error, "a write to the store failed");
    }

    /// At `Fsync` whatever was answered had been synced, so it is there again, and history goes on. At
    /// `Memory` what a failing disk did not take may be gone: that is another incarnation, so that
    /// positions that may be lost are not taken for those to come.
    fn reopened(&mut self) {
        self.forget();
        // Of the write that failed all may be there, or nothing.
        let counted = self.shared.disk().and_then(|disk| self.totals.count(&disk.cut()));
        match counted {
            // The first step of one may be there whose caller was told that nobody knows.
            Ok(erasing) => self.erasures.found(erasing),
            Err(error) => tracing::warn!(%error, "the store cannot be counted anew"),
        }
        if self.options.durability == Durability::Memory {
            self.incarnation = self.options.env.random().to_be_bytes().to_vec();
        }
    }

    /// Applies groups as one atomic write, and answers each.
    fn commit(&mut self, waiting: Vec<Waiting>) {
        if waiting.is_empty() {
            return;
        }
        let (groups, replies): (Vec<_>, Vec<_>) = waiting.into_iter().map(|w| (w.group, (w.reply, w.reserved))).unzip();
        let written = catch_unwind(AssertUnwindSafe(|| self.write(groups))).unwrap_or_else(|_| Err(panicked()));
        let answers = written.unwrap_or_else(|error| {
            // Spaces may remember what was planned here.
            self.spaces.clear();
            let why = reason(&error);
            replies
                .iter()
                .map(|_| Err(StoreError::Unavailable(why.clone())))
                .collect()
        });
        for ((reply, reserved), answer) in replies.into_iter().zip(answers) {
            // Before the answer: who has it may write again at once.
            drop(reserved);
            self.counters.groups.fetch_add(1, Ordering::Relaxed);
            // The caller may have gone; what was applied stays applied.
            let _ = reply.send(answer);
        }
    }

    fn write(&mut self, groups: Vec<CommitGroup>) -> Result<Vec<Result<Committed, StoreError>>, StoreError> {
        self.ready()?;
        self.shared.room(self.options.reserve_bytes)?;
        let disk = self.shared.disk()?;
        let mut overlay = Overlay::new(&disk, std::mem::take(&mut self.recent));
        overlay.reserve(groups.iter().map(|group| group.items.len()).sum());
        self.touched.clear();
        let answers: Vec<_> = groups
            .into_iter()
            .map(|group| self.group(group, &mut overlay))
            .collect();
        let flushed = self.flush(overlay, self.mode());
        if let Err(error) = flushed {
            self.fail(&error, FIRST_REOPEN);
            return Err(error);
        }
        self.count();
        let applied = |answer: &Committed| {
            answer
                .outcomes
                .iter()
                .filter(|o| matches!(o, Outcome::Applied { .. }))
                .count()
        };
        let commits: usize = answers.iter().flatten().map(applied).sum();
        self.counters.commits.fetch_add(commits as u64, Ordering::Relaxed);
        Ok(answers)
    }

    /// Brings the totals up to what has been written.
    fn count(&mut self) {
        for name in self.touched.drain(..) {
            if let Some(space) = self.spaces.get_mut(&name) {
                space.count(&self.totals);
            }
        }
    }

    fn group(&mut self, group: CommitGroup, overlay: &mut Overlay<'_>) -> Result<Committed, StoreError> {
        let name = group.space.clone();
        self.touched.push(name.clone());
        let space = match self.spaces.get_mut(&name) {
            Some(space) => space,
            None => self.spaces.entry(name.clone()).or_insert(Space::load(overlay, &name)?),
        };
        let answer = commit::group(group, space, overlay, &self.options.retention, &self.incarnation);
        // Also after an error: items before the one that failed were applied.
        space.save(&name, overlay);
        answer
    }

    fn task(&mut self, task: &Task) -> Result<TaskDone, StoreError> {
        let done = catch_unwind(AssertUnwindSafe(|| self.run_task(task)));
        let done = done.unwrap_or_else(|_| Err(panicked()));
        if done.is_err() {
            self.spaces.clear();
        }
        done
    }

    fn begin_erasure(&mut self, erasure: Erasure) {
        let Erasure { wanted, begun, gone } = erasure;
        let space = wanted.space.clone();
        let under = self.task(&Task::BeginErasure(wanted)).map(|done| {
            let whom = done.erasing?.whom;
            self.erasures.asked(space.clone(), gone);
            let lineage = self.spaces.get(&space).map(|space| space.lineage.clone());
            Some((whom, lineage.unwrap_or_default()))
        });
        // Who asked may have gone; what has begun goes on.
        let _ = begun.send(under);
    }

    /// Does a step of an erasure that is due.
    fn erase(&mut self) {
        let Some(space) = self.erasures.due(Instant::now()) else {
            return;
        };
        let done = self.task(&Task::Erase { space: space.clone() });
        let step = done.map(|done| (done.erased, done.erasing.is_some()));
        self.erasures.stepped(&space, step);
    }

    fn run_task(&mut self, task: &Task) -> Result<TaskDone, StoreError> {
        self.ready()?;
        // What deletes may use part of the reserve: it is what makes room.
        self.shared.room(self.options.reserve_bytes / 2)?;
        let disk = self.shared.disk()?;
        // It works on what is on disk, and may find there what cannot be read.
        self.recent = Recent::default();
        let mut overlay = Overlay::new(&disk, Recent::default());
        self.touched = vec![task.space().clone()];
        let (done, durable) = collect::run(task, &disk, &mut self.spaces, &mut overlay, &self.incarnation)?;
        let mode = match durable {
            true => PersistMode::SyncAll,
            false => self.mode(),
        };
        let flushed = self.flush(overlay, mode);
        if let Err(error) = flushed {
            self.fail(&error, FIRST_REOPEN);
            return Err(error);
        }
        self.count();
        Ok(done)
    }

    /// At `Fsync` every write is synced before the next is begun: whole records after a broken one then
    /// show that the disk has lost what it had.
    fn mode(&self) -> PersistMode {
        match self.options.durability {
            Durability::Fsync => PersistMode::SyncAll,
            Durability::Memory => PersistMode::Buffer,
        }
    }

    fn flush(&mut self, overlay: Overlay<'_>, mode: PersistMode) -> Result<(), StoreError> {
        let records = overlay.len();
        self.recent = overlay.write(mode)?;
        if records == 0 {
            return Ok(());
        }
        self.counters.records.fetch_add(records as u64, Ordering::Relaxed);
        self.counters.batches.fetch_add(1, Ordering::Relaxed);
        if mode == PersistMode::SyncAll {
            self.counters.synced();
        }
        Ok(())
    }
}

/// Why, in words that another error can repeat.
fn reason(error: &StoreError) -> String {
    match error {
        StoreError::Unavailable(why) => why.clone(),
        damaged @ StoreError::Damaged(_) => damaged.to_string(),
    }
}

fn panicked() -> StoreError {
    StoreError::Unavailable("the writer failed; see the log".to_owned())
}
