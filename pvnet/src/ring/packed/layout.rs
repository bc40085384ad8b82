//! Where the three parts of a packed virtqueue lie, places in its ring, and the loads and stores that both sides use.

use crate::mem::GuestMemory;
use crate::ring::layout::{DESC_BYTES, QueueAddrs, QueueSizeError, find_part};
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// With [`DESC_USED`], whose a descriptor is (`VIRTQ_DESC_F_AVAIL`, clause 2.8.1).
const DESC_AVAIL: u16 = 1 << 7;
/// `VIRTQ_DESC_F_USED`.
const DESC_USED: u16 = 1 << 15;

/// A slot, and the wrap counter of whoever is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cursor {
    pub(crate) slot: u16,
    pub(crate) wrap: bool,
}

impl Cursor {
    /// Where both sides begin.
    pub(crate) const START: Cursor = Cursor { slot: 0, wrap: true };

    /// A cursor of 15 bits of slot and one of wrap counter (clause 2.8.14).
    pub(crate) fn from_bits(bits: u16) -> Cursor {
        Cursor { slot: bits & 0x7fff, wrap: bits >> 15 != 0 }
    }

    pub(crate) fn bits(self) -> u16 {
        self.slot | u16::from(self.wrap) << 15
    }

    /// `slots` further round a ring of `size`; at most once round.
    #[inline]
    pub(crate) fn advance(&mut self, slots: u16, size: u16) {
        // Neither is above 32,768, and the slot is below.
        let slot = self.slot + slots;
        let wraps = slot >= size;
        self.slot = if wraps { slot - size } else { slot };
        self.wrap ^= wraps;
    }

    /// `slots` back; at most once round.
    #[inline]
    pub(crate) fn retreat(&mut self, slots: u16, size: u16) {
        let wraps = self.slot < slots;
        self.slot = if wraps { self.slot + size - slots } else { self.slot - slots };
        self.wrap ^= wraps;
    }

    /// How many slots this is ahead of `other`, taken to be within a round of it.
    #[inline]
    pub(crate) fn ahead_of(self, other: Cursor, size: u16) -> i32 {
        let slots = i32::from(self.slot) - i32::from(other.slot);
        if self.wrap == other.wrap { slots } else { slots + i32::from(size) }
    }

    /// The flags of a descriptor that the driver offers here.
    #[inline]
    pub(crate) fn offered(self) -> u16 {
        if self.wrap { DESC_AVAIL } else { DESC_USED }
    }

    /// The flags of a descriptor that the device gives back here.
    #[inline]
    pub(crate) fn used(self) -> u16 {
        if self.wrap { DESC_AVAIL | DESC_USED } else { 0 }
    }

    /// Whether a descriptor with `flags` here is on offer.
    #[inline]
    pub(crate) fn is_offered(self, flags: u16) -> bool {
        flags & (DESC_AVAIL | DESC_USED) == self.offered()
    }

    /// Whether a descriptor with `flags` here was given back.
    #[inline]
    pub(crate) fn is_used(self, flags: u16) -> bool {
        flags & (DESC_AVAIL | DESC_USED) == self.used()
    }
}

/// The half of a descriptor that says whose it is and, offered or used, how long and of which chain.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tail {
    pub(crate) len: u32,
    pub(crate) id: u16,
    pub(crate) flags: u16,
}

impl Tail {
    #[inline]
    pub(crate) fn from_word(word: u64) -> Tail {
        Tail { len: word as u32, id: (word >> 32) as u16, flags: (word >> 48) as u16 }
    }

    #[inline]
    pub(crate) fn word(self) -> u64 {
        u64::from(self.len) | u64::from(self.id) << 32 | u64::from(self.flags) << 48
    }
}

/// A queue's three parts in host addresses: validated once, when the queue is set up.
///
/// A descriptor is two words. The second has the flags, so storing it with release shows all of the descriptor.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PackedLayout {
    size: u16,
    desc: *mut u8,
    driver_event: *mut u8,
    device_event: *mut u8,
}

