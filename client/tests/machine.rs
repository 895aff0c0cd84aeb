//! What the sync machine promises whatever a gateway says, and whenever: inputs between the steps that
//! the shared scenarios take as one.

#![allow(clippy::unwrap_used, missing_docs)] // a test may panic

use serde_json::{Value as Json, json};
use tidegate_client::ConnectionState;
use tidegate_client::protocol::{Code, DocPath, FieldPath, Fields, Form, Limits, Op, OpKind, SpaceId, Value};
use tidegate_client::storage::Stored;
use tidegate_client::sync::{Command, Config, ConnectFailure, Entropy, Event, Machine, Now, Request, SpaceEvent};

/// Ids and keys are 1, 2, 3 …; jitter is half of what it may be.
struct Counted(u64);

impl Entropy for Counted {
    fn next_u64(&mut self) -> u64 {
        self.0 += 1;
        self.0
    }
    fn up_to(&mut self, bound: u64) -> u64 {
        bound / 2
    }
}

fn at(ms: u64) -> Now {
    Now {
        mono_ms: ms,
        wall_ms: 1_700_000_000_000 + ms,
    }
}

fn space() -> SpaceId {
    SpaceId::parse("s").unwrap()
}

fn machine() -> Machine {
    let config = Config {
        token: Some("old".into()),
        ..Config::default()
    };
    Machine::new(config, Stored::default(), Box::new(Counted(0)), at(0))
}

/// Up to the open socket; `hello` is sent.
fn greet(machine: &mut Machine, now: Now) {
    machine.wake_up(now);
    assert_eq!(machine.poll_command(), Some(Command::Connect));
    machine.connected(now);
    assert_eq!(sends(machine, now)[0]["t"], "hello");
}

fn welcome() -> Json {
    json!({
        "t": "welcome", "session": "x", "node": "n", "user": "ann", "now": 1_700_000_000_000_u64, "caps": [],
        "ping_ms": 45000,
        "limits": {"message_bytes": 1_048_576, "doc_bytes": 786_432, "page_bytes": 262_144, "field_bytes": 512,
            "depth": 20, "ops": 500, "subscriptions": 1000, "elements": 65_536},
    })
}

fn online() -> Machine {
    let mut machine = machine();
    greet(&mut machine, at(0));
    receive(&mut machine, at(0), &welcome());
    machine
}

fn receive(machine: &mut Machine, now: Now, message: &Json) {
    let Json::Object(entries) = message else { unreachable!() };
    // `t` comes first.
    let others = entries.iter().filter(|(key, _)| *key != "t");
    let others: Vec<_> = others.map(|(key, value)| format!("{}:{value}", json!(key))).collect();
    let text = format!("{{\"t\":{},{}}}", entries["t"], others.join(","));
    machine.received(now, Form::Json.decode_server(text.as_bytes()).unwrap());
}

fn sends(machine: &mut Machine, now: Now) -> Vec<Json> {
    std::iter::from_fn(|| machine.poll_transmit(now))
        .map(|message| serde_json::from_slice(&Form::Json.encode_client(&message)).unwrap())
        .collect()
}

fn set(machine: &mut Machine, doc: &str) {
    let fields = [(FieldPath::parse("x").unwrap(), Value::int(1))];
    let op = Op {
        doc: DocPath::parse(doc).unwrap(),
        kind: OpKind::Set(Fields::new(fields, &Limits::default()).unwrap()),
        exists: None,
        unchanged_since: None,
    };
    let request = Request {
        ops: vec![op],
        ..Request::default()
    };
    machine.mutate(at(0), &space(), request).unwrap();
}

fn acked(machine: &mut Machine) -> usize {
    std::iter::from_fn(|| machine.poll_event())
        .filter(|event| matches!(event, Event::Space(_, SpaceEvent::Settled { outcome: Ok(_), .. })))
        .count()
}

fn is_offline(machine: &mut Machine) -> bool {
    let states = std::iter::from_fn(|| machine.poll_event()).filter_map(|event| match event {
        Event::State(state) => Some(state),
        _ => None,
    });
    matches!(states.last(), Some(ConnectionState::Offline { .. }))
}

#[test]
fn a_subscription_asked_for_while_a_new_id_is_taken_is_not_forgotten() {
    let mut machine = online();
    set(&mut machine, "notes/a");
    assert_eq!(sends(&mut machine, at(0)).len(), 1);
    machine.subscribe(&space(), None);
    let reject = json!({"t": "reject", "space": "s", "mid": 1, "code": "client_cloned", "message": "no"});
    receive(&mut machine, at(0), &reject);
    let sent: Vec<_> = sends(&mut machine, at(0)).iter().map(|m| m["t"].clone()).collect();
    assert_eq!(sent, ["sub", "write"]);
}

