//! Stored formats: what a version wrote stays readable by the ones after it.

use crate::generate::doc;
use crate::replica::view;
use std::fmt::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tidegate::auth::{DevAuthoriser, Identity};
use tidegate::engine::{Plan, Planner, WriteBody, WriteRequest};
use tidegate::env::Env;
use tidegate::store::embedded::{self, Durability, EmbeddedOptions, EmbeddedStore};
use tidegate::store::{
    ChangesReply, ChangesRequest, CommitGroup, Erase, LogReply, Outcome, Retention, SpaceState, Store, Usage, UserTag,
};
use tidegate_protocol::{
    ClientId, Epoch, FieldPath, Fields, Limits, Mid, MutationKey, Op, OpKind, Policy, Position, Seq, SpaceId, Value,
    WriteHead, Writer,
};

const SPACES: [&str; 3] = ["fix:notes", "fix:other", "fix:quiet"];
const DOCS: [&str; 8] = ["a/1", "a/2", "a/3", "a/x/4", "b/1", "b/2", "b/3", "never/was"];

struct Count(AtomicU64);

impl Env for Count {
    fn now_ms(&self) -> u64 {
        0
    }
    fn random(&self) -> u64 {
        self.0.fetch_add(1, Ordering::Relaxed)
    }
}

fn options() -> EmbeddedOptions {
    EmbeddedOptions {
        durability: Durability::Memory,
        retention: Retention {
            log_commits: 30,
            ..Retention::default()
        },
        reserve_bytes: embedded::RESERVE_BYTES,
        env: Arc::new(Count(AtomicU64::new(77))),
    }
}

fn space(name: &str) -> SpaceId {
    SpaceId::parse(name).expect("valid")
}

fn path(text: &str) -> FieldPath {
    FieldPath::parse(text).expect("valid")
}

fn key(client: u64, mid: u64) -> MutationKey {
    MutationKey(client << 32 | mid)
}

fn user(client: u64) -> &'static str {
    if client.is_multiple_of(2) { "alice" } else { "bob" }
}

/// Sends a mutation of a client.
async fn send(
    store: &EmbeddedStore,
    name: &str,
    (client, mid, at): (u64, u64, u64),
    base: Option<(Position, Policy)>,
    ops: Vec<Op>,
) -> Outcome {
    let space = space(name);
    let docs: Vec<_> = ops.iter().map(|op| op.doc.clone()).collect();
    let cut = store.read(&space, &docs).await.expect("it answers");
    let planned_on = cut.state.lineage.last_epoch();
    let limits = Limits::default();
    let mut planner = Planner::new(&DevAuthoriser, &limits, &space, docs, cut, at);
    let head = WriteHead {
        space: space.clone(),
        client: ClientId(client),
        mid: Mid::new(mid).expect("small"),
        key: key(client, mid),
        prev: (mid > 1).then(|| key(client, mid - 1)),
        first: (mid == 1).then_some(1_000),
    };
    let who = Arc::new(Identity::new(user(client), None));
    let body = Ok(WriteBody {
        base: base.map(|(base, _)| base),
        policy: base.map(|(_, policy)| policy),
        ops,
    });
    let Plan::Item(item, _) = planner.plan(&WriteRequest::new(who, head, body)) else {
        panic!("planned")
    };
    let group = CommitGroup {
        space,
        planned_on,
        fresh: Epoch(0xe000 + at),
        now_ms: at,
        items: vec![*item],
    };
    store.commit(group).await.expect("it answers").outcomes.remove(0)
}

fn op(name: &str, kind: OpKind) -> Op {
    Op {
        doc: doc(name),
        kind,
        exists: None,
        unchanged_since: None,
    }
}

fn fields(list: &[(&str, Value)]) -> Fields {
    Fields::new(
        list.iter().map(|(text, value)| (path(text), value.clone())),
        &Limits::default(),
    )
    .expect("valid")
}

