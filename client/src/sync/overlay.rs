//! The overlay: own mutations evaluated over the confirmed state, as the gateway will evaluate them.

use crate::sync::queue::{Mutation, MutationId};
use crate::sync::space::creates;
use std::collections::{BTreeMap, BTreeSet, HashMap};
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
    touching: HashMap<DocPath, BTreeSet<MutationId>>,
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
                let local = match self.docs.remove(doc) {
                    Some(local) => local.leaves,
                    None => confirmed.get(doc).cloned(),
                };
                state.insert(doc.clone(), local);
            }
        }
        evaluate(&mut state, mutation);
        let docs = state.keys().cloned().collect();
        let pending = state
            .into_iter()
            .map(|(doc, leaves)| (doc, LocalDoc { leaves, pending: true }));
        self.docs.extend(pending);
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

    /// Evaluates anew what `dirty` documents look like; returns those whose local view is another.
    ///
    /// A mutation is applied all or none, so documents that one mutation joins are evaluated together.
    pub(crate) fn refresh<'a>(
        &mut self,
        confirmed: &BTreeMap<DocPath, Leaves>,
        dirty: BTreeSet<DocPath>,
        confirmed_dirty: &BTreeSet<DocPath>,
        mutation: impl Fn(MutationId) -> &'a Mutation,
    ) -> Vec<DocPath> {
        // Each with whether a mutation touches it.
        let mut docs = BTreeMap::new();
        let mut mutations = BTreeSet::new();
        let mut waiting: Vec<DocPath> = dirty.into_iter().collect();
        while let Some(doc) = waiting.pop() {
            let touching = self.touching.get(&doc);
            for id in touching.into_iter().flatten() {
                if mutations.insert(*id) {
                    waiting.extend(mutation(*id).docs().filter(|other| !docs.contains_key(*other)).cloned());
                }
            }
            docs.insert(doc, touching.is_some());
        }
        // What no mutation touches looks as it is confirmed, and is not copied.
        let mut state: BTreeMap<DocPath, Option<Leaves>> = BTreeMap::new();
        for (doc, _) in docs.iter().filter(|(_, is_touched)| **is_touched) {
            state.insert(doc.clone(), confirmed.get(doc).cloned());
        }
        let mut pending = BTreeSet::new();
        for id in mutations {
            let mutation = mutation(id);
            if mutation.overlaid {
                evaluate(&mut state, mutation);
            }
            if mutation.answer.is_none() {
                pending.extend(mutation.docs());
            }
        }
        let mut changed = Vec::new();
        for doc in docs.into_keys() {
            let is_other = match (state.remove(&doc), self.docs.remove(&doc)) {
                (None, Some(old)) => old.pending || old.leaves.as_ref() != confirmed.get(&doc),
                (None, None) => confirmed_dirty.contains(&doc),
                (Some(leaves), old) => {
                    let pending = pending.contains(&doc);
                    let new = LocalDoc { leaves, pending };
                    let is_other = match old {
                        Some(old) => old != new,
                        // It was shown as confirmed until now.
                        None => confirmed_dirty.contains(&doc) || pending || new.leaves.as_ref() != confirmed.get(&doc),
                    };
                    self.docs.insert(doc.clone(), new);
                    is_other
                }
            };
            if is_other {
                changed.push(doc);
            }
        }
        changed
    }
}

/// Applies a mutation to the documents, or leaves them alone where one of its preconditions does not hold:
/// that is what the gateway will do. `unchanged_since` and conflicts are the gateway's to judge.
fn evaluate(state: &mut BTreeMap<DocPath, Option<Leaves>>, mutation: &Mutation) {
    // Whether each document exists, op by op, before anything is changed.
    let mut exist: BTreeMap<&DocPath, bool> = BTreeMap::new();
    for op in &mutation.ops {
        let exists = exist
            .entry(&op.doc)
            .or_insert_with(|| state.get(&op.doc).is_some_and(Option::is_some));
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
    for op in &mutation.ops {
        let doc = state
            .get_mut(&op.doc)
            .expect("all documents of a mutation are evaluated");
        apply(doc, &op.kind, mutation.made_at);
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
                    tree::apply(leaves, &step);
                }
            }
        }
    }
}
