//! A space's state in the hub: order, repeats, gaps, epochs. Plain data behind the hub's lock.

use super::ahead::Ahead;
use super::deliver::{Event, Round};
use super::members::{Behind, Held, Member, Members, Shard};
use super::ring::{Audience, Commit};
use super::{Answer, HubConfig, Joining, Subscriber};
use crate::metrics::Metrics;
use crate::outbox::NONE;
use crate::store::{Lineage, LogEntry, SpaceState, View};
use bytes::Bytes;
use std::collections::VecDeque;
use std::ops::Deref;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock};
use tidegate_protocol::form::Form;
use tidegate_protocol::{Epoch, Position, Seq};

/// What taking in commits found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Found {
    /// Nothing new.
    Repeat,
    /// The next ones; bring them to the members.
    Next,
    /// Some are missing, or they are of another epoch; bring what is there, and read the log.
    Gap,
    /// The hub's position is none of the store's history.
    Lost,
}

/// A lineage that is read outside the space's lock. Of spaces that have no history there is one for all.
#[derive(Clone)]
pub(super) struct History {
    lineage: Arc<Lineage>,
}

static NONE_YET: LazyLock<Arc<Lineage>> = LazyLock::new(Arc::default);

impl Default for History {
    fn default() -> Self {
        Self {
            lineage: NONE_YET.clone(),
        }
    }
}

impl From<Lineage> for History {
    fn from(lineage: Lineage) -> Self {
        if lineage.0.is_empty() {
            return Self::default();
        }
        Self {
            lineage: Arc::new(lineage),
        }
    }
}

impl Deref for History {
    type Target = Lineage;

    fn deref(&self) -> &Lineage {
        &self.lineage
    }
}

/// The state. `position` is up to where commits have been put in order.
#[derive(Default)]
pub(super) struct Inner {
    open: bool,
    position: Position,
    lineage: History,
    /// The last ones up to `position`, without a gap.
    ring: VecDeque<Arc<Commit>>,
    /// What its commits take, frames included, and those that a round still holds; from the first one on.
    ring_bytes: Option<Arc<AtomicUsize>>,
    /// Bytes of the payloads of those in it.
    payloads: usize,
    ahead: Ahead,
    members: Members,
    /// Tasks that bring shards up.
    pub(super) fanning: usize,
    pub(super) filling: bool,
    /// Something was told of an epoch that is not the hub's last, or was not told, since the log was last asked: what
    /// it answers then may be from before that. While the space is being opened: the log is to be asked then.
    pub(super) doubt: bool,
    /// The highest seq of an answer that came since the log was last asked, and that is beyond the position.
    awaited: Seq,
}

impl Inner {
    /// Of a space that has not been opened.
    pub(super) fn new(config: &HubConfig) -> Self {
        Self {
            members: Members::of(config.shard),
            ..Self::default()
        }
    }

    pub(super) fn position(&self) -> Position {
        self.position
    }

    /// Whether its head has been read.
    pub(super) fn is_open(&self) -> bool {
        self.open
    }

    pub(super) fn last_epoch(&self) -> Epoch {
        self.lineage.last_epoch()
    }

    /// Starts at the head that was read after the space was entered; what came in meanwhile follows it.
    pub(super) fn open(&mut self, state: SpaceState, metrics: &Metrics) -> Found {
        self.position = state.head;
        let meanwhile = std::mem::take(&mut self.lineage);
        self.lineage = state.lineage.into();
        self.open = true;
        if meanwhile.last_epoch() == Epoch(0) {
            return Found::Repeat;
        }
        let commits = self.ahead.take();
        self.hear(&meanwhile, &commits, metrics)
    }

