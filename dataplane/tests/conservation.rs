//! Conservation: random operations on VMs, some with several queue pairs, a device, flows, verdicts and time, and after
//! each of them every port's ledger holds. VMs go, for good or to be connected again, and have their memory exchanged.
//! Every frame says which stream it is of and its place there, so that each arrival shows whether it is intact, in order,
//! and the only one. At the end everything is drained, and every buffer has
//! come back once. Each run has another combination of the optimisations.

mod support;

use hyper_switch_dataplane::api::{Action, FlowId, FlowKey, PortId, UpcallId, Verdict};
use hyper_switch_dataplane::host::{CoreId, CoreSet, RunState};
use hyper_switch_dataplane::policy::Optimisations;
use hyper_switch_dataplane::{Entered, PortState, SwitchConfig};
use hyper_switch_pvnet::device::PushError;
use hyper_switch_pvnet::header::{Offloads, VnetHdr};
use hyper_switch_pvnet::ring::RingFormat;
use proptest::prelude::*;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;
use support::device::ScriptedDevice;
use support::pages::Pages;
use support::{Bench, TestVm, VmConfig};

/// VMs, and the place of the device behind them.
const VMS: usize = 3;
/// Streams that each sender has; each matches at most one flow.
const STREAMS: u8 = 3;
const HEAD_BYTES: usize = 14 + 8 + 8;

#[derive(Clone, Debug)]
enum Operation {
    /// `count` frames of one stream, from a VM or the device.
    Send {
        from: usize,
        stream: u8,
        count: u8,
        bytes: usize,
    },
    Transmit(usize),
    Receive(usize),
    Idle,
    /// The VM takes what it received, and posts so many buffers.
    Take {
        vm: usize,
        post: u16,
    },
    /// Gives a stream other actions: by a new flow or by changing the one it has. Outputs are a set.
    Program {
        from: usize,
        stream: u8,
        outputs: u8,
    },
    RemoveFlow(usize),
    Ask,
    /// A verdict on one of the upcalls that were asked for.
    Resolve {
        upcall: usize,
        verdict: u8,
        outputs: u8,
    },
    Pass(u16),
    /// A VM leaves and another takes its place.
    Replace(usize),
    /// A VM is disconnected from its port, which stays.
    Disconnect(usize),
    /// Another VM is connected there, if it can be.
    Connect(usize),
    /// A VM enables these of its lanes, and no others.
    SetLanes {
        vm: usize,
        enabled: u8,
    },
    /// A VM's memory is mapped anew.
    Exchange(usize),
    Reap,
    DeviceAnswers(Vec<u8>),
    /// A VM runs from now on, or blocks.
    Runs {
        vm: usize,
        runs: bool,
    },
    /// Another core is idle, or no longer; it comes by [`Operation::Idle`].
    IdleCore(bool),
}

fn operation() -> impl Strategy<Value = Operation> {
    use Operation::*;
    let (end, vm, stream) = (0..=VMS, 0..VMS, 0..STREAMS);
    let bytes = prop_oneof![HEAD_BYTES..200, 1000..1600_usize, Just(9000)];
    prop_oneof![
        12 => (end.clone(), stream.clone(), 1..20_u8, bytes)
            .prop_map(|(from, stream, count, bytes)| Send { from, stream, count, bytes }),
        8 => end.clone().prop_map(Transmit),
        8 => vm.clone().prop_map(Receive),
        4 => Just(Idle),
        8 => (vm.clone(), 0..40_u16).prop_map(|(vm, post)| Take { vm, post }),
        6 => (end, stream, 0..16_u8).prop_map(|(from, stream, outputs)| Program { from, stream, outputs }),
        2 => (0..8_usize).prop_map(RemoveFlow),
        4 => Just(Ask),
        4 => (0..8_usize, 0..4_u8, 0..16_u8)
            .prop_map(|(upcall, verdict, outputs)| Resolve { upcall, verdict, outputs }),
        2 => (0..700_u16).prop_map(Pass),
        1 => vm.clone().prop_map(Replace),
        1 => vm.clone().prop_map(Disconnect),
        3 => vm.clone().prop_map(Connect),
        1 => (vm.clone(), 0..16_u8).prop_map(|(vm, enabled)| SetLanes { vm, enabled }),
        3 => vm.clone().prop_map(Exchange),
        2 => (vm, any::<bool>()).prop_map(|(vm, runs)| Runs { vm, runs }),
        2 => any::<bool>().prop_map(IdleCore),
        2 => Just(Reap),
        1 => prop::collection::vec(0..4_u8, 0..8).prop_map(DeviceAnswers),
    ]
}

