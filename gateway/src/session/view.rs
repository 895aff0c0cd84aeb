//! What a subscription covers: its filter and what the rules let its user read, as one digest.

use crate::auth::ReadScope;
use crate::store::View;
use sha2::{Digest, Sha256};
use std::collections::BTreeSet;
use tidegate_protocol::{Collection, ViewId};

/// The view of a filter under a scope. The same on every node: SHA-256 over the sorted names, each
/// list marked, each name ended by a 0, which no name holds; the first 8 bytes, big-endian.
pub fn view_of(filter: Option<&[Collection]>, scope: &ReadScope) -> View {
    let allowed: Option<BTreeSet<_>> = match scope {
        ReadScope::All => None,
        ReadScope::Collections(list) => Some(list.iter().cloned().collect()),
    };
    let wanted: Option<BTreeSet<_>> = filter.map(|list| list.iter().cloned().collect());
    let mut hash = Sha256::new();
    for (mark, list) in [(b"f", &wanted), (b"r", &allowed)] {
        hash.update(mark);
        hash.update([u8::from(list.is_some())]);
        for name in list.iter().flatten() {
            hash.update(name.as_str());
            hash.update([0]);
        }
    }
    let digest = hash.finalize();
    let mut first = [0; 8];
    first.copy_from_slice(&digest[..8]);
    let collections = match (wanted, allowed) {
        (Some(wanted), Some(allowed)) => Some(wanted.intersection(&allowed).cloned().collect()),
        (one, other) => one.or(other),
    };
    View {
        id: ViewId(u64::from_be_bytes(first)),
        collections,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_view_changes_with_filter_and_scope_and_not_with_their_order() {
        let c = |text: &str| Collection::parse(text).unwrap();
        let all = view_of(None, &ReadScope::All);
        let one = view_of(Some(&[c("a"), c("b")]), &ReadScope::All);
        let same = view_of(Some(&[c("b"), c("a"), c("a")]), &ReadScope::All);
        let ruled = view_of(Some(&[c("a"), c("b")]), &ReadScope::Collections(vec![c("b")]));
        let swapped = view_of(Some(&[c("b")]), &ReadScope::Collections(vec![c("a"), c("b")]));
        assert_eq!(one, same);
        assert_eq!(BTreeSet::from([all.id, one.id, ruled.id, swapped.id]).len(), 4);
        assert_eq!(ruled.collections, Some(BTreeSet::from([c("b")])));
        assert!(
            view_of(Some(&[]), &ReadScope::All)
                .collections
                .is_some_and(|set| set.is_empty())
        );
    }
}
