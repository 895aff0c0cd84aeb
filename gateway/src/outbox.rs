//! A connection's way out: a queue of complete WebSocket frames, bounded in bytes, written to the
//! socket by whoever puts something in.
//!
//! The fan-out pushes prebuilt frames and writes them itself in one vectored call; no task is woken
//! for a socket that takes the bytes, and nothing is allocated. Only when the socket would block, or what
//! is said can wait (`later`), does the connection's own task (`poll_writer`) carry the rest on, in as few calls as it
//! takes. Frames leave in the order in which they were pushed, whole.
//!
//! A frame may belong to a *stream*: what a live subscription is brought. Where a socket takes too little,
//! the stream that has most waiting is cut: its frames are dropped, and its subscription catches up from
//! before the first of them once the rest has gone out. So a slow reader gets less, and converges.

mod queue;

#[cfg(test)]
mod tests;

use crate::metrics::{Dropped, Drops};
use bytes::Bytes;
use futures_util::task::AtomicWaker;
use parking_lot::{Mutex, MutexGuard};
use prometheus::{IntCounter, IntGauge};
use queue::{Queued, State};
use rustix::io::Errno;
use rustix::net::SendFlags;
use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
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
            ready!(self.poll_read_ready(cx))?;
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
        let written = match bufs {
            [one] => rustix::net::send(self, one, SendFlags::empty()),
            _ => rustix::io::writev(self, bufs),
        };
        match written {
            // The runtime has to know, or it would not say when that changes; so by its own way again.
            Err(Errno::AGAIN) => Self::try_write_vectored(self, bufs),
            written => Ok(written?),
        }
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

/// Bytes that may wait, and what each frame takes beside them.
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
    /// Bytes that wait, and what each frame takes beside them.
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

/// The way out. What a delivery touches stands together: the state, and the socket behind it.
#[repr(C)]
pub struct Outbox<T: Transport + ?Sized = dyn Transport> {
    bounds: Bounds,
    budget: Arc<Budget>,
    /// The connection's own task: the socket would block, or the state changed to one it must act on.
    task: AtomicWaker,
    state: Mutex<State>,
    transport: T,
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
            task: AtomicWaker::new(),
            state: Mutex::default(),
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
        let queue = state.queue();
        for frame in frames {
            queue.put(frame, NONE, Position::START);
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
        let mut written = 0;
        if state.is_empty() {
            self.budget.sends.inc();
            // What fails here fails again with the next call.
            written = self.transport.try_write_vectored(&[IoSlice::new(frame)]).unwrap_or(0);
            if written == frame.len() {
                return;
            }
        }
        let queue = state.queue();
        queue.torn |= written > 0;
        queue.put(Bytes::copy_from_slice(&frame[written..]), NONE, Position::START);
        self.go(&mut state);
        self.settle(&mut state);
    }

    /// Queues a frame for the connection's own task: with all that is said before it gets there, it is one write.
    pub fn push_later(&self, frame: Bytes) {
        let mut state = self.state.lock();
        if state.end.is_some() {
            return self.too_late(frame.len());
        }
        state.queue().put(frame, NONE, Position::START);
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
        let cuts = &mut state.queue().cuts;
        let cut = cuts.iter().position(|(cut, _)| *cut == stream);
        let cut = cut.map(|index| cuts.swap_remove(index).1);
        Handing {
            outbox: self,
            state,
            stream,
            cut,
        }
    }

