//! Keys of the stored records.
//!
//! Names of spaces and documents hold no control characters, so a 0 byte ends them: no space's keys
//! can lie among another's, whatever their names, and byte order is (seq, path) order. A field path
//! may hold any character; it is always last.

use super::results;
use crate::store::UserTag;
use tidegate_protocol::{Collection, DocPath, FieldPath, Mid, Seq, SpaceId, Writer};

/// Ends a name.
const END: u8 = 0;
/// Kinds of records in the table of spaces.
const META: u8 = b'm';
const LINEAGE: u8 = b'l';
const MARK: u8 = b't';

fn named(space: &SpaceId, more: usize) -> Vec<u8> {
    let name = space.as_str().as_bytes();
    let mut key = Vec::with_capacity(name.len() + 1 + more);
    key.extend_from_slice(name);
    key.push(END);
    key
}

/// Before everything of a space, in any table.
pub(super) fn space(space: &SpaceId) -> Vec<u8> {
    named(space, 0)
}

/// After everything of a space, in any table.
pub(super) fn space_end(space: &SpaceId) -> Vec<u8> {
    after(named(space, 0))
}

/// The least key above everything that begins with this prefix, which ends with a 0 byte.
pub(super) fn after(mut prefix: Vec<u8>) -> Vec<u8> {
    debug_assert_eq!(prefix.last(), Some(&END));
    prefix.pop();
    prefix.push(END + 1);
    prefix
}

/// The space that a key of any table belongs to.
pub(super) fn space_of(key: &[u8]) -> Option<SpaceId> {
    let end = key.iter().position(|b| *b == END)?;
    SpaceId::parse(std::str::from_utf8(&key[..end]).ok()?).ok()
}

/// A space's [`super::records::SpaceMeta`].
pub(super) fn meta(space: &SpaceId) -> Vec<u8> {
    let mut key = named(space, 1);
    key.push(META);
    key
}

/// Whether a key of the table of spaces is one of [`meta`].
pub(super) fn is_meta(key: &[u8]) -> bool {
    key.ends_with(&[END, META]) && key.iter().filter(|b| **b == END).count() == 1
}

/// Whether a key of the table of spaces is one of [`lineage`].
pub(super) fn is_lineage(key: &[u8]) -> bool {
    key.ends_with(&[END, LINEAGE]) && key.iter().filter(|b| **b == END).count() == 1
}

/// A space's lineage.
pub(super) fn lineage(space: &SpaceId) -> Vec<u8> {
    let mut key = named(space, 1);
    key.push(LINEAGE);
    key
}

/// The head that a space had at a time.
pub(super) fn mark(space: &SpaceId, at: u64) -> Vec<u8> {
    let mut key = named(space, 9);
    key.push(MARK);
    key.extend_from_slice(&at.to_be_bytes());
    key
}

/// The time of a mark's key.
pub(super) fn mark_time(space: &SpaceId, key: &[u8]) -> Option<u64> {
    let (kind, at) = key.get(space.as_str().len() + 1..)?.split_first()?;
    let at = <[u8; 8]>::try_from(at).ok()?;
    (*kind == MARK).then(|| u64::from_be_bytes(at))
}

fn numbered(space: &SpaceId, n: u64) -> Vec<u8> {
    numbered_with(space, n, 0)
}

/// With room for `more` bytes.
fn numbered_with(space: &SpaceId, n: u64, more: usize) -> Vec<u8> {
    let mut key = named(space, 8 + more);
    key.extend_from_slice(&n.to_be_bytes());
    key
}

/// A commit's payload.
pub(super) fn log(space: &SpaceId, seq: Seq) -> Vec<u8> {
    numbered(space, seq.get())
}

/// The seq of a log key.
pub(super) fn log_seq(key: &[u8]) -> Option<Seq> {
    let (_, seq) = key.split_last_chunk::<8>()?;
    Seq::new(u64::from_be_bytes(*seq))
}

/// An entry of the conflict log.
pub(super) fn conflict(space: &SpaceId, n: u64) -> Vec<u8> {
    numbered(space, n)
}

/// A client's record.
pub(super) fn client(space: &SpaceId, writer: Writer) -> Vec<u8> {
    numbered(space, writer.0)
}

/// The writer of a client's key.
pub(super) fn client_writer(key: &[u8]) -> Option<Writer> {
    let (_, writer) = key.split_last_chunk::<8>()?;
    Some(Writer(u64::from_be_bytes(*writer)))
}

/// The run of a client's results that a mutation's is in.
pub(super) fn result(space: &SpaceId, writer: Writer, mid: Mid) -> Vec<u8> {
    let mut key = numbered_with(space, writer.0, 1);
    key.push(results::slot(mid));
    key
}

/// A kept result of format 2, under its mid.
pub(super) fn result_2(space: &SpaceId, writer: Writer, mid: Mid) -> Vec<u8> {
    let mut key = numbered_with(space, writer.0, 8);
    key.extend_from_slice(&mid.get().to_be_bytes());
    key
}

/// What a kept result's key ends with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum ResultKey {
    Slot(u8),
    /// In format 2.
    Mid(Mid),
}

/// The end of a kept result's key.
pub(super) fn result_key(space: &SpaceId, key: &[u8]) -> Option<ResultKey> {
    match key.get(space.as_str().len() + 1 + 8..)? {
        [slot] => Some(ResultKey::Slot(*slot)),
        mid => Mid::new(u64::from_be_bytes(mid.try_into().ok()?)).map(ResultKey::Mid),
    }
}

/// The number of an entry of the conflict log.
pub(super) fn conflict_number(key: &[u8]) -> Option<u64> {
    let (_, n) = key.split_last_chunk::<8>()?;
    Some(u64::from_be_bytes(*n))
}

