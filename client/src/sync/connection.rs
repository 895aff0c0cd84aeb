//! The connection: handshake, subscriptions, liveness, backoff, and what each error asks for.

use crate::storage::{Stored, Transaction};
use crate::sync::event::{ConnectionState, Event, Refusal};
use crate::sync::queue::MutationId;
use crate::sync::replica::Violation;
use crate::sync::space::{Request, Space};
use crate::sync::{Entropy, Now, draw_up_to};
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use tidegate_protocol::{
    Action, ClientMessage, Code, Collection, DocPath, Get, Hello, Invalid, Limits, ServerMessage, SpaceId, Welcome,
    Write, msgpack,
};

/// From the open socket to `welcome`, ms. The gateway's own deadline is the same.
const HANDSHAKE_MS: u64 = 10_000;
/// From a ping to anything that is heard, ms.
const ANSWER_MS: u64 = 5_000;
/// A session that lasted this long after `welcome` was healthy: the next attempt comes at once.
const HEALTHY_MS: u64 = 5_000;
/// First, and longest, wait between attempts, ms; ± 50 %.
const BACKOFF_MS: (u64, u64) = (1_000, 60_000);
/// Reads that may wait for an answer. Over it, one is refused `too_many`.
const GETS: usize = 256;
/// What a temporarily denied subscription waits, ms, ± 50 %.
const RESUBSCRIBE_MS: u64 = 5_000;

/// What a machine is made with.
#[derive(Clone, Debug, Default)]
pub struct Config {
    /// The token for `hello`.
    pub token: Option<String>,
    /// Name and version of the library, for the gateway's log.
    pub sdk: Option<String>,
    /// Whether changes are to be gathered for a storage.
    pub stores: bool,
}

/// What the driver has to do about sockets.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Command {
    /// Open one, and report with `connected` or `connect_failed`.
    Connect,
    /// Close the one that is open, with this code, and report nothing more of it.
    Close(u16),
}

/// Why no connection came to be.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ConnectFailure {
    /// What the gateway's `Tidegate-Error` header said; without one, the answer is the network's.
    pub code: Option<Code>,
    /// For a developer.
    pub message: String,
}

#[derive(Debug)]
enum Phase {
    /// Waits for the time of the next attempt (monotonic ms).
    Waiting {
        at: u64,
    },
    Connecting,
    Handshake {
        deadline: u64,
        hello_sent: bool,
    },
    Online(Box<Session>),
    Stopped {
        code: Code,
        message: String,
    },
    Closed,
}

#[derive(Debug)]
struct Session {
    welcome: Welcome,
    since: u64,
    sent: u64,
    heard: u64,
    ping_due: bool,
    answer_by: Option<u64>,
    /// After a `goaway`: when to go (monotonic ms).
    leave_at: Option<u64>,
    auth_due: bool,
    unsubs: VecDeque<u64>,
}

/// A client: its connection and its spaces.
///
/// The driver's loop, after each input: carry out `poll_command`, take `take_transaction` to the storage,
/// hand out `poll_event`; while the socket takes more, `poll_transmit` – and commit `take_transaction`
/// again before the message goes out, for it may carry a mid that was assigned just now. `handle_timeout`
/// is due at `deadline`.
pub struct Machine {
    config: Config,
    entropy: Box<dyn Entropy>,
    phase: Phase,
    /// Attempts since the last healthy session.
    attempts: u32,
    /// The last `error` that ends a connection.
    last_error: Option<(Code, String)>,
    user: Option<String>,
    user_changed: bool,
    limits: Limits,
    spaces: BTreeMap<SpaceId, Space>,
    stored: Stored,
    /// Spaces that may have something to send, in turn.
    ready: VecDeque<SpaceId>,
    touched: BTreeSet<SpaceId>,
    numbers: HashMap<u32, SpaceId>,
    subs: HashMap<u64, SpaceId>,
    gets: BTreeMap<u64, Get>,
    gets_due: BTreeSet<u64>,
    next_id: u64,
    commands: VecDeque<Command>,
    events: VecDeque<Event>,
}

