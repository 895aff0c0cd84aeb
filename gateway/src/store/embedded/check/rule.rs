//! What must hold, in words.

use std::fmt;

/// Something that must hold of a store.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Rule {
    /// A key is one that the store writes.
    Key,
    /// A record can be read.
    Record,
    /// A space with anything in a table has its own record.
    SpaceRecord,
    /// What a space's record says of its own agrees: floor, start of the log, conflicts.
    SpaceBounds,
    /// A space has its lineage, and one that was written to has an epoch.
    Lineage,
    /// Starts of epochs never go back, and none lies beyond the head.
    EpochStart,
    /// Epochs have names of their own, and not 0.
    EpochName,
    /// Marks of time go forward, up to the head and to the record's last one.
    Mark,
    /// The log has every commit from its first one to the head, and no other.
    LogGap,
    /// A commit's payload names the seq that it is kept under.
    LogSeq,
    /// The log has as many bytes as the space's record says.
    LogBytes,
    /// Times of commits never go back, and the last one's is the space's.
    LogTime,
    /// A document has a header.
    Header,
    /// A header's seqs are in order: born and deleted up to last, last up to the head.
    HeaderSeq,
    /// A header's size is that of the document's live leaves.
    Size,
    /// A document that was deleted has no live leaf.
    DeadLeaf,
    /// A space's documents are as many, and as large, as its record says.
    Usage,
    /// A cell has a name in the table of names, and a name a cell.
    FieldName,
    /// The cells of a packed document are in its record, and none of it has a key of its own.
    Packed,
    /// The cells in a packed document's record are in the order of their paths, each once.
    CellOrder,
    /// A cell was not written after its document was last touched.
    CellSeq,
    /// A value is one leaf in canonical MessagePack.
    Value,
    /// No live leaf lies below another.
    Structure,
    /// A document is in the index once, under the commit that last touched it.
    Index,
    /// A tombstone above the floor is where collection will find it.
    Tombstone,
    /// A client's results are those of its last mutations, without a gap, each where it belongs.
    Results,
    /// A client's newest result is that of its last mutation.
    LastResult,
    /// A result's position is one of the space's history.
    ResultSeq,
    /// The conflict log has every entry from its first to its next number, and no other.
    ConflictGap,
    /// The conflict log has as many bytes as the space's record says.
    ConflictBytes,
    /// A conflict's position is one of the space's history.
    ConflictSeq,
}

impl Rule {
    /// What it is that does not hold.
    pub fn broken(self) -> &'static str {
        match self {
            Self::Key => "is no key that the store writes",
            Self::Record => "cannot be read",
            Self::SpaceRecord => "the space has no record of its own",
            Self::SpaceBounds => "the space's record contradicts itself",
            Self::Lineage => "the space has no lineage",
            Self::EpochStart => "an epoch starts before the one before it, or beyond the head",
            Self::EpochName => "an epoch's name is 0 or is there twice",
            Self::Mark => "a mark of time is out of order",
            Self::LogGap => "the log has a gap, or a commit outside its bounds",
            Self::LogSeq => "the payload is another commit's",
            Self::LogBytes => "the log has other bytes than the space's record says",
            Self::LogTime => "a commit's time goes back, or the last one's is not the space's",
            Self::Header => "the document has no header",
            Self::HeaderSeq => "the header's seqs are out of order",
            Self::Size => "the header's size is not that of the live leaves",
            Self::DeadLeaf => "a deleted document has a live leaf",
            Self::Usage => "the space's documents are not what its record counts",
            Self::FieldName => "a cell and the table of names disagree",
            Self::Packed => "a cell of a packed document has a key of its own",
            Self::CellOrder => "the cells of a packed document are out of order",
            Self::CellSeq => "a cell is newer than its document",
            Self::Value => "a value is no leaf in canonical form",
            Self::Structure => "a live leaf lies below another",
            Self::Index => "the index and the header disagree",
            Self::Tombstone => "a tombstone is not listed for collection",
            Self::Results => "a client's results have a gap, or reach too far",
            Self::LastResult => "a client's newest result is not that of its last mutation",
            Self::ResultSeq => "a result's position is none of the space's history",
            Self::ConflictGap => "the conflict log has a gap, or an entry outside its bounds",
            Self::ConflictBytes => "the conflict log has other bytes than the space's record says",
            Self::ConflictSeq => "a conflict's position is none of the space's history",
        }
    }
}

/// A place where a rule does not hold.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Violation {
    /// The rule.
    pub rule: Rule,
    /// The table.
    pub table: &'static str,
    /// The space; empty where not even that can be told.
    pub space: String,
    /// The document, field, seq or client; empty for the space as such.
    pub place: String,
    /// What was found.
    pub found: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.table)?;
        for name in [&self.space, &self.place] {
            if !name.is_empty() {
                write!(f, "{name}: ")?;
            }
        }
        write!(f, "{}: {}", self.rule.broken(), self.found)
    }
}
