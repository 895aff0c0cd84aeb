//! What is older than the retention goes, alike from every store that collects by itself.

use super::*;

const DAY: u64 = 24 * 60 * 60 * 1_000;

#[test]
fn what_is_older_than_the_retention_is_collected_and_what_is_younger_stays() {
    each(|mut bench| async move {
        bench
            .applied(1, 1, vec![set("a/1", &[("x", 1), ("y", 1)]), set("a/2", &[("x", 1)])])
            .await;
        // A mark of time a minute.
        bench.now_ms += 60_000;
        bench
            .applied(
                1,
                2,
                vec![op("a/2", OpKind::Delete), op("a/1", OpKind::Unset(vec![path("y")]))],
            )
            .await;
        bench.now_ms = 50 * DAY;
        let young = bench.applied(2, 1, vec![set("a/3", &[("x", 3), ("y", 3)])]).await;
        bench
            .applied(2, 2, vec![op("a/3", OpKind::Unset(vec![path("y")]))])
            .await;
        // After 91 days of the first two, and 41 of the others.
        let Some(collected) = bench.harness.collect(91 * DAY).await else {
            return;
        };
        assert_eq!((collected.spaces, collected.floors, collected.damaged), (1, 1, 0));
        // A field, and a document.
        assert_eq!((collected.tombstones, collected.clients), (2, 1));
        assert_eq!(collected.log, 4, "commits are kept for a week");
        let state = bench.state().await;
        assert_eq!((state.floor, state.usage.docs), (seq(2), 2));
        bench.now_ms = 91 * DAY;
        assert_eq!(
            bench.send(head(1, 3), vec![set("a/1", &[("x", 2)])]).await,
            Outcome::ClientUnknown
        );
        bench.applied(2, 3, vec![set("a/1", &[("x", 3)])]).await;
        let mut docs = plain(&[("a/1", &[("x", 1)]), ("a/3", &[("x", 3), ("y", 3)])]);
        bench.catch_up(&mut docs, young).await;
        assert_eq!(docs, plain(&[("a/1", &[("x", 3)]), ("a/3", &[("x", 3)])]));
        // There is nothing left to do.
        let again = bench.harness.collect(91 * DAY).await.expect("it did before");
        assert_eq!((again.floors, again.tombstones, again.clients), (0, 0, 0));
    });
}
