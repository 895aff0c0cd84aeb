//! Results of a client's last mutations, up to 16 in a record.
//!
//! Those whose mids differ in their last four bits alone are one record, a *run*, so that the mutations of a client in one
//! group share a write. Runs are in slots, and take turns: there is one slot more than the results that are kept fill, since
//! a new run takes the place of a whole one. Format 2 had a record for each mutation, under its mid.

use super::disk::{Look, Table, damaged};
use super::records::{Client, KeptResult, Record as _, Take, put_bytes, put_u64};
use crate::store::{KEPT_RESULTS, StoreError};
use tidegate_protocol::{Mid, SpaceId, Writer};

/// Mutations whose results are in one record.
pub(super) const RUN: u64 = 16;
/// Runs of a client.
pub(super) const SLOTS: u64 = KEPT_RESULTS / RUN + 1;

/// Where the run of a mutation is.
pub(super) fn slot(mid: Mid) -> u8 {
    u8::try_from(mid.get() / RUN % SLOTS).expect("there are few")
}

/// The mids whose results a client may have in its slots whose last one this is.
pub(super) fn in_slots(last: Mid) -> impl Iterator<Item = Mid> {
    let last = last.get();
    (last.saturating_sub(KEPT_RESULTS + RUN - 1)..=last)
        .filter_map(Mid::new)
        .filter(|mid| *mid > Mid::ZERO)
}

/// The results of a run, which follow each other, with the mid of the first.
pub(super) fn parse(run: &[u8]) -> Option<(Mid, Vec<KeptResult>)> {
    let mut from = Take(run);
    let first = Mid::new(from.u64()?)?;
    let mut results = Vec::new();
    while !from.0.is_empty() {
        results.push(KeptResult::decode(from.bytes()?)?);
    }
    Some((first, results))
}

/// The kept result of a client's mutation.
pub(super) fn look(
    look: &impl Look,
    space: &SpaceId,
    (writer, client): (Writer, &Client),
    mid: Mid,
) -> Result<Option<KeptResult>, StoreError> {
    let key = client.result_key(space, writer, mid);
    if client.runs.is_none_or(|from| mid < from) {
        return look.record(Table::Results, &key);
    }
    let is_kept = mid.get() + KEPT_RESULTS > client.last.get();
    let Some(run) = look.get(Table::Results, &key)?.filter(|_| is_kept) else {
        return Ok(None);
    };
    let (first, mut results) = parse(&run).ok_or_else(|| damaged(Table::Results, &key))?;
    let at = mid.get().checked_sub(first.get());
    let at = at
        .and_then(|at| usize::try_from(at).ok())
        .filter(|at| *at < results.len());
    Ok(at.map(|at| results.swap_remove(at)))
}

/// Whether it begins as one.
pub(super) fn is_run(run: &[u8]) -> bool {
    first(run).is_some()
}

fn first(run: &[u8]) -> Option<Mid> {
    Mid::new(Take(run).u64()?)
}

/// What is in the slot of a mutation with its result behind. What is there may be another run, whose time is over.
pub(super) fn with(found: Option<&[u8]>, mid: Mid, result: &KeptResult) -> Vec<u8> {
    let is_same = |run: &&[u8]| first(run).is_some_and(|first| first.get() / RUN == mid.get() / RUN);
    let (before, result) = (found.filter(is_same), result.encode());
    let mut run = Vec::with_capacity(before.map_or(8, <[u8]>::len) + 4 + result.len());
    match before {
        Some(before) => run.extend_from_slice(before),
        None => put_u64(&mut run, mid.get()),
    }
    put_bytes(&mut run, &result);
    run
}
