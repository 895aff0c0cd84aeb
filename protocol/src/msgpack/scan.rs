//! The scanner: one pass over bytes of any origin that says where a value ends and whether it is
//! already canonical. Only a value that is not gets rebuilt.

use crate::error::{Code, Invalid};
use crate::name::is_nfc;
use crate::value::{Timestamp, write};
use std::borrow::Cow;

/// One MessagePack object, or the head of an array or map.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Token<'a> {
    Nil,
    Bool(bool),
    Int(i64),
    /// An integer of 2^63 or more.
    Big(u64),
    Float(f64),
    /// Text, not yet known to be UTF-8.
    Str(&'a [u8]),
    Bin(&'a [u8]),
    Ext(i8, &'a [u8]),
    Array(usize),
    Map(usize),
}

impl Token<'_> {
    /// What it is, for an error.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::Nil => "nil",
            Self::Bool(_) => "a boolean",
            Self::Int(_) | Self::Big(_) => "an integer",
            Self::Float(_) => "a float",
            Self::Str(_) => "a string",
            Self::Bin(_) => "binary",
            Self::Ext(..) => "an extension value",
            Self::Array(_) => "an array",
            Self::Map(_) => "a map",
        }
    }
}

#[cold]
fn ends_early(bytes: &[u8]) -> Invalid {
    Invalid::malformed(&format!("MessagePack ends early, after {} bytes", bytes.len()))
}

#[inline]
fn be<const N: usize>(bytes: &[u8], at: usize) -> Result<[u8; N], Invalid> {
    let found = bytes.get(at..).and_then(|rest| rest.first_chunk::<N>());
    found.copied().ok_or_else(|| ends_early(bytes))
}

#[inline]
fn part(bytes: &[u8], at: usize, len: usize) -> Result<&[u8], Invalid> {
    bytes
        .get(at..)
        .and_then(|rest| rest.get(..len))
        .ok_or_else(|| ends_early(bytes))
}

/// The short string at `at`, if there is one, and where it ends: most of what is in a message.
#[inline]
pub(crate) fn short_text(bytes: &[u8], at: usize) -> Option<(&[u8], usize)> {
    let first = *bytes.get(at)?;
    if first & 0xe0 != 0xa0 {
        return None;
    }
    let end = at + 1 + usize::from(first & 0x1f);
    Some((bytes.get(at + 1..end)?, end))
}

