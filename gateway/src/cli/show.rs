//! How a space's state and changes are shown: as lines for people, or as one JSON object a line.

use super::{json, variable};
use serde::{Serialize, Serializer};
use serde_json::Value as Json;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use tidegate_client::WatchItem;
use tidegate_protocol::json::value_to_json;
use tidegate_protocol::{DocChange, DocChangeKind, DocPath, FieldPath, Seq, SpaceId, Value};

/// The form of what is printed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Form {
    /// Lines for people, with colours or without.
    Text {
        /// Whether to colour them.
        colour: bool,
    },
    /// One JSON object a line.
    Json,
}

/// Turns steps of a space's confirmed state into text.
#[derive(Debug)]
pub(crate) struct Shower {
    space: SpaceId,
    form: Form,
    /// The leaves that the reader of the output knows of, so that a document that is sent whole can be
    /// shown as what was set and unset.
    known: BTreeMap<DocPath, BTreeSet<FieldPath>>,
    catching_up: bool,
}

impl Shower {
    /// Shows `space`.
    pub(crate) fn new(space: SpaceId, form: Form) -> Self {
        Self {
            space,
            form,
            known: BTreeMap::new(),
            catching_up: true,
        }
    }

    /// The lines for one step.
    pub(crate) fn show(&mut self, item: &WatchItem) -> String {
        match item {
            WatchItem::Reset => {
                self.known.clear();
                self.catching_up = true;
                match self.form {
                    Form::Json => line(&Event {
                        event: "reset",
                        space: &self.space,
                        epoch: None,
                        seq: None,
                    }),
                    Form::Text { colour } => {
                        paint(colour, DIM, &format!("-- {}: the whole follows", self.space)) + "\n"
                    }
                }
            }
            WatchItem::Current { position } => {
                self.catching_up = false;
                match self.form {
                    Form::Json => line(&Event {
                        event: "current",
                        space: &self.space,
                        epoch: Some(position.epoch.to_string()),
                        seq: Some(position.seq.get()),
                    }),
                    Form::Text { colour } => {
                        let text = format!("-- {}: up to date at {}; changes follow", self.space, position.seq);
                        paint(colour, DIM, &text) + "\n"
                    }
                }
            }
            WatchItem::Change { seq, change } => self.change(*seq, change),
            // Ends the command, which says why.
            WatchItem::Denied { .. } => String::new(),
        }
    }

    fn change(&mut self, seq: Seq, change: &DocChange) -> String {
        let doc = &change.doc;
        let (set, unset): (&[(FieldPath, Value)], Vec<FieldPath>) = match &change.kind {
            DocChangeKind::Deleted => {
                self.known.remove(doc);
                return self.deleted(seq, doc);
            }
            DocChangeKind::Change { set, unset } => {
                let known = self.known.entry(doc.clone()).or_default();
                known.retain(|path| !unset.iter().any(|gone| gone == path || path.is_below(gone)));
                known.extend(set.iter().map(|(path, _)| path.clone()));
                (set, unset.clone())
            }
            DocChangeKind::Whole(leaves) => {
                let now = leaves.iter().map(|(path, _)| path.clone()).collect();
                let before = self.known.insert(doc.clone(), now).unwrap_or_default();
                let now = &self.known[doc];
                (leaves, before.into_iter().filter(|path| !now.contains(path)).collect())
            }
        };
        match self.form {
            Form::Json => line(&Changed {
                space: &self.space,
                seq: seq.get(),
                doc,
                set: Some(json::from_paths(set.iter().map(|(path, value)| (path, value)))),
                unset: Some(unset.iter().map(FieldPath::as_str).collect()),
                deleted: None,
            }),
            Form::Text { colour } => {
                let mut text = self.head(seq, doc, colour) + "\n";
                for path in &unset {
                    let _ = writeln!(
                        text,
                        "  {}",
                        paint(colour, RED, &format!("- {}", printable(path.as_str())))
                    );
                }
                for (path, value) in set {
                    let path = paint(colour, GREEN, &format!("+ {}", printable(path.as_str())));
                    let _ = writeln!(text, "  {path} = {}", printable(&value_to_json(value).to_string()));
                }
                text
            }
        }
    }

    fn deleted(&self, seq: Seq, doc: &DocPath) -> String {
        match self.form {
            Form::Json => line(&Changed {
                space: &self.space,
                seq: seq.get(),
                doc,
                set: None,
                unset: None,
                deleted: Some(true),
            }),
            Form::Text { colour } => format!("{} {}\n", self.head(seq, doc, colour), paint(colour, RED, "deleted")),
        }
    }

    fn head(&self, seq: Seq, doc: &DocPath, colour: bool) -> String {
        let doc = paint(colour, BOLD, &printable(doc.as_str()));
        if self.catching_up {
            doc
        } else {
            format!("{} {doc}", paint(colour, DIM, &format!("#{seq}")))
        }
    }
}

/// `{"event":"reset"|"current",…}`
#[derive(Serialize)]
struct Event<'a> {
    event: &'static str,
    #[serde(serialize_with = "as_text")]
    space: &'a SpaceId,
    #[serde(skip_serializing_if = "Option::is_none")]
    epoch: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    seq: Option<u64>,
}

