//! The device side of the split virtqueue.

use super::layout::{Desc, NO_NOTIFY, SplitLayout};
use crate::mem::{GuestMemory, Segment};
use crate::ring::buffers::{Buffers, Table};
use crate::ring::device::{MAX_SEGMENTS, QueueFeatures, RingFault, Segments};
use crate::ring::layout::{DESC_INDIRECT, DESC_NEXT, DESC_WRITE};
use crate::ring::position::Position;
use crate::ring::suppression::Suppression;
use alloc::sync::Arc;
use core::sync::atomic::{Ordering, fence};

/// A free-running index. It is kept in four bytes, as compilers load two bytes by a load of four: of four that were not
/// stored at once, such a load waits until the store has left the core, behind all stores to buffers, whose lines
/// other cores have.
#[derive(Clone, Copy)]
struct Index(u32);

impl Index {
    fn new(index: u16) -> Index {
        Index(index.into())
    }

    #[inline(always)]
    fn get(self) -> u16 {
        self.0 as u16
    }

    #[inline(always)]
    fn set(&mut self, index: u16) {
        self.0 = index.into();
    }
}

/// The device side of one split queue: its methods are those of [`DeviceQueue`](crate::ring::device::DeviceQueue).
pub struct SplitDevice {
    layout: SplitLayout,
    buffers: Buffers,
    features: QueueFeatures,
    /// The available entry to be taken next.
    next_avail: Index,
    /// The driver's available index as last read; refreshed only when nothing is left before it.
    seen_avail: Index,
    /// The used entry to be written next.
    next_used: Index,
    /// The used index that the driver can see.
    published_used: Index,
    /// The used index of which the driver was last told.
    told_used: Index,
    /// The same before that.
    told_before: Index,
}

impl SplitDevice {
    /// Begins with the available entry `next_avail`, and with the used entry at which the ring in memory stands.
    pub(crate) fn new(
        layout: SplitLayout,
        buffers: Buffers,
        features: QueueFeatures,
        next_avail: u16,
    ) -> SplitDevice {
        let used = u16::from_le(layout.used_idx().load(Ordering::Relaxed));
        SplitDevice {
            layout,
            buffers,
            features,
            next_avail: Index::new(next_avail),
            seen_avail: Index::new(next_avail),
            next_used: Index::new(used),
            published_used: Index::new(used),
            told_used: Index::new(used),
            told_before: Index::new(used),
        }
    }

    /// Begins `out` chains behind the used index: so many are out, and were taken from the ring before.
    pub(crate) fn begin_behind_used(&mut self, out: u16) {
        self.next_avail.set(self.next_used.get().wrapping_add(out));
        self.seen_avail.set(self.next_avail.get());
    }

    pub(crate) fn position(&self) -> Position {
        Position(self.next_avail.get().into())
    }

    /// The used index that the driver can see.
    #[inline]
    pub(crate) fn published(&self) -> u16 {
        self.published_used.get()
    }

    pub(crate) fn exchange(&mut self, memory: Arc<GuestMemory>, layout: SplitLayout) -> Arc<GuestMemory> {
        self.layout = layout;
        self.buffers.exchange(memory)
    }

    pub(crate) fn memory(&self) -> &Arc<GuestMemory> {
        self.buffers.memory()
    }

    #[inline]
    pub(crate) fn size(&self) -> u16 {
        self.layout.size
    }

    #[inline]
    pub(crate) fn available(&mut self) -> Result<u16, RingFault> {
        if self.seen_avail.get() == self.next_avail.get() {
            return self.refresh();
        }
        Ok(self.seen_avail.get().wrapping_sub(self.next_avail.get()))
    }

    #[inline]
    pub(crate) fn has_next(&self) -> bool {
        self.seen_avail.get() != self.next_avail.get()
    }

    #[inline]
    pub(crate) fn refresh(&mut self) -> Result<u16, RingFault> {
        // Acquire: the ring entries and descriptors that the driver wrote before it are read after it.
        let seen = u16::from_le(self.layout.avail_idx().load(Ordering::Acquire));
        let ahead = seen.wrapping_sub(self.next_avail.get());
        if ahead > self.size() {
            return Err(RingFault::AvailIndexJumped { ahead, size: self.size() });
        }
        self.seen_avail.set(seen);
        Ok(ahead)
    }

    #[inline]
    pub(crate) fn pop(&mut self) -> Result<u16, RingFault> {
        debug_assert_ne!(self.next_avail.get(), self.seen_avail.get());
        let head = u16::from_le(self.layout.avail_entry(self.next_avail.get()).load(Ordering::Relaxed));
        if head >= self.size() {
            return Err(RingFault::DescriptorIndex { index: head, size: self.size().into() });
        }
        self.next_avail.set(self.next_avail.get().wrapping_add(1));
        Ok(head)
    }

