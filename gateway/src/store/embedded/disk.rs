//! The database on disk: its format marker, its tables, and how its errors are told.

use super::records::{Record, SpaceMeta};
use super::{Durability, OpenError, journal, keys, migrate, trees};
use crate::store::{Lineage, SpaceState, StoreError};
use fjall::{Database, Keyspace, KeyspaceCreateOptions, PersistMode, Readable, Slice, Snapshot};
use std::fs::{self, DirBuilder, File, TryLockError};
use std::io::{self, ErrorKind, Write};
use std::ops::Bound;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use tidegate_protocol::{Position, SpaceId};

/// The format that this version reads and writes.
pub(super) const FORMAT: u32 = 3;
/// The format whose tables this one has.
const TABLES_SINCE: u32 = 2;
/// The file that says which format a directory is in, as text, so that any version can read it.
pub(super) const MARKER: &str = "FORMAT";
/// The marker while it is written.
pub(super) const FRESH_MARKER: &str = "FORMAT.new";
const MARKER_WORD: &str = "tidegate-store";
/// The database's own directory.
pub(super) const DATABASE: &str = "db";
/// A database while it is made, until it is whole.
pub(super) const FRESH: &str = "db.new";
/// A database while it is made of a backup: where it lies no store is begun.
pub(super) const RESTORED: &str = "db.restore";
/// The file whose lock an open store holds.
pub(super) const LOCK: &str = "LOCK";
/// A table's writes in memory before they go to a file. The journal is kept until they have.
const MEMTABLE_BYTES: u64 = 16 << 20;
/// Of the index this is less: a document that is written often leaves its former places in memory as
/// deletions, and a scan walks over them.
const INDEX_MEMTABLE_BYTES: u64 = 2 << 20;
/// Journals kept before tables that hold them back are flushed: what a recovery reads again at most.
const JOURNAL_BYTES: u64 = 128 << 20;
/// Blocks cached.
const CACHE_BYTES: u64 = 64 << 20;

/// A table, one keyspace of the database.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Table {
    /// Where a space stands, its lineage, its marks of time.
    Spaces,
    /// Payloads of recent commits.
    Log,
    /// Documents: the record under the empty field, with all of a small document (see [`super::document`]), and the cells
    /// of others.
    Cells,
    /// The names of the cells that have records of their own, under the same keys. A name is written once, a cell again and again; and
    /// a range over a table walks over every version of a key that its memory still holds, where a
    /// look-up goes straight to the newest. So names are walked, and cells looked up: a document that
    /// was written 60,000 times is read in microseconds instead of 40 ms.
    Fields,
    /// Documents in the order of the commit that last touched them.
    Idx,
    /// Tombstones in the order of their commits, so that collection finds them without a search.
    Dead,
    /// Clients.
    Clients,
    /// Results of mutations.
    Results,
    /// The conflict log.
    Conflicts,
    /// Which writers a user has had.
    Users,
}

impl Table {
    /// Every table, in the order of the enum.
    pub(super) const ALL: [Self; 10] = [
        Self::Spaces,
        Self::Log,
        Self::Cells,
        Self::Fields,
        Self::Idx,
        Self::Dead,
        Self::Clients,
        Self::Results,
        Self::Conflicts,
        Self::Users,
    ];

    /// An error met in it.
    pub(super) fn failed(self, error: fjall::Error) -> Failed {
        Failed {
            table: Some(self),
            error,
        }
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Spaces => "spaces",
            Self::Log => "log",
            Self::Cells => "cells",
            Self::Fields => "fields",
            Self::Idx => "idx",
            Self::Dead => "dead",
            Self::Clients => "clients",
            Self::Results => "results",
            Self::Conflicts => "conflicts",
            Self::Users => "users",
        }
    }
}

/// A data directory that this process has taken, with a database of a known format in it.
pub(super) struct Home {
    dir: PathBuf,
    lock: Lock,
}

impl Home {
    /// Takes a directory, and creates what is missing. Only one `Home` of all processes can have it.
    /// Also returns the format that it is in.
    pub(super) fn take(dir: &Path) -> Result<(Self, u32), OpenError> {
        if dir.exists() && !dir.is_dir() {
            return Err(OpenError::NotADirectory { path: dir.to_owned() });
        }
        create_folder(dir).map_err(at(dir))?;
        let lock = lock(dir)?;
        let path = dir.join(DATABASE);
        let there = path.try_exists().map_err(at(&path))?;
        let found = match (format_of(&dir.join(MARKER))?, there) {
            (Some(found), true) => found,
            (Some(_), false) => {
                return Err(OpenError::Damaged {
                    path,
                    why: "it is missing".to_owned(),
                });
            }
            (None, false) if dir.join(RESTORED).exists() => {
                return Err(OpenError::HalfRestored {
                    dir: dir.to_owned(),
                    found: dir.join(RESTORED),
                });
            }
            (None, false) => {
                create(dir, &path)?;
                FORMAT
            }
            // A creation was cut short between its last two steps.
            (None, true) => match format_of(&dir.join(FRESH_MARKER)) {
                Ok(Some(found)) => put_format(dir).map(|()| found)?,
                _ => return Err(OpenError::NotAStore { path: dir.join(MARKER) }),
            },
        };
        Ok((
            Self {
                dir: dir.to_owned(),
                lock,
            },
            found,
        ))
    }

