//! Store and forward: frames between rings and memory of the switch's own, whole. For switches that copy twice, as those
//! do which the data plane of this project is measured against.
//!
//! ```text
//!   sender's tx ring ──TxRelay::take──> Stored ──RxRelay::give──> receiver's rx ring
//!                        one copy                 one copy
//! ```

use super::device::{DeviceQueue, RingFault, Segments};
use crate::header::VNET_HDR_BYTES;
use crate::{MAX_FRAME_BYTES, MIN_FRAME_BYTES};
use alloc::vec::Vec;

/// Where `num_buffers` lies in a `virtio_net_hdr`.
const NUM_BUFFERS: core::ops::Range<usize> = 10..12;

/// A frame with its `virtio_net_hdr`, in memory of the switch's own, which is kept for the next frame.
pub struct Stored {
    /// As long as the longest frame that was in it, or as what is kept of each.
    memory: Vec<u8>,
    bytes: usize,
    most_bytes: usize,
}

impl Default for Stored {
    fn default() -> Stored {
        Stored::beginning(MAX_FRAME_BYTES)
    }
}

impl Stored {
    /// Room for the first so many bytes of a frame, for where nobody reads the others: who is given the frame gets all its
    /// length, and behind these bytes what was in the buffer before.
    pub fn beginning(frame_bytes: usize) -> Stored {
        Stored { memory: Vec::new(), bytes: 0, most_bytes: VNET_HDR_BYTES + frame_bytes }
    }

    /// Bytes of the frame, without its `virtio_net_hdr`.
    pub fn frame_bytes(&self) -> usize {
        self.bytes.saturating_sub(VNET_HDR_BYTES)
    }

    /// The frame's destination address.
    pub fn destination(&self) -> [u8; 6] {
        let frame = self.memory.get(VNET_HDR_BYTES..).and_then(<[u8]>::first_chunk);
        frame.copied().unwrap_or_default()
    }

    /// A copy of the frame, in `into`'s memory.
    pub fn duplicate(&self, into: &mut Stored) {
        let room = into.room(self.bytes);
        let kept = room.len().min(self.memory.len());
        room[..kept].copy_from_slice(&self.memory[..kept]);
    }

    /// Room for what is kept of a frame with its header of so many bytes together.
    fn room(&mut self, bytes: usize) -> &mut [u8] {
        let kept = bytes.min(self.most_bytes);
        if self.memory.len() < kept {
            self.memory.resize(kept, 0);
        }
        self.bytes = bytes;
        &mut self.memory[..kept]
    }
}

/// What became of a chain of a transmit ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken {
    /// A frame was copied.
    Frame,
    /// The chain has the length of no frame, and was given back.
    Nonsense,
    /// There was none.
    Nothing,
}

/// A transmit ring whose frames are copied out.
pub struct TxRelay(DeviceQueue);

impl TxRelay {
    /// A relay of a transmit ring, of which `queue` is the device side.
    pub fn new(queue: DeviceQueue) -> TxRelay {
        TxRelay(queue)
    }

    /// The ring itself: to publish what was given back, and for notifications.
    pub fn queue(&mut self) -> &mut DeviceQueue {
        &mut self.0
    }

    /// Copies the next frame to `into` and gives its chain back, which shows once it is published.
    ///
    /// # Errors
    /// The driver lied.
    pub fn take(&mut self, into: &mut Stored) -> Result<Taken, RingFault> {
        if self.0.available()? == 0 {
            return Ok(Taken::Nothing);
        }
        let head = self.0.pop()?;
        let mut segments = Segments::new();
        let bytes = self.0.walk(head, &mut segments)? as usize;
        let is_frame = (VNET_HDR_BYTES + MIN_FRAME_BYTES..=VNET_HDR_BYTES + MAX_FRAME_BYTES).contains(&bytes);
        if is_frame {
            let mut room = into.room(bytes);
            for segment in segments {
                let (here, beyond) = room.split_at_mut(room.len().min(segment.len() as usize));
                // SAFETY: the segment is guest memory of at least this length, which the queue keeps mapped.
                unsafe { segment.read(here) };
                room = beyond;
            }
        }
        self.0.push_used(head, 0);
        Ok(if is_frame { Taken::Frame } else { Taken::Nonsense })
    }
}

/// A receive ring into which frames are copied, each into as many buffers as it takes (`VIRTIO_NET_F_MRG_RXBUF`).
pub struct RxRelay(DeviceQueue);

impl RxRelay {
    /// The device side of the receive ring at `layout`.
    pub fn new(queue: DeviceQueue) -> RxRelay {
        RxRelay(queue)
    }

    /// The ring itself: to publish what was filled, and for notifications.
    pub fn queue(&mut self) -> &mut DeviceQueue {
        &mut self.0
    }

