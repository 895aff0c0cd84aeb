//! The machine against a toy gateway over a link that breaks, with failures of the gateway: it converges,
//! and at no step does a local view count an `inc` twice or not at all.

#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, missing_docs)] // a test may panic

mod toy;

use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use tidegate_client::protocol::{
    ClientId, ClientMessage, DocChange, DocChangeKind, DocPath, Epoch, FieldPath, Fields, Limits, Mid, Mode, Number,
    Op, OpKind, ServerMessage, SpaceId,
};
use tidegate_client::storage::{MemoryStorage, Storage};
use tidegate_client::sync::{Command, Config, Event, Machine, MutationId, Now, Request, SpaceEvent};
use tidegate_client::{Value, WriteError};
use toy::Gateway;

const CLIENTS: usize = 3;

#[derive(Clone, Debug)]
enum Action {
    /// An `inc` of the counter, or a set or delete of one of a few documents.
    Mutate(usize, u8),
    Connect(usize),
    Break(usize),
    ToGateway(usize, usize, u64),
    ToClient(usize, usize),
    Restart(usize),
    Wait(usize, u64),
    FailOver(u64),
    Mint,
    PassDays,
    Busy(usize, u32),
    AckFirst(usize),
    FallBehind(usize, u64),
}

fn actions() -> impl Strategy<Value = Vec<Action>> {
    let client = 0..CLIENTS;
    let action = prop_oneof![
        12 => (client.clone(), any::<u8>()).prop_map(|(c, kind)| Action::Mutate(c, kind)),
        6 => client.clone().prop_map(Action::Connect),
        3 => client.clone().prop_map(Action::Break),
        14 => (client.clone(), 1usize..6, any::<u64>()).prop_map(|(c, n, choice)| Action::ToGateway(c, n, choice)),
        14 => (client.clone(), 1usize..8).prop_map(|(c, n)| Action::ToClient(c, n)),
        2 => client.clone().prop_map(Action::Restart),
        3 => (client.clone(), 1u64..200).prop_map(|(c, ms)| Action::Wait(c, ms)),
        1 => (0u64..4).prop_map(Action::FailOver),
        1 => Just(Action::Mint),
        1 => Just(Action::PassDays),
        2 => (client.clone(), 1u32..3).prop_map(|(c, n)| Action::Busy(c, n)),
        1 => client.clone().prop_map(Action::AckFirst),
        2 => (client, any::<u64>()).prop_map(|(c, choice)| Action::FallBehind(c, choice)),
    ];
    prop::collection::vec(action, 0..120)
}

/// What became of an `inc`, as its client was told.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Fate {
    Open,
    Acked,
    /// Acked under an id that the client has given up since, after so many losses of the gateway. What is lost
    /// of it later nobody can tell the client: `last_mid` is of one id.
    Former {
        losses: u32,
    },
    /// Refused, uncertain, or lost.
    Gone {
        perhaps_applied: bool,
    },
}

struct Peer {
    machine: Machine,
    storage: MemoryStorage,
    now: Now,
    to_gateway: VecDeque<ClientMessage>,
    connecting: bool,
    connected: bool,
    /// The tag of every `inc` by its number in the present queue.
    tags: HashMap<MutationId, String>,
    acked: HashMap<(ClientId, Mid), String>,
    fates: BTreeMap<String, Fate>,
    /// The epoch whose commits a catch-up by log brings; the machine learns it at `current`.
    branch: Option<Epoch>,
    made: u32,
}

struct World {
    gateway: Gateway,
    peers: Vec<Peer>,
}

fn space() -> SpaceId {
    SpaceId::parse("s").unwrap()
}

fn path(text: &str) -> FieldPath {
    FieldPath::parse(text).unwrap()
}

fn doc(text: &str) -> DocPath {
    DocPath::parse(text).unwrap()
}

fn tag_doc(tag: &str) -> DocPath {
    doc(&format!("tags/{tag}"))
}

fn op(at: &str, kind: OpKind) -> Op {
    Op {
        doc: doc(at),
        kind,
        exists: None,
        unchanged_since: None,
    }
}

fn set(at: &str, field: &str, value: i64) -> Op {
    let fields = Fields::new([(path(field), Value::int(value))], &Limits::default()).unwrap();
    op(at, OpKind::Set(fields))
}

