//! The floor, and what goes below it.

use super::*;
use crate::store::{ConflictDone, ConflictEntry, LogReply};
use disk::Look as _;

const MINUTE: u64 = 60_000;

#[tokio::test]
async fn below_the_floor_tombstones_go_and_everything_else_stays() {
    let place = Place::new();
    let store = place.open();
    applied(
        &store,
        "s",
        item(
            1,
            1,
            vec![set("c/a", true, &[("x", 1), ("y", 1)]), set("c/b", true, &[("x", 1)])],
        ),
    )
    .await;
    applied(
        &store,
        "s",
        item(1, 2, vec![unset("c/a", &["x"]), delete("c/b", &["x"])]),
    )
    .await;
    applied(&store, "s", item(1, 3, vec![set("c/b", true, &[("z", 1)])])).await;
    applied(
        &store,
        "s",
        item(1, 4, vec![delete("c/b", &["z"]), unset("c/a", &["y"])]),
    )
    .await;
    let docs = [doc("c/a"), doc("c/b")];
    assert_eq!(store.raise_floor(&space("s"), seq(3)).await.expect("answers"), seq(3));
    let cut = store.read(&space("s"), &docs).await.expect("answers");
    let paths = |n: usize| cut.docs[n].cells.keys().map(FieldPath::as_str).collect::<Vec<_>>();
    assert_eq!((paths(0), paths(1)), (vec!["y"], vec!["z"]));
    assert!(cut.docs[1].header.is_some_and(|header| !header.alive));
    assert_eq!(
        store.raise_floor(&space("s"), seq(9)).await.expect("answers"),
        seq(4),
        "the head at most"
    );
    assert_eq!(
        store.raise_floor(&space("s"), seq(1)).await.expect("answers"),
        seq(4),
        "never back"
    );
    let cut = store.read(&space("s"), &docs).await.expect("answers");
    assert!(cut.docs[0].alive() && cut.docs[0].cells.is_empty());
    assert_eq!((cut.docs[1].header, cut.docs[1].cells.len()), (None, 0));
    let (changes, _) = scan(&store, "s", everything(None)).await;
    assert_eq!(changes.len(), 1);
    let disk = database(&store);
    let left = disk
        .cut()
        .range(disk::Table::Dead, std::ops::Bound::Included(vec![]), vec![0xff])
        .count();
    assert_eq!(left, 0, "nothing is kept of what is gone");
}

#[tokio::test]
async fn a_document_with_more_cells_than_a_step_goes_whole() {
    let store = Place::new().open();
    let names: Vec<_> = (0..2_000).map(|n| format!("f{n}")).collect();
    let fields: Vec<_> = names.iter().map(|name| (name.as_str(), 1)).collect();
    let paths: Vec<_> = names.iter().map(String::as_str).collect();
    applied(&store, "s", item(1, 1, vec![set("c/big", true, &fields)])).await;
    applied(&store, "s", item(1, 2, vec![delete("c/big", &paths)])).await;
    store.raise_floor(&space("s"), seq(2)).await.expect("answers");
    let cut = store.read(&space("s"), &[doc("c/big")]).await.expect("answers");
    assert_eq!((cut.docs[0].header, cut.docs[0].cells.len()), (None, 0));
}

#[tokio::test]
async fn the_floor_rises_past_epochs_and_forgets_them() {
    let place = Place::new();
    for mid in 1..=3 {
        applied(&place.open(), "s", item(1, mid, vec![])).await;
    }
    let store = place.open();
    assert_eq!(state(&store, "s").await.lineage.0.len(), 3);
    store.raise_floor(&space("s"), seq(2)).await.expect("answers");
    let now = state(&store, "s").await;
    assert_eq!((now.lineage.0.len(), now.floor), (2, seq(2)));
    store.close();
    assert_eq!(state(&place.open(), "s").await, now);
}

#[tokio::test]
async fn collection_goes_by_the_time_of_the_commits() {
    let retention = Retention {
        tombstones_ms: 10 * MINUTE,
        clients_ms: 10 * MINUTE,
        log_ms: 5 * MINUTE,
        ..Retention::default()
    };
    let store = Place::keeping(retention).open();
    let conflict = ConflictEntry {
        doc: doc("c/a"),
        path: Some(field("x")),
        theirs: vec![],
        ours: Some(Value::int(1)),
        done: ConflictDone::Overwritten,
    };
    for n in 1..=20_u64 {
        let mut write = item(
            n,
            1,
            vec![set("c/a", n == 1, &[("x", 1)]), delete(&format!("d/{n}"), &[])],
        );
        write.first = Some(n * MINUTE);
        if let Action::Apply(effects) = &mut write.action {
            effects.conflicts = vec![conflict.clone()];
        }
        commit_at(&store, "s", n * MINUTE, vec![write]).await.expect("answers");
    }
    commit_at(&store, "t", MINUTE, vec![item(1, 1, vec![delete("d/1", &[])])])
        .await
        .expect("answers");
    let none = store.collect(10 * MINUTE).await.expect("answers");
    assert_eq!(
        none,
        Collected {
            spaces: 2,
            log: 4 + 1,
            ..Collected::default()
        }
    );

    let done = store.collect(20 * MINUTE).await.expect("answers");
    assert_eq!(
        done,
        Collected {
            spaces: 2,
            floors: 2,
            log: 10,
            tombstones: 10,
            clients: 10,
            conflicts: 9,
            damaged: 0,
        }
    );
    let now = state(&store, "s").await;
    let log = async |n| {
        let after = Position::new(now.head.epoch, seq(n));
        store
            .log(&space("s"), after, 100, 1 << 20, None)
            .await
            .expect("answers")
    };
    assert_eq!(log(13).await, LogReply::Trimmed);
    assert!(matches!(log(14).await, LogReply::Commits { commits, .. } if commits.len() == 6));
    assert_eq!(now.floor, seq(9), "of commits up to the tenth, all that are older");
    assert_eq!(
        state(&store, "t").await.floor,
        seq(1),
        "a space at rest is collected to its head"
    );
    let oldest = store
        .conflicts(&space("s"), 100)
        .await
        .expect("answers")
        .pop()
        .expect("some");
    assert_eq!(
        (oldest.at, oldest.mid, &oldest.entry),
        (10 * MINUTE, Mid::ZERO.next(), &conflict)
    );
    assert_eq!(one(&store, "s", item(3, 2, vec![])).await, Outcome::ClientUnknown);
    let again = store.collect(20 * MINUTE).await.expect("answers");
    assert_eq!(
        again,
        Collected {
            spaces: 2,
            ..Collected::default()
        }
    );
}

