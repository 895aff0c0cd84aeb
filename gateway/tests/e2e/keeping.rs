//! How much is kept, and for how long: quotas.

use crate::support::*;
use tidegate::engine::{EngineConfig, Quota};
use tidegate::server::ServerConfig;
use tidegate::store::{Retention, Store};
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
