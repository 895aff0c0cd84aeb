//! Spaces and collections as an app holds them.

use crate::client::Handle;
use crate::doc::{Doc, DocRef};
use crate::mutation::MutationBuilder;
use crate::shared::GetResult;
use crate::sync::{Identity, Mutation, MutationId, Refusal};
use crate::watch::{Live, Scope, Watch};
use std::sync::Arc;
use tidegate_protocol::{Code, Collection, DocChangeKind, DocPath, Invalid, Position, SpaceId};
use tokio::sync::oneshot;

/// A space: unit of order, subscription and permission. Cheap to clone.
///
/// The gateway is subscribed to while a stream of the space lives, and from the first [`Space::current`]
/// for as long as that handle or a clone of it does. The subscription covers the whole space unless
/// [`Space::only`] says which collections.
#[derive(Clone)]
pub struct Space {
    handle: Handle,
    name: SpaceId,
    kept: Arc<parking_lot::Mutex<Option<Kept>>>,
}

/// A subscription held by [`Space::current`].
struct Kept(Handle, SpaceId);

impl Drop for Kept {
    fn drop(&mut self) {
        self.0.unwant(&self.1);
    }
}

impl Space {
    pub(crate) fn open(handle: Handle, name: SpaceId) -> Self {
        handle.shared().ask(|core| {
            core.machine.open(&name);
        });
        Self {
            handle,
            name,
            kept: Arc::default(),
        }
    }

    pub(crate) fn handle(&self) -> &Handle {
        &self.handle
    }

    /// Its name.
    pub fn name(&self) -> &SpaceId {
        &self.name
    }

    /// Narrows the subscription to these collections, for everybody who uses the space through this client.
    /// Another choice than before is another view: what is held is fetched anew.
    pub fn only<'a>(&self, collections: impl IntoIterator<Item = &'a str>) -> Result<(), Invalid> {
        let filter = collections
            .into_iter()
            .map(Collection::parse)
            .collect::<Result<Vec<_>, _>>()?;
        self.handle.shared().ask(|core| {
            core.filters.insert(self.name.clone(), filter.clone());
            if core.watchers.is_wanted(&self.name) {
                core.machine.subscribe(&self.name, Some(filter));
            }
        });
        Ok(())
    }

    /// A collection by its name, `notes`.
    pub fn collection(&self, name: &str) -> Result<CollectionRef, Invalid> {
        Ok(CollectionRef {
            space: self.clone(),
            name: Collection::parse(name)?,
        })
    }

    /// A document by its path, `notes/n1`.
    pub fn doc(&self, path: &str) -> Result<DocRef, Invalid> {
        Ok(DocRef::new(self.clone(), DocPath::parse(path)?))
    }

    /// Begins a mutation of one or more documents, applied all or none.
    pub fn mutation(&self) -> MutationBuilder {
        MutationBuilder::new(self.clone())
    }

    /// Every confirmed change as received: see [`Watch`].
    pub fn watch(&self) -> Watch {
        Watch::open(&self.handle, &self.name)
    }

    /// The local view of the whole space: see [`Live`].
    pub fn live(&self) -> Live {
        Live::open(&self.handle, &self.name, Scope::Space)
    }

    /// Waits until the local state is the gateway's, and keeps it so from then on. An error: the
    /// subscription was refused, or the client has stopped.
    pub async fn current(&self) -> Result<Position, Refusal> {
        {
            let mut kept = self.kept.lock();
            if kept.is_none() {
                self.handle.want(&self.name);
                *kept = Some(Kept(self.handle.clone(), self.name.clone()));
            }
        }
        self.handle
            .shared()
            .until(|core| {
                let space = core.machine.space(&self.name)?;
                if let Some(position) = space.replica().position().filter(|_| !space.from_cache()) {
                    return Some(Ok(position));
                }
                if let Some(code) = space.denied_by() {
                    return Some(Err(Refusal::new(code, code.row().meaning)));
                }
                core.machine.stopped().map(Err)
            })
            .await
    }

    /// The local view of every document there is, by path, without waiting.
    pub fn docs(&self) -> Vec<Doc> {
        self.handle
            .shared()
            .look(|core| {
                let space = core.machine.space(&self.name)?;
                Some(space.docs().into_iter().map(|doc| Doc::of(space, doc)).collect())
            })
            .unwrap_or_default()
    }

    /// Up to where the local state has followed the space; `None` before the first catch-up.
    pub fn position(&self) -> Option<Position> {
        self.handle
            .shared()
            .look(|core| core.machine.space(&self.name)?.replica().position())
    }

    /// Asks the gateway for documents as they are now, in one consistent cut. Waits for a connection.
    pub async fn get(&self, docs: &[DocPath]) -> Result<Cut, Refusal> {
        let (sender, receiver) = oneshot::channel();
        self.handle.shared().ask(|core| {
            let id = core.machine.get(&self.name, docs.to_vec())?;
            core.wait_for_get(id, sender);
            Ok::<_, Refusal>(())
        })?;
        let answer: GetResult = receiver
            .await
            .unwrap_or_else(|_| Err(Refusal::new(Code::GoingAway, "the client was closed")));
        let (position, docs) = answer?;
        let docs = docs.into_iter().map(|change| {
            let leaves = match change.kind {
                DocChangeKind::Whole(leaves) => Some(leaves.into_iter().collect()),
                DocChangeKind::Change { .. } | DocChangeKind::Deleted => None,
            };
            Doc::confirmed(change.doc, leaves)
        });
        Ok(Cut {
            position,
            docs: docs.collect(),
        })
    }

    /// The queue: own mutations without an answer, and those acked of which it is not certain that the confirmed state
    /// holds them.
    pub fn queue(&self) -> Vec<Mutation> {
        let list = |core: &crate::shared::Core| Some(core.machine.space(&self.name)?.queue().iter().cloned().collect());
        self.handle.shared().look(list).unwrap_or_default()
    }

    /// Takes back a mutation that has not been sent. Returns whether it was.
    pub fn cancel(&self, id: MutationId) -> bool {
        self.handle.shared().ask(|core| core.machine.cancel(&self.name, id))
    }

    /// Under which id this space is written, and which mid comes next; for a process that goes on later
    /// (`Options::identity`). Take it when nothing is queued.
    pub fn identity(&self) -> Identity {
        self.handle
            .shared()
            .step_core(|core| *core.machine.open(&self.name).queue().identity())
    }
}

/// Documents as of one position.
#[derive(Clone, PartialEq, Debug)]
pub struct Cut {
    /// The position.
    pub position: Position,
    /// The documents in the order asked for; one that does not exist has no leaves.
    pub docs: Vec<Doc>,
}

/// A collection of a space. Cheap to clone.
#[derive(Clone)]
pub struct CollectionRef {
    space: Space,
    name: Collection,
}

impl CollectionRef {
    /// Its name.
    pub fn name(&self) -> &Collection {
        &self.name
    }

    /// The document of this id.
    pub fn doc(&self, id: &str) -> Result<DocRef, Invalid> {
        Ok(DocRef::new(self.space.clone(), self.name.doc(id)?))
    }

    /// The local view of the collection, now and as it changes: see [`Live`].
    pub fn watch(&self) -> Live {
        Live::open(
            &self.space.handle,
            &self.space.name,
            Scope::Collection(self.name.clone()),
        )
    }

    /// The local view of every document there is, by path, without waiting.
    pub fn docs(&self) -> Vec<Doc> {
        let mut docs = self.space.docs();
        docs.retain(|doc| doc.path().collection() == self.name.as_str());
        docs
    }
}
