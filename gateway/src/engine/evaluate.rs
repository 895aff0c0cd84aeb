//! Evaluation: a mutation's ops, one after another, on working copies of its documents.

use super::bounds::{self, Grown, Of};
use super::guard::{self, Seen};
use super::plan::Planner;
use super::report::{Report, standing};
use super::scratch::{Net, Scratch};
use super::{Refusal, WriteBody, WriteRequest};
use crate::auth::ReadScope;
use crate::store::{ConflictDone, ConflictEntry, DocState, Effects, Usage, Version};
use std::collections::{BTreeMap, BTreeSet};
use tidegate_protocol::tree::{self, Unit};
use tidegate_protocol::{
    At, Code, ConflictUnit, DocPath, FieldPath, Invalid, Op, OpKind, Policy, Value, Writer, msgpack,
};

/// The outcome of an evaluation.
pub(super) enum Verdict {
    Apply {
        effects: Effects,
        expects: Vec<(DocPath, Version)>,
        report: Report,
    },
    Refuse {
        refusal: Refusal,
        cells: Vec<ConflictUnit>,
        conflicts: Vec<ConflictEntry>,
        expects: Vec<(DocPath, Version)>,
    },
}

impl Verdict {
    /// A refusal that does not depend on the state of any document.
    pub(super) fn refuse(refusal: Refusal) -> Self {
        Self::Refuse {
            refusal,
            cells: vec![],
            conflicts: vec![],
            expects: vec![],
        }
    }
}

/// A mutation while its ops are evaluated, in order.
pub(super) struct Evaluation<'a> {
    planner: &'a Planner<'a>,
    request: &'a WriteRequest,
    body: &'a WriteBody,
    writer: Writer,
    base: Option<Seen>,
    /// What the writer may read; cells of other documents are not shown.
    scope: Option<ReadScope>,
    docs: BTreeMap<DocPath, Scratch<'a>>,
    report: Report,
    conflicts: Vec<ConflictEntry>,
    /// Conflicts are logged once a place, however many ops of the mutation meet them.
    logged: BTreeSet<(DocPath, Option<FieldPath>)>,
    /// Cells in `conflicts`: one that many units meet stands there once, or a mutation of a thousand
    /// fields below one large leaf would log that leaf a thousand times.
    theirs: BTreeSet<(DocPath, FieldPath)>,
    /// The first unit that rejects the mutation.
    rejected: Option<At>,
    /// Bytes that the answer has left for cells.
    left: usize,
    uses_now: bool,
}

impl<'a> Evaluation<'a> {
    /// An evaluation of `body` on these documents, which are all that it is about.
    pub(super) fn new(
        planner: &'a Planner<'a>,
        request: &'a WriteRequest,
        body: &'a WriteBody,
        writer: Writer,
        docs: BTreeMap<DocPath, &'a DocState>,
    ) -> Self {
        Self {
            planner,
            request,
            body,
            writer,
            base: body.base.map(|base| Seen::base(base, &planner.state)),
            scope: planner.rules.read(&request.who, planner.space).ok(),
            docs: docs
                .into_iter()
                .map(|(doc, state)| (doc, Scratch::new(state)))
                .collect(),
            report: Report::default(),
            conflicts: vec![],
            logged: BTreeSet::new(),
            theirs: BTreeSet::new(),
            rejected: None,
            left: bounds::cells_share(planner.limits),
            uses_now: false,
        }
    }

    /// Evaluates all ops. `expects` is what the documents were when they were looked at.
    pub(super) fn run(mut self, expects: Vec<(DocPath, Version)>) -> Verdict {
        for (index, op) in self.body.ops.iter().enumerate() {
            if let Some((refusal, unit)) = self.failing(index, op) {
                return Verdict::Refuse {
                    refusal,
                    cells: vec![unit],
                    conflicts: vec![],
                    expects,
                };
            }
            self.op(index, op);
        }
        self.verdict(expects)
    }

