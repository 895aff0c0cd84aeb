//! Mutations that are sent again.

use super::*;

#[tokio::test(start_paused = true)]
async fn a_repeat_gets_the_first_result_with_cells_read_afresh() {
    let mut rig = Rig::new([], EngineConfig::default());
    let conflicting = |policy| based(Position::START, Some(policy), vec![set("n", &[("a", int(5))])]);
    rig.submit(1, 1, vec![set("n", &[("a", int(1))])]);
    assert_eq!(rig.acked().await, 1);
    let merge = request(2, 1, Ok(conflicting(Policy::Merge)));
    let reject = request(3, 1, Ok(conflicting(Policy::Reject)));
    rig.send(2, merge.clone());
    rig.send(3, reject.clone());
    let (WriteReply::Ack(first), refused) = (rig.answer().await, rig.rejected().await) else {
        panic!("not applied")
    };
    assert_eq!(first.skipped[0].cells[0].value, Some(int(1)));
    rig.submit(1, 2, vec![set("n", &[("a", int(2))])]);
    rig.acked().await;
    rig.send(2, merge);
    let WriteReply::Ack(again) = rig.answer().await else {
        panic!("not applied")
    };
    assert_eq!((again.position, again.skipped.len()), (first.position, 1));
    assert_eq!(again.skipped[0].cells[0].value, Some(int(2)), "as it stands now");
    rig.send(3, reject);
    let again = rig.rejected().await;
    assert_eq!(
        (again.code, again.message, again.at),
        (refused.code, refused.message, refused.at)
    );
    assert_eq!(again.cells[0].cells[0].value, Some(int(2)));
    rig.end().await;
}

#[tokio::test(start_paused = true)]
async fn what_repeats_are_about_is_read_in_parts() {
    const DOCS: u32 = 100;
    let mut rig = Rig::new([], EngineConfig::default());
    let all = |value: i64| (0..DOCS).map(|n| set(&format!("d{n}"), &[("a", int(value))])).collect();
    rig.submit(1, 1, all(1));
    rig.acked().await;
    let merge = request(2, 1, Ok(based(Position::START, Some(Policy::Merge), all(2))));
    rig.send(2, merge.clone());
    let first = rig.answer().await;
    rig.store.reads.lock().clear();
    rig.send(2, merge);
    assert_eq!(rig.answer().await, first);
    let WriteReply::Ack(first) = first else {
        panic!("not applied")
    };
    assert_eq!(
        first.skipped.iter().filter(|unit| unit.cells.len() == 1).count(),
        DOCS as usize
    );
    assert_eq!(*rig.store.reads.lock(), [64, 36], "to answer it, not to plan it");
    rig.end().await;
}

#[tokio::test(start_paused = true)]
async fn another_copy_of_a_client_and_one_without_a_record_are_told_so() {
    let mut rig = Rig::new([], EngineConfig::default());
    rig.submit(1, 1, vec![inc("n", "a", 1)]);
    rig.acked().await;
    let mut clone = request(1, 1, Ok(body(vec![inc("n", "a", 9)])));
    clone.head.key = MutationKey(99);
    rig.send(1, clone);
    assert_eq!(rig.rejected().await.code, Code::ClientCloned);
    rig.submit(7, 5, vec![inc("n", "a", 1)]);
    assert_eq!(rig.rejected().await.code, Code::ClientUnknown);
    let stats = rig.engine.stats();
    assert_eq!(
        (
            stats.refusals.of(Code::ClientCloned),
            stats.refusals.of(Code::ClientUnknown)
        ),
        (1, 1)
    );
    rig.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_repeat_of_what_was_committed_elsewhere_is_published_before_it_is_answered() {
    let mut other = Rig::new([], EngineConfig::default());
    let mut rig = Rig::on(other.store.clone(), EngineConfig::default());
    for mid in 1..=2 {
        other.submit(1, mid, vec![inc("n", "a", 1)]);
        other.acked().await;
    }
    rig.submit(1, 1, vec![inc("n", "a", 1)]);
    assert_eq!(
        rig.event().await,
        Event::Published(vec![1, 2]),
        "nobody has told of them"
    );
    assert_eq!(rig.acked().await, 1);
    rig.submit(1, 2, vec![inc("n", "a", 1)]);
    assert!(matches!(rig.event().await, Event::Answered(..)), "it is known by now");
    rig.end().await;
    other.end().await;
}
