//! Who has how many places of a receiver's internal queue: two that flood a third get equal shares, whoever enters
//! more often.
//!
//! The queue is served in the order of arrival, so a sender's share of what is delivered is its share of the places.
//! While the queue is half empty, everybody takes what it needs. Beyond that a sender has no more places than the
//! capacity divided by the senders that are *active*: that have offered a frame since the queue was last served all
//! through. A sender with nothing queued at the moment thus keeps its share for when it comes again, and one that has
//! stopped gives it up.
//!
//! Senders share an account if their numbers are equal modulo [`ACCOUNTS`]: those then share a share.
//!
//! Cost where nobody floods: an atomic addition and a store a batch, and an atomic subtraction a run of frames
//! taken. All accounts are counted only when the queue is more than half full.

use crate::api::PortId;
use crate::frame::FrameRef;
use crate::inbox::Inbox;
use crate::sync::atomic::{AtomicU32, AtomicU64, Ordering};

pub(crate) const ACCOUNTS: usize = 32;

/// The accounts of one queue.
pub(crate) struct Shares {
    accounts: [Account; ACCOUNTS],
}

#[derive(Default)]
struct Account {
    /// Places that it has, or is about to.
    places: AtomicU32,
    /// It is active until so many frames were taken from the queue, ever.
    active_until: AtomicU64,
}

impl Shares {
    pub(crate) fn new() -> Shares {
        Shares { accounts: core::array::from_fn(|_| Account::default()) }
    }

    fn account(&self, sender: PortId) -> &Account {
        &self.accounts[usize::from(sender.0) % ACCOUNTS]
    }

    /// How many of `count` frames `sender` may put into `queue`, which these are the accounts of. Those count as its
    /// places from now on; what does not fit all the same is to be [given back](Shares::give_back).
    #[inline]
    pub(crate) fn admit(&self, queue: &Inbox, sender: PortId, count: usize) -> usize {
        let account = self.account(sender);
        let capacity = queue.capacity();
        let before = account.places.fetch_add(count as u32, Ordering::Relaxed) as usize;
        let taken = queue.taken();
        account.active_until.store(taken + capacity as u64 + 1, Ordering::Relaxed);
        if queue.len() + count <= capacity / 2 {
            return count;
        }
        let active = |account: &&Account| account.active_until.load(Ordering::Relaxed) > taken;
        // At least one: the sender itself.
        let share = capacity / self.accounts.iter().filter(active).count().max(1);
        let admitted = count.min(share.saturating_sub(before));
        self.give_back(sender, count - admitted);
        admitted
    }

    /// `sender` has so many places fewer.
    #[inline]
    pub(crate) fn give_back(&self, sender: PortId, count: usize) {
        if count > 0 {
            self.account(sender).places.fetch_sub(count as u32, Ordering::Relaxed);
        }
    }

    /// The frames in these words of the queue were taken.
    #[inline]
    pub(crate) fn taken(&self, words: &[u64]) {
        let Some(first) = words.first() else { return };
        // Usually all have one sender, which is seen without a branch a word.
        if FrameRef::have_same_port(words.iter().fold(0, |differ, word| differ | (word ^ first)), 0) {
            return self.give_back_run(words);
        }
        words.chunk_by(|a, b| FrameRef::have_same_port(*a, *b)).for_each(|run| self.give_back_run(run));
    }

    /// The frames in these words, of one sender, were taken.
    #[inline]
    fn give_back_run(&self, run: &[u64]) {
        if let Some(first) = run.first().and_then(|word| FrameRef::from_word(*word)) {
            self.give_back(first.port(), run.len());
        }
    }
}

#[cfg(test)]
mod tests {
    //! Shares of a queue that is fuller than half, and none where it is not.
    use super::*;
    use crate::frame::NO_EDIT;

    const CAPACITY: usize = 64;

    struct Queue {
        inbox: Inbox,
        shares: Shares,
    }

    impl Queue {
        fn new() -> Queue {
            Queue { inbox: Inbox::new(CAPACITY), shares: Shares::new() }
        }

        fn offer(&self, sender: u16, count: usize) -> usize {
            let sender = PortId(sender);
            let admitted = self.shares.admit(&self.inbox, sender, count);
            let frames = (0..admitted).map(|slot| FrameRef::new(sender, slot as u16, NO_EDIT, 0).word());
            let put = self.inbox.put(frames);
            self.shares.give_back(sender, admitted - put);
            put
        }

        /// Takes up to so many frames, and answers how many of them were of each sender.
        fn take(&self, count: usize) -> [usize; 4] {
            let mut words = [0; CAPACITY];
            let seen = self.inbox.peek(&mut words[..count]);
            self.inbox.take(seen);
            self.shares.taken(&words[..seen]);
            let of = |sender| {
                let frames = words[..seen].iter().filter_map(|word| FrameRef::from_word(*word));
                frames.filter(|frame| frame.port() == PortId(sender)).count()
            };
            [of(0), of(1), of(2), of(3)]
        }
    }

    #[test]
    fn alone_a_sender_has_all_places() {
        let queue = Queue::new();
        assert_eq!((queue.offer(0, 40), queue.offer(0, 40)), (40, 24));
        assert_eq!(queue.take(64), [64, 0, 0, 0]);
        assert_eq!(queue.offer(0, 70), 64);
    }

    #[test]
    fn beside_another_it_has_half_of_them_and_later_all_again() {
        let queue = Queue::new();
        assert_eq!((queue.offer(0, 32), queue.offer(1, 1)), (32, 1), "the first half is for all");
        assert_eq!((queue.offer(0, 1), queue.offer(1, 40)), (0, 31));
        assert_eq!(queue.take(16), [16, 0, 0, 0]);
        assert_eq!((queue.offer(0, 40), queue.offer(1, 40)), (16, 0));
        // The other stops: its share is kept for it until the queue was served all through once more.
        assert_eq!(queue.take(64), [32, 32, 0, 0]);
        assert_eq!(queue.offer(0, 64), 32);
        assert_eq!(queue.take(64), [32, 0, 0, 0]);
        assert_eq!(queue.offer(0, 64), 64);
    }

    /// Holds that shares are equal however much more often one of two flooding senders enters.
    #[test]
    fn shares_do_not_depend_on_who_enters_more_often() {
        for (a, b) in [(1, 1), (1, 2), (1, 5), (3, 1), (7, 2)] {
            let queue = Queue::new();
            let mut taken = [0; 2];
            for _ in 0..1_000 {
                for _ in 0..a {
                    queue.offer(0, 50);
                }
                for _ in 0..b {
                    queue.offer(1, 50);
                }
                let [of_a, of_b, ..] = queue.take(16);
                taken = [taken[0] + of_a, taken[1] + of_b];
            }
            assert_eq!(taken[0] + taken[1], 16_000, "the receiver never waits");
            assert!(taken[0].abs_diff(taken[1]) < 16_000 / 20, "entering {a} and {b} times gives {taken:?}");
        }
    }

    proptest::proptest! {
        /// Holds that the accounts add up to the queue, whatever happens, and are even when it is empty.
        #[test]
        fn accounts_add_up(steps in proptest::collection::vec((0_u16..5, 0_usize..80), 0..100)) {
            let queue = Queue::new();
            for (who, count) in steps {
                match who {
                    4 => drop(queue.take(count.min(CAPACITY))),
                    sender => assert!(queue.offer(sender, count) <= count),
                }
                let places = queue.shares.accounts.iter().map(|account| account.places.load(Ordering::Relaxed));
                assert_eq!(places.sum::<u32>() as usize, queue.inbox.len());
            }
        }
    }
}
