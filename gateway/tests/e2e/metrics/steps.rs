//! The parts of `every_metric_moves`: each drives gateways of its own through some of what is counted.

use super::Seen;
use crate::access::{http, upgrade};
use crate::redis_server::Server;
use crate::support::*;
use bytes::Bytes;
use futures_util::SinkExt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tempfile::TempDir;
use tidegate::admission::AdmissionConfig;
use tidegate::auth::{Authoriser, Denial, Identity, ReadScope};
use tidegate::bus::redis::RedisBus;
use tidegate::metrics::{Metrics, RedisMetrics};
use tidegate::server::{Parts, ServerConfig};
use tidegate::store::redis::{RedisConfig, RedisStore};
use tidegate::store::{Action, CommitGroup, Effects, Erase, Prepared, Retention, Store, UserTag, embedded};
use tidegate_protocol::form::Form;
use tidegate_protocol::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;

/// Admits whoever says so, and to what they say: it is the test that decides.
struct Says;

impl Authoriser for Says {
    fn authenticate(&self, token: Option<&str>, now_ms: u64) -> Result<Identity, Denial> {
        match token.and_then(Code::from_name) {
            Some(code) => Err(Denial {
                code,
                message: "the test says so".into(),
            }),
            None => Ok(Identity::new(
                token.unwrap_or("dev"),
                (token == Some("brief")).then_some(now_ms + 100),
            )),
        }
    }

    fn read(&self, _who: &Identity, space: &SpaceId) -> Result<ReadScope, Denial> {
        match Code::from_name(space.as_str()) {
            Some(code) => Err(Denial {
                code,
                message: "the test says so".into(),
            }),
            None => Ok(ReadScope::All),
        }
    }

    fn write(&self, _who: &Identity, _space: &SpaceId, doc: &DocPath) -> Result<(), Denial> {
        match Code::from_name(doc.collection()) {
            Some(code) => Err(Denial {
                code,
                message: "the test says so".into(),
            }),
            None => Ok(()),
        }
    }

    fn policy(&self, _space: &SpaceId, _doc: &DocPath) -> Policy {
        Policy::Lww
    }
}

/// A configuration with short times.
fn quick() -> ServerConfig {
    let mut config = ServerConfig::default();
    config.node.flush = Duration::from_millis(300);
    config.hub.linger = Duration::ZERO;
    config.hub.head_check = Duration::from_millis(200);
    config.drain = Duration::ZERO;
    config.engine.unknown_wait = Duration::from_millis(2);
    config
}

async fn start(config: ServerConfig, retention: Retention) -> (Gateway, Arc<Gate>) {
    let dir = Arc::new(TempDir::new().unwrap());
    let store = open_store(dir.path(), retention);
    let gate = Gate::new(store.clone());
    let addr = "127.0.0.1:0".parse().unwrap();
    let gateway = Gateway::guarded(addr, dir, store, gate.clone(), Arc::new(Says), config).await;
    (gateway, gate)
}

async fn hello(peer: &mut Peer, token: &str) {
    let token = Some(token.into());
    peer.send(&ClientMessage::Hello(Hello {
        token,
        ..Hello::default()
    }))
    .await;
}

/// Reads until the connection ends.
async fn to_the_end(peer: &mut Peer) {
    while peer.maybe_next().await.is_some() {}
}

async fn write(peer: &mut Peer, write: Write) -> Result<Ack, Reject> {
    peer.send(&ClientMessage::Write(write)).await;
    loop {
        match peer.next().await {
            ServerMessage::Ack(ack) => return Ok(ack),
            ServerMessage::Reject(reject) => return Err(reject),
            _ => {}
        }
    }
}

/// A document of so many bytes.
fn large(n: usize, bytes: usize) -> Vec<Op> {
    let value = Value::str(&"x".repeat(bytes));
    vec![op(&format!("d/{n}"), OpKind::Set(fields(&[("v", value)])))]
}

fn get(id: u64, space: &str, docs: &[&str]) -> ClientMessage {
    ClientMessage::Get(Get {
        id,
        space: space.parse().unwrap(),
        docs: docs.iter().map(|doc| doc.parse().unwrap()).collect(),
    })
}