    /// Puts commits that were published in order behind the position. The caller brings them to the members.
    ///
    /// A publication may be late, and of a history that is no more. An epoch is taken up from the store alone:
    /// where one forks off, nothing in a publication tells which branch has been lost.
    pub(super) fn hear(&mut self, lineage: &Lineage, commits: &[LogEntry], metrics: &Metrics) -> Found {
        if !self.open {
            if self.lineage.last_epoch() != lineage.last_epoch() {
                self.ahead = Ahead::default();
                self.lineage = lineage.clone().into();
            }
            self.stash(commits, metrics);
            return Found::Repeat;
        }
        if self.lineage.last_epoch() != lineage.last_epoch() {
            self.doubt = true;
            return Found::Gap;
        }
        self.take_in(commits, metrics)
    }

    /// The log is about to be read from here: what is in doubt now, the answer will settle.
    pub(super) fn ask(&mut self) -> Position {
        self.doubt = false;
        self.awaited = Seq::ZERO;
        self.position
    }

    /// Puts what the log answered in order behind the position, under the lineage and up to the head as of that answer.
    /// The caller brings it to the members. The log must be read by one reader, a read after the other, or the lineage
    /// could step back.
    pub(super) fn learn(&mut self, lineage: &Lineage, head: Seq, commits: &[LogEntry], metrics: &Metrics) -> Found {
        if self.lineage.last_epoch() != lineage.last_epoch() {
            if !leads_on(lineage, self.position) {
                return Found::Lost;
            }
            self.lineage = lineage.clone().into();
            self.part(metrics);
            // They may be of the epoch before, beyond its end.
            self.ahead = Ahead::default();
        }
        let found = self.take_in(commits, metrics);
        // The read may have been begun before such an answer's commit was there.
        self.doubt |= self.awaited > self.position.seq;
        if !self.doubt {
            self.release(head, metrics);
        }
        found
    }

    fn take_in(&mut self, commits: &[LogEntry], metrics: &Metrics) -> Found {
        let before = self.position;
        self.stash(commits, metrics);
        self.advance();
        if !self.ahead.is_empty() {
            Found::Gap
        } else if self.position == before {
            Found::Repeat
        } else {
            Found::Next
        }
    }

    /// Ends the subscriptions that stand where the lineage does not lead: one that went live ahead of the hub may
    /// have been brought what is lost now. The others go on.
    fn part(&self, metrics: &Metrics) {
        let lost = |member: &Member| !leads_on(&self.lineage, member.at);
        self.members.end_if(Behind::Lost, metrics, lost);
    }

    fn stash(&mut self, commits: &[LogEntry], metrics: &Metrics) {
        let (at, open) = (self.position.seq, self.open);
        let dropped = self.ahead.put(commits, |commit| commit.seq > at || !open);
        metrics.ahead_dropped.inc_by(dropped);
        // A read of the log that is under way may be from before them.
        self.doubt |= dropped > 0;
    }

    /// Moves the position over what follows it, epochs and commits, and keeps these in the ring.
    fn advance(&mut self) {
        loop {
            while let Some(next) = self.lineage.next_epoch(self.position) {
                self.position.epoch = next.epoch;
            }
            let Some(commit) = self.ahead.next(self.position.seq) else {
                return;
            };
            self.position.seq = commit.seq;
            let commit = Commit::new(commit, self.ring_bytes.get_or_insert_default().clone());
            self.payloads += commit.size;
            self.ring.push_back(Arc::new(commit));
        }
    }

    /// Forgets the oldest commits over the ring's bounds, of those that all members have been brought.
    pub(super) fn trim(&mut self, config: &HubConfig) {
        let least = self.members.least().unwrap_or(self.position.seq);
        while self.is_over(config) && self.ring.front().is_some_and(|oldest| oldest.seq <= least) {
            self.drop_oldest();
        }
    }

    /// Forgets the oldest commits, brought or not, before more of them are heard: where twice what the ring holds is still
    /// on its way, whoever has not been brought them catches up. Writers of this node wait before it comes to that.
    pub(super) fn forget(&mut self, config: &HubConfig) {
        self.trim(config);
        while self.ring.len() > 2 * config.ring_commits || self.payloads > 2 * config.ring_bytes {
            self.drop_oldest();
        }
    }

    fn drop_oldest(&mut self) {
        if let Some(oldest) = self.ring.pop_front() {
            self.payloads -= oldest.size;
        }
    }

