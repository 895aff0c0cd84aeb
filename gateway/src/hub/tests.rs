use super::space::{Found, Inner};
use super::*;
use crate::outbox::{Bounds, Transport};
use crate::store::model::Model;
use crate::store::{LineageEntry, View};
use std::io::{self, IoSlice};
use std::task::{Context, Poll};
use tidegate_protocol::{
    Collection, DocChange, DocChangeKind, DocPath, Epoch, Mid, Seq, ServerMessage, ViewId, Writer, msgpack,
};
use tokio::io::ReadBuf;

mod heard;
mod rounds;

/// A socket that takes everything and remembers it.
#[derive(Default)]
struct Tape(Mutex<Vec<u8>>);

impl Transport for Tape {
    fn poll_read(&self, _: &mut Context<'_>, _: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Poll::Pending
    }
    fn try_write_vectored(&self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        let mut tape = self.0.lock();
        bufs.iter().for_each(|buf| tape.extend_from_slice(buf));
        Ok(bufs.iter().map(|buf| buf.len()).sum())
    }
    fn poll_write_ready(&self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
    fn shutdown_write(&self) {}
}

/// Where a subscriber was told to catch up from.
type Behind = Arc<Mutex<Vec<Position>>>;

/// `Outbox<Tape>` as the hub wants it.
struct Peer(Arc<Outbox>, u64, Behind);

impl Subscriber for Peer {
    fn id(&self) -> u64 {
        self.1
    }
    fn outbox(&self) -> &Arc<Outbox> {
        &self.0
    }
    fn behind(&self, _: u64, at: Position) {
        self.2.lock().push(at);
    }
    fn cut(&self) {}
}

fn seq(n: u64) -> Seq {
    Seq::new(n).unwrap()
}

fn at(epoch: u64, n: u64) -> Position {
    Position::new(Epoch(epoch), seq(n))
}

fn lineage(entries: &[(u64, u64)]) -> Lineage {
    Lineage(
        entries
            .iter()
            .map(|(epoch, start)| LineageEntry {
                epoch: Epoch(*epoch),
                incarnation: vec![],
                start: seq(*start),
            })
            .collect(),
    )
}

fn commit(n: u64) -> LogEntry {
    let doc = DocPath::parse(if n.is_multiple_of(2) { "even/x" } else { "odd/x" }).unwrap();
    let body = msgpack::encode_body(
        Writer(1),
        Mid::new(n).unwrap(),
        &[DocChange {
            doc,
            kind: DocChangeKind::Deleted,
        }],
    );
    LogEntry {
        seq: seq(n),
        payload: msgpack::payload(seq(n), n, &body),
    }
}

fn commits(range: std::ops::RangeInclusive<u64>) -> Vec<LogEntry> {
    range.map(commit).collect()
}

fn state(head: Position, lineage: Lineage) -> SpaceState {
    SpaceState {
        head,
        lineage,
        ..SpaceState::default()
    }
}

struct Rig {
    space: SpaceHub,
    metrics: Metrics,
    tapes: Vec<(Arc<Outbox<Tape>>, Behind)>,
}

impl Rig {
    fn at(position: Position, line: &[(u64, u64)]) -> Self {
        let mut inner = Inner::new(&Rig::config());
        inner.open(state(position, lineage(line)), &Metrics::default());
        Self::with(inner)
    }

    fn with(inner: Inner) -> Self {
        let metrics = Metrics::default();
        let space = SpaceHub::new("list:42".parse().unwrap(), 1, &Self::config(), &metrics);
        *space.inner.lock() = inner;
        Self {
            space,
            metrics,
            tapes: vec![],
        }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.space.inner.lock()
    }

    fn config() -> HubConfig {
        HubConfig {
            ring_commits: 4,
            shard: 2,
            ..HubConfig::default()
        }
    }

    fn publish(&mut self, line: &[(u64, u64)], some: &[LogEntry]) -> Found {
        let found = self.inner().hear(&lineage(line), some, &self.metrics);
        self.deliver();
        found
    }

