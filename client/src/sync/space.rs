//! One space: its confirmed state, its queue, the overlay of one on the other, and its subscription.

use crate::storage::{SpaceChanges, StoredSpace};
use crate::sync::event::{Acked, Loss, LostMutation, NewIdReason, Refusal, SpaceEvent, WatchItem, WriteError};
use crate::sync::overlay::{LocalDoc, Overlay};
use crate::sync::queue::{Identity, Mutation, MutationId, QUEUED, Queue, SealWith};
use crate::sync::replica::{Replica, Violation};
use crate::sync::{Entropy, Now, exact_sum};
use std::collections::{BTreeMap, BTreeSet};
use tidegate_protocol::limits::UNANSWERED;
use tidegate_protocol::{
    Ack, Action, Begin, ClientId, Code, Collection, Commit, DocChange, DocPath, Fields, Limits, Mid, Mode, Op, OpKind,
    Policy, Position, Reject, Seq, SpaceId, Sub, Write, Writer,
};

/// How long a gateway keeps a client's record after its last write, ms: an ack older than this proves no loss.
const RECORDS_KEPT_MS: u64 = 90 * 24 * 60 * 60 * 1000;
/// Bytes of mutations that may wait in a space. Over it, a mutation is refused `too_large`.
const QUEUED_BYTES: usize = 64 << 20;
/// What a temporary refusal without `retry_ms` waits, ms.
const RETRY_MS: u64 = 1_000;

/// A mutation as an app asks for it.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Request {
    /// What it does.
    pub ops: Vec<Op>,
    /// What becomes of units in conflict, if not what the collection says.
    pub policy: Option<Policy>,
    /// Whether edits of a document that is in the local view may bring it back if it was deleted meanwhile.
    pub upsert: bool,
    /// Whether it may become one mutation with the one before it, if that is unsent.
    pub coalesce: bool,
}

/// A subscription as far as it has been answered.
#[derive(Clone, Copy, Debug)]
struct Sent {
    id: u64,
    client: ClientId,
    /// The highest mid acked before the `sub` was sent, and when.
    acked: Mid,
    acked_at: u64,
    answered: bool,
}

/// One space of a client.
#[derive(Debug)]
pub struct Space {
    name: SpaceId,
    replica: Replica,
    queue: Queue,
    overlay: Overlay,
    /// Whether the app wants a subscription, and with which filter.
    wanted: Option<Option<Vec<Collection>>>,
    /// Subscriptions sent on this connection that may still be answered, oldest first.
    sent: Vec<Sent>,
    /// The subscription that the last `begin` named.
    begun: Option<u64>,
    /// Whether the confirmed state follows the gateway.
    live: bool,
    denied: Option<Code>,
    /// Nothing is sent before this (monotonic ms), after a temporary refusal.
    not_before: Option<u64>,
    /// When to subscribe again (monotonic ms), after a temporary denial.
    resubscribe_at: Option<u64>,
    needs_sub: bool,
    events: Vec<SpaceEvent>,
    standing_changed: bool,
    /// Documents whose local view is to be evaluated anew at the end of the step.
    dirty: BTreeSet<DocPath>,
    unsaved_docs: BTreeSet<DocPath>,
    unsaved_clear: bool,
}

impl Space {
    pub(crate) fn new(name: SpaceId, stored: Option<StoredSpace>, entropy: &mut dyn Entropy) -> Self {
        let stored = stored.unwrap_or_default();
        let identity = stored
            .identity
            .unwrap_or_else(|| Identity::new(ClientId(entropy.next_u64())));
        let mut overlay = Overlay::default();
        let mut dirty = BTreeSet::new();
        for mutation in stored.queue.values() {
            overlay.insert(mutation);
            dirty.extend(mutation.docs().cloned());
        }
        let mut space = Self {
            name,
            replica: Replica::restore(stored.docs, stored.standing),
            queue: Queue::restore(identity, stored.queue, stored.identity.is_none()),
            overlay,
            wanted: None,
            sent: Vec::new(),
            begun: None,
            live: false,
            denied: None,
            not_before: None,
            resubscribe_at: None,
            needs_sub: false,
            events: Vec::new(),
            standing_changed: false,
            dirty,
            unsaved_docs: BTreeSet::new(),
            unsaved_clear: false,
        };
        space.finish();
        space.events.clear();
        space
    }

