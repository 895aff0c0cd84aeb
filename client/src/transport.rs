//! How a client reaches its gateway: the seam for TLS, for proxies and for tests.

use crate::url::GatewayUrl;
use futures_util::future::BoxFuture;
use std::io;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

/// A byte stream to a gateway.
pub trait Transport: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Transport for T {}

/// Opens byte streams. The client puts a deadline on it; it need not have its own.
pub trait Connector: Send + Sync + 'static {
    /// Opens a stream to the gateway's host and port, through TLS where the URL asks for it.
    fn connect<'a>(&'a self, url: &'a GatewayUrl) -> BoxFuture<'a, io::Result<Box<dyn Transport>>>;
}

/// Plain TCP.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tcp;

/// What plain TCP says to a `wss` or `https` URL.
pub(crate) const NO_TLS: &str = "TLS comes later: use a ws:// or http:// URL, or a connector of your own";

impl Connector for Tcp {
    fn connect<'a>(&'a self, url: &'a GatewayUrl) -> BoxFuture<'a, io::Result<Box<dyn Transport>>> {
        Box::pin(async move {
            if url.is_secure() {
                return Err(io::Error::new(io::ErrorKind::Unsupported, NO_TLS));
            }
            let stream = TcpStream::connect((url.host(), url.port())).await?;
            stream.set_nodelay(true)?;
            Ok(Box::new(stream) as Box<dyn Transport>)
        })
    }
}
