//! A space's state in the hub: order, repeats, gaps, epochs. Plain data behind the hub's lock.

use super::{Answer, HubConfig, Joining, Subscriber};
use crate::frame;
use crate::metrics::Metrics;
use crate::outbox::{NONE, Stream};
use crate::store::{Lineage, LogEntry, SpaceState, View};
use bytes::Bytes;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use tidegate_protocol::form::Form;
use tidegate_protocol::{Epoch, Position, Seq, ServerMessage};

/// Commits kept that came before the ones between; more are dropped, since the log has them.
const AHEAD: usize = 1_024;

/// What taking in commits found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Found {
    /// Nothing new.
    Repeat,
    /// The next ones; `deliver` them.
    Next,
    /// Some are missing, or they are of another epoch; `deliver` what is there and read the log.
    Gap,
    /// The hub's position is none of the store's history.
    Lost,
}

/// The state. `position` is up to where commits have been put in order; `outgoing` is delivered at once.
#[derive(Default)]
pub(super) struct Inner {
    open: bool,
    position: Position,
    lineage: Lineage,
    ring: VecDeque<LogEntry>,
    ring_bytes: usize,
    ahead: BTreeMap<Seq, LogEntry>,
    outgoing: Vec<Event>,
    pub(super) groups: Vec<Group>,
    pub(super) filling: bool,
    /// Something was told of an epoch that is not the hub's last, since the log was last asked: what it
    /// answers then may be from before that.
    pub(super) doubt: bool,
}

/// What subscribers are told, in order.
#[derive(Clone, Debug)]
pub(super) enum Event {
    Epoch(Position),
    Commit(LogEntry),
}

/// Subscribers that get the same bytes.
pub(super) struct Group {
    pub(super) view: View,
    pub(super) form: Form,
    /// By connection, in the order in which they are served.
    pub(super) members: BTreeMap<u64, Member>,
}

/// A live subscription.
pub(super) struct Member {
    pub(super) to: Arc<dyn Subscriber>,
    pub(super) sub: u64,
    /// Its stream in the outbox.
    pub(super) stream: Stream,
    /// Up to where it has been handed everything.
    pub(super) at: Position,
    /// Up to where it knows that: by a change, `current` or `progress`.
    pub(super) told: Seq,
    /// Answers that wait for their change, and those behind them: a client tells by their order to which of two
    /// sendings of a mid each is. A commit is published before it is answered, so only a gap that is being filled,
    /// or an epoch that is being looked up, makes any wait.
    pub(super) held: Vec<Answer>,
}

impl Inner {
    pub(super) fn position(&self) -> Position {
        self.position
    }

    pub(super) fn last_epoch(&self) -> Epoch {
        self.lineage.last_epoch()
    }

    /// Starts at the head that was read after the space was entered; what came in meanwhile follows it.
    /// The caller delivers, which puts it into the ring: nobody is subscribed yet.
    pub(super) fn open(&mut self, state: SpaceState) -> Found {
        self.position = state.head;
        let meanwhile = std::mem::take(&mut self.lineage);
        self.lineage = state.lineage;
        self.open = true;
        if meanwhile.last_epoch() == Epoch(0) {
            return Found::Repeat;
        }
        let commits: Vec<_> = std::mem::take(&mut self.ahead).into_values().collect();
        self.hear(&meanwhile, &commits)
    }

    /// Puts commits that were published in order behind the position. The caller delivers.
    ///
    /// A publication may be late, and of a history that is no more. An epoch is taken up from the store alone:
    /// where one forks off, nothing in a publication tells which branch has been lost.
    pub(super) fn hear(&mut self, lineage: &Lineage, commits: &[LogEntry]) -> Found {
        if !self.open {
            if self.lineage.last_epoch() != lineage.last_epoch() {
                self.ahead.clear();
                self.lineage = lineage.clone();
            }
            self.stash(commits);
            return Found::Repeat;
        }
        if self.lineage.last_epoch() != lineage.last_epoch() {
            self.doubt = true;
            return Found::Gap;
        }
        self.take_in(commits)
    }

    /// Puts what the log answered in order behind the position, under the lineage as of that answer. The caller
    /// delivers. The log must be read by one reader, a read after the other, or the lineage could step back.
    pub(super) fn learn(&mut self, lineage: &Lineage, commits: &[LogEntry], metrics: &Metrics) -> Found {
        if self.lineage.last_epoch() != lineage.last_epoch() {
            if !leads_on(lineage, self.position) {
                return Found::Lost;
            }
            self.lineage = lineage.clone();
            self.part(metrics);
            // They may be of the epoch before, beyond its end.
            self.ahead.clear();
        }
        self.take_in(commits)
    }

