//! All of a store as of one moment, as one stream of bytes; and a store from it.
//!
//! A backup is a line that says what it is, then the tables one after another, each with all its records
//! in order, and an end with counts. Integers are big-endian:
//!
//! ```text
//! tidegate-backup 1 store 3\n
//! T len(1) name                    a table begins
//! R len(4) key, len(4) value       a record of it: both lengths, then both
//! D count(8) SHA-256               it ends: its records, and the digest of everything before
//! E count(8) SHA-256               the end: all records, and the digest of everything before
//! ! len(4) text                    broken off: why
//! ```
//!
//! The digest after each table tells where in a damaged file to look.

use super::disk::{Cut, FORMAT, Table, told};
use super::shared::Shared;
use super::{EmbeddedStore, OpenError, keys};
use crate::store::StoreError;
use bytes::Bytes;
use sha2::{Digest, Sha256};
use std::io::{self, Write};
use std::path::Path;
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::time::timeout;

/// The form described above.
pub(super) const VERSION: u32 = 1;
/// What the first line begins with.
pub(super) const MAGIC: &str = "tidegate-backup";
/// Bytes of the reason why a backup was broken off, at most.
const LINE_BYTES: usize = 4_096;
/// How often a backup that waits for its reader looks whether it has to end.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// Written at a time.
const CHUNK_BYTES: usize = 64 << 10;

pub(super) const TABLE: u8 = b'T';
pub(super) const RECORD: u8 = b'R';
pub(super) const DONE: u8 = b'D';
pub(super) const END: u8 = b'E';
pub(super) const BROKEN_OFF: u8 = b'!';

/// What a backup holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct BackedUp {
    /// Spaces.
    pub spaces: u64,
    /// Records of all tables.
    pub records: u64,
    /// Bytes of the backup.
    pub bytes: u64,
}

/// Why there is no backup.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// There is no store that could be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// It could not be read, or the backup not be written.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl EmbeddedStore {
    /// Sends everything as of now to `out`, in pieces. Commits go on meanwhile. An error ends it early, also
    /// one of `out`; then [`broken_off`] tells whoever reads it.
    pub async fn backup(&self, out: mpsc::Sender<Bytes>) -> Result<BackedUp, StoreError> {
        let shared = self.shared.clone();
        let out = Pieces {
            out,
            runtime: Handle::current(),
            is_closing: move || shared.is_closing(),
        };
        self.snapshot(move |cut| write(cut, out)).await
    }
}

/// What a backup ends with that its writer gave up.
pub fn broken_off(why: &StoreError) -> Vec<u8> {
    let mut text = why.to_string().into_bytes();
    text.truncate(LINE_BYTES);
    let len = u32::try_from(text.len()).expect("cut to a line");
    [&[BROKEN_OFF][..], &len.to_be_bytes(), &text].concat()
}

/// Backs up the store in `dir`, which no process may have open. Blocks.
pub fn backup(dir: &Path, out: impl Write) -> Result<BackedUp, BackupError> {
    let shared = Shared::open_existing(dir)?;
    let disk = shared.disk()?;
    Ok(write(&disk.cut(), out)?)
}

/// Where the pieces of a backup go, which may take them as slowly as it likes.
struct Pieces<F> {
    out: mpsc::Sender<Bytes>,
    runtime: Handle,
    /// Whether the database is wanted back.
    is_closing: F,
}

impl<F: Fn() -> bool> Write for Pieces<F> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            if (self.is_closing)() {
                return Err(io::Error::other("the database has to be opened again"));
            }
            let room = self.runtime.block_on(timeout(LOOK_EVERY, self.out.reserve()));
            match room {
                Ok(Ok(room)) => {
                    room.send(Bytes::copy_from_slice(bytes));
                    return Ok(bytes.len());
                }
                Ok(Err(_)) => return Err(io::Error::new(io::ErrorKind::BrokenPipe, "nobody takes it any more")),
                Err(_) => {}
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Writes everything to `out`.
pub(super) fn write(cut: &Cut<'_>, out: impl Write) -> Result<BackedUp, StoreError> {
    let mut out = Hashed::new(io::BufWriter::with_capacity(CHUNK_BYTES, out));
    let out = &mut out;
    let lost = |error: io::Error| StoreError::Unavailable(format!("the backup cannot be written: {error}"));
    let mut done = BackedUp::default();
    out.put(format!("{MAGIC} {VERSION} store {}\n", FORMAT).as_bytes())
        .map_err(lost)?;
    for table in Table::ALL {
        let name = table.name().as_bytes();
        let len = u8::try_from(name.len()).expect("names of tables are short");
        out.put(&[TABLE, len]).and_then(|()| out.put(name)).map_err(lost)?;
        let mut records = 0_u64;
        for guard in cut.iter(table) {
            let (key, value) = guard.into_inner().map_err(told)?;
            out.put(&[RECORD])
                .and_then(|()| out.put_len(key.len()))
                .and_then(|()| out.put_len(value.len()))
                .and_then(|()| out.put(&key))
                .and_then(|()| out.put(&value))
                .map_err(lost)?;
            records += 1;
            done.spaces += u64::from(table == Table::Spaces && keys::is_meta(&key));
        }
        out.put_digest(DONE, records).map_err(lost)?;
        done.records += records;
    }
    out.put_digest(END, done.records).map_err(lost)?;
    out.inner.flush().map_err(lost)?;
    done.bytes = out.bytes;
    Ok(done)
}

/// Bytes on their way, with the digest of all so far.
pub(super) struct Hashed<T> {
    pub(super) inner: T,
    pub(super) hash: Sha256,
    pub(super) bytes: u64,
}

impl<T> Hashed<T> {
    pub(super) fn new(inner: T) -> Self {
        let hash = Sha256::new();
        Self { inner, hash, bytes: 0 }
    }
}

impl<T: Write> Hashed<T> {
    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.inner.write_all(bytes)?;
        self.hash.update(bytes);
        self.bytes += bytes.len() as u64;
        Ok(())
    }

    fn put_len(&mut self, len: usize) -> io::Result<()> {
        let len = u32::try_from(len).map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "4 GiB in one record"))?;
        self.put(&len.to_be_bytes())
    }

    fn put_digest(&mut self, tag: u8, records: u64) -> io::Result<()> {
        self.put(&[tag])?;
        self.put(&records.to_be_bytes())?;
        let digest = self.hash.clone().finalize();
        self.put(&digest)
    }
}
