//! What is of the store on Redis alone: other nodes, other people's hands on its keys, and how long it holds the server.

use super::*;
use crate::harness::open_redis;
use crate::redis_server::Server;
use std::time::Duration;
use tidegate::store::{Store as _, StoreError};

pub(super) fn run(test: impl AsyncFnOnce(Server)) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(test(Server::start(&[])));
}

/// Fills the space with so many documents of one field and a tombstone.
pub(super) async fn fill(bench: &mut Bench, docs: u64) {
    for (n, mid) in (0..docs).step_by(200).zip(0..) {
        let names: Vec<_> = (n..docs.min(n + 200)).map(|n| format!("a/{n}")).collect();
        let ops = names.iter().map(|name| set(name, &[("x", 1), ("y", 1)])).collect();
        bench.applied(1, 2 * mid + 1, ops).await;
        let unset = |name: &String| op(name, OpKind::Unset(vec![path("y")]));
        bench.applied(1, 2 * mid + 2, names.iter().map(unset).collect()).await;
    }
}

pub(super) async fn bench(server: &Server) -> Bench {
    Bench {
        harness: Box::new(crate::harness::Plain(open_redis(server, &Retention::default()).await)),
        epochs: 1,
        now_ms: 1_000,
    }
}

/// Most that a command may name or ask for: a step of 256 entries names each in five arguments. Counts hold on any
/// machine; so many take a few milliseconds.
const STEP: u64 = 2_048;

/// An entry of the server's log: number, time, duration, arguments, and of whom.
type Entry = (u64, u64, u64, Vec<Vec<u8>>, String, String);

/// Every command that the server has done, those of scripts too: how many arguments it had, and those of them that the
/// log keeps.
fn commands(server: &Server) -> Vec<(u64, Vec<String>)> {
    let mut cmd = redis::cmd("SLOWLOG");
    let entries: Vec<Entry> = cmd
        .arg("GET")
        .arg(-1)
        .query(&mut server.connection())
        .expect("it answers");
    let text = |arg: Vec<u8>| String::from_utf8_lossy(&arg).into_owned();
    let entries = entries.into_iter().map(|(_, _, _, args, ..)| {
        let args: Vec<String> = args.into_iter().map(text).collect();
        let more = args.last().and_then(|last| {
            let more = last.strip_prefix("... (")?.strip_suffix(" more arguments)")?;
            more.parse::<u64>().ok()
        });
        (args.len() as u64 + more.unwrap_or(0), args)
    });
    entries.collect()
}

/// How many elements a command asks for, if it is one that asks for many.
fn asked_for(args: &[String]) -> Option<u64> {
    let at = args.iter().position(|arg| {
        let many = ["ZRANGE", "XRANGE", "HSCAN", "SCAN", "XREVRANGE", "LRANGE", "HGETALL"];
        many.contains(&arg.as_str())
    })?;
    let after = |name: &str, n: usize| {
        let at = args.iter().position(|arg| arg == name)?;
        args.get(at + n)?.parse::<u64>().ok()
    };
    // A document is one, however many its fields are.
    if args[at] == "HGETALL" {
        return Some(1);
    }
    let range = || {
        // What is asked for follows the key, which a look names before.
        let numbers: Vec<i64> = args[at + 1..].iter().filter_map(|arg| arg.parse().ok()).collect();
        let (from, to) = (*numbers.first()?, *numbers.get(1)?);
        u64::try_from(to - from).ok().filter(|_| from >= 0).map(|more| more + 1)
    };
    let count = after("COUNT", 1).or_else(|| after("LIMIT", 2)).or_else(range);
    Some(count.unwrap_or(u64::MAX))
}

