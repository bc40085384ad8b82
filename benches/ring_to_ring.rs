//! The whole way of a packet on one core: transmit ring, key, lookup, internal queue, copy, receive ring,
//! completion. Two VMs of this process; the drivers' own work is not counted.
//!
//! For each frame size and number of flows it prints the time a packet, and the same time as a share of a bare
//! `memcpy` of the same bytes between the same buffers, in the same order (1.0: as fast as the copy alone).
//! Flows are exact: each has an entry of its own in the megaflow table. The bench asserts what it moved.
//!
//! `cargo bench --bench ring_to_ring`

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use hyper_switch_dataplane::api::{Action, FlowId, FlowKey, FlowSpec, Match, Nanos, PortId, VlanMode};
use hyper_switch_dataplane::host::{CoreId, CoreSet, Host, Ring, RunState};
use hyper_switch_dataplane::policy::Optimisations;
use hyper_switch_dataplane::{
    Backend, Control, CoreContext, PortConfig, QueuePair, Switch, SwitchConfig, VmBackend,
};
use hyper_switch_pvnet::header::{Offloads, VNET_HDR_BYTES};
use hyper_switch_pvnet::mem::{GuestMemory, Segment};
use hyper_switch_pvnet::ring::device::QueueFeatures;
use hyper_switch_pvnet::ring::driver::{DriverFeatures, DriverQueue};
use hyper_switch_pvnet::ring::{QueueAddrs, QueueLayout};
use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A host on which nothing sleeps.
struct Awake;

impl Host for Awake {
    fn now(&self) -> Nanos {
        Nanos(1_000_000_000)
    }
    fn run_state(&self, _: PortId) -> RunState {
        RunState::Running(CoreId(0))
    }
    fn home(&self, _: PortId) -> CoreId {
        CoreId(0)
    }
    fn notify(&self, _: PortId, _: Ring) {}
    fn idle_cores(&self) -> CoreSet {
        CoreSet::EMPTY
    }
    fn wake(&self, _: CoreId) {}
    fn arm(&self, _: PortId, _: Nanos) {}
}

/// Frames that are in the rings at a time.
const BURST: usize = 64;

/// A VM, its driver and a buffer for each slot of a ring.
struct Vm {
    port: PortId,
    memory: Arc<GuestMemory>,
    queue: DriverQueue<u16>,
    buffers: u64,
    stride: u64,
}

impl Vm {
    /// A VM whose one busy ring (the other is idle) has a buffer of `bytes` for each of its slots.
    fn attach(control: &mut Control, name: &str, slots: u16, bytes: usize, sends: bool) -> Vm {
        let ring = QueueLayout::bytes(slots).next_multiple_of(4096);
        // An odd number of cache lines, as a slab's objects have: not all buffers meet in the same cache sets.
        let stride = (bytes as u64).next_multiple_of(64) + 64;
        let buffers = 2 * ring;
        let memory = Arc::new(GuestMemory::anonymous((buffers + stride * u64::from(slots)) as usize));
        let features = DriverFeatures { event_idx: true, indirect: None };
        let make =
            |at| DriverQueue::new(&memory, slots, QueueAddrs::contiguous(at, slots), features).unwrap();
        let (tx, rx) = (make(0), make(ring));
        let features = QueueFeatures { event_idx: true, indirect: true };
        let vm = VmBackend {
            queues: vec![QueuePair::new(&memory, tx.layout(), rx.layout(), features)],
            mergeable: true,
            offloads: Offloads::ALL,
        };
        let config = PortConfig { name: name.into(), vlan: VlanMode::Transparent, backend: Backend::Vm(vm) };
        let port = control.attach(config).unwrap();
        Vm { port, memory, queue: if sends { tx } else { rx }, buffers, stride }
    }

    fn addr(&self, slot: u16) -> u64 {
        self.buffers + self.stride * u64::from(slot)
    }

    fn buffer(&self, slot: u16, bytes: usize) -> Segment {
        self.memory.translate_whole(self.addr(slot), bytes as u32).unwrap()
    }
}

