//! What comes by a bus, and what does not: with head checks an hour apart, nothing but what is heard tells of a loss.

use super::*;
use crate::store::{
    Action, Begun, ChangesReply, ChangesRequest, CommitGroup, Committed, ConflictRecord, Effects, Erase, Erased,
    Outcome, Prepared, ReadCut, Usage, UserTag,
};
use tidegate_protocol::MutationKey;
use tokio::sync::{Semaphore, mpsc};

/// The model, with `positions` that may be late, or fail.
#[derive(Default)]
struct Shared {
    model: Model,
    /// While it is there, what `positions` has read waits for a permit; that it waits is told.
    late: Mutex<Option<(mpsc::UnboundedSender<()>, Arc<Semaphore>)>>,
    /// It cannot be asked about this one.
    torn: Mutex<Option<SpaceId>>,
}

#[async_trait]
impl Store for Shared {
    async fn commit(&self, group: CommitGroup) -> Result<Committed, StoreError> {
        self.model.commit(group).await
    }
    async fn read(&self, space: &SpaceId, docs: &[DocPath]) -> Result<ReadCut, StoreError> {
        self.model.read(space, docs).await
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
        if self.torn.lock().as_ref().is_some_and(|torn| spaces.contains(torn)) {
            return Err(StoreError::Damaged("a test".into()));
        }
        let read = self.model.positions(spaces).await;
        let late = self.late.lock().clone();
        if let Some((waits, go)) = late {
            waits.send(()).unwrap();
            go.acquire().await.unwrap().forget();
        }
        read
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

impl Shared {
    /// Another node commits.
    async fn commits(&self) -> (Epoch, Vec<LogEntry>) {
        let state = self.model.positions(&[space()]).await.unwrap().remove(0);
        let n = state.head.seq.get() + 1;
        let doc = DocPath::parse("notes/n1").unwrap();
        let kind = DocChangeKind::Deleted;
        let body = msgpack::encode_body(Writer(n), Mid::new(1).unwrap(), &[DocChange { doc, kind }]);
        let group = CommitGroup {
            space: space(),
            planned_on: state.lineage.last_epoch(),
            fresh: Epoch(7),
            now_ms: n,
            items: vec![Prepared {
                writer: Writer(n),
                user: UserTag(1),
                mid: Mid::new(1).unwrap(),
                key: MutationKey(1),
                prev: None,
                first: None,
                expects: vec![],
                action: Action::Apply(Effects {
                    body,
                    ..Effects::default()
                }),
            }],
        };
        let committed = self.model.commit(group).await.unwrap();
        match &committed.outcomes[..] {
            [Outcome::Applied { position, payload, .. }] => {
                let (seq, payload) = (position.seq, payload.clone());
                (position.epoch, vec![LogEntry { seq, payload }])
            }
            other => panic!("{other:?}"),
        }
    }

    /// `positions` is late from now on: tells of each call, and lets it go on with a permit.
    fn is_late(&self) -> (mpsc::UnboundedReceiver<()>, Arc<Semaphore>) {
        let (sender, waits) = mpsc::unbounded_channel();
        let go = Arc::new(Semaphore::new(0));
        *self.late.lock() = Some((sender, go.clone()));
        (waits, go)
    }
}

fn space() -> SpaceId {
    "list:42".parse().unwrap()
}

/// A bus. What it does before it confirms a subscription is the test's.
#[derive(Default)]
struct Wire(Option<Arc<Shared>>);

#[async_trait]
impl Bus for Wire {
    async fn follow(&self, _: &SpaceId) -> Result<(), StoreError> {
        if let Some(store) = &self.0 {
            store.commits().await;
        }
        Ok(())
    }
    fn leave(&self, _: &SpaceId) {}
    fn is_connected(&self) -> bool {
        true
    }
    async fn run(self: Arc<Self>, _: Arc<Hub>, _: CancellationToken) {}
}

/// It is always five seconds past.
struct Late;

impl Env for Late {
    fn now_ms(&self) -> u64 {
        5_000
    }
    fn random(&self) -> u64 {
        0
    }
}

fn hub(store: &Arc<Shared>, bus: Wire) -> Arc<Hub> {
    let config = HubConfig {
        head_check: Duration::from_secs(3_600),
        ..HubConfig::default()
    };
    let bus: Arc<dyn Bus> = Arc::new(bus);
    let (env, metrics, tasks) = (Arc::new(Late), Arc::default(), TaskTracker::new());
    Hub::with_bus(store.clone(), Some(bus), env, config, metrics, tasks)
}

/// Waits until the hub stands there in the space.
async fn reaches(hub: &Hub, n: u64) {
    let stands = || hub.spaces.get(&space()).unwrap().inner.lock().position().seq;
    for _ in 0..1_000 {
        if stands() >= seq(n) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("at {}, not at {n}", stands());
}

#[tokio::test]
async fn what_is_committed_before_a_subscription_is_confirmed_is_in_the_head_that_is_read_then() {
    let store = Arc::new(Shared::default());
    store.commits().await;
    let hub = hub(&store, Wire(Some(store.clone())));
    let _lease = hub.lease(&space()).await.unwrap();
    reaches(&hub, 2).await;
}

#[tokio::test]
async fn what_the_bus_has_cut_is_read_from_the_log_at_once() {
    let store = Arc::new(Shared::default());
    let hub = hub(&store, Wire::default());
    let _lease = hub.lease(&space()).await.unwrap();
    store.commits().await;
    hub.heard(&space(), &[], true);
    reaches(&hub, 1).await;
    assert_eq!(hub.metrics.gaps_filled.get(), 1);
    hub.heard(&space(), &[], true);
    while hub.spaces.get(&space()).unwrap().inner.lock().filling {
        tokio::task::yield_now().await;
    }
    assert_eq!(hub.metrics.gaps_filled.get(), 1, "nothing was missing");
}

#[tokio::test]
async fn how_late_a_commit_is_is_seen_once_where_it_comes_from_another_node_and_somebody_is_brought_it() {
    let store = Arc::new(Shared::default());
    store.commits().await;
    let hub = hub(&store, Wire::default());
    let mut lease = hub.lease(&space()).await.unwrap();
    let lags = || hub.metrics.delivery_lag.get_sample_count();
    hub.heard(&space(), &[store.commits().await], false);
    assert_eq!(lags(), 0, "nobody is there");
    let who = Joining {
        to: Rig::at(at(1, 0), &[]).peer().1,
        sub: 7,
        stream: 1,
        view: View {
            id: ViewId(0),
            collections: None,
        },
        form: Form::Msgpack,
        z: None,
    };
    let state = store.model.positions(&[space()]).await.unwrap().remove(0);
    assert!(lease.go_live(who, state.head, &state.lineage, Bytes::new()));
    let (epoch, mut both) = store.commits().await;
    both.extend(store.commits().await.1);
    for _ in 0..2 {
        hub.heard(&space(), &[(epoch, both.clone())], false);
    }
    assert_eq!(lags(), 2);
    let sum = hub.metrics.delivery_lag.get_sample_sum();
    assert!((sum - 4.997 - 4.996).abs() < 1e-9, "{sum}");
    // This node's own, which the bus brings back.
    let (_, own) = store.commits().await;
    LocalPublish(hub.clone()).publish(&space(), &state.lineage, &own);
    hub.heard(&space(), &[(epoch, own)], false);
    assert_eq!(lags(), 2);
    reaches(&hub, 5).await;
}

#[tokio::test]
async fn what_is_cut_or_missed_while_a_space_is_opened_is_read_as_soon_as_it_is_open() {
    // Over the inbox's bound; in a break, after which heads are compared.
    for is_cut in [true, false] {
        let store = Arc::new(Shared::default());
        let hub = hub(&store, Wire::default());
        let (mut waits, go) = store.is_late();
        let opening = TaskTracker::new().spawn({
            let hub = hub.clone();
            async move { hub.lease(&space()).await }
        });
        waits.recv().await.unwrap();
        store.commits().await;
        *store.late.lock() = None;
        match is_cut {
            true => hub.heard(&space(), &[], true),
            false => assert!(hub.check_heads().await),
        }
        go.add_permits(1);
        let _lease = opening.await.unwrap().unwrap();
        reaches(&hub, 1).await;
    }
}

#[tokio::test]
async fn who_waits_for_a_space_is_told_of_news_that_were_cut() {
    let hub = hub(&Arc::new(Shared::default()), Wire::default());
    let _lease = hub.lease(&space()).await.unwrap();
    let news = hub.news(&space()).unwrap();
    let told = news.notified();
    hub.heard(&space(), &[], true);
    assert!(futures_util::FutureExt::now_or_never(told).is_some());
}

#[tokio::test]
async fn a_space_that_cannot_be_opened_keeps_no_other_from_being_compared() {
    let store = Arc::new(Shared::default());
    let hub = hub(&store, Wire::default());
    let torn: SpaceId = "torn".parse().unwrap();
    *store.torn.lock() = Some(torn.clone());
    assert!(hub.lease(&torn).await.is_err());
    let _lease = hub.lease(&space()).await.unwrap();
    store.commits().await;
    assert!(hub.check_heads().await && hub.is_ready());
    reaches(&hub, 1).await;
}
