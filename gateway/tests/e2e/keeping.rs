//! How much is kept, and for how long: quotas, erasure.

use crate::support::*;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use tidegate::engine::{EngineConfig, Quota};
use tidegate::hub::HubConfig;
use tidegate::server::ServerConfig;
use tidegate::store::{Erase, Retention, Store, UserTag};
use tidegate_protocol::*;

/// Sends a mutation, and returns what it is answered.
async fn write(peer: &mut Peer, writer: &mut WriterState, ops: Vec<Op>) -> Result<Ack, Reject> {
    peer.send(&ClientMessage::Write(writer.write(ops))).await;
    peer.answer(&mut Replica::default()).await
}

#[tokio::test]
async fn a_write_over_a_quota_is_refused_with_the_numbers_and_those_after_it_go_on() {
    let quota = Quota {
        space_docs: Some(2),
        space_bytes: None,
        total_bytes: Some(6),
    };
    let engine = EngineConfig {
        quota,
        ..EngineConfig::default()
    };
    let config = ServerConfig {
        engine,
        ..ServerConfig::default()
    };
    let gateway = Gateway::with(config, Retention::default()).await;
    let mut peer = gateway.peer("ann").await;
    let mut s = WriterState::new("s", 1, peer.now);
    let mut t = WriterState::new("t", 1, peer.now);
    let refused = |answer: Result<Ack, Reject>, op: u32, words: &[&str]| {
        let reject = answer.expect_err("over a quota");
        assert_eq!((reject.code, reject.at.map(|at| at.op)), (Code::TooLarge, Some(op)));
        let all = words.iter().all(|word| reject.message.contains(word));
        assert!(all, "{}", reject.message);
    };
    // A document of one field with a small number is 2 bytes.
    let two = vec![inc("c/1", "n"), inc("c/2", "n")];
    write(&mut peer, &mut s, two).await.expect("within all");
    let answer = write(&mut peer, &mut s, vec![inc("c/1", "n"), inc("c/3", "n")]).await;
    refused(answer, 1, &["documents in the space", "2", "3"]);
    write(&mut peer, &mut t, vec![inc("c/1", "n")])
        .await
        .expect("another space");
    let answer = write(&mut peer, &mut t, vec![inc("c/2", "n")]).await;
    refused(answer, 0, &["bytes of all documents", "6", "8"]);
    // The refused ones consumed their mids, and what does not grow goes through.
    write(&mut peer, &mut s, vec![inc("c/1", "n")])
        .await
        .expect("no larger");
    write(&mut peer, &mut t, vec![inc("c/1", "n")])
        .await
        .expect("no larger");
    let usage = gateway.store.usage();
    assert_eq!((usage.docs, usage.bytes), (3, 6));
    let reading = |name: &str| {
        let readings = gateway.store.readings();
        readings
            .iter()
            .find(|reading| reading.name == name)
            .expect("read")
            .value
    };
    assert_eq!(reading("tidegate_store_spaces"), 2);
    assert_eq!(reading("tidegate_store_documents"), 3);
    assert_eq!(reading("tidegate_store_document_bytes"), 6);
    assert!(reading("tidegate_store_log_bytes") > 0 && reading("tidegate_store_disk_bytes") > 0);
    // Counted again from what is on disk.
    let gateway = gateway.restart().await;
    assert_eq!(gateway.store.usage(), usage);
}

/// Takes messages until the replica has caught up by a reset.
async fn reset(peer: &mut Peer, replica: &mut Replica) {
    while replica.modes.last() != Some(&Mode::Reset) || replica.staging {
        let message = peer.next().await;
        replica.take(&message);
    }
}

#[tokio::test]
async fn what_a_user_wrote_is_gone_from_everybody_once_it_is_erased() {
    let gateway = Gateway::start().await;
    let (mut ann, mut bob) = (gateway.peer("ann").await, gateway.peer("bob").await);
    let mut from_ann = WriterState::new("s", 1, ann.now);
    let mut from_bob = WriterState::new("s", 2, bob.now);
    write(
        &mut ann,
        &mut from_ann,
        vec![set("c/1", "ann", 1), set("c/2", "ann", 1)],
    )
    .await
    .expect("written");
    let again = from_bob.write(vec![set("c/1", "bob", 2), set("c/3", "bob", 2)]);
    bob.send(&ClientMessage::Write(again.clone())).await;
    let first = bob.answer(&mut Replica::default()).await;
    // One is live, one away, and one of ann's mutations is on its way.
    let (mut live, mut away) = (Replica::default(), Replica::default());
    let mut watcher = gateway.peer("eve").await;
    watcher.follow("s", &mut live, None).await;
    gateway.peer("eve").await.follow("s", &mut away, None).await;
    assert_eq!((live.docs.len(), away.docs.len()), (3, 3));
    let queued = from_ann.write(vec![set("c/4", "ann", 1)]);

    let before = live.at;
    let (space, whom) = ("s".parse().expect("valid"), Erase::User(UserTag::of("ann")));
    let erased = gateway
        .store
        .erase(&space, whom, Epoch(77), ann.now, &|_| {})
        .await
        .expect("it answers");
    assert_eq!((erased.docs, erased.cells, erased.clients), (1, 2, 1));
    live.modes.clear();
    reset(&mut watcher, &mut live).await;
    let mut returned = gateway.peer("eve").await;
    returned.follow("s", &mut away, None).await;
    assert_eq!(away.mode(), Mode::Reset);
    for replica in [&live, &away] {
        assert_eq!(replica.docs.keys().collect::<Vec<_>>(), ["c/1", "c/3"]);
        assert_eq!(replica.docs["c/1"].len(), 1);
        assert_eq!(
            (replica.int("c/1", "bob"), replica.int("c/3", "bob")),
            (Some(2), Some(2))
        );
        assert_eq!(replica.at, Position::new(Epoch(77), before.seq));
    }
    ann.send(&ClientMessage::Write(queued)).await;
    let unknown = ann.answer(&mut Replica::default()).await.expect_err("it was erased");
    assert_eq!(unknown.code, Code::ClientUnknown);
    // Bob has lost nothing but his position: a repeat gets the first answer, the next mutation is applied.
    bob.send(&ClientMessage::Write(again)).await;
    assert_eq!(bob.answer(&mut Replica::default()).await, first);
    write(&mut bob, &mut from_bob, vec![set("c/3", "bob", 3)])
        .await
        .expect("written");
    watcher.reach(&mut live, before.seq.get() + 1).await;
    assert_eq!(live.int("c/3", "bob"), Some(3));
    // Ann may come back, as somebody new.
    let mut anew = WriterState::new("s", 3, ann.now);
    write(&mut ann, &mut anew, vec![set("c/4", "ann", 1)])
        .await
        .expect("written");
    let gateway = gateway.restart().await;
    let mut all = Replica::default();
    gateway.peer("eve").await.follow("s", &mut all, None).await;
    assert_eq!(all.docs.keys().collect::<Vec<_>>(), ["c/1", "c/3", "c/4"]);
}