/// Who sent a frame: every VM that ever was has a number of its own.
type Sender = u64;

/// A VM, or the place of one that was disconnected.
struct Vm {
    sender: Sender,
    port: PortId,
    /// Its queue pairs, each with its memory; none where nothing is connected.
    lanes: Vec<(TestVm, Pages)>,
}

/// Queue pairs that the VM at each place has.
const LANES: [usize; VMS] = [1, 2, 4];

struct World {
    bench: Bench,
    vms: Vec<Vm>,
    left: Vec<TestVm>,
    device: (PortId, Arc<ScriptedDevice>),
    senders: u64,
    sent: HashMap<(Sender, u8), u64>,
    seen: Seen,
    flows: Vec<(PortId, u8, FlowId)>,
    upcalls: Vec<UpcallId>,
}

/// The device's number as a sender and receiver.
const DEVICE: Sender = 0;

impl World {
    fn new(optimisations: Optimisations) -> World {
        let config = SwitchConfig {
            max_ports: 20,
            cores: 1,
            max_flows: 16,
            rx_queue_frames: 32,
            held_frames: 8,
            upcalls: 8,
            optimisations,
            ..SwitchConfig::default()
        };
        let mut bench = Bench::with(config);
        let device = ScriptedDevice::new(Offloads::ALL);
        let device = (device.attach(&mut bench, "device"), device);
        let mut world = World {
            bench,
            vms: Vec::new(),
            left: Vec::new(),
            device,
            senders: DEVICE + 1,
            sent: HashMap::new(),
            seen: Seen::default(),
            flows: Vec::new(),
            upcalls: Vec::new(),
        };
        for place in 0..VMS {
            let port = world.bench.control.reserve("vm".into(), Default::default()).unwrap();
            world.vms.push(Vm { sender: DEVICE, port, lanes: Vec::new() });
            world.connect(place);
        }
        world
    }

    /// Connects a new VM. Each place has VMs of its own kind: large buffers, small ones to be merged, and small ones alone.
    fn connect(&mut self, place: usize) {
        let (rx_buffer_bytes, mergeable) = [(16_384, true), (500, true), (1600, false)][place];
        let ring = if place % 2 == 1 { RingFormat::Packed } else { RingFormat::Split };
        let config =
            VmConfig { ring, rx_buffer_bytes, mergeable, event_idx: place != 2, ..VmConfig::default() };
        let mut pages = Vec::new();
        let mut lanes: Vec<_> = (0..LANES[place])
            .map(|_| {
                TestVm::new(config, |bytes| {
                    pages.push(Pages::new(bytes));
                    pages.last().expect("it was just put there").map().0
                })
            })
            .collect();
        let vm = &mut self.vms[place];
        TestVm::connect(&mut self.bench.control, vm.port, &mut lanes);
        vm.lanes = lanes.into_iter().zip(pages).collect();
        vm.sender = self.senders;
        self.senders += 1;
    }

    fn port(&self, end: usize) -> PortId {
        self.vms.get(end).map_or(self.device.0, |vm| vm.port)
    }

    /// The numbers that an end enters by.
    fn lanes(&self, end: usize) -> Vec<PortId> {
        match self.vms.get(end) {
            Some(vm) => vm.lanes.iter().map(|(lane, _)| lane.port).collect(),
            None => vec![self.device.0],
        }
    }

