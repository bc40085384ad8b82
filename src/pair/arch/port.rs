//! A VM as a contender's switch sees it: two rings that are copied from and to, an interrupt, and the counters.

use crate::host::GuestBell;
use crate::pair::trial::Vm;
use crate::report::VmReport;
use hyper_switch_dataplane::api::DropReason;
use hyper_switch_dataplane::{QueuePair, VmBackend};
use hyper_switch_pvnet::guest::Hypercall;
use hyper_switch_pvnet::header::VNET_HDR_BYTES;
use hyper_switch_pvnet::ring::relay::{RxRelay, Stored, Taken, TxRelay};
use std::sync::{Arc, OnceLock};

/// Frames that are taken from a ring, or put into one, before what was done is shown: so many in Xen's netback
/// (`COPY_BATCH_SIZE`, and NAPI's weight) as in vhost (`VHOST_NET_BATCH`), both of Linux.
pub(super) const BATCH: usize = 64;

/// Frames that wait for a VM at most, until it has buffers for them: as in a TAP (`TUN_READQ_SIZE`). What is over that
/// is dropped.
pub(super) const QUEUE_FRAMES: usize = 500;

const OURS: &str = "the guests of this process keep the rules of the ring";

/// A VM's rings and what was done with them.
pub(super) struct Port {
    tx: TxRelay,
    rx: RxRelay,
    bell: Arc<GuestBell>,
    pub(super) report: VmReport,
}

impl Port {
    pub(super) fn new(vm: Vm, rings: VmBackend, bell: Arc<GuestBell>) -> Port {
        let [QueuePair { tx, rx, .. }] =
            <[_; 1]>::try_from(rings.queues).ok().expect("a guest has one queue pair");
        Port {
            tx: TxRelay::new(tx),
            rx: RxRelay::new(rx),
            bell,
            report: VmReport { name: vm.name(), ..VmReport::default() },
        }
    }

    /// Copies the next frame that the VM sent to `into`; `false` if there is none.
    pub(super) fn take(&mut self, into: &mut Stored) -> bool {
        match self.tx.take(into).expect(OURS) {
            Taken::Nothing => return false,
            taken => assert_eq!(taken, Taken::Frame, "{OURS}"),
        }
        self.report.tx.frames += 1;
        self.report.tx.bytes += into.frame_bytes() as u64;
        self.copied(into);
        true
    }

    /// Copies `frame` to the VM; `false` if it has posted too few buffers.
    pub(super) fn give(&mut self, frame: &mut Stored) -> bool {
        let given = self.rx.give(frame).expect(OURS);
        if given {
            self.report.rx.frames += 1;
            self.report.rx.bytes += frame.frame_bytes() as u64;
            self.copied(frame);
        }
        given
    }

    fn copied(&mut self, frame: &Stored) {
        self.report.copies += 1;
        self.report.copied_bytes += (frame.frame_bytes() + VNET_HDR_BYTES) as u64;
    }

    /// Frames for the VM found its queue in the switch full.
    pub(super) fn dropped(&mut self, frames: u64) {
        if frames > 0 {
            self.report.rx.drops.count(DropReason::RxQueueFull, frames);
        }
    }

    /// Shows the VM what was taken and given, and interrupts it if it wants that. Answers whether it was.
    pub(super) fn notify(&mut self) -> bool {
        let (tx, rx) = (self.tx.queue(), self.rx.queue());
        tx.publish();
        rx.publish();
        let wanted = tx.wants_interrupt() | rx.wants_interrupt();
        if wanted {
            self.report.notifications += 1;
            self.bell.ring();
        }
        wanted
    }

    /// Asks the VM to kick when it sends, and, if frames wait for it, when it posts buffers. Answers whether it did in
    /// the meantime, for which no kick may come.
    pub(super) fn enable_kicks(&mut self, frames_wait: bool) -> bool {
        let posted = frames_wait && self.rx.queue().enable_kicks().expect(OURS);
        self.tx.queue().enable_kicks().expect(OURS) || posted
    }
}

/// A VM's way to a thread that serves its rings: an exit that notifies the thread. Which of the two rings it is for the
/// thread finds out itself.
pub(super) struct Kick {
    pub(super) server: Arc<OnceLock<Arc<GuestBell>>>,
    pub(super) bell: Arc<GuestBell>,
}

impl Kick {
    fn kick(&self) {
        self.server.get().expect("VMs start after the switch").ring();
    }
}

impl Hypercall for Kick {
    fn transmit(&mut self) {
        self.kick();
    }

    fn receive(&mut self) {
        self.kick();
    }

    fn take_interrupt(&mut self) -> bool {
        self.bell.take()
    }

    fn frames_wait(&mut self) -> bool {
        // What waits, waits for buffers, and of those the switch asked to be told.
        false
    }
}
