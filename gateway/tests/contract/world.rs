//! One run: clients write through the planner, replicas follow, stores restart, lose history and
//! collect; and after every answer two oracles are asked. One tells what the space holds
//! (`interpret`), the other what a client's mids and keys lead to (below). Where there are several
//! stores, they must answer alike.

use crate::coverage::Coverage;
use crate::generate::{self, doc, wire};
use crate::harness::Harness;
use crate::interpret::{Around, Docs, Judged, Mutation, Plain, Unit};
use crate::replica::{Replica, view};
use crate::value::{Dice, V};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use tidegate::auth::{DevAuthoriser, Identity};
use tidegate::engine::{Plan, Planner, Refusal, Report, WriteBody, WriteRequest};
use tidegate::store::{Action, CommitGroup, Lineage, Outcome, Prepared, ReadCut, SpaceState, Version, planned_index};
use tidegate_protocol::{
    ClientId, Code, ConflictUnit, DocPath, Epoch, Limits, Mid, MutationKey, Policy, Position, Seq, SpaceId, WriteHead,
    Writer, msgpack,
};

const CLIENTS: u64 = 5;
const USER: &str = "u";

/// What a mutation led to, as the second oracle keeps it.
#[derive(Clone)]
struct Result {
    key: u64,
    refused: Option<Code>,
    position: Position,
}

/// A client's record.
#[derive(Clone, Default)]
struct Record {
    last: u64,
    results: BTreeMap<u64, Result>,
}

/// A commit of the present history.
#[derive(Clone)]
pub(crate) struct Past {
    /// Never used again, also where the seq is.
    pub(crate) id: u64,
    pub(crate) plain: Arc<Plain>,
}

/// Everything that a restore brings back.
#[derive(Clone, Default)]
struct Truth {
    docs: Docs,
    history: Vec<Past>,
    records: BTreeMap<u64, Record>,
    floor: u64,
    last_ms: u64,
}

/// A mutation on its way.
#[derive(Clone)]
struct Sent {
    request: WriteRequest,
    mutation: Option<Mutation>,
}

pub(crate) struct World {
    pub(crate) dice: Dice,
    pub(crate) cover: Coverage,
    pub(crate) stores: Vec<Box<dyn Harness>>,
    pub(crate) space: SpaceId,
    pub(crate) replicas: Vec<Replica>,
    pub(crate) old_replicas: Vec<Replica>,
    truth: Truth,
    backup: Option<Truth>,
    /// Positions that somebody has seen, with their commits' ids.
    seen: Vec<Position>,
    sent: BTreeMap<(u64, u64), Sent>,
    clock: u64,
    ids: u64,
    pub(crate) lives: u64,
}

impl World {
    pub(crate) fn new(seed: u64, stores: Vec<Box<dyn Harness>>) -> Self {
        let views = [view(None), view(None), view(Some(&["a"])), view(Some(&["a/x", "b"]))];
        let replicas = (0..4 * stores.len()).map(|n| Replica::new(n % stores.len(), views[n / stores.len()].clone()));
        Self {
            dice: Dice(seed),
            cover: Coverage::default(),
            replicas: replicas.collect(),
            old_replicas: vec![],
            stores,
            space: SpaceId::parse("suite:1").expect("valid"),
            truth: Truth::default(),
            backup: None,
            seen: vec![Position::START],
            sent: BTreeMap::new(),
            clock: 1_000_000,
            ids: 0,
            lives: 0,
        }
    }

    /// One thing that may happen.
    pub(crate) async fn step(&mut self) {
        match self.dice.below(100) {
            0..=44 => self.write().await,
            45..=89 => self.follow().await,
            90..=93 => self.compare().await,
            94..=96 => self.collect().await,
            97 => {
                self.stores.iter_mut().for_each(|store| store.restart());
                self.lives += 1;
                self.cover.hit("restart");
            }
            98 => {
                self.stores.iter_mut().for_each(|store| store.back_up());
                self.lives += 1;
                self.backup = Some(self.truth.clone());
            }
            _ => {
                if let Some(truth) = self.backup.clone() {
                    self.stores.iter_mut().for_each(|store| store.restore());
                    self.lives += 1;
                    self.truth = truth;
                    self.cover.hit("restore of an older state");
                }
            }
        }
    }

