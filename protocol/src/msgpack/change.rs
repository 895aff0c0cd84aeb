//! The change: `["c", n, s, a, b, d]`, in pieces that are put together without decoding.
//!
//! The body, `b` and `d`, is encoded once by whoever prepares the commit. The store splices `s` and `a`
//! in front of it when they are known: that is the payload, what the log keeps and the bus carries.
//! A node puts the prefix with its own number for the space in front: that is the message.

use super::read::Reader;
use super::write::{TYPICAL, list, text};
use crate::error::Invalid;
use crate::ids::{Mid, Seq, Writer};
use crate::limits::{DEPTH_MAX, Limits};
use crate::message::{Commit, DocChange, DocChangeKind};
use crate::name::FieldPath;
use crate::value::{Value, write};
use bytes::Bytes;

/// What a server's messages are held to: nothing but what bounds recursion.
pub(super) const TRUSTED: Limits = Limits {
    message_bytes: usize::MAX,
    doc_bytes: usize::MAX,
    page_bytes: usize::MAX,
    field_bytes: usize::MAX,
    depth: DEPTH_MAX,
    ops: usize::MAX,
    subscriptions: usize::MAX,
    elements: usize::MAX,
};

/// The elements `b` and `d` of a change: who wrote it, and what it did.
pub fn encode_body(writer: Writer, mid: Mid, docs: &[DocChange]) -> Bytes {
    let mut out = Vec::with_capacity(TYPICAL);
    write::array(&mut out, 2);
    write::uint(&mut out, writer.0);
    write::uint(&mut out, mid.get());
    doc_changes(&mut out, docs);
    out.into()
}

/// The payload of a commit: `s` and `a`, 9 bytes each, and the body.
pub fn payload(seq: Seq, at_ms: u64, body: &[u8]) -> Bytes {
    let mut out = Vec::with_capacity(18 + body.len());
    write::uint_fixed(&mut out, seq.get());
    write::uint_fixed(&mut out, at_ms);
    out.extend_from_slice(body);
    out.into()
}

/// The seq of a payload, without decoding the rest.
pub fn payload_seq(payload: &[u8]) -> Result<Seq, Invalid> {
    Reader::new(payload, &TRUSTED).seq("s")
}

/// The server time of a payload, ms since 1970, without decoding the rest.
pub fn payload_time(payload: &[u8]) -> Result<u64, Invalid> {
    let mut r = Reader::new(payload, &TRUSTED);
    r.seq("s")?;
    r.u64("a")
}

/// What stands before the payload in a change: the head of the array, `"c"`, and the node's number for the space.
pub fn change_prefix(n: u32) -> Vec<u8> {
    let mut out = Vec::with_capacity(8);
    write::array(&mut out, 6);
    write::str(&mut out, "c");
    write::uint(&mut out, u64::from(n));
    out
}

/// Reads a payload.
pub fn decode_payload(payload: &[u8]) -> Result<Commit, Invalid> {
    let mut r = Reader::new(payload, &TRUSTED);
    let commit = read_commit(&mut r)?;
    r.end()?;
    Ok(commit)
}

pub(super) fn read_commit(r: &mut Reader<'_>) -> Result<Commit, Invalid> {
    let seq = r.seq("s")?;
    let at = r.u64("a")?;
    if r.array("b")? != 2 {
        return Err(Invalid::new("b", "must be [writer, mid]"));
    }
    let writer = Writer(r.u64("writer")?);
    let mid = r.any_mid("mid")?;
    Ok(Commit {
        seq,
        at,
        writer,
        mid,
        docs: read_doc_changes(r)?,
    })
}

/// Documents in the form of `d`: `[path, {set}, [unset]]` a change, `[path, {set}]` whole, `[path]` deleted.
pub fn encode_doc_changes(docs: &[DocChange]) -> Vec<u8> {
    let mut out = Vec::with_capacity(TYPICAL);
    doc_changes(&mut out, docs);
    out
}

/// Reads documents in the form of `d`.
pub fn decode_doc_changes(bytes: &[u8]) -> Result<Vec<DocChange>, Invalid> {
    let mut r = Reader::new(bytes, &TRUSTED);
    let docs = read_doc_changes(&mut r)?;
    r.end()?;
    Ok(docs)
}

pub(super) fn doc_changes(out: &mut Vec<u8>, docs: &[DocChange]) {
    list(out, docs, doc_change);
}

fn doc_change(out: &mut Vec<u8>, change: &DocChange) {
    let (set, unset) = match &change.kind {
        DocChangeKind::Change { set, unset } => (Some(set), Some(unset)),
        DocChangeKind::Whole(set) => (Some(set), None),
        DocChangeKind::Deleted => (None, None),
    };
    write::array(out, 1 + usize::from(set.is_some()) + usize::from(unset.is_some()));
    text(out, &change.doc);
    if let Some(set) = set {
        write::map(out, set.len());
        for (path, value) in set {
            text(out, path);
            out.extend_from_slice(value.as_bytes());
        }
    }
    if let Some(unset) = unset {
        list(out, unset, text);
    }
}

pub(super) fn read_doc_changes(r: &mut Reader<'_>) -> Result<Vec<DocChange>, Invalid> {
    r.list("d", usize::MAX, |r| {
        let n = r.array("document")?;
        let doc = match n {
            1..=3 => r.doc()?,
            _ => return Err(Invalid::new("document", &format!("must have 1 to 3 elements, has {n}"))),
        };
        let kind = match n {
            1 => DocChangeKind::Deleted,
            2 => DocChangeKind::Whole(read_leaves(r)?),
            _ => DocChangeKind::Change {
                set: read_leaves(r)?,
                unset: {
                    let mut unset = r.list("unset", usize::MAX, Reader::field)?;
                    sorted(&mut unset, |path| path)?;
                    unset
                },
            },
        };
        Ok(DocChange { doc, kind })
    })
}

fn read_leaves(r: &mut Reader<'_>) -> Result<Vec<(FieldPath, Value)>, Invalid> {
    let n = r.map("set")?;
    let mut leaves = Vec::with_capacity(n.min(64));
    for _ in 0..n {
        leaves.push((r.field()?, r.value()?));
    }
    sorted(&mut leaves, |(path, _)| path)?;
    Ok(leaves)
}

/// Sorts by path; a path that repeats is `invalid`.
fn sorted<T>(all: &mut [T], path: impl Fn(&T) -> &FieldPath) -> Result<(), Invalid> {
    if !all.is_sorted_by(|a, b| path(a) < path(b)) {
        all.sort_by(|a, b| path(a).cmp(path(b)));
        if let Some(pair) = all.windows(2).find(|pair| path(&pair[0]) == path(&pair[1])) {
            return Err(Invalid::new(
                "field",
                &format!("{} occurs twice in one document", path(&pair[0])),
            ));
        }
    }
    Ok(())
}
