//! One order, no gap, no repeat, no tear.

use crate::support::*;
use std::collections::BTreeSet;
use tidegate_protocol::form::Form;
use tidegate_protocol::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifty_writers_and_fifty_subscribers_agree_on_one_order_without_gap_or_repeat() {
    const WRITERS: u64 = 50;
    const EACH: u64 = 20;
    let gateway = Gateway::start().await;
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..50 {
        // Every fifth reads the text form; half of them come while the writing is on.
        let form = if n % 5 == 0 { Form::Json } else { Form::Msgpack };
        let mut peer = gateway.peer_in(&format!("reader{n}"), form).await;
        tasks.spawn(async move {
            tokio::time::sleep(std::time::Duration::from_millis(n % 2 * 10 * n)).await;
            let mut replica = Replica::default();
            peer.follow("s", &mut replica, None).await;
            peer.reach(&mut replica, WRITERS * EACH).await;
            (replica.seen, replica.docs)
        });
    }
    let mut writing = tokio::task::JoinSet::new();
    for w in 0..WRITERS {
        let mut peer = gateway.peer(&format!("writer{w}")).await;
        writing.spawn(async move {
            let mut writer = WriterState::new("s", w + 1, peer.now);
            let mut nobody = Replica::default();
            for i in 0..EACH {
                // Two documents in one mutation: a tear would show one without the other.
                let ops = vec![
                    set(&format!("d/{}", i % 7), "by", w as i64),
                    set(&format!("e/{}", i % 7), "by", w as i64),
                    inc("count/all", "n"),
                ];
                peer.send(&ClientMessage::Write(writer.write(ops))).await;
            }
            let mut seqs = Vec::new();
            for _ in 0..EACH {
                seqs.push(peer.answer(&mut nobody).await.unwrap().position.seq.get());
            }
            assert!(seqs.is_sorted(), "a client's mutations are in its order");
            seqs
        });
    }
    let mut acked = BTreeSet::new();
    while let Some(seqs) = writing.join_next().await {
        acked.extend(seqs.unwrap());
    }
    assert_eq!(
        acked,
        (1..=WRITERS * EACH).collect(),
        "every mutation has a seq of its own, without a gap"
    );
    let mut longest: Vec<(u64, Writer, u64)> = Vec::new();
    let mut all = Vec::new();
    while let Some(reader) = tasks.join_next().await {
        let (seen, docs) = reader.unwrap();
        assert_eq!(
            docs["count/all"][&"n".parse::<FieldPath>().unwrap()],
            Value::int((WRITERS * EACH) as i64)
        );
        for i in 0..7 {
            assert_eq!(docs[&format!("d/{i}")], docs[&format!("e/{i}")], "torn");
        }
        if seen.len() > longest.len() {
            longest.clone_from(&seen);
        }
        all.push(seen);
    }
    assert_eq!(all.len(), 50);
    for seen in all {
        assert!(longest.ends_with(&seen), "all see the same order");
    }
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
