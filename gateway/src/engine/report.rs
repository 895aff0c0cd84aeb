//! What the writer is told of units in conflict: with the cells in the first answer, and compactly
//! kept with the result, so that a repeat gets the same answer with its cells read afresh.

use super::Refusal;
use super::guard;
use crate::store::{DocState, planned_index};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use tidegate_protocol::{At, CellState, Code, ConflictUnit, DocPath, FieldPath, Seq};

/// Kept with a result at most; over it, units are named by document, and then left out.
const DETAIL_BYTES: usize = 4 << 10;
/// What the wire adds to a unit's or a cell's own texts and value, at most: seq, writer, op, headers.
const OVERHEAD: usize = 48;

/// What a mutation's answer holds beside its position.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Report {
    /// Written over newer cells of others.
    pub conflicts: Vec<ConflictUnit>,
    /// Left out.
    pub skipped: Vec<ConflictUnit>,
    /// Refused, and why.
    pub refusal: Option<Refusal>,
    /// With a refusal: what stands.
    pub cells: Vec<ConflictUnit>,
}

/// A unit as the detail names it: list (0 conflicts, 1 skipped, 2 cells), op, document, path.
type KeptUnit = (u8, u32, String, Option<String>);

/// [`Report`] without cells, as kept. In MessagePack, as an array.
#[derive(Serialize, Deserialize, Default)]
struct Detail {
    units: Vec<KeptUnit>,
    /// Some units are missing.
    truncated: bool,
    message: Option<String>,
    at: Option<(u32, Option<String>)>,
}

impl Report {
    fn lists(&self) -> [&Vec<ConflictUnit>; 3] {
        [&self.conflicts, &self.skipped, &self.cells]
    }

    fn lists_mut(&mut self) -> [&mut Vec<ConflictUnit>; 3] {
        [&mut self.conflicts, &mut self.skipped, &mut self.cells]
    }

    /// Keeps what the units take on the wire, cells aside, to about `bytes`: over it, those of one
    /// op are named as the whole document.
    pub(super) fn bound(&mut self, bytes: usize) {
        let name = |unit: &ConflictUnit| {
            OVERHEAD + unit.doc.as_str().len() + unit.path.as_ref().map_or(0, |p| p.as_str().len())
        };
        if self.lists().into_iter().flatten().map(name).sum::<usize>() > bytes {
            self.lists_mut().into_iter().for_each(coarsen);
        }
    }

    /// Puts the seqs of commits in the place of planned ones.
    pub(super) fn resolve(&mut self, seq_of: &dyn Fn(usize) -> Option<Seq>) {
        for cell in self.lists_mut().into_iter().flatten().flat_map(|unit| &mut unit.cells) {
            if let Some(seq) = planned_index(cell.seq).and_then(seq_of) {
                cell.seq = seq;
            }
        }
    }

    /// The compact form.
    pub(super) fn detail(&self) -> Bytes {
        if *self == Self::default() {
            return Bytes::new();
        }
        let mut coarse = self.clone();
        coarse.lists_mut().into_iter().for_each(coarsen);
        for report in [self, &coarse] {
            let bytes = report.encode(usize::MAX);
            if bytes.len() <= DETAIL_BYTES {
                return bytes;
            }
        }
        // Each unit takes at least 5 bytes, so the bound is reached in few rounds.
        let mut units = coarse
            .lists()
            .iter()
            .map(|list| list.len())
            .sum::<usize>()
            .min(DETAIL_BYTES / 5);
        loop {
            let bytes = coarse.encode(units);
            if bytes.len() <= DETAIL_BYTES || units == 0 {
                return bytes;
            }
            units /= 2;
        }
    }

    fn encode(&self, most: usize) -> Bytes {
        let text = |path: &FieldPath| path.as_str().to_owned();
        let all = (0..).zip(self.lists()).flat_map(|(list, units)| {
            units.iter().map(move |unit| {
                (
                    list,
                    unit.op,
                    unit.doc.as_str().to_owned(),
                    unit.path.as_ref().map(text),
                )
            })
        });
        let mut units: Vec<KeptUnit> = all.collect();
        let truncated = units.len() > most;
        units.truncate(most);
        let detail = Detail {
            units,
            truncated,
            // Texts of our own are far shorter; those of an authoriser are cut.
            message: self
                .refusal
                .as_ref()
                .map(|refusal| refusal.message.chars().take(500).collect()),
            at: self
                .refusal
                .as_ref()
                .and_then(|refusal| Some((refusal.at.as_ref()?.op, refusal.at.as_ref()?.path.as_ref().map(text)))),
        };
        rmp_serde::to_vec(&detail).unwrap_or_default().into()
    }

    /// The documents whose cells a repeat of the answer needs.
    pub(super) fn docs(&self) -> impl Iterator<Item = &DocPath> {
        self.lists().into_iter().flatten().map(|unit| &unit.doc)
    }

    /// Reads the compact form of a kept result; cells are still to be filled in. What cannot be read
    /// (written by a later version, say) is left out.
    pub(super) fn kept(refused: Option<Code>, detail: &[u8]) -> Self {
        let detail: Detail = rmp_serde::from_slice(detail).unwrap_or_default();
        let mut report = Self::default();
        for (list, op, doc, path) in detail.units {
            let Ok(doc) = DocPath::parse(&doc) else { continue };
            let path = path.and_then(|path| FieldPath::parse(&path).ok());
            if let Some(list) = report.lists_mut().into_iter().nth(usize::from(list)) {
                list.push(ConflictUnit {
                    op,
                    doc,
                    path,
                    cells: vec![],
                });
            }
        }
        let at = detail.at.map(|(op, path)| At {
            op,
            path: path.and_then(|path| FieldPath::parse(&path).ok()),
        });
        let message = detail.message.unwrap_or_else(|| "refused before".into());
        report.refusal = refused.map(|code| Refusal { code, message, at });
        report
    }

    /// Fills in the cells of these documents that stand now and that the writer may read, `left` bytes at most.
    pub(super) fn fill(
        &mut self,
        docs: &BTreeMap<DocPath, DocState>,
        readable: impl Fn(&DocPath) -> bool,
        left: &mut usize,
    ) {
        for unit in self.lists_mut().into_iter().flatten() {
            if let Some(doc) = docs.get(&unit.doc).filter(|_| readable(&unit.doc)) {
                unit.cells = standing(doc, unit.path.as_ref(), left);
            }
        }
    }
}

/// The cells that stand at, above and below a path (`None`: all), for the writer to see. None of a
/// document that is gone, and none where they would take more than is `left` of the answer's bytes.
pub(super) fn standing(doc: &DocState, path: Option<&FieldPath>, left: &mut usize) -> Vec<CellState> {
    if !doc.alive() {
        return vec![];
    }
    let mut rest = *left;
    let mut cells = vec![];
    for (path, cell) in guard::around(doc, path) {
        let bytes = OVERHEAD + path.as_str().len() + cell.value.as_ref().map_or(0, |value| value.as_bytes().len());
        let Some(less) = rest.checked_sub(bytes) else {
            return vec![];
        };
        rest = less;
        cells.push(CellState {
            path: path.clone(),
            seq: cell.stamp.seq,
            writer: cell.stamp.writer,
            value: cell.value.clone(),
        });
    }
    *left = rest;
    cells
}

/// One unit an op and document, without a path.
fn coarsen(units: &mut Vec<ConflictUnit>) {
    for unit in units.iter_mut() {
        unit.path = None;
        unit.cells.clear();
    }
    units.dedup_by(|a, b| a.op == b.op && a.doc == b.doc);
}
