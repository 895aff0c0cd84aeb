//! A bench that plans mutations and commits them to the model, one at a time or in groups.

mod conflicts;
mod effects;
mod hot;
mod queue;
mod quota;
mod refusals;

use super::{Plan, Planner, Quota, Refusal, Report, WriteBody, WriteRequest};
use crate::auth::{Authoriser, DevAuthoriser, Identity};
use crate::store::model::Model;
use crate::store::{CommitGroup, DocState, Outcome, Prepared, Store};
use futures_util::FutureExt;
use std::collections::BTreeMap;
use std::sync::Arc;
use tidegate_protocol::{
    ClientId, Code, Commit, DocChangeKind, DocPath, Epoch, FieldPath, Fields, Limits, Mid, MutationKey, Op, OpKind,
    Policy, Position, Seq, SpaceId, Value, WriteHead, Writer, msgpack,
};

/// The result of a future that never waits.
fn now<F: Future>(future: F) -> F::Output {
    future.now_or_never().expect("the model never waits")
}

fn space() -> SpaceId {
    SpaceId::parse("s").expect("valid")
}

fn doc(name: &str) -> DocPath {
    DocPath::parse(&format!("notes/{name}")).expect("valid")
}

fn field(path: &str) -> FieldPath {
    FieldPath::parse(path).expect("valid")
}

fn int(n: i64) -> Value {
    Value::int(n)
}

fn map(entries: &[(&str, Value)]) -> Value {
    Value::map(entries.iter().map(|(key, value)| (*key, value))).expect("valid")
}

fn fields(list: &[(&str, Value)]) -> Fields {
    Fields::new(
        list.iter().map(|(path, value)| (field(path), value.clone())),
        &Limits::default(),
    )
    .expect("valid")
}

fn op(name: &str, kind: OpKind) -> Op {
    Op {
        doc: doc(name),
        kind,
        exists: None,
        unchanged_since: None,
    }
}

fn set(name: &str, list: &[(&str, Value)]) -> Op {
    op(name, OpKind::Set(fields(list)))
}

fn unset(name: &str, paths: &[&str]) -> Op {
    op(name, OpKind::Unset(paths.iter().map(|path| field(path)).collect()))
}

fn create(name: &str, list: &[(&str, Value)]) -> Op {
    op(name, OpKind::Create(fields(list)))
}

fn replace(name: &str, list: &[(&str, Value)]) -> Op {
    op(name, OpKind::Replace(fields(list)))
}

fn delete(name: &str) -> Op {
    op(name, OpKind::Delete)
}

fn inc(name: &str, path: &str, by: i64) -> Op {
    op(
        name,
        OpKind::Inc {
            path: field(path),
            by: tidegate_protocol::Number::Int(by),
        },
    )
}

fn existing(op: Op) -> Op {
    Op {
        exists: Some(true),
        ..op
    }
}

fn since(op: Op, position: Position) -> Op {
    Op {
        unchanged_since: Some(position),
        ..op
    }
}

/// A mutation before it is named.
fn body(ops: Vec<Op>) -> WriteBody {
    WriteBody {
        base: None,
        policy: None,
        ops,
    }
}

fn based(base: Position, policy: Option<Policy>, ops: Vec<Op>) -> WriteBody {
    WriteBody {
        base: Some(base),
        policy,
        ops,
    }
}

/// The name of client `n`'s mutation `mid`.
fn head(client: u64, mid: u64) -> WriteHead {
    let key = |mid: u64| MutationKey(client << 32 | mid);
    WriteHead {
        space: space(),
        client: ClientId(client),
        mid: Mid::new(mid).expect("small"),
        key: key(mid),
        prev: (mid > 1).then(|| key(mid - 1)),
        first: (mid == 1).then_some(0),
    }
}

fn request(client: u64, mid: u64, body: Result<WriteBody, Refusal>) -> WriteRequest {
    let who = Arc::new(Identity::new("u", None));
    WriteRequest::new(who, head(client, mid), body)
}

fn writer(client: u64) -> Writer {
    Writer::of("u", ClientId(client))
}

struct Bench {
    model: Model,
    limits: Limits,
    rules: Box<dyn Authoriser>,
    clock: u64,
    mids: BTreeMap<u64, u64>,
    quota: Quota,
}