    /// Which of an op's preconditions fails, and what stands there.
    fn failing(&mut self, index: usize, op: &Op) -> Option<(Refusal, ConflictUnit)> {
        let scratch = &self.docs[&op.doc];
        let (alive, before) = (scratch.alive(), scratch.before);
        let wants = if matches!(op.kind, OpKind::Create(_)) {
            Some(false)
        } else {
            op.exists
        };
        let exists = [op.exists, wants].into_iter().flatten().find(|wanted| *wanted != alive);
        let failed = match (exists, op.unchanged_since) {
            (Some(true), _) => Some((None, "the document does not exist")),
            (Some(false), _) => Some((None, "the document exists")),
            (None, Some(since)) => {
                let mut paths: Vec<_> = tree::units(&op.kind).map(|unit| Some(unit.path)).collect();
                if paths.is_empty() {
                    paths.push(None);
                }
                let since = Seen::since(since, &self.planner.state);
                let changed = |path| since.is_none_or(|since| guard::changed(before, path, since));
                paths
                    .into_iter()
                    .find(|path| changed(*path))
                    .map(|path| (path, "it changed after unchanged_since"))
            }
            (None, None) => None,
        };
        let (path, why) = failed?;
        let message = format!("{}: {why}; read it again and decide anew", op.doc);
        let refusal = Refusal {
            code: Code::PreconditionFailed,
            message,
            at: Some(at(index, path)),
        };
        Some((refusal, self.unit(index, op, path)))
    }

    /// Evaluates an op.
    fn op(&mut self, index: usize, op: &'a Op) {
        match &op.kind {
            OpKind::Check => {}
            OpKind::Create(fields) | OpKind::Replace(fields) => {
                if self.admits(index, op, None, || Some(tree::rebuild(fields.leaves()))) {
                    self.scratch(op).replace(fields);
                }
            }
            OpKind::Delete => {
                if self.admits(index, op, None, || None) {
                    self.scratch(op).delete();
                }
            }
            OpKind::Set(fields) | OpKind::Merge(fields) if fields.is_empty() => {
                // No field is written, but the document comes into being: a deletion may stand against it.
                if !self.scratch(op).alive() && self.admits(index, op, None, || Some(Value::empty_map())) {
                    self.scratch(op).come_alive();
                }
            }
            kind => {
                self.uses_now |= matches!(kind, OpKind::Now { .. });
                tree::units(kind).for_each(|unit| self.field(index, op, &unit));
            }
        }
    }

    fn field(&mut self, index: usize, op: &'a Op, unit: &Unit<'_>) {
        if unit.can_conflict() && !self.admits(index, op, Some(unit.path), || unit.wanted()) {
            return;
        }
        let now_ms = self.planner.now_ms;
        let scratch = self.scratch(op);
        for step in unit.steps(scratch, now_ms) {
            scratch.run(&step);
        }
    }

