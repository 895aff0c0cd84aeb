//! A process that is killed: how it is started, its store, and the mutations sent to that.

use crate::generate::doc;
use crate::interpret::Plain;
use crate::replica::{apply, view};
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;
use tidegate::auth::{DevAuthoriser, Identity};
use tidegate::engine::{Engine, EngineConfig, Publish, WriteBody, WriteReply, WriteRequest};
use tidegate::env::SystemEnv;
use tidegate::store::embedded::{self, Durability, EmbeddedOptions, EmbeddedStore};
use tidegate::store::{ChangesReply, ChangesRequest, Lineage, LogEntry, Retention, Store};
use tidegate_protocol::{
    ClientId, FieldPath, Fields, Limits, Mid, MutationKey, Op, OpKind, Position, SpaceId, Value, WriteHead, Writer,
};
use tokio_util::task::TaskTracker;

/// This test binary, to run one ignored test of it, which says what it does ([`say`]).
pub(crate) fn command(test: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().expect("this test"));
    command
        .args(["--exact", test, "--ignored", "--nocapture", "--test-threads=1"])
        .stdout(Stdio::piped());
    command
}

/// Says a line in one write, so that it is whole or not there, whenever the process is killed.
pub(crate) fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}").expect("the test listens");
}

/// What the child is told by a variable.
#[allow(clippy::disallowed_methods, reason = "a test has no command line")]
pub(crate) fn text(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

pub(crate) fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime")
}

pub(crate) fn open(dir: &Path, durability: Durability) -> EmbeddedStore {
    let options = EmbeddedOptions {
        durability,
        retention: Retention {
            log_commits: u64::MAX,
            log_bytes: u64::MAX,
            ..Retention::default()
        },
        reserve_bytes: embedded::RESERVE_BYTES,
        env: Arc::new(SystemEnv),
    };
    embedded::open(dir, options).expect("opens after a kill")
}

/// Closes a store that engines have worked on, whose last workers let go of it in their own time.
pub(crate) async fn close(store: Arc<EmbeddedStore>) {
    while Arc::strong_count(&store) > 1 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    Arc::into_inner(store).expect("nobody else holds it").close();
}

/// Holds a stopped store to every invariant.
pub(crate) fn sound(dir: &Path) {
    let mut wrong = Vec::new();
    let checked = embedded::check(dir, &mut |violation| wrong.push(violation));
    assert_eq!(wrong, [], "every invariant holds: {checked:?}");
}

struct Nobody;

impl Publish for Nobody {
    fn publish(&self, _space: &SpaceId, _lineage: &Lineage, _commits: &[LogEntry]) {}
}

pub(crate) fn engine(store: Arc<EmbeddedStore>) -> Arc<Engine> {
    Engine::new(
        store,
        Arc::new(Nobody),
        Arc::new(DevAuthoriser),
        Arc::new(SystemEnv),
        Limits::default(),
        EngineConfig::default(),
        TaskTracker::new(),
    )
}

pub(crate) fn space(name: &str) -> SpaceId {
    SpaceId::parse(name).expect("valid")
}

pub(crate) fn op(name: &str, kind: OpKind) -> Op {
    Op {
        doc: doc(name),
        kind,
        exists: None,
        unchanged_since: None,
    }
}

pub(crate) fn set(fields: &[&str], value: &Value) -> OpKind {
    let path = |text: &&str| FieldPath::parse(text).expect("valid");
    let fields = fields.iter().map(|text| (path(text), value.clone()));
    OpKind::Set(Fields::new(fields, &Limits::default()).expect("valid"))
}

/// A mutation, by its names the same whichever process sends it.
pub(crate) fn request(
    name: &str,
    (user, client): (&str, u64),
    mid: u64,
    base: Option<Position>,
    ops: Vec<Op>,
) -> WriteRequest {
    let key = |mid: u64| MutationKey(client << 32 | mid);
    WriteRequest::new(
        Arc::new(Identity::new(user, None)),
        WriteHead {
            space: space(name),
            client: ClientId(client),
            mid: Mid::new(mid).expect("small"),
            key: key(mid),
            prev: (mid > 1).then(|| key(mid - 1)),
            first: (mid == 1).then_some(u64::MAX / 2),
        },
        Ok(WriteBody {
            base,
            policy: None,
            ops,
        }),
    )
}

pub(crate) async fn send(engine: &Arc<Engine>, request: WriteRequest) -> WriteReply {
    let (sender, answer) = tokio::sync::oneshot::channel();
    engine.submit(request, Box::new(move |reply| drop(sender.send(reply))));
    answer.await.expect("an answer")
}

/// Sends a mutation that must be applied.
pub(crate) async fn write(engine: &Arc<Engine>, request: WriteRequest) -> Position {
    match send(engine, request).await {
        WriteReply::Ack(ack) => ack.position,
        WriteReply::Reject(reject) => panic!("{reject:?}"),
    }
}

/// For all changes at once, to a client of the user `u`.
pub(crate) fn changes(after: Option<Position>, client: u64) -> ChangesRequest {
    ChangesRequest {
        after,
        cursor: None,
        view: view(None),
        writer: Some(Writer::of("u", ClientId(client))),
        budget: usize::MAX,
    }
}

/// What a scan brings at once, and the client's last mid.
pub(crate) async fn scan(
    store: &dyn Store,
    name: &str,
    after: Option<Position>,
    client: u64,
    docs: &mut Plain,
) -> (Position, u64) {
    let reply = store.changes(&space(name), changes(after, client)).await;
    match reply.expect("it answers") {
        ChangesReply::Done {
            docs: page,
            state,
            last_mid,
        } => {
            apply(docs, &page.decode().expect("documents"));
            (state.head, last_mid.map_or(0, Mid::get))
        }
        other => panic!("{other:?}"),
    }
}
