//! The `changes` scan.
//!
//! A page takes two calls: one looks at the index for what comes next, since a script's keys have to be declared; the
//! other reads these documents, and says in the same atomic step whether they are still what comes next. A document
//! that was touched in between has moved ahead, and is met again.

use super::Keys;
use super::RedisStore;
use super::link::Call;
use super::reply::{Parts, unexpected};
use super::scripts;
use crate::store::embedded::records::{Record, cell_parts};
use crate::store::{ChangesReply, ChangesRequest, Cursor, Header, SpaceState, StoreError};
use redis::Value;
use std::sync::Arc;
use tidegate_protocol::msgpack::DocChanges;
use tidegate_protocol::{DocPath, Seq, SpaceId};

/// Documents looked for at a time.
const LOOK: u64 = 1_024;
/// Documents visited in a call at most, sent or not.
const VISITS: usize = 4_096;
/// Calls in which what was looked for had moved on, before it is said that it cannot be read.
const TRIES: usize = 64;
/// What a document or a leaf takes on the wire beside its path and value.
const OVERHEAD: usize = 8;

impl RedisStore {
    pub(super) async fn scan(&self, space: &SpaceId, request: &ChangesRequest) -> Result<ChangesReply, StoreError> {
        let keys = Keys::of(space);
        for _ in 0..TRIES {
            let (seq, path) = match (&request.cursor, request.after) {
                (Some(cursor), _) => (cursor.at, cursor.doc.as_str()),
                (None, Some(after)) => (after.seq.next(), ""),
                (None, None) => (Seq::ZERO, ""),
            };
            let docs = self.look(space, &keys, (seq, path), request).await?;
            let fixed = [keys.meta(), keys.log(), keys.idx(), keys.clients()];
            let mut call = Call::on(fixed.into_iter().chain(docs.iter().map(|doc| keys.doc(doc))));
            call.number(seq.get()).arg(path);
            call.arg(
                request
                    .writer
                    .map_or_else(Vec::new, |writer| writer.0.to_be_bytes().to_vec()),
            );
            // A page holds no more than its budget and a document.
            call.number(VISITS as u64)
                .number(request.budget.min(u32::MAX as usize) as u64);
            call.number(docs.len() as u64);
            for doc in &docs {
                call.arg(doc);
            }
            for collection in request.view.collections.iter().flatten() {
                call.arg(collection.as_str());
            }
            let found = Found::of(self.on(space, &scripts::CHANGES, &call).await?)?;
            if let Some(reply) = found.reply(request)? {
                return Ok(reply);
            }
        }
        Err(StoreError::Unavailable(
            "documents are written faster than they can be read".to_owned(),
        ))
    }

    /// The documents of the view that come next after a seq and a path.
    async fn look(
        &self,
        space: &SpaceId,
        keys: &Keys,
        (seq, path): (Seq, &str),
        request: &ChangesRequest,
    ) -> Result<Vec<String>, StoreError> {
        let mut call = Call::on([keys.meta(), keys.idx()]);
        call.number(seq.get()).arg(path).number(LOOK);
        let mut parts = Parts::of(self.on(space, &scripts::NEXT, &call).await?)?;
        let mut docs = vec![];
        while parts.len() > 0 {
            let doc = String::from_utf8(parts.bytes()?).map_err(|_| unexpected("a path"))?;
            if request.view.covers_path(&doc) {
                docs.push(doc);
            }
        }
        Ok(docs)
    }
}

/// What a call has found.
struct Found {
    state: SpaceState,
    is_complete: bool,
    last_mid: Option<tidegate_protocol::Mid>,
    /// The last document that was visited.
    last: Option<(Seq, DocPath)>,
    docs: Parts,
}

impl Found {
    fn of(reply: Value) -> Result<Self, StoreError> {
        let mut parts = Parts::of(reply)?;
        let (state, _) = parts.state()?;
        let is_complete = parts.bytes()? == b"1";
        let last_mid = parts.last_mid()?;
        let (seq, path) = (parts.bytes()?, parts.bytes()?);
        let last = match seq.is_empty() {
            true => None,
            false => {
                let seq = std::str::from_utf8(&seq)
                    .ok()
                    .and_then(|seq| Seq::new(seq.parse().ok()?));
                let path = std::str::from_utf8(&path)
                    .ok()
                    .and_then(|path| DocPath::parse(path).ok());
                Some((
                    seq.ok_or_else(|| unexpected("a seq"))?,
                    path.ok_or_else(|| unexpected("a path"))?,
                ))
            }
        };
        Ok(Self {
            state,
            is_complete,
            last_mid,
            last,
            docs: parts.parts()?,
        })
    }