/// A writer that a user has had.
pub(super) fn user(space: &SpaceId, user: UserTag, writer: Writer) -> Vec<u8> {
    let mut key = numbered_with(space, user.0, 8);
    key.extend_from_slice(&writer.0.to_be_bytes());
    key
}

/// Before the writers of a user.
pub(super) fn users(space: &SpaceId, user: UserTag) -> Vec<u8> {
    numbered(space, user.0)
}

/// After the writers of a user.
pub(super) fn users_end(space: &SpaceId, user: UserTag) -> Vec<u8> {
    after_number(space, user.0)
}

/// The writer of a user's key.
pub(super) fn user_writer(key: &[u8]) -> Option<Writer> {
    client_writer(key)
}

/// The first key after those with a number.
fn after_number(space: &SpaceId, n: u64) -> Vec<u8> {
    n.checked_add(1)
        .map_or_else(|| space_end(space), |next| numbered(space, next))
}

/// Before the results of a writer.
pub(super) fn results(space: &SpaceId, writer: Writer) -> Vec<u8> {
    numbered(space, writer.0)
}

/// After the results of a writer.
pub(super) fn results_end(space: &SpaceId, writer: Writer) -> Vec<u8> {
    after_number(space, writer.0)
}

/// A document: the key of its record, and the prefix of the keys of its cells, where they have some.
pub(super) fn doc(space: &SpaceId, doc: &DocPath) -> Vec<u8> {
    let path = doc.as_str().as_bytes();
    let mut key = named(space, path.len() + 1);
    key.extend_from_slice(path);
    key.push(END);
    key
}

/// After everything of a document, in the table of cells.
pub(super) fn doc_end(space: &SpaceId, path: &DocPath) -> Vec<u8> {
    after(doc(space, path))
}

/// Before and after every document of a collection, and of those below it, in the table of cells.
pub(super) fn collection(space: &SpaceId, collection: &Collection) -> (Vec<u8>, Vec<u8>) {
    let path = collection.as_str().as_bytes();
    let mut start = named(space, path.len() + 1);
    start.extend_from_slice(path);
    let mut end = start.clone();
    start.push(b'/');
    end.push(b'/' + 1);
    (start, end)
}

/// The document whose header has this key, of which the name of the space is cut off.
pub(super) fn header_doc(rest: &[u8]) -> Option<&str> {
    let (end, doc) = rest.split_last()?;
    std::str::from_utf8(doc)
        .ok()
        .filter(|_| *end == END && !doc.contains(&END))
}

/// A cell; a field path is never empty, so this is never the header's key.
pub(super) fn cell(space: &SpaceId, path: &DocPath, field: &FieldPath) -> Vec<u8> {
    let (path, field) = (path.as_str().as_bytes(), field.as_str().as_bytes());
    let mut key = named(space, path.len() + 1 + field.len());
    key.extend_from_slice(path);
    key.push(END);
    key.extend_from_slice(field);
    key
}

/// As [`cell`], by the key of the document's header.
pub(super) fn cell_below(doc: &[u8], field: &str) -> Vec<u8> {
    let mut key = Vec::with_capacity(doc.len() + field.len());
    key.extend_from_slice(doc);
    key.extend_from_slice(field.as_bytes());
    key
}

/// Document and field of a cell's key; without a field it is the header's.
pub(super) fn cell_parts(space: &SpaceId, key: &[u8]) -> Option<(DocPath, Option<FieldPath>)> {
    let rest = key.get(space.as_str().len() + 1..)?;
    let end = rest.iter().position(|b| *b == END)?;
    let doc = DocPath::parse(std::str::from_utf8(&rest[..end]).ok()?).ok()?;
    let field = match std::str::from_utf8(&rest[end + 1..]).ok()? {
        "" => None,
        path => Some(FieldPath::parse(path).ok()?),
    };
    Some((doc, field))
}

/// A document's place in the order of touching.
pub(super) fn idx(space: &SpaceId, seq: Seq, doc: &DocPath) -> Vec<u8> {
    let path = doc.as_str().as_bytes();
    let mut key = numbered_with(space, seq.get(), path.len());
    key.extend_from_slice(path);
    key
}

/// The first place after everything touched up to `seq`.
pub(super) fn idx_after(space: &SpaceId, seq: Seq) -> Vec<u8> {
    numbered(space, seq.get() + 1)
}

/// Seq and document of an idx key.
pub(super) fn idx_parts(space: &SpaceId, key: &[u8]) -> Option<(Seq, DocPath)> {
    let rest = key.get(space.as_str().len() + 1..)?;
    let (seq, path) = rest.split_first_chunk::<8>()?;
    let doc = DocPath::parse(std::str::from_utf8(path).ok()?).ok()?;
    Some((Seq::new(u64::from_be_bytes(*seq))?, doc))
}

/// A tombstone: of a cell, or of the document where `field` is `None`.
pub(super) fn dead(space: &SpaceId, seq: Seq, doc: &DocPath, field: Option<&FieldPath>) -> Vec<u8> {
    let mut key = idx(space, seq, doc);
    key.push(END);
    if let Some(field) = field {
        key.extend_from_slice(field.as_str().as_bytes());
    }
    key
}

/// Seq, document and field of a tombstone's key.
pub(super) fn dead_parts(space: &SpaceId, key: &[u8]) -> Option<(Seq, DocPath, Option<FieldPath>)> {
    let start = space.as_str().len() + 1 + 8;
    let end = start + key.get(start..)?.iter().position(|b| *b == END)?;
    let (seq, doc) = idx_parts(space, &key[..end])?;
    let field = match std::str::from_utf8(&key[end + 1..]).ok()? {
        "" => None,
        path => Some(FieldPath::parse(path).ok()?),
    };
    Some((seq, doc, field))
}