#[test]
fn collection_and_erasure_ask_little_of_redis_at_a_time() {
    run(async |server| {
        const DOCS: u64 = 5_000;
        let mut bench = bench(&server).await;
        fill(&mut bench, DOCS).await;
        let head = bench.state().await.head.seq;
        // Of many clients, and a mark a minute, for days.
        for client in (2..602).step_by(100) {
            let many =
                (client..client + 100).map(|client| (crate::named::head(client, 1), None, vec![set("a/1", &[])]));
            let group = bench.plan(many.collect()).await;
            bench.commit(group).await;
        }
        let marks: Vec<_> = (1..=DOCS).map(|n| (n, format!("0{n}"))).collect();
        let mut zadd = redis::cmd("ZADD");
        let marked: Result<(), _> = zadd.arg("tg:{named}:marks").arg(&marks).query(&mut server.connection());
        marked.expect("it answers");
        server.command(&["CONFIG", "SET", "slowlog-max-len", "1000000"]);
        let store = open_redis(&server, &Retention::default()).await;
        server.command(&["CONFIG", "SET", "slowlog-log-slower-than", "0"]);
        for erase in [false, true] {
            server.command(&["SLOWLOG", "RESET"]);
            if erase {
                let erased = store
                    .erase(&space(), Erase::Space, Epoch(77), 1, &|_| {})
                    .await
                    .expect("it answers");
                assert_eq!((erased.docs, erased.cells, erased.clients), (DOCS, DOCS, 601));
            } else {
                store.raise_floor(&space(), head).await.expect("it answers");
                store.trim_log(&space(), head).await.expect("it answers");
                store.forget(&space(), 1).await.expect("it answers");
            }
            let commands = commands(&server);
            assert!(commands.len() as u64 >= DOCS / 256, "{} steps", commands.len());
            for (count, args) in &commands {
                assert!(*count <= STEP, "{count} arguments: {args:?}");
                if let Some(asked) = asked_for(args) {
                    assert!(asked <= STEP, "{asked} asked for: {args:?}");
                }
            }
            let most = commands.iter().map(|(count, _)| count).max();
            println!("{} commands, of at most {most:?} arguments", commands.len());
        }
        assert_eq!(bench.state().await.usage, Usage::default());
    });
}

#[test]
fn an_erasure_that_its_node_has_left_is_brought_to_its_end_by_another() {
    run(async |server| {
        let mut bench = bench(&server).await;
        fill(&mut bench, 400).await;
        let (left, other) = (
            open_redis(&server, &Retention::default()).await,
            open_redis(&server, &Retention::default()).await,
        );
        let (begun, began) = tokio::sync::oneshot::channel();
        let begun = parking_lot::Mutex::new(Some(begun));
        let space = space();
        let tell = |_: &tidegate::store::Lineage| {
            begun.lock().take().expect("once").send(()).expect("waited for");
        };
        tokio::select! {
            _ = left.erase(&space, Erase::Space, Epoch(77), 1, &tell) => panic!("it has come to its end"),
            _ = began => {}
        }
        let refused = other.read(&space, &[doc("a/1")]).await.expect_err("it is closed");
        assert!(matches!(refused, StoreError::Unavailable(_)), "{refused}");
        other
            .resume_erasures(Duration::from_secs(60))
            .await
            .expect("it answers");
        other
            .read(&space, &[doc("a/1")])
            .await
            .expect_err("not before its time");
        other.resume_erasures(Duration::ZERO).await.expect("it answers");
        let cut = other.read(&space, &[doc("a/1")]).await.expect("it is open");
        assert_eq!((cut.docs[0].header, cut.state.usage), (None, Usage::default()));
        assert_eq!(cut.state.lineage.last_epoch(), Epoch(77));
    });
}

