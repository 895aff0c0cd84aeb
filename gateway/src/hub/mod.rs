//! The hub: per followed space its position, a ring of recent commits, and who is subscribed.
//!
//! Commits come in through [`Publish`]; the hub puts them in order, drops repeats, fills gaps from the
//! store's log, encodes each once per view and form, and fans it out. What it is told is a hint: truth
//! is the store, asked when a space is opened, when there is a gap, and at every head check.
//!
//! Of a publication it believes one thing: that a commit of the epoch that it stands in follows another. After
//! a failover it may be late and of a history that is no more, and looks like one of the history that goes on.
//! So which epoch follows is for the store to say, and by one reader per space alone, a read after the other
//! (`fill_from_log`): of two answers that came by different ways nobody could tell which is the older one.

mod ahead;
mod deliver;
mod members;
mod ring;
mod space;

#[cfg(test)]
mod tests;

use crate::bus::Bus;
use crate::engine::Publish;
use crate::env::{Env, SystemEnv};
use crate::frame;
use crate::metrics::{Gauged, Metrics};
use crate::outbox::{Outbox, Stream};
use crate::store::{Lineage, LineageEntry, LogEntry, LogReply, SpaceState, Store, StoreError, View};
use async_trait::async_trait;
use bytes::Bytes;
use dashmap::DashMap;
use deliver::Round;
use parking_lot::{Mutex, MutexGuard};
use space::{Found, Inner, leads_on};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tidegate_protocol::form::Form;
use tidegate_protocol::{Epoch, Position, Seq, SpaceId, msgpack};
use tokio::sync::futures::Notified;
use tokio::sync::{Notify, OwnedSemaphorePermit};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Bounds of the hub.
#[derive(Clone, Debug)]
pub struct HubConfig {
    /// Commits kept per space for subscribers that have just caught up. An older one reads the log.
    pub ring_commits: usize,
    /// Their bytes, frames included. While more than the ring holds is on its way to subscribers, no more is taken in
    /// from writers; of what others publish, twice as many bytes are kept, and the oldest forgotten: those who have not
    /// been brought it catch up.
    pub ring_bytes: usize,
    /// Subscribers that are brought together. A space with more is brought by tasks of its own.
    pub shard: usize,
    /// How many tasks may bring a space's subscribers at a time. `None`: as many as there are cores.
    pub tasks: Option<usize>,
    /// How often every followed space is compared with the store.
    pub head_check: Duration,
    /// How long a space is followed after its last subscriber left.
    pub linger: Duration,
}

impl Default for HubConfig {
    fn default() -> Self {
        Self {
            ring_commits: 1_024,
            ring_bytes: 1 << 20,
            shard: 64,
            tasks: None,
            head_check: Duration::from_secs(3),
            linger: Duration::from_secs(10),
        }
    }
}

/// Commits of one log read when a gap is filled.
const FILL: usize = 512;
const FILL_BYTES: usize = 1 << 20;
/// Rounds after which a task tells those who wait for room.
const TOLD: u32 = 64;
/// Spaces asked for in one store call.
const CHECK: usize = 256;

/// A connection, as the hub sees it.
pub trait Subscriber: Send + Sync + 'static {
    /// The connection's number, unique in the process.
    fn id(&self) -> u64;
    /// Its way out.
    fn outbox(&self) -> &Arc<Outbox>;
    /// The subscription is no longer live: it stands at `at` and has to catch up anew. Must not block.
    fn behind(&self, sub: u64, at: Position);
    /// Streams of other subscriptions were cut: see `Outbox::cuts`. Must not block.
    fn cut(&self);
}

/// Everything about the spaces that this node follows.
pub struct Hub {
    store: Arc<dyn Store>,
    /// Where there are other nodes.
    bus: Option<Arc<dyn Bus>>,
    /// Whether the last head check could compare every space.
    is_compared: AtomicBool,
    /// For the time of what other nodes commit.
    env: Arc<dyn Env>,
    config: HubConfig,
    metrics: Arc<Metrics>,
    tasks: TaskTracker,
    /// Tasks that bring one space.
    at_a_time: usize,
    spaces: DashMap<SpaceId, Arc<SpaceHub>>,
    last_n: AtomicU32,
}

