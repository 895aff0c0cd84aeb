//! `doctor`: what of a Redis server's settings would lose data.

use super::Failure;
use super::args::DoctorArgs;
use crate::metrics::{Metrics, RedisMetrics};
use crate::store::Retention;
use crate::store::redis::{Level, RedisConfig, RedisStore};
use std::io::Write;

/// Prints every finding; fails if the gateway would not serve with one.
pub(super) fn main(args: &DoctorArgs, out: &mut impl Write) -> Result<(), Failure> {
    let metrics = RedisMetrics::new(&Metrics::default());
    let store = RedisStore::new(&args.redis, RedisConfig::default(), Retention::default(), metrics);
    let store = store.map_err(|e| e.to_string())?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| format!("cannot start: {e}"))?;
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
