//! When is it safe? Which cores may still look at what was replaced.
//!
//! Readers take no lock. A core that enters the switch notes the epoch in a cell of its own, and clears the
//! cell when it leaves; in between it may follow pointers to flows, tables and ports. The control side, the
//! only writer, replaces a pointer first and then [advances](Epochs::advance) the epoch; once every core is
//! either outside or has entered since ([`Epochs::passed`]), no core can still see what was replaced: it may be
//! freed, and a barrier may be answered.
//!
//! Protocol of the cells, with a full fence on both sides: a core stores its cell and then loads pointers; the
//! writer stores a pointer, advances the epoch, and then loads the cells. If the writer finds a cell clear, its
//! fence came before the core's, so the core's loads of pointers find the new ones.
//!
//! The cost is one exchange for a core's entry, and so for a whole batch; a store for leaving.

use crate::sync::atomic::{AtomicU64, Ordering, fence};
use alloc::boxed::Box;
use crossbeam_utils::CachePadded;

/// A point in the writer's order of changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Epoch(u64);

/// The epoch and each core's cell.
pub(crate) struct Epochs {
    now: AtomicU64,
    /// The epoch in which the core entered; 0 while it is outside.
    cells: Box<[CachePadded<AtomicU64>]>,
}

impl Epochs {
    pub(crate) fn new(cores: usize) -> Epochs {
        Epochs { now: AtomicU64::new(1), cells: (0..cores).map(|_| CachePadded::default()).collect() }
    }

    /// Core `core` enters; it leaves when the guard is dropped.
    #[inline]
    pub(crate) fn enter(&self, core: usize) -> Inside<'_> {
        let cell = &self.cells[core];
        // An older epoch than the newest is safe: the writer then waits a little longer for this core.
        cell.swap(self.now.load(Ordering::SeqCst), Ordering::SeqCst);
        // The loads of pointers that follow are acquires only: this keeps them behind the store. On x86 the exchange
        // is a full barrier already.
        #[cfg(any(loom, not(target_arch = "x86_64")))]
        fence(Ordering::SeqCst);
        #[cfg(all(not(loom), target_arch = "x86_64"))]
        core::sync::atomic::compiler_fence(Ordering::SeqCst);
        Inside { cell }
    }

    /// What was replaced before this call is invisible once the answer has [`passed`](Epochs::passed).
    pub(crate) fn advance(&self) -> Epoch {
        let epoch = Epoch(self.now.fetch_add(1, Ordering::SeqCst) + 1);
        // The stores of pointers before it are releases only: this keeps the loads of the cells behind them.
        fence(Ordering::SeqCst);
        epoch
    }

    /// Whether every core is outside or entered at `epoch` or later.
    pub(crate) fn passed(&self, epoch: Epoch) -> bool {
        self.cells.iter().all(|cell| match cell.load(Ordering::SeqCst) {
            0 => true,
            entered => entered >= epoch.0,
        })
    }
}

/// A core is inside the switch.
pub(crate) struct Inside<'a> {
    cell: &'a AtomicU64,
}

impl Drop for Inside<'_> {
    #[inline]
    fn drop(&mut self) {
        // Release: what the core read is read before the writer sees it outside.
        self.cell.store(0, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    //! Which epochs pass, step by step, and against a list of who is inside since when.
    use super::*;
    use std::vec::Vec;

    const CORES: usize = 3;

    proptest::proptest! {
        /// Steps: a core enters or leaves, or the writer advances; all epochs so far are asked about after each.
        #[test]
        fn an_epoch_passes_when_nobody_is_inside_since_before(steps in proptest::collection::vec(0..=CORES, 0..100)) {
            let epochs = Epochs::new(CORES);
            let mut inside: [Option<(Inside<'_>, usize)>; CORES] = [const { None }; CORES];
            let mut advanced = Vec::new();
            for step in steps {
                match inside.get_mut(step) {
                    None => advanced.push(epochs.advance()),
                    Some(core) if core.is_some() => *core = None,
                    Some(core) => *core = Some((epochs.enter(step), advanced.len())),
                }
                for (before, epoch) in advanced.iter().enumerate() {
                    let expected = inside.iter().flatten().all(|(_, since)| *since > before);
                    assert_eq!(epochs.passed(*epoch), expected);
                }
            }
        }
    }

    #[test]
    fn an_epoch_passes_when_the_cores_of_before_have_left() {
        let epochs = Epochs::new(2);
        let before = epochs.enter(0);
        let epoch = epochs.advance();
        assert!(!epochs.passed(epoch));
        let since = epochs.enter(1);
        assert!(!epochs.passed(epoch));
        drop(before);
        assert!(epochs.passed(epoch), "core 1 entered after the change and need not leave");
        assert!(!epochs.passed(epochs.advance()));
        drop(since);
    }
}
