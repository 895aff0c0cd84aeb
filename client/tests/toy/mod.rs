//! A gateway of one space in a few hundred lines, with the failures that a client has to survive.

#![allow(unreachable_pub, dead_code, clippy::cast_possible_truncation)] // a module of two tests

use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use tidegate_client::protocol::tree::{self, Leaves};
use tidegate_client::protocol::{
    Ack, Begin, Change, ClientMessage, Code, Commit, DocChange, DocChangeKind, DocPath, Epoch, Limits, Mid, Mode,
    MutationKey, OpKind, Position, Reject, Seq, ServerMessage, SpaceId, Sub, ViewId, Welcome, Write, Writer,
};

pub const NUMBER: u32 = 4;
const VIEW: ViewId = ViewId(77);
const START: u64 = 1_700_000_000_000;
pub const DAY_MS: u64 = 24 * 60 * 60 * 1000;

pub type Docs = BTreeMap<DocPath, Leaves>;

/// What is remembered of a writer.
#[derive(Clone, Default)]
struct Record {
    last: u64,
    /// Key and first answer by mid.
    kept: HashMap<u64, (MutationKey, Result<Position, Code>)>,
}

/// One client's connection, as the gateway sees it.
#[derive(Default)]
pub struct Session {
    user: String,
    /// The subscription, and whether it is live: its `current` was sent.
    sub: Option<Sub>,
    pub to_client: VecDeque<ServerMessage>,
    /// How many writes are answered `unavailable`.
    pub busy: u32,
    /// Whether acks overtake changes.
    pub ack_first: bool,
}

pub struct Gateway {
    space: SpaceId,
    pub epoch: Epoch,
    /// Each epoch and the seq at which it starts.
    lineage: Vec<(Epoch, u64)>,
    /// The commits of every epoch there ever was, from the first on.
    histories: HashMap<Epoch, Vec<Commit>>,
    records: HashMap<Writer, Record>,
    now: u64,
    /// How often commits were lost.
    pub losses: u32,
    /// The documents at the head.
    docs: Docs,
    pub sessions: Vec<Option<Session>>,
}

fn seq(n: u64) -> Seq {
    Seq::new(n).expect("small")
}

impl Gateway {
    /// With one commit by nobody that makes the counter.
    pub fn new(space: SpaceId, clients: usize, first: Vec<DocChange>) -> Self {
        let epoch = Epoch(1);
        let commit = Commit {
            seq: seq(1),
            at: 0,
            writer: Writer(0),
            mid: Mid::ZERO.next(),
            docs: first,
        };
        Self {
            space,
            epoch,
            lineage: vec![(epoch, 0)],
            docs: Self::docs_at(std::slice::from_ref(&commit)),
            histories: HashMap::from([(epoch, vec![commit])]),
            records: HashMap::new(),
            now: START,
            losses: 0,
            sessions: (0..clients).map(|_| None).collect(),
        }
    }

    fn log(&self) -> &Vec<Commit> {
        &self.histories[&self.epoch]
    }

    pub fn head(&self) -> u64 {
        self.log().len() as u64
    }

    fn position(&self) -> Position {
        Position::new(self.epoch, seq(self.head()))
    }

    /// The commits up to a position.
    pub fn history(&self, at: Position) -> &[Commit] {
        &self.histories[&at.epoch][..at.seq.get() as usize]
    }

    pub fn docs_at(commits: &[Commit]) -> Docs {
        let mut docs = Docs::new();
        Self::replay(&mut docs, commits);
        docs
    }

    fn replay(docs: &mut Docs, commits: &[Commit]) {
        for commit in commits {
            for DocChange { doc, kind } in &commit.docs {
                match kind {
                    DocChangeKind::Deleted => drop(docs.remove(doc)),
                    DocChangeKind::Whole(leaves) => drop(docs.insert(doc.clone(), leaves.iter().cloned().collect())),
                    DocChangeKind::Change { set, unset } => {
                        let leaves = docs.entry(doc.clone()).or_default();
                        unset.iter().for_each(|path| drop(leaves.remove(path)));
                        leaves.extend(set.iter().cloned());
                    }
                }
            }
        }
    }

    pub fn docs(&self) -> &Docs {
        &self.docs
    }

    // Failures.

