//! Every setting, a row each. What a row does not say follows from it: the variable from the key, the default from the
//! field's own, the manual, the sample file and the tests from the whole table.

use super::Settings;
use super::value::{DAY, Field, GIB, HOUR, KIB, Kind, MIB, MINUTE, SECOND, Value};
use Kind::{Address, Bytes, Choice, Count, Directory, File, Filter, Name, Redis, Switch, Time};
use tidegate_protocol::limits::DEPTH_MAX;

/// A setting.
pub struct Row {
    /// As in the file, the section before the dot: `limits.ops`.
    pub key: &'static str,
    /// What it may be.
    pub kind: Kind,
    /// The option that sets it, if it has one of its own.
    pub option: Option<&'static str>,
    /// What it means.
    pub meaning: &'static str,
    pub(super) get: fn(&Settings) -> Value,
    pub(super) put: fn(&mut Settings, Value) -> bool,
}

impl Row {
    /// The section that it stands in; none at the top of the file.
    pub fn section(&self) -> Option<&'static str> {
        self.key.split_once('.').map(|(section, _)| section)
    }

    /// Its name within the section.
    pub fn name(&self) -> &'static str {
        self.key.split_once('.').map_or(self.key, |(_, name)| name)
    }

    /// The variable that sets it: `TIDEGATE_LIMITS_OPS`.
    pub fn variable(&self) -> String {
        format!("{}{}", super::PREFIX, self.key.replace('.', "_").to_uppercase())
    }

    /// Its value where nothing sets it.
    pub fn default(&self) -> Value {
        (self.get)(&Settings::default())
    }

    /// Whether it may be `none`.
    pub fn optional(&self) -> bool {
        self.default() == Value::None
    }

    /// A value, as a person reads and writes it.
    pub fn show(&self, settings: &Settings) -> String {
        self.kind.show(&(self.get)(settings))
    }
}

/// Rows: key, kind and range, field, meaning; in brackets the option, where there is one.
macro_rules! rows {
    ($($key:literal $([$option:literal])?: $kind:expr => $($field:ident).+, $meaning:literal;)*) => {
        &[$(Row {
            key: $key,
            kind: $kind,
            option: first(&[$($option)?]),
            meaning: $meaning,
            get: |settings| Field::value(&settings.$($field).+),
            put: |settings, value| match Field::of(value) {
                Some(value) => {
                    settings.$($field).+ = value;
                    true
                }
                None => false,
            },
        },)*]
    };
}

