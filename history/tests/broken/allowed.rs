//! What is no breach, and what a violation tells.

use crate::spoil::*;
use crate::world::{E, Kind, doc, judge, mid, path, seq};
use tidegate_history::Breach::*;
use tidegate_history::{Docs, Fate, plain};
use tidegate_protocol::*;

#[test]
fn storage_that_was_copied_may_have_its_mutations_applied_for_each_copy() {
    let mut world = rich();
    world.cut(0);
    let tag = world.issue(0, Kind::Count);
    // Before it is sent, the storage is copied to another installation, which sends it as its own.
    let standing = world.peers[0].held.map(|held| (held, ViewId(1)));
    world.events.push(E::Replaced(5, standing));
    world.events.push(E::Issued(5, tag, true));
    let count = 3;
    for shown in [count - 1, count] {
        // Nobody can say whether the other's is its own.
        world
            .events
            .push(E::Shown(5, standing.map(|(position, _)| position), shown, vec![]));
    }
    world.rest();
    world.events.push(E::Settled(5, tag, Fate::Forgotten));
    is(&world.events, &[]);
    assert!(judge(&world.events).counts.loose_views >= 2);
}

#[test]
fn an_ack_may_come_twice() {
    let mut events = unfinished();
    let sent = find(&events, |event| matches!(event, E::Sent(2, ClientMessage::Write(_))));
    let acked = find(&events, |event| matches!(event, E::Received(2, ServerMessage::Ack(_))));
    events.insert(acked + 1, events[acked].clone());
    events.insert(sent + 1, events[sent].clone());
    is(&events, &[]);
    assert_eq!(judge(&events).counts.repeated_acks, 1);
}

#[test]
fn a_violation_comes_with_both_histories() {
    let mut events = story();
    let at = change(&events, 2, 4);
    commit_of(&mut events[at]).unwrap().writer = Writer(1);
    let text = judge(&events).verdict().unwrap_err();
    assert!(text.starts_with("Disagreement in s at event "), "{text}");
    assert!(
        text.contains("true: 4@") && text.contains("pairs/p-a"),
        "the true history: {text}"
    );
    assert!(
        text.contains("connection 2 <- c 3 of"),
        "what the subscriber saw: {text}"
    );
}

/// A subscription by somebody else, from a position or nowhere, caught up in this mode.
fn subscribes(
    from: Option<(Position, ViewId)>,
    (mode, view): (Mode, ViewId),
    pages: Vec<DocChange>,
    end: Position,
) -> Vec<E> {
    let (id, connection) = (80, 80);
    let from = from.map(|(position, view)| ResumeFrom {
        position,
        view,
        cursor: None,
    });
    let sub = Sub {
        id,
        space: crate::world::space(),
        client: None,
        from,
        filter: None,
    };
    let begin = Begin {
        id,
        n: 8,
        mode,
        view,
        epoch: end.epoch,
        resumed: false,
    };
    let cursor = bytes::Bytes::from_static(b"x");
    let page = ServerMessage::Page {
        id,
        docs: pages,
        cursor,
    };
    let current = ServerMessage::Current {
        id,
        position: end,
        last_mid: None,
    };
    vec![
        E::Connected(connection, 8),
        E::Sent(connection, ClientMessage::Sub(sub)),
        E::Received(connection, ServerMessage::Begin(begin)),
        E::Received(connection, page),
        E::Received(connection, current),
    ]
}

#[test]
fn an_erased_space_begins_anew_and_every_position_resets() {
    let world = rich();
    let mut events = world.events.clone();
    let standing = Some((Position::new(Epoch(1 << 48 | 0xe), seq(16)), ViewId(1)));
    events.push(E::Replaced(8, standing));
    let new = Epoch(0x77 << 48);
    events.push(E::Erased(new, seq(16), None, Docs::new()));
    let set = vec![(path("x"), Value::int(1))];
    let docs = vec![DocChange {
        doc: doc("notes/n9"),
        kind: DocChangeKind::Whole(set),
    }];
    let commit = Commit {
        seq: seq(17),
        at: 1_000,
        writer: Writer(4),
        mid: mid(1),
        docs: docs.clone(),
    };
    events.push(E::Commit(new, commit));
    let end = Position::new(new, seq(17));
    for (mode, expected) in [(Mode::Reset, &[][..]), (Mode::Delta, &[NotReset])] {
        let mut events = events.clone();
        events.extend(subscribes(standing, (mode, ViewId(1)), docs.clone(), end));
        let held: Docs = [(doc("notes/n9"), [(path("x"), Value::int(1))].into())].into();
        events.push(E::Rest(end, held.clone()));
        events.push(E::AtRest(8, Some(end), held, 0));
        is(&events, expected);
    }
    // Who has come that far does not go back to before.
    let mut back = events.clone();
    back.extend(subscribes(standing, (Mode::Reset, ViewId(1)), docs.clone(), end));
    let (there, before) = (Some((end, ViewId(1))), world.head());
    let pages = world.docs().iter().map(whole).collect();
    back.extend(subscribes(there, (Mode::Reset, ViewId(1)), pages, before));
    is(&back, &[Backwards]);
    // What was there before is a ghost.
    let mut left = docs;
    left.push(DocChange {
        doc: doc("notes/n1"),
        kind: DocChangeKind::Whole(vec![]),
    });
    events.extend(subscribes(standing, (Mode::Reset, ViewId(1)), left, end));
    is(&events, &[Ghost]);
}

#[test]
fn rules_may_narrow_a_view_and_take_all_of_it_away() {
    let world = rich();
    let (end, view) = (world.head(), ViewId(44));
    let all: Vec<DocChange> = world.docs().iter().map(whole).collect();
    let pairs: Vec<DocChange> = all
        .iter()
        .filter(|change| change.doc.collection() == "pairs")
        .cloned()
        .collect();
    let mut events = world.events;
    events.push(E::Covers(view, vec![Collection::parse("pairs").unwrap()]));
    let seen = |pages: &[DocChange]| {
        let mut events = events.clone();
        events.extend(subscribes(None, (Mode::Reset, view), pages.to_vec(), end));
        events
    };
    is(&seen(&pairs), &[]);
    is(&seen(&all), &[Ghost]);
    is(&seen(&[]), &[WrongState]);
    // Then it is denied, and forgets.
    let mut events = seen(&pairs);
    let denied = ServerMessage::Denied {
        id: 80,
        code: Code::Forbidden,
        purge: true,
    };
    events.push(E::Received(80, denied));
    events.push(E::Held(8, None, Docs::new()));
    is(&events, &[]);
    *events.last_mut().unwrap() = E::Held(8, Some(end), plain(&pairs));
    is(&events, &[Misplaced, WrongState]);
}

fn whole((doc, leaves): (&DocPath, &std::collections::BTreeMap<FieldPath, Value>)) -> DocChange {
    let leaves = leaves
        .iter()
        .map(|(path, value)| (path.clone(), value.clone()))
        .collect();
    DocChange {
        doc: doc.clone(),
        kind: DocChangeKind::Whole(leaves),
    }
}
