//! Large messages are compressed for those who have agreed on that, and for nobody else; what inflates to too much is
//! not inflated.

use crate::access::metric;
use crate::support::*;
use tidegate::server::ServerConfig;
use tidegate::session::NodeConfig;
use tidegate::store::Retention;
use tidegate_client::{Client, Options, fields as fields_of};
use tidegate_protocol::form::Form;
use tidegate_protocol::*;

/// Text that repeats itself.
fn text(bytes: usize) -> Value {
    let words = "The tide comes in, and goes out again. ".repeat(bytes / 39 + 1);
    Value::str(&words[..bytes])
}

fn write_text(writer: &mut WriterState, doc: &str, bytes: usize) -> ClientMessage {
    ClientMessage::Write(writer.write(vec![op(doc, OpKind::Set(fields(&[("text", text(bytes))])))]))
}

/// A space with twenty documents of 10 KB, written by a peer that compresses nothing.
async fn filled(gateway: &Gateway) -> (Peer, WriterState, Replica) {
    let mut peer = gateway.peer("plain").await;
    let mut replica = Replica::default();
    peer.follow("s", &mut replica, None).await;
    let mut writer = WriterState::new("s", 1, peer.now);
    for n in 0..20 {
        peer.send(&write_text(&mut writer, &format!("d/{n}"), 10_000)).await;
        peer.answer(&mut replica).await.unwrap();
    }
    (peer, writer, replica)
}

const MADE: &str = "tidegate_compressions_total";
const SAVED: &str = "tidegate_compression_saved_bytes_total";

#[tokio::test]
async fn pages_commits_and_answers_are_compressed_for_who_agreed_and_for_nobody_else() {
    let gateway = Gateway::start().await;
    let (mut plain, mut writer, mut truth) = filled(&gateway).await;
    assert_eq!(metric(&gateway, MADE).await, 0);

    let (mut z, caps) = gateway.peer_with("z", Form::Msgpack, &["z"]).await;
    assert_eq!(caps, ["z"]);
    let mut replica = Replica::default();
    z.follow("s", &mut replica, None).await;
    assert_eq!(replica.mode(), Mode::Reset);
    assert_eq!(replica.docs, truth.docs);
    assert!(z.compressed >= 1);
    assert_eq!(metric(&gateway, MADE).await, z.compressed as u64);
    // 200 KB of which hardly anything is new.
    assert!(metric(&gateway, SAVED).await > 180_000);

    // By log, from where it stands: commit by commit.
    let (mut again, _) = gateway.peer_with("z", Form::Msgpack, &["z"]).await;
    let mut by_log = replica.clone();
    drop(z);
    for n in 0..3 {
        plain.send(&write_text(&mut writer, &format!("d/{n}"), 5_000)).await;
        plain.answer(&mut truth).await.unwrap();
    }
    again.follow("s", &mut by_log, None).await;
    assert_eq!((by_log.mode(), &by_log.docs), (Mode::Log, &truth.docs));
    assert_eq!(again.compressed, 3);

    // An answer to `get`. What is small stays as it is.
    let get = |docs: Vec<DocPath>| {
        ClientMessage::Get(Get {
            id: 9,
            space: "s".parse().unwrap(),
            docs,
        })
    };
    let answer = get(vec!["d/4".parse().unwrap(), "d/5".parse().unwrap()]);
    again.send(&answer).await;
    let ServerMessage::Docs { docs, .. } = again.next().await else {
        panic!("no answer")
    };
    assert_eq!((docs.len(), again.compressed), (2, 4));
    again.send(&get(vec!["d/none".parse().unwrap()])).await;
    assert!(matches!(again.next().await, ServerMessage::Docs { .. }));
    assert_eq!(again.compressed, 4);

    // Who has not declared it, and who speaks JSON, is sent the same as it is.
    let mut bare = gateway.peer("bare").await;
    let (mut json, caps) = gateway.peer_with("json", Form::Json, &["z"]).await;
    assert_eq!(caps, [""; 0]);
    let made = metric(&gateway, MADE).await;
    for peer in [&mut bare, &mut json] {
        let mut replica = Replica::default();
        peer.follow("s", &mut replica, None).await;
        assert_eq!(replica.docs, by_log.docs);
        peer.send(&answer).await;
        assert!(matches!(peer.next().await, ServerMessage::Docs { .. }));
        assert_eq!(peer.compressed, 0);
    }
    assert_eq!(metric(&gateway, MADE).await, made);
}

