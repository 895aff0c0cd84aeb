use super::{at, doc, field, kinds, map, mid, seq, space};
use tidegate_protocol::*;

kinds!(kind, KINDS, ServerMessage,
    ServerMessage::Welcome(_) => "welcome",
    ServerMessage::Begin(_) => "begin",
    ServerMessage::Page { .. } => "page",
    ServerMessage::Current { .. } => "current",
    ServerMessage::Change(_) => "c",
    ServerMessage::Epoch { .. } => "epoch",
    ServerMessage::Progress { .. } => "progress",
    ServerMessage::Ack(_) => "ack",
    ServerMessage::Reject(_) => "reject",
    ServerMessage::Docs { .. } => "docs",
    ServerMessage::Denied { .. } => "denied",
    ServerMessage::Goaway { .. } => "goaway",
    ServerMessage::Pong { .. } => "pong",
    ServerMessage::Error { .. } => "error",
);

kinds!(change_kind, CHANGE_KINDS, DocChangeKind,
    DocChangeKind::Change { .. } => "change",
    DocChangeKind::Whole(_) => "whole",
    DocChangeKind::Deleted => "deleted",
);

pub fn docs() -> Vec<DocChange> {
    let leaves = || {
        vec![
            (field("address.city"), Value::str("Oslo")),
            (field("title"), Value::str("Hello")),
        ]
    };
    vec![
        DocChange {
            doc: doc("notes/n1"),
            kind: DocChangeKind::Change {
                set: leaves(),
                unset: vec![field("address.zip"), field("old")],
            },
        },
        DocChange {
            doc: doc("notes/n2"),
            kind: DocChangeKind::Change {
                set: vec![],
                unset: vec![],
            },
        },
        DocChange {
            doc: doc("notes/n3"),
            kind: DocChangeKind::Whole(leaves()),
        },
        DocChange {
            doc: doc("notes/n4"),
            kind: DocChangeKind::Whole(vec![]),
        },
        DocChange {
            doc: doc("notes/n5"),
            kind: DocChangeKind::Deleted,
        },
    ]
}

pub fn units() -> Vec<ConflictUnit> {
    let cell = |path, value| CellState {
        path: field(path),
        seq: seq(40),
        writer: Writer(u64::MAX),
        value,
    };
    vec![
        ConflictUnit {
            op: 0,
            doc: doc("notes/n1"),
            path: Some(field("price")),
            cells: vec![
                cell("price.amount", Some(Value::int(6))),
                cell("price.currency", None),
                cell("price.x", Some(Value::nil())),
            ],
        },
        ConflictUnit {
            op: 499,
            doc: doc("notes/n2"),
            path: None,
            cells: vec![],
        },
    ]
}

