//! Who is subscribed to a space, in shards: the unit of locking, and of work, in a fan-out.
//!
//! A shard's lock is only ever taken while the space's is held, so that whoever holds that alone finds every shard
//! free but those which a round is bringing.

use super::ring::{Audience, COMMON};
use super::{Answer, Subscriber};
use crate::frame;
use crate::metrics::Metrics;
use crate::outbox::{Outbox, Stream};
use crate::store::View;
use bytes::Bytes;
use parking_lot::Mutex;
use smallvec::SmallVec;
use std::collections::HashMap;
use std::ops::Deref;
use std::sync::Arc;
use tidegate_protocol::form::Form;
use tidegate_protocol::{Position, Seq, ServerMessage};

/// A live subscription. What a delivery needs comes first: with the outbox at hand it looks at nothing else of the
/// connection's.
#[repr(C)]
pub(super) struct Member {
    /// Up to where it has been handed everything.
    pub(super) at: Position,
    /// Up to where it knows that: by a change, `current` or `progress`.
    pub(super) told: Seq,
    /// Answers that wait for their change, and those behind them: a client tells by their order to which of two
    /// sendings of a mid each is. A commit is published before it is answered, so what makes any wait is a round that
    /// has not come to it yet, a gap that is being filled, or an epoch that is being looked up.
    pub(super) held: Held,
    /// The connection's way out, and its stream there.
    pub(super) outbox: Arc<Outbox>,
    pub(super) stream: Stream,
    /// The connection's number.
    pub(super) id: u64,
    pub(super) sub: u64,
    pub(super) to: Arc<dyn Subscriber>,
}

/// Answers in their order; most members have none.
#[derive(Default)]
#[allow(
    clippy::box_collection,
    reason = "a list that is not there takes a third of an empty one"
)]
pub(super) struct Held(Option<Box<Vec<Answer>>>);

impl Held {
    pub(super) fn push(&mut self, answer: Answer) {
        self.0.get_or_insert_default().push(answer);
    }

    /// Takes the first so many.
    pub(super) fn take(&mut self, count: usize) -> Vec<Answer> {
        let Some(held) = &mut self.0 else { return Vec::new() };
        let first = held.drain(..count).collect();
        self.0.take_if(|held| held.is_empty());
        first
    }
}

impl Deref for Held {
    type Target = [Answer];

    fn deref(&self) -> &[Answer] {
        self.0.as_deref().map_or(&[], Vec::as_slice)
    }
}

/// Members that are brought together, in the order of their connections' numbers.
pub(super) type Shard = Mutex<Vec<Member>>;

/// A shard's place in the space.
pub(super) struct Slot {
    id: u32,
    pub(super) audience: Arc<Audience>,
    /// Where its members stand, or will when the round that is under way has brought them there; but for those who
    /// went live ahead of the hub.
    pub(super) at: Position,
    /// Connections whose place it is: members, and those that fell behind and have not left yet.
    places: u32,
    pub(super) shard: Arc<Shard>,
}

/// Connection to slot. Most spaces have few, for which a list takes less than a map.
#[derive(Default)]
struct Places {
    few: SmallVec<[(u64, u32); 1]>,
    /// All of them, once they have been more than a few, until there are none.
    #[allow(clippy::box_collection, reason = "most spaces have none")]
    many: Option<Box<HashMap<u64, u32>>>,
}

/// As many are looked through as quickly as one is looked up.
const FEW: usize = 16;

impl Places {
    fn get(&self, connection: u64) -> Option<u32> {
        match &self.many {
            Some(many) => many.get(&connection).copied(),
            None => self.few.iter().find(|few| few.0 == connection).map(|few| few.1),
        }
    }

    /// Of a connection that has none.
    fn insert(&mut self, connection: u64, slot: u32) {
        if self.many.is_none() && self.few.len() == FEW {
            self.many = Some(Box::new(std::mem::take(&mut self.few).into_iter().collect()));
        }
        match &mut self.many {
            Some(many) => {
                many.insert(connection, slot);
            }
            None => self.few.push((connection, slot)),
        }
    }

    fn remove(&mut self, connection: u64) -> Option<u32> {
        if let Some(many) = &mut self.many {
            let slot = many.remove(&connection);
            self.many.take_if(|many| many.is_empty());
            return slot;
        }
        let index = self.few.iter().position(|few| few.0 == connection)?;
        Some(self.few.swap_remove(index).1)
    }
}

