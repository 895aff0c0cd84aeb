//! The text form says what the binary form says.

#![allow(clippy::unwrap_used)] // a test may panic

use serde_json::json;
use tidegate_protocol::*;

fn to_bytes(text: &str) -> Result<Vec<u8>, Invalid> {
    json::to_msgpack(text, &Limits::default())
}

#[test]
fn what_json_has_no_word_for_has_a_dollar_form() {
    let ts = |secs, nanos| Value::timestamp(Timestamp { secs, nanos });
    for (text, value) in [
        ("null", Value::nil()),
        ("1", Value::int(1)),
        ("1.0", Value::float(1.0).unwrap()),
        ("1e+300", Value::float(1e300).unwrap()),
        ("-9007199254740992", Value::int(-9_007_199_254_740_992)),
        (r#"{"$int":"9007199254740993"}"#, Value::int(9_007_199_254_740_993)),
        (r#"{"$int":"-9223372036854775808"}"#, Value::int(i64::MIN)),
        (r#"{"$bin":"AP8="}"#, Value::bin(&[0, 255])),
        (r#"{"$ts":1500}"#, ts(1, 500_000_000)),
        (r#"{"$ts":-1}"#, ts(-1, 999_000_000)),
        (r#"{"$ts":[1,5]}"#, ts(1, 5)),
        (r#"{"$ts":[{"$int":"9223372036854775807"},0]}"#, ts(i64::MAX, 0)),
        (r#"{"$ext":[7,"aGk="]}"#, Value::ext(7, b"hi").unwrap()),
        (r#"{"$ext":[0,""]}"#, Value::ext(0, b"").unwrap()),
        (r#"{"$$bin":"x"}"#, Value::map([("$bin", &Value::str("x"))]).unwrap()),
        (r#"{"$$$":1}"#, Value::map([("$$", &Value::int(1))]).unwrap()),
        (
            r#"{"$bin":"x","a":1}"#,
            Value::map([("$bin", &Value::str("x")), ("a", &Value::int(1))]).unwrap(),
        ),
        (
            r#"[{},"é\"\n"]"#,
            Value::array([Value::empty_map(), Value::str("é\"\n")].iter()),
        ),
    ] {
        assert_eq!(to_bytes(text).unwrap(), value.as_bytes()[..], "{text}");
        assert_eq!(json::from_msgpack(value.as_bytes()), text);
        let tree: serde_json::Value = serde_json::from_str(text).unwrap();
        assert_eq!(json::value_from_json(&tree).unwrap(), value, "{text}");
        assert_eq!(json::value_to_json(&value), tree);
    }
    assert_eq!(
        to_bytes(r#"{"$bin":"AP8"}"#).unwrap(),
        Value::bin(&[0, 255]).as_bytes()[..],
        "base64 without padding"
    );
    assert_eq!(
        to_bytes("18446744073709551615").unwrap()[0],
        0xcf,
        "ids take 64 bits without a form, too"
    );
}

#[test]
fn text_that_is_no_value_is_refused() {
    for (text, code) in [
        ("", Code::Malformed),
        ("{", Code::Malformed),
        ("1 2", Code::Malformed),
        ("NaN", Code::Malformed),
        ("1e400", Code::Malformed),
        ("\"\\ud800\"", Code::Malformed),
        (r#"{"a":1,"a":2}"#, Code::Invalid),
        (r#"{"$bin":"?"}"#, Code::Invalid),
        (r#"{"$bin":1}"#, Code::Invalid),
        (r#"{"$int":"1.5"}"#, Code::Invalid),
        (r#"{"$int":"+5"}"#, Code::Invalid),
        (r#"{"$int":"99999999999999999999"}"#, Code::Invalid),
        (r#"{"$ts":1.5}"#, Code::Invalid),
        (r#"{"$ts":[1,1000000000]}"#, Code::Invalid),
        (r#"{"$ext":[32,""]}"#, Code::Invalid),
        (r#"{"$new":1}"#, Code::Invalid),
        (r#"[1,"9",-18446744073709551616]"#, Code::Invalid),
    ] {
        assert_eq!(to_bytes(text).unwrap_err().code, code, "{text}");
    }
    let deep = |n| format!("{}0{}", "[".repeat(n), "]".repeat(n));
    assert!(to_bytes(&deep(100)).is_ok());
    assert_eq!(to_bytes(&deep(101)).unwrap_err().code, Code::TooLarge);
    assert_eq!(to_bytes(&deep(500_000)).unwrap_err().code, Code::TooLarge);
    assert_eq!(
        to_bytes(&format!("\"{}\"", "x".repeat(1 << 20))).unwrap_err().code,
        Code::TooLarge
    );
    assert_eq!(
        to_bytes(r#"["\"-99999999999999999999999", "\\"]"#).unwrap()[0],
        0x92,
        "digits in strings are text"
    );
}

#[test]
fn a_refused_write_in_json_still_says_which_mutation_it_was() {
    let text = |value: &str| {
        format!(
            r#"{{"t":"write","space":"s","client":1,"mid":1,"key":{{"$int":"18446744073709551615"}},"first":5,
            "ops":[{{"op":"set","doc":"a/b","fields":{{"x":{value}}}}}]}}"#
        )
    };
    let decode = |value: &str| Form::Json.decode_client(text(value).as_bytes(), &Limits::default());
    let Ok(ClientMessage::Write(good)) = decode("1") else {
        panic!("a write")
    };
    assert_eq!(good.head.key, MutationKey(u64::MAX));
    let many = format!("[{}0]", "0,".repeat(65_536));
    let deep = format!("{}0{}", "[".repeat(180), "]".repeat(180));
    for bad in [
        r#"{"$bin":"?"}"#,
        r#"{"a":1,"a":2}"#,
        "18446744073709551616",
        &deep,
        &many,
    ] {
        let refused = decode(bad).unwrap_err();
        assert_eq!(refused.write.as_deref(), Some(&good.head), "{refused}");
        assert!(!refused.closes());
    }
    assert!(decode("}").unwrap_err().closes());
    assert!(
        Form::Json
            .decode_client(b"\xff", &Limits::default())
            .unwrap_err()
            .closes()
    );
    assert!(
        Form::Json
            .decode_client(br#"{"t":"ping","at":1,"at":2}"#, &Limits::default())
            .unwrap_err()
            .closes()
    );
    assert!(
        Form::Json
            .decode_client(br#"{"at":1,"t":"ping"}"#, &Limits::default())
            .unwrap_err()
            .closes()
    );
}

#[test]
fn a_document_becomes_json_with_its_maps_rebuilt() {
    let path = |text| FieldPath::parse(text).unwrap();
    let leaves: tree::Leaves = [
        (path("title"), Value::str("x")),
        (path("address.city"), Value::str("Oslo")),
        (path(r"address.a\.b"), Value::int(1)),
    ]
    .into();
    assert_eq!(
        json::doc_to_json(&leaves),
        json!({"title": "x", "address": {"city": "Oslo", "a.b": 1}})
    );
}
