//! The reading half of a run: replicas that catch up in every mode, from wherever they stand, and
//! stores that are compared with each other.

use crate::replica::{Replica, Scan, apply, normal};
use crate::value::Dice;
use crate::world::{World, anonymous, held, user};
use std::collections::BTreeSet;
use std::sync::Arc;
use tidegate::store::{ChangesReply, ChangesRequest, LogReply, ResetReason, SpaceState};
use tidegate_protocol::{ClientId, DocChangeKind, Position, Seq, ViewId, Writer, msgpack};

impl World {
    /// One replica does one thing.
    pub(crate) async fn follow(&mut self) {
        let at = self.dice.below(self.replicas.len());
        let mut replica = self.replicas[at].clone();
        // Some stay behind, to come back much later.
        if self.dice.percent(5) {
            if self.old_replicas.len() > 30 {
                self.old_replicas.remove(0);
            }
            self.old_replicas.push(replica.clone());
        }
        if self.dice.percent(8) && !self.old_replicas.is_empty() {
            replica = self.dice.pick(&self.old_replicas).clone();
        }
        if replica.scan.is_some() {
            for _ in 0..self.dice.between(1, 3) {
                if replica.scan.is_some() {
                    self.page(&mut replica).await;
                }
            }
        } else {
            match self.dice.below(10) {
                0..=4 => self.log(&mut replica).await,
                5..=7 => self.begin(&mut replica, true),
                _ => self.begin(&mut replica, false),
            }
        }
        self.replicas[at] = replica;
    }

    fn begin(&mut self, replica: &mut Replica, delta: bool) {
        let staged = if delta {
            replica.docs.clone()
        } else {
            Default::default()
        };
        let after = delta.then_some(replica.at);
        let (commits, lives) = (self.commits(), self.lives);
        replica.scan = Some(Scan {
            after,
            cursor: None,
            staged,
            met: BTreeSet::new(),
            commits,
            lives,
        });
    }

    /// Whether a replica's position is of the present history, by the suite's own account.
    fn stands(&self, replica: &Replica) -> bool {
        replica.at.seq.get() <= self.head() && self.past(replica.at.seq.get()).id == replica.commit
    }

    fn reset(&mut self, replica: &mut Replica, reason: ResetReason) {
        match reason {
            ResetReason::Lost => self.cover.hit("position of a lost history"),
            ResetReason::BelowFloor if replica.scan.as_ref().is_some_and(|scan| scan.after.is_none()) => {
                self.cover.hit("scan that began below the floor");
            }
            ResetReason::BelowFloor => self.cover.hit("position below the floor"),
            ResetReason::ForeignCursor => self.cover.hit("cursor of another view"),
        }
        self.begin(replica, false);
    }

    /// The replica is at a position, and must hold what the space held there.
    fn arrive(&mut self, replica: &mut Replica, state: &SpaceState, seq: Seq) {
        let past = self.past(seq.get());
        assert_eq!(
            replica.docs,
            replica.expected(&past.plain),
            "as of {seq}, view {:?}",
            replica.view
        );
        let epoch = state
            .lineage
            .0
            .iter()
            .rev()
            .find(|entry| entry.start < seq)
            .map(|entry| entry.epoch);
        replica.at = if seq == state.head.seq {
            state.head
        } else {
            Position::new(epoch.expect("the epoch of a commit that is handed out has a name"), seq)
        };
        replica.bare = state
            .lineage
            .0
            .iter()
            .any(|entry| entry.epoch == replica.at.epoch && entry.start == seq);
        replica.commit = past.id;
        self.saw(replica.at);
        if replica.view.collections.is_some() {
            self.cover.hit("catch-up in a filtered view");
        }
    }

