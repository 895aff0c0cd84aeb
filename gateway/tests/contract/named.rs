//! Promises one by one, each on every store: with the check behind it taken out, its test fails.

mod ages;
mod bounds;
mod lineages;
mod on_redis;
mod redis_lost;
mod steps;

use crate::generate::doc;
use crate::harness::{Harness, Make, embedded, model, redis};
use crate::interpret::Plain;
use crate::replica::{apply, view};
use crate::value::V;
use std::collections::BTreeMap;
use std::sync::Arc;
use tidegate::auth::{DevAuthoriser, Identity};
use tidegate::engine::{Plan, Planner, WriteBody, WriteRequest};
use tidegate::store::{
    ChangesReply, ChangesRequest, CommitGroup, Cursor, Erase, Erased, LogReply, NOBODY, Outcome, ResetReason,
    Retention, SpaceState, Usage, UserTag, View,
};
use tidegate_protocol::{
    ClientId, Epoch, FieldPath, Fields, Limits, Mid, MutationKey, Op, OpKind, Position, Seq, SpaceId, Value, ViewId,
    WriteHead, Writer,
};

/// Runs a test on every store.
fn each<F: Future<Output = ()>>(test: fn(Bench) -> F) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    for make in [model as Make, embedded, redis] {
        runtime.block_on(test(Bench {
            harness: runtime.block_on(make(Retention::default())),
            epochs: 1,
            now_ms: 1_000,
        }));
    }
}

struct Bench {
    harness: Box<dyn Harness>,
    epochs: u64,
    now_ms: u64,
}

fn space() -> SpaceId {
    SpaceId::parse("named").expect("valid")
}

fn seq(n: u64) -> Seq {
    Seq::new(n).expect("small")
}

fn path(text: &str) -> FieldPath {
    FieldPath::parse(text).expect("valid")
}

fn fields(list: &[(&str, i64)]) -> Fields {
    let list = list.iter().map(|(text, n)| (path(text), Value::int(*n)));
    Fields::new(list, &Limits::default()).expect("valid")
}

fn op(name: &str, kind: OpKind) -> Op {
    Op {
        doc: doc(name),
        kind,
        exists: None,
        unchanged_since: None,
    }
}

fn set(name: &str, list: &[(&str, i64)]) -> Op {
    op(name, OpKind::Set(fields(list)))
}

fn key(mid: u64) -> MutationKey {
    MutationKey(0xabc0 + mid)
}

fn head(client: u64, mid: u64) -> WriteHead {
    WriteHead {
        space: space(),
        client: ClientId(client),
        mid: Mid::new(mid).expect("small"),
        key: key(mid),
        prev: (mid > 1).then(|| key(mid - 1)),
        first: (mid == 1).then_some(1_000),
    }
}

fn plain(docs: &[(&str, &[(&str, i64)])]) -> Plain {
    let leaves = |list: &[(&str, i64)]| -> BTreeMap<Vec<String>, V> {
        list.iter()
            .map(|(text, n)| (text.split('.').map(str::to_owned).collect(), V::Int(*n)))
            .collect()
    };
    docs.iter()
        .map(|(name, list)| ((*name).to_owned(), leaves(list)))
        .collect()
}

fn request(after: Option<Position>) -> ChangesRequest {
    ChangesRequest {
        after,
        cursor: None,
        view: view(None),
        writer: None,
        budget: usize::MAX,
    }
}

/// A mutation's user and name.
struct Sender {
    user: &'static str,
    head: WriteHead,
}

impl Sender {
    fn of(user: &'static str, client: u64, mid: u64) -> Self {
        Self {
            user,
            head: head(client, mid),
        }
    }
}

impl Bench {
    async fn send_by(&mut self, sender: Sender, ops: Vec<Op>) -> Outcome {
        let group = self.plan_by(sender.user, vec![(sender.head, None, ops)]).await;
        self.commit(group).await.remove(0)
    }

    async fn applied_by(&mut self, sender: Sender, base: Option<Position>, ops: Vec<Op>) -> Position {
        let group = self.plan_by(sender.user, vec![(sender.head, base, ops)]).await;
        match self.commit(group).await.remove(0) {
            Outcome::Applied { position, .. } => position,
            other => panic!("not applied: {other:?}"),
        }
    }