impl Machine {
    /// A machine that connects at once.
    pub fn new(config: Config, stored: Stored, entropy: Box<dyn Entropy>, now: Now) -> Self {
        let mut machine = Self {
            config,
            entropy,
            phase: Phase::Waiting { at: now.mono_ms },
            attempts: 0,
            last_error: None,
            user: stored.user.clone(),
            user_changed: false,
            limits: Limits::default(),
            spaces: BTreeMap::new(),
            stored,
            ready: VecDeque::new(),
            touched: BTreeSet::new(),
            numbers: HashMap::new(),
            subs: HashMap::new(),
            gets: BTreeMap::new(),
            gets_due: BTreeSet::new(),
            next_id: 1,
            commands: VecDeque::new(),
            events: VecDeque::new(),
        };
        // A queue kept from an earlier run is sent even if the app does not open its space.
        let kept: Vec<_> = machine
            .stored
            .spaces
            .iter()
            .filter(|(_, kept)| !kept.queue.is_empty())
            .map(|(s, _)| s.clone())
            .collect();
        for space in kept {
            machine.open(&space);
        }
        machine
    }

    // The app's side.

    /// A space, if it was opened.
    pub fn space(&self, space: &SpaceId) -> Option<&Space> {
        self.spaces.get(space)
    }

    /// Opens a space: what was kept of it is shown, what is queued is sent.
    pub fn open(&mut self, space: &SpaceId) -> &mut Space {
        if !self.spaces.contains_key(space) {
            let stored = self.stored.spaces.remove(space);
            self.spaces
                .insert(space.clone(), Space::new(space.clone(), stored, &mut *self.entropy));
            self.wake(space);
        }
        self.touched.insert(space.clone());
        self.spaces.get_mut(space).expect("inserted just now")
    }

    /// Subscribes to a space, or changes the collections that the subscription covers (`None`: all).
    pub fn subscribe(&mut self, space: &SpaceId, filter: Option<Vec<Collection>>) {
        let filter = filter.map(|collections| collections.into_iter().collect::<BTreeSet<_>>().into_iter().collect());
        self.open(space).subscribe(filter);
        self.wake(space);
        self.collect(space);
    }

    /// Ends a subscription. What is held stays, as a cache.
    pub fn unsubscribe(&mut self, space: &SpaceId) {
        let Some(id) = self.spaces.get_mut(space).map(Space::unsubscribe) else {
            return;
        };
        self.forget_subscription(space);
        if let (Some(id), Phase::Online(session)) = (id, &mut self.phase) {
            session.unsubs.push_back(id);
        }
        self.collect(space);
    }

    /// Queues a mutation. It is shown in the local view at once.
    pub fn mutate(&mut self, now: Now, space: &SpaceId, request: Request) -> Result<MutationId, Refusal> {
        let limits = self.limits.clone();
        let result = self
            .open(space)
            .mutate(now, request, |write| check(write, &limits), &limits);
        self.wake(space);
        self.collect(space);
        result
    }

    /// Takes back a mutation that is unsent. Returns whether it was.
    pub fn cancel(&mut self, space: &SpaceId, id: MutationId) -> bool {
        let cancelled = self.open(space).cancel(id);
        self.collect(space);
        cancelled
    }

    /// Asks for documents as they are now; answered by [`Event::Got`].
    pub fn get(&mut self, space: &SpaceId, docs: Vec<DocPath>) -> Result<u64, Refusal> {
        if self.gets.len() >= GETS {
            return Err(Refusal::new(
                Code::TooMany,
                format!("reads waiting for an answer are limited to {GETS}"),
            ));
        }
        if let Some(refusal) = self.stopped() {
            return Err(refusal);
        }
        let id = self.next_id();
        self.gets.insert(
            id,
            Get {
                id,
                space: space.clone(),
                docs,
            },
        );
        self.gets_due.insert(id);
        Ok(id)
    }

