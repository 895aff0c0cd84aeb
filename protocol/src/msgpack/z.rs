//! The envelope of a compressed message, the same in both directions.

use super::change::TRUSTED;
use super::read::{Reader, TOP, required};
use super::write::Map;
use crate::error::Invalid;

/// `size` and `raw` of a `z`; `None` if the message is another one, or none at all.
pub(crate) fn decode_z(bytes: &[u8]) -> Result<Option<(u64, &[u8])>, Invalid> {
    let mut r = Reader::new(bytes, &TRUSTED);
    // Most messages are told from it by their first byte.
    if !matches!(bytes.first(), Some(0x80..=0x8f | 0xde | 0xdf)) {
        return Ok(None);
    }
    let Ok((n, "z")) = r.head() else { return Ok(None) };
    let (mut size, mut raw) = (None, None);
    let read = r.entries(TOP, n, Some("t"), |r, key| {
        match key {
            "size" => size = Some(r.u64("z.size")?),
            "raw" => raw = Some(r.binary("z.raw")?),
            _ => return Ok(false),
        }
        Ok(true)
    });
    let found = read.and_then(|()| {
        r.end()?;
        Ok((required(size, "z", "size")?, required(raw, "z", "raw")?))
    });
    // What is in it cannot be had: there is no message to refuse.
    found.map(Some).map_err(|e| Invalid::malformed(&e.message))
}

/// A `z` that holds a message of `size` bytes.
pub(crate) fn encode_z(size: usize, raw: &[u8]) -> Vec<u8> {
    // The head, three keys, the type, a number and a length.
    let mut out = Vec::with_capacity(raw.len() + 32);
    let mut map = Map::message(&mut out, "z");
    map.uint("size", size as u64);
    map.bin("raw", raw);
    out
}
