//! Decoders never panic, and encoders and decoders are each other's inverse.

#![allow(clippy::unwrap_used)] // a test may panic

mod samples;

use proptest::collection::{btree_map, vec};
use proptest::prelude::*;
use std::borrow::Cow;
use tidegate_protocol::*;

/// Values of every kind, nested.
fn value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::nil()),
        any::<bool>().prop_map(Value::bool),
        any::<i64>().prop_map(Value::int),
        (0..64_u32, any::<i64>()).prop_map(|(shift, n)| Value::int(n >> shift)),
        any::<f64>().prop_filter_map("finite", |x| Value::float(x).ok()),
        ".{0,40}".prop_map(|text| Value::str(&text)),
        vec(any::<u8>(), 0..40).prop_map(|body| Value::bin(&body)),
        (any::<i64>(), 0..64_u32, 0..1_000_000_000_u32).prop_map(|(secs, shift, nanos)| Value::timestamp(Timestamp {
            secs: secs >> shift,
            nanos
        })),
        (0..32_u8, vec(any::<u8>(), 0..20)).prop_map(|(kind, body)| Value::ext(kind, &body).unwrap()),
    ];
    leaf.prop_recursive(6, 60, 20, |inner| {
        prop_oneof![
            vec(inner.clone(), 0..20).prop_map(|items| Value::array(items.iter())),
            btree_map("[$a-cé]{0,3}", inner, 0..20)
                .prop_map(|map| Value::map(map.iter().map(|(key, value)| (key.as_str(), value))).unwrap()),
        ]
    })
}

/// Another spelling of a canonical value: maps turned round, every head as long as it can be.
fn spell(value: ValueRef<'_>, out: &mut Vec<u8>) {
    let len = |out: &mut Vec<u8>, head: u8, n: usize| {
        out.push(head);
        out.extend(u32::try_from(n).unwrap().to_be_bytes());
    };
    match value {
        ValueRef::Nil => out.push(0xc0),
        ValueRef::Bool(b) => out.push(0xc2 | u8::from(b)),
        ValueRef::Int(n) => {
            out.push(0xd3);
            out.extend(n.to_be_bytes());
        }
        ValueRef::Float(x) => {
            #[allow(clippy::cast_possible_truncation)]
            let narrow = x as f32;
            if f64::from(narrow).to_bits() == x.to_bits() {
                out.push(0xca);
                out.extend(narrow.to_be_bytes());
            } else {
                out.push(0xcb);
                out.extend(x.to_be_bytes());
            }
        }
        ValueRef::Str(text) => {
            len(out, 0xdb, text.len());
            out.extend(text.bytes());
        }
        ValueRef::Bin(body) => {
            len(out, 0xc6, body.len());
            out.extend(body);
        }
        ValueRef::Timestamp(at) => {
            out.extend([0xc7, 12, 0xff]);
            out.extend(at.nanos.to_be_bytes());
            out.extend(at.secs.to_be_bytes());
        }
        ValueRef::Ext(kind, body) => {
            len(out, 0xc9, body.len());
            out.push(kind);
            out.extend(body);
        }
        ValueRef::Array(items) => {
            len(out, 0xdd, items.len());
            items.for_each(|(item, _)| spell(item, out));
        }
        ValueRef::Map(entries) => {
            len(out, 0xdf, entries.len());
            let mut all: Vec<_> = entries.collect();
            all.reverse();
            for (key, item, _) in all {
                spell(ValueRef::Str(key), out);
                spell(item, out);
            }
        }
    }
}

