//! Erasure: everything of a space, or of a user in it, in small steps while the space is closed.
//!
//! The first step says in the space's meta what is being erased, and empties the lineage; the last one says that it is
//! done. Between them any node may do the steps, also several at once: each deletes what is left. Nothing is written
//! to a closed space, so what a step has read holds until it is done.

use super::collect::WALK;
use super::import::UNDER_WAY;
use super::link::{Call, LinkError};
use super::reply::{Parts, unexpected};
use super::{Keys, RedisStore, document, scripts};
use crate::store::embedded::records::Record;
use crate::store::{
    Begun, Cell, ConflictRecord, Erase, Erased, KEPT_RESULTS, Lineage, NOBODY, Store, StoreError, UserTag,
};
use redis::Value;
use std::collections::BTreeSet;
use std::time::{Duration, Instant};
use tidegate_protocol::{Epoch, FieldPath, SpaceId, Writer};

/// Documents, or entries of the conflict log, looked at in a step.
const STEP: usize = 128;
/// Clients whose records become markers in a step.
const CLIENTS: usize = 16;

/// An erasure under way.
struct Erasing {
    keys: Keys,
    space: SpaceId,
    /// The epoch that it began, which names it.
    epoch: Epoch,
    at_ms: u64,
    whom: Erase,
    /// The life of the server on which all its steps are done.
    life: Vec<u8>,
}

/// Why somebody leaves an erasure before its last step.
enum Left {
    /// Somebody else has brought it to its end.
    Over,
    /// Another server has taken over, or this one has started anew: what was done before may be undone.
    Elsewhere,
    /// A step could not be done.
    Failed(StoreError),
}

impl From<StoreError> for Left {
    fn from(error: StoreError) -> Self {
        Self::Failed(error)
    }
}

impl From<LinkError> for Left {
    fn from(error: LinkError) -> Self {
        Self::Failed(error.into())
    }
}

impl RedisStore {
    /// Erases, after what is under way there.
    pub(super) async fn erase_all(
        &self,
        space: &SpaceId,
        whom: Erase,
        mut fresh: Epoch,
        now_ms: u64,
        begun: Begun<'_>,
    ) -> Result<Erased, StoreError> {
        let mut found = false;
        loop {
            let keys = Keys::of(space);
            let mut call = Call::on([keys.meta(), keys.idx(), keys.log()].into_iter().chain(keys.others()));
            match whom {
                Erase::Space => call.arg(""),
                Erase::User(user) => call.arg(user.0.to_be_bytes()),
            };
            call.arg(fresh.0.to_be_bytes()).number(now_ms).arg(UNDER_WAY);
            call.arg(if found { "found" } else { "" });
            call.arg("PUBLISH").arg(self.channel(space));
            let mut parts = Parts::of(self.link.run(&scripts::ERASE_BEGIN, &call).await?)?;
            if parts.len() == 0 {
                // Nothing is there but what no other key tells of.
                let mut cursor = b"0".to_vec();
                loop {
                    found |= !self.walk_documents(&keys, &mut cursor).await?.1.is_empty();
                    if found || cursor == b"0" {
                        break;
                    }
                }
                match found {
                    true => continue,
                    false => return Ok(Erased::default()),
                }
            }
            let record = parts.bytes()?;
            let lineage: Lineage = parts.record()?;
            let erasing = Erasing::of(space, &record, parts.bytes()?).ok_or_else(|| unexpected("an erasure"))?;
            let is_it = erasing.whom == whom;
            if is_it {
                begun(&lineage);
            }
            match self.finish(erasing).await? {
                Some(erased) if is_it => return Ok(erased),
                Some(_) => {}
                // Lost in a failover, unless another followed it. A name that somebody may have been told is not used again.
                None => fresh = Epoch(fresh.0.wrapping_add(1).max(1)),
            }
        }
    }

    /// Goes on with erasures whose node may have ended: those of spaces that have been found closed for a while.
    ///
    /// # Errors
    /// Where Redis does not answer, or refuses.
    pub async fn resume_erasures(&self, after: Duration) -> Result<(), StoreError> {
        let is_due = |since: &Instant| since.elapsed() >= after;
        let due: Vec<_> = {
            let mut closed = self.closed.lock();
            let due = closed.iter().filter(|(_, since)| is_due(since));
            let due: Vec<_> = due.map(|(space, _)| space.clone()).collect();
            closed.retain(|_, since| !is_due(since));
            due
        };
        for space in due {
            self.resume_erasure(&space).await?;
        }
        Ok(())
    }

