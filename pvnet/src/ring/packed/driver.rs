//! The driver side of the packed virtqueue (VIRTIO 1.2, clauses 2.8.21, 2.8.22).

use super::event::Event;
use super::layout::{Cursor, PackedLayout, Tail};
use crate::ring::driver::{DeviceLied, Full, Tables, Used, room};
use crate::ring::layout::{DESC_BYTES, DESC_INDIRECT, DESC_NEXT, DESC_WRITE};
use alloc::boxed::Box;
use alloc::vec::Vec;
use core::iter;
use core::sync::atomic::{Ordering, fence};

/// A chain that is out, filed under its buffer id.
#[derive(Clone, Copy)]
struct Chain<T> {
    token: T,
    /// How many ring descriptors it occupies.
    descriptors: u16,
    /// Bytes that the device may write.
    room: u32,
}

/// The driver side of one packed queue: its methods are those of [`DriverQueue`](crate::ring::driver::DriverQueue).
pub(crate) struct PackedDriver<T> {
    layout: PackedLayout,
    event_idx: bool,
    indirect: Option<Tables>,
    chains: Box<[Option<Chain<T>>]>,
    /// Buffer ids of no chain; used last, used first.
    free_ids: Vec<u16>,
    /// Slots that are free, from `filled` on.
    free: u16,
    /// The slot to be filled next.
    filled: Cursor,
    /// The first descriptor that the device cannot see, and its slot: what keeps those behind it from being seen.
    unpublished: Option<(u16, Tail)>,
    /// `filled`, as the device can see it.
    published: Cursor,
    /// Where the next used descriptor will be.
    used: Cursor,
    /// Chains in all, modulo 2^16: filled, those that the device was shown, those for which it was found out whether it
    /// wants a kick, and those taken back.
    filled_chains: u16,
    published_chains: u16,
    told_chains: u16,
    used_chains: u16,
    /// Descriptors that the device was shown since it was found out whether it wants a kick.
    untold: u32,
}

impl<T: Copy> PackedDriver<T> {
    pub(crate) fn new(layout: PackedLayout, event_idx: bool, indirect: Option<Tables>) -> PackedDriver<T> {
        let size = layout.size();
        for slot in 0..size {
            layout.store_addr(slot, 0);
            layout.store_tail(slot, Tail::default());
        }
        for event in [layout.driver_event(), layout.device_event()] {
            event.store(Event::ENABLE.0, Ordering::Relaxed);
        }
        PackedDriver {
            layout,
            event_idx,
            indirect,
            chains: iter::repeat_n(None, size.into()).collect(),
            free_ids: (0..size).rev().collect(),
            free: size,
            filled: Cursor::START,
            unpublished: None,
            published: Cursor::START,
            used: Cursor::START,
            filled_chains: 0,
            published_chains: 0,
            told_chains: 0,
            used_chains: 0,
            untold: 0,
        }
    }

    pub(crate) fn free(&self) -> u16 {
        self.free
    }

    pub(crate) fn outstanding(&self) -> u16 {
        self.published_chains.wrapping_sub(self.used_chains)
    }

    #[inline]
    pub(crate) fn add(&mut self, out: &[(u64, u32)], in_: &[(u64, u32)], token: T) -> Result<(), Full<T>> {
        let buffers = out.len() + in_.len();
        let indirect = self.indirect.filter(|tables| tables.take(buffers));
        let descriptors = if indirect.is_some() { 1 } else { buffers };
        if descriptors > usize::from(self.free) {
            return Err(Full(token));
        }
        // There is an id for each chain that has a slot.
        let Some(id) = self.free_ids.pop() else { return Err(Full(token)) };
        let chain = out.iter().map(|b| (b, 0)).chain(in_.iter().map(|b| (b, DESC_WRITE)));
        match indirect {
            Some(tables) => {
                let (start, table) = tables.of(id);
                for (at, (&(addr, len), flags)) in chain.enumerate() {
                    let words = [addr.to_le(), Tail { len, id: 0, flags }.word().to_le()];
                    // SAFETY: there is a table for `id`, which is below the size, with room for as many descriptors as
                    // were held against it; it is free, as its id is. It may lie anywhere.
                    unsafe { table.cast::<[u64; 2]>().add(at).write_unaligned(words) };
                }
                self.fill(start, Tail { len: buffers as u32 * DESC_BYTES, id, flags: DESC_INDIRECT });
            }
            None => {
                for (at, (&(addr, len), flags)) in chain.enumerate() {
                    let link = if at + 1 < buffers { DESC_NEXT } else { 0 };
                    self.fill(addr, Tail { len, id, flags: flags | link });
                }
            }
        }
        let descriptors = descriptors as u16;
        self.free -= descriptors;
        self.chains[usize::from(id)] = Some(Chain { token, descriptors, room: room(in_) });
        self.filled_chains = self.filled_chains.wrapping_add(1);
        Ok(())
    }

