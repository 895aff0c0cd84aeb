//! A replica that lags becomes the primary: its history lacks the end of the other, and gives out the same numbers again.

use crate::clients::{Pen, Reader, rest, truth};
use crate::fleet::{Fleet, Node, PATIENCE, nodes};
use crate::loss::{LOSSY, WITHIN};
use crate::proxy::Proxy;
use crate::redis_server::Server;
use crate::support::{Judge, fields, op};
use tidegate_protocol::{Mode, OpKind, Value};

/// Spaces in which commits are lost, and those in which none are.
const MOVED: std::ops::Range<u64> = 0..2;
const STILL: std::ops::Range<u64> = 2..3;
/// A space's log holds so many commits, so that whoever is further behind is brought what has changed.
const LOG: &str = "retention.log_commits=12";
/// A page is small, so that a catch-up has several.
const PAGE: &str = "limits.page_bytes=8192";

fn server() -> Server {
    Server::start(&["--appendonly", "yes", "--repl-diskless-sync-delay", "0"])
}

/// Gateways behind a proxy that stands before the primary, and who reads and writes there.
struct World {
    judge: Judge,
    proxy: Proxy,
    nodes: Vec<Node>,
    /// By space.
    pens: Vec<Pen>,
    /// Who writes after a failover, by space.
    others: Vec<Pen>,
    readers: u64,
}

impl World {
    async fn before(primary: &Server) -> Self {
        let proxy = Proxy::before(primary.addr()).await;
        let nodes = nodes(&proxy.url(), 2, &[LOG, PAGE]).await;
        let judge = Judge::new();
        let pens = |from: u64| {
            (MOVED.start..STILL.end)
                .map(|space| Pen::new(&judge, from + space, space))
                .collect()
        };
        Self {
            pens: pens(2_000),
            others: pens(3_000),
            judge,
            proxy,
            nodes,
            readers: 0,
        }
    }

    fn reader(&mut self, space: u64) -> Reader {
        self.readers += 1;
        Reader::new(&self.judge, self.readers, space)
    }

    fn addr(&self, n: u64) -> std::net::SocketAddr {
        self.nodes[usize::try_from(n).unwrap() % self.nodes.len()].addr
    }

    /// Writes more than a page to documents of its own.
    async fn write_much(&mut self, space: u64) {
        let addr = self.addr(space);
        let pen = &mut self.pens[usize::try_from(space).unwrap()];
        let text = "x".repeat(3_000);
        for n in 0..6 {
            let doc = format!("big/{n}");
            let more = vec![op(&doc, OpKind::Set(fields(&[("v", Value::str(&text))])))];
            pen.write_with(addr, more).await;
        }
    }

