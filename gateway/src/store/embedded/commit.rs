//! One group of prepared items, applied to the overlay.
//!
//! An item is checked in full before its first write, so an error leaves no item half applied.

use super::disk::{Look, Table, damaged};
use super::document;
use super::erase::Stage;
use super::keys;
use super::overlay::Overlay;
use super::records::{Client, KeptResult, Record, SpaceMeta};
use super::results;
use super::rewrite::Rewrite;
use super::totals::{Taken, Totals};
use crate::store::{
    Action, CommitGroup, Committed, ConflictEntry, ConflictRecord, DocEffect, Effects, Header, KEPT_RESULTS, Kept,
    Lineage, Outcome, Prepared, Retention, Stamp, StoreError, Usage, UserTag, Version,
};
use fjall::Slice;
use tidegate_protocol::{DocPath, Mid, MutationKey, Position, Seq, SpaceId, Writer, msgpack};

/// Marks of time are this far apart at least: collection is that coarse, ms.
const MARK_EVERY_MS: u64 = 60_000;
/// Entries trimmed from a space's log, or conflict log, in a group beyond twice what it added. Where
/// retention was lowered a lot, trimming so takes several groups instead of one long stall.
const TRIM_STEPS: u64 = 256;

/// A space as the writer knows it.
#[derive(Default)]
pub(super) struct Space {
    pub(super) meta: SpaceMeta,
    pub(super) lineage: Lineage,
    /// Whether `meta` differs from what is on disk.
    pub(super) meta_changed: bool,
    /// Whether `lineage` differs from what is on disk.
    pub(super) lineage_changed: bool,
    /// Where its erasure has got to, if it is being erased.
    pub(super) stage: Stage,
    /// What the totals count for it; nothing of a space that is not on disk.
    counted: Taken,
    /// Whether it is on disk, or will be with this batch.
    stored: bool,
}

impl Space {
    pub(super) fn load(look: &impl Look, space: &SpaceId) -> Result<Self, StoreError> {
        let found = look.space(space)?;
        let stored = found.is_some();
        let (meta, lineage) = found.unwrap_or_default();
        let mut loaded = Self {
            meta,
            lineage,
            stored,
            ..Self::default()
        };
        loaded.counted = loaded.taken();
        Ok(loaded)
    }

    fn taken(&self) -> Taken {
        match self.stored {
            true => Taken::of(&self.meta),
            false => Taken::default(),
        }
    }

    /// Brings the totals up to what has been written of it.
    pub(super) fn count(&mut self, totals: &Totals) {
        let taken = self.taken();
        totals.replace(self.counted, taken);
        self.counted = taken;
    }

    /// Puts what has changed into the batch.
    pub(super) fn save(&mut self, space: &SpaceId, overlay: &mut Overlay<'_>) {
        if std::mem::take(&mut self.meta_changed) {
            overlay.put_record(Table::Spaces, keys::meta(space), &self.meta);
            self.stored = true;
        }
        if std::mem::take(&mut self.lineage_changed) {
            overlay.put_record(Table::Spaces, keys::lineage(space), &self.lineage);
        }
    }

    /// Removes the oldest commit of the log.
    pub(super) fn drop_commit(&mut self, space: &SpaceId, overlay: &mut Overlay<'_>) -> Result<(), StoreError> {
        let key = keys::log(space, self.meta.log_first);
        // A missing one is the readers' to report; here it must not stop the space's writes.
        let size = overlay.size_of(Table::Log, &key)?.unwrap_or(0);
        self.meta.log_bytes = self.meta.log_bytes.saturating_sub(size);
        self.meta.log_first = self.meta.log_first.next();
        self.meta_changed = true;
        overlay.remove_once_written(Table::Log, key);
        Ok(())
    }

    /// Removes the oldest entry of the conflict log.
    pub(super) fn drop_conflict(&mut self, space: &SpaceId, overlay: &mut Overlay<'_>) -> Result<(), StoreError> {
        let key = keys::conflict(space, self.meta.conflicts_first);
        // One may be missing: a user's were erased.
        let size = overlay.size_of(Table::Conflicts, &key)?.unwrap_or(0);
        overlay.remove_once_written(Table::Conflicts, key);
        self.meta.conflicts_bytes = self.meta.conflicts_bytes.saturating_sub(size);
        self.meta.conflicts_first += 1;
        self.meta_changed = true;
        Ok(())
    }

    fn head(&self) -> Position {
        Position::new(self.lineage.last_epoch(), self.meta.head)
    }
}

