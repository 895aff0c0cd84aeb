//! What ops do to documents: the net effect, its tombstones, and the change that subscribers get.

use super::*;
use crate::store::Version;
use tidegate_protocol::{Number, Timestamp};

fn change(set: &[(&str, i64)], unset: &[&str]) -> DocChangeKind {
    DocChangeKind::Change {
        set: set.iter().map(|(path, n)| (field(path), int(*n))).collect(),
        unset: unset.iter().map(|path| field(path)).collect(),
    }
}

fn whole(set: &[(&str, i64)]) -> DocChangeKind {
    DocChangeKind::Whole(set.iter().map(|(path, n)| (field(path), int(*n))).collect())
}

#[test]
fn every_leaf_that_a_write_removes_gets_a_tombstone() {
    let mut bench = Bench::default();
    bench.change(
        1,
        vec![set("n", &[("a.b", int(1)), ("a.c.d", int(2)), ("a b", int(3))])],
    );
    assert_eq!(
        bench.change(1, vec![set("n", &[("a", int(4))])]),
        change(&[("a", 4)], &["a"])
    );
    assert_eq!(
        (bench.leaves("n"), bench.tombstones("n")),
        ("a=4 a b=3".into(), "a.b a.c.d".into())
    );
    assert_eq!(
        bench.change(1, vec![set("n", &[("a.x.y", int(5))])]),
        change(&[("a.x.y", 5)], &["a"])
    );
    assert_eq!(
        (bench.leaves("n"), bench.tombstones("n")),
        ("a b=3 a.x.y=5".into(), "a a.b a.c.d".into())
    );
    bench.change(1, vec![inc("n", "a.x", 1)]);
    assert_eq!(
        (bench.leaves("n"), bench.tombstones("n")),
        ("a b=3 a.x=1".into(), "a a.b a.c.d a.x.y".into())
    );
}

#[test]
fn a_map_in_set_replaces_the_subtree_and_names_it_once() {
    let mut bench = Bench::default();
    bench.change(
        1,
        vec![set("n", &[("m", map(&[("x", int(1)), ("y", int(2)), ("z", int(3))]))])],
    );
    let kind = bench.change(1, vec![set("n", &[("m", map(&[("x", int(4))]))])]);
    assert_eq!(kind, change(&[("m.x", 4)], &["m"]));
    let kind = bench.change(1, vec![set("n", &[("m", map(&[("x", int(5))]))])]);
    assert_eq!(kind, change(&[("m.x", 5)], &[]), "nothing is gone, so nothing is unset");
    let kind = bench.change(1, vec![op("n", OpKind::Merge(fields(&[("m", map(&[("y", int(6))]))])))]);
    assert_eq!(kind, change(&[("m.y", 6)], &[]));
    assert_eq!(bench.leaves("n"), "m.x=5 m.y=6");
}

#[test]
fn nested_removals_are_unset_by_their_topmost_root() {
    let mut bench = Bench::default();
    bench.change(
        1,
        vec![set(
            "n",
            &[("a.b.c", int(1)), ("a.b.d", int(2)), ("a.e", int(3)), ("f", int(4))],
        )],
    );
    let kind = bench.change(
        1,
        vec![
            unset("n", &["a.b.c"]),
            unset("n", &["a"]),
            set("n", &[("a.b.z", int(5))]),
        ],
    );
    assert_eq!(kind, change(&[("a.b.z", 5)], &["a"]));
    assert_eq!(bench.tombstones("n"), "a.b.c a.b.d a.e");
}

#[test]
fn what_came_and_went_within_a_mutation_leaves_no_trace() {
    let mut bench = Bench::default();
    let (commit, _) = bench.apply(1, body(vec![create("n", &[("a", int(1))]), delete("n")]));
    assert_eq!(commit.docs, []);
    assert_eq!(bench.state("n"), DocState::default());
    bench.change(1, vec![create("n", &[("a", int(1))])]);
    let kind = bench.change(
        1,
        vec![
            set("n", &[("b", int(1))]),
            unset("n", &["b"]),
            set("n", &[("c", int(1))]),
        ],
    );
    assert_eq!(kind, change(&[("c", 1)], &[]));
    assert_eq!(bench.tombstones("n"), "");
}

