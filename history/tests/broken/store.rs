//! What the store does, and in which order.

use crate::spoil::*;
use crate::world::{E, Kind, World, doc, judge, mid, path, seq};
use tidegate_history::Breach::*;
use tidegate_history::Docs;
use tidegate_protocol::*;

#[test]
fn a_seq_that_is_used_twice_or_left_out_is_named() {
    let mut events = unfinished();
    let at = find(
        &events,
        |event| matches!(event, E::Commit(_, commit) if commit.seq == seq(4)),
    );
    let mut again = events[at].clone();
    commit_of(&mut again).unwrap().writer = Writer(1);
    events.insert(at + 1, again);
    is(&events, &[SeqReused]);
    // Nobody else was there.
    let mut events = unfinished();
    events.remove(at);
    events.retain(|event| matches!(event, E::Epoch(..) | E::Commit(..)));
    is(&events, &[StoreGap]);
}

#[test]
fn a_time_that_goes_back_is_named() {
    let mut events = unfinished();
    everywhere(&mut events, 4, |commit| commit.at = 1);
    is(&events, &[TimeBackwards]);
}

fn last_commit(events: &[E]) -> Commit {
    let last = events.iter().rev().find_map(|event| match event {
        E::Commit(_, commit) => Some(commit.clone()),
        _ => None,
    });
    last.unwrap()
}

#[test]
fn a_mutation_that_is_applied_twice_is_named() {
    let mut events = unfinished();
    let epoch = Epoch(1 << 48 | 0xe);
    let first = events.iter().find_map(|event| match event {
        E::Commit(_, commit) if commit.seq == seq(2) => Some(commit.clone()),
        _ => None,
    });
    let commit = Commit {
        seq: seq(10),
        at: 1_000,
        ..first.unwrap()
    };
    events.push(E::Commit(epoch, commit));
    is(&events, &[AppliedTwice]);
    // Under another writer's name, as after a new id that should not have been taken.
    let mut events = unfinished();
    let mut commit = last_commit(&events);
    let (n, tag) = (path("n"), path("x"));
    let put = |at: &str, path: FieldPath, value: i64| {
        let (set, unset) = (vec![(path, Value::int(value))], vec![]);
        DocChange {
            doc: doc(at),
            kind: DocChangeKind::Change { set, unset },
        }
    };
    commit.docs = vec![put("counters/c", n, 4), put("tags/1", tag, 1)];
    (commit.seq, commit.mid, commit.writer) = (seq(10), mid(1), Writer(77));
    events.push(E::Commit(epoch, commit));
    is(&events, &[AppliedTwice]);
}

#[test]
fn a_count_that_is_wrong_is_named() {
    let mut events = unfinished();
    everywhere(&mut events, 1, |commit| set_first(commit, 2));
    // Only the first is wrong: the next is one up from what was written.
    everywhere(&mut events, 7, |commit| {
        if commit.docs[0].doc.as_str() == "counters/c" {
            set_first(commit, 3);
        }
    });
    everywhere(&mut events, 8, |commit| set_first(commit, 4));
    is(&events, &[Miscounted]);
}

#[test]
fn a_commit_of_half_a_pair_is_torn() {
    let mut events = unfinished();
    everywhere(&mut events, 4, |commit| {
        commit.docs.pop();
    });
    is(&events, &[TornCommit]);
}

#[test]
fn leaves_above_one_another_are_an_overlap() {
    let mut events = unfinished();
    everywhere(&mut events, 5, |commit| {
        if let DocChangeKind::Change { set, unset } = &mut commit.docs[0].kind {
            unset.clear();
            set[0].0 = path("map");
        }
    });
    // It stays there until the document goes.
    begins_with(&events, Overlap);
}

#[test]
fn mutations_out_of_the_order_of_their_mids_are_reordered() {
    let mut events = unfinished();
    events.retain(|event| !matches!(event, E::Received(_, ServerMessage::Ack(_))));
    for (n, of) in [(3, 3), (5, 2)] {
        everywhere(&mut events, n, |commit| commit.mid = mid(of));
    }
    let breaches = judge(&events).breaches();
    assert_eq!(breaches[0], WritesReordered, "{breaches:?}");
}

