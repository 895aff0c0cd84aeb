//! Values: opaque, canonical MessagePack.
//!
//! A [`Value`] keeps its bytes and nothing else. They are in one canonical form – shortest integers
//! and lengths, 64-bit floats, map keys sorted by their bytes – so that equality of values (by type
//! and content, map key order aside; 1 ≠ 1.0) is equality of bytes.

mod number;
pub(crate) mod write;

pub use number::Number;

use crate::error::Invalid;
use bytes::Bytes;
use std::borrow::Cow;
use std::fmt;

/// A MessagePack value in canonical form: nil, bool, signed 64-bit integer, finite double, string,
/// binary, timestamp, ext 0–31, array, or map with distinct string keys in NFC.
///
/// A map is a *leaf* of a document only if it is empty, or inside an array.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Value(Bytes);

/// A point in time: seconds since 1970 and nanoseconds (below 10^9).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Timestamp {
    /// Seconds since 1970-01-01T00:00:00Z, negative before.
    pub secs: i64,
    /// Nanoseconds after that second, below 10^9.
    pub nanos: u32,
}

impl Timestamp {
    /// The timestamp of a count of ms since 1970.
    pub fn from_ms(ms: u64) -> Self {
        Self {
            secs: i64::try_from(ms / 1000).unwrap_or(i64::MAX),
            nanos: u32::try_from(ms % 1000).unwrap_or(0) * 1_000_000,
        }
    }
}

