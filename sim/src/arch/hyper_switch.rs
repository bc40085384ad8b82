//! Hyper-Switch: the shipping data plane and the shipping control plane, entered on virtual cores.

use super::Shift;
use super::entrance::{Entrance, Seat};
use crate::clock::Account;
use crate::host::SimHost;
use crate::scenario::HostKind;
use hyper_switch_controlplane::learning_switch::{Config as LearningConfig, LearningSwitch};
use hyper_switch_dataplane::api::{Event, Nanos, PortId, Request, VlanMode};
use hyper_switch_dataplane::host::CoreId;
use hyper_switch_dataplane::policy::Optimisations;
use hyper_switch_dataplane::policy::notification::Pace;
use hyper_switch_dataplane::{
    Backend, Barrier, Control, CoreContext, PortConfig, PortState, QueuePair, Switch, SwitchConfig, VmBackend,
};
use hyper_switch_pvnet::guest::Nic;
use std::collections::BTreeSet;
use std::sync::Arc;

/// Flows that each VM may have: it talks to one other, and is flooded before that is known.
const FLOWS_PER_VM: usize = 8;

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
}

impl HyperSwitch {
    pub(crate) fn new(
        host: &SimHost,
        vms: usize,
        optimisations: Optimisations,
        pace: Pace,
        kind: HostKind,
        seed: u64,
    ) -> HyperSwitch {
        let machine = host.prices.machine;
        // Contexts, by number: idle cores, as the topology numbers them; VMs; the service.
        let cores = usize::from(machine.cores) + vms + 1;
        let (switch, control) = Switch::new(SwitchConfig {
            max_ports: vms,
            cores,
            max_flows: (FLOWS_PER_VM * vms).max(1_024),
            optimisations,
            pace,
            topology: machine.topology(),
            seed,
            ..SwitchConfig::default()
        });
        let plane = Plane {
            learning: LearningSwitch::new(LearningConfig::default()),
            inbox: Vec::new(),
            barriers: Vec::new(),
            is_fault_near: false,
            broken: BTreeSet::new(),
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
        let rings = VmBackend {
            queues: vec![QueuePair::new(
                nic.memory(),
                nic.tx_layout(),
                nic.rx_layout(),
                nic.queue_features(),
            )],
            mergeable: true,
            offloads: nic.offloads(),
        };
        let config = PortConfig { name, vlan: VlanMode::Transparent, backend: Backend::Vm(rings) };
        let id = self.control.attach(config).expect("the switch was made for so many ports");
        if let Some(port) = self.control.port(id) {
            self.plane.inbox.push(Event::PortAdded(port.info));
        }
        id
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
        host.clock.charge(Account::Entry, host.prices.timer);
        let seat = Seat::alone(host);
        while self.service.enter(&seat, |switch, cx| switch.expire(cx, &seat, vm)).more {}
    }

    /// The control plane has had its time: it hears what came and its answers are carried out. Answers when it wants to
    /// be called next, whatever comes.
    pub(crate) fn run_control_plane(&mut self, host: &SimHost) -> Option<Nanos> {
        let HyperSwitch { control, service, plane, .. } = self;
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
        plane.learning.next_deadline()
    }
}

/// How often the control plane is heard in one go, lest two that answer each other stop the clock.
const MOST_TURNS: usize = 16;

impl Plane {
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
