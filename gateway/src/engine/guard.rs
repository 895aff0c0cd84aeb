//! What stands in a mutation's way: preconditions and conflicts. Both are judged by the cells and
//! headers as they were before the mutation, tombstones included.

use crate::store::{Cell, DocState, SpaceState, Stamp};
use tidegate_protocol::tree;
use tidegate_protocol::{FieldPath, Position, Seq, Writer};

/// A position up to which somebody had seen the space, cut to this history.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seen {
    pub(super) seq: Seq,
    /// Tombstones after it may be gone, so what is missing may have been there.
    below_floor: bool,
}

impl Seen {
    /// A mutation's `base`. What it had seen of a lost stretch of history counts as not seen.
    pub(super) fn base(base: Position, space: &SpaceState) -> Self {
        let seq = space.lineage.cut(base, space.head.seq);
        Self {
            seq,
            below_floor: seq < space.floor,
        }
    }

    /// The position of `unchanged_since`; `None` if it is none of this history. What was read in a
    /// lost stretch may not be what stands, so it must not be cut: the precondition fails.
    pub(super) fn since(since: Position, space: &SpaceState) -> Option<Self> {
        let held = space.lineage.holds(since, space.head.seq);
        held.then(|| Self {
            seq: since.seq,
            below_floor: since.seq < space.floor,
        })
    }
}

/// The cells at, above and below a path (`None`: all), tombstones too.
pub(super) fn around<'a>(
    doc: &'a DocState,
    path: Option<&FieldPath>,
) -> impl Iterator<Item = (&'a FieldPath, &'a Cell)> {
    let field = path.map(|path| {
        tree::above(&doc.cells, path)
            .into_iter()
            .chain(tree::subtree(&doc.cells, path))
    });
    let whole = path.is_none().then(|| doc.cells.iter());
    field.into_iter().flatten().chain(whole.into_iter().flatten())
}

/// Whether anything of a field (`None`: of the document) was written after `since`, by anybody.
pub(super) fn changed(doc: &DocState, path: Option<&FieldPath>, since: Seen) -> bool {
    let Some(header) = doc.header else {
        return since.below_floor;
    };
    if header.last.seq <= since.seq {
        return false;
    }
    let Some(path) = path else { return true };
    let newer = |stamp: Stamp| stamp.seq > since.seq;
    if newer(header.born) || header.deleted.is_some_and(newer) || around(doc, Some(path)).any(|(_, c)| newer(c.stamp)) {
        return true;
    }
    since.below_floor && !stands_at_or_above(doc, path)
}

/// What of a field (`None`: of the document) conflicts with a mutation of `me` that had seen `base`:
/// what other writers wrote after it. `None`: no conflict. The list may be empty in a conflict: with
/// the document's deletion, or with an absence that may be a change (`must_exist`).
pub(super) fn conflict(
    doc: &DocState,
    path: Option<&FieldPath>,
    base: Seen,
    me: Writer,
    must_exist: bool,
) -> Option<Vec<(FieldPath, Cell)>> {
    let header = doc.header?;
    let foreign = |stamp: Stamp| stamp.seq > base.seq && stamp.writer != me;
    let theirs: Vec<_> = around(doc, path)
        .filter(|(_, c)| foreign(c.stamp))
        .map(|(p, c)| (p.clone(), c.clone()))
        .collect();
    // The last touch counts although its cells are no longer known: what was removed then may be collected.
    let document = || path.is_none() && (foreign(header.born) || foreign(header.last));
    let whole = header.deleted.is_some_and(foreign) || document();
    let absent = || {
        // Something else at, above or below it may have been removed, and the removal been collected.
        let unknown = path.is_some_and(|path| !stands_at_or_above(doc, path));
        must_exist && base.below_floor && header.last.seq > base.seq && unknown
    };
    (whole || !theirs.is_empty() || absent()).then_some(theirs)
}

/// Whether a live leaf stands at the path or above it: then nothing at, above or below it has
/// changed since that leaf was written, for any such change would have removed it.
fn stands_at_or_above(doc: &DocState, path: &FieldPath) -> bool {
    let live = |path: &str| doc.cells.get(path).is_some_and(|cell| cell.value.is_some());
    live(path.as_str()) || path.ancestors().any(|above| live(above.as_str()))
}
