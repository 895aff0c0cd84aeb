//! What must hold of a store at rest, checked in one walk over all of it.
//!
//! Every table is sorted by space, so the walk goes through all of them side by side, a space at a
//! time, and remembers no more than one document's open branches: memory does not grow with the store.

mod docs;
mod logs;
mod rule;

use super::OpenError;
use super::disk::{Cut, Table, told};
use super::keys;
use super::records::{Record, SpaceMeta};
use super::shared::Shared;
use crate::store::lineage::MAX_ENTRIES;
use crate::store::{Lineage, StoreError};
use fjall::Slice;
pub use rule::{Rule, Violation};
use std::collections::HashSet;
use std::fmt;
use std::iter::Peekable;
use std::path::Path;
use tidegate_protocol::{Epoch, Position, Seq, SpaceId};

/// What a check has looked at.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Checked {
    /// Spaces.
    pub spaces: u64,
    /// Documents, deleted ones too.
    pub docs: u64,
    /// Records of all tables.
    pub records: u64,
    /// Places where a rule does not hold.
    pub violations: u64,
}

/// Why a check did not come to its end.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    /// There is no store that could be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The database gives no more records.
    #[error("the check ended early: {0}")]
    Read(#[from] StoreError),
}

/// Checks the store in `dir`, which no process may have open, and hands over what it finds. Opening
/// a store of an older format brings it to this version's, as `open` does.
///
/// Blocks: it reads everything.
pub fn check(dir: &Path, tell: &mut dyn FnMut(Violation)) -> Result<Checked, CheckError> {
    let shared = Shared::open_existing(dir)?;
    Ok(walk(&shared.disk()?.cut(), tell)?)
}

/// Checks everything as of one moment.
pub(super) fn walk(cut: &Cut<'_>, tell: &mut dyn FnMut(Violation)) -> Result<Checked, StoreError> {
    let mut check = Check {
        cut,
        tables: Table::ALL.map(|table| Walk {
            entries: cut.all(table).peekable(),
        }),
        tell,
        done: Checked::default(),
    };
    while let Some(space) = check.next_space()? {
        check.space(&space)?;
    }
    Ok(check.done)
}

/// A table, read from its first record to its last.
struct Walk {
    entries: Peekable<Entries>,
}

type Entries = Box<dyn Iterator<Item = Result<(Slice, Slice), StoreError>>>;

impl Cut<'_> {
    fn all(&self, table: Table) -> Entries {
        Box::new(self.iter(table).map(|guard| guard.into_inner().map_err(told)))
    }
}

impl Walk {
    fn peek(&mut self) -> Result<Option<&Slice>, StoreError> {
        if matches!(self.entries.peek(), Some(Err(_))) {
            return Err(self.entries.next().and_then(Result::err).expect("just seen"));
        }
        Ok(match self.entries.peek() {
            Some(Ok((key, _))) => Some(key),
            _ => None,
        })
    }

    fn next(&mut self) -> Result<Option<(Slice, Slice)>, StoreError> {
        self.entries.next().transpose()
    }
}

struct Check<'a> {
    cut: &'a Cut<'a>,
    tables: [Walk; Table::ALL.len()],
    tell: &'a mut dyn FnMut(Violation),
    done: Checked,
}

/// A space under check.
struct Space<'a> {
    name: &'a SpaceId,
    prefix: Vec<u8>,
    meta: SpaceMeta,
    lineage: Lineage,
}

impl Space<'_> {
    /// What follows the space in a key.
    fn rest<'k>(&self, key: &'k [u8]) -> &'k [u8] {
        &key[self.prefix.len()..]
    }

    /// Whether a position can be one of this history. Epochs that ended below the floor are forgotten.
    fn has_seen(&self, position: Position) -> bool {
        let end = self.lineage.end_of(position.epoch, self.meta.head);
        position.seq <= end.unwrap_or(self.meta.head)
    }
}