    fn outputs(&self, set: u8) -> Vec<Action> {
        (0..=VMS).filter(|end| set >> end & 1 != 0).map(|end| Action::Output(self.port(end))).collect()
    }

    fn apply(&mut self, operation: &Operation) {
        match operation {
            Operation::Send { from, stream, count, bytes } => {
                for _ in 0..*count {
                    self.send(*from, *stream, *bytes);
                }
            }
            Operation::Transmit(end) => {
                for lane in self.lanes(*end) {
                    self.transmit(lane);
                }
            }
            Operation::Receive(vm) => self.receive(*vm),
            Operation::Idle => {
                let Bench { switch, cx, host, .. } = &mut self.bench;
                switch.idle(cx, host);
            }
            Operation::Take { vm, post } => {
                self.take(*vm);
                self.post(*vm, *post);
            }
            Operation::Program { from, stream, outputs } => self.program(*from, *stream, *outputs),
            Operation::RemoveFlow(at) => {
                if *at < self.flows.len() {
                    let (_, _, id) = self.flows.swap_remove(*at);
                    assert!(self.bench.control.remove(id));
                }
            }
            Operation::Ask => {
                self.upcalls.extend(self.bench.control.next_upcall().map(|upcall| upcall.id));
            }
            Operation::Resolve { upcall, verdict, outputs } => {
                let Some(id) = self.upcalls.get(*upcall).copied() else { return };
                // Now and then it is answered twice.
                if outputs % 2 == 0 {
                    self.upcalls.swap_remove(*upcall);
                }
                let verdict = match verdict {
                    0 => Verdict::Drop,
                    1 => Verdict::Execute(self.outputs(*outputs).into()),
                    _ => Verdict::Retry,
                };
                let Bench { control, cx, host, .. } = &mut self.bench;
                control.resolve(cx, host, id, verdict);
            }
            Operation::Pass(ms) => self.pass(Duration::from_millis((*ms).into())),
            Operation::Replace(place) => self.replace(*place),
            Operation::Disconnect(place) => self.disconnect(*place),
            Operation::Connect(place) => {
                if self.bench.state(self.vms[*place].port) == PortState::Absent {
                    self.connect(*place);
                }
            }
            Operation::SetLanes { vm, enabled } => {
                let Vm { sender, port, .. } = self.vms[*vm];
                // Frames of a flow may wait for two lanes now.
                self.seen.reordered.insert(sender);
                let Bench { control, cx, host, .. } = &mut self.bench;
                control.set_lanes(cx, host, port, *enabled);
            }
            Operation::Exchange(vm) => self.exchange(*vm),
            Operation::Reap => drop(self.bench.reap()),
            Operation::Runs { vm, runs } => {
                let state = if *runs { RunState::Running(CoreId(0)) } else { RunState::Blocked };
                for lane in self.lanes(*vm) {
                    self.bench.host.states.borrow_mut().insert(lane, state);
                }
            }
            Operation::IdleCore(is_idle) => self.offer_core(*is_idle),
            Operation::DeviceAnswers(answers) => {
                let outcomes =
                    [Ok(()), Err(PushError::Full), Err(PushError::LinkDown), Err(PushError::Refused)];
                self.device.1.answer(answers.iter().map(|answer| outcomes[usize::from(*answer)]));
            }
        }
        self.take_from_device();
        self.bench.check_ledger();
    }

    fn offer_core(&mut self, is_idle: bool) {
        let core = if is_idle { CoreSet::EMPTY.with(CoreId(1)) } else { CoreSet::EMPTY };
        self.bench.host.idle.set(core);
    }

    fn transmit(&mut self, port: PortId) -> Entered {
        let Bench { switch, cx, host, .. } = &mut self.bench;
        switch.transmit(cx, host, port)
    }