/// The object at `at`, where it ends (for an array or map: its head), and whether it is in its shortest form.
#[inline]
pub(crate) fn token(bytes: &[u8], at: usize) -> Result<(Token<'_>, usize, bool), Invalid> {
    let len8 = |at| be::<1>(bytes, at).map(|[n]| usize::from(n));
    let len16 = |at| be(bytes, at).map(|n| usize::from(u16::from_be_bytes(n)));
    let len32 = |at| be(bytes, at).map(|n| u32::from_be_bytes(n) as usize);
    let text = |at, len, shortest| Ok((Token::Str(part(bytes, at, len)?), at + len, shortest));
    let bin = |at, len, shortest| Ok((Token::Bin(part(bytes, at, len)?), at + len, shortest));
    let ext = |at, len, shortest| {
        let [kind] = be::<1>(bytes, at)?;
        let body = part(bytes, at + 1, len)?;
        let shortest = shortest && (kind.cast_signed() != -1 || is_shortest_timestamp(body));
        Ok((Token::Ext(kind.cast_signed(), body), at + 1 + len, shortest))
    };
    // An element takes a byte at least: a length that cannot be true is refused before anything is reserved for it.
    let items = |at: usize, len: usize, shortest| match len <= bytes.len() - at {
        true => Ok((Token::Array(len), at, shortest)),
        false => Err(Invalid::malformed(&format!(
            "an array of {len} elements in {} bytes",
            bytes.len() - at
        ))),
    };
    let entries = |at: usize, len: usize, shortest| match len <= (bytes.len() - at) / 2 {
        true => Ok((Token::Map(len), at, shortest)),
        false => Err(Invalid::malformed(&format!(
            "a map of {len} entries in {} bytes",
            bytes.len() - at
        ))),
    };
    let int = |n: i64, next, shortest| Ok((Token::Int(n), next, shortest));
    let [first] = be::<1>(bytes, at)?;
    let at = at + 1;
    match first {
        n @ 0x00..=0x7f => int(i64::from(n), at, true),
        n @ 0x80..=0x8f => entries(at, usize::from(n & 0x0f), true),
        n @ 0x90..=0x9f => items(at, usize::from(n & 0x0f), true),
        n @ 0xa0..=0xbf => text(at, usize::from(n & 0x1f), true),
        0xc0 => Ok((Token::Nil, at, true)),
        0xc1 => Err(Invalid::malformed("0xc1 is no MessagePack")),
        0xc2 => Ok((Token::Bool(false), at, true)),
        0xc3 => Ok((Token::Bool(true), at, true)),
        0xc4 => len8(at).and_then(|n| bin(at + 1, n, true)),
        0xc5 => len16(at).and_then(|n| bin(at + 2, n, n > 0xff)),
        0xc6 => len32(at).and_then(|n| bin(at + 4, n, n > 0xffff)),
        0xc7 => len8(at).and_then(|n| ext(at + 1, n, !matches!(n, 1 | 2 | 4 | 8 | 16))),
        0xc8 => len16(at).and_then(|n| ext(at + 2, n, n > 0xff)),
        0xc9 => len32(at).and_then(|n| ext(at + 4, n, n > 0xffff)),
        0xca => be(bytes, at).map(|n| (Token::Float(f64::from(f32::from_be_bytes(n))), at + 4, false)),
        0xcb => be(bytes, at).map(|n| (Token::Float(f64::from_be_bytes(n)), at + 8, true)),
        0xcc => be::<1>(bytes, at).and_then(|[n]| int(i64::from(n), at + 1, n > 0x7f)),
        0xcd => be(bytes, at)
            .map(u16::from_be_bytes)
            .and_then(|n| int(i64::from(n), at + 2, n > 0xff)),
        0xce => be(bytes, at)
            .map(u32::from_be_bytes)
            .and_then(|n| int(i64::from(n), at + 4, n > 0xffff)),
        0xcf => be(bytes, at)
            .map(u64::from_be_bytes)
            .and_then(|n| match i64::try_from(n) {
                Ok(small) => int(small, at + 8, n > 0xffff_ffff),
                Err(_) => Ok((Token::Big(n), at + 8, true)),
            }),
        0xd0 => be(bytes, at)
            .map(i8::from_be_bytes)
            .and_then(|n| int(i64::from(n), at + 1, n < -32)),
        0xd1 => be(bytes, at)
            .map(i16::from_be_bytes)
            .and_then(|n| int(i64::from(n), at + 2, n < i16::from(i8::MIN))),
        0xd2 => be(bytes, at)
            .map(i32::from_be_bytes)
            .and_then(|n| int(i64::from(n), at + 4, n < i32::from(i16::MIN))),
        0xd3 => be(bytes, at)
            .map(i64::from_be_bytes)
            .and_then(|n| int(n, at + 8, n < i64::from(i32::MIN))),
        n @ 0xd4..=0xd8 => ext(at, 1 << (n - 0xd4), true),
        0xd9 => len8(at).and_then(|n| text(at + 1, n, n > 31)),
        0xda => len16(at).and_then(|n| text(at + 2, n, n > 0xff)),
        0xdb => len32(at).and_then(|n| text(at + 4, n, n > 0xffff)),
        0xdc => len16(at).and_then(|n| items(at + 2, n, n > 15)),
        0xdd => len32(at).and_then(|n| items(at + 4, n, n > 0xffff)),
        0xde => len16(at).and_then(|n| entries(at + 2, n, n > 15)),
        0xdf => len32(at).and_then(|n| entries(at + 4, n, n > 0xffff)),
        n @ 0xe0..=0xff => int(i64::from(n.cast_signed()), at, true),
    }
}

/// Reads the body of an ext −1.
pub(crate) fn timestamp(body: &[u8]) -> Result<Timestamp, Invalid> {
    let at = match *body {
        [a, b, c, d] => Timestamp {
            secs: i64::from(u32::from_be_bytes([a, b, c, d])),
            nanos: 0,
        },
        [a, b, c, d, e, f, g, h] => {
            let both = u64::from_be_bytes([a, b, c, d, e, f, g, h]);
            Timestamp {
                secs: (both & ((1 << 34) - 1)).cast_signed(),
                nanos: u32::try_from(both >> 34).expect("30 bits"),
            }
        }
        [a, b, c, d, ref secs @ ..] if secs.len() == 8 => Timestamp {
            secs: i64::from_be_bytes(secs.try_into().expect("8 bytes")),
            nanos: u32::from_be_bytes([a, b, c, d]),
        },
        _ => {
            return Err(Invalid::new(
                "timestamp",
                &format!("must be 4, 8 or 12 bytes, is {}", body.len()),
            ));
        }
    };
    if at.nanos >= 1_000_000_000 {
        return Err(Invalid::new(
            "timestamp",
            &format!("must have less than 10^9 ns, has {}", at.nanos),
        ));
    }
    Ok(at)
}

