//! Steps of subscribers, compared with the true history.

use crate::doc::{Doc, name_sum, sum_of};
use crate::event::Docs;
use crate::fold::Map;
use crate::report::{Breach, Out};
use crate::space::{Move, Space, What};
use crate::trace::{Who, short, short_writer};
use crate::truth::{Covers, DocId, Node, Record, START, sum_of as doc_sum};
use crate::workload;
use std::collections::BTreeMap;
use std::sync::Arc;
use tidegate_protocol::{Commit, DocChange, DocPath, Mid, Position, Writer};

impl Space {
    /// Judges a step now, or once its end is known.
    pub(crate) fn step(&mut self, out: &mut Out, step: Move) {
        let (from, to) = (self.truth.canonical(step.from), self.truth.canonical(step.to));
        if self.truth.knows(to) {
            self.judge(out, Move { from, to, ..step });
        } else if out.account {
            let position = Some(self.truth.position(to));
            self.breach(out, Breach::Invented, position, format!("{} is told of it", step.who));
        } else {
            let at = self.waiting.entry(to.epoch).or_default().entry(to.seq).or_default();
            at.push(Move { from, to, ..step });
        }
    }

    fn judge(&mut self, out: &mut Out, step: Move) {
        let Move {
            who,
            from,
            to,
            covers,
            what,
        } = step;
        let whole = matches!(
            what,
            What::Reset(_) | What::State(_) | What::LastMid(..) | What::View(_)
        );
        if !self.truth.knows(to) || !whole && !self.truth.knows(from) {
            out.counts().unverified += 1;
            return;
        }
        if !whole && !self.leads(out, who, from, to) {
            return;
        }
        match what {
            What::Skip => {
                self.skip(out, who, from, to, &covers);
            }
            What::Change(record) => {
                let before = Node { seq: to.seq - 1, ..to };
                self.skip(out, who, from, self.truth.canonical(before), &covers);
                self.compare(out, who, to, &record, &covers);
            }
            What::Delta(pages) => self.judge_pages(out, who, Some(from), to, &covers, &pages),
            What::Reset(pages) => self.judge_pages(out, who, None, to, &covers, &pages),
            What::LastMid(writer, last_mid, cuts) => self.judge_last_mid(out, who, to, (writer, last_mid), cuts),
            What::View(view) => self.judge_view(out, who, to, &covers, &view),
            What::State(docs) => {
                self.judge_state(out, who, to, &covers, &docs, None);
            }
        }
    }

    /// Whether what a replica holds in one place goes on to another, to which it is led without a reset.
    pub(crate) fn leads(&self, out: &mut Out, who: Who, from: Node, to: Node) -> bool {
        if self.truth.leads_to(from, to) {
            return true;
        }
        let truth = &self.truth;
        let state = |at| truth.sum_at(at, &Covers::All);
        let is_told = out.account || truth.rooted(to) || truth.root(from) == truth.root(to);
        // Where nobody was told from where the epoch goes on, states of one length tell.
        if is_told || from.seq == to.seq && truth.knows(from) && state(from) != state(to) {
            let text = format!("{who} is led on from {}", short(Some(truth.position(from))));
            self.breach(out, Breach::NotReset, Some(truth.position(to)), text);
        } else {
            out.counts().unverified += 1;
        }
        false
    }

    /// Nothing was sent between the two, so nothing of it may be in view. Returns the violation's index if
    /// something was.
    pub(crate) fn skip(&self, out: &mut Out, who: Who, from: Node, to: Node, covers: &Covers) -> Option<usize> {
        if from == to {
            return None;
        }
        let missed = self
            .truth
            .between(from, to)
            .find_map(|(node, record)| Some((node, record.docs.iter().find(|change| covers.doc(&change.doc))?)));
        let Some((node, change)) = missed else {
            out.counts().skipped_commits += to.seq.saturating_sub(from.seq);
            return None;
        };
        let at = self.truth.position(node);
        let doc = change.doc.clone();
        let range = format!(
            "{} to {}",
            short(Some(self.truth.position(from))),
            short(Some(self.truth.position(to)))
        );
        let text = format!(
            "{who} goes from {range} without {}, which changes {doc}",
            short(Some(at))
        );
        self.breach(out, Breach::Gap, Some(at), text)
    }

