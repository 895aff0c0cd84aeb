//! Erasures: what must be gone, what must be left, and who is no client any more.

use crate::event::Docs;
use crate::fold::Map;
use crate::report::{Breach, Out};
use crate::space::Space;
use crate::truth::{Covers, DocId, Node, Record, Truth};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use tidegate_protocol::{DocChangeKind, Epoch, FieldPath, Mid, Position, Seq, Writer};

/// How an epoch began in which data was erased.
#[derive(Debug)]
pub(crate) struct Erasure {
    /// The head before.
    pub(crate) before: Node,
    /// Whose data; `None` is everybody's.
    whose: Option<BTreeSet<Writer>>,
    /// Writers that are clients no more: these, and those of erasures before.
    gone: BTreeSet<Writer>,
}

impl Erasure {
    fn spares(&self, writer: Writer) -> bool {
        self.whose.as_ref().is_some_and(|whose| !whose.contains(&writer))
    }
}

/// What has become of a commit further on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Since {
    /// It is of the history there.
    Holds,
    /// It was, until its writer's data was erased.
    Erased,
    /// It never was.
    Elsewhere,
}

impl Truth {
    /// The erasure with which the history of a place begins.
    fn erasure(&self, at: Node) -> Option<&Erasure> {
        self.stretches[self.root(at)].erasure.as_ref()
    }

    /// What has become, at `to`, of what a writer did at `at`.
    pub(crate) fn since(&self, at: Node, mut to: Node, writer: Writer) -> Since {
        let mut spared = true;
        loop {
            if self.leads_to(at, to) {
                return if spared { Since::Holds } else { Since::Erased };
            }
            let Some(erasure) = self.erasure(to) else {
                return Since::Elsewhere;
            };
            spared &= erasure.spares(writer);
            to = erasure.before;
        }
    }

    /// Whether the state at `to` holds what was committed at `at`.
    pub(crate) fn holds(&self, at: Node, to: Node) -> bool {
        self.leads_to(at, to)
            || self
                .record(at)
                .is_some_and(|record| self.since(at, to, record.writer) == Since::Holds)
    }

    /// Whether `to` comes after `at`, or is it, whatever has been erased in between.
    pub(crate) fn precedes(&self, at: Node, mut to: Node) -> bool {
        loop {
            if self.leads_to(at, to) {
                return true;
            }
            match self.erasure(to) {
                Some(erasure) => to = erasure.before,
                None => return false,
            }
        }
    }

    /// Whether a writer's data has been erased, as of a place.
    pub(crate) fn is_gone(&self, at: Node, writer: Writer) -> bool {
        self.erasure(at).is_some_and(|erasure| erasure.gone.contains(&writer))
    }

    /// All commits up to a place, those before erasures too, oldest first.
    fn history(&self, mut to: Node) -> Vec<(Node, &Record)> {
        let mut ways = Vec::new();
        loop {
            let root = self.root(to);
            let from = Node {
                epoch: root,
                seq: self.stretches[root].base.unwrap_or(0),
            };
            ways.extend(self.way(from, to));
            match &self.stretches[root].erasure {
                Some(erasure) => to = erasure.before,
                None => break,
            }
        }
        let nodes = ways
            .into_iter()
            .rev()
            .flat_map(|(epoch, first, last)| (first..=last).map(move |seq| Node { epoch, seq }));
        nodes.filter_map(|node| Some((node, self.record(node)?))).collect()
    }
}

/// Who wrote the leaves of documents, and who ever wrote to them.
#[derive(Default)]
struct Owners {
    leaves: Map<DocId, BTreeMap<FieldPath, Writer>>,
    touched: Map<DocId, BTreeSet<Writer>>,
}