/// Whether a timestamp of these bytes could not be shorter. Bytes that are none are refused elsewhere.
fn is_shortest_timestamp(body: &[u8]) -> bool {
    timestamp(body).is_ok_and(|at| {
        let least = match (u32::try_from(at.secs), u64::try_from(at.secs)) {
            (Ok(_), _) if at.nanos == 0 => 4,
            (_, Ok(secs)) if secs < 1 << 34 => 8,
            _ => 12,
        };
        body.len() == least
    })
}

/// UTF-8, or an error that names `what`.
#[inline]
pub(crate) fn utf8<'a>(bytes: &'a [u8], what: &str) -> Result<&'a str, Invalid> {
    std::str::from_utf8(bytes).map_err(|e| not_utf8(what, e.valid_up_to()))
}

#[cold]
fn not_utf8(what: &str, at: usize) -> Invalid {
    Invalid::new(what, &format!("is not UTF-8: byte {at} of it is wrong"))
}

/// As `<[u8]>::is_ascii`, for short text: no loop over words to set up.
#[inline]
fn is_ascii(text: &[u8]) -> bool {
    text.iter().fold(0, |all, byte| all | byte) < 0x80
}

/// How many more MessagePack objects a message may hold.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Elements {
    left: usize,
    limit: usize,
}

impl Elements {
    pub(crate) fn new(limit: usize) -> Self {
        Self { left: limit, limit }
    }

    #[inline]
    pub(crate) fn take(&mut self) -> Result<(), Invalid> {
        match self.left.checked_sub(1) {
            Some(left) => {
                self.left = left;
                Ok(())
            }
            None => Err(over("elements of a message", self.limit)),
        }
    }
}

/// Over a limit, at a point from which how far is not known.
#[cold]
pub(crate) fn over(limit: &str, bound: usize) -> Invalid {
    Invalid {
        code: Code::TooLarge,
        message: format!("{limit}: limited to {bound}, found more"),
    }
}

/// Skips one object with all that is in it, whatever its depth, without recursion; returns where it ends.
pub(crate) fn skip(bytes: &[u8], mut at: usize, elements: &mut Elements) -> Result<usize, Invalid> {
    // Never overflows: `token` refuses counts that the bytes cannot hold.
    let mut due = 1_usize;
    while due > 0 {
        elements.take()?;
        let (token, next, _) = token(bytes, at)?;
        at = next;
        due -= 1;
        match token {
            Token::Array(n) => due = due.saturating_add(n),
            Token::Map(n) => due = due.saturating_add(2 * n),
            _ => {}
        }
    }
    Ok(at)
}

/// Depth and elements that a value may take.
pub(crate) struct Scan<'e> {
    pub(crate) elements: &'e mut Elements,
    /// The nesting allowed; at most [`crate::limits::DEPTH_MAX`], which bounds the recursion.
    pub(crate) depth: usize,
}

