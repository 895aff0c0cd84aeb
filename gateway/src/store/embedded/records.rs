//! Stored records, in a fixed binary form: integers big-endian, byte strings with a 32-bit length.
//!
//! Decoding never panics: a record that is not whole is `None`, and its reader says which one it was.

use super::keys;
use crate::store::{
    Cell, ConflictDone, ConflictEntry, ConflictRecord, Erase, Kept, Lineage, LineageEntry, Stamp, StoreError, Usage,
    UserTag,
};
use bytes::Bytes;
use tidegate_protocol::{
    Code, DocPath, Epoch, FieldPath, Mid, MutationKey, Position, Seq, SpaceId, Value, Writer, msgpack,
};

/// Something that is stored.
pub(in crate::store) trait Record: Sized {
    /// Appends its bytes.
    fn put(&self, out: &mut Vec<u8>);
    /// Reads it from the front.
    fn take(from: &mut Take<'_>) -> Option<Self>;

    /// About how many bytes it has.
    fn about(&self) -> usize {
        64
    }

    /// Its bytes.
    fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.about());
        self.put(&mut out);
        out
    }

    /// Reads it from exactly these bytes.
    fn decode(bytes: &[u8]) -> Option<Self> {
        let mut from = Take(bytes);
        let record = Self::take(&mut from)?;
        from.0.is_empty().then_some(record)
    }
}

/// Bytes yet to be read.
pub(in crate::store) struct Take<'a>(pub(in crate::store) &'a [u8]);

impl<'a> Take<'a> {
    pub(in crate::store) fn u8(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    pub(in crate::store) fn u64(&mut self) -> Option<u64> {
        let (first, rest) = self.0.split_first_chunk::<8>()?;
        self.0 = rest;
        Some(u64::from_be_bytes(*first))
    }

    /// 16 bits.
    pub(in crate::store) fn u16(&mut self) -> Option<usize> {
        let (first, rest) = self.0.split_first_chunk::<2>()?;
        self.0 = rest;
        Some(usize::from(u16::from_be_bytes(*first)))
    }

    /// So many bytes.
    pub(in crate::store) fn split(&mut self, len: usize) -> Option<&'a [u8]> {
        let (first, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(first)
    }

    fn seq(&mut self) -> Option<Seq> {
        Seq::new(self.u64()?)
    }

    fn len(&mut self) -> Option<usize> {
        let (first, rest) = self.0.split_first_chunk::<4>()?;
        self.0 = rest;
        usize::try_from(u32::from_be_bytes(*first)).ok()
    }

    pub(in crate::store) fn bytes(&mut self) -> Option<&'a [u8]> {
        let len = self.len()?;
        self.split(len)
    }

    fn text(&mut self) -> Option<&'a str> {
        std::str::from_utf8(self.bytes()?).ok()
    }

    pub(in crate::store) fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.0)
    }
}

pub(in crate::store) fn put_u64(out: &mut Vec<u8>, n: u64) {
    out.extend_from_slice(&n.to_be_bytes());
}

fn put_len(out: &mut Vec<u8>, len: usize) {
    let len = u32::try_from(len).expect("a record's parts are bounded by the message size");
    out.extend_from_slice(&len.to_be_bytes());
}

pub(in crate::store) fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_len(out, bytes.len());
    out.extend_from_slice(bytes);
}

/// Where a space stands, and what of its logs is kept.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(in crate::store) struct SpaceMeta {
    /// Last commit.
    pub(in crate::store) head: Seq,
    /// Time of the last commit, ms since 1970.
    pub(in crate::store) last_ms: u64,
    /// Tombstones at or below it may be gone.
    pub(in crate::store) floor: Seq,
    /// The first commit that the log still has; `head + 1` if none.
    pub(in crate::store) log_first: Seq,
    /// Bytes of the payloads that the log has.
    pub(in crate::store) log_bytes: u64,
    /// Number of the oldest entry of the conflict log.
    pub(in crate::store) conflicts_first: u64,
    /// Number of the next entry of the conflict log.
    pub(in crate::store) conflicts_next: u64,
    /// Bytes of the entries of the conflict log, as stored.
    pub(in crate::store) conflicts_bytes: u64,
    /// What the documents take.
    pub(in crate::store) usage: Usage,
    /// Time of the last mark.
    pub(in crate::store) mark_ms: Option<u64>,
    /// When the newest of the client records that were forgotten last wrote, ms since 1970.
    pub(in crate::store) forgotten_ms: Option<u64>,
    /// The erasure under way.
    pub(in crate::store) erasing: Option<Erasing>,
}

