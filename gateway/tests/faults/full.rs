//! Writes fail, reads go on, and when the disk takes writes again the gateway does, too.

use crate::disk::{Disk, Fault};
use crate::support::{Replica, set};
use crate::{SPACE, Served, Writing, assert_unavailable, cli, serve, start};
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};
use tidegate_protocol::{ClientMessage, Code, Get, Seq, ServerMessage};

/// One document, read without a subscription.
async fn get(writing: &mut Writing, doc: &str) {
    let get = Get {
        id: 1,
        space: SPACE.parse().unwrap(),
        docs: vec![doc.parse().unwrap()],
    };
    writing.peer.send(&ClientMessage::Get(get)).await;
    let answer = writing.peer.next().await;
    assert!(
        matches!(&answer, ServerMessage::Docs { docs, .. } if docs.len() == 1),
        "{answer:?}"
    );
}

async fn pause() {
    tokio::time::sleep(Duration::from_millis(50)).await;
}

/// Writes until a fault, through it, and after it, while others read.
async fn through(served: &Served, disk: &Disk, fault: Fault) {
    let mut writing = Writing::new(served).await;
    writing.state.client.0 = fault as u64;
    let (mut watcher, mut watched) = (served.peer().await, Replica::default());
    watcher.follow(SPACE, &mut watched, None).await;
    let before = watched.int("count/all", "n").unwrap_or(0).unsigned_abs();
    writing.acked = before;
    writing.state.mid = 0;
    let failures = served.metric("tidegate_store_write_failures_total");
    let reopened = served.metric("tidegate_store_reopened_total");
    for _ in 0..20 {
        let write = writing.next(10);
        writing.insist(&write).await;
    }

    disk.fail(fault);
    let write = writing.next(10);
    let begun = Instant::now();
    let mut refused = 0;
    // Longer than some attempts to open the database again take.
    while begun.elapsed() < Duration::from_secs(3) {
        assert_unavailable(&writing.send(&write).await.expect_err("no write gets through"));
        refused += 1;
        get(&mut writing, "count/all").await;
        let whole = served.whole().await;
        assert_eq!(whole.int("count/all", "n"), Some(writing.acked as i64), "reads go on");
        pause().await;
    }
    assert!(refused > 1);
    assert!(served.metric("tidegate_store_write_failures_total") > failures);
    assert_eq!(served.metric("tidegate_store_reopened_total"), reopened);

    disk.fail(Fault::Nothing);
    writing.insist(&write).await;
    for _ in 0..20 {
        let write = writing.next(10);
        writing.insist(&write).await;
    }
    assert!(served.metric("tidegate_store_reopened_total") > reopened);
    assert_eq!(writing.acked, before + 41);
    watcher.reach(&mut watched, before + 41).await;
    assert_eq!(watched.int("count/all", "n"), Some(writing.acked as i64));
    assert_eq!(watched.docs, served.whole().await.docs);
    let later = watched.epochs.iter().filter(|start| start.seq > Seq::ZERO).count();
    assert_eq!(later, 0, "nothing was lost, so history goes on");
}

#[tokio::test]
async fn while_the_disk_is_full_or_fails_reads_go_on_and_afterwards_writes_do() {
    let folder = tempfile::tempdir().unwrap();
    let disk = Disk::new(folder.path());
    let data = disk.root().join("data");
    let served = serve(&data, "", |command| disk.attach(command, false));
    for fault in [Fault::Full, Fault::Write, Fault::Sync] {
        through(&served, &disk, fault).await;
    }
    let before = served.whole().await;
    // Killed, so that nothing is put right at the end.
    drop(served);
    let served = serve(&data, "", |_| {});
    let after = served.whole().await;
    assert_eq!((&before.docs, before.at), (&after.docs, after.at));
    assert_eq!(after.int("count/all", "n"), Some(3 * 41));
}

