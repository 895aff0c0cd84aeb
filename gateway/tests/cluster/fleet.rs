//! Gateways on one Redis as processes, and writers and subscribers that go from one to the other.

use crate::cli::{Process, start};
use crate::clients::{Pen, connect, is_reset, name, rest, truth};
use crate::redis_server::Server;
use crate::support::{Judge, Peer, Replica};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tidegate_history::{Counts, workload};
use tidegate_protocol::*;
use tokio::sync::watch;
use tokio::task::JoinSet;

/// How long anything may take before a test gives up on it.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// A gateway.
pub(crate) struct Node {
    pub addr: SocketAddr,
    process: Option<Process>,
    log: PathBuf,
    args: Vec<String>,
}

impl Node {
    pub(crate) fn start(url: &str, settings: &[&str]) -> Self {
        // What is said between nodes has to be heard soon in a test, too.
        Self::as_it_is(url, &[&["redis.response=2s", "redis.connect=1s"], settings].concat())
    }

    /// With no other settings than these.
    pub(crate) fn as_it_is(url: &str, settings: &[&str]) -> Self {
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
        for set in settings {
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
        crate::redis_server::signal(self.process.as_ref().expect("it runs").0.id(), signal);
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

    pub(crate) async fn not_ready(&self) {
        until("the node says that it is not ready", async || !self.is_ready().await).await;
    }

    pub(crate) async fn ready(&self) {
        until("the node is ready", async || self.is_ready().await).await;
    }

    /// What it has logged.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
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

    /// A number of its metrics page; what has never been counted is not there.
    pub(crate) async fn metric(&self, series: &str) -> Option<u64> {
        let page = self.http("/metrics").await.expect("a page");
        let line = page
            .lines()
            .find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        line.map(|number| number.parse().expect(series))
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.process = None;
        if std::thread::panicking() {
            let log = self.log();
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
    /// What was acknowledged may be lost: nothing is sent twice at once, and writers report.
    pub may_lose: bool,
}

impl Plan {
    /// Mutations that are made.
    pub(crate) fn all(&self) -> u64 {
        self.writers * self.wide * self.each
    }
}

/// What all of a fleet know.
struct Shared {
    plan: Plan,
    addrs: Vec<SocketAddr>,
    judge: Judge,
    /// Mutations that were sent on two connections at once.
    twice: AtomicU64,
    acked: AtomicU64,
    lost: AtomicU64,
    uncertain: AtomicU64,
    refused: AtomicU64,
    /// Subscribers that have caught up once.
    following: AtomicU64,
    /// The seq at which each subscriber stands.
    seen: Vec<AtomicU64>,
    /// Where each space ends, once that is known.
    goals: watch::Sender<BTreeMap<u64, Position>>,
}

/// Writers and subscribers at work.
pub(crate) struct Fleet {
    shared: Arc<Shared>,
    writers: JoinSet<()>,
    subscribers: JoinSet<End>,
}

/// A subscriber at the end.
pub(crate) struct End {
    pub number: u64,
    pub space: u64,
    pub replica: Replica,
    /// How often it was told to drop what it held.
    pub resets: u64,
}

/// How it ended.
pub(crate) struct Ended {
    /// From the last answer to a writer until all subscribers had all.
    pub took: Duration,
    pub counts: Counts,
    /// What a new subscriber is given, by space.
    pub truths: BTreeMap<u64, Replica>,
    pub ends: Vec<End>,
    /// What writers have reported lost, what they know nothing of, and temporary refusals.
    pub lost: u64,
    pub uncertain: u64,
    pub refused: u64,
}

impl Ended {
    /// How many subscribers were told to drop what they held.
    pub(crate) fn reset(&self) -> usize {
        self.ends.iter().filter(|end| end.resets > 0).count()
    }
}

impl Fleet {
    pub(crate) async fn start(nodes: &[Node], plan: Plan) -> Self {
        let shared = Arc::new(Shared {
            plan,
            addrs: nodes.iter().map(|node| node.addr).collect(),
            judge: Judge::new(),
            twice: AtomicU64::new(0),
            acked: AtomicU64::new(0),
            lost: AtomicU64::new(0),
            uncertain: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            following: AtomicU64::new(0),
            seen: (0..plan.subscribers).map(|_| AtomicU64::new(0)).collect(),
            goals: watch::Sender::default(),
        });
        let mut fleet = Self {
            shared: shared.clone(),
            writers: JoinSet::new(),
            subscribers: JoinSet::new(),
        };
        for number in 0..plan.subscribers {
            let follow = Follow {
                shared: shared.clone(),
                number,
                space: number % plan.spaces,
                // The first of each space stays, and sees every commit.
                hop: if number < plan.spaces { 10 * PATIENCE } else { plan.hop },
            };
            fleet.subscribers.spawn(follow.run());
        }
        // So that somebody sees every commit of a space.
        until("all follow", async || {
            shared.following.load(Ordering::Relaxed) == plan.subscribers
        })
        .await;
        for w in 0..plan.writers * plan.wide {
            let number = 1_000 + w;
            let pen = Pen::new(&shared.judge, number, w % plan.spaces);
            fleet.writers.spawn(write(shared.clone(), pen, number));
        }
        fleet
    }

    /// Mutations that were sent on two connections at once.
    pub(crate) fn twice(&self) -> u64 {
        self.shared.twice.load(Ordering::Relaxed)
    }

    /// Mutations that were acknowledged.
    pub(crate) fn acked(&self) -> u64 {
        self.shared.acked.load(Ordering::Relaxed)
    }

    /// Waits until so many are acknowledged.
    pub(crate) async fn reaches(&self, acked: u64) {
        until("mutations are acknowledged", async || self.acked() >= acked).await;
    }

    /// Waits until every subscriber of the first `spaces` stands beyond a seq.
    pub(crate) async fn all_beyond(&self, spaces: u64, seq: u64) {
        let seen = self.shared.seen.iter().enumerate();
        let mut theirs = seen.filter(|(number, _)| *number as u64 % self.shared.plan.spaces < spaces);
        let theirs: Vec<_> = theirs.by_ref().map(|(_, seen)| seen).collect();
        until("all have seen more", async || {
            theirs.iter().all(|seen| seen.load(Ordering::Relaxed) > seq)
        })
        .await;
    }

    /// Waits until everything is written and answered.
    pub(crate) async fn written(&mut self) {
        while let Some(done) = self.writers.join_next().await {
            done.unwrap();
        }
    }

    /// As `end`, where nothing may be lost.
    pub(crate) async fn converge(self, within: Duration) -> (Duration, Counts) {
        let ended = self.end(within).await;
        (ended.took, ended.counts)
    }

    /// Waits until everything is written, and until all subscribers have all, for `within` at most. They must hold what
    /// new ones are given, and the history must be without a fault.
    pub(crate) async fn end(mut self, within: Duration) -> Ended {
        self.written().await;
        let began = Instant::now();
        let plan = self.shared.plan;
        let mut truths = BTreeMap::new();
        for space in 0..plan.spaces {
            truths.insert(space, truth(self.shared.addrs[0], space).await);
        }
        let goals = truths.iter().map(|(space, truth)| (*space, truth.at));
        self.shared.goals.send_replace(goals.collect());
        let mut ends = Vec::new();
        let all = async {
            while let Some(done) = self.subscribers.join_next().await {
                ends.push(done.unwrap());
            }
        };
        let in_time = tokio::time::timeout(within.saturating_sub(began.elapsed()), all).await;
        let left = self.subscribers.len();
        assert!(
            in_time.is_ok(),
            "{left} of {} have not arrived within {within:?}",
            plan.subscribers
        );
        let took = began.elapsed();
        for end in &ends {
            assert_eq!(end.replica.docs, truths[&end.space].docs, "subscriber {}", end.number);
        }
        for (space, truth) in &truths {
            let theirs = ends.iter().filter(|end| end.space == *space);
            let theirs = theirs.map(|end| (end.number, end.replica.clone()));
            rest(&self.shared.judge, *space, truth, theirs);
        }
        let shared = &self.shared;
        let load = |count: &AtomicU64| count.load(Ordering::Relaxed);
        if !plan.may_lose {
            let counted = |truth: &Replica| truth.int(workload::COUNTER, workload::COUNT).unwrap_or(0);
            let all: i64 = truths.values().map(counted).sum();
            assert_eq!(all.cast_unsigned(), plan.all(), "each is applied once");
            assert!(ends.iter().all(|end| end.resets == 0), "nothing was lost");
            assert_eq!((load(&shared.lost), load(&shared.uncertain)), (0, 0));
        }
        Ended {
            took,
            counts: shared.judge.clone().verdict(),
            truths,
            ends,
            lost: load(&shared.lost),
            uncertain: load(&shared.uncertain),
            refused: load(&shared.refused),
        }
    }
}

/// A subscriber.
struct Follow {
    shared: Arc<Shared>,
    number: u64,
    space: u64,
    hop: Duration,
}

impl Follow {
    async fn run(self) -> End {
        let user = format!("reader{}", self.number);
        let seen = &self.shared.seen[usize::try_from(self.number).unwrap()];
        let mut goals = self.shared.goals.subscribe();
        let (mut replica, mut resets) = (Replica::default(), 0);
        let mut turn = self.number;
        let mut is_following = false;
        let is_done = |replica: &Replica| {
            let goal = self.shared.goals.borrow().get(&self.space).copied();
            goal == Some(replica.at) && !replica.staging
        };
        while !is_done(&replica) {
            turn += 1;
            let at = usize::try_from(turn).unwrap() % self.shared.addrs.len();
            let to = self.shared.addrs[at];
            let Some(mut peer) = connect(to, &self.shared.judge, self.number, &user).await else {
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            };
            if !peer.try_sub(&name(self.space), &replica).await {
                continue;
            }
            let stay = tokio::time::sleep(self.hop / 2 + self.hop * u32::try_from(turn % 7).unwrap() / 7);
            tokio::pin!(stay);
            let mut is_pinged = false;
            while !is_done(&replica) {
                let message = tokio::select! {
                    () = &mut stay => break,
                    _ = goals.changed() => continue,
                    message = tokio::time::timeout(SILENCE, peer.maybe_next()) => message,
                };
                match message {
                    Err(_) => {
                        // As clients do: whoever does not answer is left.
                        let ping = ClientMessage::Ping { at: 0 };
                        if std::mem::replace(&mut is_pinged, true) || !peer.try_send(&ping).await {
                            break;
                        }
                        continue;
                    }
                    Ok(None | Some(ServerMessage::Goaway { .. } | ServerMessage::Error { .. })) => break,
                    Ok(Some(ServerMessage::Denied { code, .. })) => {
                        assert_eq!(code, Code::Unavailable);
                        tokio::time::sleep(Duration::from_millis(100)).await;
                        break;
                    }
                    Ok(Some(message)) => {
                        resets += u64::from(is_reset(&replica, &message));
                        replica.take(&message);
                        seen.store(replica.at.seq.get(), Ordering::Relaxed);
                        if !is_following && matches!(message, ServerMessage::Current { .. }) {
                            is_following = true;
                            self.shared.following.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                }
                is_pinged = false;
            }
        }
        End {
            number: self.number,
            space: self.space,
            replica,
            resets,
        }
    }
}

/// Without a word for so long, a client asks whether anybody is there, or goes elsewhere.
const SILENCE: Duration = Duration::from_secs(4);

/// A writer in a space.
async fn write(shared: Arc<Shared>, mut pen: Pen, number: u64) {
    let plan = shared.plan;
    let mut turn = number;
    let connect = async |pen: &Pen, turn: &mut u64| loop {
        *turn += 1;
        let at = usize::try_from(*turn).unwrap() % shared.addrs.len();
        if let Some(peer) = pen.connect(shared.addrs[at]).await {
            return peer;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    let mut peer = connect(&pen, &mut turn).await;
    let mut others: Vec<Peer> = vec![];
    let mut next = tokio::time::Instant::now();
    while pen.made() < plan.each || !pen.is_settled() {
        let message = tokio::select! {
            () = tokio::time::sleep_until(next), if pen.made() < plan.each => {
                next += plan.pause;
                let write = pen.issue(&peer, vec![]);
                let sent = peer.try_send(&write).await;
                // Every tenth is sent elsewhere while the first attempt is under way.
                if !plan.may_lose && pen.made().is_multiple_of(10) {
                    let mut other = connect(&pen, &mut turn).await;
                    if other.try_send(&write).await {
                        shared.twice.fetch_add(1, Ordering::Relaxed);
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
            message = tokio::time::timeout(2 * SILENCE, peer.maybe_next()) => message.unwrap_or(None),
        };
        if matches!(message, Some(ServerMessage::Ack(_))) {
            shared.acked.fetch_add(1, Ordering::Relaxed);
        }
        if !pen.take(message.as_ref(), peer.now) {
            // What was sent behind a refused one is refused as well: all of it again, in a moment.
            tokio::time::sleep(Duration::from_millis(20)).await;
            peer = connect(&pen, &mut turn).await;
            pen.resend(&mut peer).await;
            next = next.max(tokio::time::Instant::now());
        }
    }
    assert!(
        plan.may_lose || pen.lost + pen.uncertain == 0,
        "{} writes what is lost",
        pen.user
    );
    shared.lost.fetch_add(pen.lost, Ordering::Relaxed);
    shared.uncertain.fetch_add(pen.uncertain, Ordering::Relaxed);
    shared.refused.fetch_add(pen.refused, Ordering::Relaxed);
}
