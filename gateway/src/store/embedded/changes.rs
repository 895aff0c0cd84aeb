//! The `changes` scan: documents in the order of the commit that last touched them, after a cursor.
//!
//! A page is read from one snapshot, checks included. The last page so carries the very head that it
//! was complete at: a document touched since an earlier page has moved ahead of the cursor and is in it.
//!
//! A reset that takes many pages begins with [`sweep`]: what was there when it began, in the order of the
//! table that holds it, since a walk over a table is many times cheaper than to look up each of its documents.
//! What has been touched since then follows in order of its commits, as ever.

use super::disk::{Cut, Look, Table, damaged, told};
use super::document::{self, Document, StoredCell};
use super::keys;
use super::packs::{Packs, Since};
use super::read::{each_cell, last_mid};
use super::sweep::{self, Sweep};
use crate::store::{ChangesReply, ChangesRequest, Cursor, SpaceState, StoreError};
use std::ops::Bound;
use std::sync::Arc;
use tidegate_protocol::msgpack::DocChanges;
use tidegate_protocol::{DocPath, Seq, SpaceId};

/// Documents visited in a page at most, sent or not: a view that covers little must not hold a page up.
const VISITS: usize = 10_000;
/// Cells looked at in a page, after which no further document is begun.
const CELLS: usize = 100_000;
/// What a document or a leaf takes on the wire beside its path and value.
const OVERHEAD: usize = 8;

/// `packs` was asked for the time before the cut was made.
pub(super) fn changes(
    cut: &Cut<'_>,
    space: &SpaceId,
    request: &ChangesRequest,
    (packs, since): (&Packs, Since),
) -> Result<ChangesReply, StoreError> {
    let (state, _) = cut.open_state(space)?;
    if let Some(reason) = request.invalid(&state) {
        return Ok(ChangesReply::Reset(reason));
    }
    let is_sweep = sweep::is_due(request, &state);
    let is_packed = is_sweep && request.view.collections.is_none();
    let begin = match &request.cursor {
        Some(cursor) => cursor.begin,
        None if is_packed => packs.begin(space, request, &state),
        None => state.head.seq,
    };
    let after = request.after.map(|after| after.seq);
    let mut page = Page {
        docs: DocChanges::default(),
        budget: request.budget,
        spent: 0,
        cells: 0,
        last: None,
    };
    let start = if is_sweep {
        if let Some((docs, last)) = packs.page(space, begin, request, &state).filter(|_| is_packed) {
            page.last = Some((Seq::ZERO, last));
            return Ok(page.end_with(docs, request, &state, begin));
        }
        let sweep = Sweep { cut, space, begin };
        if !sweep.run(request, &mut page)? {
            let reply = page.end(request, &state, begin);
            if let (ChangesReply::Page { docs, cursor, .. }, true) = (&reply, is_packed) {
                packs.keep(since, space, request, (docs, cursor));
            }
            return Ok(reply);
        }
        Bound::Included(keys::idx_after(space, begin))
    } else {
        match (&request.cursor, after) {
            (Some(cursor), _) => Bound::Excluded(keys::idx(space, cursor.at, &cursor.doc)),
            (None, Some(after)) => Bound::Included(keys::idx_after(space, after)),
            (None, None) => Bound::Included(keys::space(space)),
        }
    };
    for (visits, guard) in cut.range(Table::Idx, start, keys::space_end(space)).enumerate() {
        if visits >= VISITS || page.is_full() {
            return Ok(page.end(request, &state, begin));
        }
        let key = guard.key().map_err(told)?;
        let (seq, doc) = keys::idx_parts(space, &key).ok_or_else(|| damaged(Table::Idx, &key))?;
        if request.view.covers(&doc) {
            let doc_key = keys::doc(space, &doc);
            let stored = cut.get(Table::Cells, &doc_key)?;
            let document = stored
                .as_deref()
                .map(|bytes| document::parse(bytes).ok_or_else(|| damaged(Table::Cells, &doc_key)))
                .transpose()?;
            // A header that disagrees with the index: some of the document is missing.
            let document = document
                .filter(|document| document.header.last.seq == seq)
                .ok_or_else(|| damaged(Table::Idx, &key))?;
            if !page.add(cut, &doc, (&doc_key, document), request, begin)? {
                return Ok(page.end(request, &state, begin));
            }
        }
        page.last = Some((seq, doc));
    }
    Ok(ChangesReply::Done {
        docs: Arc::new(page.docs),
        last_mid: last_mid(cut, space, request.writer)?,
        state,
    })
}

