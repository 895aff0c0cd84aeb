//! The bus on Redis: a connection of its own, on which nothing is done but to subscribe, one channel a SUBSCRIBE.
//!
//! A task owns the connection. It takes in what comes as fast as it comes, so that nothing waits in the library or on
//! the server, and puts it into the inbox; others bring it from there to the hub. Requests go out in the order in which they
//! were made, so that of a space that is left and followed again the subscription is the last word.
//!
//! Every now and then the node publishes a probe, by the store's connections, and has to hear it: so a connection that is
//! dead, or leads to a server that the store has left, is found whatever it looks like. If a probe is not heard, or the
//! connection ends, everything is subscribed anew on the next one, a probe is waited for, the heads of all spaces are compared
//! with the store, and only then is the node ready again.

use super::Bus;
use super::inbox::{Bounds, Inbox};
use crate::env::Env;
use crate::hub::Hub;
use crate::metrics::{Gauged, RedisMetrics};
use crate::store::redis::{RedisConfig, RedisStore, channel, space_of_channel};
use crate::store::{LogEntry, StoreError};
use async_trait::async_trait;
use bytes::{Buf, Bytes};
use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesUnordered, StreamExt};
use parking_lot::Mutex;
use redis::aio::PubSubSink;
use redis::{RedisError, RedisResult};
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tidegate_protocol::{Epoch, Seq, SpaceId};
use tokio::sync::{Notify, oneshot};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

/// Between attempts to connect, doubled after each that fails.
const FIRST_AGAIN: Duration = Duration::from_millis(20);
const LAST_AGAIN: Duration = Duration::from_secs(1);
/// Tasks that bring what has arrived to the hub, each another space's.
const BRINGERS: usize = 2;
/// Bytes that have arrived of a space and are not taken in, and of all spaces.
const BOUNDS: Bounds = Bounds {
    space: 8 << 20,
    all: 64 << 20,
};

/// The bus.
pub struct RedisBus {
    store: Arc<RedisStore>,
    env: Arc<dyn Env>,
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
    /// Follow this node's probes, on this channel.
    Probe(String),
    Subscribe(SpaceId),
    Unsubscribe(SpaceId),
}

/// What has come of a request.
enum Done {
    Probing,
    Subscribed(SpaceId),
    /// The server does not allow it, and says why.
    Refused(SpaceId, RedisError),
    Unsubscribed,
}

/// A request under way.
type Asked = BoxFuture<'static, RedisResult<Done>>;

/// Probes of a connection, each a number.
struct Probes {
    channel: String,
    /// The last that was published, and when that was done.
    published: u64,
    since: Instant,
    heard: u64,
    publishing: Option<BoxFuture<'static, Result<(), StoreError>>>,
}

impl Probes {
    /// Whether one that was published has not been heard for so long.
    fn are_lost(&self, time: Duration) -> bool {
        self.heard < self.published && self.since.elapsed() >= time
    }

    fn publish(&mut self, store: &Arc<RedisStore>) {
        let (store, channel) = (store.clone(), self.channel.clone());
        let next = (self.published + 1).to_string();
        self.publishing = Some(Box::pin(async move { store.publish(&channel, &next).await }));
    }

    fn done(&mut self, is_published: bool) {
        self.publishing = None;
        // Where the store does not answer, that says nothing of the bus.
        if is_published {
            if self.heard == self.published {
                self.since = Instant::now();
            }
            self.published += 1;
        }
    }
}

impl RedisBus {
    /// A bus beside a store, on the same server. It is not connected yet; `run` connects it.
    pub fn new(store: Arc<RedisStore>, env: Arc<dyn Env>) -> Arc<Self> {
        Arc::new(Self {
            store,
            env,
            inbox: Inbox::new(BOUNDS),
            state: Mutex::default(),
            asked: Notify::new(),
            is_ready: AtomicBool::new(false),
        })
    }

    fn config(&self) -> &RedisConfig {
        &self.store.connector().config
    }

    fn metrics(&self) -> &RedisMetrics {
        &self.store.connector().metrics
    }

