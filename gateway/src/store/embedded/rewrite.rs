//! What a commit makes of a document's records.
//!
//! A packed document is written as a whole, one record, which replaces the one before. One that outgrows it is spread,
//! and of a spread one the cells that the commit names are written, and its header. It is packed again where its live
//! leaves have come down far enough, so that nothing is moved to and fro at the bound.

use super::disk::{Look as _, Table, damaged, told};
use super::document::{self, Form, PACKED_BYTES, StoredCell};
use super::keys;
use super::overlay::Overlay;
use crate::store::{Cell, DocEffect, Header, Stamp, StoreError};
use fjall::Slice;
use std::ops::Bound;
use tidegate_protocol::SpaceId;

/// Where the bytes of a spread document's live leaves come down to this, it is looked whether it fits into one record.
const REPACK_BYTES: u64 = PACKED_BYTES as u64 / 4;

/// A document as a commit leaves it, ready to be written.
pub(super) struct Rewrite {
    /// What it was.
    pub(super) old: Option<Header>,
    pub(super) header: Header,
    /// The document's key.
    key: Vec<u8>,
    record: Vec<u8>,
    /// Cells of a spread one.
    cells: Vec<SpreadCell>,
    /// Keys of the cells that it had and that are in its record now.
    gone: Vec<Slice>,
}

/// A record for a cell.
struct SpreadCell {
    key: Vec<u8>,
    record: Vec<u8>,
    /// Whether the document has had none of that name.
    is_new: bool,
}

impl Rewrite {
    /// Looks up what is needed. `stamp` is the commit's.
    pub(super) fn plan(
        overlay: &Overlay<'_>,
        space: &SpaceId,
        stamp: Stamp,
        effect: &DocEffect,
    ) -> Result<Self, StoreError> {
        let key = keys::doc(space, &effect.doc);
        let stored = overlay.get(Table::Cells, &key)?;
        let unreadable = || damaged(Table::Cells, &key);
        let found = match &stored {
            Some(bytes) => Some(document::parse(bytes).ok_or_else(unreadable)?),
            None => None,
        };
        let old = found.as_ref().map(|found| found.header);
        let header = Header {
            last: stamp,
            born: old.filter(|_| !effect.born).map_or(stamp, |old| old.born),
            deleted: if effect.deleted {
                Some(stamp)
            } else {
                old.and_then(|old| old.deleted)
            },
            alive: effect.alive,
            size: effect.size,
        };
        let mut written: Vec<_> = effect
            .cells
            .iter()
            .map(|(field, value)| StoredCell {
                field: field.as_str(),
                stamp,
                value: value.as_ref().map(|value| &value.as_bytes()[..]),
            })
            .collect();
        written.sort_unstable_by(|a, b| a.field.cmp(b.field));
        let (mut gathered, mut is_large) = (None, true);
        let whole = match found.map(|found| found.form) {
            None => Some(Vec::new()),
            Some(Form::Packed(cells)) => Some(cells.all().ok_or_else(unreadable)?),
            Some(Form::Spread { is_large: was_large }) => {
                let shrank = old.is_some_and(|old| old.size > REPACK_BYTES) && header.size <= REPACK_BYTES;
                // What is pending is not in the range that is read.
                let is_tried = (!was_large || shrank) && !overlay.is_pending(Table::Cells, &key);
                is_large = was_large || is_tried;
                if is_tried {
                    gathered = gather(overlay, &key)?;
                }
                match &gathered {
                    Some(all) => Some(cells_of(&key, all).ok_or_else(unreadable)?),
                    None => None,
                }
            }
        };
        let whole = whole.map(|whole| merged(whole, &written));
        let packed = whole.as_ref().and_then(|whole| document::packed(&header, whole));
        let (record, cells, gone) = match (packed, whole, &gathered) {
            (Some(record), ..) => {
                let gone = gathered.into_iter().flatten().map(|(key, _)| key).collect();
                (record, Vec::new(), gone)
            }
            // It was packed, or was not there: every cell gets its key.
            (None, Some(whole), None) => {
                let cells = whole.iter().map(|cell| spread_cell(&key, cell, true)).collect();
                (document::spread(&header, true), cells, Vec::new())
            }
            (None, ..) => {
                let cells = written.iter().map(|cell| {
                    let cell = spread_cell(&key, cell, false);
                    let is_new = !overlay.has(Table::Fields, &cell.key)?;
                    Ok(SpreadCell { is_new, ..cell })
                });
                let cells = cells.collect::<Result<_, StoreError>>()?;
                (document::spread(&header, is_large), cells, Vec::new())
            }
        };
        Ok(Self {
            old,
            header,
            key,
            record,
            cells,
            gone,
        })
    }

    /// Writes it.
    pub(super) fn put(self, overlay: &mut Overlay<'_>) {
        overlay.put(Table::Cells, self.key, self.record);
        for key in self.gone {
            overlay.remove(Table::Fields, key.to_vec());
            overlay.remove(Table::Cells, key.to_vec());
        }
        for SpreadCell { key, record, is_new } in self.cells {
            if is_new {
                overlay.put(Table::Fields, key.clone(), []);
            }
            overlay.put(Table::Cells, key, record);
        }
    }
}

/// `cells` with those that are written in their places; both are sorted by field.
fn merged<'a>(mut cells: Vec<StoredCell<'a>>, written: &[StoredCell<'a>]) -> Vec<StoredCell<'a>> {
    cells.reserve(written.len());
    for cell in written {
        match cells.binary_search_by(|other| other.field.cmp(cell.field)) {
            Ok(at) => cells[at] = *cell,
            Err(at) => cells.insert(at, *cell),
        }
    }
    cells
}

fn spread_cell(doc: &[u8], cell: &StoredCell<'_>, is_new: bool) -> SpreadCell {
    let record = Cell::record(cell.stamp, cell.value);
    SpreadCell {
        key: keys::cell_below(doc, cell.field),
        record,
        is_new,
    }
}

/// Keys and records of the cells of a spread document, as they are on disk; `None` if they are too many for one record.
fn gather(overlay: &Overlay<'_>, doc: &[u8]) -> Result<Option<Vec<(Slice, Slice)>>, StoreError> {
    let (cut, end) = (overlay.cut(), keys::after(doc.to_vec()));
    let (mut all, mut bytes) = (Vec::new(), 0);
    for guard in cut.range(Table::Fields, Bound::Included(doc.to_vec()), end) {
        let key = guard.key().map_err(told)?;
        let record = cut
            .get(Table::Cells, &key)?
            .ok_or_else(|| damaged(Table::Cells, &key))?;
        bytes += key.len() - doc.len() + record.len();
        if bytes > PACKED_BYTES {
            return Ok(None);
        }
        all.push((key, record));
    }
    Ok(Some(all))
}

fn cells_of<'a>(doc: &[u8], all: &'a [(Slice, Slice)]) -> Option<Vec<StoredCell<'a>>> {
    all.iter()
        .map(|(key, record)| document::cell(doc, key, record))
        .collect()
}
