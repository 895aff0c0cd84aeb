//! Erasure in steps: closed while it lasts, taken up after whatever ended the process, and complete.

use super::super::check::walk;
use super::*;
use crate::store::{ConflictDone, ConflictEntry, Lineage, LogReply};
use disk::{Look as _, Table};
use records::{Client, Record};
use std::ops::Bound;

const DOCS: u64 = 700;
const ANN: u64 = 1_001;
const BOB: u64 = 2_002;
const BOTH: [UserTag; 2] = [UserTag(1), UserTag(2)];

fn conflict(writer: u64) -> ConflictEntry {
    let stamp = crate::store::Stamp {
        seq: seq(1),
        writer: Writer(writer),
    };
    let theirs = crate::store::Cell {
        stamp,
        value: Some(Value::int(1)),
    };
    ConflictEntry {
        doc: doc("c/a"),
        path: Some(field("x")),
        theirs: vec![(field("x"), theirs)],
        ours: Some(Value::int(1)),
        done: ConflictDone::Overwritten,
    }
}

/// Of each writer documents that nobody else touches, some deleted; and documents that both write to, the
/// last of them with more fields than a step takes. A field is one letter and a number, a small number its value.
async fn fill(store: &EmbeddedStore) {
    let sized = |effect: DocEffect, fields: u64| DocEffect {
        size: 2 * fields,
        ..effect
    };
    let mut mids = std::collections::BTreeMap::new();
    let mut write = async |writer: u64, docs: Vec<DocEffect>, conflicts: Vec<ConflictEntry>| {
        let mid = mids.entry(writer).or_insert(0);
        *mid += 1;
        let mut item = item(writer, *mid, docs);
        if let Action::Apply(effects) = &mut item.action {
            effects.conflicts = conflicts;
        }
        commit_at(store, "s", 200_000, vec![item]).await.expect("answers");
    };
    for writer in [ANN, BOB] {
        let docs = (0..DOCS).map(|n| sized(set(&format!("own/{writer}-{n}"), true, &[("x", 1)]), 1));
        let conflicts = (0..DOCS)
            .map(|n| conflict(if n % 3 == 0 { ANN } else { BOB }))
            .collect();
        write(writer, docs.collect(), conflicts).await;
        let dead = (0..20).map(|n| delete(&format!("own/{writer}-{n}"), &["x"]));
        write(writer, dead.collect(), vec![]).await;
    }
    let both = (0..20).map(|n| sized(set(&format!("both/{n}"), true, &[("a", 1)]), 1));
    write(ANN, both.collect(), vec![]).await;
    let both = (0..20).map(|n| sized(set(&format!("both/{n}"), false, &[("b", 1)]), 2));
    write(BOB, both.collect(), vec![]).await;
    let names: Vec<_> = (0..2 * DOCS)
        .map(|n| {
            char::from_u32(0x4e00 + u32::try_from(n).expect("small"))
                .expect("a letter")
                .to_string()
        })
        .collect();
    let leaves = |of: u64| {
        names
            .iter()
            .skip(usize::try_from(of).expect("small"))
            .step_by(2)
            .map(|name| (name.as_str(), 1))
            .collect::<Vec<_>>()
    };
    // A letter of these is three bytes long.
    write(
        ANN,
        vec![DocEffect {
            size: 4 * DOCS,
            ..set("both/large", true, &leaves(0))
        }],
        vec![],
    )
    .await;
    write(
        BOB,
        vec![DocEffect {
            size: 8 * DOCS,
            ..set("both/large", false, &leaves(1))
        }],
        vec![],
    )
    .await;
}

fn sound(store: &EmbeddedStore) {
    let mut all = Vec::new();
    walk(&database(store).cut(), &mut |violation| all.push(violation)).expect("reads");
    assert!(all.is_empty(), "{all:?}");
}

fn rows(store: &EmbeddedStore, table: Table) -> Vec<(Vec<u8>, Vec<u8>)> {
    let all = database(store).cut().range(table, Bound::Included(vec![]), vec![0xff]);
    let pair = |guard: disk::Entry| guard.into_inner().map(|(key, value)| (key.to_vec(), value.to_vec()));
    all.map(|guard| pair(guard).expect("reads")).collect()
}

/// Begins an erasure, does so many steps of it by hand, and ends the process as far as the store can tell.
async fn cut_short(place: &Place, whom: Erase, steps: usize) -> EmbeddedStore {
    let store = place.open();
    fill(&store).await;
    sound(&store);
    let s = space("s");
    let begin = Task::BeginErasure(erase::Wanted {
        space: s.clone(),
        whom,
        fresh: Epoch(0xf0),
        now_ms: 300_000,
    });
    let mut erasing = store.task(begin).await.expect("answers").erasing;
    for _ in 0..steps {
        erasing.expect("there is more to do");
        let step = Task::Erase { space: s.clone() };
        erasing = store.task(step).await.expect("answers").erasing;
    }
    assert!(erasing.is_some(), "it is over");
    closed(&store).await;
    sound(&store);
    store.close();
    place.open()
}

