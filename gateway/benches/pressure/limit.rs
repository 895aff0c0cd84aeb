//! The limit: the least that a server has to do. One thread, and one loop over epoll; a message of the writer becomes
//! a prebuilt frame with its number, what waits for a socket leaves in one write, and the writer gets its acks in one.
//! No store, no protocol, no sessions.
//!
//! A connection says in its first byte what it is: [`SUBSCRIBER`], [`WRITER`] or [`COPY`].

use crate::wire;
use bytes::Bytes;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::fd::OwnedFd;
use std::io::{self, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use tidegate::frame;
use tidegate_protocol::form::Form;
use tidegate_protocol::{Mid, Seq, Writer, msgpack};

/// Is brought what the writer sends.
pub(crate) const SUBSCRIBER: u8 = b's';
/// Sends clients' frames; each is answered with [`ACK`] after it was brought to the subscribers.
pub(crate) const WRITER: u8 = b'w';
/// As `SUBSCRIBER`'s opposite in bulk: the byte is followed by a length of 8 bytes; so many bytes come back.
pub(crate) const COPY: u8 = b'c';
/// What answers the first byte.
pub(crate) const READY: u8 = b'r';
/// What answers a message: a map of one entry, `"t": "ack"`.
const ACK: &[u8] = b"\x82\x07\x81\xa1t\xa3ack";

const LISTENER: u64 = u64::MAX;
/// The number stands behind the head of the frame, the head of the array, `"c"`, `n`, and the byte that says 64 bits.
const SEQ_AT: usize = 4 + 5;

/// Runs until its standard input is closed, with the process that started it.
#[allow(clippy::print_stdout, reason = "as a gateway, it says where it listens")]
pub(crate) fn main() -> io::Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    println!("the limit listens on ws://{}", listener.local_addr()?);
    listener.set_nonblocking(true)?;
    let epoll = epoll::create(CreateFlags::CLOEXEC)?;
    epoll::add(&epoll, &listener, EventData::new_u64(LISTENER), EventFlags::IN)?;
    epoll::add(&epoll, io::stdin(), EventData::new_u64(STDIN), EventFlags::IN)?;
    let mut limit = Limit {
        epoll,
        peers: vec![],
        seq: 0,
        frame: prebuilt(),
        round: vec![],
        scratch: vec![0; 256 << 10],
    };
    let mut events = Vec::with_capacity(1_024);
    loop {
        events.clear();
        match epoll::wait(&limit.epoll, rustix::buffer::spare_capacity(&mut events), None) {
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => continue,
            Err(error) => return Err(error.into()),
        }
        for event in &events {
            match event.data.u64() {
                STDIN => return Ok(()),
                LISTENER => limit.accept(&listener)?,
                at => limit.serve(usize::try_from(at).expect("an index"), event.flags),
            }
        }
    }
}

const STDIN: u64 = u64::MAX - 1;

struct Peer {
    socket: TcpStream,
    role: Option<u8>,
    /// What the socket did not take.
    waiting: Vec<u8>,
    /// The beginning of the writer's next frame.
    partial: Vec<u8>,
}

struct Limit {
    epoll: OwnedFd,
    /// By the number that epoll knows them by; a place is not used again.
    peers: Vec<Option<Peer>>,
    seq: u64,
    frame: Vec<u8>,
    /// The frames of what the writer has sent, one after the other.
    round: Vec<u8>,
    scratch: Vec<u8>,
}

/// A change of 200 bytes, as the gateway sends it.
fn prebuilt() -> Vec<u8> {
    let body = msgpack::encode_body(
        Writer(1 << 60),
        Mid::new(1_000).expect("a mid"),
        &[crate::author::change()],
    );
    let frame: Bytes = frame::change(Form::Msgpack, 1, &msgpack::payload(Seq::ZERO, 1 << 40, &body));
    frame.to_vec()
}

