//! The text form: JSON, by way of MessagePack.
//!
//! Text is transcoded object by object, keys in their order, so that every rule lives in one decoder.
//! What JSON has no word for is a map with one key: `{"$bin": base64}`, `{"$ts": ms or [s, ns]}`,
//! `{"$int": "…"}` beyond ±2^53, `{"$ext": [kind, base64]}`. A real map whose only key begins with `$`
//! gets one more `$`. A number written with a fraction or an exponent is a double, `1.0` too.

mod read;
mod write;

pub use read::to_msgpack;
pub use write::from_msgpack;

pub(crate) use read::transcode;

use crate::error::Invalid;
use crate::name::FieldPath;
use crate::value::Value;
use crate::{msgpack, tree};

/// The value of a JSON value, `$` forms included.
pub fn value_from_json(json: &serde_json::Value) -> Result<Value, Invalid> {
    msgpack::value(&read::of_json(json)?)
}

/// The JSON value of a value, with `$` forms for what JSON has no word for.
pub fn value_to_json(value: &Value) -> serde_json::Value {
    write::to_json(value.as_bytes())
}

/// The JSON value of a document, its maps rebuilt from its leaves.
pub fn doc_to_json<'a>(leaves: impl IntoIterator<Item = (&'a FieldPath, &'a Value)>) -> serde_json::Value {
    value_to_json(&tree::rebuild(leaves))
}
