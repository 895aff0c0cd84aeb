//! The gateway's side of a space: subscriptions, the stream, answers, and what is done about loss.

use super::{ENDED, Sent, Space};
use crate::sync::event::{Acked, Loss, LostMutation, NewIdReason, Refusal, SpaceEvent, WatchItem, WriteError};
use crate::sync::queue::{Mutation, MutationId, SealWith};
use crate::sync::replica::Violation;
use crate::sync::{Entropy, Now};
use tidegate_protocol::limits::UNANSWERED;
use tidegate_protocol::{
    Ack, Action, Begin, ClientId, Code, Commit, DocChange, Mid, Mode, Position, Reject, Seq, Sub, Write,
};

/// How long a gateway keeps a client's record after its last write, ms: an ack older than this proves no loss.
const RECORDS_KEPT_MS: u64 = 90 * 24 * 60 * 60 * 1000;
/// What a temporary refusal without `retry_ms` waits, ms.
const RETRY_MS: u64 = 1_000;

/// Whether a gateway that keeps no record of a client may have dropped it for its age.
fn may_be_forgotten(now: Now, acked_at: u64) -> bool {
    now.wall_ms.saturating_sub(acked_at) >= RECORDS_KEPT_MS
}

impl Space {
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

    pub(super) fn detach_subscription(&mut self) {
        self.sent = None;
        self.replica.detach();
        self.set_live(false);
    }

