//! Pages of long resets, kept in memory for the next client that starts from nothing.
//!
//! The first part of a long reset ([`super::sweep`]) brings what was last touched up to some seq, and the second what was
//! touched after it. That seq need not be the head: a scan may begin where an earlier one has begun, and is sent the very
//! pages that were put together for that one. A page holds as long as the history goes on in which it was read, and
//! nothing after its beginning has been forgotten; what was touched meanwhile only comes twice.

use crate::store::{ChangesRequest, Cursor, SpaceState};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;
use tidegate_protocol::msgpack::DocChanges;
use tidegate_protocol::{DocPath, Position, Seq, SpaceId};

/// Bytes of pages kept. Over it, the pack that has not been used for longest goes; one that is larger is cut off, and
/// what it lacks is read.
const BYTES: usize = 64 << 20;
/// Commits after which a pack is begun anew, and one more for so many documents of the space: to look a document up that
/// was touched costs as much as a walk over a dozen, and a pack spares a walk over thousands.
const COMMITS: u64 = 64;
const DOCS_PER_COMMIT: u64 = 64;

/// The packs of a store, one a space at most.
#[derive(Default)]
pub(super) struct Packs(Mutex<State>);

#[derive(Default)]
struct State {
    packs: HashMap<SpaceId, Pack>,
    /// Bytes of all pages.
    bytes: usize,
    /// Counts uses.
    uses: u64,
    /// How many there had been when packs were last tidied up.
    tidied: u64,
    /// Counts erasures: what was read before one is not kept after it.
    erasures: u64,
}

struct Pack {
    /// The seq at which the scan began.
    begin: Seq,
    /// The head when its last page was read.
    seen: Position,
    /// The budget of its pages.
    budget: usize,
    /// Pages that follow each other from the start, each with its last document.
    pages: Vec<(Arc<DocChanges>, DocPath)>,
    bytes: usize,
    used: u64,
}

impl Pack {
    /// Whether its pages are still of the space's history, and that has forgotten nothing since they began.
    fn holds(&self, state: &SpaceState) -> bool {
        state.lineage.holds(self.seen, state.head.seq) && state.floor <= self.begin
    }
}

/// Says that nothing was erased since.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Since(u64);

impl Packs {
    /// To be asked for before a page is read that may be kept.
    pub(super) fn now(&self) -> Since {
        Since(self.0.lock().erasures)
    }

    /// The seq at which a scan of everything had better begin: where the pack of the space did, or at the head.
    pub(super) fn begin(&self, space: &SpaceId, request: &ChangesRequest, state: &SpaceState) -> Seq {
        let kept = &mut *self.0.lock();
        let fresh = |pack: &Pack| {
            let commits = state.head.seq.get().saturating_sub(pack.begin.get());
            pack.budget == request.budget && commits <= COMMITS + state.usage.docs / DOCS_PER_COMMIT
        };
        match kept.packs.get(space) {
            Some(pack) if pack.holds(state) && fresh(pack) => pack.begin,
            Some(_) => {
                kept.forget(space);
                state.head.seq
            }
            None => state.head.seq,
        }
    }

    /// The page after a cursor (`None`: the first) of a scan of everything that began at `begin`; and its last document.
    pub(super) fn page(
        &self,
        space: &SpaceId,
        begin: Seq,
        request: &ChangesRequest,
        state: &SpaceState,
    ) -> Option<(Arc<DocChanges>, DocPath)> {
        let kept = &mut *self.0.lock();
        let pack = kept.packs.get_mut(space)?;
        if pack.begin != begin || pack.budget != request.budget || !pack.holds(state) {
            return None;
        }
        let index = match &request.cursor {
            None => 0,
            Some(Cursor { doc, .. }) => 1 + pack.pages.binary_search_by(|(_, last)| last.cmp(doc)).ok()?,
        };
        kept.uses += 1;
        pack.used = kept.uses;
        pack.pages.get(index).cloned()
    }

