//! When to connect, when to ask, when to give up, and when to come back.

use super::{Command, ConnectFailure, Machine};
use crate::sync::Now;
use crate::sync::event::{ConnectionState, Event, Refusal};
use crate::sync::space::Space;
use std::collections::VecDeque;
use tidegate_protocol::{Action, Code, Welcome};

/// From the open socket to `welcome`, ms. The gateway's own deadline is the same.
const HANDSHAKE_MS: u64 = 10_000;
/// From a ping to anything that is heard, ms.
const ANSWER_MS: u64 = 5_000;
/// A session that lasted this long after `welcome` was healthy: the next attempt comes at once.
const HEALTHY_MS: u64 = 5_000;
/// First, and longest, wait between attempts, ms; ± 50 %.
const BACKOFF_MS: (u64, u64) = (1_000, 60_000);
/// Longer than this, ms, no `Retry-After` is believed: it may be a proxy's or a captive portal's.
const RETRY_AFTER_MS: u64 = 60 * 60 * 1_000;

#[derive(Debug)]
pub(super) enum Phase {
    /// Waits for the time of the next attempt (monotonic ms).
    Waiting {
        at: u64,
    },
    Connecting,
    Handshake {
        deadline: u64,
        hello_sent: bool,
        /// Whether a new token came after `hello` went out with the old one.
        renewed: bool,
    },
    Online(Box<Session>),
    Stopped {
        code: Code,
        message: String,
    },
    Closed,
}

#[derive(Debug)]
pub(super) struct Session {
    pub(super) welcome: Welcome,
    pub(super) since: u64,
    pub(super) sent: u64,
    pub(super) heard: u64,
    pub(super) ping_due: bool,
    pub(super) answer_by: Option<u64>,
    /// After a `goaway`: when to go (monotonic ms).
    pub(super) leave_at: Option<u64>,
    pub(super) auth_due: bool,
    pub(super) unsubs: VecDeque<u64>,
}

impl Session {
    /// When to ask whether the connection is alive: after `ping_ms` without sending, for the gateway's
    /// sake, or without hearing, for one's own.
    pub(super) fn next_ask(&self) -> u64 {
        if self.answer_by.is_some() {
            return u64::MAX;
        }
        self.sent.min(self.heard).saturating_add(self.welcome.ping_ms)
    }

    fn is_healthy(&self, now: Now) -> bool {
        now.mono_ms.saturating_sub(self.since) >= HEALTHY_MS
    }

    pub(super) fn ask(&mut self, now: Now) {
        self.ping_due = true;
        // Counted from here even if a stuck socket does not take the ping.
        self.answer_by.get_or_insert(now.mono_ms + ANSWER_MS);
    }
}

impl Machine {
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
                    let healthy = session.is_healthy(now);
                    self.drop_socket(1001);
                    self.lose_connection(now);
                    self.leave(now, healthy, 0, "the node is going away".to_owned());
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
                renewed: false,
            };
        }
    }

    /// No socket came to be.
    pub fn connect_failed(&mut self, now: Now, failure: ConnectFailure) {
        if !matches!(self.phase, Phase::Connecting) {
            return;
        }
        match failure.code.map(|code| (code, code.row().action)) {
            Some((code, Action::Stop | Action::Renew)) => self.stop(code, failure.message),
            _ => {
                // Who is told the same does not come back in the same moment.
                let retry_ms = failure.retry_ms.min(RETRY_AFTER_MS);
                let at_least = retry_ms + self.entropy.up_to(retry_ms / 2);
                self.wait_backoff(now, at_least, failure.message);
            }
        }
    }

    /// The socket was closed by the other side, or broke.
    pub fn disconnected(&mut self, now: Now, close: Option<u16>, why: String) {
        let (healthy, leave_at, renewed) = match &self.phase {
            Phase::Online(session) => (session.is_healthy(now), session.leave_at, session.auth_due),
            Phase::Handshake { renewed, .. } => (false, None, *renewed),
            // A socket that this side has given up: `close`, or a stop, is not taken back.
            _ => return,
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
            // The token that it was about is not the one to try next.
            && !(renewed && matches!(code, Code::TokenExpired | Code::Unauthenticated))
        {
            self.stop(code, message);
        } else if let Some(at) = leave_at {
            self.leave(now, healthy, at.saturating_sub(now.mono_ms), why);
        } else if healthy {
            self.attempts = 0;
            self.wait(now, 0, Some(why));
        } else {
            self.wait_backoff(now, 0, why);
        }
    }

    /// Goes as `goaway` asked. Sent away again and again, without a healthy session between, it backs off.
    fn leave(&mut self, now: Now, healthy: bool, retry_ms: u64, why: String) {
        if healthy || self.attempts == 0 {
            self.attempts = u32::from(!healthy);
            self.wait(now, retry_ms, Some(why));
        } else {
            self.wait_backoff(now, retry_ms, why);
        }
    }

    /// Stops for a reason of this side: a storage that failed.
    pub fn halt(&mut self, now: Now, code: Code, message: String) {
        self.drop_socket(1001);
        self.lose_connection(now);
        self.stop(code, message);
    }

    pub(super) fn drop_socket(&mut self, code: u16) {
        if matches!(
            self.phase,
            Phase::Connecting | Phase::Handshake { .. } | Phase::Online(_)
        ) {
            self.commands.push_back(Command::Close(code));
        }
    }

    /// Gives up a connection from this side, and comes back after backoff – or at once, if it was healthy.
    pub(super) fn abandon(&mut self, now: Now, code: u16, why: &str) {
        self.drop_socket(code);
        self.last_error = None;
        self.disconnected(now, None, why.to_owned());
    }

    pub(super) fn lose_connection(&mut self, now: Now) {
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

    pub(super) fn stop(&mut self, code: Code, message: String) {
        self.phase = Phase::Stopped {
            code,
            message: message.clone(),
        };
        self.refuse_gets(code, &message);
        self.events
            .push_back(Event::State(ConnectionState::Stopped { code, message }));
    }

    pub(super) fn refuse_gets(&mut self, code: Code, message: &str) {
        self.gets_due.clear();
        for id in std::mem::take(&mut self.gets).into_keys() {
            let result = Err(Refusal::new(code, message));
            self.events.push_back(Event::Got { id, result });
        }
    }

    pub(super) fn wait_backoff(&mut self, now: Now, at_least: u64, why: String) {
        let (first, most) = BACKOFF_MS;
        let mut delay = first;
        for _ in 0..self.attempts.min(32) {
            delay = (delay * 3 / 2).min(most);
        }
        self.attempts = self.attempts.saturating_add(1);
        let delay = delay / 2 + self.entropy.up_to(delay);
        self.wait(now, delay.max(at_least), Some(why));
    }

    pub(super) fn wait(&mut self, now: Now, retry_ms: u64, why: Option<String>) {
        self.phase = Phase::Waiting {
            at: now.mono_ms.saturating_add(retry_ms),
        };
        self.events
            .push_back(Event::State(ConnectionState::Offline { retry_ms, why }));
    }
}
