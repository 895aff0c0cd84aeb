//! A toy gateway with its clients, that tells what happens as a list of events, which a test may then spoil.
//! It knows every state by construction, and applies nothing.

#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    missing_docs,
    dead_code,
    unreachable_pub
)] // a test may panic

mod events;
pub mod generate;
mod mutations;

pub use events::*;
use mutations::*;
use std::collections::{BTreeSet, HashMap, VecDeque};
use tidegate_history::{Docs, Fate, workload};
use tidegate_protocol::*;

#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Kind {
    Count,
    Pair(i64),
    Set(u8, i64),
    /// Replaces a map by another.
    Map(u8, i64),
    Delete(u8),
    /// Refused for good.
    Bad,
}

#[derive(Clone, Default)]
struct State {
    docs: Docs,
    mids: HashMap<Writer, Mid>,
}

#[derive(Clone)]
struct Pending {
    tag: u64,
    kind: Kind,
    write: Option<Write>,
    sent: bool,
    acked: bool,
    /// Where it was accepted, and whether a `last_mid` covers it.
    place: Option<Position>,
    covered: bool,
}

pub struct Peer {
    number: u32,
    pub filter: Option<Vec<Collection>>,
    pub connection: Option<u64>,
    pub client: ClientId,
    mid: u64,
    key: Option<MutationKey>,
    acked: u64,
    pub held: Option<Position>,
    /// The cursor of the last staged page, and the documents of all.
    staged: Option<(Vec<u8>, BTreeSet<DocPath>)>,
    /// Whether the catch-up that came last is a reset.
    resets: bool,
    queue: Vec<Pending>,
    to_gateway: VecDeque<Write>,
    pub to_client: VecDeque<ServerMessage>,
    /// Up to where the gateway has said everything, once it follows.
    live: Option<Position>,
}

impl Peer {
    fn view(&self) -> ViewId {
        ViewId(self.filter.as_ref().map_or(1, |list| 10 + list.len() as u64))
    }

    fn covers(&self, doc: &DocPath) -> bool {
        let list = self.filter.as_ref();
        list.is_none_or(|list| list.iter().any(|name| name.as_str() == doc.collection()))
    }

    fn seen(&self, docs: &Docs) -> Docs {
        let covered = docs.iter().filter(|(path, _)| self.covers(path));
        covered.map(|(path, leaves)| (path.clone(), leaves.clone())).collect()
    }

    fn writer(&self) -> Writer {
        Writer::of(&user(self.number), self.client)
    }
}

pub struct World {
    pub events: Vec<E>,
    pub peers: Vec<Peer>,
    states: HashMap<(Epoch, u64), State>,
    log: HashMap<(Epoch, u64), Commit>,
    lineage: Vec<(Epoch, u64)>,
    /// From where each epoch goes on, also those that are of no history any more.
    parents: HashMap<Epoch, Position>,
    head: u64,
    mint: bool,
    epochs: u64,
    pub connections: u64,
    tags: u64,
    clients: u64,
    time: u64,
}

pub fn path(text: &str) -> FieldPath {
    FieldPath::parse(text).unwrap()
}

pub fn doc(text: &str) -> DocPath {
    DocPath::parse(text).unwrap()
}

pub fn seq(n: u64) -> Seq {
    Seq::new(n).unwrap()
}

pub fn mid(n: u64) -> Mid {
    Mid::new(n).unwrap()
}

impl World {
    /// Installations with these filters, connected and live in an empty space.
    pub fn new(filters: &[Option<&[&str]>]) -> Self {
        let peer = |(number, filter): (usize, &Option<&[&str]>)| Peer {
            number: number as u32,
            filter: filter.map(|list| list.iter().map(|name| Collection::parse(name).unwrap()).collect()),
            connection: None,
            client: ClientId(number as u64),
            mid: 0,
            key: None,
            acked: 0,
            held: None,
            staged: None,
            resets: false,
            queue: Vec::new(),
            to_gateway: VecDeque::new(),
            to_client: VecDeque::new(),
            live: None,
        };
        let mut world = Self {
            events: Vec::new(),
            peers: filters.iter().enumerate().map(peer).collect(),
            states: HashMap::from([((Epoch(0), 0), State::default())]),
            log: HashMap::new(),
            lineage: vec![(Epoch(0), 0)],
            parents: HashMap::new(),
            head: 0,
            mint: true,
            epochs: 0,
            connections: 0,
            tags: 0,
            clients: 100,
            time: 0,
        };
        for peer in 0..filters.len() {
            world.connect(peer);
            world.deliver_all(peer);
        }
        world
    }