#[test]
fn ops_of_one_mutation_see_what_those_before_them_did() {
    let mut bench = Bench::default();
    let ops = vec![
        create("n", &[("n", int(1))]),
        existing(inc("n", "n", 2)),
        existing(inc("n", "n", 3)),
    ];
    assert_eq!(bench.change(1, ops), whole(&[("n", 6)]));
    assert_eq!(
        bench.change(1, vec![delete("n"), create("n", &[("m", int(1))])]),
        whole(&[("m", 1)])
    );
    let header = bench.state("n").header.expect("there");
    assert_eq!(
        (header.born.seq, header.deleted.map(|stamp| stamp.seq), header.alive),
        (seq(2), Some(seq(2)), true)
    );
}

#[test]
fn unset_and_remove_bring_no_document_into_being_and_other_ops_do() {
    let mut bench = Bench::default();
    let values = || vec![int(1)];
    let ops = vec![
        unset("n", &["a"]),
        op(
            "n",
            OpKind::Remove {
                path: field("t"),
                values: values(),
            },
        ),
        delete("n"),
    ];
    let (commit, _) = bench.apply(1, body(ops));
    assert_eq!((commit.seq, commit.docs), (seq(1), vec![]), "a commit all the same");
    assert_eq!(bench.state("n"), DocState::default());
    let kinds = [
        OpKind::Set(Fields::default()),
        OpKind::Merge(fields(&[("m", Value::empty_map())])),
        OpKind::Inc {
            path: field("a"),
            by: Number::Int(1),
        },
        OpKind::Max {
            path: field("a"),
            value: int(1),
        },
        OpKind::Min {
            path: field("a"),
            value: int(1),
        },
        OpKind::Add {
            path: field("a"),
            values: values(),
        },
        OpKind::Now { path: field("a") },
        OpKind::Replace(Fields::default()),
        OpKind::Create(Fields::default()),
    ];
    for (n, kind) in kinds.into_iter().enumerate() {
        let name = kind.name();
        bench.apply(1, body(vec![op(&n.to_string(), kind)]));
        let header = bench.state(&n.to_string()).header.expect(name);
        assert!(header.alive && header.born == header.last, "{name}");
    }
}

#[test]
fn a_document_that_is_written_after_its_deletion_is_born_again_with_new_leaves_only() {
    let mut bench = Bench::default();
    bench.change(1, vec![create("n", &[("a", int(1)), ("b.c", int(2))])]);
    assert_eq!(bench.change(1, vec![delete("n")]), DocChangeKind::Deleted);
    let state = bench.state("n");
    assert!(!state.alive());
    assert_eq!(
        (bench.leaves("n"), bench.tombstones("n")),
        (String::new(), "a b.c".into())
    );
    assert_eq!(
        bench.change(2, vec![set("n", &[("b.d", int(3))])]),
        whole(&[("b.d", 3)])
    );
    let header = bench.state("n").header.expect("there");
    assert_eq!((header.born.seq, header.born.writer), (seq(3), writer(2)));
    assert_eq!(header.deleted.map(|stamp| stamp.seq), Some(seq(2)));
    assert_eq!(
        (bench.leaves("n"), bench.tombstones("n")),
        ("b.d=3".into(), "a b.c".into())
    );
}

#[test]
fn replace_makes_it_exactly_this_and_born() {
    let mut bench = Bench::default();
    bench.change(1, vec![set("n", &[("a", int(1)), ("b", int(2))])]);
    assert_eq!(
        bench.change(1, vec![replace("n", &[("b", int(2)), ("c.d", int(3))])]),
        whole(&[("b", 2), ("c.d", 3)])
    );
    let header = bench.state("n").header.expect("there");
    assert_eq!(
        (header.born.seq, header.deleted, bench.tombstones("n").as_str()),
        (seq(2), None, "a")
    );
}

