//! Documents in one record and in many, results in runs, and what format 2 had in their places.

use super::super::check::walk;
use super::*;
use crate::store::{KEPT_RESULTS, Kept};
use disk::{Look as _, Table};
use document::{Form, PACKED_BYTES};

/// Writes cells whose names are letters: so many bytes of text, or a tombstone. `size` is the document's afterwards.
fn cells(path: &str, born: bool, size: usize, fields: &[(&str, Option<usize>)]) -> DocEffect {
    let value = |bytes: &Option<usize>| bytes.map(|bytes| Value::str(&"t".repeat(bytes)));
    DocEffect {
        cells: fields.iter().map(|(path, bytes)| (field(path), value(bytes))).collect(),
        size: size as u64,
        ..set(path, born, &[])
    }
}

/// What a field of one letter with so many bytes of text takes, which are few, or more than 255.
fn bytes(text: usize) -> usize {
    match text {
        0..32 => 2 + text,
        256.. => 4 + text,
        _ => unreachable!("not used here"),
    }
}

fn sound(store: &EmbeddedStore) {
    let mut all = Vec::new();
    walk(&database(store).cut(), &mut |violation| all.push(violation)).expect("reads");
    assert!(all.is_empty(), "{all:?}");
}

/// Whether a document is packed, and how many keys it has in the tables of cells and of names.
fn form(store: &EmbeddedStore, path: &str) -> (bool, usize, usize) {
    let (disk, key) = (database(store), keys::doc(&space("s"), &doc(path)));
    let cut = disk.cut();
    let record = cut.get(Table::Cells, &key).expect("reads").expect("is there");
    let is_packed = matches!(document::parse(&record).expect("a record").form, Form::Packed(_));
    let [cells, names] = [Table::Cells, Table::Fields].map(|table| {
        let start = std::ops::Bound::Included(key.clone());
        cut.range(table, start, keys::after(key.clone())).count()
    });
    (is_packed, cells, names)
}

const PACKED: (bool, usize, usize) = (true, 1, 0);

fn spread(names: usize) -> (bool, usize, usize) {
    (false, 1 + names, names)
}

async fn held(store: &EmbeddedStore, path: &str) -> Vec<(String, Option<usize>)> {
    let cut = store.read(&space("s"), &[doc(path)]).await.expect("answers");
    let length = |value: &Value| value.as_bytes().len();
    let cells = cut.docs[0].cells.iter();
    cells
        .map(|(path, cell)| (path.to_string(), cell.value.as_ref().map(length)))
        .collect()
}

/// What a client lacks that is at this position, of the one document: what is set, and what is unset.
async fn delta(store: &EmbeddedStore, after: Position) -> (Vec<String>, Vec<String>) {
    let (mut changes, _) = scan(store, "s", everything(Some(after))).await;
    let names = |paths: Vec<FieldPath>| paths.iter().map(ToString::to_string).collect();
    match changes.pop().expect("it has changed").kind {
        DocChangeKind::Change { set, unset } => (names(set.into_iter().map(|(path, _)| path).collect()), names(unset)),
        other => panic!("no change: {other:?}"),
    }
}

fn named(names: &[&str]) -> Vec<String> {
    names.iter().map(ToString::to_string).collect()
}

#[tokio::test]
async fn a_document_is_one_record_until_it_outgrows_that_and_again_when_it_has_come_down() {
    let place = Place::new();
    let mut store = place.open();
    let write = async |store: &EmbeddedStore, mid, effect| applied(store, "s", item(1, mid, vec![effect])).await;
    let small = 2 * bytes(4);
    let one = write(&store, 1, cells("c/a", true, small, &[("y", Some(4)), ("x", Some(4))])).await;
    assert_eq!(form(&store, "c/a"), PACKED);
    sound(&store);

    // Just as large as a record may be, and a byte more.
    let room = PACKED_BYTES - 57 - 2 * (21 + 5) - (21 + 3);
    let full = cells("c/a", false, small + bytes(room), &[("m", Some(room))]);
    let two = write(&store, 2, full).await;
    assert_eq!(form(&store, "c/a"), PACKED);
    assert_eq!(delta(&store, one).await, (named(&["m"]), vec![]));
    sound(&store);
    let over = cells("c/a", false, small + bytes(room + 1), &[("m", Some(room + 1))]);
    let three = write(&store, 3, over).await;
    assert_eq!(form(&store, "c/a"), spread(3));
    assert_eq!(delta(&store, one).await, (named(&["m"]), vec![]));
    assert_eq!(delta(&store, two).await, (named(&["m"]), vec![]));
    sound(&store);

    // One of its cells, and a new one; it stays as it is where it is only somewhat smaller.
    let more = cells(
        "c/a",
        false,
        small + bytes(1_000) + bytes(0),
        &[("m", Some(1_000)), ("a", Some(0))],
    );
    let four = write(&store, 4, more).await;
    assert_eq!(form(&store, "c/a"), spread(4));
    assert_eq!(delta(&store, three).await, (named(&["a", "m"]), vec![]));
    assert_eq!(delta(&store, two).await, (named(&["a", "m"]), vec![]));
    sound(&store);
    store.close();
    store = place.open();

    let less = cells("c/a", false, small + bytes(0), &[("m", None)]);
    let five = write(&store, 5, less).await;
    assert_eq!(form(&store, "c/a"), PACKED);
    assert_eq!(delta(&store, four).await, (vec![], named(&["m"])));
    assert_eq!(delta(&store, one).await, (named(&["a"]), named(&["m"])));
    let all = [("a", Some(1)), ("m", None), ("x", Some(5)), ("y", Some(5))];
    let all = all.map(|(name, bytes)| (name.to_owned(), bytes));
    assert_eq!(held(&store, "c/a").await, all);
    sound(&store);

    store.raise_floor(&space("s"), five.seq).await.expect("answers");
    assert_eq!(form(&store, "c/a"), PACKED);
    assert_eq!(held(&store, "c/a").await, [&all[..1], &all[2..]].concat());
    sound(&store);
    // As a writer that knows nothing finds it.
    store.close();
    store = place.open();
    write(&store, 6, cells("c/a", false, small, &[("a", None)])).await;
    assert_eq!(held(&store, "c/a").await[0], ("a".to_owned(), None));
    sound(&store);
}