#[tokio::test]
async fn a_compressed_write_is_the_write_that_is_in_it() {
    let gateway = Gateway::start().await;
    let (mut z, _) = gateway.peer_with("z", Form::Msgpack, &["z"]).await;
    let mut replica = Replica::default();
    z.follow("s", &mut replica, None).await;
    let mut writer = WriterState::new("s", 1, z.now);
    let large = z.form.encode_client(&write_text(&mut writer, "d/x", 100_000));
    let compressed = deflate::compress(&large).unwrap();
    assert!(compressed.len() < 2_000);
    z.send_raw(compressed.clone()).await;
    let first = z.answer(&mut replica).await.unwrap();
    assert_eq!(replica.docs["d/x"]["text"], text(100_000));
    // Sent again, compressed or not, it is the same mutation.
    for again in [compressed, large] {
        z.send_raw(again).await;
        assert_eq!(z.answer(&mut replica).await.unwrap(), first);
    }
    // What is wrong in it is refused with its mid, as it would be without.
    let ClientMessage::Write(mut wrong) = write_text(&mut writer, "d/y", 100) else {
        panic!()
    };
    wrong.ops = vec![wrong.ops.remove(0); 501];
    z.send_raw(deflate::compress(&z.form.encode_client(&ClientMessage::Write(wrong))).unwrap())
        .await;
    let reject = z.answer(&mut replica).await.unwrap_err();
    assert_eq!((reject.code, reject.mid.get()), (Code::TooLarge, 2));
    z.send_raw(deflate::compress(&z.form.encode_client(&write_text(&mut writer, "d/y", 10_000))).unwrap())
        .await;
    z.answer(&mut replica).await.unwrap();
    assert_eq!(replica.at.seq.get(), 2);
}

/// DEFLATE of a gigabyte of zeros, in a megabyte less a bit; written by zlib but for its length.
fn bomb() -> Vec<u8> {
    let head = b"\xed\xc1\x01\x0d\x00\x00\x00\xc2\xa0\xf7\x4f\x6d\x0f\x07\x14";
    [&head[..], &vec![0; (1 << 20) - 100], b"\x00\x00\x00\xf0\x6e"].concat()
}

fn z(size: u32, raw: &[u8]) -> Vec<u8> {
    let len = u32::try_from(raw.len()).unwrap();
    let head = b"\x83\xa1t\xa1z\xa4size\xce";
    [head, &size.to_be_bytes()[..], b"\xa3raw\xc6", &len.to_be_bytes(), raw].concat()
}

#[tokio::test]
async fn what_inflates_to_too_much_or_to_something_else_ends_its_connection_and_no_other() {
    let gateway = Gateway::start().await;
    let mut bystander = gateway.peer("b").await;
    let mut replica = Replica::default();
    bystander.follow("s", &mut replica, None).await;
    let ping = Form::Msgpack.encode_client(&ClientMessage::Ping { at: 1 });
    let stored = [&[1, 12, 0, 0xf3, 0xff][..], &ping].concat();
    let inner = z(12, &stored);
    let len = u16::try_from(inner.len()).unwrap();
    let nested = [&[1][..], &len.to_le_bytes(), &(!len).to_le_bytes(), &inner].concat();
    let cases = [
        (
            "a bomb",
            z(1_082_027_000, &bomb()),
            Code::Oversize,
            "z.size is limited to 1048576 bytes, found 1082027000",
        ),
        (
            "a byte too much",
            z((1 << 20) + 1, &bomb()),
            Code::Oversize,
            "found 1048577",
        ),
        (
            "a bomb that lies",
            z(1 << 20, &bomb()),
            Code::Malformed,
            "more than its size, 1048576",
        ),
        (
            "more than was said",
            z(11, &stored),
            Code::Malformed,
            "more than its size, 11",
        ),
        (
            "less than was said",
            z(13, &stored),
            Code::Malformed,
            "inflates to 12 bytes, not to 13",
        ),
        (
            "bytes behind it",
            z(12, &[&stored[..], &[0]].concat()),
            Code::Malformed,
            "behind its end",
        ),
        ("cut short", z(12, &stored[..10]), Code::Malformed, "ends early"),
        ("a z in a z", z(u32::from(len), &nested), Code::Malformed, "a z in a z"),
        ("no message", z(1, &[1, 1, 0, 0xfe, 0xff, 0xc1]), Code::Malformed, ""),
    ];
    for (name, bytes, expected, words) in cases {
        let (mut peer, _) = gateway.peer_with("z", Form::Msgpack, &["z"]).await;
        peer.send_raw(bytes).await;
        let ServerMessage::Error { code, message, .. } = peer.next().await else {
            panic!("{name}: no error")
        };
        assert_eq!(code, expected, "{name}: {message}");
        assert!(message.contains(words), "{name}: {message}");
        assert_eq!(peer.maybe_next().await, None, "{name}");
    }
    assert_eq!(metric(&gateway, "tidegate_closes_total{reason=\"oversize\"}").await, 2);
    // Where it was not agreed on, it is a message like others that nobody knows, and the connection goes on.
    let mut peer = gateway.peer("plain").await;
    peer.send_raw(z(12, &stored)).await;
    let ServerMessage::Error { code, .. } = peer.next().await else {
        panic!("no error")
    };
    assert_eq!(code, Code::Unsupported);
    for peer in [&mut peer, &mut bystander] {
        peer.send(&ClientMessage::Ping { at: 1 }).await;
        assert!(matches!(peer.next().await, ServerMessage::Pong { .. }));
    }
}

