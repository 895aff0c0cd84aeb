//! One run: clients write through the planner, replicas follow, stores restart, lose history and
//! collect; and after every answer two oracles are asked. One tells what the space holds
//! (`interpret`), the other what a client's mids and keys lead to (`write`). Where there are several
//! stores, they must answer alike.

use crate::coverage::Coverage;
use crate::generate::{self, doc};
use crate::harness::Harness;
use crate::interpret::{Docs, Mutation, NOBODY, Plain};
use crate::replica::{Replica, view};
use crate::value::{Dice, V};
use std::collections::BTreeMap;
use std::sync::Arc;
use tidegate::engine::WriteRequest;
use tidegate::store::{CommitGroup, Erase, Erased, Lineage, Outcome, Prepared, ReadCut, SpaceState, UserTag, Version};
use tidegate_protocol::{Code, DocPath, Epoch, Position, Seq, SpaceId};

const CLIENTS: u64 = 5;
const USERS: [&str; 2] = ["u", "v"];

/// Whose client it is.
pub(crate) fn user(client: u64) -> &'static str {
    USERS[usize::from(!client.is_multiple_of(2))]
}

/// What a mutation led to, as the second oracle keeps it.
#[derive(Clone)]
pub(crate) struct Result {
    pub(crate) key: u64,
    pub(crate) refused: Option<Code>,
    pub(crate) position: Position,
}

/// A client's record.
#[derive(Clone, Default)]
pub(crate) struct Record {
    pub(crate) last: u64,
    /// When it last wrote, repeats too.
    pub(crate) when: u64,
    pub(crate) results: BTreeMap<u64, Result>,
}

/// A commit of the present history.
#[derive(Clone)]
pub(crate) struct Past {
    /// Never used again, also where the seq is.
    pub(crate) id: u64,
    pub(crate) plain: Arc<Plain>,
}

/// Everything that a restore brings back.
#[derive(Clone, Default)]
pub(crate) struct Truth {
    pub(crate) docs: Docs,
    pub(crate) history: Vec<Past>,
    pub(crate) records: BTreeMap<u64, Record>,
    /// Clients whose data was erased, and the time from which their markers age.
    pub(crate) erased: BTreeMap<u64, u64>,
    /// When the newest of the records that were forgotten last wrote.
    pub(crate) forgotten: Option<u64>,
    pub(crate) floor: u64,
    pub(crate) last_ms: u64,
    /// Whether anything was ever committed or refused there.
    pub(crate) exists: bool,
}

/// A mutation on its way.
#[derive(Clone)]
pub(crate) struct Sent {
    pub(crate) request: WriteRequest,
    pub(crate) mutation: Option<Mutation>,
}

pub(crate) struct World {
    pub(crate) dice: Dice,
    pub(crate) cover: Coverage,
    pub(crate) stores: Vec<Box<dyn Harness>>,
    pub(crate) space: SpaceId,
    pub(crate) replicas: Vec<Replica>,
    pub(crate) old_replicas: Vec<Replica>,
    pub(crate) truth: Truth,
    pub(crate) backup: Option<Truth>,
    /// Positions that somebody has seen, with their commits' ids.
    pub(crate) seen: Vec<Position>,
    pub(crate) sent: BTreeMap<(u64, u64), Sent>,
    pub(crate) clock: u64,
    /// Documents that the space may have.
    pub(crate) most_docs: Option<u64>,
    /// The clock by which the group was committed that is judged.
    pub(crate) committed_ms: u64,
    pub(crate) ids: u64,
    pub(crate) lives: u64,
}

impl World {
    pub(crate) fn new(seed: u64, stores: Vec<Box<dyn Harness>>) -> Self {
        let views = [view(None), view(None), view(Some(&["a"])), view(Some(&["a/x", "b"]))];
        let replicas = (0..4 * stores.len()).map(|n| Replica::new(n % stores.len(), views[n / stores.len()].clone()));
        Self {
            dice: Dice(seed),
            cover: Coverage::default(),
            replicas: replicas.collect(),
            old_replicas: vec![],
            stores,
            space: SpaceId::parse("suite:1").expect("valid"),
            truth: Truth::default(),
            backup: None,
            seen: vec![Position::START],
            sent: BTreeMap::new(),
            clock: 1_000_000,
            most_docs: seed.is_multiple_of(2).then_some(5),
            committed_ms: 0,
            ids: 0,
            lives: 0,
        }
    }

