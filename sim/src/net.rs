//! Connections: two byte streams each, that delay, block, tear frames apart, stall and are cut. What is
//! sent on one arrives in order or not at all; connections are late independently of each other.

use crate::coverage::{Coverage, Row};
use crate::shared::{Core, Event, Shared};
use bytes::{Bytes, BytesMut};
use std::borrow::Cow;
use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use tidegate::outbox::Transport;
use tidegate_protocol::{ClientMessage, Form, Invalid, ServerMessage, deflate, limits};
use tokio::io::ReadBuf;

/// Messages of so many bytes are compressed, by clients and nodes that have agreed on that: there are none of the size
/// from which on it pays.
pub(crate) const COMPRESS_BYTES: usize = 150;

/// What is on its way.
enum Packet {
    Bytes(Bytes),
    /// The sender will send no more.
    End,
}

#[derive(Default)]
struct Way {
    /// With the time of arrival, which never goes back.
    packets: VecDeque<(u64, Packet)>,
    latest: u64,
}

/// A connection.
pub(crate) struct Link {
    pub(crate) install: usize,
    pub(crate) node: usize,
    pub(crate) form: Form,
    /// Whether the node has agreed that messages may be compressed.
    compresses: bool,
    up: Way,
    down: Way,
    /// Arrived and not read.
    inbound: BytesMut,
    /// Arrived and not a whole frame.
    outbound: BytesMut,
    /// On its way down.
    in_flight: usize,
    reader: Option<Waker>,
    writer: Option<Waker>,
    client_ended: bool,
    server_ended: bool,
    /// Nothing arrives any more, in either direction.
    cut: bool,
    /// The gateway's end is an error.
    server_reset: bool,
    /// The client's end is gone.
    client_gone: bool,
    stalled_until: u64,
}

/// What a client finds in its stream.
pub(crate) enum Incoming {
    Message(ServerMessage),
    Malformed(Invalid),
    Close(Option<u16>, String),
    End,
}

impl Link {
    pub(crate) fn new(install: usize, node: usize, form: Form) -> Self {
        Self {
            install,
            node,
            form,
            compresses: false,
            up: Way::default(),
            down: Way::default(),
            inbound: BytesMut::new(),
            outbound: BytesMut::new(),
            in_flight: 0,
            reader: None,
            writer: None,
            client_ended: false,
            server_ended: false,
            cut: false,
            server_reset: false,
            client_gone: false,
            stalled_until: 0,
        }
    }

    fn wake(&mut self) {
        [self.reader.take(), self.writer.take()]
            .into_iter()
            .flatten()
            .for_each(Waker::wake);
    }

    /// The gateway's end fails from now on.
    pub(crate) fn reset_server(&mut self) {
        self.server_reset = true;
        self.wake();
    }
}

/// The gateway's end of a connection.
pub(crate) struct Socket {
    pub(crate) shared: Arc<Shared>,
    pub(crate) link: usize,
}

impl Shared {
    fn arrival(&self, core: &mut Core, latest: u64, stalled_until: u64) -> u64 {
        let latency = core.plan.latency;
        (self.clock() + core.rng.below(latency + 1))
            .max(latest)
            .max(stalled_until)
    }

    /// A client's message goes out.
    pub(crate) fn send(&self, core: &mut Core, link: usize, message: &ClientMessage) {
        let form = core.links[link].form;
        let mut body = form.encode_client(message);
        if core.links[link].compresses
            && body.len() >= COMPRESS_BYTES
            && let Some(z) = deflate::compress(&body)
        {
            core.cover.hit(Row::CompressedUp);
            body = z;
        }
        let kind = if form.is_text() { 1 } else { 2 };
        self.send_frame(core, link, kind, &body);
    }

    fn send_frame(&self, core: &mut Core, link: usize, kind: u8, body: &[u8]) {
        let mut frame = Vec::with_capacity(body.len() + 14);
        frame.push(0x80 | kind);
        match (u8::try_from(body.len()), u16::try_from(body.len())) {
            (Ok(short @ 0..=125), _) => frame.push(0x80 | short),
            (_, Ok(medium)) => {
                frame.push(0x80 | 126);
                frame.extend(medium.to_be_bytes());
            }
            _ => {
                frame.push(0x80 | 127);
                frame.extend((body.len() as u64).to_be_bytes());
            }
        }
        // A mask of zeros leaves the bytes as they are.
        frame.extend([0; 4]);
        frame.extend(body);
        self.up(core, link, frame.into());
    }

