//! What waits in an outbox: frames, with what has to be known of them until they have gone out.

use super::{End, NONE, Stream};
use crate::metrics::{Dropped, Drops};
use bytes::{Buf, Bytes};
use std::cell::Cell;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use tidegate_protocol::Position;
use tokio::sync::Notify;
use tokio::time::Instant;

/// What a queued frame takes beside its bytes: its place in the queue and its allocation. Without it a
/// peer that reads nothing could have pongs of 2 bytes fill the memory before they fill the bound.
pub(super) const FRAME: usize = 96;

/// A thread keeps no queue longer than this.
const KEPT: usize = 1_024;

thread_local! {
    /// The queue of whoever is writing: an outbox in which nothing waits has none of its own.
    static QUEUE: Cell<Option<Box<Queue>>> = const { Cell::new(None) };
}

pub(super) struct Queued {
    pub(super) frame: Bytes,
    stream: Stream,
    /// Where the stream's client stands without it.
    before: Position,
}

#[derive(Default)]
pub(super) struct State {
    /// While something waits, or somebody does.
    pub(super) queue: Option<Box<Queue>>,
    pub(super) end: Option<End>,
}

#[derive(Default)]
pub(super) struct Queue {
    pub(super) frames: VecDeque<Queued>,
    /// Bytes in `frames`.
    pub(super) bytes: usize,
    /// Streams that were cut and have not been closed since, each with where its client will stand.
    pub(super) cuts: Vec<(Stream, Position)>,
    /// While the socket would block: when it last took something.
    pub(super) moved: Option<Instant>,
    /// The first of `frames` has partly been written.
    pub(super) torn: bool,
    /// The socket would block: only the writer writes now.
    pub(super) blocked: bool,
    /// Something waits that the writer is to write when it gets there.
    pub(super) due: bool,
    /// Wakes those who wait for room, and how many they are.
    pub(super) room: Option<Arc<Notify>>,
    pub(super) waiting: usize,
    /// What of the budget is taken up.
    pub(super) charged: usize,
}

impl State {
    /// The queue; the thread's, if it has none.
    pub(super) fn queue(&mut self) -> &mut Queue {
        self.queue.get_or_insert_with(|| QUEUE.take().unwrap_or_default())
    }

    /// Leaves a queue in which nothing waits to the thread.
    pub(super) fn return_queue(&mut self) {
        if let Some(queue) = self.queue.take_if(|queue| queue.is_idle()) {
            let kept = QUEUE.take();
            let capacity = |queue: &Queue| queue.frames.capacity();
            let larger = (kept.as_deref().map_or(0, capacity)..=KEPT).contains(&capacity(&queue));
            QUEUE.set(if larger { Some(queue) } else { kept });
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.queue.as_ref().is_none_or(|queue| queue.frames.is_empty())
    }

    pub(super) fn is_blocked(&self) -> bool {
        self.queue.as_ref().is_some_and(|queue| queue.blocked)
    }

    pub(super) fn bytes(&self) -> usize {
        self.queue.as_ref().map_or(0, |queue| queue.bytes)
    }
}

impl Queue {
    /// Nothing of an outbox is in it.
    pub(super) fn is_idle(&self) -> bool {
        self.frames.is_empty() && self.cuts.is_empty() && self.waiting == 0 && !self.blocked && !self.due
    }

    pub(super) fn tell_room(&self) {
        if let Some(room) = &self.room {
            room.notify_waiters();
        }
    }

    pub(super) fn put(&mut self, frame: Bytes, stream: Stream, before: Position) {
        self.bytes += frame.len();
        self.frames.push_back(Queued { frame, stream, before });
    }

    /// Bytes of memory, about.
    pub(super) fn takes(&self) -> usize {
        self.bytes + FRAME * self.frames.len()
    }

    /// Frames of which nothing has been written.
    pub(super) fn whole(&self) -> impl Iterator<Item = &Queued> {
        self.frames.iter().skip(usize::from(self.torn))
    }

    /// Drops the frames of the stream that has most waiting, `own` among equals; returns which, and where its client
    /// stands then. `None`: no frame is of a stream.
    pub(super) fn cut_largest(&mut self, own: Stream, dropped: &Dropped) -> Option<(Stream, Position)> {
        let mut sizes: BTreeMap<Stream, usize> = BTreeMap::new();
        for queued in self.whole().filter(|queued| queued.stream != NONE) {
            *sizes.entry(queued.stream).or_default() += queued.frame.len() + FRAME;
        }
        let (stream, _) = sizes.into_iter().max_by_key(|(stream, size)| (*size, *stream == own))?;
        let before = self.whole().find(|queued| queued.stream == stream)?.before;
        let mut untouched = usize::from(self.torn);
        let before_cut = (self.frames.len(), self.bytes);
        self.frames.retain(|queued| {
            let keep = untouched > 0 || queued.stream != stream;
            untouched = untouched.saturating_sub(1);
            keep
        });
        self.frames.shrink_to_fit();
        self.fewer(before_cut, Drops::Cut, dropped);
        Some((stream, before))
    }

    /// What waits of the stream is of none from now on.
    pub(super) fn close(&mut self, stream: Stream) {
        self.cuts.retain(|(cut, _)| *cut != stream);
        for queued in self.frames.iter_mut().filter(|queued| queued.stream == stream) {
            queued.stream = NONE;
        }
    }

    pub(super) fn advance(&mut self, mut written: usize) {
        self.bytes -= written;
        while let Some(first) = self.frames.front_mut().map(|first| &mut first.frame) {
            if written < first.len() {
                first.advance(written);
                self.torn |= written > 0;
                return;
            }
            written -= first.len();
            self.frames.pop_front();
            self.torn = false;
        }
    }

    /// Drops what is queued, but never half a frame.
    pub(super) fn drop_unsent(&mut self, why: Drops, dropped: &Dropped) {
        let before = (self.frames.len(), self.bytes);
        self.frames.truncate(usize::from(self.torn));
        self.fewer(before, why, dropped);
    }

    /// Drops what is queued.
    pub(super) fn lose(&mut self, why: Drops, dropped: &Dropped) {
        let before = (self.frames.len(), self.bytes);
        self.frames = VecDeque::new();
        self.fewer(before, why, dropped);
    }

    /// Some of what was queued has been dropped: `frames` and `bytes` there were before.
    pub(super) fn fewer(&mut self, (frames, bytes): (usize, usize), why: Drops, dropped: &Dropped) {
        self.bytes = self.frames.iter().map(|queued| queued.frame.len()).sum();
        dropped.count(why, frames - self.frames.len(), bytes - self.bytes);
    }
}
