//! The queue of one space's own mutations: mids, keys, what was sent, what was answered.
//!
//! A mutation is *unsent* until its mid is assigned; then it is *sealed*: never cancelled, coalesced or
//! encoded differently. It leaves the queue by its `ack` or `reject` only. One that was acked stays listed
//! until the confirmed state has reached it for certain, overlaid or not (see [`Mutation::overlaid`]).

use crate::sync::Entropy;
use crate::sync::event::NewIdReason;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use tidegate_protocol::limits::UNANSWERED;
use tidegate_protocol::{ClientId, DocPath, Mid, MutationKey, Op, Policy, Position, SpaceId, Write, WriteHead, Writer};

/// Mutations that may wait unanswered, online or not. Over it, a mutation is refused `too_many`.
pub const QUEUED: usize = 10_000;
/// Mids assigned at a time: few enough that most of an offline queue can still be coalesced and cancelled,
/// many enough that a durable storage syncs once for all of them.
const SEALED_AT_A_TIME: usize = 32;

/// A mutation's number in its client's queue. Never reused, and without meaning to the gateway.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct MutationId(pub u64);

/// Under which id a space's client writes, and which mid comes next. Kept for as long as the client's
/// local copy of the space.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Identity {
    /// The id.
    pub client: ClientId,
    /// The mid of the next mutation.
    pub next_mid: Mid,
    /// The key of the mutation before it; `None` exactly if `next_mid` is 1.
    pub last_key: Option<MutationKey>,
    /// The highest mid whose ack was received; 0 if none was.
    pub acked: Mid,
    /// When that was, ms since 1970.
    pub acked_at: u64,
}

impl Identity {
    /// One that has not written.
    pub fn new(client: ClientId) -> Self {
        Self {
            client,
            next_mid: Mid::ZERO.next(),
            last_key: None,
            acked: Mid::ZERO,
            acked_at: 0,
        }
    }
}

/// A mutation of one's own.
#[derive(Clone, PartialEq, Debug)]
pub struct Mutation {
    /// Its number.
    pub id: MutationId,
    /// What it does. Shared: a mutation is kept anew with each thing that becomes known of it.
    pub ops: Arc<[Op]>,
    /// What becomes of units in conflict, if not what the collection says.
    pub policy: Option<Policy>,
    /// Up to where the space had been seen when it was made.
    pub base: Option<Position>,
    /// When it was made, ms since 1970.
    pub made_at: u64,
    /// What names it on the wire, once a mid is assigned.
    pub seal: Option<Seal>,
    /// Where it was accepted; `None` while it is queued.
    pub answer: Option<Position>,
    /// Whether it is shown over the confirmed state. From the step on in which its effect enters that, it
    /// is not: an `inc` would be counted twice.
    pub overlaid: bool,
    /// About how many bytes it takes.
    pub size: usize,
}

/// A mutation's name on the wire.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Seal {
    /// The id under which it was assigned.
    pub client: ClientId,
    /// The writer that stands in its change.
    pub writer: Writer,
    /// Its number.
    pub mid: Mid,
    /// Its mark.
    pub key: MutationKey,
    /// The mark of the one before.
    pub prev: Option<MutationKey>,
    /// At mid 1: the `now` of a `welcome`.
    pub first: Option<u64>,
}

impl Mutation {
    /// The documents it touches; one may come twice.
    pub fn docs(&self) -> impl Iterator<Item = &DocPath> {
        self.ops.iter().map(|op| &op.doc)
    }

    /// Whether it waits for its answer.
    pub fn is_queued(&self) -> bool {
        self.answer.is_none()
    }
}

/// What the queue needs of the connection to assign mids.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SealWith<'a> {
    /// The name that the `welcome` gave.
    pub(crate) user: &'a str,
    /// The `now` of the `welcome`, ms since 1970.
    pub(crate) welcomed_at: u64,
}

