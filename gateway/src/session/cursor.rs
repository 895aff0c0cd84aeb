//! The wire form of a catch-up's cursor: opaque to clients, read back by any node.

use crate::store::Cursor;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tidegate_protocol::{DocPath, Epoch, Position, Seq, ViewId};

#[derive(Serialize, Deserialize)]
struct Wire {
    after: Option<(u64, u64)>,
    at: u64,
    doc: String,
    begin: u64,
    head: (u64, u64),
    view: u64,
}

const fn pair(position: Position) -> (u64, u64) {
    (position.epoch.0, position.seq.get())
}

fn position((epoch, seq): (u64, u64)) -> Option<Position> {
    Some(Position::new(Epoch(epoch), Seq::new(seq)?))
}

/// A cursor as bytes.
pub(super) fn encode(cursor: &Cursor) -> Bytes {
    let wire = Wire {
        after: cursor.after.map(pair),
        at: cursor.at.get(),
        doc: cursor.doc.to_string(),
        begin: cursor.begin.get(),
        head: pair(cursor.head),
        view: cursor.view.0,
    };
    rmp_serde::to_vec(&wire).map_or_else(|_| Bytes::new(), Bytes::from)
}

/// A cursor from bytes; `None` for any that this did not write. What it says is checked by the store.
pub(super) fn decode(bytes: &[u8]) -> Option<Cursor> {
    let wire: Wire = rmp_serde::from_slice(bytes).ok()?;
    Some(Cursor {
        after: match wire.after {
            Some(after) => Some(position(after)?),
            None => None,
        },
        at: Seq::new(wire.at)?,
        doc: DocPath::parse(&wire.doc).ok()?,
        begin: Seq::new(wire.begin)?,
        head: position(wire.head)?,
        view: ViewId(wire.view),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_reads_back_and_garbage_is_none() {
        let seq = |n| Seq::new(n).unwrap();
        let cursor = Cursor {
            after: Some(Position::new(Epoch(7), seq(3))),
            at: seq(5),
            doc: DocPath::parse("a/b").unwrap(),
            begin: seq(6),
            head: Position::new(Epoch(9), seq(8)),
            view: ViewId(1),
        };
        assert_eq!(decode(&encode(&cursor)), Some(cursor));
        for garbage in [&b""[..], b"\xc1", b"\x95\xc0", &[0xff; 40]] {
            assert_eq!(decode(garbage), None);
        }
    }
}
