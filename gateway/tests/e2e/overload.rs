//! More writes than the node takes: the newest are refused, in order, and all of it ends well without a restart.

use crate::access::metric;
use crate::support::*;
use std::collections::VecDeque;
use std::sync::Arc;
use tidegate::server::ServerConfig;
use tidegate::store::Retention;
use tidegate_protocol::*;

/// A gateway whose store holds the answer to its first commit until it is told to let go.
async fn held(
    config: ServerConfig,
) -> (
    Gateway,
    tokio::sync::oneshot::Receiver<()>,
    tokio::sync::oneshot::Sender<()>,
) {
    let dir = Arc::new(tempfile::TempDir::new().unwrap());
    let store = open_store(dir.path(), Retention::default());
    let gate = Gate::new(store.clone());
    let (reached, go) = gate.hold("commit");
    (Gateway::on(dir, store, gate, config).await, reached, go)
}

#[tokio::test]
async fn overload_sheds_the_newest_and_recovers() {
    const WRITERS: u64 = 3;
    const WRITES: u64 = 200;
    let mut config = ServerConfig::default();
    config.engine.space_items = 50;
    let (gateway, reached, go) = held(config).await;
    let mut clients = Vec::new();
    for n in 0..WRITERS {
        let peer = gateway.peer(&format!("writer{n}")).await;
        let writer = WriterState::new("s", n + 1, peer.now);
        clients.push((peer, writer, VecDeque::new()));
    }
    for (peer, writer, sent) in &mut clients {
        for _ in 0..WRITES {
            let write = ClientMessage::Write(writer.write(vec![inc("d/x", "n")]));
            peer.send(&write).await;
            sent.push_back(write);
        }
    }
    reached.await.unwrap();
    // While nothing moves: whoever is refused is told so at once, and when to come back.
    let mut refused = 0;
    for (peer, _, _) in &mut clients {
        let ServerMessage::Reject(reject) = peer.next().await else {
            panic!("an answer while the store is held")
        };
        assert_eq!(reject.code, Code::Unavailable, "{reject:?}");
        assert!(
            reject.retry_ms.is_some_and(|ms| (1_000..=1_500).contains(&ms)),
            "{reject:?}"
        );
        assert!(
            reject.message.contains("too many writes are waiting in this space"),
            "{reject:?}"
        );
        refused += 1;
    }
    let waiting = metric(&gateway, "tidegate_engine_waiting").await;
    assert!(waiting <= 50 + 256, "{waiting}");
    assert_eq!(refused, WRITERS);
    go.send(()).unwrap();
    // Each goes on from where the first was refused, as its client would: none is applied twice, or out of order.
    for (peer, _, sent) in &mut clients {
        let (mut next, mut open) = (1, WRITES - 1);
        while next <= WRITES {
            for _ in 0..open {
                match peer.next().await {
                    ServerMessage::Ack(ack) => {
                        if ack.mid.get() == next {
                            next += 1;
                        }
                    }
                    ServerMessage::Reject(reject) => {
                        assert!(
                            matches!(reject.code, Code::Unavailable | Code::OutOfOrder),
                            "{reject:?}"
                        );
                    }
                    other => panic!("{other:?}"),
                }
            }
            open = 0;
            for write in sent.iter().skip(next as usize - 1).take(40) {
                peer.send(write).await;
                open += 1;
            }
        }
    }
    let mut reader = gateway.peer("reader").await;
    let mut replica = Replica::default();
    reader.follow("s", &mut replica, None).await;
    assert_eq!(replica.int("d/x", "n"), Some((WRITERS * WRITES) as i64), "each once");
    assert!(metric(&gateway, "tidegate_writes_total{result=\"unavailable\"}").await > 0);
    assert_eq!(metric(&gateway, "tidegate_engine_waiting_bytes").await, 0);
}

#[tokio::test]
async fn one_connection_cannot_fill_the_nodes_queues_for_all() {
    let mut config = ServerConfig::default();
    config.node.in_flight = 64;
    config.engine.node_bytes = 2 << 20;
    let (gateway, reached, go) = held(config).await;
    let greedy = gateway.peer("greedy").await;
    let mut writer = WriterState::new("s", 1, greedy.now);
    let value = Value::str(&"x".repeat(100_000));
    let mut writes = Vec::new();
    for n in 0..60 {
        let ops = vec![op(&format!("d/{n}"), OpKind::Set(fields(&[("v", value.clone())])))];
        writes.push(ClientMessage::Write(writer.write(ops)));
    }
    let other = async {
        reached.await.unwrap();
        let mut other = gateway.peer("other").await;
        let mut mine = WriterState::new("elsewhere", 2, other.now);
        other
            .send(&ClientMessage::Write(mine.write(vec![inc("d/x", "n")])))
            .await;
        other.answer(&mut Replica::default()).await.unwrap();
        let waiting = metric(&gateway, "tidegate_engine_waiting_bytes").await;
        assert!((100_000..1 << 20).contains(&waiting), "{waiting}");
        go.send(()).unwrap();
    };
    let flood = async {
        let (mut sink, mut stream) = futures_util::StreamExt::split(greedy.socket);
        let sending = async {
            for write in &writes {
                let frame = Form::Msgpack.encode_client(write);
                let frame = tokio_tungstenite::tungstenite::Message::binary(frame);
                futures_util::SinkExt::send(&mut sink, frame).await.unwrap();
            }
        };
        let reading = async {
            for _ in 0..60 {
                let frame = futures_util::StreamExt::next(&mut stream).await.unwrap().unwrap();
                let message = Form::Msgpack.decode_server(&frame.into_data()).unwrap();
                assert!(matches!(message, ServerMessage::Ack(_)), "{message:?}");
            }
        };
        tokio::join!(sending, reading);
    };
    tokio::time::timeout(PATIENCE, async { tokio::join!(other, flood) })
        .await
        .unwrap();
}