    /// As `take`, where there must be a database already.
    pub(super) fn take_existing(dir: &Path) -> Result<(Self, u32), OpenError> {
        Self::must_be_there(dir)?;
        Self::take(dir)
    }

    /// Refuses a directory that nothing was ever stored in.
    pub(super) fn must_be_there(dir: &Path) -> Result<(), OpenError> {
        for name in [DATABASE, MARKER] {
            let path = dir.join(name);
            match path.try_exists() {
                Ok(true) => return Ok(()),
                Err(error) if error.kind() != ErrorKind::NotADirectory => return Err(at(&path)(error)),
                _ => {}
            }
        }
        Err(OpenError::Missing { dir: dir.to_owned() })
    }

    /// Brings the database to the format of this version, if it was `found` in another.
    pub(super) fn migrate(&self, disk: &Disk, found: u32) -> Result<(), OpenError> {
        if found == FORMAT {
            return Ok(());
        }
        let failed = |source| OpenError::NotMigrated {
            path: self.database(),
            found,
            known: FORMAT,
            source,
        };
        // What format 2 wrote is read as it is; the marker keeps away versions that know no more than that.
        if found == 1 {
            migrate::from_1(disk).map_err(failed)?;
        }
        // Last: until it stands there, all of it is done again.
        write_format(&self.dir, FORMAT)
    }

    /// Bytes that can still be written to the file system.
    pub(super) fn free_bytes(&self) -> io::Result<u64> {
        let stat = rustix::fs::fstatvfs(&self.lock.0)?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }

    /// The database's own directory.
    pub(super) fn database(&self) -> PathBuf {
        self.dir.join(DATABASE)
    }
}

/// An open database. At most one of a [`Home`] at a time.
pub(super) struct Disk {
    tables: Vec<Keyspace>,
    db: Database,
}

impl Disk {
    /// Opens the database, `found` in that format. `durability` says what its journals may lack after a
    /// power cut.
    pub(super) fn open(home: &Home, found: u32, durability: Durability) -> Result<Self, OpenError> {
        // Tables that came with a later format are created now.
        trees::check(&home.database(), found >= TABLES_SINCE)?;
        journal::check(&home.database(), durability)?;
        journal::remove_copies(&home.database())?;
        let (db, tables) = open_database(&home.database())?;
        Ok(Self { tables, db })
    }

    pub(super) fn table(&self, table: Table) -> &Keyspace {
        &self.tables[table as usize]
    }

    /// Everything as of now.
    pub(super) fn cut(&self) -> Cut<'_> {
        Cut {
            disk: self,
            snapshot: self.db.snapshot(),
        }
    }

    /// Starts an atomic write.
    pub(super) fn batch(&self, mode: PersistMode) -> fjall::OwnedWriteBatch {
        self.db.batch().durability(Some(mode))
    }

    /// Whether it still takes writes: once one has failed, or a flush or compaction in the background,
    /// it takes no more until it is opened again.
    pub(super) fn takes_writes(&self) -> Result<(), StoreError> {
        // Every write is handed over as it is made, so there is nothing that this could write.
        self.db.persist(PersistMode::Buffer).map_err(told)
    }

    /// Bytes of its files.
    pub(super) fn bytes(&self) -> Result<u64, StoreError> {
        self.db.disk_space().map_err(told)
    }

    /// Makes everything written so far survive a power cut.
    pub(super) fn sync(&self) -> Result<(), StoreError> {
        self.db.persist(PersistMode::SyncAll).map_err(told)
    }
}

/// Says which file an error of the file system is about.
pub(super) fn at(path: &Path) -> impl FnOnce(io::Error) -> OpenError {
    let path = path.to_owned();
    move |source| OpenError::Io { path, source }
}

/// A directory that is taken: the locked file. The operating system frees it when the file is closed, whatever ends
/// the process.
pub(super) struct Lock(pub(super) File);

impl Drop for Lock {
    fn drop(&mut self) {
        // Closing it here is not enough: a process that this one has just begun has the same file open until it
        // becomes another program, which may take a while.
        if let Err(error) = self.0.unlock() {
            tracing::warn!(%error, "the lock of the data directory cannot be given back");
        }
    }
}

