//! The streams that an app reads. Each holds a bounded amount, however slowly it is read.
//!
//! [`Live`] is conflated: it remembers *which* documents changed and reads them when asked, so a slow app
//! skips states in between and never falls behind. [`Watch`] hands on every change as received; a reader
//! more than [`WATCH_ITEMS`] behind gets a reset and the present whole instead.

use crate::client::Handle;
use crate::doc::Doc;
use crate::shared::Core;
use crate::sync::{Space, WatchItem};
use futures_util::Stream;
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use tidegate_protocol::{Collection, DocChange, DocChangeKind, DocPath, SpaceId};

/// Changes that wait for a reader of [`Watch`], behind what it has not read of a whole. Over it they are
/// dropped, and the reader gets a reset and the whole.
pub const WATCH_ITEMS: usize = 4096;

/// What a [`Live`] covers.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Scope {
    Space,
    Collection(Collection),
    Doc(DocPath),
}

impl Scope {
    fn covers(&self, doc: &DocPath) -> bool {
        match self {
            Self::Space => true,
            Self::Collection(collection) => doc.collection() == collection.as_str(),
            Self::Doc(path) => doc == path,
        }
    }
}

/// The streams that are open.
#[derive(Default)]
pub(crate) struct Watchers {
    next: u64,
    live: HashMap<u64, LiveState>,
    raw: HashMap<u64, RawState>,
    /// How many streams, and calls that keep a space current, want a subscription.
    wanted: HashMap<SpaceId, usize>,
    ended: bool,
}

struct LiveState {
    space: SpaceId,
    scope: Scope,
    /// Nothing was read yet: everything is due.
    first: bool,
    /// `from_cache` is another than at the last reading.
    flag: bool,
    dirty: BTreeSet<DocPath>,
    waker: Option<Waker>,
}

struct RawState {
    space: SpaceId,
    /// Before the first `current`, and after falling behind: the whole is due when the space is current.
    whole_due: bool,
    /// How many of `items`, in front, are of the last whole. They do not count: a space of more documents
    /// than the bound would begin anew with every commit, and a slow reader would never see its end.
    whole_left: usize,
    items: VecDeque<WatchItem>,
    waker: Option<Waker>,
}

impl Watchers {
    /// Takes note that one more wants the space. Returns whether it is the first.
    pub(crate) fn want(&mut self, space: &SpaceId) -> bool {
        let count = self.wanted.entry(space.clone()).or_default();
        *count += 1;
        *count == 1
    }

    /// Takes note that one fewer wants the space. Returns whether it was the last.
    pub(crate) fn unwant(&mut self, space: &SpaceId) -> bool {
        let Some(count) = self.wanted.get_mut(space) else {
            return false;
        };
        *count -= 1;
        if *count == 0 {
            self.wanted.remove(space);
            return true;
        }
        false
    }

    pub(crate) fn is_wanted(&self, space: &SpaceId) -> bool {
        self.wanted.contains_key(space)
    }

    pub(crate) fn confirmed(&mut self, space: &SpaceId, items: Vec<WatchItem>) {
        let mut readers: Vec<_> = self.raw.values_mut().filter(|raw| raw.space == *space).collect();
        let Some(last) = readers.pop() else { return };
        for raw in readers {
            raw.push(items.clone());
        }
        last.push(items);
    }

    pub(crate) fn views(&mut self, space: &SpaceId, docs: &[DocPath]) {
        for live in self.live.values_mut().filter(|live| live.space == *space) {
            let before = live.dirty.len();
            live.dirty
                .extend(docs.iter().filter(|doc| live.scope.covers(doc)).cloned());
            if live.dirty.len() > before {
                wake(&mut live.waker);
            }
        }
    }

    pub(crate) fn flagged(&mut self, space: &SpaceId) {
        for live in self.live.values_mut().filter(|live| live.space == *space) {
            live.flag = true;
            wake(&mut live.waker);
        }
    }

    /// The client was closed: every stream ends.
    pub(crate) fn end(&mut self) {
        self.ended = true;
        self.live.values_mut().for_each(|live| wake(&mut live.waker));
        self.raw.values_mut().for_each(|raw| wake(&mut raw.waker));
    }

    fn id(&mut self) -> u64 {
        self.next += 1;
        self.next
    }
}

impl RawState {
    fn push(&mut self, items: Vec<WatchItem>) {
        for item in items {
            // Until the space is current, what comes is part of the whole that will be read then.
            let passes = !self.whole_due || matches!(item, WatchItem::Current { .. } | WatchItem::Denied { .. });
            if passes {
                self.items.push_back(item);
            }
        }
        if self.items.len() - self.whole_left > WATCH_ITEMS {
            self.items.clear();
            self.whole_left = 0;
            self.whole_due = true;
        }
        wake(&mut self.waker);
    }

    fn next(&mut self, space: Option<&Space>) -> Option<WatchItem> {
        if self.whole_due
            && let Some(space) = space.filter(|space| !space.from_cache())
            && let Some(standing) = space.replica().standing()
        {
            let position = standing.position;
            let whole = space.replica().docs().iter().map(|(doc, leaves)| WatchItem::Change {
                seq: position.seq,
                change: DocChange {
                    doc: doc.clone(),
                    kind: DocChangeKind::Whole(leaves.iter().map(|(p, v)| (p.clone(), v.clone())).collect()),
                },
            });
            self.items.clear();
            self.items.push_back(WatchItem::Reset);
            self.items.extend(whole);
            self.items.push_back(WatchItem::Current { position });
            self.whole_left = self.items.len();
            self.whole_due = false;
        }
        if self.whole_due {
            // Only a denial can be told before.
            self.items.retain(|item| matches!(item, WatchItem::Denied { .. }));
        }
        self.whole_left = self.whole_left.saturating_sub(1);
        self.items.pop_front()
    }
}

