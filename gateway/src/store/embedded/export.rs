//! All of a stopped store, space by space, for a store of another kind.

use super::disk::{Cut, Table, damaged, told};
use super::read::{document, spaces_after};
use super::records::{Client, Record as _};
use super::shared::Shared;
use super::{OpenError, keys, results};
use crate::store::{ConflictRecord, DocState, Kept, LogEntry, SpaceState, StoreError, UserTag};
use bytes::Bytes;
use std::ops::Bound;
use std::path::Path;
use tidegate_protocol::{DocPath, Mid, MutationKey, Seq, SpaceId, Writer};

/// Something that a space holds.
#[derive(Clone, PartialEq, Debug)]
pub(crate) enum Piece {
    /// It had this head at this time, ms since 1970.
    Mark(u64, Seq),
    /// A document, deleted ones too, with its tombstones.
    Doc(DocPath, DocState),
    /// A commit of the log, oldest first.
    Commit(LogEntry),
    /// An entry of the conflict log, oldest first.
    Conflict(ConflictRecord),
    /// A client's record.
    Client(ClientRecord),
    /// A result that is kept of one of its mutations.
    Result(Writer, Mid, MutationKey, Kept),
    /// A writer that a user has had.
    User(UserTag, Writer),
}

/// What is known of a client.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct ClientRecord {
    /// Whose.
    pub(crate) writer: Writer,
    /// Its last mutation; 0 in the marker of a client whose data was erased.
    pub(crate) last: Mid,
    /// That one's key.
    pub(crate) key: MutationKey,
    /// When it last wrote, ms since 1970.
    pub(crate) when: u64,
    /// The user, if that is known.
    pub(crate) user: Option<UserTag>,
}

/// A stopped store that is read.
pub(crate) struct Export {
    shared: Shared,
}

/// Where a space stands.
pub(crate) struct Stand {
    pub(crate) state: SpaceState,
    /// The first commit of its log.
    pub(crate) log_first: Seq,
    /// When the newest of the client records that were forgotten last wrote.
    pub(crate) forgotten_ms: Option<u64>,
}

impl Export {
    /// Opens the store in a directory, which no process may have open.
    pub(crate) fn open(dir: &Path) -> Result<Self, OpenError> {
        Ok(Self {
            shared: Shared::open_existing(dir)?,
        })
    }

    /// Its spaces.
    pub(crate) fn spaces(&self) -> Result<Vec<SpaceId>, StoreError> {
        spaces_after(&self.shared.disk()?.cut(), None).collect()
    }

    /// Where a space stands. One that is being erased has to come to its end first.
    pub(crate) fn stand(&self, space: &SpaceId) -> Result<Stand, StoreError> {
        let (state, meta) = self.shared.disk()?.cut().open_state(space)?;
        Ok(Stand {
            state,
            log_first: meta.log_first,
            forgotten_ms: meta.forgotten_ms,
        })
    }

    /// Hands on everything that a space holds.
    pub(crate) fn each<E: From<StoreError>>(
        &self,
        space: &SpaceId,
        mut each: impl FnMut(Piece) -> Result<(), E>,
    ) -> Result<(), E> {
        let disk = self.shared.disk()?;
        let cut = disk.cut();
        let all = |table| cut.range(table, Bound::Included(keys::space(space)), keys::space_end(space));
        let marks = (keys::mark(space, 0), keys::mark(space, u64::MAX));
        for guard in cut.range(Table::Spaces, Bound::Included(marks.0), marks.1) {
            let (key, value) = guard.into_inner().map_err(told)?;
            let mark = keys::mark_time(space, &key).zip(Seq::decode(&value));
            let (at, seq) = mark.ok_or_else(|| damaged(Table::Spaces, &key))?;
            each(Piece::Mark(at, seq))?;
        }
        for guard in all(Table::Idx) {
            let key = guard.key().map_err(told)?;
            let (seq, doc) = keys::idx_parts(space, &key).ok_or_else(|| damaged(Table::Idx, &key))?;
            let state = document(&cut, space, &doc)?;
            if state.header.is_none_or(|header| header.last.seq != seq) {
                return Err(damaged(Table::Idx, &key).into());
            }
            each(Piece::Doc(doc, state))?;
        }
        for guard in all(Table::Log) {
            let (key, payload) = guard.into_inner().map_err(told)?;
            let seq = keys::log_seq(&key).ok_or_else(|| damaged(Table::Log, &key))?;
            let payload = Bytes::copy_from_slice(&payload);
            each(Piece::Commit(LogEntry { seq, payload }))?;
        }
        for guard in all(Table::Conflicts) {
            let (key, value) = guard.into_inner().map_err(told)?;
            let record = ConflictRecord::decode(&value).ok_or_else(|| damaged(Table::Conflicts, &key))?;
            each(Piece::Conflict(record))?;
        }
        for guard in all(Table::Clients) {
            let (key, value) = guard.into_inner().map_err(told)?;
            let client = keys::client_writer(&key).zip(Client::decode(&value));
            let (writer, client) = client.ok_or_else(|| damaged(Table::Clients, &key))?;
            for (mid, key, kept) in kept(&cut, space, writer, &client)? {
                each(Piece::Result(writer, mid, key, kept))?;
            }
            let Client {
                last, key, when, user, ..
            } = client;
            each(Piece::Client(ClientRecord {
                writer,
                last,
                key,
                when,
                user,
            }))?;
        }
        for guard in all(Table::Users) {
            let key = guard.key().map_err(told)?;
            let user = key
                .get(space.as_str().len() + 1..)
                .and_then(|rest| rest.first_chunk::<8>());
            let user = user.map(|user| UserTag(u64::from_be_bytes(*user)));
            let (user, writer) = user
                .zip(keys::user_writer(&key))
                .ok_or_else(|| damaged(Table::Users, &key))?;
            each(Piece::User(user, writer))?;
        }
        Ok(())
    }
}

/// The results that are kept of a client's mutations.
fn kept(
    cut: &Cut<'_>,
    space: &SpaceId,
    writer: Writer,
    client: &Client,
) -> Result<Vec<(Mid, MutationKey, Kept)>, StoreError> {
    let least = client.last.get().saturating_sub(crate::store::KEPT_RESULTS) + 1;
    let mids = (least..=client.last.get())
        .filter_map(Mid::new)
        .filter(|mid| *mid > Mid::ZERO);
    let mut found = vec![];
    for mid in mids {
        let result = results::look(cut, space, (writer, client), mid)?;
        found.extend(result.map(|result| (mid, result.key, result.kept)));
    }
    Ok(found)
}
