//! What the command line remembers from one run to the next: for each gateway, user and space one
//! client id with its next mid, and what was sent under it and is unanswered.
//!
//! One small file each, locked while a command writes to that space. It is replaced as a whole, and is
//! on disk before the first byte of a mutation is sent: after a crash the next run sends the same
//! mutation again under the same mid, so that it is applied once.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use tidegate_client::storage::{Storage, StorageError, Stored, StoredSpace, Transaction};
use tidegate_client::sync::{Identity, Mutation, MutationId, Seal};
use tidegate_client::url::GatewayUrl;
use tidegate_protocol::{ClientId, ClientMessage, Limits, Mid, MutationKey, SpaceId, Writer, msgpack};

/// The file's form. Another one is refused, not guessed at.
const FORMAT: u32 = 1;

/// The state folder: `$XDG_STATE_HOME/tidegate`, else `~/.local/state/tidegate`. `variable` reads the environment.
pub(crate) fn folder(variable: impl Fn(&str) -> Option<PathBuf>) -> Result<PathBuf, String> {
    // The XDG specification ignores relative paths.
    let absolute = |name: &str| variable(name).filter(|path| path.is_absolute());
    absolute("XDG_STATE_HOME")
        .or_else(|| absolute("HOME").map(|home| home.join(".local/state")))
        .map(|state| state.join("tidegate"))
        .ok_or_else(|| "there is no home folder to keep the client id in: set HOME or XDG_STATE_HOME".into())
}

/// The file of one gateway, user and space, locked.
#[derive(Debug)]
pub(crate) struct StateFile {
    path: PathBuf,
    _lock: File,
    space: SpaceId,
    about: About,
    kept: StoredSpace,
    /// What the file holds.
    written: Vec<u8>,
}

