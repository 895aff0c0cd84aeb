//! Reads: each from one snapshot of all tables.

use super::disk::{Cut, Look, Table, damaged, told};
use super::document::{self, Document, Form, StoredCell};
use super::keys;
use super::records::{self, Client, Record};
use crate::store::{Cell, ConflictRecord, DocState, LogEntry, LogReply, ReadCut, ResetReason, SpaceState, StoreError};
use bytes::Bytes;
use std::ops::Bound;
use tidegate_protocol::{DocPath, FieldPath, Mid, Position, Seq, SpaceId, Value, Writer};

/// The spaces after one (`None`: all), in the order of their names.
pub(super) fn spaces_after<'c>(
    cut: &'c Cut<'_>,
    last: Option<&SpaceId>,
) -> impl Iterator<Item = Result<SpaceId, StoreError>> + use<'c> {
    let mut from = last.map_or_else(Vec::new, keys::space_end);
    std::iter::from_fn(move || {
        // A space has many keys here (marks of time): seek past them instead of walking over them.
        let start = Bound::Included(std::mem::take(&mut from));
        let guard = cut.range(Table::Spaces, start, vec![0xff]).next()?;
        let space = guard.key().map_err(told).and_then(|key| {
            let space = keys::space_of(&key).ok_or_else(|| damaged(Table::Spaces, &key))?;
            from = keys::space_end(&space);
            Ok(space)
        });
        if space.is_err() {
            // Nothing comes after what cannot be read.
            from = vec![0xff];
        }
        Some(space)
    })
}

pub(super) fn positions(cut: &Cut<'_>, spaces: &[SpaceId]) -> Result<Vec<SpaceState>, StoreError> {
    spaces.iter().map(|space| Ok(cut.state(space)?.0)).collect()
}

pub(super) fn read(cut: &Cut<'_>, space: &SpaceId, docs: &[DocPath]) -> Result<ReadCut, StoreError> {
    let (state, _) = cut.open_state(space)?;
    let docs = docs
        .iter()
        .map(|doc| document(cut, space, doc))
        .collect::<Result<_, _>>()?;
    Ok(ReadCut { state, docs })
}

pub(super) fn document(cut: &Cut<'_>, space: &SpaceId, doc: &DocPath) -> Result<DocState, StoreError> {
    let key = keys::doc(space, doc);
    let stored = cut.get(Table::Cells, &key)?;
    let document = stored
        .as_deref()
        .map(|bytes| document::parse(bytes).ok_or_else(|| damaged(Table::Cells, &key)))
        .transpose()?;
    let mut found = DocState {
        header: document.as_ref().map(|document| document.header),
        ..DocState::default()
    };
    each_cell(cut, &key, document, |StoredCell { field, stamp, value }| {
        let value = value.map(|value| Value::from_trusted(Bytes::copy_from_slice(value)));
        found.cells.insert(FieldPath::parse(field).ok()?, Cell { stamp, value });
        Some(())
    })?;
    Ok(found)
}

/// Hands the cells of a document to `each`, sorted by field; it answers `None` to one that it cannot read. `key` is the
/// document's, and `document` what is under it.
pub(super) fn each_cell(
    cut: &Cut<'_>,
    key: &[u8],
    document: Option<Document<'_>>,
    mut each: impl FnMut(StoredCell<'_>) -> Option<()>,
) -> Result<(), StoreError> {
    let has_header = document.is_some();
    if let Some(Form::Packed(cells)) = document.map(|document| document.form) {
        return cells
            .into_iter()
            .try_for_each(|cell| each(cell?))
            .ok_or_else(|| damaged(Table::Cells, key));
    }
    for guard in cut.range(Table::Fields, Bound::Included(key.to_vec()), keys::after(key.to_vec())) {
        let name = guard.key().map_err(told)?;
        // Cells without a header would pass for a document that never was.
        let field = std::str::from_utf8(&name[key.len()..]).ok();
        let field = field.filter(|field| has_header && !field.is_empty());
        let field = field.ok_or_else(|| damaged(Table::Fields, &name))?;
        let record = cut.get(Table::Cells, &name)?;
        record
            .as_deref()
            .and_then(records::cell_parts)
            .and_then(|(stamp, value)| each(StoredCell { field, stamp, value }))
            .ok_or_else(|| damaged(Table::Cells, &name))?;
    }
    Ok(())
}

/// The last mutation of a client, if there is a record of it. One that has expired is reported until it
/// is collected, since a read has no clock: its client then writes, and is told `ClientUnknown`.
pub(super) fn last_mid(cut: &Cut<'_>, space: &SpaceId, writer: Option<Writer>) -> Result<Option<Mid>, StoreError> {
    let Some(writer) = writer else { return Ok(None) };
    let client: Option<Client> = cut.record(Table::Clients, &keys::client(space, writer))?;
    Ok(client.filter(|client| !client.is_erased()).map(|client| client.last))
}

pub(super) fn log(
    cut: &Cut<'_>,
    space: &SpaceId,
    after: Position,
    limit: usize,
    bytes: usize,
    writer: Option<Writer>,
) -> Result<LogReply, StoreError> {
    let (state, meta) = cut.open_state(space)?;
    if !state.lineage.holds(after, state.head.seq) {
        return Ok(LogReply::Reset(ResetReason::Lost));
    }
    let trimmed = after.seq < state.head.seq && after.seq.next() < meta.log_first;
    if trimmed || !state.lineage.names_all_after(after) {
        return Ok(LogReply::Trimmed);
    }
    let mut commits: Vec<LogEntry> = Vec::new();
    let (mut spent, mut expected) = (0, after.seq);
    let start = Bound::Excluded(keys::log(space, after.seq));
    for guard in cut.range(Table::Log, start, keys::space_end(space)).take(limit) {
        if !commits.is_empty() && spent >= bytes {
            break;
        }
        let (key, payload) = guard.into_inner().map_err(told)?;
        expected = expected.next();
        if keys::log_seq(&key) != Some(expected) {
            return Err(gap(space, expected));
        }
        spent += payload.len();
        commits.push(LogEntry {
            seq: expected,
            payload: Bytes::copy_from_slice(&payload),
        });
    }
    if commits.is_empty() && limit > 0 && after.seq < state.head.seq {
        return Err(gap(space, expected.next()));
    }
    Ok(LogReply::Commits {
        commits,
        last_mid: last_mid(cut, space, writer)?,
        state,
    })
}

fn gap(space: &SpaceId, seq: Seq) -> StoreError {
    StoreError::Damaged(format!("commit {seq} of {space} is missing in log"))
}

pub(super) fn conflicts(cut: &Cut<'_>, space: &SpaceId, limit: usize) -> Result<Vec<ConflictRecord>, StoreError> {
    cut.open_state(space)?;
    let start = Bound::Included(keys::space(space));
    let entries = cut.range(Table::Conflicts, start, keys::space_end(space));
    let newest_first = entries.rev().take(limit);
    newest_first
        .map(|guard| {
            let (key, value) = guard.into_inner().map_err(told)?;
            ConflictRecord::decode(&value).ok_or_else(|| damaged(Table::Conflicts, &key))
        })
        .collect()
}
