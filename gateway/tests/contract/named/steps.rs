//! Erasure and collection are many steps, and between two of them anything may happen: somebody else ends what one has
//! begun, a client writes, the server is another.

use super::on_redis::{bench, fill, run};
use super::*;
use crate::harness::open_redis;
use crate::redis_server::Server;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;
use std::time::Duration;
use tidegate::store::Store as _;

/// What goes on for ever is given up after so long.
const PATIENCE: Duration = Duration::from_secs(20);

/// Goes on with something until it has waited so many times. What it answers, if it has come to its end.
async fn go_on<F: Future>(what: &mut Pin<&mut F>, waits: usize) -> Option<F::Output> {
    let mut left = waits;
    std::future::poll_fn(|cx| {
        if left == 0 {
            return Poll::Ready(None);
        }
        left -= 1;
        match what.as_mut().poll(cx) {
            Poll::Ready(answer) => Poll::Ready(Some(answer)),
            Poll::Pending if left == 0 => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        }
    })
    .await
}

/// One that brings an erasure to its end is held up, everywhere in turn, while another does it and a client writes.
fn held_up_everywhere(whom: Erase) {
    run(async |server| {
        let mut bench = bench(&server).await;
        let slow = open_redis(&server, &Retention::default()).await;
        let other = open_redis(&server, &Retention::default()).await;
        let space = space();
        let mut fresh = 1_000;
        for waits in 1.. {
            let (early, late) = (2 * waits as u64, 2 * waits as u64 + 1);
            let ops = vec![set("a/1", &[("x", 1)]), set("a/2", &[("x", 1)])];
            bench.applied_by(Sender::of("ann", early, 1), None, ops).await;
            fresh += 3;
            let begun = AtomicBool::new(false);
            let tell = |_: &tidegate::store::Lineage| begun.store(true, Ordering::Relaxed);
            let mut erasing = std::pin::pin!(slow.erase(&space, whom, Epoch(fresh), 1_000, &tell));
            if go_on(&mut erasing, waits).await.is_some() {
                assert!(waits > 5, "it was held up {waits} times");
                break;
            }
            let by_other = other.erase(&space, whom, Epoch(fresh + 1), 1_000, &|_| {}).await;
            let by_other = by_other.expect("it answers");
            // Unless the one that was held up had done all but hear of it.
            if by_other != Erased::default() {
                assert_eq!((by_other.docs, by_other.cells, by_other.clients), (2, 2, 1));
            }
            let ops = vec![set("a/3", &[("x", 1)])];
            bench.applied_by(Sender::of("ann", late, 1), None, ops).await;
            let has_begun = begun.load(Ordering::Relaxed);
            let ended = tokio::time::timeout(PATIENCE, erasing).await;
            let ended = ended.unwrap_or_else(|_| panic!("held up {waits} times, it has no end"));
            // Who had only asked may have begun it, or erases afterwards.
            if has_begun {
                let erased = ended.expect("it answers");
                assert_eq!(
                    (erased.docs, erased.cells, erased.clients),
                    (2, 2, 1),
                    "held up {waits} times"
                );
                assert_eq!(bench.state().await.usage.docs, 1, "held up {waits} times");
                let again = other.erase(&space, whom, Epoch(fresh + 2), 1_000, &|_| {}).await;
                let again = again.expect("it answers");
                assert_eq!((again.docs, again.cells, again.clients), (1, 1, 1));
                assert_eq!(bench.state().await.usage, Usage::default());
            }
            fresh += 1;
            let rest = other.erase(&space, whom, Epoch(fresh + 2), 1_000, &|_| {}).await;
            rest.expect("it answers");
        }
    });
}

#[test]
fn who_is_held_up_in_the_erasure_of_a_space_that_another_ends_leaves_what_came_since() {
    held_up_everywhere(Erase::Space);
}

#[test]
fn who_is_held_up_in_the_erasure_of_a_user_that_another_ends_leaves_what_came_since() {
    held_up_everywhere(Erase::User(UserTag::of("ann")));
}