    /// The last `lose` commits are gone, with what was remembered of their writers; a new epoch begins.
    pub fn fail_over(&mut self, lose: u64) {
        let keep = self.head().saturating_sub(lose).max(1);
        self.losses += u32::from(keep < self.head());
        let mut log = self.log().clone();
        log.truncate(keep as usize);
        // A store that loses the tail loses the records written with it, those of refusals too.
        let mut records: HashMap<Writer, Record> = HashMap::new();
        for commit in &log {
            let mid = commit.mid.get();
            if let Some((key, answer)) = self.records.get(&commit.writer).and_then(|old| old.kept.get(&mid)) {
                let record = records.entry(commit.writer).or_default();
                record.last = mid;
                record.kept.insert(mid, (*key, *answer));
            }
        }
        for (writer, record) in &mut records {
            // Refusals before the last commit were written before it.
            for (mid, kept) in &self.records[writer].kept {
                if *mid < record.last {
                    record.kept.insert(*mid, *kept);
                }
            }
        }
        self.records = records;
        self.begin_epoch(log, keep);
        self.sessions.iter_mut().for_each(|session| *session = None);
    }

    /// A new epoch begins and nothing is lost.
    pub fn mint(&mut self) {
        let head = self.head();
        self.begin_epoch(self.log().clone(), head);
        let position = self.position();
        for session in self
            .sessions
            .iter_mut()
            .flatten()
            .filter(|session| session.sub.is_some())
        {
            session
                .to_client
                .push_back(ServerMessage::Epoch { n: NUMBER, position });
        }
    }

    fn begin_epoch(&mut self, log: Vec<Commit>, start: u64) {
        self.epoch = Epoch(self.epoch.0 + 1);
        self.lineage.retain(|(_, at)| *at <= start);
        self.lineage.push((self.epoch, start));
        self.docs = Self::docs_at(&log);
        self.histories.insert(self.epoch, log);
    }

    /// Time passes until every record has been collected.
    pub fn pass_days(&mut self, days: u64) {
        self.records.clear();
        self.now += days * DAY_MS;
    }

    pub fn has_forgotten(&self) -> bool {
        self.now > START
    }

    // Connections.

    pub fn connect(&mut self, at: usize, user: &str) {
        self.sessions[at] = Some(Session {
            user: user.to_owned(),
            ..Session::default()
        });
    }

    pub fn receive(&mut self, at: usize, message: ClientMessage, choice: u64) {
        let Some(session) = self.sessions[at].as_mut() else {
            return;
        };
        match message {
            ClientMessage::Hello(hello) => session.to_client.push_back(ServerMessage::Welcome(Welcome {
                session: "toy".to_owned(),
                node: "toy".to_owned(),
                user: session.user.clone(),
                now: self.now,
                limits: Limits::default(),
                caps: hello.caps,
                ping_ms: 45_000,
                token_expires: None,
            })),
            ClientMessage::Sub(sub) => self.catch_up(at, sub, choice),
            ClientMessage::Write(write) => self.write(at, &write),
            ClientMessage::Ping { at } => session.to_client.push_back(ServerMessage::Pong { at, now: 0 }),
            _ => {}
        }
    }

    /// Whether a position is one of this history.
    fn holds(&self, position: Position) -> bool {
        let Some(index) = self.lineage.iter().position(|(epoch, _)| *epoch == position.epoch) else {
            return position.seq == Seq::ZERO;
        };
        let end = self.lineage.get(index + 1).map_or(self.head(), |(_, start)| *start);
        position.seq.get() <= end
    }

    /// Catches a subscription up anew, of the gateway's own accord.
    pub fn fall_behind(&mut self, at: usize, from: Position, choice: u64) {
        let Some(mut sub) = self.sessions[at].as_ref().and_then(|session| session.sub.clone()) else {
            return;
        };
        sub.from = Some(tidegate_client::protocol::ResumeFrom {
            position: from,
            view: VIEW,
            cursor: None,
        });
        self.catch_up(at, sub, choice | 1);
    }

