//! KVM's way: the switch is in the host's kernel, and each VM's rings are served by a thread of its own. Modelled on
//! Linux's vhost-net (`drivers/vhost/net.c`) over TAPs (`drivers/net/tun.c`) on a bridge.
//!
//! ```text
//!   sender's ring ──copy──> skb ── bridge ──> the receiver's TAP (a queue) ──copy──> receiver's ring
//!   kick ──> the sender's worker wakes   ──>  the receiver's worker wakes         ──> the receiver is interrupted
//! ```

use super::Shift;
use super::bridge::Bridge;
use crate::clock::Account;
use crate::host::{SimHost, TaskId};
use hyper_switch_pvnet::guest::Nic;

/// Frames after which what was done is shown (`VHOST_NET_BATCH`).
const BATCH: usize = 64;

/// The workers and what is between them.
pub(crate) struct Vhost {
    bridge: Bridge,
}

impl Vhost {
    pub(crate) fn new<'n>(nics: impl Iterator<Item = &'n Nic>) -> Vhost {
        Vhost { bridge: Bridge::new(nics) }
    }

    pub(crate) fn workers(&self) -> usize {
        self.bridge.vms()
    }

    fn worker(&self, vm: usize) -> TaskId {
        TaskId((self.bridge.vms() + vm) as u16)
    }

    pub(crate) fn dropped(&self, vm: usize) -> u64 {
        self.bridge.dropped(vm)
    }

    /// A VM's exit, which wakes its worker.
    pub(crate) fn kick(&self, host: &SimHost, vm: u16) {
        host.clock.charge(Account::Entry, host.prices.hypervisor_entry);
        host.signal(self.worker(vm.into()), host.prices.worker_wake, 0);
    }

    /// The worker of `vm` works for about `quantum_ns`.
    pub(crate) fn step(&mut self, host: &SimHost, vm: usize, quantum_ns: u64) -> Shift {
        host.take_signal(self.worker(vm));
        let end_ns = host.clock.spent_ns() + quantum_ns;
        let (vms, bridge) = (self.bridge.vms(), &mut self.bridge);
        let worker = |vm: usize| TaskId((vms + vm) as u16);
        let taking_ps = host.prices.vhost_frame + host.prices.bridge_frame;
        let (mut taken, mut given) = (0, 0);
        while host.clock.spent_ns() < end_ns && taken < BATCH && bridge.take(host, vm, |_| taking_ps, worker)
        {
            taken += 1;
        }
        while host.clock.spent_ns() < end_ns
            && given < BATCH
            && bridge.give(host, vm, |_| host.prices.vhost_frame)
        {
            given += 1;
        }
        if taken + given == 0 && host.clock.spent_ns() < end_ns {
            return if bridge.enable_kicks(vm) { Shift::Busy } else { Shift::Blocks(None) };
        }
        if bridge.publish(vm) {
            host.signal(TaskId(vm as u16), host.prices.notify, host.prices.notify_awake);
        }
        Shift::Busy
    }
}