    /// Its name.
    pub fn name(&self) -> &SpaceId {
        &self.name
    }

    /// The confirmed state.
    pub fn replica(&self) -> &Replica {
        &self.replica
    }

    /// The own mutations.
    pub fn queue(&self) -> &Queue {
        &self.queue
    }

    /// Whether local views may be behind the gateway.
    pub fn from_cache(&self) -> bool {
        !self.live
    }

    /// Whether the app wants a subscription.
    pub fn is_wanted(&self) -> bool {
        self.wanted.is_some()
    }

    /// The code with which the subscription was ended or not begun.
    pub fn denied_by(&self) -> Option<Code> {
        self.denied
    }

    /// A document as the app sees it.
    pub fn view(&self, doc: &DocPath) -> LocalDoc {
        match self.overlay.get(doc) {
            Some(local) => local.clone(),
            None => LocalDoc {
                leaves: self.replica.docs().get(doc).cloned(),
                pending: false,
            },
        }
    }

    /// Whether a document exists in the local view.
    pub fn exists(&self, doc: &DocPath) -> bool {
        match self.overlay.get(doc) {
            Some(local) => local.leaves.is_some(),
            None => self.replica.docs().contains_key(doc),
        }
    }

    /// Every document that exists in the local view, by path.
    pub fn docs(&self) -> BTreeSet<DocPath> {
        let mut all: BTreeSet<_> = self.replica.docs().keys().cloned().collect();
        for (doc, local) in self.overlay.iter() {
            if local.leaves.is_some() {
                all.insert(doc.clone());
            } else {
                all.remove(doc);
            }
        }
        all
    }

    // The app's side.

    pub(crate) fn subscribe(&mut self, filter: Option<Vec<Collection>>) {
        if self.wanted.as_ref() != Some(&filter) || self.denied.is_some() {
            self.wanted = Some(filter);
            self.denied = None;
            self.needs_sub = true;
        }
    }

    /// Returns the number of the subscription to end, if one was sent.
    pub(crate) fn unsubscribe(&mut self) -> Option<u64> {
        self.wanted = None;
        self.needs_sub = false;
        self.resubscribe_at = None;
        let id = self.sent.last().map(|sent| sent.id);
        self.detach_subscription();
        self.finish();
        id
    }

    pub(crate) fn mutate(
        &mut self,
        now: Now,
        request: Request,
        check: impl Fn(&Write) -> Result<usize, Refusal>,
        limits: &Limits,
    ) -> Result<MutationId, Refusal> {
        let Request {
            mut ops,
            policy,
            upsert,
            coalesce,
        } = request;
        if ops.is_empty() {
            return Err(Refusal::new(Code::Invalid, "a mutation needs at least one op"));
        }
        let base = self.replica.position();
        if base.is_none() && matches!(policy, Some(Policy::Reject | Policy::Merge)) {
            let message = "policy reject and merge need a base: subscribe to the space and wait until it is current";
            return Err(Refusal::new(Code::Invalid, message));
        }
        if self.queue.queued() >= QUEUED {
            return Err(Refusal::new(
                Code::TooMany,
                format!("mutations waiting in a space are limited to {QUEUED}"),
            ));
        }
        if coalesce && let Some(id) = self.coalesce(&ops, policy, base, upsert, &check, limits) {
            self.finish();
            return Ok(id);
        }
        if !upsert {
            for op in &mut ops {
                if op.exists.is_none() && is_edit(&op.kind) && self.exists(&op.doc) {
                    op.exists = Some(true);
                }
            }
        }
        let size = check(&self.as_write(&ops, policy, base))?;
        if self.queue.bytes() + size > QUEUED_BYTES {
            let message = format!("bytes of mutations waiting in a space are limited to {QUEUED_BYTES}");
            return Err(Refusal::new(Code::TooLarge, message));
        }
        let mutation = Mutation {
            id: MutationId(0),
            ops,
            policy,
            base,
            made_at: now.wall_ms,
            seal: None,
            answer: None,
            overlaid: true,
            size,
        };
        let id = self.queue.push(mutation);
        if let Some(mutation) = self.queue.get(id) {
            self.overlay.insert(mutation);
            self.dirty.extend(mutation.docs().cloned());
        }
        self.finish();
        Ok(id)
    }

