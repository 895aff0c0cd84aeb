//! What the lineage remembers, and what follows from it.

use super::*;

#[test]
fn commits_of_a_forgotten_epoch_are_not_handed_out_one_by_one() {
    each(|mut bench| async move {
        bench.applied(1, 1, vec![set("a/x", &[("n", 1)])]).await;
        bench.harness.restart().await;
        let second = bench.applied(1, 2, vec![set("a/x", &[("n", 2)])]).await;
        bench.applied(1, 3, vec![set("a/x", &[("n", 3)])]).await;
        bench.harness.raise_floor(&space(), seq(2)).await;
        let store = bench.harness.store();
        // All commits are in the log; but who is cut off after the first would stand nowhere.
        for (after, named) in [(Position::START, false), (Position::new(second.epoch, seq(1)), true)] {
            let reply = store
                .log(&space(), after, 10, usize::MAX, None)
                .await
                .expect("it answers");
            match reply {
                LogReply::Commits { commits, .. } => assert!(named && commits.len() == 2, "{after}: {commits:?}"),
                LogReply::Trimmed => assert!(!named, "{after}"),
                other => panic!("{after}: {other:?}"),
            }
        }
    });
}

#[test]
fn a_scan_ends_where_history_was_cut_off_below_a_page_of_it() {
    each(|mut bench| async move {
        for (mid, doc) in [(1, "a/1"), (2, "a/2"), (3, "a/3")] {
            bench.applied(1, mid, vec![set(doc, &[("x", 1)])]).await;
        }
        bench.harness.back_up().await;
        let next = |cursor| ChangesRequest {
            budget: 1,
            cursor,
            ..request(None)
        };
        let ChangesReply::Page { docs, cursor, .. } = bench.changes(next(None)).await else {
            panic!("three documents")
        };
        assert_eq!(docs.last_doc(), Some("a/1"));
        // It moves ahead of the cursor, so the next page goes past where it was, and will be again.
        bench.applied(1, 4, vec![set("a/2", &[("x", 2)])]).await;
        let ChangesReply::Page { docs, cursor, .. } = bench.changes(next(Some(cursor))).await else {
            panic!("two documents left")
        };
        assert_eq!(docs.last_doc(), Some("a/3"));
        bench.harness.restore().await;
        assert_eq!(
            bench.changes(next(Some(cursor))).await,
            ChangesReply::Reset(ResetReason::Lost)
        );
    });
}

#[test]
fn who_stands_at_the_floor_goes_on_when_the_next_life_of_the_store_begins_an_epoch_there() {
    each(|mut bench| async move {
        bench.applied(1, 1, vec![set("a/x", &[("n", 1)])]).await;
        let store = bench.harness.store();
        let erased = store.erase(&space(), Erase::Space, Epoch(77), 1_000, &|_| {}).await;
        erased.expect("it answers");
        drop(store);
        let at = Position::new(Epoch(77), seq(1));
        bench.harness.restart().await;
        let next = bench.applied(2, 1, vec![set("a/y", &[("n", 2)])]).await;
        assert_ne!(next.epoch, at.epoch);
        let store = bench.harness.store();
        let reply = store.log(&space(), at, 10, usize::MAX, None).await;
        let LogReply::Commits { commits, state, .. } = reply.expect("it answers") else {
            panic!("a reset for nothing")
        };
        assert_eq!(commits.len(), 1);
        let begins = Position::new(next.epoch, at.seq);
        assert_eq!(state.lineage.next_epoch(at), Some(begins));
        drop(store);
        let mut docs = Plain::new();
        bench.catch_up(&mut docs, at).await;
        assert_eq!(docs, plain(&[("a/y", &[("n", 2)])]));
    });
}

#[test]
fn a_group_of_which_nothing_is_kept_makes_no_space_and_begins_no_epoch() {
    each(|mut bench| async move {
        for (client, mid) in [(1, 2), (2, 9)] {
            assert_eq!(
                bench.send(head(client, mid), vec![set("a/1", &[])]).await,
                Outcome::ClientUnknown
            );
        }
        let stale = bench
            .plan(vec![(head(1, 1), None, vec![set("a/1", &[("x", 1)])])])
            .await;
        let stale = CommitGroup {
            planned_on: Epoch(77),
            ..stale
        };
        assert_eq!(bench.commit(stale).await, [Outcome::Stale { last_ms: 0 }]);
        assert_eq!(bench.state().await, SpaceState::default());
        let (store, name) = (bench.harness.store(), space());
        let erased = store.erase(&name, Erase::Space, Epoch(78), 1, &|_| panic!("there is none"));
        assert_eq!(erased.await.expect("it answers"), Erased::default());
        drop(store);
        // A refusal is kept, and a repeat counts as a sign of life.
        let refused = vec![
            op("a/1", OpKind::Create(fields(&[]))),
            op("a/1", OpKind::Create(fields(&[]))),
        ];
        assert!(matches!(
            bench.send(head(1, 1), refused.clone()).await,
            Outcome::Refused { .. }
        ));
        let mut known = bench.state().await.lineage;
        assert_eq!(known.0.len(), 1);
        bench.harness.restart().await;
        assert_eq!(
            bench.send(head(3, 2), vec![set("a/1", &[])]).await,
            Outcome::ClientUnknown
        );
        assert_eq!(bench.state().await.lineage, known);
        assert!(matches!(bench.send(head(1, 1), refused).await, Outcome::Duplicate(_)));
        let lineage = bench.state().await.lineage;
        known.0.push(lineage.0[1].clone());
        assert_eq!(lineage, known);
    });
}

#[test]
fn a_clock_that_goes_back_makes_no_client_older_than_it_was() {
    each(|mut bench| async move {
        bench.now_ms = 9_000;
        bench.applied(1, 1, vec![set("a/1", &[("x", 1)])]).await;
        bench.now_ms = 5_000;
        bench.applied(1, 2, vec![set("a/1", &[("x", 2)])]).await;
        bench.harness.forget(&space(), 9_000).await;
        bench.applied(1, 3, vec![set("a/1", &[("x", 3)])]).await;
        bench.harness.forget(&space(), 9_001).await;
        assert_eq!(
            bench.send(head(1, 4), vec![set("a/1", &[])]).await,
            Outcome::ClientUnknown
        );
    });
}
