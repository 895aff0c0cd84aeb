//! What a server sends. A client is lenient: it ignores unknown keys, and reads nil as absent.

use super::change::{TRUSTED, doc_changes, read_commit, read_doc_changes};
use super::read::{Reader, TOP, required};
use super::write::{Map, TYPICAL, text};
use crate::error::{Code, Invalid};
use crate::ids::{Epoch, Position, ViewId, Writer};
use crate::limits::Limits;
use crate::message::{
    Ack, At, Begin, CellState, Change, ConflictUnit, DocChange, Mode, Reject, ServerMessage, Welcome,
};
use crate::value::write;
use bytes::Bytes;

/// Reads a server's message.
pub fn decode_server(bytes: &[u8]) -> Result<ServerMessage, Invalid> {
    let mut r = Reader::new(bytes, &TRUSTED);
    let message = match bytes.first() {
        Some(0x90..=0x9f | 0xdc | 0xdd) => change(&mut r)?,
        _ => message(&mut r)?,
    };
    r.end()?;
    Ok(message)
}

fn change(r: &mut Reader<'_>) -> Result<ServerMessage, Invalid> {
    let n = r.array("change")?;
    if n != 6 || r.str("type")? != "c" {
        return Err(Invalid::malformed(
            "a message that is an array is [\"c\", n, s, a, b, d]",
        ));
    }
    Ok(ServerMessage::Change(Change {
        n: r.u32("n")?,
        commit: read_commit(r)?,
    }))
}

/// Every key that any message has; each message takes what it needs.
#[derive(Default)]
struct Found {
    id: Option<u64>,
    n: Option<u32>,
    epoch: Option<u64>,
    seq: Option<crate::ids::Seq>,
    space: Option<crate::name::SpaceId>,
    mid: Option<crate::ids::Mid>,
    last_mid: Option<crate::ids::Mid>,
    mode: Option<Mode>,
    view: Option<ViewId>,
    resumed: Option<bool>,
    docs: Option<Vec<DocChange>>,
    cursor: Option<Bytes>,
    conflicts: Option<Vec<ConflictUnit>>,
    skipped: Option<Vec<ConflictUnit>>,
    cells: Option<Vec<ConflictUnit>>,
    code: Option<Code>,
    message: Option<String>,
    place: Option<At>,
    at: Option<u64>,
    now: Option<u64>,
    retry_ms: Option<u64>,
    jitter_ms: Option<u64>,
    expected: Option<crate::ids::Mid>,
    purge: Option<bool>,
    re: Option<u64>,
    session: Option<String>,
    node: Option<String>,
    user: Option<String>,
    limits: Option<Limits>,
    caps: Option<Vec<String>>,
    ping_ms: Option<u64>,
    token_expires: Option<u64>,
}

