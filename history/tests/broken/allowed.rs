//! What is no breach, and what a violation tells.

use crate::spoil::*;
use crate::world::{E, Kind, doc, judge, judge_outside, mid, path, reject, seq};
use tidegate_history::Breach::*;
use tidegate_history::{Docs, Fate, Tag, plain, workload};
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
    caught_up: (Mode, ViewId),
    pages: Vec<DocChange>,
    end: Position,
) -> Vec<E> {
    subscribes_as((80, 8), None, from, caught_up, pages, end)
}

/// As `subscribes`, on a connection of an installation, for a client that has this `last_mid`.
fn subscribes_as(
    (connection, installation): (u64, u32),
    client: Option<(ClientId, Option<Mid>)>,
    from: Option<(Position, ViewId)>,
    (mode, view): (Mode, ViewId),
    pages: Vec<DocChange>,
    end: Position,
) -> Vec<E> {
    let id = 80;
    let from = from.map(|(position, view)| ResumeFrom {
        position,
        view,
        cursor: None,
    });
    let sub = Sub {
        id,
        space: crate::world::space(),
        client: client.map(|(client, _)| client),
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
        last_mid: client.and_then(|(_, last_mid)| last_mid),
    };
    let mut events = vec![
        E::Connected(connection, installation),
        E::Sent(connection, ClientMessage::Sub(sub)),
        E::Received(connection, ServerMessage::Begin(begin)),
    ];
    if mode != Mode::Log {
        events.push(E::Received(connection, page));
    }
    events.push(E::Received(connection, current));
    events
}