    fn is_over(&self, config: &HubConfig) -> bool {
        let bytes = self
            .ring_bytes
            .as_ref()
            .map_or(0, |bytes| bytes.load(Ordering::Relaxed));
        self.ring.len() > config.ring_commits || bytes > config.ring_bytes
    }

    /// Whether more than the ring's bounds is on its way to members.
    pub(super) fn is_full(&mut self, config: &HubConfig) -> bool {
        if self.fanning == 0 {
            return false;
        }
        self.trim(config);
        self.is_over(config)
    }

    /// How many shards there are.
    pub(super) fn shards(&self) -> usize {
        self.members.shards()
    }

    /// Begins a round: the next shard in turn that is behind and that nobody is bringing, and what it is to be brought.
    /// It counts as brought, and must be locked before the space is let go.
    pub(super) fn begin_round(&mut self, round: &mut Round) -> Option<(Arc<Shard>, Arc<Audience>)> {
        let position = self.position;
        let slot = self.members.next_behind(position)?;
        let at = std::mem::replace(&mut slot.at, position);
        let found = (slot.shard.clone(), slot.audience.clone());
        self.read(at, round);
        Some(found)
    }

    /// Makes a subscription live; see `Lease::go_live`.
    pub(super) fn join(
        &mut self,
        n: u32,
        who: Joining,
        at: Position,
        lineage: &Lineage,
        current: Bytes,
        metrics: &Metrics,
    ) -> bool {
        let last = lineage.last_epoch();
        if last != self.lineage.last_epoch() && !self.lineage.names(last) {
            // One of the two was read before the other: the hub's reader finds out.
            self.doubt = true;
            return false;
        }
        let mut round = Round::default();
        self.read(at, &mut round);
        if !round.is_whole {
            return false;
        }
        let Joining {
            to,
            sub,
            stream,
            view,
            form,
            z,
        } = who;
        self.leave(to.id());
        let mut member = Member {
            outbox: to.outbox().clone(),
            id: to.id(),
            to,
            sub,
            // What it has missed is the end of its catch-up, and not cut: else, where it does not fit, the next catch-up
            // would end there again.
            stream: NONE,
            at,
            told: at.seq,
            held: Held::default(),
        };
        let position = self.position;
        let slot = self.members.with_room(&view, form, z, position);
        let (id, audience, shard) = (slot.id(), slot.audience.clone(), slot.shard.clone());
        let behind = std::mem::replace(&mut slot.at, position);
        round.catch_up(n, &audience, &mut member, current, metrics);
        member.stream = stream;
        if behind != position {
            // Whoever is in a shard stands where it does.
            let mut members = shard.lock();
            self.read(behind, &mut round);
            round.deliver(n, &audience, &mut members, metrics);
        }
        self.members.enter(id, member);
        true
    }

    /// Reads what follows `at` up to the space's position. It is not whole if the ring does not reach back to it, or
    /// it is none of this history.
    fn read(&self, at: Position, round: &mut Round) {
        round.from = at;
        round.lineage = self.lineage.clone();
        round.is_whole = self.follow(at, &mut round.events).is_some();
        if !round.is_whole {
            round.events.clear();
        }
    }

    fn follow(&self, at: Position, events: &mut Vec<Event>) -> Option<()> {
        if self.lineage.0.is_empty() && at.epoch == self.position.epoch {
            return Some(());
        }
        if !self.lineage.holds(at, self.position.seq.max(at.seq)) {
            return None;
        }
        let mut here = at;
        let from = self.ring.partition_point(|commit| commit.seq <= at.seq);
        let mut commits = self.ring.range(from..);
        loop {
            while here.epoch != self.position.epoch && here.seq <= self.position.seq {
                let Some(next) = self.lineage.next_epoch(here) else {
                    break;
                };
                here.epoch = next.epoch;
                events.push(Event::Epoch(next));
            }
            if here.seq >= self.position.seq {
                return Some(());
            }
            let commit = commits.next().filter(|commit| commit.seq == here.seq.next())?;
            here.seq = commit.seq;
            events.push(Event::Commit(Arc::clone(commit)));
        }
    }

