//! What is stored of a document: all of it in one record while that is small, else a record for each cell.
//!
//! Under the document's own key is a record that begins with its header. Of a *packed* document the cells follow in it,
//! in the order of their paths, and nothing else is stored of it. Of a *spread* one the record ends there: its cells are
//! under keys of their own, and so are their names. Format 2 knew only spread documents; they become packed as they are
//! written to, and both forms are good for ever.

use super::records::{self, Record as _, Take};
use crate::store::{Header, Stamp};

/// Bytes of a packed document's record at most. A commit writes the whole record, so that one field of a large document
/// must not cost a copy of it; below it, a record costs less than the keys of the cells that it spares.
pub(super) const PACKED_BYTES: usize = 2_048;

/// What a document is, in the byte behind the size.
const ALIVE: u8 = 1;
/// Its cells follow.
const PACKED: u8 = 2;
/// Of a packed one: the stamp of its deletion stands before the cells. Of a spread one it stands at the end, or does not.
const DELETED: u8 = 4;
/// Of a spread one: it was too large when it was last tried.
const LARGE: u8 = 8;

/// A document as it is stored.
#[derive(Clone, Copy)]
pub(super) struct Document<'a> {
    pub(super) header: Header,
    pub(super) form: Form<'a>,
}

/// Where a document's cells are.
#[derive(Clone, Copy)]
pub(super) enum Form<'a> {
    /// In its record.
    Packed(Cells<'a>),
    /// Under keys of their own.
    Spread {
        /// Whether it was found too large for one record. What format 2 wrote was not tried.
        is_large: bool,
    },
}

/// A cell.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct StoredCell<'a> {
    pub(super) field: &'a str,
    pub(super) stamp: Stamp,
    /// The bytes of a value; `None` is a tombstone.
    pub(super) value: Option<&'a [u8]>,
}

/// The cells of a packed document, in the order of their paths. One that cannot be read is `None`, and the last.
#[derive(Clone, Copy)]
pub(super) struct Cells<'a>(&'a [u8]);

impl<'a> IntoIterator for Cells<'a> {
    type Item = Option<StoredCell<'a>>;
    type IntoIter = CellsIter<'a>;

    fn into_iter(self) -> CellsIter<'a> {
        CellsIter(self.0)
    }
}

impl<'a> Cells<'a> {
    /// All of them; `None` if one cannot be read.
    pub(super) fn all(self) -> Option<Vec<StoredCell<'a>>> {
        self.into_iter().collect()
    }
}

/// What goes through [`Cells`].
pub(super) struct CellsIter<'a>(&'a [u8]);

impl<'a> CellsIter<'a> {
    fn cell(&mut self) -> Option<StoredCell<'a>> {
        let mut from = Take(self.0);
        let len = from.u16()?;
        let field = std::str::from_utf8(from.split(len)?).ok()?;
        let stamp = Stamp::take(&mut from)?;
        let len = from.u16()?;
        let value = from.split(len)?;
        self.0 = from.rest();
        Some(StoredCell {
            field,
            stamp,
            value: (!value.is_empty()).then_some(value),
        })
    }
}

impl<'a> Iterator for CellsIter<'a> {
    type Item = Option<StoredCell<'a>>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let cell = self.cell();
        if cell.is_none() {
            self.0 = &[];
        }
        Some(cell)
    }
}

impl StoredCell<'_> {
    /// Bytes that it takes in a packed document's record.
    pub(super) fn size(&self) -> usize {
        2 + self.field.len() + 16 + 2 + self.value.map_or(0, <[u8]>::len)
    }
}

/// Reads the record under a document's key. Cells are read as they are asked for.
pub(super) fn parse(bytes: &[u8]) -> Option<Document<'_>> {
    let mut from = Take(bytes);
    let (last, born, size) = (Stamp::take(&mut from)?, Stamp::take(&mut from)?, from.u64()?);
    let kind = from.u8()?;
    let deleted = match kind & !ALIVE {
        0 | LARGE if from.0.is_empty() => None,
        PACKED => None,
        0 | LARGE => Some(Stamp::take(&mut from)?),
        kind if kind == PACKED | DELETED => Some(Stamp::take(&mut from)?),
        _ => return None,
    };
    let form = if kind & PACKED != 0 {
        Form::Packed(Cells(from.rest()))
    } else {
        let is_large = kind & LARGE != 0;
        from.0.is_empty().then_some(Form::Spread { is_large })?
    };
    Some(Document {
        header: Header {
            last,
            born,
            deleted,
            alive: kind & ALIVE != 0,
            size,
        },
        form,
    })
}

/// The header in the record under a document's key.
pub(super) fn header(bytes: &[u8]) -> Option<Header> {
    parse(bytes).map(|document| document.header)
}

