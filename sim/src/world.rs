//! A history: the scheduler's steps, then everything healed, then rest.

use crate::app;
use crate::coverage::Row;
use crate::install::{Context, Install, Kept, Point};
use crate::net::Link;
use crate::node::Fleet;
use crate::plan::{Act, Plan};
use crate::rng::Rng;
use crate::rules::{FILTERS, Right, Rules, VIEWS};
use crate::shared::{Event, Shared};
use crate::store::{Disk, everything};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use tidegate::metrics::Metrics;
use tidegate::store::{Retention, Store};
use tidegate_history::{Event as Told, Tag};
use tidegate_protocol::{Form, Seq, SpaceId};

const DAY_MS: u64 = 24 * 60 * 60 * 1_000;
/// Within this much time after the last fault everything comes to rest, ms: the longest backoff, and a few
/// rounds of what it then takes.
const REST_MS: u64 = 300_000;
/// Events of a history at most. One that has more goes round in circles.
const EVENTS: u64 = 50_000;
/// Between two looks whether it has.
const LOOK_MS: u64 = 250;
/// Installations at most; a clone is one more.
const INSTALLS: usize = 6;

pub(crate) struct World {
    shared: Arc<Shared>,
    cx: Context,
    disk: Arc<Disk>,
    rules: Arc<Rules>,
    fleet: Fleet,
    installs: Vec<Install>,
    plan: Plan,
    steps: u64,
    last_tag: u64,
    /// When all was healed.
    healed: Option<u64>,
    rests: bool,
}

impl World {
    pub(crate) fn new(shared: Arc<Shared>, metrics: Arc<Metrics>, plan: Plan) -> Self {
        let name = |n: usize| SpaceId::parse(&format!("s{n}")).expect("a constant name");
        let spaces: Vec<_> = (0..plan.spaces).map(name).collect();
        let retention = Retention {
            log_commits: plan.log_commits,
            ..Retention::default()
        };
        let keeps_copies = plan.acts.iter().any(|(_, act)| *act == Act::Failover);
        let disk = Arc::new(Disk::new(retention, spaces.clone(), keeps_copies));
        let rules = Arc::new(Rules::new(plan.users, spaces.clone()));
        let spaces = Arc::new(spaces);
        let fleet = Fleet::new(
            Arc::clone(&shared),
            Arc::clone(&disk),
            Arc::clone(&rules),
            Arc::clone(&spaces),
            metrics,
            plan.clone(),
        );
        let installs = (0..plan.installs)
            .map(|at| Install::new(u32::try_from(at).unwrap_or(0), at % plan.users, Kept::default()))
            .collect();
        Self {
            cx: Context::new(Arc::clone(&shared), spaces),
            shared,
            disk,
            rules,
            fleet,
            installs,
            steps: plan.steps,
            plan,
            last_tag: 0,
            healed: None,
            rests: false,
        }
    }

    fn draw<T>(&self, choose: impl FnOnce(&mut Rng) -> T) -> T {
        choose(&mut self.shared.core.lock().rng)
    }

    fn say(&self, line: impl FnOnce() -> String) {
        self.shared.core.lock().say(self.shared.now(), line);
    }

    fn hit(&self, row: Row) {
        self.shared.core.lock().cover.hit(row);
    }

    fn after(&self, ms: u64, event: Event) {
        let core = &mut *self.shared.core.lock();
        self.shared.at(core, self.shared.now() + ms, event);
    }

