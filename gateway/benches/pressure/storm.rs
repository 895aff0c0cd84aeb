//! Clients that come all at once, each as a proper one does: it says hello when it is a WebSocket, subscribes to a space
//! of its own, and, where it is refused or loses its connection, comes back when it was told to, or after a second.

use crate::client::{Conn, PATIENCE, Result, Void, encode, hello, request, sub};
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::fd::OwnedFd;
use socket2::{Domain, Socket, Type};
use std::io::{self, Read as _, Write as _};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// Begun before what others were sent is read: one thread is all of them, and none waits for it.
const TOGETHER: usize = 50;
/// What who has lost its connection waits, give or take a half.
const BACKOFF: Duration = Duration::from_secs(1);

/// Where one is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stage {
    Away,
    Connecting,
    Asking,
    Subscribing,
    Current,
}

struct Comer {
    stage: Stage,
    /// Unless it is away.
    conn: Option<Conn>,
    /// What it sends once it is a WebSocket.
    words: Vec<u8>,
    /// The answer to its request, as far as it has come.
    answer: Vec<u8>,
    /// When it comes again.
    due: Instant,
}

/// All of them.
pub(crate) struct Storm {
    epoll: OwnedFd,
    addr: SocketAddr,
    all: Vec<Comer>,
    away: Vec<usize>,
    current: usize,
    scratch: Vec<u8>,
}

impl Storm {
    /// Brings so many to where each has all of its space; returns when the last has.
    pub(crate) fn come(addr: SocketAddr, count: usize) -> Result<Self> {
        let start = Instant::now();
        let comer = |i| Comer {
            stage: Stage::Away,
            conn: None,
            words: [encode(&hello()), encode(&sub(1, &format!("again-{i}")))].concat(),
            answer: vec![],
            due: start,
        };
        let mut storm = Self {
            epoll: epoll::create(CreateFlags::CLOEXEC).map_err(io::Error::from)?,
            addr,
            all: (0..count).map(comer).collect(),
            away: (0..count).collect(),
            current: 0,
            scratch: vec![0; 16 << 10],
        };
        let mut events = Vec::with_capacity(1_024);
        while storm.current < count {
            if start.elapsed() > PATIENCE {
                let left = count - storm.current;
                return Err(Void(format!("{left} of {count} have not come within a minute")));
            }
            storm.begin()?;
            events.clear();
            let timeout = rustix::event::Timespec {
                tv_sec: 0,
                tv_nsec: 5_000_000,
            };
            match epoll::wait(
                &storm.epoll,
                rustix::buffer::spare_capacity(&mut events),
                Some(&timeout),
            ) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(io::Error::from(error).into()),
            }
            for event in &events {
                storm.step(usize::try_from(event.data.u64()).expect("an index"))?;
            }
        }
        Ok(storm)
    }

    /// Begins to connect whoever is to come now.
    fn begin(&mut self) -> Result<()> {
        let now = Instant::now();
        let due = self.away.extract_if(.., |i| self.all[*i].due <= now);
        for i in due.take(TOGETHER).collect::<Vec<_>>() {
            let socket = Socket::new(Domain::for_address(self.addr), Type::STREAM, None)?;
            socket.set_nonblocking(true)?;
            match socket.connect(&self.addr.into()) {
                Ok(()) => {}
                Err(error) if error.raw_os_error() == Some(rustix::io::Errno::INPROGRESS.raw_os_error()) => {}
                Err(error) => return Err(error.into()),
            }
            let conn = Conn::new(socket.into())?;
            // Told when it is connected.
            let data = EventData::new_u64(i as u64);
            epoll::add(&self.epoll, &conn.socket, data, EventFlags::OUT).map_err(io::Error::from)?;
            let comer = &mut self.all[i];
            comer.answer.clear();
            (comer.stage, comer.conn) = (Stage::Connecting, Some(conn));
        }
        Ok(())
    }

    fn step(&mut self, i: usize) -> Result<()> {
        let comer = &mut self.all[i];
        let Some(conn) = &mut comer.conn else { return Ok(()) };
        if comer.stage == Stage::Connecting {
            if conn.socket.take_error()?.is_some() || conn.socket.write_all(request(self.addr).as_bytes()).is_err() {
                self.lose(i, None);
                return Ok(());
            }
            let data = EventData::new_u64(i as u64);
            epoll::modify(&self.epoll, &conn.socket, data, EventFlags::IN).map_err(io::Error::from)?;
            comer.stage = Stage::Asking;
            return Ok(());
        }
        let read = match conn.socket.read(&mut self.scratch) {
            Ok(0) => 0,
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(_) => 0,
        };
        if read == 0 {
            self.lose(i, None);
            return Ok(());
        }
        let bytes = &self.scratch[..read];
        if comer.stage == Stage::Asking {
            comer.answer.extend_from_slice(bytes);
            if !comer.answer.windows(4).any(|four| four == b"\r\n\r\n") {
                return Ok(());
            }
            if !comer.answer.starts_with(b"HTTP/1.1 101") {
                let answer = String::from_utf8_lossy(&comer.answer).into_owned();
                let after = answer.lines().find_map(|line| line.strip_prefix("Retry-After: "));
                let Some(after) = after.and_then(|seconds| seconds.parse().ok()) else {
                    return Err(Void(format!("refused, and not told when to come back: {answer}")));
                };
                self.lose(i, Some(Duration::from_secs(after)));
                return Ok(());
            }
            // Nothing comes behind the answer before `hello`.
            if conn.socket.write_all(&comer.words).is_err() {
                self.lose(i, None);
                return Ok(());
            }
            comer.stage = Stage::Subscribing;
            return Ok(());
        }
        // One that has had to make room is told so before it is closed.
        if conn.take(bytes, |_| {}).is_err() {
            self.lose(i, None);
            return Ok(());
        }
        if comer.stage == Stage::Subscribing && conn.currents == 1 {
            comer.stage = Stage::Current;
            self.current += 1;
        }
        Ok(())
    }

    /// Its connection is over; it comes back when it was told to.
    fn lose(&mut self, i: usize, told: Option<Duration>) {
        let comer = &mut self.all[i];
        self.current -= usize::from(comer.stage == Stage::Current);
        (comer.stage, comer.conn) = (Stage::Away, None);
        // Spread out over as long again, or by a half, as clients do.
        let spread = Duration::from_millis((i as u64 * 7_919) % 1_000);
        comer.due = Instant::now() + told.unwrap_or(BACKOFF / 2) + spread;
        self.away.push(i);
    }
}