    fn epoch(&self) -> Epoch {
        self.lineage.last().unwrap().0
    }

    pub fn head(&self) -> Position {
        Position::new(self.epoch(), seq(self.head))
    }

    fn state(&self) -> &State {
        &self.states[&(self.epoch(), self.head)]
    }

    pub fn docs(&self) -> &Docs {
        &self.state().docs
    }

    fn docs_at(&self, position: Position) -> &Docs {
        &self.states[&(position.epoch, position.seq.get())].docs
    }

    fn end_of(&self, epoch: Epoch) -> Option<u64> {
        let at = self.lineage.iter().position(|(name, _)| *name == epoch)?;
        Some(self.lineage.get(at + 1).map_or(self.head, |next| next.1))
    }

    // The gateway.

    /// The store's next commit is of a new epoch.
    pub fn restart_store(&mut self) {
        self.mint = true;
    }

    /// The store fails over to a copy that lags.
    pub fn fall_back(&mut self, to: u64) {
        (0..self.peers.len()).for_each(|peer| self.cut(peer));
        self.lineage.retain(|(epoch, start)| *start <= to || *epoch == Epoch(0));
        if self.lineage.len() > 1 && self.lineage.last().unwrap().1 == to {
            self.lineage.pop();
        }
        self.head = to;
        self.mint = true;
        let head = self.head();
        self.events.push(E::FellBack(head));
    }

    fn new_epoch(&mut self) {
        let after = self.head();
        self.epochs += 1;
        let epoch = Epoch(self.epochs << 48 | 0xe);
        let state = self.state().clone();
        self.lineage.push((epoch, self.head));
        self.states.insert((epoch, self.head), state);
        self.mint = false;
        self.parents.insert(epoch, after);
        self.events.push(E::Epoch(epoch, after));
        let position = self.head();
        for peer in &mut self.peers {
            if peer.live.is_some() {
                if peer.live.unwrap().seq < position.seq {
                    let seq = position.seq;
                    peer.to_client.push_back(ServerMessage::Progress { n: 7, seq });
                }
                peer.to_client.push_back(ServerMessage::Epoch { n: 7, position });
                peer.live = Some(position);
            }
        }
    }

    /// The gateway takes the next write of a connection.
    pub fn serve(&mut self, peer: usize) {
        let Some(write) = self.peers[peer].to_gateway.pop_front() else {
            return;
        };
        let writer = self.peers[peer].writer();
        let last = self.state().mids.get(&writer).map_or(0, |mid| mid.get());
        let space = space();
        if write.head.mid.get() <= last {
            // Answered before: from the log, or it was refused.
            let found = self.find(writer, write.head.mid);
            let answer = match found {
                Some(position) => ack(space, write.head.mid, position),
                None => reject(space, write.head.mid, Code::Conflict, None),
            };
            self.peers[peer].to_client.push_back(answer);
            return;
        }
        if write.head.mid.get() > last + 1 {
            let expected = Some(mid(last + 1));
            let answer = reject(space, write.head.mid, Code::OutOfOrder, expected);
            self.peers[peer].to_client.push_back(answer);
            return;
        }
        let bad = write.ops.is_empty();
        if bad {
            let key = (self.epoch(), self.head);
            self.states.get_mut(&key).unwrap().mids.insert(writer, write.head.mid);
            let answer = reject(space, write.head.mid, Code::Conflict, None);
            self.peers[peer].to_client.push_back(answer);
            return;
        }
        if self.mint {
            self.new_epoch();
        }
        let kind = kind_of(&write);
        let mut state = self.state().clone();
        state.mids.insert(writer, write.head.mid);
        let changes = changes(&mut state.docs, kind);
        self.head += 1;
        self.time += 3;
        let commit = Commit {
            seq: seq(self.head),
            at: self.time,
            writer,
            mid: write.head.mid,
            docs: changes,
        };
        let key = (self.epoch(), self.head);
        self.states.insert(key, state);
        self.log.insert(key, commit.clone());
        self.events.push(E::Commit(self.epoch(), commit.clone()));
        let head = self.head();
        for to in 0..self.peers.len() {
            let peer = &mut self.peers[to];
            if peer.live.is_some()
                && let Some(change) = visible(peer, &commit)
            {
                peer.to_client.push_back(change);
                peer.live = Some(head);
            }
        }
        let peer = &mut self.peers[peer];
        if peer.live.is_some_and(|at| at.seq < head.seq) {
            peer.to_client
                .push_back(ServerMessage::Progress { n: 7, seq: head.seq });
            peer.live = Some(head);
        }
        peer.to_client.push_back(ack(space, write.head.mid, head));
    }

