//! A space's true history: a tree of epochs, each going on from a position of the one before, and the state
//! at every position of it.

use crate::doc::{Doc, name_sum};
use crate::erasure::Erasure;
use crate::event::Tag;
use crate::fold::Map;
use crate::workload;
use std::collections::BTreeMap;
use std::sync::Arc;
use tidegate_protocol::{Collection, Commit, DocChange, DocPath, Epoch, Mid, Position, Seq, Writer};

/// A place in the tree. Made by [`Truth::resolve`], it lies in the epoch that wrote its seq, so that one place
/// has one name.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Node {
    pub(crate) epoch: usize,
    pub(crate) seq: u64,
}

/// Commits that are filled in at most where a store leaves some out.
const GAP: u64 = 1_000;

/// Before everything.
pub(crate) const START: Node = Node { epoch: 0, seq: 0 };

/// What a subscription covers.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Covers {
    All,
    Only(Arc<[Collection]>),
}

impl Covers {
    pub(crate) fn of(collections: Option<&[Collection]>) -> Self {
        collections.map_or(Self::All, |list| Self::Only(list.into()))
    }

    pub(crate) fn doc(&self, doc: &DocPath) -> bool {
        self.collection(doc.collection())
    }

    pub(crate) fn collection(&self, collection: &str) -> bool {
        match self {
            Self::All => true,
            Self::Only(list) => list.iter().any(|name| name.as_str() == collection),
        }
    }
}

#[derive(Clone, Debug)]
pub(crate) struct Record {
    pub(crate) writer: Writer,
    pub(crate) mid: Mid,
    pub(crate) at: u64,
    pub(crate) docs: Vec<DocChange>,
    /// The sum of all documents after it.
    pub(crate) sum: u64,
    /// It was lost at some time.
    pub(crate) cut: bool,
}

impl Record {
    pub(crate) fn of(commit: &Commit) -> Self {
        Self {
            writer: commit.writer,
            mid: commit.mid,
            at: commit.at,
            docs: commit.docs.clone(),
            sum: 0,
            cut: false,
        }
    }
}

/// A document, by its number.
pub(crate) type DocId = usize;

#[derive(Debug)]
pub(crate) struct DocInfo {
    pub(crate) path: DocPath,
    /// What sums over it begin with.
    pub(crate) name: u64,
    pub(crate) role: Role,
}

/// What a document is in the workload that the checker knows.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Role {
    Plain,
    Counter,
    Tag(Tag),
    /// Half of a pair, and the other.
    Half(String),
}

impl Role {
    fn of(doc: &DocPath) -> Self {
        if doc.as_str() == workload::COUNTER {
            return Self::Counter;
        }
        if let Some(tag) = workload::tag_doc(doc) {
            return Self::Tag(tag);
        }
        let half = |mine: &str, others: &str| Some(format!("{}{others}", doc.as_str().strip_suffix(mine)?));
        match half("-a", "-b").or_else(|| half("-b", "-a")) {
            Some(other) if doc.collection() == workload::PAIRS => Self::Half(other),
            _ => Self::Plain,
        }
    }
}

/// What something was after each seq that changed it.
type Versions<T> = Vec<(u64, T)>;

/// One epoch's stretch.
#[derive(Debug)]
pub(crate) struct Stretch {
    pub(crate) name: Epoch,
    /// From where it goes on.
    pub(crate) parent: Option<Node>,
    /// The seq from which on states are known; `None` if no state of it is known yet.
    pub(crate) base: Option<u64>,
    /// It begins with this.
    pub(crate) erasure: Option<Erasure>,
    /// Below `base` the parent's states hold.
    inherits: bool,
    base_sum: u64,
    /// `base` + 1, …
    pub(crate) commits: Vec<Record>,
    /// Beyond a gap, where subscribers tell the truth.
    pub(crate) pending: BTreeMap<u64, Record>,
    docs: Map<DocId, Versions<Option<Arc<Doc>>>>,
    sums: Map<usize, Versions<u64>>,
    pub(crate) writers: Map<Writer, Versions<Mid>>,
    /// The highest `last_mid` told of a writer, and the lowest seq for which it was.
    pub(crate) told: Map<Writer, (u64, Mid)>,
}

