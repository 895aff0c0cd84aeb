//! What `check` finds: nothing in a store as it was written, and each thing that can be wrong with one.

use super::super::check::{Checked, Rule, Violation, walk};
use super::*;
use crate::store::{Cell, ConflictDone, ConflictEntry, ConflictRecord, Header, Kept, Lineage, LineageEntry, Stamp};
use disk::{Look as _, Table};
use document::{Form, StoredCell};
use records::{Client, KeptResult, Record, SpaceMeta};
use std::collections::HashSet;

/// As [`item`], of effects whose sizes and body are what they are in a real commit.
fn written(writer: u64, mid: u64, docs: Vec<DocEffect>) -> Prepared {
    Prepared {
        action: Action::Apply(Effects {
            docs,
            body: msgpack::encode_body(Writer(writer), Mid::new(mid).expect("small"), &[]),
            conflicts: vec![conflict()],
            ..Effects::default()
        }),
        ..item(writer, mid, vec![])
    }
}

fn conflict() -> ConflictEntry {
    ConflictEntry {
        doc: doc("c/a"),
        path: Some(field("x")),
        theirs: vec![],
        ours: Some(Value::int(1)),
        done: ConflictDone::Overwritten,
    }
}

fn sized(effect: DocEffect, size: u64) -> DocEffect {
    DocEffect { size, ..effect }
}

/// A space with a document, a tombstone in it, a deleted document, a second epoch, conflicts and marks.
async fn real(place: &Place) -> EmbeddedStore {
    let steps = [
        written(
            1,
            1,
            vec![sized(set("c/a", true, &[("x", 1), ("y", 2), ("y-z", 3)]), 8)],
        ),
        written(
            1,
            2,
            vec![sized(unset("c/a", &["x"]), 6), sized(set("c/b", true, &[("x", 1)]), 2)],
        ),
        written(2, 1, vec![delete("c/b", &["x"])]),
        written(1, 3, vec![sized(set("c/a", false, &[("y", 3)]), 6)]),
    ];
    let mut store = place.open();
    for (n, step) in (1..).zip(steps) {
        if n == 3 {
            store.close();
            store = place.open();
        }
        commit_at(&store, "s", n * 100_000, vec![step]).await.expect("answers");
    }
    store
}

fn violations(store: &EmbeddedStore) -> (Checked, Vec<Violation>) {
    let mut all = Vec::new();
    let checked = walk(&database(store).cut(), &mut |violation| all.push(violation)).expect("reads");
    assert_eq!(checked.violations, all.len() as u64);
    (checked, all)
}

type Entry = (Table, Vec<u8>, Option<Vec<u8>>);

/// Puts entries in place, and returns what was there.
fn exchange(store: &EmbeddedStore, entries: Vec<Entry>) -> Vec<Entry> {
    let disk = database(store);
    let cut = disk.cut();
    let mut batch = disk.batch(fjall::PersistMode::Buffer);
    let mut before = Vec::new();
    for (table, key, value) in entries {
        let old = cut.get(table, &key).expect("reads").map(|value| value.to_vec());
        match value {
            Some(value) => batch.insert(disk.table(table), key.clone(), value),
            None => batch.remove(disk.table(table), key.clone()),
        }
        before.push((table, key, old));
    }
    batch.commit().expect("writes");
    before
}