#[test]
fn a_documents_size_is_that_of_its_live_leaves() {
    let mut bench = Bench::default();
    let sizes = |bench: &Bench| {
        let state = bench.state("n");
        let counted: usize = state
            .leaves()
            .map(|(path, value)| path.as_str().len() + value.as_bytes().len())
            .sum();
        (state.header.expect("there").size, counted as u64)
    };
    let steps = [
        vec![set(
            "n",
            &[
                ("abc", Value::str("hello")),
                ("m", map(&[("x", int(1)), ("y", int(1_000))])),
            ],
        )],
        vec![set("n", &[("abc", int(1))]), inc("n", "m.y", 1)],
        vec![set("n", &[("m", int(1))]), unset("n", &["nothing"])],
        vec![unset("n", &["m"]), unset("n", &["m"])],
        vec![replace("n", &[("r", int(1))]), set("n", &[("s", int(1))])],
        vec![delete("n")],
        vec![set("n", &[("t", int(1))]), delete("n"), inc("n", "u", 7)],
    ];
    for ops in steps {
        bench.change(1, ops);
        let (kept, counted) = sizes(&bench);
        assert_eq!(kept, counted, "{}", bench.leaves("n"));
    }
}

#[test]
fn now_is_the_commits_time_and_never_goes_back() {
    let mut bench = Bench::default();
    let write = |path| body(vec![op("n", OpKind::Now { path: field(path) })]);
    let stamp = |bench: &Bench, path: &str| bench.state("n").cells[&field(path)].value.clone();
    bench.clock = 5_000;
    assert_eq!(bench.apply(1, write("a")).0.at, 5_000);
    bench.clock = 4_000;
    assert_eq!(bench.apply(1, write("b")).0.at, 5_000, "the clock is behind");
    let at = |ms| Some(Value::timestamp(Timestamp::from_ms(ms)));
    assert_eq!((stamp(&bench, "a"), stamp(&bench, "b")), (at(5_000), at(5_000)));
    let request = bench.next(1, write("c"));
    let (epoch, mut planned) = bench.plan(std::slice::from_ref(&request));
    bench.clock = 6_000;
    bench.apply(2, body(vec![set("other", &[("x", int(1))])]));
    bench.clock = 4_000;
    assert_eq!(
        bench.commit(epoch, vec![planned.remove(0).0]),
        [Outcome::Stale { last_ms: 6_000 }],
        "a commit of a later time came between"
    );
    bench.group(&[request]);
    assert_eq!(stamp(&bench, "c"), at(6_000));
}

#[test]
fn mutations_of_a_group_are_planned_on_each_other() {
    let mut bench = Bench::default();
    let requests = [
        bench.next(1, body(vec![create("n", &[("a", int(1))])])),
        bench.next(2, body(vec![existing(inc("n", "a", 2))])),
        bench.next(3, body(vec![create("n", &[])])),
        bench.next(4, body(vec![delete("n"), set("other", &[("x", int(1))])])),
        bench.next(1, body(vec![set("n", &[("b", int(1))])])),
    ];
    let (epoch, planned) = bench.plan(&requests);
    let expects: Vec<_> = planned.iter().map(|(item, _)| item.expects[0].1).collect();
    use Version::{Absent, Item};
    assert_eq!(expects, [Absent, Item(0), Item(1), Item(1), Item(3)]);
    let outcomes = bench.commit(epoch, planned.into_iter().map(|(item, _)| item).collect());
    let applied: Vec<_> = outcomes
        .iter()
        .map(|outcome| matches!(outcome, Outcome::Applied { .. }))
        .collect();
    assert_eq!(applied, [true, true, false, true, true]);
    assert_eq!(bench.leaves("n"), "b=1");
}

#[test]
fn what_was_planned_on_a_mutation_that_was_not_applied_is_stale_refusals_too() {
    let mut bench = Bench::default();
    bench.apply(1, body(vec![set("n", &[("a", int(1))])]));
    let requests = [
        request(9, 2, Ok(body(vec![delete("n")]))),
        bench.next(2, body(vec![existing(inc("n", "a", 1))])),
        bench.next(3, body(vec![set("n", &[("b", int(1))])])),
        bench.next(4, body(vec![set("other", &[("b", int(1))])])),
    ];
    let outcomes: Vec<_> = bench.group(&requests).into_iter().map(|(outcome, _)| outcome).collect();
    let stale = Outcome::Stale { last_ms: 1_000 };
    assert_eq!(outcomes[..3], [Outcome::ClientUnknown, stale.clone(), stale]);
    assert!(matches!(outcomes[3], Outcome::Applied { .. }));
    assert_eq!(bench.leaves("n"), "a=1");
}
