//! When a unit is in conflict, and what each policy does about it.

use super::*;
use crate::store::{ConflictDone, planned_index};
use tidegate_protocol::{ConflictUnit, Number};

/// Client 1 has written `n` at seq 1, client 2 what `theirs` says after it; client 3 had seen seq 1.
fn contested(theirs: Vec<Op>) -> (Bench, Position) {
    let mut bench = Bench::default();
    bench.apply(
        1,
        body(vec![create("n", &[("a.b", int(1)), ("c", int(2)), ("d.e.f", int(3))])]),
    );
    let base = bench.head();
    bench.apply(2, body(theirs));
    (bench, base)
}

fn paths(units: &[ConflictUnit]) -> Vec<String> {
    units
        .iter()
        .map(|unit| unit.path.as_ref().map_or("*".into(), ToString::to_string))
        .collect()
}

/// The units of `ops` that conflict after `theirs`.
fn in_conflict(theirs: Vec<Op>, ops: Vec<Op>) -> Vec<String> {
    let (mut bench, base) = contested(theirs);
    paths(&bench.apply(3, based(base, None, ops)).1.conflicts)
}

#[test]
fn a_field_conflicts_with_cells_and_tombstones_at_above_and_below_it() {
    let theirs = || vec![set("n", &[("d.e", int(9))])];
    for (path, hit) in [
        ("d.e", true),
        ("d", true),
        ("d.e.f", true),
        ("d.e.g", true),
        ("d.x", false),
        ("c", false),
    ] {
        let expected: Vec<&str> = if hit { vec![path] } else { vec![] };
        assert_eq!(
            in_conflict(theirs(), vec![set("n", &[(path, int(5))])]),
            expected,
            "{path}"
        );
    }
    assert_eq!(
        in_conflict(vec![unset("n", &["c"])], vec![set("n", &[("c", int(5))])]),
        ["c"],
        "a tombstone"
    );
    assert_eq!(
        in_conflict(vec![unset("n", &["d"])], vec![unset("n", &["d.e"])]),
        ["d.e"],
        "removal against removal"
    );
}

#[test]
fn a_map_in_set_is_one_unit_and_in_merge_each_leaf_is() {
    let theirs = || vec![set("n", &[("m.x", int(9))])];
    let ours = map(&[("x", int(1)), ("y", int(2))]);
    assert_eq!(
        in_conflict(theirs(), vec![set("n", &[("m", ours.clone()), ("c", int(1))])]),
        ["m"]
    );
    assert_eq!(
        in_conflict(
            theirs(),
            vec![op("n", OpKind::Merge(fields(&[("m", ours), ("c", int(1))])))]
        ),
        ["m.x"]
    );
}

#[test]
fn ones_own_writes_never_conflict() {
    let (mut bench, base) = contested(vec![set("unrelated", &[("x", int(1))])]);
    bench.apply(
        3,
        based(base, None, vec![set("n", &[("c", int(5))]), unset("n", &["a"])]),
    );
    let (_, report) = bench.apply(
        3,
        based(
            base,
            None,
            vec![set("n", &[("c", int(6)), ("a.b", int(1))]), delete("n")],
        ),
    );
    assert_eq!(report, Report::default());
}

#[test]
fn ops_that_take_the_present_value_in_never_conflict_and_nothing_does_without_a_base() {
    let theirs = vec![set("n", &[("c", int(9)), ("t", Value::array([int(1)].iter()))])];
    let (mut bench, base) = contested(theirs);
    let (t, c) = (|| field("t"), || field("c"));
    let kinds = vec![
        OpKind::Inc {
            path: c(),
            by: Number::Int(1),
        },
        OpKind::Max {
            path: c(),
            value: int(50),
        },
        OpKind::Min {
            path: c(),
            value: int(40),
        },
        OpKind::Add {
            path: t(),
            values: vec![int(2)],
        },
        OpKind::Remove {
            path: t(),
            values: vec![int(1)],
        },
        OpKind::Now { path: t() },
    ];
    let ops = kinds.into_iter().map(|kind| op("n", kind)).collect();
    assert_eq!(
        bench.apply(3, based(base, Some(Policy::Reject), ops)).1,
        Report::default()
    );
    assert_eq!(
        bench.apply(4, body(vec![set("n", &[("c", int(1))]), delete("n")])).1,
        Report::default()
    );
}