pub fn all() -> Vec<(String, ServerMessage)> {
    let mut all: Vec<(String, ServerMessage)> = Vec::new();
    let mut add = |name: &str, message| all.push((name.to_owned(), message));
    let welcome = Welcome {
        session: "5f3a".to_owned(),
        node: "node-0".to_owned(),
        user: "alice".to_owned(),
        now: 1_700_000_000_000,
        limits: Limits::default(),
        caps: vec![],
        ping_ms: 45_000,
        token_expires: None,
    };
    add("welcome", ServerMessage::Welcome(welcome.clone()));
    let token_expires = Some(1_700_000_360_000);
    add(
        "welcome with all",
        ServerMessage::Welcome(Welcome {
            caps: vec!["z".to_owned()],
            token_expires,
            ..welcome
        }),
    );
    for (mode, name) in Mode::ALL {
        let resumed = mode == Mode::Delta;
        let begin = Begin {
            id: 1,
            n: 7,
            mode,
            view: ViewId(0xdead_beef_0000_0001),
            epoch: at(0).epoch,
            resumed,
        };
        add(&format!("begin {name}"), ServerMessage::Begin(begin));
    }
    add(
        "page",
        ServerMessage::Page {
            id: 1,
            docs: docs(),
            cursor: vec![1, 2, 3].into(),
        },
    );
    add(
        "current",
        ServerMessage::Current {
            id: 1,
            position: at(1_300),
            last_mid: Some(mid(17)),
        },
    );
    add(
        "current without a record",
        ServerMessage::Current {
            id: 1,
            position: Position::START,
            last_mid: None,
        },
    );
    let commit = Commit {
        seq: seq(1_301),
        at: 1_700_000_000_123,
        writer: Writer(0x00ff),
        mid: mid(18),
        docs: docs(),
    };
    add(
        "change",
        ServerMessage::Change(Change {
            n: 7,
            commit: commit.clone(),
        }),
    );
    let empty = Commit {
        seq: seq((1 << 53) - 1),
        docs: vec![],
        ..commit
    };
    add(
        "change of nothing in view",
        ServerMessage::Change(Change {
            n: u32::MAX,
            commit: empty,
        }),
    );
    add(
        "epoch",
        ServerMessage::Epoch {
            n: 7,
            position: at(1_302),
        },
    );
    add("progress", ServerMessage::Progress { n: 7, seq: seq(1_305) });
    let ack = Ack {
        space: space(),
        mid: mid(18),
        position: at(1_301),
        conflicts: vec![],
        skipped: vec![],
    };
    add("ack", ServerMessage::Ack(ack.clone()));
    add(
        "ack with conflicts",
        ServerMessage::Ack(Ack {
            conflicts: units(),
            ..ack.clone()
        }),
    );
    add(
        "ack with what was left out",
        ServerMessage::Ack(Ack {
            skipped: units(),
            ..ack
        }),
    );
    let reject = Reject {
        space: space(),
        mid: mid(19),
        code: Code::Conflict,
        message: "notes/n1 price was written by another client".to_owned(),
        at: Some(At {
            op: 0,
            path: Some(field("price")),
        }),
        retry_ms: None,
        expected: None,
        cells: units(),
    };
    add("reject for a conflict", ServerMessage::Reject(reject.clone()));
    let (message, at_op) = ("op 3: unknown op \"sett\"".to_owned(), Some(At { op: 3, path: None }));
    let bare = Reject {
        code: Code::Unsupported,
        message,
        at: at_op,
        cells: vec![],
        ..reject
    };
    add("reject of an op", ServerMessage::Reject(bare.clone()));
    let none = Reject { at: None, ..bare };
    let (code, message) = (Code::OutOfOrder, "send mid 12 first".to_owned());
    add(
        "reject out of order",
        ServerMessage::Reject(Reject {
            code,
            message,
            expected: Some(mid(12)),
            ..none.clone()
        }),
    );
    let (code, message) = (Code::Unavailable, "the store does not answer".to_owned());
    add(
        "reject for now",
        ServerMessage::Reject(Reject {
            code,
            message,
            retry_ms: Some(1_500),
            ..none
        }),
    );
    add(
        "docs",
        ServerMessage::Docs {
            id: 3,
            position: at(1_301),
            docs: vec![
                DocChange {
                    doc: doc("notes/n1"),
                    kind: DocChangeKind::Whole(vec![(field("m"), map([]))]),
                },
                DocChange {
                    doc: doc("notes/ü"),
                    kind: DocChangeKind::Deleted,
                },
            ],
        },
    );
    add(
        "denied",
        ServerMessage::Denied {
            id: 1,
            code: Code::Forbidden,
            purge: true,
        },
    );
    add(
        "goaway",
        ServerMessage::Goaway {
            retry_ms: 500,
            jitter_ms: 10_000,
        },
    );
    add(
        "pong",
        ServerMessage::Pong {
            at: 12_345,
            now: 1_700_000_000_000,
        },
    );
    add(
        "error",
        ServerMessage::Error {
            code: Code::Protocol,
            message: "a second hello".to_owned(),
            re: None,
        },
    );
    let message = "space must be 1 to 128 bytes, is 0".to_owned();
    add(
        "error about a sub",
        ServerMessage::Error {
            code: Code::Invalid,
            message,
            re: Some(1),
        },
    );
    all
}
