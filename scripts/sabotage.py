#!/usr/bin/env python3
"""Takes one rule out of the product at a time, and sees a named test fail.

A test that cannot fail proves nothing. Each entry below names a rule, the code that keeps it, and the
test that must notice when it is gone. The product itself has no switches for this: the rule is cut out
of a copy of the tree, in target/sabotage. Every test is seen to pass first, with nothing cut; what does
not build, or runs no test, is an error and not a cut that was noticed.

    scripts/sabotage.py --check               only: each piece of code to cut is there, exactly once
    scripts/sabotage.py [--jobs N] [NAME ...] cut, build, test; all of them if none is named

N copies work at a time, each on its share of the cores; as many as there are cores, unless said
otherwise. What begins with "sim:" the simulator must find within TIDEGATE_SIM_SEEDS seeds (20,000).
"""

import argparse
import concurrent.futures
import os
import pathlib
import queue
import re
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
E2E = ["-p", "tidegate", "--test", "e2e"]
LIB = ["-p", "tidegate", "--lib"]
SIM = ["-p", "sim", "--test", "seeds"]
COMMIT = "gateway/src/store/embedded/commit.rs"
REDIS_COMMIT = "gateway/src/store/redis/scripts/commit.lua"
PRELUDE = "gateway/src/store/redis/scripts/prelude.lua"
CHANGES = "gateway/src/store/embedded/changes.rs"
PACKS = "gateway/src/store/embedded/packs.rs"
COLLECT = "gateway/src/store/embedded/collect.rs"
DOCUMENT = "gateway/src/store/embedded/document.rs"
REWRITE = "gateway/src/store/embedded/rewrite.rs"
CROSSING = "store::embedded::tests::packing::a_document_is_one_record_until_it_outgrows_that_and_again_when_it_has_come_down"
RESULTS_2 = "store::embedded::tests::packing::results_that_format_2_kept_are_answered_and_go_when_their_time_has_come"
EVALUATE = "gateway/src/engine/evaluate.rs"
BROKEN = ["-p", "tidegate-history", "--test", "broken"]
CONTRACT = ["-p", "tidegate", "--test", "contract"]
CONFIG = ["-p", "tidegate", "--test", "config"]
OPERATE = ["-p", "tidegate", "--test", "operate"]
FAULTS = ["-p", "tidegate", "--test", "faults"]
CLUSTER = ["-p", "tidegate", "--test", "cluster"]
STREAM = "client/src/sync/space/stream.rs"
OUTBOX = "gateway/src/outbox.rs"
QUEUE = "gateway/src/outbox/queue.rs"
SCENARIOS = ["-p", "tidegate-client", "--test", "scenarios"]

DEFLATE = "protocol/src/deflate.rs"
MEMORY = ["-p", "tidegate-protocol", "--test", "memory"]
BOMB = "a_megabyte_that_would_inflate_to_a_gigabyte_takes_no_more_than_a_message_may"

FAILOVER = "failover::a_failover_that_loses_commits_and_the_failback_after_it_are_hidden_from_nobody"

