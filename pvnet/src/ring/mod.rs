//! The virtqueue: the ring between a VM and the switch, in either of the two formats that VIRTIO 1.2 knows.
//!
//! A chain of buffers goes round: the driver (the VM) offers it, the device (the switch) takes it, uses the buffers
//! and gives it back. A chain is known by its *head*: a 16-bit number below the queue's size that no other chain has
//! meanwhile.
//!
//! | module | what |
//! | --- | --- |
//! | [`device`] | the switch's side, which trusts nothing that it reads |
//! | [`driver`] | the side of in-process guests, tests and the simulator, which does not trust the device either |
//! | `split` | the format with a table and two rings (clause 2.7) |
//! | `packed` | the format with one ring of descriptors (clause 2.8) |
//! | [`inflight`] | a record of the chains that are out, which outlives the switch |
//! | [`suppression`] | what a driver's wish for interrupts tells about its VM |
//! | [`relay`] | store and forward |
//!
//! Ordering, in both formats: whoever publishes stores the word that shows it with release, and whoever looks for it
//! loads it with acquire. Event suppression (clauses 2.7.7, 2.7.10, 2.8.14) needs a full fence between publishing and
//! reading the other side's event, on both sides: without it both may sleep.

mod buffers;
pub mod device;
pub mod driver;
pub mod inflight;
mod layout;
mod packed;
mod position;
mod recorded;
pub mod relay;
mod split;
pub mod suppression;
#[cfg(test)]
mod tests;

pub use layout::{QueueAddrs, QueueLayout, QueueSizeError, RingFormat};
pub use position::{Position, PositionError};