impl Stretch {
    fn new(name: Epoch, parent: Option<Node>) -> Self {
        Self {
            name,
            parent,
            base: None,
            erasure: None,
            inherits: false,
            base_sum: 0,
            commits: Vec::new(),
            pending: BTreeMap::new(),
            docs: Map::default(),
            sums: Map::default(),
            writers: Map::default(),
            told: Map::default(),
        }
    }

    /// The last seq whose state is known.
    pub(crate) fn head(&self) -> u64 {
        self.base.unwrap_or(0) + self.commits.len() as u64
    }
}

#[derive(Debug)]
pub(crate) struct Truth {
    pub(crate) stretches: Vec<Stretch>,
    by_name: Map<Epoch, usize>,
    pub(crate) docs: Vec<DocInfo>,
    doc_ids: Map<DocPath, DocId>,
    collections: Map<Box<str>, usize>,
    /// Where the next commit goes.
    pub(crate) tip: Node,
}

impl Default for Truth {
    fn default() -> Self {
        let mut root = Stretch::new(Epoch(0), None);
        root.base = Some(0);
        Self {
            stretches: vec![root],
            by_name: Map::from_iter([(Epoch(0), 0)]),
            docs: Vec::new(),
            doc_ids: Map::default(),
            collections: Map::default(),
            tip: START,
        }
    }
}

impl Truth {
    pub(crate) fn find(&self, epoch: Epoch) -> Option<usize> {
        // Nearly always the last.
        match self.stretches.last() {
            Some(last) if last.name == epoch => Some(self.stretches.len() - 1),
            _ => self.by_name.get(&epoch).copied(),
        }
    }

    /// The epoch's number, new if need be.
    pub(crate) fn enter(&mut self, epoch: Epoch) -> usize {
        self.find(epoch).unwrap_or_else(|| {
            self.stretches.push(Stretch::new(epoch, None));
            self.by_name.insert(epoch, self.stretches.len() - 1);
            self.stretches.len() - 1
        })
    }

    /// States of the stretch are its parent's up to there, from which it goes on.
    pub(crate) fn inherit(&mut self, epoch: usize, parent: Node) {
        let sum = self.sum_at(parent, &Covers::All);
        let stretch = &mut self.stretches[epoch];
        stretch.parent = Some(parent);
        stretch.base = Some(parent.seq);
        stretch.base_sum = sum;
        stretch.inherits = true;
    }

    /// The stretch begins at `seq` with these documents, whatever was before.
    pub(crate) fn anchor(&mut self, epoch: usize, seq: u64, docs: &[(DocPath, Arc<Doc>)]) {
        let mut sums: Map<usize, u64> = Map::default();
        let mut states = Vec::new();
        for (path, doc) in docs {
            let sum = sums.entry(self.collection(path.collection())).or_default();
            *sum = sum.wrapping_add(doc.sum);
            states.push((self.doc_id(path), doc.clone()));
        }
        let stretch = &mut self.stretches[epoch];
        stretch.base = Some(seq);
        stretch.base_sum = sums.values().copied().fold(0, u64::wrapping_add);
        for (id, doc) in states {
            stretch.docs.insert(id, vec![(seq, Some(doc))]);
        }
        for (collection, sum) in sums {
            stretch.sums.insert(collection, vec![(seq, sum)]);
        }
    }

    /// The place of a position, if its epoch is known.
    pub(crate) fn resolve(&self, position: Position) -> Option<Node> {
        if position.seq == Seq::ZERO {
            return Some(START);
        }
        let epoch = self.find(position.epoch)?;
        let seq = position.seq.get();
        Some(self.canonical(Node { epoch, seq }))
    }