    pub(crate) fn head(&self) -> u64 {
        self.truth.history.len() as u64
    }

    pub(crate) fn floor(&self) -> u64 {
        self.truth.floor
    }

    /// How many commits there have been, lost ones too.
    pub(crate) fn commits(&self) -> u64 {
        self.ids
    }

    /// The commit of a seq in the present history.
    pub(crate) fn past(&self, seq: u64) -> Past {
        match usize::try_from(seq).expect("small").checked_sub(1) {
            Some(at) => self.truth.history[at].clone(),
            None => Past {
                id: 0,
                plain: Arc::new(Plain::new()),
            },
        }
    }

    pub(crate) fn saw(&mut self, position: Position) {
        self.seen.push(position);
    }

    pub(crate) fn last_mid(&self, client: u64) -> Option<u64> {
        self.truth.records.get(&client).map(|record| record.last)
    }

    pub(crate) fn a_client(&mut self) -> u64 {
        self.dice.bits() % CLIENTS
    }

    async fn collect(&mut self) {
        let low = self.head().saturating_sub(40);
        let to = low + self.dice.bits() % (self.head() - low + 1);
        for store in &self.stores {
            store.raise_floor(&self.space, Seq::new(to).expect("small")).await;
        }
        if to > self.truth.floor {
            self.cover.hit("floor raised");
            self.truth.floor = to;
        }
        self.truth.docs.collect(self.truth.floor);
    }

    async fn write(&mut self) {
        let mut group: Vec<Sent> = vec![];
        for _ in 0..*self.dice.pick(&[1, 1, 2, 3, 6]) {
            let next = self.compose(&group);
            group.push(next);
        }
        if group.len() > 1 {
            self.cover.hit("groups of several");
        }
        // A group leaves some to be planned again; at the latest when nothing comes between, all are done.
        for round in 0.. {
            assert!(round < 20, "the same mutations stay stale");
            let interloper = round == 0 && self.dice.percent(12);
            group = self.commit(group, interloper).await;
            if group.is_empty() {
                return;
            }
        }
    }

    /// A mutation: mostly a client's next one, sometimes what a client should not send.
    fn compose(&mut self, group: &[Sent]) -> Sent {
        let client = self.a_client();
        let record = self.truth.records.get(&client).cloned().unwrap_or_default();
        let in_group = |sent: &&Sent| sent.request.head.client.0 == client;
        let waiting: Vec<&Sent> = group.iter().filter(in_group).collect();
        let last = waiting.last().map_or(record.last, |sent| sent.request.head.mid.get());
        let key_of = |mid: u64| {
            let mine = waiting.iter().rev().find(|sent| sent.request.head.mid.get() == mid);
            mine.map(|sent| sent.request.head.key.0)
                .or(record.results.get(&mid).map(|result| result.key))
        };
        let (mut client, mut mid, mut prev) = (client, last + 1, key_of(last));
        match self.dice.below(100) {
            0..=9 => {
                let known: Vec<_> = self.sent.keys().filter(|(c, _)| *c == client).copied().collect();
                if !known.is_empty() {
                    return self.sent[self.dice.pick(&known)].clone();
                }
            }
            10..=11 if last > 0 => {
                mid = 1 + self.dice.bits() % last;
                prev = key_of(mid - 1);
            }
            12 if last > 0 => prev = Some(7),
            13..=14 => {
                mid = last + 2 + self.dice.bits() % 3;
                prev = Some(7);
            }
            15 => {
                client = 1_000 + self.dice.bits() % 1_000;
                mid = 2;
                prev = Some(7);
            }
            _ => {}
        }
        let seen = self.seen.clone();
        let recent = seen.len().saturating_sub(6);
        let position = |dice: &mut Dice| match dice.below(10) {
            0 => Position::new(Epoch(12_345), Seq::new(3).expect("small")),
            1..=3 => *dice.pick(&seen),
            _ => *dice.pick(&seen[recent..]),
        };
        let mutation = generate::mutation(&mut self.dice, position);
        let refused = self.dice.percent(2);
        let body = if refused {
            Err(Refusal {
                code: Code::Unsupported,
                message: "unknown op".into(),
                at: None,
            })
        } else {
            Ok(WriteBody {
                base: mutation.base,
                policy: mutation.policy,
                ops: wire(&mutation),
            })
        };
        let head = WriteHead {
            space: self.space.clone(),
            client: ClientId(client),
            mid: Mid::new(mid).expect("small"),
            key: MutationKey(self.dice.bits()),
            prev: prev.filter(|_| mid > 1).map(MutationKey),
            first: (mid == 1).then_some(self.clock),
        };
        let who = Arc::new(Identity {
            user: USER.into(),
            expires: None,
        });
        Sent {
            request: WriteRequest { who, head, body },
            mutation: (!refused).then_some(mutation),
        }
    }