impl Limit {
    fn accept(&mut self, listener: &TcpListener) -> io::Result<()> {
        loop {
            let socket = match listener.accept() {
                Ok((socket, _)) => socket,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            };
            socket.set_nodelay(true)?;
            socket.set_nonblocking(true)?;
            let at = EventData::new_u64(self.peers.len() as u64);
            epoll::add(&self.epoll, &socket, at, EventFlags::IN)?;
            self.peers.push(Some(Peer {
                socket,
                role: None,
                waiting: vec![],
                partial: vec![],
            }));
        }
    }

    fn serve(&mut self, at: usize, flags: EventFlags) {
        let Some(peer) = self.peers[at].as_mut() else { return };
        if flags.contains(EventFlags::OUT) {
            peer.write(&self.epoll, at, &[]);
        }
        if !flags.intersects(EventFlags::IN | EventFlags::HUP | EventFlags::ERR) {
            return;
        }
        let read = match peer.socket.read(&mut self.scratch) {
            Ok(0) => {
                self.peers[at] = None;
                return;
            }
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
            Err(_) => {
                self.peers[at] = None;
                return;
            }
        };
        match peer.role {
            Some(WRITER) => {
                peer.partial.extend_from_slice(&self.scratch[..read]);
                self.write(at);
            }
            Some(_) => {}
            None => match self.scratch[..read] {
                [COPY, ref len @ ..] => {
                    let len = u64::from_be_bytes(len.try_into().expect("8 bytes in one piece"));
                    copy(&peer.socket, len, &self.scratch);
                }
                ref first => {
                    peer.role = Some(first[0]);
                    peer.write(&self.epoll, at, &[READY]);
                }
            },
        }
    }

    /// Everything that the writer has sent, as one round.
    fn write(&mut self, writer: usize) {
        let Some(peer) = self.peers[writer].as_mut() else {
            return;
        };
        self.round.clear();
        let (mut done, mut acks) = (0, vec![]);
        while let Some((head, len)) = wire::lengths(&peer.partial[done..]) {
            let all = head + usize::try_from(len).expect("a short frame");
            if peer.partial.len() < done + all {
                break;
            }
            done += all;
            self.seq += 1;
            self.frame[SEQ_AT..SEQ_AT + 8].copy_from_slice(&self.seq.to_be_bytes());
            self.round.extend_from_slice(&self.frame);
            acks.extend_from_slice(ACK);
        }
        peer.partial.drain(..done);
        for (at, peer) in self.peers.iter_mut().enumerate() {
            if let Some(peer) = peer
                && peer.role == Some(SUBSCRIBER)
            {
                peer.write(&self.epoll, at, &self.round);
            }
        }
        if let Some(peer) = self.peers[writer].as_mut() {
            peer.write(&self.epoll, writer, &acks);
        }
    }
}

impl Peer {
    /// Writes what waits, and then `more`; what the socket does not take waits.
    fn write(&mut self, epoll: &OwnedFd, at: usize, more: &[u8]) {
        let waited = !self.waiting.is_empty();
        let written = if waited {
            self.waiting.extend_from_slice(more);
            self.socket.write(&self.waiting)
        } else {
            self.socket.write(more)
        };
        // One that is gone is found by reading.
        let written = written.unwrap_or(0);
        if waited {
            self.waiting.drain(..written);
        } else {
            self.waiting.extend_from_slice(&more[written..]);
        }
        if waited == self.waiting.is_empty() {
            let also = if waited { EventFlags::empty() } else { EventFlags::OUT };
            let at = EventData::new_u64(at as u64);
            epoll::modify(epoll, &self.socket, at, EventFlags::IN | also).expect("an open socket");
        }
    }
}

/// Sends so many bytes, in pieces of 64 KiB.
fn copy(socket: &TcpStream, mut len: u64, scratch: &[u8]) {
    socket.set_nonblocking(false).expect("a socket");
    while len > 0 {
        let piece = usize::try_from(len).unwrap_or(usize::MAX).min(64 << 10);
        if (&mut &*socket).write_all(&scratch[..piece]).is_err() {
            return;
        }
        len -= piece as u64;
    }
    socket.set_nonblocking(true).expect("a socket");
}