impl Scan<'_> {
    /// Checks the value at `at`; returns where it ends and whether it is canonical (duplicate keys
    /// aside, which can only be in a map that is not).
    pub(crate) fn value(&mut self, bytes: &[u8], at: usize, level: usize) -> Result<(usize, bool), Invalid> {
        self.elements.take()?;
        // Most of what is in a value takes no `Token` to be told: one byte, or a short string.
        if matches!(bytes.get(at), Some(0x00..=0x7f | 0xc0 | 0xc2 | 0xc3 | 0xe0..=0xff)) {
            return Ok((at + 1, true));
        }
        if let Some((text, next)) = short_text(bytes, at) {
            if !is_ascii(text) {
                utf8(text, "string")?;
            }
            return Ok((next, true));
        }
        let (token, next, mut canonical) = token(bytes, at)?;
        match token {
            Token::Nil | Token::Bool(_) | Token::Int(_) | Token::Bin(_) => {}
            Token::Big(n) => return Err(Invalid::new("value", &format!("{n} is an integer beyond 63 bits"))),
            Token::Float(x) if !x.is_finite() => return Err(Invalid::new("value", "is NaN or infinite")),
            Token::Float(_) => {}
            Token::Str(text) => {
                utf8(text, "string")?;
            }
            Token::Ext(-1, body) => {
                timestamp(body)?;
            }
            Token::Ext(0..=31, _) => {}
            Token::Ext(kind, _) => {
                return Err(Invalid::new(
                    "value",
                    &format!("has ext type {kind}; 0 to 31 and -1 are allowed"),
                ));
            }
            Token::Array(n) => {
                let mut at = self.deeper(level, next)?;
                for _ in 0..n {
                    let (next, fine) = self.value(bytes, at, level + 1)?;
                    at = next;
                    canonical &= fine;
                }
                return Ok((at, canonical));
            }
            Token::Map(n) => {
                let mut at = self.deeper(level, next)?;
                let mut last = None;
                for _ in 0..n {
                    let (key, next, shortest) = self.key(bytes, at)?;
                    canonical &= shortest && last < Some(key);
                    last = Some(key);
                    let (next, fine) = self.value(bytes, next, level + 1)?;
                    at = next;
                    canonical &= fine;
                }
                return Ok((at, canonical));
            }
        }
        Ok((next, canonical))
    }

    fn deeper(&self, level: usize, at: usize) -> Result<usize, Invalid> {
        if level >= self.depth {
            Err(over("depth of a value", self.depth))
        } else {
            Ok(at)
        }
    }

    fn key<'a>(&mut self, bytes: &'a [u8], at: usize) -> Result<(&'a [u8], usize, bool), Invalid> {
        self.elements.take()?;
        // ASCII is UTF-8, and in NFC.
        if let Some((text, next)) = short_text(bytes, at)
            && is_ascii(text)
        {
            return Ok((text, next, true));
        }
        let (token, next, shortest) = token(bytes, at)?;
        let Token::Str(key) = token else {
            return Err(Invalid::new(
                "map key",
                &format!("must be a string, is {}", token.kind()),
            ));
        };
        let text = utf8(key, "map key")?;
        if !is_nfc(text) {
            return Err(Invalid::new("map key", &format!("{text:.64?} is not in Unicode NFC")));
        }
        Ok((key, next, shortest))
    }

    /// The canonical form of the value at `at`, borrowed if that is what stands there, and where it ends.
    pub(crate) fn canonical<'a>(&mut self, bytes: &'a [u8], at: usize) -> Result<(Cow<'a, [u8]>, usize), Invalid> {
        let (end, canonical) = self.value(bytes, at, 0)?;
        if canonical {
            return Ok((Cow::Borrowed(&bytes[at..end]), end));
        }
        // Only a float32 grows in its canonical form.
        let mut out = Vec::with_capacity(end - at);
        rebuild(bytes, at, &mut out)?;
        Ok((Cow::Owned(out), end))
    }
}

/// Writes the canonical form of a value that was scanned; what is left to refuse is a key that repeats.
fn rebuild(bytes: &[u8], at: usize, out: &mut Vec<u8>) -> Result<usize, Invalid> {
    let (token, mut next, _) = token(bytes, at)?;
    match token {
        Token::Nil => write::nil(out),
        Token::Bool(b) => write::bool(out, b),
        Token::Int(n) => write::int(out, n),
        Token::Big(n) => write::uint(out, n),
        Token::Float(x) => write::float(out, x),
        Token::Str(text) => write::str(out, utf8(text, "string")?),
        Token::Bin(body) => write::bin(out, body),
        Token::Ext(-1, body) => write::timestamp(out, timestamp(body)?),
        Token::Ext(kind, body) => write::ext(out, kind, body),
        Token::Array(n) => {
            write::array(out, n);
            for _ in 0..n {
                next = rebuild(bytes, next, out)?;
            }
        }
        Token::Map(n) => {
            write::map(out, n);
            let start = out.len();
            let mut entries = Vec::with_capacity(n);
            for _ in 0..n {
                let from = out.len();
                let key_at = next;
                next = rebuild(bytes, key_at, out)?;
                let Token::Str(key) = self::token(bytes, key_at)?.0 else {
                    unreachable!("scanned")
                };
                next = rebuild(bytes, next, out)?;
                entries.push((key, from..out.len()));
            }
            if !entries.is_sorted_by(|a, b| a.0 < b.0) {
                entries.sort_unstable_by_key(|(key, _)| *key);
                if let Some(pair) = entries.windows(2).find(|pair| pair[0].0 == pair[1].0) {
                    let key = utf8(pair[0].0, "map key")?;
                    return Err(Invalid::new("map key", &format!("{key:.64?} occurs twice in one map")));
                }
                let mut sorted = Vec::with_capacity(out.len() - start);
                for (_, range) in entries {
                    sorted.extend_from_slice(&out[range]);
                }
                out[start..].copy_from_slice(&sorted);
            }
        }
    }
    Ok(next)
}