/// Every decoder, on any bytes, and on what is compressed in them.
fn decode_all(bytes: &[u8]) {
    let limits = Limits::default();
    match deflate::expand(bytes, 100_000) {
        // No message within what was in one.
        Ok(Cow::Owned(message)) => {
            assert!(message.len() <= 100_000);
            assert_eq!(deflate::expand(&message, 100_000).unwrap(), message);
            decode_all(&message);
        }
        Ok(Cow::Borrowed(message)) => assert_eq!(message, bytes),
        Err(e) => assert!(matches!(e.code, Code::Malformed | Code::Oversize), "{e}"),
    }
    if let Ok(value) = msgpack::value(bytes) {
        assert_eq!(msgpack::value(value.as_bytes()).unwrap(), value);
        assert_eq!(json::value_from_json(&json::value_to_json(&value)).unwrap(), value);
        value.depth();
    }
    for form in Form::ALL {
        match form.decode_client(bytes, &limits) {
            Ok(message) => {
                // What was read is written in one way, which reads as the same.
                let again = form.encode_client(&message);
                assert_eq!(
                    form.decode_client(&again, &limits).as_ref(),
                    Ok(&message),
                    "{message:?}"
                );
            }
            Err(e) => assert!(!(e.closes() && (e.write.is_some() || e.re.is_some())), "{e:?}"),
        }
        if let Ok(message) = form.decode_server(bytes) {
            assert_eq!(
                form.decode_server(&form.encode_server(&message)).as_ref(),
                Ok(&message),
                "{message:?}"
            );
        }
    }
    let _ = msgpack::decode_ops(bytes, &limits);
    let _ = msgpack::decode_payload(bytes);
    let _ = msgpack::payload_seq(bytes);
    let _ = msgpack::decode_doc_changes(bytes);
    let _ = json::from_msgpack(bytes);
}

/// A message of the vectors, in either form, or compressed.
fn message() -> impl Strategy<Value = Vec<u8>> {
    let mut all: Vec<_> = samples::z::all().into_iter().map(|sample| sample.bytes).collect();
    for form in Form::ALL {
        all.extend(samples::client::all().iter().map(|(_, m)| form.encode_client(m)));
        all.extend(samples::server::all().iter().map(|(_, m)| form.encode_server(m)));
    }
    prop::sample::select(all)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_value_keeps_its_content_in_both_forms_and_however_it_is_spelt(value in value()) {
        prop_assert_eq!(&msgpack::value(value.as_bytes()).unwrap(), &value);
        let mut other = Vec::new();
        spell(value.get(), &mut other);
        prop_assert_eq!(&msgpack::value(&other).unwrap(), &value);
        let text = json::from_msgpack(value.as_bytes());
        let back = json::to_msgpack(&text, &Limits::default()).unwrap();
        prop_assert_eq!(&msgpack::value(&back).unwrap(), &value, "{}", text);
        prop_assert_eq!(&json::value_from_json(&json::value_to_json(&value)).unwrap(), &value);
        let path = FieldPath::parse("a.b").unwrap();
        let op = |fields| Op { doc: samples::doc("a/b"), kind: OpKind::Set(fields), exists: None, unchanged_since: None };
        if let Ok(fields) = Fields::new([(path, value)], &Limits::default()) {
            let ops = [op(fields)];
            prop_assert_eq!(&msgpack::decode_ops(&msgpack::encode_ops(&ops), &Limits::default()).unwrap()[..], &ops);
        }
    }

    #[test]
    fn random_bytes_harm_no_decoder(bytes in vec(any::<u8>(), 0..200)) {
        decode_all(&bytes);
    }

    #[test]
    fn perturbed_messages_harm_no_decoder(
        mut bytes in message(),
        flips in vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        for (at, byte) in flips {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        decode_all(&bytes);
    }

    #[test]
    fn messages_spliced_of_two_harm_no_decoder(
        a in message(), b in message(), i in any::<prop::sample::Index>(), j in any::<prop::sample::Index>(),
    ) {
        decode_all(&[&a[..i.index(a.len())], &b[j.index(b.len())..]].concat());
    }
}

/// Bytes of which some repeat.
fn compressible() -> impl Strategy<Value = Vec<u8>> {
    vec((vec(any::<u8>(), 0..40), 1..50_usize), 0..60)
        .prop_map(|runs| runs.into_iter().flat_map(|(run, times)| run.repeat(times)).collect())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_was_compressed_expands_to_itself_within_its_size_and_not_below(
        body in compressible(), cut in any::<prop::sample::Index>(),
        flips in vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let message = [&b"\x82\xa1t\xa4auth\xa5token\xc6"[..], &body].concat();
        let size = message.len();
        if let Some(mut z) = deflate::compress(&message) {
            prop_assert!(z.len() <= size / 8 * 7, "{} of {size}", z.len());
            prop_assert_eq!(&*deflate::expand(&z, size).unwrap(), &message[..]);
            prop_assert_eq!(deflate::expand(&z, size - 1).unwrap_err().code, Code::Oversize);
            // Cut so short that it is no `z` any more, it is what it is.
            let short = &z[..cut.index(z.len())];
            match deflate::expand(short, size) {
                Ok(whole) => prop_assert_eq!(&*whole, short),
                Err(e) => prop_assert_eq!(e.code, Code::Malformed),
            }
            for (at, byte) in flips {
                let at = at.index(z.len());
                z[at] = byte;
            }
            decode_all(&z);
        }
    }
}

#[test]
fn what_would_not_shrink_by_an_eighth_stays_as_it_is() {
    // Bytes of a generator (xorshift64) do not shrink, and so many zeros behind them as make an eighth do.
    let mut state = 88_172_645_463_325_252_u64;
    let mut noise = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[0]
    };
    let noise: Vec<_> = (0..70_000).map(|_| noise()).collect();
    assert_eq!(deflate::compress(&noise), None);
    assert_eq!(deflate::compress(&[&noise[..], &[0; 9_000]].concat()), None);
    let enough = [&noise[..], &[0; 11_000]].concat();
    assert_eq!(
        *deflate::expand(&deflate::compress(&enough).unwrap(), 81_000).unwrap(),
        enough
    );
    for n in 0..100 {
        let z = deflate::compress(&vec![0; n]);
        assert!(z.is_none_or(|z| z.len() < n), "{n} zeros");
    }
}