#[test]
fn a_documents_tombstone_is_above_every_field_also_after_it_was_created_again() {
    let theirs = || vec![delete("n")];
    assert_eq!(in_conflict(theirs(), vec![set("n", &[("new", int(1))])]), ["new"]);
    let again = vec![delete("n"), create("n", &[("z", int(1))])];
    assert_eq!(in_conflict(again, vec![set("n", &[("new", int(1))])]), ["new"]);
}

#[test]
fn ops_on_the_document_conflict_with_anything_newer_in_it() {
    for ours in [delete("n"), replace("n", &[("a", int(1))])] {
        assert_eq!(
            in_conflict(vec![set("n", &[("new", int(1))])], vec![ours.clone()]),
            ["*"]
        );
        assert_eq!(
            in_conflict(vec![unset("n", &["c"])], vec![ours.clone()]),
            ["*"],
            "a tombstone"
        );
        assert_eq!(
            in_conflict(vec![set("other", &[("c", int(1))])], vec![ours]),
            Vec::<String>::new()
        );
    }
    assert_eq!(
        in_conflict(vec![delete("n")], vec![create("n", &[])]),
        ["*"],
        "a deletion"
    );
    assert_eq!(
        in_conflict(vec![replace("n", &[])], vec![replace("n", &[])]),
        ["*"],
        "born without a leaf"
    );
}

#[test]
fn a_base_is_cut_to_the_end_of_its_epoch_and_an_unknown_epoch_counts_as_0() {
    let mut bench = Bench::default();
    bench.apply(1, body(vec![set("n", &[("a", int(1))])]));
    let kept = bench.model.checkpoint();
    bench.apply(1, body(vec![set("n", &[("a", int(2))])]));
    let lost = bench.head();
    bench.model = Model::restored(crate::store::Retention::default(), kept);
    bench.clock += 1;
    bench.apply(2, body(vec![set("n", &[("a", int(3))])]));
    assert_eq!(
        bench.head().seq,
        lost.seq,
        "the lost seq is taken again, in another epoch"
    );
    let ours = || vec![set("n", &[("a", int(4))])];
    assert_eq!(paths(&bench.apply(3, based(lost, None, ours())).1.conflicts), ["a"]);
    let unknown = Position::new(Epoch(77), seq(3));
    assert_eq!(paths(&bench.apply(4, based(unknown, None, ours())).1.conflicts), ["a"]);
}

#[test]
fn below_the_floor_absence_counts_as_change_for_ops_that_must_find_their_document() {
    let (mut bench, base) = contested(vec![unset("n", &["c"])]);
    let head = bench.head();
    bench.model.raise_floor(&space(), head.seq);
    let ours = || set("n", &[("c", int(5))]);
    let untouched = |bench: &mut Bench, client, base, op| bench.apply(client, based(base, None, vec![op])).1.conflicts;
    assert_eq!(
        paths(&untouched(&mut bench, 3, base, existing(set("n", &[("a.b", int(1))])))),
        Vec::<String>::new()
    );
    assert_eq!(
        paths(&untouched(&mut bench, 4, head, existing(ours()))),
        Vec::<String>::new(),
        "not below the floor"
    );
    bench.apply(4, body(vec![unset("n", &["c"])]));
    bench.model.raise_floor(&space(), seq(9));
    assert_eq!(paths(&untouched(&mut bench, 5, base, existing(ours()))), ["c"]);
    let (mut bench, base) = contested(vec![unset("n", &["c"])]);
    bench.model.raise_floor(&space(), seq(9));
    assert_eq!(
        paths(&untouched(&mut bench, 3, base, ours())),
        Vec::<String>::new(),
        "only with exists: true"
    );
}

#[test]
fn ops_on_the_document_conflict_also_with_a_removal_whose_tombstone_is_collected() {
    for ours in [delete("n"), replace("n", &[("x", int(1))])] {
        let (mut bench, base) = contested(vec![unset("n", &["c"])]);
        bench.model.raise_floor(&space(), bench.head().seq);
        let (code, _) = bench.refuse(3, based(base, Some(Policy::Reject), vec![existing(ours.clone())]));
        assert_eq!(code, Code::Conflict);
        bench.apply(2, based(base, Some(Policy::Reject), vec![existing(ours)]));
    }
}

