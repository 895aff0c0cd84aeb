//! Commands to Redis: a few connections that never subscribe, shared by all callers, and made again when they break.
//!
//! Replies of a connection that also subscribes can reach the wrong caller, so subscriptions have connections of their
//! own (`crate::bus`). A command whose answer does not come may have been done: it is sent again as it was, which is
//! harmless for reads, and for commits by their mids and keys.

use super::connect::{Connector, Slot, load};
use super::endpoint::RedisTls;
use super::scripts::Script;
use crate::store::StoreError;
use redis::aio::MultiplexedConnection;
use redis::{Cmd, RedisError, Value};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::{Instant, timeout, timeout_at};

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
pub(super) const FIRST_AGAIN: Duration = Duration::from_millis(20);
pub(super) const LAST_AGAIN: Duration = Duration::from_millis(500);

/// The connections.
pub(super) struct Link {
    connector: Arc<Connector>,
    slots: Vec<Slot>,
    next: AtomicUsize,
    permits: Semaphore,
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
    pub(super) fn new(connector: Arc<Connector>) -> Self {
        let config = &connector.config;
        Self {
            slots: (0..config.connections.max(1)).map(|_| Slot::default()).collect(),
            permits: Semaphore::new(config.in_flight),
            next: AtomicUsize::new(0),
            connector,
        }
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
        let deadline = Instant::now() + self.config().patience;
        let _permit = self.permit(deadline).await?;
        let other = |why: String| LinkError::Other(StoreError::Unavailable(why));
        let making = self.slots[0].get(&self.connector);
        let made = timeout_at(deadline, making.clone()).await;
        let open = match made {
            Ok(Ok(open)) => open,
            Ok(Err(unmade)) => {
                self.slots[0].give_up(&making);
                return Err(other(unmade.why));
            }
            Err(_) => return Err(other("not connected".to_owned())),
        };
        let mut connection = open.connection.clone();
        let mut pipe = redis::pipe();
        let count = cmds.len();
        for cmd in cmds {
            pipe.add_command(cmd);
        }
        let response = self.config().response;
        let answers = match timeout(response, connection.send_packed_commands(&pipe, 0, count)).await {
            Ok(Ok(answers)) => answers,
            Ok(Err(error)) => return Err(self.refused(&error)),
            Err(_) => return Err(other(format!("nothing in {response:?}"))),
        };
        for answer in answers {
            if let Value::ServerError(error) = answer {
                return Err(self.refused(&error.into()));
            }
        }
        Ok(())
    }

    fn config(&self) -> &RedisConfig {
        &self.connector.config
    }

    async fn permit(&self, deadline: Instant) -> Result<SemaphorePermit<'_>, LinkError> {
        match timeout_at(deadline, self.permits.acquire()).await {
            Ok(Ok(permit)) => Ok(permit),
            _ => {
                let why = format!("{} calls wait for Redis already", self.config().in_flight);
                Err(LinkError::Other(StoreError::Unavailable(why)))
            }
        }
    }

    async fn until_answered(&self, cmd: &Cmd, script: Option<&Script>) -> Result<Value, LinkError> {
        let deadline = Instant::now() + self.config().patience;
        let _permit = self.permit(deadline).await?;
        let mut pause = FIRST_AGAIN;
        loop {
            let failed = match self.once(cmd, deadline).await {
                Ok(value) => return Ok(value),
                Err(Failed::NoScript) if script.is_some() && Instant::now() < deadline => continue,
                Err(Failed::NoScript) => "NOSCRIPT".to_owned(),
                Err(Failed::Refused(error)) => return Err(self.refused(&error)),
                Err(Failed::Unknown(why)) => why,
            };
            if Instant::now() + pause >= deadline {
                let why = format!("Redis does not answer: {failed}");
                return Err(LinkError::Other(StoreError::Unavailable(why)));
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LAST_AGAIN);
        }
    }

    /// Sends a command once, if there is a connection before the deadline.
    async fn once(&self, cmd: &Cmd, deadline: Instant) -> Result<Value, Failed> {
        let slot = &self.slots[self.next.fetch_add(1, Ordering::Relaxed) % self.slots.len()];
        let making = slot.get(&self.connector);
        let broken = |why: String| {
            slot.give_up(&making);
            Failed::Unknown(why)
        };
        let open = match timeout_at(deadline, making.clone()).await {
            Ok(Ok(open)) => open,
            Ok(Err(unmade)) => return Err(broken(unmade.why)),
            Err(_) => return Err(Failed::Unknown("not connected".to_owned())),
        };
        let mut connection = open.connection.clone();
        let (sent, response) = (Instant::now(), self.config().response);
        let answer = timeout(response, connection.send_packed_command(cmd)).await;
        self.connector.metrics.seconds.observe(sent.elapsed().as_secs_f64());
        let refused = match answer {
            Err(_) => {
                self.count("timeout");
                return Err(broken(format!("nothing in {response:?}")));
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
            self.slots.iter().for_each(|slot| slot.give_up_older(sent));
        }
        Err(self.sorted(refused, &connection).await)
    }

    async fn sorted(&self, error: RedisError, connection: &MultiplexedConnection) -> Failed {
        match error.code() {
            Some("NOSCRIPT") => {
                self.count("script");
                match timeout(self.config().response, load(connection.clone())).await {
                    Ok(Ok(())) => Failed::NoScript,
                    Ok(Err(why)) => Failed::Unknown(why),
                    Err(_) => Failed::Unknown("nothing while scripts are loaded".to_owned()),
                }
            }
            _ => Failed::Refused(error),
        }
    }

    fn count(&self, kind: &str) {
        self.connector.count(kind);
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
