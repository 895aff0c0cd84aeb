//! Writing of maps whose optional entries are not counted beforehand.

use crate::ids::Position;
use crate::name::FieldPath;
use crate::value::{Value, write};

/// What most messages and changes take at most, bytes.
pub(super) const TYPICAL: usize = 128;

/// A map of at most 15 entries that is being written.
pub(super) struct Map<'o> {
    out: &'o mut Vec<u8>,
    start: usize,
    len: u8,
}

impl<'o> Map<'o> {
    pub(super) fn new(out: &'o mut Vec<u8>) -> Self {
        let start = out.len();
        out.push(0x80);
        Self { out, start, len: 0 }
    }

    /// A message of type `t`.
    pub(super) fn message(out: &'o mut Vec<u8>, t: &str) -> Self {
        let mut map = Self::new(out);
        map.str("t", t);
        map
    }

    /// Writes a key; the caller writes its value to what this returns.
    pub(super) fn key(&mut self, key: &str) -> &mut Vec<u8> {
        self.len += 1;
        assert!(self.len < 16, "a fixmap");
        self.out[self.start] = 0x80 | self.len;
        write::str(self.out, key);
        self.out
    }

    pub(super) fn str(&mut self, key: &str, text: &str) {
        write::str(self.key(key), text);
    }

    pub(super) fn uint(&mut self, key: &str, n: u64) {
        write::uint(self.key(key), n);
    }

    pub(super) fn bool(&mut self, key: &str, b: bool) {
        write::bool(self.key(key), b);
    }

    pub(super) fn bin(&mut self, key: &str, bytes: &[u8]) {
        write::bin(self.key(key), bytes);
    }

    pub(super) fn value(&mut self, key: &str, value: &Value) {
        self.key(key).extend_from_slice(value.as_bytes());
    }

    pub(super) fn path(&mut self, key: &str, path: &FieldPath) {
        self.str(key, path.as_str());
    }

    /// `epoch` and `seq`.
    pub(super) fn epoch_seq(&mut self, at: Position) {
        self.uint("epoch", at.epoch.0);
        self.uint("seq", at.seq.get());
    }

    pub(super) fn list<T>(&mut self, key: &str, all: &[T], write: impl FnMut(&mut Vec<u8>, &T)) {
        list(self.key(key), all, write);
    }
}

pub(super) fn list<T>(out: &mut Vec<u8>, all: &[T], mut write: impl FnMut(&mut Vec<u8>, &T)) {
    write::array(out, all.len());
    for one in all {
        write(out, one);
    }
}

pub(super) fn text(out: &mut Vec<u8>, text: &impl AsRef<str>) {
    write::str(out, text.as_ref());
}

/// `[epoch, seq]`.
pub(super) fn position(out: &mut Vec<u8>, at: Position) {
    write::array(out, 2);
    write::uint(out, at.epoch.0);
    write::uint(out, at.seq.get());
}
