//! One connection as its client saw it: which subscription a message is of, and whether it may come there.

use crate::checker::Spaces;
use crate::event::{ConnectionId, Installation};
use crate::fold::Map;
use crate::report::{Breach, Out};
use crate::space::{Acked, Covered, Held, Move, Space, What};
use crate::trace::{Note, Who, short};
use crate::truth::{Covers, Node, Record};
use std::sync::Arc;
use tidegate_protocol::{
    Ack, Action, Begin, Change, ClientId, ClientMessage, Code, DocChange, Mid, Mode, Position, Reject, ResumeFrom, Seq,
    ServerMessage, Sub, ViewId, Write, Writer,
};

#[derive(Debug)]
pub(crate) struct Connection {
    id: ConnectionId,
    installation: Installation,
    user: Arc<str>,
    writers: Vec<(ClientId, Writer)>,
    subs: Vec<Subscription>,
    /// The subscription that a node's number stands for.
    by_n: Map<u32, usize>,
    /// Mutations sent and not answered.
    flight: Vec<Flight>,
    gets: Vec<(u64, usize, Option<Node>)>,
}

#[derive(Debug)]
struct Flight {
    space: usize,
    client: ClientId,
    writer: Writer,
    mid: Mid,
    /// What had been acked to the client when it was sent.
    acked: Acked,
}

#[derive(Debug)]
struct Subscription {
    id: u64,
    space: usize,
    replica: usize,
    client: Option<(ClientId, Writer)>,
    /// The filter.
    filter: Covers,
    /// What the client asked to go on from.
    from: Option<ResumeFrom>,
    /// What had been acked to anybody when it was asked for, and how often the store had fallen back.
    asked: Option<Node>,
    cuts: usize,
    /// What had been acked to the client then.
    acked: Acked,
    /// Whether a catch-up has answered it.
    answered: bool,
    state: State,
    /// Up to where it has been delivered.
    at: Option<Position>,
    view: ViewId,
    covers: Covers,
    /// The latest gap: first and last seq that were left out, and the violation.
    missed: Option<(u64, u64, usize)>,
    /// An ack that came before its change: where, and the violation. It is none if the subscription has fallen
    /// behind and a catch-up begins next.
    early: Option<(Node, Position, String)>,
}

#[derive(Clone, Copy, PartialEq, Debug)]
enum State {
    Asked,
    /// Catching up, in this mode.
    CatchUp(Mode),
    Following,
    Ended,
}

impl Connection {
    pub(crate) fn new(id: ConnectionId, installation: Installation, user: &str) -> Self {
        Self {
            id,
            installation,
            user: user.into(),
            writers: Vec::new(),
            subs: Vec::new(),
            by_n: Map::default(),
            flight: Vec::new(),
            gets: Vec::new(),
        }
    }

    fn writer(&mut self, client: ClientId) -> Writer {
        if let Some((_, writer)) = self.writers.iter().find(|(of, _)| *of == client) {
            return *writer;
        }
        let writer = Writer::of(&self.user, client);
        self.writers.push((client, writer));
        writer
    }

    pub(crate) fn sent(&mut self, out: &mut Out, spaces: &mut Spaces, message: &ClientMessage) {
        match message {
            ClientMessage::Sub(sub) => self.subscribe(out, spaces.get(&sub.space), sub),
            ClientMessage::Unsub { id } => {
                if let Some(sub) = self.subs.iter_mut().find(|sub| sub.id == *id) {
                    sub.state = State::Ended;
                    out.note(sub.space, Note::Unsub(self.id, *id));
                    spaces.at(sub.space).replicas[sub.replica].log_to = None;
                }
            }
            ClientMessage::Write(write) => self.write(out, spaces.get(&write.head.space), write),
            ClientMessage::Get(get) => {
                let space = spaces.get(&get.space);
                self.gets.push((get.id, space.number, space.acked));
            }
            ClientMessage::Hello(_) | ClientMessage::Auth { .. } | ClientMessage::Ping { .. } => {}
        }
    }

