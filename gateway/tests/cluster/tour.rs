//! `make cluster`.

use crate::cli::{TIDEGATE, root, said};
use std::process::Command;

#[test]
fn the_tour_that_make_cluster_prints_can_be_taken() {
    let mut command = Command::new(root().join("scripts/cluster.sh"));
    let output = crate::cli::plain(&mut command)
        .arg("--tour")
        .env("BIN", TIDEGATE)
        .output();
    let output = output.expect("it runs");
    assert!(output.status.success(), "{}", said(&output));
    assert!(said(&output).contains("The tour is over"), "{}", said(&output));
}