    /// Plans and commits a group; what has to be planned again is returned.
    async fn commit(&mut self, group: Vec<Sent>, interloper: bool) -> Vec<Sent> {
        let ops = group
            .iter()
            .filter_map(|sent| sent.request.body.as_ref().ok())
            .flat_map(|body| &body.ops);
        let docs: Vec<DocPath> = ops
            .map(|op| op.doc.clone())
            .collect::<BTreeSet<_>>()
            .into_iter()
            .collect();
        let cut = self.read(&docs).await;
        let state = cut.state.clone();
        // Clocks may go back; a commit's time does not.
        self.clock = self.clock + self.dice.bits() % 50 - if self.dice.percent(10) { 40 } else { 0 };
        let mut clock = self.clock;
        let (rules, limits, space) = (DevAuthoriser, Limits::default(), self.space.clone());
        let mut planner = Planner::new(&rules, &limits, &space, docs, cut, clock);
        clock = planner.now_ms();
        let mut items: Vec<Prepared> = vec![];
        let mut reports: Vec<Report> = vec![];
        for sent in &group {
            match planner.plan(&sent.request) {
                Plan::Item(item, report) => {
                    items.push(*item);
                    reports.push(report);
                }
                Plan::Later(refusal) => panic!("the suite's rules never wait: {refusal:?}"),
            }
        }
        if interloper {
            let other = self.compose(&group);
            self.clock += 100;
            let again = Box::pin(self.commit(vec![other], false)).await;
            assert!(again.is_empty(), "nothing came between");
        }
        let outcomes = self.send(&state, clock, items.clone()).await;
        let mut again: Vec<Sent> = vec![];
        let mut failed: BTreeSet<u64> = BTreeSet::new();
        let mut as_planned = true;
        for (index, (sent, outcome)) in group.into_iter().zip(&outcomes).enumerate() {
            let client = sent.request.head.client.0;
            let expected = self.expect(&sent);
            match (&expected, outcome) {
                (Expect::New, Outcome::Stale { last_ms }) => {
                    assert_eq!(*last_ms, self.truth.last_ms);
                    assert!(interloper || !as_planned, "stale, and nothing came between");
                    self.cover.hit(if interloper {
                        "stale replan"
                    } else {
                        "stale within a group"
                    });
                    match &items[index].action {
                        Action::Apply(effects) if effects.uses_now && clock < *last_ms => {
                            self.cover.hit("stale for its time");
                        }
                        Action::Apply(_) => {}
                        Action::Refuse { .. } => self.cover.hit("stale replan of a refusal"),
                    }
                    failed.insert(client);
                    again.push(sent);
                    as_planned = false;
                    continue;
                }
                // Behind one that has to be planned again.
                (Expect::OutOfOrder(_) | Expect::Unknown, _) if failed.contains(&client) => {
                    again.push(sent);
                    as_planned = false;
                    continue;
                }
                _ => {}
            }
            let applied = matches!(outcome, Outcome::Applied { .. } | Outcome::Refused { .. });
            as_planned &= applied;
            let seqs: Vec<Option<Seq>> = outcomes.iter().map(seq_of).collect();
            self.check(&sent, expected, outcome, &items[index], &reports[index], &state, &seqs);
        }
        again
    }

