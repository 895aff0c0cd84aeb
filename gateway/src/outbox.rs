//! A connection's way out: a queue of complete WebSocket frames, bounded in bytes, written to the
//! socket by whoever puts something in.
//!
//! The fan-out pushes prebuilt frames and writes them itself in one vectored call; no task is woken
//! for a socket that takes the bytes, and nothing is allocated. Only when the socket would block, or what
//! is said can wait (`later`), does the connection's own task (`run_writer`) carry the rest on, in as few calls as it
//! takes. Frames leave in the order in which they were pushed, whole.
//!
//! A frame may belong to a *stream*: what a live subscription is brought. Where a socket takes too little,
//! the stream that has most waiting is cut: its frames are dropped, and its subscription catches up from
//! before the first of them once the rest has gone out. So a slow reader gets less, and converges.

use crate::metrics::{Dropped, Drops};
use bytes::{Buf, Bytes};
use parking_lot::{Mutex, MutexGuard};
use prometheus::{IntCounter, IntGauge};
use std::cell::Cell;
use std::collections::{BTreeMap, VecDeque};
use std::io::{self, IoSlice};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tidegate_protocol::Position;
use tokio::io::ReadBuf;
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::time::Instant;

/// A socket that can be written through a shared reference. The seam for TLS and for simulated networks.
pub trait Transport: Send + Sync + 'static {
    /// Reads what is there; one reader at a time.
    fn poll_read(&self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>>;
    /// Writes as much as the socket takes now; `WouldBlock` if nothing.
    fn try_write_vectored(&self, bufs: &[IoSlice<'_>]) -> io::Result<usize>;
    /// Waits until writing may go on; one waiter at a time.
    fn poll_write_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;
    /// Says that nothing more will be written.
    fn shutdown_write(&self);
}

impl Transport for TcpStream {
    fn poll_read(&self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            std::task::ready!(self.poll_read_ready(cx))?;
            match self.try_read(buf.initialize_unfilled()) {
                Ok(n) => {
                    buf.advance(n);
                    return Poll::Ready(Ok(()));
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(e) => return Poll::Ready(Err(e)),
            }
        }
    }

    fn try_write_vectored(&self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        Self::try_write_vectored(self, bufs)
    }

    fn poll_write_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Self::poll_write_ready(self, cx)
    }

    fn shutdown_write(&self) {
        // The peer may be gone already; then there is nothing to say to it.
        let _ = socket2::SockRef::from(self).shutdown(std::net::Shutdown::Write);
    }
}

/// Slices handed to one write call: well below every system's IOV_MAX.
pub const SLICES: usize = 64;

/// Most often there are no more, and a shorter list is sooner made.
const FEW: usize = 4;

/// What a queued frame takes beside its bytes: its place in the queue and its allocation. Without it a
/// peer that reads nothing could have pongs of 2 bytes fill the memory before they fill the bound.
const FRAME: usize = 96;

/// A thread keeps no queue longer than this.
const KEPT: usize = 1_024;

thread_local! {
    /// The queue of whoever is writing: an outbox in which nothing waits has none of its own.
    static QUEUE: Cell<VecDeque<Queued>> = const { Cell::new(VecDeque::new()) };
}

/// Bytes that may wait, [`FRAME`] more for each frame.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Over it, where the socket would block, streams are cut: the largest first, until it is kept.
    pub soft: usize,
    /// Over it everything that is not yet on its way is dropped and the connection is told to close (`Overflow`).
    pub hard: usize,
}

/// What all outboxes of a node share.
pub struct Budget {
    /// Bytes that may wait on the node, over which no live stream has any waiting where the socket would block.
    pub limit: usize,
    /// Bytes that wait, [`FRAME`] more for each frame.
    pub queued: IntGauge,
    /// Calls that wrote to a socket.
    pub sends: IntCounter,
    /// What was to be sent and was not.
    pub dropped: Dropped,
}

