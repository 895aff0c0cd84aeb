//! Events that a test can keep, and spoil.

use tidegate_history::{Checker, ConnectionId, Docs, Event, Fate, Installation, Report, Tag};
use tidegate_protocol::*;

/// An event that owns what it tells.
#[derive(Clone, Debug)]
pub enum E {
    Epoch(Epoch, Position),
    FellBack(Position),
    Erased(Epoch, Seq, Option<u32>, Docs),
    Covers(ViewId, Vec<Collection>),
    Commit(Epoch, Commit),
    Aged,
    Connected(u64, u32),
    Sent(u64, ClientMessage),
    Received(u64, ServerMessage),
    Disconnected(u64),
    Restarted(u32, Option<(Position, ViewId)>),
    Replaced(u32, Option<(Position, ViewId)>),
    Issued(u32, u64, bool),
    Settled(u32, u64, Fate),
    Lost(u32, ClientId, Mid, Mid),
    Shown(u32, Option<Position>, i64, Vec<(Option<Value>, Option<Value>)>),
    Held(u32, Option<Position>, Docs),
    Rest(Position, Docs),
    AtRest(u32, Option<Position>, Docs, usize),
}

pub fn space() -> SpaceId {
    SpaceId::parse("s").unwrap()
}

/// Who somebody is to the gateway.
pub fn user(installation: u32) -> String {
    format!("user{installation}")
}

pub fn observe(checker: &mut Checker, event: &E) {
    let space = &space();
    let app = Installation;
    match event {
        E::Epoch(epoch, after) => checker.observe(Event::Epoch {
            space,
            epoch: *epoch,
            after: *after,
        }),
        E::FellBack(head) => checker.observe(Event::FellBack { space, head: *head }),
        E::Erased(epoch, start, by, docs) => checker.observe(Event::Erased {
            space,
            epoch: *epoch,
            start: *start,
            user: by.map(user).as_deref(),
            docs,
        }),
        E::Covers(view, collections) => checker.observe(Event::Covers {
            view: *view,
            collections: Some(collections),
        }),
        E::Commit(epoch, commit) => checker.observe(Event::Commit {
            space,
            epoch: *epoch,
            commit,
        }),
        E::Aged => checker.observe(Event::RecordsAged),
        E::Connected(connection, by) => checker.observe(Event::Connected {
            connection: ConnectionId(*connection),
            installation: app(*by),
            user: &user(*by),
        }),
        E::Sent(connection, message) => {
            let connection = ConnectionId(*connection);
            checker.observe(Event::Sent { connection, message });
        }
        E::Received(connection, message) => {
            let connection = ConnectionId(*connection);
            checker.observe(Event::Received { connection, message });
        }
        E::Disconnected(connection) => {
            let connection = ConnectionId(*connection);
            checker.observe(Event::Disconnected { connection });
        }
        E::Restarted(by, standing) => {
            let (installation, standing) = (app(*by), *standing);
            checker.observe(Event::Restarted {
                installation,
                space,
                standing,
            });
        }
        E::Replaced(by, standing) => {
            let (installation, standing) = (app(*by), *standing);
            checker.observe(Event::Replaced {
                installation,
                space,
                standing,
            });
        }
        E::Issued(by, tag, counts) => {
            let (installation, tag, counts) = (app(*by), Tag(*tag), *counts);
            checker.observe(Event::Issued {
                installation,
                space,
                tag,
                counts,
            });
        }
        E::Settled(by, tag, fate) => {
            let (installation, tag, fate) = (app(*by), Tag(*tag), *fate);
            checker.observe(Event::Settled {
                installation,
                space,
                tag,
                fate,
            });
        }
        E::Lost(by, client, from, through) => checker.observe(Event::Lost {
            installation: app(*by),
            space,
            client: *client,
            from: *from,
            through: *through,
        }),
        E::Shown(by, position, count, pairs) => {
            let pairs: Vec<_> = pairs.iter().map(|(a, b)| (a.as_ref(), b.as_ref())).collect();
            checker.observe(Event::Shown {
                installation: app(*by),
                space,
                position: *position,
                count: *count,
                pairs: &pairs,
            });
        }
        E::Held(by, position, docs) => {
            let (installation, position) = (app(*by), *position);
            checker.observe(Event::Held {
                installation,
                space,
                position,
                docs,
            });
        }
        E::Rest(position, docs) => checker.observe(Event::Rest {
            space,
            position: *position,
            docs,
        }),
        E::AtRest(by, position, docs, queued) => checker.observe(Event::AtRest {
            installation: app(*by),
            space,
            position: *position,
            docs,
            queued: *queued,
        }),
    }
}

pub fn judge(events: &[E]) -> Report {
    let mut checker = Checker::new();
    events.iter().for_each(|event| observe(&mut checker, event));
    checker.finish()
}

/// Without the store's own account, as a load tool sees it.
pub fn judge_outside(events: &[E]) -> Report {
    let mut checker = Checker::outside();
    events
        .iter()
        .filter(|event| !matches!(event, E::Epoch(..) | E::FellBack(_) | E::Commit(..)))
        .for_each(|event| observe(&mut checker, event));
    checker.finish()
}
