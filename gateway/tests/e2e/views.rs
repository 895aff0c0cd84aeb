//! What an app sees through the client library, over connections that break.

use crate::support::*;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;
use tidegate_client::{Client, Doc, Options, WriteError, fields};
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
    const CLIENTS: i64 = 6;
    const EACH: i64 = 60;
    let gateway = Gateway::start().await;
    let cutter = Cutter::message_by_message(gateway.addr).await;
    let issued = Arc::new(AtomicI64::new(0));
    let mut tasks = tokio::task::JoinSet::new();
    for c in 0..CLIENTS {
        let (addr, issued) = (cutter.addr, issued.clone());
        tasks.spawn(async move {
            let client = client(addr, &format!("user{c}"));
            let space = client.space("s").unwrap();
            space.current().await.unwrap();
            let doc = space.doc("count/all").unwrap();
            let mut live = space.live();
            let (mut own, mut last, mut samples) = (0, 0, 0);
            let mut sample = |view: &Doc, own: i64| {
                // The order matters: what is seen now was issued before the counter is read.
                let seen = number(view);
                let most = issued.load(Ordering::SeqCst);
                assert!(seen <= most, "client {c} sees {seen} of {most} ever issued");
                assert!(seen >= own, "client {c} sees {seen}, and has issued {own} itself");
                assert!(
                    seen >= last,
                    "client {c} sees {seen} after {last}: something was taken back"
                );
                last = seen;
                samples += 1;
            };
            let mut pending = Vec::new();
            while own < EACH {
                issued.fetch_add(1, Ordering::SeqCst);
                pending.push(doc.inc("n", 1));
                own += 1;
                sample(&doc.view(), own);
                let pause = tokio::time::sleep(Duration::from_millis(5 + (own * 7 + c * 3).cast_unsigned() % 20));
                tokio::pin!(pause);
                loop {
                    tokio::select! {
                        () = &mut pause => break,
                        update = live.next() => {
                            update.unwrap();
                            sample(&doc.view(), own);
                        }
                    }
                }
            }
            // Until everybody's have arrived.
            while number(&doc.view()) < CLIENTS * EACH {
                live.next().await.unwrap();
                sample(&doc.view(), own);
            }
            for settled in pending {
                settled.await.unwrap();
                sample(&doc.view(), own);
            }
            assert_eq!(number(&doc.view()), CLIENTS * EACH);
            assert!(!doc.view().pending());
            client.close().await;
            samples
        });
    }
    let mut cuts = 0;
    let mut samples = 0;
    loop {
        tokio::select! {
            () = tokio::time::sleep(Duration::from_millis(60 + cuts * 37 % 90)) => {
                cutter.cut();
                cuts += 1;
                assert!(cuts < 400, "no end");
            }
            done = tasks.join_next() => match done {
                Some(count) => samples += count.unwrap(),
                None => break,
            }
        }
    }
    println!("{samples} samples, {cuts} times all connections cut");
    assert!(samples > CLIENTS * EACH * 2 && cuts >= 5);
    let mut replica = Replica::default();
    gateway.peer("fresh").await.follow("s", &mut replica, None).await;
    assert_eq!(replica.int("count/all", "n"), Some(CLIENTS * EACH));
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
