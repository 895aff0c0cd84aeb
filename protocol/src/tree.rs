//! Documents as sets of leaves: flattening, rebuilding, the structure rule, and what each op does.
//!
//! The gateway's engine and the client's overlay both evaluate ops with this, so that a local view
//! shows what the server will do.

use crate::error::Invalid;
use crate::limits::{DEPTH_MAX, Limits};
use crate::message::{Content, Fields, OpKind};
use crate::name::{FieldPath, unescape};
use crate::value::{Number, Timestamp, Value, ValueRef};
use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::ops::Bound;

/// A document's live leaves.
pub type Leaves = BTreeMap<FieldPath, Value>;

/// Flattens what is written at `path`: a map with entries becomes its leaves, by absolute path.
///
/// `too_large` if a path or the nesting goes over the limits; `invalid` for a key that is no segment.
pub fn flatten(path: &FieldPath, value: &Value, limits: &Limits) -> Result<Content, Invalid> {
    flatten_bytes(path, value.as_bytes(), limits, &mut { limits.message_bytes })
}

/// As [`flatten`], of a value's canonical bytes. Each leaf repeats the path above it, so the leaves of a
/// small map may come to much: `budget` is how many bytes, and is lowered by what they take.
pub(crate) fn flatten_bytes(
    path: &FieldPath,
    bytes: &[u8],
    limits: &Limits,
    budget: &mut usize,
) -> Result<Content, Invalid> {
    let value = crate::value::view(bytes);
    let mut leaves = Vec::new();
    Flatten {
        limits,
        budget,
        leaves: &mut leaves,
    }
    .walk(path, value, bytes)?;
    match value {
        ValueRef::Map(entries) if !entries.is_empty() => {
            leaves.sort_by(|a, b| a.0.cmp(&b.0));
            Ok(Content::Map(leaves))
        }
        _ => Ok(Content::Leaf(leaves.pop().expect("a leaf flattens to itself").1)),
    }
}

struct Flatten<'a> {
    limits: &'a Limits,
    budget: &'a mut usize,
    leaves: &'a mut Vec<(FieldPath, Value)>,
}

impl Flatten<'_> {
    fn walk(&mut self, path: &FieldPath, value: ValueRef<'_>, bytes: &[u8]) -> Result<(), Invalid> {
        check_path(path, self.limits)?;
        match value {
            ValueRef::Map(entries) if !entries.is_empty() => {
                for (key, value, bytes) in entries {
                    let child = path.child(key).map_err(|e| e.within(path.as_str()))?;
                    self.walk(&child, value, bytes)?;
                }
            }
            _ => {
                let (depth, bound) = (
                    path.segments().count() + value.depth(),
                    self.limits.depth.min(DEPTH_MAX),
                );
                if depth > bound {
                    return Err(Invalid::too_large("depth", bound, depth).within(path.as_str()));
                }
                let taken = path.as_str().len() + bytes.len();
                *self.budget = self.budget.checked_sub(taken).ok_or_else(|| {
                    let limit = self.limits.message_bytes;
                    crate::msgpack::scan::over("bytes of a mutation's leaves with their full paths", limit)
                })?;
                self.leaves.push((path.clone(), Value::copied(bytes)));
            }
        }
        Ok(())
    }
}

/// Whether a path is within the limits.
pub fn check_path(path: &FieldPath, limits: &Limits) -> Result<(), Invalid> {
    if path.as_str().len() > limits.field_bytes {
        return Err(Invalid::too_large(
            "field path size in bytes",
            limits.field_bytes,
            path.as_str().len(),
        ));
    }
    let (depth, bound) = (path.segments().count(), limits.depth.min(DEPTH_MAX));
    if depth > bound {
        return Err(Invalid::too_large("depth", bound, depth));
    }
    Ok(())
}

/// Refuses paths of one op of which one is another, or lies below it.
pub fn refuse_overlaps<'a>(paths: impl IntoIterator<Item = &'a FieldPath>) -> Result<(), Invalid> {
    let mut seen = std::collections::BTreeSet::new();
    for path in paths {
        if !seen.insert(path) {
            return Err(Invalid::new("field", &format!("{path} occurs twice in one op")));
        }
    }
    for path in &seen {
        if let Some(above) = path.ancestors().find(|above| seen.contains(above)) {
            return Err(Invalid::new("field", &format!("{path} overlaps {above} in one op")));
        }
    }
    Ok(())
}

