//! Mutations of an app: made step by step, sent, awaited.

use crate::doc::IntoDoc;
use crate::space::Space;
use crate::sync::{MutationId, Outcome, Request, WriteError};
use crate::values::{IntoFields, IntoNumber, IntoPath, IntoValue};
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use tidegate_protocol::{Fields, Invalid, Limits, Op, OpKind, Policy, Position};
use tokio::sync::oneshot;

/// A mutation in the making: ops on documents of one space, applied all or none.
///
/// A bad name or value is kept until [`MutationBuilder::send`], whose [`Pending`] then says `invalid`.
#[must_use = "a mutation does nothing until it is sent"]
pub struct MutationBuilder {
    space: Space,
    request: Request,
    limits: Limits,
    wrong: Option<Invalid>,
}

impl MutationBuilder {
    pub(crate) fn new(space: Space) -> Self {
        let limits = space.handle().shared().look(|core| core.machine.limits().clone());
        Self {
            space,
            request: Request::default(),
            limits,
            wrong: None,
        }
    }

    pub(crate) fn coalescing(mut self) -> Self {
        self.request.coalesce = true;
        self
    }

    fn op(mut self, doc: impl IntoDoc, kind: impl FnOnce(&Limits) -> Result<OpKind, Invalid>) -> Self {
        let made = doc.into_doc().and_then(|doc| Ok((doc, kind(&self.limits)?)));
        match made {
            Ok((doc, kind)) => self.request.ops.push(Op {
                doc,
                kind,
                exists: None,
                unchanged_since: None,
            }),
            Err(invalid) => {
                self.wrong.get_or_insert(invalid);
            }
        }
        self
    }

    /// Writes fields. A map value replaces the subtree at its path.
    pub fn set(self, doc: impl IntoDoc, fields: impl IntoFields) -> Self {
        self.op(doc, |limits| {
            Ok(OpKind::Set(Fields::new(fields.into_fields()?, limits)?))
        })
    }

    /// Writes fields. A map value merges into the subtree at its path.
    pub fn merge(self, doc: impl IntoDoc, fields: impl IntoFields) -> Self {
        self.op(doc, |limits| {
            Ok(OpKind::Merge(Fields::new(fields.into_fields()?, limits)?))
        })
    }

    /// Removes fields and subtrees.
    pub fn unset<P: IntoPath>(self, doc: impl IntoDoc, paths: impl IntoIterator<Item = P>) -> Self {
        self.op(doc, |_| {
            Ok(OpKind::Unset(
                paths.into_iter().map(IntoPath::into_path).collect::<Result<_, _>>()?,
            ))
        })
    }

    /// Makes a document; refused if it exists.
    pub fn create(self, doc: impl IntoDoc, fields: impl IntoFields) -> Self {
        self.op(doc, |limits| {
            Ok(OpKind::Create(Fields::new(fields.into_fields()?, limits)?))
        })
    }

    /// Makes a document exactly this.
    pub fn replace(self, doc: impl IntoDoc, fields: impl IntoFields) -> Self {
        self.op(doc, |limits| {
            Ok(OpKind::Replace(Fields::new(fields.into_fields()?, limits)?))
        })
    }

    /// Ends a document.
    pub fn delete(self, doc: impl IntoDoc) -> Self {
        self.op(doc, |_| Ok(OpKind::Delete))
    }

    /// Adds to a number.
    pub fn inc(self, doc: impl IntoDoc, path: impl IntoPath, by: impl IntoNumber) -> Self {
        self.op(doc, |_| {
            Ok(OpKind::Inc {
                path: path.into_path()?,
                by: by.into_number()?,
            })
        })
    }

    /// Keeps the larger of two numbers or timestamps.
    pub fn max(self, doc: impl IntoDoc, path: impl IntoPath, value: impl IntoValue) -> Self {
        self.op(doc, |_| {
            Ok(OpKind::Max {
                path: path.into_path()?,
                value: value.into_value()?,
            })
        })
    }

    /// Keeps the smaller.
    pub fn min(self, doc: impl IntoDoc, path: impl IntoPath, value: impl IntoValue) -> Self {
        self.op(doc, |_| {
            Ok(OpKind::Min {
                path: path.into_path()?,
                value: value.into_value()?,
            })
        })
    }

