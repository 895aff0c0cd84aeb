//! The client and its options.

use crate::driver::drive;
use crate::shared::{Failure, Shared};
use crate::space::Space;
use crate::storage::{Storage, Stored};
use crate::sync::{Config, ConnectionState, Identity, Machine, Refusal};
use crate::transport::{Connector, NO_TLS, Tcp};
use crate::url::{GatewayUrl, UrlError};
use futures_util::Stream;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tidegate_protocol::limits::MESSAGE_BYTES_MAX;
use tidegate_protocol::{Invalid, SpaceId, Welcome};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// How long `close` waits for queued mutations to be answered.
const FLUSH: Duration = Duration::from_secs(5);
/// How long `close` waits for the socket after that; longer than its closing handshake may take.
const SHUT: Duration = Duration::from_secs(3);

/// How to reach a gateway, and as whom.
pub struct Options {
    url: GatewayUrl,
    token: Option<String>,
    sdk: String,
    connector: Arc<dyn Connector>,
    storage: Option<Box<dyn Storage>>,
    identities: BTreeMap<SpaceId, Identity>,
}

/// Options that cannot be.
#[derive(Debug, thiserror::Error)]
pub enum OptionsError {
    /// The URL is none.
    #[error(transparent)]
    Url(#[from] UrlError),
    /// The URL asks for TLS, and the connector has none.
    #[error("{0}: {NO_TLS}")]
    Tls(GatewayUrl),
}

impl Options {
    /// Options for the gateway at a URL as [`GatewayUrl`] takes it, over plain TCP.
    pub fn new(url: &str) -> Result<Self, OptionsError> {
        let url = GatewayUrl::parse(url)?;
        if url.is_secure() {
            return Err(OptionsError::Tls(url));
        }
        Ok(Self::with_connector(url, Tcp))
    }

    /// Options for a gateway that is reached through a connector of one's own.
    pub fn with_connector(url: GatewayUrl, connector: impl Connector) -> Self {
        Self {
            url,
            token: None,
            sdk: concat!("tidegate-rust/", env!("CARGO_PKG_VERSION")).to_owned(),
            connector: Arc::new(connector),
            storage: None,
            identities: BTreeMap::new(),
        }
    }

    /// The token that says who the user is.
    #[must_use]
    pub fn token(mut self, token: impl Into<String>) -> Self {
        self.token = Some(token.into());
        self
    }

    /// The name and version that the gateway's log shows.
    #[must_use]
    pub fn sdk(mut self, name: impl Into<String>) -> Self {
        self.sdk = name.into();
        self
    }

    /// Where to keep what must not be forgotten. Without it, everything lasts as long as the client.
    #[must_use]
    pub fn storage(mut self, storage: impl Storage) -> Self {
        self.storage = Some(Box::new(storage));
        self
    }

    /// The identity with which to begin in a space of which the storage holds none: one that
    /// [`Space::identity`] gave to an earlier process. No two clients may use it at a time.
    #[must_use]
    pub fn identity(mut self, space: SpaceId, identity: Identity) -> Self {
        self.identities.insert(space, identity);
        self
    }
}

/// A connection to a gateway, kept up by a task of its own, and the local state of the spaces used.
///
/// Cheap to clone. When the last clone, and the last space, document or stream made from it, is dropped,
/// the connection is cut; [`Client::close`] ends it in good order.
#[derive(Clone)]
pub struct Client(Handle);

#[derive(Clone)]
pub(crate) struct Handle(Arc<Inner>);

struct Inner {
    shared: Arc<Shared>,
    /// The driver's task; aborted when the last handle goes.
    task: Mutex<JoinSet<()>>,
}

impl Handle {
    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.0.shared
    }

    /// One more wants a subscription to the space.
    pub(crate) fn want(&self, space: &SpaceId) {
        self.shared().ask(|core| {
            if core.watchers.want(space) {
                let filter = core.filters.get(space).cloned();
                core.machine.subscribe(space, filter);
            }
        });
    }

    /// One fewer does.
    pub(crate) fn unwant(&self, space: &SpaceId) {
        self.shared().ask(|core| {
            if core.watchers.unwant(space) {
                core.machine.unsubscribe(space);
            }
        });
    }
}

impl Client {
    /// Begins to connect, and returns at once: reading and writing work on the local state until the
    /// gateway is there. Has to be called within a tokio runtime.
    ///
    /// A storage that cannot be read stops the client; [`Client::state`] says so.
    pub fn connect(options: Options) -> Self {
        let Options {
            url,
            token,
            sdk,
            connector,
            mut storage,
            identities,
        } = options;
        let config = Config {
            token,
            sdk: Some(sdk),
            stores: storage.is_some(),
            inflates: true,
            max_message: Some(MESSAGE_BYTES_MAX as u64),
        };
        let loaded = storage
            .as_mut()
            .map_or_else(|| Ok(Stored::default()), |storage| storage.load());
        let (mut stored, broken) = match loaded {
            Ok(stored) => (stored, None),
            Err(error) => (Stored::default(), Some(error)),
        };
        for (space, identity) in identities {
            stored.spaces.entry(space).or_default().identity.get_or_insert(identity);
        }
        let (state, _) = watch::channel(ConnectionState::Connecting);
        let shared = Arc::new(Shared::new(storage, state, |now| {
            Machine::new(config, stored, Box::new(random), now)
        }));
        if let Some(error) = broken {
            let now = shared.now();
            shared.step(|machine| machine.halt(now, crate::driver::STORAGE_FAILED, error.to_string()));
        }
        let mut task = JoinSet::new();
        task.spawn(drive(Arc::clone(&shared), url, connector));
        Self(Handle(Arc::new(Inner {
            shared,
            task: Mutex::new(task),
        })))
    }

