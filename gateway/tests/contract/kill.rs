//! A process that writes is killed, again and again; what it left must be one whole history that has
//! everything it answered. More rounds: `TIDEGATE_CONTRACT_KILLS=50 cargo test --test contract kill`.

use crate::generate::doc;
use crate::interpret::Plain;
use crate::replica::{apply, view};
use crate::setting;
use crate::value::{Dice, V};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;
use tidegate::auth::{DevAuthoriser, Identity};
use tidegate::engine::{Engine, EngineConfig, Publish, WriteBody, WriteReply, WriteRequest};
use tidegate::env::SystemEnv;
use tidegate::store::embedded::{self, Durability, EmbeddedOptions, EmbeddedStore};
use tidegate::store::{ChangesReply, ChangesRequest, Lineage, LogEntry, LogReply, Retention, Store};
use tidegate_protocol::{
    ClientId, FieldPath, Fields, Limits, Mid, MutationKey, Number, Op, OpKind, Position, Seq, SpaceId, Value,
    WriteHead, Writer, msgpack,
};
use tokio_util::task::TaskTracker;

const SPACES: [&str; 2] = ["kill:1", "kill:2"];
const CLIENTS: u64 = 3;
/// Where the child finds its store.
const DIR: &str = "TIDEGATE_CONTRACT_KILL_DIR";

fn space(name: &str) -> SpaceId {
    SpaceId::parse(name).expect("valid")
}

fn open(dir: &Path) -> EmbeddedStore {
    let options = EmbeddedOptions {
        durability: Durability::Fsync,
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

struct Nobody;

impl Publish for Nobody {
    fn publish(&self, _space: &SpaceId, _lineage: &Lineage, _commits: &[LogEntry]) {}
}

/// The same for the same client and mid, whichever process sends it.
fn mutation(name: &str, client: u64, mid: u64) -> WriteRequest {
    let path = |text: &str| FieldPath::parse(text).expect("valid");
    let op = |name: &str, kind| Op {
        doc: doc(name),
        kind,
        exists: None,
        unchanged_since: None,
    };
    let set = |list: &[&str]| {
        let value = Value::int(i64::try_from(mid).expect("small"));
        let list = list.iter().map(|text| (path(text), value.clone()));
        OpKind::Set(Fields::new(list, &Limits::default()).expect("valid"))
    };
    let count = OpKind::Inc {
        path: path("n"),
        by: Number::Int(1),
    };
    let own = format!("own/{client}");
    let ops = vec![
        op(&format!("count/{client}"), count),
        op("shared/1", set(&[&format!("f{}", mid % 7)])),
        match mid % 4 {
            0 => op(&own, OpKind::Delete),
            1 => op(&own, set(&["a.b", "c"])),
            2 => op(&own, set(&["a"])),
            _ => op(&own, OpKind::Unset(vec![path("a"), path("c")])),
        },
    ];
    let key = |mid: u64| MutationKey(client << 32 | mid);
    WriteRequest {
        who: Arc::new(Identity {
            user: "u".into(),
            expires: None,
        }),
        head: WriteHead {
            space: space(name),
            client: ClientId(client),
            mid: Mid::new(mid).expect("small"),
            key: key(mid),
            prev: (mid > 1).then(|| key(mid - 1)),
            first: (mid == 1).then_some(u64::MAX / 2),
        },
        body: Ok(WriteBody {
            base: None,
            policy: None,
            ops,
        }),
    }
}

fn request(after: Option<Position>, client: u64) -> ChangesRequest {
    ChangesRequest {
        after,
        cursor: None,
        view: view(None),
        writer: Some(Writer::of("u", ClientId(client))),
        budget: usize::MAX,
    }
}

/// What a scan brings at once, and the client's last mid.
async fn scan(
    store: &dyn Store,
    name: &str,
    after: Option<Position>,
    client: u64,
    docs: &mut Plain,
) -> (Position, u64) {
    let reply = store.changes(&space(name), request(after, client)).await;
    match reply.expect("it answers") {
        ChangesReply::Done {
            docs: page,
            state,
            last_mid,
        } => {
            apply(docs, &page);
            (state.head, last_mid.map_or(0, Mid::get))
        }
        other => panic!("{other:?}"),
    }
}

async fn send(engine: &Arc<Engine>, request: WriteRequest) -> u64 {
    let (sender, answer) = tokio::sync::oneshot::channel();
    let done = move |reply| drop(sender.send(reply));
    engine.submit(request, Box::new(done));
    match answer.await.expect("an answer") {
        WriteReply::Ack(ack) => ack.position.seq.get(),
        WriteReply::Reject(reject) => panic!("{reject:?}"),
    }
}

/// Writes until it is killed, and says what was answered.
#[test]
#[ignore = "the process that is killed"]
fn child() {
    let dir = PathBuf::from(text(DIR).expect("where the store is"));
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        let store = Arc::new(open(&dir));
        let engine = engine(store.clone());
        let mut tasks = tokio::task::JoinSet::new();
        for name in SPACES {
            for client in 0..CLIENTS {
                let (engine, store) = (engine.clone(), store.clone());
                tasks.spawn(async move {
                    let (_, last) = scan(&*store, name, None, client, &mut Plain::new()).await;
                    // What was last applied once more: its answer may never have left.
                    for mid in last.max(1).. {
                        let seq = send(&engine, mutation(name, client, mid)).await;
                        println!("acked {name} {client} {mid} {seq}");
                    }
                });
            }
        }
        tasks.spawn(async move {
            loop {
                for name in SPACES {
                    let head = store.positions(&[space(name)]).await.expect("it answers")[0]
                        .head
                        .seq
                        .get();
                    let to = Seq::new(head.saturating_sub(10)).expect("small");
                    store.raise_floor(&space(name), to).await.expect("it answers");
                }
                tokio::time::sleep(Duration::from_millis(7)).await;
            }
        });
        tasks.join_next().await.expect("a task").expect("none ends");
    });
}

