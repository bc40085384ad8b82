//! What carries frames between the VMs of a trial: this switch, or a model of one of the two that it is measured
//! against. The VMs, their rings and the workloads are the same for all.
//!
//! | module | noun |
//! | --- | --- |
//! | `hyper_switch` | this switch: VMs enter it, frames are copied once |
//! | `driver_domain` | Xen's way: a switch in a VM of its own, two copies |
//! | `vhost` | KVM's way: a switch in the host, a thread for each VM, two copies |
//! | `port` | a VM as both contenders see it: rings, counters, interrupts |
//! | `crew` | their threads |
//!
//! The contenders need no control plane: addresses are those that the VMs are known to have.

mod crew;
mod driver_domain;
mod hyper_switch;
mod port;
mod vhost;

use super::inprocess::Setting;
use super::trial::Vm;
use crate::cli::Arch;
use crate::exit::Failure;
use crate::host::GuestBell;
use crate::report::VmReport;
use hyper_switch_dataplane::VmBackend;
use hyper_switch_pvnet::guest::Hypercall;
use std::sync::Arc;

/// What carries frames between the VMs of a trial.
pub(super) trait Architecture: Sync {
    /// Attaches `vm`, on its own thread, where its interrupts ring `bell`. Answers its way in. The error says what
    /// went wrong.
    fn attach(&self, vm: Vm, rings: VmBackend, bell: Arc<GuestBell>) -> Result<Box<dyn Hypercall>, String>;

    /// All VMs are attached; frames are about to come.
    ///
    /// # Errors
    /// The system gives us no thread.
    fn start(&self) -> Result<(), Failure>;

    /// All VMs have ended: stops, and answers what was done since the start.
    ///
    /// # Errors
    /// Something had stopped before.
    fn finish(self: Box<Self>) -> Result<Carried, Failure>;
}

/// What an architecture did between start and end.
#[derive(Debug, Default)]
pub(super) struct Carried {
    /// For each VM, in the order of their numbers. What its own thread did is not in it.
    pub(super) vms: Vec<VmReport>,
    /// Entries into the hypervisor by the switch's own threads.
    pub(super) entries: u64,
    /// How often these threads were woken, or found at once that they had been.
    pub(super) wakeups: u64,
}

/// Makes the architecture of `setting` for `vms` VMs.
///
/// # Errors
/// The system gives us no thread.
pub(super) fn of(setting: &Setting<'_>, vms: usize) -> Result<Box<dyn Architecture>, Failure> {
    Ok(match setting.arch {
        Arch::HyperSwitch => Box::new(hyper_switch::HyperSwitch::new(vms, setting)?),
        Arch::DriverDomain => Box::new(driver_domain::DriverDomain::new(setting.cost)),
        Arch::Vhost => Box::new(vhost::Vhost::new(vms)),
    })
}
