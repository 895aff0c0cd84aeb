//! A document's header, under the empty field of its hash: last and born, each seq and writer; size; whether it exists;
//! and the stamp of its deletion, if any is remembered. `scripts/commit.lua` puts the same together.

use crate::store::embedded::records::{Record, Take, put_u64};
use crate::store::{Header, Stamp};

impl Record for Header {
    fn put(&self, out: &mut Vec<u8>) {
        self.last.put(out);
        self.born.put(out);
        put_u64(out, self.size);
        out.push(u8::from(self.alive));
        if let Some(deleted) = &self.deleted {
            deleted.put(out);
        }
    }

    fn take(from: &mut Take<'_>) -> Option<Self> {
        let (last, born, size) = (Stamp::take(from)?, Stamp::take(from)?, from.u64()?);
        let alive = match from.u8()? {
            0 => false,
            1 => true,
            _ => return None,
        };
        let deleted = match from.0.is_empty() {
            true => None,
            false => Some(Stamp::take(from)?),
        };
        Some(Self {
            last,
            born,
            deleted,
            alive,
            size,
        })
    }
}
