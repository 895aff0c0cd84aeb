//! Documents: headers, cells and their names, side by side; the index; tombstones.

use super::super::disk::{Look as _, Table};
use super::super::document::{self, Form, StoredCell};
use super::super::keys;
use super::super::records;
use super::{Check, Rule, Space};
use crate::store::{Header, StoreError, Usage};
use tidegate_protocol::{DocPath, FieldPath, Seq, msgpack};

impl Check<'_> {
    /// Cells, with headers before their documents, and names, in the same order.
    pub(super) fn docs(&mut self, space: &Space<'_>) -> Result<(), StoreError> {
        const TABLE: Table = Table::Cells;
        let (mut open, mut usage): (Option<Document>, Usage) = (None, Usage::default());
        while let Some((key, value)) = self.next(TABLE, &space.prefix)? {
            let Some((doc, field)) = keys::cell_parts(space.name, &key) else {
                let place = space.rest(&key).escape_ascii();
                self.broken(Rule::Key, TABLE, space.name, place, "it is no document and field");
                continue;
            };
            if open.as_ref().is_none_or(|open| open.doc != doc) {
                if let Some(done) = open.take() {
                    self.end_of_doc(space, &done);
                }
                self.done.docs += 1;
                open = Some(Document::new(doc.clone()));
            }
            let document = open.as_mut().expect("just opened");
            match field {
                None => {
                    document.seen = true;
                    self.record_of(space, document, &value)?;
                    usage.replace(Usage::default(), Usage::of(document.header.as_ref()));
                }
                Some(field) => self.spread_cell(space, document, &field, &key, &value)?,
            }
        }
        if let Some(done) = open {
            self.end_of_doc(space, &done);
        }
        while let Some((key, _)) = self.next(Table::Fields, &space.prefix)? {
            self.name_without_cell(space, &key);
        }
        if usage != space.meta.usage {
            let found = format!("{usage:?}, the record says {:?}", space.meta.usage);
            self.broken(Rule::Usage, TABLE, space.name, "", found);
        }
        Ok(())
    }

    fn name_without_cell(&mut self, space: &Space<'_>, key: &[u8]) {
        let place = place_of(space, key);
        self.broken(
            Rule::FieldName,
            Table::Fields,
            space.name,
            place,
            "a name without a cell",
        );
    }

    /// What is under a document's own key: its header, and the cells of a packed one.
    fn record_of(&mut self, space: &Space<'_>, document: &mut Document, record: &[u8]) -> Result<(), StoreError> {
        const TABLE: Table = Table::Cells;
        let Some(stored) = document::parse(record) else {
            self.unreadable(space, document.doc.as_str(), record);
            return Ok(());
        };
        document.header = Some(stored.header);
        self.header(space, &document.doc, &stored.header)?;
        let Form::Packed(cells) = stored.form else {
            return Ok(());
        };
        document.is_packed = true;
        let mut last = "";
        for cell in cells {
            let Some((cell, field)) = cell.and_then(|cell| Some((cell, FieldPath::parse(cell.field).ok()?))) else {
                self.unreadable(space, document.doc.as_str(), record);
                return Ok(());
            };
            if cell.field <= last {
                let found = format!("{field} after {last}");
                self.broken(Rule::CellOrder, TABLE, space.name, &document.doc, found);
            }
            last = cell.field;
            self.cell(space, document, &field, &cell)?;
        }
        Ok(())
    }

    fn unreadable(&mut self, space: &Space<'_>, place: &str, record: &[u8]) {
        let found = format!("{} bytes", record.len());
        self.broken(Rule::Record, Table::Cells, space.name, place, found);
    }

    fn header(&mut self, space: &Space<'_>, doc: &DocPath, header: &Header) -> Result<(), StoreError> {
        const TABLE: Table = Table::Cells;
        let last = header.last.seq;
        let deleted = header.deleted.map_or(Seq::ZERO, |stamp| stamp.seq);
        if last == Seq::ZERO || last > space.meta.head || header.born.seq > last || deleted > last {
            let found = format!(
                "born {}, deleted {deleted}, last {last}, head {}",
                header.born.seq, space.meta.head
            );
            self.broken(Rule::HeaderSeq, TABLE, space.name, doc, found);
        }
        if self.cut.get(Table::Idx, &keys::idx(space.name, last, doc))?.is_none() {
            let found = format!("not there under {last}, which touched it last");
            self.broken(Rule::Index, Table::Idx, space.name, doc, found);
        }
        if !header.alive && last > space.meta.floor {
            self.listed(space, last, doc, None)?;
        }
        Ok(())
    }

    /// Whether collection will find a tombstone.
    fn listed(
        &mut self,
        space: &Space<'_>,
        seq: Seq,
        doc: &DocPath,
        field: Option<&FieldPath>,
    ) -> Result<(), StoreError> {
        if self
            .cut
            .get(Table::Dead, &keys::dead(space.name, seq, doc, field))?
            .is_none()
        {
            let place = format!("{doc} {}", field.map_or("", FieldPath::as_str));
            self.broken(
                Rule::Tombstone,
                Table::Dead,
                space.name,
                place.trim_end(),
                format_args!("of {seq}"),
            );
        }
        Ok(())
    }

    /// A cell under a key of its own.
    fn spread_cell(
        &mut self,
        space: &Space<'_>,
        document: &mut Document,
        field: &FieldPath,
        key: &[u8],
        record: &[u8],
    ) -> Result<(), StoreError> {
        const TABLE: Table = Table::Cells;
        let place = format!("{} {field}", document.doc);
        if document.is_packed {
            let found = "the document's cells are in its record";
            self.broken(Rule::Packed, TABLE, space.name, &place, found);
        }
        if !std::mem::replace(&mut document.seen, true) {
            self.broken(
                Rule::Header,
                TABLE,
                space.name,
                &document.doc,
                format_args!("a cell stands first, {field}"),
            );
        }
        // Names are in the same order.
        loop {
            match self.tables[Table::Fields as usize].peek()? {
                Some(name) if **name < *key && name.starts_with(&space.prefix) => {
                    if let Some((name, _)) = self.next(Table::Fields, &space.prefix)? {
                        self.name_without_cell(space, &name);
                    }
                }
                Some(name) if **name == *key => {
                    if let Some((_, value)) = self.next(Table::Fields, &space.prefix)? {
                        self.is_empty(Table::Fields, space.name, &place, &value);
                    }
                    break;
                }
                _ => {
                    self.broken(
                        Rule::FieldName,
                        Table::Fields,
                        space.name,
                        &place,
                        "a cell without a name",
                    );
                    break;
                }
            }
        }
        let Some((stamp, value)) = records::cell_parts(record) else {
            self.unreadable(space, &place, record);
            return Ok(());
        };
        let cell = StoredCell {
            field: field.as_str(),
            stamp,
            value,
        };
        self.cell(space, document, field, &cell)
    }

    /// A cell, wherever it is.
    fn cell(
        &mut self,
        space: &Space<'_>,
        document: &mut Document,
        field: &FieldPath,
        cell: &StoredCell<'_>,
    ) -> Result<(), StoreError> {
        const TABLE: Table = Table::Cells;
        let place = format!("{} {field}", document.doc);
        let seq = cell.stamp.seq;
        let last = document.header.map_or(space.meta.head, |header| header.last.seq);
        if seq == Seq::ZERO || seq > last {
            self.broken(
                Rule::CellSeq,
                TABLE,
                space.name,
                &place,
                format_args!("{seq}, the document {last}"),
            );
        }
        let Some(value) = cell.value else {
            if seq > space.meta.floor {
                self.listed(space, seq, &document.doc, Some(field))?;
            }
            return Ok(());
        };
        match msgpack::value(value) {
            Ok(canonical) if canonical.as_bytes() == value && canonical.is_leaf() => {}
            Ok(_) => self.broken(
                Rule::Value,
                TABLE,
                space.name,
                &place,
                format_args!("{} bytes", value.len()),
            ),
            Err(error) => self.broken(Rule::Value, TABLE, space.name, &place, error),
        }
        if let Some(above) = document.add(field, value.len()) {
            self.broken(
                Rule::Structure,
                TABLE,
                space.name,
                &place,
                format_args!("below {above}"),
            );
        }
        Ok(())
    }

    fn end_of_doc(&mut self, space: &Space<'_>, document: &Document) {
        let Some(header) = document.header else { return };
        let Document { doc, size, leaves, .. } = document;
        if !header.alive && *leaves > 0 {
            self.broken(
                Rule::DeadLeaf,
                Table::Cells,
                space.name,
                doc,
                format_args!("{leaves} of them"),
            );
        }
        let size = if header.alive { *size } else { 0 };
        if header.size != size {
            let found = format!("{size} bytes, the header says {}", header.size);
            self.broken(Rule::Size, Table::Cells, space.name, doc, found);
        }
    }

    /// The index: every entry stands for a header. That every header has one is seen there.
    pub(super) fn index(&mut self, space: &Space<'_>) -> Result<(), StoreError> {
        const TABLE: Table = Table::Idx;
        while let Some((key, value)) = self.next(TABLE, &space.prefix)? {
            let Some((seq, doc)) = keys::idx_parts(space.name, &key) else {
                let place = space.rest(&key).escape_ascii();
                self.broken(Rule::Key, TABLE, space.name, place, "it is no seq and document");
                continue;
            };
            self.is_empty(TABLE, space.name, doc.as_str(), &value);
            let header = self.cut.get(Table::Cells, &keys::doc(space.name, &doc))?;
            let last = header
                .and_then(|bytes| document::header(&bytes))
                .map(|header| header.last.seq);
            if last != Some(seq) {
                let last = last.map_or("nothing".to_owned(), |last| last.to_string());
                let found = format!("there under {seq}, the header says {last}");
                self.broken(Rule::Index, TABLE, space.name, doc, found);
            }
        }
        Ok(())
    }

    /// Tombstones listed for collection. One that has been written over may be listed still.
    pub(super) fn dead(&mut self, space: &Space<'_>) -> Result<(), StoreError> {
        const TABLE: Table = Table::Dead;
        while let Some((key, value)) = self.next(TABLE, &space.prefix)? {
            match keys::dead_parts(space.name, &key) {
                Some((seq, doc, _)) if seq <= space.meta.head => {
                    self.is_empty(TABLE, space.name, doc.as_str(), &value);
                }
                Some((seq, doc, _)) => {
                    let found = format!("of {seq}, the head is {}", space.meta.head);
                    self.broken(Rule::Tombstone, TABLE, space.name, doc, found);
                }
                None => {
                    let place = space.rest(&key).escape_ascii();
                    self.broken(Rule::Key, TABLE, space.name, place, "it is no seq and document");
                }
            }
        }
        Ok(())
    }
}