/// Takes the directory.
pub(super) fn lock(dir: &Path) -> Result<Lock, OpenError> {
    let path = dir.join(LOCK);
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .map_err(at(&path))?;
    match file.try_lock() {
        Ok(()) => Ok(Lock(file)),
        Err(TryLockError::WouldBlock) => Err(OpenError::InUse {
            dir: dir.to_owned(),
            lock: path,
        }),
        Err(TryLockError::Error(source)) => Err(OpenError::Io { path, source }),
    }
}

pub(super) fn open_database(path: &Path) -> Result<(Database, Vec<Keyspace>), OpenError> {
    let failed = |error| match error {
        fjall::Error::Locked => OpenError::InUse {
            dir: path.to_owned(),
            lock: path.join("lock"),
        },
        fjall::Error::Io(source) | fjall::Error::Storage(fjall::LsmError::Io(source)) => at(path)(source),
        other => OpenError::Damaged {
            path: path.to_owned(),
            why: other.to_string(),
        },
    };
    let database = Database::builder(path)
        .cache_size(CACHE_BYTES)
        .max_journaling_size(JOURNAL_BYTES)
        .worker_threads(2);
    let db = database.open().map_err(failed)?;
    let keyspace = |table: &Table| {
        let bytes = if *table == Table::Idx {
            INDEX_MEMTABLE_BYTES
        } else {
            MEMTABLE_BYTES
        };
        db.keyspace(table.name(), || {
            KeyspaceCreateOptions::default().max_memtable_size(bytes)
        })
    };
    let tables = Table::ALL.iter().map(keyspace).collect::<Result<_, _>>();
    Ok((db, tables.map_err(failed)?))
}

/// Creates a folder where there is none, and those above it, for their owner alone; all of their names
/// survive a power cut.
pub(super) fn create_folder(dir: &Path) -> io::Result<()> {
    if dir.is_dir() {
        return Ok(());
    }
    // Of a path without a folder, that is the present one.
    let above = dir.parent().filter(|above| !above.as_os_str().is_empty());
    let above = above.unwrap_or(Path::new("."));
    create_folder(above)?;
    match DirBuilder::new().mode(0o700).create(dir) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    File::open(above)?.sync_all()
}

/// Makes a tree of files survive a power cut, names and contents.
pub(super) fn sync_tree(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        match path.is_dir() {
            true => sync_tree(&path)?,
            false => File::open(path)?.sync_all()?,
        }
    }
    File::open(dir)?.sync_all()
}

/// Creates a database beside its place, and moves it there when it is whole: fjall does not open one
/// whose creation was cut short. The marker lies ready by then, and is put in place last: so a marker
/// without a database shows that one was lost, and is not begun anew.
fn create(dir: &Path, path: &Path) -> Result<(), OpenError> {
    let fresh = dir.join(FRESH);
    match fs::remove_dir_all(&fresh) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(at(&fresh)(error)),
        _ => {}
    }
    drop(open_database(&fresh)?);
    sync_tree(&fresh).map_err(at(&fresh))?;
    prepare_format(dir, FORMAT)?;
    fs::rename(&fresh, path)
        .and_then(|()| File::open(dir)?.sync_all())
        .map_err(at(path))?;
    put_format(dir)
}

/// The format that a marker tells; `None` without one.
fn format_of(path: &Path) -> Result<Option<u32>, OpenError> {
    let not_ours = || OpenError::NotAStore { path: path.to_owned() };
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) if error.kind() == ErrorKind::InvalidData => return Err(not_ours()),
        Err(error) => return Err(at(path)(error)),
    };
    let found = text
        .strip_prefix(MARKER_WORD)
        .and_then(|rest| rest.trim().parse::<u32>().ok());
    match found {
        Some(found @ 1..=FORMAT) => Ok(Some(found)),
        Some(found) if found > FORMAT => Err(OpenError::Newer {
            path: path.to_owned(),
            found,
            known: FORMAT,
        }),
        _ => Err(not_ours()),
    }
}

/// Writes the marker so that it is whole or not there.
fn write_format(dir: &Path, format: u32) -> Result<(), OpenError> {
    prepare_format(dir, format)?;
    put_format(dir)
}

/// Writes the marker beside its place.
pub(super) fn prepare_format(dir: &Path, format: u32) -> Result<(), OpenError> {
    let path = dir.join(FRESH_MARKER);
    let write = || {
        let mut file = File::create(&path)?;
        writeln!(file, "{MARKER_WORD} {format}")?;
        file.sync_all()
    };
    write().map_err(at(&path))
}

/// Moves the marker into its place.
pub(super) fn put_format(dir: &Path) -> Result<(), OpenError> {
    let path = dir.join(MARKER);
    fs::rename(dir.join(FRESH_MARKER), &path)
        .and_then(|()| File::open(dir)?.sync_all())
        .map_err(at(&path))
}

