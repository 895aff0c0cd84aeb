//! Dev mode is out of reach for everything but programs on this machine; health, metrics, stopping.

use crate::support::*;
use tidegate::server::ServerConfig;
use tidegate::store::Retention;
use tidegate_protocol::form::Form;
use tidegate_protocol::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

pub async fn http(gateway: &Gateway, path: &str, headers: &str) -> String {
    let mut socket = TcpStream::connect(gateway.addr).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\n{headers}Connection: close\r\n\r\n");
    socket.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).await.unwrap();
    answer
}

/// A number of the metrics page, by its name and labels.
pub async fn metric(gateway: &Gateway, name: &str) -> u64 {
    let text = http(gateway, "/metrics", "Host: localhost\r\n").await;
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    // What has not happened shows as 0: one that is not there is misspelt.
    line.unwrap_or_else(|| panic!("no {name} in {text}"))
        .trim()
        .parse()
        .unwrap()
}

pub async fn upgrade(gateway: &Gateway, headers: &str) -> String {
    let mut socket = TcpStream::connect(gateway.addr).await.unwrap();
    let request = format!(
        "GET /v1/ws HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: tidegate.v1.json\r\n{headers}\r\n"
    );
    socket.write_all(request.as_bytes()).await.unwrap();
    let mut answer = vec![0; 4096];
    let n = socket.read(&mut answer).await.unwrap();
    String::from_utf8_lossy(&answer[..n]).into_owned()
}

#[tokio::test]
async fn a_website_in_the_users_browser_cannot_reach_dev_mode() {
    let gateway = Gateway::start().await;
    for admitted in [
        "Host: localhost:8080\r\n",
        "Host: 127.0.0.1\r\nOrigin: http://localhost:3000\r\n",
        "Host: [::1]:8080\r\nOrigin: http://127.0.0.1\r\n",
    ] {
        assert!(
            upgrade(&gateway, admitted).await.starts_with("HTTP/1.1 101"),
            "{admitted}"
        );
    }
    for refused in [
        // DNS rebinding: the page's own name resolves to 127.0.0.1.
        "Host: evil.example\r\n",
        "Host: evil.example:8080\r\nOrigin: http://evil.example:8080\r\n",
        // A cross-origin WebSocket, which browsers do not stop.
        "Host: localhost:8080\r\nOrigin: https://evil.example\r\n",
        "Host: localhost\r\nOrigin: null\r\n",
        "Host: localhost\r\nHost: evil.example\r\n",
        "Host: localhost\r\nOrigin: http://localhost\r\nOrigin: http://evil.example\r\n",
        "Host: localhost.evil.example\r\n",
        "Host: user@localhost\r\n",
        "Host: 192.168.1.2\r\n",
        "",
    ] {
        let answer = upgrade(&gateway, refused).await;
        assert!(answer.starts_with("HTTP/1.1 4"), "{refused}: {answer}");
    }
    let answer = http(&gateway, "/metrics", "Host: evil.example\r\n").await;
    assert!(
        answer.starts_with("HTTP/1.1 403") && answer.contains("tidegate-error: forbidden"),
        "{answer}"
    );
}

#[tokio::test]
async fn dev_mode_does_not_listen_beyond_this_machine() {
    let gateway = Gateway::start().await;
    let listener = tokio::net::TcpListener::bind("0.0.0.0:0").await.unwrap();
    let parts = tidegate::server::Parts {
        store: gateway.store.clone(),
        authoriser: std::sync::Arc::new(tidegate::auth::DevAuthoriser),
        env: std::sync::Arc::new(tidegate::env::SystemEnv),
        bus: None,
        metrics: std::sync::Arc::default(),
    };
    let config = ServerConfig {
        loopback_only: true,
        ..ServerConfig::default()
    };
    let stop = tokio_util::sync::CancellationToken::new();
    let error = tidegate::server::run(listener, parts, config, stop).await.unwrap_err();
    assert!(error.to_string().contains("0.0.0.0"), "{error}");
}