/// All of a space.
#[derive(Default)]
pub(super) struct Members {
    /// By id.
    slots: Vec<Slot>,
    places: Places,
    last_id: u32,
    last_audience: u32,
    /// In a shard.
    most: u32,
    /// The slot that was last brought up.
    turn: u32,
}

impl Members {
    /// So many in a shard at most.
    pub(super) fn of(most: usize) -> Self {
        Self {
            most: u32::try_from(most).unwrap_or(u32::MAX),
            ..Self::default()
        }
    }

    /// How many shards there are.
    pub(super) fn shards(&self) -> usize {
        self.slots.len()
    }

    /// Whether a connection is, or was lately, among them.
    pub(super) fn get(&self, connection: u64) -> Option<&Slot> {
        let id = self.places.get(connection)?;
        self.slots.get(self.index(id)?)
    }

    fn index(&self, id: u32) -> Option<usize> {
        self.slots.binary_search_by_key(&id, |slot| slot.id).ok()
    }

    /// Ends every subscription. Who comes from now on starts at `position`.
    pub(super) fn end_all(&mut self, position: Position, metrics: &Metrics) {
        self.end_if(Behind::Lost, metrics, |_| true);
        self.slots.iter_mut().for_each(|slot| slot.at = position);
    }

    /// Where the one stands that is furthest behind.
    pub(super) fn least(&self) -> Option<Seq> {
        self.slots.iter().map(|slot| slot.at.seq).min()
    }

    /// The next slot in turn that does not stand at `position` and is not being brought.
    pub(super) fn next_behind(&mut self, position: Position) -> Option<&mut Slot> {
        let turn = self.slots.partition_point(|slot| slot.id <= self.turn);
        let is_behind = |slot: &Slot| slot.at != position && !slot.shard.is_locked();
        let (before, after) = self.slots.split_at_mut(turn);
        let slot = after.iter_mut().chain(before).find(|slot| is_behind(slot))?;
        self.turn = slot.id;
        Some(slot)
    }

    /// The audience of this view, form and compression, if there is one.
    pub(super) fn audience(&self, view: &View, form: Form, z: Option<usize>) -> Option<&Arc<Audience>> {
        // There may be none but those who get compressed what is made of its frames.
        self.slots
            .iter()
            .flat_map(|slot| [Some(&slot.audience), slot.audience.z.as_ref().map(|(_, plain)| plain)])
            .flatten()
            .find(|audience| audience.is(view, form, z))
    }

    /// The audience, or a new one.
    fn named(&mut self, view: &View, form: Form, z: Option<(usize, Arc<Audience>)>) -> Arc<Audience> {
        if z.is_none()
            && let Some(known) = self.audience(view, form, None)
        {
            return known.clone();
        }
        if let Some(common) = Audience::common(view, form, z.as_ref()) {
            return common;
        }
        self.last_audience += 1;
        Arc::new(Audience {
            number: COMMON + self.last_audience,
            view: view.clone(),
            form,
            z,
        })
    }

    /// The slot of an audience that has room, made at `position` if there is none.
    pub(super) fn with_room(&mut self, view: &View, form: Form, z: Option<usize>, position: Position) -> &mut Slot {
        let has_room = |slot: &Slot| slot.places < self.most && slot.audience.is(view, form, z);
        let index = self.slots.iter().position(has_room).unwrap_or_else(|| {
            let audience = match self.audience(view, form, z) {
                Some(known) => known.clone(),
                None => {
                    let z = z.map(|from| (from, self.named(view, form, None)));
                    self.named(view, form, z)
                }
            };
            self.last_id += 1;
            // Most spaces have one.
            self.slots.reserve_exact(usize::from(self.slots.len() < 4));
            self.slots.push(Slot {
                id: self.last_id,
                audience,
                at: position,
                places: 0,
                shard: Arc::default(),
            });
            self.slots.len() - 1
        });
        &mut self.slots[index]
    }

