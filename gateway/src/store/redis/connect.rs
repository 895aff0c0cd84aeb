//! Connections for commands: each to a server that was looked over, shared by all callers, made again when it has broken.

use super::doctor::{self, Finding};
use super::endpoint::Endpoint;
use super::link::{FIRST_AGAIN, LAST_AGAIN, RedisConfig};
use super::scripts::ALL;
use crate::metrics::{Gauged, RedisMetrics};
use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, Shared};
use parking_lot::Mutex;
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Value};
use std::sync::Arc;
use tokio::time::{Instant, timeout};

/// What makes connections.
pub(crate) struct Connector {
    pub(crate) endpoint: Endpoint,
    pub(crate) config: RedisConfig,
    pub(crate) metrics: Arc<RedisMetrics>,
    /// Why the server is not used, as it was said last.
    said: Mutex<Option<Finding>>,
}

/// An open connection, counted as long as somebody may use it.
pub(super) struct Open {
    pub(super) connection: MultiplexedConnection,
    since: Instant,
    _gauge: Gauged,
}

/// Why there is no connection.
#[derive(Clone)]
pub(super) struct Unmade {
    /// As what it counts, one of `REDIS_ERRORS`.
    kind: &'static str,
    pub(super) why: String,
}

impl From<String> for Unmade {
    fn from(why: String) -> Self {
        Self {
            kind: "connection",
            why,
        }
    }
}

/// A connection that is made, or being made. All who wait for it share the attempt, and what comes of it.
pub(super) type Making = Shared<BoxFuture<'static, Result<Arc<Open>, Unmade>>>;

/// The place of a connection.
#[derive(Default)]
pub(super) struct Slot(Mutex<Option<Making>>);

impl Slot {
    /// What is there, or is to be.
    pub(super) fn get(&self, connector: &Arc<Connector>) -> Making {
        let make = || {
            let connector = connector.clone();
            async move { connector.connect().await.map(Arc::new) }.boxed().shared()
        };
        self.0.lock().get_or_insert_with(make).clone()
    }

    /// Empties it, unless another is there by now.
    pub(super) fn give_up(&self, making: &Making) {
        self.0.lock().take_if(|there| there.ptr_eq(making));
    }

    /// Empties it, if what is there was made before that.
    pub(super) fn give_up_older(&self, than: Instant) {
        let is_older = |there: &mut Making| matches!(there.peek(), Some(Ok(open)) if open.since <= than);
        self.0.lock().take_if(is_older);
    }
}

impl Connector {
    /// What connects to the server at this address.
    ///
    /// # Errors
    /// Where the address, or a certificate, cannot be read.
    pub(super) fn new(url: &str, config: RedisConfig, metrics: Arc<RedisMetrics>) -> Result<Self, String> {
        Ok(Self {
            endpoint: Endpoint::new(url, &config.tls)?,
            config,
            metrics,
            said: Mutex::default(),
        })
    }

    /// Counts a call that was not done.
    pub(crate) fn count(&self, kind: &str) {
        self.metrics.errors.with_label_values(&[kind]).inc();
    }

    /// Looks over the server's settings, on a connection of its own; waits for it as calls do.
    pub(super) async fn look(&self) -> Result<Vec<Finding>, String> {
        let (started, mut pause) = (Instant::now(), FIRST_AGAIN);
        loop {
            let looking = async {
                let mut connection = self.bare().await?;
                doctor::look(&mut connection).await
            };
            let why = match timeout(self.config.connect, looking).await {
                Ok(Ok(findings)) => return Ok(findings),
                Ok(Err(why)) => why,
                Err(_) => format!("nothing in {:?}", self.config.connect),
            };
            if started.elapsed() + pause > self.config.patience {
                return Err(format!("Redis does not answer: {why}"));
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LAST_AGAIN);
        }
    }

    async fn bare(&self) -> Result<MultiplexedConnection, String> {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(self.config.connect))
            .set_response_timeout(None);
        let client = self.endpoint.client().await?;
        let connection = client.get_multiplexed_async_connection_with_config(&config).await;
        connection.map_err(|error| error.to_string())
    }

    async fn connect(&self) -> Result<Open, Unmade> {
        let made = timeout(self.config.connect, self.looked_over()).await;
        let made = made.unwrap_or_else(|_| Err(format!("not connected in {:?}", self.config.connect).into()));
        made.inspect_err(|unmade| self.count(unmade.kind))
    }

    /// A connection to a server whose settings were looked at, whoever that is now: another may have taken over.
    async fn looked_over(&self) -> Result<Open, Unmade> {
        let mut connection = self.bare().await?;
        let findings = doctor::look(&mut connection).await?;
        let forbids = |finding: &&Finding| finding.forbids(self.config.any_policy);
        let wrong = findings.iter().find(forbids);
        self.say_once(wrong);
        if let Some(wrong) = wrong {
            let kind = if wrong.what.starts_with("role ") {
                "role"
            } else {
                "settings"
            };
            let why = format!("it is not used: {}", wrong.what);
            return Err(Unmade { kind, why });
        }
        load(connection.clone()).await?;
        Ok(Open {
            connection,
            since: Instant::now(),
            _gauge: Gauged::new(&self.metrics.connections),
        })
    }

    /// Says why the server is not used, once until that changes.
    fn say_once(&self, wrong: Option<&Finding>) {
        let mut said = self.said.lock();
        if said.as_ref() != wrong {
            if let Some(wrong) = wrong {
                tracing::error!(redis = %wrong.what, "Redis is not used. {}", wrong.advice);
            }
            *said = wrong.cloned();
        }
    }
}

/// Loads all scripts on a server.
pub(super) async fn load(mut connection: MultiplexedConnection) -> Result<(), String> {
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
