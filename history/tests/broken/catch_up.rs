//! Catch-up and other reads.

use crate::spoil::*;
use crate::world::{E, Kind, World, doc, mid, path, seq};
use tidegate_history::Breach::*;
use tidegate_protocol::*;

/// The second catches up, by delta or reset, and a page of it is spoilt.
fn spoilt_catch_up(reset: bool, spoil: impl Fn(&mut Vec<DocChange>)) -> Vec<E> {
    let mut world = rich();
    if reset {
        world.peers[1].held = None;
        world.events.push(E::Restarted(1, None));
    }
    world.connect_by(1, false);
    world.deliver_all(1);
    let mut events = world.events;
    for event in &mut events {
        if let E::Received(_, ServerMessage::Page { docs, .. }) = event {
            spoil(docs);
        }
    }
    events
}

#[test]
fn a_catch_up_that_leaves_something_out_is_a_wrong_state() {
    for reset in [false, true] {
        let spoil = |docs: &mut Vec<DocChange>| docs.retain(|change| change.doc.as_str() != "notes/n3");
        is(&spoilt_catch_up(reset, |_| {}), &[Vanished; 0]);
        is(&spoilt_catch_up(reset, spoil), &[WrongState]);
    }
}

#[test]
fn what_a_catch_up_does_not_take_away_is_a_ghost() {
    // A document that is deleted, and a field.
    let spoil = |docs: &mut Vec<DocChange>| docs.retain(|change| change.doc.as_str() != "notes/n2");
    is(&spoilt_catch_up(false, spoil), &[Ghost]);
    let spoil = |docs: &mut Vec<DocChange>| {
        for change in docs {
            if let DocChangeKind::Change { unset, .. } = &mut change.kind {
                unset.clear();
            }
        }
    };
    is(&spoilt_catch_up(false, spoil), &[Ghost]);
    let spoil = |docs: &mut Vec<DocChange>| {
        if docs.iter().any(|change| change.doc.as_str() == "notes/n3") {
            let kind = DocChangeKind::Whole(vec![]);
            docs.push(DocChange {
                doc: doc("notes/n2"),
                kind,
            });
        }
    };
    is(&spoilt_catch_up(true, spoil), &[Ghost]);
}

#[test]
fn a_position_of_a_lost_history_that_is_taken_up_is_not_reset() {
    for mode in [Mode::Log, Mode::Delta] {
        let mut world = rich();
        world.fall_back(13);
        world.issue(1, Kind::Set(1, 1));
        world.connect(1);
        world.serve(1);
        world.deliver_all(1);
        world.connect(0);
        let end = world.events.len();
        world.deliver_all(0);
        let mut events = world.events;
        let E::Received(_, ServerMessage::Begin(begin)) = &mut events[end] else {
            panic!("{:?}", events[end])
        };
        assert_eq!(begin.mode, Mode::Reset);
        begin.mode = mode;
        if mode == Mode::Log {
            let tail = events.split_off(end);
            let pages = |event: &E| matches!(event, E::Received(_, ServerMessage::Page { .. }));
            events.extend(tail.into_iter().filter(|event| !pages(event)));
        }
        begins_with(&events, NotReset);
    }
}

#[test]
fn a_position_of_another_view_that_is_taken_up_is_not_reset() {
    let mut world = rich();
    world.connect(1);
    world.deliver_all(1);
    let mut events = world.events;
    let at = events
        .iter()
        .rposition(|event| matches!(event, E::Received(_, ServerMessage::Begin(_))))
        .unwrap();
    let E::Received(_, ServerMessage::Begin(begin)) = &mut events[at] else {
        panic!()
    };
    assert_ne!(begin.mode, Mode::Reset);
    begin.view = ViewId(99);
    begins_with(&events, NotReset);
}

#[test]
fn a_last_mid_that_says_too_little_or_too_much_lies() {
    for (reset, told) in [(false, None), (true, Some(mid(1))), (true, Some(mid(3)))] {
        // The second has two mutations in the state, and has sent a third that is applied later.
        let mut world = rich();
        world.connect(1);
        world.issue(1, Kind::Set(1, 1));
        world.issue(1, Kind::Set(1, 2));
        world.serve(1);
        world.serve(1);
        world.deliver_all(1);
        world.issue(1, Kind::Set(1, 3));
        world.cut(1);
        if reset {
            world.peers[1].held = None;
            world.events.push(E::Restarted(1, None));
        }
        world.connect_by(1, false);
        world.deliver_all(1);
        world.serve(1);
        world.deliver_all(1);
        let mut events = world.events;
        let at = events
            .iter()
            .rposition(|event| matches!(event, E::Received(_, ServerMessage::Current { .. })));
        let E::Received(_, ServerMessage::Current { last_mid, .. }) = &mut events[at.unwrap()] else {
            panic!()
        };
        assert_eq!(*last_mid, Some(mid(2)));
        *last_mid = told;
        begins_with(&events, LastMidLied);
        // A record does not grow old that was written to since.
        events.insert(0, E::Aged);
        begins_with(&events, LastMidLied);
    }
    // One that was never sent.
    let mut events = story();
    let at = events
        .iter()
        .rposition(|event| matches!(event, E::Received(_, ServerMessage::Current { .. })));
    let E::Received(_, ServerMessage::Current { last_mid, .. }) = &mut events[at.unwrap()] else {
        panic!()
    };
    *last_mid = Some(mid(50));
    begins_with(&events, LastMidLied);
}