    /// One thing that may happen.
    pub(crate) async fn step(&mut self) {
        match self.dice.below(100) {
            0..=44 => self.write().await,
            45..=89 => self.follow().await,
            90..=93 => self.compare().await,
            94..=95 => self.collect().await,
            96 if self.dice.percent(50) => self.erase().await,
            96 => self.collect().await,
            97 => {
                for store in &mut self.stores {
                    store.restart().await;
                }
                self.lives += 1;
                self.cover.hit("restart");
            }
            98 => {
                for store in &mut self.stores {
                    store.back_up().await;
                }
                self.lives += 1;
                self.backup = Some(self.truth.clone());
            }
            _ => {
                if let Some(truth) = self.backup.clone() {
                    for store in &mut self.stores {
                        store.restore().await;
                    }
                    self.lives += 1;
                    self.truth = truth;
                    self.cover.hit("restore of an older state");
                }
            }
        }
    }

    pub(crate) fn head(&self) -> u64 {
        self.truth.history.len() as u64
    }

    pub(crate) fn floor(&self) -> u64 {
        self.truth.floor
    }

    /// How many commits there have been, lost ones too.
    pub(crate) fn commits(&self) -> u64 {
        self.ids
    }

    /// The commit of a seq in the present history.
    pub(crate) fn past(&self, seq: u64) -> Past {
        match usize::try_from(seq).expect("small").checked_sub(1) {
            Some(at) => self.truth.history[at].clone(),
            None => Past {
                id: 0,
                plain: Arc::new(Plain::new()),
            },
        }
    }

    pub(crate) fn saw(&mut self, position: Position) {
        self.seen.push(position);
    }

    pub(crate) fn last_mid(&self, client: u64) -> Option<u64> {
        self.truth.records.get(&client).map(|record| record.last)
    }

    pub(crate) fn a_client(&mut self) -> u64 {
        self.dice.bits() % CLIENTS
    }

    async fn collect(&mut self) {
        let low = self.head().saturating_sub(40);
        let to = low + self.dice.bits() % (self.head() - low + 1);
        for store in &self.stores {
            store.raise_floor(&self.space, Seq::new(to).expect("small")).await;
        }
        if to > self.truth.floor {
            self.cover.hit("floor raised");
            self.truth.floor = to;
        }
        self.truth.docs.collect(self.truth.floor);
        if self.dice.percent(30) {
            let to = Seq::new(self.dice.bits() % (self.head() + 1)).expect("small");
            for store in &self.stores {
                store.trim_log(&self.space, to).await;
            }
        }
        if self.dice.percent(50) {
            self.forget().await;
        }
    }

    /// Erases the space, or a user in it.
    async fn erase(&mut self) {
        let user = match self.dice.below(4) {
            0 => None,
            n => Some(USERS[n % 2]),
        };
        let whom = user.map_or(Erase::Space, |user| Erase::User(UserTag::of(user)));
        let (fresh, now_ms) = (Epoch(self.dice.bits() | 1), self.clock);
        let mut told = vec![];
        for store in &self.stores {
            let store = store.store();
            told.push(
                store
                    .erase(&self.space, whom, fresh, now_ms, &|_| {})
                    .await
                    .expect("it answers"),
            );
        }
        assert!(
            told.iter().all(|erased| *erased == told[0]),
            "the stores differ: {told:?}"
        );
        if !self.truth.exists {
            assert_eq!(told[0], Erased::default(), "there is no such space");
            return;
        }
        let theirs = |client: u64| user.is_none_or(|user| client != NOBODY && self::user(client) == user);
        let erased = self.truth.docs.erase(theirs);
        assert_eq!(told[0].cells, erased);
        let (mine, others): (BTreeMap<_, _>, BTreeMap<_, _>) = std::mem::take(&mut self.truth.records)
            .into_iter()
            .partition(|(client, _)| theirs(*client));
        assert_eq!(told[0].clients, mine.len() as u64);
        self.truth.records = others;
        let markers = mine
            .into_iter()
            .map(|(client, record)| (client, record.when.max(now_ms)));
        self.truth.erased.extend(markers);
        self.truth.floor = self.head();
        self.ids += 1;
        let (id, plain) = (self.ids, Arc::new(self.truth.docs.plain()));
        if let Some(last) = self.truth.history.last_mut() {
            // No position that anybody has seen is this one.
            *last = Past { id, plain };
        }
        match user {
            None => self.cover.hit("space erased"),
            Some(_) => self.cover.add("cells of a user erased", erased),
        }
    }

