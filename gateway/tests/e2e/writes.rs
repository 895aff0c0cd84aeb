//! Applied exactly once; refused with what to do next; nothing partial.

use crate::support::*;
use tidegate_protocol::*;

/// Sends writes and collects the answers by mid.
async fn send_all(peer: &mut Peer, writes: &[Write]) -> Vec<Result<Ack, Reject>> {
    for write in writes {
        peer.send(&ClientMessage::Write(write.clone())).await;
    }
    let mut answers = Vec::new();
    for _ in writes {
        answers.push(peer.answer(&mut Replica::default()).await);
    }
    answers.sort_by_key(|answer| match answer {
        Ok(ack) => ack.mid,
        Err(reject) => reject.mid,
    });
    answers
}

fn code(answer: &Result<Ack, Reject>) -> Code {
    answer.as_ref().expect_err("refused").code
}

async fn count(gateway: &Gateway) -> Option<i64> {
    let mut replica = Replica::default();
    gateway.peer("fresh").await.follow("s", &mut replica, None).await;
    replica.int("c/c", "n")
}

#[tokio::test]
async fn every_mutation_sent_twice_also_across_a_restart_is_applied_once() {
    let gateway = Gateway::start().await;
    let mut peer = gateway.peer("u").await;
    let mut writer = WriterState::new("s", 1, peer.now);
    let writes: Vec<_> = (0..30).map(|_| writer.write(vec![inc("c/c", "n")])).collect();
    let first = send_all(&mut peer, &writes).await;
    // On the same connection, on another one, and twice at once on two.
    assert_eq!(send_all(&mut peer, &writes).await, first);
    let (mut a, mut b) = (gateway.peer("u").await, gateway.peer("u").await);
    let more: Vec<_> = (0..30).map(|_| writer.write(vec![inc("c/c", "n")])).collect();
    let (in_a, in_b) = tokio::join!(send_all(&mut a, &more), send_all(&mut b, &more));
    // One of the two may overtake the other: then a mid comes before the one before it, and is sent again.
    let settled = |answers: &[Result<Ack, Reject>]| answers.iter().filter(|answer| answer.is_ok()).count();
    assert!(settled(&in_a).max(settled(&in_b)) == 30, "{in_a:?} {in_b:?}");
    assert_eq!(count(&gateway).await, Some(60));
    let gateway = gateway.restart().await;
    let mut peer = gateway.peer("u").await;
    assert_eq!(
        send_all(&mut peer, &writes).await,
        first,
        "the first result, also from another life"
    );
    assert_eq!(count(&gateway).await, Some(60));
    // And the next one goes on from there.
    let next = writer.write(vec![inc("c/c", "n")]);
    assert!(send_all(&mut peer, &[next]).await[0].is_ok());
    assert_eq!(count(&gateway).await, Some(61));
}

#[tokio::test]
async fn a_cloned_database_is_told_so_and_nothing_of_it_is_applied() {
    let gateway = Gateway::start().await;
    let mut peer = gateway.peer("u").await;
    let mut writer = WriterState::new("s", 1, peer.now);
    let begun: Vec<_> = (0..3).map(|_| writer.write(vec![inc("c/c", "n")])).collect();
    send_all(&mut peer, &begun).await;
    // Restored to a second phone: both go on from mid 3 with keys of their own.
    let mut clone = writer.clone();
    let original = writer.write(vec![inc("c/c", "n")]);
    assert!(send_all(&mut peer, &[original]).await[0].is_ok());
    let mut cloned = clone.write(vec![inc("c/c", "n")]);
    cloned.head.key = MutationKey(0xc10e);
    assert_eq!(
        code(&send_all(&mut peer, &[cloned.clone()]).await[0]),
        Code::ClientCloned
    );
    // The clone one further: its predecessor is not the one that was applied.
    let mut next = clone.write(vec![inc("c/c", "n")]);
    next.head.prev = Some(cloned.head.key);
    assert_eq!(code(&send_all(&mut peer, &[next]).await[0]), Code::ClientCloned);
    assert_eq!(count(&gateway).await, Some(4));
    // The original is not disturbed.
    let on = writer.write(vec![inc("c/c", "n")]);
    assert!(send_all(&mut peer, &[on]).await[0].is_ok());
}

#[tokio::test]
async fn a_client_without_a_record_is_told_so_and_not_applied() {
    let gateway = Gateway::start().await;
    let mut peer = gateway.peer("u").await;
    let mut writer = WriterState::new("s", 1, peer.now);
    let first = writer.write(vec![inc("c/c", "n")]);
    let second = writer.write(vec![inc("c/c", "n")]);
    assert_eq!(
        code(&send_all(&mut peer, &[second]).await[0]),
        Code::ClientUnknown,
        "mid 2 of nobody"
    );
    let mut old = first.clone();
    old.head.first = Some(peer.now - 90 * 86_400_000);
    assert_eq!(
        code(&send_all(&mut peer, &[old]).await[0]),
        Code::ClientUnknown,
        "it may have been here and forgotten"
    );
    assert_eq!(count(&gateway).await, None);
    // Another user's client of the same id is another writer.
    assert!(send_all(&mut peer, &[first]).await[0].is_ok());
    let mut other = gateway.peer("other").await;
    let mut same_id = WriterState::new("s", 1, other.now);
    let write = same_id.write(vec![inc("c/c", "n")]);
    assert!(send_all(&mut other, &[write]).await[0].is_ok());
    assert_eq!(count(&gateway).await, Some(2));
}

