//! The driver side of a virtqueue: a VM's own end of its ring.
//!
//! ```text
//!   add, add, add ──> publish ──> (the device works) ──> pop_used, pop_used, pop_used
//!   fills descriptors   shows all     "kick me?"            token and bytes of each chain,
//!                       at once       is its answer         descriptors free again
//! ```
//!
//! The driver keeps everything that it must rely on in memory of its own: which descriptors are free, which chains are
//! out and how many bytes each may return. What it wrote to shared memory is never read back. So a device that lies
//! is found out ([`DeviceLied`]) and can make the driver do nothing else. Nothing here allocates after
//! [`DriverQueue::new`].
//!
//! Sleeping without losing a wake-up takes both sides' full fence (clauses 2.7.10, 2.8.14). The driver's half:
//!
//! 1. [`enable_interrupts`](DriverQueue::enable_interrupts), which fences and looks at the ring again;
//! 2. if that answers `true`, entries came in the meantime, without an interrupt: take them, do not sleep;
//! 3. otherwise sleep: the next entry will interrupt.

use super::layout::{DESC_BYTES, Parts, RingFormat};
use super::packed::driver::PackedDriver;
use super::split::driver::SplitDriver;
use super::{QueueAddrs, QueueLayout, QueueSizeError};
use crate::mem::{GuestMemory, MemoryFault};
use alloc::sync::Arc;

/// What driver and device agreed on for one queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DriverFeatures {
    /// Notifications by index instead of by flag (`VIRTIO_F_EVENT_IDX`, clause 2.7.10).
    pub event_idx: bool,
    /// Chains of more than one buffer go in a table of their own (`VIRTIO_F_INDIRECT_DESC`, clause 2.7.5.3).
    pub indirect: Option<IndirectTables>,
}

/// Where a queue's indirect tables lie: one table for each descriptor of the ring, behind each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IndirectTables {
    /// Guest address of the first table.
    pub addr: u64,
    /// Descriptors in each table. A chain with more buffers goes into the ring's own descriptors.
    pub entries: u16,
}

impl IndirectTables {
    /// Bytes of guest memory that the tables of a queue of `size` descriptors take.
    pub fn bytes(entries: u16, size: u16) -> u64 {
        u64::from(DESC_BYTES) * u64::from(entries) * u64::from(size)
    }
}

/// The tables in host addresses, for the queue that they belong to.
#[derive(Clone, Copy)]
pub(crate) struct Tables {
    tables: IndirectTables,
    host: *mut u8,
}

// SAFETY: an address, accessed only through the queue that it belongs to, which keeps it mapped, whichever thread that
// is.
unsafe impl Send for Tables {}

impl Tables {
    /// Finds the tables of a queue of `size` descriptors in `memory`, which the caller keeps.
    fn find(memory: &GuestMemory, tables: IndirectTables, size: u16) -> Result<Tables, MemoryFault> {
        let bytes = IndirectTables::bytes(tables.entries, size);
        let whole = u32::try_from(bytes).map_err(|_| MemoryFault { addr: tables.addr, bytes })?;
        Ok(Tables { tables, host: memory.translate_whole(tables.addr, whole)?.as_ptr() })
    }

    /// Whether a chain of so many buffers goes into a table.
    #[inline]
    pub(crate) fn take(&self, buffers: usize) -> bool {
        buffers > 1 && buffers <= usize::from(self.tables.entries)
    }

    /// Where the table of the descriptor `head` lies, for the device and for us.
    #[inline]
    pub(crate) fn of(&self, head: u16) -> (u64, *mut u8) {
        let offset = IndirectTables::bytes(self.tables.entries, head);
        (self.tables.addr + offset, self.host.wrapping_add(offset as usize))
    }
}

/// Bytes that the device may write to `buffers`. It cannot return more than a u32 counts, so neither is there room for
/// more.
#[inline]
pub(crate) fn room(buffers: &[(u64, u32)]) -> u32 {
    buffers.iter().fold(0, |room, &(_, bytes)| room.saturating_add(bytes))
}