    /// Whether a change is the commit that is there.
    pub(crate) fn compare(&self, out: &mut Out, who: Who, at: Node, sent: &Record, covers: &Covers) {
        let Some(record) = self.truth.record(at) else {
            return;
        };
        self.compare_with(
            out,
            who,
            at,
            (sent.writer, sent.mid, sent.at, &sent.docs),
            record,
            covers,
        );
    }

    /// As [`Self::compare`], with the change as it came. Returns whether the commit there is known.
    pub(crate) fn compare_change(&self, out: &mut Out, who: Who, at: Node, sent: &Commit, covers: &Covers) -> bool {
        let Some(record) = self.truth.record(at) else {
            return false;
        };
        self.compare_with(
            out,
            who,
            at,
            (sent.writer, sent.mid, sent.at, &sent.docs),
            record,
            covers,
        );
        true
    }

    pub(crate) fn compare_with(
        &self,
        out: &mut Out,
        who: Who,
        at: Node,
        (writer, mid, time, docs): (Writer, Mid, u64, &[DocChange]),
        record: &Record,
        covers: &Covers,
    ) {
        let position = Some(self.truth.position(at));
        out.counts().changes += 1;
        if (writer, mid) != (record.writer, record.mid) {
            let (is, of) = (short_writer(writer), short_writer(record.writer));
            let text = format!("{who} is sent {is} mid {mid}, others have {of} mid {}", record.mid);
            self.breach(out, Breach::Disagreement, position, text);
            return;
        }
        let same = match covers {
            Covers::All => record.docs == docs,
            Covers::Only(_) => {
                out.counts().filtered_changes += 1;
                record.docs.iter().filter(|change| covers.doc(&change.doc)).eq(docs)
            }
        };
        if !same {
            let expected: Vec<_> = record.docs.iter().filter(|change| covers.doc(&change.doc)).collect();
            let part = docs.len() < expected.len() && docs.iter().all(|change| expected.contains(&change));
            let breach = if part { Breach::Torn } else { Breach::Altered };
            self.breach(
                out,
                breach,
                position,
                format!("{who} is sent {docs:?}, should be {expected:?}"),
            );
        } else if time != record.at {
            let text = format!("{who} is sent the time {time}, should be {}", record.at);
            self.breach(out, Breach::Altered, position, text);
        }
    }

    /// Whether pages, on top of the state at `from` or of nothing, make the state at `to`.
    fn judge_pages(
        &mut self,
        out: &mut Out,
        who: Who,
        from: Option<Node>,
        to: Node,
        covers: &Covers,
        pages: &[DocChange],
    ) {
        let staged = self.fold(from, pages);
        let mut sum = from.map_or(0, |from| self.truth.sum_at(from, covers));
        for (id, doc) in &staged {
            let old = from.and_then(|from| self.truth.doc_at(from, *id));
            let covered = covers.doc(&self.truth.docs[*id].path);
            let old = doc_sum(old.filter(|_| covered));
            sum = sum.wrapping_add(doc_sum(doc.as_ref())).wrapping_sub(old);
        }
        if sum == self.truth.sum_at(to, covers) {
            return;
        }
        let mut is: BTreeMap<&DocPath, &Arc<Doc>> = BTreeMap::new();
        if let Some(from) = from {
            is.extend(self.truth.docs_at(from, covers).map(|(info, doc)| (&info.path, doc)));
        }
        for (id, doc) in &staged {
            let path = &self.truth.docs[*id].path;
            match doc {
                Some(doc) => is.insert(path, doc),
                None => is.remove(path),
            };
        }
        let (breach, text) = self.difference(to, covers, &is);
        let how = match from {
            Some(from) => format!("by delta from {}", short(Some(self.truth.position(from)))),
            None => "by reset".to_owned(),
        };
        self.breach(
            out,
            breach,
            Some(self.truth.position(to)),
            format!("{who}, {how}: {text}"),
        );
    }

