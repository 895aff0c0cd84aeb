//! A proper client's latency while somebody attacks the gateway, beside its latency before.
//!
//! Attackers are a thread of the client's process, on the client's core, with the lowest priority: what they take is
//! the gateway's time, and not that of those who measure.

use crate::Scale;
use crate::author::VALUE;
use crate::child::Place;
use crate::client::{Conn, Result, To, Void, encode, hello, request, sub};
use crate::fan_out::{SPACE, Side};
use crate::report::{Bound, Report, Row, median, percentile};
use crate::storm::Storm;
use crate::wire::{frame, lengths};
use socket2::{Domain, Socket, Type};
use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tidegate_protocol::ServerMessage;
use tidegate_protocol::form::Form;

/// Proper subscribers.
const PROPER: usize = 20;
/// Bytes of the values that they are brought, 20 a second, where there are slow readers: 800 KB/s, of which these take 1,
/// and of which the kernel takes some megabytes for them.
const MUCH: usize = 40_000;
const BETWEEN: Duration = Duration::from_millis(50);
/// What an attack takes to get going.
const BEGIN: Duration = Duration::from_secs(1);

/// What attackers are told.
struct Attack<'a> {
    addr: SocketAddr,
    /// How many there are.
    count: usize,
    stop: &'a AtomicBool,
    /// Seq of the last commit, once they are to stop.
    head: &'a AtomicU64,
}

impl Attack<'_> {
    fn goes_on(&self) -> bool {
        !self.stop.load(Ordering::Relaxed)
    }

    /// Does something every so often, as long as it goes on.
    #[allow(clippy::disallowed_methods, reason = "on the attackers' own thread")]
    fn every(&self, time: Duration, mut act: impl FnMut(usize) -> Result<()>) -> Result<()> {
        let (start, mut turns) = (Instant::now(), 0);
        while self.goes_on() {
            act(turns)?;
            turns += 1;
            let due = start + time * u32::try_from(turns).expect("few");
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
        }
        Ok(())
    }

    fn upgraded(&self) -> Result<TcpStream> {
        Ok(Conn::upgraded(TcpStream::connect(self.addr)?, self.addr)?.socket)
    }
}

