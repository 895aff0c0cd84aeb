//! What an app's ops become before they are queued: guarded, and folded into an unsent one.

use crate::sync::exact_sum;
use std::collections::BTreeMap;
use tidegate_protocol::{Content, DocPath, FieldPath, Fields, Limits, Op, OpKind};

/// Guards edits of documents that exist where they are made: a document deleted elsewhere meanwhile is not
/// to come back with one field.
pub(super) fn guard(ops: &mut [Op], exists: impl Fn(&DocPath) -> bool) {
    // As left by the ops before.
    let mut left: BTreeMap<DocPath, bool> = BTreeMap::new();
    for op in ops {
        let is_there = left.get(&op.doc).copied().unwrap_or_else(|| exists(&op.doc));
        if op.exists.is_none() && is_there && is_edit(&op.kind) {
            op.exists = Some(true);
        }
        let is_there = match &op.kind {
            OpKind::Create(_) | OpKind::Replace(_) => true,
            OpKind::Delete => false,
            OpKind::Check => is_there,
            kind => is_there || creates(kind),
        };
        left.insert(op.doc.clone(), is_there);
    }
}

/// Whether an op on fields brings a document into being that is not there.
pub(in crate::sync) fn creates(kind: &OpKind) -> bool {
    is_edit(kind) && !matches!(kind, OpKind::Unset(_) | OpKind::Remove { .. })
}

/// Whether an op changes a document that is there, rather than makes, replaces or ends it.
fn is_edit(kind: &OpKind) -> bool {
    !matches!(
        kind,
        OpKind::Create(_) | OpKind::Replace(_) | OpKind::Delete | OpKind::Check
    )
}

/// One op that does what the two do in turn.
pub(super) fn fold(old: &OpKind, new: &OpKind, limits: &Limits) -> Option<OpKind> {
    match (old, new) {
        (OpKind::Inc { path, by }, OpKind::Inc { path: other, by: more }) if path == other => Some(OpKind::Inc {
            path: path.clone(),
            by: exact_sum(*by, *more)?,
        }),
        (OpKind::Set(old), OpKind::Set(new)) => {
            let value = |(path, content): &(FieldPath, Content)| match content {
                Content::Leaf(value) => Some((path.clone(), value.clone())),
                // A map was flattened; what it was is not worth rebuilding here.
                Content::Map(_) => None,
            };
            let mut all: BTreeMap<_, _> = old.iter().map(value).collect::<Option<_>>()?;
            all.extend(new.iter().map(value).collect::<Option<Vec<_>>>()?);
            Fields::new(all, limits).ok().map(OpKind::Set)
        }
        _ => None,
    }
}
