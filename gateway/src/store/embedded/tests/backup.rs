//! Backups are whole, of one moment, and lead to the same store under new epochs.

use super::super::backup::backup;
use super::super::check::check;
use super::super::restore::{BadBackup, RestoreError, restore, verify};
use super::*;
use crate::store::{LogReply, ResetReason};
use disk::{FORMAT, Table};
use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::path::PathBuf;
use tokio::sync::mpsc;

/// As [`item`], of one field of a document, with all that a real commit has.
fn write_field(writer: u64, mid: u64, path: &str, born: bool, n: i64) -> Prepared {
    let value = Value::int(n);
    let leaf = (field("n"), value.clone());
    let kind = if born {
        DocChangeKind::Whole(vec![leaf])
    } else {
        let set = vec![leaf];
        DocChangeKind::Change { set, unset: vec![] }
    };
    let change = DocChange { doc: doc(path), kind };
    let effect = DocEffect {
        size: 1 + value.as_bytes().len() as u64,
        ..set(path, born, &[("n", n)])
    };
    Prepared {
        action: Action::Apply(Effects {
            docs: vec![effect],
            body: msgpack::encode_body(Writer(writer), Mid::new(mid).expect("small"), &[change]),
            ..Effects::default()
        }),
        ..item(writer, mid, vec![])
    }
}

/// A few commits in two spaces, over two openings; closed.
async fn some(place: &Place) {
    for round in 0..2 {
        let store = place.open();
        for n in 1..=5 {
            let mid = round * 5 + n;
            let path = format!("c/{n}");
            applied(&store, "s", write_field(1, mid, &path, round == 0, 7)).await;
            applied(&store, "t", write_field(2, mid, "c/d", mid == 1, 9)).await;
        }
        store.close();
    }
}

fn backed_up(dir: &Path) -> Vec<u8> {
    let mut bytes = Vec::new();
    let done = backup(dir, &mut bytes).expect("backs up");
    assert_eq!(verify(&*bytes).expect("whole"), done);
    assert_eq!(done.bytes, bytes.len() as u64);
    bytes
}

/// Of a store that is open: no epoch begins with it.
async fn backed_up_open(store: &EmbeddedStore) -> Vec<u8> {
    let (sender, mut receiver) = mpsc::channel(64);
    store.backup(sender).await.expect("backs up");
    let mut bytes = Vec::new();
    while let Some(piece) = receiver.recv().await {
        bytes.extend_from_slice(&piece);
    }
    bytes
}

fn restored(bytes: &[u8], dir: &Path, place: &Place) -> EmbeddedStore {
    restore(bytes, dir, &*place.env).expect("restores");
    assert_eq!(sound(dir), "");
    open(dir, place.options()).expect("opens")
}

/// What `check` says of a directory.
fn sound(dir: &Path) -> String {
    let mut text = String::new();
    check(dir, &mut |violation| text += &format!("{violation}\n")).expect("checks");
    text
}