#[tokio::test]
async fn an_erasure_that_meets_a_failing_disk_goes_on_when_that_takes_writes_again() {
    const MUTATIONS: u64 = 60;
    let folder = tempfile::tempdir().unwrap();
    let disk = Disk::new(folder.path());
    let data = disk.root().join("data");
    let served = serve(&data, "", |command| disk.attach(command, false));
    let mut writing = Writing::new(&served).await;
    for n in 0..MUTATIONS {
        let ops = (0..300).map(|m| set(&format!("c/{n}-{m}"), "x", 1)).collect();
        let write = ClientMessage::Write(writing.state.write(ops));
        writing.insist(&write).await;
    }
    let mut control = UnixStream::connect(data.join("control.sock")).unwrap();
    let request = format!("{{\"command\":\"erase\",\"space\":\"{SPACE}\",\"user\":null}}\n");
    control.write_all(request.as_bytes()).unwrap();
    while is_open(&mut writing).await {}
    disk.fail(Fault::Write);
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(!is_open(&mut writing).await, "it fails in the middle");
    assert!(served.metric("tidegate_store_write_failures_total") > 0);

    disk.fail(Fault::Nothing);
    let healed = Instant::now();
    while !is_open(&mut writing).await {
        assert!(healed.elapsed() < cli::PATIENCE, "it goes on");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    println!("open again after {:?}", healed.elapsed());
    assert_eq!(served.metric("tidegate_store_documents"), 0);
    let mut answer = String::new();
    BufReader::new(control).read_line(&mut answer).unwrap();
    assert!(answer.starts_with("{\"ok\":{\"docs\":"), "{answer}");
}

/// Whether the space takes reads.
async fn is_open(writing: &mut Writing) -> bool {
    let get = Get {
        id: 1,
        space: SPACE.parse().unwrap(),
        docs: vec!["c/none".parse().unwrap()],
    };
    writing.peer.send(&ClientMessage::Get(get)).await;
    match writing.peer.next().await {
        ServerMessage::Docs { .. } => true,
        ServerMessage::Error { code, .. } => {
            assert_eq!(code, Code::Unavailable);
            false
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_failing_flush_in_the_background_shows_and_loses_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let disk = Disk::new(folder.path());
    let data = disk.root().join("data");
    let served = serve(&data, "", |command| disk.attach(command, false));
    let mut writing = Writing::new(&served).await;
    disk.fail(Fault::Tables);
    // A table's memory holds 16 MiB: then it is flushed.
    let begun = Instant::now();
    while served.metric("tidegate_store_write_failures_total") == 0 {
        assert!(begun.elapsed() < cli::PATIENCE, "a table is flushed");
        let write = writing.next(500_000);
        writing.insist(&write).await;
    }
    disk.fail(Fault::Nothing);
    let write = writing.next(10);
    writing.insist(&write).await;
    writing.check(&served.whole().await);
    drop(served);
    writing.check(&serve(&data, "", |_| {}).whole().await);
}

/// Fills a real, small file system until writes are refused, makes room, and writes on.
async fn fill(reserve: u64) {
    const FILLER: u64 = 120 << 20;
    let Some(namespace) = namespace() else {
        // The tests on the disk that fails when it is told to hold the same promises.
        println!("NOT RUN: this user may not mount a file system; root may");
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let mount = folder.path().join("mount");
    std::fs::create_dir(&mount).unwrap();
    let config = folder.path().join("tidegate.toml");
    std::fs::write(&config, format!("reserve_bytes = {reserve}")).unwrap();
    let script = "mount -t tmpfs -o size=260m none \"$0\" && head -c \"$1\" /dev/zero > \"$0/filler\" && \
                  exec \"$2\" serve --dev --listen 127.0.0.1:0 --data-dir \"$0/data\" --config \"$3\"";
    let mut command = Command::new("unshare");
    command.args([namespace, "sh", "-c", script]);
    command
        .arg(&mount)
        .arg(FILLER.to_string())
        .arg(cli::TIDEGATE)
        .arg(&config);
    let served = start(command, &folder.path().join("log"));

    let mut writing = Writing::new(&served).await;
    let refused = loop {
        let write = writing.next(300_000);
        if let Err(reject) = writing.send(&write).await {
            assert_unavailable(&reject);
            break write;
        }
        assert!(writing.acked < 1_000, "it is full at some time");
    };
    println!("full after {} writes", writing.acked);
    for _ in 0..4 {
        assert_unavailable(&writing.send(&refused).await.expect_err("it is full"));
        writing.check(&served.whole().await);
        pause().await;
    }
    if reserve == 0 {
        // Copies of the journals that cannot be whole are not begun.
        let log = std::fs::read_to_string(folder.path().join("log")).unwrap();
        let says = |words: &str| {
            log.lines()
                .any(|line| line.contains("opened again") && line.contains(words))
        };
        assert!(
            says("bytes are free, and") && !says("opening the database again failed"),
            "{log}"
        );
    }
    let failed = served.metric("tidegate_store_write_failures_total");
    assert_eq!(
        failed == 0,
        reserve > 0,
        "a full disk is met only where nothing is kept free"
    );
    let free = served.metric("tidegate_store_free_bytes");
    assert!(reserve == 0 || free < reserve, "{free}");

    // Another process's view of that mount.
    let inside = Path::new("/proc").join(served.process.0.id().to_string()).join("root");
    std::fs::remove_file(inside.join(mount.strip_prefix("/").unwrap()).join("filler")).unwrap();
    writing.insist(&refused).await;
    for _ in 0..10 {
        let write = writing.next(300_000);
        writing.insist(&write).await;
    }
    writing.check(&served.whole().await);
    assert_eq!(served.metric("tidegate_store_reopened_total") > 0, reserve == 0);
}

/// The option of `unshare` that this user may use for a mount of their own.
fn namespace() -> Option<&'static str> {
    let run = |command: &str, args: &[&str]| Command::new(command).args(args).output().expect("it runs");
    let may = ["-m", "-rm"]
        .into_iter()
        .find(|option| run("unshare", &[option, "true"]).status.success());
    assert!(may.is_some() || run("id", &["-u"]).stdout != b"0\n", "root may mount");
    may
}

#[tokio::test]
async fn a_small_file_system_fills_up_to_the_reserve_and_is_written_on_when_there_is_room() {
    // It holds what the database writes by itself, a table of 16 MiB at a time.
    fill(tidegate::store::embedded::RESERVE_BYTES).await;
}

#[tokio::test]
async fn a_small_file_system_fills_up_to_the_last_byte_and_is_written_on_when_there_is_room() {
    fill(0).await;
}