    /// The log answers, and that is all there is.
    fn read(&mut self, line: &[(u64, u64)], some: &[LogEntry]) -> Found {
        let at = self.inner().ask();
        let head = some.last().map_or(at.seq, |commit| commit.seq);
        self.learn(line, head, some)
    }

    /// The log's answer to a question of before.
    fn learn(&mut self, line: &[(u64, u64)], head: Seq, some: &[LogEntry]) -> Found {
        let found = self.inner().learn(&lineage(line), head, some, &self.metrics);
        self.deliver();
        found
    }

    fn deliver(&mut self) {
        let mut round = Round::default();
        while self.space.bring(&mut round, &self.metrics, |_| {}) {}
        self.inner().trim(&Self::config());
    }

    /// A mutation of a peer's was committed at `at`.
    fn ack(&mut self, peer: usize, at: Position) -> Found {
        self.answer(peer, Some(at), b"\x82\x03ack")
    }

    /// It was refused.
    fn reject(&mut self, peer: usize) -> Found {
        self.answer(peer, None, b"\x82\x03rej")
    }

    fn answer(&mut self, peer: usize, at: Option<Position>, frame: &'static [u8]) -> Found {
        let (outbox, behind) = self.tapes[peer].clone();
        let answer = Answer {
            at,
            frame: Bytes::from_static(frame),
            permit: None,
        };
        self.inner()
            .answer(1, &Peer(outbox, peer as u64, behind), answer, &self.metrics)
    }

    fn peer(&mut self) -> (usize, Arc<Peer>) {
        let outbox = Arc::new(Outbox::new(
            Tape::default(),
            Bounds {
                soft: 1 << 20,
                hard: 1 << 20,
            },
            Arc::default(),
        ));
        let behind = Behind::default();
        self.tapes.push((outbox.clone(), behind.clone()));
        let index = self.tapes.len() - 1;
        (index, Arc::new(Peer(outbox, index as u64, behind)))
    }

    fn join(&mut self, position: Position, line: &[(u64, u64)], only: Option<&str>) -> (usize, bool) {
        let (index, to) = self.peer();
        let collections = only.map(|name| [Collection::parse(name).unwrap()].into());
        let view = View {
            id: ViewId(only.map_or(0, |name| name.len() as u64)),
            collections,
        };
        let who = Joining {
            to,
            sub: 7,
            stream: 1,
            view,
            form: Form::Msgpack,
            z: None,
        };
        let live = self.inner().join(
            1,
            who,
            position,
            &lineage(line),
            Bytes::from_static(b"\x82\x00"),
            &self.metrics,
        );
        (index, live)
    }

