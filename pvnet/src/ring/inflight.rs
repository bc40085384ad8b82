//! A record of the chains of a split queue that are out, in memory that outlives the switch (vhost-user, "Inflight I/O
//! tracking"): whoever takes the queue over after a crash knows which chains to do again.
//!
//! ```text
//!   0            8         10         12                16
//!   | features   | version | desc_num | last_batch_head | used_idx | for each descriptor, 16 bytes:
//!                                                                  | inflight  (5 unused)  next  counter |
//! ```
//!
//! A chain is marked when it is taken, with a counter that tells the order. Giving chains back takes three steps, and
//! whichever was the last before a crash, [`InflightSplit::recover`] finds what is true: the chains of a batch are
//! linked, the last first; the used index is published; the chains' marks are removed and the index noted.
//!
//! The front-end shares the record, so nothing that is read from it is relied on for more than which chains are
//! done again.

use crate::mem::Segment;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU8, AtomicU16, AtomicU64, Ordering};

const HEADER_BYTES: usize = 16;
const ENTRY_BYTES: usize = 16;
const VERSION: u16 = 1;

/// Why memory is no record of a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InflightError {
    /// It is too short, or not 8-byte aligned.
    #[error("a record of {bytes} bytes for a queue of {size}, or one that is not aligned")]
    Bytes {
        /// Bytes that there are.
        bytes: u32,
        /// Descriptors of the queue.
        size: u16,
    },
    /// It was begun by another version, or for a queue of another size.
    #[error("a record of version {version} for a queue of {descriptors}")]
    Foreign {
        /// Its version.
        version: u16,
        /// Descriptors of the queue that it was begun for.
        descriptors: u16,
    },
}

/// The record of one split queue.
pub struct InflightSplit {
    start: *mut u8,
    size: u16,
    /// The order of the next chain that is taken.
    counter: u64,
    /// Chains that were given back and are not published, in memory of our own.
    batch: Vec<u16>,
    _owner: Arc<dyn Send + Sync>,
}

// SAFETY: the record's memory is accessed only by atomics, and `_owner`, which is Send and Sync, keeps it mapped.
unsafe impl Send for InflightSplit {}
// SAFETY: as above.
unsafe impl Sync for InflightSplit {}

impl InflightSplit {
    /// Bytes that the record of a queue of `size` descriptors takes.
    pub const fn bytes(size: u16) -> usize {
        HEADER_BYTES + ENTRY_BYTES * size as usize
    }

    /// The record in `region` of a queue of `size` descriptors. One of zeros is begun.
    ///
    /// # Errors
    /// The region cannot be that record.
    ///
    /// # Safety
    /// The region is mapped readable and writable for as long as `owner` lives, and no Rust reference to it exists.
    pub unsafe fn new(
        region: Segment,
        owner: Arc<dyn Send + Sync>,
        size: u16,
    ) -> Result<InflightSplit, InflightError> {
        let start = region.as_ptr();
        if (region.len() as usize) < InflightSplit::bytes(size) || !(start as usize).is_multiple_of(8) {
            return Err(InflightError::Bytes { bytes: region.len(), size });
        }
        let batch = Vec::with_capacity(size.into());
        let record = InflightSplit { start, size, counter: 0, batch, _owner: owner };
        let version = u16::from_le(record.version().load(Ordering::Acquire));
        let descriptors = u16::from_le(record.descriptors().load(Ordering::Relaxed));
        match (version, descriptors) {
            (0, _) => {
                record.descriptors().store(size.to_le(), Ordering::Relaxed);
                record.version().store(VERSION.to_le(), Ordering::Release);
            }
            (VERSION, descriptors) if descriptors == size => {}
            _ => return Err(InflightError::Foreign { version, descriptors }),
        }
        Ok(record)
    }

    #[inline]
    fn word(&self, offset: usize) -> &AtomicU16 {
        // SAFETY: `new` checked length and alignment, and `_owner` keeps the memory; every offset that is asked for is
        // even and lies in the header or in the entry of a descriptor below the size (entries alike).
        unsafe { AtomicU16::from_ptr(self.start.add(offset).cast()) }
    }

    fn version(&self) -> &AtomicU16 {
        self.word(8)
    }

    fn descriptors(&self) -> &AtomicU16 {
        self.word(10)
    }

    fn last_batch_head(&self) -> &AtomicU16 {
        self.word(12)
    }

    fn used_idx(&self) -> &AtomicU16 {
        self.word(14)
    }

    #[inline]
    fn entry(&self, head: u16) -> usize {
        assert!(head < self.size, "chain {head} of a queue of {}", self.size);
        HEADER_BYTES + ENTRY_BYTES * usize::from(head)
    }

    #[inline]
    fn is_out(&self, head: u16) -> &AtomicU8 {
        // SAFETY: as for `word`.
        unsafe { AtomicU8::from_ptr(self.start.add(self.entry(head))) }
    }

