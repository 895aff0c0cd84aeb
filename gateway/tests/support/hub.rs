//! A space of the hub's, without a gateway around it: subscribers that take everything, and commits.

use bytes::Bytes;
use std::sync::Arc;
use tidegate::hub::Subscriber;
use tidegate::outbox::Outbox;
use tidegate::store::model::Model;
use tidegate::store::{Action, CommitGroup, Lineage, LogEntry, Prepared, Store, UserTag};
use tidegate_protocol::{
    Code, DocChange, DocChangeKind, DocPath, Epoch, Mid, MutationKey, Position, Seq, SpaceId, Writer, msgpack,
};

/// A connection, as the hub sees it: its number, and its way out.
pub(crate) struct Socket(pub(crate) u64, pub(crate) Arc<Outbox>);

impl Subscriber for Socket {
    fn id(&self) -> u64 {
        self.0
    }
    fn outbox(&self) -> &Arc<Outbox> {
        &self.1
    }
    fn behind(&self, _: u64, _: Position) {
        panic!("nothing is missing");
    }
    fn cut(&self) {
        panic!("everything is taken");
    }
}

/// A commit, its seq as its mid.
pub(crate) fn commit(n: u64) -> LogEntry {
    let doc = DocPath::parse("notes/n1").expect("a document");
    let kind = DocChangeKind::Deleted;
    let body = msgpack::encode_body(Writer(1), Mid::new(n).expect("a mid"), &[DocChange { doc, kind }]);
    let seq = Seq::new(n).expect("a seq");
    let payload = msgpack::payload(seq, n, &body);
    LogEntry { seq, payload }
}

/// A refusal begins the history of a space.
pub(crate) async fn first_epoch(store: &Model, space: &SpaceId) -> Lineage {
    let refused = Prepared {
        writer: Writer(1),
        user: UserTag::of("alice"),
        mid: Mid::new(1).expect("a mid"),
        key: MutationKey(1),
        prev: None,
        first: None,
        expects: vec![],
        action: Action::Refuse {
            code: Code::Invalid,
            conflicts: vec![],
            detail: Bytes::new(),
        },
    };
    let group = CommitGroup {
        space: space.clone(),
        planned_on: Epoch(0),
        fresh: Epoch(7),
        now_ms: 0,
        items: vec![refused],
    };
    store.commit(group).await.expect("the model answers").lineage
}
