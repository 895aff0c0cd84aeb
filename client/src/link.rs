//! One WebSocket: opened, read and written. Reading and writing never wait for each other.

use crate::sync::ConnectFailure;
use crate::transport::{Connector, Transport};
use crate::url::GatewayUrl;
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use std::sync::Arc;
use std::time::Duration;
use tidegate_protocol::limits::MESSAGE_BYTES_MAX;
use tidegate_protocol::{ClientMessage, Code, Invalid, SUBPROTOCOL_MSGPACK, ServerMessage, deflate, msgpack};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::http::header::RETRY_AFTER;
use tokio_tungstenite::tungstenite::http::{HeaderMap, HeaderValue, Response};
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error, Message};

/// From the first packet to the end of the upgrade.
const CONNECT: Duration = Duration::from_secs(10);
/// How long a closing handshake may take before the socket is dropped.
const CLOSE: Duration = Duration::from_secs(2);
/// Messages between the machine and the socket. When they are full, the machine is not asked for more:
/// mutations wait in its queue.
const OUTBOX: usize = 16;
/// Buffer of the socket's reader.
const READ_BUFFER: usize = 16 << 10;
/// The header that tells a gateway's refusal from the network's.
const ERROR_HEADER: &str = "tidegate-error";

/// Messages on their way to the writer.
pub(crate) type Outbox = mpsc::Sender<Message>;

type Socket = WebSocketStream<Box<dyn Transport>>;

/// An open socket. Dropped, it takes its writer with it.
pub(crate) struct Link {
    reader: SplitStream<Socket>,
    outbox: Outbox,
    writer: JoinSet<()>,
    /// Whether the gateway has agreed that messages may be compressed. What the queue holds stays as it was: compressed
    /// anew or not at all, a mutation that is sent again is the same message.
    compresses: bool,
}

/// What a socket gave.
pub(crate) enum Incoming {
    Message(ServerMessage),
    /// The gateway sent what is no message.
    Malformed(Invalid),
    Closed {
        code: Option<u16>,
        why: String,
    },
}

impl Link {
    /// Opens a socket.
    pub(crate) async fn open(url: &GatewayUrl, connector: Arc<dyn Connector>) -> Result<Self, ConnectFailure> {
        match tokio::time::timeout(CONNECT, Self::upgrade(url, connector)).await {
            Ok(result) => result,
            Err(_) => Err(ConnectFailure {
                code: None,
                message: format!("{url}: no connection within 10 s"),
                retry_ms: 0,
            }),
        }
    }

    async fn upgrade(url: &GatewayUrl, connector: Arc<dyn Connector>) -> Result<Self, ConnectFailure> {
        let failure = |code, why: String| ConnectFailure {
            code,
            message: format!("{url}: {why}"),
            retry_ms: 0,
        };
        let stream = connector.connect(url).await.map_err(|e| {
            let code = (e.kind() == std::io::ErrorKind::Unsupported).then_some(Code::Unsupported);
            failure(code, e.to_string())
        })?;
        let mut request = url
            .to_string()
            .into_client_request()
            .map_err(|e| failure(None, e.to_string()))?;
        request
            .headers_mut()
            .insert("sec-websocket-protocol", HeaderValue::from_static(SUBPROTOCOL_MSGPACK));
        let config = WebSocketConfig::default()
            .read_buffer_size(READ_BUFFER)
            .max_message_size(Some(MESSAGE_BYTES_MAX))
            .max_frame_size(Some(MESSAGE_BYTES_MAX));
        let (socket, _) = tokio_tungstenite::client_async_with_config(request, stream, Some(config))
            .await
            .map_err(|error| match error {
                Error::Http(answer) => {
                    let (code, why) = refused(&answer);
                    ConnectFailure {
                        retry_ms: retry_after(answer.headers()),
                        ..failure(code, why)
                    }
                }
                error => failure(None, error.to_string()),
            })?;
        let (sink, reader) = socket.split();
        let (outbox, messages) = mpsc::channel(OUTBOX);
        let mut writer = JoinSet::new();
        writer.spawn(write(sink, messages));
        Ok(Self {
            reader,
            outbox,
            writer,
            compresses: false,
        })
    }

