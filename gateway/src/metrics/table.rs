//! The table of metrics: what the page shows, what `docs/METRICS.md` says, and what the tests walk.

use std::fmt::Write as _;

/// A family of the metrics page.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// Its name. One that ends in `_total` is a counter, in `_seconds` a histogram, any other a gauge.
    pub name: &'static str,
    /// What it counts.
    pub help: &'static str,
    /// Its label, and all values that this may have.
    pub label: Option<(&'static str, &'static [&'static str])>,
    /// What an operator does when it moves.
    pub advice: &'static str,
}

impl Row {
    /// Whether it only ever grows.
    pub fn is_counter(&self) -> bool {
        self.name.ends_with("_total")
    }

    /// Whether it counts times, by how long they were.
    pub fn is_histogram(&self) -> bool {
        self.name.ends_with("_seconds")
    }
}

/// How a connection ended: the client closed it, its socket broke, or the code that the gateway closed it with. Of a
/// session that was cut off by a defect: `internal`.
pub const CLOSES: &[&str] = &[
    "client",
    "lost",
    "malformed",
    "oversize",
    "protocol",
    "unauthenticated",
    "user_changed",
    "token_expired",
    "handshake_timeout",
    "idle",
    "slow_reader",
    "overloaded",
    "auth_unavailable",
    "internal",
    "going_away",
];

/// Codes of errors that do not end a connection.
pub const ERRORS: &[&str] = &[
    "forbidden",
    "invalid",
    "unsupported",
    "too_large",
    "unavailable",
    "too_many",
    "auth_unavailable",
];

/// Answers to a mutation.
pub const WRITES: &[&str] = &[
    "ack",
    "forbidden",
    "invalid",
    "unsupported",
    "too_large",
    "conflict",
    "precondition_failed",
    "unavailable",
    "rate_limited",
    "out_of_order",
    "client_cloned",
    "client_unknown",
];

/// Why an HTTP request was refused.
pub const REFUSED: &[&str] = &[
    "connections",
    "catching_up",
    "peer",
    "host",
    "origin",
    "not_found",
    "upgrade",
    "draining",
    "stopping",
    "store",
    "bus",
];

/// How a connection ended on which no request had been answered in full.
pub const HTTP_ERRORS: &[&str] = &["timeout", "malformed", "lost", "evicted", "stopping"];

/// What accepting a connection failed of.
pub const ACCEPT_ERRORS: &[&str] = &["files", "memory", "connection", "other"];

/// Why frames were dropped.
pub const DROPPED: &[&str] = &["cut", "overflow", "stalled", "broken", "unflushed", "ended"];

/// How a catch-up goes.
pub const CATCH_UPS: &[&str] = &["log", "delta", "reset"];

/// Why a position was not taken up.
pub const RESETS: &[&str] = &["lost", "below_floor", "foreign_cursor", "view"];

/// Why a subscription fell behind.
pub const BEHIND: &[&str] = &["slow", "trimmed", "lost"];

/// Whose queue of mutations was full.
pub const QUEUES: &[&str] = &["space", "node"];

/// What Redis did not do.
pub const REDIS_ERRORS: &[&str] = &[
    "connection",
    "timeout",
    "role",
    "loading",
    "oom",
    "misconf",
    "busy",
    "partial",
    "erasing",
    "script",
    "settings",
    "other",
];

const fn plain(name: &'static str, help: &'static str, advice: &'static str) -> Row {
    Row {
        name,
        help,
        label: None,
        advice,
    }
}

const fn by(
    name: &'static str,
    label: &'static str,
    values: &'static [&'static str],
    help: &'static str,
    advice: &'static str,
) -> Row {
    Row {
        name,
        help,
        label: Some((label, values)),
        advice,
    }
}

const LOAD: &str = "Nothing: it is the load.";

