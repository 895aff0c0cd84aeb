//! Names of spaces, documents, collections and fields. A value of these types is a valid name.
//!
//! All names are UTF-8 in Unicode NFC: Swift compares strings by canonical equivalence, so two
//! spellings would be one name on a phone and two on the server.

use crate::error::Invalid;
use crate::limits::{DOC_BYTES, SEGMENT_BYTES, SPACE_BYTES};
use std::fmt;
use std::sync::Arc;

/// Whether `text` is in Unicode Normalization Form C (UAX #15).
pub fn is_nfc(text: &str) -> bool {
    text.is_ascii() || unicode_normalization::is_nfc(text)
}

macro_rules! name {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Arc<str>);
        impl $name {
            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
            /// Parses a name; the error says which rule it breaks.
            pub fn parse(text: &str) -> Result<Self, Invalid> {
                Self::check(text)?;
                Ok(Self(Arc::from(text)))
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&*self.0, f)
            }
        }
        impl std::str::FromStr for $name {
            type Err = Invalid;
            fn from_str(text: &str) -> Result<Self, Invalid> {
                Self::parse(text)
            }
        }
        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }
        impl std::borrow::Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }
    };
}

name! {
    /// Unit of order, subscription, permission and sharding: `user:alice`, `list:42`.
    /// 1–128 bytes of `[A-Za-z0-9_.:@~/-]`.
    SpaceId
}
name! {
    /// Path of a document inside a space, `notes/n1`: two or more segments of 1–255 bytes without
    /// control characters, 512 bytes in all. The last segment is the id, the rest the collection.
    DocPath
}
name! {
    /// The path of a document without its id: one or more segments.
    Collection
}
name! {
    /// Path of a leaf (or of the subtree below it) in a document: segments joined by `.`; a `.` or
    /// `\` inside a segment is escaped with `\`. No segment is empty. This text form is canonical.
    ///
    /// In the order of the text, everything below `p` lies between `p.` and `p/`.
    FieldPath
}

impl SpaceId {
    fn check(text: &str) -> Result<(), Invalid> {
        if text.is_empty() || text.len() > SPACE_BYTES {
            return Err(Invalid::length("space", SPACE_BYTES, text.len()));
        }
        match text
            .bytes()
            .find(|b| !(b.is_ascii_alphanumeric() || b"_.:@~/-".contains(b)))
        {
            Some(_) => Err(Invalid::new("space", "may hold only A-Z a-z 0-9 _ . : @ ~ / -")),
            None => Ok(()),
        }
    }
}

fn check_segments(what: &'static str, text: &str, least: usize) -> Result<(), Invalid> {
    if text.len() > DOC_BYTES {
        return Err(Invalid::length(what, DOC_BYTES, text.len()));
    }
    let (mut count, mut start, mut is_plain) = (0, 0, true);
    for (at, byte) in text.bytes().chain([b'/']).enumerate() {
        is_plain &= matches!(byte, b' '..=b'~');
        if byte == b'/' {
            let len = at - start;
            if len == 0 || len > SEGMENT_BYTES {
                return Err(Invalid::length("path segment", SEGMENT_BYTES, len));
            }
            (count, start) = (count + 1, at + 1);
        }
    }
    if count < least {
        return Err(Invalid::new(what, "needs a collection and an id, as in notes/n1"));
    }
    if is_plain {
        return Ok(());
    }
    if text.chars().any(char::is_control) {
        return Err(Invalid::new(what, "holds a control character"));
    }
    if !is_nfc(text) {
        return Err(Invalid::new(what, "is not in Unicode NFC"));
    }
    Ok(())
}

impl DocPath {
    fn check(text: &str) -> Result<(), Invalid> {
        check_segments("doc", text, 2)
    }

    /// The collection: everything before the last `/`.
    pub fn collection(&self) -> &str {
        self.0.rsplit_once('/').map_or("", |(collection, _)| collection)
    }

    /// The id: everything after the last `/`.
    pub fn id(&self) -> &str {
        self.0.rsplit_once('/').map_or("", |(_, id)| id)
    }
}

impl Collection {
    fn check(text: &str) -> Result<(), Invalid> {
        check_segments("collection", text, 1)
    }

    /// The document `id` of this collection.
    pub fn doc(&self, id: &str) -> Result<DocPath, Invalid> {
        DocPath::parse(&format!("{}/{id}", self.0))
    }
}

impl FieldPath {
    fn check(text: &str) -> Result<(), Invalid> {
        let mut empty = true;
        // No byte of another character is a `.` or a `\`.
        let mut bytes = text.bytes();
        while let Some(byte) = bytes.next() {
            match byte {
                b'.' if empty => return Err(Invalid::new("field", "has an empty segment")),
                b'.' => empty = true,
                b'\\' => {
                    if !matches!(bytes.next(), Some(b'.' | b'\\')) {
                        return Err(Invalid::new("field", "has a \\ that escapes neither . nor \\"));
                    }
                    empty = false;
                }
                _ => empty = false,
            }
        }
        if empty {
            return Err(Invalid::new("field", "has an empty segment"));
        }
        if !is_nfc(text) {
            return Err(Invalid::new("field", "is not in Unicode NFC"));
        }
        Ok(())
    }

