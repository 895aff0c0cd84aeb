//! What clients send, are answered and show their apps.

use crate::event::{Docs, Fate, Tag};
use crate::report::{Breach, Out};
use crate::space::{Answer, Held, Move, Mutation, Own, Space, What, count_in};
use crate::trace::{Who, short, short_writer};
use crate::truth::{Covers, Node, START};
use crate::workload;
use tidegate_protocol::{ClientId, Code, Mid, Mode, Position, Sub, Value, Write, Writer};

impl Space {
    fn who(&self, replica: usize) -> Who {
        Who::Installation(self.replicas[replica].installation)
    }

    // What is sent, and answered.

    /// A `sub`: it says where the client stands, and what it has staged.
    pub(crate) fn asks(&mut self, out: &mut Out, replica: usize, sub: &Sub) {
        self.must_report(out, replica);
        let of = &mut self.replicas[replica];
        of.observed = true;
        of.log_to = None;
        if sub.client.is_some() {
            of.client = sub.client;
        }
        let Some(from) = &sub.from else {
            of.held = None;
            of.staged.clear();
            return;
        };
        let staged = from
            .cursor
            .as_ref()
            .and_then(|cursor| of.staged.iter().position(|(of, _)| of == cursor));
        of.staged.truncate(staged.map_or(0, |page| page + 1));
        let held = of.held.as_ref().map_or(Position::START, |held| held.position);
        if held != from.position {
            let text = format!(
                "{} says it is there, and was brought to {}",
                self.who(replica),
                short(Some(held))
            );
            self.breach(out, Breach::Misplaced, Some(from.position), text);
        }
    }

    /// A `write`.
    pub(crate) fn writes(&mut self, out: &mut Out, replica: usize, writer: Writer, write: &Write) {
        self.must_report(out, replica);
        let (client, mid) = (write.head.client, write.head.mid);
        self.replicas[replica].client = Some(client);
        let own = workload::tag_of(&write.ops).and_then(|tag| self.replicas[replica].by_tag.get(&tag).copied());
        if let Some(own) = own {
            let own = &mut self.replicas[replica].own[own];
            if own.sent != Some((client, mid)) {
                own.sent = Some((client, mid));
                own.covered = false;
            }
        }
        self.clients.insert((replica, client), writer);
        let highest = self.sent_max.entry(writer).or_default();
        *highest = mid.max(*highest);
        let known = self.mutations.get(&(writer, mid));
        if known.is_some_and(|known| known.key == write.head.key) {
            out.counts().resent += 1;
            return;
        }
        if known.is_some() {
            // Two storages count alike: which of the two is applied, nobody can say by writer and mid.
            out.counts().contested += 1;
            return;
        }
        out.counts().mutations += 1;
        let held = self.replicas[replica].held.as_ref();
        let mutation = Mutation {
            replica,
            key: write.head.key,
            after: self.acked,
            read: held.and_then(|held| self.truth.resolve(held.position)),
            base: write.base,
            cuts: self.cuts,
            answer: None,
            lost: false,
        };
        self.mutations.insert((writer, mid), mutation);
    }

