//! Installations: an app's storage, and the client's own sync machine while the app runs. It may crash at
//! every point at which something becomes durable.

use crate::app;
use crate::coverage::Row;
use crate::net::Incoming;
use crate::rng::Rng;
use crate::rules::{FILTERS, collections, user_name};
use crate::shared::{Core, Event, Shared};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use tidegate_client::storage::{Stored, Transaction};
use tidegate_client::sync::{
    Command, Config, ConnectFailure, Event as Happened, Machine, MutationId, NewIdReason, Now, SpaceEvent, WriteError,
};
use tidegate_history::{ConnectionId, Event as Told, Fate, Installation, Tag, workload};
use tidegate_protocol::{
    ClientMessage, Code, FieldPath, Mode, Number, Position, ServerMessage, SpaceId, Value, ViewId,
};

/// How often the checker is shown everything that is held, ‰ of the looks.
const HELD: u64 = 50;

/// When a client crashes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Point {
    /// What the machine has done is not kept.
    BeforeCommit,
    /// It is kept, and nothing has come of it yet.
    AfterCommit,
    /// A mid is kept, and its mutation not sent.
    BeforeSend,
    /// Right after a message was sent.
    AfterSend,
}

impl Point {
    pub(crate) const ALL: [Self; 4] = [Self::BeforeCommit, Self::AfterCommit, Self::BeforeSend, Self::AfterSend];

    fn row(self) -> Row {
        match self {
            Self::BeforeCommit => Row::CrashBeforeCommit,
            Self::AfterCommit => Row::CrashAfterCommit,
            Self::BeforeSend => Row::CrashBeforeSend,
            Self::AfterSend => Row::CrashAfterSend,
        }
    }
}

/// A storage as it was, and which of its mutations its app waits for.
#[derive(Clone, Default)]
pub(crate) struct Kept {
    pub(crate) stored: Stored,
    /// With whether they count.
    tags: BTreeMap<(usize, MutationId), (Tag, bool)>,
}

impl Kept {
    fn standing(&self, space: &SpaceId) -> Option<(Position, ViewId)> {
        let standing = self.stored.spaces.get(space)?.standing?;
        Some((standing.position, standing.view))
    }
}

/// One installation.
pub(crate) struct Install {
    pub(crate) id: Installation,
    pub(crate) user: usize,
    pub(crate) kept: Kept,
    /// Whose older copies these are, for clones and roll-backs.
    pub(crate) snapshots: Vec<Kept>,
    pub(crate) machine: Option<Machine>,
    /// The filter wanted, by space.
    pub(crate) wanted: BTreeMap<usize, usize>,
    pub(crate) link: Option<usize>,
    pub(crate) offline_until: u64,
    pub(crate) skew: i64,
    /// Where it is to crash.
    pub(crate) crash: Option<Point>,
    attempt: u64,
    connecting: bool,
    armed: u64,
    /// Mutations asked for and not yet kept.
    unkept: Vec<(usize, MutationId, Tag, bool)>,
    /// Of the connection: subscriptions that were current, and those that offered a cursor.
    current: BTreeSet<u64>,
    offered: BTreeSet<u64>,
    last_shown: Vec<Shown>,
    /// Spaces that were opened, or of which something was kept, since they were looked at: otherwise a local view stays
    /// as it is.
    changed: Vec<usize>,
    /// Something happened that local views have to follow.
    look: bool,
}

/// What a look at a local view has found.
#[derive(Clone, PartialEq, Default)]
struct Shown {
    position: Option<Position>,
    count: i64,
    pair: (Option<Value>, Option<Value>),
}

/// What an installation needs of the history.
pub(crate) struct Context {
    pub(crate) shared: Arc<Shared>,
    pub(crate) spaces: Arc<Vec<SpaceId>>,
    counter: tidegate_protocol::DocPath,
    count: FieldPath,
    halves: (tidegate_protocol::DocPath, tidegate_protocol::DocPath),
    half: FieldPath,
}

impl Context {
    pub(crate) fn new(shared: Arc<Shared>, spaces: Arc<Vec<SpaceId>>) -> Self {
        let (a, b) = workload::halves(app::PAIR);
        Self {
            shared,
            spaces,
            counter: app::doc(workload::COUNTER),
            count: app::field(workload::COUNT),
            halves: (app::doc(&a), app::doc(&b)),
            half: app::field(workload::HALF),
        }
    }

