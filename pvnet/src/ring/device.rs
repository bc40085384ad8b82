//! The device side of a virtqueue: the switch, reading what a VM wrote.
//!
//! Everything that is read from the ring is copied out once, checked on the copy and never read again. A
//! driver that lies gets a [`RingFault`]; the queue then refuses to go on, and nobody else notices. What a
//! lie can cost is bounded: a chain is followed for at most [`MAX_SEGMENTS`] segments, and at most `size`
//! chains can be on offer.
//!
//! Used entries are written as chains are completed and become visible together, by
//! [`DeviceQueue::publish`]: once a batch.

use super::buffers::Buffers;
use super::inflight::InflightSplit;
use super::layout::{DESC_WRITE, Parts, QueueLayout};
use super::packed::device::PackedDevice;
use super::position::{Position, PositionError};
use super::recorded::RecordedDevice;
pub use super::split::device::SplitDevice;
use super::suppression::Suppression;
use crate::mem::{GuestMemory, MemoryFault, Segment};
use alloc::boxed::Box;
use alloc::sync::Arc;
use arrayvec::ArrayVec;

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
    /// Descriptors of a packed ring changed after they were offered: there are fewer chains, or longer ones, than a
    /// look before had counted (clause 2.8.6).
    #[error("a chain runs past the descriptors that were offered")]
    OfferChanged,
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

/// The device side of one queue, in either format.
pub struct DeviceQueue {
    format: Format,
}

/// One that is recorded is of its own, so that one that is not does not ask whether it is.
enum Format {
    Split(SplitDevice),
    Packed(PackedDevice),
    Recorded(Box<RecordedDevice>),
}

/// The same call in each format.
macro_rules! each {
    ($queue:expr, $format:ident => $call:expr) => {
        match $queue {
            Format::Split($format) => $call,
            Format::Packed($format) => $call,
            Format::Recorded($format) => $call,
        }
    };
}

impl DeviceQueue {
    /// The device side of the queue at `layout`, which lies in `memory`, from its first entry on.
    pub fn new(
        memory: Arc<GuestMemory>,
        layout: QueueLayout,
        direction: Direction,
        features: QueueFeatures,
    ) -> DeviceQueue {
        let start = match layout.parts {
            Parts::Split(_) => Position::SPLIT_START,
            Parts::Packed(_) => Position::PACKED_START,
        };
        let queue = DeviceQueue::resume(memory, layout, direction, features, start);
        queue.expect("every queue has a first entry")
    }

    /// As [`DeviceQueue::new`], from `position` on, at which another device has left the queue with all chains
    /// completed. A split queue's used index is the one that stands in its memory; of a packed queue's position only the
    /// half that says what is to be taken next counts, as both are the same and some front-ends fill in no other.
    ///
    /// # Errors
    /// A packed queue has no such slot.
    pub fn resume(
        memory: Arc<GuestMemory>,
        layout: QueueLayout,
        direction: Direction,
        features: QueueFeatures,
        position: Position,
    ) -> Result<DeviceQueue, PositionError> {
        let buffers = Buffers::new(memory, direction);
        let format = match layout.parts {
            Parts::Split(layout) => {
                Format::Split(SplitDevice::new(layout, buffers, features, position.0 as u16))
            }
            Parts::Packed(layout) => {
                Format::Packed(PackedDevice::new(layout, buffers, features, position.0 as u16)?)
            }
        };
        Ok(DeviceQueue { format })
    }

    /// As [`DeviceQueue::new`] for a split queue whose chains in flight are recorded. Where it begins is for the record
    /// and the used index in memory to say: chains that were in flight are taken first, in the order in which
    /// they were taken before, then what else is on offer.
    ///
    /// # Panics
    /// If the queue is packed.
    pub fn recorded(
        memory: Arc<GuestMemory>,
        layout: QueueLayout,
        direction: Direction,
        features: QueueFeatures,
        record: InflightSplit,
    ) -> DeviceQueue {
        let Parts::Split(layout) = layout.parts else { panic!("the record is one of a split queue") };
        let queue = SplitDevice::new(layout, Buffers::new(memory, direction), features, 0);
        DeviceQueue { format: Format::Recorded(Box::new(RecordedDevice::new(queue, record))) }
    }

    /// The queue itself, if it is a split one without a record: the usual queue, for a loop in which calls for the other
    /// formats would take registers from what is done for each frame.
    #[inline(always)]
    pub fn as_split(&mut self) -> Option<&mut SplitDevice> {
        match &mut self.format {
            Format::Split(queue) => Some(queue),
            _ => None,
        }
    }

    /// Where the queue stands, once all chains that were taken were given back and published.
    pub fn position(&self) -> Position {
        each!(&self.format, queue => queue.position())
    }

    /// Goes on with the same ring in another map of the guest's memory. Answers the old one, which whoever still uses
    /// buffers of chains that are out keeps until then.
    ///
    /// # Panics
    /// If `layout` is of another size or format.
    pub fn set_memory(&mut self, memory: Arc<GuestMemory>, layout: QueueLayout) -> Arc<GuestMemory> {
        assert_eq!(layout.size(), self.size(), "the same ring has the same size");
        match (&mut self.format, layout.parts) {
            (Format::Split(queue), Parts::Split(layout)) => queue.exchange(memory, layout),
            (Format::Packed(queue), Parts::Packed(layout)) => queue.exchange(memory, layout),
            (Format::Recorded(queue), Parts::Split(layout)) => queue.exchange(memory, layout),
            _ => panic!("the same ring has the same format"),
        }
    }

