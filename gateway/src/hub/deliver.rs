//! Fan-out: one encoding per commit, view and form; one write per subscriber and round.
//!
//! The subscribers of a space stand in shards. A round brings one shard from where it stands to where the space
//! stands: what that takes is read, and the shard locked, under the space's lock; it is written after that is let go.
//! So the space goes on meanwhile, several shards are brought at a time, and what was committed during a round goes
//! out with the next, however much it is.

use super::Answer;
use super::members::{Behind, Member, progress};
use super::ring::{Audience, Commit};
use super::space::History;
use crate::frame;
use crate::metrics::Metrics;
use crate::outbox::SLICES;
use bytes::Bytes;
use std::io::IoSlice;
use std::sync::Arc;
use tidegate_protocol::{Position, Seq, ServerMessage};

/// What subscribers are told, in order.
#[derive(Clone)]
pub(super) enum Event {
    Epoch(Position),
    Commit(Arc<Commit>),
}

/// What a shard, or one who joins, is brought. Used again and again, so that a round allocates nothing.
#[derive(Default)]
pub(super) struct Round {
    pub(super) events: Vec<Event>,
    /// The ring reaches back to where the shard stands.
    pub(super) is_whole: bool,
    /// From where the events go on.
    pub(super) from: Position,
    /// As of when the events were read.
    pub(super) lineage: History,
    prepared: Vec<Prepared>,
}

/// An event as an audience gets it.
struct Prepared {
    at: At,
    /// `None`: out of view.
    frame: Option<Bytes>,
}

enum At {
    Epoch(Position),
    Commit(Seq),
}

/// A round as all get it who stand where it begins and wait for no answer.
struct Same<'a> {
    prepared: &'a [Prepared],
    slices: &'a [IoSlice<'a>],
    /// Of all of them.
    bytes: usize,
    /// Where it leads.
    at: Position,
    /// The last commit that is in view.
    told: Seq,
}

impl Same<'_> {
    /// `None`: it is not for this member, or its socket has to take something else first.
    fn hand(&self, from: Position, member: &mut Member, sends: &mut u64) -> Option<bool> {
        if member.at != from || !member.held.is_empty() {
            return None;
        }
        // For what the socket does not take.
        let frames = || {
            let mut before = from;
            self.prepared.iter().filter_map(move |event| {
                let stands = before;
                if let At::Commit(seq) = event.at {
                    before.seq = seq;
                }
                event.frame.as_ref().map(|frame| (stands, frame))
            })
        };
        let to = &member.outbox;
        let handed = to.hand_at_once(member.stream, self.slices, self.bytes, frames)?;
        *sends += 1;
        (member.at, member.told) = (self.at, self.told);
        if handed.others {
            member.to.cut();
        }
        if let Some(behind) = handed.behind {
            member.at = behind;
        }
        Some(handed.behind.is_none())
    }
}

impl Round {
    /// Hands everything to every member, with the answers that waited for it, in one write each. One whose socket
    /// takes too little falls behind; all do whom the ring does not reach.
    pub(super) fn deliver(&mut self, n: u32, audience: &Arc<Audience>, members: &mut Vec<Member>, metrics: &Metrics) {
        if self.is_whole {
            self.prepare(n, audience, metrics);
            let (mut changes, mut sends) = (0, 0);
            let mut slices = [IoSlice::new(&[]); SLICES];
            let same = self.same(&mut slices);
            let mut index = 0;
            while let Some(member) = members.get_mut(index) {
                let at_once = same.as_ref().and_then(|same| same.hand(self.from, member, &mut sends));
                if at_once.unwrap_or_else(|| self.hand_over(n, audience, member, None, &mut changes)) {
                    index += 1;
                } else {
                    members.remove(index).fall_behind(Behind::Slow, metrics);
                }
            }
            changes += same.map_or(0, |same| sends * same.slices.len() as u64);
            metrics.deliveries.inc_by(changes);
            metrics.sends.inc_by(sends);
        } else {
            let all = members.drain(..);
            all.for_each(|member| member.fall_behind(Behind::Trimmed, metrics));
        }
        self.clear();
    }

    /// Hands one member that has no stream yet `current` and what it has missed, in one write.
    pub(super) fn catch_up(
        &mut self,
        n: u32,
        audience: &Arc<Audience>,
        member: &mut Member,
        current: Bytes,
        metrics: &Metrics,
    ) {
        self.prepare(n, audience, metrics);
        let mut changes = 0;
        self.hand_over(n, audience, member, Some(current), &mut changes);
        metrics.deliveries.inc_by(changes);
        self.clear();
    }

    fn prepare(&mut self, n: u32, audience: &Arc<Audience>, metrics: &Metrics) {
        let prepared = self.events.iter().map(|event| match event {
            Event::Epoch(position) => Prepared {
                at: At::Epoch(*position),
                frame: Some(frame::message(
                    audience.form,
                    &ServerMessage::Epoch { n, position: *position },
                )),
            },
            Event::Commit(commit) => Prepared {
                at: At::Commit(commit.seq),
                frame: commit.frame(n, audience, metrics),
            },
        });
        self.prepared.extend(prepared);
    }

    /// The frames, where they are the same for all who stand at `from`: changes alone, and few enough for one call.
    fn same<'a>(&'a self, slices: &'a mut [IoSlice<'a>; SLICES]) -> Option<Same<'a>> {
        let (mut count, mut bytes, mut told, mut at) = (0, 0, None, self.from);
        for event in &self.prepared {
            let At::Commit(seq) = event.at else { return None };
            at.seq = seq;
            if let Some(frame) = &event.frame {
                *slices.get_mut(count)? = IoSlice::new(frame);
                (count, bytes, told) = (count + 1, bytes + frame.len(), Some(seq));
            }
        }
        Some(Same {
            prepared: &self.prepared,
            slices: &slices[..count],
            bytes,
            at,
            told: told?,
        })
    }

    fn clear(&mut self) {
        self.events.clear();
        self.prepared.clear();
    }

    /// What is different from member to member. `false`: the stream was cut, and the member stands at `at` again.
    fn hand_over(
        &self,
        n: u32,
        audience: &Audience,
        member: &mut Member,
        first: Option<Bytes>,
        changes: &mut u64,
    ) -> bool {
        let form = audience.form;
        let Member {
            at,
            told,
            held,
            outbox,
            stream,
            to,
            ..
        } = member;
        let mut out = outbox.hand(*stream);
        if let Some(first) = first {
            out.say(first);
        }
        for event in &self.prepared {
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
                        *changes += 1;
                        out.follow(before, frame.clone());
                    }
                }
                At::Commit(_) => {}
            }
        }
        // A commit of another history that has the same seq is not the one.
        let is_due = |held: &&Answer| {
            held.at
                .is_none_or(|held| held.seq <= at.seq && self.lineage.holds(held, held.seq))
        };
        let due = held.iter().take_while(is_due).count();
        if due > 0 {
            if held[..due].iter().filter_map(|due| due.at).any(|due| due.seq > *told)
                && let Some(progress) = progress(told, at.seq, form, n)
            {
                out.follow(*at, progress);
            }
            held.take(due).into_iter().for_each(|due| out.say(due.frame));
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
}