    /// A write of the largest envelope that the mutation may get.
    fn as_write(&self, ops: &[Op], policy: Option<Policy>, base: Option<Position>) -> Write {
        let largest = Mid::new(tidegate_protocol::limits::SEQ_LIMIT - 1).unwrap_or(Mid::ZERO);
        Write {
            head: tidegate_protocol::WriteHead {
                space: self.name.clone(),
                client: ClientId(u64::MAX),
                mid: largest,
                key: tidegate_protocol::MutationKey(u64::MAX),
                prev: Some(tidegate_protocol::MutationKey(u64::MAX)),
                first: None,
            },
            base,
            policy,
            ops: ops.to_vec(),
        }
    }

    /// Makes one op part of the last mutation if that is unsent, has the same base and policy, and is one
    /// op of the same kind on the same document. Only the last, so that nothing changes places.
    fn coalesce(
        &mut self,
        ops: &[Op],
        policy: Option<Policy>,
        base: Option<Position>,
        upsert: bool,
        check: impl Fn(&Write) -> Result<usize, Refusal>,
        limits: &Limits,
    ) -> Option<MutationId> {
        let last = self.queue.last_unsent()?;
        let ([old], [new]) = (last.ops.as_slice(), ops) else {
            return None;
        };
        let plain = new.exists.is_none() && new.unchanged_since.is_none() && old.unchanged_since.is_none();
        // An upsert folded into a guarded edit would be guarded, and the other way round.
        let same_guard = !upsert || old.exists.is_none();
        if !plain || !same_guard || old.doc != new.doc || last.policy != policy || last.base != base {
            return None;
        }
        let kind = fold(&old.kind, &new.kind, limits)?;
        let ops = vec![Op { kind, ..old.clone() }];
        let size = check(&self.as_write(&ops, policy, base)).ok()?;
        let id = last.id;
        let doc = old.doc.clone();
        self.queue.replace_ops(id, ops, size);
        self.dirty.insert(doc);
        Some(id)
    }

    /// Takes back a mutation that is unsent.
    pub(crate) fn cancel(&mut self, id: MutationId) -> bool {
        if self.queue.get(id).is_none_or(|m| m.seal.is_some() || !m.is_queued()) {
            return false;
        }
        self.fail(id, WriteError::Cancelled);
        self.finish();
        true
    }

    // The connection's side.

    /// A connection was welcomed.
    pub(crate) fn attach(&mut self) {
        self.queue.rewind();
        self.not_before = None;
        self.resubscribe_at = None;
        self.needs_sub = self.wanted.is_some();
        self.denied = None;
    }

    /// The connection is gone.
    pub(crate) fn detach(&mut self) {
        self.queue.rewind();
        self.detach_subscription();
        self.finish();
    }

    fn detach_subscription(&mut self) {
        self.sent.clear();
        self.begun = None;
        self.replica.detach();
        self.set_live(false);
    }

    fn set_live(&mut self, live: bool) {
        if self.live != live {
            self.live = live;
            self.events.push(SpaceEvent::FromCache(!live));
        }
    }

    /// The `sub` to send, if one is due.
    pub(crate) fn next_sub(&mut self, now: Now, id: u64) -> Option<Sub> {
        if self.resubscribe_at.is_some_and(|at| at <= now.mono_ms) {
            self.resubscribe_at = None;
            self.needs_sub = self.wanted.is_some();
            self.denied = None;
        }
        if !std::mem::take(&mut self.needs_sub) {
            return None;
        }
        let filter = self.wanted.clone()?;
        let identity = self.queue.identity();
        self.sent.push(Sent {
            id,
            client: identity.client,
            acked: identity.acked,
            acked_at: identity.acked_at,
            answered: false,
        });
        Some(Sub {
            id,
            space: self.name.clone(),
            client: Some(identity.client),
            from: self.replica.resume_from(),
            filter,
        })
    }

