//! The binary under test: a gateway in a folder of its own, and commands against it.
#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Read as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// The executable.
pub(crate) const TIDEGATE: &str = env!("CARGO_BIN_EXE_tidegate");
/// How long anything may take before a test gives up on it.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// The repository's root.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace")
}

/// A gateway in dev mode on a free port, stopped when dropped.
pub(crate) struct Gateway {
    process: Process,
    /// Where it is, as it says itself.
    pub url: String,
    /// What it said at the start.
    pub greeting: String,
    data: PathBuf,
    folder: tempfile::TempDir,
}

impl Gateway {
    /// Starts one with an empty store.
    pub(crate) fn start() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let data = folder.path().join("data");
        Self::at(data, folder)
    }

    /// Starts one on a store that is there.
    pub(crate) fn on(data: &Path) -> Self {
        Self::at(data.to_owned(), tempfile::tempdir().expect("a folder"))
    }

    fn at(data: PathBuf, folder: tempfile::TempDir) -> Self {
        let (process, greeting) = serve(&data, &["--listen", "127.0.0.1:0"]);
        let url = greeting
            .split_whitespace()
            .find(|word| word.starts_with("ws://"))
            .expect("a URL")
            .to_owned();
        Self {
            process,
            url,
            greeting,
            data,
            folder,
        }
    }

    /// A folder that goes with the gateway.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Where commands keep their client ids.
    pub(crate) fn state(&self) -> PathBuf {
        self.folder.path().join("state")
    }

    /// A command against this gateway.
    pub(crate) fn command(&self, args: &[&str]) -> Command {
        self.command_at(&self.url, args)
    }

    /// A command against another URL, with this gateway's folder for its state.
    pub(crate) fn command_at(&self, url: &str, args: &[&str]) -> Command {
        let mut command = tidegate(args);
        command.env("TIDEGATE_URL", url).env("XDG_STATE_HOME", self.state());
        command
    }

    /// Runs a command; it must succeed. Returns what it printed.
    pub(crate) fn run(&self, args: &[&str]) -> String {
        let output = self.command(args).output().expect("it runs");
        assert!(output.status.success(), "{args:?}: {}", text(&output.stderr));
        text(&output.stdout)
    }

    /// Runs a command; it must fail with status 1. Returns what it complained.
    pub(crate) fn fail(&self, args: &[&str]) -> String {
        let output = self.command(args).output().expect("it runs");
        assert_eq!(output.status.code(), Some(1), "{args:?}: {}", text(&output.stdout));
        text(&output.stderr)
    }

    /// The process.
    pub(crate) fn pid(&self) -> u32 {
        self.process.0.id()
    }

    /// Tells it to stop, and waits until it has.
    pub(crate) fn stop(&mut self) {
        self.process.terminate();
    }

    /// Ends it without a word.
    pub(crate) fn kill(&mut self) {
        self.process.0.kill().expect("killed");
        self.process.0.wait().expect("it ends");
    }

    /// Tells it to stop, waits until it has, and starts it again on the same port with the same store.
    pub(crate) fn restart(&mut self) {
        self.process.terminate();
        self.start_again();
    }

    /// As `restart`, with an empty store.
    pub(crate) fn wipe(&mut self) {
        self.process.terminate();
        fs::remove_dir_all(self.data()).expect("removed");
        self.start_again();
    }

    fn start_again(&mut self) {
        let listen = self.url.strip_prefix("ws://").expect("a plain URL");
        (self.process, self.greeting) = serve(&self.data(), &["--listen", listen]);
    }

    /// Where it keeps its files.
    pub(crate) fn data(&self) -> PathBuf {
        self.data.clone()
    }
}

fn serve(data: &Path, args: &[&str]) -> (Process, String) {
    let on = ["--data-dir", data.to_str().expect("a plain path")];
    start(&data.with_extension("log"), &[&on, args].concat())
}

/// Starts a gateway in dev mode; returns what it says once it listens. Its log goes to a file.
pub(crate) fn start(log: &Path, args: &[&str]) -> (Process, String) {
    let file = File::options().create(true).append(true).open(log).expect("a log");
    let mut command = tidegate(&["serve", "--dev"]);
    let mut child = command
        .args(args)
        .stdout(Stdio::piped())
        .stderr(file)
        .spawn()
        .expect("it starts");
    let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
    let mut greeting = String::new();
    while !greeting.contains("Ctrl-C") {
        let Some(line) = lines.next() else {
            panic!(
                "the gateway did not start: {}",
                fs::read_to_string(log).unwrap_or_default()
            );
        };
        greeting.push_str(&line.expect("text"));
        greeting.push('\n');
    }
    (Process(child), greeting)
}

/// A command with nothing of this machine's settings.
pub(crate) fn tidegate(args: &[&str]) -> Command {
    let mut command = Command::new(TIDEGATE);
    plain(&mut command).args(args).stdin(Stdio::null());
    command
}

/// Takes this machine's settings, and those of the tests, out of a command's environment.
#[allow(clippy::disallowed_methods, reason = "a test has no command line")]
pub(crate) fn plain(command: &mut Command) -> &mut Command {
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("TIDEGATE_") {
            command.env_remove(name);
        }
    }
    command.env_remove("NO_COLOR").env_remove("XDG_STATE_HOME")
}

/// Bytes as text.
pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// What a command said on both ends.
pub(crate) fn said(output: &Output) -> String {
    text(&output.stdout) + &text(&output.stderr)
}

/// A process that ends when dropped.
pub(crate) struct Process(pub Child);

impl Process {
    /// Asks it to stop, and waits until it has.
    pub(crate) fn terminate(&mut self) {
        let asked = Command::new("bash")
            .args(["-c", &format!("kill {}", self.0.id())])
            .status()
            .expect("bash runs");
        assert!(asked.success());
        let status = self.0.wait().expect("it ends");
        assert!(status.success(), "a gateway that is told to stop ends well: {status}");
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A command that goes on, with what it has printed so far in a file.
pub(crate) struct Running {
    _process: Process,
    printed: PathBuf,
}

impl Running {
    /// Starts it.
    pub(crate) fn start(mut command: Command, printed: PathBuf) -> Self {
        let file = File::create(&printed).expect("a file");
        let process = Process(command.stdout(file).spawn().expect("it starts"));
        Self {
            _process: process,
            printed,
        }
    }

    /// What it has printed.
    pub(crate) fn printed(&self) -> String {
        let mut all = String::new();
        File::open(&self.printed)
            .and_then(|mut file| file.read_to_string(&mut all))
            .expect("readable");
        all
    }

    /// Waits until what it has printed satisfies `enough`, and returns it.
    pub(crate) fn wait_for(&self, enough: impl Fn(&str) -> bool) -> String {
        let mut printed = String::new();
        until("the output", || {
            printed = self.printed();
            enough(&printed)
        });
        printed
    }
}

/// Waits until `done`.
pub(crate) fn until(what: &str, mut done: impl FnMut() -> bool) {
    let started = Instant::now();
    while !done() {
        assert!(started.elapsed() < PATIENCE, "{what}: not within {PATIENCE:?}");
        #[expect(clippy::disallowed_methods, reason = "a test's own thread")]
        std::thread::sleep(Duration::from_millis(10));
    }
}