    /// Takes in from a connection until it ends. Says why it did.
    async fn serve(&self, hub: &Arc<Hub>) -> String {
        let connecting = async {
            let client = self.store.connector().endpoint.client().await?;
            client.get_async_pubsub().await.map_err(|error| error.to_string())
        };
        let connected = timeout(self.config().connect, connecting).await;
        let (sink, mut stream) = match connected {
            Ok(Ok(connection)) => connection.split(),
            Ok(Err(why)) => return why,
            Err(_) => return format!("not connected in {:?}", self.config().connect),
        };
        let mut probes = Probes {
            channel: format!("tg:probe:{:016x}", self.env.random()),
            published: 0,
            since: Instant::now(),
            heard: 0,
            publishing: None,
        };
        let mut missing = {
            let mut state = self.state.lock();
            let spaces = state.followed.keys().cloned().map(Request::Subscribe);
            let all: Vec<_> = [Request::Probe(probes.channel.clone())]
                .into_iter()
                .chain(spaces)
                .collect();
            self.asked.notify_one();
            state.requests.insert(all).len()
        };
        let _gauge = Gauged::new(&self.metrics().bus_connected);
        let mut asked: FuturesUnordered<Asked> = FuturesUnordered::new();
        let mut ticks = tokio::time::interval(self.config().ping);
        let mut is_probing = false;
        let mut comparing: Option<BoxFuture<'static, bool>> = None;
        // Where the store does not answer, it is asked again with the next tick.
        let mut is_due = true;
        loop {
            if missing == 0 && probes.heard > 0 && is_due && comparing.is_none() && !self.is_connected() {
                is_due = false;
                let hub = hub.clone();
                comparing = Some(Box::pin(async move { hub.check_heads().await }));
            }
            tokio::select! {
                message = stream.next() => match message {
                    Some(message) if message.get_channel_name() == probes.channel => {
                        let number = std::str::from_utf8(message.get_payload_bytes()).ok();
                        probes.heard = number.and_then(|number| number.parse().ok()).unwrap_or(probes.heard);
                    }
                    Some(message) => self.arrived(&message),
                    None => return "it was closed".to_owned(),
                },
                () = self.asked.notified() => {
                    let requests = self.state.lock().requests.as_mut().map(std::mem::take);
                    let db = self.store.connector().endpoint.db();
                    for request in requests.into_iter().flatten() {
                        asked.push(begin(&sink, request, db));
                    }
                }
                Some(done) = asked.next(), if !asked.is_empty() => match done {
                    Ok(Done::Probing) => {
                        missing = missing.saturating_sub(1);
                        is_probing = true;
                        probes.publish(&self.store);
                    }
                    Ok(Done::Subscribed(space)) => {
                        missing = missing.saturating_sub(1);
                        self.confirmed(&space);
                    }
                    Ok(Done::Refused(space, error)) => {
                        missing = missing.saturating_sub(1);
                        self.refused(&space, &error);
                    }
                    Ok(Done::Unsubscribed) => {}
                    Err(error) => return error.to_string(),
                },
                _ = ticks.tick() => {
                    is_due = true;
                    if probes.are_lost(self.config().response) {
                        return format!("a probe was published and not heard in {:?}", self.config().response);
                    }
                    if is_probing && probes.publishing.is_none() {
                        probes.publish(&self.store);
                    }
                }
                done = async { probes.publishing.as_mut().expect("asked").as_mut().await }, if probes.publishing.is_some() => {
                    probes.done(done.is_ok());
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
        if !self.inbox.put(&space, read) {
            self.metrics().bus_cut.inc();
        }
    }

    /// Whoever waits for that space is told that it cannot be followed. The others are, so the connection stays.
    fn refused(&self, space: &SpaceId, error: &RedisError) {
        tracing::error!(%space, %error, "Redis does not allow to subscribe to the space's channel; give its user &tg:*");
        self.store.connector().count("other");
        if let Some(waiting) = self.state.lock().followed.get_mut(space) {
            waiting.clear();
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
    async fn bring(self: Arc<Self>, hub: Arc<Hub>) {
        loop {
            self.inbox
                .take(|space, arrived| hub.heard(space, &arrived.heard, arrived.is_cut))
                .await;
            tokio::task::yield_now().await;
        }
    }

    /// Keeps a connection.
    async fn connect(self: Arc<Self>, hub: Arc<Hub>) {
        let mut pause = FIRST_AGAIN;
        loop {
            let since = Instant::now();
            let why = self.serve(&hub).await;
            self.state.lock().requests = None;
            self.is_ready.store(false, Ordering::Relaxed);
            self.metrics().bus_breaks.inc();
            tracing::warn!(%why, "the bus is not connected; trying again");
            if since.elapsed() > LAST_AGAIN {
                pause = FIRST_AGAIN;
            }
            // Nodes that lost it together do not all come back at once.
            let share = u32::try_from(self.env.random() % 1_000).unwrap_or(0);
            tokio::time::sleep(pause / 2 + pause / 2 * share / 1_000).await;
            pause = (pause * 2).min(LAST_AGAIN);
        }
    }
}

/// Sends a request at once, so that requests arrive in the order in which they were made.
fn begin(sink: &PubSubSink, request: Request, db: i64) -> Asked {
    let mut sink = sink.clone();
    let mut asked: Asked = Box::pin(async move {
        match request {
            Request::Probe(name) => {
                sink.subscribe(name).await?;
                Ok(Done::Probing)
            }
            Request::Subscribe(space) => match sink.subscribe(channel(&space, db)).await {
                Ok(()) => Ok(Done::Subscribed(space)),
                Err(error) if error.code().is_some() => Ok(Done::Refused(space, error)),
                Err(error) => Err(error),
            },
            Request::Unsubscribe(space) => {
                sink.unsubscribe(channel(&space, db)).await?;
                Ok(Done::Unsubscribed)
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
        match timeout(self.config().patience, confirmed).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(StoreError::Unavailable("the bus cannot follow the space".to_owned())),
            Err(_) => Err(StoreError::Unavailable("the bus is not connected".to_owned())),
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
        let mut tasks = JoinSet::new();
        tasks.spawn(self.clone().connect(hub.clone()));
        for _ in 0..BRINGERS {
            tasks.spawn(self.clone().bring(hub.clone()));
        }
        stop.cancelled().await;
        tasks.shutdown().await;
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
            seq: seq(&payload)?,
            payload,
        });
    }
    Some((epoch, commits))
}

/// The seq, a number of fixed width, as the store puts it in front of a change: MessagePack's 64 bits.
fn seq(payload: &[u8]) -> Option<Seq> {
    let (kind, rest) = payload.split_first()?;
    let number = rest.first_chunk::<8>().filter(|_| *kind == 0xcf)?;
    Seq::new(u64::from_be_bytes(*number))
}
