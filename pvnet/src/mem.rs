//! Guest memory: regions of host memory at guest addresses, and the copies in and out of them.
//!
//! A guest may write its memory at any instant, on another core, while the switch reads it. So no
//! Rust reference is ever formed to it: a translated range is a [`Segment`] (a raw pointer and a
//! length) and bytes move by `memcpy` between a segment and memory of the switch's own, or between
//! two segments. What such a copy reads while the guest writes is unspecified bytes, never undefined
//! control flow: nothing in the switch decides on a byte that it has not first copied.
//!
//! All of the crate's address arithmetic is here. Everything else asks [`GuestMemory::translate`].

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::alloc::Layout;
use core::ptr;
use core::sync::atomic::{Ordering, compiler_fence};

/// One run of bytes in host addresses, translated and bounds-checked: part of a frame.
///
/// It carries no lifetime. Whoever keeps one keeps the [`GuestMemory`] that it came from (a port
/// holds its memory until the last of its frames is complete), so using it is `unsafe`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    ptr: *mut u8,
    len: u32,
}

// SAFETY: a segment is an address and a length; every access through it is unsafe and carries its
// own obligation, whichever thread makes it.
unsafe impl Send for Segment {}
// SAFETY: as above.
unsafe impl Sync for Segment {}

impl Segment {
    /// No bytes at all.
    pub const EMPTY: Segment = Segment { ptr: ptr::null_mut(), len: 0 };

    /// A segment over `len` bytes from `ptr`.
    #[inline]
    pub fn new(ptr: *mut u8, len: u32) -> Segment {
        Segment { ptr, len }
    }

    /// The first byte's host address.
    #[inline]
    pub fn as_ptr(self) -> *mut u8 {
        self.ptr
    }

    /// Bytes in the segment.
    #[inline]
    pub fn len(self) -> u32 {
        self.len
    }

    /// Whether it has no bytes.
    #[inline]
    pub fn is_empty(self) -> bool {
        self.len == 0
    }

    /// The segment without its first `bytes`; empty if it has no more than those.
    #[inline]
    pub fn skip(self, bytes: u32) -> Segment {
        let bytes = bytes.min(self.len);
        Segment { ptr: self.ptr.wrapping_add(bytes as usize), len: self.len - bytes }
    }

    /// The segment from `bytes` on, which is at most its length.
    #[inline]
    pub fn from(self, bytes: u32) -> Segment {
        debug_assert!(bytes <= self.len);
        Segment { ptr: self.ptr.wrapping_add(bytes as usize), len: self.len.wrapping_sub(bytes) }
    }

    /// The first `bytes` of the segment; all of it if it has fewer.
    #[inline]
    pub fn first(self, bytes: u32) -> Segment {
        Segment { ptr: self.ptr, len: self.len.min(bytes) }
    }

    /// Copies the segment's first `into.len()` bytes out of guest memory.
    ///
    /// # Safety
    /// The memory behind the segment is mapped, and the segment has at least `into.len()` bytes.
    #[inline]
    pub unsafe fn read(self, into: &mut [u8]) {
        debug_assert!(into.len() <= self.len as usize);
        // SAFETY: the caller vouches for the source; the destination is a reference to other memory,
        // which a guest cannot reach, so the two do not overlap.
        unsafe { ptr::copy_nonoverlapping(self.ptr, into.as_mut_ptr(), into.len()) }
    }

    /// Copies the segment's first `N` bytes out of guest memory. They were read once and are not read again,
    /// whatever is computed from them.
    ///
    /// # Safety
    /// As for [`Segment::read`].
    #[inline(always)]
    pub unsafe fn load<const N: usize>(self) -> [u8; N] {
        debug_assert!(N <= self.len as usize);
        // SAFETY: the caller vouches for the bytes; an array of bytes may lie anywhere.
        let bytes = unsafe { self.ptr.cast::<[u8; N]>().read_unaligned() };
        // A compiler may otherwise load a value again instead of keeping it.
        compiler_fence(Ordering::SeqCst);
        bytes
    }

    /// Copies `from` to the segment's first bytes.
    ///
    /// # Safety
    /// The memory behind the segment is mapped writable, and the segment has at least `from.len()` bytes.
    #[inline]
    pub unsafe fn write(self, from: &[u8]) {
        debug_assert!(from.len() <= self.len as usize);
        // SAFETY: as for `read`, the other way.
        unsafe { ptr::copy_nonoverlapping(from.as_ptr(), self.ptr, from.len()) }
    }

    /// Copies all of this segment to the start of `to`: the one copy that a payload byte makes.
    ///
    /// A guest may post overlapping buffers, even ones that it shares with another guest, so the
    /// ranges may overlap: what is copied then is unspecified, where it is copied is not.
    ///
    /// # Safety
    /// Both ranges are mapped, and `to` is writable and at least as long as `self`.
    #[inline]
    pub unsafe fn copy_to(self, to: Segment) {
        debug_assert!(self.len <= to.len);
        // SAFETY: the caller vouches for both ranges; `copy` allows them to overlap.
        unsafe { ptr::copy(self.ptr, to.ptr, self.len as usize) }
    }
}

