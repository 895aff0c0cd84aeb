//! The bus: tells a node what other nodes commit. Never trusted: whatever it loses, the hub's head checks find.

mod inbox;
pub mod redis;

use crate::hub::Hub;
use crate::store::StoreError;
use async_trait::async_trait;
use std::sync::Arc;
use tidegate_protocol::SpaceId;
use tokio_util::sync::CancellationToken;

/// What the hub asks of a bus.
#[async_trait]
pub trait Bus: Send + Sync + 'static {
    /// Follows a space: what is published from the return on is brought to the hub, as long as nothing breaks. After a
    /// break the bus lets the hub compare every space's head with the store.
    async fn follow(&self, space: &SpaceId) -> Result<(), StoreError>;

    /// Follows a space no longer. Does not block.
    fn leave(&self, space: &SpaceId);

    /// Whether what other nodes publish arrives.
    fn is_connected(&self) -> bool;

    /// Brings what arrives to the hub until it is told to stop.
    async fn run(self: Arc<Self>, hub: Arc<Hub>, stop: CancellationToken);
}