    /// An `ack`. Says whether there is such a commit, or may be.
    pub(crate) fn acked(
        &mut self,
        out: &mut Out,
        replica: usize,
        (client, writer, mid): (ClientId, Writer, Mid),
        position: Position,
    ) -> bool {
        let name = || format!("{} mid {mid}", short_writer(writer));
        let highest = self.replicas[replica].acked.entry(client).or_default();
        *highest = mid.max(*highest);
        let Some(at) = self.place(out, position).filter(|at| *at != START) else {
            self.breach(
                out,
                Breach::AckedMissing,
                Some(position),
                format!("{}: there is no such place", name()),
            );
            return false;
        };
        out.counts().acks += 1;
        match self.truth.record(at).map(|record| (record.writer, record.mid)) {
            Some(there) if there == (writer, mid) => {}
            Some((other, of)) => {
                let text = format!("{} is acked there, and it is {} mid {of}", name(), short_writer(other));
                self.breach(out, Breach::AckedMissing, Some(position), text);
                return false;
            }
            None if out.account => {
                self.breach(
                    out,
                    Breach::AckedMissing,
                    Some(position),
                    format!("{} is acked and was not applied", name()),
                );
                return false;
            }
            None => {
                self.acks_ahead.insert(at, (writer, mid));
            }
        }
        self.acked = match self.acked {
            // Where the two are on different branches, the later epoch's is what is true now.
            Some(old) if self.truth.leads_to(at, old) => Some(old),
            Some(old) if !self.truth.leads_to(old, at) && old.epoch > at.epoch => Some(old),
            _ => Some(at),
        };
        let event = out.event();
        let Some(mutation) = self.mutations.get_mut(&(writer, mid)) else {
            return true;
        };
        let before = mutation.answer;
        mutation.answer = Some(Answer {
            what: Ok(position),
            event,
        });
        if let Some(Ok(before)) = before.map(|before| before.what) {
            out.counts().repeated_acks += 1;
            let place = self.truth.resolve(before);
            let apart =
                |place: &Node| *place != at && (self.truth.leads_to(*place, at) || self.truth.leads_to(at, *place));
            if place.is_some_and(|place| apart(&place)) {
                let text = format!("{} is acked a second time, first at {}", name(), short(Some(before)));
                self.breach(out, Breach::AppliedTwice, Some(position), text);
            }
        }
        true
    }

    /// A refusal that consumes the mid.
    pub(crate) fn refused(&mut self, out: &mut Out, (writer, mid): (Writer, Mid), code: Code) {
        out.counts().refusals += 1;
        let (event, what) = (out.event(), Err(code));
        if let Some(mutation) = self.mutations.get_mut(&(writer, mid)) {
            mutation.answer = Some(Answer { what, event });
        }
        if let Some(at) = self.find_mid(self.truth.tip, writer, mid) {
            let text = format!("{} mid {mid} is refused, {code}", short_writer(writer));
            self.breach(out, Breach::RefusedApplied, Some(self.truth.position(at)), text);
        }
    }

    /// The client is told of a loss.
    pub(crate) fn owes(&mut self, replica: usize, client: ClientId, from: Mid) {
        let of = &mut self.replicas[replica];
        if of.client == Some(client) {
            of.owes = Some((client, from));
        }
    }

    /// What the client knows is reported before it does anything else.
    fn must_report(&mut self, out: &mut Out, replica: usize) {
        let of = &mut self.replicas[replica];
        if let Some((client, from)) = of.owes.take()
            && !of.own.is_empty()
        {
            let text = format!(
                "{} was told that mids of {client} from {from} are gone",
                self.who(replica)
            );
            self.breach(out, Breach::LossUnreported, None, text);
        }
    }

    /// A `current` says what of the client's own mutations is in the state. With `acked`, the highest mid acked
    /// before the `sub` that it is the first to answer, it may tell of a loss.
    pub(crate) fn told_last_mid(
        &mut self,
        replica: usize,
        client: ClientId,
        last_mid: Option<Mid>,
        mode: Mode,
        acked: Option<Mid>,
    ) {
        let reached = last_mid.unwrap_or(Mid::ZERO);
        let of = &mut self.replicas[replica];
        for own in &of.open {
            let own = &mut of.own[*own];
            if let Some((_, mid)) = own.sent.filter(|(sent_by, _)| *sent_by == client) {
                own.covered = mid <= reached || own.covered && mode != Mode::Reset;
            }
        }
        let aged = last_mid.is_none() && self.aged.is_some();
        if acked.is_some_and(|acked| reached < acked) && !aged {
            self.owes(replica, client, reached.next());
        }
    }

    // Where readers stand.

    /// A read ends there that was asked for when `asked` had been acked.
    pub(crate) fn recent(&mut self, out: &mut Out, who: Who, asked: Option<Node>, at: Node, position: Position) {
        let Some(asked) = asked else { return };
        out.counts().recent_reads += 1;
        if at != asked && self.truth.leads_to(at, asked) {
            let acked = short(Some(self.truth.position(asked)));
            let text = format!("{who} reads it, and {acked} had been acked when it asked");
            self.breach_unless_lost(out, asked, Breach::StaleRead, Some(position), text);
        }
    }

