//! What the checker knows of one space: its true history, its mutations, its replicas.

use crate::doc::Doc;
use crate::event::{Fate, Installation, Tag};
use crate::fold::Map;
use crate::report::{Breach, Out};
use crate::trace::{Who, short, short_writer};
use crate::truth::{Covers, Effect, Node, Record, Role, Truth};
use crate::workload;
use bytes::Bytes;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;
use tidegate_protocol::{
    ClientId, Code, DocChange, Epoch, Mid, MutationKey, Position, SpaceId, ValueRef, ViewId, Writer,
};

/// A mutation, by its writer and mid.
#[derive(Debug)]
pub(crate) struct Mutation {
    pub(crate) replica: usize,
    pub(crate) key: MutationKey,
    /// The furthest commit that had been acked to anybody when it was first sent.
    pub(crate) after: Option<Node>,
    /// Where its replica stood then.
    pub(crate) read: Option<Node>,
    pub(crate) base: Option<Position>,
    /// How often the store had fallen back when it was first sent.
    pub(crate) cuts: usize,
    pub(crate) answer: Option<Answer>,
    /// Its client reported it lost.
    pub(crate) lost: bool,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Answer {
    pub(crate) what: Result<Position, Code>,
    pub(crate) event: usize,
}

/// A local copy of the space.
#[derive(Debug)]
pub(crate) struct Replica {
    pub(crate) installation: Installation,
    pub(crate) held: Option<Held>,
    /// Whether it has subscribed on a connection that is observed.
    pub(crate) observed: bool,
    /// Whether it was asked at rest.
    pub(crate) rested: bool,
    /// Pages of a catch-up that is not complete, each with its cursor.
    pub(crate) staged: Vec<(Bytes, Vec<DocChange>)>,
    /// The epoch of the head that a catch-up by log leads to. Until it is reached acks confirm nothing.
    pub(crate) log_to: Option<Epoch>,
    pub(crate) own: Vec<Own>,
    pub(crate) by_tag: Map<Tag, usize>,
    /// The counting ones of `own` that may have to be shown over the confirmed state.
    pub(crate) open: Vec<usize>,
    /// Own mutations by what they were sent as.
    pub(crate) by_name: Map<(ClientId, Mid), usize>,
    /// What was acked to each client.
    pub(crate) acked: Map<ClientId, Acked>,
    /// … and is kept: its app was told.
    pub(crate) kept: Map<ClientId, Acked>,
    /// From which mid on each client's are lost, as its app was told.
    pub(crate) lost: Map<ClientId, Mid>,
    /// The client that it bears, as far as it can be known.
    pub(crate) client: Option<ClientId>,
    /// Under that: the highest mid that this storage sent, and that it was told of as `last_mid`.
    pub(crate) sent: Mid,
    pub(crate) told: Mid,
    /// Which storage this is: a copy is another.
    pub(crate) storage: usize,
    /// Where it stood when a purge took that away, until something takes its place.
    pub(crate) purged: Option<Held>,
    /// A loss that it has been told of and has not reported yet: from which mid.
    pub(crate) owes: Option<(ClientId, Mid)>,
}

/// Up to where a client's mutations have been acked.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct Acked {
    /// The highest mid.
    pub(crate) mid: Mid,
    /// The event of the latest ack.
    pub(crate) event: usize,
}

impl Acked {
    pub(crate) fn note(&mut self, mid: Mid, event: usize) {
        self.mid = self.mid.max(mid);
        self.event = event;
    }
}

/// Where a replica stands.
#[derive(Clone, Debug)]
pub(crate) struct Held {
    pub(crate) position: Position,
    pub(crate) view: ViewId,
    pub(crate) covers: Covers,
}

/// An app's own mutation.
#[derive(Debug)]
pub(crate) struct Own {
    pub(crate) tag: Tag,
    pub(crate) counts: bool,
    pub(crate) fate: Option<Fate>,
    pub(crate) lost: bool,
    /// As what it was last sent.
    pub(crate) sent: Option<(ClientId, Mid)>,
    /// How that was answered.
    pub(crate) heard: Option<Result<Position, Code>>,
    /// … and in which epoch its replica stood then.
    pub(crate) stood: Option<Epoch>,
    /// A `last_mid` says that it is in the state, or was refused.
    pub(crate) covered: Option<Covered>,
    /// A later one said that it is not, any more.
    pub(crate) uncovered: Option<Covered>,
    /// The id under which it may be hidden was given up.
    pub(crate) renounced: bool,
    /// It was so, or it was in the state: and then a restart or a purge came between, after which it may be shown
    /// or not until a `last_mid` says more.
    pub(crate) unsure: bool,
}