/// What a value is, borrowed.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum ValueRef<'a> {
    /// Nil.
    Nil,
    /// Boolean.
    Bool(bool),
    /// Integer.
    Int(i64),
    /// Finite double.
    Float(f64),
    /// UTF-8 text, not necessarily in NFC.
    Str(&'a str),
    /// Bytes.
    Bin(&'a [u8]),
    /// Timestamp (ext −1).
    Timestamp(Timestamp),
    /// A typed value that the server does not look into: kind 0–31, and its bytes.
    Ext(u8, &'a [u8]),
    /// Array.
    Array(Items<'a>),
    /// Map, keys sorted by their bytes.
    Map(Entries<'a>),
}

/// The elements of an array.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Items<'a> {
    len: usize,
    rest: &'a [u8],
}

/// The entries of a map.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Entries<'a> {
    len: usize,
    rest: &'a [u8],
}

impl Value {
    /// A copy of bytes that are one canonical value.
    pub(crate) fn copied(bytes: &[u8]) -> Self {
        /// Nil, booleans, small integers and what else takes one byte need no memory of their own.
        static BYTE: [u8; 256] = {
            let mut all = [0; 256];
            let mut n: u8 = 0;
            while n < 255 {
                all[n as usize] = n;
                n += 1;
            }
            all[255] = 255;
            all
        };
        match *bytes {
            [one] => Self(Bytes::from_static(std::slice::from_ref(&BYTE[usize::from(one)]))),
            _ => Self(Bytes::copy_from_slice(bytes)),
        }
    }

    /// Takes what the scanner found.
    pub(crate) fn from_scan(bytes: Cow<'_, [u8]>) -> Self {
        match bytes {
            Cow::Borrowed(bytes) => Self::copied(bytes),
            Cow::Owned(bytes) => Self(bytes.into()),
        }
    }

    /// Takes bytes that this crate wrote before, as kept by a store, without looking at them again.
    /// Bytes of other origin go through [`crate::msgpack::value`].
    pub fn from_trusted(bytes: Bytes) -> Self {
        debug_assert!(
            crate::msgpack::value(&bytes).is_ok_and(|v| v.0 == bytes),
            "not canonical: {bytes:02x?}"
        );
        Self(bytes)
    }

    /// The canonical bytes.
    pub fn as_bytes(&self) -> &Bytes {
        &self.0
    }

    fn build(write: impl FnOnce(&mut Vec<u8>)) -> Self {
        let mut out = Vec::with_capacity(16);
        write(&mut out);
        match *out {
            [_] => Self::copied(&out),
            _ => Self(out.into()),
        }
    }

    /// Nil.
    pub fn nil() -> Self {
        Self(Bytes::from_static(&[0xc0]))
    }

    /// The map without entries.
    pub fn empty_map() -> Self {
        Self(Bytes::from_static(&[0x80]))
    }

    /// A boolean.
    pub fn bool(b: bool) -> Self {
        Self(Bytes::from_static(if b { &[0xc3] } else { &[0xc2] }))
    }

    /// An integer.
    pub fn int(n: i64) -> Self {
        Self::build(|out| write::int(out, n))
    }

    /// A double; NaN and infinities are `invalid`.
    pub fn float(x: f64) -> Result<Self, Invalid> {
        if !x.is_finite() {
            return Err(Invalid::new("value", "is NaN or infinite"));
        }
        Ok(Self::build(|out| write::float(out, x)))
    }

    /// A number.
    pub fn number(n: Number) -> Self {
        match n {
            Number::Int(n) => Self::int(n),
            Number::Float(x) => Self::build(|out| write::float(out, x)),
        }
    }

    /// A string.
    pub fn str(text: &str) -> Self {
        Self::build(|out| write::str(out, text))
    }

    /// Bytes.
    pub fn bin(bytes: &[u8]) -> Self {
        Self::build(|out| write::bin(out, bytes))
    }

    /// A timestamp.
    pub fn timestamp(at: Timestamp) -> Self {
        Self::build(|out| write::timestamp(out, at))
    }

    /// A typed value; `kind` is 0–31.
    pub fn ext(kind: u8, bytes: &[u8]) -> Result<Self, Invalid> {
        if kind > 31 {
            return Err(Invalid::new(
                "value",
                &format!("has ext type {kind}; 0 to 31 and -1 are allowed"),
            ));
        }
        Ok(Self::build(|out| write::ext(out, kind.cast_signed(), bytes)))
    }

    /// An array.
    pub fn array<'a>(items: impl ExactSizeIterator<Item = &'a Self>) -> Self {
        Self::build(|out| {
            write::array(out, items.len());
            for item in items {
                out.extend_from_slice(&item.0);
            }
        })
    }

    /// A map; a key that repeats, or is not in NFC, is `invalid`.
    pub fn map<'a>(entries: impl IntoIterator<Item = (&'a str, &'a Self)>) -> Result<Self, Invalid> {
        let mut all: Vec<_> = entries.into_iter().collect();
        all.sort_by_key(|(key, _)| key.as_bytes());
        if let Some(pair) = all.windows(2).find(|pair| pair[0].0 == pair[1].0) {
            return Err(Invalid::new("value", &format!("has the key {:?} twice", pair[0].0)));
        }
        if let Some((key, _)) = all.iter().find(|(key, _)| !crate::name::is_nfc(key)) {
            return Err(Invalid::new(
                "value",
                &format!("has the key {key:?}, which is not in Unicode NFC"),
            ));
        }
        Ok(Self::build(|out| {
            write::map(out, all.len());
            for (key, value) in all {
                write::str(out, key);
                out.extend_from_slice(&value.0);
            }
        }))
    }

    /// What it is.
    pub fn get(&self) -> ValueRef<'_> {
        read(&self.0).0
    }

    /// Whether a document can hold it as one leaf: anything but a map with entries.
    pub fn is_leaf(&self) -> bool {
        !matches!(self.get(), ValueRef::Map(entries) if !entries.is_empty())
    }

    /// How deeply arrays and maps nest in it: 0 for a scalar, 1 for an array of scalars.
    pub fn depth(&self) -> usize {
        self.get().depth()
    }

    /// The number, if it is one.
    pub fn as_number(&self) -> Option<Number> {
        match self.get() {
            ValueRef::Int(n) => Some(Number::Int(n)),
            ValueRef::Float(x) => Some(Number::Float(x)),
            _ => None,
        }
    }

    /// The elements, if it is an array.
    pub fn as_array(&self) -> Option<Vec<Self>> {
        match self.get() {
            ValueRef::Array(items) => Some(items.map(|(_, bytes)| Self(self.0.slice_ref(bytes))).collect()),
            _ => None,
        }
    }

    /// The entries, if it is a map.
    pub fn as_map(&self) -> Option<Vec<(&str, Self)>> {
        match self.get() {
            ValueRef::Map(entries) => Some(
                entries
                    .map(|(key, _, bytes)| (key, Self(self.0.slice_ref(bytes))))
                    .collect(),
            ),
            _ => None,
        }
    }

    /// The text, if it is a string.
    pub fn as_str(&self) -> Option<&str> {
        match self.get() {
            ValueRef::Str(text) => Some(text),
            _ => None,
        }
    }

    /// A copy whose bytes belong to it alone, so that it pins no larger buffer.
    #[must_use]
    pub fn detached(&self) -> Self {
        Self::copied(&self.0)
    }
}

impl ValueRef<'_> {
    /// How deeply arrays and maps nest in it.
    pub(crate) fn depth(self) -> usize {
        match self {
            Self::Array(items) => 1 + items.map(|(v, _)| v.depth()).max().unwrap_or(0),
            Self::Map(entries) => 1 + entries.map(|(_, v, _)| v.depth()).max().unwrap_or(0),
            _ => 0,
        }
    }
}