/// An erasure under way: the space takes no reads and no commits.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(in crate::store) struct Erasing {
    /// Whose data.
    pub(in crate::store) whom: Erase,
    /// The epoch that it began, which names it.
    pub(in crate::store) epoch: Epoch,
    /// When it was begun, ms since 1970.
    pub(in crate::store) at_ms: u64,
}

impl Record for Erasing {
    fn put(&self, out: &mut Vec<u8>) {
        let user = match self.whom {
            Erase::Space => None,
            Erase::User(user) => Some(user.0),
        };
        put_option(out, user.as_ref(), |out, user| put_u64(out, *user));
        put_u64(out, self.epoch.0);
        put_u64(out, self.at_ms);
    }

    fn take(from: &mut Take<'_>) -> Option<Self> {
        let user = take_option(from, Take::u64)?;
        Some(Self {
            whom: user.map_or(Erase::Space, |user| Erase::User(UserTag(user))),
            epoch: Epoch(from.u64()?),
            at_ms: from.u64()?,
        })
    }
}

impl Default for SpaceMeta {
    fn default() -> Self {
        Self {
            head: Seq::ZERO,
            last_ms: 0,
            floor: Seq::ZERO,
            log_first: Seq::ZERO.next(),
            log_bytes: 0,
            conflicts_first: 0,
            conflicts_next: 0,
            conflicts_bytes: 0,
            usage: Usage::default(),
            mark_ms: None,
            forgotten_ms: None,
            erasing: None,
        }
    }
}

impl Record for SpaceMeta {
    fn put(&self, out: &mut Vec<u8>) {
        for n in [
            self.head.get(),
            self.last_ms,
            self.floor.get(),
            self.log_first.get(),
            self.log_bytes,
            self.conflicts_first,
            self.conflicts_next,
            self.conflicts_bytes,
            self.usage.docs,
            self.usage.bytes,
        ] {
            put_u64(out, n);
        }
        put_option(out, self.mark_ms.as_ref(), |out, at| put_u64(out, *at));
        put_option(out, self.forgotten_ms.as_ref(), |out, at| put_u64(out, *at));
        put_option(out, self.erasing.as_ref(), |out, erasing| erasing.put(out));
    }

    fn take(from: &mut Take<'_>) -> Option<Self> {
        Some(Self {
            head: from.seq()?,
            last_ms: from.u64()?,
            floor: from.seq()?,
            log_first: from.seq()?,
            log_bytes: from.u64()?,
            conflicts_first: from.u64()?,
            conflicts_next: from.u64()?,
            conflicts_bytes: from.u64()?,
            usage: Usage {
                docs: from.u64()?,
                bytes: from.u64()?,
            },
            mark_ms: take_option(from, Take::u64)?,
            forgotten_ms: take_option(from, Take::u64)?,
            erasing: take_option(from, Erasing::take)?,
        })
    }
}

impl SpaceMeta {
    /// Whether the space takes reads and commits: not while it is being erased.
    pub(in crate::store) fn is_open(&self) -> Result<(), StoreError> {
        match self.erasing {
            None => Ok(()),
            Some(_) => Err(StoreError::Unavailable("the space is being erased".to_owned())),
        }
    }

    /// Reads what format 1 stored; what that did not count is 0.
    pub(in crate::store) fn decode_1(bytes: &[u8]) -> Option<Self> {
        let mut from = Take(bytes);
        let meta = Self {
            head: from.seq()?,
            last_ms: from.u64()?,
            floor: from.seq()?,
            log_first: from.seq()?,
            log_bytes: from.u64()?,
            conflicts_first: from.u64()?,
            conflicts_next: from.u64()?,
            mark_ms: if from.0.is_empty() { None } else { Some(from.u64()?) },
            ..Self::default()
        };
        from.0.is_empty().then_some(meta)
    }
}

impl Record for Lineage {
    fn put(&self, out: &mut Vec<u8>) {
        for entry in &self.0 {
            put_u64(out, entry.epoch.0);
            put_u64(out, entry.start.get());
            put_bytes(out, &entry.incarnation);
        }
    }