    fn find(&self, writer: Writer, mid: Mid) -> Option<Position> {
        let mut upto = self.head;
        for (epoch, start) in self.lineage.iter().rev() {
            let found = (*start + 1..=upto).find(|n| {
                let commit = self.log.get(&(*epoch, *n));
                commit.is_some_and(|commit| (commit.writer, commit.mid) == (writer, mid))
            });
            if let Some(n) = found {
                return Some(Position::new(*epoch, seq(n)));
            }
            upto = *start;
        }
        None
    }

    /// Answers a `sub`.
    fn catch_up(&mut self, peer: usize, id: u64, from: Option<ResumeFrom>, by_log: bool) {
        let head = self.head();
        let of = &self.peers[peer];
        let holds = |position: Position| {
            position.seq == Seq::ZERO || self.end_of(position.epoch).is_some_and(|end| position.seq.get() <= end)
        };
        let from = from.filter(|from| from.view == of.view() && holds(from.position));
        let cursor = from.as_ref().and_then(|from| from.cursor.clone());
        let mode = match &from {
            None => Mode::Reset,
            Some(from) if from.position == Position::START && cursor.is_some() => Mode::Reset,
            Some(_) if by_log && cursor.is_none() => Mode::Log,
            Some(_) => Mode::Delta,
        };
        let begin = Begin {
            id,
            n: 7,
            mode,
            view: of.view(),
            epoch: head.epoch,
            resumed: cursor.is_some(),
        };
        let mut out = vec![ServerMessage::Begin(begin)];
        let at = from.as_ref().map_or(Position::START, |from| from.position);
        if mode == Mode::Log {
            let mut at = at;
            let mut told = at.seq;
            loop {
                let index = self.lineage.iter().position(|(name, _)| *name == at.epoch).unwrap_or(0);
                let next = self.lineage.get(index + 1).filter(|next| next.1 == at.seq.get());
                if let Some((epoch, _)) = next {
                    if told < at.seq {
                        out.push(ServerMessage::Progress { n: 7, seq: at.seq });
                        told = at.seq;
                    }
                    at.epoch = *epoch;
                    out.push(ServerMessage::Epoch { n: 7, position: at });
                } else if at.seq.get() < self.head {
                    at.seq = at.seq.next();
                    if let Some(change) = visible(of, &self.log[&(at.epoch, at.seq.get())]) {
                        out.push(change);
                        told = at.seq;
                    }
                } else {
                    break;
                }
            }
        } else {
            let empty = Docs::new();
            let old = if from.is_some() { self.docs_at(at) } else { &empty };
            let (old, new) = (of.seen(old), of.seen(self.docs()));
            // A resumed scan brings again what earlier pages brought: nobody knows what has changed since.
            let empty = BTreeSet::new();
            let staged = of
                .staged
                .as_ref()
                .filter(|_| cursor.is_some())
                .map_or(&empty, |staged| &staged.1);
            let paths: BTreeSet<&DocPath> = old.keys().chain(new.keys()).chain(staged).collect();
            let mut pages = Vec::new();
            for doc in paths {
                let kind = match (old.get(doc), new.get(doc)) {
                    (Some(old), Some(new)) if old == new && cursor.is_none() => continue,
                    (_, None) if mode == Mode::Reset && !staged.contains(doc) => continue,
                    (_, None) => DocChangeKind::Deleted,
                    (Some(old), Some(new)) if mode == Mode::Delta && cursor.is_none() => difference(old, new),
                    (_, Some(new)) => whole(new),
                };
                pages.push(DocChange { doc: doc.clone(), kind });
            }
            for page in pages.chunks(3) {
                let cursor = page.last().unwrap().doc.to_string().into_bytes().into();
                let docs = page.to_vec();
                out.push(ServerMessage::Page { id, docs, cursor });
            }
        }
        let last_mid = self.state().mids.get(&of.writer()).copied();
        out.push(ServerMessage::Current {
            id,
            position: head,
            last_mid,
        });
        let peer = &mut self.peers[peer];
        peer.to_client.extend(out);
        peer.live = Some(head);
    }