/// One whose system takes little for it while it does not read.
async fn small_reader(gateway: &Gateway) -> Peer {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4_096).unwrap();
    let stream = socket.connect(gateway.addr).await.unwrap();
    let mut request = format!("ws://{}/v1/ws", gateway.addr).into_client_request().unwrap();
    let protocol = Form::Msgpack.subprotocol().parse().unwrap();
    request.headers_mut().insert("Sec-WebSocket-Protocol", protocol);
    let (socket, _) = tokio_tungstenite::client_async(request, stream).await.unwrap();
    let mut peer = Peer::connect(gateway.addr, Form::Msgpack).await;
    peer.socket = socket;
    hello(&mut peer, "small").await;
    assert!(matches!(peer.next().await, ServerMessage::Welcome(_)));
    peer
}

/// How connections end, and what is said before.
pub async fn closes(seen: &Seen) {
    let mut config = quick();
    config.hello = Duration::from_secs(1);
    config.ping = Duration::from_secs(1);
    let (gateway, _) = start(config, Retention::default()).await;
    let waiting = Peer::connect(gateway.addr, Form::Msgpack).await;
    let mut brief = gateway.peer("brief").await;
    let mut silent = gateway.peer("silent").await;
    for code in ["unauthenticated", "auth_unavailable", "internal"] {
        let mut peer = Peer::connect(gateway.addr, Form::Msgpack).await;
        hello(&mut peer, code).await;
        to_the_end(&mut peer).await;
    }
    let mut peer = gateway.peer("a").await;
    peer.send(&ClientMessage::Auth { token: "b".into() }).await;
    to_the_end(&mut peer).await;
    let mut peer = gateway.peer("a").await;
    hello(&mut peer, "a").await;
    to_the_end(&mut peer).await;
    let mut peer = gateway.peer("a").await;
    peer.send_raw(vec![0xc1]).await;
    to_the_end(&mut peer).await;
    let mut peer = gateway.peer("a").await;
    let _ = peer.socket.send(Message::binary(vec![0xc0; (1 << 20) + 1])).await;
    to_the_end(&mut peer).await;
    let mut peer = gateway.peer("a").await;
    peer.socket.close(None).await.unwrap();
    to_the_end(&mut peer).await;
    drop(gateway.peer("a").await);
    to_the_end(&mut brief).await;
    for reason in ["client", "lost", "token_expired", "handshake_timeout", "idle"] {
        seen.moves(&gateway, &format!("tidegate_closes_total{{reason=\"{reason}\"}}"))
            .await;
    }
    to_the_end(&mut silent).await;
    drop(waiting);
    seen.rests(&gateway).await;
    let page = seen.page(&gateway).await;
    let ended: u64 = page
        .iter()
        .filter(|(series, _)| series.contains("_closes_"))
        .map(|(_, n)| n)
        .sum();
    assert_eq!(ended, 12, "each connection ends once: {page:?}");
}

/// HTTP: what is refused, and what ends in the middle; who makes room.
pub async fn requests(seen: &Seen) {
    let mut config = quick();
    config.hello = Duration::from_millis(300);
    let (gateway, gate) = start(config, Retention::default()).await;
    upgrade(&gateway, "Host: evil.example\r\n").await;
    upgrade(&gateway, "Host: localhost\r\nOrigin: http://evil.example\r\n").await;
    http(&gateway, "/nothing", "Host: localhost\r\n").await;
    http(&gateway, "/v1/ws", "Host: localhost\r\n").await;
    gate.failing.store(true, Ordering::Relaxed);
    http(&gateway, "/readyz", "Host: localhost\r\n").await;
    gate.failing.store(false, Ordering::Relaxed);
    let mut garbage = TcpStream::connect(gateway.addr).await.unwrap();
    garbage.write_all(b"\x00\x01\x02 what\r\n\r\n").await.unwrap();
    let mut late = TcpStream::connect(gateway.addr).await.unwrap();
    late.write_all(b"GET / HTTP/1.1\r\n").await.unwrap();
    let mut gone = TcpStream::connect(gateway.addr).await.unwrap();
    gone.write_all(b"GET / HTTP/1.1\r\n").await.unwrap();
    tokio::time::sleep(Duration::from_millis(50)).await;
    drop(gone);
    for reason in ["malformed", "timeout", "lost"] {
        seen.moves(&gateway, &format!("tidegate_http_errors_total{{reason=\"{reason}\"}}"))
            .await;
    }
    drop((garbage, late));
    seen.rests(&gateway).await;
}