    /// A commit of the log, if it is in the ring, and the members who get it in this view, form and compression.
    pub(super) fn kept(
        &self,
        seq: Seq,
        view: &View,
        form: Form,
        z: Option<usize>,
    ) -> (Option<Arc<Commit>>, Option<Arc<Audience>>) {
        let index = self.ring.binary_search_by_key(&seq, |kept| kept.seq);
        let commit = index.ok().map(|index| Arc::clone(&self.ring[index]));
        (commit, self.members.audience(view, form, z).cloned())
    }

    /// Starts over at another state: every subscription has to catch up.
    pub(super) fn lose(&mut self, state: SpaceState, metrics: &Metrics) {
        self.position = state.head;
        self.lineage = state.lineage.into();
        self.ring.clear();
        self.payloads = 0;
        self.ahead = Ahead::default();
        self.awaited = Seq::ZERO;
        self.members.end_all(self.position, metrics);
    }

    /// Sends an answer, or holds it until its change has been handed over. `Gap`: the hub does not know whether it
    /// will come, since it is of an epoch that the hub has not heard of, which may be newer or lost, or beyond the
    /// commits that it has: the answer to a repeat, whose commit nobody has published here. Read the log.
    pub(super) fn answer(&mut self, n: u32, to: &dyn Subscriber, answer: Answer, metrics: &Metrics) -> Found {
        let known = answer.at.is_none_or(|at| self.lineage.names(at.epoch));
        let slot = self.members.get(to.id());
        if let Some((slot, mut members)) = slot.map(|slot| (slot, slot.shard.lock()))
            && let Ok(index) = members.binary_search_by_key(&to.id(), |member| member.id)
        {
            let member = &mut members[index];
            let holds = |at: Position| self.lineage.holds(at, at.seq);
            let ahead = answer.at.is_some_and(|at| at.seq > member.at.seq && holds(at));
            if known && !ahead && member.held.is_empty() {
                if !member.send_answer(slot.audience.form, n, answer) {
                    members.remove(index).fall_behind(Behind::Slow, metrics);
                }
                return Found::Repeat;
            }
            // One behind others waits with them, and is never due if its commit is lost.
            let doubtful = answer.at.is_some_and(|at| !known || !holds(at));
            let beyond = answer.at.filter(|at| !doubtful && at.seq > self.position.seq);
            member.held.push(answer);
            self.doubt |= doubtful;
            self.awaited = self.awaited.max(beyond.map_or(Seq::ZERO, |at| at.seq));
            return match doubtful || beyond.is_some() {
                true => Found::Gap,
                false => Found::Repeat,
            };
        }
        to.outbox().push_later(answer.frame);
        Found::Repeat
    }

    /// Ends the subscriptions that hold answers whose changes will never come, since they are none of this history,
    /// which ends at `head` or where the space stands: who is told of such a commit has seen what is lost, and learns
    /// from a `current` what stands. Only after a read of the log that was begun when all of the answers were there.
    fn release(&self, head: Seq, metrics: &Metrics) {
        let end = head.max(self.position.seq);
        let told = |member: &Member| {
            let mut held = member.held.iter().filter_map(|held| held.at);
            held.any(|at| !self.lineage.holds(at, end))
        };
        self.members.end_if(Behind::Lost, metrics, told);
    }

    pub(super) fn leave(&mut self, id: u64) {
        if let Some(member) = self.members.leave(id) {
            member.end();
        }
    }

    /// Tells members of filtered views how far they are, where nothing else has.
    pub(super) fn tell_progress(&self, n: u32, metrics: &Metrics) {
        self.members.tell_progress(n, metrics);
    }
}

/// Whether a history goes on from a position. That of another history at seq 0 is a place to catch up from, but
/// nothing follows it.
pub(super) fn leads_on(lineage: &Lineage, from: Position) -> bool {
    from == Position::START || lineage.names(from.epoch) && lineage.holds(from, from.seq)
}
