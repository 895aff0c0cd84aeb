//! What is refused, and with which code. Text, where that shows it; bytes, where only they can.

use tidegate_protocol::Code::{self, Invalid, Malformed, TooLarge, Unsupported};

pub enum Input {
    /// A client's message as text; made to bytes for the binary form unless the text itself is at fault.
    Text(String),
    /// A client's message as text that only the text form can be wrong in.
    TextOnly(String),
    /// A client's message as bytes.
    Hex(String),
    /// A value as bytes.
    Value(String),
}

pub struct Sample {
    pub name: &'static str,
    pub input: Input,
    pub code: Code,
    /// The mid that the refusal consumes.
    pub mid: Option<u64>,
}

/// A `write` at mid 2 with these entries after the key.
fn write(rest: &str) -> String {
    format!(r#"{{"t":"write","space":"s","client":9,"mid":2,"key":5{rest}}}"#)
}

fn ops(ops: &str) -> String {
    write(&format!(r#","prev":4,"ops":[{ops}]"#))
}

fn set(fields: &str) -> String {
    ops(&format!(r#"{{"op":"set","doc":"a/b","fields":{fields}}}"#))
}

pub fn all() -> Vec<Sample> {
    let mut all = messages();
    all.extend(writes());
    all.extend(bytes());
    all
}

fn messages() -> Vec<Sample> {
    let mut all = Vec::new();
    let mut add = |name, text: &str, code| {
        all.push(Sample {
            name,
            input: Input::Text(text.to_owned()),
            code,
            mid: None,
        });
    };
    add("an unknown type", r#"{"t":"subscribe","id":1}"#, Unsupported);
    add(
        "a z that was not agreed on",
        r#"{"t":"z","size":1,"raw":{"$bin":"AQAA//8="}}"#,
        Unsupported,
    );
    add("a type that is not text", r#"{"t":1}"#, Malformed);
    add("no type", "{}", Malformed);
    add("a type that is not first", r#"{"at":1,"t":"ping"}"#, Malformed);
    add("an array", r#"["c",1]"#, Malformed);
    add("nil", "null", Malformed);
    add("a key twice", r#"{"t":"ping","at":1,"at":2}"#, Malformed);
    add("an unknown key twice", r#"{"t":"ping","x":1,"at":1,"x":2}"#, Malformed);
    add("ping without at", r#"{"t":"ping"}"#, Invalid);
    add("a negative id", r#"{"t":"unsub","id":-1}"#, Invalid);
    add("an id that is a double", r#"{"t":"unsub","id":1.0}"#, Invalid);
    add("auth without token", r#"{"t":"auth"}"#, Invalid);
    add("sub without space", r#"{"t":"sub","id":1}"#, Invalid);
    add("a bad space", r#"{"t":"sub","id":1,"space":"a b"}"#, Invalid);
    add("an empty space", r#"{"t":"sub","id":1,"space":""}"#, Invalid);
    add(
        "from without view",
        r#"{"t":"sub","id":1,"space":"s","from":{"epoch":1,"seq":1}}"#,
        Invalid,
    );
    let seq = r#"{"t":"sub","id":1,"space":"s","from":{"epoch":1,"seq":9007199254740992,"view":1}}"#;
    add("a seq of 2^53", seq, Invalid);
    add(
        "an empty filter",
        r#"{"t":"sub","id":1,"space":"s","filter":[]}"#,
        Invalid,
    );
    add(
        "a bad collection",
        r#"{"t":"sub","id":1,"space":"s","filter":["a//b"]}"#,
        Invalid,
    );
    add(
        "a document without collection",
        r#"{"t":"get","id":1,"space":"s","docs":["n1"]}"#,
        Invalid,
    );
    add(
        "a document not in NFC",
        "{\"t\":\"get\",\"id\":1,\"space\":\"s\",\"docs\":[\"a/e\u{301}\"]}",
        Invalid,
    );
    let many = format!(
        r#"{{"t":"get","id":1,"space":"s","docs":[{}"a/b"]}}"#,
        r#""a/b","#.repeat(1_000)
    );
    add("a get of 1,001 documents", &many, TooLarge);
    all
}

fn writes() -> Vec<Sample> {
    let mut all = Vec::new();
    let mut add = |name, text: String, code, mid| {
        all.push(Sample {
            name,
            input: Input::Text(text),
            code,
            mid,
        })
    };
    let first = |text: &str| text.replace(r#""mid":2"#, r#""mid":1"#);
    add("mid 2 without prev", write(r#","ops":[]"#), Invalid, None);
    add(
        "mid 2 with first",
        write(r#","prev":4,"first":1,"ops":[]"#),
        Invalid,
        None,
    );
    add("mid 1 without first", first(&write(r#","ops":[]"#)), Invalid, None);
    add(
        "mid 1 with prev",
        first(&write(r#","prev":4,"first":1,"ops":[]"#)),
        Invalid,
        None,
    );
    add(
        "mid 0",
        write(r#","prev":4,"ops":[]"#).replace(r#""mid":2"#, r#""mid":0"#),
        Invalid,
        None,
    );
    let last = write(r#","prev":4,"ops":[]"#).replace(r#""mid":2"#, r#""mid":9007199254740992"#);
    add("a mid of 2^53", last, Invalid, None);
    add("write without ops", write(r#","prev":4"#), Invalid, Some(2));
    add(
        "an unknown key of write",
        write(r#","prev":4,"ops":[],"if":1"#),
        Unsupported,
        Some(2),
    );
    add(
        "an unknown policy",
        write(r#","prev":4,"base":[1,1],"policy":"first","ops":[]"#),
        Unsupported,
        Some(2),
    );
    add(
        "policy reject without base",
        write(r#","prev":4,"policy":"reject","ops":[]"#),
        Invalid,
        Some(2),
    );
    add(
        "policy merge without base",
        write(r#","prev":4,"policy":"merge","ops":[]"#),
        Invalid,
        Some(2),
    );
    add(
        "a base that is a number",
        write(r#","prev":4,"base":1,"ops":[]"#),
        Invalid,
        Some(2),
    );
    add(
        "a base of three",
        write(r#","prev":4,"base":[1,1,1],"ops":[]"#),
        Invalid,
        Some(2),
    );
    add(
        "an unknown op",
        ops(r#"{"op":"append","doc":"a/b"}"#),
        Unsupported,
        Some(2),
    );
    add(
        "an op that does not begin with op",
        ops(r#"{"doc":"a/b","op":"check"}"#),
        Invalid,
        Some(2),
    );
    add("an op that is nil", ops("null"), Invalid, Some(2));
    add(
        "an unknown key of an op",
        ops(r#"{"op":"check","doc":"a/b","if":1}"#),
        Unsupported,
        Some(2),
    );
    add(
        "a key of another op",
        ops(r#"{"op":"check","doc":"a/b","fields":{}}"#),
        Unsupported,
        Some(2),
    );
    add(
        "a key of an op twice",
        ops(r#"{"op":"check","doc":"a/b","doc":"a/b"}"#),
        Invalid,
        Some(2),
    );
    add("an op without doc", ops(r#"{"op":"check"}"#), Invalid, Some(2));
    add(
        "set without fields",
        ops(r#"{"op":"set","doc":"a/b"}"#),
        Invalid,
        Some(2),
    );
    add(
        "exists that is nil",
        ops(r#"{"op":"check","doc":"a/b","exists":null}"#),
        Invalid,
        Some(2),
    );
    add(
        "inc by text",
        ops(r#"{"op":"inc","doc":"a/b","path":"x","by":"1"}"#),
        Invalid,
        Some(2),
    );
    add(
        "max of text",
        ops(r#"{"op":"max","doc":"a/b","path":"x","value":"1"}"#),
        Invalid,
        Some(2),
    );
    add(
        "a document with an empty segment",
        ops(r#"{"op":"check","doc":"a//b"}"#),
        Invalid,
        Some(2),
    );
    add("an empty field path", set(r#"{"":1}"#), Invalid, Some(2));
    add(
        "a field path with an empty segment",
        set(r#"{"a..b":1}"#),
        Invalid,
        Some(2),
    );
    add("a bad escape", set(r#"{"a\\b":1}"#), Invalid, Some(2));
    add("a field path not in NFC", set("{\"e\u{301}\":1}"), Invalid, Some(2));
    add(
        "a map with an empty key, as a field",
        set(r#"{"a":{"":1,"b":2}}"#),
        Invalid,
        Some(2),
    );
    add("overlapping fields", set(r#"{"a":1,"a.b":2}"#), Invalid, Some(2));
    add(
        "overlapping paths",
        ops(r#"{"op":"unset","doc":"a/b","paths":["a.b","a"]}"#),
        Invalid,
        Some(2),
    );
    add(
        "a path twice",
        ops(r#"{"op":"unset","doc":"a/b","paths":["a","a"]}"#),
        Invalid,
        Some(2),
    );
    add(
        "a map key not in NFC",
        set("{\"a\":[{\"e\u{301}\":1}]}"),
        Invalid,
        Some(2),
    );
    add("a map key twice", set(r#"{"a":[{"x":1,"x":2}]}"#), Invalid, Some(2));
    add(
        "an integer of 2^63",
        set(r#"{"a":9223372036854775808}"#),
        Invalid,
        Some(2),
    );
    add(
        "a field path of 513 bytes",
        set(&format!(r#"{{"{}":1}}"#, "x".repeat(513))),
        TooLarge,
        Some(2),
    );
    add(
        "21 segments",
        set(&format!(r#"{{"{}a":1}}"#, "a.".repeat(20))),
        TooLarge,
        Some(2),
    );
    add(
        "21 levels",
        set(&format!(r#"{{"a":{}{}}}"#, "[".repeat(20), "]".repeat(20))),
        TooLarge,
        Some(2),
    );
    let (maps, ends) = (r#"{"a":"#.repeat(20), "}".repeat(20));
    add("21 maps", set(&format!(r#"{{"a":{maps}1{ends}}}"#)), TooLarge, Some(2));
    add(
        "501 ops",
        ops(&format!("{}null", "null,".repeat(500))),
        TooLarge,
        Some(2),
    );
    all
}

fn bytes() -> Vec<Sample> {
    let mut all = Vec::new();
    let mut add = |name, input, code| {
        all.push(Sample {
            name,
            input,
            code,
            mid: None,
        })
    };
    let hex = |text: &str| Input::Hex(text.replace(' ', ""));
    let value = |text: &str| Input::Value(text.replace(' ', ""));
    let text = |text: &str| Input::TextOnly(text.to_owned());
    add("nothing", hex(""), Malformed);
    add("a map that ends early", hex("82 a174 a470696e67"), Malformed);
    add(
        "bytes after the message",
        hex("82 a174 a470696e67 a26174 01 c0"),
        Malformed,
    );
    add(
        "0xc1 in what is ignored",
        hex("83 a174 a470696e67 a178 c1 a26174 01"),
        Malformed,
    );
    add("a key that is no text", hex("82 a174 a470696e67 01 01"), Malformed);
    add("a key that is not UTF-8", hex("82 a174 a470696e67 a1ff 01"), Malformed);
    add("a length bomb", hex("82 a174 a570616765 a178 ddffffffff"), Malformed);
    add("no text", text(""), Malformed);
    add("text that ends early", text(r#"{"t":"ping","at":1"#), Malformed);
    add("text after the message", text(r#"{"t":"ping","at":1} 2"#), Malformed);
    add("a lone surrogate", text(r#"{"t":"ping","at":"\ud800"}"#), Malformed);
    add(
        "an integer beyond 64 bits",
        text(r#"{"t":"ping","at":18446744073709551616}"#),
        Invalid,
    );
    add("an unknown form", text(r#"{"t":"ping","at":{"$uint":"1"}}"#), Invalid);
    add("bad base64", text(r#"{"t":"ping","at":{"$bin":"?"}}"#), Invalid);
    add("value: nothing", value(""), Malformed);
    add("value: 0xc1", value("c1"), Malformed);
    add("value: bytes after it", value("c0 c0"), Malformed);
    add("value: ends early", value("92 c0"), Malformed);
    add("value: an array of 4 billion", value("dd ffffffff"), Malformed);
    add("value: text that is not UTF-8", value("a2 c328"), Invalid);
    add("value: an integer of 2^63", value("cf 8000000000000000"), Invalid);
    add("value: NaN", value("cb 7ff8000000000000"), Invalid);
    add("value: infinity", value("cb 7ff0000000000000"), Invalid);
    add("value: infinity of 32 bits", value("ca ff800000"), Invalid);
    add("value: ext 32", value("d4 20 00"), Invalid);
    add("value: ext -2", value("d4 fe 00"), Invalid);
    add("value: a timestamp of 1 byte", value("d4 ff 00"), Invalid);
    add(
        "value: a timestamp of 10^9 ns",
        value("d7 ff ee6b280000000000"),
        Invalid,
    );
    add("value: a key that is a number", value("81 01 01"), Invalid);
    add("value: a key twice", value("82 a161 01 a161 02"), Invalid);
    add(
        "value: a key twice, spelt differently",
        value("82 a161 01 d90161 02"),
        Invalid,
    );
    add("value: a key not in NFC", value("81 a365cc81 01"), Invalid);
    add(
        "value: 65 levels",
        Input::Value(format!("{}c0", "91".repeat(65))),
        TooLarge,
    );
    all
}