    fn send(&mut self, from: usize, stream: u8, bytes: usize) {
        let sender = self.vms.get(from).map_or(DEVICE, |vm| vm.sender);
        let number = *self.sent.get(&(sender, stream)).unwrap_or(&0);
        let frame = frame(sender, stream, number, bytes);
        let sent = match self.vms.get_mut(from).map(|vm| &mut vm.lanes[..]) {
            Some([]) => false,
            // A stream by the same lane, lest the VM itself change its order.
            Some(lanes) => {
                let (lane, _) = &mut lanes[usize::from(stream) % lanes.len()];
                lane.completions();
                lane.send(&frame)
            }
            None => {
                self.device.1.incoming(&VnetHdr::PLAIN, &frame);
                true
            }
        };
        if sent {
            self.sent.insert((sender, stream), number + 1);
        }
    }

    fn receive(&mut self, place: usize) {
        for (lane, _) in &self.vms[place].lanes {
            self.bench.receive(lane);
        }
    }

    fn take(&mut self, place: usize) {
        let Vm { sender, lanes, .. } = &mut self.vms[place];
        for (_, frame) in lanes.iter_mut().flat_map(|(lane, _)| lane.take_received()) {
            self.seen.arrived(&self.sent, *sender, &frame);
        }
    }

    fn post(&mut self, place: usize, buffers: u16) {
        for (lane, _) in &mut self.vms[place].lanes {
            lane.post(buffers);
        }
    }

    fn take_from_device(&mut self) {
        for (_, frame) in self.device.1.take_pushed() {
            self.seen.arrived(&self.sent, DEVICE, &frame);
        }
    }

    fn exchange(&mut self, place: usize) {
        let Vm { port, lanes, .. } = &self.vms[place];
        let maps: Vec<_> = lanes.iter().map(|(lane, pages)| lane.map_in(Arc::new(pages.map().0))).collect();
        let Bench { control, cx, host, .. } = &mut self.bench;
        let outcome = control.exchange(cx, host, *port, &maps);
        assert_eq!(outcome.is_ok(), !maps.is_empty());
    }

    fn program(&mut self, from: usize, stream: u8, outputs: u8) {
        let (port, actions) = (self.port(from), self.outputs(outputs));
        if let Some((_, _, id)) = self.flows.iter().find(|flow| (flow.0, flow.1) == (port, stream)) {
            assert_eq!(self.bench.control.modify(*id, &actions.into()), Ok(true));
            return;
        }
        let key = FlowKey { in_port: port.0.into(), eth_dst: address(stream), ..FlowKey::ZERO };
        // Streams differ in how much of them is matched, so that there are several masks.
        let mask = match stream {
            0 => FlowKey { in_port: u32::MAX, eth_dst: [0xff; 6], ..FlowKey::ZERO },
            _ => FlowKey { in_port: u32::MAX, eth_dst: [0, 0, 0, 0, 0, 0xff], ..FlowKey::ZERO },
        };
        let id = self.bench.flow(key, mask, &actions);
        self.flows.push((port, stream, id));
    }

    fn pass(&mut self, time: Duration) {
        self.bench.host.advance(time);
        for vm in self.bench.host.take_due() {
            let Bench { switch, cx, host, .. } = &mut self.bench;
            switch.expire(cx, host, vm);
        }
    }

    /// Takes all that a VM has offered, so that in the end all of it must have come back, and what it has received.
    fn empty(&mut self, place: usize) {
        self.offer_core(false);
        for lane in self.lanes(place) {
            while self.transmit(lane).frames > 0 {}
        }
        self.take(place);
    }

    fn replace(&mut self, place: usize) {
        // One at a time, so that there are numbers for the newcomer.
        if self.bench.control.ports().iter().any(|port| port.state == PortState::Leaving) {
            return;
        }
        self.empty(place);
        self.bench.detach(self.vms[place].port);
        self.vms[place].port = self.bench.control.reserve("vm".into(), Default::default()).unwrap();
        self.left.extend(self.vms[place].lanes.drain(..).map(|(lane, _)| lane));
        self.connect(place);
    }

