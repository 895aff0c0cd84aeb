//! Writes that are decided and not yet on disk, laid over what is.
//!
//! Everything that waits for the writer goes to disk as one atomic batch; later items of it must see
//! what earlier ones wrote. A key is in the batch once, with its last value: the database gives all
//! writes of a batch the same number, so two of one key would have no order.

use super::disk::{Disk, Look, Table, told};
use super::records::Record;
use crate::store::StoreError;
use fjall::{PersistMode, Slice};
use std::collections::HashMap;

/// Pending writes over a disk that only this thread writes to.
pub(super) struct Overlay<'a> {
    disk: &'a Disk,
    writes: [HashMap<Vec<u8>, Option<Slice>>; Table::ALL.len()],
}

impl<'a> Overlay<'a> {
    pub(super) fn new(disk: &'a Disk) -> Self {
        Self {
            disk,
            writes: Default::default(),
        }
    }

    pub(super) fn put(&mut self, table: Table, key: Vec<u8>, value: impl Into<Slice>) {
        self.writes[table as usize].insert(key, Some(value.into()));
    }

    pub(super) fn put_record(&mut self, table: Table, key: Vec<u8>, record: &impl Record) {
        self.put(table, key, record.encode());
    }

    pub(super) fn remove(&mut self, table: Table, key: Vec<u8>) {
        self.writes[table as usize].insert(key, None);
    }

    /// Removes a key that is written at most once in its life: if that write is still pending, the two cancel out.
    pub(super) fn remove_once_written(&mut self, table: Table, key: Vec<u8>) {
        if self.writes[table as usize].remove(&key).is_none() {
            self.remove(table, key);
        }
    }

    /// Whether there is something under a key.
    pub(super) fn has(&self, table: Table, key: &[u8]) -> Result<bool, StoreError> {
        match self.writes[table as usize].get(key) {
            Some(pending) => Ok(pending.is_some()),
            None => self
                .disk
                .table(table)
                .contains_key(key)
                .map_err(|error| told(table.failed(error))),
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

    pub(super) fn is_empty(&self) -> bool {
        self.writes.iter().all(HashMap::is_empty)
    }

    /// Writes all of it or, if it fails, perhaps nothing: then only opening the store again tells.
    pub(super) fn write(self, mode: PersistMode) -> Result<(), StoreError> {
        let mut batch = self.disk.batch(mode);
        for (table, writes) in Table::ALL.into_iter().zip(self.writes) {
            let keyspace = self.disk.table(table);
            for (key, value) in writes {
                match value {
                    Some(value) => batch.insert(keyspace, key, value),
                    None => batch.remove(keyspace, key),
                }
            }
        }
        batch.commit().map_err(told)
    }
}

impl Look for Overlay<'_> {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Slice>, StoreError> {
        match self.writes[table as usize].get(key) {
            Some(pending) => Ok(pending.clone()),
            None => self
                .disk
                .table(table)
                .get(key)
                .map_err(|error| told(table.failed(error))),
        }
    }
}
