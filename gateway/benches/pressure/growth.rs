//! Whether a thing costs the same where there are many.

use crate::Scale;
use crate::author::Author;
use crate::child::{Durability, Place, Server};
use crate::client::{Result, Role, Swarm, To};
use crate::fan_out::Side;
use crate::report::{Bound, Report, Row, median};
use crate::stand;
use std::time::Duration;

const FEW: usize = 10;

pub(crate) fn growth(place: &Place, scale: &Scale, report: &mut Report) {
    let mut row = |id, measure: String, figure: Result<(f64, String)>| {
        let note = figure.as_ref().ok().map(|(_, note)| note.clone());
        report.row(Row {
            id,
            measure,
            unit: "",
            reach: Bound::AtMost(1.25),
            aim: Some(1.1),
            figure: figure.map(|(figure, _)| figure),
        });
        if let Some(note) = note {
            report.note(note);
        }
    };
    let figure = deliveries(place, scale);
    row(
        "9a",
        format!("growth a delivery, {FEW} → {} subscribers", scale.many),
        figure,
    );
    let figure = spaces(place, scale);
    row("9b", format!("growth a write, 1 → {} spaces", scale.spaces), figure);
    let [few, many] = scale.memory;
    let figure = stand::memory(place, scale).map(|[at_few, at_many]| {
        let note = format!("memory a connection: {at_few:.0} bytes at {few}, {at_many:.0} at {many}");
        (at_many / at_few, note)
    });
    row("9c", format!("growth of memory a connection, {few} → {many}"), figure);
}

/// What one more delivery costs: the difference to a commit with one subscriber, so that what a commit costs is not in it.
fn deliveries(place: &Place, scale: &Scale) -> Result<(f64, String)> {
    let mut found = [[0.0; 2]; 2];
    for (to, found) in [To::Gateway, To::Limit].into_iter().zip(&mut found) {
        let mut one = Side::new(place, to, 1)?;
        let mut few = Side::new(place, to, 1 + FEW)?;
        let mut many = Side::new(place, to, 1 + scale.many)?;
        let (mut at_few, mut at_many) = (vec![], vec![]);
        for _ in 0..scale.rounds {
            let quick = Duration::from_millis(5);
            let base = a_commit(&mut one, quick, scale.few_commits)?;
            at_few.push((a_commit(&mut few, quick, scale.few_commits)? - base) / FEW as f64);
            let slow = Duration::from_millis(300);
            at_many.push((a_commit(&mut many, slow, scale.many_commits)? - base) / scale.many as f64);
        }
        for side in [one, few, many] {
            side.check()?;
        }
        *found = [median(at_few), median(at_many)];
    }
    let [[few, many], [least_few, least_many]] = found;
    let note = format!(
        "a delivery: {few:.2} µs of {FEW}, {many:.2} of {} ({:.2} times); the limit's {least_few:.2} and {least_many:.2} ({:.2} times)",
        scale.many,
        many / few,
        least_many / least_few
    );
    Ok((many / few, note))
}

/// Microseconds of CPU a commit.
#[allow(clippy::cast_precision_loss, reason = "some hundreds")]
fn a_commit(side: &mut Side, every: Duration, commits: u64) -> Result<f64> {
    Ok(side.paced(every, commits)?.secs * 1e6 / commits as f64)
}

/// One write at a time, so that no group forms: always in one space, and in each of many in turn.
#[allow(clippy::cast_precision_loss, reason = "some thousands")]
fn spaces(place: &Place, scale: &Scale) -> Result<(f64, String)> {
    let server = Server::gateway(place, Durability::Memory);
    let mut swarm = Swarm::new(To::Gateway, server.addr)?;
    let writer = swarm.join(&[Role::Writer])?;
    let mut authors: Vec<_> = (0..=scale.spaces)
        .map(|i| Author::new(writer, 1, &format!("growth-{i}")))
        .collect();
    let mut write = |author: &mut Author| {
        let before = swarm.acks;
        author.write(&mut swarm)?;
        swarm.until("an ack", |swarm| swarm.acks > before)
    };
    for author in &mut authors {
        write(author)?;
    }
    let (one, many) = authors.split_first_mut().expect("one at least");
    let (mut ratios, mut a_write) = (vec![], [0.0; 2]);
    for _ in 0..scale.rounds.min(3) {
        let before = server.cpu();
        for _ in 0..many.len() {
            write(one)?;
        }
        let between = server.cpu();
        for author in &mut *many {
            write(author)?;
        }
        let spent = [between.since(&before), server.cpu().since(&between)];
        a_write = spent.map(|spent| spent.secs * 1e6 / many.len() as f64);
        ratios.push(a_write[1] / a_write[0]);
    }
    let note = format!(
        "a write, one at a time: {:.0} µs in one space, {:.0} in {} in turn",
        a_write[0], a_write[1], scale.spaces
    );
    Ok((median(ratios), note))
}