/// The headers of the frames of `flow`: Ethernet, IPv4, UDP, behind an empty virtio_net_hdr.
fn headers(flow: u32, frame_bytes: usize) -> [u8; VNET_HDR_BYTES + 42] {
    let mut bytes = [0; VNET_HDR_BYTES + 42];
    let frame = &mut bytes[VNET_HDR_BYTES..];
    frame[..12].copy_from_slice(&[2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1]);
    frame[12..14].copy_from_slice(&[0x08, 0x00]);
    let ip_bytes = (frame_bytes - 14) as u16;
    frame[14..16].copy_from_slice(&[0x45, 0]);
    frame[16..18].copy_from_slice(&ip_bytes.to_be_bytes());
    frame[22..24].copy_from_slice(&[64, 17]);
    frame[26..30].copy_from_slice(&(0x0a00_0000 + flow).to_be_bytes());
    frame[30..34].copy_from_slice(&0x0a80_0001u32.to_be_bytes());
    frame[34..38].copy_from_slice(&[0x30, 0x39, 0x00, 0x35]);
    frame[38..40].copy_from_slice(&(ip_bytes - 20).to_be_bytes());
    bytes
}

/// The switch with two VMs and a flow for each source address.
struct Way {
    switch: Arc<Switch>,
    cx: CoreContext,
    sender: Vm,
    receiver: Vm,
    frame_bytes: usize,
    flows: u32,
    next_flow: u32,
    /// Transmit slots without a frame; used last, used first, as a driver's allocator does.
    free: Vec<u16>,
    moved: u64,
}

impl Way {
    fn new(frame_bytes: usize, flows: u32) -> (Way, Control) {
        let slots = 256.min((8 << 20) / frame_bytes.next_power_of_two()).max(BURST) as u16;
        let config =
            SwitchConfig { cores: 1, seed: 7, optimisations: Optimisations::NONE, ..SwitchConfig::default() };
        let (switch, mut control) = Switch::new(config);
        let cx = switch.core_context(CoreId(0)).unwrap();
        let bytes = VNET_HDR_BYTES + frame_bytes;
        let sender = Vm::attach(&mut control, "sender", slots, bytes, true);
        let mut receiver = Vm::attach(&mut control, "receiver", slots, bytes, false);
        let mask = FlowKey {
            in_port: u32::MAX,
            eth_type: u16::MAX,
            ip_proto: u8::MAX,
            ip4_src: u32::MAX,
            ip4_dst: u32::MAX,
            l4_src: u16::MAX,
            l4_dst: u16::MAX,
            ..FlowKey::ZERO
        };
        for flow in 0..flows {
            let key = FlowKey {
                in_port: sender.port.0.into(),
                eth_type: 0x0800,
                ip_proto: 17,
                ip4_src: 0x0a00_0000 + flow,
                ip4_dst: 0x0a80_0001,
                l4_src: 12345,
                l4_dst: 53,
                ..FlowKey::ZERO
            };
            let id = FlowId(u64::from(flow) + 1);
            let actions = [Action::Output(receiver.port)].into();
            control.install(&FlowSpec { id, matches: Match::new(key, mask), actions }, Nanos(1)).unwrap();
        }
        for slot in 0..slots {
            let buffer = (receiver.addr(slot), bytes as u32);
            receiver.queue.add(&[], &[buffer], slot).unwrap();
        }
        receiver.queue.publish();
        let free = (0..slots).rev().collect();
        (Way { switch, cx, sender, receiver, frame_bytes, flows, next_flow: 0, free, moved: 0 }, control)
    }