/// Whose state it is, for a person who looks into the file.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
struct About {
    gateway: String,
    user: String,
    space: String,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileForm {
    format: u32,
    about: About,
    client: Option<ClientForm>,
    unanswered: Vec<MutationForm>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ClientForm {
    /// As text: JSON tools round numbers beyond 2^53.
    id: String,
    next_mid: u64,
    last_key: Option<String>,
    acked: u64,
    acked_at: u64,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct MutationForm {
    number: u64,
    made_at: u64,
    writer: String,
    /// The `write` message as MessagePack, in base64.
    write: String,
}

impl StateFile {
    /// Opens and locks the file; `waiting` is called if another process has it.
    pub(crate) fn open(
        folder: &Path,
        gateway: &GatewayUrl,
        user: &str,
        space: &SpaceId,
        waiting: impl FnOnce(),
    ) -> Result<Self, String> {
        let about = About {
            gateway: gateway.to_string(),
            user: user.into(),
            space: space.to_string(),
        };
        let path = folder.join("clients").join(format!("{}.json", name(&about)));
        Self::open_at(path, about, space, waiting)
    }

    fn open_at(path: PathBuf, about: About, space: &SpaceId, waiting: impl FnOnce()) -> Result<Self, String> {
        let failed = |e: io::Error| format!("cannot keep the client id in {}: {e}", path.display());
        if let Some(folder) = path.parent() {
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(folder)
                .map_err(failed)?;
        }
        // The lock is a file of its own: the state file is replaced by every write.
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(path.with_extension("lock"))
            .map_err(failed)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                waiting();
                lock.lock().map_err(failed)?;
            }
            Err(TryLockError::Error(e)) => return Err(failed(e)),
        }
        let (written, kept) = match fs::read(&path) {
            Ok(bytes) => {
                let kept = read(&bytes, &about).map_err(|why| {
                    format!(
                        "{}: {why}. Move it away, and the next write takes a new client id.",
                        path.display()
                    )
                })?;
                (bytes, kept)
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => (Vec::new(), StoredSpace::default()),
            Err(e) => return Err(failed(e)),
        };
        Ok(Self {
            path,
            _lock: lock,
            space: space.clone(),
            about,
            kept,
            written,
        })
    }

    /// Mutations of an earlier run that were sent and not answered.
    pub(crate) fn unanswered(&self) -> BTreeSet<MutationId> {
        self.kept.queue.keys().copied().collect()
    }

    fn write(&mut self) -> io::Result<()> {
        let form = FileForm {
            format: FORMAT,
            about: self.about.clone(),
            client: self.kept.identity.map(|identity| ClientForm {
                id: identity.client.to_string(),
                next_mid: identity.next_mid.get(),
                last_key: identity.last_key.map(|key| key.to_string()),
                acked: identity.acked.get(),
                acked_at: identity.acked_at,
            }),
            unanswered: self
                .kept
                .queue
                .values()
                .filter_map(|m| mutation_form(&self.space, m))
                .collect(),
        };
        let mut bytes = serde_json::to_vec_pretty(&form)?;
        bytes.push(b'\n');
        if bytes == self.written {
            return Ok(());
        }
        let new = self.path.with_extension("new");
        let mut file = OpenOptions::new()
            .create(true)
            .truncate(true)
            .write(true)
            .mode(0o600)
            .open(&new)?;
        file.write_all(&bytes)?;
        file.sync_all()?;
        fs::rename(&new, &self.path)?;
        if let Some(folder) = self.path.parent() {
            File::open(folder)?.sync_all()?;
        }
        self.written = bytes;
        Ok(())
    }
}

impl Storage for StateFile {
    fn load(&mut self) -> Result<Stored, StorageError> {
        let user = Some(self.about.user.clone());
        Ok(Stored {
            user,
            spaces: BTreeMap::from([(self.space.clone(), self.kept.clone())]),
        })
    }

    /// Keeps the identity and what was sent. Documents are not kept: every command reads afresh. Nor is
    /// what was never sent: its command has failed, and said so.
    fn commit(&mut self, transaction: Transaction) -> Result<(), StorageError> {
        let mut spaces = transaction.spaces.into_iter();
        let Some((_, changes)) = spaces.find(|(space, _)| *space == self.space) else {
            return Ok(());
        };
        if let Some(identity) = changes.identity {
            self.kept.identity = Some(identity);
        }
        for (id, mutation) in changes.queue {
            match mutation.filter(Mutation::is_queued) {
                Some(mutation) if mutation.seal.is_some() => {
                    self.kept.queue.insert(id, mutation);
                }
                // The client has a new id, under which it is about to be numbered: until then the file has it
                // as it was sent.
                Some(_) if self.kept.queue.contains_key(&id) => {}
                _ => {
                    self.kept.queue.remove(&id);
                }
            }
        }
        self.write()
            .map_err(|e| StorageError(format!("{}: {e}", self.path.display())))
    }
}

/// The file's name: three texts of any characters, in a form that every file system takes.
fn name(about: &About) -> String {
    let digest = Sha256::digest(format!("{}\0{}\0{}", about.gateway, about.user, about.space));
    digest[..16].iter().map(|byte| format!("{byte:02x}")).collect()
}

fn mutation_form(space: &SpaceId, mutation: &Mutation) -> Option<MutationForm> {
    let seal = mutation.seal?;
    let write = ClientMessage::Write(tidegate_protocol::Write {
        head: tidegate_protocol::WriteHead {
            space: space.clone(),
            client: seal.client,
            mid: seal.mid,
            key: seal.key,
            prev: seal.prev,
            first: seal.first,
        },
        base: mutation.base,
        policy: mutation.policy,
        ops: mutation.ops.to_vec(),
    });
    Some(MutationForm {
        number: mutation.id.0,
        made_at: mutation.made_at,
        writer: seal.writer.to_string(),
        write: BASE64.encode(msgpack::encode_client(&write)),
    })
}

/// What was sent once was within the limits of its gateway, which may be wider than the default ones.
fn unlimited() -> Limits {
    Limits {
        message_bytes: usize::MAX,
        doc_bytes: usize::MAX,
        ops: usize::MAX,
        elements: usize::MAX,
        field_bytes: usize::MAX,
        depth: tidegate_protocol::limits::DEPTH_MAX,
        ..Limits::default()
    }
}

fn read(bytes: &[u8], about: &About) -> Result<StoredSpace, String> {
    let damaged = |what: &str| format!("is damaged: {what}");
    let form: FileForm = serde_json::from_slice(bytes).map_err(|e| damaged(&e.to_string()))?;
    if form.format != FORMAT {
        return Err(format!("has format {}, and this program knows {FORMAT}", form.format));
    }
    if form.about != *about {
        return Err(damaged("it is about another space"));
    }
    let hex = |text: &str| u64::from_str_radix(text, 16).map_err(|_| damaged("an id is not hexadecimal"));
    let mid = |n: u64| Mid::new(n).ok_or_else(|| damaged("a mid is out of range"));
    let identity = match form.client {
        None => None,
        Some(client) => Some(Identity {
            client: ClientId(hex(&client.id)?),
            next_mid: mid(client.next_mid)?,
            last_key: client.last_key.as_deref().map(hex).transpose()?.map(MutationKey),
            acked: mid(client.acked)?,
            acked_at: client.acked_at,
        }),
    };
    let mut queue = BTreeMap::new();
    for mutation in form.unanswered {
        let bytes = BASE64
            .decode(&mutation.write)
            .map_err(|_| damaged("a mutation is not base64"))?;
        let size = bytes.len();
        let write = msgpack::decode_client(&bytes, &unlimited()).map_err(|e| damaged(&format!("a mutation: {e}")))?;
        let ClientMessage::Write(write) = write else {
            return Err(damaged("a mutation is none"));
        };
        let id = MutationId(mutation.number);
        let seal = Seal {
            client: write.head.client,
            writer: Writer(hex(&mutation.writer)?),
            mid: write.head.mid,
            key: write.head.key,
            prev: write.head.prev,
            first: write.head.first,
        };
        let mutation = Mutation {
            id,
            ops: write.ops.into(),
            policy: write.policy,
            base: write.base,
            made_at: mutation.made_at,
            // Of another client than the present one: it waits for its number under that.
            seal: Some(seal).filter(|seal| identity.is_some_and(|identity| identity.client == seal.client)),
            answer: None,
            overlaid: true,
            size,
        };
        queue.insert(id, mutation);
    }
    Ok(StoredSpace {
        identity,
        queue,
        ..StoredSpace::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use tidegate_client::storage::SpaceChanges;
    use tidegate_protocol::{DocPath, FieldPath, Fields, Op, OpKind, Position, Value};

    fn open(folder: &Path, user: &str) -> Result<StateFile, String> {
        let url = GatewayUrl::parse("ws://127.0.0.1:8080").expect("valid");
        let space = SpaceId::parse("demo").expect("valid");
        StateFile::open(folder, &url, user, &space, || panic!("nobody else has it"))
    }

    fn mutation(number: u64, mid: Option<u64>) -> Mutation {
        let path = FieldPath::parse("a").expect("valid");
        let fields = Fields::new([(path, Value::int(1))], &Limits::default()).expect("valid");
        let doc = DocPath::parse("notes/n1").expect("valid");
        let seal = mid.map(|mid| Seal {
            client: ClientId(u64::MAX),
            writer: Writer(9),
            mid: Mid::new(mid).expect("small"),
            key: MutationKey(mid),
            prev: (mid > 1).then(|| MutationKey(mid - 1)),
            first: (mid == 1).then_some(77),
        });
        Mutation {
            id: MutationId(number),
            ops: Arc::from([Op {
                doc,
                kind: OpKind::Set(fields),
                exists: None,
                unchanged_since: None,
            }]),
            policy: None,
            base: None,
            made_at: 5,
            seal,
            answer: None,
            overlaid: true,
            size: 0,
        }
    }

    fn commit(file: &mut StateFile, identity: Option<Identity>, queue: &[(u64, Option<Mutation>)]) {
        let queue = queue
            .iter()
            .map(|(number, mutation)| (MutationId(*number), mutation.clone()))
            .collect();
        let changes = SpaceChanges {
            identity,
            queue,
            ..SpaceChanges::default()
        };
        let spaces = vec![(file.space.clone(), changes)];
        file.commit(Transaction { user: None, spaces }).expect("written");
    }

    fn identity(next_mid: u64) -> Identity {
        let mut identity = Identity::new(ClientId(u64::MAX));
        identity.next_mid = Mid::new(next_mid).expect("small");
        identity.last_key = (next_mid > 1).then(|| MutationKey(next_mid - 1));
        identity
    }

    #[test]
    fn what_was_sent_and_not_answered_is_there_again_after_a_crash_byte_for_byte() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut file = open(folder.path(), "dev").expect("opened");
        assert_eq!(
            file.load().expect("empty").spaces.values().next().expect("the space"),
            &StoredSpace::default()
        );
        commit(
            &mut file,
            Some(identity(3)),
            &[
                (0, Some(mutation(0, Some(1)))),
                (1, Some(mutation(1, Some(2)))),
                (2, Some(mutation(2, None))),
            ],
        );
        drop(file);

        let mut file = open(folder.path(), "dev").expect("opened");
        let kept = file
            .load()
            .expect("kept")
            .spaces
            .into_values()
            .next()
            .expect("the space");
        assert_eq!(kept.identity, Some(identity(3)));
        assert_eq!(kept.queue.len(), 2, "what was never sent is not kept");
        for (number, kept) in &kept.queue {
            let sent = mutation(number.0, Some(number.0 + 1));
            assert_eq!(
                *kept,
                Mutation {
                    size: kept.size,
                    ..sent.clone()
                }
            );
            assert_eq!(
                mutation_form(&file.space, kept).map(|form| form.write),
                mutation_form(&file.space, &sent).map(|form| form.write)
            );
        }
        let answered = Mutation {
            answer: Some(Position::START),
            ..mutation(1, Some(2))
        };
        commit(&mut file, None, &[(0, None), (1, Some(answered))]);
        drop(file);
        assert_eq!(
            open(folder.path(), "dev").expect("opened").unanswered(),
            BTreeSet::new()
        );
    }

    #[test]
    fn each_user_has_a_file_and_a_file_is_one_process_s_at_a_time() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut first = open(folder.path(), "dev").expect("opened");
        commit(&mut first, Some(identity(2)), &[]);
        let mut other = open(folder.path(), "alice").expect("another file, not locked");
        assert_eq!(
            other
                .load()
                .expect("empty")
                .spaces
                .values()
                .next()
                .expect("the space")
                .identity,
            None
        );

        let (waits, waited) = std::sync::mpsc::channel();
        std::thread::scope(|scope| {
            let folder = folder.path();
            let second = scope.spawn(move || {
                let url = GatewayUrl::parse("ws://127.0.0.1:8080").expect("valid");
                let space = SpaceId::parse("demo").expect("valid");
                let mut file =
                    StateFile::open(folder, &url, "dev", &space, || waits.send(()).expect("heard")).expect("opened");
                file.load()
                    .expect("kept")
                    .spaces
                    .into_values()
                    .next()
                    .expect("the space")
                    .identity
            });
            waited.recv().expect("it waits");
            commit(&mut first, Some(identity(5)), &[]);
            drop(first);
            assert_eq!(
                second.join().expect("it ends"),
                Some(identity(5)),
                "it sees what the first wrote"
            );
        });
    }

    #[test]
    fn an_earlier_command_s_write_is_kept_while_it_waits_for_its_number_under_a_new_id() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut file = open(folder.path(), "dev").expect("opened");
        commit(&mut file, Some(identity(2)), &[(0, Some(mutation(0, Some(1))))]);
        let new = Identity::new(ClientId(7));
        commit(&mut file, Some(new), &[(0, Some(mutation(0, None)))]);
        drop(file);

        let mut file = open(folder.path(), "dev").expect("opened");
        let kept = file.load().expect("kept").spaces;
        let kept = kept.into_values().next().expect("the space");
        assert_eq!(kept.identity, Some(new));
        let again = &kept.queue[&MutationId(0)];
        assert_eq!((&again.ops, again.seal), (&mutation(0, None).ops, None));
        // The next that is answered leaves, as any other.
        commit(&mut file, None, &[(0, None)]);
        assert_eq!(file.unanswered(), BTreeSet::new());
    }

    #[test]
    fn what_a_gateway_with_wider_limits_was_sent_is_read_again() {
        let wide = Limits {
            depth: tidegate_protocol::limits::DEPTH_MAX,
            field_bytes: 4_096,
            ..Limits::default()
        };
        let deep = (0..40).fold(Value::int(1), |value, _| Value::array([value].iter()));
        let path = FieldPath::parse(&"x".repeat(1_000)).expect("valid");
        let mut sent = mutation(0, Some(1));
        let [op] = Arc::get_mut(&mut sent.ops).expect("nobody else's") else {
            panic!("one op")
        };
        op.kind = OpKind::Set(Fields::new([(path, deep)], &wide).expect("valid"));
        let folder = tempfile::tempdir().expect("a folder");
        let mut file = open(folder.path(), "dev").expect("opened");
        commit(&mut file, Some(identity(2)), &[(0, Some(sent))]);
        drop(file);
        assert_eq!(open(folder.path(), "dev").expect("opened").unanswered().len(), 1);
    }

    #[test]
    fn a_damaged_file_is_named_and_not_guessed_at() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut file = open(folder.path(), "dev").expect("opened");
        commit(&mut file, Some(identity(2)), &[]);
        let path = file.path.clone();
        drop(file);
        let good = fs::read_to_string(&path).expect("readable");
        for (bad, wants) in [
            (good[..good.len() / 2].to_owned(), "damaged"),
            (String::new(), "damaged"),
            (good.replace("\"format\": 1", "\"format\": 2"), "has format 2"),
            (good.replace("\"dev\"", "\"eve\""), "another"),
        ] {
            fs::write(&path, bad).expect("written");
            let error = open(folder.path(), "dev")
                .map(|file| file.unanswered())
                .expect_err(wants);
            assert!(
                error.contains(wants) && error.contains(&path.display().to_string()),
                "{error}"
            );
        }
    }

    #[test]
    fn the_state_folder_follows_xdg() {
        let of = |state: Option<&str>, home: Option<&str>| {
            folder(|name| if name == "HOME" { home } else { state }.map(PathBuf::from))
        };
        assert_eq!(of(Some("/s"), Some("/h")), Ok("/s/tidegate".into()));
        assert_eq!(of(Some("relative"), Some("/h")), Ok("/h/.local/state/tidegate".into()));
        assert!(of(None, None).is_err());
    }
}
