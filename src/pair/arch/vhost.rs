//! KVM's way: the switch is in the host's kernel, and each VM's rings are served by a thread of its own. Modelled on
//! Linux's vhost-net (`drivers/vhost/net.c`) over TAPs (`drivers/net/tun.c`) on a bridge.
//!
//! ```text
//!   sender's ring ──copy──> skb ── bridge ──> the receiver's TAP (a queue) ──copy──> receiver's ring
//!   kick ──> the sender's worker wakes   ──>  the receiver's worker wakes         ──> the receiver is interrupted
//! ```
//!
//! Two copies a packet: the sender's worker copies from the guest to an skb, sends that through the bridge and leaves it
//! at the receiver's TAP; the receiver's worker copies from there. (`experimental_zcopytx` is off by default, and packets
//! to another TAP are copied in any case, as the bridge may not hold a guest's pages.) The guest pays an entry for its
//! kick, unless the worker is at work on its ring already, and for the interrupt that it takes; the workers are threads of
//! the host and pay none: what they pay is to wake and to be scheduled.
//!
//! Cheaper than in reality: the bridge is a table, there is no skb to set up, buffers are kept and not allocated, a
//! receiver's worker is woken once for a batch. A TAP's queue takes 500 packets (`TUN_READQ_SIZE`); what is over that is
//! dropped.

use super::crew::{Crew, Shift};
use super::port::{BATCH, Kick, Port, QUEUE_FRAMES};
use super::{Architecture, Carried, Relay};
use crate::exit::{Failure, FailureKind};
use crate::host::GuestBell;
use crate::pair::trial::Vm;
use crossbeam_queue::ArrayQueue;
use hyper_switch_dataplane::VmBackend;
use hyper_switch_pvnet::guest::{Hypercall, Stations};
use hyper_switch_pvnet::ring::relay::Stored;
use std::collections::BTreeMap;
use std::mem;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

pub(super) struct Vhost {
    bridge: Arc<Bridge>,
    /// The VMs by number, until the start.
    ports: Mutex<BTreeMap<usize, Port>>,
    crew: Mutex<Crew<Carried>>,
}

/// What the workers share.
struct Bridge {
    taps: Vec<Tap>,
    stations: Stations,
    /// Memory for frames. Workers take and return a batch at a time.
    spare: Mutex<Vec<Stored>>,
}

/// One VM's TAP: what waits for its worker.
struct Tap {
    queue: ArrayQueue<Stored>,
    dropped: AtomicU64,
    worker: Arc<OnceLock<Arc<GuestBell>>>,
}

impl Vhost {
    /// A switch for so many VMs, whose workers are pinned to `cores` in turn, behind the VMs.
    pub(super) fn new(cores: &[usize], vms: usize) -> Vhost {
        let tap = || Tap {
            queue: ArrayQueue::new(QUEUE_FRAMES),
            dropped: AtomicU64::new(0),
            worker: Arc::default(),
        };
        let taps = (0..vms).map(|_| tap()).collect();
        let bridge = Bridge { taps, stations: Stations::new(vms), spare: Mutex::default() };
        Vhost { bridge: Arc::new(bridge), ports: Mutex::default(), crew: Mutex::new(Crew::new(cores, vms)) }
    }

    /// What the workers of the VMs that are attached have, in the order of their numbers.
    fn workers(&self) -> Vec<Worker> {
        let ports = mem::take(&mut *self.ports.lock().unwrap_or_else(PoisonError::into_inner));
        let worker = |(number, port)| Worker {
            number,
            port,
            bridge: self.bridge.clone(),
            spare: Vec::new(),
            stuck: None,
            wakeups: 0,
        };
        ports.into_iter().map(worker).collect()
    }

    /// The workers without threads of their own: whoever rings `bell` rings all of them.
    pub(super) fn by_hand(&self, bell: &Arc<GuestBell>) -> impl Relay + use<> {
        for tap in &self.bridge.taps {
            tap.worker.get_or_init(|| bell.clone());
        }
        self.workers()
    }
}

impl Architecture for Vhost {
    fn attach(&self, vm: Vm, rings: VmBackend, bell: Arc<GuestBell>) -> Result<Box<dyn Hypercall>, String> {
        let port = Port::new(vm, rings, bell.clone());
        self.ports.lock().unwrap_or_else(PoisonError::into_inner).insert(vm.number(), port);
        Ok(Box::new(Kick { server: self.bridge.taps[vm.number()].worker.clone(), bell }))
    }

