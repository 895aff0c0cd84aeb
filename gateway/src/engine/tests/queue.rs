//! The queue: order, grouping, retries, bounds, and one answer for each mutation whatever happens.

mod repeats;

use super::*;
use crate::engine::{Engine, EngineConfig, Publish, WriteReply};
use crate::env::Env;
use crate::store::{
    Begun, ChangesReply, ChangesRequest, Committed, ConflictRecord, Erase, Erased, Lineage, LogEntry, LogReply,
    ReadCut, SpaceState, StoreError, Usage,
};
use async_trait::async_trait;
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use tidegate_protocol::{Ack, Reject};
use tokio::sync::{Semaphore, mpsc};
use tokio_util::task::TaskTracker;

/// What goes wrong with a call of `commit`.
pub(super) enum Fault {
    /// It fails without doing anything.
    Refuse,
    /// It does its work, and the answer is lost.
    LoseAnswer,
    /// What it was planned on does not hold.
    Stale,
    /// A defect.
    Panic,
}

/// The model with faults, one a call, and a gate that calls of `commit` pass one a permit.
pub(super) struct Faulty {
    pub(super) model: Model,
    faults: Mutex<VecDeque<Fault>>,
    gate: Semaphore,
    /// Items of each call that went through.
    calls: Mutex<Vec<usize>>,
    /// Documents of each call of `read`.
    pub(super) reads: Mutex<Vec<usize>>,
    /// Answers the next `read`: a failover comes behind it.
    before: Mutex<Option<Model>>,
}

#[async_trait]
impl Store for Faulty {
    async fn commit(&self, mut group: CommitGroup) -> Result<Committed, StoreError> {
        self.gate.acquire().await.expect("never closed").forget();
        let fault = self.faults.lock().pop_front();
        self.calls.lock().push(group.items.len());
        let failed = || StoreError::Unavailable("a test".into());
        match fault {
            None => self.model.commit(group).await,
            Some(Fault::Refuse) => Err(failed()),
            Some(Fault::LoseAnswer) => {
                self.model.commit(group).await?;
                Err(failed())
            }
            Some(Fault::Stale) => {
                group.planned_on = Epoch(u64::MAX);
                self.model.commit(group).await
            }
            Some(Fault::Panic) => panic!("a defect, for a test"),
        }
    }

    async fn read(&self, space: &SpaceId, docs: &[DocPath]) -> Result<ReadCut, StoreError> {
        if docs.contains(&doc("damaged")) {
            return Err(StoreError::Damaged("a test".into()));
        }
        self.reads.lock().push(docs.len());
        let before = self.before.lock().take();
        before.as_ref().unwrap_or(&self.model).read(space, docs).await
    }

    async fn log(
        &self,
        space: &SpaceId,
        after: Position,
        limit: usize,
        bytes: usize,
        writer: Option<Writer>,
    ) -> Result<LogReply, StoreError> {
        self.model.log(space, after, limit, bytes, writer).await
    }

    async fn changes(&self, space: &SpaceId, request: ChangesRequest) -> Result<ChangesReply, StoreError> {
        self.model.changes(space, request).await
    }

    async fn positions(&self, spaces: &[SpaceId]) -> Result<Vec<SpaceState>, StoreError> {
        self.model.positions(spaces).await
    }

    async fn erase(
        &self,
        space: &SpaceId,
        whom: Erase,
        fresh: Epoch,
        now_ms: u64,
        begun: Begun<'_>,
    ) -> Result<Erased, StoreError> {
        self.model.erase(space, whom, fresh, now_ms, begun).await
    }

    fn usage(&self) -> Usage {
        self.model.usage()
    }

    async fn conflicts(&self, space: &SpaceId, limit: usize) -> Result<Vec<ConflictRecord>, StoreError> {
        self.model.conflicts(space, limit).await
    }
}

/// Counts as time, and as randomness.
#[derive(Default)]
struct Ticks(AtomicU64);

