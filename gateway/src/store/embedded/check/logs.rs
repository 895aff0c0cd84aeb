//! What a space remembers beside its documents: the log, clients with their results, conflicts.

use super::super::disk::Table;
use super::super::keys::{self, ResultKey};
use super::super::records::{Client, KeptResult, Record as _, SpaceMeta};
use super::super::results::{self, RUN, SLOTS};
use super::{Check, Rule, Space};
use crate::store::{ConflictRecord, KEPT_RESULTS, StoreError};
use tidegate_protocol::{Mid, Writer, msgpack};

impl Check<'_> {
    /// Recent commits.
    pub(super) fn log(&mut self, space: &Space<'_>) -> Result<(), StoreError> {
        const TABLE: Table = Table::Log;
        let SpaceMeta { head, last_ms, .. } = space.meta;
        let (mut expected, mut bytes, mut last_at) = (space.meta.log_first, 0, 0);
        while let Some((key, payload)) = self.next(TABLE, &space.prefix)? {
            bytes += payload.len() as u64;
            let Some(seq) = keys::log_seq(&key).filter(|_| space.rest(&key).len() == 8) else {
                self.broken(
                    Rule::Key,
                    TABLE,
                    space.name,
                    space.rest(&key).escape_ascii(),
                    "it is no seq",
                );
                continue;
            };
            let place = format!("commit {seq}");
            if seq != expected {
                self.broken(
                    Rule::LogGap,
                    TABLE,
                    space.name,
                    &place,
                    format_args!("{expected} should come here"),
                );
            }
            expected = seq.next();
            let commit = match msgpack::decode_payload(&payload) {
                Ok(commit) => commit,
                Err(error) => {
                    self.broken(Rule::Record, TABLE, space.name, &place, error);
                    continue;
                }
            };
            if commit.seq != seq {
                self.broken(
                    Rule::LogSeq,
                    TABLE,
                    space.name,
                    &place,
                    format_args!("it is commit {}", commit.seq),
                );
            }
            if commit.at < last_at || commit.at > last_ms || (seq == head && commit.at != last_ms) {
                let found = format!("{}, after {last_at}; the space's is {last_ms}", commit.at);
                self.broken(Rule::LogTime, TABLE, space.name, &place, found);
            }
            last_at = commit.at;
        }
        if expected != head.next() {
            let found = format!("it ends before {expected}, the head is {head}");
            self.broken(Rule::LogGap, TABLE, space.name, "", found);
        }
        if bytes != space.meta.log_bytes {
            let found = format!("{bytes} bytes, the record says {}", space.meta.log_bytes);
            self.broken(Rule::LogBytes, TABLE, space.name, "", found);
        }
        Ok(())
    }

    /// Clients, and the results of each, in the same order.
    pub(super) fn clients(&mut self, space: &Space<'_>) -> Result<(), StoreError> {
        const TABLE: Table = Table::Clients;
        while let Some((key, value)) = self.next(TABLE, &space.prefix)? {
            let Some(writer) = keys::client_writer(&key).filter(|_| space.rest(&key).len() == 8) else {
                self.broken(
                    Rule::Key,
                    TABLE,
                    space.name,
                    space.rest(&key).escape_ascii(),
                    "it is no writer",
                );
                continue;
            };
            self.orphans(space, Some(&key))?;
            let Some(client) = self.decode::<Client>(TABLE, space.name, &name(writer), &value) else {
                while self.next(Table::Results, &key)?.is_some() {}
                continue;
            };
            self.results(space, writer, &client, &key)?;
        }
        self.orphans(space, None)
    }

    /// Results of writers before this one (`None`: of all), who have no record.
    fn orphans(&mut self, space: &Space<'_>, client: Option<&[u8]>) -> Result<(), StoreError> {
        loop {
            match self.tables[Table::Results as usize].peek()? {
                Some(key) if key.starts_with(&space.prefix) && client.is_none_or(|client| **key < *client) => {}
                _ => return Ok(()),
            }
            let Some((key, _)) = self.next(Table::Results, &space.prefix)? else {
                return Ok(());
            };
            let place = space.rest(&key).escape_ascii();
            self.broken(
                Rule::Results,
                Table::Results,
                space.name,
                place,
                "its writer has no record",
            );
        }
    }

    fn results(&mut self, space: &Space<'_>, writer: Writer, client: &Client, key: &[u8]) -> Result<(), StoreError> {
        const TABLE: Table = Table::Results;
        let last = client.last.get();
        let kept = last.saturating_sub(KEPT_RESULTS) + 1..=last;
        // Of a run that is kept the first ones may be older.
        let oldest = (last / RUN + 1).saturating_sub(SLOTS) * RUN;
        let mut found = [false; 1 << u8::BITS];
        let mut newest = None;
        while let Some((key, value)) = self.next(TABLE, key)? {
            let Some(end) = keys::result_key(space.name, &key) else {
                let place = space.rest(&key).escape_ascii();
                self.broken(Rule::Key, TABLE, space.name, place, "it is no writer, and slot or mid");
                continue;
            };
            let (place, results) = match end {
                ResultKey::Slot(slot) => (format!("{} slot {slot}", name(writer)), results::parse(&value)),
                ResultKey::Mid(mid) => (
                    format!("{} mid {mid}", name(writer)),
                    KeptResult::decode(&value).map(|result| (mid, vec![result])),
                ),
            };
            let Some((first, results)) = results else {
                let found = format!("{} bytes", value.len());
                self.broken(Rule::Record, TABLE, space.name, &place, found);
                continue;
            };
            for (mid, result) in (first.get()..).map_while(Mid::new).zip(results) {
                let is_there = *key == *client.result_key(space.name, writer, mid);
                let least = match end {
                    ResultKey::Slot(_) => oldest,
                    ResultKey::Mid(_) => *kept.start(),
                };
                if !is_there || mid > client.last || mid.get() < least || mid.get() / RUN != first.get() / RUN {
                    let found = format!("mid {mid} is not kept there, the last is {last}");
                    self.broken(Rule::Results, TABLE, space.name, &place, found);
                } else if kept.contains(&mid.get()) {
                    found[place_among(mid)] = true;
                }
                let position = result.kept.position;
                if !space.has_seen(position) {
                    let found = format!(
                        "seq {} of epoch {}, head {}",
                        position.seq, position.epoch.0, space.meta.head
                    );
                    self.broken(Rule::ResultSeq, TABLE, space.name, &place, found);
                }
                if mid == client.last {
                    newest = Some(result.key);
                }
            }
        }
        // The marker of an erased client has no last mid, and no results.
        let missing = kept.filter_map(Mid::new).find(|mid| !found[place_among(*mid)]);
        if let Some(missing) = missing {
            let found = format!("that of mid {missing} is missing, the last is {last}");
            self.broken(Rule::Results, TABLE, space.name, name(writer), found);
        }
        if newest.is_some_and(|newest| newest != client.key) {
            self.broken(
                Rule::LastResult,
                TABLE,
                space.name,
                name(writer),
                format_args!("mid {last}"),
            );
        }
        Ok(())
    }

    /// Which writers a user has had.
    pub(super) fn users(&mut self, space: &Space<'_>) -> Result<(), StoreError> {
        const TABLE: Table = Table::Users;
        while let Some((key, value)) = self.next(TABLE, &space.prefix)? {
            let place = space.rest(&key).escape_ascii().to_string();
            if space.rest(&key).len() != 16 {
                self.broken(Rule::Key, TABLE, space.name, &place, "it is no user and writer");
            }
            self.is_empty(TABLE, space.name, &place, &value);
        }
        Ok(())
    }

    /// The conflict log.
    pub(super) fn conflicts(&mut self, space: &Space<'_>) -> Result<(), StoreError> {
        const TABLE: Table = Table::Conflicts;
        let (mut expected, mut bytes) = (space.meta.conflicts_first, 0);
        while let Some((key, value)) = self.next(TABLE, &space.prefix)? {
            bytes += value.len() as u64;
            let rest = space.rest(&key);
            let Ok(n) = <[u8; 8]>::try_from(rest).map(u64::from_be_bytes) else {
                self.broken(Rule::Key, TABLE, space.name, rest.escape_ascii(), "it is no number");
                continue;
            };
            let place = format!("entry {n}");
            if n != expected {
                self.broken(
                    Rule::ConflictGap,
                    TABLE,
                    space.name,
                    &place,
                    format_args!("{expected} should come here"),
                );
            }
            expected = n + 1;
            let Some(record) = self.decode::<ConflictRecord>(TABLE, space.name, &place, &value) else {
                continue;
            };
            if !space.has_seen(record.position) {
                let found = format!("seq {}, head {}", record.position.seq, space.meta.head);
                self.broken(Rule::ConflictSeq, TABLE, space.name, &place, found);
            }
        }
        if expected != space.meta.conflicts_next {
            let found = format!(
                "it ends before {expected}, the record says {}",
                space.meta.conflicts_next
            );
            self.broken(Rule::ConflictGap, TABLE, space.name, "", found);
        }
        if bytes != space.meta.conflicts_bytes {
            let found = format!("{bytes} bytes, the record says {}", space.meta.conflicts_bytes);
            self.broken(Rule::ConflictBytes, TABLE, space.name, "", found);
        }
        Ok(())
    }
}

fn name(writer: Writer) -> String {
    format!("writer {:016x}", writer.0)
}

/// The place of a mutation among those whose results are kept.
fn place_among(mid: Mid) -> usize {
    const { assert!(KEPT_RESULTS == 1 << u8::BITS) };
    let [.., last] = mid.get().to_be_bytes();
    usize::from(last)
}