impl Default for Budget {
    /// Counts for itself alone, and has no limit.
    fn default() -> Self {
        Self {
            limit: usize::MAX,
            queued: IntGauge::new("queued", "queued").expect("a constant name"),
            sends: IntCounter::new("sends", "sends").expect("a constant name"),
            dropped: Dropped::default(),
        }
    }
}

impl Budget {
    /// Whether too much waits on the node.
    pub fn is_spent(&self) -> bool {
        usize::try_from(self.queued.get()).is_ok_and(|queued| queued > self.limit)
    }

    fn charge(&self, before: usize, now: usize) {
        if before != now {
            let signed = |bytes| i64::try_from(bytes).unwrap_or(i64::MAX);
            self.queued.add(signed(now) - signed(before));
        }
    }
}

/// The number of a stream, unique on its connection.
pub type Stream = u64;
/// Of a frame that is of none, and so is never cut.
pub const NONE: Stream = 0;

/// The queue.
pub struct Outbox<T: Transport + ?Sized = dyn Transport> {
    bounds: Bounds,
    budget: Arc<Budget>,
    state: Mutex<State>,
    /// Wakes the writer: the socket would block, or the state changed to one it must act on.
    writer: Notify,
    /// Wakes those who wait for room.
    room: Notify,
    transport: T,
}

struct Queued {
    frame: Bytes,
    stream: Stream,
    /// Where the stream's client stands without it.
    before: Position,
}

#[derive(Default)]
struct State {
    queue: VecDeque<Queued>,
    /// Bytes in `queue`.
    bytes: usize,
    /// Streams that were cut and have not been closed since, each with where its client will stand.
    cuts: Vec<(Stream, Position)>,
    /// While the socket would block: when it last took something.
    moved: Option<Instant>,
    /// The first frame of `queue` has partly been written.
    torn: bool,
    /// The socket would block: only the writer writes now.
    blocked: bool,
    /// Something waits that the writer is to write when it gets there.
    due: bool,
    /// How many wait for room.
    waiting: usize,
    /// What of the budget is taken up.
    charged: usize,
    end: Option<End>,
}

/// Why nothing more can be pushed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum End {
    /// The queue went over its bound.
    Overflow,
    /// The socket failed.
    Broken,
    /// `finish` was called: what is queued still goes out.
    Finished,
}

impl<T: Transport> Outbox<T> {
    /// An empty one.
    pub fn new(transport: T, bounds: Bounds, budget: Arc<Budget>) -> Self {
        Self {
            bounds,
            budget,
            state: Mutex::default(),
            writer: Notify::new(),
            room: Notify::new(),
            transport,
        }
    }
}

impl<T: Transport + ?Sized> Outbox<T> {
    /// The socket.
    pub fn transport(&self) -> &T {
        &self.transport
    }

    /// Queues frames and writes what the socket takes. They are dropped if the outbox has ended.
    pub fn push(&self, frames: impl IntoIterator<Item = Bytes>) {
        let mut state = self.state.lock();
        if state.end.is_some() {
            return frames.into_iter().for_each(|frame| self.too_late(frame.len()));
        }
        state.borrow_queue();
        for frame in frames {
            state.put(frame, NONE, Position::START);
        }
        self.go(&mut state);
        self.settle(&mut state);
    }

    /// As `push`, of a small frame that is copied only if it has to wait.
    pub fn push_bytes(&self, frame: &[u8]) {
        let mut state = self.state.lock();
        if state.end.is_some() {
            return self.too_late(frame.len());
        }
        let mut rest = frame;
        if state.queue.is_empty() {
            self.budget.sends.inc();
            match self.transport.try_write_vectored(&[IoSlice::new(frame)]) {
                Ok(written) if written == frame.len() => return,
                Ok(written) => {
                    rest = &frame[written..];
                    state.torn = written > 0;
                }
                // The next call meets it, too.
                Err(_) => {}
            }
        }
        state.put(Bytes::copy_from_slice(rest), NONE, Position::START);
        self.go(&mut state);
        self.settle(&mut state);
    }