fn put(header: &Header, kind: u8, more: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(HEADER_BYTES + more);
    header.last.put(&mut out);
    header.born.put(&mut out);
    out.extend_from_slice(&header.size.to_be_bytes());
    out.push(kind | if header.alive { ALIVE } else { 0 });
    if let Some(deleted) = &header.deleted {
        deleted.put(&mut out);
    }
    out
}

/// Bytes of a header at most.
const HEADER_BYTES: usize = 3 * 16 + 8 + 1;

/// The record of a spread document.
pub(super) fn spread(header: &Header, is_large: bool) -> Vec<u8> {
    put(header, if is_large { LARGE } else { 0 }, 0)
}

/// The record of a document with these cells, sorted by field; `None` if it would be too large for a packed one.
pub(super) fn packed(header: &Header, cells: &[StoredCell<'_>]) -> Option<Vec<u8>> {
    let size = cells.iter().map(StoredCell::size).sum::<usize>();
    let deleted = if header.deleted.is_some() { DELETED } else { 0 };
    if HEADER_BYTES + size > PACKED_BYTES {
        return None;
    }
    let mut out = put(header, PACKED | deleted, size);
    let put_len = |out: &mut Vec<u8>, len: usize| {
        let len = u16::try_from(len).expect("bounded by the record's size");
        out.extend_from_slice(&len.to_be_bytes());
    };
    for StoredCell { field, stamp, value } in cells {
        let value = value.unwrap_or_default();
        put_len(&mut out, field.len());
        out.extend_from_slice(field.as_bytes());
        stamp.put(&mut out);
        put_len(&mut out, value.len());
        out.extend_from_slice(value);
    }
    Some(out)
}

/// A cell of a spread document, by the document's key, its own, and its record.
pub(super) fn cell<'a>(doc: &[u8], key: &'a [u8], record: &'a [u8]) -> Option<StoredCell<'a>> {
    let (stamp, value) = records::cell_parts(record)?;
    Some(StoredCell {
        field: std::str::from_utf8(key.get(doc.len()..)?).ok()?,
        stamp,
        value,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use tidegate_protocol::{Seq, Writer};

    fn stamp(n: u64) -> Stamp {
        Stamp {
            seq: Seq::new(n).expect("small"),
            writer: Writer(n << 40),
        }
    }

    fn header(deleted: Option<u64>, alive: bool) -> Header {
        Header {
            last: stamp(9),
            born: stamp(2),
            deleted: deleted.map(stamp),
            alive,
            size: 77,
        }
    }

    #[test]
    fn what_is_stored_is_read_and_what_is_not_whole_is_told() {
        let cells = [
            StoredCell {
                field: "a",
                stamp: stamp(3),
                value: Some(&[1]),
            },
            StoredCell {
                field: "b.c",
                stamp: stamp(4),
                value: None,
            },
        ];
        for header in [header(None, true), header(Some(5), true), header(Some(9), false)] {
            let ends = |parts: usize| HEADER_BYTES - if header.deleted.is_some() { 0 } else { 16 } + parts;
            for cells in [&cells[..], &cells[..1], &[]] {
                let record = packed(&header, cells).expect("it is small");
                for end in 0..=record.len() {
                    let found = parse(&record[..end]);
                    let read = found.and_then(|found| match found.form {
                        Form::Packed(cells) => cells.all(),
                        Form::Spread { .. } => panic!("it is packed"),
                    });
                    // Cut between two cells it is a whole one that has fewer.
                    let whole = (0..=cells.len()).find(|n| end == ends(cells[..*n].iter().map(StoredCell::size).sum()));
                    assert_eq!(read.as_deref(), whole.map(|n| &cells[..n]), "{end}");
                    assert!(found.is_none_or(|found| found.header == header));
                }
            }
            for is_large in [false, true] {
                let record = spread(&header, is_large);
                let found = parse(&record).expect("whole");
                assert_eq!(found.header, header);
                assert!(matches!(found.form, Form::Spread { is_large: is } if is == is_large));
                assert!(parse(&[&record[..], &[0]].concat()).is_none());
                assert!(parse(&record[..record.len() - 1]).is_none());
            }
        }
        let mut other = spread(&header(None, true), false);
        for kind in (0..=u8::MAX).filter(|kind| ![0, 1, 2, 3, 8, 9].contains(kind)) {
            *other.last_mut().expect("the kind") = kind;
            assert!(parse(&other).is_none(), "{kind}");
        }
    }

    #[test]
    fn a_record_is_packed_up_to_its_bound() {
        let room = PACKED_BYTES - HEADER_BYTES - 21;
        let value = vec![0xc0; room + 1];
        let cell = |bytes: usize| {
            let cell = StoredCell {
                field: "a",
                stamp: stamp(3),
                value: Some(&value[..bytes]),
            };
            packed(&header(Some(5), true), &[cell])
        };
        assert_eq!(cell(room).map(|record| record.len()), Some(PACKED_BYTES));
        assert_eq!(cell(room + 1), None);
    }
}