/// Everything that a store answers about the spaces, without what it does not keep.
async fn answers(store: &EmbeddedStore) -> String {
    let mut out = String::new();
    for name in SPACES {
        let space = space(name);
        let state = store
            .positions(std::slice::from_ref(&space))
            .await
            .expect("it answers")
            .remove(0);
        writeln!(out, "space {name}: {}", told(&state)).expect("text");
        let docs: Vec<_> = DOCS.iter().map(|name| doc(name)).collect();
        let cut = store.read(&space, &docs).await.expect("it answers");
        for (name, doc) in DOCS.iter().zip(&cut.docs) {
            writeln!(out, "  {name}: {:?}", doc.header).expect("text");
            for (path, cell) in &doc.cells {
                writeln!(out, "    {path}: {cell:?}").expect("text");
            }
        }
        let mut positions = vec![Position::START, Position::new(Epoch(5), Seq::new(1).expect("small"))];
        for entry in &state.lineage.0 {
            for n in (1..=state.head.seq.get()).step_by(4) {
                positions.push(Position::new(entry.epoch, Seq::new(n).expect("small")));
            }
        }
        for after in positions {
            let log = store.log(&space, after, 2, 1 << 20, None).await.expect("it answers");
            match log {
                LogReply::Commits { commits, state, .. } => {
                    writeln!(out, "  log after {after}: {}", told(&state)).expect("text");
                    for entry in commits {
                        writeln!(out, "    {}: {:02x?}", entry.seq, &entry.payload[..]).expect("text");
                    }
                }
                other => writeln!(out, "  log after {after}: {other:?}").expect("text"),
            }
            let reply = store
                .changes(&space, request(Some(after), None))
                .await
                .expect("it answers");
            writeln!(out, "  changes after {after}: {}", page(&reply)).expect("text");
        }
        for client in 1..=4 {
            let writer = Writer::of(user(client), ClientId(client));
            let reply = store
                .changes(&space, request(None, Some(writer)))
                .await
                .expect("it answers");
            writeln!(out, "  all, for {client}: {}", page(&reply)).expect("text");
        }
        for conflict in store.conflicts(&space, 100).await.expect("it answers") {
            writeln!(out, "  {conflict:?}").expect("text");
        }
    }
    // What was sent before is answered as before; this begins an epoch, so it comes last.
    for name in SPACES {
        for client in 1..=4 {
            for mid in 1..=40 {
                let head = store.positions(&[space(name)]).await.expect("it answers")[0].head.seq;
                let outcome = send(store, name, (client, mid, 90_000), None, vec![op("a/1", OpKind::Check)]).await;
                if matches!(outcome, Outcome::Applied { .. }) {
                    writeln!(out, "  {name}: {client} {mid} is new after {head}").expect("text");
                    break;
                }
                writeln!(out, "  {name}: {client} {mid} {outcome:?}").expect("text");
            }
        }
    }
    out
}

fn told(state: &SpaceState) -> String {
    let lineage: Vec<_> = state
        .lineage
        .0
        .iter()
        .map(|entry| format!("{:x}@{}", entry.epoch.0, entry.start))
        .collect();
    format!("{} {lineage:?} floor {} at {}", state.head, state.floor, state.last_ms)
}

fn page(reply: &ChangesReply) -> String {
    match reply {
        ChangesReply::Done { docs, state, last_mid } => {
            let docs = docs.decode().expect("documents");
            format!("{} {last_mid:?} {docs:?}", told(state))
        }
        other => format!("{other:?}"),
    }
}

fn request(after: Option<Position>, writer: Option<Writer>) -> ChangesRequest {
    ChangesRequest {
        after,
        cursor: None,
        view: view(None),
        writer,
        budget: usize::MAX,
    }
}

/// In the order in which they came to be; format 1 had no `users`.
const TABLES: [&str; 10] = [
    "spaces",
    "log",
    "cells",
    "fields",
    "idx",
    "dead",
    "clients",
    "results",
    "conflicts",
    "users",
];

/// What format 1 stored of [`make`]: a table, a key and a value in hexadecimal a line.
const RECORDS: &str = include_str!("../fixtures/format-1.records");
/// What format 2 stored of it.
const RECORDS_2: &str = include_str!("../fixtures/format-2.records");
/// What the versions that wrote them answered.
const ANSWERS: &str = include_str!("../fixtures/format-1.answers");

fn bytes(hex: &str) -> Vec<u8> {
    let digit = |at: usize| u8::from_str_radix(&hex[at..at + 2], 16).expect("hexadecimal");
    (0..hex.len()).step_by(2).map(digit).collect()
}

fn tables(format: u32) -> &'static [&'static str] {
    &TABLES[..if format == 1 { 9 } else { 10 }]
}

fn records(format: u32) -> &'static str {
    if format == 1 { RECORDS } else { RECORDS_2 }
}

