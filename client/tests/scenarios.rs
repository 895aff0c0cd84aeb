//! The scenario files that hold the sync machine of every language to one behaviour: see
//! `protocol/scenarios/README.md`.

#![allow(clippy::unwrap_used, missing_docs)] // a test may panic

use serde_json::{Map, Value as Json, json};
use std::collections::BTreeMap;
use std::path::Path;
use tidegate_client::protocol::{ClientMessage, Form, Limits, Policy, ServerMessage, SpaceId};
use tidegate_client::storage::{MemoryStorage, Storage};
use tidegate_client::sync::{
    Command, Config, ConnectFailure, Entropy, Event, Machine, MutationId, Now, Request, SpaceEvent,
};
use tidegate_client::{ConnectionState, WatchItem, WriteError};

const WALL: u64 = 1_700_000_000_000;

/// Ids and keys are 1, 2, 3 …; jitter is half of what it may be.
struct Counted(u64);

impl Entropy for Counted {
    fn next_u64(&mut self) -> u64 {
        self.0 += 1;
        self.0
    }
    fn up_to(&mut self, bound: u64) -> u64 {
        bound / 2
    }
}

struct Run {
    machine: Machine,
    storage: MemoryStorage,
    mono: u64,
    wall: u64,
    draws: u64,
    names: BTreeMap<String, (SpaceId, MutationId)>,
    sent: Vec<Json>,
    told: Vec<Json>,
    confirmed: Vec<Json>,
    state: &'static str,
    socket: bool,
}

fn machine(storage: &MemoryStorage, draws: u64, now: Now) -> Machine {
    let config = Config {
        stores: true,
        ..Config::default()
    };
    let stored = storage.clone().load().unwrap();
    Machine::new(config, stored, Box::new(Counted(draws)), now)
}

impl Run {
    fn new() -> Self {
        let storage = MemoryStorage::new();
        let now = Now {
            mono_ms: 0,
            wall_ms: WALL,
        };
        Self {
            machine: machine(&storage, 0, now),
            storage,
            mono: 0,
            wall: WALL,
            draws: 0,
            names: BTreeMap::new(),
            sent: vec![],
            told: vec![],
            confirmed: vec![],
            state: "offline",
            socket: false,
        }
    }

    fn now(&self) -> Now {
        Now {
            mono_ms: self.mono,
            wall_ms: self.wall,
        }
    }

    fn step(&mut self, step: &Map<String, Json>) {
        // The other keys of a step are details.
        let details = [
            "filter",
            "ops",
            "as",
            "policy",
            "upsert",
            "coalesce",
            "refused",
            "works",
            "retry_after",
        ];
        let (what, with) = step.iter().find(|(key, _)| !details.contains(&key.as_str())).unwrap();
        let now = self.now();
        let space = |name: &Json| SpaceId::parse(name.as_str().unwrap()).unwrap();
        match what.as_str() {
            "subscribe" => {
                let filter = step.get("filter").map(|list| {
                    let names = list.as_array().unwrap().iter();
                    names.map(|name| name.as_str().unwrap().parse().unwrap()).collect()
                });
                self.machine.subscribe(&space(with), filter);
            }
            "unsubscribe" => self.machine.unsubscribe(&space(with)),
            "mutate" => self.mutate(space(with), step),
            "cancel" => {
                let (space, id) = self.names[with.as_str().unwrap()].clone();
                assert_eq!(json!(self.machine.cancel(&space, id)), step["works"]);
            }
            "connect" => {
                self.machine.wake_up(now);
                self.settle();
                assert!(self.socket, "the machine does not ask for a connection");
                self.machine.connected(now);
            }
            "online" => {
                self.step(json!({"connect": true}).as_object().unwrap());
                let hello = self.sent.pop().unwrap();
                assert_eq!(hello, json!({"t": "hello"}));
                self.receive(&welcome(self.wall));
            }
            "refuse" => {
                self.machine.wake_up(now);
                self.settle();
                self.machine.connect_failed(
                    now,
                    ConnectFailure {
                        code: with
                            .as_str()
                            .map(|name| tidegate_client::protocol::Code::from_name(name).unwrap()),
                        message: "refused".to_owned(),
                        retry_ms: step
                            .get("retry_after")
                            .map_or(0, |seconds| seconds.as_u64().unwrap() * 1_000),
                    },
                );
            }
            "lose" => {
                self.socket = false;
                self.machine.disconnected(
                    now,
                    with.as_u64().map(|code| u16::try_from(code).unwrap()),
                    "lost".to_owned(),
                );
            }
            "receive" => self.receive(with),
            "wait" => {
                self.mono += with.as_u64().unwrap();
                self.wall += with.as_u64().unwrap();
                self.machine.handle_timeout(self.now());
            }
            "later_days" => self.wall += with.as_u64().unwrap() * 24 * 60 * 60 * 1000,
            "restart" => {
                self.draws = 1000;
                self.storage = MemoryStorage::restore(self.storage.snapshot());
                self.machine = machine(&self.storage, self.draws, now);
                self.socket = false;
            }
            "sends" => {
                let sent = Json::Array(std::mem::take(&mut self.sent));
                assert_eq!(sent, *with, "sent");
            }
            "tells" => {
                let told = Json::Array(std::mem::take(&mut self.told));
                assert_eq!(told, *with, "told");
            }
            "confirms" => {
                let confirmed = Json::Array(std::mem::take(&mut self.confirmed));
                assert_eq!(confirmed, *with, "confirmed");
            }
            "shows" => self.shows(with),
            "queue" => {
                let queued = |name: &SpaceId| self.machine.space(name).unwrap().queue().queued();
                for (name, wanted) in with.as_object().unwrap() {
                    assert_eq!(
                        json!(queued(&SpaceId::parse(name).unwrap())),
                        *wanted,
                        "queued in {name}"
                    );
                }
            }
            "state" => assert_eq!(self.state, with.as_str().unwrap(), "state"),
            other => panic!("unknown step {other:?}"),
        }
        self.settle();
    }

