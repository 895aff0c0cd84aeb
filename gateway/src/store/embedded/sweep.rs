//! The first part of a long reset: one walk over the table of cells, documents in the order of their paths.
//!
//! It brings the documents as they were last touched up to the seq at which the scan began. One that was touched
//! later is left out, as the part that follows meets it. So nothing is sent twice, and what both parts bring is what
//! a scan in order of commits brings.

use super::changes::{Begun, Page};
use super::disk::{Cut, Table, damaged, told};
use super::document::{self, Form};
use super::keys;
use super::records;
use crate::store::{ChangesRequest, SpaceState, StoreError, View};
use std::ops::Bound;
use tidegate_protocol::{DocPath, Seq, SpaceId};

/// Pages of a reset from which on it begins with a sweep. A walk passes over every version of a cell that memory
/// still holds, so what takes few pages is cheaper to look up.
const PAGES: u64 = 4;

/// Parts of a table that are walked over one by one; where there are more, what lies between them is walked over, too.
const RANGES: usize = 64;

/// Whether a scan is in its sweep, or begins with one. Its cursor has no seq then.
pub(super) fn is_due(request: &ChangesRequest, state: &SpaceState) -> bool {
    let is_long = || state.usage.bytes > (request.budget as u64).saturating_mul(PAGES);
    request.after.is_none()
        && request
            .cursor
            .as_ref()
            .map_or_else(is_long, |cursor| cursor.at == Seq::ZERO)
}

/// A sweep of a space.
pub(super) struct Sweep<'a, 'd> {
    pub(super) cut: &'a Cut<'d>,
    pub(super) space: &'a SpaceId,
    /// The seq at which the scan began.
    pub(super) begin: Seq,
}

impl Sweep<'_, '_> {
    /// Fills the page with the documents after the cursor. Whether these were all.
    pub(super) fn run(&self, request: &ChangesRequest, page: &mut Page) -> Result<bool, StoreError> {
        // The first key after everything of the last document.
        let from = match &request.cursor {
            Some(cursor) => keys::doc_end(self.space, &cursor.doc),
            None => keys::space(self.space),
        };
        for (start, end) in ranges(self.space, &request.view) {
            let start = start.max(from.clone());
            if start < end && !self.walk(start, end, &request.view, page)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Walks over the documents of a range of keys. Whether it has come to its end.
    fn walk(&self, start: Vec<u8>, end: Vec<u8>, view: &View, page: &mut Page) -> Result<bool, StoreError> {
        let prefix = keys::space(self.space).len();
        // The keys of the last document done with, and of the one at hand; and what of this one is in the page, if it is
        // sent at all.
        let (mut done, mut at_hand) = (Vec::new(), Vec::new());
        let mut begun: Option<Begun> = None;
        let mut is_packed = false;
        let mut has_room = true;
        for entry in self.cut.range(Table::Cells, Bound::Included(start), end) {
            let (key, record) = entry.into_inner().map_err(told)?;
            let unreadable = || damaged(Table::Cells, &key);
            page.cells += 1;
            if let Some(field) = key.strip_prefix(&*at_hand).filter(|_| !at_hand.is_empty()) {
                // Of a packed document everything is in its record.
                let Some(begun) = &mut begun else { continue };
                let parts = records::cell_parts(&record).filter(|_| !is_packed);
                let (_, value) = parts.ok_or_else(unreadable)?;
                if let Some(value) = value {
                    let field = std::str::from_utf8(field).map_err(|_| unreadable())?;
                    page.leaf(begun, field, value);
                }
                continue;
            }
            has_room = begun.take().is_none_or(|begun| page.end_whole(&begun));
            if has_room {
                std::mem::swap(&mut done, &mut at_hand);
            }
            has_room &= !page.is_full() || (done.is_empty() && page.last.is_none());
            if !has_room {
                break;
            }
            // A document begins with its header; cells without one would pass for a document that never was.
            let doc = keys::header_doc(&key[prefix..]).ok_or_else(unreadable)?;
            let document = document::parse(&record).ok_or_else(unreadable)?;
            let header = document.header;
            is_packed = matches!(document.form, Form::Packed(_));
            at_hand.clear();
            at_hand.extend_from_slice(&key);
            if header.alive && header.last.seq <= self.begin && view.covers_path(doc) {
                let begun = begun.insert(page.begin(doc));
                if let Form::Packed(cells) = document.form {
                    for cell in cells {
                        let cell = cell.ok_or_else(unreadable)?;
                        page.cells += 1;
                        if let Some(value) = cell.value {
                            page.leaf(begun, cell.field, value);
                        }
                    }
                }
            }
        }
        has_room = has_room && begun.is_none_or(|begun| page.end_whole(&begun));
        if has_room && !at_hand.is_empty() {
            done = at_hand;
        }
        if !done.is_empty() {
            let doc = keys::header_doc(&done[prefix..]).and_then(|doc| DocPath::parse(doc).ok());
            page.last = Some((Seq::ZERO, doc.ok_or_else(|| damaged(Table::Cells, &done))?));
        }
        Ok(has_room)
    }
}

/// The keys of what a view covers, in order, and apart from each other.
fn ranges(space: &SpaceId, view: &View) -> Vec<(Vec<u8>, Vec<u8>)> {
    let Some(collections) = &view.collections else {
        return vec![(keys::space(space), keys::space_end(space))];
    };
    let mut all: Vec<_> = collections
        .iter()
        .map(|collection| keys::collection(space, collection))
        .collect();
    all.sort();
    // What lies below a collection is in its range.
    all.dedup_by(|next, before| next.0 < before.1);
    if all.len() > RANGES {
        // To begin a walk costs as much as some dozens of its steps.
        let end = all.pop().expect("more than one").1;
        return vec![(all.swap_remove(0).0, end)];
    }
    all
}
