//! Text to MessagePack, in one pass and without a tree.

use crate::error::Invalid;
use crate::limits::Limits;
use crate::msgpack::scan::{Token, over, token, utf8};
use crate::value::{Timestamp, write};
use base64::Engine;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use serde::de::{DeserializeSeed, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use std::fmt;
use std::ops::Range;

/// Deeper than any message that the decoders accept; below serde_json's own bound of 128.
const DEPTH: usize = 100;

const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Transcodes one JSON text, a message or a value, to MessagePack in its shortest form.
pub fn to_msgpack(text: &str, limits: &Limits) -> Result<Vec<u8>, Invalid> {
    if text.len() > limits.message_bytes {
        return Err(Invalid::too_large(
            "message size in bytes",
            limits.message_bytes,
            text.len(),
        ));
    }
    match transcode(text)? {
        (bytes, None) => Ok(bytes),
        (_, Some(problem)) => Err(problem),
    }
}

/// As [`to_msgpack`], but a part that is JSON and yet no message (a bad `$` form, a key that repeats)
/// does not end it: the rest is transcoded, with nil in its place, so that a `write` can be refused by name.
pub(crate) fn transcode(text: &str) -> Result<(Vec<u8>, Option<Invalid>), Invalid> {
    let mut state = State {
        out: Vec::with_capacity(text.len()),
        problem: wide_integer(text),
        depth: 0,
    };
    let mut json = serde_json::Deserializer::from_str(text);
    let read = Node(&mut state).deserialize(&mut json).and_then(|()| json.end());
    read.map_err(|e| Invalid::malformed(&format!("no JSON: {e}")))?;
    Ok((state.out, state.problem))
}

pub(super) fn of_json(json: &serde_json::Value) -> Result<Vec<u8>, Invalid> {
    let mut state = State {
        out: Vec::new(),
        problem: None,
        depth: 0,
    };
    Node(&mut state)
        .deserialize(json)
        .map_err(|e| Invalid::malformed(&format!("no JSON: {e}")))?;
    state.problem.map_or(Ok(state.out), Err)
}

/// An integer beyond 64 bits, which serde_json would make a double of.
fn wide_integer(text: &str) -> Option<Invalid> {
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        rest = match first {
            b'"' => after_string(after),
            b'-' | b'0'..=b'9' => {
                let in_number = |b: &u8| matches!(b, b'0'..=b'9' | b'+' | b'-' | b'.' | b'e' | b'E');
                let len = rest.iter().position(|b| !in_number(b)).unwrap_or(rest.len());
                let (number, after) = rest.split_at(len);
                let digits = number.strip_prefix(b"-").unwrap_or(number);
                if digits.len() >= 19 && digits.iter().all(u8::is_ascii_digit) {
                    let number = std::str::from_utf8(number).unwrap_or_default();
                    if number.parse::<i64>().is_err() && number.parse::<u64>().is_err() {
                        return Some(Invalid::new(
                            "number",
                            &format!("{number:.64} is an integer beyond 64 bits"),
                        ));
                    }
                }
                after
            }
            _ => after,
        };
    }
    None
}

fn after_string(mut rest: &[u8]) -> &[u8] {
    while let Some(at) = rest.iter().position(|b| matches!(b, b'"' | b'\\')) {
        if rest[at] == b'"' {
            return &rest[at + 1..];
        }
        rest = rest.get(at + 2..).unwrap_or_default();
    }
    &[]
}

struct State {
    out: Vec<u8>,
    /// The first part that is JSON and yet not allowed.
    problem: Option<Invalid>,
    depth: usize,
}

impl State {
    fn refuse(&mut self, problem: Invalid) {
        self.problem.get_or_insert(problem);
    }