    /// Copies `frame` to posted buffers, which shows once it is published. Answers `false`, with nothing done, if too
    /// few are posted: then [`DeviceQueue::enable_kicks`] tells when more are.
    ///
    /// # Errors
    /// The driver lied.
    pub fn give(&mut self, frame: &mut Stored) -> Result<bool, RingFault> {
        let Stored { memory, bytes, most_bytes } = frame;
        let (bytes, kept) = (*bytes, &mut memory[..(*bytes).min(*most_bytes)]);
        let mut segments = Segments::new();
        // Buffers of a frame, and in each so many segments.
        let mut chains = arrayvec::ArrayVec::<(u16, usize), { super::device::MAX_SEGMENTS }>::new();
        let mut room = 0;
        while room < bytes {
            if self.0.available()? == 0 || chains.is_full() {
                chains.iter().rev().for_each(|(head, _)| self.0.unpop(*head));
                return Ok(false);
            }
            let head = self.0.pop()?;
            let before = segments.len();
            room += self.0.walk(head, &mut segments)? as usize;
            chains.push((head, segments.len() - before));
        }
        kept[NUM_BUFFERS].copy_from_slice(&(chains.len() as u16).to_le_bytes());
        let (mut kept, mut left, mut segments) = (&*kept, bytes, segments.into_iter());
        for (head, count) in chains {
            let before = left;
            for segment in segments.by_ref().take(count) {
                let length = segment.len() as usize;
                let (here, beyond) = kept.split_at(kept.len().min(length));
                // SAFETY: the segment is posted guest memory of at least this length, which the queue keeps mapped.
                unsafe { segment.write(here) };
                (kept, left) = (beyond, left.saturating_sub(length));
            }
            self.0.push_used(head, (before - left) as u32);
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    //! A frame of any size goes from a driver's transmit ring to another's receive ring and is the same, as far as it is kept.
    use super::*;
    use crate::mem::GuestMemory;
    use crate::ring::device::Direction;
    use crate::ring::driver::{DriverFeatures, DriverQueue};
    use crate::ring::{QueueAddrs, device};
    use alloc::sync::Arc;
    use alloc::vec;
    use proptest::prelude::*;

    const SIZE: u16 = 64;
    const RING_BYTES: u64 = 0x1000;
    const MEMORY_BYTES: usize = 1 << 18;

    fn driver(memory: &Arc<GuestMemory>) -> DriverQueue<u32> {
        DriverQueue::new(memory, SIZE, QueueAddrs::contiguous(0, SIZE), DriverFeatures::default()).unwrap()
    }

    fn bytes(memory: &GuestMemory, addr: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        // SAFETY: the memory is mapped and as long, and nobody writes meanwhile.
        unsafe { memory.translate_whole(addr, len as u32).unwrap().read(&mut bytes) };
        bytes
    }

    proptest! {
        #[test]
        fn a_frame_arrives_as_it_was_sent(
            frame in prop::collection::vec(any::<u8>(), 1..5_000),
            parts in 1..5_usize,
            buffer_bytes in 12..1_500_u32,
            kept_bytes in prop_oneof![Just(MAX_FRAME_BYTES), MIN_FRAME_BYTES..5_000],
        ) {
            let memory = Arc::new(GuestMemory::anonymous(MEMORY_BYTES));
            let (mut sender, features) = (driver(&memory), device::QueueFeatures::default());
            let layout = sender.layout();
            let mut tx = TxRelay::new(DeviceQueue::new(memory.clone(), layout, Direction::Readable, features));
            // SAFETY: the memory is mapped and as long, and nobody reads meanwhile.
            unsafe { memory.translate_whole(RING_BYTES, frame.len() as u32).unwrap().write(&frame) };
            let chain: Vec<_> = (0..parts)
                .map(|part| {
                    let (start, end) = (frame.len() * part / parts, frame.len() * (part + 1) / parts);
                    (RING_BYTES + start as u64, (end - start) as u32)
                })
                .collect();
            sender.add(&chain, &[], 7).unwrap();
            sender.offer();
            let mut stored = Stored::beginning(kept_bytes);
            let taken = tx.take(&mut stored).unwrap();
            tx.queue().publish();
            prop_assert_eq!(sender.pop_used().unwrap().map(|used| used.token), Some(7));
            if frame.len() < VNET_HDR_BYTES + MIN_FRAME_BYTES {
                prop_assert_eq!(taken, Taken::Nonsense);
                return Ok(());
            }
            prop_assert_eq!((taken, tx.take(&mut Stored::default())), (Taken::Frame, Ok(Taken::Nothing)));
            prop_assert_eq!(&stored.destination()[..], &frame[VNET_HDR_BYTES..][..6]);

            let memory = Arc::new(GuestMemory::anonymous(MEMORY_BYTES));
            let mut receiver = driver(&memory);
            let layout = receiver.layout();
            let mut rx = RxRelay::new(DeviceQueue::new(memory.clone(), layout, Direction::Writable, features));
            prop_assert_eq!(rx.give(&mut stored), Ok(false));
            let place = |index: u32| RING_BYTES + u64::from(index * buffer_bytes);
            for index in 0..u32::from(SIZE) {
                receiver.add(&[], &[(place(index), buffer_bytes)], index).unwrap();
            }
            receiver.offer();
            let fits = frame.len() <= usize::from(SIZE) * buffer_bytes as usize;
            prop_assert_eq!(rx.give(&mut stored), Ok(fits));
            rx.queue().publish();
            let mut arrived = Vec::new();
            while let Some(used) = receiver.pop_used().unwrap() {
                arrived.extend(bytes(&memory, place(used.token), used.bytes as usize));
            }
            if fits {
                let buffers = frame.len().div_ceil(buffer_bytes as usize) as u16;
                let mut expected = frame;
                expected[NUM_BUFFERS].copy_from_slice(&buffers.to_le_bytes());
                // The receiver's memory was zeros.
                expected.iter_mut().skip(VNET_HDR_BYTES + kept_bytes).for_each(|byte| *byte = 0);
                prop_assert_eq!(arrived, expected);
            } else {
                prop_assert!(arrived.is_empty());
            }
        }
    }
}
