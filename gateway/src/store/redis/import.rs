//! A stopped embedded store, carried over: cells, seqs, clients and lineage included, so that devices go on.
//!
//! Every space is closed before anything of one is written, and until all of it is there, as if it were being erased. The
//! mark on it names the run that writes to it, and no other can; a run that finds what one before has left takes it over,
//! and begins that space again. Its meta says from where it came, so that a second run leaves alone what is complete.

use super::link::Call;
use super::reply::{Parts, unexpected};
use super::{Keys, RedisStore, scripts};
use crate::env::{Env as _, SystemEnv};
use crate::store::embedded::export::{ClientRecord, Export, Piece, Stand};
use crate::store::embedded::records::{KeptResult, Record};
use crate::store::{KEPT_RESULTS, StoreError};
use redis::Value;
use tidegate_protocol::SpaceId;
use tokio::runtime::Handle;

/// What is in the place of an erasure begins with: the space is being carried over.
pub(super) const UNDER_WAY: &[u8] = b"carried over";
/// Commands done in a step.
const BATCH: usize = 256;
/// Bytes in a step, but for the last command's.
const BATCH_BYTES: usize = 256 << 10;
/// Fields that a command writes.
const FIELDS: usize = 1_000;
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
        "{0} is in Redis already, and not from this store: nothing was carried over. Use an empty Redis, or erase it there \
         (tidegate erase {0} --redis URL) and run again"
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
    /// A part of it, from a run that was cut short, or what an erasure has left.
    Part,
    /// All of it.
    All,
}

/// A space that is carried over, and the mark of the run that does it.
struct Carried {
    space: SpaceId,
    stand: Stand,
    keys: Keys,
    mark: Vec<u8>,
}

impl RedisStore {
    /// Carries a stopped store over. Blocks, on a thread that may; `runtime` is where the connections are.
    ///
    /// # Errors
    /// Before anything is written, where a space is there already that does not come from this store; later where one of
    /// the two does not answer: run again, it goes on.
    pub(crate) fn import(&self, from: &Export, runtime: &Handle) -> Result<Imported, ImportError> {
        let mut done = Imported::default();
        let mark = [UNDER_WAY, &SystemEnv.random().to_be_bytes()].concat();
        let mut todo = vec![];
        for space in from.spaces()? {
            let (stand, keys, mark) = (from.stand(&space)?, Keys::of(&space), mark.clone());
            let carried = Carried {
                space,
                stand,
                keys,
                mark,
            };
            match runtime.block_on(self.take(&carried, "look"))? {
                There::All => done.before += 1,
                There::Nothing | There::Part => todo.push(carried),
            }
        }
        let mut taken: Vec<(Carried, bool)> = vec![];
        for carried in todo {
            match runtime.block_on(self.take(&carried, "take")) {
                Ok(There::All) => done.before += 1,
                Ok(There::Nothing) => taken.push((carried, false)),
                Ok(There::Part) => taken.push((carried, true)),
                Err(error) => {
                    // Somebody has made a space of that name since. The others are as before.
                    for (carried, _) in taken.iter().filter(|(_, has_part)| !has_part) {
                        let mut release = Batch::of(carried);
                        release.add("DEL", carried.keys.meta(), &[]);
                        runtime.block_on(self.send(&mut release))?;
                    }
                    return Err(error);
                }
            }
        }
        for (carried, has_part) in taken {
            if has_part {
                runtime.block_on(self.remove(&carried))?;
            }
            self.import_space(from, &carried, runtime, &mut done)?;
            done.spaces += 1;
        }
        Ok(done)
    }

    /// Looks at what is there of a space, or takes it: closes it, for this run alone to write to.
    async fn take(&self, carried: &Carried, how: &str) -> Result<There, ImportError> {
        let keys = &carried.keys;
        let mut call = Call::on([
            keys.meta(),
            keys.idx(),
            keys.log(),
            keys.results(),
            keys.users(),
            keys.clients(),
            keys.conflicts(),
            keys.dead(),
            keys.marks(),
        ]);
        call.arg(UNDER_WAY).arg(&carried.mark).arg(origin(&carried.stand));
        call.number(carried.stand.state.head.seq.get()).arg(how);
        let found = self.link.run(&scripts::TAKE, &call).await.map_err(StoreError::from)?;
        match found {
            Value::BulkString(found) => match &found[..] {
                b"nothing" => Ok(There::Nothing),
                // Its answer to the same call may have been lost.
                b"part" => Ok(There::Part),
                b"all" => Ok(There::All),
                _ => Err(ImportError::Taken(carried.space.clone())),
            },
            _ => Err(unexpected("what is there of a space").into()),
        }
    }

    /// Removes what is there of a space that this run has taken.
    async fn remove(&self, carried: &Carried) -> Result<(), StoreError> {
        let keys = &carried.keys;
        let mut batch = Batch::of(carried);
        loop {
            let mut call = keys.look(keys.idx());
            call.arg("ZRANGE").number(0).number(STEP as u64 - 1);
            let (_, answer) = self.ask_primary(&call).await?;
            let mut parts = Parts::of(answer)?;
            if parts.len() == 0 {
                break;
            }
            while parts.len() > 0 {
                let doc = String::from_utf8(parts.bytes()?).map_err(|_| unexpected("a path"))?;
                batch.add("UNLINK", keys.doc(&doc), &[]);
                batch.add("ZREM", keys.idx(), &[doc.as_bytes()]);
            }
            self.send(&mut batch).await?;
        }
        batch.add("UNLINK", keys.log(), &[]);
        for key in keys.others() {
            batch.add("UNLINK", key, &[]);
        }
        self.send(&mut batch).await
    }

