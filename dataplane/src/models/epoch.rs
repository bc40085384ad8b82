//! What was replaced is freed when no core can be looking at it any more, and not before.

use super::{check, spawn};
use crate::epoch::Epochs;
use crate::sync::Published;
use crate::sync::atomic::{AtomicPtr, Ordering};
use alloc::boxed::Box;
use alloc::sync::Arc;

struct Shared {
    epochs: Epochs,
    pointer: AtomicPtr<Published<u32>>,
}

/// A core's way in, twice: it looks at what the pointer leads to and leaves.
fn read(shared: &Shared, core: usize) {
    let mut newest = 0;
    for _ in 0..2 {
        let _inside = shared.epochs.enter(core);
        // SAFETY: this core is inside an epoch; that this is enough is what the model holds.
        let value: u32 = unsafe { **shared.pointer.load(Ordering::Acquire) };
        assert!(value >= newest, "what was replaced does not come back");
        newest = value;
    }
}

fn free(pointer: *mut Published<u32>) {
    // SAFETY: the caller's epoch has passed, or its threads have ended.
    drop(unsafe { Box::from_raw(pointer) });
}

/// Caught: no fence in `enter`, none in `advance`, a relaxed load of the cells in `passed`, a relaxed store of the cell
/// when a core leaves, and `passed` answering true for a core that entered before.
#[test]
fn what_was_replaced_outlives_its_readers() {
    check(|| {
        let shared = Shared { epochs: Epochs::new(1), pointer: AtomicPtr::new(Published::publish(1)) };
        let shared = Arc::new(shared);
        let core = spawn(&shared, |shared| read(shared, 0));
        let old = shared.pointer.swap(Published::publish(2), Ordering::AcqRel);
        let epoch = shared.epochs.advance();
        let passed = shared.epochs.passed(epoch);
        if passed {
            free(old);
        }
        core.join().unwrap();
        if !passed {
            assert!(shared.epochs.passed(epoch), "every core has left");
            free(old);
        }
        free(shared.pointer.load(Ordering::Relaxed));
    });
}