#[tokio::test]
async fn what_outgrows_its_record_and_comes_down_in_one_write_loses_nothing() {
    let place = Place::new();
    let store = place.open();
    let small = bytes(4);
    applied(
        &store,
        "s",
        item(1, 1, vec![cells("c/a", true, small, &[("x", Some(4))])]),
    )
    .await;
    let large = small + bytes(3_000);
    let items = vec![
        item(1, 2, vec![cells("c/a", false, large, &[("m", Some(3_000))])]),
        item(1, 3, vec![cells("c/a", false, small, &[("m", None)])]),
        item(
            1,
            4,
            vec![cells("c/b", true, large, &[("m", Some(3_000)), ("x", Some(4))])],
        ),
        item(1, 5, vec![cells("c/b", false, small, &[("m", None)])]),
        item(1, 6, vec![cells("c/b", false, large, &[("m", Some(3_000))])]),
    ];
    let outcomes = commit_at(&store, "s", 1_000, items).await.expect("answers").outcomes;
    assert!(
        outcomes
            .iter()
            .all(|outcome| matches!(outcome, Outcome::Applied { .. }))
    );
    assert_eq!(form(&store, "c/a"), spread(2));
    let x = ("x".to_owned(), Some(5));
    assert_eq!(held(&store, "c/a").await, [("m".to_owned(), None), x.clone()]);
    assert_eq!(held(&store, "c/b").await, [("m".to_owned(), Some(3_003)), x]);
    sound(&store);
}

#[tokio::test]
async fn documents_of_format_2_are_read_as_they_are_and_packed_as_they_are_written_to() {
    let place = Place::new();
    let store = place.open();
    let names: Vec<_> = (0..200).map(|n| format!("f{n:03}")).collect();
    let many: Vec<_> = names.iter().map(|name| (name.as_str(), Some(0))).collect();
    let gone: Vec<_> = names[1..].iter().map(|name| (name.as_str(), None)).collect();
    let docs = vec![
        cells("c/a", true, 2 * bytes(4), &[("x", Some(4)), ("y", Some(4))]),
        cells("c/b", true, bytes(4), &[("x", Some(4))]),
        cells("c/large", true, bytes(3_000), &[("x", Some(3_000))]),
        cells("c/many", true, 200 * 5, &many),
    ];
    let one = applied(&store, "s", item(1, 1, docs)).await;
    applied(
        &store,
        "s",
        item(
            1,
            2,
            vec![cells("c/a", false, bytes(4), &[("y", None)]), delete("c/b", &["x"])],
        ),
    )
    .await;
    applied(&store, "s", item(1, 3, vec![cells("c/many", false, 5, &gone)])).await;
    let seen = async |store: &EmbeddedStore| {
        let mut all = vec![];
        for after in [None, Some(one), Some(state(store, "s").await.head)] {
            for budget in [0, 1 << 20] {
                all.push(
                    scan(
                        store,
                        "s",
                        ChangesRequest {
                            budget,
                            ..everything(after)
                        },
                    )
                    .await,
                );
            }
        }
        all
    };
    let before = seen(&store).await;
    store.close();
    let store = place.open();
    as_format_2(&store);
    for (path, names) in [("c/a", 2), ("c/b", 1), ("c/large", 1), ("c/many", 200)] {
        assert_eq!(form(&store, path), spread(names), "{path}");
    }
    sound(&store);
    assert_eq!(seen(&store).await, before);
    // The first write to each, and another.
    for (mid, text) in [(4, 5), (5, 6)] {
        let docs = vec![
            cells("c/a", false, bytes(text), &[("x", Some(text))]),
            cells("c/b", true, bytes(text), &[("z", Some(text))]),
            cells("c/large", false, bytes(3_000) + bytes(text), &[("y", Some(text))]),
            cells("c/many", false, 5 + bytes(text), &[("z", Some(text))]),
        ];
        applied(&store, "s", item(1, mid, docs)).await;
        assert_eq!([form(&store, "c/a"), form(&store, "c/b")], [PACKED; 2]);
        assert_eq!(form(&store, "c/large"), spread(2));
        // Its leaves are few, but a record has no room for what it remembers.
        assert_eq!(form(&store, "c/many"), spread(201));
        sound(&store);
    }
    assert_eq!(
        held(&store, "c/a").await,
        [("x".to_owned(), Some(7)), ("y".to_owned(), None)]
    );
    assert_eq!(
        held(&store, "c/b").await,
        [("x".to_owned(), None), ("z".to_owned(), Some(7))]
    );
    assert_eq!(delta(&store, one).await.1.len(), 199);
}

