//! A device: a port without rings, whose frames come and go by system call (TAP, AF_PACKET).
//!
//! To the switch a device is the paper's driver domain: it has the same two directions as a VM, seen
//! from the VM's side. What the network behind it *transmits* is [pulled](Device::pull) into memory of
//! the switch; what it is to *receive* is [pushed](Device::push), written straight from the sender's
//! memory. Both are called from whichever core does the work, so a device is shared.

use crate::header::Offloads;
use crate::mem::Segment;

/// Why a device no longer works. Its port goes down with this reason; the others forward on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DeviceFault {
    /// The interface was removed.
    #[error("the interface is gone")]
    Gone,
    /// The operating system refused with this error number (`errno`).
    #[error("the system refused with error {0}")]
    System(i32),
}

/// What became of one frame that was pushed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PushError {
    /// The device's own queue is full: this frame is dropped, later ones may pass.
    Full,
    /// The device is there but its link is down.
    LinkDown,
    /// The device refuses this one frame (too long for it, or its header is impossible to it).
    Refused,
    /// The device is broken.
    Fault(DeviceFault),
}

/// A place for one frame to be pulled into.
#[derive(Clone, Copy, Debug)]
pub struct PullSlot {
    /// Memory of the switch's own for a `virtio_net_hdr` of 12 bytes and then the frame; at least
    /// `VNET_HDR_BYTES + MAX_FRAME_BYTES` long.
    pub buffer: Segment,
    /// Bytes filled by the device, the header's 12 included.
    pub bytes: u32,
}

/// One frame to be pushed: its `virtio_net_hdr` (12 bytes, first) and its bytes, in order.
#[derive(Clone, Copy, Debug)]
pub struct PushFrame<'a> {
    /// The parts in order. The first part starts with the 12-byte header; no part is empty.
    pub parts: &'a [Segment],
}

/// A port whose frames come and go by system call.
///
/// # Safety contract of segments
/// The switch vouches for every [`Segment`] that it passes for the time of the call; a device hands
/// them to the operating system and keeps none.
pub trait Device: Send + Sync {
    /// Takes up to `slots.len()` waiting frames, in order, without blocking. Answers how many slots were
    /// filled, 0 when nothing waits.
    ///
    /// The switch lets one core pull at a time.
    fn pull(&self, slots: &mut [PullSlot]) -> Result<usize, DeviceFault>;

    /// Hands over `frames`, in order, without blocking, writing each frame's outcome to the same place
    /// in `outcomes` (as long as `frames`). Any number of cores may push at once.
    fn push(&self, frames: &[PushFrame<'_>], outcomes: &mut [Result<(), PushError>]);

    /// What the device takes unfinished.
    fn offloads(&self) -> Offloads;
}