    fn receive(&mut self, message: &Json) {
        let message: ServerMessage = Form::Json.decode_server(text(message).as_bytes()).unwrap();
        self.machine.received(self.now(), message);
    }

    fn mutate(&mut self, space: SpaceId, step: &Map<String, Json>) {
        let write = json!({"t": "write", "space": space.as_str(), "client": 1, "mid": 1, "key": 1, "first": 1, "ops": step["ops"]});
        let write = Form::Json.decode_client(text(&write).as_bytes(), &Limits::default());
        let Ok(ClientMessage::Write(write)) = write else {
            panic!("ops: {write:?}")
        };
        let flag = |name| step.get(name).is_some_and(|flag| flag == true);
        let policy = step.get("policy").map(|name| {
            let (policy, _) = Policy::ALL.into_iter().find(|(_, wire)| name == wire).unwrap();
            policy
        });
        let request = Request {
            ops: write.ops,
            policy,
            upsert: flag("upsert"),
            coalesce: flag("coalesce"),
        };
        match self.machine.mutate(self.now(), &space, request) {
            Ok(id) => {
                assert_eq!(step.get("refused"), None);
                self.names.insert(step["as"].as_str().unwrap().to_owned(), (space, id));
            }
            Err(refusal) => assert_eq!(Some(&json!(refusal.code.name())), step.get("refused"), "{refusal}"),
        }
    }

    fn shows(&self, wanted: &Json) {
        for (name, wanted) in wanted.as_object().unwrap() {
            let space = self.machine.space(&SpaceId::parse(name).unwrap()).unwrap();
            let mut docs = Map::new();
            for doc in space.docs() {
                let view = space.view(&doc);
                let mut shown = json!({"value": tidegate_client::protocol::json::doc_to_json(&view.leaves.unwrap())});
                if view.pending {
                    shown["pending"] = json!(true);
                }
                docs.insert(doc.to_string(), shown);
            }
            let shown = json!({"from_cache": space.from_cache(), "docs": docs});
            assert_eq!(shown, *wanted, "shown of {name}");
        }
    }

    /// Does what a driver does, with a storage that keeps before anything is sent or told.
    fn settle(&mut self) {
        while let Some(command) = self.machine.poll_command() {
            self.socket = command == Command::Connect;
        }
        self.keep();
        while let Some(message) = self.machine.poll_transmit(self.now()) {
            self.keep();
            let frame = Form::Json.encode_client(&message);
            self.sent.push(serde_json::from_slice(&frame).unwrap());
        }
        while let Some(event) = self.machine.poll_event() {
            self.tell(event);
        }
    }

    fn keep(&mut self) {
        self.storage.commit(self.machine.take_transaction()).unwrap();
    }

