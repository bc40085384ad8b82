//! The device side of the packed virtqueue.

use super::event::Event;
use super::layout::{Cursor, PackedLayout, Tail};
use crate::mem::{GuestMemory, Segment};
use crate::ring::buffers::{Buffers, Table};
use crate::ring::device::{MAX_SEGMENTS, QueueFeatures, RingFault, Segments};
use crate::ring::layout::{DESC_BYTES, DESC_INDIRECT, DESC_NEXT, DESC_WRITE};
use crate::ring::position::{Position, PositionError};
use crate::ring::suppression::Suppression;
use alloc::boxed::Box;
use alloc::sync::Arc;
use core::iter;
use core::sync::atomic::{Ordering, fence};

/// The most descriptors that are looked at ahead: a batch of the switch.
const LOOK_AHEAD: u16 = 64;

/// Where a chain that is out lay: its first slot, and how many; none if it is not out.
#[derive(Clone, Copy, Default)]
struct Chain {
    first: u16,
    descriptors: u16,
}

/// The device side of one packed queue: its methods are those of [`DeviceQueue`](crate::ring::device::DeviceQueue).
///
/// `used`, `next` and `seen` follow each other round the ring, never more than a round apart: `out` slots from the first
/// to the second, `offered` from there to the third.
pub(crate) struct PackedDevice {
    layout: PackedLayout,
    buffers: Buffers,
    features: QueueFeatures,
    /// The descriptor to be taken next.
    next: Cursor,
    /// The descriptor to be looked at next.
    seen: Cursor,
    /// Descriptors that were seen on offer and not taken.
    offered: u16,
    /// Chains that they make, as far as was seen; the driver may have changed them meanwhile.
    chains_offered: u16,
    /// Where the next used descriptor goes.
    used: Cursor,
    /// Descriptors of the chains that are out.
    out: u16,
    /// All chains, by their heads.
    chains: Box<[Chain]>,
    /// The first used descriptor that the driver cannot see, and its slot: what keeps those behind it from being seen.
    unpublished: Option<(u16, Tail)>,
    /// Descriptors gone over in all, modulo 2^32: used, those that the driver can see, and when it was last told.
    used_count: u32,
    published_count: u32,
    told_count: u32,
    /// The same before that.
    told_before: u32,
    /// `used`, as the driver can see it.
    published: Cursor,
}

impl PackedDevice {
    /// Begins at the slot and wrap counter in `start`.
    pub(crate) fn new(
        layout: PackedLayout,
        buffers: Buffers,
        features: QueueFeatures,
        start: u16,
    ) -> Result<PackedDevice, PositionError> {
        let (size, start) = (layout.size(), Cursor::from_bits(start));
        if start.slot >= size {
            return Err(PositionError { slot: start.slot, size });
        }
        Ok(PackedDevice {
            layout,
            buffers,
            features,
            next: start,
            seen: start,
            offered: 0,
            chains_offered: 0,
            used: start,
            out: 0,
            chains: iter::repeat_n(Chain::default(), size.into()).collect(),
            unpublished: None,
            used_count: 0,
            published_count: 0,
            told_count: 0,
            told_before: 0,
            published: start,
        })
    }

    pub(crate) fn position(&self) -> Position {
        Position(u32::from(self.next.bits()) | u32::from(self.used.bits()) << 16)
    }

    pub(crate) fn exchange(&mut self, memory: Arc<GuestMemory>, layout: PackedLayout) -> Arc<GuestMemory> {
        self.layout = layout;
        self.buffers.exchange(memory)
    }

    pub(crate) fn memory(&self) -> &Arc<GuestMemory> {
        self.buffers.memory()
    }

    #[inline]
    pub(crate) fn size(&self) -> u16 {
        self.layout.size()
    }

    pub(crate) fn available(&mut self) -> Result<u16, RingFault> {
        if self.chains_offered == 0 {
            return self.refresh();
        }
        Ok(self.chains_offered)
    }

    pub(crate) fn has_next(&self) -> bool {
        self.chains_offered != 0
    }

    #[inline]
    pub(crate) fn refresh(&mut self) -> Result<u16, RingFault> {
        // At most a round: the slots of chains that are out are not the driver's.
        let room = self.size() - self.out - self.offered;
        for _ in 0..room.min(LOOK_AHEAD) {
            let flags = self.layout.tail(self.seen.slot).flags;
            if !self.seen.is_offered(flags) {
                break;
            }
            self.seen.advance(1, self.size());
            self.offered += 1;
            self.chains_offered += u16::from(flags & DESC_NEXT == 0);
        }
        let has_no_end = self.chains_offered == 0 && self.offered != 0;
        if has_no_end && (usize::from(self.offered) > MAX_SEGMENTS || self.offered == self.size() - self.out)
        {
            return Err(RingFault::ChainTooLong);
        }
        Ok(self.chains_offered)
    }