    fn disconnect(&mut self, place: usize) {
        self.empty(place);
        if self.bench.control.disconnect(self.vms[place].port) {
            self.left.extend(self.vms[place].lanes.drain(..).map(|(lane, _)| lane));
        }
    }

    /// Everybody takes what there is, time passes for what nobody takes, and nothing is left in the switch.
    fn drain(&mut self) {
        self.offer_core(false);
        for lane in (0..=VMS).flat_map(|end| self.lanes(end)).collect::<Vec<_>>() {
            while self.transmit(lane).frames > 0 {}
        }
        for _ in 0..20 {
            for place in 0..VMS {
                self.take(place);
                self.post(place, u16::MAX);
                self.receive(place);
            }
        }
        self.pass(Duration::from_secs(2));
        self.take_from_device();
        // A device's frames may have waited in it for buffers.
        while self.device.1.waiting() > 0 {
            self.transmit(self.device.0);
            for place in 0..VMS {
                self.receive(place);
                self.take(place);
                self.post(place, u16::MAX);
            }
            self.take_from_device();
            self.pass(Duration::from_secs(2));
        }
        assert!((0..4).any(|_| self.bench.reap()), "ports that left are gone");
        let there = self.vms.iter_mut().flat_map(|vm| &mut vm.lanes).map(|(lane, _)| lane);
        for vm in there.chain(&mut self.left) {
            vm.completions();
            assert_eq!(vm.outstanding(), 0, "every buffer has come back");
        }
        for port in self.bench.control.ports() {
            assert_eq!((port.in_flight, port.waiting, port.held), (0, 0, 0), "{}", port.info.name);
        }
        self.bench.check_ledger();
    }
}

fn address(stream: u8) -> [u8; 6] {
    [2, 0, 0, 0, 1, stream]
}

/// A frame of a stream, which says what it is and can be told whole.
fn frame(sender: Sender, stream: u8, number: u64, bytes: usize) -> Vec<u8> {
    let mut frame = Vec::with_capacity(bytes);
    frame.extend(address(stream));
    frame.extend([2, 0, 0, 0, 0, 0]);
    frame.extend([0x88, 0xb5]);
    frame.extend(sender.to_be_bytes());
    frame.extend(number.to_be_bytes());
    frame.extend((HEAD_BYTES..bytes).map(|at| ((at as u64 * 31) ^ number ^ sender) as u8));
    frame
}

/// What has arrived.
#[derive(Default)]
struct Seen {
    /// For each receiver and stream: the number that is expected next, or any later one.
    next: HashMap<(Sender, Sender, u8), u64>,
    /// Receivers that changed their lanes: what comes is the only one, in whatever order.
    reordered: HashSet<Sender>,
    all: HashSet<(Sender, Sender, u8, u64)>,
}

impl Seen {
    fn arrived(&mut self, sent: &HashMap<(Sender, u8), u64>, receiver: Sender, bytes: &[u8]) {
        let number_at = |at: usize| u64::from_be_bytes(*bytes[at..].first_chunk().expect("a whole frame"));
        let (stream, sender, number) = (bytes[5], number_at(14), number_at(22));
        assert_eq!(bytes, frame(sender, stream, number, bytes.len()), "the frame is intact");
        assert!(number < sent[&(sender, stream)], "it was sent");
        assert!(self.all.insert((receiver, sender, stream, number)), "it came once");
        let next = self.next.entry((receiver, sender, stream)).or_default();
        let is_in_order = number >= *next || self.reordered.contains(&receiver);
        assert!(is_in_order, "frame {number} of {sender}/{stream} came after {next} to {receiver}");
        *next = number + 1;
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn everything_is_somewhere_and_in_order(
        operations in prop::collection::vec(operation(), 1..250),
        combination in 0..8_usize,
    ) {
        let mut world = World::new(support::combinations().nth(combination).unwrap());
        for operation in &operations {
            world.apply(operation);
        }
        world.drain();
    }
}
