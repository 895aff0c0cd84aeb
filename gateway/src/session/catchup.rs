//! Catch-up: brings a subscription from where its client stands to the head, and makes it live.
//!
//! The hub follows the space *before* anything is read, so that what is committed meanwhile is in its
//! ring when the subscription joins. Modes: `log` (exact commits) where few are missing and the log
//! reaches back, `delta` (what changed) where the position holds, `reset` (the whole) where it does not.

use super::conn::{Conn, Reading, Turn};
use super::cursor;
use super::machine::Subscribe;
use super::node::Node;
use crate::frame;
use crate::hub::{Joining, Lease, Subscriber};
use crate::metrics::Gauged;
use crate::outbox::Stream;
use crate::store::{
    ChangesReply, ChangesRequest, Cursor, Lineage, LogEntry, LogReply, ResetReason, SpaceState, StoreError,
};
use std::sync::Arc;
use std::time::Duration;
use tidegate_protocol::{Begin, DocPath, Mid, Mode, Position, Seq, ServerMessage};

/// Commits of one log read.
const LOG_COMMITS: usize = 256;
/// With more missing than this, a delta is cheaper than the commits.
const LOG_MODE_COMMITS: u64 = 1_000;
/// Before a read that is made again though the one before brought all there is: the hub stands elsewhere than
/// the store, and is about to find out.
const AGAIN: Duration = Duration::from_millis(50);
/// A page's budget doubles up to this many times the configured one while writes outrun the scan.
const BUDGET_GROWTH: usize = 2;

/// One catch-up.
pub(super) struct CatchUp {
    pub(super) node: Arc<Node>,
    pub(super) conn: Arc<Conn>,
    pub(super) reading: Reading,
    pub(super) what: Subscribe,
    /// The number of the stream that it begins.
    pub(super) stream: Stream,
    /// Its subscription was live, and fell behind.
    pub(super) behind: bool,
    pub(super) _gauge: Gauged,
}

/// Where the client stands, as far as it can be taken up.
enum From {
    /// Nowhere.
    Nothing,
    /// At this position.
    At(Position),
    /// In the middle of a scan.
    Scan(Cursor),
}

impl CatchUp {
    /// Runs until the subscription is live. Store failures are waited out: a subscription that cannot
    /// be served now is late, not wrong.
    pub(super) async fn run(self) -> Lease {
        if self.behind {
            self.conn.drained(&self.node).await;
        }
        let mut pause = Duration::from_millis(50);
        let mut from = self.start();
        loop {
            let news = self.node.hub.news(&self.what.space);
            // Before the attempt: what is told during it counts.
            let told = news.as_ref().map(|news| news.notified());
            match self.attempt(&mut from).await {
                Ok(Step::Live(lease)) => return lease,
                Ok(Step::Again(next)) => from = next,
                Err(error) => {
                    tracing::warn!(space = %self.what.space, %error, "a catch-up waits for the store");
                    let told = async {
                        match told {
                            Some(told) => told.await,
                            None => std::future::pending().await,
                        }
                    };
                    let _ = tokio::time::timeout(pause, told).await;
                    pause = (pause * 2).min(Duration::from_secs(5));
                }
            }
        }
    }

    /// What of the client's `from` can be taken up, before the store has been asked.
    fn start(&self) -> From {
        let resets = &self.node.metrics.resets;
        match &self.what.from {
            None => From::Nothing,
            Some(from) if from.view != self.what.view.id => {
                resets.with_label_values(&["view"]).inc();
                From::Nothing
            }
            Some(from) => match from.cursor.as_ref().map(|bytes| cursor::decode(bytes)) {
                None => From::At(from.position),
                // A delta from elsewhere than where the client stands would leave a hole.
                Some(Some(cursor))
                    if cursor.view == self.what.view.id && cursor.after.is_none_or(|after| after == from.position) =>
                {
                    From::Scan(cursor)
                }
                Some(_) => {
                    resets.with_label_values(&["foreign_cursor"]).inc();
                    match from.position {
                        // Nothing but what it has staged: there is no state that commits could be applied to.
                        Position::START => From::Nothing,
                        held => From::At(held),
                    }
                }
            },
        }
    }

