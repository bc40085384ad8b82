//! Xen's way: the switch is in a driver domain, a VM like the others, which has to be scheduled before it can do
//! anything. Modelled on Linux's netback (`drivers/net/xen-netback`) under a bridge.
//!
//! ```text
//!   sender's ring ──grant copy──> the domain's memory ── bridge ──> queue ──grant copy──> receiver's ring
//!   event channel ──> the domain wakes                        the receiver's event channel ──> it is interrupted
//! ```
//!
//! Two copies a packet. What is counted and paid as an entry into the hypervisor:
//!
//! - the sender's notification (`EVTCHNOP_send`), unless the domain is at work on its ring already, and the interrupt
//!   that the domain takes for it;
//! - the domain's notification of a receiver, or of a sender whose buffers came back, if it asked for one, and the
//!   interrupt that it takes;
//! - the domain's grant copies: one `GNTTABOP_copy` for up to 64 packets of one VM, in each direction
//!   (`xenvif_tx_action`, `xenvif_rx_copy_flush`). Xen counts pages instead, so large packets are cheaper here.
//!
//! Cheaper than in reality is also that the domain is one thread without a kernel's network stack, whose lookup of an
//! address is a table, and that buffers are kept and not allocated. A queue takes as many
//! packets as vhost's: netback's own bound of 512 KiB (`XENVIF_RX_QUEUE_BYTES`) holds eight of 64 KiB, and the guests' TCP,
//! which is simple, stalls on what is dropped then. Newer netbacks map the pages of large packets instead of copying them from the sender; the
//! paper's does not.

use super::crew::{Crew, Shift};
use super::port::{BATCH, Kick, Port, QUEUE_FRAMES};
use super::{Architecture, Carried, Relay};
use crate::exit::{Failure, FailureKind};
use crate::host::GuestBell;
use crate::pair::cost::EntryCost;
use crate::pair::trial::Vm;
use hyper_switch_dataplane::VmBackend;
use hyper_switch_pvnet::guest::{Hypercall, Stations};
use hyper_switch_pvnet::ring::relay::Stored;
use std::collections::{BTreeMap, VecDeque};
use std::mem;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

pub(super) struct DriverDomain {
    cost: EntryCost,
    bell: Arc<OnceLock<Arc<GuestBell>>>,
    /// The VMs by number, until the start.
    ports: Mutex<BTreeMap<usize, Port>>,
    crew: Mutex<Crew<Carried>>,
}

impl DriverDomain {
    /// A domain for so many VMs, whose thread is pinned to the one of `cores`, if there are any, that comes behind theirs.
    pub(super) fn new(cost: EntryCost, cores: &[usize], vms: usize) -> DriverDomain {
        let crew = Mutex::new(Crew::new(cores, vms));
        DriverDomain { cost, bell: Arc::default(), ports: Mutex::default(), crew }
    }

    /// What the domain of the VMs that are attached has.
    fn domain(&self) -> Domain {
        let ports = mem::take(&mut *self.ports.lock().unwrap_or_else(PoisonError::into_inner));
        Domain {
            cost: self.cost,
            stations: Stations::new(ports.len()),
            vifs: ports.into_values().map(|port| Vif { port, queue: VecDeque::new() }).collect(),
            spare: Vec::new(),
            carried: Carried::default(),
        }
    }

    /// The domain without a thread of its own: whoever rings `bell` rings it.
    pub(super) fn by_hand(&self, bell: &Arc<GuestBell>) -> impl Relay + use<> {
        self.bell.get_or_init(|| bell.clone());
        self.domain()
    }
}

impl Architecture for DriverDomain {
    fn attach(&self, vm: Vm, rings: VmBackend, bell: Arc<GuestBell>) -> Result<Box<dyn Hypercall>, String> {
        let port = Port::new(vm, rings, bell.clone());
        self.ports.lock().unwrap_or_else(PoisonError::into_inner).insert(vm.number(), port);
        Ok(Box::new(Kick { server: self.bell.clone(), bell }))
    }

