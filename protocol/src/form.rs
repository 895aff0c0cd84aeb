//! The two wire forms behind one face, so that a gateway or a client handles both in one place.

use crate::error::Invalid;
use crate::limits::Limits;
use crate::message::{ClientMessage, SUBPROTOCOL_JSON, SUBPROTOCOL_MSGPACK, ServerMessage};
use crate::msgpack::DecodeError;
use crate::{json, msgpack};

/// A wire form: what a connection's frames hold.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Form {
    /// Binary frames of MessagePack: the production form.
    Msgpack,
    /// Text frames of JSON: the same messages for people, browsers and tests.
    Json,
}

impl Form {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Msgpack, Self::Json];

    /// The WebSocket subprotocol that names it.
    pub const fn subprotocol(self) -> &'static str {
        match self {
            Self::Msgpack => SUBPROTOCOL_MSGPACK,
            Self::Json => SUBPROTOCOL_JSON,
        }
    }

    /// The form of a subprotocol.
    pub fn from_subprotocol(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|form| form.subprotocol() == name)
    }

    /// Whether its frames are text frames.
    pub const fn is_text(self) -> bool {
        matches!(self, Self::Json)
    }

    /// Reads a client's message. [`Limits::message_bytes`] holds for the frame, and for the message as MessagePack.
    pub fn decode_client(self, frame: &[u8], limits: &Limits) -> Result<ClientMessage, DecodeError> {
        if !self.is_text() {
            return msgpack::decode_client(frame, limits);
        }
        let (bytes, problem) = json::transcode(text(frame)?)?;
        let problem = match frame.len() {
            n if n > limits.message_bytes => Some(Invalid::too_large("message size in bytes", limits.message_bytes, n)),
            _ => problem,
        };
        match problem {
            None => msgpack::decode_client(&bytes, limits),
            Some(problem) => Err(msgpack::refused(&bytes, problem)),
        }
    }

    /// Reads a server's message.
    pub fn decode_server(self, frame: &[u8]) -> Result<ServerMessage, Invalid> {
        if !self.is_text() {
            return msgpack::decode_server(frame);
        }
        match json::transcode(text(frame)?)? {
            (bytes, None) => msgpack::decode_server(&bytes),
            (_, Some(problem)) => Err(problem),
        }
    }

    /// Writes a client's message.
    pub fn encode_client(self, message: &ClientMessage) -> Vec<u8> {
        self.of_msgpack(msgpack::encode_client(message))
    }

    /// Writes a server's message.
    pub fn encode_server(self, message: &ServerMessage) -> Vec<u8> {
        self.of_msgpack(msgpack::encode_server(message))
    }

    /// Appends a server message. MessagePack allocates nothing but what `out` grows by.
    pub fn encode_server_to(self, out: &mut Vec<u8>, message: &ServerMessage) {
        match self {
            Self::Msgpack => msgpack::encode_server_to(out, message),
            Self::Json => out.extend_from_slice(&self.encode_server(message)),
        }
    }

    /// Writes the change that carries `payload` (see [`msgpack::payload`]) to the subscribers of a node that
    /// calls its space `n`, without decoding it.
    pub fn change(self, n: u32, payload: &[u8]) -> Vec<u8> {
        let mut frame = msgpack::change_prefix(n);
        frame.extend_from_slice(payload);
        self.of_msgpack(frame)
    }

    /// A message that is encoded as MessagePack, in this form.
    pub fn of_msgpack(self, message: Vec<u8>) -> Vec<u8> {
        match self {
            Self::Msgpack => message,
            Self::Json => json::from_msgpack(&message).into_bytes(),
        }
    }
}

fn text(frame: &[u8]) -> Result<&str, Invalid> {
    std::str::from_utf8(frame).map_err(|_| Invalid::malformed("a text frame that is not UTF-8"))
}
