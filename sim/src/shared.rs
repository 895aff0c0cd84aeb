//! What everything in a history shares: the plan and its randomness, the agenda of what happens when, the
//! connections, the trace.

use crate::coverage::{Coverage, Row};
use crate::net::Link;
use crate::plan::Plan;
use crate::rng::Rng;
use parking_lot::Mutex;
use std::cmp::Ordering;
use std::collections::BinaryHeap;
use std::future::{Future as _, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64};
use std::task::{Poll, Waker};
use std::time::Duration;
use tidegate::env::Env;
use tidegate::store::{Lineage, LogEntry};
use tidegate_history::Checker;
use tokio::time::Instant;

/// The wall clock when a history begins, ms since 1970.
const EPOCH_MS: u64 = 1_700_000_000_000;

/// What is due at some time.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Event {
    /// The next step of the workload.
    Step,
    /// What was sent on a connection arrives at the gateway.
    ToServer(usize),
    /// … at the client.
    ToClient(usize),
    /// The gateway finds a connection gone.
    ServerSees(usize),
    /// The client finds a connection gone.
    ClientSees(usize),
    /// An attempt to connect ends.
    Connect { install: usize, attempt: u64 },
    /// A client looks at its deadlines.
    Timer(usize),
    /// A client starts again after a crash.
    Boot(usize),
    /// A node starts again.
    NodeUp(usize),
    /// A publication reaches another node.
    Bus(usize),
    /// Looks whether all has come to rest.
    Rest,
}

struct Entry {
    at: u64,
    /// Chosen at random: what is due at the same time happens in any order.
    tie: u64,
    event: Event,
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}
impl Eq for Entry {}
impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
/// The earliest is the greatest.
impl Ord for Entry {
    fn cmp(&self, other: &Self) -> Ordering {
        (other.at, other.tie).cmp(&(self.at, self.tie))
    }
}

/// A publication on its way to another node.
pub(crate) struct Published {
    pub(crate) to: usize,
    pub(crate) space: usize,
    pub(crate) lineage: Lineage,
    pub(crate) commits: Vec<LogEntry>,
}

/// A digest of everything that happened, and on demand the story.
#[derive(Default)]
pub(crate) struct Trace {
    digest: u64,
    pub(crate) lines: Option<Vec<String>>,
}

impl Trace {
    pub(crate) fn mix(&mut self, n: u64) {
        self.digest = (self.digest.rotate_left(5) ^ n).wrapping_mul(0x517c_c1b7_2722_0a95);
    }

    pub(crate) fn bytes(&mut self, bytes: &[u8]) {
        let mut chunks = bytes.chunks_exact(8);
        for chunk in &mut chunks {
            let mut word = [0; 8];
            word.copy_from_slice(chunk);
            self.mix(u64::from_le_bytes(word));
        }
        chunks.remainder().iter().for_each(|byte| self.mix(u64::from(*byte)));
        self.mix(bytes.len() as u64);
    }

    pub(crate) fn digest(&self) -> u64 {
        self.digest
    }
}

/// What is changed under the lock. It is never held while product code runs.
pub(crate) struct Core {
    pub(crate) rng: Rng,
    pub(crate) plan: Plan,
    pub(crate) cover: Coverage,
    pub(crate) trace: Trace,
    pub(crate) judge: Checker,
    /// What was found wrong beside that.
    pub(crate) failures: Vec<String>,
    pub(crate) links: Vec<Link>,
    pub(crate) bus: Vec<Option<Published>>,
    pub(crate) store_down_until: u64,
    agenda: BinaryHeap<Entry>,
    /// Until when the scheduler sleeps; 0 if something is due earlier than it knew when it went to sleep.
    sleeps_until: u64,
    /// The scheduler's, while it sleeps.
    sleeper: Option<Waker>,
}

/// See [`Core`].
pub(crate) struct Shared {
    pub(crate) core: Mutex<Core>,
    /// Whether the story is kept.
    pub(crate) tells: bool,
    /// By how much the wall clocks of all are ahead of the time that has passed, ms.
    pub(crate) months: AtomicU64,
    /// By how much each node's is beside that, ms.
    pub(crate) node_skew: Vec<AtomicI64>,
    start: Instant,
    /// Time may have passed since `clock_ms` was read.
    passed: Arc<AtomicBool>,
    clock_ms: AtomicU64,
    /// When the event that is being handled was taken.
    step_at: AtomicU64,
}

