//! The Tidegate client: live local views of spaces, and writes that work offline.

pub mod storage;
pub mod sync;
pub mod url;
mod values;

pub use tidegate_protocol as protocol;
pub use tidegate_protocol::{FieldPath, Invalid, Value};
pub use url::{GatewayUrl, UrlError};
pub use values::{IntoFields, IntoNumber, IntoPath, IntoValue};
