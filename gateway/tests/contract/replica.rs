//! A client's confirmed state, as naive as can be: it applies what a store sends, and nothing else.

use crate::generate::segments;
use crate::interpret::{Path, Plain};
use crate::value::V;
use std::collections::{BTreeMap, BTreeSet};
use tidegate::store::{Cursor, View};
use tidegate_protocol::{Collection, DocChange, DocChangeKind, FieldPath, Position, Value, ViewId};

#[derive(Clone)]
pub(crate) struct Replica {
    /// Which store it follows.
    pub(crate) store: usize,
    pub(crate) view: View,
    pub(crate) at: Position,
    /// The suite's own name of the commit at that position, 0 at the start.
    pub(crate) commit: u64,
    /// Nothing was committed in the position's epoch up to it: a restore may lose the epoch and no commit.
    pub(crate) bare: bool,
    pub(crate) docs: Plain,
    pub(crate) scan: Option<Scan>,
}

/// A catch-up by pages, staged.
#[derive(Clone)]
pub(crate) struct Scan {
    pub(crate) after: Option<Position>,
    pub(crate) cursor: Option<Cursor>,
    pub(crate) staged: Plain,
    /// Documents that earlier pages brought.
    pub(crate) met: BTreeSet<String>,
    /// Commits, and openings of the store, when the last page came.
    pub(crate) commits: u64,
    pub(crate) lives: u64,
}

pub(crate) fn view(collections: Option<&[&str]>) -> View {
    let parse = |name: &&str| Collection::parse(name).expect("valid");
    View {
        id: ViewId(collections.map_or(0, |list| list.len() as u64)),
        collections: collections.map(|list| list.iter().map(parse).collect()),
    }
}

impl Replica {
    pub(crate) fn new(store: usize, view: View) -> Self {
        Self {
            store,
            view,
            at: Position::START,
            commit: 0,
            bare: true,
            docs: Plain::new(),
            scan: None,
        }
    }

    /// What of a space's state this replica is to hold.
    pub(crate) fn expected(&self, whole: &Plain) -> Plain {
        let covered = |name: &str| {
            let collection = name.rsplit_once('/').map_or("", |(collection, _)| collection);
            self.view
                .collections
                .as_ref()
                .is_none_or(|set| set.iter().any(|c| c.as_str() == collection))
        };
        whole
            .iter()
            .filter(|(name, _)| covered(name))
            .map(|(name, doc)| (name.clone(), doc.clone()))
            .collect()
    }
}

/// Applies changes as a client does: subtrees unset first, then leaves set.
pub(crate) fn apply(docs: &mut Plain, changes: &[DocChange]) {
    let leaves = |set: &[(FieldPath, Value)]| -> BTreeMap<Path, V> {
        set.iter().map(|(path, value)| (segments(path), V::of(value))).collect()
    };
    for change in changes {
        let name = change.doc.as_str();
        match &change.kind {
            DocChangeKind::Deleted => {
                docs.remove(name);
            }
            DocChangeKind::Whole(set) => {
                docs.insert(name.to_owned(), leaves(set));
            }
            DocChangeKind::Change { set, unset } => {
                let doc = docs
                    .get_mut(name)
                    .unwrap_or_else(|| panic!("{name} changes, and was never sent whole"));
                for root in unset {
                    let root = segments(root);
                    doc.retain(|path, _| !path.starts_with(&root));
                }
                doc.extend(leaves(set));
            }
        }
    }
}

/// A change in a form that two stores agree on: of nested subtrees only the topmost is named.
pub(crate) fn normal(docs: &[DocChange]) -> Vec<DocChange> {
    let topmost = |unset: &[FieldPath]| -> Vec<FieldPath> {
        let below = |path: &FieldPath| {
            unset
                .iter()
                .any(|root| root != path && segments(path).starts_with(&segments(root)))
        };
        unset.iter().filter(|path| !below(path)).cloned().collect()
    };
    let kind = |kind: &DocChangeKind| match kind {
        DocChangeKind::Change { set, unset } => DocChangeKind::Change {
            set: set.clone(),
            unset: topmost(unset),
        },
        other => other.clone(),
    };
    docs.iter()
        .map(|change| DocChange {
            doc: change.doc.clone(),
            kind: kind(&change.kind),
        })
        .collect()
}
