//! The split virtqueue (VIRTIO 1.2, clause 2.7): the ring between a VM and the switch.
//!
//! ```text
//!   guest memory                    driver (the VM)           device (the switch)
//!   +------------------------+
//!   | descriptor table       |      writes                    reads      16 bytes a descriptor
//!   |  addr len flags next   |
//!   +------------------------+
//!   | available ring         |      writes                    reads      heads of chains on offer
//!   |  flags idx ring[] used_event  "interrupt me at ..."
//!   +------------------------+
//!   | used ring              |      reads                     writes     heads of chains done with
//!   |  flags idx ring[] avail_event                           "kick me at ..."
//!   +------------------------+
//! ```
//!
//! A chain goes round: the driver fills descriptors and puts the chain's head in the available ring; the
//! device walks the chain, uses the buffers, and puts the head in the used ring. Both indices run freely
//! modulo 2^16. [`device`] is the switch's side and trusts nothing that it reads; [`driver`] is the side of
//! in-process guests, tests, the simulator and fuzzing, and does not trust the device either.
//!
//! Ordering: whoever publishes an index stores it with release, and whoever reads the other's index loads
//! it with acquire. Event suppression (clauses 2.7.7, 2.7.10) needs a full fence between publishing an index
//! and reading the other side's event, on both sides: without it both may sleep.

pub mod device;
pub mod driver;
pub(crate) mod layout;
pub mod relay;
pub mod suppression;

pub use layout::{QueueAddrs, QueueLayout, QueueSizeError};

/// Whether an index that moved from `old` to `new` passed `event`: the other side asked to be told
/// (VIRTIO 1.2, clause 2.7.10, `vring_need_event`).
#[inline]
pub fn passed(event: u16, new: u16, old: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}