    fn subscribe(&mut self, out: &mut Out, space: &mut Space, sub: &Sub) {
        let from = sub.from.as_ref().map(|from| from.position);
        out.note(space.number, Note::Sub(self.id, sub.id, from, sub.filter.is_some()));
        let client = sub.client.map(|client| (client, self.writer(client)));
        let replica = space.replica(self.installation);
        space.asks(out, replica, sub, client);
        let acked = sub
            .client
            .and_then(|client| space.replicas[replica].acked.get(&client).copied());
        if !self.subs.iter().any(|before| before.space == space.number) {
            space.replicas[replica].log_to = None;
        }
        // What still comes of one before is passed over: the replica stays at `from` until this one begins, and in its
        // catch-up.
        for before in self.subs.iter_mut().filter(|before| before.space == space.number) {
            before.state = State::Ended;
        }
        self.subs.push(Subscription {
            id: sub.id,
            space: space.number,
            replica,
            client,
            filter: Covers::of(sub.filter.as_deref()),
            from: sub.from.clone(),
            asked: space.acked,
            cuts: space.cuts,
            acked: acked.unwrap_or_default(),
            answered: false,
            state: State::Asked,
            at: None,
            view: ViewId(0),
            covers: Covers::All,
            missed: None,
            early: None,
        });
    }

    fn write(&mut self, out: &mut Out, space: &mut Space, write: &Write) {
        let head = &write.head;
        let writer = self.writer(head.client);
        out.note(space.number, Note::Write(self.id, writer, head.mid, write.base));
        let replica = space.replica(self.installation);
        space.writes(out, replica, writer, write);
        space.users.entry(writer).or_insert_with(|| self.user.clone());
        let acked = space.replicas[replica].acked.get(&head.client);
        self.flight.push(Flight {
            space: space.number,
            client: head.client,
            writer,
            mid: head.mid,
            acked: acked.copied().unwrap_or_default(),
        });
    }

    pub(crate) fn received(
        &mut self,
        out: &mut Out,
        spaces: &mut Spaces,
        covers: &mut Map<ViewId, Covers>,
        message: &ServerMessage,
    ) {
        let connection = self.id;
        match message {
            ServerMessage::Begin(begin) => self.begin(out, spaces, covers, begin),
            ServerMessage::Page { id, docs, cursor } => {
                let Some(sub) = self.subs.iter_mut().find(|sub| sub.id == *id) else {
                    return;
                };
                let space = spaces.at(sub.space);
                out.note(sub.space, Note::Page(self.id, *id, docs.len()));
                if matches!(sub.state, State::CatchUp(Mode::Delta | Mode::Reset)) {
                    let staged = &mut space.replicas[sub.replica].staged;
                    staged.push((cursor.clone(), docs.clone()));
                } else if sub.state != State::Ended {
                    stray(out, space, self.id, "a page", sub.at);
                }
            }
            ServerMessage::Current { id, position, last_mid } => {
                let Some(sub) = self.subs.iter_mut().find(|sub| sub.id == *id) else {
                    return;
                };
                out.note(sub.space, Note::Current(connection, *id, *position, *last_mid));
                let State::CatchUp(mode) = sub.state else {
                    if sub.state != State::Ended {
                        stray(out, spaces.at(sub.space), connection, "`current`", sub.at);
                    }
                    return;
                };
                sub.current(out, spaces.at(sub.space), connection, mode, *position, *last_mid);
            }
            ServerMessage::Change(change) => {
                if let Some((sub, space)) = self.numbered(out, spaces, change.n) {
                    sub.change(out, space, connection, change);
                }
            }
            ServerMessage::Epoch { n, position } => {
                if let Some((sub, space)) = self.numbered(out, spaces, *n) {
                    sub.epoch(out, space, connection, *position);
                }
            }
            ServerMessage::Progress { n, seq } => {
                if let Some((sub, space)) = self.numbered(out, spaces, *n) {
                    sub.progress(out, space, connection, *seq);
                }
            }
            ServerMessage::Ack(ack) => self.ack(out, spaces.get(&ack.space), ack),
            ServerMessage::Reject(reject) => self.reject(out, spaces.get(&reject.space), reject),
            ServerMessage::Docs { id, position, docs } => self.docs(out, spaces, *id, *position, docs),
            ServerMessage::Denied { id, purge, .. } => {
                let Some(sub) = self.subs.iter_mut().find(|sub| sub.id == *id) else {
                    return;
                };
                out.note(sub.space, Note::Denied(self.id, *id, *purge));
                let space = spaces.at(sub.space);
                if std::mem::replace(&mut sub.state, State::Ended) != State::Ended {
                    space.replicas[sub.replica].log_to = None;
                }
                if *purge {
                    space.purged(sub.replica);
                }
            }
            ServerMessage::Welcome(_)
            | ServerMessage::Goaway { .. }
            | ServerMessage::Pong { .. }
            | ServerMessage::Error { .. } => {}
        }
    }

