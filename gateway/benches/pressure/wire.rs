//! Frames, as much of them as a client has to see to count them: heads, and the first bytes of what they hold.

use tidegate_protocol::form::Form;
use tidegate_protocol::{Mid, Seq, ServerMessage, Writer, msgpack};

/// What a frame is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    /// A change, with its seq.
    Change(u64),
    Ack,
    Current,
    Pong,
    /// An epoch, which begins at a space's first commit, or where history was lost.
    Epoch,
    /// `welcome`, `begin`, `page`: no need to count them.
    Passing,
    /// Anything else is a reason to stop: as text.
    Other(String),
}

/// A head takes 10 bytes at most, what tells a frame apart 20.
const HEAD: usize = 32;
const TELLING: usize = 20;

/// Cuts a stream of a server's frames, whatever pieces it comes in, and keeps none of it.
#[derive(Default)]
pub(crate) struct Cutter {
    /// The beginning of a frame that is not enough yet.
    head: [u8; HEAD],
    held: usize,
    /// Bytes of a frame that has been told apart, still to come.
    rest: u64,
}

impl Cutter {
    /// Takes more of the stream; `seen` is told of each frame, and of its length in bytes.
    pub(crate) fn feed(&mut self, mut bytes: &[u8], mut seen: impl FnMut(Kind, u64)) {
        loop {
            let skipped = usize::try_from(self.rest).unwrap_or(usize::MAX).min(bytes.len());
            bytes = &bytes[skipped..];
            self.rest -= skipped as u64;
            if bytes.is_empty() {
                return;
            }
            let taken = bytes.len().min(HEAD - self.held);
            let told = if self.held == 0 {
                tell(bytes)
            } else {
                self.head[self.held..self.held + taken].copy_from_slice(&bytes[..taken]);
                tell(&self.head[..self.held + taken])
            };
            let Some((kind, len)) = told else {
                self.head[self.held..self.held + taken].copy_from_slice(&bytes[..taken]);
                self.held += taken;
                return;
            };
            seen(kind, len);
            self.rest = len - self.held as u64;
            self.held = 0;
        }
    }
}

/// The lengths of a frame's head and of what it holds, masks included.
pub(crate) fn lengths(bytes: &[u8]) -> Option<(usize, u64)> {
    let second = *bytes.get(1)?;
    let mask = if second & 0x80 == 0 { 0 } else { 4 };
    Some(match second & 0x7f {
        126 => (
            4 + mask,
            u64::from(u16::from_be_bytes(bytes.get(2..4)?.try_into().ok()?)),
        ),
        127 => (10 + mask, u64::from_be_bytes(bytes.get(2..10)?.try_into().ok()?)),
        short => (2 + mask, u64::from(short)),
    })
}

/// What the first frame is, and how long: `None` if more of it is needed.
fn tell(bytes: &[u8]) -> Option<(Kind, u64)> {
    let (head, len) = lengths(bytes)?;
    let telling = usize::try_from(len).unwrap_or(usize::MAX).min(TELLING);
    let body = bytes.get(head..head + telling)?;
    let all = head as u64 + len;
    let kind = match (bytes[0], body) {
        // The array of six whose first element is "c", the number of the space, and the seq in 9 bytes.
        (0x82, [0x96, 0xa1, b'c', n, rest @ ..]) => {
            let after = match n {
                0xcc => 1,
                0xcd => 2,
                0xce => 4,
                _ => 0,
            };
            match rest.get(after..after + 9) {
                Some([0xcf, seq @ ..]) => Kind::Change(u64::from_be_bytes(seq.try_into().expect("8 bytes"))),
                _ => Kind::Other("a change without a seq of 9 bytes".into()),
            }
        }
        // A map whose first key is "t".
        (0x82, [0x80..=0x8f, 0xa1, b't', rest @ ..]) => match rest {
            [0xa3, b'a', b'c', b'k', ..] => Kind::Ack,
            [0xa4, b'p', b'o', b'n', b'g', ..] => Kind::Pong,
            [0xa5, b'e', b'p', b'o', b'c', b'h', ..] => Kind::Epoch,
            [0xa7, b'c', b'u', b'r', b'r', b'e', b'n', b't', ..] => Kind::Current,
            [0xa7, b'w', b'e', b'l', b'c', b'o', b'm', b'e', ..]
            | [0xa5, b'b', b'e', b'g', b'i', b'n', ..]
            | [0xa4, b'p', b'a', b'g', b'e', ..] => Kind::Passing,
            _ => other(bytes, head, all),
        },
        _ => other(bytes, head, all),
    };
    Some((kind, all))
}

