//! The one store of all nodes: late, unavailable, of unknown outcome, failed over, opened again.

use crate::coverage::Row;
use crate::rules::user_name;
use crate::shared::{Core, Shared};
use async_trait::async_trait;
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tidegate::store::model::{Model, Spaces};
use tidegate::store::{
    Begun, ChangesReply, ChangesRequest, CommitGroup, Committed, ConflictRecord, Erase, Erased, LogReply, Outcome,
    ReadCut, Retention, SpaceState, Store, StoreError, Usage, UserTag, View,
};
use tidegate_history::{Docs, Event as Told};
use tidegate_protocol::{DocChange, DocChangeKind, Epoch, Position, Seq, SpaceId, ViewId, Writer, msgpack};

/// Copies that a failover may find.
const COPIES: usize = 6;

/// What the nodes' stores have in common.
pub(crate) struct Disk {
    retention: Retention,
    spaces: Vec<SpaceId>,
    state: Mutex<State>,
}

struct State {
    model: Arc<Model>,
    /// How the store was at earlier times, oldest first.
    copies: Vec<Spaces>,
    /// The last epoch that the checker was told of, by space.
    epochs: Vec<Epoch>,
    keeps_copies: bool,
}

impl Disk {
    pub(crate) fn new(retention: Retention, spaces: Vec<SpaceId>, keeps_copies: bool) -> Self {
        Self {
            state: Mutex::new(State {
                model: Arc::new(Model::new(retention.clone())),
                copies: if keeps_copies { vec![Spaces::default()] } else { vec![] },
                epochs: vec![Epoch(0); spaces.len()],
                keeps_copies,
            }),
            retention,
            spaces,
        }
    }

    pub(crate) fn model(&self) -> Arc<Model> {
        Arc::clone(&self.state.lock().model)
    }

    /// The same data under a new incarnation.
    pub(crate) fn reopen(&self) {
        let mut state = self.state.lock();
        state.model = Arc::new(state.model.reopened());
    }

    /// A copy takes over that lags: what came after it is lost. Returns whether there was one.
    pub(crate) async fn fail_over(&self, core: &Mutex<Core>, now: u64) {
        let before = self.model().positions(&self.spaces).await.unwrap_or_default();
        {
            let mut state = self.state.lock();
            let len = state.copies.len();
            let Some(back) = (len > 0).then(|| 1 + core.lock().rng.index(len.min(3))) else {
                return;
            };
            // Later copies are of a history that is no more.
            state.copies.truncate(len - back + 1);
            let Some(copy) = state.copies.last().cloned() else {
                return;
            };
            state.model = Arc::new(Model::restored(self.retention.clone(), copy));
        }
        let after = self.model().positions(&self.spaces).await.unwrap_or_default();
        let mut core = core.lock();
        let mut lost = 0;
        for ((space, before), after) in self.spaces.iter().zip(&before).zip(&after) {
            lost += before.head.seq.get().saturating_sub(after.head.seq.get());
            core.judge.observe(Told::FellBack {
                space,
                head: after.head,
            });
        }
        let mut state = self.state.lock();
        for (epoch, after) in state.epochs.iter_mut().zip(&after) {
            *epoch = after.lineage.last_epoch();
        }
        core.cover
            .hit(if lost > 0 { Row::Failovers } else { Row::CleanFailovers });
        core.cover.add(Row::LostCommits, lost);
        core.say(now, || format!("store: failover, {lost} commits lost"));
    }

