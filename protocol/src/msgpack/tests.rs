use super::*;
use crate::*;

fn hex(text: &str) -> Vec<u8> {
    text.split_whitespace()
        .map(|byte| u8::from_str_radix(byte, 16).unwrap())
        .collect()
}

fn decode(bytes: &[u8]) -> Result<ClientMessage, DecodeError> {
    decode_client(bytes, &Limits::default())
}

#[test]
fn values_of_any_origin_become_canonical() {
    for (given, wanted) in [
        ("cf 00 00 00 00 00 00 00 05", "05"),
        ("d3 ff ff ff ff ff ff ff ff", "ff"),
        ("d1 00 c8", "cc c8"),
        ("ca 3f 80 00 00", "cb 3f f0 00 00 00 00 00 00"),
        ("d9 01 61", "a1 61"),
        ("dc 00 01 c0", "91 c0"),
        ("c6 00 00 00 01 09", "c4 01 09"),
        (
            "82 a1 62 01 d9 01 61 82 a1 79 02 a1 78 cc 03",
            "82 a1 61 82 a1 78 03 a1 79 02 a1 62 01",
        ),
        ("c7 08 ff 00 00 00 00 00 00 00 07", "d6 ff 00 00 00 07"),
        (
            "c7 0c ff 00 00 00 01 00 00 00 00 00 00 00 07",
            "d7 ff 00 00 00 04 00 00 00 07",
        ),
        ("c7 01 05 aa", "d4 05 aa"),
    ] {
        assert_eq!(value(&hex(given)).unwrap().as_bytes(), &hex(wanted), "{given}");
        assert_eq!(value(&hex(wanted)).unwrap().as_bytes(), &hex(wanted), "{wanted}");
    }
}

#[test]
fn what_is_no_value_is_refused() {
    for (given, code) in [
        ("", Code::Malformed),
        ("c1", Code::Malformed),
        ("a2 61", Code::Malformed),
        ("dd ff ff ff ff", Code::Malformed),
        ("01 01", Code::Malformed),
        ("a1 ff", Code::Invalid),
        ("cb 7f f8 00 00 00 00 00 00", Code::Invalid),
        ("cb 7f f0 00 00 00 00 00 00", Code::Invalid),
        ("cf 80 00 00 00 00 00 00 00", Code::Invalid),
        ("d4 20 00", Code::Invalid),
        ("d4 fe 00", Code::Invalid),
        ("d4 ff 00", Code::Invalid),
        ("d7 ff ff ff ff ff 00 00 00 00", Code::Invalid),
        ("81 01 01", Code::Invalid),
        ("82 a1 61 01 a1 61 02", Code::Invalid),
        ("81 a3 65 cc 81 01", Code::Invalid),
    ] {
        assert_eq!(value(&hex(given)).unwrap_err().code, code, "{given}");
    }
    assert!(value(&[vec![0x91; DEPTH_MAX], vec![0xc0]].concat()).is_ok());
    assert_eq!(
        value(&[vec![0x91; DEPTH_MAX + 1], vec![0xc0]].concat())
            .unwrap_err()
            .code,
        Code::TooLarge
    );
}

fn write_of(ops: Vec<Op>) -> Write {
    Write {
        head: WriteHead {
            space: SpaceId::parse("list:1").unwrap(),
            client: ClientId(u64::MAX),
            mid: Mid::new(2).unwrap(),
            key: MutationKey(7),
            prev: Some(MutationKey(6)),
            first: None,
        },
        base: Some(Position::new(Epoch(9), Seq::new(4).unwrap())),
        policy: Some(Policy::Merge),
        ops,
    }
}

fn op(kind: OpKind) -> Op {
    Op {
        doc: DocPath::parse("notes/n1").unwrap(),
        kind,
        exists: Some(true),
        unchanged_since: Some(Position::START),
    }
}

#[test]
fn a_write_with_nested_maps_comes_back_as_it_was() {
    let inner = Value::map([
        ("x.y", &Value::int(1)),
        ("z", &Value::empty_map()),
        ("a", &Value::str("é")),
    ])
    .unwrap();
    let map = Value::map([("m", &inner), ("n", &Value::nil())]).unwrap();
    let path = |text| FieldPath::parse(text).unwrap();
    let fields = Fields::new(
        [(path(r"p.q\.r"), map), (path("s"), Value::bool(true))],
        &Limits::default(),
    )
    .unwrap();
    let ops = vec![
        op(OpKind::Set(fields)),
        op(OpKind::Unset(vec![path("b"), path("a")])),
        op(OpKind::Delete),
    ];
    assert_eq!(decode_ops(&encode_ops(&ops), &Limits::default()).unwrap(), ops);
    let message = ClientMessage::Write(write_of(ops));
    assert_eq!(decode(&encode_client(&message)).unwrap(), message);
}

#[test]
fn a_refused_write_still_says_which_mutation_it_was() {
    let good = write_of(vec![op(OpKind::Check)]);
    let bytes = encode_client(&ClientMessage::Write(good.clone()));
    let swap = |from: &[u8], to: &[u8]| {
        assert_eq!(from.len(), to.len());
        let at = bytes.windows(from.len()).position(|w| w == from).unwrap();
        let mut bad = bytes.clone();
        bad[at..at + to.len()].copy_from_slice(to);
        decode(&bad).unwrap_err()
    };
    let refused = swap(b"check", b"chess");
    assert_eq!(refused.error.code, Code::Unsupported);
    assert_eq!(refused.error.message, "op 0: unknown op \"chess\"");
    assert_eq!(refused.write.as_deref(), Some(&good.head));
    assert_eq!(refused.at, Some(At { op: 0, path: None }));
    assert_eq!(swap(b"exists", b"exista").error.code, Code::Unsupported);
    assert_eq!(swap(b"notes/n1", b"notes//1").error.code, Code::Invalid);
    assert_eq!(swap(b"policy", b"police").write.as_deref(), Some(&good.head));
    // Without a readable envelope there is nothing to consume.
    assert_eq!(swap(b"list:1", b"list 1").write, None);
    // What is no message at all closes the connection.
    assert!(swap(b"prev", b"base").closes());
    assert!(decode(&bytes[..bytes.len() - 1]).unwrap_err().closes());
    assert!(decode(&[bytes.as_slice(), &[0xc0]].concat()).unwrap_err().closes());
}