/// A node that is full.
pub async fn admission(seen: &Seen) {
    let admission = AdmissionConfig {
        connections: Some(4),
        handshakes: 2,
        grace: Duration::from_millis(200),
    };
    let (gateway, _) = start(ServerConfig { admission, ..quick() }, Retention::default()).await;
    let silent = TcpStream::connect(gateway.addr).await.unwrap();
    let mut upgraded = Peer::connect(gateway.addr, Form::Msgpack).await;
    upgrade(&gateway, "Host: localhost\r\n").await;
    tokio::time::sleep(Duration::from_millis(250)).await;
    // Each of the two makes room for one that is new.
    let more = [
        TcpStream::connect(gateway.addr).await.unwrap(),
        TcpStream::connect(gateway.addr).await.unwrap(),
    ];
    to_the_end(&mut upgraded).await;
    drop((silent, more));
    seen.rests(&gateway).await;
    let peers = [
        gateway.peer("a").await,
        gateway.peer("a").await,
        gateway.peer("a").await,
        gateway.peer("a").await,
    ];
    let mut refused = TcpStream::connect(gateway.addr).await.unwrap();
    refused.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    refused.read_to_string(&mut String::new()).await.unwrap();
    drop((peers, refused));
    tokio::time::sleep(Duration::from_millis(50)).await;
    seen.rests(&gateway).await;
}

/// A node that stops, as its connections see it.
pub async fn stopping(seen: &Seen) {
    let mut config = quick();
    config.ready_delay = Duration::from_millis(400);
    // A request that is half sent has a second.
    config.node.flush = Duration::from_millis(500);
    let (gateway, _) = start(config, Retention::default()).await;
    let mut peer = gateway.peer("a").await;
    peer.follow("s", &mut Replica::default(), None).await;
    // Asked for before the stop in part.
    let mut upgrading = TcpStream::connect(gateway.addr).await.unwrap();
    let begin = "GET /v1/ws HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n";
    upgrading.write_all(begin.as_bytes()).await.unwrap();
    let mut left = TcpStream::connect(gateway.addr).await.unwrap();
    left.write_all(b"GET /metrics HTTP/1.1\r\n").await.unwrap();
    let (addr, metrics) = (gateway.addr, gateway.metrics.clone());
    let watch = async {
        tokio::time::sleep(Duration::from_millis(150)).await;
        let mut socket = TcpStream::connect(addr).await.unwrap();
        let ready = b"GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
        socket.write_all(ready).await.unwrap();
        socket.read_to_string(&mut String::new()).await.unwrap();
        assert!(matches!(peer.next().await, ServerMessage::Goaway { .. }));
        to_the_end(&mut peer).await;
        let end = "Host: localhost\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: tidegate.v1.json\r\n\r\n";
        upgrading.write_all(end.as_bytes()).await.unwrap();
        let mut answer = String::new();
        upgrading.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
    };
    tokio::join!(gateway.stop(), watch);
    let page = seen.take(&metrics.render());
    for gauge in ["tidegate_connections", "tidegate_subscriptions", "tidegate_handshakes"] {
        assert_eq!(page[gauge], 0, "{gauge} of a gateway that has stopped");
    }
}

