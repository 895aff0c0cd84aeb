//! What is no breach, and what a violation tells.

use crate::spoil::*;
use crate::world::{E, Kind, judge};
use tidegate_history::Fate;
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
