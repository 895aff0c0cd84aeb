//! The client: one thread, raw sockets, and no more done with a frame than telling what it is. What a client spends is
//! not measured, but it must not be what is waited for.

use crate::limit;
use crate::wire::{Cutter, Kind, frame, lengths};
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::fd::OwnedFd;
use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};
use tidegate_protocol::form::Form;
use tidegate_protocol::{ClientMessage, Hello, ServerMessage, SpaceId, Sub};

/// How long anything may take before the run is given up.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
/// Connections that are set up side by side.
const TOGETHER: usize = 50;

/// Why a run does not count.
#[derive(Clone, Debug)]
pub(crate) struct Void(pub(crate) String);

/// What a scenario comes to.
pub(crate) type Result<T> = std::result::Result<T, Void>;

impl From<io::Error> for Void {
    fn from(error: io::Error) -> Self {
        Self(error.to_string())
    }
}

/// Which of the two it is connected to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum To {
    Gateway,
    Limit,
}

/// What a connection is for.
#[derive(Clone, Debug)]
pub(crate) enum Role {
    /// Has a subscription to the space.
    Subscriber(String),
    /// Writes, and subscribes to nothing.
    Writer,
}

/// A connection.
pub(crate) struct Conn {
    pub(crate) socket: TcpStream,
    cutter: Cutter,
    /// Seq of the last change.
    last: Option<u64>,
    /// Frames told apart.
    changes: u64,
    acks: u64,
    pub(crate) currents: u64,
    pongs: u64,
    /// Bytes of all of them.
    pub(crate) bytes: u64,
    /// Bytes of the changes.
    change_bytes: u64,
    refused: Option<String>,
}

impl Conn {
    /// Bytes read at a time where there is much to read.
    pub(crate) const SCRATCH: usize = 256 << 10;

    pub(crate) fn new(socket: TcpStream) -> io::Result<Self> {
        socket.set_nodelay(true)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        Ok(Self {
            socket,
            cutter: Cutter::default(),
            last: None,
            changes: 0,
            acks: 0,
            currents: 0,
            pongs: 0,
            bytes: 0,
            change_bytes: 0,
            refused: None,
        })
    }

    /// Takes what was read. Every change must be the one after the last.
    pub(crate) fn take(&mut self, bytes: &[u8], mut at: impl FnMut(u64)) -> Result<()> {
        let mut cutter = std::mem::take(&mut self.cutter);
        self.bytes += bytes.len() as u64;
        cutter.feed(bytes, |kind, len| match kind {
            Kind::Change(seq) => {
                if self.last.is_some_and(|last| seq != last + 1) {
                    self.refused = Some(format!("change {seq} came after {:?}", self.last));
                }
                self.last = Some(seq);
                self.changes += 1;
                self.change_bytes += len;
                at(seq);
            }
            Kind::Ack => self.acks += 1,
            Kind::Current => self.currents += 1,
            Kind::Pong => self.pongs += 1,
            Kind::Epoch if self.last.is_some() => self.refused = Some("an epoch between changes".into()),
            Kind::Epoch | Kind::Passing => {}
            Kind::Other(what) => self.refused = Some(what),
        });
        self.cutter = cutter;
        match self.refused.take() {
            Some(why) => Err(Void(format!("instead of what was expected: {why}"))),
            None => Ok(()),
        }
    }

    /// Reads, waiting, until as many of something have come as are wanted.
    fn until(&mut self, scratch: &mut [u8], wanted: impl Fn(&Self) -> bool) -> Result<()> {
        while !wanted(self) {
            let read = self.socket.read(scratch)?;
            if read == 0 {
                return Err(Void("a connection was closed while it was set up".into()));
            }
            self.take(&scratch[..read], |_| {})?;
        }
        Ok(())
    }

    fn send(&mut self, messages: &[ClientMessage]) -> io::Result<()> {
        let frames: Vec<u8> = messages.iter().flat_map(encode).collect();
        self.socket.write_all(&frames)
    }

