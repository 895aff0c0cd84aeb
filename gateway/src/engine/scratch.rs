//! One document as a mutation's ops change it, one after another, and the net effect in the end.
//!
//! Only what the mutation writes is copied: a large document costs what is touched of it.

use crate::store::{DocEffect, DocState, Usage};
use std::collections::{BTreeMap, BTreeSet};
use tidegate_protocol::tree::{self, Present, Step};
use tidegate_protocol::{DocChange, DocChangeKind, DocPath, FieldPath, Fields, Value};

/// A document while a mutation is evaluated.
pub(super) struct Scratch<'a> {
    /// As it was before the mutation.
    pub(super) before: &'a DocState,
    alive: bool,
    /// It came into being, or was replaced, and has existed since.
    born: bool,
    /// It existed before and was deleted on the way.
    deleted: bool,
    /// Bytes of the live leaves' paths and values.
    size: u64,
    /// What this mutation writes: a value, or a tombstone for a leaf that was there before. Leaves
    /// that came and went within the mutation leave no trace.
    cells: BTreeMap<FieldPath, Option<Value>>,
    /// Subtrees that lost a leaf that was there before. Every live leaf in one is this mutation's.
    roots: BTreeSet<FieldPath>,
}

/// The net effect of a mutation on a document.
pub(super) struct Net {
    /// For the store.
    pub(super) effect: DocEffect,
    /// For subscribers.
    pub(super) change: DocChange,
}

fn cost(path: &FieldPath, value: &Value) -> u64 {
    (path.as_str().len() + value.as_bytes().len()) as u64
}

impl<'a> Scratch<'a> {
    pub(super) fn new(before: &'a DocState) -> Self {
        let alive = before.alive();
        let size = before.header.filter(|_| alive).map_or(0, |header| header.size);
        Self {
            before,
            alive,
            born: false,
            deleted: false,
            size,
            cells: BTreeMap::new(),
            roots: BTreeSet::new(),
        }
    }

    /// Whether the document exists now.
    pub(super) fn alive(&self) -> bool {
        self.alive
    }

    /// Brings the document into being, without a leaf, if it does not exist.
    pub(super) fn come_alive(&mut self) {
        self.born |= !self.alive;
        self.alive = true;
    }

    /// Does a step of an op on fields. A write brings the document into being.
    pub(super) fn run(&mut self, step: &Step) {
        for path in self.removed_by(step) {
            self.remove(path, step);
        }
        if let Step::Write(path, value) = step {
            self.come_alive();
            if let Some(old) = self.leaf(path) {
                self.size -= cost(path, old);
            }
            self.size += cost(path, value);
            self.cells.insert(path.clone(), Some(value.clone()));
        }
    }

    /// Makes it exactly these leaves, newly born.
    pub(super) fn replace(&mut self, fields: &Fields) {
        self.clear();
        self.alive = true;
        self.born = true;
        for (path, value) in fields.leaves() {
            self.run(&Step::Write(path.clone(), value.clone()));
        }
    }

    /// Ends its existence.
    pub(super) fn delete(&mut self) {
        self.clear();
        self.deleted |= self.before.alive();
        self.alive = false;
        self.born = false;
    }

    fn clear(&mut self) {
        for path in self.live().map(|(path, _)| path.clone()).collect::<Vec<_>>() {
            let step = Step::Clear(path.clone());
            self.remove(path, &step);
        }
    }

    /// Removes a live leaf, as part of a step.
    fn remove(&mut self, path: FieldPath, step: &Step) {
        if let Some(value) = self.leaf(&path) {
            self.size -= cost(&path, value);
        }
        if self.before.cells.get(&path).is_some_and(|cell| cell.value.is_some()) {
            let (Step::Clear(at) | Step::Write(at, _)) = step;
            self.roots
                .insert(if path.is_below(at) { at.clone() } else { path.clone() });
            self.cells.insert(path, None);
        } else {
            self.cells.remove(&path);
        }
    }

    /// The live leaves that a step removes; for a write, by the structure rule.
    fn removed_by(&self, step: &Step) -> Vec<FieldPath> {
        let mut paths = tree::removed_by(&self.before.cells, step);
        paths.extend(tree::removed_by(&self.cells, step));
        paths.retain(|path| self.leaf(path).is_some());
        paths.sort_unstable();
        paths.dedup();
        paths
    }

    /// The live leaves, in no order.
    pub(super) fn live(&self) -> impl Iterator<Item = (&FieldPath, &Value)> {
        let kept = self.before.leaves().filter(|(path, _)| !self.cells.contains_key(*path));
        kept.chain(self.written())
    }

    /// The live leaves that this mutation wrote, sorted by path.
    fn written(&self) -> impl Iterator<Item = (&FieldPath, &Value)> {
        self.cells
            .iter()
            .filter_map(|(path, value)| Some((path, value.as_ref()?)))
    }

    /// Leaves that there are, or were and have a tombstone.
    pub(super) fn fields(&self) -> usize {
        let new = self.cells.keys().filter(|path| !self.before.cells.contains_key(*path));
        self.before.cells.len() + new.count()
    }

    /// Bytes of the live leaves' paths and values.
    pub(super) fn size(&self) -> u64 {
        self.size
    }

    /// What the document takes.
    pub(super) fn usage(&self) -> Usage {
        match self.alive {
            true => Usage {
                docs: 1,
                bytes: self.size,
            },
            false => Usage::default(),
        }
    }

    /// What it took before the mutation.
    pub(super) fn usage_before(&self) -> Usage {
        Usage::of(self.before.header.as_ref())
    }

    /// The net effect; `None` if the mutation left the document as it was.
    pub(super) fn finish(self, doc: &DocPath) -> Option<Net> {
        if self.cells.is_empty() && !self.born && !self.deleted {
            return None;
        }
        let leaves = || {
            self.written()
                .map(|(path, value)| (path.clone(), value.clone()))
                .collect()
        };
        let kind = if !self.alive {
            DocChangeKind::Deleted
        } else if self.born {
            DocChangeKind::Whole(leaves())
        } else {
            DocChangeKind::Change {
                set: leaves(),
                unset: self.unset(),
            }
        };
        let effect = DocEffect {
            doc: doc.clone(),
            born: self.born,
            deleted: self.deleted,
            alive: self.alive,
            size: self.size,
            cells: self.cells.into_iter().collect(),
        };
        Some(Net {
            effect,
            change: DocChange { doc: doc.clone(), kind },
        })
    }

    /// The fewest subtrees that hold every leaf removed and not written again.
    fn unset(&self) -> Vec<FieldPath> {
        let gone = |root: &FieldPath| tree::subtree(&self.cells, root).any(|(_, value)| value.is_none());
        let covered = |root: &FieldPath| root.ancestors().any(|above| self.roots.contains(&above));
        self.roots
            .iter()
            .filter(|root| gone(root) && !covered(root))
            .cloned()
            .collect()
    }
}

/// The live leaves, as far as ops look at them.
impl Present for Scratch<'_> {
    fn leaf(&self, path: &FieldPath) -> Option<&Value> {
        match self.cells.get(path) {
            Some(written) => written.as_ref(),
            None => self.before.cells.get(path)?.value.as_ref(),
        }
    }

    fn any_below(&self, path: &FieldPath) -> bool {
        let live_below = |at: &FieldPath| at != path && self.leaf(at).is_some();
        tree::subtree(&self.before.cells, path).any(|(at, _)| live_below(at))
            || tree::subtree(&self.cells, path).any(|(at, _)| live_below(at))
    }
}
