//! The driver side of the split virtqueue (VIRTIO 1.2, clause 2.7.13).

use super::layout::{Desc, NO_NOTIFY, SplitLayout};
use crate::ring::driver::{DeviceLied, Full, Tables, Used, room};
use crate::ring::layout::{DESC_BYTES, DESC_INDIRECT, DESC_NEXT, DESC_WRITE};
use alloc::boxed::Box;
use core::iter;
use core::sync::atomic::{Ordering, fence};

/// A chain that is out, filed under its head.
#[derive(Clone, Copy)]
struct Chain<T> {
    token: T,
    /// The last of the ring descriptors that it occupies; itself the head, if there is only one.
    tail: u16,
    /// How many ring descriptors it occupies.
    descriptors: u16,
    /// Bytes that the device may write.
    room: u32,
}

/// The driver side of one split queue: its methods are those of [`DriverQueue`](crate::ring::driver::DriverQueue).
///
/// All indices run freely modulo 2^16: `used <= published <= filled` and `told <= published`, never further apart
/// than the size; `told` may fall behind `used`.
pub(crate) struct SplitDriver<T> {
    pub(crate) layout: SplitLayout,
    event_idx: bool,
    indirect: Option<Tables>,
    /// For a free descriptor the next free one, for one in a chain the next of the chain.
    next: Box<[u16]>,
    chains: Box<[Option<Chain<T>>]>,
    free_head: u16,
    free: u16,
    /// Chains put into the available ring.
    filled: u16,
    /// Chains that the device has been shown.
    published: u16,
    /// Chains for which it was found out whether the device wants a kick.
    told: u16,
    /// Chains taken back.
    pub(crate) used: u16,
}

impl<T: Copy> SplitDriver<T> {
    pub(crate) fn new(layout: SplitLayout, event_idx: bool, indirect: Option<Tables>) -> SplitDriver<T> {
        for word in [layout.avail_flags(), layout.avail_idx(), layout.used_event()] {
            word.store(0, Ordering::Relaxed);
        }
        for word in [layout.used_flags(), layout.used_idx(), layout.avail_event()] {
            word.store(0, Ordering::Relaxed);
        }
        let size = layout.size;
        SplitDriver {
            layout,
            event_idx,
            indirect,
            next: (1..size).chain(iter::once(0)).collect(),
            chains: iter::repeat_n(None, size.into()).collect(),
            free_head: 0,
            free: size,
            filled: 0,
            published: 0,
            told: 0,
            used: 0,
        }
    }

    pub(crate) fn free(&self) -> u16 {
        self.free
    }

    pub(crate) fn outstanding(&self) -> u16 {
        self.published.wrapping_sub(self.used)
    }

    #[inline]
    pub(crate) fn add(&mut self, out: &[(u64, u32)], in_: &[(u64, u32)], token: T) -> Result<(), Full<T>> {
        let buffers = out.len() + in_.len();
        let indirect = self.indirect.filter(|tables| tables.take(buffers));
        let descriptors = if indirect.is_some() { 1 } else { buffers };
        if descriptors > usize::from(self.free) {
            return Err(Full(token));
        }

        let head = self.free_head;
        let chain = out.iter().map(|b| (b, 0)).chain(in_.iter().map(|b| (b, DESC_WRITE)));
        let tail = match indirect {
            Some(tables) => self.fill_indirect(head, tables, chain, buffers),
            None => self.fill_direct(head, chain, descriptors),
        };
        let room = room(in_);
        let descriptors = descriptors as u16;
        self.free_head = self.next[usize::from(tail)];
        self.free -= descriptors;
        self.chains[usize::from(head)] = Some(Chain { token, tail, descriptors, room });
        self.layout.avail_entry(self.filled).store(head.to_le(), Ordering::Relaxed);
        self.filled = self.filled.wrapping_add(1);
        Ok(())
    }

    /// Fills `count` free descriptors of the ring from `head` on; answers the last.
    #[inline]
    fn fill_direct<'b>(
        &self,
        head: u16,
        chain: impl Iterator<Item = (&'b (u64, u32), u16)>,
        count: usize,
    ) -> u16 {
        let (mut index, mut tail) = (head, head);
        for (at, (&(addr, len), flags)) in chain.enumerate() {
            let next = self.next[usize::from(index)];
            let link = if at + 1 < count { DESC_NEXT } else { 0 };
            let descriptor = Desc { addr, len, flags: flags | link, next: if link == 0 { 0 } else { next } };
            // SAFETY: every index in `next` is below the size, the queue keeps the table, and the descriptor
            // is free, so the device has no business with it.
            unsafe { descriptor.store(self.layout.desc, index) };
            tail = index;
            index = next;
        }
        tail
    }

    /// Fills the table that belongs to `head` and points `head` to it; answers `head`, the only one used.
    #[inline]
    fn fill_indirect<'b>(
        &self,
        head: u16,
        tables: Tables,
        chain: impl Iterator<Item = (&'b (u64, u32), u16)>,
        count: usize,
    ) -> u16 {
        let (start, table) = tables.of(head);
        for (at, (&(addr, len), flags)) in chain.enumerate() {
            let (link, next) = if at + 1 < count { (DESC_NEXT, at as u16 + 1) } else { (0, 0) };
            // SAFETY: there is a table for `head`, which is below the size, with room for as many descriptors as were
            // held against it; it is free, as its descriptor is.
            unsafe { Desc { addr, len, flags: flags | link, next }.store(table, at as u16) };
        }
        let len = count as u32 * DESC_BYTES;
        let pointer = Desc { addr: start, len, flags: DESC_INDIRECT, next: 0 };
        // SAFETY: as for a direct descriptor.
        unsafe { pointer.store(self.layout.desc, head) };
        head
    }