    fn start(&self) -> Result<(), Failure> {
        let mut crew = self.crew.lock().unwrap_or_else(PoisonError::into_inner);
        for worker in self.workers() {
            let (number, name) = (worker.number, format!("vhost-{}", worker.port.report.name));
            let bell = crew.spawn(name, move |shift| worker.live(shift))?;
            self.bridge.taps[number].worker.get_or_init(|| bell);
        }
        Ok(())
    }

    fn finish(self: Box<Self>) -> Result<Carried, Failure> {
        let workers = self.crew.into_inner().unwrap_or_else(PoisonError::into_inner).stop();
        if workers.len() < self.bridge.taps.len() {
            return Err(Failure::new(FailureKind::Runtime, "a vhost worker failed"));
        }
        let mut all = Carried::default();
        for worker in workers {
            all.vms.extend(worker.vms);
            all.wakeups += worker.wakeups;
        }
        Ok(all)
    }
}

/// What the thread of one VM has.
struct Worker {
    number: usize,
    port: Port,
    bridge: Arc<Bridge>,
    /// Memory for frames; the last is the warmest.
    spare: Vec<Stored>,
    /// A frame off the TAP for which there were no buffers.
    stuck: Option<Stored>,
    wakeups: u64,
}

impl Worker {
    fn live(mut self, shift: &Shift) -> Carried {
        shift.work(|notified| {
            self.wakeups += u64::from(notified);
            self.work()
        });
        self.port.dropped(self.bridge.taps[self.number].dropped.load(Ordering::Relaxed));
        Carried { vms: vec![self.port.report], entries: 0, wakeups: self.wakeups }
    }

    /// A batch in each direction. Answers whether there is more, or may be.
    fn work(&mut self) -> bool {
        let busy = self.transmit() | self.receive();
        busy || self.port.enable_kicks(self.stuck.is_some())
    }

    /// A batch from the VM's transmit ring to others' TAPs.
    fn transmit(&mut self) -> bool {
        let bridge = self.bridge.clone();
        if self.spare.len() < BATCH {
            let mut pool = bridge.spare.lock().unwrap_or_else(PoisonError::into_inner);
            let rest = pool.len().saturating_sub(BATCH);
            self.spare.extend(pool.drain(rest..));
        }
        let mut taken = 0;
        // Most batches are for one receiver, which is woken once; another one in between costs one wake-up more.
        let mut woken: Option<usize> = None;
        while taken < BATCH {
            let mut frame = self.spare.pop().unwrap_or_default();
            if !self.port.take(&mut frame) {
                self.spare.push(frame);
                break;
            }
            taken += 1;
            let receivers = bridge.stations.receivers(&frame);
            for receiver in receivers.clone().filter(|receiver| *receiver != self.number) {
                let mut copy = self.spare.pop().unwrap_or_default();
                // A packet for one, as nearly all are, changes hands; only what is flooded is copied.
                if receivers.len() == 1 {
                    mem::swap(&mut copy, &mut frame);
                } else {
                    frame.duplicate(&mut copy);
                }
                let tap = &bridge.taps[receiver];
                if let Err(refused) = tap.queue.push(copy) {
                    tap.dropped.fetch_add(1, Ordering::Relaxed);
                    self.spare.push(refused);
                }
                if let Some(before) = woken.replace(receiver).filter(|before| *before != receiver) {
                    bridge.wake(before);
                }
            }
            self.spare.push(frame);
        }
        if let Some(last) = woken {
            bridge.wake(last);
        }
        if taken > 0 {
            self.port.notify();
        }
        taken > 0
    }

    /// A batch from the VM's TAP to its receive ring.
    fn receive(&mut self) -> bool {
        let queue = &self.bridge.taps[self.number].queue;
        let mut given = 0;
        while given < BATCH {
            let Some(mut frame) = self.stuck.take().or_else(|| queue.pop()) else { break };
            if !self.port.give(&mut frame) {
                self.stuck = Some(frame);
                break;
            }
            given += 1;
            self.spare.push(frame);
        }
        if given > 0 {
            self.port.notify();
        }
        if self.spare.len() > 2 * BATCH {
            let mut pool = self.bridge.spare.lock().unwrap_or_else(PoisonError::into_inner);
            pool.extend(self.spare.drain(BATCH..));
        }
        given > 0
    }
}

impl Relay for Vec<Worker> {
    fn take(&mut self, vm: usize) -> bool {
        self[vm].transmit()
    }

    fn give(&mut self, vm: usize) -> bool {
        self[vm].receive()
    }

    fn turn(&mut self, vm: usize) -> bool {
        self[vm].work()
    }
}

impl Bridge {
    fn wake(&self, worker: usize) {
        self.taps[worker].worker.get().expect("VMs start after the switch").ring();
    }
}
