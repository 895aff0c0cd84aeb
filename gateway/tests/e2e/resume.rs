//! From a position a client gets exactly what it lacks, or is told `reset` and gets the whole.

use crate::support::*;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use tempfile::TempDir;
use tidegate::server::ServerConfig;
use tidegate::store::Retention;
use tidegate_protocol::*;

/// A gateway that keeps few commits and sends small pages.
async fn small() -> Gateway {
    Gateway::with(
        small_pages(),
        Retention {
            log_commits: 30,
            ..Retention::default()
        },
    )
    .await
}

fn small_pages() -> ServerConfig {
    let mut config = ServerConfig::default();
    config.node.limits.page_bytes = 600;
    config.hub.ring_commits = 8;
    config
}

/// Writes and waits for the answers.
async fn write_all(gateway: &Gateway, writer: &mut WriterState, mutations: Vec<Vec<Op>>) {
    let mut peer = gateway.peer("writer").await;
    let count = mutations.len();
    for ops in mutations {
        peer.send(&ClientMessage::Write(writer.write(ops))).await;
    }
    for _ in 0..count {
        peer.answer(&mut Replica::default()).await.unwrap();
    }
}

fn sets(range: std::ops::Range<i64>, docs: i64) -> Vec<Vec<Op>> {
    range
        .map(|i| vec![set(&format!("d/{:03}", i % docs), "n", i)])
        .collect()
}

/// A replica that has never been away.
async fn fresh(gateway: &Gateway, space: &str) -> Replica {
    let mut peer = gateway.peer("fresh").await;
    let mut replica = Replica::default();
    peer.follow(space, &mut replica, None).await;
    replica
}

#[tokio::test]
async fn a_client_that_missed_little_gets_exactly_those_commits() {
    let gateway = small().await;
    let mut writer = WriterState::new("s", 1, 0);
    writer.first = gateway.peer("w").await.now;
    write_all(&gateway, &mut writer, sets(0..10, 3)).await;
    let mut replica = fresh(&gateway, "s").await;
    write_all(&gateway, &mut writer, sets(10..20, 3)).await;
    gateway.peer("r").await.follow("s", &mut replica, None).await;
    assert_eq!(replica.mode(), Mode::Log);
    assert_eq!(
        replica.seen.iter().map(|(seq, _, _)| *seq).collect::<Vec<_>>(),
        (11..=20).collect::<Vec<_>>()
    );
    assert_eq!(replica.docs, fresh(&gateway, "s").await.docs);
}

#[tokio::test]
async fn a_client_long_gone_gets_what_changed_and_not_what_exists() {
    let gateway = small().await;
    let mut writer = WriterState::new("s", 1, gateway.peer("w").await.now);
    write_all(&gateway, &mut writer, sets(0..200, 100)).await;
    let replica = fresh(&gateway, "s").await;
    // Far more than the log keeps, on few documents: changed, unset, deleted, deleted and created again, replaced by a map.
    let mut later = sets(0..100, 2);
    later.push(vec![set("d/003", "a.b", 1), set("d/003", "a.c", 2)]);
    later.push(vec![op("d/003", OpKind::Unset(vec!["a.b".parse().unwrap()]))]);
    later.push(vec![delete("d/004")]);
    later.push(vec![delete("d/005")]);
    later.push(vec![op(
        "d/005",
        OpKind::Create(fields(&[("again", Value::bool(true))])),
    )]);
    later.push(vec![set("d/006", "n.deep.er", 1)]);
    later.push(vec![op("d/empty", OpKind::Create(Fields::default()))]);
    write_all(&gateway, &mut writer, later).await;
    let mut resumed = replica.clone();
    let mut peer = gateway.peer("r").await;
    peer.sub("s", None, resumed.from(), None).await;
    let mut sent = 0;
    loop {
        let message = peer.next().await;
        if let ServerMessage::Page { docs, .. } = &message {
            sent += docs.len();
        }
        resumed.take(&message);
        if matches!(message, ServerMessage::Current { .. }) {
            break;
        }
    }
    assert_eq!(resumed.mode(), Mode::Delta);
    assert_eq!(
        sent, 7,
        "two changed, one unset in, one deleted, one born again, one restructured, one empty"
    );
    assert_eq!(resumed.docs, fresh(&gateway, "s").await.docs);
    assert!(!resumed.docs.contains_key("d/004"));
    assert!(resumed.docs["d/empty"].is_empty());
    assert_eq!(resumed.docs["d/005"].len(), 1, "what it was in its former life is gone");
}

