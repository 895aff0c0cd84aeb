//! The ops of a `write`. Nothing in them is ignored.

use super::read::{Reader, required};
use super::write::{Map, list, position, text};
use crate::error::Invalid;
use crate::ids::Position;
use crate::limits::Limits;
use crate::message::{Content, Fields, Op, OpKind};
use crate::name::{DocPath, FieldPath};
use crate::tree;
use crate::value::{Number, Value, write};

/// Reads ops alone, in the form that `write` carries them.
pub fn decode_ops(bytes: &[u8], limits: &Limits) -> Result<Vec<Op>, Invalid> {
    let mut r = Reader::new(bytes, limits);
    let ops = read_ops(&mut r)?;
    r.end()?;
    Ok(ops)
}

pub(super) fn read_ops(r: &mut Reader<'_>) -> Result<Vec<Op>, Invalid> {
    let limit = r.limits.ops;
    let mut index = 0;
    let ops = r.list("ops", limit, |r| {
        (r.op, r.path) = (Some(index), None);
        let op = op(r).map_err(|e| e.within(&format!("op {index}")))?;
        index += 1;
        Ok(op)
    })?;
    (r.op, r.path) = (None, None);
    Ok(ops)
}

/// The arguments of an op as they come.
#[derive(Default)]
struct Args {
    doc: Option<DocPath>,
    exists: Option<bool>,
    unchanged_since: Option<Position>,
    fields: Option<Fields>,
    paths: Option<Vec<FieldPath>>,
    path: Option<FieldPath>,
    by: Option<Number>,
    value: Option<Value>,
    values: Option<Vec<Value>>,
}

/// The argument names of an op.
fn arguments(name: &str) -> Option<&'static [&'static str]> {
    Some(match name {
        "set" | "merge" | "create" | "replace" => &["fields"],
        "unset" => &["paths"],
        "inc" => &["path", "by"],
        "max" | "min" => &["path", "value"],
        "add" | "remove" => &["path", "values"],
        "now" => &["path"],
        "delete" | "check" => &[],
        _ => return None,
    })
}

fn op(r: &mut Reader<'_>) -> Result<Op, Invalid> {
    let n = r.map("op")?;
    if n == 0 || r.str("key")? != "op" {
        return Err(Invalid::new("op", "must be a map whose first key is op, its name"));
    }
    let name = r.str("op")?;
    let allowed = arguments(name).ok_or_else(|| Invalid::unsupported("op", name))?;
    let mut args = Args::default();
    r.entries(name, n - 1, Some("op"), |r, key| {
        match key {
            "doc" => args.doc = Some(r.doc()?),
            "exists" => args.exists = Some(r.bool("exists")?),
            "unchanged_since" => args.unchanged_since = Some(r.position("unchanged_since")?),
            _ if !allowed.contains(&key) => return Err(Invalid::unsupported(&format!("key of {name}"), key)),
            "fields" => args.fields = Some(fields(r)?),
            "paths" => {
                let all = r.list("paths", usize::MAX, Reader::field)?;
                tree::refuse_overlaps(&all)?;
                args.paths = Some(all);
            }
            "path" => {
                args.path = Some(r.field()?);
                r.path.clone_from(&args.path);
            }
            "by" => args.by = Some(r.number("by")?),
            "value" => {
                let value = r.value()?;
                if !tree::is_comparable(&value) {
                    return Err(Invalid::new(
                        "value",
                        &format!("of {name} must be a number or a timestamp"),
                    ));
                }
                args.value = Some(value);
            }
            "values" => args.values = Some(r.list("values", usize::MAX, Reader::value)?),
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    let doc = required(args.doc, name, "doc")?;
    let fields = || required(args.fields, name, "fields");
    let path = || required(args.path, name, "path");
    let value = || required(args.value, name, "value");
    let values = || required(args.values, name, "values");
    let kind = match name {
        "set" => OpKind::Set(fields()?),
        "merge" => OpKind::Merge(fields()?),
        "create" => OpKind::Create(fields()?),
        "replace" => OpKind::Replace(fields()?),
        "unset" => OpKind::Unset(required(args.paths, name, "paths")?),
        "delete" => OpKind::Delete,
        "inc" => OpKind::Inc {
            path: path()?,
            by: required(args.by, name, "by")?,
        },
        "max" => OpKind::Max {
            path: path()?,
            value: value()?,
        },
        "min" => OpKind::Min {
            path: path()?,
            value: value()?,
        },
        "add" => OpKind::Add {
            path: path()?,
            values: values()?,
        },
        "remove" => OpKind::Remove {
            path: path()?,
            values: values()?,
        },
        "now" => OpKind::Now { path: path()? },
        _ => OpKind::Check,
    };
    Ok(Op {
        doc,
        kind,
        exists: args.exists,
        unchanged_since: args.unchanged_since,
    })
}

fn fields(r: &mut Reader<'_>) -> Result<Fields, Invalid> {
    let n = r.map("fields")?;
    let mut all = Vec::with_capacity(n.min(64));
    for _ in 0..n {
        let path = r.field()?;
        r.path = Some(path.clone());
        let value = r.canonical().map_err(|e| e.within(path.as_str()))?;
        let content = tree::flatten_bytes(&path, &value, r.limits, &mut r.flat)?;
        all.push((path, content));
        r.path = None;
    }
    Fields::of(all)
}

/// Writes ops alone, in the form that `write` carries them: what a client's queue keeps.
pub fn encode_ops(ops: &[Op]) -> Vec<u8> {
    let mut out = Vec::new();
    list(&mut out, ops, write_op);
    out
}

pub(super) fn write_op(out: &mut Vec<u8>, op: &Op) {
    let mut map = Map::new(out);
    map.str("op", op.kind.name());
    map.str("doc", op.doc.as_str());
    match &op.kind {
        OpKind::Set(fields) | OpKind::Merge(fields) | OpKind::Create(fields) | OpKind::Replace(fields) => {
            let out = map.key("fields");
            write::map(out, fields.len());
            for (path, content) in fields.iter() {
                text(out, path);
                match content {
                    Content::Leaf(value) => out.extend_from_slice(value.as_bytes()),
                    Content::Map(leaves) => out.extend_from_slice(tree::nest(path, leaves).as_bytes()),
                }
            }
        }
        OpKind::Unset(paths) => map.list("paths", paths, text),
        OpKind::Delete | OpKind::Check => {}
        OpKind::Inc { path, by } => {
            map.path("path", path);
            match *by {
                Number::Int(n) => write::int(map.key("by"), n),
                Number::Float(x) => write::float(map.key("by"), x),
            }
        }
        OpKind::Max { path, value } | OpKind::Min { path, value } => {
            map.path("path", path);
            map.value("value", value);
        }
        OpKind::Add { path, values } | OpKind::Remove { path, values } => {
            map.path("path", path);
            map.list("values", values, |out, value| out.extend_from_slice(value.as_bytes()));
        }
        OpKind::Now { path } => map.path("path", path),
    }
    if let Some(exists) = op.exists {
        map.bool("exists", exists);
    }
    if let Some(since) = op.unchanged_since {
        position(map.key("unchanged_since"), since);
    }
}
