//! One order, no gap, no repeat, no tear.

use crate::support::*;
use tidegate_history::{Installation, Tag, workload};
use tidegate_protocol::form::Form;
use tidegate_protocol::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifty_writers_and_fifty_subscribers_agree_on_one_order_without_gap_or_repeat() {
    const WRITERS: u32 = 50;
    const EACH: u64 = 20;
    const ALL: u64 = WRITERS as u64 * EACH;
    let gateway = Gateway::start().await;
    let judge = Judge::new();
    // Every fifth reads the text form; half of them come while the writing is on, the first before.
    let read = async |n: u32| {
        let form = if n.is_multiple_of(5) { Form::Json } else { Form::Msgpack };
        let user = format!("reader{n}");
        let mut peer = gateway.peer_in(&user, form).await;
        judge.follow(&mut peer, n, &user);
        peer
    };
    let mut first = (read(0).await, Replica::default());
    first.0.follow("s", &mut first.1, None).await;
    let mut tasks = tokio::task::JoinSet::new();
    for n in 1..50 {
        let mut peer = read(n).await;
        tasks.spawn(async move {
            tokio::time::sleep(std::time::Duration::from_millis(u64::from(n % 2 * 10 * n))).await;
            let mut replica = Replica::default();
            peer.follow("s", &mut replica, None).await;
            peer.reach(&mut replica, ALL).await;
            (n, replica)
        });
    }
    tasks.spawn(async move {
        first.0.reach(&mut first.1, ALL).await;
        (0, first.1)
    });
    let mut writing = tokio::task::JoinSet::new();
    for w in 0..WRITERS {
        let user = format!("writer{w}");
        let mut peer = gateway.peer(&user).await;
        judge.follow(&mut peer, 100 + w, &user);
        writing.spawn(async move {
            let mut writer = WriterState::new("s", u64::from(w) + 1, peer.now);
            for i in 0..EACH {
                // Two documents of one value: a tear would show one without the other.
                let mut ops = workload::counting(Tag(u64::from(w) * EACH + i)).unwrap();
                ops.extend(workload::pair(&format!("{}", i % 7), &Value::int(i64::from(w))).unwrap());
                peer.send(&ClientMessage::Write(writer.write(ops))).await;
            }
            for _ in 0..EACH {
                peer.answer(&mut Replica::default()).await.unwrap();
            }
        });
    }
    while let Some(written) = writing.join_next().await {
        written.unwrap();
    }
    let mut replicas = Vec::new();
    while let Some(reader) = tasks.join_next().await {
        let (n, replica) = reader.unwrap();
        assert_eq!(replica.int(workload::COUNTER, workload::COUNT), Some(ALL as i64));
        replicas.push((n, replica));
    }
    let end = |(n, replica): &(u32, Replica)| (Installation(*n), Some(replica.at), replica.by_path(), 0);
    judge.rest("s", &replicas[0].1, replicas.iter().map(end));
    let counts = judge.verdict();
    assert_eq!((counts.commits, counts.acks, counts.foreign_commits), (ALL, ALL, 0));
    assert_eq!((counts.at_rest, counts.unverified), (50, 0));
    assert!(counts.changes >= ALL && counts.resets >= 50);
    gateway.stop().await;
}

#[tokio::test]
async fn an_ack_comes_after_the_change_it_answers() {
    let gateway = Gateway::start().await;
    for (space, filter) in [
        ("all", None),
        ("some", Some(&["d"][..])),
        ("none", Some(&["other"][..])),
    ] {
        let mut peer = gateway.peer("u").await;
        peer.sub(space, None, None, filter).await;
        let mut replica = Replica::default();
        peer.catch_up(&mut replica).await;
        let mut writer = WriterState::new(space, 1, peer.now);
        for i in 1..=100 {
            peer.send(&ClientMessage::Write(writer.write(vec![set("d/x", "n", i)])))
                .await;
        }
        for _ in 0..100 {
            let ack = peer.answer(&mut replica).await.unwrap();
            assert!(
                replica.at.seq >= ack.position.seq,
                "{space}: acked {} at {}",
                ack.position,
                replica.at
            );
            assert_eq!(replica.at.epoch, ack.position.epoch, "{space}");
        }
    }
    gateway.stop().await;
}
