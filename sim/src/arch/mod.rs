//! What carries frames between VMs, on the host model.
//!
//! | module | the switch is | who works |
//! | --- | --- | --- |
//! | `hyper_switch` | in the hypervisor: the shipping code | the VMs' own cores, and idle ones |
//! | `driver_domain` | in a VM of its own (Xen) | the domain's vCPUs |
//! | `vhost` | in the host's kernel (KVM) | a worker thread for each VM |
//!
//! `entrance` is a task's way into the first; `bridge` and `port` are what the other two have in common.

pub(crate) mod bridge;
pub(crate) mod driver_domain;
pub(crate) mod entrance;
pub(crate) mod hyper_switch;
pub(crate) mod port;
pub(crate) mod vhost;

use crate::host::SimHost;
use hyper_switch_pvnet::guest::Hypercall;

/// What carries the frames.
pub(crate) enum Fabric {
    HyperSwitch(Box<hyper_switch::HyperSwitch>),
    DriverDomain(driver_domain::DriverDomain),
    Vhost(vhost::Vhost),
}

/// A VM's way to a switch that is served by others.
pub(crate) struct Way<'a> {
    pub(crate) fabric: &'a Fabric,
    pub(crate) host: &'a SimHost,
    pub(crate) vm: u16,
}

/// How much a step of one of a fabric's own tasks did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shift {
    /// There may be more to do.
    Busy,
    /// Nothing until a signal, or this time.
    Blocks(Option<u64>),
}

impl Fabric {
    /// Tasks of its own, beside the VMs.
    pub(crate) fn workers(&self) -> usize {
        match self {
            Fabric::HyperSwitch(switch) => switch.workers(),
            Fabric::DriverDomain(domain) => domain.workers(),
            Fabric::Vhost(vhost) => vhost.workers(),
        }
    }

    /// Worker `number` works for a while.
    pub(crate) fn step(&mut self, host: &SimHost, number: usize, quantum_ns: u64) -> Shift {
        match self {
            Fabric::HyperSwitch(switch) => switch.keep_time(host),
            Fabric::DriverDomain(domain) => domain.step(host, number, quantum_ns),
            Fabric::Vhost(vhost) => vhost.step(host, number, quantum_ns),
        }
    }
}

impl Way<'_> {
    fn kick(&self) {
        match self.fabric {
            Fabric::HyperSwitch(_) => {}
            Fabric::DriverDomain(domain) => domain.kick(self.host, self.vm),
            Fabric::Vhost(vhost) => vhost.kick(self.host, self.vm),
        }
    }
}

impl Hypercall for Way<'_> {
    fn transmit(&mut self) {
        self.kick();
    }

    fn receive(&mut self) {
        self.kick();
    }

    fn take_interrupt(&mut self) -> bool {
        self.host.take_interrupt(self.vm)
    }

    fn frames_wait(&mut self) -> bool {
        // What waits, waits for buffers, and of those the switch asked to be told.
        false
    }
}
