//! Preconditions, shapes, rules and limits: what is refused, in which order, and what is kept of it.

use super::*;
use crate::auth::{Denial, ReadScope};
use crate::store::Action;
use tidegate_protocol::Invalid;

#[test]
fn exists_is_judged_as_the_ops_before_have_left_it() {
    let mut bench = Bench::default();
    let failed = |bench: &mut Bench, ops| {
        let (code, report) = bench.refuse(1, body(ops));
        assert_eq!(code, Code::PreconditionFailed);
        report.refusal.expect("a reason").at.expect("a place").op
    };
    assert_eq!(failed(&mut bench, vec![existing(set("n", &[("a", int(1))]))]), 0);
    bench.apply(1, body(vec![create("n", &[("a", int(1))]), existing(inc("n", "a", 1))]));
    assert_eq!(failed(&mut bench, vec![set("m", &[]), create("n", &[])]), 1);
    let absent = |op| Op {
        exists: Some(false),
        ..op
    };
    assert_eq!(failed(&mut bench, vec![absent(op("n", OpKind::Check))]), 0);
    assert_eq!(
        failed(&mut bench, vec![delete("n"), existing(op("n", OpKind::Check))]),
        1
    );
    bench.apply(
        1,
        body(vec![delete("n"), absent(op("n", OpKind::Check)), create("n", &[])]),
    );
    assert_eq!(
        bench.state("m"),
        DocState::default(),
        "nothing of a refused mutation is applied"
    );
}

#[test]
fn a_failed_precondition_shows_what_stands() {
    let mut bench = Bench::default();
    bench.apply(1, body(vec![set("n", &[("a", int(1)), ("b", int(2))])]));
    let (_, report) = bench.refuse(2, body(vec![create("n", &[])]));
    let cells: Vec<_> = report.cells[0]
        .cells
        .iter()
        .map(|cell| (cell.path.to_string(), cell.value.clone()))
        .collect();
    assert_eq!(cells, [("a".into(), Some(int(1))), ("b".into(), Some(int(2)))]);
}

#[test]
fn unchanged_since_looks_at_the_fields_touched_whoever_wrote_them() {
    let mut bench = Bench::default();
    bench.apply(
        1,
        body(vec![set("n", &[("a.b", int(1)), ("c", int(1)), ("d.e", int(1))])]),
    );
    let before = bench.head();
    bench.apply(1, body(vec![set("n", &[("a.b", int(2))]), unset("n", &["d.e"])]));
    for path in ["a", "a.b", "a.b.c", "d", "d.e"] {
        let (code, report) = bench.refuse(1, body(vec![since(set("n", &[(path, int(3))]), before)]));
        let at = report.refusal.expect("a reason").at.expect("a place");
        assert_eq!((code, at.path), (Code::PreconditionFailed, Some(field(path))));
    }
    let now_seen = bench.head();
    bench.apply(
        1,
        body(vec![since(set("n", &[("c", int(3)), ("d.f", int(1))]), before)]),
    );
    bench.apply(1, body(vec![since(unset("n", &["a.b"]), now_seen)]));
    let ops = vec![inc("n", "c", 1), since(inc("n", "c", 1), bench.head())];
    bench.apply(1, body(ops));
}

#[test]
fn unchanged_since_of_ops_on_the_document_looks_at_all_of_it() {
    let mut bench = Bench::default();
    bench.apply(1, body(vec![set("n", &[("a", int(1)), ("b", int(1))])]));
    let before = bench.head();
    bench.apply(2, body(vec![unset("n", &["b"])]));
    let seen = bench.head();
    for ours in [delete("n"), replace("n", &[]), op("n", OpKind::Check)] {
        assert_eq!(
            bench.refuse(1, body(vec![since(ours.clone(), before)])).0,
            Code::PreconditionFailed
        );
        if matches!(ours.kind, OpKind::Check) {
            bench.apply(1, body(vec![since(ours, seen), set("m", &[("x", int(1))])]));
        }
    }
    bench.apply(2, body(vec![delete("n")]));
    let ours = since(create("n", &[("z", int(1))]), seen);
    assert_eq!(
        bench.refuse(1, body(vec![ours])).0,
        Code::PreconditionFailed,
        "deleted after it"
    );
    let ours = since(set("n", &[("z", int(1))]), seen);
    assert_eq!(
        bench.refuse(1, body(vec![ours])).0,
        Code::PreconditionFailed,
        "a deletion is above every field"
    );
}