    // The clients.

    pub fn connect(&mut self, peer: usize) {
        self.connect_by(peer, true);
    }

    pub fn connect_by(&mut self, peer: usize, by_log: bool) {
        self.connections += 1;
        let connection = self.connections;
        let of = &mut self.peers[peer];
        assert!(of.connection.is_none());
        of.connection = Some(connection);
        self.events.push(E::Connected(connection, of.number));
        let cursor = of.staged.clone().map(|(cursor, _)| bytes::Bytes::from(cursor));
        let position = of.held.or(cursor.is_some().then_some(Position::START));
        let view = of.view();
        let from = position.map(|position| ResumeFrom { position, view, cursor });
        let sub = Sub {
            id: connection,
            space: space(),
            client: Some(of.client),
            from: from.clone(),
            filter: of.filter.clone(),
        };
        self.events.push(E::Sent(connection, ClientMessage::Sub(sub)));
        self.catch_up(peer, connection, from, by_log);
        self.send(peer);
    }

    pub fn cut(&mut self, peer: usize) {
        let peer = &mut self.peers[peer];
        if let Some(connection) = peer.connection.take() {
            self.events.push(E::Disconnected(connection));
        }
        peer.to_gateway.clear();
        peer.to_client.clear();
        peer.live = None;
        peer.queue.iter_mut().for_each(|pending| pending.sent = false);
    }

    /// The program ends and starts; its storage is as new as its memory.
    pub fn restart(&mut self, peer: usize) {
        self.cut(peer);
        let peer = &mut self.peers[peer];
        peer.staged = None;
        let standing = peer.held.map(|held| (held, peer.view()));
        self.events.push(E::Restarted(peer.number, standing));
    }

    pub fn issue(&mut self, peer: usize, kind: Kind) -> u64 {
        self.tags += 1;
        let tag = self.tags;
        let of = &mut self.peers[peer];
        let pending = Pending {
            tag,
            kind,
            write: None,
            sent: false,
            acked: false,
            place: None,
            covered: false,
        };
        of.queue.push(pending);
        self.events.push(E::Issued(of.number, tag, kind == Kind::Count));
        self.send(peer);
        tag
    }

    fn send(&mut self, peer: usize) {
        let of = &mut self.peers[peer];
        let Some(connection) = of.connection else { return };
        let base = of.held;
        for pending in of.queue.iter_mut().filter(|pending| !pending.sent && !pending.acked) {
            pending.sent = true;
            let write = pending.write.get_or_insert_with(|| {
                of.mid += 1;
                let key = MutationKey(of.client.0 << 32 | of.mid);
                let prev = of.key.replace(key);
                let head = WriteHead {
                    space: space(),
                    client: of.client,
                    mid: mid(of.mid),
                    key,
                    prev,
                    first: (of.mid == 1).then_some(5),
                };
                let ops = ops(pending.kind, pending.tag);
                Write {
                    head,
                    base,
                    policy: None,
                    ops,
                }
            });
            of.to_gateway.push_back(write.clone());
            self.events
                .push(E::Sent(connection, ClientMessage::Write(write.clone())));
        }
    }

