use super::{array, at, doc, field, kinds, map, mid, seq, space};
use tidegate_protocol::*;

kinds!(kind, KINDS, ClientMessage,
    ClientMessage::Hello(_) => "hello",
    ClientMessage::Auth { .. } => "auth",
    ClientMessage::Sub(_) => "sub",
    ClientMessage::Unsub { .. } => "unsub",
    ClientMessage::Write(_) => "write",
    ClientMessage::Get(_) => "get",
    ClientMessage::Ping { .. } => "ping",
);

kinds!(op_kind, OP_KINDS, OpKind,
    OpKind::Set(_) => "set",
    OpKind::Merge(_) => "merge",
    OpKind::Unset(_) => "unset",
    OpKind::Create(_) => "create",
    OpKind::Replace(_) => "replace",
    OpKind::Delete => "delete",
    OpKind::Inc { .. } => "inc",
    OpKind::Max { .. } => "max",
    OpKind::Min { .. } => "min",
    OpKind::Add { .. } => "add",
    OpKind::Remove { .. } => "remove",
    OpKind::Now { .. } => "now",
    OpKind::Check => "check",
);

pub fn fields(list: &[(&str, Value)]) -> Fields {
    Fields::new(
        list.iter().map(|(path, value)| (field(path), value.clone())),
        &Limits::default(),
    )
    .unwrap()
}

/// Ops, each a `write` of its own in the vectors.
pub fn ops() -> Vec<(&'static str, Op)> {
    let bare = |kind| Op {
        doc: doc("notes/n1"),
        kind,
        exists: None,
        unchanged_since: None,
    };
    let guarded = |kind| Op {
        exists: Some(true),
        unchanged_since: Some(at(7)),
        ..bare(kind)
    };
    let nested = map([
        ("amount", Value::int(5)),
        ("currency", Value::str("NOK")),
        ("more", map([("a.b", Value::nil()), ("none", Value::empty_map())])),
    ]);
    let ts = Value::timestamp(Timestamp {
        secs: 1_700_000_000,
        nanos: 5_000_000,
    });
    vec![
        (
            "set leaves",
            bare(OpKind::Set(fields(&[
                ("title", Value::str("Hello")),
                ("address.city", Value::str("Oslo")),
            ]))),
        ),
        (
            "set a map",
            bare(OpKind::Set(fields(&[
                ("price", nested.clone()),
                (r"a\.b.c\\", Value::bool(true)),
            ]))),
        ),
        ("set of nothing", bare(OpKind::Set(fields(&[])))),
        (
            "set with preconditions",
            guarded(OpKind::Set(fields(&[("done", Value::bool(true))]))),
        ),
        (
            "merge",
            bare(OpKind::Merge(fields(&[
                ("price", nested.clone()),
                ("tags", array(&[Value::int(1)])),
            ]))),
        ),
        ("unset", bare(OpKind::Unset(vec![field("title"), field("address")]))),
        (
            "create",
            Op {
                exists: Some(false),
                ..bare(OpKind::Create(fields(&[("title", Value::str(""))])))
            },
        ),
        ("replace", bare(OpKind::Replace(fields(&[("price", nested)])))),
        ("delete", guarded(OpKind::Delete)),
        (
            "inc by an integer",
            bare(OpKind::Inc {
                path: field("stars"),
                by: Number::Int(-1),
            }),
        ),
        (
            "inc by a double",
            bare(OpKind::Inc {
                path: field("stars"),
                by: Number::Float(0.5),
            }),
        ),
        (
            "max",
            bare(OpKind::Max {
                path: field("seen"),
                value: ts,
            }),
        ),
        (
            "min",
            bare(OpKind::Min {
                path: field("best"),
                value: Value::float(9.58).unwrap(),
            }),
        ),
        (
            "add",
            bare(OpKind::Add {
                path: field("tags"),
                values: vec![Value::str("a"), array(&[]), Value::empty_map()],
            }),
        ),
        (
            "remove",
            bare(OpKind::Remove {
                path: field("tags"),
                values: vec![Value::str("a")],
            }),
        ),
        ("now", bare(OpKind::Now { path: field("edited") })),
        ("check", guarded(OpKind::Check)),
    ]
}

