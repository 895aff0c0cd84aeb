//! Memory for any input stays within a small constant times its length, however it is made.

#![allow(clippy::unwrap_used)] // a test may panic

use peak_alloc::PeakAlloc;
use std::sync::{Mutex, MutexGuard, PoisonError};
use tidegate_protocol::limits::MESSAGE_BYTES;
use tidegate_protocol::{ClientMessage, Code, Form, Limits, deflate, json, msgpack};

#[global_allocator]
static ALLOCATOR: PeakAlloc = PeakAlloc;

/// The allocator counts the whole process, so each test runs alone.
fn alone() -> MutexGuard<'static, ()> {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What any message may take, in bytes per byte. The worst that is accepted is an array of one-byte values
/// or a map of one-byte paths, whose elements take some 50 bytes each as types; [`Limits::elements`] ends
/// it at 65,536 of them. A real message takes 2 to 4.
const PER_BYTE: usize = 64;
/// What an error and the reader itself take.
const FIXED: usize = 4 << 10;

/// The most bytes that were allocated at once while `f` ran, and its result.
fn peak<T>(f: impl FnOnce() -> T) -> (usize, T) {
    ALLOCATOR.reset_peak_usage();
    let before = ALLOCATOR.current_usage();
    let result = f();
    (ALLOCATOR.peak_usage() - before, result)
}

fn text(out: &mut Vec<u8>, text: &str) {
    out.push(0xa0 | u8::try_from(text.len()).unwrap());
    out.extend_from_slice(text.as_bytes());
}

/// A `write` whose `ops` are these bytes.
fn write(ops: &[u8]) -> Vec<u8> {
    let mut out = vec![0x87];
    for key in ["t", "write", "space", "s"] {
        text(&mut out, key);
    }
    for key in ["client", "mid", "key", "first"] {
        text(&mut out, key);
        out.push(1);
    }
    text(&mut out, "ops");
    out.extend_from_slice(ops);
    out
}

/// One op on `a/b` with one more argument.
fn op(name: &str, path: bool, key: &str, value: &[u8]) -> Vec<u8> {
    let mut out = vec![0x91, if path { 0x84 } else { 0x83 }];
    for part in ["op", name, "doc", "a/b"] {
        text(&mut out, part);
    }
    if path {
        text(&mut out, "path");
        text(&mut out, "p");
    }
    text(&mut out, key);
    out.extend_from_slice(value);
    out
}

fn array32(n: usize) -> Vec<u8> {
    [&[0xdd][..], &u32::try_from(n).unwrap().to_be_bytes()].concat()
}

fn map32(n: usize) -> Vec<u8> {
    [&[0xdf][..], &u32::try_from(n).unwrap().to_be_bytes()].concat()
}

/// `n` distinct keys of three letters.
fn keys(n: usize) -> impl Iterator<Item = [u8; 4]> {
    let letter = |n: usize| b'a' + u8::try_from(n % 26).unwrap();
    (0..n).map(move |i| [0xa3, letter(i / 676), letter(i / 26), letter(i)])
}

fn map_of(keys: impl Iterator<Item = [u8; 4]>, n: usize, value: &[u8]) -> Vec<u8> {
    keys.fold(map32(n), |mut out, key| {
        out.extend_from_slice(&key);
        out.extend_from_slice(value);
        out
    })
}

