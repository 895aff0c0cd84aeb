//! Records that the writer looked up not long ago, as they are with what it has written since.
//!
//! Only the writer writes, and it does so by an [`Overlay`](super::overlay::Overlay) alone, which tells here of every
//! write as it is decided. So a record is what the next look-up would find, until a write fails: then nobody knows what
//! is on disk. An overlay that was not written takes all of it with it.

use super::disk::Table;
use fjall::Slice;
use std::cell::RefCell;
use std::collections::HashMap;
use std::hash::{BuildHasher, Hasher, RandomState};
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// Records remembered; over it, all are forgotten.
const RECORDS: usize = 16_384;
/// Bytes of a record at most: headers and clients take less, and what is larger is looked up each time.
const RECORD_BYTES: usize = 64;
/// Bytes of a key at most.
const KEY_BYTES: usize = 512;
/// The tables of which the writer looks up the same records again and again.
const TABLES: [Table; 3] = [Table::Cells, Table::Fields, Table::Clients];

/// What is under the keys of a table; `None` is nothing.
type Known = HashMap<Vec<u8>, Option<Slice>, Seeded>;

/// The records, by table and key.
#[derive(Default)]
pub(super) struct Recent {
    tables: RefCell<[Known; TABLES.len()]>,
}

fn place(table: Table) -> Option<usize> {
    TABLES.iter().position(|known| *known == table)
}

impl Recent {
    /// What is under a key; `None` if that is not known here.
    pub(super) fn get(&self, table: Table, key: &[u8]) -> Option<Option<Slice>> {
        self.tables.borrow()[place(table)?].get(key).cloned()
    }

    /// Notes what a look-up found.
    pub(super) fn found(&self, table: Table, key: &[u8], value: Option<&[u8]>) {
        let Some(place) = place(table) else { return };
        if key.len() > KEY_BYTES || value.is_some_and(|value| value.len() > RECORD_BYTES) {
            return;
        }
        let known = &mut self.tables.borrow_mut()[place];
        if known.len() >= RECORDS {
            known.clear();
        }
        // A copy: what the database hands out may hold a whole block.
        known.insert(key.to_vec(), value.map(Slice::from));
    }

    /// Notes that a key is written, or removed.
    pub(super) fn written(&self, table: Table, key: &[u8], value: Option<&Slice>) {
        let Some(place) = place(table) else { return };
        let known = &mut self.tables.borrow_mut()[place];
        if value.is_some_and(|value| value.len() > RECORD_BYTES) {
            known.remove(key);
        } else if let Some(known) = known.get_mut(key) {
            *known = value.cloned();
        }
    }
}

/// Hashes keys by XXH3 with a seed that nobody else knows: a third of what the standard library's takes.
pub(super) struct Seeded(u64);

impl Default for Seeded {
    fn default() -> Self {
        Self(RandomState::new().hash_one(0))
    }
}

impl BuildHasher for Seeded {
    type Hasher = Xxh3;

    fn build_hasher(&self) -> Xxh3 {
        Xxh3(self.0)
    }
}

pub(super) struct Xxh3(u64);

impl Hasher for Xxh3 {
    fn write(&mut self, bytes: &[u8]) {
        self.0 = xxh3_64_with_seed(bytes, self.0);
    }

    fn write_usize(&mut self, n: usize) {
        self.0 ^= n as u64;
    }

    fn finish(&self) -> u64 {
        self.0
    }
}
