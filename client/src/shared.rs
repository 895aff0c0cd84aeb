//! What the app's handles and the driver's task share: the machine behind a lock, and who waits for what.
//!
//! The lock is held for one step of the machine and never over an `.await`.

use crate::driver::STORAGE_FAILED;
use crate::storage::Storage;
use crate::sync::{
    ConnectionState, Event, Loss, Machine, MutationId, Now, Outcome, Refusal, SpaceEvent, WatchItem, WriteError,
};
use crate::watch::Watchers;
use parking_lot::{Mutex, MutexGuard};
use std::collections::{HashMap, VecDeque};
use std::task::Waker;
use std::time::{SystemTime, UNIX_EPOCH};
use tidegate_protocol::{ClientMessage, Collection, DocChange, Op, Position, SpaceId};
use tokio::sync::{Notify, oneshot, watch};
use tokio::time::Instant;

/// Failures kept for a [`Failures`](crate::Failures) stream that is not read. Over it, the oldest goes
/// and is counted.
pub(crate) const FAILURES: usize = 256;

pub(crate) type GetResult = Result<(Position, Vec<DocChange>), Refusal>;

pub(crate) struct Shared {
    core: Mutex<Core>,
    nudge: Notify,
    /// The connection's state, for `Client::state`.
    state: watch::Sender<ConnectionState>,
    /// Counts steps in which something happened; what waits for a condition looks again.
    steps: watch::Sender<u64>,
    start: Instant,
}

pub(crate) struct Core {
    pub(crate) machine: Machine,
    pub(crate) watchers: Watchers,
    /// The collections that each space's subscription is narrowed to.
    pub(crate) filters: HashMap<SpaceId, Vec<Collection>>,
    storage: Option<Box<dyn Storage>>,
    pending: HashMap<(SpaceId, MutationId), Vec<oneshot::Sender<Outcome>>>,
    gets: HashMap<u64, oneshot::Sender<GetResult>>,
    failures: HashMap<u64, FailureBuffer>,
    next_reader: u64,
}

/// A mutation that failed, or mutations that were lost.
#[derive(Clone, PartialEq, Debug)]
pub enum Failure {
    /// A mutation was refused, or will not be answered.
    Write {
        /// The space.
        space: SpaceId,
        /// Its number in the queue.
        id: MutationId,
        /// What it was to do.
        ops: Vec<Op>,
        /// Why it was not done, with the authoritative cells where there are some.
        error: WriteError,
    },
    /// The gateway lost mutations that it had acked.
    Lost {
        /// The space.
        space: SpaceId,
        /// Which.
        loss: Loss,
    },
}

#[derive(Default)]
pub(crate) struct FailureBuffer {
    pub(crate) items: VecDeque<Failure>,
    pub(crate) missed: u64,
    pub(crate) waker: Option<Waker>,
}

impl Shared {
    pub(crate) fn new(
        storage: Option<Box<dyn Storage>>,
        state: watch::Sender<ConnectionState>,
        machine: impl FnOnce(Now) -> Machine,
    ) -> Self {
        let start = Instant::now();
        let core = Core {
            machine: machine(now_since(start)),
            watchers: Watchers::default(),
            filters: HashMap::new(),
            storage,
            pending: HashMap::new(),
            gets: HashMap::new(),
            failures: HashMap::new(),
            next_reader: 0,
        };
        Self {
            core: Mutex::new(core),
            nudge: Notify::new(),
            state,
            steps: watch::Sender::new(0),
            start,
        }
    }

    pub(crate) fn now(&self) -> Now {
        now_since(self.start)
    }

    /// One step of the machine: what changed is kept, then told.
    pub(crate) fn step<R>(&self, step: impl FnOnce(&mut Machine) -> R) -> R {
        self.step_core(|core| step(&mut core.machine))
    }

    pub(crate) fn step_core<R>(&self, step: impl FnOnce(&mut Core) -> R) -> R {
        let mut core = self.core.lock();
        let result = step(&mut core);
        core.keep(self.now());
        self.tell(core);
        result
    }

    /// Stops for a defect. Nothing more is kept: the storage may be what is broken.
    pub(crate) fn give_up(&self, why: &str) {
        let now = self.now();
        self.step_core(|core| {
            core.storage = None;
            core.machine.halt(now, STORAGE_FAILED, why.to_owned());
        });
    }

    /// The next message to send. What it depends on is kept; if that fails, there is none.
    pub(crate) fn transmit(&self) -> Option<ClientMessage> {
        let now = self.now();
        let mut core = self.core.lock();
        let message = core.machine.poll_transmit(now);
        let kept = core.keep(now);
        self.tell(core);
        message.filter(|_| kept)
    }

    fn tell(&self, mut core: MutexGuard<'_, Core>) {
        let happened = core.tell_all(&self.state);
        drop(core);
        if happened {
            self.steps.send_modify(|steps| *steps = steps.wrapping_add(1));
        }
    }

