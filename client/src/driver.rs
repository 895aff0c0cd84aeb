//! The task that gives the machine its socket, its clock and its randomness.

use crate::link::{Incoming, Link, Outbox};
use crate::shared::Shared;
use crate::sync::{Command, ConnectFailure};
use crate::transport::Connector;
use crate::url::GatewayUrl;
use futures_util::future::{BoxFuture, FutureExt};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;
use tidegate_protocol::Code;
use tokio::task::JoinSet;

type Opening = BoxFuture<'static, Result<Link, ConnectFailure>>;

/// Drives the machine until the client is closed. A panic, of an app's storage say, stops the client: who
/// waits for it is told, and does not wait for a task that is gone.
pub(crate) async fn drive(shared: Arc<Shared>, url: GatewayUrl, connector: Arc<dyn Connector>) {
    let driven = AssertUnwindSafe(run(Arc::clone(&shared), url, connector));
    if driven.catch_unwind().await.is_err() {
        shared.give_up("the client's task panicked");
    }
}

/// Everything it starts ends with it.
async fn run(shared: Arc<Shared>, url: GatewayUrl, connector: Arc<dyn Connector>) {
    let mut opening: Option<Opening> = None;
    let mut link: Option<Link> = None;
    // Sockets in their closing handshake, each bounded in time.
    let mut closing = JoinSet::new();
    loop {
        let now = shared.now();
        let (commands, deadline, closed) = shared.step(|machine| {
            machine.handle_timeout(now);
            let commands: Vec<_> = std::iter::from_fn(|| machine.poll_command()).collect();
            (commands, machine.deadline(), machine.is_closed())
        });
        for command in commands {
            match command {
                Command::Connect => {
                    let (url, connector) = (url.clone(), Arc::clone(&connector));
                    opening = Some(async move { Link::open(&url, connector).await }.boxed());
                }
                Command::Close(code) => {
                    opening = None;
                    if let Some(link) = link.take() {
                        closing.spawn(link.close(code));
                    }
                }
            }
        }
        if closed {
            while closing.join_next().await.is_some() {}
            return;
        }
        let mut drained = true;
        if let Some(link) = &link {
            drained = transmit(&shared, link);
        }
        // Room is waited for only if there is something to put in.
        let waits_for = link.as_ref().filter(|_| !drained).map(Link::outbox);
        let sleep = deadline.map_or(Duration::MAX, |at| {
            Duration::from_millis(at.saturating_sub(now.mono_ms))
        });
        tokio::select! {
            opened = wait(&mut opening) => {
                opening = None;
                let now = shared.now();
                match opened {
                    Ok(open) => {
                        link = Some(open);
                        shared.step(|machine| machine.connected(now));
                    }
                    Err(failure) => shared.step(|machine| machine.connect_failed(now, failure)),
                }
            }
            incoming = next(&mut link) => {
                if !receive(&shared, incoming) {
                    link = None;
                }
            }
            () = room(waits_for) => {}
            () = shared.nudged() => {}
            () = tokio::time::sleep(sleep) => {}
            Some(_) = closing.join_next() => {}
        }
    }
}

/// Passes an incoming message on. `false`: the socket is gone.
fn receive(shared: &Shared, incoming: Incoming) -> bool {
    let now = shared.now();
    match incoming {
        Incoming::Message(message) => shared.step(|machine| machine.received(now, message)),
        Incoming::Malformed(invalid) => shared.step(|machine| machine.received_malformed(now, &invalid)),
        Incoming::Closed { code, why } => {
            shared.step(|machine| machine.disconnected(now, code, why));
            return false;
        }
    }
    true
}

/// Hands over messages while the socket takes them. Returns whether there was nothing more to hand over.
fn transmit(shared: &Shared, link: &Link) -> bool {
    while link.has_room() {
        match shared.transmit() {
            Some(message) => link.send(&message),
            None => return true,
        }
    }
    false
}

async fn wait(opening: &mut Option<Opening>) -> Result<Link, ConnectFailure> {
    match opening {
        Some(opening) => opening.await,
        None => std::future::pending().await,
    }
}

async fn next(link: &mut Option<Link>) -> Incoming {
    match link {
        Some(link) => link.next().await,
        None => std::future::pending().await,
    }
}

async fn room(outbox: Option<Outbox>) {
    match outbox {
        // One that is closed has no room: the reader tells.
        Some(outbox) if outbox.reserve().await.is_ok() => {}
        _ => std::future::pending().await,
    }
}

/// The code of a storage that failed: the client stops.
pub(crate) const STORAGE_FAILED: Code = Code::Internal;
