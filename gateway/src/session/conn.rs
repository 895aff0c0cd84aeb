//! The shell of a session: one task per connection, reading frames, driving the machine, writing
//! only where the socket would block.

use super::catchup::CatchUp;
use super::machine::{Effect, Input, Session, Subscribe};
use super::node::{Node, NodeConfig};
use crate::admission::{Admitted, Guest, Place};
use crate::engine::{WriteReply, WriteRequest};
use crate::frame;
use crate::hub::{Answer, Lease, Subscriber};
use crate::metrics::Gauged;
use crate::outbox::{End, Outbox, Transport};
use crate::ws::{Ended, Flow, Incoming, Ws};
use bytes::Bytes;
use futures_util::future::{AbortHandle, Abortable, Aborted, BoxFuture};
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use parking_lot::Mutex;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use tidegate_protocol::form::Form;
use tidegate_protocol::msgpack::DecodeError;
use tidegate_protocol::{ClientMessage, Code, DocPath, Position, ResumeFrom, ServerMessage, SpaceId, deflate};
use tokio::sync::{Notify, Semaphore, SemaphorePermit};
use tokio::time::Instant;
use tokio_tungstenite::tungstenite::Error as WsError;
use tokio_tungstenite::tungstenite::error::ProtocolError;

/// A connection that has become a WebSocket.
pub struct Accepted<T> {
    /// The socket.
    pub socket: T,
    /// What was read beyond the upgrade request.
    pub leftover: Bytes,
    /// The negotiated form.
    pub form: Form,
    /// From the `Authorization` header.
    pub token: Option<String>,
    /// When the TCP connection was accepted.
    pub since: Instant,
    /// Who, for the log.
    pub peer: String,
    /// Its place on the node.
    pub admitted: Admitted,
}

/// What others hold of a connection: the hub, the engine's answers, the sweep.
pub struct Conn {
    pub(super) id: u64,
    pub(super) form: Form,
    /// Once it was agreed on: large messages are compressed.
    compresses: AtomicBool,
    pub(super) outbox: Arc<Outbox>,
    pub(super) wake: Notify,
    /// Subscriptions that have to catch up again; at most one entry each.
    behind: Mutex<BTreeMap<u64, Position>>,
    /// When it has something to do at the latest, ms of the node's clock: a deadline, or to leave.
    pub(super) due: AtomicU64,
    /// When it is to be asked to go elsewhere.
    pub(super) leave_at: AtomicU64,
    /// See `turn`.
    reading: tokio::sync::Mutex<()>,
}

/// A connection's turn to read from the store.
pub(super) struct Turn<'a> {
    _own: tokio::sync::MutexGuard<'a, ()>,
    _one: Option<SemaphorePermit<'a>>,
}

impl Conn {
    /// Waits for the connection's turn to read from the store for a catch-up or a `get`. It is held until
    /// what was read is in the outbox: one read at a time for a connection, begun when the client has
    /// taken most of what it was sent, so that no number of them fills the outbox; then, for no longer
    /// than the store takes, one of so many on the node, so that a client that takes nothing keeps nobody.
    pub(super) async fn turn<'a>(&'a self, node: &'a Node) -> Turn<'a> {
        let _own = self.reading.lock().await;
        self.outbox.below(self.outbox.soft()).await;
        Turn {
            _own,
            // It is never closed.
            _one: node.catch_ups.acquire().await.ok(),
        }
    }

    /// From how many bytes on messages are compressed, if that was agreed on; so from `welcome` on.
    pub(super) fn z(&self, node: &Node) -> Option<usize> {
        let compresses = self.compresses.load(Ordering::Relaxed);
        compresses.then_some(node.config.compress_bytes)
    }

    /// The frame, compressed if the client takes that and it pays.
    pub(super) fn compressed(&self, node: &Node, frame: Bytes) -> Bytes {
        let small = self
            .z(node)
            .and_then(|from| frame::compressed(&frame, from, &node.metrics));
        small.unwrap_or(frame)
    }

    /// Waits until little is left of what was queued.
    pub(super) async fn drained(&self, node: &Node) {
        self.outbox.below(node.config.soft_bytes / 8).await;
    }
}

impl Subscriber for Conn {
    fn id(&self) -> u64 {
        self.id
    }