    /// What pages make of the state at `from`, or of nothing: each document that they name.
    pub(crate) fn fold(&mut self, from: Option<Node>, pages: &[DocChange]) -> Map<DocId, Option<Arc<Doc>>> {
        let mut staged: Map<DocId, Option<Arc<Doc>>> = Map::default();
        for change in pages {
            let id = self.truth.doc_id(&change.doc);
            let name = self.truth.docs[id].name;
            let old = match staged.get(&id) {
                Some(staged) => staged.as_ref(),
                None => from.and_then(|from| self.truth.doc_at(from, id)),
            };
            let new = Doc::change(old, name, &change.kind);
            staged.insert(id, new);
        }
        staged
    }

    /// How documents differ from what is there.
    fn difference(&self, at: Node, covers: &Covers, is: &BTreeMap<&DocPath, &Arc<Doc>>) -> (Breach, String) {
        let should: BTreeMap<&DocPath, &Arc<Doc>> = self
            .truth
            .docs_at(at, covers)
            .map(|(info, doc)| (&info.path, doc))
            .collect();
        let (mut missing, mut ghosts) = (Vec::new(), Vec::new());
        for (path, doc) in &should {
            let Some(other) = is.get(path) else {
                missing.push(format!("{path} is missing"));
                continue;
            };
            for (field, value) in doc.leaves() {
                match other.get(field.as_str()) {
                    Some(other) if other == value => {}
                    other => missing.push(format!("{path} {field} is {other:?}, should be {value:?}")),
                }
            }
        }
        for (path, doc) in is {
            let Some(other) = should.get(path) else {
                ghosts.push(format!("{path} should not exist"));
                continue;
            };
            let extra = doc.leaves().filter(|(field, _)| other.get(field.as_str()).is_none());
            ghosts.extend(extra.map(|(field, value)| format!("{path} has {field} {value:?}, which should not be")));
        }
        let breach = if missing.is_empty() {
            Breach::Ghost
        } else {
            Breach::WrongState
        };
        missing.extend(ghosts);
        missing.truncate(5);
        (breach, missing.join("; "))
    }

    /// Whether documents are the state there; `named` names the breach if not.
    pub(crate) fn judge_state(
        &self,
        out: &mut Out,
        who: Who,
        at: Node,
        covers: &Covers,
        docs: &Docs,
        named: Option<Breach>,
    ) -> bool {
        if sum_of(docs) == self.truth.sum_at(at, covers) {
            return true;
        }
        let whole = |(path, leaves): (&DocPath, _)| Arc::new(Doc::whole(name_sum(path), leaves));
        let own: Vec<_> = docs.iter().map(whole).collect();
        let is = docs.keys().zip(&own).collect();
        let (breach, text) = self.difference(at, covers, &is);
        let position = Some(self.truth.position(at));
        self.breach(out, named.unwrap_or(breach), position, format!("{who}: {text}"));
        false
    }

    /// The answer to a `get`: each document whole, or deleted.
    pub(crate) fn judge_docs(&mut self, out: &mut Out, who: Who, at: Node, docs: &[DocChange]) {
        for change in docs {
            let id = self.truth.doc_id(&change.doc);
            let name = self.truth.docs[id].name;
            let is = Doc::change(None, name, &change.kind);
            let should = self.truth.doc_at(at, id);
            if doc_sum(is.as_ref()) != doc_sum(should) {
                let text = format!("{who} gets {:?} of {}, should be {should:?}", change.kind, change.doc);
                self.breach(out, Breach::WrongState, Some(self.truth.position(at)), text);
            }
        }
    }

