//! A process is killed in the middle of erasing a space, or a user's data in it. What it leaves is sound and
//! closed, or complete; opened again the erasure comes to its end by itself, and is all there is to see.
//! More rounds: `TIDEGATE_CONTRACT_KILLS=50 cargo test --test contract erased`.

use crate::harness::copy;
use crate::interpret::Plain;
use crate::process::{
    close, command, engine, op, open, request, runtime, say, scan, send, set, sound, space, text, write,
};
use crate::setting;
use crate::value::{Dice, V};
use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::Child;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tidegate::engine::{WriteReply, WriteRequest};
use tidegate::store::embedded::{self, Durability, EmbeddedStore};
use tidegate::store::{Erase, Store as _, Usage, UserTag};
use tidegate_protocol::{ClientId, Code, Epoch, OpKind, Position, Value, Writer};

const ERASED: &str = "kill:1";
const OTHER: &str = "kill:2";
/// Whom each mutation is of: a user has one client, and a value that nobody else writes.
const USERS: [(&str, u64); 2] = [("ann", 1), ("bob", 2)];
/// Mutations of each in the space that is erased; in the other there is one.
const MIDS: u64 = 8;
/// Documents that a mutation creates: all of them together take some twenty steps to erase.
const DOCS: u64 = 150;
/// Where the child finds its store, and whom it erases: a user, or nothing for the space.
const DIR: &str = "TIDEGATE_CONTRACT_ERASED_DIR";
const USER: &str = "TIDEGATE_CONTRACT_ERASED_USER";
/// Longer than anything takes.
const PATIENCE: Duration = Duration::from_secs(30);

fn value(user: &str) -> String {
    format!("what {user} wrote")
}

fn mutation(name: &str, (user, client): (&str, u64), mid: u64) -> WriteRequest {
    let write = |doc: &str, field: &str| op(doc, set(&[field], &Value::str(&value(user))));
    let mut ops: Vec<_> = (0..DOCS).map(|n| write(&format!("{user}/{mid}-{n}"), "x")).collect();
    // Both write there: to fields of their own, and to one in which they are in conflict.
    ops.push(write(&format!("both/{mid}"), user));
    ops.push(write("both/all", "one"));
    ops.push(op(&format!("{user}/{}-0", mid - 1), OpKind::Delete));
    request(name, (user, client), mid, Some(Position::START), ops)
}

/// Both spaces, as they are before the erasure: their documents and heads.
async fn fill(dir: &Path) -> [(Plain, Position); 2] {
    let store = Arc::new(open(dir, Durability::Memory));
    let engine = engine(store.clone());
    for (name, mids) in [(ERASED, MIDS), (OTHER, 1)] {
        for mid in 1..=mids {
            for user in USERS {
                write(&engine, mutation(name, user, mid)).await;
            }
        }
    }
    let all = [state(&store, ERASED).await, state(&store, OTHER).await];
    drop(engine);
    close(store).await;
    all
}

async fn state(store: &EmbeddedStore, name: &str) -> (Plain, Position) {
    let mut docs = Plain::new();
    let (head, _) = scan(store, name, None, 0, &mut docs).await;
    (docs, head)
}

/// Erases, and says when that has begun and when it is over.
#[test]
#[ignore = "the process that is killed"]
fn child() {
    let dir = PathBuf::from(text(DIR).expect("where the store is"));
    let whom = text(USER).map_or(Erase::Space, |user| Erase::User(UserTag::of(&user)));
    runtime().block_on(async {
        let store = open(&dir, Durability::Fsync);
        let begun = |_: &tidegate::store::Lineage| say("begun");
        let erased = store.erase(&space(ERASED), whom, Epoch(77), 1_000, &begun).await;
        erased.expect("it answers");
        say("over");
        std::thread::park();
    });
}

/// A child, and what it says.
struct Erasing {
    child: Child,
    said: BufReader<std::process::ChildStdout>,
}

impl Erasing {
    fn start(dir: &Path, user: Option<&str>) -> Self {
        let mut command = command("erased::child");
        command.env(DIR, dir);
        if let Some(user) = user {
            command.env(USER, user);
        }
        let mut child = command.spawn().expect("starts");
        let said = BufReader::new(child.stdout.take().expect("piped"));
        let mut erasing = Self { child, said };
        assert!(erasing.says("begun"), "it begins");
        erasing
    }

    /// Whether it comes to say a word before it ends.
    fn says(&mut self, word: &str) -> bool {
        (&mut self.said)
            .lines()
            .map_while(Result::ok)
            .any(|line| line.ends_with(word))
    }

    /// Kills it after a time. Returns whether that was in the middle.
    #[allow(clippy::disallowed_methods, reason = "nothing else runs in this process meanwhile")]
    fn kill(mut self, after: Duration) -> bool {
        std::thread::sleep(after);
        self.child.kill().expect("killed");
        self.child.wait().expect("it ends");
        !self.says("over")
    }
}

/// A record of the space: its table, key and value.
type Row = (String, Vec<u8>, Vec<u8>);

/// Every record of the space in every table, as a stopped store's backup has it.
fn rows(dir: &Path) -> Vec<Row> {
    let mut bytes = Vec::new();
    embedded::backup(dir, &mut bytes).expect("a backup");
    let line = bytes.iter().position(|byte| *byte == b'\n').expect("a line");
    let mut rest = &bytes[line + 1..];
    let mut take = |n: usize| {
        let (piece, after) = rest.split_at(n);
        rest = after;
        piece
    };
    let mut rows = Vec::new();
    let mut table = String::new();
    loop {
        match take(1) {
            b"T" => {
                let len = usize::from(take(1)[0]);
                table = String::from_utf8(take(len).to_vec()).expect("text");
            }
            b"R" => {
                let [key, value] = [(); 2].map(|()| take(4).try_into().expect("four bytes"));
                let [key, value] = [key, value].map(|len| take(u32::from_be_bytes(len) as usize).to_vec());
                if key.starts_with(ERASED.as_bytes()) {
                    rows.push((table.clone(), key, value));
                }
            }
            b"D" => drop(take(8 + 32)),
            _ => return rows,
        }
    }
}

