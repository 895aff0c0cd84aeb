//! What may happen between the rounds of a fan-out.

use super::*;

const LINE: &[(u64, u64)] = &[(1, 0)];

impl Rig {
    /// Takes in commits, and brings them to nobody.
    fn hear(&mut self, range: std::ops::RangeInclusive<u64>) {
        assert_eq!(
            self.inner().hear(&lineage(LINE), &commits(range), &self.metrics),
            Found::Next
        );
    }

    /// One round; `false`: there was nobody to bring.
    fn bring_one(&self) -> bool {
        self.space.bring(&mut Round::default(), &self.metrics, |_| {})
    }
}

#[test]
fn each_shard_is_brought_in_its_turn_all_that_came_since() {
    let mut rig = Rig::at(at(1, 0), LINE);
    for _ in 0..6 {
        assert!(rig.join(at(1, 0), LINE, None).1);
    }
    rig.hear(1..=1);
    assert!(rig.bring_one());
    rig.hear(2..=3);
    assert!(rig.bring_one() && rig.bring_one());
    let seen: Vec<_> = (0..6).map(|peer| rig.seen(peer)).collect();
    assert_eq!(seen, [". 1", ". 1", ". 1 2 3", ". 1 2 3", ". 1 2 3", ". 1 2 3"]);
    assert!(rig.bring_one());
    assert!(!rig.bring_one());
    assert_eq!(rig.seen(0), ". 1 2 3");
    assert_eq!(rig.metrics.encodes.get(), 3, "one encoding each, whatever the round");
    let (late, _) = rig.join(at(1, 1), LINE, None);
    assert_eq!(rig.seen(late), ". 2 3");
    assert_eq!(rig.metrics.encodes.get(), 3, "also for who comes later");
}

#[test]
fn who_joins_a_shard_that_is_behind_takes_nothing_from_those_in_it() {
    let mut rig = Rig::at(at(1, 0), LINE);
    let (first, _) = rig.join(at(1, 0), LINE, None);
    rig.hear(1..=2);
    let (second, _) = rig.join(at(1, 1), LINE, None);
    while rig.bring_one() {}
    rig.hear(3..=3);
    while rig.bring_one() {}
    assert_eq!((rig.seen(first), rig.seen(second)), (". 1 2 3".into(), ". 2 3".into()));
}

#[test]
fn who_cannot_be_brought_what_the_ring_has_forgotten_catches_up() {
    let mut rig = Rig::at(at(1, 0), LINE);
    let (peer, _) = rig.join(at(1, 0), LINE, None);
    // What is heard at once is never forgotten at once, nor before twice what the ring holds is on its way.
    rig.inner().forget(&Rig::config());
    rig.hear(1..=9);
    rig.inner().trim(&Rig::config());
    while rig.bring_one() {}
    assert_eq!(rig.seen(peer), ". 1 2 3 4 5 6 7 8 9");
    rig.inner().trim(&Rig::config());
    rig.hear(10..=13);
    rig.inner().forget(&Rig::config());
    rig.hear(14..=18);
    while rig.bring_one() {}
    assert!(rig.seen(peer).ends_with(" 9 10 11 12 13 14 15 16 17 18"));
    rig.inner().trim(&Rig::config());
    rig.hear(19..=27);
    rig.inner().forget(&Rig::config());
    rig.hear(28..=28);
    while rig.bring_one() {}
    assert_eq!(*rig.tapes[peer].1.lock(), [at(1, 18)]);
    assert_eq!(rig.metrics.behind_trimmed.get(), 1);
    rig.inner().trim(&Rig::config());
    let (late, live) = rig.join(at(1, 24), LINE, None);
    assert!(
        live && !rig.join(at(1, 23), LINE, None).1,
        "what all have is kept as before"
    );
    assert_eq!(rig.seen(late), ". 25 26 27 28");
}

/// A generator for tests (SplitMix64, Steele, Lea and Flood 2014).
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % n
    }
}

/// What is expected of a peer: where it joined, the answers that it waits for, in order, and whether it is there.
struct Expected {
    from: u64,
    answers: usize,
    last_answer: u64,
    is_there: bool,
}

