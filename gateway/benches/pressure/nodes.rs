//! Gateways on one Redis: commits a second beside the same commands without a gateway, and how much later another node's
//! subscribers see them.

use crate::Scale;
use crate::author::{Author, busy};
use crate::child::{Cpu, Place, Server};
use crate::client::{Conn, PATIENCE, Result, Role, Swarm, To, Void};
use crate::fan_out::spread;
use crate::record::{Commits, replay};
use crate::redis_server;
use crate::report::{Bound, Report, Row, median};
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// Who writes, each in a space of its own, and how much of it unanswered.
const WRITERS: usize = 8;
const IN_FLIGHT: u64 = 32;
/// Mutations of a group, the same with and without a gateway.
const GROUP: u64 = 16;
const DOCS: u64 = 1_000;
/// Between two writes at low load.
const PACE: Duration = Duration::from_millis(10);

pub(crate) fn nodes(place: &Place, scale: &Scale, report: &mut Report) {
    let found = throughput(place, scale);
    let notes = found.as_ref().map(|found| found.notes()).unwrap_or_default();
    report.row(Row {
        id: "10a",
        measure: format!("commits a second on Redis, 8 × 32 in flight, groups of {GROUP}, ÷ the same commands bare"),
        unit: "",
        reach: Bound::AtLeast(0.6),
        aim: Some(0.9),
        figure: found.map(|found| median(found.ratios())),
    });
    notes.into_iter().for_each(|note| report.note(note));
    let found = delays(place, scale);
    let notes = found.as_ref().map(Delays::notes).unwrap_or_default();
    let figure = |of: fn(&Delays) -> f64| found.as_ref().map(of).map_err(Void::clone);
    report.row(Row {
        id: "10b",
        measure: "a write seen on another node, median, beyond the same command and its message bare".into(),
        unit: "ms",
        reach: Bound::AtMost(0.5),
        aim: None,
        figure: figure(|found| percentile(&found.far, 50) - percentile(&found.bare, 50)),
    });
    report.row(Row {
        id: "10c",
        measure: "a write seen on another node, p99, beyond that on the same node".into(),
        unit: "ms",
        reach: Bound::AtMost(2.0),
        aim: Some(1.0),
        figure: figure(|found| percentile(&found.far, 99) - percentile(&found.near, 99)),
    });
    notes.into_iter().for_each(|note| report.note(note));
}

/// A gateway on a Redis that is at this address.
fn gateway(place: &Place, url: &str) -> Result<Server> {
    let settings = format!("[redis]\nurl = {url:?}\n[writes]\ngroup_items = {GROUP}\n");
    let server = Server::gateway_with(place, &settings);
    let started = Instant::now();
    while !server.is_ready() {
        if started.elapsed() > PATIENCE {
            return Err(Void("a gateway on Redis is not ready".into()));
        }
        std::thread::yield_now();
    }
    Ok(server)
}

fn redis(place: &Place) -> redis_server::Server {
    place.on_servers(|| redis_server::Server::start(&["--appendonly", "no"]))
}

/// Rounds, with a gateway and without.
struct Throughput {
    /// Commits a second.
    through: Vec<f64>,
    bare: Vec<f64>,
    /// Mutations a group.
    groups: [f64; 2],
    /// What the gateway and Redis spend on a commit, µs; and Redis without a gateway.
    gateway: f64,
    redis: [f64; 2],
}

impl Throughput {
    fn ratios(&self) -> Vec<f64> {
        self.through
            .iter()
            .zip(&self.bare)
            .map(|(through, bare)| through / bare)
            .collect()
    }

    fn notes(&self) -> Vec<String> {
        let Self { groups, redis, .. } = self;
        vec![
            spread("commits on Redis", &self.ratios()),
            format!(
                "commits on Redis: {:.0} a second, bare {:.0}; {:.1} mutations a group, bare {:.1}; µs of CPU a commit: \
                 gateway {:.1}, Redis {:.1}, bare {:.1}",
                median(self.through.clone()),
                median(self.bare.clone()),
                groups[0],
                groups[1],
                self.gateway,
                redis[0],
                redis[1],
            ),
        ]
    }
}

/// Writers on connections of a gateway.
fn writers(server: &Server) -> Result<(Swarm, Vec<Author>)> {
    let mut swarm = Swarm::new(To::Gateway, server.addr)?;
    let first = swarm.join(&vec![Role::Writer; WRITERS])?;
    let authors = (0..WRITERS).map(|i| Author::new(first + i, 1 + i as u64, &format!("writes-{i}")));
    Ok((swarm, authors.collect()))
}