#[allow(clippy::disallowed_methods, reason = "a test has no command line")]
fn text(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

fn engine(store: Arc<EmbeddedStore>) -> Arc<Engine> {
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

type Acked = BTreeMap<(String, u64, u64), u64>;

/// Runs the child, kills it after so many answers and a little more, and adds what it answered.
#[allow(clippy::disallowed_methods, reason = "nothing else runs in this process meanwhile")]
fn kill(dir: &Path, answers: usize, more: Duration, acked: &mut Acked) {
    let mut child = Command::new(std::env::current_exe().expect("this test"))
        .args(["--exact", "kill::child", "--ignored", "--nocapture", "--test-threads=1"])
        .env(DIR, dir)
        .stdout(Stdio::piped())
        .spawn()
        .expect("starts");
    let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
    let mut told = 0;
    let mut note = |line: String| {
        let words: Vec<&str> = line.split(' ').collect();
        let ["acked", name, client, mid, seq] = words[..] else {
            return 0;
        };
        let number = |word: &str| word.parse::<u64>().expect("a number");
        let seq = number(seq);
        let before = acked.insert((name.to_owned(), number(client), number(mid)), seq);
        assert!(
            before.is_none_or(|before| before == seq),
            "{line}, and {before:?} before"
        );
        1
    };
    while told < answers {
        told += note(lines.next().expect("it goes on until it is killed").expect("text"));
    }
    std::thread::sleep(more);
    child.kill().expect("killed");
    child.wait().expect("it ends");
    // A line that is cut short was still answered; only what it says is not known.
    let mut rest: Vec<String> = lines.map_while(Result::ok).collect();
    rest.pop();
    for line in rest {
        note(line);
    }
}

async fn verify(dir: &Path, acked: &Acked) {
    let mut wrong = Vec::new();
    let checked = embedded::check(dir, &mut |violation| wrong.push(violation));
    assert_eq!(wrong, [], "every invariant holds of what was left: {checked:?}");
    let store = Arc::new(open(dir));
    for name in SPACES {
        let epoch = store.positions(&[space(name)]).await.expect("it answers")[0].head.epoch;
        let start = Position {
            epoch,
            ..Position::START
        };
        let reply = store.log(&space(name), start, usize::MAX, usize::MAX, None).await;
        let LogReply::Commits { commits, state, .. } = reply.expect("it answers") else {
            panic!("the log is whole")
        };
        let mut docs = Plain::new();
        let mut mids: BTreeMap<Writer, Vec<u64>> = BTreeMap::new();
        let mut at_floor = Plain::new();
        for (n, entry) in (1..).zip(&commits) {
            let commit = msgpack::decode_payload(&entry.payload).expect("a change");
            assert_eq!((entry.seq.get(), commit.seq.get()), (n, n), "{name}");
            mids.entry(commit.writer).or_default().push(commit.mid.get());
            apply(&mut docs, &commit.docs);
            if n == state.floor.get() {
                at_floor = docs.clone();
            }
        }
        assert_eq!(state.head.seq.get(), commits.len() as u64);
        let mut scanned = Plain::new();
        scan(&*store, name, None, 0, &mut scanned).await;
        assert_eq!(scanned, docs, "{name}: the state is what the log says");
        let floor = state.lineage.0.iter().rev().find(|entry| entry.start < state.floor);
        if let Some(entry) = floor {
            let after = Position::new(entry.epoch, state.floor);
            scan(&*store, name, Some(after), 0, &mut at_floor).await;
            assert_eq!(at_floor, docs, "{name}: from the floor");
        }
        for client in 0..CLIENTS {
            let (_, last) = scan(&*store, name, None, client, &mut Plain::new()).await;
            let mine = mids.remove(&Writer::of("u", ClientId(client))).unwrap_or_default();
            assert_eq!(
                mine,
                (1..=last).collect::<Vec<_>>(),
                "{name}, client {client}: each once, in order"
            );
            let counted = docs
                .get(&format!("count/{client}"))
                .map(|doc| doc.values().cloned().collect());
            let expected = vec![V::Int(i64::try_from(last).expect("small"))];
            assert_eq!(counted, (last > 0).then_some(expected));
        }
        for ((_, client, mid), seq) in acked.iter().filter(|((of, ..), _)| of == name) {
            let at = usize::try_from(*seq).expect("small") - 1;
            let entry = commits
                .get(at)
                .unwrap_or_else(|| panic!("{name}: commit {seq} was answered, and is lost"));
            let commit = msgpack::decode_payload(&entry.payload).expect("a change");
            let writer = Writer::of("u", ClientId(*client));
            assert_eq!(
                (commit.writer, commit.mid.get()),
                (writer, *mid),
                "{name}: commit {seq}"
            );
        }
        // Kept results say the same.
        let engine = engine(store.clone());
        for ((_, client, mid), seq) in acked.iter().filter(|((of, ..), _)| of == name).rev().take(50) {
            assert_eq!(send(&engine, mutation(name, *client, *mid)).await, *seq);
        }
        let head = store.positions(&[space(name)]).await.expect("it answers")[0].head.seq;
        assert_eq!(head, state.head.seq, "repeats are no commits");
    }
    // The engines' last workers let go of it in their own time.
    while Arc::strong_count(&store) > 1 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[test]
fn a_process_killed_while_it_writes_leaves_one_history_with_all_that_it_answered() {
    let dir = tempfile::tempdir().expect("a directory");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let mut dice = Dice(1);
    let mut acked = Acked::new();
    for round in 0..setting("TIDEGATE_CONTRACT_KILLS").unwrap_or(6) {
        let more = Duration::from_micros(dice.bits() % 20_000);
        kill(dir.path(), dice.between(1, 150), more, &mut acked);
        runtime.block_on(verify(dir.path(), &acked));
        println!("round {round}: {} answers stand", acked.len());
    }
}
