//! Histories by a seed.

use super::{Kind, World};

/// splitmix64
struct Dice(u64);

impl Dice {
    fn roll(&mut self, below: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % below
    }
}

/// As [`generate_steps`], 200 of them.
pub fn generate(seed: u64, faults: bool) -> World {
    generate_steps(seed, faults, 200)
}

/// Steps of four installations, two of which see a part only, until all is at rest. With `faults` the store falls
/// back now and then.
pub fn generate_steps(seed: u64, faults: bool, steps: usize) -> World {
    let mut dice = Dice(seed);
    let mut world = World::new(&[None, None, Some(&["notes"]), Some(&["counters", "pairs"])]);
    for _ in 0..steps {
        let peer = dice.roll(4) as usize;
        let connected = world.peers[peer].connection.is_some();
        match dice.roll(40) {
            0..10 => {
                let n = dice.roll(100) as i64;
                let at = dice.roll(4) as u8;
                let kind = match dice.roll(9) {
                    0..3 => Kind::Count,
                    3 => Kind::Pair(n),
                    4 => Kind::Bad,
                    5 => Kind::Delete(at),
                    6 => Kind::Map(at, n),
                    _ => Kind::Set(at, n),
                };
                world.issue(peer, kind);
            }
            10..20 => world.serve(peer),
            20..32 => {
                world.deliver(peer);
            }
            32..34 if connected => world.cut(peer),
            32..37 if !connected => world.connect_by(peer, dice.roll(2) == 0),
            34 => world.show(peer),
            35 => world.hold(peer),
            36 if connected => world.restart(peer),
            37 => world.restart_store(),
            38 if faults && dice.roll(4) == 0 => {
                let head = world.head().seq.get();
                world.fall_back(head.saturating_sub(dice.roll(4)));
            }
            _ => {
                world.deliver_all(peer);
                world.show(peer);
            }
        }
    }
    world.rest();
    world
}
