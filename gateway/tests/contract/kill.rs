//! A process that writes is killed, again and again; what it left must be one whole history that has
//! everything it answered. More rounds: `TIDEGATE_CONTRACT_KILLS=50 cargo test --test contract kill`.
//! With [`power`](crate::power) the disk loses what was not synced, too.

use crate::interpret::Plain;
use crate::process::{
    changes, close, command, engine, op, open, request, runtime, say, scan, set, sound, space, text, write,
};
use crate::replica::apply;
use crate::setting;
use crate::value::{Dice, V};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, mpsc};
use std::time::Duration;
use tidegate::engine::WriteRequest;
use tidegate::store::embedded::Durability;
use tidegate::store::{ChangesReply, LogEntry, LogReply, SpaceState, Store};
use tidegate_protocol::{ClientId, FieldPath, Number, OpKind, Position, Seq, Value, Writer, msgpack};

const SPACES: [&str; 2] = ["kill:1", "kill:2"];
const CLIENTS: u64 = 3;
/// Where the child finds its store.
const DIR: &str = "TIDEGATE_CONTRACT_KILL_DIR";
/// What its answers mean: `fsync` or `memory`.
const DURABILITY: &str = "TIDEGATE_CONTRACT_KILL_DURABILITY";
/// Bytes that each of its mutations writes beside the rest, so that tables and journals fill up.
const BALLAST: &str = "TIDEGATE_CONTRACT_KILL_BALLAST";
/// Positions of a history that a client comes back from, if it has more.
const POSITIONS: usize = 120;

/// The same for the same client and mid, whichever process sends it.
fn mutation(name: &str, client: u64, mid: u64, ballast: usize) -> WriteRequest {
    let path = |text: &str| FieldPath::parse(text).expect("valid");
    let n = Value::int(i64::try_from(mid).expect("small"));
    let count = OpKind::Inc {
        path: path("n"),
        by: Number::Int(1),
    };
    let own = format!("own/{client}");
    let mut ops = vec![
        op(&format!("count/{client}"), count),
        op("shared/1", set(&[&format!("f{}", mid % 7)], &n)),
        match mid % 4 {
            0 => op(&own, OpKind::Delete),
            1 => op(&own, set(&["a.b", "c"], &n)),
            2 => op(&own, set(&["a"], &n)),
            _ => op(&own, OpKind::Unset(vec![path("a"), path("c")])),
        },
    ];
    if ballast > 0 {
        let text = Value::str(&(mid % 10).to_string().repeat(ballast));
        ops.push(op(&format!("ballast/{client}"), set(&["text"], &text)));
    }
    request(name, ("u", client), mid, None, ops)
}

/// Writes until it is killed, and says what it sends and what was answered.
#[test]
#[ignore = "the process that is killed"]
fn child() {
    let dir = PathBuf::from(text(DIR).expect("where the store is"));
    let durability = match text(DURABILITY).as_deref() {
        Some("memory") => Durability::Memory,
        _ => Durability::Fsync,
    };
    let ballast: usize = text(BALLAST).map_or(0, |bytes| bytes.parse().expect("a number"));
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        let store = Arc::new(open(&dir, durability));
        let engine = engine(store.clone());
        let mut tasks = tokio::task::JoinSet::new();
        for name in SPACES {
            for client in 0..CLIENTS {
                let (engine, store) = (engine.clone(), store.clone());
                tasks.spawn(async move {
                    let (_, last) = scan(&*store, name, None, client, &mut Plain::new()).await;
                    // What was last applied once more: its answer may never have left.
                    for mid in last.max(1).. {
                        say(&format!("sends {name} {client} {mid} 0"));
                        let seq = write(&engine, mutation(name, client, mid, ballast)).await.seq;
                        say(&format!("acked {name} {client} {mid} {seq}"));
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
                    let to = Seq::new(head.saturating_sub(200)).expect("small");
                    store.raise_floor(&space(name), to).await.expect("it answers");
                }
                tokio::time::sleep(Duration::from_millis(7)).await;
            }
        });
        tasks.join_next().await.expect("a task").expect("none ends");
    });
}

/// Space, client and mid of what was answered, with the commit's seq.
pub(crate) type Acked = BTreeMap<(String, u64, u64), u64>;

/// What a process is to write, and for how long.
pub(crate) struct Writing<'a> {
    pub(crate) dir: &'a Path,
    pub(crate) durability: Durability,
    /// Bytes a mutation, beside the rest.
    pub(crate) ballast: usize,
    /// It is killed after so many answers …
    pub(crate) answers: usize,
    /// … and so much time.
    pub(crate) more: Duration,
}