    /// Runs the history to its end.
    pub(crate) async fn run(&mut self) {
        self.say(|| format!("{:?}", self.plan));
        if self.plan.acts.iter().any(|(_, act)| *act == Act::Permissions) {
            let core = &mut *self.shared.core.lock();
            for (view, collections) in VIEWS.iter() {
                core.judge.observe(Told::Covers {
                    view: *view,
                    collections: collections.as_deref(),
                });
            }
        }
        for at in 0..self.installs.len() {
            for space in 0..self.plan.spaces {
                let wanted = self.draw(|rng| rng.chance(900).then(|| rng.pick(&[0, 0, 0, 1, 2, 3, 4])));
                if let Some(filter) = wanted {
                    self.installs[at].wanted.insert(space, filter);
                }
            }
            self.installs[at].boot(&self.cx);
        }
        self.after(0, Event::Step);
        let mut events = 0;
        while let Some(event) = self.shared.next().await {
            self.handle(event).await;
            events += 1;
            if events > EVENTS {
                self.shared
                    .core
                    .lock()
                    .fail(format!("it does not end: {EVENTS} events, now {event:?}"));
            }
            if self.rests {
                break;
            }
        }
        if self.rests {
            self.verify().await;
        }
    }

    async fn handle(&mut self, event: Event) {
        match event {
            Event::Step => {
                self.step().await;
            }
            Event::ToServer(link) => {
                self.shared.arrives_at_server(&mut self.shared.core.lock(), link);
            }
            Event::ToClient(link) => {
                let (install, all) = {
                    let core = &mut *self.shared.core.lock();
                    (core.links[link].install, self.shared.arrives_at_client(core, link))
                };
                for incoming in all {
                    self.installs[install].incoming(&self.cx, link, incoming);
                }
            }
            Event::ServerSees(link) => self.shared.core.lock().links[link].reset_server(),
            Event::ClientSees(link) => {
                let install = self.shared.core.lock().links[link].install;
                if self.installs[install].link == Some(link) {
                    self.installs[install].disconnected(&self.cx, None, "the network is gone".into());
                }
            }
            Event::Connect { install, attempt } => self.connect(install, attempt),
            Event::Timer(install) => self.installs[install].timer(&self.cx),
            Event::Boot(install) => self.installs[install].boot(&self.cx),
            Event::NodeUp(node) => {
                self.say(|| format!("node {node} starts"));
                self.drop_links_of(node, true);
                self.fleet.crash(node);
                self.fleet.start(node);
            }
            Event::Bus(at) => {
                let published = self.shared.core.lock().bus[at].take();
                if let Some(published) = published {
                    self.fleet.hears(&published);
                }
            }
            Event::Rest => self.look().await,
        }
    }

    fn connect(&mut self, at: usize, attempt: u64) {
        if !self.installs[at].awaits(attempt) {
            return;
        }
        let offline = self.installs[at].offline_until > self.shared.now();
        let open = self.fleet.open();
        let (refused, form) = {
            let core = &mut *self.shared.core.lock();
            let (refused, json) = (core.plan.refused, core.plan.json);
            let refused = core.rng.chance(refused);
            (
                refused,
                if core.rng.chance(json) {
                    Form::Json
                } else {
                    Form::Msgpack
                },
            )
        };
        if offline || refused || open.is_empty() {
            self.hit(Row::Refused);
            self.installs[at].refused(&self.cx);
            return;
        }
        let node = self.draw(|rng| rng.pick(&open));
        let link = {
            let core = &mut *self.shared.core.lock();
            core.cover.add(Row::JsonConnections, u64::from(form.is_text()));
            core.links.push(Link::new(at, node, form));
            core.links.len() - 1
        };
        self.fleet.accept(node, link, form);
        self.installs[at].connected(&self.cx, link);
    }

    /// The connections of a node that is gone. Its machine's system says so, unless that is gone, too.
    fn drop_links_of(&self, node: usize, told: bool) {
        let core = &mut *self.shared.core.lock();
        for link in 0..core.links.len() {
            if core.links[link].node == node && !core.links[link].is_reset() {
                core.links[link].reset_server();
                if told {
                    let wait = core.rng.below(50);
                    self.shared.at(core, self.shared.now() + wait, Event::ClientSees(link));
                } else {
                    self.shared.cut(core, link);
                }
            }
        }
    }

