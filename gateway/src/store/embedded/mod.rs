//! The embedded store, on fjall: one directory, one process.
//!
//! Reads run on snapshots and never wait for writes. All writes go through one thread
//! ([`writer`]), which applies whatever is waiting as one atomic write with one sync. What is stored
//! is laid out in [`disk`] (tables), [`keys`] and [`records`].

mod backup;
mod changes;
mod check;
mod collect;
mod commit;
mod disk;
mod document;
mod erase;
pub(crate) mod export;
mod journal;
mod keys;
mod migrate;
mod overlay;
mod packs;
mod read;
mod recent;
pub(in crate::store) mod records;
mod restore;
mod results;
mod rewrite;
mod shared;
mod sweep;
#[cfg(test)]
mod tests;
mod totals;
mod trees;
mod writer;

use super::{
    Begun, ChangesReply, ChangesRequest, CommitGroup, Committed, ConflictRecord, Erase, Erased, LogReply, ReadCut,
    Retention, SpaceState, Store, StoreError, Usage,
};
use crate::env::Env;
use crate::metrics::Reading;
use async_trait::async_trait;
pub use backup::{BackedUp, BackupError, backup, broken_off};
pub use check::{CheckError, Checked, Rule, Violation, check};
pub use collect::Collected;
use collect::{Task, TaskDone};
use disk::Cut;
use packs::Packs;
use parking_lot::Mutex;
pub use restore::{BadBackup, RestoreError, restore, verify};
use shared::Shared;
use std::collections::HashSet;
use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::thread::{self, JoinHandle};
use std::time::Duration;
use tidegate_protocol::{DocPath, Epoch, Position, SpaceId};
use totals::{Taken, Totals};
pub use writer::Stats;
use writer::{Counters, QUEUE_BYTES, QUEUE_GROUPS, Queue, Writer, stopped};

/// A key's length is stored in 16 bits.
const KEY_BYTES: usize = 65_535;
/// How long a store that ends waits for reads under way.
const LAST_READS: Duration = Duration::from_secs(5);

/// What an `ack` means.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum Durability {
    /// On disk: it survives a power cut.
    #[default]
    Fsync,
    /// Handed to the operating system: it survives the gateway's death, not the machine's.
    Memory,
}

/// What [`EmbeddedOptions::reserve_bytes`] should be unless there is a reason.
pub const RESERVE_BYTES: u64 = 64 << 20;

/// How to open a store.
#[derive(Clone)]
pub struct EmbeddedOptions {
    /// When a commit is answered.
    pub durability: Durability,
    /// What is kept.
    pub retention: Retention,
    /// Bytes of the file system that are kept free: with less, writes are refused, while reads go on. It
    /// has to hold what the database writes by itself: tables in memory, and what it merges.
    pub reserve_bytes: u64,
    /// Gives the incarnation, a random number drawn at every open.
    pub env: Arc<dyn Env>,
}

/// Why a store could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process, or another store of this one, has it open.
    #[error("{} is in use: another gateway holds {}", dir.display(), lock.display())]
    InUse {
        /// The store's directory.
        dir: PathBuf,
        /// The locked file.
        lock: PathBuf,
    },
    /// Written by a newer version.
    #[error("{} says format {found}, which a newer version wrote; this one reads {known}: upgrade it", path.display())]
    Newer {
        /// The file that says so.
        path: PathBuf,
        /// The format found.
        found: u32,
        /// The format that this version knows.
        known: u32,
    },
    /// Written by an older version, and not brought to this one's format: the next open tries again.
    #[error("{} is in format {found} and could not be brought to format {known}: {source}", path.display())]
    NotMigrated {
        /// The database's directory.
        path: PathBuf,
        /// The format found.
        found: u32,
        /// The format that this version writes.
        known: u32,
        /// Why.
        source: StoreError,
    },
    /// There is a database without the marker of a store, or with another one.
    #[error("{} is missing or is not a store's format marker: this is not a Tidegate data directory", path.display())]
    NotAStore {
        /// The marker.
        path: PathBuf,
    },
    /// Something is where a backup was to be restored.
    #[error("{} is not empty, there is {}: a backup is restored into a directory that is missing or empty", dir.display(), found.display())]
    NotEmpty {
        /// The directory.
        dir: PathBuf,
        /// What is there.
        found: PathBuf,
    },
    /// A restore was begun there and did not come to its end.
    #[error(
        "{} holds no store, but {}, which a restore has left that was cut short: restore the backup again, or remove it",
        dir.display(), found.display()
    )]
    HalfRestored {
        /// The directory.
        dir: PathBuf,
        /// What the restore has left.
        found: PathBuf,
    },
    /// There is no store that could be looked at.
    #[error("there is no store in {}", dir.display())]
    Missing {
        /// The directory.
        dir: PathBuf,
    },
    /// A file is where the directory should be.
    #[error("{} is not a directory", path.display())]
    NotADirectory {
        /// The path.
        path: PathBuf,
    },
    /// The file system refused.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file of the database is missing, or is not what was written.
    #[error("{} is damaged: {why}", path.display())]
    Damaged {
        /// The file, or where it cannot be told the database's directory.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
}