#[tokio::test]
async fn a_cell_or_document_written_again_before_its_tombstone_is_collected_stays() {
    let store = Place::new().open();
    let created = vec![set("c/a", true, &[("x", 1)]), set("c/b", true, &[("y", 1)])];
    applied(&store, "s", item(1, 1, created)).await;
    applied(
        &store,
        "s",
        item(1, 2, vec![unset("c/a", &["x"]), delete("c/b", &["y"])]),
    )
    .await;
    let again = vec![set("c/a", false, &[("x", 3)]), set("c/b", true, &[("y", 3)])];
    applied(&store, "s", item(1, 3, again)).await;
    store.raise_floor(&space("s"), seq(3)).await.expect("answers");
    let cut = store
        .read(&space("s"), &[doc("c/a"), doc("c/b")])
        .await
        .expect("answers");
    for (state, name) in cut.docs.iter().zip(["x", "y"]) {
        let leaves: Vec<_> = state.leaves().collect();
        assert_eq!(leaves, [(&field(name), &Value::int(3))]);
    }
}

#[tokio::test]
async fn of_a_record_that_was_replaced_or_forgotten_no_result_is_left() {
    let store = Place::forgetful().open();
    let results = || {
        let all = std::ops::Bound::Included(vec![]);
        database(&store)
            .cut()
            .range(disk::Table::Results, all, vec![0xff])
            .count()
    };
    for mid in 1..=300 {
        applied(&store, "s", item(1, mid, vec![])).await;
    }
    // Of the last 16 runs and of what is kept of the one before.
    assert_eq!(results(), 17);
    let anew = Prepared {
        first: Some(9_000),
        ..item(1, 1, vec![])
    };
    commit_at(&store, "s", 9_000, vec![anew]).await.expect("answers");
    assert_eq!(results(), 1, "the record was replaced");
    store.forget(&space("s"), 9_001).await.expect("answers");
    assert_eq!(results(), 0);
}

#[tokio::test]
async fn a_space_of_which_something_cannot_be_read_holds_up_no_other() {
    let b = space("b");
    for (table, key) in [
        (disk::Table::Spaces, keys::lineage(&b)),
        (disk::Table::Spaces, keys::mark(&b, 1)),
        (disk::Table::Cells, keys::doc(&b, &doc("c/x"))),
        (disk::Table::Clients, keys::client(&b, Writer(1))),
    ] {
        let retention = Retention {
            tombstones_ms: MINUTE,
            clients_ms: MINUTE,
            ..Retention::default()
        };
        let store = Place::keeping(retention).open();
        for name in ["a", "b", "c"] {
            applied(&store, name, item(1, 1, vec![delete("c/x", &[])])).await;
        }
        let title = format!("{}: {}", table.name(), key.escape_ascii());
        let whole = database(&store).cut().get(table, &key).expect("reads");
        let put = |value: Option<&[u8]>| {
            let disk = database(&store);
            let mut batch = disk.batch(fjall::PersistMode::Buffer);
            match value {
                Some(value) => batch.insert(disk.table(table), key.clone(), value),
                None => batch.remove(disk.table(table), key.clone()),
            }
            batch.commit().expect("writes");
        };
        let file = tempfile::NamedTempFile::new().expect("a file");
        let log = file.reopen().expect("a file");
        let log = tracing_subscriber::fmt().with_writer(move || log.try_clone().expect("a file"));
        let logged = tracing::subscriber::set_default(log.finish());
        put(Some(b"\x01?"));
        let done = store.collect(5 * MINUTE).await.expect("the round comes to its end");
        assert_eq!((done.spaces, done.damaged), (3, 1), "{title}");
        for name in ["a", "c"] {
            assert_eq!(state(&store, name).await.floor, seq(1), "{title}");
        }
        let again = store.collect(5 * MINUTE).await.expect("the round comes to its end");
        assert_eq!((again.floors, again.damaged), (0, 1), "{title}");
        let damaged = || {
            let readings = store.readings();
            let reading = readings
                .iter()
                .find(|reading| reading.name == "tidegate_store_damaged_spaces");
            reading.expect("read").value
        };
        assert_eq!(damaged(), 1, "{title}");
        drop(logged);
        let log = std::fs::read_to_string(file.path()).expect("reads");
        assert_eq!(log.matches("cannot be collected").count(), 1, "{title}: once: {log}");
        put(whole.as_deref());
        let mended = store.collect(5 * MINUTE).await.expect("the round comes to its end");
        assert_eq!((mended.damaged, damaged()), (0, 0), "{title}");
    }
}
