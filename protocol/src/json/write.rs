//! MessagePack to text.

use crate::error::Invalid;
use crate::msgpack::scan::{Token, timestamp, token, utf8};
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::ser::{Error, Serialize, SerializeMap, SerializeSeq, Serializer};
use std::cell::Cell;

/// Deeper than any message; bounds the recursion.
const DEPTH: usize = 128;

/// Transcodes MessagePack that this crate wrote, or accepted, to JSON text. Anything else may come out as `null`.
pub fn from_msgpack(bytes: &[u8]) -> String {
    let at = Cell::new(0);
    serde_json::to_string(&Node {
        bytes,
        at: &at,
        depth: 0,
    })
    .unwrap_or_else(|_| "null".to_owned())
}

pub(super) fn to_json(bytes: &[u8]) -> serde_json::Value {
    let at = Cell::new(0);
    serde_json::to_value(Node {
        bytes,
        at: &at,
        depth: 0,
    })
    .unwrap_or_default()
}

/// The object at `at`; moves `at` behind it.
#[derive(Clone, Copy)]
struct Node<'a> {
    bytes: &'a [u8],
    at: &'a Cell<usize>,
    depth: usize,
}

impl<'a> Node<'a> {
    fn next<E: Error>(self) -> Result<Token<'a>, E> {
        let (token, next, _) = token(self.bytes, self.at.get()).map_err(custom)?;
        self.at.set(next);
        Ok(token)
    }

    fn inside(self) -> Self {
        Self {
            depth: self.depth + 1,
            ..self
        }
    }
}

#[allow(clippy::needless_pass_by_value)] // as map_err wants it
fn custom<E: Error>(invalid: Invalid) -> E {
    E::custom(invalid)
}

impl Serialize for Node<'_> {
    fn serialize<S: Serializer>(&self, json: S) -> Result<S::Ok, S::Error> {
        if self.depth > DEPTH {
            return Err(S::Error::custom("too deep"));
        }
        match self.next()? {
            Token::Nil => json.serialize_unit(),
            Token::Bool(b) => json.serialize_bool(b),
            Token::Int(n) => Int(n).serialize(json),
            Token::Big(n) => dollar(json, "$int", &n.to_string()),
            Token::Float(x) => json.serialize_f64(x),
            Token::Str(text) => json.serialize_str(utf8(text, "string").map_err(custom)?),
            Token::Bin(body) => dollar(json, "$bin", &BASE64.encode(body)),
            Token::Ext(-1, body) => {
                let at = timestamp(body).map_err(custom)?;
                let ms = at
                    .secs
                    .checked_mul(1_000)
                    .and_then(|ms| ms.checked_add(i64::from(at.nanos / 1_000_000)));
                match ms {
                    Some(ms) if at.nanos % 1_000_000 == 0 && is_plain(ms) => dollar(json, "$ts", &ms),
                    _ => dollar(json, "$ts", &(Int(at.secs), at.nanos)),
                }
            }
            Token::Ext(kind, body) => dollar(json, "$ext", &(kind, BASE64.encode(body))),
            Token::Array(n) => {
                let mut seq = json.serialize_seq(Some(n))?;
                for _ in 0..n {
                    seq.serialize_element(&self.inside())?;
                }
                seq.end()
            }
            Token::Map(n) => {
                let mut map = json.serialize_map(Some(n))?;
                for _ in 0..n {
                    let Token::Str(key) = self.next()? else {
                        return Err(S::Error::custom("a key is no string"));
                    };
                    let key = utf8(key, "key").map_err(custom)?;
                    if n == 1 && key.starts_with('$') {
                        map.serialize_entry(&format!("${key}"), &self.inside())?;
                    } else {
                        map.serialize_entry(key, &self.inside())?;
                    }
                }
                map.end()
            }
        }
    }
}

/// Whether every reader of JSON keeps the integer as it is: one that reads doubles does up to 2^53.
fn is_plain(n: i64) -> bool {
    n.unsigned_abs() <= 1 << 53
}

struct Int(i64);

impl Serialize for Int {
    fn serialize<S: Serializer>(&self, json: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            n if is_plain(n) => json.serialize_i64(n),
            n => dollar(json, "$int", &n.to_string()),
        }
    }
}

fn dollar<S: Serializer>(json: S, key: &str, value: &impl Serialize) -> Result<S::Ok, S::Error> {
    let mut map = json.serialize_map(Some(1))?;
    map.serialize_entry(key, value)?;
    map.end()
}