    /// Queues a frame for the connection's own task: with all that is said before it gets there, it is one write.
    pub fn push_later(&self, frame: Bytes) {
        let mut state = self.state.lock();
        if state.end.is_some() {
            return self.too_late(frame.len());
        }
        state.put(frame, NONE, Position::START);
        self.defer(&mut state);
        self.settle(&mut state);
    }

    /// A frame that comes when the outbox has ended is dropped.
    fn too_late(&self, bytes: usize) {
        self.budget.dropped.count(Drops::Ended, 1, bytes);
    }

    /// Begins to hand a stream what comes next, in one write; see [`Handing`].
    pub fn hand(&self, stream: Stream) -> Handing<'_, T> {
        let mut state = self.state.lock();
        let cut = state.cuts.iter().position(|(cut, _)| *cut == stream);
        let cut = cut.map(|index| state.cuts.swap_remove(index).1);
        state.borrow_queue();
        Handing {
            outbox: self,
            state,
            stream,
            cut,
        }
    }

    /// Hands a stream frames that all follow each other, straight from where they are, if nothing waits before them; each
    /// with where its client stands without it. `slices` are the same frames. `None`: by `hand`.
    pub fn hand_at_once<'f>(
        &self,
        stream: Stream,
        slices: &[IoSlice<'_>],
        frames: impl Iterator<Item = (Position, &'f Bytes)>,
    ) -> Option<Handed> {
        let mut state = self.state.lock();
        if state.end.is_some() || !state.queue.is_empty() || !state.cuts.is_empty() {
            return None;
        }
        self.budget.sends.inc();
        // What fails here fails again there.
        let mut left = self
            .transport
            .try_write_vectored(slices)
            .ok()
            .filter(|sent| *sent > 0)?;
        for (before, frame) in frames {
            if left >= frame.len() {
                left -= frame.len();
                continue;
            }
            if state.queue.is_empty() {
                state.torn = left > 0;
            }
            state.put(frame.slice(left..), stream, before);
            left = 0;
        }
        if state.queue.is_empty() {
            return Some(Handed {
                behind: None,
                others: false,
            });
        }
        let rest = Handing {
            outbox: self,
            state,
            stream,
            cut: None,
        };
        Some(rest.done())
    }

    /// Streams that were cut for another's sake. They take nothing more; `close` them.
    pub fn cuts(&self) -> Vec<(Stream, Position)> {
        self.state.lock().cuts.clone()
    }

    /// The stream is at its end: what waits of it goes out, and is cut no more.
    pub fn close(&self, stream: Stream) {
        let mut state = self.state.lock();
        state.cuts.retain(|(cut, _)| *cut != stream);
        for queued in state.queue.iter_mut().filter(|queued| queued.stream == stream) {
            queued.stream = NONE;
        }
    }

    /// For how long the socket has taken nothing of what waits for it.
    pub fn stalled(&self) -> Duration {
        let moved = self.state.lock().moved;
        moved.map_or(Duration::ZERO, |moved| moved.elapsed())
    }

    /// Writes what has been queued, and ends if too much is left.
    fn go(&self, state: &mut State) {
        if !state.blocked {
            self.write(state);
        }
        self.bound(state);
    }

    /// Leaves what has been queued to the writer, and ends if it is too much.
    fn defer(&self, state: &mut State) {
        if !state.blocked && !std::mem::replace(&mut state.due, true) {
            self.writer.notify_waiters();
        }
        self.bound(state);
    }

    /// What is left waits: it is charged, and where nothing is, no queue is kept.
    fn settle(&self, state: &mut State) {
        state.return_queue();
        let takes = state.takes();
        self.budget.charge(std::mem::replace(&mut state.charged, takes), takes);
    }

    fn bound(&self, state: &mut State) {
        if state.takes() > self.bounds.hard {
            state.drop_unsent(Drops::Overflow, &self.budget.dropped);
            self.end(state, End::Overflow);
        }
    }

    /// Replaces everything that is not on its way by these last frames.
    pub fn finish(&self, last: impl IntoIterator<Item = Bytes>, keep_queued: bool) {
        let mut state = self.state.lock();
        if matches!(state.end, Some(End::Broken | End::Finished)) {
            return;
        }
        if !keep_queued {
            state.drop_unsent(Drops::Stalled, &self.budget.dropped);
        }
        for frame in last {
            state.put(frame, NONE, Position::START);
        }
        if !state.blocked {
            self.write(&mut state);
        }
        if state.end != Some(End::Broken) {
            self.end(&mut state, End::Finished);
        }
        self.settle(&mut state);
    }

    /// Bytes waiting.
    pub fn queued(&self) -> usize {
        self.state.lock().bytes
    }

    /// How much may wait: nothing while too much does on the node.
    pub fn soft(&self) -> usize {
        if self.budget.is_spent() { 0 } else { self.bounds.soft }
    }

    /// Whether, and why, nothing more can be pushed.
    pub fn ended(&self) -> Option<End> {
        self.state.lock().end
    }

    /// Waits until at most `bytes` are queued, or the outbox has ended.
    pub async fn below(&self, bytes: usize) {
        let enough = |state: &State| state.bytes <= bytes || state.end.is_some();
        if enough(&self.state.lock()) {
            return;
        }
        // Only who waits is told: from before the look, so that a change between look and wait is not missed.
        let _waiting = Waiting::new(self);
        loop {
            let woken = self.room.notified();
            tokio::pin!(woken);
            woken.as_mut().enable();
            if enough(&self.state.lock()) {
                return;
            }
            woken.await;
        }
    }

    /// Carries on where the socket blocked. Returns when the outbox has ended: at once on overflow
    /// or a broken socket, after the last byte when finished. Cancel-safe.
    pub async fn run_writer(&self) -> End {
        loop {
            let woken = self.writer.notified();
            tokio::pin!(woken);
            woken.as_mut().enable();
            let blocked = {
                let mut state = self.state.lock();
                match state.end {
                    Some(End::Finished) if !state.queue.is_empty() => {}
                    Some(end) => return end,
                    None => {}
                }
                if state.due && !state.blocked {
                    self.write(&mut state);
                    self.settle(&mut state);
                    continue;
                }
                state.blocked
            };
            if !blocked {
                woken.await;
                continue;
            }
            let ready = std::future::poll_fn(|cx| self.transport.poll_write_ready(cx));
            let result = tokio::select! {
                biased;
                result = ready => result,
                // The state may have ended meanwhile.
                () = woken => continue,
            };
            let mut state = self.state.lock();
            match result {
                Ok(()) => self.write(&mut state),
                Err(_) => self.end(&mut state, End::Broken),
            }
            self.settle(&mut state);
        }
    }

    fn end(&self, state: &mut State, end: End) {
        if end == End::Broken {
            state.lose(Drops::Broken, &self.budget.dropped);
        }
        state.end = Some(end);
        self.writer.notify_waiters();
        self.tell_room(state);
    }

    fn tell_room(&self, state: &State) {
        if state.waiting > 0 {
            self.room.notify_waiters();
        }
    }

    fn write_some<const MOST: usize>(&self, queue: &VecDeque<Queued>) -> io::Result<usize> {
        let mut slices = [IoSlice::new(&[]); MOST];
        let mut count = 0;
        for (slice, frame) in slices.iter_mut().zip(queue) {
            *slice = IoSlice::new(&frame.frame);
            count += 1;
        }
        self.transport.try_write_vectored(&slices[..count])
    }

    /// Writes until the queue is empty or the socket would block.
    fn write(&self, state: &mut State) {
        while !state.queue.is_empty() {
            self.budget.sends.inc();
            let result = match state.queue.len() {
                1..=FEW => self.write_some::<FEW>(&state.queue),
                _ => self.write_some::<SLICES>(&state.queue),
            };
            match result {
                Ok(0) => return self.end(state, End::Broken),
                Ok(written) => {
                    state.advance(written);
                    if state.blocked {
                        state.moved = Some(Instant::now());
                    }
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    if !state.blocked {
                        state.blocked = true;
                        // The thread's may be a long one.
                        state.queue.shrink_to_fit();
                        state.moved = Some(Instant::now());
                        self.writer.notify_waiters();
                    }
                    self.tell_room(state);
                    return;
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return self.end(state, End::Broken),
            }
        }
        state.due = false;
        if state.blocked {
            state.blocked = false;
            state.moved = None;
        }
        self.tell_room(state);
        if state.end == Some(End::Finished) {
            self.writer.notify_waiters();
        }
    }
}

/// What one stream is handed. Its frames are written by `done`, or dropped with it.
#[must_use]
pub struct Handing<'a, T: Transport + ?Sized = dyn Transport> {
    outbox: &'a Outbox<T>,
    state: MutexGuard<'a, State>,
    stream: Stream,
    cut: Option<Position>,
}

