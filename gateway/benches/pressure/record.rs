//! What a gateway says to Redis: it stands between the two, passes everything on, and keeps the commits.

use crate::client::{Result, Void};
use redis::Value;
use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::ops::Range;
use std::sync::{Arc, Mutex};

/// Commits, each as the command that it was sent as.
#[derive(Clone, Default)]
pub(crate) struct Commits(Arc<Mutex<Vec<Vec<u8>>>>);

impl Commits {
    /// Listens for a gateway that believes that it is Redis. Its threads end with the gateway.
    pub(crate) fn before(redis: SocketAddr) -> Result<(Self, SocketAddr)> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let addr = listener.local_addr()?;
        let commits = Self::default();
        let kept = commits.clone();
        std::thread::spawn(move || {
            while let Ok((gateway, _)) = listener.accept() {
                let Ok(server) = TcpStream::connect(redis) else { return };
                let kept = kept.clone();
                std::thread::spawn(move || kept.pass(&gateway, &server));
            }
        });
        Ok((commits, addr))
    }

    /// Those that have been sent so far; from here on, from none.
    pub(crate) fn take(&self) -> Vec<Vec<u8>> {
        std::mem::take(&mut self.0.lock().expect("nobody panics"))
    }

    fn pass(&self, mut gateway: &TcpStream, mut server: &TcpStream) {
        let _ = gateway.set_nodelay(true);
        let _ = server.set_nodelay(true);
        let back = (server.try_clone(), gateway.try_clone());
        if let (Ok(mut server), Ok(mut gateway)) = back {
            std::thread::spawn(move || {
                let _ = std::io::copy(&mut server, &mut gateway);
                let _ = gateway.shutdown(Shutdown::Both);
            });
        }
        let (mut held, mut scratch) = (vec![], vec![0; 256 << 10]);
        while let Ok(read @ 1..) = gateway.read(&mut scratch) {
            held.extend_from_slice(&scratch[..read]);
            // It is kept before it is passed on: a commit that depends on the answer comes behind it.
            let mut at = 0;
            while let Some((args, end)) = command(&held[at..]) {
                let whole = &held[at..at + end];
                if is_commit(whole, &args) {
                    self.0.lock().expect("nobody panics").push(whole.to_vec());
                }
                at += end;
            }
            held.drain(..at);
            if server.write_all(&scratch[..read]).is_err() {
                break;
            }
        }
        let _ = server.shutdown(Shutdown::Both);
    }
}

/// The arguments of the first command, and where it ends; nothing if it is not whole.
fn command(bytes: &[u8]) -> Option<(Vec<Range<usize>>, usize)> {
    let line = |from: usize, sign: u8| {
        let end = from + bytes[from..].windows(2).position(|end| end == b"\r\n")?;
        assert_eq!(bytes[from], sign, "it is a command");
        let number = std::str::from_utf8(&bytes[from + 1..end]).expect("digits");
        Some((number.parse::<usize>().expect("a number"), end + 2))
    };
    let (count, mut at) = line(0, b'*')?;
    let mut args = Vec::with_capacity(count);
    for _ in 0..count {
        let (length, from) = bytes.get(at).and_then(|_| line(at, b'$'))?;
        at = from + length + 2;
        if at > bytes.len() {
            return None;
        }
        args.push(from..from + length);
    }
    Some((args, at))
}

/// Only the script that commits is told where to publish.
fn is_commit(whole: &[u8], args: &[Range<usize>]) -> bool {
    let word = |at: usize| args.get(at).map_or(&[][..], |range| &whole[range.clone()]);
    let keys = || std::str::from_utf8(word(2)).ok()?.parse::<usize>().ok();
    word(0) == b"EVALSHA" && keys().is_some_and(|keys| word(3 + keys) == b"PUBLISH")
}

/// Sends commands again to an empty server, at most so many unanswered, as fast as they are answered. Returns how many
/// commits that made.
pub(crate) fn replay(connection: &mut redis::Connection, commands: &[Vec<u8>], in_flight: usize) -> Result<u64> {
    let (mut sent, mut commits) = (0, 0);
    let failed = |error: redis::RedisError| Void(error.to_string());
    for answered in 0..commands.len() {
        while sent < commands.len() && sent - answered < in_flight {
            connection.send_packed_command(&commands[sent]).map_err(failed)?;
            sent += 1;
        }
        let Value::Array(mut answer) = connection.recv_response().map_err(failed)? else {
            return Err(Void("a commit was answered by something else".into()));
        };
        // The outcomes come last.
        let Some(Value::Array(outcomes)) = answer.pop() else {
            return Err(Void("a commit was answered without outcomes".into()));
        };
        let is_applied = |part: &&Value| matches!(part, Value::BulkString(bytes) if bytes.first() == Some(&b'A'));
        let (applied, items) = (outcomes.iter().filter(is_applied).count(), outcomes.len());
        if applied != items {
            return Err(Void(format!("{applied} of {items} mutations of a group were applied")));
        }
        commits += items as u64;
    }
    Ok(commits)
}
