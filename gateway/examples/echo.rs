//! Two echo servers for Autobahn's cases (`make autobahn`): one that reads, frames and writes with the gateway's own code,
//! and a plain tokio-tungstenite one beside it, by which it is judged.
//!
//! Prints which of them listens where, and serves until it is killed.

use futures_util::{SinkExt, StreamExt};
use std::future::poll_fn;
use std::io::{self, Write};
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;
use tidegate::frame;
use tidegate::outbox::{Bounds, End, Outbox, Transport};
use tidegate::ws::{Ended, Flow, Incoming, Ws};
use tidegate_protocol::form::Form;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_tungstenite::tungstenite::Error;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::frame::{CloseFrame, Frame};
use tokio_tungstenite::{WebSocketStream, accept_async_with_config};

/// Bytes of a message, at most. The largest of the cases has 65,536.
const LIMIT: usize = 16 << 20;

/// While more bytes of echoes wait, nothing is read.
const QUEUED: usize = 512 << 10;

/// How long a connection may take to end.
const FLUSH: Duration = Duration::from_secs(5);

#[tokio::main]
async fn main() -> io::Result<()> {
    let gateway = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let plain = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let mut out = io::stdout();
    writeln!(out, "gateway {}", gateway.local_addr()?)?;
    writeln!(out, "plain {}", plain.local_addr()?)?;
    out.flush()?;
    tokio::try_join!(serve(&gateway, echo_by_gateway), serve(&plain, echo_by_tungstenite))?;
    Ok(())
}

/// Ends with the first connection that panics, so that no case passes by it.
async fn serve<F>(listener: &TcpListener, echo: fn(TcpStream) -> F) -> io::Result<()>
where
    F: Future<Output = Result<(), Error>> + Send + 'static,
{
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let (socket, _) = accepted?;
                socket.set_nodelay(true)?;
                connections.spawn(echo(socket));
            }
            Some(ended) = connections.join_next() => {
                // How a connection ends is Autobahn's to judge.
                let _ = ended.map_err(io::Error::other)?;
            }
        }
    }
}

fn config() -> WebSocketConfig {
    WebSocketConfig::default()
        .max_message_size(Some(LIMIT))
        .max_frame_size(Some(LIMIT))
}

/// As tokio-tungstenite's documentation has it: an error ends the connection.
async fn echo_by_tungstenite(socket: TcpStream) -> Result<(), Error> {
    let mut ws = accept_async_with_config(socket, Some(config())).await?;
    while let Some(message) = ws.next().await {
        let message = message?;
        if message.is_text() || message.is_binary() {
            ws.send(message).await?;
        }
    }
    Ok(())
}

/// The handshake is tungstenite's; all that follows is read, framed, written and ended as the gateway's sessions do it,
/// but for the close codes, which are RFC 6455's.
async fn echo_by_gateway(socket: TcpStream) -> Result<(), Error> {
    let socket = accept_async_with_config(socket, Some(config()))
        .await
        .map(WebSocketStream::into_inner)?;
    let bounds = Bounds {
        soft: QUEUED,
        hard: 4 * LIMIT,
    };
    let outbox = Outbox::new(socket, bounds, Arc::default());
    let mut ws = Ws::new(&[], LIMIT);
    let ended = tokio::select! {
        end = outbox.run_writer() => return Err(io::Error::other(format!("{end:?}")).into()),
        ended = echo(&mut ws, &outbox) => ended,
    };
    let last = match ended {
        Ended::Closed => None,
        Ended::Lost => return Ok(()),
        Ended::Broken(error) => Some(close(&error)?),
    };
    outbox.finish(last.map(Into::into), true);
    let flush = async {
        if outbox.run_writer().await == End::Finished {
            outbox.transport().shutdown_write();
            while poll_fn(|cx| ws.poll_skip(cx, outbox.transport())).await {}
        }
    };
    // Whoever does not take it in time is cut off.
    let _ = tokio::time::timeout(FLUSH, flush).await;
    Ok(())
}

/// Stops reading after each message, so that going on is under test as well.
async fn echo(ws: &mut Ws, outbox: &Outbox<TcpStream>) -> Ended {
    loop {
        outbox.below(QUEUED).await;
        let Ok(filled) = poll_fn(|cx| ws.poll_fill(cx, outbox.transport())).await else {
            return Ended::Lost;
        };
        let taken = ws.take(filled, outbox, |incoming| {
            let (form, message) = match incoming {
                Incoming::Text(message) => (Form::Json, message),
                Incoming::Binary(message) => (Form::Msgpack, message),
                Incoming::Control => return Flow::Continue(()),
            };
            outbox.push([frame::data(form, message)]);
            Flow::Break(())
        });
        match taken {
            Ok(()) => tokio::task::consume_budget().await,
            Err(ended) => return ended,
        }
    }
}

/// What RFC 6455 §7.4.1 has for it.
fn close(error: &Error) -> Result<Vec<u8>, Error> {
    let code = match error {
        Error::Utf8(_) => CloseCode::Invalid,
        Error::Capacity(_) => CloseCode::Size,
        _ => CloseCode::Protocol,
    };
    let mut frame = Vec::new();
    Frame::close(Some(CloseFrame {
        code,
        reason: "".into(),
    }))
    .format(&mut frame)?;
    Ok(frame)
}
