//! What a connection costs: to come to be, and to be there.

use crate::Scale;
use crate::child::{Durability, Place, Server};
use crate::client::{Result, Role, Swarm, To, Void, encode};
use crate::fan_out::spread;
use crate::report::{Bound, Report, Row, median};
use std::time::{Duration, Instant};
use tidegate_protocol::ClientMessage;

/// Connections that come and go first, so that what is set up once is there.
const WARM: usize = 50;
/// Every client pings within this time.
const PING: Duration = Duration::from_secs(45);

/// So many subscribers, each of a space of its own.
fn own(prefix: &str, from: usize, count: usize) -> Vec<Role> {
    (from..from + count)
        .map(|i| Role::Subscriber(format!("{prefix}-{i}")))
        .collect()
}

/// A gateway, and clients that are not there yet.
fn warm(place: &Place) -> Result<(Server, Swarm)> {
    let server = Server::gateway(place, Durability::Memory);
    let mut swarm = Swarm::new(To::Gateway, server.addr)?;
    swarm.join(&own("warm", 0, WARM))?;
    gone(&server, &mut swarm)?;
    Ok((server, swarm))
}

/// Ends all connections, and waits until the gateway has seen that.
fn gone(server: &Server, swarm: &mut Swarm) -> Result<()> {
    swarm.clear();
    for _ in 0..200 {
        if server.metric("tidegate_connections") == 0 {
            return Ok(());
        }
        swarm.wait(Instant::now() + Duration::from_millis(50))?;
    }
    Err(Void(
        "connections that were closed ten seconds ago are still open".into(),
    ))
}

pub(crate) fn connect(place: &Place, scale: &Scale, report: &mut Report) {
    let found = run_connect(place, scale);
    let note = found.as_ref().ok().map(|rounds| spread("connect", rounds));
    report.row(Row {
        id: "5",
        measure: "connect + hello + subscribe: CPU".into(),
        unit: "µs",
        reach: Bound::AtMost(200.0),
        aim: Some(90.0),
        figure: found.map(median),
    });
    if let Some(note) = note {
        report.note(note);
    }
}

/// Microseconds a connection, by round.
#[allow(clippy::cast_precision_loss, reason = "a thousand")]
fn run_connect(place: &Place, scale: &Scale) -> Result<Vec<f64>> {
    let (server, mut swarm) = warm(place)?;
    let mut rounds = vec![];
    for round in 0..scale.rounds {
        let before = server.cpu();
        swarm.join(&own("connect", round * scale.connects, scale.connects))?;
        let spent = server.cpu().since(&before);
        rounds.push(spent.secs * 1e6 / scale.connects as f64);
        let there = server.metric("tidegate_connections");
        if there != scale.connects as u64 {
            return Err(Void(format!("{there} connections are open, not {}", scale.connects)));
        }
        gone(&server, &mut swarm)?;
    }
    Ok(rounds)
}

pub(crate) fn idle(place: &Place, scale: &Scale, report: &mut Report) {
    let found = run_idle(place, scale);
    let note = found.as_ref().ok().map(|(_, note)| note.clone());
    report.row(Row {
        id: "4",
        measure: format!(
            "RSS a connection, {} idle ones, after {} s with pings",
            scale.idle, scale.idle_secs
        ),
        unit: "B",
        reach: Bound::AtMost(4_000.0),
        aim: Some(1_500.0),
        figure: found.map(|(bytes, _)| bytes),
    });
    if let Some(note) = note {
        report.note(note);
    }
}

#[allow(clippy::cast_precision_loss, reason = "less than 2^53")]
fn run_idle(place: &Place, scale: &Scale) -> Result<(f64, String)> {
    let (server, mut swarm) = warm(place)?;
    let before = server.rss();
    swarm.join(&own("idle", 0, scale.idle))?;
    let cpu = server.cpu();
    idling(&mut swarm, Duration::from_secs(scale.idle_secs))?;
    let spent = server.cpu().since(&cpu);
    let a_connection = (server.rss() as f64 - before as f64) / scale.idle as f64;
    let note = format!(
        "idle: {:.1} µs of CPU a connection in {} s, with one ping and its share of all that runs by the clock",
        spent.secs * 1e6 / scale.idle as f64,
        scale.idle_secs
    );
    Ok((a_connection, note))
}

/// Lets all connections be for so long; each pings once.
fn idling(swarm: &mut Swarm, time: Duration) -> Result<()> {
    let start = Instant::now();
    let (count, before) = (u32::try_from(swarm.len()).expect("few"), swarm.pongs);
    let ping = encode(&ClientMessage::Ping { at: 1 });
    for i in 0..count {
        swarm.wait(start + time.min(PING) * i / count)?;
        swarm.send(usize::try_from(i).expect("an index"), &ping)?;
    }
    swarm.wait(start + time)?;
    swarm.until("all pongs", |swarm| swarm.pongs == before + u64::from(count))
}

/// Bytes of memory a connection at each of the counts, and what idled.
#[allow(clippy::cast_precision_loss, reason = "less than 2^53")]
pub(crate) fn memory(place: &Place, scale: &Scale) -> Result<[f64; 2]> {
    let (server, mut swarm) = warm(place)?;
    let before = server.rss() as f64;
    let mut found = [0.0; 2];
    for (found, count) in found.iter_mut().zip(scale.memory) {
        let there = swarm.len();
        swarm.join(&own("memory", there, count - there))?;
        idling(&mut swarm, Duration::from_secs(scale.settle_secs))?;
        *found = (server.rss() as f64 - before) / count as f64;
    }
    Ok(found)
}
