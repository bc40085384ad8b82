//! A switch on a scripted host: no threads, a clock that the test moves, VMs whose drivers the test is.
#![allow(dead_code, unreachable_pub, reason = "each test file uses its own part of this")]

pub mod device;
#[cfg(not(loom))]
pub mod pages;
pub mod shape;

use hyper_switch_dataplane::api::{
    Action, DropReason, FlowId, FlowKey, FlowSpec, Match, Nanos, PortId, VlanMode,
};
use hyper_switch_dataplane::counters::{DROP_REASONS, PortCounters};
use hyper_switch_dataplane::host::{CoreId, CoreSet, Host, Ring, RunState};
use hyper_switch_dataplane::policy::Optimisations;
use hyper_switch_dataplane::{
    Backend, Control, CoreContext, Entered, Map, PortState, QueuePair, Reaped, Switch, SwitchConfig,
    VmBackend,
};
use hyper_switch_pvnet::header::{Offloads, VNET_HDR_BYTES, VnetHdr};
use hyper_switch_pvnet::mem::{GuestMemory, MemoryFault, Segment};
use hyper_switch_pvnet::ring::device::QueueFeatures;
use hyper_switch_pvnet::ring::driver::{DriverFeatures, DriverQueue, IndirectTables};
use hyper_switch_pvnet::ring::{QueueAddrs, QueueLayout, RingFormat};
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

/// A host that does nothing by itself and remembers what it was asked.
#[derive(Default)]
pub struct ScriptedHost {
    pub now: Cell<u64>,
    pub notified: RefCell<Vec<PortId>>,
    pub armed: RefCell<Vec<(PortId, Nanos)>>,
    /// VMs that are not blocked.
    pub states: RefCell<HashMap<PortId, RunState>>,
    pub idle: Cell<CoreSet>,
    pub woken: RefCell<Vec<CoreId>>,
}

impl ScriptedHost {
    pub fn advance(&self, by: Duration) {
        self.now.set(self.now.get() + by.as_nanos() as u64);
    }

    /// The VMs whose timers are due, each once, earliest first.
    pub fn take_due(&self) -> Vec<PortId> {
        let mut armed = self.armed.borrow_mut();
        armed.sort_by_key(|(_, at)| *at);
        let due = armed.partition_point(|(_, at)| at.0 <= self.now.get());
        armed.drain(..due).map(|(vm, _)| vm).collect()
    }

    /// The VMs notified since the last call.
    pub fn take_notified(&self) -> Vec<PortId> {
        self.notified.take()
    }

    /// The cores woken since the last call.
    pub fn take_woken(&self) -> Vec<CoreId> {
        self.woken.take()
    }
}

impl Host for ScriptedHost {
    fn now(&self) -> Nanos {
        Nanos(self.now.get())
    }

    fn run_state(&self, vm: PortId) -> RunState {
        self.states.borrow().get(&vm).copied().unwrap_or(RunState::Blocked)
    }

    /// Each VM lives on the core of its number.
    fn home(&self, vm: PortId) -> CoreId {
        CoreId(vm.0)
    }

    fn notify(&self, vm: PortId, _: Ring) {
        self.notified.borrow_mut().push(vm);
    }

    fn idle_cores(&self) -> CoreSet {
        self.idle.get()
    }

    fn wake(&self, core: CoreId) {
        self.woken.borrow_mut().push(core);
    }

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
    pub ring: RingFormat,
    pub slots: u16,
    pub rx_buffer_bytes: u32,
    /// Receive buffers that are posted from the start.
    pub posted: u16,
    /// Descriptors that each buffer is spread over.
    pub pieces: u16,
    pub event_idx: bool,
    pub indirect: bool,
    pub mergeable: bool,
    pub offloads: Offloads,
}

impl Default for VmConfig {
    fn default() -> VmConfig {
        VmConfig {
            ring: RingFormat::Split,
            slots: SLOTS,
            rx_buffer_bytes: BUFFER_BYTES,
            posted: u16::MAX,
            pieces: 1,
            event_idx: true,
            indirect: false,
            mergeable: true,
            offloads: Offloads::ALL,
        }
    }
}

impl VmConfig {
    /// Descriptors of the ring itself that each buffer takes.
    pub fn ring_descriptors(&self) -> u16 {
        if self.indirect { 1 } else { self.pieces }
    }
}

