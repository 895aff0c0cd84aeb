//! The commits that a space's subscribers are being brought, each with its frames: encoded when the first subscriber
//! of a view and form needs one, and never again while the commit is kept.

use crate::frame;
use crate::metrics::Metrics;
use crate::store::{LogEntry, View};
use bytes::Bytes;
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tidegate_protocol::form::Form;
use tidegate_protocol::{Seq, msgpack};

/// Subscribers that get the same bytes.
#[derive(Debug)]
pub(super) struct Audience {
    /// Told from all others that the space has had.
    pub(super) number: u32,
    pub(super) view: View,
    pub(super) form: Form,
    /// For frames that are compressed where that pays: from how many bytes of a message on, and who gets them plain.
    pub(super) z: Option<(usize, Arc<Audience>)>,
}

/// So many audiences at most are the same for all spaces, and have the first numbers.
pub(super) const COMMON: u32 = 8;

/// Those of everything that a space has: one for each form and compression.
static ALL: Mutex<Vec<Arc<Audience>>> = Mutex::new(Vec::new());

impl Audience {
    /// The one that all spaces have in common, if they do: they need not have one each.
    pub(super) fn common(view: &View, form: Form, z: Option<&(usize, Arc<Self>)>) -> Option<Arc<Self>> {
        if view.collections.is_some() {
            return None;
        }
        let mut all = ALL.lock();
        if let Some(known) = all.iter().find(|known| known.is(view, form, z.map(|z| z.0))) {
            return Some(known.clone());
        }
        let number = u32::try_from(all.len() + 1).ok().filter(|number| *number <= COMMON)?;
        let new = Arc::new(Self {
            number,
            view: view.clone(),
            form,
            z: z.cloned(),
        });
        all.push(new.clone());
        Some(new)
    }

    /// Whether it is the one of this view, form and compression.
    pub(super) fn is(&self, view: &View, form: Form, z: Option<usize>) -> bool {
        self.form == form && self.z.as_ref().map(|(from, _)| *from) == z && self.view == *view
    }
}

/// A commit that is kept.
pub(super) struct Commit {
    pub(super) seq: Seq,
    /// Bytes of its payload.
    pub(super) size: usize,
    body: Mutex<Body>,
    /// Bytes of all commits of the space, frames included.
    bytes: Arc<AtomicUsize>,
}

struct Body {
    payload: Bytes,
    /// By the audience's number. `None`: the view covers nothing of it.
    frames: Vec<(u32, Option<Bytes>)>,
    /// What it takes.
    takes: usize,
}

impl Commit {
    pub(super) fn new(entry: LogEntry, bytes: Arc<AtomicUsize>) -> Self {
        let size = entry.payload.len();
        let takes = size_of::<Self>() + size;
        bytes.fetch_add(takes, Ordering::Relaxed);
        let body = Body {
            payload: entry.payload,
            frames: Vec::new(),
            takes,
        };
        Self {
            seq: entry.seq,
            size,
            body: Mutex::new(body),
            bytes,
        }
    }

    /// Its frame for an audience; `None` if the view covers nothing of it.
    pub(super) fn frame(&self, n: u32, audience: &Audience, metrics: &Metrics) -> Option<Bytes> {
        self.frame_of(&mut self.body.lock(), n, audience, metrics)
    }

    fn frame_of(&self, body: &mut Body, n: u32, audience: &Audience, metrics: &Metrics) -> Option<Bytes> {
        let number = |(number, _): &(u32, Option<Bytes>)| *number;
        if let Ok(index) = body.frames.binary_search_by_key(&audience.number, number) {
            return body.frames[index].1.clone();
        }
        let (frame, more) = match &audience.z {
            // Made of the one that others get, if there are others.
            Some((from, plain)) => match self.frame_of(body, n, plain, metrics) {
                Some(plain) => match frame::compressed(&plain, *from, metrics) {
                    Some(small) => (Some(small.clone()), small.len()),
                    None => (Some(plain), 0),
                },
                None => (None, 0),
            },
            None => self.encode(body, n, audience, metrics),
        };
        let index = body.frames.partition_point(|frame| number(frame) < audience.number);
        body.frames.insert(index, (audience.number, frame.clone()));
        let more = more + size_of::<(u32, Option<Bytes>)>();
        body.takes += more;
        self.bytes.fetch_add(more, Ordering::Relaxed);
        frame
    }

    /// Its frame, and what that takes beside the payload.
    fn encode(&self, body: &mut Body, n: u32, audience: &Audience, metrics: &Metrics) -> (Option<Bytes>, usize) {
        let Some(frame) = change(n, &audience.view, audience.form, &body.payload) else {
            return (None, 0);
        };
        metrics.encodes.inc();
        let head = frame.len().checked_sub(body.payload.len());
        match head.filter(|head| audience.view.collections.is_none() && frame[*head..] == body.payload) {
            // It is the payload behind a prefix: one of the two is enough.
            Some(head) => {
                body.payload = frame.slice(head..);
                (Some(frame), 0)
            }
            None => {
                let takes = frame.len();
                (Some(frame), takes)
            }
        }
    }

    /// Whether it is this commit, and not one of another history that has the same seq.
    pub(super) fn is(&self, entry: &LogEntry) -> bool {
        self.seq == entry.seq && self.body.lock().payload == entry.payload
    }
}

impl Drop for Commit {
    fn drop(&mut self) {
        self.bytes.fetch_sub(self.body.get_mut().takes, Ordering::Relaxed);
    }
}

/// A commit as a view's subscribers get it, not compressed; `None` if the view covers nothing of it.
pub(super) fn change(n: u32, view: &View, form: Form, payload: &Bytes) -> Option<Bytes> {
    if view.collections.is_none() {
        return Some(frame::change(form, n, payload));
    }
    // What the store gives back is what the engine encoded; a payload that does not decode would be
    // a defect, and is passed over here as it would be refused by the subscriber.
    let mut decoded = msgpack::decode_payload(payload).ok()?;
    decoded.docs.retain(|doc| view.covers(&doc.doc));
    if decoded.docs.is_empty() {
        return None;
    }
    let body = msgpack::encode_body(decoded.writer, decoded.mid, &decoded.docs);
    Some(frame::change(
        form,
        n,
        &msgpack::payload(decoded.seq, decoded.at, &body),
    ))
}
