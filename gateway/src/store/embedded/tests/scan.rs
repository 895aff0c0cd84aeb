//! `changes`.

use super::*;
use crate::store::{Cursor, ResetReason};
use std::collections::BTreeSet;
use tidegate_protocol::Collection;

#[tokio::test]
async fn spaces_and_documents_whose_names_begin_alike_do_not_mix() {
    let store = Place::new().open();
    let names = ["a", "a/", "a/b", "a-", "aa", "A"];
    let docs = ["c/d", "c/d/e", "c/d/e/f", "c/dd", "c/d "];
    for (n, name) in names.iter().enumerate() {
        let effects = docs
            .iter()
            .map(|path| set(path, true, &[("d", n as i64), ("d.e\u{0}", 1)]))
            .collect();
        applied(&store, name, item(1, 1, effects)).await;
    }
    applied(&store, "a/", item(1, 2, vec![delete("c/d", &["d", "d.e\u{0}"])])).await;
    for (n, name) in names.iter().enumerate() {
        let (changes, now) = scan(&store, name, everything(None)).await;
        assert_eq!(now.head.seq.get(), if *name == "a/" { 2 } else { 1 });
        let mut replica = Replica::new();
        apply(&mut replica, changes);
        let held: BTreeSet<_> = replica.keys().map(DocPath::as_str).collect();
        let expected: BTreeSet<_> = docs
            .into_iter()
            .filter(|path| (*name, *path) != ("a/", "c/d"))
            .collect();
        assert_eq!(held, expected, "{name}");
        for leaves in replica.values() {
            assert_eq!(leaves.len(), 2);
            assert_eq!(leaves[&field("d")], Value::int(n as i64));
        }
        let cut = store
            .read(&space(name), &[doc("c/d"), doc("c/x")])
            .await
            .expect("answers");
        assert_eq!(
            (cut.docs[0].cells.len(), cut.docs[0].alive(), cut.docs[1].header),
            (2, *name != "a/", None)
        );
    }
    let raised = store.raise_floor(&space("a/"), seq(2)).await.expect("answers");
    assert_eq!(raised, seq(2));
    for name in names {
        let cut = store
            .read(&space(name), &[doc("c/d"), doc("c/d/e")])
            .await
            .expect("answers");
        assert_eq!(
            (cut.docs[0].cells.len(), cut.docs[1].cells.len()),
            (if name == "a/" { 0 } else { 2 }, 2)
        );
    }
}

#[tokio::test]
async fn a_delta_brings_what_changed_and_a_reset_the_whole() {
    let store = Place::new().open();
    let write = async |mid, docs| applied(&store, "s", item(1, mid, docs)).await;
    write(
        1,
        vec![set("c/a", true, &[("x", 1), ("y", 1)]), set("c/b", true, &[("x", 1)])],
    )
    .await;
    let after = write(2, vec![set("c/gone", true, &[("x", 1)])]).await;
    write(3, vec![set("c/a", false, &[("x", 2)]), set("c/new", true, &[("x", 1)])]).await;
    write(4, vec![unset("c/a", &["y"]), delete("c/gone", &["x"])]).await;
    write(5, vec![set("c/new", false, &[("z", 3)]), set("c/b", false, &[])]).await;
    let int = |n| Value::int(n);
    let change = |path, kind| DocChange { doc: doc(path), kind };
    let a = DocChangeKind::Change {
        set: vec![(field("x"), int(2))],
        unset: vec![field("y")],
    };
    let whole =
        |leaves: &[(&str, i64)]| DocChangeKind::Whole(leaves.iter().map(|(p, n)| (field(p), int(*n))).collect());
    let new = whole(&[("x", 1), ("z", 3)]);
    let (delta, _) = scan(&store, "s", everything(Some(after))).await;
    assert_eq!(
        delta,
        [
            change("c/a", a),
            change("c/gone", DocChangeKind::Deleted),
            change("c/new", new.clone())
        ]
    );
    let (reset, now) = scan(&store, "s", everything(None)).await;
    assert_eq!(
        reset,
        [
            change("c/a", whole(&[("x", 2)])),
            change("c/b", whole(&[("x", 1)])),
            change("c/new", new)
        ]
    );
    assert!(scan(&store, "s", everything(Some(now.head))).await.0.is_empty());
    let start = Position::new(Epoch(77), seq(0));
    assert_eq!(
        scan(&store, "s", everything(Some(start))).await.0.len(),
        4,
        "from nothing: deletions too"
    );
}

