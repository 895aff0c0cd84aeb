//! Judged by tungstenite: what it makes of the same bytes.

use super::*;
use crate::outbox::{Bounds, Outbox};
use parking_lot::Mutex;
use std::io::IoSlice;
use std::sync::Arc;

/// A socket that gives what is put in, so much a read, and remembers what is written.
#[derive(Default)]
struct Script {
    reads: Mutex<Vec<Vec<u8>>>,
    written: Mutex<Vec<u8>>,
}

impl Transport for Script {
    fn poll_read(&self, _: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut reads = self.reads.lock();
        if reads.is_empty() {
            return Poll::Pending;
        }
        buf.put_slice(&reads.remove(0));
        Poll::Ready(Ok(()))
    }
    fn try_write_vectored(&self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        bufs.iter().for_each(|buf| self.written.lock().extend_from_slice(buf));
        Ok(bufs.iter().map(|buf| buf.len()).sum())
    }
    fn poll_write_ready(&self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Pending
    }
    fn shutdown_write(&self) {}
}

/// What one made of a sequence of bytes: messages, what it wrote, how it ended.
#[derive(PartialEq, Debug, Default)]
struct Made {
    messages: Vec<Vec<u8>>,
    written: Vec<u8>,
    end: String,
}

const LIMIT: usize = 3_000;

/// Chunks as they come behind what was left over, with a stop after every so many messages.
fn ours(leftover: &[u8], chunks: &[Vec<u8>], stop: usize) -> (Made, Ws) {
    let bounds = Bounds {
        soft: 1 << 30,
        hard: 1 << 30,
    };
    let outbox = Arc::new(Outbox::new(Script::default(), bounds, Arc::default()));
    *outbox.transport().reads.lock() = chunks.to_vec();
    let mut ws = Ws::new(leftover, LIMIT);
    let mut made = Made::default();
    let mut cx = Context::from_waker(std::task::Waker::noop());
    while let Poll::Ready(filled) = ws.poll_fill(&mut cx, outbox.transport()) {
        let mut left = stop;
        let taken = ws.take(filled.unwrap(), &outbox, |incoming| {
            match incoming {
                Incoming::Text(bytes) => made.messages.push([b"t", bytes].concat()),
                Incoming::Binary(bytes) => made.messages.push([b"b", bytes].concat()),
                Incoming::Control => {}
            }
            left -= 1;
            if left == 0 { Flow::Break(()) } else { Flow::Continue(()) }
        });
        if let Err(end) = taken {
            made.end = match end {
                Ended::Closed => "closed".to_owned(),
                Ended::Lost => "lost".to_owned(),
                Ended::Broken(error) => name(&error),
            };
            break;
        }
    }
    made.written = outbox.transport().written.lock().clone();
    (made, ws)
}

fn name(error: &Error) -> String {
    match error {
        // It is worded by whoever finds it.
        Error::Utf8(_) => "utf8".to_owned(),
        error => format!("{error:?}"),
    }
}

/// tungstenite, with all of it in one buffer.
fn theirs(bytes: &[u8]) -> Made {
    struct Whole<'a>(&'a [u8], Vec<u8>);
    impl Read for Whole<'_> {
        fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
            if self.0.is_empty() {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            self.0.read(into)
        }
    }
    impl Write for Whole<'_> {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.1.extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let config = WebSocketConfig::default()
        .write_buffer_size(0)
        .max_message_size(Some(LIMIT))
        .max_frame_size(Some(LIMIT));
    let mut context = WebSocketContext::new(Role::Server, Some(config));
    let mut stream = Whole(bytes, Vec::new());
    let mut made = Made::default();
    loop {
        match context.read(&mut stream) {
            Ok(Message::Text(text)) => made.messages.push([b"t", text.as_bytes()].concat()),
            Ok(Message::Binary(bytes)) => made.messages.push([b"b", &bytes[..]].concat()),
            Ok(_) => {}
            Err(Error::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(Error::ConnectionClosed) => {
                made.end = "closed".to_owned();
                break;
            }
            Err(error) => {
                made.end = name(&error);
                break;
            }
        }
    }
    made.written = stream.1;
    made
}