/// Puts records of a format into a directory's database, whatever it holds.
fn put(dir: &Path, format: u32, records: impl Iterator<Item = &'static str>) {
    let db = fjall::Database::builder(dir.join("db")).open().expect("opens");
    for table in tables(format) {
        db.keyspace(table, fjall::KeyspaceCreateOptions::default)
            .expect("opens");
    }
    for record in records {
        let [table, key, value] = record.split(' ').collect::<Vec<_>>()[..] else {
            panic!("{record}")
        };
        let table = db
            .keyspace(table, fjall::KeyspaceCreateOptions::default)
            .expect("opens");
        table.insert(bytes(key), bytes(value)).expect("written");
    }
    db.persist(fjall::PersistMode::SyncAll).expect("synced");
}

fn mark(dir: &Path, format: u32) {
    std::fs::write(dir.join("FORMAT"), format!("tidegate-store {format}\n")).expect("written");
}

fn marked(dir: &Path) -> String {
    std::fs::read_to_string(dir.join("FORMAT")).expect("readable")
}

/// A directory as a format left it.
fn of_format(format: u32) -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a directory");
    mark(dir.path(), format);
    put(dir.path(), format, records(format).lines());
    dir
}

/// What this version marks a directory with.
const MARKED: &str = "tidegate-store 3\n";

fn checked(dir: &Path) {
    let mut wrong = vec![];
    embedded::check(dir, &mut |violation| wrong.push(violation)).expect("checks");
    assert_eq!(wrong, []);
}

async fn usage(store: &EmbeddedStore) -> Vec<Usage> {
    let states = store.positions(&SPACES.map(space)).await.expect("it answers");
    states.into_iter().map(|state| state.usage).collect()
}

/// What the documents say that the counts must be.
async fn counted(store: &EmbeddedStore) -> Vec<Usage> {
    let mut all = vec![];
    for name in SPACES {
        let docs: Vec<_> = DOCS.iter().map(|name| doc(name)).collect();
        let cut = store.read(&space(name), &docs).await.expect("it answers");
        let sizes = cut.docs.iter().filter(|doc| doc.alive()).map(|doc| {
            let leaves = doc
                .leaves()
                .map(|(path, value)| path.as_str().len() + value.as_bytes().len());
            leaves.sum::<usize>() as u64
        });
        all.push(Usage {
            docs: sizes.clone().count() as u64,
            bytes: sizes.sum(),
        });
    }
    all
}

#[test]
fn a_directory_of_an_older_format_is_brought_to_this_one_and_answers_as_it_did() {
    let runtime = runtime();
    for format in [1, 2] {
        let dir = of_format(format);
        let told = runtime.block_on(async {
            let store = embedded::open(dir.path(), options()).expect("opens");
            assert_eq!(marked(dir.path()), MARKED);
            let usage = usage(&store).await;
            assert_eq!(usage, counted(&store).await);
            assert!(usage.iter().all(|usage| usage.docs > 0 && usage.bytes > 0), "{usage:?}");
            let told = answers(&store).await;
            assert_eq!(counted(&store).await, self::usage(&store).await, "commits count on");
            store.close();
            told
        });
        assert!(told == ANSWERS, "{format}: {}", first_difference(&told, ANSWERS));
        checked(dir.path());
    }
    // What this version itself makes of the same mutations counts the same.
    let fresh = tempfile::tempdir().expect("a directory");
    runtime.block_on(async {
        make(fresh.path()).await;
        let store = embedded::open(fresh.path(), options()).expect("opens");
        let migrated = of_format(1);
        let migrated = embedded::open(migrated.path(), options()).expect("opens");
        assert_eq!(usage(&store).await, usage(&migrated).await);
    });
}

#[test]
fn whose_the_writers_of_format_1_are_is_known_once_they_write_again() {
    let dir = of_format(1);
    runtime().block_on(async {
        let store = embedded::open(dir.path(), options()).expect("opens");
        let s = space(SPACES[0]);
        let erase = |user: &str, epoch| store.erase(&s, Erase::User(UserTag::of(user)), Epoch(epoch), 90_000, &|_| {});
        let known = erase("alice", 1).await.expect("it answers");
        assert_eq!((known.docs, known.cells, known.clients), (0, 0, 0));
        for mid in 1.. {
            let ops = vec![op("never/was", OpKind::Set(fields(&[])))];
            if let Outcome::Applied { .. } = send(&store, SPACES[0], (4, mid, 90_000), None, ops).await {
                break;
            }
        }
        let docs: Vec<_> = DOCS.iter().map(|name| doc(name)).collect();
        let writer = Writer::of("alice", ClientId(4));
        let cells = async || {
            let cut = store.read(&s, &docs).await.expect("it answers");
            let all = cut.docs.iter().flat_map(|doc| doc.cells.values());
            all.filter(|cell| cell.stamp.writer == writer).count() as u64
        };
        let there = cells().await;
        let erased = erase("alice", 2).await.expect("it answers");
        assert!(there > 0);
        assert_eq!((erased.cells, erased.clients, cells().await), (there, 1, 0));
    });
}