impl Default for Bench {
    fn default() -> Self {
        Self {
            model: Model::default(),
            limits: Limits::default(),
            rules: Box::new(DevAuthoriser),
            clock: 1_000,
            mids: BTreeMap::new(),
            quota: Quota::default(),
        }
    }
}

impl Bench {
    /// The next mutation of a client.
    fn next(&mut self, client: u64, body: WriteBody) -> WriteRequest {
        let mid = self.mids.entry(client).or_default();
        *mid += 1;
        request(client, *mid, Ok(body))
    }

    /// Plans requests as one group on what the store holds now.
    fn plan(&self, requests: &[WriteRequest]) -> (Epoch, Vec<(Prepared, Report)>) {
        let ops = requests
            .iter()
            .filter_map(|request| request.body.as_ref().ok())
            .flat_map(|body| &body.ops);
        let mut docs: Vec<DocPath> = ops.map(|op| op.doc.clone()).collect();
        docs.sort();
        docs.dedup();
        let cut = now(self.model.read(&space(), &docs)).expect("the model answers");
        let epoch = cut.state.lineage.last_epoch();
        let name = space();
        let mut planner = Planner::new(&*self.rules, &self.limits, &name, docs, cut, self.clock)
            .within(self.quota, self.model.usage().bytes);
        let item = |plan| match plan {
            Plan::Item(item, report) => (*item, report),
            Plan::Later(refusal) => panic!("{refusal:?}"),
        };
        (
            epoch,
            requests.iter().map(|request| item(planner.plan(request))).collect(),
        )
    }

    fn commit(&self, planned_on: Epoch, items: Vec<Prepared>) -> Vec<Outcome> {
        let (fresh, now_ms) = (Epoch(self.clock), self.clock);
        let group = CommitGroup {
            space: space(),
            planned_on,
            fresh,
            now_ms,
            items,
        };
        now(self.model.commit(group)).expect("the model answers").outcomes
    }

    fn group(&self, requests: &[WriteRequest]) -> Vec<(Outcome, Report)> {
        let (epoch, planned) = self.plan(requests);
        let (items, reports): (Vec<_>, Vec<_>) = planned.into_iter().unzip();
        self.commit(epoch, items).into_iter().zip(reports).collect()
    }

    fn write(&mut self, client: u64, body: WriteBody) -> (Outcome, Report) {
        let request = self.next(client, body);
        self.group(&[request]).remove(0)
    }

    /// Writes what is applied.
    fn apply(&mut self, client: u64, body: WriteBody) -> (Commit, Report) {
        match self.write(client, body) {
            (Outcome::Applied { payload, .. }, report) => (msgpack::decode_payload(&payload).expect("valid"), report),
            other => panic!("not applied: {other:?}"),
        }
    }

    /// What the one document of an applied mutation became.
    fn change(&mut self, client: u64, ops: Vec<Op>) -> DocChangeKind {
        let mut docs = self.apply(client, body(ops)).0.docs;
        assert_eq!(docs.len(), 1, "{docs:?}");
        docs.remove(0).kind
    }

    fn refuse(&mut self, client: u64, body: WriteBody) -> (Code, Report) {
        match self.write(client, body) {
            (Outcome::Refused { .. }, report) => (report.refusal.as_ref().expect("a reason").code, report),
            other => panic!("not refused: {other:?}"),
        }
    }

    fn head(&self) -> Position {
        now(self.model.positions(&[space()])).expect("the model answers")[0].head
    }

    fn state(&self, name: &str) -> DocState {
        now(self.model.read(&space(), &[doc(name)]))
            .expect("the model answers")
            .docs
            .remove(0)
    }

    /// The live leaves of a document, as text.
    fn leaves(&self, name: &str) -> String {
        let state = self.state(name);
        let leaves: Vec<_> = state
            .leaves()
            .map(|(path, value)| format!("{path}={value:?}"))
            .collect();
        leaves.join(" ")
    }

    /// The paths of a document's tombstones.
    fn tombstones(&self, name: &str) -> String {
        let state = self.state(name);
        let dead = state.cells.iter().filter(|(_, cell)| cell.value.is_none());
        dead.map(|(path, _)| path.to_string()).collect::<Vec<_>>().join(" ")
    }
}

fn seq(n: u64) -> Seq {
    Seq::new(n).expect("small")
}