    /// Brings the erasure of a space to its end, if one is under way.
    pub(super) async fn resume_erasure(&self, space: &SpaceId) -> Result<(), StoreError> {
        let meta = Keys::of(space).meta();
        let mut call = Call::on([meta.clone(), meta]);
        call.arg("HGET").arg("erasing");
        if let (life, Value::BulkString(record)) = self.ask_primary(&call).await? {
            let Some(erasing) = Erasing::of(space, &record, life) else {
                // It is being carried over.
                return Ok(());
            };
            tracing::info!(%space, "going on with an erasure");
            self.finish(erasing).await?;
        }
        Ok(())
    }

    /// Does what is left of an erasure, all of it on one server: what another has not heard of is done again there. Says
    /// what was erased in all, by whomever, or nothing where it is not known to have come to its end.
    async fn finish(&self, mut erasing: Erasing) -> Result<Option<Erased>, StoreError> {
        let erased = loop {
            match self.finish_here(&erasing).await {
                Ok(erased) => break erased,
                Err(Left::Over) => break None,
                Err(Left::Failed(error)) => return Err(error),
                Err(Left::Elsewhere) => {
                    erasing.life = self.life().await?;
                }
            }
        };
        if let Some(state) = self.positions(std::slice::from_ref(&erasing.space)).await?.pop() {
            self.note(&erasing.space, state.usage);
        }
        Ok(erased)
    }

    async fn finish_here(&self, erasing: &Erasing) -> Result<Option<Erased>, Left> {
        match self.take_steps(erasing).await {
            // Its last step also tells what others have done.
            Ok(()) | Err(Left::Over) => {}
            other => other?,
        }
        let mut call = Call::on([erasing.keys.meta()]);
        call.arg(erasing.epoch.0.to_be_bytes()).arg(&erasing.life);
        call.arg("PUBLISH").arg(self.channel(&erasing.space));
        let mut parts = Parts::of(self.link.run(&scripts::ERASE_END, &call).await?)?;
        match parts.len() {
            0 => Ok(None),
            1 => Err(Left::Elsewhere),
            _ => Ok(Some(Erased {
                docs: parts.number()?,
                cells: parts.number()?,
                commits: parts.number()?,
                conflicts: parts.number()?,
                clients: parts.number()?,
            })),
        }
    }

    async fn take_steps(&self, erasing: &Erasing) -> Result<(), Left> {
        let mut step = Step::of(erasing);
        step.op("log");
        step.key(erasing.keys.marks());
        if !self.step(step).await? {
            self.index_documents(erasing).await?;
        }
        match erasing.whom {
            Erase::Space => self.erase_space(erasing).await,
            Erase::User(user) => self.erase_user(erasing, user).await,
        }
    }

    /// Puts documents that the index lacks into it. They are looked for among all keys of the server, which takes as long
    /// as there are keys.
    async fn index_documents(&self, erasing: &Erasing) -> Result<(), Left> {
        tracing::warn!(space = %erasing.space, "its index is not whole: its documents are looked for among all keys");
        let mut cursor = b"0".to_vec();
        loop {
            let (life, docs) = self.walk_documents(&erasing.keys, &mut cursor).await?;
            if life != erasing.life {
                return Err(Left::Elsewhere);
            }
            for some in docs.chunks(STEP) {
                let mut step = Step::of(erasing);
                for doc in some {
                    step.op("index").on(erasing.keys.doc(doc)).call.arg(doc);
                }
                self.step(step).await?;
            }
            if cursor == b"0" {
                break;
            }
        }
        let mut step = Step::of(erasing);
        step.op("counted");
        self.step(step).await?;
        Ok(())
    }

    /// The next documents of a space among all keys, in no order, and the life of the server; the cursor is `0` at the
    /// end.
    async fn walk_documents(&self, keys: &Keys, cursor: &mut Vec<u8>) -> Result<(Vec<u8>, Vec<String>), StoreError> {
        let mut call = Call::on([keys.meta()]);
        call.arg("SCAN").arg(&*cursor).arg("MATCH").arg(keys.docs_pattern());
        call.arg("COUNT").number(WALK as u64);
        let (life, answer) = self.ask_primary(&call).await?;
        let mut parts = Parts::of(answer)?;
        *cursor = parts.bytes()?;
        let (prefix, mut found) = (keys.doc(""), parts.parts()?);
        let mut docs = vec![];
        while found.len() > 0 {
            let key = found.bytes()?;
            let doc = key
                .strip_prefix(&prefix[..])
                .and_then(|doc| std::str::from_utf8(doc).ok());
            docs.extend(doc.map(str::to_owned));
        }
        Ok((life, docs))
    }