impl Space {
    /// The store has erased a user's data, or everybody's, and holds these documents now.
    pub(crate) fn erased(&mut self, out: &mut Out, (epoch, start): (Epoch, Seq), user: Option<&str>, docs: &Docs) {
        let before = self.truth.tip;
        let at = Position::new(epoch, start);
        if before.seq != start.get() || self.truth.find(epoch).is_some() {
            let text = format!("an erasure where the head is {}", self.truth.position(before));
            self.breach(out, Breach::StoreGap, Some(at), text);
            return;
        }
        if start == Seq::ZERO {
            // Nothing was there, and who is at 0 may stay.
            self.judge_erased(out, at, docs, &Owners::default(), &|_| true);
            self.begin_epoch(out, epoch, Position::START);
            return;
        }
        out.counts().epochs += 1;
        let mut writers = BTreeSet::new();
        let mut owners = Owners::default();
        for (_, record) in self.truth.history(before) {
            writers.insert(record.writer);
            for change in &record.docs {
                let Some(id) = self.truth.known_doc(change.doc.as_str()) else {
                    continue;
                };
                owners.touched.entry(id).or_default().insert(record.writer);
                let leaves = owners.leaves.entry(id).or_default();
                let set = match &change.kind {
                    DocChangeKind::Deleted => &[][..],
                    DocChangeKind::Whole(set) | DocChangeKind::Change { set, .. } => set,
                };
                leaves.extend(set.iter().map(|(path, _)| (path.clone(), record.writer)));
            }
        }
        let is_theirs =
            |writer: &Writer| user.is_none_or(|user| self.users.get(writer).is_some_and(|of| **of == *user));
        self.judge_erased(out, at, docs, &owners, &is_theirs);

        let whose = user.map(|_| writers.iter().copied().filter(is_theirs).collect::<BTreeSet<_>>());
        let mut gone = whose.clone().unwrap_or_else(|| writers.clone());
        gone.extend(self.truth.erasure(before).iter().flat_map(|erasure| &erasure.gone));
        let last: Vec<(Writer, Mid)> = writers
            .difference(&gone)
            .filter_map(|writer| Some((*writer, self.truth.last_mid(before, *writer)?)))
            .collect();
        let told: Vec<(Writer, Mid)> = (last.iter())
            .filter_map(|(writer, _)| Some((*writer, self.truth.told(before, *writer)?)))
            .collect();
        let erasure = Erasure { before, whose, gone };
        let lost: Vec<Node> = self
            .truth
            .history(before)
            .into_iter()
            .filter(|(_, record)| !erasure.spares(record.writer))
            .map(|(node, _)| node)
            .collect();
        for node in lost {
            self.truth.cut(node);
        }
        let held: Vec<_> = docs
            .iter()
            .map(|(path, leaves)| {
                (
                    path.clone(),
                    Arc::new(crate::doc::Doc::whole(crate::doc::name_sum(path), leaves)),
                )
            })
            .collect();
        let index = self.truth.enter(epoch);
        self.truth.anchor(index, start.get(), &held);
        let stretch = &mut self.truth.stretches[index];
        for (writer, mid) in last {
            stretch.writers.insert(writer, vec![(start.get(), mid)]);
        }
        for (writer, mid) in told {
            stretch.told.insert(writer, (start.get(), mid));
        }
        stretch.erasure = Some(erasure);
        self.truth.tip = Node {
            epoch: index,
            seq: start.get(),
        };
        self.anchored = true;
    }

    /// Whether exactly what is to be erased is gone. Of a document that others have touched too, and of which no
    /// leaf is left, only the store can tell whether it exists: that hangs on tombstones.
    fn judge_erased(
        &self,
        out: &mut Out,
        at: Position,
        docs: &Docs,
        owners: &Owners,
        is_theirs: &dyn Fn(&Writer) -> bool,
    ) {
        let mut left = BTreeMap::new();
        for (id, info) in self.truth.docs.iter().enumerate() {
            let Some(doc) = self
                .truth
                .doc_at(self.truth.tip, id)
                .filter(|_| Covers::All.doc(&info.path))
            else {
                continue;
            };
            let mine = owners.leaves.get(&id);
            let kept: BTreeMap<_, _> = doc
                .leaves()
                .filter(|(path, _)| {
                    mine.and_then(|mine| mine.get(*path))
                        .is_some_and(|writer| !is_theirs(writer))
                })
                .map(|(path, value)| (path.clone(), value.clone()))
                .collect();
            let others = owners.touched.get(&id).is_some_and(|all| !all.iter().all(is_theirs));
            if others {
                left.insert(info.path.clone(), kept);
            }
        }
        for (path, leaves) in docs {
            let Some(kept) = left.get(path) else {
                self.breach(out, Breach::NotErased, Some(at), format!("{path} is left"));
                continue;
            };
            for (field, value) in leaves {
                if kept.get(field) != Some(value) {
                    let text = format!("{path} {field} is left: {value:?}");
                    self.breach(out, Breach::NotErased, Some(at), text);
                }
            }
        }
        for (path, kept) in left {
            let has = |field: &FieldPath| docs.get(&path).is_some_and(|leaves| leaves.contains_key(field));
            if let Some(field) = kept.keys().find(|field| !has(field)) {
                let text = format!("{path} {field} is another's, and gone");
                self.breach(out, Breach::WrongState, Some(at), text);
            }
        }
    }
}