/// A followed space.
struct SpaceHub {
    space: SpaceId,
    n: u32,
    inner: Mutex<Inner>,
    /// Told when less is on its way to subscribers; once somebody has waited for that.
    room: OnceLock<Box<Notify>>,
    /// Apart from `inner`, for which one may have to wait: this one is taken under the map's lock.
    leases: Mutex<Leases>,
    /// Told when the lineage alone is published: an erasure has begun or ended.
    news: Notify,
    _gauge: Gauged,
}

impl SpaceHub {
    fn new(space: SpaceId, n: u32, config: &HubConfig, metrics: &Metrics) -> Self {
        Self {
            space,
            n,
            inner: Mutex::new(Inner::new(config)),
            room: OnceLock::new(),
            leases: Mutex::new(Leases {
                opening: Some(Arc::default()),
                ..Leases::default()
            }),
            news: Notify::new(),
            _gauge: Gauged::new(&metrics.spaces),
        }
    }

    /// Tells who waits for room to look again.
    fn tell_room(&self) {
        if let Some(room) = self.room.get() {
            room.notify_waiters();
        }
    }

    /// Brings the next shard in turn to where the space stands. `false`, after the last word: all are there, or are
    /// being brought.
    fn bring(&self, round: &mut Round, metrics: &Metrics, last: impl FnOnce(&mut Inner)) -> bool {
        let mut inner = self.inner.lock();
        let Some((shard, audience)) = inner.begin_round(round) else {
            last(&mut inner);
            return false;
        };
        let mut members = shard.lock();
        drop(inner);
        round.deliver(self.n, &audience, &mut members, metrics);
        true
    }
}

/// A task that brings a space's shards, as the space counts it.
struct Fanning(Arc<SpaceHub>, bool);

impl Fanning {
    fn new(space: &Arc<SpaceHub>) -> Self {
        Self(space.clone(), true)
    }

    fn end(&mut self, inner: &mut Inner) {
        inner.fanning -= usize::from(std::mem::take(&mut self.1));
    }
}

/// However it ends.
impl Drop for Fanning {
    fn drop(&mut self) {
        if self.1 {
            self.0.inner.lock().fanning -= 1;
        }
        self.0.tell_room();
    }
}

/// Who needs a space to be followed.
#[derive(Default)]
struct Leases {
    count: usize,
    /// Since when nobody does.
    idle_since: Option<Instant>,
    /// Until it has been opened: those who came first wait for it.
    opening: Option<Arc<tokio::sync::OnceCell<()>>>,
}

impl Leases {
    fn is_idle(&self, linger: Duration) -> bool {
        self.count == 0 && self.idle_since.is_some_and(|since| since.elapsed() >= linger)
    }
}

/// Keeps a space followed as long as it lives, and the subscription that went live on it.
pub struct Lease {
    hub: Arc<Hub>,
    space: Arc<SpaceHub>,
    /// The connection whose subscription is live.
    live: Option<u64>,
}

/// See `Hub::news`.
pub struct News(Arc<SpaceHub>);

impl News {
    /// What is told from now on.
    pub fn notified(&self) -> Notified<'_> {
        self.0.news.notified()
    }
}

/// The answer to a mutation.
pub struct Answer {
    /// The mutation's commit, if it was applied.
    pub at: Option<Position>,
    /// What to send.
    pub frame: Bytes,
    /// Given back once it has been sent: answers that wait are as many as may be in flight.
    pub permit: Option<OwnedSemaphorePermit>,
}

/// Who goes live, and how.
pub struct Joining {
    /// The connection.
    pub to: Arc<dyn Subscriber>,
    /// Its subscription.
    pub sub: u64,
    /// Its stream in the outbox.
    pub stream: Stream,
    /// What it covers.
    pub view: View,
    /// Its wire form.
    pub form: Form,
    /// Messages of so many bytes are compressed for it, where that pays.
    pub z: Option<usize>,
}

impl Hub {
    /// A hub that follows nothing yet. `run` has to be driven for head checks.
    pub fn new(store: Arc<dyn Store>, config: HubConfig, metrics: Arc<Metrics>, tasks: TaskTracker) -> Arc<Self> {
        Self::with_bus(store, None, Arc::new(SystemEnv), config, metrics, tasks)
    }