fn frame(first: u8, payload: &[u8], mask: Option<[u8; 4]>) -> Vec<u8> {
    let bit = if mask.is_some() { 0x80 } else { 0 };
    let mut frame = vec![first];
    match payload.len() {
        len @ 0..=125 => frame.push(bit | u8::try_from(len).unwrap()),
        len => {
            frame.push(bit | 126);
            frame.extend_from_slice(&u16::try_from(len).unwrap().to_be_bytes());
        }
    }
    if let Some(mask) = mask {
        frame.extend_from_slice(&mask);
    }
    let mask = mask.unwrap_or_default();
    frame.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    frame
}

/// A generator for tests (SplitMix64, Steele, Lea and Flood 2014).
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((z ^ (z >> 31)) % n as u64).unwrap()
    }
}

#[test]
fn a_length_beyond_all_memory_is_over_the_limit_wherever_its_frame_begins() {
    for len in [1_u64 << 63, u64::MAX, 1 << 32] {
        let head = [&[0x82, 0xff][..], &len.to_be_bytes(), &[1, 2, 3, 4]].concat();
        for before in [vec![], frame(0x89, b"", Some([0; 4]))] {
            let bytes = [&before[..], &head].concat();
            let (made, _) = ours(&[], std::slice::from_ref(&bytes), 100);
            assert_eq!(made, theirs(&bytes), "{len}");
            assert!(!made.end.is_empty());
        }
    }
}

#[test]
fn what_comes_in_means_what_tungstenite_says_however_it_is_cut() {
    let mut met = std::collections::BTreeMap::<String, u32>::new();
    let firsts = [
        0x81, 0x82, 0x82, 0x82, 0x89, 0x8a, 0x01, 0x02, 0x00, 0x80, 0x80, 0x88, 0x83, 0xc2, 0x09,
    ];
    for seed in 0..20_000 {
        let mut dice = Dice(seed);
        let mut bytes = Vec::new();
        for _ in 0..1 + dice.below(6) {
            // Most of what is sent is sound.
            let (odd, long) = (dice.below(3) == 0, dice.below(4) == 0);
            let first = firsts[dice.below(if odd { firsts.len() } else { 6 })];
            let size = [0, 1, 5, 125, 126, 700, 2_999, 3_001][dice.below(if long { 8 } else { 6 })];
            let mut payload: Vec<u8> = (0..size).map(|n| b'a' + u8::try_from(n % 26).unwrap()).collect();
            if size > 0 && dice.below(20) == 0 {
                payload[size / 2] = 0xff;
            }
            if first == 0x88 && size > 1 {
                payload[..2].copy_from_slice(&[3, [0xe8, 0xe9, 0][dice.below(3)]]);
            }
            if dice.below(60) == 0 {
                bytes.extend([first, 0xff]);
                bytes.extend([u64::MAX, u64::MAX - 14, 1 << 63, 3_001][dice.below(4)].to_be_bytes());
                bytes.extend([1, 2, 3, 4]);
            }
            let mask = (dice.below(40) > 0).then(|| [1, 2, 3, u8::try_from(dice.below(256)).unwrap()]);
            bytes.extend(frame(first, &payload, mask));
        }
        let mut chunks = Vec::new();
        let leftover = if dice.below(4) == 0 {
            dice.below(bytes.len() + 1)
        } else {
            0
        };
        let (leftover, mut rest) = bytes.split_at(leftover);
        while !rest.is_empty() {
            let most = [1, 3, 20, 5_000][dice.below(4)];
            let (chunk, after) = rest.split_at(rest.len().min(1 + dice.below(most)));
            chunks.push(chunk.to_vec());
            rest = after;
        }
        let stop = 1 + dice.below(4);
        let (made, ws) = ours(leftover, &chunks, stop);
        let expected = theirs(&bytes);
        assert_eq!(made, expected, "seed {seed}");
        let kind = expected.end.split('(').next_back().unwrap_or_default();
        *met.entry(kind.trim_end_matches(')').to_owned()).or_default() += 1;
        if made.end.is_empty() && !ws.is_open && ws.left == 0 {
            assert!(
                ws.context.is_none() && ws.paused.is_none() && ws.rest.len() < 14,
                "seed {seed}: it holds a buffer"
            );
            *met.entry("idle".to_owned()).or_default() += 1;
        }
    }
    println!("{met:?}");
    for kind in [
        "",
        "idle",
        "closed",
        "utf8",
        "UnmaskedFrameFromClient",
        "NonZeroReservedBits",
        "UnexpectedContinueFrame",
    ] {
        assert!(met.get(kind).is_some_and(|met| *met > 100), "{kind}: {met:?}");
    }
    assert!(met.len() > 10, "{met:?}");
}