    /// [`DeviceQueue::pop_single`](crate::ring::device::DeviceQueue::pop_single).
    #[inline(always)]
    pub fn pop_single(&mut self, bytes: u32) -> Option<(u16, Segment)> {
        if self.next_avail.get() == self.seen_avail.get() {
            return None;
        }
        let head = u16::from_le(self.layout.avail_entry(self.next_avail.get()).load(Ordering::Relaxed));
        if head >= self.size() {
            return None;
        }
        // SAFETY: the layout was validated for `size` descriptors; `memory` keeps it mapped.
        let desc = unsafe { Desc::load(self.layout.desc, head) };
        if desc.flags & (DESC_NEXT | DESC_INDIRECT | DESC_WRITE) != self.buffers.flag() || desc.len < bytes {
            return None;
        }
        let segment = self.buffers.single(desc.addr, desc.len)?;
        self.next_avail.set(self.next_avail.get().wrapping_add(1));
        Some((head, segment))
    }

    #[inline]
    pub(crate) fn unpop(&mut self, _head: u16) {
        self.next_avail.set(self.next_avail.get().wrapping_sub(1));
    }

    #[inline]
    pub(crate) fn walk(&self, head: u16, segments: &mut Segments) -> Result<u32, RingFault> {
        debug_assert!(head < self.size());
        // SAFETY: the layout was validated for `size` descriptors; `memory` keeps it mapped.
        let desc = unsafe { Desc::load(self.layout.desc, head) };
        if desc.flags & (DESC_NEXT | DESC_INDIRECT) != 0 {
            return self.walk_long(desc, segments);
        }
        self.buffers.append((desc.addr, desc.len, desc.flags), segments)?;
        Ok(desc.len)
    }

    /// Chains of several descriptors, in the queue's own table or in an indirect one (clause 2.7.5.3).
    #[cold]
    #[inline(never)]
    fn walk_long(&self, first: Desc, segments: &mut Segments) -> Result<u32, RingFault> {
        let mut copy = Table::default();
        let (mut table, mut entries) = (self.layout.desc.cast_const(), u32::from(self.size()));
        let mut desc = first;
        if first.flags & DESC_INDIRECT != 0 {
            if !self.features.indirect || first.flags & DESC_NEXT != 0 {
                return Err(RingFault::MisplacedIndirect);
            }
            entries = self.buffers.copy_table(first.addr, first.len, &mut copy)?;
            table = copy.bytes.as_ptr().cast();
            // SAFETY: `copy_table` filled at least one descriptor.
            desc = unsafe { Desc::load(table, 0) };
        }
        let mut bytes: u32 = 0;
        // A chain that visits more descriptors than it may have segments loops or lies; empty buffers count.
        for _ in 0..MAX_SEGMENTS {
            if desc.flags & DESC_INDIRECT != 0 {
                return Err(RingFault::MisplacedIndirect);
            }
            self.buffers.append((desc.addr, desc.len, desc.flags), segments)?;
            bytes = bytes.saturating_add(desc.len);
            if desc.flags & DESC_NEXT == 0 {
                return Ok(bytes);
            }
            if u32::from(desc.next) >= entries {
                return Err(RingFault::DescriptorIndex { index: desc.next, size: entries });
            }
            // SAFETY: the index was checked against the table's descriptors just above.
            desc = unsafe { Desc::load(table, desc.next) };
        }
        Err(RingFault::ChainTooLong)
    }

    /// [`DeviceQueue::push_used`](crate::ring::device::DeviceQueue::push_used).
    #[inline]
    pub fn push_used(&mut self, head: u16, bytes: u32) {
        self.layout.store_used(self.next_used.get(), head, bytes);
        self.next_used.set(self.next_used.get().wrapping_add(1));
    }

    #[inline]
    pub(crate) fn push_used_all(&mut self, heads: &[u16]) {
        let mut next = self.next_used.get();
        for head in heads {
            self.layout.store_used(next, *head, 0);
            next = next.wrapping_add(1);
        }
        self.next_used.set(next);
    }

    #[inline]
    pub(crate) fn publish(&mut self) {
        if self.published_used.get() != self.next_used.get() {
            // Release: the driver that sees the index sees the entries and the buffers' contents.
            self.layout.used_idx().store(self.next_used.get().to_le(), Ordering::Release);
            self.published_used.set(self.next_used.get());
        }
    }

