//! The embedded store behind a gateway: commits a CPU-second, and catching up.

use crate::Scale;
use crate::author::{Author, busy, op};
use crate::child::{Durability, Place, Server};
use crate::client::{Conn, Result, Role, Swarm, To, Void};
use crate::fan_out::spread;
use crate::limit;
use crate::report::{Bound, Report, Row, median};
use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};
use tidegate_protocol::{DocPath, Fields, Limits, OpKind, Value};

/// Who writes, and how much of it unanswered.
const WRITERS: usize = 8;
const IN_FLIGHT: u64 = 32;
/// Documents that they write to, in turn.
const DOCS: u64 = 1_000;
/// Documents created by a mutation.
const BATCH: usize = 500;

pub(crate) fn writes(place: &Place, scale: &Scale, report: &mut Report) {
    for (durability, shared, id, reach, aim) in [
        (Durability::Memory, true, "7a", 50_000.0, 100_000.0),
        (Durability::Memory, false, "7b", 50_000.0, 100_000.0),
        (Durability::Fsync, true, "7c", 20_000.0, 40_000.0),
        (Durability::Fsync, false, "7d", 20_000.0, 40_000.0),
    ] {
        let found = run_writes(place, scale, durability, shared);
        let spaces = if shared { "one space" } else { "a space each" };
        let note = found.as_ref().ok().map(|found| {
            let rates: Vec<_> = found.rates.iter().map(|rate| format!("{rate:.0}")).collect();
            format!(
                "writes, {}, {spaces}: rounds {}; {:.0} a second by the clock; by threads {}",
                durability.name(),
                rates.join(" "),
                found.by_clock,
                found.threads,
            )
        });
        report.row(Row {
            id,
            measure: format!(
                "commits a CPU-second, {}, 8 × 32 in flight, {spaces}",
                durability.name()
            ),
            unit: "",
            reach: Bound::AtLeast(reach),
            aim: Some(aim),
            figure: found.map(|found| median(found.rates)),
        });
        if let Some(note) = note {
            report.note(note);
        }
    }
}

struct Writes {
    /// Commits a CPU-second, by round.
    rates: Vec<f64>,
    /// Commits a second in the last round, whoever else the machine worked for.
    by_clock: f64,
    /// Whose CPU time it was.
    threads: String,
}

#[allow(clippy::cast_precision_loss, reason = "some thousands")]
fn run_writes(place: &Place, scale: &Scale, durability: Durability, shared: bool) -> Result<Writes> {
    let server = Server::gateway(place, durability);
    let mut swarm = Swarm::new(To::Gateway, server.addr)?;
    let first = swarm.join(&vec![Role::Writer; WRITERS])?;
    let mut authors: Vec<_> = (0..WRITERS)
        .map(|i| {
            let space = if shared { "writes".into() } else { format!("writes-{i}") };
            Author::new(first + i, 1 + i as u64, &space)
        })
        .collect();
    let docs = DOCS.min(scale.writes);
    // Once for every document.
    busy(&mut swarm, &mut authors, IN_FLIGHT, docs, docs)?;
    let (mut rates, mut by_clock) = (vec![], 0.0);
    let before = server.cpu();
    for _ in 0..scale.rounds.min(3) {
        let (before, start) = (server.cpu(), Instant::now());
        busy(&mut swarm, &mut authors, IN_FLIGHT, scale.writes, docs)?;
        rates.push(scale.writes as f64 / server.cpu().since(&before).secs);
        by_clock = scale.writes as f64 / start.elapsed().as_secs_f64();
    }
    let after = server.cpu();
    let expected = docs + scale.writes * rates.len() as u64;
    match server.metric("tidegate_engine_commits_total") {
        commits if commits == expected => {}
        commits => return Err(Void(format!("{commits} commits, not {expected}"))),
    }
    Ok(Writes {
        rates,
        by_clock,
        threads: shares(after.by_name(&before)),
    })
}

/// The threads that had a hundredth of the time or more.
fn shares(spent: BTreeMap<&str, f64>) -> String {
    let all: f64 = spent.values().sum();
    let mut shares: Vec<_> = spent
        .into_iter()
        .map(|(name, secs)| (100.0 * secs / all, name))
        .filter(|(percent, _)| *percent >= 1.0)
        .collect();
    shares.sort_by(|a, b| b.0.total_cmp(&a.0));
    let shares: Vec<_> = shares
        .iter()
        .map(|(percent, name)| format!("{name} {percent:.0} %"))
        .collect();
    shares.join(", ")
}

pub(crate) fn catchup(place: &Place, scale: &Scale, report: &mut Report) {
    for (ids, text) in [(["8a", "8c"], 40), (["8b", "8d"], 1_000)] {
        catch_up(place, scale, report, ids, text);
    }
}

