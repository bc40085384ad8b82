//! Every kind of port with every other, whatever both negotiated: a frame reaches a receiver that takes its offload
//! as it was sent, header and all, and any other finished and cut, byte for byte as etherparse builds the same frames;
//! and the switch's counters say that nothing was undone that need not be.
//!
//! By: ports of two kinds, one of each set of offloads that VIRTIO 1.2 (clause 5.1.3.1) allows on either side. Each
//! sender sends frames that its own set lets it send, to all receivers at once, so that one frame in flight is
//! whole to one of them and cut to the next.

mod support;

use hyper_switch_dataplane::SwitchConfig;
use hyper_switch_dataplane::api::{Action, DropReason, PortId};
use hyper_switch_pvnet::header::{F_DATA_VALID, Offloads, VNET_HDR_BYTES, VnetHdr};
use hyper_switch_pvnet::ring::RingFormat;
use std::sync::Arc;
use support::device::ScriptedDevice;
use support::shape::{Ask, Shape};
use support::{Bench, TestVm, VmConfig};

/// A kind of port.
#[derive(Clone, Copy)]
enum Kind {
    Ring(VmConfig),
    Device,
}

/// A large buffer each.
const WHOLE: VmConfig = VmConfig {
    ring: RingFormat::Split,
    slots: 64,
    rx_buffer_bytes: support::BUFFER_BYTES,
    posted: u16::MAX,
    pieces: 1,
    event_idx: true,
    indirect: false,
    mergeable: false,
    offloads: Offloads::NONE,
};

const PACKED: VmConfig = VmConfig { ring: RingFormat::Packed, ..WHOLE };

/// The kinds of ports. Receive buffers that are merged are as small as drivers make them; 64 of them are enough for
/// the longest frame.
const KINDS: [(&str, Kind); 7] = [
    ("device", Kind::Device),
    ("whole buffers", Kind::Ring(WHOLE)),
    ("buffers of three descriptors, flags", Kind::Ring(VmConfig { pieces: 3, event_idx: false, ..WHOLE })),
    ("indirect buffers of 18 descriptors", Kind::Ring(VmConfig { pieces: 18, indirect: true, ..PACKED })),
    ("merged buffers", Kind::Ring(VmConfig { rx_buffer_bytes: 1526, mergeable: true, ..PACKED })),
    (
        "merged indirect buffers, flags",
        Kind::Ring(VmConfig {
            rx_buffer_bytes: 4096,
            pieces: 2,
            indirect: true,
            mergeable: true,
            event_idx: false,
            ..WHOLE
        }),
    ),
    // Room for a wire frame, and for nothing longer.
    ("small buffers", Kind::Ring(VmConfig { rx_buffer_bytes: 1530, ..WHOLE })),
];

/// A port of some kind, and who is behind it.
enum Peer {
    Ring(Box<TestVm>),
    Device(Arc<ScriptedDevice>, PortId),
}

impl Peer {
    fn attach(bench: &mut Bench, kind: Kind, offloads: Offloads) -> Peer {
        match kind {
            Kind::Ring(config) => Peer::Ring(Box::new(bench.vm_with("vm", VmConfig { offloads, ..config }))),
            Kind::Device => {
                let device = ScriptedDevice::new(offloads);
                let port = device.attach(bench, "device");
                Peer::Device(device, port)
            }
        }
    }

    fn port(&self) -> PortId {
        match self {
            Peer::Ring(vm) => vm.port,
            Peer::Device(_, port) => *port,
        }
    }

    fn offloads(&self) -> Offloads {
        match self {
            Peer::Ring(vm) => vm.config.offloads,
            Peer::Device(device, _) => hyper_switch_pvnet::device::Device::offloads(&**device),
        }
    }

    /// Sends a frame into the switch, which looks at it.
    fn send(&mut self, bench: &mut Bench, vnet: &VnetHdr, frame: &[u8]) {
        match self {
            Peer::Ring(vm) => assert!(vm.send_with(vnet, frame)),
            Peer::Device(device, _) => device.incoming(vnet, frame),
        }
        assert_eq!(bench.switch.transmit(&mut bench.cx, &bench.host, self.port()).frames, 1);
    }