    /// Tells the checker of what a call has done; in the same step as the call.
    fn told(&self, core: &mut Core, now: u64, name: &SpaceId, committed: &Committed) {
        let Some(index) = self.spaces.iter().position(|space| space == name) else {
            return;
        };
        let Committed { outcomes, lineage } = committed;
        let known = std::mem::replace(&mut self.state.lock().epochs[index], lineage.last_epoch());
        if known != lineage.last_epoch() {
            // Each call that mints is told of, so the one before is the one known.
            let start = lineage.0.last().map_or(Seq::ZERO, |entry| entry.start);
            let after = Position::new(known, start);
            let epoch = lineage.last_epoch();
            core.say(now, || format!("store: {name} goes on as epoch {epoch} after {after}"));
            core.judge.observe(Told::Epoch {
                space: name,
                epoch,
                after,
            });
        }
        for outcome in outcomes {
            match outcome {
                Outcome::Applied { position, payload, .. } => {
                    core.cover.hit(Row::Commits);
                    let Ok(commit) = msgpack::decode_payload(payload) else {
                        core.fail(format!("the payload of {position} does not decode"));
                        continue;
                    };
                    core.trace.mix(position.seq.get());
                    core.trace.bytes(payload);
                    core.say(now, || {
                        format!(
                            "store: {name} {position} is {} {}: {:?}",
                            commit.writer, commit.mid, commit.docs
                        )
                    });
                    core.judge.observe(Told::Commit {
                        space: name,
                        epoch: position.epoch,
                        commit: &commit,
                    });
                }
                Outcome::Duplicate(_) => core.cover.hit(Row::Duplicates),
                Outcome::OutOfOrder { .. } => core.cover.hit(Row::OutOfOrder),
                Outcome::Stale { .. } => core.cover.hit(Row::Stale),
                _ => {}
            }
        }
    }
}

impl Disk {
    /// Tells the checker of an erasure; in the same step. A copy from before it would bring back what is gone.
    async fn erased(&self, shared: &Shared, model: &Model, (name, whom): (&SpaceId, Erase), erased: Erased) {
        let (head, docs) = everything(model, name).await;
        let core = &mut *shared.core.lock();
        core.cover.add(Row::ErasedClients, erased.clients);
        let all = (0..core.plan.users).map(user_name);
        let user = all.into_iter().find(|user| whom == Erase::User(UserTag::of(user)));
        core.cover.hit(if user.is_some() {
            Row::ErasedUsers
        } else {
            Row::ErasedSpaces
        });
        core.say(shared.clock(), || {
            format!("store: {user:?} erased in {name}, {erased:?}, it goes on as {head}")
        });
        core.judge.observe(Told::Erased {
            space: name,
            epoch: head.epoch,
            start: head.seq,
            user: user.as_deref(),
            docs: &docs,
        });
        let mut state = self.state.lock();
        if let Some(index) = self.spaces.iter().position(|space| space == name) {
            state.epochs[index] = head.epoch;
        }
        if state.keeps_copies {
            state.copies = vec![model.checkpoint()];
        }
    }
}

/// All documents of a space.
pub(crate) async fn everything(model: &Model, name: &SpaceId) -> (Position, Docs) {
    let request = ChangesRequest {
        after: None,
        cursor: None,
        view: View {
            id: ViewId(0),
            collections: None,
        },
        writer: None,
        budget: usize::MAX,
    };
    let Ok(ChangesReply::Done { docs, state, .. }) = model.changes(name, request).await else {
        unreachable!("the model answers a whole scan at once")
    };
    let whole = |change: DocChange| match change.kind {
        DocChangeKind::Whole(leaves) => Some((change.doc, leaves.into_iter().collect())),
        _ => None,
    };
    let docs = docs.decode().expect("the model's own");
    (state.head, docs.into_iter().filter_map(whole).collect())
}

/// A node's way to the store. Ends with the node: what it asked then is never answered.
pub(crate) struct NodeStore {
    pub(crate) shared: Arc<Shared>,
    pub(crate) disk: Arc<Disk>,
    pub(crate) alive: Arc<AtomicBool>,
}

/// What becomes of a call.
struct Fate {
    before: u64,
    after: u64,
    error: bool,
    unknown: bool,
}

impl NodeStore {
    async fn pause(&self, ms: u64) {
        if ms > 0 {
            tokio::time::sleep(Duration::from_millis(ms)).await;
        }
        if !self.alive.load(Ordering::Relaxed) {
            std::future::pending::<()>().await;
        }
    }