#[test]
fn a_migration_that_was_cut_short_is_done_again() {
    let runtime = runtime();
    let dir = of_format(1);
    embedded::open(dir.path(), options()).expect("opens").close();
    // All is written but the marker; and some spaces are still as format 1 had them.
    for old in [None, Some(SPACES[0]), Some(SPACES[2])] {
        mark(dir.path(), 1);
        if let Some(name) = old {
            let records: Vec<_> = name.bytes().map(|b| format!("{b:02x}")).collect();
            let prefix = format!("spaces {}00", records.concat());
            put(
                dir.path(),
                1,
                RECORDS.lines().filter(|record| record.starts_with(&prefix)),
            );
        }
        runtime.block_on(async {
            let store = embedded::open(dir.path(), options()).expect("opens");
            assert_eq!(marked(dir.path()), MARKED);
            assert_eq!(usage(&store).await, counted(&store).await, "{old:?}");
            store.close();
        });
    }
    let told = runtime.block_on(async {
        let store = embedded::open(dir.path(), options()).expect("opens");
        answers(&store).await
    });
    assert!(told == ANSWERS, "{}", first_difference(&told, ANSWERS));
}

/// What is written to an older directory, and to one of this format with the same in it, leads to the same.
#[test]
fn a_directory_of_an_older_format_is_written_on_as_if_it_had_always_been_of_this_one() {
    let runtime = runtime();
    let fresh = tempfile::tempdir().expect("a directory");
    let made = runtime.block_on(make(fresh.path()));
    let mut all = vec![];
    for dir in [fresh, of_format(2), of_format(1)] {
        let mut made = made.clone();
        let told = runtime.block_on(async {
            let mut store = embedded::open(dir.path(), options()).expect("opens");
            for round in 60..300 {
                if round % 80 == 0 {
                    store.close();
                    checked(dir.path());
                    let env: Arc<dyn Env> = Arc::new(Count(AtomicU64::new(1_000 + round)));
                    store = embedded::open(dir.path(), EmbeddedOptions { env, ..options() }).expect("opens");
                }
                made.round(&store, round).await;
            }
            let usage = usage(&store).await;
            assert_eq!(usage, counted(&store).await);
            let told = answers(&store).await;
            store.close();
            told
        });
        checked(dir.path());
        all.push(told);
    }
    for told in &all[1..] {
        assert!(*told == all[0], "{}", first_difference(told, &all[0]));
    }
}

/// The backup that a format would have made of the same records.
fn backup_of(format: u32) -> Vec<u8> {
    use sha2::{Digest as _, Sha256};
    let mut out = format!("tidegate-backup 1 store {format}\n").into_bytes();
    let end = |out: &mut Vec<u8>, tag: u8, records: usize| {
        out.push(tag);
        out.extend((records as u64).to_be_bytes());
        let digest = Sha256::digest(&out);
        out.extend(digest);
    };
    for table in tables(format) {
        out.extend([b'T', u8::try_from(table.len()).expect("short")]);
        out.extend(table.bytes());
        let records = records(format).lines().map(|line| line.split(' ').collect::<Vec<_>>());
        let records: Vec<_> = records.filter(|words| words[0] == *table).collect();
        for words in &records {
            let [key, value] = [bytes(words[1]), bytes(words[2])];
            out.push(b'R');
            for part in [&key, &value] {
                out.extend(u32::try_from(part.len()).expect("short").to_be_bytes());
            }
            out.extend([key, value].concat());
        }
        end(&mut out, b'D', records.len());
    }
    end(&mut out, b'E', records(format).lines().count());
    out
}

#[test]
fn a_backup_of_an_older_format_is_restored_as_such_and_brought_to_this_one_when_it_is_opened() {
    [1, 2].into_iter().for_each(is_restored);
}

