//! The in-flight region: which chains the switch had taken and not yet given back, in memory that outlives it
//! ("Inflight I/O tracking"). The front-end keeps the file and hands it to the switch that comes after a crash, which
//! then takes those chains up again. What is written in each queue's part is the ring's matter.
//!
//! ```text
//!   | queue 0 | queue 1 | ...      each a multiple of 64 bytes, as libvhost-user and DPDK have it
//!     split     16 bytes, then 16 for each descriptor
//!     packed    32 bytes, then 32 for each descriptor
//! ```

use super::event::EventFd;
use super::memory::{MAX_MAPPED_BYTES, MapFault, Mapping};
use super::message::InflightDescription;
use crate::mem::Segment;
use crate::ring::inflight::{InflightError, InflightSplit};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use std::os::fd::OwnedFd;
use std::sync::Arc;

const ALIGN: u64 = 64;
/// Of a split queue's part: bytes before its descriptors' states, and of each of those.
const SPLIT_BYTES: (u64, u64) = (16, 16);
/// The same of a packed queue's part.
const PACKED_BYTES: (u64, u64) = (32, 32);

/// Bytes of a queue's part.
fn queue_bytes(queue_size: u16, packed: bool) -> u64 {
    let (head, each) = if packed { PACKED_BYTES } else { SPLIT_BYTES };
    (head + each * u64::from(queue_size)).next_multiple_of(ALIGN)
}

/// Why an in-flight region cannot be made or used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "each field is named in the message")]
pub enum InflightFault {
    /// More queues than the port has, or entries than a ring has.
    #[error("an in-flight region of {queues} queues of {queue_size} entries")]
    Shape { queues: u16, queue_size: u16 },
    /// What came back has not the room that its queues take, or lies askew.
    #[error("an in-flight region of {bytes} bytes at {offset:#x}, of {needed} to be")]
    Bytes { bytes: u64, offset: u64, needed: u64 },
    /// The file could not be made or mapped.
    #[error("in-flight region: {0}")]
    Map(#[from] MapFault),
}

/// The region of all of a port's queues, mapped.
#[derive(Debug)]
pub struct InflightRegion {
    mapping: Mapping,
    description: InflightDescription,
    packed: bool,
}

impl InflightRegion {
    /// Makes the file of a region for `queues` queues of `queue_size` entries: zeros, as nothing is in flight.
    pub fn create(
        queues: u16,
        queue_size: u16,
        packed: bool,
    ) -> Result<(InflightDescription, OwnedFd), InflightFault> {
        let bytes = u64::from(queues) * queue_bytes(queue_size, packed);
        let made = memfd_create("vhost-user-inflight", MemfdFlags::CLOEXEC)
            .and_then(|file| ftruncate(&file, bytes).map(|()| file));
        Ok((InflightDescription::new(bytes, queues, queue_size), made.map_err(MapFault::System)?))
    }

    /// Maps the region that the front-end gave back. `lost` is signalled if it truncates it.
    pub fn map(
        description: InflightDescription,
        file: &OwnedFd,
        packed: bool,
        lost: &Arc<EventFd>,
    ) -> Result<InflightRegion, InflightFault> {
        let InflightDescription { mmap_size: bytes, mmap_offset: offset, queues, queue_size, .. } =
            description;
        let needed = u64::from(queues) * queue_bytes(queue_size, packed);
        if bytes < needed || !offset.is_multiple_of(8) {
            return Err(InflightFault::Bytes { bytes, offset, needed });
        }
        let mapping = Mapping::new(file, offset, bytes, MAX_MAPPED_BYTES, lost)?;
        Ok(InflightRegion { mapping, description, packed })
    }

    /// The record of a split queue of `size` entries; none if the region has none for it.
    ///
    /// # Errors
    /// What stands there is no record of such a queue.
    pub fn record(
        self: &Arc<InflightRegion>,
        queue: u16,
        size: u16,
    ) -> Result<Option<InflightSplit>, InflightError> {
        let Some(part) = self.queue(queue, size).filter(|_| !self.packed) else { return Ok(None) };
        // SAFETY: the part lies in our mapping, which the record keeps, and which is reached by address alone.
        unsafe { InflightSplit::new(part, self.clone(), size) }.map(Some)
    }

    /// Whether it is one of packed queues, or else of split ones: it has another layout.
    pub(super) fn is_packed(&self) -> bool {
        self.packed
    }

    /// The part of a queue of `size` entries, if there is one for it.
    fn queue(&self, queue: u16, size: u16) -> Option<Segment> {
        let InflightDescription { mmap_offset, queues, queue_size, .. } = self.description;
        let bytes = queue_bytes(queue_size, self.packed);
        let at = self.mapping.at(mmap_offset + u64::from(queue % queues.max(1)) * bytes);
        (queue < queues && size == queue_size).then(|| Segment::new(at, bytes as u32))
    }

    /// Whether the front-end truncated it.
    pub fn is_lost(&self) -> bool {
        self.mapping.is_lost()
    }
}

#[cfg(test)]
mod tests {
    //! A region has the room that its queues take, or is refused; each queue's part lies behind the one before it.
    use super::*;

    #[test]
    fn a_region_has_the_room_that_it_needs() {
        let lost = Arc::new(EventFd::new().unwrap());
        let (description, file) = InflightRegion::create(2, 8, false).unwrap();
        assert_eq!(description.mmap_size, 2 * 192, "16 bytes and 8 times 16, in whole 64");
        let fault = |change: fn(&mut InflightDescription), packed| {
            let mut changed = description;
            change(&mut changed);
            InflightRegion::map(changed, &file, packed, &lost).err()
        };
        let bytes = |bytes, offset, needed| Some(InflightFault::Bytes { bytes, offset, needed });
        assert_eq!(fault(|region| region.mmap_size = 383, false), bytes(383, 0, 384));
        assert_eq!(fault(|region| region.mmap_offset = 4, false), bytes(384, 4, 384));
        assert_eq!(fault(|_| {}, true), bytes(384, 0, 640), "packed queues take more");
        let beyond = MapFault::BeyondFile { end: 392, file_bytes: 384 };
        assert_eq!(fault(|region| region.mmap_offset = 8, false), Some(InflightFault::Map(beyond)));

        let region = InflightRegion::map(description, &file, false, &lost).unwrap();
        let [first, second] = [0, 1].map(|queue| region.queue(queue, 8).unwrap());
        assert_eq!(second.as_ptr() as usize - first.as_ptr() as usize, 192);
        assert_eq!(second.len(), 192);
        assert!(region.queue(2, 8).is_none() && region.queue(0, 4).is_none());
    }
}
