//! Where the three parts of a split virtqueue lie, and the loads and stores that both sides use.

use crate::mem::{GuestMemory, MemoryFault, Segment};
use core::sync::atomic::{AtomicU16, Ordering};

/// The descriptor goes on at `next` (`VIRTQ_DESC_F_NEXT`).
pub(super) const DESC_NEXT: u16 = 1;
/// The device writes this buffer (`VIRTQ_DESC_F_WRITE`): a receive buffer.
pub(super) const DESC_WRITE: u16 = 2;
/// The buffer holds a table of descriptors (`VIRTQ_DESC_F_INDIRECT`).
pub(super) const DESC_INDIRECT: u16 = 4;
/// In either ring's `flags`: do not tell me (`VIRTQ_AVAIL_F_NO_INTERRUPT`, `VIRTQ_USED_F_NO_NOTIFY`).
pub(super) const NO_NOTIFY: u16 = 1;

/// Bytes of one descriptor.
pub(super) const DESC_BYTES: u32 = 16;

/// A descriptor as read, all at once, from guest memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Desc {
    pub(super) addr: u64,
    pub(super) len: u32,
    pub(super) flags: u16,
    pub(super) next: u16,
}

impl Desc {
    /// Copies descriptor `index` of the table at `table`: one copy, so that what is checked is what is used.
    ///
    /// # Safety
    /// The table is mapped and has more than `index` descriptors.
    #[inline]
    pub(super) unsafe fn load(table: *const u8, index: u16) -> Desc {
        // SAFETY: in bounds by the caller's word; unaligned reads, as an indirect table may lie anywhere.
        unsafe {
            let at = table.add(usize::from(index) * DESC_BYTES as usize);
            let low = at.cast::<u64>().read_unaligned();
            let high = at.add(8).cast::<u64>().read_unaligned();
            Desc {
                addr: u64::from_le(low),
                len: u64::from_le(high) as u32,
                flags: (u64::from_le(high) >> 32) as u16,
                next: (u64::from_le(high) >> 48) as u16,
            }
        }
    }

    /// Writes descriptor `index` of the table at `table`.
    ///
    /// # Safety
    /// The table is mapped writable and has more than `index` descriptors.
    #[inline]
    pub(super) unsafe fn store(self, table: *mut u8, index: u16) {
        let high = u64::from(self.len) | u64::from(self.flags) << 32 | u64::from(self.next) << 48;
        // SAFETY: as for `load`.
        unsafe {
            let at = table.add(usize::from(index) * DESC_BYTES as usize);
            at.cast::<u64>().write_unaligned(self.addr.to_le());
            at.add(8).cast::<u64>().write_unaligned(high.to_le());
        }
    }
}

/// The guest addresses of a queue's three parts, as a driver names them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueAddrs {
    /// Descriptor table; 16-byte aligned.
    pub desc: u64,
    /// Available ring; 2-byte aligned.
    pub avail: u64,
    /// Used ring; 4-byte aligned.
    pub used: u64,
}

/// Why a queue cannot be set up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QueueSizeError {
    /// The size is not a power of two between 1 and 32768 (clause 2.7).
    #[error("queue size {0} is not a power of two between 1 and 32768")]
    Size(u16),
    /// A part is not aligned as clause 2.7 demands.
    #[error("ring part at guest address {0:#x} is not aligned")]
    Unaligned(u64),
    /// A part is not in guest memory.
    #[error(transparent)]
    Memory(#[from] MemoryFault),
}

/// A queue's three parts in host addresses: validated once, when the queue is set up.
#[derive(Clone, Copy, Debug)]
pub struct QueueLayout {
    pub(super) size: u16,
    /// What takes a free-running index to a place: one less than the size.
    pub(super) mask: u16,
    pub(super) desc: *mut u8,
    pub(super) avail: *mut u8,
    pub(super) used: *mut u8,
}

// SAFETY: addresses only; accesses are unsafe and justified where they happen.
unsafe impl Send for QueueLayout {}
// SAFETY: as above.
unsafe impl Sync for QueueLayout {}

impl QueueLayout {
    /// Bytes that a queue of `size` entries takes when its parts lie behind each other, from a 16-byte
    /// aligned start: the table, the available ring, the used ring.
    pub fn bytes(size: u16) -> u64 {
        let QueueAddrs { used, .. } = QueueAddrs::contiguous(0, size);
        used + 6 + 8 * u64::from(size)
    }