    /// The next `write` to send, if one is due.
    pub(crate) fn next_write(
        &mut self,
        now: Now,
        user: &str,
        welcomed_at: u64,
        message_bytes: usize,
        entropy: &mut dyn Entropy,
    ) -> Option<Write> {
        if self.not_before.is_some_and(|at| at > now.mono_ms) {
            return None;
        }
        self.not_before = None;
        let writer = Writer::of(user, self.queue.identity().client);
        self.queue
            .next_write(&self.name, SealWith { writer, welcomed_at }, message_bytes, entropy)
    }

    /// When something becomes due by time alone (monotonic ms).
    pub(crate) fn deadline(&self) -> Option<u64> {
        let write = self.not_before.filter(|_| self.queue.has_work());
        write.into_iter().chain(self.resubscribe_at).min()
    }

    pub(crate) fn begin(&mut self, begin: &Begin) -> Result<(), Violation> {
        self.replica.begin(begin)?;
        self.begun = Some(begin.id);
        if let Some(at) = self.sent.iter().position(|sent| sent.id == begin.id) {
            self.sent.drain(..at);
        }
        self.set_live(false);
        Ok(())
    }

    pub(crate) fn page(&mut self, docs: Vec<DocChange>, cursor: bytes::Bytes) -> Result<(), Violation> {
        self.replica.page(docs, cursor)
    }

    pub(crate) fn current(
        &mut self,
        now: Now,
        id: u64,
        position: Position,
        last_mid: Option<Mid>,
        entropy: &mut dyn Entropy,
    ) -> Result<(), Violation> {
        let before = self.replica.position();
        let (mode, items) = self.replica.current(position)?;
        self.standing_changed = true;
        let sent = self.sent.iter_mut().find(|sent| sent.id == id);
        let (client, answers) = match sent {
            Some(sent) => {
                let first = !std::mem::replace(&mut sent.answered, true);
                (Some(sent.client), first.then_some((sent.acked, sent.acked_at)))
            }
            None => (None, None),
        };
        let reached = last_mid.unwrap_or(Mid::ZERO);
        let mut lost = None;
        if client == Some(self.queue.identity().client) {
            self.settle_overlay(reached, mode);
            if let Some((acked, acked_at)) = answers {
                let forgotten = last_mid.is_none() && now.wall_ms.saturating_sub(acked_at) >= RECORDS_KEPT_MS;
                lost = (reached < acked && !forgotten).then_some((reached.next(), acked));
            }
        }
        self.confirm_position();
        if let (Some(before), Mode::Reset) = (before, mode)
            && before.epoch != position.epoch
        {
            self.drop_acks_of_ended_epoch(before);
        }
        self.events.push(SpaceEvent::Confirmed(items));
        self.denied = None;
        self.set_live(true);
        if let Some((from, through)) = lost {
            self.lose(from, through, entropy);
        }
        self.finish();
        Ok(())
    }

    /// The state of a `current` holds the client's mutations up to `reached`, or they were refused.
    fn settle_overlay(&mut self, reached: Mid, mode: Mode) {
        let client = self.queue.identity().client;
        let sealed: Vec<_> = self
            .queue
            .iter()
            .filter_map(|m| Some((m.id, m.seal.filter(|seal| seal.client == client)?.mid, m.is_queued())))
            .collect();
        for (id, mid, queued) in sealed {
            if mid <= reached {
                self.end_overlay(id);
            } else if mode == Mode::Reset && queued && self.queue.set_overlaid(id, true) {
                // Its change had been seen, and is not in the new history.
                self.touch(id);
            }
        }
    }

    /// Acks up to the confirmed position have their effect in it.
    fn confirm_position(&mut self) {
        let Some(position) = self.replica.position() else {
            return;
        };
        let reached = |m: &&Mutation| {
            m.answer
                .is_some_and(|ack| ack.epoch == position.epoch && ack.seq <= position.seq)
        };
        let ids: Vec<_> = self.queue.iter().filter(reached).map(|m| m.id).collect();
        for id in ids {
            self.end_overlay(id);
        }
    }

