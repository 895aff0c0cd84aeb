//! What stands between a gateway and its store, or its clients, and does what it is told.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tidegate::store::{
    Begun, ChangesReply, ChangesRequest, CommitGroup, Committed, ConflictRecord, Erase, Erased, Lineage, LogReply,
    Outcome, ReadCut, SpaceState, Store, StoreError, Usage,
};
use tidegate_protocol::*;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};

/// A store that can hold an answer back: what it read is then old by the time it is used.
pub struct Gate {
    store: Arc<dyn Store>,
    armed: std::sync::Mutex<Vec<Hold>>,
    /// Whether reads for catch-ups are refused, as those of a space that is being erased are.
    pub closed: std::sync::atomic::AtomicBool,
    /// Whether everything else fails, before the store has been asked.
    pub failing: std::sync::atomic::AtomicBool,
    /// So many of the next commits are answered that what they were planned on does not hold.
    pub stale: AtomicU64,
}

struct Hold {
    call: &'static str,
    reached: tokio::sync::oneshot::Sender<()>,
    go: tokio::sync::oneshot::Receiver<()>,
}

impl Gate {
    pub fn new(store: Arc<dyn Store>) -> Arc<Self> {
        Arc::new(Self {
            store,
            armed: std::sync::Mutex::default(),
            closed: std::sync::atomic::AtomicBool::new(false),
            failing: std::sync::atomic::AtomicBool::new(false),
            stale: AtomicU64::new(0),
        })
    }

    /// Holds the answer of the next such call: the first end tells that it has been read, the second lets it go.
    pub fn hold(&self, call: &'static str) -> (tokio::sync::oneshot::Receiver<()>, tokio::sync::oneshot::Sender<()>) {
        let (reached, was_reached) = tokio::sync::oneshot::channel();
        let (let_go, go) = tokio::sync::oneshot::channel();
        self.armed.lock().unwrap().push(Hold { call, reached, go });
        (was_reached, let_go)
    }

    fn open(&self) -> Result<(), StoreError> {
        match self.closed.load(Ordering::Relaxed) {
            true => Err(StoreError::Unavailable("closed".into())),
            false => Ok(()),
        }
    }

    fn works(&self) -> Result<(), StoreError> {
        match self.failing.load(Ordering::Relaxed) {
            true => Err(StoreError::Unavailable("failing".into())),
            false => Ok(()),
        }
    }

    async fn pass(&self, call: &'static str) {
        let hold = {
            let mut armed = self.armed.lock().unwrap();
            armed
                .iter()
                .position(|hold| hold.call == call)
                .map(|index| armed.remove(index))
        };
        if let Some(hold) = hold {
            hold.reached.send(()).unwrap();
            let _ = hold.go.await;
        }
    }
}

#[async_trait::async_trait]
impl Store for Gate {
    async fn commit(&self, group: CommitGroup) -> Result<Committed, StoreError> {
        self.works()?;
        let left = |left: u64| left.checked_sub(1);
        if self
            .stale
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, left)
            .is_ok()
        {
            let stale = |_| Outcome::Stale { last_ms: 0 };
            return Ok(Committed {
                outcomes: group.items.iter().map(stale).collect(),
                lineage: Lineage::default(),
            });
        }
        let answer = self.store.commit(group).await;
        self.pass("commit").await;
        answer
    }
    async fn read(&self, space: &SpaceId, docs: &[DocPath]) -> Result<ReadCut, StoreError> {
        self.works()?;
        let answer = self.store.read(space, docs).await;
        self.pass("read").await;
        answer
    }
    async fn log(
        &self,
        space: &SpaceId,
        after: Position,
        limit: usize,
        bytes: usize,
        writer: Option<Writer>,
    ) -> Result<LogReply, StoreError> {
        self.open()?;
        let answer = self.store.log(space, after, limit, bytes, writer).await;
        self.pass("log").await;
        answer
    }
    async fn changes(&self, space: &SpaceId, request: ChangesRequest) -> Result<ChangesReply, StoreError> {
        self.open()?;
        let answer = self.store.changes(space, request).await;
        self.pass("changes").await;
        answer
    }
    async fn positions(&self, spaces: &[SpaceId]) -> Result<Vec<SpaceState>, StoreError> {
        self.works()?;
        let answer = self.store.positions(spaces).await;
        self.pass("positions").await;
        answer
    }
    async fn erase(
        &self,
        space: &SpaceId,
        whom: Erase,
        fresh: Epoch,
        now_ms: u64,
        begun: Begun<'_>,
    ) -> Result<Erased, StoreError> {
        let answer = self.store.erase(space, whom, fresh, now_ms, begun).await;
        self.pass("erase").await;
        answer
    }
    fn usage(&self) -> Usage {
        self.store.usage()
    }
    async fn conflicts(&self, space: &SpaceId, limit: usize) -> Result<Vec<ConflictRecord>, StoreError> {
        self.store.conflicts(space, limit).await
    }
    fn readings(&self) -> Vec<tidegate::metrics::Reading> {
        self.store.readings()
    }
}

