//! The shell of a session: one task per connection, reading frames, driving the machine, writing
//! only where the socket would block.

use super::catchup::CatchUp;
use super::machine::{Effect, Input, Session, Subscribe};
use super::node::Node;
use crate::admission::{Admitted, Place};
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
use std::task::{Context, Poll, ready};
use tidegate_protocol::form::Form;
use tidegate_protocol::msgpack::DecodeError;
use tidegate_protocol::{ClientMessage, Code, DocPath, Position, ResumeFrom, ServerMessage, SpaceId, deflate};
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::task::coop;
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
    /// It was woken, to look at what may have changed.
    woken: AtomicBool,
    /// Subscriptions that have to catch up again; at most one entry each. `None` while there are none.
    #[allow(clippy::box_collection, reason = "most connections never have one")]
    behind: Mutex<Option<Box<BTreeMap<u64, Position>>>>,
    /// When it has something to do at the latest, ms of the node's clock: a deadline, or to leave.
    pub(super) due: AtomicU64,
    /// When it is to be asked to go elsewhere.
    pub(super) leave_at: AtomicU64,
}

/// Held by whose turn it is to read from the store for a connection; see `Conn::turn`.
pub(super) type Reading = Arc<tokio::sync::Mutex<()>>;

/// A connection's turn to read from the store.
pub(super) struct Turn<'a> {
    _own: Own<'a>,
    _one: Option<SemaphorePermit<'a>>,
}

/// Nothing else reads for the connection.
pub(super) type Own<'a> = tokio::sync::MutexGuard<'a, ()>;

impl<'a> Turn<'a> {
    /// Waits for one of so many on the node.
    pub(super) async fn begin(own: Own<'a>, node: &'a Node) -> Self {
        Self {
            _own: own,
            // It is never closed.
            _one: node.catch_ups.acquire().await.ok(),
        }
    }
}

