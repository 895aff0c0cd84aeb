//! Reads: each from one snapshot of all tables.

use super::disk::{Cut, Look, Table, damaged, told};
use super::keys;
use super::records::{self, Client, Record};
use crate::store::{Cell, ConflictRecord, DocState, LogEntry, LogReply, ReadCut, ResetReason, SpaceState, StoreError};
use bytes::Bytes;
use std::ops::Bound;
use tidegate_protocol::{DocPath, FieldPath, Mid, Position, Seq, SpaceId, Writer};

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

fn document(cut: &Cut<'_>, space: &SpaceId, doc: &DocPath) -> Result<DocState, StoreError> {
    let key = keys::doc(space, doc);
    let mut found = DocState {
        header: cut.record(Table::Cells, &key)?,
        ..DocState::default()
    };
    let has_header = found.header.is_some();
    each_record(cut, &key, has_header, |field, record| {
        found.cells.insert(FieldPath::parse(field).ok()?, Cell::decode(record)?);
        Some(())
    })?;
    Ok(found)
}

/// Hands every cell of a document that has a header on, by field, seq and value, sorted by field. `doc` is its key.
pub(super) fn each_cell(
    cut: &Cut<'_>,
    doc: &[u8],
    mut each: impl FnMut(&str, Seq, Option<&[u8]>),
) -> Result<(), StoreError> {
    each_record(cut, doc, true, |field, record| {
        let (seq, value) = records::cell_parts(record)?;
        each(field, seq, value);
        Some(())
    })
}

/// Hands the records of a document's cells to `each`, which answers `None` to one that it cannot read.
fn each_record(
    cut: &Cut<'_>,
    doc: &[u8],
    has_header: bool,
    mut each: impl FnMut(&str, &[u8]) -> Option<()>,
) -> Result<(), StoreError> {
    let end = keys::after(doc.to_vec());
    for guard in cut.range(Table::Fields, Bound::Included(doc.to_vec()), end) {
        let key = guard.key().map_err(told)?;
        // Cells without a header would pass for a document that never was.
        let field = std::str::from_utf8(&key[doc.len()..]).ok();
        let field = field.filter(|field| has_header && !field.is_empty());
        let field = field.ok_or_else(|| damaged(Table::Fields, &key))?;
        let record = cut.get(Table::Cells, &key)?;
        record
            .and_then(|record| each(field, &record))
            .ok_or_else(|| damaged(Table::Cells, &key))?;
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