    /// A replica that stood at `before` is brought to `at`.
    pub(crate) fn not_back(&mut self, out: &mut Out, who: Who, before: Position, at: Node, position: Position) {
        if let Some(old) = self.truth.resolve(before)
            && old != at
            && self.truth.leads_to(at, old)
        {
            let text = format!("{who} stood at {}", short(Some(before)));
            self.breach_unless_lost(out, old, Breach::Backwards, Some(position), text);
        }
    }

    /// The storage holds that now: its own of before, or another.
    pub(crate) fn stands(&mut self, out: &mut Out, replica: usize, held: Option<Held>, copied: bool) {
        let of = &mut self.replicas[replica];
        of.staged.clear();
        let before = std::mem::replace(&mut of.held, held.clone());
        of.client = None;
        of.owes = None;
        // Neither the last ack nor the last `current` need have been stored.
        of.acked.clear();
        for own in &mut of.own {
            own.unsure |= std::mem::take(&mut own.covered);
        }
        if copied {
            return;
        }
        // What is stored is what was delivered, or less.
        let place = |held: &Option<Held>| match held {
            Some(held) => self.truth.resolve(held.position),
            None => Some(START),
        };
        // Of a purge that was not stored nothing is left.
        if let (Some(is), Some(was)) = (place(&held), place(&before))
            && before.is_some()
            && !self.truth.leads_to(is, was)
            && !self.was_reset(&held)
        {
            let is = held.map(|held| held.position);
            let text = format!(
                "{} was brought to {}",
                self.who(replica),
                short(before.map(|held| held.position))
            );
            self.breach(out, Breach::Misplaced, is, text);
        }
    }

    /// Whether a state may be one from before a reset that was not stored any more.
    fn was_reset(&self, held: &Option<Held>) -> bool {
        let at = held.as_ref().and_then(|held| self.truth.resolve(held.position));
        at.is_some_and(|at| self.truth.record(at).is_some_and(|record| record.cut))
    }

    // What apps issue and are told.

    pub(crate) fn issued(&mut self, replica: usize, tag: Tag, counts: bool) {
        let elsewhere = self.replicas.iter().any(|replica| replica.by_tag.contains_key(&tag));
        if counts {
            self.tags.entry(tag).or_default().copied |= elsewhere;
        }
        let of = &mut self.replicas[replica];
        let index = of.own.len();
        of.by_tag.insert(tag, index);
        if counts {
            of.open.push(index);
        }
        of.own.push(Own {
            tag,
            counts,
            fate: None,
            event: 0,
            lost: false,
            sent: None,
            covered: false,
            unsure: false,
        });
    }

    pub(crate) fn settled(&mut self, out: &mut Out, replica: usize, tag: Tag, fate: Fate) {
        let of = &mut self.replicas[replica];
        let Some(index) = of.by_tag.get(&tag).copied() else {
            let text = format!("{} is told of tag {}, which was not issued", self.who(replica), tag.0);
            self.breach(out, Breach::AnswerToNothing, None, text);
            return;
        };
        out.counts().fates += 1;
        let own = &mut of.own[index];
        own.fate = Some(fate);
        own.event = out.event();
        if fate != Fate::Acked {
            of.open.retain(|open| *open != index);
        }
    }

    pub(crate) fn lost(&mut self, out: &mut Out, replica: usize, client: ClientId, (from, through): (Mid, Mid)) {
        let of = &mut self.replicas[replica];
        of.owes = of.owes.filter(|(owed, _)| *owed != client);
        // It has given that id up: what is still answered to it is no news.
        of.client = of.client.filter(|present| *present != client);
        for own in &mut of.own {
            own.lost |= own.fate == Some(Fate::Acked)
                && own
                    .sent
                    .is_some_and(|(by, mid)| by == client && from <= mid && mid <= through);
        }
        let own = &of.own;
        of.open.retain(|open| !own[*open].lost);
        let installation = of.installation;
        // Of which writer the client is, its mutations say.
        let writer = self.writer_of(replica, client);
        let mut falsely = None;
        for (writer, mid) in writer
            .into_iter()
            .flat_map(|writer| (from.get()..=through.get()).map(move |mid| (writer, mid)))
        {
            let Some(mutation) = Mid::new(mid).and_then(|mid| self.mutations.get_mut(&(writer, mid))) else {
                continue;
            };
            let Some(Answer {
                what: Ok(position),
                event,
                ..
            }) = mutation.answer
            else {
                continue;
            };
            mutation.lost = true;
            let aged = self.aged.is_some_and(|aged| event < aged);
            let at = self.truth.resolve(position);
            match at.and_then(|at| self.truth.record(at)) {
                Some(record) if !record.cut && !aged => falsely = Some((mid, position)),
                _ => out.counts().losses += 1,
            }
        }
        if let Some((mid, position)) = falsely {
            let at = self.truth.resolve(position);
            let text = format!("{} reports mid {mid} lost", Who::Installation(installation));
            if out.account {
                self.breach(out, Breach::LostFalsely, Some(position), text);
            } else if let Some(at) = at {
                self.breach_unless_lost(out, at, Breach::LostFalsely, Some(position), text);
            }
        }
    }

