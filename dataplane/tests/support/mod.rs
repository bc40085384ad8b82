//! A switch on a scripted host: no threads, a clock that the test moves, VMs whose drivers the test is.
#![allow(dead_code, reason = "each test file uses its own part of this")]

use hyper_switch_dataplane::api::{Action, FlowId, FlowKey, FlowSpec, Match, Nanos, PortId, VlanMode};
use hyper_switch_dataplane::host::{CoreId, CoreSet, Host, RunState};
use hyper_switch_dataplane::{
    Backend, Control, CoreContext, Entered, PortConfig, Switch, SwitchConfig, VmBackend,
};
use hyper_switch_pvnet::header::{Offloads, VnetHdr};
use hyper_switch_pvnet::mem::{GuestMemory, Segment};
use hyper_switch_pvnet::ring::device::QueueFeatures;
use hyper_switch_pvnet::ring::driver::{DriverFeatures, DriverQueue};
use hyper_switch_pvnet::ring::{QueueAddrs, QueueLayout};
use std::cell::{Cell, RefCell};
use std::sync::Arc;
use std::time::Duration;

/// A host that does nothing by itself and remembers what it was asked.
#[derive(Default)]
pub struct ScriptedHost {
    pub now: Cell<u64>,
    pub notified: RefCell<Vec<PortId>>,
    pub armed: RefCell<Vec<(PortId, Nanos)>>,
}

impl ScriptedHost {
    pub fn advance(&self, by: Duration) {
        self.now.set(self.now.get() + by.as_nanos() as u64);
    }

    /// The VMs notified since the last call.
    pub fn take_notified(&self) -> Vec<PortId> {
        self.notified.take()
    }
}

impl Host for ScriptedHost {
    fn now(&self) -> Nanos {
        Nanos(self.now.get())
    }

    fn run_state(&self, _vm: PortId) -> RunState {
        RunState::Blocked
    }

    fn notify(&self, vm: PortId) {
        self.notified.borrow_mut().push(vm);
    }

    fn idle_cores(&self) -> CoreSet {
        CoreSet::EMPTY
    }

    fn wake(&self, _core: CoreId) {}

    fn arm(&self, vm: PortId, at: Nanos) {
        self.armed.borrow_mut().push((vm, at));
    }
}

/// Slots of a test VM's rings, and bytes of each of its buffers.
pub const SLOTS: u16 = 64;
pub const BUFFER_BYTES: u32 = 68 * 1024;

/// How a test VM is made.
#[derive(Clone, Copy)]
pub struct VmConfig {
    pub slots: u16,
    pub rx_buffer_bytes: u32,
    pub event_idx: bool,
    pub mergeable: bool,
    pub offloads: Offloads,
}

impl Default for VmConfig {
    fn default() -> VmConfig {
        VmConfig {
            slots: SLOTS,
            rx_buffer_bytes: BUFFER_BYTES,
            event_idx: true,
            mergeable: true,
            offloads: Offloads::ALL,
        }
    }
}

/// A VM whose driver is the test: memory, two rings, a buffer for each slot.
pub struct TestVm {
    pub port: PortId,
    pub memory: Arc<GuestMemory>,
    pub tx: DriverQueue<u16>,
    pub rx: DriverQueue<u16>,
    pub tx_layout: QueueLayout,
    config: VmConfig,
    tx_buffers: u64,
    rx_buffers: u64,
    /// Transmit slots that no frame is in.
    free: Vec<u16>,
}

