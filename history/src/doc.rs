//! Documents as plain sets of leaves, and sums over them that do not depend on order.

use crate::event::Docs;
use crate::fold::Fold;
use std::hash::Hasher;
use std::sync::Arc;
use tidegate_protocol::{DocChange, DocChangeKind, DocPath, FieldPath, Value};

/// A document that exists. Its `sum` is that of its name and of each leaf, so that the sum of a set of documents
/// tells it from any other set.
#[derive(Clone, Debug)]
pub(crate) struct Doc {
    /// Sorted by path.
    leaves: Vec<Leaf>,
    pub(crate) sum: u64,
}

#[derive(Clone, Debug)]
struct Leaf {
    path: FieldPath,
    value: Value,
    sum: u64,
}

/// What the sums of a document begin with.
pub(crate) fn name_sum(doc: &DocPath) -> u64 {
    let mut hasher = Fold::default();
    hasher.write(doc.as_str().as_bytes());
    hasher.finish()
}

fn leaf_sum(name: u64, path: &FieldPath, value: &Value) -> u64 {
    let mut hasher = Fold::default();
    hasher.write_u64(name);
    hasher.write_usize(path.as_str().len());
    hasher.write(path.as_str().as_bytes());
    hasher.write(value.as_bytes());
    hasher.finish()
}

impl Doc {
    /// Exactly these leaves.
    pub(crate) fn whole<'a>(name: u64, leaves: impl IntoIterator<Item = (&'a FieldPath, &'a Value)>) -> Self {
        let mut doc = Self {
            leaves: Vec::new(),
            sum: name,
        };
        for (path, value) in leaves {
            doc.set(name, path, value);
        }
        doc
    }

    /// What a change makes of a document.
    pub(crate) fn change(old: Option<&Arc<Self>>, name: u64, kind: &DocChangeKind) -> Option<Arc<Self>> {
        match kind {
            DocChangeKind::Deleted => None,
            DocChangeKind::Whole(set) => Some(Arc::new(Self::whole(name, set.iter().map(|(p, v)| (p, v))))),
            DocChangeKind::Change { set, .. } if old.is_none() && set.is_empty() => None,
            DocChangeKind::Change { set, unset } => {
                let mut doc = old.map_or_else(|| Self::whole(name, []), |old| Self::clone(old));
                for root in unset {
                    let sum = &mut doc.sum;
                    doc.leaves.retain(|leaf| {
                        let goes = leaf.path == *root || is_below(&leaf.path, root);
                        if goes {
                            *sum = sum.wrapping_sub(leaf.sum);
                        }
                        !goes
                    });
                }
                for (path, value) in set {
                    doc.set(name, path, value);
                }
                Some(Arc::new(doc))
            }
        }
    }

    fn set(&mut self, name: u64, path: &FieldPath, value: &Value) {
        let leaf = Leaf {
            path: path.clone(),
            value: value.clone(),
            sum: leaf_sum(name, path, value),
        };
        self.sum = self.sum.wrapping_add(leaf.sum);
        // Leaves mostly come sorted.
        let at = match self.leaves.last() {
            Some(last) if last.path >= *path => self.leaves.binary_search_by(|leaf| leaf.path.cmp(path)),
            _ => Err(self.leaves.len()),
        };
        match at {
            Ok(at) => {
                let old = std::mem::replace(&mut self.leaves[at], leaf);
                self.sum = self.sum.wrapping_sub(old.sum);
            }
            Err(at) => self.leaves.insert(at, leaf),
        }
    }

    /// A leaf's value.
    pub(crate) fn get(&self, path: &str) -> Option<&Value> {
        let at = self.leaves.binary_search_by(|leaf| leaf.path.as_str().cmp(path)).ok()?;
        Some(&self.leaves[at].value)
    }

    /// Its leaves, sorted by path.
    pub(crate) fn leaves(&self) -> impl Iterator<Item = (&FieldPath, &Value)> {
        self.leaves.iter().map(|leaf| (&leaf.path, &leaf.value))
    }

    /// Two leaves of which one lies above the other, if there are such.
    pub(crate) fn overlap(&self) -> Option<(&FieldPath, &FieldPath)> {
        self.leaves.iter().find_map(|leaf| {
            let above = prefixes(leaf.path.as_str()).find_map(|prefix| {
                let at = self
                    .leaves
                    .binary_search_by(|leaf| leaf.path.as_str().cmp(prefix))
                    .ok()?;
                Some(&self.leaves[at].path)
            })?;
            Some((above, &leaf.path))
        })
    }
}

