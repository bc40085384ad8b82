//! The buffers that descriptors name, in host addresses: what both formats of the ring ask of guest memory.

use super::device::{Direction, MAX_SEGMENTS, RingFault, Segments};
use super::layout::{DESC_BYTES, DESC_WRITE};
use crate::mem::{GuestMemory, Segment, Window};
use alloc::sync::Arc;

/// The memory that a queue's buffers are in, and which way they go.
pub(crate) struct Buffers {
    memory: Arc<GuestMemory>,
    /// The region of it in which the last buffer of a usual chain lay.
    window: Window,
    direction: Direction,
}

impl Buffers {
    pub(crate) fn new(memory: Arc<GuestMemory>, direction: Direction) -> Buffers {
        Buffers { memory, window: Window::EMPTY, direction }
    }

    pub(crate) fn memory(&self) -> &Arc<GuestMemory> {
        &self.memory
    }

    /// Goes on in `memory`; answers what it was until now.
    pub(crate) fn exchange(&mut self, memory: Arc<GuestMemory>) -> Arc<GuestMemory> {
        self.window = Window::EMPTY;
        core::mem::replace(&mut self.memory, memory)
    }

    /// What a buffer's descriptor has of [`DESC_WRITE`].
    #[inline]
    pub(crate) fn flag(&self) -> u16 {
        self.direction as u16
    }

    /// A buffer that lies in one region, in the fewest steps.
    #[inline(always)]
    pub(crate) fn single(&mut self, addr: u64, len: u32) -> Option<Segment> {
        match self.window.translate_whole(addr, len) {
            Some(segment) => Some(segment),
            None => self.move_window(addr, len),
        }
    }

    #[cold]
    fn move_window(&mut self, addr: u64, len: u32) -> Option<Segment> {
        self.window = self.memory.window(addr)?;
        self.window.translate_whole(addr, len)
    }

    /// Appends the buffer of a descriptor with `flags` to `segments`.
    pub(crate) fn append(
        &self,
        (mut addr, len, flags): (u64, u32, u16),
        segments: &mut Segments,
    ) -> Result<(), RingFault> {
        if flags & DESC_WRITE != self.flag() {
            return Err(RingFault::WrongDirection);
        }
        let mut left = len;
        while left > 0 {
            // A buffer may cross from one region to the next.
            let segment = self.memory.translate(addr, left)?;
            segments.try_push(segment).map_err(|_| RingFault::ChainTooLong)?;
            left -= segment.len();
            addr = addr.wrapping_add(segment.len().into());
        }
        Ok(())
    }

    /// Copies an indirect table into memory of our own, so that a walk reads nothing twice, and answers
    /// its descriptors. Longer tables than a chain may use are cut: the rest is out of the chain's reach.
    pub(crate) fn copy_table(&self, addr: u64, len: u32, into: &mut Table) -> Result<u32, RingFault> {
        if len == 0 || !len.is_multiple_of(DESC_BYTES) {
            return Err(RingFault::IndirectBytes(len));
        }
        let bytes = len.min((MAX_SEGMENTS as u32) * DESC_BYTES);
        let mut done = 0;
        while done < bytes {
            let segment = self.memory.translate(addr.wrapping_add(done.into()), bytes - done)?;
            let end = done + segment.len();
            // SAFETY: the segment is mapped guest memory of exactly this length.
            unsafe { segment.read(&mut into.bytes[done as usize..end as usize]) };
            done = end;
        }
        Ok(bytes / DESC_BYTES)
    }
}

/// A copy of an indirect table's reachable part.
pub(crate) struct Table {
    pub(crate) bytes: [u8; MAX_SEGMENTS * DESC_BYTES as usize],
}

impl Default for Table {
    fn default() -> Table {
        Table { bytes: [0; MAX_SEGMENTS * DESC_BYTES as usize] }
    }
}
