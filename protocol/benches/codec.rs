//! What the codec costs per message, each beside something that nobody can do without (a copy of the
//! same bytes) or would do instead (serde's own readers). Read the ratios, not the times.

use criterion::{BenchmarkGroup, Criterion, Throughput, measurement::WallTime};
use serde::de::IgnoredAny;
use std::hint::black_box;
use std::time::Duration;
use tidegate_protocol::{
    ClientId, ClientMessage, DocChange, DocChangeKind, DocPath, Fields, Limits, Mid, MutationKey, Op, OpKind, Seq,
    SpaceId, Value, Write, WriteHead, Writer, json, msgpack,
};

fn main() {
    let mut criterion = Criterion::default()
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1))
        .configure_from_args();
    decode_a_write(&mut criterion);
    scan_a_value(&mut criterion);
    encode_a_change(&mut criterion);
    transcode_a_change(&mut criterion);
    criterion.final_summary();
}

fn decode_a_write(criterion: &mut Criterion) {
    let write = msgpack::encode_client(&ClientMessage::Write(write()));
    let limits = Limits::default();
    let mut group = group(criterion, "decode a write", &write);
    group.bench_function("decode_client", |b| {
        b.iter(|| msgpack::decode_client(black_box(&write), &limits).expect("valid"));
    });
    group.bench_function("against IgnoredAny", |b| b.iter(|| ignore(black_box(&write))));
    group.bench_function("against a copy", |b| b.iter(|| black_box(&write).clone()));
    group.finish();
}

fn scan_a_value(criterion: &mut Criterion) {
    let value = task();
    let bytes = value.as_bytes();
    let mut group = group(criterion, "scan, check and copy a value", bytes);
    group.bench_function("value", |b| {
        b.iter(|| msgpack::value(black_box(bytes)).expect("valid"));
    });
    group.bench_function("against IgnoredAny", |b| b.iter(|| ignore(black_box(bytes))));
    group.bench_function("against a copy", |b| b.iter(|| black_box(bytes).to_vec()));
    group.finish();
}

fn encode_a_change(criterion: &mut Criterion) {
    let docs = [change()];
    let payload = payload(&docs);
    let mut group = group(criterion, "encode a change", &payload);
    group.bench_function("encode_body and payload", |b| {
        b.iter(|| self::payload(black_box(&docs)));
    });
    group.bench_function("against a copy", |b| b.iter(|| black_box(&payload).to_vec()));
    group.finish();
}

fn transcode_a_change(criterion: &mut Criterion) {
    let mut message = msgpack::change_prefix(3);
    message.extend_from_slice(&payload(&[change()]));
    let text = json::from_msgpack(&message);
    let parsed: serde_json::Value = serde_json::from_str(&text).expect("valid");
    {
        let mut group = group(criterion, "change to JSON", &message);
        group.bench_function("from_msgpack", |b| b.iter(|| json::from_msgpack(black_box(&message))));
        group.bench_function("against serde_json to_string", |b| {
            b.iter(|| serde_json::to_string(black_box(&parsed)).expect("valid"));
        });
        group.finish();
    }
    let limits = Limits::default();
    let mut group = group(criterion, "change from JSON", text.as_bytes());
    group.bench_function("to_msgpack", |b| {
        b.iter(|| json::to_msgpack(black_box(&text), &limits).expect("valid"))
    });
    group.bench_function("against serde_json from_str", |b| {
        b.iter(|| serde_json::from_str::<serde_json::Value>(black_box(&text)).expect("valid"));
    });
    group.finish();
}

fn group<'c>(criterion: &'c mut Criterion, name: &str, bytes: &[u8]) -> BenchmarkGroup<'c, WallTime> {
    let mut group = criterion.benchmark_group(name);
    group.throughput(Throughput::Bytes(bytes.len() as u64));
    group
}

fn ignore(bytes: &[u8]) -> IgnoredAny {
    rmp_serde::from_slice(bytes).expect("valid")
}

/// A map as apps store them in one field: 135 bytes, nested, mixed, canonical.
fn task() -> Value {
    let json = serde_json::json!({
        "assignee": "user-4711",
        "due": 1_794_000_000,
        "labels": ["garden", "spring", "urgent"],
        "place": {"lat": 52.520_008, "lon": 13.404_954},
        "state": "open",
        "title": "Repot the lemon tree",
        "watch": true,
    });
    let value = json::value_from_json(&json).expect("valid");
    assert!(
        (130..=140).contains(&value.as_bytes().len()),
        "{}",
        value.as_bytes().len()
    );
    value
}

/// A set of three plain fields, as an app sends while someone edits.
fn write() -> Write {
    let fields = [
        ("title", Value::str("Repot the lemon tree")),
        ("done", Value::bool(false)),
        (
            "note",
            Value::str("In the big pot behind the shed; mix the soil with sand first. The saucer is broken."),
        ),
    ];
    let fields = fields.map(|(path, value)| (path.parse().expect("a field"), value));
    Write {
        head: WriteHead {
            space: SpaceId::parse("list:42").expect("a space"),
            client: ClientId(0x1234_5678_9abc_def0),
            mid: Mid::new(1_000).expect("a mid"),
            key: MutationKey(0x0fed_cba9_8765_4321),
            prev: Some(MutationKey(0x1111_2222_3333_4444)),
            first: None,
        },
        base: None,
        policy: None,
        ops: vec![Op {
            doc: DocPath::parse("tasks/t-000417").expect("a document"),
            kind: OpKind::Set(Fields::new(fields, &Limits::default()).expect("fields")),
            exists: None,
            unchanged_since: None,
        }],
    }
}

/// What the `set` of [`write()`] comes to.
fn change() -> DocChange {
    let write = write();
    let OpKind::Set(fields) = &write.ops[0].kind else {
        unreachable!()
    };
    let leaf = |(path, content): &(_, tidegate_protocol::Content)| match content {
        tidegate_protocol::Content::Leaf(value) => (tidegate_protocol::FieldPath::clone(path), value.clone()),
        tidegate_protocol::Content::Map(_) => unreachable!("plain fields"),
    };
    DocChange {
        doc: write.ops[0].doc.clone(),
        kind: DocChangeKind::Change {
            set: fields.iter().map(leaf).collect(),
            unset: vec![],
        },
    }
}

fn payload(docs: &[DocChange]) -> bytes::Bytes {
    let body = msgpack::encode_body(Writer(0x5555_6666_7777_8888), Mid::new(1_000).expect("a mid"), docs);
    msgpack::payload(Seq::new(1_000_000).expect("a seq"), 1_794_000_000_123, &body)
}
