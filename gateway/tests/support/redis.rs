//! A `redis-server` of a test's own, on a free port, its files in a temporary folder.

use redis::ConnectionLike as _;
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Sends a signal to a process.
pub(crate) fn signal(pid: u32, signal: &str) {
    let sent = Command::new("bash")
        .args(["-c", &format!("kill -{signal} {pid}")])
        .status();
    assert!(sent.expect("bash").success());
}

/// A server, and what it was started with.
pub(crate) struct Server {
    dir: tempfile::TempDir,
    port: u16,
    /// Where it speaks TLS, if it does.
    tls_port: Option<u16>,
    options: Vec<String>,
    child: Option<Child>,
}

impl Server {
    /// An empty one. `options` as on its command line: `--appendonly`, `yes`.
    pub(crate) fn start(options: &[&str]) -> Self {
        Self::start_with(None, options)
    }

    /// As `start`, one that speaks TLS on a port of its own, too.
    pub(crate) fn start_secure(options: &[&str]) -> Self {
        Self::start_with(Some(0), options)
    }

    fn start_with(tls_port: Option<u16>, options: &[&str]) -> Self {
        let mut server = Self {
            dir: tempfile::tempdir().expect("a folder"),
            port: 0,
            tls_port,
            options: options.iter().map(|option| (*option).to_owned()).collect(),
            child: None,
        };
        server.run();
        server
    }

    /// The process.
    pub(crate) fn pid(&self) -> u32 {
        self.child.as_ref().expect("it runs").id()
    }

