//! Ports that the kernel is behind, TAPs and packet sockets, and ring ports, each with each other: what its sender leaves
//! undone reaches a port that takes it as it was sent, and any other finished and cut, byte for byte as etherparse builds
//! the same frames. What ports negotiate, in every combination, is `dataplane/tests/interop.rs`'s.
//!
//! By: the switch on a scripted host, and interfaces in a network namespace that vanishes with the test. Behind a TAP is
//! a packet socket on its interface; behind a packet socket a TAP that the test holds as a VMM does. What the test cannot
//! have on this machine it says, and is counted as ignored.

#[path = "../pvnet/tests/needs/mod.rs"]
mod needs;
#[path = "../dataplane/tests/support/mod.rs"]
mod support;

use hyper_switch_dataplane::api::{Action, PortId, VlanMode};
use hyper_switch_dataplane::{Backend, PortConfig};
use hyper_switch_pvnet::MAX_FRAME_BYTES;
use hyper_switch_pvnet::device::{Device, PullSlot, PushError, PushFrame};
use hyper_switch_pvnet::header::{Offloads, VNET_HDR_BYTES, VnetHdr};
use hyper_switch_pvnet::mem::Segment;
use hyper_switch_pvnet::namespace::{Interface, Namespace};
use hyper_switch_pvnet::packet::PacketSocket;
use hyper_switch_pvnet::tap::Tap;
use libtest_mimic::Arguments;
use needs::{namespaces, tun};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::os::fd::AsFd;
use std::process::ExitCode;
use std::sync::Arc;
use support::shape::{Ask, Shape};
use support::{Bench, TestVm, VmConfig};

/// How long a frame may be on its way through the kernel before the test has failed.
const DEADLINE: Timespec = Timespec { tv_sec: 20, tv_nsec: 0 };

fn main() -> ExitCode {
    let test = "whatever_is_sent_arrives_whoever_is_behind_the_ports";
    let trials = needs::trials([(test, &[namespaces, tun], every_pair)]);
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

/// A device of the kernel's.
trait Kernel: Device + AsFd {}
impl<D: Device + AsFd> Kernel for D {}

/// A port, and who is behind it.
enum Peer {
    Ring(Box<TestVm>),
    Kernel { port: PortId, near: Arc<dyn Kernel>, far: Arc<dyn Kernel> },
}

impl Peer {
    fn ring(bench: &mut Bench, offloads: Offloads) -> Peer {
        Peer::Ring(Box::new(bench.vm_with("vm", VmConfig { offloads, ..VmConfig::default() })))
    }

    /// `near` is the port, `far` the other side of its interface.
    fn kernel<D: Kernel + 'static>(bench: &mut Bench, near: D, far: impl Kernel + 'static) -> Peer {
        let near = Arc::new(near);
        let backend = Backend::Device(near.clone());
        let config = PortConfig { name: "device".into(), vlan: VlanMode::Transparent, backend };
        Peer::Kernel { port: bench.control.attach(config).unwrap(), near, far: Arc::new(far) }
    }

    fn port(&self) -> PortId {
        match self {
            Peer::Ring(vm) => vm.port,
            Peer::Kernel { port, .. } => *port,
        }
    }

    fn offloads(&self) -> Offloads {
        match self {
            Peer::Ring(vm) => vm.config.offloads,
            Peer::Kernel { near, .. } => near.offloads(),
        }
    }

    fn send(&mut self, bench: &mut Bench, vnet: &VnetHdr, frame: &[u8]) {
        match self {
            Peer::Ring(vm) => {
                vm.completions();
                assert!(vm.send_with(vnet, frame));
            }
            Peer::Kernel { near, far, .. } => {
                push(&**far, vnet, frame);
                wait(&**near);
            }
        }
        assert_eq!(bench.switch.transmit(&mut bench.cx, &bench.host, self.port()).frames, 1);
    }

    /// The next `count` frames that come.
    fn receive(&mut self, bench: &mut Bench, count: usize) -> Vec<(VnetHdr, Vec<u8>)> {
        match self {
            Peer::Ring(vm) => {
                bench.receive(vm);
                vm.received()
            }
            Peer::Kernel { far, .. } => (0..count).map(|_| pull(&**far)).collect(),
        }
    }
}

fn wait(device: &dyn Kernel) {
    let ready = poll(&mut [PollFd::new(&device, PollFlags::IN)], Some(&DEADLINE)).unwrap();
    assert_eq!(ready, 1, "a frame comes");
}

