//! The engine: turns mutations into prepared commits, and groups them per space.
//!
//! `plan` is pure: a mutation and the documents it is about become a prepared commit. `evaluate` runs
//! the ops on working copies (`scratch`), checks preconditions and conflicts (`guard`) and limits
//! (`bounds`), and notes what the writer is to be told (`report`). `queue` has one worker per active space, which plans what waits,
//! commits it in one store call, publishes, and answers (`answer`).

mod answer;
mod bounds;
mod evaluate;
mod guard;
mod hot;
mod newcomers;
mod plan;
mod queue;
mod report;
mod scratch;
mod stats;
#[cfg(test)]
mod tests;

use crate::auth::{Authoriser, Identity};
use crate::env::Env;
use crate::store::{DocState, Erase, Erased, Lineage, LogEntry, Store, StoreError};
use async_trait::async_trait;
use dashmap::DashMap;
use parking_lot::Mutex;
pub use plan::{Plan, Planner};
pub use report::Report;
pub use stats::{Counter, EngineStats, Refusals};
use std::sync::Arc;
use std::time::Duration;
use tidegate_protocol::{
    Ack, At, Code, DocChange, DocChangeKind, DocPath, Epoch, Invalid, Limits, Op, Policy, Position, Reject, SpaceId,
    WriteHead, Writer,
};
use tokio_util::task::TaskTracker;

/// A mutation on its way in.
#[derive(Clone, Debug)]
pub struct WriteRequest {
    /// Who sent it.
    pub who: Arc<Identity>,
    writer: Writer,
    /// What names it.
    pub head: WriteHead,
    /// What it asks for, or why that could not be understood: such a refusal still consumes the mid.
    pub body: Result<WriteBody, Refusal>,
}

impl WriteRequest {
    /// What this user's client sent.
    pub fn new(who: Arc<Identity>, head: WriteHead, body: Result<WriteBody, Refusal>) -> Self {
        let writer = Writer::of(who.user(), head.client);
        Self::of(who, writer, head, body)
    }

    /// As [`Self::new`], where it is known who stands in the change: naming a writer takes a hash.
    pub(crate) fn of(who: Arc<Identity>, writer: Writer, head: WriteHead, body: Result<WriteBody, Refusal>) -> Self {
        Self {
            who,
            writer,
            head,
            body,
        }
    }

    /// Who stands in its change: the user and the client.
    pub fn writer(&self) -> Writer {
        self.writer
    }
}

/// What a mutation asks for.
#[derive(Clone, PartialEq, Debug)]
pub struct WriteBody {
    /// As in `write`.
    pub base: Option<Position>,
    /// As in `write`.
    pub policy: Option<Policy>,
    /// As in `write`.
    pub ops: Vec<Op>,
}

/// A refusal of a mutation.
#[derive(Clone, PartialEq, Debug)]
pub struct Refusal {
    /// Why.
    pub code: Code,
    /// What to do next.
    pub message: String,
    /// Where.
    pub at: Option<At>,
}

/// The answer to a mutation.
#[derive(Clone, PartialEq, Debug)]
pub enum WriteReply {
    /// Applied (now or before).
    Ack(Ack),
    /// Not applied.
    Reject(Reject),
}

/// Called exactly once with the answer, from the space's worker: it must neither block nor panic.
pub type Done = Box<dyn FnOnce(WriteReply) + Send>;

/// Where the engine hands commits on, in order per space, before it answers the mutations: the
/// local side of the bus.
#[async_trait]
pub trait Publish: Send + Sync + 'static {
    /// Waits while too much of a space is on its way to subscribers. Nothing more of it is taken from writers meanwhile.
    async fn room(&self, _: &SpaceId) {}

    /// Whether a commit is beyond all that has been published here of a space that is followed: the answer to a repeat
    /// names one that may be so, and then the log is read for it.
    fn lacks(&self, _: &SpaceId, _: Position) -> bool {
        false
    }

    /// Commits of one space that follow each other, and the lineage they belong to. Without commits it is
    /// news of the lineage: an erasure has begun or ended, or mutations were answered that had been committed
    /// before.
    fn publish(&self, space: &SpaceId, lineage: &Lineage, commits: &[LogEntry]);
}

/// Bounds of the engine. What is over one is answered `unavailable`, and counted.
#[derive(Clone, Debug)]
pub struct EngineConfig {
    /// Mutations planned and committed in one store call at most.
    pub group_items: usize,
    /// About how many bytes of mutations go into one store call.
    pub group_bytes: usize,
    /// About how many bytes of the documents that they concern are read for them; what is behind has to
    /// wait for the next call. One mutation may be about more.
    pub read_bytes: usize,
    /// About how many bytes of documents one mutation may be about; over it, it is refused (`too_large`). The
    /// first 64 of them are taken however large they are, so that no document gets too large to be written to.
    pub mutation_bytes: usize,
    /// Mutations waiting in one space.
    pub space_items: usize,
    /// Their bytes.
    pub space_bytes: usize,
    /// Bytes of all mutations that are not answered.
    pub node_bytes: usize,
    /// Times a mutation is planned again because what its plan was made on did not hold.
    pub stale_tries: u32,
    /// Times a store call is made again after one whose outcome is unknown.
    pub unknown_tries: u32,
    /// Wait before the first of those; each next one waits twice as long.
    pub unknown_wait: Duration,
    /// What a client is told to wait before it sends a mutation again.
    pub retry_ms: u64,
    /// What documents may take.
    pub quota: Quota,
}