    fn outbox(&self) -> &Outbox {
        &self.outbox
    }

    fn behind(&self, sub: u64, at: Position) {
        self.behind.lock().insert(sub, at);
        self.wake.notify_one();
    }

    fn cut(&self) {
        self.wake.notify_one();
    }
}

/// A subscription of this connection.
struct Sub {
    what: Subscribe,
    /// Tells a finished catch-up from the one that replaced it.
    generation: u64,
    /// Until it is live.
    catching_up: Option<AbortHandle>,
    /// Once live. Dropping it ends that.
    live: Option<Lease>,
    _gauge: Gauged,
}

/// The next job that is done. With the last one goes what held them.
async fn next(jobs: &mut Option<Box<FuturesUnordered<Job>>>) -> Option<<Job as Future>::Output> {
    let done = jobs.as_mut()?.next().await;
    jobs.take_if(|jobs| jobs.is_empty());
    done
}

/// Waits until a guest's place is needed.
async fn evicted(guest: Option<&Guest>) {
    match guest {
        Some(guest) => guest.evicted().await,
        None => std::future::pending().await,
    }
}

/// For each of these that a mutation has, it counts once more as in flight.
const IN_FLIGHT_BYTES: usize = 4 << 10;

/// Messages that are handled, and subscriptions that are ended, before other connections have their turn.
const AT_ONCE: usize = 32;

type Job = BoxFuture<'static, (u64, u64, Result<Lease, Aborted>)>;

struct Shell {
    node: Arc<Node>,
    conn: Arc<Conn>,
    session: Session,
    /// Who it is with and since when, for the log.
    peer: String,
    since: Instant,
    /// By their ids, so that they end in the same order every time; most connections have one.
    subs: Vec<Sub>,
    /// While there are any.
    jobs: Option<Box<FuturesUnordered<Job>>>,
    generation: u64,
    /// Bytes of the message that is being handled.
    read: usize,
    /// How many have been.
    handled: usize,
    in_flight: Arc<Semaphore>,
    /// Until it has been welcomed.
    guest: Option<Arc<Guest>>,
    /// Once it has been asked to go elsewhere: when to close at the latest.
    leaving: Option<Instant>,
    /// Set when the session is over: what to say last.
    closing: Option<(Code, String)>,
    held: (Option<Arc<Place>>, Gauged, Listed),
}

/// Keeps a connection in the node's list as long as it lives.
struct Listed {
    node: Arc<Node>,
    id: u64,
    counted: bool,
}

impl Listed {
    fn new(node: &Arc<Node>, conn: &Arc<Conn>) -> Self {
        node.connections.insert(conn.id, Arc::downgrade(conn));
        Self {
            node: node.clone(),
            id: conn.id,
            counted: false,
        }
    }

    /// Counts how the connection ended. One that is cut off before has met a defect.
    fn ended(&mut self, reason: &'static str) {
        self.counted = true;
        self.node.metrics.closes.with_label_values(&[reason]).inc();
    }
}

impl Drop for Listed {
    fn drop(&mut self) {
        self.node.connections.remove(&self.id);
        if !self.counted {
            self.ended(Code::Internal.name());
        }
    }
}

/// Waits until everything in flight has been answered, or until `latest`.
async fn all_answered(in_flight: &Semaphore, config: &NodeConfig, latest: Option<Instant>) {
    if let Some(latest) = latest {
        let all = in_flight.acquire_many(u32::try_from(config.in_flight).unwrap_or(u32::MAX));
        // Late or not, the connection ends. Apart: a connection that stays has no use for it.
        let _ = Box::pin(tokio::time::timeout_at(latest, all)).await;
    }
}