    /// What mid and key alone lead to.
    fn expect(&self, sent: &Sent) -> Expect {
        let head = &sent.request.head;
        let mid = head.mid.get();
        let Some(record) = self.truth.records.get(&head.client.0) else {
            return if mid == 1 { Expect::New } else { Expect::Unknown };
        };
        if mid > record.last + 1 {
            return Expect::OutOfOrder(record.last + 1);
        }
        if mid == record.last + 1 {
            let prev = record.results[&record.last].key;
            return if head.prev == Some(MutationKey(prev)) {
                Expect::New
            } else {
                Expect::Cloned
            };
        }
        match &record.results[&mid] {
            result if result.key != head.key.0 => Expect::Cloned,
            // Longer ago than results are kept.
            _ if record.last - mid >= 256 => Expect::Unknown,
            result => Expect::Duplicate(result.clone()),
        }
    }

    #[allow(clippy::too_many_arguments, reason = "everything that an outcome is judged by")]
    fn check(
        &mut self,
        sent: &Sent,
        expected: Expect,
        outcome: &Outcome,
        item: &Prepared,
        report: &Report,
        state: &SpaceState,
        seqs: &[Option<Seq>],
    ) {
        match (expected, outcome) {
            (Expect::Unknown, Outcome::ClientUnknown) => self.cover.hit("unknown client"),
            (Expect::Cloned, Outcome::ClientCloned) => self.cover.hit("cloned client"),
            (Expect::OutOfOrder(expected), Outcome::OutOfOrder { expected: told }) => {
                assert_eq!(told.get(), expected);
                self.cover.hit("out of order");
            }
            (Expect::Duplicate(first), Outcome::Duplicate(kept)) => {
                assert_eq!((kept.refused, kept.position), (first.refused, first.position));
                self.cover.hit(if kept.refused.is_some() {
                    "duplicate of a refusal"
                } else {
                    "duplicate"
                });
            }
            (Expect::New, Outcome::Applied { position, at, payload }) => {
                assert_eq!(position.seq.get(), self.head() + 1, "seqs have no gap");
                assert!(*at >= self.truth.last_ms, "time goes back");
                self.truth.last_ms = *at;
                let commit = msgpack::decode_payload(payload).expect("a change");
                assert_eq!(
                    (commit.seq, commit.at, commit.mid),
                    (position.seq, *at, sent.request.head.mid)
                );
                assert_eq!(commit.writer, Writer::of(USER, sent.request.head.client));
                if commit.docs.is_empty() {
                    self.cover.hit("commit without effect");
                }
                let judged = self.judge(sent, state, *at);
                assert_eq!(judged.refused, None, "applied");
                self.note(&judged, sent, state, report, seqs);
                self.ids += 1;
                self.truth.history.push(Past {
                    id: self.ids,
                    plain: Arc::new(self.truth.docs.plain()),
                });
                self.seen.push(*position);
                self.keep(sent, None, *position);
                self.cover.hit("commits");
            }
            (Expect::New, Outcome::Refused { position }) => {
                assert_eq!(position.seq.get(), self.head());
                let Action::Refuse { code, .. } = &item.action else {
                    panic!("{item:?}")
                };
                let judged = match &sent.mutation {
                    Some(_) => self.judge(sent, state, self.clock),
                    None => Judged {
                        refused: Some(Code::Unsupported),
                        ..Judged::default()
                    },
                };
                assert_eq!(judged.refused, Some(*code));
                self.note(&judged, sent, state, report, seqs);
                match code {
                    Code::PreconditionFailed => self.cover.hit("precondition refused"),
                    Code::Unsupported => self.cover.hit("refusal handed in"),
                    Code::Invalid => self.cover.hit("mutation without ops"),
                    _ => {}
                }
                self.keep(sent, Some(*code), *position);
            }
            (expected, outcome) => panic!("{expected:?}, but {outcome:?} for {:?}", sent.request),
        }
    }

