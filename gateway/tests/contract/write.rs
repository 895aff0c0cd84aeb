//! The writing half of a run: what clients send, what mid and key lead to, and what is made of it.

use crate::generate::{self, wire};
use crate::interpret::{Around, Judged, Unit};
use crate::value::Dice;
use crate::world::{Past, Result, Sent, World, end_of, held, user};
use std::collections::BTreeSet;
use std::sync::Arc;
use tidegate::auth::{DevAuthoriser, Identity};
use tidegate::engine::{Plan, Planner, Quota, Refusal, Report, WriteBody, WriteRequest};
use tidegate::store::{Action, Outcome, Prepared, SpaceState, planned_index};
use tidegate_protocol::{
    ClientId, Code, ConflictUnit, DocPath, Epoch, Limits, Mid, MutationKey, Policy, Position, Seq, WriteHead, Writer,
    msgpack,
};

impl World {
    pub(crate) async fn write(&mut self) {
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
        let who = Arc::new(Identity::new(user(client), None));
        Sent {
            request: WriteRequest::new(who, head, body),
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
        let clock = self.clock;
        let (rules, limits, space) = (DevAuthoriser, Limits::default(), self.space.clone());
        let quota = Quota {
            space_docs: self.most_docs,
            ..Quota::default()
        };
        let mut planner = Planner::new(&rules, &limits, &space, docs, cut, clock).within(quota, 0);
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
        self.committed_ms = clock;
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
                        Action::Apply(effects) if effects.now_ms.is_some_and(|now| now < *last_ms) => {
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
            let disturbed = interloper || !as_planned;
            as_planned &= applied;
            let seqs: Vec<Option<Seq>> = outcomes.iter().map(seq_of).collect();
            self.check(
                &sent,
                expected,
                outcome,
                &items[index],
                &reports[index],
                &state,
                &seqs,
                disturbed,
            );
        }
        again
    }

    /// What mid and key alone lead to.
    fn expect(&self, sent: &Sent) -> Expect {
        let head = &sent.request.head;
        let mid = head.mid.get();
        if self.truth.erased.contains_key(&head.client.0) {
            return Expect::Erased;
        }
        let Some(record) = self.truth.records.get(&head.client.0) else {
            let forgotten = head.first <= self.truth.forgotten;
            return match mid {
                1 if !forgotten => Expect::New,
                1 => Expect::Forgotten,
                _ => Expect::Unknown,
            };
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
        disturbed: bool,
    ) {
        let docs = self.truth.docs.plain().len() as u64;
        let over = |after: usize, most: Option<u64>| {
            let after = after as u64;
            after > docs && most.is_some_and(|most| after > most)
        };
        match (expected, outcome) {
            (Expect::Unknown, Outcome::ClientUnknown) => self.cover.hit("unknown client"),
            (Expect::Erased, Outcome::ClientUnknown) => self.cover.hit("mutation of an erased client"),
            (Expect::Forgotten, Outcome::ClientUnknown) => self.cover.hit("first mutation of a forgotten client"),
            (Expect::Cloned, Outcome::ClientCloned) => self.cover.hit("cloned client"),
            (Expect::OutOfOrder(expected), Outcome::OutOfOrder { expected: told }) => {
                assert_eq!(told.get(), expected);
                self.cover.hit("out of order");
            }
            (Expect::Duplicate(first), Outcome::Duplicate(kept)) => {
                assert_eq!((kept.refused, kept.position), (first.refused, first.position));
                let record = self
                    .truth
                    .records
                    .get_mut(&sent.request.head.client.0)
                    .expect("a record");
                record.when = record.when.max(self.committed_ms);
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
                assert_eq!(
                    commit.writer,
                    Writer::of(user(sent.request.head.client.0), sent.request.head.client)
                );
                if commit.docs.is_empty() {
                    self.cover.hit("commit without effect");
                }
                let judged = self.judge(sent, state, *at);
                assert_eq!(judged.refused, None, "applied");
                let after = self.truth.docs.plain().len();
                assert!(
                    disturbed || !over(after, self.most_docs),
                    "more documents than there may be"
                );
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
                if *code == Code::TooLarge {
                    let before = self.truth.docs.clone();
                    let judged = self.judge(sent, state, self.clock);
                    let after = std::mem::replace(&mut self.truth.docs, before).plain().len();
                    assert_eq!(judged.refused, None, "nothing else is wrong");
                    assert!(disturbed || over(after, self.most_docs), "there is room");
                    self.cover.hit("refused over a quota");
                    return self.keep(sent, Some(*code), *position);
                }
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
        record.when = record.when.max(self.committed_ms);
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
}

/// The mid oracle's verdict.
#[derive(Clone)]
enum Expect {
    New,
    Duplicate(Result),
    Cloned,
    Unknown,
    /// Unknown, although a first mutation: the record is gone of who may have sent it.
    Forgotten,
    /// Unknown, because its data was erased.
    Erased,
    OutOfOrder(u64),
}

impl std::fmt::Debug for Expect {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::New => f.write_str("new"),
            Self::Duplicate(first) => write!(f, "a duplicate of {} ({:?})", first.position, first.refused),
            Self::Cloned => f.write_str("cloned"),
            Self::Unknown => f.write_str("unknown"),
            Self::Forgotten => f.write_str("forgotten"),
            Self::Erased => f.write_str("erased"),
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
