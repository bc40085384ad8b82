//! Ports that come and go, and devices: what waits when a port leaves is completed or counted, a number starts
//! anew, and a device's answers and faults stay its own. Offloads that a receiver lacks are finished for it, in
//! every direction, and parsed again by another implementation.

mod support;

use etherparse::{Ethernet2HeaderSlice, PacketBuilder, SlicedPacket, TransportSlice};
use hyper_switch_dataplane::api::{Action, DropReason, FlowKey, PortId, UpcallId, Verdict};
use hyper_switch_dataplane::{AttachError, PortFault, PortState, SwitchConfig};
use hyper_switch_pvnet::device::{DeviceFault, PushError};
use hyper_switch_pvnet::header::{F_NEEDS_CSUM, GsoType, Offloads, VnetHdr};
use std::time::Duration;
use support::device::ScriptedDevice;
use support::{Bench, TestVm, VmConfig, frame};

/// Goes on with detaching until it is done, which takes one step for each epoch.
#[track_caller]
fn reap_all(bench: &mut Bench) {
    assert!((0..4).any(|_| bench.reap()), "all detached ports are gone");
}

#[test]
fn a_port_that_leaves_completes_all_that_waits_in_both_directions() {
    let mut bench = Bench::new();
    let (mut a, mut b) = (bench.vm("a"), bench.vm("b"));
    bench.connect(a.port, &[Action::Output(b.port)]);
    bench.connect(b.port, &[Action::Output(a.port)]);
    assert!((0..3).all(|n| a.send(&frame(a.port, b.port, 100, n))));
    let from_b: Vec<_> = (0..2).map(|n| frame(b.port, a.port, 100, n)).collect();
    assert!(from_b.iter().all(|frame| b.send(frame)));
    bench.transmit(&a);
    bench.transmit(&b);

    bench.detach(b.port);
    assert!(!bench.control.detach(b.port), "a port leaves once");
    assert_eq!(bench.state(b.port), PortState::Leaving);
    assert!(!bench.reap(), "two frames are still on their way out of its memory");
    assert_eq!(a.completions(), 3);
    bench.assert_rx_drops(b.port, &[(DropReason::PortDown, 3)]);
    bench.check_ledger();

    assert!(b.send(&frame(b.port, a.port, 100, 9)));
    assert_eq!(bench.transmit(&b).frames, 0, "nothing more is taken from it");
    assert_eq!(bench.receive(&a).copied, 2);
    assert_eq!(a.received_frames(), from_b);
    assert_eq!(b.completions(), 2);
    reap_all(&mut bench);
    assert!(bench.control.port(b.port).is_none());
    bench.check_ledger();
}

/// Holds that a receiver which posts nothing delays its senders' leaving until patience ends, not for ever.
#[test]
fn a_port_leaves_although_its_receiver_is_stuck() {
    let mut bench = Bench::new();
    let mut a = bench.vm("a");
    let stuck = bench.vm_with("stuck", VmConfig { posted: 0, ..VmConfig::default() });
    bench.connect(a.port, &[Action::Output(stuck.port)]);
    assert!((0..5).all(|n| a.send(&frame(a.port, stuck.port, 100, n))));
    bench.transmit(&a);
    bench.receive(&stuck);
    bench.detach(a.port);
    for _ in 0..4 {
        assert!(!bench.reap(), "its memory is still to be read");
    }
    bench.host.advance(Duration::from_secs(1));
    assert!(bench.host.take_due().contains(&stuck.port));
    bench.expire(&stuck);
    bench.assert_rx_drops(stuck.port, &[(DropReason::RxStalled, 5)]);
    assert_eq!(a.completions(), 5);
    reap_all(&mut bench);
    bench.check_ledger();
}

