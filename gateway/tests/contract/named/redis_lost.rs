//! What other people's hands and lost keys leave of a space on Redis: it goes on, or says what is wrong with it.

use super::on_redis::{bench, run};
use super::*;
use crate::redis_server::Server;
use tidegate::metrics::{Metrics, RedisMetrics};
use tidegate::store::StoreError;
use tidegate::store::redis::{RedisConfig, RedisStore};

/// A commit that touches no document.
fn check() -> Op {
    op("a/none", OpKind::Check)
}

fn delete(server: &Server, part: &str) {
    let deleted = server.command(&["DEL", &format!("tg:{{named}}:{part}")]);
    assert_eq!(deleted, redis::Value::Int(1), "{part}");
}

#[test]
fn a_space_without_meta_goes_on_behind_every_seq_that_its_log_has_given() {
    run(async |server| {
        let mut bench = bench(&server).await;
        bench.applied(1, 1, vec![set("a/1", &[("x", 1)])]).await;
        bench.applied(1, 2, vec![op("a/1", OpKind::Delete)]).await;
        bench.applied(1, 3, vec![check()]).await;
        let held = bench.applied(1, 4, vec![check()]).await;
        // Of the last seqs nothing but the log knows, and it is empty.
        bench.harness.raise_floor(&space(), held.seq).await;
        bench.harness.trim_log(&space(), held.seq).await;
        delete(&server, "meta");
        assert_eq!(bench.state().await.head.seq, held.seq);
        for mid in 1..4 {
            let next = bench.applied(2, mid, vec![set("a/2", &[("x", 1)])]).await;
            assert_eq!(next.seq.get(), held.seq.get() + mid);
        }
        assert_eq!(bench.state().await.floor, held.seq);
        let mut docs = Plain::new();
        bench
            .catch_up(&mut docs, Position::new(bench.state().await.head.epoch, held.seq))
            .await;
        assert_eq!(docs, plain(&[("a/2", &[("x", 1)])]));
    });
}

#[test]
fn a_conflict_is_logged_behind_every_one_that_was_and_its_commit_is_whole() {
    run(async |server| {
        let mut bench = bench(&server).await;
        let base = bench.applied(1, 1, vec![set("a/1", &[("x", 1)])]).await;
        bench.applied(2, 1, vec![set("a/1", &[("x", 2)])]).await;
        let conflict = async |bench: &mut Bench, mid| {
            let mutation = (head(1, mid), Some(base), vec![set("a/1", &[("x", 3)])]);
            bench.plan(vec![mutation]).await
        };
        // What was in the conflict log is too old, or was erased.
        for (mid, part) in [(2, None), (3, Some("meta"))] {
            bench.applied(2, mid, vec![set("a/1", &[("x", 2)])]).await;
            let group = conflict(&mut bench, mid).await;
            assert!(
                matches!(bench.commit(group).await[..], [Outcome::Applied { .. }]),
                "{mid}"
            );
            let log = bench.harness.store().conflicts(&space(), 10).await.expect("it answers");
            assert_eq!(log.len(), 1, "{mid}");
            server.command(&["XTRIM", "tg:{named}:conflicts", "MAXLEN", "0"]);
            part.iter().for_each(|part| delete(&server, part));
        }
        bench.applied(2, 4, vec![set("a/1", &[("x", 2)])]).await;
        // Its base is of a history that nobody knows, so all is newer.
        let group = conflict(&mut bench, 4).await;
        assert!(matches!(
            bench.commit(group.clone()).await[..],
            [Outcome::Applied { .. }]
        ));
        let head = bench.state().await.head;
        match &bench.commit(group).await[..] {
            [Outcome::Duplicate(kept)] => assert_eq!(kept.position, head),
            other => panic!("{other:?}"),
        }
        let log = bench.harness.store().conflicts(&space(), 10).await.expect("it answers");
        assert_eq!((log.len(), log[0].position), (1, head));
    });
}

