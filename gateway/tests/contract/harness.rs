//! The stores that the suite runs on, each behind the same few levers.

use crate::process::sound;
use crate::redis_server::Server;
use futures_util::future::BoxFuture;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tidegate::env::Env;
use tidegate::metrics::{Metrics, RedisMetrics};
use tidegate::store::embedded::{self, Collected, Durability, EmbeddedOptions, EmbeddedStore};
use tidegate::store::model::{Model, Spaces};
use tidegate::store::redis::{RedisConfig, RedisStore};
use tidegate::store::{Retention, Store};
use tidegate_protocol::{Seq, SpaceId};

/// What the suite needs of a store beside the trait. A new implementation provides this and is held
/// to everything in here.
#[async_trait::async_trait]
pub(crate) trait Harness: Send {
    fn store(&self) -> Arc<dyn Store>;

    /// Ends it and opens it again on what it holds.
    async fn restart(&mut self);

    /// Puts a copy of what it holds aside.
    async fn back_up(&mut self);

    /// Goes back to the copy: everything since is lost, as after a restore or a failover.
    async fn restore(&mut self);

    /// Raises a space's tombstone floor and collects what lies below.
    async fn raise_floor(&self, space: &SpaceId, to: Seq);

    /// Trims a space's log up to and with the commit `to`.
    async fn trim_log(&self, space: &SpaceId, to: Seq);

    /// Forgets a space's client records that last wrote before `before`.
    async fn forget(&self, space: &SpaceId, before: u64);

    /// Collects what is older than the retention, where the store does that by itself.
    async fn collect(&self, now_ms: u64) -> Option<Collected>;
}

/// Makes a harness, empty.
pub(crate) type Make = fn(Retention) -> BoxFuture<'static, Box<dyn Harness>>;

/// The reference model.
pub(crate) fn model(retention: Retention) -> BoxFuture<'static, Box<dyn Harness>> {
    let model = Arc::new(Model::new(retention.clone()));
    let harness = ModelHarness {
        model,
        retention,
        kept: Spaces::default(),
    };
    Box::pin(async { Box::new(harness) as Box<dyn Harness> })
}

struct ModelHarness {
    model: Arc<Model>,
    retention: Retention,
    kept: Spaces,
}

#[async_trait::async_trait]
impl Harness for ModelHarness {
    fn store(&self) -> Arc<dyn Store> {
        self.model.clone()
    }

    async fn restart(&mut self) {
        self.model = Arc::new(self.model.reopened());
    }

    async fn back_up(&mut self) {
        self.kept = self.model.checkpoint();
        self.restart().await;
    }

    async fn restore(&mut self) {
        self.model = Arc::new(Model::restored(self.retention.clone(), self.kept.clone()));
    }

    async fn raise_floor(&self, space: &SpaceId, to: Seq) {
        self.model.raise_floor(space, to);
    }

    async fn trim_log(&self, space: &SpaceId, to: Seq) {
        self.model.trim_log(space, to);
    }

    async fn forget(&self, space: &SpaceId, before: u64) {
        self.model.forget(space, before);
    }

    async fn collect(&self, _now_ms: u64) -> Option<Collected> {
        None
    }
}

/// The embedded store, in a directory of its own.
pub(crate) fn embedded(retention: Retention) -> BoxFuture<'static, Box<dyn Harness>> {
    let dir = tempfile::tempdir().expect("a directory");
    let mut harness = EmbeddedHarness {
        dir,
        retention,
        store: None,
    };
    harness.open();
    Box::pin(async { Box::new(harness) as Box<dyn Harness> })
}

struct EmbeddedHarness {
    dir: tempfile::TempDir,
    retention: Retention,
    /// `None` only between closing and opening.
    store: Option<Arc<EmbeddedStore>>,
}

/// Random enough: no two openings in a process get the same number.
struct Count;

impl Env for Count {
    fn now_ms(&self) -> u64 {
        0
    }
    fn random(&self) -> u64 {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        NEXT.fetch_add(1, Ordering::Relaxed)
    }
}

impl EmbeddedHarness {
    fn open(&mut self) {
        // What a power cut does is the embedded store's own tests' matter.
        let options = EmbeddedOptions {
            durability: Durability::Memory,
            retention: self.retention.clone(),
            reserve_bytes: embedded::RESERVE_BYTES,
            env: Arc::new(Count),
        };
        let store = embedded::open(&self.dir.path().join("data"), options).expect("opens");
        self.store = Some(Arc::new(store));
    }

    fn close(&mut self) {
        let store = self
            .store
            .take()
            .and_then(Arc::into_inner)
            .expect("nobody else holds it");
        store.close();
        sound(&self.dir.path().join("data"));
    }
}

#[async_trait::async_trait]
impl Harness for EmbeddedHarness {
    fn store(&self) -> Arc<dyn Store> {
        self.store.clone().expect("open")
    }

    async fn restart(&mut self) {
        self.close();
        self.open();
    }