/// What became of what was handed over.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Handed {
    /// The stream was cut: its client will stand there, and nothing more of it may be handed over.
    pub behind: Option<Position>,
    /// Others were cut: `Outbox::cuts`.
    pub others: bool,
}

impl<T: Transport + ?Sized> Handing<'_, T> {
    /// A frame of the stream. Without it the client stands at `before`.
    pub fn follow(&mut self, before: Position, frame: Bytes) {
        if self.state.end.is_some() {
            self.outbox.too_late(frame.len());
        } else if self.cut.is_none() {
            self.state.put(frame, self.stream, before);
        } else {
            self.outbox.budget.dropped.count(Drops::Cut, 1, frame.len());
        }
    }

    /// A frame that is sent whatever becomes of the stream.
    pub fn say(&mut self, frame: Bytes) {
        if self.state.end.is_some() {
            return self.outbox.too_late(frame.len());
        }
        self.state.put(frame, NONE, Position::START);
    }

    /// Writes what the socket takes, and cuts streams while too much is left; not for the sake of what is of none.
    pub fn done(self) -> Handed {
        self.end(Outbox::go)
    }

    /// As `done`, but what the socket may take is written by the connection's own task.
    pub fn later(self) -> Handed {
        self.end(Outbox::defer)
    }

    fn end(mut self, go: impl FnOnce(&Outbox<T>, &mut State)) -> Handed {
        let mut handed = Handed {
            behind: self.cut,
            others: false,
        };
        let state = &mut *self.state;
        if state.end.is_some() {
            return handed;
        }
        go(self.outbox, state);
        // Nothing is left where the socket takes all.
        let may_cut = self.stream != NONE && state.end.is_none() && state.blocked;
        while may_cut && state.takes() > self.outbox.soft() {
            let Some((stream, at)) = state.cut_largest(self.stream, &self.outbox.budget.dropped) else {
                break;
            };
            if stream == self.stream {
                handed.behind = Some(at);
            } else {
                state.cuts.push((stream, at));
                handed.others = true;
            }
            self.outbox.tell_room(state);
        }
        handed
    }
}

