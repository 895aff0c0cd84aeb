//! The writer: grouping, bounds, mids at the edges, trimming.

use super::*;
use crate::store::{Cell, ConflictDone, ConflictEntry, KEPT_RESULTS, Kept, LogReply, ResetReason, Stamp};
use futures_util::future::join_all;
use tidegate_protocol::Code;

#[tokio::test]
async fn groups_that_wait_share_a_sync() {
    let place = Place {
        durability: Durability::Fsync,
        ..Place::new()
    };
    let store = place.open();
    applied(&store, "s", item(1, 1, vec![])).await;
    let before = store.stats();
    let planned_on = state(&store, "s").await.lineage.last_epoch();
    let groups = (0..300).map(|n| {
        let items = vec![item(100 + n, 1, vec![set(&format!("c/{n}"), true, &[("x", 1)])])];
        store.commit(CommitGroup {
            space: space("s"),
            planned_on,
            fresh: Epoch(9),
            now_ms: 1_000,
            items,
        })
    });
    let mut seqs: Vec<u64> = Vec::new();
    for answer in join_all(groups).await {
        match &answer.expect("answers").outcomes[0] {
            Outcome::Applied { position, .. } => seqs.push(position.seq.get()),
            other => panic!("not applied: {other:?}"),
        }
    }
    assert_eq!(seqs, (2..302).collect::<Vec<_>>());
    let after = store.stats();
    assert_eq!(
        (after.groups - before.groups, after.commits - before.commits),
        (300, 300)
    );
    assert_eq!(after.syncs - before.syncs, after.batches - before.batches);
    assert!(
        after.syncs - before.syncs <= 30,
        "{} syncs for 300 groups",
        after.syncs - before.syncs
    );
}

#[tokio::test]
async fn durability_memory_does_not_sync() {
    let store = Place::new().open();
    applied(&store, "s", item(1, 1, vec![])).await;
    assert_eq!((store.stats().syncs, store.stats().batches), (0, 1));
}

#[tokio::test]
async fn a_full_queue_refuses_at_once_and_loses_nothing_that_it_took() {
    let place = Place {
        durability: Durability::Fsync,
        ..Place::new()
    };
    let store = open_bounded(place.dir.path(), place.options(), 4, 1 << 20).expect("opens");
    let groups = (0..2_000).map(|n| commit_at(&store, "s", 1_000, vec![item(n, 1, vec![])]));
    // The first commit mints, so later ones may be stale: what counts is that each gets an answer.
    let answers = join_all(groups).await;
    let refused = answers
        .iter()
        .filter(|a| matches!(a, Err(StoreError::Unavailable(_))))
        .count();
    let outcomes = answers.iter().flatten().flat_map(|c| &c.outcomes);
    let applied = outcomes.filter(|o| matches!(o, Outcome::Applied { .. })).count();
    assert!(refused > 0);
    assert_eq!(store.stats().refused, refused as u64);
    assert_eq!(state(&store, "s").await.head.seq.get(), applied as u64);
    assert!(one(&store, "s", item(5_000, 1, vec![])).await != Outcome::ClientUnknown);
}

#[tokio::test]
async fn bytes_in_line_are_bounded_too_but_one_group_always_passes() {
    let place = Place {
        durability: Durability::Fsync,
        ..Place::new()
    };
    let store = open_bounded(place.dir.path(), place.options(), 1_024, 1_000).expect("opens");
    applied(
        &store,
        "s",
        item(
            1,
            1,
            (0..100)
                .map(|n| set(&format!("c/{n}"), true, &[("a long path", 1)]))
                .collect(),
        ),
    )
    .await;
    let planned_on = state(&store, "s").await.lineage.last_epoch();
    let groups = (10..200).map(|n| {
        let items = vec![item(n, 1, vec![])];
        store.commit(CommitGroup {
            space: space("s"),
            planned_on,
            fresh: Epoch(9),
            now_ms: 1_000,
            items,
        })
    });
    assert!(join_all(groups).await.iter().any(Result::is_err));
    applied(&store, "s", item(1, 2, vec![])).await;
}