    #[inline]
    pub(crate) fn wants_interrupt(&mut self) -> bool {
        if self.told_used.get() == self.published_used.get() {
            return false;
        }
        // The index that was published must be seen before the driver's event is read: see the module head.
        fence(Ordering::SeqCst);
        let (new, old) = (self.published_used.get(), self.told_used.get());
        self.told_before.set(old);
        self.told_used.set(new);
        let (event, flags) = (self.layout.used_event(), self.layout.avail_flags());
        SplitLayout::wants_event(self.features.event_idx, event, flags, new, old)
    }

    #[inline]
    pub(crate) fn put_off_interrupt(&mut self) {
        self.told_used.set(self.told_before.get());
    }

    #[inline]
    pub(crate) fn told(&self) -> u16 {
        self.told_used.get().wrapping_sub(self.told_before.get())
    }

    #[inline]
    pub(crate) fn suppression(&self) -> Suppression {
        if self.features.event_idx {
            let event = u16::from_le(self.layout.used_event().load(Ordering::Relaxed));
            Suppression::Event { event, next: self.published_used.get(), size: self.size() }
        } else {
            Suppression::Flags(u16::from_le(self.layout.avail_flags().load(Ordering::Relaxed)))
        }
    }

    #[inline]
    pub(crate) fn disable_kicks(&mut self) {
        // With event index there is nothing to do: the event lies behind and is not passed again.
        let flags = self.layout.used_flags();
        // A store would take the line from the driver, which reads it all the time.
        if !self.features.event_idx && flags.load(Ordering::Relaxed) != NO_NOTIFY.to_le() {
            flags.store(NO_NOTIFY.to_le(), Ordering::Relaxed);
        }
    }

    #[inline]
    pub(crate) fn enable_kicks(&mut self) -> Result<bool, RingFault> {
        let seen = self.seen_avail.get();
        if self.features.event_idx {
            self.layout.avail_event().store(seen.to_le(), Ordering::Relaxed);
        } else {
            self.layout.used_flags().store(0, Ordering::Relaxed);
        }
        // The event must be seen before the driver's index is read: see the module head.
        fence(Ordering::SeqCst);
        self.refresh()?;
        Ok(self.seen_avail.get() != seen)
    }
}

#[cfg(test)]
mod tests {
    //! The device side against drivers that lie, one lie a test: each is its typed fault. What an honest
    //! driver does is tested with the driver side.
    use super::*;
    use crate::mem::MemoryFault;
    use crate::ring::device::Direction;
    use crate::ring::layout::{DESC_BYTES, QueueAddrs};

    const SIZE: u16 = 8;
    const TABLE: u64 = 0x1000;

    /// A ring written by hand, byte by byte: the worst driver that there can be.
    struct Liar {
        memory: Arc<GuestMemory>,
        layout: SplitLayout,
    }

    impl Liar {
        fn new() -> Liar {
            let memory = Arc::new(GuestMemory::anonymous(0x4000));
            let layout = SplitLayout::new(&memory, SIZE, QueueAddrs::contiguous(0, SIZE)).unwrap();
            Liar { memory, layout }
        }

        fn device(&self) -> SplitDevice {
            let features = QueueFeatures { event_idx: true, indirect: true };
            SplitDevice::new(self.layout, Buffers::new(self.memory.clone(), Direction::Readable), features, 0)
        }

        fn desc(&self, index: u16, addr: u64, len: u32, flags: u16, next: u16) {
            // SAFETY: the layout has SIZE descriptors.
            unsafe { Desc { addr, len, flags, next }.store(self.layout.desc, index) }
        }

        fn indirect(&self, index: u16, addr: u64, len: u32, flags: u16, next: u16) {
            let table = self.memory.translate(TABLE, 0x1000).unwrap().as_ptr();
            // SAFETY: a page at TABLE belongs to indirect tables in these tests.
            unsafe { Desc { addr, len, flags, next }.store(table, index) }
        }

        fn walk(&self) -> Result<(u32, usize), RingFault> {
            let mut segments = Segments::new();
            let bytes = self.device().walk(0, &mut segments)?;
            Ok((bytes, segments.len()))
        }
    }

    #[test]
    fn an_index_that_jumps() {
        let liar = Liar::new();
        let mut device = liar.device();
        liar.layout.avail_idx().store(SIZE.to_le(), Ordering::Relaxed);
        assert_eq!(device.available(), Ok(SIZE));
        liar.layout.avail_idx().store((SIZE + 1).to_le(), Ordering::Relaxed);
        assert_eq!(device.refresh(), Err(RingFault::AvailIndexJumped { ahead: SIZE + 1, size: SIZE }));
        liar.layout.avail_idx().store(u16::MAX.to_le(), Ordering::Relaxed);
        assert_eq!(device.refresh(), Err(RingFault::AvailIndexJumped { ahead: u16::MAX, size: SIZE }));
    }