/// A VM whose driver is the test: memory, two rings, a buffer for each slot. Or one of a VM's queue pairs, each in
/// memory of its own.
pub struct TestVm {
    /// The port; the lane, if it has several.
    pub port: PortId,
    pub memory: Arc<GuestMemory>,
    pub tx: DriverQueue<u16>,
    pub rx: DriverQueue<u16>,
    /// Where the rings lie in its memory, for those who write there themselves.
    pub tx_addrs: QueueAddrs,
    pub rx_addrs: QueueAddrs,
    pub config: VmConfig,
    tx_buffers: u64,
    rx_buffers: u64,
    /// Transmit slots that no frame is in.
    free: Vec<u16>,
    /// Receive slots whose buffer is not posted.
    unposted: Vec<u16>,
}

impl TestVm {
    /// A VM with as many receive buffers posted as `config` says, in memory that `memory` makes. It is yet to be
    /// [connected](TestVm::connect).
    pub fn new(config: VmConfig, memory: impl FnOnce(usize) -> GuestMemory) -> TestVm {
        let ring_bytes = QueueLayout::bytes(config.slots).next_multiple_of(4096);
        let table_bytes = IndirectTables::bytes(config.pieces, config.slots);
        let tx_buffers = 2 * (ring_bytes + table_bytes);
        let rx_buffers = tx_buffers + u64::from(config.slots) * u64::from(BUFFER_BYTES);
        let bytes = rx_buffers + u64::from(config.slots) * u64::from(config.rx_buffer_bytes);
        let memory = Arc::new(memory(bytes as usize));
        let tx_addrs = QueueAddrs::contiguous(0, config.slots);
        let rx_addrs = QueueAddrs::contiguous(ring_bytes, config.slots);
        let queue = |addrs, tables| {
            let indirect = IndirectTables { addr: tables, entries: config.pieces };
            let indirect = config.indirect.then_some(indirect);
            let features = DriverFeatures { event_idx: config.event_idx, indirect };
            DriverQueue::with_format(config.ring, &memory, config.slots, addrs, features).unwrap()
        };
        let (tx, rx) = (queue(tx_addrs, 2 * ring_bytes), queue(rx_addrs, 2 * ring_bytes + table_bytes));
        let free = (0..config.slots).rev().collect();
        let unposted = (0..config.slots).rev().collect();
        let mut vm = TestVm {
            port: PortId(u16::MAX),
            memory,
            tx,
            rx,
            tx_addrs,
            rx_addrs,
            config,
            tx_buffers,
            rx_buffers,
            free,
            unposted,
        };
        vm.post(config.posted);
        vm
    }

    /// The device sides of its rings, from their first entries on.
    pub fn queues(&self) -> QueuePair {
        let features = QueueFeatures { event_idx: self.config.event_idx, indirect: true };
        QueuePair::new(&self.memory, self.tx.layout(), self.rx.layout(), features)
    }

    /// Where its rings are in another map of its memory.
    pub fn map_in(&self, memory: Arc<GuestMemory>) -> Map {
        let VmConfig { ring, slots, .. } = self.config;
        let ring = |addrs| QueueLayout::with_format(ring, &memory, slots, addrs).unwrap();
        let (tx, rx) = (ring(self.tx_addrs), ring(self.rx_addrs));
        Map { memory, tx, rx }
    }

    /// What a VM with these queue pairs, which are alike, is for the switch.
    pub fn backend(&self, queues: Vec<QueuePair>) -> Backend {
        let VmConfig { mergeable, offloads, .. } = self.config;
        Backend::Vm(VmBackend { queues, mergeable, offloads })
    }

    /// A VM attached to the switch, with as many receive buffers posted as `config` says.
    pub fn attach(control: &mut Control, name: &str, config: VmConfig) -> TestVm {
        TestVm::attach_lanes(control, name, config, 1).remove(0)
    }

    /// A VM with so many queue pairs, each of which the test has apart.
    pub fn attach_lanes(control: &mut Control, name: &str, config: VmConfig, lanes: usize) -> Vec<TestVm> {
        let port = control.reserve(name.into(), VlanMode::Transparent).unwrap();
        let mut vms: Vec<_> = (0..lanes).map(|_| TestVm::new(config, GuestMemory::anonymous)).collect();
        TestVm::connect(control, port, &mut vms);
        vms
    }

    /// Connects a VM with these queue pairs, with their rings from their first entries on.
    pub fn connect(control: &mut Control, port: PortId, lanes: &mut [TestVm]) {
        let queues = lanes.iter().map(TestVm::queues).collect();
        control.connect(port, lanes[0].backend(queues)).unwrap();
        for (vm, lane) in lanes.iter_mut().zip(control.lanes(port)) {
            vm.port = lane;
        }
    }

