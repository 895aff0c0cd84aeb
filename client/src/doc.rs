//! Documents: as seen, and as a handle to change them.

use crate::mutation::{MutationBuilder, Pending};
use crate::space::Space;
use crate::sync;
use crate::values::{IntoFields, IntoNumber, IntoPath, IntoValue};
use crate::watch::{Live, Scope};
use std::fmt;
use tidegate_protocol::tree::{self, Leaves};
use tidegate_protocol::{DocPath, Value};

/// A document as the app sees it.
#[derive(Clone, PartialEq)]
pub struct Doc {
    path: DocPath,
    leaves: Option<Leaves>,
    pending: bool,
    from_cache: bool,
}

impl Doc {
    pub(crate) fn of(space: &sync::Space, path: DocPath) -> Self {
        let sync::LocalDoc { leaves, pending } = space.view(&path);
        Self {
            path,
            leaves,
            pending,
            from_cache: space.from_cache(),
        }
    }

    pub(crate) fn confirmed(path: DocPath, leaves: Option<Leaves>) -> Self {
        Self {
            path,
            leaves,
            pending: false,
            from_cache: false,
        }
    }

    /// Its path.
    pub fn path(&self) -> &DocPath {
        &self.path
    }

    /// Its id: the last segment of the path.
    pub fn id(&self) -> &str {
        self.path.id()
    }

    /// Whether it exists.
    pub fn exists(&self) -> bool {
        self.leaves.is_some()
    }

    /// Its leaves by path; `None` if it does not exist.
    pub fn leaves(&self) -> Option<&Leaves> {
        self.leaves.as_ref()
    }

    /// Its fields as a map with the nested maps rebuilt; `None` if it does not exist.
    pub fn value(&self) -> Option<Value> {
        self.leaves.as_ref().map(tree::rebuild)
    }

    /// The leaf at a dotted path, `address.city`.
    pub fn get(&self, path: &str) -> Option<&Value> {
        self.leaves.as_ref()?.get(path)
    }

    /// The text at a dotted path.
    pub fn str(&self, path: &str) -> Option<&str> {
        self.get(path)?.as_str()
    }

    /// Whether a mutation of one's own waits for its answer.
    pub fn pending(&self) -> bool {
        self.pending
    }

    /// Whether it may be behind the gateway.
    pub fn from_cache(&self) -> bool {
        self.from_cache
    }
}

impl fmt::Debug for Doc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut out = f.debug_struct("Doc");
        out.field("path", &self.path).field("leaves", &self.leaves);
        out.field("pending", &self.pending)
            .field("from_cache", &self.from_cache)
            .finish()
    }
}

/// A document to read and change. Cheap to clone.
///
/// Every change shows in the local view at once, and returns a [`Pending`] that need not be awaited. An
/// edit of a document that is in the local view is refused by the gateway if it was deleted meanwhile;
/// [`DocRef::upsert`] brings it back instead.
#[derive(Clone)]
pub struct DocRef {
    space: Space,
    path: DocPath,
}

impl DocRef {
    pub(crate) fn new(space: Space, path: DocPath) -> Self {
        Self { space, path }
    }

    /// Its path.
    pub fn path(&self) -> &DocPath {
        &self.path
    }

    /// The local view, without waiting.
    pub fn view(&self) -> Doc {
        self.space
            .handle()
            .shared()
            .look(|core| Some(Doc::of(core.machine.space(self.space.name())?, self.path.clone())))
            .unwrap_or_else(|| Doc::confirmed(self.path.clone(), None))
    }

    /// The local view, now and as it changes.
    pub fn watch(&self) -> Live {
        Live::open(self.space.handle(), self.space.name(), Scope::Doc(self.path.clone()))
    }

    /// Asks the gateway for the document as it is now. Waits for a connection.
    pub async fn get(&self) -> Result<Doc, sync::Refusal> {
        let mut cut = self.space.get(std::slice::from_ref(&self.path)).await?;
        Ok(cut
            .docs
            .pop()
            .unwrap_or_else(|| Doc::confirmed(self.path.clone(), None)))
    }

    fn mutation(&self) -> MutationBuilder {
        self.space.mutation().coalescing()
    }

    /// Writes fields. A map value replaces the subtree at its path.
    pub fn set(&self, fields: impl IntoFields) -> Pending {
        self.mutation().set(&self.path, fields).send()
    }

    /// Writes fields, also if the document was deleted meanwhile.
    pub fn upsert(&self, fields: impl IntoFields) -> Pending {
        self.mutation().upsert().set(&self.path, fields).send()
    }

    /// Writes fields. A map value merges into the subtree at its path.
    pub fn merge(&self, fields: impl IntoFields) -> Pending {
        self.mutation().merge(&self.path, fields).send()
    }

    /// Removes fields and subtrees.
    pub fn unset<P: IntoPath>(&self, paths: impl IntoIterator<Item = P>) -> Pending {
        self.mutation().unset(&self.path, paths).send()
    }

    /// Makes the document; refused if it exists.
    pub fn create(&self, fields: impl IntoFields) -> Pending {
        self.mutation().create(&self.path, fields).send()
    }

    /// Makes the document exactly this.
    pub fn replace(&self, fields: impl IntoFields) -> Pending {
        self.mutation().replace(&self.path, fields).send()
    }

    /// Ends the document.
    pub fn delete(&self) -> Pending {
        self.mutation().delete(&self.path).send()
    }

    /// Adds to a number.
    pub fn inc(&self, path: impl IntoPath, by: impl IntoNumber) -> Pending {
        self.mutation().inc(&self.path, path, by).send()
    }

    /// Keeps the larger of two numbers or timestamps.
    pub fn max(&self, path: impl IntoPath, value: impl IntoValue) -> Pending {
        self.mutation().max(&self.path, path, value).send()
    }

    /// Keeps the smaller.
    pub fn min(&self, path: impl IntoPath, value: impl IntoValue) -> Pending {
        self.mutation().min(&self.path, path, value).send()
    }

    /// Appends to an array what it lacks.
    pub fn add<V: IntoValue>(&self, path: impl IntoPath, values: impl IntoIterator<Item = V>) -> Pending {
        self.mutation().add(&self.path, path, values).send()
    }

    /// Takes values out of an array.
    pub fn remove<V: IntoValue>(&self, path: impl IntoPath, values: impl IntoIterator<Item = V>) -> Pending {
        self.mutation().remove(&self.path, path, values).send()
    }

    /// Writes the commit's server time.
    pub fn now(&self, path: impl IntoPath) -> Pending {
        self.mutation().now(&self.path, path).send()
    }
}

/// What names a document: a path, or its text.
pub trait IntoDoc {
    /// The path.
    fn into_doc(self) -> Result<DocPath, tidegate_protocol::Invalid>;
}

impl IntoDoc for DocPath {
    fn into_doc(self) -> Result<DocPath, tidegate_protocol::Invalid> {
        Ok(self)
    }
}

impl IntoDoc for &DocPath {
    fn into_doc(self) -> Result<DocPath, tidegate_protocol::Invalid> {
        Ok(self.clone())
    }
}

impl IntoDoc for &str {
    fn into_doc(self) -> Result<DocPath, tidegate_protocol::Invalid> {
        DocPath::parse(self)
    }
}

impl IntoDoc for &DocRef {
    fn into_doc(self) -> Result<DocPath, tidegate_protocol::Invalid> {
        Ok(self.path.clone())
    }
}