    async fn erase_space(&self, erasing: &Erasing) -> Result<(), Left> {
        let keys = &erasing.keys;
        let mut step = Step::of(erasing);
        step.op("conflicts");
        for key in [keys.results(), keys.users(), keys.dead()] {
            step.key(key);
        }
        self.step(step).await?;
        loop {
            let mut call = keys.look(keys.idx());
            call.arg("ZRANGE").number(0).number(STEP as u64 - 1);
            let docs = self.texts(erasing, &call).await?;
            if docs.is_empty() {
                break;
            }
            let mut step = Step::of(erasing);
            for doc in &docs {
                step.op("doc").on(keys.doc(doc)).call.arg(doc);
            }
            self.step(step).await?;
        }
        let mut cursor = b"0".to_vec();
        loop {
            let mut call = keys.look(keys.clients());
            call.arg("HSCAN").arg(&cursor).arg("COUNT").number(STEP as u64);
            let mut parts = self.look_at(erasing, &call).await?;
            cursor = parts.bytes()?;
            let mut found = parts.parts()?;
            let mut writers = vec![];
            while found.len() > 0 {
                writers.push(found.bytes()?);
                found.bytes()?;
            }
            self.mark(erasing, &writers).await?;
            if cursor == b"0" {
                return Ok(());
            }
        }
    }

    async fn erase_user(&self, erasing: &Erasing, user: UserTag) -> Result<(), Left> {
        let keys = &erasing.keys;
        let mut call = keys.look(keys.users());
        let (from, to) = (user.0.to_be_bytes(), user.0.checked_add(1).map(u64::to_be_bytes));
        call.arg("ZRANGE").arg([b"[", &from[..]].concat());
        call.arg(to.map_or_else(|| b"+".to_vec(), |to| [b"(", &to[..]].concat()))
            .arg("BYLEX");
        let mut parts = self.look_at(erasing, &call).await?;
        let mut members = vec![];
        let mut whose = BTreeSet::new();
        while parts.len() > 0 {
            let member = parts.bytes()?;
            let (_, writer) = member
                .split_last_chunk::<8>()
                .ok_or_else(|| unexpected("a user's writer"))?;
            whose.insert(Writer(u64::from_be_bytes(*writer)));
            members.push(member);
        }
        self.erase_conflicts(erasing, &whose).await?;
        self.erase_cells(erasing, &whose).await?;
        let writers: Vec<_> = whose.iter().map(|writer| writer.0.to_be_bytes().to_vec()).collect();
        self.mark(erasing, &writers).await?;
        for some in members.chunks(STEP) {
            let mut step = Step::of(erasing);
            for member in some {
                step.op("user").call.arg(member);
            }
            self.step(step).await?;
        }
        Ok(())
    }

    /// Conflicts in which a value of theirs occurs go.
    async fn erase_conflicts(&self, erasing: &Erasing, whose: &BTreeSet<Writer>) -> Result<(), Left> {
        let mut from = "-".to_owned();
        loop {
            let mut call = erasing.keys.look(erasing.keys.conflicts());
            call.arg("XRANGE").arg(&from).arg("+").arg("COUNT").number(STEP as u64);
            let mut parts = self.look_at(erasing, &call).await?;
            if parts.len() == 0 {
                return Ok(());
            }
            let mut step = Step::of(erasing);
            while parts.len() > 0 {
                let mut entry = parts.parts()?;
                let id = String::from_utf8(entry.bytes()?).map_err(|_| unexpected("an id"))?;
                let mut fields = entry.parts()?;
                fields.bytes()?;
                let record = ConflictRecord::decode(&fields.bytes()?);
                // One that cannot be read may be theirs.
                if record.is_none_or(|record| record.names(|writer| whose.contains(writer))) {
                    step.op("conflict").call.arg(&id);
                }
                from = format!("({id}");
            }
            self.step(step).await?;
        }
    }

    /// Cells that they wrote go, and documents of which nobody else wrote anything.
    async fn erase_cells(&self, erasing: &Erasing, whose: &BTreeSet<Writer>) -> Result<(), Left> {
        let mut at = 0;
        loop {
            let mut call = erasing.keys.look(erasing.keys.idx());
            call.arg("ZRANGE").number(at).number(at + STEP as u64 - 1);
            let docs = self.texts(erasing, &call).await?;
            if docs.is_empty() {
                return Ok(());
            }
            let mut step = Step::of(erasing);
            for doc in &docs {
                at += 1;
                if self.put_erased(&mut step, doc, whose).await? {
                    // What is behind it moves up.
                    at -= 1;
                }
            }
            self.step(step).await?;
        }
    }

