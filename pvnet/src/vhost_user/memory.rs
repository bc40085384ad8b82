//! A front-end's memory table: files mapped, checked against each other, and both kinds of address that the
//! protocol uses translated ("Memory access"). A *guest* address is what descriptors hold; a *user* address is
//! the front-end's own, by which it names rings.

use super::event::EventFd;
use super::message::MemoryRegion;
use super::sigbus::{Guard, TableFull};
use crate::mem::{GuestMemory, Region, RegionError};
use core::ffi::c_void;
use core::ptr;
use rustix::fs::{FileType, fstat};
use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

/// The most regions that a front-end may have: the memory slots that KVM left its users before it had
/// thousands, and as many as rust-vmm's back-ends offer.
pub const MAX_REGIONS: usize = 509;

/// The most bytes of files that a front-end's regions may have us map: a file of no blocks may be as long as the address
/// space, and whoever is left none of that cannot go on. The largest machines' memory fits.
pub(super) const MAX_MAPPED_BYTES: u64 = 1 << 42;

/// Why memory that a front-end offers is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "each field is named in the message")]
pub enum MapFault {
    /// Only a regular file has a length that can be checked.
    #[error("memory is in no regular file")]
    NotAFile,
    /// It has no bytes.
    #[error("memory of no bytes")]
    Empty,
    /// The region, or its file's offset, runs past the end of the address space.
    #[error("memory of {bytes} bytes at offset {offset:#x} wraps")]
    OffsetWraps { bytes: u64, offset: u64 },
    /// The region would reach past its file's end, where every access is a SIGBUS.
    #[error("memory up to {end:#x} of a file of {file_bytes:#x} bytes")]
    BeyondFile { end: u64, file_bytes: u64 },
    /// Two regions claim the same user address, or one wraps.
    #[error("regions overlap or wrap at user address {0:#x}")]
    UserAddress(u64),
    /// The same of guest addresses.
    #[error(transparent)]
    Guest(#[from] RegionError),
    /// More regions than were offered.
    #[error("more than {MAX_REGIONS} regions")]
    TooMany,
    /// More than any guest has.
    #[error("more than {MAX_MAPPED_BYTES:#x} bytes of files to be mapped")]
    TooLarge,
    /// The file could not be asked or mapped: it is not open for writing, say.
    #[error("mapping memory: {0}")]
    System(Errno),
    /// The switch as a whole has as many mappings as it can watch.
    #[error(transparent)]
    TableFull(#[from] TableFull),
}

/// A file's first bytes, mapped and watched for truncation.
#[derive(Debug)]
pub(super) struct Mapping {
    /// Dropped by hand, before the range is unmapped.
    guard: Option<Guard>,
    start: *mut u8,
    bytes: usize,
}

// SAFETY: it owns an address range and never looks into it.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps `file` from its start up to `offset + bytes`, the way front-ends expect: an offset within a file of
    /// huge pages need not be a multiple of their size, and address space costs little. Of that the mapping takes no more
    /// than `room` bytes. `lost` is signalled if the file is truncated.
    pub(super) fn new(
        file: &OwnedFd,
        offset: u64,
        bytes: u64,
        room: u64,
        lost: &Arc<EventFd>,
    ) -> Result<Mapping, MapFault> {
        let stat = fstat(file).map_err(MapFault::System)?;
        if !FileType::from_raw_mode(stat.st_mode).is_file() {
            return Err(MapFault::NotAFile);
        }
        if bytes == 0 {
            return Err(MapFault::Empty);
        }
        let end = offset.checked_add(bytes).ok_or(MapFault::OffsetWraps { bytes, offset })?;
        let file_bytes = u64::try_from(stat.st_size).unwrap_or(0);
        if end > file_bytes {
            return Err(MapFault::BeyondFile { end, file_bytes });
        }
        if end > room {
            return Err(MapFault::TooLarge);
        }
        // A range of huge pages is unmapped, and replaced, in whole ones; of such a file the block is one.
        let page = u64::try_from(stat.st_blksize).unwrap_or(0).max(4096);
        let whole = end.checked_next_multiple_of(page).and_then(|bytes| usize::try_from(bytes).ok());
        let mapped = whole.ok_or(MapFault::OffsetWraps { bytes, offset })?;
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a mapping where the kernel finds room replaces nothing. What is in it is shared with others, and
        // reached by address alone.
        let start =
            unsafe { mmap(ptr::null_mut(), mapped, access, MapFlags::SHARED | MapFlags::NORESERVE, file, 0) }
                .map_err(MapFault::System)?
                .cast();
        let mut mapping = Mapping { guard: None, start, bytes: mapped };
        // SAFETY: the range is this mapping's own, and `drop` takes the guard away first. If there is no guard
        // to be had, it unmaps the range as well.
        mapping.guard = Some(unsafe { Guard::new(start, mapped, lost.clone()) }?);
        Ok(mapping)
    }

    /// The byte at `offset` in the file, which the mapping was made to reach.
    pub(super) fn at(&self, offset: u64) -> *mut u8 {
        debug_assert!(offset as usize <= self.bytes);
        self.start.wrapping_add(offset as usize)
    }

    /// Whether the file lost pages that were mapped.
    pub(super) fn is_lost(&self) -> bool {
        self.guard.as_ref().is_some_and(Guard::is_lost)
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        self.guard = None;
        // SAFETY: the range was mapped by `new` and is unmapped once; whoever has addresses in it keeps the mapping.
        let unmapped = unsafe { munmap(self.start.cast::<c_void>(), self.bytes) };
        debug_assert!(unmapped.is_ok());
    }
}

/// A front-end's memory as it is now. A change makes a new one, so that the old one serves until nobody uses it.
pub struct MemoryTable {
    regions: Vec<(MemoryRegion, Arc<Mapping>)>,
    memory: Arc<GuestMemory>,
    /// Signalled when a file turns out to have been truncated.
    lost: Arc<EventFd>,
}

impl MemoryTable {
    /// No memory. `lost` is signalled when a file of what is added was truncated and touched since.
    pub fn empty(lost: Arc<EventFd>) -> MemoryTable {
        MemoryTable::checked(Vec::new(), lost).expect("no regions do not overlap")
    }

