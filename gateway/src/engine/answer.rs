//! From outcomes to answers, and the guarantee that there is exactly one.

use super::newcomers::Newcomers;
use super::stats::EngineStats;
use super::{Done, Engine, Refusal, Report, WriteReply, WriteRequest};
use std::sync::Arc;
use tidegate_protocol::{Ack, Code, Mid, OpKind, Position, Reject, SpaceId, Value, WriteHead, Writer};

/// What to tell a writer.
pub(super) enum Answer {
    /// Applied, now or before.
    Ack(Position, Report),
    /// Refused for good, now or before.
    Refused(Report),
    /// Not decided: the mid is not consumed.
    Later(Code, &'static str),
    /// Another mid has to come first.
    OutOfOrder(Mid),
}

/// A mutation that waits for its answer. Dropped without one – the node is stopping, or a defect
/// ended the worker – it answers `unavailable`: the client sends it again.
pub(super) struct Pending {
    pub(super) request: WriteRequest,
    done: Option<Done>,
    /// About how much memory it takes.
    pub(super) bytes: usize,
    /// Plans that turned out stale.
    pub(super) stale: u32,
    /// Store calls whose outcome is unknown.
    pub(super) unknown: u32,
    stats: Arc<EngineStats>,
    newcomers: Arc<Newcomers>,
    retry_ms: u64,
}

impl Pending {
    pub(super) fn new(request: WriteRequest, done: Done, engine: &Engine) -> Self {
        let (stats, newcomers) = (Arc::clone(&engine.stats), Arc::clone(&engine.newcomers));
        // Half as much again, by the writer's name, so that not all who are refused come back at once.
        let retry_ms = engine.config.retry_ms;
        let retry_ms = retry_ms + request.writer().0 % (retry_ms / 2 + 1);
        let bytes = weight(&request);
        stats.waiting.add(1);
        stats.waiting_bytes.add(bytes as u64);
        Self {
            request,
            done: Some(done),
            bytes,
            stale: 0,
            unknown: 0,
            stats,
            newcomers,
            retry_ms,
        }
    }

    /// Answers.
    pub(super) fn give(self, answer: Answer) {
        match answer {
            Answer::Ack(position, Report { conflicts, skipped, .. }) => {
                let (space, mid) = self.name();
                self.answer(WriteReply::Ack(Ack {
                    space,
                    mid,
                    position,
                    conflicts,
                    skipped,
                }));
            }
            Answer::Refused(Report {
                refusal: Some(Refusal { code, message, at }),
                cells,
                ..
            }) => {
                let (space, mid) = self.name();
                self.answer(WriteReply::Reject(Reject {
                    space,
                    mid,
                    code,
                    message,
                    at,
                    retry_ms: None,
                    expected: None,
                    cells,
                }));
            }
            // A refusal has a reason; without one the guard's answer is the safe one.
            Answer::Refused(_) => drop(self),
            // The store knows nothing of a client whose first mutation was refused for now.
            Answer::Later(Code::ClientUnknown, _) if self.follows_a_newcomer() => self.out_of_order(FIRST),
            Answer::Later(code, message) => self.later(code, message),
            Answer::OutOfOrder(expected) => self.out_of_order(expected),
        }
    }

    fn out_of_order(self, expected: Mid) {
        let message = format!("mutation {expected} has to come first; send again from there");
        self.reject(Code::OutOfOrder, message, None, Some(expected));
    }

    /// Not decided: the mid is not consumed.
    pub(super) fn later(self, code: Code, message: &str) {
        let retry_ms = matches!(code, Code::Unavailable | Code::RateLimited).then_some(self.retry_ms);
        self.reject(code, message.to_owned(), retry_ms, None);
    }

    fn reject(self, code: Code, message: String, retry_ms: Option<u64>, expected: Option<Mid>) {
        let (space, mid) = self.name();
        self.answer(WriteReply::Reject(Reject {
            space,
            mid,
            code,
            message,
            at: None,
            retry_ms,
            expected,
            cells: vec![],
        }));
    }

    fn name(&self) -> (SpaceId, Mid) {
        (self.request.head.space.clone(), self.request.head.mid)
    }

    /// Whether the client's first mutation was refused for now, and this is one behind it.
    fn follows_a_newcomer(&self) -> bool {
        let WriteHead { space, mid, .. } = &self.request.head;
        *mid != FIRST && self.newcomers.holds(space, self.writer())
    }

    fn writer(&self) -> Writer {
        self.request.writer()
    }

    fn answer(mut self, reply: WriteReply) {
        self.reply(reply);
    }

    fn reply(&mut self, reply: WriteReply) {
        if let Some(done) = self.done.take() {
            if self.request.head.mid == FIRST {
                self.note_newcomer(&reply);
            }
            if let WriteReply::Reject(reject) = &reply {
                self.stats.refusals.count(reject.code);
            }
            done(reply);
        }
    }
}

impl Pending {
    /// Of a client's first mutation: whether the store knows the client after this answer.
    fn note_newcomer(&self, reply: &WriteReply) {
        let (space, writer) = (&self.request.head.space, self.writer());
        match reply {
            WriteReply::Reject(reject) if matches!(reject.code, Code::Unavailable | Code::RateLimited) => {
                self.newcomers.remember(space, writer);
            }
            _ => self.newcomers.forget(space, writer),
        }
    }
}

/// The first mutation of a client.
const FIRST: Mid = Mid::ZERO.next();

impl Drop for Pending {
    fn drop(&mut self) {
        self.stats.waiting.sub(1);
        self.stats.waiting_bytes.sub(self.bytes as u64);
        if self.done.is_none() {
            return;
        }
        let (space, mid) = self.name();
        let (code, retry_ms) = (Code::Unavailable, Some(self.retry_ms));
        let message = "the gateway stopped working on it; send it again".into();
        self.reply(WriteReply::Reject(Reject {
            space,
            mid,
            code,
            message,
            at: None,
            retry_ms,
            expected: None,
            cells: vec![],
        }));
    }
}

/// About how many bytes a request takes in memory.
fn weight(request: &WriteRequest) -> usize {
    const EACH: usize = 64;
    let values = |values: &[Value]| values.iter().map(|v| EACH + v.as_bytes().len()).sum::<usize>();
    let Ok(body) = &request.body else { return 4 * EACH };
    let op = |kind: &OpKind| match kind {
        OpKind::Set(fields) | OpKind::Merge(fields) | OpKind::Create(fields) | OpKind::Replace(fields) => fields
            .leaves()
            .map(|(path, value)| EACH + path.as_str().len() + value.as_bytes().len())
            .sum(),
        OpKind::Unset(paths) => paths.iter().map(|path| EACH + path.as_str().len()).sum(),
        OpKind::Max { value, .. } | OpKind::Min { value, .. } => value.as_bytes().len(),
        OpKind::Add { values: list, .. } | OpKind::Remove { values: list, .. } => values(list),
        OpKind::Inc { .. } | OpKind::Now { .. } | OpKind::Delete | OpKind::Check => 0,
    };
    4 * EACH
        + body
            .ops
            .iter()
            .map(|o| 2 * EACH + o.doc.as_str().len() + op(&o.kind))
            .sum::<usize>()
}