#[test]
fn a_sweep_under_which_the_floor_falls_or_the_space_closes_comes_to_an_end() {
    run(async |server| {
        let store = open_redis(&server, &Retention::default()).await;
        let space = space();
        for accident in [["floor", "0"], ["erasing", "by somebody"]] {
            for waits in 1.. {
                let mut bench = bench(&server).await;
                server.command(&["FLUSHALL"]);
                fill(&mut bench, 600).await;
                let head = bench.state().await.head.seq;
                let mut raising = std::pin::pin!(store.raise_floor(&space, head));
                if go_on(&mut raising, waits).await.is_some() {
                    assert!(waits > 3, "it was held up {waits} times");
                    break;
                }
                // As on a replica that lacks the raise, and has taken over.
                server.command(&["HSET", "tg:{named}:meta", accident[0], accident[1]]);
                let ended = tokio::time::timeout(PATIENCE, raising).await;
                let ended = ended.unwrap_or_else(|_| panic!("held up {waits} times, it has no end: {accident:?}"));
                ended.expect("it answers");
            }
        }
    });
}

#[test]
fn marks_of_time_below_the_floor_go_and_those_above_stay() {
    run(async |server| {
        let mut bench = bench(&server).await;
        bench.applied(1, 1, vec![set("a/1", &[("x", 1)])]).await;
        // A mark a minute, for two days.
        server.command(&["HSET", "tg:{named}:meta", "head", "3000"]);
        server.command(&["DEL", "tg:{named}:marks"]);
        let marks: Vec<_> = (1..=3_000).map(|seq| (seq * 60_000, seq)).collect();
        let mut connection = server.connection();
        let mut zadd = redis::cmd("ZADD");
        let () = zadd
            .arg("tg:{named}:marks")
            .arg(&marks)
            .query(&mut connection)
            .expect("it answers");
        let store = open_redis(&server, &Retention::default()).await;
        store.raise_floor(&space(), seq(2_000)).await.expect("it answers");
        let mut zrange = redis::cmd("ZRANGE");
        let left: Vec<u64> = zrange
            .arg("tg:{named}:marks")
            .arg(0)
            .arg(-1)
            .query(&mut connection)
            .expect("it answers");
        assert_eq!(left, (2_001..=3_000).collect::<Vec<_>>());
    });
}

/// Which snapshot a server goes on from that takes over.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Lacks {
    Nothing,
    Steps,
    Begin,
}