/// Redis has a core; the gateway with its client, or who sends the same commands bare, the other.
#[allow(clippy::cast_precision_loss, reason = "some thousands")]
fn throughput(place: &Place, scale: &Scale) -> Result<Throughput> {
    let redis = redis(place);
    let beside = place.together();
    let docs = DOCS.min(scale.writes);
    // What a gateway says is kept once, and said again in every round.
    let (commits, addr) = Commits::before(redis.addr())?;
    let recorded = {
        let server = gateway(&beside, &format!("redis://{addr}/"))?;
        let (mut swarm, mut authors) = writers(&server)?;
        busy(&mut swarm, &mut authors, IN_FLIGHT, docs, docs)?;
        busy(&mut swarm, &mut authors, IN_FLIGHT, scale.writes, docs)?;
        commits.take()
    };
    let mut found = Throughput {
        through: vec![],
        bare: vec![],
        groups: [0.0; 2],
        gateway: 0.0,
        redis: [0.0; 2],
    };
    let mut connection = redis.connection();
    for _ in 0..scale.rounds.min(5) {
        redis.command(&["FLUSHALL"]);
        {
            let server = gateway(&beside, &redis.url())?;
            let (mut swarm, mut authors) = writers(&server)?;
            busy(&mut swarm, &mut authors, IN_FLIGHT, docs, docs)?;
            let calls = commit_calls(&redis)?;
            let (cpu, spent, start) = (server.cpu(), Cpu::of(redis.pid()), Instant::now());
            busy(&mut swarm, &mut authors, IN_FLIGHT, scale.writes, docs)?;
            found.through.push(scale.writes as f64 / start.elapsed().as_secs_f64());
            found.gateway = server.cpu().since(&cpu).secs * 1e6 / scale.writes as f64;
            found.redis[0] = Cpu::of(redis.pid()).since(&spent).secs * 1e6 / scale.writes as f64;
            found.groups[0] = scale.writes as f64 / (commit_calls(&redis)? - calls) as f64;
            // A publish is a group, and a group is a call.
            let all = docs + scale.writes;
            match server.metric("tidegate_engine_commits_total") {
                commits if commits == all => {}
                commits => return Err(Void(format!("{commits} commits, not {all}"))),
            }
        }
        redis.command(&["FLUSHALL"]);
        let (warm, measured) = warm(&recorded, docs);
        replay(&mut connection, warm, WRITERS)?;
        let (spent, start) = (Cpu::of(redis.pid()), Instant::now());
        let commits = replay(&mut connection, measured, WRITERS)?;
        found.bare.push(commits as f64 / start.elapsed().as_secs_f64());
        found.redis[1] = Cpu::of(redis.pid()).since(&spent).secs * 1e6 / commits as f64;
        found.groups[1] = commits as f64 / measured.len() as f64;
    }
    Ok(found)
}

/// The groups that make the documents, about, and those after them.
fn warm(recorded: &[Vec<u8>], docs: u64) -> (&[Vec<u8>], &[Vec<u8>]) {
    let groups = usize::try_from(docs / GROUP + 1).expect("few");
    recorded.split_at(groups.min(recorded.len() / 2))
}

/// Groups that were committed: each publishes once.
fn commit_calls(redis: &redis_server::Server) -> Result<u64> {
    let stats = redis.info("commandstats", "cmdstat_publish");
    let calls = stats
        .strip_prefix("calls=")
        .and_then(|rest| rest.split(',').next()?.parse().ok());
    calls.ok_or_else(|| Void(format!("no count of publishes: {stats}")))
}

/// How long a write takes to be seen, ms, sorted: on the node that it was sent to, on another, and the bare command until
/// its message comes.
struct Delays {
    near: Vec<f64>,
    far: Vec<f64>,
    bare: Vec<f64>,
}

impl Delays {
    fn notes(&self) -> Vec<String> {
        let show = |of: &[f64]| format!("{:.2} / {:.2}", percentile(of, 50), percentile(of, 99));
        vec![format!(
            "a write is seen, ms, median / p99: on the same node {}, on another {}, the command bare {}",
            show(&self.near),
            show(&self.far),
            show(&self.bare),
        )]
    }
}

