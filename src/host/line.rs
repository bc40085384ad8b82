//! A VM's interrupt line.

use super::GuestBell;
use super::lane::LaneWires;
use hyper_switch_dataplane::host::Ring;
use std::sync::Arc;

/// How a VM is interrupted.
pub(super) enum Line {
    /// A thread of this process, by its one interrupt.
    Bell(Arc<GuestBell>),
    /// A VM of another process, by an eventfd for each ring.
    Wires {
        wires: LaneWires,
        /// Frames come to it by a receive hypercall, which a worker makes in its stead.
        by_hypercall: bool,
    },
}

impl Line {
    /// Tells the VM of what happened at `ring`.
    pub(super) fn interrupt(&self, ring: Ring) {
        match (self, ring) {
            (Line::Bell(bell), _) => bell.ring(),
            (Line::Wires { wires, .. }, Ring::Transmit) => wires.tx.interrupt(),
            // As if the VM had kicked: the worker enters for it, copies, and interrupts it then.
            (Line::Wires { wires, by_hypercall: true }, Ring::Receive) => wires.rx.kick.signal(),
            (Line::Wires { wires, by_hypercall: false }, Ring::Receive) => wires.rx.interrupt(),
        }
    }

    /// Tells a VMM that the lane does not work any more.
    pub(super) fn report_fault(&self) {
        if let Line::Wires { wires, .. } = self {
            wires.report_fault();
        }
    }
}