/// Inputs made to cost, each with the code that it is refused with, if it is.
fn bombs() -> Vec<(&'static str, Vec<u8>, Option<Code>)> {
    use Code::{Invalid, Malformed, TooLarge};
    let mib = 1 << 20;
    let n = 17_000;
    let reversed = keys(n).collect::<Vec<_>>().into_iter().rev();
    vec![
        (
            "a length that cannot be true",
            array32(u32::MAX as usize),
            Some(Malformed),
        ),
        ("a map of 4 billion", map32(u32::MAX as usize), Some(Malformed)),
        (
            "an array of 4 billion ops",
            write(&array32(u32::MAX as usize)),
            Some(Malformed),
        ),
        ("a string of 4 GiB", vec![0xdb, 0xff, 0xff, 0xff, 0xff], Some(Malformed)),
        (
            "a binary of 4 GiB",
            write(&op("add", true, "values", &[0x91, 0xc6, 0xff, 0xff, 0xff, 0xff])),
            Some(Malformed),
        ),
        ("nils", vec![0xc0; mib], Some(Malformed)),
        (
            "ops that are nil",
            write(&[array32(500), vec![0xc0; 500]].concat()),
            Some(Invalid),
        ),
        (
            "a megabyte of nils",
            write(&op(
                "add",
                true,
                "values",
                &[array32(mib - 200), vec![0xc0; mib - 200]].concat(),
            )),
            Some(TooLarge),
        ),
        (
            "as many nils as go in",
            write(&op(
                "add",
                true,
                "values",
                &[array32(65_000), vec![0xc0; 65_000]].concat(),
            )),
            None,
        ),
        (
            "a megabyte of nils in a field",
            write(&op(
                "set",
                false,
                "fields",
                &[&[0x81, 0xa1, b'a'][..], &array32(mib - 200), &vec![0xc0; mib - 200]].concat(),
            )),
            Some(TooLarge),
        ),
        (
            "many fields",
            write(&op("set", false, "fields", &map_of(keys(n), n, &[0xc0]))),
            None,
        ),
        (
            "many fields of two bytes",
            write(&op("set", false, "fields", &map_of(keys(n), n, &[0xcc, 0x80]))),
            None,
        ),
        (
            "many paths",
            write(&op(
                "unset",
                false,
                "paths",
                &[array32(n), keys(n).collect::<Vec<_>>().concat()].concat(),
            )),
            None,
        ),
        (
            "a map that is not sorted",
            write(&op(
                "add",
                true,
                "values",
                &[vec![0x91], map_of(reversed, n, &[0xc0])].concat(),
            )),
            None,
        ),
        (
            "duplicate keys",
            write(&op(
                "add",
                true,
                "values",
                &[vec![0x91], map_of((0..n).map(|_| *b"\xa3dup"), n, &[0xc0])].concat(),
            )),
            Some(Invalid),
        ),
        (
            "duplicate keys of the message",
            map_of((0..n).map(|_| *b"\xa3dup"), n, &[0xc0]),
            Some(Malformed),
        ),
        (
            "unknown keys of the message",
            [
                &map32(n + 2)[..],
                b"\xa1t\xa4ping\xa2at\x01",
                &map_of(keys(n), n, &[0xc0])[5..],
            ]
            .concat(),
            None,
        ),
        (
            "depth",
            write(&op("add", true, "values", &vec![0x91; mib - 200])),
            Some(Malformed),
        ),
        (
            "depth that ends",
            write(&op(
                "add",
                true,
                "values",
                &[vec![0x91; mib - 200], vec![0xc0]].concat(),
            )),
            Some(TooLarge),
        ),
        (
            "depth of maps",
            write(&op("set", false, "fields", &b"\x81\xa1a".repeat(mib / 4))),
            Some(Malformed),
        ),
        (
            "bad UTF-8",
            write(&op(
                "add",
                true,
                "values",
                &[&[0x91, 0xdb, 0, 8, 0, 0][..], &[0xff; 8 << 16]].concat(),
            )),
            Some(Invalid),
        ),
        (
            "a field path of 512 KiB",
            write(&op(
                "set",
                false,
                "fields",
                &[&[0x81, 0xdb, 0, 8, 0, 0][..], &[b'a'; 8 << 16], &[0xc0]].concat(),
            )),
            Some(TooLarge),
        ),
    ]
}

