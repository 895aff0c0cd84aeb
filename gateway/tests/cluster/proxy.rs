//! Stands between gateways and Redis, and does to what passes what networks do.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// What is done to what passes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Fault {
    /// Nothing.
    None,
    /// Connections end, and none is made.
    Cut,
    /// Nothing passes, and nobody is told.
    Stall,
    /// Everything takes so long.
    Delay(Duration),
    /// Of the messages of subscriptions every so many-th is left out.
    Drop(u64),
    /// As `Stall`, on connections that subscribe alone.
    StallBus,
    /// Connections that subscribe end, those that are made meanwhile, too.
    CutBus,
}

/// A proxy, until it is dropped.
pub(crate) struct Proxy {
    pub addr: SocketAddr,
    fault: watch::Sender<Fault>,
    target: watch::Sender<SocketAddr>,
    /// Where new connections lead, if elsewhere than those that are there.
    next: watch::Sender<Option<SocketAddr>>,
    counts: Arc<Counts>,
    _task: JoinSet<()>,
}

/// What has passed.
#[derive(Default)]
struct Counts {
    messages: AtomicU64,
    dropped: AtomicU64,
}

impl Proxy {
    pub(crate) async fn before(redis: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let (fault, faults) = watch::channel(Fault::None);
        let (target, targets) = watch::channel(redis);
        let (next, nexts) = watch::channel(None);
        let counts = Arc::new(Counts::default());
        let mut task = JoinSet::new();
        let counted = counts.clone();
        task.spawn(async move {
            let mut open = JoinSet::new();
            loop {
                let Ok((near, _)) = listener.accept().await else {
                    continue;
                };
                while open.try_join_next().is_some() {}
                let (faults, counts) = (faults.clone(), counted.clone());
                let mut targets = targets.clone();
                let next = *nexts.borrow();
                open.spawn(async move {
                    let redis = next.unwrap_or(*targets.borrow_and_update());
                    if *faults.borrow() != Fault::Cut
                        && let Ok(far) = TcpStream::connect(redis).await
                    {
                        tokio::select! {
                            () = pass(near, far, faults, &counts) => {}
                            _ = targets.changed() => {}
                        }
                    }
                });
            }
        });
        Self {
            addr,
            fault,
            target,
            next,
            counts,
            _task: task,
        }
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://{}/", self.addr)
    }

    pub(crate) fn set(&self, fault: Fault) {
        self.fault.send_replace(fault);
    }

    /// From now on it stands before another server; connections to the one before end.
    pub(crate) fn switch(&self, redis: SocketAddr) {
        self.target.send_replace(redis);
    }

    /// New connections are made to another server; those that are there stay.
    pub(crate) fn lead_to(&self, redis: SocketAddr) {
        self.next.send_replace(Some(redis));
    }

    /// Messages of subscriptions that have come, and how many of them were left out.
    pub(crate) fn messages(&self) -> (u64, u64) {
        (
            self.counts.messages.load(Ordering::Relaxed),
            self.counts.dropped.load(Ordering::Relaxed),
        )
    }
}

/// Passes on what comes until one side ends, or a fault ends it.
async fn pass(near: TcpStream, far: TcpStream, faults: watch::Receiver<Fault>, counts: &Counts) {
    let _ = (near.set_nodelay(true), far.set_nodelay(true));
    let (mut from_node, mut to_node) = near.into_split();
    let (mut from_redis, mut to_redis) = far.into_split();
    let subscribes = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let ends = {
        let (mut faults, subscribes) = (faults.clone(), subscribes.clone());
        async move {
            loop {
                let fault = *faults.borrow_and_update();
                if fault == Fault::Cut || fault == Fault::CutBus && subscribes.load(Ordering::Relaxed) {
                    return;
                }
                if faults.changed().await.is_err() {
                    return;
                }
            }
        }
    };
    let up = {
        let (mut faults, subscribes) = (faults.clone(), subscribes.clone());
        async move {
            let mut buffer = vec![0; 64 << 10];
            loop {
                let n = match from_node.read(&mut buffer).await {
                    Ok(n) if n > 0 => n,
                    _ => return,
                };
                // The library sends each request in a write of its own, or several whole ones.
                if buffer[..n].windows(9).any(|word| word == b"SUBSCRIBE") {
                    subscribes.store(true, Ordering::Relaxed);
                    if *faults.borrow() == Fault::CutBus {
                        return;
                    }
                }
                hold(&mut faults, &subscribes).await;
                if to_redis.write_all(&buffer[..n]).await.is_err() {
                    return;
                }
            }
        }
    };
    let down = {
        let mut faults = faults;
        async move {
            let mut buffer = Vec::new();
            loop {
                while let Some(end) = reply(&buffer, 0) {
                    let message = buffer[..end].starts_with(b"*3\r\n$7\r\nmessage\r\n");
                    let n = match message {
                        true => counts.messages.fetch_add(1, Ordering::Relaxed) + 1,
                        false => 0,
                    };
                    hold(&mut faults, &subscribes).await;
                    let fault = *faults.borrow();
                    match fault {
                        Fault::Drop(every) if message && n.is_multiple_of(every) => {
                            counts.dropped.fetch_add(1, Ordering::Relaxed);
                        }
                        _ => {
                            if to_node.write_all(&buffer[..end]).await.is_err() {
                                return;
                            }
                        }
                    }
                    buffer.drain(..end);
                }
                match from_redis.read_buf(&mut buffer).await {
                    Ok(n) if n > 0 => {}
                    _ => return,
                }
            }
        }
    };
    tokio::select! {
        () = ends => {}
        () = up => {}
        () = down => {}
    }
}

/// Waits as long as nothing passes.
async fn hold(faults: &mut watch::Receiver<Fault>, subscribes: &std::sync::atomic::AtomicBool) {
    loop {
        let fault = *faults.borrow_and_update();
        match fault {
            Fault::Stall => {}
            Fault::StallBus if subscribes.load(Ordering::Relaxed) => {}
            Fault::Delay(time) => return tokio::time::sleep(time).await,
            _ => return,
        }
        if faults.changed().await.is_err() {
            return;
        }
    }
}

/// Where the reply that begins at `at` ends, if it is whole (RESP2).
fn reply(bytes: &[u8], at: usize) -> Option<usize> {
    let rest = &bytes[at..];
    let line = rest.windows(2).position(|two| two == b"\r\n")?;
    let after = at + line + 2;
    let number = || std::str::from_utf8(&rest[1..line]).unwrap().parse::<i64>().unwrap();
    match rest[0] {
        b'$' => match number() {
            n if n < 0 => Some(after),
            n => {
                let end = after + usize::try_from(n).unwrap() + 2;
                (bytes.len() >= end).then_some(end)
            }
        },
        b'*' => (0..number().max(0)).try_fold(after, |at, _| (at < bytes.len()).then(|| reply(bytes, at)).flatten()),
        _ => Some(after),
    }
}