#[test]
fn unchanged_since_a_lost_or_forgotten_position_fails() {
    let mut bench = Bench::default();
    bench.apply(1, body(vec![set("n", &[("a", int(1)), ("b", int(1))])]));
    let seen = bench.head();
    bench.apply(1, body(vec![unset("n", &["b"])]));
    bench.model.raise_floor(&space(), seq(2));
    let ours = |path: &str| vec![since(set("n", &[(path, int(2))]), seen)];
    assert_eq!(
        bench.refuse(1, body(ours("b"))).0,
        Code::PreconditionFailed,
        "its tombstone is gone"
    );
    bench.apply(1, body(ours("a")));
    let other = vec![since(op("never", OpKind::Check), seen)];
    assert_eq!(
        bench.refuse(1, body(other)).0,
        Code::PreconditionFailed,
        "it may have been there"
    );
    let lost = Position::new(Epoch(77), seq(1));
    assert_eq!(
        bench.refuse(1, body(vec![since(set("n", &[("c", int(2))]), lost)])).0,
        Code::PreconditionFailed
    );
}

#[test]
fn a_precondition_goes_before_a_conflict() {
    let mut bench = Bench::default();
    bench.apply(1, body(vec![set("n", &[("a", int(1))])]));
    let base = bench.head();
    bench.apply(2, body(vec![set("n", &[("a", int(2))])]));
    let ops = vec![set("n", &[("a", int(3))]), existing(set("m", &[("a", int(3))]))];
    assert_eq!(
        bench.refuse(3, based(base, Some(Policy::Reject), ops)).0,
        Code::PreconditionFailed
    );
}

#[test]
fn a_mutation_without_ops_settles_its_mid_as_invalid() {
    let mut bench = Bench::default();
    assert_eq!(bench.refuse(1, body(vec![])).0, Code::Invalid);
    bench.apply(1, body(vec![set("n", &[("a", int(1))])]));
    let (outcome, _) = bench.group(&[request(1, 2, Ok(body(vec![])))]).remove(0);
    let Outcome::Duplicate(kept) = outcome else {
        panic!("{outcome:?}")
    };
    assert_eq!(
        (kept.refused, kept.position.seq),
        (None, seq(1)),
        "the first result of the mutation that it stands for"
    );
}

#[test]
fn reject_and_merge_need_a_base() {
    for policy in [Policy::Reject, Policy::Merge] {
        let write = WriteBody {
            policy: Some(policy),
            ..body(vec![set("n", &[])])
        };
        assert_eq!(Bench::default().refuse(1, write).0, Code::Invalid);
    }
}

#[test]
fn what_could_not_be_understood_consumes_its_mid_too() {
    let bench = Bench::default();
    let refusal = Refusal {
        code: Code::Unsupported,
        message: "unknown op".into(),
        at: None,
    };
    let (outcome, report) = bench.group(&[request(1, 1, Err(refusal.clone()))]).remove(0);
    assert_eq!(
        (outcome, report.refusal),
        (Outcome::Refused { position: bench.head() }, Some(refusal))
    );
    let (outcome, _) = bench.group(&[request(1, 2, Ok(body(vec![set("n", &[])])))]).remove(0);
    assert!(matches!(outcome, Outcome::Applied { .. }));
}