    /// What came. A ring whose buffers are used up gets them again, and more may come.
    fn receive(&mut self, bench: &mut Bench) -> Vec<(VnetHdr, Vec<u8>)> {
        match self {
            Peer::Ring(vm) => {
                let mut all = Vec::new();
                loop {
                    bench.receive(vm);
                    let received = vm.received();
                    if received.is_empty() {
                        return all;
                    }
                    all.extend(received);
                }
            }
            Peer::Device(device, _) => device.take_pushed(),
        }
    }

    /// All that it sent is done with.
    fn assert_idle(&mut self) {
        if let Peer::Ring(vm) = self {
            vm.completions();
            assert_eq!(vm.outstanding(), 0, "the sender has its buffers back");
        }
    }

    /// Whether a frame of `bytes` has room where this port receives.
    fn fits(&self, bytes: usize) -> bool {
        match self {
            Peer::Ring(vm) => {
                vm.config.mergeable || VNET_HDR_BYTES + bytes <= vm.config.rx_buffer_bytes as usize
            }
            Peer::Device(..) => true,
        }
    }
}

/// The sets of offloads that may be negotiated (clause 5.1.3.1): segmentation needs partial checksums, and ECN needs TCP
/// segmentation.
fn negotiable() -> impl Iterator<Item = Offloads> {
    const EACH: [Offloads; 5] =
        [Offloads::CSUM, Offloads::TSO4, Offloads::TSO6, Offloads::ECN, Offloads::USO];
    let sets = (0..1 << EACH.len()).map(|bits: usize| {
        let chosen = EACH.iter().enumerate().filter(|(at, _)| bits >> at & 1 != 0);
        chosen.fold(Offloads::NONE, |set, (_, offload)| set | *offload)
    });
    sets.filter(|set| {
        let tcp = set.contains(Offloads::TSO4) || set.contains(Offloads::TSO6);
        let segments = tcp || set.contains(Offloads::USO) || set.contains(Offloads::ECN);
        (set.contains(Offloads::CSUM) || !segments) && (tcp || !set.contains(Offloads::ECN))
    })
}

/// A frame that is sent.
struct Sample {
    shape: Shape,
    ask: Ask,
    vnet: VnetHdr,
    frame: Vec<u8>,
    /// What a receiver with each of the [`negotiable`] sets is to get.
    received: Vec<Vec<(VnetHdr, Vec<u8>)>>,
}

impl Sample {
    fn new(shape: Shape, ask: Ask) -> Sample {
        let (vnet, frame) = shape.sent(ask);
        let received = negotiable().map(|accept| shape.received(ask, accept)).collect();
        Sample { shape, ask, vnet, frame, received }
    }

    /// A frame that a device has verified. Whoever takes no partial checksums is not told (clause 5.1.6.4.1).
    fn verified(shape: Shape) -> Sample {
        let mut sample = Sample::new(shape, Ask::Nothing);
        sample.vnet.flags = F_DATA_VALID;
        for (received, accept) in sample.received.iter_mut().zip(negotiable()) {
            if accept.contains(Offloads::CSUM) {
                received[0].0 = sample.vnet;
            }
        }
        sample
    }
}

