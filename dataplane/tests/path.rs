//! A packet's way, step by step, on a host without threads: what each entry does and what it counts.

mod support;

use hyper_switch_dataplane::api::{Action, FlowKey, PortId};
use hyper_switch_pvnet::header::{F_DATA_VALID, VnetHdr};
use support::{Bench, frame};

#[test]
fn a_frame_goes_from_one_vm_to_another() {
    let mut bench = Bench::new();
    let (mut a, mut b) = (bench.vm("a"), bench.vm("b"));
    bench.connect(a.port, &[Action::Output(b.port)]);
    let sent: Vec<_> = (0..40).map(|n| frame(a.port, b.port, 60 + 100 * n, n as u64)).collect();
    assert!(sent.iter().all(|frame| a.send(frame)));

    let entered = bench.transmit(&a);
    assert_eq!((entered.frames, entered.more, entered.upcalls), (40, false, false));
    assert_eq!(bench.host.take_notified(), [b.port], "one notification for the whole batch");
    assert_eq!(a.completions(), 0, "a buffer is completed after its copy, not before");
    bench.check_ledger();

    assert_eq!(bench.receive(&b).copied, 40);
    assert_eq!(b.received_frames(), sent);
    assert_eq!(a.completions(), 40);
    bench.check_ledger();

    let counters = bench.control.port(b.port).unwrap().counters;
    assert_eq!((counters.rx.copies, counters.rx.notifications, counters.rx.entries), (40, 1, 1));
}

/// A UDP packet in a frame of `bytes`, as much of it as there is room for.
fn udp(from: PortId, to: PortId, bytes: usize, dst_port: u16) -> Vec<u8> {
    let mut frame = frame(from, to, bytes.max(42), bytes as u64);
    frame[12..14].copy_from_slice(&[0x08, 0x00]);
    frame[14..16].copy_from_slice(&[0x45, 0]);
    let ip_bytes = (frame.len() - 14) as u16;
    frame[16..18].copy_from_slice(&ip_bytes.to_be_bytes());
    frame[20..24].copy_from_slice(&[0x40, 0, 64, 17]);
    frame[36..38].copy_from_slice(&dst_port.to_be_bytes());
    frame
}

/// Holds that frames of every length, those whose key is made the fast way beside those that go the general one,
/// are told apart by their flows and arrive as they were sent, in order.
#[test]
fn frames_of_every_length_arrive_as_they_were_sent() {
    let mut bench = Bench::new();
    let (mut a, mut b, mut c) = (bench.vm("a"), bench.vm("b"), bench.vm("c"));
    let mask = FlowKey { in_port: u32::MAX, eth_type: u16::MAX, l4_dst: u16::MAX, ..FlowKey::ZERO };
    for (eth_type, l4_dst, to) in [(0x88b5, 0, b.port), (0x0800, 53, b.port), (0x0800, 54, c.port)] {
        let key = FlowKey { in_port: a.port.0.into(), eth_type, l4_dst, ..FlowKey::ZERO };
        bench.flow(key, mask, &[Action::Output(to)]);
    }
    let verified = VnetHdr { flags: F_DATA_VALID, ..VnetHdr::PLAIN };
    for bytes in (14..300).chain([1514, 9000, 65_535]) {
        let (to_b, to_c) = (udp(a.port, b.port, bytes, 53), udp(a.port, c.port, bytes, 54));
        let other = frame(a.port, b.port, bytes.max(22), 7);
        for (vnet, frame) in
            [(VnetHdr::PLAIN, &to_b), (VnetHdr::PLAIN, &other), (verified, &to_b), (VnetHdr::PLAIN, &to_c)]
        {
            assert!(a.send_with(&vnet, frame));
        }
        assert_eq!(bench.transmit(&a).frames, 4);
        assert_eq!((bench.receive(&b).copied, bench.receive(&c).copied), (3, 1));
        let arrived = [(VnetHdr::PLAIN, to_b.clone()), (VnetHdr::PLAIN, other), (verified, to_b)];
        assert_eq!(b.received(), arrived, "{bytes} bytes");
        assert_eq!(c.received_frames(), [to_c]);
        assert_eq!(a.completions(), 4);
    }
    bench.check_ledger();
}
