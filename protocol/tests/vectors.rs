//! `protocol/vectors`: every message, op and kind of value as bytes, as text and in words, for other
//! languages to test themselves against. `UPDATE_VECTORS=1` writes them anew.

#![allow(clippy::unwrap_used)] // a test may panic

mod samples;

use samples::invalid::Input;
use serde_json::{Value as Json, json};
use std::borrow::Cow;
use std::collections::BTreeSet;
use std::fmt::Debug;
use std::path::Path;
use tidegate_protocol::*;

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Vec<u8> {
    assert!(text.len().is_multiple_of(2), "{text}");
    (0..text.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap())
        .collect()
}

/// Compares a file with what it should be, or writes it.
fn check_file(name: &str, about: &str, vectors: &[String]) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("vectors").join(name);
    // One vector a line: a change of the wire shows as a change of that line.
    let text = format!(
        "{{\"about\":{},\n\"vectors\":[\n{}\n]}}\n",
        json!(about),
        vectors.join(",\n")
    );
    #[allow(clippy::disallowed_methods)] // a switch of the developer at the test, not a setting of the program
    if std::env::var_os("UPDATE_VECTORS").is_some() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, &text).unwrap();
    }
    let found = std::fs::read_to_string(&path).unwrap_or_default();
    for (line, wanted) in found.lines().zip(text.lines()) {
        assert_eq!(
            line, wanted,
            "{name}: the wire form changed, or UPDATE_VECTORS=1 was forgotten"
        );
    }
    assert_eq!(found, text, "{name}");
    serde_json::from_str::<Json>(&text).unwrap();
}

/// An object on one line. The values are JSON text, so that they keep the order of their keys.
fn line(entries: &[(&str, String)]) -> String {
    let entries: Vec<_> = entries
        .iter()
        .map(|(key, value)| format!("{}:{value}", json!(key)))
        .collect();
    format!("{{{}}}", entries.join(","))
}

fn quoted(text: &str) -> String {
    json!(text).to_string()
}

/// A vector of a message: asserts that both forms decode to it and that it encodes to both.
fn message<T: PartialEq + Debug>(
    name: &str,
    kind: &str,
    message: &T,
    encode: impl Fn(Form, &T) -> Vec<u8>,
    decode: impl Fn(Form, &[u8]) -> T,
) -> String {
    let bytes = encode(Form::Msgpack, message);
    let text = String::from_utf8(encode(Form::Json, message)).unwrap();
    assert_eq!(decode(Form::Msgpack, &unhex(&hex(&bytes))), *message, "{name}");
    assert_eq!(decode(Form::Json, text.as_bytes()), *message, "{name}: {text}");
    line(&[
        ("name", quoted(name)),
        ("type", quoted(kind)),
        ("hex", quoted(&hex(&bytes))),
        ("json", text),
        ("decoded", quoted(&format!("{message:?}"))),
    ])
}

fn covered<'a>(what: &str, wanted: &[&'a str], found: impl IntoIterator<Item = &'a str>) {
    let found: BTreeSet<_> = found.into_iter().collect();
    let missing: Vec<_> = wanted.iter().filter(|name| !found.contains(*name)).collect();
    assert!(missing.is_empty(), "no vector for {what} {missing:?}");
}

#[test]
fn every_client_message_and_op_has_its_vector() {
    let all = samples::client::all();
    covered(
        "client message",
        samples::client::KINDS,
        all.iter().map(|(_, m)| samples::client::kind(m)),
    );
    let ops = samples::client::ops();
    covered(
        "op",
        samples::client::OP_KINDS,
        ops.iter().map(|(_, op)| samples::client::op_kind(&op.kind)),
    );
    assert_eq!(samples::client::OP_KINDS, OpKind::NAMES);
    let vectors: Vec<_> = all
        .iter()
        .map(|(name, m)| {
            message(
                name,
                samples::client::kind(m),
                m,
                |form, m| form.encode_client(m),
                |form, bytes| form.decode_client(bytes, &Limits::default()).unwrap(),
            )
        })
        .collect();
    let about =
        "Messages of a client. An encoder gives exactly `hex`; decoding `hex` or `json` gives the same message.";
    check_file("client.json", about, &vectors);
}

#[test]
fn every_server_message_has_its_vector() {
    let all = samples::server::all();
    covered(
        "server message",
        samples::server::KINDS,
        all.iter().map(|(_, m)| samples::server::kind(m)),
    );
    let docs = samples::server::docs();
    covered(
        "shape of d",
        samples::server::CHANGE_KINDS,
        docs.iter().map(|d| samples::server::change_kind(&d.kind)),
    );
    let vectors: Vec<_> = all
        .iter()
        .map(|(name, m)| {
            message(
                name,
                samples::server::kind(m),
                m,
                |form, m| form.encode_server(m),
                |form, bytes| form.decode_server(bytes).unwrap(),
            )
        })
        .collect();
    let about = "Messages of a server. Decoding `hex` or `json` gives the same message.";
    check_file("server.json", about, &vectors);
}