/// The `current` whose `last_mid` covers a mutation, or covers it no more: from where to where it brought the replica.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Covered {
    pub(crate) from: Option<Position>,
    pub(crate) to: Position,
    /// It was a reset, and one before it covered the mutation, too.
    pub(crate) again: bool,
}

/// A counting mutation's documents in the true history.
#[derive(Debug, Default)]
pub(crate) struct Applied {
    pub(crate) at: Vec<Node>,
    /// How many storages held it; each may have had it applied once.
    pub(crate) holders: usize,
}

impl Applied {
    /// Whether several storages held it.
    pub(crate) fn is_copied(&self) -> bool {
        self.holders > 1
    }

    /// How often the state there holds it.
    pub(crate) fn times(&self, truth: &Truth, at: Node) -> usize {
        self.at.iter().filter(|node| truth.holds(**node, at)).count()
    }

    /// Whether the state there holds it.
    pub(crate) fn is_in(&self, truth: &Truth, at: Node) -> bool {
        self.at.iter().any(|node| truth.holds(*node, at))
    }
}

/// A step of a subscriber, to be judged once the true history is known up to its end.
#[derive(Debug)]
pub(crate) struct Move {
    pub(crate) who: Who,
    pub(crate) from: Node,
    pub(crate) to: Node,
    pub(crate) covers: Covers,
    pub(crate) what: What,
}

impl Move {
    /// What is seen at a place, without leaving it.
    pub(crate) fn within(who: Who, at: Node, covers: Covers, what: What) -> Self {
        Self {
            who,
            from: at,
            to: at,
            covers,
            what,
        }
    }
}

#[derive(Debug)]
pub(crate) enum What {
    /// Nothing was sent.
    Skip,
    /// One commit was.
    Change(Record),
    /// Pages were.
    Delta(Vec<DocChange>),
    Reset(Vec<DocChange>),
    /// What `last_mid` said, and how often the store had fallen back when it was asked for.
    LastMid(Writer, Option<Mid>, usize),
    /// What a local view shows.
    View(View),
    /// What documents are there.
    State(crate::event::Docs),
}

/// What a local view counts, and the own mutations that it may hold over the confirmed state.
#[derive(Debug)]
pub(crate) struct View {
    pub(crate) count: i64,
    /// Those that it shows unless they are in that.
    pub(crate) open: Vec<Tag>,
    /// How many others it shows for certain, and of how many nobody can say.
    pub(crate) sure: i64,
    pub(crate) perhaps: i64,
    /// Whether pages of a catch-up wait.
    pub(crate) staged: bool,
}

/// Who bears a client's id.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bearer {
    pub(crate) storage: usize,
    pub(crate) writer: Writer,
    /// Other storages do, too.
    pub(crate) shared: bool,
}

#[derive(Debug)]
pub(crate) struct Space {
    pub(crate) number: usize,
    pub(crate) name: SpaceId,
    pub(crate) truth: Truth,
    pub(crate) mutations: Map<(Writer, Mid), Mutation>,
    pub(crate) clients: Map<ClientId, Bearer>,
    /// Storages so far.
    pub(crate) storages: usize,
    /// The event of each writer's latest commit.
    pub(crate) wrote: Map<Writer, usize>,
    pub(crate) sent_max: Map<Writer, Mid>,
    /// Whose a writer is.
    pub(crate) users: Map<Writer, Arc<str>>,
    pub(crate) tags: Map<Tag, Applied>,
    pub(crate) replicas: Vec<Replica>,
    pub(crate) by_installation: Map<Installation, usize>,
    /// The furthest commit that was acked to anybody.
    pub(crate) acked: Option<Node>,
    /// Acks of commits that are not known yet.
    pub(crate) acks_ahead: Map<Node, (Writer, Mid)>,
    /// How often the store fell back, or was emptied. Each time it may have forgotten refusals, too, also where it lost
    /// no commit.
    pub(crate) cuts: usize,
    /// The event at which records last grew too old.
    pub(crate) aged: Option<usize>,
    pub(crate) rest: Option<Position>,
    pub(crate) waiting: Map<usize, BTreeMap<u64, Vec<Move>>>,
    /// Breaches that are none if this place was lost, which only the end can tell.
    pub(crate) doubts: Vec<(Node, Breach, Option<Position>, String)>,
    /// Somebody held a state that others can be compared with.
    pub(crate) anchored: bool,
}