impl<T: Transport + ?Sized> Drop for Handing<'_, T> {
    fn drop(&mut self) {
        self.outbox.settle(&mut self.state);
    }
}

impl<T: Transport + ?Sized> Drop for Outbox<T> {
    fn drop(&mut self) {
        let state = self.state.get_mut();
        state.lose(Drops::Unflushed, &self.budget.dropped);
        self.budget.charge(state.charged, 0);
    }
}

/// Counts who waits for room.
struct Waiting<'a, T: Transport + ?Sized>(&'a Outbox<T>);

impl<'a, T: Transport + ?Sized> Waiting<'a, T> {
    fn new(outbox: &'a Outbox<T>) -> Self {
        outbox.state.lock().waiting += 1;
        Self(outbox)
    }
}

impl<T: Transport + ?Sized> Drop for Waiting<'_, T> {
    fn drop(&mut self) {
        self.0.state.lock().waiting -= 1;
    }
}

impl State {
    /// Takes the thread's queue, if it has none.
    fn borrow_queue(&mut self) {
        if self.queue.capacity() == 0 && !self.blocked {
            self.queue = QUEUE.take();
        }
    }

    /// Leaves a queue in which nothing waits to the thread.
    fn return_queue(&mut self) {
        if self.queue.is_empty() && self.queue.capacity() > 0 {
            let queue = std::mem::take(&mut self.queue);
            let kept = QUEUE.take();
            let larger = (kept.capacity()..=KEPT).contains(&queue.capacity());
            QUEUE.set(if larger { queue } else { kept });
        }
    }