#[tokio::test]
async fn a_position_below_the_tombstone_floor_is_answered_with_reset() {
    let gateway = small().await;
    let mut writer = WriterState::new("s", 1, gateway.peer("w").await.now);
    write_all(&gateway, &mut writer, sets(0..50, 10)).await;
    let mut replica = fresh(&gateway, "s").await;
    let mut later = sets(0..100, 5);
    later.push(vec![delete("d/009")]);
    write_all(&gateway, &mut writer, later).await;
    gateway
        .store
        .raise_floor(&"s".parse().unwrap(), Seq::new(151).unwrap())
        .await
        .unwrap();
    gateway.peer("r").await.follow("s", &mut replica, None).await;
    assert_eq!(replica.mode(), Mode::Reset, "a delta could not say that d/009 is gone");
    assert_eq!(replica.docs, fresh(&gateway, "s").await.docs);
    assert!(!replica.docs.contains_key("d/009"));
}

#[tokio::test]
async fn a_wiped_store_is_answered_with_reset() {
    let gateway = small().await;
    let mut writer = WriterState::new("s", 1, gateway.peer("w").await.now);
    write_all(&gateway, &mut writer, sets(0..20, 10)).await;
    let old = fresh(&gateway, "s").await;
    gateway.stop().await;
    let gateway = small().await;
    // Empty, and with as many commits as before of other content.
    let mut replica = old.clone();
    gateway.peer("r").await.follow("s", &mut replica, None).await;
    assert_eq!((replica.mode(), replica.docs.len()), (Mode::Reset, 0));
    let mut writer = WriterState::new("s", 2, gateway.peer("w").await.now);
    write_all(&gateway, &mut writer, sets(500..520, 4)).await;
    let mut replica = old.clone();
    gateway.peer("r").await.follow("s", &mut replica, None).await;
    assert_eq!(replica.mode(), Mode::Reset);
    assert_eq!(replica.docs, fresh(&gateway, "s").await.docs);
}

#[tokio::test]
async fn a_forged_position_is_answered_with_reset() {
    let gateway = small().await;
    let mut writer = WriterState::new("s", 1, gateway.peer("w").await.now);
    write_all(&gateway, &mut writer, sets(0..20, 10)).await;
    let truth = fresh(&gateway, "s").await;
    let seq = |n| Seq::new(n).unwrap();
    for forged in [
        Position::new(truth.at.epoch, seq(21)),
        Position::new(truth.at.epoch, seq((1 << 53) - 1)),
        Position::new(Epoch(truth.at.epoch.0 ^ 1), seq(5)),
        Position::new(Epoch(0), seq(5)),
    ] {
        let mut replica = Replica {
            at: forged,
            view: truth.view,
            ..Replica::default()
        };
        gateway.peer("r").await.follow("s", &mut replica, None).await;
        assert_eq!(replica.mode(), Mode::Reset, "{forged}");
        assert_eq!(replica.docs, truth.docs);
    }
    // A cursor that nobody gave out is not taken up, and what was staged under it is dropped.
    for cursor in [&b""[..], b"garbage", &[0xff; 300]] {
        let mut replica = Replica {
            cursor: Some(bytes::Bytes::from(cursor)),
            ..truth.clone()
        };
        gateway.peer("r").await.follow("s", &mut replica, None).await;
        assert_eq!(replica.resumed.last(), Some(&false));
        assert_eq!(replica.docs, truth.docs);
        // Who holds nothing but what is staged is not brought commits: there is no state to apply them to.
        let mut empty = Replica {
            at: Position::START,
            docs: Default::default(),
            ..replica
        };
        empty.cursor = Some(bytes::Bytes::from(cursor));
        gateway.peer("r").await.follow("s", &mut empty, None).await;
        assert_eq!(empty.mode(), Mode::Reset);
        assert_eq!(empty.docs, truth.docs);
    }
}