    pub(super) fn set_live(&mut self, live: bool) {
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
        let from = self.replica.resume_from();
        self.sent = Some(Sent {
            id,
            goes_on: from.is_some(),
            client: identity.client,
            acked: identity.acked,
            acked_at: identity.acked_at,
            unconfirmed: self.queue.iter().filter(|m| !m.is_queued()).map(|m| m.id).collect(),
            begun: false,
            answered: false,
        });
        Some(Sub {
            id,
            space: self.name.clone(),
            client: Some(identity.client),
            from,
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
        let with = SealWith { user, welcomed_at };
        self.queue.next_write(&self.name, with, message_bytes, entropy)
    }

    /// When something becomes due by time alone (monotonic ms).
    pub(crate) fn deadline(&self) -> Option<u64> {
        let write = self.not_before.filter(|_| self.queue.has_work());
        write.into_iter().chain(self.resubscribe_at).min()
    }

    /// Whether a subscription was sent on this connection, and is not ended.
    pub(crate) fn is_subscribed(&self) -> bool {
        self.sent.is_some()
    }

    /// Whether this is of the subscription sent last, rather than of one that it replaces.
    fn is_of_latest(&self, id: u64) -> bool {
        self.sent.as_ref().is_some_and(|sent| sent.id == id)
    }

    /// Whether changes are those of the subscription sent last. Until it begins they are of one before it, and
    /// come again if its `from` needs them.
    fn follows(&self) -> bool {
        self.sent.as_ref().is_none_or(|sent| sent.begun)
    }

    pub(crate) fn begin(&mut self, begin: &Begin) -> Result<(), Violation> {
        if let Some(sent) = self.sent.as_mut().filter(|sent| sent.id == begin.id) {
            sent.begun = true;
            self.replica.begin(begin)?;
        }
        self.set_live(false);
        Ok(())
    }

    pub(crate) fn page(&mut self, id: u64, docs: Vec<DocChange>, cursor: bytes::Bytes) -> Result<(), Violation> {
        if !self.is_of_latest(id) {
            return Ok(());
        }
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
        if !self.is_of_latest(id) {
            return Ok(());
        }
        let before = self.replica.position();
        let (mode, items) = self.replica.current(position)?;
        if mode != Mode::Log {
            self.ended.clear();
        }
        self.standing_changed = true;
        let Some(sent) = &mut self.sent else { return Ok(()) };
        let first = !std::mem::replace(&mut sent.answered, true);
        let unconfirmed = std::mem::take(&mut sent.unconfirmed);
        let (client, acked, acked_at) = (sent.client, sent.acked, sent.acked_at);
        let reached = last_mid.unwrap_or(Mid::ZERO);
        let mut lost = None;
        if client == self.queue.identity().client {
            // The state of a history that goes on holds nothing of what was not applied.
            let is_shown = std::mem::take(&mut self.renumbered) || mode == Mode::Reset;
            self.settle_overlay(reached, is_shown);
            if first {
                let forgotten = last_mid.is_none() && may_be_forgotten(now, acked_at);
                lost = (reached < acked && !forgotten).then_some(reached.next());
            }
        }
        self.confirm_position();
        // Of an epoch that this client never stood in, or under an id that it has given up, say.
        for id in unconfirmed {
            // Of those that are lost, the loss tells.
            let is_lost = |m: &Mutation| lost.is_some() && m.seal.is_some_and(|seal| seal.client == client);
            if !self.queue.get(id).is_some_and(is_lost) {
                self.end_overlay(id);
            }
        }
        let ended = before.filter(|before| before.epoch != position.epoch);
        if let Some(before) = ended.filter(|_| client != self.queue.identity().client) {
            self.drop_acks_of_ended_epoch(before);
        }
        self.ask_about_acks();
        self.events.push(SpaceEvent::Confirmed(items));
        self.denied = None;
        self.set_live(true);
        if let Some(from) = lost {
            self.lose(from, entropy);
        }
        self.finish();
        Ok(())
    }

    /// The state of a `current` holds the client's mutations up to `reached`, or they were refused; those after it
    /// are shown over it, if it does not hold them for certain.
    fn settle_overlay(&mut self, reached: Mid, is_shown: bool) {
        let client = self.queue.identity().client;
        let known: Vec<_> = self
            .queue
            .iter()
            .filter(|m| m.seal.is_none_or(|seal| seal.client == client))
            .map(|m| (m.id, m.seal.map(|seal| seal.mid)))
            .collect();
        for (id, mid) in known {
            if mid.is_some_and(|mid| mid <= reached) {
                self.end_overlay(id);
            } else if is_shown && self.queue.set_overlaid(id, true) {
                // Its change had been seen, and is not in the new history; or it is, and comes after this state.
                self.touch(id);
            }
        }
    }

    /// Acks up to the confirmed position have their effect in it.
    fn confirm_position(&mut self) {
        let Some(position) = self.replica.certain_position() else {
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

    /// What was acked in an epoch that ended is in the state now, or was lost with the epoch's end. Which of the two the
    /// `last_mid` of another id does not say; the loss shows in that of the next `sub`, or in an answer.
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

    /// No position will ever confirm what was acked in an epoch that the confirmed state neither stands in nor has
    /// gone through. A catch-up that is asked for after the last answer tells whether it is in the state or lost.
    fn ask_about_acks(&mut self) {
        let Some(position) = self.replica.position() else {
            return;
        };
        let asked = self.sent.as_ref().is_none_or(|sent| !sent.answered) || self.replica.is_in_pages();
        let settled = |m: &Mutation| {
            m.answer.is_some_and(|ack| ack.epoch != position.epoch)
                && !m.seal.is_some_and(|seal| self.queue.is_sent(seal.mid))
        };
        if !asked && self.queue.iter().any(settled) {
            self.needs_sub = true;
        }
    }

    pub(crate) fn commit(&mut self, commit: Commit) -> Result<(), Violation> {
        let Commit {
            seq, writer, mid, docs, ..
        } = commit;
        if !self.follows() {
            return Ok(());
        }
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
        if !self.follows() {
            return Ok(());
        }
        self.replica.progress(seq)?;
        self.standing_changed = true;
        self.confirm_position();
        self.finish();
        Ok(())
    }

    pub(crate) fn epoch(&mut self, position: Position, entropy: &mut dyn Entropy) -> Result<(), Violation> {
        if !self.follows() {
            return Ok(());
        }
        let old = self.replica.position();
        self.replica.epoch(position)?;
        self.standing_changed = true;
        if let Some(old) = old {
            self.ended.push_back(Position::new(old.epoch, position.seq));
            if self.ended.len() > ENDED {
                self.ended.pop_front();
            }
        }
        self.events.push(SpaceEvent::Epoch(position));
        let of_old: Vec<_> = self
            .queue
            .iter()
            .filter_map(|m| Some((m.id, m.seal?, m.answer?)))
            .filter(|(_, _, ack)| old.is_some_and(|old| old.epoch == ack.epoch))
            .collect();
        let mut lost: Option<Mid> = None;
        for (id, seal, ack) in of_old {
            if ack.seq <= position.seq {
                self.queue.set_answer(id, Position::new(position.epoch, ack.seq));
            } else if seal.client == self.queue.identity().client {
                if self.queue.is_sent(seal.mid) {
                    continue;
                }
                lost = Some(lost.map_or(seal.mid, |from| from.min(seal.mid)));
            } else {
                self.end_overlay(id);
            }
        }
        self.confirm_position();
        if let Some(from) = lost {
            self.lose(from, entropy);
        }
        self.finish();
        Ok(())
    }

    /// Returns whether to try again later.
    pub(crate) fn denied(&mut self, now: Now, id: u64, code: Code, purge: bool, retry_ms: u64) {
        // One that was replaced or ended is of no interest, but for the purge.
        let is_latest = self.is_of_latest(id);
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
                self.resubscribe_at = Some(now.mono_ms.saturating_add(retry_ms));
            }
            self.events.push(SpaceEvent::Denied { code, purged: purge });
        }
        // The one sent since goes on from what is held no longer. One that goes on from nothing stays as it is: else
        // each of two that are denied would make another.
        self.needs_sub |= purge && self.sent.as_ref().is_some_and(|sent| sent.goes_on || sent.begun);
        self.finish();
    }

    pub(crate) fn ack(&mut self, now: Now, ack: Ack) {
        let Some(answered) = self.queue.answered(ack.mid, true) else {
            return;
        };
        let Some(id) = answered.id else { return };
        let gone_through = |ended: &&Position| ended.epoch == ack.position.epoch && ack.position.seq <= ended.seq;
        let position = match (self.ended.iter().find(gone_through), self.replica.position()) {
            // Of an epoch that ended since: it counts as the present one's.
            (Some(_), Some(present)) => Position::new(present.epoch, ack.position.seq),
            _ => ack.position,
        };
        // Of a repeat the answer is the one that counts: the first may be of a history that was lost.
        let first = self.queue.accept(id, position, now.wall_ms);
        self.touch(id);
        self.confirm_position();
        if self.wanted.is_none() || self.denied.is_some() {
            if self.queue.get(id).is_some_and(|m| !m.overlaid) {
                self.take_out(id);
            }
            self.bound_unconfirmed();
        }
        self.ask_about_acks();
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
        if first {
            self.events.push(SpaceEvent::Settled {
                id,
                outcome,
                ops: Vec::new(),
            });
        }
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
        let Some(answered) = self.queue.answered(reject.mid, false) else {
            return;
        };
        match reject.code.row().action {
            // In a history that was lost; and refused when it was sent again.
            Action::Settle if answered.was_acked => self.report_lost(reject.mid, reject.mid),
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
            Action::GoBack => match reject.expected.filter(|expected| *expected < reject.mid) {
                Some(expected) if expected <= answered.acked => self.lose(expected, entropy),
                // One that was acked since may have been applied since: the answer to what is sent now tells.
                Some(expected) if expected <= self.queue.identity().acked || self.queue.holds(expected) => {
                    if !answered.sent_again {
                        self.queue.go_back(expected);
                    }
                }
                // What the gateway waits for is not here. What comes before that was applied, or refused: the answers
                // are on their way.
                Some(expected) if self.queue.waits_before(expected) => self.back_off(now, &reject, answered.sent_again),
                // Nothing of the queue was applied.
                Some(_) => self.take_new_id(NewIdReason::Gap, entropy),
                // Nothing, or what was sent just now: sending it at once would get the same answer.
                None => self.back_off(now, &reject, answered.sent_again),
            },
            Action::NewClient if reject.code == Code::ClientCloned => self.take_new_id(NewIdReason::Cloned, entropy),
            Action::NewClient => {
                let identity = self.queue.identity();
                if identity.acked == Mid::ZERO || may_be_forgotten(now, identity.acked_at) {
                    self.take_new_id(NewIdReason::Unknown, entropy);
                } else if answered.acked > Mid::ZERO {
                    self.lose(Mid::ZERO.next(), entropy);
                } else if !answered.sent_again {
                    // Acked since: the answer to what is sent now tells.
                    self.queue.go_back(reject.mid);
                }
            }
            _ => self.back_off(now, &reject, answered.sent_again),
        }
        self.ask_about_acks();
        self.finish();
    }

    fn back_off(&mut self, now: Now, reject: &Reject, sent_again: bool) {
        if !sent_again {
            self.queue.go_back(reject.mid);
            self.not_before = Some(now.mono_ms.saturating_add(reject.retry_ms.unwrap_or(RETRY_MS)));
        }
    }

    /// The gateway lost mutations that it had acked: all from this one on, those too whose ack came after what showed
    /// the loss was asked for. None of them can be of the history that goes on, which has not come to the first.
    fn lose(&mut self, from: Mid, entropy: &mut dyn Entropy) {
        self.report_lost(from, self.queue.identity().acked);
        self.take_new_id(NewIdReason::Loss, entropy);
    }

    /// Tells the app that the gateway lost mutations that it had acked.
    fn report_lost(&mut self, from: Mid, through: Mid) {
        let client = self.queue.identity().client;
        let known: Vec<_> = self
            .queue
            .iter()
            .filter(|m| !m.is_queued())
            .filter_map(|m| Some((m, m.seal?)))
            .filter(|(_, seal)| seal.client == client && (from..=through).contains(&seal.mid))
            .map(|(m, seal)| LostMutation {
                id: m.id,
                mid: seal.mid,
                ops: m.ops.to_vec(),
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
    }

    fn take_new_id(&mut self, why: NewIdReason, entropy: &mut dyn Entropy) {
        let client = ClientId(entropy.next_u64());
        self.renumbered = why == NewIdReason::Gap;
        for mutation in self.queue.take_new_id(client, why) {
            self.overlay.remove(&mutation);
            self.dirty.extend(mutation.docs().cloned());
            let Mutation { id, ops, .. } = mutation;
            let ops = ops.to_vec();
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
        self.needs_sub |= self.wanted.is_some() && self.sent.is_some();
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

    pub(super) fn take_out(&mut self, id: MutationId) -> Option<Mutation> {
        let mutation = self.queue.remove(id)?;
        self.overlay.remove(&mutation);
        self.dirty.extend(mutation.docs().cloned());
        Some(mutation)
    }

    pub(super) fn fail(&mut self, id: MutationId, error: WriteError) {
        let ops = self
            .take_out(id)
            .map(|mutation| mutation.ops.to_vec())
            .unwrap_or_default();
        self.events.push(SpaceEvent::Settled {
            id,
            outcome: Err(error),
            ops,
        });
    }

    pub(super) fn touch(&mut self, id: MutationId) {
        if let Some(mutation) = self.queue.get(id) {
            self.dirty.extend(mutation.docs().cloned());
        }
    }
}