    #[inline]
    pub(crate) fn pop(&mut self) -> Result<u16, RingFault> {
        let (mut last, mut descriptors) = (self.next, 0);
        let id = loop {
            if descriptors == self.offered {
                return Err(RingFault::OfferChanged);
            }
            if usize::from(descriptors) == MAX_SEGMENTS {
                return Err(RingFault::ChainTooLong);
            }
            descriptors += 1;
            let Tail { id, flags, .. } = self.layout.tail(last.slot);
            if flags & DESC_NEXT == 0 {
                break id;
            }
            last.advance(1, self.size());
        };
        let size = self.size();
        match self.chains.get(usize::from(id)) {
            None => Err(RingFault::DescriptorIndex { index: id, size: size.into() }),
            Some(chain) if chain.descriptors != 0 => Err(RingFault::HeadInUse(id)),
            Some(_) => {
                self.take(id, descriptors);
                Ok(id)
            }
        }
    }

    /// Takes the chain `head` of so many of the descriptors that are offered next.
    #[inline]
    fn take(&mut self, head: u16, descriptors: u16) {
        self.chains[usize::from(head)] = Chain { first: self.next.slot, descriptors };
        self.next.advance(descriptors, self.layout.size());
        self.offered -= descriptors;
        self.out += descriptors;
        // Where the driver has changed them, there may be fewer than were counted.
        self.chains_offered = self.chains_offered.saturating_sub(1).min(self.offered);
    }

    #[inline]
    pub(crate) fn pop_single(&mut self, bytes: u32) -> Option<(u16, Segment)> {
        if self.offered == 0 {
            return None;
        }
        let Tail { len, id, flags } = self.layout.tail(self.next.slot);
        if flags & (DESC_NEXT | DESC_INDIRECT | DESC_WRITE) != self.buffers.flag() || len < bytes {
            return None;
        }
        if self.chains.get(usize::from(id))?.descriptors != 0 {
            return None;
        }
        let segment = self.buffers.single(self.layout.addr(self.next.slot), len)?;
        self.take(id, 1);
        Some((id, segment))
    }

    pub(crate) fn unpop(&mut self, head: u16) {
        let Chain { descriptors, .. } = core::mem::take(&mut self.chains[usize::from(head)]);
        self.next.retreat(descriptors, self.layout.size());
        self.offered += descriptors;
        self.out -= descriptors;
        self.chains_offered += 1;
    }

    pub(crate) fn walk(&self, head: u16, segments: &mut Segments) -> Result<u32, RingFault> {
        let Chain { first, descriptors } = self.chains[usize::from(head)];
        let mut at = Cursor { slot: first, wrap: true };
        let mut bytes: u32 = 0;
        for _ in 0..descriptors {
            let Tail { len, flags, .. } = self.layout.tail(at.slot);
            let addr = self.layout.addr(at.slot);
            if flags & DESC_INDIRECT != 0 {
                if !self.features.indirect || descriptors != 1 {
                    return Err(RingFault::MisplacedIndirect);
                }
                return self.walk_indirect(addr, len, segments);
            }
            self.buffers.append((addr, len, flags), segments)?;
            bytes = bytes.saturating_add(len);
            at.advance(1, self.size());
        }
        Ok(bytes)
    }

    /// A chain in an indirect table, whose descriptors are all the chain's (clause 2.8.7).
    #[cold]
    #[inline(never)]
    fn walk_indirect(&self, addr: u64, len: u32, segments: &mut Segments) -> Result<u32, RingFault> {
        let mut table = Table::default();
        let entries = self.buffers.copy_table(addr, len, &mut table)?;
        if len > entries * DESC_BYTES {
            return Err(RingFault::ChainTooLong);
        }
        let mut bytes: u32 = 0;
        let (entries, _) = table.bytes[..len as usize].as_chunks::<{ DESC_BYTES as usize }>();
        for entry in entries {
            let desc = u128::from_le_bytes(*entry);
            let Tail { len, flags, .. } = Tail::from_word((desc >> 64) as u64);
            // Of its flags only the direction counts.
            self.buffers.append((desc as u64, len, flags), segments)?;
            bytes = bytes.saturating_add(len);
        }
        Ok(bytes)
    }