/// A store in a directory of its own.
///
/// Dropping it waits for the writes in line, and makes them durable.
pub struct EmbeddedStore {
    shared: Arc<Shared>,
    /// `None` only while dropping.
    queue: Option<Queue>,
    writer: Option<JoinHandle<()>>,
    retention: Retention,
    counters: Arc<Counters>,
    totals: Arc<Totals>,
    packs: Arc<Packs>,
    /// Spaces of which collection could not read something, when it last came to them. Each is logged once.
    damaged: Mutex<HashSet<SpaceId>>,
    /// Cloned into every read under way; `None` only while dropping.
    reading: Option<mpsc::Sender<Infallible>>,
    /// Disconnected once no read is under way.
    idle: Mutex<mpsc::Receiver<Infallible>>,
}

/// Opens the store in `dir`, or creates it there.
///
/// Blocks for as long as recovery takes: it reads what was written since the last flush.
pub fn open(dir: &Path, options: EmbeddedOptions) -> Result<EmbeddedStore, OpenError> {
    open_bounded(dir, options, QUEUE_GROUPS, QUEUE_BYTES)
}

/// As [`open`], but creates nothing.
pub fn open_existing(dir: &Path, options: EmbeddedOptions) -> Result<EmbeddedStore, OpenError> {
    disk::Home::must_be_there(dir)?;
    open(dir, options)
}

fn open_bounded(dir: &Path, options: EmbeddedOptions, groups: usize, bytes: usize) -> Result<EmbeddedStore, OpenError> {
    let shared = Arc::new(Shared::open(dir, options.durability)?);
    let counters = Arc::<Counters>::default();
    let totals = Arc::<Totals>::default();
    let counted = shared.disk().and_then(|disk| totals.count(&disk.cut()));
    let erasing = counted.map_err(|why| OpenError::Damaged {
        path: dir.to_owned(),
        why: why.to_string(),
    })?;
    let (queue, jobs) = Queue::new(groups, bytes, counters.clone());
    let retention = options.retention.clone();
    let writer = Writer::new(shared.clone(), options, counters.clone(), totals.clone(), erasing);
    let thread = thread::Builder::new()
        .name("store-writer".to_owned())
        .spawn(move || writer.run(&jobs));
    let thread = thread.map_err(|source| OpenError::Io {
        path: dir.to_owned(),
        source,
    })?;
    let (reading, idle) = mpsc::channel();
    Ok(EmbeddedStore {
        shared,
        queue: Some(queue),
        writer: Some(thread),
        retention,
        counters,
        totals,
        packs: Arc::default(),
        damaged: Mutex::default(),
        reading: Some(reading),
        idle: Mutex::new(idle),
    })
}

impl EmbeddedStore {
    /// What the writer has done since `open`.
    pub fn stats(&self) -> Stats {
        self.counters.stats()
    }

    /// Ends the store: what is in line is written and made durable, and the directory is free when
    /// this returns, unless a read is stuck for more than five seconds. Blocks.
    pub fn close(self) {
        drop(self);
    }

    fn retention(&self) -> &Retention {
        &self.retention
    }

    fn queue(&self) -> Result<&Queue, StoreError> {
        self.queue.as_ref().ok_or_else(stopped)
    }

    async fn task(&self, task: Task) -> Result<TaskDone, StoreError> {
        self.queue()?.task(task)?.await.map_err(|_| stopped())?
    }

    /// Runs a read on a snapshot, away from the runtime's threads.
    async fn snapshot<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Cut<'_>) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (shared, reading) = (self.shared.clone(), self.reading.clone());
        let answer = tokio::task::spawn_blocking(move || {
            let answer = shared.disk().and_then(|disk| read(&disk.cut()));
            drop(shared);
            drop(reading);
            answer
        })
        .await;
        answer.unwrap_or_else(|error| {
            Err(match error.is_panic() {
                true => StoreError::Damaged("a read failed; see the log".to_owned()),
                false => StoreError::Unavailable("the gateway is stopping".to_owned()),
            })
        })
    }
}