    /// Fills the next slot.
    #[inline]
    fn fill(&mut self, addr: u64, tail: Tail) {
        let Cursor { slot, .. } = self.filled;
        let tail = Tail { flags: tail.flags | self.filled.offered(), ..tail };
        self.layout.store_addr(slot, addr);
        match self.unpublished {
            None => self.unpublished = Some((slot, tail)),
            Some(_) => self.layout.store_tail(slot, tail),
        }
        self.filled.advance(1, self.layout.size());
        self.untold = self.untold.saturating_add(1);
    }

    #[inline]
    pub(crate) fn offer(&mut self) -> u16 {
        if let Some((slot, tail)) = self.unpublished.take() {
            self.layout.store_tail(slot, tail);
            (self.published, self.published_chains) = (self.filled, self.filled_chains);
        }
        self.published_chains.wrapping_sub(self.told_chains)
    }

    #[inline]
    pub(crate) fn wants_kick(&mut self) -> bool {
        if self.told_chains == self.published_chains {
            return false;
        }
        // The descriptors must be out before the device's wish is read, or both may go to sleep.
        fence(Ordering::SeqCst);
        self.told_chains = self.published_chains;
        let unseen = self.filled.ahead_of(self.published, self.layout.size()) as u32;
        let slots = core::mem::replace(&mut self.untold, unseen) - unseen;
        let event = Event(u32::from_le(self.layout.device_event().load(Ordering::Relaxed)));
        event.wants(self.event_idx, self.published, slots, self.layout.size())
    }

    #[inline]
    pub(crate) fn has_used(&self) -> bool {
        self.used.is_used(self.layout.tail(self.used.slot).flags)
    }

    pub(crate) fn unread(&self) -> u16 {
        let (mut at, mut unread) = (self.used, 0);
        while unread < self.outstanding() {
            let Tail { id, flags, .. } = self.layout.tail(at.slot);
            if !at.is_used(flags) {
                break;
            }
            at.advance(self.descriptors(id), self.layout.size());
            unread += 1;
        }
        unread
    }

    /// The slots of a chain that came back; 1 for a lie, of which `pop_used` will speak.
    fn descriptors(&self, id: u16) -> u16 {
        self.chains.get(usize::from(id)).copied().flatten().map_or(1, |chain| chain.descriptors)
    }

    #[inline]
    pub(crate) fn pop_used(&mut self) -> Result<Option<Used<T>>, DeviceLied> {
        let Tail { len: bytes, id, flags } = self.layout.tail(self.used.slot);
        if !self.used.is_used(flags) {
            return Ok(None);
        }
        if self.outstanding() == 0 {
            return Err(DeviceLied::UsedIndex { returned: 1, outstanding: 0 });
        }
        let size = self.layout.size();
        let no_such_chain = DeviceLied::NoSuchChain { id: id.into(), size };
        let place = self.chains.get_mut(usize::from(id)).ok_or(no_such_chain)?;
        let Some(Chain { token, descriptors, room }) = *place else {
            return Err(DeviceLied::NotOutstanding { id });
        };
        if bytes > room {
            return Err(DeviceLied::TooLong { id, bytes, room });
        }
        *place = None;
        self.free_ids.push(id);
        self.free += descriptors;
        self.used.advance(descriptors, size);
        self.used_chains = self.used_chains.wrapping_add(1);
        Ok(Some(Used { token, bytes }))
    }

