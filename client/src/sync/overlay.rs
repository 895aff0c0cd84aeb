//! The overlay: own mutations evaluated over the confirmed state, as the gateway will evaluate them.

use crate::sync::queue::{Mutation, MutationId};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use tidegate_protocol::tree::{self, Leaves};
use tidegate_protocol::{DocPath, Op, OpKind};

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
/// that is what the gateway will do.
fn evaluate(state: &mut BTreeMap<DocPath, Option<Leaves>>, mutation: &Mutation) {
    let exists = |doc: &DocPath| state.get(doc).is_some_and(Option::is_some);
    let holds = |op: &Op| {
        let wanted = if matches!(op.kind, OpKind::Create(_)) {
            Some(false)
        } else {
            op.exists
        };
        wanted.is_none_or(|wanted| wanted == exists(&op.doc))
    };
    if !mutation.ops.iter().all(holds) {
        return;
    }
    for op in &mutation.ops {
        if let Some(doc) = state.get_mut(&op.doc) {
            apply(doc, &op.kind, mutation.made_at);
        }
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
        _ => {
            let units = tree::units(kind);
            let creates = match kind {
                OpKind::Set(_) | OpKind::Merge(_) => true,
                _ => units.iter().any(tree::Unit::creates),
            };
            if doc.is_none() && !creates {
                return;
            }
            let leaves = doc.get_or_insert_default();
            for unit in units {
                for step in unit.steps(leaves, now_ms) {
                    tree::apply(leaves, &step);
                }
            }
        }
    }
}
