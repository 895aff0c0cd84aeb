//! The confirmed state of one space: moved by the gateway's stream, and by nothing else.

use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};
use tidegate_protocol::tree::{self, Leaves, Step};
use tidegate_protocol::{Begin, DocChange, DocChangeKind, DocPath, Epoch, Mode, Position, ResumeFrom, Seq, ViewId};

use crate::sync::event::WatchItem;

/// Where confirmed documents stand.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Standing {
    /// They are the space as of this position …
    pub position: Position,
    /// … as far as this view covers it.
    pub view: ViewId,
}

/// The confirmed state of one space, and the pages of a catch-up that is not complete.
#[derive(Debug, Default)]
pub struct Replica {
    docs: BTreeMap<DocPath, Leaves>,
    /// `None` before the first catch-up and after a purge; then there are no documents either.
    standing: Option<Standing>,
    staging: Option<Staging>,
    catch_up: Option<CatchUp>,
    /// Documents changed since `take_changed`.
    changed: BTreeSet<DocPath>,
    /// Whether all documents were dropped since `take_changed`, before those that `changed` names.
    cleared: bool,
}

/// The catch-up that runs.
#[derive(Clone, Copy, Debug)]
struct CatchUp {
    mode: Mode,
    view: ViewId,
    /// The epoch of the head.
    epoch: Epoch,
}

/// Pages of a catch-up in mode `delta` or `reset`. Until its end they are no consistent cut, so nothing
/// of them is shown. A document met again is composed with what was staged of it, so that the staging
/// area does not outgrow the space.
#[derive(Debug)]
struct Staging {
    mode: Mode,
    view: ViewId,
    cursor: Option<Bytes>,
    docs: BTreeMap<DocPath, DocChangeKind>,
}

