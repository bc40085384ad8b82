//! Where a queue's parts lie, in guest addresses and, once they were found and checked, in host addresses.

use super::packed::layout::PackedLayout;
use super::split::layout::SplitLayout;
use crate::mem::{GuestMemory, MemoryFault};

/// The descriptor goes on at the next one (`VIRTQ_DESC_F_NEXT`).
pub(crate) const DESC_NEXT: u16 = 1;
/// The device writes this buffer (`VIRTQ_DESC_F_WRITE`): a receive buffer.
pub(crate) const DESC_WRITE: u16 = 2;
/// The buffer holds a table of descriptors (`VIRTQ_DESC_F_INDIRECT`).
pub(crate) const DESC_INDIRECT: u16 = 4;

/// Bytes of one descriptor, in both formats.
pub(crate) const DESC_BYTES: u32 = 16;

/// The most descriptors that a queue of either format may have.
const MAX_SIZE: u16 = 32768;

/// How a ring is laid out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RingFormat {
    /// A descriptor table and two rings of indices (clause 2.7).
    #[default]
    Split,
    /// One ring of descriptors (`VIRTIO_F_RING_PACKED`, clause 2.8).
    Packed,
}

impl RingFormat {
    /// Whether a queue of this format can have `size` descriptors.
    ///
    /// # Errors
    /// It cannot.
    pub fn check_size(self, size: u16) -> Result<(), QueueSizeError> {
        match self {
            RingFormat::Split if !size.is_power_of_two() => Err(QueueSizeError::Size(size)),
            RingFormat::Packed if size == 0 || size > MAX_SIZE => Err(QueueSizeError::PackedSize(size)),
            _ => Ok(()),
        }
    }
}

/// The guest addresses of a queue's three parts, as a driver names them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueAddrs {
    /// Descriptor table, or packed: descriptor ring; 16-byte aligned.
    pub desc: u64,
    /// Available ring, 2-byte aligned; packed: driver event suppression, 4-byte aligned.
    pub avail: u64,
    /// Used ring, or packed: device event suppression; 4-byte aligned.
    pub used: u64,
}

impl QueueAddrs {
    /// The parts behind each other from `start` (16-byte aligned), each aligned as it must be in either format.
    pub fn contiguous(start: u64, size: u16) -> QueueAddrs {
        let avail = start + u64::from(DESC_BYTES) * u64::from(size);
        let used = (avail + 6 + 2 * u64::from(size)).next_multiple_of(4);
        QueueAddrs { desc: start, avail, used }
    }
}

/// Why a queue cannot be set up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QueueSizeError {
    /// The size of a split queue is not a power of two between 1 and 32768 (clause 2.7).
    #[error("queue size {0} is not a power of two between 1 and 32768")]
    Size(u16),
    /// The size of a packed queue is not between 1 and 32768 (clause 2.8.10.1).
    #[error("packed queue size {0} is not between 1 and 32768")]
    PackedSize(u16),
    /// A part is not aligned as clauses 2.7 and 2.8.10.1 demand.
    #[error("ring part at guest address {0:#x} is not aligned")]
    Unaligned(u64),
    /// A part is not in guest memory.
    #[error(transparent)]
    Memory(#[from] MemoryFault),
}

/// A queue's three parts in host addresses: validated once, when the queue is set up.
#[derive(Clone, Copy, Debug)]
pub struct QueueLayout {
    pub(crate) parts: Parts,
}

/// The parts, by format.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Parts {
    Split(SplitLayout),
    Packed(PackedLayout),
}

impl QueueLayout {
    /// Bytes that a queue of `size` entries takes when its parts lie behind each other, from a 16-byte
    /// aligned start. A packed queue takes no more than a split one.
    pub fn bytes(size: u16) -> u64 {
        let QueueAddrs { used, .. } = QueueAddrs::contiguous(0, size);
        used + 6 + 8 * u64::from(size)
    }

    /// The parts of a split queue: [`QueueLayout::with_format`].
    ///
    /// # Errors
    /// As there.
    pub fn new(memory: &GuestMemory, size: u16, addrs: QueueAddrs) -> Result<QueueLayout, QueueSizeError> {
        QueueLayout::with_format(RingFormat::Split, memory, size, addrs)
    }

    /// Finds the parts in `memory` and checks size, alignment and bounds. The caller keeps `memory`.
    ///
    /// # Errors
    /// A size that the format does not allow, a part that is not aligned or not in `memory`.
    pub fn with_format(
        format: RingFormat,
        memory: &GuestMemory,
        size: u16,
        addrs: QueueAddrs,
    ) -> Result<QueueLayout, QueueSizeError> {
        format.check_size(size)?;
        let parts = match format {
            RingFormat::Split => Parts::Split(SplitLayout::new(memory, size, addrs)?),
            RingFormat::Packed => Parts::Packed(PackedLayout::new(memory, size, addrs)?),
        };
        Ok(QueueLayout { parts })
    }

    /// Entries in the queue.
    pub fn size(&self) -> u16 {
        match &self.parts {
            Parts::Split(layout) => layout.size,
            Parts::Packed(layout) => layout.size(),
        }
    }

    /// How the queue is laid out.
    pub fn format(&self) -> RingFormat {
        match &self.parts {
            Parts::Split(_) => RingFormat::Split,
            Parts::Packed(_) => RingFormat::Packed,
        }
    }
}

/// The host address of a part that must lie in one region and be aligned, as the guest sees it and as we do.
pub(crate) fn find_part(
    memory: &GuestMemory,
    addr: u64,
    align: u64,
    bytes: u32,
) -> Result<*mut u8, QueueSizeError> {
    let at = memory.translate_whole(addr, bytes)?.as_ptr();
    if !addr.is_multiple_of(align) || !(at as u64).is_multiple_of(align) {
        return Err(QueueSizeError::Unaligned(addr));
    }
    Ok(at)
}