    /// Asks the interpreter, which moves on if the mutation is applied.
    fn judge(&mut self, sent: &Sent, state: &SpaceState, at: u64) -> Judged {
        let mutation = sent.mutation.as_ref().expect("refusals handed in are judged before");
        let head = state.head.seq.get();
        let around = Around {
            seq: self.head() + 1,
            writer: sent.request.head.client.0,
            at,
            floor: state.floor.get(),
            base: mutation
                .base
                .map(|base| end_of(&state.lineage, base, head).map_or(0, |end| base.seq.get().min(end))),
            since: mutation
                .ops
                .iter()
                .map(|op| held(&state.lineage, op.since?, head))
                .collect(),
            policy: Policy::Lww,
        };
        if around.base.is_some_and(|base| base < around.floor) {
            self.cover.hit("base below the floor");
        }
        if mutation
            .base
            .is_some_and(|base| base.seq > Seq::ZERO && held(&state.lineage, base, head).is_none())
        {
            self.cover.hit("base of a lost history");
        }
        let before = self.truth.docs.plain();
        let judged = if let Some(refused) = self.truth.docs.clone().mutate(mutation, &around).refused {
            let mut judged = self.truth.docs.clone().mutate(mutation, &around);
            judged.refused = Some(refused);
            judged
        } else {
            self.truth.docs.mutate(mutation, &around)
        };
        let after = self.truth.docs.plain();
        self.cover_nonzero(
            "deletion",
            before.keys().filter(|name| !after.contains_key(*name)).count() as u64,
        );
        judged
    }

    fn cover_nonzero(&mut self, what: &'static str, n: u64) {
        if n > 0 {
            self.cover.add(what, n);
        }
    }

    /// Compares what the writer is told with what the interpreter found.
    fn note(&mut self, judged: &Judged, sent: &Sent, state: &SpaceState, report: &Report, seqs: &[Option<Seq>]) {
        let units = |list: &[ConflictUnit]| -> BTreeSet<Unit> {
            let path = |unit: &ConflictUnit| unit.path.as_ref().map(generate::segments);
            list.iter()
                .map(|unit| (unit.op, unit.doc.as_str().to_owned(), path(unit)))
                .collect()
        };
        let expected = |list: &[Unit]| list.iter().cloned().collect::<BTreeSet<Unit>>();
        assert_eq!(
            units(&report.conflicts),
            expected(&judged.conflicts),
            "{:?} on {state:?}",
            sent.mutation
        );
        assert_eq!(
            units(&report.skipped),
            expected(&judged.skipped),
            "{:?} on {state:?}",
            sent.mutation
        );
        if judged.refused == Some(Code::Conflict) {
            assert_eq!(
                units(&report.cells),
                expected(&judged.rejected),
                "{:?} on {state:?}",
                sent.mutation
            );
        }
        for cell in report
            .conflicts
            .iter()
            .chain(&report.skipped)
            .chain(&report.cells)
            .flat_map(|unit| &unit.cells)
        {
            if let Some(index) = planned_index(cell.seq) {
                assert!(seqs[index].is_some(), "a cell of a commit that is none");
                self.cover.hit("conflict within a group");
            }
        }
        self.cover_nonzero("conflict lww", judged.conflicts.len() as u64);
        self.cover_nonzero("conflict merge", judged.skipped.len() as u64);
        self.cover_nonzero("conflict reject", judged.rejected.len() as u64);
        self.cover_nonzero("structure rule removal", judged.displaced);
        self.cover_nonzero("recreation", judged.recreated);
    }

    fn keep(&mut self, sent: &Sent, refused: Option<Code>, position: Position) {
        let head = &sent.request.head;
        let record = self.truth.records.entry(head.client.0).or_default();
        record.last = head.mid.get();
        record.results.insert(
            head.mid.get(),
            Result {
                key: head.key.0,
                refused,
                position,
            },
        );
        self.sent.insert((head.client.0, head.mid.get()), sent.clone());
    }

