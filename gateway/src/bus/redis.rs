//! The bus on Redis: a connection of its own, on which nothing is done but to subscribe, one channel a SUBSCRIBE.
//!
//! A task owns the connection. It takes in what comes as fast as it comes, so that nothing waits in the library or on
//! the server, and puts it into the inbox. Requests go out in the order in which they were made, so that of a space
//! that is left and followed again the subscription is the last word. If the connection ends, or a ping on it is not
//! answered, everything is subscribed anew on the next one, the heads of all spaces are compared with the store, and
//! only then is the node ready again.

use super::Bus;
use super::inbox::{Bounds, Inbox};
use crate::env::Env;
use crate::hub::Hub;
use crate::metrics::{Gauged, RedisMetrics};
use crate::store::redis::{Endpoint, RedisConfig, channel, space_of_channel};
use crate::store::{LogEntry, StoreError};
use async_trait::async_trait;
use bytes::{Buf, Bytes};
use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesUnordered, StreamExt};
use parking_lot::Mutex;
use redis::RedisResult;
use redis::aio::PubSubSink;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tidegate_protocol::{Epoch, Seq, SpaceId};
use tokio::sync::{Notify, oneshot};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

/// Between attempts to connect, doubled after each that fails.
const FIRST_AGAIN: Duration = Duration::from_millis(20);
const LAST_AGAIN: Duration = Duration::from_secs(1);
/// Bytes that have arrived of a space and are not taken in, and of all spaces.
const BOUNDS: Bounds = Bounds {
    space: 1 << 20,
    all: 64 << 20,
};

/// The bus.
pub struct RedisBus {
    endpoint: Endpoint,
    config: RedisConfig,
    env: Arc<dyn Env>,
    metrics: Arc<RedisMetrics>,
    inbox: Inbox,
    state: Mutex<State>,
    /// Told of a request.
    asked: Notify,
    is_ready: AtomicBool,
}

#[derive(Default)]
struct State {
    /// What is followed, and who waits for the confirmation.
    followed: HashMap<SpaceId, Vec<oneshot::Sender<()>>>,
    /// What the connection is to do, in this order; nothing while there is none. No more than spaces come and go.
    requests: Option<Vec<Request>>,
}

impl State {
    fn ask(&mut self, request: Request) {
        if let Some(requests) = &mut self.requests {
            requests.push(request);
        }
    }
}

/// What the connection is to do.
enum Request {
    Subscribe(SpaceId),
    Unsubscribe(SpaceId),
}

/// A request under way: the space, if it was subscribed to.
type Asked = BoxFuture<'static, RedisResult<Option<SpaceId>>>;

impl RedisBus {
    /// A bus that is not connected yet; `run` connects it.
    ///
    /// # Errors
    /// Where the address, or a certificate, cannot be read.
    pub fn new(
        url: &str,
        config: RedisConfig,
        env: Arc<dyn Env>,
        metrics: Arc<RedisMetrics>,
    ) -> Result<Arc<Self>, String> {
        Ok(Arc::new(Self {
            endpoint: Endpoint::new(url, &config.tls)?,
            config,
            env,
            metrics,
            inbox: Inbox::new(BOUNDS),
            state: Mutex::default(),
            asked: Notify::new(),
            is_ready: AtomicBool::new(false),
        }))
    }

