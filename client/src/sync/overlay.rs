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
        let docs: BTreeSet<_> = mutation.docs().cloned().collect();
        let local = |doc: &DocPath| match self.docs.get(doc) {
            Some(local) => local.leaves.clone(),
            None => confirmed.get(doc).cloned(),
        };
        let mut state: BTreeMap<_, _> = docs.iter().map(|doc| (doc.clone(), local(doc))).collect();
        evaluate(&mut state, mutation);
        let pending = state
            .into_iter()
            .map(|(doc, leaves)| (doc, LocalDoc { leaves, pending: true }));
        self.docs.extend(pending);
        docs.into_iter().collect()
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
        let mut docs = BTreeSet::new();
        let mut mutations = BTreeSet::new();
        let mut waiting: Vec<DocPath> = dirty.into_iter().collect();
        while let Some(doc) = waiting.pop() {
            for id in self.touching.get(&doc).into_iter().flatten() {
                if mutations.insert(*id) {
                    waiting.extend(mutation(*id).docs().filter(|other| !docs.contains(*other)).cloned());
                }
            }
            docs.insert(doc);
        }
        let mut state: BTreeMap<DocPath, Option<Leaves>> = docs
            .iter()
            .map(|doc| (doc.clone(), confirmed.get(doc).cloned()))
            .collect();
        let mut pending = BTreeSet::new();
        for id in mutations {
            let mutation = mutation(id);
            if mutation.overlaid {
                evaluate(&mut state, mutation);
            }
            if mutation.answer.is_none() {
                pending.extend(mutation.docs().cloned());
            }
        }
        let mut changed = Vec::new();
        for (doc, leaves) in state {
            let pending = pending.contains(&doc);
            let is_touched = self.touching.contains_key(&doc);
            let new = LocalDoc { leaves, pending };
            let is_other = match self.docs.get(&doc) {
                Some(old) => *old != new,
                // It was shown as confirmed until now.
                None => confirmed_dirty.contains(&doc) || new.pending || new.leaves.as_ref() != confirmed.get(&doc),
            };
            if is_touched {
                self.docs.insert(doc.clone(), new);
            } else {
                self.docs.remove(&doc);
            }
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
    let mut after: BTreeMap<DocPath, Option<Leaves>> = BTreeMap::new();
    for op in &mutation.ops {
        let doc = after
            .entry(op.doc.clone())
            .or_insert_with(|| state.get(&op.doc).cloned().flatten());
        let wanted = if matches!(op.kind, OpKind::Create(_)) {
            Some(false)
        } else {
            None
        };
        if [op.exists, wanted]
            .into_iter()
            .flatten()
            .any(|wanted| wanted != doc.is_some())
        {
            return;
        }
        apply(doc, &op.kind, mutation.made_at);
    }
    state.extend(after);
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
