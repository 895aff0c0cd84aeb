//! What the gateway costs under pressure, as ratios to a bare loop in the same run: `docs/PERFORMANCE.md` says what is
//! measured, and how to read it.
//!
//!     cargo bench -p tidegate --bench pressure -- paced burst
//!
//! The gateway and the limit are processes of their own on one core, this one is their client on another (`child`). Each
//! subscriber has to be brought every commit as a change of its own, in order; a subscription that fell behind, or a
//! count of the gateway's that differs from the client's, voids the run, and the exit status says so.
//!
//! `--small` makes all of it smaller, and `--under=` runs the gateways by a profiler:
//!
//!     cargo bench -p tidegate --bench pressure -- paced --small --under='valgrind --tool=callgrind'
//!
//! `cargo test` runs every scenario at a tiny scale: whether it counts right, and not how long it takes.

mod attack;
mod author;
mod child;
mod client;
mod fan_out;
mod growth;
mod limit;
mod nodes;
mod record;
#[path = "../../tests/support/redis.rs"]
#[allow(dead_code, reason = "a bench uses a part of it")]
mod redis_server;
mod report;
mod stand;
mod store;
mod storm;
mod wire;

use child::Place;
use report::{Report, say};
use std::process::ExitCode;

/// How much of everything.
pub(crate) struct Scale {
    /// Each measurement is taken so often, in turn with what it is compared with.
    pub(crate) rounds: usize,
    /// Of one space.
    pub(crate) subscribers: usize,
    /// Commits of a round, at 20 a second.
    pub(crate) paced: u64,
    /// Commits of a round, 16 in flight.
    pub(crate) burst: u64,
    /// Idle connections, each subscribed to a space of its own.
    pub(crate) idle: usize,
    /// Seconds that they idle, and seconds in which memory is left to settle elsewhere.
    pub(crate) idle_secs: u64,
    pub(crate) settle_secs: u64,
    /// Connections of a round.
    pub(crate) connects: usize,
    /// Commits of a round.
    pub(crate) writes: u64,
    /// Documents that a client catches up with.
    pub(crate) docs: usize,
    /// Subscribers of a space that has many.
    pub(crate) many: usize,
    /// Commits of a round to few subscribers; and to many.
    pub(crate) few_commits: u64,
    pub(crate) many_commits: u64,
    /// Spaces written to, each with as many writes in a round.
    pub(crate) spaces: usize,
    /// Connections at which memory is compared.
    pub(crate) memory: [usize; 2],
    /// Commits of a round to proper clients, at 20 a second.
    pub(crate) attacked: u64,
    /// Of attackers, one in so many comes.
    pub(crate) attackers_divided: usize,
}

const FULL: Scale = Scale {
    rounds: 5,
    subscribers: 500,
    paced: 100,
    burst: 2_000,
    idle: 5_000,
    idle_secs: 60,
    settle_secs: 20,
    connects: 1_000,
    writes: 30_000,
    docs: 100_000,
    many: 10_000,
    few_commits: 200,
    many_commits: 5,
    spaces: 10_000,
    memory: [1_000, 15_000],
    attacked: 100,
    attackers_divided: 1,
};

const TINY: Scale = Scale {
    rounds: 1,
    subscribers: 3,
    paced: 2,
    burst: 40,
    idle: 3,
    idle_secs: 0,
    settle_secs: 0,
    connects: 3,
    writes: 40,
    docs: 1_200,
    many: 12,
    few_commits: 2,
    many_commits: 2,
    spaces: 3,
    memory: [2, 4],
    attacked: 2,
    attackers_divided: 20,
};

/// What a profiler takes its time for.
const SMALL: Scale = Scale {
    rounds: 1,
    subscribers: 50,
    paced: 200,
    burst: 2_000,
    idle: 100,
    idle_secs: 5,
    settle_secs: 5,
    connects: 200,
    writes: 5_000,
    docs: 10_000,
    many: 200,
    few_commits: 20,
    many_commits: 20,
    spaces: 200,
    memory: [50, 200],
    attacked: 40,
    attackers_divided: 10,
};