/// Serves a connection until it is over. One info line says what it was. What it was accepted with is used up before the
/// future begins, which lives as long as the connection: it holds no place for that.
pub fn serve<T: Transport>(node: Arc<Node>, accepted: Accepted<T>) -> impl Future<Output = ()> + Send + use<T> {
    let Accepted {
        socket,
        leftover,
        form,
        token,
        since,
        peer,
        admitted,
    } = accepted;
    let Admitted { place, guest } = admitted;
    let gauge = Gauged::new(&node.metrics.connections);
    let id = node.last_id.fetch_add(1, Ordering::Relaxed) + 1;
    let outbox: Arc<Outbox> = Arc::new(Outbox::new(socket, node.config.bounds(), node.budget.clone()));
    let name = format!("{:016x}", node.env.random());
    let opened = node.mono(since);
    let session = Session::new(node.session.clone(), node.authoriser.clone(), name, form, token, opened);
    let conn = Arc::new(Conn {
        id,
        form,
        compresses: AtomicBool::new(false),
        outbox,
        wake: Notify::new(),
        behind: Mutex::default(),
        due: AtomicU64::new(session.deadline(node.now()).unwrap_or(u64::MAX)),
        leave_at: AtomicU64::new(node.leave_at()),
        reading: tokio::sync::Mutex::default(),
    });
    let listed = Listed::new(&node, &conn);
    let ws = Ws::new(&leftover, node.config.limits.message_bytes);
    // Of the buffer in which the request was read.
    drop(leftover);
    let shell = Shell {
        in_flight: Arc::new(Semaphore::new(node.config.in_flight)),
        node,
        conn,
        session,
        peer,
        since,
        subs: Vec::new(),
        jobs: None,
        generation: 0,
        read: 0,
        handled: 0,
        guest,
        leaving: None,
        closing: None,
        held: (place, gauge, listed),
    };
    let mut all = (shell, ws);
    // Borrowed where it is: a local of its own would take the room twice.
    async move {
        let (shell, ws) = (&mut all.0, &mut all.1);
        let reason = shell.converse(ws).await;
        shell.held.2.ended(reason);
        // Nothing that was under way holds up others while this one waits, and says goodbye.
        shell.jobs = None;
        // Many may be gone at once, as when a network fails: what that takes is spread.
        if shell.closing.is_none()
            && let Some(place) = &shell.held.0
        {
            Box::pin(place.leave()).await;
        }
        shell.leave().await;
        Box::pin(shell.farewell(ws)).await;
        let (session, peer, form) = (shell.session.name(), &shell.peer, shell.conn.form.subprotocol());
        let user = shell.session.user().unwrap_or("-");
        let ms = u64::try_from(shell.since.elapsed().as_millis()).unwrap_or(u64::MAX);
        tracing::info!(%session, %peer, %user, form, ms, reason, "connection closed");
    }
}

