//! A stopped embedded store, carried over: cells, seqs, clients and lineage included, so that devices go on.
//!
//! A space is closed until all of it is there, as if it were being erased; so one that was cut short is begun again.
//! Its meta says from where it came, so that a second run leaves alone what is complete.

use super::reply::{Parts, unexpected};
use super::{Keys, RedisStore};
use crate::store::embedded::export::{ClientRecord, Export, Piece, Stand};
use crate::store::embedded::records::{KeptResult, Record};
use crate::store::{KEPT_RESULTS, StoreError};
use redis::{Cmd, Value};
use tidegate_protocol::SpaceId;
use tokio::runtime::Handle;

/// In the place of an erasure: the space is being carried over.
pub(super) const UNDER_WAY: &[u8] = b"carried over";
/// Commands sent at a time.
const BATCH: usize = 256;
/// Documents that are removed at a time, of a space that is begun again.
const STEP: usize = 256;

/// Why a store could not be carried over.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ImportError {
    /// One of the stores could not be read or written.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Redis has a space of that name already.
    #[error(
        "{0} is in Redis already, and not from this store: nothing was carried over. Use an empty Redis, or erase it there"
    )]
    Taken(SpaceId),
}

/// What was carried over.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Imported {
    /// Spaces.
    pub(crate) spaces: u64,
    /// Spaces that a run before had carried over.
    pub(crate) before: u64,
    /// Documents, deleted ones too.
    pub(crate) docs: u64,
    /// Commits of logs.
    pub(crate) commits: u64,
    /// Clients.
    pub(crate) clients: u64,
}

/// What Redis has of a space.
enum There {
    Nothing,
    /// A part of it, from a run that was cut short.
    Part,
    /// All of it.
    All,
}

impl RedisStore {
    /// Carries a stopped store over. Blocks, on a thread that may; `runtime` is where the connections are.
    ///
    /// # Errors
    /// Before anything is written, where a space is there already that does not come from this store; later where one of
    /// the two does not answer: run again, it goes on.
    pub(crate) fn import(&self, from: &Export, runtime: &Handle) -> Result<Imported, ImportError> {
        let mut done = Imported::default();
        let mut todo = vec![];
        for space in from.spaces()? {
            let stand = from.stand(&space)?;
            match runtime.block_on(self.there(&space, &stand))? {
                There::Nothing => todo.push((space, stand, false)),
                There::Part => todo.push((space, stand, true)),
                There::All => done.before += 1,
            }
        }
        for (space, stand, has_part) in todo {
            if has_part {
                runtime.block_on(self.remove(&space))?;
            }
            self.import_space(from, &space, &stand, runtime, &mut done)?;
            done.spaces += 1;
        }
        Ok(done)
    }

    async fn there(&self, space: &SpaceId, stand: &Stand) -> Result<There, ImportError> {
        let mut cmd = redis::cmd("HMGET");
        cmd.arg(Keys::of(space).meta()).arg("head").arg("erasing").arg("origin");
        let found = match self.link.ask(&cmd).await.map_err(StoreError::from)? {
            Value::Array(found) => found,
            _ => return Err(unexpected("fields of meta").into()),
        };
        let is = |at: usize, wanted: &[u8]| matches!(&found[at], Value::BulkString(bytes) if bytes == wanted);
        Ok(match found[0] {
            Value::Nil => There::Nothing,
            _ if !is(2, &origin(stand)) => return Err(ImportError::Taken(space.clone())),
            _ if is(1, UNDER_WAY) => There::Part,
            _ => There::All,
        })
    }

    /// Removes what a run that was cut short has left of a space.
    async fn remove(&self, space: &SpaceId) -> Result<(), StoreError> {
        let keys = Keys::of(space);
        loop {
            let mut cmd = redis::cmd("ZRANGE");
            cmd.arg(keys.idx()).arg(0).arg(STEP - 1);
            let mut parts = Parts::of(self.link.ask(&cmd).await?)?;
            if parts.len() == 0 {
                break;
            }
            let (mut unlink, mut zrem) = (redis::cmd("UNLINK"), redis::cmd("ZREM"));
            zrem.arg(keys.idx());
            while parts.len() > 0 {
                let doc = String::from_utf8(parts.bytes()?).map_err(|_| unexpected("a path"))?;
                unlink.arg(keys.doc(&doc));
                zrem.arg(&doc);
            }
            self.link.ask(&unlink).await?;
            self.link.ask(&zrem).await?;
        }
        let mut cmd = redis::cmd("UNLINK");
        for key in [
            keys.log(),
            keys.clients(),
            keys.results(),
            keys.conflicts(),
            keys.users(),
            keys.dead(),
            keys.marks(),
        ] {
            cmd.arg(key);
        }
        self.link.ask(&cmd).await?;
        Ok(())
    }