    fn catch_up(&mut self, at: usize, sub: Sub, choice: u64) {
        let head = self.head();
        let from = sub
            .from
            .clone()
            .filter(|from| from.view == VIEW && self.holds(from.position));
        // The cursor: the head when the pages so far were read, and how many documents they held.
        let cursor = sub
            .from
            .as_ref()
            .and_then(|from| from.cursor.as_ref())
            .and_then(|bytes| {
                let text = std::str::from_utf8(bytes).ok()?;
                let parts: Vec<u64> = text.split(' ').map(|part| part.parse().unwrap_or(0)).collect();
                let [after_epoch, after, epoch, seen, count] = parts[..] else {
                    return None;
                };
                let after = (after_epoch != 0).then(|| Position::new(Epoch(after_epoch), seq(after)));
                let valid =
                    self.holds(Position::new(Epoch(epoch), seq(seen))) && after == from.as_ref().map(|f| f.position);
                valid.then_some((seen, count as usize))
            });
        let mode = match &from {
            None => Mode::Reset,
            Some(_) if choice.is_multiple_of(2) && cursor.is_none() => Mode::Log,
            Some(_) => Mode::Delta,
        };
        let after = from.map(|from| from.position);
        let before = after.map_or_else(Docs::new, |after| Self::docs_at(self.history(after)));
        let now = self.docs.clone();
        let mut out = vec![ServerMessage::Begin(Begin {
            id: sub.id,
            n: NUMBER,
            mode,
            view: VIEW,
            epoch: self.epoch,
            resumed: cursor.is_some(),
        })];
        if mode == Mode::Log {
            let first = after.map_or(0, |after| after.seq.get()) as usize;
            out.extend(self.log()[first..].iter().map(|commit| {
                ServerMessage::Change(Change {
                    n: NUMBER,
                    commit: commit.clone(),
                })
            }));
        } else {
            let start = after.map_or(0, |after| after.seq.get());
            let (pages_head, skip) = cursor.unwrap_or((start, 0));
            // Documents in the order of the first scan, then those touched since.
            let first = touched(&self.log()[start as usize..pages_head as usize]);
            let mut order: Vec<DocPath> = first.into_iter().skip(skip).collect();
            for doc in touched(&self.log()[pages_head as usize..]) {
                if !order.contains(&doc) {
                    order.push(doc);
                }
            }
            let total = order.len();
            for (index, doc) in order.into_iter().enumerate() {
                let change = Some(difference(&doc, before.get(&doc), now.get(&doc)));
                // In a reset only pages that were staged before can have brought a document that is gone.
                let news = mode != Mode::Reset || cursor.is_some();
                let change = change.filter(|change| news || change.kind != DocChangeKind::Deleted);
                let (epoch, count) = after.map_or((0, 0), |after| (after.epoch.0, after.seq.get()));
                // Only the cursor after the last page is taken up at a later head.
                let cursor = if index + 1 == total {
                    format!("{epoch} {count} {} {head} 0", self.epoch.0)
                } else {
                    String::new()
                };
                out.push(ServerMessage::Page {
                    id: sub.id,
                    docs: change.into_iter().collect(),
                    cursor: Bytes::from(cursor),
                });
            }
        }
        let user = self.sessions[at].as_ref().map_or("", |session| session.user.as_str());
        let last = sub
            .client
            .and_then(|client| self.records.get(&Writer::of(user, client)))
            .map(|record| record.last);
        out.push(ServerMessage::Current {
            id: sub.id,
            position: self.position(),
            last_mid: last.and_then(Mid::new),
        });
        if let Some(session) = self.sessions[at].as_mut() {
            session.sub = Some(sub);
            session.to_client.extend(out);
        }
    }

