//! Commands to Redis: a few connections that never subscribe, shared by all callers, and made again when they break.
//!
//! Replies of a connection that also subscribes can reach the wrong caller, so subscriptions have connections of their
//! own (`crate::bus`). A command whose answer does not come may have been done: it is sent again as it was, which is
//! harmless for reads, and for commits by their mids and keys.

use super::endpoint::{Endpoint, RedisTls};
use super::scripts::{ALL, Script};
use crate::metrics::{Gauged, RedisMetrics};
use crate::store::StoreError;
use parking_lot::Mutex;
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Cmd, RedisError, Value};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::sync::{OnceCell, Semaphore};
use tokio::time::{Instant, timeout};

/// How to reach Redis, and how long to wait for it.
#[derive(Clone, Debug)]
pub struct RedisConfig {
    /// Certificates, for TLS.
    pub tls: RedisTls,
    /// Connections for commands.
    pub connections: usize,
    /// Commands under way at a time; the others wait.
    pub in_flight: usize,
    /// For making a connection.
    pub connect: Duration,
    /// For the answer to a command, after which its connection is given up.
    pub response: Duration,
    /// How often the bus is seen to answer.
    pub ping: Duration,
    /// How long a command is tried again before it is `unavailable`: at least twice `response`, or one that was not
    /// answered in time would not be sent again.
    pub patience: Duration,
    /// Serve where keys may be evicted, too.
    pub any_policy: bool,
}

impl Default for RedisConfig {
    fn default() -> Self {
        Self {
            tls: RedisTls::default(),
            connections: 2,
            in_flight: 1_024,
            connect: Duration::from_secs(2),
            response: Duration::from_secs(5),
            ping: Duration::from_secs(1),
            patience: Duration::from_secs(15),
            any_policy: false,
        }
    }
}

/// Between attempts to connect, doubled after each that fails.
const FIRST_AGAIN: Duration = Duration::from_millis(20);
const LAST_AGAIN: Duration = Duration::from_millis(500);

/// The connections.
pub(super) struct Link {
    endpoint: Endpoint,
    config: RedisConfig,
    metrics: Arc<RedisMetrics>,
    slots: Vec<Slot>,
    next: AtomicUsize,
    permits: Semaphore,
}

/// The place of a connection, which may have to be made first. A new cell is put there when it has broken.
type Slot = Mutex<Arc<OnceCell<Open>>>;

/// An open connection, counted as long as somebody may use it.
struct Open {
    connection: MultiplexedConnection,
    _gauge: Gauged,
}

/// What is told of a call that was not done.
pub(super) enum LinkError {
    /// The space is being erased.
    Erasing(String),
    /// Anything else.
    Other(StoreError),
}

impl LinkError {
    pub(super) fn is_erasing(&self) -> bool {
        matches!(self, Self::Erasing(_))
    }
}

impl From<LinkError> for StoreError {
    fn from(error: LinkError) -> Self {
        match error {
            LinkError::Erasing(why) => Self::Unavailable(why),
            LinkError::Other(error) => error,
        }
    }
}

/// Why a command could not be done.
enum Failed {
    /// The server says so, and says why.
    Refused(RedisError),
    /// The script is not there: its cache is volatile.
    NoScript,
    /// No answer: it may have been done.
    Unknown(String),
}

impl Link {
    pub(super) fn new(url: &str, config: RedisConfig, metrics: Arc<RedisMetrics>) -> Result<Self, String> {
        Ok(Self {
            endpoint: Endpoint::new(url, &config.tls)?,
            slots: (0..config.connections.max(1)).map(|_| Slot::default()).collect(),
            permits: Semaphore::new(config.in_flight),
            next: AtomicUsize::new(0),
            metrics,
            config,
        })
    }

    /// Runs a script until it has answered, at most for as long as the configuration says.
    pub(super) async fn run(&self, script: &Script, call: &Call) -> Result<Value, LinkError> {
        let mut cmd = redis::cmd("EVALSHA");
        cmd.arg(script.sha()).arg(call.keys.len());
        cmd.arg(&call.keys).arg(&call.args);
        self.until_answered(&cmd, Some(script)).await
    }

