//! The control socket: how `hyper-switch ctl` asks a running daemon what it has and does.
//!
//! A Unix stream socket carries one JSON object a line each way; [`protocol`] is the envelope and
//! [`status`] what is in it. The daemon claims the path ([`socket`]) before it does anything else, and one
//! thread of its own answers ([`server`]): no core of the switch ever waits for a client.

pub mod client;
pub mod protocol;
pub mod render;
pub mod server;
pub mod socket;
pub mod status;