    /// A new token: renews a live connection, and brings back one that ended for want of it.
    pub fn set_token(&mut self, now: Now, token: Option<String>) {
        self.config.token = token;
        match &mut self.phase {
            Phase::Online(session) => session.auth_due = true,
            Phase::Stopped {
                code: Code::TokenExpired | Code::Unauthenticated,
                ..
            } => self.wait(now, 0, None),
            _ => {}
        }
    }

    /// The network changed, or the app came to the foreground: tries at once, or asks whether the
    /// connection is alive.
    pub fn wake_up(&mut self, now: Now) {
        match &mut self.phase {
            Phase::Waiting { at } => *at = now.mono_ms,
            Phase::Online(session) => session.ask(now),
            _ => {}
        }
        self.handle_timeout(now);
    }

    /// Ends it for good.
    pub fn close(&mut self, now: Now) {
        self.drop_socket(1000);
        self.lose_connection(now);
        self.phase = Phase::Closed;
        self.refuse_gets(Code::GoingAway, "the client was closed");
        self.events.push_back(Event::State(ConnectionState::Closed));
    }

    /// Mutations that wait for their answer, in all spaces.
    pub fn queued(&self) -> usize {
        self.spaces.values().map(|space| space.queue().queued()).sum()
    }

    /// The limits in force: the gateway's, as last heard.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    // The driver's side.

    /// The next thing to do about sockets.
    pub fn poll_command(&mut self) -> Option<Command> {
        self.commands.pop_front()
    }

    /// The next thing that happened.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// What has to be kept before anything more is sent or told.
    pub fn take_transaction(&mut self) -> Transaction {
        let mut transaction = Transaction::default();
        let touched = std::mem::take(&mut self.touched);
        if !self.config.stores {
            for space in touched {
                if let Some(space) = self.spaces.get_mut(&space) {
                    space.discard_changes();
                }
            }
            return transaction;
        }
        if std::mem::take(&mut self.user_changed) {
            transaction.user.clone_from(&self.user);
        }
        for name in touched {
            if let Some(changes) = self.spaces.get_mut(&name).and_then(Space::take_changes) {
                transaction.spaces.insert(name, changes);
            }
        }
        transaction
    }

    /// When `handle_timeout` is due (monotonic ms).
    pub fn deadline(&self) -> Option<u64> {
        match &self.phase {
            Phase::Waiting { at } => Some(*at),
            Phase::Handshake { deadline, .. } => Some(*deadline),
            Phase::Online(session) => {
                let spaces = self.spaces.values().filter_map(Space::deadline);
                spaces
                    .chain([session.next_ask()])
                    .chain(session.answer_by)
                    .chain(session.leave_at)
                    .min()
            }
            Phase::Connecting | Phase::Stopped { .. } | Phase::Closed => None,
        }
    }

    /// Time has passed.
    pub fn handle_timeout(&mut self, now: Now) {
        match &mut self.phase {
            Phase::Waiting { at } if *at <= now.mono_ms => {
                self.phase = Phase::Connecting;
                self.commands.push_back(Command::Connect);
                self.events.push_back(Event::State(ConnectionState::Connecting));
            }
            Phase::Handshake { deadline, .. } if *deadline <= now.mono_ms => {
                self.abandon(now, 1001, "the gateway did not answer `hello` in time");
            }
            Phase::Online(session) => {
                if session.leave_at.is_some_and(|at| at <= now.mono_ms) {
                    self.drop_socket(1001);
                    self.lose_connection(now);
                    self.wait(now, 0, Some("the node is going away".to_owned()));
                    self.handle_timeout(now);
                } else if session.answer_by.is_some_and(|at| at <= now.mono_ms) {
                    self.abandon(now, 1001, "the connection is dead: no answer to a ping");
                } else {
                    if session.next_ask() <= now.mono_ms {
                        session.ask(now);
                    }
                    let due = |space: &&Space| space.deadline().is_some_and(|at| at <= now.mono_ms);
                    let due: Vec<_> = self
                        .spaces
                        .values()
                        .filter(due)
                        .map(|space| space.name().clone())
                        .collect();
                    for space in due {
                        self.wake(&space);
                    }
                }
            }
            _ => {}
        }
    }

