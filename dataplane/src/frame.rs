//! Frames in flight: from the moment a frame is taken off its sender's ring until its last copy is made.
//!
//! A frame is named by its sender's port and a slot there: the head of its chain in the transmit ring, or the
//! number of a device's buffer. Nothing is allocated for it. What waits in an internal receive queue is one
//! word, a [`FrameRef`]; what it stands for is here:
//!
//! ```text
//!   slot 0  [ Frame: lengths, virtio_net_hdr, first payload segment ] [ header: 128 bytes, copied ]
//!   slot 1  [ ...                                                   ] [ ...                        ]
//!           payload segments point into the sender's memory
//! ```
//!
//! Ownership: a slot is free while its `copies` are 0. The core with the claim on the sender's transmit side
//! fills a free slot, sets `copies` to the number of outputs, and publishes references to it. From then on the
//! slot is only read, until the core that takes `copies` to 0 gives it back through the sender's
//! completion queue. Rewritten headers ([`Edited`]) have slots of their own, from a bounded pool of the sender.

use crate::key::HEADER_BYTES;
use crate::key::usual::START_WORDS;
use crate::sync::UnsafeCell;
use crate::sync::atomic::{AtomicU32, Ordering};
use crate::{action::edit::Header, api::PortId};
use alloc::boxed::Box;
use core::num::NonZeroU64;
use hyper_switch_pvnet::header::VnetHdr;
use hyper_switch_pvnet::mem::{GuestMemory, Segment};
use hyper_switch_pvnet::ring::device::MAX_SEGMENTS;

/// The edit number of a frame that is sent as it came.
pub(crate) const NO_EDIT: u16 = u16::MAX;

/// A frame on its way to one receiver, in one word: valid bit, port (15 bits), slot, edit, and the time at
/// which it was queued in milliseconds modulo 2^16.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FrameRef(NonZeroU64);

impl FrameRef {
    #[inline]
    pub(crate) fn new(port: PortId, slot: u16, edit: u16, queued_ms: u16) -> FrameRef {
        let word = 1 << 63
            | u64::from(port.0) << 48
            | u64::from(slot) << 32
            | u64::from(edit) << 16
            | u64::from(queued_ms);
        FrameRef(NonZeroU64::new(word).expect("the valid bit is set"))
    }

    /// The same for another of the sender's frames, where this one's slot is 0.
    #[inline]
    pub(crate) fn with_slot(self, slot: u16) -> FrameRef {
        FrameRef(self.0 | u64::from(slot) << 32)
    }

    #[inline]
    pub(crate) fn from_word(word: u64) -> Option<FrameRef> {
        NonZeroU64::new(word).map(FrameRef)
    }

    #[inline]
    pub(crate) fn word(self) -> NonZeroU64 {
        self.0
    }

    #[inline]
    pub(crate) fn port(self) -> PortId {
        PortId((self.0.get() >> 48) as u16 & 0x7fff)
    }

    #[inline]
    pub(crate) fn slot(self) -> u16 {
        (self.0.get() >> 32) as u16
    }

    #[inline]
    pub(crate) fn edit(self) -> u16 {
        (self.0.get() >> 16) as u16
    }

    /// Whether two references, as words, are to frames of the same sender.
    #[inline]
    pub(crate) fn have_same_port(a: u64, b: u64) -> bool {
        (a ^ b) >> 48 == 0
    }

    /// Milliseconds since it was queued, as [`waited_ms`].
    #[inline]
    pub(crate) fn waited_ms(self, now_ms: u16) -> u16 {
        waited_ms(self.0.get() as u16, now_ms)
    }
}

/// Milliseconds from `since_ms` to `now_ms`, the low bits of two times, up to half a minute. A core keeps the time at
/// which it entered; what another core, that entered later, has queued since has not waited at all.
#[inline]
pub(crate) fn waited_ms(since_ms: u16, now_ms: u16) -> u16 {
    (now_ms.wrapping_sub(since_ms) as i16).max(0) as u16
}

/// What is known of a frame in flight.
#[derive(Clone, Copy)]
pub(crate) struct Frame {
    /// Bytes of the whole frame, without `virtio_net_hdr`.
    pub(crate) bytes: u32,
    /// Bytes of it that are in the header.
    pub(crate) header_bytes: u16,
    /// Segments of payload behind the header.
    pub(crate) segments: u16,
    /// The first of the frame's edited headers, or [`NO_EDIT`].
    pub(crate) first_edit: u16,
    /// What came in front of it, checked.
    pub(crate) vnet: VnetHdr,
    /// The copied header: in this store, or in the device's buffer, which is the switch's own memory.
    pub(crate) header: *const u8,
    /// The payload, if it is one segment.
    pub(crate) payload: Segment,
}