    /// A connection to the gateway that has become a WebSocket.
    pub(crate) fn upgraded(socket: TcpStream, addr: SocketAddr) -> Result<Self> {
        let mut conn = Self::new(socket)?;
        conn.upgrade(addr)?;
        conn.read_upgraded()?;
        Ok(conn)
    }

    /// A connection to the gateway that has said hello.
    pub(crate) fn greeted(addr: SocketAddr) -> Result<Self> {
        let mut conn = Self::upgraded(TcpStream::connect(addr)?, addr)?;
        conn.send(&[hello(), ClientMessage::Ping { at: 0 }])?;
        conn.until(&mut [0; 1024], |conn| conn.pongs == 1)?;
        Ok(conn)
    }

    /// Catches up with a space: how many bytes that took.
    pub(crate) fn catch_up(&mut self, space: &str) -> Result<u64> {
        let mut scratch = vec![0; Self::SCRATCH];
        let before = self.bytes;
        self.send(&[sub(1, space)])?;
        self.until(&mut scratch, |conn| conn.currents == 1)?;
        Ok(self.bytes - before)
    }

    /// Subscribes to a space, and waits until it is brought up to the head.
    pub(crate) fn follow(&mut self, space: &str) -> Result<()> {
        self.send(&[sub(1, space)])?;
        self.until(&mut [0; 1024], |conn| conn.currents == 1)
    }

    /// Waits for more, and tells of each change in it.
    pub(crate) fn more(&mut self, scratch: &mut [u8], at: impl FnMut(u64)) -> Result<()> {
        match self.socket.read(scratch)? {
            0 => Err(Void("the connection was closed".into())),
            read => self.take(&scratch[..read], at),
        }
    }

    /// As `catch_up`, but how many documents came.
    pub(crate) fn count_documents(mut self, space: &str) -> Result<usize> {
        self.send(&[sub(1, space)])?;
        let (mut all, mut scratch) = (vec![], vec![0; Self::SCRATCH]);
        while self.currents == 0 {
            let read = self.socket.read(&mut scratch)?;
            self.take(&scratch[..read], |_| {})?;
            all.extend_from_slice(&scratch[..read]);
            if read == 0 {
                return Err(Void("a connection was closed while it caught up".into()));
            }
        }
        let (mut rest, mut docs) = (&all[..], 0);
        while let Some((head, len)) = lengths(rest) {
            let (frame, after) = rest.split_at(head + usize::try_from(len).expect("a page"));
            if let Ok(ServerMessage::Page { docs: page, .. }) = Form::Msgpack.decode_server(&frame[head..]) {
                docs += page.len();
            }
            rest = after;
        }
        Ok(docs)
    }

    fn upgrade(&mut self, addr: SocketAddr) -> io::Result<()> {
        self.socket.write_all(request(addr).as_bytes())
    }

    fn read_upgraded(&mut self) -> Result<()> {
        let (mut answer, mut buffer) = (vec![], [0; 1024]);
        // Nothing comes after it before `hello`.
        while !answer.ends_with(b"\r\n\r\n") {
            match self.socket.read(&mut buffer)? {
                0 => return Err(Void("a connection was closed before it was a WebSocket".into())),
                read => answer.extend_from_slice(&buffer[..read]),
            }
        }
        if answer.starts_with(b"HTTP/1.1 101") {
            Ok(())
        } else {
            Err(Void(String::from_utf8_lossy(&answer).into_owned()))
        }
    }
}

/// The request to become a WebSocket.
pub(crate) fn request(addr: SocketAddr) -> String {
    format!(
        "GET /v1/ws HTTP/1.1\r\nHost: {addr}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
         Sec-WebSocket-Protocol: {}\r\n\r\n",
        Form::Msgpack.subprotocol()
    )
}

/// A client's message as a frame.
pub(crate) fn encode(message: &ClientMessage) -> Vec<u8> {
    frame(&Form::Msgpack.encode_client(message))
}

/// `hello`.
pub(crate) fn hello() -> ClientMessage {
    ClientMessage::Hello(Hello {
        token: Some("ada".into()),
        ..Hello::default()
    })
}