    /// The socket is open.
    pub fn connected(&mut self, now: Now) {
        if matches!(self.phase, Phase::Connecting) {
            self.last_error = None;
            self.phase = Phase::Handshake {
                deadline: now.mono_ms + HANDSHAKE_MS,
                hello_sent: false,
            };
        }
    }

    /// No socket came to be.
    pub fn connect_failed(&mut self, now: Now, failure: ConnectFailure) {
        match failure.code.map(|code| (code, code.row().action)) {
            Some((code, Action::Stop | Action::Renew)) => self.stop(code, failure.message),
            _ => self.wait_backoff(now, failure.message),
        }
    }

    /// The socket was closed by the other side, or broke.
    pub fn disconnected(&mut self, now: Now, close: Option<u16>, why: String) {
        let (healthy, leave_at) = match &self.phase {
            Phase::Online(session) => (
                now.mono_ms.saturating_sub(session.since) >= HEALTHY_MS,
                session.leave_at,
            ),
            _ => (false, None),
        };
        self.lose_connection(now);
        let by_close = || {
            let close = close?;
            let row = tidegate_protocol::error::TABLE
                .iter()
                .find(|row| row.close == Some(close));
            match (row, close) {
                (Some(row), _) => Some((row.code, why.clone())),
                (None, 4000..=4099) => Some((Code::Protocol, format!("closed with {close}: {why}"))),
                _ => None,
            }
        };
        if let Some((code, message)) = self.last_error.take().or_else(by_close)
            && matches!(code.row().action, Action::Stop | Action::Renew)
        {
            self.stop(code, message);
        } else if let Some(at) = leave_at {
            self.wait(now, at.saturating_sub(now.mono_ms), Some(why));
        } else if healthy {
            self.attempts = 0;
            self.wait(now, 0, Some(why));
        } else {
            self.wait_backoff(now, why);
        }
    }

    /// A message came.
    pub fn received(&mut self, now: Now, message: ServerMessage) {
        match &mut self.phase {
            Phase::Online(session) => {
                session.heard = now.mono_ms;
                session.answer_by = None;
                if let Err(violation) = self.handle(now, message) {
                    let message = violation.to_string();
                    self.events.push_back(Event::Problem {
                        code: Code::Protocol,
                        message: message.clone(),
                    });
                    self.abandon(now, 1002, &message);
                }
            }
            Phase::Handshake { .. } => match message {
                ServerMessage::Welcome(welcome) => self.welcomed(now, welcome),
                ServerMessage::Error { code, message, .. } => self.error(code, message, None),
                _ => {}
            },
            _ => {}
        }
    }

    /// Something came that is no message. One of a type that is not known says nothing to this client;
    /// after anything else nothing can be trusted.
    pub fn received_malformed(&mut self, now: Now, invalid: &Invalid) {
        self.events.push_back(Event::Problem {
            code: invalid.code,
            message: invalid.message.clone(),
        });
        if invalid.code != Code::Unsupported {
            self.abandon(now, 1002, &invalid.message);
        }
    }

    /// Whether `close` was called.
    pub fn is_closed(&self) -> bool {
        matches!(self.phase, Phase::Closed)
    }

    /// The code and the words with which the client stopped, if it has.
    pub fn stopped(&self) -> Option<Refusal> {
        match &self.phase {
            Phase::Stopped { code, message } => Some(Refusal::new(*code, message.clone())),
            Phase::Closed => Some(Refusal::new(Code::GoingAway, "the client was closed")),
            _ => None,
        }
    }

    /// Stops for a reason of this side: a storage that failed.
    pub fn halt(&mut self, now: Now, code: Code, message: String) {
        self.drop_socket(1001);
        self.lose_connection(now);
        self.stop(code, message);
    }

