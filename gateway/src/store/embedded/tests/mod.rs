//! Promises of the embedded store beyond the contract that all stores are held to.

mod backup;
mod check;
mod collection;
mod damage;
mod erasing;
mod journals;
mod opening;
mod packing;
mod scan;
mod writing;

use super::*;
use crate::env::Env;
use crate::store::{Action, DocEffect, Effects, Outcome, Prepared, UserTag, Version, View};
use bytes::Bytes;
use std::sync::atomic::{AtomicU64, Ordering};
use tempfile::TempDir;
use tidegate_protocol::{
    DocChange, DocChangeKind, Epoch, FieldPath, Mid, MutationKey, Seq, Value, ViewId, Writer, msgpack,
};

/// Random numbers that are only different from each other; a clock that stands still.
struct Counting(AtomicU64);

impl Env for Counting {
    fn now_ms(&self) -> u64 {
        0
    }
    fn random(&self) -> u64 {
        self.0.fetch_add(1, Ordering::Relaxed)
    }
}

/// A directory that a store can be opened in again and again.
struct Place {
    dir: TempDir,
    env: Arc<dyn Env>,
    retention: Retention,
    durability: Durability,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let env = Arc::new(Counting(AtomicU64::new(1)));
        Self {
            dir,
            env,
            retention: Retention::default(),
            durability: Durability::Memory,
        }
    }

    fn keeping(retention: Retention) -> Self {
        Self {
            retention,
            ..Self::new()
        }
    }

    /// Where a client's record is kept for a second.
    fn forgetful() -> Self {
        Self::keeping(Retention {
            clients_ms: 1_000,
            ..Retention::default()
        })
    }

    fn options(&self) -> EmbeddedOptions {
        let (durability, retention) = (self.durability, self.retention.clone());
        EmbeddedOptions {
            durability,
            retention,
            reserve_bytes: RESERVE_BYTES,
            env: self.env.clone(),
        }
    }

    fn open(&self) -> EmbeddedStore {
        open(self.dir.path(), self.options()).expect("opens")
    }
}

/// Puts what there is into the form of format 2: documents spread, results under their mids. The store is not to have
/// written since it was opened: what its writer has, it knows.
fn as_format_2(store: &EmbeddedStore) {
    use disk::{Look as _, Table};
    use document::Form;
    use records::{Client, Record as _};
    let disk = database(store);
    let cut = disk.cut();
    let mut batch = disk.batch(fjall::PersistMode::Buffer);
    let rows = |table| cut.iter(table).map(|entry| entry.into_inner().expect("reads"));
    for (key, record) in rows(Table::Cells) {
        if !key.ends_with(&[0]) {
            continue;
        }
        let found = document::parse(&record).expect("a document");
        batch.insert(
            disk.table(Table::Cells),
            key.to_vec(),
            document::spread(&found.header, false),
        );
        let Form::Packed(cells) = found.form else { continue };
        for cell in cells.all().expect("cells") {
            let cell_key = keys::cell_below(&key, cell.field);
            let record = crate::store::Cell::record(cell.stamp, cell.value);
            batch.insert(disk.table(Table::Fields), cell_key.clone(), []);
            batch.insert(disk.table(Table::Cells), cell_key, record);
        }
    }
    for (key, record) in rows(Table::Clients) {
        let client = Client::decode(&record).expect("a client");
        let old = Client { runs: None, ..client };
        batch.insert(disk.table(Table::Clients), key, old.encode());
    }
    for (key, record) in rows(Table::Results) {
        let (first, results) = results::parse(&record).expect("a run");
        let space = keys::space_of(&key).expect("a space");
        let writer = keys::client_writer(&key[..key.len() - 1]).expect("a writer");
        let client = cut.record::<Client>(Table::Clients, &keys::client(&space, writer));
        let last = client.expect("reads").expect("is there").last;
        for (mid, result) in (first.get()..).map_while(Mid::new).zip(results) {
            if mid.get() + crate::store::KEPT_RESULTS > last.get() {
                let key = keys::result_2(&space, writer, mid);
                batch.insert(disk.table(Table::Results), key, result.encode());
            }
        }
        batch.remove(disk.table(Table::Results), key);
    }
    batch.commit().expect("writes");
}

/// The open database. While it is held, the store cannot be closed or its database opened again.
fn database(store: &EmbeddedStore) -> Arc<disk::Disk> {
    store.shared.disk().expect("open")
}

fn space(name: &str) -> SpaceId {
    SpaceId::parse(name).expect("valid")
}

fn doc(path: &str) -> DocPath {
    DocPath::parse(path).expect("valid")
}

fn field(path: &str) -> FieldPath {
    FieldPath::parse(path).expect("valid")
}

fn seq(n: u64) -> Seq {
    Seq::new(n).expect("small")
}