#[test]
fn after_acks_in_the_wrong_order_no_mutation_is_left_behind() {
    let mut machine = online();
    machine.subscribe(&space(), None);
    for doc in ["notes/a", "notes/b"] {
        set(&mut machine, doc);
    }
    assert_eq!(sends(&mut machine, at(0)).len(), 3);
    receive(
        &mut machine,
        at(0),
        &json!({"t": "ack", "space": "s", "mid": 2, "epoch": 7, "seq": 2}),
    );
    set(&mut machine, "notes/c");
    let reject = json!({"t": "reject", "space": "s", "mid": 1, "code": "client_cloned", "message": "no"});
    receive(&mut machine, at(0), &reject);
    assert_eq!(machine.queued(), 2);
    let sent = sends(&mut machine, at(0));
    let writes: Vec<_> = sent.iter().filter(|m| m["t"] == "write").collect();
    assert_eq!(writes.len(), 2, "{sent:?}");
    for (mid, write) in (1..).zip(writes) {
        assert_eq!(write["mid"], mid);
        receive(
            &mut machine,
            at(0),
            &json!({"t": "ack", "space": "s", "mid": mid, "epoch": 7, "seq": 9 + mid}),
        );
    }
    assert_eq!((acked(&mut machine), machine.queued()), (3, 0));
}

#[test]
fn waits_longer_than_a_clock_can_count_are_only_long() {
    let mut machine = online();
    set(&mut machine, "notes/a");
    assert_eq!(sends(&mut machine, at(5)).len(), 1);
    let reject =
        json!({"t": "reject", "space": "s", "mid": 1, "code": "unavailable", "message": "no", "retry_ms": u64::MAX});
    receive(&mut machine, at(5), &reject);
    receive(
        &mut machine,
        at(5),
        &json!({"t": "goaway", "retry_ms": u64::MAX, "jitter_ms": u64::MAX}),
    );
    machine.handle_timeout(at(6));
    assert_eq!(sends(&mut machine, at(6)), Vec::<Json>::new());
    assert!(machine.poll_command().is_none());

    let mut machine = self::machine();
    greet(&mut machine, at(5));
    let mut lazy = welcome();
    lazy["ping_ms"] = json!(u64::MAX);
    receive(&mut machine, at(5), &lazy);
    machine.handle_timeout(at(1_000_000));
    assert_eq!(sends(&mut machine, at(1_000_000)), Vec::<Json>::new());
}

#[test]
fn a_gateway_that_expects_what_it_refuses_is_asked_again_later_and_not_at_once() {
    for expected in [1, 2, 3] {
        let mut machine = online();
        set(&mut machine, "notes/a");
        assert_eq!(sends(&mut machine, at(0)).len(), 1);
        let reject = json!({"t": "reject", "space": "s", "mid": 1, "code": "out_of_order", "message": "no", "expected": expected});
        receive(&mut machine, at(0), &reject);
        assert_eq!(sends(&mut machine, at(0)), Vec::<Json>::new(), "expected {expected}");
        machine.handle_timeout(at(2_000));
        let again = sends(&mut machine, at(2_000));
        assert_eq!(
            (again.len(), &again[0]["mid"], &again[0]["client"]),
            (1, &json!(1), &json!(1))
        );
    }
}

#[test]
fn a_client_that_was_closed_or_has_stopped_stays_so_whatever_its_socket_reports() {
    for close in [true, false] {
        let mut machine = online();
        if close {
            machine.close(at(0));
        } else {
            machine.halt(at(0), Code::Internal, "the disk is full".into());
        }
        machine.disconnected(at(0), None, "lost".into());
        let failure = ConnectFailure {
            code: None,
            message: "lost".into(),
            retry_ms: 0,
        };
        machine.connect_failed(at(0), failure);
        assert!(machine.stopped().is_some(), "close: {close}");
        assert_eq!(machine.is_closed(), close);
        assert_eq!(machine.deadline(), None);
        assert!(!is_offline(&mut machine));
    }
}

#[test]
fn a_token_that_comes_between_hello_and_welcome_is_not_lost() {
    let mut machine = machine();
    greet(&mut machine, at(0));
    machine.set_token(at(0), Some("new".into()));
    receive(&mut machine, at(0), &welcome());
    assert_eq!(sends(&mut machine, at(0)), [json!({"t": "auth", "token": "new"})]);

    let mut machine = self::machine();
    greet(&mut machine, at(0));
    machine.set_token(at(0), Some("new".into()));
    receive(
        &mut machine,
        at(0),
        &json!({"t": "error", "code": "token_expired", "message": "old"}),
    );
    machine.disconnected(at(0), Some(4005), String::new());
    assert!(machine.stopped().is_none(), "the new token was not tried");
}

#[test]
fn a_read_of_more_documents_than_a_gateway_answers_is_refused_before_it_is_sent() {
    let mut machine = online();
    let docs = |n: usize| (0..n).map(|n| DocPath::parse(&format!("notes/{n}")).unwrap()).collect();
    let refusal = machine.get(&space(), docs(1001)).unwrap_err();
    assert_eq!(refusal.code, Code::TooMany);
    assert!(machine.get(&space(), docs(1000)).is_ok());
}