pub fn head(n: u64) -> WriteHead {
    let first = n == 1;
    WriteHead {
        space: space(),
        client: ClientId(0x8000_0000_0000_0001),
        mid: mid(n),
        key: MutationKey(0x0123_4567_89ab_cdef),
        prev: (!first).then_some(MutationKey(u64::MAX)),
        first: first.then_some(1_700_000_000_000),
    }
}

pub fn all() -> Vec<(String, ClientMessage)> {
    let mut all: Vec<(String, ClientMessage)> = Vec::new();
    let mut add = |name: &str, message| all.push((name.to_owned(), message));
    add("hello with nothing", ClientMessage::Hello(Hello::default()));
    add(
        "hello with all",
        ClientMessage::Hello(Hello {
            token: Some("eyJ.e30.c2ln".to_owned()),
            sdk: Some("tidegate-swift/1.0".to_owned()),
            caps: vec!["z".to_owned()],
            max_message: Some(4 << 20),
        }),
    );
    add(
        "auth",
        ClientMessage::Auth {
            token: "eyJ.e30.c2ln".to_owned(),
        },
    );
    let sub = Sub {
        id: 1,
        space: space(),
        client: None,
        from: None,
        filter: None,
    };
    add("sub to the whole", ClientMessage::Sub(sub.clone()));
    let view = ViewId(0xdead_beef_0000_0001);
    add(
        "sub from a position",
        ClientMessage::Sub(Sub {
            client: Some(ClientId(9)),
            from: Some(ResumeFrom {
                position: at(1_234),
                view,
                cursor: None,
            }),
            ..sub.clone()
        }),
    );
    add(
        "sub with all",
        ClientMessage::Sub(Sub {
            client: Some(ClientId(9)),
            from: Some(ResumeFrom {
                position: at(0),
                view,
                cursor: Some(vec![1, 2, 3].into()),
            }),
            filter: Some(
                ["lists", "notes/n1/parts"]
                    .map(|c| Collection::parse(c).unwrap())
                    .into(),
            ),
            ..sub
        }),
    );
    add("unsub", ClientMessage::Unsub { id: u64::MAX });
    let write = Write {
        head: head(2),
        base: None,
        policy: None,
        ops: vec![],
    };
    add("write of nothing, to settle a mid", ClientMessage::Write(write.clone()));
    add(
        "write at mid 1",
        ClientMessage::Write(Write {
            head: head(1),
            ops: vec![ops().remove(0).1],
            ..write
        }),
    );
    for (policy, name) in Policy::ALL {
        let write = Write {
            base: Some(at(41)),
            policy: Some(policy),
            ops: vec![ops().remove(0).1],
            ..write.clone()
        };
        add(&format!("write with policy {name}"), ClientMessage::Write(write));
    }
    let mut position = write.clone();
    position.head.mid = Mid::new(seq((1 << 53) - 1).get()).unwrap();
    add("write with the last mid there is", ClientMessage::Write(position));
    let two = ops().into_iter().map(|(_, op)| op).skip(3).take(2).collect();
    add(
        "write of two ops",
        ClientMessage::Write(Write {
            ops: two,
            ..write.clone()
        }),
    );
    for (name, op) in ops() {
        add(
            &format!("op: {name}"),
            ClientMessage::Write(Write {
                ops: vec![op],
                ..write.clone()
            }),
        );
    }
    add(
        "get",
        ClientMessage::Get(Get {
            id: 3,
            space: space(),
            docs: vec![doc("notes/n1"), doc("notes/ü")],
        }),
    );
    add("ping", ClientMessage::Ping { at: 12_345 });
    all
}