#[tokio::test]
async fn a_view_that_covers_nothing_still_gets_on() {
    let store = Place::new().open();
    let many = |from: usize| {
        (from..from + 6_000)
            .map(|n| set(&format!("c/{n}"), true, &[]))
            .collect()
    };
    applied(&store, "s", item(1, 1, many(0))).await;
    applied(&store, "s", item(1, 2, many(6_000))).await;
    let other = Collection::parse("d").expect("valid");
    let mut request = everything(None);
    request.view.collections = Some(BTreeSet::from([other]));
    let ChangesReply::Page { docs, cursor, .. } = store.changes(&space("s"), request.clone()).await.expect("answers")
    else {
        panic!("one page visited everything")
    };
    assert!(docs.is_empty());
    assert_eq!(cursor.at, seq(2));
    assert!(
        scan(
            &store,
            "s",
            ChangesRequest {
                cursor: Some(cursor),
                ..request
            }
        )
        .await
        .0
        .is_empty()
    );
}

#[tokio::test]
async fn a_cursor_is_checked_against_request_lineage_and_floor() {
    let place = Place::new();
    let store = place.open();
    for mid in 1..=3 {
        applied(
            &store,
            "s",
            item(1, mid, vec![set(&format!("c/{mid}"), true, &[("x", 1)])]),
        )
        .await;
    }
    let small = ChangesRequest {
        budget: 1,
        ..everything(None)
    };
    let ask = async |request: ChangesRequest| store.changes(&space("s"), request).await.expect("answers");
    let ChangesReply::Page { cursor, docs, head } = ask(small.clone()).await else {
        panic!("not a page")
    };
    assert_eq!((docs.len(), cursor.at, cursor.head), (1, seq(1), head));
    let with = |cursor: Cursor| ChangesRequest {
        cursor: Some(cursor),
        ..small.clone()
    };
    let reset = async |request| match ask(request).await {
        ChangesReply::Reset(reason) => reason,
        other => panic!("no reset: {other:?}"),
    };
    assert_eq!(
        reset(with(Cursor {
            view: ViewId(8),
            ..cursor.clone()
        }))
        .await,
        ResetReason::ForeignCursor
    );
    assert_eq!(
        reset(with(Cursor {
            after: Some(head),
            ..cursor.clone()
        }))
        .await,
        ResetReason::ForeignCursor
    );
    let forged = Position::new(Epoch(99), seq(1));
    assert_eq!(
        reset(with(Cursor {
            head: forged,
            ..cursor.clone()
        }))
        .await,
        ResetReason::Lost
    );
    assert_eq!(
        reset(everything(Some(Position::new(head.epoch, seq(4))))).await,
        ResetReason::Lost
    );

    applied(&store, "s", item(1, 4, vec![delete("c/1", &["x"])])).await;
    store.raise_floor(&space("s"), seq(4)).await.expect("answers");
    assert_eq!(reset(with(cursor)).await, ResetReason::BelowFloor);
    assert_eq!(reset(everything(Some(head))).await, ResetReason::BelowFloor);
    assert_eq!(reset(everything(Some(Position::START))).await, ResetReason::BelowFloor);
    assert_eq!(scan(&store, "s", everything(None)).await.0.len(), 2);
}