    async fn step(&mut self) {
        if self.steps == 0 {
            self.heal();
            return;
        }
        self.steps -= 1;
        let (act, at, space, wait) = {
            let core = &mut *self.shared.core.lock();
            let act = core.plan.act(&mut core.rng);
            let (gap, spaces) = (core.plan.gap, core.plan.spaces);
            (
                act,
                core.rng.index(self.installs.len()),
                core.rng.index(spaces),
                core.rng.below(gap + 1),
            )
        };
        self.act(act, at, space).await;
        self.after(wait, Event::Step);
    }

    fn tag(&mut self) -> Tag {
        self.last_tag += 1;
        Tag(self.last_tag)
    }

    async fn act(&mut self, act: Act, at: usize, space: usize) {
        if act != Act::Mutate {
            self.say(|| format!("— {act:?} (installation {at}, space {space})"));
        }
        match act {
            Act::Mutate => {
                let tag = self.tag();
                let machine = self.installs[at].machine.as_ref();
                let seen = machine.and_then(|machine| machine.space(&self.cx.spaces[space])?.replica().position());
                let wish = self.draw(|rng| app::wish(rng, tag, seen));
                self.installs[at].mutate(&self.cx, space, tag, wish);
            }
            Act::Subscribe => {
                let filter = self.draw(|rng| rng.index(FILTERS.len()));
                self.installs[at].subscribe(&self.cx, space, filter);
            }
            Act::Unsubscribe => self.installs[at].unsubscribe(&self.cx, space),
            Act::Get => self.installs[at].get(&self.cx, space),
            Act::Cancel => self.installs[at].cancel(&self.cx),
            Act::WakeUp => self.installs[at].wake_up(&self.cx),
            Act::Cut => {
                if let Some(link) = self.installs[at].link {
                    self.shared.cut(&mut self.shared.core.lock(), link);
                }
            }
            Act::Stall => {
                if let Some(link) = self.installs[at].link {
                    let core = &mut *self.shared.core.lock();
                    let ms = core.rng.pick(&[50, 500, 5_000]);
                    self.shared.stall(core, link, ms);
                }
            }
            Act::CrashClient => self.installs[at].crash = Some(self.draw(|rng| rng.pick(&Point::ALL))),
            Act::GoOffline => {
                self.hit(Row::Offline);
                let ms = self.draw(|rng| rng.pick(&[500, 3_000, 20_000]));
                self.installs[at].offline_until = self.shared.now() + ms;
                if let Some(link) = self.installs[at].link {
                    self.shared.cut(&mut self.shared.core.lock(), link);
                }
            }
            Act::Snapshot | Act::Clone | Act::RollBack => self.copy(act, at),
            Act::NodeClock | Act::ClientClock => {
                let hours = 6 * 60 * 60 * 1_000;
                let core = &mut *self.shared.core.lock();
                let most = core.rng.pick(&[50, 5_000, hours]);
                let skew = i64::try_from(core.rng.below(2 * most)).unwrap_or(0) - i64::try_from(most).unwrap_or(0);
                if act == Act::NodeClock {
                    core.cover.hit(Row::NodeClocks);
                    let node = core.rng.index(self.shared.node_skew.len());
                    self.shared.node_skew[node].store(skew, Relaxed);
                } else {
                    core.cover.hit(Row::ClientClocks);
                    self.installs[at].skew = skew;
                }
            }
            Act::CrashNode => {
                let node = self.draw(|rng| rng.index(self.plan.nodes));
                if self.fleet.crash(node) {
                    self.hit(Row::NodeCrashes);
                    let (told, wait) = self.draw(|rng| (rng.chance(700), rng.below(3_000)));
                    self.drop_links_of(node, told);
                    self.after(wait, Event::NodeUp(node));
                }
            }
            Act::DrainNode => {
                let node = self.draw(|rng| rng.index(self.plan.nodes));
                if self.fleet.drain(node) {
                    self.hit(Row::NodeDrains);
                    self.after(3_500, Event::NodeUp(node));
                }
            }
            Act::StoreOutage => {
                let core = &mut *self.shared.core.lock();
                core.cover.hit(Row::StoreOutages);
                core.store_down_until = self.shared.now() + core.rng.pick(&[100, 1_000, 8_000]);
            }
            Act::Failover => self.disk.fail_over(&self.shared.core, self.shared.now()).await,
            Act::Reopen => {
                self.hit(Row::Reopens);
                self.disk.reopen();
            }
            Act::Trim => {
                self.hit(Row::Trims);
                if let Some(to) = self.some_seq(space).await {
                    self.disk.model().trim_log(&self.cx.spaces[space], to);
                }
            }
            Act::Floor => self.raise_floor(space).await,
            Act::Erase => {
                let open = self.fleet.open();
                if !open.is_empty() {
                    let node = self.draw(|rng| rng.pick(&open));
                    let user = self.draw(|rng| rng.chance(700)).then_some(self.installs[at].user);
                    self.fleet.erase(node, space, user);
                }
            }
            Act::Months => {
                self.hit(Row::Months);
                {
                    let core = &mut *self.shared.core.lock();
                    // Nothing is on its way for months.
                    for link in 0..core.links.len() {
                        self.shared.cut(core, link);
                    }
                    self.shared.months.fetch_add(100 * DAY_MS, Relaxed);
                    core.judge.observe(Told::RecordsAged);
                }
                for space in 0..self.plan.spaces {
                    self.raise_floor(space).await;
                }
            }
            Act::Permissions => {
                self.hit(Row::Permissions);
                let right = self.draw(|rng| Rules::some_right(rng.index(6)));
                self.rules.set(self.installs[at].user, space, right);
                self.say(|| format!("user {} has {right:?}", self.installs[at].user));
            }
        }
    }

