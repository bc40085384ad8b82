//! Edits through the whole switch: each output of a flow gets the packet as the actions before it left it, also
//! when several wait for different receivers at once, and the payload behind an edited header is the sender's.

mod support;

use etherparse::{NetSlice, PacketBuilder, SlicedPacket, TransportSlice};
use hyper_switch_dataplane::api::{Action, DropReason, FieldValue};
use hyper_switch_pvnet::header::{F_NEEDS_CSUM, Offloads, VnetHdr};
use support::device::ScriptedDevice;
use support::{Bench, VmConfig, frame};

const MAC: [u8; 6] = [2, 9, 9, 9, 9, 9];
const OTHER_MAC: [u8; 6] = [2, 8, 8, 8, 8, 8];

/// `frame` with another destination, and this tag in front of its type if there is one.
fn edited(frame: &[u8], mac: [u8; 6], tag: Option<u16>) -> Vec<u8> {
    let tag = tag.map(|vid| [&[0x81, 0x00], &vid.to_be_bytes()[..]].concat()).unwrap_or_default();
    [&mac[..], &frame[6..12], &tag, &frame[12..]].concat()
}

#[test]
fn each_output_gets_the_packet_as_it_was_then() {
    // Shorter than the copied header, just as long, and longer: behind a tag it then has 132 bytes.
    for bytes in [60, 127, 128, 129, 1500, 9000] {
        let mut bench = Bench::new();
        let (mut a, mut b) = (bench.vm("a"), bench.vm("b"));
        let mut small = bench.vm_with("small", VmConfig { rx_buffer_bytes: 2000, ..VmConfig::default() });
        let device = ScriptedDevice::new(Offloads::ALL);
        let to_device = device.attach(&mut bench, "device");
        bench.connect(
            a.port,
            &[
                Action::Output(b.port),
                Action::Set(FieldValue::EthDst(MAC)),
                Action::Output(small.port),
                Action::PushVlan(0x8100),
                Action::Set(FieldValue::VlanVid(7)),
                Action::Output(b.port),
                Action::Output(to_device),
                Action::PopVlan,
                Action::Set(FieldValue::EthDst(OTHER_MAC)),
                Action::Output(small.port),
            ],
        );
        let sent: Vec<_> = (0..3).map(|number| frame(a.port, b.port, bytes, number)).collect();
        assert!(sent.iter().all(|frame| a.send(frame)));
        bench.transmit(&a);
        bench.receive(&b);
        bench.receive(&small);
        let pushed: Vec<_> = device.take_pushed().into_iter().map(|(_, frame)| frame).collect();
        let tagged = |frame: &Vec<u8>| edited(frame, MAC, Some(7));
        let to_b = sent.iter().flat_map(|frame| [frame.clone(), tagged(frame)]);
        let to_small = sent.iter().flat_map(|frame| [MAC, OTHER_MAC].map(|mac| edited(frame, mac, None)));
        // Not assert_eq, which would print every byte of every frame.
        assert!(b.received_frames().into_iter().eq(to_b), "{bytes} bytes to b");
        assert!(small.received_frames().into_iter().eq(to_small), "{bytes} bytes to small buffers");
        assert!(pushed.into_iter().eq(sent.iter().map(tagged)), "{bytes} bytes to the device");
        assert_eq!(a.completions(), 3);
        bench.check_ledger();
    }
}

/// Holds that a frame out of a device's own buffer is edited for one receiver and as it came for another.
#[test]
fn frames_of_a_device_are_edited_too() {
    let mut bench = Bench::new();
    let (from, to) = (ScriptedDevice::new(Offloads::ALL), ScriptedDevice::new(Offloads::ALL));
    let (in_port, out_port) = (from.attach(&mut bench, "from"), to.attach(&mut bench, "to"));
    let actions = [Action::Output(out_port), Action::PushVlan(0x8100), Action::Output(out_port)];
    bench.connect(in_port, &actions);
    let sent = frame(in_port, out_port, 1000, 1);
    from.incoming(&VnetHdr::PLAIN, &sent);
    let Bench { switch, cx, host, .. } = &mut bench;
    switch.transmit(cx, host, in_port);
    let pushed: Vec<_> = to.take_pushed().into_iter().map(|(_, frame)| frame).collect();
    let mac = *sent.first_chunk().unwrap();
    assert_eq!(pushed, [sent.clone(), edited(&sent, mac, Some(0))]);
    bench.check_ledger();
}

