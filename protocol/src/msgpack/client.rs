//! What a client sends.

use super::DecodeError;
use super::op::{read_ops, write_op};
use super::read::{Reader, TOP, required};
use super::write::{Map, TYPICAL, position, text};
use crate::error::Invalid;
use crate::ids::{ClientId, Epoch, MutationKey, Position, ViewId};
use crate::limits::{CAP_BYTES, CAPS, CURSOR_BYTES, FILTER_COLLECTIONS, GET_DOCS, Limits, SDK_BYTES, TOKEN_BYTES};
use crate::message::{At, ClientMessage, Get, Hello, Policy, ResumeFrom, Sub, Write, WriteHead};

/// Reads a client's message.
pub fn decode_client(bytes: &[u8], limits: &Limits) -> Result<ClientMessage, DecodeError> {
    let mut r = Reader::new(bytes, limits);
    let read = match bytes.len() {
        n if n > limits.message_bytes => Err(Invalid::too_large("message size in bytes", limits.message_bytes, n)),
        _ => message(&mut r).and_then(|message| r.end().map(|()| message)),
    };
    read.map_err(|error| DecodeError {
        at: r.op.map(|op| At {
            op,
            path: r.path.take(),
        }),
        ..refused(bytes, error)
    })
}

/// What a refusal can say of a message that is refused for `error`: the second look, at the envelope alone.
pub(crate) fn refused(bytes: &[u8], error: Invalid) -> DecodeError {
    let mut refused = DecodeError::from(error);
    if refused.closes() {
        return refused;
    }
    match envelope(bytes) {
        Ok((write, re)) => (refused.write, refused.re) = (write.map(Box::new), re),
        // What follows the mistake is no message either.
        Err(error) => refused.error = error,
    }
    refused
}

/// The head of a `write`, and the `id` of a `sub`, `unsub` or `get`, whatever else is in the message.
fn envelope(bytes: &[u8]) -> Result<(Option<WriteHead>, Option<u64>), Invalid> {
    let mut r = Reader::new(bytes, &super::change::TRUSTED);
    let (n, t) = r.head()?;
    let (mut head, mut id) = (Head::default(), None);
    r.entries(TOP, n, Some("t"), |r, key| {
        let at = r.at;
        match (t, key) {
            ("write", _) => _ = head.entry(r, key),
            ("sub" | "unsub" | "get", "id") => id = r.u64("id").ok(),
            _ => {}
        }
        r.at = at;
        Ok(false)
    })?;
    r.end()?;
    Ok((if t == "write" { head.finish().ok() } else { None }, id))
}

fn message(r: &mut Reader<'_>) -> Result<ClientMessage, Invalid> {
    let (n, t) = r.head()?;
    match t {
        "hello" => hello(r, n).map(ClientMessage::Hello),
        "auth" => {
            let mut token = None;
            r.entries(TOP, n, Some("t"), |r, key| {
                match key {
                    "token" => token = Some(r.string("token", TOKEN_BYTES)?),
                    _ => return Ok(false),
                }
                Ok(true)
            })?;
            Ok(ClientMessage::Auth {
                token: required(token, "auth", "token")?,
            })
        }
        "sub" => sub(r, n).map(ClientMessage::Sub),
        "unsub" => {
            let mut id = None;
            r.entries(TOP, n, Some("t"), |r, key| {
                match key {
                    "id" => id = Some(r.u64("id")?),
                    _ => return Ok(false),
                }
                Ok(true)
            })?;
            Ok(ClientMessage::Unsub {
                id: required(id, "unsub", "id")?,
            })
        }
        "write" => read_write(r, n).map(ClientMessage::Write),
        "get" => get(r, n).map(ClientMessage::Get),
        "ping" => {
            let mut at = None;
            r.entries(TOP, n, Some("t"), |r, key| {
                match key {
                    "at" => at = Some(r.u64("at")?),
                    _ => return Ok(false),
                }
                Ok(true)
            })?;
            Ok(ClientMessage::Ping {
                at: required(at, "ping", "at")?,
            })
        }
        other => Err(Invalid::unsupported("message type", other)),
    }
}

