//! JSON as people and files write it, to values and back.
//!
//! Typed values have the forms of the protocol's text (`docs/PROTOCOL.md`): `{"$bin": …}`, `{"$ts": …}`,
//! `{"$int": …}`, `{"$ext": …}`, and a real map whose only key begins with `$` doubles it. What comes from
//! files is not written with that in mind: a map with any other `$` key is taken for what it is, and keys
//! are brought to Unicode NFC.

use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value as Json};
use std::collections::BTreeMap;
use std::fmt;
use tidegate_protocol::json::{value_from_json, value_to_json};
use tidegate_protocol::{FieldPath, Value, tree};
use unicode_normalization::UnicodeNormalization;

/// JSON that holds no key twice.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Strict(pub Json);

impl<'de> Deserialize<'de> for Strict {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;
        impl<'de> Visitor<'de> for Any {
            type Value = Strict;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("JSON")
            }
            fn visit_unit<E>(self) -> Result<Strict, E> {
                Ok(Strict(Json::Null))
            }
            fn visit_bool<E>(self, b: bool) -> Result<Strict, E> {
                Ok(Strict(b.into()))
            }
            fn visit_i64<E>(self, n: i64) -> Result<Strict, E> {
                Ok(Strict(n.into()))
            }
            fn visit_u64<E>(self, n: u64) -> Result<Strict, E> {
                Ok(Strict(n.into()))
            }
            fn visit_f64<E>(self, x: f64) -> Result<Strict, E> {
                Ok(Strict(x.into()))
            }
            fn visit_str<E>(self, text: &str) -> Result<Strict, E> {
                Ok(Strict(text.into()))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Strict, A::Error> {
                let mut all = Vec::new();
                while let Some(Strict(item)) = items.next_element()? {
                    all.push(item);
                }
                Ok(Strict(all.into()))
            }
            fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Strict, A::Error> {
                let mut all = Map::new();
                while let Some(key) = entries.next_key::<String>()? {
                    // Names are in NFC; files from some systems are not.
                    let key = key.nfc().collect::<String>();
                    if all.contains_key(&key) {
                        return Err(A::Error::custom(format_args!("the key {key:?} occurs twice")));
                    }
                    let Strict(value) = entries.next_value()?;
                    all.insert(key, value);
                }
                Ok(Strict(all.into()))
            }
        }
        deserializer.deserialize_any(Any)
    }
}

/// What is wrong, without serde_json's line and column: those are of the piece that it was given.
pub(crate) fn without_place(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let place = format!(" at line {} column {}", error.line(), error.column());
    text.strip_suffix(&place).unwrap_or(&text).to_owned()
}

/// Refuses whole numbers beyond 63 bits in `text`, from which `json` was read: the reader has made
/// those beyond 64 bits into doubles, which are other numbers.
pub(crate) fn refuse_long_integers(json: &Json, text: &str) -> Result<(), String> {
    fn any_large(json: &Json) -> bool {
        match json {
            Json::Number(n) => n.as_i64().is_none() && n.as_f64().is_some_and(|x| x.abs() >= 9e18),
            Json::Array(items) => items.iter().any(any_large),
            Json::Object(map) => map.values().any(any_large),
            _ => false,
        }
    }
    if !any_large(json) {
        return Ok(());
    }
    let mut rest = text;
    while let Some(at) = rest.find(|c: char| c == '"' || c == '-' || c.is_ascii_digit()) {
        rest = &rest[at..];
        let end = if let Some(inside) = rest.strip_prefix('"') {
            let mut escaped = false;
            let close = inside.find(|c| {
                let closes = c == '"' && !escaped;
                escaped = c == '\\' && !escaped;
                closes
            });
            close.map_or(rest.len(), |at| at + 2)
        } else {
            let end = rest
                .find(|c: char| !(c.is_ascii_digit() || "+-.eE".contains(c)))
                .unwrap_or(rest.len());
            let number = &rest[..end];
            if number.bytes().all(|b| b == b'-' || b.is_ascii_digit()) && number.parse::<i64>().is_err() {
                return Err(format!(
                    "{number} is beyond 63 bits: write it as text, or as a decimal such as 1.5e20"
                ));
            }
            end
        };
        rest = &rest[end..];
    }
    Ok(())
}

/// Reads one value from JSON text.
pub(crate) fn parse_value(text: &str) -> Result<Value, String> {
    let Strict(json) = serde_json::from_str(text).map_err(|e| without_place(&e))?;
    refuse_long_integers(&json, text)?;
    to_value(json)
}

/// The value of a piece of JSON.
pub(crate) fn to_value(mut json: Json) -> Result<Value, String> {
    double_foreign(&mut json);
    value_from_json(&json).map_err(|e| e.to_string())
}

/// Doubles the `$` of every map that the text form would take for a typed value of a kind it does not know.
fn double_foreign(json: &mut Json) {
    match json {
        Json::Array(items) => items.iter_mut().for_each(double_foreign),
        Json::Object(map) => {
            map.values_mut().for_each(double_foreign);
            if map.len() == 1
                && let Some(key) = map
                    .keys()
                    .next()
                    .filter(|key| key.starts_with('$') && !key.starts_with("$$"))
                && !["$bin", "$ts", "$int", "$ext"].contains(&key.as_str())
            {
                let doubled = format!("${key}");
                *map = std::mem::take(map)
                    .into_iter()
                    .map(|(_, value)| (doubled.clone(), value))
                    .collect();
            }
        }
        _ => {}
    }
}