    /// The memory that the queue's buffers are in.
    pub fn memory(&self) -> &Arc<GuestMemory> {
        each!(&self.format, queue => queue.memory())
    }

    /// Entries in the queue.
    #[inline]
    pub fn size(&self) -> u16 {
        each!(&self.format, queue => queue.size())
    }

    /// How many chains are on offer, as far as was looked. Looks at the ring only when none is known of.
    ///
    /// # Errors
    /// As for [`DeviceQueue::refresh`].
    #[inline]
    pub fn available(&mut self) -> Result<u16, RingFault> {
        each!(&mut self.format, queue => queue.available())
    }

    /// Whether a chain is known to be on offer, without a look at the ring.
    #[inline]
    pub fn has_next(&self) -> bool {
        each!(&self.format, queue => queue.has_next())
    }

    /// Looks what the driver has offered, and answers how many chains are on offer: in a packed ring at least 1 if
    /// any is, as it has no index that tells of all.
    ///
    /// # Errors
    /// The driver lied.
    #[inline]
    pub fn refresh(&mut self) -> Result<u16, RingFault> {
        each!(&mut self.format, queue => queue.refresh())
    }

    /// Takes the next chain on offer, which [`DeviceQueue::available`] said is there: its head.
    ///
    /// # Errors
    /// The driver lied.
    #[inline]
    pub fn pop(&mut self) -> Result<u16, RingFault> {
        each!(&mut self.format, queue => queue.pop())
    }

    /// Takes the next chain that is known to be on offer, if there is one and it is one buffer of at least `bytes` that
    /// lies in one region: the usual chain, in the fewest steps. Of any other, and of one that is a lie, nothing is
    /// taken: [`DeviceQueue::pop`] and [`DeviceQueue::walk`] say what it is.
    #[inline(always)]
    pub fn pop_single(&mut self, bytes: u32) -> Option<(u16, Segment)> {
        let Format::Split(queue) = &mut self.format else {
            let mut segment = Segment::EMPTY;
            return Some((self.pop_single_of_others(bytes, &mut segment)?, segment));
        };
        queue.pop_single(bytes)
    }

    /// The other formats' part of [`DeviceQueue::pop_single`]. It is kept out of the switch's loops, where it would take
    /// registers from the split ring's; as it would if the answer came in memory that both parts write.
    #[cold]
    #[inline(never)]
    fn pop_single_of_others(&mut self, bytes: u32, into: &mut Segment) -> Option<u16> {
        let (head, segment) = each!(&mut self.format, queue => queue.pop_single(bytes))?;
        *into = segment;
        Some(head)
    }

    /// Puts the chain that was taken last, `head`, back on offer, as nothing was done with it.
    #[cold]
    #[inline(never)]
    pub fn unpop(&mut self, head: u16) {
        each!(&mut self.format, queue => queue.unpop(head));
    }

    /// Follows the chain from `head`, which was just taken, and appends its buffers to `segments`. Answers the bytes
    /// that they hold together. A packed ring's chain is no longer there once anything was given back.
    ///
    /// # Errors
    /// The driver lied.
    #[inline]
    pub fn walk(&self, head: u16, segments: &mut Segments) -> Result<u32, RingFault> {
        each!(&self.format, queue => queue.walk(head, segments))
    }

    /// Gives the chain at `head` back, with `bytes` written to it (0 for a transmit chain). The driver sees
    /// it after [`DeviceQueue::publish`].
    #[inline]
    pub fn push_used(&mut self, head: u16, bytes: u32) {
        each!(&mut self.format, queue => queue.push_used(head, bytes));
    }

    /// Gives several transmit chains back, as [`DeviceQueue::push_used`] does each.
    #[inline]
    pub fn push_used_all(&mut self, heads: &[u16]) {
        each!(&mut self.format, queue => queue.push_used_all(heads));
    }

    /// Makes all chains that were given back visible to the driver, at once.
    #[inline]
    pub fn publish(&mut self) {
        each!(&mut self.format, queue => queue.publish());
    }

    /// Whether the driver asked to be interrupted for what was published since it was last told; asking
    /// counts as telling.
    #[inline]
    pub fn wants_interrupt(&mut self) -> bool {
        each!(&mut self.format, queue => queue.wants_interrupt())
    }

    /// Takes the telling back after [`DeviceQueue::wants_interrupt`] said yes: the interrupt is put off, and the driver
    /// is asked again next time.
    #[inline]
    pub fn put_off_interrupt(&mut self) {
        each!(&mut self.format, queue => queue.put_off_interrupt());
    }

    /// Used entries of which the last telling told the driver: chains, or in a packed ring their descriptors.
    #[inline]
    pub fn told(&self) -> u16 {
        each!(&self.format, queue => queue.told())
    }

    /// What the driver wants of interrupts now.
    #[inline]
    pub fn suppression(&self) -> Suppression {
        each!(&self.format, queue => queue.suppression())
    }

    /// Asks the driver not to kick: the switch is looking anyway.
    #[inline]
    pub fn disable_kicks(&mut self) {
        each!(&mut self.format, queue => queue.disable_kicks());
    }

    /// Asks the driver to kick when it offers the next chain, and answers whether it has offered any since the
    /// queue was last looked at: then the caller looks again, as no kick may come for those.
    ///
    /// # Errors
    /// As for [`DeviceQueue::refresh`].
    #[inline]
    pub fn enable_kicks(&mut self) -> Result<bool, RingFault> {
        each!(&mut self.format, queue => queue.enable_kicks())
    }
}