impl Shell {
    /// Until somebody ends it.
    async fn converse(&mut self, ws: &mut Ws) -> &'static str {
        let (node, conn) = (self.node.clone(), self.conn.clone());
        let in_flight = self.in_flight.clone();
        // These wait on from one turn to the next.
        let mut woken = pin!(conn.wake.notified());
        let mut writer = pin!(conn.outbox.run_writer());
        // It may have come too late to be among those that are sent away.
        if node.draining.is_cancelled() {
            conn.leave_at.store(0, Ordering::Relaxed);
            conn.wake.notify_one();
        }
        loop {
            let leaving = self.leaving;
            let may_read = leaving.is_none() && in_flight.available_permits() > 0;
            tokio::select! {
                // What ends comes before what begins: a flood of messages cannot pile up unfinished work.
                biased;
                // What has been taken in is answered before the connection closes.
                _ = all_answered(&in_flight, &node.config, leaving), if leaving.is_some() => {
                    self.closing = Some((Code::GoingAway, "the node is stopping; reconnect".into()));
                }
                () = evicted(self.guest.as_deref()), if self.guest.is_some() => {
                    let message = "others wait for its place, and no hello has come; reconnect later";
                    self.closing = Some((Code::Overloaded, message.into()));
                }
                () = woken.as_mut() => {
                    woken.set(conn.wake.notified());
                    self.woken();
                }
                end = writer.as_mut() => match end {
                    End::Overflow => {
                        let bound = node.config.hard_bytes;
                        self.closing = Some((Code::SlowReader, format!("send queue is limited to {bound} bytes")));
                    }
                    End::Broken | End::Finished => return "lost",
                },
                done = next(&mut self.jobs), if self.jobs.is_some() => {
                    if let Some((id, generation, lease)) = done {
                        self.caught_up(id, generation, lease);
                    }
                }
                filled = poll_fn(|cx| ws.poll_fill(cx, conn.outbox.transport())), if may_read => {
                    let Ok(filled) = filled else { return "lost" };
                    match ws.take(filled, &conn.outbox, |incoming| self.frame(incoming)) {
                        // There is more than has been looked at: who sends much waits for all others.
                        Ok(()) if ws.has_more() => tokio::task::yield_now().await,
                        // What came in one read takes no time of the runtime's budget by itself.
                        Ok(()) => tokio::task::consume_budget().await,
                        Err(Ended::Closed) => return "client",
                        Err(Ended::Lost) => return "lost",
                        Err(Ended::Broken(error)) => if let Some(reason) = self.broken(&error) {
                            return reason;
                        },
                    }
                },
                // Room to read again.
                _ = in_flight.acquire(), if !may_read && leaving.is_none() => {}
            }
            if let Some((code, _)) = &self.closing {
                return code.name();
            }
            let deadline = self.session.deadline(node.now()).unwrap_or(u64::MAX);
            conn.due
                .store(deadline.min(conn.leave_at.load(Ordering::Relaxed)), Ordering::Relaxed);
        }
    }

    /// Sends the last words and lets the peer read them: closing a socket with unread input would
    /// make the kernel throw them away.
    async fn farewell(&mut self, ws: &mut Ws) {
        let outbox = &self.conn.outbox;
        match self.closing.take() {
            Some((code, message)) => {
                let error = ServerMessage::Error {
                    code,
                    message,
                    re: None,
                };
                let keep = code != Code::SlowReader;
                outbox.finish([frame::message(self.conn.form, &error), frame::close(Some(code))], keep);
            }
            // The answer to the peer's close is in the queue already.
            None => outbox.finish([], true),
        }
        let flush = async {
            if outbox.run_writer().await == End::Finished {
                outbox.transport().shutdown_write();
                while poll_fn(|cx| ws.poll_skip(cx, outbox.transport())).await {}
            }
        };
        let _ = tokio::time::timeout(self.node.config.flush, flush).await;
    }

    /// Says whether to go on reading: not while what a message began has not had its turn, so that a flood of them piles
    /// nothing up; and not beyond so many of them, so that it delays nobody.
    fn frame(&mut self, incoming: Incoming<'_>) -> Flow {
        let jobs = self.jobs();
        self.read = incoming.len();
        self.incoming(incoming);
        self.handled += 1;
        let stop = self.closing.is_some()
            || self.jobs() > jobs
            || self.in_flight.available_permits() == 0
            || self.handled.is_multiple_of(AT_ONCE);
        if stop { Flow::Break(()) } else { Flow::Continue(()) }
    }

    /// Ends all subscriptions, some at a time.
    async fn leave(&mut self) {
        while self.subs.len() > AT_ONCE {
            self.subs.truncate(self.subs.len() - AT_ONCE);
            tokio::task::yield_now().await;
        }
        self.subs.clear();
    }

    fn incoming(&mut self, incoming: Incoming<'_>) {
        let form = self.conn.form;
        let input = match incoming {
            Incoming::Text(bytes) if form.is_text() => Input::Message(self.decode(bytes)),
            Incoming::Binary(bytes) if !form.is_text() => Input::Message(self.decode(bytes)),
            Incoming::Text(_) | Incoming::Binary(_) => {
                let why = format!(
                    "{} takes {} frames",
                    form.subprotocol(),
                    if form.is_text() { "text" } else { "binary" }
                );
                self.closing = Some((Code::Malformed, why));
                return;
            }
            Incoming::Control => Input::Heard,
        };
        self.input(input);
    }

    /// A message, inflated if it is compressed and that was agreed on.
    fn decode(&self, message: &[u8]) -> Result<ClientMessage, DecodeError> {
        let limits = &self.node.config.limits;
        let message = match self.session.compresses() {
            true => deflate::expand(message, limits.message_bytes)?,
            false => Cow::Borrowed(message),
        };
        self.conn.form.decode_client(&message, limits)
    }

    /// What a read error means; `Some` ends the connection without a word.
    fn broken(&mut self, error: &WsError) -> Option<&'static str> {
        match error {
            WsError::Capacity(capacity) => {
                let limit = self.node.config.limits.message_bytes;
                self.closing = Some((
                    Code::Oversize,
                    format!("a message is limited to {limit} bytes: {capacity}"),
                ));
            }
            WsError::Protocol(ProtocolError::ResetWithoutClosingHandshake)
            | WsError::Io(_)
            | WsError::ConnectionClosed
            | WsError::AlreadyClosed => return Some("lost"),
            WsError::Protocol(error) => {
                self.closing = Some((Code::Malformed, format!("not a WebSocket frame: {error}")))
            }
            WsError::Utf8(_) => self.closing = Some((Code::Malformed, "a text frame that is not UTF-8".into())),
            _ => self.closing = Some((Code::Malformed, "a frame that cannot be read".into())),
        }
        self.closing.as_ref().map(|(code, _)| code.name())
    }

    fn woken(&mut self) {
        let mut behind = std::mem::take(&mut *self.conn.behind.lock());
        for (stream, at) in self.conn.outbox.cuts() {
            match self.subs.iter().find(|sub| sub.generation == stream) {
                // Should the hub have said where it stands, that was before what it stood on was dropped.
                Some(sub) => {
                    behind.insert(sub.what.id, at);
                    self.node.metrics.behind_slow.inc();
                }
                None => self.conn.outbox.close(stream),
            }
        }
        for (id, at) in behind {
            if let Some(mut what) = self.end(id) {
                what.from = Some(ResumeFrom {
                    position: at,
                    view: what.view.id,
                    cursor: None,
                });
                self.subscribe(what, true);
            }
        }
        let stall = self.node.config.stall;
        if self.conn.outbox.stalled() >= stall {
            let message = format!("nothing of what waits was taken for {} s", stall.as_secs());
            self.closing = Some((Code::SlowReader, message));
        }
        if self.leaving.is_none() && self.conn.leave_at.load(Ordering::Relaxed) <= self.node.now().mono {
            self.conn.leave_at.store(u64::MAX, Ordering::Relaxed);
            self.leaving = Some(Instant::now() + self.node.config.flush);
            self.input(Input::Drain {
                retry_ms: 0,
                jitter_ms: 1_000,
            });
        }
        self.input(Input::Time);
    }

    fn input(&mut self, input: Input) {
        let effects = self.session.handle(self.node.now(), input);
        self.conn.compresses.store(self.session.compresses(), Ordering::Relaxed);
        if self.session.user().is_some() {
            self.guest = None;
        }
        for effect in effects {
            match effect {
                Effect::Send(message) => {
                    let outbox = &self.conn.outbox;
                    self.node.metrics.told(&message);
                    frame::with_message(self.conn.form, &message, |frame| outbox.push_bytes(frame));
                }
                Effect::Subscribe(what) => {
                    let most = self.node.config.catching_up;
                    let now = usize::try_from(self.node.metrics.catching_up.get()).unwrap_or(0);
                    if now < most {
                        self.subscribe(what, false);
                    } else {
                        self.refuse(what.id);
                    }
                }
                Effect::Unsubscribe { id, .. } => {
                    self.end(id);
                }
                Effect::Write(request) => self.write(request),
                Effect::Get { id, space, docs } => self.get(id, space, docs),
                Effect::Close(code, message) => self.closing = Some((code, message)),
            }
        }
    }

    /// Too many are catching up: one that comes now would wait long, and take memory meanwhile. Clients come back after
    /// some seconds.
    fn refuse(&mut self, id: u64) {
        self.session.forget(id);
        self.node.metrics.refused.with_label_values(&["catching_up"]).inc();
        let denied = ServerMessage::Denied {
            id,
            code: Code::Unavailable,
            purge: false,
        };
        self.conn.outbox.push([frame::message(self.conn.form, &denied)]);
    }

    fn get(&mut self, id: u64, space: SpaceId, docs: Vec<DocPath>) {
        let (node, conn) = (self.node.clone(), self.conn.clone());
        // Counted as a mutation in flight is: a client cannot ask for more than is answered.
        let permit = self.in_flight.clone().try_acquire_owned();
        let job = async move {
            let turn = conn.turn(&node).await;
            let refuse = |code, message| ServerMessage::Error {
                code,
                message,
                re: Some(id),
            };
            let answer = match node.engine.get(&space, &docs).await {
                Ok(Ok((position, docs))) => ServerMessage::Docs { id, position, docs },
                Ok(Err(invalid)) => refuse(invalid.code, invalid.message),
                Err(error) => {
                    tracing::warn!(%space, %error, "a get failed");
                    refuse(Code::Unavailable, "the store cannot answer now; try again".into())
                }
            };
            node.metrics.told(&answer);
            let frame = conn.compressed(&node, frame::message(conn.form, &answer));
            conn.outbox.push([frame]);
            drop((turn, permit));
            // No subscription has generation 0: it ends without one.
            (0, 0, Err(Aborted))
        };
        self.jobs.get_or_insert_default().push(job.boxed());
    }

    /// Ends a subscription, and returns what it was.
    fn end(&mut self, id: u64) -> Option<Subscribe> {
        let Sub {
            what,
            generation,
            catching_up,
            live,
            ..
        } = self.subs.remove(self.sub(id).ok()?);
        if let Some(catching_up) = catching_up {
            catching_up.abort();
        }
        drop(live);
        self.conn.outbox.close(generation);
        // The hub may have said that it is behind. Of the next one of this id, with a view of its own, that is not true.
        self.conn.behind.lock().remove(&id);
        Some(what)
    }

    fn jobs(&self) -> usize {
        self.jobs.as_ref().map_or(0, |jobs| jobs.len())
    }

    /// Where a subscription is, or would be.
    fn sub(&self, id: u64) -> Result<usize, usize> {
        self.subs.binary_search_by_key(&id, |sub| sub.what.id)
    }

    /// Begins to catch up; `behind`: once what waits on the connection has gone out.
    fn subscribe(&mut self, what: Subscribe, behind: bool) {
        self.generation += 1;
        let (id, generation) = (what.id, self.generation);
        let (handle, registration) = AbortHandle::new_pair();
        let catch_up = CatchUp {
            node: self.node.clone(),
            conn: self.conn.clone(),
            what: what.clone(),
            stream: generation,
            behind,
            _gauge: Gauged::new(&self.node.metrics.catching_up),
        };
        let job = Abortable::new(catch_up.run(), registration);
        let job = async move { (id, generation, job.await) };
        self.jobs.get_or_insert_default().push(job.boxed());
        let _gauge = Gauged::new(&self.node.metrics.subscriptions);
        let sub = Sub {
            what,
            generation,
            catching_up: Some(handle),
            live: None,
            _gauge,
        };
        let few = usize::from(self.subs.len() < 4);
        self.subs.reserve_exact(few);
        match self.sub(id) {
            Ok(index) => self.subs[index] = sub,
            Err(index) => self.subs.insert(index, sub),
        }
    }

    fn caught_up(&mut self, id: u64, generation: u64, lease: Result<Lease, Aborted>) {
        let Ok(lease) = lease else { return };
        match self.sub(id).map(|index| &mut self.subs[index]) {
            Ok(sub) if sub.generation == generation => (sub.live, sub.catching_up) = (Some(lease), None),
            // An aborted catch-up never gets here; should one, it does not stay live unseen.
            _ => drop(lease),
        }
    }

    fn write(&mut self, request: WriteRequest) {
        // Reading stops when there is none left, so there is one; a large one takes what there is.
        let some = (1 + self.read / IN_FLIGHT_BYTES).min(self.in_flight.available_permits());
        let some = u32::try_from(some).unwrap_or(u32::MAX);
        let permit = self.in_flight.clone().try_acquire_many_owned(some).ok();
        let (node, conn) = (self.node.clone(), self.conn.clone());
        let space = request.head.space.clone();
        let done = Box::new(move |reply: WriteReply| {
            let (at, message) = match reply {
                WriteReply::Ack(ack) => {
                    node.metrics.acks.inc();
                    (Some(ack.position), ServerMessage::Ack(ack))
                }
                WriteReply::Reject(reject) => {
                    node.metrics.writes.with_label_values(&[reject.code.name()]).inc();
                    (None, ServerMessage::Reject(reject))
                }
            };
            let frame = frame::message(conn.form, &message);
            node.hub.answer(&space, &*conn, Answer { at, frame, permit });
        });
        self.node.engine.clone().submit(request, done);
    }
}