    /// As `new`, with a bus that tells what other nodes commit, and that has to be run; and the clock by which that is
    /// late.
    pub fn with_bus(
        store: Arc<dyn Store>,
        bus: Option<Arc<dyn Bus>>,
        env: Arc<dyn Env>,
        config: HubConfig,
        metrics: Arc<Metrics>,
        tasks: TaskTracker,
    ) -> Arc<Self> {
        let cores = || std::thread::available_parallelism().map_or(1, usize::from);
        Arc::new(Self {
            store,
            bus,
            is_compared: AtomicBool::new(true),
            env,
            at_a_time: config.tasks.unwrap_or_else(cores),
            config,
            metrics,
            tasks,
            spaces: DashMap::new(),
            last_n: AtomicU32::new(0),
        })
    }

    /// Follows a space. On return the hub takes in every commit after the head that it has read.
    pub async fn lease(self: &Arc<Self>, space: &SpaceId) -> Result<Lease, StoreError> {
        let entry = {
            let entry = self.spaces.entry(space.clone()).or_insert_with(|| {
                // A number is never reused in a process; 4 billion openings are out of reach.
                let n = self.last_n.fetch_add(1, Ordering::Relaxed) + 1;
                Arc::new(SpaceHub::new(space.clone(), n, &self.config, &self.metrics))
            });
            // Counted under the map's lock, so that the sweep does not remove it meanwhile.
            entry.leases.lock().count += 1;
            entry.clone()
        };
        let lease = Lease {
            hub: self.clone(),
            space: entry,
            live: None,
        };
        let opening = lease.space.leases.lock().opening.clone();
        if let Some(opening) = opening {
            opening.get_or_try_init(|| self.open(&lease.space)).await?;
            lease.space.leases.lock().opening = None;
        }
        Ok(lease)
    }

    async fn open(self: &Arc<Self>, space: &Arc<SpaceHub>) -> Result<(), StoreError> {
        // It is in the map and on the bus, so what is committed from here on is kept; only then is the head read.
        if let Some(bus) = &self.bus {
            bus.follow(&space.space).await?;
        }
        let state = single(self.store.positions(std::slice::from_ref(&space.space)).await?)?;
        let mut inner = space.inner.lock();
        let found = inner.open(state, &self.metrics);
        inner.trim(&self.config);
        if found == Found::Gap || inner.doubt {
            self.fill(space, &mut inner);
        }
        Ok(())
    }

    /// What is told when a followed space may answer again that did not; a hint.
    pub fn news(&self, space: &SpaceId) -> Option<News> {
        self.spaces.get(space).map(|entry| News(entry.value().clone()))
    }

    /// Sends an answer to a mutation: after its change, if the connection has a live subscription that will bring it,
    /// and never before an answer that was given earlier; at once otherwise. If only the store knows whether the
    /// change will come, the store is asked first.
    pub fn answer(self: &Arc<Self>, space: &SpaceId, to: &dyn Subscriber, answer: Answer) {
        match self.spaces.get(space).map(|entry| entry.value().clone()) {
            Some(space) => {
                let mut inner = space.inner.lock();
                if inner.answer(space.n, to, answer, &self.metrics) == Found::Gap {
                    self.fill(&space, &mut inner);
                }
            }
            None => to.outbox().push_later(answer.frame),
        }
    }

    /// Compares every followed space with the store, tells filtered subscriptions how far they are,
    /// and stops following spaces that nobody has used for a while.
    pub async fn run(self: Arc<Self>, stop: CancellationToken) {
        let mut ticks = tokio::time::interval(self.config.head_check);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        while stop.run_until_cancelled(ticks.tick()).await.is_some() {
            if stop.run_until_cancelled(self.check_heads()).await.is_none() {
                return;
            }
        }
    }

    /// Whether what other nodes commit is heard, and every space was compared with the store.
    pub fn is_ready(&self) -> bool {
        self.is_compared.load(Ordering::Relaxed) && self.bus.as_ref().is_none_or(|bus| bus.is_connected())
    }