/// What the database answered in place of a record, and the table, where it is known.
#[derive(Debug)]
pub(super) struct Failed {
    table: Option<Table>,
    error: fjall::Error,
}

impl From<fjall::Error> for Failed {
    fn from(error: fjall::Error) -> Self {
        Self { table: None, error }
    }
}

/// A database error in the store's words. One of the disk may pass; one of the content will not.
pub(super) fn told(failed: impl Into<Failed>) -> StoreError {
    let Failed { table, error } = failed.into();
    match error {
        fjall::Error::Io(error) | fjall::Error::Storage(fjall::LsmError::Io(error)) => {
            StoreError::Unavailable(format!("the disk: {error}"))
        }
        fjall::Error::Poisoned => {
            StoreError::Unavailable("a write to disk failed before; the database is opened again".to_owned())
        }
        fjall::Error::Locked | fjall::Error::KeyspaceDeleted => StoreError::Unavailable(error.to_string()),
        other => StoreError::Damaged(match table {
            Some(table) => format!("a block of the table {} is not what was written: {other}", table.name()),
            None => other.to_string(),
        }),
    }
}

/// A record that cannot be read.
pub(super) fn damaged(table: Table, key: &[u8]) -> StoreError {
    StoreError::Damaged(format!(
        "the record \"{}\" in {} cannot be read",
        key.escape_ascii(),
        table.name()
    ))
}

/// Something that records can be looked up in.
pub(super) trait Look {
    /// The bytes under a key.
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Slice>, StoreError>;

    /// The record under a key.
    fn record<T: Record>(&self, table: Table, key: &[u8]) -> Result<Option<T>, StoreError> {
        let Some(bytes) = self.get(table, key)? else {
            return Ok(None);
        };
        T::decode(&bytes).map(Some).ok_or_else(|| damaged(table, key))
    }

    /// Where a space stands; `None` if it was never written to.
    fn space(&self, space: &SpaceId) -> Result<Option<(SpaceMeta, Lineage)>, StoreError> {
        let Some(meta) = self.record(Table::Spaces, &keys::meta(space))? else {
            return Ok(None);
        };
        let key = keys::lineage(space);
        let lineage = self
            .record(Table::Spaces, &key)?
            .ok_or_else(|| damaged(Table::Spaces, &key))?;
        Ok(Some((meta, lineage)))
    }
}

/// All tables as of one moment.
pub(super) struct Cut<'a> {
    disk: &'a Disk,
    snapshot: Snapshot,
}

impl Look for Cut<'_> {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Slice>, StoreError> {
        let found = self.snapshot.get(self.disk.table(table), key);
        found.map_err(|error| told(table.failed(error)))
    }
}

/// An entry that a walk over a table has come to.
pub(super) struct Entry {
    table: Table,
    guard: fjall::Guard,
}

impl Entry {
    pub(super) fn key(self) -> Result<Slice, Failed> {
        self.guard.key().map_err(|error| self.table.failed(error))
    }

    pub(super) fn into_inner(self) -> Result<(Slice, Slice), Failed> {
        self.guard.into_inner().map_err(|error| self.table.failed(error))
    }

    /// Bytes of the value.
    pub(super) fn size(self) -> Result<u32, Failed> {
        self.guard.size().map_err(|error| self.table.failed(error))
    }
}

impl Cut<'_> {
    /// The entries from `start` up to, not including, `end`.
    pub(super) fn range(
        &self,
        table: Table,
        start: Bound<Vec<u8>>,
        end: Vec<u8>,
    ) -> impl DoubleEndedIterator<Item = Entry> + use<> {
        let range = (start, Bound::Excluded(end));
        let entries = self.snapshot.range(self.disk.table(table), range);
        entries.map(move |guard| Entry { table, guard })
    }

    /// All entries of a table.
    pub(super) fn iter(&self, table: Table) -> impl DoubleEndedIterator<Item = Entry> + use<> {
        let entries = self.snapshot.iter(self.disk.table(table));
        entries.map(move |guard| Entry { table, guard })
    }

    /// As `state`, of a space that takes reads.
    pub(super) fn open_state(&self, space: &SpaceId) -> Result<(SpaceState, SpaceMeta), StoreError> {
        let (state, meta) = self.state(space)?;
        meta.is_open()?;
        Ok((state, meta))
    }

    /// Where a space stands, as the store's callers see it; and its record.
    pub(super) fn state(&self, space: &SpaceId) -> Result<(SpaceState, SpaceMeta), StoreError> {
        let (meta, lineage) = self.space(space)?.unwrap_or_default();
        let head = Position::new(lineage.last_epoch(), meta.head);
        Ok((
            SpaceState {
                head,
                lineage,
                floor: meta.floor,
                last_ms: meta.last_ms,
                usage: meta.usage,
            },
            meta,
        ))
    }
}
