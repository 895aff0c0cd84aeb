//! A cursor over a message's bytes that reads what a field must be, and holds to the limits while it does.

use super::scan::{Elements, Scan, Token, short_text, skip, token, utf8};
use crate::error::{Code, Invalid};
use crate::ids::{Epoch, Mid, Position, Seq};
use crate::limits::{DEPTH_MAX, Limits};
use crate::name::{DocPath, FieldPath};
use crate::tree;
use crate::value::{Number, Value};
use bytes::Bytes;
use std::borrow::Cow;
use std::collections::BTreeSet;

/// The place name of a message's own map: what is wrong with its keys is `malformed`.
pub(super) const TOP: &str = "message";

pub(super) struct Reader<'a> {
    bytes: &'a [u8],
    pub(super) at: usize,
    elements: Elements,
    pub(super) limits: &'a Limits,
    /// What flattened maps may still come to, in bytes: flattening repeats the path for each leaf.
    pub(super) flat: usize,
    /// The op that is being read.
    pub(super) op: Option<u32>,
    /// The field of it.
    pub(super) path: Option<FieldPath>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8], limits: &'a Limits) -> Self {
        let elements = Elements::new(limits.elements);
        Self {
            bytes,
            at: 0,
            elements,
            limits,
            flat: limits.message_bytes,
            op: None,
            path: None,
        }
    }

    fn next(&mut self) -> Result<Token<'a>, Invalid> {
        self.elements.take()?;
        let (token, next, _) = token(self.bytes, self.at)?;
        self.at = next;
        Ok(token)
    }

    /// Nothing may follow.
    pub(super) fn end(&self) -> Result<(), Invalid> {
        match self.bytes.len() - self.at {
            0 => Ok(()),
            n => Err(Invalid::malformed(&format!("{n} bytes follow the message"))),
        }
    }

    pub(super) fn skip(&mut self) -> Result<(), Invalid> {
        self.at = skip(self.bytes, self.at, &mut self.elements)?;
        Ok(())
    }

    /// Whether nil is next; takes it if so.
    pub(super) fn nil(&mut self) -> Result<bool, Invalid> {
        let is_nil = self.bytes.get(self.at) == Some(&0xc0);
        if is_nil {
            self.next()?;
        }
        Ok(is_nil)
    }

    pub(super) fn bool(&mut self, what: &str) -> Result<bool, Invalid> {
        match self.next()? {
            Token::Bool(b) => Ok(b),
            other => Err(must_be(what, "a boolean", &other)),
        }
    }

    pub(super) fn u64(&mut self, what: &str) -> Result<u64, Invalid> {
        match self.next()? {
            Token::Big(n) => Ok(n),
            Token::Int(n) => {
                u64::try_from(n).map_err(|_| Invalid::new(what, &format!("must be an unsigned 64-bit integer, is {n}")))
            }
            other => Err(must_be(what, "an unsigned 64-bit integer", &other)),
        }
    }

    pub(super) fn u32(&mut self, what: &str) -> Result<u32, Invalid> {
        let n = self.u64(what)?;
        u32::try_from(n).map_err(|_| Invalid::new(what, &format!("must be below 2^32, is {n}")))
    }

    pub(super) fn seq(&mut self, what: &str) -> Result<Seq, Invalid> {
        let n = self.u64(what)?;
        Seq::new(n).ok_or_else(|| Invalid::new(what, &format!("must be below 2^53, is {n}")))
    }

    /// A mid: 1 to 2^53 − 1.
    pub(super) fn mid(&mut self, what: &str) -> Result<Mid, Invalid> {
        let n = self.u64(what)?;
        Mid::new(n)
            .filter(|mid| *mid != Mid::ZERO)
            .ok_or_else(|| Invalid::new(what, &format!("must be 1 to 2^53 - 1, is {n}")))
    }

    /// As a server may send it: 0 too.
    pub(super) fn any_mid(&mut self, what: &str) -> Result<Mid, Invalid> {
        let n = self.u64(what)?;
        Mid::new(n).ok_or_else(|| Invalid::new(what, &format!("must be below 2^53, is {n}")))
    }

    pub(super) fn number(&mut self, what: &str) -> Result<Number, Invalid> {
        match self.next()? {
            Token::Int(n) => Ok(Number::Int(n)),
            Token::Float(x) if x.is_finite() => Ok(Number::Float(x)),
            Token::Big(n) => Err(Invalid::new(what, &format!("{n} is an integer beyond 63 bits"))),
            Token::Float(_) => Err(Invalid::new(what, "is NaN or infinite")),
            other => Err(must_be(what, "a number", &other)),
        }
    }

    #[inline]
    pub(super) fn str(&mut self, what: &str) -> Result<&'a str, Invalid> {
        if let Some((text, next)) = short_text(self.bytes, self.at) {
            self.elements.take()?;
            self.at = next;
            return utf8(text, what);
        }
        match self.next()? {
            Token::Str(text) => utf8(text, what),
            other => Err(must_be(what, "a string", &other)),
        }
    }

    /// A string of at most `limit` bytes.
    pub(super) fn string(&mut self, what: &str, limit: usize) -> Result<String, Invalid> {
        let text = self.str(what)?;
        if text.len() > limit {
            return Err(Invalid::too_large(&format!("{what} size in bytes"), limit, text.len()));
        }
        Ok(text.to_owned())
    }

    /// A name, by its own parser.
    pub(super) fn name<T: std::str::FromStr<Err = Invalid>>(&mut self, what: &str) -> Result<T, Invalid> {
        self.str(what)?.parse()
    }

    pub(super) fn field(&mut self) -> Result<FieldPath, Invalid> {
        let text = self.str("field path")?;
        if text.len() > self.limits.field_bytes {
            return Err(Invalid::too_large(
                "field path size in bytes",
                self.limits.field_bytes,
                text.len(),
            ));
        }
        let path = FieldPath::parse(text)?;
        tree::check_path(&path, self.limits)?;
        Ok(path)
    }

    pub(super) fn doc(&mut self) -> Result<DocPath, Invalid> {
        self.name("doc")
    }

    pub(super) fn bin(&mut self, what: &str, limit: usize) -> Result<Bytes, Invalid> {
        match self.binary(what)? {
            body if body.len() > limit => Err(Invalid::too_large(&format!("{what} size in bytes"), limit, body.len())),
            body => Ok(Bytes::copy_from_slice(body)),
        }
    }

    pub(super) fn binary(&mut self, what: &str) -> Result<&'a [u8], Invalid> {
        match self.next()? {
            Token::Bin(body) => Ok(body),
            other => Err(must_be(what, "binary", &other)),
        }
    }

    /// The canonical bytes of a value.
    pub(super) fn canonical(&mut self) -> Result<Cow<'a, [u8]>, Invalid> {
        let depth = self.limits.depth.min(DEPTH_MAX);
        let (value, end) = Scan {
            elements: &mut self.elements,
            depth,
        }
        .canonical(self.bytes, self.at)?;
        self.at = end;
        Ok(value)
    }

    pub(super) fn value(&mut self) -> Result<Value, Invalid> {
        Ok(Value::from_scan(self.canonical()?))
    }

    /// The head of an array: how many elements follow. Never more than there are bytes left.
    pub(super) fn array(&mut self, what: &str) -> Result<usize, Invalid> {
        match self.next()? {
            Token::Array(n) => Ok(n),
            other => Err(must_be(what, "an array", &other)),
        }
    }

    /// The head of a map. Never more entries than half the bytes left.
    pub(super) fn map(&mut self, what: &str) -> Result<usize, Invalid> {
        match self.next()? {
            Token::Map(n) => Ok(n),
            other => Err(must_be(what, "a map", &other)),
        }
    }

    /// An array, each element read by `read`.
    pub(super) fn list<T>(
        &mut self,
        what: &str,
        limit: usize,
        mut read: impl FnMut(&mut Self) -> Result<T, Invalid>,
    ) -> Result<Vec<T>, Invalid> {
        let n = self.array(what)?;
        if n > limit {
            return Err(Invalid::too_large(&format!("number of {what}"), limit, n));
        }
        // Grows with what is read: the elements of a bomb may end at the first.
        let mut all = Vec::with_capacity(n.min(64));
        for _ in 0..n {
            all.push(read(self)?);
        }
        Ok(all)
    }

    /// `[epoch, seq]`.
    pub(super) fn position(&mut self, what: &str) -> Result<Position, Invalid> {
        match self.array(what)? {
            2 => Ok(Position::new(Epoch(self.u64("epoch")?), self.seq("seq")?)),
            n => Err(Invalid::new(what, &format!("must be [epoch, seq], has {n} elements"))),
        }
    }

    /// The rest of a map: `n` entries after the one whose key is `before`. `entry` reads the value of a
    /// key that it knows and says whether it did; other entries are skipped. No key may repeat.
    pub(super) fn entries(
        &mut self,
        place: &str,
        n: usize,
        before: Option<&'static str>,
        mut entry: impl FnMut(&mut Self, &'a str) -> Result<bool, Invalid>,
    ) -> Result<(), Invalid> {
        let refuse = |why: String| match place {
            TOP => Invalid::malformed(&format!("message {why}")),
            _ => Invalid::new(place, &why),
        };
        let mut seen = Seen::default();
        if let Some(before) = before {
            seen.insert(before);
        }
        for _ in 0..n {
            let key = self.str("key").map_err(|e| match e.code {
                Code::Invalid => refuse(format!("has a bad key: {}", e.message)),
                _ => e,
            })?;
            if !seen.insert(key) {
                return Err(refuse(format!("has the key {key:.64?} twice")));
            }
            if !entry(self, key)? {
                self.skip()?;
            }
        }
        Ok(())
    }

    /// The head of a message: how many entries follow `t`, and its value.
    pub(super) fn head(&mut self) -> Result<(usize, &'a str), Invalid> {
        let wrong = |_| Invalid::malformed("a message is a map whose first key is t, its type");
        let n = self.map(TOP).map_err(wrong)?;
        if n == 0 || self.str("key").map_err(wrong)? != "t" {
            return Err(wrong(Invalid::malformed("")));
        }
        Ok((n - 1, self.str("t").map_err(wrong)?))
    }
}

/// The keys of one map so far. Few as a rule; a sender who sends many gets a tree.
#[derive(Default)]
struct Seen<'a> {
    few: [&'a str; 16],
    len: usize,
    more: BTreeSet<&'a str>,
}

impl<'a> Seen<'a> {
    /// Whether the key is new.
    fn insert(&mut self, key: &'a str) -> bool {
        if self.few[..self.len].contains(&key) {
            return false;
        }
        match self.few.get_mut(self.len) {
            Some(free) => {
                *free = key;
                self.len += 1;
                true
            }
            None => self.more.insert(key),
        }
    }
}

pub(super) fn required<T>(found: Option<T>, place: &str, what: &str) -> Result<T, Invalid> {
    found.ok_or_else(|| Invalid::new(place, &format!("needs {what}")))
}

#[cold]
fn must_be(what: &str, wanted: &str, found: &Token<'_>) -> Invalid {
    Invalid::new(what, &format!("must be {wanted}, is {}", found.kind()))
}
