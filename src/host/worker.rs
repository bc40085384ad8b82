//! A worker: a thread, pinned to a core, that switches what its ports' devices bring.
//!
//! It sleeps in `epoll_wait`; devices are watched level-triggered, so what an entry leaves behind brings the
//! worker back. A device whose port is down is watched no longer.

use super::topology::pin_to;
use super::{Bell, NetDevice, ThreadHost};
use hyper_switch_dataplane::api::PortId;
use hyper_switch_dataplane::{CoreContext, Switch};
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::event::{EventfdFlags, eventfd};
use rustix::fd::OwnedFd;
use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

/// The epoll key of the doorbell; port numbers have 16 bits.
const DOORBELL: u64 = u64::MAX;

/// Devices that one `epoll_wait` tells of.
const EVENTS: usize = 64;

/// A worker that found so many frames at once gives way before it takes more. Where the VMs share the worker's
/// cores, a third more small UDP packets arrive than when it runs until it is preempted; a lone packet, or a few large
/// ones, do not pay for it.
const YIELD_FRAMES: u32 = 64;

/// What a worker is told.
enum Order {
    Watch(PortId, NetDevice),
    Stop,
}

/// A running worker.
pub(super) struct Worker {
    orders: Sender<Order>,
    doorbell: Arc<OwnedFd>,
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
        let mut watch =
            Watch { epoll, doorbell: rung, ordered, devices: HashMap::new(), switch, cx, host, service };
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
        Ok(Worker { orders, doorbell, thread: Some(thread) })
    }

    /// Has the worker switch what `device` brings to `port`.
    pub(super) fn watch(&self, port: PortId, device: NetDevice) {
        self.order(Order::Watch(port, device));
    }

    fn order(&self, order: Order) {
        // A worker that has ended has said so.
        if self.orders.send(order).is_ok() {
            // Fails only when the counter is at its maximum, and then the worker has been told already.
            let _ = rustix::io::write(&*self.doorbell, &1u64.to_ne_bytes());
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.order(Order::Stop);
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
    switch: Arc<Switch>,
    cx: CoreContext,
    host: Arc<ThreadHost>,
    service: Bell,
}

impl Watch {
    fn run(&mut self) -> io::Result<()> {
        let mut events = [const { std::mem::MaybeUninit::<Event>::uninit() }; EVENTS];
        loop {
            let ready = match epoll::wait(&self.epoll, &mut events, None) {
                Ok((ready, _)) => ready,
                Err(rustix::io::Errno::INTR) => continue,
                Err(error) => return Err(error.into()),
            };
            for event in ready {
                match event.data.u64() {
                    DOORBELL if self.obey()? => return Ok(()),
                    DOORBELL => {}
                    port => self.serve(PortId(port as u16)),
                }
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
            }
        }
        Ok(false)
    }

    fn serve(&mut self, port: PortId) {
        let entered = self.switch.transmit(&mut self.cx, &*self.host, port);
        if entered.upcalls || entered.faulted {
            self.service.ring();
        }
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
