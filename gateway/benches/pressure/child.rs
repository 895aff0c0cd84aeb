//! The two servers under measurement, each a process of its own on one core: the gateway (the `tidegate` binary,
//! run by `serve` as anybody would), and the limit (this bench again, see `limit`).

use rustix::process::{Pid, Signal};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use tempfile::TempDir;

/// The argument by which this bench runs as the limit.
pub(crate) const AS_LIMIT: &str = "--as-limit";

/// Which core is whose, where there are two; and what a gateway is run by, if not as it is.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    servers: CpuSet,
    client: CpuSet,
    /// For the report.
    pub(crate) names: Option<(usize, usize)>,
    /// A profiler and its options.
    under: Vec<String>,
}

impl Place {
    /// Takes the first two cores that this process may use, and moves it to the second.
    pub(crate) fn take(under: Vec<String>) -> io::Result<Self> {
        let all = sched_getaffinity(None)?;
        let mut free = (0..CpuSet::MAX_CPU).filter(|&core| all.is_set(core));
        let (Some(first), Some(second)) = (free.next(), free.next()) else {
            return Ok(Self {
                servers: all,
                client: all,
                names: None,
                under,
            });
        };
        let only = |core| {
            let mut set = CpuSet::new();
            set.set(core);
            set
        };
        let place = Self {
            servers: only(first),
            client: only(second),
            names: Some((first, second)),
            under,
        };
        sched_setaffinity(None, &place.client)?;
        Ok(place)
    }

    /// Starts a process on the servers' core: it inherits the core of the thread that starts it.
    fn spawn(&self, command: &mut Command) -> io::Result<Child> {
        self.on_servers(|| command.spawn())
    }

    /// Does something on the servers' core.
    pub(crate) fn on_servers<T>(&self, start: impl FnOnce() -> T) -> T {
        sched_setaffinity(None, &self.servers).expect("a core of ours");
        let started = start();
        sched_setaffinity(None, &self.client).expect("a core of ours");
        started
    }

    /// The same, but that servers are started on the client's core.
    pub(crate) fn together(&self) -> Self {
        Self {
            servers: self.client,
            ..self.clone()
        }
    }
}

/// A server in a process of its own; ended when dropped.
pub(crate) struct Server {
    child: Child,
    /// Where it listens.
    pub(crate) addr: SocketAddr,
    /// Its data and its log.
    folder: Option<TempDir>,
    /// It has to end by itself, so that the profile is written.
    profiled: bool,
}

/// What an ack of the gateway means.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Durability {
    /// Handed to the system.
    Memory,
    /// On disk.
    Fsync,
}

impl Durability {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Fsync => "fsync",
        }
    }
}

impl Server {
    /// A gateway on an empty store.
    pub(crate) fn gateway(place: &Place, durability: Durability) -> Self {
        Self::gateway_with(place, &format!("durability = {:?}\n", durability.name()))
    }

    /// A gateway with a configuration file that says so.
    pub(crate) fn gateway_with(place: &Place, settings: &str) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let config = folder.path().join("tidegate.toml");
        fs::write(&config, settings).expect("a file");
        let log = File::create(folder.path().join("log")).expect("a file");
        let mut words = place
            .under
            .iter()
            .map(String::as_str)
            .chain([env!("CARGO_BIN_EXE_tidegate")]);
        let mut command = Command::new(words.next().expect("the gateway's at least"));
        command
            .args(words)
            .args(["serve", "--dev", "--listen", "127.0.0.1:0", "--config"])
            .arg(config)
            .arg("--data-dir")
            .arg(folder.path().join("data"))
            .stderr(log);
        Self::start(place, command, Some(folder), !place.under.is_empty())
    }

    /// The limit.
    pub(crate) fn limit(place: &Place) -> Self {
        let mut command = Command::new(std::env::current_exe().expect("this executable"));
        command.arg(AS_LIMIT);
        Self::start(place, command, None, false)
    }

    /// Starts it, and waits for the line in which it says where it listens.
    fn start(place: &Place, mut command: Command, folder: Option<TempDir>, profiled: bool) -> Self {
        let mut child = place
            .spawn(command.stdin(Stdio::piped()).stdout(Stdio::piped()))
            .expect("started");
        let mut first = String::new();
        let mut out = BufReader::new(child.stdout.take().expect("piped"));
        out.read_line(&mut first).expect("read");
        let Some(addr) = first
            .trim_end()
            .rsplit_once("ws://")
            .and_then(|(_, addr)| addr.parse().ok())
        else {
            let log = folder.map(|folder| fs::read_to_string(folder.path().join("log")));
            panic!("it did not start: {first:?} {log:?}");
        };
        Self {
            child,
            addr,
            folder,
            profiled,
        }
    }

    /// What its threads have had of a core so far.
    pub(crate) fn cpu(&self) -> Cpu {
        Cpu::of(self.child.id())
    }

    /// Whether it says that it is ready.
    pub(crate) fn is_ready(&self) -> bool {
        self.answer("/readyz").starts_with("HTTP/1.1 200")
    }

    /// Bytes of memory that it has resident.
    pub(crate) fn rss(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).expect("it lives");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok());
        kib.expect("kB") * 1024
    }

    /// The sum of a metric's values, over its labels. One that has labels is not there before it has moved.
    pub(crate) fn metric(&self, name: &str) -> u64 {
        let text = self.get("/metrics");
        let values = text.lines().filter_map(|line| {
            let (named, value) = line.rsplit_once(' ')?;
            (named.split('{').next() == Some(name)).then(|| value.parse::<u64>().expect("a number"))
        });
        values.sum()
    }

    fn get(&self, path: &str) -> String {
        let text = self.answer(path);
        assert!(text.starts_with("HTTP/1.1 200"), "{text}");
        text
    }

    fn answer(&self, path: &str) -> String {
        let mut socket = TcpStream::connect(self.addr).expect("connected");
        socket
            .set_read_timeout(Some(Duration::from_secs(20)))
            .expect("a socket");
        write!(
            socket,
            "GET {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n",
            self.addr
        )
        .expect("sent");
        let mut text = String::new();
        socket.read_to_string(&mut text).expect("an answer");
        text
    }

    /// The end of its log.
    pub(crate) fn log(&self) -> String {
        let log = self.folder.as_ref().map(|folder| folder.path().join("log"));
        let text = log.and_then(|log| fs::read_to_string(log).ok()).unwrap_or_default();
        let lines: Vec<_> = text
            .lines()
            .filter(|line| line.contains("WARN") || line.contains("ERROR"))
            .collect();
        lines[lines.len().saturating_sub(5)..].join("\n")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may be gone already.
        if self.profiled {
            let pid = Pid::from_child(&self.child);
            let _ = rustix::process::kill_process(pid, Signal::TERM);
        } else {
            let _ = self.child.kill();
        }
        let _ = self.child.wait();
    }
}

