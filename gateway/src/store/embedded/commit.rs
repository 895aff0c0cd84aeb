//! One group of prepared items, applied to the overlay.
//!
//! An item is checked in full before its first write, so an error leaves no item half applied.

use super::disk::{Look, Table};
use super::erase::Stage;
use super::keys;
use super::overlay::Overlay;
use super::records::{Client, KeptResult, Record, SpaceMeta};
use super::totals::{Taken, Totals};
use crate::store::{
    Action, Cell, CommitGroup, Committed, ConflictEntry, ConflictRecord, DocEffect, Effects, Header, KEPT_RESULTS,
    Kept, Lineage, Outcome, Prepared, Retention, Stamp, StoreError, Usage, UserTag, Version,
};
use tidegate_protocol::{DocPath, FieldPath, Mid, MutationKey, Position, Seq, SpaceId, Writer, msgpack};

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
    if space
        .lineage
        .0
        .last()
        .is_none_or(|last| last.incarnation != incarnation)
    {
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
    apply.trim_log(apply.space.meta.head.get() - head.get())?;
    apply.trim_conflicts(apply.space.meta.conflicts_next - conflicts)?;
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
        let replaces = stored.filter(|_| client.is_none()).map(|client| client.last);
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
            replaces,
        };
        match item.action {
            Action::Apply(effects) => {
                let at = self.now_ms.max(self.space.meta.last_ms);
                if effects.now_ms.is_some_and(|now| now != at) {
                    return Ok(stale);
                }
                let before = effects
                    .docs
                    .iter()
                    .map(|effect| self.before(effect))
                    .collect::<Result<Vec<_>, _>>()?;
                Ok(self.apply(named, effects, before))
            }
            Action::Refuse {
                code,
                conflicts,
                detail,
            } => {
                let position = self.space.head();
                self.keep(
                    named,
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
            let kept: Option<KeptResult> = self
                .overlay
                .record(Table::Results, &keys::result(self.name, item.writer, item.mid))?;
            return Ok(Some(match kept {
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

    fn header(&self, doc: &DocPath) -> Result<Option<Header>, StoreError> {
        self.overlay.record(Table::Cells, &keys::doc(self.name, doc))
    }

    fn before(&self, effect: &DocEffect) -> Result<Before, StoreError> {
        let header = self.header(&effect.doc)?;
        let new = |(field, _): &(FieldPath, _)| match header {
            None => Ok(true),
            Some(_) => Ok(!self
                .overlay
                .has(Table::Fields, &keys::cell(self.name, &effect.doc, field))?),
        };
        Ok(Before {
            new: effect.cells.iter().map(new).collect::<Result<_, StoreError>>()?,
            header,
        })
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
    fn apply(&mut self, named: Named, effects: Effects, before: Vec<Before>) -> Outcome {
        let meta = &mut self.space.meta;
        let seq = meta.head.next();
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

        let stamp = Stamp {
            seq,
            writer: named.writer,
        };
        for (effect, before) in effects.docs.into_iter().zip(before) {
            self.write_doc(stamp, effect, before);
        }
        let position = self.space.head();
        self.keep(
            named,
            Kept {
                refused: None,
                position,
                detail: effects.detail,
            },
        );
        self.note_conflicts(named, position, at, effects.conflicts);
        Outcome::Applied { position, at, payload }
    }

    fn write_doc(&mut self, stamp: Stamp, effect: DocEffect, before: Before) {
        let (doc, old) = (&effect.doc, before.header);
        let header = Header {
            last: stamp,
            born: old.filter(|_| !effect.born).map_or(stamp, |old| old.born),
            deleted: if effect.deleted {
                Some(stamp)
            } else {
                old.and_then(|old| old.deleted)
            },
            alive: effect.alive,
            size: effect.size,
        };
        let usage = &mut self.space.meta.usage;
        usage.replace(Usage::of(old.as_ref()), Usage::of(Some(&header)));
        self.overlay
            .put_record(Table::Cells, keys::doc(self.name, doc), &header);
        if let Some(old) = old {
            self.overlay
                .remove_once_written(Table::Idx, keys::idx(self.name, old.last.seq, doc));
        }
        self.overlay.put(Table::Idx, keys::idx(self.name, stamp.seq, doc), []);
        if !effect.alive {
            self.overlay
                .put(Table::Dead, keys::dead(self.name, stamp.seq, doc, None), []);
        }
        for ((field, value), new) in effect.cells.into_iter().zip(before.new) {
            if value.is_none() {
                self.overlay
                    .put(Table::Dead, keys::dead(self.name, stamp.seq, doc, Some(&field)), []);
            }
            let key = keys::cell(self.name, doc, &field);
            if new {
                self.overlay.put(Table::Fields, key.clone(), []);
            }
            self.overlay.put_record(Table::Cells, key, &Cell { stamp, value });
        }
    }

    /// Consumes the mid.
    fn keep(&mut self, named: Named, kept: Kept) {
        let Named {
            writer,
            mid,
            key,
            user,
            enrol,
            replaces,
        } = named;
        if enrol {
            self.overlay.put(Table::Users, keys::user(self.name, user, writer), []);
        }
        // Of the record before nothing may be left: what it answered would pass for this one's.
        for old in replaces.into_iter().flat_map(kept_up_to) {
            self.overlay
                .remove(Table::Results, keys::result(self.name, writer, old));
        }
        let client = Client {
            last: mid,
            key,
            when: self.now_ms,
            user: Some(user),
        };
        self.overlay
            .put_record(Table::Clients, keys::client(self.name, writer), &client);
        self.overlay.put_record(
            Table::Results,
            keys::result(self.name, writer, mid),
            &KeptResult { key, kept },
        );
        if let Some(old) = mid
            .get()
            .checked_sub(KEPT_RESULTS)
            .and_then(Mid::new)
            .filter(|old| *old > Mid::ZERO)
        {
            self.overlay
                .remove(Table::Results, keys::result(self.name, writer, old));
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

/// The mids whose results a client has whose last one this is.
fn kept_up_to(last: Mid) -> impl Iterator<Item = Mid> {
    let last = last.get();
    (last.saturating_sub(KEPT_RESULTS) + 1..=last).filter_map(Mid::new)
}

/// What a document was before it is written.
struct Before {
    header: Option<Header>,
    /// Of each cell to be written, whether the document has had none of that name.
    new: Vec<bool>,
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
    /// The last mid of an expired record that this one takes the place of.
    replaces: Option<Mid>,
}