#[test]
fn a_port_that_leaves_drops_what_it_has_waiting_for_the_control_plane() {
    let mut bench = Bench::new();
    let (mut a, b) = (bench.vm("a"), bench.vm("b"));
    let key = FlowKey { eth_dst: b.mac(), ..FlowKey::ZERO };
    bench.flow(key, FlowKey { eth_dst: [0xff; 6], ..FlowKey::ZERO }, &[Action::Output(b.port)]);
    assert!((0..3).all(|n| a.send(&frame(a.port, PortId(9), 100, n))));
    assert!(a.send(&frame(a.port, b.port, 100, 3)));
    bench.transmit(&a);
    bench.detach(a.port);
    // A verdict that comes in between sends nothing on.
    let Bench { control, cx, host, .. } = &mut bench;
    let actions = [Action::Output(b.port)];
    control.resolve(cx, host, UpcallId { port: a.port, number: 0 }, Verdict::Execute(actions.into()));
    assert!(!bench.reap(), "a frame waits for b");
    bench.assert_tx_drops(a.port, &[(DropReason::PortDown, 3)]);
    assert_eq!(a.completions(), 3);
    assert_eq!(bench.receive(&b).copied, 1);
    assert_eq!(a.completions(), 1);
    reap_all(&mut bench);
    assert!(bench.control.next_upcall().is_none(), "its upcalls went with it");
}

#[test]
fn a_number_is_used_again_and_counts_from_zero() {
    let mut bench = Bench::with(SwitchConfig { max_ports: 2, cores: 1, max_flows: 16, ..support::basic() });
    let (mut a, mut b) = (bench.vm("a"), bench.vm("b"));
    bench.connect(a.port, &[Action::Output(b.port)]);
    assert!(a.send(&frame(a.port, b.port, 100, 0)));
    bench.transmit(&a);
    bench.receive(&b);
    assert_eq!(b.received().len(), 1);

    let device = ScriptedDevice::new(Offloads::ALL);
    let config = |device: &std::sync::Arc<ScriptedDevice>| hyper_switch_dataplane::PortConfig {
        name: "one too many".into(),
        vlan: hyper_switch_dataplane::api::VlanMode::Transparent,
        backend: hyper_switch_dataplane::Backend::Device(device.clone()),
    };
    assert_eq!(bench.control.attach(config(&device)), Err(AttachError::NoPortLeft(2)));
    bench.detach(b.port);
    assert_eq!(bench.control.attach(config(&device)), Err(AttachError::NoPortLeft(2)), "not gone yet");
    reap_all(&mut bench);

    let number = b.port;
    b = bench.vm("b again");
    assert_eq!(b.port, number);
    let status = bench.control.port(b.port).unwrap();
    assert_eq!((status.counters.drops().count(), status.info.name.as_str()), (0, "b again"));
    assert_eq!((status.counters.tx, status.counters.rx), Default::default());
    let again = frame(a.port, b.port, 100, 1);
    assert!(a.send(&again));
    bench.transmit(&a);
    bench.receive(&b);
    assert_eq!(b.received_frames(), [again], "the flow leads to whoever has the number");
    assert_eq!(bench.counters(b.port).rx.frames, 1);
}

#[test]
fn a_flow_to_no_port_drops_at_the_sender() {
    let mut bench = Bench::new();
    let (mut a, mut b) = (bench.vm("a"), bench.vm("b"));
    bench.connect(a.port, &[Action::Output(PortId(9)), Action::Output(b.port)]);
    let sent = frame(a.port, b.port, 100, 0);
    assert!(a.send(&sent));
    bench.transmit(&a);
    bench.receive(&b);
    bench.assert_tx_drops(a.port, &[(DropReason::NoSuchPort, 1)]);
    assert_eq!(b.received_frames(), [sent], "the other copy arrives");
    assert_eq!(a.completions(), 1);
    bench.check_ledger();
}

