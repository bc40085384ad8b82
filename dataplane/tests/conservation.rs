//! Conservation: random operations on VMs, a device, flows, verdicts and time, and after each of them every
//! port's ledger holds. Every frame says which stream it is of and its place there, so that each arrival shows
//! whether it is intact, in order, and the only one. At the end everything is drained, and every buffer has
//! come back once. Each run has another combination of the optimisations.

mod support;

use hyper_switch_dataplane::api::{Action, FlowId, FlowKey, PortId, UpcallId, Verdict};
use hyper_switch_dataplane::host::{CoreId, CoreSet, RunState};
use hyper_switch_dataplane::policy::Optimisations;
use hyper_switch_dataplane::{Entered, SwitchConfig};
use hyper_switch_pvnet::device::PushError;
use hyper_switch_pvnet::header::{Offloads, VnetHdr};
use hyper_switch_pvnet::ring::RingFormat;
use proptest::prelude::*;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use support::device::ScriptedDevice;
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
        2 => (vm, any::<bool>()).prop_map(|(vm, runs)| Runs { vm, runs }),
        2 => any::<bool>().prop_map(IdleCore),
        2 => Just(Reap),
        1 => prop::collection::vec(0..4_u8, 0..8).prop_map(DeviceAnswers),
    ]
}

/// Who sent a frame: every VM that ever was has a number of its own.
type Sender = u64;

struct World {
    bench: Bench,
    vms: Vec<(Sender, TestVm)>,
    left: Vec<(Sender, TestVm)>,
    device: (PortId, Arc<ScriptedDevice>),
    senders: u64,
    sent: HashMap<(Sender, u8), u64>,
    /// For each receiver and stream: the number that is expected next, or any later one.
    seen: HashMap<(Sender, Sender, u8), u64>,
    flows: Vec<(PortId, u8, FlowId)>,
    upcalls: Vec<UpcallId>,
}

/// The device's number as a sender and receiver.
const DEVICE: Sender = 0;

impl World {
    fn new(optimisations: Optimisations) -> World {
        let config = SwitchConfig {
            max_ports: 6,
            cores: 1,
            max_flows: 16,
            rx_queue_frames: 32,
            held_frames: 8,
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
            seen: HashMap::new(),
            flows: Vec::new(),
            upcalls: Vec::new(),
        };
        for at in 0..VMS {
            let vm = world.new_vm(at);
            world.vms.push(vm);
        }
        world
    }

    /// Each place has VMs of its own kind: large buffers, small ones to be merged, and small ones alone.
    fn new_vm(&mut self, place: usize) -> (Sender, TestVm) {
        let (rx_buffer_bytes, mergeable) = [(16_384, true), (500, true), (1600, false)][place];
        let ring = if place % 2 == 1 { RingFormat::Packed } else { RingFormat::Split };
        let config =
            VmConfig { ring, rx_buffer_bytes, mergeable, event_idx: place != 2, ..VmConfig::default() };
        let sender = self.senders;
        self.senders += 1;
        (sender, self.bench.vm_with("vm", config))
    }

    fn port(&self, end: usize) -> PortId {
        self.vms.get(end).map_or(self.device.0, |(_, vm)| vm.port)
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
            Operation::Transmit(end) => drop(self.transmit(self.port(*end))),
            Operation::Receive(vm) => drop(self.bench.receive(&self.vms[*vm].1)),
            Operation::Idle => {
                let Bench { switch, cx, host, .. } = &mut self.bench;
                switch.idle(cx, host);
            }
            Operation::Take { vm, post } => {
                self.take(*vm);
                self.vms[*vm].1.post(*post);
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
            Operation::Reap => drop(self.bench.reap()),
            Operation::Runs { vm, runs } => {
                let state = if *runs { RunState::Running(CoreId(0)) } else { RunState::Blocked };
                self.bench.host.states.borrow_mut().insert(self.port(*vm), state);
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
        let sender = self.vms.get(from).map_or(DEVICE, |(sender, _)| *sender);
        let number = *self.sent.get(&(sender, stream)).unwrap_or(&0);
        let frame = frame(sender, stream, number, bytes);
        let sent = match self.vms.get_mut(from) {
            Some((_, vm)) => {
                vm.completions();
                vm.send(&frame)
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

    fn take(&mut self, place: usize) {
        let (receiver, vm) = &mut self.vms[place];
        for (_, frame) in vm.take_received() {
            arrived(&mut self.seen, &self.sent, *receiver, &frame);
        }
    }

    fn take_from_device(&mut self) {
        for (_, frame) in self.device.1.take_pushed() {
            arrived(&mut self.seen, &self.sent, DEVICE, &frame);
        }
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

    fn replace(&mut self, place: usize) {
        // What it has offered is taken first, so that in the end all of it must have come back. One place of
        // the switch is kept free for the newcomer.
        if self.left.iter().any(|(_, vm)| self.bench.control.port(vm.port).is_some()) {
            return;
        }
        self.offer_core(false);
        while self.transmit(self.vms[place].1.port).frames > 0 {}
        self.take(place);
        self.bench.detach(self.vms[place].1.port);
        let new = self.new_vm(place);
        self.left.push(std::mem::replace(&mut self.vms[place], new));
    }

    /// Everybody takes what there is, time passes for what nobody takes, and nothing is left in the switch.
    fn drain(&mut self) {
        self.offer_core(false);
        for end in 0..=VMS {
            while self.transmit(self.port(end)).frames > 0 {}
        }
        for _ in 0..20 {
            for place in 0..VMS {
                self.take(place);
                self.vms[place].1.post(u16::MAX);
                self.bench.receive(&self.vms[place].1);
            }
        }
        self.pass(Duration::from_secs(2));
        self.take_from_device();
        // A device's frames may have waited in it for buffers.
        while self.device.1.waiting() > 0 {
            self.transmit(self.device.0);
            for place in 0..VMS {
                self.bench.receive(&self.vms[place].1);
                self.take(place);
                self.vms[place].1.post(u16::MAX);
            }
            self.take_from_device();
            self.pass(Duration::from_secs(2));
        }
        assert!((0..4).any(|_| self.bench.reap()), "ports that left are gone");
        for (_, vm) in self.vms.iter_mut().chain(&mut self.left) {
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

fn arrived(
    seen: &mut HashMap<(Sender, Sender, u8), u64>,
    sent: &HashMap<(Sender, u8), u64>,
    receiver: Sender,
    bytes: &[u8],
) {
    let number_at = |at: usize| u64::from_be_bytes(*bytes[at..].first_chunk().expect("a whole frame"));
    let (stream, sender, number) = (bytes[5], number_at(14), number_at(22));
    assert_eq!(bytes, frame(sender, stream, number, bytes.len()), "the frame is intact");
    assert!(number < sent[&(sender, stream)], "it was sent");
    let next = seen.entry((receiver, sender, stream)).or_default();
    assert!(number >= *next, "frame {number} of {sender}/{stream} came after {next} to {receiver}");
    *next = number + 1;
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