/// What mutations are answered, and what the engine counts about them.
pub async fn writes(seen: &Seen) {
    let mut config = quick();
    config.engine.stale_tries = 2;
    config.node.limits.field_bytes = 64;
    let (gateway, gate) = start(config, Retention::default()).await;
    let mut peer = gateway.peer("a").await;
    let mut state = WriterState::new("s", 1, peer.now);
    let first = state.write(vec![set("d/1", "n", 1)]);
    let at = write(&mut peer, first.clone()).await.unwrap().position;
    write(&mut peer, first.clone()).await.expect("a repeat");
    write(&mut peer, state.write(vec![set("d/1", "n", 2)])).await.unwrap();
    let refused = |answer: Result<Ack, Reject>| answer.expect_err("refused").code;
    // Of other clients, as of before that: written over, left out, rejected.
    for (client, policy) in [(2, Policy::Lww), (3, Policy::Merge), (4, Policy::Reject)] {
        let mut other = WriterState::new("s", client, peer.now);
        let mut late = other.write(vec![set("d/1", "n", 3), set("d/1", "m", 3)]);
        (late.base, late.policy) = (Some(at), Some(policy));
        let answer = write(&mut peer, late).await;
        assert_eq!(
            answer.err().map(|reject| reject.code).is_some(),
            policy == Policy::Reject
        );
    }
    for (ops, code) in [
        (vec![set("forbidden/1", "n", 1)], Code::Forbidden),
        (vec![set("d/1", &"f".repeat(65), 1)], Code::TooLarge),
        (
            vec![Op {
                exists: Some(true),
                ..set("d/9", "n", 1)
            }],
            Code::PreconditionFailed,
        ),
    ] {
        assert_eq!(refused(write(&mut peer, state.write(ops)).await), code);
    }
    let mut newcomer = WriterState::new("s", 5, peer.now);
    let limited = newcomer.write(vec![set("rate_limited/1", "n", 1)]);
    assert_eq!(refused(write(&mut peer, limited).await), Code::RateLimited);
    let mut copy = state.clone();
    copy.mid += 5;
    let skipping = copy.write(vec![set("d/1", "n", 1)]);
    assert_eq!(refused(write(&mut peer, skipping).await), Code::OutOfOrder);
    let mut cloned = first.clone();
    cloned.head.key = MutationKey(99);
    assert_eq!(refused(write(&mut peer, cloned).await), Code::ClientCloned);
    let mut unknown = WriterState::new("s", 6, peer.now);
    unknown.write(vec![]);
    let second = unknown.write(vec![set("d/1", "n", 1)]);
    assert_eq!(refused(write(&mut peer, second).await), Code::ClientUnknown);
    // What the protocol does not have, in JSON.
    let mut json = gateway.peer_in("a", Form::Json).await;
    let mut other = WriterState::new("s", 7, peer.now);
    for (from, to, code) in [
        ("\"inc\"", "\"nope\"", Code::Unsupported),
        ("\"by\":1", "\"by\":\"x\"", Code::Invalid),
    ] {
        let bytes = Form::Json.encode_client(&ClientMessage::Write(other.write(vec![inc("d/1", "k")])));
        let text = String::from_utf8(bytes).unwrap();
        let wrong = text.replace(from, to);
        assert_ne!(text, wrong);
        json.send_raw(wrong.into_bytes()).await;
        match json.next().await {
            ServerMessage::Reject(reject) => assert_eq!(reject.code, code, "{}", reject.message),
            other => panic!("{other:?}"),
        }
    }
    // The store: other nodes write, or it does not answer.
    gate.stale.store(1, Ordering::Relaxed);
    write(&mut peer, state.write(vec![set("d/1", "n", 1)])).await.unwrap();
    gate.stale.store(3, Ordering::Relaxed);
    let given_up = state.write(vec![set("d/1", "n", 1)]);
    assert_eq!(refused(write(&mut peer, given_up.clone()).await), Code::Unavailable);
    gate.failing.store(true, Ordering::Relaxed);
    assert_eq!(refused(write(&mut peer, given_up).await), Code::Unavailable);
    gate.failing.store(false, Ordering::Relaxed);
    drop((peer, json));
    seen.rests(&gateway).await;
}