#[test]
fn a_map_conflicts_with_the_removal_of_something_below_it_whose_tombstone_is_collected() {
    for collected in [false, true] {
        // Of `a` something else is left, which nobody has touched since.
        let mut bench = Bench::default();
        bench.apply(
            1,
            body(vec![set("n", &[("a.b", int(1)), ("a.c", int(1)), ("x", int(1))])]),
        );
        let base = bench.head();
        bench.apply(2, body(vec![unset("n", &["a.c"])]));
        if collected {
            bench.model.raise_floor(&space(), bench.head().seq);
        }
        let ours = |path: &str| existing(set("n", &[(path, map(&[("b", int(2)), ("c", int(2))]))]));
        let (code, _) = bench.refuse(3, based(base, Some(Policy::Reject), vec![ours("a")]));
        assert_eq!(code, Code::Conflict);
        // Where a leaf stands, nothing below it can have gone since.
        let leaf = existing(set("n", &[("x", int(2)), ("a.b", int(2))]));
        bench.apply(3, based(base, Some(Policy::Reject), vec![leaf]));
    }
}

#[test]
fn a_large_leaf_that_many_units_meet_is_logged_once() {
    let large = Value::str(&"x".repeat(100_000));
    let (mut bench, base) = contested(vec![set("n", &[("c", large.clone())])]);
    let names: Vec<String> = (0..500).map(|n| format!("c.k{n}")).collect();
    let list: Vec<(&str, Value)> = names.iter().map(|name| (name.as_str(), int(1))).collect();
    let ops = || vec![set("n", &list), set("n", &[("c.again", int(1))])];
    bench.refuse(3, based(base, Some(Policy::Reject), ops()));
    let log = now(bench.model.conflicts(&space(), 1_000)).expect("the model answers");
    assert_eq!(log.len(), 501, "each unit in conflict");
    let theirs: Vec<_> = log.iter().flat_map(|record| &record.entry.theirs).collect();
    assert_eq!(theirs.len(), 1, "and what stood in the way of all");
    assert_eq!(
        (theirs[0].0.clone(), theirs[0].1.value.clone()),
        (field("c"), Some(large))
    );
}

#[test]
fn last_writer_wins_writes_returns_what_it_overwrote_and_logs_it() {
    let (mut bench, base) = contested(vec![set("n", &[("c", int(9))])]);
    let (commit, report) = bench.apply(3, based(base, None, vec![set("n", &[("c", int(5)), ("x", int(6))])]));
    assert_eq!(bench.leaves("n"), "a.b=1 c=5 d.e.f=3 x=6");
    let cell = &report.conflicts[0].cells[0];
    assert_eq!(
        (cell.seq, cell.writer, cell.value.clone()),
        (seq(2), writer(2), Some(int(9)))
    );
    let log = now(bench.model.conflicts(&space(), 10)).expect("the model answers");
    assert_eq!(log.len(), 1);
    let record = &log[0];
    assert_eq!(
        (record.position.seq, record.writer, record.at),
        (commit.seq, writer(3), 1_000)
    );
    assert_eq!(
        (record.entry.ours.clone(), record.entry.done),
        (Some(int(5)), ConflictDone::Overwritten)
    );
    assert_eq!(record.entry.theirs[0].1.value, Some(int(9)));
}

#[test]
fn first_writer_wins_refuses_the_whole_mutation_and_shows_what_stands() {
    let (mut bench, base) = contested(vec![set("n", &[("c", int(9))])]);
    let ops = vec![
        set("other", &[("x", int(1))]),
        set("n", &[("c", int(5)), ("x", int(6))]),
    ];
    let (code, report) = bench.refuse(3, based(base, Some(Policy::Reject), ops));
    let refusal = report.refusal.expect("a reason");
    let at = refusal.at.expect("a place");
    assert_eq!((code, at.op, at.path), (Code::Conflict, 1, Some(field("c"))));
    assert_eq!(report.cells[0].cells[0].value, Some(int(9)));
    assert_eq!(
        (bench.leaves("n"), bench.leaves("other")),
        ("a.b=1 c=9 d.e.f=3".into(), String::new())
    );
    let log = now(bench.model.conflicts(&space(), 10)).expect("the model answers");
    assert_eq!(
        log.iter().map(|record| record.entry.done).collect::<Vec<_>>(),
        [ConflictDone::Rejected]
    );
}