fn hello(r: &mut Reader<'_>, n: usize) -> Result<Hello, Invalid> {
    let mut hello = Hello::default();
    r.entries(TOP, n, Some("t"), |r, key| {
        match key {
            "token" => hello.token = Some(r.string("token", TOKEN_BYTES)?),
            "sdk" => hello.sdk = Some(r.string("sdk", SDK_BYTES)?),
            "caps" => hello.caps = r.list("caps", CAPS, |r| r.string("cap", CAP_BYTES))?,
            "max_message" => hello.max_message = Some(r.u64("max_message")?),
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    Ok(hello)
}

fn sub(r: &mut Reader<'_>, n: usize) -> Result<Sub, Invalid> {
    let (mut id, mut space, mut client, mut from, mut filter) = (None, None, None, None, None);
    r.entries(TOP, n, Some("t"), |r, key| {
        match key {
            "id" => id = Some(r.u64("id")?),
            "space" => space = Some(r.name("space")?),
            "client" => client = Some(ClientId(r.u64("client")?)),
            "from" => from = Some(resume_from(r)?),
            "filter" => {
                let mut all = r.list("filter", FILTER_COLLECTIONS, |r| r.name("collection"))?;
                all.sort();
                all.dedup();
                if all.is_empty() {
                    return Err(Invalid::new(
                        "filter",
                        "is empty; leave it out to cover the whole space",
                    ));
                }
                filter = Some(all);
            }
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    Ok(Sub {
        id: required(id, "sub", "id")?,
        space: required(space, "sub", "space")?,
        client,
        from,
        filter,
    })
}

fn resume_from(r: &mut Reader<'_>) -> Result<ResumeFrom, Invalid> {
    let (mut epoch, mut seq, mut view, mut cursor) = (None, None, None, None);
    let n = r.map("from")?;
    r.entries("from", n, None, |r, key| {
        match key {
            "epoch" => epoch = Some(Epoch(r.u64("epoch")?)),
            "seq" => seq = Some(r.seq("seq")?),
            "view" => view = Some(ViewId(r.u64("view")?)),
            "cursor" => cursor = Some(r.bin("cursor", CURSOR_BYTES)?),
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    let position = Position::new(required(epoch, "from", "epoch")?, required(seq, "from", "seq")?);
    Ok(ResumeFrom {
        position,
        view: required(view, "from", "view")?,
        cursor,
    })
}

fn get(r: &mut Reader<'_>, n: usize) -> Result<Get, Invalid> {
    let (mut id, mut space, mut docs) = (None, None, None);
    r.entries(TOP, n, Some("t"), |r, key| {
        match key {
            "id" => id = Some(r.u64("id")?),
            "space" => space = Some(r.name("space")?),
            "docs" => docs = Some(r.list("docs of a get", GET_DOCS, Reader::doc)?),
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    Ok(Get {
        id: required(id, "get", "id")?,
        space: required(space, "get", "space")?,
        docs: required(docs, "get", "docs")?,
    })
}

/// The parts of a [`WriteHead`] as they come.
#[derive(Default)]
struct Head {
    space: Option<crate::name::SpaceId>,
    client: Option<ClientId>,
    mid: Option<crate::ids::Mid>,
    key: Option<MutationKey>,
    prev: Option<MutationKey>,
    first: Option<u64>,
}

impl Head {
    fn entry(&mut self, r: &mut Reader<'_>, key: &str) -> Result<bool, Invalid> {
        match key {
            "space" => self.space = Some(r.name("space")?),
            "client" => self.client = Some(ClientId(r.u64("client")?)),
            "mid" => self.mid = Some(r.mid("mid")?),
            "key" => self.key = Some(MutationKey(r.u64("key")?)),
            "prev" => self.prev = Some(MutationKey(r.u64("prev")?)),
            "first" => self.first = Some(r.u64("first")?),
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn finish(self) -> Result<WriteHead, Invalid> {
        let mid = required(self.mid, "write", "mid")?;
        match (mid.get(), self.prev, self.first) {
            (1, None, Some(_)) => {}
            (1, _, None) => return Err(Invalid::new("write", "needs first at mid 1")),
            (1, Some(_), _) => return Err(Invalid::new("write", "may not carry prev at mid 1")),
            (_, Some(_), None) => {}
            (n, None, _) => return Err(Invalid::new("write", &format!("needs prev at mid {n}"))),
            (n, _, Some(_)) => {
                return Err(Invalid::new(
                    "write",
                    &format!("may carry first only at mid 1, not at mid {n}"),
                ));
            }
        }
        Ok(WriteHead {
            space: required(self.space, "write", "space")?,
            client: required(self.client, "write", "client")?,
            mid,
            key: required(self.key, "write", "key")?,
            prev: self.prev,
            first: self.first,
        })
    }
}

fn read_write(r: &mut Reader<'_>, n: usize) -> Result<Write, Invalid> {
    let (mut head, mut base, mut policy, mut ops) = (Head::default(), None, None, None);
    r.entries(TOP, n, Some("t"), |r, key| {
        match key {
            "base" => base = Some(r.position("base")?),
            "policy" => {
                let name = r.str("policy")?;
                let known = Policy::ALL.iter().find(|(_, known)| *known == name);
                policy = Some(known.ok_or_else(|| Invalid::unsupported("policy", name))?.0);
            }
            "ops" => ops = Some(read_ops(r)?),
            // A precondition that went unnoticed would be an unguarded write.
            _ if !head.entry(r, key)? => return Err(Invalid::unsupported("key of write", key)),
            _ => {}
        }
        Ok(true)
    })?;
    if let (None, Some(policy @ (Policy::Reject | Policy::Merge))) = (base, policy) {
        return Err(Invalid::new(
            "write",
            &format!("with policy {} needs base", policy.name()),
        ));
    }
    Ok(Write {
        head: head.finish()?,
        base,
        policy,
        ops: required(ops, "write", "ops")?,
    })
}

/// Writes a client's message.
pub fn encode_client(message: &ClientMessage) -> Vec<u8> {
    let mut out = Vec::with_capacity(TYPICAL);
    match message {
        ClientMessage::Hello(hello) => {
            let mut map = Map::message(&mut out, "hello");
            if let Some(token) = &hello.token {
                map.str("token", token);
            }
            if let Some(sdk) = &hello.sdk {
                map.str("sdk", sdk);
            }
            if !hello.caps.is_empty() {
                map.list("caps", &hello.caps, text);
            }
            if let Some(n) = hello.max_message {
                map.uint("max_message", n);
            }
        }
        ClientMessage::Auth { token } => Map::message(&mut out, "auth").str("token", token),
        ClientMessage::Sub(sub) => {
            let mut map = Map::message(&mut out, "sub");
            map.uint("id", sub.id);
            map.str("space", sub.space.as_str());
            if let Some(client) = sub.client {
                map.uint("client", client.0);
            }
            if let Some(from) = &sub.from {
                let mut inner = Map::new(map.key("from"));
                inner.epoch_seq(from.position);
                inner.uint("view", from.view.0);
                if let Some(cursor) = &from.cursor {
                    inner.bin("cursor", cursor);
                }
            }
            if let Some(filter) = &sub.filter {
                map.list("filter", filter, text);
            }
        }
        ClientMessage::Unsub { id } => Map::message(&mut out, "unsub").uint("id", *id),
        ClientMessage::Write(write) => write_write(&mut out, write),
        ClientMessage::Get(get) => {
            let mut map = Map::message(&mut out, "get");
            map.uint("id", get.id);
            map.str("space", get.space.as_str());
            map.list("docs", &get.docs, text);
        }
        ClientMessage::Ping { at } => Map::message(&mut out, "ping").uint("at", *at),
    }
    out
}

fn write_write(out: &mut Vec<u8>, write: &Write) {
    let mut map = Map::message(out, "write");
    map.str("space", write.head.space.as_str());
    map.uint("client", write.head.client.0);
    map.uint("mid", write.head.mid.get());
    map.uint("key", write.head.key.0);
    if let Some(prev) = write.head.prev {
        map.uint("prev", prev.0);
    }
    if let Some(first) = write.head.first {
        map.uint("first", first);
    }
    if let Some(base) = write.base {
        position(map.key("base"), base);
    }
    if let Some(policy) = write.policy {
        map.str("policy", policy.name());
    }
    map.list("ops", &write.ops, write_op);
}
