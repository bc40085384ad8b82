//! Hyper-Switch: the shipping data plane and the shipping control plane, entered on virtual cores.

use super::Shift;
use super::entrance::{Entrance, Seat};
use crate::clock::Account;
use crate::host::SimHost;
use crate::scenario::HostKind;
use hyper_switch_controlplane::learning_switch::{Config as LearningConfig, LearningSwitch};
use hyper_switch_controlplane::mac::MacEntry;
use hyper_switch_dataplane::api::{Event, Nanos, PortId, Request, VlanMode};
use hyper_switch_dataplane::host::CoreId;
use hyper_switch_dataplane::{
    Backend, Barrier, Control, CoreContext, PortState, QueuePair, Switch, SwitchConfig, VmBackend,
};
use hyper_switch_pvnet::guest::Nic;
use std::collections::BTreeSet;
use std::sync::Arc;

/// Flows that each VM may have: it talks to one other, and is flooded before that is known.
const FLOWS_PER_VM: usize = 8;

/// Between two looks whether cores have left the switch, for barriers, in nanoseconds.
const BARRIER_EVERY_NS: u64 = 5_000;

/// Flows that so many VMs may have together, at least.
pub(crate) fn max_flows(vms: usize) -> usize {
    (FLOWS_PER_VM * vms).max(1_024)
}

/// The switch with its control plane.
pub(crate) struct HyperSwitch {
    pub(crate) switch: Arc<Switch>,
    pub(crate) control: Control,
    /// The service's: for timers and the control plane.
    service: Entrance,
    pub(crate) plane: Plane,
    kind: HostKind,
}

/// The control plane, and what is on its way to it and from it.
pub(crate) struct Plane {
    learning: LearningSwitch,
    inbox: Vec<Event>,
    barriers: Vec<(u64, Barrier)>,
    /// A port may have broken.
    pub(crate) is_fault_near: bool,
    /// Ports whose fault it has been told of.
    broken: BTreeSet<PortId>,
    condition: Condition,
    /// How many times as long as usual it takes.
    pub(crate) slowness: u64,
}

/// Whether the control plane does its work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Condition {
    Working,
    /// It hears everything and says nothing.
    Silent,
    /// It is gone, and what it knew with it.
    Down,
}

impl HyperSwitch {
    /// A switch for so many VMs on the host's machine, in a host of that kind, and otherwise as in `config`.
    pub(crate) fn new(host: &SimHost, vms: usize, kind: HostKind, config: SwitchConfig) -> HyperSwitch {
        let machine = host.prices.machine;
        // Contexts, by number: idle cores, as the topology numbers them; VMs; the service.
        let cores = usize::from(machine.cores) + vms + 1;
        let topology = machine.topology();
        let (switch, control) = Switch::new(SwitchConfig { max_ports: vms, cores, topology, ..config });
        let plane = Plane {
            learning: LearningSwitch::new(LearningConfig::default()),
            inbox: Vec::new(),
            barriers: Vec::new(),
            is_fault_near: false,
            broken: BTreeSet::new(),
            condition: Condition::Working,
            slowness: 1,
        };
        HyperSwitch { service: Entrance::new(&switch, cores - 1), switch, control, plane, kind }
    }

    /// The entrance of an idle core.
    pub(crate) fn idle_entrance(&self, core: CoreId) -> Entrance {
        Entrance::new(&self.switch, core.0.into())
    }

    /// The entrance of a VM.
    pub(crate) fn vm_entrance(&self, host: &SimHost, vm: usize) -> Entrance {
        Entrance::new(&self.switch, usize::from(host.prices.machine.cores) + vm)
    }

    /// Attaches the VM with the next number.
    pub(crate) fn attach(&mut self, name: String, nic: &Nic) -> PortId {
        let id = self.control.reserve(name, VlanMode::Transparent);
        let id = id.expect("the switch was made for so many ports");
        self.connect(id, nic);
        id
    }

    /// Connects a VM to a port that has none.
    pub(crate) fn connect(&mut self, id: PortId, nic: &Nic) {
        let queues =
            vec![QueuePair::new(nic.memory(), nic.tx_layout(), nic.rx_layout(), nic.queue_features())];
        let rings = VmBackend { queues, mergeable: true, offloads: nic.offloads() };
        self.control.connect(id, Backend::Vm(rings)).expect("the port has no backend");
        self.plane.broken.remove(&id);
        if let Some(port) = self.control.port(id) {
            self.plane.tell(Event::PortAdded(port.info));
        }
    }

    /// Begins to disconnect the VM behind a port, which is over when [`HyperSwitch::reap`] says so.
    pub(crate) fn disconnect(&mut self, id: PortId) {
        if self.control.disconnect(id) && !self.plane.broken.remove(&id) {
            self.plane.tell(Event::PortRemoved(id));
        }
    }

    /// Carries on what takes time; answers whether nothing is left of that.
    pub(crate) fn reap(&mut self, host: &SimHost) -> bool {
        self.control.reap(self.service.context(), host).done
    }

    /// Tasks of its own: the timekeeper, where timers are a thread's.
    pub(crate) fn workers(&self) -> usize {
        usize::from(self.kind == HostKind::Threads)
    }