    /// Commits on every store; all answer alike.
    async fn send(&mut self, state: &SpaceState, now_ms: u64, items: Vec<Prepared>) -> Vec<Outcome> {
        let (planned_on, fresh) = (state.lineage.last_epoch(), Epoch(self.dice.bits() | 1));
        let group = CommitGroup {
            space: self.space.clone(),
            planned_on,
            fresh,
            now_ms,
            items,
        };
        for (index, item) in group.items.iter().enumerate() {
            let on = |version: &Version| matches!(version, Version::Item(at) if *at >= index);
            assert!(
                !item.expects.iter().any(|(_, version)| on(version)),
                "planned on what comes later"
            );
        }
        let mut first: Option<Vec<Outcome>> = None;
        for store in &self.stores {
            let outcomes = store.store().commit(group.clone()).await.expect("it answers").outcomes;
            match &first {
                Some(first) => assert_eq!(*first, outcomes, "the stores differ"),
                None => first = Some(outcomes),
            }
        }
        first.expect("there is a store")
    }

    /// Reads on every store; all answer alike, and as the interpreter says.
    pub(crate) async fn read(&mut self, docs: &[DocPath]) -> ReadCut {
        let mut cuts = vec![];
        for store in &self.stores {
            let mut cut = store.store().read(&self.space, docs).await.expect("it answers");
            anonymous(&mut cut.state.lineage);
            cuts.push(cut);
        }
        for cut in &cuts {
            assert_eq!(*cut, cuts[0], "the stores differ");
        }
        let cut = cuts.swap_remove(0);
        assert_eq!(
            (cut.state.head.seq.get(), cut.state.floor.get()),
            (self.head(), self.truth.floor)
        );
        let plain = self.past(self.head()).plain;
        for (name, doc) in docs.iter().zip(&cut.docs) {
            let leaves = doc
                .leaves()
                .map(|(path, value)| (generate::segments(path), V::of(value)))
                .collect();
            assert_eq!(doc.alive().then_some(&leaves), plain.get(name.as_str()), "{name}");
            if let Some(header) = doc.header {
                let bytes: usize = doc
                    .leaves()
                    .map(|(path, value)| path.as_str().len() + value.as_bytes().len())
                    .sum();
                assert_eq!(header.size, bytes as u64, "{name}'s size");
            }
        }
        cut
    }

    pub(crate) fn all_docs() -> Vec<DocPath> {
        generate::DOCS.iter().map(|name| doc(name)).collect()
    }
}

/// The mid oracle's verdict.
#[derive(Clone)]
enum Expect {
    New,
    Duplicate(Result),
    Cloned,
    Unknown,
    OutOfOrder(u64),
}

impl std::fmt::Debug for Expect {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::New => f.write_str("new"),
            Self::Duplicate(first) => write!(f, "a duplicate of {} ({:?})", first.position, first.refused),
            Self::Cloned => f.write_str("cloned"),
            Self::Unknown => f.write_str("unknown"),
            Self::OutOfOrder(expected) => write!(f, "out of order, {expected} expected"),
        }
    }
}

fn seq_of(outcome: &Outcome) -> Option<Seq> {
    match outcome {
        Outcome::Applied { position, .. } => Some(position.seq),
        _ => None,
    }
}

/// Where an epoch ends.
fn end_of(lineage: &Lineage, position: Position, head: u64) -> Option<u64> {
    let at = lineage.0.iter().position(|entry| entry.epoch == position.epoch)?;
    Some(lineage.0.get(at + 1).map_or(head, |next| next.start.get()))
}

/// The seq of a position, if it is one of this history.
pub(crate) fn held(lineage: &Lineage, position: Position, head: u64) -> Option<u64> {
    let seq = position.seq.get();
    (seq == 0 || end_of(lineage, position, head).is_some_and(|end| seq <= end)).then_some(seq)
}

/// Takes out what differs between stores by nature.
pub(crate) fn anonymous(lineage: &mut Lineage) {
    lineage.0.iter_mut().for_each(|entry| entry.incarnation.clear());
}
