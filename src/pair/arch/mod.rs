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

use super::cost::EntryCost;
use super::inprocess::Setting;
use super::trial::Vm;
use crate::cli::Arch;
use crate::exit::Failure;
use crate::host::GuestBell;
use crate::report::VmReport;
use driver_domain::DriverDomain;
use hyper_switch_dataplane::VmBackend;
use hyper_switch_pvnet::guest::Hypercall;
use std::sync::Arc;
use vhost::Vhost;

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
        Arch::DriverDomain => Box::new(DriverDomain::new(setting.cost, setting.cores, vms)),
        Arch::Vhost => Box::new(Vhost::new(setting.cores, vms)),
    })
}

/// A contender without threads of its own: whoever has it does what these do, and can time each part of it.
pub(crate) trait Relay {
    /// A batch of what a VM sent. Answers whether there was anything.
    fn take(&mut self, vm: usize) -> bool;

    /// A batch of what waits for a VM, likewise.
    fn give(&mut self, vm: usize) -> bool;

    /// A turn of the thread that serves the VM: all of it, in both directions. Answers whether there may be more; if not, it
    /// would sleep.
    fn turn(&mut self, vm: usize) -> bool;
}

/// What this switch is measured against.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Contender {
    Vhost,
    DriverDomain,
}

/// A contender to which these VMs are attached, and their ways in. The calling thread is told of their kicks by `bell`.
pub(crate) fn by_hand(
    arch: Contender,
    vms: Vec<(VmBackend, Arc<GuestBell>)>,
    bell: &Arc<GuestBell>,
) -> (Box<dyn Relay>, Vec<Box<dyn Hypercall>>) {
    fn ways(switch: &dyn Architecture, vms: Vec<(VmBackend, Arc<GuestBell>)>) -> Vec<Box<dyn Hypercall>> {
        let attach = |(number, (rings, bell))| switch.attach(Vm::numbered(number), rings, bell);
        let ways = vms.into_iter().enumerate().map(attach).collect::<Result<_, _>>();
        ways.expect("a contender has room for all VMs")
    }
    match arch {
        Contender::Vhost => {
            let switch = Vhost::new(&[], vms.len());
            let ways = ways(&switch, vms);
            (Box::new(switch.by_hand(bell)), ways)
        }
        Contender::DriverDomain => {
            let switch = DriverDomain::new(EntryCost::default(), &[], vms.len());
            let ways = ways(&switch, vms);
            (Box::new(switch.by_hand(bell)), ways)
        }
    }
}