    fn take(from: &mut Take<'_>) -> Option<Self> {
        let mut entries = Vec::new();
        while !from.0.is_empty() {
            let (epoch, start) = (Epoch(from.u64()?), from.seq()?);
            entries.push(LineageEntry {
                epoch,
                incarnation: from.bytes()?.to_vec(),
                start,
            });
        }
        Some(Self(entries))
    }
}

impl Record for Seq {
    fn put(&self, out: &mut Vec<u8>) {
        put_u64(out, self.get());
    }

    fn take(from: &mut Take<'_>) -> Option<Self> {
        from.seq()
    }
}

impl Record for Stamp {
    fn put(&self, out: &mut Vec<u8>) {
        put_u64(out, self.seq.get());
        put_u64(out, self.writer.0);
    }

    fn take(from: &mut Take<'_>) -> Option<Self> {
        Some(Self {
            seq: from.seq()?,
            writer: Writer(from.u64()?),
        })
    }
}

/// `seq ‖ writer ‖ MessagePack value`; nothing after the writer for a tombstone.
impl Record for Cell {
    fn about(&self) -> usize {
        16 + self.value.as_ref().map_or(0, |value| value.as_bytes().len())
    }

    fn put(&self, out: &mut Vec<u8>) {
        out.extend(Self::record(
            self.stamp,
            self.value.as_ref().map(|value| &value.as_bytes()[..]),
        ));
    }

    fn take(from: &mut Take<'_>) -> Option<Self> {
        let stamp = Stamp::take(from)?;
        let value = match from.rest() {
            [] => None,
            bytes => Some(Value::from_trusted(Bytes::copy_from_slice(bytes))),
        };
        Some(Self { stamp, value })
    }
}

impl Cell {
    /// The bytes of a cell whose value has these.
    pub(in crate::store) fn record(stamp: Stamp, value: Option<&[u8]>) -> Vec<u8> {
        let value = value.unwrap_or_default();
        let mut out = Vec::with_capacity(16 + value.len());
        stamp.put(&mut out);
        out.extend_from_slice(value);
        out
    }
}

/// Stamp and value of a cell, as it is stored under a key of its own; no value is a tombstone.
pub(in crate::store) fn cell_parts(record: &[u8]) -> Option<(Stamp, Option<&[u8]>)> {
    let mut from = Take(record);
    let stamp = Stamp::take(&mut from)?;
    let value = from.rest();
    Some((stamp, (!value.is_empty()).then_some(value)))
}

/// What is known of a client.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(in crate::store) struct Client {
    /// Its last mutation.
    pub(in crate::store) last: Mid,
    /// That one's key.
    pub(in crate::store) key: MutationKey,
    /// When it last wrote, duplicates too, ms since 1970.
    pub(in crate::store) when: u64,
    /// Whose it is; `None` if it last wrote in format 1, and of a marker.
    pub(in crate::store) user: Option<UserTag>,
    /// From which mutation on its results are in runs; those before are where format 2 had them. `None` if it last
    /// wrote then, and of a marker.
    pub(in crate::store) runs: Option<Mid>,
}

impl Client {
    /// The marker of a client whose data was erased.
    pub(in crate::store) fn erased(when: u64) -> Self {
        Self {
            last: Mid::ZERO,
            key: MutationKey(0),
            when,
            user: None,
            runs: None,
        }
    }

    /// Where the result of one of its mutations is kept: in a run, or by itself.
    pub(in crate::store) fn result_key(&self, space: &SpaceId, writer: Writer, mid: Mid) -> Vec<u8> {
        match self.runs {
            Some(from) if mid >= from => keys::result(space, writer, mid),
            _ => keys::result_2(space, writer, mid),
        }
    }

    /// Whether this is such a marker.
    pub(in crate::store) fn is_erased(&self) -> bool {
        self.last == Mid::ZERO
    }

    /// Whether it last wrote longer ago than records are kept: then it counts as unknown.
    pub(in crate::store) fn expired(&self, clients_ms: u64, now_ms: u64) -> bool {
        self.when.saturating_add(clients_ms) < now_ms
    }
}

impl Record for Client {
    fn put(&self, out: &mut Vec<u8>) {
        put_u64(out, self.last.get());
        put_u64(out, self.key.0);
        put_u64(out, self.when);
        let last = [self.user.map(|user| user.0), self.runs.map(Mid::get)];
        last.into_iter().flatten().for_each(|n| put_u64(out, n));
    }

