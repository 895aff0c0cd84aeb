//! Commands for who runs a gateway: they work on a data directory, not on a URL.

use super::Failure;
use super::args::DataArgs;
use crate::store::embedded;
use std::io::Write;
use std::time::Instant;

/// Checks a stopped store.
pub(crate) fn check(args: &DataArgs, out: &mut impl Write) -> Result<(), Failure> {
    let started = Instant::now();
    let mut written = Ok(());
    let checked = embedded::check(&args.data_dir, &mut |violation| {
        if written.is_ok() {
            written = writeln!(out, "{violation}");
        }
    });
    let checked = checked.map_err(|error| error.to_string())?;
    written?;
    writeln!(
        out,
        "{} records looked at in {:.1} s: {} spaces, {} documents",
        checked.records,
        started.elapsed().as_secs_f64(),
        checked.spaces,
        checked.docs
    )?;
    match checked.violations {
        0 => Ok(()),
        n => Err(format!("{}: {n} things are wrong", args.data_dir.display()).into()),
    }
}