/// Queues of mutations that are full, and answers that come when nobody can be told.
pub async fn queues(seen: &Seen) {
    let mut config = quick();
    config.engine.group_items = 1;
    config.engine.space_items = 1;
    let (gateway, gate) = start(config, Retention::default()).await;
    let mut peer = gateway.peer("a").await;
    let (reached, go) = gate.hold("commit");
    let send = async |peer: &mut Peer, client| {
        let mut state = WriterState::new("s", client, peer.now);
        peer.send(&ClientMessage::Write(state.write(vec![set("d/1", "n", 1)])))
            .await;
    };
    send(&mut peer, 1).await;
    reached.await.unwrap();
    send(&mut peer, 2).await;
    send(&mut peer, 3).await;
    assert!(matches!(peer.next().await, ServerMessage::Reject(_)));
    seen.page(&gateway).await;
    hello(&mut peer, "again").await;
    to_the_end(&mut peer).await;
    go.send(()).unwrap();
    seen.moves(&gateway, "tidegate_dropped_frames_total{reason=\"ended\"}")
        .await;
    drop(peer);
    seen.rests(&gateway).await;

    let mut config = quick();
    config.engine.node_bytes = 1;
    let (gateway, _) = start(config, Retention::default()).await;
    let mut peer = gateway.peer("a").await;
    send(&mut peer, 1).await;
    assert!(matches!(peer.next().await, ServerMessage::Reject(_)));
    drop(peer);
    seen.rests(&gateway).await;
}

/// Errors that a connection outlives.
pub async fn errors(seen: &Seen) {
    let mut config = quick();
    config.node.limits.subscriptions = 1;
    config.node.limits.message_bytes = 64 << 10;
    config.node.limits.doc_bytes = 32 << 10;
    let (gateway, gate) = start(config, Retention::default()).await;
    let mut peer = gateway.peer("a").await;
    let mut state = WriterState::new("s", 1, peer.now);
    for n in 0..3 {
        write(&mut peer, state.write(large(n, 30_000))).await.unwrap();
    }
    let told = async |peer: &mut Peer, message: ClientMessage| {
        peer.send(&message).await;
        match peer.next().await {
            ServerMessage::Error { code, .. } | ServerMessage::Denied { code, .. } => code,
            other => panic!("{other:?}"),
        }
    };
    let sub = |id: u64, space: &str| {
        ClientMessage::Sub(Sub {
            id,
            space: space.parse().unwrap(),
            client: None,
            from: None,
            filter: None,
        })
    };
    assert_eq!(told(&mut peer, sub(1, "forbidden")).await, Code::Forbidden);
    assert_eq!(
        told(&mut peer, get(1, "s", &["d/0", "d/1", "d/2"])).await,
        Code::TooLarge
    );
    let auth = ClientMessage::Auth {
        token: "auth_unavailable".into(),
    };
    assert_eq!(told(&mut peer, auth).await, Code::AuthUnavailable);
    gate.failing.store(true, Ordering::Relaxed);
    assert_eq!(told(&mut peer, get(1, "s", &["d/0"])).await, Code::Unavailable);
    gate.failing.store(false, Ordering::Relaxed);
    peer.follow("s", &mut Replica::default(), None).await;
    assert_eq!(told(&mut peer, sub(9, "another")).await, Code::TooMany);
    assert_eq!(told(&mut peer, sub(1, "another")).await, Code::Invalid);
    let mut json = gateway.peer_in("a", Form::Json).await;
    json.send_raw(b"{\"t\":\"nope\"}".to_vec()).await;
    let unsupported = json.next().await;
    let code = Code::Unsupported;
    assert!(
        matches!(&unsupported, ServerMessage::Error { code: found, .. } if *found == code),
        "{unsupported:?}"
    );
    drop((peer, json));
    seen.rests(&gateway).await;
}

