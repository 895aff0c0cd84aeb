//! A data directory that is damaged, in use or not ours: the gateway says which file, ends with a status
//! that is not 0, and touches nothing.

use crate::{SPACE, Writing, cli, serve};
use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead as _, BufReader, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use tidegate_protocol::{ClientMessage, DocChangeKind, Get, ServerMessage};

/// All files of a tree with what changes when anybody touches them.
fn fingerprint(dir: &Path) -> BTreeMap<PathBuf, (u64, i64, i64, u64)> {
    let mut all = BTreeMap::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            all.extend(fingerprint(&path));
        }
        let meta = fs::metadata(&path).unwrap();
        all.insert(path, (meta.len(), meta.ctime(), meta.ctime_nsec(), meta.ino()));
    }
    all
}

/// A stopped gateway's directory that has tables; and how many documents, `each/1` and so on.
async fn data(folder: &Path) -> (PathBuf, u64) {
    let data = folder.join("data");
    let mut served = serve(&data, "", |_| {});
    let mut writing = Writing::new(&served).await;
    let tables = || {
        let files = fingerprint(&data.join("db/keyspaces"));
        files.keys().any(|path| {
            let text = path.to_str().unwrap();
            text.contains("/tables/") && !text.contains("/keyspaces/0/")
        })
    };
    while !tables() {
        let write = writing.next(500_000);
        writing.insist(&write).await;
        assert!(writing.acked < 200, "tables are flushed");
    }
    served.process.terminate();
    (data, writing.acked)
}

/// What a gateway says that must not start.
fn refusal(data: &Path, title: &str) -> String {
    let mut command = cli::tidegate(&["serve", "--dev", "--listen", "127.0.0.1:0", "--data-dir"]);
    let child = command
        .arg(data)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut process = cli::Process(child);
    let mut greeting = String::new();
    let out = process.0.stdout.take().unwrap();
    BufReader::new(out).read_line(&mut greeting).unwrap();
    assert_eq!(greeting, "", "{title}: it serves");
    let mut said = String::new();
    process.0.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert_eq!(process.0.wait().unwrap().code(), Some(1), "{said}");
    said
}

/// It must not start, say all of this, and touch nothing.
fn refused(data: &Path, title: &str, names: &[&str]) {
    let before = fingerprint(data);
    let said = refusal(data, title);
    assert!(
        names.iter().all(|name| said.contains(name)),
        "{title}: {names:?}: {said}"
    );
    assert_eq!(fingerprint(data), before, "{title}: touched");
}

/// Whether a file tells nothing: locks, versions of a tree before the present one, room for tables.
fn idle(data: &Path, path: &Path) -> bool {
    let name = path.file_name().unwrap().to_str().unwrap();
    let current = || {
        let bytes = fs::read(path.with_file_name("current")).unwrap();
        u64::from_le_bytes(bytes[..8].try_into().unwrap())
    };
    let old = name.strip_prefix('v').and_then(|id| id.parse::<u64>().ok());
    let empty = path.is_dir() && fs::read_dir(path).unwrap().next().is_none();
    path == data.join("LOCK") || empty || old.is_some_and(|id| id != current())
}

#[tokio::test]
async fn whatever_file_is_damaged_or_gone_a_gateway_names_it_does_not_start_and_touches_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let (data, _) = data(folder.path()).await;
    let mut met = 0;
    for path in fingerprint(&data).into_keys().filter(|path| !idle(&data, path)) {
        let name = path.strip_prefix(&data).unwrap().display().to_string();
        let away = folder.path().join("away");
        fs::rename(&path, &away).unwrap();
        // Of a folder, something in it is named. Journals have no fixed names.
        let named = match name.ends_with(".jnl") {
            true => format!(
                "{} is damaged: it has no journal (*.jnl)",
                path.parent().unwrap().display()
            ),
            false => path.display().to_string(),
        };
        refused(&data, &format!("{name} is gone"), &[&named]);
        let whole = if away.is_dir() {
            Vec::new()
        } else {
            fs::read(&away).unwrap()
        };
        let mut flipped = whole.clone();
        if let Some(byte) = flipped.get_mut(whole.len() / 2) {
            *byte ^= 0xff;
        }
        // A journal that is cut is a torn one; and records are verified when they are read.
        let (journal, records) = (
            name.ends_with(".jnl"),
            name.contains("/tables/") && !name.contains("/0/"),
        );
        let cases = [
            ("cut", &whole[..whole.len() / 2], journal),
            ("flipped", &flipped[..], records || journal),
        ];
        for (damage, bytes, elsewhere) in cases {
            if whole.is_empty() || elsewhere {
                continue;
            }
            fs::write(&path, bytes).unwrap();
            // What names another file and its checksum is as suspect as that file: both are named.
            let place = match path.ends_with("current") {
                true => path.parent().unwrap(),
                false => &path,
            };
            let names = [place.to_str().unwrap(), if path == place { "" } else { "current" }];
            refused(&data, &format!("{name} is {damage}"), &names);
            fs::remove_file(&path).unwrap();
        }
        fs::rename(&away, &path).unwrap();
        met += 1;
    }
    assert!(met > 30, "{met}");
    // All of it is as it was.
    serve(&data, "", |_| {}).whole().await;
}

#[tokio::test]
async fn a_directory_in_use_or_of_a_newer_format_is_refused_and_not_touched() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let mut served = serve(&data, "", |_| {});
    refused(&data, "in use", &["in use", data.join("LOCK").to_str().unwrap()]);
    served.process.terminate();
    let marker = data.join("FORMAT");
    fs::write(&marker, "tidegate-store 77\n").unwrap();
    refused(&data, "newer", &["77", "upgrade", marker.to_str().unwrap()]);
}

#[tokio::test]
async fn a_damaged_table_fails_the_reads_that_meet_it_and_no_others() {
    let folder = tempfile::tempdir().unwrap();
    let (data, docs) = data(folder.path()).await;
    // The third table that was created holds documents, large ones here: a block each.
    let tables = fs::read_dir(data.join("db/keyspaces/3/tables")).unwrap();
    let table = tables.map(|entry| entry.unwrap().path()).next().unwrap();
    let mut bytes = fs::read(&table).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0xff;
    fs::write(&table, bytes).unwrap();

    let mut served = serve(&data, "", |_| {});
    let mut peer = served.peer().await;
    let mut failed = Vec::new();
    for mid in 1..=docs {
        let get = Get {
            id: mid,
            space: SPACE.parse().unwrap(),
            docs: vec![format!("each/{mid}").parse().unwrap()],
        };
        peer.send(&ClientMessage::Get(get)).await;
        match peer.next().await {
            ServerMessage::Docs { docs, .. } => {
                assert!(matches!(docs[0].kind, DocChangeKind::Whole(_)), "{mid}: {docs:?}");
            }
            _ => failed.push(mid),
        }
    }
    assert_eq!(failed.len(), 1, "{failed:?}");
    served.process.terminate();
    let log = fs::read_to_string(data.with_extension("log")).unwrap();
    assert!(
        log.contains("a block of the table cells is not what was written"),
        "{log}"
    );
}