    /// The next message to send. What `take_transaction` gives has to be kept before it goes out.
    pub fn poll_transmit(&mut self, now: Now) -> Option<ClientMessage> {
        let message = match &mut self.phase {
            Phase::Handshake { hello_sent, .. } if !*hello_sent => {
                *hello_sent = true;
                let hello = Hello {
                    token: self.config.token.clone(),
                    sdk: self.config.sdk.clone(),
                    ..Hello::default()
                };
                return Some(ClientMessage::Hello(hello));
            }
            Phase::Online(session) => {
                if std::mem::take(&mut session.auth_due)
                    && let Some(token) = self.config.token.clone()
                {
                    Some(ClientMessage::Auth { token })
                } else if std::mem::take(&mut session.ping_due) {
                    Some(ClientMessage::Ping { at: now.wall_ms })
                } else if let Some(id) = session.unsubs.pop_front() {
                    Some(ClientMessage::Unsub { id })
                } else if let Some(get) = self.gets_due.pop_first().and_then(|id| self.gets.get(&id)) {
                    Some(ClientMessage::Get(get.clone()))
                } else {
                    self.next_of_spaces(now)
                }
            }
            _ => None,
        };
        if let (Some(_), Phase::Online(session)) = (&message, &mut self.phase) {
            session.sent = now.mono_ms;
        }
        message
    }

    fn next_of_spaces(&mut self, now: Now) -> Option<ClientMessage> {
        let Phase::Online(session) = &self.phase else {
            return None;
        };
        while let Some(name) = self.ready.pop_front() {
            let Some(space) = self.spaces.get_mut(&name) else {
                continue;
            };
            let message = if let Some(sub) = space.next_sub(now, self.next_id) {
                self.subs.insert(self.next_id, name.clone());
                self.next_id += 1;
                Some(ClientMessage::Sub(sub))
            } else {
                let welcome = &session.welcome;
                let bound = self.limits.message_bytes;
                let write = space.next_write(now, &welcome.user, welcome.now, bound, &mut *self.entropy);
                write.map(ClientMessage::Write)
            };
            if message.is_some() {
                self.ready.push_back(name.clone());
                self.touched.insert(name);
                return message;
            }
        }
        None
    }

