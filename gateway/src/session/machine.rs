//! The session as a state machine: `(now, input) → effects`. No socket, no clock, no store.
//!
//! Awaiting `hello` → live → closed. `welcome` is the only way into live, `Effect::Close` the only
//! way out that the server chooses. Nothing is answered in closed.

use super::view::view_of;
use crate::auth::{Authoriser, Identity, ReadScope};
use crate::engine::{Refusal, WriteBody, WriteRequest};
use crate::store::View;
use smallvec::{SmallVec, smallvec};
use std::sync::Arc;
use tidegate_protocol::limits::MESSAGE_BYTES;
use tidegate_protocol::msgpack::DecodeError;
use tidegate_protocol::{
    ClientId, ClientMessage, Code, DocPath, Form, Get, Hello, Limits, ResumeFrom, ServerMessage, SpaceId, Sub, Welcome,
    Write, WriteHead, Writer, deflate,
};

/// Both clocks.
#[derive(Clone, Copy, Debug)]
pub struct Now {
    /// ms of a clock that never goes back.
    pub mono: u64,
    /// ms since 1970.
    pub wall: u64,
}

/// What a session is told.
#[derive(Debug)]
pub enum Input {
    /// A message arrived, or something that is none.
    Message(Result<ClientMessage, DecodeError>),
    /// Something else was heard: a WebSocket ping or pong.
    Heard,
    /// Time has passed: look at the deadlines.
    Time,
    /// The node is stopping.
    Drain {
        /// For `goaway`.
        retry_ms: u64,
        /// For `goaway`.
        jitter_ms: u64,
    },
}

/// What is to be done, in order: most often one thing, for which nothing is allocated.
pub(super) type Effects = SmallVec<[Effect; 1]>;

/// What the shell is to do.
#[derive(Debug)]
pub enum Effect {
    /// Send this.
    Send(ServerMessage),
    /// Bring this subscription up to date and live.
    Subscribe(Subscribe),
    /// End this subscription.
    Unsubscribe {
        /// Its id.
        id: u64,
        /// Its space.
        space: SpaceId,
    },
    /// Have this mutation applied; answer it when that is done.
    Write(WriteRequest),
    /// Read these documents and answer.
    Get {
        /// Its id.
        id: u64,
        /// The space.
        space: SpaceId,
        /// The documents.
        docs: Vec<DocPath>,
    },
    /// Say why, and close.
    Close(Code, String),
}

/// A subscription to be brought up to date.
#[derive(Clone, Debug)]
pub struct Subscribe {
    /// Its id.
    pub id: u64,
    /// Its space.
    pub space: SpaceId,
    /// Whose last mid `current` carries.
    pub writer: Option<Writer>,
    /// Where the client stands.
    pub from: Option<Box<ResumeFrom>>,
    /// What it covers.
    pub view: View,
}

/// What is the same for every session of a node.
#[derive(Clone, Debug)]
pub struct SessionConfig {
    /// Name of the node.
    pub node: String,
    /// The limits in force.
    pub limits: Limits,
    /// Clients ping after this long without sending, ms; the session closes after twice that.
    pub ping_ms: u64,
    /// From the TCP connection's first byte to `hello`, ms.
    pub hello_ms: u64,
}

enum Phase {
    /// With the token that came before it, in the request's header.
    AwaitHello(Option<Box<str>>),
    Live(Arc<Identity>),
    Closed,
}

/// Subscriptions by their space, each with its id. Most sessions have one, so there is no second list by ids.
#[derive(Default)]
struct Subs(Vec<(SpaceId, u64)>);

impl Subs {
    fn of(&self, space: &SpaceId) -> Result<usize, usize> {
        self.0.binary_search_by(|(other, _)| other.cmp(space))
    }

    fn space(&self, id: u64) -> Option<&SpaceId> {
        self.0.iter().find(|(_, other)| *other == id).map(|(space, _)| space)
    }

    /// Ends the one of this id; returns its space.
    fn remove(&mut self, id: u64) -> Option<SpaceId> {
        let index = self.0.iter().position(|(_, other)| *other == id)?;
        Some(self.0.remove(index).0)
    }

