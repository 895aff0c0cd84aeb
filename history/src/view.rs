//! What local views show.

use crate::event::{Fate, Tag};
use crate::report::{Breach, Out};
use crate::space::{Applied, Move, Space, View, What, count_in};
use crate::trace::Who;
use crate::truth::{Covers, Node, START};
use crate::workload;
use tidegate_protocol::{Epoch, Mid, Position, Value};

impl Space {
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
        let view = self.expect(replica, (position, at), &covers, count);
        self.step(out, Move::within(who, at, covers, What::View(view)));
    }

    /// What a view at this place shows over the confirmed state.
    fn expect(
        &mut self,
        replica: usize,
        (position, at): (Option<Position>, Node),
        covers: &Covers,
        count: i64,
    ) -> View {
        let known = self.truth.knows(at);
        let raw = position.and_then(|position| {
            let epoch = self.truth.find(position.epoch)?;
            let seq = position.seq.get();
            Some(Node { epoch, seq })
        });
        // Only a change that is in view shows whose commit it is.
        let seen = [workload::COUNTERS, workload::TAGS]
            .iter()
            .any(|name| covers.collection(name));
        let (truth, tags, clients) = (&self.truth, &self.tags, &self.clients);
        let of = &mut self.replicas[replica];
        let (client, sent, told) = (of.client.and_then(|client| clients.get(&client)), of.sent, of.told);
        // Others write under the same id, and what they wrote is taken for its own.
        let foreign = client.is_some_and(|bearer| {
            bearer.shared && told.max(truth.last_mid(at, bearer.writer).unwrap_or(Mid::ZERO)) > sent
        });
        let mut view = View {
            count,
            open: Vec::new(),
            sure: 0,
            perhaps: 0,
            staged: !of.staged.is_empty(),
        };
        // In a catch-up by log it is not certain of which epoch a seq is before that of the head is reached.
        let crosses = of
            .log_to
            .is_some_and(|epoch| position.is_none_or(|position| position.epoch != epoch));
        let own = &mut of.own;
        of.open.retain(|index| {
            let own = &mut own[*index];
            let applied = tags.get(&own.tag);
            let copied = applied.is_some_and(Applied::is_copied);
            let name = own.sent.and_then(|(client, mid)| Some((clients.get(&client)?, mid)));
            // Of several applications, one's own is the one of that name.
            let is_in = known
                && applied.is_some_and(|applied| match name {
                    Some((bearer, mid)) if copied => {
                        let named = truth.find_mid(at, bearer.writer, mid);
                        named.is_some_and(|named| applied.at.contains(&named) && truth.holds(named, at))
                    }
                    // Of which one's own is among them, nobody knows.
                    None if copied => !applied.at.is_empty() && applied.times(truth, at) == applied.at.len(),
                    _ => applied.is_in(truth, at),
                });
            let acked = own.fate == Some(Fate::Acked);
            // A history that was lost may be shown still, and hold it under an id that was given up since.
            let former = is_in
                && !copied
                && name.is_some_and(|(bearer, mid)| {
                    let named = truth.find_mid(at, bearer.writer, mid);
                    named.is_none_or(|named| !applied.is_some_and(|applied| applied.at.contains(&named)))
                });
            let place = match own.heard {
                Some(Ok(position)) => truth.resolve(position),
                _ => applied.and_then(|applied| applied.at.last().copied()),
            };
            let reached = place.is_some_and(|place| truth.leads_to(place, at));
            let reaches = acked && (if seen { is_in && !former } else { reached });
            // When such a catch-up breaks off, it may be confirmed or wait for the next; and which epochs led to the present
            // one is forgotten at a restart.
            let elsewhere = matches!(own.heard, Some(Ok(ack)) if position.is_some_and(|at| at.epoch != ack.epoch));
            own.unsure |= reaches && (crosses || elsewhere && !seen);
            if own.covered.is_some() || reaches && (seen || !own.unsure) {
                // It is hidden; for good once the ack's position is reached, too, unless it is lost and reported. Before
                // that a reset may bring a state that does not hold it. Who cannot tell that the ack's epoch led there
                // may keep it for that.
                let settled = acked && reached;
                own.unsure |= settled && elsewhere;
                return !settled || elsewhere;
            }
            // Acked, and from where the replica stands no history leads there any more: whether that is reported is
            // judged elsewhere.
            let leads = |(raw, place)| {
                // From a space without history it does, unless that is what the history has become.
                truth.leads_to(raw, place) && (raw != START || own.stood == Some(Epoch(0)))
            };
            // Without a confirmed state it is not kept, unless one is on its way.
            let kept = own.stood.is_some() || own.heard.is_none();
            let gone = acked && !(kept && raw.zip(place).is_some_and(leads));
            // Under an id that others bear, too, a commit of theirs is taken for one's own.
            let shared = match name {
                Some((bearer, mid)) => !acked && bearer.shared && truth.find_mid(at, bearer.writer, mid).is_some(),
                None => copied || foreign,
            };
            if gone || own.unsure || reaches || shared || former {
                view.perhaps += 1;
            } else if seen && !copied {
                view.open.push(own.tag);
            } else if !is_in || !seen {
                view.sure += 1;
            }
            true
        });
        view
    }

    /// Whether a view shows the count that is confirmed there, and of the open mutations each that is not in it.
    pub(crate) fn judge_view(&self, out: &mut Out, who: Who, at: Node, covers: &Covers, view: &View) {
        let View {
            count,
            ref open,
            sure,
            perhaps,
            staged,
        } = *view;
        let counter = self
            .truth
            .known_doc(workload::COUNTER)
            .filter(|_| covers.collection(workload::COUNTERS));
        let confirmed = counter.map_or(0, |id| count_in(self.truth.doc_at(at, id)));
        let is_in = |tag: &&Tag| self.tags.get(tag).is_some_and(|applied| applied.is_in(&self.truth, at));
        let certain = sure + (open.len() - open.iter().filter(is_in).count()).cast_signed() as i64;
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
            let text = format!(
                "{who} shows {count}, should show {confirmed} confirmed and {certain} of its own, and may {perhaps} more"
            );
            self.breach(out, breach, Some(self.truth.position(at)), text);
        }
    }

    pub(crate) fn covered(&self, replica: usize) -> Covers {
        let held = self.replicas[replica].held.as_ref();
        held.map_or(Covers::All, |held| held.covers.clone())
    }
}
