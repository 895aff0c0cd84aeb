//! The commands for who runs a gateway, against the real one and its files.

#[path = "support/cli.rs"]
mod cli;

use cli::{Gateway, said, text, tidegate};
use std::path::Path;
use std::process::Output;

/// Runs a command on a data directory.
fn on(data: &Path, args: &[&str]) -> Output {
    let data = data.to_str().expect("a plain path");
    tidegate(args).args(["--data-dir", data]).output().expect("it runs")
}

/// As `on`; it must fail with status 1. Returns what it complained.
fn refused(data: &Path, args: &[&str]) -> String {
    let output = on(data, args);
    assert_eq!(output.status.code(), Some(1), "{args:?}: {}", said(&output));
    text(&output.stderr)
}

#[test]
fn check_reads_a_stopped_store_and_refuses_one_in_use() {
    let mut gateway = Gateway::start();
    gateway.run(&["set", "demo", "notes/n1", "a=1", "b.c=2"]);
    gateway.run(&["unset", "demo", "notes/n1", "b"]);
    gateway.run(&["delete", "demo", "notes/n1"]);
    let data = gateway.data();
    let error = refused(&data, &["check"]);
    assert!(error.contains("in use") && error.contains("LOCK"), "{error}");
    gateway.stop();
    let output = on(&data, &["check"]);
    assert!(output.status.success(), "{}", said(&output));
    assert!(
        text(&output.stdout).contains("1 spaces, 1 documents"),
        "{}",
        said(&output)
    );
}

#[test]
fn check_names_what_is_no_store_and_makes_none() {
    let folder = tempfile::tempdir().expect("a folder");
    let data = folder.path().join("nowhere");
    let error = refused(&data, &["check"]);
    assert!(error.contains("no store in") && error.contains("nowhere"), "{error}");
    assert!(!data.exists());
}
