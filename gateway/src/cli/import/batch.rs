//! Records to documents, and documents to mutations of a handy size.

use super::ids::Ids;
use super::read::{Place, Record};
use crate::cli::json;
use tidegate_protocol::tree::Leaves;
use tidegate_protocol::{DocPath, FieldPath, Fields, Limits, Value, ValueRef};

/// Most documents in a mutation: others' writes wait for no longer than one takes.
const DOCS: usize = 250;
/// A mutation is full at this many bytes: an eighth of the smallest message limit, so that what the
/// gateway makes of it fits too.
const BYTES: usize = 128 << 10;
/// A mutation is full at this many MessagePack objects; gateways allow 65,536 in a message.
const ELEMENTS: usize = 16 << 10;

/// The document that a record is to become.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Wanted {
    /// Where it comes from.
    pub(crate) place: Place,
    /// Its path.
    pub(crate) doc: DocPath,
    fields: Fields,
}

impl Wanted {
    /// The document of `record`, which `ids` names. The error names the record.
    pub(crate) fn new(record: &Record, ids: &mut Ids, limits: &Limits) -> Result<Self, String> {
        let mut make = || {
            let doc = ids.name(record)?;
            let fields = json::to_fields(&record.fields)?;
            let fields = Fields::new(fields, limits).map_err(|e| e.to_string())?;
            let bytes: usize = fields
                .leaves()
                .map(|(path, v)| path.as_str().len() + v.as_bytes().len())
                .sum();
            if bytes > limits.doc_bytes {
                return Err(format!(
                    "it has {bytes} bytes; the gateway allows {} in a document",
                    limits.doc_bytes
                ));
            }
            Ok(Self {
                place: record.place,
                doc,
                fields,
            })
        };
        make().map_err(|e: String| format!("{}: {e}", record.place))
    }

    /// Whether the document is exactly that already.
    pub(crate) fn is(&self, present: Option<&Leaves>) -> bool {
        present.is_some_and(|present| {
            let mut count = 0;
            let same = self.fields.leaves().all(|(path, value)| {
                count += 1;
                present.get(path) == Some(value)
            });
            same && count == present.len()
        })
    }
}

/// Documents on their way into one mutation.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    /// The documents and their leaves.
    pub(crate) docs: Vec<(DocPath, Vec<(FieldPath, Value)>)>,
    /// Where each document's record is, in the same order.
    pub(crate) places: Vec<Place>,
    bytes: usize,
    elements: usize,
}

impl Batch {
    /// Adds a document. If the batch would be over its size with it, what was there before comes back,
    /// to be sent first.
    pub(crate) fn push(&mut self, wanted: Wanted) -> Option<Self> {
        let (mut bytes, mut elements) = (wanted.doc.as_str().len(), 8);
        let mut leaves = Vec::new();
        for (path, value) in wanted.fields.leaves() {
            bytes += path.as_str().len() + value.as_bytes().len();
            elements += 1 + count(value.get());
            leaves.push((path.clone(), value.clone()));
        }
        let is_over = |now: usize, more: usize, most: usize| now + more > most;
        let full = !self.docs.is_empty()
            && (is_over(self.docs.len(), 1, DOCS)
                || is_over(self.bytes, bytes, BYTES)
                || is_over(self.elements, elements, ELEMENTS));
        let before = full.then(|| std::mem::take(self));
        self.bytes += bytes;
        self.elements += elements;
        self.places.push(wanted.place);
        self.docs.push((wanted.doc, leaves));
        before
    }
}

/// The MessagePack objects of a value.
fn count(value: ValueRef<'_>) -> usize {
    match value {
        ValueRef::Array(items) => 1 + items.map(|(item, _)| count(item)).sum::<usize>(),
        ValueRef::Map(entries) => 1 + entries.map(|(_, item, _)| 1 + count(item)).sum::<usize>(),
        _ => 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value as Json, json};
    use tidegate_protocol::Collection;

    fn wanted(number: usize, fields: &Json) -> Result<Wanted, String> {
        let mut ids = Ids::new(Collection::parse("c").expect("valid"), None);
        let fields = fields.as_object().expect("an object").clone();
        let record = Record {
            place: Place { number, line: number },
            id: None,
            fields,
        };
        Wanted::new(&record, &mut ids, &Limits::default())
    }

    #[test]
    fn a_document_is_compared_leaf_by_leaf() {
        let one = wanted(1, &json!({"a": {"b": 1}, "c.d": null, "e": [], "f": {}})).expect("valid");
        let p = |text: &str| FieldPath::parse(text).expect("valid");
        let mut present = Leaves::from([
            (p("a.b"), Value::int(1)),
            (p(r"c\.d"), Value::nil()),
            (p("e"), Value::array([].iter())),
            (p("f"), Value::empty_map()),
        ]);
        assert!(one.is(Some(&present)));
        present.insert(p("a.b"), Value::float(1.0).unwrap());
        assert!(!one.is(Some(&present)), "1 is not 1.0");
        present.insert(p("a.b"), Value::int(1));
        present.insert(p("more"), Value::nil());
        assert!(!one.is(Some(&present)));
        assert!(!one.is(None));
    }

    #[test]
    fn batches_stay_below_their_bounds_and_keep_the_order() {
        let big = "x".repeat(50 << 10);
        let docs = [
            json!({"a": big}),
            json!({"a": big}),
            json!({"a": big}),
            json!({"l": vec![1; 15_000]}),
            json!({"l": vec![1; 15_000]}),
        ];
        let mut batch = Batch::default();
        let mut sizes = Vec::new();
        for (at, doc) in docs.iter().enumerate() {
            sizes.extend(
                batch
                    .push(wanted(at + 1, doc).expect("valid"))
                    .map(|full| full.places.len()),
            );
        }
        assert_eq!((sizes, batch.places.len()), (vec![2, 2], 1));
        let mut batch = Batch::default();
        let full = (1..=251)
            .find_map(|n| batch.push(wanted(n, &json!({})).expect("valid")))
            .expect("full at 250");
        assert_eq!((full.docs.len(), full.places[0].number), (250, 1));
    }

    #[test]
    fn what_cannot_be_a_document_is_refused_with_its_place() {
        let deep = (0..21).fold(json!(1), |inner, _| json!({ "a": inner }));
        for (fields, wants) in [
            (json!({"": 1}), "record 3 (line 3): the key \"\""),
            (json!({"a": u64::MAX}), "the field \"a\""),
            (deep, "depth"),
            (json!({"a": "x".repeat(800 << 10)}), "bytes; the gateway allows 786432"),
        ] {
            let error = wanted(3, &fields).expect_err("refused");
            assert!(error.contains(wants), "{error}");
        }
    }
}
