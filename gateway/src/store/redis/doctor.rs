//! What of a Redis server's settings would lose data, or stop the gateway.

use super::RedisStore;
use crate::store::StoreError;
use redis::aio::MultiplexedConnection;
use redis::{RedisError, Value};
use std::collections::BTreeMap;
use std::fmt;

/// Something about the server that somebody should know.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Finding {
    /// How bad it is.
    pub level: Level,
    /// What was found.
    pub what: String,
    /// What it means, and what to do.
    pub advice: &'static str,
}

/// How bad something is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Level {
    /// As it should be.
    Fine,
    /// Worth knowing.
    Warning,
    /// The gateway does not serve with it.
    Wrong,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let level = match self.level {
            Level::Fine => "fine",
            Level::Warning => "warning",
            Level::Wrong => "wrong",
        };
        write!(f, "{level}: {}", self.what)?;
        match self.advice {
            "" => Ok(()),
            advice => write!(f, "\n    {advice}"),
        }
    }
}

impl RedisStore {
    /// Looks over the server's settings.
    ///
    /// # Errors
    /// Where Redis does not answer.
    pub async fn doctor(&self) -> Result<Vec<Finding>, StoreError> {
        self.connector.look().await.map_err(StoreError::Unavailable)
    }
}

/// Settings that are looked at, beside what the server tells of itself.
const SETTINGS: [&str; 5] = [
    "maxmemory-policy",
    "appendonly",
    "appendfsync",
    "no-appendfsync-on-rewrite",
    "save",
];

/// Looks over the server at the other end.
pub(super) async fn look(connection: &mut MultiplexedConnection) -> Result<Vec<Finding>, String> {
    let mut pipe = redis::pipe();
    pipe.cmd("INFO");
    for name in SETTINGS {
        pipe.cmd("CONFIG").arg("GET").arg(name);
    }
    let answers = connection.send_packed_commands(&pipe, 0, 1 + SETTINGS.len()).await;
    let mut answers = answers.map_err(|error| error.to_string())?.into_iter();
    let info = match answers.next() {
        Some(Value::BulkString(bytes)) => String::from_utf8_lossy(&bytes).into_owned(),
        Some(Value::VerbatimString { text, .. }) => text,
        Some(Value::ServerError(error)) => return Err(RedisError::from(error).to_string()),
        _ => return Err("INFO was answered by something else".to_owned()),
    };
    let mut found: BTreeMap<String, String> = info
        .lines()
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_owned(), value.trim().to_owned()))
        .collect();
    // Managed servers do not let everybody ask.
    let mut may_ask = true;
    for answer in answers {
        match redis::from_redis_value::<Vec<String>>(answer) {
            Ok(pairs) => {
                let mut pairs = pairs.into_iter();
                while let (Some(name), Some(value)) = (pairs.next(), pairs.next()) {
                    found.insert(name, value);
                }
            }
            Err(_) => may_ask = false,
        }
    }
    Ok(findings(&found, may_ask))
}

impl Finding {
    /// Whether the gateway does not serve with it, where `any_policy` says that keys may be evicted.
    pub(crate) fn forbids(&self, any_policy: bool) -> bool {
        self.level == Level::Wrong && !(any_policy && self.what.starts_with(POLICY))
    }
}

/// What a finding about it begins with.
const POLICY: &str = "maxmemory-policy ";