    /// The subscription that a number stands for; none if it has ended.
    fn numbered<'a>(
        &'a mut self,
        out: &mut Out,
        spaces: &'a mut Spaces,
        n: u32,
    ) -> Option<(&'a mut Subscription, &'a mut Space)> {
        let sub = &mut self.subs[*self.by_n.get(&n)?];
        (sub.state != State::Ended).then(|| {
            let space = spaces.at(sub.space);
            if let Some((node, position, text)) = sub.early.take() {
                space.breach_unless_lost(out, node, Breach::AckBeforeChange, Some(position), text);
            }
            (sub, space)
        })
    }

    fn begin(&mut self, out: &mut Out, spaces: &mut Spaces, covers: &mut Map<ViewId, Covers>, begin: &Begin) {
        let connection = self.id;
        let Some(index) = self.subs.iter().position(|sub| sub.id == begin.id) else {
            return;
        };
        let space_number = self.subs[index].space;
        let note = Note::Begin(connection, begin.id, begin.mode, begin.epoch, begin.resumed);
        out.note(space_number, note);
        if self.subs[index].state == State::Ended {
            return;
        }
        // One subscription per space: it takes the place of those before.
        for (other, sub) in self.subs.iter_mut().enumerate() {
            if sub.space == space_number && other < index {
                sub.state = State::Ended;
            }
        }
        self.by_n.insert(begin.n, index);
        let sub = &mut self.subs[index];
        sub.early = None;
        let known = covers.entry(begin.view).or_insert_with(|| sub.filter.clone());
        sub.covers = known.clone();
        sub.view = begin.view;
        sub.begin(out, spaces.at(space_number), connection, begin);
    }

    /// Which of the mutations sent here an answer is about.
    fn answered(&mut self, space: &Space, mid: Mid, at: Option<Position>) -> Option<Flight> {
        let of = |flight: &&Flight| flight.space == space.number && flight.mid == mid;
        // Of two clients' with one mid it is the one whose commit that is.
        let there = at.and_then(|at| space.truth.record(space.truth.resolve(at)?));
        let index = there
            .and_then(|record| {
                self.flight
                    .iter()
                    .position(|flight| of(&flight) && flight.writer == record.writer)
            })
            .or_else(|| self.flight.iter().position(|flight| of(&flight)))?;
        Some(self.flight.remove(index))
    }

    fn ack(&mut self, out: &mut Out, space: &mut Space, ack: &Ack) {
        out.note(space.number, Note::Ack(self.id, ack.mid, ack.position));
        let Some(flight) = self.answered(space, ack.mid, Some(ack.position)) else {
            let text = format!("connection {} gets an ack of mid {}", self.id.0, ack.mid);
            space.breach(out, Breach::AnswerToNothing, Some(ack.position), text);
            return;
        };
        let following = |sub: &&Subscription| sub.space == space.number && sub.state == State::Following;
        let index = self.subs.iter().position(|sub| following(&sub));
        let live = index.and_then(|index| self.subs[index].at);
        let replica = space.replica(self.installation);
        let named = (flight.client, flight.writer, flight.mid);
        if !space.acked(out, replica, named, ack.position) {
            return;
        }
        let Some((live, node)) = live.and_then(|at| Some((at, space.truth.resolve(ack.position)?))) else {
            return;
        };
        out.counts().acks_after_change += 1;
        if let Some(at) = space.truth.resolve(live)
            && at != node
            && space.truth.leads_to(at, node)
        {
            let text = format!("connection {} stands at {}", self.id.0, short(Some(live)));
            if let Some(sub) = index.map(|index| &mut self.subs[index]) {
                sub.early.get_or_insert((node, ack.position, text));
            }
        }
    }

    /// At rest nothing more comes, so no catch-up excuses an ack before its change.
    pub(crate) fn rests(&mut self, out: &mut Out, spaces: &mut Spaces) {
        for sub in self.subs.iter_mut().filter(|sub| sub.state != State::Ended) {
            let space = spaces.at(sub.space);
            if let Some((node, position, text)) = sub.early.take().filter(|_| space.rest.is_some()) {
                space.breach_unless_lost(out, node, Breach::AckBeforeChange, Some(position), text);
            }
        }
    }

    fn reject(&mut self, out: &mut Out, space: &mut Space, reject: &Reject) {
        out.note(space.number, Note::Reject(self.id, reject.mid, reject.code.row().name));
        let Some(flight) = self.answered(space, reject.mid, None) else {
            let text = format!("connection {} gets a refusal of mid {}", self.id.0, reject.mid);
            space.breach(out, Breach::AnswerToNothing, None, text);
            return;
        };
        let replica = space.replica(self.installation);
        match reject.code.row().action {
            Action::Settle => {
                let named = (flight.client, flight.writer, flight.mid);
                space.refused(out, replica, named, reject.code);
            }
            Action::GoBack => {
                let told = reject.expected.filter(|expected| *expected <= flight.acked.mid);
                if let Some(expected) = told {
                    space.owes(replica, flight.client, expected);
                } else if reject.expected.is_some() {
                    // It may be one that the client does not hold: then it takes a new id.
                    space.replicas[replica].client = None;
                }
            }
            Action::NewClient => {
                let aged = space.aged.is_some_and(|aged| flight.acked.event < aged);
                let unknown = reject.code == Code::ClientUnknown;
                let acked_since = space.replicas[replica].acked.contains_key(&flight.client);
                if unknown && flight.acked.mid > Mid::ZERO && !aged {
                    space.owes(replica, flight.client, Mid::ZERO.next());
                } else if !unknown || flight.acked.mid > Mid::ZERO || !acked_since {
                    // Where something was acked since it was sent, what is sent again tells.
                    space.disowned(replica, flight.client);
                }
            }
            _ => {}
        }
    }

    fn docs(&mut self, out: &mut Out, spaces: &mut Spaces, id: u64, position: Position, docs: &[DocChange]) {
        let Some(index) = self.gets.iter().position(|(of, ..)| *of == id) else {
            return;
        };
        let (_, space, asked) = self.gets.remove(index);
        let space = spaces.at(space);
        out.note(space.number, Note::Docs(self.id, position));
        let who = Who::Connection(self.id);
        let Some(at) = space.place(out, position) else {
            space.breach(
                out,
                Breach::Invented,
                Some(position),
                format!("{who} gets documents as of it"),
            );
            return;
        };
        space.recent(out, who, asked, at, position);
        if space.truth.knows(at) {
            out.counts().gets += 1;
            space.judge_docs(out, who, at, docs);
        } else {
            out.counts().unverified += 1;
        }
    }
}