/// With a field of so many bytes in every document: as soon as another client has caught up, and as the first one.
fn catch_up(place: &Place, scale: &Scale, report: &mut Report, ids: [&'static str; 2], text: usize) {
    let what = format!("{} documents of 4 fields, one of {text} bytes", scale.docs);
    let (again, first) = match run_catchup(place, scale, text) {
        Ok([again, first]) => (Ok(again), Ok(first)),
        Err(void) => (Err(void.clone()), Err(void)),
    };
    for (id, found, which) in [(ids[0], again, "catch-up"), (ids[1], first, "first catch-up")] {
        let notes = found
            .as_ref()
            .map(|found| found.notes(which, scale))
            .unwrap_or_default();
        report.row(Row {
            id,
            measure: format!("{which} of {what}, ÷ a copy of the bytes"),
            unit: "",
            reach: Bound::AtMost(6.0),
            aim: Some(2.0),
            figure: found.map(|found| median(found.ratios)),
        });
        for note in notes {
            report.note(note);
        }
    }
}

/// Catch-ups, each with a copy of the bytes after it.
struct CatchUps {
    ratios: Vec<f64>,
    /// CPU seconds of the gateway.
    cpu: Vec<f64>,
    bytes: u64,
    /// The shortest of the catch-ups, and of the copies, in ms.
    best: [f64; 2],
}

impl CatchUps {
    fn new() -> Self {
        Self {
            ratios: vec![],
            cpu: vec![],
            bytes: 0,
            best: [f64::INFINITY; 2],
        }
    }

    fn round(&mut self, gateway: &Server, limit: &Server, space: &str) -> Result<()> {
        let mut conn = Conn::greeted(gateway.addr)?;
        let (before, start) = (gateway.cpu(), Instant::now());
        self.bytes = conn.catch_up(space)?;
        let mut took = [start.elapsed(); 2];
        self.cpu.push(gateway.cpu().since(&before).secs);
        took[1] = copy(limit, self.bytes)?;
        let took = took.map(|took| took.as_secs_f64() * 1e3);
        self.ratios.push(took[0] / took[1]);
        self.best = [self.best[0].min(took[0]), self.best[1].min(took[1])];
        Ok(())
    }

    #[allow(clippy::cast_precision_loss, reason = "less than 2^53")]
    fn notes(&self, which: &str, scale: &Scale) -> Vec<String> {
        let Self { bytes, best, .. } = self;
        vec![
            format!(
                "{which}: {bytes} bytes; the best took {:.0} ms, of the copies {:.1} ms, which is {:.1} times; {:.2} µs of CPU a document",
                best[0],
                best[1],
                best[0] / best[1],
                median(self.cpu.clone()) * 1e6 / scale.docs as f64,
            ),
            spread(which, &self.ratios),
        ]
    }
}

/// With what an earlier client was sent, which the gateway keeps; and each with a space that nobody has asked for.
fn run_catchup(place: &Place, scale: &Scale, text: usize) -> Result<[CatchUps; 2]> {
    let gateway = Server::gateway(place, Durability::Memory);
    let limit = Server::limit(place);
    let (mut again, mut first) = (CatchUps::new(), CatchUps::new());
    for round in 0..scale.rounds.min(3) {
        let space = format!("{SPACE}-{round}");
        load(&gateway, &space, scale.docs, text)?;
        first.round(&gateway, &limit, &space)?;
    }
    let space = format!("{SPACE}-0");
    let docs = Conn::greeted(gateway.addr)?.count_documents(&space)?;
    if docs != scale.docs {
        return Err(Void(format!("{docs} documents came, not {}", scale.docs)));
    }
    for _ in 0..scale.rounds {
        again.round(&gateway, &limit, &space)?;
    }
    Ok([again, first])
}

const SPACE: &str = "catchup";

/// Documents of four fields, many in a mutation.
fn load(server: &Server, space: &str, docs: usize, text: usize) -> Result<()> {
    let mut swarm = Swarm::new(To::Gateway, server.addr)?;
    let writer = swarm.join(&[Role::Writer])?;
    let mut author = Author::new(writer, 1, space);
    let mut sent = 0;
    for first in (0..docs).step_by(BATCH) {
        let ops = (first..docs.min(first + BATCH)).map(|i| {
            let fields = [
                ("title", Value::str(&format!("Note number {i} of many"))),
                ("text", Value::str(&"t".repeat(text))),
                ("stars", Value::int((i % 100).try_into().expect("small"))),
                ("done", Value::bool(i % 2 == 0)),
            ];
            let fields = fields.map(|(name, value)| (name.parse().expect("a field"), value));
            let fields = Fields::new(fields, &Limits::default()).expect("fields");
            let doc = DocPath::parse(&format!("notes/n{i}")).expect("a document");
            op(doc, OpKind::Create(fields))
        });
        let frame = author.next(ops.collect());
        swarm.send(writer, &frame)?;
        sent += 1;
        swarm.until("an ack", |swarm| swarm.acks + 2 > sent)?;
    }
    swarm.until("all acks", |swarm| swarm.acks == sent)
}

/// How long the limit takes to send so many bytes.
fn copy(limit: &Server, bytes: u64) -> Result<Duration> {
    let mut socket = TcpStream::connect(limit.addr)?;
    socket.set_nodelay(true)?;
    let mut request = vec![limit::COPY];
    request.extend_from_slice(&bytes.to_be_bytes());
    let mut scratch = vec![0; Conn::SCRATCH];
    let (start, mut left) = (Instant::now(), bytes);
    socket.write_all(&request)?;
    while left > 0 {
        match socket.read(&mut scratch)? {
            0 => return Err(Void("the copy ended early".into())),
            read => left -= read as u64,
        }
    }
    Ok(start.elapsed())
}
