//! A store from a backup, whose form [`super::backup`] describes.

use super::OpenError;
use super::backup::{BROKEN_OFF, BackedUp, DONE, END, Hashed, MAGIC, RECORD, TABLE, VERSION};
use super::disk::{self, FORMAT, Table, at, told};
use super::keys;
use super::records::{Record, SpaceMeta};
use crate::env::Env;
use crate::store::{Lineage, StoreError};
use fjall::{Database, Keyspace, PersistMode};
use sha2::Digest as _;
use std::fs::{self, File};
use std::io::{self, BufReader, Read};
use std::path::{Path, PathBuf};
use tidegate_protocol::Epoch;

/// Bytes of the first line at most.
const LINE_BYTES: usize = 64;
/// A stored value is far smaller: what says more is damaged, and is not given memory.
const VALUE_BYTES: u32 = 64 << 20;
const KEY_BYTES: u32 = 65_535;
/// Records that are written at a time, bytes.
const BATCH_BYTES: usize = 1 << 20;

/// Why a backup cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum BadBackup {
    /// It is no backup, or a damaged one.
    #[error("at byte {at}: {what}")]
    Damaged {
        /// Where.
        at: u64,
        /// What is there, or is not.
        what: String,
    },
    /// Written by a newer version.
    #[error("it says {what} {found}, which a newer version wrote; this one reads {known}: upgrade it")]
    Newer {
        /// Which of its two versions.
        what: &'static str,
        /// The one found.
        found: u32,
        /// The one that this version knows.
        known: u32,
    },
    /// Its writer gave up.
    #[error("the backup was broken off: {0}")]
    BrokenOff(String),
    /// The file or the connection.
    #[error("at byte {at}: {source}")]
    Io {
        /// Where.
        at: u64,
        /// Why.
        source: io::Error,
    },
}