    async fn send(&mut self, head: WriteHead, ops: Vec<Op>) -> Outcome {
        let group = self.plan(vec![(head, None, ops)]).await;
        self.commit(group).await.remove(0)
    }

    /// Plans mutations as one group on what the store holds now.
    async fn plan(&mut self, mutations: Vec<(WriteHead, Option<Position>, Vec<Op>)>) -> CommitGroup {
        self.plan_by("u", mutations).await
    }

    async fn plan_by(&mut self, user: &str, mutations: Vec<(WriteHead, Option<Position>, Vec<Op>)>) -> CommitGroup {
        let mut docs: Vec<_> = mutations
            .iter()
            .flat_map(|(.., ops)| ops.iter().map(|op| op.doc.clone()))
            .collect();
        docs.sort();
        docs.dedup();
        let cut = self.harness.store().read(&space(), &docs).await.expect("it answers");
        let planned_on = cut.state.lineage.last_epoch();
        let (mut limits, name) = (Limits::default(), space());
        limits.ops = 10_000;
        let mut planner = Planner::new(&DevAuthoriser, &limits, &name, docs, cut, self.now_ms);
        let mut items = vec![];
        for (head, base, ops) in mutations {
            let who = Arc::new(Identity::new(user, None));
            let body = Ok(WriteBody {
                base,
                policy: None,
                ops,
            });
            let Plan::Item(item, _) = planner.plan(&WriteRequest::new(who, head, body)) else {
                panic!("planned")
            };
            items.push(*item);
        }
        self.epochs += 1;
        CommitGroup {
            space: space(),
            planned_on,
            fresh: Epoch(self.epochs),
            now_ms: self.now_ms,
            items,
        }
    }

    async fn commit(&self, group: CommitGroup) -> Vec<Outcome> {
        self.harness.store().commit(group).await.expect("it answers").outcomes
    }

    async fn applied(&mut self, client: u64, mid: u64, ops: Vec<Op>) -> Position {
        match self.send(head(client, mid), ops).await {
            Outcome::Applied { position, .. } => position,
            other => panic!("not applied: {other:?}"),
        }
    }

    async fn changes(&self, request: ChangesRequest) -> ChangesReply {
        self.harness
            .store()
            .changes(&space(), request)
            .await
            .expect("it answers")
    }

    /// The cursor of a scan's first page, which is not the last.
    async fn first_page(&self, after: Option<Position>) -> Cursor {
        let first = ChangesRequest {
            budget: 1,
            ..request(after)
        };
        match self.changes(first).await {
            ChangesReply::Page { cursor, .. } => cursor,
            other => panic!("{other:?}"),
        }
    }

    /// Catches a replica up that holds `docs` as of `after`.
    async fn catch_up(&self, docs: &mut Plain, after: Position) -> SpaceState {
        match self.changes(request(Some(after))).await {
            ChangesReply::Done {
                docs: changes, state, ..
            } => {
                apply(docs, &changes.decode().expect("documents"));
                state
            }
            other => panic!("{other:?}"),
        }
    }

    async fn state(&self) -> SpaceState {
        self.harness
            .store()
            .positions(&[space()])
            .await
            .expect("it answers")
            .remove(0)
    }
}

#[test]
fn a_mutation_sent_again_is_applied_once_also_across_a_restart() {
    each(|mut bench| async move {
        let inc = || {
            vec![op(
                "a/1",
                OpKind::Inc {
                    path: path("n"),
                    by: tidegate_protocol::Number::Int(1),
                },
            )]
        };
        let first = bench.applied(1, 1, inc()).await;
        bench.applied(1, 2, inc()).await;
        for _ in 0..2 {
            for (mid, seq) in [(1, 1), (2, 2)] {
                match bench.send(head(1, mid), inc()).await {
                    Outcome::Duplicate(kept) => assert_eq!((kept.position.seq.get(), kept.refused), (seq, None)),
                    other => panic!("{other:?}"),
                }
            }
            bench.harness.restart().await;
        }
        assert_eq!(bench.state().await.head.seq, seq(2));
        let ahead = bench.send(head(1, 4), inc()).await;
        assert_eq!(
            ahead,
            Outcome::OutOfOrder {
                expected: Mid::new(3).expect("small")
            }
        );
        assert_eq!(bench.send(head(2, 2), inc()).await, Outcome::ClientUnknown);
        assert_eq!(first.seq, seq(1));
    });
}