    /// Takes in from a connection until it ends. Says why it did.
    async fn serve(&self, hub: &Arc<Hub>) -> String {
        let connecting = async {
            let client = self.endpoint.client().await?;
            client.get_async_pubsub().await.map_err(|error| error.to_string())
        };
        let connected = timeout(self.config.connect, connecting).await;
        let (sink, mut stream) = match connected {
            Ok(Ok(connection)) => connection.split(),
            Ok(Err(why)) => return why,
            Err(_) => return format!("not connected in {:?}", self.config.connect),
        };
        let mut missing = {
            let mut state = self.state.lock();
            let all: Vec<_> = state.followed.keys().cloned().map(Request::Subscribe).collect();
            self.asked.notify_one();
            state.requests.insert(all).len()
        };
        let _gauge = Gauged::new(&self.metrics.bus_connected);
        let mut asked: FuturesUnordered<Asked> = FuturesUnordered::new();
        let mut pings = tokio::time::interval(self.config.ping);
        let mut pinged: Option<(Instant, BoxFuture<'static, RedisResult<redis::Value>>)> = None;
        let mut comparing: Option<BoxFuture<'static, bool>> = None;
        // Where the store does not answer, it is asked again with the next ping.
        let mut is_due = true;
        loop {
            if missing == 0 && is_due && comparing.is_none() && !self.is_connected() {
                is_due = false;
                let hub = hub.clone();
                comparing = Some(Box::pin(async move { hub.check_heads().await }));
            }
            tokio::select! {
                message = stream.next() => match message {
                    Some(message) => self.arrived(&message),
                    None => return "it was closed".to_owned(),
                },
                () = self.asked.notified() => {
                    let requests = self.state.lock().requests.as_mut().map(std::mem::take);
                    for request in requests.into_iter().flatten() {
                        asked.push(begin(&sink, request));
                    }
                }
                Some(done) = asked.next(), if !asked.is_empty() => match done {
                    Ok(Some(space)) => {
                        missing = missing.saturating_sub(1);
                        self.confirmed(&space);
                    }
                    Ok(None) => {}
                    Err(error) => return error.to_string(),
                },
                _ = pings.tick() => { is_due = true; match &pinged {
                    Some((since, _)) if since.elapsed() >= self.config.response => {
                        return format!("no answer to a ping in {:?}", self.config.response);
                    }
                    Some(_) => {}
                    None => {
                        let mut sink = sink.clone();
                        pinged = Some((Instant::now(), Box::pin(async move { sink.ping().await })));
                    }
                } },
                answer = async { pinged.as_mut().expect("asked").1.as_mut().await }, if pinged.is_some() => {
                    pinged = None;
                    if let Err(error) = answer {
                        return error.to_string();
                    }
                }
                equal = async { comparing.as_mut().expect("asked").as_mut().await }, if comparing.is_some() => {
                    comparing = None;
                    if equal {
                        self.is_ready.store(true, Ordering::Relaxed);
                        tracing::info!("the bus is connected, and every space's head is compared");
                    }
                }
            }
        }
    }

    /// Takes a message in. What cannot be read is of no use; the store knows what it was about.
    fn arrived(&self, message: &redis::Msg) {
        let Some(space) = space_of_channel(message.get_channel_name()) else {
            return;
        };
        let read = commits(Bytes::copy_from_slice(message.get_payload_bytes()));
        if let Some((_, commits)) = &read
            && let Some(at) = commits.first().and_then(|commit| time_of(&commit.payload))
        {
            let ms = self.env.now_ms().saturating_sub(at);
            self.metrics.bus_lag.observe(Duration::from_millis(ms).as_secs_f64());
        }
        if !self.inbox.put(&space, read) {
            self.metrics.bus_cut.inc();
        }
    }

    fn confirmed(&self, space: &SpaceId) {
        if let Some(waiting) = self.state.lock().followed.get_mut(space) {
            for told in waiting.drain(..) {
                // It may not have waited so long.
                let _ = told.send(());
            }
        }
    }

    /// Brings what has arrived to the hub.
    async fn bring(&self, hub: &Arc<Hub>) {
        loop {
            self.inbox
                .take(|space, arrived| hub.heard(space, &arrived.heard, arrived.is_cut))
                .await;
            tokio::task::yield_now().await;
        }
    }
}

/// Sends a request at once, so that requests arrive in the order in which they were made.
fn begin(sink: &PubSubSink, request: Request) -> Asked {
    let mut sink = sink.clone();
    let mut asked: Asked = Box::pin(async move {
        match request {
            Request::Subscribe(space) => {
                sink.subscribe(channel(&space)).await?;
                Ok(Some(space))
            }
            Request::Unsubscribe(space) => {
                sink.unsubscribe(channel(&space)).await?;
                Ok(None)
            }
        }
    });
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    match asked.as_mut().poll(&mut context) {
        std::task::Poll::Ready(done) => Box::pin(std::future::ready(done)),
        std::task::Poll::Pending => asked,
    }
}

#[async_trait]
impl Bus for RedisBus {
    async fn follow(&self, space: &SpaceId) -> Result<(), StoreError> {
        let (told, confirmed) = oneshot::channel();
        {
            let mut state = self.state.lock();
            state.followed.entry(space.clone()).or_default().push(told);
            state.ask(Request::Subscribe(space.clone()));
        }
        self.asked.notify_one();
        match timeout(self.config.patience, confirmed).await {
            Ok(Ok(())) => Ok(()),
            _ => Err(StoreError::Unavailable("the bus is not connected".to_owned())),
        }
    }

    fn leave(&self, space: &SpaceId) {
        let mut state = self.state.lock();
        state.followed.remove(space);
        state.ask(Request::Unsubscribe(space.clone()));
        drop(state);
        self.asked.notify_one();
    }

    fn is_connected(&self) -> bool {
        self.is_ready.load(Ordering::Relaxed)
    }

    async fn run(self: Arc<Self>, hub: Arc<Hub>, stop: CancellationToken) {
        let connecting = async {
            let mut pause = FIRST_AGAIN;
            loop {
                let since = Instant::now();
                let why = self.serve(&hub).await;
                self.state.lock().requests = None;
                self.is_ready.store(false, Ordering::Relaxed);
                self.metrics.bus_breaks.inc();
                tracing::warn!(%why, "the bus is not connected; trying again");
                if since.elapsed() > LAST_AGAIN {
                    pause = FIRST_AGAIN;
                }
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(LAST_AGAIN);
            }
        };
        tokio::select! {
            () = stop.cancelled() => {}
            () = connecting => {}
            () = self.bring(&hub) => {}
            () = self.bring(&hub) => {}
        }
    }
}

/// A message: epoch, then each change behind its length.
fn commits(mut message: Bytes) -> Option<(Epoch, Vec<LogEntry>)> {
    let epoch = Epoch(message.try_get_u64().ok()?);
    let mut commits = Vec::new();
    while message.has_remaining() {
        let length = usize::try_from(message.try_get_u32().ok()?).ok()?;
        if length > message.len() {
            return None;
        }
        let payload = message.split_to(length);
        commits.push(LogEntry {
            seq: Seq::new(number(&payload, 0)?)?,
            payload,
        });
    }
    Some((epoch, commits))
}

/// The commit's time, ms since 1970.
fn time_of(payload: &[u8]) -> Option<u64> {
    number(payload, 9)
}

/// A number of fixed width, as the store puts them in front of a change: MessagePack's 64 bits.
fn number(payload: &[u8], at: usize) -> Option<u64> {
    let (kind, rest) = payload.get(at..)?.split_first()?;
    let number = rest.first_chunk::<8>()?;
    (*kind == 0xcf).then(|| u64::from_be_bytes(*number))
}
