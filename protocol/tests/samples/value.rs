use super::{array, kinds, map};
use tidegate_protocol::*;

kinds!(kind, KINDS, ValueRef<'_>,
    ValueRef::Nil => "nil",
    ValueRef::Bool(_) => "bool",
    ValueRef::Int(_) => "int",
    ValueRef::Float(_) => "float",
    ValueRef::Str(_) => "str",
    ValueRef::Bin(_) => "bin",
    ValueRef::Timestamp(_) => "timestamp",
    ValueRef::Ext(..) => "ext",
    ValueRef::Array(_) => "array",
    ValueRef::Map(_) => "map",
);

/// A value, and other spellings of it that a decoder reads as the same value.
pub struct Sample {
    pub name: &'static str,
    pub value: Value,
    pub spellings: &'static [&'static str],
}

pub fn all() -> Vec<Sample> {
    let mut all = Vec::new();
    let mut add = |name, value, spellings| all.push(Sample { name, value, spellings });
    let ts = |secs, nanos| Value::timestamp(Timestamp { secs, nanos });
    let float = |x| Value::float(x).unwrap();
    add("nil", Value::nil(), &[]);
    add("false", Value::bool(false), &[]);
    add("true", Value::bool(true), &[]);
    add(
        "zero",
        Value::int(0),
        &["cc00", "cf0000000000000000", "d000", "d30000000000000000"],
    );
    add("the largest fixint", Value::int(127), &["cc7f", "d07f"]);
    add("the smallest 8-bit integer", Value::int(128), &["cd0080", "d10080"]);
    add("the largest 8-bit integer", Value::int(255), &["cd00ff"]);
    add("the smallest 16-bit integer", Value::int(256), &["ce00000100"]);
    add(
        "the smallest 32-bit integer",
        Value::int(65_536),
        &["cf0000000000010000"],
    );
    add(
        "the smallest 64-bit integer",
        Value::int(1 << 32),
        &["d30000000100000000"],
    );
    add("minus one", Value::int(-1), &["d0ff", "d1ffff"]);
    add("the smallest negative fixint", Value::int(-32), &["d0e0"]);
    add("a negative 8-bit integer", Value::int(-33), &["d1ffdf"]);
    add("a negative 16-bit integer", Value::int(-129), &["d2ffffff7f"]);
    add(
        "a negative 32-bit integer",
        Value::int(-32_769),
        &["d3ffffffffffff7fff"],
    );
    add(
        "the largest integer that JSON shows as a number",
        Value::int(1 << 53),
        &[],
    );
    add(
        "the smallest integer that JSON shows as text",
        Value::int((1 << 53) + 1),
        &[],
    );
    add("the smallest integer", Value::int(i64::MIN), &[]);
    add("the largest integer", Value::int(i64::MAX), &["d37fffffffffffffff"]);
    add("a whole double", float(1.0), &["ca3f800000"]);
    add("a double", float(0.1), &[]);
    add("a negative zero", float(-0.0), &["ca80000000"]);
    add("the largest double", float(f64::MAX), &[]);
    add("the smallest double above zero", float(5e-324), &[]);
    add("no text", Value::str(""), &["d900", "da0000", "db00000000"]);
    add("text", Value::str("héllo \"wörld\"\n\u{1f30a}"), &[]);
    add("text that is not in NFC", Value::str("e\u{301}"), &["d90365cc81"]);
    add("text of 32 bytes", Value::str(&"x".repeat(32)), &[]);
    add("text of 256 bytes", Value::str(&"x".repeat(256)), &[]);
    add("no bytes", Value::bin(&[]), &["c50000"]);
    add(
        "bytes",
        Value::bin(&[0, 1, 254, 255]),
        &["c500040001feff", "c6000000040001feff"],
    );
    add("a timestamp of 4 bytes", ts(1_700_000_000, 0), &[]);
    add(
        "the epoch",
        ts(0, 0),
        &["d7ff0000000000000000", "c70cff000000000000000000000000"],
    );
    add("a timestamp of whole ms", ts(1_700_000_000, 123_000_000), &[]);
    add("a timestamp of ns", ts(1_700_000_000, 123_456_789), &[]);
    add("a timestamp before 1970", ts(-1, 999_000_000), &[]);
    add("a timestamp beyond 34 bits", ts(1 << 34, 1), &[]);
    add("the last timestamp", ts(i64::MAX, 999_999_999), &[]);
    add("an empty ext", Value::ext(0, b"").unwrap(), &["c8000000"]);
    add("an ext of 1 byte", Value::ext(1, b"a").unwrap(), &["c7010161"]);
    add(
        "an ext of 3 bytes",
        Value::ext(31, b"abc").unwrap(),
        &["c800031f616263"],
    );
    add("an ext of 16 bytes", Value::ext(7, &[7; 16]).unwrap(), &[]);
    add("an empty array", array(&[]), &["dc0000", "dd00000000"]);
    add(
        "an array",
        array(&[
            Value::nil(),
            Value::int(1),
            float(1.0),
            Value::str("1"),
            array(&[Value::bool(false)]),
        ]),
        &["dc0005c0cc01ca3f800000d9013191c2"],
    );
    add("an array of 16", array(&vec![Value::int(0); 16]), &[]);
    add("an empty map", Value::empty_map(), &["de0000", "df00000000"]);
    add(
        "an array of maps: keys in the order of their bytes",
        array(&[map([
            ("b", Value::int(1)),
            ("", Value::nil()),
            ("é", map([("x", Value::empty_map())])),
        ])]),
        &["9183a16201a0c0a2c3a981a17880", "dc0001de0003a2c3a981a17880a16201a0c0"],
    );
    add(
        "a map whose only key is a JSON form",
        array(&[map([("$bin", Value::str("AA=="))])]),
        &[],
    );
    add(
        "a map whose only key begins with two dollars",
        array(&[map([("$$", Value::nil())])]),
        &[],
    );
    add(
        "a map with a dollar key and another",
        array(&[map([("$ts", Value::int(1)), ("a", Value::nil())])]),
        &[],
    );
    all
}
