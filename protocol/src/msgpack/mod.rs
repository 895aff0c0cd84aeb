//! The binary form: MessagePack.
//!
//! Decoders never panic, hold to the limits while they read, and take memory within a small constant
//! times the input. Encoders write the shortest form of everything, in the order of the structs' fields.

mod change;
mod client;
mod docs;
mod op;
mod read;
pub(crate) mod scan;
mod server;
#[cfg(test)]
mod tests;
mod write;
mod z;

pub use change::{
    change_prefix, decode_doc_changes, decode_payload, encode_body, encode_doc_changes, payload, payload_seq,
    payload_time,
};
pub use client::{decode_client, encode_client};
pub use docs::{DocChanges, page_parts};
pub use op::{decode_ops, encode_ops};
pub use server::{decode_server, encode_server, encode_server_to};

pub(crate) use client::refused;
pub(crate) use z::{decode_z, encode_z};

use crate::error::Invalid;
use crate::limits::DEPTH_MAX;
use crate::message::{At, WriteHead};
use crate::value::Value;
use scan::{Elements, Scan};

/// A client's message that was refused.
#[derive(Clone, PartialEq, Debug)]
pub struct DecodeError {
    /// Why. `malformed` means that the bytes are no message at all, and ends the connection, as `oversize` does.
    pub error: Invalid,
    /// Set when the envelope of a `write` is in order and something else in it is refused: the refusal
    /// can be a `reject`, and can consume the mid.
    pub write: Option<Box<WriteHead>>,
    /// Where in the ops of that `write`.
    pub at: Option<At>,
    /// The `id` of a refused `sub`, `unsub` or `get`, where it is known.
    pub re: Option<u64>,
}

impl DecodeError {
    /// Whether the connection ends: the bytes are no message of the negotiated form, or one that is not looked into.
    pub fn closes(&self) -> bool {
        self.error.code.row().close.is_some()
    }
}

/// One of which nothing more can be said.
impl From<Invalid> for DecodeError {
    fn from(error: Invalid) -> Self {
        Self {
            error,
            write: None,
            at: None,
            re: None,
        }
    }
}

impl std::fmt::Display for DecodeError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.error.fmt(f)
    }
}

impl std::error::Error for DecodeError {}

/// Reads exactly one value of any origin into canonical form.
pub fn value(bytes: &[u8]) -> Result<Value, Invalid> {
    let mut elements = Elements::new(usize::MAX);
    let (value, end) = Scan {
        elements: &mut elements,
        depth: DEPTH_MAX,
    }
    .canonical(bytes, 0)?;
    match bytes.len() - end {
        0 => Ok(Value::from_scan(value)),
        n => Err(Invalid::malformed(&format!("{n} bytes follow the value"))),
    }
}