/// How many runs there are of a client's results, and how many results under their mids.
fn results(store: &EmbeddedStore) -> (usize, usize) {
    let rows = database(store).cut().iter(Table::Results);
    let slots = rows.map(|entry| keys::result_key(&space("s"), &entry.key().expect("reads")).expect("a key"));
    let (slots, mids): (Vec<_>, Vec<_>) = slots.partition(|end| matches!(end, keys::ResultKey::Slot(_)));
    (slots.len(), mids.len())
}

#[tokio::test]
async fn results_that_format_2_kept_are_answered_and_go_when_their_time_has_come() {
    let place = Place::new();
    let store = place.open();
    for mid in 1..=300 {
        applied(&store, "s", item(1, mid, vec![])).await;
    }
    assert_eq!(results(&store), (17, 0));
    store.close();
    let store = place.open();
    as_format_2(&store);
    assert_eq!(results(&store), (0, 256));
    sound(&store);
    let kept = async |mid: u64, until: u64| {
        let again = one(&store, "s", item(1, mid, vec![])).await;
        match mid + KEPT_RESULTS > until {
            true => assert!(
                matches!(&again, Outcome::Duplicate(Kept { position, .. }) if position.seq.get() == mid),
                "{mid}: {again:?}"
            ),
            false => assert_eq!(again, Outcome::ClientUnknown, "{mid}"),
        }
    };
    for mid in [1, 44, 45, 255, 256, 257, 300] {
        kept(mid, 300).await;
    }
    sound(&store);
    for last in 301..=700 {
        applied(&store, "s", item(1, last, vec![])).await;
        if last % 37 == 0 || last == 301 || last == 556 {
            for mid in [last - 257, last - 256, last - 255, 300, 301, last] {
                kept(mid, last).await;
            }
            let since = usize::try_from((last - 300).min(KEPT_RESULTS)).expect("small");
            let runs = usize::try_from(last / 16 - 301 / 16 + 1).expect("small").min(17);
            assert_eq!(results(&store), (runs, 256 - since), "{last}");
            sound(&store);
        }
    }
}

#[tokio::test]
async fn of_a_record_of_both_formats_that_is_replaced_no_result_is_left() {
    let place = Place::forgetful();
    let store = place.open();
    for mid in 1..=100 {
        applied(&store, "s", item(1, mid, vec![])).await;
    }
    store.close();
    let store = place.open();
    as_format_2(&store);
    for mid in 101..=110 {
        applied(&store, "s", item(1, mid, vec![])).await;
    }
    assert_eq!(results(&store), (1, 100));
    let anew = Prepared {
        first: Some(9_000),
        ..item(1, 1, vec![])
    };
    commit_at(&store, "s", 9_000, vec![anew]).await.expect("answers");
    assert_eq!(results(&store), (1, 0));
    sound(&store);
}

#[tokio::test]
async fn a_commit_to_one_field_writes_four_records_and_what_its_group_shares() {
    let store = Place::new().open();
    let commits = |first: u64, mid: u64| {
        let one = |n: u64| {
            let effect = set(
                &format!("c/{n}"),
                mid == 1,
                &[("x", 1), ("y", 2)][..if mid == 1 { 2 } else { 1 }],
            );
            item(first + n % 4, 1 + (mid - 1) * 16 + n / 4, vec![effect])
        };
        (0..64).map(one).collect::<Vec<_>>()
    };
    let mut records = vec![];
    // Long enough that results take the places of older ones.
    for mid in 1..=20 {
        let before = store.stats();
        commit_at(&store, "s", 1_000, commits(1, mid)).await.expect("answers");
        let after = store.stats();
        assert_eq!(after.commits - before.commits, 64);
        records.push(after.records - before.records);
    }
    // Of each its payload, its document, its new place in the index and the one that goes; of the group four clients with
    // the results of 16 mutations each, and the space.
    assert_eq!(*records.last().expect("twenty"), 64 * 4 + 4 + 2 * 4 + 1, "{records:?}");
}