    fn writer_of(&self, replica: usize, client: ClientId) -> Option<Writer> {
        self.clients.get(&(replica, client)).copied()
    }

    // What apps see.

    /// A local view: the confirmed count and every own counting mutation that is not in it, once.
    pub(crate) fn shown(
        &mut self,
        out: &mut Out,
        replica: usize,
        position: Option<Position>,
        count: i64,
        pairs: &[(Option<&Value>, Option<&Value>)],
    ) {
        self.must_report(out, replica);
        let who = self.who(replica);
        for (a, b) in pairs {
            out.counts().pairs += 1;
            if a != b {
                self.breach(
                    out,
                    Breach::TornView,
                    position,
                    format!("{who} shows {a:?} beside {b:?}"),
                );
            }
        }
        self.stands_at(out, replica, position);
        let covers = self.covered(replica);
        let place = position.map_or(Some(START), |position| self.place(out, position));
        let Some(at) = place else {
            out.counts().unverified += 1;
            return;
        };
        let known = self.truth.knows(at);
        let hidden = !covers_counter(&covers);
        let (mut open, mut perhaps) = (Vec::new(), 0);
        let aged = self.aged;
        let of = &mut self.replicas[replica];
        let staged = !of.staged.is_empty();
        let crosses = of.log_to.is_some_and(|to| position.is_some_and(|at| at.epoch != to));
        let (truth, tags, clients, mutations) = (&self.truth, &self.tags, &self.clients, &self.mutations);
        // Whether the state is known to hold the very commit that the ack names.
        let is_ack_in = |own: &Own| {
            if crosses {
                return None;
            }
            let (client, mid) = own.sent?;
            let answer = mutations.get(&(*clients.get(&(replica, client))?, mid))?.answer?;
            Some(truth.leads_to(truth.resolve(answer.what.ok()?)?, at))
        };
        of.open.retain(|index| {
            let own = &of.own[*index];
            let applied = tags.get(&own.tag);
            let acked = own.fate == Some(Fate::Acked);
            let is_in = known && applied.is_some_and(|applied| applied.is_in(truth, at));
            let copied = applied.is_some_and(|applied| applied.copied);
            // Acked, and its commit is of no history any more: whether that is reported is judged elsewhere.
            let cut = |node: &Node| truth.record(*node).is_some_and(|record| record.cut);
            let gone = acked && !is_in && applied.is_some_and(|a| !a.at.is_empty() && a.at.iter().all(cut));
            let aged = acked && aged.is_some_and(|aged| own.event < aged);
            // Without the counter in view nothing shows whose commits brought it here, and an edit that needs the
            // counter shows nothing once the mutation that made it here is confirmed. Nor does it show that a commit
            // that is here was lost and is acked as another one, further on: only the ack's position ends that overlay.
            if copied || hidden || gone || aged || own.unsure || acked && position.is_none() {
                perhaps += 1;
                return !(hidden && acked && is_ack_in(own) == Some(true));
            } else if acked && is_in {
                // It has left the overlay for good, unless it is lost and reported.
                return false;
            } else if !own.covered {
                open.push(own.tag);
            }
            true
        });
        let what = What::View {
            count,
            open,
            perhaps,
            staged,
        };
        self.step(
            out,
            Move {
                who,
                from: at,
                to: at,
                covers,
                what,
            },
        );
    }