    /// The history of a reset does not hold what was acked in the epoch before, unless `last_mid` said so.
    fn drop_acks_of_ended_epoch(&mut self, before: Position) {
        let ids: Vec<_> = self
            .queue
            .iter()
            .filter(|m| m.answer.is_some_and(|ack| ack.epoch == before.epoch))
            .map(|m| m.id)
            .collect();
        for id in ids {
            self.end_overlay(id);
        }
    }

    pub(crate) fn commit(&mut self, commit: Commit) -> Result<(), Violation> {
        let Commit {
            seq, writer, mid, docs, ..
        } = commit;
        let Some(items) = self.replica.commit(seq, docs)? else {
            return Ok(());
        };
        self.standing_changed = true;
        if let Some(id) = self.queue.by_writer(writer, mid) {
            self.end_overlay(id);
        }
        self.confirm_position();
        self.events.push(SpaceEvent::Confirmed(items));
        self.finish();
        Ok(())
    }

    pub(crate) fn progress(&mut self, seq: Seq) -> Result<(), Violation> {
        self.replica.progress(seq)?;
        self.standing_changed = true;
        self.confirm_position();
        self.finish();
        Ok(())
    }

    pub(crate) fn epoch(&mut self, position: Position, entropy: &mut dyn Entropy) -> Result<(), Violation> {
        let old = self.replica.position();
        self.replica.epoch(position)?;
        self.standing_changed = true;
        self.events.push(SpaceEvent::Epoch(position));
        let of_old: Vec<_> = self
            .queue
            .iter()
            .filter_map(|m| Some((m.id, m.seal?, m.answer?)))
            .filter(|(_, _, ack)| old.is_some_and(|old| old.epoch == ack.epoch))
            .collect();
        let mut lost: Option<(Mid, Mid)> = None;
        for (id, seal, ack) in of_old {
            if ack.seq <= position.seq {
                self.queue.set_answer(id, Position::new(position.epoch, ack.seq));
            } else if seal.client == self.queue.identity().client {
                let (from, through) = lost.unwrap_or((seal.mid, seal.mid));
                lost = Some((from.min(seal.mid), through.max(seal.mid)));
            } else {
                self.end_overlay(id);
            }
        }
        self.confirm_position();
        if let Some((from, through)) = lost {
            self.lose(from, through, entropy);
        }
        self.finish();
        Ok(())
    }

    /// Returns whether to try again later.
    pub(crate) fn denied(&mut self, now: Now, id: u64, code: Code, purge: bool, retry_ms: u64) {
        // One that was replaced or ended is of no interest, but for the purge.
        let is_latest = self.sent.last().is_some_and(|sent| sent.id == id);
        if purge {
            self.replica.purge();
            self.standing_changed = true;
            let acked: Vec<_> = self.queue.iter().filter(|m| !m.is_queued()).map(|m| m.id).collect();
            for id in acked {
                self.end_overlay(id);
            }
            self.events.push(SpaceEvent::Confirmed(vec![WatchItem::Reset]));
        }
        if is_latest {
            self.detach_subscription();
            self.denied = Some(code);
            if code.row().action == Action::Retry {
                self.resubscribe_at = Some(now.mono_ms + retry_ms);
            }
            self.events.push(SpaceEvent::Denied { code, purged: purge });
        }
        self.finish();
    }

    pub(crate) fn ack(&mut self, now: Now, ack: Ack) {
        let Some(answered) = self.queue.answered(ack.mid) else {
            return;
        };
        let Some(id) = answered.id else { return };
        self.queue.accept(id, ack.position, now.wall_ms);
        self.touch(id);
        self.confirm_position();
        if self.queue.get(id).is_some_and(|m| !m.overlaid) {
            self.take_out(id);
        } else if self.wanted.is_none() || self.denied.is_some() {
            self.bound_unconfirmed();
        }
        let Ack {
            mid,
            position,
            conflicts,
            skipped,
            ..
        } = ack;
        let outcome = Ok(Acked {
            position,
            mid,
            conflicts,
            skipped,
        });
        self.events.push(SpaceEvent::Settled {
            id,
            outcome,
            ops: Vec::new(),
        });
        self.finish();
    }