    /// Appends to an array what it lacks.
    pub fn add<V: IntoValue>(
        self,
        doc: impl IntoDoc,
        path: impl IntoPath,
        values: impl IntoIterator<Item = V>,
    ) -> Self {
        let values = || values.into_iter().map(IntoValue::into_value).collect::<Result<_, _>>();
        self.op(doc, |_| {
            Ok(OpKind::Add {
                path: path.into_path()?,
                values: values()?,
            })
        })
    }

    /// Takes values out of an array.
    pub fn remove<V: IntoValue>(
        self,
        doc: impl IntoDoc,
        path: impl IntoPath,
        values: impl IntoIterator<Item = V>,
    ) -> Self {
        let values = || values.into_iter().map(IntoValue::into_value).collect::<Result<_, _>>();
        self.op(doc, |_| {
            Ok(OpKind::Remove {
                path: path.into_path()?,
                values: values()?,
            })
        })
    }

    /// Writes the commit's server time.
    pub fn now(self, doc: impl IntoDoc, path: impl IntoPath) -> Self {
        self.op(doc, |_| {
            Ok(OpKind::Now {
                path: path.into_path()?,
            })
        })
    }

    /// Nothing but preconditions, given by [`MutationBuilder::exists`] and
    /// [`MutationBuilder::unchanged_since`]: a document that was read to decide on the others.
    pub fn check(self, doc: impl IntoDoc) -> Self {
        self.op(doc, |_| Ok(OpKind::Check))
    }

    /// Precondition of the last op: its document exists, or does not.
    pub fn exists(mut self, exists: bool) -> Self {
        if let Some(op) = self.request.ops.last_mut() {
            op.exists = Some(exists);
        }
        self
    }

    /// Precondition of the last op: nothing that it is about was written after this position, by anybody.
    pub fn unchanged_since(mut self, position: Position) -> Self {
        if let Some(op) = self.request.ops.last_mut() {
            op.unchanged_since = Some(position);
        }
        self
    }

    /// What becomes of units in conflict, if not what the collection says. `reject` and `merge` need a
    /// space that was current once: they are judged by what had been seen.
    pub fn policy(mut self, policy: Policy) -> Self {
        self.request.policy = Some(policy);
        self
    }

    /// Edits of documents in the local view bring them back if they were deleted meanwhile.
    pub fn upsert(mut self) -> Self {
        self.request.upsert = true;
        self
    }

    /// Queues the mutation. It shows in the local view at once.
    pub fn send(self) -> Pending {
        let Self {
            space, request, wrong, ..
        } = self;
        if let Some(invalid) = wrong {
            return Pending {
                id: None,
                state: State::Settled(Some(Err(invalid.into()))),
            };
        }
        let shared = space.handle().shared();
        let now = shared.now();
        let (sender, receiver) = oneshot::channel();
        let queued = shared.ask(|core| {
            let id = core.machine.mutate(now, space.name(), request)?;
            core.wait_for(space.name().clone(), id, sender);
            Ok::<_, crate::sync::Refusal>(id)
        });
        match queued {
            Ok(id) => Pending {
                id: Some(id),
                state: State::Waiting(receiver),
            },
            Err(refusal) => Pending {
                id: None,
                state: State::Settled(Some(Err(refusal.into()))),
            },
        }
    }
}

/// A mutation on its way. A future of what becomes of it; dropping it changes nothing.
pub struct Pending {
    id: Option<MutationId>,
    state: State,
}

enum State {
    Waiting(oneshot::Receiver<Outcome>),
    Settled(Option<Outcome>),
}

impl Pending {
    /// Its number in the queue, for [`Space::cancel`]; `None` if it was refused before it was queued.
    pub fn id(&self) -> Option<MutationId> {
        self.id
    }
}

impl Future for Pending {
    type Output = Outcome;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Outcome> {
        match &mut self.state {
            State::Waiting(receiver) => Pin::new(receiver)
                .poll(cx)
                .map(|outcome| outcome.unwrap_or(Err(WriteError::Closed))),
            State::Settled(outcome) => Poll::Ready(outcome.take().unwrap_or(Err(WriteError::Closed))),
        }
    }
}
