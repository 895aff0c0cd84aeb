//! Mutations whose effect the checker knows without asking: it can say of any local view what it must show.

use crate::event::Tag;
use tidegate_protocol::{DocPath, FieldPath, Fields, Invalid, Limits, Number, Op, OpKind, Value};

/// The document that counting mutations count in. Nothing else may write to it.
pub const COUNTER: &str = "counters/c";
/// Its collection.
pub(crate) const COUNTERS: &str = "counters";
/// Its field.
pub const COUNT: &str = "n";
/// The collection in which each counting mutation creates a document of its own, `tags/<tag>`.
pub const TAGS: &str = "tags";
/// The collection of pairs: `pairs/<name>-a` and `pairs/<name>-b`. Nothing else may write to it.
pub const PAIRS: &str = "pairs";
/// The field of a pair's halves.
pub const HALF: &str = "v";

/// Counts one up, and leaves a document that says which mutation did.
pub fn counting(tag: Tag) -> Result<Vec<Op>, Invalid> {
    let inc = OpKind::Inc {
        path: FieldPath::parse(COUNT)?,
        by: Number::Int(1),
    };
    Ok(vec![
        op(COUNTER, inc)?,
        set(&format!("{TAGS}/{}", tag.0), "x", Value::int(1))?,
    ])
}

/// Writes one value to both halves of a pair.
pub fn pair(name: &str, value: &Value) -> Result<Vec<Op>, Invalid> {
    let (a, b) = halves(name);
    Ok(vec![set(&a, HALF, value.clone())?, set(&b, HALF, value.clone())?])
}

/// The documents of a pair.
pub fn halves(name: &str) -> (String, String) {
    (format!("{PAIRS}/{name}-a"), format!("{PAIRS}/{name}-b"))
}

/// The tag of a counting mutation.
pub fn tag_of(ops: &[Op]) -> Option<Tag> {
    ops.iter().find_map(|op| match &op.kind {
        OpKind::Set(_) => tag_doc(&op.doc),
        _ => None,
    })
}

/// The tag that a document stands for.
pub(crate) fn tag_doc(doc: &DocPath) -> Option<Tag> {
    let id = doc.as_str().strip_prefix(TAGS)?.strip_prefix('/')?;
    id.parse().ok().map(Tag)
}

fn op(doc: &str, kind: OpKind) -> Result<Op, Invalid> {
    Ok(Op {
        doc: DocPath::parse(doc)?,
        kind,
        exists: None,
        unchanged_since: None,
    })
}

fn set(doc: &str, field: &str, value: Value) -> Result<Op, Invalid> {
    op(
        doc,
        OpKind::Set(Fields::new([(FieldPath::parse(field)?, value)], &Limits::default())?),
    )
}
