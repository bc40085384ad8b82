//! A worker: a thread, pinned to a core, that switches what its ports' devices and VMs bring.
//!
//! It sleeps in `epoll_wait`. Devices are watched level-triggered, so what an entry leaves behind brings the worker back;
//! a device whose port is down is watched no longer. A VM of another process kicks: then its ring is switched until it is
//! empty, and looked at again for a while, without kicks, as long as that pays (`polling`). In a VM's stead the worker also
//! makes its receive hypercall, when it has posted buffers that frames wait for.

use super::lane::LaneWires;
use super::polling::Polling;
use super::topology::pin_to;
use super::{Bell, NetDevice, ThreadHost, now};
use hyper_switch_dataplane::api::{Nanos, PortId};
use hyper_switch_dataplane::{CoreContext, Entered, Switch};
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::event::{EventfdFlags, eventfd};
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::time::Timespec;
use std::collections::HashMap;
use std::io;
use std::mem::MaybeUninit;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

/// The epoll keys: of a port's device or transmit kick its number, which has 16 bits; of its receive kick this besides;
/// of the doorbell.
const RX_KICK: u64 = 1 << 16;
const DOORBELL: u64 = u64::MAX;

const NO_TIME: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };

/// Looks at the lanes that are polled between two looks at everything else.
const ROUNDS: u32 = 32;

/// Devices that one `epoll_wait` tells of.
const EVENTS: usize = 64;

/// A worker that found so many frames at once gives way before it takes more. Where the VMs share the worker's
/// cores, a third more small UDP packets arrive than when it runs until it is preempted; a lone packet, or a few large
/// ones, do not pay for it.
const YIELD_FRAMES: u32 = 64;

/// What a worker is told.
enum Order {
    Watch(PortId, NetDevice),
    WatchLane(PortId, LaneWires),
    ForgetLane(PortId),
    Stop,
}

/// Several workers that share lanes.
#[derive(Clone)]
pub(super) struct Workers {
    desks: Arc<[Desk]>,
}

impl Workers {
    /// Of these, none of which may be missing.
    pub(super) fn of(workers: &[Worker]) -> Workers {
        assert!(!workers.is_empty(), "lanes need a worker");
        Workers { desks: workers.iter().map(|worker| worker.desk.clone()).collect() }
    }

    /// Has a worker switch a lane by its wires; by its new wires, if it does already.
    pub(super) fn watch_lane(&self, lane: PortId, wires: LaneWires) {
        self.of_lane(lane).order(Order::WatchLane(lane, wires));
    }

    /// Has the lane's worker forget it.
    pub(super) fn forget_lane(&self, lane: PortId) {
        self.of_lane(lane).order(Order::ForgetLane(lane));
    }

    /// A port's first lane has its number, counted up from 0, further ones have numbers from the end: all spread.
    fn of_lane(&self, lane: PortId) -> &Desk {
        &self.desks[usize::from(lane.0) % self.desks.len()]
    }
}

/// Where a worker's orders are left.
#[derive(Clone)]
struct Desk {
    orders: Sender<Order>,
    doorbell: Arc<OwnedFd>,
}

impl Desk {
    fn order(&self, order: Order) {
        // A worker that has ended has said so.
        if self.orders.send(order).is_ok() {
            // Fails only when the counter is at its maximum, and then the worker has been told already.
            let _ = rustix::io::write(&*self.doorbell, &1u64.to_ne_bytes());
        }
    }
}

/// A running worker.
pub(super) struct Worker {
    desk: Desk,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    /// Starts worker `number`, on `core` if one is given.
    pub(super) fn start(
        number: usize,
        core: Option<usize>,
        switch: Arc<Switch>,
        cx: CoreContext,
        host: Arc<ThreadHost>,
        service: Bell,
    ) -> io::Result<Worker> {
        let doorbell = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        epoll::add(&epoll, &doorbell, EventData::new_u64(DOORBELL), EventFlags::IN)?;
        let (orders, ordered) = channel();
        let rung = doorbell.clone();
        let mut watch = Watch {
            epoll,
            doorbell: rung,
            ordered,
            devices: HashMap::new(),
            lanes: HashMap::new(),
            polled: Vec::new(),
            polling: Polling::default(),
            idle_since: None,
            switch,
            cx,
            host,
            service,
        };
        let name = format!("worker-{number}");
        let thread = std::thread::Builder::new().name(name).spawn(move || {
            if let Some(core) = core
                && let Err(error) = pin_to(core)
            {
                tracing::warn!(core, %error, "the worker is not pinned to its core");
            }
            if let Err(error) = watch.run() {
                tracing::error!(%error, worker = number, "the worker ends; its ports no longer forward");
            }
        })?;
        Ok(Worker { desk: Desk { orders, doorbell }, thread: Some(thread) })
    }

    /// Has the worker switch what `device` brings to `port`.
    pub(super) fn watch(&self, port: PortId, device: NetDevice) {
        self.desk.order(Order::Watch(port, device));
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.desk.order(Order::Stop);
        if let Some(thread) = self.thread.take() {
            // A panic of the thread has been reported by the panic hook.
            let _ = thread.join();
        }
    }
}

/// The worker's own side.
struct Watch {
    epoll: OwnedFd,
    doorbell: Arc<OwnedFd>,
    ordered: Receiver<Order>,
    devices: HashMap<PortId, NetDevice>,
    lanes: HashMap<PortId, LaneWires>,
    /// The lanes that are looked at without kicks.
    polled: Vec<PortId>,
    polling: Polling,
    /// Since when nothing has come from them.
    idle_since: Option<Nanos>,
    switch: Arc<Switch>,
    cx: CoreContext,
    host: Arc<ThreadHost>,
    service: Bell,
}

