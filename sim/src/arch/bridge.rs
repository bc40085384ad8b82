//! A switch that stores and forwards, as far as it is the same wherever it is: frames come out of a VM's ring into memory
//! of its own, wait for their receivers, and go into these' rings.

use super::port::{Port, QUEUE_FRAMES};
use crate::clock::Account;
use crate::guest::frame::HEAD_BYTES;
use crate::host::{SimHost, TaskId};
use hyper_switch_dataplane::host::CoreId;
use hyper_switch_pvnet::guest::{Nic, Stations};
use hyper_switch_pvnet::ring::relay::Stored;
use std::collections::VecDeque;
use std::mem;

/// The VMs, and the memory for frames.
pub(crate) struct Bridge {
    vms: Vec<Attached>,
    stations: Stations,
    /// The last is the warmest.
    spare: Vec<Stored>,
}

/// A VM, and what waits for it with the core that has it in its cache.
struct Attached {
    port: Port,
    queue: VecDeque<(Stored, CoreId)>,
    /// Frames that were dropped as the queue was full.
    dropped: u64,
}

impl Bridge {
    pub(crate) fn new<'n>(nics: impl Iterator<Item = &'n Nic>) -> Bridge {
        let attached = |(vm, nic): (usize, &Nic)| Attached {
            port: Port::new(vm as u16, nic),
            queue: VecDeque::new(),
            dropped: 0,
        };
        let vms: Vec<_> = nics.enumerate().map(attached).collect();
        Bridge { stations: Stations::new(vms.len()), vms, spare: Vec::new() }
    }

    /// How many VMs there are.
    pub(crate) fn vms(&self) -> usize {
        self.vms.len()
    }

    /// Frames for a VM that were dropped.
    pub(crate) fn dropped(&self, vm: usize) -> u64 {
        self.vms[vm].dropped
    }

    /// Takes the next frame that a VM sent, which costs so much by its bytes, and leaves it to those that it is for, whose
    /// servers are signalled. `false` if there is none.
    pub(crate) fn take(
        &mut self,
        host: &SimHost,
        sender: usize,
        price: impl FnOnce(usize) -> u64,
        server: impl Fn(usize) -> TaskId,
    ) -> bool {
        let mut frame = room(&mut self.spare, host);
        let taken = self.vms[sender].port.take(host, &mut frame);
        if taken {
            host.clock.charge(Account::Backend, price(frame.frame_bytes()));
            let receivers = self.stations.receivers(&frame);
            for receiver in receivers.clone().filter(|receiver| *receiver != sender) {
                let mut copy = room(&mut self.spare, host);
                // A packet for one, as nearly all are, changes hands; only what is flooded is copied.
                if receivers.len() == 1 {
                    mem::swap(&mut copy, &mut frame);
                } else {
                    frame.duplicate(&mut copy);
                }
                let Attached { queue, dropped, .. } = &mut self.vms[receiver];
                if queue.len() < QUEUE_FRAMES {
                    queue.push_back((copy, host.clock.core()));
                } else {
                    *dropped += 1;
                    self.spare.push(copy);
                }
                host.signal(server(receiver), host.prices.worker_wake, 0);
            }
        }
        self.spare.push(frame);
        taken
    }

    /// Gives a VM the next frame that waits for it, which costs so much by its bytes. `false` if there is none, or the VM has
    /// posted too few buffers.
    pub(crate) fn give(&mut self, host: &SimHost, receiver: usize, price: impl FnOnce(usize) -> u64) -> bool {
        let Attached { port, queue, .. } = &mut self.vms[receiver];
        let Some((frame, from)) = queue.front_mut() else { return false };
        if !port.give(host, frame, *from) {
            return false;
        }
        host.clock.charge(Account::Backend, price(frame.frame_bytes()));
        self.spare.extend(queue.pop_front().map(|(frame, _)| frame));
        true
    }

    /// Shows a VM what was taken and given. Answers whether it wants to be interrupted for that.
    pub(crate) fn publish(&mut self, vm: usize) -> bool {
        self.vms[vm].port.publish()
    }

    /// Asks a VM to kick when it sends, and, if frames wait for it, when it posts buffers. Answers whether it did in the
    /// meantime, for which no kick may come.
    pub(crate) fn enable_kicks(&mut self, vm: usize) -> bool {
        let Attached { port, queue, .. } = &mut self.vms[vm];
        port.enable_kicks(!queue.is_empty())
    }
}

/// Room for a frame, as much of it as guests read.
fn room(spare: &mut Vec<Stored>, host: &SimHost) -> Stored {
    let made = || if host.copies_payload { Stored::default() } else { Stored::beginning(HEAD_BYTES) };
    spare.pop().unwrap_or_else(made)
}
