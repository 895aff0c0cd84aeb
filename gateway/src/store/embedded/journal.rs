//! The database's journals, read before it reads them itself.
//!
//! A crash leaves a torn end: part of what was last written and never synced. That is cut off. The
//! database does as much by itself, but where the torn part looks like a record it refuses to open;
//! and it would as readily cut where a disk has lost the middle of a journal, and with it records
//! that were answered. Whole records after a broken one tell the two apart: at [`Durability::Fsync`]
//! nothing is written before what precedes it is synced.
//!
//! A journal (fjall 3) is a row of batches, and after them zeros that keep its room or nothing. A batch
//! is a start (tag, number of items, seqno), its items, and an end with the items' checksum. That does not
//! cover the seqno: one that a disk has changed shows only if it does not rise, or rises by leaps.

use super::disk::at;
use super::{Durability, OpenError};
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use xxhash_rust::xxh3::xxh3_64;

const EXTENSION: &str = "jnl";
/// Of a copy that is to take a journal's place.
const FRESH_EXTENSION: &str = "jnl.new";
const START: u8 = 1;
const ITEM: u8 = 2;
const END: u8 = 3;
const CLEAR: u8 = 4;
const MAGIC: [u8; 4] = *b"FJL\x03";
/// By less than this the seqno rises from batch to batch; what flushes and merges take of it is little.
const LEAP: u64 = 1 << 20;
const PAGE: usize = 4_096;
/// What the system counts a file's room in.
const BLOCK: u64 = 512;

/// Where a journal's batches end, and what is there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Found {
    /// Bytes of whole batches from the start on.
    whole: usize,
    /// The last one's number.
    last: Option<u64>,
    rest: Rest,
}

/// What follows the whole batches of a journal.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Rest {
    /// Nothing was written.
    Blank,
    /// Something that is no batch, and after it none that is.
    Torn,
    /// Something that is no batch, and after it, at this place, one that is.
    Broken(usize),
}

/// Checks all journals of a database that is not open, and cuts off the torn end of the last.
pub(super) fn check(database: &Path, durability: Durability) -> Result<(), OpenError> {
    let files = files(database).map_err(at(database))?;
    let damaged = |path: &Path, why: String| {
        Err(OpenError::Damaged {
            path: path.to_owned(),
            why,
        })
    };
    if files.is_empty() {
        return damaged(database, "it has no journal (*.jnl)".to_owned());
    }
    for pair in files.windows(2) {
        if pair[0].0 + 1 != pair[1].0 {
            return damaged(&name(database, pair[0].0 + 1), "this journal is missing".to_owned());
        }
    }
    let mut last = None;
    let mut torn: Option<(&Path, Found)> = None;
    for (_, path) in &files {
        let found = read(&fs::read(path).map_err(at(path))?, last);
        // The end of a journal that another was begun after is torn only if nothing was written to that.
        if let (Some((path, found)), true) = (torn, found.last > last) {
            return damaged(path, broken(found, "a later journal"));
        }
        last = found.last.max(last);
        match found.rest {
            Rest::Blank => {}
            Rest::Broken(next) if durability == Durability::Fsync => {
                return damaged(path, broken(found, &format!("byte {next}")));
            }
            Rest::Torn | Rest::Broken(_) => torn = Some((path, found)),
        }
    }
    let Some((path, found)) = torn else { return Ok(()) };
    tracing::warn!(
        file = %path.display(), from = found.whole,
        "the end of the journal, which was not synced when the machine or the gateway died, is cut off"
    );
    let cut = || {
        let file = File::options().write(true).open(path)?;
        file.set_len(found.whole as u64)?;
        file.sync_all()
    };
    cut().map_err(at(path))
}

fn broken(found: Found, whole: &str) -> String {
    format!(
        "the journal cannot be read at byte {}, and there are whole records from {whole} on; restore a backup, or cut \
         the file at that byte to go on without what follows",
        found.whole
    )
}

/// Removes the copies that a process which was killed has left beside the journals.
pub(super) fn remove_copies(database: &Path) -> Result<(), OpenError> {
    for entry in fs::read_dir(database).map_err(at(database))? {
        let path = entry.map_err(at(database))?.path();
        if path.to_string_lossy().ends_with(&format!(".{FRESH_EXTENSION}")) {
            fs::remove_file(&path).map_err(at(&path))?;
        }
    }
    Ok(())
}

/// Fresh copies of all whole batches, synced, beside the journals.
///
/// After a failed write the kernel may hold pages as clean that the disk does not have, and the old
/// database may still hand over what it has in a buffer when it is closed. So after it none of the old
/// files is used: what was in them is written anew, which also shows that the disk takes writes.
pub(super) struct Copies {
    database: PathBuf,
    /// The copies, and what they are to replace.
    files: Vec<(PathBuf, PathBuf)>,
}

