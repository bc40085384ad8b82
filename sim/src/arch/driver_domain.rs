//! Xen's way: the switch is in a driver domain, a VM with vCPUs that have to be scheduled before it can do anything.
//! Modelled on Linux's netback (`drivers/net/xen-netback`) of the paper's time: one kernel thread for each vCPU of the
//! domain, each serving the interfaces that are bound to it, under a bridge.
//!
//! ```text
//!   sender's ring ──grant copy──> the domain's memory ── bridge ──> queue ──grant copy──> receiver's ring
//!   event channel ──> the domain wakes                        the receiver's event channel ──> it is interrupted
//! ```
//!
//! A grant copy is one hypercall for a batch of frames of one VM, and an operation for each page.

use super::Shift;
use super::bridge::Bridge;
use crate::clock::Account;
use crate::host::{SimHost, TaskId};
use hyper_switch_pvnet::guest::Nic;

/// Frames that are taken from a ring, or put into one, before what was done is shown (`COPY_BATCH_SIZE`, NAPI's weight).
const BATCH: usize = 64;
/// An operation of a grant copy is for a page at most.
const PAGE_BYTES: usize = 4_096;

/// The domain.
pub(crate) struct DriverDomain {
    bridge: Bridge,
    /// Of each vCPU: the VMs, a direction each, that it has still to look at before it may block, and what it found.
    rounds: Vec<Round>,
}

/// One vCPU's way through its VMs.
#[derive(Clone, Copy, Default)]
struct Round {
    next: usize,
    was_busy: bool,
}

impl DriverDomain {
    pub(crate) fn new<'n>(nics: impl Iterator<Item = &'n Nic>, vcpus: usize) -> DriverDomain {
        let bridge = Bridge::new(nics);
        let vcpus = vcpus.clamp(1, bridge.vms().max(1));
        DriverDomain { bridge, rounds: vec![Round::default(); vcpus] }
    }

    pub(crate) fn workers(&self) -> usize {
        self.rounds.len()
    }

    /// The task of a vCPU: its number behind the VMs'.
    fn task(&self, vcpu: usize) -> TaskId {
        TaskId((self.bridge.vms() + vcpu) as u16)
    }

    pub(crate) fn dropped(&self, vm: usize) -> u64 {
        self.bridge.dropped(vm)
    }

    /// A VM sends on its event channel.
    pub(crate) fn kick(&self, host: &SimHost, vm: u16) {
        host.clock.charge(Account::Entry, host.prices.event_channel);
        host.signal(self.task(usize::from(vm) % self.rounds.len()), 0, 0);
    }

    /// A vCPU goes on with its round, until it has carried something: then it may have told VMs, which may take its core.
    pub(crate) fn step(&mut self, host: &SimHost, vcpu: usize, quantum_ns: u64) -> Shift {
        if host.take_signal(self.task(vcpu)) {
            host.clock.charge(Account::Entry, host.prices.interrupt);
        }
        let end_ns = host.clock.spent_ns() + quantum_ns;
        let count = self.rounds.len();
        let vms = self.bridge.vms();
        let stops = 2 * vms.saturating_sub(vcpu).div_ceil(count);
        loop {
            let Round { next, was_busy } = self.rounds[vcpu];
            if next == stops {
                self.rounds[vcpu] = Round::default();
                if was_busy {
                    continue;
                }
                let mut news = false;
                for vm in (vcpu..vms).step_by(count) {
                    news |= self.bridge.enable_kicks(vm);
                }
                return if news { Shift::Busy } else { Shift::Blocks(None) };
            }
            // First all directions from VMs, then all to VMs.
            let (vm, is_taking) = (vcpu + next % (stops / 2) * count, next < stops / 2);
            let busy = self.carry(host, vm, is_taking, end_ns);
            self.rounds[vcpu] = Round { next: next + 1, was_busy: was_busy || busy };
            if busy {
                return Shift::Busy;
            }
        }
    }

    /// A batch from a VM's ring to others' queues, or from a VM's queue to its ring. Answers whether there was any frame.
    fn carry(&mut self, host: &SimHost, vm: usize, is_taking: bool, end_ns: u64) -> bool {
        let DriverDomain { bridge, rounds } = self;
        let (vms, vcpus) = (bridge.vms(), rounds.len());
        let grants = |bytes: usize| bytes.div_ceil(PAGE_BYTES) as u64 * host.prices.grant_copy_frame;
        let mut carried = 0;
        while carried < BATCH && host.clock.spent_ns() < end_ns {
            let is_carried = if is_taking {
                let server = |vm: usize| TaskId((vms + vm % vcpus) as u16);
                bridge.take(host, vm, |bytes| host.prices.netback_frame + grants(bytes), server)
            } else {
                bridge.give(host, vm, grants)
            };
            if !is_carried {
                break;
            }
            carried += 1;
        }
        if carried == 0 {
            return false;
        }
        host.clock.charge(Account::Entry, host.prices.grant_copy);
        if bridge.publish(vm) {
            host.clock.charge(Account::Entry, host.prices.event_channel);
            host.signal(TaskId(vm as u16), 0, 0);
        }
        true
    }
}