    async fn back_up(&mut self) {
        self.close();
        copy(&self.dir.path().join("data"), &self.dir.path().join("backup"));
        self.open();
    }

    async fn restore(&mut self) {
        self.close();
        copy(&self.dir.path().join("backup"), &self.dir.path().join("data"));
        self.open();
    }

    async fn raise_floor(&self, space: &SpaceId, to: Seq) {
        let store = self.store.as_ref().expect("open");
        store.raise_floor(space, to).await.expect("it answers");
    }

    async fn trim_log(&self, space: &SpaceId, to: Seq) {
        let store = self.store.as_ref().expect("open");
        store.trim_log(space, to).await.expect("it answers");
    }

    async fn forget(&self, space: &SpaceId, before: u64) {
        let store = self.store.as_ref().expect("open");
        store.forget(space, before).await.expect("it answers");
    }

    async fn collect(&self, now_ms: u64) -> Option<Collected> {
        let store = self.store.as_ref().expect("open");
        Some(store.collect(now_ms).await.expect("it answers"))
    }
}

/// The store on Redis, on a server of its own that keeps snapshots.
pub(crate) fn redis(retention: Retention) -> BoxFuture<'static, Box<dyn Harness>> {
    Box::pin(async {
        let server = Server::start(&[]);
        let store = open_redis(&server, &retention).await;
        Box::new(RedisHarness {
            server,
            retention,
            store,
        }) as Box<dyn Harness>
    })
}

pub(crate) async fn open_redis(server: &Server, retention: &Retention) -> Arc<RedisStore> {
    let metrics = RedisMetrics::new(&Metrics::default());
    let store = RedisStore::new(&server.url(), RedisConfig::default(), retention.clone(), metrics);
    let store = store.expect("an address");
    store.count().await.expect("it answers");
    store
}

struct RedisHarness {
    server: Server,
    retention: Retention,
    store: Arc<RedisStore>,
}

impl RedisHarness {
    fn aside(&self) -> PathBuf {
        self.server.snapshot().with_extension("aside")
    }

    async fn start(&mut self) {
        self.server.run();
        self.store = open_redis(&self.server, &self.retention).await;
    }
}

#[async_trait::async_trait]
impl Harness for RedisHarness {
    fn store(&self) -> Arc<dyn Store> {
        self.store.clone()
    }

    async fn restart(&mut self) {
        self.server.command(&["SAVE"]);
        self.server.kill();
        self.start().await;
    }

    async fn back_up(&mut self) {
        self.restart().await;
        self.server.command(&["SAVE"]);
        std::fs::copy(self.server.snapshot(), self.aside()).expect("copied");
    }

    async fn restore(&mut self) {
        self.server.kill();
        std::fs::copy(self.aside(), self.server.snapshot()).expect("copied");
        self.start().await;
    }

    async fn raise_floor(&self, space: &SpaceId, to: Seq) {
        self.store.raise_floor(space, to).await.expect("it answers");
    }

    async fn trim_log(&self, space: &SpaceId, to: Seq) {
        self.store.trim_log(space, to).await.expect("it answers");
    }

    async fn forget(&self, space: &SpaceId, before: u64) {
        self.store.forget(space, before).await.expect("it answers");
    }

    async fn collect(&self, now_ms: u64) -> Option<Collected> {
        Some(self.store.collect_as_of(now_ms).await.expect("it answers"))
    }
}

/// A store on Redis whose server is the test's own to look after.
pub(crate) struct Plain(pub(crate) Arc<RedisStore>);

#[async_trait::async_trait]
impl Harness for Plain {
    fn store(&self) -> Arc<dyn Store> {
        self.0.clone()
    }

    async fn restart(&mut self) {
        unreachable!("the test has the server");
    }

    async fn back_up(&mut self) {
        unreachable!("the test has the server");
    }

    async fn restore(&mut self) {
        unreachable!("the test has the server");
    }

    async fn raise_floor(&self, space: &SpaceId, to: Seq) {
        self.0.raise_floor(space, to).await.expect("it answers");
    }

    async fn trim_log(&self, space: &SpaceId, to: Seq) {
        self.0.trim_log(space, to).await.expect("it answers");
    }

    async fn forget(&self, space: &SpaceId, before: u64) {
        self.0.forget(space, before).await.expect("it answers");
    }

    async fn collect(&self, now_ms: u64) -> Option<Collected> {
        Some(self.0.collect_as_of(now_ms).await.expect("it answers"))
    }
}

/// Makes `to` a copy of the directory `from`; without `from`, it is made empty.
pub(crate) fn copy(from: &Path, to: &Path) {
    let _ = std::fs::remove_dir_all(to);
    std::fs::create_dir_all(to).expect("writable");
    let Ok(entries) = std::fs::read_dir(from) else { return };
    for entry in entries {
        let entry = entry.expect("readable");
        let (from, to) = (entry.path(), to.join(entry.file_name()));
        if from.is_dir() {
            copy(&from, &to);
        } else {
            std::fs::copy(&from, &to).expect("copied");
        }
    }
}
