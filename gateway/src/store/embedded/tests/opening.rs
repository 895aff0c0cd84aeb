//! Opening, closing, opening again.

use super::*;
use crate::store::LogReply;

#[tokio::test]
async fn a_store_opened_again_holds_everything_and_mints_at_the_first_commit_only() {
    let place = Place::new();
    let store = place.open();
    applied(&store, "s", item(1, 1, vec![set("c/a", true, &[("x", 1), ("y.z", 2)])])).await;
    let last = applied(&store, "s", item(1, 2, vec![unset("c/a", &["x"])])).await;
    let before = store.read(&space("s"), &[doc("c/a")]).await.expect("answers");
    let log = store
        .log(&space("s"), Position::START, 10, 1 << 20, None)
        .await
        .expect("answers");
    store.close();

    let store = place.open();
    assert_eq!(store.read(&space("s"), &[doc("c/a")]).await.expect("answers"), before);
    assert_eq!(
        store
            .log(&space("s"), Position::START, 10, 1 << 20, None)
            .await
            .expect("answers"),
        log
    );
    assert_eq!(before.state.head, last);
    assert_eq!(before.state.lineage.0.len(), 1);
    let next = applied(&store, "s", item(1, 3, vec![set("c/a", false, &[("x", 3)])])).await;
    assert_eq!(next.seq, last.seq.next());
    assert_ne!(next.epoch, last.epoch);
    let second = applied(&store, "s", item(1, 4, vec![])).await;
    assert_eq!(second.epoch, next.epoch);
    let now = state(&store, "s").await;
    assert_eq!(
        now.lineage.0.iter().map(|e| e.start).collect::<Vec<_>>(),
        [seq(0), last.seq]
    );
    // A position of the old epoch is a position of this history.
    let LogReply::Commits { commits, .. } = store.log(&space("s"), last, 10, 1 << 20, None).await.expect("answers")
    else {
        panic!("no commits")
    };
    assert_eq!(
        commits.iter().map(|c| c.seq).collect::<Vec<_>>(),
        [next.seq, second.seq]
    );
}

#[tokio::test]
async fn a_mutation_sent_again_after_a_restart_is_answered_and_not_applied() {
    let place = Place::new();
    let first = {
        let store = place.open();
        applied(&store, "s", item(1, 1, vec![set("c/a", true, &[("n", 1)])])).await
    };
    let store = place.open();
    let Outcome::Duplicate(kept) = one(&store, "s", item(1, 1, vec![set("c/a", true, &[("n", 1)])])).await else {
        panic!("not told as a duplicate")
    };
    assert_eq!((kept.position, kept.refused, &*kept.detail), (first, None, &b"1/1"[..]));
    assert_eq!(state(&store, "s").await.head.seq, first.seq);
    let cloned = Prepared {
        key: MutationKey(99),
        ..item(1, 1, vec![])
    };
    assert_eq!(one(&store, "s", cloned).await, Outcome::ClientCloned);
    let cloned = Prepared {
        prev: Some(MutationKey(99)),
        ..item(1, 2, vec![])
    };
    assert_eq!(one(&store, "s", cloned).await, Outcome::ClientCloned);
    assert_eq!(
        one(&store, "s", item(1, 4, vec![])).await,
        Outcome::OutOfOrder {
            expected: Mid::new(2).expect("small")
        }
    );
    assert_eq!(one(&store, "s", item(2, 2, vec![])).await, Outcome::ClientUnknown);
}

#[tokio::test]
async fn a_directory_is_open_once() {
    let place = Place::new();
    let store = place.open();
    let error = open(place.dir.path(), place.options()).err().expect("refused");
    assert!(matches!(error, OpenError::InUse { .. }), "{error:?}");
    let text = error.to_string();
    assert!(text.contains("in use") && text.contains("LOCK"), "{text}");
    store.close();
    place.open();
}