impl Space {
    pub(crate) fn new(number: usize, name: SpaceId) -> Self {
        Self {
            number,
            name,
            truth: Truth::default(),
            mutations: Map::default(),
            clients: Map::default(),
            storages: 0,
            wrote: Map::default(),
            sent_max: Map::default(),
            users: Map::default(),
            tags: Map::default(),
            replicas: Vec::new(),
            by_installation: Map::default(),
            acked: None,
            acks_ahead: Map::default(),
            cuts: 0,
            aged: None,
            rest: None,
            waiting: Map::default(),
            doubts: Vec::new(),
            anchored: false,
        }
    }

    /// The installation's replica, new if need be.
    pub(crate) fn replica(&mut self, installation: Installation) -> usize {
        let next = self.replicas.len();
        let index = *self.by_installation.entry(installation).or_insert(next);
        if index == next {
            self.storages += 1;
            self.replicas.push(Replica {
                installation,
                held: None,
                observed: false,
                rested: false,
                staged: Vec::new(),
                log_to: None,
                own: Vec::new(),
                by_tag: Map::default(),
                open: Vec::new(),
                by_name: Map::default(),
                acked: Map::default(),
                kept: Map::default(),
                lost: Map::default(),
                client: None,
                sent: Mid::ZERO,
                told: Mid::ZERO,
                storage: self.storages,
                purged: None,
                owes: None,
            });
        }
        index
    }

    pub(crate) fn breach(
        &self,
        out: &mut Out,
        breach: Breach,
        position: Option<Position>,
        text: String,
    ) -> Option<usize> {
        let history = || self.tell(position);
        out.breach(breach, (self.number, &self.name), position, text, history)
    }

    /// As [`Self::breach`], unless the place turns out to be lost. With the store's account that is known.
    pub(crate) fn breach_unless_lost(
        &mut self,
        out: &mut Out,
        at: Node,
        breach: Breach,
        position: Option<Position>,
        text: String,
    ) {
        if !out.account {
            self.doubts.push((at, breach, position, text));
        } else if !self.truth.record(at).is_some_and(|record| record.cut) {
            self.breach(out, breach, position, text);
        }
    }

    /// The true history around a position, a commit a line.
    fn tell(&self, position: Option<Position>) -> String {
        let mut text = String::new();
        let Some(node) = position.and_then(|position| self.truth.resolve(position)) else {
            return text;
        };
        for seq in node.seq.saturating_sub(3)..=node.seq + 3 {
            let at = self.truth.canonical(Node { epoch: node.epoch, seq });
            if let Some(record) = self.truth.record(at) {
                let who = short_writer(record.writer);
                let lost = if record.cut { ", lost" } else { "" };
                let at = short(Some(self.truth.position(at)));
                let _ = writeln!(text, "  true: {at} {who} mid {} {:?}{lost}", record.mid, record.docs);
            }
        }
        text
    }

    // The true history.

    /// The store begins a new epoch.
    pub(crate) fn begin_epoch(&mut self, out: &mut Out, epoch: Epoch, after: Position) {
        out.counts().epochs += 1;
        let new = Position::new(epoch, after.seq);
        if self.truth.find(epoch).is_some() {
            self.breach(
                out,
                Breach::SeqReused,
                Some(new),
                "an epoch of this name has been".to_owned(),
            );
            return;
        }
        let parent = self.truth.resolve(after).filter(|node| self.truth.knows(*node));
        if parent.is_none() {
            self.breach(
                out,
                Breach::StoreGap,
                Some(after),
                format!("epoch {new} goes on from what never was"),
            );
        }
        let parent = parent.unwrap_or(self.truth.tip);
        self.fall_back(out, parent);
        let index = self.truth.enter(epoch);
        self.truth.inherit(index, parent);
        self.truth.tip = Node {
            epoch: index,
            seq: parent.seq,
        };
        self.anchored = true;
    }