impl Watch {
    fn run(&mut self) -> io::Result<()> {
        let mut events = [const { MaybeUninit::<Event>::uninit() }; EVENTS];
        // Whether kicks were awaited since when, to learn from.
        let mut asleep_since = None;
        loop {
            let patience = if self.polled.is_empty() { None } else { Some(&NO_TIME) };
            let ready = match epoll::wait(&self.epoll, &mut events, patience) {
                Ok((ready, _)) => ready,
                Err(Errno::INTR) => continue,
                Err(error) => return Err(error.into()),
            };
            for event in ready {
                match event.data.u64() {
                    DOORBELL if self.obey()? => return Ok(()),
                    DOORBELL => {}
                    key if key & RX_KICK != 0 => self.receive(PortId(key as u16)),
                    port if self.lanes.contains_key(&PortId(port as u16)) => {
                        if let Some(since) = asleep_since.take() {
                            self.polling.slept(now().since(since).as_nanos() as u64);
                        }
                        self.kicked(PortId(port as u16));
                    }
                    port => self.serve(PortId(port as u16)),
                }
            }
            if !self.polled.is_empty() && !self.poll() {
                asleep_since = Some(now());
            }
        }
    }

    /// Carries orders out. Answers whether to stop.
    fn obey(&mut self) -> io::Result<bool> {
        // The counter is cleared before the orders are read, so that a later one rings again.
        let _ = rustix::io::read(&*self.doorbell, &mut [0; 8]);
        while let Ok(order) = self.ordered.try_recv() {
            match order {
                Order::Stop => return Ok(true),
                Order::Watch(port, device) => {
                    epoll::add(&self.epoll, &device, EventData::new_u64(port.0.into()), EventFlags::IN)?;
                    self.devices.insert(port, device);
                }
                Order::WatchLane(lane, wires) => self.watch_lane(lane, wires),
                Order::ForgetLane(lane) => self.forget_lane(lane),
            }
        }
        Ok(false)
    }

    fn watch_lane(&mut self, lane: PortId, wires: LaneWires) {
        self.forget_lane(lane);
        for (wires, key) in [(&wires.tx, 0), (&wires.rx, RX_KICK)] {
            let key = EventData::new_u64(key | u64::from(lane.0));
            if let Err(error) = epoll::add(&self.epoll, &wires.kick, key, EventFlags::IN) {
                // The VMM gave one eventfd for two things: it harms itself alone.
                tracing::warn!(lane = lane.0, %error, "a VM's kicks are not heard");
            }
        }
        self.lanes.insert(lane, wires);
        // What was kicked before, to whomever that went.
        self.kicked(lane);
        self.receive(lane);
    }

    fn forget_lane(&mut self, lane: PortId) {
        self.polled.retain(|polled| *polled != lane);
        if let Some(wires) = self.lanes.remove(&lane) {
            for wires in [&wires.tx, &wires.rx] {
                // Not there only if it could not be added.
                let _ = epoll::delete(&self.epoll, &wires.kick);
            }
        }
    }

    /// The VM behind a lane kicked: its ring is looked at from now on.
    fn kicked(&mut self, lane: PortId) {
        if let Some(wires) = self.lanes.get(&lane) {
            wires.tx.kick.drain();
            if !self.polled.contains(&lane) {
                self.polled.push(lane);
            }
        }
    }

    /// Looks at the lanes that are polled until it is time to look at everything else, or to sleep. Answers whether any
    /// is still polled.
    fn poll(&mut self) -> bool {
        for _ in 0..ROUNDS {
            let mut frames = 0;
            for at in 0..self.polled.len() {
                let entered = self.switch.poll(&mut self.cx, &*self.host, self.polled[at]);
                frames += entered.frames + entered.copied;
                self.note(entered);
            }
            if frames > 0 {
                self.idle_since = None;
                continue;
            }
            let now = now();
            let since = *self.idle_since.get_or_insert(now);
            if now.since(since).as_nanos() as u64 >= self.polling.look_ns() {
                return self.stop_polling();
            }
            std::hint::spin_loop();
        }
        true
    }

    /// Has the VMs kick again. Those whose rings are not empty are polled on. Answers whether there is any.
    fn stop_polling(&mut self) -> bool {
        self.idle_since = None;
        for lane in std::mem::take(&mut self.polled) {
            let entered = self.switch.transmit(&mut self.cx, &*self.host, lane);
            if entered.frames > 0 && !entered.down {
                self.polled.push(lane);
            }
            self.note(entered);
        }
        !self.polled.is_empty()
    }

    /// The receive hypercall, in a VM's stead.
    fn receive(&mut self, lane: PortId) {
        let Some(wires) = self.lanes.get(&lane).cloned() else { return };
        wires.rx.kick.drain();
        let entered = self.switch.receive(&mut self.cx, &*self.host, lane);
        if entered.interrupt {
            wires.rx.interrupt();
        }
        if entered.more {
            // The kick brings the worker back, after others had their turn.
            wires.rx.kick.signal();
        }
        self.note(entered);
    }

    fn note(&self, entered: Entered) {
        if entered.upcalls || entered.faulted {
            self.service.ring();
        }
    }

    fn serve(&mut self, port: PortId) {
        let entered = self.switch.transmit(&mut self.cx, &*self.host, port);
        self.note(entered);
        if entered.frames >= YIELD_FRAMES {
            // Whoever receives these frames has to run, too, before its socket buffer overflows.
            std::thread::yield_now();
        }
        if entered.down
            && let Some(device) = self.devices.remove(&port)
        {
            // A device that is gone took its watch with it.
            let _ = epoll::delete(&self.epoll, &device);
        }
    }
}