    fn checked(
        regions: Vec<(MemoryRegion, Arc<Mapping>)>,
        lost: Arc<EventFd>,
    ) -> Result<MemoryTable, MapFault> {
        if regions.len() > MAX_REGIONS {
            return Err(MapFault::TooMany);
        }
        let mut by_user: Vec<_> =
            regions.iter().map(|(region, _)| (region.user_addr, region.bytes)).collect();
        by_user.sort_unstable();
        let mut end = 0;
        for (start, bytes) in by_user {
            let after = start.checked_add(bytes).ok_or(MapFault::UserAddress(start))?;
            if start < end {
                return Err(MapFault::UserAddress(start));
            }
            end = after;
        }
        let parts = regions.iter().map(|(region, mapping)| {
            let host = mapping.at(region.mmap_offset);
            // SAFETY: the mapping reaches `bytes` from there on, lives in the region, and no reference to it is
            // formed.
            unsafe { Region::new(region.guest_addr, region.bytes, host, mapping.clone()) }
        });
        let memory = Arc::new(GuestMemory::new(parts.collect())?);
        Ok(MemoryTable { regions, memory, lost })
    }

    /// Maps a region, besides `mapped` others that it will be with.
    fn map(
        &self,
        mapped: &[(MemoryRegion, Arc<Mapping>)],
        region: MemoryRegion,
        file: &OwnedFd,
    ) -> Result<(MemoryRegion, Arc<Mapping>), MapFault> {
        let others: u64 = mapped.iter().map(|(_, mapping)| mapping.bytes as u64).sum();
        let room = MAX_MAPPED_BYTES.saturating_sub(others);
        let mapping = Mapping::new(file, region.mmap_offset, region.bytes, room, &self.lost)?;
        Ok((region, Arc::new(mapping)))
    }

    /// These regions and no others.
    pub fn replaced(
        &self,
        table: impl IntoIterator<Item = (MemoryRegion, OwnedFd)>,
    ) -> Result<MemoryTable, MapFault> {
        let mut regions = Vec::new();
        for (region, file) in table {
            regions.push(self.map(&regions, region, &file)?);
        }
        MemoryTable::checked(regions, self.lost.clone())
    }