#[test]
fn a_change_is_spliced_of_its_pieces() {
    let docs = vec![
        DocChange {
            doc: DocPath::parse("a/1").unwrap(),
            kind: DocChangeKind::Change {
                set: vec![(FieldPath::parse("x").unwrap(), Value::int(1))],
                unset: vec![FieldPath::parse("y").unwrap()],
            },
        },
        DocChange {
            doc: DocPath::parse("a/2").unwrap(),
            kind: DocChangeKind::Whole(vec![]),
        },
        DocChange {
            doc: DocPath::parse("a/3").unwrap(),
            kind: DocChangeKind::Deleted,
        },
    ];
    assert_eq!(decode_doc_changes(&encode_doc_changes(&docs)).unwrap(), docs);
    let mid = Mid::new(3).unwrap();
    let body = encode_body(Writer(5), mid, &docs);
    let payload = payload(Seq::new(8).unwrap(), 1_000, &body);
    let commit = Commit {
        seq: Seq::new(8).unwrap(),
        at: 1_000,
        writer: Writer(5),
        mid,
        docs,
    };
    assert_eq!(decode_payload(&payload).unwrap(), commit);
    assert_eq!(payload_seq(&payload).unwrap(), commit.seq);
    assert_eq!(payload_time(&payload).unwrap(), commit.at);
    let frame = [change_prefix(70_000), payload.to_vec()].concat();
    let change = ServerMessage::Change(Change { n: 70_000, commit });
    assert_eq!(encode_server(&change), frame);
    assert_eq!(decode_server(&frame).unwrap(), change);
}

#[test]
fn documents_that_are_put_together_are_those_that_are_encoded() {
    let field = |n: usize| FieldPath::parse(&format!("f{n:05}")).unwrap();
    let leaves = |count| -> Vec<_> {
        (0..count)
            .map(|n| (field(n), Value::str(&"x".repeat(n % 50))))
            .collect()
    };
    let mut docs = Vec::new();
    // The heads of maps and arrays take one byte up to 15, and three up to 65,535.
    for count in [0, 1, 15, 16, 17, 65_535, 65_536] {
        let doc = |name: &str| DocPath::parse(&format!("{name}/{count}")).unwrap();
        docs.push(DocChange {
            doc: doc("whole"),
            kind: DocChangeKind::Whole(leaves(count)),
        });
        docs.push(DocChange {
            doc: doc("change"),
            kind: DocChangeKind::Change {
                set: leaves(count),
                unset: (0..count).map(field).collect(),
            },
        });
        docs.push(DocChange {
            doc: doc("deleted"),
            kind: DocChangeKind::Deleted,
        });
    }
    let mut built = DocChanges::default();
    for doc in &docs {
        built.begin("taken/back");
        built.leaf("f", Value::int(1).as_bytes());
        assert_eq!(built.leaves(), 1);
        built.take_back();
        built.push(doc);
        assert_eq!(built.last_doc(), Some(doc.doc.as_str()));
    }
    assert_eq!(built.len(), docs.len());
    assert!(built.decode().unwrap() == docs);
    for count in [0, 3, 15, 16, docs.len()] {
        let built: DocChanges = docs[..count].iter().collect();
        let (head, body, tail) = page_parts(7, &built, b"cursor");
        let page = ServerMessage::Page {
            id: 7,
            docs: docs[..count].to_vec(),
            cursor: bytes::Bytes::from_static(b"cursor"),
        };
        assert!(
            [&head, body, &tail].concat() == encode_server(&page),
            "{count} documents"
        );
    }
}

#[test]
fn unknown_keys_are_ignored_outside_write() {
    let ping = [
        &[0x83][..],
        b"\xa1t\xa4ping",
        b"\xa3new\x92\x01\x81\xa1a\xc0",
        b"\xa2at\x07",
    ]
    .concat();
    assert_eq!(decode(&ping).unwrap(), ClientMessage::Ping { at: 7 });
    let current = [
        &[0x85][..],
        b"\xa1t\xa7current\xa2id\x01\xa5epoch\x02\xa3seq\xcd\x00\x03\xa3new\xc0",
    ]
    .concat();
    let position = Position::new(Epoch(2), Seq::new(3).unwrap());
    assert_eq!(
        decode_server(&current).unwrap(),
        ServerMessage::Current {
            id: 1,
            position,
            last_mid: None
        }
    );
}

#[test]
fn a_bad_sub_says_its_id() {
    let sub = Sub {
        id: 77,
        space: SpaceId::parse("s").unwrap(),
        client: None,
        from: None,
        filter: None,
    };
    let mut bytes = encode_client(&ClientMessage::Sub(sub));
    *bytes.last_mut().unwrap() = b' ';
    assert_eq!(decode(&bytes).unwrap_err().re, Some(77));
    let unknown = [&[0x82][..], b"\xa1t\xa4subb\xa2id\x07"].concat();
    assert_eq!(decode(&unknown).unwrap_err().error.code, Code::Unsupported);
    assert_eq!(decode(&unknown).unwrap_err().re, None);
}
