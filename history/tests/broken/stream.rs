//! What subscribers are sent.

use crate::spoil::*;
use crate::world::{E, Kind, seq};
use tidegate_history::Breach::*;
use tidegate_protocol::*;

#[test]
fn a_dropped_change_is_a_gap() {
    let mut events = story();
    let at = change(&events, 2, 3);
    events.remove(at);
    is(&events, &[Gap]);
    is_outside(&events, &[Gap]);
    let mut events = story();
    let at = change(&events, 3, 3);
    events.remove(at);
    is(&events, &[Gap]);
}

#[test]
fn a_dropped_change_is_a_gap_also_where_progress_covers_it() {
    let mut events = story();
    let at = change(&events, 3, 3);
    events[at] = E::Received(3, ServerMessage::Progress { n: 7, seq: seq(3) });
    is(&events, &[Gap]);
}

#[test]
fn a_repeated_change_is_a_repeat() {
    let mut events = story();
    let at = change(&events, 2, 3);
    events.insert(at, events[at].clone());
    is(&events, &[Repeat]);
    is_outside(&events, &[Repeat]);
}

#[test]
fn swapped_changes_are_out_of_order() {
    for (connection, first, second) in [(2, 3, 4), (3, 2, 3)] {
        let mut events = story();
        let (a, b) = (change(&events, connection, first), change(&events, connection, second));
        let late = events.remove(a);
        events.insert(b, late);
        is(&events, &[OutOfOrder]);
    }
}

#[test]
fn a_change_with_a_part_of_its_commit_is_torn() {
    let mut events = story();
    let at = change(&events, 1, 4);
    commit_of(&mut events[at]).unwrap().docs.pop();
    is(&events, &[Torn]);
}

#[test]
fn a_change_with_other_content_is_altered() {
    let mut events = story();
    let at = change(&events, 2, 2);
    set_first(commit_of(&mut events[at]).unwrap(), 99);
    is(&events, &[Altered]);
    is_outside(&events, &[Altered]);
    let mut events = story();
    let at = change(&events, 2, 2);
    commit_of(&mut events[at]).unwrap().at += 1;
    is(&events, &[Altered]);
}

#[test]
fn subscribers_with_two_prefixes_disagree() {
    let mut events = story();
    let at = change(&events, 2, 4);
    commit_of(&mut events[at]).unwrap().writer = Writer(1);
    is(&events, &[Disagreement]);
    is_outside(&events, &[Disagreement]);
}

#[test]
fn a_position_that_never_was_is_invented() {
    let mut events = story();
    let at = current(&events, 2);
    for position in [
        Position::new(Epoch(5), seq(2)),
        Position::new(Epoch(1 << 48 | 0xe), seq(2)),
    ] {
        let spoilt = ServerMessage::Current {
            id: 2,
            position,
            last_mid: None,
        };
        events[at] = E::Received(2, spoilt);
        begins_with(&events, Invented);
    }
}

#[test]
fn a_message_out_of_place_is_stray() {
    let page = |connection| {
        let (docs, cursor) = (vec![], bytes::Bytes::from_static(b"x"));
        E::Received(
            connection,
            ServerMessage::Page {
                id: connection,
                docs,
                cursor,
            },
        )
    };
    let mut events = story();
    let at = change(&events, 2, 3);
    events.insert(at, page(2));
    is(&events, &[Stray]);
    // A change between the pages of a catch-up, and `current` without `begin`.
    let mut world = rich();
    world.cut(0);
    world.connect_by(0, false);
    world.deliver(0);
    let connection = world.peers[0].connection.unwrap();
    let change = world.events.iter().rev().find_map(|event| match event {
        E::Received(_, ServerMessage::Change(change)) => Some(change.clone()),
        _ => None,
    });
    world
        .events
        .push(E::Received(connection, ServerMessage::Change(change.unwrap())));
    world.rest();
    is(&world.events, &[Stray]);
    let mut events = story();
    let at = current(&events, 2);
    events.insert(at, events[at].clone());
    is(&events, &[Stray]);
}

#[test]
fn an_epoch_elsewhere_is_wrong() {
    let mut world = rich();
    world.restart_store();
    world.issue(0, Kind::Set(1, 1));
    world.serve(0);
    (0..2).for_each(|peer| world.deliver_all(peer));
    let mut events = world.events;
    is(&events, &[Vanished; 0]);
    let at = events
        .iter()
        .rposition(|event| matches!(event, E::Received(_, ServerMessage::Epoch { .. })));
    let E::Received(_, ServerMessage::Epoch { position, .. }) = &mut events[at.unwrap()] else {
        panic!()
    };
    position.seq = Seq::new(position.seq.get() - 1).unwrap();
    begins_with(&events, WrongEpoch);
}
