//! Who is let in when there is no room, and who is told when to come back.

use crate::access::metric;
use crate::support::*;
use std::time::{Duration, Instant};
use tidegate::admission::AdmissionConfig;
use tidegate::server::ServerConfig;
use tidegate::store::Retention;
use tidegate_protocol::form::Form;
use tidegate_protocol::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

async fn gateway(connections: usize, handshakes: usize) -> Gateway {
    gateway_of(connections, handshakes, AdmissionConfig::default().grace).await
}

async fn gateway_of(connections: usize, handshakes: usize, grace: Duration) -> Gateway {
    let admission = AdmissionConfig {
        connections: Some(connections),
        handshakes,
        grace,
    };
    let config = ServerConfig {
        admission,
        ..ServerConfig::default()
    };
    Gateway::with(config, Retention::default()).await
}

/// What a client is answered that asks for a WebSocket.
async fn ask(gateway: &Gateway) -> String {
    let mut socket = TcpStream::connect(gateway.addr).await.unwrap();
    socket
        .write_all(
            b"GET /v1/ws HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
              Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
              Sec-WebSocket-Protocol: tidegate.v1.json\r\n\r\n",
        )
        .await
        .unwrap();
    let mut answer = vec![0; 4096];
    let n = tokio::time::timeout(PATIENCE, socket.read(&mut answer))
        .await
        .unwrap()
        .unwrap();
    String::from_utf8_lossy(&answer[..n]).into_owned()
}