type Scenario = fn(&Place, &Scale, &mut Report);

/// Every scenario, by the name that chooses it, and with what it measures.
const SCENARIOS: [(&str, &str, Scenario); 10] = [
    (
        "paced",
        "20 commits a second of 200 bytes to 500 subscribers",
        fan_out::paced,
    ),
    ("burst", "commits to the same, 16 in flight", fan_out::burst),
    ("bytes", "what a change takes on the wire", fan_out::bytes),
    (
        "connect",
        "what a connection costs until it is subscribed",
        stand::connect,
    ),
    ("idle", "what 5,000 idle connections hold", stand::idle),
    ("writes", "commits to the embedded store", store::writes),
    (
        "catchup",
        "one client catching up with 100,000 documents",
        store::catchup,
    ),
    (
        "growth",
        "the same with more subscribers, spaces, connections",
        growth::growth,
    ),
    ("nodes", "commits to Redis, and changes on another node", nodes::nodes),
    ("attack", "a proper client while others misbehave", attack::attack),
];

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if args.first().is_some_and(|arg| arg == child::AS_LIMIT) {
        return match limit::main() {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                say(&format!("the limit ended: {error}"));
                ExitCode::FAILURE
            }
        };
    }
    // Without `--bench` it is `cargo test` that asks, and its words are filters.
    let measuring = args.iter().any(|arg| arg == "--bench");
    if args.iter().any(|arg| arg == "--list") {
        SCENARIOS
            .iter()
            .for_each(|(name, ..)| say(&format!("{name}: benchmark")));
        return ExitCode::SUCCESS;
    }
    let wanted: Vec<&String> = args.iter().filter(|arg| !arg.starts_with('-')).collect();
    let known = |name: &str| SCENARIOS.iter().any(|(known, ..)| *known == name);
    if measuring && let Some(unknown) = wanted.iter().find(|name| !known(name)) {
        say(&format!("there is no scenario {unknown}; there are:"));
        for (name, what, _) in SCENARIOS {
            say(&format!("  {name:8} {what}"));
        }
        return ExitCode::FAILURE;
    }
    let chosen = SCENARIOS
        .iter()
        .filter(|(name, ..)| wanted.is_empty() || wanted.iter().any(|wanted| wanted == name));
    let under = args.iter().find_map(|arg| arg.strip_prefix("--under="));
    let under = under.map(|words| words.split(' ').map(String::from).collect());
    let scale = match measuring {
        false => &TINY,
        true if args.iter().any(|arg| arg == "--small") => &SMALL,
        true => &FULL,
    };
    run(chosen, scale, measuring, under.unwrap_or_default())
}

fn run(
    chosen: impl Iterator<Item = &'static (&'static str, &'static str, Scenario)>,
    scale: &Scale,
    measuring: bool,
    under: Vec<String>,
) -> ExitCode {
    let mut chosen = chosen.peekable();
    if chosen.peek().is_none() {
        return ExitCode::SUCCESS;
    }
    if !measuring {
        wire::check();
    }
    let place = match Place::take(under) {
        Ok(place) => place,
        Err(error) => {
            say(&format!("no core can be chosen: {error}"));
            return ExitCode::FAILURE;
        }
    };
    say(&match place.names {
        Some((servers, client)) => format!("servers on core {servers}, client on core {client}"),
        None => "there is one core: servers and client share it, which is in every figure".into(),
    });
    // At a tiny scale the figures say nothing.
    let mut report = Report::new(measuring);
    for (name, what, scenario) in chosen {
        say(&if measuring {
            format!("{name}: {what}")
        } else {
            format!("test {name}")
        });
        scenario(&place, scale, &mut report);
    }
    report.print();
    match report.voids() {
        0 => ExitCode::SUCCESS,
        voids => {
            say(&format!("{voids} figures are void"));
            ExitCode::FAILURE
        }
    }
}