/// The key of a writer's mutation.
fn key(writer: u64, mid: u64) -> MutationKey {
    MutationKey(writer << 32 | mid)
}

/// An item that expects nothing.
fn item(writer: u64, mid: u64, docs: Vec<DocEffect>) -> Prepared {
    let (id, number) = (Writer(writer), Mid::new(mid).expect("small"));
    let detail = Bytes::from(format!("{writer}/{mid}"));
    Prepared {
        writer: id,
        user: UserTag(writer % 10),
        mid: number,
        key: key(writer, mid),
        prev: (mid > 1).then(|| key(writer, mid - 1)),
        first: (mid == 1).then_some(1_000),
        expects: Vec::new(),
        action: Action::Apply(Effects {
            docs,
            body: msgpack::encode_body(id, number, &[]),
            detail,
            ..Effects::default()
        }),
    }
}

/// Writes fields of a document that exists or is created.
fn set(path: &str, born: bool, fields: &[(&str, i64)]) -> DocEffect {
    let cells = fields
        .iter()
        .map(|(path, n)| (field(path), Some(Value::int(*n))))
        .collect();
    DocEffect {
        doc: doc(path),
        born,
        deleted: false,
        alive: true,
        size: 1,
        cells,
    }
}

/// Removes fields of a document.
fn unset(path: &str, fields: &[&str]) -> DocEffect {
    let cells = fields.iter().map(|path| (field(path), None)).collect();
    DocEffect {
        doc: doc(path),
        born: false,
        deleted: false,
        alive: true,
        size: 1,
        cells,
    }
}

/// Deletes a document that has these fields.
fn delete(path: &str, fields: &[&str]) -> DocEffect {
    DocEffect {
        deleted: true,
        alive: false,
        size: 0,
        ..unset(path, fields)
    }
}

/// Commits items planned on the present lineage.
async fn commit_at(
    store: &EmbeddedStore,
    name: &str,
    now_ms: u64,
    items: Vec<Prepared>,
) -> Result<Committed, StoreError> {
    let space = space(name);
    let planned_on = store.positions(std::slice::from_ref(&space)).await?[0]
        .lineage
        .last_epoch();
    // Far from what the environment's random numbers are, which name epochs, too.
    static FRESH: AtomicU64 = AtomicU64::new(1 << 32);
    let fresh = Epoch(FRESH.fetch_add(1, Ordering::Relaxed));
    store
        .commit(CommitGroup {
            space,
            planned_on,
            fresh,
            now_ms,
            items,
        })
        .await
}

/// Commits one item, and returns what became of it.
async fn one(store: &EmbeddedStore, name: &str, item: Prepared) -> Outcome {
    commit_at(store, name, 1_000, vec![item])
        .await
        .expect("answers")
        .outcomes
        .remove(0)
}

/// Commits one item that must be applied.
async fn applied(store: &EmbeddedStore, name: &str, item: Prepared) -> Position {
    match one(store, name, item).await {
        Outcome::Applied { position, .. } => position,
        other => panic!("not applied: {other:?}"),
    }
}

async fn state(store: &EmbeddedStore, name: &str) -> SpaceState {
    store.positions(&[space(name)]).await.expect("answers").remove(0)
}

fn everything(after: Option<Position>) -> ChangesRequest {
    let view = View {
        id: ViewId(7),
        collections: None,
    };
    ChangesRequest {
        after,
        cursor: None,
        view,
        writer: None,
        budget: 1 << 20,
    }
}

/// All pages of a scan.
async fn scan(store: &EmbeddedStore, name: &str, mut request: ChangesRequest) -> (Vec<DocChange>, SpaceState) {
    let mut all = Vec::new();
    loop {
        match store.changes(&space(name), request.clone()).await.expect("answers") {
            ChangesReply::Page { docs, cursor, .. } => {
                all.extend(docs.decode().expect("documents"));
                request.cursor = Some(cursor);
            }
            ChangesReply::Done { docs, state, .. } => {
                all.extend(docs.decode().expect("documents"));
                return (all, state);
            }
            ChangesReply::Reset(reason) => panic!("reset: {reason:?}"),
        }
    }
}

/// What a client that applies changes holds.
type Replica = std::collections::BTreeMap<DocPath, std::collections::BTreeMap<FieldPath, Value>>;

fn apply(replica: &mut Replica, changes: Vec<DocChange>) {
    for DocChange { doc, kind } in changes {
        match kind {
            DocChangeKind::Whole(leaves) => {
                replica.insert(doc, leaves.into_iter().collect());
            }
            DocChangeKind::Change { set, unset } => {
                let held = replica.get_mut(&doc).expect("a change is of a document that is held");
                held.retain(|path, _| !unset.iter().any(|gone| path == gone || path.is_below(gone)));
                held.extend(set);
            }
            DocChangeKind::Deleted => {
                replica.remove(&doc);
            }
        }
    }
}