    #[inline]
    pub(crate) fn push_used(&mut self, head: u16, bytes: u32) {
        let Chain { descriptors, .. } = core::mem::take(&mut self.chains[usize::from(head)]);
        debug_assert_ne!(descriptors, 0, "chain {head} is out");
        let written = if bytes == 0 { 0 } else { DESC_WRITE };
        let tail = Tail { len: bytes, id: head, flags: self.used.used() | written };
        match self.unpublished {
            None => self.unpublished = Some((self.used.slot, tail)),
            Some(_) => self.layout.store_tail(self.used.slot, tail),
        }
        self.used.advance(descriptors, self.layout.size());
        self.used_count = self.used_count.wrapping_add(descriptors.into());
        self.out -= descriptors;
    }

    #[inline]
    pub(crate) fn push_used_all(&mut self, heads: &[u16]) {
        heads.iter().for_each(|head| self.push_used(*head, 0));
    }

    pub(crate) fn publish(&mut self) {
        if let Some((slot, tail)) = self.unpublished.take() {
            self.layout.store_tail(slot, tail);
            (self.published, self.published_count) = (self.used, self.used_count);
        }
    }

    pub(crate) fn wants_interrupt(&mut self) -> bool {
        if self.told_count == self.published_count {
            return false;
        }
        // The descriptors must be seen before the driver's event is read: see the module head.
        fence(Ordering::SeqCst);
        (self.told_before, self.told_count) = (self.told_count, self.published_count);
        let slots = self.told_count.wrapping_sub(self.told_before);
        self.event().wants(self.features.event_idx, self.published, slots, self.size())
    }

    #[inline]
    fn event(&self) -> Event {
        Event(u32::from_le(self.layout.driver_event().load(Ordering::Relaxed)))
    }

    pub(crate) fn put_off_interrupt(&mut self) {
        self.told_count = self.told_before;
    }

    pub(crate) fn told(&self) -> u16 {
        self.told_count.wrapping_sub(self.told_before).try_into().unwrap_or(u16::MAX)
    }

    pub(crate) fn suppression(&self) -> Suppression {
        let event = self.event();
        match event.cursor(self.features.event_idx) {
            Some(cursor) => Suppression::Event {
                // As far from `next` as the one is ahead of what was published.
                event: cursor.ahead_of(self.published, self.size()) as u16,
                next: 0,
                size: self.size(),
            },
            None => Suppression::Flags(event.is_disabled().into()),
        }
    }

    pub(crate) fn disable_kicks(&mut self) {
        self.want_kicks(Event::DISABLE);
    }

    #[inline]
    fn want_kicks(&self, event: Event) {
        let wish = self.layout.device_event();
        // A store would take the line from the driver, which reads it all the time.
        if wish.load(Ordering::Relaxed) != event.0.to_le() {
            wish.store(event.0.to_le(), Ordering::Relaxed);
        }
    }

    pub(crate) fn enable_kicks(&mut self) -> Result<bool, RingFault> {
        self.want_kicks(if self.features.event_idx { Event::at(self.seen) } else { Event::ENABLE });
        // The event must be seen before the driver's descriptors are read: see the module head.
        fence(Ordering::SeqCst);
        let seen = self.offered;
        self.refresh()?;
        Ok(self.offered != seen)
    }
}

#[cfg(test)]
mod tests {
    //! The device side against drivers that lie, one lie a test: each is its typed fault. What an honest driver does is
    //! tested for both formats.
    use super::*;
    use crate::mem::MemoryFault;
    use crate::ring::device::Direction;
    use crate::ring::layout::QueueAddrs;

    const SIZE: u16 = 7;
    const TABLE: u64 = 0x1000;
    const BUFFER: u64 = 0x2000;
    const END: u64 = 0x4000;

    /// A ring written by hand, word by word: the worst driver that there can be.
    struct Liar {
        memory: Arc<GuestMemory>,
        layout: PackedLayout,
    }

    impl Liar {
        fn new(size: u16) -> Liar {
            let memory = Arc::new(GuestMemory::anonymous(END as usize));
            let layout = PackedLayout::new(&memory, size, QueueAddrs::contiguous(0, size)).unwrap();
            Liar { memory, layout }
        }

        fn device(&self) -> PackedDevice {
            let buffers = Buffers::new(self.memory.clone(), Direction::Readable);
            let features = QueueFeatures { event_idx: true, indirect: true };
            PackedDevice::new(self.layout, buffers, features, Cursor::START.bits()).unwrap()
        }