/// Waits until the space is open: nothing but the store itself goes on with an erasure.
async fn opens(store: &EmbeddedStore) {
    let wait = async {
        while store.read(&space("s"), &[]).await.is_err() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), wait)
        .await
        .expect("it opens");
}

async fn closed(store: &EmbeddedStore) {
    let s = space("s");
    let says = |error: Option<StoreError>| {
        assert!(
            matches!(&error, Some(StoreError::Unavailable(why)) if why.contains("being erased")),
            "{error:?}"
        )
    };
    says(store.read(&s, &[doc("both/1")]).await.err());
    says(store.changes(&s, everything(None)).await.err());
    says(store.log(&s, Position::START, 10, 100, None).await.err());
    says(store.conflicts(&s, 10).await.err());
    says(commit_at(store, "s", 1_000, vec![item(3, 1, vec![])]).await.err());
    let now = state(store, "s").await;
    assert_eq!(
        (now.head.epoch, now.lineage.0.len(), now.floor),
        (Epoch(0xf0), 1, now.head.seq)
    );
    applied(store, "t", item(3, 1, vec![])).await;
    store.raise_floor(&s, now.head.seq).await.expect("answers");
}

#[tokio::test]
async fn a_space_that_was_being_erased_when_the_process_ended_is_closed_until_it_is_gone() {
    for steps in [0, 1, 4, 9, 15] {
        let place = Place::new();
        let store = cut_short(&place, Erase::Space, steps).await;
        opens(&store).await;
        sound(&store);
        let s = keys::space(&space("s"));
        for table in Table::ALL {
            let left: Vec<_> = rows(&store, table)
                .into_iter()
                .filter(|(key, _)| key.starts_with(&s))
                .collect();
            match table {
                Table::Spaces => assert_eq!(left.len(), 2, "its record and its lineage"),
                Table::Clients => {
                    let marker = Client::erased(300_000).encode();
                    assert!(
                        left.len() == 2 && left.iter().all(|(_, value)| *value == marker),
                        "{left:?}"
                    );
                }
                _ => assert!(left.is_empty(), "{table:?}: {left:?}"),
            }
        }
        let now = state(&store, "s").await;
        assert_eq!(now.usage, Usage::default());
        assert_eq!(store.usage(), Usage::default());
        let next = applied(&store, "s", item(3, 1, vec![])).await;
        assert_eq!(next.seq, now.head.seq.next());
    }
}

#[tokio::test]
async fn a_user_who_was_being_erased_when_the_process_ended_leaves_what_others_wrote_and_no_more() {
    let mut seen = Vec::new();
    for steps in [0, 2, 4, 6, 8, 10, 12] {
        let place = Place::new();
        let store = cut_short(&place, Erase::User(BOTH[0]), steps).await;
        opens(&store).await;
        sound(&store);
        let writer = Writer(ANN).0.to_be_bytes();
        for table in [
            Table::Cells,
            Table::Conflicts,
            Table::Clients,
            Table::Results,
            Table::Users,
        ] {
            for (key, value) in rows(&store, table) {
                let named = match table {
                    Table::Clients => {
                        Client::decode(&value).is_some_and(|client| client.is_erased()) != key.ends_with(&writer)
                    }
                    Table::Results | Table::Users => key.windows(8).any(|eight| eight == writer),
                    Table::Cells => value.windows(8).any(|eight| eight == writer),
                    _ => {
                        value.windows(8).any(|eight| eight == writer)
                            && !value.windows(8).any(|eight| eight == Writer(BOB).0.to_be_bytes())
                    }
                };
                assert!(!named, "{table:?}: {} {}", key.escape_ascii(), value.escape_ascii());
            }
        }
        let (mut docs, now) = scan(&store, "s", everything(None)).await;
        docs.sort_by(|a, b| a.doc.cmp(&b.doc));
        // Bob's own, those that both wrote to, and the large one with half of its fields.
        assert_eq!(now.usage.docs, DOCS - 20 + 20 + 1);
        assert_eq!(now.usage.bytes, 2 * (DOCS - 20 + 20) + 4 * DOCS);
        let both = store
            .read(&space("s"), &[doc("both/3")])
            .await
            .expect("answers")
            .docs
            .remove(0);
        let header = both.header.expect("kept");
        assert_eq!((header.born.writer, header.last.writer), (Writer(0), Writer(BOB)));
        assert_eq!(both.cells.keys().map(FieldPath::as_str).collect::<Vec<_>>(), ["b"]);
        let conflicts = store.conflicts(&space("s"), usize::MAX).await.expect("answers");
        assert_eq!(conflicts.len() as u64, DOCS - DOCS.div_ceil(3));
        let conflicts: Vec<_> = conflicts
            .into_iter()
            .map(|c| (c.position.seq, c.writer, c.entry))
            .collect();
        seen.push((docs, now.usage, conflicts));
        // Ann is a stranger to this space; Bob is not.
        assert_eq!(one(&store, "s", item(ANN, 5, vec![])).await, Outcome::ClientUnknown);
        assert!(matches!(
            one(&store, "s", item(BOB, 2, vec![])).await,
            Outcome::Duplicate(_)
        ));
        let at = applied(&store, "s", item(BOB, 5, vec![])).await;
        assert_eq!(at.seq, now.head.seq.next());
        let before = Position::new(state(&store, "s").await.lineage.0[0].epoch, now.head.seq);
        let log = store
            .log(&space("s"), before, 10, 1 << 20, None)
            .await
            .expect("answers");
        assert!(matches!(log, LogReply::Commits { commits, .. } if commits.len() == 1));
    }
    assert!(
        seen.windows(2).all(|pair| pair[0] == pair[1]),
        "wherever it was cut short, it ends alike"
    );
}

