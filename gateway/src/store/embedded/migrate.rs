//! From format 1, which counted nothing: every space gets the counts that its record now holds. What format 2 wrote is
//! read as it is.
//!
//! Done again it leads to the same, whatever has been done of it. What cannot be read stays as it is, and
//! is told when it is asked for, as before.

use super::disk::{Cut, Disk, Look, Table, told};
use super::document;
use super::keys;
use super::read::spaces_after;
use super::records::{Record, SpaceMeta};
use crate::store::{StoreError, Usage};
use fjall::PersistMode;
use std::ops::Bound;
use tidegate_protocol::SpaceId;

/// Spaces whose records are written at a time.
const PAGE: usize = 1_024;

pub(super) fn from_1(disk: &Disk) -> Result<(), StoreError> {
    let cut = disk.cut();
    // Each is synced before the next is begun: see `journal`.
    let (mut spaces, mut batch) = (0_usize, disk.batch(PersistMode::SyncAll));
    for space in spaces_after(&cut, None) {
        let space = space?;
        let key = keys::meta(&space);
        let Some(bytes) = cut.get(Table::Spaces, &key)? else {
            continue;
        };
        // With counts already, if this was begun before and did not come to its end.
        let Some(mut meta) = SpaceMeta::decode_1(&bytes).or_else(|| SpaceMeta::decode(&bytes)) else {
            tracing::warn!(%space, "the space's record cannot be read, and stays as it is");
            continue;
        };
        count(&cut, &space, &mut meta)?;
        batch.insert(disk.table(Table::Spaces), key, meta.encode());
        spaces += 1;
        if spaces.is_multiple_of(PAGE) {
            std::mem::replace(&mut batch, disk.batch(PersistMode::SyncAll))
                .commit()
                .map_err(told)?;
        }
    }
    batch.commit().map_err(told)?;
    tracing::info!(spaces, "the spaces of a store of format 1 are counted");
    Ok(())
}

fn count(cut: &Cut<'_>, space: &SpaceId, meta: &mut SpaceMeta) -> Result<(), StoreError> {
    meta.usage = Usage::default();
    // Every document stands in the index once.
    for guard in cut.range(Table::Idx, Bound::Included(keys::space(space)), keys::space_end(space)) {
        let key = guard.key().map_err(told)?;
        let header = keys::idx_parts(space, &key)
            .map(|(_, doc)| cut.get(Table::Cells, &keys::doc(space, &doc)))
            .transpose()?
            .flatten()
            .and_then(|bytes| document::header(&bytes));
        if header.is_none() {
            tracing::warn!(%space, key = %key.escape_ascii(), "a document's header is missing, and is not counted");
        }
        meta.usage.replace(Usage::default(), Usage::of(header.as_ref()));
    }
    meta.conflicts_bytes = 0;
    for guard in cut.range(
        Table::Conflicts,
        Bound::Included(keys::space(space)),
        keys::space_end(space),
    ) {
        meta.conflicts_bytes += u64::from(guard.size().map_err(told)?);
    }
    Ok(())
}