    /// A space by its name.
    pub fn space(&self, name: &str) -> Result<Space, Invalid> {
        Ok(Space::open(self.0.clone(), SpaceId::parse(name)?))
    }

    /// The connection's state, and every change of it.
    pub fn state(&self) -> watch::Receiver<ConnectionState> {
        self.0.shared().state()
    }

    /// Waits until the client is connected. An error: it will not be, until something is changed.
    pub async fn connected(&self) -> Result<Welcome, Refusal> {
        let mut state = self.state();
        loop {
            if let Some(refusal) = self.0.shared().look(|core| core.machine.stopped()) {
                return Err(refusal);
            }
            if let ConnectionState::Online(welcome) = &*state.borrow_and_update() {
                return Ok((**welcome).clone());
            }
            // The sender lives as long as `self`.
            let _ = state.changed().await;
        }
    }

    /// A new token: renews the live connection, and brings back one that ended for want of it.
    pub fn set_token(&self, token: impl Into<String>) {
        let now = self.0.shared().now();
        let token = token.into();
        self.0.shared().ask(|core| core.machine.set_token(now, Some(token)));
    }

    /// The network changed, or the app came to the foreground: connects at once, or finds out whether the
    /// connection is alive.
    pub fn wake_up(&self) {
        let now = self.0.shared().now();
        self.0.shared().ask(|core| core.machine.wake_up(now));
    }

    /// Mutations that wait for their answer.
    pub fn queued(&self) -> usize {
        self.0.shared().look(|core| core.machine.queued())
    }

    /// Waits until every queued mutation is answered, for as long as that takes. `false`: the client has
    /// stopped or was closed before.
    pub async fn flush(&self) -> bool {
        let shared = self.0.shared();
        shared
            .until(|core| match core.machine.queued() {
                0 => Some(true),
                _ => core.machine.stopped().map(|_| false),
            })
            .await
    }

    /// Mutations that failed, and losses, from now on; those of handles that nobody awaits, too.
    pub fn failures(&self) -> Failures {
        let id = self.0.shared().step_core(|core| core.open_failures());
        Failures {
            handle: self.0.clone(),
            id,
        }
    }

    /// Waits until queued mutations are answered (5 s at most), closes the connection (3 s at most), and
    /// ends every stream. Handles stay usable for reading; what is written then is refused.
    /// Returns how many mutations were left without an answer.
    pub async fn close(&self) -> usize {
        let _ = tokio::time::timeout(FLUSH, self.flush()).await;
        let shared = self.0.shared();
        let left = self.queued();
        let now = shared.now();
        shared.ask(|core| core.machine.close(now));
        let mut task = std::mem::take(&mut *self.0.0.task.lock());
        let _ = tokio::time::timeout(SHUT, async { while task.join_next().await.is_some() {} }).await;
        left
    }
}

/// 64 bits from the operating system.
fn random() -> u64 {
    let mut bytes = [0; 8];
    // Without randomness, ids and keys could repeat, and another's writes could be taken for one's own.
    getrandom::fill(&mut bytes).expect("the operating system gives randomness");
    u64::from_le_bytes(bytes)
}

/// A stream of failures. Holds the last 256; what went before is counted. Ends when the client is closed.
pub struct Failures {
    handle: Handle,
    id: u64,
}

impl Failures {
    /// How many were dropped, unread, since the last call.
    pub fn missed(&mut self) -> u64 {
        let missed =
            |core: &mut crate::shared::Core| core.failures(self.id).map(|buffer| std::mem::take(&mut buffer.missed));
        self.handle.shared().step_core(missed).unwrap_or(0)
    }

    /// The next failure. Cancel-safe.
    pub async fn next(&mut self) -> Option<Failure> {
        std::future::poll_fn(|cx| Pin::new(&mut *self).poll_next(cx)).await
    }
}

impl Stream for Failures {
    type Item = Failure;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Failure>> {
        self.handle.shared().step_core(|core| {
            let closed = core.machine.is_closed();
            let Some(buffer) = core.failures(self.id) else {
                return Poll::Ready(None);
            };
            match buffer.items.pop_front() {
                Some(failure) => Poll::Ready(Some(failure)),
                None if closed => Poll::Ready(None),
                None => {
                    buffer.waker = Some(cx.waker().clone());
                    Poll::Pending
                }
            }
        })
    }
}

impl Drop for Failures {
    fn drop(&mut self) {
        self.handle.shared().step_core(|core| core.close_failures(self.id));
    }
}
