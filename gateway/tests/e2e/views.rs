//! What an app sees through the client library, over connections that break.

use crate::support::*;
use std::time::Duration;
use tidegate_client::{Client, Doc, Options, WriteError, fields};
use tidegate_history::{Docs, Event, Fate, Installation, Tag, workload};
use tidegate_protocol::ValueRef;

fn client(addr: std::net::SocketAddr, user: &str) -> Client {
    Client::connect(Options::new(&format!("ws://{addr}")).unwrap().token(user))
}

fn number(doc: &Doc) -> i64 {
    match doc.get("n").map(|value| value.get()) {
        None => 0,
        Some(ValueRef::Int(n)) => n,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_inc_is_never_counted_twice_in_a_local_view_also_when_connections_break() {
    const CLIENTS: u32 = 6;
    const EACH: u64 = 40;
    const ALL: u64 = CLIENTS as u64 * EACH;
    let gateway = Gateway::start().await;
    let cutter = Cutter::message_by_message(gateway.addr).await;
    let judge = Judge::new();
    // Somebody who is never cut off knows the true history, by which local views are judged.
    let mut watcher = gateway.peer("watcher").await;
    judge.follow(&mut watcher, CLIENTS, "watcher");
    let mut truth = Replica::default();
    watcher.follow("s", &mut truth, None).await;
    let mut tasks = tokio::task::JoinSet::new();
    for c in 0..CLIENTS {
        let (addr, judge) = (cutter.addr, judge.clone());
        tasks.spawn(async move {
            let installation = Installation(c);
            let client = client(addr, &format!("user{c}"));
            // As an app in the foreground does: however often connections broke, the next comes at once.
            let awake = async {
                loop {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    client.wake_up();
                }
            };
            let work = async {
                let space = client.space("s").unwrap();
                space.current().await.unwrap();
                let name = space.name();
                let counter = space.doc(workload::COUNTER).unwrap();
                let mut live = space.live();
                let sample = || {
                    let (position, count) = (space.position(), number(&counter.view()));
                    // Else the view may be that of either.
                    if space.position() == position {
                        let event = Event::Shown {
                            installation,
                            space: name,
                            position,
                            count,
                            pairs: &[],
                        };
                        judge.observe(event);
                    }
                    count.cast_unsigned()
                };
                let mut pending = Vec::new();
                for n in 0..EACH {
                    let tag = Tag(u64::from(c) * EACH + n);
                    let counting = space.mutation().inc(workload::COUNTER, workload::COUNT, 1);
                    let sent = counting
                        .set(&*format!("{}/{}", workload::TAGS, tag.0), fields! { "x" => 1 })
                        .send();
                    pending.push((tag, sent));
                    judge.observe(Event::Issued {
                        installation,
                        space: name,
                        tag,
                        counts: true,
                    });
                    sample();
                    let pause = tokio::time::sleep(Duration::from_millis(5 + (n * 7 + u64::from(c) * 3) % 20));
                    tokio::pin!(pause);
                    loop {
                        tokio::select! {
                            () = &mut pause => break,
                            update = live.next() => {
                                update.unwrap();
                                sample();
                            }
                        }
                    }
                }
                // Until everybody's have arrived.
                while sample() < ALL {
                    live.next().await.unwrap();
                }
                for (tag, sent) in pending {
                    sent.await.unwrap();
                    let fate = Fate::Acked;
                    judge.observe(Event::Settled {
                        installation,
                        space: name,
                        tag,
                        fate,
                    });
                    sample();
                }
                assert!(!counter.view().pending());
                // Acked on one connection, confirmed on the next: the count is the same, over another position.
                while !space.queue().is_empty() {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                sample();
                let docs = space
                    .docs()
                    .into_iter()
                    .map(|doc| (doc.path().clone(), doc.leaves().unwrap().clone()));
                (
                    installation,
                    space.position(),
                    docs.collect::<Docs>(),
                    space.queue().len(),
                )
            };
            let end = tokio::select! {
                end = tokio::time::timeout(3 * PATIENCE, work) => end.expect("no end"),
                () = awake => unreachable!(),
            };
            client.close().await;
            end
        });
    }
    let mut cuts = 0;
    let mut ends = Vec::new();
    while ends.len() < CLIENTS as usize {
        tokio::select! {
            () = tokio::time::sleep(Duration::from_millis(60 + cuts * 37 % 90)) => {
                // Enough is enough: each cut has the gateway say again what did not arrive.
                if cuts < 40 {
                    cutter.cut();
                    cuts += 1;
                }
            }
            Some(done) = tasks.join_next() => ends.push(done.unwrap()),
        }
    }
    watcher.reach(&mut truth, ALL).await;
    judge.rest("s", &truth, ends);
    let counts = judge.verdict();
    println!("{} views, {cuts} times all connections cut", counts.views);
    assert_eq!(
        (counts.commits, counts.fates, counts.at_rest),
        (ALL, ALL, CLIENTS.into())
    );
    assert_eq!(counts.unverified, 0);
    assert!(counts.views > ALL * 2 && counts.overlaid_views > ALL && cuts >= 5);
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_made_offline_are_seen_at_once_and_sent_when_the_gateway_is_back() {
    let gateway = Gateway::start().await;
    let addr = gateway.addr;
    let client = client(addr, "u");
    let space = client.space("s").unwrap();
    space.current().await.unwrap();
    let dir = gateway.stop().await;
    let notes = space.collection("notes").unwrap();
    let first = notes.doc("n1").unwrap().set(fields! { "title" => "Hello" });
    let second = notes.doc("n1").unwrap().inc("stars", 5);
    let view = notes.doc("n1").unwrap().view();
    assert_eq!((view.str("title"), view.pending()), (Some("Hello"), true));
    // The same address, another life.
    let store = open_store(dir.path(), tidegate::store::Retention::default());
    let gateway = Gateway::at(
        addr,
        dir,
        store.clone(),
        store,
        tidegate::server::ServerConfig::default(),
    )
    .await;
    let (first, second) = (first.await.unwrap(), second.await.unwrap());
    assert!(first.position.seq < second.position.seq);
    // The answers may come before the catch-up has ended.
    space.current().await.unwrap();
    let view = notes.doc("n1").unwrap().view();
    assert!(!view.pending() && !view.from_cache());
    assert_eq!(view.get("stars"), Some(&tidegate_protocol::Value::int(5)));
    client.close().await;
    gateway.stop().await;
}

#[tokio::test]
async fn a_refused_write_leaves_the_local_view_and_tells_why_and_the_next_goes_on() {
    let gateway = Gateway::start().await;
    let client = client(gateway.addr, "u");
    let space = client.space("s").unwrap();
    space.current().await.unwrap();
    let doc = space.doc("d/x").unwrap();
    doc.set(fields! { "n" => 1 }).await.unwrap();
    let refused = doc.create(fields! { "n" => 2 });
    let next = doc.set(fields! { "m" => 3 });
    let Err(WriteError::Refused(refused)) = refused.await else {
        panic!("created twice")
    };
    assert_eq!(refused.code, tidegate_protocol::Code::PreconditionFailed);
    next.await.unwrap();
    let view = doc.view();
    assert_eq!(view.get("n"), Some(&tidegate_protocol::Value::int(1)));
    assert_eq!(view.get("m"), Some(&tidegate_protocol::Value::int(3)));
    client.close().await;
}
