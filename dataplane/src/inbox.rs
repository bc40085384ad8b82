//! A bounded queue that any core puts entries into and one core takes them from: a port's internal receive
//! queue, and the way of completed buffers back to their sender.
//!
//! ```text
//!        head            tail                 entry 0: free
//!         v               v                   entry n: n waits
//!   ...0 [n n n 0 n n n n] 0 0 ...
//!               ^ reserved, not yet written: the taker stops here until it is
//! ```
//!
//! Protocol: a core reserves a run of places by moving `tail` (one compare-and-swap a batch), then stores its
//! entries with release. The taker loads entries with acquire, stops at a zero, writes zeros back and then
//! moves `head` with release; a core that loads `head` with acquire and finds room therefore finds zeros there.

use crate::sync::atomic::{AtomicU64, Ordering};
use alloc::boxed::Box;
use core::num::NonZeroU64;
use crossbeam_utils::CachePadded;

/// The queue. Entries are any non-zero word.
pub(crate) struct Inbox {
    head: CachePadded<AtomicU64>,
    tail: CachePadded<AtomicU64>,
    places: Box<[AtomicU64]>,
}

impl Inbox {
    /// A queue with room for `capacity` entries, rounded up to a power of two.
    pub(crate) fn new(capacity: usize) -> Inbox {
        let places = (0..capacity.next_power_of_two()).map(|_| AtomicU64::new(0)).collect();
        Inbox { head: CachePadded::default(), tail: CachePadded::default(), places }
    }

    /// The places for `count` entries from `index` on, of which there are no more than that: those before the end of
    /// the memory, then those from its start.
    #[inline]
    fn run(&self, index: u64, count: usize) -> (&[AtomicU64], &[AtomicU64]) {
        let at = index as usize & (self.places.len() - 1);
        let (start, end) = self.places.split_at(at);
        match end.get(..count) {
            Some(run) => (run, &[]),
            None => (end, &start[..count - end.len()]),
        }
    }

    /// Puts as many of `entries` as there is room for, in order and without another core's in between.
    /// Answers how many.
    #[inline]
    pub(crate) fn put(&self, mut entries: impl ExactSizeIterator<Item = NonZeroU64>) -> usize {
        let mut tail = self.tail.load(Ordering::Relaxed);
        let (mut taken, mut head);
        loop {
            head = self.head.load(Ordering::Acquire);
            // `head` may be newer than `tail`; then the exchange below fails.
            let room = self.places.len() as u64 - tail.saturating_sub(head).min(self.places.len() as u64);
            taken = room.min(entries.len() as u64);
            if taken == 0 {
                return 0;
            }
            match self.tail.compare_exchange_weak(tail, tail + taken, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => break,
                Err(now) => tail = now,
            }
        }
        let (run, rest) = self.run(tail, taken as usize);
        for run in if planted!(ReorderedBatch) { [rest, run] } else { [run, rest] } {
            // In this order: where the places end first, no entry is lost.
            for (place, entry) in run.iter().zip(&mut entries) {
                place.store(entry.get(), Ordering::Release);
            }
        }
        taken as usize
    }

    /// Copies the next waiting entries, up to `into.len()`, without taking them. Answers how many.
    ///
    /// One core at a time: that with the claim on what the queue belongs to.
    #[inline]
    pub(crate) fn peek(&self, into: &mut [u64]) -> usize {
        let head = self.head.load(Ordering::Relaxed);
        let (run, rest) = self.run(head, into.len().min(self.places.len()));
        let mut count = 0;
        for run in [run, rest] {
            for (place, slot) in run.iter().zip(&mut into[count..]) {
                match place.load(Ordering::Acquire) {
                    0 => return count,
                    entry => *slot = entry,
                }
                count += 1;
            }
        }
        count
    }

    /// Takes the first `count` entries, which [`Inbox::peek`] showed.
    #[inline]
    pub(crate) fn take(&self, count: usize) {
        let head = self.head.load(Ordering::Relaxed);
        let (run, rest) = self.run(head, count);
        for run in [run, rest] {
            run.iter().for_each(|place| place.store(0, Ordering::Relaxed));
        }
        self.head.store(head + count as u64, Ordering::Release);
    }

    /// Entries that there is room for.
    #[inline]
    pub(crate) fn capacity(&self) -> usize {
        self.places.len()
    }

    /// Entries that were taken so far.
    #[inline]
    pub(crate) fn taken(&self) -> u64 {
        self.head.load(Ordering::Acquire)
    }

    /// Whether nothing waits, not even reserved.
    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Entries that wait or are about to.
    #[inline]
    pub(crate) fn len(&self) -> usize {
        let head = self.head.load(Ordering::Acquire);
        self.tail.load(Ordering::Acquire).saturating_sub(head) as usize
    }
}

#[cfg(test)]
mod tests {
    //! Order, bounds and losslessness: alone against a VecDeque, and between threads.
    use super::*;
    use std::collections::VecDeque;
    use std::vec::Vec;

    fn entries(range: core::ops::Range<u64>) -> impl ExactSizeIterator<Item = NonZeroU64> {
        let run: Vec<_> = range.map(|n| NonZeroU64::new(n).unwrap()).collect();
        run.into_iter()
    }

    proptest::proptest! {
        #[test]
        fn behaves_as_a_bounded_queue(steps in proptest::collection::vec((0u8..2, 0usize..6), 0..200)) {
            let (inbox, mut model, mut next) = (Inbox::new(8), VecDeque::new(), 1);
            for (step, count) in steps {
                if step == 0 {
                    let put = inbox.put(entries(next..next + count as u64));
                    assert_eq!(put, count.min(8 - model.len()));
                    model.extend(next..next + put as u64);
                    next += put as u64;
                } else {
                    let mut into = [0; 6];
                    let seen = inbox.peek(&mut into[..count]);
                    assert_eq!(seen, count.min(model.len()));
                    assert!(into.iter().zip(&model).take(seen).all(|(a, b)| a == b));
                    inbox.take(seen);
                    model.drain(..seen);
                }
                assert_eq!(inbox.len(), model.len());
            }
        }
    }

    #[test]
    fn between_threads_each_sender_keeps_its_order() {
        const EACH: u64 = 50_000;
        let inbox = Inbox::new(64);
        std::thread::scope(|scope| {
            for sender in 0..2u64 {
                let inbox = &inbox;
                scope.spawn(move || {
                    let (mut next, end) = (sender << 32 | 1, (sender << 32) + EACH + 1);
                    while next < end {
                        next += inbox.put(entries(next..end.min(next + 7))) as u64;
                        std::thread::yield_now();
                    }
                });
            }
            let mut expect = [1, 1 << 32 | 1];
            let mut into = [0; 16];
            while expect != [EACH + 1, (1 << 32) + EACH + 1] {
                let seen = inbox.peek(&mut into);
                for entry in &into[..seen] {
                    let next = &mut expect[(entry >> 32) as usize];
                    assert_eq!(entry, next);
                    *next += 1;
                }
                inbox.take(seen);
                std::thread::yield_now();
            }
        });
    }
}
