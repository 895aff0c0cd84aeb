//! Clients that ask for much and take little cost themselves, not the others.

use crate::support::*;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tidegate::server::ServerConfig;
use tidegate::store::Retention;
use tidegate_protocol::form::Form;
use tidegate_protocol::*;

/// Documents of `bytes` each, `d/0`, `d/1` …
async fn fill(gateway: &Gateway, space: &str, docs: usize, bytes: usize) {
    let mut peer = gateway.peer("filler").await;
    let mut writer = WriterState::new(space, 1, peer.now);
    let value = Value::str(&"x".repeat(bytes));
    for n in 0..docs {
        let ops = vec![op(&format!("d/{n}"), OpKind::Set(fields(&[("v", value.clone())])))];
        peer.send(&ClientMessage::Write(writer.write(ops))).await;
        peer.answer(&mut Replica::default()).await.unwrap();
    }
}

fn get(id: u64, space: &str, docs: impl IntoIterator<Item = impl AsRef<str>>) -> ClientMessage {
    ClientMessage::Get(Get {
        id,
        space: space.parse().unwrap(),
        docs: docs.into_iter().map(|doc| doc.as_ref().parse().unwrap()).collect(),
    })
}

#[tokio::test]
async fn clients_that_take_nothing_do_not_keep_others_from_catching_up() {
    let mut config = ServerConfig::default();
    config.node.catch_ups = 2;
    let gateway = Gateway::with(config, Retention::default()).await;
    fill(&gateway, "big", 30, 500_000).await;
    fill(&gateway, "small", 1, 10).await;
    let mut lazy = Vec::new();
    for n in 0..3 {
        let mut peer = gateway.peer(&format!("lazy{n}")).await;
        peer.sub("big", None, None, None).await;
        lazy.push(peer);
    }
    // Until what the sockets hold is full, and the rest waits.
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    let mut peer = gateway.peer("proper").await;
    let mut replica = Replica::default();
    let caught_up = tokio::time::timeout(Duration::from_secs(5), peer.follow("small", &mut replica, None)).await;
    assert!(caught_up.is_ok(), "it waits for clients that do not read");
    // And the lazy ones have lost nothing by it.
    let mut replica = Replica::default();
    lazy[0].catch_up(&mut replica).await;
    assert_eq!(replica.docs.len(), 30);
}

#[tokio::test]
async fn many_large_catch_ups_at_once_do_not_close_a_client_that_reads() {
    let mut config = ServerConfig::default();
    config.node.hard_bytes = 2 << 20;
    let gateway = Gateway::with(config, Retention::default()).await;
    for n in 0..24 {
        fill(&gateway, &format!("s{n}"), 2, 500_000).await;
    }
    let mut peer = gateway.peer("reader").await;
    for n in 0..24 {
        peer.sub(&format!("s{n}"), None, None, None).await;
    }
    let mut current = 0;
    while current < 24 {
        match peer.next().await {
            ServerMessage::Current { .. } => current += 1,
            ServerMessage::Error { code, message, .. } => panic!("{code:?}: {message}"),
            _ => {}
        }
    }
}

#[tokio::test]
async fn an_answer_to_get_is_one_message_within_the_limit_or_a_refusal() {
    let gateway = Gateway::start().await;
    fill(&gateway, "s", 2, 600_000).await;
    let mut peer = gateway.peer("u").await;
    for (id, docs) in [
        (1, vec!["d/0", "d/1"]),
        (2, vec!["d/0"; 1_000]),
        (3, vec!["d/0", "d/0"]),
    ] {
        peer.send(&get(id, "s", docs)).await;
        match peer.next().await {
            ServerMessage::Error { code, re, message } => {
                assert_eq!((code, re), (Code::TooLarge, Some(id)), "{message}");
                assert!(message.contains("1048576"), "{message}");
            }
            other => panic!(
                "{id}: not refused but {} bytes",
                Form::Msgpack.encode_server(&other).len()
            ),
        }
    }
    // Many that are small, some that are not there, and one that is large.
    let mut docs: Vec<String> = (0..999).map(|n| format!("none/{n}")).collect();
    docs.push("d/1".into());
    peer.send(&get(4, "s", &docs)).await;
    let ServerMessage::Docs { id: 4, docs: found, .. } = peer.next().await else {
        panic!("refused")
    };
    let names: Vec<String> = found.iter().map(|doc| doc.doc.to_string()).collect();
    assert_eq!(names, docs, "every one, in that order");
}

#[tokio::test]
async fn gets_sent_at_once_are_answered_in_order_and_never_pile_up() {
    let mut config = ServerConfig::default();
    config.node.hard_bytes = 2 << 20;
    let gateway = Gateway::with(config, Retention::default()).await;
    fill(&gateway, "s", 1, 600_000).await;
    let mut peer = gateway.peer("u").await;
    for id in 0..40 {
        peer.send(&get(id, "s", ["d/0"])).await;
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    for expected in 0..40 {
        match peer.next().await {
            ServerMessage::Docs { id, .. } => assert_eq!(id, expected),
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn a_stop_answers_a_get_that_was_under_way_and_does_not_wait_longer() {
    let dir = Arc::new(TempDir::new().unwrap());
    let store = open_store(dir.path(), Retention::default());
    let gate = Gate::new(store.clone());
    let gateway = Gateway::on(dir, store, gate.clone(), ServerConfig::default()).await;
    let mut peer = gateway.peer("u").await;
    let (reached, go) = gate.hold("read");
    peer.send(&get(7, "s", ["d/x"])).await;
    reached.await.unwrap();
    let began = Instant::now();
    let reading = async move {
        let mut answered = false;
        let mut last = None;
        assert!(matches!(peer.next().await, ServerMessage::Goaway { .. }));
        go.send(()).unwrap();
        while let Some(message) = peer.maybe_next().await {
            match message {
                ServerMessage::Docs { id: 7, .. } => answered = true,
                ServerMessage::Error { code, .. } => last = Some(code),
                other => panic!("{other:?}"),
            }
        }
        (answered, last)
    };
    let (_, seen) = tokio::join!(gateway.stop(), reading);
    assert_eq!(seen, (true, Some(Code::GoingAway)));
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
}