/// The queue has fewer free descriptors than the chain needs. It gives the chain's token back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("too few free descriptors in the queue")]
pub struct Full<T>(pub T);

/// A chain that the device is done with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Used<T> {
    /// What was given to [`DriverQueue::add`] with the chain.
    pub token: T,
    /// Bytes that the device says it wrote; at most what the chain has room for.
    pub bytes: u32,
}

/// The device put something impossible in the used ring. The queue stays as it was and says the same
/// again; its owner gives it up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DeviceLied {
    /// More chains came back than are out.
    #[error("the device returned {returned} chains of {outstanding} outstanding")]
    UsedIndex {
        /// How far the used index moved.
        returned: u16,
        /// Chains that were published and have not come back.
        outstanding: u16,
    },
    /// There is no such descriptor.
    #[error("the device returned chain {id} of a queue of {size}")]
    NoSuchChain {
        /// The head that the device named.
        id: u32,
        /// Descriptors in the queue.
        size: u16,
    },
    /// The descriptor heads no chain that is out.
    #[error("the device returned chain {id}, which is not outstanding")]
    NotOutstanding {
        /// The head that the device named.
        id: u16,
    },
    /// More bytes than the chain's buffers hold.
    #[error("the device says it wrote {bytes} bytes into chain {id}, which has room for {room}")]
    TooLong {
        /// The head that the device named.
        id: u16,
        /// Bytes that the device says it wrote.
        bytes: u32,
        /// Bytes that the chain's device-writable buffers hold.
        room: u32,
    },
}

/// A virtqueue in either format, seen by the driver. `T` is what a chain is known by.
pub struct DriverQueue<T> {
    layout: QueueLayout,
    format: Format<T>,
    /// Keeps the rings and the tables mapped.
    _memory: Arc<GuestMemory>,
}

enum Format<T> {
    Split(SplitDriver<T>),
    Packed(PackedDriver<T>),
}

/// The same call in each format.
macro_rules! each {
    ($queue:expr, $format:ident => $call:expr) => {
        match $queue {
            Format::Split($format) => $call,
            Format::Packed($format) => $call,
        }
    };
}

impl<T: Copy> DriverQueue<T> {
    /// A split queue: [`DriverQueue::with_format`].
    ///
    /// # Errors
    /// As there.
    pub fn new(
        memory: &Arc<GuestMemory>,
        size: u16,
        addrs: QueueAddrs,
        features: DriverFeatures,
    ) -> Result<Self, QueueSizeError> {
        DriverQueue::with_format(RingFormat::Split, memory, size, addrs, features)
    }

    /// A queue of `size` descriptors at `addrs` in `memory`, with its rings initialised (clauses 2.7.2, 2.8.1). The
    /// device is to be told of it only afterwards.
    ///
    /// # Errors
    /// A size that the format does not allow, parts that are not aligned, parts or indirect tables outside `memory`.
    pub fn with_format(
        format: RingFormat,
        memory: &Arc<GuestMemory>,
        size: u16,
        addrs: QueueAddrs,
        features: DriverFeatures,
    ) -> Result<Self, QueueSizeError> {
        let layout = QueueLayout::with_format(format, memory, size, addrs)?;
        let DriverFeatures { event_idx, indirect } = features;
        let indirect = indirect.map(|tables| Tables::find(memory, tables, size)).transpose()?;
        let format = match layout.parts {
            Parts::Split(layout) => Format::Split(SplitDriver::new(layout, event_idx, indirect)),
            Parts::Packed(layout) => Format::Packed(PackedDriver::new(layout, event_idx, indirect)),
        };
        Ok(DriverQueue { layout, format, _memory: memory.clone() })
    }

    /// Where the queue lies: what its device side is made from.
    pub fn layout(&self) -> QueueLayout {
        self.layout
    }