impl Conn {
    /// Waits for the connection's turn to read from the store for a catch-up or a `get`. It is held until
    /// what was read is in the outbox: one read at a time for a connection, begun when the client has
    /// taken most of what it was sent, so that no number of them fills the outbox; then, for no longer
    /// than the store takes, one of so many on the node, so that a client that takes nothing keeps nobody.
    pub(super) async fn turn<'a>(&'a self, node: &'a Node, reading: &'a Reading) -> Turn<'a> {
        Turn::begin(self.own_turn(reading).await, node).await
    }

    /// The first half of `turn`: what follows may wait for long, and holds up nobody but this connection.
    pub(super) async fn own_turn<'a>(&'a self, reading: &'a Reading) -> Own<'a> {
        let own = reading.lock().await;
        self.outbox.below(self.outbox.soft()).await;
        own
    }

    /// Has it look at its deadlines, at what is behind and at what was cut.
    pub(super) fn wake(&self) {
        self.woken.store(true, Ordering::Release);
        self.outbox.wake();
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

    fn outbox(&self) -> &Arc<Outbox> {
        &self.outbox
    }

    fn behind(&self, sub: u64, at: Position) {
        self.behind.lock().get_or_insert_default().insert(sub, at);
        self.wake();
    }

    fn cut(&self) {
        self.wake();
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

/// For each of these that a mutation has, it counts once more as in flight.
const IN_FLIGHT_BYTES: u32 = 4 << 10;

/// Messages that are handled, and subscriptions that are ended, before other connections have their turn.
const AT_ONCE: usize = 32;

type Job = BoxFuture<'static, (u64, u64, Result<Lease, Aborted>)>;

/// What a connection has under way beside its messages.
#[derive(Default)]
struct Jobs {
    all: FuturesUnordered<Job>,
    reading: Reading,
}

/// What is there for as long as the connection lives: that most have none of stands in boxes, while there is any.
struct Shell {
    node: Arc<Node>,
    conn: Arc<Conn>,
    session: Session,
    /// Who it is with, for the log.
    peer: Box<str>,
    /// By their ids, so that they end in the same order every time; most connections have one.
    subs: Vec<Sub>,
    /// While there are any.
    jobs: Option<Box<Jobs>>,
    generation: u64,
    /// Bytes of the message that is being handled.
    read: u32,
    /// How many have been.
    handled: usize,
    /// A permit for each that may be in flight; from the first on.
    in_flight: Option<Arc<Semaphore>>,
    /// Until it has been welcomed: its place is needed.
    evicted: Option<BoxFuture<'static, ()>>,
    /// It has been asked to go elsewhere.
    leaving: bool,
    /// While it does not read: everything in flight has been answered, or it is time to close; else there is room again.
    answered: Option<BoxFuture<'static, ()>>,
    /// Set when the session is over: what to say last.
    closing: Option<Box<(Code, String)>>,
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
    let name = node.env.random();
    let opened = node.mono(since);
    let token = token.map(String::into_boxed_str);
    let session = Session::new(node.session.clone(), node.authoriser.clone(), name, form, token, opened);
    let conn = Arc::new(Conn {
        id,
        form,
        compresses: AtomicBool::new(false),
        outbox,
        woken: AtomicBool::new(false),
        behind: Mutex::default(),
        due: AtomicU64::new(session.deadline(node.now()).unwrap_or(u64::MAX)),
        leave_at: AtomicU64::new(node.leave_at()),
    });
    let listed = Listed::new(&node, &conn);
    // It may have come too late to be among those that are sent away.
    if node.draining.is_cancelled() {
        conn.leave_at.store(0, Ordering::Relaxed);
        conn.wake();
    }
    let ws = Ws::new(&leftover, node.config.limits.message_bytes);
    // Of the buffer in which the request was read.
    drop(leftover);
    let shell = Shell {
        in_flight: None,
        node,
        conn,
        session,
        peer: peer.into_boxed_str(),
        subs: Vec::new(),
        jobs: None,
        generation: 0,
        read: 0,
        handled: 0,
        evicted: guest.map(|guest| async move { guest.evicted().await }.boxed()),
        leaving: false,
        answered: None,
        closing: None,
        held: (place, gauge, listed),
    };
    let mut all = (shell, ws);
    // Borrowed where it is: a local of its own would take the room twice.
    async move {
        let (shell, ws) = (&mut all.0, &mut all.1);
        let reason = poll_fn(|cx| shell.poll_converse(cx, ws)).await;
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
        let ms = shell.node.now().mono.saturating_sub(shell.session.opened());
        tracing::info!(%session, %peer, %user, form, ms, reason, "connection closed");
    }
}

impl Shell {
    /// Until somebody ends it; says why.
    fn poll_converse(&mut self, cx: &mut Context<'_>, ws: &mut Ws) -> Poll<&'static str> {
        // What wakes it from here on is seen below, or by another turn.
        self.conn.outbox.register(cx);
        loop {
            let over = ready!(self.poll_next(cx, ws));
            let closing = || self.closing.as_ref().map(|closing| closing.0.name());
            if let Some(reason) = over.or_else(closing) {
                return Poll::Ready(reason);
            }
            let deadline = self.session.deadline(self.node.now()).unwrap_or(u64::MAX);
            let due = deadline.min(self.conn.leave_at.load(Ordering::Relaxed));
            self.conn.due.store(due, Ordering::Relaxed);
        }
    }

    /// Does one thing, if there is one to do. What ends comes before what begins: a flood of messages cannot pile up
    /// unfinished work. `Some`: the connection is gone, and why.
    fn poll_next(&mut self, cx: &mut Context<'_>, ws: &mut Ws) -> Poll<Option<&'static str>> {
        // What has been taken in is answered before the connection closes.
        if self.leaving && self.poll_answered(cx).is_ready() {
            self.close(Code::GoingAway, "the node is stopping; reconnect".into());
            return Poll::Ready(None);
        }
        if let Some(evicted) = &mut self.evicted
            && evicted.poll_unpin(cx).is_ready()
        {
            let message = "others wait for its place, and no hello has come; reconnect later";
            self.close(Code::Overloaded, message.into());
            return Poll::Ready(None);
        }
        if self.conn.woken.swap(false, Ordering::AcqRel) {
            self.woken();
            return Poll::Ready(None);
        }
        match self.conn.outbox.poll_writer(cx) {
            Poll::Ready(End::Overflow) => {
                let bound = self.node.config.hard_bytes;
                self.close(Code::SlowReader, format!("send queue is limited to {bound} bytes"));
                return Poll::Ready(None);
            }
            Poll::Ready(End::Broken | End::Finished) => return Poll::Ready(Some("lost")),
            Poll::Pending => {}
        }
        if let Some(jobs) = &mut self.jobs
            && let Poll::Ready(done) = jobs.all.poll_next_unpin(cx)
        {
            // With the last one goes what held them.
            self.jobs.take_if(|jobs| jobs.all.is_empty());
            if let Some((id, generation, lease)) = done {
                self.caught_up(id, generation, lease);
            }
            return Poll::Ready(None);
        }
        if self.leaving {
            return Poll::Pending;
        }
        if !self.has_room() {
            ready!(self.poll_answered(cx));
            return Poll::Ready(None);
        }
        // What came in one read takes no time of the runtime's budget by itself.
        let budget = ready!(coop::poll_proceed(cx));
        let Ok(filled) = ready!(ws.poll_fill(cx, self.conn.outbox.transport())) else {
            return Poll::Ready(Some("lost"));
        };
        budget.made_progress();
        let conn = self.conn.clone();
        Poll::Ready(match ws.take(filled, &conn.outbox, |incoming| self.frame(incoming)) {
            Ok(()) if ws.has_more() && self.closing.is_none() => {
                // There is more than has been looked at: who sends much waits for all others. This has it woken after
                // everybody's turn; a wake of its own would come before.
                return pin!(tokio::task::yield_now()).poll(cx).map(|()| None);
            }
            Ok(()) => None,
            Err(Ended::Closed) => Some("client"),
            Err(Ended::Lost) => Some("lost"),
            Err(Ended::Broken(error)) => self.broken(&error),
        })
    }

    /// Waits for what `answered` says; without it, for room.
    fn poll_answered(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let answered = match &mut self.answered {
            Some(answered) => answered,
            None => {
                let room = self.in_flight().acquire_owned().map(drop);
                self.answered.insert(room.boxed())
            }
        };
        ready!(answered.poll_unpin(cx));
        self.answered = None;
        Poll::Ready(())
    }

    /// The session is over; this is said last.
    fn close(&mut self, code: Code, message: String) {
        self.closing = Some(Box::new((code, message)));
    }

    /// Permits for all that may be in flight.
    fn in_flight(&mut self) -> Arc<Semaphore> {
        let most = self.node.config.in_flight;
        self.in_flight
            .get_or_insert_with(|| Arc::new(Semaphore::new(most)))
            .clone()
    }

    /// How many more may be in flight.
    fn room(&self) -> usize {
        self.in_flight
            .as_ref()
            .map_or(self.node.config.in_flight, |in_flight| in_flight.available_permits())
    }

    fn has_room(&self) -> bool {
        self.room() > 0
    }

    /// Sends the last words and lets the peer read them: closing a socket with unread input would
    /// make the kernel throw them away.
    async fn farewell(&mut self, ws: &mut Ws) {
        let outbox = &self.conn.outbox;
        match self.closing.take().map(|closing| *closing) {
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
        self.read = u32::try_from(incoming.len()).unwrap_or(u32::MAX);
        self.incoming(incoming);
        self.handled = self.handled.wrapping_add(1);
        let stop =
            self.closing.is_some() || self.jobs() > jobs || !self.has_room() || self.handled.is_multiple_of(AT_ONCE);
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
                return self.close(Code::Malformed, why);
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
                self.close(
                    Code::Oversize,
                    format!("a message is limited to {limit} bytes: {capacity}"),
                );
            }
            WsError::Protocol(ProtocolError::ResetWithoutClosingHandshake)
            | WsError::Io(_)
            | WsError::ConnectionClosed
            | WsError::AlreadyClosed => return Some("lost"),
            WsError::Protocol(error) => self.close(Code::Malformed, format!("not a WebSocket frame: {error}")),
            WsError::Utf8(_) => self.close(Code::Malformed, "a text frame that is not UTF-8".into()),
            _ => self.close(Code::Malformed, "a frame that cannot be read".into()),
        }
        None
    }

    fn woken(&mut self) {
        let mut behind = self
            .conn
            .behind
            .lock()
            .take()
            .map_or_else(BTreeMap::new, |behind| *behind);
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
                what.from = Some(Box::new(ResumeFrom {
                    position: at,
                    view: what.view.id,
                    cursor: None,
                }));
                self.subscribe(what, true);
            }
        }
        let stall = self.node.config.stall;
        if self.conn.outbox.stalled() >= stall {
            let message = format!("nothing of what waits was taken for {} s", stall.as_secs());
            self.close(Code::SlowReader, message);
        }
        if !self.leaving && self.conn.leave_at.load(Ordering::Relaxed) <= self.node.now().mono {
            self.conn.leave_at.store(u64::MAX, Ordering::Relaxed);
            self.leaving = true;
            let all = u32::try_from(self.node.config.in_flight).unwrap_or(u32::MAX);
            let all = self.in_flight().acquire_many_owned(all);
            // Late or not, the connection ends.
            let answered = tokio::time::timeout(self.node.config.flush, all).map(drop);
            self.answered = Some(answered.boxed());
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
            self.evicted = None;
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
                Effect::Close(code, message) => self.close(code, message),
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
        let permit = self.in_flight().try_acquire_owned();
        let jobs = self.jobs.get_or_insert_default();
        let reading = jobs.reading.clone();
        let job = async move {
            let turn = conn.turn(&node, &reading).await;
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
        jobs.all.push(job.boxed());
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
        if let Some(behind) = &mut *self.conn.behind.lock() {
            behind.remove(&id);
        }
        Some(what)
    }

    fn jobs(&self) -> usize {
        self.jobs.as_ref().map_or(0, |jobs| jobs.all.len())
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
        let jobs = self.jobs.get_or_insert_default();
        let catch_up = CatchUp {
            node: self.node.clone(),
            conn: self.conn.clone(),
            reading: jobs.reading.clone(),
            what: what.clone(),
            stream: generation,
            behind,
            _gauge: Gauged::new(&self.node.metrics.catching_up),
        };
        let job = Abortable::new(catch_up.run(), registration);
        let job = async move { (id, generation, job.await) };
        jobs.all.push(job.boxed());
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
            Ok(sub) if sub.generation == generation => {
                (sub.live, sub.catching_up) = (Some(lease), None);
                // That is where it began.
                sub.what.from = None;
            }
            // An aborted catch-up never gets here; should one, it does not stay live unseen.
            _ => drop(lease),
        }
    }

    fn write(&mut self, request: WriteRequest) {
        // Reading stops when there is none left, so there is one; a large one takes what there is.
        let room = u32::try_from(self.room()).unwrap_or(u32::MAX);
        let some = (1 + self.read / IN_FLIGHT_BYTES).min(room);
        let permit = self.in_flight().try_acquire_many_owned(some).ok();
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