    /// The head is there now; what lay beyond is lost.
    pub(crate) fn fall_back(&mut self, out: &mut Out, to: Node) {
        let lost = self.truth.move_tip(to);
        if lost > 0 {
            self.forget(to);
        }
        out.counts().lost_commits += lost as u64;
    }

    /// The store is as it was when its head came to be there, or later: what it refused since may be gone.
    pub(crate) fn forget(&mut self, head: Node) {
        self.cuts += 1;
        let head = self.truth.canonical(head);
        let told = &mut self.truth.stretches[head.epoch].told;
        told.retain(|_, (seq, _)| *seq < head.seq);
    }

    /// The store's own account of a commit.
    pub(crate) fn commit(&mut self, out: &mut Out, epoch: Epoch, seq: u64, record: Record) {
        let at = Position::new(epoch, tidegate_protocol::Seq::new(seq).unwrap_or_default());
        if let Some(index) = self.truth.find(epoch)
            && let Some(old) = self.truth.record(Node { epoch: index, seq })
            && (Node { epoch: index, seq }) != self.next()
        {
            let (was, is) = ((old.writer, old.mid), (record.writer, record.mid));
            if was != is || old.docs != record.docs {
                let text = format!(
                    "is {} mid {}, was {} mid {}",
                    short_writer(is.0),
                    is.1,
                    short_writer(was.0),
                    was.1
                );
                self.breach(out, Breach::SeqReused, Some(at), text);
            }
            return;
        }
        let next = self.next();
        let index = self.truth.find(epoch);
        if index != Some(next.epoch) || seq != next.seq {
            let expected = short(Some(self.truth.position(next)));
            self.breach(
                out,
                Breach::StoreGap,
                Some(at),
                format!("the head is before {expected}"),
            );
            // From here on it counts on.
            if index != Some(next.epoch) {
                let index = self.truth.enter(epoch);
                self.truth.inherit(index, self.truth.canonical(self.truth.tip));
                self.truth.tip.epoch = index;
            }
            self.truth.fill(self.truth.tip.epoch, seq);
            self.truth.tip.seq = self.truth.stretches[self.truth.tip.epoch].head();
        }
        self.learn(out, self.truth.tip.epoch, record);
        self.truth.tip.seq += 1;
    }

    fn next(&self) -> Node {
        Node {
            epoch: self.truth.tip.epoch,
            seq: self.truth.tip.seq + 1,
        }
    }

    /// The next commit of an epoch is known.
    pub(crate) fn learn(&mut self, out: &mut Out, epoch: usize, record: Record) {
        out.counts().commits += 1;
        let head = self.truth.stretches[epoch].head();
        let (before, here) = (Node { epoch, seq: head }, Node { epoch, seq: head + 1 });
        let position = Some(self.truth.position(here));
        let (writer, mid, at) = (record.writer, record.mid, record.at);
        if let Some(last) = self.truth.record(self.truth.canonical(before))
            && last.at > at
        {
            self.breach(out, Breach::TimeBackwards, position, format!("{at} after {}", last.at));
        }
        self.check_order(out, before, here, (writer, mid));
        self.wrote.insert(writer, out.event());
        let effects = self.truth.append(epoch, record);
        self.check_effects(out, here, &effects);
        if let Some(acked) = self.acks_ahead.remove(&here)
            && acked != (writer, mid)
        {
            let text = format!("acked to {} as mid {}", short_writer(acked.0), acked.1);
            self.breach(out, Breach::AckedMissing, position, text);
        }
    }