fn boot(storage: &MemoryStorage, seed: u64, now: Now) -> Machine {
    let mut state = seed;
    let entropy = move || {
        // splitmix64
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    };
    let config = Config {
        stores: true,
        ..Config::default()
    };
    let mut machine = Machine::new(config, storage.clone().load().unwrap(), Box::new(entropy), now);
    machine.subscribe(&space(), None);
    machine
}

impl World {
    fn new() -> Self {
        let counter = DocChange {
            doc: doc("counters/c"),
            kind: DocChangeKind::Whole(vec![(path("n"), Value::int(0))]),
        };
        let peer = |index: usize| {
            let storage = MemoryStorage::new();
            let now = Now {
                mono_ms: 0,
                wall_ms: 1_700_000_000_000,
            };
            Peer {
                machine: boot(&storage, index as u64, now),
                storage,
                now,
                to_gateway: VecDeque::new(),
                connecting: false,
                connected: false,
                tags: HashMap::new(),
                acked: HashMap::new(),
                fates: BTreeMap::new(),
                branch: None,
                made: 0,
            }
        };
        let mut world = Self {
            gateway: Gateway::new(space(), CLIENTS, vec![counter]),
            peers: (0..CLIENTS).map(peer).collect(),
        };
        // Everybody has seen the counter before the trouble begins.
        world.heal();
        world
    }

    fn act(&mut self, action: &Action) {
        match *action {
            Action::Mutate(at, kind) => self.mutate(at, kind),
            Action::Connect(at) => self.connect(at),
            Action::Break(at) => self.cut(at),
            Action::ToGateway(at, count, choice) => {
                for _ in 0..count {
                    if let Some(message) = self.peers[at].to_gateway.pop_front() {
                        self.gateway.receive(at, message, choice);
                    }
                    self.settle(at);
                }
            }
            Action::ToClient(at, count) => {
                for _ in 0..count {
                    let message = self.gateway.sessions[at]
                        .as_mut()
                        .and_then(|session| session.to_client.pop_front());
                    if let Some(message) = message {
                        let peer = &mut self.peers[at];
                        match &message {
                            ServerMessage::Begin(begin) if begin.mode == Mode::Log => peer.branch = Some(begin.epoch),
                            ServerMessage::Current { .. } => peer.branch = None,
                            _ => {}
                        }
                        peer.machine.received(peer.now, message);
                    }
                    self.settle(at);
                    self.check(at);
                }
            }
            Action::Restart(at) => {
                self.cut(at);
                let peer = &mut self.peers[at];
                peer.made += 1;
                let seed = u64::from(peer.made) * 1000 + at as u64;
                peer.machine = boot(&peer.storage, seed.wrapping_mul(0x51_7c_c1), peer.now);
            }
            Action::Wait(at, ms) => {
                let peer = &mut self.peers[at];
                peer.now.mono_ms += ms;
                peer.now.wall_ms += ms;
                peer.machine.handle_timeout(peer.now);
            }
            Action::FailOver(lose) => {
                (0..CLIENTS).for_each(|at| self.cut(at));
                // As with `PassDays`: after both, a loss shows in nothing.
                self.gateway
                    .fail_over(if self.gateway.has_forgotten() { 0 } else { lose });
            }
            Action::Mint => self.gateway.mint(),
            Action::PassDays => {
                // A loss that nobody hears of for longer than records are kept stays unknown, and so does
                // whether a mutation was applied whose answer did not come for as long.
                let docs = self.gateway.docs();
                let there = |(tag, fate): (&String, &Fate)| match fate {
                    Fate::Acked | Fate::Former { .. } => docs.contains_key(&tag_doc(tag)),
                    Fate::Open => !docs.contains_key(&tag_doc(tag)),
                    Fate::Gone { .. } => true,
                };
                if self.peers.iter().all(|peer| peer.fates.iter().all(there)) {
                    self.gateway.pass_days(100);
                    self.peers
                        .iter_mut()
                        .for_each(|peer| peer.now.wall_ms += 100 * toy::DAY_MS);
                }
            }
            Action::Busy(at, count) => {
                if let Some(session) = self.gateway.sessions[at].as_mut() {
                    session.busy = count;
                }
            }
            Action::AckFirst(at) => {
                if let Some(session) = self.gateway.sessions[at].as_mut() {
                    session.ack_first = true;
                }
            }
            Action::FallBehind(at, choice) => {
                // Only where everything sent has arrived does the gateway know where the client stands.
                let idle = self.gateway.sessions[at]
                    .as_ref()
                    .is_some_and(|session| session.to_client.is_empty());
                let space = self.peers[at].machine.space(&space()).unwrap();
                if let Some(position) = space.replica().position().filter(|_| idle && !space.from_cache()) {
                    self.gateway.fall_behind(at, position, choice);
                }
            }
        }
        for at in 0..CLIENTS {
            self.settle(at);
            self.check(at);
        }
    }