    /// As `run`, a command that only looks.
    pub(super) async fn ask(&self, cmd: &Cmd) -> Result<Value, LinkError> {
        self.until_answered(cmd, None).await
    }

    /// Sends commands once, in their order, on one connection. An error says nothing of which of them were done.
    pub(super) async fn in_order(&self, cmds: Vec<Cmd>) -> Result<(), LinkError> {
        let _permit = self.permits.acquire().await;
        let other = |why: String| LinkError::Other(StoreError::Unavailable(why));
        let cell = self.slots[0].lock().clone();
        let made = cell.get_or_try_init(|| self.connect()).await;
        let mut connection = made.map_err(other)?.connection.clone();
        let mut pipe = redis::pipe();
        let count = cmds.len();
        for cmd in cmds {
            pipe.add_command(cmd);
        }
        let sent = timeout(self.config.response, connection.send_packed_commands(&pipe, 0, count));
        let answers = match sent.await {
            Ok(Ok(answers)) => answers,
            Ok(Err(error)) => return Err(self.refused(&error)),
            Err(_) => return Err(other(format!("nothing in {:?}", self.config.response))),
        };
        for answer in answers {
            if let Value::ServerError(error) = answer {
                return Err(self.refused(&error.into()));
            }
        }
        Ok(())
    }

    async fn until_answered(&self, cmd: &Cmd, script: Option<&Script>) -> Result<Value, LinkError> {
        let _permit = self.permits.acquire().await;
        let started = Instant::now();
        let mut pause = FIRST_AGAIN;
        loop {
            let failed = match self.once(cmd).await {
                Ok(value) => return Ok(value),
                Err(Failed::NoScript) if script.is_some() && started.elapsed() < self.config.patience => continue,
                Err(Failed::NoScript) => "NOSCRIPT".to_owned(),
                Err(Failed::Refused(error)) => return Err(self.refused(&error)),
                Err(Failed::Unknown(why)) => why,
            };
            if started.elapsed() + pause > self.config.patience {
                let why = format!("Redis does not answer: {failed}");
                return Err(LinkError::Other(StoreError::Unavailable(why)));
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LAST_AGAIN);
        }
    }

    /// Sends a command once.
    async fn once(&self, cmd: &Cmd) -> Result<Value, Failed> {
        let at = self.next.fetch_add(1, Ordering::Relaxed) % self.slots.len();
        let cell = self.slots[at].lock().clone();
        let broken = |why: String| {
            let mut slot = self.slots[at].lock();
            if Arc::ptr_eq(&slot, &cell) {
                *slot = Arc::default();
            }
            Failed::Unknown(why)
        };
        // Of many that wait for a connection one makes it.
        let made = cell.get_or_try_init(|| self.connect()).await;
        let mut connection = match made {
            Ok(open) => open.connection.clone(),
            Err(why) => {
                self.count("connection");
                return Err(broken(why));
            }
        };
        let sent = Instant::now();
        let answer = timeout(self.config.response, connection.send_packed_command(cmd)).await;
        self.metrics.seconds.observe(sent.elapsed().as_secs_f64());
        let refused = match answer {
            Err(_) => {
                self.count("timeout");
                return Err(broken(format!("nothing in {:?}", self.config.response)));
            }
            Ok(Ok(Value::ServerError(error))) => error.into(),
            Ok(Ok(value)) => return Ok(value),
            Ok(Err(error)) if error.code().is_some() => error,
            Ok(Err(error)) => {
                self.count("connection");
                return Err(broken(error.to_string()));
            }
        };
        if matches!(refused.code(), Some("TGROLE" | "READONLY")) {
            // Whoever took over from it is reached by connecting again.
            broken(String::new());
        }
        Err(self.sorted(refused, &connection).await)
    }

    async fn sorted(&self, error: RedisError, connection: &MultiplexedConnection) -> Failed {
        match error.code() {
            Some("NOSCRIPT") => {
                self.count("script");
                match timeout(self.config.response, load(connection.clone())).await {
                    Ok(Ok(())) => Failed::NoScript,
                    Ok(Err(why)) => Failed::Unknown(why),
                    Err(_) => Failed::Unknown("nothing while scripts are loaded".to_owned()),
                }
            }
            _ => Failed::Refused(error),
        }
    }

