//! Gateways on one Redis as processes, and writers and subscribers that go from one to the other.

use crate::cli::{Process, start};
use crate::redis_server::Server;
use crate::support::{Judge, Peer, Replica, WriterState};
use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tidegate_history::{Counts, Installation, Tag, workload};
use tidegate_protocol::*;

/// How long anything may take before a test gives up on it.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// A gateway.
pub(crate) struct Node {
    pub addr: SocketAddr,
    process: Option<Process>,
    log: PathBuf,
    args: Vec<String>,
}

impl Node {
    pub(crate) fn start(url: &str, settings: &[&str]) -> Self {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let name = format!(
            "tidegate-cluster-{}-{}.log",
            std::process::id(),
            COUNT.fetch_add(1, Ordering::Relaxed)
        );
        let mut node = Self {
            addr: ([127, 0, 0, 1], 0).into(),
            process: None,
            log: std::env::temp_dir().join(name),
            args: vec!["--redis".to_owned(), url.to_owned()],
        };
        // What is said between nodes has to be heard soon in a test, too.
        for set in ["redis.response=2s", "redis.connect=1s"].iter().chain(settings) {
            node.args.extend(["--set".to_owned(), (*set).to_owned()]);
        }
        node.run();
        node
    }

    /// Starts it, where it was if it was started before.
    pub(crate) fn run(&mut self) {
        let listen = self.addr.to_string();
        let mut args = vec!["--listen", &listen];
        args.extend(self.args.iter().map(String::as_str));
        let (process, greeting) = start(&self.log, &args);
        let url = greeting.split_whitespace().find_map(|word| word.strip_prefix("ws://"));
        self.addr = url.expect("a URL").parse().unwrap();
        self.process = Some(process);
    }

    fn signal(&self, signal: &str) {
        let pid = self.process.as_ref().expect("it runs").0.id();
        let sent = std::process::Command::new("bash")
            .args(["-c", &format!("kill -{signal} {pid}")])
            .status();
        assert!(sent.unwrap().success());
    }

    pub(crate) fn kill(&mut self) {
        self.process = None;
    }

    /// Stops it in its tracks.
    pub(crate) fn freeze(&self) {
        self.signal("STOP");
    }

    /// Lets it go on.
    pub(crate) fn thaw(&self) {
        self.signal("CONT");
    }

    /// Whether it says that it is ready.
    pub(crate) async fn is_ready(&self) -> bool {
        self.http("/readyz")
            .await
            .is_some_and(|answer| answer.starts_with("HTTP/1.1 200"))
    }

    pub(crate) async fn ready(&self) {
        until("the node is ready", async || self.is_ready().await).await;
    }

    async fn http(&self, path: &str) -> Option<String> {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let asking = async {
            let mut stream = tokio::net::TcpStream::connect(self.addr).await.ok()?;
            let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
            stream.write_all(request.as_bytes()).await.ok()?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.ok()?;
            Some(answer)
        };
        tokio::time::timeout(Duration::from_secs(3), asking).await.ok()?
    }

    /// A number of its metrics page.
    pub(crate) async fn metric(&self, series: &str) -> u64 {
        let page = self.http("/metrics").await.expect("a page");
        let line = page
            .lines()
            .find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        line.expect(series).parse().unwrap()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.process = None;
        if std::thread::panicking() {
            let log = std::fs::read_to_string(&self.log).unwrap_or_default();
            let tail: Vec<_> = log.lines().rev().take(30).collect();
            println!(
                "{}: {}",
                self.addr,
                tail.into_iter().rev().collect::<Vec<_>>().join("\n")
            );
        }
        let _ = std::fs::remove_file(&self.log);
    }
}