/// A writer rewrites, deletes and recreates documents while scans run, in pages of one document or
/// two: whatever happened between pages, at the end the client's state is that of the last page's head.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn at_the_last_page_a_client_holds_exactly_the_space_of_that_head() {
    const DOCS: u64 = 12;
    let store = Arc::new(Place::new().open());
    let history: Arc<Mutex<Vec<Replica>>> = Arc::default();
    history.lock().push(Replica::new());
    let writes = {
        let (store, history) = (store.clone(), history.clone());
        async move {
            let mut truth = Replica::new();
            for n in 1..=1_200_u64 {
                let path = format!("c/{}", n * 7 % DOCS);
                let (id, value) = (doc(&path), Value::int(n as i64));
                let effect = match truth.get_mut(&id) {
                    None => {
                        truth.insert(id, [(field("n"), value)].into());
                        set(&path, true, &[("n", n as i64)])
                    }
                    Some(_) if n % 5 == 0 => {
                        truth.remove(&id);
                        delete(&path, &["n"])
                    }
                    Some(leaves) => {
                        leaves.insert(field("n"), value);
                        set(&path, false, &[("n", n as i64)])
                    }
                };
                // What seq n leaves behind is known before anybody can see it.
                history.lock().push(truth.clone());
                assert_eq!(applied(&store, "s", item(1, n, vec![effect])).await.seq, seq(n));
            }
        }
    };
    let scans = {
        let (store, history) = (store.clone(), history.clone());
        async move {
            let (mut replica, mut at) = (Replica::new(), None);
            for round in 0.. {
                // Every fourth starts over; the others go on from where the one before ended.
                let after = at.filter(|_| round % 4 != 0);
                if after.is_none() {
                    replica.clear();
                }
                let (changes, state) = scan(
                    &store,
                    "s",
                    ChangesRequest {
                        // With the least, a reset is a long one, and begins where one before it did.
                        budget: if round % 3 == 0 { 0 } else { 40 },
                        ..everything(after)
                    },
                )
                .await;
                apply(&mut replica, changes);
                assert_eq!(
                    replica,
                    history.lock()[usize::try_from(state.head.seq.get()).expect("small")],
                    "at {}",
                    state.head
                );
                at = Some(state.head);
                if state.head.seq == seq(1_200) {
                    break;
                }
                tokio::task::yield_now().await;
            }
        }
    };
    tokio::join!(writes, scans);
}

/// What a reset brings, page by page: names, with a `-` before a deleted one; and the seq of each page's cursor.
async fn pages(store: &EmbeddedStore, mut request: ChangesRequest, count: usize) -> (Vec<String>, Vec<u64>, Cursor) {
    let (mut brought, mut seqs) = (Vec::new(), Vec::new());
    for _ in 0..count {
        let reply = store.changes(&space("s"), request.clone()).await.expect("answers");
        let ChangesReply::Page { docs, cursor, .. } = reply else {
            panic!("the end: {reply:?}")
        };
        brought.extend(docs.decode().expect("documents").iter().map(named));
        seqs.push(cursor.at.get());
        request.cursor = Some(cursor);
    }
    (brought, seqs, request.cursor.expect("a page"))
}

fn named(change: &DocChange) -> String {
    let mark = if change.kind == DocChangeKind::Deleted { "-" } else { "" };
    format!("{mark}{}", change.doc)
}

#[tokio::test]
async fn a_long_reset_brings_what_was_there_by_path_and_then_what_was_touched_since() {
    let store = Place::new().open();
    let write = async |mid, effect| applied(&store, "s", item(1, mid, vec![effect])).await;
    for (mid, name) in (1..).zip(["c/e", "c/d", "c/c", "c/b", "c/a"]) {
        write(mid, set(name, true, &[("x", mid as i64)])).await;
    }
    write(6, delete("c/b", &["x"])).await;
    let small = ChangesRequest {
        budget: 0,
        ..everything(None)
    };
    // One document a page; the deleted one was nobody's.
    let (brought, seqs, cursor) = pages(&store, small.clone(), 2).await;
    assert_eq!((brought, seqs), (vec!["c/a".into(), "c/c".into()], vec![0, 0]));
    assert_eq!(cursor.begin, seq(6));
    // One that was brought and one that was not yet are written, one is deleted, one is new.
    write(7, set("c/a", false, &[("y", 7)])).await;
    write(8, set("c/e", false, &[("y", 8)])).await;
    write(9, delete("c/c", &["x"])).await;
    write(10, set("c/aa", true, &[("x", 10)])).await;
    let go_on = ChangesRequest {
        cursor: Some(cursor),
        ..small.clone()
    };
    let (brought, seqs, cursor) = pages(&store, go_on, 4).await;
    assert_eq!(brought, ["c/d", "c/a", "c/e", "-c/c"]);
    assert_eq!(seqs, [0, 7, 8, 9]);
    let rest = ChangesRequest {
        cursor: Some(cursor),
        ..small
    };
    let reply = store.changes(&space("s"), rest).await.expect("answers");
    let ChangesReply::Done { docs, state, .. } = reply else {
        panic!("more: {reply:?}")
    };
    assert_eq!(
        (docs.last_doc(), docs.len(), state.head.seq),
        (Some("c/aa"), 1, seq(10))
    );
}