    fn mutate(&mut self, at: usize, kind: u8) {
        let peer = &mut self.peers[at];
        peer.made += 1;
        let tag = format!("{at}-{}", peer.made);
        let plain = format!("notes/d{}", kind % 3);
        let ops = match kind % 8 {
            0 => vec![op(&plain, OpKind::Delete)],
            1 | 2 => vec![set(&plain, if kind > 128 { "x" } else { "y" }, i64::from(kind))],
            _ => vec![
                op(
                    "counters/c",
                    OpKind::Inc {
                        path: path("n"),
                        by: Number::Int(1),
                    },
                ),
                set(&format!("tags/{tag}"), "x", 1),
            ],
        };
        let counts = ops.len() == 2;
        let request = Request {
            ops,
            coalesce: true,
            ..Request::default()
        };
        let id = peer.machine.mutate(peer.now, &space(), request).unwrap();
        peer.tags.remove(&id);
        if counts {
            peer.tags.insert(id, tag.clone());
            peer.fates.insert(tag, Fate::Open);
        }
    }

    fn connect(&mut self, at: usize) {
        let peer = &mut self.peers[at];
        if !peer.connected {
            peer.machine.wake_up(peer.now);
            self.settle(at);
            let peer = &mut self.peers[at];
            assert!(peer.connecting, "the machine wants no connection");
            peer.connecting = false;
            peer.connected = true;
            self.gateway.connect(at, &format!("user{at}"));
            peer.machine.connected(peer.now);
        }
    }

    fn cut(&mut self, at: usize) {
        let peer = &mut self.peers[at];
        if peer.connected {
            peer.connected = false;
            peer.to_gateway.clear();
            self.gateway.sessions[at] = None;
            peer.machine.disconnected(peer.now, None, "cut".to_owned());
        }
        self.settle(at);
    }

    fn settle(&mut self, at: usize) {
        let peer = &mut self.peers[at];
        peer.storage.commit(peer.machine.take_transaction()).unwrap();
        while let Some(command) = peer.machine.poll_command() {
            match command {
                Command::Connect => peer.connecting = true,
                Command::Close(_) => {
                    peer.connecting = false;
                    peer.connected = false;
                    peer.to_gateway.clear();
                    self.gateway.sessions[at] = None;
                }
            }
        }
        while let Some(message) = peer.machine.poll_transmit(peer.now) {
            peer.storage.commit(peer.machine.take_transaction()).unwrap();
            peer.to_gateway.push_back(message);
        }
        while let Some(event) = peer.machine.poll_event() {
            match event {
                Event::Space(_, SpaceEvent::Settled { id, outcome, .. }) => {
                    let Some(tag) = peer.tags.remove(&id) else { continue };
                    let fate = match outcome {
                        Ok(acked) => {
                            let client = peer.machine.space(&space()).unwrap().queue().identity().client;
                            peer.acked.insert((client, acked.mid), tag.clone());
                            Fate::Acked
                        }
                        Err(error) => Fate::Gone {
                            perhaps_applied: error == WriteError::Uncertain,
                        },
                    };
                    peer.fates.insert(tag, fate);
                }
                Event::Space(_, SpaceEvent::Lost(loss)) => {
                    for ((client, mid), tag) in &peer.acked {
                        if *client == loss.client && (loss.from..=loss.through).contains(mid) {
                            peer.fates.insert(tag.clone(), Fate::Gone { perhaps_applied: true });
                        }
                    }
                }
                Event::Space(_, SpaceEvent::NewId { .. }) => {
                    let losses = self.gateway.losses;
                    for fate in peer.fates.values_mut().filter(|fate| **fate == Fate::Acked) {
                        *fate = Fate::Former { losses };
                    }
                }
                Event::Problem { code, message } => panic!("{code}: {message}"),
                _ => {}
            }
        }
    }