#[test]
fn memory_for_any_message_stays_within_a_small_constant_times_its_length() {
    let _alone = alone();
    let limits = Limits::default();
    for (name, input, code) in bombs() {
        let (bytes, result) = peak(|| msgpack::decode_client(&input, &limits));
        println!("{name}: {bytes} bytes for {}", input.len());
        assert!(
            bytes <= FIXED + PER_BYTE * input.len(),
            "{name}: {bytes} bytes for {}",
            input.len()
        );
        assert_eq!(
            result.as_ref().err().map(|e| e.error.code),
            code,
            "{name}: {:?}",
            result.err()
        );
        // At the limit on elements, the constant is smaller still.
        assert!(
            bytes <= FIXED + 6 * (1 << 20),
            "{name}: {bytes} bytes for {}",
            input.len()
        );
        for bytes in [
            peak(|| msgpack::value(&input)).0,
            peak(|| msgpack::decode_server(&input)).0,
        ] {
            assert!(
                bytes <= FIXED + PER_BYTE * input.len(),
                "{name}: {bytes} bytes for {}",
                input.len()
            );
        }
    }
}

#[test]
fn leaves_that_repeat_a_long_path_are_held_to_the_size_of_a_message() {
    let _alone = alone();
    // 17,000 leaves below one path of 496 bytes: 85 KB that flatten to 8.5 MB.
    let limits = Limits::default();
    let inner = map_of(keys(17_000), 17_000, &[0xc0]);
    let mut fields = vec![0x81, 0xda, 1, 0xf0];
    fields.extend([b'x'; 0x1f0]);
    fields.extend(inner);
    let input = write(&op("set", false, "fields", &fields));
    let (bytes, result) = peak(|| msgpack::decode_client(&input, &limits));
    assert_eq!(result.expect_err("too large").error.code, Code::TooLarge);
    assert!(bytes <= 4 * limits.message_bytes, "{bytes} bytes for {}", input.len());
}