/// All of them, by what they are about.
pub const TABLE: &[Row] = &[
    // Connections.
    plain(
        "tidegate_connections",
        "Open WebSocket connections.",
        "Near `connections.most`: add a node.",
    ),
    plain(
        "tidegate_handshakes",
        "Connections that have not been welcomed yet, those on which only HTTP is spoken among them.",
        "High for long: clients that say nothing, or a tokens' issuer that is slow.",
    ),
    by(
        "tidegate_accept_errors_total",
        "reason",
        ACCEPT_ERRORS,
        "Errors of accepting connections.",
        "`files`: raise the limit of open files. `memory`: give the machine more. `connection`: nothing, a client was gone again.",
    ),
    by(
        "tidegate_refused_total",
        "reason",
        REFUSED,
        "HTTP requests, connections and subscriptions refused.",
        "`connections`: the node is full, add another or raise the bound. `peer`, `host`, `origin`: dev mode is \
         asked from elsewhere, which it must not be. `not_found`, `upgrade`: a client is misdirected, or a proxy drops the \
         headers of the upgrade. `draining`, `stopping`: the node stops. `store`: it is not ready since its store does not \
         answer, see the log. `bus`: since it does not hear what other nodes commit, see `tidegate_bus_connected`.",
    ),
    plain(
        "tidegate_untold_total",
        "Connections refused without an answer, since too many were being told already.",
        "As for `connections` of `tidegate_refused_total`.",
    ),
    by(
        "tidegate_http_errors_total",
        "reason",
        HTTP_ERRORS,
        "Connections that ended in the middle of HTTP.",
        "`timeout`, `evicted`: connections that take too long over their request; many are an attack, or a proxy that connects \
         in advance. `malformed`: something else speaks to this port. `lost`: the network. `stopping`: the node stopped.",
    ),
    plain(
        "tidegate_evicted_total",
        "Connections that had not been welcomed and made room for others.",
        "Raise `connections.handshakes` if clients are honest and slow; else look who connects and says nothing.",
    ),
    by(
        "tidegate_closes_total",
        "reason",
        CLOSES,
        "WebSocket connections that ended: the client closed (`client`), the socket broke (`lost`), or the code that the \
         gateway closed with (docs/PROTOCOL.md).",
        "`internal`: a defect, look into the log. `slow_reader`: clients on networks that take too little. `malformed`, \
         `oversize`, `protocol`: a client's defect, or limits of client and gateway that differ. `auth_unavailable`: who \
         checks tokens is down. `overloaded`, `handshake_timeout`: see `tidegate_handshakes`.",
    ),
    by(
        "tidegate_errors_total",
        "code",
        ERRORS,
        "Errors that clients were told and that do not end the connection, denied subscriptions too.",
        "`unavailable`: the store, see the log. Others: a client asks for what it may not have.",
    ),
    // Subscriptions.
    plain(
        "tidegate_subscriptions",
        "Live subscriptions and running catch-ups.",
        LOAD,
    ),
    plain("tidegate_spaces", "Spaces that this node follows.", LOAD),
    plain(
        "tidegate_catching_up",
        "Subscriptions that are catching up, or wait for it.",
        "High for long: the store is slow, or many have just reconnected. Near `connections.catching_up`: new ones are refused.",
    ),
    by(
        "tidegate_catch_ups_total",
        "mode",
        CATCH_UPS,
        "Catch-ups begun.",
        "Mostly `reset`: clients lose their storage, or `retention.tombstones` is shorter than they are away. Mostly `delta`: raise \
         `retention.log_commits` if commits are few and small.",
    ),
    by(
        "tidegate_resets_total",
        "reason",
        RESETS,
        "Positions that could not be taken up.",
        "`lost`: the store lost commits, was restored, or a space was erased. `below_floor`: clients are away longer than tombstones \
         are kept. `view`: an app or the rules changed what a subscription covers. `foreign_cursor`: the cursor of another store.",
    ),
    by(
        "tidegate_behind_total",
        "reason",
        BEHIND,
        "Live subscriptions that had to catch up anew.",
        "`slow`: sockets take too little; they converge. `trimmed`: others publish more than this node can bring; add nodes or raise \
         `fan_out.ring_bytes`. `lost`: as for `tidegate_resets_total`.",
    ),
    // Fan-out.
    plain("tidegate_commits_total", "Commits handed to the hub.", LOAD),
    plain(
        "tidegate_gap_commits_total",
        "Commits read from the log because they were missed, with those that arrived while it was read.",
        "Rising steadily: commits get lost between nodes, or spaces are opened while they are written to.",
    ),
    plain(
        "tidegate_gaps_filled_total",
        "Gaps, of one commit or of many, that were filled from the log: each is counted once, however many reads it took. The first \
         commit of an epoch counts as one, since the log says which epoch follows.",
        "As for `tidegate_gap_commits_total`. That one rising alone: gaps are long.",
    ),
    plain(
        "tidegate_ahead_dropped_total",
        "Commits that came before those that precede them, and were not kept: they are read from the log.",
        "As for `tidegate_gap_commits_total`.",
    ),
    plain(
        "tidegate_head_mismatches_total",
        "Spaces that a head check found at another position in the store than on this node.",
        "Now and then, on several nodes under load: a commit was on its way. Steadily, or with `tidegate_gap_commits_total`: the bus \
         loses messages, see `tidegate_bus_breaks_total` and `tidegate_bus_cut_total`.",
    ),
    plain(
        "tidegate_heads_damaged_total",
        "Spaces of which a head check could read nothing, since what the store holds of them is damaged.",
        "The log names the space. Stop what writes to its keys; `tidegate check`, or a backup. Others are not held up by it.",
    ),
    plain(
        "tidegate_delivery_lag_seconds",
        "From a commit on another node to its delivery to this one's subscribers, by the clocks of the two, in whole milliseconds.",
        "Rising: this node is slow in taking in. Constant and large: the nodes' clocks differ. What the bus lost is not in it, see \
         `tidegate_gaps_filled_total`.",
    ),
    plain(
        "tidegate_encodes_total",
        "Encodings of a change: once per commit, form and view.",
        "Much more than commits: many different filters on the same spaces.",
    ),
    plain(
        "tidegate_deliveries_total",
        "Frames with a change handed to connections.",
        LOAD,
    ),
    plain("tidegate_sends_total", "Calls that wrote to a socket.", LOAD),
    plain(
        "tidegate_queued_bytes",
        "Bytes that wait for sockets that would block, with what keeping them takes.",
        "Near `connections.queued_bytes`: many slow readers at a time; add memory and raise it, or add a node.",
    ),
    by(
        "tidegate_dropped_frames_total",
        "reason",
        DROPPED,
        "Frames that were to be sent and were not.",
        "`cut`: of subscriptions that fell behind, which catch up. `overflow`, `stalled`: of slow readers that were closed. `broken`, \
         `unflushed`, `ended`: of connections that were lost, did not take their last words, or had ended.",
    ),
    by(
        "tidegate_dropped_bytes_total",
        "reason",
        DROPPED,
        "Bytes of those frames.",
        "As for `tidegate_dropped_frames_total`.",
    ),
    plain(
        "tidegate_compressions_total",
        "Frames compressed: a change once for all who get it.",
        LOAD,
    ),
    plain(
        "tidegate_compression_saved_bytes_total",
        "Bytes by which compressing frames made them shorter.",
        "Small beside the time it takes: raise `connections.compress_bytes`.",
    ),
    // Writes.
    by(
        "tidegate_writes_total",
        "result",
        WRITES,
        "Mutations answered: applied, or the code of the refusal.",
        "`unavailable`: a full queue or the store, see below. `client_cloned`, `client_unknown`: clients that restored old copies of their \
         storage, or were away too long. Others: what the app asks for is not allowed.",
    ),
    plain("tidegate_engine_waiting", "Mutations not answered yet.", LOAD),
    plain(
        "tidegate_engine_waiting_bytes",
        "About their bytes.",
        "Near `writes.node_bytes`: the store is too slow for the writes that come.",
    ),
    by(
        "tidegate_engine_queue_full_total",
        "queue",
        QUEUES,
        "Mutations turned away since too many wait.",
        "`space`: one space is written to too fast, or its queue is bounded too tightly. `node`: the node is overloaded.",
    ),
    plain("tidegate_engine_commits_total", "Mutations applied.", LOAD),
    plain("tidegate_engine_groups_total", "Store calls that wrote.", LOAD),
    plain(
        "tidegate_engine_stale_total",
        "Plans made again.",
        "Many beside commits: several nodes write to the same documents.",
    ),
    plain(
        "tidegate_engine_stale_given_up_total",
        "Plans given up, and the mutation turned away for now.",
        "As for `tidegate_engine_stale_total`.",
    ),
    plain(
        "tidegate_engine_duplicates_total",
        "Mutations answered again.",
        "Many: connections break before answers arrive.",
    ),
    plain(
        "tidegate_engine_store_errors_total",
        "Store calls for writes that failed.",
        "The store is unwell: see the log.",
    ),
    plain(
        "tidegate_conflicts_overwritten_total",
        "Units in conflict written over another writer's.",
        "The app's policies at work; more than expected: the app should merge.",
    ),
    plain(
        "tidegate_conflicts_skipped_total",
        "Units in conflict left out.",
        "As above.",
    ),
    plain(
        "tidegate_conflicts_rejected_total",
        "Mutations rejected by a conflict.",
        "As above.",
    ),
    // The embedded store.
    plain("tidegate_store_spaces", "Spaces that the store holds.", LOAD),
    plain(
        "tidegate_store_documents",
        "Documents that exist.",
        "Near a quota: raise it, or remove what is not needed.",
    ),
    plain(
        "tidegate_store_document_bytes",
        "Bytes of the documents' fields and values.",
        "As above.",
    ),
    plain("tidegate_store_log_bytes", "Bytes of commits in the logs.", LOAD),
    plain(
        "tidegate_store_disk_bytes",
        "Bytes of the database's files, journals too.",
        "See `tidegate_store_free_bytes`.",
    ),
    plain(
        "tidegate_store_free_bytes",
        "Bytes free in the file system of the data directory.",
        "Near `reserve_bytes`: writes are about to be refused; make room.",
    ),
    plain(
        "tidegate_store_pack_bytes",
        "Bytes of pages that are kept in memory for those who start from nothing.",
        LOAD,
    ),
    plain("tidegate_store_syncs_total", "Syncs to disk.", LOAD),
    plain("tidegate_store_batches_total", "Atomic writes.", LOAD),
    plain("tidegate_store_groups_total", "Commit calls answered.", LOAD),
    plain("tidegate_store_commits_total", "Mutations applied.", LOAD),
    plain(
        "tidegate_store_refused_total",
        "Commit calls turned away since too many wait for the disk.",
        "The disk is too slow for the writes that come.",
    ),
    plain(
        "tidegate_store_write_failures_total",
        "Writes, flushes and merges that failed.",
        "The disk is full or failing: see the log.",
    ),
    plain(
        "tidegate_store_reopened_total",
        "Times that the database was opened again after a failed write.",
        "As above; it has recovered.",
    ),
    plain(
        "tidegate_store_damaged_spaces",
        "Spaces of which what is too old cannot be removed, since something of them cannot be read.",
        "Stop the gateway, run `tidegate check`, restore a backup.",
    ),
    // The store on Redis, and the bus.
    plain(
        "tidegate_redis_seconds",
        "Time from sending a call to Redis to its answer.",
        "Rising with the load: Redis is near what its core can do. Rising by itself: the network, or its disk.",
    ),
    by(
        "tidegate_redis_errors_total",
        "kind",
        REDIS_ERRORS,
        "Calls to Redis that were not done, each time that they were tried.",
        "`connection`, `timeout`: Redis is down, or out of reach. `role`: the address leads to a replica. `loading`: it \
         is starting. `oom`: raise its `maxmemory`. `misconf`: its disk is full or failing. `busy`: a script of somebody else's \
         runs for long. `partial`: keys of a space are missing, see the log. `erasing`: a space is being erased. `script`: its \
         cache of scripts was flushed. `settings`: with the server's settings the gateway does not use it, see `tidegate doctor`. `other`: see the log.",
    ),
    plain(
        "tidegate_redis_connections",
        "Open connections to Redis for calls; the bus has another.",
        "Less than `redis.connections` for long: Redis cannot be reached, or refuses them (`maxclients`).",
    ),
    plain(
        "tidegate_bus_connected",
        "Whether the bus is connected.",
        "0: changes of other nodes arrive with the head checks alone, and the node is not ready.",
    ),
    plain(
        "tidegate_bus_breaks_total",
        "Connections of the bus that ended, or could not be made.",
        "Now and then: nothing. Steadily: the network, or Redis ends it since the node is too slow (`client-output-buffer-limit pubsub`).",
    ),
    plain(
        "tidegate_bus_cut_total",
        "Messages of the bus that were not kept, since those before them had not been taken in yet: the log has them.",
        "Steadily: other nodes commit more than this one can bring. Add nodes.",
    ),
];