    async fn attempt(&self, from: &mut From) -> Result<Step, StoreError> {
        // To follow a space is to read it, too. That may wait for the bus, and other connections' reads do not.
        let own = self.conn.own_turn(&self.reading).await;
        let lease = self.node.hub.lease(&self.what.space).await?;
        let turn = Turn::begin(own, &self.node).await;
        match from {
            From::At(position) => match self.by_log(lease, turn, position).await? {
                Logged::Live(lease) => Ok(Step::Live(lease)),
                Logged::Elsewhere(lease, turn, position) => self.by_scan(lease, turn, Some(position), from).await,
                Logged::Lost => Ok(Step::Again(From::Nothing)),
            },
            From::Scan(cursor) => {
                let after = cursor.after;
                self.by_scan(lease, turn, after, from).await
            }
            From::Nothing => self.by_scan(lease, turn, None, from).await,
        }
    }

    fn begin(&self, lease: &Lease, mode: Mode, state: Position, resumed: bool) {
        self.node.metrics.catch_ups.with_label_values(&[mode.name()]).inc();
        self.send(&ServerMessage::Begin(Begin {
            id: self.what.id,
            n: lease.n(),
            mode,
            view: self.what.view.id,
            epoch: state.epoch,
            resumed,
        }));
    }

    fn send(&self, message: &ServerMessage) {
        let frame = frame::message(self.conn.form, message);
        self.conn.outbox().push([self.conn.compressed(&self.node, frame)]);
    }

    fn go_live(&self, lease: &mut Lease, at: Position, lineage: &Lineage, last_mid: Option<Mid>) -> bool {
        let current = ServerMessage::Current {
            id: self.what.id,
            position: at,
            last_mid,
        };
        let who = Joining {
            to: self.conn.clone(),
            sub: self.what.id,
            stream: self.stream,
            view: self.what.view.clone(),
            form: self.conn.form,
            z: self.conn.z(&self.node),
        };
        lease.go_live(who, at, lineage, frame::message(self.conn.form, &current))
    }

    fn count_reset(&self, reason: ResetReason) {
        let label = match reason {
            ResetReason::Lost => "lost",
            ResetReason::BelowFloor => "below_floor",
            ResetReason::ForeignCursor => "foreign_cursor",
        };
        self.node.metrics.resets.with_label_values(&[label]).inc();
    }

