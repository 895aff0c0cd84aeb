//! Limits on what a mutation leads to, and what an answer may hold.

use super::scratch::Scratch;
use crate::store::DocState;
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