/// Where a region lies, without what keeps it there: for whoever looks into the same region again and again.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Window {
    guest_addr: u64,
    bytes: u64,
    host: *mut u8,
}

// SAFETY: addresses and a length; access is unsafe and justified where it happens.
unsafe impl Send for Window {}
// SAFETY: as above.
unsafe impl Sync for Window {}

impl Window {
    /// Nothing lies in it.
    pub(crate) const EMPTY: Window = Window { guest_addr: 0, bytes: 0, host: ptr::null_mut() };

    /// As [`GuestMemory::translate_whole`], in this region alone.
    #[inline(always)]
    pub(crate) fn translate_whole(&self, addr: u64, bytes: u32) -> Option<Segment> {
        let offset = addr.wrapping_sub(self.guest_addr);
        let fits = offset < self.bytes && self.bytes - offset >= u64::from(bytes);
        fits.then(|| Segment { ptr: self.host.wrapping_add(offset as usize), len: bytes })
    }
}

/// Host memory at a guest address.
#[derive(Clone)]
pub struct Region {
    window: Window,
    _owner: Arc<dyn Send + Sync>,
}

impl Region {
    /// `bytes` of host memory from `host` on, seen by the guest at `guest_addr`.
    ///
    /// # Safety
    /// The range is mapped readable and writable for as long as `owner` lives, and no Rust reference
    /// to any of it exists while the region does, but for the guest's own.
    pub unsafe fn new(guest_addr: u64, bytes: u64, host: *mut u8, owner: Arc<dyn Send + Sync>) -> Region {
        Region { window: Window { guest_addr, bytes, host }, _owner: owner }
    }
}

/// Why a set of regions is not a guest's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RegionError {
    /// Two regions claim the same guest address.
    #[error("regions overlap at guest address {0:#x}")]
    Overlap(u64),
    /// A region is empty or runs past the end of the address space.
    #[error("region at guest address {guest_addr:#x} of {bytes} bytes is empty or wraps")]
    Wraps {
        /// Where the region starts.
        guest_addr: u64,
        /// How long it claims to be.
        bytes: u64,
    },
}

/// A guest named an address that is not in its memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("guest address {addr:#x} (+{bytes}) is outside guest memory")]
pub struct MemoryFault {
    /// The address that was named.
    pub addr: u64,
    /// The bytes that were wanted there.
    pub bytes: u64,
}

/// A guest's memory: one or more regions, sorted and disjoint.
pub struct GuestMemory {
    regions: Box<[Region]>,
}

impl GuestMemory {
    /// Memory made of `regions`, in any order.
    pub fn new(mut regions: Vec<Region>) -> Result<GuestMemory, RegionError> {
        regions.sort_by_key(|region| region.window.guest_addr);
        let mut end = 0;
        for Window { guest_addr, bytes, host } in regions.iter().map(|region| region.window) {
            let wraps = RegionError::Wraps { guest_addr, bytes };
            let next = guest_addr.checked_add(bytes).ok_or(wraps)?;
            if bytes == 0 || (host as u64).checked_add(bytes).is_none() {
                return Err(wraps);
            }
            if guest_addr < end {
                return Err(RegionError::Overlap(guest_addr));
            }
            end = next;
        }
        Ok(GuestMemory { regions: regions.into() })
    }

    /// `bytes` of zeroed memory of this process at guest address 0: an in-process guest's memory.
    pub fn anonymous(bytes: usize) -> GuestMemory {
        let owner = Arc::new(Zeroed::new(bytes));
        let host = owner.as_ptr();
        // SAFETY: `owner` frees the allocation only when the region is gone, and hands out no reference.
        let region = unsafe { Region::new(0, bytes as u64, host, owner) };
        GuestMemory { regions: Box::new([region]) }
    }

    /// The host memory of the guest's range from `addr`: as much of the `bytes` as lies in one region,
    /// at least one byte (or none, if `bytes` is 0). The caller goes on behind a shorter answer.
    #[inline]
    pub fn translate(&self, addr: u64, bytes: u32) -> Result<Segment, MemoryFault> {
        for Region { window, .. } in &self.regions {
            let offset = addr.wrapping_sub(window.guest_addr);
            if offset < window.bytes {
                let len = u64::from(bytes).min(window.bytes - offset) as u32;
                return Ok(Segment { ptr: window.host.wrapping_add(offset as usize), len });
            }
        }
        Err(MemoryFault { addr, bytes: bytes.into() })
    }

    /// The host memory of a range that must lie in one region: a ring, say.
    #[inline]
    pub fn translate_whole(&self, addr: u64, bytes: u32) -> Result<Segment, MemoryFault> {
        let found = self.regions.iter().find_map(|region| region.window.translate_whole(addr, bytes));
        found.ok_or(MemoryFault { addr, bytes: bytes.into() })
    }