#[tokio::test]
async fn an_erasure_asked_for_while_another_is_under_way_comes_after_it() {
    let store = Place::new().open();
    fill(&store).await;
    let s = space("s");
    let told = Mutex::new(Vec::new());
    let begun = |lineage: &Lineage| told.lock().push(lineage.last_epoch());
    let (one, other, again) = tokio::join!(
        store.erase(&s, Erase::User(BOTH[0]), Epoch(0xf0), 400_000, &begun),
        store.erase(&s, Erase::User(BOTH[1]), Epoch(0xf1), 400_000, &begun),
        store.erase(&s, Erase::User(BOTH[0]), Epoch(0xf2), 400_000, &begun),
    );
    let (one, other) = (one.expect("answers"), other.expect("answers"));
    assert_eq!(one, again.expect("answers"), "who asks for the same waits for that one");
    assert_eq!((one.clients, other.clients), (1, 1));
    assert_eq!(*told.lock(), [Epoch(0xf0), Epoch(0xf0), Epoch(0xf0), Epoch(0xf1)]);
    sound(&store);
    let now = state(&store, "s").await;
    assert_eq!(now.usage, Usage::default(), "of both nothing is left");
    assert_eq!(now.head.epoch, Epoch(0xf1));
    let missing = store
        .erase(&space("never"), Erase::Space, Epoch(1), 1, &|_| {})
        .await
        .expect("answers");
    assert_eq!(
        (missing, state(&store, "never").await),
        (Erased::default(), SpaceState::default())
    );
}

#[tokio::test]
async fn an_erasure_goes_on_when_nobody_waits_for_it_any_more() {
    let place = Place::new();
    let store = place.open();
    fill(&store).await;
    let (s, begun) = (space("s"), tokio::sync::Notify::new());
    let tell = |_: &Lineage| begun.notify_one();
    tokio::select! {
        biased;
        () = begun.notified() => {}
        erased = store.erase(&s, Erase::Space, Epoch(0xf0), 400_000, &tell) => panic!("{erased:?}, and nobody was told"),
    }
    closed(&store).await;
    opens(&store).await;
    sound(&store);
    assert_eq!(state(&store, "s").await.usage, Usage::default());
}

#[tokio::test]
async fn whose_a_writer_is_stays_known_after_its_record_is_forgotten() {
    let store = Place::new().open();
    applied(&store, "s", item(ANN, 1, vec![set("c/a", true, &[("x", 1)])])).await;
    applied(&store, "s", item(BOB, 1, vec![set("c/b", true, &[("x", 1)])])).await;
    assert_eq!(store.forget(&space("s"), u64::MAX).await.expect("answers"), 2);
    let erased = store
        .erase(&space("s"), Erase::User(BOTH[0]), Epoch(9), 1_000, &|_| {})
        .await
        .expect("answers");
    assert_eq!((erased.docs, erased.cells, erased.clients), (1, 1, 0));
    let cut = store
        .read(&space("s"), &[doc("c/a"), doc("c/b")])
        .await
        .expect("answers");
    assert_eq!((cut.docs[0].header, cut.docs[1].alive()), (None, true));
    let key = keys::user(&space("s"), BOTH[1], Writer(BOB));
    assert!(database(&store).cut().get(Table::Users, &key).expect("reads").is_some());
}