// SAFETY: addresses only; accesses are unsafe and justified where they happen.
unsafe impl Send for PackedLayout {}
// SAFETY: as above.
unsafe impl Sync for PackedLayout {}

impl PackedLayout {
    /// Finds the parts in `memory` for a checked size, and checks alignment and bounds. The caller keeps `memory`.
    pub(crate) fn new(
        memory: &GuestMemory,
        size: u16,
        addrs: QueueAddrs,
    ) -> Result<PackedLayout, QueueSizeError> {
        Ok(PackedLayout {
            size,
            desc: find_part(memory, addrs.desc, 16, DESC_BYTES * u32::from(size))?,
            driver_event: find_part(memory, addrs.avail, 4, 4)?,
            device_event: find_part(memory, addrs.used, 4, 4)?,
        })
    }

    #[inline]
    pub(crate) fn size(&self) -> u16 {
        self.size
    }

    #[inline]
    fn words(&self, slot: u16) -> &[AtomicU64; 2] {
        assert!(slot < self.size);
        // SAFETY: `new` checked bounds and alignment for `size` descriptors and the slot is below; the queue's owner
        // keeps the memory. Atomics may be shared with a writer outside of Rust.
        unsafe { &*self.desc.cast::<[AtomicU64; 2]>().add(slot.into()) }
    }

    /// The address that the descriptor in `slot` names.
    #[inline]
    pub(crate) fn addr(&self, slot: u16) -> u64 {
        u64::from_le(self.words(slot)[0].load(Ordering::Relaxed))
    }

    /// The rest of it. Acquire: what was written before it is read after it.
    #[inline]
    pub(crate) fn tail(&self, slot: u16) -> Tail {
        Tail::from_word(u64::from_le(self.words(slot)[1].load(Ordering::Acquire)))
    }

    #[inline]
    pub(crate) fn store_addr(&self, slot: u16, addr: u64) {
        self.words(slot)[0].store(addr.to_le(), Ordering::Relaxed);
    }

    /// Release: whoever sees it sees what was written before it.
    #[inline]
    pub(crate) fn store_tail(&self, slot: u16, tail: Tail) {
        self.words(slot)[1].store(tail.word().to_le(), Ordering::Release);
    }

    /// What the driver wants of interrupts.
    #[inline]
    pub(crate) fn driver_event(&self) -> &AtomicU32 {
        // SAFETY: as for the descriptors.
        unsafe { &*self.driver_event.cast::<AtomicU32>() }
    }

    /// What the device wants of kicks.
    #[inline]
    pub(crate) fn device_event(&self) -> &AtomicU32 {
        // SAFETY: as for the descriptors.
        unsafe { &*self.device_event.cast::<AtomicU32>() }
    }
}

#[cfg(test)]
mod tests {
    //! Cursors count as an index that never wraps does.
    use super::*;
    use proptest::prelude::*;

    fn at(index: u32, size: u16) -> Cursor {
        let size = u32::from(size);
        Cursor { slot: (index % size) as u16, wrap: (index / size).is_multiple_of(2) }
    }

    proptest! {
        #[test]
        fn cursors_go_round(size in 1..=32768_u16, index in 0..1_000_000_u32, slots: u16) {
            let slots = slots % (size + 1);
            let (from, to) = (at(index, size), at(index + u32::from(slots), size));
            let mut cursor = from;
            cursor.advance(slots, size);
            prop_assert_eq!(cursor, to);
            // A whole round ahead looks as none behind does: the same slot under another counter.
            prop_assert_eq!(to.ahead_of(from, size), i32::from(slots));
            cursor.retreat(slots, size);
            prop_assert_eq!(cursor, from);
            prop_assert_eq!(Cursor::from_bits(from.bits()), from);
            prop_assert!(from.is_offered(from.offered()) && from.is_used(from.used()));
            prop_assert!(!from.is_offered(from.used()) && !from.is_used(from.offered()));
        }
    }
}
