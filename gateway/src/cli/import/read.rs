//! Records out of a file: a JSON array, NDJSON (or any JSON objects one after another) or a GeoJSON
//! FeatureCollection. One record at a time is taken apart; errors name the record and its line.

use crate::cli::json::{self, Strict};
use serde::de::IgnoredAny;
use serde_json::{Map, Value as Json};
use std::fmt;

/// What a file turned out to hold.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Format {
    /// A JSON array of objects.
    Array,
    /// JSON objects one after another, usually one a line.
    Lines,
    /// The features of a GeoJSON FeatureCollection.
    GeoJson,
}

/// One record.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Record {
    /// Where it is in the file.
    pub place: Place,
    /// What the file itself names it: a GeoJSON feature's `id`.
    pub id: Option<Json>,
    /// The document's fields. Of a feature: all but `type` and `id`.
    pub fields: Map<String, Json>,
}

/// Where a record is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Place {
    /// Which record it is, from 1.
    pub number: usize,
    /// The line on which it begins, from 1.
    pub line: usize,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "record {} (line {})", self.number, self.line)
    }
}

/// The records of a file. Ends after the first error.
#[derive(Debug)]
pub(crate) struct Records<'a> {
    text: &'a str,
    at: usize,
    /// `line` is that of byte `counted`.
    line: usize,
    counted: usize,
    number: usize,
    format: Format,
    ended: bool,
}

impl<'a> Records<'a> {
    /// Looks at what the file holds.
    pub(crate) fn open(bytes: &'a [u8]) -> Result<Self, String> {
        let text = std::str::from_utf8(bytes).map_err(|e| {
            let line = bytes[..e.valid_up_to()].iter().filter(|b| **b == b'\n').count() + 1;
            format!("line {line}: is not UTF-8 text")
        })?;
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let mut records = Self {
            text,
            at: 0,
            line: 1,
            counted: 0,
            number: 0,
            format: Format::Lines,
            ended: false,
        };
        match records.peek() {
            Some(b'[') => {
                records.at += 1;
                records.format = Format::Array;
            }
            Some(b'{') => {
                if let Some(features) = records.features()? {
                    records.at = features;
                    records.format = Format::GeoJson;
                }
            }
            Some(_) => return Err(records.error("holds no JSON: a file begins with [ or {")),
            None => {}
        }
        Ok(records)
    }

    /// If the text is a FeatureCollection, where its first feature begins.
    fn features(&mut self) -> Result<Option<usize>, String> {
        let begin = self.at;
        let (mut is_collection, mut features, mut twice) = (false, None, None);
        self.at += 1;
        if self.peek() != Some(b'}') {
            // A record of NDJSON that is no JSON is reported when it is read.
            while let Ok(key) = self.take::<String>() {
                if self.peek() != Some(b':') {
                    break;
                }
                self.at += 1;
                match (key.as_str(), self.peek()) {
                    ("type", Some(b'"')) => is_collection = self.take::<String>()? == "FeatureCollection",
                    ("features", Some(b'[')) => {
                        if features.is_some() {
                            twice = Some(self.error("the key \"features\" occurs twice"));
                        }
                        features = Some(self.at + 1);
                        self.skip()?;
                    }
                    _ => self.skip()?,
                }
                if self.peek() != Some(b',') {
                    break;
                }
                self.at += 1;
                self.peek();
            }
        }
        if is_collection && features.is_some() {
            if let Some(twice) = twice {
                return Err(twice);
            }
            if self.peek() != Some(b'}') {
                return Err(self.error("has no } at the end of its FeatureCollection"));
            }
            self.at += 1;
            if self.peek().is_some() {
                return Err(self.error("has something after its FeatureCollection"));
            }
        }
        (self.at, self.counted, self.line) = (begin, 0, 1);
        match (is_collection, features) {
            (true, None) => Err(self.error("is a FeatureCollection without features")),
            (true, features) => Ok(features),
            (false, _) => Ok(None),
        }
    }

    /// The next byte that is not white space.
    fn peek(&mut self) -> Option<u8> {
        let rest = &self.text.as_bytes()[self.at..];
        let white = rest
            .iter()
            .take_while(|b| matches!(b, b' ' | b'\t' | b'\r' | b'\n'))
            .count();
        self.at += white;
        rest.get(white).copied()
    }