/// What canonical bytes are.
pub(crate) fn view(bytes: &[u8]) -> ValueRef<'_> {
    read(bytes).0
}

impl fmt::Debug for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fn show(value: ValueRef<'_>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            match value {
                ValueRef::Nil => f.write_str("nil"),
                ValueRef::Bool(b) => write!(f, "{b}"),
                ValueRef::Int(n) => write!(f, "{n}"),
                ValueRef::Float(x) => write!(f, "{x:?}"),
                ValueRef::Str(text) => write!(f, "{text:?}"),
                ValueRef::Bin(bytes) => write!(f, "bin({bytes:02x?})"),
                ValueRef::Timestamp(t) => write!(f, "ts({}, {})", t.secs, t.nanos),
                ValueRef::Ext(kind, bytes) => write!(f, "ext({kind}, {bytes:02x?})"),
                ValueRef::Array(items) => {
                    f.write_str("[")?;
                    for (at, (item, _)) in items.enumerate() {
                        f.write_str(if at == 0 { "" } else { ", " })?;
                        show(item, f)?;
                    }
                    f.write_str("]")
                }
                ValueRef::Map(entries) => {
                    f.write_str("{")?;
                    for (at, (key, item, _)) in entries.enumerate() {
                        write!(f, "{}{key:?}: ", if at == 0 { "" } else { ", " })?;
                        show(item, f)?;
                    }
                    f.write_str("}")
                }
            }
        }
        show(self.get(), f)
    }
}

impl Items<'_> {
    /// How many are left.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether none is left.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

/// Each element, and its bytes.
impl<'a> Iterator for Items<'a> {
    type Item = (ValueRef<'a>, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        self.len = self.len.checked_sub(1)?;
        let (value, used) = read(self.rest);
        let (bytes, rest) = self.rest.split_at(used);
        self.rest = rest;
        Some((value, bytes))
    }
}

impl Entries<'_> {
    /// How many are left.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether none is left.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

/// Each key, its value, and the value's bytes.
impl<'a> Iterator for Entries<'a> {
    type Item = (&'a str, ValueRef<'a>, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        self.len = self.len.checked_sub(1)?;
        let (key, used) = read(self.rest);
        let ValueRef::Str(key) = key else {
            unreachable!("a canonical map has string keys")
        };
        self.rest = &self.rest[used..];
        let (value, used) = read(self.rest);
        let (bytes, rest) = self.rest.split_at(used);
        self.rest = rest;
        Some((key, value, bytes))
    }
}

