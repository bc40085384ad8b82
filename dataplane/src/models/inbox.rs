//! Two cores put entries, one takes them: all arrive, once each, each core's in its order, and what was written
//! before an entry was put is there for whoever takes it.

use super::{check_bounded, spawn};
use crate::inbox::Inbox;
use crate::sync::UnsafeCell;
use alloc::sync::Arc;
use core::num::NonZeroU64;
use loom::thread;
use std::vec::Vec;

struct Shared {
    inbox: Inbox,
    /// What each entry stands for: written by the core that puts it, read by the one that takes it.
    values: [UnsafeCell<u64>; 4],
}

// SAFETY: that access to the values is ordered is what the models hold.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

fn put(shared: &Shared, mut entries: core::ops::Range<u64>) {
    for entry in entries.clone() {
        // SAFETY: as above.
        unsafe { *shared.values[entry as usize].get_mut() = entry };
    }
    loop {
        let left: Vec<_> = entries.clone().map(|entry| NonZeroU64::new(entry).unwrap()).collect();
        entries.start += shared.inbox.put(left.into_iter()) as u64;
        if entries.is_empty() {
            return;
        }
        thread::yield_now();
    }
}

/// Takes `count` entries and answers them as they came.
fn take(shared: &Shared, count: usize) -> Vec<u64> {
    let mut taken = Vec::new();
    while taken.len() < count {
        let mut into = [0; 4];
        let seen = shared.inbox.peek(&mut into);
        for entry in &into[..seen] {
            // SAFETY: as above.
            assert_eq!(unsafe { *shared.values[*entry as usize].get() }, *entry);
        }
        taken.extend(&into[..seen]);
        shared.inbox.take(seen);
        if seen == 0 {
            thread::yield_now();
        }
    }
    assert!(shared.inbox.is_empty());
    taken
}

fn shared(capacity: usize) -> Arc<Shared> {
    let values = core::array::from_fn(|_| UnsafeCell::new(0));
    Arc::new(Shared { inbox: Inbox::new(capacity), values })
}

/// Caught: a relaxed store of entries in `put`, a relaxed load of them in `peek`, a store of entries without
/// reserving their places first.
#[test]
fn two_cores_entries_all_arrive_in_order() {
    check_bounded(3, || {
        let shared = shared(4);
        let one = spawn(&shared, |shared| put(shared, 1..3));
        let other = spawn(&shared, |shared| put(shared, 3..4));
        let mut taken = take(&shared, 3);
        one.join().unwrap();
        other.join().unwrap();
        assert!(taken.iter().position(|entry| *entry == 1) < taken.iter().position(|entry| *entry == 2));
        taken.sort_unstable();
        assert_eq!(taken, [1, 2, 3]);
    });
}

/// A place is used again only when it was seen to be zero. Caught: a relaxed store of `head` in `take`, a relaxed
/// load of it in `put`.
#[test]
fn places_are_used_again() {
    check_bounded(3, || {
        let shared = shared(1);
        let core = spawn(&shared, |shared| put(shared, 1..4));
        assert_eq!(take(&shared, 3), [1, 2, 3]);
        core.join().unwrap();
    });
}