    /// Whether the writer's mutations up to `last_mid`, and no others, are in the state or were refused.
    fn judge_last_mid(
        &mut self,
        out: &mut Out,
        who: Who,
        at: Node,
        (writer, last_mid): (Writer, Option<Mid>),
        cuts: usize,
    ) {
        out.counts().last_mids += 1;
        let position = Some(self.truth.position(at));
        let there = self.truth.last_mid(at, writer);
        if last_mid.is_some() && self.aged.is_none() && self.truth.is_gone(at, writer) {
            let text = format!(
                "{who} is told {last_mid:?} of {}, whose data was erased",
                short_writer(writer)
            );
            self.breach(out, Breach::LastMidLied, position, text);
            return;
        }
        let told = last_mid.unwrap_or(Mid::ZERO);
        let name = short_writer(writer);
        if there.is_some_and(|there| told < there) {
            // A record may be dropped that nothing was written to since it grew old.
            let wrote = self.wrote.get(&writer).copied().unwrap_or(0);
            if last_mid.is_some() || self.aged.is_none_or(|aged| aged < wrote) {
                let text = format!("{who} is told {last_mid:?} of {name}, whose mid {there:?} is in the state");
                self.breach(out, Breach::LastMidLied, position, text);
            }
            return;
        }
        let Some(told) = last_mid else { return };
        if self.sent_max.get(&writer).is_some_and(|sent| *sent < told) {
            let text = format!("{who} is told {told} of {name}, which has never been sent");
            self.breach(out, Breach::LastMidLied, position, text);
            return;
        }
        let mids = self.truth.stretches[at.epoch].writers.get(&writer);
        let mids = mids.map_or(&[][..], Vec::as_slice);
        let later = mids.get(mids.partition_point(|(seq, _)| *seq <= at.seq));
        // One that was lost may have been refused in the history that goes on.
        let lost = |seq| {
            self.truth
                .record(Node { epoch: at.epoch, seq })
                .is_some_and(|record| record.cut)
        };
        if let Some((seq, mid)) = later.filter(|(seq, mid)| *mid <= told && !lost(*seq)) {
            let text = format!("{who} is told {told} of {name}, whose mid {mid} comes later, as {seq}");
            self.breach(out, Breach::LastMidLied, position, text);
            return;
        }
        // Of a refusal by a history that was lost nothing is left, and it may be told after the loss.
        if cuts < self.cuts {
            return;
        }
        let told_of = &mut self.truth.stretches[at.epoch].told;
        let entry = told_of.entry(writer).or_insert((at.seq, told));
        if told > entry.1 {
            *entry = (at.seq, told);
        }
    }

    // Where subscribers tell the truth.

    /// A commit as a subscriber of everything was sent it. The first to tell of one is believed.
    pub(crate) fn believe(&mut self, out: &mut Out, who: Who, at: Node, sent: &Commit) {
        let stretch = &self.truth.stretches[at.epoch];
        if stretch.base.is_some_and(|base| at.seq <= base) {
            out.counts().unverified += 1;
        } else if let Some(record) = self.truth.record(at).or_else(|| stretch.pending.get(&at.seq)) {
            self.compare_with(
                out,
                who,
                at,
                (sent.writer, sent.mid, sent.at, &sent.docs),
                record,
                &Covers::All,
            );
        } else {
            out.counts().changes += 1;
            let pending = &mut self.truth.stretches[at.epoch].pending;
            pending.insert(at.seq, Record::of(sent));
            self.settle(out, at.epoch);
        }
    }

    /// An epoch goes on from there, as a subscriber was told.
    pub(crate) fn believe_epoch(&mut self, out: &mut Out, epoch: usize, after: Node) {
        if self.truth.stretches[epoch].parent.is_none() && epoch != START.epoch {
            out.counts().epochs += 1;
            self.truth.stretches[epoch].parent = Some(after);
            self.settle(out, epoch);
        }
    }

