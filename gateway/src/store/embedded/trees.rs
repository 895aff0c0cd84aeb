//! The database's tables on disk, looked over before it opens them.
//!
//! The database would take a table whose files are missing for one that was never finished, and begin it
//! anew without a word; and what it refuses it does not name. So all that must be there is looked for, and
//! what can be verified at little cost is verified: everything but the records themselves, which carry
//! checksums of their own that reads check.
//!
//! A tree (lsm-tree 3) is a directory: `current` names a version, `v` and its number, with the checksum of
//! that file; the version lists the files in `tables/`. A table's file is an archive of sections, rows of
//! blocks: a header with checksums, and bytes.

use super::OpenError;
use super::disk::{Table, at};
use std::collections::BTreeSet;
use std::fs;
use std::io::{self, ErrorKind, Read as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use xxhash_rust::xxh3::xxh3_128;

/// What a database begins with, in the file `version`.
const MARKER: [u8; 4] = *b"FJL\x03";
/// The tree of the trees' names and settings; those of the tables follow it.
const NAMES: u64 = 0;
/// The last of the tables' trees that every database has had from the start.
const FIRST_TABLES: u64 = 9;
const HEADER: usize = 33;
const BLOCK: [u8; 4] = *b"LSM\x03";

/// Checks the files of a database that is not open. Changes nothing. One that is `complete` has all tables
/// of this version.
pub(super) fn check(database: &Path, complete: bool) -> Result<(), OpenError> {
    let marker = database.join("version");
    if !read(&marker)?.starts_with(&MARKER) {
        return Err(damaged(&marker, "it is not the marker of a database"));
    }
    there(&database.join("lock"))?;
    let trees = database.join("keyspaces");
    there(&trees)?;
    let mut ids: BTreeSet<u64> = (NAMES..=FIRST_TABLES).collect();
    if complete {
        for entry in fs::read_dir(&trees).map_err(at(&trees))? {
            // The database passes over what is no number.
            ids.extend(
                entry
                    .map_err(at(&trees))?
                    .file_name()
                    .to_str()
                    .and_then(|name| name.parse::<u64>().ok()),
            );
        }
        // The numbers of later tables may have gaps.
        let missing = (Table::ALL.len() + 1).saturating_sub(ids.len());
        ids.extend(
            (FIRST_TABLES + 1..)
                .filter(|id| !trees.join(id.to_string()).exists())
                .take(missing),
        );
    }
    for id in ids {
        let tree = trees.join(id.to_string());
        there(&tree)?;
        check_tree(&tree, id == NAMES)?;
    }
    Ok(())
}

fn check_tree(tree: &Path, names: bool) -> Result<(), OpenError> {
    let path = tree.join("current");
    let bytes = read(&path)?;
    let current = bytes.split_first_chunk::<8>().and_then(|(id, rest)| {
        let sum = rest.split_first_chunk::<16>()?.0;
        Some((u64::from_le_bytes(*id), u128::from_le_bytes(*sum)))
    });
    let (id, sum) = current.ok_or_else(|| damaged(&path, "it is cut short"))?;
    let version = tree.join(format!("v{id}"));
    if !version.try_exists().map_err(at(&version))? {
        return Err(damaged(&version, "it is missing, and `current` beside it names it"));
    }
    if xxh3_128(&read(&version)?) != sum {
        return Err(damaged(&version, "its checksum is not the one in `current` beside it"));
    }
    for table in tables(&version).map_err(|why| damaged(&version, why))? {
        let table = tree.join("tables").join(table.to_string());
        there(&table)?;
        check_table(&table, names).map_err(|why| damaged(&table, why))?;
    }
    Ok(())
}

/// The tables that a version lists.
fn tables(version: &Path) -> Result<Vec<u64>, String> {
    let archive = sfa::Reader::new(version).map_err(|error| error.to_string())?;
    let section = archive.toc().section(b"tables").ok_or("it lists no tables")?;
    let mut bytes = Vec::new();
    let mut reader = section.buf_reader(version).map_err(|error| error.to_string())?;
    reader.read_to_end(&mut bytes).map_err(|error| error.to_string())?;
    list(&bytes).ok_or_else(|| "its list of tables is cut short".to_owned())
}

/// Levels, and in each its runs, and in each its tables: id, kind and value of the checksum, a seqno.
fn list(mut bytes: &[u8]) -> Option<Vec<u64>> {
    let mut ids = Vec::new();
    for _ in 0..take::<1>(&mut bytes)?[0] {
        for _ in 0..take::<1>(&mut bytes)?[0] {
            for _ in 0..u32::from_le_bytes(take(&mut bytes)?) {
                ids.push(u64::from_le_bytes(take(&mut bytes)?));
                let _: [u8; 1 + 16 + 8] = take(&mut bytes)?;
            }
        }
    }
    Some(ids)
}

fn take<const N: usize>(bytes: &mut &[u8]) -> Option<[u8; N]> {
    let (taken, left) = bytes.split_first_chunk()?;
    *bytes = left;
    Some(*taken)
}

/// Checks what says where a table's records are, or all of it.
fn check_table(path: &Path, all: bool) -> Result<(), String> {
    let archive = sfa::Reader::new(path).map_err(|error| format!("its end cannot be read: {error}"))?;
    let file = fs::File::open(path).map_err(|error| error.to_string())?;
    let sections = archive.toc().iter().filter(|section| {
        let few = [&b"meta"[..], b"tli", b"filter_tli"].contains(&section.name());
        few || all && [&b"data"[..], b"index", b"filter"].contains(&section.name())
    });
    for section in sections {
        let mut at = section.pos();
        let end = at + section.len();
        while at < end {
            at += check_block(&file, at, end - at)
                .map_err(|error| error.to_string())?
                .ok_or_else(|| format!("the block at byte {at} is not what was written"))?;
        }
    }
    Ok(())
}

/// The length of the block at a place; `None` if it is none, or not sound.
fn check_block(file: &fs::File, at: u64, most: u64) -> io::Result<Option<u64>> {
    let mut header = [0; HEADER];
    match file.read_exact_at(&mut header, at) {
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(None),
        done => done?,
    }
    // Magic and kind, the checksum of the bytes, their length, that without compression, and the
    // header's own checksum.
    let mut fields = &header[5..];
    let sum = take(&mut fields).map(u128::from_le_bytes);
    let length = take(&mut fields).map_or(0, u32::from_le_bytes);
    let own = xxh3_128(&header[..HEADER - 4]).to_le_bytes();
    let whole = u64::from(length) + HEADER as u64;
    if header[..4] != BLOCK || header[HEADER - 4..] != own[..4] || whole > most {
        return Ok(None);
    }
    let mut bytes = vec![0; length as usize];
    match file.read_exact_at(&mut bytes, at + HEADER as u64) {
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(None),
        done => done?,
    }
    Ok((Some(xxh3_128(&bytes)) == sum).then_some(whole))
}

fn damaged(path: &Path, why: impl Into<String>) -> OpenError {
    OpenError::Damaged {
        path: path.to_owned(),
        why: why.into(),
    }
}

fn there(path: &Path) -> Result<(), OpenError> {
    match path.try_exists() {
        Ok(true) => Ok(()),
        Ok(false) => Err(damaged(path, "it is missing")),
        // One that may not be seen is not missing.
        Err(source) => Err(at(path)(source)),
    }
}

fn read(path: &PathBuf) -> Result<Vec<u8>, OpenError> {
    there(path)?;
    fs::read(path).map_err(at(path))
}