    /// Without a subscription nothing confirms what was acked: without a confirmed state it need not be
    /// shown over one, and over an old one the last [`UNANSWERED`] are.
    fn bound_unconfirmed(&mut self) {
        let keep = if self.replica.standing().is_some() {
            UNANSWERED
        } else {
            0
        };
        let acked: Vec<_> = self.queue.iter().filter(|m| !m.is_queued()).map(|m| m.id).collect();
        for id in &acked[..acked.len().saturating_sub(keep)] {
            self.end_overlay(*id);
        }
    }

    pub(crate) fn reject(&mut self, now: Now, reject: Reject, entropy: &mut dyn Entropy) {
        let Some(answered) = self.queue.answered(reject.mid) else {
            return;
        };
        match reject.code.row().action {
            Action::Settle => {
                let Some(id) = answered.id else { return };
                let Reject {
                    code,
                    message,
                    at,
                    cells,
                    ..
                } = reject;
                self.fail(
                    id,
                    Refusal {
                        code,
                        message,
                        at,
                        cells,
                    }
                    .into(),
                );
            }
            Action::GoBack => match reject.expected {
                Some(expected) if expected <= answered.acked => self.lose(expected, answered.acked, entropy),
                Some(expected) if self.queue.holds(expected) => {
                    if !answered.sent_again {
                        self.queue.go_back(expected);
                    }
                }
                // What the gateway waits for is not here, so nothing of the queue was applied.
                Some(_) => self.take_new_id(NewIdReason::Gap, entropy),
                None => self.back_off(now, &reject, answered.sent_again),
            },
            Action::NewClient if reject.code == Code::ClientCloned => self.take_new_id(NewIdReason::Cloned, entropy),
            Action::NewClient => self.take_new_id(NewIdReason::Unknown, entropy),
            _ => self.back_off(now, &reject, answered.sent_again),
        }
        self.finish();
    }

    fn back_off(&mut self, now: Now, reject: &Reject, sent_again: bool) {
        if !sent_again {
            self.queue.go_back(reject.mid);
            self.not_before = Some(now.mono_ms + reject.retry_ms.unwrap_or(RETRY_MS));
        }
    }

    /// The gateway lost mutations that it had acked.
    fn lose(&mut self, from: Mid, through: Mid, entropy: &mut dyn Entropy) {
        let client = self.queue.identity().client;
        let known: Vec<_> = self
            .queue
            .iter()
            .filter(|m| !m.is_queued())
            .filter_map(|m| Some((m, m.seal?)))
            .filter(|(_, seal)| seal.client == client && seal.mid >= from)
            .map(|(m, seal)| LostMutation {
                id: m.id,
                mid: seal.mid,
                ops: m.ops.clone(),
            })
            .collect();
        for lost in &known {
            self.take_out(lost.id);
        }
        self.events.push(SpaceEvent::Lost(Loss {
            client,
            from,
            through,
            known,
        }));
        self.take_new_id(NewIdReason::Loss, entropy);
    }

    fn take_new_id(&mut self, why: NewIdReason, entropy: &mut dyn Entropy) {
        let client = ClientId(entropy.next_u64());
        let keep_sealed = matches!(why, NewIdReason::Cloned | NewIdReason::Gap);
        for mutation in self.queue.take_new_id(client, keep_sealed) {
            self.overlay.remove(&mutation);
            self.dirty.extend(mutation.docs().cloned());
            let Mutation { id, ops, .. } = mutation;
            self.events.push(SpaceEvent::Settled {
                id,
                outcome: Err(WriteError::Uncertain),
                ops,
            });
        }
        // What was renumbered is overlaid again.
        let queued: Vec<_> = self.queue.iter().filter(|m| m.is_queued()).map(|m| m.id).collect();
        for id in queued {
            self.touch(id);
        }
        // `last_mid` is to be the new client's.
        self.needs_sub = self.wanted.is_some() && !self.sent.is_empty();
        self.events.push(SpaceEvent::NewId { client, why });
    }

    /// A mutation's effect is in the confirmed state.
    fn end_overlay(&mut self, id: MutationId) {
        if self.queue.set_overlaid(id, false) {
            self.touch(id);
        }
        if self.queue.get(id).is_some_and(|m| !m.is_queued()) {
            self.take_out(id);
        }
    }