/// A subscription to all of a space.
pub(crate) fn sub(id: u64, space: &str) -> ClientMessage {
    ClientMessage::Sub(Sub {
        id,
        space: SpaceId::parse(space).expect("a space"),
        client: None,
        from: None,
        filter: None,
    })
}

/// Many connections, and what has come on them.
pub(crate) struct Swarm {
    epoll: OwnedFd,
    to: To,
    addr: SocketAddr,
    conns: Vec<Conn>,
    scratch: Vec<u8>,
    events: Vec<epoll::Event>,
    /// Changes that have come, on all connections.
    pub(crate) changes: u64,
    /// Their bytes.
    pub(crate) change_bytes: u64,
    /// Acks that have come, on all connections.
    pub(crate) acks: u64,
    /// Pongs that have come, on all connections.
    pub(crate) pongs: u64,
    /// When commits were sent, from the one with the first seq on, while it is measured how long they take.
    sent: Option<Sent>,
}

struct Sent {
    first: u64,
    at: Vec<Instant>,
    /// Microseconds from a commit's being sent to a change's being read.
    took: Vec<u32>,
}

impl Swarm {
    /// Nobody yet.
    pub(crate) fn new(to: To, addr: SocketAddr) -> Result<Self> {
        Ok(Self {
            epoll: epoll::create(CreateFlags::CLOEXEC).map_err(io::Error::from)?,
            to,
            addr,
            conns: vec![],
            scratch: vec![0; 64 << 10],
            events: Vec::with_capacity(1_024),
            changes: 0,
            change_bytes: 0,
            acks: 0,
            pongs: 0,
            sent: None,
        })
    }

    /// How many acks have come on a connection.
    pub(crate) fn acks_of(&self, at: usize) -> u64 {
        self.conns[at].acks
    }

    /// How many connections there are.
    pub(crate) fn len(&self) -> usize {
        self.conns.len()
    }

    /// Sets up connections, some of them at a time, and returns the number of the first.
    pub(crate) fn join(&mut self, roles: &[Role]) -> Result<usize> {
        let first = self.conns.len();
        for roles in roles.chunks(TOGETHER) {
            let mut conns = Vec::with_capacity(roles.len());
            for _ in roles {
                conns.push(Conn::new(TcpStream::connect(self.addr)?)?);
            }
            match self.to {
                To::Gateway => self.greet(&mut conns, roles)?,
                To::Limit => {
                    for (conn, role) in conns.iter_mut().zip(roles) {
                        let role = match role {
                            Role::Subscriber(_) => limit::SUBSCRIBER,
                            Role::Writer => limit::WRITER,
                        };
                        conn.socket.write_all(&[role])?;
                    }
                    for conn in &mut conns {
                        conn.socket.read_exact(&mut [0])?;
                    }
                }
            }
            for conn in conns {
                self.add(conn)?;
            }
        }
        Ok(first)
    }

    fn greet(&mut self, conns: &mut [Conn], roles: &[Role]) -> Result<()> {
        for conn in &mut *conns {
            conn.upgrade(self.addr)?;
        }
        for (conn, role) in conns.iter_mut().zip(roles) {
            conn.read_upgraded()?;
            match role {
                Role::Subscriber(space) => conn.send(&[hello(), sub(1, space)])?,
                // Its pong says that all before it was well.
                Role::Writer => conn.send(&[hello(), ClientMessage::Ping { at: 0 }])?,
            }
        }
        for (conn, role) in conns.iter_mut().zip(roles) {
            match role {
                Role::Subscriber(_) => conn.until(&mut self.scratch, |conn| conn.currents == 1)?,
                Role::Writer => conn.until(&mut self.scratch, |conn| conn.pongs == 1)?,
            }
        }
        Ok(())
    }

