//! Mutations by chance: few documents, few fields, all ops, so that they meet.

use crate::interpret::{GKind, GOp, Mutation, Path};
use crate::value::{Dice, Input, V};
use std::collections::BTreeMap;
use tidegate_protocol::name::escape;
use tidegate_protocol::{DocPath, FieldPath, Fields, Limits, Number, Op, OpKind, Policy, Position, Value};

/// Two collections, so that views differ.
pub(crate) const DOCS: [&str; 7] = ["a/1", "a/2", "a/3", "a/x/4", "b/1", "b/2", "b/3"];
const NAMES: [&str; 4] = ["p", "q", "p q", "p.q"];

fn path(dice: &mut Dice) -> Path {
    let depth = *dice.pick(&[1, 1, 1, 2, 2, 3]);
    (0..depth).map(|_| (*dice.pick(&NAMES)).to_owned()).collect()
}

fn leaf(dice: &mut Dice) -> V {
    match dice.below(10) {
        0 => V::Nil,
        1 => V::Bool(dice.percent(50)),
        2 => V::Float(0.5),
        // The large ones are more than the embedded store keeps in one record.
        3 => V::Str("text".repeat(*dice.pick(&[0, 1, 2, 3, 600]))),
        4 => V::Array(array(dice)),
        5 => V::Time(1_000 * (dice.bits() % 100)),
        6 => V::EmptyMap,
        _ => V::Int(i64::try_from(dice.below(20)).expect("small")),
    }
}

fn array(dice: &mut Dice) -> Vec<V> {
    let mut items = vec![];
    for n in 0..dice.below(4) {
        let n = V::Int(i64::try_from(n).expect("small"));
        if dice.percent(60) {
            items.push(n);
        }
    }
    items
}

fn input(dice: &mut Dice, depth: usize) -> Input {
    if depth == 0 || dice.percent(70) {
        return Input::Leaf(leaf(dice));
    }
    let mut entries = BTreeMap::new();
    for _ in 0..dice.between(1, 3) {
        entries.insert((*dice.pick(&NAMES)).to_owned(), input(dice, depth - 1));
    }
    Input::Map(entries)
}

/// Paths of which none is another or lies below it.
fn paths(dice: &mut Dice, most: usize) -> Vec<Path> {
    let mut all: Vec<Path> = vec![];
    for _ in 0..dice.between(1, most) {
        let new = path(dice);
        if all.iter().all(|old| !old.starts_with(&new) && !new.starts_with(old)) {
            all.push(new);
        }
    }
    all
}

fn fields(dice: &mut Dice) -> BTreeMap<Path, Input> {
    if dice.percent(4) {
        return BTreeMap::new();
    }
    paths(dice, 3).into_iter().map(|path| (path, input(dice, 2))).collect()
}

fn number(dice: &mut Dice) -> V {
    if dice.percent(80) {
        V::Int(i64::try_from(dice.below(9)).expect("small") - 4)
    } else {
        V::Float(1.5)
    }
}

fn comparable(dice: &mut Dice) -> V {
    if dice.percent(70) {
        number(dice)
    } else {
        V::Time(1_000 * (dice.bits() % 100))
    }
}

fn kind(dice: &mut Dice) -> GKind {
    match dice.below(27) {
        0..=7 => GKind::Set(fields(dice)),
        8..=9 => GKind::Merge(fields(dice)),
        10..=12 => GKind::Unset(paths(dice, 2)),
        13..=14 => GKind::Create(fields(dice)),
        15 => GKind::Replace(fields(dice)),
        16..=17 => GKind::Delete,
        18..=19 => GKind::Inc(path(dice), number(dice)),
        20 => GKind::Max(path(dice), comparable(dice)),
        21 => GKind::Min(path(dice), comparable(dice)),
        22 => GKind::Add(path(dice), array(dice)),
        23 => GKind::Remove(path(dice), array(dice)),
        24..=25 => GKind::Now(path(dice)),
        _ => GKind::Check,
    }
}

