//! Nodes: the gateway's own session, engine and hub, between simulated sockets, store and bus.

use crate::coverage::Row;
use crate::net::{COMPRESS_BYTES, Socket};
use crate::plan::Plan;
use crate::rules::{Rules, user_name};
use crate::shared::{Core, Event, NodeEnv, Published, Shared};
use crate::store::{Disk, NodeStore};
use async_trait::async_trait;
use bytes::Bytes;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use tidegate::admission::Admitted;
use tidegate::engine::{Engine, EngineConfig, Publish};
use tidegate::env::Env;
use tidegate::hub::{Hub, HubConfig, LocalPublish};
use tidegate::metrics::Metrics;
use tidegate::session::{Accepted, Node, NodeConfig, SessionConfig, serve};
use tidegate::store::{Erase, Lineage, LogEntry, Store, UserTag};
use tidegate_protocol::{Form, Limits, Position, SpaceId};
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Over how long a node that drains sends its connections away.
const DRAIN: Duration = Duration::from_millis(1_000);
/// How long it gives each of them.
const FLUSH: Duration = Duration::from_millis(1_000);
/// Few, so that some spaces are brought by tasks of their own.
const SHARD: usize = 2;

/// The bus: what a node publishes reaches its own subscribers at once, and other nodes later, never or twice.
struct Bus {
    local: LocalPublish,
    shared: Arc<Shared>,
    spaces: Arc<Vec<SpaceId>>,
    node: usize,
    nodes: usize,
    alive: Arc<AtomicBool>,
}

#[async_trait]
impl Publish for Bus {
    async fn room(&self, space: &SpaceId) {
        self.local.room(space).await;
    }

    fn lacks(&self, space: &SpaceId, at: Position) -> bool {
        self.local.lacks(space, at)
    }

    fn publish(&self, space: &SpaceId, lineage: &Lineage, commits: &[LogEntry]) {
        if !self.alive.load(Ordering::Relaxed) {
            return;
        }
        let index = self.spaces.iter().position(|name| name == space);
        if let Some(space) = index {
            let mut core = self.shared.core.lock();
            for to in (0..self.nodes).filter(|to| *to != self.node) {
                self.spread(&mut core, to, space, lineage, commits);
            }
        }
        self.local.publish(space, lineage, commits);
    }
}

impl Bus {
    fn spread(&self, core: &mut Core, to: usize, space: usize, lineage: &Lineage, commits: &[LogEntry]) {
        let (lost, repeated, delay) = (core.plan.bus_lost, core.plan.bus_repeated, core.plan.bus_delay);
        if core.rng.chance(lost) {
            core.cover.hit(Row::BusLost);
            return;
        }
        let again = core.rng.chance(repeated);
        if again {
            core.cover.hit(Row::BusRepeated);
        }
        for _ in 0..=u8::from(again) {
            let wait = core.rng.below(delay + 1);
            if wait > 20 {
                core.cover.hit(Row::BusLate);
            }
            core.bus.push(Some(Published {
                to,
                space,
                lineage: lineage.clone(),
                commits: commits.to_vec(),
            }));
            let event = Event::Bus(core.bus.len() - 1);
            self.shared.at(core, self.shared.clock() + wait, event);
        }
    }
}

/// What all nodes of a history are made of.
pub(crate) struct Fleet {
    pub(crate) shared: Arc<Shared>,
    pub(crate) disk: Arc<Disk>,
    pub(crate) rules: Arc<Rules>,
    pub(crate) spaces: Arc<Vec<SpaceId>>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) limits: Limits,
    pub(crate) plan: Plan,
    pub(crate) slots: Vec<Option<Running>>,
    tasks: TaskTracker,
}

/// A node that runs.
pub(crate) struct Running {
    node: Arc<Node>,
    alive: Arc<AtomicBool>,
    stop: CancellationToken,
    drains: bool,
}

impl Fleet {
    pub(crate) fn new(
        shared: Arc<Shared>,
        disk: Arc<Disk>,
        rules: Arc<Rules>,
        spaces: Arc<Vec<SpaceId>>,
        metrics: Arc<Metrics>,
        plan: Plan,
    ) -> Self {
        let limits = Limits {
            page_bytes: plan.page_bytes,
            ..Limits::default()
        };
        let mut fleet = Self {
            shared,
            disk,
            rules,
            spaces,
            metrics,
            limits,
            slots: (0..plan.nodes).map(|_| None).collect(),
            plan,
            tasks: TaskTracker::new(),
        };
        for at in 0..fleet.slots.len() {
            fleet.start(at);
        }
        fleet
    }