#[test]
fn a_document_or_change_over_a_limit_is_too_large_and_the_message_names_it() {
    let mut bench = Bench::default();
    bench.limits.doc_bytes = 100;
    bench.apply(1, body(vec![set("n", &[("a", Value::bin(&[0; 60]))])]));
    let (code, report) = bench.refuse(1, body(vec![set("n", &[("b", Value::bin(&[0; 60]))])]));
    let message = report.refusal.expect("a reason").message;
    assert_eq!(
        (code, message.as_str()),
        (Code::TooLarge, "notes/n: document bytes is limited to 100, found 126")
    );
    bench.apply(
        1,
        body(vec![unset("n", &["a"]), set("n", &[("b", Value::bin(&[0; 60]))])]),
    );

    bench.limits = Limits {
        message_bytes: 300,
        ..Limits::default()
    };
    let ops = || {
        (0..4)
            .map(|n| set(&format!("d{n}"), &[("a", Value::bin(&[0; 60]))]))
            .collect()
    };
    let (code, report) = bench.refuse(1, body(ops()));
    assert_eq!(code, Code::TooLarge);
    assert!(
        report
            .refusal
            .expect("a reason")
            .message
            .starts_with("bytes of the resulting change is limited to 300")
    );
    bench.limits = Limits {
        ops: 3,
        ..Limits::default()
    };
    assert_eq!(bench.refuse(1, body(ops())).0, Code::TooLarge);
    bench.limits = Limits {
        elements: 200,
        ..Limits::default()
    };
    let array = Value::array(vec![int(1); 120].iter());
    bench.apply(1, body(vec![set("e", &[("a", array.clone())])]));
    let (code, report) = bench.refuse(1, body(vec![set("e", &[("b", array)])]));
    assert_eq!(code, Code::TooLarge, "it could be sent to nobody whole");
    assert!(
        report
            .refusal
            .expect("a reason")
            .message
            .starts_with("notes/e: elements of a document")
    );
}

#[test]
fn the_rules_hide_what_stands_from_those_who_may_not_write_or_read_it() {
    struct Rules;
    impl Authoriser for Rules {
        fn authenticate(&self, token: Option<&str>, now_ms: u64) -> Result<Identity, Denial> {
            DevAuthoriser.authenticate(token, now_ms)
        }
        fn read(&self, _who: &Identity, _space: &SpaceId) -> Result<ReadScope, Denial> {
            Ok(ReadScope::Collections(vec![]))
        }
        fn write(&self, _who: &Identity, _space: &SpaceId, doc: &DocPath) -> Result<(), Denial> {
            match doc.id() {
                "secret" => Err(Denial {
                    code: Code::Forbidden,
                    message: "not yours".into(),
                }),
                _ => Ok(()),
            }
        }
        fn policy(&self, _space: &SpaceId, _doc: &DocPath) -> Policy {
            Policy::Lww
        }
    }
    let mut bench = Bench::default();
    bench.apply(
        1,
        body(vec![set("secret", &[("a", int(1))]), set("n", &[("a", int(1))])]),
    );
    bench.rules = Box::new(Rules);
    let ops = vec![create("n", &[]), create("secret", &[])];
    let (code, report) = bench.refuse(2, body(ops));
    let refusal = report.refusal.expect("a reason");
    assert_eq!(
        (code, refusal.message.as_str(), report.cells.len()),
        (Code::Forbidden, "not yours", 0)
    );
    assert_eq!(refusal.at.expect("a place").op, 1);
    let (code, report) = bench.refuse(2, body(vec![create("n", &[])]));
    assert_eq!((code, report.cells[0].cells.len()), (Code::PreconditionFailed, 0));
    // How large documents are, too.
    let name = space();
    let cut = now(bench.model.read(&name, &[])).expect("the model answers");
    let why = Invalid::too_large("bytes of all that it is about", 1, 2);
    let planner = Planner::new(&Rules, &bench.limits, &name, vec![], cut, 1);
    let mut planner = planner.about_too_much(Some(why));
    for (doc, expected) in [("secret", Code::Forbidden), ("n", Code::TooLarge)] {
        let request = request(2, 3, Ok(body(vec![set(doc, &[("a", int(2))])])));
        let Plan::Item(_, report) = planner.plan(&request) else {
            panic!("it consumes the mid")
        };
        assert_eq!(report.refusal.expect("a reason").code, expected);
    }
}

