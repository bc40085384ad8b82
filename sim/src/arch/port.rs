//! A VM as a contender's switch sees it: two rings that are copied from and to, and an interrupt.

use crate::host::{SimHost, TaskId};
use hyper_switch_pvnet::guest::Nic;
use hyper_switch_pvnet::ring::device::{DeviceQueue, Direction};
use hyper_switch_pvnet::ring::relay::{RxRelay, Stored, Taken, TxRelay};

/// Frames that wait for a VM at most, until it has buffers for them: as in a TAP (`TUN_READQ_SIZE`). What is over that
/// is dropped.
pub(crate) const QUEUE_FRAMES: usize = 500;

const OURS: &str = "modelled guests keep the rules of the ring";

/// A VM's rings.
pub(crate) struct Port {
    vm: u16,
    tx: TxRelay,
    rx: RxRelay,
}

impl Port {
    pub(crate) fn new(vm: u16, nic: &Nic) -> Port {
        let queue = |layout, direction| {
            DeviceQueue::new(nic.memory().clone(), layout, direction, nic.queue_features())
        };
        Port {
            vm,
            tx: TxRelay::new(queue(nic.tx_layout(), Direction::Readable)),
            rx: RxRelay::new(queue(nic.rx_layout(), Direction::Writable)),
        }
    }

    /// Copies the next frame that the VM sent to `into`; `false` if there is none.
    pub(crate) fn take(&mut self, host: &SimHost, into: &mut Stored) -> bool {
        if self.tx.take(into).expect(OURS) != Taken::Frame {
            return false;
        }
        host.copy_cold(host.home_of(TaskId(self.vm)), into.frame_bytes());
        true
    }

    /// Copies `frame`, which lies in the cache of the core `from`, to the VM; `false` if it has posted too few buffers.
    pub(crate) fn give(
        &mut self,
        host: &SimHost,
        frame: &mut Stored,
        from: hyper_switch_dataplane::host::CoreId,
    ) -> bool {
        let given = self.rx.give(frame).expect(OURS);
        if given {
            host.copy_cold(from, frame.frame_bytes());
            host.set_copier(self.vm, host.clock.core());
        }
        given
    }

    /// Shows the VM what was taken and given. Answers whether it wants to be interrupted for that.
    pub(crate) fn publish(&mut self) -> bool {
        let (tx, rx) = (self.tx.queue(), self.rx.queue());
        tx.publish();
        rx.publish();
        tx.wants_interrupt() | rx.wants_interrupt()
    }

    /// Asks the VM to kick when it sends, and, if frames wait for it, when it posts buffers. Answers whether it did in
    /// the meantime, for which no kick may come.
    pub(crate) fn enable_kicks(&mut self, frames_wait: bool) -> bool {
        let posted = frames_wait && self.rx.queue().enable_kicks().expect(OURS);
        self.tx.queue().enable_kicks().expect(OURS) || posted
    }
}
