//! Quotas: what grows over one is refused, and nothing else.

use super::*;
use crate::store::Usage;

/// The bytes of a document whose one field `a` holds a small number.
const SMALL: u64 = 2;

fn usage(bench: &Bench) -> Usage {
    now(bench.model.positions(&[space()])).expect("the model answers")[0].usage
}

/// Refused as too large, at an op, with words.
fn over(bench: &mut Bench, ops: Vec<Op>, op: u32, words: &[&str]) {
    let before = usage(bench);
    let (code, report) = bench.refuse(1, body(ops));
    let refusal = report.refusal.expect("a reason");
    assert_eq!((code, refusal.at.expect("a place").op), (Code::TooLarge, op));
    assert!(
        words.iter().all(|word| refusal.message.contains(word)),
        "{}",
        refusal.message
    );
    assert_eq!(usage(bench), before);
}

#[test]
fn a_space_has_no_more_documents_than_its_quota_and_those_it_has_can_be_edited() {
    let mut bench = Bench::default();
    bench.quota.space_docs = Some(2);
    bench.apply(1, body(vec![set("n", &[("a", int(1))]), set("m", &[("a", int(1))])]));
    let grows = vec![set("n", &[("a", int(2))]), set("o", &[("a", int(1))])];
    over(&mut bench, grows, 1, &["documents in the space", "2", "3"]);
    bench.apply(1, body(vec![set("n", &[("a", int(2)), ("b", int(2))])]));
    bench.apply(1, body(vec![delete("n"), set("o", &[])]));
    assert_eq!(usage(&bench).docs, 2);
    over(&mut bench, vec![set("n", &[])], 0, &["3"]);
    // Lowered below what there is: nothing grows, everything may shrink.
    bench.quota.space_docs = Some(0);
    over(&mut bench, vec![create("n", &[])], 0, &["0", "3"]);
    bench.apply(1, body(vec![set("m", &[("a", int(7))])]));
    bench.apply(1, body(vec![delete("m")]));
    assert_eq!(usage(&bench).docs, 1);
}

#[test]
fn the_bytes_of_a_space_and_of_all_stay_within_their_quotas() {
    for of_all in [false, true] {
        let mut bench = Bench::default();
        let (quota, name) = match of_all {
            false => (&mut bench.quota.space_bytes, "bytes of the space's documents"),
            true => (&mut bench.quota.total_bytes, "bytes of all documents"),
        };
        *quota = Some(2 * SMALL);
        bench.apply(1, body(vec![set("n", &[("a", int(1))]), set("m", &[("a", int(1))])]));
        over(
            &mut bench,
            vec![set("n", &[]), set("m", &[("b", int(1))])],
            1,
            &[name, "4", "6"],
        );
        // What one document gives up another may take.
        bench.apply(1, body(vec![unset("n", &["a"]), set("m", &[("b", int(1))])]));
        assert_eq!(usage(&bench).bytes, 2 * SMALL);
        over(&mut bench, vec![set("n", &[("a", int(1))])], 0, &[name]);
        let quota = if of_all {
            &mut bench.quota.total_bytes
        } else {
            &mut bench.quota.space_bytes
        };
        *quota = Some(1);
        bench.apply(1, body(vec![set("m", &[("b", int(2))])]));
        bench.apply(1, body(vec![unset("m", &["b"])]));
        assert_eq!(usage(&bench).bytes, SMALL);
    }
}

#[test]
fn mutations_of_one_group_are_counted_together_and_refused_ones_not_at_all() {
    let quota = Quota {
        space_docs: Some(2),
        space_bytes: None,
        total_bytes: Some(2 * SMALL),
    };
    let mut bench = Bench {
        quota,
        ..Bench::default()
    };
    let write = |bench: &mut Bench, client, name: &str| bench.next(client, body(vec![set(name, &[("a", int(1))])]));
    let group = ["n", "m", "o", "n", "p"].map(|name| write(&mut bench, 1, name));
    let remove = bench.next(1, body(vec![delete("m")]));
    let again = write(&mut bench, 1, "o");
    let group: Vec<_> = group.into_iter().chain([remove, again]).collect();
    let outcomes: Vec<_> = bench.group(&group).into_iter().map(|(outcome, _)| outcome).collect();
    let applied: Vec<_> = outcomes
        .iter()
        .map(|outcome| matches!(outcome, Outcome::Applied { .. }))
        .collect();
    assert_eq!(applied, [true, true, false, true, false, true, true]);
    assert!(matches!(outcomes[2], Outcome::Refused { .. }), "it consumes the mid");
    assert_eq!(
        usage(&bench),
        Usage {
            docs: 2,
            bytes: 2 * SMALL
        }
    );
}
