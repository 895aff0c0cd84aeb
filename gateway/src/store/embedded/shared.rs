//! The open database as readers and the writer share it; replaced in place after a failed write.
//!
//! Once a write has failed, the database underneath takes no more until it is opened again. Reads go on
//! as before: nothing of the failed write is visible in them. To open it again the writer needs it to
//! itself, so reads begun meanwhile wait for a moment.

use super::disk::{Disk, FORMAT, Home};
use super::{Durability, OpenError, journal};
use crate::store::StoreError;
use parking_lot::{Condvar, Mutex};
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

/// How long a read waits for the database to be opened again; then it is `Unavailable`.
const READ_WAITS: Duration = Duration::from_secs(5);
/// How long opening again waits for reads under way; then it is put off. A read is a page at most, and a backup
/// ends by itself.
const LAST_READS: Duration = Duration::from_secs(5);

/// The database, and how to get at it.
pub(super) struct Shared {
    state: Mutex<State>,
    opened: Condvar,
    durability: Durability,
    // Last: the directory is free only when the database is closed.
    home: Home,
}

struct State {
    /// `None` while it is opened again, and after that has failed.
    disk: Option<Arc<Disk>>,
    /// Whether it is being opened, so that it is worth waiting.
    opening: bool,
}

impl Shared {
    /// Opens or creates it.
    pub(super) fn open(dir: &Path, durability: Durability) -> Result<Self, OpenError> {
        Self::at(Home::take(dir)?, durability)
    }

    /// Opens one that must be there. Nothing is cut off its journals that may have been answered.
    pub(super) fn open_existing(dir: &Path) -> Result<Self, OpenError> {
        Self::at(Home::take_existing(dir)?, Durability::Fsync)
    }

    fn at((home, found): (Home, u32), durability: Durability) -> Result<Self, OpenError> {
        let disk = Disk::open(&home, found, durability)?;
        home.migrate(&disk, found)?;
        Ok(Self {
            state: Mutex::new(State {
                disk: Some(Arc::new(disk)),
                opening: false,
            }),
            opened: Condvar::new(),
            durability,
            home,
        })
    }

    /// The database, for a read or a batch. Not to be kept: opening it again waits for the last handle.
    /// May block for some seconds.
    pub(super) fn disk(&self) -> Result<Arc<Disk>, StoreError> {
        let mut state = self.state.lock();
        self.opened
            .wait_while_for(&mut state, |state| state.opening, READ_WAITS);
        state.disk.clone().ok_or_else(closed)
    }

    /// Whether the database is wanted to be opened again: a long read then ends.
    pub(super) fn is_closing(&self) -> bool {
        self.state.lock().opening
    }

    /// Whether the database takes writes, as far as it knows.
    pub(super) fn takes_writes(&self) -> Result<(), StoreError> {
        self.disk_now()?.takes_writes()
    }

    /// Bytes of the database's files, 0 where it is not open. Waits for nothing.
    pub(super) fn bytes(&self) -> u64 {
        self.disk_now().and_then(|disk| disk.bytes()).unwrap_or(0)
    }

    fn disk_now(&self) -> Result<Arc<Disk>, StoreError> {
        self.state.lock().disk.clone().ok_or_else(closed)
    }

    /// Whether so many bytes are free.
    pub(super) fn room(&self, wanted: u64) -> Result<(), StoreError> {
        let free = self.free_bytes()?;
        match free < wanted {
            true => Err(StoreError::Unavailable(format!(
                "the disk is full: {free} bytes are free, and {wanted} must be"
            ))),
            false => Ok(()),
        }
    }

    /// Bytes that can still be written to the file system.
    pub(super) fn free_bytes(&self) -> Result<u64, StoreError> {
        let free = self.home.free_bytes();
        free.map_err(|error| StoreError::Unavailable(format!("the disk: {error}")))
    }

    /// Opens the database again, on the writer's thread, which holds no handle meanwhile.
    ///
    /// What was applied before is there again. Of the write that failed all may be, or nothing: its
    /// callers were told that nobody knows.
    pub(super) fn reopen(&self, reserve: u64) -> Result<(), StoreError> {
        let database = self.home.database();
        // The copies stand beside the journals for a while, and may use the reserve.
        let journals = journal::bytes(&database).map_err(|error| unopened(&error))?;
        self.room(reserve.max(journals))?;
        // Before the database that still answers reads is given up: the disk must take writes again.
        let copies = journal::copy(&database).map_err(|error| unopened(&error))?;
        self.close()?;
        let put = copies.put().map_err(|error| unopened(&error));
        let opened =
            put.and_then(|()| Disk::open(&self.home, FORMAT, self.durability).map_err(|error| unopened(&error)));
        let mut state = self.state.lock();
        state.opening = false;
        self.opened.notify_all();
        state.disk = Some(Arc::new(opened?));
        Ok(())
    }

    /// Closes the database as soon as no read uses it.
    #[expect(clippy::disallowed_methods, reason = "the writer's own thread")]
    fn close(&self) -> Result<(), StoreError> {
        let taken = {
            let mut state = self.state.lock();
            state.opening = true;
            state.disk.take()
        };
        // It is closed already where opening it failed before.
        let Some(mut disk) = taken else { return Ok(()) };
        let begun = Instant::now();
        loop {
            disk = match Arc::try_unwrap(disk) {
                Ok(_closed) => return Ok(()),
                Err(shared) => shared,
            };
            if begun.elapsed() > LAST_READS {
                *self.state.lock() = State {
                    disk: Some(disk),
                    opening: false,
                };
                self.opened.notify_all();
                return Err(StoreError::Unavailable(
                    "a read still uses the database that is to be opened again".to_owned(),
                ));
            }
            thread::sleep(Duration::from_millis(1));
        }
    }
}

fn closed() -> StoreError {
    StoreError::Unavailable("the database is being opened again after a failed write".to_owned())
}

fn unopened(error: &impl ToString) -> StoreError {
    StoreError::Unavailable(format!("opening the database again failed: {}", error.to_string()))
}