    /// Of a space that has none.
    fn insert(&mut self, space: SpaceId, id: u64) {
        let (Ok(index) | Err(index)) = self.of(&space);
        let few = usize::from(self.0.len() < 4);
        self.0.reserve_exact(few);
        self.0.insert(index, (space, id));
    }
}

/// A session.
pub struct Session {
    config: Arc<SessionConfig>,
    authoriser: Arc<dyn Authoriser>,
    name: u64,
    form: Form,
    phase: Phase,
    /// Set with `welcome`: either side may compress its messages.
    compresses: bool,
    opened: u64,
    heard: u64,
    subs: Subs,
    /// The client that wrote last, and who stands in its changes: the user stays the same.
    named: Option<Box<(ClientId, Writer)>>,
}

impl Session {
    /// A session that awaits `hello`. `opened`: when the connection was accepted, on the monotonic clock.
    pub fn new(
        config: Arc<SessionConfig>,
        authoriser: Arc<dyn Authoriser>,
        name: u64,
        form: Form,
        header_token: Option<Box<str>>,
        opened: u64,
    ) -> Self {
        Self {
            config,
            authoriser,
            name,
            form,
            phase: Phase::AwaitHello(header_token),
            compresses: false,
            opened,
            heard: opened,
            subs: Subs::default(),
            named: None,
        }
    }

    /// When to hand in `Input::Time` next, on the monotonic clock; none once closed.
    pub fn deadline(&self, now: Now) -> Option<u64> {
        match &self.phase {
            Phase::AwaitHello(_) => Some(self.opened + self.config.hello_ms),
            Phase::Live(who) => {
                let idle = self.heard + 2 * self.config.ping_ms;
                let expiry = who
                    .expires
                    .map_or(u64::MAX, |at| now.mono + at.saturating_sub(now.wall));
                Some(idle.min(expiry))
            }
            Phase::Closed => None,
        }
    }

    /// The user, once live.
    pub fn user(&self) -> Option<&str> {
        match &self.phase {
            Phase::Live(who) => Some(who.user()),
            _ => None,
        }
    }

    /// A subscription that it has asked for was not taken.
    pub fn forget(&mut self, id: u64) {
        self.subs.remove(id);
    }

    /// Its name, in `welcome` and the log.
    pub fn name(&self) -> String {
        format!("{:016x}", self.name)
    }

    /// When the connection was accepted, on the monotonic clock.
    pub fn opened(&self) -> u64 {
        self.opened
    }

    /// Whether it was agreed that messages may be compressed.
    pub fn compresses(&self) -> bool {
        self.compresses
    }

    /// Takes an input in.
    pub fn handle(&mut self, now: Now, input: Input) -> Effects {
        if matches!(self.phase, Phase::Closed) {
            return Effects::new();
        }
        match input {
            Input::Heard => {
                self.heard = now.mono;
                Effects::new()
            }
            Input::Time => self.check_deadlines(now),
            Input::Drain { retry_ms, jitter_ms } => {
                smallvec![Effect::Send(ServerMessage::Goaway { retry_ms, jitter_ms })]
            }
            Input::Message(message) => {
                self.heard = now.mono;
                // Expiry ends access whatever the sweeper's pace.
                let expired = self.check_deadlines(now);
                if !expired.is_empty() {
                    return expired;
                }
                match message {
                    Ok(message) => self.message(now, message),
                    Err(error) => self.refused(error),
                }
            }
        }
    }

    fn close(&mut self, code: Code, message: impl Into<String>) -> Effects {
        self.phase = Phase::Closed;
        smallvec![Effect::Close(code, message.into())]
    }