    fn line(&mut self) -> usize {
        let passed = &self.text.as_bytes()[self.counted..self.at];
        self.line += passed.iter().filter(|b| **b == b'\n').count();
        self.counted = self.at;
        self.line
    }

    fn error(&mut self, what: &str) -> String {
        format!("line {}: {what}", self.line())
    }

    /// Reads one string, array or object.
    fn take<T: serde::de::DeserializeOwned>(&mut self) -> Result<T, String> {
        let rest = &self.text[self.at..];
        let mut values = serde_json::Deserializer::from_str(rest).into_iter::<T>();
        match values.next() {
            Some(Ok(value)) => {
                self.at += values.byte_offset();
                Ok(value)
            }
            Some(Err(e)) => {
                let line = self.line() + e.line().saturating_sub(1);
                Err(format!("line {line}: {}", json::without_place(&e)))
            }
            None => Err(self.error("ends in the middle of a record")),
        }
    }

    /// Passes over one value of any kind.
    fn skip(&mut self) -> Result<(), String> {
        match self.peek() {
            Some(b'"' | b'[' | b'{') => self.take::<IgnoredAny>().map(drop),
            _ => {
                let rest = &self.text.as_bytes()[self.at..];
                self.at += rest.iter().take_while(|b| !matches!(b, b',' | b']' | b'}')).count();
                Ok(())
            }
        }
    }

    fn read(&mut self) -> Result<Option<Record>, String> {
        let is_list = self.format != Format::Lines;
        match self.peek() {
            None if is_list => return Err(self.error("ends before the ] of its records")),
            None => return Ok(None),
            Some(b']') if is_list => {
                self.at += 1;
                if self.format == Format::Array && self.peek().is_some() {
                    return Err(self.error("has something after the ] of its records"));
                }
                return Ok(None);
            }
            Some(b',') if is_list && self.number > 0 => {
                self.at += 1;
                self.peek();
            }
            Some(_) if is_list && self.number > 0 => return Err(self.error("has no comma between two records")),
            Some(_) => {}
        }
        self.number += 1;
        let place = Place {
            number: self.number,
            line: self.line(),
        };
        let begin = self.at;
        match self.text.as_bytes().get(self.at) {
            Some(b'{') => {}
            other => return Err(format!("{place}: {}; every record is an object", kind(other.copied()))),
        }
        let Strict(record) = self.take().map_err(|e| format!("record {}, {e}", self.number))?;
        json::refuse_long_integers(&record, &self.text[begin..self.at]).map_err(|e| format!("{place}: {e}"))?;
        let Json::Object(mut fields) = record else {
            unreachable!("it begins with a brace")
        };
        let mut id = None;
        if self.format == Format::GeoJson {
            if fields.remove("type") != Some(Json::from("Feature")) {
                return Err(format!(
                    "{place}: has no \"type\": \"Feature\", as everything in a FeatureCollection has"
                ));
            }
            id = fields.remove("id");
        }
        Ok(Some(Record { place, id, fields }))
    }
}

fn kind(byte: Option<u8>) -> String {
    match byte {
        Some(b'[') => "is an array".into(),
        Some(b'"') => "is a string".into(),
        Some(b'n') => "is null".into(),
        Some(b't' | b'f') => "is a boolean".into(),
        Some(b'-' | b'0'..=b'9') => "is a number".into(),
        Some(other) => format!("begins with {:?}", char::from(other)),
        None => "is missing".into(),
    }
}