/// Holds that frames come from a device and go to one through VMs, more than it has buffers, in order.
#[test]
fn frames_go_from_device_to_vm_to_device() {
    let mut bench = Bench::new();
    let (left, right) = (ScriptedDevice::new(Offloads::ALL), ScriptedDevice::new(Offloads::ALL));
    let (from, to) = (left.attach(&mut bench, "left"), right.attach(&mut bench, "right"));
    let mut vm = bench.vm("vm");
    bench.connect(from, &[Action::Output(vm.port)]);
    bench.connect(vm.port, &[Action::Output(to)]);
    let sent: Vec<_> = (0..300).map(|n| frame(from, vm.port, 60 + 217 * (n % 70), n as u64)).collect();
    sent.iter().for_each(|frame| left.incoming(&VnetHdr::PLAIN, frame));
    let mut arrived = Vec::new();
    while arrived.len() < sent.len() {
        let Bench { switch, cx, host, .. } = &mut bench;
        switch.transmit(cx, host, from);
        assert!(bench.receive(&vm).copied > 0, "each round gets on");
        for frame in vm.received_frames() {
            assert!(vm.send(&frame));
            bench.transmit(&vm);
            assert_eq!(vm.completions(), 1, "a device has taken a frame when the call returns");
        }
        arrived.extend(right.take_pushed().into_iter().map(|(_, frame)| frame));
        bench.check_ledger();
    }
    assert_eq!(arrived, sent);
    assert_eq!((left.waiting(), bench.control.port(from).unwrap().in_flight), (0, 0));
}

/// Holds that a stuck receiver keeps a device's buffers, that what comes meanwhile stays in the device, and
/// that it goes on when the buffers come back.
#[test]
fn a_device_without_free_buffers_waits() {
    let mut bench = Bench::new();
    let device = ScriptedDevice::new(Offloads::ALL);
    let from = device.attach(&mut bench, "device");
    let mut vm = bench.vm_with("vm", VmConfig { posted: 0, ..VmConfig::default() });
    bench.connect(from, &[Action::Output(vm.port)]);
    (0..150).for_each(|n| device.incoming(&VnetHdr::PLAIN, &frame(from, vm.port, 60, n)));
    let Bench { switch, cx, host, .. } = &mut bench;
    let pulls: Vec<_> = (0..3).map(|_| switch.transmit(cx, host, from)).map(|e| (e.frames, e.more)).collect();
    assert_eq!(
        pulls,
        [(64, true), (64, true), (0, false)],
        "one pull an entry, as long as there are buffers"
    );
    assert_eq!(device.waiting(), 22);
    let mut numbers = Vec::new();
    for _ in 0..3 {
        vm.post(64);
        bench.receive(&vm);
        let frames = vm.take_received();
        numbers
            .extend(frames.iter().map(|(_, frame)| u64::from_be_bytes(*frame[14..].first_chunk().unwrap())));
        let Bench { switch, cx, host, .. } = &mut bench;
        while switch.transmit(cx, host, from).more {}
    }
    assert_eq!(numbers, Vec::from_iter(0..150));
    bench.check_ledger();
}

#[test]
fn a_device_refuses_single_frames() {
    let mut bench = Bench::new();
    let mut a = bench.vm("a");
    let device = ScriptedDevice::new(Offloads::ALL);
    let to = device.attach(&mut bench, "device");
    bench.connect(a.port, &[Action::Output(to)]);
    let sent: Vec<_> = (0..6).map(|n| frame(a.port, to, 100, n)).collect();
    assert!(sent.iter().all(|frame| a.send(frame)));
    let [full, down, refused] = [PushError::Full, PushError::LinkDown, PushError::Refused].map(Err);
    device.answer([Ok(()), full, Ok(()), down, refused, Ok(())]);
    bench.transmit(&a);
    let taken: Vec<_> = device.take_pushed().into_iter().map(|(_, frame)| frame).collect();
    assert_eq!(taken, [&sent[0], &sent[2], &sent[5]].map(Vec::clone));
    let reasons = [DropReason::DeviceFull, DropReason::DeviceLinkDown, DropReason::DeviceRefused];
    bench.assert_rx_drops(to, &reasons.map(|reason| (reason, 1)));
    assert_eq!((a.completions(), bench.state(to)), (6, PortState::Up));
    bench.check_ledger();
}

