//! The split virtqueue (VIRTIO 1.2, clause 2.7): a table of descriptors and two rings of heads.
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
//! The driver fills descriptors and puts the chain's head, which is its first descriptor, in the available ring; the
//! device walks the chain, uses the buffers, and puts the head in the used ring. Both indices run freely modulo 2^16.

pub(crate) mod device;
pub(crate) mod driver;
pub(crate) mod layout;

/// Whether an index that moved from `old` to `new` passed `event`: the other side asked to be told
/// (VIRTIO 1.2, clause 2.7.10, `vring_need_event`).
#[inline]
fn passed(event: u16, new: u16, old: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}