#[test]
fn a_directory_is_free_once_its_store_has_ended_also_while_a_process_just_begun_has_its_files() {
    let place = Place::new();
    let lock = disk::lock(place.dir.path()).expect("free");
    // As between fork and exec: the same open file.
    let inherited = lock.0.try_clone().expect("another handle");
    let taken = disk::lock(place.dir.path()).err().expect("refused");
    assert!(matches!(taken, OpenError::InUse { .. }), "{taken:?}");
    drop(lock);
    place.open();
    drop(inherited);
}

#[test]
fn a_directory_of_a_newer_format_is_left_alone() {
    let place = Place::new();
    place.open().close();
    let marker = place.dir.path().join("FORMAT");
    std::fs::write(&marker, "tidegate-store 4\n").expect("writes");
    let error = open(place.dir.path(), place.options()).err().expect("refused");
    assert!(
        matches!(error, OpenError::Newer { found: 4, known: 3, .. }),
        "{error:?}"
    );
    assert!(error.to_string().contains(&marker.display().to_string()), "{error}");
}

#[test]
fn what_is_no_store_is_refused_by_name() {
    let place = Place::new();
    let file = place.dir.path().join("file");
    std::fs::write(&file, "").expect("writes");
    let error = open(&file, place.options()).err().expect("refused");
    assert!(matches!(error, OpenError::NotADirectory { .. }), "{error:?}");
    let error = open(&file.join("below"), place.options()).err().expect("refused");
    assert!(
        matches!(error, OpenError::Io { .. }) && error.to_string().contains("below"),
        "{error}"
    );

    let dir = place.dir.path().join("store");
    open(&dir, place.options()).expect("opens").close();
    std::fs::remove_file(dir.join("FORMAT")).expect("removes");
    let error = open(&dir, place.options()).err().expect("refused");
    assert!(
        matches!(error, OpenError::NotAStore { .. }) && error.to_string().contains("FORMAT"),
        "{error}"
    );
}

#[test]
fn a_creation_cut_short_is_begun_again() {
    let place = Place::new();
    let half = place.dir.path().join("db.new");
    std::fs::create_dir(&half).expect("creates");
    std::fs::write(half.join("0.jnl"), "").expect("writes");
    place.open().close();
    assert!(!half.exists());
    place.open().close();

    // The database is in its place, its marker lies ready.
    let marker = place.dir.path().join("FORMAT");
    std::fs::rename(&marker, place.dir.path().join("FORMAT.new")).expect("renames");
    place.open().close();
    assert!(marker.exists());
}

#[test]
fn a_marker_without_a_database_is_no_empty_store() {
    let place = Place::new();
    place.open().close();
    let database = place.dir.path().join("db");
    std::fs::remove_dir_all(&database).expect("removes");
    let error = open(place.dir.path(), place.options()).err().expect("refused");
    assert!(
        matches!(&error, OpenError::Damaged { path, .. } if *path == database),
        "{error:?}"
    );
    assert!(!database.exists());
}

#[tokio::test]
async fn where_the_database_was_closed_and_cannot_be_opened_again_it_is_tried_until_it_can() {
    let place = Place {
        durability: Durability::Fsync,
        ..Place::new()
    };
    let store = place.open();
    applied(&store, "s", item(1, 1, vec![set("c/a", true, &[("x", 1)])])).await;
    let (marker, away) = (place.dir.path().join("db/version"), place.dir.path().join("away"));
    std::fs::rename(&marker, &away).expect("renames");
    let shared = store.shared.clone();
    let failed = tokio::task::spawn_blocking(move || shared.reopen(0))
        .await
        .expect("ends");
    let why = failed.expect_err("a file is missing").to_string();
    assert!(why.contains(&marker.display().to_string()), "{why}");

    // Nothing waits for what may never come, and nothing hangs or passes for empty.
    let begun = std::time::Instant::now();
    let read = store.read(&space("s"), &[doc("c/a")]).await;
    assert!(matches!(read, Err(StoreError::Unavailable(_))), "{read:?}");
    let group = CommitGroup {
        space: space("s"),
        planned_on: Epoch(0),
        fresh: Epoch(99),
        now_ms: 1_000,
        items: vec![],
    };
    let told = store.commit(group).await.expect_err("not open").to_string();
    assert!(told.contains(&marker.display().to_string()), "{told}");
    assert!(begun.elapsed() < Duration::from_secs(3));

    std::fs::rename(&away, &marker).expect("renames");
    let open = async {
        while store.read(&space("s"), &[]).await.is_err() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), open)
        .await
        .expect("in time");
    applied(&store, "s", item(1, 2, vec![set("c/b", true, &[("x", 1)])])).await;
    let cut = store
        .read(&space("s"), &[doc("c/a"), doc("c/b")])
        .await
        .expect("answers");
    assert!(cut.docs.iter().all(crate::store::DocState::alive));
    assert_eq!(cut.state.lineage.0.len(), 1, "nothing was lost, so history goes on");
    assert_eq!(store.stats().reopened, 1);
}

