//! Writers and readers at once, through the engine: what is published, logged, scanned and answered
//! must be one history.

use crate::generate::{doc, mutation, wire};
use crate::harness::{Harness, Make, embedded, model, redis};
use crate::interpret::Plain;
use crate::replica::{apply, view};
use crate::value::Dice;
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use tidegate::auth::{DevAuthoriser, Identity};
use tidegate::engine::{Engine, EngineConfig, Publish, WriteBody, WriteReply, WriteRequest};
use tidegate::env::SystemEnv;
use tidegate::store::{ChangesReply, ChangesRequest, Lineage, LogEntry, LogReply, Retention, Store};
use tidegate_protocol::{ClientId, Code, Limits, Mid, MutationKey, Position, SpaceId, WriteHead, Writer, msgpack};
use tokio_util::task::TaskTracker;

const WRITERS: u64 = 4;
const MUTATIONS: u64 = 250;
/// Heads that scans have to meet. On a machine that is busy with something else that takes more mutations.
const MEETINGS: usize = 12;

#[derive(Default)]
struct Published(Mutex<Vec<LogEntry>>);

impl Publish for Published {
    fn publish(&self, _space: &SpaceId, _lineage: &Lineage, commits: &[LogEntry]) {
        self.0.lock().extend_from_slice(commits);
    }
}

fn space() -> SpaceId {
    SpaceId::parse("race").expect("valid")
}

/// One client: each mutation is sent twice at once, and has to come to one end.
async fn write(engine: Arc<Engine>, published: Arc<Published>, met: Arc<AtomicUsize>, client: u64) {
    let mut dice = Dice(client);
    let mut seen = Position::START;
    let mut prev = None;
    let (mut mid, mut repeats) = (1, 0);
    while mid <= MUTATIONS || met.load(Ordering::Relaxed) < MEETINGS && mid <= 20 * MUTATIONS {
        let mutation = mutation(&mut dice, |_| seen);
        let key = MutationKey(dice.bits());
        let head = WriteHead {
            space: space(),
            client: ClientId(client),
            mid: Mid::new(mid).expect("small"),
            key,
            prev,
            first: (mid == 1).then_some(u64::MAX / 2),
        };
        let body = WriteBody {
            base: mutation.base,
            policy: mutation.policy,
            ops: wire(&mutation),
        };
        let who = Arc::new(Identity::new("u", None));
        let (sender, mut answers) = tokio::sync::mpsc::channel(2);
        for _ in 0..2 {
            let sender = sender.clone();
            let request = WriteRequest::new(who.clone(), head.clone(), Ok(body.clone()));
            let done = move |reply| {
                // There is room for two; where a test has failed, nobody listens any more.
                let _ = sender.try_send(reply);
            };
            engine.submit(request, Box::new(done));
        }
        let first = answers.recv().await.expect("an answer");
        let second = answers.recv().await.expect("another");
        match (&first, &second) {
            (WriteReply::Ack(one), WriteReply::Ack(two)) => {
                assert_eq!(one.position, two.position, "applied once");
                seen = one.position;
                let there = published
                    .0
                    .lock()
                    .last()
                    .is_some_and(|entry| entry.seq >= one.position.seq);
                assert!(there, "published before it is answered");
            }
            (WriteReply::Reject(one), WriteReply::Reject(two)) => {
                assert_eq!(one.code, two.code);
                if one.code == Code::Unavailable {
                    // Too many others were at its documents: the same mutation again, a little later.
                    repeats += 1;
                    assert!(repeats < 100, "{one:?}");
                    continue;
                }
                assert!(one.code.consumes_mid(), "{one:?}");
            }
            other => panic!("two answers to one mutation: {other:?}"),
        }
        prev = Some(key);
        mid += 1;
    }
}

/// What a scan brought.
struct Scanned {
    client: u64,
    /// It is complete as of this commit,
    seq: usize,
    /// and as of this mutation of the client.
    last_mid: u64,
    docs: Plain,
}

