//! Sessions: one per connection. `machine` is the state machine without a socket, `conn` the shell
//! that drives it, `catchup` brings a subscription to where it goes live, `view` says what it covers.

mod catchup;
mod conn;
mod cursor;
mod machine;
mod view;

pub use conn::{Accepted, Node, NodeConfig, serve};
pub use machine::{Effect, Input, Now, Session, SessionConfig, Subscribe};
pub use view::view_of;