    /// Keeps a page that was read, if it is the next of its pack, or the first of a new one.
    pub(super) fn keep(
        &self,
        since: Since,
        space: &SpaceId,
        request: &ChangesRequest,
        (docs, cursor): (&Arc<DocChanges>, &Cursor),
    ) {
        let kept = &mut *self.0.lock();
        let after = request.cursor.as_ref().map(|cursor| &cursor.doc);
        if since.0 != kept.erasures {
            return;
        }
        kept.uses += 1;
        let pack = match (kept.packs.get_mut(space), after) {
            (Some(pack), Some(after)) if pack.pages.last().is_some_and(|(_, last)| last == after) => pack,
            (None, None) => kept.packs.entry(space.clone()).or_insert(Pack {
                begin: cursor.begin,
                seen: cursor.head,
                budget: request.budget,
                pages: Vec::new(),
                bytes: 0,
                used: 0,
            }),
            _ => return,
        };
        // Pages of two histories have no end in common.
        let goes_on = cursor.head.epoch == pack.seen.epoch && cursor.head.seq >= pack.seen.seq;
        if !goes_on || pack.begin != cursor.begin || pack.budget != request.budget || pack.bytes + docs.size() > BYTES {
            return;
        }
        (pack.seen, pack.used) = (cursor.head, kept.uses);
        pack.bytes += docs.size();
        kept.bytes += docs.size();
        pack.pages.push((docs.clone(), cursor.doc.clone()));
        while kept.bytes > BYTES {
            let oldest = kept.packs.iter().min_by_key(|(_, pack)| pack.used);
            let Some(oldest) = oldest.map(|(space, _)| space.clone()) else {
                return;
            };
            kept.forget(&oldest);
        }
    }

    /// To be called when the first step of an erasure is done: what was read before is not used again, and goes.
    pub(super) fn erased(&self, space: &SpaceId) {
        let kept = &mut *self.0.lock();
        kept.erasures += 1;
        kept.forget(space);
    }

    /// Drops what has not been used since the last call.
    pub(super) fn tidy(&self) {
        let kept = &mut *self.0.lock();
        let unused = kept.packs.iter().filter(|(_, pack)| pack.used <= kept.tidied);
        for space in unused.map(|(space, _)| space.clone()).collect::<Vec<_>>() {
            kept.forget(&space);
        }
        kept.tidied = kept.uses;
    }

    /// Bytes of all pages.
    pub(super) fn bytes(&self) -> usize {
        self.0.lock().bytes
    }
}