#[tokio::test]
async fn a_mid_that_comes_too_early_is_sent_back_to_the_expected_one() {
    let gateway = Gateway::start().await;
    let mut peer = gateway.peer("u").await;
    let mut writer = WriterState::new("s", 1, peer.now);
    let writes: Vec<_> = (0..4).map(|_| writer.write(vec![inc("c/c", "n")])).collect();
    send_all(&mut peer, &writes[..1]).await;
    let early = send_all(&mut peer, &writes[2..]).await;
    for answer in &early {
        let reject = answer.as_ref().unwrap_err();
        assert_eq!(
            (reject.code, reject.expected),
            (Code::OutOfOrder, Mid::new(2)),
            "{reject:?}"
        );
    }
    assert_eq!(count(&gateway).await, Some(1));
    assert!(send_all(&mut peer, &writes[1..]).await.iter().all(Result::is_ok));
    assert_eq!(count(&gateway).await, Some(4));
}

#[tokio::test]
async fn a_refused_mutation_does_nothing_consumes_its_mid_and_blocks_nobody() {
    let gateway = Gateway::start().await;
    let mut peer = gateway.peer("u").await;
    let mut writer = WriterState::new("s", 1, peer.now);
    let good = |n| vec![set("d/x", "n", n)];
    let must = |doc: &str, exists| Op {
        exists: Some(exists),
        ..set(doc, "n", 9)
    };
    let huge = Value::str(&"x".repeat(800 << 10));
    let writes = vec![
        writer.write(good(1)),
        // The second op does not hold, so the first is not applied either.
        writer.write(vec![set("d/other", "n", 1), must("d/none", true)]),
        writer.write(vec![op("d/x", OpKind::Create(fields(&[("n", Value::int(2))])))]),
        writer.write(vec![op("d/big", OpKind::Set(fields(&[("n", huge)])))]),
        writer.write(vec![]),
        writer.write(good(3)),
    ];
    let answers = send_all(&mut peer, &writes).await;
    let codes: Vec<_> = answers
        .iter()
        .map(|answer| answer.as_ref().err().map(|reject| reject.code))
        .collect();
    assert_eq!(
        codes,
        [
            None,
            Some(Code::PreconditionFailed),
            Some(Code::PreconditionFailed),
            Some(Code::TooLarge),
            Some(Code::Invalid),
            None
        ]
    );
    let failed = answers[1].as_ref().unwrap_err();
    assert_eq!(failed.at.as_ref().map(|at| at.op), Some(1), "{failed:?}");
    let large = answers[3].as_ref().unwrap_err();
    assert!(
        large.message.contains(&(768 << 10).to_string()),
        "names the limit: {}",
        large.message
    );
    let again = send_all(&mut peer, &writes).await;
    let second: Vec<_> = again
        .iter()
        .map(|answer| answer.as_ref().err().map(|reject| reject.code))
        .collect();
    assert_eq!(second, codes, "a repeat gets the first result");
    let mut replica = Replica::default();
    peer.follow("s", &mut replica, Some(ClientId(1))).await;
    assert_eq!(replica.docs.keys().collect::<Vec<_>>(), ["d/x"]);
    assert_eq!(replica.int("d/x", "n"), Some(3));
    assert_eq!(replica.last_mid, Mid::new(6));
}

#[tokio::test]
async fn each_policy_does_with_a_conflict_what_it_says() {
    let gateway = Gateway::start().await;
    let mut peer = gateway.peer("u").await;
    let mut ours = WriterState::new("s", 1, peer.now);
    let mut theirs = WriterState::new("s", 2, peer.now);
    let two = |n: i64| {
        let set = fields(&[("a", Value::int(n)), ("b", Value::int(n))]);
        vec![op("d/x", OpKind::Set(set))]
    };
    let base = send_all(&mut peer, &[ours.write(two(0))])
        .await
        .remove(0)
        .unwrap()
        .position;
    let newer = send_all(&mut peer, &[theirs.write(vec![set("d/x", "a", 7)])])
        .await
        .remove(0)
        .unwrap()
        .position;
    let with = |mut write: Write, policy| {
        write.base = Some(base);
        write.policy = policy;
        write
    };
    let value = async |path: &str| {
        let mut replica = Replica::default();
        gateway.peer("fresh").await.follow("s", &mut replica, None).await;
        replica.int("d/x", path)
    };
    let reject = send_all(&mut peer, &[with(ours.write(two(1)), Some(Policy::Reject))])
        .await
        .remove(0)
        .unwrap_err();
    assert_eq!(reject.code, Code::Conflict);
    let [unit] = &reject.cells[..] else {
        panic!("{reject:?}")
    };
    assert_eq!(unit.path.as_ref().map(FieldPath::as_str), Some("a"));
    assert_eq!(
        (unit.cells[0].seq, &unit.cells[0].value),
        (newer.seq, &Some(Value::int(7))),
        "what stands"
    );
    assert_eq!((value("a").await, value("b").await), (Some(7), Some(0)));

    let merged = send_all(&mut peer, &[with(ours.write(two(2)), Some(Policy::Merge))])
        .await
        .remove(0)
        .unwrap();
    assert_eq!(merged.skipped.len(), 1);
    assert_eq!(merged.skipped[0].cells[0].value, Some(Value::int(7)));
    assert_eq!(
        (value("a").await, value("b").await),
        (Some(7), Some(2)),
        "the others are written"
    );

    let overwritten = send_all(&mut peer, &[with(ours.write(two(3)), None)])
        .await
        .remove(0)
        .unwrap();
    assert_eq!(
        overwritten.conflicts[0].cells[0].value,
        Some(Value::int(7)),
        "what was overwritten comes back"
    );
    assert_eq!((value("a").await, value("b").await), (Some(3), Some(3)));
    let log = tidegate::store::Store::conflicts(&*gateway.store, &"s".parse().unwrap(), 10)
        .await
        .unwrap();
    assert_eq!(log.len(), 3, "every conflict is in the log: {log:?}");
}