    fn next_id(&mut self) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        id
    }

    fn wake(&mut self, space: &SpaceId) {
        if !self.ready.contains(space) {
            self.ready.push_back(space.clone());
        }
    }

    /// Passes on what happened in a space.
    fn collect(&mut self, name: &SpaceId) {
        if let Some(space) = self.spaces.get_mut(name) {
            self.touched.insert(name.clone());
            self.events.extend(
                space
                    .take_events()
                    .into_iter()
                    .map(|event| Event::Space(name.clone(), event)),
            );
        }
    }

    fn welcomed(&mut self, now: Now, welcome: Welcome) {
        if self.user.as_ref().is_some_and(|user| *user != welcome.user) {
            self.drop_socket(1000);
            let message = format!("what is kept here belongs to another user than {:?}", welcome.user);
            self.stop(Code::UserChanged, message);
            return;
        }
        if self.user.is_none() {
            self.user = Some(welcome.user.clone());
            self.user_changed = true;
        }
        self.limits = welcome.limits.clone();
        self.events
            .push_back(Event::State(ConnectionState::Online(Box::new(welcome.clone()))));
        self.phase = Phase::Online(Box::new(Session {
            welcome,
            since: now.mono_ms,
            sent: now.mono_ms,
            heard: now.mono_ms,
            ping_due: false,
            answer_by: None,
            leave_at: None,
            auth_due: false,
            unsubs: VecDeque::new(),
        }));
        self.gets_due = self.gets.keys().copied().collect();
        let names: Vec<_> = self.spaces.keys().cloned().collect();
        for name in names {
            if let Some(space) = self.spaces.get_mut(&name) {
                space.attach();
            }
            self.wake(&name);
        }
    }

    fn handle(&mut self, now: Now, message: ServerMessage) -> Result<(), Violation> {
        match message {
            ServerMessage::Begin(begin) => {
                let Some(name) = self.subs.get(&begin.id).cloned() else {
                    return Ok(());
                };
                self.numbers.retain(|_, space| *space != name);
                self.numbers.insert(begin.n, name.clone());
                self.in_space(&name, |space, _| space.begin(&begin))
            }
            ServerMessage::Page { id, docs, cursor } => {
                let Some(name) = self.subs.get(&id).cloned() else {
                    return Ok(());
                };
                self.in_space(&name, |space, _| space.page(docs, cursor))
            }
            ServerMessage::Current { id, position, last_mid } => {
                let Some(name) = self.subs.get(&id).cloned() else {
                    return Ok(());
                };
                self.in_space(&name, |space, entropy| {
                    space.current(now, id, position, last_mid, entropy)
                })
            }
            ServerMessage::Change(change) => {
                let Some(name) = self.numbers.get(&change.n).cloned() else {
                    return Ok(());
                };
                self.in_space(&name, |space, _| space.commit(change.commit))
            }
            ServerMessage::Epoch { n, position } => {
                let Some(name) = self.numbers.get(&n).cloned() else {
                    return Ok(());
                };
                self.in_space(&name, |space, entropy| space.epoch(position, entropy))
            }
            ServerMessage::Progress { n, seq } => {
                let Some(name) = self.numbers.get(&n).cloned() else {
                    return Ok(());
                };
                self.in_space(&name, |space, _| space.progress(seq))
            }
            ServerMessage::Ack(ack) => {
                let name = ack.space.clone();
                self.in_space(&name, |space, _| {
                    space.ack(now, ack);
                    Ok(())
                })
            }
            ServerMessage::Reject(reject) => {
                let name = reject.space.clone();
                self.in_space(&name, |space, entropy| {
                    space.reject(now, reject, entropy);
                    Ok(())
                })
            }
            ServerMessage::Denied { id, code, purge } => {
                self.denied(now, id, code, purge);
                Ok(())
            }
            ServerMessage::Docs { id, position, docs } => {
                if self.gets.remove(&id).is_some() {
                    self.events.push_back(Event::Got {
                        id,
                        result: Ok((position, docs)),
                    });
                }
                Ok(())
            }
            ServerMessage::Goaway { retry_ms, jitter_ms } => {
                let jitter = draw_up_to(&mut *self.entropy, jitter_ms);
                if let Phase::Online(session) = &mut self.phase {
                    session.leave_at = Some(now.mono_ms + retry_ms + jitter);
                }
                Ok(())
            }
            ServerMessage::Error { code, message, re } => {
                match re {
                    Some(id) if self.subs.contains_key(&id) => self.denied(now, id, code, false),
                    re => self.error(code, message, re),
                }
                Ok(())
            }
            ServerMessage::Pong { .. } | ServerMessage::Welcome(_) => Ok(()),
        }
    }

    fn in_space(
        &mut self,
        name: &SpaceId,
        step: impl FnOnce(&mut Space, &mut dyn Entropy) -> Result<(), Violation>,
    ) -> Result<(), Violation> {
        let Some(space) = self.spaces.get_mut(name) else {
            return Ok(());
        };
        let result = step(space, &mut *self.entropy);
        self.collect(name);
        self.wake(name);
        result
    }

    fn denied(&mut self, now: Now, id: u64, code: Code, purge: bool) {
        let Some(name) = self.subs.remove(&id) else { return };
        if !self.subs.values().any(|space| *space == name) {
            self.numbers.retain(|_, space| *space != name);
        }
        let retry_ms = RESUBSCRIBE_MS / 2 + draw_up_to(&mut *self.entropy, RESUBSCRIBE_MS);
        let _ = self.in_space(&name, |space, _| {
            space.denied(now, id, code, purge, retry_ms);
            Ok(())
        });
    }

    fn error(&mut self, code: Code, message: String, re: Option<u64>) {
        if let Some(id) = re.filter(|id| self.gets.remove(id).is_some()) {
            self.events.push_back(Event::Got {
                id,
                result: Err(Refusal::new(code, message)),
            });
            return;
        }
        if code.row().close.is_some() {
            self.last_error = Some((code, message.clone()));
        }
        self.events.push_back(Event::Problem { code, message });
    }

    fn forget_subscription(&mut self, name: &SpaceId) {
        self.subs.retain(|_, space| space != name);
        self.numbers.retain(|_, space| space != name);
    }

    fn drop_socket(&mut self, code: u16) {
        if matches!(
            self.phase,
            Phase::Connecting | Phase::Handshake { .. } | Phase::Online(_)
        ) {
            self.commands.push_back(Command::Close(code));
        }
    }

    /// Gives up a connection from this side, and comes back after backoff – or at once, if it was healthy.
    fn abandon(&mut self, now: Now, code: u16, why: &str) {
        self.drop_socket(code);
        self.last_error = None;
        self.disconnected(now, None, why.to_owned());
    }

    fn lose_connection(&mut self, now: Now) {
        self.subs.clear();
        self.numbers.clear();
        let names: Vec<_> = self.spaces.keys().cloned().collect();
        for name in names {
            if let Some(space) = self.spaces.get_mut(&name) {
                space.detach();
            }
            self.collect(&name);
        }
        self.phase = Phase::Waiting { at: now.mono_ms };
    }

    fn stop(&mut self, code: Code, message: String) {
        self.phase = Phase::Stopped {
            code,
            message: message.clone(),
        };
        self.refuse_gets(code, &message);
        self.events
            .push_back(Event::State(ConnectionState::Stopped { code, message }));
    }

    fn refuse_gets(&mut self, code: Code, message: &str) {
        self.gets_due.clear();
        for id in std::mem::take(&mut self.gets).into_keys() {
            let result = Err(Refusal::new(code, message));
            self.events.push_back(Event::Got { id, result });
        }
    }

    fn wait_backoff(&mut self, now: Now, why: String) {
        let (first, most) = BACKOFF_MS;
        let mut delay = first;
        for _ in 0..self.attempts.min(32) {
            delay = (delay * 3 / 2).min(most);
        }
        self.attempts = self.attempts.saturating_add(1);
        let delay = delay / 2 + draw_up_to(&mut *self.entropy, delay);
        self.wait(now, delay, Some(why));
    }

    fn wait(&mut self, now: Now, retry_ms: u64, why: Option<String>) {
        self.phase = Phase::Waiting {
            at: now.mono_ms + retry_ms,
        };
        self.events
            .push_back(Event::State(ConnectionState::Offline { retry_ms, why }));
    }
}

