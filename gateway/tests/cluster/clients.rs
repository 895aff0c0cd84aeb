//! A writer that knows what it was told, and a reader that stops and goes on.

use crate::fleet::PATIENCE;
use crate::support::{Judge, Peer, Replica, WriterState};
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Duration;
use tidegate_history::{Event, Fate, Installation, Tag, workload};
use tidegate_protocol::*;

/// How long an answer may take before a client goes elsewhere.
const SILENCE: Duration = Duration::from_secs(8);

/// The space of a number.
pub(crate) fn name(space: u64) -> String {
    format!("space:{space}")
}

fn installation(number: u64) -> Installation {
    Installation(u32::try_from(number).unwrap())
}

/// A connection on which `hello` was said, as soon as there is a gateway that answers.
pub(crate) async fn connect(addr: SocketAddr, judge: &Judge, number: u64, user: &str) -> Option<Peer> {
    let mut peer = Peer::try_welcomed(addr, user).await?;
    judge.follow(&mut peer, u32::try_from(number).unwrap(), user);
    Some(peer)
}

/// As `connect`, at one address until it answers.
async fn connected(addr: SocketAddr, judge: &Judge, number: u64, user: &str) -> Peer {
    let began = std::time::Instant::now();
    loop {
        if let Some(peer) = connect(addr, judge, number, user).await {
            return peer;
        }
        assert!(began.elapsed() < PATIENCE, "{addr} does not answer");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// A space's writer, as a client library is one: each mutation is settled once.
pub(crate) struct Pen {
    judge: Judge,
    number: u64,
    pub user: String,
    pub space: SpaceId,
    writer: Option<WriterState>,
    /// The last mid that was acknowledged.
    acked: u64,
    unanswered: VecDeque<(Tag, Write)>,
    made: u64,
    /// Acknowledged mutations that it has reported lost.
    pub lost: u64,
    /// Mutations of which nobody can say whether they were applied.
    pub uncertain: u64,
    /// Temporary refusals.
    pub refused: u64,
}

impl Pen {
    pub(crate) fn new(judge: &Judge, number: u64, space: u64) -> Self {
        Self {
            judge: judge.clone(),
            number,
            user: format!("writer{number}"),
            space: name(space).parse().unwrap(),
            writer: None,
            acked: 0,
            unanswered: VecDeque::new(),
            made: 0,
            lost: 0,
            uncertain: 0,
            refused: 0,
        }
    }

    /// Mutations made.
    pub(crate) fn made(&self) -> u64 {
        self.made
    }

    pub(crate) fn is_settled(&self) -> bool {
        self.unanswered.is_empty()
    }

    pub(crate) async fn connect(&self, addr: SocketAddr) -> Option<Peer> {
        connect(addr, &self.judge, self.number, &self.user).await
    }

    /// The next mutation, to be sent. It counts one up, and does `more`.
    pub(crate) fn issue(&mut self, peer: &Peer, more: Vec<Op>) -> ClientMessage {
        let tag = Tag(self.number << 20 | self.made);
        self.made += 1;
        self.judge.observe(Event::Issued {
            installation: installation(self.number),
            space: &self.space,
            tag,
            counts: true,
        });
        let mut ops = workload::counting(tag).unwrap();
        ops.extend(more);
        self.push(peer.now, tag, ops)
    }

    fn push(&mut self, now: u64, tag: Tag, ops: Vec<Op>) -> ClientMessage {
        let (number, space) = (self.number, self.space.as_str());
        let writer = self.writer.get_or_insert_with(|| WriterState::new(space, number, now));
        let write = writer.write(ops);
        self.unanswered.push_back((tag, write.clone()));
        ClientMessage::Write(write)
    }

    /// Sends what has not been answered. `false`: the connection has ended.
    pub(crate) async fn resend(&self, peer: &mut Peer) -> bool {
        for (_, write) in &self.unanswered {
            if !peer.try_send(&ClientMessage::Write(write.clone())).await {
                return false;
            }
        }
        true
    }

    fn settle(&self, tag: Tag, fate: Fate) {
        self.judge.observe(Event::Settled {
            installation: installation(self.number),
            space: &self.space,
            tag,
            fate,
        });
    }

    /// Takes in a message, or the end of the connection. `false`: what has not been answered is to be sent on another.
    pub(crate) fn take(&mut self, message: Option<&ServerMessage>, now: u64) -> bool {
        match message {
            Some(ServerMessage::Ack(ack)) => {
                let index = self.unanswered.iter().position(|(_, write)| write.head.mid == ack.mid);
                if let Some((tag, _)) = index.and_then(|index| self.unanswered.remove(index)) {
                    self.settle(tag, Fate::Acked);
                }
                self.acked = self.acked.max(ack.mid.get());
                true
            }
            Some(ServerMessage::Reject(reject)) => {
                match reject.code {
                    Code::Unavailable | Code::RateLimited => self.refused += 1,
                    Code::OutOfOrder => {
                        if let Some(from) = reject.expected.filter(|expected| expected.get() <= self.acked) {
                            self.report(from);
                            // In a history that ends before `from`, none of what came behind was applied.
                            for (tag, write) in std::mem::take(&mut self.unanswered) {
                                self.push(now, tag, write.ops);
                            }
                        }
                    }
                    Code::ClientUnknown => {
                        self.report(Mid::ZERO.next());
                        for (tag, _) in std::mem::take(&mut self.unanswered) {
                            self.settle(tag, Fate::Uncertain);
                            self.uncertain += 1;
                        }
                    }
                    code => panic!("{code:?}: {}", reject.message),
                }
                false
            }
            Some(ServerMessage::Pong { .. }) => true,
            None | Some(_) => false,
        }
    }

    /// Acknowledged mutations are lost. It goes on as another client.
    fn report(&mut self, from: Mid) {
        let writer = self.writer.take().expect("it has written");
        if let Some(through) = Mid::new(self.acked).filter(|through| *through >= from) {
            self.lost += through.get() + 1 - from.get();
            self.judge.observe(Event::Lost {
                installation: installation(self.number),
                space: &self.space,
                client: writer.client,
                from,
                through,
            });
        }
        self.acked = 0;
        let space = self.space.as_str();
        // Its number is in the lower bits still.
        let next = ClientId(writer.client.0 + (1 << 32));
        self.writer = Some(WriterState {
            client: next,
            ..WriterState::new(space, next.0, writer.first)
        });
    }

    /// Writes so many, each after the answer to the one before, and until it is answered.
    pub(crate) async fn write(&mut self, addr: SocketAddr, count: u64) {
        for _ in 0..count {
            self.write_with(addr, vec![]).await;
        }
    }

    /// As `write`, one that does `more`.
    pub(crate) async fn write_with(&mut self, addr: SocketAddr, more: Vec<Op>) {
        let mut peer = connected(addr, &self.judge, self.number, &self.user).await;
        let message = self.issue(&peer, more);
        let mut sent = peer.try_send(&message).await;
        let began = std::time::Instant::now();
        while !self.is_settled() {
            let message = match sent {
                true => tokio::time::timeout(SILENCE, peer.maybe_next()).await.unwrap_or(None),
                false => None,
            };
            if !self.take(message.as_ref(), peer.now) {
                assert!(began.elapsed() < PATIENCE, "{}: no answer; {message:?}", self.space);
                tokio::time::sleep(Duration::from_millis(20)).await;
                peer = connected(addr, &self.judge, self.number, &self.user).await;
                sent = self.resend(&mut peer).await;
            }
        }
    }
}

/// A reader of a space.
pub(crate) struct Reader {
    judge: Judge,
    pub number: u64,
    pub space: u64,
    pub replica: Replica,
    /// How often it was told to drop what it held.
    pub resets: u64,
    peer: Option<Peer>,
}

impl Reader {
    pub(crate) fn new(judge: &Judge, number: u64, space: u64) -> Self {
        Self {
            judge: judge.clone(),
            number,
            space,
            replica: Replica::default(),
            resets: 0,
            peer: None,
        }
    }

    async fn subscribe(&mut self, addr: SocketAddr) {
        let mut peer = connected(addr, &self.judge, self.number, &format!("reader{}", self.number)).await;
        assert!(peer.try_sub(&name(self.space), &self.replica).await);
        self.peer = Some(peer);
    }

    /// The next message of its subscription.
    async fn next(&mut self) -> ServerMessage {
        let message = self.peer.as_mut().expect("subscribed").next().await;
        self.resets += u64::from(is_reset(&self.replica, &message));
        self.replica.take(&message);
        message
    }

    /// Subscribes, and stays.
    pub(crate) async fn follow(&mut self, addr: SocketAddr) {
        self.subscribe(addr).await;
        let current = async { while !matches!(self.next().await, ServerMessage::Current { .. }) {} };
        let in_time = tokio::time::timeout(PATIENCE, current).await;
        assert!(in_time.is_ok(), "reader {} is not brought to the head", self.number);
    }

    /// Subscribes until it has caught up.
    pub(crate) async fn visit(&mut self, addr: SocketAddr) {
        self.follow(addr).await;
        self.leave();
    }

    /// Subscribes until it has a page of a catch-up that goes on.
    pub(crate) async fn begin(&mut self, addr: SocketAddr) {
        self.subscribe(addr).await;
        while self.replica.cursor.is_none() {
            let message = self.next().await;
            assert!(!matches!(message, ServerMessage::Current { .. }), "one page was enough");
        }
        self.leave();
    }

    pub(crate) fn leave(&mut self) {
        self.peer = None;
    }

    /// Takes in what comes until it stands there.
    pub(crate) async fn reach(&mut self, at: Position) {
        while self.replica.at != at || self.replica.staging {
            let stands = self.replica.at;
            let next = tokio::time::timeout(PATIENCE, self.next()).await;
            assert!(next.is_ok(), "reader {} stands at {stands}, not at {at}", self.number);
        }
    }

    /// Takes in what comes until it stands at a seq or beyond.
    pub(crate) async fn reach_seq(&mut self, seq: u64) {
        let reach = async {
            while self.replica.at.seq.get() < seq || self.replica.staging {
                self.next().await;
            }
        };
        let in_time = tokio::time::timeout(PATIENCE, reach).await;
        assert!(in_time.is_ok(), "reader {} does not come to {seq}", self.number);
    }

    /// It holds what a new reader is given.
    pub(crate) fn assert_is(&self, truth: &Replica) {
        let who = format!("reader {} of {}", self.number, name(self.space));
        assert_eq!(self.replica.at, truth.at, "{who}");
        assert_eq!(self.replica.docs, truth.docs, "{who}");
    }
}

/// Whether a message tells a replica to drop what it holds, and it was not being told so already.
pub(crate) fn is_reset(replica: &Replica, message: &ServerMessage) -> bool {
    let is_under_way = replica.staging && replica.mode() == Mode::Reset;
    let is_reset = |begin: &Begin| begin.mode == Mode::Reset && replica.at != Position::START && !is_under_way;
    matches!(message, ServerMessage::Begin(begin) if is_reset(begin))
}

/// What a new reader is given, of whom nobody judges what it sees.
pub(crate) async fn truth(addr: SocketAddr, space: u64) -> Replica {
    let mut reader = Reader::new(&Judge::new(), 0, space);
    reader.visit(addr).await;
    reader.replica
}

/// Tells the judge that all is still.
pub(crate) fn rest(judge: &Judge, space: u64, truth: &Replica, readers: impl IntoIterator<Item = (u64, Replica)>) {
    let end = |(number, replica): (u64, Replica)| (installation(number), Some(replica.at), replica.by_path(), 0);
    judge.rest(&name(space), truth, readers.into_iter().map(end));
}