    /// Whether a view shows the count that is confirmed there, and of the open mutations each that is not in it.
    pub(crate) fn judge_view(
        &self,
        out: &mut Out,
        (who, at, covers): (Who, Node, &Covers),
        count: i64,
        open: &[Tag],
        (perhaps, staged): (i64, bool),
    ) {
        let counter = self
            .truth
            .known_doc(workload::COUNTER)
            .filter(|_| covers_counter(covers));
        let confirmed = counter.map_or(0, |id| count_in(self.truth.doc_at(at, id)));
        let is_in = |tag: &&Tag| self.tags.get(tag).is_some_and(|applied| applied.is_in(&self.truth, at));
        let certain = (open.len() - open.iter().filter(is_in).count()).cast_signed() as i64;
        out.counts().views += 1;
        out.counts().overlaid_views += u64::from(certain > 0);
        out.counts().loose_views += u64::from(perhaps > 0);
        let expected = confirmed + certain;
        if count < expected || count > expected + perhaps {
            let breach = match staged {
                true => Breach::StagedShown,
                false if count < expected => Breach::NotCounted,
                false => Breach::CountedTwice,
            };
            let text = format!("{who} shows {count}, should show {confirmed} confirmed and {certain} of its own");
            self.breach(out, breach, Some(self.truth.position(at)), text);
        }
    }

    fn covered(&self, replica: usize) -> Covers {
        let held = self.replicas[replica].held.as_ref();
        held.map_or(Covers::All, |held| held.covers.clone())
    }

    /// Whether a client is where what it was sent makes it. Of one whose connections nobody observes, what it says
    /// is believed.
    fn stands_at(&mut self, out: &mut Out, replica: usize, position: Option<Position>) {
        let of = &self.replicas[replica];
        let held = of.held.as_ref().map(|held| held.position);
        if of.observed && held != position {
            let is = short(held);
            let text = format!("{} says it is there, and was brought to {is}", self.who(replica));
            self.breach(out, Breach::Misplaced, position, text);
        }
    }

    /// All that is confirmed.
    pub(crate) fn holds(&mut self, out: &mut Out, replica: usize, position: Option<Position>, docs: &Docs) {
        self.stands_at(out, replica, position);
        let early = !self.replicas[replica].staged.is_empty();
        self.compare_docs(out, replica, position, docs, early.then_some(Breach::StagedShown));
    }

    fn compare_docs(
        &mut self,
        out: &mut Out,
        replica: usize,
        position: Option<Position>,
        docs: &Docs,
        named: Option<Breach>,
    ) {
        let who = self.who(replica);
        let covers = self.covered(replica);
        let Some(at) = position.map_or(Some(START), |position| self.truth.resolve(position)) else {
            out.counts().unverified += 1;
            return;
        };
        if self.truth.knows(at) {
            out.counts().held += 1;
            self.judge_state(out, who, at, &covers, docs, named);
        } else {
            let what = What::State(docs.clone());
            self.step(
                out,
                Move {
                    who,
                    from: at,
                    to: at,
                    covers,
                    what,
                },
            );
        }
    }

    // The end.

    pub(crate) fn at_rest(&mut self, out: &mut Out, position: Position, docs: &Docs) {
        self.rest = Some(position);
        let Some(at) = self.place(out, position) else {
            self.breach(
                out,
                Breach::Invented,
                Some(position),
                "the server rests there".to_owned(),
            );
            return;
        };
        if out.account && self.truth.canonical(self.truth.tip) != at {
            let tip = short(Some(self.truth.position(self.truth.tip)));
            self.breach(
                out,
                Breach::WrongState,
                Some(position),
                format!("the server rests there, its head is {tip}"),
            );
        }
        if self.truth.knows(at) {
            out.counts().held += 1;
            self.judge_state(out, Who::Server, at, &Covers::All, docs, None);
        } else {
            let covers = Covers::All;
            let what = What::State(docs.clone());
            self.step(
                out,
                Move {
                    who: Who::Server,
                    from: at,
                    to: at,
                    covers,
                    what,
                },
            );
        }
    }

