//! Every limit that a configuration file sets is announced, and held to.

use crate::support::*;
use std::path::Path;
use tidegate::config::{Config, File};
use tidegate::store::Retention;
use tidegate_protocol::form::Form;
use tidegate_protocol::*;

const FILE: &str = r#"
[limits]
message_bytes = "64KiB"
doc_bytes = "16KiB"
page_bytes = "4KiB"
field_bytes = 64
depth = 3
ops = 80
subscriptions = 2
elements = 8_192

[writes]
mutation_bytes = "20KiB"
"#;

async fn configured() -> Gateway {
    let path = Path::new("tidegate.toml");
    let (config, wrong) = Config::load(Some(File { path, text: FILE }), &[], &[]);
    assert_eq!(wrong, []);
    Gateway::with(config.settings.server, Retention::default()).await
}

/// The refusal of one mutation, whichever way it comes.
async fn refusal(gateway: &Gateway, ops: Vec<Op>) -> (Code, String) {
    let mut peer = gateway.peer("u").await;
    // A client of its own each: what is refused consumes its mid.
    static CLIENTS: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(100);
    let client = CLIENTS.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let mut writer = WriterState::new("s", client, peer.now);
    peer.send(&ClientMessage::Write(writer.write(ops))).await;
    match peer.next().await {
        ServerMessage::Reject(reject) => (reject.code, reject.message),
        ServerMessage::Error { code, message, .. } => (code, message),
        other => panic!("not refused: {other:?}"),
    }
}

fn text(bytes: usize) -> Value {
    Value::str(&"x".repeat(bytes))
}

#[tokio::test]
async fn welcome_announces_every_limit_that_is_configured() {
    let gateway = configured().await;
    for form in [Form::Msgpack, Form::Json] {
        let mut peer = Peer::connect(gateway.addr, form).await;
        peer.send(&ClientMessage::Hello(Hello::default())).await;
        let ServerMessage::Welcome(welcome) = peer.next().await else {
            panic!("no welcome")
        };
        let expected = Limits {
            message_bytes: 65_536,
            doc_bytes: 16_384,
            page_bytes: 4_096,
            field_bytes: 64,
            depth: 3,
            ops: 80,
            subscriptions: 2,
            elements: 8_192,
        };
        assert_eq!(welcome.limits, expected);
    }
}

#[tokio::test]
async fn every_limit_on_a_mutation_that_is_configured_is_held_to_and_named() {
    let gateway = configured().await;
    let set = |path: &str, value: Value| vec![op("d/1", OpKind::Set(fields(&[(path, value)])))];
    let many = |n: usize| Value::from_trusted([&[0xdc][..], &(n as u16).to_be_bytes(), &vec![0; n]].concat().into());
    let cases = [
        ("doc_bytes", set("a", text(17_000)), "16384"),
        ("field_bytes", set(&"a".repeat(65), Value::int(1)), "64"),
        ("depth", set("a.b.c.d", Value::int(1)), "3"),
        ("ops", (0..81).map(|n| inc(&format!("d/{n}"), "n")).collect(), "80"),
        ("elements", set("a", many(8_200)), "8192"),
    ];
    for (limit, ops, number) in cases {
        let (code, message) = refusal(&gateway, ops).await;
        let words: Vec<_> = message.split(|c: char| !c.is_ascii_alphanumeric()).collect();
        assert_eq!(code, Code::TooLarge, "{limit}: {message}");
        assert!(words.contains(&number), "{limit}: {message}");
    }
    // What is within all of them goes through.
    let mut peer = gateway.peer("u").await;
    let mut writer = WriterState::new("s", 1, peer.now);
    for ops in [
        set("a", text(15_000)),
        set(&"b".repeat(64), Value::int(1)),
        set("c.d.e", Value::int(1)),
        (0..80).map(|n| inc(&format!("e/{n}"), "n")).collect(),
        vec![op("f/1", OpKind::Set(fields(&[("a", many(8_000))])))],
    ] {
        peer.send(&ClientMessage::Write(writer.write(ops))).await;
        peer.answer(&mut Replica::default()).await.unwrap();
    }
}

#[tokio::test]
async fn the_bytes_that_one_mutation_may_be_about_are_those_configured() {
    let gateway = configured().await;
    let mut peer = gateway.peer("u").await;
    let mut writer = WriterState::new("s", 1, peer.now);
    for n in 0..4 {
        let ops = (20 * n..20 * n + 20).map(|n| op(&format!("d/{n}"), OpKind::Set(fields(&[("a", text(1_000))]))));
        peer.send(&ClientMessage::Write(writer.write(ops.collect()))).await;
        peer.answer(&mut Replica::default()).await.unwrap();
    }
    let all = |docs| (0..docs).map(|n| inc(&format!("d/{n}"), "n")).collect();
    let (code, message) = refusal(&gateway, all(80)).await;
    assert!(
        code == Code::TooLarge && message.contains("20480"),
        "{code:?} {message}"
    );
    peer.send(&ClientMessage::Write(writer.write(all(64)))).await;
    peer.answer(&mut Replica::default())
        .await
        .expect("64 documents may be as large as they are");
}

#[tokio::test]
async fn messages_subscriptions_and_pages_are_bounded_as_configured() {
    let gateway = configured().await;
    let mut peer = gateway.peer("u").await;
    let mut writer = WriterState::new("s", 1, peer.now);
    for n in 0..12 {
        let ops = vec![op(&format!("d/{n}"), OpKind::Set(fields(&[("a", text(1_500))])))];
        peer.send(&ClientMessage::Write(writer.write(ops))).await;
        peer.answer(&mut Replica::default()).await.unwrap();
    }
    peer.sub("s", None, None, None).await;
    let mut pages = Vec::new();
    loop {
        match peer.next().await {
            ServerMessage::Current { .. } => break,
            page @ ServerMessage::Page { .. } => pages.push(Form::Msgpack.encode_server(&page).len()),
            _ => {}
        }
    }
    assert!(pages.len() >= 4, "{pages:?}");
    assert!(pages.iter().all(|size| *size < 4_096 + 1_024), "{pages:?}");

    peer.sub("s2", None, None, None).await;
    while !matches!(peer.next().await, ServerMessage::Current { .. }) {}
    let third = peer.sub("s3", None, None, None).await;
    match peer.next().await {
        ServerMessage::Error { code, message, re } => {
            assert_eq!((code, re), (Code::TooMany, Some(third)));
            assert!(message.contains("limited to 2"), "{message}");
        }
        other => panic!("{other:?}"),
    }

    // The gateway may close while the rest is still on its way.
    let frame = tokio_tungstenite::tungstenite::Message::binary(vec![0xc0; 65_537]);
    let _ = futures_util::SinkExt::send(&mut peer.socket, frame).await;
    let mut said = None;
    while let Some(message) = peer.maybe_next().await {
        if let ServerMessage::Error { code, message, .. } = message {
            said = Some((code, message));
        }
    }
    let (code, message) = said.expect("an error before the close");
    assert!(
        code == Code::Oversize && message.contains("65536"),
        "{code:?} {message}"
    );
}
