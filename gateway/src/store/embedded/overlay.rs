//! Writes that are decided and not yet on disk, laid over what is.
//!
//! Everything that waits for the writer goes to disk as one atomic batch; later items of it must see
//! what earlier ones wrote. A key is in the batch once, with its last value: the database gives all
//! writes of a batch the same number, so two of one key would have no order.

use super::disk::{Cut, Disk, Look, Table, told};
use super::recent::{Recent, Seeded};
use super::records::Record;
use crate::store::StoreError;
use fjall::{PersistMode, Slice};
use std::collections::HashMap;

/// The table whose records are empty, so that whether one is there is all of it.
const NAMES: Table = Table::Fields;

/// Pending writes over a disk that only this thread writes to.
pub(super) struct Overlay<'a> {
    disk: &'a Disk,
    recent: Recent,
    writes: [HashMap<Vec<u8>, Option<Slice>, Seeded>; Table::ALL.len()],
}

impl<'a> Overlay<'a> {
    /// `recent` is what is remembered of that disk.
    pub(super) fn new(disk: &'a Disk, recent: Recent) -> Self {
        Self {
            disk,
            recent,
            writes: Default::default(),
        }
    }

    /// Makes room for the writes of so many items that are about a document each.
    pub(super) fn reserve(&mut self, items: usize) {
        for (table, each) in [(Table::Log, 1), (Table::Cells, 1), (Table::Idx, 2), (Table::Results, 1)] {
            self.writes[table as usize].reserve(each * items);
        }
    }

    pub(super) fn put(&mut self, table: Table, key: Vec<u8>, value: impl Into<Slice>) {
        let value = value.into();
        self.recent.written(table, &key, Some(&value));
        self.writes[table as usize].insert(key, Some(value));
    }

    pub(super) fn put_record(&mut self, table: Table, key: Vec<u8>, record: &impl Record) {
        self.put(table, key, record.encode());
    }

    pub(super) fn remove(&mut self, table: Table, key: Vec<u8>) {
        self.recent.written(table, &key, None);
        self.writes[table as usize].insert(key, None);
    }

    /// Removes a key that is written at most once in its life: if that write is still pending, the two cancel out.
    pub(super) fn remove_once_written(&mut self, table: Table, key: Vec<u8>) {
        if self.writes[table as usize].remove(&key).is_none() {
            self.remove(table, key);
        } else {
            self.recent.written(table, &key, None);
        }
    }

    /// Whether there is something under a key.
    pub(super) fn has(&self, table: Table, key: &[u8]) -> Result<bool, StoreError> {
        if let Some(known) = self.recent.get(table, key) {
            return Ok(known.is_some());
        }
        match self.writes[table as usize].get(key) {
            Some(pending) => Ok(pending.is_some()),
            None => {
                let found = self.disk.table(table).contains_key(key);
                let found = found.map_err(|error| told(table.failed(error)))?;
                if NAMES == table {
                    self.recent.found(table, key, found.then_some(&[]));
                }
                Ok(found)
            }
        }
    }

    /// Size of the value under a key.
    pub(super) fn size_of(&self, table: Table, key: &[u8]) -> Result<Option<u64>, StoreError> {
        match self.writes[table as usize].get(key) {
            Some(pending) => Ok(pending.as_ref().map(|value| value.len() as u64)),
            None => {
                let size = self.disk.table(table).size_of(key);
                Ok(size.map_err(|error| told(table.failed(error)))?.map(u64::from))
            }
        }
    }

    /// Whether a key is written or removed, and that is not on disk yet.
    pub(super) fn is_pending(&self, table: Table, key: &[u8]) -> bool {
        self.writes[table as usize].contains_key(key)
    }

    /// What is on disk, without what is pending.
    pub(super) fn cut(&self) -> Cut<'a> {
        self.disk.cut()
    }

    /// How many records it writes or removes.
    pub(super) fn len(&self) -> usize {
        self.writes.iter().map(HashMap::len).sum()
    }

    /// Writes all of it or, if it fails, perhaps nothing: then only opening the store again tells. Returns what is
    /// remembered, which a failure so takes with it.
    pub(super) fn write(self, mode: PersistMode) -> Result<Recent, StoreError> {
        if self.len() == 0 {
            return Ok(self.recent);
        }
        let mut batch = self.disk.batch(mode);
        for (table, writes) in Table::ALL.into_iter().zip(self.writes) {
            let keyspace = self.disk.table(table);
            // In order, so that the search for the place of each goes the way of the last one's, through memory that the
            // processor has at hand.
            let mut writes: Vec<_> = writes.into_iter().collect();
            writes.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
            for (key, value) in writes {
                match value {
                    Some(value) => batch.insert(keyspace, key, value),
                    None => batch.remove(keyspace, key),
                }
            }
        }
        batch.commit().map_err(told)?;
        Ok(self.recent)
    }
}

impl Look for Overlay<'_> {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Slice>, StoreError> {
        if let Some(known) = self.recent.get(table, key) {
            return Ok(known);
        }
        if let Some(pending) = self.writes[table as usize].get(key) {
            return Ok(pending.clone());
        }
        let found = self.disk.table(table).get(key);
        let found = found.map_err(|error| told(table.failed(error)))?;
        self.recent.found(table, key, found.as_deref());
        Ok(found)
    }
}
