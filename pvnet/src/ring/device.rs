//! The device side of the split virtqueue: the switch, reading what a VM wrote.
//!
//! Everything that is read from the ring is copied out once, checked on the copy and never read again. A
//! driver that lies gets a [`RingFault`]; the queue then refuses to go on, and nobody else notices. What a
//! lie can cost is bounded: a chain is followed for at most [`MAX_SEGMENTS`] segments, and at most `size`
//! chains can be on offer.
//!
//! Used entries are written as chains are completed and become visible together, by
//! [`DeviceQueue::publish`]: once a batch.

use super::layout::{DESC_BYTES, DESC_INDIRECT, DESC_NEXT, DESC_WRITE, Desc, NO_NOTIFY, QueueLayout};
use super::suppression::Suppression;
use crate::mem::{GuestMemory, MemoryFault, Segment, Window};
use alloc::sync::Arc;
use arrayvec::ArrayVec;
use core::sync::atomic::{Ordering, fence};

/// The most segments that one chain may have. Linux uses at most 19 for a packet (`MAX_SKB_FRAGS` + 2), 47
/// where the kernel was built for more.
pub const MAX_SEGMENTS: usize = 64;

/// The buffers of one chain, in order, in host addresses.
pub type Segments = ArrayVec<Segment, MAX_SEGMENTS>;

/// A driver broke the rules of the ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RingFault {
    /// The available index is further ahead than the ring has entries (clause 2.7.13.3).
    #[error("available index jumped by {ahead}, the ring has {size} entries")]
    AvailIndexJumped {
        /// Entries that the index claims.
        ahead: u16,
        /// Entries that the ring has.
        size: u16,
    },
    /// A chain's head, or a descriptor's `next`, is no index of the table.
    #[error("descriptor {index} of a table of {size}")]
    DescriptorIndex {
        /// The index that was named.
        index: u16,
        /// Descriptors in the table.
        size: u32,
    },
    /// A chain loops or is longer than any that the switch follows.
    #[error("descriptor chain has more than {MAX_SEGMENTS} segments")]
    ChainTooLong,
    /// A buffer is not in guest memory.
    #[error(transparent)]
    Memory(#[from] MemoryFault),
    /// A device-writable buffer in a transmit chain, or a device-readable one in a receive chain.
    #[error("a descriptor has the wrong direction")]
    WrongDirection,
    /// An indirect table within an indirect table, or beside `NEXT`, or when indirect was not negotiated.
    #[error("an indirect descriptor where none may be")]
    MisplacedIndirect,
    /// An indirect table of no whole number of descriptors, or of none.
    #[error("an indirect table of {0} bytes")]
    IndirectBytes(u32),
    /// A chain was offered again before it was given back.
    #[error("chain {0} offered while in use")]
    HeadInUse(u16),
}

/// What a queue's two sides agreed on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QueueFeatures {
    /// `VIRTIO_F_EVENT_IDX` (clause 2.7.10).
    pub event_idx: bool,
    /// `VIRTIO_F_INDIRECT_DESC` (clause 2.7.5.3).
    pub indirect: bool,
}

/// Which way a queue's buffers go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Direction {
    /// The device reads them: a transmit queue.
    Readable = 0,
    /// The device writes them: a receive queue.
    Writable = DESC_WRITE,
}

impl Direction {
    /// What a buffer's descriptor has of [`DESC_WRITE`].
    #[inline]
    fn flag(self) -> u16 {
        self as u16
    }
}

/// The device side of one queue.
pub struct DeviceQueue {
    layout: QueueLayout,
    memory: Arc<GuestMemory>,
    /// The region of it in which the last buffer of a usual chain lay.
    window: Window,
    features: QueueFeatures,
    direction: Direction,
    /// The available entry to be taken next.
    next_avail: u16,
    /// The driver's available index as last read; refreshed only when nothing is left before it.
    seen_avail: u16,
    /// The used entry to be written next.
    next_used: u16,
    /// The used index that the driver can see.
    published_used: u16,
    /// The used index of which the driver was last told.
    told_used: u16,
    /// The same before that.
    told_before: u16,
}

impl DeviceQueue {
    /// The device side of the queue at `layout`, which lies in `memory`, from its first entry on.
    pub fn new(
        memory: Arc<GuestMemory>,
        layout: QueueLayout,
        direction: Direction,
        features: QueueFeatures,
    ) -> DeviceQueue {
        DeviceQueue {
            layout,
            memory,
            window: Window::EMPTY,
            features,
            direction,
            next_avail: 0,
            seen_avail: 0,
            next_used: 0,
            published_used: 0,
            told_used: 0,
            told_before: 0,
        }
    }