        /// A descriptor on offer in the first round.
        fn offer(&self, slot: u16, addr: u64, len: u32, id: u16, flags: u16) {
            self.layout.store_addr(slot, addr);
            self.layout.store_tail(slot, Tail { len, id, flags: flags | Cursor::START.offered() });
        }

        fn indirect(&self, index: u64, addr: u64, len: u32, flags: u16) {
            let entry = u128::from(addr) | u128::from(Tail { len, id: 0, flags }.word()) << 64;
            let at = self.memory.translate_whole(TABLE + 16 * index, 16).unwrap();
            // SAFETY: the memory is mapped, and nobody else looks.
            unsafe { at.write(&entry.to_le_bytes()) };
        }

        /// The bytes and segments of the first chain.
        fn walk(&self) -> Result<(u32, usize), RingFault> {
            let mut device = self.device();
            device.refresh()?;
            let (head, mut segments) = (device.pop()?, Segments::new());
            Ok((device.walk(head, &mut segments)?, segments.len()))
        }
    }

    #[test]
    fn an_id_outside_the_ring() {
        let liar = Liar::new(SIZE);
        for id in [SIZE, u16::MAX] {
            liar.offer(0, BUFFER, 4, id, 0);
            let mut device = liar.device();
            assert_eq!(device.available(), Ok(1));
            assert_eq!(device.pop_single(1), None);
            assert_eq!(device.pop(), Err(RingFault::DescriptorIndex { index: id, size: SIZE.into() }));
        }
    }

    #[test]
    fn an_id_that_is_in_use() {
        let liar = Liar::new(SIZE);
        liar.offer(0, BUFFER, 4, 3, 0);
        liar.offer(1, BUFFER, 4, 3, 0);
        let mut device = liar.device();
        assert_eq!((device.available(), device.pop()), (Ok(2), Ok(3)));
        assert_eq!(device.pop_single(1), None);
        assert_eq!(device.pop(), Err(RingFault::HeadInUse(3)));
        device.push_used(3, 0);
        assert_eq!(device.pop(), Ok(3));
    }

    #[test]
    fn a_chain_without_end() {
        let liar = Liar::new(SIZE);
        (0..SIZE).for_each(|slot| liar.offer(slot, BUFFER, 4, 0, DESC_NEXT));
        assert_eq!(liar.device().refresh(), Err(RingFault::ChainTooLong));
        // Or with one, but longer than any.
        let liar = Liar::new(128);
        (0..65).for_each(|slot| liar.offer(slot, BUFFER, 4, 0, DESC_NEXT));
        let mut device = liar.device();
        assert_eq!((device.refresh(), device.refresh()), (Ok(0), Err(RingFault::ChainTooLong)));
        liar.offer(64, BUFFER, 4, 0, 0);
        let mut device = liar.device();
        assert_eq!((device.refresh(), device.refresh()), (Ok(0), Ok(1)));
        assert_eq!(device.pop(), Err(RingFault::ChainTooLong));
    }

    #[test]
    fn a_chain_that_is_offered_in_part_is_not_offered() {
        let liar = Liar::new(SIZE);
        (0..3).for_each(|slot| liar.offer(slot, BUFFER, 4, 0, DESC_NEXT));
        let mut device = liar.device();
        assert_eq!((device.available(), device.enable_kicks()), (Ok(0), Ok(false)));
    }

    #[test]
    fn descriptors_that_change_after_they_were_seen() {
        let liar = Liar::new(SIZE);
        (0..3).for_each(|slot| liar.offer(slot, BUFFER, 4, slot, 0));
        let mut device = liar.device();
        assert_eq!(device.available(), Ok(3));
        // Three chains become two, and one that runs past what was offered.
        liar.offer(0, BUFFER, 4, 0, DESC_NEXT);
        assert_eq!(device.pop(), Ok(1));
        liar.offer(2, BUFFER, 4, 2, DESC_NEXT);
        assert_eq!(device.pop(), Err(RingFault::OfferChanged));
        liar.offer(2, BUFFER, 4, 2, 0);
        assert_eq!(device.pop(), Ok(2));
        // The three that were counted are not there any more.
        assert_eq!((device.has_next(), device.pop_single(1)), (false, None));
        assert_eq!(device.pop(), Err(RingFault::OfferChanged));
    }

