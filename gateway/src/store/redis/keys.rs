//! Keys of a space: all share its hash tag, so that all are in one slot of a cluster.
//!
//! A space's name holds no braces, so the tag is exactly the name, and no two spaces share a key.

use super::link::Call;
use tidegate_protocol::{DocPath, SpaceId};

/// The keys of a space, made from its name.
pub(super) struct Keys {
    prefix: String,
}

impl Keys {
    pub(super) fn of(space: &SpaceId) -> Self {
        Self { prefix: prefix(space) }
    }

    fn part(&self, name: &str) -> Vec<u8> {
        format!("{}:{name}", self.prefix).into_bytes()
    }

    /// A look at a key of the space, without what is to be asked.
    pub(super) fn look(&self, key: Vec<u8>) -> Call {
        Call::on([self.meta(), key])
    }

    /// Hash: head, lineage, floor and counts.
    pub(super) fn meta(&self) -> Vec<u8> {
        self.part("meta")
    }

    /// Stream, id `<seq>-0`: recent commits as published.
    pub(super) fn log(&self) -> Vec<u8> {
        self.part("log")
    }

    /// Sorted set: document by the seq that last touched it, deleted ones too.
    pub(super) fn idx(&self) -> Vec<u8> {
        self.part("idx")
    }

    /// Hash: writer to its last mid, that one's key, when it last wrote, and its user.
    pub(super) fn clients(&self) -> Vec<u8> {
        self.part("clients")
    }

    /// Hash: writer and mid modulo the results kept, to the mid and its result.
    pub(super) fn results(&self) -> Vec<u8> {
        self.part("results")
    }

    /// Stream: the conflict log.
    pub(super) fn conflicts(&self) -> Vec<u8> {
        self.part("conflicts")
    }

    /// Set: user and writer.
    pub(super) fn users(&self) -> Vec<u8> {
        self.part("users")
    }

    /// Sorted set: tombstones by their seqs, `path` of a document, `path ‖ 0 ‖ field` of a cell.
    pub(super) fn dead(&self) -> Vec<u8> {
        self.part("dead")
    }

    /// Sorted set: seqs by the times at which they were the head.
    pub(super) fn marks(&self) -> Vec<u8> {
        self.part("marks")
    }

    /// Hash: field to its cell, and under the empty field the header.
    pub(super) fn doc(&self, doc: &str) -> Vec<u8> {
        self.part(&format!("d:{doc}"))
    }

    /// What the keys of its documents look like, for SCAN.
    pub(super) fn docs_pattern(&self) -> Vec<u8> {
        let mut pattern = vec![];
        for byte in self.doc("") {
            if matches!(byte, b'*' | b'?' | b'[' | b']' | b'\\') {
                pattern.push(b'\\');
            }
            pattern.push(byte);
        }
        pattern.push(b'*');
        pattern
    }

    /// All keys that a space has whatever is in it, but `meta`, `idx` and `log`.
    pub(super) fn others(&self) -> [Vec<u8>; 6] {
        [
            self.clients(),
            self.results(),
            self.conflicts(),
            self.users(),
            self.dead(),
            self.marks(),
        ]
    }

    pub(super) fn docs<'d>(&self, docs: impl IntoIterator<Item = &'d DocPath>) -> impl Iterator<Item = Vec<u8>> {
        docs.into_iter().map(|doc| self.doc(doc.as_str()))
    }
}

fn prefix(space: &SpaceId) -> String {
    format!("tg:{{{space}}}")
}

/// The channel on which a space's commits are published. All databases of a server share its channels, so all but the first
/// are named.
pub(crate) fn channel(space: &SpaceId, db: i64) -> String {
    match db {
        0 => prefix(space),
        db => format!("{}:{db}", prefix(space)),
    }
}

/// The space of a channel.
pub(crate) fn space_of_channel(channel: &str) -> Option<SpaceId> {
    SpaceId::parse(channel.strip_prefix("tg:{")?.split_once('}')?.0).ok()
}

/// What every space's meta looks like.
pub(super) const METAS: &str = "tg:{*}:meta";

/// The space of a key of that form.
pub(super) fn space_of_meta(key: &[u8]) -> Option<SpaceId> {
    let name = key.strip_prefix(b"tg:{")?.strip_suffix(b"}:meta")?;
    SpaceId::parse(std::str::from_utf8(name).ok()?).ok()
}