    fn scratch(&mut self, op: &Op) -> &mut Scratch<'a> {
        self.docs.get_mut(&op.doc).expect("every op's document was taken in")
    }

    /// Whether a unit is to be written: no conflict, or one that the policy writes over.
    /// `ours` is what it wants to stand there.
    fn admits(
        &mut self,
        index: usize,
        op: &Op,
        path: Option<&FieldPath>,
        ours: impl FnOnce() -> Option<Value>,
    ) -> bool {
        let Some(base) = self.base else { return true };
        let before = self.docs[&op.doc].before;
        let Some(mut theirs) = guard::conflict(before, path, base, self.writer, op.exists == Some(true)) else {
            return true;
        };
        let policy = self
            .body
            .policy
            .unwrap_or_else(|| self.planner.rules.policy(self.planner.space, &op.doc));
        let unit = self.unit(index, op, path);
        let done = match policy {
            Policy::Lww => {
                self.report.conflicts.push(unit);
                ConflictDone::Overwritten
            }
            Policy::Merge => {
                self.report.skipped.push(unit);
                ConflictDone::Skipped
            }
            Policy::Reject => {
                self.report.cells.push(unit);
                self.rejected.get_or_insert_with(|| at(index, path));
                ConflictDone::Rejected
            }
        };
        if self.logged.insert((op.doc.clone(), path.cloned())) {
            theirs.retain(|(at, _)| self.theirs.insert((op.doc.clone(), at.clone())));
            self.conflicts.push(ConflictEntry {
                doc: op.doc.clone(),
                path: path.cloned(),
                theirs,
                ours: ours(),
                done,
            });
        }
        done != ConflictDone::Skipped
    }

    /// A unit, with the cells that stand and that the writer may see.
    fn unit(&mut self, index: usize, op: &Op, path: Option<&FieldPath>) -> ConflictUnit {
        let cells = if readable(self.scope.as_ref(), &op.doc) {
            standing(self.docs[&op.doc].before, path, &mut self.left)
        } else {
            vec![]
        };
        ConflictUnit {
            op: u32_of(index),
            doc: op.doc.clone(),
            path: path.cloned(),
            cells,
        }
    }

    /// What becomes of the mutation, all its ops evaluated.
    fn verdict(mut self, expects: Vec<(DocPath, Version)>) -> Verdict {
        if let Some(at) = self.rejected.take() {
            // Whatever the policy of another of its documents: nothing of it was done.
            self.conflicts
                .iter_mut()
                .for_each(|entry| entry.done = ConflictDone::Rejected);
            let Report {
                mut cells,
                conflicts,
                skipped,
                ..
            } = self.report;
            cells.extend(conflicts.into_iter().chain(skipped));
            let message = "another writer was first; see what stands, and decide anew".into();
            let refusal = Refusal {
                code: Code::Conflict,
                message,
                at: Some(at),
            };
            return Verdict::Refuse {
                refusal,
                cells,
                conflicts: self.conflicts,
                expects,
            };
        }
        let limits = self.planner.limits;
        for (doc, scratch) in &self.docs {
            if let Err(error) = bounds::check_document(scratch, limits) {
                return Verdict::Refuse {
                    refusal: refusal(error.within(doc.as_str()), None),
                    cells: vec![],
                    conflicts: vec![],
                    expects,
                };
            }
        }
        if let Err(refusal) = self.check_quota() {
            return Verdict::Refuse {
                refusal,
                cells: vec![],
                conflicts: vec![],
                expects,
            };
        }
        let nets: Vec<Net> = self
            .docs
            .into_iter()
            .filter_map(|(doc, scratch)| scratch.finish(&doc))
            .collect();
        let (docs, changes): (Vec<_>, Vec<_>) = nets.into_iter().map(|net| (net.effect, net.change)).unzip();
        let body = msgpack::encode_body(self.writer, self.request.head.mid, &changes);
        if let Err(error) = bounds::check_change(&changes, body.len(), limits) {
            return Verdict::Refuse {
                refusal: refusal(error, None),
                cells: vec![],
                conflicts: vec![],
                expects,
            };
        }
        self.report.bound(bounds::units_share(limits));
        let detail = self.report.detail();
        let effects = Effects {
            docs,
            body,
            now_ms: self.uses_now.then_some(self.planner.now_ms),
            conflicts: self.conflicts,
            detail,
        };
        Verdict::Apply {
            effects,
            expects,
            report: self.report,
        }
    }
}

impl Evaluation<'_> {
    /// Whether the quotas allow what the documents have become; if not, the refusal names the first op on a
    /// document that has grown so.
    fn check_quota(&self) -> Result<(), Refusal> {
        let before = self.docs.values().map(Scratch::usage_before);
        let after = self.docs.values().map(Scratch::usage);
        let (before, after) = (
            before.fold(Usage::default(), Usage::plus),
            after.fold(Usage::default(), Usage::plus),
        );
        self.planner.room.check(before, after).map_err(|Grown { of, why }| {
            let grown = |op: &Op| {
                let (before, after) = (self.docs[&op.doc].usage_before(), self.docs[&op.doc].usage());
                match of {
                    Of::Docs => after.docs > before.docs,
                    Of::Bytes => after.bytes > before.bytes,
                }
            };
            refusal(why, self.body.ops.iter().position(grown).map(|index| at(index, None)))
        })
    }
}

/// Whether a document's cells may be shown.
pub(super) fn readable(scope: Option<&ReadScope>, doc: &DocPath) -> bool {
    match scope {
        Some(ReadScope::All) => true,
        Some(ReadScope::Collections(list)) => list.iter().any(|collection| collection.as_str() == doc.collection()),
        None => false,
    }
}

pub(super) fn at(op: usize, path: Option<&FieldPath>) -> At {
    At {
        op: u32_of(op),
        path: path.cloned(),
    }
}

fn u32_of(index: usize) -> u32 {
    u32::try_from(index).unwrap_or(u32::MAX)
}

pub(super) fn refusal(error: Invalid, at: Option<At>) -> Refusal {
    Refusal {
        code: error.code,
        message: error.message,
        at,
    }
}
