//! What apps ask for: mutations of a small space, so that they meet.

use crate::rng::Rng;
use tidegate_client::sync::Request;
use tidegate_history::{Tag, workload};
use tidegate_protocol::{DocPath, FieldPath, Fields, Limits, Number, Op, OpKind, Policy, Position, Value};

/// The one pair that is written.
pub(crate) const PAIR: &str = "p";
const NOTES: [&str; 3] = ["notes/d0", "notes/d1", "notes/d2"];
const FIELDS: [&str; 5] = ["x", "y", "m", "m.a", "m.b"];

pub(crate) fn doc(text: &str) -> DocPath {
    DocPath::parse(text).expect("a constant path")
}

pub(crate) fn field(text: &str) -> FieldPath {
    FieldPath::parse(text).expect("a constant path")
}

/// A mutation, and whether it counts.
pub(crate) struct Wish {
    pub(crate) request: Request,
    pub(crate) counts: bool,
}

/// Counts one up.
pub(crate) fn counting(tag: Tag) -> Wish {
    Wish {
        request: Request {
            ops: workload::counting(tag).expect("constant names"),
            // It counts also where the counter has been lost.
            upsert: true,
            ..Request::default()
        },
        counts: true,
    }
}

/// Something that an app may want, with `tag` as its label; `seen` is where its local copy stands.
pub(crate) fn wish(rng: &mut Rng, tag: Tag, seen: Option<Position>) -> Wish {
    match rng.below(10) {
        0..=3 => return counting(tag),
        4 => {
            let value = Value::int(i64::try_from(tag.0).unwrap_or(0));
            let ops = workload::pair(PAIR, &value).expect("constant names");
            let request = Request {
                ops,
                policy: some_policy(rng, seen),
                ..Request::default()
            };
            return Wish { request, counts: false };
        }
        _ => {}
    }
    let count = rng.pick(&[1, 1, 1, 2, 3]);
    let ops = (0..count).map(|_| note(rng, seen)).collect();
    let request = Request {
        ops,
        policy: some_policy(rng, seen),
        upsert: rng.chance(200),
        coalesce: rng.chance(300),
    };
    Wish { request, counts: false }
}

fn some_policy(rng: &mut Rng, seen: Option<Position>) -> Option<Policy> {
    match rng.below(6) {
        0 => Some(Policy::Lww),
        // Without a base there is no telling what is in conflict.
        1 if seen.is_some() => Some(Policy::Reject),
        2 if seen.is_some() => Some(Policy::Merge),
        _ => None,
    }
}

fn note(rng: &mut Rng, seen: Option<Position>) -> Op {
    let kind = match rng.below(16) {
        0..=4 => OpKind::Set(fields(rng)),
        5 => OpKind::Merge(fields(rng)),
        6 => OpKind::Unset(vec![field(rng.pick(&FIELDS))]),
        7 => OpKind::Create(fields(rng)),
        8 => OpKind::Replace(fields(rng)),
        9 | 10 => OpKind::Delete,
        11 => OpKind::Inc {
            path: field("n"),
            by: Number::Int(1),
        },
        12 => OpKind::Max {
            path: field("n"),
            value: number(rng),
        },
        13 => OpKind::Add {
            path: field("list"),
            values: vec![number(rng)],
        },
        14 => OpKind::Now { path: field("at") },
        _ => OpKind::Check,
    };
    Op {
        doc: doc(rng.pick(&NOTES)),
        exists: match (&kind, rng.below(8)) {
            (OpKind::Create(_) | OpKind::Replace(_), _) => None,
            (_, 0) => Some(true),
            (_, 1) => Some(false),
            _ => None,
        },
        unchanged_since: seen.filter(|_| rng.chance(60)),
        kind,
    }
}

fn number(rng: &mut Rng) -> Value {
    Value::int(i64::try_from(rng.below(20)).unwrap_or(0))
}

fn fields(rng: &mut Rng) -> Fields {
    let one = |rng: &mut Rng| {
        let path = rng.pick(&FIELDS);
        let value = if path == "m" && rng.chance(700) {
            let (a, b) = (number(rng), number(rng));
            Value::map([("a", &a), ("b", &b)]).expect("two different keys")
        } else {
            number(rng)
        };
        (field(path), value)
    };
    let first = one(rng);
    let second = rng.chance(300).then(|| one(rng));
    let second = second.filter(|(path, _)| !path.overlaps(&first.0));
    Fields::new([first].into_iter().chain(second), &Limits::default()).expect("paths that do not overlap")
}
