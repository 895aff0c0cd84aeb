//! What the toy's mutations do, said and done.

use super::{Kind, doc, path};
use std::collections::BTreeMap;
use tidegate_history::{Docs, Tag, workload};
use tidegate_protocol::*;

pub fn whole(leaves: &BTreeMap<FieldPath, Value>) -> DocChangeKind {
    DocChangeKind::Whole(
        leaves
            .iter()
            .map(|(path, value)| (path.clone(), value.clone()))
            .collect(),
    )
}

pub fn difference(old: &BTreeMap<FieldPath, Value>, new: &BTreeMap<FieldPath, Value>) -> DocChangeKind {
    let set = new.iter().filter(|(path, value)| old.get(*path) != Some(value));
    let set = set.map(|(path, value)| (path.clone(), value.clone())).collect();
    let unset = old.keys().filter(|path| !new.contains_key(*path)).cloned().collect();
    DocChangeKind::Change { set, unset }
}

/// What a mutation is to do is written in its ops: the first names the kind.
pub fn ops(kind: Kind, tag: u64) -> Vec<Op> {
    let set = |at: &str, field: &str, n: i64| Op {
        doc: doc(at),
        kind: OpKind::Set(Fields::new([(path(field), Value::int(n))], &Limits::default()).unwrap()),
        exists: None,
        unchanged_since: None,
    };
    match kind {
        Kind::Count => workload::counting(Tag(tag)).unwrap(),
        Kind::Pair(n) => workload::pair("p", &Value::int(n)).unwrap(),
        Kind::Set(at, n) => vec![set(&format!("notes/n{at}"), "x", n)],
        Kind::Map(at, n) => vec![set(&format!("notes/n{at}"), "map", n)],
        Kind::Delete(at) => vec![Op {
            kind: OpKind::Delete,
            ..set(&format!("notes/n{at}"), "x", 0)
        }],
        Kind::Bad => vec![],
    }
}

pub enum Done {
    Count(u64),
    Pair(Value),
    Set(DocPath, Value),
    Map(DocPath, Value),
    Delete(DocPath),
}

pub fn kind_of(write: &Write) -> Done {
    if let Some(tag) = workload::tag_of(&write.ops) {
        return Done::Count(tag.0);
    }
    let op = &write.ops[0];
    let OpKind::Set(fields) = &op.kind else {
        return Done::Delete(op.doc.clone());
    };
    let (field, value) = fields.leaves().next().unwrap();
    match field.as_str() {
        workload::HALF => Done::Pair(value.clone()),
        "map" => Done::Map(op.doc.clone(), value.clone()),
        _ => Done::Set(op.doc.clone(), value.clone()),
    }
}

/// Does it to the documents, and says how.
pub fn changes(docs: &mut Docs, kind: Done) -> Vec<DocChange> {
    let mut out = Vec::new();
    let mut put = |docs: &mut Docs, doc: DocPath, set: Vec<(FieldPath, Value)>, unset: Option<&str>| {
        let old = docs.get(&doc).cloned();
        let mut new = old.clone().unwrap_or_default();
        if let Some(unset) = unset {
            new.retain(|path, _| !path.as_str().starts_with(unset));
        }
        new.extend(set.iter().cloned());
        let kind = match old {
            None => whole(&new),
            Some(_) => DocChangeKind::Change {
                set,
                unset: unset.map(path).into_iter().collect(),
            },
        };
        docs.insert(doc.clone(), new);
        out.push(DocChange { doc, kind });
    };
    match kind {
        Done::Count(tag) => {
            let counter = doc(workload::COUNTER);
            let n = match docs.get(&counter).map(|leaves| leaves[&path("n")].get()) {
                Some(ValueRef::Int(n)) => n,
                _ => 0,
            };
            put(docs, counter, vec![(path("n"), Value::int(n + 1))], None);
            put(
                docs,
                doc(&format!("tags/{tag}")),
                vec![(path("x"), Value::int(1))],
                None,
            );
        }
        Done::Pair(value) => {
            let (a, b) = workload::halves("p");
            put(docs, doc(&a), vec![(path("v"), value.clone())], None);
            put(docs, doc(&b), vec![(path("v"), value)], None);
        }
        Done::Set(doc, value) => put(docs, doc, vec![(path("x"), value)], None),
        Done::Map(doc, value) => {
            let ValueRef::Int(n) = value.get() else {
                panic!("an integer")
            };
            let leaves = vec![(path(&format!("map.k{}", n % 3)), Value::int(n))];
            put(docs, doc, leaves, Some("map"));
        }
        Done::Delete(doc) => {
            if docs.remove(&doc).is_some() {
                out.push(DocChange {
                    doc,
                    kind: DocChangeKind::Deleted,
                });
            }
        }
    }
    out
}