    /// Before the call: draws what becomes of it.
    async fn ask(&self) -> Result<(Fate, Arc<Model>), StoreError> {
        let fate = {
            let mut core = self.shared.core.lock();
            let (delay, error, unknown) = (core.plan.store_delay, core.plan.store_error, core.plan.store_unknown);
            Fate {
                before: core.rng.below(delay + 1),
                after: core.rng.below(delay + 1),
                error: core.rng.chance(error),
                unknown: core.rng.chance(unknown),
            }
        };
        self.pause(fate.before).await;
        let mut core = self.shared.core.lock();
        if core.store_down_until > self.shared.clock() {
            return Err(StoreError::Unavailable("down".into()));
        }
        if fate.error {
            core.cover.hit(Row::StoreErrors);
            return Err(StoreError::Unavailable("no connection".into()));
        }
        drop(core);
        Ok((fate, self.disk.model()))
    }

    /// After it.
    async fn answer<T>(&self, fate: Fate, answer: T) -> Result<T, StoreError> {
        self.pause(fate.after).await;
        if fate.unknown {
            self.shared.core.lock().cover.hit(Row::StoreUnknown);
            return Err(StoreError::Unavailable("timeout".into()));
        }
        Ok(answer)
    }
}

#[async_trait]
impl Store for NodeStore {
    async fn commit(&self, group: CommitGroup) -> Result<Committed, StoreError> {
        let (fate, model) = self.ask().await?;
        {
            let mut state = self.disk.state.lock();
            if state.keeps_copies && self.shared.core.lock().rng.chance(300) {
                let copy = model.checkpoint();
                state.copies.push(copy);
                if state.copies.len() > COPIES {
                    state.copies.remove(0);
                }
            }
        }
        let space = group.space.clone();
        let committed = model.commit(group).await?;
        self.disk
            .told(&mut self.shared.core.lock(), self.shared.clock(), &space, &committed);
        self.answer(fate, committed).await
    }

    async fn read(&self, space: &SpaceId, docs: &[tidegate_protocol::DocPath]) -> Result<ReadCut, StoreError> {
        let (fate, model) = self.ask().await?;
        let cut = model.read(space, docs).await?;
        self.answer(fate, cut).await
    }

    async fn log(
        &self,
        space: &SpaceId,
        after: Position,
        limit: usize,
        bytes: usize,
        writer: Option<Writer>,
    ) -> Result<LogReply, StoreError> {
        let (fate, model) = self.ask().await?;
        let reply = model.log(space, after, limit, bytes, writer).await?;
        self.answer(fate, reply).await
    }

    async fn changes(&self, space: &SpaceId, request: ChangesRequest) -> Result<ChangesReply, StoreError> {
        let (fate, model) = self.ask().await?;
        let reply = model.changes(space, request).await?;
        self.answer(fate, reply).await
    }

    async fn positions(&self, spaces: &[SpaceId]) -> Result<Vec<SpaceState>, StoreError> {
        let (fate, model) = self.ask().await?;
        let states = model.positions(spaces).await?;
        self.answer(fate, states).await
    }

    async fn conflicts(&self, space: &SpaceId, limit: usize) -> Result<Vec<ConflictRecord>, StoreError> {
        let (fate, model) = self.ask().await?;
        let conflicts = model.conflicts(space, limit).await?;
        self.answer(fate, conflicts).await
    }

    async fn erase(
        &self,
        space: &SpaceId,
        whom: Erase,
        fresh: Epoch,
        now_ms: u64,
        begun: Begun<'_>,
    ) -> Result<Erased, StoreError> {
        let (fate, model) = self.ask().await?;
        let begins = Mutex::new(false);
        let erased = model
            .erase(space, whom, fresh, now_ms, &|lineage| {
                *begins.lock() = true;
                begun(lineage);
            })
            .await?;
        if begins.into_inner() {
            self.disk.erased(&self.shared, &model, (space, whom), erased).await;
        }
        self.answer(fate, erased).await
    }

    fn usage(&self) -> Usage {
        self.disk.model().usage()
    }
}