    pub(crate) fn index(&self, space: &SpaceId) -> usize {
        let found = self.spaces.iter().position(|name| name == space);
        found.expect("clients use the spaces that there are")
    }
}

impl Install {
    pub(crate) fn new(id: u32, user: usize, kept: Kept) -> Self {
        Self {
            id: Installation(id),
            user,
            kept,
            snapshots: Vec::new(),
            machine: None,
            wanted: BTreeMap::new(),
            link: None,
            offline_until: 0,
            skew: 0,
            crash: None,
            attempt: 0,
            connecting: false,
            armed: u64::MAX,
            unkept: Vec::new(),
            current: BTreeSet::new(),
            offered: BTreeSet::new(),
            last_shown: Vec::new(),
            changed: Vec::new(),
            look: false,
        }
    }

    fn now(&self, shared: &Shared) -> Now {
        let now = shared.now();
        Now {
            mono_ms: now,
            wall_ms: shared.wall(now).saturating_add_signed(self.skew),
        }
    }

    /// The app starts.
    pub(crate) fn boot(&mut self, cx: &Context) {
        if self.machine.is_some() {
            return;
        }
        let now = self.now(&cx.shared);
        let mut rng: Rng = cx.shared.core.lock().rng.fork();
        let config = Config {
            token: Some(user_name(self.user)),
            stores: true,
            // Every other one, whatever the plan, so that no draw moves.
            inflates: self.id.0 % 2 == 1,
            ..Config::default()
        };
        let mut machine = Machine::new(config, self.kept.stored.clone(), Box::new(move || rng.next()), now);
        for (space, filter) in &self.wanted {
            machine.subscribe(&cx.spaces[*space], FILTERS[*filter].map(collections));
        }
        self.machine = Some(machine);
        self.last_shown = vec![Shown::default(); cx.spaces.len()];
        self.changed = (0..cx.spaces.len()).collect();
        self.armed = u64::MAX;
        self.settle(cx);
    }

    /// The app ends, with its memory. What it has sent still arrives.
    pub(crate) fn die(&mut self, cx: &Context, why: &str) {
        if self.machine.take().is_none() {
            return;
        }
        self.unkept.clear();
        self.crash = None;
        self.connecting = false;
        self.attempt += 1;
        let now = cx.shared.now();
        if let Some(link) = self.lose(cx) {
            cx.shared.client_dies(&mut cx.shared.core.lock(), link);
        }
        let mut core = cx.shared.core.lock();
        let id = self.id;
        core.say(now, || format!("{id:?} {why}"));
        for space in cx.spaces.iter() {
            core.judge.observe(Told::Restarted {
                installation: id,
                space,
                standing: self.kept.standing(space),
            });
        }
    }

    /// What it now holds is a copy.
    pub(crate) fn replace(&mut self, cx: &Context, kept: Kept) {
        let core = &mut *cx.shared.core.lock();
        let installation = self.id;
        let settle = |core: &mut Core, space: usize, tag, fate| {
            core.judge.observe(Told::Settled {
                installation,
                space: &cx.spaces[space],
                tag,
                fate,
            });
        };
        for ((space, _), (tag, _)) in std::mem::take(&mut self.kept.tags) {
            settle(core, space, tag, Fate::Forgotten);
        }
        self.kept = kept;
        for space in cx.spaces.iter() {
            core.judge.observe(Told::Replaced {
                installation,
                space,
                standing: self.kept.standing(space),
            });
        }
        let issue = |core: &mut Core, space: usize, tag, counts| {
            core.judge.observe(Told::Issued {
                installation,
                space: &cx.spaces[space],
                tag,
                counts,
            });
        };
        for ((space, _), (tag, counts)) in &self.kept.tags {
            issue(core, *space, *tag, *counts);
        }
        // Acked, and shown over a confirmed state that has not reached it.
        for (name, kept) in &self.kept.stored.spaces {
            let space = cx.index(name);
            let acked = kept.queue.values().filter(|mutation| !mutation.is_queued());
            for tag in acked.filter_map(|mutation| workload::tag_of(&mutation.ops)) {
                issue(core, space, tag, true);
                settle(core, space, tag, Fate::Acked);
            }
        }
    }