/// A client's first mutation, which counts.
fn first_write(client: ClientId, tag: u64) -> ClientMessage {
    let head = WriteHead {
        space: crate::world::space(),
        client,
        mid: mid(1),
        key: MutationKey(1),
        prev: None,
        first: Some(1),
    };
    ClientMessage::Write(Write {
        head,
        base: None,
        policy: None,
        ops: workload::counting(Tag(tag)).unwrap(),
    })
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
fn an_end_of_what_a_last_mid_covers_that_was_not_stored_is_none() {
    let world = rich();
    let (tag, client) = (1_000, ClientId(0x88));
    let (before, confirmed) = (world.head(), 2);
    let pages: Vec<_> = world.docs().iter().map(whole).collect();
    let mut events = world.events;
    // It is sent and refused, and no answer comes but by the next `current`.
    events.push(E::Issued(8, tag, true));
    events.push(E::Connected(79, 8));
    events.push(E::Sent(79, first_write(client, tag)));
    events.push(E::Disconnected(79));
    let reset = (Mode::Reset, ViewId(1));
    let told = Some((client, Some(mid(1))));
    events.extend(subscribes_as((80, 8), told, None, reset, pages, before));
    events.push(E::Shown(8, Some(before), confirmed, vec![]));
    events.push(E::Disconnected(80));
    // The space is erased, and with it the refusal.
    let new = Epoch(0x77 << 48);
    let after = Position::new(new, before.seq);
    events.push(E::Erased(new, before.seq, None, Docs::new()));
    let standing = Some((before, ViewId(1)));
    let told = Some((client, None));
    events.extend(subscribes_as((81, 8), told, standing, reset, vec![], after));
    events.push(E::Shown(8, Some(after), 1, vec![]));
    events.push(E::Disconnected(81));
    for (restored, shown, expected) in [
        // What was told first is stored: it may still be hidden.
        (before, confirmed, &[][..]),
        (before, confirmed + 1, &[]),
        (before, confirmed - 1, &[NotCounted]),
        // What was told last is.
        (after, 1, &[]),
        (after, 0, &[NotCounted]),
    ] {
        let mut events = events.clone();
        events.push(E::Restarted(8, Some((restored, ViewId(1)))));
        events.push(E::Shown(8, Some(restored), shown, vec![]));
        events.push(E::Settled(8, tag, Fate::Forgotten));
        is(&events, expected);
    }
}

#[test]
fn a_client_id_that_was_given_up_and_that_was_not_stored_is_borne_still() {
    let world = rich();
    let (tag, client, head) = (1_000, ClientId(0x88), world.head());
    let (confirmed, standing) = (2, Some((world.head(), ViewId(1))));
    let pages: Vec<_> = world.docs().iter().map(whole).collect();
    let mut events = world.events;
    // What another copy of the storage has written under its id hides it, until it is told.
    events.push(E::Issued(8, tag, true));
    let told = Some((client, Some(mid(1))));
    let mut caught_up = subscribes_as((80, 8), told, None, (Mode::Reset, ViewId(1)), pages, head);
    caught_up.insert(1, E::Sent(80, first_write(client, tag)));
    events.extend(caught_up);
    events.push(E::Shown(8, Some(head), confirmed, vec![]));
    events.push(E::Received(
        80,
        reject(crate::world::space(), mid(1), Code::ClientCloned, None),
    ));
    events.push(E::Shown(8, Some(head), confirmed + 1, vec![]));
    events.push(E::Disconnected(80));
    for (restarts, shown, expected) in [
        (false, confirmed, &[NotCounted][..]),
        (true, confirmed, &[]),
        (true, confirmed + 1, &[]),
        (true, confirmed - 1, &[NotCounted]),
    ] {
        let mut events = events.clone();
        if restarts {
            events.push(E::Restarted(8, standing));
        }
        events.push(E::Shown(8, Some(head), shown, vec![]));
        events.push(E::Settled(8, tag, Fate::Forgotten));
        is(&events, expected);
    }
}

#[test]
fn what_was_covered_under_an_id_that_was_given_up_may_be_shown_over_a_state_that_lacks_it() {
    let world = rich();
    let (tag, client, head) = (1_000, ClientId(0x88), world.head());
    let confirmed = 2;
    let pages: Vec<_> = world.docs().iter().map(whole).collect();
    let mut events = world.events;
    events.push(E::Issued(8, tag, true));
    let (reset, told) = ((Mode::Reset, ViewId(1)), Some((client, Some(mid(1)))));
    let mut caught_up = subscribes_as((80, 8), told, None, reset, pages.clone(), head);
    caught_up.insert(1, E::Sent(80, first_write(client, tag)));
    events.extend(caught_up);
    events.push(E::Shown(8, Some(head), confirmed, vec![]));
    // A gap: it goes on under another id, and asks from nowhere.
    events.push(E::Received(
        80,
        reject(crate::world::space(), mid(1), Code::OutOfOrder, Some(mid(9))),
    ));
    events.push(E::Disconnected(80));
    let other = Some((ClientId(0x99), None));
    let standing = Some((head, ViewId(1)));
    for (mode, shown, expected) in [
        (Mode::Reset, confirmed, &[][..]),
        (Mode::Reset, confirmed + 1, &[]),
        (Mode::Reset, confirmed + 2, &[CountedTwice]),
        (Mode::Log, confirmed + 1, &[CountedTwice]),
    ] {
        let mut events = events.clone();
        events.extend(subscribes_as(
            (81, 8),
            other,
            standing,
            (mode, ViewId(1)),
            pages.clone(),
            head,
        ));
        events.push(E::Shown(8, Some(head), shown, vec![]));
        events.push(E::Settled(8, tag, Fate::Forgotten));
        is(&events, expected);
    }
}

#[test]
fn where_nobody_was_told_from_where_an_epoch_goes_on_states_tell() {
    let (old, new) = (Epoch(0xa << 48), Epoch(0xb << 48));
    let at = |epoch, n| Position::new(epoch, seq(n));
    let state = |x| {
        vec![DocChange {
            doc: doc("notes/n1"),
            kind: DocChangeKind::Whole(vec![(path("x"), Value::int(x))]),
        }]
    };
    let (reset, log) = ((Mode::Reset, ViewId(1)), (Mode::Log, ViewId(1)));
    for (x, from, expected) in [
        (1, at(old, 5), &[][..]),
        (2, at(old, 5), &[NotReset]),
        // Of another length it cannot be compared.
        (2, at(old, 4), &[]),
    ] {
        let mut events = subscribes_as((80, 8), None, None, reset, state(1), from);
        let standing = Some((from, ViewId(1)));
        events.extend(subscribes_as((81, 8), None, standing, log, vec![], at(new, 5)));
        events.extend(subscribes_as((82, 9), None, None, reset, state(x), at(new, 5)));
        is_outside(&events, expected);
        assert!(judge_outside(&events).counts.unverified >= u64::from(expected.is_empty()));
    }
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