    /// A step asked for by the app: the driver is to look at it.
    pub(crate) fn ask<R>(&self, step: impl FnOnce(&mut Core) -> R) -> R {
        let result = self.step_core(step);
        self.nudge.notify_one();
        result
    }

    /// Looks at the machine without changing it.
    pub(crate) fn look<R>(&self, look: impl FnOnce(&Core) -> R) -> R {
        look(&self.core.lock())
    }

    pub(crate) async fn nudged(&self) {
        self.nudge.notified().await;
    }

    pub(crate) fn state(&self) -> watch::Receiver<ConnectionState> {
        self.state.subscribe()
    }

    /// Waits until `look` finds something.
    pub(crate) async fn until<R>(&self, look: impl Fn(&Core) -> Option<R>) -> R {
        let mut steps = self.steps.subscribe();
        loop {
            if let Some(found) = self.look(&look) {
                return found;
            }
            // The sender lives in `self`.
            let _ = steps.changed().await;
        }
    }
}

fn now_since(start: Instant) -> Now {
    let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Now {
        mono_ms: to_ms(start.elapsed()),
        wall_ms: to_ms(wall),
    }
}

fn to_ms(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

impl Core {
    /// Keeps what changed. Returns whether that worked; if not, the machine has stopped.
    fn keep(&mut self, now: Now) -> bool {
        let transaction = self.machine.take_transaction();
        if !transaction.is_empty()
            && let Some(storage) = &mut self.storage
            && let Err(error) = storage.commit(transaction)
        {
            tracing::error!(%error, "the client stops");
            self.storage = None;
            self.machine.halt(now, STORAGE_FAILED, error.to_string());
            return false;
        }
        true
    }

    /// Tells what happened. Returns whether anything did.
    fn tell_all(&mut self, state: &watch::Sender<ConnectionState>) -> bool {
        let mut happened = false;
        while let Some(event) = self.machine.poll_event() {
            happened = true;
            match event {
                Event::State(new) => {
                    state.send_replace(new);
                }
                Event::Got { id, result } => {
                    if let Some(waiting) = self.gets.remove(&id) {
                        let _ = waiting.send(result);
                    }
                }
                Event::Problem { code, message } => tracing::warn!(%code, message, "the gateway reports"),
                Event::Space(space, event) => self.tell(space, event),
            }
        }
        if happened && self.machine.is_closed() {
            self.pending.clear();
            self.watchers.end();
            for buffer in self.failures.values_mut() {
                buffer.wake();
            }
        }
        happened
    }

    fn tell(&mut self, space: SpaceId, event: SpaceEvent) {
        match event {
            SpaceEvent::Confirmed(items) => self.watchers.confirmed(&space, items),
            SpaceEvent::Views(docs) => self.watchers.views(&space, &docs),
            SpaceEvent::FromCache(_) => self.watchers.flagged(&space),
            SpaceEvent::Settled { id, outcome, ops } => {
                for waiting in self.pending.remove(&(space.clone(), id)).into_iter().flatten() {
                    let _ = waiting.send(outcome.clone());
                }
                if let Err(error) = outcome
                    && error != WriteError::Cancelled
                {
                    self.fail(&Failure::Write { space, id, ops, error });
                }
            }
            SpaceEvent::Lost(loss) => {
                tracing::warn!(%space, from = %loss.from, through = %loss.through, "the gateway lost acked mutations");
                self.fail(&Failure::Lost { space, loss });
            }
            SpaceEvent::NewId { client, why } => tracing::info!(%space, %client, ?why, "a new client id"),
            SpaceEvent::Denied { code, purged } => {
                self.watchers
                    .confirmed(&space, vec![WatchItem::Denied { code, purged }]);
            }
            SpaceEvent::Epoch(position) => tracing::debug!(%space, %position, "a new epoch"),
        }
    }

    fn fail(&mut self, failure: &Failure) {
        for buffer in self.failures.values_mut() {
            if buffer.items.len() == FAILURES {
                buffer.items.pop_front();
                buffer.missed += 1;
            }
            buffer.items.push_back(failure.clone());
            buffer.wake();
        }
    }

    pub(crate) fn wait_for(&mut self, space: SpaceId, id: MutationId, waiting: oneshot::Sender<Outcome>) {
        self.pending.entry((space, id)).or_default().push(waiting);
    }

    pub(crate) fn wait_for_get(&mut self, id: u64, waiting: oneshot::Sender<GetResult>) {
        self.gets.insert(id, waiting);
    }

    pub(crate) fn open_failures(&mut self) -> u64 {
        self.next_reader += 1;
        self.failures.insert(self.next_reader, FailureBuffer::default());
        self.next_reader
    }

    pub(crate) fn failures(&mut self, reader: u64) -> Option<&mut FailureBuffer> {
        self.failures.get_mut(&reader)
    }

    pub(crate) fn close_failures(&mut self, reader: u64) {
        self.failures.remove(&reader);
    }
}

impl FailureBuffer {
    fn wake(&mut self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}