impl Session {
    /// When to ask whether the connection is alive: after `ping_ms` without sending, for the gateway's
    /// sake, or without hearing, for one's own.
    fn next_ask(&self) -> u64 {
        if self.answer_by.is_some() {
            return u64::MAX;
        }
        self.sent.min(self.heard) + self.welcome.ping_ms
    }

    fn ask(&mut self, now: Now) {
        self.ping_due = true;
        // Counted from here even if a stuck socket does not take the ping.
        self.answer_by.get_or_insert(now.mono_ms + ANSWER_MS);
    }
}

/// Whether a write may be queued: within the limits, as the gateway will find. Its size in bytes.
fn check(write: &Write, limits: &Limits) -> Result<usize, Refusal> {
    if write.ops.len() > limits.ops {
        return Err(Invalid::too_large("ops", limits.ops, write.ops.len()).into());
    }
    let frame = msgpack::encode_client(&ClientMessage::Write(write.clone()));
    if frame.len() > limits.message_bytes {
        return Err(Invalid::too_large("message bytes", limits.message_bytes, frame.len()).into());
    }
    // What the gateway would refuse to decode must not reach it: it could close the connection over it.
    match msgpack::decode_client(&frame, limits) {
        Ok(_) => Ok(frame.len()),
        Err(error) => Err(error.error.into()),
    }
}