#[test]
fn the_kept_result_names_its_units_and_stays_small() {
    let mut bench = Bench::default();
    bench.apply(
        1,
        body((0..450).map(|n| set(&format!("d{n}"), &[("a", int(1))])).collect()),
    );
    let some: Vec<Op> = (0..3)
        .map(|n| set(&format!("d{n}"), &[("a", int(2)), ("b", int(1))]))
        .collect();
    let ops = [set("d0", &[("long", Value::bin(&[7; 5_000]))])]
        .into_iter()
        .chain(some)
        .collect();
    let request = bench.next(2, based(Position::START, Some(Policy::Merge), ops));
    let (_, planned) = bench.plan(&[request]);
    let (item, report) = &planned[0];
    let Action::Apply(effects) = &item.action else {
        panic!("{item:?}")
    };
    let kept = Report::kept(None, &effects.detail);
    let names = |report: &Report| {
        report
            .skipped
            .iter()
            .map(|unit| (unit.op, unit.doc.clone(), unit.path.clone()))
            .collect::<Vec<_>>()
    };
    assert_eq!((names(&kept).len(), names(&kept)), (3, names(report)));
    assert!(
        report.skipped.iter().all(|unit| unit.cells.len() == 1)
            && kept.skipped.iter().all(|unit| unit.cells.is_empty())
    );

    let many = |n: usize| set(&format!("d{n}"), &[("a", int(2))]);
    let request = bench.next(
        3,
        based(Position::START, Some(Policy::Reject), (0..450).map(many).collect()),
    );
    let (_, planned) = bench.plan(&[request]);
    let Action::Refuse {
        detail,
        code,
        conflicts,
    } = &planned[0].0.action
    else {
        panic!("{planned:?}")
    };
    assert!(detail.len() <= 4 << 10, "{}", detail.len());
    let kept = Report::kept(Some(*code), detail);
    assert_eq!((kept.refusal, conflicts.len()), (planned[0].1.refusal.clone(), 450));
    assert!(
        kept.cells.len() > 50 && kept.cells.iter().all(|unit| unit.path.is_none()),
        "{}",
        kept.cells.len()
    );
}

#[test]
fn a_document_remembers_no_more_fields_than_it_may_have_elements() {
    let mut bench = Bench::default();
    bench.limits.elements = 200;
    let some = |from: usize, count: usize| -> Fields {
        let list = (from..from + count).map(|n| (field(&format!("f{n}")), int(1)));
        Fields::new(list, &Limits::default()).expect("valid")
    };
    let replaced = |from, count| op("n", OpKind::Replace(some(from, count)));
    for from in [0, 60, 120] {
        bench.apply(1, body(vec![replaced(from, 60)]));
    }
    bench.apply(1, body(vec![replaced(180, 20)]));
    for (ops, found) in [
        (vec![replaced(200, 20)], "found 220;"),
        (vec![set("n", &[("f0", int(1)), ("g", int(1))])], "found 201;"),
        // Also where what is new does not stay.
        (vec![delete("n"), set("n", &[("g", int(1))])], "found 201;"),
    ] {
        let (code, report) = bench.refuse(1, body(ops));
        let message = &report.refusal.expect("a reason").message;
        assert_eq!(code, Code::TooLarge);
        assert!(
            message.contains(": fields of a document") && message.contains("limited to 200"),
            "{message}"
        );
        assert!(
            message.contains(found) && message.ends_with("fields that it has had"),
            "{message}"
        );
    }
    // What adds none goes on, and in other documents.
    for ops in [
        vec![replaced(0, 60)],
        vec![set("n", &[("f61", int(2))]), set("m", &[("g", int(1))])],
        vec![unset("n", &["f0"])],
        vec![set("n", &[("g", int(1))]), unset("n", &["g"])],
        vec![delete("n")],
    ] {
        bench.apply(1, body(ops));
    }
    // Once they are forgotten there is room.
    bench.model.raise_floor(&space(), bench.head().seq);
    bench.apply(1, body(vec![replaced(300, 60)]));
}
