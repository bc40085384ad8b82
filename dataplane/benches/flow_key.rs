//! Key extraction beside etherparse's `SlicedPacket`, which finds the same headers but fills in no key.
//!
//! `cargo bench -p hyper-switch-dataplane --bench flow_key` prints times; the instructions of one extraction, with
//! the 20 or so of `extract_one` around it, are counted by running the same executable as
//! `valgrind --tool=callgrind --toggle-collect='*extract_one*' flow_key-HASH --test extract/ipv4_tcp`, and likewise
//! `usual_one` with `usual/ipv4_tcp`: the way that the switch takes first.
//!
//! Each frame is checked first: both parsers must agree on what it is. The last lines print the ratio.

#![allow(missing_docs)]

use criterion::{Criterion, criterion_group, criterion_main};
use etherparse::{ArpHardwareId, ArpOperation, ArpPacket, EtherType, PacketBuilder, SlicedPacket, VlanId};
use hyper_switch_dataplane::api::{FlowKey, PortId};
use hyper_switch_dataplane::key::extract;
use hyper_switch_dataplane::key::usual::{self, START_BYTES};
use std::hint::black_box;
use std::time::{Duration, Instant};

const SRC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const DST: [u8; 6] = [2, 0, 0, 0, 0, 2];

/// The frames that are measured, each at least 60 bytes long, and the `eth_type` that both must find.
fn frames() -> Vec<(&'static str, u16, Vec<u8>)> {
    let ip6 = |last| [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last];
    let eth = || PacketBuilder::ethernet2(SRC, DST);
    let mut frames = Vec::new();
    let mut add = |name, eth_type, write: &dyn Fn(&mut Vec<u8>)| {
        let mut frame = Vec::new();
        write(&mut frame);
        frame.resize(frame.len().max(64), 0);
        frames.push((name, eth_type, frame));
    };
    add("ipv4_tcp", 0x0800, &|frame| {
        eth().ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64).tcp(4000, 80, 1, 512).write(frame, &[]).unwrap();
    });
    add("ipv6_tcp", 0x86dd, &|frame| {
        eth().ipv6(ip6(1), ip6(2), 64).tcp(4000, 80, 1, 512).write(frame, &[]).unwrap();
    });
    add("vlan_ipv4_udp", 0x0800, &|frame| {
        let vlan = eth().single_vlan(VlanId::try_new(5).unwrap());
        vlan.ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64).udp(4000, 53).write(frame, &[7; 20]).unwrap();
    });
    add("arp", 0x0806, &|frame| {
        let arp = ArpPacket::new(
            ArpHardwareId::ETHERNET,
            EtherType::IPV4,
            ArpOperation::REQUEST,
            &SRC,
            &[10, 0, 0, 1],
            &[0; 6],
            &[10, 0, 0, 2],
        );
        eth().arp(arp.unwrap()).write(frame).unwrap();
    });
    add("nd_solicit", 0x86dd, &|frame| {
        let mut body = ip6(2).to_vec();
        body.extend([1, 1]);
        body.extend(SRC);
        eth().ipv6(ip6(1), ip6(2), 255).icmpv6_raw(135, 0, [0; 4]).write(frame, &body).unwrap();
    });
    frames
}

/// One extraction that is not inlined, so that callgrind can count exactly it.
#[inline(never)]
fn extract_one(frame: &[u8], key: &mut FlowKey) {
    let header = &frame[..frame.len().min(128)];
    let layout = extract(black_box(header), frame.len() as u32, PortId(1), 0, key);
    black_box(layout.is_ok());
    black_box(key);
}

/// The fast way for the usual packet, from words that are read once; not inlined, as above.
#[inline(never)]
fn usual_one(frame: &[u8; START_BYTES], frame_bytes: u32, line: &mut [u64; 8]) {
    let start = zerocopy::transmute!(*black_box(frame));
    *line = usual::key_line(start, frame_bytes, PortId(1)).expect("a usual packet");
    black_box(line);
}

/// An extraction and a hash over the first cache line, which has to wait for the stores before it.
#[inline(never)]
fn extract_and_hash(frame: &[u8], key: &mut FlowKey) {
    extract_one(frame, key);
    let hash = key.words()[..8].iter().fold(0u64, |hash, word| {
        let product = u128::from(hash ^ word) * 0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835_u128;
        product as u64 ^ (product >> 64) as u64
    });
    black_box(hash);
}

/// Lets criterion measure `work` and returns the best of its samples, in nanoseconds.
fn best_ns(c: &mut Criterion, parser: &str, frame: &str, mut work: impl FnMut()) -> f64 {
    let mut best_ns = f64::INFINITY;
    c.benchmark_group(parser).bench_function(frame, |bencher| {
        bencher.iter_custom(|rounds| {
            let start = Instant::now();
            (0..rounds).for_each(|_| work());
            let elapsed = start.elapsed();
            best_ns = best_ns.min(elapsed.as_nanos() as f64 / rounds as f64);
            elapsed
        });
    });
    best_ns
}

fn flow_key(c: &mut Criterion) {
    let mut report = String::new();
    for (name, eth_type, frame) in frames() {
        let mut key = FlowKey::ZERO;
        extract(&frame, frame.len() as u32, PortId(1), 0, &mut key).expect("a good frame");
        let sliced = SlicedPacket::from_ethernet(&frame).expect("a good frame");
        let theirs_type = sliced.ether_payload().expect("a payload").ether_type.0;
        assert_eq!((key.eth_type, theirs_type), (eth_type, eth_type), "{name}");

        let ours = best_ns(c, "extract", name, || extract_one(black_box(&frame), &mut key));
        let hashed = best_ns(c, "extract_and_hash", name, || extract_and_hash(black_box(&frame), &mut key));
        let theirs = best_ns(c, "etherparse", name, || {
            black_box(SlicedPacket::from_ethernet(black_box(&frame)).is_ok());
        });
        let start = frame.first_chunk().expect("a frame of 64 bytes");
        let mut line = [0; 8];
        if usual::key_line(zerocopy::transmute!(*start), frame.len() as u32, PortId(1)).is_some() {
            best_ns(c, "usual", name, || usual_one(black_box(start), frame.len() as u32, &mut line));
            assert_eq!(line, key.words()[..8], "{name}");
        }
        report += &format!("{name:14} {ours:7.1} {hashed:9.1} {theirs:11.1} {:6.2}\n", ours / theirs);
    }
    println!("best ns       extract and hash  etherparse  ratio\n{report}");
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_millis(500));
    targets = flow_key
}
criterion_main!(benches);
