//! A lane's wires: the eventfds by which a VM of another process and the switch tell each other.

use hyper_switch_pvnet::vhost_user::event::EventFd;
use hyper_switch_pvnet::vhost_user::session::{LaneSetup, QueueSetup};
use std::sync::Arc;

/// The eventfds of one ring.
#[derive(Clone, Debug)]
pub(super) struct RingWires {
    /// Readable when the driver kicks.
    pub(super) kick: Arc<EventFd>,
    /// The driver's interrupt; none if it polls.
    call: Option<Arc<EventFd>>,
    /// To be signalled at a fault.
    err: Option<Arc<EventFd>>,
}

impl RingWires {
    fn of(queue: &QueueSetup) -> RingWires {
        RingWires { kick: queue.kick.clone(), call: queue.call.clone(), err: queue.err.clone() }
    }

    /// Interrupts the driver.
    pub(super) fn interrupt(&self) {
        if let Some(call) = &self.call {
            call.signal();
        }
    }
}

/// Those of a lane's two rings.
#[derive(Clone, Debug)]
pub(super) struct LaneWires {
    /// Of the ring that the VM transmits into.
    pub(super) tx: RingWires,
    /// Of the ring that the VM receives from.
    pub(super) rx: RingWires,
}

impl LaneWires {
    /// The wires that a front-end gave a lane.
    pub(super) fn of(lane: &LaneSetup) -> LaneWires {
        LaneWires { tx: RingWires::of(&lane.tx), rx: RingWires::of(&lane.rx) }
    }

    /// Tells the VMM that the lane does not work any more.
    pub(super) fn report_fault(&self) {
        for err in [&self.tx.err, &self.rx.err].into_iter().flatten() {
            err.signal();
        }
    }
}
