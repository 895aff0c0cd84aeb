//! Fan-out: one encoding per commit, view and form; one write per subscriber and round.

use super::Answer;
use super::space::{Behind, Event, Group, Member, progress};
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
    /// Hands a round of events to every member, with the answers that waited for them, in one write each. One whose
    /// socket takes too little falls behind.
    pub(super) fn deliver(&mut self, n: u32, events: &[Event], lineage: &Lineage, metrics: &Metrics) {
        if self.members.is_empty() || events.is_empty() {
            return;
        }
        let round = self.prepare(n, events, metrics);
        let form = self.form;
        let slow = self
            .members
            .extract_if(.., |_, member| !hand_over(form, n, member, &round, lineage, metrics));
        slow.for_each(|(_, member)| member.fall_behind(Behind::Slow, metrics));
    }

    /// Hands one member that has no stream yet what it has missed.
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

/// `false`: the stream was cut, and the member stands at `at` again.
fn hand_over(
    form: Form,
    n: u32,
    member: &mut Member,
    round: &[Prepared],
    lineage: &Lineage,
    metrics: &Metrics,
) -> bool {
    let Member {
        to,
        stream,
        at,
        told,
        held,
        ..
    } = member;
    let mut out = to.outbox().hand(*stream);
    let mut changes = 0;
    for event in round {
        let before = *at;
        match event.at {
            At::Epoch(position) => {
                // One that went live ahead of the hub knows it already.
                if at.epoch == position.epoch || at.seq > position.seq {
                    continue;
                }
                if let Some(progress) = progress(told, before.seq, form, n) {
                    out.follow(before, progress);
                }
                at.epoch = position.epoch;
                if let Some(frame) = &event.frame {
                    out.follow(before, frame.clone());
                }
            }
            At::Commit(seq) if seq > at.seq => {
                at.seq = seq;
                if let Some(frame) = &event.frame {
                    *told = seq;
                    changes += 1;
                    out.follow(before, frame.clone());
                }
            }
            At::Commit(_) => {}
        }
    }
    metrics.deliveries.inc_by(changes);
    // A commit of another history that has the same seq is not the one.
    let is_due = |held: &&Answer| {
        held.at
            .is_none_or(|held| held.seq <= at.seq && lineage.holds(held, held.seq))
    };
    let due = held.iter().take_while(is_due).count();
    if due > 0 {
        if held[..due].iter().filter_map(|due| due.at).any(|due| due.seq > *told)
            && let Some(progress) = progress(told, at.seq, form, n)
        {
            out.follow(*at, progress);
        }
        held.drain(..due).for_each(|due| out.say(due.frame));
    }
    let handed = out.done();
    if handed.others {
        to.cut();
    }
    if let Some(behind) = handed.behind {
        *at = behind;
    }
    handed.behind.is_none()
}