    /// Tombstones up to some commit are collected.
    async fn raise_floor(&self, space: usize) {
        self.hit(Row::Floors);
        let name = &self.cx.spaces[space];
        if let Some(to) = self.some_seq(space).await {
            let floor = self.disk.model().raise_floor(name, to);
            self.say(|| format!("store: the floor of {name} is {floor}"));
        }
    }

    /// The head of a space, or little less.
    async fn some_seq(&self, space: usize) -> Option<Seq> {
        let names = std::slice::from_ref(&self.cx.spaces[space]);
        let states = self.disk.model().positions(names).await.ok()?;
        let back = self.draw(|rng| rng.below(4));
        Seq::new(states.first()?.head.seq.get().saturating_sub(back))
    }

    fn copy(&mut self, act: Act, at: usize) {
        match act {
            Act::Snapshot => {
                let kept = self.installs[at].kept.clone();
                self.installs[at].snapshots.push(kept);
            }
            Act::RollBack => {
                let Some(kept) = self.installs[at].snapshots.pop() else {
                    return;
                };
                self.hit(Row::RollBacks);
                self.installs[at].die(&self.cx, "is rolled back");
                self.installs[at].replace(&self.cx, kept);
                self.installs[at].boot(&self.cx);
            }
            _ => {
                let Some(kept) = self.installs[at].snapshots.last().cloned() else {
                    return;
                };
                if self.installs.len() >= INSTALLS {
                    return;
                }
                self.hit(Row::Clones);
                let user = self.installs[at].user;
                let id = u32::try_from(self.installs.len()).unwrap_or(u32::MAX);
                let mut clone = Install::new(id, user, Kept::default());
                clone.wanted.clone_from(&self.installs[at].wanted);
                clone.replace(&self.cx, kept);
                clone.boot(&self.cx);
                self.installs.push(clone);
            }
        }
    }