/// Why a store was not restored. Nothing that looks like one is left.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The backup.
    #[error(transparent)]
    Backup(#[from] BadBackup),
    /// The directory.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The new store.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A piece of a backup.
enum Piece {
    Table(Table),
    Record(Vec<u8>, Vec<u8>),
    End,
}

/// Reads a backup; everything it gives was checked, but for the digest of the table under way.
struct Reader<R> {
    from: Hashed<BufReader<R>>,
    /// The store's format.
    format: u32,
    table: Option<Table>,
    last_key: Vec<u8>,
    /// Where the table under way began.
    table_at: u64,
    table_records: u64,
    done: BackedUp,
}

impl<R: Read> Reader<R> {
    fn new(from: R) -> Result<Self, BadBackup> {
        let mut from = Hashed::new(BufReader::new(from));
        let format = first_line(&mut from)?;
        Ok(Self {
            from,
            format,
            table: None,
            last_key: Vec::new(),
            table_at: 0,
            table_records: 0,
            done: BackedUp::default(),
        })
    }

    fn damaged(&self, at: u64, what: impl Into<String>) -> BadBackup {
        BadBackup::Damaged { at, what: what.into() }
    }

    fn next(&mut self) -> Result<Piece, BadBackup> {
        loop {
            let at = self.from.bytes;
            match (self.from.take::<1>()?, self.table) {
                ([TABLE], None) => {
                    let [len] = self.from.take::<1>()?;
                    let name = self.from.take_bytes(u32::from(len))?;
                    let table = Table::ALL.into_iter().find(|table| table.name().as_bytes() == name);
                    let Some(table) = table else {
                        let name = name.escape_ascii();
                        return Err(self.damaged(at, format!("a table \"{name}\", which no store has")));
                    };
                    (self.table, self.table_at, self.table_records) = (Some(table), at, 0);
                    self.last_key.clear();
                    return Ok(Piece::Table(table));
                }
                ([RECORD], Some(table)) => return self.record(table, at),
                ([DONE], Some(table)) => {
                    let records = self.table_records;
                    self.digest(records, || format!("table {} ", table.name()))?;
                    self.done.records += records;
                    self.table = None;
                }
                ([END], None) => {
                    let records = self.done.records;
                    self.table_at = 0;
                    self.digest(records, String::new)?;
                    self.done.bytes = self.from.bytes;
                    let mut more = [0];
                    let at = self.from.bytes;
                    return match self.from.inner.read(&mut more) {
                        Ok(0) => Ok(Piece::End),
                        Ok(_) => Err(self.damaged(at, "more follows after the end")),
                        Err(source) => Err(BadBackup::Io { at, source }),
                    };
                }
                ([BROKEN_OFF], _) => {
                    let len = u32::from_be_bytes(self.from.take()?).min(KEY_BYTES);
                    let text = self.from.take_bytes(len)?;
                    return Err(BadBackup::BrokenOff(String::from_utf8_lossy(&text).into_owned()));
                }
                ([tag], _) => {
                    let place = self.place();
                    return Err(self.damaged(at, format!("{place}nothing begins with \\x{tag:02x} here")));
                }
            }
        }
    }

    fn record(&mut self, table: Table, at: u64) -> Result<Piece, BadBackup> {
        let key_len = u32::from_be_bytes(self.from.take()?);
        let value_len = u32::from_be_bytes(self.from.take()?);
        if key_len > KEY_BYTES || value_len > VALUE_BYTES {
            let place = self.place();
            return Err(self.damaged(at, format!("{place}a record of {key_len} and {value_len} bytes")));
        }
        let key = self.from.take_bytes(key_len)?;
        let value = self.from.take_bytes(value_len)?;
        if key.is_empty() || (self.table_records > 0 && key <= self.last_key) {
            let place = self.place();
            return Err(self.damaged(at, format!("{place}a record out of order")));
        }
        self.table_records += 1;
        self.done.spaces += u64::from(table == Table::Spaces && keys::is_meta(&key));
        self.last_key.clone_from(&key);
        Ok(Piece::Record(key, value))
    }

    /// Where in the backup something is, in words.
    fn place(&self) -> String {
        self.table
            .map_or_else(String::new, |table| format!("in table {}: ", table.name()))
    }

    fn digest(&mut self, records: u64, what: impl Fn() -> String) -> Result<(), BadBackup> {
        let at = self.from.bytes;
        let said = u64::from_be_bytes(self.from.take()?);
        let digest = self.from.hash.clone().finalize();
        let found = self.from.take::<32>()?;
        if said != records || found[..] != digest[..] {
            let (what, from) = (what(), self.table_at);
            return Err(self.damaged(at, format!("{what}from byte {from} on is not what was written")));
        }
        Ok(())
    }
}

impl<R: Read> Hashed<R> {
    fn fill(&mut self, bytes: &mut [u8]) -> Result<(), BadBackup> {
        let mut filled = 0;
        while filled < bytes.len() {
            match self.inner.read(&mut bytes[filled..]) {
                Ok(0) => {
                    let what = "the backup ends here, and is not whole".to_owned();
                    let at = self.bytes + filled as u64;
                    return Err(BadBackup::Damaged { at, what });
                }
                Ok(n) => filled += n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => {
                    let at = self.bytes + filled as u64;
                    return Err(BadBackup::Io { at, source });
                }
            }
        }
        self.hash.update(&*bytes);
        self.bytes += bytes.len() as u64;
        Ok(())
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N], BadBackup> {
        let mut bytes = [0; N];
        self.fill(&mut bytes)?;
        Ok(bytes)
    }

    fn take_bytes(&mut self, len: u32) -> Result<Vec<u8>, BadBackup> {
        let mut bytes = vec![0; len as usize];
        self.fill(&mut bytes)?;
        Ok(bytes)
    }
}

/// Reads what a backup is, and returns the store's format.
fn first_line(from: &mut Hashed<impl Read>) -> Result<u32, BadBackup> {
    let mut line = Vec::new();
    let known = |text: &str| -> Option<(u32, u32)> {
        let mut words = text.split(' ');
        let magic = (
            words.next()?,
            words.next()?.parse().ok()?,
            words.next()?,
            words.next()?.parse().ok()?,
        );
        match magic {
            (MAGIC, version, "store", format) if words.next().is_none() => Some((version, format)),
            _ => None,
        }
    };
    while line.last() != Some(&b'\n') && line.len() < LINE_BYTES {
        line.extend(from.take::<1>()?);
    }
    let text = std::str::from_utf8(&line).ok().and_then(|text| text.strip_suffix('\n'));
    match text.and_then(known) {
        Some((version, _)) if version > VERSION => Err(BadBackup::Newer {
            what: "backup version",
            found: version,
            known: VERSION,
        }),
        Some((_, format)) if format > FORMAT => Err(BadBackup::Newer {
            what: "store format",
            found: format,
            known: FORMAT,
        }),
        Some((VERSION, format @ 1..)) => Ok(format),
        _ => Err(BadBackup::Damaged {
            at: 0,
            what: "it does not begin as a backup does".to_owned(),
        }),
    }
}

/// Reads a backup to its end, and so finds out whether it is whole.
pub fn verify(from: impl Read) -> Result<BackedUp, BadBackup> {
    let mut reader = Reader::new(from)?;
    while !matches!(reader.next()?, Piece::End) {}
    Ok(reader.done)
}

/// Makes a store in `dir`, which is missing or empty, of a backup. Every space's history goes on under
/// a new epoch, so that clients notice what was acked after the backup.
///
/// `dir` becomes a store in the last step; where that is not reached, what was written is removed.
/// Blocks.
pub fn restore(from: impl Read, dir: &Path, env: &dyn Env) -> Result<BackedUp, RestoreError> {
    let mut reader = Reader::new(from)?;
    let building = Building::new(dir)?;
    building.fill(&mut reader, env)?;
    building.finish(reader.format)?;
    Ok(reader.done)
}

/// A database beside its place, in a directory that is no store until [`Self::finish`]. Dropped before,
/// it removes what it has put there.
struct Building {
    dir: PathBuf,
    /// Whether the directory was not there before.
    made_dir: bool,
    /// `None` once it is closed.
    open: Option<(Vec<Keyspace>, Database)>,
    done: bool,
    _lock: disk::Lock,
}

impl Building {
    fn new(dir: &Path) -> Result<Self, OpenError> {
        // Before anything is touched, and again when nobody else can be at it.
        refuse_full(dir)?;
        let made_dir = !dir.exists();
        disk::create_folder(dir).map_err(at(dir))?;
        let lock = disk::lock(dir)?;
        // What is there by now is not this one's to remove.
        refuse_full(dir)?;
        let mut building = Self {
            dir: dir.to_owned(),
            made_dir,
            open: None,
            done: false,
            _lock: lock,
        };
        let fresh = building.fresh();
        // In place before anything is written: until it is whole, nothing begins an empty store here.
        remove(&fresh)
            .and_then(|()| fs::create_dir(&fresh))
            .and_then(|()| File::open(dir)?.sync_all())
            .map_err(at(&fresh))?;
        let (db, tables) = disk::open_database(&fresh)?;
        building.open = Some((tables, db));
        Ok(building)
    }

    fn fresh(&self) -> PathBuf {
        self.dir.join(disk::RESTORED)
    }

    fn fill(&self, reader: &mut Reader<impl Read>, env: &dyn Env) -> Result<(), RestoreError> {
        let (tables, db) = self.open.as_ref().expect("open until it is finished");
        let mut under = Table::Spaces;
        // A space's lineage comes right before its record, which has the head that the new epoch starts at.
        let mut lineage: Option<(Vec<u8>, Vec<u8>)> = None;
        let (mut batch, mut waiting) = (db.batch(), 0);
        loop {
            let piece = reader.next()?;
            if let Some((of, bytes)) = lineage.take() {
                let minted = match &piece {
                    Piece::Record(key, meta) if keys::is_meta(key) && keys::space_of(key) == keys::space_of(&of) => {
                        mint(&bytes, meta, reader.format, env)
                    }
                    _ => None,
                };
                // What cannot be read is restored as it is: the store tells of it where it is asked for.
                batch.insert(&tables[Table::Spaces as usize], of, minted.unwrap_or(bytes));
            }
            match piece {
                Piece::Table(table) => under = table,
                Piece::Record(key, value) => {
                    waiting += key.len() + value.len();
                    if under == Table::Spaces && keys::is_lineage(&key) {
                        // Not yet: a key of a batch that is written twice has no order.
                        lineage = Some((key, value));
                    } else {
                        batch.insert(&tables[under as usize], key, value);
                    }
                }
                Piece::End => break,
            }
            if waiting >= BATCH_BYTES {
                std::mem::replace(&mut batch, db.batch()).commit().map_err(told)?;
                waiting = 0;
            }
        }
        batch.commit().map_err(told)?;
        Ok(db.persist(PersistMode::SyncAll).map_err(told)?)
    }

    /// Closes the database, moves it into its place, and says last that this is a store.
    fn finish(mut self, format: u32) -> Result<(), OpenError> {
        self.open = None;
        let path = self.dir.join(disk::DATABASE);
        disk::sync_tree(&self.fresh()).map_err(at(&self.fresh()))?;
        disk::prepare_format(&self.dir, format)?;
        fs::rename(self.fresh(), &path)
            .and_then(|()| File::open(&self.dir)?.sync_all())
            .map_err(at(&path))?;
        disk::put_format(&self.dir)?;
        self.done = true;
        Ok(())
    }
}

impl Drop for Building {
    fn drop(&mut self) {
        if self.done {
            return;
        }
        self.open = None;
        // The marker first: without it nothing else passes for a store.
        for name in [
            disk::MARKER,
            disk::FRESH_MARKER,
            disk::RESTORED,
            disk::DATABASE,
            disk::LOCK,
        ] {
            if let Err(error) = remove(&self.dir.join(name)) {
                tracing::warn!(path = %self.dir.join(name).display(), %error, "a restore that failed leaves this behind");
            }
        }
        if self.made_dir {
            let _ = fs::remove_dir(&self.dir);
        }
    }
}

/// What a restore that was killed may have left, and what a fresh file system has.
const NOTHING: [&str; 4] = [disk::LOCK, disk::RESTORED, disk::FRESH_MARKER, "lost+found"];

fn refuse_full(dir: &Path) -> Result<(), OpenError> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => {
            return Err(OpenError::NotADirectory { path: dir.to_owned() });
        }
        entries => entries.map_err(at(dir))?,
    };
    for entry in entries {
        let name = entry.map_err(at(dir))?.file_name();
        if !NOTHING.iter().any(|nothing| name == *nothing) {
            let found = dir.join(name);
            return Err(OpenError::NotEmpty {
                dir: dir.to_owned(),
                found,
            });
        }
    }
    Ok(())
}

/// Removes a file or a directory with what is in it, if it is there.
fn remove(path: &Path) -> io::Result<()> {
    let removed = match path.is_dir() {
        true => fs::remove_dir_all(path),
        false => fs::remove_file(path),
    };
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// A lineage with a new epoch from the head on.
fn mint(lineage: &[u8], meta: &[u8], format: u32, env: &dyn Env) -> Option<Vec<u8>> {
    let mut lineage = Lineage::decode(lineage)?;
    let meta = match format {
        1 => SpaceMeta::decode_1(meta)?,
        _ => SpaceMeta::decode(meta)?,
    };
    // No opening has this incarnation, so that the first commit begins its own.
    lineage.mint(Epoch(env.random().max(1)), Vec::new(), meta.head, meta.floor);
    Some(lineage.encode())
}
