//! Collection: raising the floor, and deleting what lies below it, in steps that hold Redis for a few milliseconds at
//! most. The floor rises first.

use super::keys::{METAS, space_of_meta};
use super::link::Call;
use super::reply::{Parts, unexpected};
use super::{Keys, RedisStore, scripts};
use crate::store::embedded::Collected;
use crate::store::lineage::MAX_ENTRIES;
use crate::store::{KEPT_RESULTS, SpaceState, Store, StoreError};
use redis::Value;
use std::collections::HashMap;
use tidegate_protocol::{Seq, SpaceId};

/// Entries that a step deletes at most.
const STEP: usize = 256;
/// Clients whose records and results go in a step.
const CLIENTS: usize = 16;
/// Keys that the server looks at in a step of a walk.
const WALK: usize = 512;

/// Everything older than these times goes, ms since 1970.
struct Ages {
    log: u64,
    tombstones: u64,
    clients: u64,
}

impl RedisStore {
    /// Raises a space's tombstone floor to `to`, the head at most, and deletes what lies below. Returns the floor that
    /// now holds; one that is higher already stays.
    pub async fn raise_floor(&self, space: &SpaceId, to: Seq) -> Result<Seq, StoreError> {
        let floor = self.raise(space, to).await?;
        self.sweep(space, floor).await?;
        Ok(floor)
    }

    async fn raise(&self, space: &SpaceId, to: Seq) -> Result<Seq, StoreError> {
        let mut call = Call::on([Keys::of(space).meta()]);
        call.number(to.get()).number(MAX_ENTRIES as u64);
        let floor = text(self.link.run(&scripts::RAISE, &call).await?)?;
        floor.parse().ok().and_then(Seq::new).ok_or_else(|| unexpected("a seq"))
    }

    /// Deletes tombstones and dead documents at or below the floor, and marks of time there.
    async fn sweep(&self, space: &SpaceId, floor: Seq) -> Result<u64, StoreError> {
        let keys = Keys::of(space);
        let mut deleted = 0;
        loop {
            let mut cmd = redis::cmd("ZRANGE");
            cmd.arg(keys.dead()).arg("-inf").arg(floor.get()).arg("BYSCORE");
            cmd.arg("LIMIT").arg(0).arg(STEP);
            let mut parts = Parts::of(self.link.ask(&cmd).await?)?;
            if parts.len() == 0 {
                break;
            }
            let (mut docs, mut entries): (Vec<String>, _) = (vec![], vec![]);
            let mut places = HashMap::new();
            while parts.len() > 0 {
                let entry = String::from_utf8(parts.bytes()?).map_err(|_| unexpected("a tombstone"))?;
                let (path, field) = entry.split_once('\0').unwrap_or((&entry, ""));
                let place = *places.entry(path.to_owned()).or_insert_with(|| {
                    docs.push(path.to_owned());
                    docs.len()
                });
                entries.push((place, path.to_owned(), field.to_owned(), entry));
            }
            let fixed = [keys.meta(), keys.idx(), keys.dead()];
            let mut call = Call::on(fixed.into_iter().chain(docs.iter().map(|doc| keys.doc(doc))));
            call.number(entries.len() as u64);
            for (place, path, field, entry) in &entries {
                call.arg(entry).number(*place as u64).arg(path).arg(field);
            }
            deleted += count(&self.link.run(&scripts::SWEEP, &call).await?)?;
        }
        let mut cmd = redis::cmd("ZRANGE");
        cmd.arg(keys.marks()).arg(0).arg(-1);
        let mut parts = Parts::of(self.link.ask(&cmd).await?)?;
        let mut below = redis::cmd("ZREM");
        below.arg(keys.marks());
        let mut found = false;
        while parts.len() > 0 {
            let seq = parts.number()?;
            if seq <= floor.get() {
                below.arg(seq);
                found = true;
            }
        }
        if found {
            self.link.ask(&below).await?;
        }
        Ok(deleted)
    }

    /// Deletes a space's log up to and with the commit `to`.
    pub async fn trim_log(&self, space: &SpaceId, to: Seq) -> Result<u64, StoreError> {
        let keys = Keys::of(space);
        let mut call = Call::on([keys.meta(), keys.log()]);
        call.arg("log").number(to.get()).number(STEP as u64);
        self.steps(&call).await
    }

    async fn age_conflicts(&self, space: &SpaceId, before: u64) -> Result<u64, StoreError> {
        let keys = Keys::of(space);
        let mut call = Call::on([keys.meta(), keys.conflicts()]);
        call.arg("conflicts").number(before).number(STEP as u64);
        self.steps(&call).await
    }

    async fn steps(&self, call: &Call) -> Result<u64, StoreError> {
        let mut deleted = 0;
        loop {
            let step = count(&self.link.run(&scripts::TRIM, call).await?)?;
            deleted += step;
            if step < STEP as u64 {
                return Ok(deleted);
            }
        }
    }