/// A value in words that every language has: integers and floats as text, bytes as hex.
fn in_words(value: ValueRef<'_>) -> Json {
    let kind = samples::value::kind(&value);
    let content = match value {
        ValueRef::Nil => Json::Null,
        ValueRef::Bool(b) => json!(b),
        ValueRef::Int(n) => json!(n.to_string()),
        ValueRef::Float(x) => json!({ "text": format!("{x:?}"), "bits": format!("{:016x}", x.to_bits()) }),
        ValueRef::Str(text) => json!(text),
        ValueRef::Bin(body) => json!(hex(body)),
        ValueRef::Timestamp(at) => json!({ "secs": at.secs.to_string(), "nanos": at.nanos }),
        ValueRef::Ext(kind, body) => json!({ "kind": kind, "hex": hex(body) }),
        ValueRef::Array(items) => items.map(|(item, _)| in_words(item)).collect(),
        ValueRef::Map(entries) => entries.map(|(key, item, _)| json!([key, in_words(item)])).collect(),
    };
    json!({ "kind": kind, "value": content })
}

#[test]
fn every_kind_of_value_has_its_vector() {
    let all = samples::value::all();
    covered(
        "value",
        samples::value::KINDS,
        all.iter().map(|s| samples::value::kind(&s.value.get())),
    );
    let vectors: Vec<_> = all
        .iter()
        .map(|sample| {
            let (name, value) = (sample.name, &sample.value);
            for spelling in sample.spellings {
                assert_eq!(
                    msgpack::value(&unhex(spelling)).as_ref(),
                    Ok(value),
                    "{name}: {spelling}"
                );
                assert_ne!(*spelling, hex(value.as_bytes()), "{name}");
            }
            assert_eq!(
                msgpack::value(&unhex(&hex(value.as_bytes()))).as_ref(),
                Ok(value),
                "{name}"
            );
            let tree = json::value_to_json(value);
            assert_eq!(json::value_from_json(&tree).as_ref(), Ok(value), "{name}");
            let text = json::from_msgpack(value.as_bytes());
            assert_eq!(
                json::to_msgpack(&text, &Limits::default()).unwrap(),
                value.as_bytes()[..],
                "{name}"
            );
            assert_eq!(serde_json::from_str::<Json>(&text).unwrap(), tree, "{name}");
            let mut vector = vec![
                ("name", quoted(name)),
                ("hex", quoted(&hex(value.as_bytes()))),
                ("json", text),
                ("decoded", in_words(value.get()).to_string()),
            ];
            if !sample.spellings.is_empty() {
                vector.push(("spellings", json!(sample.spellings).to_string()));
            }
            line(&vector)
        })
        .collect();
    let about = "Values in canonical form. `spellings` are other bytes that decode to the same value. \
                 In `decoded`, a map is a list of [key, value].";
    check_file("values.json", about, &vectors);
}

#[test]
fn what_is_refused_is_refused_with_the_code_of_its_vector() {
    let limits = Limits::default();
    let vectors: Vec<_> = samples::invalid::all()
        .into_iter()
        .map(|samples::invalid::Sample { name, input, code, mid }| {
            let check = |form: Form, frame: &[u8]| {
                let e = form.decode_client(frame, &limits).expect_err(name);
                assert_eq!(
                    (e.error.code, e.closes()),
                    (code, code == Code::Malformed),
                    "{name}: {e}"
                );
                assert_eq!(e.write.map(|head| head.mid.get()), mid, "{name}: {}", e.error);
                assert!(e.error.message.len() < 300, "{name}: {}", e.error);
            };
            let (of, input) = match &input {
                Input::Text(text) => {
                    check(Form::Json, text.as_bytes());
                    // Two vectors in one: the same message is refused in the binary form.
                    if let Ok(bytes) = json::to_msgpack(text, &limits) {
                        check(Form::Msgpack, &bytes);
                    }
                    ("client", ("text", quoted(text)))
                }
                Input::TextOnly(text) => {
                    check(Form::Json, text.as_bytes());
                    ("client", ("text", quoted(text)))
                }
                Input::Hex(text) => {
                    check(Form::Msgpack, &unhex(text));
                    ("client", ("hex", quoted(text)))
                }
                Input::Value(text) => {
                    assert_eq!(msgpack::value(&unhex(text)).expect_err(name).code, code, "{name}");
                    ("value", ("hex", quoted(text)))
                }
            };
            let mut vector = vec![
                ("name", quoted(name)),
                ("of", quoted(of)),
                input,
                ("code", quoted(code.name())),
            ];
            if let Some(mid) = mid {
                vector.push(("mid", mid.to_string()));
            }
            line(&vector)
        })
        .collect();
    let about = "What a gateway refuses under the default limits, in the binary form (`hex`) or the text form (`text`), \
                 with the code of the refusal. `mid`: the refusal is a `reject` and consumes it; else it is an `error`.";
    check_file("invalid.json", about, &vectors);
}

#[test]
fn a_compressed_message_gives_what_its_vector_says() {
    let bound = limits::MESSAGE_BYTES;
    let vectors: Vec<_> = samples::z::all()
        .into_iter()
        .map(|samples::z::Sample { name, bytes, holds }| {
            let found = deflate::expand(&bytes, bound).map(Cow::into_owned);
            assert_eq!(found.map_err(|e| e.code), holds, "{name}");
            let outcome = match holds {
                Ok(message) => ("holds", quoted(&hex(&message))),
                Err(code) => ("code", quoted(code.name())),
            };
            line(&[("name", quoted(name)), ("hex", quoted(&hex(&bytes))), outcome])
        })
        .collect();
    let about = "Messages of type z, in either direction. `holds`: the message in it. `code`: that of its refusal where \
                 messages are limited to 1,048,576 bytes. An encoder may choose any DEFLATE.";
    check_file("z.json", about, &vectors);
}
