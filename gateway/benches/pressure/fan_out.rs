//! One writer and its subscribers: CPU a delivery, at a pace and in a burst, and bytes on the wire.

use crate::Scale;
use crate::author::{Author, VALUE, busy, paced as pace};
use crate::child::{Durability, Place, Server, Spent};
use crate::client::{Result, Role, Swarm, To, Void, subscribers};
use crate::report::{Bound, Report, Row, median, percentile};
use std::time::Duration;

/// The space of them all.
pub(crate) const SPACE: &str = "bench";
const BETWEEN: Duration = Duration::from_millis(50);
const IN_FLIGHT: u64 = 16;

/// A server, its subscribers, and a writer.
pub(crate) struct Side {
    pub(crate) server: Server,
    to: To,
    pub(crate) swarm: Swarm,
    author: Author,
    subscribers: u64,
    /// Commits so far.
    pub(crate) commits: u64,
}

impl Side {
    /// One that has brought a first commit to everybody.
    pub(crate) fn new(place: &Place, to: To, count: usize) -> Result<Self> {
        Self::with_value(place, to, count, VALUE)
    }

    /// As `new`; what is written are values of so many bytes.
    pub(crate) fn with_value(place: &Place, to: To, count: usize, value: usize) -> Result<Self> {
        let server = match to {
            To::Gateway => Server::gateway(place, Durability::Memory),
            To::Limit => Server::limit(place),
        };
        let mut swarm = Swarm::new(to, server.addr)?;
        swarm.join(&subscribers(count, SPACE))?;
        let writer = swarm.join(&[Role::Writer])?;
        let mut author = Author::new(writer, 1, SPACE);
        author.value = value;
        let mut side = Self {
            server,
            to,
            swarm,
            author,
            subscribers: count as u64,
            commits: 0,
        };
        side.paced(Duration::ZERO, 1)?;
        Ok(side)
    }

    /// Runs commits, and waits until everybody has seen all of them. Returns what the server spent.
    fn measure(&mut self, commits: u64, run: impl FnOnce(&mut Swarm, &mut Author) -> Result<()>) -> Result<Spent> {
        self.commits += commits;
        let before = self.server.cpu();
        run(&mut self.swarm, &mut self.author)?;
        let all = self.commits * self.subscribers;
        self.swarm.until("all changes", |swarm| swarm.changes >= all)?;
        let spent = self.server.cpu().since(&before);
        if self.swarm.changes > all {
            return Err(Void(format!("{} changes came, not {all}", self.swarm.changes)));
        }
        Ok(spent)
    }

    /// Commits at a pace.
    pub(crate) fn paced(&mut self, every: Duration, commits: u64) -> Result<Spent> {
        self.measure(commits, |swarm, author| pace(swarm, author, every, commits))
    }

    fn burst(&mut self, commits: u64) -> Result<Spent> {
        self.measure(commits, |swarm, author| {
            busy(swarm, std::slice::from_mut(author), IN_FLIGHT, commits, 1)
        })
    }

    /// Deliveries of so many commits.
    #[allow(clippy::cast_precision_loss, reason = "some millions")]
    pub(crate) fn deliveries(&self, commits: u64) -> f64 {
        (commits * self.subscribers) as f64
    }

    /// Whether the gateway has counted what the client has seen: nobody behind, one encoding a commit.
    pub(crate) fn check(&self) -> Result<()> {
        if self.to == To::Limit {
            return Ok(());
        }
        let counts = [
            ("tidegate_behind_total", 0),
            ("tidegate_deliveries_total", self.commits * self.subscribers),
            ("tidegate_encodes_total", self.commits),
        ];
        for (name, expected) in counts {
            let found = self.server.metric(name);
            if found != expected {
                let log = self.server.log();
                return Err(Void(format!("{name} is {found}, not {expected} {log}")));
            }
        }
        Ok(())
    }
}

/// The gateway and the limit, each with as many subscribers.
fn both(place: &Place, count: usize) -> Result<[Side; 2]> {
    Ok([
        Side::new(place, To::Gateway, count)?,
        Side::new(place, To::Limit, count)?,
    ])
}

struct Paced {
    ratio: f64,
    user_us: f64,
    notes: Vec<String>,
}

pub(crate) fn paced(place: &Place, scale: &Scale, report: &mut Report) {
    let found = run_paced(place, scale);
    let notes = found.as_ref().map(|found| found.notes.clone()).unwrap_or_default();
    report.row(Row {
        id: "1",
        measure: "paced: CPU a delivery ÷ limit".into(),
        unit: "",
        reach: Bound::AtMost(1.4),
        aim: Some(1.15),
        figure: found.as_ref().map(|found| found.ratio).map_err(Clone::clone),
    });
    report.row(Row {
        id: "2",
        measure: "paced: user CPU a delivery".into(),
        unit: "µs",
        reach: Bound::AtMost(1.2),
        aim: Some(0.6),
        figure: found.map(|found| found.user_us),
    });
    for note in notes {
        report.note(note);
    }
}