# name: (file, code, what to put in its place, cargo arguments, test)
RULES = {
    "bus: a probe that is not heard ends the connection": (
        "gateway/src/bus/redis.rs",
        "        self.heard < self.published && self.since.elapsed() >= time",
        "        false && self.since.elapsed() >= time",
        CLUSTER,
        "bus::a_bus_on_a_server_that_the_store_has_left_is_made_anew",
    ),
    "bus: a database has channels of its own": (
        "gateway/src/store/redis/keys.rs",
        "        0 => prefix(space),",
        "        _ if db >= 0 => prefix(space),",
        CLUSTER,
        "bus::a_database_hears_nothing_of_another_even_where_one_was_copied_from_the_other",
    ),
    "bus: a channel that is refused costs nobody the connection": (
        "gateway/src/bus/redis.rs",
        "                Err(error) if error.code().is_some() => Ok(Done::Refused(space, error)),",
        "                Err(error) if false && error.code().is_some() => Ok(Done::Refused(space, error)),",
        CLUSTER,
        "bus::a_channel_that_redis_does_not_allow_costs_its_space_and_no_other",
    ),
    "bus: a message alone is brought whatever its size": (
        "gateway/src/bus/inbox.rs",
        "&& (is_new || slot.arrived.bytes + bytes <= self.bounds.space)",
        "&& slot.arrived.bytes + bytes <= self.bounds.space.min(1 << 20)",
        CLUSTER,
        "bus::a_message_of_any_size_is_brought_as_it_is",
    ),
    "redis: who waits for a connection waits no longer than a call may take": (
        "gateway/src/store/redis/link.rs",
        "        let open = match timeout_at(deadline, making.clone()).await {\n            Ok(Ok(open)) => open,\n            Ok(Err(unmade)) => return Err(broken(unmade.why)),",
        "        let alone = Slot::default();\n        static ONE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());\n        let turn = ONE.lock().await;\n        let made = alone.get(&self.connector).await;\n        drop(turn);\n        let open = match Ok::<_, StoreError>(made) {\n            Ok(Ok(open)) => open,\n            Ok(Err(unmade)) => return Err(broken(unmade.why)),",
        CLUSTER,
        "bus::however_many_wait_for_a_redis_that_stands_still_each_is_answered_in_time",
    ),
    "redis: a server that may evict keys is not used": (
        "gateway/src/store/redis/connect.rs",
        "        if let Some(wrong) = wrong {\n            let kind",
        "        if let Some(wrong) = wrong.filter(|_| false) {\n            let kind",
        CLUSTER,
        "settings::a_redis_that_takes_over_and_may_evict_keys_is_not_used",
    ),
    "what would inflate to more than a message is not inflated": (
        DEFLATE,
        "Ok(size) if size <= bound => size,",
        "Ok(size) => size,",
        MEMORY,
        BOMB,
    ),
    "inflating stops a byte after what was said": (
        DEFLATE,
        "let mut message = vec![0; size + 1];",
        "let mut message = vec![0; 64 << 20];",
        MEMORY,
        BOMB,
    ),
    "what a client sends compressed is held to the size of a message": (
        "gateway/src/session/conn.rs",
        "true => deflate::expand(message, limits.message_bytes)?,",
        "true => deflate::expand(message, 2 * limits.message_bytes)?,",
        E2E,
        "compression::what_inflates_to_too_much_or_to_something_else_ends_its_connection_and_no_other",
    ),
    "only who has agreed is sent compressed messages": (
        "gateway/src/session/conn.rs",
        "compresses.then_some(node.config.compress_bytes)",
        "(!self.form.is_text()).then_some(node.config.compress_bytes)",
        E2E,
        "compression::pages_commits_and_answers_are_compressed_for_who_agreed_and_for_nobody_else",
    ),
    "who could be sent what it cannot take is refused": (
        "gateway/src/session/machine.rs",
        "if takes < limit as u64 {",
        "if takes < 1 {",
        LIB,
        "session::machine::tests::a_client_that_takes_less_than_a_message_may_have_is_refused_at_hello_with_both_numbers",
    ),
    "a size that cannot be true takes no memory": (
        DEFLATE,
        "if size > raw.len().saturating_mul(EXPANSION) {",
        "if size > usize::MAX - EXPANSION {",
        MEMORY,
        BOMB,
    ),
    "what goes on behind its end is no message": (
        DEFLATE,
        "Ok(Status::StreamEnd) if taken < raw.len() => ",
        "Ok(Status::StreamEnd) if taken > raw.len() => ",
        ["-p", "tidegate-protocol", "--test", "vectors"],
        "a_compressed_message_gives_what_its_vector_says",
    ),
    "an option comes before a variable, and a variable before the file": (
        "gateway/src/config/mod.rs",
        "        wrong.extend(variables::read(variables, &mut config));\n        wrong.extend(config.arguments(arguments));\n",
        "        wrong.extend(config.arguments(arguments));\n        wrong.extend(variables::read(variables, &mut config));\n",
        LIB,
        "config::tests::every_setting_is_set_by_the_file_a_variable_and_an_option_and_the_later_wins",
    ),
    "a setting is within its range": (
        "gateway/src/config/value.rs",
        "if (least..=most).contains(&n) {",
        "if n <= most {",
        LIB,
        "config::tests::every_number_is_taken_from_the_least_to_the_most_and_refused_beyond",
    ),
    "what is wrong behind a line that cannot be read is said": (
        "gateway/src/config/file.rs",
        "if unreadable.len() == before && next == rest {",
        "if unreadable.len() != before || next == rest {",
        LIB,
        "config::tests::what_is_wrong_behind_a_line_that_cannot_be_read_is_said_too_and_in_its_section",
    ),
    "a variable of the gateway's that is no setting is a mistake": (
        "gateway/src/config/variables.rs",
        "None => wrong.push(Mistake::new(at, unknown(name, Row::variable))),",
        "None => {}",
        CONFIG,
        "check_names_every_mistake_with_its_line_and_serve_refuses_with_the_same_words",
    ),
    "what does not go together is refused": (
        "gateway/src/config/mod.rs",
        "        wrong.extend(check::check(&config, &wrong));\n",
        "",
        LIB,
        "config::tests::what_does_not_go_together_is_refused_with_both_values_their_places_and_what_to_do",
    ),
    "a gateway runs with what is configured": (
        "gateway/src/cli/serve/mod.rs",
        "        ..settings.server.clone()\n",
        "        ..ServerConfig::default()\n",
        CONFIG,
        "serve_runs_with_what_is_configured_and_says_with_what",
    ),
    "what is renumbered after a gap is shown where the history goes on": (
        STREAM,
        "std::mem::take(&mut self.renumbered) || mode == Mode::Reset",
        "mode == Mode::Reset",
        SCENARIOS,
        "the_machine_does_what_every_scenario_says",
    ),
    "the stream that has most waiting is cut": (
        QUEUE,
        "max_by_key(|(stream, size)| (*size, *stream == own))?",
        "max_by_key(|(stream, _)| *stream == own)?",
        LIB,
        "outbox::tests::the_stream_of_which_most_waits_is_cut_and_the_others_are_not",
    ),
    "what is on its way is not cut": (
        QUEUE,
        "let mut untouched = usize::from(self.torn);",
        "let mut untouched = 0_usize;",
        LIB,
        "outbox::tests::a_stream_of_which_too_much_waits_is_cut_behind_what_is_on_its_way",
    ),
    "every connection that ends is counted": (
        "gateway/src/session/conn.rs",
        "shell.held.2.ended(reason);",
        "shell.held.2.counted = true;",
        E2E,
        "metrics::every_metric_moves",
    ),
    "a gauge goes down with what it counts": (
        "gateway/src/metrics.rs",
        "self.0.dec();",
        "let _ = &self.0;",
        E2E,
        "metrics::every_metric_moves",
    ),
    "what has not happened shows as 0": (
        "gateway/src/metrics.rs",
        "counters.with_label_values(&[value]);",
        "let _ = value;",
        E2E,
        "metrics::every_metric_moves",
    ),
    "what came ahead and is not kept is counted": (
        "gateway/src/hub/space.rs",
        "metrics.ahead_dropped.inc_by(dropped);",
        "let _ = metrics;",
        E2E,
        "metrics::every_metric_moves",
    ),
    "an outbox in which nothing waits holds no queue": (
        QUEUE,
        "self.queue.take_if(|queue| queue.is_idle())",
        "self.queue.take_if(|_| false)",
        LIB,
        "outbox::tests::what_waits_takes_memory_and_what_does_not_takes_none",
    ),
    "the runtime is told that a socket would block": (
        OUTBOX,
        "Err(Errno::AGAIN) => Self::try_write_vectored(self, bufs),",
        "Err(Errno::AGAIN) => Err(Errno::AGAIN.into()),",
        LIB,
        "outbox::tests::a_socket_that_would_block_is_not_asked_again_and_again",
    ),
    "what an idle connection takes is bounded": (
        "gateway/src/session/conn.rs",
        "                sub.what.from = None;\n",
        "                sub.what.from = None;\n                std::mem::forget(vec![0_u8; 512]);\n",
        ["-p", "tidegate", "--test", "allocations"],
        "a_delivery_and_an_idle_ping_allocate_nothing",
    ),
    "frames that are dropped are counted by why": (
        QUEUE,
        "dropped.count(why, frames - self.frames.len(), bytes - self.bytes);",
        "let _ = why; dropped.count(Drops::Cut, frames - self.frames.len(), bytes - self.bytes);",
        LIB,
        "outbox::tests::the_smallest_frames_fill_the_bound_by_what_they_take_in_memory",
    ),
    "a stream that was cut takes nothing more": (
        OUTBOX,
        "} else if self.cut.is_none() {",
        "} else if self.cut.is_none() || self.cut.is_some() {",
        LIB,
        "outbox::tests::the_stream_of_which_most_waits_is_cut_and_the_others_are_not",
    ),
    "who takes little is brought what changed": (
        "gateway/src/session/catchup.rs",
        "if many || self.behind && reached < state.head.seq {",
        "if many {",
        E2E,
        "slow::a_reader_that_takes_nothing_for_a_while_is_brought_what_changed_and_not_what_was_queued",
    ),
    "who takes nothing for too long is closed": (
        "gateway/src/session/conn.rs",
        "if self.conn.outbox.stalled() >= stall {",
        "if false {",
        E2E,
        "slow::a_reader_that_takes_nothing_for_too_long_is_closed_and_slows_nobody",
    ),
    "what was acked while a reset was on its way is shown over it": (
        STREAM,
        "} else if is_shown && self.queue.set_overlaid(id, true) {",
        "} else if is_shown && self.queue.get(id).is_some_and(|m| m.is_queued()) && self.queue.set_overlaid(id, true) {",
        SCENARIOS,
        "the_machine_does_what_every_scenario_says",
    ),
    "what was seen of a lost history only stays listed when it is acked anew": (
        STREAM,
        "        if self.wanted.is_none() || self.denied.is_some() {\n            if self.queue",
        "        if true {\n            if self.queue",
        SCENARIOS,
        "the_machine_does_what_every_scenario_says",
    ),
    "what goes on from nothing is not asked for again": (
        STREAM,
        "|sent| sent.goes_on || sent.begun",
        "|_| true",
        SCENARIOS,
        "the_machine_does_what_every_scenario_says",
    ),
    "a repeat is answered in its turn": (
        "gateway/src/engine/queue.rs",
        "            answers.sort_by_key(|(place, ..)| *place);\n",
        "",
        LIB,
        "engine::tests::queue::a_repeat_is_answered_in_its_turn",
    ),
    "who joins brings its shard up": (
        "gateway/src/hub/space.rs",
        "        if behind != position {",
        "        if false {",
        LIB,
        "hub::tests::rounds::who_joins_a_shard_that_is_behind_takes_nothing_from_those_in_it",
    ),
    "what is on its way is kept": (
        "gateway/src/hub/space.rs",
        "self.ring.front().is_some_and(|oldest| oldest.seq <= least)",
        "!self.ring.is_empty() && least >= Seq::ZERO",
        LIB,
        "hub::tests::rounds::what_this_node_commits_cuts_off_nobody_however_large_or_however_many_views_there_are",
    ),
    "what comes too fast from elsewhere is forgotten": (
        "gateway/src/hub/space.rs",
        "self.ring.len() > 2 * config.ring_commits ||",
        "false && self.ring.len() > 2 * config.ring_commits ||",
        LIB,
        "hub::tests::rounds::who_cannot_be_brought_what_the_ring_has_forgotten_catches_up",
    ),
    "a drain goes in steps": (
        "gateway/src/session/node.rs",
        "            if step + 1 < steps {",
        "            if false {",
        LIB,
        "server::tests::a_drain_sends_some_away_at_a_time_and_the_last_within_its_time",
    ),
    "the oldest guest makes room": (
        "gateway/src/admission.rs",
        "            evicted.cancel();\n",
        "",
        E2E,
        "admission::who_takes_its_time_before_hello_makes_room_for_who_does_not",
    ),
    "who comes waits while all guests are young": (
        "gateway/src/server/mod.rs",
        "            self.admission.room().await;\n",
        "",
        E2E,
        "admission::a_crowd_is_let_in_as_places_come_free_and_nobody_is_refused_or_cut_off",
    ),
    "who waits is told when a guest is welcomed": (
        "gateway/src/admission.rs",
        "        self.admission.fewer.notify_one();\n",
        "",
        LIB,
        "admission::tests::the_oldest_guest_makes_room_once_it_has_had_its_time_and_nobody_is_let_in_before",
    ),
    "where there is no room at all nobody waits": (
        "gateway/src/admission.rs",
        "        if self.connections.load(Ordering::Relaxed) >= self.most {\n            return None;\n        }\n",
        "",
        LIB,
        "admission::tests::where_there_are_as_many_connections_as_may_be_who_comes_does_not_wait_for_guests",
    ),
    "a crowd comes at a pace": (
        "gateway/src/admission.rs",
        "        self.coming.pass().await;\n",
        "",
        LIB,
        "admission::tests::a_crowd_comes_and_goes_at_a_pace_and_a_few_do_not_wait",
    ),
    "after who is let in others have their turn": (
        "gateway/src/server/mod.rs",
        "                    self.enter(socket, addr);\n                    tokio::task::yield_now().await;\n",
        "                    self.enter(socket, addr);\n",
        LIB,
        "server::tests::of_a_crowd_one_is_let_in_at_a_time_so_that_who_is_in_has_its_turn",
    ),
    "a flood of messages is handled some at a time": (
        "gateway/src/session/conn.rs",
        " || self.handled.is_multiple_of(AT_ONCE);\n",
        ";\n",
        LIB,
        "server::tests::what_one_connection_sends_at_once_is_handled_some_at_a_time_so_that_others_have_their_turn",
    ),
    "between messages of a flood others have their turn": (
        "gateway/src/session/conn.rs",
        "Ok(()) if ws.has_more() && self.closing.is_none() => {",
        "Ok(()) if ws.has_more() && self.closing.is_some() => {",
        LIB,
        "server::tests::what_one_connection_sends_at_once_is_handled_some_at_a_time_so_that_others_have_their_turn",
    ),
    "a connection ends its subscriptions some at a time": (
        "gateway/src/session/conn.rs",
        "        while self.subs.len() > AT_ONCE {\n",
        "        while self.subs.len() > usize::MAX - AT_ONCE {\n",
        LIB,
        "server::tests::what_one_connection_sends_at_once_is_handled_some_at_a_time_so_that_others_have_their_turn",
    ),
    "a connection follows spaces one after another": (
        "gateway/src/session/catchup.rs",
        "        let own = self.conn.own_turn(&self.reading).await;\n        let lease = self.node.hub.lease(&self.what.space).await?;\n",
        "        let lease = self.node.hub.lease(&self.what.space).await?;\n        let own = self.conn.own_turn(&self.reading).await;\n",
        LIB,
        "server::tests::of_many_spaces_that_one_connection_subscribes_to_one_is_read_at_a_time",
    ),
    "who waits for the bus holds up no reads": (
        "gateway/src/session/catchup.rs",
        "        let lease = self.node.hub.lease(&self.what.space).await?;\n        let turn = Turn::begin(own, &self.node).await;\n",
        "        let turn = Turn::begin(own, &self.node).await;\n        let lease = self.node.hub.lease(&self.what.space).await?;\n",
        LIB,
        "server::tests::while_a_bus_confirms_no_subscription_what_is_open_is_read_all_the_same",
    ),
    "a client comes back no earlier than it was told to": (
        "client/src/sync/connection/session.rs",
        "                self.wait_backoff(now, at_least, failure.message);\n",
        "                self.wait_backoff(now, at_least.min(0), failure.message);\n",
        SCENARIOS,
        "the_machine_does_what_every_scenario_says",
    ),
    "a client reads when it is to come back": (
        "client/src/link.rs",
        "                        retry_ms: retry_after(answer.headers()),\n",
        "",
        ["-p", "tidegate-client", "--test", "app"],
        "who_is_refused_comes_back_no_earlier_than_it_was_told_to",
    ),
    "the node's bound on what waits": (
        OUTBOX,
        "if self.budget.is_spent() { 0 } else { self.bounds.soft }",
        "self.bounds.soft",
        E2E,
        "slow::a_thousand_readers_that_take_nothing_keep_within_the_nodes_bound_and_end_equal",
    ),
    "a shard that is being brought is left alone": (
        "gateway/src/hub/members.rs",
        "        let slot = after.iter_mut().chain(before).find(|slot| is_behind(slot))?;\n        self.turn = slot.id;\n",
        "        let slot = after.iter_mut().chain(before).find(|slot| is_behind(slot))?;\n",
        LIB,
        "hub::tests::rounds::each_shard_is_brought_in_its_turn_all_that_came_since",
    ),
    "a frame is kept": (
        "gateway/src/hub/ring.rs",
        "        body.frames.insert(index, (audience.number, frame.clone()));\n",
        "        let _ = index;\n",
        LIB,
        "hub::tests::rounds::each_shard_is_brought_in_its_turn_all_that_came_since",
    ),
    "a message in fragments is tungstenite's": (
        "gateway/src/ws.rs",
        "        self.context.is_none() && header.is_final && plain",
        "        header.is_final && plain",
        LIB,
        "ws::tests::what_comes_in_means_what_tungstenite_says_however_it_is_cut",
    ),
    "a frame may claim to have nearly 2^64 bytes": (
        "gateway/src/ws.rs",
        "left.min(buffer.len() - at)",
        "buffer.len().min(at + left) - at",
        LIB,
        "ws::tests::what_comes_in_means_what_tungstenite_says_however_it_is_cut",
    ),
    "no buffer is kept": (
        "gateway/src/ws.rs",
        "                    self.context = None;\n",
        "",
        LIB,
        "ws::tests::what_comes_in_means_what_tungstenite_says_however_it_is_cut",
    ),
    "a delivery allocates nothing": (
        "gateway/src/hub/deliver.rs",
        "        let to = &member.outbox;\n",
        "        drop(frames().collect::<Vec<_>>());\n        let to = &member.outbox;\n",
        ["-p", "tidegate", "--test", "allocations"],
        "a_delivery_and_an_idle_ping_allocate_nothing",
    ),
    "acks of a group leave together": (
        "gateway/src/hub/members.rs",
        "        let handed = out.later();",
        "        let handed = out.done();",
        E2E,
        "fan_out::the_answers_of_a_group_leave_in_one_call",
    ),
    "a large space is brought by tasks": (
        "gateway/src/hub/mod.rs",
        "if shards <= 1 && inner.fanning == 0 {",
        "if true {",
        E2E,
        "fan_out::a_delivery_is_a_call_when_paced_and_a_tenth_of_one_in_a_burst",
    ),
    "an answer does not overtake one that waits": (
        "gateway/src/hub/space.rs",
        "if known && !ahead && member.held.is_empty() {",
        "if known && !ahead {",
        LIB,
        "hub::tests::an_answer_does_not_overtake_one_that_waits",
    ),
    "a catch-up goes on behind what it has sent": (
        "gateway/src/session/catchup.rs",
        "                *from = From::Scan(next.clone());\n",
        "",
        E2E,
        "resume::a_catch_up_that_the_store_breaks_off_goes_on_behind_what_it_has_sent",
    ),
    "a client's first mutation is not behind itself": (
        "gateway/src/engine/answer.rs",
        "*mid != FIRST && self.newcomers.holds",
        "self.newcomers.holds",
        LIB,
        "engine::tests::queue::a_first_mutation_that_is_too_old_is_of_an_unknown_client_though_it_was_refused_for_now",
    ),
    "what is purged leaves nothing to go on from": (
        STREAM,
        "|sent| sent.goes_on || sent.begun",
        "|_| false",
        SCENARIOS,
        "the_machine_does_what_every_scenario_says",
    ),
    "of an ack elsewhere a catch-up tells": (
        STREAM,
        "        if !asked && self.queue.iter().any(settled) {",
        "        if false && !asked && self.queue.iter().any(settled) {",
        SCENARIOS,
        "the_machine_does_what_every_scenario_says",
    ),
    "what was sent again is not lost yet": (
        STREAM,
        "if self.queue.is_sent(seal.mid) {",
        "if false {",
        SCENARIOS,
        "the_machine_does_what_every_scenario_says",
    ),
    "what comes before a gap was applied": (
        STREAM,
        "Some(expected) if self.queue.waits_before(expected) =>",
        "Some(expected) if false && self.queue.waits_before(expected) =>",
        SCENARIOS,
        "the_machine_does_what_every_scenario_says",
    ),
    "a purge is heeded after the end": (
        "client/src/sync/connection/mod.rs",
        "        self.numbers.retain(|_, name| name != space);\n",
        "        self.numbers.retain(|_, name| name != space);\n        self.subs.retain(|_, name| name != space);\n",
        SCENARIOS,
        "the_machine_does_what_every_scenario_says",
    ),
    "mid check": (
        COMMIT,
        "        if item.mid <= client.last {",
        "        if item.mid <= client.last.next() {\n            return Ok(None);\n        }\n"
        "        if item.mid <= client.last {",
        E2E,
        "writes::every_mutation_sent_twice_also_across_a_restart_is_applied_once",
    ),
    "key check": (
        COMMIT,
        "Some(result) if result.key == item.key => Outcome::Duplicate",
        "Some(result) => Outcome::Duplicate",
        E2E,
        "writes::a_cloned_database_is_told_so_and_nothing_of_it_is_applied",
    ),
    "key of the one before": (
        COMMIT,
        "Ok((item.prev != Some(client.key)).then_some(Outcome::ClientCloned))",
        "Ok(None)",
        E2E,
        "writes::a_cloned_database_is_told_so_and_nothing_of_it_is_applied",
    ),
    "subscribe before read": (
        "gateway/src/hub/space.rs",
        "        self.read(at, &mut round);\n        if !round.is_whole {\n            return false;\n        }\n",
        "        round.is_whole = true;\n",
        E2E,
        "resume::a_commit_between_snapshot_and_subscription_is_seen_exactly_once",
    ),
    "last-page atomicity": (
        "gateway/src/store/embedded/mod.rs",
        "        self.snapshot(move |cut| changes::changes(cut, &space, &request, (&packs, since)))\n            .await",
        "        let name = space.clone();\n"
        "        let page = self.snapshot(move |cut| changes::changes(cut, &space, &request, (&packs, since)))\n"
        "            .await?;\n"
        "        let ChangesReply::Done { docs, last_mid, .. } = page else { return Ok(page) };\n"
        "        let state = self.positions(&[name]).await?.remove(0);\n"
        "        Ok(ChangesReply::Done { docs, state, last_mid })",
        LIB,
        "store::embedded::tests::scan::at_the_last_page_a_client_holds_exactly_the_space_of_that_head",
    ),
    "born": (
        CHANGES,
        "let after = after.filter(|after| header.born.seq <= *after);",
        "",
        E2E,
        "resume::a_client_long_gone_gets_what_changed_and_not_what_exists",
    ),
    "a long reset brings what was touched since it began": (
        CHANGES,
        "Bound::Included(keys::idx_after(space, begin))",
        "Bound::Included(keys::space_end(space))",
        LIB,
        "store::embedded::tests::scan::a_long_reset_brings_what_was_there_by_path_and_then_what_was_touched_since",
    ),
    "a long reset brings a collection below another once": (
        "gateway/src/store/embedded/sweep.rs",
        "    all.dedup_by(|next, before| next.0 < before.1);\n",
        "",
        LIB,
        "store::embedded::tests::scan::a_long_reset_of_some_collections_walks_over_these_alone",
    ),
    "a pack is of the space's history": (
        PACKS,
        "state.lineage.holds(self.seen, state.head.seq) && state.floor <= self.begin",
        "state.floor <= self.begin",
        LIB,
        "store::embedded::packs::tests::a_pack_of_a_lost_history_or_below_the_floor_is_not_used",
    ),
    "a pack is above the floor": (
        PACKS,
        "state.lineage.holds(self.seen, state.head.seq) && state.floor <= self.begin",
        "state.lineage.holds(self.seen, state.head.seq)",
        LIB,
        "store::embedded::tests::scan::"
        "a_long_reset_is_sent_the_pages_of_one_before_it_and_then_what_was_touched_since",
    ),
    "a pack keeps nothing that was read before an erasure": (
        PACKS,
        "        if since.0 != kept.erasures {\n            return;\n        }\n",
        "        let _ = since.0;\n",
        LIB,
        "store::embedded::packs::tests::what_was_read_before_an_erasure_is_not_kept",
    ),
    "the head of a page": (
        "gateway/src/store/mod.rs",
        "if cursor.head != state.head && lost(cursor.head) {",
        "if cursor.head != state.head && lost(Position::new(cursor.head.epoch, cursor.begin)) {",
        LIB,
        "store::embedded::tests::backup::a_scan_ends_where_a_restore_cut_history_off_below_a_page_of_it",
    ),
    "structure-rule tombstones": (
        "gateway/src/engine/scratch.rs",
        "            self.cells.insert(path, None);",
        "            drop(path);",
        E2E,
        "resume::a_client_long_gone_gets_what_changed_and_not_what_exists",
    ),
    "tombstone floor": (
        "gateway/src/store/mod.rs",
        "(trusted < state.floor).then_some(ResetReason::BelowFloor)",
        "None.filter(|_: &ResetReason| trusted < state.floor)",
        E2E,
        "resume::a_position_below_the_tombstone_floor_is_answered_with_reset",
    ),
    "view check": (
        "gateway/src/session/catchup.rs",
        "Some(from) if from.view != self.what.view.id => {",
        "Some(from) if false && from.view != self.what.view.id => {",
        E2E,
        "resume::a_changed_filter_is_answered_with_reset",
    ),
    "ack after change": (
        "gateway/src/hub/space.rs",
        "            if known && !ahead && member.held.is_empty() {",
        "            if known && member.held.is_empty() {",
        LIB,
        "hub::tests::an_answer_waits_for_its_change_and_out_of_view_for_a_progress_that_covers_it",
    ),
    "an ack of an epoch unknown to the hub": (
        "gateway/src/hub/space.rs",
        "            if known && !ahead && member.held.is_empty() {",
        "            if !ahead && member.held.is_empty() {",
        LIB,
        "hub::tests::an_answer_of_an_epoch_that_the_hub_does_not_know_waits_for_the_store",
    ),
    "a space is followed before its head is read": (
        "gateway/src/hub/mod.rs",
        "        if let Some(bus) = &self.bus {\n            bus.follow(&space.space).await?;\n        }\n"
        "        let state = single(self.store.positions(std::slice::from_ref(&space.space)).await?)?;\n",
        "        let state = single(self.store.positions(std::slice::from_ref(&space.space)).await?)?;\n"
        "        if let Some(bus) = &self.bus {\n            bus.follow(&space.space).await?;\n        }\n",
        LIB,
        "hub::tests::heard::what_is_committed_before_a_subscription_is_confirmed_is_in_the_head_that_is_read_then",
    ),
    "what the bus has cut is read from the log": (
        "gateway/src/hub/mod.rs",
        "            if inner.is_open() {\n                self.fill(&space, &mut inner);",
        "            if false {\n                self.fill(&space, &mut inner);",
        LIB,
        "hub::tests::heard::what_the_bus_has_cut_is_read_from_the_log_at_once",
    ),
    "what is in doubt while a space is opened is read then": (
        "gateway/src/hub/mod.rs",
        "        if found == Found::Gap || inner.doubt {",
        "        if found == Found::Gap {",
        LIB,
        "hub::tests::heard::what_is_cut_or_missed_while_a_space_is_opened_is_read_as_soon_as_it_is_open",
    ),
    "a break is in doubt for a space that is being opened": (
        "gateway/src/hub/mod.rs",
        "            inner.doubt |= !is_open;\n",
        "",
        LIB,
        "hub::tests::heard::what_is_cut_or_missed_while_a_space_is_opened_is_read_as_soon_as_it_is_open",
    ),
    "news that were cut are told": (
        "gateway/src/hub/mod.rs",
        "            // There may have been news of the lineage among it.\n            space.news.notify_waiters();\n",
        "",
        LIB,
        "hub::tests::heard::who_waits_for_a_space_is_told_of_news_that_were_cut",
    ),
    "a space that is being opened is not compared": (
        "gateway/src/hub/mod.rs",
        "            inner.doubt |= !is_open;\n            is_open\n",
        "            inner.doubt |= !is_open;\n            true\n",
        LIB,
        "hub::tests::heard::a_space_that_cannot_be_opened_keeps_no_other_from_being_compared",
    ),
    "the lag is that of other nodes' commits": (
        "gateway/src/hub/mod.rs",
        "filter(|commit| brought.contains(&commit.seq))",
        "filter(|commit| !brought.is_empty() || commit.seq > Seq::ZERO)",
        LIB,
        "hub::tests::heard::how_late_a_commit_is_is_seen_once_where_it_comes_from_another_node_and_somebody_is_brought_it",
    ),
    "commits ahead of a gap are bounded in bytes": (
        "gateway/src/hub/ahead.rs",
        " || self.bytes > bytes {",
        " || self.bytes > usize::MAX.max(bytes) {",
        LIB,
        "hub::tests::commits_ahead_of_a_gap_are_kept_within_bytes_and_what_is_over_them_is_read_from_the_log",
    ),
    "what is dropped ahead of a gap has the log read": (
        "gateway/src/hub/space.rs",
        "        self.doubt |= dropped > 0;\n",
        "",
        LIB,
        "hub::tests::commits_ahead_of_a_gap_are_kept_within_bytes_and_what_is_over_them_is_read_from_the_log",
    ),
    "a repeat that nobody has told of is looked for": (
        "gateway/src/engine/queue.rs",
        "pending.unknown > 0 || self.publish.lacks(space, kept.position)",
        "pending.unknown > 0",
        LIB,
        "engine::tests::queue::repeats::a_repeat_of_what_was_committed_elsewhere_is_published_before_it_is_answered",
    ),
    "the hub knows what it lacks": (
        "gateway/src/hub/mod.rs",
        "            inner.is_open() && inner.position().seq < at.seq",
        "            inner.is_open() && inner.position().seq < at.seq && false",
        CLUSTER,
        "hearing::a_repeat_has_its_commit_read_where_the_bus_has_lost_it",
    ),
    "what is over the inbox's bound is cut": (
        "gateway/src/bus/inbox.rs",
        "                    is_cut: true,\n",
        "",
        LIB,
        "bus::inbox::tests::arrivals_come_in_order_and_a_flood_is_cut_to_nothing",
    ),
    "after a break heads are compared before the node is ready": (
        "gateway/src/bus/redis.rs",
        "comparing = Some(Box::pin(async move { hub.check_heads().await }));",
        "comparing = Some(Box::pin(async move { hub.is_ready() || true }));",
        CLUSTER,
        "hearing::what_is_written_while_the_bus_is_away_is_there_as_soon_as_the_node_is_ready_again",
    ),
    "after a break everything is followed again": (
        "gateway/src/bus/redis.rs",
        "let spaces = state.followed.keys().cloned().map(Request::Subscribe);",
        "let spaces = state.followed.keys().cloned().map(Request::Subscribe).skip(usize::MAX);",
        CLUSTER,
        "hearing::what_is_written_while_the_bus_is_away_is_there_as_soon_as_the_node_is_ready_again",
    ),
    "a bus that says nothing is noticed": (
        "gateway/src/bus/redis.rs",
        "        self.heard < self.published && self.since.elapsed() >= time",
        "        self.heard < self.published && self.since.elapsed() >= Duration::MAX.max(time)",
        CLUSTER,
        "hearing::what_is_written_while_the_bus_is_away_is_there_as_soon_as_the_node_is_ready_again",
    ),
    "an ack beyond the hub's commits has the log read": (
        "gateway/src/hub/space.rs",
        "            return match doubtful || beyond.is_some() {",
        "            return match doubtful {",
        LIB,
        "hub::tests::an_answer_beyond_the_commits_that_are_here_waits_until_the_log_has_brought_its_change_or_has_not",
    ),
    "an ack is lost where the store's head is below it": (
        "gateway/src/hub/space.rs",
        "            held.any(|at| !self.lineage.holds(at, end))",
        "            held.any(|at| !self.lineage.holds(at, end.max(at.seq)))",
        LIB,
        "hub::tests::an_answer_beyond_the_commits_that_are_here_waits_until_the_log_has_brought_its_change_or_has_not",
    ),
    "an ack is not lost by a read that was begun before it": (
        "gateway/src/hub/space.rs",
        "        self.doubt |= self.awaited > self.position.seq;\n",
        "",
        LIB,
        "hub::tests::an_answer_that_came_while_the_log_was_read_is_settled_by_the_next_read",
    ),
    "an ack is not due by another history's change": (
        "gateway/src/hub/deliver.rs",
        "held.seq <= at.seq && self.lineage.holds(held, held.seq)",
        "held.seq <= at.seq",
        LIB,
        "hub::tests::an_answer_is_not_due_by_a_change_of_another_history",
    ),
    "positions that are not known yet": (
        "gateway/src/engine/hot.rs",
        "            .all(|position| known(&position))",
        "            .all(|position| known(&position) || true)",
        LIB,
        "engine::tests::hot::a_position_that_another_node_gave_is_looked_up",
    ),
    "what is kept is as of what is read": (
        "gateway/src/engine/hot.rs",
        "        self.state.head == state.head && self.state.lineage == state.lineage",
        "        self.state.head == state.head || self.state.lineage == state.lineage",
        LIB,
        "engine::tests::hot::what_another_node_has_written_is_found_by_the_store_or_by_the_next_read",
    ),
    "kept only what follows": (
        "gateway/src/engine/hot.rs",
        "                Outcome::Applied { position, at, .. } if *position == self.next() => {",
        "                Outcome::Applied { position, at, .. } if position.seq > self.state.head.seq => {",
        LIB,
        "engine::tests::hot::a_group_that_did_not_follow_what_was_known_leaves_nothing",
    ),
    "what is erased is not kept": (
        "gateway/src/engine/mod.rs",
        "        let forget = || self.hot.forget(space);",
        "        let forget = || ();",
        LIB,
        "engine::tests::hot::of_a_space_that_is_erased_nothing_is_kept",
    ),
    "what the writer remembers is what it wrote": (
        "gateway/src/store/embedded/overlay.rs",
        "        self.recent.written(table, &key, Some(&value));\n",
        "",
        LIB,
        "store::embedded::tests::writing::results_are_kept_for_the_last_mutations_of_a_client",
    ),
    "parts of one history": (
        "gateway/src/engine/queue.rs",
        "            known.planned_on.get_or_insert(cut.state.lineage.last_epoch());",
        "            known.planned_on = Some(cut.state.lineage.last_epoch());",
        LIB,
        "engine::tests::queue::what_is_read_in_parts_is_of_one_history",
    ),
    "an epoch is the store's to name": (
        "gateway/src/hub/space.rs",
        "            self.doubt = true;\n            return Found::Gap;\n",
        "            return self.learn(lineage, self.position.seq, commits, metrics);\n",
        LIB,
        "hub::tests::which_epoch_follows_is_for_the_store_to_say_and_not_for_a_publication",
    ),
    "nothing follows another history's start": (
        "gateway/src/hub/space.rs",
        "lineage.names(from.epoch) && lineage.holds(from, from.seq)",
        "lineage.holds(from, from.seq)",
        LIB,
        "hub::tests::which_epoch_follows_is_for_the_store_to_say_and_not_for_a_publication",
    ),
    "publish before answer": (
        "gateway/src/engine/queue.rs",
        "        self.publish_all(space, &lineage, commits, missed).await;\n"
        "        if !repeats.is_empty() {\n"
        "            answers.extend(self.repeat(space, repeats).await);\n"
        "            answers.sort_by_key(|(place, ..)| *place);\n"
        "        }\n"
        "        for (_, pending, answer) in answers {\n"
        "            pending.give(answer);\n"
        "        }\n",
        "        if !repeats.is_empty() {\n"
        "            answers.extend(self.repeat(space, repeats).await);\n"
        "            answers.sort_by_key(|(place, ..)| *place);\n"
        "        }\n"
        "        for (_, pending, answer) in answers {\n"
        "            pending.give(answer);\n"
        "        }\n"
        "        tokio::task::yield_now().await;\n"
        "        self.publish_all(space, &lineage, commits, missed).await;\n",
        LIB,
        "engine::tests::queue::a_group_is_committed_in_order_published_in_one_call_and_then_answered",
    ),
    "guard of dev mode": (
        "gateway/src/server/dev.rs",
        "        Ok(Some(origin)) if is_local_origin(origin) => Ok(()),",
        "        Ok(Some(_)) => Ok(()),",
        E2E,
        "access::a_website_in_the_users_browser_cannot_reach_dev_mode",
    ),
    "overlay ends with its change": (
        "client/src/sync/space/stream.rs",
        "        if self.queue.set_overlaid(id, false) {\n            self.touch(id);",
        "        if false {\n            self.touch(id);",
        ["-p", "tidegate-client", "--test", "scenarios"],
        "the_machine_does_what_every_scenario_says",
    ),
    "an inc counted once at every step": (
        "client/src/sync/space/stream.rs",
        "        if self.queue.set_overlaid(id, false) {\n            self.touch(id);",
        "        if false {\n            self.touch(id);",
        ["-p", "tidegate-client", "--test", "convergence"],
        "clients_converge_over_a_flaky_link_and_never_count_an_inc_twice",
    ),
    "an inc counted once over real sockets": (
        "client/src/sync/space/stream.rs",
        "        if self.queue.set_overlaid(id, false) {\n            self.touch(id);",
        "        if false {\n            self.touch(id);",
        ["-p", "tidegate", "--test", "e2e"],
        "views::an_inc_is_never_counted_twice_in_a_local_view_also_when_connections_break",
    ),
    "commits of forgotten epochs are not handed out": (
        "gateway/src/store/embedded/read.rs",
        "if trimmed || !state.lineage.names_all_after(after) {",
        "if trimmed {",
        ["-p", "tidegate", "--test", "contract"],
        "named::lineages::commits_of_a_forgotten_epoch_are_not_handed_out_one_by_one",
    ),
    "overlay ends at current": (
        "client/src/sync/space/stream.rs",
        "            if mid.is_some_and(|mid| mid <= reached) {",
        "            if false && mid.is_some_and(|mid| mid <= reached) {",
        ["-p", "tidegate-client", "--test", "scenarios"],
        "the_machine_does_what_every_scenario_says",
    ),
    "one subscription's news for another": (
        "gateway/src/session/conn.rs",
        "            behind.remove(&id);\n",
        "            let _ = behind;\n",
        LIB,
        "server::tests::what_the_hub_said_of_a_subscription_is_not_taken_for_the_one_that_replaces_it",
    ),
    "a read waits for room": (
        "gateway/src/session/conn.rs",
        "        self.outbox.below(self.outbox.soft()).await;\n",
        "",
        E2E,
        "pressure::gets_sent_at_once_are_answered_in_order_and_never_pile_up",
    ),
    "cursor of another position": (
        "gateway/src/session/catchup.rs",
        "cursor.after.is_none_or(|after| after == from.position)",
        "true",
        E2E,
        "resume::a_cursor_of_another_position_is_not_taken_up",
    ),
    "precondition": (
        EVALUATE,
        "if let Some((refusal, unit)) = self.failing(index, op) {",
        "if let Some((refusal, unit)) = self.failing(index, op).filter(|_| false) {",
        LIB,
        "engine::tests::refusals::exists_is_judged_as_the_ops_before_have_left_it",
    ),
    "policy reject": (
        EVALUATE,
        "self.rejected.get_or_insert_with(|| at(index, path));",
        "let _ = at(index, path);",
        LIB,
        "engine::tests::conflicts::first_writer_wins_refuses_the_whole_mutation_and_shows_what_stands",
    ),
    "policy merge": (
        EVALUATE,
        "        done != ConflictDone::Skipped\n",
        "        true\n",
        LIB,
        "engine::tests::conflicts::merge_leaves_units_in_conflict_out_and_writes_the_others",
    ),
    "a cell is logged once a mutation": (
        EVALUATE,
        "theirs.retain(|(at, _)| self.theirs.insert(",
        "theirs.retain(|(at, _)| true || self.theirs.insert(",
        LIB,
        "engine::tests::conflicts::a_large_leaf_that_many_units_meet_is_logged_once",
    ),
    "conflict with what was collected": (
        "gateway/src/engine/guard.rs",
        "(foreign(header.born) || foreign(header.last))",
        "foreign(header.born)",
        LIB,
        "engine::tests::conflicts::ops_on_the_document_conflict_also_with_a_removal_whose_tombstone_is_collected",
    ),
    "base cut to its epoch": (
        "gateway/src/store/lineage.rs",
        ".map_or(Seq::ZERO, |end| base.seq.min(end))",
        ".map_or(base.seq, |_| base.seq)",
        LIB,
        "engine::tests::conflicts::a_base_is_cut_to_the_end_of_its_epoch_and_an_unknown_epoch_counts_as_0",
    ),
    "records age by the clock": (
        "gateway/src/engine/queue.rs",
        "let now_ms = self.env.now_ms();",
        "let now_ms = self.env.now_ms().max(cut.state.last_ms);",
        LIB,
        "engine::tests::queue::a_clock_that_was_once_far_ahead_makes_no_client_old",
    ),
    "documents as planned on": (
        COMMIT,
        "if self.header(doc)?.map(|header| header.last.seq) != expected {",
        "if false && self.header(doc)?.map(|header| header.last.seq) != expected {",
        LIB,
        "store::embedded::tests::writing::items_of_a_group_build_on_each_other_only_as_planned",
    ),
    "planned on an item that fell": (
        COMMIT,
        "_ => return Ok(false),",
        "_ => continue,",
        LIB,
        "store::embedded::tests::writing::items_of_a_group_build_on_each_other_only_as_planned",
    ),
    "time as planned on": (
        COMMIT,
        "if effects.now_ms.is_some_and(|now| now != at) {",
        "if false && effects.now_ms.is_some_and(|now| now != at) {",
        LIB,
        "store::embedded::tests::writing::time_never_goes_back_and_a_plan_that_used_it_is_made_again",
    ),
    "record kept for refusals": (
        COMMIT,
        "                let position = self.space.head();\n                self.keep(\n",
        "                let position = self.space.head();\n                let _ = (\n",
        LIB,
        "store::embedded::tests::writing::a_refusal_consumes_the_mid_and_its_result_is_kept",
    ),
    "256 results": (
        "gateway/src/store/embedded/results.rs",
        "let is_kept = mid.get() + KEPT_RESULTS > client.last.get();",
        "let is_kept = true;",
        LIB,
        "store::embedded::tests::writing::results_are_kept_for_the_last_mutations_of_a_client",
    ),
    "256 results of format 2": (
        COMMIT,
        ".checked_sub(KEPT_RESULTS)",
        ".checked_sub(KEPT_RESULTS / 2)",
        LIB,
        RESULTS_2,
    ),
    "results of format 2 are where it had them": (
        "gateway/src/store/embedded/records.rs",
        "            Some(from) if mid >= from => keys::result(space, writer, mid),",
        "            Some(_) => keys::result(space, writer, mid),",
        LIB,
        RESULTS_2,
    ),
    "what outgrows a record is spread": (
        DOCUMENT,
        "    if HEADER_BYTES + size > PACKED_BYTES {",
        "    if size > 1 << 15 {",
        LIB,
        CROSSING,
    ),
    "what has come down is packed again": (
        REWRITE,
        "let is_tried = (!was_large || shrank) &&",
        "let is_tried = (!was_large || shrank && false) &&",
        LIB,
        CROSSING,
    ),
    "what is packed is nowhere else": (
        REWRITE,
        "            overlay.remove(Table::Fields, key.to_vec());\n            overlay.remove(Table::Cells, key.to_vec());\n",
        "            drop(key);\n",
        LIB,
        "store::embedded::tests::packing::documents_of_format_2_are_read_as_they_are_and_packed_as_they_are_written_to",
    ),
    "what is pending is not packed by what is on disk": (
        REWRITE,
        "(!was_large || shrank) && !overlay.is_pending(Table::Cells, &key);",
        "!was_large || shrank;",
        LIB,
        "store::embedded::tests::packing::what_outgrows_its_record_and_comes_down_in_one_write_loses_nothing",
    ),
    "results of one run share a record": (
        "gateway/src/store/embedded/results.rs",
        "first.get() / RUN == mid.get() / RUN);",
        "first.get() / RUN < mid.get() / RUN);",
        LIB,
        "store::embedded::tests::writing::results_are_kept_for_the_last_mutations_of_a_client",
    ),
    "a new run takes the place of the oldest": (
        "gateway/src/store/embedded/results.rs",
        "first.get() / RUN == mid.get() / RUN);",
        "first <= mid);",
        LIB,
        RESULTS_2,
    ),
    "a run more than what is kept": (
        "gateway/src/store/embedded/results.rs",
        "pub(super) const SLOTS: u64 = KEPT_RESULTS / RUN + 1;",
        "pub(super) const SLOTS: u64 = KEPT_RESULTS / RUN;",
        LIB,
        RESULTS_2,
    ),
    "a commit writes few records": (
        "gateway/src/store/embedded/results.rs",
        "pub(super) const RUN: u64 = 16;",
        "pub(super) const RUN: u64 = 1;",
        LIB,
        "store::embedded::tests::packing::a_commit_to_one_field_writes_four_records_and_what_its_group_shares",
    ),
    "no run of a record that was replaced": (
        "gateway/src/store/embedded/results.rs",
        "(last.saturating_sub(KEPT_RESULTS + RUN - 1)..=last)",
        "(last.saturating_sub(KEPT_RESULTS / 2)..=last)",
        LIB,
        "store::embedded::tests::collection::of_a_record_that_was_replaced_or_forgotten_no_result_is_left",
    ),
    "what the writer remembers is bounded in bytes": (
        "gateway/src/store/embedded/recent.rs",
        "if self.records.len() >= RECORDS || self.bytes + bytes > BYTES {",
        "if self.records.len() >= RECORDS {",
        LIB,
        "store::embedded::recent::tests::what_is_remembered_is_bounded_in_bytes_and_counted_right",
    ),
    "a tombstone in a record is collected": (
        COLLECT,
        "            overlay.put(Table::Cells, doc_key, record);\n",
        "            let _ = record;\n",
        LIB,
        CROSSING,
    ),
    "a walk meets no cell of a packed document": (
        "gateway/src/store/embedded/sweep.rs",
        "records::cell_parts(&record).filter(|_| !is_packed);",
        "records::cell_parts(&record).filter(|_| !is_packed || true);",
        LIB,
        "store::embedded::tests::damage::a_cell_beside_a_packed_document_is_told_by_a_walk",
    ),
    "check looks at the order in a record": (
        "gateway/src/store/embedded/check/docs.rs",
        "            if cell.field <= last {",
        "            if cell.field < last {",
        LIB,
        "store::embedded::tests::check::each_thing_that_can_be_wrong_is_found_and_named",
    ),
    "check finds cells beside a record": (
        "gateway/src/store/embedded/check/docs.rs",
        "        if document.is_packed {",
        "        if false {",
        LIB,
        "store::embedded::tests::check::each_thing_that_can_be_wrong_is_found_and_named",
    ),
    "check finds results where they do not belong": (
        "gateway/src/store/embedded/check/logs.rs",
        "if !is_there || mid > client.last ||",
        "if mid > client.last ||",
        LIB,
        "store::embedded::tests::check::each_thing_that_can_be_wrong_is_found_and_named",
    ),
    "a packed document that cannot be read is erased": (
        "gateway/src/store/embedded/erase.rs",
        "        let before = before.filter(|_| packed != Some(None));\n",
        "",
        LIB,
        "store::embedded::tests::damage::a_packed_document_of_which_a_part_is_missing_is_told_and_goes_with_an_erasure",
    ),
    "what others wrote of a packed document is kept": (
        "gateway/src/store/embedded/erase.rs",
        "                let is_kept = !whose.contains(&cell.stamp.writer);",
        "                let is_kept = false;",
        LIB,
        "store::embedded::tests::erasing::"
        "a_user_who_was_being_erased_when_the_process_ended_leaves_what_others_wrote_and_no_more",
    ),
    "record retention": (
        COMMIT,
        ".filter(|client| !client.expired(",
        ".filter(|client| true || !client.expired(",
        LIB,
        "store::embedded::tests::writing::a_record_lives_as_long_after_the_last_write_or_repeat_as_retention_says",
    ),
    "tombstone written over while it waits": (
        COLLECT,
        "|stamp: Stamp, value: Option<&[u8]>| value.is_none() && stamp.seq == seq;",
        "|stamp: Stamp, value: Option<&[u8]>| value.is_none() || stamp.seq > Seq::ZERO;",
        LIB,
        "store::embedded::tests::collection::a_cell_or_document_written_again_before_its_tombstone_is_collected_stays",
    ),
    "conflicts among the bytes in line": (
        "gateway/src/store/embedded/writer.rs",
        "=> detail.len() + conflicts.iter().map(conflict).sum::<usize>(),",
        "=> detail.len() + 0 * conflicts.iter().map(conflict).sum::<usize>(),",
        LIB,
        "store::embedded::tests::writing::conflicts_to_be_logged_count_among_the_bytes_in_line",
    ),
    "counts of a migration": (
        "gateway/src/store/embedded/migrate.rs",
        "        count(&cut, &space, &mut meta)?;",
        "        let _ = count;",
        CONTRACT,
        "format::a_directory_of_an_older_format_is_brought_to_this_one_and_answers_as_it_did",
    ),
    "a clock far ahead that forgot": (
        "gateway/src/store/mod.rs",
        " || forgotten.is_some_and(|forgotten| first <= forgotten)",
        " || forgotten.is_some_and(|_| false)",
        CONTRACT,
        "named::a_client_forgotten_by_a_clock_that_was_far_ahead_is_never_applied_again",
    ),
    "results go with their record": (
        COMMIT,
        "        for old in results::in_slots(client.last) {",
        "        for old in results::in_slots(client.last).take(0) {",
        LIB,
        "store::embedded::tests::collection::of_a_record_that_was_replaced_or_forgotten_no_result_is_left",
    ),
    "quota": (
        "gateway/src/engine/bounds.rs",
        "if after > before && reached > limit {",
        "if false && reached > limit {",
        E2E,
        "keeping::a_write_over_a_quota_is_refused_with_the_numbers_and_those_after_it_go_on",
    ),
    "what does not grow passes a quota": (
        "gateway/src/engine/bounds.rs",
        "if after > before && reached > limit {",
        "if reached > limit {",
        LIB,
        "engine::tests::quota::the_bytes_of_a_space_and_of_all_stay_within_their_quotas",
    ),
    "quota within a group": (
        "gateway/src/engine/plan.rs",
        "self.room.take(before, Usage::of(known.state.header.as_ref()));",
        "let _ = before;",
        LIB,
        "engine::tests::quota::mutations_of_one_group_are_counted_together_and_refused_ones_not_at_all",
    ),
    "a directory is given back at once": (
        "gateway/src/store/embedded/disk.rs",
        "if let Err(error) = self.0.unlock() {",
        "if let Err(error) = Ok::<(), io::Error>(()) {",
        LIB,
        "store::embedded::tests::opening::"
        "a_directory_is_free_once_its_store_has_ended_also_while_a_process_just_begun_has_its_files",
    ),
    "erasure resets positions": (
        "gateway/src/store/embedded/erase.rs",
        "        space.lineage = Lineage(vec![LineageEntry {",
        "        let _ = Lineage(vec![LineageEntry {",
        CONTRACT,
        "named::erasing_resets_every_position_and_seqs_go_on",
    ),
    "marker of an erased writer": (
        "gateway/src/store/embedded/erase.rs",
        "self.overlay.put_record(Table::Clients, key, &Client::erased(when));",
        "let _ = (Client::erased(when), self.overlay.remove(Table::Clients, key));",
        CONTRACT,
        "named::of_a_user_erased_nothing_is_left_and_others_lose_their_positions_only",
    ),
    "closed while it is erased": (
        "gateway/src/store/embedded/records.rs",
        "            Some(_) => Err(StoreError::Unavailable(\"the space is being erased\".to_owned())),",
        "            Some(_) => Ok(()),",
        LIB,
        "store::embedded::tests::erasing::a_space_that_was_being_erased_when_the_process_ended_is_closed_until_it_is_gone",
    ),
    "erasure is taken up again": (
        "gateway/src/store/embedded/totals.rs",
        "erasing.extend(meta.erasing.map(|_| space));",
        "erasing.extend(meta.erasing.map(|_| space).filter(|_| false));",
        LIB,
        "store::embedded::tests::erasing::a_space_that_was_being_erased_when_the_process_ended_is_closed_until_it_is_gone",
    ),
    "erasure goes on without its asker": (
        "gateway/src/store/embedded/erase.rs",
        ".find(|erasure| erasure.next <= now);",
        ".find(|erasure| erasure.next <= now && erasure.asked.iter().any(|asked| !asked.is_closed()));",
        LIB,
        "store::embedded::tests::erasing::an_erasure_goes_on_when_nobody_waits_for_it_any_more",
    ),
    "a step that failed is tried again": (
        "gateway/src/store/embedded/erase.rs",
        "                erasure.wait = (erasure.wait * 2).min(LAST_AGAIN);",
        "                return;",
        FAULTS,
        "full::an_erasure_that_meets_a_failing_disk_goes_on_when_that_takes_writes_again",
    ),
    "subscribers are told of an erasure": (
        "gateway/src/engine/mod.rs",
        "            self.publish.publish(space, lineage, &[]);\n            emptied.lock().clone_from(lineage);",
        "            let _ = (&emptied, lineage);",
        E2E,
        "keeping::who_is_subscribed_is_told_of_an_erasure_and_need_not_wait_for_a_head_check",
    ),
    "subscribers are told when an erasure begins": (
        "gateway/src/engine/mod.rs",
        "            self.publish.publish(space, lineage, &[]);\n            emptied.lock().clone_from(lineage);",
        "            emptied.lock().clone_from(lineage);",
        E2E,
        "keeping::who_is_subscribed_is_told_when_an_erasure_begins_whenever_its_end_is_told",
    ),
    "a space that opens is told": (
        "gateway/src/hub/mod.rs",
        "        if commits.is_empty() {\n            space.news.notify_waiters();\n",
        "        if commits.is_empty() {\n",
        E2E,
        "keeping::who_waits_for_a_space_that_is_being_erased_is_told_when_it_opens",
    ),
    "epochs are named as long as a position may be": (
        "gateway/src/store/lineage.rs",
        ".take_while(|pair| pair[1].start < floor)",
        ".take_while(|pair| pair[1].start <= floor && floor > Seq::ZERO)",
        CONTRACT,
        "named::lineages::who_stands_at_the_floor_goes_on_when_the_next_life_of_the_store_begins_an_epoch_there",
    ),
    "whose a writer is": (
        COMMIT,
        "        if enrol {",
        "        if enrol && false {",
        E2E,
        "keeping::what_a_user_wrote_is_gone_from_everybody_once_it_is_erased",
    ),
    "lineage as planned on": (
        COMMIT,
        "if !self.planned || !self.expectations_hold(&item.expects)? {",
        "if !self.expectations_hold(&item.expects)? {",
        CONTRACT,
        "named::a_plan_made_on_another_lineage_is_stale",
    ),
    "map with something collected below it": (
        "gateway/src/engine/guard.rs",
        "path.is_some_and(|path| !stands_at_or_above(doc, path));",
        "path.is_some_and(|path| around(doc, Some(path)).next().is_none());",
        LIB,
        "engine::tests::conflicts::a_map_conflicts_with_the_removal_of_something_below_it_whose_tombstone_is_collected",
    ),
    "one damaged document": (
        "gateway/src/engine/queue.rs",
        "if group.len() > 1 => return self.one_by_one(space, group, &why).await,",
        "if group.len() > 1 && why.is_empty() => return self.one_by_one(space, group, &why).await,",
        LIB,
        "engine::tests::queue::a_damaged_document_holds_up_nobody_but_those_who_write_to_it",
    ),
    "log by age": (
        COLLECT,
        "if let Some(to) = due.trim {",
        "if let Some(to) = due.trim.filter(|_| false) {",
        LIB,
        "store::embedded::tests::collection::collection_goes_by_the_time_of_the_commits",
    ),
    "a restore begins an epoch": (
        "gateway/src/store/embedded/restore.rs",
        "minted.unwrap_or(bytes)",
        "minted.map_or(bytes.clone(), |_| bytes)",
        LIB,
        "store::embedded::tests::backup::a_restored_store_is_the_same_but_for_an_epoch_at_the_head_of_every_space",
    ),
    "digests of a backup": (
        "gateway/src/store/embedded/restore.rs",
        "if said != records || found[..] != digest[..] {",
        "if said != records && found[..] != digest[..] {",
        LIB,
        "store::embedded::tests::backup::a_backup_with_any_byte_missing_or_changed_is_refused_and_leaves_no_store",
    ),
    "a backup gives way": (
        "gateway/src/store/embedded/backup.rs",
        "            if (self.is_closing)() {",
        "            if false && (self.is_closing)() {",
        LIB,
        "store::embedded::tests::backup::a_backup_ends_when_nobody_takes_it_and_when_the_database_is_wanted_back",
    ),
    "no store beside half a restore": (
        "gateway/src/store/embedded/disk.rs",
        "(None, false) if dir.join(RESTORED).exists() =>",
        "(None, false) if false && dir.join(RESTORED).exists() =>",
        OPERATE,
        "a_restore_that_was_killed_leaves_no_store_and_can_be_done_again",
    ),
    "a backup is its owner's": (
        "gateway/src/cli/operate/file.rs",
        "file.set_permissions(Permissions::from_mode(0o600))",
        "Ok::<(), io::Error>(drop(Permissions::from_mode(0o600)))",
        OPERATE,
        "what_lies_where_a_backup_is_written_opens_it_to_nobody_and_leads_it_nowhere",
    ),
    "a stalled backup ends": (
        "gateway/src/server/control.rs",
        "match timeout(stalled, connection.write_all(bytes)).await {",
        "match timeout(stalled * 1_000, connection.write_all(bytes)).await {",
        LIB,
        "server::control::tests::a_backup_whose_reader_takes_nothing_for_long_enough_ends_and_the_next_has_its_turn",
    ),
    "a damaged space holds up no other's collection": (
        COLLECT,
        "                    Err(StoreError::Damaged(why)) => {",
        "                    Err(StoreError::Damaged(why)) if why.is_empty() => {",
        LIB,
        "store::embedded::tests::collection::a_space_of_which_something_cannot_be_read_holds_up_no_other",
    ),
    "bytes read for a group": (
        "gateway/src/engine/queue.rs",
        "            if known.bytes >= enough {",
        "            if known.bytes >= enough * 1_000 {",
        LIB,
        "engine::tests::queue::a_group_ends_where_the_documents_that_it_is_about_get_too_large",
    ),
    "bytes read for a mutation": (
        "gateway/src/engine/queue.rs",
        "                0 => self.config.mutation_bytes,",
        "                0 => usize::MAX,",
        LIB,
        "engine::tests::queue::a_mutation_about_too_much_is_refused_before_all_of_it_is_read_and_the_next_goes_on",
    ),
    "values in conflicts are checked": (
        "gateway/src/store/embedded/records.rs",
        ".filter(|value| value.as_bytes() == bytes)",
        "",
        LIB,
        "store::embedded::tests::check::each_thing_that_can_be_wrong_is_found_and_named",
    ),
    "check sums up the leaves": (
        "gateway/src/store/embedded/check/docs.rs",
        "        if header.size != size {",
        "        if false && header.size != size {",
        LIB,
        "store::embedded::tests::check::each_thing_that_can_be_wrong_is_found_and_named",
    ),
    "check meets branches with a third between": (
        "gateway/src/store/embedded/check/docs.rs",
        "self.open.pop();",
        "self.open.clear();",
        LIB,
        "store::embedded::tests::check::each_thing_that_can_be_wrong_is_found_and_named",
    ),
    "synced before the answer": (
        "gateway/src/store/embedded/writer.rs",
        "            Durability::Fsync => PersistMode::SyncAll,",
        "            Durability::Fsync => PersistMode::Buffer,",
        CONTRACT,
        "power::at_fsync_what_was_answered_survives_a_power_cut",
    ),
    "names survive a power cut, too": (
        "gateway/src/store/embedded/disk.rs",
        "    File::open(above)?.sync_all()",
        "    Ok(())",
        CONTRACT,
        "power::at_fsync_what_was_answered_survives_a_power_cut",
    ),
    "a torn end is cut off": (
        "gateway/src/store/embedded/journal.rs",
        "        file.set_len(found.whole as u64)?;",
        "",
        LIB,
        "store::embedded::tests::journals::a_torn_end_is_cut_off_wherever_it_is_torn",
    ),
    "a broken record before whole ones is damage": (
        "gateway/src/store/embedded/journal.rs",
        "batches.next().map_or(Rest::Torn, Rest::Broken)",
        "batches.next().map_or(Rest::Torn, |_| Rest::Torn)",
        LIB,
        "store::embedded::tests::journals::a_broken_record_before_whole_ones_is_damage_and_nothing_is_touched",
    ),
    "reopen after a failed write": (
        "gateway/src/store/embedded/writer.rs",
        "        match self.shared.reopen(self.options.reserve_bytes) {",
        "        match Err::<(), _>(StoreError::Unavailable(String::new())) {",
        FAULTS,
        "full::while_the_disk_is_full_or_fails_reads_go_on_and_afterwards_writes_do",
    ),
    "reserve kept free": (
        "gateway/src/store/embedded/writer.rs",
        "        self.shared.room(self.options.reserve_bytes)?;",
        "",
        FAULTS,
        "full::a_small_file_system_fills_up_to_the_reserve_and_is_written_on_when_there_is_room",
    ),
    "reads kept until the disk takes writes": (
        "gateway/src/store/embedded/shared.rs",
        "        let copies = journal::copy(&database).map_err(|error| unopened(&error))?;\n"
        "        self.close()?;\n",
        "        self.close()?;\n"
        "        let copies = journal::copy(&database).map_err(|error| unopened(&error))?;\n",
        FAULTS,
        "full::while_the_disk_is_full_or_fails_reads_go_on_and_afterwards_writes_do",
    ),
    "files looked over before they are opened": (
        "gateway/src/store/embedded/disk.rs",
        "        trees::check(&home.database(), found >= TABLES_SINCE)?;\n",
        "",
        FAULTS,
        "damaged::whatever_file_is_damaged_or_gone_a_gateway_names_it_does_not_start_and_touches_nothing",
    ),
    "an epoch that begins during a catch-up by log": (
        "client/src/sync/replica.rs",
        "            catch_up.epoch = position.epoch;",
        "            let _ = catch_up;",
        SCENARIOS,
        "the_machine_does_what_every_scenario_says",
    ),
    "checker: the order in real time": (
        "history/src/space.rs",
        "            if self.truth.leads_to(here, after) {",
        "            if false {",
        BROKEN,
        "store::the_order_in_real_time_reads_and_bases_bind_a_mutation",
    ),
    "checker: nothing left out": (
        "history/src/judge.rs",
        "        if from == to {\n            return None;\n        }\n        let missed",
        "        if from.seq <= to.seq {\n            return None;\n        }\n        let missed",
        BROKEN,
        "stream::a_dropped_change_is_a_gap",
    ),
    "checker: the state at the end of a catch-up": (
        "history/src/judge.rs",
        "        if sum == self.truth.sum_at(to, covers) {",
        "        if sum == sum {",
        BROKEN,
        "catch_up::",
    ),
    "client: what is expected and was acked since is sent for once more": (
        "client/src/sync/space/stream.rs",
        "expected <= self.queue.identity().acked || self.queue.holds(expected)",
        "self.queue.holds(expected)",
        SCENARIOS,
        "the_machine_does_what_every_scenario_says",
    ),
    "checker: copies are applied once each": (
        "history/src/space.rs",
        "applied.is_copied() && applied.times(&self.truth, here) <= applied.holders;",
        "applied.is_copied();",
        BROKEN,
        "mutations::a_copy_is_applied_once_for_each_storage_and_not_where_it_was_refused",
    ),
    "checker: what an app was told is kept over a restart": (
        "history/src/app.rs",
        "        of.acked.clone_from(&of.kept);",
        "        of.acked.clear();",
        BROKEN,
        "mutations::a_loss_of_what_an_app_was_told_before_a_restart_is_to_be_reported_after_it",
    ),
    "client: a loss takes along what was acked since": (
        "client/src/sync/space/stream.rs",
        "self.report_lost(from, self.queue.identity().acked);",
        "self.report_lost(from, from);",
        ["-p", "tidegate-client", "--test", "scenarios"],
        "the_machine_does_what_every_scenario_says",
    ),
    "checker: each own mutation in a view, once": (
        "history/src/view.rs",
        "        if count < expected || count > expected + perhaps {",
        "        if count < 0 {",
        BROKEN,
        "views::",
    ),
    "redis: who asks for the log stands in this history": (
        "gateway/src/store/redis/mod.rs",
        "if !state.lineage.holds(after, state.head.seq) {",
        "if after.seq > state.head.seq {",
        CLUSTER,
        FAILOVER,
    ),
    "redis: a scan goes on in this history alone": (
        "gateway/src/store/mod.rs",
        "let lost = |position: Position| !state.lineage.holds(position, state.head.seq);",
        "let lost = |position: Position| position.seq > state.head.seq;",
        CLUSTER,
        FAILOVER,
    ),
    "redis: the first commit of another life begins an epoch": (
        "gateway/src/store/redis/scripts/commit.lua",
        "local minted = life ~= meta.life",
        "local minted = meta.life == ''",
        CLUSTER,
        FAILOVER,
    ),
    "redis: a log that lacks commits brings nothing in their place": (
        "gateway/src/store/redis/mod.rs",
        "            if seq != expected {\n                break;\n            }\n",
        "",
        CLUSTER,
        "wiped::a_log_that_lacks_a_commit_is_read_up_to_that_and_what_has_changed_after_it",
    ),
    "redis: a space without meta can be read page by page": (
        "gateway/src/store/mod.rs",
        "if cursor.head != state.head && lost(cursor.head) {",
        "if lost(cursor.head) {",
        CLUSTER,
        "wiped::a_space_without_its_meta_goes_on_from_its_highest_number_and_every_position_resets",
    ),
    "redis: a log that is gone begins anew": (
        "gateway/src/store/redis/scripts/commit.lua",
        "elseif redis.call('XLEN', log) ~= meta.head + 1 - meta.log_first then",
        "elseif false then",
        CLUSTER,
        "wiped::a_space_without_its_log_brings_what_has_changed_and_nobody_resets",
    ),
    "redis: a document that is gone holds up nobody else": (
        "gateway/src/store/redis/link.rs",
        '"WRONGTYPE" | "TGTORN" => LinkError',
        '"WRONGTYPE" => LinkError',
        CLUSTER,
        "wiped::a_document_that_is_gone_holds_up_nobody_who_does_not_write_to_it",
    ),
    "redis: a server that is no primary any more is left": (
        "gateway/src/store/redis/link.rs",
        'if matches!(refused.code(), Some("TGROLE" | "READONLY")) {',
        "if refused.code().is_none() {",
        CLUSTER,
        "failover::a_primary_that_is_demoted_in_place_is_left_for_the_one_that_took_over",
    ),
    "redis: who finds an erasure over leaves it": (
        "gateway/src/store/redis/erase.rs",
        "Value::Int(0) => Err(Left::Over),",
        "Value::Int(0) => Ok(true),",
        CONTRACT,
        "named::steps::who_is_held_up_in_the_erasure_of_a_space_that_another_ends_leaves_what_came_since",
    ),
    "redis: a sweep that takes nothing is over": (
        "gateway/src/store/redis/collect.rs",
        "if taken == 0 {",
        "if taken == u64::MAX {",
        CONTRACT,
        "named::steps::a_sweep_under_which_the_floor_falls_or_the_space_closes_comes_to_an_end",
    ),
    "redis: marks of time go with the floor": (
        "gateway/src/store/redis/collect.rs",
        "if below.len() < STEP {",
        "if below.len() <= STEP {",
        CONTRACT,
        "named::steps::marks_of_time_below_the_floor_go_and_those_above_stay",
    ),
    "redis: an erasure ends where all its steps were done": (
        "gateway/src/store/redis/scripts/erase_end.lua",
        "if life ~= ARGV[2] then",
        "if false then",
        CONTRACT,
        "named::steps::an_erasure_goes_on_where_another_server_takes_over_and_does_again_what_that_lacks",
    ),
    "redis: what the index has lost is looked for before it is erased": (
        "gateway/src/store/redis/erase.rs",
        "if !self.step(step).await? {",
        "if !self.step(step).await? && false {",
        CONTRACT,
        "named::steps::a_space_that_lacks_keys_is_erased_whole",
    ),
    "redis: of a space that is half carried over no user is erased": (
        "gateway/src/store/redis/scripts/erase_begin.lua",
        "if carried and ARGV[1] ~= '' then",
        "if false then",
        CONTRACT,
        "named::steps::a_space_that_is_half_carried_over_can_be_erased_as_a_whole_alone",
    ),
    "redis: a space is carried over by one run at a time": (
        "gateway/src/store/redis/scripts/carry.lua",
        "if redis.call('HGET', KEYS[1], 'erasing') ~= ARGV[1] then",
        "if false then",
        CLUSTER,
        "migrate::a_run_that_another_one_has_overtaken_writes_nothing_more",
    ),
    "redis: all spaces are closed before one is carried over": (
        "gateway/src/store/redis/import.rs",
        'self.take(&carried, "take")',
        'self.take(&carried, "look")',
        CLUSTER,
        "migrate::a_run_that_is_killed_leaves_its_spaces_closed_and_the_next_one_ends_it",
    ),
    "redis: a space that is in the way is not written to": (
        "gateway/src/store/redis/scripts/take.lua",
        "elseif not redis.call('HGET', KEYS[1], 'erased') or redis.call('EXISTS', KEYS[2], KEYS[3], KEYS[4], KEYS[5]) > 0 then",
        "elseif false then",
        CLUSTER,
        "migrate::a_space_that_is_in_the_way_can_be_erased_and_no_position_of_it_is_taken_for_another",
    ),
    "redis: what is gone no longer counts": (
        "gateway/src/store/redis/mod.rs",
        "let is_there = *heard >= walk;",
        "let is_there = *heard > 0 || walk > 0;",
        CONTRACT,
        "named::steps::what_is_gone_from_redis_no_longer_counts_after_a_walk_and_what_is_damaged_holds_up_none",
    ),
    "redis: a clock that is far ahead collects nothing": (
        "gateway/src/store/redis/collect.rs",
        "let is_wrong = now_ms.abs_diff(server_ms) > SKEW_MS;",
        "let is_wrong = now_ms.abs_diff(server_ms) > u64::MAX - SKEW_MS;",
        CONTRACT,
        "named::steps::a_node_whose_clock_is_far_from_that_of_redis_collects_nothing",
    ),
    "redis: marks of time are looked at some at a time": (
        "gateway/src/store/redis/collect.rs",
        "cmd.arg(keys.marks()).arg(0).arg(STEP - 1);",
        "cmd.arg(keys.marks()).arg(0).arg(-1);",
        CONTRACT,
        "named::on_redis::collection_and_erasure_ask_little_of_redis_at_a_time",
    ),
    "redis: a space without meta stands where its log has given the last seq": (
        PRELUDE,
        "return math.max(tonumber(last[2] or 0), last_given(log))",
        "return tonumber(last[2] or 0)",
        CONTRACT,
        "named::redis_lost::a_space_without_meta_goes_on_behind_every_seq_that_its_log_has_given",
    ),
    "redis: a conflict is logged behind every one that was": (
        REDIS_COMMIT,
        "meta.cf_next = math.max(meta.cf_next, last_given(conflicts))",
        "meta.cf_next = meta.cf_next",
        CONTRACT,
        "named::redis_lost::a_conflict_is_logged_behind_every_one_that_was_and_its_commit_is_whole",
    ),
    "redis: a log that begins anew has given no id": (
        REDIS_COMMIT,
        "redis.call('UNLINK', log)",
        "redis.call('XTRIM', log, 'MAXLEN', 0)",
        CONTRACT,
        "named::redis_lost::an_entry_that_somebody_has_put_into_the_log_beyond_the_head_refuses_no_commit",
    ),
    "redis: a scan goes on within a seq": (
        PRELUDE,
        "if is_after(found, path) then",
        "if true then",
        CONTRACT,
        "named::bounds::a_mutation_may_touch_more_documents_than_a_page_holds",
    ),
    "redis: outcomes of a group are one value": (
        REDIS_COMMIT,
        "return { meta.lineage, decimal(meta.docs), decimal(meta.bytes), replies }",
        "return { meta.lineage, decimal(meta.docs), decimal(meta.bytes), { unpack(replies) } }",
        CONTRACT,
        "named::bounds::a_group_may_have_as_many_items_as_may_wait",
    ),
    "redis: a group of which nothing is kept writes nothing": (
        REDIS_COMMIT,
        "if next(writers_written) == nil then",
        "if false then",
        CONTRACT,
        "named::redis_lost::a_space_that_somebody_has_made_up_takes_no_key",
    ),
    "embedded: a group of which nothing is kept begins no epoch": (
        COMMIT,
        "        space.lineage = before;\n",
        "        drop(before);\n",
        CONTRACT,
        "named::lineages::a_group_of_which_nothing_is_kept_makes_no_space_and_begins_no_epoch",
    ),
    "embedded: a clock that goes back makes no client older": (
        COMMIT,
        "when: self.now_ms.max(when),",
        "when: { let _ = when; self.now_ms },",
        CONTRACT,
        "named::lineages::a_clock_that_goes_back_makes_no_client_older_than_it_was",
    ),
    "redis: a clock that goes back makes no client older": (
        REDIS_COMMIT,
        "local when = math.max(record and unpack_at(record, 17) or 0, now)",
        "local when = now",
        CONTRACT,
        "named::lineages::a_clock_that_goes_back_makes_no_client_older_than_it_was",
    ),
    "redis: of a log not much more is read than is sent": (
        "gateway/src/store/redis/scripts/log.lua",
        "count > 0 and FEW * largest <= bytes - spent and FEW or 1",
        "64",
        CONTRACT,
        "named::bounds::of_a_log_with_large_commits_not_much_more_is_read_than_is_sent",
    ),
    "hub: a damaged space holds up no other": (
        "gateway/src/hub/mod.rs",
        "match self.store.each_position(&names).await {",
        "match self.store.positions(&names).await.map(|all| all.into_iter().map(Ok::<_, StoreError>).collect::<Vec<_>>()) {",
        CLUSTER,
        "wiped::a_space_of_which_nothing_can_be_read_holds_up_no_other_and_no_node",
    ),
    "redis: what is no number is damage, and not for now": (
        PRELUDE,
        "error(redis.error_reply('TGTORN ' ..",
        "error(redis.error_reply('ERR ' ..",
        CONTRACT,
        "named::redis_lost::a_space_of_which_nothing_can_be_read_is_told_in_its_place",
    ),
    "redis: a call that was not answered in time is sent again": (
        "gateway/src/store/redis/link.rs",
        "            patience: Duration::from_secs(15),",
        "            patience: Duration::from_secs(5),",
        CLUSTER,
        "faults::by_default_a_redis_that_pauses_for_seven_seconds_costs_time_and_nothing_else",
    ),
    "redis: answers come in the form that is read": (
        "gateway/src/store/redis/endpoint.rs",
        ".set_protocol(ProtocolVersion::RESP2)",
        ".set_protocol(info.redis_settings().protocol())",
        CONTRACT,
        "named::redis_lost::an_address_that_asks_for_another_form_of_answers_is_answered_all_the_same",
    ),
    "a document remembers no more fields than there may be": (
        "gateway/src/engine/bounds.rs",
        "if fields > before && fields > limits.elements {",
        "if fields > before && fields > usize::MAX - 1 {",
        LIB,
        "engine::tests::refusals::a_document_remembers_no_more_fields_than_it_may_have_elements",
    ),
    "sim: lineage": (
        "gateway/src/store/lineage.rs",
        'self.end_of(position.epoch, head).is_some_and(|end| position.seq <= end)',
        '{ let _ = self.end_of(position.epoch, head); position.seq <= head }',
        SIM,
        "every_promise_holds_in_every_history",
    ),
    "sim: mid check": (
        "gateway/src/store/model.rs",
        '                if item.mid <= client.last {',
        '                if item.mid <= client.last && false {',
        SIM,
        "every_promise_holds_in_every_history",
    ),
    "sim: erased client": (
        "gateway/src/store/model.rs",
        '            client.erased = true;\n            client.results.clear();\n',
        '',
        SIM,
        "every_promise_holds_in_every_history",
    ),
    "sim: born": (
        "gateway/src/store/model.rs",
        'after.filter(|after| header.born.seq <= *after) else {',
        'after else {',
        SIM,
        "every_promise_holds_in_every_history",
    ),
    "sim: floor": (
        "gateway/src/store/model.rs",
        '        if self.floor > after.unwrap_or(begin) {',
        '        if false && self.floor > after.unwrap_or(begin) {',
        SIM,
        "every_promise_holds_in_every_history",
    ),
    "sim: subscribe before read": (
        "gateway/src/hub/space.rs",
        "        self.read(at, &mut round);\n        if !round.is_whole {\n            return false;\n        }\n",
        "        round.is_whole = true;\n",
        SIM,
        "every_promise_holds_in_every_history",
    ),
    "sim: last-page atomicity": (
        "gateway/src/store/model.rs",
        "        Ok(self.with(space, |space| space.changes(&request)))",
        "        let page = self.with(space, |space| space.changes(&request));\n"
        "        let ChangesReply::Done { docs, last_mid, .. } = page else { return Ok(page) };\n"
        "        tokio::task::yield_now().await;\n"
        "        let state = self.with(space, Space::state);\n"
        "        Ok(ChangesReply::Done { docs, state, last_mid })",
        SIM,
        "every_promise_holds_in_every_history",
    ),
    "sim: overlay": (
        "client/src/sync/space/stream.rs",
        '        if self.queue.set_overlaid(id, false) {\n            self.touch(id);',
        '        if false {\n            self.touch(id);',
        SIM,
        "every_promise_holds_in_every_history",
    ),
}