#[tokio::test]
async fn conflicts_to_be_logged_count_among_the_bytes_in_line() {
    let place = Place {
        durability: Durability::Fsync,
        ..Place::new()
    };
    let store = open_bounded(place.dir.path(), place.options(), 1_024, 64 << 10).expect("opens");
    let groups = (0..40).map(|n| {
        let conflict = ConflictEntry {
            doc: doc("c/1"),
            path: None,
            theirs: vec![],
            ours: Some(Value::str(&"x".repeat(30 << 10))),
            done: ConflictDone::Rejected,
        };
        let refused = Prepared {
            action: Action::Refuse {
                code: Code::Conflict,
                conflicts: vec![conflict],
                detail: Bytes::new(),
            },
            ..item(100 + n, 1, vec![])
        };
        store.commit(CommitGroup {
            space: space("s"),
            planned_on: Epoch(0),
            fresh: Epoch(9),
            now_ms: 1_000,
            items: vec![refused],
        })
    });
    let refused = join_all(groups).await.iter().filter(|answer| answer.is_err()).count();
    assert!(refused > 0, "40 conflicts of 30 KiB fit in 64 KiB");
    assert_eq!(store.stats().refused, refused as u64);
}

#[tokio::test]
async fn items_of_a_group_build_on_each_other_only_as_planned() {
    let store = Place::new().open();
    let on = |at, item: Prepared| Prepared {
        expects: vec![(doc("c/a"), at)],
        ..item
    };
    let items = vec![
        on(Version::Absent, item(1, 1, vec![set("c/a", true, &[("x", 1)])])),
        on(Version::Item(0), item(2, 1, vec![set("c/a", false, &[("x", 2)])])),
        on(Version::Item(0), item(3, 1, vec![set("c/a", false, &[("x", 3)])])),
        on(Version::Item(2), item(4, 1, vec![set("c/a", false, &[("x", 4)])])),
        on(Version::Seq(seq(2)), item(5, 1, vec![set("c/a", false, &[("x", 5)])])),
        on(Version::Absent, item(6, 1, vec![])),
    ];
    let outcomes = commit_at(&store, "s", 1_000, items).await.expect("answers").outcomes;
    let told: Vec<_> = outcomes.iter().map(|o| matches!(o, Outcome::Applied { .. })).collect();
    assert_eq!(told, [true, true, false, false, true, false]);
    assert!(
        outcomes
            .iter()
            .all(|o| matches!(o, Outcome::Applied { .. } | Outcome::Stale { last_ms: 1_000 }))
    );
    let cut = store.read(&space("s"), &[doc("c/a")]).await.expect("answers");
    let leaves: Vec<_> = cut.docs[0]
        .leaves()
        .map(|(path, value)| (path.to_string(), value.clone()))
        .collect();
    assert_eq!(leaves, [("x".to_owned(), Value::int(5))]);
    assert_eq!(
        scan(&store, "s", everything(None)).await.0.len(),
        1,
        "the index holds a document once"
    );
}

#[tokio::test]
async fn time_never_goes_back_and_a_plan_that_used_it_is_made_again() {
    let store = Place::new().open();
    commit_at(&store, "s", 5_000, vec![item(1, 1, vec![])])
        .await
        .expect("answers");
    let late = commit_at(&store, "s", 4_000, vec![item(1, 2, vec![])])
        .await
        .expect("answers");
    assert!(
        matches!(late.outcomes[0], Outcome::Applied { at: 5_000, .. }),
        "{late:?}"
    );
    let mut now = item(1, 3, vec![]);
    if let Action::Apply(effects) = &mut now.action {
        effects.now_ms = Some(4_999);
    }
    let told = commit_at(&store, "s", 4_999, vec![now.clone()]).await.expect("answers");
    assert_eq!(told.outcomes[0], Outcome::Stale { last_ms: 5_000 });
    if let Action::Apply(effects) = &mut now.action {
        effects.now_ms = Some(5_000);
    }
    let told = commit_at(&store, "s", 4_999, vec![now]).await.expect("answers");
    assert!(matches!(told.outcomes[0], Outcome::Applied { at: 5_000, .. }));
}

#[tokio::test]
async fn a_refusal_consumes_the_mid_and_its_result_is_kept() {
    let store = Place::new().open();
    let head = applied(&store, "s", item(1, 1, vec![])).await;
    let action = Action::Refuse {
        code: Code::Conflict,
        conflicts: vec![],
        detail: Bytes::from_static(b"why"),
    };
    let refused = Prepared {
        action,
        ..item(1, 2, vec![])
    };
    assert_eq!(
        one(&store, "s", refused.clone()).await,
        Outcome::Refused { position: head }
    );
    let kept = Kept {
        refused: Some(Code::Conflict),
        position: head,
        detail: Bytes::from_static(b"why"),
    };
    assert_eq!(one(&store, "s", refused).await, Outcome::Duplicate(kept));
    assert_eq!(applied(&store, "s", item(1, 3, vec![])).await.seq, seq(2));
}