/// Stands between clients and a gateway, and cuts all their connections when told to.
pub struct Cutter {
    pub addr: SocketAddr,
    cut: Arc<tokio::sync::Notify>,
    _tasks: tokio::task::JoinSet<()>,
}

impl Cutter {
    /// Passes on whatever comes.
    pub async fn before(gateway: SocketAddr) -> Self {
        Self::start(gateway, false).await
    }

    /// Hands what the gateway says to the client message by message, with a pause after each, so that an
    /// app can look at its view between any two.
    pub async fn message_by_message(gateway: SocketAddr) -> Self {
        Self::start(gateway, true).await
    }

    async fn start(gateway: SocketAddr, single: bool) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let cut = Arc::new(tokio::sync::Notify::new());
        let mut tasks = tokio::task::JoinSet::new();
        let cutting = cut.clone();
        tasks.spawn(async move {
            let mut open = tokio::task::JoinSet::new();
            loop {
                tokio::select! {
                    Ok((mut near, _)) = listener.accept() => {
                        open.spawn(async move {
                            let Ok(mut far) = TcpStream::connect(gateway).await else { return };
                            let _ = if single {
                                let (up, down) = (far.split(), near.split());
                                let (mut from_app, mut to_app) = down;
                                let (mut from_gateway, mut to_gateway) = up;
                                tokio::select! {
                                    done = tokio::io::copy(&mut from_app, &mut to_gateway) => done.map(|_| ()),
                                    done = single_messages(&mut from_gateway, &mut to_app) => done,
                                }
                            } else {
                                tokio::io::copy_bidirectional(&mut near, &mut far).await.map(|_| ())
                            };
                        });
                    }
                    () = cutting.notified() => open.abort_all(),
                }
            }
        });
        Self {
            addr,
            cut,
            _tasks: tasks,
        }
    }

    pub fn cut(&self) {
        self.cut.notify_one();
    }
}

/// Copies an HTTP response's head, then WebSocket frames (RFC 6455, section 5.2; unmasked, as a server's are),
/// each in a write of its own and a pause after it.
async fn single_messages(from: &mut ReadHalf<'_>, to: &mut WriteHalf<'_>) -> std::io::Result<()> {
    let mut from = tokio::io::BufReader::new(from);
    let mut line = Vec::new();
    while line != b"\r\n" {
        line.clear();
        if from.read_until(b'\n', &mut line).await? == 0 {
            return Ok(());
        }
        to.write_all(&line).await?;
    }
    loop {
        let mut frame = vec![0; 2];
        from.read_exact(&mut frame).await?;
        let more = match frame[1] {
            126 => 2,
            127 => 8,
            _ => 0,
        };
        frame.resize(2 + more, 0);
        from.read_exact(&mut frame[2..]).await?;
        let long = frame[2..].iter().fold(0, |sum, byte| sum << 8 | usize::from(*byte));
        let body = if more == 0 { usize::from(frame[1]) } else { long };
        frame.resize(2 + more + body, 0);
        from.read_exact(&mut frame[2 + more..]).await?;
        to.write_all(&frame).await?;
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}