    /// From one server to the other, which is its replica and in sync, and lacks what is written last.
    async fn fail_over(&mut self, from: &mut Server, to: &Server, asleep: &mut Vec<Reader>) {
        let mut live = vec![];
        for space in MOVED.start..STILL.end {
            for n in 0..self.nodes.len() as u64 {
                let mut reader = self.reader(space);
                reader.follow(self.addr(n)).await;
                live.push(reader);
            }
        }
        // Far behind, with an unfinished delta; with an unfinished reset; up to where the two histories part.
        let (mut kept, mut lost) = (vec![], vec![]);
        for space in MOVED {
            let (mut far, mut late_far) = (self.reader(space), self.reader(space));
            far.visit(self.addr(0)).await;
            late_far.visit(self.addr(1)).await;
            self.write_much(space).await;
            self.write_much(space).await;
            self.write_much(space).await;
            far.begin(self.addr(1)).await;
            let mut whole = self.reader(space);
            whole.begin(self.addr(0)).await;
            let mut exact = self.reader(space);
            exact.visit(self.addr(1)).await;
            kept.extend([(far, true), (whole, true), (exact, false)]);
            lost.push(late_far);
        }
        to.in_sync(from);
        to.detach();
        let mut late = vec![];
        for space in MOVED {
            let addr = self.addr(space);
            let index = usize::try_from(space).unwrap();
            self.pens[index].write(addr, 5).await;
            // Its position is kept, and the head that its catch-up was to reach is lost.
            lost[index].begin(self.addr(0)).await;
            let (mut whole, mut exact, mut sleeper) = (self.reader(space), self.reader(space), self.reader(space));
            whole.begin(self.addr(0)).await;
            exact.visit(self.addr(1)).await;
            sleeper.visit(self.addr(1)).await;
            asleep.push(sleeper);
            late.extend([whole, exact]);
        }
        let head = |reader: &Reader| reader.replica.at.seq.get();
        let mut heads = vec![0; self.pens.len()];
        for reader in &late {
            heads[usize::try_from(reader.space).unwrap()] = head(reader);
        }
        for reader in &mut live {
            reader.reach_seq(heads[usize::try_from(reader.space).unwrap()]).await;
        }
        from.kill();
        self.proxy.switch(to.addr());
        // The lost numbers are given out again, and more. Who wrote what is lost hears of it.
        for space in MOVED {
            let addr = self.addr(space + 1);
            let index = usize::try_from(space).unwrap();
            self.others[index].write(addr, 7).await;
            let lost = self.pens[index].lost;
            self.pens[index].write(addr, 1).await;
            assert_eq!(self.pens[index].lost - lost, 5, "writer of {space}");
        }
        for space in STILL {
            let addr = self.addr(space);
            self.pens[usize::try_from(space).unwrap()].write(addr, 1).await;
        }
        let mut truths = vec![];
        for space in MOVED.start..STILL.end {
            truths.push(truth(self.addr(space), space).await);
            let at = truths[usize::try_from(space).unwrap()].at;
            assert!(at.seq.get() > heads[usize::try_from(space).unwrap()]);
        }
        let mut ends = vec![];
        for mut reader in live {
            let at = truths[usize::try_from(reader.space).unwrap()].at;
            reader.reach(at).await;
            let is_lost = MOVED.contains(&reader.space);
            assert_eq!(reader.resets, u64::from(is_lost), "live reader of {}", reader.space);
            let is_told = !reader.replica.epochs.is_empty();
            assert!(is_lost || is_told, "who is not reset is told of the epoch");
            ends.push(reader);
        }
        for (mut reader, is_torn) in kept {
            let (resets, n) = (reader.resets, reader.replica.modes.len());
            reader.visit(self.addr(n as u64)).await;
            // What an unfinished catch-up has brought so far still counts.
            assert_eq!(reader.replica.resumed[n], is_torn, "reader of {}", reader.space);
            assert_eq!(reader.resets, resets, "reader of {}", reader.space);
            ends.push(reader);
        }
        for mut reader in late {
            let n = reader.replica.modes.len();
            reader.visit(self.addr(n as u64)).await;
            let (mode, resumed) = (reader.replica.modes[n], reader.replica.resumed[n]);
            assert_eq!((mode, resumed), (Mode::Reset, false), "reader of {}", reader.space);
            ends.push(reader);
        }
        for mut reader in lost {
            let resets = reader.resets;
            reader.visit(self.addr(0)).await;
            assert_eq!(reader.replica.resumed.last(), Some(&false), "the catch-up begins anew");
            assert_eq!(reader.resets, resets, "from a position that is kept");
            ends.push(reader);
        }
        for reader in &mut ends {
            reader.leave();
            reader.assert_is(&truths[usize::try_from(reader.space).unwrap()]);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failover_that_loses_commits_and_the_failback_after_it_are_hidden_from_nobody() {
    let (mut one, mut two) = (server(), server());
    two.replicate(&one);
    let mut world = World::before(&one).await;
    for space in MOVED.start..STILL.end {
        let addr = world.addr(space);
        world.pens[usize::try_from(space).unwrap()].write(addr, 3).await;
    }
    let mut asleep = vec![];
    world.fail_over(&mut one, &two, &mut asleep).await;
    // The old primary, which holds what is lost, takes all from the new one.
    one.run();
    one.replicate(&two);
    world.fail_over(&mut two, &one, &mut asleep).await;
    // Some slept through both.
    for space in MOVED.start..STILL.end {
        let truth = truth(world.addr(space), space).await;
        let mut ends = vec![];
        for reader in asleep.iter_mut().filter(|reader| reader.space == space) {
            reader.visit(world.addr(space)).await;
            assert_eq!(reader.resets, 1, "who saw what is lost");
            reader.assert_is(&truth);
            ends.push((reader.number, reader.replica.clone()));
        }
        rest(&world.judge, space, &truth, ends);
    }
    let counts = world.judge.verdict();
    let lost: u64 = world.pens.iter().map(|pen| pen.lost).sum();
    println!("two failovers: {lost} lost and reported, {} resets", counts.resets);
    for node in &world.nodes {
        node.ready().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failover_under_load_loses_commits_and_all_agree_on_what_is_left() {
    let (mut one, two) = (server(), server());
    two.replicate(&one);
    let proxy = Proxy::before(one.addr()).await;
    let nodes = nodes(&proxy.url(), 3, &[]).await;
    let fleet = Fleet::start(&nodes, LOSSY).await;
    fleet.all_beyond(LOSSY.spaces, 4).await;
    two.catch_up(&one);
    two.detach();
    let acked = fleet.acked();
    fleet.reaches(acked + 3 * LOSSY.spaces).await;
    one.kill();
    proxy.switch(two.addr());
    let ended = fleet.end(WITHIN).await;
    println!(
        "{} reported lost, {} reset, converged in {:?}",
        ended.lost,
        ended.reset(),
        ended.took
    );
    assert!(ended.lost > LOSSY.spaces, "{}", ended.lost);
    assert_eq!(ended.uncertain, 0, "each has a record that is left");
    assert!(ended.reset() > 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_primaries_that_are_both_written_to_the_one_that_is_given_up_resets_those_who_saw_it() {
    let (one, two) = (server(), server());
    two.replicate(&one);
    let proxies = [Proxy::before(one.addr()).await, Proxy::before(two.addr()).await];
    let old = Node::start(&proxies[0].url(), &[]);
    old.ready().await;
    let judge = Judge::new();
    let mut pen = Pen::new(&judge, 2_000, 0);
    pen.write(old.addr, 5).await;
    let mut early = Reader::new(&judge, 1, 0);
    early.visit(old.addr).await;
    two.in_sync(&one);
    two.detach();
    // A second node that sees the other side.
    let new = Node::start(&proxies[1].url(), &[]);
    new.ready().await;
    let (mut on_old, mut on_new) = (Reader::new(&judge, 2, 0), Reader::new(&judge, 3, 0));
    on_old.follow(old.addr).await;
    on_new.follow(new.addr).await;
    let mut other = Pen::new(&judge, 3_000, 0);
    for _ in 0..4 {
        pen.write(old.addr, 1).await;
        other.write(new.addr, 2).await;
    }
    on_old.reach_seq(9).await;
    on_new.reach_seq(13).await;
    assert_ne!(on_old.replica.at.epoch, on_new.replica.at.epoch);
    let (mut saw_old, mut saw_new) = (Reader::new(&judge, 4, 0), Reader::new(&judge, 5, 0));
    saw_old.visit(old.addr).await;
    saw_new.visit(new.addr).await;
    // The old one still runs, and is no longer asked.
    proxies[0].switch(two.addr());
    crate::fleet::until("the node is on the other side", async || {
        truth(old.addr, 0).await.at.epoch == on_new.replica.at.epoch
    })
    .await;
    pen.write(old.addr, 1).await;
    assert_eq!(pen.lost, 4, "what it wrote on the side that is given up");
    let truth = truth(new.addr, 0).await;
    let mut ends = vec![];
    for (mut reader, is_live, resets) in [
        (on_old, true, 1),
        (on_new, true, 0),
        (saw_old, false, 1),
        (saw_new, false, 0),
        (early, false, 0),
    ] {
        match is_live {
            true => tokio::time::timeout(PATIENCE, reader.reach(truth.at)).await.unwrap(),
            false => reader.visit(old.addr).await,
        }
        reader.assert_is(&truth);
        assert_eq!(reader.resets, resets, "reader {}", reader.number);
        ends.push((reader.number, reader.replica.clone()));
    }
    rest(&judge, 0, &truth, ends);
    judge.verdict();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_primary_that_is_demoted_in_place_is_left_for_the_one_that_took_over() {
    let (one, two) = (server(), server());
    two.replicate(&one);
    let proxy = Proxy::before(one.addr()).await;
    let nodes = nodes(&proxy.url(), 1, &[]).await;
    let judge = Judge::new();
    let mut pen = Pen::new(&judge, 2_000, 0);
    pen.write(nodes[0].addr, 3).await;
    let mut live = Reader::new(&judge, 1, 0);
    live.follow(nodes[0].addr).await;
    two.in_sync(&one);
    two.detach();
    // Nobody ends the connections to the old one, which answers, and takes no writes.
    proxy.lead_to(two.addr());
    one.replicate(&two);
    let began = std::time::Instant::now();
    pen.write(nodes[0].addr, 3).await;
    println!("written {:?} after", began.elapsed());
    live.reach_seq(6).await;
    assert_eq!((live.resets, pen.lost, live.replica.epochs.len()), (0, 0, 1));
    nodes[0].ready().await;
    assert!(nodes[0].metric("tidegate_redis_errors_total{kind=\"role\"}").await > Some(0));
    judge.verdict();
}