/// Own mutations of one space, in order.
#[derive(Debug)]
pub struct Queue {
    identity: Identity,
    /// In order of their numbers: sealed ones before unsent ones.
    mutations: BTreeMap<MutationId, Mutation>,
    next_id: u64,
    /// How many of `mutations` are sealed under the present id and unanswered, and how many unsent.
    sealed: usize,
    unsent: usize,
    bytes: usize,
    /// The mid to send next on this connection; those before it are on their way.
    cursor: Mid,
    /// Sendings on this connection that have no answer, by mid, in order. A mid is sent again after the
    /// queue went back; and after a new id was taken, answers to the old one's mids are still to come.
    outstanding: BTreeMap<Mid, VecDeque<Sending>>,
    /// What changed since `take_changes`.
    changed: Vec<MutationId>,
    identity_changed: bool,
}

#[derive(Clone, Copy, Debug)]
struct Sending {
    client: ClientId,
    /// The highest mid acked when it was sent.
    acked: Mid,
    /// An ack of an earlier sending has come.
    was_acked: bool,
}

/// What an answer is to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Answered {
    /// The mutation, if it is listed: queued, or acked and not confirmed.
    pub(crate) id: Option<MutationId>,
    /// The highest mid acked when it was sent.
    pub(crate) acked: Mid,
    /// Whether the same mid was sent again since.
    pub(crate) sent_again: bool,
    /// Whether an earlier answer to it was an ack.
    pub(crate) was_acked: bool,
}

impl Queue {
    /// With what was kept from an earlier run.
    pub(crate) fn restore(identity: Identity, mutations: BTreeMap<MutationId, Mutation>, is_new: bool) -> Self {
        let mut queue = Self {
            identity,
            next_id: mutations.last_key_value().map_or(0, |(id, _)| id.0 + 1),
            mutations,
            sealed: 0,
            unsent: 0,
            bytes: 0,
            cursor: Mid::ZERO,
            outstanding: BTreeMap::new(),
            changed: Vec::new(),
            identity_changed: is_new,
        };
        queue.count();
        queue.rewind();
        queue
    }

    fn count(&mut self) {
        let client = self.identity.client;
        let queued = || self.mutations.values().filter(|m| m.is_queued());
        self.sealed = queued()
            .filter(|m| m.seal.is_some_and(|seal| seal.client == client))
            .count();
        self.unsent = queued().filter(|m| m.seal.is_none()).count();
        self.bytes = self.mutations.values().map(|m| m.size).sum();
    }