    pub(crate) fn canonical(&self, mut node: Node) -> Node {
        if node.seq == 0 {
            return START;
        }
        while let Some(parent) = self.stretches[node.epoch]
            .parent
            .filter(|parent| node.seq <= parent.seq)
        {
            node.epoch = parent.epoch;
        }
        node
    }

    pub(crate) fn position(&self, node: Node) -> Position {
        let epoch = self.stretches[node.epoch].name;
        Position::new(epoch, Seq::new(node.seq).unwrap_or_default())
    }

    /// Whether the state there is known.
    pub(crate) fn knows(&self, node: Node) -> bool {
        let stretch = &self.stretches[node.epoch];
        node == START || stretch.base.is_some_and(|base| base <= node.seq) && node.seq <= stretch.head()
    }

    /// Whether `a` lies on the way from the start to `b`, or is `b`.
    pub(crate) fn leads_to(&self, a: Node, mut b: Node) -> bool {
        if a == START {
            return true;
        }
        loop {
            if a.epoch == b.epoch {
                return a.seq <= b.seq;
            }
            match self.stretches[b.epoch].parent {
                Some(parent) => {
                    b = Node {
                        epoch: parent.epoch,
                        seq: parent.seq.min(b.seq),
                    }
                }
                None => return false,
            }
        }
    }

    /// Whether all that lies before a place is known by name: no epoch on the way goes on from where nobody knows.
    pub(crate) fn rooted(&self, node: Node) -> bool {
        self.root(node) == START.epoch
    }

    /// The first epoch of those that go on from one another up to a place.
    pub(crate) fn root(&self, node: Node) -> usize {
        let mut epoch = node.epoch;
        while let Some(parent) = self.stretches[epoch].parent {
            epoch = parent.epoch;
        }
        epoch
    }

    /// A commit is lost.
    pub(crate) fn cut(&mut self, node: Node) {
        let stretch = &mut self.stretches[node.epoch];
        let index = stretch.base.and_then(|base| node.seq.checked_sub(base + 1));
        let index = index.and_then(|index| usize::try_from(index).ok());
        if let Some(record) = index.and_then(|index| stretch.commits.get_mut(index)) {
            record.cut = true;
        }
    }

    /// The commits after `from` up to `to`, as stretches (epoch, first, last), the last ones first.
    pub(crate) fn way(&self, from: Node, to: Node) -> Vec<(usize, u64, u64)> {
        let mut way = Vec::new();
        let mut at = to;
        loop {
            let stretch = &self.stretches[at.epoch];
            let below = if at.epoch == from.epoch {
                from.seq
            } else {
                stretch.base.unwrap_or(at.seq)
            };
            if below < at.seq {
                way.push((at.epoch, below + 1, at.seq));
            }
            match stretch.parent {
                Some(parent) if at.epoch != from.epoch => at = parent,
                _ => return way,
            }
        }
    }

    /// The commits after `from` up to `to`, in no particular order of epochs.
    pub(crate) fn between(&self, from: Node, to: Node) -> impl Iterator<Item = (Node, &Record)> {
        let near = from.epoch == to.epoch && from.seq >= to.seq;
        let way = if near { Vec::new() } else { self.way(from, to) };
        way.into_iter().flat_map(move |(epoch, first, last)| {
            (first..=last).filter_map(move |seq| {
                let node = Node { epoch, seq };
                Some((node, self.record(node)?))
            })
        })
    }

    pub(crate) fn record(&self, node: Node) -> Option<&Record> {
        let stretch = &self.stretches[node.epoch];
        let index = node.seq.checked_sub(stretch.base? + 1)?;
        stretch.commits.get(usize::try_from(index).ok()?)
    }

    pub(crate) fn collection(&mut self, name: &str) -> usize {
        if let Some(number) = self.collections.get(name) {
            return *number;
        }
        let number = self.collections.len();
        self.collections.insert(name.into(), number);
        number
    }