    async fn log(&mut self, replica: &mut Replica) {
        let (limit, bytes) = (self.dice.between(1, 12), *self.dice.pick(&[1, 200, 100_000]));
        let client = self.a_client();
        let writer = Writer::of(user(client), ClientId(client));
        let store = self.stores[replica.store].store();
        let reply = store
            .log(&self.space, replica.at, limit, bytes, Some(writer))
            .await
            .expect("it answers");
        drop(store);
        match reply {
            LogReply::Commits {
                commits,
                state,
                last_mid,
            } => {
                assert!(self.stands(replica), "{} is no position of this history", replica.at);
                assert_eq!(last_mid.map(|mid| mid.get()), self.last_mid(client));
                assert_eq!(state.head.seq.get(), self.head());
                assert_eq!(commits.is_empty(), replica.at.seq == state.head.seq, "some progress");
                assert!(commits.len() <= limit);
                for entry in &commits {
                    assert_eq!(entry.seq, replica.at.seq.next(), "no gap");
                    let commit = msgpack::decode_payload(&entry.payload).expect("a change");
                    assert_eq!(commit.seq, entry.seq);
                    let seen: Vec<_> = commit
                        .docs
                        .into_iter()
                        .filter(|c| replica.view.covers(&c.doc))
                        .collect();
                    apply(&mut replica.docs, &seen);
                    self.arrive(replica, &state, entry.seq);
                }
                self.cover.hit("catch-up by log");
            }
            LogReply::Trimmed => {
                assert!(self.stands(replica));
                self.cover.hit("log trimmed");
                self.begin(replica, true);
            }
            LogReply::Reset(reason) => {
                self.lost(replica, reason);
                self.reset(replica, reason);
            }
        }
    }

    /// `Lost` is for positions that are lost, and for epochs that ended at or below the floor.
    fn lost(&self, replica: &Replica, reason: ResetReason) {
        if reason == ResetReason::Lost {
            let forgotten = replica.bare || replica.at.seq.get() <= self.floor();
            assert!(!self.stands(replica) || forgotten, "{} is valid", replica.at);
        }
    }

    async fn page(&mut self, replica: &mut Replica) {
        let mut scan = replica.scan.take().expect("a scan is under way");
        let client = self.a_client();
        let mut request = ChangesRequest {
            after: scan.after,
            cursor: scan.cursor.clone(),
            view: replica.view.clone(),
            writer: Some(Writer::of(user(client), ClientId(client))),
            budget: *self.dice.pick(&[1, 1, 30, 100, 1_000_000]),
        };
        let foreign = scan.cursor.is_some() && self.dice.percent(4);
        if foreign {
            request.view.id = ViewId(99);
        }
        let store = self.stores[replica.store].store();
        let reply = store.changes(&self.space, request).await.expect("it answers");
        drop(store);
        if foreign {
            let lost = ChangesReply::Reset(ResetReason::Lost);
            assert!(
                reply == lost || reply == ChangesReply::Reset(ResetReason::ForeignCursor),
                "{reply:?}"
            );
        }
        let (docs, cursor, done) = match reply {
            ChangesReply::Reset(reason) => {
                replica.scan = Some(scan);
                self.check_reset(replica, reason);
                return self.reset(replica, reason);
            }
            ChangesReply::Page { docs, cursor, head } => {
                assert_eq!(head.seq.get(), self.head());
                (docs, Some(cursor), None)
            }
            ChangesReply::Done { docs, state, last_mid } => {
                assert_eq!(last_mid.map(|mid| mid.get()), self.last_mid(client));
                assert_eq!(state.head.seq.get(), self.head());
                (docs, None, Some(state))
            }
        };
        assert!(
            scan.after.is_none() || self.stands(replica),
            "{} is no position of this history",
            replica.at
        );
        if scan.cursor.is_some() && self.commits() > scan.commits {
            self.cover.hit("cursor resumed after writes");
        }
        if scan.cursor.is_some() && self.lives > scan.lives {
            self.cover.hit("cursor resumed after a restart");
        }
        let docs = docs.decode().expect("documents");
        for change in &docs {
            assert!(replica.view.covers(&change.doc));
            let again = !scan.met.insert(change.doc.as_str().to_owned());
            let deleted = change.kind == DocChangeKind::Deleted;
            if again {
                self.cover.hit("document met again in a scan");
            }
            if again && deleted && scan.after.is_none() {
                self.cover.hit("document deleted during a reset");
            }
        }
        apply(&mut scan.staged, &docs);
        match done {
            None => {
                scan.cursor = cursor;
                (scan.commits, scan.lives) = (self.commits(), self.lives);
                replica.scan = Some(scan);
            }
            Some(state) => {
                self.cover.hit(if scan.after.is_some() {
                    "catch-up by delta"
                } else {
                    "catch-up by reset"
                });
                replica.docs = scan.staged;
                self.arrive(replica, &state, state.head.seq);
            }
        }
    }