/// A page that is being filled.
pub(super) struct Page {
    docs: DocChanges,
    /// About how many bytes it may hold.
    budget: usize,
    /// Bytes in `docs`.
    spent: usize,
    /// Cells looked at.
    pub(super) cells: usize,
    /// The last document done with, and the seq that last touched it; none in a sweep.
    pub(super) last: Option<(Seq, DocPath)>,
}

/// A document that a page has begun, and what it takes.
pub(super) struct Begun {
    size: usize,
    doc: usize,
}

impl Page {
    /// Whether no further document is begun.
    pub(super) fn is_full(&self) -> bool {
        self.cells >= CELLS || (self.spent >= self.budget && !self.docs.is_empty())
    }

    /// Begins a document.
    pub(super) fn begin(&mut self, doc: &str) -> Begun {
        self.docs.begin(doc);
        Begun {
            size: 0,
            doc: doc.len() + OVERHEAD,
        }
    }

    /// Adds a leaf to the document that is begun.
    pub(super) fn leaf(&mut self, begun: &mut Begun, field: &str, value: &[u8]) {
        begun.size += field.len() + value.len() + OVERHEAD;
        self.docs.leaf(field, value);
    }

    /// Ends the document that is begun with all that it has. False if the page has no room for it.
    pub(super) fn end_whole(&mut self, begun: &Begun) -> bool {
        let has_room = self.take(begun.doc + begun.size);
        match has_room {
            true => self.docs.end_whole(),
            false => self.docs.take_back(),
        }
        has_room
    }

    /// Counts a document, if there is room for it.
    fn take(&mut self, size: usize) -> bool {
        let has_room = self.docs.is_empty() || self.spent + size <= self.budget;
        if has_room {
            self.spent += size;
        }
        has_room
    }

    /// Adds what a client that holds the state of `request.after` (`None`: what was staged since `begin`) lacks of a
    /// document. False if the page has no room for it.
    fn add(
        &mut self,
        cut: &Cut<'_>,
        doc: &DocPath,
        (key, document): (&[u8], Document<'_>),
        request: &ChangesRequest,
        begin: Seq,
    ) -> Result<bool, StoreError> {
        let header = document.header;
        if !header.alive {
            // In a reset only a page before this one can have brought it.
            let may_be_held = request.after.is_some() || header.last.seq > begin;
            let has_room = !may_be_held || self.take(doc.as_str().len() + OVERHEAD);
            if may_be_held && has_room {
                self.docs.push_deleted(doc.as_str());
            }
            return Ok(has_room);
        }
        let after = request.after.map(|after| after.seq);
        let after = after.filter(|after| header.born.seq <= *after);
        let Some(after) = after else {
            return self.add_whole(cut, doc, (key, document));
        };
        let mut begun = self.begin(doc.as_str());
        let mut unset: Vec<String> = Vec::new();
        each_cell(cut, key, Some(document), |StoredCell { field, stamp, value }| {
            self.cells += 1;
            match value {
                _ if stamp.seq <= after => {}
                Some(value) => self.leaf(&mut begun, field, value),
                None => {
                    begun.size += field.len() + OVERHEAD;
                    unset.push(field.to_owned());
                }
            }
            Some(())
        })?;
        // A delta names every tombstone, and of those there may be more than the document could ever hold.
        if begun.size > request.budget && begun.size as u64 > header.size {
            self.docs.take_back();
            return self.add_whole(cut, doc, (key, document));
        }
        if self.docs.leaves() == 0 && unset.is_empty() {
            self.docs.take_back();
            return Ok(true);
        }
        let has_room = self.take(begun.doc + begun.size);
        match has_room {
            true => self.docs.end_change(unset.iter().map(String::as_str)),
            false => self.docs.take_back(),
        }
        Ok(has_room)
    }

    /// Adds all leaves of a document. False if the page has no room for it.
    fn add_whole(
        &mut self,
        cut: &Cut<'_>,
        doc: &DocPath,
        (key, document): (&[u8], Document<'_>),
    ) -> Result<bool, StoreError> {
        let mut begun = self.begin(doc.as_str());
        each_cell(cut, key, Some(document), |StoredCell { field, value, .. }| {
            self.cells += 1;
            if let Some(value) = value {
                self.leaf(&mut begun, field, value);
            }
            Some(())
        })?;
        Ok(self.end_whole(&begun))
    }

    fn end(mut self, request: &ChangesRequest, state: &SpaceState, begin: Seq) -> ChangesReply {
        let docs = Arc::new(std::mem::take(&mut self.docs));
        self.end_with(docs, request, state, begin)
    }

    fn end_with(self, docs: Arc<DocChanges>, request: &ChangesRequest, state: &SpaceState, begin: Seq) -> ChangesReply {
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
            docs,
            cursor,
            head: state.head,
        }
    }
}