    fn take(from: &mut Take<'_>) -> Option<Self> {
        Some(Self {
            last: Mid::new(from.u64()?)?,
            key: MutationKey(from.u64()?),
            when: from.u64()?,
            user: if from.0.is_empty() {
                None
            } else {
                Some(UserTag(from.u64()?))
            },
            runs: if from.0.is_empty() {
                None
            } else {
                Some(Mid::new(from.u64()?)?)
            },
        })
    }
}

/// A mutation's key and result.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(in crate::store) struct KeptResult {
    /// The mutation's mark.
    pub(in crate::store) key: MutationKey,
    /// What became of it.
    pub(in crate::store) kept: Kept,
}

impl Record for KeptResult {
    fn put(&self, out: &mut Vec<u8>) {
        put_u64(out, self.key.0);
        put_u64(out, self.kept.position.epoch.0);
        put_u64(out, self.kept.position.seq.get());
        // By name: the numbers of the codes are not pinned.
        put_bytes(out, self.kept.refused.map_or("", Code::name).as_bytes());
        out.extend_from_slice(&self.kept.detail);
    }

    fn take(from: &mut Take<'_>) -> Option<Self> {
        let key = MutationKey(from.u64()?);
        let position = Position::new(Epoch(from.u64()?), from.seq()?);
        let refused = match from.text()? {
            "" => None,
            name => Some(Code::from_name(name)?),
        };
        Some(Self {
            key,
            kept: Kept {
                refused,
                position,
                detail: Bytes::copy_from_slice(from.rest()),
            },
        })
    }
}

fn put_option<T>(out: &mut Vec<u8>, option: Option<&T>, put: impl FnOnce(&mut Vec<u8>, &T)) {
    out.push(u8::from(option.is_some()));
    if let Some(some) = option {
        put(out, some);
    }
}

fn take_option<'a, T>(from: &mut Take<'a>, take: impl FnOnce(&mut Take<'a>) -> Option<T>) -> Option<Option<T>> {
    match from.u8()? {
        0 => Some(None),
        1 => Some(Some(take(from)?)),
        _ => None,
    }
}

/// A value that is not trusted: the conflict log is read seldom.
fn canonical(bytes: &[u8]) -> Option<Value> {
    msgpack::value(bytes).ok().filter(|value| value.as_bytes() == bytes)
}

const DONE: [(ConflictDone, u8); 3] = [
    (ConflictDone::Overwritten, 0),
    (ConflictDone::Rejected, 1),
    (ConflictDone::Skipped, 2),
];

impl Record for ConflictRecord {
    fn put(&self, out: &mut Vec<u8>) {
        let (position, entry) = (self.position, &self.entry);
        for n in [
            position.epoch.0,
            position.seq.get(),
            self.at,
            self.writer.0,
            self.mid.get(),
        ] {
            put_u64(out, n);
        }
        put_bytes(out, entry.doc.as_str().as_bytes());
        put_option(out, entry.path.as_ref(), |out, path| {
            put_bytes(out, path.as_str().as_bytes())
        });
        put_option(out, entry.ours.as_ref(), |out, value| put_bytes(out, value.as_bytes()));
        out.extend(DONE.iter().filter(|(done, _)| *done == entry.done).map(|(_, n)| *n));
        for (path, cell) in &entry.theirs {
            put_bytes(out, path.as_str().as_bytes());
            put_bytes(out, &cell.encode());
        }
    }

    fn take(from: &mut Take<'_>) -> Option<Self> {
        let position = Position::new(Epoch(from.u64()?), from.seq()?);
        let (at, writer, mid) = (from.u64()?, Writer(from.u64()?), Mid::new(from.u64()?)?);
        let doc = DocPath::parse(from.text()?).ok()?;
        let path = take_option(from, |from| FieldPath::parse(from.text()?).ok())?;
        let ours = take_option(from, |from| canonical(from.bytes()?))?;
        let code = from.u8()?;
        let done = DONE.iter().find(|(_, n)| *n == code)?.0;
        let mut theirs = Vec::new();
        while !from.0.is_empty() {
            let path = FieldPath::parse(from.text()?).ok()?;
            let mut cell = Take(from.bytes()?);
            let stamp = Stamp::take(&mut cell)?;
            let value = match cell.rest() {
                [] => None,
                bytes => Some(canonical(bytes)?),
            };
            theirs.push((path, Cell { stamp, value }));
        }
        Some(Self {
            position,
            at,
            writer,
            mid,
            entry: ConflictEntry {
                doc,
                path,
                theirs,
                ours,
                done,
            },
        })
    }
}