    #[inline]
    pub(crate) fn set_interrupt_after(&mut self, entries: u16) -> bool {
        let entries = if self.event_idx { entries.clamp(1, self.layout.size()) } else { 1 };
        if self.event_idx {
            let mut last = self.used;
            last.advance(entries - 1, self.layout.size());
            self.want_interrupts(Event::at(last));
        } else {
            self.want_interrupts(Event::ENABLE);
        }
        // The wish must be out before the ring is looked at again, or both may go to sleep.
        fence(Ordering::SeqCst);
        let (mut at, mut left) = (self.used, entries);
        while left > 0 {
            let Tail { id, flags, .. } = self.layout.tail(at.slot);
            if !at.is_used(flags) {
                return false;
            }
            let descriptors = self.descriptors(id);
            at.advance(descriptors, self.layout.size());
            left = left.saturating_sub(descriptors);
        }
        true
    }

    #[inline]
    pub(crate) fn disable_interrupts(&mut self) {
        self.want_interrupts(Event::DISABLE);
    }

    #[inline]
    fn want_interrupts(&self, event: Event) {
        self.layout.driver_event().store(event.0.to_le(), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    //! The driver side against a device that lies, one lie a test. What an honest one does is tested for both formats.
    use super::*;
    use crate::mem::GuestMemory;
    use crate::ring::layout::QueueAddrs;
    use alloc::sync::Arc;

    const SIZE: u16 = 7;

    /// One chain of 100 bytes with id 0, published: what the lies are told about; and what keeps its memory.
    fn one_outstanding() -> (PackedDriver<u32>, Arc<GuestMemory>) {
        let memory = Arc::new(GuestMemory::anonymous(0x1000));
        let layout = PackedLayout::new(&memory, SIZE, QueueAddrs::contiguous(0, SIZE)).unwrap();
        let mut driver = PackedDriver::new(layout, true, None);
        driver.add(&[], &[(0x800, 100)], 5).unwrap();
        driver.offer();
        (driver, memory)
    }

    fn device_returns(driver: &PackedDriver<u32>, id: u16, len: u32) {
        driver.layout.store_tail(driver.used.slot, Tail { len, id, flags: driver.used.used() });
    }

    #[test]
    fn more_chains_than_are_out() {
        let (mut driver, _memory) = one_outstanding();
        device_returns(&driver, 0, 0);
        assert_eq!(driver.pop_used(), Ok(Some(Used { token: 5, bytes: 0 })));
        device_returns(&driver, 0, 0);
        assert_eq!(driver.pop_used(), Err(DeviceLied::UsedIndex { returned: 1, outstanding: 0 }));
    }

    #[test]
    fn a_used_chain_that_does_not_exist_or_is_not_out() {
        let (mut driver, _memory) = one_outstanding();
        for id in [SIZE, u16::MAX] {
            device_returns(&driver, id, 0);
            assert_eq!(driver.pop_used(), Err(DeviceLied::NoSuchChain { id: id.into(), size: SIZE }));
            assert!(driver.set_interrupt_after(1), "there is something to look at");
        }
        device_returns(&driver, 1, 0);
        assert_eq!(driver.pop_used(), Err(DeviceLied::NotOutstanding { id: 1 }));
        assert_eq!(driver.pop_used(), Err(DeviceLied::NotOutstanding { id: 1 }), "a lie stays a lie");
    }

    #[test]
    fn more_bytes_than_the_chain_has_room_for() {
        let (mut driver, _memory) = one_outstanding();
        device_returns(&driver, 0, 101);
        assert_eq!(driver.pop_used(), Err(DeviceLied::TooLong { id: 0, bytes: 101, room: 100 }));
        device_returns(&driver, 0, 100);
        assert_eq!(driver.pop_used(), Ok(Some(Used { token: 5, bytes: 100 })));
    }
}