    /// The timekeeper's work.
    pub(crate) fn keep_time(&mut self, host: &SimHost) -> Shift {
        host.take_timekeeper_signal();
        let due = host.due_timers(host.clock.now().0);
        for vm in &due {
            self.expire(host, *vm);
        }
        if due.is_empty() { Shift::Blocks(host.sleep_until()) } else { Shift::Busy }
    }

    /// The timer of a VM fires.
    pub(crate) fn expire(&mut self, host: &SimHost, vm: PortId) {
        host.touch(vm);
        host.clock.charge(Account::Entry, host.prices.timer);
        let seat = Seat::alone(host);
        while self.service.enter(&seat, |switch, cx| switch.expire(cx, &seat, vm)).more {}
    }

    /// The control plane has had its time: it hears what came and its answers are carried out. Answers when it wants to
    /// be called next, whatever comes.
    pub(crate) fn run_control_plane(&mut self, host: &SimHost) -> Option<Nanos> {
        let HyperSwitch { control, service, plane, .. } = self;
        if plane.condition != Condition::Working {
            return None;
        }
        let context = service.context();
        plane.look_around(control);
        let mut requests = Vec::new();
        // What it asks for may make more to hear of at once.
        for _ in 0..MOST_TURNS {
            plane.learning.tick(host.clock.now(), &mut requests);
            for event in plane.inbox.drain(..) {
                plane.learning.handle(host.clock.now(), event, &mut requests);
            }
            for request in requests.drain(..) {
                plane.carry_out(control, context, host, request);
            }
            plane.answer_barriers(control);
            plane.look_around(control);
            if plane.inbox.is_empty() {
                break;
            }
        }
        if !plane.inbox.is_empty() {
            return Some(host.clock.now());
        }
        let deadline = plane.learning.next_deadline();
        // Cores that are in the switch now leave it soon.
        let barrier = (!plane.barriers.is_empty()).then(|| Nanos(host.clock.now().0 + BARRIER_EVERY_NS));
        deadline.into_iter().chain(barrier).min()
    }
}

/// How often the control plane is heard in one go, lest two that answer each other stop the clock.
const MOST_TURNS: usize = 16;

impl Plane {
    /// Tells the control plane, if there is one.
    fn tell(&mut self, event: Event) {
        if self.condition != Condition::Down {
            self.inbox.push(event);
        }
    }

    /// The control plane is gone; the data plane goes on with the flows that it has.
    pub(crate) fn crash(&mut self) {
        self.condition = Condition::Down;
        self.inbox.clear();
        self.barriers.clear();
    }

    /// It says nothing from now on, unless it is gone.
    pub(crate) fn fall_silent(&mut self) {
        if self.condition == Condition::Working {
            self.condition = Condition::Silent;
        }
    }

    /// It works again, or another in its place. Answers whether it did not before.
    pub(crate) fn restore(&mut self) -> bool {
        if self.condition == Condition::Down {
            self.learning = LearningSwitch::new(LearningConfig::default());
        }
        std::mem::replace(&mut self.condition, Condition::Working) != Condition::Working
    }

    /// Whether it knows that this address is behind that port, and all flows say so.
    pub(crate) fn knows(&self, mac: [u8; 6], port: PortId) -> bool {
        let is_it = |entry: MacEntry| entry.key.mac == mac && entry.port == port;
        let is_there = self.condition != Condition::Down && self.inbox.is_empty();
        is_there && self.learning.is_settled() && self.learning.macs().any(is_it)
    }

    /// Hands waiting packets to the control plane, and notices ports that broke.
    fn look_around(&mut self, control: &mut Control) {
        while let Some(upcall) = control.next_upcall() {
            self.inbox.push(Event::Upcall(upcall));
        }
        let may_be_broken =
            if std::mem::take(&mut self.is_fault_near) { control.ports() } else { Vec::new() };
        for port in may_be_broken {
            if let PortState::Faulted(_) = port.state
                && self.broken.insert(port.info.id)
            {
                self.inbox.push(Event::PortRemoved(port.info.id));
            }
        }
    }

    fn carry_out(&mut self, control: &mut Control, cx: &mut CoreContext, host: &SimHost, request: Request) {
        match request {
            Request::Install(flow) => {
                if let Err(error) = control.install(&flow, host.clock.now()) {
                    self.inbox.push(Event::InstallFailed(flow.id, error));
                }
            }
            Request::Modify(id, actions) => {
                if let Err(error) = control.modify(id, &actions) {
                    self.inbox.push(Event::InstallFailed(id, error));
                }
            }
            Request::Remove(id) => drop(control.remove(id)),
            Request::Resolve(id, verdict) => {
                let entered = control.resolve(cx, host, id, verdict);
                self.is_fault_near |= entered.faulted;
            }
            Request::List => {
                let ports = control.ports().into_iter().filter(|port| port.state == PortState::Up);
                self.inbox.push(Event::Ports(ports.map(|port| port.info).collect()));
                self.inbox.push(Event::Flows(control.flows()));
            }
            Request::Barrier(number) => self.barriers.push((number, control.barrier())),
        }
    }

    fn answer_barriers(&mut self, control: &mut Control) {
        let passed = self.barriers.iter().take_while(|(_, barrier)| control.passed(*barrier)).count();
        let answers = self.barriers.drain(..passed).map(|(number, _)| Event::Barrier(number));
        self.inbox.extend(answers);
    }
}
