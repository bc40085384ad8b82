//! One ring as the front-end describes it, message by message, until all is known that it takes to run.

use super::event::EventFd;
use super::memory::MemoryTable;
use super::message::VringAddr;
use super::session::SessionFault;
use crate::ring::QueueAddrs;
use std::sync::Arc;

/// The most entries of a ring (VIRTIO 1.2, clauses 2.7 and 2.8).
const MAX_SIZE: u32 = 32_768;
/// The first descriptor of a packed ring, for both of its counters; both wrap counters begin with 1 (clause 2.8.1).
const PACKED_START: u32 = 0x8000_8000;

/// A ring's configuration.
#[derive(Debug, Default)]
pub(super) struct Vring {
    size: Option<u16>,
    addrs: Option<VringAddr>,
    base: Option<u32>,
    pub(super) kick: Option<Arc<EventFd>>,
    pub(super) call: Option<Arc<EventFd>>,
    pub(super) err: Option<Arc<EventFd>>,
    pub(super) enabled: bool,
    /// While it runs, its size and the guest addresses of its parts.
    pub(super) running: Option<(u16, QueueAddrs)>,
}

impl Vring {
    /// A front-end changes size, place and base of a ring that is stopped.
    fn stopped(&mut self, queue: u16) -> Result<&mut Vring, SessionFault> {
        if self.running.is_some() { Err(SessionFault::RingRuns { queue }) } else { Ok(self) }
    }

    pub(super) fn set_size(&mut self, queue: u16, size: u32) -> Result<(), SessionFault> {
        if !(1..=MAX_SIZE).contains(&size) {
            return Err(SessionFault::RingSize { queue, size });
        }
        if self.size.map(u32::from) != Some(size) {
            self.stopped(queue)?.size = Some(size as u16);
        }
        Ok(())
    }

    pub(super) fn set_addrs(&mut self, queue: u16, addrs: VringAddr) -> Result<(), SessionFault> {
        if addrs.flags != 0 {
            return Err(SessionFault::RingFlags { queue, flags: addrs.flags });
        }
        if self.addrs != Some(addrs) {
            self.stopped(queue)?.addrs = Some(addrs);
        }
        Ok(())
    }

    pub(super) fn set_base(&mut self, queue: u16, base: u32) -> Result<(), SessionFault> {
        self.stopped(queue)?.base = Some(base);
        Ok(())
    }

    /// Where the ring stood when it was stopped, or is to begin.
    pub(super) fn keep_base(&mut self, base: u32) {
        self.base = Some(base);
    }

    /// Where it stands: of a split ring the available index; of a packed one that of the next available
    /// descriptor with its wrap counter (bits 0-15), and the same of the next used (bits 16-31).
    pub(super) fn base(&self, packed: bool) -> u32 {
        match self.base {
            // DPDK's front-end says the first half alone, as its back-end reads no more.
            Some(base) if packed && base >> 16 == 0 => base << 16 | base,
            Some(base) => base,
            None if packed => PACKED_START,
            None => 0,
        }
    }

    /// Has the ring run if all is known that it takes, but for its features. Answers whether it began to.
    pub(super) fn start(
        &mut self,
        queue: u16,
        packed: bool,
        memory: &MemoryTable,
    ) -> Result<bool, SessionFault> {
        let (Some(size), Some(addrs), Some(_), None) = (self.size, self.addrs, &self.kick, self.running)
        else {
            return Ok(false);
        };
        if memory.is_empty() {
            return Ok(false);
        }
        if !packed && !size.is_power_of_two() {
            return Err(SessionFault::RingSize { queue, size: size.into() });
        }
        let base = self.base(packed);
        let slots = [base & 0x7fff, base >> 16 & 0x7fff];
        let possible =
            if packed { slots.iter().all(|&slot| slot < u32::from(size)) } else { base >> 16 == 0 };
        if !possible {
            return Err(SessionFault::RingBase { queue, base });
        }
        self.running = Some((size, located(queue, size, addrs, packed, memory)?));
        Ok(true)
    }

    /// Finds the ring in memory that changed. Answers whether its guest addresses are others than before.
    pub(super) fn relocate(
        &mut self,
        queue: u16,
        packed: bool,
        memory: &MemoryTable,
    ) -> Result<bool, SessionFault> {
        let (Some((size, before)), Some(addrs)) = (self.running, self.addrs) else { return Ok(false) };
        let now = located(queue, size, addrs, packed, memory)?;
        self.running = Some((size, now));
        Ok(now != before)
    }
}

/// The guest addresses of a ring's parts, each of which must lie in one region.
fn located(
    queue: u16,
    size: u16,
    addrs: VringAddr,
    packed: bool,
    memory: &MemoryTable,
) -> Result<QueueAddrs, SessionFault> {
    let entries = u32::from(size);
    // A packed ring's event areas are 4 bytes each (clause 2.8.14).
    let (avail_bytes, used_bytes) = if packed { (4, 4) } else { (6 + 2 * entries, 6 + 8 * entries) };
    let part = |addr: u64, bytes: u32| -> Result<u64, SessionFault> {
        let outside = SessionFault::RingOutsideMemory { queue, addr };
        let guest_addr = memory.guest_addr(addr).ok_or(outside)?;
        memory.memory().translate_whole(guest_addr, bytes).map_err(|_| outside)?;
        Ok(guest_addr)
    };
    Ok(QueueAddrs {
        desc: part(addrs.descriptor, 16 * entries)?,
        avail: part(addrs.available, avail_bytes)?,
        used: part(addrs.used, used_bytes)?,
    })
}