#[test]
fn another_copy_of_a_client_is_told_by_its_keys() {
    each(|mut bench| async move {
        bench.applied(1, 1, vec![set("a/1", &[("x", 1)])]).await;
        let other = WriteHead {
            key: MutationKey(9),
            ..head(1, 1)
        };
        assert_eq!(
            bench.send(other, vec![set("a/1", &[("x", 2)])]).await,
            Outcome::ClientCloned
        );
        let other = WriteHead {
            prev: Some(MutationKey(9)),
            ..head(1, 2)
        };
        assert_eq!(
            bench.send(other, vec![set("a/1", &[("x", 2)])]).await,
            Outcome::ClientCloned
        );
        bench.applied(1, 2, vec![set("a/1", &[("x", 3)])]).await;
        assert_eq!(bench.state().await.head.seq, seq(2));
    });
}

#[test]
fn a_document_that_was_created_again_is_sent_whole_to_one_who_holds_the_old_one() {
    each(|mut bench| async move {
        let held = bench.applied(1, 1, vec![set("a/1", &[("old", 1), ("both", 1)])]).await;
        bench.applied(1, 2, vec![op("a/1", OpKind::Delete)]).await;
        bench.applied(1, 3, vec![set("a/1", &[("new", 3)])]).await;
        bench.applied(1, 4, vec![set("a/1", &[("both", 4)])]).await;
        // Nothing but `born` says that the old fields are gone, once their tombstones are.
        let mut docs = plain(&[("a/1", &[("old", 1), ("both", 1)])]);
        bench.catch_up(&mut docs, held).await;
        assert_eq!(docs, plain(&[("a/1", &[("new", 3), ("both", 4)])]));
        match bench.changes(request(Some(held))).await {
            ChangesReply::Done { docs, .. } => {
                assert!(
                    matches!(
                        docs.decode().expect("documents")[0].kind,
                        tidegate_protocol::DocChangeKind::Whole(_)
                    ),
                    "{docs:?}"
                );
            }
            other => panic!("{other:?}"),
        }
    });
}

#[test]
fn a_leaf_that_a_write_above_or_below_it_removed_is_removed_from_one_who_comes_back() {
    each(|mut bench| async move {
        let held = bench
            .applied(1, 1, vec![set("a/1", &[("m.x", 1), ("m.y", 1), ("leaf", 1)])])
            .await;
        bench
            .applied(1, 2, vec![set("a/1", &[("m", 2), ("leaf.below", 2)])])
            .await;
        let expected = plain(&[("a/1", &[("m", 2), ("leaf.below", 2)])]);
        let mut docs = plain(&[("a/1", &[("m.x", 1), ("m.y", 1), ("leaf", 1)])]);
        bench.catch_up(&mut docs, held).await;
        assert_eq!(docs, expected, "by a delta");
        let mut docs = plain(&[("a/1", &[("m.x", 1), ("m.y", 1), ("leaf", 1)])]);
        let reply = bench
            .harness
            .store()
            .log(&space(), held, 10, 10_000, None)
            .await
            .expect("it answers");
        let LogReply::Commits { commits, .. } = reply else {
            panic!("{reply:?}")
        };
        let commit = tidegate_protocol::msgpack::decode_payload(&commits[0].payload).expect("a change");
        apply(&mut docs, &commit.docs);
        assert_eq!(docs, expected, "by the log");
    });
}