/// Rebuilds the nested map of a document's leaves.
pub fn rebuild<'a>(leaves: impl IntoIterator<Item = (&'a FieldPath, &'a Value)>) -> Value {
    nest_segments(
        leaves
            .into_iter()
            .map(|(path, value)| (path.segments().map(unescape).collect(), value)),
    )
}

/// Rebuilds the map that was flattened at `path` to `leaves`: the inverse of [`flatten`].
pub fn nest(path: &FieldPath, leaves: &[(FieldPath, Value)]) -> Value {
    let above = path.segments().count();
    nest_segments(
        leaves
            .iter()
            .map(|(path, value)| (path.segments().skip(above).map(unescape).collect(), value)),
    )
}

fn nest_segments<'a>(leaves: impl Iterator<Item = (Vec<String>, &'a Value)>) -> Value {
    enum Node {
        Leaf(Value),
        Map(BTreeMap<String, Node>),
    }
    fn value(node: &Node) -> Value {
        match node {
            Node::Leaf(v) => v.clone(),
            Node::Map(children) => {
                let built: Vec<_> = children.iter().map(|(key, node)| (key.as_str(), value(node))).collect();
                Value::map(built.iter().map(|(k, v)| (*k, v))).unwrap_or_else(|_| Value::empty_map())
            }
        }
    }
    let mut root = BTreeMap::new();
    for (segments, leaf) in leaves {
        let Some((last, above)) = segments.split_last() else {
            continue;
        };
        let mut here = &mut root;
        for segment in above {
            let node = here
                .entry(segment.clone())
                .or_insert_with(|| Node::Map(BTreeMap::new()));
            if let Node::Leaf(_) = node {
                *node = Node::Map(BTreeMap::new());
            }
            let Node::Map(children) = node else {
                unreachable!("made a map just now")
            };
            here = children;
        }
        here.insert(last.clone(), Node::Leaf(leaf.clone()));
    }
    value(&Node::Map(root))
}

/// The keys of `map` at or below `path`.
pub fn subtree<'a, T>(
    map: &'a BTreeMap<FieldPath, T>,
    path: &FieldPath,
) -> impl Iterator<Item = (&'a FieldPath, &'a T)> + use<'a, T> {
    // What begins with the path's text follows it at once: mostly nothing does, and no bounds are needed.
    let mut after = map.range::<str, _>((Bound::Excluded(path.as_str()), Bound::Unbounded));
    let any = after
        .next()
        .is_some_and(|(next, _)| next.as_str().starts_with(path.as_str()));
    let below = any.then(|| path.below()).map(|(from, to)| {
        let bounds = (Bound::Included(from.as_str()), Bound::Excluded(to.as_str()));
        map.range::<str, _>(bounds)
    });
    map.get_key_value(path.as_str())
        .into_iter()
        .chain(below.into_iter().flatten())
}

/// The keys of `map` strictly above `path`.
pub fn above<'a, T>(map: &'a BTreeMap<FieldPath, T>, path: &FieldPath) -> Vec<(&'a FieldPath, &'a T)> {
    path.ancestors()
        .filter_map(|up| map.get_key_value(up.as_str()))
        .collect()
}

/// The smallest thing an op writes, and that conflicts or not: a leaf, a map value of `set`, a path of `unset`.
#[derive(Clone, Debug)]
pub struct Unit<'a> {
    /// The path written.
    pub path: &'a FieldPath,
    what: What<'a>,
}

