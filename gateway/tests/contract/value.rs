//! Values as the suite thinks of them, and randomness with a seed.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use tidegate_protocol::{Timestamp, Value, ValueRef};

/// A leaf.
#[derive(Clone, PartialEq, Debug)]
pub(crate) enum V {
    Nil,
    Bool(bool),
    Int(i64),
    Float(f64),
    Str(String),
    Array(Vec<V>),
    /// ms since 1970.
    Time(u64),
    EmptyMap,
}

/// What is written at a path: a leaf, or a map with entries.
#[derive(Clone, PartialEq, Debug)]
pub(crate) enum Input {
    Leaf(V),
    Map(BTreeMap<String, Input>),
}

impl V {
    pub(crate) fn wire(&self) -> Value {
        match self {
            Self::Nil => Value::nil(),
            Self::Bool(b) => Value::bool(*b),
            Self::Int(n) => Value::int(*n),
            Self::Float(x) => Value::float(*x).expect("finite"),
            Self::Str(text) => Value::str(text),
            Self::Array(items) => Value::array(items.iter().map(Self::wire).collect::<Vec<_>>().iter()),
            Self::Time(ms) => Value::timestamp(Timestamp::from_ms(*ms)),
            Self::EmptyMap => Value::empty_map(),
        }
    }

    pub(crate) fn of(value: &Value) -> Self {
        match value.get() {
            ValueRef::Nil => Self::Nil,
            ValueRef::Bool(b) => Self::Bool(b),
            ValueRef::Int(n) => Self::Int(n),
            ValueRef::Float(x) => Self::Float(x),
            ValueRef::Str(text) => Self::Str(text.to_owned()),
            ValueRef::Array(_) => Self::Array(value.as_array().expect("an array").iter().map(Self::of).collect()),
            ValueRef::Timestamp(t) => Self::Time(t.secs.cast_unsigned() * 1_000 + u64::from(t.nanos) / 1_000_000),
            ValueRef::Map(entries) if entries.is_empty() => Self::EmptyMap,
            other => panic!("the suite writes no {other:?}"),
        }
    }

    fn as_float(&self) -> Option<f64> {
        match self {
            #[allow(clippy::cast_precision_loss, reason = "the suite's integers are small")]
            Self::Int(n) => Some(*n as f64),
            Self::Float(x) => Some(*x),
            _ => None,
        }
    }

    /// `self` plus a number; anything but a number counts as 0.
    pub(crate) fn plus(this: Option<&Self>, by: &Self) -> Self {
        match (this, by) {
            (Some(Self::Int(a)), Self::Int(b)) => Self::Int(a.saturating_add(*b)),
            (Some(old), by) if old.as_float().is_some() => {
                Self::Float(old.as_float().unwrap_or(0.0) + by.as_float().unwrap_or(0.0))
            }
            (_, by) => by.clone(),
        }
    }

    /// The order of two numbers or two times.
    pub(crate) fn order(&self, other: &Self) -> Option<Ordering> {
        match (self, other) {
            (Self::Time(a), Self::Time(b)) => Some(a.cmp(b)),
            (a, b) => a.as_float()?.partial_cmp(&b.as_float()?),
        }
    }
}

impl Input {
    pub(crate) fn wire(&self) -> Value {
        match self {
            Self::Leaf(v) => v.wire(),
            Self::Map(entries) => {
                let entries: Vec<_> = entries
                    .iter()
                    .map(|(key, input)| (key.as_str(), input.wire()))
                    .collect();
                Value::map(entries.iter().map(|(key, value)| (*key, value))).expect("valid keys")
            }
        }
    }
}

/// splitmix64: the suite's only source of chance, so that a seed replays a run.
pub(crate) struct Dice(pub(crate) u64);

impl Dice {
    pub(crate) fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Below `n`.
    pub(crate) fn below(&mut self, n: usize) -> usize {
        usize::try_from(self.bits() % n.max(1) as u64).expect("below a usize")
    }

    /// From `low` to `high`, both included.
    pub(crate) fn between(&mut self, low: usize, high: usize) -> usize {
        low + self.below(high - low + 1)
    }

    pub(crate) fn percent(&mut self, n: usize) -> bool {
        self.below(100) < n
    }

    pub(crate) fn pick<'a, T>(&mut self, list: &'a [T]) -> &'a T {
        &list[self.below(list.len())]
    }
}