    /// Entries in the queue.
    #[inline]
    pub fn size(&self) -> u16 {
        self.layout.size()
    }

    /// How many chains are on offer. Reads the driver's index only when none is known of.
    #[inline]
    pub fn available(&mut self) -> Result<u16, RingFault> {
        if self.seen_avail == self.next_avail {
            return self.refresh();
        }
        Ok(self.seen_avail.wrapping_sub(self.next_avail))
    }

    /// Whether a chain is known to be on offer, without a look at the driver's index.
    #[inline]
    pub fn has_next(&self) -> bool {
        self.seen_avail != self.next_avail
    }

    /// Reads the driver's index and answers how many chains are on offer.
    #[inline]
    pub fn refresh(&mut self) -> Result<u16, RingFault> {
        // Acquire: the ring entries and descriptors that the driver wrote before it are read after it.
        let seen = u16::from_le(self.layout.avail_idx().load(Ordering::Acquire));
        let ahead = seen.wrapping_sub(self.next_avail);
        if ahead > self.size() {
            return Err(RingFault::AvailIndexJumped { ahead, size: self.size() });
        }
        self.seen_avail = seen;
        Ok(ahead)
    }

    /// Takes the next chain on offer, which [`DeviceQueue::available`] said is there: its head.
    #[inline]
    pub fn pop(&mut self) -> Result<u16, RingFault> {
        debug_assert_ne!(self.next_avail, self.seen_avail);
        let head = u16::from_le(self.layout.avail_entry(self.next_avail).load(Ordering::Relaxed));
        if head >= self.size() {
            return Err(RingFault::DescriptorIndex { index: head, size: self.size().into() });
        }
        self.next_avail = self.next_avail.wrapping_add(1);
        Ok(head)
    }

    /// Takes the next chain on offer, which [`DeviceQueue::available`] said is there, if it is one buffer of at least
    /// `bytes` that lies in one region: the usual chain, in the fewest steps. Of any other, and of one that is a
    /// lie, nothing is taken: [`DeviceQueue::pop`] and [`DeviceQueue::walk`] say what it is.
    #[inline(always)]
    pub fn pop_single(&mut self, bytes: u32) -> Option<(u16, Segment)> {
        debug_assert_ne!(self.next_avail, self.seen_avail);
        let head = u16::from_le(self.layout.avail_entry(self.next_avail).load(Ordering::Relaxed));
        if head >= self.size() {
            return None;
        }
        // SAFETY: the layout was validated for `size` descriptors; `memory` keeps it mapped.
        let desc = unsafe { Desc::load(self.layout.desc, head) };
        if desc.flags & (DESC_NEXT | DESC_INDIRECT | DESC_WRITE) != self.direction.flag() || desc.len < bytes
        {
            return None;
        }
        let segment = match self.window.translate_whole(desc.addr, desc.len) {
            Some(segment) => segment,
            None => self.move_window(desc)?,
        };
        self.next_avail = self.next_avail.wrapping_add(1);
        Some((head, segment))
    }

    #[cold]
    fn move_window(&mut self, desc: Desc) -> Option<Segment> {
        self.window = self.memory.window(desc.addr)?;
        self.window.translate_whole(desc.addr, desc.len)
    }

    /// Puts the last `chains` popped back on offer, as nothing was done with them.
    #[inline]
    pub fn unpop(&mut self, chains: u16) {
        self.next_avail = self.next_avail.wrapping_sub(chains);
    }

