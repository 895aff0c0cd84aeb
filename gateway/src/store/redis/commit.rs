//! A group, as the script takes it, and its outcomes.

use super::Keys;
use super::link::Call;
use super::reply::{Parts, unexpected};
use crate::store::embedded::records::{KeptResult, Record};
use crate::store::lineage::MAX_ENTRIES;
use crate::store::{
    Action, CommitGroup, Committed, ConflictEntry, ConflictRecord, DocEffect, KEPT_RESULTS, Lineage, Outcome,
    Retention, StoreError, Usage, Version, planned_index,
};
use bytes::Bytes;
use redis::Value;
use std::collections::HashMap;
use tidegate_protocol::{DocPath, Mid, Position, Seq, msgpack};

/// Marks of time are this far apart at least: collection is that coarse, ms.
const MARK_EVERY_MS: u64 = 60_000;
/// Entries trimmed from a space's log, or conflict log, in a group beyond twice what it added.
const TRIM_STEPS: u64 = 64;

/// The documents that a group names, each once.
struct Docs<'g> {
    list: Vec<&'g DocPath>,
    at: HashMap<&'g DocPath, usize>,
}

impl<'g> Docs<'g> {
    fn of(group: &'g CommitGroup) -> Self {
        let mut docs = Self {
            list: vec![],
            at: HashMap::new(),
        };
        for item in &group.items {
            let effects = match &item.action {
                Action::Apply(effects) => effects.docs.as_slice(),
                Action::Refuse { .. } => &[],
            };
            let expected = item.expects.iter().map(|(doc, _)| doc);
            for doc in expected.chain(effects.iter().map(|effect| &effect.doc)) {
                docs.at.entry(doc).or_insert_with(|| {
                    docs.list.push(doc);
                    docs.list.len()
                });
            }
        }
        docs
    }

    /// Its place in the list, from 1 on.
    fn place(&self, doc: &DocPath) -> u64 {
        self.at[doc] as u64
    }
}

/// The call that commits a group. The order of its arguments is the script's.
pub(super) fn call(group: &CommitGroup, retention: &Retention, channel: &str) -> Call {
    let keys = Keys::of(&group.space);
    let docs = Docs::of(group);
    let fixed = [
        keys.meta(),
        keys.log(),
        keys.idx(),
        keys.clients(),
        keys.results(),
        keys.conflicts(),
        keys.users(),
        keys.dead(),
        keys.marks(),
    ];
    let mut call = Call::on(fixed.into_iter().chain(keys.docs(docs.list.iter().copied())));
    call.arg("PUBLISH")
        .arg(channel)
        .number(group.now_ms)
        .arg(group.planned_on.0.to_be_bytes())
        .arg(group.fresh.0.to_be_bytes())
        .number(retention.clients_ms)
        .number(retention.firsts_ms())
        .number(KEPT_RESULTS)
        .number(retention.log_commits)
        .number(retention.log_bytes)
        .number(retention.conflicts)
        .number(retention.conflicts_bytes)
        .number(MARK_EVERY_MS)
        .number(MAX_ENTRIES as u64)
        .number(TRIM_STEPS)
        .number(docs.list.len() as u64);
    for doc in &docs.list {
        call.arg(doc.as_str());
    }
    call.number(group.items.len() as u64);
    for item in &group.items {
        call.arg(item.writer.0.to_be_bytes())
            .arg(item.user.0.to_be_bytes())
            .number(item.mid.get())
            .arg(item.key.0.to_be_bytes())
            .arg(item.prev.map_or_else(Vec::new, |prev| prev.0.to_be_bytes().to_vec()))
            .optional(item.first);
        call.number(item.expects.len() as u64);
        for (doc, version) in &item.expects {
            call.number(docs.place(doc));
            match version {
                Version::Absent => call.arg("a").arg(""),
                Version::Seq(seq) => call.arg("s").number(seq.get()),
                Version::Item(index) => call.arg("i").number(*index as u64 + 1),
            };
        }
        let conflicts = match &item.action {
            Action::Apply(effects) => {
                call.arg("").arg(&effects.detail);
                call.optional(effects.now_ms).arg(&effects.body);
                call.number(effects.docs.len() as u64);
                for effect in &effects.docs {
                    put_doc(&mut call, docs.place(&effect.doc), effect);
                }
                &effects.conflicts
            }
            Action::Refuse {
                code,
                conflicts,
                detail,
            } => {
                call.arg(code.name()).arg(detail);
                conflicts
            }
        };
        call.number(conflicts.len() as u64);
        for conflict in conflicts {
            put_conflict(&mut call, conflict);
        }
    }
    call
}