#[test]
fn a_position_below_the_tombstone_floor_is_reset_and_a_scan_that_began_below_it_too() {
    each(|mut bench| async move {
        let held = bench
            .applied(1, 1, vec![set("a/1", &[("x", 1)]), set("a/2", &[("x", 1)])])
            .await;
        let deleted = bench.applied(1, 2, vec![op("a/1", OpKind::Delete)]).await;
        let scan = bench
            .changes(ChangesRequest {
                budget: 1,
                ..request(Some(held))
            })
            .await;
        assert!(
            matches!(scan, ChangesReply::Done { .. }),
            "one change, one page: {scan:?}"
        );
        bench.applied(1, 3, vec![set("a/3", &[("x", 1)])]).await;
        let cursor = bench.first_page(Some(held)).await;
        let below = ChangesReply::Reset(ResetReason::BelowFloor);
        bench.harness.raise_floor(&space(), deleted.seq).await;
        assert_eq!(bench.changes(request(Some(held))).await, below);
        assert_eq!(
            bench
                .changes(ChangesRequest {
                    cursor: Some(cursor),
                    ..request(Some(held))
                })
                .await,
            below
        );
        let mut docs = plain(&[("a/2", &[("x", 1)])]);
        bench.catch_up(&mut docs, deleted).await;
        assert_eq!(docs.len(), 2, "at the floor nothing is missing");
        let cursor = bench.first_page(None).await;
        bench.applied(1, 4, vec![op("a/2", OpKind::Delete)]).await;
        bench.harness.raise_floor(&space(), seq(4)).await;
        assert_eq!(
            bench
                .changes(ChangesRequest {
                    cursor: Some(cursor),
                    ..request(None)
                })
                .await,
            below
        );
    });
}

#[test]
fn a_cursor_holds_for_its_own_view_and_its_own_scan_only() {
    each(|mut bench| async move {
        for mid in 1..=3 {
            bench.applied(1, mid, vec![set(&format!("a/{mid}"), &[("x", 1)])]).await;
        }
        let small = ChangesRequest {
            budget: 1,
            ..request(None)
        };
        let cursor = bench.first_page(None).await;
        let goes_on = ChangesRequest {
            cursor: Some(cursor.clone()),
            ..small.clone()
        };
        assert!(matches!(bench.changes(goes_on).await, ChangesReply::Page { .. }));
        let foreign = ChangesReply::Reset(ResetReason::ForeignCursor);
        let view = View {
            id: ViewId(77),
            collections: None,
        };
        let other = ChangesRequest {
            cursor: Some(cursor.clone()),
            view,
            ..small.clone()
        };
        assert_eq!(bench.changes(other).await, foreign, "another view");
        let other = ChangesRequest {
            cursor: Some(cursor),
            after: Some(bench.state().await.head),
            ..small
        };
        assert_eq!(bench.changes(other).await, foreign, "another scan");
    });
}

#[test]
fn a_lost_or_forged_position_is_reset_and_its_seq_is_never_taken_for_another() {
    each(|mut bench| async move {
        bench.applied(1, 1, vec![set("a/1", &[("x", 1)])]).await;
        bench.harness.back_up().await;
        let lost = bench.applied(1, 2, vec![set("a/1", &[("x", 2)])]).await;
        bench.harness.restore().await;
        let taken = bench.applied(2, 1, vec![set("a/2", &[("x", 3)])]).await;
        assert_eq!((lost.seq, lost.epoch == taken.epoch), (taken.seq, false));
        for position in [
            lost,
            Position::new(Epoch(999), seq(1)),
            Position::new(taken.epoch, seq(7)),
        ] {
            let reset = ChangesReply::Reset(ResetReason::Lost);
            assert_eq!(bench.changes(request(Some(position))).await, reset);
            let log = bench
                .harness
                .store()
                .log(&space(), position, 10, 10_000, None)
                .await
                .expect("it answers");
            assert_eq!(log, LogReply::Reset(ResetReason::Lost));
        }
        // The client whose acked write was lost is told where to go on.
        let expected = Mid::new(2).expect("small");
        let outcome = bench.send(head(1, 3), vec![set("a/1", &[("x", 3)])]).await;
        assert_eq!(outcome, Outcome::OutOfOrder { expected });
    });
}

