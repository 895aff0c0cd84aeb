//! A connection's way in: WebSocket frames (RFC 6455) out of a buffer that belongs to the thread.
//!
//! What is usual - a whole frame that is a whole message, or a ping - is unmasked and handed on where it was read,
//! and nothing of it is kept. For all else tungstenite has the last word: a frame that has not come in full, a message
//! in fragments, a close, anything that the protocol forbids. It is fed frame by frame, and dropped when a message
//! is complete, so that a connection that waits holds no buffer.

use crate::outbox::{Outbox, Transport};
use bytes::Bytes;
use std::cell::Cell;
use std::io::{self, Cursor, Read, Write};
use std::ops::ControlFlow;
use std::task::{Context, Poll};
use tokio::io::ReadBuf;
use tokio_tungstenite::tungstenite::protocol::frame::FrameHeader;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{Control, Data, OpCode};
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig, WebSocketContext};
use tokio_tungstenite::tungstenite::{Error, Message};

/// Bytes taken in by one read.
pub const SCRATCH: usize = 16 << 10;

/// What tungstenite takes in of it at a time.
const FED: usize = 4 << 10;

/// A control frame carries no more (RFC 6455 §5.5).
const CONTROL: usize = 125;

thread_local! {
    /// At its full length, so that it is not zeroed for every read.
    static BUFFER: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// What a frame brought.
#[derive(Clone, Copy, Debug)]
pub enum Incoming<'a> {
    /// A text message, valid UTF-8.
    Text(&'a [u8]),
    /// A binary message.
    Binary(&'a [u8]),
    /// A ping, which has been answered, a pong, or the answer to our close.
    Control,
}

impl Incoming<'_> {
    /// Bytes of the message; none for what is no message.
    pub fn len(&self) -> usize {
        match self {
            Self::Text(bytes) | Self::Binary(bytes) => bytes.len(),
            Self::Control => 0,
        }
    }

    /// Whether there is none, or it has nothing.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Why nothing more will come.
#[derive(Debug)]
pub enum Ended {
    /// The peer said so.
    Closed,
    /// Its socket is at its end.
    Lost,
    /// It broke the protocol, or a limit.
    Broken(Box<Error>),
}

/// Reading stopped, and goes on with the next call.
pub type Flow = ControlFlow<()>;

/// The state of a connection between two reads.
pub struct Ws {
    /// Bytes of a message, at most.
    limit: usize,
    /// While it is in the middle of something.
    context: Option<Box<WebSocketContext>>,
    /// Bytes of the frame that `context` is being fed which have not come yet.
    left: u64,
    /// Fragments of a message have come, and more will.
    is_open: bool,
    /// The begin of a header.
    rest: Box<[u8]>,
    /// What was behind a message after which reading stopped, from there.
    paused: Option<Box<Filled>>,
    /// The last read brought as much as one may.
    was_full: bool,
}

/// What was read.
#[must_use]
pub struct Filled {
    buffer: Vec<u8>,
    /// Where to go on, and where what was read ends.
    from: usize,
    end: usize,
}

impl Ws {
    /// Of a connection on which these bytes came after the upgrade request.
    pub fn new(leftover: &[u8], limit: usize) -> Self {
        Self {
            limit,
            context: None,
            left: 0,
            is_open: false,
            rest: Box::default(),
            paused: (!leftover.is_empty()).then(|| {
                Box::new(Filled {
                    buffer: leftover.to_vec(),
                    from: 0,
                    end: leftover.len(),
                })
            }),
            was_full: false,
        }
    }

    /// Whether more has come, or probably has, than was taken.
    pub fn has_more(&self) -> bool {
        self.paused.is_some() || self.was_full
    }

    /// Reads what is there. `Err`: the socket has failed; nothing read: it is at its end. What comes back has to go to
    /// `take` before anything else is read on this thread.
    pub fn poll_fill<T: Transport + ?Sized>(
        &mut self,
        cx: &mut Context<'_>,
        transport: &T,
    ) -> Poll<io::Result<Filled>> {
        if let Some(paused) = self.paused.take() {
            return Poll::Ready(Ok(*paused));
        }
        let mut buffer = BUFFER.take();
        let from = self.rest.len();
        if buffer.len() < from + SCRATCH {
            buffer.resize(from + SCRATCH, 0);
        }
        buffer[..from].copy_from_slice(&self.rest);
        let mut into = ReadBuf::new(&mut buffer[from..from + SCRATCH]);
        let polled = transport.poll_read(cx, &mut into);
        let read = into.filled().len();
        match polled {
            Poll::Ready(Ok(())) => {
                self.rest = Box::default();
                self.was_full = read == SCRATCH;
                let end = if read == 0 { 0 } else { from + read };
                Poll::Ready(Ok(Filled { buffer, from: 0, end }))
            }
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Pending => {
                give_back(buffer);
                Poll::Pending
            }
        }
    }

    /// Hands on what was read, message by message, until there is no more or `each` says to stop. Pongs and the answer
    /// to a close go to the outbox.
    pub fn take<T: Transport + ?Sized>(
        &mut self,
        filled: Filled,
        outbox: &Outbox<T>,
        mut each: impl FnMut(Incoming<'_>) -> Flow,
    ) -> Result<(), Ended> {
        let Filled { mut buffer, from, end } = filled;
        if end == 0 {
            return Err(Ended::Lost);
        }
        let from = self.frames(&mut buffer[..end], from, outbox, &mut each)?;
        if from < end {
            self.paused = Some(Box::new(Filled { buffer, from, end }));
        } else {
            give_back(buffer);
        }
        Ok(())
    }

    /// Reads what is there and throws it away. `false`: nothing more will come.
    pub fn poll_skip<T: Transport + ?Sized>(&mut self, cx: &mut Context<'_>, transport: &T) -> Poll<bool> {
        self.poll_fill(cx, transport).map(|filled| match filled {
            Ok(Filled { buffer, end, .. }) => {
                give_back(buffer);
                end > 0
            }
            Err(_) => false,
        })
    }

    /// Says from where to go on.
    fn frames<T: Transport + ?Sized>(
        &mut self,
        buffer: &mut [u8],
        mut at: usize,
        outbox: &Outbox<T>,
        each: &mut impl FnMut(Incoming<'_>) -> Flow,
    ) -> Result<usize, Ended> {
        while at < buffer.len() {
            if self.left > 0 {
                // A header may claim nearly 2^64 bytes: nothing is added to that.
                let some = usize::try_from(self.left).map_or(buffer.len() - at, |left| left.min(buffer.len() - at));
                let here = at + some;
                self.left -= some as u64;
                let flow = self.feed(&buffer[at..here], outbox, each)?;
                at = here;
                if self.left == 0 && !self.is_open {
                    self.context = None;
                }
                if flow.is_break() {
                    return Ok(at);
                }
                continue;
            }
            let mut cursor = Cursor::new(&buffer[at..]);
            let parsed = FrameHeader::parse(&mut cursor).map_err(|error| Ended::Broken(Box::new(error)))?;
            let Some((header, len)) = parsed else {
                self.rest = buffer[at..].into();
                return Ok(buffer.len());
            };
            let head = usize::try_from(cursor.position()).unwrap_or(usize::MAX);
            let from = at + head;
            let whole = usize::try_from(len).ok().filter(|len| *len <= buffer.len() - from);
            match whole.filter(|len| self.is_usual(&header, *len)).zip(header.mask) {
                Some((len, mask)) => {
                    let payload = &mut buffer[from..from + len];
                    unmask(payload, mask);
                    let incoming = match header.opcode {
                        OpCode::Data(Data::Text) => Incoming::Text(utf8(payload)?),
                        OpCode::Data(_) => Incoming::Binary(payload),
                        OpCode::Control(control) => {
                            if control == Control::Ping {
                                pong(outbox, payload);
                            }
                            Incoming::Control
                        }
                    };
                    at = from + len;
                    if each(incoming).is_break() {
                        return Ok(at);
                    }
                }
                None => {
                    if matches!(header.opcode, OpCode::Data(_)) {
                        self.is_open = !header.is_final;
                    }
                    self.left = len.saturating_add(head as u64);
                    self.context.get_or_insert_with(|| Box::new(context(self.limit)));
                }
            }
        }
        Ok(at)
    }

    /// A frame that can be handed on as it is.
    fn is_usual(&self, header: &FrameHeader, len: usize) -> bool {
        let size = match header.opcode {
            OpCode::Data(Data::Text | Data::Binary) => self.limit,
            OpCode::Control(Control::Ping | Control::Pong) => CONTROL,
            OpCode::Data(_) | OpCode::Control(_) => return false,
        };
        let plain = !header.rsv1 && !header.rsv2 && !header.rsv3;
        self.context.is_none() && header.is_final && plain && len <= size
    }

    /// Feeds part of one frame to tungstenite, which hands on at most one message.
    fn feed<T: Transport + ?Sized>(
        &mut self,
        input: &[u8],
        outbox: &Outbox<T>,
        each: &mut impl FnMut(Incoming<'_>) -> Flow,
    ) -> Result<Flow, Ended> {
        let Some(context) = &mut self.context else {
            return Ok(Flow::Continue(()));
        };
        let mut feed = Feed { input, outbox };
        let mut flow = Flow::Continue(());
        loop {
            let incoming = context.read(&mut feed);
            let one = match &incoming {
                Ok(Message::Text(text)) => each(Incoming::Text(text.as_bytes())),
                Ok(Message::Binary(bytes)) => each(Incoming::Binary(bytes)),
                Ok(_) => each(Incoming::Control),
                // It has answered what had to be answered, and wants more.
                Err(Error::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => return Ok(flow),
                Err(Error::ConnectionClosed | Error::AlreadyClosed) => return Err(Ended::Closed),
                Err(_) => match incoming {
                    Err(error) => return Err(Ended::Broken(Box::new(error))),
                    Ok(_) => return Ok(flow),
                },
            };
            if one.is_break() {
                flow = one;
            }
        }
    }
}

fn give_back(buffer: Vec<u8>) {
    // Another length only where something was left over.
    if (SCRATCH..=2 * SCRATCH).contains(&buffer.len()) {
        BUFFER.set(buffer);
    }
}

fn context(limit: usize) -> WebSocketContext {
    // It reserves what a frame announces, at most the limit; memory that is not written to costs little.
    let config = WebSocketConfig::default()
        .read_buffer_size(FED)
        .write_buffer_size(0)
        .max_message_size(Some(limit))
        .max_frame_size(Some(limit));
    WebSocketContext::from_partially_read(Vec::new(), Role::Server, Some(config))
}

fn unmask(payload: &mut [u8], mask: [u8; 4]) {
    let mut words = payload.chunks_exact_mut(4);
    for word in &mut words {
        for (byte, mask) in word.iter_mut().zip(mask) {
            *byte ^= mask;
        }
    }
    for (byte, mask) in words.into_remainder().iter_mut().zip(mask) {
        *byte ^= mask;
    }
}

fn utf8(payload: &[u8]) -> Result<&[u8], Ended> {
    match std::str::from_utf8(payload) {
        Ok(text) => Ok(text.as_bytes()),
        Err(error) => Err(Ended::Broken(Box::new(Error::Utf8(error.to_string())))),
    }
}

fn pong<T: Transport + ?Sized>(outbox: &Outbox<T>, payload: &[u8]) {
    let mut frame = [0; 2 + CONTROL];
    frame[0] = 0x8a;
    // Not longer than a control frame may be.
    frame[1] = u8::try_from(payload.len()).unwrap_or_default();
    frame[2..2 + payload.len()].copy_from_slice(payload);
    outbox.push_bytes(&frame[..2 + payload.len()]);
}

/// What tungstenite reads, and where it writes.
struct Feed<'a, T: Transport + ?Sized> {
    input: &'a [u8],
    outbox: &'a Outbox<T>,
}

impl<T: Transport + ?Sized> Read for Feed<'_, T> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if self.input.is_empty() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        self.input.read(into)
    }
}

impl<T: Transport + ?Sized> Write for Feed<'_, T> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.outbox.push([Bytes::copy_from_slice(bytes)]);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests;