#[tokio::test]
async fn a_changed_filter_is_answered_with_reset() {
    let gateway = small().await;
    let mut writer = WriterState::new("s", 1, gateway.peer("w").await.now);
    write_all(
        &gateway,
        &mut writer,
        vec![vec![set("a/x", "n", 1)], vec![set("b/x", "n", 2)]],
    )
    .await;
    let mut peer = gateway.peer("r").await;
    let mut replica = Replica::default();
    peer.sub("s", None, None, Some(&["a"])).await;
    peer.catch_up(&mut replica).await;
    assert_eq!(replica.docs.keys().collect::<Vec<_>>(), ["a/x"]);
    // The position is the head; by it alone b/x would never come.
    let narrow = replica.clone();
    peer.sub("s", None, replica.from(), None).await;
    peer.catch_up(&mut replica).await;
    assert_eq!(replica.mode(), Mode::Reset);
    assert_eq!(replica.docs.len(), 2);
    // The same filter, in another order and with a repeat, is the same view.
    let mut replica = narrow;
    peer.sub("s", None, replica.from(), Some(&["a"])).await;
    peer.catch_up(&mut replica).await;
    assert_eq!(replica.mode(), Mode::Log);
}

#[tokio::test]
async fn a_broken_catch_up_goes_on_where_it_broke_also_after_a_restart() {
    let gateway = small().await;
    let mut writer = WriterState::new("s", 1, gateway.peer("w").await.now);
    write_all(&gateway, &mut writer, sets(0..120, 120)).await;
    let mut replica = Replica::default();
    let mut pages = 0;
    {
        let mut peer = gateway.peer("r").await;
        peer.sub("s", None, None, None).await;
        while pages < 3 {
            let message = peer.next().await;
            pages += usize::from(matches!(message, ServerMessage::Page { .. }));
            replica.take(&message);
        }
    }
    let had = replica.staged.len();
    assert!(had > 0 && had < 120);
    // Meanwhile one that was sent already changes, one is deleted, and the node is another.
    write_all(
        &gateway,
        &mut writer,
        vec![vec![set("d/000", "n", -1)], vec![delete("d/001")]],
    )
    .await;
    let dir = gateway.stop().await;
    let gateway = Gateway::in_dir(
        dir,
        small_pages(),
        Retention {
            log_commits: 30,
            ..Retention::default()
        },
    )
    .await;
    gateway.peer("r").await.follow("s", &mut replica, None).await;
    assert_eq!(replica.resumed.last(), Some(&true));
    assert_eq!(replica.docs, fresh(&gateway, "s").await.docs);
    assert_eq!(replica.int("d/000", "n"), Some(-1));
    assert!(!replica.docs.contains_key("d/001"));
}

