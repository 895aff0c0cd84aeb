//! What becomes of mutations.

use crate::spoil::*;
use crate::world::{E, Kind, World, judge, mid, seq};
use tidegate_history::Breach::*;
use tidegate_history::{Checker, Fate};
use tidegate_protocol::*;

#[test]
fn an_ack_of_what_is_not_there_is_named() {
    let mut events = unfinished();
    let last = events.iter().rposition(|event| matches!(event, E::Commit(..))).unwrap();
    events.remove(last);
    events
        .retain(|event| !matches!(event, E::Received(_, ServerMessage::Change(change)) if change.commit.seq == seq(9)));
    events.retain(|event| !matches!(event, E::Received(_, ServerMessage::Progress { seq, .. }) if seq.get() == 9));
    is(&events, &[AckedMissing]);
    // And of what another's is.
    let mut events = unfinished();
    everywhere(&mut events, 9, |commit| commit.writer = Writer(3));
    is(&events, &[AckedMissing]);
    is_outside(&events, &[AckedMissing]);
}

fn fallen_back() -> World {
    let mut world = rich();
    world.fall_back(13);
    world.issue(1, Kind::Set(1, 1));
    world.connect(1);
    world.serve(1);
    world.rest();
    world
}

#[test]
fn what_is_lost_is_reported_or_named() {
    let events = fallen_back().events;
    is(&events, &[]);
    let mut checker = Checker::durable();
    events
        .iter()
        .for_each(|event| crate::world::observe(&mut checker, event));
    let breaches = checker.finish().breaches();
    assert!(
        !breaches.is_empty() && breaches.iter().all(|breach| *breach == AckedLost),
        "{breaches:?}"
    );
    let mut events = events;
    let lost = find(&events, |event| matches!(event, E::Lost(..)));
    events.remove(lost);
    begins_with(&events, LossUnreported);
    // Reported, and still there.
    let mut events = story();
    let client = ClientId(0);
    events.push(E::Lost(0, client, mid(1), mid(2)));
    is(&events, &[LostFalsely]);
}

#[test]
fn a_loss_that_nobody_could_know_of_any_more_is_counted_only() {
    let mut events = fallen_back().events;
    let fell = find(&events, |event| matches!(event, E::FellBack(_)));
    let lost = find(&events, |event| matches!(event, E::Lost(..)));
    events.remove(lost);
    let told = events[..lost].iter_mut().rev().find_map(|event| match event {
        E::Received(_, ServerMessage::Current { last_mid, .. }) => Some(last_mid),
        _ => None,
    });
    *told.unwrap() = None;
    begins_with(&events, LastMidLied);
    events.insert(fell, E::Aged);
    is(&events, &[]);
    assert!(judge(&events).counts.aged_losses > 0);
}

#[test]
fn an_answer_to_nothing_is_named() {
    let mut events = unfinished();
    let at = find(&events, |event| matches!(event, E::Received(_, ServerMessage::Ack(_))));
    events.insert(at, events[at].clone());
    is(&events, &[AnswerToNothing]);
    let mut events = unfinished();
    events.push(E::Settled(0, 99, Fate::Acked));
    is(&events, &[AnswerToNothing]);
}

#[test]
fn what_was_refused_and_is_applied_is_named() {
    let mut events = unfinished();
    let at = find(&events, |event| matches!(event, E::Received(2, ServerMessage::Ack(_))));
    let refusal = find(&events, |event| {
        matches!(event, E::Received(_, ServerMessage::Reject(_)))
    });
    let mut refused = events[refusal].clone();
    let E::Received(connection, ServerMessage::Reject(reject)) = &mut refused else {
        panic!()
    };
    (*connection, reject.mid) = (2, mid(1));
    events[at] = refused;
    is(&events, &[RefusedApplied]);
    // As its app is told.
    let mut events = unfinished();
    let at = find(&events, |event| matches!(event, E::Settled(0, 1, _)));
    events[at] = E::Settled(0, 1, Fate::Cancelled);
    is(&events, &[RefusedApplied]);
}

#[test]
fn a_mutation_that_is_never_answered_has_vanished() {
    let mut events = story();
    let at = find(&events, |event| matches!(event, E::Settled(_, _, Fate::Refused)));
    events.remove(at);
    is(&events, &[Vanished]);
    // Where no app tells, its connection does.
    let mut events = story();
    events.retain(|event| !matches!(event, E::Issued(..) | E::Settled(..) | E::Shown(..)));
    is(&events, &[]);
    let at = find(&events, |event| {
        matches!(event, E::Received(_, ServerMessage::Reject(_)))
    });
    events.remove(at);
    is(&events, &[Vanished]);
}

#[test]
fn a_loss_of_what_an_app_was_told_before_a_restart_is_to_be_reported_after_it() {
    let mut world = World::new(&[None, None]);
    for n in 0..4 {
        world.issue(0, if n == 0 { Kind::Set(0, 1) } else { Kind::Count });
        world.serve(0);
        (0..2).for_each(|peer| world.deliver_all(peer));
    }
    world.restart(0);
    world.fall_back(1);
    world.issue(1, Kind::Set(1, 1));
    world.rest();
    let mut events = world.events;
    is(&events, &[]);
    let lost = find(&events, |event| matches!(event, E::Lost(..)));
    events.remove(lost);
    begins_with(&events, LossUnreported);
}

#[test]
fn of_a_loss_the_last_is_to_be_reported_too() {
    let mut events = fallen_back().events;
    let lost = find(&events, |event| matches!(event, E::Lost(..)));
    let E::Lost(_, _, _, through) = &mut events[lost] else {
        panic!()
    };
    *through = mid(through.get() - 1);
    is(&events, &[LossUnreported]);
}

#[test]
fn a_copy_is_applied_once_for_each_storage_and_not_where_it_was_refused() {
    let again = |events: &mut Vec<E>, n: u64, count: i64| {
        let put = |at: &str, field: &str, value: i64| {
            let set = vec![(crate::world::path(field), Value::int(value))];
            let kind = DocChangeKind::Change { set, unset: vec![] };
            let doc = crate::world::doc(at);
            DocChange { doc, kind }
        };
        let commit = Commit {
            seq: seq(n),
            at: 1_000 + n,
            writer: Writer(n),
            mid: mid(1),
            docs: vec![put("counters/c", "n", count), put("tags/1", "x", 1)],
        };
        events.push(E::Commit(Epoch(1 << 48 | 0xe), commit));
    };
    let copied = |fate| {
        let mut events = unfinished();
        events.extend([E::Replaced(5, None), E::Issued(5, 1, true)]);
        again(&mut events, 10, 4);
        events.push(E::Settled(5, 1, fate));
        events
    };
    is(&copied(Fate::Acked), &[]);
    is(&copied(Fate::Refused), &[RefusedApplied]);
    let mut events = copied(Fate::Uncertain);
    again(&mut events, 11, 5);
    is(&events, &[AppliedTwice]);
}
