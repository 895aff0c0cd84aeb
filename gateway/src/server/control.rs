//! The control socket: how the command line reaches a gateway that runs on a data directory.
//!
//! A Unix socket in that directory, for its owner alone: who may open the file may do everything. A
//! connection is one request, a line of JSON, and its answer: a line of JSON, `{"ok":…}` or
//! `{"error":"…"}`, and after that of `backup` the backup itself, which ends with its own end.

use crate::engine::Engine;
use crate::store::embedded::{self, EmbeddedStore};
use crate::store::{Erase, Erased, StoreError, UserTag};
use serde::{Deserialize, Serialize};
use std::fs::{self, DirBuilder, File, Permissions};
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tidegate_protocol::SpaceId;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

/// The socket's name in the data directory.
const SOCKET: &str = "control.sock";
/// A directory of the owner's alone, in which the socket is made before it is moved to its place.
const FRESH: &str = "control.new";
/// Bytes that a path may have to be a socket's address: the least that systems allow, less some.
const ADDRESS_BYTES: usize = 100;
/// Bytes of a request at most; over it, an error.
const LINE_BYTES: u64 = 64 << 10;
/// How long a request may take to arrive; over it, an error.
const REQUEST_TIME: Duration = Duration::from_secs(5);
/// How long whoever asked may take nothing of the answer; over it, the connection ends.
pub const STALLED: Duration = Duration::from_secs(60);
/// How long a backup that is broken off may take to say so.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// Connections served at a time; over it, they wait to be accepted.
const CONNECTIONS: usize = 16;
/// Pieces of a backup that wait for the connection.
const PIECES: usize = 4;

/// What can be asked for.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
#[serde(tag = "command", rename_all = "lowercase", deny_unknown_fields)]
pub enum Request {
    /// The whole store as of now; one at a time.
    Backup {},
    /// Erases a space, or all data of a user in it. The answer comes when it is done, and is an
    /// [`ErasedCounts`]. What has begun goes on when the asker hangs up; who asks for the same again waits
    /// for that one.
    Erase {
        /// The space.
        space: String,
        /// The user; `None` is everybody, and the space itself.
        user: Option<String>,
    },
}

/// What an erasure has removed.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct ErasedCounts {
    /// Documents, deleted ones too.
    pub docs: u64,
    /// Cells, tombstones too.
    pub cells: u64,
    /// Commits from the log.
    pub commits: u64,
    /// Entries of the conflict log.
    pub conflicts: u64,
    /// Clients that are told that they are unknown.
    pub clients: u64,
}

impl From<Erased> for ErasedCounts {
    fn from(erased: Erased) -> Self {
        let Erased {
            docs,
            cells,
            commits,
            conflicts,
            clients,
        } = erased;
        Self {
            docs,
            cells,
            commits,
            conflicts,
            clients,
        }
    }
}

/// What to erase: a space, or (`user`) a user's data in it.
pub fn to_erase(space: &str, user: Option<&str>) -> Result<(SpaceId, Erase), String> {
    let space = SpaceId::parse(space).map_err(|error| error.to_string())?;
    Ok((space, user.map_or(Erase::Space, |user| Erase::User(UserTag::of(user)))))
}

/// The line that answers.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
#[serde(rename_all = "lowercase")]
pub enum Answer<T> {
    /// It was done, or follows.
    Ok(T),
    /// It was not, and why.
    Error(String),
}

/// Nothing to say beyond `ok`.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct Done {}

/// The address of a data directory's control socket. One whose path is too long is reached through the
/// directory's handle, which has to live as long as the address is used.
pub fn address(dir: &Path) -> io::Result<(Option<File>, PathBuf)> {
    let path = dir.join(SOCKET);
    if path.as_os_str().len() <= ADDRESS_BYTES {
        return Ok((None, path));
    }
    let handle = File::open(dir)?;
    let short = PathBuf::from(format!("/proc/self/fd/{}", handle.as_raw_fd()));
    match short.is_dir() {
        true => Ok((Some(handle), short.join(SOCKET))),
        false => Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("a socket's path may have {ADDRESS_BYTES} bytes here, this one is longer"),
        )),
    }
}

/// A control socket that is listened on; removed when dropped.
pub struct Control {
    listener: UnixListener,
    path: PathBuf,
}

impl Control {
    /// Listens in a data directory, which this process has taken: a socket that is there is one left
    /// behind, and is replaced. Needs a runtime.
    pub fn bind(dir: &Path) -> io::Result<Self> {
        let fresh = dir.join(FRESH);
        match fs::remove_dir_all(&fresh) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        // Nobody else can reach the socket before it has its mode.
        DirBuilder::new().mode(0o700).create(&fresh)?;
        let (handle, address) = address(&fresh)?;
        let listener = UnixListener::bind(address)?;
        drop(handle);
        fs::set_permissions(fresh.join(SOCKET), Permissions::from_mode(0o600))?;
        let path = dir.join(SOCKET);
        fs::rename(fresh.join(SOCKET), &path)?;
        fs::remove_dir(&fresh)?;
        Ok(Self { listener, path })
    }