fn samples() -> Vec<Sample> {
    let mut samples = Vec::new();
    // Neither the frame's own length nor that of what the checksum covers is always even.
    for udp in [false, true] {
        for v6 in [false, true] {
            for (vlan_tags, ip_options) in [(0, false), (1, false), (0, true), (2, true)] {
                let shape = |payload_bytes| {
                    let tcp_options = if udp { 0 } else { 12 };
                    Shape { v6, vlan_tags, ip_options, udp, tcp_options, ..Shape::tcp(payload_bytes) }
                };
                samples.push(Sample::new(shape(31), Ask::Nothing));
                samples.push(Sample::new(shape(0), Ask::Checksum));
                samples.push(Sample::new(shape(1001), Ask::Checksum));
                // The last cut is shorter; there is one, and there is none shorter; segments are odd.
                samples.push(Sample::new(shape(3001), Ask::Cuts(1400)));
                samples.push(Sample::new(shape(1301), Ask::Cuts(651)));
                samples.push(Sample::new(shape(900), Ask::Cuts(450)));
                samples.push(Sample::new(shape(100), Ask::Cuts(1448)));
            }
        }
    }
    for v6 in [false, true] {
        for (fin_psh, cwr) in [(true, false), (false, true), (true, true)] {
            let shape = Shape { v6, fin_psh, cwr, ..Shape::tcp(2500) };
            samples.push(Sample::new(shape, Ask::Cuts(1000)));
        }
        // The longest packet there is, and the longest of the usual MTU.
        let header_bytes = 20 + if v6 { 40 } else { 20 };
        samples.push(Sample::new(Shape { v6, ..Shape::tcp(65_535 - header_bytes) }, Ask::Cuts(1440)));
        let full = 1500 - header_bytes;
        samples.push(Sample::new(Shape { v6, ..Shape::tcp(full) }, Ask::Nothing));
        samples.push(Sample::new(Shape { v6, ..Shape::tcp(full) }, Ask::Checksum));
    }
    samples.push(Sample::verified(Shape::tcp(700)));
    samples
}

/// Every frame from senders of `from` to receivers of `to`.
fn check_pair(samples: &[Sample], (from_name, from): (&str, Kind), (to_name, to): (&str, Kind)) {
    let mut bench = Bench::with(SwitchConfig { max_ports: 32, cores: 1, max_flows: 64, ..support::basic() });
    let mut senders: Vec<_> = negotiable().map(|set| Peer::attach(&mut bench, from, set)).collect();
    let mut receivers: Vec<_> = negotiable().map(|set| Peer::attach(&mut bench, to, set)).collect();
    let outputs: Vec<_> = receivers.iter().map(|receiver| Action::Output(receiver.port())).collect();
    for sender in &senders {
        bench.connect(sender.port(), &outputs);
    }
    // What each receiver is to count: frames, those finished for it, those too long for it.
    let mut counts = vec![(0, 0, 0); receivers.len()];
    for (at, sender) in senders.iter_mut().enumerate() {
        let own = sender.offloads();
        let sendable = samples.iter().filter(|sample| own.contains(sample.shape.needs(sample.ask)));
        // Whoever may send everything does; the others, of whose sets the switch is not even told, an eighth each.
        let step = if own == Offloads::ALL { 1 } else { 8 };
        for sample in sendable.skip(at % step).step_by(step) {
            sender.send(&mut bench, &sample.vnet, &sample.frame);
            let expected = sample.received.iter().zip(&mut counts);
            for (receiver, (expected, (frames, finished, too_long))) in receivers.iter_mut().zip(expected) {
                let accept = receiver.offloads();
                let received = receiver.receive(&mut bench);
                let what = || {
                    let Sample { shape, ask, vnet, .. } = sample;
                    let shape = Shape { payload: Vec::new(), ..shape.clone() };
                    format!(
                        "{ask:?} of {} bytes of payload with {vnet:?} and {shape:?} from {from_name} to {to_name} with {accept:?}",
                        sample.shape.payload.len()
                    )
                };
                if !expected.iter().all(|(_, frame)| receiver.fits(frame.len())) {
                    *too_long += 1;
                    assert!(received.is_empty(), "{}", what());
                    continue;
                }
                *frames += 1;
                *finished += u64::from(!accept.contains(sample.shape.needs(sample.ask)));
                assert_eq!(received.len(), expected.len(), "{}", what());
                for (at, (received, expected)) in received.iter().zip(expected).enumerate() {
                    assert_eq!(received.0, expected.0, "frame {at} of {}", what());
                    // Not assert_eq, which would print every byte of every frame.
                    let differ = received.1.iter().zip(&expected.1).position(|(a, b)| a != b);
                    assert_eq!(
                        (received.1.len(), differ),
                        (expected.1.len(), None),
                        "frame {at} of {}",
                        what()
                    );
                }
            }
            sender.assert_idle();
        }
    }
    for (receiver, (frames, finished, too_long)) in receivers.iter().zip(counts) {
        let counters = bench.counters(receiver.port());
        assert_eq!((counters.rx.frames, counters.rx.finished), (frames, finished));
        let drops = [(DropReason::RxTooLong, too_long)];
        bench.assert_rx_drops(receiver.port(), if too_long == 0 { &[] } else { &drops });
    }
    bench.check_ledger();
}