impl Found {
    fn entry(&mut self, r: &mut Reader<'_>, t: &str, key: &str) -> Result<bool, Invalid> {
        let string = |r: &mut Reader<'_>| r.string(key, usize::MAX);
        match key {
            _ if !keys(t).contains(&key) => return Ok(false),
            _ if r.nil()? => {}
            "id" => self.id = Some(r.u64(key)?),
            "n" => self.n = Some(r.u32(key)?),
            "epoch" => self.epoch = Some(r.u64(key)?),
            "seq" => self.seq = Some(r.seq(key)?),
            "space" => self.space = Some(r.name(key)?),
            "mid" => self.mid = Some(r.any_mid(key)?),
            "last_mid" => self.last_mid = Some(r.any_mid(key)?),
            "expected" => self.expected = Some(r.any_mid(key)?),
            "mode" => {
                let name = r.str(key)?;
                let known = Mode::ALL.iter().find(|(_, known)| *known == name);
                self.mode = Some(known.ok_or_else(|| Invalid::unsupported("mode", name))?.0);
            }
            "view" => self.view = Some(ViewId(r.u64(key)?)),
            "resumed" => self.resumed = Some(r.bool(key)?),
            "docs" => self.docs = Some(read_doc_changes(r)?),
            "cursor" => self.cursor = Some(r.bin(key, usize::MAX)?),
            "conflicts" => self.conflicts = Some(read_units(r)?),
            "skipped" => self.skipped = Some(read_units(r)?),
            "cells" => self.cells = Some(read_units(r)?),
            "code" => {
                let name = r.str(key)?;
                self.code = Some(Code::from_name(name).ok_or_else(|| Invalid::unsupported("code", name))?);
            }
            "message" => self.message = Some(string(r)?),
            "at" if t == "reject" => self.place = Some(read_at(r)?),
            "at" => self.at = Some(r.u64(key)?),
            "now" => self.now = Some(r.u64(key)?),
            "retry_ms" => self.retry_ms = Some(r.u64(key)?),
            "jitter_ms" => self.jitter_ms = Some(r.u64(key)?),
            "purge" => self.purge = Some(r.bool(key)?),
            "ref" => self.re = Some(r.u64(key)?),
            "session" => self.session = Some(string(r)?),
            "node" => self.node = Some(string(r)?),
            "user" => self.user = Some(string(r)?),
            "limits" => self.limits = Some(read_limits(r)?),
            "caps" => self.caps = Some(r.list(key, usize::MAX, |r| r.string("cap", usize::MAX))?),
            "ping_ms" => self.ping_ms = Some(r.u64(key)?),
            "token_expires" => self.token_expires = Some(r.u64(key)?),
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn position(&self, t: &str) -> Result<Position, Invalid> {
        Ok(Position::new(
            Epoch(required(self.epoch, t, "epoch")?),
            required(self.seq, t, "seq")?,
        ))
    }
}

/// The keys of a message type.
fn keys(t: &str) -> &'static [&'static str] {
    match t {
        "welcome" => &[
            "session",
            "node",
            "user",
            "now",
            "limits",
            "caps",
            "ping_ms",
            "token_expires",
        ],
        "begin" => &["id", "n", "mode", "view", "epoch", "resumed"],
        "page" => &["id", "docs", "cursor"],
        "current" => &["id", "epoch", "seq", "last_mid"],
        "epoch" => &["n", "epoch", "seq"],
        "progress" => &["n", "seq"],
        "ack" => &["space", "mid", "epoch", "seq", "conflicts", "skipped"],
        "reject" => &["space", "mid", "code", "message", "at", "retry_ms", "expected", "cells"],
        "docs" => &["id", "epoch", "seq", "docs"],
        "denied" => &["id", "code", "purge"],
        "goaway" => &["retry_ms", "jitter_ms"],
        "pong" => &["at", "now"],
        "error" => &["code", "message", "ref"],
        _ => &[],
    }
}

fn message(r: &mut Reader<'_>) -> Result<ServerMessage, Invalid> {
    let (n, t) = r.head()?;
    let mut found = Found::default();
    r.entries(TOP, n, Some("t"), |r, key| found.entry(r, t, key))?;
    let position = |found: &Found| found.position(t);
    Ok(match t {
        "welcome" => ServerMessage::Welcome(Welcome {
            session: required(found.session, t, "session")?,
            node: required(found.node, t, "node")?,
            user: required(found.user, t, "user")?,
            now: required(found.now, t, "now")?,
            limits: required(found.limits, t, "limits")?,
            caps: found.caps.unwrap_or_default(),
            ping_ms: required(found.ping_ms, t, "ping_ms")?,
            token_expires: found.token_expires,
        }),
        "begin" => ServerMessage::Begin(Begin {
            id: required(found.id, t, "id")?,
            n: required(found.n, t, "n")?,
            mode: required(found.mode, t, "mode")?,
            view: required(found.view, t, "view")?,
            epoch: Epoch(required(found.epoch, t, "epoch")?),
            // The safe reading: what was staged is dropped.
            resumed: found.resumed.unwrap_or(false),
        }),
        "page" => ServerMessage::Page {
            id: required(found.id, t, "id")?,
            docs: required(found.docs, t, "docs")?,
            cursor: required(found.cursor, t, "cursor")?,
        },
        "current" => ServerMessage::Current {
            id: required(found.id, t, "id")?,
            position: position(&found)?,
            last_mid: found.last_mid,
        },
        "epoch" => ServerMessage::Epoch {
            n: required(found.n, t, "n")?,
            position: position(&found)?,
        },
        "progress" => ServerMessage::Progress {
            n: required(found.n, t, "n")?,
            seq: required(found.seq, t, "seq")?,
        },
        "ack" => ServerMessage::Ack(Ack {
            position: position(&found)?,
            space: required(found.space, t, "space")?,
            mid: required(found.mid, t, "mid")?,
            conflicts: found.conflicts.unwrap_or_default(),
            skipped: found.skipped.unwrap_or_default(),
        }),
        "reject" => ServerMessage::Reject(Reject {
            space: required(found.space, t, "space")?,
            mid: required(found.mid, t, "mid")?,
            code: required(found.code, t, "code")?,
            message: found.message.unwrap_or_default(),
            at: found.place,
            retry_ms: found.retry_ms,
            expected: found.expected,
            cells: found.cells.unwrap_or_default(),
        }),
        "docs" => ServerMessage::Docs {
            id: required(found.id, t, "id")?,
            position: position(&found)?,
            docs: required(found.docs, t, "docs")?,
        },
        "denied" => ServerMessage::Denied {
            id: required(found.id, t, "id")?,
            code: required(found.code, t, "code")?,
            purge: found.purge.unwrap_or(false),
        },
        "goaway" => ServerMessage::Goaway {
            retry_ms: found.retry_ms.unwrap_or(0),
            jitter_ms: found.jitter_ms.unwrap_or(0),
        },
        "pong" => ServerMessage::Pong {
            at: required(found.at, t, "at")?,
            now: required(found.now, t, "now")?,
        },
        "error" => ServerMessage::Error {
            code: required(found.code, t, "code")?,
            message: found.message.unwrap_or_default(),
            re: found.re,
        },
        other => return Err(Invalid::unsupported("message type", other)),
    })
}

fn read_at(r: &mut Reader<'_>) -> Result<At, Invalid> {
    let (mut op, mut path) = (None, None);
    let n = r.map("at")?;
    r.entries("at", n, None, |r, key| {
        match key {
            "op" => op = Some(r.u32("op")?),
            "path" => path = Some(r.field()?),
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    Ok(At {
        op: required(op, "at", "op")?,
        path,
    })
}

fn read_units(r: &mut Reader<'_>) -> Result<Vec<ConflictUnit>, Invalid> {
    r.list("units", usize::MAX, |r| {
        let (mut op, mut doc, mut path, mut cells) = (None, None, None, None);
        let n = r.map("unit")?;
        r.entries("unit", n, None, |r, key| {
            match key {
                "op" => op = Some(r.u32("op")?),
                "doc" => doc = Some(r.doc()?),
                "path" => path = Some(r.field()?),
                "cells" => cells = Some(r.list("cells", usize::MAX, read_cell)?),
                _ => return Ok(false),
            }
            Ok(true)
        })?;
        Ok(ConflictUnit {
            op: required(op, "unit", "op")?,
            doc: required(doc, "unit", "doc")?,
            path,
            cells: cells.unwrap_or_default(),
        })
    })
}

fn read_cell(r: &mut Reader<'_>) -> Result<CellState, Invalid> {
    let n = r.array("cell")?;
    if !(3..=4).contains(&n) {
        return Err(Invalid::new("cell", &format!("must have 3 or 4 elements, has {n}")));
    }
    let path = r.field()?;
    let (seq, writer) = (r.seq("seq")?, Writer(r.u64("writer")?));
    let value = if n == 4 { Some(r.value()?) } else { None };
    Ok(CellState {
        path,
        seq,
        writer,
        value,
    })
}

/// The limits by name, for reading and writing.
fn limits_by_name(limits: &mut Limits) -> [(&'static str, &mut usize); 8] {
    let Limits {
        message_bytes,
        doc_bytes,
        page_bytes,
        field_bytes,
        depth,
        ops,
        subscriptions,
        elements,
    } = limits;
    [
        ("message_bytes", message_bytes),
        ("doc_bytes", doc_bytes),
        ("page_bytes", page_bytes),
        ("field_bytes", field_bytes),
        ("depth", depth),
        ("ops", ops),
        ("subscriptions", subscriptions),
        ("elements", elements),
    ]
}

fn read_limits(r: &mut Reader<'_>) -> Result<Limits, Invalid> {
    let mut limits = Limits::default();
    let n = r.map("limits")?;
    r.entries("limits", n, None, |r, key| {
        match limits_by_name(&mut limits).into_iter().find(|(name, _)| *name == key) {
            Some((_, limit)) => *limit = usize::try_from(r.u64(key)?).unwrap_or(usize::MAX),
            None => return Ok(false),
        }
        Ok(true)
    })?;
    Ok(limits)
}

/// Writes a server's message.
pub fn encode_server(message: &ServerMessage) -> Vec<u8> {
    let mut out = Vec::with_capacity(TYPICAL);
    encode_server_to(&mut out, message);
    out
}

/// Appends a server message.
pub fn encode_server_to(out: &mut Vec<u8>, message: &ServerMessage) {
    match message {
        ServerMessage::Welcome(welcome) => write_welcome(out, welcome),
        ServerMessage::Begin(begin) => {
            let mut map = Map::message(out, "begin");
            map.uint("id", begin.id);
            map.uint("n", u64::from(begin.n));
            map.str("mode", begin.mode.name());
            map.uint("view", begin.view.0);
            map.uint("epoch", begin.epoch.0);
            map.bool("resumed", begin.resumed);
        }
        ServerMessage::Page { id, docs, cursor } => {
            let mut map = Map::message(out, "page");
            map.uint("id", *id);
            doc_changes(map.key("docs"), docs);
            map.bin("cursor", cursor);
        }
        ServerMessage::Current { id, position, last_mid } => {
            let mut map = Map::message(out, "current");
            map.uint("id", *id);
            map.epoch_seq(*position);
            match last_mid {
                Some(mid) => map.uint("last_mid", mid.get()),
                None => write::nil(map.key("last_mid")),
            }
        }
        ServerMessage::Change(Change { n, commit }) => {
            out.extend_from_slice(&super::change_prefix(*n));
            let body = super::encode_body(commit.writer, commit.mid, &commit.docs);
            out.extend_from_slice(&super::payload(commit.seq, commit.at, &body));
        }
        ServerMessage::Epoch { n, position } => {
            let mut map = Map::message(out, "epoch");
            map.uint("n", u64::from(*n));
            map.epoch_seq(*position);
        }
        ServerMessage::Progress { n, seq } => {
            let mut map = Map::message(out, "progress");
            map.uint("n", u64::from(*n));
            map.uint("seq", seq.get());
        }
        ServerMessage::Ack(ack) => {
            let mut map = Map::message(out, "ack");
            map.str("space", ack.space.as_str());
            map.uint("mid", ack.mid.get());
            map.epoch_seq(ack.position);
            units(&mut map, "conflicts", &ack.conflicts);
            units(&mut map, "skipped", &ack.skipped);
        }
        ServerMessage::Reject(reject) => write_reject(out, reject),
        ServerMessage::Docs { id, position, docs } => {
            let mut map = Map::message(out, "docs");
            map.uint("id", *id);
            map.epoch_seq(*position);
            doc_changes(map.key("docs"), docs);
        }
        ServerMessage::Denied { id, code, purge } => {
            let mut map = Map::message(out, "denied");
            map.uint("id", *id);
            map.str("code", code.name());
            map.bool("purge", *purge);
        }
        ServerMessage::Goaway { retry_ms, jitter_ms } => {
            let mut map = Map::message(out, "goaway");
            map.uint("retry_ms", *retry_ms);
            map.uint("jitter_ms", *jitter_ms);
        }
        ServerMessage::Pong { at, now } => {
            let mut map = Map::message(out, "pong");
            map.uint("at", *at);
            map.uint("now", *now);
        }
        ServerMessage::Error { code, message, re } => {
            let mut map = Map::message(out, "error");
            map.str("code", code.name());
            map.str("message", message);
            if let Some(re) = re {
                map.uint("ref", *re);
            }
        }
    }
}

fn write_welcome(out: &mut Vec<u8>, welcome: &Welcome) {
    let mut map = Map::message(out, "welcome");
    map.str("session", &welcome.session);
    map.str("node", &welcome.node);
    map.str("user", &welcome.user);
    map.uint("now", welcome.now);
    let mut limits = Map::new(map.key("limits"));
    for (name, limit) in limits_by_name(&mut welcome.limits.clone()) {
        limits.uint(name, *limit as u64);
    }
    map.list("caps", &welcome.caps, text);
    map.uint("ping_ms", welcome.ping_ms);
    if let Some(at) = welcome.token_expires {
        map.uint("token_expires", at);
    }
}

fn write_reject(out: &mut Vec<u8>, reject: &Reject) {
    let mut map = Map::message(out, "reject");
    map.str("space", reject.space.as_str());
    map.uint("mid", reject.mid.get());
    map.str("code", reject.code.name());
    map.str("message", &reject.message);
    if let Some(At { op, path }) = &reject.at {
        let mut at = Map::new(map.key("at"));
        at.uint("op", u64::from(*op));
        if let Some(path) = path {
            at.path("path", path);
        }
    }
    if let Some(ms) = reject.retry_ms {
        map.uint("retry_ms", ms);
    }
    if let Some(mid) = reject.expected {
        map.uint("expected", mid.get());
    }
    units(&mut map, "cells", &reject.cells);
}

/// Units in conflict; absent if there is none.
fn units(map: &mut Map<'_>, key: &str, all: &[ConflictUnit]) {
    if all.is_empty() {
        return;
    }
    map.list(key, all, |out, unit| {
        let mut map = Map::new(out);
        map.uint("op", u64::from(unit.op));
        map.str("doc", unit.doc.as_str());
        if let Some(path) = &unit.path {
            map.path("path", path);
        }
        map.list("cells", &unit.cells, |out, cell| {
            write::array(out, if cell.value.is_some() { 4 } else { 3 });
            text(out, &cell.path);
            write::uint(out, cell.seq.get());
            write::uint(out, cell.writer.0);
            if let Some(value) = &cell.value {
                out.extend_from_slice(value.as_bytes());
            }
        });
    });
}