#[test]
fn keys_that_somebody_has_deleted_are_noticed_and_never_read_as_nothing() {
    run(async |server| {
        let mut bench = bench(&server).await;
        let held = bench
            .applied(1, 1, vec![set("a/1", &[("x", 1)]), set("a/2", &[("x", 1)])])
            .await;
        let store = bench.harness.store();
        let unavailable = async || {
            let read = store.read(&space(), &[doc("a/1")]).await;
            let scan = store.changes(&space(), request(None)).await;
            [read.is_err(), scan.is_err()]
        };
        let group = bench
            .plan(vec![(head(1, 2), None, vec![set("a/1", &[("x", 2)])])])
            .await;
        for (delete, restore) in [
            (
                &["RENAME", "tg:{named}:d:a/1", "aside"][..],
                &["RENAME", "aside", "tg:{named}:d:a/1"][..],
            ),
            (
                &["RENAME", "tg:{named}:idx", "aside"],
                &["RENAME", "aside", "tg:{named}:idx"],
            ),
            (
                &["ZADD", "tg:{named}:idx", "7", "a/1"],
                &["ZADD", "tg:{named}:idx", "1", "a/1"],
            ),
        ] {
            server.command(delete);
            assert_eq!(unavailable().await, [true, true], "{delete:?}");
            assert!(store.commit(group.clone()).await.is_err(), "{delete:?}");
            server.command(restore);
            assert_eq!(unavailable().await, [false, false], "{restore:?}");
        }
        // Without what says where the space stands, no position is of its history.
        server.command(&["DEL", "tg:{named}:meta"]);
        assert_eq!(
            bench.changes(request(Some(held))).await,
            ChangesReply::Reset(ResetReason::Lost)
        );
        bench.applied(2, 1, vec![set("a/1", &[("x", 2)])]).await;
        let state = bench.state().await;
        assert_eq!((state.head.seq, state.floor), (seq(2), seq(1)));
        assert_ne!(state.head.epoch, held.epoch);
        let mut docs = Plain::new();
        match bench.changes(request(None)).await {
            ChangesReply::Done { docs: changes, .. } => apply(&mut docs, &changes.decode().expect("documents")),
            other => panic!("{other:?}"),
        }
        assert_eq!(docs, plain(&[("a/1", &[("x", 2)]), ("a/2", &[("x", 1)])]));
    });
}

#[test]
fn a_replica_is_neither_read_nor_written() {
    run(async |server| {
        let mut bench = bench(&server).await;
        bench.applied(1, 1, vec![set("a/1", &[("x", 1)])]).await;
        let store = bench.harness.store();
        let group = bench
            .plan(vec![(head(1, 2), None, vec![set("a/1", &[("x", 2)])])])
            .await;
        server.command(&["REPLICAOF", "127.0.0.1", "1"]);
        // At once, on the connections that are there: they are given up when the first of them is refused.
        let (space, spaces) = (space(), [space()]);
        let (commit, read, positions, changes, log, conflicts) = tokio::join!(
            store.commit(group),
            store.read(&space, &[]),
            store.positions(&spaces),
            store.changes(&space, request(None)),
            store.log(&space, Position::START, 1, 1, None),
            store.conflicts(&space, 1),
        );
        let errors = [
            commit.err(),
            read.err(),
            positions.err(),
            changes.err(),
            log.err(),
            conflicts.err(),
        ];
        for error in errors {
            let error = error.expect("it is refused").to_string();
            assert!(error.contains("this server is not a primary"), "{error}");
        }
    });
}

#[test]
fn a_group_is_one_call_and_one_publication_whatever_is_in_it() {
    run(async |server| {
        let mut bench = bench(&server).await;
        bench.applied(1, 1, vec![set("a/0", &[("x", 0)])]).await;
        let store = bench.harness.store();
        let many = (2..60).map(|client| (head(client, 1), None, vec![set(&format!("a/{client}"), &[("x", 1)])]));
        let group = bench.plan(many.collect()).await;
        server.command(&["CONFIG", "RESETSTAT"]);
        let outcomes = store.commit(group).await.expect("it answers").outcomes;
        assert!(
            outcomes
                .iter()
                .all(|outcome| matches!(outcome, Outcome::Applied { .. }))
        );
        let stats = match server.command(&["INFO", "commandstats"]) {
            redis::Value::BulkString(bytes) => String::from_utf8(bytes).expect("text"),
            other => panic!("{other:?}"),
        };
        for (command, calls) in [("evalsha", 1), ("publish", 1)] {
            let found = stats
                .lines()
                .find(|line| line.starts_with(&format!("cmdstat_{command}:calls={calls},")));
            assert!(found.is_some(), "{command}: {stats}");
        }
    });
}
