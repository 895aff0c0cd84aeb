//! What apps see.

use crate::spoil::*;
use crate::world::{E, Kind, World, doc, judge, path, seq};
use tidegate_history::Breach::*;
use tidegate_history::Docs;
use tidegate_protocol::*;

type Pairs = Vec<(Option<Value>, Option<Value>)>;

fn shown(events: &mut [E], peer: u32) -> (&mut Option<Position>, &mut i64, &mut Pairs) {
    let found = events.iter_mut().find_map(|event| match event {
        E::Shown(of, position, count, pairs) if *of == peer => Some((position, count, pairs)),
        _ => None,
    });
    found.unwrap()
}

#[test]
fn a_view_that_counts_twice_or_not_at_all_or_shows_half_a_pair_is_named() {
    let mut events = story();
    *shown(&mut events, 0).1 += 1;
    is(&events, &[CountedTwice]);
    let mut events = story();
    *shown(&mut events, 1).1 -= 1;
    is(&events, &[NotCounted]);
    let mut events = story();
    shown(&mut events, 1).2[0].0 = None;
    is(&events, &[TornView]);
    let mut events = story();
    *shown(&mut events, 1).0 = Some(Position::new(Epoch(1 << 48 | 0xe), seq(8)));
    is(&events, &[Misplaced]);
    let mut events = story();
    events.push(E::Restarted(
        0,
        Some((Position::new(Epoch(1 << 48 | 0xe), seq(9)), ViewId(1))),
    ));
    is(&events, &[]);
}

#[test]
fn a_page_that_is_shown_before_its_end_is_staged() {
    let mut world = rich();
    world.connect_by(1, false);
    world.deliver(1);
    world.deliver(1);
    world.hold(1);
    world.show(1);
    let mut events = world.events;
    is(&events, &[]);
    let at = events.len() - 2;
    let E::Held(_, _, docs) = &mut events[at] else { panic!() };
    docs.remove(&doc("notes/n2"));
    *shown(&mut events[at..], 1).1 += 1;
    is(&events, &[StagedShown, StagedShown]);
}

#[test]
fn what_is_held_is_compared() {
    let spoilt = |spoil: &dyn Fn(&mut Docs)| {
        let mut world = rich();
        world.hold(0);
        let mut events = world.events;
        let Some(E::Held(_, _, docs)) = events.last_mut() else {
            panic!()
        };
        spoil(docs);
        events
    };
    let ghost = |docs: &mut Docs| {
        docs.get_mut(&doc("notes/n1"))
            .unwrap()
            .insert(path("ghost"), Value::int(1));
    };
    is(&spoilt(&ghost), &[Ghost]);
    let lost = |docs: &mut Docs| {
        docs.get_mut(&doc("notes/n1")).unwrap().remove(&path("x"));
    };
    is(&spoilt(&lost), &[WrongState]);
}

#[test]
fn replicas_that_end_elsewhere_have_diverged() {
    let mut events = story();
    let end = events.len() - 1;
    let E::AtRest(_, _, docs, _) = &mut events[end] else {
        panic!()
    };
    docs.clear();
    is(&events, &[Diverged]);
    let mut events = story();
    let E::AtRest(_, _, _, queued) = &mut events[end] else {
        panic!()
    };
    *queued = 2;
    is(&events, &[StillQueued]);
    let mut events = story();
    let E::Rest(position, docs) = events
        .iter_mut()
        .rev()
        .find(|event| matches!(event, E::Rest(..)))
        .unwrap()
    else {
        panic!()
    };
    position.seq = seq(8);
    docs.clear();
    begins_with(&events, WrongState);
    assert!(judge(&events).breaches().contains(&Diverged));
}

#[test]
fn a_view_without_the_counter_shows_what_it_has_no_answer_for_and_nothing_else() {
    // Acked, and its position is reached.
    let mut events = story();
    *shown(&mut events, 2).1 += 1;
    is(&events, &[CountedTwice]);
    // Not answered; the state holds it, and nothing in view says so.
    let mut world = World::new(&[None, Some(&["notes"])]);
    world.issue(1, Kind::Count);
    world.serve(1);
    world.deliver(1);
    world.deliver(1);
    world.show(1);
    let mut events = world.events;
    is(&events[..events.len()], &[Vanished]);
    let (_, count, _) = shown(&mut events, 1);
    assert_eq!(std::mem::take(count), 1);
    begins_with(&events, NotCounted);
}

#[test]
fn what_was_covered_before_a_restart_is_covered_after_it() {
    let mut world = rich();
    world.connect(1);
    world.deliver_all(1);
    world.issue(1, Kind::Count);
    world.serve(1);
    world.cut(1);
    // The state holds it, and the ack was lost.
    world.connect_by(1, false);
    world.deliver_all(1);
    world.restart(1);
    world.show(1);
    let mut events = world.events;
    is(&events, &[Vanished]);
    let at = events.len() - 1;
    *shown(&mut events[at..], 1).1 += 1;
    begins_with(&events, CountedTwice);
}