/// Applies a group; every write goes into the overlay and `space`.
pub(super) fn group(
    group: CommitGroup,
    space: &mut Space,
    overlay: &mut Overlay<'_>,
    retention: &Retention,
    incarnation: &[u8],
) -> Result<Committed, StoreError> {
    space.meta.is_open()?;
    // Before minting: items planned on the old epoch are right in the one that this call begins.
    let planned = group.planned_on == space.lineage.last_epoch();
    let changed = (space.lineage_changed, space.meta_changed);
    let mints = (space.lineage.0.last()).is_none_or(|last| last.incarnation != incarnation);
    let before = mints.then(|| space.lineage.clone());
    if mints {
        space
            .lineage
            .mint(group.fresh, incarnation.to_vec(), space.meta.head, space.meta.floor);
        (space.lineage_changed, space.meta_changed) = (true, true);
    }
    let mut apply = Apply {
        name: &group.space,
        space,
        overlay,
        retention,
        now_ms: group.now_ms,
        planned,
        applied: Vec::with_capacity(group.items.len()),
    };
    let (head, conflicts) = (apply.space.meta.head, apply.space.meta.conflicts_next);
    let mut outcomes = Vec::with_capacity(group.items.len());
    for item in group.items {
        let outcome = apply.item(item)?;
        apply.applied.push(match &outcome {
            Outcome::Applied { position, .. } => Some(position.seq),
            _ => None,
        });
        outcomes.push(outcome);
    }
    if outcomes.iter().any(Outcome::is_kept) {
        apply.trim_log(apply.space.meta.head.get() - head.get())?;
        apply.trim_conflicts(apply.space.meta.conflicts_next - conflicts)?;
    } else if let Some(before) = before {
        space.lineage = before;
        (space.lineage_changed, space.meta_changed) = changed;
    }
    Ok(Committed {
        outcomes,
        lineage: space.lineage.clone(),
    })
}

struct Apply<'a, 'd> {
    name: &'a SpaceId,
    space: &'a mut Space,
    overlay: &'a mut Overlay<'d>,
    retention: &'a Retention,
    now_ms: u64,
    /// Whether the group was planned on the lineage that it found.
    planned: bool,
    /// The seq of each item so far that was applied.
    applied: Vec<Option<Seq>>,
}

impl Apply<'_, '_> {
    fn item(&mut self, item: Prepared) -> Result<Outcome, StoreError> {
        let client_key = keys::client(self.name, item.writer);
        let stored: Option<Client> = self.overlay.record(Table::Clients, &client_key)?;
        let client = stored
            .clone()
            .filter(|client| !client.expired(self.retention.clients_ms, self.now_ms));
        // Who a writer is stays known after its record has gone.
        let enrol = client.as_ref().is_none_or(|client| client.user.is_none());
        let replaces = stored.filter(|_| client.is_none());
        let runs = client.as_ref().and_then(|client| client.runs).unwrap_or(item.mid);
        let when = client.as_ref().map_or(0, |client| client.when);
        if let Some(answer) = self.check_mid(&item, client.as_ref())? {
            if let (Outcome::Duplicate(_), Some(mut client)) = (&answer, client) {
                // A client that only repeats itself is alive: its record's time starts anew.
                client.when = client.when.max(self.now_ms);
                self.overlay.put_record(Table::Clients, client_key, &client);
            }
            return Ok(answer);
        }
        let stale = Outcome::Stale {
            last_ms: self.space.meta.last_ms,
        };
        if !self.planned || !self.expectations_hold(&item.expects)? {
            return Ok(stale);
        }
        let named = Named {
            writer: item.writer,
            mid: item.mid,
            key: item.key,
            user: item.user,
            enrol,
            runs,
            when,
        };
        let run = self.run(&item, replaces.as_ref())?;
        match item.action {
            Action::Apply(effects) => {
                let at = self.now_ms.max(self.space.meta.last_ms);
                if effects.now_ms.is_some_and(|now| now != at) {
                    return Ok(stale);
                }
                let stamp = Stamp {
                    seq: self.space.meta.head.next(),
                    writer: item.writer,
                };
                let docs = effects
                    .docs
                    .iter()
                    .map(|effect| Rewrite::plan(self.overlay, self.name, stamp, effect))
                    .collect::<Result<Vec<_>, _>>()?;
                self.forget_replaced(item.writer, replaces.as_ref());
                Ok(self.apply(named, run.as_deref(), stamp, effects, docs))
            }
            Action::Refuse {
                code,
                conflicts,
                detail,
            } => {
                self.forget_replaced(item.writer, replaces.as_ref());
                let position = self.space.head();
                self.keep(
                    named,
                    run.as_deref(),
                    Kept {
                        refused: Some(code),
                        position,
                        detail,
                    },
                );
                self.note_conflicts(named, position, self.now_ms.max(self.space.meta.last_ms), conflicts);
                Ok(Outcome::Refused { position })
            }
        }
    }