    fn start(&self) -> Result<(), Failure> {
        let domain = self.domain();
        let mut crew = self.crew.lock().unwrap_or_else(PoisonError::into_inner);
        let bell = crew.spawn("domain".to_owned(), move |shift| domain.live(shift))?;
        self.bell.get_or_init(|| bell);
        Ok(())
    }

    fn finish(self: Box<Self>) -> Result<Carried, Failure> {
        let mut crew = self.crew.into_inner().unwrap_or_else(PoisonError::into_inner);
        let failed = || Failure::new(FailureKind::Runtime, "the driver domain failed");
        crew.stop().pop().ok_or_else(failed)
    }
}

/// A VM and what waits for it.
struct Vif {
    port: Port,
    queue: VecDeque<Stored>,
}

/// What the domain's thread has.
struct Domain {
    cost: EntryCost,
    stations: Stations,
    vifs: Vec<Vif>,
    /// Memory for frames; the last is the warmest.
    spare: Vec<Stored>,
    carried: Carried,
}

impl Domain {
    fn live(mut self, shift: &Shift) -> Carried {
        shift.work(|notified| {
            if notified {
                self.carried.wakeups += 1;
                self.cost.pay();
            }
            self.work()
        });
        self.carried.vms = self.vifs.into_iter().map(|vif| vif.port.report).collect();
        self.carried
    }

    /// A batch from each ring, then a batch to each. Answers whether there is more, or may be.
    fn work(&mut self) -> bool {
        let mut busy = false;
        for sender in 0..self.vifs.len() {
            busy |= self.take(sender);
        }
        for receiver in 0..self.vifs.len() {
            busy |= self.give(receiver);
        }
        busy || self
            .vifs
            .iter_mut()
            .fold(false, |news, Vif { port, queue }| news | port.enable_kicks(!queue.is_empty()))
    }

    fn take(&mut self, sender: usize) -> bool {
        let mut taken = 0;
        while taken < BATCH {
            let mut frame = self.spare.pop().unwrap_or_default();
            if !self.vifs[sender].port.take(&mut frame) {
                self.spare.push(frame);
                break;
            }
            taken += 1;
            let receivers = self.stations.receivers(&frame);
            for receiver in receivers.clone().filter(|receiver| *receiver != sender) {
                let mut copy = self.spare.pop().unwrap_or_default();
                // A packet for one, as nearly all are, changes hands; only what is flooded is copied.
                if receivers.len() == 1 {
                    mem::swap(&mut copy, &mut frame);
                } else {
                    frame.duplicate(&mut copy);
                }
                let Vif { port, queue } = &mut self.vifs[receiver];
                if queue.len() < QUEUE_FRAMES {
                    queue.push_back(copy);
                } else {
                    port.dropped(1);
                    self.spare.push(copy);
                }
            }
            self.spare.push(frame);
        }
        self.copied_and_notified(sender, taken)
    }

    fn give(&mut self, receiver: usize) -> bool {
        let Vif { port, queue } = &mut self.vifs[receiver];
        let mut given = 0;
        while given < BATCH {
            let Some(frame) = queue.front_mut() else { break };
            if !port.give(frame) {
                break;
            }
            given += 1;
            self.spare.extend(queue.pop_front());
        }
        self.copied_and_notified(receiver, given)
    }

    fn copied_and_notified(&mut self, vm: usize, copied: usize) -> bool {
        if copied == 0 {
            return false;
        }
        self.entry();
        if self.vifs[vm].port.notify() {
            self.entry();
        }
        true
    }

    fn entry(&mut self) {
        self.carried.entries += 1;
        self.cost.pay();
    }
}

impl Relay for Domain {
    fn take(&mut self, vm: usize) -> bool {
        Domain::take(self, vm)
    }

    fn give(&mut self, vm: usize) -> bool {
        Domain::give(self, vm)
    }

    fn turn(&mut self, _vm: usize) -> bool {
        self.work()
    }
}