type Records = BTreeMap<(&'static str, Vec<u8>), Vec<u8>>;

fn records(store: &EmbeddedStore) -> Records {
    let disk = store.shared.disk().expect("open");
    let cut = disk.cut();
    let table = |table: Table| {
        cut.iter(table)
            .map(|guard| guard.into_inner().expect("reads"))
            .map(move |(key, value)| ((table.name(), key.to_vec()), value.to_vec()))
            .collect::<Vec<_>>()
    };
    Table::ALL.into_iter().flat_map(table).collect()
}

#[tokio::test]
async fn a_restored_store_is_the_same_but_for_an_epoch_at_the_head_of_every_space() {
    let place = Place::new();
    some(&place).await;
    let bytes = backed_up(place.dir.path());
    let original = place.open();
    let [a, b] = [(); 2].map(|()| tempfile::tempdir().expect("a directory"));
    let stores = [(&a, true), (&b, false)].map(|(dir, exists)| {
        let path = if exists {
            dir.path().to_owned()
        } else {
            dir.path().join("x/y")
        };
        restored(&bytes, &path, &place)
    });
    let mut epochs = Vec::new();
    for store in &stores {
        for name in ["s", "t"] {
            let (before, after) = (state(&original, name).await, state(store, name).await);
            let mut lineage = after.lineage.clone();
            let minted = lineage.0.pop().expect("an epoch");
            assert_eq!((lineage, minted.start), (before.lineage, before.head.seq));
            epochs.push(minted.epoch);
        }
        let (mut before, mut after) = (records(&original), records(store));
        for name in ["s", "t"] {
            let key = ("spaces", keys::lineage(&space(name)));
            assert_ne!(before.remove(&key), after.remove(&key));
        }
        assert_eq!(before, after);
    }
    epochs.sort();
    epochs.dedup();
    assert_eq!(epochs.len(), 4, "each restore and space has one of its own: {epochs:?}");
}

#[tokio::test]
async fn what_was_acked_after_the_backup_is_lost_history_and_what_came_before_is_not() {
    let place = Place::new();
    let store = place.open();
    let before = applied(&store, "s", write_field(1, 1, "c/d", true, 1)).await;
    let bytes = backed_up_open(&store).await;
    let after = applied(&store, "s", write_field(1, 2, "c/d", false, 2)).await;
    let dir = tempfile::tempdir().expect("a directory");
    let store = restored(&bytes, dir.path(), &place);
    let now = state(&store, "s").await;
    assert!(now.lineage.holds(before, now.head.seq));
    assert!(!now.lineage.holds(after, now.head.seq));
    // Also when the new history has come as far.
    let again = applied(&store, "s", write_field(1, 2, "c/d", false, 3)).await;
    let now = state(&store, "s").await;
    assert_eq!(again.seq, after.seq);
    assert!(now.lineage.holds(before, now.head.seq) && !now.lineage.holds(after, now.head.seq));
}

#[tokio::test]
async fn a_scan_ends_where_a_restore_cut_history_off_below_a_page_of_it() {
    let place = Place::new();
    let store = place.open();
    for mid in 1..=3 {
        applied(&store, "s", write_field(1, mid, &format!("c/{mid}"), true, 1)).await;
    }
    let bytes = backed_up_open(&store).await;
    let next = |cursor| ChangesRequest {
        budget: 1,
        cursor,
        ..everything(None)
    };
    let ask = async |store: &EmbeddedStore, cursor| store.changes(&space("s"), next(cursor)).await.expect("answers");
    let ChangesReply::Page { docs, cursor, .. } = ask(&store, None).await else {
        panic!("three documents")
    };
    assert_eq!(docs.last_doc(), Some("c/1"));
    // It moves ahead of the cursor, so the next page goes past where it was, and will be again.
    applied(&store, "s", write_field(1, 4, "c/2", false, 2)).await;
    let ChangesReply::Page { docs, cursor, .. } = ask(&store, Some(cursor)).await else {
        panic!("two documents left")
    };
    assert_eq!(docs.last_doc(), Some("c/3"));
    let dir = tempfile::tempdir().expect("a directory");
    let store = restored(&bytes, dir.path(), &place);
    assert_eq!(ask(&store, Some(cursor)).await, ChangesReply::Reset(ResetReason::Lost));
}

/// Commits until told to stop, and counts.
async fn keep_writing(store: Arc<EmbeddedStore>, name: &'static str, count: Arc<AtomicU64>, stop: Arc<AtomicU64>) {
    let mut mid = 0;
    while stop.load(Ordering::Relaxed) == 0 {
        mid += 1;
        let path = format!("c/{}", mid % 50);
        let n = i64::try_from(mid).expect("small");
        applied(&store, name, write_field(1, mid, &path, mid <= 50, n)).await;
        count.fetch_add(1, Ordering::Relaxed);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_is_of_one_moment_while_commits_go_on() {
    let place = Place::new();
    let store = Arc::new(place.open());
    let [s, t, stop] = [(); 3].map(|()| Arc::<AtomicU64>::default());
    let mut writers = tokio::task::JoinSet::new();
    writers.spawn(keep_writing(store.clone(), "s", s.clone(), stop.clone()));
    writers.spawn(keep_writing(store.clone(), "t", t.clone(), stop.clone()));
    let more = |counter: &Arc<AtomicU64>, n: u64| {
        let (counter, from) = (counter.clone(), counter.load(Ordering::Relaxed));
        async move {
            while counter.load(Ordering::Relaxed) < from + n {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
    };
    // Enough that it does not fit into what may wait for its reader.
    more(&s, 1_000).await;
    more(&t, 1).await;
    let (sender, mut receiver) = mpsc::channel(1);
    let mut bytes = Vec::new();
    let (done, ()) = tokio::join!(store.backup(sender), async {
        let mut pieces = 0;
        while let Some(piece) = receiver.recv().await {
            bytes.extend_from_slice(&piece);
            pieces += 1;
            // The backup waits for its reader, who waits for commits.
            more(&s, 100).await;
            more(&t, 100).await;
        }
        assert!(pieces > 2, "{pieces}");
    });
    assert_eq!(verify(&*bytes).expect("whole"), done.expect("backs up"));
    stop.store(1, Ordering::Relaxed);
    while let Some(ended) = writers.join_next().await {
        ended.expect("no writer fails");
    }

    let dir = tempfile::tempdir().expect("a directory");
    let copy = restored(&bytes, dir.path(), &place);
    for (name, counter) in [("s", &s), ("t", &t)] {
        let head = state(&copy, name).await.head.seq;
        let written = counter.load(Ordering::Relaxed);
        assert!(head.get() + 100 <= written, "{name}: {head} of {written}");
        let LogReply::Commits { commits, .. } = store
            .log(&space(name), Position::START, usize::MAX, usize::MAX, None)
            .await
            .expect("answers")
        else {
            panic!("the log is whole")
        };
        let mut replica = Replica::new();
        for entry in commits.iter().take_while(|entry| entry.seq <= head) {
            apply(
                &mut replica,
                msgpack::decode_payload(&entry.payload).expect("a change").docs,
            );
        }
        let mut held = Replica::new();
        apply(&mut held, scan(&copy, name, everything(None)).await.0);
        assert_eq!(held, replica, "{name} at {head}");
    }
}

#[tokio::test]
async fn a_backup_ends_when_nobody_takes_it_and_when_the_database_is_wanted_back() {
    let place = Place::new();
    some(&place).await;
    let store = place.open();
    let (sender, receiver) = mpsc::channel(1);
    drop(receiver);
    let error = store.backup(sender).await.expect_err("nobody takes it").to_string();
    assert!(error.contains("nobody takes it"), "{error}");

    // A reader who takes nothing does not hold up the writer that has to open the database again.
    let (sender, mut receiver) = mpsc::channel(1);
    sender.send(Bytes::new()).await.expect("room for one");
    let shared = store.shared.clone();
    let reopened = tokio::task::spawn_blocking(move || {
        while Arc::strong_count(&shared.disk().expect("open")) < 3 {
            thread::yield_now();
        }
        shared.reopen(0)
    });
    let ended = tokio::time::timeout(Duration::from_secs(20), store.backup(sender));
    let error = ended.await.expect("in time").expect_err("broken off").to_string();
    assert!(error.contains("opened again"), "{error}");
    reopened.await.expect("ends").expect("opens again");
    assert_eq!(receiver.recv().await.as_deref(), Some(&b""[..]));
    assert_eq!(receiver.recv().await, None);
    applied(&store, "s", write_field(1, 11, "c/1", false, 3)).await;
}

/// Nothing is left of a restore, and nothing was there.
fn refused(bytes: &[u8], place: &Place) -> String {
    let dir = place.dir.path().join("refused");
    let error = restore(bytes, &dir, &*place.env).expect_err("refused");
    assert!(!dir.exists(), "{error}");
    error.to_string()
}

#[tokio::test]
async fn a_backup_with_any_byte_missing_or_changed_is_refused_and_leaves_no_store() {
    let place = Place::new();
    some(&place).await;
    let bytes = backed_up(place.dir.path());
    for len in (0..bytes.len()).step_by(7) {
        let Err(BadBackup::Damaged { at, what }) = verify(&bytes[..len]) else {
            panic!("cut at {len}")
        };
        assert!(
            at == len as u64 && what.contains("ends here"),
            "cut at {len}: {at}: {what}"
        );
    }
    for at in (0..bytes.len()).step_by(5) {
        let mut changed = bytes.clone();
        changed[at] ^= 1 << (at % 8);
        verify(&*changed).expect_err("changed");
    }
    let mut longer = bytes.clone();
    longer.push(0);
    let error = verify(&*longer).expect_err("longer").to_string();
    assert!(
        error.contains(&format!("at byte {}: more follows", bytes.len())),
        "{error}"
    );

    let error = refused(&bytes[..bytes.len() / 2], &place);
    assert!(error.contains("not whole"), "{error}");
    // A flipped bit in a value is found at the end of its table.
    let mut changed = bytes.clone();
    let at = bytes.windows(4).position(|word| word == b"c/3\0").expect("a cell");
    changed[at + 10] ^= 1;
    let error = refused(&changed, &place);
    assert!(error.contains("table cells from byte"), "{error}");
    assert!(
        refused(
            b"not a backup of anything at all, but a text that is longer than a line\n",
            &place
        )
        .contains("does not begin as a backup")
    );
    assert!(refused(b"", &place).contains("at byte 0"));
}

#[tokio::test]
async fn a_backup_of_a_newer_version_or_format_is_refused_as_such() {
    let place = Place::new();
    place.open().close();
    let bytes = backed_up(place.dir.path());
    let line = format!("tidegate-backup 1 store {FORMAT}\n");
    let rest = bytes.strip_prefix(line.as_bytes()).expect("a first line");
    for (line, words) in [
        (format!("tidegate-backup 2 store {FORMAT}\n"), "backup version 2"),
        (format!("tidegate-backup 1 store {}\n", FORMAT + 1), "store format"),
    ] {
        let error = refused(&[line.as_bytes(), rest].concat(), &place);
        assert!(error.contains(words) && error.contains("upgrade"), "{error}");
    }
}

#[tokio::test]
async fn a_backup_that_was_broken_off_says_why() {
    let place = Place::new();
    some(&place).await;
    let bytes = backed_up(place.dir.path());
    // After a whole record.
    let at = bytes
        .windows(5)
        .position(|word| word == b"T\x03log")
        .map_or(bytes.len() / 2, |at| at);
    let why = StoreError::Unavailable("the disk is on fire".to_owned());
    let error = refused(&[&bytes[..at], &broken_off(&why)].concat(), &place);
    assert!(error.contains("on fire"), "{error}");
}

/// Reads some bytes and then fails, as a connection does.
struct Cut<'a>(&'a [u8]);

impl Read for Cut<'_> {
    fn read(&mut self, bytes: &mut [u8]) -> std::io::Result<usize> {
        match self.0.read(bytes)? {
            0 => Err(std::io::Error::other("the line is dead")),
            n => Ok(n),
        }
    }
}

#[tokio::test]
async fn a_restore_is_refused_where_something_is_and_leaves_it_alone() {
    let place = Place::new();
    some(&place).await;
    let bytes = backed_up(place.dir.path());
    let dir = place.dir.path().join("full");
    fs::create_dir(&dir).expect("creates");
    fs::write(dir.join("a"), "b").expect("writes");
    let list = |dir: &PathBuf| {
        let entries = fs::read_dir(dir).expect("readable");
        entries
            .map(|entry| entry.expect("readable").file_name())
            .collect::<Vec<_>>()
    };
    let error = restore(&*bytes, &dir, &*place.env).expect_err("not empty");
    assert!(
        matches!(error, RestoreError::Open(OpenError::NotEmpty { .. })),
        "{error}"
    );
    assert!(error.to_string().contains("full/a"), "{error}");
    assert_eq!(list(&dir), ["a"]);
    let error = restore(&*bytes, &dir.join("a"), &*place.env).expect_err("a file");
    assert!(error.to_string().contains("not a directory"), "{error}");
    let error = restore(&*bytes, place.dir.path(), &*place.env).expect_err("a store");
    assert!(error.to_string().contains("not empty"), "{error}");

    // An empty one stays, and stays empty.
    fs::remove_file(dir.join("a")).expect("removes");
    let error = restore(Cut(&bytes[..bytes.len() / 2]), &dir, &*place.env).expect_err("cut");
    assert!(error.to_string().contains("the line is dead"), "{error}");
    assert_eq!(list(&dir), Vec::<std::ffi::OsString>::new());
    // What one that was killed has left is no store, and does not stop the next.
    fs::create_dir(dir.join("db.restore")).expect("creates");
    fs::write(dir.join("db.restore/0.jnl"), "").expect("writes");
    restored(&bytes, &dir, &place).close();
}