    /// Under which id the space is written.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Every mutation that is queued, or acked and not confirmed, in order.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = &Mutation> {
        self.mutations.values()
    }

    /// A mutation.
    pub fn get(&self, id: MutationId) -> Option<&Mutation> {
        self.mutations.get(&id)
    }

    /// How many mutations wait for their answer.
    pub fn queued(&self) -> usize {
        self.sealed + self.unsent
    }

    /// Their bytes, and those of the ones that are not confirmed.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// The last mutation, if its mid is not assigned.
    pub(crate) fn last_unsent(&self) -> Option<&Mutation> {
        self.mutations
            .last_key_value()
            .map(|(_, m)| m)
            .filter(|m| m.is_queued() && m.seal.is_none())
    }

    /// Queues a mutation; gives it its number.
    pub(crate) fn push(&mut self, mut mutation: Mutation) -> MutationId {
        let id = MutationId(self.next_id);
        self.next_id += 1;
        mutation.id = id;
        self.unsent += 1;
        self.bytes += mutation.size;
        self.mutations.insert(id, mutation);
        self.changed.push(id);
        id
    }

    /// Changes an unsent mutation.
    pub(crate) fn replace_ops(&mut self, id: MutationId, ops: Arc<[Op]>, size: usize) {
        if let Some(mutation) = self.mutations.get_mut(&id) {
            self.bytes = self.bytes + size - mutation.size;
            mutation.ops = ops;
            mutation.size = size;
            self.changed.push(id);
        }
    }

    /// Takes a mutation out altogether.
    pub(crate) fn remove(&mut self, id: MutationId) -> Option<Mutation> {
        let mutation = self.mutations.remove(&id)?;
        self.bytes -= mutation.size;
        if mutation.is_queued() {
            match mutation.seal {
                Some(_) => self.sealed -= 1,
                None => self.unsent -= 1,
            }
        }
        self.changed.push(id);
        Some(mutation)
    }

    /// Shows a mutation, or no longer. Returns whether that is new.
    pub(crate) fn set_overlaid(&mut self, id: MutationId, overlaid: bool) -> bool {
        match self.mutations.get_mut(&id) {
            Some(mutation) if mutation.overlaid != overlaid => {
                mutation.overlaid = overlaid;
                self.changed.push(id);
                true
            }
            _ => false,
        }
    }

    /// A mutation was accepted: it leaves the queue, and stays listed until it is confirmed. Says whether for the
    /// first time.
    pub(crate) fn accept(&mut self, id: MutationId, position: Position, wall_ms: u64) -> bool {
        let Some(mutation) = self.mutations.get_mut(&id) else {
            return false;
        };
        let first = mutation.answer.replace(position).is_none();
        self.sealed -= usize::from(first);
        if let Some(seal) = mutation.seal {
            self.identity.acked = self.identity.acked.max(seal.mid);
            self.identity.acked_at = wall_ms;
            self.identity_changed = true;
        }
        self.changed.push(id);
        first
    }

    /// A new epoch counts acks of the one before it as its own.
    pub(crate) fn set_answer(&mut self, id: MutationId, position: Position) {
        if let Some(mutation) = self.mutations.get_mut(&id) {
            mutation.answer = Some(position);
            self.changed.push(id);
        }
    }

    /// The connection is another: everything unanswered is sent again from the first on.
    pub(crate) fn rewind(&mut self) {
        self.outstanding.clear();
        self.cursor = Mid::ZERO;
    }

    /// Sends again from `mid` on.
    pub(crate) fn go_back(&mut self, mid: Mid) {
        self.cursor = self.cursor.min(mid);
    }

    /// Whether the mutation of this mid is held: what `out_of_order` asks for can be sent.
    pub(crate) fn holds(&self, mid: Mid) -> bool {
        self.sealed_from(mid).next().is_some_and(|(_, seal)| seal.mid == mid) || mid == self.identity.next_mid
    }

    /// Whether a mid is on its way, so that an answer is still to come.
    pub(crate) fn is_sent(&self, mid: Mid) -> bool {
        self.outstanding.contains_key(&mid)
    }

    /// Whether a mutation of a mid before this one waits for its answer.
    pub(crate) fn waits_before(&self, mid: Mid) -> bool {
        self.sealed_from(Mid::ZERO)
            .next()
            .is_some_and(|(_, seal)| seal.mid < mid)
    }

    /// Queued mutations with a mid of the present id that is `from` or later.
    fn sealed_from(&self, from: Mid) -> impl Iterator<Item = (&Mutation, Seal)> {
        let client = self.identity.client;
        self.mutations
            .values()
            .take_while(|m| m.seal.is_some() || !m.is_queued())
            .filter(|m| m.is_queued())
            .filter_map(|m| Some((m, m.seal?)))
            .filter(move |(_, seal)| seal.client == client && seal.mid >= from)
    }

    /// Whether there is something to send.
    pub(crate) fn has_work(&self) -> bool {
        (self.unsent > 0 && self.sealed < UNANSWERED) || self.sealed_from(self.cursor).next().is_some()
    }

    /// The next write. If mids were assigned for it, they have to be kept before it is sent.
    pub(crate) fn next_write(
        &mut self,
        space: &SpaceId,
        with: SealWith<'_>,
        message_bytes: usize,
        entropy: &mut dyn Entropy,
    ) -> Option<Write> {
        if self.sealed_from(self.cursor).next().is_none() {
            self.seal(with, entropy);
        }
        let (mutation, seal) = self.sealed_from(self.cursor).next()?;
        // An answer does not say under which id: what a former one sent with this mid has to be answered first.
        let former = |sending: &Sending| sending.client != seal.client;
        if self.outstanding.get(&seal.mid).is_some_and(|of| of.iter().any(former)) {
            return None;
        }
        // One that is too large under new limits is settled by its name alone.
        let fits = mutation.size <= message_bytes;
        let write = Write {
            head: WriteHead {
                space: space.clone(),
                client: seal.client,
                mid: seal.mid,
                key: seal.key,
                prev: seal.prev,
                first: seal.first,
            },
            base: mutation.base.filter(|_| fits),
            policy: mutation.policy.filter(|_| fits),
            ops: if fits { mutation.ops.to_vec() } else { Vec::new() },
        };
        self.cursor = seal.mid.next();
        let sending = Sending {
            client: seal.client,
            acked: self.identity.acked,
            was_acked: false,
        };
        self.outstanding.entry(seal.mid).or_default().push_back(sending);
        Some(write)
    }

    fn seal(&mut self, with: SealWith<'_>, entropy: &mut dyn Entropy) {
        let room = UNANSWERED
            .saturating_sub(self.sealed)
            .min(SEALED_AT_A_TIME)
            .min(self.unsent);
        if room == 0 {
            return;
        }
        let writer = Writer::of(with.user, self.identity.client);
        // What was acked may stand between: a gateway may ack in another order, and then refuse the id.
        let unsent = self
            .mutations
            .values_mut()
            .filter(|m| m.is_queued() && m.seal.is_none());
        for mutation in unsent.take(room) {
            let mid = self.identity.next_mid;
            let key = MutationKey(entropy.next_u64());
            mutation.seal = Some(Seal {
                client: self.identity.client,
                writer,
                mid,
                key,
                prev: self.identity.last_key,
                first: self.identity.last_key.is_none().then_some(with.welcomed_at),
            });
            self.identity.next_mid = mid.next();
            self.identity.last_key = Some(key);
            self.changed.push(mutation.id);
        }
        self.identity_changed = true;
        self.sealed += room;
        self.unsent -= room;
    }

    /// Takes note of an answer, which may be an ack. `None`: to nothing that was sent under the present id on this
    /// connection.
    pub(crate) fn answered(&mut self, mid: Mid, is_ack: bool) -> Option<Answered> {
        let sendings = self.outstanding.get_mut(&mid)?;
        let sending = sendings.pop_front()?;
        let sent_again = !sendings.is_empty();
        for again in sendings.iter_mut().filter(|again| again.client == sending.client) {
            again.was_acked |= is_ack || sending.was_acked;
        }
        if sendings.is_empty() {
            self.outstanding.remove(&mid);
        }
        if sending.client != self.identity.client {
            return None;
        }
        let named = |m: &&Mutation| {
            m.seal
                .is_some_and(|seal| seal.client == sending.client && seal.mid == mid)
        };
        let mut sealed = self.mutations.values().take_while(|m| m.seal.is_some());
        let id = sealed.find(named).map(|m| m.id);
        Some(Answered {
            id,
            acked: sending.acked,
            sent_again,
            was_acked: sending.was_acked,
        })
    }

    /// The mutation that this change is.
    pub(crate) fn by_writer(&self, writer: Writer, mid: Mid) -> Option<MutationId> {
        let sealed = self.mutations.values().take_while(|m| m.seal.is_some());
        sealed
            .filter(|m| m.seal.is_some_and(|s| s.writer == writer && s.mid == mid))
            .map(|m| m.id)
            .next()
    }

    /// Takes a new id. Queued mutations are renumbered under it, in order, if none of them was applied; else those
    /// that were sealed are taken out and returned.
    pub(crate) fn take_new_id(&mut self, client: ClientId, why: NewIdReason) -> Vec<Mutation> {
        let keep_sealed = matches!(why, NewIdReason::Cloned | NewIdReason::Gap);
        let mut out = Vec::new();
        self.identity = Identity::new(client);
        self.identity_changed = true;
        let sealed: Vec<_> = self
            .mutations
            .values()
            .filter(|m| m.is_queued() && m.seal.is_some())
            .map(|m| m.id)
            .collect();
        for id in sealed {
            if keep_sealed {
                if let Some(mutation) = self.mutations.get_mut(&id) {
                    mutation.seal = None;
                    // What was taken for its change was another's.
                    mutation.overlaid |= why == NewIdReason::Cloned;
                }
                self.changed.push(id);
            } else {
                out.extend(self.remove(id));
            }
        }
        self.count();
        self.cursor = Mid::ZERO;
        out
    }

    /// What changed since the last call.
    pub(crate) fn take_changes(&mut self) -> (Option<Identity>, Vec<MutationId>) {
        let identity = std::mem::take(&mut self.identity_changed).then_some(self.identity);
        (identity, std::mem::take(&mut self.changed))
    }
}
