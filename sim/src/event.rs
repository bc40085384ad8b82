//! The one order of all that happens: by time, and among what happens at the same time by when it was decided.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

/// Events to come.
pub(crate) struct Events<E> {
    heap: BinaryHeap<Entry<E>>,
    decided: u64,
}

struct Entry<E> {
    at_ns: u64,
    number: u64,
    event: E,
}

impl<E> Entry<E> {
    fn place(&self) -> (u64, u64) {
        (self.at_ns, self.number)
    }
}

impl<E> Ord for Entry<E> {
    /// The earliest is the greatest, as the heap gives out the greatest.
    fn cmp(&self, other: &Entry<E>) -> Ordering {
        other.place().cmp(&self.place())
    }
}

impl<E> PartialOrd for Entry<E> {
    fn partial_cmp(&self, other: &Entry<E>) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<E> PartialEq for Entry<E> {
    fn eq(&self, other: &Entry<E>) -> bool {
        self.place() == other.place()
    }
}

impl<E> Eq for Entry<E> {}

impl<E> Events<E> {
    pub(crate) fn new() -> Events<E> {
        Events { heap: BinaryHeap::new(), decided: 0 }
    }

    /// Has `event` happen at `at_ns`, behind all that were to happen then.
    pub(crate) fn push(&mut self, at_ns: u64, event: E) {
        self.decided += 1;
        self.heap.push(Entry { at_ns, number: self.decided, event });
    }

    /// When the next event happens, if there is one.
    pub(crate) fn next_ns(&self) -> Option<u64> {
        self.heap.peek().map(|entry| entry.at_ns)
    }

    /// The next event and its time.
    pub(crate) fn pop(&mut self) -> Option<(u64, E)> {
        self.heap.pop().map(|entry| (entry.at_ns, entry.event))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Events come in the order of their times, and those of one time in the order in which they were decided.
        #[test]
        fn the_order_is_total(times in prop::collection::vec(0..20_u64, 0..100)) {
            let mut events = Events::new();
            times.iter().enumerate().for_each(|(number, at)| events.push(*at, number));
            let mut expected: Vec<_> = times.iter().copied().zip(0..).collect();
            expected.sort_by_key(|(at, _)| *at);
            prop_assert_eq!(std::iter::from_fn(|| events.pop()).collect::<Vec<_>>(), expected);
        }
    }
}