fn wake(waker: &mut Option<Waker>) {
    if let Some(waker) = waker.take() {
        waker.wake();
    }
}

/// What changed in the local view since the last item of a [`Live`].
#[derive(Clone, PartialEq, Debug)]
pub struct Update {
    /// The documents whose local view is another, by path; in the first item, every document there is. One
    /// that does not exist any more has no leaves.
    pub docs: Vec<Doc>,
    /// Whether the local view may be behind the gateway: before the first catch-up, and offline.
    pub from_cache: bool,
}

/// A stream of the local view of a collection, a document or a space: the confirmed state with the own
/// mutations on it. Conflated. Holds a subscription while it lives; ends when the client is closed.
pub struct Live {
    handle: Handle,
    space: SpaceId,
    id: u64,
    /// What was given so far, for [`Live::docs`].
    docs: BTreeMap<DocPath, Doc>,
}

impl Live {
    pub(crate) fn open(handle: &Handle, space: &SpaceId, scope: Scope) -> Self {
        handle.want(space);
        let id = handle.shared().step_core(|core| {
            let id = core.watchers.id();
            let state = LiveState {
                space: space.clone(),
                scope,
                first: true,
                flag: false,
                dirty: BTreeSet::new(),
                waker: None,
            };
            core.watchers.live.insert(id, state);
            id
        });
        Self {
            handle: handle.clone(),
            space: space.clone(),
            id,
            docs: BTreeMap::new(),
        }
    }

    /// The documents that exist as of the last item, by path.
    pub fn docs(&self) -> &BTreeMap<DocPath, Doc> {
        &self.docs
    }

    /// The next item. Cancel-safe.
    pub async fn next(&mut self) -> Option<Update> {
        std::future::poll_fn(|cx| Pin::new(&mut *self).poll_next(cx)).await
    }

    fn poll(core: &mut Core, id: u64, name: &SpaceId, cx: &Context<'_>) -> Poll<Option<Update>> {
        let ended = core.watchers.ended;
        let Some(state) = core.watchers.live.get_mut(&id) else {
            return Poll::Ready(None);
        };
        let Some(space) = core.machine.space(name) else {
            return Poll::Ready(None);
        };
        if !(state.first || state.flag || !state.dirty.is_empty()) {
            if ended {
                return Poll::Ready(None);
            }
            state.waker = Some(cx.waker().clone());
            return Poll::Pending;
        }
        state.flag = false;
        let mut due = std::mem::take(&mut state.dirty);
        if std::mem::take(&mut state.first) {
            due = match &state.scope {
                // That it does not exist is news, too.
                Scope::Doc(doc) => BTreeSet::from([doc.clone()]),
                scope => space.docs().into_iter().filter(|doc| scope.covers(doc)).collect(),
            };
        }
        let docs = due.into_iter().map(|doc| Doc::of(space, doc)).collect();
        Poll::Ready(Some(Update {
            docs,
            from_cache: space.from_cache(),
        }))
    }
}

impl Stream for Live {
    type Item = Update;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Update>> {
        let polled = self
            .handle
            .shared()
            .step_core(|core| Self::poll(core, self.id, &self.space, cx));
        if let Poll::Ready(Some(update)) = &polled {
            for doc in &update.docs {
                if doc.exists() {
                    self.docs.insert(doc.path().clone(), doc.clone());
                } else {
                    self.docs.remove(doc.path());
                }
            }
        }
        polled
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        self.handle
            .shared()
            .step_core(|core| core.watchers.live.remove(&self.id));
        self.handle.unwant(&self.space);
    }
}

/// A stream of a space's confirmed changes as received, own mutations only once the gateway has them.
///
/// It begins with `Reset`, every document whole, and `Current`; then come changes, and after a
/// reconnect those of the catch-up and another `Current` – or another `Reset`. Holds a subscription while
/// it lives; ends when the client is closed.
pub struct Watch {
    handle: Handle,
    space: SpaceId,
    id: u64,
}

impl Watch {
    pub(crate) fn open(handle: &Handle, space: &SpaceId) -> Self {
        handle.want(space);
        let id = handle.shared().step_core(|core| {
            let id = core.watchers.id();
            let state = RawState {
                space: space.clone(),
                whole_due: true,
                whole_left: 0,
                items: VecDeque::new(),
                waker: None,
            };
            core.watchers.raw.insert(id, state);
            id
        });
        Self {
            handle: handle.clone(),
            space: space.clone(),
            id,
        }
    }

    /// The next item. Cancel-safe.
    pub async fn next(&mut self) -> Option<WatchItem> {
        std::future::poll_fn(|cx| Pin::new(&mut *self).poll_next(cx)).await
    }
}

impl Stream for Watch {
    type Item = WatchItem;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<WatchItem>> {
        self.handle.shared().step_core(|core| {
            let ended = core.watchers.ended;
            let Some(raw) = core.watchers.raw.get_mut(&self.id) else {
                return Poll::Ready(None);
            };
            match raw.next(core.machine.space(&self.space)) {
                Some(item) => Poll::Ready(Some(item)),
                None if ended => Poll::Ready(None),
                None => {
                    raw.waker = Some(cx.waker().clone());
                    Poll::Pending
                }
            }
        })
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.handle
            .shared()
            .step_core(|core| core.watchers.raw.remove(&self.id));
        self.handle.unwant(&self.space);
    }
}
