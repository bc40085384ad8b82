//! The service: the thread that owns the switch's control and serves the control plane.
//!
//! It hands waiting packets to the control plane, carries its requests out, answers its barriers once every
//! core has passed them, lets timers fire, and does what the rest of the process asks ([`Service::ask`] of its
//! handle). It sleeps until one of these comes.

use super::lane::LaneWires;
use super::line::Line;
use super::{Bell, GuestBell, ThreadHost, VmThreads, now};
use crossbeam_channel::{Receiver, Sender, after, bounded, never, select};
use hyper_switch_dataplane::api::{Event, FlowRecord, Nanos, PortId, Request, VlanMode};
use hyper_switch_dataplane::{
    AttachError, Backend, Barrier, Control, CoreContext, Entered, ExchangeError, Map, PortConfig, PortFault,
    PortState, PortStatus, QueuePair,
};
use std::collections::{HashMap, HashSet};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

/// How long until a barrier that some core has not passed is looked at again. A core is inside the switch for
/// microseconds, unless the scheduler takes its thread off a processor there.
const BARRIER_RETRY: Duration = Duration::from_micros(200);

/// How often the threads of a VM that is another process are looked for.
const RESCAN: Duration = Duration::from_secs(1);

/// Something that the process asks of the service.
pub(super) type Order = Box<dyn FnOnce(&mut Service) + Send>;

/// The channels between the service and everybody else.
pub(super) struct Channels {
    pub(super) requests: Receiver<Request>,
    pub(super) events: Sender<Event>,
    pub(super) orders: Receiver<Order>,
    /// A timer was armed that the service would sleep past.
    pub(super) armed: Receiver<()>,
    pub(super) rung: Receiver<()>,
}

/// Everything that can be asked about the switch, at one moment.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// The ports, in the order of their numbers.
    pub ports: Vec<PortStatus>,
    /// The flows, in the order of their names.
    pub flows: Vec<FlowRecord>,
    /// How often each port broke, and how it did last; those that never did are not here.
    pub faults: HashMap<PortId, (u64, PortFault)>,
    /// When this was.
    pub at: Nanos,
}

/// The service's own side.
pub(super) struct Service {
    control: Control,
    cx: CoreContext,
    host: Arc<ThreadHost>,
    channels: Channels,
    /// Barriers that some core has not passed, oldest first.
    barriers: Vec<(u64, Barrier)>,
    /// Ports that were reported as broken.
    broken: HashSet<PortId>,
    /// How often each port broke, and how it did last.
    faults: HashMap<PortId, (u64, PortFault)>,
    /// The VMs whose threads are watched, and when they are looked for next.
    vms: Vec<(PortId, Arc<VmThreads>)>,
    /// Threads that nobody asks any more, but who asked for the last time may still do: it must not be the data path
    /// that lets go of them, which takes system calls.
    retired: Vec<Arc<VmThreads>>,
    rescan_at: Nanos,
    /// Who waits for the rings of VMs on their way out.
    leaving: HashMap<PortId, Sender<Vec<QueuePair>>>,
    /// Who waits until nothing of a VM is in memory that was exchanged, which the end of these says.
    exchanging: HashMap<PortId, Sender<Infallible>>,
    /// Something is to be reaped.
    detaching: bool,
    stopping: bool,
}

impl Service {
    pub(super) fn new(
        control: Control,
        cx: CoreContext,
        host: Arc<ThreadHost>,
        channels: Channels,
    ) -> Service {
        Service {
            control,
            cx,
            host,
            channels,
            barriers: Vec::new(),
            broken: HashSet::new(),
            faults: HashMap::new(),
            vms: Vec::new(),
            retired: Vec::new(),
            rescan_at: Nanos::default(),
            leaving: HashMap::new(),
            exchanging: HashMap::new(),
            detaching: false,
            stopping: false,
        }
    }

    pub(super) fn run(mut self) {
        while !self.stopping {
            let alarm = self.next_deadline().map_or_else(never, after);
            let Channels { requests, orders, armed, rung, .. } = &self.channels;
            select! {
                recv(requests) -> request => match request {
                    Ok(request) => self.carry_out(request),
                    Err(_) => return,
                },
                recv(orders) -> order => match order {
                    Ok(order) => order(&mut self),
                    Err(_) => return,
                },
                recv(rung) -> _ => self.look_around(),
                recv(armed) -> _ => {}
                recv(alarm) -> _ => {}
            }
            self.host.timers.wake();
            self.fire_timers();
            self.rescan();
            self.answer_barriers();
            if self.detaching {
                self.reap();
            }
        }
    }

    /// How long the service may sleep; for ever if there is nothing to wait for.
    fn next_deadline(&self) -> Option<Duration> {
        let timer = self.host.timers.sleep();
        if self.detaching || !self.barriers.is_empty() {
            return Some(BARRIER_RETRY);
        }
        let rescan = self.rescans().then_some(self.rescan_at);
        timer.into_iter().chain(rescan).min().map(|at| at.since(now()))
    }