    fn check_reset(&self, replica: &Replica, reason: ResetReason) {
        let scan = replica.scan.as_ref().expect("a scan is under way");
        match (reason, scan.after, &scan.cursor) {
            (ResetReason::BelowFloor, Some(after), _) => assert!(after.seq.get() < self.floor(), "{after} is above it"),
            (ResetReason::BelowFloor, None, Some(cursor)) => assert!(cursor.begin.get() < self.floor()),
            (ResetReason::BelowFloor, None, None) => panic!("the head is never below the floor"),
            (ResetReason::Lost, _, None) => self.lost(replica, reason),
            // The cursor's own positions may be what is lost.
            (ResetReason::Lost, _, Some(_)) => {}
            (ResetReason::ForeignCursor, _, cursor) => assert!(cursor.is_some()),
        }
    }

    /// Puts the same questions to every store.
    pub(crate) async fn compare(&mut self) {
        self.read(&Self::all_docs()).await;
        let mut from: Vec<Option<Position>> = self.replicas.iter().map(|replica| Some(replica.at)).collect();
        from.extend([None, Some(Position::START)]);
        let view = |dice: &mut Dice, replicas: &[Replica]| dice.pick(replicas).view.clone();
        for after in from {
            let view = view(&mut self.dice, &self.replicas);
            let request = ChangesRequest {
                after,
                cursor: None,
                view,
                writer: None,
                budget: usize::MAX,
            };
            let mut changes = vec![];
            let mut logs = vec![];
            let mut states = vec![];
            let mut conflicts = vec![];
            for store in &self.stores {
                let store = store.store();
                let mut reply = store.changes(&self.space, request.clone()).await.expect("it answers");
                if let ChangesReply::Done { docs, state, .. } = &mut reply {
                    *docs = Arc::new(normal(&docs.decode().expect("documents")).iter().collect());
                    anonymous(&mut state.lineage);
                }
                changes.push(reply);
                let after = after.unwrap_or_default();
                let mut reply = store
                    .log(&self.space, after, 1_000, usize::MAX, None)
                    .await
                    .expect("it answers");
                if let LogReply::Commits { state, .. } = &mut reply {
                    anonymous(&mut state.lineage);
                }
                logs.push(reply);
                let mut state = store
                    .positions(std::slice::from_ref(&self.space))
                    .await
                    .expect("it answers");
                anonymous(&mut state[0].lineage);
                let valid = held(&state[0].lineage, after, self.head()).is_some();
                assert_eq!(matches!(logs.last(), Some(LogReply::Reset(ResetReason::Lost))), !valid);
                states.push(state);
                let mut log = store.conflicts(&self.space, 50).await.expect("it answers");
                // Within a conflict, cells are in whatever order.
                for record in &mut log {
                    record.entry.theirs.sort_by(|a, b| a.0.cmp(&b.0));
                    assert!(
                        record
                            .entry
                            .theirs
                            .iter()
                            .all(|(_, cell)| cell.stamp.seq < record.position.seq.next())
                    );
                }
                conflicts.push(log);
            }
            assert!(
                changes.iter().all(|reply| *reply == changes[0]),
                "the stores differ: {changes:?}"
            );
            assert!(
                logs.iter().all(|reply| *reply == logs[0]),
                "the stores differ: {logs:?}"
            );
            assert!(
                states.iter().all(|state| *state == states[0]),
                "the stores differ: {states:?}"
            );
            assert!(
                conflicts.iter().all(|log| *log == conflicts[0]),
                "the stores differ: {conflicts:?}"
            );
        }
    }
}