    #[test]
    fn a_head_outside_the_table() {
        let liar = Liar::new();
        let mut device = liar.device();
        liar.layout.avail_entry(0).store(SIZE.to_le(), Ordering::Relaxed);
        liar.layout.avail_idx().store(1u16.to_le(), Ordering::Relaxed);
        assert_eq!(device.available(), Ok(1));
        assert_eq!(device.pop(), Err(RingFault::DescriptorIndex { index: SIZE, size: SIZE.into() }));
    }

    #[test]
    fn a_chain_that_loops() {
        let liar = Liar::new();
        liar.desc(0, 0x2000, 4, DESC_NEXT, 1);
        liar.desc(1, 0x2000, 4, DESC_NEXT, 0);
        assert_eq!(liar.walk(), Err(RingFault::ChainTooLong));
        // Empty buffers make no segments, and must not make a loop endless.
        liar.desc(0, 0x2000, 0, DESC_NEXT, 0);
        assert_eq!(liar.walk(), Err(RingFault::ChainTooLong));
    }

    #[test]
    fn a_buffer_outside_memory() {
        let liar = Liar::new();
        liar.desc(0, 0x3fff, 2, 0, 0);
        assert_eq!(liar.walk(), Err(RingFault::Memory(MemoryFault { addr: 0x4000, bytes: 1 })));
        liar.desc(0, u64::MAX, u32::MAX, 0, 0);
        let fault = MemoryFault { addr: u64::MAX, bytes: u32::MAX.into() };
        assert_eq!(liar.walk(), Err(RingFault::Memory(fault)));
    }

    #[test]
    fn a_buffer_of_the_wrong_direction() {
        let liar = Liar::new();
        liar.desc(0, 0x2000, 4, DESC_NEXT, 1);
        liar.desc(1, 0x2000, 4, DESC_WRITE, 0);
        assert_eq!(liar.walk(), Err(RingFault::WrongDirection));
    }

    #[test]
    fn a_next_outside_the_table() {
        let liar = Liar::new();
        liar.desc(0, 0x2000, 4, DESC_NEXT, SIZE);
        assert_eq!(liar.walk(), Err(RingFault::DescriptorIndex { index: SIZE, size: SIZE.into() }));
    }

    #[test]
    fn indirect_tables_that_are_honest_nested_ragged_or_beside_next() {
        let liar = Liar::new();
        liar.desc(0, TABLE, 3 * DESC_BYTES, DESC_INDIRECT, 0);
        liar.indirect(0, 0x2000, 4, DESC_NEXT, 2);
        liar.indirect(2, 0x2100, 6, 0, 0);
        assert_eq!(liar.walk(), Ok((10, 2)));
        liar.indirect(2, TABLE, DESC_BYTES, DESC_INDIRECT, 0);
        assert_eq!(liar.walk(), Err(RingFault::MisplacedIndirect));
        liar.indirect(0, 0x2000, 4, DESC_NEXT, 3);
        assert_eq!(liar.walk(), Err(RingFault::DescriptorIndex { index: 3, size: 3 }));
        liar.desc(0, TABLE, 3 * DESC_BYTES - 1, DESC_INDIRECT, 0);
        assert_eq!(liar.walk(), Err(RingFault::IndirectBytes(3 * DESC_BYTES - 1)));
        liar.desc(0, TABLE, 0, DESC_INDIRECT, 0);
        assert_eq!(liar.walk(), Err(RingFault::IndirectBytes(0)));
        liar.desc(0, TABLE, DESC_BYTES, DESC_INDIRECT | DESC_NEXT, 1);
        assert_eq!(liar.walk(), Err(RingFault::MisplacedIndirect));
        liar.desc(0, 0x4000, DESC_BYTES, DESC_INDIRECT, 0);
        assert_eq!(liar.walk(), Err(RingFault::Memory(MemoryFault { addr: 0x4000, bytes: 16 })));
    }

    #[test]
    fn a_used_ring_that_is_never_read_is_overwritten_and_harms_nobody() {
        let liar = Liar::new();
        let mut device = liar.device();
        for round in 0..100u32 {
            device.push_used((round % u32::from(SIZE)) as u16, round);
            device.publish();
        }
        assert_eq!(u16::from_le(liar.layout.used_idx().load(Ordering::Relaxed)), 100);
        assert_eq!(liar.layout.load_used(99), (99 % u32::from(SIZE), 99));
    }
}