    #[inline]
    fn next(&self, head: u16) -> &AtomicU16 {
        self.word(self.entry(head) + 6)
    }

    #[inline]
    fn order(&self, head: u16) -> &AtomicU64 {
        // SAFETY: as for `word`; an entry's last 8 bytes are 8-byte aligned.
        unsafe { AtomicU64::from_ptr(self.start.add(self.entry(head) + 8).cast()) }
    }

    /// The chain `head` was taken.
    #[inline]
    pub fn take(&mut self, head: u16) {
        self.order(head).store(self.counter.to_le(), Ordering::Relaxed);
        self.counter = self.counter.wrapping_add(1);
        // Release, here and below: a process that is killed leaves its stores in this order.
        self.is_out(head).store(1, Ordering::Release);
    }

    /// The chain `head` was put back on offer, as nothing was done with it.
    #[inline]
    pub fn put_back(&mut self, head: u16) {
        self.is_out(head).store(0, Ordering::Release);
    }

    /// The chain `head` was given back, and is not yet published.
    #[inline]
    pub fn give_back(&mut self, head: u16) {
        let last = self.last_batch_head().load(Ordering::Relaxed);
        self.next(head).store(last, Ordering::Relaxed);
        self.last_batch_head().store(head.to_le(), Ordering::Release);
        self.batch.push(head);
    }

    /// What was given back was published, up to `used_idx`.
    #[inline]
    pub fn published(&mut self, used_idx: u16) {
        for at in 0..self.batch.len() {
            self.is_out(self.batch[at]).store(0, Ordering::Release);
        }
        self.batch.clear();
        self.used_idx().store(used_idx.to_le(), Ordering::Release);
    }

    /// The chains that are out although `used_idx` chains were published, in the order in which they were taken: to be
    /// done again. Chains that are taken from here on come after them.
    pub fn recover(&mut self, used_idx: u16) -> Vec<u16> {
        let noted = u16::from_le(self.used_idx().load(Ordering::Relaxed));
        let mut head = u16::from_le(self.last_batch_head().load(Ordering::Relaxed));
        // The last batch was published, and the crash came before its marks were removed.
        for _ in 0..used_idx.wrapping_sub(noted).min(self.size) {
            if head >= self.size {
                break;
            }
            self.is_out(head).store(0, Ordering::Release);
            head = u16::from_le(self.next(head).load(Ordering::Relaxed));
        }
        self.used_idx().store(used_idx.to_le(), Ordering::Release);

        let out = (0..self.size).filter(|head| self.is_out(*head).load(Ordering::Relaxed) == 1);
        let order = |head| u64::from_le(self.order(head).load(Ordering::Relaxed));
        let mut chains: Vec<(u64, u16)> = out.map(|head| (order(head), head)).collect();
        chains.sort_unstable();
        self.counter = chains.last().map_or(0, |(order, _)| order.wrapping_add(1));
        chains.into_iter().map(|(_, head)| head).collect()
    }
}

#[cfg(test)]
mod tests {
    //! A device that is killed leaves a record from which the next one does exactly what is undone, in order.
    use super::*;
    use crate::mem::GuestMemory;
    use crate::mem::Zeroed;
    use crate::ring::QueueAddrs;
    use crate::ring::device::{DeviceQueue, Direction, QueueFeatures, Segments};
    use crate::ring::driver::{DriverFeatures, DriverQueue};
    use proptest::prelude::*;

    const SIZE: u16 = 8;

    /// A guest and a record that outlive the devices.
    struct Survivors {
        memory: Arc<GuestMemory>,
        driver: DriverQueue<u32>,
        region: Arc<Zeroed>,
    }

    impl Survivors {
        fn new() -> Survivors {
            let memory = Arc::new(GuestMemory::anonymous(0x1000));
            let addrs = QueueAddrs::contiguous(0, SIZE);
            let driver = DriverQueue::new(&memory, SIZE, addrs, DriverFeatures::default()).unwrap();
            Survivors { memory, driver, region: Arc::new(Zeroed::new(InflightSplit::bytes(SIZE))) }
        }

        fn record(&self) -> InflightSplit {
            let region = Segment::new(self.region.as_ptr(), InflightSplit::bytes(SIZE) as u32);
            // SAFETY: the record keeps the region, to which no reference is ever made.
            unsafe { InflightSplit::new(region, self.region.clone(), SIZE) }.unwrap()
        }

        fn device(&self) -> DeviceQueue {
            let (layout, features) = (self.driver.layout(), QueueFeatures::default());
            DeviceQueue::recorded(self.memory.clone(), layout, Direction::Readable, features, self.record())
        }
    }

    #[derive(Clone, Copy, Debug)]
    enum Operation {
        Offer,
        Take,
        PutBack,
        GiveBack(usize),
        Publish,
        /// The device is killed, and another takes over.
        Kill,
    }

