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
use super::port::{Port, QUEUE_FRAMES, Stations};
use crate::clock::Account;
use crate::host::{SimHost, TaskId};
use hyper_switch_dataplane::host::CoreId;
use hyper_switch_pvnet::guest::Nic;
use hyper_switch_pvnet::ring::relay::Stored;
use std::collections::VecDeque;
use std::mem;

/// Frames that are taken from a ring, or put into one, before what was done is shown (`COPY_BATCH_SIZE`, NAPI's weight).
const BATCH: usize = 64;
/// An operation of a grant copy is for a page at most.
const PAGE_BYTES: usize = 4_096;

/// The domain.
pub(crate) struct DriverDomain {
    vifs: Vec<Vif>,
    stations: Stations,
    /// Of each vCPU: the VMs, a direction each, that it has still to look at before it may block, and what it found.
    rounds: Vec<Round>,
    spare: Vec<Stored>,
}

/// A VM, and what waits for it with the core that has it in its cache.
struct Vif {
    port: Port,
    queue: VecDeque<(Stored, CoreId)>,
}

/// One vCPU's way through its VMs.
#[derive(Clone, Copy, Default)]
struct Round {
    next: usize,
    was_busy: bool,
}

impl DriverDomain {
    pub(crate) fn new<'n>(nics: impl Iterator<Item = &'n Nic>, vcpus: usize) -> DriverDomain {
        let vifs: Vec<_> = nics
            .enumerate()
            .map(|(vm, nic)| Vif { port: Port::new(vm as u16, nic), queue: VecDeque::new() })
            .collect();
        DriverDomain {
            stations: Stations::new(vifs.len()),
            rounds: vec![Round::default(); vcpus.clamp(1, vifs.len().max(1))],
            vifs,
            spare: Vec::new(),
        }
    }

    pub(crate) fn workers(&self) -> usize {
        self.rounds.len()
    }

    /// The task of the vCPU that serves `vm`.
    fn server(&self, vm: usize) -> TaskId {
        TaskId((self.vifs.len() + vm % self.rounds.len()) as u16)
    }

    pub(crate) fn dropped(&self, vm: usize) -> u64 {
        self.vifs[vm].port.dropped
    }

    /// A VM sends on its event channel.
    pub(crate) fn kick(&self, host: &SimHost, vm: u16) {
        host.clock.charge(Account::Entry, host.prices.event_channel);
        host.signal(self.server(vm.into()), 0, 0);
    }

    /// A vCPU goes on with its round.
    pub(crate) fn step(&mut self, host: &SimHost, vcpu: usize, quantum_ns: u64) -> Shift {
        if host.take_signal(TaskId((self.vifs.len() + vcpu) as u16)) {
            host.clock.charge(Account::Entry, host.prices.interrupt);
        }
        let end_ns = host.clock.spent_ns() + quantum_ns;
        let count = self.rounds.len();
        let stops = 2 * self.vifs.len().saturating_sub(vcpu).div_ceil(count);
        while host.clock.spent_ns() < end_ns {
            let Round { next, was_busy } = self.rounds[vcpu];
            if next == stops {
                self.rounds[vcpu] = Round::default();
                if was_busy {
                    continue;
                }
                let mut news = false;
                for vif in self.vifs.iter_mut().skip(vcpu).step_by(count) {
                    news |= vif.port.enable_kicks(!vif.queue.is_empty());
                }
                return if news { Shift::Busy } else { Shift::Blocks(None) };
            }
            // First all directions from VMs, then all to VMs.
            let (vm, is_taking) = (vcpu + next % (stops / 2) * count, next < stops / 2);
            let busy = if is_taking { self.take(host, vm, end_ns) } else { self.give(host, vm, end_ns) };
            self.rounds[vcpu] = Round { next: next + 1, was_busy: was_busy || busy };
        }
        Shift::Busy
    }

    /// A batch from a VM's ring to others' queues.
    fn take(&mut self, host: &SimHost, sender: usize, end_ns: u64) -> bool {
        let mut taken = 0;
        while taken < BATCH && host.clock.spent_ns() < end_ns {
            let mut frame = self.spare.pop().unwrap_or_default();
            if !self.vifs[sender].port.take(host, &mut frame) {
                self.spare.push(frame);
                break;
            }
            taken += 1;
            let pages = frame.frame_bytes().div_ceil(PAGE_BYTES) as u64;
            host.clock
                .charge(Account::Backend, host.prices.netback_frame + pages * host.prices.grant_copy_frame);
            let receivers = self.stations.receivers(&frame);
            for receiver in receivers.clone().filter(|receiver| *receiver != sender) {
                let mut copy = self.spare.pop().unwrap_or_default();
                // A packet for one, as nearly all are, changes hands; only what is flooded is copied.
                if receivers.len() == 1 {
                    mem::swap(&mut copy, &mut frame);
                } else {
                    frame.duplicate(&mut copy);
                }
                let vif = &mut self.vifs[receiver];
                if vif.queue.len() < QUEUE_FRAMES {
                    vif.queue.push_back((copy, host.clock.core()));
                } else {
                    vif.port.dropped += 1;
                    self.spare.push(copy);
                }
                host.signal(self.server(receiver), host.prices.worker_wake, 0);
            }
            self.spare.push(frame);
        }
        self.finish(host, sender, taken)
    }

    /// A batch from a VM's queue to its ring.
    fn give(&mut self, host: &SimHost, receiver: usize, end_ns: u64) -> bool {
        let Vif { port, queue } = &mut self.vifs[receiver];
        let mut given = 0;
        while given < BATCH && host.clock.spent_ns() < end_ns {
            let Some((frame, from)) = queue.front_mut() else { break };
            if !port.give(host, frame, *from) {
                break;
            }
            given += 1;
            let pages = frame.frame_bytes().div_ceil(PAGE_BYTES) as u64;
            host.clock.charge(Account::Backend, pages * host.prices.grant_copy_frame);
            self.spare.extend(queue.pop_front().map(|(frame, _)| frame));
        }
        self.finish(host, receiver, given)
    }

    fn finish(&mut self, host: &SimHost, vm: usize, copied: usize) -> bool {
        if copied == 0 {
            return false;
        }
        host.clock.charge(Account::Entry, host.prices.grant_copy);
        if self.vifs[vm].port.publish() {
            host.signal(TaskId(vm as u16), host.prices.event_channel, host.prices.event_channel);
        }
        true
    }
}