    /// One head check. Says whether all could be compared, apart from those that are damaged.
    pub async fn check_heads(self: &Arc<Self>) -> bool {
        let linger = self.config.linger;
        self.spaces.retain(|name, space| {
            let keep = !space.leases.lock().is_idle(linger);
            // Under the map's lock: whoever follows it anew asks the bus after this.
            if let Some(bus) = self.bus.as_ref().filter(|_| !keep) {
                bus.leave(name);
            }
            keep
        });
        let mut all = true;
        let mut followed: Vec<_> = self.spaces.iter().map(|entry| entry.value().clone()).collect();
        // The map's order is another in every process.
        followed.sort_unstable_by_key(|space| space.n);
        // One that is being opened has its head read anyhow; maybe before what this check is to find, so it is looked at
        // again once it is open.
        followed.retain(|space| {
            let mut inner = space.inner.lock();
            let is_open = inner.is_open();
            inner.doubt |= !is_open;
            is_open
        });
        for some in followed.chunks(CHECK) {
            let sent: Vec<_> = some.iter().map(|space| space.inner.lock().position()).collect();
            let names: Vec<_> = some.iter().map(|space| space.space.clone()).collect();
            let states = match self.store.each_position(&names).await {
                Ok(states) => states,
                Err(error) => {
                    tracing::warn!(%error, "head check failed");
                    all = false;
                    continue;
                }
            };
            for ((space, sent), state) in some.iter().zip(sent).zip(states) {
                match state {
                    Ok(state) => self.judge(space, sent, &state),
                    // There is nothing to wait for: somebody has to see to it, and the others do not.
                    Err(error) => {
                        tracing::warn!(space = %space.space, %error, "its head cannot be read");
                        self.metrics.heads_damaged.inc();
                    }
                }
                space.inner.lock().tell_progress(space.n, &self.metrics);
            }
        }
        self.is_compared.store(all, Ordering::Relaxed);
        all
    }

    /// Takes in what other nodes have committed, as the bus brought it: epoch by epoch, in the order of its arrival.
    /// `is_cut`: something before it is missing, so the store is asked.
    pub fn heard(self: &Arc<Self>, space: &SpaceId, heard: &[(Epoch, Vec<LogEntry>)], is_cut: bool) {
        for (epoch, commits) in heard {
            // Of a lineage that was published only the last name counts.
            let last = LineageEntry {
                epoch: *epoch,
                incarnation: vec![],
                start: Seq::ZERO,
            };
            let brought = self.take_in(space, &Lineage(vec![last]), commits);
            let now_ms = self.env.now_ms();
            let brought = commits.iter().filter(|commit| brought.contains(&commit.seq));
            for at_ms in brought.filter_map(|commit| msgpack::payload_time(&commit.payload).ok()) {
                let lag = Duration::from_millis(now_ms.saturating_sub(at_ms));
                self.metrics.delivery_lag.observe(lag.as_secs_f64());
            }
        }
        let space = self.spaces.get(space).map(|entry| entry.value().clone());
        if let Some(space) = space.filter(|_| is_cut) {
            // There may have been news of the lineage among it.
            space.news.notify_waiters();
            let mut inner = space.inner.lock();
            inner.doubt = true;
            // Else as soon as it is open.
            if inner.is_open() {
                self.fill(&space, &mut inner);
            }
        }
    }

    /// Returns what members are brought of it.
    fn take_in(self: &Arc<Self>, space: &SpaceId, lineage: &Lineage, commits: &[LogEntry]) -> Range<Seq> {
        let nothing = Seq::ZERO..Seq::ZERO;
        let Some(space) = self.spaces.get(space).map(|entry| entry.value().clone()) else {
            return nothing;
        };
        if commits.is_empty() {
            space.news.notify_waiters();
        }
        let mut inner = space.inner.lock();
        inner.forget(&self.config);
        let next = inner.position().seq.next();
        match inner.hear(lineage, commits, &self.metrics) {
            Found::Repeat => return nothing,
            Found::Next => {}
            Found::Gap | Found::Lost => self.fill(&space, &mut inner),
        }
        let brought = next..inner.position().seq.next();
        let is_watched = inner.shards() > 0;
        self.fan_out(&space, inner);
        if is_watched { brought } else { nothing }
    }

    /// Judges what a head check found against the hub's position when the check was sent.
    fn judge(self: &Arc<Self>, space: &Arc<SpaceHub>, sent: Position, state: &SpaceState) {
        let mut inner = space.inner.lock();
        let same = inner.last_epoch() == state.lineage.last_epoch();
        if same && state.head.seq < sent.seq {
            tracing::warn!(space = %space.space, %sent, head = %state.head, "the store has lost commits");
        }
        if !same || state.head.seq < sent.seq || state.head.seq > inner.position().seq {
            self.metrics.head_mismatches.inc();
            inner.doubt = true;
            self.fill(space, &mut inner);
        }
    }