/// A document under check.
struct Document {
    doc: DocPath,
    header: Option<Header>,
    /// Whether a header, or its absence, has been met.
    seen: bool,
    /// Whether its cells are in its record.
    is_packed: bool,
    /// The bytes of live leaves so far.
    size: u64,
    /// How many.
    leaves: u64,
    /// The live leaves whose text the last one's begins with, shortest first: what the next can lie below.
    open: Vec<FieldPath>,
}

impl Document {
    fn new(doc: DocPath) -> Self {
        Self {
            doc,
            header: None,
            seen: false,
            is_packed: false,
            size: 0,
            leaves: 0,
            open: Vec::new(),
        }
    }

    /// Counts a live leaf; they come sorted. Returns one that it lies below.
    fn add(&mut self, field: &FieldPath, value: usize) -> Option<FieldPath> {
        self.size += (field.as_str().len() + value) as u64;
        self.leaves += 1;
        // In the order of text, `a` and `a.b` may have `a-c` between them.
        while self
            .open
            .last()
            .is_some_and(|last| !field.as_str().starts_with(last.as_str()))
        {
            self.open.pop();
        }
        let above = self.open.iter().find(|above| field.is_below(above)).cloned();
        self.open.push(field.clone());
        above
    }
}

/// Document and field of a cell's key, to be read.
fn place_of(space: &Space<'_>, key: &[u8]) -> String {
    match keys::cell_parts(space.name, key) {
        Some((doc, Some(field))) => format!("{doc} {field}"),
        Some((doc, None)) => doc.to_string(),
        None => space.rest(key).escape_ascii().to_string(),
    }
}