#[tokio::test]
async fn a_gateway_whose_messages_are_larger_refuses_who_does_not_take_them_and_serves_who_does() {
    let limits = Limits {
        message_bytes: 4 << 20,
        doc_bytes: 3 << 20,
        ..Limits::default()
    };
    let node = NodeConfig {
        limits,
        ..NodeConfig::default()
    };
    let config = ServerConfig {
        node,
        ..ServerConfig::default()
    };
    let gateway = Gateway::with(config, Retention::default()).await;
    let mut peer = Peer::connect(gateway.addr, Form::Msgpack).await;
    peer.send(&ClientMessage::Hello(Hello::default())).await;
    let ServerMessage::Error { code, message, .. } = peer.next().await else {
        panic!("no error")
    };
    assert_eq!(code, Code::Oversize);
    assert!(message.contains("4194304") && message.contains("1048576"), "{message}");
    assert_eq!(peer.maybe_next().await, None);

    let url = format!("ws://{}", gateway.addr);
    let connect = || Client::connect(Options::new(&url).unwrap().token("ann"));
    let (one, two) = (connect(), connect());
    one.connected().await.unwrap();
    let large = "The tide comes in, and goes out again. ".repeat(60_000);
    let write = one.space("s").unwrap().doc("d/large").unwrap();
    write.set(fields_of! { "text" => large.as_str() }).await.unwrap();
    let seen = two.space("s").unwrap().doc("d/large").unwrap().get().await.unwrap();
    assert_eq!(seen.str("text"), Some(large.as_str()));
}

#[tokio::test]
async fn a_large_change_is_compressed_once_for_all_who_take_that() {
    let gateway = Gateway::start().await;
    let mut peers = Vec::new();
    for n in 0..20 {
        let caps: &[&str] = if n % 2 == 0 { &["z"] } else { &[] };
        let (mut peer, _) = gateway.peer_with(&format!("u{n}"), Form::Msgpack, caps).await;
        let mut replica = Replica::default();
        peer.follow("s", &mut replica, None).await;
        peers.push((peer, replica));
    }
    let mut writer = WriterState::new("s", 1, peers[1].0.now);
    let (encodes, made) = (
        metric(&gateway, "tidegate_encodes_total").await,
        metric(&gateway, MADE).await,
    );
    let (peer, replica) = &mut peers[1];
    peer.send(&write_text(&mut writer, "d/x", 100_000)).await;
    peer.answer(replica).await.unwrap();
    for (n, (peer, replica)) in peers.iter_mut().enumerate() {
        peer.reach(replica, 1).await;
        assert_eq!(replica.docs["d/x"]["text"], text(100_000));
        assert_eq!(peer.compressed, usize::from(n % 2 == 0), "peer {n}");
    }
    assert_eq!(metric(&gateway, "tidegate_encodes_total").await - encodes, 1);
    assert_eq!(metric(&gateway, MADE).await - made, 1);
    // A small one goes as it is.
    let (peer, replica) = &mut peers[1];
    peer.send(&write_text(&mut writer, "d/x", 100)).await;
    peer.answer(replica).await.unwrap();
    let (peer, replica) = &mut peers[0];
    peer.reach(replica, 2).await;
    assert_eq!((peer.compressed, metric(&gateway, MADE).await - made), (1, 1));
}