#[tokio::test]
async fn a_long_reset_is_sent_the_pages_of_one_before_it_and_then_what_was_touched_since() {
    let store = Place::new().open();
    let write = async |mid, effect| applied(&store, "s", item(1, mid, vec![effect])).await;
    for (mid, name) in (1..).zip(["c/a", "c/b", "c/c"]) {
        write(mid, set(name, true, &[("x", mid as i64)])).await;
    }
    let small = ChangesRequest {
        budget: 0,
        ..everything(None)
    };
    let first = async || {
        let reply = store.changes(&space("s"), small.clone()).await.expect("answers");
        let ChangesReply::Page { docs, cursor, .. } = reply else {
            panic!("three documents")
        };
        (docs, cursor)
    };
    let (brought, _) = scan(&store, "s", small.clone()).await;
    assert_eq!(brought.len(), 3);
    write(4, set("c/a", false, &[("x", 4)])).await;
    write(5, delete("c/b", &["x"])).await;
    let ((one, cursor), (other, _)) = (first().await, first().await);
    assert!(Arc::ptr_eq(&one, &other), "it was read anew");
    assert_eq!((cursor.begin, cursor.head.seq), (seq(3), seq(5)));
    let (brought, now) = scan(&store, "s", small.clone()).await;
    let brought: Vec<_> = brought.iter().map(named).collect();
    assert_eq!(brought, ["c/a", "c/b", "c/c", "c/a", "-c/b"]);
    assert_eq!(now.head.seq, seq(5));

    // What is below the floor may have gone without a trace.
    store.raise_floor(&space("s"), seq(5)).await.expect("answers");
    assert_eq!(first().await.1.begin, seq(5));
    let (brought, _) = scan(&store, "s", small).await;
    assert_eq!(brought.iter().map(named).collect::<Vec<_>>(), ["c/a", "c/c"]);
}

#[tokio::test]
async fn a_long_reset_of_some_collections_walks_over_these_alone() {
    let store = Place::new().open();
    let names = ["a/1", "b-/1", "b/1", "b/1/b/1", "b/1/c/1", "b/2", "ba/1", "c/1", "d/1"];
    // As large as to make the reset a long one whose page has room for all.
    let effects = names.map(|name| DocEffect {
        size: 1_000,
        ..set(name, true, &[("x", 1)])
    });
    applied(&store, "s", item(1, 1, effects.to_vec())).await;
    // So many that what lies between them is walked over, too.
    let none: Vec<_> = (0..70).map(|n| format!("b{n}")).collect();
    let many = none.iter().map(String::as_str).chain(["b", "d"]).collect();
    for (collections, covered) in [
        (many, vec!["b/1", "b/2", "d/1"]),
        (vec!["b"], vec!["b/1", "b/2"]),
        (vec!["b/1/b"], vec!["b/1/b/1"]),
        (
            vec!["b", "b-", "b/1/b", "d"],
            vec!["b-/1", "b/1", "b/1/b/1", "b/2", "d/1"],
        ),
        (vec!["e"], vec![]),
        (vec![], vec![]),
    ] {
        for budget in [0, 1_000] {
            let mut request = ChangesRequest {
                budget,
                ..everything(None)
            };
            let parsed = collections.iter().map(|name| Collection::parse(name).expect("valid"));
            request.view.collections = Some(parsed.collect());
            let (changes, _) = scan(&store, "s", request).await;
            let brought: Vec<_> = changes.iter().map(|change| change.doc.as_str()).collect();
            assert_eq!(brought, covered, "{collections:?}");
        }
    }
}
