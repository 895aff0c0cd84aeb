//! Planning: a mutation and the documents it is about become a prepared commit, or a refusal. Pure.
//!
//! Several mutations of a group are planned one on another's results, which have no seqs yet: what an
//! earlier one of the group wrote counts as newer than any base ([`planned_seq`]), and a plan made on
//! it says so in its expectations ([`Version::Item`]).

use super::bounds::{self, Room};
use super::evaluate::{Evaluation, Verdict, at, refusal};
use super::report::Report;
use super::{Quota, Refusal, WriteBody, WriteRequest};
use crate::auth::Authoriser;
use crate::store::{
    Action, Cell, DocEffect, DocState, Header, Prepared, ReadCut, SpaceState, Stamp, Usage, Version, planned_seq,
};
use std::collections::{BTreeMap, BTreeSet};
use tidegate_protocol::{Code, DocPath, Invalid, Limits, Policy, SpaceId, Writer};

/// A mutation, planned.
#[derive(Clone, Debug)]
pub enum Plan {
    /// For the store, and what to tell the writer besides the position.
    Item(Box<Prepared>, Report),
    /// Cannot be decided now: the mid is not consumed.
    Later(Refusal),
}

/// Plans the mutations of a group, one after another, on one consistent read.
pub struct Planner<'a> {
    pub(super) rules: &'a dyn Authoriser,
    pub(super) limits: &'a Limits,
    pub(super) space: &'a SpaceId,
    pub(super) state: SpaceState,
    pub(super) now_ms: u64,
    docs: BTreeMap<DocPath, Known>,
    /// Items planned so far: the index of the next.
    planned: usize,
    pub(super) room: Room,
    /// Why nothing that the rules allow is planned: not all documents were read.
    too_large: Option<Invalid>,
}

/// A document as of the items planned so far.
#[derive(Clone)]
struct Known {
    state: DocState,
    version: Version,
}

impl Default for Known {
    fn default() -> Self {
        Self {
            state: DocState::default(),
            version: Version::Absent,
        }
    }
}

impl<'a> Planner<'a> {
    /// A planner on `cut`, the read of `docs`. It must hold every document that the mutations are about.
    pub fn new(
        rules: &'a dyn Authoriser,
        limits: &'a Limits,
        space: &'a SpaceId,
        docs: Vec<DocPath>,
        cut: ReadCut,
        now_ms: u64,
    ) -> Self {
        let known = |state: DocState| {
            let version = state
                .header
                .map_or(Version::Absent, |header| Version::Seq(header.last.seq));
            Known { state, version }
        };
        // The time that the commits will have, unless another comes between.
        let now_ms = now_ms.max(cut.state.last_ms);
        let docs = docs.into_iter().zip(cut.docs.into_iter().map(known)).collect();
        let room = Room {
            space: cut.state.usage,
            ..Room::default()
        };
        Self {
            rules,
            limits,
            space,
            state: cut.state,
            now_ms,
            docs,
            planned: 0,
            room,
            too_large: None,
        }
    }

    /// Holds the mutations to a quota, where all documents of the store take `total_bytes` now.
    #[must_use]
    pub fn within(mut self, quota: Quota, total_bytes: u64) -> Self {
        self.room.quota = quota;
        self.room.total_bytes = total_bytes;
        self
    }

    /// Refuses every mutation that the rules allow, if there is a reason: then no document is looked at.
    pub(super) fn about_too_much(mut self, why: Option<Invalid>) -> Self {
        self.too_large = why;
        self
    }

    /// The documents as the items planned leave them, and what all of the space's then take.
    pub(super) fn left(self) -> (impl Iterator<Item = (DocPath, DocState)> + use<>, Usage) {
        let docs = self.docs.into_iter().map(|(doc, known)| (doc, known.state));
        (docs, self.room.space)
    }

