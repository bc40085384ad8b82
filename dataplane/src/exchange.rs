//! The exchange of a live port's memory: its rings go on in a new map of the same guest addresses, while cores switch
//! and frames of the old map are in flight.
//!
//! The control leaves the new map here and a word on both claims ([`Word::EXCHANGE`](crate::claim::Word::EXCHANGE)).
//! Whoever has a claim, or the control itself, puts the map into that side's queue and leaves the old one here for the
//! control to keep: it is freed when no frame in flight lies in it, and never by a core that switches.
//!
//! Protocol: `settled` is stored before the transmit side's old map is left, and the control looks at it only when it has
//! the old maps of all sides. So what it sees is of the newest map.

use crate::frame::FrameStore;
use crate::sync::atomic::{AtomicBool, Ordering};
use alloc::sync::Arc;
use crossbeam_queue::ArrayQueue;
use hyper_switch_pvnet::mem::GuestMemory;
use hyper_switch_pvnet::ring::QueueLayout;
use hyper_switch_pvnet::ring::device::DeviceQueue;

/// The memory that a lane's is exchanged for, and where its rings are there.
#[derive(Clone)]
pub struct Map {
    /// The memory: another map of the same guest addresses.
    pub memory: Arc<GuestMemory>,
    /// The ring that the VM transmits into.
    pub tx: QueueLayout,
    /// The ring that the VM receives from.
    pub rx: QueueLayout,
}

type Side = ArrayQueue<(Arc<GuestMemory>, QueueLayout)>;

/// What the control and the cores leave for each other.
pub(crate) struct Exchange {
    tx: Side,
    rx: Side,
    /// Of each side at most two: one that was left, and one that a core is about to leave while the next is asked for.
    old: ArrayQueue<Arc<GuestMemory>>,
    /// Whether no frame in flight lay in old memory when that was last looked at.
    settled: AtomicBool,
}

impl Exchange {
    pub(crate) fn new() -> Exchange {
        let (tx, rx) = (ArrayQueue::new(1), ArrayQueue::new(1));
        Exchange { tx, rx, old: ArrayQueue::new(4), settled: AtomicBool::new(true) }
    }

    /// Asks for an exchange; one that is asked for and not begun is given up. Answers how many more old maps come.
    pub(crate) fn ask(&self, map: &Map) -> usize {
        let sides = [(&self.tx, map.tx), (&self.rx, map.rx)];
        sides.into_iter().filter(|(side, at)| side.force_push((map.memory.clone(), *at)).is_none()).count()
    }

    /// The next of the old maps.
    pub(crate) fn next_old(&self) -> Option<Arc<GuestMemory>> {
        self.old.pop()
    }

    /// Whether no frame in flight lies in an old map, if all those are with the control.
    pub(crate) fn is_settled(&self) -> bool {
        self.settled.load(Ordering::Acquire)
    }

    /// The work of the word on the transmit side.
    ///
    /// # Safety
    /// The caller has the claim on the transmit side that `queue` and `frames` are of.
    #[cold]
    pub(crate) unsafe fn serve_tx(&self, queue: &mut DeviceQueue, frames: &FrameStore) {
        let old = self.tx.pop().map(|(memory, layout)| queue.set_memory(memory, layout));
        // SAFETY: the caller's word.
        self.settled.store(unsafe { frames.lie_in(queue.memory()) }, Ordering::Release);
        self.leave(old);
    }

    /// The work of the word on the receive side. What was copied there is all written.
    #[cold]
    pub(crate) fn serve_rx(&self, queue: &mut DeviceQueue) {
        self.leave(self.rx.pop().map(|(memory, layout)| queue.set_memory(memory, layout)));
    }

    fn leave(&self, old: Option<Arc<GuestMemory>>) {
        let left = old.map_or(Ok(()), |old| self.old.push(old));
        debug_assert!(left.is_ok(), "the control takes old maps before it asks again");
    }
}