/// The row of a family.
pub(super) fn row(name: &str) -> &'static Row {
    let found = TABLE.iter().find(|row| row.name == name);
    found.unwrap_or_else(|| panic!("{name} has no row in the table of metrics"))
}

/// The table of `docs/METRICS.md`.
pub fn table() -> String {
    let mut text =
        String::from("\n| Metric | Type | Labels | It counts | When it moves |\n| --- | --- | --- | --- | --- |\n");
    for row in TABLE {
        let kind = match row {
            row if row.is_counter() => "counter",
            row if row.is_histogram() => "histogram",
            _ => "gauge",
        };
        let label = row.label.map_or_else(String::new, |(name, values)| {
            let values: Vec<_> = values.iter().map(|value| format!("`{value}`")).collect();
            format!("`{name}`: {}", values.join(", "))
        });
        let _ = writeln!(
            text,
            "| `{}` | {kind} | {label} | {} | {} |",
            row.name, row.help, row.advice
        );
    }
    text.push('\n');
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use tidegate_protocol::error::TABLE as CODES;

    #[test]
    fn the_reasons_of_closes_are_the_codes_that_close_and_those_that_are_none() {
        let closing = CODES.iter().filter(|row| row.close.is_some()).map(|row| row.name);
        let all: Vec<_> = ["client", "lost"].into_iter().chain(closing).collect();
        assert_eq!(CLOSES, all);
    }

    #[test]
    fn other_labels_that_are_codes_are_codes() {
        for label in ERRORS.iter().chain(&WRITES[1..]) {
            assert!(CODES.iter().any(|row| row.name == *label), "{label}");
        }
    }

    #[test]
    fn each_name_has_one_row() {
        for (index, row) in TABLE.iter().enumerate() {
            assert!(
                TABLE[..index].iter().all(|other| other.name != row.name),
                "{}",
                row.name
            );
        }
    }
}
