//! What clients see of a restore: what was acked after the backup is gone, and everybody concerned knows.

use crate::support::*;
use std::sync::Arc;
use tempfile::TempDir;
use tidegate::env::SystemEnv;
use tidegate::server::ServerConfig;
use tidegate::store::Retention;
use tidegate::store::embedded;
use tidegate_client::{Client, Failure, Options, WatchItem, fields};
use tidegate_protocol::*;
use tokio::sync::mpsc;

async fn back_up(gateway: &Gateway) -> Vec<u8> {
    let (sender, mut pieces) = mpsc::channel(1);
    let mut bytes = Vec::new();
    let (done, ()) = tokio::join!(gateway.store.backup(sender), async {
        while let Some(piece) = pieces.recv().await {
            bytes.extend_from_slice(&piece);
        }
    });
    done.unwrap();
    bytes
}

/// Stops the gateway, and starts another in its place on what the backup holds.
async fn go_back(gateway: Gateway, backup: &[u8]) -> Gateway {
    let addr = gateway.addr;
    gateway.stop().await;
    let dir = Arc::new(TempDir::new().unwrap());
    embedded::restore(backup, dir.path(), &SystemEnv).unwrap();
    let store = open_store(dir.path(), Retention::default());
    Gateway::at(addr, dir, store.clone(), store, ServerConfig::default()).await
}

async fn replica(gateway: &Gateway, mut replica: Replica) -> Replica {
    gateway.peer("reader").await.follow("s", &mut replica, None).await;
    replica
}

fn client(gateway: &Gateway, user: &str) -> Client {
    Client::connect(Options::new(&format!("ws://{}", gateway.addr)).unwrap().token(user))
}

async fn within<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, what).await.expect("in time")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_restore_those_who_saw_more_reset_and_report_their_losses_and_the_others_resume() {
    let gateway = Gateway::start().await;
    let (alice, carol) = (client(&gateway, "alice"), client(&gateway, "carol"));
    let (busy, quiet) = (alice.space("s").unwrap(), carol.space("quiet").unwrap());
    let mut lost = alice.failures();
    let (mut live, mut seen) = (busy.live(), quiet.watch());
    within(busy.current()).await.unwrap();
    within(quiet.current()).await.unwrap();
    let doc = busy.doc("d/1").unwrap();
    within(quiet.doc("d/1").unwrap().upsert(fields! { "n" => 1 }))
        .await
        .unwrap();
    within(doc.upsert(fields! { "n" => 1 })).await.unwrap();
    let early = replica(&gateway, Replica::default()).await;
    within(doc.upsert(fields! { "n" => 2 })).await.unwrap();
    let exact = replica(&gateway, Replica::default()).await;
    let backup = back_up(&gateway).await;
    within(doc.upsert(fields! { "n" => 3 })).await.unwrap();
    within(doc.upsert(fields! { "n" => 4 })).await.unwrap();
    let late = replica(&gateway, Replica::default()).await;
    assert_eq!((early.at.seq.get(), exact.at.seq.get(), late.at.seq.get()), (1, 2, 4));

    let gateway = go_back(gateway, &backup).await;
    for (before, mode) in [(&early, Mode::Log), (&exact, Mode::Log), (&late, Mode::Reset)] {
        let after = replica(&gateway, before.clone()).await;
        assert_eq!(
            (after.mode(), after.int("d/1", "n")),
            (mode, Some(2)),
            "from {}",
            before.at
        );
        assert_ne!(after.at.epoch, before.at.epoch);
    }
    let Some(Failure::Lost { space, loss }) = within(lost.next()).await else {
        panic!("a loss")
    };
    assert_eq!((space.as_str(), loss.from.get(), loss.through.get()), ("s", 3, 4));
    while doc.view().get("n") != Some(&Value::int(2)) {
        within(live.next()).await.unwrap();
    }
    within(doc.upsert(fields! { "n" => 5 })).await.unwrap();
    // Nothing of its space was lost: no second reset.
    within(quiet.doc("d/2").unwrap().upsert(fields! { "n" => 2 }))
        .await
        .unwrap();
    let mut resets = 0;
    loop {
        match within(seen.next()).await.unwrap() {
            WatchItem::Reset => resets += 1,
            WatchItem::Change { change, .. } if change.doc.as_str() == "d/2" => break,
            _ => {}
        }
    }
    assert_eq!(resets, 1);
    alice.close().await;
    carol.close().await;
}

#[tokio::test]
async fn two_restores_of_one_backup_are_two_histories() {
    let gateway = Gateway::start().await;
    let mut writer = WriterState::new("s", 1, gateway.peer("w").await.now);
    let write = async |gateway: &Gateway, writer: &mut WriterState, n| {
        let mut peer = gateway.peer("w").await;
        peer.send(&ClientMessage::Write(writer.write(vec![set("d/1", "n", n)])))
            .await;
        peer.answer(&mut Replica::default()).await.unwrap()
    };
    write(&gateway, &mut writer, 1).await;
    let backup = back_up(&gateway).await;

    let first = go_back(gateway, &backup).await;
    let mut writer_there = writer.clone();
    write(&first, &mut writer_there, 2).await;
    let of_first = replica(&first, Replica::default()).await;
    let second = go_back(first, &backup).await;
    write(&second, &mut writer, 3).await;
    let after = replica(&second, of_first.clone()).await;
    assert_eq!(after.at.seq, of_first.at.seq, "it has come as far");
    assert_eq!((after.mode(), after.int("d/1", "n")), (Mode::Reset, Some(3)));
}