#[test]
fn a_fault_takes_only_its_device_down() {
    let mut bench = Bench::new();
    let (mut a, mut b) = (bench.vm("a"), bench.vm("b"));
    let broken = ScriptedDevice::new(Offloads::ALL);
    let gone = broken.attach(&mut bench, "broken");
    bench.connect(a.port, &[Action::Output(gone), Action::Output(b.port)]);
    assert!((0..3).all(|n| a.send(&frame(a.port, b.port, 100, n))));
    broken.answer([Ok(()), Err(PushError::Fault(DeviceFault::Gone))]);
    assert!(bench.transmit(&a).faulted);
    assert_eq!(bench.state(gone), PortState::Faulted(PortFault::Device(DeviceFault::Gone)));
    assert_eq!(bench.counters(gone).rx_drops[DropReason::PortDown as usize], 1);
    assert!(a.send(&frame(a.port, b.port, 100, 3)));
    assert!(!bench.transmit(&a).faulted);
    bench.assert_tx_drops(a.port, &[(DropReason::NoSuchPort, 1)]);
    bench.receive(&b);
    assert_eq!((b.received().len(), a.completions()), (4, 4));

    let pulled = ScriptedDevice::new(Offloads::ALL);
    let from = pulled.attach(&mut bench, "pulled");
    bench.connect(from, &[Action::Output(b.port)]);
    pulled.incoming(&VnetHdr::PLAIN, &frame(from, b.port, 100, 0));
    pulled.fail_pull(DeviceFault::System(5));
    let Bench { switch, cx, host, .. } = &mut bench;
    let entered = [switch.transmit(cx, host, from), switch.transmit(cx, host, from)];
    assert_eq!(entered.map(|e| (e.frames, e.faulted, e.down)), [(1, false, false), (0, true, true)]);
    assert_eq!(bench.state(from), PortState::Faulted(PortFault::Device(DeviceFault::System(5))));
    bench.receive(&b);
    assert_eq!(b.received().len(), 1, "what it gave before is delivered");
    bench.detach(gone);
    bench.detach(from);
    reap_all(&mut bench);
    bench.check_ledger();
}

#[test]
fn bad_frames_of_a_device_are_counted_and_their_buffers_used_again() {
    let mut bench = Bench::new();
    let (device, b) = (ScriptedDevice::new(Offloads::ALL), bench.vm("b"));
    let from = device.attach(&mut bench, "device");
    bench.connect(from, &[Action::Output(b.port)]);
    let unknown_gso = [&[0, 2], &[0; 70][..]].concat();
    for _ in 0..100 {
        for bytes in [vec![], vec![0; 11], vec![0; 25], unknown_gso.clone()] {
            device.incoming_raw(bytes);
        }
    }
    let Bench { switch, cx, host, .. } = &mut bench;
    while switch.transmit(cx, host, from).frames > 0 {}
    bench.assert_tx_drops(from, &[(DropReason::Truncated, 300), (DropReason::BadVnetHdr, 100)]);
    assert_eq!(bench.control.port(from).unwrap().in_flight, 0);
    bench.check_ledger();
}