    fn take_in(&mut self, commits: &[LogEntry]) -> Found {
        let before = self.position;
        self.stash(commits);
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
    fn part(&mut self, metrics: &Metrics) {
        let lineage = &self.lineage;
        for group in &mut self.groups {
            let lost = group.members.extract_if(.., |_, member| !leads_on(lineage, member.at));
            lost.for_each(|(_, member)| member.fall_behind(Behind::Lost, metrics));
        }
        self.groups.retain(|group| !group.members.is_empty());
    }

    fn stash(&mut self, commits: &[LogEntry]) {
        for commit in commits {
            if commit.seq > self.position.seq || !self.open {
                self.ahead.insert(commit.seq, commit.clone());
            }
        }
        while self.ahead.len() > AHEAD.max(commits.len()) {
            self.ahead.pop_last();
        }
    }

    /// Moves what follows the position, commits and epochs, to `outgoing`.
    fn advance(&mut self) {
        loop {
            while let Some(next) = self.lineage.next_epoch(self.position) {
                self.position.epoch = next.epoch;
                self.outgoing.push(Event::Epoch(next));
            }
            while self
                .ahead
                .first_key_value()
                .is_some_and(|(seq, _)| *seq <= self.position.seq)
            {
                self.ahead.pop_first();
            }
            match self.ahead.first_entry() {
                Some(first) if *first.key() == self.position.seq.next() => {
                    let commit = first.remove();
                    self.position.seq = commit.seq;
                    self.outgoing.push(Event::Commit(commit));
                }
                _ => return,
            }
        }
    }

    /// Hands `outgoing` to every member, and keeps its commits in the ring.
    pub(super) fn deliver(&mut self, n: u32, config: &HubConfig, metrics: &Metrics) {
        let events = std::mem::take(&mut self.outgoing);
        for group in &mut self.groups {
            group.deliver(n, &events, &self.lineage, metrics);
        }
        for event in events {
            if let Event::Commit(commit) = event {
                self.ring_bytes += commit.payload.len();
                self.ring.push_back(commit);
            }
        }
        while self.ring.len() > config.ring_commits || self.ring_bytes > config.ring_bytes {
            let Some(oldest) = self.ring.pop_front() else { break };
            self.ring_bytes -= oldest.payload.len();
        }
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
        let Some(missed) = self.since(at) else { return false };
        let Joining {
            to,
            sub,
            stream,
            view,
            form,
        } = who;
        self.leave(to.id());
        to.outbox().push([current]);
        let mut member = Member {
            to,
            sub,
            // What it has missed is the end of its catch-up, and not cut: else, where it does not fit, the next catch-up
            // would end there again.
            stream: NONE,
            at,
            told: at.seq,
            held: Vec::new(),
        };
        let index = self
            .groups
            .iter()
            .position(|group| group.view == view && group.form == form)
            .unwrap_or_else(|| {
                self.groups.push(Group {
                    view,
                    form,
                    members: BTreeMap::new(),
                });
                self.groups.len() - 1
            });
        let group = &mut self.groups[index];
        group.catch_up(n, &mut member, &missed, &self.lineage, metrics);
        member.stream = stream;
        group.members.insert(member.to.id(), member);
        true
    }

    /// What follows `at` up to the hub's position; `None` if the ring does not reach back to it or
    /// it is none of this history.
    fn since(&self, at: Position) -> Option<Vec<Event>> {
        if self.lineage.0.is_empty() && at.epoch == self.position.epoch {
            return Some(vec![]);
        }
        if !self.lineage.holds(at, self.position.seq.max(at.seq)) {
            return None;
        }
        let mut here = at;
        let mut events = Vec::new();
        let mut commits = self.ring.iter().skip_while(|commit| commit.seq <= at.seq);
        loop {
            while here.epoch != self.position.epoch && here.seq <= self.position.seq {
                let Some(next) = self.lineage.next_epoch(here) else {
                    break;
                };
                here.epoch = next.epoch;
                events.push(Event::Epoch(next));
            }
            if here.seq >= self.position.seq {
                return Some(events);
            }
            let commit = commits.next().filter(|commit| commit.seq == here.seq.next())?;
            here.seq = commit.seq;
            events.push(Event::Commit(commit.clone()));
        }
    }

    /// Starts over at another state: every subscription has to catch up.
    pub(super) fn lose(&mut self, state: SpaceState, metrics: &Metrics) {
        self.position = state.head;
        self.lineage = state.lineage;
        self.ring.clear();
        self.ring_bytes = 0;
        self.ahead.clear();
        self.outgoing.clear();
        for group in std::mem::take(&mut self.groups) {
            for (_, member) in group.members {
                member.fall_behind(Behind::Lost, metrics);
            }
        }
    }

    /// Sends an answer, or holds it until its change has been handed over. `Gap`: it is of an epoch that the
    /// hub does not know, which may be newer or lost; read the log, then `release`.
    pub(super) fn answer(&mut self, n: u32, to: &dyn Subscriber, answer: Answer, metrics: &Metrics) -> Found {
        let known = answer.at.is_none_or(|at| self.lineage.names(at.epoch));
        for group in &mut self.groups {
            if let Some(member) = group.members.get_mut(&to.id()) {
                let holds = |at: Position| self.lineage.holds(at, at.seq);
                let ahead = answer.at.is_some_and(|at| at.seq > member.at.seq && holds(at));
                if known && !ahead && member.held.is_empty() {
                    if !member.send_answer(group.form, n, answer)
                        && let Some(member) = group.members.remove(&to.id())
                    {
                        member.fall_behind(Behind::Slow, metrics);
                    }
                    return Found::Repeat;
                }
                // One behind others waits with them, and is never due if its commit is lost.
                let doubtful = answer.at.is_some_and(|at| !known || !holds(at));
                member.held.push(answer);
                self.doubt |= doubtful;
                let found = if doubtful { Found::Gap } else { Found::Repeat };
                return found;
            }
        }
        to.outbox().push([answer.frame]);
        Found::Repeat
    }

    /// Ends the subscriptions that hold answers whose changes will never come, since they are none of this history:
    /// who is told of such a commit has seen what is lost, and learns from a `current` what stands. Only after a
    /// read of the log that was begun when all of the answers were there.
    pub(super) fn release(&mut self, metrics: &Metrics) {
        let lineage = &self.lineage;
        for group in &mut self.groups {
            let told = group.members.extract_if(.., |_, member| {
                let mut held = member.held.iter().filter_map(|held| held.at);
                held.any(|at| !lineage.holds(at, at.seq))
            });
            told.for_each(|(_, member)| member.fall_behind(Behind::Lost, metrics));
        }
        self.groups.retain(|group| !group.members.is_empty());
    }

    pub(super) fn leave(&mut self, id: u64) {
        for group in &mut self.groups {
            if let Some(member) = group.members.remove(&id) {
                member.end();
            }
        }
        self.groups.retain(|group| !group.members.is_empty());
    }

    /// Tells members of filtered views how far they are, where nothing else has.
    pub(super) fn tell_progress(&mut self, n: u32, metrics: &Metrics) {
        for group in &mut self.groups {
            let form = group.form;
            let slow = group.members.extract_if(.., |_, member| {
                let progress = progress(&mut member.told, member.at.seq, form, n);
                progress.is_some_and(|progress| !member.hand(Some(progress), None))
            });
            slow.for_each(|(_, member)| member.fall_behind(Behind::Slow, metrics));
        }
        self.groups.retain(|group| !group.members.is_empty());
    }
}

/// Whether a history goes on from a position. That of another history at seq 0 is a place to catch up from, but
/// nothing follows it.
pub(super) fn leads_on(lineage: &Lineage, from: Position) -> bool {
    from == Position::START || lineage.names(from.epoch) && lineage.holds(from, from.seq)
}

/// Why a subscription has to catch up anew.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Behind {
    /// Its socket takes too little.
    Slow,
    /// It stands on a history that was lost, or was told of one.
    Lost,
}