/// A header rewritten for one or several of a frame's receivers.
#[derive(Clone, Copy)]
pub(crate) struct Edited {
    pub(crate) header: Header,
    pub(crate) vnet: VnetHdr,
    /// The next edited header of the same frame, or [`NO_EDIT`].
    pub(crate) next: u16,
}

/// Three cache lines: what is known, and the header's bytes.
#[repr(C, align(64))]
pub(crate) struct Slot {
    copies: AtomicU32,
    /// Bits of the hash of its key: frames with the same ones go by the same lane.
    hash: AtomicU32,
    frame: UnsafeCell<Frame>,
    header: HeaderCopy,
}

#[repr(align(64))]
struct HeaderCopy(UnsafeCell<[u8; HEADER_BYTES]>);

// The model checker's are of other sizes.
#[cfg(not(loom))]
const _: () = assert!(size_of::<Slot>() == 3 * 64);

/// The frames in flight of one sender.
pub(crate) struct FrameStore {
    slots: Box<[Slot]>,
    payloads: Box<[UnsafeCell<[Segment; MAX_SEGMENTS]>]>,
    edits: Box<[UnsafeCell<Edited>]>,
}

// SAFETY: access to a slot follows the ownership rule in the module head.
unsafe impl Sync for FrameStore {}
// SAFETY: as above; the pointers in frames lead to memory that the port keeps.
unsafe impl Send for FrameStore {}

const EMPTY: Frame = Frame {
    bytes: 0,
    header_bytes: 0,
    segments: 0,
    first_edit: NO_EDIT,
    vnet: VnetHdr::PLAIN,
    header: core::ptr::null(),
    payload: Segment::EMPTY,
};

/// Copies `N` bytes of a frame from its byte `at` on to the same place in its header.
///
/// # Safety
/// The frame is mapped and has as many bytes, and so does the header.
#[inline(always)]
unsafe fn copy_piece<const N: usize>(frame: Segment, header: *mut u8, at: u32) {
    // SAFETY: the caller's word.
    unsafe { frame.from(at).read(&mut *header.add(at as usize).cast::<[u8; N]>()) }
}

impl FrameStore {
    /// A store of `slots` frames. With `scattered`, it has room for payloads of several segments, as a ring's frames
    /// have. Without, frames lie whole in buffers of the switch's own: a device's.
    pub(crate) fn new(slots: usize, scattered: bool, edits: usize) -> FrameStore {
        let slot = || Slot {
            copies: AtomicU32::new(0),
            hash: AtomicU32::new(0),
            frame: UnsafeCell::new(EMPTY),
            header: HeaderCopy(UnsafeCell::new([0; HEADER_BYTES])),
        };
        FrameStore {
            slots: (0..slots).map(|_| slot()).collect(),
            payloads: (0..if scattered { slots } else { 0 })
                .map(|_| UnsafeCell::new([Segment::EMPTY; MAX_SEGMENTS]))
                .collect(),
            edits: (0..edits)
                .map(|_| {
                    UnsafeCell::new(Edited { header: Header::EMPTY, vnet: VnetHdr::PLAIN, next: NO_EDIT })
                })
                .collect(),
        }
    }

    /// Whether nobody uses the slot.
    #[inline]
    pub(crate) fn is_free(&self, slot: u16) -> bool {
        // Acquire: the readers of before are done.
        self.slots[usize::from(slot)].copies.load(Ordering::Acquire) == 0
    }

    /// Frames that are in flight.
    pub(crate) fn in_flight(&self) -> usize {
        (0..self.slots.len()).filter(|slot| !self.is_free(*slot as u16)).count()
    }

    /// Where to copy the header of a frame to that is being filled.
    ///
    /// # Safety
    /// The slot is free and the caller has the claim on the sender's transmit side.
    #[inline]
    #[expect(clippy::mut_from_ref, reason = "the claim makes the caller the only one")]
    pub(crate) unsafe fn header_mut(&self, slot: u16) -> &mut [u8; HEADER_BYTES] {
        // SAFETY: the caller's word.
        unsafe { &mut *self.slots[usize::from(slot)].header.0.get_mut() }
    }