    /// Finds the parts in `memory` and checks size, alignment and bounds. The caller keeps `memory`.
    pub fn new(memory: &GuestMemory, size: u16, addrs: QueueAddrs) -> Result<QueueLayout, QueueSizeError> {
        if !size.is_power_of_two() || size > 32768 {
            return Err(QueueSizeError::Size(size));
        }
        let part = |addr: u64, align: u64, bytes: u32| -> Result<*mut u8, QueueSizeError> {
            let segment: Segment = memory.translate_whole(addr, bytes)?;
            if !addr.is_multiple_of(align) || !(segment.as_ptr() as u64).is_multiple_of(align) {
                return Err(QueueSizeError::Unaligned(addr));
            }
            Ok(segment.as_ptr())
        };
        let entries = u32::from(size);
        Ok(QueueLayout {
            size,
            mask: size - 1,
            desc: part(addrs.desc, 16, DESC_BYTES * entries)?,
            avail: part(addrs.avail, 2, 6 + 2 * entries)?,
            used: part(addrs.used, 4, 6 + 8 * entries)?,
        })
    }

    /// Entries in the queue.
    pub fn size(&self) -> u16 {
        self.size
    }

    /// One of the rings' 16-bit words, as an atomic.
    ///
    /// # Safety
    /// `at` is 2-byte aligned and mapped for as long as the answer is used.
    #[inline]
    unsafe fn word<'a>(at: *mut u8) -> &'a AtomicU16 {
        // SAFETY: an atomic may be shared with a writer outside of Rust; the caller vouches for the rest.
        unsafe { AtomicU16::from_ptr(at.cast()) }
    }

    #[inline]
    pub(super) fn avail_flags(&self) -> &AtomicU16 {
        // SAFETY: `new` checked bounds and alignment; the queue's owner keeps the memory (all words below alike).
        unsafe { Self::word(self.avail) }
    }

    #[inline]
    pub(super) fn avail_idx(&self) -> &AtomicU16 {
        // SAFETY: see `avail_flags`.
        unsafe { Self::word(self.avail.add(2)) }
    }

    /// The available ring's entry for the free-running index `idx`.
    #[inline]
    pub(super) fn avail_entry(&self, idx: u16) -> &AtomicU16 {
        // SAFETY: see `avail_flags`; the mask keeps the entry inside.
        unsafe { Self::word(self.avail.add(4 + 2 * usize::from(idx & self.mask))) }
    }

    /// Where the driver says at which used index it wants to be interrupted.
    #[inline]
    pub(super) fn used_event(&self) -> &AtomicU16 {
        // SAFETY: see `avail_flags`.
        unsafe { Self::word(self.avail.add(4 + 2 * usize::from(self.size))) }
    }

    #[inline]
    pub(super) fn used_flags(&self) -> &AtomicU16 {
        // SAFETY: see `avail_flags`.
        unsafe { Self::word(self.used) }
    }

    #[inline]
    pub(super) fn used_idx(&self) -> &AtomicU16 {
        // SAFETY: see `avail_flags`.
        unsafe { Self::word(self.used.add(2)) }
    }

    /// Where the device says at which available index it wants to be kicked.
    #[inline]
    pub(super) fn avail_event(&self) -> &AtomicU16 {
        // SAFETY: see `avail_flags`.
        unsafe { Self::word(self.used.add(4 + 8 * usize::from(self.size))) }
    }

    /// Writes the used ring's entry for the free-running index `idx`.
    #[inline]
    pub(super) fn store_used(&self, idx: u16, head: u16, bytes: u32) {
        let entry = (u64::from(head) | u64::from(bytes) << 32).to_le();
        // SAFETY: see `avail_entry`; the used ring is 4-byte aligned, so an entry may be unaligned for u64.
        unsafe {
            self.used.add(4 + 8 * usize::from(idx & self.mask)).cast::<u64>().write_unaligned(entry);
        }
    }

    /// Reads the used ring's entry for the free-running index `idx`: the head and the bytes written.
    #[inline]
    pub(super) fn load_used(&self, idx: u16) -> (u32, u32) {
        // SAFETY: see `store_used`.
        let entry = u64::from_le(unsafe {
            self.used.add(4 + 8 * usize::from(idx & self.mask)).cast::<u64>().read_unaligned()
        });
        (entry as u32, (entry >> 32) as u32)
    }

    /// Tells whether the other side wants to hear of `new` after `old`, by its event or by its flags.
    #[inline]
    pub(super) fn wants_event(
        event_idx: bool,
        event: &AtomicU16,
        flags: &AtomicU16,
        new: u16,
        old: u16,
    ) -> bool {
        if event_idx {
            super::passed(u16::from_le(event.load(Ordering::Relaxed)), new, old)
        } else {
            new != old && u16::from_le(flags.load(Ordering::Relaxed)) & NO_NOTIFY == 0
        }
    }
}

impl QueueAddrs {
    /// The parts behind each other from `start` (16-byte aligned), each aligned as it must be.
    pub fn contiguous(start: u64, size: u16) -> QueueAddrs {
        let avail = start + u64::from(DESC_BYTES) * u64::from(size);
        let used = (avail + 6 + 2 * u64::from(size)).next_multiple_of(4);
        QueueAddrs { desc: start, avail, used }
    }
}