/// Waits until `done`.
pub(crate) async fn until(what: &str, mut done: impl AsyncFnMut() -> bool) {
    let began = Instant::now();
    while !done().await {
        assert!(began.elapsed() < PATIENCE, "{what}: not within {PATIENCE:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// So many gateways on a Redis, all ready.
pub(crate) async fn nodes(url: &str, count: usize, settings: &[&str]) -> Vec<Node> {
    let nodes: Vec<_> = (0..count).map(|_| Node::start(url, settings)).collect();
    for node in &nodes {
        node.ready().await;
    }
    nodes
}

/// Redis as it is run where nothing may be lost.
pub(crate) fn durable() -> Server {
    Server::start(&["--appendonly", "yes", "--appendfsync", "always"])
}

/// Who writes and who watches.
#[derive(Clone, Copy)]
pub(crate) struct Plan {
    pub spaces: u64,
    pub writers: u64,
    pub subscribers: u64,
    /// Mutations of a writer in each of its spaces.
    pub each: u64,
    /// Spaces that a writer writes to.
    pub wide: u64,
    /// Between two mutations of a writer.
    pub pause: Duration,
    /// After about so long a subscriber goes to another node, but for the first of each space.
    pub hop: Duration,
}

/// Writers and subscribers at work.
pub(crate) struct Fleet {
    plan: Plan,
    judge: Judge,
    writers: tokio::task::JoinSet<()>,
    subscribers: tokio::task::JoinSet<(u64, u64, Replica)>,
    /// What each space counts to in the end.
    totals: BTreeMap<u64, u64>,
    /// Mutations that were sent on two connections at once.
    pub twice: Arc<AtomicU64>,
}

fn name(space: u64) -> String {
    format!("space:{space}")
}

impl Fleet {
    pub(crate) async fn start(nodes: &[Node], plan: Plan) -> Self {
        let addrs: Arc<[SocketAddr]> = nodes.iter().map(|node| node.addr).collect();
        let mut fleet = Self {
            plan,
            judge: Judge::new(),
            writers: tokio::task::JoinSet::new(),
            subscribers: tokio::task::JoinSet::new(),
            totals: BTreeMap::new(),
            twice: Arc::default(),
        };
        let spaces = |w: u64| (0..plan.wide).map(move |k| (w * plan.wide + k) % plan.spaces);
        for w in 0..plan.writers {
            for space in spaces(w) {
                *fleet.totals.entry(space).or_default() += plan.each;
            }
        }
        let following = Arc::new(AtomicU64::new(0));
        for s in 0..plan.subscribers {
            let space = s % plan.spaces;
            let follow = Follow {
                addrs: addrs.clone(),
                judge: fleet.judge.clone(),
                number: s,
                following: following.clone(),
                space,
                target: fleet.totals.get(&space).copied().unwrap_or(0),
                // The first of each space stays, and sees every commit.
                hop: if s < plan.spaces { PATIENCE } else { plan.hop },
            };
            fleet.subscribers.spawn(follow.run());
        }
        // So that somebody sees every commit of a space.
        until("all follow", async || {
            following.load(Ordering::Relaxed) == plan.subscribers
        })
        .await;
        for w in 0..plan.writers {
            for (k, space) in spaces(w).enumerate() {
                let number = 1_000 + w * plan.wide + k as u64;
                let write = Write_ {
                    addrs: addrs.clone(),
                    judge: fleet.judge.clone(),
                    number,
                    space,
                    plan,
                    twice: fleet.twice.clone(),
                };
                fleet.writers.spawn(write.run());
            }
        }
        fleet
    }

    /// Waits until everything is written and answered.
    pub(crate) async fn written(&mut self) {
        while let Some(done) = self.writers.join_next().await {
            done.unwrap();
        }
    }

    /// Waits until all subscribers have all, for `within` at most, and returns how long that took. The history
    /// must be without a fault.
    pub(crate) async fn converge(mut self, within: Duration) -> (Duration, Counts) {
        self.written().await;
        let began = Instant::now();
        let mut ends: BTreeMap<u64, Vec<(u64, Replica)>> = BTreeMap::new();
        let all = async {
            while let Some(done) = self.subscribers.join_next().await {
                let (number, space, replica) = done.unwrap();
                ends.entry(space).or_default().push((number, replica));
            }
        };
        let in_time = tokio::time::timeout(within, all).await;
        let left = self.subscribers.len();
        assert!(
            in_time.is_ok(),
            "{left} of {} have not arrived within {within:?}",
            self.plan.subscribers
        );
        let took = began.elapsed();
        for (space, ends) in &ends {
            let end = |(number, replica): &(u64, Replica)| {
                let installation = Installation(u32::try_from(*number).unwrap());
                (installation, Some(replica.at), replica.by_path(), 0)
            };
            self.judge.rest(&name(*space), &ends[0].1, ends.iter().map(end));
        }
        (took, self.judge.verdict())
    }
}

/// A subscriber.
struct Follow {
    addrs: Arc<[SocketAddr]>,
    judge: Judge,
    number: u64,
    space: u64,
    /// Subscribers that have caught up once.
    following: Arc<AtomicU64>,
    /// What the space counts to in the end.
    target: u64,
    hop: Duration,
}

impl Follow {
    async fn run(self) -> (u64, u64, Replica) {
        let user = format!("reader{}", self.number);
        let mut replica = Replica::default();
        let mut turn = self.number;
        let mut is_following = false;
        let is_done = |replica: &Replica| {
            let count = replica.int(workload::COUNTER, workload::COUNT).unwrap_or(0);
            count.cast_unsigned() == self.target && !replica.staging
        };
        while !is_done(&replica) {
            turn += 1;
            let at = usize::try_from(turn).unwrap() % self.addrs.len();
            let Some(mut peer) = Peer::try_welcomed(self.addrs[at], &user).await else {
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            };
            self.judge.follow(&mut peer, u32::try_from(self.number).unwrap(), &user);
            if !peer.try_sub(&name(self.space), &replica).await {
                continue;
            }
            let stay = tokio::time::sleep(self.hop / 2 + self.hop * u32::try_from(turn % 7).unwrap() / 7);
            tokio::pin!(stay);
            while !is_done(&replica) {
                let message = tokio::select! {
                    () = &mut stay => break,
                    message = peer.maybe_next() => message,
                };
                match message {
                    None | Some(ServerMessage::Goaway { .. } | ServerMessage::Error { .. }) => break,
                    Some(ServerMessage::Denied { code, .. }) => {
                        assert_eq!(code, Code::Unavailable);
                        tokio::time::sleep(Duration::from_millis(100)).await;
                        break;
                    }
                    Some(message) => {
                        replica.take(&message);
                        if !is_following && matches!(message, ServerMessage::Current { .. }) {
                            is_following = true;
                            self.following.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                }
            }
        }
        (self.number, self.space, replica)
    }
}

/// A writer in a space.
struct Write_ {
    addrs: Arc<[SocketAddr]>,
    judge: Judge,
    number: u64,
    space: u64,
    plan: Plan,
    twice: Arc<AtomicU64>,
}

impl Write_ {
    async fn connect(&self, turn: &mut u64, user: &str) -> Peer {
        loop {
            *turn += 1;
            let at = usize::try_from(*turn).unwrap() % self.addrs.len();
            if let Some(mut peer) = Peer::try_welcomed(self.addrs[at], user).await {
                self.judge.follow(&mut peer, u32::try_from(self.number).unwrap(), user);
                return peer;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    async fn run(self) {
        let user = format!("writer{}", self.number);
        let mut turn = self.number;
        let mut peer = self.connect(&mut turn, &user).await;
        let mut writer = WriterState::new(&name(self.space), self.number, peer.now);
        let mut unanswered: VecDeque<Write> = VecDeque::new();
        let mut others: Vec<Peer> = vec![];
        let mut made = 0;
        let mut next = tokio::time::Instant::now();
        while made < self.plan.each || !unanswered.is_empty() {
            let message = tokio::select! {
                () = tokio::time::sleep_until(next), if made < self.plan.each => {
                    next += self.plan.pause;
                    let ops = workload::counting(Tag(self.number << 20 | made)).unwrap();
                    made += 1;
                    let write = writer.write(ops);
                    unanswered.push_back(write.clone());
                    let write = ClientMessage::Write(write);
                    let sent = peer.try_send(&write).await;
                    // Every tenth is sent elsewhere while the first attempt is under way.
                    if made % 10 == 0 {
                        let mut other = self.connect(&mut turn, &user).await;
                        if other.try_send(&write).await {
                            self.twice.fetch_add(1, Ordering::Relaxed);
                        }
                        others.push(other);
                        if others.len() > 2 {
                            others.remove(0);
                        }
                    }
                    if sent {
                        continue;
                    }
                    None
                }
                message = tokio::time::timeout(Duration::from_secs(8), peer.maybe_next()) => message.unwrap_or(None),
            };
            let again = match message {
                Some(ServerMessage::Ack(ack)) => {
                    unanswered.retain(|write| write.head.mid != ack.mid);
                    continue;
                }
                Some(ServerMessage::Reject(reject)) => match reject.code {
                    Code::Unavailable | Code::RateLimited | Code::OutOfOrder => {
                        // What was sent behind it is refused as well: all of it again, in a moment.
                        tokio::time::sleep(Duration::from_millis(20)).await;
                        true
                    }
                    code => panic!("{code:?}: {}", reject.message),
                },
                Some(ServerMessage::Pong { .. }) => continue,
                None | Some(_) => true,
            };
            if again {
                peer = self.connect(&mut turn, &user).await;
                for write in &unanswered {
                    if !peer.try_send(&ClientMessage::Write(write.clone())).await {
                        break;
                    }
                }
            }
        }
    }
}
