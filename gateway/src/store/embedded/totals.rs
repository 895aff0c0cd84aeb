//! What all spaces take together: counted when the database is opened, and kept up by the writer.

use super::disk::{Cut, Look as _, Table};
use super::keys;
use super::read::spaces_after;
use super::records::SpaceMeta;
use crate::store::{StoreError, Usage};
use parking_lot::Mutex;
use tidegate_protocol::SpaceId;

/// The counts, for whoever asks.
#[derive(Default)]
pub(super) struct Totals(Mutex<Taken>);

/// What some spaces take.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Taken {
    /// How many spaces.
    pub(super) spaces: u64,
    /// Their documents.
    pub(super) usage: Usage,
    /// Bytes of payloads in their logs.
    pub(super) log_bytes: u64,
}

impl Taken {
    /// What a space with this record takes.
    pub(super) fn of(meta: &SpaceMeta) -> Self {
        Self {
            spaces: 1,
            usage: meta.usage,
            log_bytes: meta.log_bytes,
        }
    }
}

impl Totals {
    pub(super) fn get(&self) -> Taken {
        *self.0.lock()
    }

    /// Counts everything anew. Returns the spaces that are being erased.
    pub(super) fn count(&self, cut: &Cut<'_>) -> Result<Vec<SpaceId>, StoreError> {
        let (mut all, mut erasing) = (Self::default(), Vec::new());
        for space in spaces_after(cut, None) {
            let space = space?;
            match cut.record::<SpaceMeta>(Table::Spaces, &keys::meta(&space)) {
                Ok(Some(meta)) => {
                    all.replace(Taken::default(), Taken::of(&meta));
                    erasing.extend(meta.erasing.map(|_| space));
                }
                Ok(None) => {}
                // It is told to whoever asks for the space.
                Err(StoreError::Damaged(why)) => tracing::warn!(%why, "a space is not counted"),
                Err(error) => return Err(error),
            }
        }
        *self.0.lock() = *all.0.get_mut();
        Ok(erasing)
    }

    /// Takes `before` out and puts `after` in.
    pub(super) fn replace(&self, before: Taken, after: Taken) {
        let mut all = self.0.lock();
        all.spaces = (all.spaces + after.spaces).saturating_sub(before.spaces);
        all.usage.replace(before.usage, after.usage);
        all.log_bytes = (all.log_bytes + after.log_bytes).saturating_sub(before.log_bytes);
    }
}