    /// Adds to a step what is left of a document. Says whether it goes.
    async fn put_erased(&self, step: &mut Step<'_>, doc: &str, whose: &BTreeSet<Writer>) -> Result<bool, Left> {
        let key = step.erasing.keys.doc(doc);
        let mut call = step.erasing.keys.look(key.clone());
        call.arg("HGETALL");
        let state = document(self.look_at(step.erasing, &call).await?)?;
        let theirs = |writer: &Writer| whose.contains(writer);
        let (gone, kept): (Vec<_>, Vec<_>) = (state.cells.iter()).partition(|(_, cell)| theirs(&cell.stamp.writer));
        let Some(old) = state.header else {
            let is_last = kept.is_empty() && !gone.is_empty();
            if !gone.is_empty() {
                step.put_cells(key, doc, [vec![], vec![]], &gone);
            }
            return Ok(is_last);
        };
        let mut new = old;
        let mut others = kept.len();
        for stamp in [Some(&mut new.last), Some(&mut new.born), new.deleted.as_mut()]
            .into_iter()
            .flatten()
        {
            if theirs(&stamp.writer) {
                stamp.writer = NOBODY;
            }
            others += usize::from(stamp.writer != NOBODY);
        }
        let live = kept
            .iter()
            .filter_map(|(path, cell)| Some((path, cell.value.as_ref()?)));
        new.size = live
            .map(|(path, value)| (path.as_str().len() + value.as_bytes().len()) as u64)
            .sum();
        if gone.is_empty() && new == old && others > 0 {
            return Ok(false);
        }
        let left = if others > 0 { new.encode() } else { vec![] };
        step.put_cells(key, doc, [old.encode(), left], &gone);
        Ok(others == 0)
    }

    /// Puts markers in the places of clients' records.
    async fn mark(&self, erasing: &Erasing, writers: &[Vec<u8>]) -> Result<(), Left> {
        for some in writers.chunks(CLIENTS) {
            let mut step = Step::of(erasing);
            for writer in some {
                step.op("marker").call.arg(writer).number(erasing.at_ms);
            }
            self.step(step).await?;
        }
        Ok(())
    }

    /// Does a step. Says whether index and meta agree on how many documents there are.
    async fn step(&self, step: Step<'_>) -> Result<bool, Left> {
        match self.link.run(&scripts::ERASE, &step.call).await? {
            Value::Int(1) => Ok(true),
            Value::Int(3) => Ok(false),
            Value::Int(0) => Err(Left::Over),
            Value::Int(2) => Err(Left::Elsewhere),
            _ => Err(unexpected("a step's answer").into()),
        }
    }

    /// What a command that reads says, on the server on which the steps are done.
    async fn look_at(&self, erasing: &Erasing, call: &Call) -> Result<Parts, Left> {
        match self.ask_primary(call).await? {
            (life, _) if life != erasing.life => Err(Left::Elsewhere),
            (_, answer) => Ok(Parts::of(answer)?),
        }
    }

    async fn texts(&self, erasing: &Erasing, call: &Call) -> Result<Vec<String>, Left> {
        let mut parts = self.look_at(erasing, call).await?;
        (0..parts.len())
            .map(|_| String::from_utf8(parts.bytes()?).map_err(|_| unexpected("a path").into()))
            .collect()
    }
}

impl Erasing {
    fn of(space: &SpaceId, record: &[u8], life: Vec<u8>) -> Option<Self> {
        let (epoch, rest) = record.split_first_chunk::<8>()?;
        let (at_ms, user) = rest.split_first_chunk::<8>()?;
        let whom = match user.is_empty() {
            true => Erase::Space,
            false => Erase::User(UserTag(u64::from_be_bytes(user.try_into().ok()?))),
        };
        Some(Self {
            keys: Keys::of(space),
            space: space.clone(),
            epoch: Epoch(u64::from_be_bytes(*epoch)),
            at_ms: u64::from_be_bytes(*at_ms),
            whom,
            life,
        })
    }
}

/// What a step is to do.
struct Step<'e> {
    erasing: &'e Erasing,
    call: Call,
    named: u64,
}

impl<'e> Step<'e> {
    fn of(erasing: &'e Erasing) -> Self {
        let keys = &erasing.keys;
        let mut call = Call::on([
            keys.meta(),
            keys.idx(),
            keys.clients(),
            keys.results(),
            keys.conflicts(),
            keys.log(),
            keys.users(),
        ]);
        call.arg(erasing.epoch.0.to_be_bytes())
            .number(KEPT_RESULTS)
            .arg(&erasing.life);
        Self {
            erasing,
            call,
            named: 0,
        }
    }

    fn op(&mut self, name: &str) -> &mut Self {
        self.call.arg(name);
        self
    }

    /// Declares a key, and names its place.
    fn on(&mut self, key: Vec<u8>) -> &mut Self {
        self.call.key(key);
        self.named += 1;
        self.call.number(self.named);
        self
    }

    /// Takes cells from a document, whose header becomes another.
    fn put_cells(&mut self, key: Vec<u8>, doc: &str, [old, new]: [Vec<u8>; 2], gone: &[(&FieldPath, &Cell)]) {
        let call = &mut self.op("cells").on(key).call;
        call.arg(doc).arg(old).arg(new).number(gone.len() as u64);
        for (field, _) in gone {
            call.arg(field.as_str());
        }
    }

    fn key(&mut self, key: Vec<u8>) {
        self.op("key").on(key);
    }
}