#[test]
fn merge_leaves_units_in_conflict_out_and_writes_the_others() {
    let (mut bench, base) = contested(vec![set("n", &[("c", int(9))])]);
    let ops = vec![
        set("n", &[("c", int(5)), ("x", int(6))]),
        set("other", &[("x", int(1))]),
    ];
    let (commit, report) = bench.apply(3, based(base, Some(Policy::Merge), ops));
    assert_eq!(
        (paths(&report.skipped), report.skipped[0].cells[0].value.clone()),
        (vec!["c".into()], Some(int(9)))
    );
    assert_eq!(
        (bench.leaves("n"), bench.leaves("other")),
        ("a.b=1 c=9 d.e.f=3 x=6".into(), "x=1".into())
    );
    assert_eq!(commit.docs.len(), 2);
    let (mut bench, base) = contested(vec![delete("n")]);
    let ops = vec![set("n", &[("c", int(5))])];
    let (commit, report) = bench.apply(3, based(base, Some(Policy::Merge), ops));
    assert_eq!(
        (commit.docs, paths(&report.skipped)),
        (vec![], vec!["c".into()]),
        "a deleted document stays deleted"
    );
    assert_eq!(report.skipped[0].cells, []);
}

#[test]
fn a_collections_policy_holds_where_the_mutation_names_none() {
    struct Strict;
    impl Authoriser for Strict {
        fn authenticate(&self, token: Option<&str>, now_ms: u64) -> Result<Identity, crate::auth::Denial> {
            DevAuthoriser.authenticate(token, now_ms)
        }
        fn read(&self, who: &Identity, space: &SpaceId) -> Result<crate::auth::ReadScope, crate::auth::Denial> {
            DevAuthoriser.read(who, space)
        }
        fn write(&self, who: &Identity, space: &SpaceId, doc: &DocPath) -> Result<(), crate::auth::Denial> {
            DevAuthoriser.write(who, space, doc)
        }
        fn policy(&self, _space: &SpaceId, _doc: &DocPath) -> Policy {
            Policy::Reject
        }
    }
    let (mut bench, base) = contested(vec![set("n", &[("c", int(9))])]);
    bench.rules = Box::new(Strict);
    let ours = || vec![set("n", &[("c", int(5))])];
    assert_eq!(bench.refuse(3, based(base, None, ours())).0, Code::Conflict);
    assert_eq!(
        bench.apply(3, based(base, Some(Policy::Lww), ours())).1.conflicts.len(),
        1
    );
    assert_eq!(
        bench.apply(4, body(ours())).1.conflicts,
        [],
        "without a base nothing conflicts"
    );
}

#[test]
fn a_conflict_with_a_mutation_of_the_same_group_names_its_real_commit() {
    let (mut bench, base) = contested(vec![set("unrelated", &[("x", int(1))])]);
    let requests = [
        bench.next(5, body(vec![set("other", &[("x", int(1))])])),
        bench.next(6, body(vec![set("n", &[("c", int(7))])])),
        bench.next(3, based(base, None, vec![set("n", &[("c", int(8))])])),
    ];
    let (outcome, mut report) = bench.group(&requests).remove(2);
    assert!(matches!(outcome, Outcome::Applied { .. }));
    let planned = report.conflicts[0].cells[0].seq;
    assert_eq!(planned_index(planned), Some(1));
    report.resolve(&|index| (index == 1).then_some(seq(4)));
    assert_eq!(
        (report.conflicts[0].cells[0].seq, report.conflicts[0].cells[0].writer),
        (seq(4), writer(6))
    );
    let log = now(bench.model.conflicts(&space(), 1)).expect("the model answers");
    assert_eq!(log[0].entry.theirs[0].1.stamp.seq, seq(4), "in the conflict log too");
}
