//! What of a Redis server's settings would lose data, or stop the gateway.

use super::RedisStore;
use super::reply::{Parts, unexpected};
use crate::store::StoreError;
use redis::Value;
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
        let info = match self.link.ask(&redis::cmd("INFO")).await? {
            Value::BulkString(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
            Value::VerbatimString { text, .. } => text,
            _ => return Err(unexpected("INFO")),
        };
        let mut found: BTreeMap<String, String> = info
            .lines()
            .filter_map(|line| line.split_once(':'))
            .map(|(name, value)| (name.to_owned(), value.trim().to_owned()))
            .collect();
        // Managed servers do not let everybody ask.
        let mut may_ask = true;
        for name in [
            "maxmemory-policy",
            "appendonly",
            "appendfsync",
            "client-output-buffer-limit",
        ] {
            let mut cmd = redis::cmd("CONFIG");
            cmd.arg("GET").arg(name);
            match self.link.ask(&cmd).await {
                Ok(value) => {
                    let mut parts = Parts::of(value)?;
                    while parts.len() > 1 {
                        let (name, value) = (parts.bytes()?, parts.bytes()?);
                        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
                        found.insert(text(name), text(value));
                    }
                }
                Err(_) => may_ask = false,
            }
        }
        Ok(findings(&found, may_ask))
    }
}

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
        "noeviction" => say(Level::Fine, "maxmemory-policy noeviction".to_owned(), ""),
        policy => say(
            Level::Wrong,
            format!("maxmemory-policy {policy}"),
            "When its memory is full, Redis would throw away what was acknowledged. Set it to noeviction: then writes are \
             answered `unavailable`. With redis.any_policy = true the gateway serves all the same.",
        ),
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
        ("yes", "always") => say(Level::Fine, "appendonly yes, appendfsync always".to_owned(), ""),
        ("yes", fsync) => say(
            Level::Warning,
            format!("appendonly yes, appendfsync {fsync}"),
            "A crash of the machine can lose the last second of what was acknowledged. Clients are told and go on from what is \
             there. Set appendfsync to always where that is not to happen.",
        ),
        (appendonly, _) => say(
            Level::Warning,
            format!("appendonly {appendonly}"),
            "A restart loses everything since the last snapshot. Clients are told and go on from what is there. Set appendonly \
             to yes.",
        ),
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
            (("maxmemory", "0"), "maxmemory 0"),
            (("appendonly", "no"), "appendonly no"),
            (("appendfsync", "everysec"), "appendonly yes, appendfsync everysec"),
            (("connected_slaves", "0"), "connected_slaves 0"),
        ] {
            assert_eq!(wrong(&[pair]), [what]);
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
