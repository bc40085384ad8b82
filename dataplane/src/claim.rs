//! A thing that one core uses at a time, without anyone waiting: a port's transmit side, its receive side.
//!
//! Whoever comes while another has the claim leaves word of what it wanted and goes on; the holder finds
//! the word when it lets go, and does that work too. So nothing is lost and nobody spins.
//!
//! Protocol of the state word: bit 0 is the claim, the others are words. A core that finds the claim taken
//! sets its word in the same atomic step that shows the claim still taken; the holder lets go only in a step
//! that shows no word left.

use crate::sync::UnsafeCell;
use crate::sync::atomic::{AtomicU32, Ordering};

const CLAIMED: u32 = 1;

/// What a core wanted that found the claim taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Word(u32);

impl Word {
    /// Read the ring (again).
    pub(crate) const SERVE: Word = Word(1 << 1);
    /// Give completed buffers back.
    pub(crate) const COMPLETE: Word = Word(1 << 2);
    /// Drop what has waited too long.
    pub(crate) const EXPIRE: Word = Word(1 << 3);
    /// Go on with the rings in other memory.
    pub(crate) const EXCHANGE: Word = Word(1 << 4);

    pub(crate) fn has(self, other: Word) -> bool {
        self.0 & other.0 != 0
    }
}

/// A `T` that one core uses at a time.
pub(crate) struct Claim<T> {
    state: AtomicU32,
    value: UnsafeCell<T>,
}

// SAFETY: the value is reached only by the core that set CLAIMED, and handed on by release and acquire.
unsafe impl<T: Send> Sync for Claim<T> {}

impl<T> Claim<T> {
    pub(crate) fn new(value: T) -> Claim<T> {
        Claim { state: AtomicU32::new(0), value: UnsafeCell::new(value) }
    }

    /// The value, when nobody else can reach it.
    pub(crate) fn into_inner(self) -> T {
        self.value.into_inner()
    }

    /// Does `word`'s work, with the claim: `work` is called with the words to be served until none is left.
    /// Answers false if another core has the claim and does the work.
    #[inline]
    pub(crate) fn run(&self, word: Word, mut work: impl FnMut(&mut T, Word)) -> bool {
        let mut seen = 0;
        loop {
            let next = if seen & CLAIMED == 0 { CLAIMED } else { seen | word.0 };
            match self.state.compare_exchange_weak(seen, next, Ordering::AcqRel, Ordering::Relaxed) {
                Ok(_) if seen & CLAIMED == 0 => break,
                Ok(_) => return false,
                Err(now) => seen = now,
            }
        }
        let mut words = word;
        loop {
            // SAFETY: this core set CLAIMED and has not cleared it.
            work(unsafe { &mut *self.value.get_mut() }, words);
            match self.state.compare_exchange(CLAIMED, 0, Ordering::Release, Ordering::Relaxed) {
                Ok(_) => return true,
                // Acquire: what the core that left word wrote before is read in the next round.
                Err(_) => words = Word(self.state.swap(CLAIMED, Ordering::Acquire) & !CLAIMED),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    //! Words left while the claim is held are served before it is let go.
    use super::*;
    use std::vec::Vec;

    #[test]
    fn a_word_left_meanwhile_is_served() {
        let claim = Claim::new(Vec::new());
        let done = claim.run(Word::SERVE, |log, word| {
            log.push(word);
            if log.len() == 1 {
                assert!(!claim.run(Word::COMPLETE, |_, _| unreachable!("it is claimed")));
                assert!(!claim.run(Word::SERVE, |_, _| unreachable!("it is claimed")));
            }
        });
        assert!(done);
        assert!(claim.run(Word::SERVE, |log, _| {
            assert_eq!(log[0], Word::SERVE);
            assert!(log[1].has(Word::COMPLETE) && log[1].has(Word::SERVE));
            assert_eq!(log.len(), 2);
        }));
    }

    proptest::proptest! {
        /// Holds that each round of the holder's work serves the words that were left during the round before, whichever
        /// they were, and that the claim is let go after a round without any.
        #[test]
        fn each_round_serves_the_words_of_the_round_before(rounds in proptest::collection::vec(1_u32..16, 0..20)) {
            let claim = Claim::new(());
            let mut served = Vec::new();
            let done = claim.run(Word::SERVE, |(), word| {
                if let Some(left) = rounds.get(served.len()) {
                    for bit in [1 << 1, 1 << 2, 1 << 3, 1 << 4] {
                        if left << 1 & bit != 0 {
                            assert!(!claim.run(Word(bit), |(), _| unreachable!("it is claimed")));
                        }
                    }
                }
                served.push(word.0 >> 1);
            });
            assert!(done && claim.run(Word::EXPIRE, |(), word| assert_eq!(word, Word::EXPIRE)));
            assert_eq!((served[0], &served[1..]), (1, &rounds[..]));
        }
    }

    #[test]
    fn two_threads_lose_no_work() {
        let claim = Claim::new(0u64);
        let wanted = core::sync::atomic::AtomicU64::new(0);
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    for _ in 0..100_000 {
                        wanted.fetch_add(1, Ordering::Relaxed);
                        claim.run(Word::SERVE, |done, _| *done = wanted.load(Ordering::Relaxed));
                    }
                });
            }
        });
        assert!(claim.run(Word::COMPLETE, |done, _| assert_eq!(*done, 200_000)));
    }
}