impl Env for Ticks {
    fn now_ms(&self) -> u64 {
        self.0.fetch_add(1, Ordering::Relaxed)
    }
    fn random(&self) -> u64 {
        self.0.fetch_add(1, Ordering::Relaxed)
    }
}

/// What happened, in order: seqs published, and answers by client and mid.
#[derive(Clone, PartialEq, Debug)]
enum Event {
    Published(Vec<u64>),
    Answered(u64, WriteReply),
}

/// With the highest seq that was published.
struct Events(mpsc::UnboundedSender<Event>, AtomicU64);

impl Publish for Events {
    fn lacks(&self, _space: &SpaceId, at: Position) -> bool {
        at.seq.get() > self.1.load(Ordering::Relaxed)
    }

    fn publish(&self, _space: &SpaceId, lineage: &Lineage, commits: &[LogEntry]) {
        assert_ne!(lineage.last_epoch(), Epoch(0));
        assert!(
            commits.windows(2).all(|pair| pair[1].seq == pair[0].seq.next()),
            "they follow each other"
        );
        let last = commits.last().map_or(0, |last| last.seq.get());
        self.1.fetch_max(last, Ordering::Relaxed);
        let _ = self
            .0
            .send(Event::Published(commits.iter().map(|entry| entry.seq.get()).collect()));
    }
}

pub(super) struct Rig {
    pub(super) store: Arc<Faulty>,
    clock: Arc<Ticks>,
    pub(super) engine: Arc<Engine>,
    tasks: TaskTracker,
    sender: mpsc::UnboundedSender<Event>,
    events: mpsc::UnboundedReceiver<Event>,
}

impl Rig {
    pub(super) fn new(faults: impl IntoIterator<Item = Fault>, config: EngineConfig) -> Self {
        let store = Faulty {
            model: Model::default(),
            faults: Mutex::new(faults.into_iter().collect()),
            gate: Semaphore::new(1_000_000),
            calls: Mutex::default(),
            reads: Mutex::default(),
            before: Mutex::default(),
        };
        Self::on(Arc::new(store), config)
    }

    pub(super) fn on(store: Arc<Faulty>, config: EngineConfig) -> Self {
        let (sender, events) = mpsc::unbounded_channel();
        let (tasks, clock) = (TaskTracker::new(), Arc::new(Ticks::default()));
        let engine = Engine::new(
            store.clone(),
            Arc::new(Events(sender.clone(), AtomicU64::new(0))),
            Arc::new(DevAuthoriser),
            clock.clone(),
            Limits::default(),
            config,
            tasks.clone(),
        );
        Self {
            store,
            clock,
            engine,
            tasks,
            sender,
            events,
        }
    }

    pub(super) fn submit(&self, client: u64, mid: u64, ops: Vec<Op>) {
        self.send(client, request(client, mid, Ok(body(ops))));
    }

    pub(super) fn send(&self, client: u64, request: WriteRequest) {
        let sender = self.sender.clone();
        let done = move |reply| {
            let _ = sender.send(Event::Answered(client, reply));
        };
        self.engine.submit(request, Box::new(done));
    }

    async fn event(&mut self) -> Event {
        self.events.recv().await.expect("the rig holds a sender")
    }

    pub(super) async fn answer(&mut self) -> WriteReply {
        loop {
            if let Event::Answered(_, reply) = self.event().await {
                return reply;
            }
        }
    }

    /// The seq of the next answer, which is an ack.
    pub(super) async fn acked(&mut self) -> u64 {
        match self.answer().await {
            WriteReply::Ack(ack) => ack.position.seq.get(),
            WriteReply::Reject(reject) => panic!("{reject:?}"),
        }
    }

    pub(super) async fn rejected(&mut self) -> Reject {
        match self.answer().await {
            WriteReply::Reject(reject) => reject,
            WriteReply::Ack(ack) => panic!("{ack:?}"),
        }
    }

