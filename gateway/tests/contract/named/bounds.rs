//! Many of something at once.

use super::on_redis::{bench, run};
use super::*;

/// Reads a scan to its end. Returns what it brought, and how many pages there were.
async fn pages(bench: &Bench, after: Option<Position>, view: View, budget: usize) -> (Vec<String>, usize) {
    let mut scan = ChangesRequest {
        view,
        budget,
        ..request(after)
    };
    let mut brought = vec![];
    for n in 1..1_000 {
        let (docs, cursor) = match bench.changes(scan.clone()).await {
            ChangesReply::Page { docs, cursor, .. } => (docs, Some(cursor)),
            ChangesReply::Done { docs, .. } => (docs, None),
            other => panic!("{other:?}"),
        };
        let docs = docs.decode().expect("documents");
        brought.extend(docs.iter().map(|change| change.doc.as_str().to_owned()));
        match cursor {
            Some(_) => scan.cursor = cursor,
            None => return (brought, n),
        }
    }
    panic!("it does not end")
}

#[test]
fn a_mutation_may_touch_more_documents_than_a_page_holds() {
    each(|mut bench| async move {
        for (mid, count) in [(1, 1_500), (2, 5_000)] {
            let before = bench.state().await.head;
            // Paths that end where others go on, and bytes above those of letters.
            let name = |n: u64| match n % 3 {
                0 => format!("many/{n}"),
                1 => format!("many/{mid}/\u{e9}{n}"),
                _ => format!("some/{mid}-{n}"),
            };
            let ops = (0..count).map(|n| op(&name(n), OpKind::Replace(fields(&[("x", 1)]))));
            let at = bench.applied(1, mid, ops.collect()).await;
            let mut all: Vec<_> = (0..count).map(name).collect();
            all.sort();
            let (brought, count_of_pages) = pages(&bench, Some(before), view(None), 20_000).await;
            assert!(count_of_pages > 1);
            assert_eq!(brought, all, "each once, in order");
            let some = all.iter().filter(|name| name.starts_with("some/")).cloned();
            let (brought, _) = pages(&bench, Some(before), view(Some(&["some"])), 20_000).await;
            assert_eq!(brought, some.collect::<Vec<_>>());
            let (brought, _) = pages(&bench, None, view(None), 20_000).await;
            assert!(brought.len() >= all.len());
            // One that the scan has behind it moves ahead, and is met again.
            let cursor = match bench
                .changes(ChangesRequest {
                    budget: 2_000,
                    ..request(Some(before))
                })
                .await
            {
                ChangesReply::Page { cursor, .. } => cursor,
                other => panic!("{other:?}"),
            };
            assert_eq!(cursor.at, at.seq);
            bench.applied(2, mid, vec![set(cursor.doc.as_str(), &[("y", 1)])]).await;
            let rest = ChangesRequest {
                cursor: Some(cursor.clone()),
                budget: usize::MAX,
                ..request(Some(before))
            };
            match bench.changes(rest).await {
                ChangesReply::Done { docs, .. } | ChangesReply::Page { docs, .. } => {
                    let docs = docs.decode().expect("documents");
                    let next = all
                        .iter()
                        .find(|name| name.as_str() > cursor.doc.as_str())
                        .expect("more");
                    assert_eq!(docs[0].doc.as_str(), next);
                }
                other => panic!("{other:?}"),
            }
        }
    });
}

#[test]
fn a_group_may_have_as_many_items_as_may_wait() {
    each(|mut bench| async move {
        const ITEMS: u64 = 10_000;
        let ops = |n: u64| vec![set(&format!("a/{}", n % 100), &[("x", 1)])];
        let many = (0..ITEMS).map(|n| (head(1 + n, 1), None, ops(n)));
        let group = bench.plan(many.collect()).await;
        for is_first in [true, false] {
            let outcomes = bench.commit(group.clone()).await;
            assert_eq!(outcomes.len() as u64, ITEMS);
            for (outcome, n) in outcomes.iter().zip(1..) {
                match outcome {
                    Outcome::Applied { position, .. } if is_first => assert_eq!(position.seq, seq(n)),
                    Outcome::Duplicate(kept) if !is_first => assert_eq!(kept.position.seq, seq(n)),
                    other => panic!("{n}: {other:?}"),
                }
            }
        }
    });
}

#[test]
fn of_a_log_with_large_commits_not_much_more_is_read_than_is_sent() {
    run(async |server| {
        const BYTES: usize = 256 << 10;
        let mut bench = bench(&server).await;
        let text = Value::str(&"x".repeat(250_000));
        // Small ones say nothing of what comes behind them.
        for mid in 1..=8 {
            bench.applied(2, mid, vec![set("a/2", &[("x", 1)])]).await;
        }
        for mid in 1..=40 {
            let large = Fields::new([(path("x"), text.clone())], &Limits::default()).expect("valid");
            bench.applied(1, mid, vec![op("a/1", OpKind::Set(large))]).await;
        }
        let epoch = bench.state().await.head.epoch;
        let store = bench.harness.store();
        for (after, few) in [(0, 10), (8, 2)] {
            // Lua keeps what it has read for a while.
            server.command(&["SCRIPT", "FLUSH"]);
            let log = store
                .log(&space(), Position::new(epoch, seq(after)), 1_000, BYTES, None)
                .await;
            match log.expect("it answers") {
                LogReply::Commits { commits, .. } => assert_eq!(commits.len(), few),
                other => panic!("{other:?}"),
            }
            let held: usize = server.info("memory", "used_memory_lua").parse().expect("a number");
            assert!(held < 4 * BYTES, "{held} bytes after {after}");
        }
    });
}
