//! The `changes` scan: documents in the order of the commit that last touched them, after a cursor.
//!
//! A page is read from one snapshot, checks included. The last page so carries the very head that it
//! was complete at: a document touched since an earlier page has moved ahead of the cursor and is in it.

use super::disk::{Cut, Look, Table, damaged, told};
use super::keys;
use super::read::{each_cell, last_mid};
use crate::store::{ChangesReply, ChangesRequest, Cursor, Header, ResetReason, SpaceState, StoreError};
use std::ops::Bound;
use tidegate_protocol::{DocChange, DocChangeKind, DocPath, FieldPath, Position, Seq, SpaceId, Value};

/// Documents visited in a page at most, sent or not: a view that covers little must not hold a page up.
const VISITS: usize = 10_000;
/// Cells looked at in a page, after which no further document is begun.
const CELLS: usize = 100_000;
/// What a document or a leaf takes on the wire beside its path and value.
const OVERHEAD: usize = 8;

pub(super) fn changes(cut: &Cut<'_>, space: &SpaceId, request: &ChangesRequest) -> Result<ChangesReply, StoreError> {
    let (state, _) = cut.open_state(space)?;
    if let Some(reason) = invalid(request, &state) {
        return Ok(ChangesReply::Reset(reason));
    }
    let begin = request.cursor.as_ref().map_or(state.head.seq, |cursor| cursor.begin);
    let after = request.after.map(|after| after.seq);
    let start = match (&request.cursor, after) {
        (Some(cursor), _) => Bound::Excluded(keys::idx(space, cursor.at, &cursor.doc)),
        (None, Some(after)) => Bound::Included(keys::idx_after(space, after)),
        (None, None) => Bound::Included(keys::space(space)),
    };
    let mut page = Page {
        docs: Vec::new(),
        spent: 0,
        cells: 0,
        last: None,
    };
    for (visits, guard) in cut.range(Table::Idx, start, keys::space_end(space)).enumerate() {
        let full = visits >= VISITS || page.cells >= CELLS || (page.spent >= request.budget && !page.docs.is_empty());
        if full {
            return Ok(page.end(request, &state, begin));
        }
        let key = guard.key().map_err(told)?;
        let (seq, doc) = keys::idx_parts(space, &key).ok_or_else(|| damaged(Table::Idx, &key))?;
        if request.view.covers(&doc) {
            let header: Option<Header> = cut.record(Table::Cells, &keys::doc(space, &doc))?;
            // A header that disagrees with the index: some of the document is missing.
            let header = header
                .filter(|header| header.last.seq == seq)
                .ok_or_else(|| damaged(Table::Idx, &key))?;
            if let Some(kind) = page.change(cut, space, &doc, &header, request, begin)? {
                let size = doc.as_str().len() + OVERHEAD + size_of(&kind);
                if !page.docs.is_empty() && page.spent + size > request.budget {
                    return Ok(page.end(request, &state, begin));
                }
                page.spent += size;
                page.docs.push(DocChange { doc: doc.clone(), kind });
            }
        }
        page.last = Some((seq, doc));
    }
    Ok(ChangesReply::Done {
        docs: page.docs,
        last_mid: last_mid(cut, space, request.writer)?,
        state,
    })
}

/// Why the scan cannot go on from where the request says.
fn invalid(request: &ChangesRequest, state: &SpaceState) -> Option<ResetReason> {
    let lost = |position: Position| !state.lineage.holds(position, state.head.seq);
    if request.after.is_some_and(lost) {
        return Some(ResetReason::Lost);
    }
    if let Some(cursor) = &request.cursor {
        if cursor.after != request.after || cursor.view != request.view.id {
            return Some(ResetReason::ForeignCursor);
        }
        if lost(cursor.head) {
            return Some(ResetReason::Lost);
        }
    }
    // What lies below the floor may have been deleted without leaving a trace: a delta must begin
    // above it, and of a reset the staged pages must not be older.
    let trusted = match (request.after, &request.cursor) {
        (Some(after), _) => after.seq,
        (None, Some(cursor)) => cursor.begin,
        (None, None) => state.head.seq,
    };
    (trusted < state.floor).then_some(ResetReason::BelowFloor)
}

struct Page {
    docs: Vec<DocChange>,
    /// Bytes in `docs`.
    spent: usize,
    /// Cells looked at.
    cells: usize,
    /// The last document done with.
    last: Option<(Seq, DocPath)>,
}

impl Page {
    /// What a client that holds the state of `request.after` (`None`: what was staged since `begin`) lacks of a document.
    fn change(
        &mut self,
        cut: &Cut<'_>,
        space: &SpaceId,
        doc: &DocPath,
        header: &Header,
        request: &ChangesRequest,
        begin: Seq,
    ) -> Result<Option<DocChangeKind>, StoreError> {
        if !header.alive {
            // In a reset only a page before this one can have brought it.
            let may_be_held = request.after.is_some() || header.last.seq > begin;
            return Ok(may_be_held.then_some(DocChangeKind::Deleted));
        }
        let after = request.after.map(|after| after.seq);
        let after = after.filter(|after| header.born.seq <= *after);
        let kind = self.leaves(cut, space, doc, after)?;
        // A delta names every tombstone, and of those there may be more than the document could ever hold.
        let size = size_of(&kind);
        if after.is_some() && size > request.budget && size as u64 > header.size {
            return Ok(Some(self.leaves(cut, space, doc, None)?));
        }
        Ok(match &kind {
            DocChangeKind::Change { set, unset } if set.is_empty() && unset.is_empty() => None,
            _ => Some(kind),
        })
    }

    /// The leaves of a document: those written after `after`, tombstones too, or all (`None`).
    fn leaves(
        &mut self,
        cut: &Cut<'_>,
        space: &SpaceId,
        doc: &DocPath,
        after: Option<Seq>,
    ) -> Result<DocChangeKind, StoreError> {
        let newer = |seq: Seq| after.is_none_or(|after| seq > after);
        let (mut set, mut unset) = (Vec::new(), Vec::new());
        each_cell(cut, space, doc, |field, cell| {
            self.cells += 1;
            match cell.value {
                Some(value) if newer(cell.stamp.seq) => set.push((field, value)),
                None if after.is_some() && newer(cell.stamp.seq) => unset.push(field),
                _ => {}
            }
        })?;
        Ok(match after {
            None => DocChangeKind::Whole(set),
            Some(_) => DocChangeKind::Change { set, unset },
        })
    }

    fn end(self, request: &ChangesRequest, state: &SpaceState, begin: Seq) -> ChangesReply {
        let (at, doc) = self.last.expect("a page ends after a document");
        let cursor = Cursor {
            after: request.after,
            at,
            doc,
            begin,
            head: state.head,
            view: request.view.id,
        };
        ChangesReply::Page {
            docs: self.docs,
            cursor,
            head: state.head,
        }
    }
}

fn size_of(kind: &DocChangeKind) -> usize {
    let set = |leaves: &[(FieldPath, Value)]| -> usize {
        leaves
            .iter()
            .map(|(path, value)| path.as_str().len() + value.as_bytes().len() + OVERHEAD)
            .sum()
    };
    match kind {
        DocChangeKind::Change { set: leaves, unset } => {
            set(leaves) + unset.iter().map(|path| path.as_str().len() + OVERHEAD).sum::<usize>()
        }
        DocChangeKind::Whole(leaves) => set(leaves),
        DocChangeKind::Deleted => 0,
    }
}