#[tokio::test]
async fn each_thing_that_can_be_wrong_is_found_and_named() {
    let place = Place::new();
    let store = real(&place).await;
    assert_eq!(violations(&store).1, []);
    as_format_2(&store);
    let (checked, clean) = violations(&store);
    assert_eq!(clean, []);
    assert_eq!((checked.spaces, checked.docs), (1, 2));

    let s = space("s");
    let (a, b) = (doc("c/a"), doc("c/b"));
    let read = |table, key: &[u8]| {
        database(&store)
            .cut()
            .get(table, key)
            .expect("reads")
            .expect("is there")
            .to_vec()
    };
    let meta = |change: fn(&mut SpaceMeta)| {
        let mut meta = SpaceMeta::decode(&read(Table::Spaces, &keys::meta(&s))).expect("a record");
        change(&mut meta);
        (Table::Spaces, keys::meta(&s), Some(meta.encode()))
    };
    let lineage = |change: fn(&mut Vec<LineageEntry>)| {
        let mut lineage = Lineage::decode(&read(Table::Spaces, &keys::lineage(&s))).expect("a record");
        change(&mut lineage.0);
        (Table::Spaces, keys::lineage(&s), Some(lineage.encode()))
    };
    let header = |doc: &DocPath, change: fn(&mut Header)| {
        let mut header = document::header(&read(Table::Cells, &keys::doc(&s, doc))).expect("a record");
        change(&mut header);
        (Table::Cells, keys::doc(&s, doc), Some(document::spread(&header, false)))
    };
    let stamp = |n| Stamp {
        seq: seq(n),
        writer: Writer(1),
    };
    let cell = |path: &str, n, value: &[u8]| {
        let mut bytes = Cell {
            stamp: stamp(n),
            value: None,
        }
        .encode();
        bytes.extend_from_slice(value);
        (Table::Cells, keys::cell(&s, &a, &field(path)), Some(bytes))
    };
    let name = |path: &str| (Table::Fields, keys::cell(&s, &a, &field(path)), Some(vec![]));
    let result = |mid: u64, key: u64, n: u64| {
        let kept = Kept {
            refused: None,
            position: Position::new(Epoch(77), seq(n)),
            detail: Bytes::new(),
        };
        let record = KeptResult {
            key: MutationKey(key),
            kept,
        };
        let key = keys::result_2(&s, Writer(1), Mid::new(mid).expect("small"));
        (Table::Results, key, Some(record.encode()))
    };
    let gone = |table, key: Vec<u8>| (table, key, None);
    let payload = |n: u64, at: u64| {
        let body = msgpack::encode_body(Writer(1), Mid::ZERO.next(), &[]);
        (
            Table::Log,
            keys::log(&s, seq(3)),
            Some(msgpack::payload(seq(n), at, &body).to_vec()),
        )
    };
    let noted = |n: u64, at: u64| {
        let record = ConflictRecord {
            position: Position::new(Epoch(77), seq(at)),
            at: 1,
            writer: Writer(1),
            mid: Mid::ZERO.next(),
            entry: conflict(),
        };
        (Table::Conflicts, keys::conflict(&s, n), Some(record.encode()))
    };
    // An entry with a value in a form longer than need be: ours, or theirs.
    let valued = |ours: i64, theirs: i64| {
        let cell = Cell {
            stamp: stamp(1),
            value: Some(Value::int(theirs)),
        };
        let record = ConflictRecord {
            position: Position::new(Epoch(77), seq(1)),
            at: 1,
            writer: Writer(1),
            mid: Mid::ZERO.next(),
            entry: ConflictEntry {
                ours: Some(Value::int(ours)),
                theirs: vec![(field("x"), cell)],
                ..conflict()
            },
        };
        let mut bytes = record.encode();
        let short = [0xce, 0, 1, 0x11, 0x70];
        let at = bytes.windows(5).position(|found| found == short).expect("it is 70,000");
        bytes[at] = 0xd2;
        (Table::Conflicts, keys::conflict(&s, 3), Some(bytes))
    };
    let unread = |table, key: Vec<u8>| (table, key, Some(b"\x01?".to_vec()));
    let mark = |at: u64, n: u64| (Table::Spaces, keys::mark(&s, at), Some(seq(n).encode()));

    let cases: Vec<Case> = vec![
        (
            vec![(Table::Log, b"no space".to_vec(), Some(vec![]))],
            Rule::Key,
            "log: no space: ",
        ),
        (
            vec![(Table::Spaces, b"s\0?".to_vec(), Some(vec![]))],
            Rule::Key,
            "spaces: s: ?: ",
        ),
        (
            vec![(Table::Log, b"s\0?".to_vec(), Some(vec![]))],
            Rule::Key,
            "log: s: ?: ",
        ),
        (
            vec![(Table::Cells, b"s\0c/a\0x.".to_vec(), Some(vec![]))],
            Rule::Key,
            "cells: s: c/a\\x00x.: ",
        ),
        (
            vec![(Table::Idx, b"s\0?".to_vec(), Some(vec![]))],
            Rule::Key,
            "idx: s: ?: ",
        ),
        (
            vec![(Table::Dead, b"s\0?".to_vec(), Some(vec![]))],
            Rule::Key,
            "dead: s: ?: ",
        ),
        (
            vec![(Table::Clients, b"s\0?".to_vec(), Some(vec![]))],
            Rule::Key,
            "clients: s: ?: ",
        ),
        (
            vec![(
                Table::Results,
                [&keys::client(&s, Writer(1))[..], b"??"].concat(),
                Some(vec![]),
            )],
            Rule::Key,
            "results: s: ",
        ),
        (
            vec![(Table::Users, b"s\0?".to_vec(), Some(vec![]))],
            Rule::Key,
            "users: s: ?: ",
        ),
        (
            vec![(Table::Conflicts, b"s\0?".to_vec(), Some(vec![]))],
            Rule::Key,
            "conflicts: s: ?: ",
        ),
        (
            vec![unread(Table::Spaces, keys::meta(&s))],
            Rule::Record,
            "spaces: s: record: ",
        ),
        (
            vec![unread(Table::Spaces, keys::lineage(&s))],
            Rule::Record,
            "spaces: s: lineage: ",
        ),
        (
            vec![unread(Table::Spaces, keys::mark(&s, 100_000))],
            Rule::Record,
            "spaces: s: mark 100000: ",
        ),
        (
            vec![unread(Table::Log, keys::log(&s, seq(2)))],
            Rule::Record,
            "log: s: commit 2: ",
        ),
        (
            vec![unread(Table::Cells, keys::doc(&s, &a))],
            Rule::Record,
            "cells: s: c/a: ",
        ),
        (
            vec![unread(Table::Cells, keys::cell(&s, &a, &field("y")))],
            Rule::Record,
            "cells: s: c/a y: ",
        ),
        (
            vec![unread(Table::Fields, keys::cell(&s, &a, &field("y")))],
            Rule::Record,
            "fields: s: c/a y: ",
        ),
        (
            vec![unread(Table::Idx, keys::idx(&s, seq(4), &a))],
            Rule::Record,
            "idx: s: c/a: ",
        ),
        (
            vec![unread(Table::Dead, keys::dead(&s, seq(3), &b, None))],
            Rule::Record,
            "dead: s: c/b: ",
        ),
        (
            vec![unread(Table::Clients, keys::client(&s, Writer(1)))],
            Rule::Record,
            "clients: s: writer 0000000000000001: ",
        ),
        (
            vec![unread(Table::Results, keys::result_2(&s, Writer(2), Mid::ZERO.next()))],
            Rule::Record,
            "results: s: writer 0000000000000002 mid 1: ",
        ),
        (
            vec![unread(Table::Conflicts, keys::conflict(&s, 2))],
            Rule::Record,
            "conflicts: s: entry 2: ",
        ),
        (
            vec![gone(Table::Spaces, keys::meta(&s))],
            Rule::SpaceRecord,
            "spaces: s: ",
        ),
        (
            vec![(Table::Clients, keys::client(&space("t"), Writer(1)), Some(vec![]))],
            Rule::SpaceRecord,
            "clients: t: ",
        ),
        (
            vec![meta(|meta| meta.floor = seq(5))],
            Rule::SpaceBounds,
            "floor 5, head 4",
        ),
        (
            vec![meta(|meta| meta.log_first = seq(6))],
            Rule::SpaceBounds,
            "starts at 6",
        ),
        (
            vec![meta(|meta| meta.conflicts_first = 9)],
            Rule::SpaceBounds,
            "conflicts from 9 to 4",
        ),
        (vec![gone(Table::Spaces, keys::lineage(&s))], Rule::Lineage, "head is 4"),
        (
            vec![lineage(|all| all[0].start = seq(3))],
            Rule::EpochStart,
            "from 2, after 3",
        ),
        (vec![lineage(|all| all[1].start = seq(5))], Rule::EpochStart, "head 4"),
        (
            vec![lineage(|all| all[1].epoch = all[0].epoch)],
            Rule::EpochName,
            "from 2",
        ),
        (vec![lineage(|all| all[0].epoch = Epoch(0))], Rule::EpochName, "epoch 0"),
        (vec![mark(250_000, 1)], Rule::Mark, "mark 250000: "),
        (vec![mark(400_000, 5)], Rule::Mark, "seq 5, head 4"),
        (vec![mark(400_001, 4)], Rule::Mark, "the last is at 400001"),
        (
            vec![gone(Table::Log, keys::log(&s, seq(2)))],
            Rule::LogGap,
            "commit 3: ",
        ),
        (
            vec![gone(Table::Log, keys::log(&s, seq(4)))],
            Rule::LogGap,
            "it ends before 4",
        ),
        (vec![payload(2, 300_000)], Rule::LogSeq, "it is commit 2"),
        (
            vec![meta(|meta| meta.log_bytes += 1)],
            Rule::LogBytes,
            "the record says",
        ),
        (vec![payload(3, 100_000)], Rule::LogTime, "commit 3: "),
        (vec![meta(|meta| meta.last_ms = 400_001)], Rule::LogTime, "commit 4: "),
        (vec![gone(Table::Cells, keys::doc(&s, &a))], Rule::Header, "c/a: "),
        (
            vec![header(&a, |header| header.born.seq = seq(5))],
            Rule::HeaderSeq,
            "born 5, deleted 0, last 4",
        ),
        (
            vec![header(&b, |header| {
                header.deleted = Some(header.last).map(|last| Stamp { seq: seq(4), ..last })
            })],
            Rule::HeaderSeq,
            "c/b: ",
        ),
        (
            vec![header(&a, |header| header.last.seq = seq(5))],
            Rule::HeaderSeq,
            "head 4",
        ),
        (
            vec![header(&a, |header| header.size += 1)],
            Rule::Size,
            "6 bytes, the header says 7",
        ),
        (
            vec![header(&a, |header| (header.alive, header.size) = (false, 0))],
            Rule::DeadLeaf,
            "2 of them",
        ),
        (vec![meta(|meta| meta.usage.docs += 1)], Rule::Usage, "docs: 1"),
        (vec![meta(|meta| meta.usage.bytes += 1)], Rule::Usage, "bytes: 6"),
        (
            vec![gone(Table::Fields, keys::cell(&s, &a, &field("y")))],
            Rule::FieldName,
            "a cell without a name",
        ),
        (vec![name("w")], Rule::FieldName, "c/a w: "),
        (
            vec![(Table::Fields, keys::cell(&s, &doc("c/z"), &field("x")), Some(vec![]))],
            Rule::FieldName,
            "c/z x: ",
        ),
        (vec![cell("y", 5, &[3])], Rule::CellSeq, "5, the document 4"),
        (vec![cell("y", 4, &[0xd0, 3])], Rule::Value, "c/a y: "),
        (vec![cell("y", 4, &[0x81, 0xa1, b'k', 1])], Rule::Value, "c/a y: "),
        (vec![cell("y", 4, &[3, 3])], Rule::Value, "c/a y: "),
        // With a third between the two in the order of text.
        (
            vec![cell("y.z", 4, &[3]), name("y.z")],
            Rule::Structure,
            "c/a y.z: a live leaf lies below another: below y",
        ),
        (
            vec![gone(Table::Idx, keys::idx(&s, seq(4), &a))],
            Rule::Index,
            "not there under 4",
        ),
        (
            vec![(Table::Idx, keys::idx(&s, seq(1), &a), Some(vec![]))],
            Rule::Index,
            "there under 1, the header says 4",
        ),
        (
            vec![(Table::Idx, keys::idx(&s, seq(1), &doc("c/z")), Some(vec![]))],
            Rule::Index,
            "the header says nothing",
        ),
        (
            vec![gone(Table::Dead, keys::dead(&s, seq(3), &b, None))],
            Rule::Tombstone,
            "c/b: ",
        ),
        (
            vec![gone(Table::Dead, keys::dead(&s, seq(2), &a, Some(&field("x"))))],
            Rule::Tombstone,
            "c/a x: ",
        ),
        (
            vec![(Table::Dead, keys::dead(&s, seq(5), &a, None), Some(vec![]))],
            Rule::Tombstone,
            "of 5, the head is 4",
        ),
        (
            vec![gone(Table::Results, keys::result_2(&s, Writer(1), Mid::ZERO.next()))],
            Rule::Results,
            "that of mid 1 is missing",
        ),
        (
            vec![gone(
                Table::Results,
                keys::result_2(&s, Writer(1), Mid::new(2).expect("small")),
            )],
            Rule::Results,
            "that of mid 2 is missing",
        ),
        (vec![result(4, 0, 1)], Rule::Results, "mid 4: "),
        (
            vec![gone(Table::Clients, keys::client(&s, Writer(1)))],
            Rule::Results,
            "its writer has no record",
        ),
        (
            vec![gone(Table::Clients, keys::client(&s, Writer(2)))],
            Rule::Results,
            "its writer has no record",
        ),
        (vec![result(3, 9, 1)], Rule::LastResult, "mid 3"),
        (vec![result(2, 9, 5)], Rule::ResultSeq, "seq 5 of epoch 77, head 4"),
        (
            vec![gone(Table::Conflicts, keys::conflict(&s, 1))],
            Rule::ConflictGap,
            "entry 2: ",
        ),
        (vec![noted(4, 1)], Rule::ConflictGap, "it ends before 5"),
        (
            vec![meta(|meta| meta.conflicts_bytes += 1)],
            Rule::ConflictBytes,
            "the record says",
        ),
        (vec![noted(3, 5)], Rule::ConflictSeq, "seq 5, head 4"),
        (vec![valued(70_000, 1)], Rule::Record, "entry 3: "),
        (vec![valued(1, 70_000)], Rule::Record, "entry 3: "),
    ];
    let mut seen = each_is_found(&store, cases);
    drop(store);
    let place = Place::new();
    let store = real(&place).await;
    seen.extend(each_is_found(&store, of_format_3(&store)));
    assert_eq!(
        seen.len(),
        Rule::ConflictSeq as usize + 1,
        "every rule has been broken once"
    );
}