/// A TCP frame over IPv4 or IPv6 as a guest with all offloads sends it: the checksum is the partial sum.
fn large_tcp(ipv6: bool, payload: &[u8]) -> (VnetHdr, Vec<u8>) {
    let builder = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]);
    let builder = if ipv6 {
        builder.ipv6([1; 16], [2; 16], 64)
    } else {
        builder.ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64)
    };
    let builder = builder.tcp(4000, 80, 1_000_000, 5000).psh().ack(1);
    let mut frame = Vec::with_capacity(builder.size(payload.len()));
    builder.write(&mut frame, payload).unwrap();
    let (l4, pseudo) = if ipv6 {
        (54, hyper_switch_pvnet::offload::pseudo_v6([1; 16], [2; 16], 6, (frame.len() - 54) as u32))
    } else {
        (
            34,
            hyper_switch_pvnet::offload::pseudo_v4(
                [10, 0, 0, 1],
                [10, 0, 0, 2],
                6,
                (frame.len() - 34) as u16,
            ),
        )
    };
    frame[l4 + 16..l4 + 18].copy_from_slice(&pseudo.fold().to_be_bytes());
    let gso = if ipv6 { GsoType::Tcp6 } else { GsoType::Tcp4 };
    let vnet = VnetHdr {
        flags: F_NEEDS_CSUM,
        gso: if payload.len() > 1000 { gso } else { GsoType::None },
        gso_size: if payload.len() > 1000 { 1000 } else { 0 },
        hdr_len: l4 as u16 + 20,
        csum_start: l4 as u16,
        csum_offset: 16,
        ..VnetHdr::PLAIN
    };
    (vnet, frame)
}

/// Holds that these wire frames, checksums and all, are what `payload` was to be cut into.
#[track_caller]
fn check_wire(received: &[(VnetHdr, Vec<u8>)], payload: &[u8]) {
    let mut bytes: Vec<u8> = Vec::new();
    for (vnet, frame) in received {
        assert_eq!(*vnet, VnetHdr::PLAIN, "nothing is left to be done");
        assert!(Ethernet2HeaderSlice::from_slice(frame).is_ok());
        let packet = SlicedPacket::from_ethernet(frame).expect("every length is right");
        let Some(TransportSlice::Tcp(tcp)) = packet.transport else { panic!("it is TCP") };
        let checksum = match packet.net.expect("it is IP") {
            etherparse::NetSlice::Ipv4(ip) => {
                let header = ip.header().to_header();
                assert_eq!(header.header_checksum, header.calc_header_checksum(), "IPv4 header");
                tcp.calc_checksum_ipv4(ip.header().source(), ip.header().destination())
            }
            etherparse::NetSlice::Ipv6(ip) => {
                tcp.calc_checksum_ipv6(ip.header().source(), ip.header().destination())
            }
            other => panic!("{other:?}"),
        };
        assert_eq!(tcp.checksum(), checksum.unwrap(), "TCP checksum of {} bytes", frame.len());
        assert_eq!(tcp.sequence_number(), 1_000_000 + bytes.len() as u32);
        assert!(tcp.payload().len() <= 1000);
        bytes.extend(tcp.payload());
    }
    assert_eq!(bytes, payload);
}

/// What is behind a port in the test of offloads.
enum End {
    Vm(Box<TestVm>),
    Device(std::sync::Arc<ScriptedDevice>, PortId),
}

impl End {
    fn new(bench: &mut Bench, device: bool, offloads: Offloads) -> End {
        if device {
            let device = ScriptedDevice::new(offloads);
            let port = device.attach(bench, "device");
            return End::Device(device, port);
        }
        End::Vm(Box::new(bench.vm_with("vm", VmConfig { offloads, ..VmConfig::default() })))
    }

    fn port(&self) -> PortId {
        match self {
            End::Vm(vm) => vm.port,
            End::Device(_, port) => *port,
        }
    }

    fn send(&mut self, bench: &mut Bench, vnet: &VnetHdr, frame: &[u8]) {
        match self {
            End::Vm(vm) => assert!(vm.send_with(vnet, frame)),
            End::Device(device, _) => device.incoming(vnet, frame),
        }
        let Bench { switch, cx, host, .. } = bench;
        assert_eq!(switch.transmit(cx, host, self.port()).frames, 1);
    }

    fn receive(&mut self, bench: &mut Bench) -> Vec<(VnetHdr, Vec<u8>)> {
        match self {
            End::Vm(vm) => {
                bench.receive(vm);
                vm.received()
            }
            End::Device(device, _) => device.take_pushed(),
        }
    }
}

