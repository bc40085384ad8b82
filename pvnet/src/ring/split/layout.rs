//! Where the three parts of a split virtqueue lie, and the loads and stores that both sides use.

use crate::mem::GuestMemory;
use crate::ring::layout::{DESC_BYTES, QueueAddrs, QueueSizeError, find_part};
use core::sync::atomic::{AtomicU16, Ordering};

/// In either ring's `flags`: do not tell me (`VIRTQ_AVAIL_F_NO_INTERRUPT`, `VIRTQ_USED_F_NO_NOTIFY`).
pub(crate) const NO_NOTIFY: u16 = 1;

/// A descriptor as read, all at once, from guest memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Desc {
    pub(crate) addr: u64,
    pub(crate) len: u32,
    pub(crate) flags: u16,
    pub(crate) next: u16,
}

impl Desc {
    /// Copies descriptor `index` of the table at `table`: one copy, so that what is checked is what is used.
    ///
    /// # Safety
    /// The table is mapped and has more than `index` descriptors.
    #[inline]
    pub(crate) unsafe fn load(table: *const u8, index: u16) -> Desc {
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
    pub(crate) unsafe fn store(self, table: *mut u8, index: u16) {
        let high = u64::from(self.len) | u64::from(self.flags) << 32 | u64::from(self.next) << 48;
        // SAFETY: as for `load`.
        unsafe {
            let at = table.add(usize::from(index) * DESC_BYTES as usize);
            at.cast::<u64>().write_unaligned(self.addr.to_le());
            at.add(8).cast::<u64>().write_unaligned(high.to_le());
        }
    }
}

/// A queue's three parts in host addresses: validated once, when the queue is set up.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SplitLayout {
    pub(crate) size: u16,
    /// What takes a free-running index to a place: one less than the size.
    pub(crate) mask: u16,
    pub(crate) desc: *mut u8,
    pub(crate) avail: *mut u8,
    pub(crate) used: *mut u8,
}

// SAFETY: addresses only; accesses are unsafe and justified where they happen.
unsafe impl Send for SplitLayout {}
// SAFETY: as above.
unsafe impl Sync for SplitLayout {}

impl SplitLayout {
    /// Finds the parts in `memory` for a checked size, and checks alignment and bounds. The caller keeps `memory`.
    pub(crate) fn new(
        memory: &GuestMemory,
        size: u16,
        addrs: QueueAddrs,
    ) -> Result<SplitLayout, QueueSizeError> {
        let entries = u32::from(size);
        Ok(SplitLayout {
            size,
            mask: size - 1,
            desc: find_part(memory, addrs.desc, 16, DESC_BYTES * entries)?,
            avail: find_part(memory, addrs.avail, 2, 6 + 2 * entries)?,
            used: find_part(memory, addrs.used, 4, 6 + 8 * entries)?,
        })
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
    pub(crate) fn avail_flags(&self) -> &AtomicU16 {
        // SAFETY: `new` checked bounds and alignment; the queue's owner keeps the memory (all words below alike).
        unsafe { Self::word(self.avail) }
    }

    #[inline]
    pub(crate) fn avail_idx(&self) -> &AtomicU16 {
        // SAFETY: see `avail_flags`.
        unsafe { Self::word(self.avail.add(2)) }
    }

    /// The available ring's entry for the free-running index `idx`.
    #[inline]
    pub(crate) fn avail_entry(&self, idx: u16) -> &AtomicU16 {
        // SAFETY: see `avail_flags`; the mask keeps the entry inside.
        unsafe { Self::word(self.avail.add(4 + 2 * usize::from(idx & self.mask))) }
    }

    /// Where the driver says at which used index it wants to be interrupted.
    #[inline]
    pub(crate) fn used_event(&self) -> &AtomicU16 {
        // SAFETY: see `avail_flags`.
        unsafe { Self::word(self.avail.add(4 + 2 * usize::from(self.size))) }
    }

    #[inline]
    pub(crate) fn used_flags(&self) -> &AtomicU16 {
        // SAFETY: see `avail_flags`.
        unsafe { Self::word(self.used) }
    }

    #[inline]
    pub(crate) fn used_idx(&self) -> &AtomicU16 {
        // SAFETY: see `avail_flags`.
        unsafe { Self::word(self.used.add(2)) }
    }

    /// Where the device says at which available index it wants to be kicked.
    #[inline]
    pub(crate) fn avail_event(&self) -> &AtomicU16 {
        // SAFETY: see `avail_flags`.
        unsafe { Self::word(self.used.add(4 + 8 * usize::from(self.size))) }
    }

    /// Writes the used ring's entry for the free-running index `idx`.
    #[inline]
    pub(crate) fn store_used(&self, idx: u16, head: u16, bytes: u32) {
        let entry = (u64::from(head) | u64::from(bytes) << 32).to_le();
        // SAFETY: see `avail_entry`; the used ring is 4-byte aligned, so an entry may be unaligned for u64.
        unsafe {
            self.used.add(4 + 8 * usize::from(idx & self.mask)).cast::<u64>().write_unaligned(entry);
        }
    }

    /// Reads the used ring's entry for the free-running index `idx`: the head and the bytes written.
    #[inline]
    pub(crate) fn load_used(&self, idx: u16) -> (u32, u32) {
        // SAFETY: see `store_used`.
        let entry = u64::from_le(unsafe {
            self.used.add(4 + 8 * usize::from(idx & self.mask)).cast::<u64>().read_unaligned()
        });
        (entry as u32, (entry >> 32) as u32)
    }

    /// Tells whether the other side wants to hear of `new` after `old`, by its event or by its flags.
    #[inline]
    pub(crate) fn wants_event(
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