    fn lose(&mut self, cx: &Context) -> Option<usize> {
        let link = self.link.take()?;
        self.current.clear();
        self.offered.clear();
        let mut core = cx.shared.core.lock();
        core.judge.observe(Told::Disconnected {
            connection: ConnectionId(link as u64),
        });
        core.say(cx.shared.now(), || format!("{:?}: link {link} is gone", self.id));
        Some(link)
    }

    // What apps do.

    pub(crate) fn mutate(&mut self, cx: &Context, space: usize, tag: Tag, wish: app::Wish) {
        let now = self.now(&cx.shared);
        let Some(machine) = &mut self.machine else { return };
        let app::Wish { request, counts } = wish;
        // What is asked for is gone once it is queued, and told only if somebody listens.
        let told = cx
            .shared
            .tells
            .then(|| format!("{:?} {:?}", request.policy, request.ops));
        if let Ok(id) = machine.mutate(now, &cx.spaces[space], request) {
            let waits = |(at, other, ..): &(usize, MutationId, Tag, bool)| (*at, *other) == (space, id);
            let mut core = cx.shared.core.lock();
            core.say(now.mono_ms, || {
                let told = told.unwrap_or_default();
                format!("{:?} asks for {tag:?} as {id:?} in {space}: {told}", self.id)
            });
            if self.kept.tags.contains_key(&(space, id)) || self.unkept.iter().any(waits) {
                core.cover.hit(Row::Coalesced);
            } else {
                self.unkept.push((space, id, tag, counts));
            }
        }
        self.changed.push(space);
        self.settle(cx);
    }

    pub(crate) fn subscribe(&mut self, cx: &Context, space: usize, filter: usize) {
        let before = self.wanted.insert(space, filter);
        let Some(machine) = &mut self.machine else { return };
        if before.is_some_and(|before| before != filter) {
            cx.shared.core.lock().cover.hit(Row::Filters);
        }
        machine.subscribe(&cx.spaces[space], FILTERS[filter].map(collections));
        self.changed.push(space);
        self.settle(cx);
    }

    /// Subscribes again where it was denied.
    pub(crate) fn ask_again(&mut self, cx: &Context) {
        for (space, filter) in self.wanted.clone() {
            let denied = |machine: &Machine| {
                machine
                    .space(&cx.spaces[space])
                    .is_some_and(|s| s.denied_by().is_some())
            };
            if self.machine.as_ref().is_some_and(denied) {
                self.subscribe(cx, space, filter);
            }
        }
    }

    pub(crate) fn unsubscribe(&mut self, cx: &Context, space: usize) {
        let Some(machine) = &mut self.machine else { return };
        if self.wanted.remove(&space).is_some() {
            cx.shared.core.lock().cover.hit(Row::Unsubscribed);
            machine.unsubscribe(&cx.spaces[space]);
        }
        self.settle(cx);
    }

    pub(crate) fn get(&mut self, cx: &Context, space: usize) {
        let Some(machine) = &mut self.machine else { return };
        let _ = machine.get(
            &cx.spaces[space],
            vec![cx.counter.clone(), cx.halves.0.clone(), cx.halves.1.clone()],
        );
        self.settle(cx);
    }

    /// Takes back what was asked for last.
    pub(crate) fn cancel(&mut self, cx: &Context) {
        let last = self.kept.tags.last_key_value().map(|(key, _)| *key);
        if let (Some(machine), Some((space, id))) = (&mut self.machine, last) {
            self.changed.push(space);
            if machine.cancel(&cx.spaces[space], id) {
                cx.shared.core.lock().cover.hit(Row::Cancelled);
            }
        }
        self.settle(cx);
    }

    pub(crate) fn wake_up(&mut self, cx: &Context) {
        let now = self.now(&cx.shared);
        let Some(machine) = &mut self.machine else { return };
        machine.wake_up(now);
        self.settle(cx);
    }

    // What happens to it.

    pub(crate) fn timer(&mut self, cx: &Context) {
        self.armed = u64::MAX;
        let now = self.now(&cx.shared);
        let Some(machine) = &mut self.machine else { return };
        machine.handle_timeout(now);
        self.settle(cx);
    }

    /// Whether it waits for this attempt.
    pub(crate) fn awaits(&self, attempt: u64) -> bool {
        self.connecting && self.attempt == attempt
    }

