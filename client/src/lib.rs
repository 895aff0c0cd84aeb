//! The Tidegate client: live local views of spaces, and writes that work offline.
//!
//! ```no_run
//! # async fn app() -> Result<(), Box<dyn std::error::Error>> {
//! use tidegate_client::{Client, Options, fields};
//!
//! let client = Client::connect(Options::new("ws://127.0.0.1:8080")?.token("…"));
//! let space = client.space("demo")?;
//! let notes = space.collection("notes")?;
//!
//! let mut live = notes.watch();
//! let saved = notes.doc("n1")?.set(fields! { "title" => "Hello", "stars" => 5 });
//! while let Some(update) = live.next().await {
//!     for doc in &update.docs {
//!         println!("{} {:?} pending: {}", doc.id(), doc.value(), doc.pending());
//!     }
//! #   break;
//! }
//! let acked = saved.await?;
//! println!("durable at {}", acked.position);
//! client.close().await;
//! # Ok(())
//! # }
//! ```
//!
//! Underneath, [`sync::Machine`] is the sync machine without socket, clock or randomness; a task of the
//! client's own drives it. [`storage::Storage`] is where a durable client keeps its state.

mod client;
mod doc;
mod driver;
mod link;
mod mutation;
mod shared;
mod space;
pub mod storage;
pub mod sync;
pub mod transport;
pub mod url;
mod values;
mod watch;

pub use client::{Client, Failures, Options, OptionsError};
pub use doc::{Doc, DocRef, IntoDoc};
pub use mutation::{MutationBuilder, Pending};
pub use shared::Failure;
pub use space::{CollectionRef, Cut, Space};
pub use sync::{Acked, ConnectionState, Identity, MutationId, Outcome, Refusal, WatchItem, WriteError};
pub use tidegate_protocol as protocol;
pub use tidegate_protocol::{FieldPath, Invalid, Value};
pub use url::{GatewayUrl, UrlError};
pub use values::{IntoFields, IntoNumber, IntoPath, IntoValue};
pub use watch::{Live, Update, WATCH_ITEMS, Watch};