    pub(crate) fn doc_id(&mut self, path: &DocPath) -> DocId {
        if let Some(id) = self.doc_ids.get(path) {
            return *id;
        }
        let id = self.docs.len();
        self.docs.push(DocInfo {
            path: path.clone(),
            name: name_sum(path),
            role: Role::of(path),
        });
        self.doc_ids.insert(path.clone(), id);
        id
    }

    pub(crate) fn known_doc(&self, path: &str) -> Option<DocId> {
        self.doc_ids.get(path).copied()
    }

    /// A value that changes along a stretch, as of a place: by what `of` gives for each epoch on the way up.
    fn latest<'a, T: 'a>(&'a self, node: Node, of: impl Fn(&'a Stretch) -> Option<&'a Versions<T>>) -> Option<&'a T> {
        let mut at = node;
        loop {
            let stretch = &self.stretches[at.epoch];
            if let Some(list) = of(stretch) {
                // Mostly it is the last.
                let found = match list.last() {
                    Some(last) if last.0 <= at.seq => Some(last),
                    _ => list[..list.partition_point(|(seq, _)| *seq <= at.seq)].last(),
                };
                if let Some((_, value)) = found {
                    return Some(value);
                }
            }
            at = stretch.parent.filter(|_| stretch.inherits)?;
        }
    }

    /// A document as of a place.
    pub(crate) fn doc_at(&self, node: Node, id: DocId) -> Option<&Arc<Doc>> {
        self.latest(node, |stretch| stretch.docs.get(&id))?.as_ref()
    }

    /// The last mid of a writer as of a place.
    pub(crate) fn last_mid(&self, node: Node, writer: Writer) -> Option<Mid> {
        self.latest(node, |stretch| stretch.writers.get(&writer)).copied()
    }

    /// The highest `last_mid` that was told of a writer on the way to a place.
    pub(crate) fn told(&self, to: Node, writer: Writer) -> Option<Mid> {
        let mut at = Some(to);
        let mut highest = None;
        while let Some(node) = at {
            let stretch = &self.stretches[node.epoch];
            let told = stretch.told.get(&writer).filter(|(seq, _)| *seq <= node.seq);
            highest = highest.max(told.map(|(_, mid)| *mid));
            at = stretch.parent;
        }
        highest
    }

    /// Where a writer's mutation was applied, on the way to a place, erased since or not.
    pub(crate) fn find_mid(&self, to: Node, writer: Writer, mid: Mid) -> Option<Node> {
        let mut at = to;
        loop {
            let stretch = &self.stretches[at.epoch];
            let mids = stretch.writers.get(&writer).map_or(&[][..], Vec::as_slice);
            let found = match mids.binary_search_by_key(&mid, |(_, mid)| *mid) {
                Ok(index) => Some(mids[index].0),
                // After a breach they may be out of order.
                Err(_) => mids.iter().rev().take(8).find(|(_, m)| *m == mid).map(|(seq, _)| *seq),
            };
            // What stands at the base is of before an erasure.
            if let Some(seq) = found.filter(|seq| *seq <= at.seq && stretch.base.is_none_or(|base| base < *seq)) {
                return Some(Node { epoch: at.epoch, seq });
            }
            at = stretch.parent.or_else(|| Some(stretch.erasure.as_ref()?.before))?;
        }
    }

    /// The sum of what is covered as of a place.
    pub(crate) fn sum_at(&self, node: Node, covers: &Covers) -> u64 {
        match covers {
            Covers::All => {
                let base = self.stretches[node.epoch].base_sum;
                self.record(node).map_or(base, |record| record.sum)
            }
            Covers::Only(list) => list
                .iter()
                .filter_map(|name| self.collections.get(name.as_str()))
                .filter_map(|number| self.latest(node, |stretch| stretch.sums.get(number)))
                .copied()
                .fold(0, u64::wrapping_add),
        }
    }