#[test]
fn the_last_page_tells_a_clients_last_mid_refusals_counted() {
    each(|mut bench| async move {
        bench.applied(1, 1, vec![set("a/1", &[("x", 1)])]).await;
        let outcome = bench
            .send(head(1, 2), vec![op("a/1", OpKind::Create(fields(&[])))])
            .await;
        assert!(matches!(outcome, Outcome::Refused { .. }), "{outcome:?}");
        for (client, expected) in [(1, Mid::new(2)), (2, None)] {
            let writer = Some(Writer::of("u", ClientId(client)));
            match bench
                .changes(ChangesRequest {
                    writer,
                    ..request(None)
                })
                .await
            {
                ChangesReply::Done { last_mid, .. } => assert_eq!(last_mid, expected),
                other => panic!("{other:?}"),
            }
        }
    });
}

#[test]
fn records_older_than_their_retention_are_unknown() {
    let retention = Retention {
        clients_ms: 10_000,
        ..Retention::default()
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    for make in [model as Make, embedded, redis] {
        let mut bench = Bench {
            harness: runtime.block_on(make(retention.clone())),
            epochs: 1,
            now_ms: 1_000,
        };
        runtime.block_on(async {
            bench.applied(1, 1, vec![set("a/1", &[("x", 1)])]).await;
            bench.now_ms = 12_000;
            let again = || vec![set("a/1", &[("x", 1)])];
            assert_eq!(bench.send(head(1, 2), again()).await, Outcome::ClientUnknown);
            assert_eq!(
                bench.send(head(1, 1), again()).await,
                Outcome::ClientUnknown,
                "it was new too long ago"
            );
            assert_eq!(bench.state().await.head.seq, seq(1));
            // A read has no clock: what expired is reported until it is collected.
            let writer = Some(Writer::of("u", ClientId(1)));
            let reply = bench
                .changes(ChangesRequest {
                    writer,
                    ..request(None)
                })
                .await;
            let ChangesReply::Done { last_mid, .. } = reply else {
                panic!("{reply:?}")
            };
            assert_eq!(last_mid, Mid::new(1));
            // Under a new `first` it is a new client, and nothing of the old record is left.
            let anew = |mid, first| WriteHead { first, ..head(1, mid) };
            let outcome = bench.send(anew(1, Some(12_000)), again()).await;
            assert!(matches!(outcome, Outcome::Applied { .. }), "{outcome:?}");
            let outcome = bench.send(anew(3, None), again()).await;
            let expected = Mid::new(2).expect("small");
            assert_eq!(outcome, Outcome::OutOfOrder { expected });
        });
    }
}

#[test]
fn a_client_forgotten_by_a_clock_that_was_far_ahead_is_never_applied_again() {
    each(|mut bench| async move {
        let inc = || {
            let by = tidegate_protocol::Number::Int(1);
            vec![op("a/1", OpKind::Inc { path: path("n"), by })]
        };
        let at = bench.now_ms;
        bench.applied(1, 1, inc()).await;
        bench.harness.forget(&space(), at + (1 << 40)).await;
        assert_eq!(bench.send(head(1, 1), inc()).await, Outcome::ClientUnknown);
        bench.harness.restart().await;
        assert_eq!(bench.send(head(1, 1), inc()).await, Outcome::ClientUnknown);
        assert_eq!(bench.state().await.head.seq, seq(1));
        // Who comes after those that were forgotten is let in.
        bench.now_ms += 1;
        let new = WriteHead {
            first: Some(at + 1),
            ..head(2, 1)
        };
        assert!(matches!(bench.send(new, inc()).await, Outcome::Applied { .. }));
    });
}

#[test]
fn a_plan_made_on_another_state_is_stale_and_changes_nothing() {
    each(|mut bench| async move {
        bench.applied(1, 1, vec![set("a/1", &[("x", 1)])]).await;
        let planned = bench
            .plan(vec![(
                head(2, 1),
                None,
                vec![set("a/1", &[("x", 2)]), set("a/2", &[("x", 2)])],
            )])
            .await;
        bench.applied(1, 2, vec![set("a/2", &[("x", 1)])]).await;
        let stale = Outcome::Stale { last_ms: 1_000 };
        assert_eq!(bench.commit(planned).await.first(), Some(&stale));
        // Where one of a group is not applied, what was planned on it is not either.
        let inc = |n| {
            op(
                "a/1",
                OpKind::Inc {
                    path: path("n"),
                    by: tidegate_protocol::Number::Int(n),
                },
            )
        };
        let group = vec![
            (head(9, 7), None, vec![inc(1)]),
            (head(2, 1), None, vec![inc(10)]),
            (head(3, 1), None, vec![set("a/3", &[])]),
        ];
        let planned = bench.plan(group).await;
        let outcomes = bench.commit(planned).await;
        assert_eq!(outcomes[..2], [Outcome::ClientUnknown, stale]);
        assert!(matches!(&outcomes[2], Outcome::Applied { position, .. } if position.seq == seq(3)));
        let mut docs = Plain::new();
        bench.catch_up(&mut docs, Position::START).await;
        assert_eq!(docs, plain(&[("a/1", &[("x", 1)]), ("a/2", &[("x", 1)]), ("a/3", &[])]));
    });
}

#[test]
fn the_conflict_log_names_real_commits_also_of_the_same_group() {
    each(|mut bench| async move {
        let base = bench.applied(1, 1, vec![set("a/1", &[("x", 1)])]).await;
        let group = vec![
            (head(2, 1), None, vec![set("a/1", &[("x", 2)])]),
            (head(3, 1), Some(base), vec![set("a/1", &[("x", 3)])]),
        ];
        let planned = bench.plan(group).await;
        bench.commit(planned).await;
        let log = bench.harness.store().conflicts(&space(), 10).await.expect("it answers");
        assert_eq!((log.len(), log[0].position.seq), (1, seq(3)));
        let (_, theirs) = &log[0].entry.theirs[0];
        assert_eq!(
            (theirs.stamp.seq, theirs.stamp.writer),
            (seq(2), Writer::of("u", ClientId(2)))
        );
    });
}

#[test]
fn erasing_resets_every_position_and_seqs_go_on() {
    each(|mut bench| async move {
        let first = bench.applied(1, 1, vec![set("a/1", &[("x", 1)])]).await;
        let head = bench.applied(2, 1, vec![set("a/2", &[("x", 1)])]).await;
        let cursor = bench.first_page(None).await;
        let store = bench.harness.store();
        let told = store
            .erase(&space(), Erase::Space, Epoch(77), 1_000, &|_| {})
            .await
            .expect("it answers");
        let expected = Erased {
            docs: 2,
            cells: 2,
            commits: 2,
            conflicts: 0,
            clients: 2,
        };
        assert_eq!(told, expected);
        let state = bench.state().await;
        assert_eq!(
            (state.head, state.floor),
            (Position::new(Epoch(77), head.seq), head.seq)
        );
        assert_eq!(state.usage, Usage::default());
        for position in [first, head] {
            let lost = ChangesReply::Reset(ResetReason::Lost);
            assert_eq!(bench.changes(request(Some(position))).await, lost);
            let log = store
                .log(&space(), position, 10, 10_000, None)
                .await
                .expect("it answers");
            assert_eq!(log, LogReply::Reset(ResetReason::Lost));
        }
        let goes_on = ChangesRequest {
            cursor: Some(cursor),
            ..request(None)
        };
        assert_eq!(
            bench.changes(goes_on).await,
            ChangesReply::Reset(ResetReason::Lost),
            "a scan, too"
        );
        let mut docs = Plain::new();
        match bench.changes(request(None)).await {
            ChangesReply::Done { docs: all, state, .. } => {
                apply(&mut docs, &all.decode().expect("documents"));
                assert_eq!((docs.len(), state.head.epoch), (0, Epoch(77)));
            }
            other => panic!("{other:?}"),
        }
        drop(store);
        let next = bench.applied(3, 1, vec![set("a/3", &[("x", 1)])]).await;
        assert_eq!(next, Position::new(Epoch(77), head.seq.next()));
        bench.harness.restart().await;
        bench.applied(3, 2, vec![set("a/3", &[("y", 1)])]).await;
        let mut docs = Plain::new();
        bench.catch_up(&mut docs, Position::new(Epoch(77), head.seq)).await;
        assert_eq!(docs, plain(&[("a/3", &[("x", 1), ("y", 1)])]), "positions since hold");
    });
}

#[test]
fn of_a_user_erased_nothing_is_left_and_others_lose_their_positions_only() {
    each(|mut bench| async move {
        let ann = |mid| Sender::of("ann", 1, mid);
        let bob = |mid| Sender::of("bob", 2, mid);
        let base = bench
            .applied_by(ann(1), None, vec![set("a/1", &[("x", 1), ("y", 1)])])
            .await;
        bench
            .applied_by(bob(1), None, vec![set("a/1", &[("x", 2)]), set("a/2", &[("x", 2)])])
            .await;
        bench
            .applied_by(
                ann(2),
                Some(base),
                vec![set("a/1", &[("x", 3)]), set("a/3", &[("z", 3)])],
            )
            .await;
        bench.applied_by(bob(2), None, vec![set("a/1", &[("b", 2)])]).await;
        let store = bench.harness.store();
        assert_eq!(store.conflicts(&space(), 10).await.expect("it answers").len(), 1);
        let whom = Erase::User(UserTag::of("ann"));
        let told = store
            .erase(&space(), whom, Epoch(77), bench.now_ms, &|_| {})
            .await
            .expect("it answers");
        assert_eq!((told.docs, told.cells, told.conflicts, told.clients), (1, 3, 1, 1));
        assert_eq!(store.conflicts(&space(), 10).await.expect("it answers"), []);
        let cut = store
            .read(&space(), &[doc("a/1"), doc("a/3")])
            .await
            .expect("it answers");
        let header = cut.docs[0].header.expect("bob wrote to it, too");
        assert_eq!((header.born.writer, header.born.seq), (NOBODY, base.seq));
        assert_eq!(cut.docs[1].header, None);
        drop(store);
        let ChangesReply::Done { docs: all, .. } = bench.changes(request(None)).await else {
            panic!("few documents")
        };
        let mut docs = Plain::new();
        apply(&mut docs, &all.decode().expect("documents"));
        assert_eq!(docs, plain(&[("a/1", &[("b", 2)]), ("a/2", &[("x", 2)])]));
        bench.harness.restart().await;
        // Whatever the erased client sends is unknown; also under the mid that would be next, or again.
        for mid in [1, 2, 3] {
            assert_eq!(
                bench.send_by(ann(mid), vec![set("a/9", &[])]).await,
                Outcome::ClientUnknown,
                "{mid}"
            );
        }
        assert!(matches!(
            bench.send_by(bob(2), vec![set("a/1", &[("b", 2)])]).await,
            Outcome::Duplicate(_)
        ));
        bench.applied_by(bob(3), None, vec![set("a/9", &[])]).await;
        bench
            .applied_by(Sender::of("ann", 3, 1), None, vec![set("a/9", &[("x", 9)])])
            .await;
        // The marker goes with time, and the record that came after it is another.
        bench.now_ms += Retention::default().clients_ms + 1;
        assert_eq!(
            bench.send_by(ann(1), vec![set("a/9", &[])]).await,
            Outcome::ClientUnknown,
            "its first is old"
        );
        assert_eq!(
            bench.send_by(ann(4), vec![set("a/9", &[])]).await,
            Outcome::ClientUnknown
        );
    });
}

#[test]
fn a_plan_made_on_another_lineage_is_stale() {
    each(|mut bench| async move {
        bench.applied(1, 1, vec![set("a/1", &[("x", 1)])]).await;
        // What it looks at is absent before and after: nothing but the epoch tells.
        let planned = bench
            .plan(vec![(head(2, 1), None, vec![set("a/2", &[("x", 2)])])])
            .await;
        let store = bench.harness.store();
        store
            .erase(&space(), Erase::Space, Epoch(77), 1_000, &|_| {})
            .await
            .expect("it answers");
        drop(store);
        assert_eq!(bench.commit(planned).await, [Outcome::Stale { last_ms: 1_000 }]);
        bench.applied(2, 1, vec![set("a/2", &[("x", 2)])]).await;
    });
}