    /// The next message. Cancel-safe.
    pub(crate) async fn next(&mut self) -> Incoming {
        let closed = |code, why: &str| Incoming::Closed {
            code,
            why: why.to_owned(),
        };
        loop {
            return match self.reader.next().await {
                None => closed(None, "the connection ended"),
                Some(Err(e)) => closed(None, &e.to_string()),
                Some(Ok(Message::Close(frame))) => match frame {
                    Some(frame) => closed(Some(frame.code.into()), &frame.reason),
                    None => closed(None, "closed without a reason"),
                },
                Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => continue,
                Some(Ok(Message::Binary(bytes))) => match decode(&bytes) {
                    Ok(message) => {
                        if let ServerMessage::Welcome(welcome) = &message {
                            self.compresses = welcome.caps.iter().any(|cap| cap == deflate::CAP);
                        }
                        Incoming::Message(message)
                    }
                    Err(invalid) => Incoming::Malformed(invalid),
                },
                Some(Ok(Message::Text(_))) => Incoming::Malformed(Invalid::malformed("a text frame")),
            };
        }
    }

    /// Where messages wait for the writer.
    pub(crate) fn outbox(&self) -> Outbox {
        self.outbox.clone()
    }

    /// Whether the socket takes one more message.
    pub(crate) fn has_room(&self) -> bool {
        self.outbox.capacity() > 0
    }

    /// Hands over a message. There has to be room.
    pub(crate) fn send(&self, message: &ClientMessage) {
        let mut message = msgpack::encode_client(message);
        if self.compresses
            && message.len() >= deflate::THRESHOLD
            && let Some(z) = deflate::compress(&message)
        {
            message = z;
        }
        // A writer that is gone is a socket that is gone: the reader tells.
        let _ = self.outbox.try_send(Message::Binary(message.into()));
    }

    /// Sends what was handed over, then closes. Bounded in time.
    pub(crate) async fn close(mut self, code: u16) {
        let frame = CloseFrame {
            code: CloseCode::from(code),
            reason: "".into(),
        };
        let closing = async {
            let _ = self.outbox.send(Message::Close(Some(frame))).await;
            drop(self.outbox);
            while self.writer.join_next().await.is_some() {}
            while let Some(Ok(_)) = self.reader.next().await {}
        };
        let _ = tokio::time::timeout(CLOSE, closing).await;
    }
}

/// A message, inflated if it is compressed.
fn decode(message: &[u8]) -> Result<ServerMessage, Invalid> {
    msgpack::decode_server(&deflate::expand(message, MESSAGE_BYTES_MAX)?)
}

/// The gateway's refusal, or the network's: then without a code.
fn refused(answer: &Response<Option<Vec<u8>>>) -> (Option<Code>, String) {
    let status = answer.status();
    let body = answer
        .body()
        .as_deref()
        .map(String::from_utf8_lossy)
        .unwrap_or_default();
    let body: String = body.chars().take(200).collect();
    let name = answer.headers().get(ERROR_HEADER).and_then(|name| name.to_str().ok());
    match name.and_then(Code::from_name) {
        Some(code) if body.is_empty() => (Some(code), code.row().meaning.to_owned()),
        Some(code) => (Some(code), body),
        None => (
            None,
            format!("HTTP {status} from something that is not a Tidegate gateway"),
        ),
    }
}

/// What `Retry-After` asks to wait, ms: its seconds (RFC 9110 §10.2.3). A date goes by a clock that may be another than
/// this machine's; it counts as none.
fn retry_after(headers: &HeaderMap) -> u64 {
    let seconds = headers
        .get(RETRY_AFTER)
        .and_then(|value| value.to_str().ok()?.trim().parse::<u64>().ok());
    seconds.unwrap_or_default().saturating_mul(1_000)
}

/// Writes messages, as many as wait in one go. Ends with the first error or when nobody hands over more.
async fn write(mut sink: SplitSink<Socket, Message>, mut messages: mpsc::Receiver<Message>) {
    while let Some(message) = messages.recv().await {
        let mut next = Some(message);
        while let Some(message) = next {
            if sink.feed(message).await.is_err() {
                return;
            }
            next = messages.try_recv().ok();
        }
        if sink.flush().await.is_err() {
            return;
        }
    }
}
