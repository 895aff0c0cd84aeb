//! `doctor`: what of a Redis server's settings would lose data.

use super::args::DoctorArgs;
use super::{Failure, operate};
use crate::store::redis::Level;
use std::io::Write;

/// Prints every finding; fails if the gateway would not serve with one.
pub(super) fn main(args: &DoctorArgs, out: &mut impl Write) -> Result<(), Failure> {
    let store = operate::on_redis(&args.redis, &args.tls)?;
    let runtime = super::runtime()?;
    let findings = runtime.block_on(store.doctor()).map_err(|e| e.to_string())?;
    for finding in &findings {
        writeln!(out, "{finding}")?;
    }
    match findings.iter().filter(|finding| finding.level == Level::Wrong).count() {
        0 => Ok(()),
        1 => Err("the gateway does not serve with one of these".into()),
        n => Err(format!("the gateway does not serve with {n} of these").into()),
    }
}
