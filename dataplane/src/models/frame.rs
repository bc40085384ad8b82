//! A frame with several receivers: the one that makes the last copy gives its slot back, and the sender fills it
//! again when nobody reads it any more.

use super::{check, spawn};
use crate::frame::FrameStore;
use crate::inbox::Inbox;
use alloc::sync::Arc;
use core::num::NonZeroU64;
use hyper_switch_pvnet::header::VnetHdr;
use loom::thread;

struct Shared {
    frames: FrameStore,
    completed: Inbox,
}

fn fill(shared: &Shared, bytes: u32) {
    // SAFETY: this core stands for the one with the claim, and the slot is free; that it is is what the model holds.
    unsafe { shared.frames.fill(0, bytes, VnetHdr::PLAIN, &[], &[]) };
}

fn copy(shared: &Shared) {
    // SAFETY: this core holds one of the copies.
    assert_eq!(unsafe { shared.frames.frame(0) }.bytes, 60);
    if shared.frames.copied(0) {
        assert_eq!(shared.completed.put([NonZeroU64::MIN].into_iter()), 1, "it is given back once");
    }
}

/// Caught: a relaxed load in `copied`, and a `fetch_sub` there that only acquires or only releases.
#[test]
fn the_last_copy_gives_the_frame_back() {
    check(|| {
        let shared = Arc::new(Shared { frames: FrameStore::new(1, true, 0), completed: Inbox::new(1) });
        fill(&shared, 60);
        shared.frames.set_copies(0, 2);
        let one = spawn(&shared, copy);
        let other = spawn(&shared, copy);
        while shared.completed.peek(&mut [0]) == 0 {
            thread::yield_now();
        }
        shared.completed.take(1);
        // It does not ask whether the slot is free: edited headers are used again without.
        fill(&shared, 61);
        assert!(shared.frames.is_free(0));
        one.join().unwrap();
        other.join().unwrap();
    });
}

/// The sender sees a slot free before it is told, by `is_free` alone. Caught: a relaxed load in `is_free`, a relaxed
/// store in `copied`.
#[test]
fn a_free_slot_is_read_by_nobody() {
    check(|| {
        let shared = Arc::new(Shared { frames: FrameStore::new(1, true, 0), completed: Inbox::new(1) });
        fill(&shared, 60);
        shared.frames.set_copies(0, 1);
        let core = spawn(&shared, copy);
        while !shared.frames.is_free(0) {
            thread::yield_now();
        }
        fill(&shared, 61);
        core.join().unwrap();
    });
}
