//! What an entry into the hypervisor costs, and who used how much of a processor.

use crate::host::now;
use hyper_switch_pvnet::guest::Hypercall;
use rustix::time::{ClockId, clock_gettime};
use std::hint;

/// What an entry into the hypervisor, or an interrupt taken, costs the thread that makes it: nanoseconds spun, since
/// a real processor does nothing else for its VM meanwhile.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct EntryCost {
    pub(super) ns: u64,
}

impl EntryCost {
    /// Spends it.
    pub(super) fn pay(self) {
        if self.ns == 0 {
            return;
        }
        let start = now().0;
        while now().0 - start < self.ns {
            hint::spin_loop();
        }
    }
}

/// A way into the switch on which each entry, and each interrupt taken, has its price.
pub(super) struct Priced {
    pub(super) way: Box<dyn Hypercall>,
    pub(super) cost: EntryCost,
}

impl Hypercall for Priced {
    fn transmit(&mut self) {
        self.cost.pay();
        self.way.transmit();
    }

    fn receive(&mut self) {
        self.cost.pay();
        self.way.receive();
    }

    fn take_interrupt(&mut self) -> bool {
        let taken = self.way.take_interrupt();
        if taken {
            self.cost.pay();
        }
        taken
    }

    fn frames_wait(&mut self) -> bool {
        self.way.frames_wait()
    }

    fn block(&mut self) -> bool {
        let stays = self.way.block();
        if stays {
            // To block is free for all architectures; an interrupt instead has its price.
            self.cost.pay();
        }
        stays
    }
}

/// Processor time of the calling thread so far, in nanoseconds.
pub(super) fn thread_cpu_ns() -> u64 {
    read(ClockId::ThreadCPUTime)
}

/// Processor time of all threads but the calling one so far, in nanoseconds.
pub(super) fn other_threads_cpu_ns() -> u64 {
    read(ClockId::ProcessCPUTime).saturating_sub(thread_cpu_ns())
}

fn read(clock: ClockId) -> u64 {
    let time = clock_gettime(clock);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}