#[tokio::test]
async fn a_catch_up_that_the_store_breaks_off_goes_on_behind_what_it_has_sent() {
    let dir = Arc::new(TempDir::new().unwrap());
    let store = open_store(dir.path(), Retention::default());
    let gate = Gate::new(store.clone());
    let gateway = Gateway::on(dir, store, gate.clone(), small_pages()).await;
    let mut writer = WriterState::new("s", 1, gateway.peer("w").await.now);
    write_all(&gateway, &mut writer, sets(0..120, 120)).await;
    let mut peer = gateway.peer("r").await;
    let (first, go) = gate.hold("changes");
    peer.sub("s", None, None, None).await;
    first.await.unwrap();
    gate.closed.store(true, Ordering::Relaxed);
    go.send(()).unwrap();
    let (mut begins, mut docs) = (Vec::new(), Vec::new());
    loop {
        match peer.next().await {
            ServerMessage::Begin(begin) => begins.push(begin.resumed),
            ServerMessage::Page { docs: page, .. } => {
                docs.extend(page.into_iter().map(|change| change.doc));
                gate.closed.store(false, Ordering::Relaxed);
            }
            ServerMessage::Current { .. } => break,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(begins, [false, true], "from a page that it had not before");
    let sent = docs.len();
    docs.sort();
    docs.dedup();
    assert_eq!((sent, docs.len()), (120, 120), "each once");
}

#[tokio::test]
async fn a_cursor_of_another_position_is_not_taken_up() {
    let gateway = small().await;
    let mut writer = WriterState::new("s", 1, gateway.peer("w").await.now);
    write_all(&gateway, &mut writer, sets(0..40, 40)).await;
    let old = fresh(&gateway, "s").await;
    write_all(&gateway, &mut writer, sets(40..80, 40)).await;
    let middle = fresh(&gateway, "s").await;
    write_all(&gateway, &mut writer, sets(100..220, 30)).await;
    // A delta from the middle is broken off; its cursor then comes from a client that is older.
    let mut broken = middle.clone();
    {
        let mut peer = gateway.peer("r").await;
        peer.sub("s", None, broken.from(), None).await;
        while broken.cursor.is_none() {
            let message = peer.next().await;
            broken.take(&message);
        }
        assert_eq!(broken.mode(), Mode::Delta);
    }
    let mut replica = Replica {
        cursor: broken.cursor.clone(),
        ..old
    };
    gateway.peer("r").await.follow("s", &mut replica, None).await;
    assert_eq!(
        replica.docs,
        fresh(&gateway, "s").await.docs,
        "d/030 to d/039 changed between old and middle"
    );
}

#[tokio::test]
async fn a_restart_is_a_new_epoch_and_every_position_stays_valid() {
    let gateway = Gateway::start().await;
    let mut writer = WriterState::new("s", 1, gateway.peer("w").await.now);
    write_all(&gateway, &mut writer, sets(0..5, 5)).await;
    let mut replica = fresh(&gateway, "s").await;
    let before = replica.at.epoch;
    let gateway = gateway.restart().await;
    let mut peer = gateway.peer("r").await;
    peer.follow("s", &mut replica, None).await;
    assert_eq!(
        (replica.mode(), replica.at.epoch),
        (Mode::Log, before),
        "nobody has written yet"
    );
    write_all(&gateway, &mut writer, sets(5..8, 5)).await;
    peer.reach(&mut replica, 8).await;
    assert_ne!(replica.at.epoch, before);
    assert_eq!(replica.modes, [Mode::Reset, Mode::Log], "no reset");
    // And from the epoch before.
    let mut old = Replica {
        epochs: vec![],
        at: Position::new(before, Seq::new(3).unwrap()),
        ..replica.clone()
    };
    gateway.peer("r").await.follow("s", &mut old, None).await;
    assert_eq!(old.mode(), Mode::Log);
    assert_eq!(old.at, replica.at);
    let begins = Position::new(replica.at.epoch, Seq::new(5).unwrap());
    assert_eq!(
        old.epochs,
        [begins],
        "told in its place, so that a client cut off in between can resume"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_between_snapshot_and_subscription_is_seen_exactly_once() {
    for (call, more) in [
        ("changes", 1),
        ("changes", 5),
        ("changes", 40),
        ("log", 1),
        ("log", 40),
        ("positions", 3),
    ] {
        let dir = Arc::new(TempDir::new().unwrap());
        let store = open_store(dir.path(), Retention::default());
        let gate = Gate::new(store.clone());
        let gateway = Gateway::on(dir, store, gate.clone(), small_pages()).await;
        let mut writer = WriterState::new("s", 1, gateway.peer("w").await.now);
        write_all(&gateway, &mut writer, sets(0..10, 3)).await;
        let mut replica = Replica::default();
        if call == "log" {
            replica = fresh(&gateway, "s").await;
            write_all(&gateway, &mut writer, sets(10..12, 3)).await;
        }
        let mut peer = gateway.peer("r").await;
        let (reached, go) = gate.hold(call);
        peer.sub("s", None, replica.from(), None).await;
        reached.await.unwrap();
        // What the subscription has read is old now.
        write_all(&gateway, &mut writer, sets(20..20 + more, 3)).await;
        go.send(()).unwrap();
        peer.catch_up(&mut replica).await;
        let head = writer.mid;
        peer.reach(&mut replica, head).await;
        write_all(&gateway, &mut writer, sets(90..91, 3)).await;
        peer.reach(&mut replica, head + 1).await;
        assert_eq!(replica.docs, fresh(&gateway, "s").await.docs, "{call} {more}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_catch_up_among_writers_ends_in_the_state_of_its_position() {
    let gateway = small().await;
    let mut writer = WriterState::new("s", 1, gateway.peer("w").await.now);
    write_all(&gateway, &mut writer, sets(0..200, 100)).await;
    let mut busy = gateway.peer("writer").await;
    let mut writing = tokio::task::JoinSet::new();
    writing.spawn(async move {
        for i in 0..600 {
            // Both in one mutation: at any position the two are equal.
            let ops = vec![set(&format!("d/{:03}", i % 100), "n", i), set("d/last", "n", i)];
            busy.send(&ClientMessage::Write(writer.write(ops))).await;
            busy.answer(&mut Replica::default()).await.unwrap();
        }
    });
    for _ in 0..10 {
        let replica = fresh(&gateway, "s").await;
        let newest = replica.docs.iter().filter(|(name, _)| *name != "d/last");
        let newest = newest.filter_map(|(name, _)| replica.int(name, "n")).max();
        if let Some(last) = replica.int("d/last", "n") {
            let of = format!("d/{:03}", last % 100);
            assert_eq!(
                replica.int(&of, "n"),
                Some(last),
                "torn at {}: newest {newest:?}",
                replica.at
            );
        }
    }
    writing.join_next().await.unwrap().unwrap();
}

#[tokio::test]
async fn a_delta_never_takes_more_than_its_documents_do() {
    let gateway = small().await;
    let mut writer = WriterState::new("s", 1, gateway.peer("w").await.now);
    // Two generations of many long names: the first is gone by the second, and a delta names both.
    let names = |generation: &str| -> Vec<(String, Value)> {
        let name = |n: usize| format!("{generation}.{n:04}{}", "x".repeat(450));
        (0..1_400).map(|n| (name(n), Value::int(1))).collect()
    };
    let generation = |name: &str| {
        let leaves = names(name);
        let leaves: Vec<(&str, Value)> = leaves
            .iter()
            .map(|(path, value)| (path.as_str(), value.clone()))
            .collect();
        vec![op("d/x", OpKind::Merge(fields(&leaves)))]
    };
    let drop = |name: &str| vec![op("d/x", OpKind::Unset(vec![name.parse().unwrap()]))];
    write_all(&gateway, &mut writer, vec![generation("a")]).await;
    let mut replica = fresh(&gateway, "s").await;
    let mut later = vec![drop("a"), generation("b"), drop("b"), generation("c")];
    later.extend(sets(0..50, 3));
    write_all(&gateway, &mut writer, later).await;
    let mut peer = gateway.peer("r").await;
    peer.sub("s", None, replica.from(), None).await;
    loop {
        let message = peer.next().await;
        let bytes = peer.form.encode_server(&message).len();
        assert!(bytes <= limits::MESSAGE_BYTES, "a message of {bytes} bytes");
        replica.take(&message);
        if matches!(message, ServerMessage::Current { .. }) {
            break;
        }
    }
    assert_eq!(replica.mode(), Mode::Delta);
    assert_eq!(replica.docs, fresh(&gateway, "s").await.docs);
}