#[test]
fn an_erasure_goes_on_where_another_server_takes_over_and_does_again_what_that_lacks() {
    run(async |mut server| {
        let space = space();
        for lacks in [Lacks::Nothing, Lacks::Steps, Lacks::Begin] {
            for waits in 2.. {
                let mut filled = bench(&server).await;
                server.command(&["FLUSHALL"]);
                for client in 1..=40 {
                    let ops = vec![set(&format!("a/{client}"), &[("x", 1)])];
                    filled.applied_by(Sender::of("ann", client, 1), None, ops).await;
                }
                server.command(&["SAVE"]);
                let store = open_redis(&server, &Retention::default()).await;
                let mut erasing = std::pin::pin!(store.erase(&space, Erase::Space, Epoch(77), 1_000, &|_| {}));
                assert!(go_on(&mut erasing, 1).await.is_none());
                while server.command(&["HEXISTS", "tg:{named}:meta", "erasing"]) == redis::Value::Int(0) {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
                if lacks == Lacks::Steps {
                    server.command(&["SAVE"]);
                }
                let has_ended = go_on(&mut erasing, waits).await.is_some();
                if has_ended || server.command(&["HEXISTS", "tg:{named}:meta", "erasing"]) == redis::Value::Int(0) {
                    assert!(waits > 5, "it was held up {waits} times");
                    break;
                }
                if lacks == Lacks::Nothing {
                    server.command(&["SAVE"]);
                }
                server.kill();
                server.run();
                let ended = tokio::time::timeout(PATIENCE, erasing).await;
                let ended = ended.unwrap_or_else(|_| panic!("held up {waits} times, it has no end, {lacks:?}"));
                ended.expect("it answers");
                let mut bench = bench(&server).await;
                assert_eq!(bench.state().await.usage, Usage::default());
                for key in ["idx", "users", "results", "log"] {
                    let key = format!("tg:{{named}}:{key}");
                    assert_eq!(
                        server.command(&["EXISTS", &key]),
                        redis::Value::Int(0),
                        "{key}, held up {waits} times, {lacks:?}"
                    );
                }
                for client in 1..=40 {
                    let again = bench.send_by(Sender::of("ann", client, 1), vec![set("a/1", &[])]).await;
                    assert_eq!(
                        again,
                        Outcome::ClientUnknown,
                        "{client}, held up {waits} times, {lacks:?}"
                    );
                }
            }
        }
    });
}

/// Keys of the space that there are.
fn keys(server: &Server, pattern: &str) -> Vec<String> {
    let mut cmd = redis::cmd("KEYS");
    let mut keys: Vec<String> = cmd.arg(pattern).query(&mut server.connection()).expect("it answers");
    keys.sort();
    keys
}

/// A space in which two users have written, alone and together, of which keys are gone.
async fn torn(server: &Server, gone: &[&str]) -> Bench {
    let mut bench = bench(server).await;
    server.command(&["FLUSHALL"]);
    let ops = vec![
        set("a/1", &[("x", 1)]),
        set("a/2", &[("x", 1)]),
        set("a/4", &[("x", 1)]),
    ];
    bench.applied_by(Sender::of("ann", 1, 1), None, ops).await;
    let ops = vec![set("a/3", &[("y", 2)]), set("a/4", &[("y", 2)])];
    bench.applied_by(Sender::of("bob", 2, 1), None, ops).await;
    for name in gone {
        server.command(&["DEL", &format!("tg:{{named}}:{name}")]);
    }
    server.command(&["HSET", "tg:{named.too}:d:a/1", "x", "another space's"]);
    bench
}

#[test]
fn a_space_that_lacks_keys_is_erased_whole() {
    run(async |server| {
        let all = &["meta", "idx", "log", "clients", "results", "users", "dead", "marks"][..];
        for gone in [&["idx"][..], &["meta"], &["meta", "idx"], all] {
            let bench = torn(&server, gone).await;
            let store = open_redis(&server, &Retention::default()).await;
            let erased = store.erase(&space(), Erase::Space, Epoch(77), 1_000, &|_| {}).await;
            let erased = erased.expect("it answers");
            assert_eq!((erased.docs, erased.cells), (4, 5), "without {gone:?}");
            let mut left = keys(&server, "tg:{named}:*");
            left.retain(|key| key != "tg:{named}:clients");
            assert_eq!(left, ["tg:{named}:meta"], "without {gone:?}");
            assert_eq!(keys(&server, "tg:{named.too}:*").len(), 1);
            let state = bench.state().await;
            assert_eq!((state.usage, state.head.epoch), (Usage::default(), Epoch(77)));
            // It is whole again.
            let mut bench = bench;
            bench.applied(3, 1, vec![set("a/1", &[("x", 1)])]).await;
        }
        // Of a space that never was nothing is made.
        let store = open_redis(&server, &Retention::default()).await;
        let nobody = SpaceId::parse("nobody").expect("valid");
        let erased = store.erase(&nobody, Erase::Space, Epoch(77), 1_000, &|_| {}).await;
        assert_eq!(erased.expect("it answers"), Erased::default());
        assert!(keys(&server, "tg:{nobody}:*").is_empty());
    });
}

#[test]
fn a_user_is_erased_from_a_space_that_lacks_keys_and_what_others_wrote_can_be_read_again() {
    run(async |server| {
        for gone in [&["idx"][..], &["meta"], &["meta", "idx"]] {
            let mut bench = torn(&server, gone).await;
            let store = open_redis(&server, &Retention::default()).await;
            // A hash that has lost its header.
            server.command(&["HDEL", "tg:{named}:d:a/2", ""]);
            let whom = Erase::User(UserTag::of("ann"));
            let erased = store.erase(&space(), whom, Epoch(77), 1_000, &|_| {}).await;
            let erased = erased.expect("it answers");
            assert_eq!(
                (erased.docs, erased.cells, erased.clients),
                (2, 3, 1),
                "without {gone:?}"
            );
            assert_eq!(
                keys(&server, "tg:{named}:d:*"),
                ["tg:{named}:d:a/3", "tg:{named}:d:a/4"]
            );
            let ChangesReply::Done { docs: all, .. } = bench.changes(request(None)).await else {
                panic!("few documents")
            };
            let mut docs = Plain::new();
            apply(&mut docs, &all.decode().expect("documents"));
            assert_eq!(docs, plain(&[("a/3", &[("y", 2)]), ("a/4", &[("y", 2)])]));
            bench.applied(3, 1, vec![set("a/4", &[("x", 1)])]).await;
        }
    });
}

#[test]
fn a_space_that_is_half_carried_over_can_be_erased_as_a_whole_alone() {
    run(async |server| {
        let mut bench = torn(&server, &[]).await;
        let carried = ["erasing", "carried over", "origin", "somewhere"];
        server.command(&[&["HSET", "tg:{named}:meta"][..], &carried].concat());
        server.command(&["HDEL", "tg:{named}:meta", "lineage", "idx"]);
        let store = open_redis(&server, &Retention::default()).await;
        let whom = Erase::User(UserTag::of("ann"));
        let refused = store.erase(&space(), whom, Epoch(77), 1_000, &|_| {}).await;
        let refused = refused.expect_err("half of it would be opened").to_string();
        assert!(refused.contains("is being carried over"), "{refused}");
        let erased = store.erase(&space(), Erase::Space, Epoch(78), 1_000, &|_| {}).await;
        assert_eq!(erased.expect("it answers").docs, 4);
        assert_eq!(
            server.command(&["HEXISTS", "tg:{named}:meta", "origin"]),
            redis::Value::Int(0)
        );
        bench.applied(3, 1, vec![set("a/1", &[("x", 1)])]).await;
    });
}

#[test]
fn what_is_gone_from_redis_no_longer_counts_after_a_walk_and_what_is_damaged_holds_up_none() {
    run(async |server| {
        let mut bench = bench(&server).await;
        bench.applied(1, 1, vec![set("a/1", &[("x", 1)])]).await;
        let all = bench.state().await.usage;
        server.command(&["HSET", "tg:{torn}:meta", "head", "1", "lineage", "none"]);
        server.command(&["SET", "tg:{other}:meta", "another type"]);
        let store = open_redis(&server, &Retention::default()).await;
        assert_eq!((store.usage(), all.docs), (all, 1));
        let round = store.collect_as_of(1_000).await.expect("it answers");
        assert_eq!((round.spaces, round.damaged), (3, 2));
        server.command(&["FLUSHALL"]);
        for n in 0..2 {
            match n {
                0 => store.count().await.expect("it answers"),
                _ => drop(store.collect_as_of(1_000).await.expect("it answers")),
            }
            assert_eq!(store.usage(), Usage::default());
            bench.now_ms += 1;
            let mut again = on_redis::bench(&server).await;
            again.applied(1, 1, vec![set("a/1", &[("x", 1)])]).await;
            store.read(&space(), &[]).await.expect("it answers");
            assert_eq!(store.usage(), all);
            server.command(&["FLUSHALL"]);
        }
    });
}

#[test]
fn a_node_whose_clock_is_far_from_that_of_redis_collects_nothing() {
    run(async |server| {
        let mut bench = bench(&server).await;
        let now_ms = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        let now_ms = u64::try_from(now_ms.expect("later").as_millis()).expect("small");
        bench.now_ms = now_ms;
        let first = vec![set("a/1", &[("x", 1)]), set("a/2", &[("x", 1)])];
        let begins = Sender {
            user: "u",
            head: WriteHead {
                first: Some(now_ms),
                ..head(1, 1)
            },
        };
        bench.applied_by(begins, None, first).await;
        bench.applied(1, 2, vec![op("a/1", OpKind::Delete)]).await;
        // Long ago, by the clock of a node that is right.
        let retention = Retention {
            tombstones_ms: 0,
            log_ms: 0,
            clients_ms: 0,
            ..Retention::default()
        };
        let store = open_redis(&server, &retention).await;
        for ahead_ms in [120_000, 91 * 24 * 3_600_000] {
            let round = store.collect(now_ms + ahead_ms).await.expect("it answers");
            let gone = [
                round.floors,
                round.log,
                round.tombstones,
                round.clients,
                round.conflicts,
            ];
            assert_eq!((round.spaces, gone), (1, [0; 5]), "{ahead_ms} ms ahead");
        }
        let round = store.collect(now_ms + 30_000).await.expect("it answers");
        assert_eq!((round.floors, round.log, round.clients), (1, 2, 1));
        assert!(round.tombstones > 0);
    });
}