fn other(bytes: &[u8], head: usize, all: u64) -> Kind {
    let whole = usize::try_from(all).ok().and_then(|all| bytes.get(head..all));
    Kind::Other(match whole.map(|body| Form::Msgpack.decode_server(body)) {
        Some(Ok(message)) => format!("{message:?}"),
        _ => String::from_utf8_lossy(&bytes[..bytes.len().min(HEAD)]).into_owned(),
    })
}

/// A client's frame around a message. The mask is zero, so that what it holds goes as it is.
pub(crate) fn frame(body: &[u8]) -> Vec<u8> {
    let mut frame = vec![0x82];
    match (u8::try_from(body.len()), u16::try_from(body.len())) {
        (Ok(short @ 0..=125), _) => frame.push(0x80 | short),
        (_, Ok(medium)) => {
            frame.push(0x80 | 126);
            frame.extend_from_slice(&medium.to_be_bytes());
        }
        _ => {
            frame.push(0x80 | 127);
            frame.extend_from_slice(&(body.len() as u64).to_be_bytes());
        }
    }
    frame.extend_from_slice(&[0; 4]);
    frame.extend_from_slice(body);
    frame
}

/// Whatever pieces a stream comes in, the same frames are told apart; panics if not.
pub(crate) fn check() {
    let change = |n: u32, seq: u64| {
        let body = msgpack::encode_body(Writer(1), Mid::ZERO, &[]);
        let seq = Seq::new(seq).expect("a seq");
        tidegate::frame::change(Form::Msgpack, n, &msgpack::payload(seq, 0, &body))
    };
    let message = |message: &ServerMessage| tidegate::frame::message(Form::Msgpack, message);
    let page = ServerMessage::Page {
        id: 1,
        docs: vec![],
        cursor: vec![0; 70_000].into(),
    };
    let goaway = ServerMessage::Goaway {
        retry_ms: 1,
        jitter_ms: 2,
    };
    let frames = [
        (change(1, 5), Kind::Change(5)),
        (message(&page), Kind::Passing),
        (change(300, 6), Kind::Change(6)),
        (message(&ServerMessage::Pong { at: 1, now: 2 }), Kind::Pong),
        (message(&goaway), Kind::Other(format!("{goaway:?}"))),
        (change(70_000, 7), Kind::Change(7)),
    ];
    let stream: Vec<u8> = frames.iter().flat_map(|(frame, _)| frame.to_vec()).collect();
    for piece in (1..80).chain([stream.len()]) {
        let (mut cutter, mut found) = (Cutter::default(), vec![]);
        for piece in stream.chunks(piece) {
            cutter.feed(piece, |kind, len| found.push((len, kind)));
        }
        assert_eq!(found.len(), frames.len(), "in pieces of {piece}");
        for ((frame, kind), (len, told)) in frames.iter().zip(found) {
            assert_eq!(frame.len() as u64, len, "in pieces of {piece}");
            // What is not known is told by what there is of it.
            let same = *kind == told || matches!((kind, &told), (Kind::Other(_), Kind::Other(_)));
            assert!(same, "in pieces of {piece}: {told:?}, not {kind:?}");
        }
    }
}