impl State {
    fn forget(&mut self, space: &SpaceId) {
        if let Some(pack) = self.packs.remove(space) {
            self.bytes -= pack.bytes;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{Lineage, LineageEntry, Usage, View};
    use tidegate_protocol::{DocChange, DocChangeKind, Epoch, FieldPath, Value, ViewId};

    fn seq(n: u64) -> Seq {
        Seq::new(n).expect("small")
    }

    fn doc(name: &str) -> DocPath {
        DocPath::parse(name).expect("valid")
    }

    fn space(name: &str) -> SpaceId {
        SpaceId::parse(name).expect("valid")
    }

    /// A history of epochs that begin at these seqs.
    fn state(starts: &[u64], head: u64) -> SpaceState {
        let epochs = (1..).zip(starts).map(|(n, start)| LineageEntry {
            epoch: Epoch(n),
            incarnation: vec![],
            start: seq(*start),
        });
        SpaceState {
            head: Position::new(Epoch(starts.len() as u64), seq(head)),
            lineage: Lineage(epochs.collect()),
            usage: Usage { docs: 640, bytes: 1 },
            ..SpaceState::default()
        }
    }

    fn request(cursor: Option<Cursor>) -> ChangesRequest {
        ChangesRequest {
            after: None,
            cursor,
            view: View {
                id: ViewId(0),
                collections: None,
            },
            writer: None,
            budget: 100,
        }
    }

    fn cursor(last: &str, begin: u64, state: &SpaceState) -> Cursor {
        Cursor {
            after: None,
            at: Seq::ZERO,
            doc: doc(last),
            begin: seq(begin),
            head: state.head,
            view: ViewId(0),
        }
    }

    fn page(bytes: usize) -> Arc<DocChanges> {
        let value = Value::bin(&vec![0; bytes]);
        let change = DocChange {
            doc: doc("a/b"),
            kind: DocChangeKind::Whole(vec![(FieldPath::parse("f").expect("valid"), value)]),
        };
        Arc::new([change].iter().collect())
    }

    /// Packs with two pages of a scan that began at seq 8.
    fn two_pages(state: &SpaceState) -> Packs {
        let packs = Packs::default();
        let (s, first) = (space("s"), cursor("a/m", 8, state));
        packs.keep(packs.now(), &s, &request(None), (&page(1), &first));
        packs.keep(
            packs.now(),
            &s,
            &request(Some(first)),
            (&page(2), &cursor("a/z", 8, state)),
        );
        packs
    }

    #[test]
    fn a_scan_begins_where_the_pack_did_and_is_sent_its_pages() {
        let (s, then) = (space("s"), state(&[0], 10));
        let packs = two_pages(&then);
        // As many commits as count for little, the last one in another epoch.
        let now = state(&[0, 20], 8 + 64 + 10);
        assert_eq!(packs.begin(&s, &request(None), &now), seq(8));
        let (first, last) = packs.page(&s, seq(8), &request(None), &now).expect("kept");
        assert_eq!((first.size(), last), (page(1).size(), doc("a/m")));
        let next = |last| request(Some(cursor(last, 8, &now)));
        let (second, last) = packs.page(&s, seq(8), &next("a/m"), &now).expect("kept");
        assert_eq!((second.size(), last), (page(2).size(), doc("a/z")));
        // Behind the last, and where none ends; of another scan, and of pages of another size.
        for elsewhere in ["a/z", "a/k"] {
            assert!(packs.page(&s, seq(8), &next(elsewhere), &now).is_none());
        }
        assert!(packs.page(&s, seq(9), &request(None), &now).is_none());
        let larger = ChangesRequest {
            budget: 101,
            ..request(None)
        };
        assert!(packs.page(&s, seq(8), &larger, &now).is_none());
        let later = state(&[0, 20], 8 + 64 + 11);
        assert_eq!(packs.begin(&s, &request(None), &later), later.head.seq);
        assert_eq!(packs.bytes(), 0, "the next one takes its place");
    }

    #[test]
    fn a_pack_of_a_lost_history_or_below_the_floor_is_not_used() {
        let (s, then) = (space("s"), state(&[0], 10));
        // Commit 9 and 10 are lost. The scan began before, but its pages lack what those two had touched.
        let lost = state(&[0, 8], 12);
        let forgotten = SpaceState {
            floor: seq(9),
            ..state(&[0], 12)
        };
        for now in [lost, forgotten] {
            let packs = two_pages(&then);
            assert!(packs.page(&s, seq(8), &request(None), &now).is_none());
            assert_eq!(packs.begin(&s, &request(None), &now), seq(12));
        }
    }

    #[test]
    fn what_was_read_before_an_erasure_is_not_kept() {
        let (s, then) = (space("s"), state(&[0], 10));
        let packs = two_pages(&then);
        let before = packs.now();
        packs.erased(&s);
        assert_eq!(packs.bytes(), 0);
        packs.keep(before, &s, &request(None), (&page(1), &cursor("a/m", 8, &then)));
        assert_eq!(packs.bytes(), 0);
        packs.keep(packs.now(), &s, &request(None), (&page(1), &cursor("a/m", 8, &then)));
        assert_eq!(packs.bytes(), page(1).size());
    }

    #[test]
    fn over_the_bound_the_pack_that_was_used_last_stays() {
        let then = state(&[0], 10);
        let packs = Packs::default();
        let half = page(BYTES / 2 - 100);
        let first = cursor("a/m", 8, &then);
        let put = |name| packs.keep(packs.now(), &space(name), &request(None), (&half, &first));
        let has = |name| packs.page(&space(name), seq(8), &request(None), &then).is_some();
        put("s");
        put("t");
        assert!(has("s") && has("t") && has("s"));
        put("u");
        assert!(has("s") && !has("t") && has("u"));
        // One alone is cut off at the bound.
        let next = |last| request(Some(cursor(last, 8, &then)));
        packs.keep(
            packs.now(),
            &space("s"),
            &next("a/m"),
            (&half, &cursor("a/n", 8, &then)),
        );
        packs.keep(
            packs.now(),
            &space("s"),
            &next("a/n"),
            (&half, &cursor("a/o", 8, &then)),
        );
        assert_eq!(packs.bytes(), 2 * half.size());
        assert!(!has("u"));
        packs.tidy();
        assert!(has("s"));
        packs.tidy();
        packs.tidy();
        assert_eq!(packs.bytes(), 0);
    }
}