/// Subscriptions from wherever a client may stand; what a subscriber misses, and what an erasure does.
pub async fn subscriptions(seen: &Seen) {
    let retention = Retention {
        log_commits: 4,
        tombstones_ms: 1_000,
        ..Retention::default()
    };
    let mut config = quick();
    config.node.limits.page_bytes = 4_096;
    let (gateway, _) = start(config, retention).await;
    let mut writer = gateway.peer("a").await;
    let mut state = WriterState::new("s", 1, writer.now);
    write(&mut writer, state.write(vec![set("d/0", "n", 1)])).await.unwrap();
    let (mut peer, _) = gateway.peer_with("b", Form::Msgpack, &[deflate::CAP]).await;
    let mut replica = Replica::default();
    peer.follow("s", &mut replica, None).await;
    let old = replica.clone();
    for n in 0..40 {
        let ops = large(n, 1_000);
        write(&mut writer, state.write(ops)).await.unwrap();
    }
    write(&mut writer, state.write(large(50, 20_000))).await.unwrap();
    peer.reach(&mut replica, 42).await;
    let resume = async |from: ResumeFrom| {
        let mut peer = gateway.peer("c").await;
        peer.sub("s", None, Some(from), None).await;
        while !matches!(peer.next().await, ServerMessage::Current { .. }) {}
    };
    let from = old.from().unwrap();
    resume(from.clone()).await;
    resume(replica.from().unwrap()).await;
    resume(ResumeFrom {
        position: Position::new(Epoch(99), from.position.seq),
        ..from.clone()
    })
    .await;
    resume(ResumeFrom {
        view: ViewId(99),
        ..from.clone()
    })
    .await;
    resume(ResumeFrom {
        cursor: Some(Bytes::from_static(b"cursor")),
        ..from.clone()
    })
    .await;
    // Longer away than tombstones are kept.
    write(&mut writer, state.write(vec![delete("d/1")])).await.unwrap();
    let far = writer.now + 3_600_000;
    gateway.store.collect(far).await.unwrap();
    gateway.store.collect(far).await.unwrap();
    resume(from).await;
    seen.page(&gateway).await;

    let erased = gateway.engine.erase(&"s".parse().unwrap(), Erase::Space).await;
    erased.unwrap();
    seen.moves(&gateway, "tidegate_behind_total{reason=\"lost\"}").await;
    drop((writer, peer));
    seen.rests(&gateway).await;
}

/// More comes while a space is opened than is kept for that time.
pub async fn opening(seen: &Seen) {
    let (gateway, gate) = start(quick(), Retention::default()).await;
    let mut writer = gateway.peer("a").await;
    let (reached, go) = gate.hold("positions");
    let mut opening = gateway.peer("d").await;
    opening.sub("busy", None, None, None).await;
    reached.await.unwrap();
    let mut state = WriterState::new("busy", 2, writer.now);
    for n in 0..1_100 {
        writer
            .send(&ClientMessage::Write(state.write(vec![set("d/1", "n", n)])))
            .await;
    }
    for _ in 0..1_100 {
        assert!(matches!(writer.next().await, ServerMessage::Ack(_)));
    }
    go.send(()).unwrap();
    seen.moves(&gateway, "tidegate_ahead_dropped_total").await;
    seen.moves(&gateway, "tidegate_gap_commits_total").await;
    seen.moves(&gateway, "tidegate_gaps_filled_total").await;
    // Behind this one's back, and nobody tells it.
    let (dir, store) = (gateway.dir.clone(), gateway.store.clone());
    let (any, gate) = ("127.0.0.1:0".parse().unwrap(), Gate::new(store.clone()));
    let other = Gateway::guarded(any, dir, store, gate, Arc::new(Says), quick()).await;
    let mut unheard = other.peer("a").await;
    // Until the space is open all that was written is in the head that is read.
    while seen.page(&gateway).await["tidegate_head_mismatches_total"] == 0 {
        write(&mut unheard, state.write(vec![set("d/1", "n", 0)]))
            .await
            .unwrap();
    }
    seen.moves(&gateway, "tidegate_head_mismatches_total").await;
    drop((writer, opening));
    seen.rests(&gateway).await;
}

/// Fills a small reader's way until some whole frames wait.
async fn fill(seen: &Seen, gateway: &Gateway, space: &str) {
    let mut writer = gateway.peer("writer").await;
    let mut state = WriterState::new(space, 1, writer.now);
    let mut n = 0;
    while seen.page(gateway).await["tidegate_queued_bytes"] < 60_000 {
        write(&mut writer, state.write(large(n % 2, 20_000))).await.unwrap();
        n += 1;
        assert!(n < 2_000, "it takes all");
    }
}