    /// Forgets who wrote before a time that is mostly not long ago, and now and then lies ahead.
    async fn forget(&mut self) {
        let before = self.clock.saturating_sub(*self.dice.pick(&[3_000, 1_000, 200]));
        let before = if self.dice.percent(10) {
            self.clock + 1_000
        } else {
            before
        };
        for store in &self.stores {
            store.forget(&self.space, before).await;
        }
        let forgotten = &mut self.truth.forgotten;
        let mut found = 0;
        self.truth.records.retain(|_, record| {
            let keep = record.when >= before;
            if !keep {
                found += 1;
                *forgotten = (*forgotten).max(Some(record.when));
            }
            keep
        });
        self.truth.erased.retain(|_, when| {
            let keep = *when >= before;
            if !keep {
                *forgotten = (*forgotten).max(Some(*when));
            }
            keep
        });
        if found > 0 {
            self.cover.add("client records forgotten", found);
        }
    }

    /// Commits on every store; all answer alike.
    pub(crate) async fn send(&mut self, state: &SpaceState, now_ms: u64, items: Vec<Prepared>) -> Vec<Outcome> {
        let (planned_on, fresh) = (state.lineage.last_epoch(), Epoch(self.dice.bits() | 1));
        let group = CommitGroup {
            space: self.space.clone(),
            planned_on,
            fresh,
            now_ms,
            items,
        };
        for (index, item) in group.items.iter().enumerate() {
            let on = |version: &Version| matches!(version, Version::Item(at) if *at >= index);
            assert!(
                !item.expects.iter().any(|(_, version)| on(version)),
                "planned on what comes later"
            );
        }
        let mut first: Option<Vec<Outcome>> = None;
        for store in &self.stores {
            let outcomes = store.store().commit(group.clone()).await.expect("it answers").outcomes;
            match &first {
                Some(first) => assert_eq!(*first, outcomes, "the stores differ"),
                None => first = Some(outcomes),
            }
        }
        let outcomes = first.expect("there is a store");
        self.truth.exists |= outcomes.iter().any(|outcome| {
            use Outcome::{Applied, Duplicate, Refused};
            matches!(outcome, Applied { .. } | Refused { .. } | Duplicate(_))
        });
        outcomes
    }

    /// Reads on every store; all answer alike, and as the interpreter says.
    pub(crate) async fn read(&mut self, docs: &[DocPath]) -> ReadCut {
        let mut cuts = vec![];
        for store in &self.stores {
            let mut cut = store.store().read(&self.space, docs).await.expect("it answers");
            anonymous(&mut cut.state.lineage);
            cuts.push(cut);
        }
        for cut in &cuts {
            assert_eq!(*cut, cuts[0], "the stores differ");
        }
        let cut = cuts.swap_remove(0);
        assert_eq!(
            (cut.state.head.seq.get(), cut.state.floor.get()),
            (self.head(), self.truth.floor)
        );
        let plain = self.past(self.head()).plain;
        let usage = cut.state.usage;
        for store in &self.stores {
            // There is one space.
            assert_eq!(store.store().usage(), usage);
        }
        assert_eq!(usage.docs, plain.len() as u64);
        if docs.len() == generate::DOCS.len() {
            let sizes = cut.docs.iter().filter(|doc| doc.alive()).filter_map(|doc| doc.header);
            assert_eq!(usage.bytes, sizes.map(|header| header.size).sum::<u64>());
        }
        for (name, doc) in docs.iter().zip(&cut.docs) {
            let leaves = doc
                .leaves()
                .map(|(path, value)| (generate::segments(path), V::of(value)))
                .collect();
            assert_eq!(doc.alive().then_some(&leaves), plain.get(name.as_str()), "{name}");
            if let Some(header) = doc.header {
                let bytes: usize = doc
                    .leaves()
                    .map(|(path, value)| path.as_str().len() + value.as_bytes().len())
                    .sum();
                assert_eq!(header.size, bytes as u64, "{name}'s size");
            }
        }
        cut
    }

    pub(crate) fn all_docs() -> Vec<DocPath> {
        generate::DOCS.iter().map(|name| doc(name)).collect()
    }
}

/// Where an epoch ends.
pub(crate) fn end_of(lineage: &Lineage, position: Position, head: u64) -> Option<u64> {
    let at = lineage.0.iter().position(|entry| entry.epoch == position.epoch)?;
    Some(lineage.0.get(at + 1).map_or(head, |next| next.start.get()))
}

/// The seq of a position, if it is one of this history.
pub(crate) fn held(lineage: &Lineage, position: Position, head: u64) -> Option<u64> {
    let seq = position.seq.get();
    (seq == 0 || end_of(lineage, position, head).is_some_and(|end| seq <= end)).then_some(seq)
}

/// Takes out what differs between stores by nature.
pub(crate) fn anonymous(lineage: &mut Lineage) {
    lineage.0.iter_mut().for_each(|entry| entry.incarnation.clear());
}