    /// Puts a member into the slot of this id, where it stands or ahead of that.
    pub(super) fn enter(&mut self, id: u32, member: Member) {
        let Some(index) = self.index(id) else { return };
        let slot = &mut self.slots[index];
        slot.places += 1;
        self.places.insert(member.id, id);
        let mut members = slot.shard.lock();
        let index = members.partition_point(|other| other.id < member.id);
        let few = usize::from(members.len() < 4);
        members.reserve_exact(few);
        members.insert(index, member);
    }

    /// A connection leaves; returns its member, unless that has fallen behind.
    pub(super) fn leave(&mut self, connection: u64) -> Option<Member> {
        let id = self.places.remove(connection)?;
        let index = self.index(id)?;
        let slot = &mut self.slots[index];
        slot.places -= 1;
        let member = {
            let mut members = slot.shard.lock();
            let found = members.binary_search_by_key(&connection, |member| member.id);
            found.ok().map(|index| members.remove(index))
        };
        if slot.places == 0 {
            self.slots.remove(index);
        }
        member
    }

    /// Ends the subscriptions of which this is true: they catch up anew.
    pub(super) fn end_if(&self, why: Behind, metrics: &Metrics, is_over: impl Fn(&Member) -> bool) {
        for slot in &self.slots {
            let mut members = slot.shard.lock();
            let over = members.extract_if(.., |member| is_over(member));
            over.for_each(|member| member.fall_behind(why, metrics));
        }
    }

    /// Tells members of filtered views how far they are, where nothing else has.
    pub(super) fn tell_progress(&self, n: u32, metrics: &Metrics) {
        for slot in &self.slots {
            let form = slot.audience.form;
            let mut members = slot.shard.lock();
            let slow = members.extract_if(.., |member| {
                let progress = progress(&mut member.told, member.at.seq, form, n);
                progress.is_some_and(|progress| !member.hand(Some(progress), None))
            });
            slow.for_each(|member| member.fall_behind(Behind::Slow, metrics));
        }
    }
}

impl Slot {
    pub(super) fn id(&self) -> u32 {
        self.id
    }
}

/// Why a subscription has to catch up anew.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Behind {
    /// Its socket takes too little.
    Slow,
    /// The node heard more than it could bring, and has forgotten the first of it.
    Trimmed,
    /// It stands on a history that was lost, or was told of one.
    Lost,
}

/// A `progress` frame up to there, if the subscriber has been told less.
pub(super) fn progress(told: &mut Seq, seq: Seq, form: Form, n: u32) -> Option<Bytes> {
    (*told < seq).then(|| {
        *told = seq;
        frame::message(form, &ServerMessage::Progress { n, seq })
    })
}

impl Member {
    /// Sends what was held back: the changes that it waited for will not come this way.
    pub(super) fn end(self) -> Arc<dyn Subscriber> {
        let mut held = self.held;
        let held = held.take(held.len());
        self.outbox.push(held.into_iter().map(|answer| answer.frame));
        self.to
    }

    /// It is no longer live, and has to catch up from where it stands.
    pub(super) fn fall_behind(self, why: Behind, metrics: &Metrics) {
        let counter = match why {
            Behind::Slow => &metrics.behind_slow,
            Behind::Trimmed => &metrics.behind_trimmed,
            Behind::Lost => &metrics.behind_lost,
        };
        counter.inc();
        let (sub, at) = (self.sub, self.at);
        self.end().behind(sub, at);
    }

    /// Hands over a `progress` and an answer, which the connection's own task sends: with the other answers of a group
    /// it is one write. `false`: the stream was cut, and the member stands at `at` again.
    fn hand(&mut self, progress: Option<Bytes>, answer: Option<Bytes>) -> bool {
        let mut out = self.outbox.hand(self.stream);
        if let Some(progress) = progress {
            out.follow(self.at, progress);
        }
        if let Some(answer) = answer {
            out.say(answer);
        }
        let handed = out.later();
        if handed.others {
            self.to.cut();
        }
        if let Some(behind) = handed.behind {
            self.at = behind;
        }
        handed.behind.is_none()
    }

    /// Sends an answer whose commit has been delivered, or was out of view. `false`: as for `hand`.
    pub(super) fn send_answer(&mut self, form: Form, n: u32, answer: Answer) -> bool {
        let untold = answer.at.is_some_and(|at| self.told < at.seq);
        let progress = untold.then(|| progress(&mut self.told, self.at.seq, form, n)).flatten();
        self.hand(progress, Some(answer.frame))
    }
}