    /// The answer that mid and key alone give, if any (`docs/PROTOCOL.md`, "Mids"). Messages have a `first` at
    /// mid 1; where an item has none, nothing says that the client is old.
    fn check_mid(&self, item: &Prepared, client: Option<&Client>) -> Result<Option<Outcome>, StoreError> {
        if client.is_some_and(Client::is_erased) {
            return Ok(Some(Outcome::ClientUnknown));
        }
        let Some(client) = client else {
            let new = item.mid == Mid::ZERO.next()
                && !item.first.is_some_and(|first| {
                    self.retention
                        .first_is_too_old(first, self.now_ms, self.space.meta.forgotten_ms)
                });
            return Ok((!new).then_some(Outcome::ClientUnknown));
        };
        if item.mid <= client.last {
            return Ok(Some(match self.kept(client, item.writer, item.mid)? {
                Some(result) if result.key == item.key => Outcome::Duplicate(result.kept),
                Some(_) => Outcome::ClientCloned,
                None => Outcome::ClientUnknown,
            }));
        }
        let expected = client.last.next();
        if item.mid > expected {
            return Ok(Some(Outcome::OutOfOrder { expected }));
        }
        Ok((item.prev != Some(client.key)).then_some(Outcome::ClientCloned))
    }

    /// The kept result of a mutation.
    fn kept(&self, client: &Client, writer: Writer, mid: Mid) -> Result<Option<KeptResult>, StoreError> {
        results::look(&*self.overlay, self.name, (writer, client), mid)
    }

    /// The run that the result of an item comes to, as it is; none where the results of a replaced record go.
    fn run(&self, item: &Prepared, replaced: Option<&Client>) -> Result<Option<Slice>, StoreError> {
        if replaced.is_some() {
            return Ok(None);
        }
        let key = keys::result(self.name, item.writer, item.mid);
        let run = self.overlay.get(Table::Results, &key)?;
        // So that keeping it cannot fail.
        match run.as_deref().is_none_or(results::is_run) {
            true => Ok(run),
            false => Err(damaged(Table::Results, &key)),
        }
    }

    fn header(&self, doc: &DocPath) -> Result<Option<Header>, StoreError> {
        let key = keys::doc(self.name, doc);
        let stored = self.overlay.get(Table::Cells, &key)?;
        let header = |bytes: Slice| document::header(&bytes).ok_or_else(|| damaged(Table::Cells, &key));
        stored.map(header).transpose()
    }