    /// Waits while more is on its way to a space's subscribers than the ring holds.
    async fn room(&self, space: &SpaceHub) {
        loop {
            let told = space.room.get_or_init(Box::default).notified();
            tokio::pin!(told);
            told.as_mut().enable();
            if !space.inner.lock().is_full(&self.config) {
                return;
            }
            told.await;
        }
    }

    /// Starts reading the log from where the space stands, unless that is under way. It goes on until nothing
    /// is missing, and nothing was in doubt when the last read began.
    fn fill(self: &Arc<Self>, space: &Arc<SpaceHub>, inner: &mut Inner) {
        if !std::mem::replace(&mut inner.filling, true) {
            self.tasks.spawn(self.clone().fill_from_log(space.clone()));
        }
    }

    /// Brings everybody to where the space stands: at once if they are few, by tasks of the space's own otherwise.
    fn fan_out(self: &Arc<Self>, space: &Arc<SpaceHub>, mut inner: MutexGuard<'_, Inner>) {
        let shards = inner.shards();
        if shards <= 1 && inner.fanning == 0 {
            drop(inner);
            let mut round = Round::default();
            while space.bring(&mut round, &self.metrics, |inner| inner.trim(&self.config)) {}
            return;
        }
        for _ in inner.fanning..shards.min(self.at_a_time) {
            inner.fanning += 1;
            self.tasks.spawn(self.clone().bring_all(Fanning::new(space)));
        }
    }

    /// Brings shard after shard, and lets others run between.
    async fn bring_all(self: Arc<Self>, mut fanning: Fanning) {
        let mut round = Round::default();
        let space = fanning.0.clone();
        // Under one lock with finding nothing: whoever has something later, begins anew.
        let mut rounds = 0_u32;
        while space.bring(&mut round, &self.metrics, |inner| {
            fanning.end(inner);
            inner.trim(&self.config);
        }) {
            rounds += 1;
            // Who waits looks at all shards.
            if rounds.is_multiple_of(TOLD) {
                space.tell_room();
            }
            tokio::task::yield_now().await;
        }
    }

    /// Takes in what the log answered. `None`: it is read on at once. `was_gap`: something was missing, and is counted.
    fn learn(
        self: &Arc<Self>,
        space: &Arc<SpaceHub>,
        commits: &[LogEntry],
        state: &SpaceState,
        was_gap: &mut bool,
    ) -> Option<Fill> {
        let mut inner = space.inner.lock();
        let before = inner.position();
        self.metrics.gap_commits.inc_by(commits.len() as u64);
        let is_missing = commits.last().is_some_and(|last| last.seq > before.seq);
        if is_missing && !std::mem::replace(was_gap, true) {
            self.metrics.gaps_filled.inc();
        }
        let found = inner.learn(&state.lineage, state.head.seq, commits, &self.metrics);
        let filled = match found {
            Found::Lost => Some(Fill::Lost),
            _ if inner.doubt => None,
            Found::Repeat | Found::Next if inner.position().seq >= state.head.seq => {
                inner.filling = false;
                Some(Fill::Done)
            }
            _ if inner.position() != before => None,
            // What came ahead is in no log yet, or never will be.
            _ => Some(Fill::Later),
        };
        self.fan_out(space, inner);
        filled
    }