/// What is put in place, the rule that no longer holds, and words of the line that says so.
type Case = (Vec<Entry>, Rule, &'static str);

/// Breaks one thing after the other. Returns the rules that were broken.
fn each_is_found(store: &EmbeddedStore, cases: Vec<Case>) -> HashSet<Rule> {
    let mut seen = HashSet::new();
    for (entries, rule, words) in cases {
        let before = exchange(store, entries);
        let (_, found) = violations(store);
        let lines: Vec<_> = found.iter().map(ToString::to_string).collect();
        let named = found
            .iter()
            .zip(&lines)
            .any(|(violation, line)| violation.rule == rule && line.contains(words));
        assert!(named, "{rule:?}, {words:?}: {lines:#?}");
        seen.insert(rule);
        exchange(store, before);
    }
    assert_eq!(violations(store).1, []);
    seen
}

/// What can be wrong with packed documents, and with results in slots.
fn of_format_3(store: &EmbeddedStore) -> Vec<Case> {
    let s = space("s");
    let (a, b) = (doc("c/a"), doc("c/b"));
    let read = |table, key: &[u8]| {
        let found = database(store).cut().get(table, key).expect("reads");
        found.expect("is there").to_vec()
    };
    let put = |doc: &DocPath, record: Vec<u8>| (Table::Cells, keys::doc(&s, doc), Some(record));
    let changed = |doc: &DocPath, change: &dyn Fn(&mut Header, &mut Vec<StoredCell<'_>>)| {
        let record = read(Table::Cells, &keys::doc(&s, doc));
        let document::Document { mut header, form } = document::parse(&record).expect("a record");
        let Form::Packed(cells) = form else {
            panic!("it is small")
        };
        let mut cells = cells.all().expect("cells");
        change(&mut header, &mut cells);
        put(doc, document::packed(&header, &cells).expect("it is small"))
    };
    let whole = read(Table::Cells, &keys::doc(&s, &a));
    let first = Mid::ZERO.next();
    // The three results of the writer, by mid.
    let key = keys::result(&s, Writer(1), first);
    let (_, results) = results::parse(&read(Table::Results, &key)).expect("a run");
    let run = |mids: &[u64]| {
        let mids = mids.iter().map(|mid| Mid::new(*mid).expect("small"));
        let run = mids.zip(&results).fold(None, |run: Option<Vec<u8>>, (mid, result)| {
            Some(results::with(run.as_deref(), mid, result))
        });
        (Table::Results, key.clone(), run)
    };
    let cell = |path: &str| {
        let key = keys::cell(&s, &a, &field(path));
        (
            Table::Cells,
            key,
            Some(Cell::record(
                Stamp {
                    seq: seq(4),
                    writer: Writer(1),
                },
                Some(&[3]),
            )),
        )
    };
    let name = |path: &str| (Table::Fields, keys::cell(&s, &a, &field(path)), Some(vec![]));
    vec![
        (
            vec![put(&a, whole[..whole.len() - 1].to_vec())],
            Rule::Record,
            "cells: s: c/a: ",
        ),
        (vec![put(&a, whole[..40].to_vec())], Rule::Record, "cells: s: c/a: "),
        (
            vec![changed(&a, &|_, cells| cells[0].field = "x.")],
            Rule::Record,
            "cells: s: c/a: ",
        ),
        (
            vec![changed(&a, &|header, _| header.size += 1)],
            Rule::Size,
            "6 bytes, the header says 7",
        ),
        (
            vec![changed(&a, &|header, _| (header.alive, header.size) = (false, 0))],
            Rule::DeadLeaf,
            "2 of them",
        ),
        (
            vec![changed(&a, &|header, _| header.last.seq = seq(3))],
            Rule::CellSeq,
            "4, the document 3",
        ),
        (
            vec![changed(&b, &|header, _| {
                header.deleted = Some(Stamp {
                    seq: seq(4),
                    writer: Writer(1),
                })
            })],
            Rule::HeaderSeq,
            "c/b: ",
        ),
        (
            vec![changed(&a, &|_, cells| cells.swap(0, 1))],
            Rule::CellOrder,
            "x after y",
        ),
        (
            vec![changed(&a, &|_, cells| cells.push(cells[2]))],
            Rule::CellOrder,
            "y-z after y-z",
        ),
        (
            vec![changed(&a, &|_, cells| cells[1].value = Some(&[0xd0, 3]))],
            Rule::Value,
            "c/a y: ",
        ),
        (
            vec![changed(&a, &|_, cells| cells[2].field = "y.z")],
            Rule::Structure,
            "below y",
        ),
        (vec![cell("w"), name("w")], Rule::Packed, "c/a w: "),
        (vec![name("x")], Rule::FieldName, "c/a x: "),
        (
            vec![(Table::Dead, keys::dead(&s, seq(2), &a, Some(&field("x"))), None)],
            Rule::Tombstone,
            "c/a x: ",
        ),
        (
            vec![(Table::Dead, keys::dead(&s, seq(3), &b, Some(&field("x"))), None)],
            Rule::Tombstone,
            "c/b x: ",
        ),
        (
            vec![(Table::Idx, keys::idx(&s, seq(4), &a), None)],
            Rule::Index,
            "not there under 4",
        ),
        (vec![run(&[])], Rule::Results, "that of mid 1 is missing"),
        (vec![run(&[1, 2])], Rule::Results, "that of mid 3 is missing"),
        (vec![run(&[2, 3])], Rule::Results, "that of mid 1 is missing"),
        (
            vec![run(&[2, 3, 4])],
            Rule::Results,
            "slot 0: a client's results have a gap, or reach too far: mid 4",
        ),
        (vec![run(&[272, 273])], Rule::Results, "mid 272 is not kept there"),
        (
            vec![(
                Table::Results,
                keys::result(&s, Writer(1), Mid::new(16).expect("small")),
                run(&[1]).2,
            )],
            Rule::Results,
            "slot 1: a client's results have a gap, or reach too far: mid 1",
        ),
        // Of a mutation since there are runs.
        (
            vec![(
                Table::Results,
                keys::result_2(&s, Writer(1), first),
                Some(results[0].encode()),
            )],
            Rule::Results,
            "mid 1 is not kept there",
        ),
        (
            vec![(Table::Results, key.clone(), Some(b"?".to_vec()))],
            Rule::Record,
            "slot 0: ",
        ),
    ]
}

#[tokio::test]
async fn results_of_an_epoch_end_with_it() {
    let place = Place::new();
    let store = real(&place).await;
    let lineage = state(&store, "s").await.lineage;
    let mid = Mid::ZERO.next();
    let key = keys::result(&space("s"), Writer(1), mid);
    let kept = Kept {
        refused: None,
        position: Position::new(lineage.0[0].epoch, seq(3)),
        detail: Bytes::new(),
    };
    let result = KeptResult {
        key: super::key(1, 1),
        kept,
    };
    let run = database(&store).cut().get(Table::Results, &key).expect("reads");
    let (_, results) = results::parse(&run.expect("is there")).expect("a run");
    let run = (2..)
        .zip(&results[1..])
        .fold(results::with(None, mid, &result), |run, (mid, result)| {
            results::with(Some(&run), Mid::new(mid).expect("small"), result)
        });
    exchange(&store, vec![(Table::Results, key, Some(run))]);
    let (_, found) = violations(&store);
    assert_eq!(
        found.iter().map(|violation| violation.rule).collect::<Vec<_>>(),
        [Rule::ResultSeq]
    );
}

#[tokio::test]
async fn a_store_is_clean_at_every_step_of_collection() {
    let place = Place::new();
    let store = real(&place).await;
    for to in 1..=4 {
        store.raise_floor(&space("s"), seq(to)).await.expect("collects");
        assert_eq!(violations(&store).1, [], "floor {to}");
    }
    assert_eq!(violations(&store).0.docs, 1);
    // Longer than records and conflicts are kept.
    store.collect(u64::MAX / 2).await.expect("collects");
    let (checked, found) = violations(&store);
    assert_eq!(found, []);
    let client = database(&store)
        .cut()
        .record::<Client>(Table::Clients, &keys::client(&space("s"), Writer(1)));
    assert_eq!(client.expect("reads"), None);
    assert!(checked.records > 0);
}

#[test]
fn a_directory_without_a_store_is_told_and_left_alone() {
    let place = Place::new();
    for dir in [place.dir.path().to_owned(), place.dir.path().join("nowhere")] {
        let error = check(&dir, &mut |_| {}).expect_err("nothing to check");
        assert!(error.to_string().contains(&dir.display().to_string()), "{error}");
    }
    assert_eq!(std::fs::read_dir(place.dir.path()).expect("readable").count(), 0);
    let store = place.open();
    let error = check(place.dir.path(), &mut |_| {}).expect_err("it is open");
    assert!(error.to_string().contains("in use"), "{error}");
    store.close();
    assert_eq!(
        check(place.dir.path(), &mut |_| {}).expect("checks"),
        Checked::default()
    );
}
