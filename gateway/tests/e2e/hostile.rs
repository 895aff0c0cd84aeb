//! Bad input gets its error and harms nobody.

use crate::support::*;
use std::time::{Duration, Instant};
use tidegate::server::ServerConfig;
use tidegate::store::Retention;
use tidegate_protocol::form::Form;
use tidegate_protocol::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// The code of the error that ends a connection.
async fn last_error(peer: &mut Peer) -> Option<Code> {
    let mut last = None;
    while let Some(message) = peer.maybe_next().await {
        if let ServerMessage::Error { code, .. } = message {
            last = Some(code);
        }
    }
    last
}

async fn hello(peer: &mut Peer) {
    peer.send(&ClientMessage::Hello(Hello::default())).await;
    assert!(matches!(peer.next().await, ServerMessage::Welcome(_)));
}

#[tokio::test]
async fn malformed_and_oversize_messages_get_their_error_and_end_only_their_connection() {
    let gateway = Gateway::start().await;
    let mut bystander = gateway.peer("b").await;
    let mut replica = Replica::default();
    bystander.follow("s", &mut replica, None).await;
    let valid = Form::Msgpack.encode_client(&ClientMessage::Ping { at: 1 });
    let cases: Vec<(&str, Form, Vec<u8>, Code)> = vec![
        ("not MessagePack", Form::Msgpack, vec![0xc1], Code::Malformed),
        ("empty", Form::Msgpack, vec![], Code::Malformed),
        (
            "trailing bytes",
            Form::Msgpack,
            [&valid[..], &[0xc0]].concat(),
            Code::Malformed,
        ),
        (
            "cut short",
            Form::Msgpack,
            valid[..valid.len() - 1].to_vec(),
            Code::Malformed,
        ),
        (
            "a length bomb",
            Form::Msgpack,
            vec![0xdf, 0xff, 0xff, 0xff, 0xff],
            Code::Malformed,
        ),
        ("a depth bomb", Form::Msgpack, vec![0x91; 100_000], Code::Malformed),
        ("not JSON", Form::Json, b"{\"t\":".to_vec(), Code::Malformed),
        ("oversize", Form::Msgpack, vec![0xc0; (1 << 20) + 1], Code::Oversize),
        ("oversize text", Form::Json, vec![b' '; (1 << 20) + 1], Code::Oversize),
    ];
    for (name, form, bytes, expected) in cases {
        let mut peer = Peer::connect(gateway.addr, form).await;
        hello(&mut peer).await;
        // The gateway may close while the rest of an oversize message is still on its way.
        let frame = match form {
            Form::Json => tokio_tungstenite::tungstenite::Message::text(String::from_utf8(bytes).unwrap()),
            Form::Msgpack => tokio_tungstenite::tungstenite::Message::binary(bytes),
        };
        let _ = futures_util::SinkExt::send(&mut peer.socket, frame).await;
        assert_eq!(last_error(&mut peer).await, Some(expected), "{name}");
    }
    // A frame of the other kind, and raw bytes that are no frame at all.
    let mut peer = Peer::connect(gateway.addr, Form::Json).await;
    hello(&mut peer).await;
    let frame = tokio_tungstenite::tungstenite::Message::binary(vec![0xc0]);
    futures_util::SinkExt::send(&mut peer.socket, frame).await.unwrap();
    assert_eq!(last_error(&mut peer).await, Some(Code::Malformed));
    let mut writer = WriterState::new("s", 1, bystander.now);
    bystander
        .send(&ClientMessage::Write(writer.write(vec![set("d/x", "n", 1)])))
        .await;
    bystander.answer(&mut replica).await.unwrap();
    assert_eq!(replica.int("d/x", "n"), Some(1));
}

