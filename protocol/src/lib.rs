//! The Tidegate sync protocol: names, values, messages, their two wire forms, and the table of errors.
//!
//! Nothing here knows a runtime, a clock or a socket: bytes go in, typed messages come out, and back.
//! A value of any type in this crate is valid by construction; bytes become types once, at the edge.
//!
//! `docs/PROTOCOL.md` is the normative text; `protocol/vectors` pins every form in bytes.

pub mod deflate;
pub mod error;
pub mod form;
pub mod ids;
pub mod json;
pub mod limits;
pub mod message;
pub mod msgpack;
pub mod name;
pub mod tree;
pub mod value;

pub use error::{Action, Code, Invalid};
pub use form::Form;
pub use ids::{ClientId, Epoch, Mid, MutationKey, Position, Seq, ViewId, Writer};
pub use limits::Limits;
pub use message::*;
pub use name::{Collection, DocPath, FieldPath, SpaceId};
pub use value::{Number, Timestamp, Value, ValueRef};