    /// Where it listens.
    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}/", self.port)
    }

    /// Where it listens.
    pub(crate) fn addr(&self) -> std::net::SocketAddr {
        ([127, 0, 0, 1], self.port).into()
    }

    /// Where it speaks TLS.
    pub(crate) fn secure_url(&self, host: &str) -> String {
        format!("rediss://{host}:{}/", self.tls_port.expect("it speaks TLS"))
    }

    /// Where its snapshot lies.
    pub(crate) fn snapshot(&self) -> PathBuf {
        self.dir.path().join("dump.rdb")
    }

    /// A connection for commands of the test's.
    pub(crate) fn connection(&self) -> redis::Connection {
        let client = redis::Client::open(self.url()).expect("an address");
        client.get_connection().expect("it listens")
    }

    /// Runs a command of the test's.
    pub(crate) fn command(&self, parts: &[&str]) -> redis::Value {
        let mut cmd = redis::cmd(parts[0]);
        cmd.arg(&parts[1..]);
        let mut connection = self.connection();
        connection.req_command(&cmd).expect("it answers")
    }

    /// Copies all keys to another of its databases.
    pub(crate) fn copy_to(&self, db: u64) {
        let mut connection = self.connection();
        let keys: Vec<String> = redis::cmd("KEYS").arg("*").query(&mut connection).expect("it answers");
        for key in keys {
            self.command(&["COPY", &key, &key, "DB", &db.to_string(), "REPLACE"]);
        }
    }

    /// A line of what it says of itself.
    pub(crate) fn info(&self, section: &str, field: &str) -> String {
        let mut cmd = redis::cmd("INFO");
        cmd.arg(section);
        let info: String = cmd.query(&mut self.connection()).expect("it answers");
        let line = info
            .lines()
            .find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
        line.unwrap_or_default().to_owned()
    }

    /// Makes it a replica of another, and waits until it is in sync.
    pub(crate) fn replicate(&self, primary: &Self) {
        let port = primary.port.to_string();
        let started = Instant::now();
        // It refuses while it reads what it left.
        while self.command(&["REPLICAOF", "127.0.0.1", &port]) != redis::Value::Okay {
            assert!(started.elapsed() < Duration::from_secs(30), "it becomes no replica");
            #[expect(clippy::disallowed_methods, reason = "a test's own thread")]
            std::thread::sleep(Duration::from_millis(10));
        }
        self.in_sync(primary);
    }

    /// Waits until it has all that its primary has.
    pub(crate) fn in_sync(&self, primary: &Self) {
        let started = Instant::now();
        // A primary may hold what it has back until it has heard from a new replica.
        while self.info("replication", "master_link_status") != "up"
            || !primary.info("replication", "slave0").contains("state=online")
            || self.info("replication", "master_repl_offset") != primary.info("replication", "master_repl_offset")
        {
            assert!(
                started.elapsed() < Duration::from_secs(30),
                "the replica is not in sync: {} {}; {} {} {}",
                self.info("replication", "master_link_status"),
                self.info("replication", "master_repl_offset"),
                primary.info("replication", "role"),
                primary.info("replication", "slave0"),
                primary.info("replication", "master_repl_offset"),
            );
            #[expect(clippy::disallowed_methods, reason = "a test's own thread")]
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Waits until it has all that its primary has now, which goes on.
    pub(crate) fn catch_up(&self, primary: &Self) {
        let offset = |server: &Self| -> u64 {
            server
                .info("replication", "master_repl_offset")
                .parse()
                .expect("a number")
        };
        let (now, started) = (offset(primary), Instant::now());
        while offset(self) < now {
            assert!(started.elapsed() < Duration::from_secs(30), "the replica lags");
            #[expect(clippy::disallowed_methods, reason = "a test's own thread")]
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Makes it a primary, which follows nobody.
    pub(crate) fn detach(&self) {
        self.command(&["REPLICAOF", "NO", "ONE"]);
    }

    /// The file to which it appends.
    pub(crate) fn appended(&self) -> PathBuf {
        let files = std::fs::read_dir(self.dir.path().join("appendonlydir")).expect("it appends");
        let mut files = files.map(|file| file.expect("readable").path());
        let is_incremental = |file: &PathBuf| file.to_string_lossy().ends_with(".incr.aof");
        files.find(is_incremental).expect("there is one")
    }

    /// Stops it in its tracks.
    pub(crate) fn freeze(&self) {
        signal(self.pid(), "STOP");
    }

    /// Lets it go on.
    pub(crate) fn thaw(&self) {
        signal(self.pid(), "CONT");
    }

    /// Kills it, as `kill -9` does.
    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().expect("it runs");
            child.wait().expect("it ended");
        }
    }

    /// Starts it on what it left, on the port that it had if there was one.
    pub(crate) fn run(&mut self) {
        // A port that was free a moment ago may have gone to somebody else.
        for _ in 0..20 {
            for port in self
                .tls_port
                .iter_mut()
                .chain([&mut self.port])
                .filter(|port| **port == 0)
            {
                let free = TcpListener::bind("127.0.0.1:0").expect("a free port");
                *port = free.local_addr().expect("bound").port();
            }
            let tls_port = self.tls_port.map(|port| ["--tls-port".to_owned(), port.to_string()]);
            let mut child = Command::new("redis-server")
                .args(["--port", &self.port.to_string(), "--bind", "127.0.0.1", "--save", ""])
                .arg("--dir")
                .arg(self.dir.path())
                .args(tls_port.iter().flatten())
                .args(&self.options)
                .stdout(Stdio::null())
                .spawn()
                .expect("redis-server is installed: make needs");
            if self.is_up(&mut child) {
                self.child = Some(child);
                return;
            }
            self.port = 0;
            self.tls_port = self.tls_port.map(|_| 0);
        }
        panic!("redis-server does not start");
    }

    /// Whether it answers as the process that was started, before it ends.
    fn is_up(&self, child: &mut Child) -> bool {
        let started = Instant::now();
        let client = redis::Client::open(self.url()).expect("an address");
        let mut cmd = redis::cmd("INFO");
        cmd.arg("server");
        while started.elapsed() < Duration::from_secs(20) {
            if child.try_wait().expect("a child").is_some() {
                return false;
            }
            let info = client
                .get_connection()
                .and_then(|mut connection| cmd.query::<String>(&mut connection));
            if info.is_ok_and(|info| info.contains(&format!("process_id:{}\r", child.id()))) {
                return true;
            }
            #[expect(clippy::disallowed_methods, reason = "a test's own thread")]
            std::thread::sleep(Duration::from_millis(5));
        }
        let _ = child.kill();
        let _ = child.wait();
        false
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}