    #[inline]
    pub(crate) fn offer(&mut self) -> u16 {
        if self.filled != self.published {
            // Release: whoever sees the index sees the descriptors and the ring's entries.
            self.layout.avail_idx().store(self.filled.to_le(), Ordering::Release);
            self.published = self.filled;
        }
        self.published.wrapping_sub(self.told)
    }

    #[inline]
    pub(crate) fn wants_kick(&mut self) -> bool {
        if self.told == self.published {
            return false;
        }
        // The index must be out before the device's wish is read, or both may go to sleep.
        fence(Ordering::SeqCst);
        let (new, old) = (self.published, self.told);
        self.told = new;
        let (event, flags) = (self.layout.avail_event(), self.layout.used_flags());
        SplitLayout::wants_event(self.event_idx, event, flags, new, old)
    }

    #[inline]
    pub(crate) fn has_used(&self) -> bool {
        self.device_used() != self.used
    }

    pub(crate) fn unread(&self) -> u16 {
        self.device_used().wrapping_sub(self.used)
    }

    #[inline]
    pub(crate) fn pop_used(&mut self) -> Result<Option<Used<T>>, DeviceLied> {
        let returned = self.device_used().wrapping_sub(self.used);
        if returned == 0 {
            return Ok(None);
        }
        let outstanding = self.outstanding();
        if returned > outstanding {
            return Err(DeviceLied::UsedIndex { returned, outstanding });
        }
        let (id, bytes) = self.layout.load_used(self.used);
        let size = self.layout.size;
        let id =
            u16::try_from(id).ok().filter(|&id| id < size).ok_or(DeviceLied::NoSuchChain { id, size })?;
        let slot = &mut self.chains[usize::from(id)];
        let Some(Chain { token, tail, descriptors, room }) = *slot else {
            return Err(DeviceLied::NotOutstanding { id });
        };
        if bytes > room {
            return Err(DeviceLied::TooLong { id, bytes, room });
        }
        *slot = None;
        self.next[usize::from(tail)] = self.free_head;
        self.free_head = id;
        self.free += descriptors;
        self.used = self.used.wrapping_add(1);
        Ok(Some(Used { token, bytes }))
    }

    #[inline]
    pub(crate) fn set_interrupt_after(&mut self, entries: u16) -> bool {
        let entries = if self.event_idx { entries.clamp(1, self.layout.size) } else { 1 };
        if self.event_idx {
            let event = self.used.wrapping_add(entries - 1);
            self.layout.used_event().store(event.to_le(), Ordering::Relaxed);
        } else {
            self.layout.avail_flags().store(0, Ordering::Relaxed);
        }
        // The wish must be out before the index is read again, or both may go to sleep.
        fence(Ordering::SeqCst);
        self.device_used().wrapping_sub(self.used) >= entries
    }

    #[inline]
    pub(crate) fn disable_interrupts(&mut self) {
        if self.event_idx {
            let passed = self.used.wrapping_sub(1);
            self.layout.used_event().store(passed.to_le(), Ordering::Relaxed);
        } else {
            self.layout.avail_flags().store(NO_NOTIFY.to_le(), Ordering::Relaxed);
        }
    }

    /// The device's used index. Acquire: its entries, and what it wrote to the buffers, come with it.
    #[inline]
    fn device_used(&self) -> u16 {
        u16::from_le(self.layout.used_idx().load(Ordering::Acquire))
    }
}

#[cfg(test)]
mod tests {
    //! The driver side against a device that lies, one lie a test. What an honest one does is tested for both formats.
    use super::*;
    use crate::mem::GuestMemory;
    use crate::ring::layout::QueueAddrs;
    use alloc::sync::Arc;

    const SIZE: u16 = 8;

    /// One chain of 100 bytes under head 0, published: what the lies are told about; and what keeps its memory.
    fn one_outstanding() -> (SplitDriver<u32>, Arc<GuestMemory>) {
        let memory = Arc::new(GuestMemory::anonymous(0x1000));
        let layout = SplitLayout::new(&memory, SIZE, QueueAddrs::contiguous(0, SIZE)).unwrap();
        let mut driver = SplitDriver::new(layout, true, None);
        driver.add(&[], &[(0x800, 100)], 5).unwrap();
        driver.offer();
        (driver, memory)
    }

    fn device_returns(driver: &SplitDriver<u32>, head: u16, bytes: u32) {
        driver.layout.store_used(0, head, bytes);
        driver.layout.used_idx().store(1_u16.to_le(), Ordering::Relaxed);
    }

    #[test]
    fn a_used_index_that_jumps() {
        let (mut driver, _memory) = one_outstanding();
        for jump in [2, SIZE, SIZE + 1, u16::MAX] {
            driver.layout.used_idx().store(jump.to_le(), Ordering::Relaxed);
            let lie = DeviceLied::UsedIndex { returned: jump, outstanding: 1 };
            assert_eq!(driver.pop_used(), Err(lie));
        }
    }

    #[test]
    fn a_used_chain_that_does_not_exist_or_is_not_out() {
        let (mut driver, _memory) = one_outstanding();
        driver.layout.used_idx().store(1_u16.to_le(), Ordering::Relaxed);
        for id in [u32::from(SIZE), 0x1_0000, u32::MAX] {
            // The used ring's entry takes a 16-bit head; a liar writes the word's upper half as well.
            let entry = (u64::from(id) | 100 << 32).to_le();
            // SAFETY: the first used entry lies 4 bytes into the used ring, which is kept mapped.
            unsafe { driver.layout.used.add(4).cast::<u64>().write_unaligned(entry) };
            assert_eq!(driver.pop_used(), Err(DeviceLied::NoSuchChain { id, size: SIZE }));
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