#[test]
fn whatever_happens_between_rounds_each_is_brought_every_commit_once_and_answers_after_theirs() {
    let mut met = [0_u32; 6];
    for seed in 0..2_000 {
        let mut dice = Dice(seed);
        let mut rig = Rig::at(at(1, 0), LINE);
        let mut head = 0;
        let mut peers: Vec<Expected> = Vec::new();
        for _ in 0..40 {
            let act = dice.below(6);
            let some = usize::try_from(dice.below(peers.len().max(1) as u64)).unwrap();
            match act {
                0 => {
                    // Up to two commits ahead of the hub.
                    let from = (head.max(2) - 2) + dice.below(4);
                    let (peer, live) = rig.join(at(1, from), LINE, None);
                    assert_eq!(peer, peers.len());
                    peers.push(Expected {
                        from,
                        answers: 0,
                        last_answer: 0,
                        is_there: live,
                    });
                }
                1 if some < peers.len() && peers[some].is_there => {
                    rig.inner().leave(some as u64);
                    peers[some].is_there = false;
                }
                2 if some < peers.len() && peers[some].is_there => {
                    let answer = head.max(1) - dice.below(2).min(head.saturating_sub(1));
                    if answer <= head {
                        rig.ack(some, at(1, answer));
                        peers[some].answers += 1;
                        peers[some].last_answer = answer;
                    }
                }
                3 => {
                    let more = 1 + dice.below(2);
                    rig.hear(head + 1..=head + more);
                    head += more;
                    // Never so much that the ring forgets what is on its way.
                    if dice.below(3) == 0 {
                        rig.deliver();
                    }
                }
                4 | 5 => drop(rig.bring_one()),
                _ => continue,
            }
            met[usize::try_from(act).unwrap()] += 1;
        }
        rig.deliver();
        for (peer, expected) in peers.iter().enumerate() {
            let seen = rig.seen(peer);
            let mut last = expected.from;
            let mut answers = 0;
            for word in seen.split(' ').filter(|word| !matches!(*word, "." | "")) {
                match word {
                    "a" => answers += 1,
                    commit => {
                        assert_eq!(commit.parse::<u64>(), Ok(last + 1), "seed {seed}, peer {peer}: {seen}");
                        last += 1;
                    }
                }
            }
            assert_eq!(answers, expected.answers, "seed {seed}, peer {peer}: {seen}");
            if expected.is_there {
                assert_eq!(last, head.max(expected.from), "seed {seed}, peer {peer}: {seen}");
                // After the last answer nothing that it had to wait for comes.
                let behind = seen.rsplit(' ').take_while(|word| *word != "a");
                let first = behind.filter_map(|word| word.parse::<u64>().ok()).min();
                let waits = expected.last_answer > expected.from && answers > 0;
                assert!(
                    !waits || first.is_none_or(|first| first > expected.last_answer),
                    "seed {seed}, peer {peer}: {seen}"
                );
            }
        }
    }
    println!("joined, left, answered, heard, brought: {met:?}");
    assert!(met.iter().all(|met| *met > 2_000), "{met:?}");
}

#[test]
fn what_this_node_commits_cuts_off_nobody_however_large_or_however_many_views_there_are() {
    // A group of more than the ring's bytes; and frames of many views, each counted.
    let bounds = HubConfig {
        ring_bytes: 2_000,
        ..Rig::config()
    };
    for views in [1, 40] {
        let mut rig = Rig::at(at(1, 0), LINE);
        let names: Vec<_> = (0..views).map(|n| "x".repeat(n + 1)).collect();
        for name in &names {
            assert!(rig.join(at(1, 0), LINE, (views > 1).then_some(name)).1);
        }
        let mut head = 0;
        for _ in 0..5 {
            rig.inner().forget(&bounds);
            rig.hear(head + 1..=head + 100);
            head += 100;
            // As while a writer waits for room: after each round it is looked whether there is any.
            rig.inner().fanning = 1;
            while rig.bring_one() {
                let _ = rig.inner().is_full(&bounds);
            }
            rig.inner().fanning = 0;
            rig.inner().trim(&bounds);
        }
        assert_eq!(rig.metrics.behind_trimmed.get(), 0, "{views} views");
        assert!(!rig.inner().is_full(&bounds));
    }
}