    pub(crate) fn connected(&mut self, cx: &Context, link: usize) {
        let now = self.now(&cx.shared);
        self.connecting = false;
        self.link = Some(link);
        {
            let mut core = cx.shared.core.lock();
            let node = core.links[link].node;
            core.say(now.mono_ms, || format!("{:?}: link {link} to node {node}", self.id));
            core.cover.hit(Row::Connections);
            core.judge.observe(Told::Connected {
                connection: ConnectionId(link as u64),
                installation: self.id,
                user: &user_name(self.user),
            });
        }
        if let Some(machine) = &mut self.machine {
            machine.connected(now);
        }
        self.settle(cx);
    }

    pub(crate) fn refused(&mut self, cx: &Context) {
        let now = self.now(&cx.shared);
        self.connecting = false;
        if let Some(machine) = &mut self.machine {
            let failure = ConnectFailure {
                code: None,
                message: "no route".into(),
                retry_ms: 0,
            };
            machine.connect_failed(now, failure);
        }
        self.settle(cx);
    }

    pub(crate) fn disconnected(&mut self, cx: &Context, close: Option<u16>, why: String) {
        let now = self.now(&cx.shared);
        if let Some(link) = self.lose(cx) {
            cx.shared.client_dies(&mut cx.shared.core.lock(), link);
        }
        if let Some(machine) = &mut self.machine {
            machine.disconnected(now, close, why);
        }
        self.settle(cx);
    }

    pub(crate) fn incoming(&mut self, cx: &Context, link: usize, incoming: Incoming) {
        // It may have been given up over what came before.
        if self.link != Some(link) {
            return;
        }
        let now = self.now(&cx.shared);
        let Some(machine) = &mut self.machine else { return };
        match incoming {
            Incoming::Message(message) => {
                {
                    let core = &mut *cx.shared.core.lock();
                    core.say(now.mono_ms, || format!("{:?} ← link {link}: {message:?}", self.id));
                    core.judge.observe(Told::Received {
                        connection: ConnectionId(link as u64),
                        message: &message,
                    });
                    self.count(core, &message);
                }
                if let Some(machine) = &mut self.machine {
                    machine.received(now, message);
                }
                self.settle(cx);
            }
            Incoming::Malformed(invalid) => {
                cx.shared
                    .core
                    .lock()
                    .fail(format!("a message does not decode: {invalid}"));
                machine.received_malformed(now, &invalid);
                self.settle(cx);
            }
            Incoming::Close(code, why) => self.disconnected(cx, code, why),
            Incoming::End => self.disconnected(cx, None, "the connection ended".into()),
        }
    }

    fn count(&mut self, core: &mut Core, message: &ServerMessage) {
        let cover = &mut core.cover;
        match message {
            ServerMessage::Begin(begin) => {
                cover.hit(match begin.mode {
                    Mode::Log => Row::ByLog,
                    Mode::Delta => Row::ByDelta,
                    Mode::Reset => Row::ByReset,
                });
                if begin.resumed {
                    cover.hit(Row::Resumed);
                } else if self.offered.contains(&begin.id) && !self.current.contains(&begin.id) {
                    cover.hit(Row::NotResumed);
                }
                if self.current.contains(&begin.id) {
                    cover.hit(Row::Behind);
                }
            }
            ServerMessage::Page { .. } => cover.hit(Row::Pages),
            ServerMessage::Current { id, .. } => {
                self.current.insert(*id);
            }
            ServerMessage::Epoch { .. } => cover.hit(Row::EpochLive),
            ServerMessage::Progress { .. } => cover.hit(Row::Progress),
            ServerMessage::Ack(ack) => {
                cover.hit(Row::Acks);
                cover.add(Row::Overwritten, u64::from(!ack.conflicts.is_empty()));
                cover.add(Row::Skipped, u64::from(!ack.skipped.is_empty()));
            }
            ServerMessage::Reject(reject) => match reject.code {
                Code::Conflict => cover.hit(Row::Conflict),
                Code::PreconditionFailed => cover.hit(Row::Precondition),
                Code::Forbidden => cover.hit(Row::Forbidden),
                Code::Unavailable => cover.hit(Row::Unavailable),
                _ => {}
            },
            ServerMessage::Denied { .. } => cover.hit(Row::Denied),
            ServerMessage::Docs { .. } => cover.hit(Row::Gets),
            ServerMessage::Goaway { .. } => cover.hit(Row::Goaway),
            ServerMessage::Error { code, .. } => match code {
                Code::SlowReader => cover.hit(Row::SlowReader),
                Code::Idle => cover.hit(Row::Idle),
                _ => {}
            },
            ServerMessage::Change(_) | ServerMessage::Welcome(_) | ServerMessage::Pong { .. } => {}
        }
    }