    /// Fills a free slot. Payloads of more than one segment are put beside it.
    ///
    /// # Safety
    /// As for [`FrameStore::header_mut`].
    #[inline]
    pub(crate) unsafe fn fill(
        &self,
        slot: u16,
        bytes: u32,
        vnet: VnetHdr,
        header: &[u8],
        payload: &[Segment],
    ) {
        let slot = usize::from(slot);
        let one = match payload {
            [] => Segment::EMPTY,
            [one] => *one,
            many => {
                // SAFETY: the caller's word; a chain has no more segments than fit.
                unsafe { (&mut *self.payloads[slot].get_mut())[..many.len()].copy_from_slice(many) };
                Segment::EMPTY
            }
        };
        let frame = Frame {
            bytes,
            header_bytes: header.len() as u16,
            segments: payload.len() as u16,
            first_edit: NO_EDIT,
            vnet,
            header: header.as_ptr(),
            payload: one,
        };
        // SAFETY: the caller's word.
        unsafe { *self.slots[slot].frame.get_mut() = frame }
    }

    /// Fills a free slot with a plain frame of `bytes`, all of it in `frame` behind its `virtio_net_hdr`, and copies
    /// its header, of which `start` was read already. Answers the slot if it was free and so was filled; one copy of
    /// it is then to be made.
    ///
    /// # Safety
    /// The caller has the claim on the sender's transmit side; `frame` is mapped for as long as the port lives, and
    /// `start` is what was read of its first bytes.
    #[inline(always)]
    pub(crate) unsafe fn fill_plain(
        &self,
        slot: u16,
        frame: Segment,
        start: [u64; START_WORDS],
    ) -> Option<&Slot> {
        let place = self.slots.get(usize::from(slot))?;
        // Acquire: the readers of before are done.
        if place.copies.load(Ordering::Acquire) != 0 {
            return None;
        }
        place.copies.store(1, Ordering::Relaxed);
        let header_bytes = frame.len().min(HEADER_BYTES as u32);
        let header = place.header.0.get_mut().cast::<u8>();
        // SAFETY: the caller's word. Each piece lies within the first `header_bytes` of the frame and of the header.
        unsafe {
            // Pieces whose length the compiler knows, and which may overlap: what was read already goes last.
            if header_bytes > 64 {
                copy_piece::<64>(frame, header, header_bytes - 64);
            }
            copy_piece::<24>(frame, header, header_bytes.min(64) - 24);
            header.cast::<[u64; START_WORDS]>().write(start);
            *place.frame.get_mut() = Frame {
                bytes: frame.len(),
                header_bytes: header_bytes as u16,
                segments: u16::from(frame.len() > header_bytes),
                first_edit: NO_EDIT,
                vnet: VnetHdr::PLAIN,
                header,
                payload: frame.from(header_bytes),
            };
        }
        Some(place)
    }

    /// The bits of the hash of a frame in flight that choose its lane.
    #[inline]
    pub(crate) fn hash(&self, slot: u16) -> u32 {
        self.slots[usize::from(slot)].hash.load(Ordering::Relaxed)
    }

    /// Whether all frames in flight lie in `memory`.
    ///
    /// # Safety
    /// The caller has the claim on the sender's transmit side.
    pub(crate) unsafe fn lie_in(&self, memory: &GuestMemory) -> bool {
        (0..self.slots.len() as u16).filter(|slot| !self.is_free(*slot)).all(|slot| {
            // SAFETY: the caller's word.
            unsafe { self.payload(slot) }.iter().all(|segment| memory.contains(*segment))
        })
    }

    /// Sets how many copies are to be made, before any reference to the frame is published.
    #[inline]
    pub(crate) fn set_copies(&self, slot: u16, copies: u32) {
        self.slots[usize::from(slot)].copies.store(copies, Ordering::Relaxed);
    }

    /// A frame in flight.
    ///
    /// # Safety
    /// The caller holds one of the frame's copies, or has the claim on the sender's transmit side.
    #[inline]
    pub(crate) unsafe fn frame(&self, slot: u16) -> &Frame {
        // SAFETY: the caller's word.
        unsafe { self.slot(slot).frame() }
    }

    /// The payload of a frame in flight: its segments behind the header.
    ///
    /// # Safety
    /// As for [`FrameStore::frame`].
    #[inline]
    pub(crate) unsafe fn payload(&self, slot: u16) -> &[Segment] {
        // SAFETY: as for `frame`.
        unsafe {
            let frame = self.frame(slot);
            match frame.segments {
                0 => &[],
                1 => core::slice::from_ref(&frame.payload),
                many => &(&*self.payloads[usize::from(slot)].get())[..usize::from(many)],
            }
        }
    }

