//! Complete WebSocket frames (RFC 6455 §5.2), as a server sends them: final, unmasked.

use crate::metrics::Metrics;
use bytes::Bytes;
use std::cell::Cell;
use tidegate_protocol::Code;
use tidegate_protocol::form::Form;
use tidegate_protocol::msgpack::DocChanges;
use tidegate_protocol::{ServerMessage, deflate, msgpack};

const TEXT: u8 = 0x81;
const BINARY: u8 = 0x82;
const CLOSE: u8 = 0x88;

/// A frame's header is not longer.
const HEAD: usize = 10;

/// The longest message for which a thread keeps its buffer.
const KEPT: usize = 4 << 10;

thread_local! {
    static BUFFER: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// A header, and how long it is.
fn head(kind: u8, len: usize) -> ([u8; HEAD], usize) {
    let mut head = [0; HEAD];
    head[0] = kind;
    let size = match (u8::try_from(len), u16::try_from(len)) {
        (Ok(short @ 0..=125), _) => {
            head[1] = short;
            2
        }
        (_, Ok(medium)) => {
            head[1] = 126;
            head[2..4].copy_from_slice(&medium.to_be_bytes());
            4
        }
        _ => {
            head[1] = 127;
            head[2..].copy_from_slice(&(len as u64).to_be_bytes());
            HEAD
        }
    };
    (head, size)
}

fn build(kind: u8, parts: &[&[u8]]) -> Bytes {
    let len: usize = parts.iter().map(|part| part.len()).sum();
    let (head, size) = head(kind, len);
    let mut frame = Vec::with_capacity(size + len);
    frame.extend_from_slice(&head[..size]);
    for part in parts {
        frame.extend_from_slice(part);
    }
    frame.into()
}

/// An encoded message as a frame: binary of MessagePack, text of JSON.
pub fn data(form: Form, message: &[u8]) -> Bytes {
    build(kind(form), &[message])
}

/// A message as a frame.
pub fn message(form: Form, message: &ServerMessage) -> Bytes {
    data(form, &form.encode_server(message))
}

/// A message as a frame, in a buffer of the thread's: nothing is allocated for one that is not kept.
pub fn with_message<T>(form: Form, message: &ServerMessage, use_it: impl FnOnce(&[u8]) -> T) -> T {
    let mut buffer = BUFFER.take();
    buffer.clear();
    buffer.resize(HEAD, 0);
    form.encode_server_to(&mut buffer, message);
    let (head, size) = head(kind(form), buffer.len() - HEAD);
    let from = HEAD - size;
    buffer[from..HEAD].copy_from_slice(&head[..size]);
    let used = use_it(&buffer[from..]);
    if buffer.capacity() <= KEPT {
        BUFFER.set(buffer);
    }
    used
}

/// A page as a frame: its documents are put in their place as the store has encoded them.
pub fn page(form: Form, id: u64, docs: &DocChanges, cursor: &[u8]) -> Bytes {
    let (head, docs, tail) = msgpack::page_parts(id, docs, cursor);
    match form {
        Form::Msgpack => build(BINARY, &[&head, docs, &tail]),
        Form::Json => build(TEXT, &[&form.of_msgpack([&head, docs, &tail].concat())]),
    }
}

/// A change as a frame: the node's number for the space in front of a payload that is not decoded
/// (but for the text form, which is transcoded).
pub fn change(form: Form, n: u32, payload: &[u8]) -> Bytes {
    match form {
        // In parts, so that the payload is copied once.
        Form::Msgpack => build(BINARY, &[&msgpack::change_prefix(n), payload]),
        Form::Json => build(TEXT, &[&form.change(n, payload)]),
    }
}

/// A frame with its message compressed, for those who have agreed on that; `None` where the frame is to be sent as it is:
/// the message has less than `threshold` bytes, or is text, or would not shrink by an eighth. Takes about 35 µs, and 0.5 to
/// 5 ms for a megabyte.
pub fn compressed(frame: &[u8], threshold: usize, metrics: &Metrics) -> Option<Bytes> {
    let head = match *frame {
        [BINARY, 127, ..] => 10,
        [BINARY, 126, ..] => 4,
        [BINARY, ..] => 2,
        _ => return None,
    };
    let message = frame.get(head..).filter(|message| message.len() >= threshold)?;
    let z = build(BINARY, &[&deflate::compress(message)?]);
    metrics.compressions.inc();
    metrics.compression_saved.inc_by((frame.len() - z.len()) as u64);
    Some(z)
}

/// A close frame. The code is the table's; one without is a normal close.
pub fn close(code: Option<Code>) -> Bytes {
    let number = code.map_or(1000, |code| code.row().close.unwrap_or(1000));
    build(CLOSE, &[&number.to_be_bytes(), code.map_or("", Code::name).as_bytes()])
}

fn kind(form: Form) -> u8 {
    match form {
        Form::Msgpack => BINARY,
        Form::Json => TEXT,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_take_the_shortest_form() {
        for (len, head) in [(0, 2), (125, 2), (126, 4), (65_535, 4), (65_536, 10)] {
            assert_eq!(build(BINARY, &[&vec![0; len]]).len(), head + len, "{len}");
        }
        let pong = ServerMessage::Pong { at: 1, now: 2 };
        for form in [Form::Msgpack, Form::Json] {
            assert_eq!(with_message(form, &pong, <[u8]>::to_vec), message(form, &pong));
        }
    }

    fn page(bytes: usize) -> ServerMessage {
        ServerMessage::Page {
            id: 1,
            docs: vec![],
            cursor: vec![7; bytes].into(),
        }
    }

    #[test]
    fn a_frame_is_compressed_from_the_threshold_on_if_it_is_binary_and_shrinks() {
        let metrics = Metrics::default();
        let threshold = 4_096;
        let (mut made, mut saved) = (0, 0);
        // Frames with a head of each length.
        for bytes in [20, 100, 3_000, 4_050, 4_200, 60_000, 65_500, 70_000, 1 << 20] {
            let message = page(bytes);
            let plain = Form::Msgpack.encode_server(&message);
            let frame = super::message(Form::Msgpack, &message);
            let z = compressed(&frame, threshold, &metrics);
            assert_eq!(z.is_some(), plain.len() >= threshold, "{bytes}");
            if let Some(z) = z {
                made += 1;
                saved += (frame.len() - z.len()) as u64;
                assert!(z.len() < plain.len(), "{bytes}");
                assert_eq!(z[0], BINARY);
                let (head, len) = match z[1] {
                    126 => (4, usize::from(u16::from_be_bytes([z[2], z[3]]))),
                    short => (2, usize::from(short)),
                };
                assert_eq!(len, z.len() - head);
                assert_eq!(*deflate::expand(&z[head..], plain.len()).unwrap(), plain);
            }
            assert_eq!(
                compressed(&super::message(Form::Json, &message), threshold, &metrics),
                None
            );
        }
        assert_eq!(
            (metrics.compressions.get(), metrics.compression_saved.get()),
            (made, saved)
        );
        assert!(made >= 4);
        // Noise (xorshift64) stays as it is, and what is no message.
        let mut state = 88_172_645_463_325_252_u64;
        let noise = std::iter::repeat_with(|| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()[0]
        });
        let noise = build(BINARY, &[&noise.take(10_000).collect::<Vec<_>>()]);
        assert_eq!(compressed(&noise, threshold, &metrics), None);
        assert_eq!(metrics.compressions.get(), made);
        assert_eq!(compressed(&close(Some(Code::Internal)), 0, &metrics), None);
        assert_eq!(compressed(&[], 0, &metrics), None);
    }
}
