//! What must hold between settings, each of which is right by itself.

use super::value::Value;
use super::{Config, DEFAULT_LISTEN, Mistake, Origin, ROWS, Settings, find};
use tidegate_protocol::limits::CURSOR_BYTES;

/// Why nothing serves without `dev`, and what to do.
pub const NO_AUTHENTICATION: &str = "\
no authentication is configured, so anyone who reaches this gateway could read and write everything.
Today only dev mode runs: add --dev. It admits anyone, but only from this machine.
Authentication by tokens (JWT) comes with a later release, and will be configured in tidegate.toml.";

/// Names of a page's message and of a document in it: more than both take.
const AROUND: usize = 2 * CURSOR_BYTES + 4_096;

/// Two settings of which the first is too large for the second.
pub(super) struct Rule {
    pub(super) over: &'static str,
    pub(super) under: &'static str,
    /// The most that the first may be.
    pub(super) most: fn(&Settings) -> u64,
    why: &'static str,
}

pub(super) const RULES: &[Rule] = &[
    Rule {
        over: "limits.page_bytes",
        under: "limits.message_bytes",
        most: |s| s.server.node.limits.message_bytes as u64 / 3,
        why: "where writes overtake a catch-up its pages get twice as large, and each is one message",
    },
    Rule {
        over: "limits.doc_bytes",
        under: "limits.message_bytes",
        // A leaf is two elements, and the head of its path takes three bytes at most.
        most: |s| {
            let limits = &s.server.node.limits;
            limits.message_bytes.saturating_sub(2 * limits.elements + AROUND) as u64
        },
        why: "a document is sent in one message, with up to two bytes more for each of limits.elements",
    },
    Rule {
        over: "limits.field_bytes",
        under: "limits.doc_bytes",
        most: |s| s.server.node.limits.doc_bytes as u64,
        why: "a document has at least one field",
    },
    Rule {
        over: "connections.soft_bytes",
        under: "connections.hard_bytes",
        most: |s| {
            let (node, hub) = (&s.server.node, &s.server.hub);
            node.hard_bytes
                .saturating_sub(node.limits.message_bytes + hub.ring_bytes) as u64
        },
        why: "beyond it one message (limits.message_bytes) and what a catch-up has missed (fan_out.ring_bytes) have to \
              find room, or proper readers are closed",
    },
    Rule {
        over: "limits.message_bytes",
        under: "writes.node_bytes",
        most: |s| s.server.engine.node_bytes as u64,
        why: "a mutation of one message has to find room",
    },
    Rule {
        over: "writes.space_bytes",
        under: "writes.node_bytes",
        most: |s| s.server.engine.node_bytes as u64,
        why: "what waits in one space waits on the node",
    },
    Rule {
        over: "writes.group_bytes",
        under: "writes.space_bytes",
        most: |s| s.server.engine.space_bytes as u64,
        why: "a group is made of what waits in a space",
    },
    Rule {
        over: "writes.group_items",
        under: "writes.space_items",
        most: |s| s.server.engine.space_items as u64,
        why: "a group is made of what waits in a space",
    },
    Rule {
        over: "redis.response",
        under: "redis.patience",
        most: |s| u64::try_from(s.redis.patience.as_millis()).unwrap_or(u64::MAX) / 2,
        why: "a command that was not answered in time is to be sent once more",
    },
];

/// Everything that does not go together. What is wrong by itself already, and what it would be compared with, is left out.
pub(super) fn check(config: &Config, wrong: &[Mistake]) -> Vec<Mistake> {
    let settings = &config.settings;
    let is_right = |key: &str| wrong.iter().all(|mistake| mistake.key != Some(key));
    let mut found = Vec::new();
    for Rule { over, under, most, why } in RULES {
        let (Some(row), true) = (find(over), is_right(over) && is_right(under)) else {
            continue;
        };
        let most = most(settings);
        let Value::Number(n) = (ROWS[row].get)(settings) else {
            continue;
        };
        if n <= most {
            continue;
        }
        let kind = ROWS[row].kind;
        let remedy = match kind.number(most) {
            Ok(most) => format!("set {over} to {} at most, or {under} to more", kind.show(&most)),
            // Less than it may be at all.
            Err(_) => format!("set {under} to more"),
        };
        let at = match config.origin(over) {
            Origin::Default => config.origin(under),
            origin => origin,
        };
        found.push(Mistake::new(
            at,
            format!(
                "{} is too much for {}: {why}; {remedy}",
                config.say(over),
                config.say(under)
            ),
        ));
    }
    if settings.dev && !settings.listen.ip().is_loopback() && is_right("listen") {
        let why = format!(
            "listen: {} can be reached from other machines, and dev mode ({}) admits anyone; \
             listen on a loopback address, as {DEFAULT_LISTEN} or [::1]:8080",
            settings.listen,
            config.origin("dev")
        );
        found.push(Mistake::new(config.origin("listen"), why));
    }
    let is_secure = settings
        .redis_url
        .as_ref()
        .is_some_and(|url| url.starts_with("rediss://"));
    let tls = &settings.redis.tls;
    for (key, set) in [
        ("redis.ca", &tls.ca),
        ("redis.cert", &tls.cert),
        ("redis.key", &tls.key),
    ] {
        if set.is_some() && !is_secure && is_right(key) && is_right("redis.url") {
            let why = format!(
                "{} is for TLS; write a redis.url that begins with rediss://",
                config.say(key)
            );
            found.push(Mistake::new(config.origin(key), why));
        }
    }
    for (key, set, other, lacks) in [
        ("redis.cert", &tls.cert, "redis.key", &tls.key),
        ("redis.key", &tls.key, "redis.cert", &tls.cert),
    ] {
        if set.is_some() && lacks.is_none() && is_right(key) && is_right(other) {
            let why = format!("{} is of no use alone; set {other}, too", config.say(key));
            found.push(Mistake::new(config.origin(key), why));
        }
    }
    found
}

impl Config {
    /// A setting with its value and where that comes from, in a sentence.
    fn say(&self, key: &str) -> String {
        let value = find(key).map(|row| ROWS[row].show(&self.settings)).unwrap_or_default();
        format!("{key} ({value}, {})", self.origin(key))
    }
}
