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
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Audience {
    pub(super) view: View,
    pub(super) form: Form,
    /// Frames whose message has so many bytes are compressed, where that pays.
    pub(super) z: Option<usize>,
}

/// A commit that is kept.
pub(super) struct Commit {
    pub(super) seq: Seq,
    body: Mutex<Body>,
    /// Bytes of all commits of the space, frames included.
    bytes: Arc<AtomicUsize>,
}

struct Body {
    payload: Bytes,
    /// `None`: the view covers nothing of it.
    frames: Vec<(Arc<Audience>, Option<Bytes>)>,
    size: usize,
}

impl Commit {
    pub(super) fn new(entry: LogEntry, bytes: Arc<AtomicUsize>) -> Self {
        let size = size_of::<Self>() + entry.payload.len();
        bytes.fetch_add(size, Ordering::Relaxed);
        let body = Body {
            payload: entry.payload,
            frames: Vec::new(),
            size,
        };
        Self {
            seq: entry.seq,
            body: Mutex::new(body),
            bytes,
        }
    }

    /// Its frame for an audience; `None` if the view covers nothing of it.
    pub(super) fn frame(&self, n: u32, audience: &Arc<Audience>, metrics: &Metrics) -> Option<Bytes> {
        let mut body = self.body.lock();
        let kept = |(of, _): &&(Arc<Audience>, _)| Arc::ptr_eq(of, audience) || of == audience;
        if let Some((_, frame)) = body.frames.iter().find(kept) {
            return frame.clone();
        }
        let frame = self.make(&mut body, n, audience, metrics);
        body.frames.push((Arc::clone(audience), frame.clone()));
        frame
    }

    fn make(&self, body: &mut Body, n: u32, audience: &Arc<Audience>, metrics: &Metrics) -> Option<Bytes> {
        if let Some(threshold) = audience.z {
            let plain = Audience {
                z: None,
                ..Audience::clone(audience)
            };
            // Made of the one that others get, if there are others.
            let plain = match body.frames.iter().find(|(of, _)| **of == plain) {
                Some((_, frame)) => frame.clone(),
                None => {
                    let plain = Arc::new(plain);
                    let frame = self.make(body, n, &plain, metrics);
                    body.frames.push((plain, frame.clone()));
                    frame
                }
            }?;
            let small = frame::compressed(&plain, threshold, metrics);
            self.grow(body, small.as_ref().map_or(0, Bytes::len));
            return Some(small.unwrap_or(plain));
        }
        let frame = change(n, audience, &body.payload);
        if let Some(frame) = &frame {
            metrics.encodes.inc();
            let head = frame.len().checked_sub(body.payload.len());
            match head.filter(|head| audience.view.collections.is_none() && frame[*head..] == body.payload) {
                // It is the payload behind a prefix: one of the two is enough.
                Some(head) => body.payload = frame.slice(head..),
                None => self.grow(body, frame.len()),
            }
        }
        frame
    }

    /// Whether it is this commit, and not one of another history that has the same seq.
    pub(super) fn is(&self, entry: &LogEntry) -> bool {
        self.seq == entry.seq && self.body.lock().payload == entry.payload
    }

    fn grow(&self, body: &mut Body, by: usize) {
        body.size += by;
        self.bytes.fetch_add(by, Ordering::Relaxed);
    }
}

impl Drop for Commit {
    fn drop(&mut self) {
        self.bytes.fetch_sub(self.body.get_mut().size, Ordering::Relaxed);
    }
}

/// A commit as a view's subscribers get it, not compressed; `None` if the view covers nothing of it.
pub(super) fn change(n: u32, audience: &Audience, payload: &Bytes) -> Option<Bytes> {
    let Audience { view, form, .. } = audience;
    if view.collections.is_none() {
        return Some(frame::change(*form, n, payload));
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
        *form,
        n,
        &msgpack::payload(decoded.seq, decoded.at, &body),
    ))
}