    /// Sends a burst and receives it. Answers the time that the switch took.
    fn burst(&mut self) -> Duration {
        let bytes = (VNET_HDR_BYTES + self.frame_bytes) as u32;
        for _ in 0..BURST {
            let slot = self.free.pop().unwrap();
            let headers = headers(self.next_flow, self.frame_bytes);
            self.next_flow = (self.next_flow + 1) % self.flows;
            // SAFETY: the buffer is this VM's own and in no ring.
            unsafe { self.sender.buffer(slot, headers.len()).write(&headers) };
            self.sender.queue.add(&[(self.sender.addr(slot), bytes)], &[], slot).unwrap();
        }
        self.sender.queue.publish();

        let start = Instant::now();
        let sent = self.switch.transmit(&mut self.cx, &Awake, self.sender.port);
        let received = self.switch.receive(&mut self.cx, &Awake, self.receiver.port);
        let elapsed = start.elapsed();

        assert_eq!((sent.frames, received.copied), (BURST as u32, BURST as u32));
        while let Some(used) = self.sender.queue.pop_used().unwrap() {
            self.free.push(used.token);
        }
        while let Some(used) = self.receiver.queue.pop_used().unwrap() {
            assert_eq!(used.bytes, bytes);
            let buffer = (self.receiver.addr(used.token), bytes);
            self.receiver.queue.add(&[], &[buffer], used.token).unwrap();
            self.moved += 1;
        }
        self.receiver.queue.publish();
        elapsed
    }

    /// A bare copy of a burst's bytes, from the buffers that the sender uses to those that the receiver posted.
    fn copy(&self, first: u16) -> Duration {
        let bytes = VNET_HDR_BYTES + self.frame_bytes;
        let slots = self.free.len() as u16;
        let start = Instant::now();
        for at in 0..BURST as u16 {
            let from = self.sender.buffer(self.free[usize::from(slots - 1 - at)], bytes);
            let to = self.receiver.buffer((first + at) % slots, bytes);
            // SAFETY: both buffers are mapped and as long, and nobody else uses them now.
            unsafe { black_box(from).copy_to(black_box(to)) };
        }
        start.elapsed()
    }
}

fn ring_to_ring(criterion: &mut Criterion) {
    let mut shares = Vec::new();
    for frame_bytes in [64, 1500, 65536] {
        for flows in [1, 100, 10_000] {
            let (mut way, control) = Way::new(frame_bytes, flows);
            let mut group = criterion.benchmark_group(format!("ring_to_ring/{frame_bytes}B"));
            group.throughput(Throughput::Elements(1));
            group.bench_function(BenchmarkId::from_parameter(format!("{flows} flows")), |bencher| {
                bencher.iter_custom(|frames| {
                    let bursts = frames.div_ceil(BURST as u64);
                    let took: Duration = (0..bursts).map(|_| way.burst()).sum();
                    took.mul_f64(frames as f64 / (bursts * BURST as u64) as f64)
                });
            });
            group.finish();

            // In turns, so that the machine's moods meet both alike; medians of many.
            let (mut switched, mut copied) = (Vec::new(), Vec::new());
            for round in 0..if frame_bytes > 10_000 { 200 } else { 4000u32 } {
                switched.push(way.burst());
                copied.push(way.copy((round as u16).wrapping_mul(BURST as u16)));
            }
            shares.push((frame_bytes, flows, median(&mut switched), median(&mut copied)));
            let port = control.port(way.receiver.port).unwrap();
            assert_eq!(port.counters.rx.frames, way.moved);
            assert_eq!(port.counters.drops().count(), 0);
        }
    }
    println!(
        "{:>8} {:>8} {:>14} {:>14} {:>16}",
        "bytes", "flows", "ns a packet", "memcpy ns", "share of memcpy"
    );
    for (bytes, flows, switched, copied) in shares {
        let each = |time: Duration| time.as_nanos() as f64 / BURST as f64;
        let share = copied.as_secs_f64() / switched.as_secs_f64();
        println!("{bytes:>8} {flows:>8} {:>14.1} {:>14.1} {share:>16.2}", each(switched), each(copied));
    }
}

fn median(times: &mut [Duration]) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

criterion_group! {
    name = benches;
    config = Criterion::default().measurement_time(Duration::from_secs(1)).warm_up_time(Duration::from_millis(300)).sample_size(20);
    targets = ring_to_ring
}
criterion_main!(benches);