impl Shared {
    /// `passed`: set whenever time may have passed.
    pub(crate) fn new(rng: Rng, plan: Plan, tells: bool, passed: Arc<AtomicBool>) -> Arc<Self> {
        Arc::new(Self {
            tells,
            months: AtomicU64::new(0),
            node_skew: (0..plan.nodes).map(|_| AtomicI64::new(0)).collect(),
            core: Mutex::new(Core {
                rng,
                cover: Coverage::default(),
                trace: Trace {
                    digest: 0,
                    lines: tells.then(Vec::new),
                },
                judge: Checker::new(),
                failures: Vec::new(),
                links: Vec::new(),
                bus: Vec::new(),
                store_down_until: 0,
                agenda: BinaryHeap::new(),
                sleeps_until: 0,
                sleeper: None,
                plan,
            }),
            start: Instant::now(),
            passed,
            clock_ms: AtomicU64::new(0),
            step_at: AtomicU64::new(0),
        })
    }

    /// ms since the history began, for the scheduler: no time passes while it handles an event.
    pub(crate) fn now(&self) -> u64 {
        self.step_at.load(Relaxed)
    }

    /// ms since the history began, for the fleet's tasks.
    pub(crate) fn clock(&self) -> u64 {
        if self.passed.load(Relaxed) {
            self.passed.store(false, Relaxed);
            let ms = u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX);
            self.clock_ms.store(ms, Relaxed);
        }
        self.clock_ms.load(Relaxed)
    }

    /// ms since 1970 at `now` ms, as everybody's clock would show it if it were right.
    pub(crate) fn wall(&self, now: u64) -> u64 {
        EPOCH_MS + now + self.months.load(Relaxed)
    }

    /// Puts something on the agenda.
    pub(crate) fn at(&self, core: &mut Core, at: u64, event: Event) {
        let tie = core.rng.next();
        core.agenda.push(Entry { at, tie, event });
        if at < core.sleeps_until {
            core.sleeps_until = 0;
            core.sleeper.take().into_iter().for_each(Waker::wake);
        }
    }

    /// The next thing that is due; the time passes until then. While it passes, the fleet runs. `None` once something was
    /// found wrong.
    pub(crate) async fn next(&self) -> Option<Event> {
        loop {
            let (at, waits) = {
                let mut core = self.core.lock();
                if !core.failures.is_empty() {
                    return None;
                }
                let at = core.agenda.peek()?.at;
                core.sleeps_until = at;
                // What is due at once happens before what the fleet has to do now, or after it.
                (at, core.rng.below(3) > 0)
            };
            if at > self.clock() {
                let mut sleep = pin!(tokio::time::sleep_until(self.start + Duration::from_millis(at)));
                let is_due = poll_fn(|cx| {
                    let mut core = self.core.lock();
                    if core.sleeps_until != at {
                        return Poll::Ready(false);
                    }
                    core.sleeper = Some(cx.waker().clone());
                    drop(core);
                    sleep.as_mut().poll(cx).map(|()| true)
                });
                if !is_due.await {
                    continue;
                }
            } else if waits {
                tokio::task::yield_now().await;
            }
            let mut core = self.core.lock();
            core.sleeps_until = 0;
            self.step_at.store(self.clock(), Relaxed);
            let event = core.agenda.pop()?.event;
            let is_operation = matches!(
                event,
                Event::Step | Event::ToServer(_) | Event::ToClient(_) | Event::Bus(_)
            );
            core.cover.add(Row::Operations, u64::from(is_operation));
            return Some(event);
        }
    }
}

impl Core {
    /// Something is wrong.
    pub(crate) fn fail(&mut self, what: String) {
        self.failures.push(what);
    }

    /// Adds to the story, if somebody reads it.
    pub(crate) fn say(&mut self, now: u64, line: impl FnOnce() -> String) {
        if let Some(lines) = &mut self.trace.lines {
            lines.push(format!("{:>7}.{:03} s  {}", now / 1_000, now % 1_000, line()));
        }
    }
}

/// A node's clock and randomness.
pub(crate) struct NodeEnv {
    pub(crate) shared: Arc<Shared>,
    pub(crate) node: usize,
}

impl Env for NodeEnv {
    fn now_ms(&self) -> u64 {
        let skew = self.shared.node_skew[self.node].load(Relaxed);
        self.shared.wall(self.shared.clock()).saturating_add_signed(skew)
    }

    fn random(&self) -> u64 {
        self.shared.core.lock().rng.next()
    }
}