    /// One region more.
    pub fn with(&self, region: MemoryRegion, file: &OwnedFd) -> Result<MemoryTable, MapFault> {
        if self.regions.len() >= MAX_REGIONS {
            return Err(MapFault::TooMany);
        }
        let added = self.map(&self.regions, region, file)?;
        MemoryTable::checked(self.regions.iter().cloned().chain([added]).collect(), self.lost.clone())
    }

    /// One region fewer: the one with these addresses and this size, whatever its offset. None if there is none.
    pub fn without(&self, region: MemoryRegion) -> Option<MemoryTable> {
        let key = |region: &MemoryRegion| (region.guest_addr, region.user_addr, region.bytes);
        let mut regions = self.regions.clone();
        regions.remove(regions.iter().position(|(has, _)| key(has) == key(&region))?);
        Some(
            MemoryTable::checked(regions, self.lost.clone()).expect("a part of what was checked is in order"),
        )
    }

    /// Whether this very region is there.
    pub fn has(&self, region: MemoryRegion) -> bool {
        self.regions.iter().any(|(has, _)| *has == region)
    }

    /// The guest address of a user address, if that is in a region.
    pub fn guest_addr(&self, user_addr: u64) -> Option<u64> {
        self.regions.iter().find_map(|(region, _)| {
            let offset = user_addr.checked_sub(region.user_addr)?;
            (offset < region.bytes).then(|| region.guest_addr + offset)
        })
    }

    /// The memory for the data path. It stays mapped for as long as anybody has it.
    pub fn memory(&self) -> Arc<GuestMemory> {
        self.memory.clone()
    }

    /// Whether there is any.
    pub fn is_empty(&self) -> bool {
        self.regions.is_empty()
    }

    /// Whether a file was truncated and a page that it lost was touched. What was read there is zeros.
    pub fn is_lost(&self) -> bool {
        self.regions.iter().any(|(_, mapping)| mapping.is_lost())
    }

    /// What is signalled when memory may have become lost.
    pub fn lost_event(&self) -> impl AsFd + use<> {
        self.lost.clone()
    }
}

#[cfg(test)]
mod tests {
    //! What is mapped is the file, in both kinds of address; what would reach beyond it, overlap or wrap is refused;
    //! and a file that is truncated under its mapping costs the mapping alone.
    use super::*;
    use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

    fn file(bytes: u64) -> OwnedFd {
        let file = memfd_create("memory", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&file, bytes).unwrap();
        file
    }

    fn region(guest_addr: u64, bytes: u64, user_addr: u64, mmap_offset: u64) -> MemoryRegion {
        MemoryRegion { guest_addr, bytes, user_addr, mmap_offset }
    }

    fn empty() -> MemoryTable {
        MemoryTable::empty(Arc::new(EventFd::new().unwrap()))
    }

    #[test]
    fn addresses_lead_to_the_files_bytes() {
        let file = file(0x4000);
        rustix::io::pwrite(&file, b"guest", 0x1810).unwrap();
        let table = empty().with(region(0x10_0000, 0x1000, 0x7f00_0000, 0x1800), &file).unwrap();
        assert_eq!(table.guest_addr(0x7f00_0010), Some(0x10_0010));
        assert_eq!(table.guest_addr(0x7f00_1000), None);
        assert_eq!(table.guest_addr(0x7eff_ffff), None);
        let segment = table.memory().translate_whole(0x10_0010, 5).unwrap();
        // SAFETY: the table keeps the memory.
        assert_eq!(&unsafe { segment.load::<5>() }, b"guest");
    }