#[test]
fn memory_for_any_text_stays_within_a_small_constant_times_its_length() {
    let _alone = alone();
    let limits = Limits::default();
    let mib = 1 << 20;
    let texts = [
        "[".repeat(mib),
        format!("[{}0]", "0,".repeat(mib / 2 - 2)),
        format!("[{}0]", "1.5,".repeat(mib / 4 - 2)),
        format!("[{}0]", "[],".repeat(mib / 3 - 2)),
        format!("[{}0]", r#"{"$ts":1},"#.repeat(mib / 10 - 2)),
        format!("{{{}\"\":0}}", "\"\":0,".repeat(mib / 5 - 2)),
        format!("{}0", "{\"\":".repeat(mib / 4 - 2)),
        format!("{{\"$bin\":\"{}\"}}", "AAAA".repeat(mib / 4 - 8)),
        format!("{{\"$$$\":\"{}\"}}", "\\u0001".repeat(mib / 6 - 8)),
    ];
    for text in texts {
        assert!(text.len() <= mib);
        let (bytes, _) = peak(|| json::to_msgpack(&text, &limits));
        assert!(
            bytes <= FIXED + 16 * text.len(),
            "{bytes} bytes for {}: {text:.20}",
            text.len()
        );
        let (bytes, _) = peak(|| Form::Json.decode_client(text.as_bytes(), &limits));
        assert!(
            bytes <= FIXED + 16 * text.len(),
            "{bytes} bytes for {}: {text:.20}",
            text.len()
        );
    }
}

#[test]
fn memory_for_a_servers_message_stays_within_a_small_constant_times_its_length() {
    let _alone = alone();
    let n = 17_000;
    let leaves = map_of(keys(n), n, &[0xc0]);
    let unset = [array32(n), keys(n).collect::<Vec<_>>().concat()].concat();
    let docs = [&b"\x91\x93\xa3a/b"[..], &leaves, &unset].concat();
    let deleted = [array32(n), b"\x91\xa3a/b".repeat(n)].concat();
    let bomb = [&array32(1 << 30)[..], &[0x91; 1 << 16]].concat();
    for docs in [docs, deleted, bomb] {
        let (bytes, _) = peak(|| msgpack::decode_doc_changes(&docs));
        assert!(
            bytes <= FIXED + PER_BYTE * docs.len(),
            "{bytes} bytes for {}",
            docs.len()
        );
        let page = [b"\x84\xa1t\xa4page\xa2id\x01\xa6cursor\xc4\0\xa4docs", &docs[..]].concat();
        let (bytes, _) = peak(|| msgpack::decode_server(&page));
        assert!(
            bytes <= FIXED + PER_BYTE * docs.len(),
            "{bytes} bytes for {}",
            docs.len()
        );
    }
}

#[test]
fn a_message_that_is_mostly_content_takes_little_more_than_that() {
    let _alone = alone();
    let content = [&[0x91, 0xdb, 0, 8, 0, 0][..], &[b'a'; 8 << 16]].concat();
    let input = write(&op("add", true, "values", &content));
    let (bytes, result) = peak(|| msgpack::decode_client(&input, &Limits::default()));
    assert!(matches!(result, Ok(ClientMessage::Write(_))));
    assert!(bytes < input.len() + FIXED, "{bytes} bytes for {}", input.len());
}

/// DEFLATE of `4,096 + 1,032 n` zeros in `20 + n` bytes: the most that it can make of them. Written by zlib.
fn zeros(n: usize) -> Vec<u8> {
    let head = b"\xed\xc1\x01\x0d\x00\x00\x00\xc2\xa0\xf7\x4f\x6d\x0f\x07\x14";
    [&head[..], &vec![0; n], b"\x00\x00\x00\xf0\x6e"].concat()
}

fn z(size: u32, raw: &[u8]) -> Vec<u8> {
    let len = u32::try_from(raw.len()).unwrap();
    let head = b"\x83\xa1t\xa1z\xa4size\xce";
    [head, &size.to_be_bytes()[..], b"\xa3raw\xc6", &len.to_be_bytes(), raw].concat()
}

#[test]
fn a_megabyte_that_would_inflate_to_a_gigabyte_takes_no_more_than_a_message_may() {
    let _alone = alone();
    // What the inflater takes itself: its window, and the tables of its codes.
    let inflater = 64 << 10;
    let mib = 1 << 20;
    let bomb = zeros(mib);
    let gigabyte = u32::try_from(4_096 + 1_032 * mib).unwrap();
    let (bytes, result) = peak(|| deflate::expand(&z(gigabyte, &bomb), MESSAGE_BYTES).map(|_| ()));
    assert_eq!(result.unwrap_err().code, Code::Oversize);
    // The bomb's own copy, in `z`, and no more.
    assert!(bytes <= 2 * mib + FIXED, "{bytes} bytes");
    for size in [1, 4_096, 5_128, mib - 1, mib] {
        let lie = z(u32::try_from(size).unwrap(), &bomb);
        let (bytes, result) = peak(|| deflate::expand(&lie, MESSAGE_BYTES).map(|_| ()));
        assert_eq!(result.unwrap_err().code, Code::Malformed);
        assert!(bytes <= size + inflater + FIXED, "{bytes} bytes for a size of {size}");
    }
    // A size that is not there takes nothing: 20 bytes that say a megabyte.
    let (bytes, result) =
        peak(|| deflate::expand(&z(u32::try_from(mib).unwrap(), &zeros(0)), MESSAGE_BYTES).map(|_| ()));
    assert_eq!(result.unwrap_err().code, Code::Malformed);
    assert!(bytes <= FIXED, "{bytes} bytes");
    // What is within the bound is given whole.
    let fits = z(u32::try_from(4_096 + 1_032 * 1_000).unwrap(), &zeros(1_000));
    assert_eq!(
        deflate::expand(&fits, MESSAGE_BYTES).unwrap().len(),
        4_096 + 1_032 * 1_000
    );
}
