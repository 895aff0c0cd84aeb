//! The store on Redis: any number of nodes on one.
//!
//! Every call is one script, and so one atomic step, with its checks in it; a scan's page has a look at the index
//! before. What a space's keys hold is said in [`keys`], and in `scripts/*.lua` what is done with them. Scripts do not
//! roll back: they check all before they write.
//!
//! The lineage's incarnation is the server's replication id, which changes with every start and every failover, so
//! whatever may have lost commits begins a new epoch with the next commit.

mod changes;
mod collect;
mod commit;
mod connect;
mod doctor;
mod endpoint;
mod erase;
mod header;
mod import;
mod keys;
mod link;
mod reply;
mod scripts;

use super::{
    Begun, ChangesReply, ChangesRequest, CommitGroup, Committed, ConflictRecord, DocState, Erase, Erased, LogEntry,
    LogReply, ReadCut, ResetReason, Retention, SpaceState, Store, StoreError, Usage,
};
use crate::metrics::RedisMetrics;
use crate::store::Cell;
use crate::store::embedded::records::Record;
use async_trait::async_trait;
use bytes::Bytes;
pub(crate) use connect::Connector;
pub use doctor::{Finding, Level};
pub use endpoint::RedisTls;
pub(crate) use import::Imported;
use keys::Keys;
pub(crate) use keys::{channel, space_of_channel};
pub use link::RedisConfig;
use link::{Call, Link, LinkError};
use parking_lot::Mutex;
use redis::Value;
use reply::{Parts, unexpected};
use scripts::Script;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;
use tidegate_protocol::{DocPath, Epoch, FieldPath, Position, SpaceId, Writer};

/// Spaces of which one call asks.
const POSITIONS: usize = 64;

/// The store.
pub struct RedisStore {
    connector: Arc<Connector>,
    link: Link,
    retention: Retention,
    /// What the documents of all spaces take.
    usage: Mutex<Totals>,
    /// Spaces that were found closed by an erasure, and since when.
    closed: Mutex<HashMap<SpaceId, Instant>>,
}

/// What documents take, space by space as far as this node has heard of them.
#[derive(Default)]
struct Totals {
    all: Usage,
    /// With the last walk that had begun when it was heard of.
    spaces: HashMap<SpaceId, (Usage, u64)>,
    walks: u64,
}

impl Totals {
    fn note(&mut self, space: &SpaceId, usage: Usage) {
        let before = self.spaces.insert(space.clone(), (usage, self.walks));
        self.all.replace(before.unwrap_or_default().0, usage);
    }

    /// It is there, whatever it takes.
    fn keep(&mut self, space: &SpaceId) {
        if let Some((_, walk)) = self.spaces.get_mut(space) {
            *walk = self.walks;
        }
    }

    /// A walk over all spaces begins.
    fn begin(&mut self) -> u64 {
        self.walks += 1;
        self.walks
    }

    /// It has come to its end: what has not been heard of since it began is gone.
    fn end(&mut self, walk: u64) {
        let all = &mut self.all;
        self.spaces.retain(|_, (usage, heard)| {
            let is_there = *heard >= walk;
            if !is_there {
                all.replace(*usage, Usage::default());
            }
            is_there
        });
    }
}

impl RedisStore {
    /// A store at `redis://[user:password@]host[:port][/db]`, or at `rediss://…` over TLS. It connects when it is first
    /// asked something.
    ///
    /// # Errors
    /// Where the address, or a certificate, cannot be read.
    pub fn new(
        url: &str,
        config: RedisConfig,
        retention: Retention,
        metrics: Arc<RedisMetrics>,
    ) -> Result<Arc<Self>, StoreError> {
        let connector = Connector::new(url, config, metrics).map_err(StoreError::Unavailable)?;
        let connector = Arc::new(connector);
        Ok(Arc::new(Self {
            link: Link::new(connector.clone()),
            connector,
            retention,
            usage: Mutex::default(),
            closed: Mutex::default(),
        }))
    }

    /// What connects to the server.
    pub(crate) fn connector(&self) -> &Arc<Connector> {
        &self.connector
    }

    /// Publishes something.
    pub(crate) async fn publish(&self, channel: &str, message: &str) -> Result<(), StoreError> {
        let mut cmd = redis::cmd("PUBLISH");
        self.link.ask(cmd.arg(channel).arg(message)).await?;
        Ok(())
    }

    /// The channel of a space.
    fn channel(&self, space: &SpaceId) -> String {
        channel(space, self.connector.endpoint.db())
    }

    /// Runs a script on a space.
    async fn on(&self, space: &SpaceId, script: &Script, call: &Call) -> Result<Value, StoreError> {
        self.link.run(script, call).await.map_err(|error| {
            if error.is_erasing() {
                self.closed.lock().entry(space.clone()).or_insert_with(Instant::now);
            }
            error.into()
        })
    }

    /// What a command that reads answers on a primary, and the life of that: whoever goes by several answers has to have
    /// them from one.
    async fn ask_primary(&self, call: &Call) -> Result<(Vec<u8>, Value), LinkError> {
        if let Value::Array(mut parts) = self.link.run(&scripts::LOOK, call).await?
            && let (Some(answer), Some(Value::BulkString(life))) = (parts.pop(), parts.pop())
        {
            return Ok((life, answer));
        }
        Err(LinkError::Other(unexpected("a look")))
    }

    /// The life of the primary.
    async fn life(&self) -> Result<Vec<u8>, LinkError> {
        let mut call = Call::on([]);
        call.arg("PING");
        Ok(self.ask_primary(&call).await?.0)
    }