    fn fire_timers(&mut self) {
        let (switch, host) = (self.control.switch().clone(), self.host.clone());
        for port in host.timers.take_due(now()) {
            let entered = switch.expire(&mut self.cx, &*host, port);
            self.after_entry(entered);
        }
    }

    /// Looks for threads of VMs that came and went, if it is time.
    fn rescan(&mut self) {
        if now() < self.rescan_at || !self.rescans() {
            return;
        }
        self.rescan_at = now().after(RESCAN);
        self.retired.clear();
        for (port, threads) in std::mem::take(&mut self.vms) {
            match threads.rescan() {
                Ok(None) => self.vms.push((port, threads)),
                Ok(Some(others)) => {
                    self.watch_vm(port, Arc::new(others));
                    self.retired.push(threads);
                }
                Err(error) => {
                    let port_id = port.0;
                    tracing::warn!(port = port_id, %error, "the run state of the port's VM is not known any more");
                    self.host.set_threads(port, None);
                    self.retired.push(threads);
                }
            }
        }
    }

    fn rescans(&self) -> bool {
        !self.vms.is_empty() || !self.retired.is_empty()
    }

    /// Has `threads` tell the run state of the VM behind a port.
    pub(super) fn watch_vm(&mut self, id: PortId, threads: Arc<VmThreads>) {
        self.host.set_threads(id, Some(threads.clone()));
        self.vms.push((id, threads));
    }

    fn after_entry(&mut self, entered: Entered) {
        if entered.upcalls || entered.faulted {
            self.look_around();
        }
    }

    /// Hands waiting packets to the control plane, and notices ports that broke.
    fn look_around(&mut self) {
        while let Some(upcall) = self.control.next_upcall() {
            self.tell(Event::Upcall(upcall));
        }
        for port in self.control.ports() {
            if let PortState::Faulted(fault) = port.state
                && self.broken.insert(port.info.id)
            {
                let (count, last) = self.faults.entry(port.info.id).or_insert((0, fault));
                (*count, *last) = (*count + 1, fault);
                let name = &port.info.name;
                let help = match fault {
                    PortFault::Device(_) => "restart the switch once its interface is there again",
                    PortFault::TxRing(_) | PortFault::RxRing(_) => {
                        "it comes back when its VM's driver starts anew"
                    }
                };
                tracing::error!(port = %name, %fault, "port is down, the others forward on; {help}");
                self.control.lanes(port.info.id).iter().for_each(|lane| self.host.report_fault(*lane));
                self.tell(Event::PortRemoved(port.info.id));
            }
        }
    }

    /// Tells the control plane. While there is none, what it would be told is in the switch: a new one lists
    /// ports and flows first, and packets that wait are dropped in time and counted.
    fn tell(&self, event: Event) {
        // The supervisor keeps a receiver for as long as the service runs.
        let _ = self.channels.events.send(event);
    }

    fn carry_out(&mut self, request: Request) {
        match request {
            Request::Install(flow) => {
                if let Err(error) = self.control.install(&flow, now()) {
                    tracing::debug!(id = flow.id.0, %error, "flow not installed");
                    self.tell(Event::InstallFailed(flow.id, error));
                }
            }
            Request::Modify(id, actions) => {
                if let Err(error) = self.control.modify(id, &actions) {
                    self.tell(Event::InstallFailed(id, error));
                }
            }
            Request::Remove(id) => {
                self.control.remove(id);
            }
            Request::Resolve(id, verdict) => {
                let entered = self.control.resolve(&mut self.cx, &*self.host, id, verdict);
                self.after_entry(entered);
            }
            Request::List => {
                let ports = self.control.ports().into_iter();
                let up = ports.filter(|port| port.state == PortState::Up).map(|port| port.info);
                self.tell(Event::Ports(up.collect()));
                self.tell(Event::Flows(self.control.flows()));
            }
            Request::Barrier(number) => {
                let barrier = self.control.barrier();
                self.barriers.push((number, barrier));
            }
        }
    }

    fn answer_barriers(&mut self) {
        let passed = self.barriers.iter().take_while(|(_, barrier)| self.control.passed(*barrier)).count();
        for (number, _) in self.barriers.drain(..passed).collect::<Vec<_>>() {
            self.tell(Event::Barrier(number));
        }
    }

    /// Makes a port without anything behind it. The control plane is told when a VM comes.
    pub(super) fn reserve(&mut self, name: String, vlan: VlanMode) -> Result<PortId, AttachError> {
        self.control.reserve(name, vlan)
    }

    /// Connects a VM of another process to a port that was reserved, and tells the control plane. Answers the numbers
    /// of its lanes, whose wires are these.
    pub(super) fn connect(
        &mut self,
        id: PortId,
        backend: Backend,
        wires: Vec<LaneWires>,
    ) -> Result<Vec<PortId>, AttachError> {
        self.control.connect(id, backend)?;
        let lanes = self.control.lanes(id);
        for (lane, wires) in lanes.iter().zip(wires) {
            self.wire(*lane, wires);
        }
        self.came(id);
        Ok(lanes)
    }