    /// What a peer has been sent once its own task has been there, in short: `.` current, `5` commit, `E9@4` epoch, `p4` progress, `!` anything else.
    fn seen(&self, index: usize) -> String {
        let outbox = &self.tapes[index].0;
        assert!(futures_util::FutureExt::now_or_never(outbox.run_writer()).is_none());
        let tape = outbox.transport().0.lock().clone();
        let mut rest = &tape[..];
        let mut all = Vec::new();
        while let [_, len, tail @ ..] = rest {
            let (body, after) = tail.split_at(usize::from(*len));
            rest = after;
            all.push(match body {
                [] => ".".to_owned(),
                b"ack" => "a".to_owned(),
                b"rej" => "r".to_owned(),
                body => match msgpack::decode_server(body).unwrap() {
                    ServerMessage::Change(change) => change.commit.seq.to_string(),
                    ServerMessage::Epoch { position, .. } => format!("E{}@{}", position.epoch.0, position.seq),
                    ServerMessage::Progress { seq, .. } => format!("p{seq}"),
                    _ => "!".to_owned(),
                },
            });
        }
        all.join(" ")
    }
}

#[test]
fn commits_are_delivered_once_and_in_order_whatever_the_order_of_the_news() {
    let mut rig = Rig::at(at(1, 2), &[(1, 0)]);
    let (peer, live) = rig.join(at(1, 2), &[(1, 0)], None);
    assert!(live);
    assert_eq!(rig.publish(&[(1, 0)], &commits(5..=6)), Found::Gap);
    assert_eq!(rig.publish(&[(1, 0)], &commits(1..=3)), Found::Gap);
    assert_eq!(rig.publish(&[(1, 0)], &commits(3..=4)), Found::Next);
    assert_eq!(rig.publish(&[(1, 0)], &commits(4..=6)), Found::Repeat);
    assert_eq!(rig.seen(peer), ". 3 4 5 6");
}

#[test]
fn a_joiner_gets_what_came_in_while_it_read_and_no_more() {
    let mut rig = Rig::at(at(1, 0), &[(1, 0)]);
    rig.publish(&[(1, 0)], &commits(1..=6));
    for (from, expected) in [(6, "."), (4, ". 5 6"), (2, ". 3 4 5 6")] {
        let (peer, live) = rig.join(at(1, from), &[(1, 0)], None);
        assert!(live);
        assert_eq!(rig.seen(peer), expected);
    }
    let (peer, live) = rig.join(at(1, 1), &[(1, 0)], None);
    assert!(!live, "the ring holds four commits, 2 is gone");
    assert_eq!(rig.seen(peer), "", "current is not sent where it would leave a hole");
}

#[test]
fn a_joiner_ahead_of_the_hub_gets_no_repeats() {
    let mut rig = Rig::at(at(1, 2), &[(1, 0)]);
    let (peer, live) = rig.join(at(1, 4), &[(1, 0)], None);
    assert!(live);
    rig.publish(&[(1, 0)], &commits(3..=5));
    assert_eq!(rig.seen(peer), ". 5");
}

#[test]
fn a_new_epoch_is_told_between_the_last_commit_of_the_old_and_the_first_of_the_new() {
    let mut rig = Rig::at(Position::START, &[]);
    let (early, live) = rig.join(Position::START, &[], None);
    assert!(live);
    rig.read(&[(1, 0)], &commits(1..=2));
    rig.read(&[(1, 0), (2, 3)], &commits(3..=5));
    assert_eq!(rig.seen(early), ". E1@0 1 2 3 E2@3 4 5");
    let (late, live) = rig.join(at(1, 2), &[(1, 0)], None);
    assert!(live);
    assert_eq!(rig.seen(late), ". 3 E2@3 4 5");
    let third = [(1, 0), (2, 3), (3, 6)];
    let (_, live) = rig.join(at(3, 6), &third, None);
    assert!(
        !live && rig.inner().doubt,
        "of the third epoch the hub's own reader has to hear"
    );
    rig.read(&third, &[]);
    let (ahead, live) = rig.join(at(3, 6), &third, None);
    assert!(live);
    rig.publish(&third, &commits(6..=7));
    assert_eq!(rig.seen(ahead), ". 7", "it knows the third epoch already");
    assert_eq!(rig.seen(early), ". E1@0 1 2 3 E2@3 4 5 6 E3@6 7");
}

#[test]
fn which_epoch_follows_is_for_the_store_to_say_and_not_for_a_publication() {
    // The store fell back twice: the second epoch of each pair is the one that goes on.
    type Line = &'static [(u64, u64)];
    let forks: [(Position, Line, Line); 3] = [
        // Nothing but refusals was there.
        (at(1, 0), &[(9, 0)], &[(1, 0)]),
        (at(1, 2), &[(1, 0), (9, 2)], &[(1, 0), (2, 2)]),
        // The hub knows of the new epoch, and has not got there.
        (at(1, 2), &[(1, 0), (9, 3)], &[(1, 0), (2, 4)]),
    ];
    for (position, lost, line) in forks {
        let mut rig = Rig::at(position, line);
        let (peer, _) = rig.join(position, line, None);
        let sent = rig.seen(peer);
        let next = position.seq.get() + 1;
        assert_eq!(rig.publish(lost, &commits(next..=next + 2)), Found::Gap, "{position}");
        assert!(rig.inner().doubt, "the log is read");
        assert_eq!(rig.seen(peer), sent, "{position}");
        rig.read(line, &commits(next..=next));
        assert!(rig.seen(peer).ends_with(&next.to_string()), "{position}");
    }
    // Before the store has named the one that goes on, the one that is lost looks as good.
    let mut rig = Rig::at(at(1, 2), &[(1, 0)]);
    let (peer, _) = rig.join(at(1, 2), &[(1, 0)], None);
    assert_eq!(rig.publish(&[(1, 0), (9, 2)], &commits(3..=4)), Found::Gap);
    rig.read(&[(1, 0), (2, 2)], &commits(3..=3));
    assert_eq!(rig.publish(&[(1, 0), (2, 2)], &commits(4..=4)), Found::Next);
    assert_eq!(rig.seen(peer), ". E2@2 3 4");
    // An empty history that another took the place of leads nowhere.
    let mut rig = Rig::at(at(1, 0), &[(1, 0)]);
    assert_eq!(rig.read(&[(2, 0)], &[]), Found::Lost);
}

#[test]
fn an_answer_of_an_epoch_that_the_hub_does_not_know_waits_for_the_store() {
    let mut rig = Rig::at(at(1, 2), &[(1, 0)]);
    let (peer, _) = rig.join(at(1, 2), &[(1, 0)], None);
    let (told, _) = rig.join(at(1, 2), &[(1, 0)], None);
    assert_eq!(rig.ack(peer, at(2, 4)), Found::Gap, "the log is read");
    assert_eq!(rig.ack(told, at(9, 3)), Found::Gap);
    assert_eq!(
        rig.ack(told, at(1, 5)),
        Found::Gap,
        "so is what nobody has published here"
    );
    assert!(rig.inner().doubt);
    assert_eq!(rig.seen(peer), ".");
    let line = [(1, 0), (2, 3)];
    rig.inner().ask();
    // Of a log that is read page by page.
    rig.learn(&line, seq(4), &commits(3..=3));
    // The ninth epoch and the end of the first are lost: their changes never come.
    assert_eq!(
        (rig.seen(told), rig.tapes[told].1.lock().len()),
        (". a a".to_owned(), 1)
    );
    assert_eq!(rig.seen(peer), ". 3 E2@3");
    rig.publish(&line, &commits(4..=4));
    assert_eq!(rig.seen(peer), ". 3 E2@3 4 a");
    assert_eq!(rig.ack(peer, at(1, 7)), Found::Repeat, "known to be lost");
    assert_eq!(rig.seen(peer), ". 3 E2@3 4 a a");
    // Where the store's history has forgotten the hub's epoch, nothing leads on: it starts over.
    assert_eq!(rig.ack(peer, at(3, 19)), Found::Gap);
    assert_eq!(rig.read(&[(3, 18)], &[]), Found::Lost);
    assert_eq!(rig.seen(peer), ". 3 E2@3 4 a a");
    rig.inner().lose(state(at(3, 19), lineage(&[(3, 18)])), &rig.metrics);
    assert_eq!(*rig.tapes[peer].1.lock(), [at(2, 4)], "it is not live any more");
    assert_eq!(rig.seen(peer), ". 3 E2@3 4 a a a");
}

#[test]
fn an_answer_is_not_due_by_a_change_of_another_history() {
    let line = [(1, 0)];
    // While the log is read: a publication, and an answer from before the question.
    for is_read in [false, true] {
        let mut rig = Rig::at(at(1, 2), &line);
        let (peer, _) = rig.join(at(1, 2), &line, None);
        rig.ack(peer, at(9, 3));
        let (now, next) = (lineage(&line), commits(3..=3));
        let found = match is_read {
            true => rig.inner().learn(&now, seq(3), &next, &rig.metrics),
            false => rig.inner().hear(&now, &next, &rig.metrics),
        };
        assert_eq!(found, Found::Next);
        rig.deliver();
        assert_eq!(rig.seen(peer), ". 3");
        rig.read(&line, &[]);
        assert_eq!(rig.seen(peer), ". 3 a");
        assert_eq!(
            *rig.tapes[peer].1.lock(),
            [at(1, 3)],
            "what stands it learns by a catch-up"
        );
    }
    // Of an epoch that forked off before where the subscription stands.
    let mut rig = Rig::at(at(1, 5), &line);
    let (peer, _) = rig.join(at(1, 5), &line, None);
    assert_eq!(rig.ack(peer, at(2, 4)), Found::Gap);
    assert_eq!(rig.seen(peer), ".");
    let line = [(1, 0), (2, 3)];
    assert_eq!(rig.read(&line, &[]), Found::Lost);
    rig.inner().lose(state(at(2, 4), lineage(&line)), &rig.metrics);
    assert_eq!(rig.seen(peer), ". a");
    assert_eq!(*rig.tapes[peer].1.lock(), [at(1, 5)]);
    // What is beyond the end of its epoch is lost, whatever was told of the next meanwhile.
    let mut rig = Rig::at(at(1, 2), &[(1, 0)]);
    let (peer, _) = rig.join(at(1, 2), &[(1, 0)], None);
    rig.ack(peer, at(1, 4));
    rig.inner().doubt = true;
    assert_eq!(
        rig.inner()
            .learn(&lineage(&line), seq(4), &commits(3..=4), &rig.metrics),
        Found::Next
    );
    rig.deliver();
    assert_eq!(rig.seen(peer), ". 3 E2@3 4");
    rig.read(&line, &[]);
    assert_eq!(rig.seen(peer), ". 3 E2@3 4 a");
    assert_eq!(*rig.tapes[peer].1.lock(), [at(2, 4)]);
}

#[test]
fn an_answer_beyond_the_commits_that_are_here_waits_until_the_log_has_brought_its_change_or_has_not() {
    let line = [(1, 0)];
    let mut rig = Rig::at(at(1, 1), &line);
    let (peer, _) = rig.join(at(1, 1), &line, None);
    // A repeat, whose commit another node has published, and the bus has lost.
    assert_eq!(rig.ack(peer, at(1, 2)), Found::Gap, "the log is read");
    rig.read(&line, &commits(2..=2));
    assert_eq!(rig.seen(peer), ". 2 a");
    // This one a failover has lost, before the log was read: no epoch is named that would tell.
    assert_eq!(rig.ack(peer, at(1, 3)), Found::Gap);
    assert_eq!(rig.seen(peer), ". 2 a");
    rig.read(&line, &[]);
    assert_eq!(rig.seen(peer), ". 2 a a");
    assert_eq!(
        *rig.tapes[peer].1.lock(),
        [at(1, 2)],
        "what stands it learns by a catch-up"
    );
    // Behind a commit that is missing, here or in the log.
    let (peer, _) = rig.join(at(1, 2), &line, None);
    assert_eq!(rig.publish(&line, &commits(4..=4)), Found::Gap);
    assert_eq!(rig.ack(peer, at(1, 4)), Found::Gap);
    assert_eq!(rig.read(&line, &[]), Found::Gap);
    assert_eq!(rig.seen(peer), ". a", "both are lost");
}

#[test]
fn an_answer_that_came_while_the_log_was_read_is_settled_by_the_next_read() {
    let line = [(1, 0)];
    let mut rig = Rig::at(at(1, 1), &line);
    let (peer, _) = rig.join(at(1, 1), &line, None);
    rig.inner().ask();
    // Committed behind the read.
    rig.ack(peer, at(1, 3));
    rig.learn(&line, seq(2), &commits(2..=2));
    assert!(rig.inner().doubt, "it is read again");
    assert_eq!(rig.seen(peer), ". 2");
    rig.read(&line, &commits(3..=3));
    assert_eq!(rig.seen(peer), ". 2 3 a");
    // Nor is it lost where it was published while an older answer was under way.
    rig.inner().ask();
    rig.publish(&line, &commits(5..=5));
    rig.ack(peer, at(1, 5));
    rig.publish(&line, &commits(4..=4));
    rig.learn(&line, seq(4), &commits(4..=4));
    assert!(!rig.inner().doubt, "nothing is missing");
    assert_eq!(rig.seen(peer), ". 2 3 a 4 5 a");
    assert!(rig.tapes[peer].1.lock().is_empty(), "it is live");
}

#[test]
fn news_of_a_lost_history_are_never_applied() {
    let mut rig = Rig::at(at(1, 5), &[(1, 0)]);
    let (peer, _) = rig.join(at(1, 5), &[(1, 0)], None);
    // The store went back to 3 and on under a new name: 5 is none of its history.
    assert_eq!(rig.publish(&[(1, 0), (2, 3)], &commits(4..=6)), Found::Gap);
    assert_eq!(rig.read(&[(1, 0), (2, 3)], &commits(4..=6)), Found::Lost);
    rig.inner()
        .lose(state(at(2, 6), lineage(&[(1, 0), (2, 3)])), &rig.metrics);
    assert_eq!(rig.seen(peer), ".");
    assert_eq!(
        *rig.tapes[peer].1.lock(),
        [at(1, 5)],
        "it has to catch up from where it stands"
    );
    let (again, live) = rig.join(at(1, 5), &[(1, 0)], None);
    assert!(!live, "a stale catch-up does not go live");
    assert_eq!(rig.seen(again), "");
}

#[test]
fn a_subscriber_that_was_brought_beyond_the_end_of_its_epoch_catches_up_anew() {
    let mut rig = Rig::at(at(1, 3), &[(1, 0)]);
    let (ahead, live) = rig.join(at(1, 4), &[(1, 0)], None);
    let (with, _) = rig.join(at(1, 3), &[(1, 0)], None);
    assert!(live, "ahead of the hub");
    rig.read(&[(1, 0), (2, 3)], &commits(4..=5));
    assert_eq!(rig.seen(ahead), ".", "its 4 is lost, and 5 does not follow it");
    assert_eq!(*rig.tapes[ahead].1.lock(), [at(1, 4)]);
    assert_eq!(rig.seen(with), ". E2@3 4 5");
}

#[test]
fn an_answer_waits_for_its_change_and_out_of_view_for_a_progress_that_covers_it() {
    let mut rig = Rig::at(at(1, 0), &[(1, 0)]);
    let (all, _) = rig.join(at(1, 0), &[(1, 0)], None);
    let (even, _) = rig.join(at(1, 0), &[(1, 0)], Some("even"));
    for peer in [all, even] {
        rig.ack(peer, at(1, 1));
        assert_eq!(rig.seen(peer), ".", "held");
    }
    rig.publish(&[(1, 0)], &commits(1..=2));
    assert_eq!(rig.seen(all), ". 1 2 a");
    assert_eq!(rig.seen(even), ". 2 a");
    rig.publish(&[(1, 0)], &commits(3..=3));
    rig.ack(even, at(1, 3));
    assert_eq!(rig.seen(even), ". 2 a p3 a");
    rig.publish(&[(1, 0)], &commits(5..=5));
    rig.publish(&[(1, 0)], &commits(4..=4));
    rig.inner().tell_progress(1, &rig.metrics);
    rig.inner().tell_progress(1, &rig.metrics);
    assert_eq!(rig.seen(even), ". 2 a p3 a 4 p5", "told once");
}

#[test]
fn an_answer_does_not_overtake_one_that_waits() {
    let mut rig = Rig::at(at(1, 0), &[(1, 0)]);
    let (peer, _) = rig.join(at(1, 0), &[(1, 0)], None);
    rig.reject(peer);
    assert_eq!(rig.seen(peer), ". r");
    rig.ack(peer, at(1, 2));
    rig.reject(peer);
    rig.ack(peer, at(1, 1));
    rig.ack(peer, at(1, 3));
    rig.reject(peer);
    rig.publish(&[(1, 0)], &commits(1..=1));
    assert_eq!(rig.seen(peer), ". r 1", "none before that of the second");
    rig.publish(&[(1, 0)], &commits(2..=2));
    assert_eq!(rig.seen(peer), ". r 1 2 a r a");
    // What ends the subscription lets them all go, in order.
    rig.read(&[(1, 0), (2, 2)], &[]);
    assert_eq!(rig.seen(peer), ". r 1 2 a r a a r");
}

#[test]
fn a_commit_is_encoded_once_however_many_listen() {
    let mut rig = Rig::at(at(1, 0), &[(1, 0)]);
    for _ in 0..20 {
        rig.join(at(1, 0), &[(1, 0)], None);
    }
    rig.publish(&[(1, 0)], &commits(1..=3));
    assert_eq!(rig.metrics.encodes.get(), 3);
    assert_eq!(rig.metrics.deliveries.get(), 60);
}

#[test]
fn what_comes_in_while_a_space_is_opened_follows_the_head_that_is_then_read() {
    let (mut inner, metrics) = (Inner::new(&Rig::config()), Metrics::default());
    assert_eq!(
        inner.hear(&lineage(&[(1, 0)]), &commits(3..=5), &metrics),
        Found::Repeat
    );
    let found = inner.open(state(at(1, 4), lineage(&[(1, 0)])), &metrics);
    assert_eq!(found, Found::Next);
    assert_eq!(inner.position(), at(1, 5));
    let mut rig = Rig::with(inner);
    let (peer, live) = rig.join(at(1, 4), &[(1, 0)], None);
    assert!(live, "5 is in the ring");
    assert_eq!(rig.seen(peer), ". 5");
}

#[tokio::test]
async fn who_comes_to_a_space_waits_for_no_fan_out_under_way_there() {
    let (metrics, tasks) = (Arc::new(Metrics::default()), TaskTracker::new());
    let hub = Hub::new(Arc::new(Model::default()), HubConfig::default(), metrics, tasks);
    let busy: SpaceId = "busy".parse().unwrap();
    drop(hub.lease(&busy).await.unwrap());
    let space = hub.spaces.get(&busy).unwrap().clone();
    let (told, came) = std::sync::mpsc::channel();
    let fan_out = space.inner.lock();
    let coming = {
        let (hub, busy) = (hub.clone(), busy.clone());
        std::thread::spawn(move || {
            // Who waited here would wait with a part of the map in hand, and others for that.
            drop(futures_util::FutureExt::now_or_never(hub.lease(&busy)));
            hub.spaces
                .retain(|_, space| !space.leases.lock().is_idle(Duration::MAX));
            let _ = told.send(());
        })
    };
    let in_time = came.recv_timeout(Duration::from_secs(10));
    drop(fan_out);
    coming.join().unwrap();
    assert_eq!(in_time, Ok(()));
}

#[test]
fn commits_ahead_of_a_gap_are_kept_within_bytes_and_what_is_over_them_is_read_from_the_log() {
    let line = [(1, 0)];
    let large = |n| LogEntry {
        payload: Bytes::from(vec![0; 200_000]),
        ..commit(n)
    };
    let mut rig = Rig::at(at(1, 0), &line);
    for n in 2..=9 {
        assert_eq!(rig.publish(&line, &[large(n)]), Found::Gap);
    }
    assert_eq!(rig.metrics.ahead_dropped.get(), 3, "five are a megabyte");
    assert!(rig.inner().doubt, "the log may be under way from before them");
    rig.publish(&line, &[commit(1)]);
    assert_eq!(rig.inner().position(), at(1, 6), "the first are kept");
    // What follows at once is none of that, however much it is.
    let all: Vec<_> = (7..=20).map(large).collect();
    assert_eq!(rig.publish(&line, &all), Found::Next);
    assert_eq!(rig.inner().position(), at(1, 20));
    // While a space is opened, too.
    let (mut inner, metrics) = (Inner::new(&Rig::config()), Metrics::default());
    for n in 1..=9 {
        inner.hear(&lineage(&line), &[large(n)], &metrics);
    }
    assert_eq!((metrics.ahead_dropped.get(), inner.doubt), (4, true));
    inner.open(state(at(1, 0), lineage(&line)), &metrics);
    assert_eq!(inner.position(), at(1, 5));
}