/// Bytes that the journals take on the disk, and copies of them at most.
pub(super) fn bytes(database: &Path) -> io::Result<u64> {
    let mut bytes = 0;
    for (_, path) in files(database)? {
        match fs::metadata(&path) {
            // Their length counts room that was never written, too.
            Ok(meta) => bytes += meta.blocks() * BLOCK,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(bytes)
}

/// Copies the journals of a database that takes no more writes.
pub(super) fn copy(database: &Path) -> io::Result<Copies> {
    let mut copies = Copies {
        database: database.to_owned(),
        files: Vec::new(),
    };
    for (_, path) in files(database)? {
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            // A flush that was still under way has made it superfluous.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        let fresh = path.with_extension(FRESH_EXTENSION);
        copies.files.push((fresh.clone(), path));
        let mut file = File::create(&fresh)?;
        file.write_all(&bytes[..read(&bytes, None).whole])?;
        file.sync_all()?;
    }
    Ok(copies)
}

impl Copies {
    /// Puts the copies in place, once the database is closed.
    pub(super) fn put(mut self) -> io::Result<()> {
        for (fresh, path) in std::mem::take(&mut self.files) {
            match path.exists() {
                true => fs::rename(fresh, path)?,
                false => fs::remove_file(fresh)?,
            }
        }
        File::open(&self.database)?.sync_all()
    }
}

impl Drop for Copies {
    fn drop(&mut self) {
        for (fresh, _) in &self.files {
            // Left behind it goes when the store is next opened.
            let _ = fs::remove_file(fresh);
        }
    }
}

fn name(database: &Path, id: u64) -> PathBuf {
    database.join(id.to_string()).with_extension(EXTENSION)
}

/// The journals with their numbers, oldest first.
fn files(database: &Path) -> io::Result<Vec<(u64, PathBuf)>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(database)? {
        let path = entry?.path();
        let id = path.file_stem().and_then(|stem| stem.to_str()?.parse().ok());
        if let (Some(id), true) = (id, path.extension().is_some_and(|e| e == EXTENSION)) {
            files.push((id, path));
        }
    }
    files.sort();
    Ok(files)
}

/// Reads a journal whose batches come after the one numbered `last`.
fn read(bytes: &[u8], mut last: Option<u64>) -> Found {
    let mut whole = 0;
    let follows = |seqno: u64, last: Option<u64>| last.is_none_or(|last| seqno > last && seqno - last < LEAP);
    let next = |at: usize, last| batch(&bytes[at..]).filter(|(_, seqno)| follows(*seqno, last));
    while let Some((len, seqno)) = next(whole, last) {
        whole += len;
        last = Some(seqno);
    }
    let rest = &bytes[whole..];
    // By pages: most of a journal is room that was never written.
    let rest = if rest.chunks(PAGE).all(|page| page == &[0; PAGE][..page.len()]) {
        Rest::Blank
    } else {
        let starts = (1..rest.len()).filter(|at| rest[*at] == START).map(|at| whole + at);
        let mut batches = starts.filter(|at| next(*at, last).is_some());
        batches.next().map_or(Rest::Torn, Rest::Broken)
    };
    Found { whole, last, rest }
}

/// The length and the number of the batch that starts here, if there is a whole one.
pub(super) fn batch(bytes: &[u8]) -> Option<(usize, u64)> {
    let mut left = bytes;
    if take::<1>(&mut left)? != [START] {
        return None;
    }
    let items = u32::from_le_bytes(take(&mut left)?);
    let seqno = u64::from_le_bytes(take(&mut left)?);
    let body = left;
    for _ in 0..items {
        let size = match take::<1>(&mut left)?[0] {
            ITEM => {
                // The value's type, its compression, the table, and the value's size before compression.
                let _: [u8; 10] = take(&mut left)?;
                let key = u16::from_le_bytes(take(&mut left)?);
                let _: [u8; 4] = take(&mut left)?;
                usize::from(key) + usize::try_from(u32::from_le_bytes(take(&mut left)?)).ok()?
            }
            CLEAR => size_of::<u64>(),
            _ => return None,
        };
        left = left.get(size..)?;
    }
    let body = &body[..body.len() - left.len()];
    if take::<1>(&mut left)? != [END] {
        return None;
    }
    let sum = u64::from_le_bytes(take(&mut left)?);
    let ended = take::<4>(&mut left)? == MAGIC && sum == xxh3_64(body);
    ended.then_some((bytes.len() - left.len(), seqno))
}

fn take<const N: usize>(bytes: &mut &[u8]) -> Option<[u8; N]> {
    let (taken, left) = bytes.split_first_chunk()?;
    *bytes = left;
    Some(*taken)
}