/// A writer that is not subscribed, and readers, as seen from outside: `a` is acked as 2, then `b` is sent, by
/// somebody who holds `read` and names `base`; a reader sees `b` as 1 and `a` as 2.
fn reordered(after_ack: bool, read: bool, base: Option<Position>) -> Vec<E> {
    let space = crate::world::space();
    let epoch = Epoch(0x9_0000);
    let at = |n| Position::new(epoch, seq(n));
    let write = |client: u64, base| {
        let head = WriteHead {
            space: space.clone(),
            client: ClientId(client),
            mid: mid(1),
            key: MutationKey(client),
            prev: None,
            first: Some(1),
        };
        ClientMessage::Write(Write {
            head,
            base,
            policy: None,
            ops: vec![],
        })
    };
    let sub = |filter: Option<Vec<Collection>>| {
        ClientMessage::Sub(Sub {
            id: 1,
            space: space.clone(),
            client: None,
            from: None,
            filter,
        })
    };
    let begin = |epoch, view| {
        let (id, n, mode, resumed, view) = (1, 7, Mode::Reset, false, ViewId(view));
        ServerMessage::Begin(Begin {
            id,
            n,
            mode,
            view,
            epoch,
            resumed,
        })
    };
    let current = |position| ServerMessage::Current {
        id: 1,
        position,
        last_mid: None,
    };
    let change = |n: u64, user: u32| {
        let writer = Writer::of(&crate::world::user(user), ClientId(u64::from(user)));
        let commit = Commit {
            seq: seq(n),
            at: n,
            writer,
            mid: mid(1),
            docs: vec![],
        };
        E::Received(1, ServerMessage::Change(Change { n: 7, commit }))
    };
    let mut events = vec![
        E::Connected(1, 1),
        E::Sent(1, sub(None)),
        E::Received(1, begin(Epoch(0), 1)),
        E::Received(1, current(Position::START)),
        E::Connected(2, 2),
        E::Sent(2, write(2, None)),
        E::Connected(3, 3),
    ];
    let ack = ServerMessage::Ack(Ack {
        space: space.clone(),
        mid: mid(1),
        position: at(2),
        conflicts: vec![],
        skipped: vec![],
    });
    if after_ack {
        events.push(E::Received(2, ack));
    }
    if read {
        let notes = Some(vec![Collection::parse("notes").unwrap()]);
        let filtered = [
            E::Sent(3, sub(notes)),
            E::Received(3, begin(epoch, 2)),
            E::Received(3, current(at(2))),
        ];
        events.extend(filtered);
    }
    events.push(E::Sent(3, write(3, base)));
    events.push(E::Received(1, ServerMessage::Epoch { n: 7, position: at(0) }));
    events.extend([change(1, 3), change(2, 2)]);
    events
}

#[test]
fn the_order_in_real_time_reads_and_bases_bind_a_mutation() {
    let base = Position::new(Epoch(0x9_0000), seq(1));
    is_outside(&reordered(false, false, None), &[]);
    is_outside(&reordered(true, false, None), &[RealTimeOrder]);
    is_outside(&reordered(false, true, None), &[WriteBeforeRead]);
    is_outside(&reordered(false, false, Some(base)), &[WriteBeforeBase]);
}

#[test]
fn what_an_erasure_leaves_is_named() {
    let mut events = rich().events;
    let left: Docs = [(doc("notes/n1"), [(path("x"), Value::int(1))].into())].into();
    events.push(E::Erased(Epoch(0x77 << 48), seq(16), None, left));
    is(&events, &[NotErased]);
}

#[test]
fn a_client_that_writes_on_after_it_was_erased_is_named() {
    let mut events = rich().events;
    let last = last_commit(&events);
    let new = Epoch(0x77 << 48);
    events.push(E::Erased(new, seq(16), None, Docs::new()));
    let commit = |writer| Commit {
        seq: seq(17),
        at: last.at,
        writer,
        mid: mid(last.mid.get() + 1),
        docs: vec![],
    };
    let mut others = events.clone();
    others.push(E::Commit(new, commit(Writer(4))));
    is(&others, &[]);
    events.push(E::Commit(new, commit(last.writer)));
    is(&events, &[ErasedWrites]);
}

#[test]
fn what_a_users_erasure_leaves_and_takes_too_much_is_named() {
    let mut world = World::new(&[None, None]);
    for (peer, n) in [(0, 1), (1, 2)] {
        world.issue(peer, Kind::Set(n, 5));
        world.serve(peer);
        (0..2).for_each(|peer| world.deliver_all(peer));
    }
    let commits: Vec<Commit> = (world.events.iter())
        .filter_map(|event| match event {
            E::Commit(_, commit) => Some(commit.clone()),
            _ => None,
        })
        .collect();
    let [theirs, others] = &commits[..] else { panic!() };
    let (all, new) = (world.docs().clone(), Epoch(0x77 << 48));
    let mut left = all.clone();
    left.remove(&theirs.docs[0].doc);
    // Installation 0's peer is that user.
    let erased = |docs: &Docs, then: Option<(Writer, u64)>| {
        let mut events = world.events.clone();
        events.push(E::Erased(new, seq(2), Some(0), docs.clone()));
        events.extend(then.map(|(writer, of)| {
            let (seq, at) = (seq(3), others.at);
            let (mid, docs) = (mid(of), vec![]);
            E::Commit(
                new,
                Commit {
                    seq,
                    at,
                    writer,
                    mid,
                    docs,
                },
            )
        }));
        events
    };
    is(&erased(&left, None), &[]);
    is(&erased(&all, None), &[NotErased]);
    is(&erased(&Docs::new(), None), &[WrongState]);
    is(&erased(&left, Some((theirs.writer, 2))), &[ErasedWrites]);
    is(&erased(&left, Some((others.writer, 2))), &[]);
    is(&erased(&left, Some((others.writer, 1))), &[AppliedTwice]);
}