    pub(crate) fn rests(
        &mut self,
        out: &mut Out,
        replica: usize,
        position: Option<Position>,
        docs: &Docs,
        queued: usize,
    ) {
        self.must_report(out, replica);
        out.counts().at_rest += 1;
        let who = self.who(replica);
        if queued > 0 {
            self.breach(
                out,
                Breach::StillQueued,
                position,
                format!("{queued} mutations of {who}"),
            );
        }
        self.stands_at(out, replica, position);
        let place = |position: Option<Position>| position.map_or(Some(START), |position| self.truth.resolve(position));
        if self.rest.is_some() && place(position) != place(self.rest) {
            let text = format!("{who} rests there, the server at {}", short(self.rest));
            self.breach(out, Breach::Diverged, position, text);
        }
        self.compare_docs(out, replica, position, docs, Some(Breach::Diverged));
    }

    /// Nothing more will happen.
    pub(crate) fn finish(&mut self, out: &mut Out) {
        self.settle_rest(out);
        let tip = self
            .rest
            .and_then(|rest| self.truth.resolve(rest))
            .unwrap_or(self.truth.canonical(self.truth.tip));
        for (at, breach, position, text) in std::mem::take(&mut self.doubts) {
            if self.truth.leads_to(at, tip) {
                self.breach(out, breach, position, text);
            }
        }
        for replica in 0..self.replicas.len() {
            self.must_report(out, replica);
        }
        self.judge_answers(out, tip);
        self.judge_fates(out, tip);
    }

    /// What was acked is there, or was lost and reported.
    fn judge_answers(&self, out: &mut Out, tip: Node) {
        let mut mutations: Vec<_> = self.mutations.iter().collect();
        mutations.sort_by_key(|(name, _)| **name);
        for ((writer, mid), mutation) in mutations {
            let who = || format!("{} mid {mid}", short_writer(*writer));
            let Some(answer) = mutation.answer else {
                let silent = self.replicas[mutation.replica].own.is_empty();
                if silent && self.rest.is_some() {
                    self.breach(
                        out,
                        Breach::Vanished,
                        None,
                        format!("{} was sent and never answered", who()),
                    );
                }
                continue;
            };
            let Ok(position) = answer.what else { continue };
            let Some(at) = self.truth.resolve(position).filter(|at| self.truth.knows(*at)) else {
                out.counts().unverified += 1;
                continue;
            };
            if self.truth.leads_to(at, tip) || self.find_mid(tip, *writer, *mid).is_some() {
                continue;
            }
            if !out.account && !self.truth.rooted(tip) {
                out.counts().unverified += 1;
                continue;
            }
            let lost = self.truth.record(at).is_some_and(|record| record.cut);
            if !lost {
                self.breach(out, Breach::AckedMissing, Some(position), format!("{} is gone", who()));
            } else if out.durable {
                self.breach(out, Breach::AckedLost, Some(position), who());
            } else if mutation.lost {
            } else if self.aged.is_some_and(|aged| answer.event < aged) {
                out.counts().aged_losses += 1;
            } else {
                out.counts().unheard_losses += 1;
            }
        }
    }

    /// What apps were told is what became of it.
    fn judge_fates(&self, out: &mut Out, tip: Node) {
        for replica in &self.replicas {
            for own in &replica.own {
                let name = || format!("tag {} of installation {}", own.tag.0, replica.installation.0);
                let applied = self.tags.get(&own.tag).filter(|applied| !applied.copied);
                let there = applied.and_then(|applied| applied.at.iter().find(|at| self.truth.leads_to(**at, tip)));
                match own.fate {
                    None => {
                        self.breach(out, Breach::Vanished, None, format!("{} has no end", name()));
                    }
                    Some(Fate::Refused | Fate::Cancelled) if there.is_some() => {
                        let at = there.map(|at| self.truth.position(*at));
                        self.breach(out, Breach::RefusedApplied, at, format!("{}: {:?}", name(), own.fate));
                    }
                    // Only by the store's own account is it known to be missing.
                    Some(Fate::Acked)
                        if out.account && own.counts && applied.is_some_and(|applied| applied.at.is_empty()) =>
                    {
                        self.breach(out, Breach::AckedMissing, None, name());
                    }
                    _ => {}
                }
            }
        }
    }
}

fn covers_counter(covers: &Covers) -> bool {
    match covers {
        Covers::All => true,
        Covers::Only(list) => list
            .iter()
            .any(|name| workload::COUNTER.strip_suffix("/c") == Some(name.as_str())),
    }
}