fn stray(out: &mut Out, space: &Space, connection: ConnectionId, what: &str, at: Option<Position>) {
    let text = format!(
        "connection {} is sent {what}, which its subscription does not allow now",
        connection.0
    );
    space.breach(out, Breach::Stray, at, text);
}

impl Subscription {
    fn begin(&mut self, out: &mut Out, space: &mut Space, connection: ConnectionId, begin: &Begin) {
        let replica = &mut space.replicas[self.replica];
        // The first goes on from what was asked for, later ones from what was delivered.
        let from = match (&self.from, self.at) {
            (_, Some(at)) => Some((at, replica.held.as_ref().map_or(self.view, |held| held.view))),
            (Some(from), None) => Some((from.position, from.view)),
            (None, None) => None,
        };
        let keeps = begin.resumed && begin.mode != Mode::Log;
        if keeps {
            out.counts().resumed += 1;
        } else {
            replica.staged.clear();
        }
        replica.log_to = (begin.mode == Mode::Log).then_some(begin.epoch);
        self.state = State::CatchUp(begin.mode);
        self.missed = None;
        match (begin.mode, from) {
            (Mode::Reset, _) => {}
            (_, Some((position, view))) if view == begin.view => self.at = Some(position),
            (_, Some((position, view))) => {
                let text = format!(
                    "connection {} has the view {view}, is to have {}",
                    connection.0, begin.view
                );
                space.breach(out, Breach::NotReset, Some(position), text);
                self.at = Some(position);
            }
            (_, None) => {
                let text = format!("connection {} stands nowhere", connection.0);
                space.breach(out, Breach::NotReset, None, text);
                self.at = Some(Position::START);
            }
        }
    }