    async fn fill_from_log(self: Arc<Self>, space: Arc<SpaceHub>) {
        let mut pause = Duration::from_millis(50);
        let mut was_gap = false;
        loop {
            let from = space.inner.lock().ask();
            let reply = self.store.log(&space.space, from, FILL, FILL_BYTES, None).await;
            let filled = match reply {
                Ok(LogReply::Commits { commits, state, .. }) => {
                    match self.learn(&space, &commits, &state, &mut was_gap) {
                        Some(Fill::Done) => return,
                        Some(filled) => filled,
                        None => {
                            // A long log is not read faster than it can be brought.
                            self.room(&space).await;
                            continue;
                        }
                    }
                }
                Ok(LogReply::Trimmed | LogReply::Reset(_)) => Fill::Lost,
                Err(error) => {
                    tracing::warn!(space = %space.space, %error, "the log cannot be read");
                    Fill::Unread
                }
            };
            if filled != Fill::Later {
                match self
                    .store
                    .positions(std::slice::from_ref(&space.space))
                    .await
                    .and_then(single)
                {
                    // The log does not lead on from here: start over at the head, subscribers catch up by
                    // themselves. A space that is being erased has a lineage, and no log until it is done.
                    Ok(state) => {
                        if filled == Fill::Lost || state.head.seq < from.seq || !leads_on(&state.lineage, from) {
                            let mut inner = space.inner.lock();
                            inner.lose(state, &self.metrics);
                            if !inner.doubt {
                                inner.filling = false;
                                return;
                            }
                        }
                    }
                    Err(error) => tracing::warn!(space = %space.space, %error, "the head cannot be read"),
                }
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(self.config.head_check);
            let mut inner = space.inner.lock();
            if space.leases.lock().is_idle(self.config.linger) {
                inner.filling = false;
                return;
            }
        }
    }
}

/// What a read of the log brought, when it is not read on at once.
#[derive(PartialEq, Eq)]
enum Fill {
    /// All.
    Done,
    /// Nothing: wait.
    Later,
    /// The log could not be read.
    Unread,
    /// The log does not lead on from where the space stands.
    Lost,
}

fn single<T>(list: Vec<T>) -> Result<T, StoreError> {
    list.into_iter()
        .next()
        .ok_or_else(|| StoreError::Damaged("no answer for a space".into()))
}

/// The local side of the bus: what this node commits goes to its own subscribers at once.
pub struct LocalPublish(pub Arc<Hub>);

#[async_trait]
impl Publish for LocalPublish {
    async fn room(&self, space: &SpaceId) {
        let space = self.0.spaces.get(space).map(|entry| entry.value().clone());
        if let Some(space) = space {
            self.0.room(&space).await;
        }
    }

    fn lacks(&self, space: &SpaceId, at: Position) -> bool {
        let space = self.0.spaces.get(space).map(|entry| entry.value().clone());
        space.is_some_and(|space| {
            let inner = space.inner.lock();
            inner.is_open() && inner.position().seq < at.seq
        })
    }

    fn publish(&self, space: &SpaceId, lineage: &Lineage, commits: &[LogEntry]) {
        let hub = &self.0;
        hub.metrics.commits.inc_by(commits.len() as u64);
        hub.take_in(space, lineage, commits);
    }
}

impl Lease {
    /// The node's number for the space.
    pub fn n(&self) -> u32 {
        self.space.n
    }

    /// A commit of the log as a view's subscribers get it: the very frame that they were sent, if the hub still has it.
    pub fn change(&self, view: &View, form: Form, z: Option<usize>, commit: &LogEntry) -> Option<Bytes> {
        let (n, metrics) = (self.space.n, &self.hub.metrics);
        let (kept, audience) = self.space.inner.lock().kept(commit.seq, view, form, z);
        // Only for those who are subscribed is a frame kept: views are a client's to choose.
        if let (Some(kept), Some(audience)) = (kept.filter(|kept| kept.is(commit)), audience) {
            return kept.frame(n, &audience, metrics);
        }
        let plain = ring::change(n, view, form, &commit.payload)?;
        let small = z.and_then(|from| frame::compressed(&plain, from, metrics));
        Some(small.unwrap_or(plain))
    }

    /// Makes a subscription that has caught up to `at` live, in one step with handing it `current`
    /// and everything that came in since. `false`: the ring does not reach back that far, or the
    /// history is not the one that the hub knows; `current` has not been sent, catch up further.
    #[must_use]
    pub fn go_live(&mut self, who: Joining, at: Position, lineage: &Lineage, current: Bytes) -> bool {
        let id = who.to.id();
        let mut inner = self.space.inner.lock();
        let live = inner.join(self.space.n, who, at, lineage, current, &self.hub.metrics);
        if inner.doubt || inner.position().seq < at.seq {
            self.hub.fill(&self.space, &mut inner);
        }
        self.live = live.then_some(id);
        live
    }
}

/// Ends the subscription, however its connection ended. Held answers are sent.
impl Drop for Lease {
    fn drop(&mut self) {
        if let Some(id) = self.live {
            self.space.inner.lock().leave(id);
        }
        let mut leases = self.space.leases.lock();
        leases.count -= 1;
        if leases.count == 0 {
            leases.idle_since = Some(Instant::now());
        }
    }
}
