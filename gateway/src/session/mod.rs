//! Sessions: one per connection. `machine` is the state machine without a socket, `conn` the shell
//! that drives it, `node` what all of them share, `catchup` brings a subscription to where it goes live, `view` says what it covers.

mod catchup;
mod conn;
mod cursor;
mod machine;
mod node;
mod view;

pub use conn::{Accepted, serve};
pub use machine::{Effect, Input, Now, Session, SessionConfig, Subscribe};
pub use node::{Node, NodeConfig};
pub use view::view_of;