fn run_paced(place: &Place, scale: &Scale) -> Result<Paced> {
    let mut sides = both(place, scale.subscribers)?;
    let mut spent = [Spent::default(); 2];
    let mut took = [vec![], vec![]];
    let mut ratios = vec![];
    for _ in 0..scale.rounds {
        let mut round = [0.0; 2];
        for (i, side) in sides.iter_mut().enumerate() {
            side.swarm.time(side.commits + 1);
            let this = side.paced(BETWEEN, scale.paced)?;
            took[i].extend(side.swarm.timed());
            spent[i] += this;
            round[i] = this.secs;
        }
        ratios.push(round[0] / round[1]);
    }
    let rounds = u64::try_from(scale.rounds).unwrap_or(u64::MAX);
    let deliveries = sides[0].deliveries(rounds * scale.paced);
    let mut notes = vec![];
    for (i, side) in sides.iter().enumerate() {
        side.check()?;
        took[i].sort_unstable();
        notes.push(format!(
            "paced, {:?}: {:.2} µs a delivery, {:.2} of them user; from sending to reading p50 {} µs, p99 {} µs",
            side.to,
            spent[i].secs * 1e6 / deliveries,
            spent[i].user_secs() * 1e6 / deliveries,
            percentile(&took[i], 50),
            percentile(&took[i], 99),
        ));
    }
    notes.push(spread("paced", &ratios));
    Ok(Paced {
        ratio: median(ratios),
        user_us: spent[0].user_secs() * 1e6 / deliveries,
        notes,
    })
}

/// The rounds' ratios, so that a reader sees what noise there was.
pub(crate) fn spread(what: &str, ratios: &[f64]) -> String {
    let all: Vec<_> = ratios.iter().map(|ratio| format!("{ratio:.2}")).collect();
    format!("{what}: rounds {}", all.join(" "))
}

pub(crate) fn burst(place: &Place, scale: &Scale, report: &mut Report) {
    let found = run_burst(place, scale);
    let notes = found.as_ref().map(|(_, notes)| notes.clone()).unwrap_or_default();
    report.row(Row {
        id: "3",
        measure: "burst: deliveries a CPU-second ÷ limit".into(),
        unit: "",
        reach: Bound::AtLeast(0.6),
        aim: Some(0.8),
        figure: found.map(|(ratio, _)| ratio),
    });
    for note in notes {
        report.note(note);
    }
}

fn run_burst(place: &Place, scale: &Scale) -> Result<(f64, Vec<String>)> {
    let mut sides = both(place, scale.subscribers)?;
    let mut secs = [0.0; 2];
    let mut ratios = vec![];
    for _ in 0..scale.rounds {
        let gateway = sides[0].burst(scale.burst)?.secs;
        let limit = sides[1].burst(scale.burst)?.secs;
        secs[0] += gateway;
        secs[1] += limit;
        ratios.push(limit / gateway);
    }
    let rounds = u64::try_from(scale.rounds).unwrap_or(u64::MAX);
    let deliveries = sides[0].deliveries(rounds * scale.burst);
    let mut notes = vec![];
    for (side, secs) in sides.iter().zip(secs) {
        side.check()?;
        let rate = deliveries / secs / 1e6;
        notes.push(format!(
            "burst, {:?}: {rate:.2} million deliveries a CPU-second",
            side.to
        ));
    }
    notes.push(spread("burst", &ratios));
    Ok((median(ratios), notes))
}

pub(crate) fn bytes(place: &Place, scale: &Scale, report: &mut Report) {
    let found = run_bytes(place, scale);
    let note = found.as_ref().ok().map(|(_, note)| note.clone());
    report.row(Row {
        id: "6",
        measure: "bytes of a change beyond its value of 200".into(),
        unit: "",
        reach: Bound::AtMost(60.0),
        aim: Some(52.0),
        figure: found.map(|(mean, _)| mean),
    });
    if let Some(note) = note {
        report.note(note);
    }
}

#[allow(clippy::cast_precision_loss, reason = "some thousands")]
fn run_bytes(place: &Place, scale: &Scale) -> Result<(f64, String)> {
    let mut side = Side::new(place, To::Gateway, 1)?;
    let first = side.swarm.change_bytes - VALUE as u64;
    side.burst(scale.burst)?;
    side.check()?;
    let mean = side.swarm.change_bytes as f64 / side.swarm.changes as f64 - VALUE as f64;
    let note = format!(
        "bytes: {first} with mid 1, {mean:.2} on average up to mid {}",
        side.commits
    );
    Ok((mean, note))
}
