//! vhost-user: a VMM hands over its guest's memory and rings on a Unix socket (QEMU's `docs/interop/vhost-user.rst`).
//!
//! The VMM is the *front-end*, the switch the *back-end*.
//!
//! ```text
//!   socket            message          session                              host
//!   bytes and fds ──▶ requests ──▶ what was said so far ──▶ effects ──▶ lanes, memory, eventfds
//!          ◀── replies ◀──              │ memory: files mapped, both kinds of address
//!                                       │   sigbus: files that are truncated later
//!                                       │ vring: a ring until it can run
//!                                       │ inflight: what a crash leaves behind
//! ```
//!
//! The host's part: it reads with [`socket::Connection::recv`], hands what came to
//! [`session::Session::handle`], does what the effect says, sends the reply. It waits for the socket, for
//! [`session::Session::lost_event`] and for the kicks, each in its own way; nothing here waits.

pub mod event;
pub mod features;
pub mod inflight;
pub mod memory;
pub mod message;
pub mod session;
mod sigbus;
pub mod socket;
mod vring;