    fn check_deadlines(&mut self, now: Now) -> Effects {
        match &self.phase {
            Phase::AwaitHello(_) if now.mono >= self.opened + self.config.hello_ms => {
                let limit = self.config.hello_ms;
                self.close(
                    Code::HandshakeTimeout,
                    format!("no hello within {limit} ms of connecting"),
                )
            }
            Phase::Live(who) if who.expires.is_some_and(|at| at <= now.wall) => self.close(
                Code::TokenExpired,
                "the token has expired; get a new one and connect again",
            ),
            Phase::Live(_) if now.mono >= self.heard + 2 * self.config.ping_ms => {
                let silence = 2 * self.config.ping_ms;
                self.close(
                    Code::Idle,
                    format!(
                        "nothing was heard for {silence} ms; ping every {} ms",
                        self.config.ping_ms
                    ),
                )
            }
            _ => Effects::new(),
        }
    }

    fn refused(&mut self, error: DecodeError) -> Effects {
        let Phase::Live(who) = &self.phase else {
            let code = if error.closes() {
                error.error.code
            } else {
                Code::Protocol
            };
            return self.close(
                code,
                format!("the first message must be a hello: {}", error.error.message),
            );
        };
        let closes = error.closes();
        let Refusal { code, message, at } = Refusal {
            code: error.error.code,
            message: error.error.message,
            at: error.at,
        };
        match error.write {
            Some(head) => {
                let body = Err(Refusal { code, message, at });
                let who = who.clone();
                self.write(who, *head, body)
            }
            None if closes => self.close(code, message),
            None => smallvec![Effect::Send(ServerMessage::Error {
                code,
                message,
                re: error.re,
            })],
        }
    }

    fn message(&mut self, now: Now, message: ClientMessage) -> Effects {
        let who = match (&self.phase, &message) {
            (Phase::AwaitHello(_), ClientMessage::Hello(_)) => None,
            (Phase::AwaitHello(_), _) => return self.close(Code::Protocol, "the first message must be a hello"),
            (Phase::Live(who), _) => Some(who.clone()),
            (Phase::Closed, _) => return Effects::new(),
        };
        match (message, who) {
            (ClientMessage::Hello(hello), None) => self.hello(now, &hello),
            (ClientMessage::Hello(_), Some(_)) => self.close(Code::Protocol, "a second hello"),
            (_, None) => Effects::new(),
            (ClientMessage::Auth { token }, Some(who)) => self.auth(now, &token, &who),
            (ClientMessage::Sub(sub), Some(who)) => self.sub(sub, &who),
            (ClientMessage::Unsub { id }, Some(_)) => match self.subs.remove(id) {
                Some(space) => smallvec![Effect::Unsubscribe { id, space }],
                // It may have been ended by `denied` while this was on its way.
                None => Effects::new(),
            },
            (
                ClientMessage::Write(Write {
                    head,
                    base,
                    policy,
                    ops,
                }),
                Some(who),
            ) => {
                let body = Ok(WriteBody { base, policy, ops });
                self.write(who, head, body)
            }
            (ClientMessage::Get(get), Some(who)) => self.get(get, &who),
            (ClientMessage::Ping { at }, Some(_)) => smallvec![Effect::Send(ServerMessage::Pong { at, now: now.wall })],
        }
    }

    fn hello(&mut self, now: Now, hello: &Hello) -> Effects {
        // What it cannot take it could be sent at any time: a change, a page, an answer.
        let limit = self.config.limits.message_bytes;
        let takes = hello.max_message.unwrap_or(MESSAGE_BYTES as u64);
        if takes < limit as u64 {
            return self.close(
                Code::Oversize,
                format!(
                    "messages of this gateway have up to {limit} bytes (limits.message_bytes), and hello.max_message allows \
                     {takes}: raise it to {limit}, or lower the gateway's limit"
                ),
            );
        }
        let header = match &mut self.phase {
            Phase::AwaitHello(token) => token.take(),
            _ => None,
        };
        let token = hello.token.as_deref().or(header.as_deref());
        match self.authoriser.authenticate(token, now.wall) {
            Ok(who) => {
                self.compresses = !self.form.is_text() && hello.caps.iter().any(|cap| cap == deflate::CAP);
                let welcome = Welcome {
                    session: self.name(),
                    node: self.config.node.clone(),
                    user: who.user().to_owned(),
                    now: now.wall,
                    limits: self.config.limits.clone(),
                    caps: self.compresses.then(|| deflate::CAP.to_owned()).into_iter().collect(),
                    ping_ms: self.config.ping_ms,
                    token_expires: who.expires,
                };
                self.phase = Phase::Live(Arc::new(who));
                smallvec![Effect::Send(ServerMessage::Welcome(welcome))]
            }
            Err(denial) => self.close(denial.code, denial.message),
        }
    }