impl Drop for EmbeddedStore {
    fn drop(&mut self) {
        self.queue = None;
        if let Some(writer) = self.writer.take() {
            // It catches its own panics.
            let _ = writer.join();
        }
        // A read whose caller has gone may still be under way, and holds the directory's lock.
        drop(self.reading.take());
        let _ = self.idle.get_mut().recv_timeout(LAST_READS);
    }
}

#[async_trait]
impl Store for EmbeddedStore {
    async fn commit(&self, group: CommitGroup) -> Result<Committed, StoreError> {
        refuse_long_keys(&group)?;
        self.queue()?.commit(group)?.await.map_err(|_| stopped())?
    }

    async fn read(&self, space: &SpaceId, docs: &[DocPath]) -> Result<ReadCut, StoreError> {
        let (space, docs) = (space.clone(), docs.to_vec());
        self.snapshot(move |cut| read::read(cut, &space, &docs)).await
    }

    async fn log(
        &self,
        space: &SpaceId,
        after: Position,
        limit: usize,
        bytes: usize,
        writer: Option<tidegate_protocol::Writer>,
    ) -> Result<LogReply, StoreError> {
        let space = space.clone();
        self.snapshot(move |cut| read::log(cut, &space, after, limit, bytes, writer))
            .await
    }

    async fn changes(&self, space: &SpaceId, request: ChangesRequest) -> Result<ChangesReply, StoreError> {
        let (space, packs) = (space.clone(), self.packs.clone());
        // Before the snapshot is taken.
        let since = packs.now();
        self.snapshot(move |cut| changes::changes(cut, &space, &request, (&packs, since)))
            .await
    }

    async fn positions(&self, spaces: &[SpaceId]) -> Result<Vec<SpaceState>, StoreError> {
        let spaces = spaces.to_vec();
        self.snapshot(move |cut| read::positions(cut, &spaces)).await
    }

    async fn conflicts(&self, space: &SpaceId, limit: usize) -> Result<Vec<ConflictRecord>, StoreError> {
        let space = space.clone();
        self.snapshot(move |cut| read::conflicts(cut, &space, limit)).await
    }

    async fn erase(
        &self,
        space: &SpaceId,
        whom: Erase,
        fresh: Epoch,
        now_ms: u64,
        begun: Begun<'_>,
    ) -> Result<Erased, StoreError> {
        self.run_erasure(space, whom, fresh, now_ms, begun).await
    }

    fn usage(&self) -> Usage {
        self.totals.get().usage
    }

    fn readings(&self) -> Vec<Reading> {
        let stats = self.stats();
        let Taken {
            spaces,
            usage,
            log_bytes,
        } = self.totals.get();
        let disk_bytes = self.shared.bytes();
        vec![
            Reading::new("tidegate_store_spaces", spaces),
            Reading::new("tidegate_store_documents", usage.docs),
            Reading::new("tidegate_store_document_bytes", usage.bytes),
            Reading::new("tidegate_store_log_bytes", log_bytes),
            Reading::new("tidegate_store_disk_bytes", disk_bytes),
            Reading::new("tidegate_store_pack_bytes", self.packs.bytes() as u64),
            Reading::new("tidegate_store_syncs_total", stats.syncs),
            Reading::new("tidegate_store_batches_total", stats.batches),
            Reading::new("tidegate_store_groups_total", stats.groups),
            Reading::new("tidegate_store_commits_total", stats.commits),
            Reading::new("tidegate_store_refused_total", stats.refused),
            Reading::new("tidegate_store_write_failures_total", stats.write_failures),
            Reading::new("tidegate_store_reopened_total", stats.reopened),
            Reading::new("tidegate_store_damaged_spaces", self.damaged.lock().len() as u64),
            Reading::new("tidegate_store_free_bytes", self.shared.free_bytes().unwrap_or(0)),
        ]
    }
}

/// The database panics on a key that its format cannot hold; field paths have no bound of their own.
fn refuse_long_keys(group: &CommitGroup) -> Result<(), StoreError> {
    let mut paths = group.items.iter().flat_map(|item| match &item.action {
        super::Action::Apply(effects) => effects.docs.as_slice(),
        super::Action::Refuse { .. } => &[],
    });
    // Beside the field, a key holds at most a space, a seq, a document and three ends.
    let most = KEY_BYTES - tidegate_protocol::limits::SPACE_BYTES - tidegate_protocol::limits::DOC_BYTES - 16;
    let long = paths.any(|doc| doc.cells.iter().any(|(path, _)| path.as_str().len() > most));
    match long {
        true => Err(StoreError::Unavailable(format!(
            "a field path is longer than {most} bytes"
        ))),
        false => Ok(()),
    }
}