    /// The client takes the next message.
    pub fn deliver(&mut self, peer: usize) -> bool {
        let Some(message) = self.peers[peer].to_client.pop_front() else {
            return false;
        };
        let connection = self.peers[peer].connection.unwrap();
        self.events.push(E::Received(connection, message.clone()));
        let of = &mut self.peers[peer];
        let number = of.number;
        match message {
            ServerMessage::Begin(begin) => {
                of.staged = of.staged.take().filter(|_| begin.resumed);
                of.resets = begin.mode == Mode::Reset;
            }
            ServerMessage::Page { cursor, docs, .. } => {
                let mut staged = of.staged.take().map(|(_, docs)| docs).unwrap_or_default();
                staged.extend(docs.into_iter().map(|change| change.doc));
                of.staged = Some((cursor.to_vec(), staged));
            }
            ServerMessage::Current { position, last_mid, .. } => {
                of.staged = None;
                of.held = Some(position);
                let reached = last_mid.map_or(0, Mid::get);
                for pending in &mut of.queue {
                    let mid = pending.mid().map_or(u64::MAX, Mid::get);
                    pending.covered = mid <= reached || pending.covered && !of.resets;
                }
                if reached < of.acked {
                    self.lose(peer, reached + 1);
                }
            }
            ServerMessage::Change(change) => of.held.as_mut().unwrap().seq = change.commit.seq,
            ServerMessage::Epoch { position, .. } => of.held = Some(position),
            ServerMessage::Progress { seq, .. } => of.held.as_mut().unwrap().seq = seq,
            ServerMessage::Ack(ack) => {
                of.acked = of.acked.max(ack.mid.get());
                if let Some(pending) = of.by_mid(ack.mid) {
                    pending.acked = true;
                    pending.place = Some(ack.position);
                    let tag = pending.tag;
                    self.events.push(E::Settled(number, tag, Fate::Acked));
                }
            }
            ServerMessage::Reject(reject) if reject.code == Code::OutOfOrder => {
                let expected = reject.expected.unwrap().get();
                if expected <= of.acked {
                    self.lose(peer, expected);
                } else {
                    if of.by_mid(mid(expected)).is_none() {
                        // A refusal was lost: what waits is sent anew, by a new client.
                        self.clients += 1;
                        of.client = ClientId(self.clients);
                        (of.mid, of.acked, of.key) = (0, 0, None);
                        let waiting = of.queue.iter_mut().filter(|pending| !pending.acked);
                        waiting.for_each(|pending| pending.write = None);
                    }
                    // It is sent again after the next connect.
                    self.cut(peer);
                }
            }
            ServerMessage::Reject(reject) => {
                if let Some(index) = of.queue.iter().position(|p| !p.acked && p.mid() == Some(reject.mid)) {
                    let pending = of.queue.remove(index);
                    self.events.push(E::Settled(number, pending.tag, Fate::Refused));
                }
            }
            _ => {}
        }
        true
    }

    /// A loss is reported, and the client takes a new id.
    fn lose(&mut self, peer: usize, from: u64) {
        self.clients += 1;
        let of = &mut self.peers[peer];
        self.events
            .push(E::Lost(of.number, of.client, mid(from), mid(of.acked)));
        let (number, client) = (of.number, of.client);
        for pending in std::mem::take(&mut of.queue) {
            match pending.mid() {
                _ if pending.acked => {}
                Some(_) => self.events.push(E::Settled(number, pending.tag, Fate::Uncertain)),
                None => of.queue.push(pending),
            }
        }
        assert_ne!(client, ClientId(self.clients));
        of.client = ClientId(self.clients);
        (of.mid, of.acked, of.key) = (0, 0, None);
        // A connection that goes on would mix up the two; it is simply ended.
        self.cut(peer);
    }

    pub fn deliver_all(&mut self, peer: usize) {
        while self.deliver(peer) {}
    }