    // A step of its own.

    /// After every input: keeps what changed, does what the machine asks for, sends what it has to send, and
    /// looks at what the app sees.
    pub(crate) fn settle(&mut self, cx: &Context) {
        let now = self.now(&cx.shared);
        let Some(machine) = &mut self.machine else { return };
        let transaction = machine.take_transaction();
        if !transaction.is_empty() {
            if self.crash == Some(Point::BeforeCommit) {
                return self.crash(cx);
            }
            self.keep(cx, transaction);
            self.events(cx);
            if self.crash == Some(Point::AfterCommit) {
                return self.crash(cx);
            }
        }
        self.commands(cx);
        self.transmit(cx, now);
        self.events(cx);
        self.arm(cx);
        self.show(cx);
    }

    fn crash(&mut self, cx: &Context) {
        let Some(point) = self.crash.take() else { return };
        let mut core = cx.shared.core.lock();
        core.cover.hit(point.row());
        let wait = core.rng.below(2_000);
        let at = cx.shared.now() + wait;
        cx.shared.at(&mut core, at, Event::Boot(self.id.0 as usize));
        drop(core);
        self.die(cx, &format!("crashes: {point:?}"));
    }

    /// What the machine has done, and the app asked for, is durable.
    fn keep(&mut self, cx: &Context, transaction: Transaction) {
        self.changed
            .extend(transaction.spaces.iter().map(|(name, _)| cx.index(name)));
        self.kept.stored.apply(transaction);
        for (space, id, tag, counts) in self.unkept.drain(..) {
            self.look = true;
            self.kept.tags.insert((space, id), (tag, counts));
            cx.shared.core.lock().judge.observe(Told::Issued {
                installation: self.id,
                space: &cx.spaces[space],
                tag,
                counts,
            });
        }
    }

    fn commands(&mut self, cx: &Context) {
        let Some(machine) = &mut self.machine else { return };
        let mut closed = None;
        while let Some(command) = machine.poll_command() {
            match command {
                Command::Connect => {
                    self.attempt += 1;
                    self.connecting = true;
                    let core = &mut *cx.shared.core.lock();
                    let wait = core.rng.below(core.plan.latency + 1);
                    let attempt = self.attempt;
                    let install = self.id.0 as usize;
                    cx.shared
                        .at(core, cx.shared.now() + wait, Event::Connect { install, attempt });
                }
                Command::Close(code) => {
                    self.connecting = false;
                    closed = Some(code);
                }
            }
        }
        if let Some(code) = closed
            && let Some(link) = self.lose(cx)
        {
            cx.shared.client_closes(&mut cx.shared.core.lock(), link, Some(code));
        }
    }

    fn transmit(&mut self, cx: &Context, now: Now) {
        while let (Some(machine), Some(link)) = (&mut self.machine, self.link) {
            let Some(message) = machine.poll_transmit(now) else {
                return;
            };
            let transaction = machine.take_transaction();
            if !transaction.is_empty() {
                self.keep(cx, transaction);
                if self.crash == Some(Point::BeforeSend) {
                    self.events(cx);
                    return self.crash(cx);
                }
            }
            if let ClientMessage::Sub(sub) = &message
                && sub.from.as_ref().is_some_and(|from| from.cursor.is_some())
            {
                self.offered.insert(sub.id);
            }
            {
                let core = &mut *cx.shared.core.lock();
                core.say(now.mono_ms, || format!("{:?} → link {link}: {message:?}", self.id));
                core.judge.observe(Told::Sent {
                    connection: ConnectionId(link as u64),
                    message: &message,
                });
                cx.shared.send(core, link, &message);
            }
            if self.crash == Some(Point::AfterSend) {
                self.events(cx);
                return self.crash(cx);
            }
        }
    }