/// The one that so many in a hundred are not above.
fn percentile(sorted: &[f64], percent: usize) -> f64 {
    sorted[(sorted.len() * percent).div_ceil(100).max(1) - 1]
}

/// Redis and two gateways on one core, who writes and who watches on the other.
fn delays(place: &Place, scale: &Scale) -> Result<Delays> {
    let redis = redis(place);
    let (commits, addr) = Commits::before(redis.addr())?;
    // Once through one who keeps what is said; those times do not count.
    {
        let server = gateway(place, &format!("redis://{addr}/"))?;
        let mut writer = Writer::join(&server)?;
        (0..scale.attacked).try_for_each(|_| writer.write().map(|_| ()))?;
    }
    let commands = commits.take();
    let mut found = Delays {
        near: vec![],
        far: vec![],
        bare: vec![],
    };
    for _ in 0..scale.rounds {
        redis.command(&["FLUSHALL"]);
        round(place, &redis, scale.attacked, &mut found)?;
        redis.command(&["FLUSHALL"]);
        bare(&redis, &commands, &mut found.bare)?;
    }
    for all in [&mut found.near, &mut found.far, &mut found.bare] {
        all.sort_by(f64::total_cmp);
    }
    Ok(found)
}

const SPACE: &str = "seen";

/// A connection that writes, each mutation answered before the next.
struct Writer {
    swarm: Swarm,
    author: Author,
    next: Instant,
}

impl Writer {
    fn join(server: &Server) -> Result<Self> {
        let mut swarm = Swarm::new(To::Gateway, server.addr)?;
        let conn = swarm.join(&[Role::Writer])?;
        Ok(Self {
            swarm,
            author: Author::new(conn, 1, SPACE),
            next: Instant::now(),
        })
    }

    /// Writes at its pace, and says when it did.
    fn write(&mut self) -> Result<Instant> {
        self.swarm.wait(self.next)?;
        let (sent, acks) = (Instant::now(), self.swarm.acks);
        self.next = sent + PACE;
        self.author.write(&mut self.swarm)?;
        self.swarm.until("an ack", |swarm| swarm.acks > acks)?;
        Ok(sent)
    }
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

fn round(place: &Place, redis: &redis_server::Server, writes: u64, found: &mut Delays) -> Result<()> {
    let (one, two) = (gateway(place, &redis.url())?, gateway(place, &redis.url())?);
    let (seen, arrivals) = mpsc::channel();
    for (is_far, server) in [(false, &one), (true, &two)] {
        let mut conn = Conn::greeted(server.addr)?;
        conn.follow(SPACE)?;
        let seen = seen.clone();
        // It ends with its gateway.
        std::thread::spawn(move || {
            let mut scratch = vec![0; 4 << 10];
            while conn
                .more(&mut scratch, |seq| {
                    // Nobody may wait any more.
                    let _ = seen.send((is_far, seq, Instant::now()));
                })
                .is_ok()
            {}
        });
    }
    let mut writer = Writer::join(&one)?;
    let mut sent = vec![];
    for _ in 0..writes {
        sent.push(writer.write()?);
    }
    for _ in 0..2 * writes {
        let arrival = arrivals.recv_timeout(PATIENCE);
        let (is_far, seq, at) = arrival.map_err(|_| Void("a change was not seen".into()))?;
        let took = ms(at - sent[usize::try_from(seq - 1).expect("few")]);
        if is_far { &mut found.far } else { &mut found.near }.push(took);
    }
    Ok(())
}

/// The same commands, each when the message of the one before has come.
fn bare(redis: &redis_server::Server, commands: &[Vec<u8>], took: &mut Vec<f64>) -> Result<()> {
    let failed = |error: redis::RedisError| Void(error.to_string());
    let (mut connection, mut bus) = (redis.connection(), redis.connection());
    let mut bus = bus.as_pubsub();
    bus.psubscribe("*").map_err(failed)?;
    let mut next = Instant::now();
    for command in commands {
        #[expect(clippy::disallowed_methods, reason = "the bench's own thread")]
        std::thread::sleep(next.saturating_duration_since(Instant::now()));
        let sent = Instant::now();
        next = sent + PACE;
        redis::ConnectionLike::req_packed_command(&mut connection, command).map_err(failed)?;
        bus.get_message().map_err(failed)?;
        took.push(ms(sent.elapsed()));
    }
    Ok(())
}