    /// Has a lane's notifications go by these wires.
    pub(super) fn wire(&mut self, lane: PortId, wires: LaneWires) {
        let by_hypercall = !self.control.switch().config().optimisations.preemptive_copy;
        self.host.set_line(lane, Some(Line::Wires { wires, by_hypercall }));
    }

    /// Begins to disconnect the VM behind a port. Its rings go to `gone` when nothing of it is in use any more.
    fn disconnect(&mut self, id: PortId, gone: Sender<Vec<QueuePair>>) {
        let lanes = self.control.lanes(id);
        if self.control.disconnect(id) {
            lanes.iter().for_each(|lane| self.host.set_line(*lane, None));
            self.leaving.insert(id, gone);
            self.went(id);
        }
    }

    /// Has frames for a port go to the lanes of this set, a bit each.
    pub(super) fn set_lanes(&mut self, id: PortId, enabled: u8) {
        self.control.set_lanes(&mut self.cx, &*self.host, id, enabled);
    }

    /// Begins to have the rings of a port go on in other memory. `done` is dropped when nothing is in use of the old one.
    fn exchange(&mut self, id: PortId, maps: &[Map], done: Sender<Infallible>) -> Result<(), ExchangeError> {
        self.detaching = true;
        self.exchanging.insert(id, done);
        let begun = self.control.exchange(&mut self.cx, &*self.host, id, maps);
        if begun.is_err() {
            self.exchanging.remove(&id);
        }
        begun
    }

    /// The control plane hears of a port that works now.
    fn came(&mut self, id: PortId) {
        self.broken.remove(&id);
        if let Some(port) = self.control.port(id) {
            self.tell(Event::PortAdded(port.info));
        }
    }

    /// The control plane hears of a port that works no longer, unless it heard so when it broke.
    fn went(&mut self, id: PortId) {
        self.detaching = true;
        if !self.broken.remove(&id) {
            self.tell(Event::PortRemoved(id));
        }
    }

    /// Carries on what takes time: VMs on their way out, memory that is exchanged.
    fn reap(&mut self) {
        let reaped = self.control.reap(&mut self.cx, &*self.host);
        self.detaching = !reaped.done;
        // Who waits hears that the sender is gone.
        self.exchanging.retain(|id, _| self.control.is_exchanging(*id));
        for gone in reaped.gone {
            if let Some(waits) = self.leaving.remove(&gone.port) {
                // Whoever no longer waits has ended.
                let _ = waits.send(gone.queues);
            }
        }
    }

    /// Attaches a port and tells the control plane. `bell` is rung for notifications of a VM.
    pub(super) fn attach(
        &mut self,
        config: PortConfig,
        bell: Option<Arc<GuestBell>>,
    ) -> Result<PortId, AttachError> {
        let id = self.control.attach(config)?;
        self.host.set_line(id, bell.map(Line::Bell));
        self.came(id);
        Ok(id)
    }

    /// Detaches a port and tells the control plane.
    pub(super) fn detach(&mut self, id: PortId) {
        if self.control.detach(id) {
            self.faults.remove(&id);
            self.host.set_threads(id, None);
            let gone = self.vms.extract_if(.., |(port, _)| *port == id);
            self.retired.extend(gone.map(|(_, threads)| threads));
            self.went(id);
        }
    }

    pub(super) fn snapshot(&self) -> Snapshot {
        let mut flows = self.control.flows();
        flows.sort_by_key(|flow| flow.spec.id);
        Snapshot { ports: self.control.ports(), flows, faults: self.faults.clone(), at: now() }
    }

    pub(super) fn stop(&mut self) {
        self.stopping = true;
    }
}

/// The rest of the process's side of the service.
#[derive(Clone)]
pub(super) struct ServiceHandle {
    pub(super) orders: Sender<Order>,
    pub(super) bell: Bell,
}

impl ServiceHandle {
    /// Disconnects the VM behind a port, and answers its rings when nothing of it is in use any more; none if the service
    /// has ended.
    pub(super) fn disconnect(&self, id: PortId) -> Vec<QueuePair> {
        let (gone, answered) = bounded(1);
        self.ask(move |service| service.disconnect(id, gone));
        answered.recv().unwrap_or_default()
    }

    /// Has the rings of a port go on in other memory, and waits until nothing is in use of the old one.
    ///
    /// # Errors
    /// The port has no such rings.
    pub(super) fn exchange(&self, id: PortId, maps: Vec<Map>) -> Result<(), ExchangeError> {
        let (done, exchanged) = bounded(1);
        let begun = self.ask(move |service| service.exchange(id, &maps, done));
        begun.unwrap_or(Ok(()))?;
        // Nothing is ever sent; it is over when nobody can.
        let _ = exchanged.recv();
        Ok(())
    }

    /// Has the service do something and waits for the answer; none if the service has ended.
    pub(super) fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce(&mut Service) -> T + Send + 'static,
    ) -> Option<T> {
        let (answer, answered) = bounded(1);
        let order: Order = Box::new(move |service| {
            let _ = answer.send(question(service));
        });
        self.orders.send(order).ok()?;
        answered.recv().ok()
    }
}