/// Readers that take too little.
pub async fn readers(seen: &Seen) {
    let dropped = |reason: &str| format!("tidegate_dropped_frames_total{{reason=\"{reason}\"}}");
    // Taken nothing for too long.
    let mut config = quick();
    config.node.stall = Duration::from_millis(400);
    let (gateway, _) = start(config, Retention::default()).await;
    let mut slow = small_reader(&gateway).await;
    slow.follow("s", &mut Replica::default(), None).await;
    fill(seen, &gateway, "s").await;
    seen.moves(&gateway, &dropped("stalled")).await;
    drop(slow);
    seen.rests(&gateway).await;

    let mut config = quick();
    config.node.hard_bytes = 640 << 10;
    config.node.limits.page_bytes = 1 << 20;
    let (gateway, _) = start(config, Retention::default()).await;
    // Over the soft bound: cut. It waits for what it is sent, and says something wrong: there is no time for the rest.
    let mut slow = small_reader(&gateway).await;
    slow.follow("s", &mut Replica::default(), None).await;
    let mut writer = gateway.peer("writer").await;
    let mut state = WriterState::new("s", 2, writer.now);
    write(&mut writer, state.write(large(0, 20_000))).await.unwrap();
    let mut replica = Replica::default();
    gateway.peer("early").await.follow("s", &mut replica, None).await;
    let early = replica.from().unwrap();
    for n in 0..80 {
        write(&mut writer, state.write(large(n % 2, 20_000))).await.unwrap();
    }
    seen.moves(&gateway, &dropped("cut")).await;
    drop(slow);

    // In one piece more than the hard bound.
    let mut slow = small_reader(&gateway).await;
    slow.sub("s", None, Some(early), None).await;
    seen.moves(&gateway, &dropped("overflow")).await;
    drop(slow);

    // Closed while some waits.
    let mut slow = small_reader(&gateway).await;
    slow.follow("t", &mut Replica::default(), None).await;
    fill(seen, &gateway, "t").await;
    hello(&mut slow, "again").await;
    seen.moves(&gateway, &dropped("unflushed")).await;
    drop(slow);

    // Gone while some waits.
    let mut slow = small_reader(&gateway).await;
    slow.follow("u", &mut Replica::default(), None).await;
    fill(seen, &gateway, "u").await;
    drop(slow);
    seen.moves(&gateway, &dropped("broken")).await;
    drop(writer);
    seen.rests(&gateway).await;
}

/// What the embedded store counts: syncs, and calls that it turns away.
pub async fn disk(seen: &Seen) {
    let dir = Arc::new(TempDir::new().unwrap());
    let options = embedded::EmbeddedOptions {
        durability: embedded::Durability::Fsync,
        retention: Retention::default(),
        reserve_bytes: 0,
        env: Arc::new(tidegate::env::SystemEnv),
    };
    let store = Arc::new(embedded::open(dir.path(), options).unwrap());
    let gateway = Gateway::on(dir, store.clone(), store.clone(), quick()).await;
    let mut peer = gateway.peer("a").await;
    let mut state = WriterState::new("s", 1, peer.now);
    write(&mut peer, state.write(vec![set("d/1", "n", 1)])).await.unwrap();
    // Of another epoch it would be answered without being written.
    let space: SpaceId = "s".parse().unwrap();
    let epoch = store.positions(std::slice::from_ref(&space)).await.unwrap()[0]
        .head
        .epoch;
    let group = |writer| CommitGroup {
        space: space.clone(),
        planned_on: epoch,
        fresh: Epoch(1),
        now_ms: 1,
        items: vec![Prepared {
            writer: Writer(writer),
            user: UserTag(1),
            mid: Mid::ZERO.next(),
            key: MutationKey(1),
            prev: None,
            first: None,
            expects: vec![],
            action: Action::Apply(Effects {
                body: vec![0; 40 << 20].into(),
                ..Effects::default()
            }),
        }],
    };
    // Each takes a while to be written, and counts until it is.
    let all = futures_util::future::join_all((1..=6).map(|writer| store.commit(group(writer)))).await;
    assert!(
        all.iter().any(Result::is_err),
        "each is more than half of what the line holds"
    );
    drop(peer);
    seen.rests(&gateway).await;
}