/// Whether `path` is strictly below `root`. An escaped dot follows a backslash, so a dot that follows a whole
/// path parts segments.
fn is_below(path: &FieldPath, root: &FieldPath) -> bool {
    path.as_str()
        .strip_prefix(root.as_str())
        .is_some_and(|rest| rest.starts_with('.'))
}

/// The paths strictly above one.
fn prefixes(path: &str) -> impl Iterator<Item = &str> {
    let mut escaped = false;
    path.bytes().enumerate().filter_map(move |(at, byte)| {
        let dot = byte == b'.' && !escaped;
        escaped = byte == b'\\' && !escaped;
        dot.then(|| &path[..at])
    })
}

/// The sum of a set of documents.
pub(crate) fn sum_of(docs: &Docs) -> u64 {
    docs.iter()
        .map(|(path, leaves)| Doc::whole(name_sum(path), leaves).sum)
        .fold(0, u64::wrapping_add)
}

/// Applies changes to plain documents: subtrees are unset, then leaves set.
pub fn apply(docs: &mut Docs, changes: &[DocChange]) {
    for DocChange { doc, kind } in changes {
        match kind {
            DocChangeKind::Deleted => {
                docs.remove(doc);
            }
            DocChangeKind::Whole(set) => {
                docs.insert(doc.clone(), set.iter().cloned().collect());
            }
            DocChangeKind::Change { set, unset } => {
                if set.is_empty() && !docs.contains_key(doc) {
                    continue;
                }
                let leaves = docs.entry(doc.clone()).or_default();
                for root in unset {
                    leaves.retain(|path, _| path != root && !is_below(path, root));
                }
                leaves.extend(set.iter().cloned());
            }
        }
    }
}

/// Plain documents from changes that begin with nothing, such as the answer to a `get` or the pages of a reset.
pub fn plain(changes: &[DocChange]) -> Docs {
    let mut docs = Docs::new();
    apply(&mut docs, changes);
    docs
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &str) -> FieldPath {
        FieldPath::parse(text).expect("valid")
    }

    fn set(paths: &[&str]) -> Vec<(FieldPath, Value)> {
        paths.iter().map(|text| (path(text), Value::int(1))).collect()
    }

    #[test]
    fn a_sum_does_not_depend_on_the_way() {
        let long = Arc::new(Doc::whole(
            7,
            set(&["a.b", "a.c", "a b", "z"]).iter().map(|(p, v)| (p, v)),
        ));
        let unset = vec![path("a")];
        let kind = DocChangeKind::Change {
            set: set(&["k"]),
            unset,
        };
        let changed = Doc::change(Some(&long), 7, &kind).expect("exists");
        let direct = Doc::whole(7, set(&["z", "k", "a b"]).iter().map(|(p, v)| (p, v)));
        assert_eq!(changed.sum, direct.sum);
        assert_ne!(changed.sum, Doc::whole(8, direct.leaves()).sum, "another name");
        assert_ne!(changed.sum, long.sum);
        assert_eq!(changed.get("k"), Some(&Value::int(1)));
        assert_eq!(changed.get("a.b"), None);
    }

    #[test]
    fn leaves_above_one_another_are_found() {
        let overlap = |paths: &[&str]| {
            Doc::whole(1, set(paths).iter().map(|(p, v)| (p, v)))
                .overlap()
                .is_some()
        };
        assert!(!overlap(&["a", "ab", "a b", r"a\.b", "b.c.d", "b.ce"]));
        assert!(overlap(&["a", "a b", "a.c.d"]));
        assert!(overlap(&[r"x\.y", r"x\.y.z"]));
    }
}