    /// Waits until all workers have ended, and shows that nothing is left over.
    pub(super) async fn end(mut self) {
        self.tasks.close();
        self.tasks.wait().await;
        assert_eq!(self.engine.queues.len(), 0);
        let stats = self.engine.stats();
        assert_eq!((stats.waiting.get(), stats.waiting_bytes.get()), (0, 0));
        assert!(
            !matches!(self.events.try_recv(), Ok(Event::Answered(..))),
            "answered once more"
        );
    }
}

fn ack(mid: u64, seq_: u64, epoch: Epoch) -> WriteReply {
    let position = Position::new(epoch, seq(seq_));
    let mid = Mid::new(mid).expect("small");
    WriteReply::Ack(Ack {
        space: space(),
        mid,
        position,
        conflicts: vec![],
        skipped: vec![],
    })
}

#[tokio::test(start_paused = true)]
async fn a_group_is_committed_in_order_published_in_one_call_and_then_answered() {
    let mut rig = Rig::new([], EngineConfig::default());
    rig.submit(1, 1, vec![set("n", &[("a", int(1))])]);
    rig.submit(1, 2, vec![inc("n", "a", 1)]);
    rig.submit(2, 1, vec![inc("n", "a", 1)]);
    assert_eq!(rig.event().await, Event::Published(vec![1, 2, 3]));
    let epoch = rig.store.positions(&[space()]).await.expect("it answers")[0].head.epoch;
    for (client, mid, seq) in [(1, 1, 1), (1, 2, 2), (2, 1, 3)] {
        assert_eq!(rig.event().await, Event::Answered(client, ack(mid, seq, epoch)));
    }
    let (position, docs) = rig
        .engine
        .get(&space(), &[doc("n"), doc("m")])
        .await
        .expect("it answers")
        .expect("within the limit");
    assert_eq!(position.seq, seq(3));
    assert_eq!(docs[0].kind, DocChangeKind::Whole(vec![(field("a"), int(3))]));
    assert_eq!(docs[1].kind, DocChangeKind::Deleted);
    assert_eq!(
        (rig.engine.stats().commits.get(), rig.engine.stats().groups.get()),
        (3, 1)
    );
    rig.end().await;
}