#[derive(Clone, Debug)]
enum What<'a> {
    Leaf(&'a Value),
    Map(&'a [(FieldPath, Value)]),
    /// `merge` of an empty map: makes sure that there is a map.
    MergeEmpty(&'a Value),
    Unset,
    Inc(Number),
    Extreme(Ordering, &'a Value),
    Add(&'a [Value]),
    Remove(&'a [Value]),
    Now,
}

/// One thing done to a document's leaves.
#[derive(Clone, PartialEq, Debug)]
pub enum Step {
    /// Removes every leaf at or below the path.
    Clear(FieldPath),
    /// Removes every leaf at a strict prefix of the path and every leaf below it, and writes it (the structure rule).
    Write(FieldPath, Value),
}

/// What a document's present leaves are, as far as ops look at them.
pub trait Present {
    /// The leaf at `path`.
    fn leaf(&self, path: &FieldPath) -> Option<&Value>;
    /// Whether there is a leaf strictly below `path`.
    fn any_below(&self, path: &FieldPath) -> bool;
}

impl Present for Leaves {
    fn leaf(&self, path: &FieldPath) -> Option<&Value> {
        self.get(path)
    }
    fn any_below(&self, path: &FieldPath) -> bool {
        subtree(self, path).any(|(p, _)| p != path)
    }
}

/// The units of an op on fields; none for `create`, `replace`, `delete` and `check`, which are about the document.
pub fn units(kind: &OpKind) -> impl Iterator<Item = Unit<'_>> {
    let unit = |path, what| Unit { path, what };
    let (mut set, mut merged, mut unset, mut one) = (None, None, None, None);
    match kind {
        OpKind::Set(fields) => set = Some(fields),
        OpKind::Merge(fields) => merged = Some(fields),
        OpKind::Unset(paths) => unset = Some(paths),
        OpKind::Inc { path, by } => one = Some(unit(path, What::Inc(*by))),
        OpKind::Max { path, value } => one = Some(unit(path, What::Extreme(Ordering::Greater, value))),
        OpKind::Min { path, value } => one = Some(unit(path, What::Extreme(Ordering::Less, value))),
        OpKind::Add { path, values } => one = Some(unit(path, What::Add(values))),
        OpKind::Remove { path, values } => one = Some(unit(path, What::Remove(values))),
        OpKind::Now { path } => one = Some(unit(path, What::Now)),
        OpKind::Create(_) | OpKind::Replace(_) | OpKind::Delete | OpKind::Check => {}
    }
    let set = set.into_iter().flat_map(Fields::iter);
    let set = set.map(move |(path, content)| match content {
        Content::Leaf(value) => unit(path, What::Leaf(value)),
        Content::Map(leaves) => unit(path, What::Map(leaves)),
    });
    let merged = merged.into_iter().flat_map(Fields::leaves);
    let merged = merged.map(move |(path, value)| match value.get() {
        ValueRef::Map(_) => unit(path, What::MergeEmpty(value)),
        _ => unit(path, What::Leaf(value)),
    });
    let unset = unset.into_iter().flatten().map(move |path| unit(path, What::Unset));
    set.chain(merged).chain(unset).chain(one)
}

impl<'a> Unit<'a> {
    /// Whether another writer's newer cell is a conflict; ops that take the present value in never conflict.
    pub fn can_conflict(&self) -> bool {
        matches!(
            self.what,
            What::Leaf(_) | What::Map(_) | What::MergeEmpty(_) | What::Unset
        )
    }

    /// Whether it brings a document into being that is not there: everything but `unset` and `remove`.
    pub fn creates(&self) -> bool {
        !matches!(self.what, What::Unset | What::Remove(_))
    }

    /// What it wants to stand at its path, rebuilt, where that does not depend on what is there;
    /// `None` is removal.
    pub fn wanted(&self) -> Option<Value> {
        match &self.what {
            What::Leaf(value) | What::MergeEmpty(value) | What::Extreme(_, value) => Some((*value).clone()),
            What::Map(leaves) => Some(nest(self.path, leaves)),
            What::Inc(by) => Some(Value::number(*by)),
            What::Add(values) => Some(Value::array(values.iter())),
            What::Unset | What::Remove(_) | What::Now => None,
        }
    }

    /// What it does to the present leaves. `now_ms` is the commit's time, ms since 1970.
    pub fn steps(&self, present: &dyn Present, now_ms: u64) -> impl Iterator<Item = Step> + use<'a> {
        let below = match self.what {
            What::Map(leaves) => leaves,
            _ => &[],
        };
        let below = below
            .iter()
            .map(|(path, value)| Step::Write(path.clone(), value.clone()));
        self.first(present, now_ms).into_iter().chain(below)
    }

    /// The first step, and but for a map the only one.
    fn first(&self, present: &dyn Present, now_ms: u64) -> Option<Step> {
        let write = |value| Some(Step::Write(self.path.clone(), value));
        match &self.what {
            What::Leaf(value) => write((*value).clone()),
            What::Map(_) | What::Unset => Some(Step::Clear(self.path.clone())),
            What::MergeEmpty(value) => {
                if present.any_below(self.path) || present.leaf(self.path) == Some(value) {
                    None
                } else {
                    write((*value).clone())
                }
            }
            What::Inc(by) => {
                let old = present
                    .leaf(self.path)
                    .and_then(Value::as_number)
                    .unwrap_or(Number::Int(0));
                write(Value::number(old.plus(*by)))
            }
            What::Extreme(wanted, value) => match present.leaf(self.path).and_then(|old| compare(value, old)) {
                Some(order) if order != *wanted => None,
                _ => write((*value).clone()),
            },
            What::Add(values) => {
                let old = present.leaf(self.path).and_then(Value::as_array);
                let had_array = old.is_some();
                let mut items = old.unwrap_or_default();
                let before = items.len();
                for value in *values {
                    if !items.contains(value) {
                        items.push(value.clone());
                    }
                }
                if had_array && items.len() == before {
                    None
                } else {
                    write(Value::array(items.iter()))
                }
            }
            What::Remove(values) => {
                let mut items = present.leaf(self.path).and_then(Value::as_array)?;
                let before = items.len();
                items.retain(|item| !values.contains(item));
                if items.len() == before {
                    None
                } else {
                    write(Value::array(items.iter()))
                }
            }
            What::Now => write(Value::timestamp(Timestamp::from_ms(now_ms))),
        }
    }
}

/// Compares two numbers or two timestamps.
fn compare(a: &Value, b: &Value) -> Option<Ordering> {
    match (a.get(), b.get()) {
        (ValueRef::Timestamp(a), ValueRef::Timestamp(b)) => Some(a.cmp(&b)),
        _ => Some(a.as_number()?.compare(b.as_number()?)),
    }
}

/// Whether a value can be compared by `max` and `min`.
pub fn is_comparable(value: &Value) -> bool {
    value.as_number().is_some() || matches!(value.get(), ValueRef::Timestamp(_))
}

/// Applies a step to leaves; returns the paths of the leaves that it removed and did not write again.
pub fn apply(leaves: &mut Leaves, mut step: Step) -> Vec<FieldPath> {
    // By the structure rule there is nothing above or below what is a leaf.
    if let Step::Write(path, value) = &mut step
        && let Some(leaf) = leaves.get_mut(path)
    {
        std::mem::swap(leaf, value);
        return Vec::new();
    }
    let removed = removed_by(leaves, &step);
    for path in &removed {
        leaves.remove(path.as_str());
    }
    if let Step::Write(path, value) = step {
        leaves.insert(path, value);
    }
    removed
}

/// The keys of `map` that a step removes: for a write, by the structure rule, without the path itself.
pub fn removed_by<T>(map: &BTreeMap<FieldPath, T>, step: &Step) -> Vec<FieldPath> {
    match step {
        Step::Clear(path) => subtree(map, path).map(|(p, _)| p.clone()).collect(),
        Step::Write(path, _) => above(map, path)
            .into_iter()
            .map(|(p, _)| p.clone())
            .chain(subtree(map, path).map(|(p, _)| p.clone()).filter(|p| p != path))
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::Fields;

    fn p(text: &str) -> FieldPath {
        FieldPath::parse(text).expect("valid")
    }

    fn run(leaves: &mut Leaves, kind: &OpKind) {
        for unit in units(kind) {
            for step in unit.steps(leaves, 1_500) {
                apply(leaves, step);
            }
        }
    }

    fn fields(list: &[(&str, Value)]) -> Fields {
        Fields::new(list.iter().map(|(path, v)| (p(path), v.clone())), &Limits::default()).expect("valid")
    }

    #[test]
    fn a_write_removes_what_is_above_and_below_it() {
        let mut doc = Leaves::new();
        run(
            &mut doc,
            &OpKind::Set(fields(&[
                ("a.b", Value::int(1)),
                ("a b", Value::int(9)),
                ("a.c.d", Value::int(2)),
            ])),
        );
        run(&mut doc, &OpKind::Set(fields(&[("a.c", Value::int(3))])));
        assert_eq!(
            doc.keys().map(FieldPath::as_str).collect::<Vec<_>>(),
            ["a b", "a.b", "a.c"]
        );
        run(&mut doc, &OpKind::Set(fields(&[("a", Value::int(4))])));
        run(&mut doc, &OpKind::Set(fields(&[("a.x.y", Value::int(5))])));
        assert_eq!(doc.keys().map(FieldPath::as_str).collect::<Vec<_>>(), ["a b", "a.x.y"]);
    }

    #[test]
    fn a_map_replaces_in_set_and_merges_in_merge() {
        let map = Value::map([("x", &Value::int(1)), ("y.z", &Value::int(2))]).expect("valid");
        let mut doc = Leaves::from([(p("m.old"), Value::nil())]);
        run(&mut doc, &OpKind::Merge(fields(&[("m", map.clone())])));
        assert_eq!(
            doc.keys().map(FieldPath::as_str).collect::<Vec<_>>(),
            ["m.old", "m.x", r"m.y\.z"]
        );
        run(&mut doc, &OpKind::Set(fields(&[("m", map.clone())])));
        assert_eq!(
            doc.keys().map(FieldPath::as_str).collect::<Vec<_>>(),
            ["m.x", r"m.y\.z"]
        );
        assert_eq!(rebuild(&doc).as_map().expect("map"), [("m", map.clone())]);
        let set = OpKind::Set(fields(&[("m", map.clone())]));
        assert_eq!(
            units(&set).next().and_then(|unit| unit.wanted()),
            Some(map),
            "a unit tells its value as it was written"
        );
        run(
            &mut doc,
            &OpKind::Merge(fields(&[("m", Value::empty_map()), ("n", Value::empty_map())])),
        );
        assert_eq!(doc.len(), 3, "an empty map merged into a map leaves it alone: {doc:?}");
    }

    #[test]
    fn ops_on_the_present_value_do_what_the_table_says() {
        let mut doc = Leaves::new();
        run(
            &mut doc,
            &OpKind::Inc {
                path: p("n"),
                by: Number::Int(2),
            },
        );
        run(
            &mut doc,
            &OpKind::Inc {
                path: p("n"),
                by: Number::Int(3),
            },
        );
        run(
            &mut doc,
            &OpKind::Max {
                path: p("n"),
                value: Value::int(4),
            },
        );
        run(
            &mut doc,
            &OpKind::Min {
                path: p("m"),
                value: Value::int(4),
            },
        );
        run(
            &mut doc,
            &OpKind::Add {
                path: p("t"),
                values: vec![Value::int(1), Value::int(1), Value::int(2)],
            },
        );
        run(
            &mut doc,
            &OpKind::Remove {
                path: p("t"),
                values: vec![Value::int(1)],
            },
        );
        run(&mut doc, &OpKind::Now { path: p("at") });
        assert_eq!(doc[&p("n")], Value::int(5));
        assert_eq!(doc[&p("m")], Value::int(4));
        assert_eq!(doc[&p("t")], Value::array([Value::int(2)].iter()));
        assert_eq!(
            doc[&p("at")],
            Value::timestamp(Timestamp {
                secs: 1,
                nanos: 500_000_000
            })
        );
    }

    #[test]
    fn overlaps_and_depth_are_refused() {
        let limits = Limits::default();
        let v = Value::int(1);
        assert!(
            Fields::new(
                [(p("a"), v.clone()), (p("a b"), v.clone()), (p("a.b"), v.clone())],
                &limits
            )
            .is_err()
        );
        assert!(Fields::new([(p("a"), v.clone()), (p("a"), v.clone())], &limits).is_err());
        assert!(Fields::new([(p(&vec!["a"; 20].join(".")), v.clone())], &limits).is_ok());
        assert!(Fields::new([(p(&vec!["a"; 21].join(".")), v.clone())], &limits).is_err());
        let lavish = Limits {
            depth: usize::MAX,
            ..Limits::default()
        };
        assert!(
            Fields::new([(p(&["a"; 65].join(".")), v.clone())], &lavish).is_err(),
            "64 whatever an operator sets"
        );
        let deep = Value::array([Value::array([v].iter())].iter());
        assert!(Fields::new([(p(&vec!["a"; 19].join(".")), deep)], &limits).is_err());
    }
}