    fn write(&mut self, who: Arc<Identity>, head: WriteHead, body: Result<WriteBody, Refusal>) -> Effects {
        let writer = match self.named.as_deref() {
            Some((client, writer)) if *client == head.client => *writer,
            _ => {
                let writer = Writer::of(who.user(), head.client);
                self.named = Some(Box::new((head.client, writer)));
                writer
            }
        };
        smallvec![Effect::Write(WriteRequest::of(who, writer, head, body))]
    }

    fn auth(&mut self, now: Now, token: &str, who: &Identity) -> Effects {
        match self.authoriser.authenticate(Some(token), now.wall) {
            Ok(new) if new.user() == who.user() => {
                self.phase = Phase::Live(Arc::new(new));
                Effects::new()
            }
            Ok(_) => self.close(
                Code::UserChanged,
                "auth with another user's token; connect anew as that user",
            ),
            Err(denial) if denial.code == Code::AuthUnavailable => {
                smallvec![Effect::Send(ServerMessage::Error {
                    code: denial.code,
                    message: denial.message,
                    re: None,
                })]
            }
            Err(denial) => self.close(denial.code, denial.message),
        }
    }

    fn sub(&mut self, sub: Sub, who: &Identity) -> Effects {
        let Sub {
            id,
            space,
            client,
            from,
            filter,
        } = sub;
        let error = |code, message: String| {
            smallvec![Effect::Send(ServerMessage::Error {
                code,
                message,
                re: Some(id),
            })]
        };
        if self.subs.space(id).is_some_and(|other| *other != space) {
            return error(
                Code::Invalid,
                format!("id {id} is in use for another space; unsub it first"),
            );
        }
        let limit = self.config.limits.subscriptions;
        if self.subs.0.len() >= limit && self.subs.of(&space).is_err() {
            return error(
                Code::TooMany,
                format!("subscriptions is limited to {limit}, found {}", limit + 1),
            );
        }
        let mut effects = Effects::new();
        if let Ok(index) = self.subs.of(&space) {
            let (_, old) = self.subs.0.remove(index);
            effects.push(Effect::Unsubscribe {
                id: old,
                space: space.clone(),
            });
        }
        let scope = match self.authoriser.read(who, &space) {
            Ok(scope) => scope,
            Err(denial) => {
                let purge = denial.code == Code::Forbidden;
                effects.push(Effect::Send(ServerMessage::Denied {
                    id,
                    code: denial.code,
                    purge,
                }));
                return effects;
            }
        };
        self.subs.insert(space.clone(), id);
        let writer = client.map(|client| Writer::of(who.user(), client));
        let view = view_of(filter.as_deref(), &scope);
        effects.push(Effect::Subscribe(Subscribe {
            id,
            space,
            writer,
            from: from.map(Box::new),
            view,
        }));
        effects
    }

    fn get(&self, get: Get, who: &Identity) -> Effects {
        let Get { id, space, docs } = get;
        let denial = match self.authoriser.read(who, &space) {
            Ok(ReadScope::All) => None,
            Ok(ReadScope::Collections(list)) => docs
                .iter()
                .find(|doc| !list.iter().any(|collection| collection.as_str() == doc.collection()))
                .map(|doc| (Code::Forbidden, format!("the rules do not let you read {doc}"))),
            Err(denial) => Some((denial.code, denial.message)),
        };
        match denial {
            Some((code, message)) => smallvec![Effect::Send(ServerMessage::Error {
                code,
                message,
                re: Some(id),
            })],
            None => smallvec![Effect::Get { id, space, docs }],
        }
    }
}

#[cfg(test)]
mod tests;