    /// Nothing goes wrong any more, and everybody writes once more: what was lost shows by then.
    fn heal(&mut self) {
        self.say(|| "— all is healed".into());
        let now = self.shared.now();
        {
            let core = &mut *self.shared.core.lock();
            core.plan.heal();
            core.store_down_until = 0;
            core.links.iter_mut().for_each(Link::unstall);
        }
        self.plan = self.shared.core.lock().plan.clone();
        for user in 0..self.plan.users {
            for space in 0..self.plan.spaces {
                self.rules.set(user, space, Right::Scope(0));
            }
        }
        for at in 0..self.installs.len() {
            self.installs[at].crash = None;
            self.installs[at].offline_until = 0;
            self.installs[at].boot(&self.cx);
            for space in 0..self.plan.spaces {
                let filter = self.installs[at].wanted.get(&space).copied().unwrap_or(0);
                self.installs[at].subscribe(&self.cx, space, filter);
                let tag = self.tag();
                self.installs[at].mutate(&self.cx, space, tag, app::counting(tag));
            }
            self.installs[at].wake_up(&self.cx);
        }
        self.healed = Some(now);
        self.after(LOOK_MS, Event::Rest);
    }

    /// Whether nobody waits for anything.
    async fn look(&mut self) {
        let model = self.disk.model();
        let heads = model.positions(&self.cx.spaces).await.unwrap_or_default();
        let late = self.healed.is_some_and(|at| self.shared.now() > at + REST_MS);
        // Words are made only for somebody who reads them.
        let why = |words: fmt::Arguments<'_>| if late { words.to_string() } else { String::new() };
        let unrest =
            self.installs.iter().find_map(|install| {
                let Some(machine) = &install.machine else {
                    return Some(why(format_args!("{:?} does not run", install.id)));
                };
                if let Some(refusal) = machine.stopped() {
                    return Some(why(format_args!("{:?} has stopped: {refusal}", install.id)));
                }
                self.cx.spaces.iter().zip(&heads).find_map(|(name, state)| {
                    let space = machine.space(name)?;
                    let waits = space.queue().iter().count();
                    let at = space.replica().position();
                    (waits > 0 || space.from_cache() || at != Some(state.head)).then(|| {
                    why(format_args!(
                        "{:?} in {name}: {waits} mutations wait, from cache: {}, at {at:?} where the head is {}: {:?}",
                        install.id,
                        space.from_cache(),
                        state.head,
                        space.queue().iter().map(|m| (m.id, m.seal, m.answer, m.overlaid)).collect::<Vec<_>>()
                    ))
                })
                })
            });
        match unrest {
            None => self.rests = true,
            Some(why) if late => {
                self.shared.core.lock().fail(format!("it does not come to rest: {why}"));
            }
            Some(_) => {
                // A network that works again is noticed by those who wait for it.
                for install in &mut self.installs {
                    if install.link.is_none() {
                        install.wake_up(&self.cx);
                    }
                    // A denial that was on its way is not the last word.
                    install.ask_again(&self.cx);
                }
                self.after(LOOK_MS, Event::Rest);
            }
        }
    }

    /// Compares what all hold with what the store holds.
    async fn verify(&mut self) {
        for name in self.cx.spaces.iter() {
            let (position, docs) = everything(&self.disk.model(), name).await;
            let core = &mut *self.shared.core.lock();
            core.say(self.shared.now(), || format!("rest: {name} at {position}"));
            core.judge.observe(Told::Rest {
                space: name,
                position,
                docs: &docs,
            });
            for install in &self.installs {
                let Some(space) = install.machine.as_ref().and_then(|machine| machine.space(name)) else {
                    continue;
                };
                core.judge.observe(Told::AtRest {
                    installation: install.id,
                    space: name,
                    position: space.replica().position(),
                    docs: space.replica().docs(),
                    queued: space.queue().queued(),
                });
                let kept = install.kept.stored.spaces.get(name);
                if kept.map(|kept| (&kept.docs, kept.standing))
                    != Some((space.replica().docs(), space.replica().standing()))
                {
                    core.fail(format!("{:?} does not keep what it holds of {name}", install.id));
                }
            }
        }
    }
}
