//! Every value of msgpack-test-suite decodes right, or is refused for a stated reason.

#![allow(clippy::unwrap_used)] // a test may panic

use serde_json::Value as Json;
use std::path::Path;
use tidegate_protocol::{Code, Timestamp, Value, ValueRef, msgpack};

/// What the protocol refuses of the suite, and why.
const REFUSED: [(&str, &str); 2] = [
    (
        "9223372036854775808",
        "integers are signed, of 64 bits: Swift, Kotlin and SQL have no others in common",
    ),
    (
        "18446744073709551615",
        "integers are signed, of 64 bits: Swift, Kotlin and SQL have no others in common",
    ),
];

fn suite() -> Json {
    let path =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/data/msgpack-test-suite/dist/msgpack-test-suite.json");
    let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}; run `make data`", path.display()));
    serde_json::from_str(&text).unwrap()
}

fn bytes(hex: &str) -> Vec<u8> {
    hex.split('-')
        .filter(|s| !s.is_empty())
        .map(|byte| u8::from_str_radix(byte, 16).unwrap())
        .collect()
}

/// Whether a value is what an entry of the suite says. A number of the suite may be encoded as a double.
fn is(value: ValueRef<'_>, entry: &Json) -> bool {
    let get = |kind: &str| entry.get(kind);
    match value {
        ValueRef::Nil => get("nil").is_some(),
        ValueRef::Bool(b) => get("bool").and_then(Json::as_bool) == Some(b),
        ValueRef::Int(n) => {
            let wide = get("bignum").and_then(Json::as_str).map(|text| text.parse().ok());
            wide.unwrap_or_else(|| get("number").and_then(Json::as_i64)) == Some(n)
        }
        ValueRef::Float(x) => get("number").and_then(Json::as_f64) == Some(x),
        ValueRef::Str(text) => get("string").and_then(Json::as_str) == Some(text),
        ValueRef::Bin(body) => get("binary").and_then(Json::as_str).map(bytes).as_deref() == Some(body),
        ValueRef::Timestamp(Timestamp { secs, nanos }) => get("timestamp") == Some(&serde_json::json!([secs, nanos])),
        ValueRef::Ext(kind, body) => get("ext").is_some_and(|pair| {
            pair[0].as_u64() == Some(u64::from(kind)) && pair[1].as_str().map(bytes).as_deref() == Some(body)
        }),
        ValueRef::Array(_) | ValueRef::Map(_) => {
            let kind = if matches!(value, ValueRef::Array(_)) {
                "array"
            } else {
                "map"
            };
            get(kind).is_some_and(|wanted| same(value, wanted))
        }
    }
}

fn same(value: ValueRef<'_>, json: &Json) -> bool {
    match (value, json) {
        (ValueRef::Int(n), Json::Number(m)) => m.as_i64() == Some(n),
        (ValueRef::Str(text), Json::String(other)) => text == other,
        (ValueRef::Array(items), Json::Array(others)) => {
            items.len() == others.len() && items.zip(others).all(|((item, _), other)| same(item, other))
        }
        (ValueRef::Map(entries), Json::Object(others)) => {
            entries.len() == others.len()
                && entries
                    .into_iter()
                    .all(|(key, item, _)| others.get(key).is_some_and(|other| same(item, other)))
        }
        _ => false,
    }
}

#[test]
fn every_value_of_msgpack_test_suite_decodes_right_or_is_refused_for_a_stated_reason() {
    let (mut right, mut refused) = (0, 0);
    for (group, entries) in suite().as_object().unwrap() {
        for entry in entries.as_array().unwrap() {
            let spellings: Vec<_> = entry["msgpack"]
                .as_array()
                .unwrap()
                .iter()
                .map(|hex| hex.as_str().unwrap())
                .collect();
            let reason = REFUSED
                .iter()
                .find(|(bignum, _)| entry.get("bignum").and_then(Json::as_str) == Some(bignum));
            let mut canonical: Vec<Value> = Vec::new();
            for hex in &spellings {
                match (msgpack::value(&bytes(hex)), reason) {
                    (Ok(value), None) => {
                        assert!(is(value.get(), entry), "{group}: {hex} is {value:?}, not {entry}");
                        assert!(value.as_bytes().len() <= bytes(hex).len().max(9), "{group}: {hex}");
                        canonical.push(value);
                        right += 1;
                    }
                    (Err(e), Some((_, why))) => {
                        assert_eq!(e.code, Code::Invalid, "{why}");
                        refused += 1;
                    }
                    (result, reason) => panic!("{group}: {hex} gives {result:?}, reason to refuse: {reason:?}"),
                }
            }
            canonical.sort_by(|a, b| a.as_bytes().cmp(b.as_bytes()));
            canonical.dedup();
            // A whole number has two values, the integer and the double; all else has one form.
            assert!(
                canonical.len() <= 2 && (canonical.len() < 2 || entry.get("number").is_some()),
                "{canonical:?}"
            );
        }
    }
    assert!(right >= 200, "{right} spellings read");
    assert_eq!(refused, REFUSED.len());
}