fn put_doc(call: &mut Call, place: u64, effect: &DocEffect) {
    let flag = |set: bool| if set { '1' } else { '0' };
    let flags: String = [effect.born, effect.deleted, effect.alive].map(flag).iter().collect();
    call.number(place)
        .arg(flags)
        .number(effect.size)
        .number(effect.cells.len() as u64);
    for (field, value) in &effect.cells {
        call.arg(field.as_str());
        call.arg(value.as_ref().map_or(&[][..], |value| value.as_bytes()));
    }
}

/// An entry of the conflict log without what the script puts in front, and where in it which item's seq has to go.
fn put_conflict(call: &mut Call, entry: &ConflictEntry) {
    const IN_FRONT: usize = 5 * 8;
    let record = |theirs: usize| {
        let mut entry = entry.clone();
        entry.theirs.truncate(theirs);
        let record = ConflictRecord {
            position: Position::START,
            at: 0,
            writer: crate::store::NOBODY,
            mid: Mid::ZERO,
            entry,
        };
        record.encode().split_off(IN_FRONT)
    };
    call.arg(record(entry.theirs.len()));
    let planned: Vec<(usize, usize)> = (entry.theirs.iter().enumerate())
        .filter_map(|(n, (path, cell))| Some((n, path, planned_index(cell.stamp.seq)?)))
        // Path and cell stand behind their lengths.
        .map(|(n, path, item)| (record(n).len() + 4 + path.as_str().len() + 4, item))
        .collect();
    call.number(planned.len() as u64);
    for (at, item) in planned {
        call.number(at as u64).number(item as u64 + 1);
    }
}

/// What became of the group.
pub(super) fn outcomes(group: CommitGroup, reply: Value) -> Result<(Committed, Usage), StoreError> {
    let mut parts = Parts::of(reply)?;
    let lineage: Lineage = parts.record()?;
    let usage = Usage {
        docs: parts.number()?,
        bytes: parts.number()?,
    };
    let mut parts = parts.parts()?;
    if parts.len() != group.items.len() {
        return Err(unexpected("an outcome for each item"));
    }
    let mut outcomes = Vec::with_capacity(group.items.len());
    for item in group.items {
        let body = match item.action {
            Action::Apply(effects) => effects.body,
            Action::Refuse { .. } => Bytes::new(),
        };
        let outcome = outcome(&parts.bytes()?, &body, &lineage);
        outcomes.push(outcome.ok_or_else(|| unexpected("an outcome"))?);
    }
    Ok((Committed { outcomes, lineage }, usage))
}

fn outcome(reply: &[u8], body: &Bytes, lineage: &Lineage) -> Option<Outcome> {
    let (kind, rest) = reply.split_first()?;
    let mut numbers = rest
        .chunks_exact(8)
        .map_while(|chunk| Some(u64::from_be_bytes(chunk.try_into().ok()?)));
    let epoch = lineage.last_epoch();
    Some(match kind {
        b'A' => {
            let (seq, at) = (Seq::new(numbers.next()?)?, numbers.next()?);
            Outcome::Applied {
                position: Position::new(epoch, seq),
                at,
                payload: msgpack::payload(seq, at, body),
            }
        }
        b'R' => Outcome::Refused {
            position: Position::new(epoch, Seq::new(numbers.next()?)?),
        },
        b'D' => Outcome::Duplicate(KeptResult::decode(rest)?.kept),
        b'S' => Outcome::Stale {
            last_ms: numbers.next()?,
        },
        b'O' => Outcome::OutOfOrder {
            expected: Mid::new(numbers.next()?)?,
        },
        b'C' => Outcome::ClientCloned,
        b'U' => Outcome::ClientUnknown,
        _ => return None,
    })
}
