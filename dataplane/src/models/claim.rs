//! Cores that want a thing at once: one has it at a time, no wish is lost, and what a core wrote before it left word
//! is there when its word is served.

use super::{check, spawn};
use crate::claim::{Claim, Word};
use crate::sync::atomic::{AtomicU32, Ordering};
use alloc::sync::Arc;

const WORDS: [Word; 3] = [Word::SERVE, Word::COMPLETE, Word::EXPIRE];

struct Shared {
    claim: Claim<Served>,
    /// What each core wrote before it asked for its word's work.
    wrote: [AtomicU32; 3],
}

/// What the work has seen of each core.
#[derive(Clone, Copy, Default)]
struct Served([u32; 3]);

fn ask(shared: &Shared, core: usize) {
    shared.wrote[core].store(1, Ordering::Relaxed);
    shared.claim.run(WORDS[core], |served, word| {
        for (core, _) in WORDS.iter().enumerate().filter(|(_, of)| word.has(**of)) {
            served.0[core] = shared.wrote[core].load(Ordering::Relaxed);
        }
    });
}

/// Caught: a relaxed exchange when word is left or the claim is taken (either half of its order), a relaxed swap by
/// the holder that finds words, a relaxed exchange when it lets go, and letting go by a plain store.
#[test]
fn every_word_is_served_after_what_was_written_before_it() {
    check(|| {
        let shared = Arc::new(Shared { claim: Claim::new(Served::default()), wrote: Default::default() });
        let one = spawn(&shared, |shared| ask(shared, 0));
        let other = spawn(&shared, |shared| ask(shared, 1));
        ask(&shared, 2);
        one.join().unwrap();
        other.join().unwrap();
        let claimed = shared.claim.run(Word::SERVE, |served, _| assert_eq!(served.0, [1; 3]));
        assert!(claimed, "nobody has the claim any more");
    });
}