/// A `progress` frame up to there, if the subscriber has been told less.
pub(super) fn progress(told: &mut Seq, seq: Seq, form: Form, n: u32) -> Option<Bytes> {
    (*told < seq).then(|| {
        *told = seq;
        frame::message(form, &ServerMessage::Progress { n, seq })
    })
}

impl Member {
    /// Sends what was held back: the changes that it waited for will not come this way.
    fn end(self) -> Arc<dyn Subscriber> {
        self.to.outbox().push(self.held.into_iter().map(|answer| answer.frame));
        self.to
    }

    /// It is no longer live, and has to catch up from where it stands.
    pub(super) fn fall_behind(self, why: Behind, metrics: &Metrics) {
        let counter = match why {
            Behind::Slow => &metrics.behind_slow,
            Behind::Lost => &metrics.behind_lost,
        };
        counter.inc();
        let (sub, at) = (self.sub, self.at);
        self.end().behind(sub, at);
    }

    /// Hands over a `progress` and an answer. `false`: the stream was cut, and the member stands at `at` again.
    fn hand(&mut self, progress: Option<Bytes>, answer: Option<Bytes>) -> bool {
        let mut out = self.to.outbox().hand(self.stream);
        if let Some(progress) = progress {
            out.follow(self.at, progress);
        }
        if let Some(answer) = answer {
            out.say(answer);
        }
        let handed = out.done();
        if handed.others {
            self.to.cut();
        }
        if let Some(behind) = handed.behind {
            self.at = behind;
        }
        handed.behind.is_none()
    }

    /// Sends an answer whose commit has been delivered, or was out of view. `false`: as for `hand`.
    fn send_answer(&mut self, form: Form, n: u32, answer: Answer) -> bool {
        let untold = answer.at.is_some_and(|at| self.told < at.seq);
        let progress = untold.then(|| progress(&mut self.told, self.at.seq, form, n)).flatten();
        self.hand(progress, Some(answer.frame))
    }
}