    /// Where the region lies that a guest address is in.
    pub(crate) fn window(&self, addr: u64) -> Option<Window> {
        self.regions
            .iter()
            .map(|region| region.window)
            .find(|window| window.translate_whole(addr, 1).is_some())
    }

    /// Whether all of a segment is memory of these regions, wherever it was translated.
    pub fn contains(&self, segment: Segment) -> bool {
        self.regions.iter().any(|Region { window, .. }| {
            let offset = (segment.ptr as u64).wrapping_sub(window.host as u64);
            offset <= window.bytes && u64::from(segment.len) <= window.bytes - offset
        })
    }

    /// Bytes of all regions together.
    pub fn bytes(&self) -> u64 {
        self.regions.iter().map(|region| region.window.bytes).sum()
    }
}

/// Zeroed memory, aligned to a page, of which only what is touched costs memory.
pub struct Zeroed {
    start: *mut u8,
    allocated: *mut u8,
    layout: Layout,
}

// SAFETY: it owns its allocation and never looks into it.
unsafe impl Send for Zeroed {}
// SAFETY: as above.
unsafe impl Sync for Zeroed {}

impl Zeroed {
    const PAGE: usize = 4096;

    /// `bytes` of zeroed memory.
    ///
    /// # Panics
    /// If no address space has room for it.
    pub fn new(bytes: usize) -> Zeroed {
        // Asked for an alignment, an allocator clears the memory itself and thereby touches it; without, fresh
        // pages come as zeros from the system. So the page's start is found here.
        let padded = bytes.checked_add(Self::PAGE).and_then(|bytes| Layout::from_size_align(bytes, 8).ok());
        let layout = padded.expect("the memory fits the address space");
        // SAFETY: the layout is not of size 0.
        let allocated = unsafe { alloc::alloc::alloc_zeroed(layout) };
        if allocated.is_null() {
            alloc::alloc::handle_alloc_error(layout);
        }
        Zeroed { start: allocated.wrapping_add(allocated.align_offset(Self::PAGE)), allocated, layout }
    }

    /// The first byte.
    #[inline]
    pub fn as_ptr(&self) -> *mut u8 {
        self.start
    }
}

impl Drop for Zeroed {
    fn drop(&mut self) {
        // SAFETY: the allocation came from `alloc_zeroed` with this layout and is freed once.
        unsafe { alloc::alloc::dealloc(self.allocated, self.layout) }
    }
}

#[cfg(test)]
mod tests {
    //! Translation: a range is inside or a fault, never beyond; regions that lie are refused.
    use super::*;

    fn region(guest_addr: u64, bytes: u64, host: usize) -> Region {
        // SAFETY: these tests compute addresses and access none.
        unsafe { Region::new(guest_addr, bytes, host as *mut u8, Arc::new(())) }
    }

    #[test]
    fn a_range_is_cut_at_the_end_of_its_region() {
        let memory =
            GuestMemory::new(vec![region(0x2000, 0x1000, 0x9000), region(0, 0x1000, 0x4000)]).unwrap();
        assert_eq!(memory.translate(0x10, 0x20), Ok(Segment::new(0x4010 as *mut u8, 0x20)));
        assert_eq!(memory.translate(0xff0, 0x20), Ok(Segment::new(0x4ff0 as *mut u8, 0x10)));
        assert_eq!(memory.translate(0x1000, 1), Err(MemoryFault { addr: 0x1000, bytes: 1 }));
        assert_eq!(memory.translate(0x2fff, 1), Ok(Segment::new(0x9fff as *mut u8, 1)));
        assert_eq!(memory.translate(u64::MAX, 2), Err(MemoryFault { addr: u64::MAX, bytes: 2 }));
        assert_eq!(memory.translate_whole(0xff0, 0x20), Err(MemoryFault { addr: 0xff0, bytes: 0x20 }));
    }

    #[test]
    fn a_segment_lies_in_a_region_or_not() {
        let memory =
            GuestMemory::new(vec![region(0, 0x1000, 0x4000), region(0x1000, 0x1000, 0x9000)]).unwrap();
        let contains = |host: usize, len| memory.contains(Segment::new(host as *mut u8, len));
        assert!(contains(0x4000, 0x1000) && contains(0x9fff, 1) && contains(0x9000, 0));
        assert!(!contains(0x3fff, 1) && !contains(0x4001, 0x1000) && !contains(0xa000, 1));
        assert!(!contains(usize::MAX, 2));
    }

    #[test]
    fn regions_that_overlap_or_wrap_are_refused() {
        let memory = |regions| GuestMemory::new(regions).err();
        assert_eq!(
            memory(vec![region(0, 0x1001, 0x1000), region(0x1000, 1, 0x8000)]),
            Some(RegionError::Overlap(0x1000))
        );
        let wraps = RegionError::Wraps { guest_addr: u64::MAX, bytes: 2 };
        assert_eq!(memory(vec![region(u64::MAX, 2, 0x1000)]), Some(wraps));
        let empty = RegionError::Wraps { guest_addr: 4, bytes: 0 };
        assert_eq!(memory(vec![region(4, 0, 0x1000)]), Some(empty));
    }
}