    fn tell(&mut self, event: Event) {
        match event {
            Event::State(state) => {
                self.state = match state {
                    ConnectionState::Offline { .. } => "offline",
                    ConnectionState::Connecting => "connecting",
                    ConnectionState::Online(_) => "online",
                    ConnectionState::Stopped { .. } => "stopped",
                    ConnectionState::Closed => "closed",
                }
            }
            Event::Space(space, SpaceEvent::Settled { id, outcome, .. }) => {
                let named = |(name, found): (&String, &(_, _))| (*found == (space.clone(), id)).then(|| name.clone());
                let names: Vec<_> = self.names.iter().filter_map(named).collect();
                let outcome = match outcome {
                    Ok(acked) if acked.skipped.is_empty() => "acked".to_owned(),
                    Ok(_) => "acked in part".to_owned(),
                    Err(WriteError::Refused(refusal)) => refusal.code.to_string(),
                    Err(WriteError::Uncertain) => "uncertain".to_owned(),
                    Err(WriteError::Cancelled) => "cancelled".to_owned(),
                    Err(WriteError::Closed) => "closed".to_owned(),
                };
                for name in names {
                    self.told.push(json!({ name: outcome }));
                }
            }
            Event::Space(space, SpaceEvent::Lost(loss)) => {
                let mids = json!([loss.from.get(), loss.through.get()]);
                self.told.push(json!({"lost": mids, "space": space.as_str()}));
            }
            Event::Space(space, SpaceEvent::NewId { client, .. }) => {
                self.told.push(json!({"new_id": client.0, "space": space.as_str()}));
            }
            Event::Space(space, SpaceEvent::Denied { code, purged }) => {
                self.told
                    .push(json!({"denied": code.name(), "space": space.as_str(), "purged": purged}));
            }
            Event::Problem { code, .. } => self.told.push(json!({"problem": code.name()})),
            Event::Space(_, SpaceEvent::Confirmed(items)) => {
                for item in items {
                    self.confirmed.push(match item {
                        WatchItem::Reset => json!("reset"),
                        WatchItem::Change { seq, change } => json!([seq.get(), change.doc.as_str()]),
                        WatchItem::Current { position } => json!({"current": position.seq.get()}),
                        WatchItem::Denied { .. } => json!("denied"),
                    });
                }
            }
            Event::Space(..) | Event::Got { .. } => {}
        }
    }
}

/// A message as text: `t` and `op` come first, whatever became of the order of keys.
fn text(json: &Json) -> String {
    match json {
        Json::Object(entries) => {
            let first = |key: &str| key == "t" || (key == "op" && entries.contains_key("doc"));
            let mut keys: Vec<_> = entries.keys().collect();
            keys.sort_by_key(|key| !first(key));
            let entries: Vec<_> = keys
                .iter()
                .map(|key| format!("{}:{}", json!(key), text(&entries[*key])))
                .collect();
            format!("{{{}}}", entries.join(","))
        }
        Json::Array(items) => format!("[{}]", items.iter().map(text).collect::<Vec<_>>().join(",")),
        scalar => scalar.to_string(),
    }
}

fn welcome(now: u64) -> Json {
    json!({
        "t": "welcome", "session": "x", "node": "n", "user": "ann", "now": now, "caps": [], "ping_ms": 45000,
        "limits": {"message_bytes": 1_048_576, "doc_bytes": 786_432, "page_bytes": 262_144, "field_bytes": 512,
            "depth": 20, "ops": 500, "subscriptions": 1000, "elements": 65_536},
    })
}

fn run(name: &str, scenario: &Json) {
    let mut run = Run::new();
    for (at, step) in scenario["steps"].as_array().unwrap().iter().enumerate() {
        let step = step.as_object().unwrap();
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| run.step(step)));
        assert!(result.is_ok(), "{name}, step {at}: {}", Json::Object(step.clone()));
    }
    assert_eq!(json!(run.sent), json!([]), "{name}: sent and not expected");
    assert_eq!(json!(run.told), json!([]), "{name}: told and not expected");
}

#[test]
fn the_machine_does_what_every_scenario_says() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../protocol/scenarios");
    let (mut count, mut failed) = (0, 0);
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|ext| ext == "json") {
            let scenarios: Json = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
            for scenario in scenarios["scenarios"].as_array().unwrap() {
                let name = format!("{:?}: {}", path.file_name().unwrap(), scenario["name"]);
                failed += u32::from(std::panic::catch_unwind(|| run(&name, scenario)).is_err());
                count += 1;
            }
        }
    }
    assert_eq!(failed, 0, "of {count} scenarios");
    assert!(count >= 40, "only {count} scenarios were found");
}