    fn import_space(
        &self,
        from: &Export,
        space: &SpaceId,
        stand: &Stand,
        runtime: &Handle,
        done: &mut Imported,
    ) -> Result<(), StoreError> {
        let keys = Keys::of(space);
        let send = |batch: &mut Vec<Cmd>| -> Result<(), StoreError> {
            match std::mem::take(batch) {
                batch if batch.is_empty() => Ok(()),
                batch => Ok(runtime.block_on(self.link.in_order(batch))?),
            }
        };
        // Closed from the start.
        let mut first = redis::cmd("HSET");
        first.arg(keys.meta()).arg("head").arg(stand.state.head.seq.get());
        first.arg("erasing").arg(UNDER_WAY).arg("origin").arg(origin(stand));
        send(&mut vec![first])?;

        let (mut docs, mut log_bytes, mut conflicts, mut conflicts_bytes) = (0_u64, 0, 0_u64, 0);
        let mut batch = vec![];
        from.each(space, |piece| {
            match piece {
                Piece::Mark(at, seq) => batch.push(zadd(keys.marks(), at, seq.get().to_string().as_bytes())),
                Piece::Doc(path, doc) => {
                    let Some(header) = doc.header else { return Ok(()) };
                    // The index first: what is cut short is found by it.
                    batch.push(zadd(keys.idx(), header.last.seq.get(), path.as_str().as_bytes()));
                    let mut cmd = redis::cmd("HSET");
                    cmd.arg(keys.doc(path.as_str())).arg("").arg(header.encode());
                    for (field, cell) in &doc.cells {
                        cmd.arg(field.as_str()).arg(cell.encode());
                        if cell.value.is_none() {
                            let entry = format!("{path}\0{field}");
                            batch.push(zadd(keys.dead(), cell.stamp.seq.get(), entry.as_bytes()));
                        }
                    }
                    batch.push(cmd);
                    if !header.alive {
                        batch.push(zadd(keys.dead(), header.last.seq.get(), path.as_str().as_bytes()));
                    }
                    docs += 1;
                }
                Piece::Commit(commit) => {
                    log_bytes += commit.payload.len();
                    batch.push(xadd(keys.log(), commit.seq.get(), "p", &commit.payload));
                    done.commits += 1;
                }
                Piece::Conflict(record) => {
                    let record = record.encode();
                    (conflicts, conflicts_bytes) = (conflicts + 1, conflicts_bytes + record.len());
                    batch.push(xadd(keys.conflicts(), conflicts, "r", &record));
                }
                Piece::Client(client) => {
                    batch.push(hset(keys.clients(), &client.writer.0.to_be_bytes(), &record(&client)));
                    done.clients += 1;
                }
                Piece::Result(writer, mid, key, kept) => {
                    let slot = u8::try_from(mid.get() % KEPT_RESULTS).expect("a byte");
                    let result = [&mid.get().to_be_bytes()[..], &KeptResult { key, kept }.encode()].concat();
                    let at = [&writer.0.to_be_bytes()[..], &[slot]].concat();
                    batch.push(hset(keys.results(), &at, &result));
                }
                Piece::User(user, writer) => {
                    let member = [user.0.to_be_bytes(), writer.0.to_be_bytes()].concat();
                    batch.push(zadd(keys.users(), 0, &member));
                }
            }
            match batch.len() >= BATCH {
                true => send(&mut batch),
                false => Ok(()),
            }
        })?;
        send(&mut batch)?;
        done.docs += docs;

        let state = &stand.state;
        let last = state.lineage.0.last();
        let mut meta = redis::cmd("HSET");
        meta.arg(keys.meta());
        for (field, n) in [
            ("at", state.last_ms),
            ("floor", state.floor.get()),
            ("docs", state.usage.docs),
            ("bytes", state.usage.bytes),
            ("idx", docs),
            ("log_first", stand.log_first.get()),
            ("log_bytes", log_bytes as u64),
            ("cf_next", conflicts),
            ("cf_bytes", conflicts_bytes as u64),
        ] {
            meta.arg(field).arg(n);
        }
        if let Some(forgotten) = stand.forgotten_ms {
            meta.arg("forgotten").arg(forgotten);
        }
        meta.arg("epoch").arg(&state.lineage.last_epoch().0.to_be_bytes());
        meta.arg("life").arg(last.map_or(&[][..], |last| &last.incarnation[..]));
        meta.arg("lineage").arg(state.lineage.encode());
        send(&mut vec![meta])?;
        let mut open = redis::cmd("HDEL");
        open.arg(keys.meta()).arg("erasing");
        send(&mut vec![open])
    }
}

/// What names the history that a space is carried over with.
fn origin(stand: &Stand) -> Vec<u8> {
    let head = stand.state.head;
    format!("{:016x}.{}", head.epoch.0, head.seq).into_bytes()
}

fn record(client: &ClientRecord) -> Vec<u8> {
    let numbers = [client.last.get(), client.key.0, client.when];
    let user = client.user.map(|user| user.0);
    numbers.into_iter().chain(user).flat_map(u64::to_be_bytes).collect()
}

fn zadd(key: Vec<u8>, score: u64, member: &[u8]) -> Cmd {
    let mut cmd = redis::cmd("ZADD");
    cmd.arg(key).arg(score).arg(member);
    cmd
}

fn xadd(key: Vec<u8>, n: u64, field: &str, value: &[u8]) -> Cmd {
    let mut cmd = redis::cmd("XADD");
    cmd.arg(key).arg(format!("{n}-0")).arg(field).arg(value);
    cmd
}

fn hset(key: Vec<u8>, field: &[u8], value: &[u8]) -> Cmd {
    let mut cmd = redis::cmd("HSET");
    cmd.arg(key).arg(field).arg(value);
    cmd
}