    /// The header bytes of a frame in flight.
    ///
    /// # Safety
    /// As for [`FrameStore::frame`].
    #[inline]
    pub(crate) unsafe fn header(&self, slot: u16) -> &[u8] {
        // SAFETY: `header` points to `header_bytes` bytes of the switch's own memory, only read while in flight.
        unsafe {
            let frame = self.frame(slot);
            core::slice::from_raw_parts(frame.header, frame.header_bytes.into())
        }
    }

    /// How many edited headers there is room for.
    #[inline]
    pub(crate) fn edits(&self) -> usize {
        self.edits.len()
    }

    /// An edited header of a frame in flight.
    ///
    /// # Safety
    /// As for [`FrameStore::frame`], and `edit` is one of that frame's.
    #[inline]
    pub(crate) unsafe fn edited(&self, edit: u16) -> &Edited {
        // SAFETY: an edit belongs to its frame and is only read while that is in flight.
        unsafe { &*self.edits[usize::from(edit)].get() }
    }

    /// Puts an edited header in front of a frame's others.
    ///
    /// # Safety
    /// The caller has the claim on the sender's transmit side, `edit` is free, and no reference to the frame
    /// has been published yet.
    pub(crate) unsafe fn add_edit(&self, slot: u16, edit: u16, header: Header, vnet: VnetHdr) {
        // SAFETY: the caller's word.
        unsafe {
            let frame = &mut *self.slots[usize::from(slot)].frame.get_mut();
            *self.edits[usize::from(edit)].get_mut() = Edited { header, vnet, next: frame.first_edit };
            frame.first_edit = edit;
        }
    }

    /// A slot, for whoever looks at it more than once.
    #[inline]
    pub(crate) fn slot(&self, slot: u16) -> &Slot {
        &self.slots[usize::from(slot)]
    }

    /// As [`Slot::copied`].
    #[inline]
    pub(crate) fn copied(&self, slot: u16) -> bool {
        self.slot(slot).copied()
    }
}

impl Slot {
    /// A frame in flight.
    ///
    /// # Safety
    /// As for [`FrameStore::frame`].
    #[inline]
    pub(crate) unsafe fn frame(&self) -> &Frame {
        // SAFETY: while copies are outstanding a slot is only read.
        unsafe { &*self.frame.get() }
    }

    /// Notes the hash of the key of the frame, before any reference to the frame is published.
    #[inline]
    pub(crate) fn set_hash(&self, hash: u64) {
        self.hash.store(hash as u32, Ordering::Relaxed);
    }

    /// One copy is made, or given up. Answers whether it was the last: the slot is then free, and the caller
    /// gives it back to the sender.
    #[inline]
    pub(crate) fn copied(&self) -> bool {
        // The usual frame has one receiver, which needs no atomic step to know that it is the last.
        if self.copies.load(Ordering::Acquire) == 1 {
            self.copies.store(0, Ordering::Release);
            return true;
        }
        self.copies.fetch_sub(1, Ordering::AcqRel) == 1
    }
}

#[cfg(test)]
mod tests {
    //! A reference keeps what is put into it, and a frame is free after its last copy.
    use super::*;

    proptest::proptest! {
        #[test]
        fn a_reference_keeps_its_parts(
            port in 0..0x8000_u16, slot: u16, edit: u16, queued_ms: u16, waited in 0..0x8000_u16,
        ) {
            let frame = FrameRef::new(PortId(port), slot, edit, queued_ms);
            assert_eq!((frame.port(), frame.slot(), frame.edit()), (PortId(port), slot, edit));
            assert_eq!(frame.waited_ms(queued_ms.wrapping_add(waited)), waited, "also across the wrap");
            let earlier = queued_ms.wrapping_sub(waited);
            assert_eq!(frame.waited_ms(earlier), 0, "queued by a core that entered later");
            assert_eq!(FrameRef::from_word(frame.word().get()), Some(frame));
        }
    }

    #[test]
    fn a_frame_is_free_after_its_last_copy() {
        let store = FrameStore::new(4, true, 0);
        for copies in 1..5 {
            store.set_copies(2, copies);
            for left in (0..copies).rev() {
                assert_eq!((store.is_free(2), store.in_flight()), (false, 1));
                assert_eq!(store.copied(2), left == 0);
            }
            assert_eq!((store.is_free(2), store.in_flight()), (true, 0));
        }
    }
}
