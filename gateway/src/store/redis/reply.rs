//! Answers of scripts, taken apart.

use crate::store::embedded::records::Record;
use crate::store::{Lineage, SpaceState, StoreError, Usage};
use redis::Value;
use tidegate_protocol::{Mid, Position, Seq};

/// An answer that is none of the script's.
pub(super) fn unexpected(what: &str) -> StoreError {
    StoreError::Damaged(format!("Redis answered something else than {what}"))
}

/// The parts of an array, one after the other.
pub(super) struct Parts(std::vec::IntoIter<Value>);

impl Parts {
    pub(super) fn of(value: Value) -> Result<Self, StoreError> {
        match value {
            Value::Array(parts) => Ok(Self(parts.into_iter())),
            _ => Err(unexpected("an array")),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn bytes(&mut self) -> Result<Vec<u8>, StoreError> {
        match self.0.next() {
            Some(Value::BulkString(bytes)) => Ok(bytes),
            Some(Value::SimpleString(text)) => Ok(text.into_bytes()),
            _ => Err(unexpected("a string")),
        }
    }

    pub(super) fn number(&mut self) -> Result<u64, StoreError> {
        let bytes = self.bytes()?;
        let number = std::str::from_utf8(&bytes).ok().and_then(|text| text.parse().ok());
        number.ok_or_else(|| unexpected("a number"))
    }

    pub(super) fn seq(&mut self) -> Result<Seq, StoreError> {
        Seq::new(self.number()?).ok_or_else(|| unexpected("a seq"))
    }

    pub(super) fn parts(&mut self) -> Result<Self, StoreError> {
        Self::of(self.0.next().unwrap_or_default())
    }

    pub(super) fn record<R: Record>(&mut self) -> Result<R, StoreError> {
        R::decode(&self.bytes()?).ok_or_else(|| unexpected("a record"))
    }

    /// Where a space stands, and the first commit that its log has.
    pub(super) fn state(&mut self) -> Result<(SpaceState, Seq), StoreError> {
        let mut parts = self.parts()?;
        let (seq, last_ms, floor) = (parts.seq()?, parts.number()?, parts.seq()?);
        let usage = Usage {
            docs: parts.number()?,
            bytes: parts.number()?,
        };
        let log_first = parts.seq()?;
        let lineage: Lineage = parts.record()?;
        let state = SpaceState {
            head: Position::new(lineage.last_epoch(), seq),
            lineage,
            floor,
            last_ms,
            usage,
        };
        Ok((state, log_first))
    }

    /// The last mid of a client's record, if there is one and it was not erased.
    pub(super) fn last_mid(&mut self) -> Result<Option<Mid>, StoreError> {
        let record = self.bytes()?;
        let Some((mid, _)) = record.split_first_chunk::<8>() else {
            return Ok(None);
        };
        let mid = Mid::new(u64::from_be_bytes(*mid)).ok_or_else(|| unexpected("a mid"))?;
        Ok((mid != Mid::ZERO).then_some(mid))
    }
}