#[tokio::test]
async fn over_the_bound_a_connection_is_told_when_to_come_back_and_a_free_place_is_taken() {
    let gateway = gateway(6, 6).await;
    let mut peers = Vec::new();
    for _ in 0..6 {
        peers.push(gateway.peer("alice").await);
    }
    for _ in 0..3 {
        let answer = ask(&gateway).await;
        assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
        assert!(answer.contains("tidegate-error: overloaded\r\n"), "{answer}");
        let after = answer
            .lines()
            .find_map(|line| line.strip_prefix("Retry-After: "))
            .unwrap();
        assert!((2..10).contains(&after.parse::<u32>().unwrap()), "{answer}");
        assert!(answer.contains(&format!("too many connections on this node; come back in {after} s")));
    }
    // Those who are in are not touched.
    for peer in &mut peers {
        peer.send(&ClientMessage::Ping { at: 1 }).await;
        assert!(matches!(peer.next().await, ServerMessage::Pong { .. }));
    }
    drop(peers.split_off(4));
    let began = Instant::now();
    while metric(&gateway, "tidegate_connections").await != 4 {
        assert!(began.elapsed() < PATIENCE, "the places are not free");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    peers.push(gateway.peer("bob").await);
    // The asking takes one itself while it lasts.
    assert!(metric(&gateway, "tidegate_refused_total{reason=\"connections\"}").await >= 3);
    assert_eq!(metric(&gateway, "tidegate_connections").await, 5);
}

#[tokio::test]
async fn who_takes_its_time_before_hello_makes_room_for_who_does_not() {
    let gateway = gateway(1_000, 20).await;
    // Silent ones, and some that are WebSockets and say no more.
    let mut silent = Vec::new();
    for _ in 0..10 {
        silent.push(TcpStream::connect(gateway.addr).await.unwrap());
    }
    let mut upgraded = Vec::new();
    for _ in 0..10 {
        upgraded.push(Peer::connect(gateway.addr, Form::Msgpack).await);
    }
    // Who comes waits until the oldest has had its second, and is let in.
    let began = Instant::now();
    let answer = ask(&gateway).await;
    assert!(answer.starts_with("HTTP/1.1 101 "), "{answer}");
    assert!(began.elapsed() > Duration::from_millis(500), "{:?}", began.elapsed());
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    tokio::time::sleep(Duration::from_millis(100)).await;
    let began = Instant::now();
    let mut proper = Vec::new();
    for _ in 0..20 {
        proper.push(gateway.peer("alice").await);
    }
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    // The first proper ones took the places of the oldest, and were welcomed; so were those after them.
    assert!((1..=2).contains(&metric(&gateway, "tidegate_evicted_total").await));
    let mut end = Vec::new();
    let closed = tokio::time::timeout(PATIENCE, silent[0].read_to_end(&mut end)).await;
    assert_eq!((closed.unwrap().unwrap(), end.len()), (0, 0));
    drop(silent);
    // With the silent ones gone the oldest is one that is a WebSocket: it is told.
    let mut more = Vec::new();
    for _ in 0..30 {
        more.push(TcpStream::connect(gateway.addr).await.unwrap());
    }
    let told = upgraded[0].next().await;
    let ServerMessage::Error { code, .. } = told else {
        panic!("{told:?}")
    };
    assert_eq!(code, Code::Overloaded);
    drop((proper, more));
}

#[tokio::test]
async fn a_crowd_is_let_in_as_places_come_free_and_nobody_is_refused_or_cut_off() {
    // Nobody's time runs out.
    let gateway = gateway_of(1_000, 4, PATIENCE * 10).await;
    let came = futures_util::future::join_all((0..200).map(|_| gateway.peer("alice"))).await;
    for series in [
        "tidegate_evicted_total",
        "tidegate_refused_total{reason=\"connections\"}",
    ] {
        assert_eq!(metric(&gateway, series).await, 0, "{series}");
    }
    assert_eq!(metric(&gateway, "tidegate_connections").await, 200);
    drop(came);
}

#[tokio::test]
async fn a_probe_has_its_turn_among_those_who_say_nothing_within_the_graces_of_those_before_it() {
    let gateway = gateway_of(1_000, 10, Duration::from_millis(300)).await;
    // So many that the last wait for those who wait.
    let mut silent = Vec::new();
    for _ in 0..35 {
        silent.push(TcpStream::connect(gateway.addr).await.unwrap());
    }
    let began = Instant::now();
    assert_eq!(
        metric(&gateway, "tidegate_evicted_total").await,
        26,
        "those before it, but for nine"
    );
    let waited = began.elapsed();
    // Three times a grace: the first 10 are let in at once, and the 36th in the third turn after them.
    assert!(waited > Duration::from_millis(600), "{waited:?}");
    assert!(waited < Duration::from_secs(5), "{waited:?}");
}

#[tokio::test]
async fn a_stop_does_not_wait_for_guests_whom_others_wait_for() {
    let config = ServerConfig {
        admission: AdmissionConfig {
            handshakes: 2,
            grace: PATIENCE * 10,
            ..AdmissionConfig::default()
        },
        ready_delay: Duration::from_millis(200),
        ..ServerConfig::default()
    };
    let gateway = Gateway::with(config, Retention::default()).await;
    let mut all = Vec::new();
    for _ in 0..3 {
        all.push(TcpStream::connect(gateway.addr).await.unwrap());
    }
    let metrics = gateway.metrics.clone();
    let began = Instant::now();
    while metrics.handshakes.get() < 2 {
        assert!(began.elapsed() < PATIENCE);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let began = Instant::now();
    gateway.stop().await;
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_node_that_stops_is_not_ready_first_and_still_takes_who_comes() {
    let config = ServerConfig {
        ready_delay: Duration::from_millis(1_500),
        ..ServerConfig::default()
    };
    let gateway = Gateway::with(config, Retention::default()).await;
    let mut before = gateway.peer("alice").await;
    let addr = gateway.addr;
    let stopping = gateway.stop();
    let asking = async move {
        tokio::time::sleep(Duration::from_millis(300)).await;
        let mut socket = TcpStream::connect(addr).await.unwrap();
        let request = b"GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
        socket.write_all(request).await.unwrap();
        let mut answer = String::new();
        socket.read_to_string(&mut answer).await.unwrap();
        assert!(
            answer.starts_with("HTTP/1.1 503 ") && answer.contains("going_away"),
            "{answer}"
        );
        // Whoever a balancer sends here yet is served.
        let mut late = Peer::connect(addr, Form::Msgpack).await;
        let hello = Hello {
            token: Some("bob".into()),
            ..Hello::default()
        };
        late.send(&ClientMessage::Hello(hello)).await;
        assert!(matches!(late.next().await, ServerMessage::Welcome(_)));
        before.send(&ClientMessage::Ping { at: 1 }).await;
        assert!(matches!(before.next().await, ServerMessage::Pong { .. }));
        for peer in [&mut before, &mut late] {
            assert!(matches!(peer.next().await, ServerMessage::Goaway { .. }));
        }
    };
    tokio::join!(stopping, asking);
}

#[tokio::test]
async fn more_subscriptions_than_can_catch_up_are_told_to_come_back_and_all_are_served_in_the_end() {
    let dir = std::sync::Arc::new(tempfile::TempDir::new().unwrap());
    let store = open_store(dir.path(), Retention::default());
    let gate = Gate::new(store.clone());
    let mut config = ServerConfig::default();
    config.node.catching_up = 10;
    let (reached, go) = gate.hold("changes");
    let gateway = Gateway::on(dir, store, gate, config).await;
    let mut peer = gateway.peer("alice").await;
    for n in 0..30 {
        peer.sub(&format!("s/{n}"), None, None, None).await;
    }
    reached.await.unwrap();
    let mut again = Vec::new();
    while again.len() < 20 {
        let message = peer.next().await;
        let ServerMessage::Denied { id, code, purge } = message else {
            panic!("{message:?}")
        };
        assert_eq!((code, purge), (Code::Unavailable, false));
        again.push(id);
    }
    assert_eq!(again, (11..=30).collect::<Vec<u64>>(), "the newest");
    assert_eq!(metric(&gateway, "tidegate_catching_up").await, 10);
    go.send(()).unwrap();
    let mut current = 0;
    while current < 10 {
        current += u64::from(matches!(peer.next().await, ServerMessage::Current { .. }));
    }
    for n in 10..30 {
        peer.sub(&format!("s/{n}"), None, None, None).await;
        while !matches!(peer.next().await, ServerMessage::Current { .. }) {}
    }
    assert_eq!(metric(&gateway, "tidegate_catching_up").await, 0);
    assert_eq!(
        metric(&gateway, "tidegate_refused_total{reason=\"catching_up\"}").await,
        20
    );
}
