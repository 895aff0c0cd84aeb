//! Fan-out: one encoding per commit, view and form; one push per subscriber and round.

use super::Answer;
use super::space::{Event, Group, Member};
use crate::frame;
use crate::metrics::Metrics;
use crate::store::{Lineage, LogEntry, View};
use bytes::Bytes;
use tidegate_protocol::form::Form;
use tidegate_protocol::{Position, Seq, ServerMessage, msgpack};

/// A round's event as this group's subscribers get it.
struct Prepared {
    at: At,
    /// `None`: out of view.
    frame: Option<Bytes>,
}

enum At {
    Epoch(Position),
    Commit(Seq),
}

impl Group {
    /// Hands a round of events to every member, with the answers that waited for them, in one push each.
    pub(super) fn deliver(&mut self, n: u32, events: &[Event], lineage: &Lineage, metrics: &Metrics) {
        if self.members.is_empty() || events.is_empty() {
            return;
        }
        let round = self.prepare(n, events, metrics);
        let form = self.form;
        for member in self.members.values_mut() {
            hand_over(form, n, member, &round, lineage, metrics);
        }
    }

    /// Hands one member what it has missed.
    pub(super) fn catch_up(&self, n: u32, member: &mut Member, missed: &[Event], lineage: &Lineage, metrics: &Metrics) {
        let round = self.prepare(n, missed, metrics);
        hand_over(self.form, n, member, &round, lineage, metrics);
    }

    fn prepare(&self, n: u32, events: &[Event], metrics: &Metrics) -> Vec<Prepared> {
        events
            .iter()
            .map(|event| match event {
                Event::Epoch(position) => Prepared {
                    at: At::Epoch(*position),
                    frame: Some(frame::message(
                        self.form,
                        &ServerMessage::Epoch { n, position: *position },
                    )),
                },
                Event::Commit(commit) => {
                    let frame = change(self.form, n, &self.view, commit);
                    metrics.encodes.inc_by(u64::from(frame.is_some()));
                    Prepared {
                        at: At::Commit(commit.seq),
                        frame,
                    }
                }
            })
            .collect()
    }
}

/// A commit as a view's subscribers get it; `None` if the view covers nothing of it.
pub(crate) fn change(form: Form, n: u32, view: &View, commit: &LogEntry) -> Option<Bytes> {
    if view.collections.is_none() {
        return Some(frame::change(form, n, &commit.payload));
    }
    // What the store gives back is what the engine encoded; a payload that does not decode would be
    // a defect, and is passed over here as it would be refused by the subscriber.
    let mut decoded = msgpack::decode_payload(&commit.payload).ok()?;
    decoded.docs.retain(|doc| view.covers(&doc.doc));
    if decoded.docs.is_empty() {
        return None;
    }
    let body = msgpack::encode_body(decoded.writer, decoded.mid, &decoded.docs);
    Some(frame::change(
        form,
        n,
        &msgpack::payload(decoded.seq, decoded.at, &body),
    ))
}

fn hand_over(form: Form, n: u32, member: &mut Member, round: &[Prepared], lineage: &Lineage, metrics: &Metrics) {
    let mut frames = Vec::with_capacity(round.len() + member.held.len());
    let mut changes = 0;
    for event in round {
        match event.at {
            At::Epoch(position) => {
                // One that went live ahead of the hub knows it already.
                if member.at.epoch == position.epoch || member.at.seq > position.seq {
                    continue;
                }
                if let Some(progress) = member.progress(form, n) {
                    frames.push(progress);
                }
                member.at.epoch = position.epoch;
                frames.extend(event.frame.clone());
            }
            At::Commit(seq) if seq > member.at.seq => {
                member.at.seq = seq;
                if let Some(frame) = &event.frame {
                    member.told = seq;
                    changes += 1;
                    frames.push(frame.clone());
                }
            }
            At::Commit(_) => {}
        }
    }
    metrics.deliveries.inc_by(changes);
    let at = member.at;
    // A commit of another history that has the same seq is not the one.
    let is_due = |held: &&Answer| {
        held.at
            .is_none_or(|held| held.seq <= at.seq && lineage.holds(held, held.seq))
    };
    let due = member.held.iter().take_while(is_due).count();
    let due: Vec<_> = member.held.drain(..due).collect();
    if due.iter().filter_map(|due| due.at).any(|due| due.seq > member.told) {
        frames.extend(member.progress(form, n));
    }
    frames.extend(due.into_iter().map(|due| due.frame));
    member.to.outbox().push(frames);
}