    fn write(&mut self, at: usize, write: &Write) {
        let session = self.sessions[at].as_mut().expect("connected");
        let writer = Writer::of(&session.user, write.head.client);
        let mid = write.head.mid.get();
        let refuse = |code, expected: Option<u64>| {
            ServerMessage::Reject(Reject {
                space: write.head.space.clone(),
                mid: write.head.mid,
                code,
                message: String::new(),
                at: None,
                retry_ms: (code == Code::Unavailable).then_some(50),
                expected: expected.and_then(Mid::new),
                cells: vec![],
            })
        };
        if session.busy > 0 {
            session.busy -= 1;
            session.to_client.push_back(refuse(Code::Unavailable, None));
            return;
        }
        let known = self.records.get(&writer);
        let last = known.map_or(0, |record| record.last);
        let key_of = |mid| known.and_then(|record| record.kept.get(&mid)).map(|(key, _)| *key);
        let is_old = write.head.first.is_some_and(|first| first + 89 * DAY_MS < self.now);
        let wrong = if known.is_none() && (mid > 1 || is_old) {
            Some((Code::ClientUnknown, None))
        } else if mid > last + 1 {
            Some((Code::OutOfOrder, Some(last + 1)))
        } else if (mid == last + 1 && mid > 1 && key_of(last) != write.head.prev)
            || (mid <= last && key_of(mid) != Some(write.head.key))
        {
            Some((Code::ClientCloned, None))
        } else {
            None
        };
        if let Some((code, expected)) = wrong {
            session.to_client.push_back(refuse(code, expected));
            return;
        }
        let answer = match known.and_then(|record| record.kept.get(&mid)) {
            Some((_, answer)) => *answer,
            None => {
                let answer = self.commit(at, writer, write);
                let record = self.records.entry(writer).or_default();
                record.last = mid;
                record.kept.insert(mid, (write.head.key, answer));
                answer
            }
        };
        let session = self.sessions[at].as_mut().expect("connected");
        match answer {
            Ok(position) => {
                let ack = ServerMessage::Ack(Ack {
                    space: self.space.clone(),
                    mid: write.head.mid,
                    position,
                    conflicts: vec![],
                    skipped: vec![],
                });
                let own = session.to_client.iter().rposition(
                    |message| matches!(message, ServerMessage::Change(change) if change.commit.writer == writer),
                );
                match own {
                    Some(own) if session.ack_first => session.to_client.insert(own, ack),
                    _ => session.to_client.push_back(ack),
                }
            }
            Err(code) => session.to_client.push_back(refuse(code, None)),
        }
    }

    fn commit(&mut self, _at: usize, writer: Writer, write: &Write) -> Result<Position, Code> {
        let docs = &self.docs;
        let mut after: BTreeMap<DocPath, Option<Leaves>> = BTreeMap::new();
        for op in &write.ops {
            let doc = after
                .entry(op.doc.clone())
                .or_insert_with(|| docs.get(&op.doc).cloned());
            if op.exists.is_some_and(|wanted| wanted != doc.is_some()) {
                return Err(Code::PreconditionFailed);
            }
            if matches!(op.kind, OpKind::Delete) {
                *doc = None;
                continue;
            }
            let leaves = doc.get_or_insert_default();
            for unit in tree::units(&op.kind) {
                for step in unit.steps(leaves, 0) {
                    tree::apply(leaves, step);
                }
            }
        }
        let changes = after
            .iter()
            .map(|(doc, new)| difference(doc, docs.get(doc), new.as_ref()))
            .collect();
        let commit = Commit {
            seq: seq(self.head() + 1),
            at: 0,
            writer,
            mid: write.head.mid,
            docs: changes,
        };
        Self::replay(&mut self.docs, std::slice::from_ref(&commit));
        self.histories.entry(self.epoch).or_default().push(commit.clone());
        for session in self
            .sessions
            .iter_mut()
            .flatten()
            .filter(|session| session.sub.is_some())
        {
            session.to_client.push_back(ServerMessage::Change(Change {
                n: NUMBER,
                commit: commit.clone(),
            }));
        }
        Ok(self.position())
    }
}

/// The documents that commits touched, in the order in which they were last touched.
fn touched(commits: &[Commit]) -> Vec<DocPath> {
    let mut seen = BTreeSet::new();
    let docs = commits
        .iter()
        .rev()
        .flat_map(|commit| commit.docs.iter().rev().map(|change| change.doc.clone()));
    let mut order: Vec<_> = docs.filter(|doc| seen.insert(doc.clone())).collect();
    order.reverse();
    order
}

/// What a client with `old` has to be told to have `new`.
fn difference(doc: &DocPath, old: Option<&Leaves>, new: Option<&Leaves>) -> DocChange {
    let kind = match (old, new) {
        (_, None) => DocChangeKind::Deleted,
        (None, Some(new)) => DocChangeKind::Whole(new.clone().into_iter().collect()),
        (Some(old), Some(new)) => DocChangeKind::Change {
            set: new
                .iter()
                .filter(|(path, value)| old.get(path.as_str()) != Some(*value))
                .map(|(path, value)| (path.clone(), value.clone()))
                .collect(),
            unset: old
                .keys()
                .filter(|path| !new.contains_key(path.as_str()))
                .cloned()
                .collect(),
        },
    };
    DocChange { doc: doc.clone(), kind }
}