#[test]
fn what_a_reopening_that_was_killed_has_left_goes_when_the_store_is_opened() {
    let place = Place::new();
    place.open().close();
    let copy = place.dir.path().join("db/0.jnl.new");
    std::fs::write(&copy, [1; 100]).expect("writes");
    place.open().close();
    assert!(!copy.exists());
}

#[test]
fn what_cannot_be_looked_at_is_not_taken_for_missing() {
    let place = Place::new();
    let path = place.dir.path().join("db");
    std::os::unix::fs::symlink(&path, &path).expect("links");
    let error = open(place.dir.path(), place.options()).err().expect("refused");
    assert!(
        matches!(&error, OpenError::Io { path: told, .. } if *told == path),
        "{error:?}"
    );
    let error = open_existing(place.dir.path(), place.options()).err().expect("refused");
    assert!(
        matches!(&error, OpenError::Io { path: told, .. } if *told == path),
        "{error:?}"
    );
    assert!(path.is_symlink(), "no store is begun in its place");
    std::fs::remove_file(&path).expect("removes");

    place.open().close();
    let table = path.join("keyspaces/3");
    std::fs::remove_dir_all(&table).expect("removes");
    std::os::unix::fs::symlink(&table, &table).expect("links");
    let error = open(place.dir.path(), place.options()).err().expect("refused");
    assert!(
        matches!(&error, OpenError::Io { path: told, .. } if *told == table),
        "{error:?}"
    );
}

#[tokio::test]
async fn a_key_that_names_no_space_is_told_by_table_and_key_and_the_store_is_not_opened() {
    let place = Place::new();
    let store = place.open();
    for name in ["a", "c"] {
        applied(&store, name, item(1, 1, vec![])).await;
    }
    let disk = database(&store);
    let mut batch = disk.batch(fjall::PersistMode::Buffer);
    batch.insert(disk.table(disk::Table::Spaces), "b b\0m", "?");
    batch.commit().expect("writes");
    drop(disk);
    store.close();
    // Which spaces follow, and whether one is being erased, nobody can say.
    let error = open(place.dir.path(), place.options()).err().expect("refused");
    let text = error.to_string();
    let names = [
        &place.dir.path().display().to_string(),
        "damaged",
        "\"b b\\x00m\" in spaces",
    ];
    assert!(names.iter().all(|name| text.contains(name)), "{text}");
}

#[tokio::test]
async fn what_is_read_for_the_metrics_waits_for_no_reopening() {
    let place = Place::new();
    let store = place.open();
    let (held, shared) = (database(&store), store.shared.clone());
    let reopened = tokio::task::spawn_blocking(move || shared.reopen(0));
    while !store.shared.is_closing() {
        assert!(!reopened.is_finished(), "it waits for what is held");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let begun = std::time::Instant::now();
    assert!(
        store
            .readings()
            .iter()
            .any(|reading| reading.name == "tidegate_store_disk_bytes")
    );
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    drop(held);
    reopened.await.expect("ends").expect("opens again");
}