/// Holds that a packet whose addresses and ports were written has right checksums, whole or partial, in one
/// case behind a tag, finished for a receiver that lacks them.
#[test]
fn checksums_follow_edits() {
    for (partial, tagged) in [(false, false), (true, false), (true, true)] {
        let mut bench = Bench::new();
        let mut a = bench.vm("a");
        let mut b = bench.vm_with("b", VmConfig { offloads: Offloads::NONE, ..VmConfig::default() });
        let mut actions = vec![
            Action::Set(FieldValue::Ipv4Dst(0x0a00_0063)),
            Action::Set(FieldValue::L4Dst(8080)),
            Action::Output(b.port),
        ];
        if tagged {
            actions.insert(2, Action::PushVlan(0x8100));
        }
        bench.connect(a.port, &actions);
        let builder =
            PacketBuilder::ethernet2(a.mac(), b.mac()).ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64).udp(4000, 80);
        let payload: Vec<u8> = (0..501_u32).map(|at| (at * 13) as u8).collect();
        let mut sent = Vec::with_capacity(builder.size(payload.len()));
        builder.write(&mut sent, &payload).unwrap();
        let mut vnet = VnetHdr::PLAIN;
        if partial {
            let l4_bytes = (sent.len() - 34) as u16;
            let sum = hyper_switch_pvnet::offload::pseudo_v4([10, 0, 0, 1], [10, 0, 0, 2], 17, l4_bytes);
            sent[40..42].copy_from_slice(&sum.fold().to_be_bytes());
            vnet = VnetHdr { flags: F_NEEDS_CSUM, csum_start: 34, csum_offset: 6, ..VnetHdr::PLAIN };
        }
        assert!(a.send_with(&vnet, &sent));
        bench.transmit(&a);
        bench.receive(&b);
        let [(vnet, received)] = &b.received()[..] else { panic!("one frame arrives") };
        assert_eq!(*vnet, VnetHdr::PLAIN);
        let packet = SlicedPacket::from_ethernet(received).unwrap();
        assert_eq!(packet.link_exts.len(), usize::from(tagged));
        let (Some(NetSlice::Ipv4(ip)), Some(TransportSlice::Udp(udp))) = (packet.net, packet.transport)
        else {
            panic!("it is UDP over IPv4")
        };
        let header = ip.header().to_header();
        assert_eq!((header.destination, udp.destination_port()), ([10, 0, 0, 99], 8080));
        assert_eq!(header.header_checksum, header.calc_header_checksum());
        let expected = udp.to_header().calc_checksum_ipv4(&header, udp.payload()).unwrap();
        assert_eq!((udp.checksum(), udp.payload()), (expected, &payload[..]));
    }
}

/// Holds that an action which its packet has no field for drops the packet for all outputs, those before it
/// included, and that edited headers are used again however many packets fail.
#[test]
fn an_impossible_edit_drops_the_packet_whole() {
    let mut bench = Bench::new();
    let (mut a, b) = (bench.vm("a"), bench.vm("b"));
    let set = |mac| Action::Set(FieldValue::EthDst(mac));
    let impossible = Action::Set(FieldValue::Ipv4Dst(1));
    bench.connect(a.port, &[set(MAC), Action::Output(b.port), impossible, Action::Output(b.port)]);
    for round in 1..=5 {
        assert!((0..40).all(|number| a.send(&frame(a.port, b.port, 100, number))));
        bench.transmit(&a);
        bench.assert_tx_drops(a.port, &[(DropReason::BadEdit, 40 * round)]);
        assert_eq!((bench.receive(&b).copied, a.completions()), (0, 40));
    }
    bench.check_ledger();
}

/// Holds that headers which wait for a stuck receiver are bounded, that more are a counted drop, and that the
/// bound is free again when the receiver has taken them.
#[test]
fn edited_headers_that_wait_are_bounded() {
    let mut bench = Bench::new();
    let mut a = bench.vm("a");
    let mut b = bench.vm_with("b", VmConfig { slots: 256, posted: 0, ..VmConfig::default() });
    let set = |mac| Action::Set(FieldValue::EthDst(mac));
    let actions = [set(MAC), Action::Output(b.port), set(OTHER_MAC), Action::Output(b.port)];
    bench.connect(a.port, &actions);
    for _ in 0..2 {
        // As many headers as the ring has slots: half of the frames have room for their two.
        assert!((0..64).all(|number| a.send(&frame(a.port, b.port, 100, number))));
        bench.transmit(&a);
        assert_eq!(a.completions(), 32);
        b.post(64);
        assert_eq!(bench.receive(&b).copied, 64);
        assert_eq!((b.take_received().len(), a.completions()), (64, 32));
        bench.check_ledger();
    }
    bench.assert_tx_drops(a.port, &[(DropReason::EditsExhausted, 64)]);
}
