//! The latest events, kept small, to be told when a promise is broken.

use crate::event::{ConnectionId, Fate, Installation, Tag};
use std::collections::VecDeque;
use std::fmt;
use tidegate_protocol::{Epoch, Mid, Mode, Position, Seq, Writer};

/// Events kept; older ones are not told.
const KEPT: usize = 1_024;
/// Events told with a violation.
const TOLD: usize = 60;

/// The space of events that are about all of them.
pub(crate) const EVERYWHERE: usize = usize::MAX;

/// An event, as far as a trace tells it.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Note {
    Epoch(Epoch, Position),
    FellBack(Position),
    Erased(Epoch, Seq),
    Commit(Position, Writer, Mid, usize),
    RecordsAged,
    Connected(ConnectionId, Installation),
    Disconnected(ConnectionId),
    Sub(ConnectionId, u64, Option<Position>, bool),
    Unsub(ConnectionId, u64),
    Write(ConnectionId, Writer, Mid, Option<Position>),
    Begin(ConnectionId, u64, Mode, Epoch, bool),
    Page(ConnectionId, u64, usize),
    Current(ConnectionId, u64, Position, Option<Mid>),
    Change(ConnectionId, Seq, Writer, Mid, usize),
    EpochChange(ConnectionId, Position),
    Progress(ConnectionId, Seq),
    Denied(ConnectionId, u64, bool),
    Ack(ConnectionId, Mid, Position),
    Reject(ConnectionId, Mid, &'static str),
    Docs(ConnectionId, Position),
    Restarted(Installation, Option<Position>),
    Replaced(Installation, Option<Position>),
    Issued(Installation, Tag),
    Settled(Installation, Tag, Fate),
    Lost(Installation, Mid, Mid),
    Shown(Installation, Option<Position>, i64),
    Held(Installation, Option<Position>),
    Rest(Position),
}

/// Who saw something.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Who {
    Connection(ConnectionId),
    Installation(Installation),
    Server,
}

impl fmt::Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connection(connection) => write!(f, "connection {}", connection.0),
            Self::Installation(installation) => write!(f, "installation {}", installation.0),
            Self::Server => f.write_str("the server"),
        }
    }
}

/// A position, shorter than in full: the first digits of an epoch tell it from the others of a space.
struct At(Position);

impl fmt::Display for At {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}@{:04x}",
            self.0.seq,
            self.0.epoch.0 >> 48 ^ self.0.epoch.0 & 0xffff
        )
    }
}

pub(crate) fn short(position: Option<Position>) -> String {
    position.map_or_else(|| "nothing".to_owned(), |position| At(position).to_string())
}

pub(crate) fn short_writer(writer: Writer) -> String {
    format!("w{:04x}", writer.0 >> 48 ^ writer.0 & 0xffff)
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let at = |position: &Position| At(*position).to_string();
        let who = |c: &ConnectionId| format!("  connection {}", c.0);
        let app = |i: &Installation| format!("    installation {}", i.0);
        match self {
            Self::Epoch(epoch, after) => {
                let new = Position::new(*epoch, after.seq);
                write!(f, "store: epoch {} goes on from {}", At(new), at(after))
            }
            Self::FellBack(head) => write!(f, "store: fell back to {}", at(head)),
            Self::Erased(epoch, seq) => write!(f, "store: erased, goes on as {}", At(Position::new(*epoch, *seq))),
            Self::Commit(position, writer, mid, docs) => {
                write!(
                    f,
                    "store: commit {} of {} mid {mid}, {docs} documents",
                    at(position),
                    short_writer(*writer)
                )
            }
            Self::RecordsAged => write!(f, "records of clients are older than they are kept"),
            Self::Connected(c, i) => write!(f, "{} opened by installation {}", who(c), i.0),
            Self::Disconnected(c) => write!(f, "{} gone", who(c)),
            Self::Sub(c, id, from, filtered) => {
                let what = if *filtered { "a part" } else { "all" };
                write!(f, "{} -> sub {id} of {what} from {}", who(c), short(*from))
            }
            Self::Unsub(c, id) => write!(f, "{} -> unsub {id}", who(c)),
            Self::Write(c, writer, mid, base) => {
                write!(
                    f,
                    "{} -> write {} mid {mid} base {}",
                    who(c),
                    short_writer(*writer),
                    short(*base)
                )
            }
            Self::Begin(c, id, mode, epoch, resumed) => {
                let epoch = At(Position::new(*epoch, Seq::ZERO));
                write!(
                    f,
                    "{} <- begin {id} {} epoch {epoch} resumed {resumed}",
                    who(c),
                    mode.name()
                )
            }
            Self::Page(c, id, docs) => write!(f, "{} <- page {id}, {docs} documents", who(c)),
            Self::Current(c, id, position, last) => {
                let last = last.map_or_else(|| "nil".to_owned(), |mid| mid.to_string());
                write!(f, "{} <- current {id} {} last_mid {last}", who(c), at(position))
            }
            Self::Change(c, seq, writer, mid, docs) => {
                write!(
                    f,
                    "{} <- c {seq} of {} mid {mid}, {docs} documents",
                    who(c),
                    short_writer(*writer)
                )
            }
            Self::EpochChange(c, position) => write!(f, "{} <- epoch {}", who(c), at(position)),
            Self::Progress(c, seq) => write!(f, "{} <- progress {seq}", who(c)),
            Self::Denied(c, id, purge) => write!(f, "{} <- denied {id} purge {purge}", who(c)),
            Self::Ack(c, mid, position) => write!(f, "{} <- ack mid {mid} {}", who(c), at(position)),
            Self::Reject(c, mid, code) => write!(f, "{} <- reject mid {mid} {code}", who(c)),
            Self::Docs(c, position) => write!(f, "{} <- docs {}", who(c), at(position)),
            Self::Restarted(i, position) => write!(f, "{} restarted at {}", app(i), short(*position)),
            Self::Replaced(i, position) => write!(f, "{} replaced by a copy at {}", app(i), short(*position)),
            Self::Issued(i, tag) => write!(f, "{} issues {}", app(i), tag.0),
            Self::Settled(i, tag, fate) => write!(f, "{} is told of {}: {fate:?}", app(i), tag.0),
            Self::Lost(i, from, through) => write!(f, "{} is told of a loss: mids {from} to {through}", app(i)),
            Self::Shown(i, position, count) => write!(f, "{} shows {count} over {}", app(i), short(*position)),
            Self::Held(i, position) => write!(f, "{} holds {}", app(i), short(*position)),
            Self::Rest(position) => write!(f, "at rest at {}", at(position)),
        }
    }
}

/// The latest events of all spaces.
#[derive(Debug, Default)]
pub(crate) struct Notes(VecDeque<(usize, usize, Note)>);

impl Notes {
    pub(crate) fn push(&mut self, event: usize, space: usize, note: Note) {
        if self.0.len() == KEPT {
            self.0.pop_front();
        }
        self.0.push_back((event, space, note));
    }

    /// The last events of a space, a line each.
    pub(crate) fn tell(&self, space: usize) -> String {
        let lines: Vec<_> = self
            .0
            .iter()
            .rev()
            .filter(|(_, of, _)| *of == space || *of == EVERYWHERE)
            .take(TOLD)
            .collect();
        let line = |(event, _, note): &&(usize, usize, Note)| format!("  {event:>6} {note}\n");
        lines.iter().rev().map(line).collect()
    }
}