    /// The page, or `None` if all that was looked for has moved on.
    fn reply(mut self, request: &ChangesRequest) -> Result<Option<ChangesReply>, StoreError> {
        if let Some(reason) = request.invalid(&self.state) {
            return Ok(Some(ChangesReply::Reset(reason)));
        }
        let begin = request
            .cursor
            .as_ref()
            .map_or(self.state.head.seq, |cursor| cursor.begin);
        let mut page = Page {
            docs: DocChanges::default(),
            spent: 0,
        };
        // The last document that the page is done with.
        let mut last = None;
        while self.docs.len() > 0 {
            let path = String::from_utf8(self.docs.bytes()?).map_err(|_| unexpected("a path"))?;
            let doc = Doc::of(self.docs.parts()?)?;
            let seq = doc.header.last.seq;
            if !page.add(&path, &doc, request, begin)? {
                let (at, doc) = last.ok_or_else(|| unexpected("room for a document"))?;
                return Ok(Some(page.end(request, &self.state, (at, doc), begin)));
            }
            last = Some((seq, DocPath::parse(&path).map_err(|_| unexpected("a path"))?));
        }
        if self.is_complete {
            return Ok(Some(ChangesReply::Done {
                docs: Arc::new(page.docs),
                state: self.state,
                last_mid: self.last_mid,
            }));
        }
        let Some(last) = self.last.take() else {
            return Ok(None);
        };
        Ok(Some(page.end(request, &self.state, last, begin)))
    }
}

/// A document as it is stored, its cells sorted by field.
struct Doc {
    header: Header,
    cells: Vec<(String, Vec<u8>)>,
}

impl Doc {
    fn of(mut parts: Parts) -> Result<Self, StoreError> {
        let mut header = None;
        let mut cells = Vec::with_capacity(parts.len() / 2);
        while parts.len() > 0 {
            let (field, record) = (parts.bytes()?, parts.bytes()?);
            if field.is_empty() {
                header = Header::decode(&record);
            } else {
                cells.push((String::from_utf8(field).map_err(|_| unexpected("a field"))?, record));
            }
        }
        cells.sort_unstable();
        let header = header.ok_or_else(|| unexpected("a header"))?;
        Ok(Self { header, cells })
    }

    fn cells(&self) -> impl Iterator<Item = Result<(&str, Seq, Option<&[u8]>), StoreError>> {
        self.cells.iter().map(|(field, record)| {
            let (stamp, value) = cell_parts(record).ok_or_else(|| unexpected("a cell"))?;
            Ok((field.as_str(), stamp.seq, value))
        })
    }
}

/// A page that is being filled.
struct Page {
    docs: DocChanges,
    spent: usize,
}

impl Page {
    /// Adds what a client that holds the state of `request.after` (`None`: what was staged since `begin`) lacks of a
    /// document. False if the page has no room for it.
    fn add(&mut self, path: &str, doc: &Doc, request: &ChangesRequest, begin: Seq) -> Result<bool, StoreError> {
        if !doc.header.alive {
            // In a reset only a page before this one can have brought it.
            let may_be_held = request.after.is_some() || doc.header.last.seq > begin;
            let has_room = !may_be_held || self.take(path.len() + OVERHEAD, request.budget);
            if may_be_held && has_room {
                self.docs.push_deleted(path);
            }
            return Ok(has_room);
        }
        let after = request.after.map(|after| after.seq);
        let Some(after) = after.filter(|after| doc.header.born.seq <= *after) else {
            return self.add_whole(path, doc, request.budget);
        };
        let (mut size, mut unset) = (0, vec![]);
        self.docs.begin(path);
        for cell in doc.cells() {
            match cell? {
                (_, seq, _) if seq <= after => {}
                (field, _, Some(value)) => {
                    size += field.len() + value.len() + OVERHEAD;
                    self.docs.leaf(field, value);
                }
                (field, _, None) => {
                    size += field.len() + OVERHEAD;
                    unset.push(field);
                }
            }
        }
        // A delta names every tombstone, and of those there may be more than the document could ever hold.
        if size > request.budget && size as u64 > doc.header.size {
            self.docs.take_back();
            return self.add_whole(path, doc, request.budget);
        }
        if self.docs.leaves() == 0 && unset.is_empty() {
            self.docs.take_back();
            return Ok(true);
        }
        let has_room = self.take(path.len() + OVERHEAD + size, request.budget);
        match has_room {
            true => self.docs.end_change(unset.iter().copied()),
            false => self.docs.take_back(),
        }
        Ok(has_room)
    }

    /// Adds all leaves of a document. False if the page has no room for it.
    fn add_whole(&mut self, path: &str, doc: &Doc, budget: usize) -> Result<bool, StoreError> {
        let mut size = path.len() + OVERHEAD;
        self.docs.begin(path);
        for cell in doc.cells() {
            if let (field, _, Some(value)) = cell? {
                size += field.len() + value.len() + OVERHEAD;
                self.docs.leaf(field, value);
            }
        }
        let has_room = self.take(size, budget);
        match has_room {
            true => self.docs.end_whole(),
            false => self.docs.take_back(),
        }
        Ok(has_room)
    }

    /// Counts a document, if there is room for it.
    fn take(&mut self, size: usize, budget: usize) -> bool {
        let has_room = self.docs.is_empty() || self.spent + size <= budget;
        if has_room {
            self.spent += size;
        }
        has_room
    }

    fn end(self, request: &ChangesRequest, state: &SpaceState, last: (Seq, DocPath), begin: Seq) -> ChangesReply {
        let (at, doc) = last;
        ChangesReply::Page {
            docs: Arc::new(self.docs),
            cursor: Cursor {
                after: request.after,
                at,
                doc,
                begin,
                head: state.head,
                view: request.view.id,
            },
            head: state.head,
        }
    }
}