fn push(device: &dyn Kernel, vnet: &VnetHdr, frame: &[u8]) {
    let mut bytes = [&vnet.encode(0), frame].concat();
    let parts = [Segment::new(bytes.as_mut_ptr(), bytes.len() as u32)];
    let mut outcome = [Err(PushError::Full)];
    device.push(&[PushFrame { parts: &parts }], &mut outcome);
    assert_eq!(outcome, [Ok(())], "{} bytes with {vnet:?}", frame.len());
}

fn pull(device: &dyn Kernel) -> (VnetHdr, Vec<u8>) {
    wait(device);
    let mut memory = vec![0; VNET_HDR_BYTES + MAX_FRAME_BYTES];
    let buffer = Segment::new(memory.as_mut_ptr(), memory.len() as u32);
    let mut slots = [PullSlot { buffer, bytes: 0 }];
    assert_eq!(device.pull(&mut slots), Ok(1));
    memory.truncate(slots[0].bytes as usize);
    let frame = memory.split_off(VNET_HDR_BYTES);
    (VnetHdr::decode(memory[..].try_into().unwrap()).unwrap(), frame)
}

/// Frames that the kernel, too, carries as they are: none longer than the MTU but those to be cut.
fn samples() -> Vec<(Shape, Ask)> {
    let mut samples = Vec::new();
    for udp in [false, true] {
        for v6 in [false, true] {
            for vlan_tags in [0, 1, 2] {
                let shape = |bytes| Shape { udp, v6, vlan_tags, ..Shape::tcp(bytes) };
                samples.push((shape(31), Ask::Nothing));
                samples.push((shape(1001), Ask::Checksum));
                samples.push((shape(3001), Ask::Cuts(1400)));
            }
            samples.push((Shape { udp, v6, ip_options: true, ..Shape::tcp(999) }, Ask::Checksum));
        }
    }
    for v6 in [false, true] {
        samples.push((Shape { v6, cwr: true, fin_psh: true, ..Shape::tcp(2500) }, Ask::Cuts(1000)));
        samples.push((Shape { v6, ..Shape::tcp(60_001) }, Ask::Cuts(1400)));
    }
    samples
}

fn every_pair() {
    let namespace = Namespace::new().unwrap();
    namespace.disable_ipv6().unwrap();
    let interface = |name: &str| {
        let interface = || {
            let tap = Tap::open(name).unwrap();
            Interface::named(name).unwrap().up().unwrap();
            (tap, PacketSocket::attach(name).unwrap())
        };
        namespace.run(interface).unwrap()
    };
    let mut bench = Bench::new();
    let mut peers = vec![
        ("a ring", Peer::ring(&mut bench, Offloads::ALL)),
        ("a ring without offloads", Peer::ring(&mut bench, Offloads::NONE)),
        ("a ring with checksums", Peer::ring(&mut bench, Offloads::CSUM)),
    ];
    for name in ["tap0", "tap1"] {
        let (tap, socket) = interface(name);
        peers.push(("a TAP", Peer::kernel(&mut bench, tap, socket)));
    }
    for name in ["vmm0", "vmm1"] {
        let (tap, socket) = interface(name);
        peers.push(("a packet socket", Peer::kernel(&mut bench, socket, tap)));
    }
    let samples = samples();
    let count = peers.len();
    for (from, to) in (0..count).flat_map(|from| (0..count).map(move |to| (from, to))) {
        let Ok([(from_name, from), (to_name, to)]) = peers.get_disjoint_mut([from, to]) else { continue };
        let flow = bench.connect(from.port(), &[Action::Output(to.port())]);
        let finished_before = bench.counters(to.port()).rx.finished;
        let mut finished = 0;
        for (shape, ask) in &samples {
            let accept = to.offloads();
            let (vnet, frame) = shape.sent(*ask);
            let expected = shape.received(*ask, accept);
            finished += u64::from(!accept.contains(shape.needs(*ask)));
            from.send(&mut bench, &vnet, &frame);
            let received = to.receive(&mut bench, expected.len());
            let what = format!("{ask:?} with {vnet:?}, {} bytes, from {from_name} to {to_name}", frame.len());
            assert_eq!(received.len(), expected.len(), "{what}");
            for ((vnet, frame), (expected_vnet, expected)) in received.iter().zip(&expected) {
                // Where the headers end is a hint, which the kernel gives as it likes.
                let expected_vnet = VnetHdr { hdr_len: vnet.hdr_len, ..*expected_vnet };
                assert_eq!(*vnet, expected_vnet, "{what}");
                assert!(frame == expected, "{what}");
            }
        }
        assert_eq!(
            bench.counters(to.port()).rx.finished - finished_before,
            finished,
            "{from_name} to {to_name}"
        );
        assert!(bench.control.remove(flow));
    }
    bench.check_ledger();
}
