//! Documents as a group left them, for the next one: what is written to again and again is not read each time.
//!
//! They are as of a head. A group that finds the head elsewhere, or whose commits do not follow it, gives them up, and
//! so does whatever else goes otherwise than planned. And whether a document is what a mutation was planned on, and the
//! history the one that it was read in, the store checks with every commit, as it does of what was just read.

use super::answer::Pending;
use crate::store::{DocState, Outcome, SpaceState, Usage, planned_index};
use bytes::Bytes;
use parking_lot::Mutex;
use std::collections::{BTreeMap, HashMap};
use tidegate_protocol::{DocPath, Position, Seq, SpaceId, Value};

/// About how many bytes of documents are kept of a space; if they become more, none is.
pub(super) const SPACE_BYTES: usize = 1 << 20;
/// About how many of all spaces.
const BYTES: usize = 16 << 20;
/// About what a document takes beside its cells.
const DOC_BYTES: usize = 256;

/// What is kept of a space.
#[derive(Default)]
pub(super) struct Hot {
    /// Where the space stood.
    pub(super) state: SpaceState,
    pub(super) docs: BTreeMap<DocPath, DocState>,
    bytes: usize,
}

impl Hot {
    /// Whether nothing has been committed since.
    pub(super) fn is_as_of(&self, state: &SpaceState) -> bool {
        self.state.head == state.head && self.state.lineage == state.lineage
    }

    /// Whether every position that these mutations name is one of this history as far as it is known here. One that
    /// is not may be of a commit that another node has made.
    pub(super) fn knows_positions_of(&self, group: &[Pending]) -> bool {
        let known = |position: &Position| self.state.lineage.holds(*position, self.state.head.seq);
        let bodies = group.iter().filter_map(|pending| pending.request.body.as_ref().ok());
        bodies
            .flat_map(|body| body.ops.iter().filter_map(|op| op.unchanged_since).chain(body.base))
            .all(|position| known(&position))
    }

    /// Takes a document out.
    pub(super) fn take(&mut self, doc: &DocPath) -> Option<DocState> {
        let state = self.docs.remove(doc)?;
        self.bytes = self.bytes.saturating_sub(weight(doc, &state));
        Some(state)
    }

    /// Brings it to where a group has left the space, of which `docs` are the documents as planned and `usage` what
    /// all then take. `None` where something went otherwise.
    pub(super) fn after(
        mut self,
        docs: impl Iterator<Item = (DocPath, DocState)>,
        usage: Usage,
        outcomes: &[Outcome],
    ) -> Option<Self> {
        let mut seqs: Vec<Option<Seq>> = Vec::with_capacity(outcomes.len());
        for outcome in outcomes {
            match outcome {
                Outcome::Applied { position, at, .. } if *position == self.next() => {
                    self.state.head = *position;
                    self.state.last_ms = *at;
                    seqs.push(Some(position.seq));
                }
                Outcome::Refused { position } if *position == self.state.head => seqs.push(None),
                _ => return None,
            }
        }
        self.state.usage = usage;
        for (doc, mut state) in docs {
            settle(&mut state, |index| seqs.get(index).copied().flatten())?;
            self.bytes += weight(&doc, &state);
            self.docs.insert(doc, state);
        }
        Some(self)
    }

    /// The position of the next commit.
    fn next(&self) -> Position {
        Position::new(self.state.head.epoch, self.state.head.seq.next())
    }
}

/// Gives what a group wrote the seqs that it got. Values it copies, since those of a message hold all of it.
fn settle(doc: &mut DocState, seq_of: impl Fn(usize) -> Option<Seq>) -> Option<()> {
    let Some(header) = &mut doc.header else { return Some(()) };
    if planned_index(header.last.seq).is_none() {
        return Some(());
    }
    let stamps = [Some(&mut header.last), Some(&mut header.born), header.deleted.as_mut()];
    for stamp in stamps.into_iter().flatten() {
        if let Some(index) = planned_index(stamp.seq) {
            stamp.seq = seq_of(index)?;
        }
    }
    for cell in doc.cells.values_mut() {
        if let Some(index) = planned_index(cell.stamp.seq) {
            cell.stamp.seq = seq_of(index)?;
            let copy = |value: &Value| Value::from_trusted(Bytes::copy_from_slice(value.as_bytes()));
            cell.value = cell.value.as_ref().map(copy);
        }
    }
    Some(())
}

/// About how many bytes a document takes here.
fn weight(doc: &DocPath, state: &DocState) -> usize {
    DOC_BYTES + doc.as_str().len() + super::queue::bytes_of(state)
}

/// What is kept of all spaces. Where it is too much, those go that were not written to for longest.
#[derive(Default)]
pub(super) struct Spaces(Mutex<Generations>);

#[derive(Default)]
struct Generations {
    young: HashMap<SpaceId, Hot>,
    young_bytes: usize,
    old: HashMap<SpaceId, Hot>,
}

impl Spaces {
    /// Takes out what is kept of a space.
    pub(super) fn take(&self, space: &SpaceId) -> Option<Hot> {
        let mut all = self.0.lock();
        if let Some(hot) = all.young.remove(space) {
            all.young_bytes = all.young_bytes.saturating_sub(hot.bytes);
            return Some(hot);
        }
        all.old.remove(space)
    }

    /// Keeps documents of a space until its next group.
    pub(super) fn put(&self, space: &SpaceId, hot: Hot) {
        if hot.bytes > SPACE_BYTES || hot.docs.is_empty() {
            return;
        }
        let mut all = self.0.lock();
        all.young_bytes += hot.bytes;
        let before = all.young.insert(space.clone(), hot);
        all.young_bytes -= before.map_or(0, |hot| hot.bytes);
        let old = (all.young_bytes > BYTES / 2).then(|| {
            all.young_bytes = 0;
            let young = std::mem::take(&mut all.young);
            std::mem::replace(&mut all.old, young)
        });
        drop(all);
        drop(old);
    }

    /// Forgets a space.
    pub(super) fn forget(&self, space: &SpaceId) {
        drop(self.take(space));
    }
}