def synced(tree):
    """Makes a copy of the tree what the tree is, and touches only what differs, so that builds are incremental."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
    files = {file for file in listed.decode().split("\0") if file and (ROOT / file).is_file()}
    for old in tree.rglob("*") if tree.exists() else []:
        if old.is_file() and str(old.relative_to(tree)) not in files:
            old.unlink()
    for file in files:
        source, copy = ROOT / file, tree / file
        if not copy.exists() or copy.read_bytes() != source.read_bytes():
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(source.read_bytes())
            copy.chmod(source.stat().st_mode)
    return tree


def passes(tree, package, test_name):
    """Builds and runs a test; returns whether it passes, and the seed, number of seeds and breach it tells of."""
    exact = [] if test_name.endswith("::") else ["--exact"]
    environment = {**os.environ, "CARGO_TARGET_DIR": f"{tree}-target"}
    environment.setdefault("TIDEGATE_SIM_SEEDS", "20000")

    def cargo(*arguments):
        command = ["cargo", "test", "--quiet", "--locked", *package, *arguments]
        done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, errors="replace")
        return done.returncode, done.stdout + done.stderr

    code, output = cargo("--no-run")
    if code != 0:
        raise Failed(f"it does not build\n{output}")
    code, output = cargo("--", test_name, *exact)
    ran = [int(n) for n in re.findall(r"^running (\d+) tests?$", output, re.M)]
    if not any(ran):
        raise Failed(f"there is no test {test_name}\n{output}")
    if code != 0 and "test result: FAILED" not in output:
        raise Failed(f"{test_name} neither passed nor failed\n{output}")
    found = re.search(r"seed (\d+), after (\d+) seeds: (.*)", output)
    return code == 0, found and found.groups()


class Failed(Exception):
    """The sabotage itself cannot go on."""


def intact(tree, package, test_name):
    """Sees a test pass with nothing cut."""
    if not passes(tree, package, test_name)[0]:
        raise Failed(f"{test_name} fails before anything is cut")


def noticed(tree, name):
    """Cuts a rule out, and returns a row of the table: whether it was noticed, seconds, seeds, breach."""
    path, code, instead, package, test_name = RULES[name]
    file = tree / path
    text = file.read_text()
    file.write_text(text.replace(code, instead))
    start = time.monotonic()
    try:
        passed, found = passes(tree, package, test_name)
    except Failed as failed:
        raise Failed(f"{name}: {failed}") from None
    finally:
        file.write_text(text)
    _, seeds, breach = found or ("", "", "")
    # A simulator that fails otherwise than by a seed has found nothing.
    is_noticed = not passed and (bool(found) or package is not SIM)
    row = ("noticed" if is_noticed else "NOT NOTICED", name, test_name, time.monotonic() - start, seeds, breach)
    print(line(row), flush=True)
    return row


def line(row):
    verdict, name, test_name, seconds, seeds, breach = row
    return f"{verdict:11}  {name:48} {seconds:4.0f} s  {seeds:>6}  {breach[:100] or test_name}"


def check():
    """Each piece of code to cut is there, exactly once."""
    for name, (path, code, _, _, _) in RULES.items():
        found = (ROOT / path).read_text().count(code)
        if found != 1:
            sys.exit(f"sabotage: {name}: the code to cut is {found} times in {path}; mend scripts/sabotage.py")
    print(f"sabotage: {len(RULES)} rules can be cut")


def main():
    cores = sorted(os.sched_getaffinity(0))
    parser = argparse.ArgumentParser()
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--jobs", type=int, default=len(cores))
    parser.add_argument("names", nargs="*", metavar="NAME")
    arguments = parser.parse_args()
    check()
    if arguments.check:
        return
    names = arguments.names or list(RULES)
    unknown = [name for name in names if name not in RULES]
    if unknown:
        sys.exit(f"sabotage: no rule {unknown}; there are {list(RULES)}")

    jobs = max(1, min(arguments.jobs, len(cores)))
    trees = queue.SimpleQueue()
    for job in range(jobs):
        trees.put((synced(ROOT / "target" / "sabotage" / str(job)), cores[job::jobs]))

    def in_a_tree(work, *what):
        tree, share = trees.get()
        try:
            # Of this thread, and so of all that it starts.
            os.sched_setaffinity(0, share)
            return work(tree, *what)
        finally:
            trees.put((tree, share))

    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:

        def each(work, tasks):
            futures = [pool.submit(in_a_tree, work, *task) for task in tasks]
            try:
                return [future.result() for future in futures]
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise

        tests = {(tuple(RULES[name][3]), RULES[name][4]) for name in names}
        each(intact, sorted(tests))
        print(f"sabotage: {len(tests)} tests pass with nothing cut; seconds, seeds until found:", flush=True)
        rows = each(noticed, [(name,) for name in names])

    print("\nsabotage: all, in order", *map(line, rows), sep="\n")
    unnoticed = [row[1] for row in rows if row[0] != "noticed"]
    if unnoticed:
        sys.exit(f"sabotage: not noticed: {unnoticed}")
    print(f"sabotage: each of {len(names)} cuts was noticed by its test")


if __name__ == "__main__":
    try:
        main()
    except Failed as failed:
        sys.exit(f"sabotage: {failed}")
