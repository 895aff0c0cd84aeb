//! The limits of the protocol, announced in `welcome` and enforced on both sides.

/// Longest space name, in bytes.
pub const SPACE_BYTES: usize = 128;
/// Longest document path, in bytes.
pub const DOC_BYTES: usize = 512;
/// Longest segment of a document path, in bytes.
pub const SEGMENT_BYTES: usize = 255;
/// Seqs and mids stay below this (2^53), so that every language can hold them in a double.
pub const SEQ_LIMIT: u64 = 1 << 53;
/// Unanswered mutations of one client in one space.
pub const UNANSWERED: usize = 256;
/// Longest message before `hello.max_message` says otherwise; iOS kills a connection over it by default.
pub const MESSAGE_BYTES: usize = 1 << 20;
/// Longest message that an operator may allow. A client for which that is not much says that it takes it.
pub const MESSAGE_BYTES_MAX: usize = 16 << 20;

/// Deepest nesting that an operator may allow; it bounds the recursion of every reader.
pub const DEPTH_MAX: usize = 64;
/// Most documents in one `get`.
pub const GET_DOCS: usize = 1_000;
/// Most collections in the filter of a `sub`.
pub const FILTER_COLLECTIONS: usize = 1_000;
/// Longest token, in bytes.
pub const TOKEN_BYTES: usize = 16 << 10;
/// Longest name of a client library, in bytes.
pub const SDK_BYTES: usize = 256;
/// Most entries of `hello.caps`.
pub const CAPS: usize = 64;
/// Longest of them, in bytes.
pub const CAP_BYTES: usize = 64;
/// Longest cursor, in bytes: two positions, a document path and a view fit with room to spare.
pub const CURSOR_BYTES: usize = 2_048;

/// Limits that an operator may set. A message over one of them is refused with an error that names
/// the limit and the value found; nothing of it is applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Largest message in either direction, envelope included, and inflated if compressed, in bytes. At most
    /// [`MESSAGE_BYTES_MAX`].
    pub message_bytes: usize,
    /// Largest document: the sum of its field paths' and values' bytes.
    pub doc_bytes: usize,
    /// About how large a catch-up page gets, in bytes.
    pub page_bytes: usize,
    /// Longest field path in its escaped form, in bytes.
    pub field_bytes: usize,
    /// Deepest nesting: segments of a field path plus the nesting of arrays and maps inside its value.
    /// At most [`DEPTH_MAX`].
    pub depth: usize,
    /// Most ops in a mutation.
    pub ops: usize,
    /// Most subscriptions on a connection.
    pub subscriptions: usize,
    /// Most MessagePack objects in a message, each key, value, array and map counted.
    pub elements: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            message_bytes: MESSAGE_BYTES,
            doc_bytes: 768 << 10,
            page_bytes: 256 << 10,
            field_bytes: 512,
            depth: 20,
            ops: 500,
            subscriptions: 1_000,
            elements: 65_536,
        }
    }
}

/// A row of the table of limits.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// Its name, in `welcome` if an operator may set it.
    pub name: &'static str,
    /// Its bound, or its default.
    pub bound: u64,
    /// Whether an operator may set it.
    pub configurable: bool,
    /// What it bounds.
    pub meaning: &'static str,
}

/// All the limits. `docs/PROTOCOL.md` shows the table, and a test compares the two.
pub fn table() -> Vec<Row> {
    let Limits {
        message_bytes,
        doc_bytes,
        page_bytes,
        field_bytes,
        depth,
        ops,
        subscriptions,
        elements,
    } = Limits::default();
    let row = |configurable| {
        move |(name, bound, meaning)| Row {
            name,
            bound: bound as u64,
            configurable,
            meaning,
        }
    };
    let set = [
        (
            "message_bytes",
            message_bytes,
            "bytes of a message, inflated if compressed; 16,777,216 at most",
        ),
        (
            "doc_bytes",
            doc_bytes,
            "bytes of a document: the sum of its field paths and values",
        ),
        (
            "page_bytes",
            page_bytes,
            "bytes of a catch-up page, about; a larger document has a page of its own",
        ),
        ("field_bytes", field_bytes, "bytes of a field path in its escaped form"),
        (
            "depth",
            depth,
            "segments of a field path plus the nesting of arrays and maps in its value; 64 at most",
        ),
        ("ops", ops, "ops of a mutation"),
        ("subscriptions", subscriptions, "subscriptions of a connection"),
        (
            "elements",
            elements,
            "MessagePack objects in a client's message: each key, value, array and map counts",
        ),
    ];
    let fixed = [
        ("space", SPACE_BYTES, "bytes of a space's name"),
        ("document", DOC_BYTES, "bytes of a document's path"),
        ("segment", SEGMENT_BYTES, "bytes of a segment of it"),
        ("unanswered", UNANSWERED, "unanswered mutations of a client in a space"),
        ("get", GET_DOCS, "documents of a `get`"),
        ("filter", FILTER_COLLECTIONS, "collections of a `filter`"),
        ("token", TOKEN_BYTES, "bytes of a token"),
        ("sdk", SDK_BYTES, "bytes of `hello.sdk`"),
        ("caps", CAPS, "entries of `hello.caps`"),
        ("cap", CAP_BYTES, "bytes of each"),
        ("cursor", CURSOR_BYTES, "bytes of a cursor"),
    ];
    set.into_iter()
        .map(row(true))
        .chain(fixed.into_iter().map(row(false)))
        .collect()
}