/// `{"space","seq","doc","set","unset"}` or `{"space","seq","doc","deleted":true}`
#[derive(Serialize)]
struct Changed<'a> {
    #[serde(serialize_with = "as_text")]
    space: &'a SpaceId,
    seq: u64,
    #[serde(serialize_with = "as_text")]
    doc: &'a DocPath,
    #[serde(skip_serializing_if = "Option::is_none")]
    set: Option<Json>,
    #[serde(skip_serializing_if = "Option::is_none")]
    unset: Option<Vec<&'a str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    deleted: Option<bool>,
}

fn as_text<S: Serializer>(name: impl AsRef<str>, out: S) -> Result<S::Ok, S::Error> {
    out.serialize_str(name.as_ref())
}

fn line(object: &impl Serialize) -> String {
    let json = serde_json::to_string(object).expect("text, numbers and JSON");
    json + "\n"
}

/// Whether to colour output, given whether it goes to a terminal. <https://no-color.org>
pub(crate) fn colour(is_terminal: bool) -> bool {
    is_terminal && variable("NO_COLOR").is_none() && variable("TERM").is_none_or(|term| term.as_os_str() != "dumb")
}

const BOLD: &str = "1";
const DIM: &str = "2";
const RED: &str = "31";
const GREEN: &str = "32";

fn paint(colour: bool, code: &str, text: &str) -> String {
    if colour {
        format!("\x1b[{code}m{text}\x1b[0m")
    } else {
        text.to_owned()
    }
}

/// Text that cannot command the terminal: what others wrote may hold control characters.
pub(crate) fn printable(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() {
            let _ = write!(out, "\\u{:04x}", u32::from(c));
        } else {
            out.push(c);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use tidegate_protocol::{Epoch, Position};

    fn path(text: &str) -> FieldPath {
        FieldPath::parse(text).expect("valid")
    }

    fn change(seq: u64, doc: &str, kind: DocChangeKind) -> WatchItem {
        let doc = DocPath::parse(doc).expect("valid");
        WatchItem::Change {
            seq: Seq::new(seq).expect("small"),
            change: DocChange { doc, kind },
        }
    }

    fn current(seq: u64) -> WatchItem {
        WatchItem::Current {
            position: Position::new(Epoch(10), Seq::new(seq).expect("small")),
        }
    }

    fn shower(form: Form) -> Shower {
        Shower::new(SpaceId::parse("demo").expect("valid"), form)
    }

    fn items() -> Vec<WatchItem> {
        let whole =
            |title: &str| DocChangeKind::Whole(vec![(path("a.b"), Value::int(1)), (path("title"), Value::str(title))]);
        vec![
            WatchItem::Reset,
            change(4, "notes/n1", whole("Hello")),
            current(4),
            change(
                5,
                "notes/n1",
                DocChangeKind::Change {
                    set: vec![(path("c"), Value::nil())],
                    unset: vec![path("a")],
                },
            ),
            change(
                6,
                "notes/n1",
                DocChangeKind::Whole(vec![(path("title"), Value::str("x"))]),
            ),
            change(7, "notes/n1", DocChangeKind::Deleted),
        ]
    }

    #[test]
    fn as_json_every_step_is_one_object_a_line() {
        let mut shower = shower(Form::Json);
        let lines: String = items().iter().map(|item| shower.show(item)).collect();
        let lines: Vec<Json> = lines
            .lines()
            .map(|line| serde_json::from_str(line).expect("JSON"))
            .collect();
        let want = [
            json!({"event": "reset", "space": "demo"}),
            json!({"space": "demo", "seq": 4, "doc": "notes/n1", "set": {"a.b": 1, "title": "Hello"}, "unset": []}),
            json!({"event": "current", "space": "demo", "epoch": "000000000000000a", "seq": 4}),
            json!({"space": "demo", "seq": 5, "doc": "notes/n1", "set": {"c": null}, "unset": ["a"]}),
            json!({"space": "demo", "seq": 6, "doc": "notes/n1", "set": {"title": "x"}, "unset": ["c"]}),
            json!({"space": "demo", "seq": 7, "doc": "notes/n1", "deleted": true}),
        ];
        assert_eq!(lines, want);
    }

    #[test]
    fn for_people_changes_carry_their_number_and_each_field_has_a_line() {
        let mut shower = shower(Form::Text { colour: false });
        let text: String = items().iter().map(|item| shower.show(item)).collect();
        assert_eq!(
            text,
            "-- demo: the whole follows\n\
             notes/n1\n  + a.b = 1\n  + title = \"Hello\"\n\
             -- demo: up to date at 4; changes follow\n\
             #5 notes/n1\n  - a\n  + c = null\n\
             #6 notes/n1\n  - c\n  + title = \"x\"\n\
             #7 notes/n1 deleted\n"
        );
    }

    #[test]
    fn colours_are_there_only_where_wanted_and_documents_cannot_command_the_terminal() {
        let evil = change(
            1,
            "c/d",
            DocChangeKind::Whole(vec![(path("k\u{1b}[2J"), Value::str("\u{9b}2J\u{1b}"))]),
        );
        let plain = shower(Form::Text { colour: false }).show(&evil);
        assert!(!plain.contains(['\u{1b}', '\u{9b}']), "{plain:?}");
        let coloured = shower(Form::Text { colour: true }).show(&evil);
        assert!(
            coloured.contains("\u{1b}[32m+ k\\u001b[2J\u{1b}[0m") && !coloured.contains('\u{9b}'),
            "{coloured:?}"
        );
    }
}