/// Reads one canonical value: what it is, and how many bytes it takes.
fn read(bytes: &[u8]) -> (ValueRef<'_>, usize) {
    fn be<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
        bytes[at..at + N].try_into().expect("canonical")
    }
    fn len8(bytes: &[u8]) -> (usize, usize) {
        (usize::from(bytes[1]), 2)
    }
    fn len16(bytes: &[u8]) -> (usize, usize) {
        (usize::from(u16::from_be_bytes(be(bytes, 1))), 3)
    }
    fn len32(bytes: &[u8]) -> (usize, usize) {
        (u32::from_be_bytes(be(bytes, 1)) as usize, 5)
    }
    fn text(bytes: &[u8], (len, head): (usize, usize)) -> (ValueRef<'_>, usize) {
        (
            ValueRef::Str(std::str::from_utf8(&bytes[head..head + len]).expect("canonical")),
            head + len,
        )
    }
    fn bin(bytes: &[u8], (len, head): (usize, usize)) -> (ValueRef<'_>, usize) {
        (ValueRef::Bin(&bytes[head..head + len]), head + len)
    }
    fn ext(bytes: &[u8], (len, head): (usize, usize)) -> (ValueRef<'_>, usize) {
        let body = &bytes[head + 1..head + 1 + len];
        let value = match bytes[head].cast_signed() {
            -1 => ValueRef::Timestamp(match len {
                4 => Timestamp {
                    secs: i64::from(u32::from_be_bytes(be(body, 0))),
                    nanos: 0,
                },
                8 => {
                    let both = u64::from_be_bytes(be(body, 0));
                    Timestamp {
                        secs: (both & ((1 << 34) - 1)).cast_signed(),
                        nanos: u32::try_from(both >> 34).expect("30 bits"),
                    }
                }
                _ => Timestamp {
                    secs: i64::from_be_bytes(be(body, 4)),
                    nanos: u32::from_be_bytes(be(body, 0)),
                },
            }),
            kind => ValueRef::Ext(kind.cast_unsigned(), body),
        };
        (value, head + 1 + len)
    }
    fn items(bytes: &[u8], (len, head): (usize, usize)) -> (ValueRef<'_>, usize) {
        let mut end = head;
        for _ in 0..len {
            end += read(&bytes[end..]).1;
        }
        (
            ValueRef::Array(Items {
                len,
                rest: &bytes[head..end],
            }),
            end,
        )
    }
    fn entries(bytes: &[u8], (len, head): (usize, usize)) -> (ValueRef<'_>, usize) {
        let mut end = head;
        for _ in 0..2 * len {
            end += read(&bytes[end..]).1;
        }
        (
            ValueRef::Map(Entries {
                len,
                rest: &bytes[head..end],
            }),
            end,
        )
    }
    match bytes[0] {
        n @ 0x00..=0x7f => (ValueRef::Int(i64::from(n)), 1),
        n @ 0x80..=0x8f => entries(bytes, (usize::from(n & 0x0f), 1)),
        n @ 0x90..=0x9f => items(bytes, (usize::from(n & 0x0f), 1)),
        n @ 0xa0..=0xbf => text(bytes, (usize::from(n & 0x1f), 1)),
        0xc0 => (ValueRef::Nil, 1),
        0xc2 => (ValueRef::Bool(false), 1),
        0xc3 => (ValueRef::Bool(true), 1),
        0xc4 => bin(bytes, len8(bytes)),
        0xc5 => bin(bytes, len16(bytes)),
        0xc6 => bin(bytes, len32(bytes)),
        0xc7 => ext(bytes, len8(bytes)),
        0xc8 => ext(bytes, len16(bytes)),
        0xc9 => ext(bytes, len32(bytes)),
        0xcb => (ValueRef::Float(f64::from_be_bytes(be(bytes, 1))), 9),
        0xcc => (ValueRef::Int(i64::from(bytes[1])), 2),
        0xcd => (ValueRef::Int(i64::from(u16::from_be_bytes(be(bytes, 1)))), 3),
        0xce => (ValueRef::Int(i64::from(u32::from_be_bytes(be(bytes, 1)))), 5),
        0xcf => (ValueRef::Int(i64::from_be_bytes(be(bytes, 1))), 9),
        0xd0 => (ValueRef::Int(i64::from(bytes[1].cast_signed())), 2),
        0xd1 => (ValueRef::Int(i64::from(i16::from_be_bytes(be(bytes, 1)))), 3),
        0xd2 => (ValueRef::Int(i64::from(i32::from_be_bytes(be(bytes, 1)))), 5),
        0xd3 => (ValueRef::Int(i64::from_be_bytes(be(bytes, 1))), 9),
        n @ 0xd4..=0xd8 => ext(bytes, (1 << (n - 0xd4), 1)),
        0xd9 => text(bytes, len8(bytes)),
        0xda => text(bytes, len16(bytes)),
        0xdb => text(bytes, len32(bytes)),
        0xdc => items(bytes, len16(bytes)),
        0xdd => items(bytes, len32(bytes)),
        0xde => entries(bytes, len16(bytes)),
        0xdf => entries(bytes, len32(bytes)),
        n @ 0xe0..=0xff => (ValueRef::Int(i64::from(n.cast_signed())), 1),
        n => unreachable!("{n:#x} in a canonical value"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_read_back_as_what_they_were_made_of() {
        let at = [
            Timestamp { secs: 1, nanos: 0 },
            Timestamp {
                secs: 1 << 33,
                nanos: 999_999_999,
            },
            Timestamp { secs: -1, nanos: 5 },
            Timestamp {
                secs: 1 << 34,
                nanos: 0,
            },
        ];
        for at in at {
            assert_eq!(Value::timestamp(at).get(), ValueRef::Timestamp(at));
        }
        for n in [
            0,
            1,
            -1,
            127,
            128,
            -32,
            -33,
            255,
            256,
            -129,
            65_536,
            i64::MAX,
            i64::MIN,
            1 << 40,
        ] {
            assert_eq!(Value::int(n).get(), ValueRef::Int(n));
        }
        let inner = Value::map([("b", &Value::str("x")), ("a", &Value::nil())]).expect("valid");
        let array = Value::array([&inner, &Value::bool(true), &Value::ext(31, b"zz").expect("valid")].into_iter());
        let items = array.as_array().expect("array");
        assert_eq!(
            items[0].as_map().expect("map"),
            [("a", Value::nil()), ("b", Value::str("x"))]
        );
        assert_eq!(items[2].get(), ValueRef::Ext(31, b"zz"));
        assert_eq!(array.depth(), 2);
        assert!(Value::map([("a", &Value::nil()), ("a", &Value::nil())]).is_err());
        assert!(Value::float(f64::NAN).is_err());
        assert!(Value::ext(32, b"").is_err());
    }
}
