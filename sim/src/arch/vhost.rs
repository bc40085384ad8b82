//! KVM's way: the switch is in the host's kernel, and each VM's rings are served by a thread of its own. Modelled on
//! Linux's vhost-net (`drivers/vhost/net.c`) over TAPs (`drivers/net/tun.c`) on a bridge.
//!
//! ```text
//!   sender's ring ──copy──> skb ── bridge ──> the receiver's TAP (a queue) ──copy──> receiver's ring
//!   kick ──> the sender's worker wakes   ──>  the receiver's worker wakes         ──> the receiver is interrupted
//! ```

use super::Shift;
use super::port::{Port, QUEUE_FRAMES, Stations};
use crate::clock::Account;
use crate::host::{SimHost, TaskId};
use hyper_switch_dataplane::host::CoreId;
use hyper_switch_pvnet::guest::Nic;
use hyper_switch_pvnet::ring::relay::Stored;
use std::collections::VecDeque;
use std::mem;

/// Frames after which what was done is shown (`VHOST_NET_BATCH`).
const BATCH: usize = 64;

/// The workers and what is between them.
pub(crate) struct Vhost {
    taps: Vec<Tap>,
    stations: Stations,
    spare: Vec<Stored>,
}

/// A VM, and what waits for its worker with the core that has it in its cache.
struct Tap {
    port: Port,
    queue: VecDeque<(Stored, CoreId)>,
}

impl Vhost {
    pub(crate) fn new<'n>(nics: impl Iterator<Item = &'n Nic>) -> Vhost {
        let taps: Vec<_> = nics
            .enumerate()
            .map(|(vm, nic)| Tap { port: Port::new(vm as u16, nic), queue: VecDeque::new() })
            .collect();
        Vhost { stations: Stations::new(taps.len()), taps, spare: Vec::new() }
    }

    pub(crate) fn workers(&self) -> usize {
        self.taps.len()
    }

    fn worker(&self, vm: usize) -> TaskId {
        TaskId((self.taps.len() + vm) as u16)
    }

    pub(crate) fn dropped(&self, vm: usize) -> u64 {
        self.taps[vm].port.dropped
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
        let (mut taken, mut given) = (0, 0);
        while host.clock.spent_ns() < end_ns && taken < BATCH && self.take(host, vm) {
            taken += 1;
        }
        while host.clock.spent_ns() < end_ns && given < BATCH && self.give(host, vm) {
            given += 1;
        }
        let Tap { port, queue } = &mut self.taps[vm];
        if taken + given == 0 && host.clock.spent_ns() < end_ns {
            return if port.enable_kicks(!queue.is_empty()) { Shift::Busy } else { Shift::Blocks(None) };
        }
        if port.publish() {
            host.signal(TaskId(vm as u16), host.prices.notify, host.prices.notify_awake);
        }
        Shift::Busy
    }

    /// A frame from the VM's transmit ring to others' TAPs.
    fn take(&mut self, host: &SimHost, sender: usize) -> bool {
        let mut frame = self.spare.pop().unwrap_or_default();
        let taken = self.taps[sender].port.take(host, &mut frame);
        if taken {
            host.clock.charge(Account::Backend, host.prices.vhost_frame + host.prices.bridge_frame);
            let receivers = self.stations.receivers(&frame);
            for receiver in receivers.clone().filter(|receiver| *receiver != sender) {
                let mut copy = self.spare.pop().unwrap_or_default();
                // A packet for one, as nearly all are, changes hands; only what is flooded is copied.
                if receivers.len() == 1 {
                    mem::swap(&mut copy, &mut frame);
                } else {
                    frame.duplicate(&mut copy);
                }
                let tap = &mut self.taps[receiver];
                if tap.queue.len() < QUEUE_FRAMES {
                    tap.queue.push_back((copy, host.clock.core()));
                } else {
                    tap.port.dropped += 1;
                    self.spare.push(copy);
                }
                host.signal(self.worker(receiver), host.prices.worker_wake, 0);
            }
        }
        self.spare.push(frame);
        taken
    }

    /// A frame from the VM's TAP to its receive ring.
    fn give(&mut self, host: &SimHost, receiver: usize) -> bool {
        let Tap { port, queue } = &mut self.taps[receiver];
        let Some((frame, from)) = queue.front_mut() else { return false };
        if !port.give(host, frame, *from) {
            return false;
        }
        host.clock.charge(Account::Backend, host.prices.vhost_frame);
        self.spare.extend(queue.pop_front().map(|(frame, _)| frame));
        true
    }
}