    /// A look at the local view.
    pub fn show(&mut self, peer: usize) {
        let of = &self.peers[peer];
        let empty = Docs::new();
        let whole = of.held.map_or(&empty, |held| self.docs_at(held));
        let seen = of.seen(whole);
        let field = |docs: &Docs, at: &str, field: &str| Some(docs.get(&doc(at))?[&path(field)].clone());
        let confirmed = field(&seen, workload::COUNTER, workload::COUNT).map_or(0, |value| match value.get() {
            ValueRef::Int(n) => n,
            other => panic!("{other:?}"),
        });
        // Where nothing of it is in view, its client goes by what it is answered and told.
        let tag = |pending: &Pending| doc(&format!("tags/{}", pending.tag));
        let out = |pending: &Pending| match of.covers(&tag(pending)) || of.covers(&doc(workload::COUNTER)) {
            true => whole.contains_key(&tag(pending)),
            false => pending.covered || pending.place.is_some_and(|place| self.is_in(place, of.held)),
        };
        let counts = of.queue.iter().filter(|pending| pending.kind == Kind::Count);
        let own = counts.filter(|pending| !out(pending)).count() as i64;
        let (a, b) = workload::halves("p");
        let pair = (field(&seen, &a, workload::HALF), field(&seen, &b, workload::HALF));
        self.events
            .push(E::Shown(of.number, of.held, confirmed + own, vec![pair]));
    }

    /// Whether the way to a position goes over a commit.
    fn is_in(&self, commit: Position, held: Option<Position>) -> bool {
        let mut at = held;
        while let Some(end) = at.filter(|at| at.epoch != commit.epoch) {
            at = self.parents.get(&end.epoch).copied();
        }
        at.is_some_and(|at| commit.seq <= at.seq)
    }

    pub fn hold(&mut self, peer: usize) {
        let of = &self.peers[peer];
        let docs = of.held.map_or_else(Docs::new, |held| of.seen(self.docs_at(held)));
        self.events.push(E::Held(of.number, of.held, docs));
    }

    /// Everything arrives, until nothing moves; then all are asked.
    pub fn rest(&mut self) {
        for _ in 0..100 {
            for peer in 0..self.peers.len() {
                if self.peers[peer].connection.is_none() {
                    self.connect(peer);
                }
                self.deliver_all(peer);
                while !self.peers[peer].to_gateway.is_empty() {
                    self.serve(peer);
                }
            }
        }
        let head = self.head();
        self.events.push(E::Rest(head, self.docs().clone()));
        for peer in 0..self.peers.len() {
            // Those whose view nothing was of since hear of it only with a `progress`.
            if self.peers[peer].held != Some(head) {
                self.cut(peer);
                self.connect(peer);
                self.deliver_all(peer);
            }
            self.show(peer);
            let of = &self.peers[peer];
            let docs = of.seen(self.docs_at(of.held.unwrap()));
            self.events.push(E::AtRest(of.number, of.held, docs, 0));
        }
    }
}

impl Peer {
    fn by_mid(&mut self, mid: Mid) -> Option<&mut Pending> {
        self.queue
            .iter_mut()
            .find(|pending| !pending.acked && pending.mid() == Some(mid))
    }
}

impl Pending {
    fn mid(&self) -> Option<Mid> {
        self.write.as_ref().map(|write| write.head.mid)
    }
}

fn ack(space: SpaceId, mid: Mid, position: Position) -> ServerMessage {
    ServerMessage::Ack(Ack {
        space,
        mid,
        position,
        conflicts: vec![],
        skipped: vec![],
    })
}

pub fn reject(space: SpaceId, mid: Mid, code: Code, expected: Option<Mid>) -> ServerMessage {
    ServerMessage::Reject(Reject {
        space,
        mid,
        code,
        message: String::new(),
        at: None,
        retry_ms: None,
        expected,
        cells: vec![],
    })
}

fn visible(peer: &Peer, commit: &Commit) -> Option<ServerMessage> {
    let mut commit = commit.clone();
    commit.docs.retain(|change| peer.covers(&change.doc));
    let sent = peer.filter.is_none() || !commit.docs.is_empty();
    sent.then_some(ServerMessage::Change(Change { n: 7, commit }))
}