/// Senders of one kind, to receivers of each.
fn check_from(kind: usize) {
    let samples = samples();
    for to in KINDS {
        check_pair(&samples, KINDS[kind], to);
    }
}

macro_rules! senders {
    ($($name:ident: $kind:literal,)+) => { $(
        #[test]
        fn $name() {
            check_from($kind);
        }
    )+ };
}

// A test each, so that they share the machine's cores.
senders! {
    from_a_device: 0,
    from_whole_buffers: 1,
    from_buffers_of_three_descriptors: 2,
    from_indirect_buffers: 3,
    from_a_driver_that_merges: 4,
    from_a_driver_that_merges_indirect_buffers: 5,
    from_a_driver_with_small_buffers: 6,
}

/// Holds that the sets are those that the specification allows: what depends on nothing or on what is there.
#[test]
fn fifteen_sets_can_be_negotiated() {
    assert_eq!(negotiable().count(), 1 + 7 * 2);
}

/// Holds that cuts which find no buffer wait for one, and come once each; and that those of a frame that waited too long
/// are lost with it, and no others.
#[test]
fn cuts_wait_for_buffers() {
    let mut bench = Bench::new();
    let mut sender = bench.vm("sender");
    let config = VmConfig { posted: 0, offloads: Offloads::NONE, ..VmConfig::default() };
    let mut receiver = bench.vm_with("receiver", config);
    bench.connect(sender.port, &[Action::Output(receiver.port)]);
    let (shape, ask) = (Shape::tcp(10_000), Ask::Cuts(1000));
    let (vnet, frame) = shape.sent(ask);
    let expected = shape.received(ask, Offloads::NONE);
    let mut arrive = |bench: &mut Bench, buffers| {
        receiver.post(buffers);
        bench.receive(&receiver);
        receiver.take_received()
    };

    assert!((0..2).all(|_| sender.send_with(&vnet, &frame)));
    bench.transmit(&sender);
    for (buffers, cuts) in [(4, 0..4), (1, 4..5), (0, 5..5), (4, 5..9)] {
        assert!(arrive(&mut bench, buffers) == expected[cuts]);
        assert_eq!((sender.completions(), bench.counters(PortId(1)).rx.frames), (0, 0), "it is still needed");
    }
    // The last one, and the first of the next frame.
    assert!(arrive(&mut bench, 3) == [&expected[9..], &expected[..2]].concat());
    assert_eq!(sender.completions(), 1);
    let counters = bench.counters(PortId(1)).rx;
    let written: usize = expected.iter().map(|(_, cut)| VNET_HDR_BYTES + cut.len()).sum();
    assert_eq!((counters.frames, counters.finished, counters.copied_bytes), (1, 1, written as u64));

    bench.host.advance(bench.switch.config().patience);
    bench.switch.expire(&mut bench.cx, &bench.host, PortId(1));
    bench.assert_rx_drops(PortId(1), &[(DropReason::RxStalled, 1)]);
    assert!(sender.send_with(&vnet, &frame));
    bench.transmit(&sender);
    assert!(arrive(&mut bench, 20) == expected, "from its first cut on");
    assert_eq!(sender.completions(), 2);
    bench.check_ledger();
}
