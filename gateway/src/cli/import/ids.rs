//! The ids of imported records. The same file gives the same ids every time.

use super::read::Record;
use serde_json::{Map, Value as Json};
use std::collections::HashMap;
use std::fmt::Write as _;
use tidegate_protocol::{Collection, DocPath, FieldPath, name};
use unicode_normalization::UnicodeNormalization;

/// How often each rule was needed.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(crate) struct Counts {
    /// Ids that were numbers, taken as decimal text.
    pub numbers: usize,
    /// Ids in which `/`, `%` or a control character was percent-encoded.
    pub encoded: usize,
    /// Ids that had occurred before and got `~2`, `~3` …
    pub repeated: usize,
    /// Records without an id, named `row-N`.
    pub missing: usize,
}

/// Names records.
#[derive(Debug)]
pub(crate) struct Ids {
    collection: Collection,
    /// The field to take ids from; `None` is `id`, or a feature's own.
    from: Option<String>,
    /// The ids given out; by each, the number that its next repeat tries first.
    given: HashMap<String, usize>,
    counts: Counts,
}

impl Ids {
    /// Names records of `collection` by the field `from`.
    pub(crate) fn new(collection: Collection, from: Option<String>) -> Self {
        Self {
            collection,
            from,
            given: HashMap::new(),
            counts: Counts::default(),
        }
    }

    /// How often each rule was needed so far.
    pub(crate) fn counts(&self) -> Counts {
        self.counts
    }

    /// The document of the next record.
    pub(crate) fn name(&mut self, record: &Record) -> Result<DocPath, String> {
        let plain = match self.find(record) {
            None | Some(Json::Null) => None,
            Some(Json::String(text)) if text.is_empty() => None,
            Some(Json::String(text)) => Some(text.clone()),
            Some(Json::Number(number)) => {
                self.counts.numbers += 1;
                Some(number.to_string())
            }
            Some(Json::Bool(b)) => Some(b.to_string()),
            Some(Json::Array(_) | Json::Object(_)) => {
                let field = self.from.as_deref().unwrap_or("id");
                return Err(format!("its id, in {field:?}, is not text or a number"));
            }
        };
        let id = match plain {
            Some(plain) => {
                let id = encode(&plain);
                if id.encoded {
                    self.counts.encoded += 1;
                }
                id.text
            }
            None => {
                self.counts.missing += 1;
                format!("row-{}", record.place.number)
            }
        };
        let id = self.distinct(id);
        self.collection
            .doc(&id)
            .map_err(|e| format!("its id {id:?} cannot name a document: {e}"))
    }

    fn find<'a>(&self, record: &'a Record) -> Option<&'a Json> {
        match &self.from {
            Some(field) => lookup(&record.fields, field).or_else(|| match record.fields.get("properties") {
                Some(Json::Object(properties)) => lookup(properties, field),
                _ => None,
            }),
            None => record.id.as_ref().or_else(|| record.fields.get("id")),
        }
    }

    /// `id`, or with the first of `~2`, `~3` … that no record before it has.
    fn distinct(&mut self, id: String) -> String {
        let Some(next) = self.given.get(&id) else {
            self.given.insert(id.clone(), 2);
            return id;
        };
        self.counts.repeated += 1;
        let mut n = *next;
        let found = loop {
            let candidate = format!("{id}~{n}");
            n += 1;
            if !self.given.contains_key(&candidate) {
                break candidate;
            }
        };
        self.given.insert(id, n);
        self.given.insert(found.clone(), 2);
        found
    }
}

/// A field by its name, or by its dotted path.
fn lookup<'a>(fields: &'a Map<String, Json>, field: &str) -> Option<&'a Json> {
    if let Some(found) = fields.get(field) {
        return Some(found);
    }
    let path = FieldPath::parse(field).ok()?;
    let mut segments = path.segments().map(name::unescape);
    let mut here = fields.get(&segments.next()?)?;
    for segment in segments {
        here = here.as_object()?.get(&segment)?;
    }
    Some(here)
}

struct Encoded {
    text: String,
    encoded: bool,
}

