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
