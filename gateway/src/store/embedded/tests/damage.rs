//! Records that cannot be read are told, by table and key; nothing panics.

use super::*;
use disk::Table;

/// Under a writer that has not looked it up: what it has, it knows.
async fn spoiled(table: Table, key: Vec<u8>) -> EmbeddedStore {
    spoiled_of(table, key, false).await
}

/// In a store of format 2, where documents are spread.
async fn spoiled_2(table: Table, key: Vec<u8>) -> EmbeddedStore {
    spoiled_of(table, key, true).await
}

async fn spoiled_of(table: Table, key: Vec<u8>, is_spread: bool) -> EmbeddedStore {
    let place = Place::new();
    let store = place.open();
    applied(&store, "s", item(1, 1, vec![set("c/a", true, &[("x", 1)])])).await;
    store.close();
    let store = place.open();
    if is_spread {
        as_format_2(&store);
    }
    let disk = database(&store);
    let mut batch = disk.batch(fjall::PersistMode::Buffer);
    batch.insert(disk.table(table), key, "\x01?");
    batch.commit().expect("writes");
    store
}

fn names<T: std::fmt::Debug>(answer: Result<T, StoreError>, words: &[&str]) {
    match answer {
        Err(StoreError::Damaged(text)) => assert!(words.iter().all(|word| text.contains(word)), "{text}"),
        other => panic!("not told as damaged: {other:?}"),
    }
}

#[tokio::test]
async fn damaged_records_are_told_by_table_and_key() {
    let s = space("s");
    let a = doc("c/a");

    let store = spoiled(Table::Spaces, keys::lineage(&s)).await;
    names(store.positions(std::slice::from_ref(&s)).await, &["spaces", "s\\x00l"]);

    let store = spoiled_2(Table::Cells, keys::cell(&s, &a, &field("x"))).await;
    names(store.read(&s, std::slice::from_ref(&a)).await, &["cells", "c/a\\x00x"]);
    names(store.changes(&s, everything(None)).await, &["cells"]);

    let store = spoiled(Table::Fields, keys::cell(&s, &doc("c/b"), &field("x"))).await;
    names(store.read(&s, &[doc("c/b")]).await, &["fields", "c/b\\x00x"]);

    let store = spoiled(Table::Cells, keys::doc(&s, &a)).await;
    let expecting = Prepared {
        expects: vec![(a.clone(), Version::Absent)],
        ..item(1, 2, vec![])
    };
    names(commit_at(&store, "s", 1_000, vec![expecting]).await, &["cells", "c/a"]);
    // The mid was not consumed, and other documents can be written.
    applied(&store, "s", item(1, 2, vec![set("c/b", true, &[])])).await;

    let store = spoiled(Table::Clients, keys::client(&s, Writer(1))).await;
    names(
        commit_at(&store, "s", 1_000, vec![item(1, 2, vec![])]).await,
        &["clients"],
    );

    let first = Mid::ZERO.next();
    for store in [
        spoiled(Table::Results, keys::result(&s, Writer(1), first)).await,
        spoiled_2(Table::Results, keys::result_2(&s, Writer(1), first)).await,
    ] {
        names(
            commit_at(&store, "s", 1_000, vec![item(1, 1, vec![])]).await,
            &["results"],
        );
    }

    let store = spoiled(Table::Idx, keys::idx(&s, seq(9), &doc("c/ghost"))).await;
    names(store.changes(&s, everything(None)).await, &["idx", "ghost"]);

    // A reset that takes many pages walks over the cells.
    let swept = ChangesRequest {
        budget: 0,
        ..everything(None)
    };
    for key in [
        keys::doc(&s, &a),
        keys::cell(&s, &a, &field("x")),
        keys::cell(&s, &doc("c/0"), &field("x")),
    ] {
        let store = spoiled_2(Table::Cells, key.clone()).await;
        names(store.changes(&s, swept.clone()).await, &["cells", "c/"]);
        // A cell of a packed document is in its record alone.
        let store = spoiled(Table::Cells, key).await;
        names(store.changes(&s, swept.clone()).await, &["cells", "c/"]);
    }

    let store = spoiled(Table::Conflicts, keys::conflict(&s, 5)).await;
    names(store.conflicts(&s, 5).await, &["conflicts"]);
}

/// The header can be read, and then the record ends in the middle of a cell.
#[tokio::test]
async fn a_packed_document_of_which_a_part_is_missing_is_told_and_goes_with_an_erasure() {
    let (s, a) = (space("s"), doc("c/a"));
    let place = Place::new();
    let store = place.open();
    let docs = vec![set("c/a", true, &[("x", 1), ("y", 1)]), set("c/b", true, &[("x", 1)])];
    let start = applied(&store, "s", item(1, 1, vec![])).await;
    applied(&store, "s", item(2, 1, docs)).await;
    store.close();
    let store = place.open();
    let key = keys::doc(&s, &a);
    let disk = database(&store);
    let whole = disk::Look::get(&disk.cut(), Table::Cells, &key)
        .expect("reads")
        .expect("is there");
    let mut batch = disk.batch(fjall::PersistMode::Buffer);
    batch.insert(disk.table(Table::Cells), key, &whole[..whole.len() - 1]);
    batch.commit().expect("writes");
    drop(disk);
    let words = ["cells", "c/a"];
    names(store.read(&s, std::slice::from_ref(&a)).await, &words);
    let swept = ChangesRequest {
        budget: 0,
        ..everything(None)
    };
    for request in [everything(None), everything(Some(start)), swept] {
        names(store.changes(&s, request).await, &words);
    }
    let write = item(1, 2, vec![set("c/a", false, &[("x", 2)])]);
    names(commit_at(&store, "s", 1_000, vec![write]).await, &words);
    let whom = Erase::User(UserTag(2));
    let erased = store.erase(&s, whom, Epoch(9), 1_000, &|_| {}).await.expect("answers");
    assert_eq!((erased.docs, erased.clients), (2, 1));
    assert_eq!(store.read(&s, &[a]).await.expect("answers").docs[0].header, None);
}

#[tokio::test]
async fn a_commit_missing_in_the_log_is_told() {
    let store = Place::new().open();
    for mid in 1..=3 {
        applied(&store, "s", item(1, mid, vec![])).await;
    }
    let disk = database(&store);
    let mut batch = disk.batch(fjall::PersistMode::Buffer);
    batch.remove(disk.table(Table::Log), keys::log(&space("s"), seq(2)));
    batch.commit().expect("writes");
    let from_start = store.log(&space("s"), Position::START, 10, 1 << 20, None).await;
    names(from_start, &["commit 2 of s", "log"]);
}

#[tokio::test]
async fn a_panic_in_the_writer_hangs_nobody_and_does_not_end_it() {
    let place = Place::new();
    let store = place.open();
    applied(&store, "s", item(1, 1, vec![])).await;
    let meta = records::SpaceMeta {
        head: seq((1 << 53) - 1),
        ..records::SpaceMeta::default()
    };
    let disk = database(&store);
    let mut batch = disk.batch(fjall::PersistMode::Buffer);
    batch.insert(
        disk.table(Table::Spaces),
        keys::meta(&space("s")),
        records::Record::encode(&meta),
    );
    batch.commit().expect("writes");
    drop(disk);
    store.close();
    let store = place.open();
    let answer = commit_at(&store, "s", 1_000, vec![item(1, 2, vec![])]).await;
    assert!(matches!(answer, Err(StoreError::Unavailable(_))), "{answer:?}");
    applied(&store, "t", item(1, 1, vec![])).await;
    assert!(store.raise_floor(&space("s"), seq(1)).await.is_ok());
}