    /// A node starts, with nothing in memory.
    pub(crate) fn start(&mut self, at: usize) {
        let alive = Arc::new(AtomicBool::new(true));
        let stop = CancellationToken::new();
        let store: Arc<dyn Store> = Arc::new(NodeStore {
            shared: Arc::clone(&self.shared),
            disk: Arc::clone(&self.disk),
            alive: Arc::clone(&alive),
        });
        let env: Arc<dyn Env> = Arc::new(NodeEnv {
            shared: Arc::clone(&self.shared),
            node: at,
        });
        let config = HubConfig {
            ring_commits: self.plan.ring_commits,
            shard: SHARD,
            tasks: Some(2),
            ..HubConfig::default()
        };
        let hub = Hub::new(
            Arc::clone(&store),
            config,
            Arc::clone(&self.metrics),
            self.tasks.clone(),
        );
        let bus = Arc::new(Bus {
            local: LocalPublish(Arc::clone(&hub)),
            shared: Arc::clone(&self.shared),
            spaces: Arc::clone(&self.spaces),
            node: at,
            nodes: self.slots.len(),
            alive: Arc::clone(&alive),
        });
        let engine = Engine::new(
            Arc::clone(&store),
            bus,
            Arc::clone(&self.rules) as _,
            Arc::clone(&env),
            self.limits.clone(),
            EngineConfig::default(),
            self.tasks.clone(),
        );
        let config = NodeConfig {
            limits: self.limits.clone(),
            soft_bytes: self.plan.soft_bytes,
            hard_bytes: self.plan.hard_bytes,
            flush: FLUSH,
            compress_bytes: COMPRESS_BYTES,
            ..NodeConfig::default()
        };
        let node = Arc::new(Node {
            engine,
            hub: Arc::clone(&hub),
            store,
            authoriser: Arc::clone(&self.rules) as _,
            env,
            budget: config.budget(&self.metrics),
            metrics: Arc::clone(&self.metrics),
            config,
            session: Arc::new(SessionConfig {
                node: format!("node{at}"),
                limits: self.limits.clone(),
                ping_ms: self.plan.ping,
                hello_ms: 10_000,
            }),
            catch_ups: Semaphore::new(64),
            stopping: CancellationToken::new(),
            draining: CancellationToken::new(),
            started: Instant::now(),
            connections: dashmap::DashMap::new(),
            last_id: AtomicU64::new(0),
        });
        self.tasks.spawn(hub.run(stop.clone()));
        if self.plan.sweeps {
            self.tasks.spawn(Arc::clone(&node).sweep(stop.clone()));
        }
        self.slots[at] = Some(Running {
            node,
            alive,
            stop,
            drains: false,
        });
    }

    /// Nodes that take connections.
    pub(crate) fn open(&self) -> Vec<usize> {
        let open = |at: &usize| self.slots[*at].as_ref().is_some_and(|running| !running.drains);
        (0..self.slots.len()).filter(open).collect()
    }

    /// Serves a connection.
    pub(crate) fn accept(&self, at: usize, link: usize, form: Form) {
        let Some(running) = &self.slots[at] else { return };
        let accepted = Accepted {
            socket: Socket {
                shared: Arc::clone(&self.shared),
                link,
            },
            leftover: Bytes::new(),
            form,
            token: None,
            since: Instant::now(),
            peer: String::new(),
            admitted: Admitted::default(),
        };
        self.tasks.spawn(serve(Arc::clone(&running.node), accepted));
    }

    /// A node is gone, with all that it had in memory and on its way: what it asked of the store may have been
    /// done and may not. Its tasks hang where they next wait for the store, and are dropped with the history.
    pub(crate) fn crash(&mut self, at: usize) -> bool {
        let Some(running) = self.slots[at].take() else {
            return false;
        };
        running.alive.store(false, Ordering::Relaxed);
        running.stop.cancel();
        true
    }

    /// A node takes no more connections, and sends those that it has away.
    pub(crate) fn drain(&mut self, at: usize) -> bool {
        match &mut self.slots[at] {
            Some(running) if !running.drains => {
                running.drains = true;
                self.tasks.spawn(Arc::clone(&running.node).drain(DRAIN));
                true
            }
            _ => false,
        }
    }

    /// A node is asked to erase a space, or a user in it.
    pub(crate) fn erase(&self, at: usize, space: usize, user: Option<usize>) {
        let Some(running) = &self.slots[at] else { return };
        let (engine, space) = (Arc::clone(&running.node.engine), self.spaces[space].clone());
        let whom = user.map_or(Erase::Space, |user| Erase::User(UserTag::of(&user_name(user))));
        // Whoever asked hears of a failure; what was begun goes on.
        self.tasks.spawn(async move { drop(engine.erase(&space, whom).await) });
    }

    /// A publication arrives.
    pub(crate) fn hears(&self, published: &Published) {
        if let Some(running) = &self.slots[published.to] {
            let local = LocalPublish(Arc::clone(&running.node.hub));
            local.publish(&self.spaces[published.space], &published.lineage, &published.commits);
        }
    }
}
