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
pub(super) const WALK: usize = 512;

/// A clock that is further from the server's is wrong, or the server's is.
const SKEW_MS: u64 = 60_000;

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

    /// Deletes tombstones and dead documents at or below the floor, and marks of time there. A step that has taken
    /// nothing is the last: the space is closed, its floor has fallen in a failover, or another node has been faster. What
    /// is left is for the next round.
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
            let mut step = Parts::of(self.link.run(&scripts::SWEEP, &call).await?)?;
            let (gone, taken) = (step.number()?, step.number()?);
            deleted += gone;
            if taken == 0 {
                break;
            }
        }
        self.sweep_marks(&keys, floor).await?;
        Ok(deleted)
    }

    /// Deletes the marks of time at or below the floor. Seqs rise with time, so the oldest come first.
    async fn sweep_marks(&self, keys: &Keys, floor: Seq) -> Result<(), StoreError> {
        loop {
            let mut cmd = redis::cmd("ZRANGE");
            cmd.arg(keys.marks()).arg(0).arg(STEP - 1);
            let mut parts = Parts::of(self.link.ask(&cmd).await?)?;
            let mut below = vec![];
            while parts.len() > 0 {
                below.push(parts.number()?);
            }
            below.truncate(below.iter().take_while(|seq| **seq <= floor.get()).count());
            if !below.is_empty() {
                let mut cmd = redis::cmd("ZREM");
                cmd.arg(keys.marks()).arg(&below);
                self.link.ask(&cmd).await?;
            }
            if below.len() < STEP {
                return Ok(());
            }
        }
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

    /// Deletes a space's client records that last wrote before `before`, ms since 1970. A cursor is of use to the server
    /// alone that gave it, so it begins anew on another.
    pub async fn forget(&self, space: &SpaceId, before: u64) -> Result<u64, StoreError> {
        let keys = Keys::of(space);
        let (mut cursor, mut life, mut deleted) = (b"0".to_vec(), vec![], 0);
        loop {
            let mut call = keys.look(keys.clients());
            call.arg("HSCAN").arg(&cursor).arg("COUNT").number(WALK as u64);
            let (of, answer) = self.ask_primary(&call).await?;
            if life != of {
                let is_other = !life.is_empty();
                life = of;
                if is_other {
                    cursor = b"0".to_vec();
                    continue;
                }
            }
            let mut parts = Parts::of(answer)?;
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
    /// halfway is taken up by the next. Where the server's clock says something else than `now_ms`, by more than a minute,
    /// nothing goes for its age.
    ///
    /// # Errors
    /// Where Redis does not answer, or refuses.
    pub async fn collect(&self, now_ms: u64) -> Result<Collected, StoreError> {
        let mut parts = Parts::of(self.link.ask(&redis::cmd("TIME")).await?)?;
        let (seconds, us) = (parts.number()?, parts.number()?);
        let server_ms = seconds.saturating_mul(1_000) + us / 1_000;
        let is_wrong = now_ms.abs_diff(server_ms) > SKEW_MS;
        if is_wrong {
            tracing::warn!(
                now_ms,
                server_ms,
                "this node's clock and that of Redis differ by more than a minute (ms since 1970): what is older than the \
                 retention is kept until both are set right"
            );
        }
        self.collect_as_of(if is_wrong { 0 } else { now_ms }).await
    }

    /// As [`Self::collect`], whatever the server's clock says.
    ///
    /// # Errors
    /// Where Redis does not answer, or refuses.
    pub async fn collect_as_of(&self, now_ms: u64) -> Result<Collected, StoreError> {
        let ages = Ages {
            log: now_ms.saturating_sub(self.retention.log_ms),
            tombstones: now_ms.saturating_sub(self.retention.tombstones_ms),
            clients: now_ms.saturating_sub(self.retention.clients_ms),
        };
        let mut done = Collected::default();
        let mut walk = self.begin_walk().await?;
        while let Some(spaces) = self.walk(&mut walk).await? {
            for space in spaces {
                done.spaces += 1;
                match self.collect_space(&space, &ages, &mut done).await {
                    // The others' is not held up by it.
                    Err(StoreError::Damaged(why)) => {
                        tracing::warn!(%space, %why, "what is older than the retention cannot be collected");
                        self.usage.lock().keep(&space);
                        done.damaged += 1;
                    }
                    other => other?,
                }
            }
        }
        Ok(done)
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

    /// Begins a walk over all spaces.
    async fn begin_walk(&self) -> Result<Walk, StoreError> {
        let life = self.life().await?;
        let number = self.usage.lock().begin();
        Ok(Walk {
            number,
            life,
            cursor: Some(b"0".to_vec()),
        })
    }

    /// The next spaces, in no order, some perhaps again; nothing at the end. Then spaces that are gone no longer count,
    /// unless the server has changed meanwhile: to another one the cursor said nothing.
    async fn walk(&self, walk: &mut Walk) -> Result<Option<Vec<SpaceId>>, StoreError> {
        let Some(cursor) = walk.cursor.take() else {
            if self.life().await? == walk.life {
                self.usage.lock().end(walk.number);
            }
            return Ok(None);
        };
        let mut cmd = redis::cmd("SCAN");
        cmd.arg(cursor).arg("MATCH").arg(METAS).arg("COUNT").arg(WALK);
        let mut parts = Parts::of(self.link.ask(&cmd).await?)?;
        let next = parts.bytes()?;
        walk.cursor = (next != b"0").then_some(next);
        let mut found = parts.parts()?;
        let keys = (0..found.len()).map(|_| found.bytes()).collect::<Result<Vec<_>, _>>()?;
        Ok(Some(keys.iter().filter_map(|key| space_of_meta(key)).collect()))
    }

    /// Counts what the documents of all spaces take, so that [`Store::usage`] knows of those that this node has not
    /// heard of. It takes a call a few hundred keys of the server, so it is for the background. A space whose meta cannot
    /// be read is left out.
    ///
    /// # Errors
    /// Where Redis does not answer, or refuses.
    pub async fn count(&self) -> Result<(), StoreError> {
        let mut walk = self.begin_walk().await?;
        while let Some(spaces) = self.walk(&mut walk).await? {
            for (space, state) in spaces.iter().zip(self.each_position(&spaces).await?) {
                match state {
                    Ok(state) => self.note(space, state.usage),
                    Err(why) => {
                        tracing::warn!(%space, %why, "what its documents take cannot be counted");
                        self.usage.lock().keep(space);
                    }
                }
            }
        }
        Ok(())
    }
}

/// A walk over all spaces.
struct Walk {
    /// Which one it is of this node's.
    number: u64,
    /// Of the server on which it began.
    life: Vec<u8>,
    /// Where it goes on, unless it has come to its end.
    cursor: Option<Vec<u8>>,
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
