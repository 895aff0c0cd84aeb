//! The gateway that runs on a data directory, reached by its control socket.

use crate::server::control::{Answer, Request, address};
use serde::de::DeserializeOwned;
use std::io::{BufRead as _, BufReader, ErrorKind, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// How long the gateway may take to say something.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);
/// Bytes of an answer's line at most.
const LINE_BYTES: u64 = 64 << 10;

/// Connects to the gateway that runs on a directory; `None` if none does.
pub(super) fn connect(dir: &Path) -> Result<Option<UnixStream>, String> {
    let connected = address(dir).and_then(|(_handle, address)| UnixStream::connect(address));
    match connected {
        Ok(connection) => Ok(Some(connection)),
        // Nothing is there, or what one left that was killed.
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused) => Ok(None),
        // A file, which then is no data directory: opening it says so.
        Err(error) if error.kind() == ErrorKind::NotADirectory => Ok(None),
        Err(error) => Err(format!("{}: the control socket: {error}", dir.display())),
    }
}

/// Asks for something, and waits so long for each piece of the answer (`None`: for ever); returns the answer, and what follows it.
pub(super) fn ask<T: DeserializeOwned>(
    connection: UnixStream,
    request: &Request,
    patience: Option<Duration>,
) -> Result<(T, BufReader<UnixStream>), String> {
    let failed = |error: std::io::Error| format!("the control socket: {error}");
    connection.set_read_timeout(patience).map_err(failed)?;
    connection.set_write_timeout(Some(PATIENCE)).map_err(failed)?;
    let mut line = serde_json::to_vec(request).map_err(|error| error.to_string())?;
    line.push(b'\n');
    (&connection).write_all(&line).map_err(failed)?;
    let mut from = BufReader::new(connection);
    let mut line = Vec::new();
    (&mut from)
        .take(LINE_BYTES)
        .read_until(b'\n', &mut line)
        .map_err(failed)?;
    if line.is_empty() {
        return Err("the gateway ended the connection without an answer".to_owned());
    }
    match serde_json::from_slice(&line) {
        Ok(Answer::Ok(answer)) => Ok((answer, from)),
        Ok(Answer::Error(why)) => Err(format!("the gateway says: {why}")),
        Err(error) => Err(format!("the gateway's answer is not understood: {error}")),
    }
}