    fn expectations_hold(&self, expects: &[(DocPath, Version)]) -> Result<bool, StoreError> {
        for (doc, version) in expects {
            let expected = match *version {
                Version::Absent => None,
                Version::Seq(seq) => Some(seq),
                Version::Item(at) => match self.applied.get(at) {
                    Some(Some(seq)) => Some(*seq),
                    // Not applied as planned, so what was planned on it falls with it.
                    _ => return Ok(false),
                },
            };
            if self.header(doc)?.map(|header| header.last.seq) != expected {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Takes the next seq and writes. Nothing here can fail.
    fn apply(
        &mut self,
        named: Named,
        run: Option<&[u8]>,
        stamp: Stamp,
        effects: Effects,
        docs: Vec<Rewrite>,
    ) -> Outcome {
        let meta = &mut self.space.meta;
        let seq = stamp.seq;
        let at = self.now_ms.max(meta.last_ms);
        (meta.head, meta.last_ms) = (seq, at);
        if meta.mark_ms.is_none_or(|last| at - last.min(at) >= MARK_EVERY_MS) {
            meta.mark_ms = Some(at);
            self.overlay.put_record(Table::Spaces, keys::mark(self.name, at), &seq);
        }
        let payload = msgpack::payload(seq, at, &effects.body);
        meta.log_bytes += payload.len() as u64;
        self.space.meta_changed = true;
        self.overlay
            .put(Table::Log, keys::log(self.name, seq), payload.as_ref());

        for (effect, doc) in effects.docs.iter().zip(docs) {
            self.write_doc(seq, effect, doc);
        }
        let position = self.space.head();
        self.keep(
            named,
            run,
            Kept {
                refused: None,
                position,
                detail: effects.detail,
            },
        );
        self.note_conflicts(named, position, at, effects.conflicts);
        Outcome::Applied { position, at, payload }
    }

    fn write_doc(&mut self, seq: Seq, effect: &DocEffect, rewrite: Rewrite) {
        let doc = &effect.doc;
        let usage = &mut self.space.meta.usage;
        usage.replace(Usage::of(rewrite.old.as_ref()), Usage::of(Some(&rewrite.header)));
        if let Some(old) = rewrite.old {
            self.overlay
                .remove_once_written(Table::Idx, keys::idx(self.name, old.last.seq, doc));
        }
        self.overlay.put(Table::Idx, keys::idx(self.name, seq, doc), []);
        if !effect.alive {
            self.overlay.put(Table::Dead, keys::dead(self.name, seq, doc, None), []);
        }
        for (field, _) in effect.cells.iter().filter(|(_, value)| value.is_none()) {
            self.overlay
                .put(Table::Dead, keys::dead(self.name, seq, doc, Some(field)), []);
        }
        rewrite.put(self.overlay);
    }

    /// Of the expired record that one takes the place of nothing may be left: what it answered would pass for the other's.
    fn forget_replaced(&mut self, writer: Writer, replaced: Option<&Client>) {
        let Some(client) = replaced else { return };
        for old in results::in_slots(client.last) {
            self.overlay
                .remove(Table::Results, client.result_key(self.name, writer, old));
        }
    }

    /// Consumes the mid.
    fn keep(&mut self, named: Named, run: Option<&[u8]>, kept: Kept) {
        let Named {
            writer,
            mid,
            key,
            user,
            enrol,
            runs,
            when,
        } = named;
        if enrol {
            self.overlay.put(Table::Users, keys::user(self.name, user, writer), []);
        }
        let client = Client {
            last: mid,
            key,
            when: self.now_ms.max(when),
            user: Some(user),
            runs: Some(runs),
        };
        self.overlay
            .put_record(Table::Clients, keys::client(self.name, writer), &client);
        self.overlay.put(
            Table::Results,
            keys::result(self.name, writer, mid),
            results::with(run, mid, &KeptResult { key, kept }),
        );
        // A new run takes the place of the oldest; what format 2 kept goes one by one.
        if let Some(old) = mid
            .get()
            .checked_sub(KEPT_RESULTS)
            .and_then(Mid::new)
            .filter(|old| *old > Mid::ZERO && *old < runs)
        {
            self.overlay
                .remove(Table::Results, keys::result_2(self.name, writer, old));
        }
    }

    fn note_conflicts(&mut self, named: Named, position: Position, at: u64, conflicts: Vec<ConflictEntry>) {
        for mut entry in conflicts {
            entry.resolve(|index| self.applied.get(index).copied().flatten());
            let record = ConflictRecord {
                position,
                at,
                writer: named.writer,
                mid: named.mid,
                entry,
            };
            let n = self.space.meta.conflicts_next;
            let record = record.encode();
            self.space.meta.conflicts_bytes += record.len() as u64;
            self.overlay.put(Table::Conflicts, keys::conflict(self.name, n), record);
            self.space.meta.conflicts_next = n + 1;
            self.space.meta_changed = true;
        }
    }

    /// Drops the oldest commits of the log until it is within its bounds.
    fn trim_log(&mut self, added: u64) -> Result<(), StoreError> {
        for _ in 0..TRIM_STEPS + 2 * added {
            let meta = &self.space.meta;
            let kept = meta.head.next().get() - meta.log_first.get();
            if kept == 0 || (kept <= self.retention.log_commits && meta.log_bytes <= self.retention.log_bytes) {
                break;
            }
            self.space.drop_commit(self.name, self.overlay)?;
        }
        Ok(())
    }

    /// Drops the oldest entries of the conflict log until it is within its bounds.
    fn trim_conflicts(&mut self, added: u64) -> Result<(), StoreError> {
        for _ in 0..TRIM_STEPS + 2 * added {
            let meta = &self.space.meta;
            let kept = meta.conflicts_next - meta.conflicts_first;
            if kept == 0 || (kept <= self.retention.conflicts && meta.conflicts_bytes <= self.retention.conflicts_bytes)
            {
                break;
            }
            self.space.drop_conflict(self.name, self.overlay)?;
        }
        Ok(())
    }
}

/// What names a mutation.
#[derive(Clone, Copy)]
struct Named {
    writer: Writer,
    mid: Mid,
    key: MutationKey,
    user: UserTag,
    /// Whether it is still to be noted that this is the user's writer.
    enrol: bool,
    /// From which of the writer's mutations on results are in runs.
    runs: Mid,
    /// When the writer wrote before, as far as is known.
    when: u64,
}