/// Runs the child, kills it, and adds what it answered. Returns how many mutations it had sent and not
/// answered when it was killed. `prepare` may change how it is started.
#[allow(clippy::disallowed_methods, reason = "nothing else runs in this process meanwhile")]
pub(crate) fn kill(writing: &Writing<'_>, acked: &mut Acked, prepare: impl FnOnce(&mut Command)) -> usize {
    let mut command = command("kill::child");
    command
        .env(DIR, writing.dir)
        .env(BALLAST, writing.ballast.to_string())
        .env(
            DURABILITY,
            match writing.durability {
                Durability::Fsync => "fsync",
                Durability::Memory => "memory",
            },
        );
    prepare(&mut command);
    let mut child = command.spawn().expect("starts");
    let lines = BufReader::new(child.stdout.take().expect("piped")).lines();
    let (sender, told) = mpsc::channel();
    // Reads on while the child is left to itself, so that it never waits for a reader.
    let reader = std::thread::spawn(move || {
        for line in lines.map_while(Result::ok) {
            let _ = sender.send(line);
        }
    });
    let (mut flying, mut answers) = (BTreeSet::new(), 0);
    let mut note = |line: &str, acked: &mut Acked| {
        let words: Vec<&str> = line.split(' ').collect();
        let [what @ ("sends" | "acked"), name, client, mid, seq] = words[..] else {
            return;
        };
        let number = |word: &str| word.parse::<u64>().expect("a number");
        let key = (name.to_owned(), number(client), number(mid));
        if what == "sends" {
            flying.insert(key);
            return;
        }
        answers += 1;
        flying.remove(&key);
        let before = acked.insert(key, number(seq));
        assert!(
            before.is_none_or(|before| before == number(seq)),
            "{line}, and {before:?} before"
        );
        if answers == writing.answers {
            std::thread::sleep(writing.more);
            child.kill().expect("killed");
        }
    };
    for line in told {
        note(&line, acked);
    }
    child.wait().expect("it ends");
    reader.join().expect("it read to the end");
    assert!(answers >= writing.answers, "it goes on until it is killed");
    flying.len()
}

