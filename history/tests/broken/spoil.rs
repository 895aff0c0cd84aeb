//! Good stories, ways to spoil them, and what they are then to be called.

use crate::world::{E, Kind, World, judge, judge_outside};
use tidegate_history::Breach;
use tidegate_protocol::*;

/// Three installations, the last subscribed to `notes` alone, and some mutations of each kind, all at rest.
pub(crate) fn story() -> Vec<E> {
    let mut world = World::new(&[None, None, Some(&["notes"])]);
    let say = |world: &mut World, peer: usize, kind: Kind| {
        world.issue(peer, kind);
        world.serve(peer);
        (0..3).for_each(|peer| world.deliver_all(peer));
    };
    say(&mut world, 0, Kind::Count);
    say(&mut world, 1, Kind::Set(1, 5));
    say(&mut world, 0, Kind::Map(1, 1));
    say(&mut world, 1, Kind::Pair(7));
    say(&mut world, 0, Kind::Map(1, 2));
    say(&mut world, 2, Kind::Set(2, 6));
    say(&mut world, 0, Kind::Bad);
    say(&mut world, 2, Kind::Count);
    say(&mut world, 1, Kind::Count);
    say(&mut world, 1, Kind::Delete(2));
    (0..3).for_each(|peer| world.show(peer));
    world.rest();
    let events = world.events;
    assert_eq!(judge(&events).verdict().map(|counts| counts.commits), Ok(9));
    events
}

/// The same, up to the end of what was said.
pub(crate) fn unfinished() -> Vec<E> {
    let mut events = story();
    let end = events.iter().position(|event| matches!(event, E::Shown(..))).unwrap();
    events.truncate(end);
    events
}

pub(crate) fn find(events: &[E], of: impl Fn(&E) -> bool) -> usize {
    events.iter().position(of).expect("in the story")
}

/// The change `n` as it comes over a connection.
pub(crate) fn change(events: &[E], connection: u64, n: u64) -> usize {
    find(events, |event| match event {
        E::Received(on, ServerMessage::Change(change)) => *on == connection && change.commit.seq.get() == n,
        _ => false,
    })
}

pub(crate) fn current(events: &[E], connection: u64) -> usize {
    let of = |event: &E| matches!(event, E::Received(on, ServerMessage::Current { .. }) if *on == connection);
    find(events, of)
}

pub(crate) fn commit_of(event: &mut E) -> Option<&mut Commit> {
    match event {
        E::Commit(_, commit) => Some(commit),
        E::Received(_, ServerMessage::Change(change)) => Some(&mut change.commit),
        _ => None,
    }
}

/// Spoils a commit wherever it is told.
pub(crate) fn everywhere(events: &mut [E], n: u64, spoil: impl Fn(&mut Commit)) {
    let told = events.iter_mut().filter_map(commit_of);
    told.filter(|commit| commit.seq.get() == n).for_each(spoil);
}

pub(crate) fn set_first(commit: &mut Commit, value: i64) {
    match &mut commit.docs[0].kind {
        DocChangeKind::Change { set, .. } | DocChangeKind::Whole(set) => set[0].1 = Value::int(value),
        DocChangeKind::Deleted => panic!("nothing to set"),
    }
}

#[track_caller]
pub(crate) fn is(events: &[E], expected: &[Breach]) {
    let report = judge(events);
    let breaches = report.breaches();
    assert_eq!(breaches, expected, "{}", report.verdict().unwrap_err());
}

/// The first of several: what follows from it is called by other names.
#[track_caller]
pub(crate) fn begins_with(events: &[E], expected: Breach) {
    let report = judge(events);
    let first = report.breaches().first().copied();
    assert_eq!(first, Some(expected), "{:?}", report.verdict());
}

#[track_caller]
pub(crate) fn is_outside(events: &[E], expected: &[Breach]) {
    let report = judge_outside(events);
    let breaches = report.breaches();
    assert_eq!(breaches, expected, "{:?}", report.verdict());
}

/// Two installations with some documents, at rest but for the end; the second is behind by a few commits.
pub(crate) fn rich() -> World {
    let mut world = World::new(&[None, None]);
    for n in 0..5 {
        world.issue(0, Kind::Set(n, 1));
        world.issue(0, Kind::Map(n, 1));
    }
    world.issue(0, Kind::Count);
    while world.peers[1].held.is_none_or(|held| held.seq.get() < 11) {
        world.serve(0);
        (0..2).for_each(|peer| world.deliver_all(peer));
    }
    world.cut(1);
    for kind in [
        Kind::Map(1, 2),
        Kind::Delete(2),
        Kind::Set(3, 9),
        Kind::Pair(3),
        Kind::Count,
    ] {
        world.issue(0, kind);
        world.serve(0);
        world.deliver_all(0);
    }
    world
}