    /// Remembers what a space's documents take now.
    fn note(&self, space: &SpaceId, usage: Usage) {
        self.usage.lock().note(space, usage);
    }
}

#[async_trait]
impl Store for RedisStore {
    async fn commit(&self, group: CommitGroup) -> Result<Committed, StoreError> {
        let call = commit::call(&group, &self.retention, &self.channel(&group.space));
        let reply = self.on(&group.space, &scripts::COMMIT, &call).await?;
        let space = group.space.clone();
        let (committed, usage) = commit::outcomes(group, reply)?;
        self.note(&space, usage);
        Ok(committed)
    }

    async fn read(&self, space: &SpaceId, docs: &[DocPath]) -> Result<ReadCut, StoreError> {
        let keys = Keys::of(space);
        let mut call = Call::on([keys.meta(), keys.log(), keys.idx()].into_iter().chain(keys.docs(docs)));
        for doc in docs {
            call.arg(doc.as_str());
        }
        let mut parts = Parts::of(self.on(space, &scripts::READ, &call).await?)?;
        let (state, _) = parts.state()?;
        let docs = docs
            .iter()
            .map(|_| document(parts.parts()?))
            .collect::<Result<_, _>>()?;
        self.note(space, state.usage);
        Ok(ReadCut { state, docs })
    }

    async fn log(
        &self,
        space: &SpaceId,
        after: Position,
        limit: usize,
        bytes: usize,
        writer: Option<Writer>,
    ) -> Result<LogReply, StoreError> {
        let keys = Keys::of(space);
        let mut call = Call::on([keys.meta(), keys.log(), keys.idx(), keys.clients()]);
        call.number(after.seq.get()).number(limit as u64).number(bytes as u64);
        call.arg(writer.map_or_else(Vec::new, |writer| writer.0.to_be_bytes().to_vec()));
        let mut parts = Parts::of(self.on(space, &scripts::LOG, &call).await?)?;
        let (state, log_first) = parts.state()?;
        let last_mid = parts.last_mid()?;
        if !state.lineage.holds(after, state.head.seq) {
            return Ok(LogReply::Reset(ResetReason::Lost));
        }
        let trimmed = after.seq < state.head.seq && after.seq.next() < log_first;
        if trimmed || !state.lineage.names_all_after(after) {
            return Ok(LogReply::Trimmed);
        }
        let mut commits = Vec::with_capacity(parts.len() / 2);
        let mut expected = after.seq;
        while parts.len() > 0 {
            let (seq, payload) = (parts.seq()?, parts.bytes()?);
            expected = expected.next();
            if seq != expected {
                break;
            }
            commits.push(LogEntry {
                seq,
                payload: Bytes::from(payload),
            });
        }
        // Somebody has deleted it, or a part of it. What has changed is known without.
        if commits.is_empty() && limit > 0 && after.seq < state.head.seq {
            tracing::warn!(%space, %after, "the log lacks the next commit");
            return Ok(LogReply::Trimmed);
        }
        Ok(LogReply::Commits {
            commits,
            state,
            last_mid,
        })
    }

    async fn changes(&self, space: &SpaceId, request: ChangesRequest) -> Result<ChangesReply, StoreError> {
        self.scan(space, &request).await
    }

    async fn positions(&self, spaces: &[SpaceId]) -> Result<Vec<SpaceState>, StoreError> {
        let calls = spaces.chunks(POSITIONS).map(|some| async move {
            let keys = some.iter().map(Keys::of);
            let call = Call::on(keys.flat_map(|keys| [keys.meta(), keys.log(), keys.idx()]));
            let mut parts = Parts::of(self.link.run(&scripts::POSITIONS, &call).await?)?;
            some.iter()
                .map(|_| Ok(parts.state()?.0))
                .collect::<Result<Vec<_>, StoreError>>()
        });
        // All are on their way before the first has answered.
        let states: Vec<Vec<SpaceState>> = futures_util::future::try_join_all(calls).await?;
        Ok(states.into_iter().flatten().collect())
    }

    async fn conflicts(&self, space: &SpaceId, limit: usize) -> Result<Vec<ConflictRecord>, StoreError> {
        let keys = Keys::of(space);
        let mut call = Call::on([keys.meta(), keys.conflicts()]);
        call.number(limit as u64);
        let mut parts = Parts::of(self.on(space, &scripts::CONFLICTS, &call).await?)?;
        (0..parts.len()).map(|_| parts.record()).collect()
    }

    async fn erase(
        &self,
        space: &SpaceId,
        whom: Erase,
        fresh: Epoch,
        now_ms: u64,
        begun: Begun<'_>,
    ) -> Result<Erased, StoreError> {
        self.erase_all(space, whom, fresh, now_ms, begun).await
    }

    fn usage(&self) -> Usage {
        self.usage.lock().all
    }
}

/// A document's fields and cells in turn, the header among them.
fn document(mut parts: Parts) -> Result<DocState, StoreError> {
    let mut found = DocState::default();
    while parts.len() > 0 {
        let field = parts.bytes()?;
        if field.is_empty() {
            found.header = Some(parts.record()?);
            continue;
        }
        let field = std::str::from_utf8(&field)
            .ok()
            .and_then(|field| FieldPath::parse(field).ok());
        let cell = Cell::decode(&parts.bytes()?).ok_or_else(|| unexpected("a cell"))?;
        found.cells.insert(field.ok_or_else(|| unexpected("a field"))?, cell);
    }
    Ok(found)
}