/// A document's fields as a JSON object, maps rebuilt.
pub(crate) fn from_leaves<'a>(leaves: impl IntoIterator<Item = (&'a FieldPath, &'a Value)>) -> Json {
    let document = tree::rebuild(leaves);
    // Field by field: the document itself is never one of the forms with a `$`.
    let fields = document.as_map().unwrap_or_default().into_iter();
    fields
        .map(|(key, value)| (key.to_owned(), value_to_json(&value)))
        .collect::<Map<_, _>>()
        .into()
}

/// Leaves as a JSON object from path to value, not rebuilt.
pub(crate) fn from_paths<'a>(leaves: impl IntoIterator<Item = (&'a FieldPath, &'a Value)>) -> Json {
    leaves
        .into_iter()
        .map(|(path, v)| (path.to_string(), value_to_json(v)))
        .collect::<Map<_, _>>()
        .into()
}

/// The fields of a document, one for each key of a JSON object.
pub(crate) fn to_fields(object: &Map<String, Json>) -> Result<BTreeMap<FieldPath, Value>, String> {
    let field = |(key, json): (&String, &Json)| {
        let path = FieldPath::segment(key).map_err(|e| format!("the key {key:?}: {e}"))?;
        let value = to_value(json.clone()).map_err(|e| format!("the field {key:?}: {e}"))?;
        Ok((path, value))
    };
    object.iter().map(field).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use tidegate_protocol::Timestamp;

    #[test]
    fn every_kind_of_value_comes_back_from_json_as_it_was() {
        let text = r#"{"n":null,"b":true,"i":-5,"f":1.0,"big":{"$int":"9007199254740993"},"s":"é","bin":{"$bin":"AQI="},
            "t":{"$ts":1500},"before":{"$ts":-1},"fine":{"$ts":[1,5]},"x":{"$ext":[7,"AA=="]},"a":[1,{"$$d":2}],
            "d":{"$$ts":3},"two":{"$ts":1,"b":2},"e":{}}"#;
        let value = parse_value(text).expect("valid");
        let again = value_to_json(&value);
        assert_eq!(again, serde_json::from_str::<Json>(text).unwrap());
        assert_eq!(to_value(again).expect("valid"), value);
        let entry = |key: &str| {
            let mut entries = value.as_map().unwrap().into_iter();
            entries.find(|(k, _)| *k == key).unwrap().1
        };
        assert_eq!(entry("fine"), Value::timestamp(Timestamp { secs: 1, nanos: 5 }));
        assert_eq!(
            entry("before"),
            Value::timestamp(Timestamp {
                secs: -1,
                nanos: 999_000_000
            })
        );
        assert_eq!(entry("big"), Value::int(9_007_199_254_740_993));
    }

    #[test]
    fn other_peoples_dollar_keys_are_kept_as_they_are() {
        let value = parse_value(r#"{"$oid":"5f"}"#).expect("valid");
        assert_eq!(value.as_map().unwrap()[0].0, "$oid");
        assert_eq!(value_to_json(&value), json!({"$$oid": "5f"}));
        let document = BTreeMap::from([(FieldPath::parse("$oid").unwrap(), Value::int(1))]);
        assert_eq!(from_leaves(&document), json!({"$oid": 1}));
    }

    #[test]
    fn numbers_are_exact_or_refused() {
        assert_eq!(parse_value("9223372036854775807"), Ok(Value::int(i64::MAX)));
        for bad in [
            "9223372036854775808",
            "-9223372036854775809",
            "[\"\\\"\", 100000000000000000000]",
            "1e999",
        ] {
            assert!(parse_value(bad).is_err(), "{bad}");
        }
        assert_eq!(parse_value("1e20"), Ok(Value::float(1e20).unwrap()));
        // The nearest double, not one beside it.
        assert_eq!(parse_value("-118.6671667"), Ok(Value::float(-118.6671667).unwrap()));
        assert_eq!(
            parse_value("122416294033786585.0"),
            Ok(Value::float(122_416_294_033_786_585.0).unwrap())
        );
    }

    #[test]
    fn keys_are_brought_to_nfc_and_may_not_repeat() {
        let value = parse_value("{\"e\u{301}\":1}").expect("valid");
        assert_eq!(value.as_map().unwrap()[0].0, "é");
        assert!(
            parse_value("{\"e\u{301}\":1,\"é\":2}")
                .expect_err("twice")
                .contains("twice")
        );
    }

    #[test]
    fn bad_tagged_values_say_what_they_must_hold() {
        for bad in [
            r#"{"$bin":"*"}"#,
            r#"{"$int":"x"}"#,
            r#"{"$ts":1.5}"#,
            r#"{"$ts":[1]}"#,
            r#"{"$ext":[32,""]}"#,
            r#"{"$bin":1}"#,
        ] {
            assert!(parse_value(bad).is_err(), "{bad}");
        }
    }
}
