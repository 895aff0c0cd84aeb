//! What a client keeps: one user's confirmed documents, positions, queues and client ids.

use crate::sync::{Identity, Mutation, MutationId, Standing};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;
use tidegate_protocol::tree::Leaves;
use tidegate_protocol::{DocPath, SpaceId};

/// Keeps what a client must not forget.
///
/// Guarantees asked of an implementation: `commit` is atomic – all of a transaction or nothing – and once
/// it has returned `Ok`, `load` after a crash shows it. A mutation's mid is committed before its first
/// byte is sent; the queue changes in the same transaction as what it is overlaid on. Transactions arrive
/// in order, one after another, from the client's own task; an implementation may block for as long as
/// an fsync takes.
///
/// One storage belongs to one user. It must not be shared by two clients at a time.
pub trait Storage: Send + 'static {
    /// Everything kept. Called once, before the first `commit`.
    fn load(&mut self) -> Result<Stored, StorageError>;

    /// Keeps the changes of one step.
    fn commit(&mut self, transaction: Transaction) -> Result<(), StorageError>;
}

/// The storage failed. The client stops: it must not send what it could not keep.
#[derive(Debug, thiserror::Error)]
#[error("the client's storage failed: {0}")]
pub struct StorageError(pub String);

/// Everything a storage keeps.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Stored {
    /// The user to whom it belongs, once known.
    pub user: Option<String>,
    /// The spaces.
    pub spaces: BTreeMap<SpaceId, StoredSpace>,
}

/// What is kept of a space.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct StoredSpace {
    /// Under which id it writes, and which mid comes next.
    pub identity: Option<Identity>,
    /// Where the confirmed documents stand; `None` before the first catch-up.
    pub standing: Option<Standing>,
    /// The confirmed documents.
    pub docs: BTreeMap<DocPath, Leaves>,
    /// The queue, in order, and what was acked and is not yet in the confirmed documents.
    pub queue: BTreeMap<MutationId, Mutation>,
}

/// The changes of one step.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Transaction {
    /// The user, when first known.
    pub user: Option<String>,
    /// The spaces that changed, each once.
    pub spaces: Vec<(SpaceId, SpaceChanges)>,
}

impl Transaction {
    /// Whether nothing changed.
    pub fn is_empty(&self) -> bool {
        self.user.is_none() && self.spaces.is_empty()
    }
}

/// What changed in a space; applied in the order of the fields.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct SpaceChanges {
    /// The new identity, if it is another.
    pub identity: Option<Identity>,
    /// The new standing, if it is another.
    pub standing: Option<Option<Standing>>,
    /// Whether all documents kept so far go first.
    pub clear_docs: bool,
    /// Documents, each once, with their new leaves; `None` removes.
    pub docs: Vec<(DocPath, Option<Leaves>)>,
    /// Mutations, each once, with their new state; `None` removes.
    pub queue: Vec<(MutationId, Option<Mutation>)>,
}

/// A storage that lasts as long as the process; clones share what they keep, so that a test can open it
/// again.
#[derive(Clone, Default, Debug)]
pub struct MemoryStorage(Arc<Mutex<Stored>>);

impl MemoryStorage {
    /// An empty one.
    pub fn new() -> Self {
        Self::default()
    }

    /// A copy of what is kept.
    pub fn snapshot(&self) -> Stored {
        self.0.lock().clone()
    }

    /// A storage of its own with what was kept before.
    pub fn restore(stored: Stored) -> Self {
        Self(Arc::new(Mutex::new(stored)))
    }
}

impl Storage for MemoryStorage {
    fn load(&mut self) -> Result<Stored, StorageError> {
        Ok(self.snapshot())
    }

    fn commit(&mut self, transaction: Transaction) -> Result<(), StorageError> {
        self.0.lock().apply(transaction);
        Ok(())
    }
}

impl Stored {
    /// Applies the changes of one step.
    pub fn apply(&mut self, transaction: Transaction) {
        if transaction.user.is_some() {
            self.user = transaction.user;
        }
        for (space, changes) in transaction.spaces {
            let kept = self.spaces.entry(space).or_default();
            if changes.identity.is_some() {
                kept.identity = changes.identity;
            }
            if let Some(standing) = changes.standing {
                kept.standing = standing;
            }
            if changes.clear_docs {
                kept.docs.clear();
            }
            merge(&mut kept.docs, changes.docs);
            merge(&mut kept.queue, changes.queue);
        }
    }
}

fn merge<K: Ord, V>(kept: &mut BTreeMap<K, V>, changes: Vec<(K, Option<V>)>) {
    for (key, change) in changes {
        match change {
            Some(value) => kept.insert(key, value),
            None => kept.remove(&key),
        };
    }
}