impl TestVm {
    /// A VM attached to the switch, with a receive buffer posted in every slot.
    pub fn attach(control: &mut Control, name: &str, config: VmConfig) -> TestVm {
        let ring_bytes = QueueLayout::bytes(config.slots).next_multiple_of(4096);
        let tx_buffers = 2 * ring_bytes;
        let rx_buffers = tx_buffers + u64::from(config.slots) * u64::from(BUFFER_BYTES);
        let bytes = rx_buffers + u64::from(config.slots) * u64::from(config.rx_buffer_bytes);
        let memory = Arc::new(GuestMemory::anonymous(bytes as usize));
        let queue = |start| {
            let addrs = QueueAddrs::contiguous(start, config.slots);
            let features = DriverFeatures { event_idx: config.event_idx, indirect: None };
            DriverQueue::new(&memory, config.slots, addrs, features).unwrap()
        };
        let (tx, rx) = (queue(0), queue(ring_bytes));
        let (tx_layout, rx_layout) = (tx.layout(), rx.layout());
        let backend = Backend::Vm(VmBackend {
            memory: memory.clone(),
            tx: tx_layout,
            rx: rx_layout,
            features: QueueFeatures { event_idx: config.event_idx, indirect: true },
            mergeable: config.mergeable,
            offloads: config.offloads,
        });
        let config_of_port = PortConfig { name: name.into(), vlan: VlanMode::Transparent, backend };
        let port = control.attach(config_of_port).unwrap();
        let free = (0..config.slots).rev().collect();
        let mut vm = TestVm { port, memory, tx, rx, tx_layout, config, tx_buffers, rx_buffers, free };
        vm.post((0..config.slots).collect::<Vec<_>>());
        vm
    }

    fn tx_addr(&self, slot: u16) -> u64 {
        self.tx_buffers + u64::from(slot) * u64::from(BUFFER_BYTES)
    }

    fn rx_addr(&self, slot: u16) -> u64 {
        self.rx_buffers + u64::from(slot) * u64::from(self.config.rx_buffer_bytes)
    }

    /// Posts receive buffers. Answers whether the switch wants a kick.
    pub fn post(&mut self, slots: impl IntoIterator<Item = u16>) -> bool {
        for slot in slots {
            let buffer = (self.rx_addr(slot), self.config.rx_buffer_bytes);
            self.rx.add(&[], &[buffer], slot).unwrap();
        }
        self.rx.publish()
    }

    /// Writes bytes to the VM's memory.
    pub fn poke(&self, addr: u64, bytes: &[u8]) {
        let segment: Segment = self.memory.translate_whole(addr, bytes.len() as u32).unwrap();
        // SAFETY: the memory is mapped, and the test is its guest.
        unsafe { segment.write(bytes) }
    }

    /// Reads bytes of the VM's memory.
    pub fn peek(&self, addr: u64, bytes: usize) -> Vec<u8> {
        let segment = self.memory.translate_whole(addr, bytes as u32).unwrap();
        let mut into = vec![0; bytes];
        // SAFETY: the memory is mapped, and the test is its guest.
        unsafe { segment.read(&mut into) };
        into
    }

    /// Puts a frame into the transmit ring, published but not kicked. Answers whether there was room.
    pub fn send_with(&mut self, vnet: &VnetHdr, frame: &[u8]) -> bool {
        self.send_raw(&[&vnet.encode(0), frame].concat())
    }

    /// Puts an ordinary frame into the transmit ring.
    pub fn send(&mut self, frame: &[u8]) -> bool {
        self.send_with(&VnetHdr::PLAIN, frame)
    }

    /// Puts any bytes, header and all, into the transmit ring.
    pub fn send_raw(&mut self, bytes: &[u8]) -> bool {
        let Some(slot) = self.free.pop() else { return false };
        let addr = self.tx_addr(slot);
        self.poke(addr, bytes);
        self.tx.add(&[(addr, bytes.len() as u32)], &[], slot).unwrap();
        self.tx.publish();
        true
    }

    /// Takes completed transmit buffers back. Answers how many.
    pub fn completions(&mut self) -> usize {
        let before = self.free.len();
        while let Some(used) = self.tx.pop_used().unwrap() {
            self.free.push(used.token);
        }
        self.free.len() - before
    }

    /// Takes what is in the receive ring: each frame with its header. Buffers are posted again.
    pub fn received(&mut self) -> Vec<(VnetHdr, Vec<u8>)> {
        let mut frames = Vec::new();
        while let Some(used) = self.rx.pop_used().unwrap() {
            let mut bytes = self.peek(self.rx_addr(used.token), used.bytes as usize);
            let buffers = u16::from_le_bytes([bytes[10], bytes[11]]);
            let vnet = VnetHdr::decode(bytes[..12].try_into().unwrap()).unwrap();
            let mut slots = vec![used.token];
            for _ in 1..buffers {
                let used = self.rx.pop_used().unwrap().expect("as many buffers as the header says");
                bytes.extend(self.peek(self.rx_addr(used.token), used.bytes as usize));
                slots.push(used.token);
            }
            frames.push((vnet, bytes.split_off(12)));
            self.post(slots);
        }
        frames
    }