    fn take_out(&mut self, id: MutationId) -> Option<Mutation> {
        let mutation = self.queue.remove(id)?;
        self.overlay.remove(&mutation);
        self.dirty.extend(mutation.docs().cloned());
        Some(mutation)
    }

    fn fail(&mut self, id: MutationId, error: WriteError) {
        let ops = self.take_out(id).map(|mutation| mutation.ops).unwrap_or_default();
        self.events.push(SpaceEvent::Settled {
            id,
            outcome: Err(error),
            ops,
        });
    }

    fn touch(&mut self, id: MutationId) {
        if let Some(mutation) = self.queue.get(id) {
            self.dirty.extend(mutation.docs().cloned());
        }
    }

    /// The end of a step: local views follow.
    fn finish(&mut self) {
        let (cleared, confirmed) = self.replica.take_changed();
        let mut dirty = std::mem::take(&mut self.dirty);
        if dirty.is_empty() && confirmed.is_empty() {
            return;
        }
        dirty.extend(confirmed.iter().cloned());
        let queue = &self.queue;
        let changed = self.overlay.refresh(self.replica.docs(), dirty, &confirmed, |id| {
            queue.get(id).expect("the overlay lists mutations of the queue only")
        });
        if !changed.is_empty() {
            self.events.push(SpaceEvent::Views(changed));
        }
        if cleared {
            self.unsaved_clear = true;
            self.unsaved_docs.clear();
        }
        self.unsaved_docs.extend(confirmed);
    }

    pub(crate) fn take_events(&mut self) -> Vec<SpaceEvent> {
        std::mem::take(&mut self.events)
    }

    /// What changed since the last call, for storage; `None` if nothing did.
    pub(crate) fn take_changes(&mut self) -> Option<SpaceChanges> {
        let (identity, mutations) = self.queue.take_changes();
        let clear_docs = std::mem::take(&mut self.unsaved_clear);
        let docs = std::mem::take(&mut self.unsaved_docs);
        let standing = std::mem::take(&mut self.standing_changed).then(|| self.replica.standing());
        if identity.is_none() && standing.is_none() && !clear_docs && docs.is_empty() && mutations.is_empty() {
            return None;
        }
        Some(SpaceChanges {
            identity,
            standing,
            clear_docs,
            docs: docs
                .into_iter()
                .map(|doc| (doc.clone(), self.replica.docs().get(&doc).cloned()))
                .collect(),
            queue: mutations
                .into_iter()
                .map(|id| (id, self.queue.get(id).cloned()))
                .collect::<BTreeMap<_, _>>(),
        })
    }

    /// Forgets what changed; for a client without storage.
    pub(crate) fn discard_changes(&mut self) {
        self.queue.take_changes();
        self.unsaved_clear = false;
        self.unsaved_docs.clear();
        self.standing_changed = false;
    }
}

/// Whether an op changes a document that is there, rather than makes, replaces or ends it.
fn is_edit(kind: &OpKind) -> bool {
    !matches!(
        kind,
        OpKind::Create(_) | OpKind::Replace(_) | OpKind::Delete | OpKind::Check
    )
}

/// One op that does what the two do in turn.
fn fold(old: &OpKind, new: &OpKind, limits: &Limits) -> Option<OpKind> {
    match (old, new) {
        (OpKind::Inc { path, by }, OpKind::Inc { path: other, by: more }) if path == other => Some(OpKind::Inc {
            path: path.clone(),
            by: exact_sum(*by, *more)?,
        }),
        (OpKind::Set(old), OpKind::Set(new)) => {
            let value = |(path, content): &(_, tidegate_protocol::Content)| match content {
                tidegate_protocol::Content::Leaf(value) => Some((Clone::clone(path), value.clone())),
                // A map was flattened; what it was is not worth rebuilding here.
                tidegate_protocol::Content::Map(_) => None,
            };
            let mut all: BTreeMap<_, _> = old.iter().map(value).collect::<Option<_>>()?;
            all.extend(new.iter().map(value).collect::<Option<Vec<_>>>()?);
            Fields::new(all, limits).ok().map(OpKind::Set)
        }
        _ => None,
    }
}