    /// Deletes a space's client records that last wrote before `before`, ms since 1970.
    pub async fn forget(&self, space: &SpaceId, before: u64) -> Result<u64, StoreError> {
        let keys = Keys::of(space);
        let (mut cursor, mut deleted) = (b"0".to_vec(), 0);
        loop {
            let mut cmd = redis::cmd("HSCAN");
            cmd.arg(keys.clients()).arg(&cursor).arg("COUNT").arg(WALK);
            let mut parts = Parts::of(self.link.ask(&cmd).await?)?;
            cursor = parts.bytes()?;
            let mut found = parts.parts()?;
            let mut old = vec![];
            while found.len() > 0 {
                let (writer, record) = (found.bytes()?, found.bytes()?);
                let when = record.get(16..24).and_then(|when| when.try_into().ok());
                if u64::from_be_bytes(when.ok_or_else(|| unexpected("a client's record"))?) < before {
                    old.push(writer);
                }
            }
            for some in old.chunks(CLIENTS) {
                let mut call = Call::on([keys.meta(), keys.clients(), keys.results()]);
                call.number(before).number(KEPT_RESULTS);
                for writer in some {
                    call.arg(writer);
                }
                deleted += count(&self.link.run(&scripts::FORGET, &call).await?)?;
            }
            if cursor == b"0" {
                return Ok(deleted);
            }
        }
    }

    /// One round of collection: everything older than the retention goes, as of `now_ms`. A round that is dropped
    /// halfway is taken up by the next.
    ///
    /// # Errors
    /// Where Redis does not answer, or refuses.
    pub async fn collect(&self, now_ms: u64) -> Result<Collected, StoreError> {
        let ages = Ages {
            log: now_ms.saturating_sub(self.retention.log_ms),
            tombstones: now_ms.saturating_sub(self.retention.tombstones_ms),
            clients: now_ms.saturating_sub(self.retention.clients_ms),
        };
        let mut done = Collected::default();
        let mut cursor = b"0".to_vec();
        loop {
            for space in self.walk(&mut cursor).await? {
                done.spaces += 1;
                match self.collect_space(&space, &ages, &mut done).await {
                    // The others' is not held up by it.
                    Err(StoreError::Damaged(why)) => {
                        tracing::warn!(%space, %why, "what is older than the retention cannot be collected");
                        done.damaged += 1;
                    }
                    other => other?,
                }
            }
            if cursor == b"0" {
                return Ok(done);
            }
        }
    }

    async fn collect_space(&self, space: &SpaceId, ages: &Ages, done: &mut Collected) -> Result<(), StoreError> {
        self.resume_erasure(space).await?;
        let state = self.positions(std::slice::from_ref(space)).await?.pop();
        let state = state.ok_or_else(|| unexpected("a state"))?;
        self.note(space, state.usage);
        let to = self.seq_before(space, &state, ages.tombstones).await?;
        done.floors += u64::from(to > state.floor);
        // Also where the floor stays: a round before may not have come to its end.
        let floor = self.raise_to(space, to, &state).await?;
        done.tombstones += self.sweep(space, floor).await?;
        let to = self.seq_before(space, &state, ages.log).await?;
        done.log += self.trim_log(space, to).await?;
        done.conflicts += self.age_conflicts(space, ages.tombstones).await?;
        done.clients += self.forget(space, ages.clients).await?;
        Ok(())
    }

    async fn raise_to(&self, space: &SpaceId, to: Seq, state: &SpaceState) -> Result<Seq, StoreError> {
        match to > state.floor {
            true => self.raise(space, to).await,
            false => Ok(state.floor),
        }
    }

    /// The head that a space had at a time before `old`, as far as its marks tell.
    async fn seq_before(&self, space: &SpaceId, state: &SpaceState, old: u64) -> Result<Seq, StoreError> {
        if state.last_ms < old {
            return Ok(state.head.seq);
        }
        let mut cmd = redis::cmd("ZRANGE");
        cmd.arg(Keys::of(space).marks()).arg(format!("({old}")).arg("-inf");
        cmd.arg("BYSCORE").arg("REV").arg("LIMIT").arg(0).arg(1);
        let mut parts = Parts::of(self.link.ask(&cmd).await?)?;
        match parts.len() {
            0 => Ok(Seq::ZERO),
            _ => parts.seq(),
        }
    }

    /// The next spaces, in no order; the cursor is `0` at the end.
    async fn walk(&self, cursor: &mut Vec<u8>) -> Result<Vec<SpaceId>, StoreError> {
        let mut cmd = redis::cmd("SCAN");
        cmd.arg(&*cursor).arg("MATCH").arg(METAS).arg("COUNT").arg(WALK);
        let mut parts = Parts::of(self.link.ask(&cmd).await?)?;
        *cursor = parts.bytes()?;
        let mut found = parts.parts()?;
        let keys = (0..found.len()).map(|_| found.bytes()).collect::<Result<Vec<_>, _>>()?;
        Ok(keys.iter().filter_map(|key| space_of_meta(key)).collect())
    }

    /// Counts what the documents of all spaces take, so that [`Store::usage`] knows of those that this node has not
    /// heard of.
    ///
    /// # Errors
    /// Where Redis does not answer, or refuses.
    pub async fn count(&self) -> Result<(), StoreError> {
        let mut cursor = b"0".to_vec();
        loop {
            let spaces = self.walk(&mut cursor).await?;
            for (space, state) in spaces.iter().zip(self.each_position(&spaces).await?) {
                match state {
                    Ok(state) => self.note(space, state.usage),
                    Err(why) => tracing::warn!(%space, %why, "what it takes cannot be counted"),
                }
            }
            if cursor == b"0" {
                return Ok(());
            }
        }
    }
}

fn count(value: &Value) -> Result<u64, StoreError> {
    match value {
        Value::Int(n) => u64::try_from(*n).map_err(|_| unexpected("a count")),
        _ => Err(unexpected("a count")),
    }
}

fn text(value: Value) -> Result<String, StoreError> {
    match value {
        Value::BulkString(bytes) => String::from_utf8(bytes).map_err(|_| unexpected("text")),
        _ => Err(unexpected("text")),
    }
}