    #[test]
    fn memory_that_cannot_be_is_refused() {
        let file = file(0x4000);
        let fault = |table: MemoryTable, region| table.with(region, &file).err();
        let beyond = |end| Some(MapFault::BeyondFile { end, file_bytes: 0x4000 });
        assert_eq!(fault(empty(), region(0, 0x4001, 0, 0)), beyond(0x4001));
        assert_eq!(fault(empty(), region(0, 0x1000, 0, 0x3001)), beyond(0x4001));
        let wraps = |bytes, offset| Some(MapFault::OffsetWraps { bytes, offset });
        assert_eq!(fault(empty(), region(0, u64::MAX, 0, 1)), wraps(u64::MAX, 1));
        assert_eq!(
            fault(empty(), region(0, 0x1000, u64::MAX, 0)),
            Some(MapFault::UserAddress(u64::MAX)),
            "user addresses wrap"
        );
        let guest_wraps = RegionError::Wraps { guest_addr: u64::MAX, bytes: 0x1000 };
        assert_eq!(fault(empty(), region(u64::MAX, 0x1000, 0, 0)), Some(MapFault::Guest(guest_wraps)));
        assert_eq!(fault(empty(), region(0, 0, 0, 0)), Some(MapFault::Empty));

        // Long, though it takes no memory.
        let long = self::file(MAX_MAPPED_BYTES + 0x1000);
        let whole = region(0, MAX_MAPPED_BYTES, 0, 0);
        let all = empty().with(whole, &long).unwrap();
        assert_eq!(all.with(region(1 << 50, 1, 1 << 50, 0), &file).err(), Some(MapFault::TooLarge));
        assert_eq!(empty().with(region(0, 1, 0, MAX_MAPPED_BYTES), &long).err(), Some(MapFault::TooLarge));

        let one = || empty().with(region(0x1000, 0x1000, 0x1000, 0), &file).unwrap();
        let overlap = Some(MapFault::Guest(RegionError::Overlap(0x1fff)));
        assert_eq!(fault(one(), region(0x1fff, 0x1000, 0x9000, 0)), overlap);
        assert_eq!(fault(one(), region(0x9000, 0x1000, 0x1fff, 0)), Some(MapFault::UserAddress(0x1fff)));
        assert!(one().without(region(0x1000, 0xfff, 0x1000, 0)).is_none());
        assert!(one().without(region(0x1000, 0x1000, 0x1000, 77)).unwrap().is_empty());

        let device = std::fs::File::options().read(true).write(true).open("/dev/zero").unwrap().into();
        assert_eq!(empty().with(region(0, 0, 0, 0), &device).err(), Some(MapFault::NotAFile));
        let reading: OwnedFd = std::fs::File::open("/proc/self/exe").unwrap().into();
        let refused = Some(MapFault::System(Errno::ACCESS));
        assert_eq!(empty().with(region(0, 0x1000, 0, 0), &reading).err(), refused);
    }

    #[test]
    fn as_many_regions_as_are_offered() {
        let file = file(0x1000);
        let at = |index: u64| region(index * 0x1000, 0x1000, index * 0x1000, 0);
        let full =
            (0..MAX_REGIONS as u64).fold(empty(), |table, index| table.with(at(index), &file).unwrap());
        assert_eq!(full.with(at(MAX_REGIONS as u64), &file).err(), Some(MapFault::TooMany));
        assert_eq!(full.memory().bytes(), 0x1000 * MAX_REGIONS as u64);
    }

    #[test]
    fn a_truncated_file_costs_its_mapping_alone() {
        let event = Arc::new(EventFd::new().unwrap());
        let (short, whole) = (file(0x3000), file(0x3000));
        rustix::io::pwrite(&whole, b"whole", 0x2000).unwrap();
        let table = MemoryTable::empty(event.clone());
        let table = table.with(region(0, 0x3000, 0, 0), &short).unwrap();
        let other = MemoryTable::empty(event.clone()).with(region(0, 0x3000, 0, 0), &whole).unwrap();
        let segment = table.memory().translate_whole(0x2000, 5).unwrap();
        // SAFETY: the tables keep the memory, which is given zeros when the file is gone (below alike).
        unsafe { segment.write(b"short") };
        ftruncate(&short, 0x1000).unwrap();
        assert!(!table.is_lost() && !event.drain(), "nothing was touched");

        // SAFETY: see above.
        assert_eq!(unsafe { segment.load::<5>() }, [0; 5]);
        assert!(table.is_lost() && event.drain());
        // SAFETY: see above.
        unsafe { segment.write(b"still") };
        // SAFETY: see above.
        assert_eq!(&unsafe { segment.load::<5>() }, b"still");

        let segment = other.memory().translate_whole(0x2000, 5).unwrap();
        // SAFETY: see above.
        assert_eq!(&unsafe { segment.load::<5>() }, b"whole");
        assert!(!other.is_lost() && !event.drain());

        // The entry serves the next mapping, which is not lost.
        drop(table);
        let next = MemoryTable::empty(event).with(region(0, 0x1000, 0, 0), &short).unwrap();
        assert!(!next.is_lost());
    }
}