    /// The MAC address that [`frame`] gives this VM.
    pub fn mac(&self) -> [u8; 6] {
        mac(self.port)
    }
}

/// The MAC address of the VM at `port`.
pub fn mac(port: PortId) -> [u8; 6] {
    let [a, b] = port.0.to_be_bytes();
    [2, 0, 0, 0, a, b]
}

/// A frame of `bytes` from one VM to another, with an experimental EtherType and a number in its payload.
pub fn frame(from: PortId, to: PortId, bytes: usize, number: u64) -> Vec<u8> {
    let mut frame = Vec::with_capacity(bytes);
    frame.extend(mac(to));
    frame.extend(mac(from));
    frame.extend([0x88, 0xb5]);
    frame.extend(number.to_be_bytes());
    frame.extend((frame.len()..bytes).map(|at| (at as u64 ^ number) as u8));
    frame
}

/// The switch, its control and one core.
pub struct Bench {
    pub host: ScriptedHost,
    pub switch: Arc<Switch>,
    pub control: Control,
    pub cx: CoreContext,
    next_flow: u64,
}

impl Bench {
    pub fn new() -> Bench {
        Bench::with(SwitchConfig { max_ports: 16, cores: 2, max_flows: 1024, ..SwitchConfig::default() })
    }

    pub fn with(config: SwitchConfig) -> Bench {
        let (switch, control) = Switch::new(config);
        let cx = switch.core_context(CoreId(0)).unwrap();
        Bench { host: ScriptedHost::default(), switch, control, cx, next_flow: 1 }
    }

    pub fn vm(&mut self, name: &str) -> TestVm {
        TestVm::attach(&mut self.control, name, VmConfig::default())
    }

    /// Installs a flow and answers its name.
    pub fn flow(&mut self, key: FlowKey, mask: FlowKey, actions: &[Action]) -> FlowId {
        let id = FlowId(self.next_flow);
        self.next_flow += 1;
        let spec = FlowSpec { id, matches: Match::new(key, mask), actions: actions.into() };
        self.control.install(&spec, self.host.now()).unwrap();
        id
    }

    /// Installs the flow that takes everything from one port out of others.
    pub fn connect(&mut self, from: PortId, actions: &[Action]) -> FlowId {
        let key = FlowKey { in_port: from.0.into(), ..FlowKey::ZERO };
        self.flow(key, FlowKey { in_port: u32::MAX, ..FlowKey::ZERO }, actions)
    }

    pub fn transmit(&mut self, vm: &TestVm) -> Entered {
        self.switch.transmit(&mut self.cx, &self.host, vm.port)
    }

    pub fn receive(&mut self, vm: &TestVm) -> Entered {
        self.switch.receive(&mut self.cx, &self.host, vm.port)
    }

    pub fn expire(&mut self, vm: &TestVm) -> Entered {
        self.switch.expire(&mut self.cx, &self.host, vm.port)
    }

    /// Holds the ledger of every port: nothing is lost, nothing is counted twice.
    pub fn check_ledger(&self) {
        let (mut forwarded, mut offered) = (0, 0);
        for port in self.control.ports() {
            let counters = &port.counters;
            let (tx_drops, rx_drops) =
                (counters.tx_drops.iter().sum::<u64>(), counters.rx_drops.iter().sum::<u64>());
            let held = port.held as u64;
            let out = counters.tx.forwarded + tx_drops + held;
            assert_eq!(counters.tx.frames + counters.tx.replicated, out, "transmitted by {:?}", port.info);
            let into = counters.rx.frames + rx_drops + port.waiting as u64;
            assert_eq!(counters.rx.offered, into, "offered to {:?}", port.info);
            forwarded += counters.tx.forwarded;
            offered += counters.rx.offered;
        }
        assert_eq!(forwarded, offered, "what is forwarded is offered to someone");
    }
}
