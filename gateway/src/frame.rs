//! Complete WebSocket frames (RFC 6455 §5.2), as a server sends them: final, unmasked.

use bytes::Bytes;
use tidegate_protocol::Code;
use tidegate_protocol::form::Form;
use tidegate_protocol::msgpack::DocChanges;
use tidegate_protocol::{ServerMessage, msgpack};

const TEXT: u8 = 0x81;
const BINARY: u8 = 0x82;
const CLOSE: u8 = 0x88;

fn build(kind: u8, parts: &[&[u8]]) -> Bytes {
    let len: usize = parts.iter().map(|part| part.len()).sum();
    let mut frame = Vec::with_capacity(10 + len);
    frame.push(kind);
    match (u8::try_from(len), u16::try_from(len)) {
        (Ok(short @ 0..=125), _) => frame.push(short),
        (_, Ok(medium)) => {
            frame.push(126);
            frame.extend_from_slice(&medium.to_be_bytes());
        }
        _ => {
            frame.push(127);
            frame.extend_from_slice(&(len as u64).to_be_bytes());
        }
    }
    for part in parts {
        frame.extend_from_slice(part);
    }
    frame.into()
}

/// A message as a frame.
pub fn message(form: Form, message: &ServerMessage) -> Bytes {
    build(kind(form), &[&form.encode_server(message)])
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
    }
}