    fn up(&self, core: &mut Core, link: usize, mut bytes: Bytes) {
        if core.links[link].cut {
            return;
        }
        let torn = core.plan.torn;
        if bytes.len() > 1 && core.rng.chance(torn) {
            core.cover.hit(Row::TornFrames);
            let at = 1 + core.rng.index(bytes.len() - 1);
            let first = bytes.split_to(at);
            self.push_up(core, link, Packet::Bytes(first));
        }
        self.push_up(core, link, Packet::Bytes(bytes));
    }

    fn push_up(&self, core: &mut Core, link: usize, packet: Packet) {
        let (latest, stalled) = (core.links[link].up.latest, core.links[link].stalled_until);
        let at = self.arrival(core, latest, stalled);
        let way = &mut core.links[link].up;
        way.latest = at;
        way.packets.push_back((at, packet));
        self.at(core, at, Event::ToServer(link));
    }

    fn push_down(&self, core: &mut Core, link: usize, packet: Packet) {
        let (latest, stalled) = (core.links[link].down.latest, core.links[link].stalled_until);
        let at = self.arrival(core, latest, stalled);
        let way = &mut core.links[link].down;
        way.latest = at;
        way.packets.push_back((at, packet));
        self.at(core, at, Event::ToClient(link));
    }

    /// The client closes its end, after what it has sent; with a close frame, if it is polite.
    pub(crate) fn client_closes(&self, core: &mut Core, link: usize, code: Option<u16>) {
        if let Some(code) = code {
            self.send_frame(core, link, 8, &code.to_be_bytes());
        }
        self.client_dies(core, link);
    }

    /// The client's end is gone; what it has sent still arrives.
    pub(crate) fn client_dies(&self, core: &mut Core, link: usize) {
        core.links[link].client_gone = true;
        if !core.links[link].cut && !std::mem::replace(&mut core.links[link].client_ended, true) {
            self.push_up(core, link, Packet::End);
        }
    }

    /// Nothing arrives any more. Both sides find out, at some time.
    pub(crate) fn cut(&self, core: &mut Core, link: usize) {
        if std::mem::replace(&mut core.links[link].cut, true) {
            return;
        }
        core.cover.hit(Row::Cuts);
        let late = core.rng.chance(250);
        if late {
            core.cover.hit(Row::HalfOpen);
        }
        let now = self.now();
        let most = if late { 30_000 } else { 300 };
        for event in [Event::ServerSees(link), Event::ClientSees(link)] {
            let wait = core.rng.below(most);
            self.at(core, now + wait, event);
        }
    }

    /// Nothing arrives for a while.
    pub(crate) fn stall(&self, core: &mut Core, link: usize, ms: u64) {
        core.cover.hit(Row::Stalls);
        let until = self.now() + ms;
        let link = &mut core.links[link];
        link.stalled_until = link.stalled_until.max(until);
    }

    /// What was sent to the gateway arrives.
    pub(crate) fn arrives_at_server(&self, core: &mut Core, index: usize) {
        let now = self.now();
        let link = &mut core.links[index];
        if link.stalled_until > now {
            let until = link.stalled_until;
            return self.at(core, until, Event::ToServer(index));
        }
        if link.cut {
            link.up.packets.clear();
            return;
        }
        match link.up.packets.pop_front() {
            Some((_, Packet::Bytes(bytes))) => {
                link.inbound.extend_from_slice(&bytes);
                let node = link.node;
                link.reader.take().into_iter().for_each(Waker::wake);
                core.trace.mix(index as u64);
                core.trace.bytes(&bytes);
                core.say(now, || format!("link {index} → node {node}: {} bytes", bytes.len()));
            }
            Some((_, Packet::End)) => {
                link.client_ended = true;
                link.wake();
            }
            None => {}
        }
    }

    /// What was sent to the client arrives; complete frames are returned.
    pub(crate) fn arrives_at_client(&self, core: &mut Core, index: usize) -> Vec<Incoming> {
        let now = self.now();
        let link = &mut core.links[index];
        if link.stalled_until > now {
            let until = link.stalled_until;
            self.at(core, until, Event::ToClient(index));
            return vec![];
        }
        if link.cut {
            return vec![];
        }
        let packet = link.down.packets.pop_front();
        if link.client_gone {
            // Nobody is there: the gateway's system hears of it.
            link.reset_server();
            return vec![];
        }
        match packet {
            Some((_, Packet::Bytes(bytes))) => {
                link.in_flight -= bytes.len();
                link.writer.take().into_iter().for_each(Waker::wake);
                link.outbound.extend_from_slice(&bytes);
                core.trace.mix(index as u64 ^ 0xff00);
                core.trace.bytes(&bytes);
                core.links[index].frames(&mut core.cover)
            }
            Some((_, Packet::End)) => {
                vec![Incoming::End]
            }
            None => vec![],
        }
    }
}

