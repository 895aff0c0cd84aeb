//! Records that the writer looked up not long ago, as they are with what it has written since.
//!
//! Only the writer writes, and it does so by an [`Overlay`](super::overlay::Overlay) alone, which tells here of every
//! write as it is decided. So a record is what the next look-up would find, until a write fails: then nobody knows what
//! is on disk. An overlay that was not written takes all of it with it.

use super::disk::Table;
use super::document::PACKED_BYTES;
use fjall::Slice;
use std::cell::RefCell;
use std::collections::HashMap;
use std::hash::{BuildHasher, Hasher, RandomState};
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// Records remembered of a table; over it, all of the table's are forgotten.
const RECORDS: usize = 16_384;
/// Bytes of a record at most: packed documents, headers and clients take no more, and what is larger is looked up each
/// time.
const RECORD_BYTES: usize = PACKED_BYTES;
/// Bytes remembered of a table, keys and records; over it, all of the table's are forgotten.
const BYTES: usize = 8 << 20;
/// Bytes of a key at most.
const KEY_BYTES: usize = 512;
/// The tables of which the writer looks up the same records again and again.
const TABLES: [Table; 4] = [Table::Cells, Table::Fields, Table::Clients, Table::Results];

/// What is known of a table.
#[derive(Default)]
struct Known {
    /// What is under its keys; `None` is nothing.
    records: HashMap<Vec<u8>, Option<Slice>, Seeded>,
    /// Bytes of keys and records.
    bytes: usize,
}

impl Known {
    /// Makes room for so many bytes more.
    fn make_room(&mut self, bytes: usize) {
        if self.records.len() >= RECORDS || self.bytes + bytes > BYTES {
            self.records.clear();
            self.bytes = 0;
        }
        self.bytes += bytes;
    }
}

fn size(value: Option<&Slice>) -> usize {
    value.map_or(0, |value| value.len())
}

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
        self.tables.borrow()[place(table)?].records.get(key).cloned()
    }

    /// Notes what a look-up found.
    pub(super) fn found(&self, table: Table, key: &[u8], value: Option<&[u8]>) {
        let Some(place) = place(table) else { return };
        if key.len() > KEY_BYTES || value.is_some_and(|value| value.len() > RECORD_BYTES) {
            return;
        }
        let known = &mut self.tables.borrow_mut()[place];
        known.make_room(key.len() + value.map_or(0, <[u8]>::len));
        // A copy: what the database hands out may hold a whole block.
        let before = known.records.insert(key.to_vec(), value.map(Slice::from));
        debug_assert!(before.is_none(), "it was known");
    }

    /// Notes that a key is written, or removed.
    pub(super) fn written(&self, table: Table, key: &[u8], value: Option<&Slice>) {
        let Some(place) = place(table) else { return };
        let known = &mut self.tables.borrow_mut()[place];
        let Some(record) = known.records.get_mut(key) else {
            return;
        };
        known.bytes -= size(record.as_ref());
        if value.is_some_and(|value| value.len() > RECORD_BYTES) {
            known.bytes -= key.len();
            known.records.remove(key);
        } else {
            known.bytes += size(value);
            *record = value.cloned();
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

#[cfg(test)]
mod tests {
    use super::*;

    fn counted(recent: &Recent) -> [usize; 2] {
        let tables = recent.tables.borrow();
        let known = &tables[place(Table::Cells).expect("remembered")];
        let bytes = known
            .records
            .iter()
            .map(|(key, value)| key.len() + size(value.as_ref()));
        [known.bytes, bytes.sum()]
    }

    #[test]
    fn what_is_remembered_is_bounded_in_bytes_and_counted_right() {
        let recent = Recent::default();
        let record = [7; RECORD_BYTES];
        let mut most = 0;
        for n in 0..2 * (BYTES / RECORD_BYTES) {
            let key = n.to_be_bytes();
            recent.found(Table::Cells, &key, Some(&record[n % 3..]));
            match n % 4 {
                0 => recent.written(Table::Cells, &key, None),
                1 => recent.written(Table::Cells, &key, Some(&Slice::from(&record[..n % 100]))),
                // More than is remembered.
                2 => recent.written(Table::Cells, &key, Some(&Slice::from(&[7; RECORD_BYTES + 1]))),
                _ => {}
            }
            let [bytes, summed] = if n % 1_000 == 0 { counted(&recent) } else { [0; 2] };
            assert_eq!(bytes, summed);
            most = most.max(recent.tables.borrow()[0].bytes);
        }
        assert!((BYTES / 2..=BYTES).contains(&most), "{most}");
        let [bytes, summed] = counted(&recent);
        assert_eq!(bytes, summed);
        // Known as it was written, as gone, and not at all.
        let last = 2 * (BYTES / RECORD_BYTES);
        let known = |back: usize| recent.get(Table::Cells, &(last - back).to_be_bytes());
        assert_eq!(
            known(1).map(|value| size(value.as_ref())),
            Some(RECORD_BYTES - (last - 1) % 3)
        );
        assert_eq!(known(2), None);
        assert_eq!(known(3).map(|value| size(value.as_ref())), Some((last - 3) % 100));
        assert_eq!(known(4), Some(None));
    }
}