fn is_restored(format: u32) {
    let dir = tempfile::tempdir().expect("a directory");
    let env = Count(AtomicU64::new(500));
    let done = embedded::restore(&*backup_of(format), dir.path(), &env).expect("restores");
    assert_eq!((done.spaces, done.records), (3, records(format).lines().count() as u64));
    assert_eq!(marked(dir.path()), format!("tidegate-store {format}\n"));
    checked(dir.path());
    assert_eq!(marked(dir.path()), MARKED);
    runtime().block_on(async {
        let [old, new] = [of_format(format), dir].map(|dir| embedded::open(dir.path(), options()).expect("opens"));
        let spaces = SPACES.map(space);
        let [old, new] = [old.positions(&spaces).await, new.positions(&spaces).await].map(|all| all.expect("answers"));
        for (old, mut new) in old.into_iter().zip(new) {
            let minted = new.lineage.0.pop().expect("a new epoch");
            assert!(
                (500..600).contains(&minted.epoch.0) && minted.start == old.head.seq,
                "{minted:?}"
            );
            assert_eq!(
                (new.head.seq, new.floor, new.last_ms),
                (old.head.seq, old.floor, old.last_ms)
            );
            assert_eq!((new.usage, new.lineage), (old.usage, old.lineage));
        }
    });
}

fn first_difference(told: &str, before: &str) -> String {
    let pair = told.lines().zip(before.lines()).find(|(a, b)| a != b);
    format!(
        "{pair:#?}, {} lines and {} before",
        told.lines().count(),
        before.lines().count()
    )
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime")
}

/// Writes what the fixture holds: three spaces in three lives of the store, every kind of op, conflicts of
/// every policy, refusals, deletions, a raised floor and a trimmed log. The version at the last commit
/// before format 2 ran this, and then wrote down every record of every table, and [`answers`]; so did the last one
/// before format 3, whose answers were the same.
async fn make(dir: &Path) -> Made {
    let mut store = embedded::open(dir, options()).expect("opens");
    let mut made = Made {
        at: 1_000,
        ..Made::default()
    };
    for round in 0..60_u64 {
        if round == 25 || round == 45 {
            store.close();
            let env: Arc<dyn Env> = Arc::new(Count(AtomicU64::new(1_000 + round)));
            store = embedded::open(dir, EmbeddedOptions { env, ..options() }).expect("opens");
        }
        made.round(&store, round).await;
    }
    store
        .raise_floor(&space(SPACES[0]), Seq::new(12).expect("small"))
        .await
        .expect("it answers");
    store.close();
    made
}

/// What [`make`] has come to.
#[derive(Clone, Default)]
struct Made {
    at: u64,
    mids: std::collections::BTreeMap<(&'static str, u64), u64>,
    seen: Vec<Position>,
}

impl Made {
    async fn round(&mut self, store: &EmbeddedStore, round: u64) {
        self.at += 7_000;
        let name = if round % 4 == 3 { SPACES[1] } else { SPACES[0] };
        let name = if round == 10 || round == 30 { SPACES[2] } else { name };
        let client = 1 + round * 7 % 4;
        let d = DOCS[usize::try_from(round * 5 % 7).expect("small")];
        let n = Value::int(i64::try_from(round).expect("small"));
        let list = Value::array([Value::int(1), Value::str("two")].iter());
        let kind = match round % 9 {
            0 => OpKind::Set(fields(&[("title", Value::str("text")), ("m.x", n.clone()), ("m.y", n)])),
            1 => OpKind::Set(fields(&[("m", n), ("list", list)])),
            2 => OpKind::Merge(fields(&[("m.z", n), ("other", Value::bool(true))])),
            3 => OpKind::Delete,
            4 => OpKind::Set(fields(&[("title", Value::float(1.5).expect("finite")), ("p\\.q", n)])),
            5 => OpKind::Unset(vec![path("title"), path("m")]),
            6 => OpKind::Create(fields(&[("title", n)])),
            7 => OpKind::Replace(fields(&[("fresh", n), ("m.x", list)])),
            _ => OpKind::Now { path: path("when") },
        };
        let base = (name == SPACES[0] && round > 12 && !round.is_multiple_of(3)).then(|| {
            let base = self.seen[self.seen.len().saturating_sub(9)];
            (
                base,
                [Policy::Lww, Policy::Reject, Policy::Merge][usize::try_from(round / 3 % 3).expect("small")],
            )
        });
        let mid = self.mids.entry((name, client)).or_default();
        *mid += 1;
        let outcome = send(store, name, (client, *mid, self.at), base, vec![op(d, kind)]).await;
        match outcome {
            Outcome::Applied { position, .. } if name == SPACES[0] => self.seen.push(position),
            Outcome::Applied { .. } | Outcome::Refused { .. } => {}
            other => panic!("{other:?}"),
        }
    }
}