    /// Plans the next mutation of the group.
    pub fn plan(&mut self, request: &WriteRequest) -> Plan {
        let head = &request.head;
        let writer = request.writer();
        let verdict = match &request.body {
            Ok(body) => self.judge(writer, request, body),
            Err(refusal) => Verdict::refuse(refusal.clone()),
        };
        let seq = planned_seq(self.planned);
        let stamp = Stamp { seq, writer };
        let (action, expects, report) = match verdict {
            Verdict::Apply {
                effects,
                expects,
                report,
            } => {
                for effect in &effects.docs {
                    let known = self.docs.entry(effect.doc.clone()).or_default();
                    let before = Usage::of(known.state.header.as_ref());
                    apply(&mut known.state, effect, stamp);
                    self.room.take(before, Usage::of(known.state.header.as_ref()));
                    known.version = Version::Item(self.planned);
                }
                (Action::Apply(effects), expects, report)
            }
            Verdict::Refuse { refusal, .. } if !refusal.code.consumes_mid() => return Plan::Later(refusal),
            Verdict::Refuse {
                refusal,
                conflicts,
                cells,
                expects,
            } => {
                let code = refusal.code;
                let mut report = Report {
                    refusal: Some(refusal),
                    cells,
                    ..Report::default()
                };
                report.bound(bounds::units_share(self.limits));
                let detail = report.detail();
                let action = Action::Refuse {
                    code,
                    conflicts,
                    detail,
                };
                (action, expects, report)
            }
        };
        self.planned += 1;
        let (mid, key, prev, first) = (head.mid, head.key, head.prev, head.first);
        Plan::Item(
            Box::new(Prepared {
                writer,
                user: request.who.tag(),
                mid,
                key,
                prev,
                first,
                expects,
                action,
            }),
            report,
        )
    }

    fn judge(&self, writer: Writer, request: &WriteRequest, body: &WriteBody) -> Verdict {
        if let Err(refusal) = self.check_shape(body) {
            return Verdict::refuse(refusal);
        }
        let docs: BTreeSet<&DocPath> = body.ops.iter().map(|op| &op.doc).collect();
        // The rules come first: a refusal for another reason shows what stands in the document.
        for doc in &docs {
            if let Err(denial) = self.rules.write(&request.who, self.space, doc) {
                let op = body.ops.iter().position(|op| op.doc == **doc).unwrap_or(0);
                return Verdict::refuse(Refusal {
                    code: denial.code,
                    message: denial.message,
                    at: Some(at(op, None)),
                });
            }
        }
        if let Some(why) = &self.too_large {
            return Verdict::refuse(refusal(why.clone(), None));
        }
        let nothing = Known::default();
        let known = |doc: &DocPath| self.docs.get(doc).unwrap_or(&nothing);
        let expects = docs.iter().map(|doc| ((*doc).clone(), known(doc).version)).collect();
        let docs = docs.iter().map(|doc| ((*doc).clone(), &known(doc).state)).collect();
        Evaluation::new(self, request, body, writer, docs).run(expects)
    }

    fn check_shape(&self, body: &WriteBody) -> Result<(), Refusal> {
        if body.ops.is_empty() {
            return Err(invalid(
                "a mutation needs ops; without any, this one is settled as not applied",
            ));
        }
        if body.ops.len() > self.limits.ops {
            return Err(refusal(
                Invalid::too_large("ops in a mutation", self.limits.ops, body.ops.len()),
                None,
            ));
        }
        if body.base.is_none() && matches!(body.policy, Some(Policy::Reject | Policy::Merge)) {
            return Err(invalid(
                "policy reject or merge needs a base: the position up to which the space had been seen",
            ));
        }
        Ok(())
    }
}

/// Brings a document to where a planned commit leaves it.
fn apply(doc: &mut DocState, effect: &DocEffect, stamp: Stamp) {
    let old = doc.header;
    doc.header = Some(Header {
        last: stamp,
        born: old.filter(|_| !effect.born).map_or(stamp, |header| header.born),
        deleted: if effect.deleted {
            Some(stamp)
        } else {
            old.and_then(|header| header.deleted)
        },
        alive: effect.alive,
        size: effect.size,
    });
    for (path, value) in &effect.cells {
        doc.cells.insert(
            path.clone(),
            Cell {
                stamp,
                value: value.clone(),
            },
        );
    }
}

fn invalid(message: &str) -> Refusal {
    Refusal {
        code: Code::Invalid,
        message: message.into(),
        at: None,
    }
}