    fn count(&self, kind: &str) {
        self.metrics.errors.with_label_values(&[kind]).inc();
    }

    async fn connect(&self) -> Result<Open, String> {
        let making = async {
            let config = AsyncConnectionConfig::new()
                .set_connection_timeout(Some(self.config.connect))
                .set_response_timeout(None);
            let client = self.endpoint.client().await?;
            let connection = client.get_multiplexed_async_connection_with_config(&config).await;
            let connection = connection.map_err(|error| error.to_string())?;
            load(connection.clone()).await?;
            Ok(Open {
                connection,
                _gauge: Gauged::new(&self.metrics.connections),
            })
        };
        let made = timeout(self.config.connect, making).await;
        made.unwrap_or_else(|_| Err(format!("not connected in {:?}", self.config.connect)))
    }

    /// A refusal, counted by its kind. All but damage are temporary: what the server wants may come true.
    fn refused(&self, error: &RedisError) -> LinkError {
        let code = error.code().unwrap_or("ERR");
        self.count(kind(code));
        match code {
            "TGERASING" => LinkError::Erasing("the space is being erased".to_owned()),
            // It holds up nobody but those who need what is damaged.
            "WRONGTYPE" | "TGTORN" => LinkError::Other(StoreError::Damaged(error.to_string())),
            _ => LinkError::Other(StoreError::Unavailable(format!("Redis refuses: {error}"))),
        }
    }
}

/// The kind of a refusal, one of `REDIS_ERRORS`.
fn kind(code: &str) -> &'static str {
    match code {
        "TGROLE" | "READONLY" => "role",
        "LOADING" | "MASTERDOWN" => "loading",
        "OOM" => "oom",
        "MISCONF" => "misconf",
        "BUSY" => "busy",
        "TGPARTIAL" | "TGTORN" => "partial",
        "TGERASING" => "erasing",
        _ => "other",
    }
}

/// Loads all scripts on a server.
async fn load(mut connection: MultiplexedConnection) -> Result<(), String> {
    for script in ALL {
        let mut cmd = redis::cmd("SCRIPT");
        cmd.arg("LOAD").arg(script.text());
        match connection.send_packed_command(&cmd).await {
            Ok(Value::BulkString(sha)) if sha == script.sha().as_bytes() => {}
            Ok(other) => return Err(format!("SCRIPT LOAD answered {other:?}")),
            Err(error) => return Err(error.to_string()),
        }
    }
    Ok(())
}

/// What a script is called with.
pub(super) struct Call {
    keys: Vec<Vec<u8>>,
    args: Vec<Vec<u8>>,
}

impl Call {
    pub(super) fn on(keys: impl IntoIterator<Item = Vec<u8>>) -> Self {
        Self {
            keys: keys.into_iter().collect(),
            args: vec![],
        }
    }

    /// Declares one more key.
    pub(super) fn key(&mut self, key: Vec<u8>) {
        self.keys.push(key);
    }

    /// Adds an argument.
    pub(super) fn arg(&mut self, arg: impl AsRef<[u8]>) -> &mut Self {
        self.args.push(arg.as_ref().to_vec());
        self
    }

    /// Adds a number, in decimal.
    pub(super) fn number(&mut self, n: u64) -> &mut Self {
        self.args.push(n.to_string().into_bytes());
        self
    }

    /// Adds a number, or nothing in its place.
    pub(super) fn optional(&mut self, n: Option<u64>) -> &mut Self {
        self.args
            .push(n.map(|n| n.to_string().into_bytes()).unwrap_or_default());
        self
    }
}

#[cfg(test)]
mod tests {
    use super::kind;
    use crate::metrics::REDIS_ERRORS;

    #[test]
    fn each_refusal_has_its_kind() {
        for (code, wants) in [
            ("READONLY", "role"),
            ("LOADING", "loading"),
            ("MASTERDOWN", "loading"),
            ("OOM", "oom"),
            ("MISCONF", "misconf"),
            ("BUSY", "busy"),
            ("TGPARTIAL", "partial"),
            ("TGERASING", "erasing"),
            ("ERR", "other"),
        ] {
            assert_eq!(kind(code), wants);
            assert!(REDIS_ERRORS.contains(&wants));
        }
    }
}