impl Check<'_> {
    fn broken(
        &mut self,
        rule: Rule,
        table: Table,
        space: &SpaceId,
        place: impl fmt::Display,
        found: impl fmt::Display,
    ) {
        self.done.violations += 1;
        (self.tell)(Violation {
            rule,
            table: table.name(),
            space: space.to_string(),
            place: place.to_string(),
            found: found.to_string(),
        });
    }

    /// The next space that any table has a key of. Keys that name none are told and passed over.
    fn next_space(&mut self) -> Result<Option<SpaceId>, StoreError> {
        let mut least: Option<SpaceId> = None;
        for table in Table::ALL {
            while let Some(key) = self.tables[table as usize].peek()? {
                if let Some(space) = keys::space_of(key) {
                    if least.as_ref().is_none_or(|least| space < *least) {
                        least = Some(space);
                    }
                    break;
                }
                let place = key.escape_ascii().to_string();
                self.tables[table as usize].next()?;
                self.done.records += 1;
                self.done.violations += 1;
                (self.tell)(Violation {
                    rule: Rule::Key,
                    table: table.name(),
                    space: String::new(),
                    place,
                    found: "it begins with no space".to_owned(),
                });
            }
        }
        Ok(least)
    }

    /// The next record of a table, if it begins with `prefix`.
    fn next(&mut self, table: Table, prefix: &[u8]) -> Result<Option<(Slice, Slice)>, StoreError> {
        let walk = &mut self.tables[table as usize];
        if !walk.peek()?.is_some_and(|key| key.starts_with(prefix)) {
            return Ok(None);
        }
        self.done.records += 1;
        walk.next()
    }

    fn space(&mut self, name: &SpaceId) -> Result<(), StoreError> {
        self.done.spaces += 1;
        let prefix = keys::space(name);
        let Some(space) = self.record(name, prefix)? else {
            return self.pass_over(name);
        };
        if space.meta.erasing.is_some() {
            // Part of it is gone, and the rest is about to go.
            for table in Table::ALL {
                while self.next(table, &space.prefix)?.is_some() {}
            }
            return Ok(());
        }
        self.log(&space)?;
        self.docs(&space)?;
        self.index(&space)?;
        self.dead(&space)?;
        self.clients(&space)?;
        self.users(&space)?;
        self.conflicts(&space)
    }

    /// What a space without a record has cannot be judged.
    fn pass_over(&mut self, name: &SpaceId) -> Result<(), StoreError> {
        let prefix = keys::space(name);
        for table in Table::ALL {
            let mut n = 0_u64;
            while self.next(table, &prefix)?.is_some() {
                n += 1;
            }
            if n > 0 {
                self.broken(Rule::SpaceRecord, table, name, "", format_args!("{n} records"));
            }
        }
        Ok(())
    }

    /// The table of spaces: lineage, record, marks, in this order. `None` without a record.
    fn record<'s>(&mut self, name: &'s SpaceId, prefix: Vec<u8>) -> Result<Option<Space<'s>>, StoreError> {
        const TABLE: Table = Table::Spaces;
        let (mut meta, mut lineage) = (None, None);
        let (mut found, mut last_mark): (bool, Option<(u64, Seq)>) = (false, None);
        while let Some((key, value)) = self.next(TABLE, &prefix)? {
            if *key == *keys::lineage(name) {
                lineage = self.decode::<Lineage>(TABLE, name, "lineage", &value);
            } else if *key == *keys::meta(name) {
                found = true;
                meta = self.decode::<SpaceMeta>(TABLE, name, "record", &value);
            } else if let Some(at) = keys::mark_time(name, &key) {
                let place = format!("mark {at}");
                let Some(seq) = self.decode::<Seq>(TABLE, name, &place, &value) else {
                    continue;
                };
                let head = meta.as_ref().map_or(seq, |meta: &SpaceMeta| meta.head);
                if seq > head || last_mark.is_some_and(|(_, last)| seq <= last) {
                    self.broken(Rule::Mark, TABLE, name, place, format_args!("seq {seq}, head {head}"));
                }
                last_mark = Some((at, seq));
            } else {
                let place = key[prefix.len()..].escape_ascii();
                self.broken(Rule::Key, TABLE, name, place, "it is of no kind");
            }
        }
        if !found {
            self.broken(Rule::SpaceRecord, TABLE, name, "", "there is none");
        }
        let Some(meta) = meta else { return Ok(None) };
        if let Some((at, _)) = last_mark
            && (meta.mark_ms != Some(at) || at > meta.last_ms)
        {
            let found = format!("the last is at {at}, the record says {:?}", meta.mark_ms);
            self.broken(Rule::Mark, TABLE, name, "", found);
        }
        self.bounds(name, &meta);
        if lineage.as_ref().is_none_or(|lineage| lineage.0.is_empty()) && meta.head > Seq::ZERO {
            self.broken(
                Rule::Lineage,
                TABLE,
                name,
                "",
                format_args!("its head is {}", meta.head),
            );
        }
        let lineage = lineage.unwrap_or_default();
        self.lineage(name, &meta, &lineage);
        Ok(Some(Space {
            name,
            prefix,
            meta,
            lineage,
        }))
    }

    fn bounds(&mut self, name: &SpaceId, meta: &SpaceMeta) {
        let SpaceMeta {
            head, floor, log_first, ..
        } = *meta;
        for (wrong, found) in [
            (floor > head, format!("floor {floor}, head {head}")),
            (
                log_first == Seq::ZERO || log_first > head.next(),
                format!("the log starts at {log_first}, the head is {head}"),
            ),
            (
                meta.conflicts_first > meta.conflicts_next,
                format!("conflicts from {} to {}", meta.conflicts_first, meta.conflicts_next),
            ),
        ] {
            if wrong {
                self.broken(Rule::SpaceBounds, Table::Spaces, name, "", found);
            }
        }
    }

    fn lineage(&mut self, name: &SpaceId, meta: &SpaceMeta, lineage: &Lineage) {
        let mut names = HashSet::from([Epoch(0)]);
        let mut last = Seq::ZERO;
        for entry in &lineage.0 {
            let place = format!("epoch {}", entry.epoch.0);
            if entry.start < last || entry.start > meta.head {
                let found = format!("from {}, after {last}; head {}", entry.start, meta.head);
                self.broken(Rule::EpochStart, Table::Spaces, name, &place, found);
            }
            if !names.insert(entry.epoch) {
                self.broken(
                    Rule::EpochName,
                    Table::Spaces,
                    name,
                    &place,
                    format_args!("from {}", entry.start),
                );
            }
            last = entry.start;
        }
        if lineage.0.len() > MAX_ENTRIES {
            let found = format!("{} epochs", lineage.0.len());
            self.broken(Rule::Lineage, Table::Spaces, name, "", found);
        }
    }

    fn decode<T: Record>(&mut self, table: Table, space: &SpaceId, place: &str, value: &[u8]) -> Option<T> {
        let record = T::decode(value);
        if record.is_none() {
            self.broken(Rule::Record, table, space, place, format_args!("{} bytes", value.len()));
        }
        record
    }

    /// Tables that hold nothing but keys.
    fn is_empty(&mut self, table: Table, space: &SpaceId, place: &str, value: &[u8]) {
        if !value.is_empty() {
            self.broken(Rule::Record, table, space, place, format_args!("{} bytes", value.len()));
        }
    }
}
