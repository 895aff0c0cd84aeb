//! What a history is made of: how large the fleet is, and which faults it has at all. Every seed draws a
//! few of them, so that rare combinations get whole histories to themselves.

use crate::rng::Rng;

/// A step of the workload.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Act {
    // What apps do.
    Mutate,
    Subscribe,
    Unsubscribe,
    Get,
    Cancel,
    WakeUp,
    // What goes wrong.
    Cut,
    Stall,
    CrashClient,
    Snapshot,
    Clone,
    RollBack,
    GoOffline,
    Months,
    NodeClock,
    ClientClock,
    CrashNode,
    DrainNode,
    StoreOutage,
    Failover,
    Reopen,
    Trim,
    Floor,
    Erase,
    Permissions,
}

/// A history's plan. Times are in ms, rates in ‰.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) nodes: usize,
    pub(crate) spaces: usize,
    pub(crate) users: usize,
    pub(crate) installs: usize,
    /// Steps of the workload before everything is healed.
    pub(crate) steps: u64,
    /// Longest time between two steps.
    pub(crate) gap: u64,
    pub(crate) acts: Vec<(u64, Act)>,
    pub(crate) latency: u64,
    pub(crate) torn: u64,
    /// Bytes that a connection takes before it blocks.
    pub(crate) window: usize,
    pub(crate) refused: u64,
    pub(crate) json: u64,
    /// Longest delay before and after a store call.
    pub(crate) store_delay: u64,
    pub(crate) store_error: u64,
    pub(crate) store_unknown: u64,
    pub(crate) bus_lost: u64,
    pub(crate) bus_repeated: u64,
    pub(crate) bus_delay: u64,
    pub(crate) page_bytes: usize,
    pub(crate) ring_commits: usize,
    pub(crate) log_commits: u64,
    pub(crate) soft_bytes: usize,
    pub(crate) hard_bytes: usize,
    pub(crate) ping: u64,
    /// Whether nodes look for deadlines that have passed.
    pub(crate) sweeps: bool,
}

impl Plan {
    pub(crate) fn draw(rng: &mut Rng) -> Self {
        let mut acts = vec![
            (60, Act::Mutate),
            (4, Act::Subscribe),
            (1, Act::Unsubscribe),
            (2, Act::Get),
            (2, Act::Cancel),
            (2, Act::WakeUp),
        ];
        let mut faults = |rng: &mut Rng, rate, weight: u64, act| {
            if rng.chance(rate) {
                acts.push((rng.between(1, weight), act));
            }
        };
        faults(rng, 500, 10, Act::Cut);
        faults(rng, 200, 6, Act::Stall);
        faults(rng, 350, 8, Act::CrashClient);
        // What is restored has to be kept first.
        let copies = rng.chance(150);
        if copies {
            faults(rng, 1_000, 6, Act::Snapshot);
            faults(rng, 600, 3, Act::Clone);
            faults(rng, 600, 3, Act::RollBack);
        }
        faults(rng, 250, 4, Act::GoOffline);
        faults(rng, 200, 4, Act::NodeClock);
        faults(rng, 150, 4, Act::ClientClock);
        faults(rng, 250, 5, Act::CrashNode);
        faults(rng, 120, 3, Act::DrainNode);
        faults(rng, 200, 3, Act::StoreOutage);
        faults(rng, 250, 6, Act::Reopen);
        faults(rng, 250, 6, Act::Trim);
        faults(rng, 200, 5, Act::Floor);
        faults(rng, 200, 6, Act::Permissions);
        faults(rng, 200, 4, Act::Erase);
        // A loss that nobody hears of for longer than records are kept shows in nothing: not both.
        if rng.chance(350) {
            faults(rng, 1_000, 5, Act::Failover);
        } else if !copies {
            // Nor with copies: once records have aged, a clone's first mutation is a new client's.
            faults(rng, 180, 2, Act::Months);
        }
        let often = |rng: &mut Rng, rate, most| if rng.chance(rate) { rng.between(1, most) } else { 0 };
        let long = rng.chance(20);
        Self {
            nodes: rng.pick(&[1, 1, 2, 2, 3]),
            spaces: rng.pick(&[1, 1, 1, 2, 3]),
            users: rng.pick(&[1, 2, 2, 3]),
            installs: rng.pick(&[2, 2, 3, 3, 4]),
            steps: if long { 200 } else { rng.between(20, 60) },
            gap: rng.pick(&[2, 10, 40, 200]),
            latency: rng.pick(&[0, 2, 20, 20, 200]),
            torn: often(rng, 200, 100),
            window: rng.pick(&[200, 4_096, 1 << 20]),
            refused: often(rng, 200, 300),
            json: rng.pick(&[0, 0, 0, 300]),
            store_delay: rng.pick(&[0, 0, 3, 30, 150]),
            store_error: often(rng, 150, 100),
            store_unknown: often(rng, 250, 150),
            bus_lost: often(rng, 300, 500),
            bus_repeated: often(rng, 300, 300),
            bus_delay: rng.pick(&[1, 5, 50, 400]),
            page_bytes: rng.pick(&[60, 200, 1_000, 256 << 10]),
            ring_commits: rng.pick(&[1, 2, 8, 1_024]),
            log_commits: rng.pick(&[2, 5, 1_000, 10_000]),
            soft_bytes: rng.pick(&[300, 512 << 10, 512 << 10]),
            hard_bytes: rng.pick(&[6_000, 8 << 20, 8 << 20, 8 << 20]),
            ping: rng.pick(&[2_000, 10_000, 45_000]),
            sweeps: rng.chance(200),
            acts,
        }
    }

    /// The next step.
    pub(crate) fn act(&self, rng: &mut Rng) -> Act {
        let total = self.acts.iter().map(|(weight, _)| weight).sum();
        let mut at = rng.below(total);
        for (weight, act) in &self.acts {
            if at < *weight {
                return *act;
            }
            at -= weight;
        }
        Act::Mutate
    }

    /// Nothing goes wrong any more.
    pub(crate) fn heal(&mut self) {
        for rate in [
            &mut self.torn,
            &mut self.refused,
            &mut self.store_error,
            &mut self.store_unknown,
            &mut self.bus_lost,
            &mut self.bus_repeated,
        ] {
            *rate = 0;
        }
        self.latency = self.latency.min(5);
        self.store_delay = self.store_delay.min(3);
        self.bus_delay = self.bus_delay.min(5);
        self.window = 1 << 20;
    }
}