#[test]
fn a_read_older_than_what_was_acked_before_it_was_asked_for_is_stale() {
    let mut world = rich();
    world.connections += 1;
    let connection = world.connections;
    let (old, head) = (Position::new(world.head().epoch, seq(14)), world.head());
    let before = world.events;
    for (position, expected) in [(old, &[StaleRead][..]), (head, &[])] {
        let mut events = before.clone();
        events.push(E::Connected(connection, 9));
        let get = Get {
            id: 1,
            space: crate::world::space(),
            docs: vec![doc("notes/n2")],
        };
        events.push(E::Sent(connection, ClientMessage::Get(get)));
        let docs = vec![DocChange {
            doc: doc("notes/n2"),
            kind: DocChangeKind::Deleted,
        }];
        events.push(E::Received(connection, ServerMessage::Docs { id: 1, position, docs }));
        is(&events, expected);
        // What it says is compared, too.
        let E::Received(_, ServerMessage::Docs { docs, .. }) = events.last_mut().unwrap() else {
            panic!()
        };
        docs[0].kind = DocChangeKind::Whole(vec![]);
        let mut expected = expected.to_vec();
        expected.push(WrongState);
        is(&events, &expected);
    }
}

#[test]
fn a_replica_that_goes_back_is_backwards() {
    let mut events = story();
    let at = change(&events, 3, 5);
    events.insert(at, E::Received(3, ServerMessage::Progress { n: 7, seq: seq(2) }));
    is(&events, &[Backwards]);
    // Also by a reset, where nothing was lost.
    let mut world = rich();
    world.connect(1);
    world.deliver_all(1);
    let held = world.peers[1].held.unwrap();
    world.peers[1].held = None;
    world.cut(1);
    let epoch = world.head().epoch;
    let mut events = world.events;
    let from = ResumeFrom {
        position: held,
        view: ViewId(1),
        cursor: None,
    };
    let sub = Sub {
        id: 70,
        space: crate::world::space(),
        client: None,
        from: Some(from),
        filter: None,
    };
    let (id, view) = (70, ViewId(1));
    let begin = Begin {
        id,
        n: 7,
        mode: Mode::Reset,
        view,
        epoch,
        resumed: false,
    };
    let position = Position::new(epoch, seq(1));
    let set = vec![(path("x"), Value::int(1))];
    let docs = vec![DocChange {
        doc: doc("notes/n0"),
        kind: DocChangeKind::Whole(set),
    }];
    let cursor = bytes::Bytes::from_static(b"x");
    events.extend([
        E::Connected(70, 1),
        E::Sent(70, ClientMessage::Sub(sub)),
        E::Received(70, ServerMessage::Begin(begin)),
        E::Received(70, ServerMessage::Page { id, docs, cursor }),
        E::Received(
            70,
            ServerMessage::Current {
                id,
                position,
                last_mid: None,
            },
        ),
    ]);
    is(&events, &[Backwards, StaleRead]);
}

#[test]
fn an_ack_before_its_change_is_named() {
    let mut events = story();
    let at = change(&events, 1, 3);
    let ack = events[at..]
        .iter()
        .position(|event| matches!(event, E::Received(1, ServerMessage::Ack(_))));
    events.swap(at, at + ack.unwrap());
    is(&events, &[AckBeforeChange]);
}

#[test]
fn an_ack_before_its_change_is_named_at_rest_too() {
    let mut world = World::new(&[None, Some(&["notes"])]);
    world.issue(1, Kind::Count);
    world.serve(1);
    world.deliver_all(1);
    let (head, docs) = (world.head(), world.docs().clone());
    let mut events = world.events;
    events.push(E::Rest(head, docs));
    is(&events, &[]);
    let progress = |event: &E| matches!(event, E::Received(2, ServerMessage::Progress { .. }));
    events.retain(|event| !progress(event));
    is(&events, &[AckBeforeChange]);
}
