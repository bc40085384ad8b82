//! The device side of a split queue whose chains in flight are recorded, so that another process can do them again.

use super::device::RingFault;
use super::inflight::InflightSplit;
use super::split::device::SplitDevice;
use crate::mem::Segment;
use alloc::vec::Vec;
use core::ops::{Deref, DerefMut};

/// A queue and its record: its methods are those of [`DeviceQueue`](super::device::DeviceQueue). Those of which the
/// record need not know are the queue's own.
pub(crate) struct RecordedDevice {
    queue: SplitDevice,
    record: InflightSplit,
    /// Chains that were in flight when the record was taken over and are to be taken again, the first one last.
    again: Vec<u16>,
    /// Chains that were taken from the ring since, for want of such.
    taken: u64,
}

impl RecordedDevice {
    /// Begins where the record and the used index of `queue` say.
    pub(crate) fn new(mut queue: SplitDevice, mut record: InflightSplit) -> RecordedDevice {
        let mut again = record.recover(queue.published());
        queue.begin_behind_used(again.len() as u16);
        again.reverse();
        RecordedDevice { queue, record, again, taken: 0 }
    }

    pub(crate) fn available(&mut self) -> Result<u16, RingFault> {
        Ok(self.queue.available()?.saturating_add(self.again.len() as u16))
    }

    pub(crate) fn has_next(&self) -> bool {
        !self.again.is_empty() || self.queue.has_next()
    }

    pub(crate) fn refresh(&mut self) -> Result<u16, RingFault> {
        Ok(self.queue.refresh()?.saturating_add(self.again.len() as u16))
    }

    pub(crate) fn pop(&mut self) -> Result<u16, RingFault> {
        // What is taken again is recorded, and keeps its place in the order.
        if let Some(head) = self.again.pop() {
            return Ok(head);
        }
        let head = self.queue.pop()?;
        self.taken += 1;
        self.record.take(head);
        Ok(head)
    }

    /// Leaves chains that are taken again to [`RecordedDevice::pop`]: they are few.
    pub(crate) fn pop_single(&mut self, bytes: u32) -> Option<(u16, Segment)> {
        if !self.again.is_empty() {
            return None;
        }
        let (head, segment) = self.queue.pop_single(bytes)?;
        self.taken += 1;
        self.record.take(head);
        Some((head, segment))
    }

    pub(crate) fn unpop(&mut self, head: u16) {
        if self.taken == 0 {
            return self.again.push(head);
        }
        self.taken -= 1;
        self.record.put_back(head);
        self.queue.unpop(head);
    }

    pub(crate) fn push_used(&mut self, head: u16, bytes: u32) {
        self.record.give_back(head);
        self.queue.push_used(head, bytes);
    }

    pub(crate) fn push_used_all(&mut self, heads: &[u16]) {
        heads.iter().for_each(|head| self.push_used(*head, 0));
    }

    pub(crate) fn publish(&mut self) {
        self.queue.publish();
        self.record.published(self.queue.published());
    }
}

impl Deref for RecordedDevice {
    type Target = SplitDevice;

    fn deref(&self) -> &SplitDevice {
        &self.queue
    }
}

impl DerefMut for RecordedDevice {
    fn deref_mut(&mut self) -> &mut SplitDevice {
        &mut self.queue
    }
}