    /// Does what has been put together, in one step, if the space is still this run's.
    async fn send(&self, batch: &mut Batch<'_>) -> Result<(), StoreError> {
        if batch.count == 0 {
            return Ok(());
        }
        let Batch { keys, args, .. } = std::mem::replace(batch, Batch::of(batch.carried));
        let mut cmd = redis::cmd("EVALSHA");
        cmd.arg(scripts::CARRY.sha()).arg(keys.len()).arg(keys).arg(args);
        Ok(self.link.in_order(vec![cmd]).await?)
    }

    fn import_space(
        &self,
        from: &Export,
        carried: &Carried,
        runtime: &Handle,
        done: &mut Imported,
    ) -> Result<(), StoreError> {
        let Carried { space, stand, keys, .. } = carried;
        let (mut docs, mut log_bytes, mut conflicts, mut conflicts_bytes) = (0_u64, 0, 0_u64, 0);
        let mut batch = Batch::of(carried);
        from.each(space, |piece| {
            match piece {
                Piece::Mark(at, seq) => batch.zadd(keys.marks(), at, seq.get().to_string().as_bytes()),
                Piece::Doc(path, doc) => {
                    let Some(header) = doc.header else { return Ok(()) };
                    // The index first: what is cut short is found by it.
                    batch.zadd(keys.idx(), header.last.seq.get(), path.as_str().as_bytes());
                    let mut fields = vec![(&b""[..], header.encode())];
                    for (field, cell) in &doc.cells {
                        fields.push((field.as_str().as_bytes(), cell.encode()));
                        if cell.value.is_none() {
                            let entry = format!("{path}\0{field}");
                            batch.zadd(keys.dead(), cell.stamp.seq.get(), entry.as_bytes());
                        }
                    }
                    for some in fields.chunks(FIELDS) {
                        let args: Vec<_> = some.iter().flat_map(|(field, cell)| [*field, &cell[..]]).collect();
                        batch.add("HSET", keys.doc(path.as_str()), &args);
                    }
                    if !header.alive {
                        batch.zadd(keys.dead(), header.last.seq.get(), path.as_str().as_bytes());
                    }
                    docs += 1;
                }
                Piece::Commit(commit) => {
                    log_bytes += commit.payload.len();
                    batch.xadd(keys.log(), commit.seq.get(), "p", &commit.payload);
                    done.commits += 1;
                }
                Piece::Conflict(record) => {
                    let record = record.encode();
                    (conflicts, conflicts_bytes) = (conflicts + 1, conflicts_bytes + record.len());
                    batch.xadd(keys.conflicts(), conflicts, "r", &record);
                }
                Piece::Client(client) => {
                    batch.add(
                        "HSET",
                        keys.clients(),
                        &[&client.writer.0.to_be_bytes(), &record(&client)],
                    );
                    done.clients += 1;
                }
                Piece::Result(writer, mid, key, kept) => {
                    let slot = u8::try_from(mid.get() % KEPT_RESULTS).expect("a byte");
                    let result = [&mid.get().to_be_bytes()[..], &KeptResult { key, kept }.encode()].concat();
                    let at = [&writer.0.to_be_bytes()[..], &[slot]].concat();
                    batch.add("HSET", keys.results(), &[&at, &result]);
                }
                Piece::User(user, writer) => {
                    let member = [user.0.to_be_bytes(), writer.0.to_be_bytes()].concat();
                    batch.zadd(keys.users(), 0, &member);
                }
            }
            match batch.count >= BATCH || batch.bytes >= BATCH_BYTES {
                true => runtime.block_on(self.send(&mut batch)),
                false => Ok(()),
            }
        })?;
        runtime.block_on(self.send(&mut batch))?;
        done.docs += docs;

        let state = &stand.state;
        let last = state.lineage.0.last();
        let mut meta = |field: &str, value: &[u8]| batch.add("HSET", keys.meta(), &[field.as_bytes(), value]);
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
            meta(field, n.to_string().as_bytes());
        }
        if let Some(forgotten) = stand.forgotten_ms {
            meta("forgotten", forgotten.to_string().as_bytes());
        }
        meta("epoch", &state.lineage.last_epoch().0.to_be_bytes());
        meta("life", last.map_or(&[][..], |last| &last.incarnation[..]));
        meta("lineage", &state.lineage.encode());
        // With all of it there, the space opens.
        batch.add("HDEL", keys.meta(), &[b"erasing"]);
        runtime.block_on(self.send(&mut batch))
    }
}

/// Commands to be done in one step, as long as the space is this run's.
struct Batch<'c> {
    carried: &'c Carried,
    keys: Vec<Vec<u8>>,
    args: Vec<Vec<u8>>,
    count: usize,
    bytes: usize,
}

impl<'c> Batch<'c> {
    fn of(carried: &'c Carried) -> Self {
        Self {
            carried,
            keys: vec![carried.keys.meta()],
            args: vec![carried.mark.clone()],
            count: 0,
            bytes: 0,
        }
    }

    fn add(&mut self, name: &str, key: Vec<u8>, args: &[&[u8]]) {
        self.keys.push(key);
        let (place, count) = (self.keys.len().to_string(), args.len().to_string());
        self.args
            .extend([name, &place, &count].map(|arg| arg.as_bytes().to_vec()));
        self.args.extend(args.iter().map(|arg| arg.to_vec()));
        self.bytes += args.iter().map(|arg| arg.len()).sum::<usize>();
        self.count += 1;
    }

    fn zadd(&mut self, key: Vec<u8>, score: u64, member: &[u8]) {
        self.add("ZADD", key, &[score.to_string().as_bytes(), member]);
    }

    fn xadd(&mut self, key: Vec<u8>, n: u64, field: &str, value: &[u8]) {
        self.add("XADD", key, &[format!("{n}-0").as_bytes(), field.as_bytes(), value]);
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