/// A reading of a process's CPU time.
#[derive(Clone, Debug)]
pub(crate) struct Cpu {
    /// Nanoseconds and names by thread.
    threads: BTreeMap<u64, (u64, String)>,
    /// Ticks in user code, which the kernel samples: only their share is used.
    user: u64,
    /// Ticks in the kernel.
    system: u64,
}

/// CPU time between two readings.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct Spent {
    /// All of it, in seconds.
    pub(crate) secs: f64,
    user: u64,
    system: u64,
}

impl Cpu {
    /// What the threads of a process have had of a core so far.
    pub(crate) fn of(pid: u32) -> Self {
        let mut threads = BTreeMap::new();
        for thread in fs::read_dir(format!("/proc/{pid}/task")).expect("it lives") {
            let path = thread.expect("listed").path();
            let Some(id) = path.file_name().and_then(|id| id.to_str()?.parse().ok()) else {
                continue;
            };
            // A thread that ended meanwhile has done nothing for seconds.
            let Ok(stat) = fs::read_to_string(path.join("schedstat")) else {
                continue;
            };
            let ns = stat.split_ascii_whitespace().next().and_then(|ns| ns.parse().ok());
            let name = fs::read_to_string(path.join("comm")).unwrap_or_default();
            threads.insert(id, (ns.expect("nanoseconds"), name.trim_end().to_owned()));
        }
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("it lives");
        // The name, in brackets, may hold spaces.
        let fields = stat.rsplit_once(')').expect("a name").1;
        let mut times = fields
            .split_ascii_whitespace()
            .skip(11)
            .map(|n| n.parse().expect("ticks"));
        Self {
            threads,
            user: times.next().expect("utime"),
            system: times.next().expect("stime"),
        }
    }

    /// What was spent from `before` to this reading. A thread that has ended in between is left out: the gateway's end
    /// after ten idle seconds.
    pub(crate) fn since(&self, before: &Self) -> Spent {
        Spent {
            secs: self.by_name(before).values().sum(),
            user: self.user - before.user,
            system: self.system - before.system,
        }
    }

    /// The same in seconds by the threads' names.
    pub(crate) fn by_name(&self, before: &Self) -> BTreeMap<&str, f64> {
        let mut all = BTreeMap::new();
        for (id, (ns, name)) in &self.threads {
            let ns = ns - before.threads.get(id).map_or(0, |(ns, _)| *ns);
            *all.entry(name.as_str()).or_insert(0.0) += Duration::from_nanos(ns).as_secs_f64();
        }
        all
    }
}

impl Spent {
    /// The part of it spent in user code, in seconds.
    #[allow(clippy::cast_precision_loss, reason = "ticks of a few minutes")]
    pub(crate) fn user_secs(self) -> f64 {
        let ticks = (self.user + self.system).max(1);
        self.secs * self.user as f64 / ticks as f64
    }
}

impl std::ops::AddAssign for Spent {
    fn add_assign(&mut self, other: Self) {
        self.secs += other.secs;
        self.user += other.user;
        self.system += other.system;
    }
}