#[tokio::test]
async fn http_refusals_say_that_they_are_the_gateways() {
    let gateway = Gateway::start().await;
    for (path, headers, status) in [
        ("/nowhere", "Host: localhost\r\n", "404"),
        ("/v1/ws", "Host: localhost\r\n", "426"),
        (
            "/v1/ws",
            "Host: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 8\r\n",
            "426",
        ),
    ] {
        let answer = http(&gateway, path, headers).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{path}: {answer}");
        assert!(answer.to_lowercase().contains("tidegate-error: "), "{answer}");
    }
    let wrong = upgrade(&gateway, "Host: localhost\r\n")
        .await
        .replace("tidegate.v1.json", "");
    assert!(wrong.starts_with("HTTP/1.1 101"));
}

#[tokio::test]
async fn health_and_metrics_tell_what_the_gateway_does() {
    let gateway = Gateway::start().await;
    assert!(
        http(&gateway, "/healthz", "Host: localhost\r\n")
            .await
            .ends_with("ok\n")
    );
    assert!(
        http(&gateway, "/readyz", "Host: localhost\r\n")
            .await
            .ends_with("ready\n")
    );
    let metric = async |name: &str| {
        let text = http(&gateway, "/metrics", "Host: localhost\r\n").await;
        let line = text
            .lines()
            .find(|line| line.starts_with(&format!("{name} ")))
            .map(str::to_owned);
        line.and_then(|line| line.rsplit(' ').next().and_then(|n| n.parse::<u64>().ok()))
            .unwrap_or(0)
    };
    assert_eq!(metric("tidegate_connections").await, 0);
    let mut peers = vec![gateway.peer("a").await, gateway.peer_in("b", Form::Json).await];
    let mut replica = Replica::default();
    peers[1].follow("s", &mut Replica::default(), None).await;
    peers[0].follow("s", &mut replica, None).await;
    let mut writer = WriterState::new("s", 1, peers[0].now);
    let write = writer.write(vec![set("d/x", "n", 1)]);
    peers[0].send(&ClientMessage::Write(write)).await;
    peers[0].answer(&mut replica).await.unwrap();
    assert_eq!(metric("tidegate_connections").await, 2);
    assert_eq!(metric("tidegate_subscriptions").await, 2);
    assert_eq!(metric("tidegate_spaces").await, 1);
    assert_eq!(metric("tidegate_deliveries_total").await, 2);
    assert_eq!(metric("tidegate_encodes_total").await, 2, "once a form");
    assert_eq!(metric("tidegate_commits_total").await, 1);
    assert_eq!(metric("tidegate_catch_ups_total{mode=\"reset\"}").await, 2);
    assert_eq!(metric("tidegate_writes_total{result=\"ack\"}").await, 1);
    assert_eq!(metric("tidegate_engine_commits_total").await, 1);
    assert_eq!(metric("tidegate_engine_waiting").await, 0);
    assert_eq!(metric("tidegate_store_commits_total").await, 1);
    drop(peers);
    for _ in 0..100 {
        if metric("tidegate_connections").await == 0 && metric("tidegate_subscriptions").await == 0 {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    panic!("the gauges do not come down");
}

#[tokio::test]
async fn a_stop_answers_what_was_taken_in_and_says_goodbye() {
    let gateway = Gateway::with(ServerConfig::default(), Retention::default()).await;
    let mut peer = gateway.peer("u").await;
    let mut replica = Replica::default();
    peer.follow("s", &mut replica, None).await;
    let mut writer = WriterState::new("s", 1, peer.now);
    for i in 0..50 {
        peer.send(&ClientMessage::Write(writer.write(vec![set("d/x", "n", i)])))
            .await;
    }
    peer.answer(&mut replica).await.unwrap();
    let stopping = gateway.stop();
    let reading = async {
        let (mut acks, mut goaway, mut last) = (1, false, None);
        while let Some(message) = peer.maybe_next().await {
            match message {
                ServerMessage::Ack(_) => acks += 1,
                ServerMessage::Goaway { .. } => goaway = true,
                ServerMessage::Error { code, .. } => last = Some(code),
                _ => {}
            }
        }
        (acks, goaway, last)
    };
    let (dir, (acks, goaway, last)) = tokio::join!(stopping, reading);
    assert!(goaway);
    assert_eq!(last, Some(Code::GoingAway));
    let gateway = Gateway::in_dir(dir, ServerConfig::default(), Retention::default()).await;
    let mut replica = Replica::default();
    gateway.peer("u").await.follow("s", &mut replica, None).await;
    assert!(
        replica.at.seq.get() >= acks,
        "every ack kept: {acks} acked, head {}",
        replica.at
    );
}