    /// Hands a stream frames that all follow each other, straight from where they are, if nothing waits before them; each
    /// with where its client stands without it. `slices` are the same frames, `bytes` in all. `None`: by `hand`. The call is
    /// counted by who makes it.
    #[inline]
    pub fn hand_at_once<'f, Frames: Iterator<Item = (Position, &'f Bytes)>>(
        &self,
        stream: Stream,
        slices: &[IoSlice<'_>],
        bytes: usize,
        frames: impl FnOnce() -> Frames,
    ) -> Option<Handed> {
        let state = self.state.lock();
        if state.end.is_some() || state.queue.is_some() {
            return None;
        }
        // What fails here fails again there.
        let sent = self
            .transport
            .try_write_vectored(slices)
            .ok()
            .filter(|sent| *sent > 0)?;
        if sent == bytes {
            return Some(Handed::default());
        }
        Some(self.keep_rest(state, stream, sent, frames()))
    }

    /// The socket has taken so many bytes of what a stream was handed.
    #[cold]
    fn keep_rest<'f>(
        &self,
        mut state: MutexGuard<'_, State>,
        stream: Stream,
        sent: usize,
        frames: impl Iterator<Item = (Position, &'f Bytes)>,
    ) -> Handed {
        let queue = state.queue();
        let mut left = sent;
        for (before, frame) in frames {
            if left >= frame.len() {
                left -= frame.len();
                continue;
            }
            queue.torn |= left > 0;
            queue.put(frame.slice(left..), stream, before);
            left = 0;
        }
        let rest = Handing {
            outbox: self,
            state,
            stream,
            cut: None,
        };
        rest.done()
    }

    /// Streams that were cut for another's sake. They take nothing more; `close` them.
    pub fn cuts(&self) -> Vec<(Stream, Position)> {
        let state = self.state.lock();
        state.queue.as_ref().map_or_else(Vec::new, |queue| queue.cuts.clone())
    }

    /// The stream is at its end: what waits of it goes out, and is cut no more.
    pub fn close(&self, stream: Stream) {
        let mut state = self.state.lock();
        let Some(queue) = &mut state.queue else { return };
        queue.close(stream);
        self.settle(&mut state);
    }

    /// For how long the socket has taken nothing of what waits for it.
    pub fn stalled(&self) -> Duration {
        let moved = self.state.lock().queue.as_ref().and_then(|queue| queue.moved);
        moved.map_or(Duration::ZERO, |moved| moved.elapsed())
    }

    /// Writes what has been queued, and ends if too much is left.
    fn go(&self, state: &mut State) {
        if !state.is_blocked() {
            self.write(state);
        }
        self.bound(state);
    }

    /// Leaves what has been queued to the writer, and ends if it is too much.
    fn defer(&self, state: &mut State) {
        let queue = state.queue();
        if !queue.blocked && !std::mem::replace(&mut queue.due, true) {
            self.task.wake();
        }
        self.bound(state);
    }

    /// What is left waits: it is charged, and where nothing is, no queue is kept.
    fn settle(&self, state: &mut State) {
        let Some(queue) = &mut state.queue else { return };
        let takes = queue.takes();
        self.budget.charge(std::mem::replace(&mut queue.charged, takes), takes);
        state.return_queue();
    }

    fn bound(&self, state: &mut State) {
        let Some(queue) = &mut state.queue else { return };
        if queue.takes() > self.bounds.hard {
            queue.drop_unsent(Drops::Overflow, &self.budget.dropped);
            self.end(state, End::Overflow);
        }
    }

    /// Replaces everything that is not on its way by these last frames.
    pub fn finish(&self, last: impl IntoIterator<Item = Bytes>, keep_queued: bool) {
        let mut state = self.state.lock();
        if matches!(state.end, Some(End::Broken | End::Finished)) {
            return;
        }
        let queue = state.queue();
        if !keep_queued {
            queue.drop_unsent(Drops::Stalled, &self.budget.dropped);
        }
        for frame in last {
            queue.put(frame, NONE, Position::START);
        }
        if !queue.blocked {
            self.write(&mut state);
        }
        if state.end != Some(End::Broken) {
            self.end(&mut state, End::Finished);
        }
        self.settle(&mut state);
    }

    /// Bytes waiting.
    pub fn queued(&self) -> usize {
        self.state.lock().bytes()
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
        let enough = |state: &State| state.bytes() <= bytes || state.end.is_some();
        if enough(&self.state.lock()) {
            return;
        }
        // Only who waits is told: from before the look, so that a change between look and wait is not missed.
        let waiting = Waiting::new(self);
        loop {
            let woken = waiting.room.notified();
            tokio::pin!(woken);
            woken.as_mut().enable();
            if enough(&self.state.lock()) {
                return;
            }
            woken.await;
        }
    }

    /// As `poll_writer`. Cancel-safe.
    pub async fn run_writer(&self) -> End {
        std::future::poll_fn(|cx| self.poll_writer(cx)).await
    }

    /// Carries on where the socket blocked. Ready when the outbox has ended: at once on overflow or a broken socket, after
    /// the last byte when finished. The task that polls it is the connection's own, and is woken by `wake`, too.
    pub fn poll_writer(&self, cx: &mut Context<'_>) -> Poll<End> {
        self.task.register(cx.waker());
        loop {
            let blocked = {
                let mut state = self.state.lock();
                match state.end {
                    Some(End::Finished) if !state.is_empty() => {}
                    Some(end) => return Poll::Ready(end),
                    None => {}
                }
                let Some(queue) = &state.queue else {
                    return Poll::Pending;
                };
                if queue.due && !queue.blocked {
                    self.write(&mut state);
                    self.settle(&mut state);
                    continue;
                }
                queue.blocked
            };
            if !blocked {
                return Poll::Pending;
            }
            let result = ready!(self.transport.poll_write_ready(cx));
            let mut state = self.state.lock();
            match result {
                Ok(()) => self.write(&mut state),
                Err(_) => self.end(&mut state, End::Broken),
            }
            self.settle(&mut state);
        }
    }

    /// The task that is to be woken; see `wake`. Before it looks at what it may be woken for.
    pub fn register(&self, cx: &Context<'_>) {
        self.task.register(cx.waker());
    }

    /// Wakes the connection's own task.
    pub fn wake(&self) {
        self.task.wake();
    }

    fn end(&self, state: &mut State, end: End) {
        if let Some(queue) = &mut state.queue {
            if end == End::Broken {
                queue.lose(Drops::Broken, &self.budget.dropped);
            }
            queue.tell_room();
        }
        state.end = Some(end);
        self.task.wake();
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
        while let Some(queue) = state.queue.as_mut().filter(|queue| !queue.frames.is_empty()) {
            self.budget.sends.inc();
            let result = match queue.frames.len() {
                1..=FEW => self.write_some::<FEW>(&queue.frames),
                _ => self.write_some::<SLICES>(&queue.frames),
            };
            match result {
                Ok(0) => return self.end(state, End::Broken),
                Ok(written) => {
                    queue.advance(written);
                    if queue.blocked {
                        queue.moved = Some(Instant::now());
                    }
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    if !queue.blocked {
                        queue.blocked = true;
                        // The thread's may be a long one.
                        queue.frames.shrink_to_fit();
                        queue.moved = Some(Instant::now());
                        self.task.wake();
                    }
                    return queue.tell_room();
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return self.end(state, End::Broken),
            }
        }
        if let Some(queue) = &mut state.queue {
            queue.due = false;
            queue.blocked = false;
            queue.moved = None;
            queue.tell_room();
        }
        if state.end == Some(End::Finished) {
            self.task.wake();
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
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
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
            self.state.queue().put(frame, self.stream, before);
        } else {
            self.outbox.budget.dropped.count(Drops::Cut, 1, frame.len());
        }
    }

    /// A frame that is sent whatever becomes of the stream.
    pub fn say(&mut self, frame: Bytes) {
        if self.state.end.is_some() {
            return self.outbox.too_late(frame.len());
        }
        self.state.queue().put(frame, NONE, Position::START);
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
        let may_cut = self.stream != NONE && state.end.is_none();
        let Some(queue) = state.queue.as_mut().filter(|queue| may_cut && queue.blocked) else {
            return handed;
        };
        while queue.takes() > self.outbox.soft() {
            let Some((stream, at)) = queue.cut_largest(self.stream, &self.outbox.budget.dropped) else {
                break;
            };
            if stream == self.stream {
                handed.behind = Some(at);
            } else {
                queue.cuts.push((stream, at));
                handed.others = true;
            }
            queue.tell_room();
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
        if let Some(queue) = &mut self.state.get_mut().queue {
            queue.lose(Drops::Unflushed, &self.budget.dropped);
            self.budget.charge(queue.charged, 0);
        }
    }
}

/// Counts who waits for room.
struct Waiting<'a, T: Transport + ?Sized> {
    outbox: &'a Outbox<T>,
    room: Arc<Notify>,
}

impl<'a, T: Transport + ?Sized> Waiting<'a, T> {
    fn new(outbox: &'a Outbox<T>) -> Self {
        let mut state = outbox.state.lock();
        let queue = state.queue();
        queue.waiting += 1;
        let room = queue.room.get_or_insert_default().clone();
        Self { outbox, room }
    }
}

impl<T: Transport + ?Sized> Drop for Waiting<'_, T> {
    fn drop(&mut self) {
        let mut state = self.outbox.state.lock();
        // It is kept as long as somebody waits.
        let queue = state.queue();
        queue.waiting -= 1;
        if queue.waiting == 0 {
            queue.room = None;
        }
        self.outbox.settle(&mut state);
    }
}