    fn current(
        &mut self,
        out: &mut Out,
        space: &mut Space,
        connection: ConnectionId,
        mode: Mode,
        position: Position,
        last_mid: Option<Mid>,
    ) {
        let who = Who::Connection(connection);
        self.state = State::Following;
        let from = self.at.replace(position);
        let first = !std::mem::replace(&mut self.answered, true);
        let replica = &mut space.replicas[self.replica];
        replica.log_to = None;
        let pages: Vec<DocChange> = std::mem::take(&mut replica.staged)
            .into_iter()
            .flat_map(|(_, docs)| docs)
            .collect();
        replica.purged = None;
        let before = replica.held.replace(Held {
            position,
            view: self.view,
            covers: self.covers.clone(),
        });
        let Some(to) = space.place(out, position) else {
            space.breach(out, Breach::Invented, Some(position), format!("{who} is told of it"));
            return;
        };
        let counts = out.counts();
        match mode {
            Mode::Log => counts.logs += 1,
            Mode::Delta => counts.deltas += 1,
            Mode::Reset => counts.resets += 1,
        }
        counts.filtered_catch_ups += u64::from(self.covers != Covers::All);
        if let Some(before) = &before {
            space.not_back(out, who, before.position, to, position);
        }
        if first {
            space.recent(out, who, self.asked, to, position);
        }
        // A second `sub` asks from where the client stood then; the pages come on top of where it stands now.
        let stood = match (mode, &before) {
            (Mode::Delta, Some(before)) => Some(before.position),
            _ => from,
        };
        let from = stood.map_or(crate::truth::START, |from| {
            space.place(out, from).unwrap_or(crate::truth::START)
        });
        let what = match mode {
            Mode::Log => What::Skip,
            Mode::Delta => What::Delta(pages),
            Mode::Reset => What::Reset(pages),
        };
        if let What::Reset(pages) = &what
            && !out.account
            && !space.anchored
            && self.covers == Covers::All
            && to != crate::truth::START
        {
            space.believe_state(out, to, pages);
        }
        space.anchored |= to == crate::truth::START;
        let covers = self.covers.clone();
        let step = |what| Move {
            who,
            from,
            to,
            covers: covers.clone(),
            what,
        };
        space.step(out, step(what));
        if let Some((client, writer)) = self.client {
            space.step(out, step(What::LastMid(writer, last_mid, self.cuts)));
            let acked = first.then_some(self.acked);
            let covered = Covered {
                from: before.map(|held| held.position),
                to: position,
                again: false,
            };
            space.told_last_mid(self.replica, client, last_mid, (mode, covered), acked);
        }
    }

    fn change(&mut self, out: &mut Out, space: &mut Space, connection: ConnectionId, change: &Change) {
        let commit = &change.commit;
        let note = Note::Change(connection, commit.seq, commit.writer, commit.mid, commit.docs.len());
        out.note(space.number, note);
        let Some(at) = self.moving(out, space, connection, "a change") else {
            return;
        };
        let position = Position::new(at.epoch, commit.seq);
        let seq = commit.seq.get();
        if commit.seq <= at.seq {
            let who = Who::Connection(connection);
            match self.missed {
                Some((first, last, violation)) if (first..=last).contains(&seq) => {
                    let text = format!("{who} is sent {} after {}", short(Some(position)), short(Some(at)));
                    out.rename(violation, Breach::OutOfOrder, text);
                }
                _ => {
                    let text = format!("{who} stands at {}", short(Some(at)));
                    space.breach(out, Breach::Repeat, Some(position), text);
                }
            }
            return;
        }
        let (Some(from), Some(to)) = (space.place(out, at), space.place(out, position)) else {
            let text = format!(
                "connection {} is sent a commit of an epoch that never was",
                connection.0
            );
            space.breach(out, Breach::Invented, Some(position), text);
            return;
        };
        self.advance(space, position);
        if self.covers == Covers::All && !out.account {
            if seq != at.seq.get() + 1 {
                self.missing(out, space, connection, (at.seq.get() + 1, seq - 1), position);
            }
            space.believe(out, Who::Connection(connection), to, commit);
            return;
        }
        if !space.truth.knows(to) {
            // It is judged when it is known, or never can be.
            let what = What::Change(Record::of(commit));
            let covers = self.covers.clone();
            space.step(
                out,
                Move {
                    who: Who::Connection(connection),
                    from,
                    to,
                    covers,
                    what,
                },
            );
            return;
        }
        let before = space.truth.canonical(Node { seq: seq - 1, ..to });
        if before != from {
            let who = Who::Connection(connection);
            let skipped = match space.leads(out, who, from, before) {
                true => space.skip(out, who, from, before, &self.covers),
                false => None,
            };
            self.missed = skipped
                .map(|violation| (at.seq.get() + 1, seq - 1, violation))
                .or(self.missed);
        }
        space.compare_change(out, Who::Connection(connection), to, commit, &self.covers);
    }