    /// Puts the length of an array or map into the byte kept free for it at `start`.
    fn set_len(&mut self, start: usize, n: usize, fix: u8, wide: [u8; 2]) {
        match (u8::try_from(n), u16::try_from(n), u32::try_from(n)) {
            (Ok(n @ 0..=15), _, _) => self.out[start] = fix | n,
            (_, Ok(n), _) => {
                let [a, b] = n.to_be_bytes();
                self.out.splice(start..=start, [wide[0], a, b]);
            }
            (_, _, Ok(n)) => {
                let [a, b, c, d] = n.to_be_bytes();
                self.out.splice(start..=start, [wide[1], a, b, c, d]);
            }
            _ => self.refuse(over("elements of a message", u32::MAX as usize)),
        }
    }

    /// A map with the one key at `key`, which begins with `$`: writes what it stands for in its place.
    fn dollar(&mut self, start: usize, key: Range<usize>) {
        let name = String::from_utf8_lossy(&self.out[key.start..key.end]).into_owned();
        let value = self.out.split_off(key.end);
        self.out.truncate(start);
        if let Some(real) = name.strip_prefix('$').filter(|real| real.starts_with('$')) {
            write::map(&mut self.out, 1);
            write::str(&mut self.out, real);
            self.out.extend_from_slice(&value);
            return;
        }
        if let Err(problem) = typed(&name, &value, &mut self.out) {
            self.out.truncate(start);
            write::nil(&mut self.out);
            self.refuse(problem);
        }
    }

    /// Whether one more level may be read; if not, it is skipped and stands as nil.
    fn enter(&mut self) -> bool {
        self.depth += 1;
        if self.depth > DEPTH {
            write::nil(&mut self.out);
            self.refuse(over("depth of a message", DEPTH));
        }
        self.depth <= DEPTH
    }
}

/// Writes the typed value that `{name: value}` stands for; `value` is MessagePack.
fn typed(name: &str, value: &[u8], out: &mut Vec<u8>) -> Result<(), Invalid> {
    let wrong = |wanted: &str| Invalid::new(name, &format!("must be {wanted}"));
    let base64 = |text: &[u8], wanted| BASE64.decode(text).map_err(|_| wrong(wanted));
    let (first, next, _) = token(value, 0)?;
    let pair = || -> Result<_, Invalid> {
        let (a, next, _) = token(value, next)?;
        Ok((a, token(value, next)?.0))
    };
    match (name, first) {
        ("$bin", Token::Str(text)) => write::bin(out, &base64(text, "base64 text")?),
        ("$bin", _) => return Err(wrong("base64 text")),
        ("$int", Token::Str(text)) => {
            let text = utf8(text, name)?;
            match (text.parse(), text.parse()) {
                _ if text.starts_with('+') => return Err(wrong("decimal digits, with - in front if negative")),
                (Ok(n), _) => write::int(out, n),
                (_, Ok(n)) => write::uint(out, n),
                _ => return Err(wrong("decimal digits of an integer of 64 bits")),
            }
        }
        ("$int", _) => return Err(wrong("text of decimal digits")),
        ("$ts", Token::Int(ms)) => {
            let nanos = u32::try_from(ms.rem_euclid(1_000) * 1_000_000).expect("below 10^9");
            write::timestamp(
                out,
                Timestamp {
                    secs: ms.div_euclid(1_000),
                    nanos,
                },
            );
        }
        ("$ts", Token::Array(2)) => match pair()? {
            (Token::Int(secs), Token::Int(nanos @ 0..1_000_000_000)) => {
                write::timestamp(
                    out,
                    Timestamp {
                        secs,
                        nanos: u32::try_from(nanos).expect("below 10^9"),
                    },
                );
            }
            _ => return Err(wrong("[seconds, nanoseconds below 10^9]")),
        },
        ("$ts", _) => return Err(wrong("ms, or [seconds, nanoseconds]")),
        ("$ext", Token::Array(2)) => match pair()? {
            (Token::Int(kind @ 0..=31), Token::Str(text)) => {
                let body = base64(text, "[kind, base64 text]")?;
                write::ext(out, i8::try_from(kind).expect("below 32"), &body);
            }
            _ => return Err(wrong("[kind from 0 to 31, base64 text]")),
        },
        ("$ext", _) => return Err(wrong("[kind, base64 text]")),
        _ => {
            let why = "is none of $bin, $ts, $int, $ext; a real key that begins with $ gets one more $";
            return Err(Invalid::new(&format!("{name:.64?}"), why));
        }
    }
    Ok(())
}