    /// Answers until `stop`; what is under way then is broken off. A backup whose reader takes nothing for
    /// as long as `stalled` is, too: [`STALLED`], unless for a test.
    pub async fn run(self, store: Arc<EmbeddedStore>, engine: Arc<Engine>, stalled: Duration, stop: CancellationToken) {
        let commands = Arc::new(Commands {
            store,
            engine,
            stalled,
            backup: Semaphore::new(1),
            stop: stop.clone(),
        });
        let room = Arc::new(Semaphore::new(CONNECTIONS));
        let mut connections = JoinSet::new();
        loop {
            while connections.try_join_next().is_some() {}
            let accepted = stop.run_until_cancelled(async {
                let place = room.clone().acquire_owned().await;
                (self.listener.accept().await, place)
            });
            match accepted.await {
                None => break,
                Some((Ok((connection, _)), place)) => {
                    let commands = commands.clone();
                    connections.spawn(async move {
                        let _place = place;
                        if let Err(error) = commands.serve(connection).await {
                            tracing::debug!(%error, "a control connection ended");
                        }
                    });
                }
                Some((Err(error), _)) => {
                    // Out of file descriptors or memory: accepting at once would spin.
                    tracing::warn!(%error, "cannot accept control connections");
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            }
        }
        while connections.join_next().await.is_some() {}
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// What requests are served with.
struct Commands {
    store: Arc<EmbeddedStore>,
    engine: Arc<Engine>,
    stalled: Duration,
    backup: Semaphore,
    stop: CancellationToken,
}

impl Commands {
    async fn serve(&self, mut connection: UnixStream) -> io::Result<()> {
        let request = self
            .stop
            .run_until_cancelled(timeout(REQUEST_TIME, request(&mut connection)));
        let request = match request.await {
            None => Err("the gateway is stopping".to_owned()),
            Some(Err(_)) => Err(format!("no request came within {} s", REQUEST_TIME.as_secs())),
            Some(Ok(request)) => request?,
        };
        match request {
            Ok(Request::Backup {}) => match self.backup.try_acquire() {
                Ok(_turn) => self.backup(&mut connection).await,
                Err(_) => refuse(&mut connection, "another backup is under way").await,
            },
            Ok(Request::Erase { space, user }) => match to_erase(&space, user.as_deref()) {
                Ok((space, whom)) => self.erase(&mut connection, &space, whom).await,
                Err(why) => refuse(&mut connection, &why).await,
            },
            Err(why) => refuse(&mut connection, &why).await,
        }
    }

    async fn erase(&self, connection: &mut UnixStream, space: &SpaceId, whom: Erase) -> io::Result<()> {
        // Not the user: a log outlives what is erased.
        tracing::info!(%space, "an erasure is asked for");
        // To its end also if the asker hangs up: subscribers are to be told of it.
        let erasing = self.engine.erase(space, whom);
        match self.stop.run_until_cancelled(erasing).await {
            Some(Ok(erased)) => answer(connection, &Answer::Ok(ErasedCounts::from(erased))).await,
            Some(Err(why)) => refuse(connection, &why.to_string()).await,
            None => {
                refuse(
                    connection,
                    "the gateway is stopping; what it has begun to erase, it erases when it runs again",
                )
                .await
            }
        }
    }

    async fn backup(&self, connection: &mut UnixStream) -> io::Result<()> {
        tracing::info!("a backup begins");
        answer(connection, &Answer::Ok(Done {})).await?;
        let (sender, pieces) = mpsc::channel(PIECES);
        let (made, sent) = tokio::join!(self.store.backup(sender), self.send(connection, pieces));
        let sent = sent.inspect_err(|error| tracing::warn!(%error, "a backup was broken off"))?;
        if !sent {
            return break_off(
                connection,
                &StoreError::Unavailable("the gateway is stopping".to_owned()),
            )
            .await;
        }
        match made {
            Ok(done) => {
                tracing::info!(
                    spaces = done.spaces,
                    records = done.records,
                    bytes = done.bytes,
                    "a backup was made"
                );
                Ok(())
            }
            Err(error) => {
                tracing::warn!(%error, "a backup was broken off");
                break_off(connection, &error).await
            }
        }
    }

    /// Hands pieces on as they come. Returns whether that is all of them: not if the gateway stops.
    async fn send(&self, connection: &mut UnixStream, mut pieces: mpsc::Receiver<bytes::Bytes>) -> io::Result<bool> {
        while let Some(piece) = self.stop.run_until_cancelled(pieces.recv()).await {
            let Some(piece) = piece else { return Ok(true) };
            match self
                .stop
                .run_until_cancelled(send(connection, &piece, self.stalled))
                .await
            {
                Some(sent) => sent?,
                // Some of the piece may be on its way: nothing can follow it.
                None => return Err(io::Error::other("the gateway is stopping")),
            }
        }
        Ok(false)
    }
}

/// Reads a request. The inner error is for the one who asks.
async fn request(connection: &mut UnixStream) -> io::Result<Result<Request, String>> {
    let mut line = Vec::new();
    BufReader::new(connection.take(LINE_BYTES))
        .read_until(b'\n', &mut line)
        .await?;
    Ok(match line.pop() {
        Some(b'\n') => serde_json::from_slice(&line).map_err(|error| format!("that is no request: {error}")),
        Some(_) if line.len() as u64 + 1 >= LINE_BYTES => {
            Err(format!("a request is a line of {LINE_BYTES} bytes at most"))
        }
        _ => Err("the request ends before its line does".to_owned()),
    })
}

async fn refuse(connection: &mut UnixStream, why: &str) -> io::Result<()> {
    answer(connection, &Answer::<Done>::Error(why.to_owned())).await
}

/// Ends a backup with the reason, if the connection takes that at once.
async fn break_off(connection: &mut UnixStream, why: &StoreError) -> io::Result<()> {
    timeout(LAST_WORDS, connection.write_all(&embedded::broken_off(why)))
        .await
        .unwrap_or(Ok(()))
}

async fn answer<T: Serialize>(connection: &mut UnixStream, answer: &Answer<T>) -> io::Result<()> {
    let mut line = serde_json::to_vec(answer)?;
    line.push(b'\n');
    send(connection, &line, STALLED).await
}

async fn send(connection: &mut UnixStream, bytes: &[u8], stalled: Duration) -> io::Result<()> {
    match timeout(stalled, connection.write_all(bytes)).await {
        Ok(sent) => sent,
        Err(_) => Err(io::Error::new(
            io::ErrorKind::TimedOut,
            "nothing was taken for too long",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::DevAuthoriser;
    use crate::env::{Env, SystemEnv};
    use crate::server::{Parts, Server, ServerConfig};
    use crate::store::embedded::{Durability, EmbeddedOptions, RESERVE_BYTES};
    use crate::store::{Action, CommitGroup, Effects, Prepared, Retention, Store as _};
    use tidegate_protocol::{Epoch, Mid, MutationKey, Writer};

    /// A commit of some size.
    fn large() -> CommitGroup {
        let effects = Effects {
            body: vec![0; 8 << 20].into(),
            ..Effects::default()
        };
        let item = Prepared {
            writer: Writer(1),
            user: UserTag(1),
            mid: Mid::ZERO.next(),
            key: MutationKey(1),
            prev: None,
            first: None,
            expects: vec![],
            action: Action::Apply(effects),
        };
        CommitGroup {
            space: SpaceId::parse("s").expect("valid"),
            planned_on: Epoch(0),
            fresh: Epoch(1),
            now_ms: 1,
            items: vec![item],
        }
    }

    #[tokio::test]
    async fn a_backup_whose_reader_takes_nothing_for_long_enough_ends_and_the_next_has_its_turn() {
        let dir = tempfile::tempdir().expect("a folder");
        let env: Arc<dyn Env> = Arc::new(SystemEnv);
        let options = EmbeddedOptions {
            durability: Durability::Memory,
            retention: Retention::default(),
            reserve_bytes: RESERVE_BYTES,
            env: env.clone(),
        };
        let store = Arc::new(embedded::open(dir.path(), options).expect("opens"));
        // More than the pieces and buffers on the way hold.
        store.commit(large()).await.expect("answers");
        let control = Control::bind(dir.path()).expect("listens");
        let (stalled, stop) = (Duration::from_millis(300), CancellationToken::new());
        let mut running = JoinSet::new();
        let parts = Parts {
            store: store.clone(),
            authoriser: Arc::new(DevAuthoriser),
            env,
            bus: None,
            metrics: Arc::default(),
        };
        let engine = Server::new(parts, ServerConfig::default()).engine();
        running.spawn(control.run(store, engine, stalled, stop.clone()));
        let ask = async || {
            let (_, address) = address(dir.path()).expect("short");
            let mut socket = UnixStream::connect(address).await.expect("connects");
            socket.write_all(b"{\"command\":\"backup\"}\n").await.expect("written");
            let mut line = [0; 10];
            socket.read_exact(&mut line).await.expect("an answer");
            (socket, String::from_utf8_lossy(&line).into_owned())
        };
        let (mut slow, line) = ask().await;
        assert!(line.starts_with("{\"ok\""), "{line}");
        let begun = tokio::time::Instant::now();
        while !ask().await.1.starts_with("{\"ok\"") {
            assert!(begun.elapsed() < Duration::from_secs(20), "it does not end");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert!(begun.elapsed() >= stalled, "it was given its time");
        let mut rest = Vec::new();
        slow.read_to_end(&mut rest).await.expect("it was ended");
        assert!(embedded::verify(&rest[1..]).is_err(), "what came of it is no backup");
        stop.cancel();
        running.join_next().await.expect("one").expect("ends");
    }
}