#[test]
fn an_entry_that_somebody_has_put_into_the_log_beyond_the_head_refuses_no_commit() {
    run(async |server| {
        let mut bench = bench(&server).await;
        let held = bench.applied(1, 1, vec![set("a/1", &[("x", 1)])]).await;
        server.command(&["XADD", "tg:{named}:log", "9-0", "p", "x"]);
        bench.applied(1, 2, vec![set("a/1", &[("x", 2)])]).await;
        let head = bench.applied(1, 3, vec![set("a/1", &[("x", 3)])]).await;
        assert_eq!(head, Position::new(held.epoch, seq(3)));
        let store = bench.harness.store();
        let log = store
            .log(&space(), Position::new(held.epoch, seq(1)), 9, 9_000, None)
            .await;
        match log.expect("it answers") {
            LogReply::Commits { commits, .. } => {
                assert_eq!(commits.iter().map(|entry| entry.seq.get()).collect::<Vec<_>>(), [2, 3]);
            }
            other => panic!("{other:?}"),
        }
    });
}

#[test]
fn a_space_that_somebody_has_made_up_takes_no_key() {
    run(async |server| {
        let mut bench = bench(&server).await;
        for (client, mid) in [(1, 2), (2, 3)] {
            let unknown = bench.send(head(client, mid), vec![set("a/1", &[("x", 1)])]).await;
            assert_eq!(unknown, Outcome::ClientUnknown);
        }
        assert_eq!(server.command(&["DBSIZE"]), redis::Value::Int(0));
    });
}

#[test]
fn a_space_of_which_nothing_can_be_read_is_told_in_its_place() {
    run(async |server| {
        let mut bench = bench(&server).await;
        let known = bench.applied(1, 1, vec![set("a/1", &[("x", 1)])]).await;
        let store = bench.harness.store();
        let mut spaces: Vec<_> = (0..150)
            .map(|n| SpaceId::parse(&format!("other:{n}")).expect("valid"))
            .collect();
        spaces.insert(70, space());
        let damaged = [3, 65, 150];
        for (n, damage) in damaged.iter().zip([
            &["SET", "foo"][..],
            &["HSET", "lineage", "foo"],
            &["HSET", "head", "foo", "lineage", ""],
        ]) {
            let meta = format!("tg:{{{}}}:meta", spaces[*n]);
            server.command(&[&[damage[0], meta.as_str()], &damage[1..]].concat());
        }
        let states = store.each_position(&spaces).await.expect("it answers");
        assert_eq!(states.len(), spaces.len());
        for (n, state) in states.into_iter().enumerate() {
            match state {
                Ok(state) if n == 70 => assert_eq!(state.head, known),
                Ok(state) => assert!(
                    !damaged.contains(&n) && state == SpaceState::default(),
                    "{n}: {state:?}"
                ),
                Err(StoreError::Damaged(_)) => assert!(damaged.contains(&n), "{n}"),
                Err(other) => panic!("{n}: {other}"),
            }
        }
        let whole = store.positions(&spaces).await;
        assert!(matches!(whole, Err(StoreError::Damaged(_))), "{whole:?}");
    });
}

#[test]
fn an_address_that_asks_for_another_form_of_answers_is_answered_all_the_same() {
    run(async |server| {
        let url = format!("{}?protocol=resp3", server.url());
        let metrics = RedisMetrics::new(&Metrics::default());
        let store = RedisStore::new(&url, RedisConfig::default(), Retention::default(), metrics).expect("an address");
        let mut bench = Bench {
            harness: Box::new(crate::harness::Plain(store)),
            ..bench(&server).await
        };
        let held = bench.applied(1, 1, vec![set("a/1", &[("x", 1)])]).await;
        bench.applied(1, 2, vec![set("a/1", &[("y", 2)])]).await;
        let mut docs = plain(&[("a/1", &[("x", 1)])]);
        bench.catch_up(&mut docs, held).await;
        assert_eq!(docs, plain(&[("a/1", &[("x", 1), ("y", 2)])]));
        let redis::Value::BulkString(clients) = server.command(&["CLIENT", "LIST"]) else {
            panic!("a list")
        };
        let clients = String::from_utf8(clients).expect("text");
        assert!(clients.contains("resp=2") && !clients.contains("resp=3"), "{clients}");
    });
}
