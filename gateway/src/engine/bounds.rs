//! Limits on what a mutation leads to, and what an answer may hold.

use super::Quota;
use super::scratch::Scratch;
use crate::store::{DocState, Usage};
use tidegate_protocol::{DocChange, DocChangeKind, DocPath, FieldPath, Invalid, Limits, Value, ValueRef};

/// What surrounds a change's body on the wire: the frame's header, the array's, `"c"`, `n`, `s`, `a`.
const ENVELOPE: usize = 64;

/// Bytes of an ack or a reject for the names of its units.
pub(super) fn units_share(limits: &Limits) -> usize {
    limits.message_bytes / 4
}

/// Bytes of an ack or a reject for the cells in it.
pub(super) fn cells_share(limits: &Limits) -> usize {
    limits.message_bytes / 2
}

/// Whether a document is within the limits, and can be sent whole in one message.
pub(super) fn check_document(scratch: &Scratch<'_>, limits: &Limits) -> Result<(), Invalid> {
    let size = usize::try_from(scratch.size()).unwrap_or(usize::MAX);
    if size > limits.doc_bytes {
        return Err(Invalid::too_large("document bytes", limits.doc_bytes, size));
    }
    // No element takes less than a byte, so only large documents need counting.
    if size + ENVELOPE > limits.elements {
        let count: usize = ENVELOPE
            + scratch
                .live()
                .map(|(_, value)| 1 + elements(value.get()))
                .sum::<usize>();
        if count > limits.elements {
            return Err(Invalid::too_large("elements of a document", limits.elements, count));
        }
    }
    // Whoever reads a document reads the tombstones of its fields, too. What adds none is always possible.
    let (before, fields) = (scratch.before.cells.len(), scratch.fields());
    if fields > before && fields > limits.elements {
        let mut error = Invalid::too_large(
            "fields of a document, those too that were removed and are remembered,",
            limits.elements,
            fields,
        );
        error.message += "; write to another document, or to fields that it has had";
        return Err(error);
    }
    Ok(())
}

/// Whether a change can be sent in one message.
pub(super) fn check_change(changes: &[DocChange], body: usize, limits: &Limits) -> Result<(), Invalid> {
    if body + ENVELOPE > limits.message_bytes {
        return Err(Invalid::too_large(
            "bytes of the resulting change",
            limits.message_bytes,
            body + ENVELOPE,
        ));
    }
    if body + ENVELOPE > limits.elements {
        let leaves = |set: &[(FieldPath, Value)]| set.iter().map(|(_, value)| 1 + elements(value.get())).sum::<usize>();
        let of = |change: &DocChange| match &change.kind {
            DocChangeKind::Change { set, unset } => 4 + leaves(set) + unset.len(),
            DocChangeKind::Whole(set) => 3 + leaves(set),
            DocChangeKind::Deleted => 2,
        };
        let count = ENVELOPE + changes.iter().map(of).sum::<usize>();
        if count > limits.elements {
            return Err(Invalid::too_large(
                "elements of the resulting change",
                limits.elements,
                count,
            ));
        }
    }
    Ok(())
}

/// What there is, and what there may be.
#[derive(Clone, Copy, Default)]
pub(super) struct Room {
    pub(super) quota: Quota,
    /// What the space's documents take, as of the items planned so far.
    pub(super) space: Usage,
    /// Bytes that all documents of the store take.
    pub(super) total_bytes: u64,
}

impl Room {
    /// Whether documents may become so much larger, first the one, then the other.
    pub(super) fn check(&self, before: Usage, after: Usage) -> Result<(), Grown> {
        let Quota {
            space_docs,
            space_bytes,
            total_bytes,
        } = self.quota;
        let docs = (self.space.docs, before.docs, after.docs);
        let bytes = (self.space.bytes, before.bytes, after.bytes);
        let total = (self.total_bytes, before.bytes, after.bytes);
        for (what, of, limit, (there, before, after)) in [
            ("documents in the space", Of::Docs, space_docs, docs),
            ("bytes of the space's documents", Of::Bytes, space_bytes, bytes),
            ("bytes of all documents of the gateway", Of::Bytes, total_bytes, total),
        ] {
            let Some(limit) = limit else { continue };
            let reached = there.saturating_add(after.saturating_sub(before));
            if after > before && reached > limit {
                let number = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
                return Err(Grown {
                    of,
                    why: Invalid::too_large(what, number(limit), number(reached)),
                });
            }
        }
        Ok(())
    }

    /// Counts a planned item.
    pub(super) fn take(&mut self, before: Usage, after: Usage) {
        self.space.replace(before, after);
        self.total_bytes = (self.total_bytes + after.bytes).saturating_sub(before.bytes);
    }
}

/// What of the documents has grown too much.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Of {
    Docs,
    Bytes,
}

/// A quota that would be exceeded.
pub(super) struct Grown {
    pub(super) of: Of,
    pub(super) why: Invalid,
}

/// Bytes that documents take whole on the wire, at most.
pub(super) fn answer_bytes(docs: &[DocPath], states: &[DocState]) -> usize {
    // The header of a string or a map takes 5 bytes at most, an array's is 1.
    const HEADER: usize = 5;
    let leaves = |state: &DocState| -> usize {
        let live = state.leaves().filter(|_| state.alive());
        live.map(|(path, value)| HEADER + path.as_str().len() + value.as_bytes().len())
            .sum()
    };
    let each = docs.iter().zip(states);
    each.map(|(doc, state)| 1 + 2 * HEADER + doc.as_str().len() + leaves(state))
        .sum()
}

/// Whether documents that take so many bytes can be sent in one message.
pub(super) fn check_answer(bytes: usize, limits: &Limits) -> Result<(), Invalid> {
    let (limit, found) = (limits.message_bytes, bytes + ENVELOPE);
    if found > limit {
        return Err(Invalid::too_large("bytes of the documents asked for", limit, found));
    }
    Ok(())
}

/// MessagePack objects in a value, itself counted.
fn elements(value: ValueRef<'_>) -> usize {
    match value {
        ValueRef::Array(items) => 1 + items.map(|(item, _)| elements(item)).sum::<usize>(),
        ValueRef::Map(entries) => 1 + entries.map(|(_, item, _)| 1 + elements(item)).sum::<usize>(),
        _ => 1,
    }
}