type Attacker = fn(&Attack<'_>) -> Result<()>;

/// Its number, what it is, how many there are, and how large the values are that the proper ones are brought.
const ATTACKS: [(&str, &str, Attacker, usize, usize); 5] = [
    ("A1", "slow-loris at five stages", loris, 1_000, VALUE),
    ("A2", "1 MB/s of garbage on 100 connections", garbage, 100, VALUE),
    ("A3", "subscription bombs of 1,000", bombs, 20, VALUE),
    ("A4", "50 readers of 1 KB/s", slow, 50, MUCH),
    ("A5", "5,000 reconnecting at once", reconnect, 5_000, VALUE),
];

pub(crate) fn attack(place: &Place, scale: &Scale, report: &mut Report) {
    for (id, what, attacker, count, value) in ATTACKS {
        let found = run(place, scale, attacker, count.div_ceil(scale.attackers_divided), value);
        let note = found.as_ref().ok().map(|(_, note)| format!("{what}: {note}"));
        report.row(Row {
            id,
            measure: format!("a proper client's p99 ÷ its quiet one: {what}"),
            unit: "",
            reach: Bound::AtMost(2.0),
            aim: None,
            figure: found.map(|(ratio, _)| ratio),
        });
        if let Some(note) = note {
            report.note(note);
        }
    }
}

fn run(place: &Place, scale: &Scale, attacker: Attacker, count: usize, value: usize) -> Result<(f64, String)> {
    let mut side = Side::with_value(place, To::Gateway, PROPER, value)?;
    let (mut ratios, mut p99) = (vec![], [0; 2]);
    let before = side.server.rss();
    let mut most = before;
    for _ in 0..scale.rounds.min(3) {
        p99[0] = side.p99(scale.attacked)?;
        let (stop, head) = (AtomicBool::new(false), AtomicU64::new(0));
        let attack = Attack {
            addr: side.server.addr,
            count,
            stop: &stop,
            head: &head,
        };
        p99[1] = std::thread::scope(|threads| {
            let attacking = threads.spawn(|| {
                // Of the calling thread alone.
                rustix::process::setpriority_process(None, 19).map_err(io::Error::from)?;
                attacker(&attack)
            });
            let measured = side
                .swarm
                .wait(Instant::now() + BEGIN * u32::from(scale.settle_secs > 0));
            let measured = measured.and_then(|()| side.p99(scale.attacked));
            most = most.max(side.server.rss());
            head.store(side.commits, Ordering::Relaxed);
            stop.store(true, Ordering::Relaxed);
            attacking.join().expect("it does not panic")?;
            measured
        })?;
        ratios.push(f64::from(p99[1]) / f64::from(p99[0]));
        side.gone()?;
    }
    let behind = side.server.metric("tidegate_behind_total");
    if value == MUCH && scale.settle_secs > 0 && behind == 0 {
        return Err(Void("nobody fell behind: that was no attack".into()));
    }
    let mib = |bytes: u64| bytes >> 20;
    let note = format!(
        "p99 {} µs, quiet {} µs; at most {} MiB of memory, {} before; {behind} fell behind, {} connections ended, {} were refused, {} made room",
        p99[1],
        p99[0],
        mib(most),
        mib(before),
        side.server.metric("tidegate_closes_total"),
        side.server.metric("tidegate_refused_total"),
        side.server.metric("tidegate_evicted_total"),
    );
    Ok((median(ratios), note))
}

impl Side {
    /// Commits at a pace: what 99 of 100 changes took at most, µs.
    fn p99(&mut self, commits: u64) -> Result<u32> {
        self.swarm.time(self.commits + 1);
        self.paced(BETWEEN, commits)?;
        Ok(percentile(&self.swarm.timed(), 99))
    }

    /// Waits until only the proper ones are there.
    fn gone(&mut self) -> Result<()> {
        for _ in 0..300 {
            if self.server.metric("tidegate_connections") == self.swarm.len() as u64 {
                return Ok(());
            }
            self.swarm.wait(Instant::now() + Duration::from_millis(100))?;
        }
        Err(Void(
            "attackers that have gone half a minute ago are still there".into(),
        ))
    }
}

/// A fifth each: silent; in the middle of a request; upgraded, and no `hello`; in the middle of a frame; in the
/// middle of a message. What can drip does, a byte a second; who is closed comes back.
fn loris(attack: &Attack<'_>) -> Result<()> {
    let begin = |stage: usize| -> Result<TcpStream> {
        let silent = |addr| TcpStream::connect(addr).map_err(Void::from);
        let socket = match stage {
            0 => silent(attack.addr)?,
            1 => {
                let mut socket = silent(attack.addr)?;
                let request = request(attack.addr);
                socket.write_all(&request.as_bytes()[..request.len() / 2])?;
                socket
            }
            2 => attack.upgraded()?,
            _ => {
                let mut socket = attack.upgraded()?;
                socket.write_all(&encode(&hello()))?;
                let mut begun = frame(&[0; 60_000]);
                if stage == 4 {
                    // Not the last of its message; and whole, so that the next is begun.
                    begun[0] = 0x02;
                    socket.write_all(&begun[..])?;
                    begun = frame(&[0; 60_000]);
                    begun[0] = 0;
                }
                socket.write_all(&begun[..1_000])?;
                socket
            }
        };
        socket.set_nonblocking(true)?;
        Ok(socket)
    };
    let mut all = Vec::with_capacity(attack.count);
    for i in 0..attack.count {
        if attack.goes_on() {
            all.push(begin(i % 5)?);
        }
    }
    attack.every(Duration::from_secs(1), |_| {
        for (i, socket) in all.iter_mut().enumerate() {
            let open = match socket.read(&mut [0; 1024]) {
                Ok(read) => read > 0,
                Err(error) => error.kind() == io::ErrorKind::WouldBlock,
            };
            let dripped = match i % 5 {
                0 | 2 => Ok(0),
                1 => socket.write(b"x"),
                _ => socket.write(&[0]),
            };
            if attack.goes_on() && (!open || dripped.is_err()) {
                *socket = begin(i % 5)?;
            }
        }
        Ok(())
    })
}

/// Each in turn sends 10 KB of noise as if it were frames, a hundred times a second in all.
fn garbage(attack: &Attack<'_>) -> Result<()> {
    let mut noise = vec![0; 10_000];
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut all: Vec<Option<TcpStream>> = (0..attack.count).map(|_| None).collect();
    attack.every(Duration::from_millis(10), |turn| {
        for bytes in noise.chunks_exact_mut(8) {
            // xorshift64
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            bytes.copy_from_slice(&state.to_le_bytes());
        }
        let place = &mut all[turn % attack.count];
        let mut socket = match place.take() {
            Some(socket) => socket,
            None => attack.upgraded()?,
        };
        // Closed meanwhile, as it should be: the next turn comes back.
        if socket.write_all(&noise).is_ok() {
            *place = Some(socket);
        }
        Ok(())
    })
}

/// Each says hello, subscribes to a thousand spaces at once, and is gone.
fn bombs(attack: &Attack<'_>) -> Result<()> {
    let mut frames = encode(&hello());
    for i in 1..=1_000 {
        frames.extend(encode(&sub(i, &format!("bomb-{i}"))));
    }
    let mut all = vec![];
    attack.every(Duration::from_millis(100), |_| {
        let mut socket = attack.upgraded()?;
        socket.write_all(&frames)?;
        all.push(socket);
        if all.len() > attack.count {
            all.remove(0);
        }
        Ok(())
    })
}

/// Subscribers who read a kilobyte a second; when it is over they read what there is, and have to come to the end.
fn slow(attack: &Attack<'_>) -> Result<()> {
    let mut all = vec![];
    for _ in 0..attack.count {
        // A small window, so that the kernel does not take it all for them.
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        socket.set_recv_buffer_size(4_096)?;
        socket.connect(&attack.addr.into())?;
        let mut socket = Conn::upgraded(socket.into(), attack.addr)?.socket;
        socket.write_all(&[encode(&hello()), encode(&sub(1, SPACE))].concat())?;
        all.push(Slow {
            socket,
            read: vec![],
            at: 0,
        });
    }
    attack.every(Duration::from_secs(1), |_| {
        all.iter_mut().try_for_each(|reader| reader.take(1_000))
    })?;
    let head = attack.head.load(Ordering::Relaxed);
    for reader in &mut all {
        while reader.at < head {
            reader.take(256 << 10)?;
        }
    }
    Ok(())
}

/// Reads little, so it falls behind; it keeps to what that means.
struct Slow {
    socket: TcpStream,
    /// The beginning of a frame.
    read: Vec<u8>,
    /// Seq of its state.
    at: u64,
}

impl Slow {
    /// Reads so many bytes at most.
    fn take(&mut self, bytes: usize) -> Result<()> {
        let mut piece = vec![0; bytes];
        match self.socket.read(&mut piece)? {
            0 => return Err(Void("a slow reader was closed".into())),
            read => self.read.extend_from_slice(&piece[..read]),
        }
        while let Some((head, len)) = lengths(&self.read) {
            let all = head + usize::try_from(len).expect("a page");
            if self.read.len() < all {
                break;
            }
            let frame: Vec<u8> = self.read.drain(..all).collect();
            let message = Form::Msgpack.decode_server(&frame[head..]);
            self.at = match message.map_err(|error| Void(error.to_string()))? {
                ServerMessage::Change(change) if change.commit.seq.get() == self.at + 1 => self.at + 1,
                ServerMessage::Current { position, .. } if position.seq.get() >= self.at => position.seq.get(),
                ServerMessage::Welcome(_) | ServerMessage::Begin(_) | ServerMessage::Page { .. } => self.at,
                other => return Err(Void(format!("at {} a slow reader was sent {other:?}", self.at))),
            };
        }
        Ok(())
    }
}

/// All come at once, subscribe to a space of their own, and leave; again and again. The last of them come, too.
fn reconnect(attack: &Attack<'_>) -> Result<()> {
    while attack.goes_on() {
        drop(Storm::come(attack.addr, attack.count)?);
    }
    Ok(())
}