#[tokio::test]
async fn unknown_and_untimely_messages_get_their_error() {
    let gateway = Gateway::start().await;
    let text = |text: &str| text.as_bytes().to_vec();
    let mut early = Peer::connect(gateway.addr, Form::Json).await;
    early.send_raw(text(r#"{"t":"ping","at":1}"#)).await;
    assert_eq!(last_error(&mut early).await, Some(Code::Protocol));
    let mut twice = Peer::connect(gateway.addr, Form::Json).await;
    hello(&mut twice).await;
    twice.send(&ClientMessage::Hello(Hello::default())).await;
    assert_eq!(last_error(&mut twice).await, Some(Code::Protocol));

    let mut peer = Peer::connect(gateway.addr, Form::Json).await;
    hello(&mut peer).await;
    for (sent, expected, re) in [
        (r#"{"t":"dance"}"#, Code::Unsupported, None),
        (
            r#"{"t":"sub","id":7,"space":"no spaces allowed"}"#,
            Code::Invalid,
            Some(7),
        ),
        (
            r#"{"t":"get","id":8,"space":"s","docs":["nocollection"]}"#,
            Code::Invalid,
            Some(8),
        ),
    ] {
        peer.send_raw(text(sent)).await;
        let ServerMessage::Error {
            code,
            re: about,
            message,
        } = peer.next().await
        else {
            panic!("no error")
        };
        assert_eq!((code, about), (expected, re), "{sent}: {message}");
    }
    // In a write, an unknown key would be a guard that is not kept: refused, and the mid is consumed.
    let now = peer.now_of().await;
    let head = format!(r#""space":"s","client":1,"mid":1,"key":5,"first":{now}"#);
    let bad = format!(r#"{{"t":"write",{head},"only_on_mondays":true,"ops":[{{"op":"delete","doc":"d/x"}}]}}"#);
    peer.send_raw(text(&bad)).await;
    let ServerMessage::Reject(reject) = peer.next().await else {
        panic!("no reject")
    };
    assert_eq!((reject.code, reject.mid.get()), (Code::Unsupported, 1));
    let next = r#"{"t":"write","space":"s","client":1,"mid":2,"key":6,"prev":5,"ops":[{"op":"set","doc":"d/x","fields":{"n":1}}]}"#;
    peer.send_raw(text(next)).await;
    assert!(
        matches!(peer.next().await, ServerMessage::Ack(_)),
        "the one behind it is not blocked"
    );
    // The connection is as good as new.
    peer.send(&ClientMessage::Ping { at: 42 }).await;
    assert!(matches!(peer.next().await, ServerMessage::Pong { at: 42, .. }));
}

impl Peer {
    /// Server time, by a ping.
    async fn now_of(&mut self) -> u64 {
        self.send(&ClientMessage::Ping { at: 0 }).await;
        match self.next().await {
            ServerMessage::Pong { now, .. } => now,
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_half_open_handshakes_do_not_stop_a_proper_client_and_all_end_at_the_deadline() {
    let config = ServerConfig {
        hello: Duration::from_secs(2),
        ..ServerConfig::default()
    };
    let gateway = Gateway::with(config, Retention::default()).await;
    let mut half_open = Vec::new();
    for n in 0..1_000 {
        let mut socket = TcpStream::connect(gateway.addr).await.unwrap();
        // At each stage: silent, in the middle of the request, upgraded without a hello.
        let sent: &[u8] = match n % 3 {
            0 => b"",
            1 => b"GET /v1/ws HTTP/1.1\r\nHost: localhost\r\nUpgr",
            _ => {
                b"GET /v1/ws HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                   Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
                   Sec-WebSocket-Protocol: tidegate.v1.json\r\n\r\n"
            }
        };
        socket.write_all(sent).await.unwrap();
        half_open.push(socket);
    }
    let began = Instant::now();
    let mut peer = gateway.peer("proper").await;
    let mut replica = Replica::default();
    peer.follow("s", &mut replica, None).await;
    let mut writer = WriterState::new("s", 1, peer.now);
    peer.send(&ClientMessage::Write(writer.write(vec![set("d/x", "n", 1)])))
        .await;
    peer.answer(&mut replica).await.unwrap();
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    for (n, socket) in half_open.iter_mut().enumerate() {
        let mut rest = Vec::new();
        let end = tokio::time::timeout(Duration::from_secs(8), socket.read_to_end(&mut rest)).await;
        assert!(end.is_ok(), "number {n} was never closed");
        if n % 3 == 2 {
            let rest = String::from_utf8_lossy(&rest);
            assert!(
                rest.contains("101 Switching Protocols") && rest.contains("handshake_timeout"),
                "{rest}"
            );
        }
    }
    peer.send(&ClientMessage::Ping { at: 1 }).await;
    assert!(matches!(peer.next().await, ServerMessage::Pong { .. }));
}