    /// The state there is that of these documents, as a subscriber of everything was sent it.
    pub(crate) fn believe_state(&mut self, out: &mut Out, at: Node, pages: &[DocChange]) {
        let docs: Vec<_> = self
            .fold(None, pages)
            .into_iter()
            .filter_map(|(id, doc)| Some((self.truth.docs[id].path.clone(), doc?)))
            .collect();
        self.truth.anchor(at.epoch, at.seq, &docs);
        for (path, _) in &docs {
            if let Some(tag) = workload::tag_doc(path) {
                self.tags.entry(tag).or_default().at.push(at);
            }
        }
        self.anchored = true;
        self.settle(out, at.epoch);
    }

    /// Takes in what has become known of an epoch, and judges what waited for it.
    fn settle(&mut self, out: &mut Out, epoch: usize) {
        let stretch = &self.truth.stretches[epoch];
        if stretch.base.is_none()
            && let Some(parent) = stretch.parent
            && self.truth.knows(parent)
        {
            self.truth.inherit(epoch, parent);
        }
        if self.truth.stretches[epoch].base.is_none() {
            return;
        }
        loop {
            let stretch = &mut self.truth.stretches[epoch];
            let next = stretch.head() + 1;
            let Some(record) = stretch.pending.remove(&next) else {
                break;
            };
            self.learn(out, epoch, record);
        }
        let head = Node {
            epoch,
            seq: self.truth.stretches[epoch].head(),
        };
        if self.truth.stretches[epoch].parent.is_none() && epoch != START.epoch {
            // Nobody knows what it goes on from, so nothing is known to be lost.
            self.truth.tip = head;
        } else if epoch >= self.truth.tip.epoch {
            self.fall_back(out, head);
        }
        if let Some(waiting) = self.waiting.get_mut(&epoch) {
            let later = waiting.split_off(&(head.seq + 1));
            for step in std::mem::replace(waiting, later).into_values().flatten() {
                let (from, to) = (self.truth.canonical(step.from), self.truth.canonical(step.to));
                self.judge(out, Move { from, to, ..step });
            }
        }
        let children = 0..self.truth.stretches.len();
        for child in children {
            let stretch = &self.truth.stretches[child];
            if stretch.base.is_none() && stretch.parent.is_some_and(|parent| parent.epoch == epoch) {
                self.settle(out, child);
            }
        }
    }

    /// Nothing more will come: what still waits is believed where it can be, and counted where it cannot.
    pub(crate) fn settle_rest(&mut self, out: &mut Out) {
        let epochs: Vec<usize> = self.waiting.keys().copied().collect();
        for epoch in epochs {
            if self.truth.stretches[epoch].base.is_some() {
                continue;
            }
            let first = self.waiting.get(&epoch).and_then(|waiting| {
                waiting.iter().find_map(|(seq, steps)| {
                    let pages = steps.iter().find_map(|step| match &step.what {
                        What::Reset(pages) if step.covers == Covers::All => Some(pages.clone()),
                        _ => None,
                    })?;
                    Some((*seq, pages))
                })
            });
            if let Some((seq, pages)) = first {
                self.believe_state(out, Node { epoch, seq }, &pages);
            }
        }
        let left: usize = self.waiting.values().flat_map(BTreeMap::values).map(Vec::len).sum();
        let pending: usize = self.truth.stretches.iter().map(|stretch| stretch.pending.len()).sum();
        out.counts().unverified += (left + pending) as u64;
    }

    /// A position's place. Where subscribers tell the truth, an epoch that is new is believed.
    pub(crate) fn place(&mut self, out: &mut Out, position: Position) -> Option<Node> {
        if !out.account {
            self.truth.enter(position.epoch);
        }
        self.truth.resolve(position)
    }
}
