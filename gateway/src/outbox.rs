//! A connection's way out: a queue of complete WebSocket frames, bounded in bytes, written to the
//! socket by whoever puts something in.
//!
//! The fan-out pushes prebuilt frames and writes them itself in one vectored call; no task is woken
//! for a socket that takes the bytes. Only when the socket would block does the connection's own
//! task (`run_writer`) carry the rest on. Frames leave in the order in which they were pushed, whole.

use bytes::{Buf, Bytes};
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::task::{Context, Poll};
use tokio::io::ReadBuf;
use tokio::net::TcpStream;
use tokio::sync::Notify;

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
const SLICES: usize = 64;

/// What a queued frame takes beside its bytes: its place in the queue and its allocation. Without it a
/// peer that reads nothing could have pongs of 2 bytes fill the memory before they fill the bound.
const FRAME: usize = 64;

/// The queue. Bounded by `bound` bytes, [`FRAME`] more for each frame: over it, everything that is not yet on its way is dropped
/// and the connection is told to close (`Overflow`), which a metric counts.
pub struct Outbox<T: ?Sized = dyn Transport> {
    bound: usize,
    state: Mutex<State>,
    /// Wakes the writer: the socket would block, or the state changed to one it must act on.
    writer: Notify,
    /// Wakes those who wait for room.
    room: Notify,
    transport: T,
}

#[derive(Default)]
struct State {
    queue: VecDeque<Bytes>,
    /// Bytes in `queue`.
    bytes: usize,
    /// The first frame of `queue` has partly been written.
    torn: bool,
    /// The socket would block: only the writer writes now.
    blocked: bool,
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
    /// An outbox that holds at most `bound` bytes.
    pub fn new(transport: T, bound: usize) -> Self {
        Self {
            bound,
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
            return;
        }
        for frame in frames {
            state.bytes += frame.len();
            state.queue.push_back(frame);
        }
        if !state.blocked {
            self.write(&mut state);
        }
        if state.bytes + FRAME * state.queue.len() > self.bound {
            state.drop_unsent();
            self.end(&mut state, End::Overflow);
        }
    }

    /// Replaces everything that is not on its way by these last frames.
    pub fn finish(&self, last: impl IntoIterator<Item = Bytes>, keep_queued: bool) {
        let mut state = self.state.lock();
        if matches!(state.end, Some(End::Broken | End::Finished)) {
            return;
        }
        if !keep_queued {
            state.drop_unsent();
        }
        for frame in last {
            state.bytes += frame.len();
            state.queue.push_back(frame);
        }
        if !state.blocked {
            self.write(&mut state);
        }
        if state.end != Some(End::Broken) {
            self.end(&mut state, End::Finished);
        }
    }

    /// Bytes waiting.
    pub fn queued(&self) -> usize {
        self.state.lock().bytes
    }

    /// Whether, and why, nothing more can be pushed.
    pub fn ended(&self) -> Option<End> {
        self.state.lock().end
    }