#[test]
fn what_a_receiver_lacks_is_finished_in_every_direction() {
    let payload: Vec<u8> = (0..30_500_u32).map(|at| (at * 7) as u8).collect();
    for (from_device, to_device) in [(false, false), (false, true), (true, false), (true, true)] {
        for (ipv6, bytes) in [(false, 500), (true, 501), (false, 30_500), (true, 29_999)] {
            let mut bench = Bench::new();
            let mut from = End::new(&mut bench, from_device, Offloads::ALL);
            let mut all = End::new(&mut bench, to_device, Offloads::ALL);
            let mut none = End::new(&mut bench, to_device, Offloads::NONE);
            bench.connect(from.port(), &[Action::Output(all.port()), Action::Output(none.port())]);
            let (vnet, frame) = large_tcp(ipv6, &payload[..bytes]);
            from.send(&mut bench, &vnet, &frame);
            assert_eq!(all.receive(&mut bench), [(vnet, frame)], "it crosses as it is");
            check_wire(&none.receive(&mut bench), &payload[..bytes]);
            assert_eq!(bench.control.port(from.port()).unwrap().in_flight, 0);
            assert_eq!(bench.counters(none.port()).rx.frames, 1, "it is one frame, however cut");
            bench.check_ledger();
        }
    }
}

/// Holds that cuts which a receiver with partial checksums takes are left partial: each one's own.
#[test]
fn a_receiver_with_checksums_only_gets_cuts_with_partial_ones() {
    let payload = [7; 2500];
    let mut bench = Bench::new();
    let mut from = End::new(&mut bench, false, Offloads::ALL);
    let mut to = End::new(&mut bench, false, Offloads::CSUM);
    bench.connect(from.port(), &[Action::Output(to.port())]);
    let (vnet, frame) = large_tcp(false, &payload);
    from.send(&mut bench, &vnet, &frame);
    let mut cuts = to.receive(&mut bench);
    assert_eq!(cuts.len(), 3);
    for (vnet, frame) in &mut cuts {
        assert!(vnet.needs_csum() && vnet.gso == GsoType::None);
        hyper_switch_pvnet::offload::finish(frame, vnet).unwrap();
    }
    check_wire(&cuts, &payload);
}

/// Holds that what cannot be finished is a counted drop at its receiver, and that a device that is full in the
/// midst of a cut frame loses the rest of it.
#[test]
fn what_cannot_be_finished_is_dropped() {
    let mut bench = Bench::new();
    let mut a = bench.vm("a");
    let mut none = bench.vm_with("none", VmConfig { offloads: Offloads::NONE, ..VmConfig::default() });
    let device = ScriptedDevice::new(Offloads::NONE);
    let to = device.attach(&mut bench, "device");
    bench.connect(a.port, &[Action::Output(none.port), Action::Output(to)]);
    let partial = VnetHdr { flags: F_NEEDS_CSUM, csum_start: 20, csum_offset: 6, ..VnetHdr::PLAIN };
    assert!(a.send_with(&partial, &frame(a.port, to, 100, 0)), "a checksum without IP");
    let (vnet, tcp) = large_tcp(false, &[0; 5000]);
    assert!(a.send_with(&VnetHdr { gso: GsoType::UdpL4, ..vnet }, &tcp), "TCP that claims to be UDP");
    bench.transmit(&a);
    bench.receive(&none);
    for port in [none.port, to] {
        bench.assert_rx_drops(port, &[(DropReason::OffloadImpossible, 2)]);
    }
    assert_eq!((a.completions(), none.received().len(), device.take_pushed().len()), (2, 0, 0));

    device.answer([Ok(()), Ok(()), Err(PushError::Full)]);
    assert!(a.send_with(&vnet, &tcp));
    bench.transmit(&a);
    assert_eq!(device.take_pushed().len(), 2);
    bench.assert_rx_drops(to, &[(DropReason::OffloadImpossible, 2), (DropReason::DeviceFull, 1)]);
    bench.check_ledger();
}