/// Reads one JSON value and writes it to the state's `out`.
struct Node<'s>(&'s mut State);

impl<'de> DeserializeSeed<'de> for Node<'_> {
    type Value = ();

    fn deserialize<D: serde::Deserializer<'de>>(self, json: D) -> Result<(), D::Error> {
        json.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Node<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        write::nil(&mut self.0.out);
        Ok(())
    }

    fn visit_bool<E>(self, b: bool) -> Result<(), E> {
        write::bool(&mut self.0.out, b);
        Ok(())
    }

    fn visit_i64<E>(self, n: i64) -> Result<(), E> {
        write::int(&mut self.0.out, n);
        Ok(())
    }

    fn visit_u64<E>(self, n: u64) -> Result<(), E> {
        write::uint(&mut self.0.out, n);
        Ok(())
    }

    fn visit_f64<E: Error>(self, x: f64) -> Result<(), E> {
        write::float(&mut self.0.out, x);
        Ok(())
    }

    fn visit_str<E>(self, text: &str) -> Result<(), E> {
        write::str(&mut self.0.out, text);
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        let state = self.0;
        if state.enter() {
            let (start, mut n) = (state.out.len(), 0);
            state.out.push(0x90);
            while seq.next_element_seed(Node(state))?.is_some() {
                n += 1;
            }
            state.set_len(start, n, 0x90, [0xdc, 0xdd]);
        } else {
            while seq.next_element::<IgnoredAny>()?.is_some() {}
        }
        state.depth -= 1;
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let state = self.0;
        if state.enter() {
            let start = state.out.len();
            let mut keys = Vec::new();
            state.out.push(0x80);
            while let Some(key) = map.next_key_seed(Key(state))? {
                keys.push(key);
                map.next_value_seed(Node(state))?;
            }
            if let [key] = &keys[..]
                && state.out[key.start..].first() == Some(&b'$')
                && key.start < key.end
            {
                state.dollar(start, key.clone());
            } else {
                refuse_repeats(state, &mut keys);
                state.set_len(start, keys.len(), 0x80, [0xde, 0xdf]);
            }
        } else {
            while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        }
        state.depth -= 1;
        Ok(())
    }
}

fn refuse_repeats(state: &mut State, keys: &mut [Range<usize>]) {
    let out = &state.out;
    keys.sort_unstable_by(|a, b| out[a.clone()].cmp(&out[b.clone()]));
    if let Some(pair) = keys
        .windows(2)
        .find(|pair| out[pair[0].clone()] == out[pair[1].clone()])
    {
        let key = String::from_utf8_lossy(&out[pair[0].clone()]).into_owned();
        state.refuse(Invalid::new("map key", &format!("{key:.64?} occurs twice in one map")));
    }
}

/// Reads a key, writes it, and says where its text stands.
struct Key<'s>(&'s mut State);

impl<'de> DeserializeSeed<'de> for Key<'_> {
    type Value = Range<usize>;

    fn deserialize<D: serde::Deserializer<'de>>(self, json: D) -> Result<Range<usize>, D::Error> {
        json.deserialize_str(self)
    }
}

impl Visitor<'_> for Key<'_> {
    type Value = Range<usize>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E>(self, text: &str) -> Result<Range<usize>, E> {
        write::str(&mut self.0.out, text);
        let end = self.0.out.len();
        Ok(end - text.len()..end)
    }
}
