//! Documents of a page, encoded by the store that keeps their values, and not decoded on the way to a client.

use super::change::decode_doc_changes;
use crate::error::Invalid;
use crate::message::{DocChange, DocChangeKind};
use crate::name::FieldPath;
use crate::value::write;
use std::ops::Range;

/// Documents in the form of `d`, one after the other, without the head of their array.
///
/// What a store keeps is canonical already (see [`crate::Value`]): it is copied into its place, and nothing is read in it.
/// A document is begun, gets its leaves in the order of their paths, and is ended or taken back.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct DocChanges {
    count: usize,
    bytes: Vec<u8>,
    /// Where the name of the last one stands.
    last: Range<usize>,
    open: Option<Open>,
}

/// The document that was begun last.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Open {
    start: usize,
    name: Range<usize>,
    /// Where the head of its map of leaves stands: one byte, as long as they are few.
    map: usize,
    leaves: usize,
}

impl DocChanges {
    /// How many.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Bytes that they take.
    pub fn size(&self) -> usize {
        self.bytes.len()
    }

    /// The name of the last one.
    pub fn last_doc(&self) -> Option<&str> {
        // The name of a document that was begun, and taken back, is not in `last`.
        (self.count > 0).then(|| std::str::from_utf8(&self.bytes[self.last.clone()]).expect("written as text"))
    }

    /// Makes room for so many bytes more.
    pub fn reserve(&mut self, bytes: usize) {
        self.bytes.reserve(bytes);
    }

    /// Adds a document that is at hand in full.
    pub fn push(&mut self, change: &DocChange) {
        let set = match &change.kind {
            DocChangeKind::Deleted => return self.push_deleted(change.doc.as_str()),
            DocChangeKind::Change { set, .. } | DocChangeKind::Whole(set) => set,
        };
        self.begin(change.doc.as_str());
        for (path, value) in set {
            self.leaf(path.as_str(), value.as_bytes());
        }
        match &change.kind {
            DocChangeKind::Change { unset, .. } => self.end_change(unset.iter().map(FieldPath::as_str)),
            _ => self.end_whole(),
        }
    }

    /// Adds a document that exists no more. `doc` is the name of one.
    pub fn push_deleted(&mut self, doc: &str) {
        assert!(self.open.is_none(), "a document is begun");
        write::array(&mut self.bytes, 1);
        self.last = self.name(doc);
        self.count += 1;
    }

    /// Begins a document. `doc` is the name of one.
    pub fn begin(&mut self, doc: &str) {
        assert!(self.open.is_none(), "a document is begun");
        let start = self.bytes.len();
        write::array(&mut self.bytes, 2);
        let name = self.name(doc);
        let map = self.bytes.len();
        write::map(&mut self.bytes, 0);
        self.open = Some(Open {
            start,
            name,
            map,
            leaves: 0,
        });
    }

    fn name(&mut self, doc: &str) -> Range<usize> {
        write::str(&mut self.bytes, doc);
        self.bytes.len() - doc.len()..self.bytes.len()
    }

    /// Adds a leaf to the document that is begun. `path` is the name of a field, above those before it; `value`
    /// is the bytes of a [`crate::Value`].
    pub fn leaf(&mut self, path: &str, value: &[u8]) {
        debug_assert!(
            super::value(value).is_ok_and(|read| read.as_bytes() == value),
            "not canonical: {value:02x?}"
        );
        let open = self.open.as_mut().expect("a document is begun");
        open.leaves += 1;
        write::str(&mut self.bytes, path);
        self.bytes.extend_from_slice(value);
    }

    /// How many leaves the document that is begun has.
    pub fn leaves(&self) -> usize {
        self.open.as_ref().map_or(0, |open| open.leaves)
    }

    /// Ends the document that is begun: these leaves are all that it has.
    pub fn end_whole(&mut self) {
        self.end();
    }

    /// Ends the document that is begun: these leaves are set, and what is at and below those paths is unset.
    pub fn end_change<'p>(&mut self, unset: impl ExactSizeIterator<Item = &'p str>) {
        let start = self.end();
        // An array of three in place of two: its head is one byte.
        self.bytes[start] += 1;
        write::array(&mut self.bytes, unset.len());
        for path in unset {
            write::str(&mut self.bytes, path);
        }
    }

    /// Takes back the document that is begun.
    pub fn take_back(&mut self) {
        let open = self.open.take().expect("a document is begun");
        self.bytes.truncate(open.start);
    }

    fn end(&mut self) -> usize {
        let Open {
            start,
            name,
            map,
            leaves,
        } = self.open.take().expect("a document is begun");
        match u8::try_from(leaves) {
            // In the head that stands there.
            Ok(few @ ..16) => self.bytes[map] |= few,
            _ => {
                let mut head = Vec::with_capacity(5);
                write::map(&mut head, leaves);
                drop(self.bytes.splice(map..=map, head));
            }
        }
        (self.last, self.count) = (name, self.count + 1);
        start
    }

    /// Reads them.
    pub fn decode(&self) -> Result<Vec<DocChange>, Invalid> {
        let mut all = Vec::with_capacity(5 + self.bytes.len());
        write::array(&mut all, self.count);
        all.extend_from_slice(&self.bytes);
        decode_doc_changes(&all)
    }
}

impl<'d> FromIterator<&'d DocChange> for DocChanges {
    fn from_iter<I: IntoIterator<Item = &'d DocChange>>(all: I) -> Self {
        let mut docs = Self::default();
        all.into_iter().for_each(|doc| docs.push(doc));
        docs
    }
}

/// The pieces of the message `page`, to be put together in this order.
pub fn page_parts<'d>(id: u64, docs: &'d DocChanges, cursor: &[u8]) -> (Vec<u8>, &'d [u8], Vec<u8>) {
    assert!(docs.open.is_none(), "a document is begun");
    let mut head = Vec::with_capacity(32);
    write::map(&mut head, 4);
    write::str(&mut head, "t");
    write::str(&mut head, "page");
    write::str(&mut head, "id");
    write::uint(&mut head, id);
    write::str(&mut head, "docs");
    write::array(&mut head, docs.count);
    let mut tail = Vec::with_capacity(16 + cursor.len());
    write::str(&mut tail, "cursor");
    write::bin(&mut tail, cursor);
    (head, &docs.bytes, tail)
}