    /// Starts the load of the descriptor of a chain that will be popped `ahead` entries from now.
    #[inline]
    pub fn prefetch(&self, ahead: u16) {
        #[cfg(target_arch = "x86_64")]
        {
            use core::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
            let entry = self.layout.avail_entry(self.next_avail.wrapping_add(ahead));
            let head = u16::from_le(entry.load(Ordering::Relaxed)) & self.layout.mask;
            let desc = self.layout.desc.wrapping_add(usize::from(head) * DESC_BYTES as usize);
            // SAFETY: a prefetch reads nothing; any address will do.
            unsafe { _mm_prefetch(desc.cast(), _MM_HINT_T0) }
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = ahead;
    }

    /// The chain's buffer, if it is one and lies in one region: the usual chain, and the fast way. Otherwise the
    /// chain is to be [walked](DeviceQueue::walk).
    #[inline]
    pub fn single(&self, head: u16) -> Result<Option<Segment>, RingFault> {
        debug_assert!(head < self.size());
        // SAFETY: the layout was validated for `size` descriptors; `memory` keeps it mapped.
        let desc = unsafe { Desc::load(self.layout.desc, head) };
        if desc.flags & (DESC_NEXT | DESC_INDIRECT | DESC_WRITE) != self.direction.flag() {
            return Ok(None);
        }
        let segment = self.memory.translate(desc.addr, desc.len)?;
        Ok((segment.len() == desc.len).then_some(segment))
    }

    /// Follows the chain from `head` and appends its buffers to `segments`. Answers the bytes that they
    /// hold together.
    #[inline]
    pub fn walk(&self, head: u16, segments: &mut Segments) -> Result<u32, RingFault> {
        debug_assert!(head < self.size());
        // SAFETY: the layout was validated for `size` descriptors; `memory` keeps it mapped.
        let desc = unsafe { Desc::load(self.layout.desc, head) };
        if desc.flags & (DESC_NEXT | DESC_INDIRECT) != 0 {
            return self.walk_long(desc, segments);
        }
        self.append(desc, segments)?;
        Ok(desc.len)
    }

    fn append(&self, desc: Desc, segments: &mut Segments) -> Result<(), RingFault> {
        if desc.flags & DESC_WRITE != self.direction.flag() {
            return Err(RingFault::WrongDirection);
        }
        let (mut addr, mut left) = (desc.addr, desc.len);
        while left > 0 {
            // A buffer may cross from one region to the next.
            let segment = self.memory.translate(addr, left)?;
            segments.try_push(segment).map_err(|_| RingFault::ChainTooLong)?;
            left -= segment.len();
            addr = addr.wrapping_add(segment.len().into());
        }
        Ok(())
    }

    /// Chains of several descriptors, in the queue's own table or in an indirect one (clause 2.7.5.3).
    #[cold]
    #[inline(never)]
    fn walk_long(&self, first: Desc, segments: &mut Segments) -> Result<u32, RingFault> {
        let mut indirect = Indirect::default();
        let (mut table, mut entries) = (self.layout.desc.cast_const(), u32::from(self.size()));
        let mut desc = first;
        if first.flags & DESC_INDIRECT != 0 {
            if !self.features.indirect || first.flags & DESC_NEXT != 0 {
                return Err(RingFault::MisplacedIndirect);
            }
            entries = self.copy_indirect(first, &mut indirect)?;
            table = indirect.table.as_ptr().cast();
            // SAFETY: `copy_indirect` filled at least one descriptor.
            desc = unsafe { Desc::load(table, 0) };
        }
        let mut bytes: u32 = 0;
        // A chain that visits more descriptors than it may have segments loops or lies; empty buffers count.
        for _ in 0..MAX_SEGMENTS {
            if desc.flags & DESC_INDIRECT != 0 {
                return Err(RingFault::MisplacedIndirect);
            }
            self.append(desc, segments)?;
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

    /// Copies an indirect table into memory of our own, so that the walk reads nothing twice, and answers
    /// its descriptors. Longer tables than a chain may use are cut: the rest is out of the chain's reach.
    fn copy_indirect(&self, desc: Desc, into: &mut Indirect) -> Result<u32, RingFault> {
        if desc.len == 0 || !desc.len.is_multiple_of(DESC_BYTES) {
            return Err(RingFault::IndirectBytes(desc.len));
        }
        let bytes = desc.len.min((MAX_SEGMENTS as u32) * DESC_BYTES);
        let mut done = 0;
        while done < bytes {
            let segment = self.memory.translate(desc.addr.wrapping_add(done.into()), bytes - done)?;
            let end = done + segment.len();
            // SAFETY: the segment is mapped guest memory of exactly this length.
            unsafe { segment.read(&mut into.table[done as usize..end as usize]) };
            done = end;
        }
        Ok(bytes / DESC_BYTES)
    }

    /// Gives the chain at `head` back, with `bytes` written to it (0 for a transmit chain). The driver sees
    /// it after [`DeviceQueue::publish`].
    #[inline]
    pub fn push_used(&mut self, head: u16, bytes: u32) {
        self.layout.store_used(self.next_used, head, bytes);
        self.next_used = self.next_used.wrapping_add(1);
    }

    /// Gives several transmit chains back, as [`DeviceQueue::push_used`] does each.
    #[inline]
    pub fn push_used_all(&mut self, heads: &[u16]) {
        let mut next = self.next_used;
        for head in heads {
            self.layout.store_used(next, *head, 0);
            next = next.wrapping_add(1);
        }
        self.next_used = next;
    }

    /// Makes all chains that were given back visible to the driver.
    #[inline]
    pub fn publish(&mut self) {
        if self.published_used != self.next_used {
            // Release: the driver that sees the index sees the entries and the buffers' contents.
            self.layout.used_idx().store(self.next_used.to_le(), Ordering::Release);
            self.published_used = self.next_used;
        }
    }

    /// Whether the driver asked to be interrupted for what was published since it was last told; asking
    /// counts as telling.
    #[inline]
    pub fn wants_interrupt(&mut self) -> bool {
        if self.told_used == self.published_used {
            return false;
        }
        // The index that was published must be seen before the driver's event is read: see the module head.
        fence(Ordering::SeqCst);
        let (new, old) = (self.published_used, self.told_used);
        (self.told_before, self.told_used) = (old, new);
        let (event, flags) = (self.layout.used_event(), self.layout.avail_flags());
        QueueLayout::wants_event(self.features.event_idx, event, flags, new, old)
    }

    /// Takes the telling back after [`DeviceQueue::wants_interrupt`] said yes: the interrupt is put off, and the driver
    /// is asked again next time.
    #[inline]
    pub fn put_off_interrupt(&mut self) {
        self.told_used = self.told_before;
    }

    /// Chains of which the last telling told the driver.
    #[inline]
    pub fn told(&self) -> u16 {
        self.told_used.wrapping_sub(self.told_before)
    }

    /// What the driver wants of interrupts now.
    #[inline]
    pub fn suppression(&self) -> Suppression {
        if self.features.event_idx {
            let event = u16::from_le(self.layout.used_event().load(Ordering::Relaxed));
            Suppression::Event { event, next: self.published_used, size: self.size() }
        } else {
            Suppression::Flags(u16::from_le(self.layout.avail_flags().load(Ordering::Relaxed)))
        }
    }

    /// Asks the driver not to kick: the switch is looking anyway.
    #[inline]
    pub fn disable_kicks(&mut self) {
        // With event index there is nothing to do: the event lies behind and is not passed again.
        if !self.features.event_idx {
            self.layout.used_flags().store(NO_NOTIFY.to_le(), Ordering::Relaxed);
        }
    }

    /// Asks the driver to kick when it offers the next chain, and answers whether it has offered any since the
    /// queue was last looked at: then the caller looks again, as no kick may come for those.
    #[inline]
    pub fn enable_kicks(&mut self) -> Result<bool, RingFault> {
        let seen = self.seen_avail;
        if self.features.event_idx {
            self.layout.avail_event().store(seen.to_le(), Ordering::Relaxed);
        } else {
            self.layout.used_flags().store(0, Ordering::Relaxed);
        }
        // The event must be seen before the driver's index is read: see the module head.
        fence(Ordering::SeqCst);
        self.refresh()?;
        Ok(self.seen_avail != seen)
    }
}

/// A copy of an indirect table's reachable part.
#[repr(align(16))]
struct Indirect {
    table: [u8; MAX_SEGMENTS * DESC_BYTES as usize],
}

impl Default for Indirect {
    fn default() -> Indirect {
        Indirect { table: [0; MAX_SEGMENTS * DESC_BYTES as usize] }
    }
}

#[cfg(test)]
mod tests {
    //! The device side against drivers that lie, one lie a test: each is its typed fault. What an honest
    //! driver does is tested with the driver side.
    use super::*;
    use crate::ring::layout::QueueAddrs;

    const SIZE: u16 = 8;
    const TABLE: u64 = 0x1000;

    /// A ring written by hand, byte by byte: the worst driver that there can be.
    struct Liar {
        memory: Arc<GuestMemory>,
        layout: QueueLayout,
    }

    impl Liar {
        fn new() -> Liar {
            let memory = Arc::new(GuestMemory::anonymous(0x4000));
            let layout = QueueLayout::new(&memory, SIZE, QueueAddrs::contiguous(0, SIZE)).unwrap();
            Liar { memory, layout }
        }

        fn device(&self) -> DeviceQueue {
            let features = QueueFeatures { event_idx: true, indirect: true };
            DeviceQueue::new(self.memory.clone(), self.layout, Direction::Readable, features)
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
