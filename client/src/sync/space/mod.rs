//! One space: its confirmed state, its queue, the overlay of one on the other, and its subscription.

mod fold;
mod stream;

pub(in crate::sync) use fold::creates;

use crate::storage::{SpaceChanges, StoredSpace};
use crate::sync::event::{Refusal, SpaceEvent, WriteError};
use crate::sync::overlay::{LocalDoc, Overlay};
use crate::sync::queue::{Identity, Mutation, MutationId, QUEUED, Queue};
use crate::sync::replica::Replica;
use crate::sync::{Entropy, Now};
use std::collections::{BTreeSet, VecDeque};
use tidegate_protocol::tree::Leaves;
use tidegate_protocol::{ClientId, Code, Collection, DocPath, Limits, Mid, Op, Policy, Position, SpaceId, Write};

/// Bytes of mutations that may wait in a space. Over it, a mutation is refused `too_large`.
const QUEUED_BYTES: usize = 64 << 20;

/// Ended epochs remembered.
const ENDED: usize = 64;

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

/// The subscription sent last on this connection, as far as it has been answered.
#[derive(Clone, Debug)]
struct Sent {
    id: u64,
    /// It says from where.
    goes_on: bool,
    client: ClientId,
    /// The highest mid acked before the `sub` was sent, and when.
    acked: Mid,
    acked_at: u64,
    /// What had been acked by then and is overlaid: at its first `current` it is in the state, or was lost.
    unconfirmed: Vec<MutationId>,
    /// Its `begin` has come.
    begun: bool,
    /// Its first `current` has come.
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
    /// What the gateway says to any before it is passed over: its `from` names the position that the
    /// confirmed state has to stand at when it begins.
    sent: Option<Sent>,
    /// Epochs that the confirmed state has gone through since its last catch-up by pages, each up to its end: an
    /// ack of one may still come. At most [`ENDED`]; an older one's ack is settled by the next catch-up.
    ended: VecDeque<Position>,
    /// Nothing of the queue was applied, and it has been numbered anew since.
    renumbered: bool,
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
            sent: None,
            ended: VecDeque::new(),
            renumbered: false,
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

    /// A document's leaves in the local view; `None` if it does not exist there.
    pub fn leaves(&self, doc: &DocPath) -> Option<&Leaves> {
        match self.overlay.get(doc) {
            Some(local) => local.leaves.as_ref(),
            None => self.replica.docs().get(doc),
        }
    }

    /// Whether a document exists in the local view.
    pub fn exists(&self, doc: &DocPath) -> bool {
        self.leaves(doc).is_some()
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
        let id = self.sent.as_ref().map(|sent| sent.id);
        self.detach_subscription();
        self.finish();
        id
    }

    pub(crate) fn mutate(
        &mut self,
        now: Now,
        request: Request,
        check: impl Fn(Write) -> Result<(Vec<Op>, usize), Refusal>,
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
            fold::guard(&mut ops, |doc| self.exists(doc));
        }
        let (ops, size) = check(self.as_write(ops, policy, base))?;
        if self.queue.bytes() + size > QUEUED_BYTES {
            let message = format!("bytes of mutations waiting in a space are limited to {QUEUED_BYTES}");
            return Err(Refusal::new(Code::TooLarge, message));
        }
        let mutation = Mutation {
            id: MutationId(0),
            ops: ops.into(),
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
            let docs = self.overlay.append(self.replica.docs(), mutation);
            self.events.push(SpaceEvent::Views(docs));
        }
        Ok(id)
    }

    /// A write of the largest envelope that the mutation may get.
    fn as_write(&self, ops: Vec<Op>, policy: Option<Policy>, base: Option<Position>) -> Write {
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
            ops,
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
        check: impl Fn(Write) -> Result<(Vec<Op>, usize), Refusal>,
        limits: &Limits,
    ) -> Option<MutationId> {
        let last = self.queue.last_unsent()?;
        let ([old], [new]) = (&*last.ops, ops) else {
            return None;
        };
        let plain = new.exists.is_none() && new.unchanged_since.is_none() && old.unchanged_since.is_none();
        // An upsert folded into a guarded edit would be guarded, and the other way round. What must not
        // find its document may be refused where the edit after it is not.
        let same_guard = match old.exists {
            None => true,
            Some(exists) => exists && !upsert,
        };
        if !plain || !same_guard || old.doc != new.doc || last.policy != policy || last.base != base {
            return None;
        }
        let kind = fold::fold(&old.kind, &new.kind, limits)?;
        let ops = vec![Op { kind, ..old.clone() }];
        let (ops, size) = check(self.as_write(ops, policy, base)).ok()?;
        let id = last.id;
        let doc = old.doc.clone();
        self.queue.replace_ops(id, ops.into(), size);
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

    /// The end of a step: local views follow.
    fn finish(&mut self) {
        let (cleared, confirmed) = self.replica.take_changed();
        let dirty = std::mem::take(&mut self.dirty);
        if dirty.is_empty() && confirmed.is_empty() {
            return;
        }
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
        if self.unsaved_docs.is_empty() {
            self.unsaved_docs = confirmed;
        } else {
            self.unsaved_docs.extend(confirmed);
        }
    }

    pub(crate) fn take_events(&mut self) -> Vec<SpaceEvent> {
        std::mem::take(&mut self.events)
    }

    /// What changed since the last call, for storage; `None` if nothing did.
    pub(crate) fn take_changes(&mut self) -> Option<SpaceChanges> {
        let (identity, mut mutations) = self.queue.take_changes();
        let clear_docs = std::mem::take(&mut self.unsaved_clear);
        let docs = std::mem::take(&mut self.unsaved_docs);
        let standing = std::mem::take(&mut self.standing_changed).then(|| self.replica.standing());
        if identity.is_none() && standing.is_none() && !clear_docs && docs.is_empty() && mutations.is_empty() {
            return None;
        }
        // One may have changed twice.
        mutations.sort_unstable();
        mutations.dedup();
        let leaves = |doc: DocPath| {
            let leaves = self.replica.docs().get(&doc).cloned();
            (doc, leaves)
        };
        Some(SpaceChanges {
            identity,
            standing,
            clear_docs,
            docs: docs.into_iter().map(leaves).collect(),
            queue: mutations
                .into_iter()
                .map(|id| (id, self.queue.get(id).cloned()))
                .collect(),
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