/// Scans as long as there is writing, each time from where it last ended, or from nothing.
async fn scan(store: Arc<dyn Store>, writing: Arc<AtomicBool>, met: Arc<AtomicUsize>, client: u64) -> Vec<Scanned> {
    let mut all: Vec<Scanned> = vec![];
    let mut dice = Dice(1_000 + client);
    let (mut docs, mut after) = (Plain::new(), None);
    while writing.load(Ordering::Relaxed) || all.is_empty() {
        if dice.percent(30) {
            (docs, after) = (Plain::new(), None);
        }
        let writer = Some(Writer::of("u", ClientId(client)));
        let mut request = ChangesRequest {
            after,
            cursor: None,
            view: view(None),
            writer,
            budget: 1,
        };
        loop {
            match store.changes(&space(), request.clone()).await.expect("it answers") {
                ChangesReply::Page { docs: page, cursor, .. } => {
                    apply(&mut docs, &page.decode().expect("documents"));
                    request.cursor = Some(cursor);
                    request.budget *= 2;
                }
                ChangesReply::Done {
                    docs: page,
                    state,
                    last_mid,
                } => {
                    apply(&mut docs, &page.decode().expect("documents"));
                    let seq = usize::try_from(state.head.seq.get()).expect("small");
                    let is_new = all.last().is_none_or(|last| last.seq != seq);
                    met.fetch_add(usize::from(is_new), Ordering::Relaxed);
                    all.push(Scanned {
                        client,
                        seq,
                        last_mid: last_mid.map_or(0, Mid::get),
                        docs: docs.clone(),
                    });
                    after = Some(state.head);
                    break;
                }
                ChangesReply::Reset(reason) => panic!("{reason:?}"),
            }
        }
        tokio::task::yield_now().await;
    }
    all
}

async fn race(harness: Box<dyn Harness>) {
    let store = harness.store();
    let published = Arc::new(Published::default());
    let tasks = TaskTracker::new();
    let engine = Engine::new(
        store.clone(),
        published.clone(),
        Arc::new(DevAuthoriser),
        Arc::new(SystemEnv),
        Limits::default(),
        EngineConfig::default(),
        tasks.clone(),
    );
    let (writing, met) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicUsize::new(0)));
    let mut writers = tokio::task::JoinSet::new();
    let mut readers = tokio::task::JoinSet::new();
    for client in 0..WRITERS {
        writers.spawn(write(engine.clone(), published.clone(), met.clone(), client));
    }
    for client in 0..2 {
        readers.spawn(scan(store.clone(), writing.clone(), met.clone(), client));
    }
    while let Some(written) = writers.join_next().await {
        written.expect("a writer ends well");
    }
    writing.store(false, Ordering::Relaxed);
    let scans: Vec<Scanned> = readers.join_all().await.into_iter().flatten().collect();
    tasks.close();
    tasks.wait().await;

    let epoch = store.positions(&[space()]).await.expect("it answers")[0].head.epoch;
    let start = Position {
        epoch,
        ..Position::START
    };
    let reply = store
        .log(&space(), start, usize::MAX, usize::MAX, None)
        .await
        .expect("it answers");
    let LogReply::Commits { commits, state, .. } = reply else {
        panic!("{reply:?}")
    };
    assert_eq!(*published.0.lock(), commits, "what was published is the log");
    // The log, replayed: the state of each seq.
    let mut states: Vec<Plain> = vec![Plain::new()];
    let mut written: Vec<(Writer, u64)> = vec![];
    for entry in &commits {
        let commit = msgpack::decode_payload(&entry.payload).expect("a change");
        let mut docs = states.last().cloned().expect("one at least");
        apply(&mut docs, &commit.docs);
        states.push(docs);
        written.push((commit.writer, commit.mid.get()));
    }
    assert_eq!(states.len() as u64, state.head.seq.get() + 1);
    let mut seqs: Vec<usize> = scans.iter().map(|scan| scan.seq).collect();
    seqs.dedup();
    assert!(seqs.len() > 10, "the scans hardly met the writers: {seqs:?}");
    for Scanned {
        client,
        seq,
        last_mid,
        docs,
    } in &scans
    {
        assert_eq!(*docs, states[*seq], "a scan that was complete at {seq}");
        // Refusals have mids and no commits: the last mid lies between those of the commits around it.
        let writer = Writer::of("u", ClientId(*client));
        let mids = |part: &[(Writer, u64)]| {
            part.iter()
                .filter(|(w, _)| *w == writer)
                .map(|(_, mid)| *mid)
                .collect::<Vec<_>>()
        };
        let (before, after) = (mids(&written[..*seq]), mids(&written[*seq..]));
        assert!(before.windows(2).all(|pair| pair[0] < pair[1]), "a writer's order");
        assert!(before.last().is_none_or(|mid| mid <= last_mid), "{last_mid} at {seq}");
        assert!(after.first().is_none_or(|mid| mid > last_mid), "{last_mid} at {seq}");
    }
    let read = store.read(&space(), &[doc("a/1")]).await.expect("it answers");
    assert_eq!(read.state.head, state.head);
}

fn run(make: Make) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(3)
        .enable_all()
        .build()
        .expect("a runtime");
    let retention = Retention {
        log_commits: u64::MAX,
        log_bytes: u64::MAX,
        ..Retention::default()
    };
    runtime.block_on(async { race(make(retention).await).await });
}

#[test]
fn writers_and_readers_at_once_see_one_history_in_the_model() {
    run(model);
}

#[test]
fn writers_and_readers_at_once_see_one_history_in_the_embedded_store() {
    run(embedded);
}

#[test]
fn writers_and_readers_at_once_see_one_history_in_the_store_on_redis() {
    run(redis);
}