/// The gateway's stream says what it must not. The connection is dropped and the position kept: whatever
/// was wrong, the next catch-up is judged by it anew.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the gateway's stream is inconsistent: {0}")]
pub struct Violation(pub(crate) &'static str);

impl Replica {
    /// With documents kept from an earlier run.
    pub(crate) fn restore(docs: BTreeMap<DocPath, Leaves>, standing: Option<Standing>) -> Self {
        Self {
            docs: if standing.is_some() { docs } else { BTreeMap::new() },
            standing,
            ..Self::default()
        }
    }

    /// The confirmed documents.
    pub fn docs(&self) -> &BTreeMap<DocPath, Leaves> {
        &self.docs
    }

    /// Where they stand; `None` before the first catch-up.
    pub fn standing(&self) -> Option<Standing> {
        self.standing
    }

    /// Their position.
    pub fn position(&self) -> Option<Position> {
        self.standing.map(|standing| standing.position)
    }

    /// The position, but for a catch-up by log that has not reached the epoch of its end: should a gateway
    /// name an epoch only there, commits of it would be counted in the one before.
    pub(crate) fn certain_position(&self) -> Option<Position> {
        let position = self.position()?;
        let crosses = self
            .catch_up
            .is_some_and(|c| c.mode == Mode::Log && c.epoch != position.epoch);
        (!crosses).then_some(position)
    }

    /// What to say in `sub`.
    pub fn resume_from(&self) -> Option<ResumeFrom> {
        let cursor = self
            .staging
            .as_ref()
            .and_then(|staging| Some((staging.cursor.clone()?, staging.view)));
        match (self.standing, cursor) {
            (Some(Standing { position, view }), cursor) => Some(ResumeFrom {
                position,
                view,
                cursor: cursor.map(|(cursor, _)| cursor),
            }),
            // Nothing is held, so everything after the start is the whole.
            (None, Some((cursor, view))) => Some(ResumeFrom {
                position: Position::START,
                view,
                cursor: Some(cursor),
            }),
            (None, None) => None,
        }
    }

    /// `begin`.
    pub(crate) fn begin(&mut self, begin: &Begin) -> Result<(), Violation> {
        if begin.mode == Mode::Log && self.standing.is_none() {
            return Err(Violation("a catch-up by log for a client without a position"));
        }
        self.catch_up = Some(CatchUp {
            mode: begin.mode,
            view: begin.view,
            epoch: begin.epoch,
        });
        let keeps = begin.resumed && begin.mode != Mode::Log;
        match &mut self.staging {
            Some(staging) if keeps => {
                staging.mode = begin.mode;
                staging.view = begin.view;
            }
            _ => {
                self.staging = (begin.mode != Mode::Log).then(|| Staging {
                    mode: begin.mode,
                    view: begin.view,
                    cursor: None,
                    docs: BTreeMap::new(),
                });
            }
        }
        Ok(())
    }

    /// `page`.
    pub(crate) fn page(&mut self, docs: Vec<DocChange>, cursor: Bytes) -> Result<(), Violation> {
        let staging = match (&mut self.staging, self.catch_up) {
            (Some(staging), Some(catch_up)) if catch_up.mode != Mode::Log => staging,
            _ => return Err(Violation("a page outside a catch-up")),
        };
        for DocChange { doc, kind } in docs {
            let kind = match staging.docs.remove(&doc) {
                Some(old) => compose(old, kind),
                None => kind,
            };
            staging.docs.insert(doc, kind);
        }
        staging.cursor = Some(cursor);
        Ok(())
    }

    /// `current`: what was staged is applied in one step. Returns the mode of the catch-up that ends and
    /// what it did.
    pub(crate) fn current(&mut self, position: Position) -> Result<(Mode, Vec<WatchItem>), Violation> {
        let CatchUp { mode, view, .. } = self.catch_up.take().ok_or(Violation("`current` without `begin`"))?;
        let mut items = Vec::new();
        if mode != Mode::Reset
            && self
                .position()
                .is_some_and(|old| old.epoch == position.epoch && position.seq < old.seq)
        {
            return Err(Violation("a catch-up that ends before it began"));
        }
        if mode == Mode::Reset {
            items.push(WatchItem::Reset);
            self.clear_docs();
        }
        if let Some(staging) = self.staging.take() {
            for (doc, kind) in staging.docs {
                let change = DocChange { doc, kind };
                self.apply(&change);
                items.push(WatchItem::Change {
                    seq: position.seq,
                    change,
                });
            }
        }
        self.standing = Some(Standing { position, view });
        items.push(WatchItem::Current { position });
        Ok((mode, items))
    }

    /// A commit. `None`: it is already in the confirmed state.
    pub(crate) fn commit(&mut self, seq: Seq, docs: Vec<DocChange>) -> Result<Option<Vec<WatchItem>>, Violation> {
        self.refuse_in_pages()?;
        let standing = self.standing.as_mut().ok_or(Violation("a change before a catch-up"))?;
        if seq <= standing.position.seq {
            return Ok(None);
        }
        standing.position.seq = seq;
        for change in &docs {
            self.apply(change);
        }
        Ok(Some(
            docs.into_iter()
                .map(|change| WatchItem::Change { seq, change })
                .collect(),
        ))
    }

    /// `progress`.
    pub(crate) fn progress(&mut self, seq: Seq) -> Result<(), Violation> {
        self.refuse_in_pages()?;
        let standing = self
            .standing
            .as_mut()
            .ok_or(Violation("`progress` before a catch-up"))?;
        standing.position.seq = standing.position.seq.max(seq);
        Ok(())
    }

    /// `epoch`.
    pub(crate) fn epoch(&mut self, position: Position) -> Result<(), Violation> {
        self.refuse_in_pages()?;
        let standing = self.standing.as_mut().ok_or(Violation("`epoch` before a catch-up"))?;
        if standing.position.seq > position.seq {
            return Err(Violation("a new epoch that starts before what was delivered"));
        }
        let before = std::mem::replace(&mut standing.position, position).epoch;
        // One that begins while a catch-up by log is under way, after all that it was to cross.
        if let Some(catch_up) = self.catch_up.as_mut().filter(|catch_up| catch_up.epoch == before) {
            catch_up.epoch = position.epoch;
        }
        Ok(())
    }

    /// Whether a catch-up by pages is under way.
    pub(crate) fn is_in_pages(&self) -> bool {
        self.catch_up.is_some_and(|catch_up| catch_up.mode != Mode::Log)
    }

    fn refuse_in_pages(&self) -> Result<(), Violation> {
        match self.is_in_pages() {
            true => Err(Violation("a change between the pages of a catch-up")),
            false => Ok(()),
        }
    }

    /// The connection or the subscription ended. What is staged waits for its cursor to be taken up.
    pub(crate) fn detach(&mut self) {
        self.catch_up = None;
    }

    /// `denied` with `purge`.
    pub(crate) fn purge(&mut self) {
        self.clear_docs();
        self.standing = None;
        self.staging = None;
        self.catch_up = None;
    }

    /// The documents changed since the last call, and whether all were dropped before.
    pub(crate) fn take_changed(&mut self) -> (bool, BTreeSet<DocPath>) {
        (std::mem::take(&mut self.cleared), std::mem::take(&mut self.changed))
    }

    fn clear_docs(&mut self) {
        self.changed.extend(std::mem::take(&mut self.docs).into_keys());
        self.cleared = true;
    }

    fn apply(&mut self, DocChange { doc, kind }: &DocChange) {
        match kind {
            DocChangeKind::Whole(leaves) => {
                self.docs.insert(doc.clone(), leaves.iter().cloned().collect());
            }
            DocChangeKind::Deleted => {
                self.docs.remove(doc);
            }
            DocChangeKind::Change { set, unset } => {
                if let Some(leaves) = self.docs.get_mut(doc) {
                    apply_change(leaves, set, unset);
                } else if !set.is_empty() {
                    apply_change(self.docs.entry(doc.clone()).or_default(), set, &[]);
                }
            }
        }
        self.changed.insert(doc.clone());
    }
}

fn apply_change(
    leaves: &mut Leaves,
    set: &[(tidegate_protocol::FieldPath, tidegate_protocol::Value)],
    unset: &[tidegate_protocol::FieldPath],
) {
    for path in unset {
        tree::apply(leaves, Step::Clear(path.clone()));
    }
    for (path, value) in set {
        tree::apply(leaves, Step::Write(path.clone(), value.clone()));
    }
}

/// One change that does what `old` and then `new` do.
fn compose(old: DocChangeKind, new: DocChangeKind) -> DocChangeKind {
    let DocChangeKind::Change { set, unset } = new else {
        return new;
    };
    match old {
        DocChangeKind::Whole(leaves) => {
            let mut leaves = leaves.into_iter().collect();
            apply_change(&mut leaves, &set, &unset);
            DocChangeKind::Whole(leaves.into_iter().collect())
        }
        DocChangeKind::Deleted if set.is_empty() => DocChangeKind::Deleted,
        DocChangeKind::Deleted => DocChangeKind::Whole(set),
        DocChangeKind::Change {
            set: old_set,
            unset: old_unset,
        } => {
            let mut leaves = old_set.into_iter().collect();
            apply_change(&mut leaves, &set, &unset);
            let mut all: BTreeSet<_> = old_unset.into_iter().collect();
            all.extend(unset);
            DocChangeKind::Change {
                set: leaves.into_iter().collect(),
                unset: all.into_iter().collect(),
            }
        }
    }
}