    pub fn tx_addr(&self, slot: u16) -> u64 {
        self.tx_buffers + u64::from(slot) * u64::from(BUFFER_BYTES)
    }

    pub fn rx_addr(&self, slot: u16) -> u64 {
        self.rx_buffers + u64::from(slot) * u64::from(self.config.rx_buffer_bytes)
    }

    /// Posts up to `buffers` receive buffers, as far as there are any. Answers whether the switch wants a kick.
    pub fn post(&mut self, buffers: u16) -> bool {
        for _ in 0..buffers {
            let Some(slot) = self.unposted.pop() else { break };
            let pieces = self.pieces(self.rx_addr(slot), self.config.rx_buffer_bytes);
            if self.rx.add(&[], &pieces, slot).is_err() {
                self.unposted.push(slot);
                break;
            }
        }
        self.rx.publish()
    }

    /// A buffer's descriptors. They lie in memory the other way round, so that nothing works by accident that takes
    /// one for the continuation of another.
    fn pieces(&self, addr: u64, bytes: u32) -> Vec<(u64, u32)> {
        let piece = bytes.div_ceil(self.config.pieces.into()).max(1);
        let starts = (0..bytes).step_by(piece as usize);
        starts
            .map(|at| (bytes - at).min(piece))
            .scan(bytes, |end, piece| {
                *end -= piece;
                Some((addr + u64::from(*end), piece))
            })
            .collect()
    }