fn findings(found: &BTreeMap<String, String>, may_ask: bool) -> Vec<Finding> {
    let get = |name: &str| found.get(name).map_or("", String::as_str);
    let mut list = vec![];
    let mut say = |level, what: String, advice| list.push(Finding { level, what, advice });

    let version = get("redis_version");
    let major: u32 = version
        .split('.')
        .next()
        .and_then(|major| major.parse().ok())
        .unwrap_or(0);
    match major >= 7 {
        true => say(Level::Fine, format!("redis_version {version}"), ""),
        false => say(
            Level::Wrong,
            format!("redis_version {version}"),
            "The gateway needs Redis 7.0 or newer: upgrade it.",
        ),
    }
    match get("role") {
        "master" => say(Level::Fine, "role master".to_owned(), ""),
        role => say(
            Level::Wrong,
            format!("role {role}"),
            "The gateway reads and writes on the primary alone: give it that one's address.",
        ),
    }
    let policy = match get("maxmemory-policy") {
        "" => get("maxmemory_policy"),
        policy => policy,
    };
    match policy {
        "noeviction" => say(Level::Fine, format!("{POLICY}noeviction"), ""),
        policy => say(
            Level::Wrong,
            format!("{POLICY}{policy}"),
            "When its memory is full, Redis would throw away what was acknowledged. Set it to noeviction: then writes are \
             answered `unavailable`. With redis.any_policy = true the gateway serves all the same.",
        ),
    }
    if get("cluster_enabled") == "1" {
        say(
            Level::Wrong,
            "cluster_enabled 1".to_owned(),
            "The gateway does not know yet which node of a cluster holds what: give it the address of a server that is none.",
        );
    }
    if get("maxmemory") == "0" {
        say(
            Level::Warning,
            "maxmemory 0".to_owned(),
            "Without a bound the machine may run out of memory, and the system may kill Redis. Set it to about 60 % of the \
             machine's memory, so that there is room for forks.",
        );
    }
    match (get("appendonly"), get("appendfsync")) {
        ("", _) => {}
        ("yes", "always") if get("no-appendfsync-on-rewrite") == "yes" => say(
            Level::Warning,
            "no-appendfsync-on-rewrite yes".to_owned(),
            "While Redis rewrites its file or saves a snapshot, a crash of the machine can lose what is acknowledged. Clients are \
             told and go on from what is there. Set it to no where that is not to happen.",
        ),
        ("yes", "always") => say(Level::Fine, "appendonly yes, appendfsync always".to_owned(), ""),
        ("yes", fsync) => say(
            Level::Warning,
            format!("appendonly yes, appendfsync {fsync}"),
            "A crash of the machine can lose the last second of what was acknowledged. Clients are told and go on from what is \
             there. Set appendfsync to always where that is not to happen.",
        ),
        (appendonly, _) if get("save").is_empty() && found.contains_key("save") => say(
            Level::Warning,
            format!("appendonly {appendonly}, and no snapshots"),
            "A restart loses everything. Clients are told and start over. Set appendonly to yes.",
        ),
        (appendonly, _) => say(
            Level::Warning,
            format!("appendonly {appendonly}"),
            "A restart loses everything since the last snapshot. Clients are told and go on from what is there. Set appendonly \
             to yes.",
        ),
    }
    if get("aof_last_write_status") == "err" {
        say(
            Level::Warning,
            "aof_last_write_status err".to_owned(),
            "Redis cannot write its file, and refuses writes: look at its disk.",
        );
    }
    let replicas = get("connected_slaves");
    if replicas == "0" {
        say(
            Level::Warning,
            "connected_slaves 0".to_owned(),
            "There is no replica to fail over to.",
        );
    } else if !replicas.is_empty() {
        say(Level::Fine, format!("connected_slaves {replicas}"), "");
    }
    if !may_ask {
        say(
            Level::Warning,
            "CONFIG GET is not allowed".to_owned(),
            "Not all settings could be looked at: see that appendonly is yes and maxmemory-policy is noeviction.",
        );
    }
    list
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wrong(pairs: &[(&str, &str)]) -> Vec<String> {
        let good = [
            ("redis_version", "7.0.15"),
            ("role", "master"),
            ("maxmemory-policy", "noeviction"),
            ("maxmemory", "1000000"),
            ("appendonly", "yes"),
            ("appendfsync", "always"),
            ("connected_slaves", "1"),
        ];
        let found = good
            .iter()
            .chain(pairs)
            .map(|(a, b)| ((*a).to_owned(), (*b).to_owned()))
            .collect();
        let found = findings(&found, true);
        let bad = found.iter().filter(|finding| finding.level != Level::Fine);
        bad.map(|finding| finding.what.clone()).collect()
    }

    #[test]
    fn each_setting_that_would_lose_data_is_found() {
        assert!(wrong(&[]).is_empty());
        for (pair, what) in [
            (("redis_version", "6.2.1"), "redis_version 6.2.1"),
            (("role", "slave"), "role slave"),
            (("maxmemory-policy", "allkeys-lru"), "maxmemory-policy allkeys-lru"),
            (("cluster_enabled", "1"), "cluster_enabled 1"),
            (("maxmemory", "0"), "maxmemory 0"),
            (("no-appendfsync-on-rewrite", "yes"), "no-appendfsync-on-rewrite yes"),
            (("aof_last_write_status", "err"), "aof_last_write_status err"),
            (("appendonly", "no"), "appendonly no"),
            (("appendfsync", "everysec"), "appendonly yes, appendfsync everysec"),
            (("connected_slaves", "0"), "connected_slaves 0"),
        ] {
            assert_eq!(wrong(&[pair]), [what]);
        }
    }

    #[test]
    fn any_policy_is_about_the_policy_alone() {
        for (pair, any, forbids) in [
            (("maxmemory-policy", "allkeys-lru"), false, true),
            (("maxmemory-policy", "allkeys-lru"), true, false),
            (("role", "slave"), true, true),
            (("appendonly", "no"), false, false),
        ] {
            let found = [pair].map(|(a, b)| (a.to_owned(), b.to_owned()));
            let found = [
                ("redis_version", "7"),
                ("role", "master"),
                ("maxmemory-policy", "noeviction"),
            ]
            .map(|(a, b)| (a.to_owned(), b.to_owned()))
            .into_iter()
            .chain(found)
            .collect();
            let found = findings(&found, true);
            assert_eq!(found.iter().any(|finding| finding.forbids(any)), forbids, "{pair:?}");
        }
    }

    #[test]
    fn what_may_not_be_asked_is_said() {
        let found = [
            ("maxmemory_policy", "volatile-lru"),
            ("redis_version", "7.2"),
            ("role", "master"),
        ];
        let found = found.map(|(a, b)| (a.to_owned(), b.to_owned())).into_iter().collect();
        let said: Vec<_> = findings(&found, false)
            .into_iter()
            .map(|finding| finding.what)
            .collect();
        assert!(said.contains(&"maxmemory-policy volatile-lru".to_owned()), "{said:?}");
        assert!(said.contains(&"CONFIG GET is not allowed".to_owned()), "{said:?}");
    }
}