    #[test]
    fn slots_whose_chains_are_out_are_nobodys_to_offer() {
        let liar = Liar::new(SIZE);
        (0..SIZE).for_each(|slot| liar.offer(slot, BUFFER, 4, slot, 0));
        let mut device = liar.device();
        assert_eq!(device.available(), Ok(SIZE));
        (0..SIZE).for_each(|id| assert_eq!(device.pop(), Ok(id)));
        // The next round, although the device has given nothing back.
        let next_round = Cursor { slot: 0, wrap: false }.offered();
        for slot in 0..SIZE {
            liar.layout.store_tail(slot, Tail { len: 4, id: slot, flags: next_round });
        }
        assert_eq!((device.refresh(), device.enable_kicks()), (Ok(0), Ok(false)));
        device.push_used(0, 0);
        assert_eq!(device.refresh(), Ok(1));
    }

    #[test]
    fn a_buffer_outside_memory() {
        let liar = Liar::new(SIZE);
        liar.offer(0, END - 1, 2, 0, 0);
        assert_eq!(liar.walk(), Err(RingFault::Memory(MemoryFault { addr: END, bytes: 1 })));
        liar.offer(0, u64::MAX, u32::MAX, 0, 0);
        let fault = MemoryFault { addr: u64::MAX, bytes: u32::MAX.into() };
        assert_eq!(liar.walk(), Err(RingFault::Memory(fault)));
        let mut device = liar.device();
        assert_eq!((device.refresh(), device.pop_single(1)), (Ok(1), None));
    }

    #[test]
    fn a_buffer_of_the_wrong_direction() {
        let liar = Liar::new(SIZE);
        liar.offer(0, BUFFER, 4, 0, DESC_NEXT);
        liar.offer(1, BUFFER, 4, 0, DESC_WRITE);
        assert_eq!(liar.walk(), Err(RingFault::WrongDirection));
    }

    #[test]
    fn indirect_tables_that_are_honest_too_long_ragged_or_in_a_chain() {
        let liar = Liar::new(SIZE);
        liar.indirect(0, BUFFER, 4, 0);
        // Flags that mean nothing in a table (clause 2.8.7).
        liar.indirect(1, BUFFER + 0x100, 6, DESC_NEXT | DESC_INDIRECT);
        liar.offer(0, TABLE, 2 * DESC_BYTES, 0, DESC_INDIRECT);
        assert_eq!(liar.walk(), Ok((10, 2)));
        liar.indirect(1, BUFFER, 6, DESC_WRITE);
        assert_eq!(liar.walk(), Err(RingFault::WrongDirection));
        liar.indirect(1, END, 6, 0);
        assert_eq!(liar.walk(), Err(RingFault::Memory(MemoryFault { addr: END, bytes: 6 })));
        for bytes in [0, 2 * DESC_BYTES - 1] {
            liar.offer(0, TABLE, bytes, 0, DESC_INDIRECT);
            assert_eq!(liar.walk(), Err(RingFault::IndirectBytes(bytes)));
        }
        liar.offer(0, TABLE, (MAX_SEGMENTS as u32 + 1) * DESC_BYTES, 0, DESC_INDIRECT);
        assert_eq!(liar.walk(), Err(RingFault::ChainTooLong));
        liar.offer(0, END, DESC_BYTES, 0, DESC_INDIRECT);
        assert_eq!(liar.walk(), Err(RingFault::Memory(MemoryFault { addr: END, bytes: 16 })));
        liar.offer(0, TABLE, DESC_BYTES, 0, DESC_INDIRECT | DESC_NEXT);
        liar.offer(1, BUFFER, 4, 0, 0);
        assert_eq!(liar.walk(), Err(RingFault::MisplacedIndirect));
        liar.offer(0, TABLE, DESC_BYTES, 0, DESC_INDIRECT);
        let mut device = liar.device();
        device.features.indirect = false;
        assert_eq!((device.refresh(), device.pop()), (Ok(2), Ok(0)));
        assert_eq!(device.walk(0, &mut Segments::new()), Err(RingFault::MisplacedIndirect));
    }

    #[test]
    fn an_event_that_is_nowhere() {
        let liar = Liar::new(SIZE);
        let mut device = liar.device();
        for event in [u32::MAX, 2 << 16 | 0x7fff, 2 << 16 | 0xffff, 3 << 16] {
            liar.offer(device.next.slot, BUFFER, 4, 0, 0);
            let Tail { len, id, .. } = liar.layout.tail(device.next.slot);
            let flags = device.next.offered();
            liar.layout.store_tail(device.next.slot, Tail { len, id, flags });
            device.refresh().unwrap();
            let head = device.pop().unwrap();
            device.push_used(head, 0);
            device.publish();
            liar.layout.driver_event().store(event.to_le(), Ordering::Relaxed);
            device.wants_interrupt();
            device.suppression();
        }
    }
}