    /// Whether a mutation may come there.
    fn check_order(&mut self, out: &mut Out, before: Node, here: Node, (writer, mid): (Writer, Mid)) {
        let position = Some(self.truth.position(here));
        let who = || format!("{} mid {mid}", short_writer(writer));
        if self.aged.is_none() && self.truth.is_gone(before, writer) {
            self.breach(out, Breach::ErasedWrites, position, who());
        }
        if let Some(last) = self.truth.last_mid(before, writer)
            && mid <= last
        {
            let (breach, text) = match self.truth.find_mid(before, writer, mid) {
                Some(first) => {
                    let first = short(Some(self.truth.position(first)));
                    (Breach::AppliedTwice, format!("{} was applied at {first}", who()))
                }
                None => (Breach::WritesReordered, format!("{} after mid {last}", who())),
            };
            self.breach(out, breach, position, text);
        }
        if let Some(told) = self.truth.told(here, writer)
            && mid <= told
        {
            let text = format!("{} is applied, and last_mid {told} was told", who());
            self.breach(out, Breach::LastMidLied, position, text);
        }
        let Some(mutation) = self.mutations.get(&(writer, mid)) else {
            out.counts().foreign_commits += 1;
            return;
        };
        let mut breaches = Vec::new();
        if let Some(after) = mutation.after {
            out.counts().real_time_pairs += 1;
            if self.truth.leads_to(here, after) {
                breaches.push((Breach::RealTimeOrder, after));
            }
        }
        if let Some(read) = mutation.read {
            out.counts().writes_after_reads += 1;
            if self.truth.leads_to(here, read) {
                breaches.push((Breach::WriteBeforeRead, read));
            }
        }
        if let Some(base) = mutation.base.and_then(|base| self.truth.resolve(base)) {
            out.counts().writes_after_base += 1;
            if self.truth.leads_to(here, base) {
                breaches.push((Breach::WriteBeforeBase, base));
            }
        }
        // Of a refusal by a history that was lost nothing is left, and it may be heard after the loss.
        let refused = mutation
            .answer
            .filter(|answer| answer.what.is_err() && mutation.cuts == self.cuts);
        for (breach, other) in breaches {
            let other = short(Some(self.truth.position(other)));
            self.breach(out, breach, position, format!("{} comes before {other}", who()));
        }
        if refused.is_some() {
            self.breach(
                out,
                Breach::RefusedApplied,
                position,
                format!("{} had been refused", who()),
            );
        }
    }

    /// What the commit made of the workload's documents, and of leaves above one another.
    fn check_effects(&mut self, out: &mut Out, here: Node, effects: &[Effect]) {
        let position = Some(self.truth.position(here));
        let count = |doc: Option<&Arc<Doc>>| count_in(doc);
        let mut counted = None;
        let mut tags = 0;
        for effect in effects {
            let info = &self.truth.docs[effect.id];
            if let Some((above, below)) = effect.new.as_ref().and_then(|doc| doc.overlap()) {
                let text = format!("{} has {above} and {below}", info.path);
                self.breach(out, Breach::Overlap, position, text);
            }
            match &info.role {
                Role::Plain => {}
                Role::Counter => counted = Some(count(effect.new.as_ref()) - count(effect.old.as_ref())),
                Role::Tag(tag) => {
                    tags += 1;
                    let tag = *tag;
                    let applied = self.tags.entry(tag).or_default();
                    applied.at.push(here);
                    let often = applied.is_copied() && applied.times(&self.truth, here) <= applied.holders;
                    if effect.old.is_some() && !often {
                        self.breach(
                            out,
                            Breach::AppliedTwice,
                            position,
                            format!("the mutation of tag {}", tag.0),
                        );
                    }
                }
                Role::Half(other) => {
                    let other_half = self.truth.known_doc(other).and_then(|id| self.truth.doc_at(here, id));
                    let half = |doc: Option<&Arc<Doc>>| doc.and_then(|doc| doc.get(workload::HALF)).cloned();
                    if half(effect.new.as_ref()) != half(other_half) {
                        let text = format!("{} and {other} are not the same", info.path);
                        self.breach(out, Breach::TornCommit, position, text);
                    }
                }
            }
        }
        if counted.unwrap_or(0) != tags {
            let text = format!("counts {} up for {tags} counting mutations", counted.unwrap_or(0));
            self.breach(out, Breach::Miscounted, position, text);
        }
    }
}

/// The counter in the counter's document; 0 if there is none.
pub(crate) fn count_in(doc: Option<&Arc<Doc>>) -> i64 {
    match doc.and_then(|doc| doc.get(workload::COUNT)).map(|value| value.get()) {
        Some(ValueRef::Int(n)) => n,
        _ => 0,
    }
}