    /// Commits were left out, whatever they are.
    fn missing(
        &mut self,
        out: &mut Out,
        space: &mut Space,
        connection: ConnectionId,
        (first, last): (u64, u64),
        position: Position,
    ) {
        let text = format!("connection {} is sent it without {first} to {last}", connection.0);
        let violation = space.breach(out, Breach::Gap, Some(position), text);
        self.missed = violation.map(|violation| (first, last, violation));
    }

    /// Where it stands, unless a message that moves it may not come now.
    fn moving(&self, out: &mut Out, space: &Space, connection: ConnectionId, what: &str) -> Option<Position> {
        match self.state {
            State::Following | State::CatchUp(Mode::Log) => self.at,
            _ => {
                stray(out, space, connection, what, self.at);
                None
            }
        }
    }

    /// It has been delivered up to there.
    fn advance(&mut self, space: &mut Space, position: Position) {
        let from = self.at.replace(position);
        let replica = &mut space.replicas[self.replica];
        if let Some(held) = &mut replica.held {
            // What a second `sub` brings again is there already.
            let goes_on = Some(held.position) == from
                || match (space.truth.resolve(held.position), space.truth.resolve(position)) {
                    (Some(held), Some(at)) => space.truth.leads_to(held, at),
                    _ => false,
                };
            if goes_on {
                held.position = position;
            }
        }
    }

    fn epoch(&mut self, out: &mut Out, space: &mut Space, connection: ConnectionId, position: Position) {
        out.note(space.number, Note::EpochChange(connection, position));
        let Some(at) = self.moving(out, space, connection, "`epoch`") else {
            return;
        };
        out.counts().epoch_changes += 1;
        let who = Who::Connection(connection);
        // The end of the epoch before, as the subscriber knows it.
        let end = Position::new(at.epoch, position.seq);
        let ends = space.place(out, end);
        let _ = space.place(out, position);
        let epoch = space.truth.find(position.epoch);
        let (Some(epoch), Some(end), Some(from)) = (epoch, ends, space.place(out, at)) else {
            space.breach(
                out,
                Breach::Invented,
                Some(position),
                format!("{who} is told of an epoch that never was"),
            );
            return;
        };
        if !out.account {
            space.believe_epoch(out, epoch, end);
        }
        let stretch = &space.truth.stretches[epoch];
        let begins = stretch
            .parent
            .is_some_and(|parent| parent.seq == position.seq.get() && parent == end);
        if !begins || position.seq < at.seq {
            let text = format!("{who}, at {}, is told so", short(Some(at)));
            space.breach(out, Breach::WrongEpoch, Some(position), text);
        } else if from != end {
            self.passes(out, space, who, (from, end));
        }
        let log_to = &mut space.replicas[self.replica].log_to;
        // One that begins during a catch-up by log, after all that it was to cross.
        if *log_to == Some(at.epoch) {
            *log_to = Some(position.epoch);
        }
        self.advance(space, position);
    }

    /// It is led from one place to another, and nothing is sent of what lies between.
    fn passes(&self, out: &mut Out, space: &mut Space, who: Who, (from, to): (Node, Node)) {
        let (covers, what) = (self.covers.clone(), What::Skip);
        space.step(
            out,
            Move {
                who,
                from,
                to,
                covers,
                what,
            },
        );
    }

    fn progress(&mut self, out: &mut Out, space: &mut Space, connection: ConnectionId, seq: Seq) {
        out.note(space.number, Note::Progress(connection, seq));
        let Some(at) = self.moving(out, space, connection, "`progress`") else {
            return;
        };
        out.counts().progresses += 1;
        let position = Position::new(at.epoch, seq);
        if seq < at.seq {
            let text = format!("connection {} stands at {}", connection.0, short(Some(at)));
            space.breach(out, Breach::Backwards, Some(position), text);
            return;
        }
        if let (Some(from), Some(to)) = (space.place(out, at), space.place(out, position))
            && from != to
        {
            self.passes(out, space, Who::Connection(connection), (from, to));
        }
        self.advance(space, position);
    }
}
