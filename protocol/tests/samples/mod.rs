//! One sample at least of every message, op, value and shape of a document: what the vectors pin.
//!
//! The `kinds!` lists fail to build when a variant is added, and the tests fail when it has no sample.

#![allow(dead_code, missing_docs, unreachable_pub)] // each test crate uses its part

pub mod client;
pub mod invalid;
pub mod server;
pub mod value;
pub mod z;

use tidegate_protocol::*;

/// A function that names the variant of a value, by an exhaustive match, and the list of all the names.
macro_rules! kinds {
    ($function:ident, $all:ident, $type:ty, $($pattern:pat => $name:literal),* $(,)?) => {
        pub fn $function(value: &$type) -> &'static str {
            match value {
                $($pattern => $name,)*
            }
        }
        pub const $all: &[&str] = &[$($name),*];
    };
}
pub(crate) use kinds;

pub fn space() -> SpaceId {
    SpaceId::parse("list:42").unwrap()
}

pub fn doc(path: &str) -> DocPath {
    DocPath::parse(path).unwrap()
}

pub fn field(path: &str) -> FieldPath {
    FieldPath::parse(path).unwrap()
}

pub fn seq(n: u64) -> Seq {
    Seq::new(n).unwrap()
}

pub fn mid(n: u64) -> Mid {
    Mid::new(n).unwrap()
}

/// A position in an epoch that takes all 64 bits.
pub fn at(n: u64) -> Position {
    Position::new(Epoch(0xf1e2_d3c4_b5a6_9788), seq(n))
}

pub fn map<'a>(entries: impl IntoIterator<Item = (&'a str, Value)>) -> Value {
    let entries: Vec<(&str, Value)> = entries.into_iter().collect();
    Value::map(entries.iter().map(|(key, value)| (*key, value))).unwrap()
}

pub fn array(items: &[Value]) -> Value {
    Value::array(items.iter())
}
