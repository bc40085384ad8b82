//! Frames that come together, of which those in a row with the same key are a train, have the same outcome as the same
//! frames that come alone.

mod support;

use hyper_switch_dataplane::api::{Action, FlowKey};
use hyper_switch_dataplane::counters::PortCounters;
use hyper_switch_pvnet::header::{F_DATA_VALID, VnetHdr};
use proptest::prelude::*;
use support::{Bench, SLOTS, TestVm, frame};

/// A frame to be sent.
#[derive(Clone, Copy, Debug)]
struct Sent {
    /// By its flow: out of one port, out of two, dropped, or without a flow.
    dst_port: u16,
    kind: Kind,
    bytes: usize,
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    /// UDP in IPv4.
    Usual,
    /// The same with something in its `virtio_net_hdr`: its key is made the general way.
    Marked,
    /// The same with a total length that the frame has no room for.
    TooLong,
    /// The same with one that its headers have no room in.
    TooShort,
}

fn sent() -> impl Strategy<Value = Sent> {
    let kind = prop_oneof![
        6 => Just(Kind::Usual),
        1 => Just(Kind::Marked),
        1 => Just(Kind::TooLong),
        1 => Just(Kind::TooShort),
    ];
    (53..57_u16, kind, 42..140_usize).prop_map(|(dst_port, kind, bytes)| Sent { dst_port, kind, bytes })
}

/// Trains of frames of one flow.
fn trains() -> impl Strategy<Value = Vec<Sent>> {
    let train = (sent(), prop::collection::vec((sent(), prop::bool::weighted(0.1)), 1..12));
    let train = train.prop_map(|(first, others)| {
        let like_first = |(other, is_other): (Sent, bool)| {
            if is_other { other } else { Sent { bytes: other.bytes, ..first } }
        };
        others.into_iter().map(like_first).collect::<Vec<_>>()
    });
    prop::collection::vec(train, 1..10)
        .prop_map(|trains| trains.into_iter().flatten().take(SLOTS.into()).collect())
}

fn send(a: &mut TestVm, b: &TestVm, number: usize, sent: Sent) {
    let mut frame = frame(a.port, b.port, sent.bytes, number as u64);
    frame[12..14].copy_from_slice(&[0x08, 0x00]);
    let ip_bytes = match sent.kind {
        Kind::Usual | Kind::Marked => sent.bytes as u16 - 14,
        Kind::TooLong => sent.bytes as u16 - 13,
        Kind::TooShort => 19,
    };
    frame[14..16].copy_from_slice(&[0x45, 0]);
    frame[16..18].copy_from_slice(&ip_bytes.to_be_bytes());
    frame[18..20].copy_from_slice(&(number as u16).to_be_bytes());
    frame[20..24].copy_from_slice(&[0x40, 0, 64, 17]);
    frame[24..36].copy_from_slice(&[number as u8, 0, 10, 0, 0, 1, 10, 0, 0, 2, 0, 7]);
    frame[36..38].copy_from_slice(&sent.dst_port.to_be_bytes());
    let flags = if matches!(sent.kind, Kind::Marked) { F_DATA_VALID } else { 0 };
    assert!(a.send_with(&VnetHdr { flags, ..VnetHdr::PLAIN }, &frame));
}

#[derive(Debug, PartialEq)]
struct Outcome {
    arrived: [Vec<(VnetHdr, Vec<u8>)>; 2],
    completed: usize,
    held: usize,
    counters: PortCounters,
    flows: Vec<(u64, u64)>,
}

/// Sends all frames, the switch being entered after each `together` of them.
fn outcome(frames: &[Sent], together: usize) -> Outcome {
    let mut bench = Bench::new();
    let (mut a, mut b, mut c) = (bench.vm("a"), bench.vm("b"), bench.vm("c"));
    let mask = FlowKey { eth_type: u16::MAX, l4_dst: u16::MAX, ..FlowKey::ZERO };
    let (to_b, to_c) = (Action::Output(b.port), Action::Output(c.port));
    for (l4_dst, actions) in [(53, &[to_b][..]), (54, &[to_b, to_c]), (55, &[])] {
        bench.flow(FlowKey { eth_type: 0x0800, l4_dst, ..FlowKey::ZERO }, mask, actions);
    }
    let mut arrived = [Vec::new(), Vec::new()];
    let mut completed = 0;
    for (at, run) in frames.chunks(together).enumerate() {
        for (number, frame) in run.iter().enumerate() {
            send(&mut a, &b, at * together + number, *frame);
        }
        assert_eq!(bench.transmit(&a).frames as usize, run.len());
        for (vm, arrived) in [&mut b, &mut c].into_iter().zip(&mut arrived) {
            bench.receive(vm);
            arrived.extend(vm.received());
        }
        completed += a.completions();
        bench.check_ledger();
    }
    let mut counters = bench.counters(a.port);
    counters.tx.entries = 0;
    let flows = bench.control.flows().iter().map(|flow| (flow.packets, flow.bytes)).collect();
    let held = bench.control.port(a.port).unwrap().held;
    Outcome { arrived, completed, held, counters, flows }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn what_comes_together_goes_as_what_comes_alone(frames in trains()) {
        let alone = outcome(&frames, 1);
        prop_assert_eq!(&outcome(&frames, frames.len()), &alone);
        prop_assert_eq!(&outcome(&frames, 7), &alone);
    }
}