    /// Descriptors that are free.
    pub fn free(&self) -> u16 {
        each!(&self.format, queue => queue.free())
    }

    /// Chains that the device has been shown and has not given back, as far as [`pop_used`](Self::pop_used) knows.
    pub fn outstanding(&self) -> u16 {
        each!(&self.format, queue => queue.outstanding())
    }

    /// Puts a chain into the ring: buffers (guest address, bytes) that the device reads, then buffers that it
    /// writes (clauses 2.7.4.2, 2.8.5). The device sees it after [`publish`](Self::publish).
    ///
    /// # Errors
    /// [`Full`] when the descriptors do not suffice; nothing has changed then.
    ///
    /// # Panics
    /// If there is no buffer at all.
    #[inline]
    pub fn add(&mut self, out: &[(u64, u32)], in_: &[(u64, u32)], token: T) -> Result<(), Full<T>> {
        assert!(out.len() + in_.len() > 0, "a chain has at least one buffer");
        each!(&mut self.format, queue => queue.add(out, in_, token))
    }

    /// Shows the device all chains added since the last call, and tells whether it wants a kick for them
    /// (clauses 2.7.13.3, 2.7.13.4, 2.8.21).
    #[inline]
    pub fn publish(&mut self) -> bool {
        self.offer();
        self.wants_kick()
    }

    /// Shows the device all chains added since the last call, as [`publish`](Self::publish) does, but leaves for
    /// later whether it wants a kick. Answers for how many chains that is left.
    #[inline]
    pub fn offer(&mut self) -> u16 {
        each!(&mut self.format, queue => queue.offer())
    }

    /// Whether the device wants a kick for what it was shown since this was last asked, and has not seen by now.
    /// At least once in 2^16 chains it is to be asked.
    #[inline]
    pub fn wants_kick(&mut self) -> bool {
        each!(&mut self.format, queue => queue.wants_kick())
    }

    /// Whether the device has given back a chain that [`pop_used`](Self::pop_used) has not taken.
    #[inline]
    pub fn has_used(&self) -> bool {
        each!(&self.format, queue => queue.has_used())
    }

    /// How many chains the device has given back that [`pop_used`](Self::pop_used) has not taken, as far as that can be
    /// true.
    pub fn unread(&self) -> u16 {
        each!(&self.format, queue => queue.unread())
    }

    /// Takes the next chain that the device is done with, if there is one (clauses 2.7.14, 2.8.22).
    ///
    /// # Errors
    /// [`DeviceLied`] when the entry cannot be true; the queue is then of no more use.
    #[inline]
    pub fn pop_used(&mut self) -> Result<Option<Used<T>>, DeviceLied> {
        each!(&mut self.format, queue => queue.pop_used())
    }

    /// Asks for an interrupt at the next used entry. Answers `true` when entries are there already: they
    /// will not interrupt, so the caller takes them before it sleeps.
    #[inline]
    #[must_use = "entries that came in the meantime do not interrupt"]
    pub fn enable_interrupts(&mut self) -> bool {
        self.set_interrupt_after(1)
    }

    /// Asks for an interrupt once `entries` more are used: at least 1, at most the queue's size; in a packed queue a
    /// chain counts as many as it has descriptors. Answers `true` when so many are there already. Without event
    /// index the device can only be asked for the next one.
    #[inline]
    #[must_use = "entries that came in the meantime do not interrupt"]
    pub fn set_interrupt_after(&mut self, entries: u16) -> bool {
        each!(&mut self.format, queue => queue.set_interrupt_after(entries))
    }

    /// Asks for no interrupts. It is a hint: in a split queue with event index one may still come every 65,536 entries,
    /// and one that is under way comes anyway (clause 2.7.7).
    #[inline]
    pub fn disable_interrupts(&mut self) {
        each!(&mut self.format, queue => queue.disable_interrupts());
    }
}
