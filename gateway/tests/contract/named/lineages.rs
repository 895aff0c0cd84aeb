//! What the lineage remembers, and what follows from it.

use super::*;

#[test]
fn commits_of_a_forgotten_epoch_are_not_handed_out_one_by_one() {
    each(|mut bench| async move {
        bench.applied(1, 1, vec![set("a/x", &[("n", 1)])]).await;
        bench.harness.restart();
        let second = bench.applied(1, 2, vec![set("a/x", &[("n", 2)])]).await;
        bench.harness.raise_floor(&space(), seq(1)).await;
        let store = bench.harness.store();
        // Both commits are in the log; but who is cut off after the first would stand nowhere.
        for (after, named) in [(Position::START, false), (Position::new(second.epoch, seq(1)), true)] {
            let reply = store
                .log(&space(), after, 10, usize::MAX, None)
                .await
                .expect("it answers");
            match reply {
                LogReply::Commits { commits, .. } => assert!(named && commits.len() == 1, "{after}: {commits:?}"),
                LogReply::Trimmed => assert!(!named, "{after}"),
                other => panic!("{after}: {other:?}"),
            }
        }
    });
}