impl Link {
    /// Takes the complete frames out of what has arrived.
    fn frames(&mut self, cover: &mut Coverage) -> Vec<Incoming> {
        // As a rule one.
        let mut all = Vec::with_capacity(1);
        loop {
            let (head, len) = match *self.outbound {
                [_, short @ 0..=125, ..] => (2, usize::from(short)),
                [_, 126, a, b, ..] => (4, usize::from(u16::from_be_bytes([a, b]))),
                [_, 127, 0, 0, 0, 0, a, b, c, d, ..] => (10, u32::from_be_bytes([a, b, c, d]) as usize),
                _ => return all,
            };
            if self.outbound.len() < head + len {
                return all;
            }
            let frame = self.outbound.split_to(head + len);
            let body = &frame[head..];
            all.push(match frame[0] {
                0x81 | 0x82 => match self.decode(body, cover) {
                    Ok(message) => {
                        if let ServerMessage::Welcome(welcome) = &message {
                            self.compresses = welcome.caps.iter().any(|cap| cap == deflate::CAP);
                        }
                        Incoming::Message(message)
                    }
                    Err(invalid) => Incoming::Malformed(invalid),
                },
                0x88 => match body {
                    [a, b, why @ ..] => Incoming::Close(
                        Some(u16::from_be_bytes([*a, *b])),
                        String::from_utf8_lossy(why).into_owned(),
                    ),
                    _ => Incoming::Close(None, "closed without a reason".into()),
                },
                _ => continue,
            });
        }
    }
}

impl Link {
    /// A message, inflated if it is compressed and that was agreed on.
    fn decode(&self, body: &[u8], cover: &mut Coverage) -> Result<ServerMessage, Invalid> {
        if !self.compresses {
            return self.form.decode_server(body);
        }
        let message = deflate::expand(body, limits::MESSAGE_BYTES)?;
        cover.add(Row::CompressedDown, u64::from(matches!(message, Cow::Owned(_))));
        self.form.decode_server(&message)
    }
}

impl Transport for Socket {
    fn poll_read(&self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut core = self.shared.core.lock();
        let link = &mut core.links[self.link];
        if link.server_reset {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        if !link.inbound.is_empty() {
            let count = buf.remaining().min(link.inbound.len());
            buf.put_slice(&link.inbound.split_to(count));
            return Poll::Ready(Ok(()));
        }
        // The packet that says so has arrived only if nothing is on its way.
        if link.client_ended && link.up.packets.is_empty() {
            return Poll::Ready(Ok(()));
        }
        link.reader = Some(cx.waker().clone());
        Poll::Pending
    }

    fn try_write_vectored(&self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        let mut guard = self.shared.core.lock();
        let core = &mut *guard;
        let link = &mut core.links[self.link];
        if link.server_reset || link.server_ended {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let mut room = core.plan.window.saturating_sub(link.in_flight);
        if room == 0 {
            core.cover.hit(Row::Blocked);
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let mut bytes = BytesMut::with_capacity(bufs.iter().map(|buf| buf.len()).sum::<usize>().min(room));
        for buf in bufs {
            let count = buf.len().min(room);
            bytes.extend_from_slice(&buf[..count]);
            room -= count;
        }
        let mut bytes = bytes.freeze();
        let count = bytes.len();
        link.in_flight += count;
        if link.cut {
            return Ok(count);
        }
        let torn = core.plan.torn;
        if count > 1 && core.rng.chance(torn) {
            core.cover.hit(Row::TornFrames);
            let at = 1 + core.rng.index(count - 1);
            let first = bytes.split_to(at);
            self.shared.push_down(core, self.link, Packet::Bytes(first));
        }
        self.shared.push_down(core, self.link, Packet::Bytes(bytes));
        Ok(count)
    }

    fn poll_write_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut core = self.shared.core.lock();
        let window = core.plan.window;
        let link = &mut core.links[self.link];
        if link.server_reset || link.in_flight < window {
            return Poll::Ready(Ok(()));
        }
        link.writer = Some(cx.waker().clone());
        Poll::Pending
    }

    fn shutdown_write(&self) {
        let mut core = self.shared.core.lock();
        let link = &mut core.links[self.link];
        let ended = std::mem::replace(&mut link.server_ended, true);
        if !ended && !link.cut && !link.client_gone {
            self.shared.push_down(&mut core, self.link, Packet::End);
        }
    }
}

/// A socket that is dropped is closed.
impl Drop for Socket {
    fn drop(&mut self) {
        self.shutdown_write();
    }
}

impl Link {
    pub(crate) fn is_reset(&self) -> bool {
        self.server_reset
    }

    /// What was held up goes on.
    pub(crate) fn unstall(&mut self) {
        self.stalled_until = 0;
    }
}