/// A gateway on a Redis.
async fn on_redis(server: &Server) -> Gateway {
    let metrics = Arc::new(Metrics::default());
    let counted = RedisMetrics::new(&metrics);
    let config = RedisConfig {
        response: Duration::from_millis(500),
        patience: Duration::from_millis(800),
        ping: Duration::from_millis(50),
        ..RedisConfig::default()
    };
    let (url, env) = (server.url(), Arc::new(tidegate::env::SystemEnv));
    let store = RedisStore::new(&url, config, Retention::default(), counted).unwrap();
    let bus = RedisBus::new(store.clone(), env.clone());
    let parts = Parts {
        store,
        authoriser: Arc::new(Says),
        env,
        bus: Some(bus),
        metrics,
    };
    let dir = Arc::new(TempDir::new().unwrap());
    let unused = open_store(dir.path(), Retention::default());
    Gateway::of("127.0.0.1:0".parse().unwrap(), dir, unused, parts, quick()).await
}

pub(super) async fn redis(seen: &Seen) {
    let mut server = Server::start(&[]);
    let gateway = on_redis(&server).await;
    seen.moves(&gateway, "tidegate_bus_connected").await;
    let mut peer = gateway.peer("ann").await;
    let mut writer = WriterState::new("s", 1, peer.now);
    peer.follow("s", &mut Replica::default(), None).await;
    let mut next = async || {
        let again = writer.write(vec![inc("d/1", "n")]);
        (again.clone(), write(&mut peer, again).await)
    };
    next().await.1.expect("written");
    let other = on_redis(&server).await;
    let mut far = other.peer("eve").await;
    let mut eve = WriterState::new("s", 3, far.now);
    write(&mut far, eve.write(vec![inc("d/1", "n")]))
        .await
        .expect("written");
    seen.moves(&gateway, "tidegate_delivery_lag_seconds_count").await;
    drop(far);
    other.stop().await;
    seen.moves(&gateway, "tidegate_redis_seconds_count").await;
    seen.moves(&gateway, "tidegate_redis_connections").await;
    // Each of these keeps what follows from being written until it is over.
    let kind = |kind: &str| format!("tidegate_redis_errors_total{{kind=\"{kind}\"}}");
    server.command(&["SCRIPT", "FLUSH"]);
    next().await.1.expect("written");
    seen.moves(&gateway, &kind("script")).await;
    let mut peer = gateway.peer("bob").await;
    let mut writer = WriterState::new("s", 2, peer.now);
    let first = writer.write(vec![inc("d/1", "n")]);
    for (begin, end, name) in [
        (
            &["REPLICAOF", "127.0.0.1", "1"][..],
            &["REPLICAOF", "NO", "ONE"][..],
            "role",
        ),
        (
            &["CONFIG", "SET", "maxmemory", "1"],
            &["CONFIG", "SET", "maxmemory", "0"],
            "oom",
        ),
        (
            &["HSET", "tg:{s}:meta", "erasing", "somebody-somebody"],
            &["HDEL", "tg:{s}:meta", "erasing"],
            "erasing",
        ),
        (
            &["ZADD", "tg:{s}:idx", "9", "d/2"],
            &["ZREM", "tg:{s}:idx", "d/2"],
            "partial",
        ),
        (&["CLIENT", "PAUSE", "1200"], &["PING"], "timeout"),
        (
            &["CONFIG", "SET", "maxmemory-policy", "allkeys-lru"],
            &["CONFIG", "SET", "maxmemory-policy", "noeviction"],
            "settings",
        ),
    ] {
        server.command(begin);
        if name == "settings" {
            // They are looked at with each connection.
            server.command(&["CLIENT", "KILL", "TYPE", "normal"]);
        }
        // Who waits long enough is served.
        if let Err(refused) = write(&mut peer, first.clone()).await {
            assert_eq!(refused.code, Code::Unavailable, "{name}");
        } else {
            assert_eq!(name, "timeout", "that holds up writes");
        }
        seen.moves(&gateway, &kind(name)).await;
        server.command(end);
    }
    server.kill();
    seen.moves(&gateway, &kind("connection")).await;
    seen.moves(&gateway, "tidegate_bus_breaks_total").await;
    let answer = http(&gateway, "/readyz", "Host: localhost\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
    seen.moves(&gateway, "tidegate_refused_total{reason=\"bus\"}").await;
    server.run();
}