    fn events(&mut self, cx: &Context) {
        while let Some(event) = self.machine.as_mut().and_then(Machine::poll_event) {
            let lock = || cx.shared.core.lock();
            match event {
                Happened::Space(name, SpaceEvent::Settled { id, outcome, .. }) => {
                    self.look = true;
                    let space = cx.index(&name);
                    let Some((tag, _)) = self.kept.tags.remove(&(space, id)) else {
                        continue;
                    };
                    let fate = match &outcome {
                        Ok(_) => Fate::Acked,
                        Err(WriteError::Uncertain) => Fate::Uncertain,
                        Err(WriteError::Cancelled) => Fate::Cancelled,
                        Err(_) => Fate::Refused,
                    };
                    let mut core = lock();
                    core.cover.add(Row::Uncertain, u64::from(fate == Fate::Uncertain));
                    core.say(cx.shared.now(), || format!("{:?}: {tag:?} is {fate:?}", self.id));
                    core.judge.observe(Told::Settled {
                        installation: self.id,
                        space: &name,
                        tag,
                        fate,
                    });
                }
                Happened::Space(name, SpaceEvent::Lost(loss)) => {
                    self.look = true;
                    let mut core = lock();
                    core.cover.hit(Row::Loss);
                    core.say(cx.shared.now(), || format!("{:?}: {loss:?}", self.id));
                    core.judge.observe(Told::Lost {
                        installation: self.id,
                        space: &name,
                        client: loss.client,
                        from: loss.from,
                        through: loss.through,
                    });
                }
                Happened::Space(_, SpaceEvent::NewId { client, why }) => {
                    let mut core = lock();
                    core.say(cx.shared.now(), || format!("{:?} is {client} now: {why:?}", self.id));
                    core.cover.hit(match why {
                        NewIdReason::Cloned => Row::IdCloned,
                        NewIdReason::Unknown => Row::IdUnknown,
                        NewIdReason::Loss => Row::IdLoss,
                        NewIdReason::Gap => Row::IdGap,
                    });
                }
                Happened::Problem { code, message } if !may_happen(code) => {
                    lock().fail(format!("{:?} is told {code}: {message}", self.id));
                }
                Happened::Got { .. } | Happened::State(_) | Happened::Space(..) | Happened::Problem { .. } => {}
            }
        }
    }

    fn arm(&mut self, cx: &Context) {
        let Some(machine) = &self.machine else { return };
        if let Some(at) = machine.deadline().filter(|at| *at < self.armed) {
            self.armed = at;
            let core = &mut *cx.shared.core.lock();
            cx.shared
                .at(core, at.max(cx.shared.now()), Event::Timer(self.id.0 as usize));
        }
    }

    /// Tells the checker what the app sees, where that is new.
    fn show(&mut self, cx: &Context) {
        let look = std::mem::take(&mut self.look);
        let Some(machine) = &self.machine else { return };
        for (index, name) in cx.spaces.iter().enumerate() {
            if !look && !self.changed.contains(&index) {
                continue;
            }
            let Some(space) = machine.space(name) else { continue };
            let value = |doc, path: &FieldPath| space.leaves(doc).and_then(|leaves| leaves.get(path));
            let count = match value(&cx.counter, &cx.count).and_then(Value::as_number) {
                Some(Number::Int(n)) => n,
                _ => 0,
            };
            let shown = Shown {
                position: space.replica().position(),
                count,
                pair: (
                    value(&cx.halves.0, &cx.half).cloned(),
                    value(&cx.halves.1, &cx.half).cloned(),
                ),
            };
            if self.last_shown[index] == shown && !look {
                continue;
            }
            let core = &mut *cx.shared.core.lock();
            core.say(cx.shared.now(), || {
                format!("{:?} sees {} of {name} at {:?}", self.id, shown.count, shown.position)
            });
            core.judge.observe(Told::Shown {
                installation: self.id,
                space: name,
                position: shown.position,
                count: shown.count,
                pairs: &[(shown.pair.0.as_ref(), shown.pair.1.as_ref())],
            });
            if core.rng.chance(HELD) {
                core.judge.observe(Told::Held {
                    installation: self.id,
                    space: name,
                    position: shown.position,
                    docs: space.replica().docs(),
                });
            }
            self.last_shown[index] = shown;
        }
        self.changed.clear();
    }
}

/// Errors that faults bring about. Any other is a defect.
fn may_happen(code: Code) -> bool {
    matches!(
        code,
        Code::SlowReader | Code::Idle | Code::GoingAway | Code::HandshakeTimeout | Code::Unavailable
    )
}