/// Opens what a process left, and holds it against what that had answered.
pub(crate) async fn verify(dir: &Path, acked: &Acked, ballast: usize, dice: &mut Dice) {
    let store = Arc::new(open(dir, Durability::Fsync));
    for name in SPACES {
        let (commits, state) = whole_log(&*store, name).await;
        let head = commits.len() as u64;
        assert_eq!(state.head.seq.get(), head);
        let floor = state.floor.get();
        // All positions that hold, or a sample, the first and the last of them always.
        let positions: BTreeSet<u64> = match head - floor {
            few if few < POSITIONS as u64 => (floor..=head).collect(),
            many => (0..POSITIONS)
                .map(|_| floor + dice.bits() % many)
                .chain([floor, head])
                .collect(),
        };
        let mut held = BTreeMap::new();
        let mut docs = Plain::new();
        let mut mids: BTreeMap<Writer, Vec<u64>> = BTreeMap::new();
        for (n, entry) in (0..).zip(&commits) {
            if positions.contains(&n) {
                held.insert(n, docs.clone());
            }
            let commit = msgpack::decode_payload(&entry.payload).expect("a change");
            assert_eq!((entry.seq.get(), commit.seq.get()), (n + 1, n + 1), "{name}");
            mids.entry(commit.writer).or_default().push(commit.mid.get());
            apply(&mut docs, &commit.docs);
        }
        held.insert(head, docs.clone());
        let mut scanned = Plain::new();
        scan(&*store, name, None, 0, &mut scanned).await;
        assert_eq!(scanned, docs, "{name}: the state is what the log says");
        for (n, docs_then) in held {
            come_back(&*store, name, &state, &commits, (n, docs_then), &docs).await;
        }
        if floor > 0 {
            for after in [1.min(floor - 1), floor - 1, dice.bits() % floor] {
                let after = position(&state, after);
                let reply = store.changes(&space(name), changes(Some(after), 0)).await;
                let reset = matches!(reply, Ok(ChangesReply::Reset(_)));
                assert!(
                    reset || after.seq == Seq::ZERO && floor == 0,
                    "{name}: from {after:?}, floor {floor}"
                );
            }
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
        let lost = lost(name, &commits, acked);
        assert_eq!(lost, [], "{name}: answered, and lost");
        // Kept results say the same.
        let engine = engine(store.clone());
        for ((_, client, mid), seq) in acked.iter().filter(|((of, ..), _)| of == name).rev().take(50) {
            let repeated = write(&engine, mutation(name, *client, *mid, ballast)).await;
            assert_eq!(repeated.seq.get(), *seq);
        }
        let head = store.positions(&[space(name)]).await.expect("it answers")[0].head.seq;
        assert_eq!(head, state.head.seq, "repeats are no commits");
    }
    close(store).await;
    sound(dir);
}

/// A space's log, which must be all of it, and where it stands.
async fn whole_log(store: &dyn Store, name: &str) -> (Vec<LogEntry>, SpaceState) {
    let state = store.positions(&[space(name)]).await.expect("it answers").remove(0);
    let start = Position {
        epoch: state.head.epoch,
        ..Position::START
    };
    let reply = store.log(&space(name), start, usize::MAX, usize::MAX, None).await;
    let LogReply::Commits { commits, state, .. } = reply.expect("it answers") else {
        panic!("the log is whole")
    };
    (commits, state)
}

/// A seq with the epoch that it belongs to, as far as that is still known.
fn position(state: &SpaceState, seq: u64) -> Position {
    let seq = Seq::new(seq).expect("small");
    let entries = &state.lineage.0;
    let entry = entries.iter().rev().find(|entry| entry.start < seq).or(entries.first());
    Position::new(entry.map_or(state.head.epoch, |entry| entry.epoch), seq)
}

/// A client that held the state of commit `n` comes back, by log and by changes.
async fn come_back(
    store: &dyn Store,
    name: &str,
    state: &SpaceState,
    commits: &[LogEntry],
    (n, mut docs): (u64, Plain),
    expected: &Plain,
) {
    let after = position(state, n);
    scan(store, name, Some(after), 0, &mut docs).await;
    assert_eq!(docs, *expected, "{name}: from {after:?}");
    let reply = store.log(&space(name), after, 20, usize::MAX, None).await;
    let Ok(LogReply::Commits { commits: next, .. }) = reply else {
        panic!("{name}: the log after {after:?}: {reply:?}")
    };
    let rest = &commits[usize::try_from(n).expect("small")..];
    assert_eq!(next, rest[..rest.len().min(20)], "{name}: the log after {after:?}");
}

/// Answered mutations of a space that its log lacks: client and mid.
fn lost(name: &str, commits: &[LogEntry], acked: &Acked) -> Vec<(u64, u64)> {
    let mine = acked.iter().filter(|((of, ..), _)| of == name);
    let lost = mine.filter(|((_, client, mid), seq)| {
        let at = usize::try_from(**seq).expect("small") - 1;
        let commit = commits
            .get(at)
            .map(|entry| msgpack::decode_payload(&entry.payload).expect("a change"));
        commit.is_none_or(|commit| (commit.writer, commit.mid.get()) != (Writer::of("u", ClientId(*client)), *mid))
    });
    lost.map(|((_, client, mid), _)| (*client, *mid)).collect()
}

/// How many answered mutations of all spaces are gone from what a process left.
pub(crate) async fn count_lost(dir: &Path, acked: &Acked) -> usize {
    let store = open(dir, Durability::Memory);
    let mut gone = 0;
    for name in SPACES {
        let (commits, _) = whole_log(&store, name).await;
        gone += lost(name, &commits, acked).len();
    }
    gone
}

#[test]
fn a_process_killed_while_it_writes_leaves_one_history_with_all_that_it_answered() {
    let dir = tempfile::tempdir().expect("a directory");
    let runtime = runtime();
    let mut dice = Dice(1);
    let mut acked = Acked::new();
    let rounds = setting("TIDEGATE_CONTRACT_KILLS").unwrap_or(6);
    let mut with_unanswered = 0;
    for round in 0..rounds {
        let writing = Writing {
            dir: dir.path(),
            durability: Durability::Fsync,
            ballast: 0,
            answers: dice.between(1, 150),
            more: Duration::from_micros(dice.bits() % 20_000),
        };
        let flying = kill(&writing, &mut acked, |_| {});
        with_unanswered += u64::from(flying > 0);
        runtime.block_on(verify(dir.path(), &acked, 0, &mut dice));
        println!("round {round}: {} answers stand, {flying} were awaited", acked.len());
    }
    assert!(
        with_unanswered * 5 >= rounds * 4,
        "a mutation was under way in {with_unanswered} of {rounds} kills only"
    );
}
