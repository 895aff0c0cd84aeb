//! Who writes: mutations of one field of one document, at a pace or as fast as they are answered.

use crate::client::{Result, Swarm, encode};
use std::time::{Duration, Instant};
use tidegate_protocol::{
    ClientId, ClientMessage, DocChange, DocChangeKind, DocPath, Fields, Limits, Mid, MutationKey, Op, OpKind, SpaceId,
    Value, Write, WriteHead,
};

/// Bytes of the value in a change.
pub(crate) const VALUE: usize = 200;

/// A value of so many bytes.
fn text(bytes: usize) -> Value {
    Value::str(&"x".repeat(bytes))
}

fn doc() -> DocPath {
    DocPath::parse("notes/n1").expect("8 bytes")
}

/// A change of one field of [`VALUE`] bytes, in a document and a field whose names have 8 and 5.
pub(crate) fn change() -> DocChange {
    let kind = DocChangeKind::Change {
        set: vec![("title".parse().expect("5 bytes"), text(VALUE))],
        unset: vec![],
    };
    DocChange { doc: doc(), kind }
}

/// A writer's mutations in one space, over a connection of a swarm.
pub(crate) struct Author {
    /// The connection.
    pub(crate) conn: usize,
    client: ClientId,
    space: SpaceId,
    mid: u64,
    now: u64,
    /// Bytes of the values that it writes.
    pub(crate) value: usize,
}

impl Author {
    pub(crate) fn new(conn: usize, client: u64, space: &str) -> Self {
        let now = std::time::UNIX_EPOCH.elapsed().expect("after 1970").as_millis();
        Self {
            conn,
            client: ClientId(client),
            space: SpaceId::parse(space).expect("a space"),
            mid: 0,
            now: u64::try_from(now).expect("64 bits"),
            value: VALUE,
        }
    }

    /// Sends the next mutation: a field of one document.
    pub(crate) fn write(&mut self, swarm: &mut Swarm) -> Result<()> {
        let frame = self.field(doc());
        swarm.mark();
        swarm.send(self.conn, &frame)
    }

    /// The next mutation, as a frame: a field of a document.
    fn field(&mut self, doc: DocPath) -> Vec<u8> {
        let fields = [("title".parse().expect("a field"), text(self.value))];
        let kind = OpKind::Set(Fields::new(fields, &Limits::default()).expect("fields"));
        self.next(vec![op(doc, kind)])
    }

    /// The next mutation, as a frame.
    pub(crate) fn next(&mut self, ops: Vec<Op>) -> Vec<u8> {
        self.mid += 1;
        let head = WriteHead {
            space: self.space.clone(),
            client: self.client,
            mid: Mid::new(self.mid).expect("a mid"),
            key: MutationKey(self.mid),
            prev: (self.mid > 1).then(|| MutationKey(self.mid - 1)),
            first: (self.mid == 1).then_some(self.now),
        };
        encode(&ClientMessage::Write(Write {
            head,
            base: None,
            policy: None,
            ops,
        }))
    }
}

/// An op without preconditions.
pub(crate) fn op(doc: DocPath, kind: OpKind) -> Op {
    Op {
        doc,
        kind,
        exists: None,
        unchanged_since: None,
    }
}

/// A commit every so often, each answered before the next. The times are shaken a little, or the kernel's ticks, by
/// which it tells user code from its own, would always meet the same moment of a commit.
pub(crate) fn paced(swarm: &mut Swarm, author: &mut Author, every: Duration, commits: u64) -> Result<()> {
    let start = Instant::now();
    for i in 0..commits {
        let shake = every / 5 * u32::try_from(i * 7_919 % 1_000).expect("small") / 1_000;
        swarm.wait(start + every * u32::try_from(i).expect("few") + shake)?;
        let before = swarm.acks;
        author.write(swarm)?;
        swarm.until("an ack", |swarm| swarm.acks > before)?;
    }
    Ok(())
}

/// Commits as fast as they are answered, with at most so many unanswered on each author's connection; what may be sent
/// on one is sent at once.
pub(crate) fn busy(swarm: &mut Swarm, authors: &mut [Author], in_flight: u64, commits: u64, docs: u64) -> Result<()> {
    let (before, mut sent) = (swarm.acks, 0);
    let acked: Vec<u64> = authors.iter().map(|author| swarm.acks_of(author.conn)).collect();
    let mut own = vec![0; authors.len()];
    let mut frames = vec![];
    while sent < commits {
        for (i, author) in authors.iter_mut().enumerate() {
            frames.clear();
            while sent < commits && own[i] - (swarm.acks_of(author.conn) - acked[i]) < in_flight {
                let doc = DocPath::parse(&format!("notes/n{}", 1 + sent % docs)).expect("a document");
                frames.extend(author.field(doc));
                sent += 1;
                own[i] += 1;
            }
            swarm.send(author.conn, &frames)?;
        }
        swarm.poll(Duration::from_millis(5))?;
    }
    swarm.until("all acks", |swarm| swarm.acks == before + commits)
}
