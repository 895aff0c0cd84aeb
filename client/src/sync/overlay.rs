//! The overlay: own mutations evaluated over the confirmed state, as the gateway will evaluate them.

use crate::sync::queue::{Mutation, MutationId};
use crate::sync::space::creates;
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use tidegate_protocol::tree::{self, Leaves};
use tidegate_protocol::{DocPath, OpKind};

/// A document as the app sees it.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct LocalDoc {
    /// Its leaves; `None` if it does not exist.
    pub leaves: Option<Leaves>,
    /// Whether a mutation of it waits for its answer.
    pub pending: bool,
}

/// The local views of the documents that own mutations touch.
#[derive(Debug, Default)]
pub(crate) struct Overlay {
    docs: BTreeMap<DocPath, LocalDoc>,
    touching: BTreeMap<DocPath, BTreeSet<MutationId>>,
}

impl Overlay {
    /// The local view of a document, if an own mutation touches it.
    pub(crate) fn get(&self, doc: &DocPath) -> Option<&LocalDoc> {
        self.docs.get(doc)
    }

    /// The documents that own mutations touch, by path.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&DocPath, &LocalDoc)> {
        self.docs.iter()
    }

    /// Takes note of a mutation's documents. `refresh` has to follow.
    pub(crate) fn insert(&mut self, mutation: &Mutation) {
        for doc in mutation.docs() {
            self.touching.entry(doc.clone()).or_default().insert(mutation.id);
        }
    }

    /// Evaluates the newest mutation over the local views; returns the documents that it touches. What
    /// `refresh` would find, at the cost of this mutation alone.
    pub(crate) fn append(&mut self, confirmed: &BTreeMap<DocPath, Leaves>, mutation: &Mutation) -> Vec<DocPath> {
        self.insert(mutation);
        let mut state = BTreeMap::new();
        for doc in mutation.docs() {
            if !state.contains_key(doc) {
                let leaves = match self.docs.remove(doc) {
                    Some(local) => local.leaves,
                    None => confirmed.get(doc).cloned(),
                };
                state.insert(doc.clone(), LocalDoc { leaves, pending: true });
            }
        }
        evaluate(&mut state, mutation);
        let docs = state.keys().cloned().collect();
        self.docs.extend(state);
        docs
    }

    /// Forgets a mutation that is neither queued nor overlaid any more. `refresh` has to follow.
    pub(crate) fn remove(&mut self, mutation: &Mutation) {
        for doc in mutation.docs() {
            if let Some(ids) = self.touching.get_mut(doc) {
                ids.remove(&mutation.id);
                if ids.is_empty() {
                    self.touching.remove(doc);
                }
            }
        }
    }

    /// Evaluates anew what the documents of `dirty` and `confirmed_dirty` look like, the latter's confirmed state being
    /// another; returns those whose local view is another, in any order.
    ///
    /// A mutation is applied all or none, so documents that one mutation joins are evaluated together.
    pub(crate) fn refresh<'a>(
        &mut self,
        confirmed: &BTreeMap<DocPath, Leaves>,
        dirty: BTreeSet<DocPath>,
        confirmed_dirty: &BTreeSet<DocPath>,
        mutation: impl Fn(MutationId) -> &'a Mutation,
    ) -> Vec<DocPath> {
        let mut waiting: Vec<DocPath> = confirmed_dirty.difference(&dirty).cloned().collect();
        waiting.extend(dirty);
        let mut state: BTreeMap<DocPath, LocalDoc> = BTreeMap::new();
        let mut mutations = BTreeSet::new();
        let mut changed = Vec::new();
        while let Some(doc) = waiting.pop() {
            let Some(touching) = self.touching.get(&doc) else {
                // It looks as it is confirmed, and is not copied.
                let is_other = match self.docs.remove(&doc) {
                    Some(old) => old.pending || old.leaves.as_ref() != confirmed.get(&doc),
                    None => confirmed_dirty.contains(&doc),
                };
                if is_other {
                    changed.push(doc);
                }
                continue;
            };
            for id in touching {
                if mutations.insert(*id) {
                    waiting.extend(
                        mutation(*id)
                            .docs()
                            .filter(|other| **other != doc && !state.contains_key(*other))
                            .cloned(),
                    );
                }
            }
            state.entry(doc).or_insert_with_key(|doc| LocalDoc {
                leaves: confirmed.get(doc).cloned(),
                pending: false,
            });
        }
        for id in mutations {
            let mutation = mutation(id);
            if mutation.overlaid {
                evaluate(&mut state, mutation);
            }
            if mutation.is_queued() {
                for doc in mutation.docs() {
                    if let Some(local) = state.get_mut(doc) {
                        local.pending = true;
                    }
                }
            }
        }
        for (doc, new) in state {
            match self.docs.entry(doc) {
                Entry::Occupied(mut old) if *old.get() != new => {
                    changed.push(old.key().clone());
                    old.insert(new);
                }
                Entry::Occupied(_) => {}
                // It was shown as confirmed until now.
                Entry::Vacant(place) => {
                    let doc = place.key();
                    if confirmed_dirty.contains(doc) || new.pending || new.leaves.as_ref() != confirmed.get(doc) {
                        changed.push(doc.clone());
                    }
                    place.insert(new);
                }
            }
        }
        changed
    }
}

/// Applies a mutation to the documents, or leaves them alone where one of its preconditions does not hold:
/// that is what the gateway will do. `unchanged_since` and conflicts are the gateway's to judge.
fn evaluate(state: &mut BTreeMap<DocPath, LocalDoc>, mutation: &Mutation) {
    // Whether each document exists, op by op, before anything is changed.
    let mut exist: BTreeMap<&DocPath, bool> = BTreeMap::new();
    for op in &*mutation.ops {
        let exists = exist
            .entry(&op.doc)
            .or_insert_with(|| state.get(&op.doc).is_some_and(|local| local.leaves.is_some()));
        let wanted = matches!(op.kind, OpKind::Create(_)).then_some(false);
        if [op.exists, wanted]
            .into_iter()
            .flatten()
            .any(|wanted| wanted != *exists)
        {
            return;
        }
        match &op.kind {
            OpKind::Create(_) | OpKind::Replace(_) => *exists = true,
            OpKind::Delete => *exists = false,
            OpKind::Check => {}
            kind => *exists |= creates(kind),
        }
    }
    for op in &*mutation.ops {
        let doc = state
            .get_mut(&op.doc)
            .expect("all documents of a mutation are evaluated");
        apply(&mut doc.leaves, &op.kind, mutation.made_at);
    }
}

fn apply(doc: &mut Option<Leaves>, kind: &OpKind, now_ms: u64) {
    match kind {
        OpKind::Create(fields) | OpKind::Replace(fields) => {
            *doc = Some(
                fields
                    .leaves()
                    .map(|(path, value)| (path.clone(), value.clone()))
                    .collect(),
            );
        }
        OpKind::Delete => *doc = None,
        OpKind::Check => {}
        kind if doc.is_none() && !creates(kind) => {}
        kind => {
            let leaves = doc.get_or_insert_default();
            for unit in tree::units(kind) {
                for step in unit.steps(leaves, now_ms) {
                    tree::apply(leaves, step);
                }
            }
        }
    }
}