/// The tables in which something occurs, once for each record.
fn tables_with<'r>(rows: &'r [Row], what: &[u8]) -> Vec<&'r str> {
    let within = |bytes: &[u8]| bytes.windows(what.len()).any(|some| some == what);
    let found = rows.iter().filter(|(_, key, value)| within(key) || within(value));
    found.map(|(table, ..)| table.as_str()).collect()
}

/// What of these documents this user wrote, or all of them without one.
fn left(docs: &Plain, of: Option<&str>) -> Plain {
    let Some(user) = of else { return Plain::new() };
    let mut docs = docs.clone();
    for leaves in docs.values_mut() {
        leaves.retain(|_, leaf| *leaf == V::Str(value(user)));
    }
    docs.retain(|_, leaves| !leaves.is_empty());
    docs
}

/// Opens what a killed process left, waits for the end of the erasure, and looks at everything.
async fn verify(dir: &Path, user: Option<&str>, before: &[(Plain, Position); 2]) {
    sound(dir);
    let store = Arc::new(open(dir, Durability::Fsync));
    let begun = Instant::now();
    while let Err(error) = store.read(&space(ERASED), &[]).await {
        assert!(error.to_string().contains("being erased"), "{error}");
        assert!(begun.elapsed() < PATIENCE, "it comes to its end by itself");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let [(docs, head), other] = before;
    let stays = user.map(|_| "bob");
    let (now, at) = state(&store, ERASED).await;
    assert_eq!(now, left(docs, stays));
    assert_eq!(at, Position::new(Epoch(77), head.seq));
    let there = store.positions(&[space(ERASED)]).await.expect("it answers").remove(0);
    assert_eq!((there.lineage.0.len(), there.floor), (1, head.seq));
    if user.is_none() {
        assert_eq!(there.usage, Usage::default());
    }
    assert_eq!(state(&store, OTHER).await, *other, "another space has lost nothing");
    let engine = engine(store.clone());
    for (who, client) in USERS {
        let gone = user.is_none_or(|user| user == who);
        let next = mutation(ERASED, (who, client), MIDS + 1);
        match send(&engine, next).await {
            WriteReply::Reject(reject) => assert!(gone && reject.code == Code::ClientUnknown, "{reject:?}"),
            WriteReply::Ack(ack) => {
                assert!(!gone);
                assert_eq!(ack.position.seq, head.seq.next(), "seqs go on");
            }
        }
        write(&engine, mutation(OTHER, (who, client), 2)).await;
    }
    drop(engine);
    close(store).await;
    sound(dir);

    let rows = rows(dir);
    for (who, client) in USERS
        .into_iter()
        .filter(|(who, _)| user.is_none_or(|user| user == *who))
    {
        assert_eq!(tables_with(&rows, value(who).as_bytes()), [""; 0], "{who}");
        let writer = Writer::of(who, ClientId(client)).0.to_be_bytes();
        assert_eq!(tables_with(&rows, &writer), ["clients"], "the marker of {who}");
    }
    if user.is_none() {
        let tables: BTreeSet<_> = rows.iter().map(|(table, ..)| table.as_str()).collect();
        assert_eq!(tables, BTreeSet::from(["clients", "spaces"]));
    }
}

#[test]
fn a_process_killed_while_it_erases_leaves_what_is_erased_to_its_end_and_nothing_of_it() {
    let folder = tempfile::tempdir().expect("a folder");
    let filled = folder.path().join("filled");
    let runtime = runtime();
    let before = runtime.block_on(fill(&filled));
    let all = rows(&filled);
    for (who, client) in USERS {
        let values: BTreeSet<_> = tables_with(&all, value(who).as_bytes()).into_iter().collect();
        assert_eq!(values, BTreeSet::from(["cells", "conflicts", "log"]));
        let writer = Writer::of(who, ClientId(client)).0.to_be_bytes();
        let named: BTreeSet<_> = tables_with(&all, &writer).into_iter().collect();
        assert_eq!(
            named,
            BTreeSet::from(["cells", "clients", "conflicts", "log", "results", "users"])
        );
    }
    let mut dice = Dice(5);
    let rounds = setting("TIDEGATE_CONTRACT_KILLS").unwrap_or(3);
    for user in [None, Some("ann")] {
        let dir = folder.path().join("data");
        copy(&filled, &dir);
        let mut erasing = Erasing::start(&dir, user);
        let begun = Instant::now();
        assert!(erasing.says("over"));
        let takes = begun.elapsed();
        erasing.kill(Duration::ZERO);
        let (mut in_the_middle, mut late) = (0, 0);
        while in_the_middle < rounds {
            copy(&filled, &dir);
            let erasing = Erasing::start(&dir, user);
            let part = u32::try_from(dice.bits() % 85).expect("small");
            match erasing.kill(takes * part / 100) {
                true => in_the_middle += 1,
                false => late += 1,
            }
            runtime.block_on(verify(&dir, user, &before));
            assert!(late <= rounds, "{late} came after the end");
        }
        println!("{user:?}: {rounds} kills in the middle of {takes:?}, {late} after it");
    }
}