/// What documents may take, at most; `None` is no limit. A mutation that would make them take more is
/// refused (`too_large`); one that leaves them no larger passes, also over a quota. Mutations in flight in
/// other spaces, and on other nodes, are not counted.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Quota {
    /// Documents in a space.
    pub space_docs: Option<u64>,
    /// Bytes of the documents in a space, as [`Usage`](crate::store::Usage) counts.
    pub space_bytes: Option<u64>,
    /// Bytes of all documents in the store.
    pub total_bytes: Option<u64>,
}

impl Default for EngineConfig {
    fn default() -> Self {
        Self {
            group_items: 256,
            group_bytes: 8 << 20,
            read_bytes: 16 << 20,
            mutation_bytes: 64 << 20,
            space_items: 8_192,
            space_bytes: 32 << 20,
            node_bytes: 256 << 20,
            stale_tries: 16,
            unknown_tries: 4,
            unknown_wait: Duration::from_millis(50),
            retry_ms: 1_000,
            quota: Quota::default(),
        }
    }
}

/// Takes mutations in, and answers each exactly once.
///
/// Mutations of one space are committed in the order of [`Engine::submit`], those of one writer
/// without exception; they are published before they are answered. Spaces do not wait for each other.
pub struct Engine {
    store: Arc<dyn Store>,
    publish: Arc<dyn Publish>,
    rules: Arc<dyn Authoriser>,
    env: Arc<dyn Env>,
    limits: Limits,
    config: EngineConfig,
    tasks: TaskTracker,
    stats: Arc<EngineStats>,
    newcomers: Arc<newcomers::Newcomers>,
    hot: hot::Spaces,
    /// The spaces that have a worker. The map's own lock guards a queue; the mutex is never contended,
    /// and there because an answer's callback need not be `Sync`.
    queues: DashMap<SpaceId, Mutex<queue::Queue>>,
}

impl Engine {
    /// An engine whose workers are tracked by `tasks`. Their time is bounded by the store's calls.
    pub fn new(
        store: Arc<dyn Store>,
        publish: Arc<dyn Publish>,
        authoriser: Arc<dyn Authoriser>,
        env: Arc<dyn Env>,
        limits: Limits,
        config: EngineConfig,
        tasks: TaskTracker,
    ) -> Arc<Self> {
        let stats = Arc::default();
        Arc::new(Self {
            store,
            publish,
            rules: authoriser,
            env,
            limits,
            config,
            tasks,
            stats,
            newcomers: Arc::default(),
            hot: hot::Spaces::default(),
            queues: DashMap::new(),
        })
    }

    /// What it counts.
    pub fn stats(&self) -> &Arc<EngineStats> {
        &self.stats
    }

    /// Erases a space, or all data of a user in it (see [`Store::erase`]), and returns once it is gone.
    /// Subscribers are told when it begins, and when the space is open again.
    pub async fn erase(&self, space: &SpaceId, whom: Erase) -> Result<Erased, StoreError> {
        let emptied = Mutex::new(Lineage::default());
        // What is erased is not to stay here either, whether or not the end is waited for.
        let forget = || self.hot.forget(space);
        let begun = |lineage: &Lineage| {
            forget();
            self.publish.publish(space, lineage, &[]);
            emptied.lock().clone_from(lineage);
        };
        let fresh = Epoch(self.env.random().max(1));
        let erased = self.store.erase(space, whom, fresh, self.env.now_ms(), &begun).await;
        forget();
        let erased = erased?;
        let emptied = emptied.into_inner();
        if !emptied.0.is_empty() {
            self.publish.publish(space, &emptied, &[]);
        }
        Ok(erased)
    }

    /// Documents, whole or deleted (also if they never were), as of one position; refused if they may not
    /// fit in one message. Whether they may be read is the caller's to check.
    pub async fn get(
        &self,
        space: &SpaceId,
        docs: &[DocPath],
    ) -> Result<Result<(Position, Vec<DocChange>), Invalid>, StoreError> {
        // Whoever asks for too much must not have all of it read before that shows.
        if docs.len() > MEASURED {
            let mut bytes = 0;
            for some in docs.chunks(MEASURED) {
                bytes += bounds::answer_bytes(some, &self.store.read(space, some).await?.docs);
                if let Err(invalid) = bounds::check_answer(bytes, &self.limits) {
                    return Ok(Err(invalid));
                }
            }
        }
        let cut = self.store.read(space, docs).await?;
        if let Err(invalid) = bounds::check_answer(bounds::answer_bytes(docs, &cut.docs), &self.limits) {
            return Ok(Err(invalid));
        }
        let whole = |(doc, state): (&DocPath, DocState)| {
            let kind = if state.alive() {
                DocChangeKind::Whole(
                    state
                        .leaves()
                        .map(|(path, value)| (path.clone(), value.clone()))
                        .collect(),
                )
            } else {
                DocChangeKind::Deleted
            };
            DocChange { doc: doc.clone(), kind }
        };
        Ok(Ok((cut.state.head, docs.iter().zip(cut.docs).map(whole).collect())))
    }
}

/// Documents of a `get` read at a time to see how large they are.
const MEASURED: usize = 8;