    /// The local view shows the confirmed counter, and every own `inc` that is not in it, once.
    fn check(&self, at: usize) {
        let peer = &self.peers[at];
        let space = peer.machine.space(&space()).unwrap();
        let Some(mut position) = space.replica().position() else {
            return;
        };
        position.epoch = peer.branch.unwrap_or(position.epoch);
        let history = self.gateway.history(position);
        let confirmed = Gateway::docs_at(history);
        assert_eq!(
            *space.replica().docs(),
            confirmed,
            "the confirmed state is that of its position"
        );
        let number = |leaves: &BTreeMap<FieldPath, Value>| match leaves[&path("n")].as_number() {
            Some(Number::Int(n)) => n,
            other => panic!("{other:?}"),
        };
        let losses = self.gateway.losses;
        // Whether it must be shown, though it is not confirmed; `None`: it may have been lost unheard.
        let own = |fate: &Fate| match fate {
            Fate::Open | Fate::Acked => Some(true),
            Fate::Former { losses: before } => (*before == losses).then_some(true),
            Fate::Gone { .. } => Some(false),
        };
        let missing = |(tag, _): &(&String, &Fate)| !confirmed.contains_key(&tag_doc(tag));
        let count = |wanted| {
            let of = peer
                .fates
                .iter()
                .filter(missing)
                .filter(|(_, fate)| own(fate) == wanted);
            of.count() as i64
        };
        let expected = number(&confirmed[&doc("counters/c")]) + count(Some(true));
        let shown = number(&space.view(&doc("counters/c")).leaves.unwrap());
        let most = expected + count(None);
        assert!(
            (expected..=most).contains(&shown),
            "client {at} at {position} shows {shown}, not {expected} (or up to {most})"
        );
    }

    /// Everything works again, until nothing moves.
    fn heal(&mut self) {
        for _ in 0..200 {
            for at in 0..CLIENTS {
                self.act(&Action::Wait(at, 100));
                self.act(&Action::Connect(at));
                self.act(&Action::ToGateway(at, 50, 0));
                self.act(&Action::ToClient(at, 500));
            }
            let idle = |at: usize| {
                let space = self.peers[at].machine.space(&space()).unwrap();
                let session = self.gateway.sessions[at].as_ref();
                session.is_some_and(|session| session.to_client.is_empty())
                    && self.peers[at].to_gateway.is_empty()
                    && space.queue().queued() == 0
                    && !space.from_cache()
            };
            if (0..CLIENTS).all(idle) {
                return;
            }
        }
        panic!("it does not come to rest");
    }

    fn verify_end(&self) {
        let docs = self.gateway.docs();
        let mut seen: BTreeSet<String> = BTreeSet::new();
        for peer in &self.peers {
            let space = peer.machine.space(&space()).unwrap();
            assert_eq!(space.replica().docs(), docs);
            assert_eq!(space.queue().iter().count(), 0, "nothing is overlaid any more");
            for doc in space.docs() {
                let view = space.view(&doc);
                assert_eq!((view.leaves.as_ref(), view.pending), (docs.get(&doc), false));
            }
            for (tag, fate) in &peer.fates {
                let applied = docs.contains_key(&tag_doc(tag));
                match fate {
                    Fate::Open => panic!("{tag} vanished unanswered"),
                    Fate::Acked => assert!(applied, "{tag} was acked, is not there, and was not reported lost"),
                    Fate::Former { losses } => assert!(
                        applied || *losses < self.gateway.losses,
                        "{tag} was acked, is not there, and nothing was lost since"
                    ),
                    Fate::Gone { perhaps_applied } => assert!(*perhaps_applied || !applied, "{tag}"),
                }
                if applied {
                    seen.insert(tag.clone());
                }
            }
            assert_eq!(
                peer.storage.snapshot().spaces[&self::space()].docs,
                *docs,
                "what is kept is what is held"
            );
        }
        let counter = docs[&doc("counters/c")][&path("n")].as_number();
        assert_eq!(counter, Some(Number::Int(seen.len() as i64)), "each is applied once");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: ProptestConfig::default().cases / 2, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn clients_converge_over_a_flaky_link_and_never_count_an_inc_twice(actions in actions()) {
        let mut world = World::new();
        for action in &actions {
            world.act(action);
        }
        world.heal();
        world.verify_end();
    }
}