#[test]
fn a_message_cut_short_at_any_byte_is_malformed() {
    let limits = Limits::default();
    for (name, message) in samples::client::all() {
        let bytes = msgpack::encode_client(&message);
        let text = Form::Json.encode_client(&message);
        for n in 0..bytes.len() {
            assert!(
                msgpack::decode_client(&bytes[..n], &limits).unwrap_err().closes(),
                "{name} at {n}"
            );
        }
        for n in 0..text.len() {
            assert!(
                Form::Json.decode_client(&text[..n], &limits).unwrap_err().closes(),
                "{name} at {n}"
            );
        }
    }
    for (name, message) in samples::server::all() {
        let bytes = msgpack::encode_server(&message);
        for n in 0..bytes.len() {
            assert_eq!(
                msgpack::decode_server(&bytes[..n]).unwrap_err().code,
                Code::Malformed,
                "{name} at {n}"
            );
        }
    }
}

#[test]
fn limits_hold_at_their_bounds() {
    let write = |ops: &[Op]| {
        let write = Write {
            head: samples::client::head(2),
            base: None,
            policy: None,
            ops: ops.to_vec(),
        };
        msgpack::encode_client(&ClientMessage::Write(write))
    };
    let check = || Op {
        doc: samples::doc("a/b"),
        kind: OpKind::Check,
        exists: None,
        unchanged_since: None,
    };
    let bytes = write(&vec![check(); 500]);
    assert!(msgpack::decode_client(&bytes, &Limits::default()).is_ok());
    let tight = Limits {
        message_bytes: bytes.len(),
        ..Limits::default()
    };
    assert!(msgpack::decode_client(&bytes, &tight).is_ok());
    let over = |limits: Limits, bytes: &[u8]| {
        let e = msgpack::decode_client(bytes, &limits).unwrap_err();
        assert_eq!(e.error.code, Code::TooLarge, "{e}");
        assert_eq!(e.write.as_deref(), Some(&samples::client::head(2)), "{e}");
        e.error.message
    };
    let message = over(
        Limits {
            message_bytes: bytes.len() - 1,
            ..Limits::default()
        },
        &bytes,
    );
    assert_eq!(
        message,
        format!(
            "message size in bytes is limited to {}, found {}",
            bytes.len() - 1,
            bytes.len()
        )
    );
    assert_eq!(
        over(Limits::default(), &write(&vec![check(); 501])),
        "number of ops is limited to 500, found 501"
    );
    // Map, 8 keys and 8 values of the envelope bar the ops; the array, and for each op a map, 2 keys, 2 values.
    let elements = 1 + 2 * 6 + 2 + 500 * 5;
    let exact = Limits {
        elements,
        ..Limits::default()
    };
    let decoded = msgpack::decode_client(&bytes, &exact);
    assert!(decoded.is_ok(), "{decoded:?}");
    over(
        Limits {
            elements: elements - 1,
            ..Limits::default()
        },
        &bytes,
    );
}