impl Iterator for Records<'_> {
    type Item = Result<Record, String>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let item = self.read().transpose();
        self.ended = !matches!(item, Some(Ok(_)));
        item
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn all(text: &str) -> Result<(Format, Vec<Record>), String> {
        let records = Records::open(text.as_bytes())?;
        let format = records.format;
        Ok((format, records.collect::<Result<_, _>>()?))
    }

    fn fields(text: &str) -> (Format, Vec<Json>) {
        let (format, records) = all(text).expect(text);
        (format, records.into_iter().map(|r| Json::Object(r.fields)).collect())
    }

    #[test]
    fn an_array_ndjson_and_objects_over_several_lines_are_all_read() {
        let want = vec![json!({"a": 1}), json!({"a": {"b": null}})];
        for (format, text) in [
            (Format::Array, r#"[{"a":1},{"a":{"b":null}}]"#),
            (Format::Array, "\u{feff} [ {\"a\":1} ,\n {\"a\":{\"b\":null}} ] \n"),
            (Format::Lines, "{\"a\":1}\n{\"a\":{\"b\":null}}\n"),
            (Format::Lines, "\n{\n  \"a\": 1\n}\n\n{\"a\":{\"b\":null}}"),
        ] {
            assert_eq!(fields(text), (format, want.clone()), "{text}");
        }
        assert_eq!(fields("[]"), (Format::Array, vec![]));
        assert_eq!(fields(" \n"), (Format::Lines, vec![]));
        assert_eq!(fields("{}"), (Format::Lines, vec![json!({})]));
    }

    #[test]
    fn a_feature_keeps_properties_and_geometry_as_fields_and_its_id_apart() {
        let text = r#"{"bbox":[1,2],"n":1,"features":[
            {"type":"Feature","id":7,"properties":{"mag":2.5},"geometry":{"type":"Point","coordinates":[1,2]}},
            {"type":"Feature","properties":null,"geometry":null}],"type":"FeatureCollection"}"#;
        let (format, records) = all(text).expect("GeoJSON");
        assert_eq!(format, Format::GeoJson);
        assert_eq!(records[0].id, Some(json!(7)));
        assert_eq!(
            Json::Object(records[0].fields.clone()),
            json!({"properties": {"mag": 2.5}, "geometry": {"type": "Point", "coordinates": [1, 2]}})
        );
        assert_eq!(
            (records[1].id.clone(), records[1].place),
            (None, Place { number: 2, line: 3 })
        );
    }

    #[test]
    fn ndjson_whose_records_have_a_type_is_not_taken_for_geojson() {
        let text = "{\"type\":\"Feature\",\"id\":1}\n{\"type\":\"x\",\"features\":[]}\n";
        assert_eq!(fields(text).0, Format::Lines);
    }

    #[test]
    fn errors_name_the_record_and_its_line() {
        for (text, wants) in [
            ("hello", "line 1: holds no JSON"),
            (
                "[{\"a\":1},\n3]",
                "record 2 (line 2): is a number; every record is an object",
            ),
            ("[{\"a\":1},\n\n{\"a\":}]", "record 2, line 3: expected value"),
            ("[{\"a\":1}\n{\"a\":1}]", "line 2: has no comma"),
            ("[{\"a\":1},", "record 2 (line 1): is missing"),
            ("[{\"a\":1}", "line 1: ends before the ]"),
            ("[{}] x", "line 1: has something after"),
            (
                "{\"a\":1}\n{\"a\":\n1,\n\"a\":2}",
                "record 2, line 4: the key \"a\" occurs twice",
            ),
            ("{\"a\":1}\n,{\"a\":1}", "record 2 (line 2): begins with ','"),
            (
                "{\"a\":[100000000000000000000]}",
                "record 1 (line 1): 100000000000000000000 is beyond 63 bits",
            ),
            ("{\"type\":\"FeatureCollection\"}", "without features"),
            (
                "{\"type\":\"FeatureCollection\",\"features\":[],\n\"x\":1",
                "line 2: has no } at the end of its FeatureCollection",
            ),
            (
                "{\"type\":\"FeatureCollection\",\"features\":[]}\n{\"type\":\"FeatureCollection\",\"features\":[]}",
                "line 2: has something after its FeatureCollection",
            ),
            (
                "{\"features\":[{}],\n\"features\":[],\"type\":\"FeatureCollection\"}",
                "line 2: the key \"features\" occurs twice",
            ),
            (
                "{\"type\":\"FeatureCollection\",\"features\":[{}]}",
                "no \"type\": \"Feature\"",
            ),
        ] {
            let error = all(text).expect_err(text);
            assert!(error.contains(wants), "{text}: {error}");
        }
        assert_eq!(
            Records::open(b"{}\n\xff").expect_err("not UTF-8"),
            "line 2: is not UTF-8 text"
        );
    }
}
