//! A gateway whose disk is full, fails, or has lost what it had. Each test's name is what it proves.

#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    clippy::print_stdout,
    missing_docs,
    unreachable_pub
)]

#[path = "../support/cli.rs"]
mod cli;
mod damaged;
#[path = "../support/disk.rs"]
mod disk;
mod full;
mod killed;
#[allow(dead_code, reason = "this binary uses a part of it")]
#[path = "../e2e/support.rs"]
mod support;

use cli::{Process, tidegate};
use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use support::{Peer, Replica, WriterState};
use tidegate_protocol::form::Form;
use tidegate_protocol::{ClientMessage, Hello, Op, Reject, ServerMessage, Value};

pub const SPACE: &str = "disk:1";

/// A gateway that runs as a process of its own.
pub(crate) struct Served {
    pub process: Process,
    pub addr: SocketAddr,
}

/// Starts a gateway on `data`, with its log on the same disk. `prepare` may change how.
pub(crate) fn serve(data: &Path, config: &str, prepare: impl FnOnce(&mut Command)) -> Served {
    let file = data.with_extension("toml");
    fs::write(&file, config).unwrap();
    let text = |path: &Path| path.to_str().unwrap().to_owned();
    let mut command = tidegate(&["serve", "--dev", "--listen", "127.0.0.1:0"]);
    command.args(["--data-dir", &text(data), "--config", &text(&file)]);
    prepare(&mut command);
    start(command, &data.with_extension("log"))
}

/// Waits until a command that starts a gateway says where it listens.
pub(crate) fn start(mut command: Command, log: &Path) -> Served {
    let log_file = File::create(log).unwrap();
    let mut child = command.stdout(Stdio::piped()).stderr(log_file).spawn().unwrap();
    let out = BufReader::new(child.stdout.take().unwrap());
    let process = Process(child);
    for line in out.lines().map_while(Result::ok) {
        let url = line.split_whitespace().find_map(|word| word.strip_prefix("ws://"));
        if let Some(addr) = url.and_then(|addr| addr.parse().ok()) {
            return Served { process, addr };
        }
    }
    panic!("the gateway did not start: {}", fs::read_to_string(log).unwrap());
}

impl Served {
    pub async fn peer(&self) -> Peer {
        let mut peer = Peer::connect(self.addr, Form::Msgpack).await;
        let hello = Hello {
            token: Some("u".to_owned()),
            ..Hello::default()
        };
        peer.send(&ClientMessage::Hello(hello)).await;
        let ServerMessage::Welcome(welcome) = peer.next().await else {
            panic!("no welcome")
        };
        peer.now = welcome.now;
        peer
    }

    /// What the space holds, as a client without anything learns it.
    pub async fn whole(&self) -> Replica {
        let mut replica = Replica::default();
        self.peer().await.follow(SPACE, &mut replica, None).await;
        replica
    }

    /// The value of a metric.
    pub fn metric(&self, name: &str) -> u64 {
        let mut stream = TcpStream::connect(self.addr).unwrap();
        write!(
            stream,
            "GET /metrics HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n",
            self.addr
        )
        .unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        value.unwrap_or_else(|| panic!("no {name} in {text}")).parse().unwrap()
    }
}

/// A client that writes, and knows what was answered.
pub struct Writing {
    pub peer: Peer,
    pub state: WriterState,
    /// Mutations answered with an ack.
    pub acked: u64,
}

impl Writing {
    pub(crate) async fn new(served: &Served) -> Self {
        let peer = served.peer().await;
        let state = WriterState::new(SPACE, 1, peer.now);
        Self { peer, state, acked: 0 }
    }

    /// The next mutation: counts, and leaves a document of its own with so many bytes.
    pub fn next(&mut self, bytes: usize) -> ClientMessage {
        let mid = self.state.mid + 1;
        let text = Value::str(&"x".repeat(bytes));
        let ops: Vec<Op> = vec![
            support::inc("count/all", "n"),
            support::op(
                &format!("each/{mid}"),
                tidegate_protocol::OpKind::Set(support::fields(&[("text", text)])),
            ),
        ];
        ClientMessage::Write(self.state.write(ops))
    }

    /// Sends a mutation, again or for the first time.
    pub async fn send(&mut self, write: &ClientMessage) -> Result<(), Reject> {
        self.peer.send(write).await;
        self.peer.answer(&mut Replica::default()).await?;
        self.acked += 1;
        Ok(())
    }

    /// Sends a mutation until it is acked; whatever else it is answered must be temporary.
    pub async fn insist(&mut self, write: &ClientMessage) {
        let begun = std::time::Instant::now();
        while let Err(reject) = self.send(write).await {
            assert_unavailable(&reject);
            assert!(begun.elapsed() < cli::PATIENCE, "still {reject:?}");
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    }

    /// Holds a state against what was answered: every ack once.
    pub fn check(&self, replica: &Replica) {
        assert_eq!(replica.int("count/all", "n"), Some(self.acked as i64));
        let each = replica.docs.keys().filter(|name| name.starts_with("each/")).count() as u64;
        assert_eq!(each, self.acked);
    }
}

pub fn assert_unavailable(reject: &Reject) {
    assert_eq!(reject.code, tidegate_protocol::Code::Unavailable, "{reject:?}");
    assert!(reject.retry_ms.is_some(), "{reject:?}");
}
