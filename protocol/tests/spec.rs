//! `docs/PROTOCOL.md` says what the code does. `UPDATE_SPEC=1` writes its generated tables anew.

#![allow(clippy::unwrap_used)] // a test may panic

mod samples;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use tidegate_protocol::*;

fn path() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/PROTOCOL.md")
}

fn spec() -> String {
    std::fs::read_to_string(path()).unwrap()
}

/// The table between the markers of a name is this one, or is made to be.
fn check_table(name: &str, table: &str) {
    let (begin, end) = (
        format!("<!-- {name}: written by the test -->\n"),
        format!("<!-- /{name} -->"),
    );
    let text = spec();
    let (before, rest) = text.split_once(&begin).expect("a begin marker");
    let (found, after) = rest.split_once(&end).expect("an end marker");
    #[allow(clippy::disallowed_methods)] // a switch of the developer at the test, not a setting of the program
    if std::env::var_os("UPDATE_SPEC").is_some() {
        std::fs::write(path(), format!("{before}{begin}{table}{end}{after}")).unwrap();
        return;
    }
    assert_eq!(
        found, table,
        "the table of {name} is not the code's: run with UPDATE_SPEC=1"
    );
}

#[test]
fn the_tables_of_errors_and_limits_are_those_of_the_code() {
    let mut table = "| Code | Close | Meaning | What a client does |\n| --- | --- | --- | --- |\n".to_owned();
    for row in error::TABLE {
        let close = row.close.map_or(String::new(), |code| code.to_string());
        table += &format!(
            "| `{}` | {close} | {} | {} |\n",
            row.name,
            row.meaning,
            row.action.text()
        );
    }
    check_table("errors", &table);
    let mut table = "| Limit | In `welcome` | Bound | What it bounds |\n| --- | --- | --- | --- |\n".to_owned();
    for row in limits::table() {
        let place = if row.configurable {
            format!("`{}`", row.name)
        } else {
            String::new()
        };
        table += &format!(
            "| {} | {place} | {} | {} |\n",
            row.name,
            thousands(row.bound),
            row.meaning
        );
    }
    check_table("limits", &table);
}

fn thousands(n: u64) -> String {
    match (n / 1_000, n % 1_000) {
        (0, n) => n.to_string(),
        (more, n) => format!("{},{n:03}", thousands(more)),
    }
}

/// The fenced blocks of `kind`, each with the line at which it starts.
fn blocks(text: &str, kind: &str) -> Vec<(usize, String)> {
    let (fence, mut blocks, mut open) = (format!("```{kind}"), Vec::new(), None::<(usize, String)>);
    for (at, line) in text.lines().enumerate() {
        match (&mut open, line) {
            (None, line) if line == fence => open = Some((at + 2, String::new())),
            (Some(_), "```") => blocks.extend(open.take()),
            (Some((_, block)), line) => *block += &format!("{line}\n"),
            (None, _) => {}
        }
    }
    blocks
}

#[test]
fn every_message_has_a_section_and_an_example_that_decodes() {
    let text = spec();
    let limits = Limits::default();
    let mut shown = BTreeSet::new();
    for (line, block) in blocks(&text, "json client") {
        let message = Form::Json.decode_client(block.as_bytes(), &limits);
        let message = message.unwrap_or_else(|e| panic!("docs/PROTOCOL.md:{line}: {e}"));
        let again = msgpack::decode_client(&msgpack::encode_client(&message), &limits);
        assert_eq!(again.as_ref(), Ok(&message), "docs/PROTOCOL.md:{line}");
        shown.insert(samples::client::kind(&message));
    }
    for (line, block) in blocks(&text, "json server") {
        let message = Form::Json.decode_server(block.as_bytes());
        let message = message.unwrap_or_else(|e| panic!("docs/PROTOCOL.md:{line}: {e}"));
        let again = Form::Json.encode_server(&message);
        assert_eq!(
            Form::Json.decode_server(&again).as_ref(),
            Ok(&message),
            "docs/PROTOCOL.md:{line}"
        );
        // An example shows what a server writes: no key more, none less.
        let json = |text: &[u8]| serde_json::from_slice::<serde_json::Value>(text).unwrap();
        assert_eq!(json(&again), json(block.as_bytes()), "docs/PROTOCOL.md:{line}");
        shown.insert(samples::server::kind(&message));
    }
    for name in samples::client::KINDS.iter().chain(samples::server::KINDS) {
        assert!(shown.contains(name), "no example of {name}");
        assert!(text.contains(&format!("\n### `{name}`\n")), "no section on {name}");
    }
    let odd = text.lines().filter(|l| l.starts_with("```") && l.len() > 3);
    for fence in odd {
        assert!(
            ["```json client", "```json server", "```mermaid"].contains(&fence),
            "{fence} is checked by nothing"
        );
    }
}

#[test]
fn every_op_policy_and_mode_has_its_row() {
    let text = spec();
    let policies = Policy::ALL.iter().map(|(_, name)| name);
    let modes = Mode::ALL.iter().map(|(_, name)| name);
    for name in OpKind::NAMES.iter().chain(policies).chain(modes) {
        assert!(text.contains(&format!("\n| `{name}` | ")), "no row for {name}");
    }
    for name in [SUBPROTOCOL_MSGPACK, SUBPROTOCOL_JSON] {
        assert!(text.contains(&format!("\n| `{name}` | ")), "no row for {name}");
    }
}

#[test]
fn every_key_that_is_written_is_described() {
    let text = spec();
    let json = |text: Vec<u8>| serde_json::from_slice::<serde_json::Value>(&text).unwrap();
    let client = samples::client::all()
        .into_iter()
        .map(|(_, m)| json(Form::Json.encode_client(&m)));
    let server = samples::server::all()
        .into_iter()
        .map(|(_, m)| json(Form::Json.encode_server(&m)));
    for message in client.chain(server) {
        let Some(map) = message.as_object() else { continue };
        let name = map["t"].as_str().unwrap();
        let section = text.split(&format!("\n### `{name}`\n")).nth(1).unwrap();
        let section = section.split("\n### ").next().unwrap();
        for key in map.keys().filter(|key| *key != "t") {
            let told = [format!("`{key}`"), format!("`{key}?`")]
                .iter()
                .any(|word| section.contains(word));
            assert!(told, "{name}.{key} is not in its section");
        }
    }
}

#[test]
fn no_link_within_the_page_is_broken() {
    let text = spec();
    let anchor = |heading: &str| -> String {
        let kept = heading
            .chars()
            .filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
        kept.map(|c| if c == ' ' { '-' } else { c.to_ascii_lowercase() })
            .collect()
    };
    let headings: BTreeSet<_> = text
        .lines()
        .filter(|l| l.starts_with("##"))
        .map(|l| anchor(l.trim_start_matches('#').trim()))
        .collect();
    for link in text.split("](#").skip(1) {
        let target = link.split(')').next().unwrap();
        assert!(headings.contains(target), "#{target}");
    }
}
