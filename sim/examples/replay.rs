//! Replays the history of a seed, and tells it line by line: `make sim SEED=n`.

use std::io::{self, Write};
use std::process::ExitCode;

fn main() -> io::Result<ExitCode> {
    let mut out = io::stdout().lock();
    let Some(seed) = std::env::args().nth(1).and_then(|seed| seed.parse().ok()) else {
        writeln!(out, "which seed? make sim SEED=n")?;
        return Ok(ExitCode::FAILURE);
    };
    let outcome = sim::Simulator::new().run(seed, true);
    for line in &outcome.story {
        writeln!(out, "{line}")?;
    }
    writeln!(
        out,
        "\nseed {seed}, digest {:016x}, {:?}",
        outcome.digest, outcome.counts
    )?;
    match outcome.failure {
        None => {
            writeln!(out, "nothing is wrong")?;
            Ok(ExitCode::SUCCESS)
        }
        Some(failure) => {
            writeln!(out, "WRONG:\n{failure}")?;
            Ok(ExitCode::FAILURE)
        }
    }
}
