//! The connection: handshake, subscriptions, liveness, backoff, and what each error asks for.

mod incoming;
mod session;

use crate::storage::{Stored, Transaction};
use crate::sync::event::{ConnectionState, Event, Refusal};
use crate::sync::queue::MutationId;
use crate::sync::space::{Request, Space};
use crate::sync::{Entropy, Now};
use session::{Phase, Session};
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use tidegate_protocol::limits::GET_DOCS;
use tidegate_protocol::{
    ClientMessage, Code, Collection, DocPath, Get, Hello, Invalid, Limits, Op, ServerMessage, SpaceId, Welcome, Write,
    deflate, msgpack,
};

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
    /// Whether the driver takes messages that are compressed, and hands them in as they were before.
    pub inflates: bool,
    /// The largest message that the driver takes, in bytes; `None` is the protocol's 1 MiB.
    pub max_message: Option<u64>,
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
    /// What `Retry-After` asks to wait, ms, whoever answered; 0 without.
    pub retry_ms: u64,
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
        self.touch(space);
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
        // It may be denied yet, with a purge.
        self.numbers.retain(|_, name| name != space);
        if let (Some(id), Phase::Online(session)) = (id, &mut self.phase) {
            session.unsubs.push_back(id);
        }
        self.collect(space);
    }

    /// Queues a mutation. It is shown in the local view at once.
    pub fn mutate(&mut self, now: Now, space: &SpaceId, request: Request) -> Result<MutationId, Refusal> {
        if self.is_closed() {
            return Err(Refusal::new(Code::GoingAway, "the client was closed"));
        }
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
        if docs.len() > GET_DOCS {
            return Err(Refusal::new(
                Code::TooMany,
                format!("documents of a read are limited to {GET_DOCS}, not {}", docs.len()),
            ));
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
            Phase::Handshake {
                hello_sent, renewed, ..
            } => *renewed = *hello_sent,
            Phase::Stopped {
                code: Code::TokenExpired | Code::Unauthenticated,
                ..
            } => self.wait(now, 0, None),
            _ => {}
        }
    }

    /// The network changed, or the app came to the foreground: tries at once, whatever it was told to wait, or asks
    /// whether the connection is alive.
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
        transaction.spaces.reserve_exact(touched.len());
        for name in touched {
            if let Some(changes) = self.spaces.get_mut(&name).and_then(Space::take_changes) {
                transaction.spaces.push((name, changes));
            }
        }
        transaction
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

    /// The next message to send. What `take_transaction` gives has to be kept before it goes out.
    pub fn poll_transmit(&mut self, now: Now) -> Option<ClientMessage> {
        let message = match &mut self.phase {
            Phase::Handshake { hello_sent, .. } if !*hello_sent => {
                *hello_sent = true;
                let hello = Hello {
                    token: self.config.token.clone(),
                    sdk: self.config.sdk.clone(),
                    caps: self
                        .config
                        .inflates
                        .then(|| deflate::CAP.to_owned())
                        .into_iter()
                        .collect(),
                    max_message: self.config.max_message,
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
                self.touch(&name);
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

    fn touch(&mut self, space: &SpaceId) {
        if !self.touched.contains(space) {
            self.touched.insert(space.clone());
        }
    }

    /// Passes on what happened in a space.
    fn collect(&mut self, name: &SpaceId) {
        self.touch(name);
        if let Some(space) = self.spaces.get_mut(name) {
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
        let auth_due = matches!(self.phase, Phase::Handshake { renewed: true, .. });
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
            auth_due,
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
}

/// Whether a write may be queued: within the limits, as the gateway will find. Its ops as the gateway will read them, and
/// its size in bytes.
fn check(write: Write, limits: &Limits) -> Result<(Vec<Op>, usize), Refusal> {
    if write.ops.len() > limits.ops {
        return Err(Invalid::too_large("ops", limits.ops, write.ops.len()).into());
    }
    let frame = msgpack::encode_client(&ClientMessage::Write(write));
    if frame.len() > limits.message_bytes {
        return Err(Invalid::too_large("message bytes", limits.message_bytes, frame.len()).into());
    }
    // What the gateway would refuse to decode must not reach it: it could close the connection over it.
    match msgpack::decode_client(&frame, limits) {
        Ok(ClientMessage::Write(write)) => Ok((write.ops, frame.len())),
        Ok(_) => unreachable!("a write is encoded as one"),
        Err(error) => Err(error.error.into()),
    }
}
