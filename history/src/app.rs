//! What clients send, are answered and show their apps.

use crate::erasure::Since;
use crate::event::{Docs, Fate, Tag};
use crate::fold::Map;
use crate::report::{Breach, Out};
use crate::space::{Acked, Answer, Bearer, Covered, Held, Move, Mutation, Own, Space, What};
use crate::trace::{Who, short, short_writer};
use crate::truth::{Covers, Node, START};
use crate::workload;
use tidegate_protocol::{ClientId, Code, Mid, Mode, Position, Sub, Write, Writer};

impl Space {
    pub(crate) fn who(&self, replica: usize) -> Who {
        Who::Installation(self.replicas[replica].installation)
    }

    // What is sent, and answered.

    /// A `sub`: it says where the client stands, and what it has staged.
    pub(crate) fn asks(&mut self, out: &mut Out, replica: usize, sub: &Sub, client: Option<(ClientId, Writer)>) {
        self.must_report(out, replica);
        if let Some((client, writer)) = client {
            self.bears(replica, client, writer);
        }
        let of = &mut self.replicas[replica];
        of.observed = true;
        let Some(from) = &sub.from else {
            of.staged.clear();
            let held = of.held.take().filter(|_| !of.own.is_empty());
            if let Some(held) = held {
                let text = format!("{} says it is nowhere, and was brought there", self.who(replica));
                self.breach(out, Breach::Misplaced, Some(held.position), text);
            }
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

    /// The replica's client is this one.
    fn bears(&mut self, replica: usize, client: ClientId, writer: Writer) {
        let of = &mut self.replicas[replica];
        if of.client != Some(client) {
            of.client = Some(client);
            (of.sent, of.told) = (Mid::ZERO, Mid::ZERO);
        }
        let storage = of.storage;
        let bearer = self.clients.entry(client).or_insert(Bearer {
            storage,
            writer,
            shared: false,
        });
        bearer.shared |= bearer.storage != storage;
    }

    /// A `write`.
    pub(crate) fn writes(&mut self, out: &mut Out, replica: usize, writer: Writer, write: &Write) {
        self.must_report(out, replica);
        let (client, mid) = (write.head.client, write.head.mid);
        self.bears(replica, client, writer);
        let of = &mut self.replicas[replica];
        of.sent = of.sent.max(mid);
        if let Some(index) = workload::tag_of(&write.ops).and_then(|tag| of.by_tag.get(&tag).copied()) {
            of.by_name.insert((client, mid), index);
            let own = &mut of.own[index];
            if own.sent != Some((client, mid)) {
                // Of what was copied it may be the first storage's name, and no news. What a `last_mid` covered may have
                // been renumbered, and is hidden still; and so may what another storage's commit was taken for.
                let former = own.sent.and_then(|(client, _)| self.clients.get(&client));
                own.unsure &= own.sent.is_none();
                own.unsure |= own.covered.is_some() || former.is_some_and(|bearer| bearer.shared);
                own.sent = Some((client, mid));
                (own.heard, own.covered, own.renounced) = (None, None, false);
            }
        }
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
        let of = &mut self.replicas[replica];
        of.acked.entry(client).or_default().note(mid, out.event());
        let reported = of.lost.get(&client).is_some_and(|from| *from <= mid);
        self.hears(replica, (client, mid), Ok(position));
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
        mutation.lost |= reported;
        let before = mutation.answer;
        // Answers to two sendings may change places: what its app was told is that it was refused.
        if before.is_none_or(|before| before.what.is_ok()) {
            mutation.answer = Some(Answer {
                what: Ok(position),
                event,
            });
        }
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
    pub(crate) fn refused(
        &mut self,
        out: &mut Out,
        replica: usize,
        (client, writer, mid): (ClientId, Writer, Mid),
        code: Code,
    ) {
        out.counts().refusals += 1;
        self.hears(replica, (client, mid), Err(code));
        let (event, what) = (out.event(), Err(code));
        let mut lost = false;
        if let Some(mutation) = self.mutations.get_mut(&(writer, mid)) {
            mutation.answer = Some(Answer { what, event });
            // By a history that was lost: it may have been sent again, and applied, before that is heard.
            lost = mutation.cuts < self.cuts;
        }
        let tip = self.truth.tip;
        if let Some(at) = self
            .truth
            .find_mid(tip, writer, mid)
            .filter(|at| !lost && self.truth.holds(*at, tip))
        {
            let text = format!("{} mid {mid} is refused, {code}", short_writer(writer));
            self.breach(out, Breach::RefusedApplied, Some(self.truth.position(at)), text);
        }
    }

    /// An answer reaches the storage that sent this.
    fn hears(&mut self, replica: usize, name: (ClientId, Mid), answer: Result<Position, Code>) {
        let of = &mut self.replicas[replica];
        let own = of.by_name.get(&name).map(|index| &mut of.own[*index]);
        if let Some(own) = own.filter(|own| own.sent == Some(name)) {
            own.heard = Some(answer);
            own.stood = of.held.as_ref().map(|held| held.position.epoch);
        }
    }

    /// The client is told to take a new id. What it sent and goes on to send is as if it had never been sent.
    pub(crate) fn disowned(&mut self, replica: usize, client: ClientId) {
        let of = &mut self.replicas[replica];
        if of.client.is_some_and(|present| present != client) {
            return;
        }
        // It may have given that id up before, and then what a `last_mid` covered is hidden still.
        let is_certain = of.client.take().is_some();
        for index in &of.open {
            let own = &mut of.own[*index];
            if own.fate.is_none() && own.sent.is_some_and(|(by, _)| by == client) {
                let may_be_hidden = own.unsure || own.covered.is_some();
                own.sent = None;
                (own.heard, own.covered, own.unsure) = (None, None, !is_certain && may_be_hidden);
                own.renounced = may_be_hidden;
            }
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
    pub(crate) fn must_report(&mut self, out: &mut Out, replica: usize) {
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

    /// A `current` says what of the client's own mutations is in the state. With `acked`, what had been acked
    /// before the `sub` that it is the first to answer, it may tell of a loss.
    pub(crate) fn told_last_mid(
        &mut self,
        replica: usize,
        client: ClientId,
        last_mid: Option<Mid>,
        (mode, covered): (Mode, Covered),
        acked: Option<Acked>,
    ) {
        let reached = last_mid.unwrap_or(Mid::ZERO);
        let of = &mut self.replicas[replica];
        if of.client == Some(client) {
            of.told = of.told.max(reached);
        }
        for index in &of.open {
            let own = &mut of.own[*index];
            let Some((sent_by, mid)) = own.sent else { continue };
            if sent_by != client {
                // Under an id that was given up nobody tells whether it is in the state.
                own.unsure |= acked.is_some() && own.fate == Some(Fate::Acked);
                // And what said that it was may not hold for another state.
                own.unsure |= mode == Mode::Reset && own.fate.is_none() && own.covered.take().is_some();
                continue;
            }
            // One that was acked may have been purged, which nothing takes back.
            own.unsure &= own.fate == Some(Fate::Acked);
            if mid <= reached {
                own.covered = Some(match own.covered {
                    Some(_) if mode == Mode::Reset => Covered { again: true, ..covered },
                    Some(first) => first,
                    None => covered,
                });
            } else if mode == Mode::Reset && own.covered.take().is_some() {
                own.uncovered = Some(covered);
            }
        }
        let Some(acked) = acked else { return };
        let aged = last_mid.is_none() && self.aged.is_some_and(|aged| acked.event < aged);
        if reached < acked.mid && !aged {
            self.owes(replica, client, reached.next());
        }
    }

    /// All that it held is to be forgotten.
    pub(crate) fn purged(&mut self, replica: usize) {
        let of = &mut self.replicas[replica];
        of.staged.clear();
        let Some(held) = of.held.take() else { return };
        let at = self.truth.resolve(held.position);
        of.purged = Some(held);
        for index in &of.open {
            let own = &mut of.own[*index];
            let applied = self.tags.get(&own.tag);
            let was_in = applied.is_some_and(|applied| at.is_none_or(|at| applied.is_in(&self.truth, at)));
            let acked = own.fate == Some(Fate::Acked);
            own.unsure |= own.covered.take().is_some() || was_in || acked;
        }
    }

    // Where readers stand.

    /// A read ends there that was asked for when `asked` had been acked.
    pub(crate) fn recent(&mut self, out: &mut Out, who: Who, asked: Option<Node>, at: Node, position: Position) {
        let Some(asked) = asked else { return };
        out.counts().recent_reads += 1;
        if at != asked && self.truth.precedes(at, asked) {
            let acked = short(Some(self.truth.position(asked)));
            let text = format!("{who} reads it, and {acked} had been acked when it asked");
            self.breach_unless_lost(out, asked, Breach::StaleRead, Some(position), text);
        }
    }

    /// A replica that stood at `before` is brought to `at`.
    pub(crate) fn not_back(&mut self, out: &mut Out, who: Who, before: Position, at: Node, position: Position) {
        if let Some(old) = self.truth.resolve(before)
            && old != at
            && self.truth.precedes(at, old)
        {
            let text = format!("{who} stood at {}", short(Some(before)));
            self.breach_unless_lost(out, old, Breach::Backwards, Some(position), text);
        }
    }

    /// The storage holds that now: its own of before, or another.
    pub(crate) fn stands(&mut self, out: &mut Out, replica: usize, held: Option<Held>, copied: bool) {
        let truth = &self.truth;
        let of = &mut self.replicas[replica];
        of.staged.clear();
        let before = std::mem::replace(&mut of.held, held.clone()).or(of.purged.take());
        of.owes = None;
        if copied {
            self.storages += 1;
            of.storage = self.storages;
            of.client = None;
            of.by_name.clear();
            of.acked.clear();
            of.kept.clear();
            of.lost.clear();
            for own in &mut of.own {
                own.sent = None;
                own.unsure = true;
            }
            return;
        }
        // An ack may not have been stored of which no app was told yet, and a `current` neither.
        of.acked.clone_from(&of.kept);
        let stands = held.as_ref().map(|held| held.position);
        let leads = |a: Position, b: Option<Position>| {
            let b = b.map_or(Some(START), |b| truth.resolve(b));
            truth.resolve(a).zip(b).is_some_and(|(a, b)| truth.leads_to(a, b))
        };
        let is_stored = |Covered { from, to, .. }: Covered| {
            stands == Some(to) && from != stands || stands != Some(to) && leads(to, stands)
        };
        for index in &of.open {
            let own = &mut of.own[*index];
            // Where the end of it was not stored, a `last_mid` covers it still.
            own.unsure |= own.uncovered.take().is_some_and(|uncovered| !is_stored(uncovered));
            // Where that was not stored, it bears the id still.
            own.unsure |= std::mem::take(&mut own.renounced);
            let Some(covered @ Covered { from, to, again }) = own.covered else {
                continue;
            };
            let kept = is_stored(covered);
            let unkept =
                !again && stands != Some(to) && (stands == from || stands.is_none_or(|stands| leads(stands, Some(to))));
            own.covered = own.covered.filter(|_| kept);
            own.unsure |= !kept && !unkept;
        }
        // What is stored is what was delivered, or less.
        let place = |held: &Option<Held>| match held {
            Some(held) => self.truth.resolve(held.position),
            None => Some(START),
        };
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
        at.is_some_and(|at| {
            let erased = !self.truth.leads_to(at, self.truth.tip) && self.truth.precedes(at, self.truth.tip);
            erased || self.truth.record(at).is_some_and(|record| record.cut)
        })
    }

    // What apps issue and are told.

    pub(crate) fn issued(&mut self, replica: usize, tag: Tag, counts: bool) {
        let mut copied = false;
        if counts {
            let applied = self.tags.entry(tag).or_default();
            applied.holders += 1;
            copied = applied.is_copied();
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
            lost: false,
            sent: None,
            heard: None,
            stood: None,
            covered: None,
            uncovered: None,
            renounced: false,
            // A `last_mid` that its first holder was told may cover it.
            unsure: copied,
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
        if fate == Fate::Acked
            && let Some((client, mid)) = own.sent
            && let Some(acked) = of.acked.get(&client)
        {
            of.kept.entry(client).or_default().note(mid, acked.event);
        }
        if fate != Fate::Acked {
            of.open.retain(|open| *open != index);
        }
    }

    pub(crate) fn lost(&mut self, out: &mut Out, replica: usize, client: ClientId, (from, through): (Mid, Mid)) {
        let of = &mut self.replicas[replica];
        of.lost.insert(client, from);
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
        // Of which writer the client is, its mutations say. What is lost to one of several that bear it, another may have
        // had applied.
        let bearer = self.clients.get(&client);
        let shared = bearer.is_some_and(|bearer| bearer.shared);
        let writer = bearer.map(|bearer| bearer.writer);
        let mut falsely = None;
        let sent = writer
            .and_then(|writer| self.sent_max.get(&writer))
            .map_or(0, |mid| mid.get());
        for (writer, mid) in writer
            .into_iter()
            .flat_map(|writer| (from.get()..=through.get().min(sent)).map(move |mid| (writer, mid)))
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
                Some(record) if !record.cut && !aged && !shared => falsely = Some((mid, position)),
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

    // What apps see.

    /// Whether a client is where what it was sent makes it. Of one whose connections nobody observes, what it says
    /// is believed.
    pub(crate) fn stands_at(&mut self, out: &mut Out, replica: usize, position: Option<Position>) {
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
            self.step(out, Move::within(who, at, covers, what));
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
            self.step(out, Move::within(Who::Server, at, covers, what));
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
        self.replicas[replica].rested = true;
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
            if self.truth.since(at, tip, *writer) != Since::Elsewhere
                || self.truth.find_mid(tip, *writer, *mid).is_some()
            {
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
            } else if self.knows_loss(mutation.replica, *writer, *mid) {
                self.breach(
                    out,
                    Breach::LossUnreported,
                    Some(position),
                    format!("{} is lost", who()),
                );
            } else if self.aged.is_some_and(|aged| answer.event < aged) {
                out.counts().aged_losses += 1;
            } else {
                out.counts().unheard_losses += 1;
            }
        }
    }

    /// At rest, whether an app was told of an ack that is of a client that its storage has borne until the loss showed:
    /// what is lost below a mid that it gave up for that loss, or that it still bears, is to be reported.
    fn knows_loss(&self, replica: usize, writer: Writer, mid: Mid) -> bool {
        let of = &self.replicas[replica];
        if !of.rested {
            return false;
        }
        let named = |client: &ClientId| self.clients.get(client).is_some_and(|bearer| bearer.writer == writer);
        let lost = of.lost.iter().any(|(client, from)| named(client) && *from <= mid);
        let borne = of.client.as_ref().is_some_and(named);
        let told = of.kept.iter().any(|(client, acked)| named(client) && mid <= acked.mid);
        told && (lost || borne)
    }

    /// What apps were told is what became of it.
    fn judge_fates(&self, out: &mut Out, tip: Node) {
        let mut holders: Map<Tag, usize> = Map::default();
        for own in self.replicas.iter().flat_map(|replica| &replica.own) {
            let may_be = !matches!(own.fate, Some(Fate::Refused | Fate::Cancelled));
            *holders.entry(own.tag).or_default() += usize::from(may_be);
        }
        for replica in &self.replicas {
            for own in &replica.own {
                let name = || format!("tag {} of installation {}", own.tag.0, replica.installation.0);
                let applied = self.tags.get(&own.tag).filter(|_| own.counts);
                let times = applied.map_or(0, |applied| applied.times(&self.truth, tip));
                // Each of the copies may have had it applied, but those that were refused or taken back.
                let most = holders.get(&own.tag).copied().unwrap_or(0);
                match own.fate {
                    None => {
                        self.breach(out, Breach::Vanished, None, format!("{} has no end", name()));
                    }
                    Some(Fate::Refused | Fate::Cancelled) if times > most => {
                        let at = applied.and_then(|applied| applied.at.last());
                        let at = at.map(|at| self.truth.position(*at));
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