#[tokio::test(start_paused = true)]
async fn while_a_store_call_is_in_flight_the_next_group_gathers() {
    let mut rig = Rig::new(
        [],
        EngineConfig {
            group_items: 4,
            ..EngineConfig::default()
        },
    );
    rig.store.gate.forget_permits(1_000_000);
    rig.submit(1, 1, vec![inc("n", "a", 1)]);
    tokio::time::sleep(std::time::Duration::from_millis(1)).await;
    for client in 2..8 {
        rig.submit(client, 1, vec![inc("n", "a", 1)]);
    }
    rig.store.gate.add_permits(100);
    for seq in 1..8 {
        assert_eq!(rig.acked().await, seq);
    }
    assert_eq!(*rig.store.calls.lock(), [1, 4, 2], "groups of four at most");
    rig.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_group_ends_where_the_documents_that_it_is_about_get_too_large() {
    let mut rig = Rig::new(
        [],
        EngineConfig {
            read_bytes: 40 * 1_000,
            ..EngineConfig::default()
        },
    );
    let text = Value::str(&"x".repeat(1_000));
    rig.submit(
        1,
        1,
        (0..150)
            .map(|n| set(&format!("d{n}"), &[("a", text.clone())]))
            .collect(),
    );
    assert_eq!(rig.acked().await, 1);
    rig.store.gate.forget_permits(1_000_000);
    rig.submit(1, 2, vec![inc("n", "a", 1)]);
    tokio::time::sleep(std::time::Duration::from_millis(1)).await;
    // One a document, of one writer: what is left for later has to stay in order.
    for n in 0..150 {
        rig.submit(1, 3 + n, vec![set(&format!("d{n}"), &[("b", int(1))])]);
    }
    rig.submit(1, 153, vec![inc("n", "a", 1)]);
    rig.store.gate.add_permits(100);
    for seq in 2..154 {
        assert_eq!(rig.acked().await, seq);
    }
    assert_eq!(
        *rig.store.calls.lock(),
        [1, 1, 64, 64, 23],
        "64 documents are 64,000 bytes"
    );
    rig.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_mutation_about_too_much_is_refused_before_all_of_it_is_read_and_the_next_goes_on() {
    let mut rig = Rig::new(
        [],
        EngineConfig {
            mutation_bytes: 70 * 1_000,
            ..EngineConfig::default()
        },
    );
    let text = Value::str(&"x".repeat(1_000));
    let to_all = |docs: std::ops::Range<u32>, field: &str, value: &Value| {
        docs.map(|n| set(&format!("d{n}"), &[(field, value.clone())]))
            .collect::<Vec<_>>()
    };
    rig.submit(1, 1, to_all(0..200, "a", &text));
    assert_eq!(rig.acked().await, 1, "what is not there yet takes nothing");
    rig.store.reads.lock().clear();
    rig.submit(1, 2, to_all(0..200, "b", &int(1)));
    rig.submit(1, 3, to_all(0..64, "b", &int(1)));
    let refused = rig.rejected().await;
    assert_eq!(refused.code, Code::TooLarge);
    let says = |words: &str| refused.message.contains(words);
    assert!(
        says("documents that a mutation is about") && says("70000"),
        "{}",
        refused.message
    );
    assert_eq!(rig.acked().await, 2, "64 documents are taken whatever they are");
    assert_eq!(*rig.store.reads.lock(), [64, 64]);
    rig.end().await;
}

#[tokio::test(start_paused = true)]
async fn what_is_read_in_parts_is_of_one_history() {
    let mut rig = Rig::new([], EngineConfig::default());
    let mut lost = Bench::default();
    lost.apply(9, body(vec![set("d0", &[("n", int(100))])]));
    rig.submit(1, 1, vec![set("d0", &[("n", int(1))])]);
    assert_eq!(rig.acked().await, 1, "the version that the other history has, too");
    *rig.store.before.lock() = Some(lost.model);
    rig.submit(1, 2, (0..100).map(|n| inc(&format!("d{n}"), "n", 1)).collect());
    assert_eq!(rig.acked().await, 2);
    let cut = rig.store.model.read(&space(), &[doc("d0")]).await.expect("answers");
    assert_eq!(cut.docs[0].cells[&field("n")].value, Some(int(2)));
    rig.end().await;
}

#[tokio::test(start_paused = true)]
async fn spaces_do_not_wait_for_each_other() {
    let mut rig = Rig::new([], EngineConfig::default());
    rig.store.gate.forget_permits(1_000_000);
    rig.submit(1, 1, vec![inc("n", "a", 1)]);
    tokio::time::sleep(std::time::Duration::from_millis(1)).await;
    let mut other = request(2, 1, Ok(body(vec![inc("n", "a", 1)])));
    other.head.space = SpaceId::parse("other").expect("valid");
    rig.send(2, other);
    rig.store.gate.add_permits(2);
    assert_eq!((rig.acked().await, rig.acked().await), (1, 1));
    rig.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_full_queue_is_unavailable_at_once_and_takes_more_later() {
    let config = EngineConfig {
        space_items: 2,
        group_items: 1,
        ..EngineConfig::default()
    };
    let mut rig = Rig::new([], config);
    rig.store.gate.forget_permits(1_000_000);
    rig.submit(1, 1, vec![inc("n", "a", 1)]);
    tokio::time::sleep(std::time::Duration::from_millis(1)).await;
    for client in 2..5 {
        rig.submit(client, 1, vec![inc("n", "a", 1)]);
    }
    let reject = rig.rejected().await;
    assert_eq!(reject.code, Code::Unavailable);
    assert!(
        reject.retry_ms.is_some_and(|ms| (1_000..=1_500).contains(&ms)),
        "{reject:?}"
    );
    assert_eq!(rig.engine.stats().space_full.get(), 1);
    rig.store.gate.add_permits(100);
    for seq in 1..4 {
        assert_eq!(rig.acked().await, seq);
    }
    rig.submit(4, 1, vec![inc("n", "a", 1)]);
    assert_eq!(rig.acked().await, 4);
    rig.end().await;

    let big = || vec![set("n", &[("a", Value::bin(&[0; 9_000]))])];
    let mut rig = Rig::new(
        [],
        EngineConfig {
            node_bytes: 20_000,
            ..EngineConfig::default()
        },
    );
    rig.store.gate.forget_permits(1_000_000);
    (1..4).for_each(|client| rig.submit(client, 1, big()));
    assert_eq!(
        rig.rejected().await.code,
        Code::Unavailable,
        "the node's bound on bytes"
    );
    rig.store.gate.add_permits(100);
    assert_eq!((rig.acked().await, rig.acked().await), (1, 2));
    rig.end().await;
}

#[tokio::test(start_paused = true)]
async fn what_was_stale_is_planned_again_ahead_of_what_came_later() {
    let mut rig = Rig::new(
        [Fault::Stale, Fault::Stale],
        EngineConfig {
            group_items: 3,
            ..EngineConfig::default()
        },
    );
    for mid in 1..=5 {
        rig.submit(1, mid, vec![inc("n", "a", 1)]);
    }
    for seq in 1..=5 {
        assert_eq!(
            rig.acked().await,
            seq,
            "mid and seq go together: order per writer holds"
        );
    }
    assert_eq!(*rig.store.calls.lock(), [3, 3, 3, 2]);
    // The second and third of a group are out of order behind the first: they wait for it unanswered.
    assert_eq!(rig.engine.stats().stale_replans.get(), 2);
    rig.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_mutation_that_stays_stale_is_unavailable_after_sixteen_plans_and_those_behind_it_out_of_order() {
    let mut rig = Rig::new((0..17).map(|_| Fault::Stale), EngineConfig::default());
    rig.submit(1, 1, vec![inc("n", "a", 1)]);
    rig.submit(1, 2, vec![inc("n", "a", 1)]);
    let reject = rig.rejected().await;
    assert_eq!((reject.mid.get(), reject.code), (1, Code::Unavailable));
    assert!(
        reject.retry_ms.is_some_and(|ms| (1_000..=1_500).contains(&ms)),
        "{reject:?}"
    );
    // The store has no record of this client yet; it must not be told that it is unknown.
    let reject = rig.rejected().await;
    assert_eq!((reject.code, reject.expected), (Code::OutOfOrder, Mid::new(1)));
    rig.submit(1, 1, vec![inc("n", "a", 1)]);
    assert_eq!(rig.acked().await, 1);
    rig.submit(1, 3, vec![inc("n", "a", 1)]);
    let reject = rig.rejected().await;
    assert_eq!((reject.code, reject.expected), (Code::OutOfOrder, Mid::new(2)));
    rig.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_store_call_of_unknown_outcome_is_made_again_applied_once_and_published() {
    let mut rig = Rig::new(
        [Fault::Refuse, Fault::LoseAnswer, Fault::Refuse],
        EngineConfig::default(),
    );
    rig.submit(1, 1, vec![inc("n", "a", 1)]);
    rig.submit(2, 1, vec![inc("n", "a", 1)]);
    assert_eq!(
        rig.event().await,
        Event::Published(vec![1, 2]),
        "what was committed in the lost call"
    );
    assert_eq!((rig.acked().await, rig.acked().await), (1, 2));
    let (_, docs) = rig
        .engine
        .get(&space(), &[doc("n")])
        .await
        .expect("it answers")
        .expect("within the limit");
    assert_eq!(docs[0].kind, DocChangeKind::Whole(vec![(field("a"), int(2))]));
    assert_eq!(
        (
            rig.engine.stats().store_errors.get(),
            rig.engine.stats().duplicates.get()
        ),
        (3, 2)
    );
    rig.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_store_that_stays_away_makes_writes_unavailable_and_one_that_comes_back_takes_them() {
    let mut rig = Rig::new((0..5).map(|_| Fault::Refuse), EngineConfig::default());
    rig.submit(1, 1, vec![inc("n", "a", 1)]);
    let reject = rig.rejected().await;
    assert_eq!(reject.code, Code::Unavailable);
    assert!(
        reject.retry_ms.is_some_and(|ms| (1_000..=1_500).contains(&ms)),
        "{reject:?}"
    );
    rig.submit(1, 2, vec![inc("n", "a", 1)]);
    let reject = rig.rejected().await;
    assert_eq!(
        (reject.code, reject.expected),
        (Code::OutOfOrder, Mid::new(1)),
        "it was sent right behind the first"
    );
    rig.submit(1, 1, vec![inc("n", "a", 1)]);
    assert_eq!(rig.acked().await, 1);
    rig.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_repeat_is_answered_in_its_turn() {
    let mut rig = Rig::new([], EngineConfig::default());
    rig.submit(1, 1, vec![inc("n", "a", 1)]);
    assert_eq!(rig.acked().await, 1);
    for (client, doc) in [(1, "n"), (2, "m")] {
        rig.submit(client, 1, vec![inc(doc, "a", 1)]);
    }
    assert_eq!((rig.acked().await, rig.acked().await), (1, 2), "the repeat in its turn");
    rig.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_first_mutation_that_is_too_old_is_of_an_unknown_client_though_it_was_refused_for_now() {
    let mut rig = Rig::new((0..5).map(|_| Fault::Refuse), EngineConfig::default());
    rig.submit(1, 1, vec![inc("n", "a", 1)]);
    assert_eq!(rig.rejected().await.code, Code::Unavailable);
    let months = crate::store::Retention::default().clients_ms;
    rig.clock.0.store(months, Ordering::Relaxed);
    rig.submit(1, 1, vec![inc("n", "a", 1)]);
    assert_eq!(rig.rejected().await.code, Code::ClientUnknown, "not behind itself");
    rig.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_dies_answers_all_it_held_and_the_space_goes_on() {
    let mut rig = Rig::new(
        [Fault::Panic],
        EngineConfig {
            group_items: 1,
            ..EngineConfig::default()
        },
    );
    for client in 1..4 {
        rig.submit(client, 1, vec![inc("n", "a", 1)]);
    }
    for _ in 1..4 {
        assert_eq!(rig.rejected().await.code, Code::Unavailable);
    }
    rig.submit(1, 1, vec![inc("n", "a", 1)]);
    assert_eq!(rig.acked().await, 1);
    rig.end().await;
}

#[test]
fn a_runtime_that_stops_answers_what_waits() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .expect("a runtime");
    let mut rig = runtime.block_on(async {
        let rig = Rig::new(
            [],
            EngineConfig {
                group_items: 1,
                ..EngineConfig::default()
            },
        );
        rig.store.gate.forget_permits(1_000_000);
        (1..4).for_each(|client| rig.submit(client, 1, vec![inc("n", "a", 1)]));
        tokio::task::yield_now().await;
        rig
    });
    drop(runtime);
    for _ in 1..4 {
        assert!(matches!(
            rig.events.try_recv(),
            Ok(Event::Answered(_, WriteReply::Reject(_)))
        ));
    }
    assert_eq!(rig.engine.stats().waiting.get(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_wake_up_is_lost_as_workers_come_and_go() {
    let mut rig = Rig::new(
        [],
        EngineConfig {
            group_items: 3,
            ..EngineConfig::default()
        },
    );
    for mid in 1..=2_000 {
        rig.submit(1, mid, vec![inc("n", "a", 1)]);
        rig.submit(2, mid, vec![inc("n", "a", 1)]);
        if mid % 3 == 0 {
            tokio::task::yield_now().await;
        }
    }
    let mut last = [0, 0];
    for _ in 0..4_000 {
        let reply = loop {
            if let Event::Answered(client, reply) = rig.event().await {
                break (client, reply);
            }
        };
        let (client, WriteReply::Ack(ack)) = reply else {
            panic!("{reply:?}")
        };
        let last = &mut last[usize::try_from(client - 1).expect("small")];
        assert_eq!(ack.mid.get(), *last + 1, "answers of a writer come in order");
        *last = ack.mid.get();
    }
    assert_eq!(rig.engine.stats().store_errors.get(), 0);
    rig.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_clock_that_was_once_far_ahead_makes_no_client_old() {
    const AHEAD: u64 = 200 * 24 * 60 * 60 * 1_000;
    let mut rig = Rig::new([], EngineConfig::default());
    rig.submit(1, 1, vec![set("n", &[("x", int(1))])]);
    assert_eq!(rig.acked().await, 1);
    let (limits, name) = (Limits::default(), space());
    let cut = rig.store.model.read(&name, &[doc("n")]).await.expect("answers");
    let planned_on = cut.state.lineage.last_epoch();
    let mut planner = Planner::new(&DevAuthoriser, &limits, &name, vec![doc("n")], cut, AHEAD);
    let mut other = request(2, 1, Ok(body(vec![set("n", &[("x", int(2))])])));
    other.head.first = Some(AHEAD);
    let Plan::Item(item, _) = planner.plan(&other) else {
        panic!("planned")
    };
    let group = CommitGroup {
        space: space(),
        planned_on,
        fresh: Epoch(99),
        now_ms: AHEAD,
        items: vec![*item],
    };
    rig.store.model.commit(group).await.expect("answers");
    // The clock is right again: one who was there goes on, a new one is let in, and time stands still.
    rig.submit(1, 2, vec![op("n", OpKind::Now { path: field("at") })]);
    assert_eq!(rig.acked().await, 3);
    rig.submit(3, 1, vec![set("n", &[("x", int(3))])]);
    assert_eq!(rig.acked().await, 4);
    let cut = rig.store.model.read(&space(), &[doc("n")]).await.expect("answers");
    let at = Value::timestamp(tidegate_protocol::Timestamp::from_ms(AHEAD));
    assert_eq!(cut.docs[0].cells[&field("at")].value, Some(at));
    rig.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_damaged_document_holds_up_nobody_but_those_who_write_to_it() {
    let mut rig = Rig::new([], EngineConfig::default());
    let write = |name: &str| vec![set(name, &[("x", int(1))])];
    rig.submit(1, 1, write("n"));
    rig.submit(2, 1, write("n"));
    rig.submit(1, 2, write("damaged"));
    rig.submit(2, 2, write("damaged"));
    rig.submit(1, 3, write("m"));
    rig.submit(2, 3, write("m"));
    rig.submit(3, 1, write("m"));
    let mut acked = BTreeMap::<u64, Vec<u64>>::new();
    let mut refused = BTreeMap::<u64, Vec<Code>>::new();
    for _ in 0..7 {
        loop {
            match rig.event().await {
                Event::Published(_) => {}
                Event::Answered(client, WriteReply::Ack(ack)) => {
                    acked.entry(client).or_default().push(ack.mid.get());
                    break;
                }
                Event::Answered(client, WriteReply::Reject(reject)) => {
                    refused.entry(client).or_default().push(reject.code);
                    break;
                }
            }
        }
    }
    assert_eq!(acked, BTreeMap::from([(1, vec![1]), (2, vec![1]), (3, vec![1])]));
    let both = vec![Code::Unavailable, Code::OutOfOrder];
    assert_eq!(refused, BTreeMap::from([(1, both.clone()), (2, both)]));
    // Order is kept: what came behind is applied once what was damaged is settled.
    rig.submit(1, 2, write("o"));
    rig.submit(1, 3, write("m"));
    assert_eq!((rig.acked().await, rig.acked().await), (4, 5));
    rig.end().await;
}
