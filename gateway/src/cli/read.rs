//! `get`, `watch` and `export`.

use super::args::{DocArgs, ExportArgs, GatewayArgs, WatchArgs};
use super::connection::{Connection, tell};
use super::show::{Form, Shower};
use super::{Failure, json};
use futures_util::FutureExt as _;
use serde_json::json;
use std::io::Write;
use tidegate_client::{ConnectionState, WatchItem};

/// Prints a document as JSON.
pub(crate) async fn get(gateway: &GatewayArgs, at: &DocArgs, out: &mut impl Write) -> Result<(), Failure> {
    let connection = Connection::open(gateway).await?;
    let found = connection.get(&at.space, &at.doc).await?;
    connection.close().await;
    match found {
        Some(leaves) => Ok(writeln!(out, "{:#}", json::from_leaves(&leaves))?),
        None => Err(format!("there is no document {} in {}", at.doc, at.space).into()),
    }
}

/// Prints every document, one a line, sorted.
pub(crate) async fn export(gateway: &GatewayArgs, args: &ExportArgs, out: &mut impl Write) -> Result<(), Failure> {
    let connection = Connection::open(gateway).await?;
    let state = connection.state(&args.space, &args.collections).await?;
    connection.close().await;
    for (doc, leaves) in &state {
        writeln!(
            out,
            "{}",
            json!({ "doc": doc.as_str(), "fields": json::from_leaves(leaves) })
        )?;
    }
    Ok(())
}

/// Prints the state, then changes as they come, until the process is stopped.
pub(crate) async fn watch(
    gateway: &GatewayArgs,
    args: &WatchArgs,
    form: Form,
    out: &mut impl Write,
) -> Result<(), Failure> {
    let connection = Connection::open(gateway).await?;
    let mut shower = Shower::new(args.space.clone(), form);
    let mut items = connection.space(&args.space, &args.collections)?.watch();
    let mut state = connection.changes();
    let mut is_online = true;
    loop {
        // What is there is printed in one go.
        while let Some(item) = items.next().now_or_never() {
            out.write_all(show(&mut shower, item)?.as_bytes())?;
        }
        out.flush()?;
        match &*state.borrow_and_update() {
            ConnectionState::Online(_) if !is_online => {
                is_online = true;
                tell("connected again");
            }
            ConnectionState::Offline { why, .. } if is_online => {
                is_online = false;
                let why = why.as_deref().unwrap_or("the connection ended");
                tell(&format!("offline, and trying to come back: {why}"));
            }
            ConnectionState::Stopped { code, message } => return Err(format!("{code}: {message}").into()),
            _ => {}
        }
        tokio::select! {
            item = items.next() => out.write_all(show(&mut shower, item)?.as_bytes())?,
            _ = state.changed() => {}
        }
    }
}

fn show(shower: &mut Shower, item: Option<WatchItem>) -> Result<String, Failure> {
    match item {
        Some(WatchItem::Denied { code, .. }) => {
            Err(format!("the space may not be watched: {}", code.row().meaning).into())
        }
        Some(item) => Ok(shower.show(&item)),
        None => Err("the connection was closed".into()),
    }
}