    /// Takes in a connection that has been set up.
    pub(crate) fn add(&mut self, conn: Conn) -> Result<usize> {
        let at = self.conns.len();
        conn.socket.set_nonblocking(true)?;
        epoll::add(&self.epoll, &conn.socket, EventData::new_u64(at as u64), EventFlags::IN)
            .map_err(io::Error::from)?;
        self.conns.push(conn);
        Ok(at)
    }

    /// Ends all connections.
    pub(crate) fn clear(&mut self) {
        self.conns.clear();
    }

    /// Sends a frame.
    pub(crate) fn send(&mut self, at: usize, mut frame: &[u8]) -> Result<()> {
        let start = Instant::now();
        while !frame.is_empty() {
            match self.conns[at].socket.write(frame) {
                Ok(written) => frame = &frame[written..],
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if start.elapsed() > PATIENCE {
                        return Err(Void("the server has read nothing for a minute".into()));
                    }
                    self.poll(Duration::from_millis(1))?;
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Reads what has come, and waits so long for something to come.
    pub(crate) fn poll(&mut self, wait: Duration) -> Result<()> {
        let mut events = std::mem::take(&mut self.events);
        events.clear();
        let timeout = rustix::event::Timespec {
            tv_sec: wait.as_secs().cast_signed(),
            tv_nsec: wait.subsec_nanos().into(),
        };
        match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut events), Some(&timeout)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(io::Error::from(error).into()),
        }
        for event in &events {
            self.read(usize::try_from(event.data.u64()).expect("an index"))?;
        }
        self.events = events;
        Ok(())
    }

    fn read(&mut self, at: usize) -> Result<()> {
        let conn = &mut self.conns[at];
        let read = match conn.socket.read(&mut self.scratch) {
            Ok(0) => return Err(Void(format!("connection {at} was closed"))),
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        let before = (conn.changes, conn.change_bytes, conn.acks, conn.pongs);
        match &mut self.sent {
            None => conn.take(&self.scratch[..read], |_| {})?,
            Some(sent) => {
                let now = Instant::now();
                conn.take(&self.scratch[..read], |seq| {
                    let at = seq.checked_sub(sent.first).and_then(|at| usize::try_from(at).ok());
                    if let Some(at) = at.and_then(|at| sent.at.get(at)) {
                        sent.took
                            .push(u32::try_from((now - *at).as_micros()).unwrap_or(u32::MAX));
                    }
                })?;
            }
        }
        self.changes += conn.changes - before.0;
        self.change_bytes += conn.change_bytes - before.1;
        self.acks += conn.acks - before.2;
        self.pongs += conn.pongs - before.3;
        Ok(())
    }

    /// Reads until something is so.
    pub(crate) fn until(&mut self, what: &str, wanted: impl Fn(&Self) -> bool) -> Result<()> {
        let start = Instant::now();
        while !wanted(self) {
            self.poll(Duration::from_millis(5))?;
            if start.elapsed() > PATIENCE {
                return Err(Void(format!(
                    "after a minute there were not {what}: {} changes, {} acks, {} pongs",
                    self.changes, self.acks, self.pongs
                )));
            }
        }
        Ok(())
    }

    /// Reads until a moment.
    pub(crate) fn wait(&mut self, until: Instant) -> Result<()> {
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            self.poll(left)?;
        }
    }

    /// From here on it is measured how long changes take; the next commit has the seq.
    pub(crate) fn time(&mut self, first: u64) {
        self.sent = Some(Sent {
            first,
            at: vec![],
            took: vec![],
        });
    }

    /// A commit is sent now.
    pub(crate) fn mark(&mut self) {
        if let Some(sent) = &mut self.sent {
            sent.at.push(Instant::now());
        }
    }

    /// What the changes took since `time`, in microseconds, sorted.
    pub(crate) fn timed(&mut self) -> Vec<u32> {
        let mut took = self.sent.take().map(|sent| sent.took).unwrap_or_default();
        took.sort_unstable();
        took
    }
}

/// `count` subscribers of one space.
pub(crate) fn subscribers(count: usize, space: &str) -> Vec<Role> {
    vec![Role::Subscriber(space.into()); count]
}