    /// Waits until at most `bytes` are queued, or the outbox has ended.
    pub async fn below(&self, bytes: usize) {
        loop {
            let woken = self.room.notified();
            tokio::pin!(woken);
            // Registered before the look, so that a change between look and wait is not missed.
            woken.as_mut().enable();
            {
                let state = self.state.lock();
                if state.bytes <= bytes || state.end.is_some() {
                    return;
                }
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
                let state = self.state.lock();
                match state.end {
                    Some(End::Finished) if !state.queue.is_empty() => {}
                    Some(end) => return end,
                    None => {}
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
        }
    }

    fn end(&self, state: &mut State, end: End) {
        if end == End::Broken {
            state.queue = VecDeque::new();
            state.bytes = 0;
        }
        state.end = Some(end);
        self.writer.notify_waiters();
        self.room.notify_waiters();
    }

    /// Writes until the queue is empty or the socket would block.
    fn write(&self, state: &mut State) {
        while !state.queue.is_empty() {
            let mut slices = [IoSlice::new(&[]); SLICES];
            let mut count = 0;
            for (slice, frame) in slices.iter_mut().zip(&state.queue) {
                *slice = IoSlice::new(frame);
                count += 1;
            }
            match self.transport.try_write_vectored(&slices[..count]) {
                Ok(0) => return self.end(state, End::Broken),
                Ok(written) => state.advance(written),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    if !state.blocked {
                        state.blocked = true;
                        self.writer.notify_waiters();
                    }
                    self.room.notify_waiters();
                    return;
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return self.end(state, End::Broken),
            }
        }
        if state.blocked {
            state.blocked = false;
            // An idle connection holds no buffer.
            state.queue = VecDeque::new();
        }
        self.room.notify_waiters();
        if state.end == Some(End::Finished) {
            self.writer.notify_waiters();
        }
    }
}

impl State {
    fn advance(&mut self, mut written: usize) {
        self.bytes -= written;
        while let Some(first) = self.queue.front_mut() {
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
    fn drop_unsent(&mut self) {
        self.queue.truncate(usize::from(self.torn));
        self.bytes = self.queue.iter().map(Bytes::len).sum();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use tokio::io::AsyncReadExt;

    async fn pair() -> (TcpStream, TcpStream) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        (listener.accept().await.unwrap().0, client)
    }

    #[tokio::test]
    async fn frames_arrive_whole_and_in_order_through_a_socket_that_blocks() {
        let (server, mut client) = pair().await;
        let outbox = Arc::new(Outbox::new(server, 1 << 30));
        let frame = |n: u32| Bytes::from([n.to_be_bytes().repeat(250), vec![]].concat());
        let pushing = {
            let outbox = outbox.clone();
            async move {
                for n in 0..20_000 {
                    outbox.push([frame(n)]);
                    if n % 64 == 0 {
                        tokio::task::yield_now().await;
                    }
                }
                outbox.finish([], true);
            }
        };
        let reading = async move {
            let mut all = Vec::new();
            client.read_to_end(&mut all).await.unwrap();
            all
        };
        let writing = async {
            assert_eq!(outbox.run_writer().await, End::Finished);
            outbox.transport().shutdown_write();
        };
        let ((), (), all) = tokio::join!(pushing, writing, reading);
        assert_eq!(all.len(), 20_000 * 1000);
        for (n, chunk) in all.chunks(1000).enumerate() {
            assert_eq!(chunk, frame(u32::try_from(n).unwrap()), "frame {n}");
        }
    }

    #[tokio::test]
    async fn the_smallest_frames_fill_the_bound_by_what_they_take_in_memory() {
        let (server, _client) = pair().await;
        let outbox = Outbox::new(server, 1 << 16);
        let mut state = outbox.state.lock();
        state.blocked = true;
        drop(state);
        let mut frames = 0;
        while outbox.ended().is_none() {
            outbox.push([Bytes::from_static(b"\x8a\x00")]);
            frames += 1;
        }
        assert!((500..1_100).contains(&frames), "{frames}");
    }

    #[tokio::test]
    async fn over_its_bound_it_ends_without_tearing_a_frame() {
        let (server, mut client) = pair().await;
        let outbox = Outbox::new(server, 1 << 20);
        while outbox.ended().is_none() {
            outbox.push([Bytes::from(vec![7; 10_000])]);
        }
        assert_eq!(outbox.run_writer().await, End::Overflow);
        assert!(outbox.queued() <= 10_000);
        outbox.finish([Bytes::from_static(b"last")], true);
        let writing = async {
            assert_eq!(outbox.run_writer().await, End::Finished);
            outbox.transport().shutdown_write();
        };
        let mut all = Vec::new();
        let (_, read) = tokio::join!(writing, client.read_to_end(&mut all));
        read.unwrap();
        assert_eq!((all.len() - 4) % 10_000, 0);
        assert!(all.ends_with(b"\x07last"));
    }
}