    /// All documents as of a place. For messages only: it looks at every document there ever was.
    pub(crate) fn docs_at<'a>(
        &'a self,
        node: Node,
        covers: &'a Covers,
    ) -> impl Iterator<Item = (&'a DocInfo, &'a Arc<Doc>)> {
        let ids = self.docs.iter().enumerate();
        ids.filter(|(_, info)| covers.doc(&info.path))
            .filter_map(move |(id, info)| Some((info, self.doc_at(node, id)?)))
    }

    /// Appends commits that change nothing, for those that the store left out before `seq`.
    pub(crate) fn fill(&mut self, epoch: usize, seq: u64) {
        for _ in self.stretches[epoch].head() + 1..seq.min(self.stretches[epoch].head() + GAP) {
            let nothing = Record {
                writer: Writer(0),
                mid: Mid::ZERO,
                at: 0,
                docs: Vec::new(),
                sum: 0,
                cut: false,
            };
            self.append(epoch, nothing);
        }
    }

    /// Appends a commit to its stretch. Returns, for each document, its number, what it was and what it is.
    pub(crate) fn append(&mut self, epoch: usize, mut record: Record) -> Vec<Effect> {
        let head = self.stretches[epoch].head();
        let before = Node { epoch, seq: head };
        let seq = head + 1;
        let mut sum = self.sum_at(before, &Covers::All);
        let mut effects = Vec::with_capacity(record.docs.len());
        for change in &record.docs {
            let id = self.doc_id(&change.doc);
            let old = self.doc_at(Node { epoch, seq }, id).cloned();
            let name = self.docs[id].name;
            let new = Doc::change(old.as_ref(), name, &change.kind);
            let moved = sum_of(new.as_ref()).wrapping_sub(sum_of(old.as_ref()));
            sum = sum.wrapping_add(moved);
            let collection = self.collection(change.doc.collection());
            let so_far = self.latest(Node { epoch, seq }, |stretch| stretch.sums.get(&collection));
            let so_far = so_far.copied().unwrap_or(0).wrapping_add(moved);
            let stretch = &mut self.stretches[epoch];
            stretch.sums.entry(collection).or_default().push((seq, so_far));
            stretch.docs.entry(id).or_default().push((seq, new.clone()));
            effects.push(Effect { id, old, new });
        }
        record.sum = sum;
        let stretch = &mut self.stretches[epoch];
        let mids = stretch.writers.entry(record.writer).or_default();
        mids.push((seq, record.mid));
        stretch.commits.push(record);
        effects
    }

    /// The next commit goes there. What lies on the way that is left was lost; how many commits that are.
    pub(crate) fn move_tip(&mut self, to: Node) -> usize {
        let mut at = self.tip;
        self.tip = to;
        let mut cut = 0;
        while !self.leads_to(at, to) {
            let stretch = &mut self.stretches[at.epoch];
            let Some(base) = stretch.base else { break };
            let mut seq = at.seq;
            while seq > base && !self.leads_to(Node { epoch: at.epoch, seq }, to) {
                let index = usize::try_from(seq - base - 1).unwrap_or(usize::MAX);
                if let Some(record) = self.stretches[at.epoch].commits.get_mut(index) {
                    record.cut = true;
                    cut += 1;
                }
                seq -= 1;
            }
            match self.stretches[at.epoch].parent {
                Some(parent) if seq == base => at = parent,
                _ => break,
            }
        }
        cut
    }
}

/// What a commit made of a document.
#[derive(Debug)]
pub(crate) struct Effect {
    pub(crate) id: DocId,
    pub(crate) old: Option<Arc<Doc>>,
    pub(crate) new: Option<Arc<Doc>>,
}

pub(crate) fn sum_of(doc: Option<&Arc<Doc>>) -> u64 {
    doc.map_or(0, |doc| doc.sum)
}