    fn operation() -> impl Strategy<Value = Operation> {
        prop_oneof![
            3 => Just(Operation::Offer),
            3 => Just(Operation::Take),
            1 => Just(Operation::PutBack),
            2 => any::<usize>().prop_map(Operation::GiveBack),
            2 => Just(Operation::Publish),
            1 => Just(Operation::Kill),
        ]
    }

    proptest! {
        #[test]
        fn every_chain_comes_back_once(operations in prop::collection::vec(operation(), 0..200)) {
            let mut survivors = Survivors::new();
            let mut device = survivors.device();
            let mut tokens = 0;
            // Tokens as the device is to take them; those that it holds; those that it gave back unseen.
            let (mut offered, mut held, mut given) = (Vec::new(), Vec::<(u32, u16)>::new(), Vec::new());
            for operation in operations {
                match operation {
                    Operation::Offer => {
                        let chain = (0x800, tokens + 1);
                        if survivors.driver.add(&[chain], &[], tokens).is_ok() {
                            survivors.driver.publish();
                            offered.push(tokens);
                            tokens += 1;
                        }
                    }
                    Operation::Take | Operation::PutBack => {
                        prop_assert_eq!(usize::from(device.refresh().unwrap()), offered.len());
                        if offered.is_empty() {
                            continue;
                        }
                        let head = match device.pop_single(1) {
                            Some((head, _)) => head,
                            None => device.pop().unwrap(),
                        };
                        prop_assert_eq!(device.walk(head, &mut Segments::new()), Ok(offered[0] + 1));
                        match operation {
                            Operation::Take => held.push((offered.remove(0), head)),
                            _ => device.unpop(head),
                        }
                    }
                    Operation::GiveBack(pick) => {
                        if !held.is_empty() {
                            let (token, head) = held.remove(pick % held.len());
                            device.push_used(head, 0);
                            given.push(token);
                        }
                    }
                    Operation::Publish => {
                        device.publish();
                        for token in given.drain(..) {
                            let used = survivors.driver.pop_used().unwrap();
                            prop_assert_eq!(used.map(|used| used.token), Some(token));
                        }
                        prop_assert!(!survivors.driver.has_used());
                    }
                    Operation::Kill => {
                        device = survivors.device();
                        // What was not published was not done, and comes before what was never taken.
                        let held = held.drain(..).map(|(token, _)| token);
                        let mut again: Vec<u32> = held.chain(given.drain(..)).collect();
                        again.sort_unstable();
                        again.append(&mut offered);
                        offered = again;
                    }
                }
            }
        }
    }

    /// Holds that a batch which was published is not done again, although the crash came before its marks were removed.
    #[test]
    fn a_crash_between_publishing_and_noting_it() {
        let mut survivors = Survivors::new();
        let mut record = survivors.record();
        for token in 0..4 {
            survivors.driver.add(&[(0x800, 1)], &[], token).unwrap();
        }
        survivors.driver.publish();
        assert_eq!(record.recover(0), []);
        (0..4).for_each(|head| record.take(head));
        record.give_back(2);
        record.published(1);
        record.give_back(0);
        record.give_back(3);
        assert_eq!(survivors.record().recover(1), [0, 1, 3], "not published");
        assert_eq!(survivors.record().recover(3), [1], "published, but not noted");
        assert_eq!(survivors.record().recover(3), [1]);
    }

    /// Holds that a record which lies makes nothing worse than chains that are done again or not.
    #[test]
    fn a_record_that_lies() {
        let survivors = Survivors::new();
        let bytes = InflightSplit::bytes(SIZE);
        let record = survivors.record();
        for at in (12..bytes).step_by(2) {
            record.word(at).store(u16::MAX, Ordering::Relaxed);
        }
        assert_eq!(survivors.record().recover(7), [], "no mark is 1");
        (0..SIZE).for_each(|head| record.is_out(head).store(1, Ordering::Relaxed));
        let all = survivors.record().recover(7);
        assert_eq!(all, [0, 1, 2, 3, 4, 5, 6, 7]);
        let mut device = survivors.device();
        assert!(device.refresh().is_err(), "the ring has offered nothing");

        let new = |bytes, size| {
            let region = Segment::new(survivors.region.as_ptr(), bytes);
            // SAFETY: as for `record`.
            unsafe { InflightSplit::new(region, survivors.region.clone(), size) }.err()
        };
        let short = bytes as u32 - 1;
        assert_eq!(new(short, SIZE), Some(InflightError::Bytes { bytes: short, size: SIZE }));
        assert_eq!(new(bytes as u32, 4), Some(InflightError::Foreign { version: 1, descriptors: SIZE }));
        record.version().store(2_u16.to_le(), Ordering::Relaxed);
        assert_eq!(new(bytes as u32, SIZE), Some(InflightError::Foreign { version: 2, descriptors: SIZE }));
    }
}