    /// Writes bytes to the VM's memory.
    pub fn poke(&self, addr: u64, bytes: &[u8]) {
        poke(&self.memory, addr, bytes).unwrap();
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
        let pieces = self.pieces(self.tx_addr(slot), bytes.len() as u32);
        let mut rest = bytes;
        for (addr, piece) in &pieces {
            let (now, later) = rest.split_at(*piece as usize);
            self.poke(*addr, now);
            rest = later;
        }
        if self.tx.add(&pieces, &[], slot).is_err() {
            self.free.push(slot);
            return false;
        }
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

    /// Transmit buffers that the switch has.
    pub fn outstanding(&self) -> usize {
        usize::from(self.config.slots) - self.free.len()
    }

    /// Takes what is in the receive ring: each frame with its header. Buffers are posted again.
    pub fn received(&mut self) -> Vec<(VnetHdr, Vec<u8>)> {
        let frames = self.take_received();
        self.post(u16::MAX);
        frames
    }

    /// The frames in the receive ring, as [`TestVm::received`], without their headers.
    pub fn received_frames(&mut self) -> Vec<Vec<u8>> {
        self.received().into_iter().map(|(_, frame)| frame).collect()
    }

    /// Takes what is in the receive ring, and posts no buffer.
    pub fn take_received(&mut self) -> Vec<(VnetHdr, Vec<u8>)> {
        let mut frames = Vec::new();
        while let Some(mut bytes) = self.take_buffer() {
            // The header itself may be spread over buffers that are too small for it.
            while bytes.len() < VNET_HDR_BYTES {
                bytes.extend(self.take_buffer().expect("a whole header"));
            }
            let buffers = u16::from_le_bytes([bytes[10], bytes[11]]);
            let vnet = VnetHdr::decode(bytes[..VNET_HDR_BYTES].try_into().unwrap()).unwrap();
            assert!(buffers == 1 || self.config.mergeable, "one buffer, as merging was not negotiated");
            let taken = bytes.len().div_ceil(self.config.rx_buffer_bytes as usize) as u16;
            for _ in taken..buffers {
                bytes.extend(self.take_buffer().expect("as many buffers as the header says"));
            }
            frames.push((vnet, bytes.split_off(VNET_HDR_BYTES)));
        }
        frames
    }

    fn take_buffer(&mut self) -> Option<Vec<u8>> {
        let used = self.rx.pop_used().unwrap()?;
        self.unposted.push(used.token);
        let mut left = used.bytes;
        let mut bytes = Vec::with_capacity(used.bytes as usize);
        for (addr, piece) in self.pieces(self.rx_addr(used.token), self.config.rx_buffer_bytes) {
            bytes.extend(self.peek(addr, left.min(piece) as usize));
            left -= left.min(piece);
        }
        Some(bytes)
    }

    /// The MAC address that [`frame`] gives this VM.
    pub fn mac(&self) -> [u8; 6] {
        mac(self.port)
    }
}

/// Writes bytes to a guest's memory, if it is all in one region.
pub fn poke(memory: &GuestMemory, addr: u64, bytes: &[u8]) -> Result<(), MemoryFault> {
    let segment: Segment = memory.translate_whole(addr, bytes.len() as u32)?;
    // SAFETY: the memory is mapped, and the test is its guest.
    unsafe { segment.write(bytes) };
    Ok(())
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

/// A switch whose VMs do each stage themselves, in a hypercall of their own.
pub fn basic() -> SwitchConfig {
    SwitchConfig { optimisations: Optimisations::NONE, ..SwitchConfig::default() }
}

/// All ways to switch the optimisations on and off.
pub fn combinations() -> impl Iterator<Item = Optimisations> {
    (0..8).map(|set| Optimisations {
        preemptive_copy: set & 1 != 0,
        batching: set & 2 != 0,
        offload: set & 4 != 0,
    })
}

/// The switch, its control and one core.
pub struct Bench {
    pub host: ScriptedHost,
    pub switch: Arc<Switch>,
    pub control: Control,
    pub cx: CoreContext,
    next_flow: u64,
    /// What ports that were detached had forwarded, and been offered.
    gone: (u64, u64),
}

impl Bench {
    pub fn new() -> Bench {
        Bench::with(SwitchConfig { max_ports: 16, cores: 2, max_flows: 1024, ..basic() })
    }

    pub fn with(config: SwitchConfig) -> Bench {
        let (switch, control) = Switch::new(config);
        let cx = switch.core_context(CoreId(0)).unwrap();
        Bench { host: ScriptedHost::default(), switch, control, cx, next_flow: 1, gone: (0, 0) }
    }

    pub fn vm(&mut self, name: &str) -> TestVm {
        self.vm_with(name, VmConfig::default())
    }

    /// A VM with so many queue pairs.
    pub fn lanes(&mut self, name: &str, lanes: usize) -> Vec<TestVm> {
        TestVm::attach_lanes(&mut self.control, name, VmConfig::default(), lanes)
    }

    pub fn vm_with(&mut self, name: &str, config: VmConfig) -> TestVm {
        TestVm::attach(&mut self.control, name, config)
    }

    /// Begins to detach a port; [`Bench::reap`] goes on with it.
    pub fn detach(&mut self, port: PortId) {
        let counters = self.counters(port);
        assert!(self.control.detach(port));
        self.gone.0 += counters.tx.forwarded;
        self.gone.1 += counters.rx.offered;
    }

    /// Goes on with detaching. Answers whether all detached ports are gone.
    pub fn reap(&mut self) -> bool {
        self.carry_on().done
    }

    /// Goes on with all that was begun.
    pub fn carry_on(&mut self) -> Reaped {
        self.control.reap(&mut self.cx, &self.host)
    }

    pub fn counters(&self, port: PortId) -> PortCounters {
        self.control.port(port).unwrap().counters
    }

    pub fn state(&self, port: PortId) -> PortState {
        self.control.port(port).unwrap().state
    }

    /// Holds that what `port` transmitted was dropped for these reasons and no others, so often.
    #[track_caller]
    pub fn assert_tx_drops(&self, port: PortId, drops: &[(DropReason, u64)]) {
        assert_eq!(named(&self.counters(port).tx_drops), drops, "transmit drops of port {port}");
    }

    /// Holds the same of what `port` was to receive.
    #[track_caller]
    pub fn assert_rx_drops(&self, port: PortId, drops: &[(DropReason, u64)]) {
        assert_eq!(named(&self.counters(port).rx_drops), drops, "receive drops of port {port}");
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
    #[track_caller]
    pub fn check_ledger(&self) {
        let (mut forwarded, mut offered) = self.gone;
        for port in self.control.ports() {
            let counters = &port.counters;
            let (tx_drops, rx_drops) =
                (counters.tx_drops.iter().sum::<u64>(), counters.rx_drops.iter().sum::<u64>());
            let held = port.held as u64;
            let out = counters.tx.forwarded + tx_drops + held;
            assert_eq!(counters.tx.frames + counters.tx.replicated, out, "transmitted by {:?}", port.info);
            let into = counters.rx.frames + rx_drops + port.waiting as u64;
            assert_eq!(counters.rx.offered, into, "offered to {:?}", port.info);
            if port.state != PortState::Leaving {
                forwarded += counters.tx.forwarded;
                offered += counters.rx.offered;
            }
        }
        assert_eq!(forwarded, offered, "what is forwarded is offered to someone");
    }
}

/// The reasons that were counted.
fn named(drops: &[u64; DROP_REASONS]) -> Vec<(DropReason, u64)> {
    DropReason::ALL.iter().copied().zip(*drops).filter(|(_, count)| *count > 0).collect()
}