#[tokio::test]
async fn results_are_kept_for_the_last_mutations_of_a_client() {
    let store = Place::new().open();
    for mid in 1..=KEPT_RESULTS + 2 {
        applied(&store, "s", item(1, mid, vec![])).await;
    }
    for mid in 1..=2 {
        assert_eq!(
            one(&store, "s", item(1, mid, vec![])).await,
            Outcome::ClientUnknown,
            "{mid}"
        );
    }
    for mid in [3, KEPT_RESULTS + 2] {
        assert!(
            matches!(one(&store, "s", item(1, mid, vec![])).await, Outcome::Duplicate(_)),
            "{mid}"
        );
    }
}

#[tokio::test]
async fn a_record_lives_as_long_after_the_last_write_or_repeat_as_retention_says() {
    let store = Place::forgetful().open();
    let at = async |now, item| {
        commit_at(&store, "s", now, vec![item])
            .await
            .expect("answers")
            .outcomes
            .remove(0)
    };
    assert!(matches!(at(1_000, item(1, 1, vec![])).await, Outcome::Applied { .. }));
    assert!(
        matches!(at(2_000, item(1, 1, vec![])).await, Outcome::Duplicate(_)),
        "renews the record"
    );
    assert!(matches!(at(3_000, item(1, 2, vec![])).await, Outcome::Applied { .. }));
    assert_eq!(at(4_001, item(1, 3, vec![])).await, Outcome::ClientUnknown);
    assert_eq!(
        at(4_001, item(1, 1, vec![])).await,
        Outcome::ClientUnknown,
        "first is too old"
    );
    let again = Prepared {
        first: Some(4_000),
        ..item(1, 1, vec![])
    };
    assert!(matches!(at(4_001, again).await, Outcome::Applied { .. }));
}

#[tokio::test]
async fn the_log_keeps_a_suffix_within_its_bounds() {
    let bounds = [
        Retention {
            log_commits: 10,
            ..Retention::default()
        },
        // A payload of an empty change is 22 bytes.
        Retention {
            log_bytes: 225,
            ..Retention::default()
        },
    ];
    for retention in bounds {
        let store = Place::keeping(retention).open();
        for mid in 1..=15 {
            applied(&store, "s", item(1, mid, vec![])).await;
        }
        commit_at(&store, "s", 1_000, (16..=30).map(|mid| item(1, mid, vec![])).collect())
            .await
            .expect("answers");
        let head = state(&store, "s").await.head;
        let after = |n| Position::new(head.epoch, seq(n));
        let log = async |n| {
            store
                .log(&space("s"), after(n), 100, 1 << 20, Some(Writer(1)))
                .await
                .expect("answers")
        };
        assert_eq!(log(19).await, LogReply::Trimmed);
        let LogReply::Commits { commits, last_mid, .. } = log(20).await else {
            panic!("no commits")
        };
        assert_eq!(
            commits.iter().map(|c| c.seq.get()).collect::<Vec<_>>(),
            (21..=30).collect::<Vec<_>>()
        );
        assert_eq!(last_mid, Mid::new(30));
        assert!(matches!(log(30).await, LogReply::Commits { commits, .. } if commits.is_empty()));
        assert_eq!(log(31).await, LogReply::Reset(ResetReason::Lost));
    }
}

#[test]
fn a_conflict_counts_the_bytes_that_it_is_stored_in() {
    let cell = |value| Cell {
        stamp: Stamp {
            seq: seq(1),
            writer: Writer(2),
        },
        value,
    };
    for (path, ours) in [(None, None), (Some(field("a.b")), Some(Value::int(70_000)))] {
        let record = ConflictRecord {
            position: Position::START,
            at: 1,
            writer: Writer(1),
            mid: Mid::ZERO.next(),
            entry: ConflictEntry {
                doc: doc("c/a"),
                path,
                theirs: vec![(field("x"), cell(None)), (field("yy"), cell(Some(Value::str("text"))))],
                ours,
                done: ConflictDone::Skipped,
            },
        };
        assert_eq!(record.size(), records::Record::encode(&record).len() as u64);
    }
}