    /// Exact commits, if they are few and the log has them. `at` moves with what has been sent, so that another
    /// attempt does not send it again.
    async fn by_log<'a>(
        &'a self,
        mut lease: Lease,
        mut turn: Turn<'a>,
        at: &mut Position,
    ) -> Result<Logged<'a>, StoreError> {
        let mut begun = false;
        loop {
            let page = self.node.config.limits.page_bytes;
            let reply = self
                .node
                .store
                .log(&self.what.space, *at, LOG_COMMITS, page, self.what.writer)
                .await?;
            let (commits, state, last_mid) = match reply {
                LogReply::Commits {
                    commits,
                    state,
                    last_mid,
                } => (commits, state, last_mid),
                LogReply::Trimmed => return Ok(Logged::Elsewhere(lease, turn, *at)),
                LogReply::Reset(reason) => {
                    self.count_reset(reason);
                    return Ok(Logged::Lost);
                }
            };
            if !begun {
                let many = state.head.seq.get().saturating_sub(at.seq.get()) > LOG_MODE_COMMITS;
                // Who takes little is brought what has changed, not all that happened, unless that is a page at most.
                let reached = commits.last().map_or(at.seq, |commit| commit.seq);
                if many || self.behind && reached < state.head.seq {
                    return Ok(Logged::Elsewhere(lease, turn, *at));
                }
                self.begin(&lease, Mode::Log, state.head, false);
                begun = true;
            }
            let before = *at;
            *at = self.send_commits(&lease, &commits, *at, &state);
            if at.seq == state.head.seq && self.go_live(&mut lease, state.head, &state.lineage, last_mid) {
                return Ok(Logged::Live(lease));
            }
            drop(turn);
            if *at == before {
                tokio::time::sleep(AGAIN).await;
            }
            turn = self.conn.turn(&self.node, &self.reading).await;
        }
    }

    /// Sends commits, and between them the epochs that begin there; returns where that leads.
    fn send_commits(&self, lease: &Lease, commits: &[LogEntry], from: Position, state: &SpaceState) -> Position {
        let (n, form) = (lease.n(), self.conn.form);
        let (mut at, mut told) = (from, from.seq);
        let mut frames = Vec::with_capacity(commits.len());
        for commit in commits {
            while let Some(position) = state.lineage.next_epoch(at) {
                if told < at.seq {
                    // What was out of view is covered, too.
                    frames.push(frame::message(form, &ServerMessage::Progress { n, seq: at.seq }));
                    told = at.seq;
                }
                frames.push(frame::message(form, &ServerMessage::Epoch { n, position }));
                at = position;
            }
            at.seq = commit.seq;
            if let Some(frame) = lease.change(&self.what.view, form, self.conn.z(&self.node), commit) {
                frames.push(frame);
                told = at.seq;
            }
        }
        self.conn.outbox().push(frames);
        at
    }

    /// What changed after `after`, or the whole. `from` moves with what has been sent: another attempt goes on behind
    /// it, or says that it does not.
    async fn by_scan<'a>(
        &'a self,
        mut lease: Lease,
        mut turn: Turn<'a>,
        after: Option<Position>,
        from: &mut From,
    ) -> Result<Step, StoreError> {
        let config = &self.node.config;
        let mode = if after.is_some() { Mode::Delta } else { Mode::Reset };
        let mut cursor = match from {
            From::Scan(cursor) => Some(cursor.clone()),
            From::At(_) | From::Nothing => None,
        };
        let resumed = cursor.is_some();
        let mut begun = false;
        let mut budget = config.limits.page_bytes;
        let mut behind = u64::MAX;
        let mut tried = None;
        loop {
            let request = ChangesRequest {
                after,
                cursor: cursor.clone(),
                view: self.what.view.clone(),
                writer: self.what.writer,
                budget,
            };
            let reply = self.node.store.changes(&self.what.space, request).await?;
            let (docs, next, head, done) = match reply {
                ChangesReply::Page { docs, cursor, head } => (docs, Some(cursor), head, None),
                ChangesReply::Done { docs, state, last_mid } => {
                    // Should the connection break before `current`, the scan goes on from the head.
                    let last = docs.last_doc().and_then(|doc| DocPath::parse(doc).ok());
                    let begin = cursor.as_ref().map_or(state.head.seq, |cursor| cursor.begin);
                    let end = last.map(|doc| Cursor {
                        after,
                        at: state.head.seq,
                        doc,
                        begin,
                        head: state.head,
                        view: self.what.view.id,
                    });
                    (docs, end, state.head, Some((state, last_mid)))
                }
                ChangesReply::Reset(reason) => {
                    self.count_reset(reason);
                    // Without the cursor first, then without the position.
                    return Ok(Step::Again(match after {
                        Some(after) if reason == ResetReason::ForeignCursor => From::At(after),
                        Some(after) if cursor.is_some() && reason == ResetReason::Lost => From::At(after),
                        _ => From::Nothing,
                    }));
                }
            };
            if !begun {
                self.begin(&lease, mode, head, resumed);
                begun = true;
            }
            if let (false, Some(next)) = (docs.is_empty(), &next) {
                let page = frame::page(self.conn.form, self.what.id, &docs, &cursor::encode(next));
                self.conn.outbox().push([self.conn.compressed(&self.node, page)]);
                *from = From::Scan(next.clone());
            }
            let mut waits = false;
            if let Some((state, last_mid)) = done {
                if self.go_live(&mut lease, state.head, &state.lineage, last_mid) {
                    return Ok(Step::Live(lease));
                }
                waits = tried.replace(state.head) == Some(state.head);
            }
            // After the last page: more was committed than the hub's ring holds, the scan goes on behind the head.
            // What was there at its beginning, no writes can outrun.
            if let Some(next) = next.as_ref().filter(|next| next.at > Seq::ZERO) {
                let left = head.seq.get().saturating_sub(next.at.get());
                if left >= behind {
                    budget = (budget * 2).min(config.limits.page_bytes * BUDGET_GROWTH);
                }
                behind = left;
            }
            cursor = next.or(cursor);
            drop(turn);
            if waits {
                tokio::time::sleep(AGAIN).await;
            }
            turn = self.conn.turn(&self.node, &self.reading).await;
        }
    }
}

enum Step {
    Live(Lease),
    Again(From),
}

enum Logged<'a> {
    Live(Lease),
    /// Not by log: from here by delta.
    Elsewhere(Lease, Turn<'a>, Position),
    Lost,
}