/// An id as a path segment: in Unicode NFC, with `/`, `%` and control characters percent-encoded, so
/// that percent-decoding gives the id back.
fn encode(plain: &str) -> Encoded {
    let mut id = Encoded {
        text: String::with_capacity(plain.len()),
        encoded: false,
    };
    for c in plain.nfc() {
        if c == '/' || c == '%' || c.is_control() {
            id.encoded = true;
            for byte in c.encode_utf8(&mut [0; 4]).bytes() {
                let _ = write!(id.text, "%{byte:02X}");
            }
        } else {
            id.text.push(c);
        }
    }
    id
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::import::read::Place;
    use serde_json::json;

    fn name_all(from: Option<&str>, records: &[Json]) -> (Vec<String>, Counts) {
        let mut ids = Ids::new(Collection::parse("c").expect("valid"), from.map(str::to_owned));
        let names = records.iter().enumerate().map(|(at, fields)| {
            let fields = fields.as_object().expect("an object").clone();
            let record = Record {
                place: Place {
                    number: at + 1,
                    line: 1,
                },
                id: None,
                fields,
            };
            ids.name(&record).expect("valid").id().to_owned()
        });
        (names.collect(), ids.counts())
    }

    #[test]
    fn numbers_slashes_repeats_and_nulls_each_get_an_id_and_are_counted() {
        let records = [
            json!({"t": 300}),
            json!({"t": 9.5}),
            json!({"t": "Face/Off"}),
            json!({"t": "Crash"}),
            json!({"t": null}),
            json!({"t": "Crash"}),
            json!({}),
            json!({"t": "Crash"}),
            json!({"t": ""}),
        ];
        let (names, counts) = name_all(Some("t"), &records);
        assert_eq!(
            names,
            [
                "300",
                "9.5",
                "Face%2FOff",
                "Crash",
                "row-5",
                "Crash~2",
                "row-7",
                "Crash~3",
                "row-9"
            ]
        );
        assert_eq!(
            counts,
            Counts {
                numbers: 2,
                encoded: 1,
                repeated: 2,
                missing: 3
            }
        );
    }

    #[test]
    fn no_two_records_share_an_id_even_where_one_looks_like_a_repeat_of_another() {
        let records = ["a", "a~2", "a", "row-5", "x", "a"].map(|t| json!({"t": t}));
        let (names, _) = name_all(Some("t"), &records);
        assert_eq!(names, ["a", "a~2", "a~3", "row-5", "x", "a~4"]);
        let (names, counts) = name_all(
            Some("t"),
            &[json!({"t": "row-2"}), json!({}), json!({"t": 1}), json!({"t": "1"})],
        );
        assert_eq!(names, ["row-2", "row-2~2", "1", "1~2"]);
        assert_eq!(counts.repeated, 2);
    }

    #[test]
    fn percent_decoding_gives_the_id_back() {
        assert_eq!(encode("100% a/b\u{7}\u{85}").text, "100%25 a%2Fb%07%C2%85");
        assert_eq!(encode("e\u{301}").text, "é");
        assert!(!encode("é ~.").encoded);
    }

    #[test]
    fn an_id_comes_from_a_field_by_name_or_by_path_or_from_a_features_properties() {
        let fields = json!({"a.b": "name", "a": {"b": "path"}, "properties": {"code": "p"}, "id": "own"});
        for (from, wants) in [
            (Some("a.b"), "name"),
            (Some("a\\.b"), "name"),
            (Some("code"), "p"),
            (None, "own"),
        ] {
            assert_eq!(name_all(from, std::slice::from_ref(&fields)).0, [wants]);
        }
        assert_eq!(name_all(Some("a.b"), &[json!({"a": {"b": "path"}})]).0, ["path"]);
    }

    #[test]
    fn an_id_that_cannot_name_a_document_is_refused() {
        let mut ids = Ids::new(Collection::parse("c").expect("valid"), None);
        for (id, wants) in [
            (json!("x".repeat(256)), "255 bytes"),
            (json!([1]), "not text or a number"),
        ] {
            let fields = json!({ "id": id }).as_object().expect("an object").clone();
            let record = Record {
                place: Place { number: 1, line: 1 },
                id: None,
                fields,
            };
            let error = ids.name(&record).expect_err("bad");
            assert!(error.contains(wants), "{error}");
        }
    }
}