const fn first(options: &[&'static str]) -> Option<&'static str> {
    match options {
        [one, ..] => Some(one),
        [] => None,
    }
}

/// A number without an upper bound.
const ANY: u64 = u64::MAX;

/// The sections, in the order of the table, with what they are about.
pub const SECTIONS: &[(&str, &str)] = &[
    (
        "limits",
        "The limits of the protocol. Clients are told them in `welcome`, and hold to them.",
    ),
    ("connections", "Each connection, and all of them."),
    ("fan_out", "How changes reach those who are connected."),
    ("writes", "How writes are taken in, and put together for the store."),
    (
        "redis",
        "The store on Redis, where `redis.url` names one: several nodes share it, and the embedded store is not used.",
    ),
    (
        "retention",
        "What is kept, and for how long. Live documents are kept until they are deleted.",
    ),
];

/// All the settings, section by section.
pub static ROWS: &[Row] = rows! {
    "listen" ["--listen"]: Address => listen, "The address to listen on.";
    "data_dir" ["--data-dir"]: Directory => data_dir, "Where the embedded store keeps its files. In the file, relative to the file.";
    "dev" ["--dev"]: Switch => dev, "Admit anyone, but from this machine only.";
    "name": Name(128) => server.name, "The node's name, in `welcome`.";
    "log": Filter => log, "What the log shows, as in `debug` or `warn,tidegate::session=debug`.";
    "durability": Choice(&["fsync", "memory"]) => durability, "What an `ack` means. `fsync`: the write is on disk. `memory`: it is in the operating system's hands; a crash of the machine may lose it, and clients are told that it did.";
    "reserve_bytes": Bytes(0, ANY) => reserve_bytes, "Bytes of the data directory's file system that are kept free. With less, writes are answered `unavailable` until there is room again; reads go on. As much as the file system has, or more, is refused at the start.";
    "max_space_docs" ["--max-space-docs"]: Count(0, ANY) => server.engine.quota.space_docs, "Documents that a space may have.";
    "max_space_bytes" ["--max-space-bytes"]: Bytes(0, ANY) => server.engine.quota.space_bytes, "Bytes that the documents of a space may take.";
    "max_total_bytes" ["--max-total-bytes"]: Bytes(0, ANY) => server.engine.quota.total_bytes, "Bytes that all documents together may take. On Redis as far as this node knows: what other nodes have changed in spaces that it does not serve counts after `retention.collect_every` at the latest.";

    "limits.message_bytes": Bytes(64 * KIB, 16 * MIB) => server.node.limits.message_bytes, "Bytes of a message, in either direction. iOS ends a connection over 1MiB.";
    "limits.doc_bytes": Bytes(KIB, 16 * MIB) => server.node.limits.doc_bytes, "Bytes of a document: the sum of its field paths and values.";
    "limits.page_bytes": Bytes(4 * KIB, 5 * MIB) => server.node.limits.page_bytes, "Bytes of a catch-up page, about. A larger document has a page of its own; where writes overtake a catch-up, pages get twice as large.";
    "limits.field_bytes": Bytes(64, 8 * KIB) => server.node.limits.field_bytes, "Bytes of a field path in its escaped form.";
    "limits.depth": Count(1, DEPTH_MAX as u64) => server.node.limits.depth, "Segments of a field path plus the nesting of arrays and maps in its value.";
    "limits.ops": Count(1, 10_000) => server.node.limits.ops, "Ops of a mutation.";
    "limits.subscriptions": Count(1, 100_000) => server.node.limits.subscriptions, "Subscriptions of a connection.";
    "limits.elements": Count(1_024, MIB) => server.node.limits.elements, "MessagePack objects in a client's message, and in a document: each key, value, array and map counts. Also the fields of a document together with those that were removed less than `retention.tombstones` ago.";

    "connections.ping": Time(SECOND, HOUR) => server.ping, "Clients ping after this long without sending. After twice as long without a word a connection is closed.";
    "connections.most": Count(1, ANY) => server.admission.connections, "Connections at a time, of any kind; over it, a connection is told when to come back. `none`: what open files allow, less 512.";
    "connections.handshakes": Count(1, ANY) => server.admission.handshakes, "Connections at a time that have not been welcomed. Whoever comes then waits, for the kernel to keep, until one is welcomed or ends; the oldest is closed for it once its `grace` is over.";
    "connections.grace": Time(10, MINUTE) => server.admission.grace, "What a connection that has not been welcomed has before another may take its place.";
    "connections.hello": Time(100, 5 * MINUTE) => server.hello, "Time from accepting a connection to its `hello`; over it, `handshake_timeout`.";
    "connections.soft_bytes": Bytes(16 * KIB, GIB) => server.node.soft_bytes, "Bytes queued on a connection over which catch-ups and `get`s on it wait, and, where its socket takes no more, subscriptions fall behind: the one with most waiting first.";
    "connections.hard_bytes": Bytes(64 * KIB, 4 * GIB) => server.node.hard_bytes, "Bytes queued on a connection over which it is closed with `slow_reader`.";
    "connections.queued_bytes": Bytes(MIB, ANY) => server.node.queued_bytes, "Bytes queued on all connections; over it, a connection whose socket takes no more counts as over its `soft_bytes`.";
    "connections.stall": Time(SECOND, HOUR) => server.node.stall, "A connection that takes nothing of what waits for it for so long is closed with `slow_reader`.";
    "connections.in_flight": Count(1, 100_000) => server.node.in_flight, "Unanswered mutations of a connection, one more for every 4 KiB of one; with more, it is not read.";
    "connections.catch_ups": Count(1, 10_000) => server.node.catch_ups, "Reads of the store at a time, for catch-ups and `get`s of all connections; the others wait.";
    "connections.catching_up": Count(1, ANY) => server.node.catching_up, "Subscriptions that are catching up or wait for it, of all connections; over it, a new one is told to come back.";
    "connections.compress_bytes": Bytes(64, ANY) => server.node.compress_bytes, "Bytes of a message from which on it is compressed, for clients that take that and where it pays.";
    "connections.age": Time(10 * SECOND, 365 * DAY) => server.node.age, "After so long, a tenth more or less, a connection is asked to go elsewhere, so that load moves to new nodes.";
    "connections.ready_delay": Time(0, 10 * MINUTE) => server.ready_delay, "When the node is told to stop: how long it says that it is not ready, and still takes connections. For balancers that take a while to notice.";
    "connections.drain": Time(0, HOUR) => server.drain, "Over how long connections are then asked to go elsewhere: 100 at a time, or a twentieth of all.";
    "connections.flush": Time(100, 5 * MINUTE) => server.node.flush, "How long a closing connection may take to answer what it has taken in, and to be flushed.";

    "fan_out.ring_commits": Count(1, MIB) => server.hub.ring_commits, "Commits of a space kept in memory for those who have just caught up; who needs an older one reads the log.";
    "fan_out.ring_bytes": Bytes(KIB, GIB) => server.hub.ring_bytes, "Their bytes, with the frames made of them. While more of either is on its way to subscribers, a space takes no writes.";
    "fan_out.shard": Count(1, MIB) => server.hub.shard, "Subscribers of a space that are brought changes together. A space with more is brought them by tasks of its own.";
    "fan_out.tasks": Count(1, 1_024) => server.hub.tasks, "Tasks that bring the subscribers of one space their changes at a time. `none`: as many as there are cores.";
    "fan_out.head_check": Time(100, HOUR) => server.hub.head_check, "How often every space that somebody follows is compared with the store.";
    "fan_out.linger": Time(0, HOUR) => server.hub.linger, "How long a space is followed after its last subscriber has left.";

    "writes.group_items": Count(1, 100_000) => server.engine.group_items, "Mutations of a space that are committed in one store call.";
    "writes.group_bytes": Bytes(64 * KIB, 32 * MIB) => server.engine.group_bytes, "Their bytes, about.";
    "writes.read_bytes": Bytes(64 * KIB, GIB) => server.engine.read_bytes, "Bytes of documents that are read for them, about; one mutation may be about more.";
    "writes.mutation_bytes": Bytes(0, 4 * GIB) => server.engine.mutation_bytes, "Bytes of the documents that one mutation is about, beyond the first 64 of them; over it, `too_large`.";
    "writes.space_items": Count(1, MIB) => server.engine.space_items, "Mutations waiting in a space; over it, `unavailable`.";
    "writes.space_bytes": Bytes(64 * KIB, 4 * GIB) => server.engine.space_bytes, "Their bytes; over it, `unavailable`.";
    "writes.node_bytes": Bytes(64 * KIB, ANY) => server.engine.node_bytes, "Bytes of all unanswered mutations on the node; over it, `unavailable`.";
    "writes.retry": Time(10, HOUR) => server.engine.retry_ms, "After what time a client is told to send a mutation again that was `unavailable`.";

    "redis.url" ["--redis"]: Redis => redis_url, "Where Redis is, with user, password and number of the database if it has such; `rediss://` over TLS. `none`: the embedded store.";
    "redis.ca" ["--redis-ca"]: File => redis.tls.ca, "For `rediss://`: certificates, in PEM, of the authorities that may have signed the server's. `none`: the system's. In the file, relative to the file; read anew with every connection that is made.";
    "redis.cert" ["--redis-cert"]: File => redis.tls.cert, "The certificate, in PEM, by which the server knows the node, if it asks for one (`tls-auth-clients`), and those that lead from it to an authority's.";
    "redis.key" ["--redis-key"]: File => redis.tls.key, "Its private key, in PEM.";
    "redis.connections": Count(1, 64) => redis.connections, "Connections for commands; the bus has another.";
    "redis.in_flight": Count(1, 100_000) => redis.in_flight, "Commands that wait for their answers at a time; the others wait to be sent.";
    "redis.connect": Time(10, MINUTE) => redis.connect, "How long making a connection may take.";
    "redis.response": Time(10, MINUTE) => redis.response, "How long an answer may take; then the connection is made anew, and the command sent again.";
    "redis.patience": Time(10, 10 * MINUTE) => redis.patience, "How long a command is tried again before what asked for it is `unavailable`.";
    "redis.ping": Time(10, MINUTE) => redis.ping, "How often the node publishes a probe, which the bus has to bring: within `redis.response`, or the bus is made anew.";
    "redis.any_policy": Switch => redis.any_policy, "Serve also where Redis may evict keys when its memory is full, and lose what was acknowledged (`maxmemory-policy` other than `noeviction`).";

    "retention.log_commits": Count(1, ANY) => retention.log_commits, "Commits in a space's log. Who is behind the oldest is brought what changed, not every commit.";
    "retention.log_bytes": Bytes(64 * KIB, ANY) => retention.log_bytes, "Their bytes.";
    "retention.log": Time(MINUTE, 3_650 * DAY) => retention.log_ms, "How long a commit stays in the log.";
    "retention.tombstones": Time(HOUR, 3_650 * DAY) => retention.tombstones_ms, "How long deletions are kept. Who was away for longer gets the whole anew.";
    "retention.clients": Time(DAY, 3_650 * DAY) => retention.clients_ms, "How long a client that does not write is remembered; later it takes a new id, and what it had sent without an answer is put to its user.";
    "retention.conflicts": Count(1, ANY) => retention.conflicts, "Entries in a space's conflict log.";
    "retention.conflicts_bytes": Bytes(64 * KIB, ANY) => retention.conflicts_bytes, "Their bytes.";
    "retention.collect_every": Time(SECOND, DAY) => collect_every, "How often what is older than that is removed.";
};

/// The row of a key.
pub fn find(key: &str) -> Option<usize> {
    ROWS.iter().position(|row| row.key == key)
}