/// A mutation. `position` gives positions that may have been seen.
pub(crate) fn mutation(dice: &mut Dice, mut position: impl FnMut(&mut Dice) -> Position) -> Mutation {
    let mut ops = vec![];
    for _ in 0..*dice.pick(&[1, 1, 1, 2, 2, 3, 5]) {
        ops.push(GOp {
            doc: (*dice.pick(&DOCS)).to_owned(),
            exists: match dice.below(12) {
                0..=1 => Some(true),
                2 => Some(false),
                _ => None,
            },
            since: dice.percent(6).then(|| position(dice)),
            kind: kind(dice),
        });
    }
    if dice.percent(1) {
        ops.clear();
    }
    let base = dice.percent(60).then(|| position(dice));
    let policy = match dice.below(6) {
        _ if base.is_none() && dice.percent(97) => None,
        0 => Some(Policy::Lww),
        1 => Some(Policy::Reject),
        2..=3 => Some(Policy::Merge),
        _ => None,
    };
    Mutation { base, policy, ops }
}

pub(crate) fn doc(name: &str) -> DocPath {
    DocPath::parse(name).expect("a valid name")
}

fn field(path: &[String]) -> FieldPath {
    let escaped: Vec<String> = path.iter().map(|segment| escape(segment)).collect();
    FieldPath::parse(&escaped.join(".")).expect("a valid path")
}

/// The segments of a path, told from its text.
pub(crate) fn segments(path: &FieldPath) -> Path {
    let mut all = vec![String::new()];
    let mut chars = path.as_str().chars();
    while let Some(c) = chars.next() {
        match c {
            '.' => all.push(String::new()),
            '\\' => all.last_mut().expect("not empty").extend(chars.next()),
            c => all.last_mut().expect("not empty").push(c),
        }
    }
    all
}

fn wire_fields(fields: &BTreeMap<Path, Input>) -> Fields {
    Fields::new(
        fields.iter().map(|(path, input)| (field(path), input.wire())),
        &Limits::default(),
    )
    .expect("valid")
}

fn values(list: &[V]) -> Vec<Value> {
    list.iter().map(V::wire).collect()
}

/// The ops as a client would send them.
pub(crate) fn wire(mutation: &Mutation) -> Vec<Op> {
    let kind = |kind: &GKind| match kind {
        GKind::Set(f) => OpKind::Set(wire_fields(f)),
        GKind::Merge(f) => OpKind::Merge(wire_fields(f)),
        GKind::Unset(paths) => OpKind::Unset(paths.iter().map(|path| field(path)).collect()),
        GKind::Create(f) => OpKind::Create(wire_fields(f)),
        GKind::Replace(f) => OpKind::Replace(wire_fields(f)),
        GKind::Delete => OpKind::Delete,
        GKind::Inc(path, by) => {
            let by = match by {
                V::Float(x) => Number::Float(*x),
                V::Int(n) => Number::Int(*n),
                other => panic!("{other:?} is no number"),
            };
            OpKind::Inc { path: field(path), by }
        }
        GKind::Max(path, v) => OpKind::Max {
            path: field(path),
            value: v.wire(),
        },
        GKind::Min(path, v) => OpKind::Min {
            path: field(path),
            value: v.wire(),
        },
        GKind::Add(path, list) => OpKind::Add {
            path: field(path),
            values: values(list),
        },
        GKind::Remove(path, list) => OpKind::Remove {
            path: field(path),
            values: values(list),
        },
        GKind::Now(path) => OpKind::Now { path: field(path) },
        GKind::Check => OpKind::Check,
    };
    let op = |op: &GOp| Op {
        doc: doc(&op.doc),
        kind: kind(&op.kind),
        exists: op.exists,
        unchanged_since: op.since,
    };
    mutation.ops.iter().map(op).collect()
}