    /// The path of one plain segment, escaped as needed.
    pub fn segment(plain: &str) -> Result<Self, Invalid> {
        Self::parse(&escape(plain))
    }

    /// This path with one more plain segment, escaped as needed.
    pub fn child(&self, plain: &str) -> Result<Self, Invalid> {
        if plain.is_empty() {
            return Err(Invalid::new("field", "has an empty segment"));
        }
        if !is_nfc(plain) {
            return Err(Invalid::new("field", "is not in Unicode NFC"));
        }
        // A segment can start with a combining mark, so the joined path is checked as a whole.
        Self::parse(&format!("{}.{}", self.0, escape(plain)))
    }

    /// The segments in their escaped form.
    pub fn segments(&self) -> impl Iterator<Item = &str> {
        let mut rest = Some(&*self.0);
        std::iter::from_fn(move || {
            let text = rest?;
            match end_of_segment(text) {
                Some(dot) => {
                    rest = Some(&text[dot + 1..]);
                    Some(&text[..dot])
                }
                None => {
                    rest = None;
                    Some(text)
                }
            }
        })
    }

    /// The paths strictly above this one, shortest first.
    pub fn ancestors(&self) -> impl Iterator<Item = Self> + '_ {
        let mut from = 0;
        std::iter::from_fn(move || {
            let dot = from + end_of_segment(&self.0[from..])?;
            from = dot + 1;
            Some(Self(Arc::from(&self.0[..dot])))
        })
    }

    /// Whether this path lies strictly below `other`.
    pub fn is_below(&self, other: &Self) -> bool {
        self.0.len() > other.0.len() && self.0.starts_with(&*other.0) && self.0.as_bytes()[other.0.len()] == b'.'
    }

    /// Whether one of the two is the other, or lies below it.
    pub fn overlaps(&self, other: &Self) -> bool {
        self == other || self.is_below(other) || other.is_below(self)
    }

    /// The bounds, in text order, of everything strictly below this path: `[p., p/)`.
    pub fn below(&self) -> (String, String) {
        (format!("{}.", self.0), format!("{}/", self.0))
    }
}

fn end_of_segment(text: &str) -> Option<usize> {
    let mut escaped = false;
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'.' => return Some(at),
            _ => {}
        }
    }
    None
}

/// Escapes `.` and `\` in a plain segment.
pub fn escape(plain: &str) -> String {
    let mut text = String::with_capacity(plain.len());
    for c in plain.chars() {
        if matches!(c, '.' | '\\') {
            text.push('\\');
        }
        text.push(c);
    }
    text
}

/// The plain text of an escaped segment.
pub fn unescape(segment: &str) -> String {
    let mut text = String::with_capacity(segment.len());
    let mut chars = segment.chars();
    while let Some(c) = chars.next() {
        text.push(if c == '\\' { chars.next().unwrap_or('\\') } else { c });
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn field_paths_split_at_unescaped_dots_only() {
        let path = FieldPath::parse(r"a\.b.c\\.d").expect("valid");
        assert_eq!(path.segments().collect::<Vec<_>>(), [r"a\.b", r"c\\", "d"]);
        let up: Vec<_> = path.ancestors().map(|p| p.to_string()).collect();
        assert_eq!(up, [r"a\.b", r"a\.b.c\\"]);
        assert_eq!(unescape(r"c\\"), "c\\");
        assert_eq!(FieldPath::segment("a.b").expect("valid").as_str(), r"a\.b");
    }

    #[test]
    fn bad_names_are_refused() {
        for bad in ["", ".", "a.", ".a", "a..b", r"a\b", "a\\", "e\u{301}"] {
            assert!(FieldPath::parse(bad).is_err(), "{bad:?}");
        }
        for bad in [
            "",
            "notes",
            "/n",
            "n/",
            "a//b",
            "a/\u{7}",
            "a/e\u{301}",
            &format!("a/{}", "x".repeat(256)),
        ] {
            assert!(DocPath::parse(bad).is_err(), "{bad:?}");
        }
        for bad in ["", "a b", "é", &"x".repeat(129)] {
            assert!(SpaceId::parse(bad).is_err(), "{bad:?}");
        }
        assert!(SpaceId::parse("user:alice@x~/a-b_c.d").is_ok());
    }

    #[test]
    fn below_is_strict_and_respects_segments() {
        let p = |text: &str| FieldPath::parse(text).expect("valid");
        assert!(p("a.b").is_below(&p("a")));
        assert!(!p("ab").is_below(&p("a")));
        assert!(!p("a").is_below(&p("a")));
        assert!(!p(r"a\.b").is_below(&p("a")));
        assert!(p("a").overlaps(&p("a.b.c")));
    }
}
