//! Documents kept from one group for the next: what is not read again, and what has to be.

use super::queue::Rig;
use super::*;
use crate::engine::EngineConfig;
use crate::store::Erase;

/// An engine that has begun a space, so that what it writes next is kept; the first commit is the second's.
async fn begun() -> Rig {
    let mut rig = Rig::new([], EngineConfig::default());
    rig.submit(1, 1, vec![inc("first", "a", 1)]);
    assert_eq!(rig.acked().await, 1);
    rig.store.reads.lock().clear();
    rig
}

/// Another node on the same store.
fn beside(rig: &Rig) -> Rig {
    Rig::on(rig.store.clone(), EngineConfig::default())
}

async fn value(rig: &Rig, name: &str) -> Option<Value> {
    let cut = rig.store.model.read(&space(), &[doc(name)]).await.expect("it answers");
    cut.docs[0].cells[&field("a")].value.clone()
}

#[tokio::test(start_paused = true)]
async fn what_a_group_has_left_is_not_read_again() {
    let mut rig = begun().await;
    for mid in 2..6 {
        rig.submit(1, mid, vec![inc("n", "a", 1)]);
        assert_eq!(rig.acked().await, mid);
    }
    assert_eq!(value(&rig, "n").await, Some(int(4)));
    assert_eq!(*rig.store.reads.lock(), [1], "once");
    // Others are read, and what is kept stays so.
    rig.submit(1, 6, vec![inc("n", "a", 1), inc("m", "a", 1)]);
    rig.submit(2, 1, vec![inc("m", "a", 1)]);
    assert_eq!((rig.acked().await, rig.acked().await), (6, 7));
    assert_eq!(*rig.store.reads.lock(), [1, 1]);
    assert_eq!(
        (value(&rig, "n").await, value(&rig, "m").await),
        (Some(int(5)), Some(int(2)))
    );
    assert_eq!(rig.engine.stats().stale_replans.get(), 0);
    rig.end().await;
}

#[tokio::test(start_paused = true)]
async fn what_another_node_has_written_is_found_by_the_store_or_by_the_next_read() {
    let mut rig = begun().await;
    let mut other = beside(&rig);
    rig.submit(1, 2, vec![inc("n", "a", 1)]);
    rig.acked().await;
    other.submit(2, 1, vec![inc("n", "a", 10)]);
    other.acked().await;
    // Nothing is read, so the store says it.
    rig.submit(1, 3, vec![inc("n", "a", 1)]);
    assert_eq!(rig.acked().await, 4);
    assert_eq!(rig.engine.stats().stale_replans.get(), 1);
    other.submit(2, 2, vec![inc("n", "a", 10)]);
    other.acked().await;
    // What is read for another document shows it.
    rig.submit(1, 4, vec![inc("n", "a", 1), inc("m", "a", 1)]);
    assert_eq!(rig.acked().await, 6);
    assert_eq!(rig.engine.stats().stale_replans.get(), 1);
    assert_eq!(value(&rig, "n").await, Some(int(23)));
    rig.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_group_that_did_not_follow_what_was_known_leaves_nothing() {
    let mut rig = begun().await;
    let mut other = beside(&rig);
    rig.submit(1, 2, vec![inc("n", "a", 1)]);
    rig.acked().await;
    other.submit(2, 1, vec![inc("m", "a", 1)]);
    other.acked().await;
    // The document is as it was, and so this is planned right; but something else has changed.
    rig.submit(1, 3, vec![inc("n", "a", 1)]);
    assert_eq!(rig.acked().await, 4);
    assert!(rig.engine.hot.take(&space()).is_none());
    // Nor does a repeat, which is planned as if it were new.
    rig.submit(1, 4, vec![inc("n", "a", 1)]);
    assert_eq!(rig.acked().await, 5);
    rig.submit(1, 4, vec![inc("n", "a", 1)]);
    assert_eq!(rig.acked().await, 5);
    assert!(rig.engine.hot.take(&space()).is_none());
    assert_eq!(value(&rig, "n").await, Some(int(3)));
    rig.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_position_that_another_node_gave_is_looked_up() {
    let mut rig = begun().await;
    let mut other = beside(&rig);
    rig.submit(1, 2, vec![inc("n", "a", 1)]);
    rig.acked().await;
    other.submit(2, 1, vec![inc("m", "a", 1)]);
    other.acked().await;
    let head = rig.store.positions(&[space()]).await.expect("it answers")[0].head;
    // Read at the other node after its commit: nothing has changed since.
    rig.submit(1, 3, vec![since(inc("n", "a", 1), head)]);
    assert_eq!(rig.acked().await, 4);
    rig.end().await;
}

#[tokio::test(start_paused = true)]
async fn of_a_space_that_is_erased_nothing_is_kept() {
    let mut rig = begun().await;
    rig.submit(1, 2, vec![inc("n", "a", 1)]);
    rig.acked().await;
    let kept = rig.engine.hot.take(&space()).expect("it was just written");
    rig.engine.hot.put(&space(), kept);
    rig.engine.erase(&space(), Erase::Space).await.expect("it is erased");
    assert!(rig.engine.hot.take(&space()).is_none());
    rig.end().await;
}