    fn put(&mut self, frame: Bytes, stream: Stream, before: Position) {
        self.bytes += frame.len();
        self.queue.push_back(Queued { frame, stream, before });
    }

    /// Bytes of memory, about.
    fn takes(&self) -> usize {
        self.bytes + FRAME * self.queue.len()
    }

    /// Frames of which nothing has been written.
    fn whole(&self) -> impl Iterator<Item = &Queued> {
        self.queue.iter().skip(usize::from(self.torn))
    }

    /// Drops the frames of the stream that has most waiting, `own` among equals; returns which, and where its client
    /// stands then. `None`: no frame is of a stream.
    fn cut_largest(&mut self, own: Stream, dropped: &Dropped) -> Option<(Stream, Position)> {
        let mut sizes: BTreeMap<Stream, usize> = BTreeMap::new();
        for queued in self.whole().filter(|queued| queued.stream != NONE) {
            *sizes.entry(queued.stream).or_default() += queued.frame.len() + FRAME;
        }
        let (stream, _) = sizes.into_iter().max_by_key(|(stream, size)| (*size, *stream == own))?;
        let before = self.whole().find(|queued| queued.stream == stream)?.before;
        let mut untouched = usize::from(self.torn);
        let before_cut = (self.queue.len(), self.bytes);
        self.queue.retain(|queued| {
            let keep = untouched > 0 || queued.stream != stream;
            untouched = untouched.saturating_sub(1);
            keep
        });
        self.queue.shrink_to_fit();
        self.fewer(before_cut, Drops::Cut, dropped);
        Some((stream, before))
    }

    fn advance(&mut self, mut written: usize) {
        self.bytes -= written;
        while let Some(first) = self.queue.front_mut().map(|first| &mut first.frame) {
            if written < first.len() {
                first.advance(written);
                self.torn |= written > 0;
                return;
            }
            written -= first.len();
            self.queue.pop_front();
            self.torn = false;
        }
    }

    /// Drops what is queued, but never half a frame.
    fn drop_unsent(&mut self, why: Drops, dropped: &Dropped) {
        let before = (self.queue.len(), self.bytes);
        self.queue.truncate(usize::from(self.torn));
        self.fewer(before, why, dropped);
    }

    /// Drops what is queued.
    fn lose(&mut self, why: Drops, dropped: &Dropped) {
        let before = (self.queue.len(), self.bytes);
        self.queue = VecDeque::new();
        self.fewer(before, why, dropped);
    }

    /// Some of what was queued has been dropped: `frames` and `bytes` there were before.
    fn fewer(&mut self, (frames, bytes): (usize, usize), why: Drops, dropped: &Dropped) {
        self.bytes = self.queue.iter().map(|queued| queued.frame.len()).sum();
        dropped.count(why, frames - self.queue.len(), bytes - self.bytes);
    }
}

#[cfg(test)]
mod tests;