/// A gateway that looks at heads by itself once an hour.
fn told_only() -> ServerConfig {
    let hub = HubConfig {
        head_check: Duration::from_secs(60 * 60),
        ..HubConfig::default()
    };
    ServerConfig {
        hub,
        ..ServerConfig::default()
    }
}

/// A gateway where ann has written to "s", which eve follows, and the gate before its store.
async fn followed() -> (Gateway, Arc<Gate>, Peer, Replica) {
    let dir = Arc::new(tempfile::TempDir::new().expect("a directory"));
    let store = open_store(dir.path(), Retention::default());
    let gate = Gate::new(store.clone());
    let gateway = Gateway::on(dir, store, gate.clone(), told_only()).await;
    let mut ann = gateway.peer("ann").await;
    let mut from_ann = WriterState::new("s", 1, ann.now);
    write(&mut ann, &mut from_ann, vec![set("c/1", "ann", 1)])
        .await
        .expect("written");
    let (mut watcher, mut live) = (gateway.peer("eve").await, Replica::default());
    watcher.follow("s", &mut live, None).await;
    live.modes.clear();
    (gateway, gate, watcher, live)
}

#[tokio::test]
async fn who_is_subscribed_is_told_of_an_erasure_and_need_not_wait_for_a_head_check() {
    let (gateway, _, mut watcher, mut live) = followed().await;
    let space = "s".parse().expect("valid");
    let erased = gateway.engine.erase(&space, Erase::Space).await.expect("it answers");
    assert_eq!((erased.docs, erased.clients), (1, 1));
    reset(&mut watcher, &mut live).await;
    assert!(live.docs.is_empty());
    // And live again.
    let mut bob = gateway.peer("bob").await;
    let mut from_bob = WriterState::new("s", 2, bob.now);
    write(&mut bob, &mut from_bob, vec![set("c/2", "bob", 2)])
        .await
        .expect("written");
    watcher.reach(&mut live, 2).await;
    assert_eq!(live.int("c/2", "bob"), Some(2));
}

#[tokio::test]
async fn who_is_subscribed_is_told_when_an_erasure_begins_whenever_its_end_is_told() {
    let (gateway, gate, mut watcher, mut live) = followed().await;
    let (gone, go) = gate.hold("erase");
    let space: SpaceId = "s".parse().expect("valid");
    let told = async {
        gone.await.expect("it is gone");
        reset(&mut watcher, &mut live).await;
        go.send(()).expect("its end is still to be told");
    };
    let (erased, ()) = tokio::join!(gateway.engine.erase(&space, Erase::Space), told);
    assert_eq!(erased.expect("it answers").docs, 1);
    assert!(live.docs.is_empty());
}

#[tokio::test]
async fn who_waits_for_a_space_that_is_being_erased_is_told_when_it_opens() {
    let (gateway, gate, mut watcher, mut live) = followed().await;
    gate.closed.store(true, Ordering::Relaxed);
    let (gone, go) = gate.hold("erase");
    let space: SpaceId = "s".parse().expect("valid");
    let opened = async {
        gone.await.expect("it is gone");
        // By now a catch-up waits for three seconds and more before it asks again.
        tokio::time::sleep(Duration::from_millis(3_500)).await;
        gate.closed.store(false, Ordering::Relaxed);
        go.send(()).expect("it is waited for");
        Instant::now()
    };
    let (erased, opened, ()) = tokio::join!(
        gateway.engine.erase(&space, Erase::Space),
        opened,
        reset(&mut watcher, &mut live)
    );
    assert_eq!(erased.expect("it answers").docs, 1);
    assert!(opened.elapsed() < Duration::from_secs(2), "{:?}", opened.elapsed());
    assert!(live.docs.is_empty());
}
