//! Hostile guests, through the whole switch: each lie is a typed fault or a counted drop at the liar's own
//! port, and after each one two other VMs still exchange frames, every one of which arrives.

mod support;

use hyper_switch_dataplane::api::{Action, DropReason};
use hyper_switch_dataplane::counters::DROP_REASONS;
use hyper_switch_dataplane::{PortFault, PortState, SwitchConfig};
use hyper_switch_pvnet::MAX_FRAME_BYTES;
use hyper_switch_pvnet::header::{F_NEEDS_CSUM, GsoType, VNET_HDR_BYTES, VnetHdr};
use hyper_switch_pvnet::mem::{GuestMemory, MemoryFault};
use hyper_switch_pvnet::ring::device::RingFault;
use hyper_switch_pvnet::ring::{QueueAddrs, RingFormat};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use support::{Bench, SLOTS, TestVm, VmConfig, frame};

/// Flags of a descriptor (VIRTIO 1.2, clause 2.7.5).
const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

/// A liar, a victim that it exchanges frames with, and two bystanders that do not know it.
struct Stage {
    bench: Bench,
    liar: TestVm,
    victim: TestVm,
    bystanders: [TestVm; 2],
    exchanged: u64,
}

impl Stage {
    fn new(liar: VmConfig) -> Stage {
        let config = SwitchConfig {
            max_ports: 8,
            cores: 1,
            max_flows: 64,
            rx_queue_frames: 16,
            held_frames: 8,
            upcalls: 8,
            ..support::basic()
        };
        let mut bench = Bench::with(config);
        let liar = bench.vm_with("liar", liar);
        let (victim, x, y) = (bench.vm("victim"), bench.vm("x"), bench.vm("y"));
        for (from, to) in [(&liar, &victim), (&victim, &liar), (&x, &y), (&y, &x)] {
            bench.connect(from.port, &[Action::Output(to.port)]);
        }
        Stage { bench, liar, victim, bystanders: [x, y], exchanged: 0 }
    }

    /// The bystanders send each other frames, and all of them arrive.
    #[track_caller]
    fn check_the_others(&mut self) {
        let Stage { bench, bystanders, exchanged, .. } = self;
        for (from, to) in [(0, 1), (1, 0)] {
            let [sender, receiver] = bystanders.get_disjoint_mut([from, to]).unwrap();
            let sent: Vec<_> = (0..4)
                .map(|n| frame(sender.port, receiver.port, 100 + 900 * n, *exchanged + n as u64))
                .collect();
            *exchanged += 4;
            assert!(sent.iter().all(|frame| sender.send(frame)));
            bench.transmit(sender);
            bench.receive(receiver);
            assert_eq!(receiver.received_frames(), sent);
            assert_eq!(sender.completions(), 4);
            assert_eq!(bench.state(sender.port), PortState::Up);
        }
        bench.check_ledger();
    }

    /// The liar's transmit ring broke, with just this fault.
    #[track_caller]
    fn expect_tx_fault(&mut self, fault: RingFault) {
        assert!(self.bench.transmit(&self.liar).faulted);
        assert_eq!(self.bench.state(self.liar.port), PortState::Faulted(PortFault::TxRing(fault)));
        assert!(!self.bench.transmit(&self.liar).faulted, "a port goes down once");
        self.check_the_others();
    }

    /// The liar's receive ring breaks with just this fault, when the victim's frame is copied there.
    #[track_caller]
    fn expect_rx_fault(&mut self, fault: RingFault) {
        for number in 0..2 {
            assert!(self.victim.send(&frame(self.victim.port, self.liar.port, 200, number)));
        }
        self.bench.transmit(&self.victim);
        assert!(self.bench.receive(&self.liar).faulted);
        assert_eq!(self.bench.state(self.liar.port), PortState::Faulted(PortFault::RxRing(fault)));
        self.bench.assert_rx_drops(self.liar.port, &[(DropReason::RxFault, 2)]);
        assert_eq!(self.victim.completions(), 2, "the sender has its buffers back");

        assert!(self.victim.send(&frame(self.victim.port, self.liar.port, 200, 2)));
        self.bench.transmit(&self.victim);
        self.bench.assert_tx_drops(self.victim.port, &[(DropReason::NoSuchPort, 1)]);
        assert_eq!(self.victim.completions(), 1);
        self.check_the_others();
    }
}

/// A ring written by hand: what a driver would do, without what keeps a driver honest.
struct RawRing<'a> {
    vm: &'a TestVm,
    at: QueueAddrs,
    /// Chains on offer.
    avail: u16,
}

impl<'a> RawRing<'a> {
    fn tx(vm: &'a TestVm) -> RawRing<'a> {
        RawRing { vm, at: vm.tx_addrs, avail: 0 }
    }

    fn rx(vm: &'a TestVm) -> RawRing<'a> {
        RawRing { vm, at: vm.rx_addrs, avail: 0 }
    }

    fn descriptor(&self, index: u16, addr: u64, bytes: u32, flags: u16, next: u16) {
        self.descriptor_at(self.at.desc + 16 * u64::from(index), addr, bytes, flags, next);
    }

    fn descriptor_at(&self, at: u64, addr: u64, bytes: u32, flags: u16, next: u16) {
        self.vm.poke(at, &addr.to_le_bytes());
        self.vm.poke(at + 8, &bytes.to_le_bytes());
        self.vm.poke(at + 12, &[flags.to_le_bytes(), next.to_le_bytes()].concat());
    }

    fn offer(&mut self, head: u16) {
        let entry = u64::from(self.avail % self.vm.config.slots);
        self.vm.poke(self.at.avail + 4 + 2 * entry, &head.to_le_bytes());
        self.avail = self.avail.wrapping_add(1);
        self.set_index(self.avail);
    }

    fn set_index(&self, index: u16) {
        self.vm.poke(self.at.avail + 2, &index.to_le_bytes());
    }
}

/// Tells a lie.
type Lie = Box<dyn Fn(&mut RawRing<'_>)>;

/// The lies that can be told about either ring. `flags` are those of an honest buffer there.
fn lies(flags: u16) -> Vec<(RingFault, Lie)> {
    const OUTSIDE: u64 = 1 << 40;
    let outside = |addr, bytes| RingFault::Memory(MemoryFault { addr, bytes });
    let range = |index| RingFault::DescriptorIndex { index, size: SLOTS.into() };
    let jump = |ahead| RingFault::AvailIndexJumped { ahead, size: SLOTS };
    let one = move |ring: &mut RawRing<'_>, addr, bytes, flags, next| {
        ring.descriptor(0, addr, bytes, flags, next);
        ring.offer(0);
    };
    let table = |vm: &TestVm| vm.tx_addr(0);
    vec![
        (jump(SLOTS + 1), Box::new(|ring| ring.set_index(SLOTS + 1))),
        (jump(u16::MAX), Box::new(|ring| ring.set_index(u16::MAX))),
        (range(SLOTS), Box::new(|ring| ring.offer(SLOTS))),
        (range(u16::MAX), Box::new(|ring| ring.offer(u16::MAX))),
        (range(SLOTS), Box::new(move |ring| one(ring, 0, 1, flags | NEXT, SLOTS))),
        (outside(OUTSIDE, 500), Box::new(move |ring| one(ring, OUTSIDE, 500, flags, 0))),
        (outside(u64::MAX, 500), Box::new(move |ring| one(ring, u64::MAX, 500, flags, 0))),
        (RingFault::WrongDirection, Box::new(move |ring| one(ring, 0, 500, flags ^ WRITE, 0))),
        (
            RingFault::ChainTooLong,
            Box::new(move |ring| {
                ring.descriptor(1, 0, 0, flags | NEXT, 0);
                one(ring, 0, 0, flags | NEXT, 1);
            }),
        ),
        (RingFault::IndirectBytes(24), Box::new(move |ring| one(ring, 0, 24, flags | INDIRECT, 0))),
        (RingFault::IndirectBytes(0), Box::new(move |ring| one(ring, 0, 0, flags | INDIRECT, 0))),
        (RingFault::MisplacedIndirect, Box::new(move |ring| one(ring, 0, 16, flags | INDIRECT | NEXT, 1))),
        (
            RingFault::MisplacedIndirect,
            Box::new(move |ring| {
                ring.descriptor_at(table(ring.vm), 0, 16, flags | INDIRECT, 0);
                one(ring, table(ring.vm), 16, INDIRECT, 0);
            }),
        ),
        (outside(OUTSIDE, 16), Box::new(move |ring| one(ring, OUTSIDE, 16, INDIRECT, 0))),
    ]
}

#[test]
fn a_lie_about_the_transmit_ring_takes_the_port_down() {
    for (fault, lie) in lies(0) {
        let mut stage = Stage::new(VmConfig::default());
        lie(&mut RawRing::tx(&stage.liar));
        stage.expect_tx_fault(fault);
        assert_eq!(stage.bench.counters(stage.liar.port).tx.frames, 0);
    }
}

#[test]
fn a_lie_about_the_receive_ring_takes_the_port_down() {
    for (fault, lie) in lies(WRITE) {
        let mut stage = Stage::new(VmConfig { posted: 0, ..VmConfig::default() });
        lie(&mut RawRing::rx(&stage.liar));
        stage.expect_rx_fault(fault);
    }
}

/// Holds that a lie about the rings of one of several lanes takes its whole port down, and nobody else.
#[test]
fn a_lie_about_one_lane_takes_all_of_its_port_down() {
    for lane in 0..3 {
        for (fault, lie) in lies(0) {
            let mut stage = Stage::new(VmConfig::default());
            let lanes = stage.bench.lanes("lanes", 3);
            lie(&mut RawRing::tx(&lanes[lane]));
            assert!(stage.bench.transmit(&lanes[lane]).faulted);
            let down = PortState::Faulted(PortFault::TxRing(fault));
            assert_eq!(stage.bench.state(lanes[0].port), down);
            assert!(lanes.iter().all(|lane| stage.bench.transmit(lane).down));
            stage.check_the_others();
        }
    }
}

#[test]
fn a_chain_longer_than_any_packet_needs_takes_the_port_down() {
    let mut stage = Stage::new(VmConfig { slots: 128, ..VmConfig::default() });
    let mut ring = RawRing::tx(&stage.liar);
    for index in 0..65 {
        ring.descriptor(index, 0, 1, if index < 64 { NEXT } else { 0 }, index + 1);
    }
    ring.offer(0);
    stage.expect_tx_fault(RingFault::ChainTooLong);
}

/// Holds that frames before the lie are still switched: they were honest.
#[test]
fn what_came_before_a_lie_is_delivered() {
    let mut stage = Stage::new(VmConfig::default());
    let sent = frame(stage.liar.port, stage.victim.port, 300, 1);
    assert!(stage.liar.send(&sent));
    let mut ring = RawRing { avail: 1, ..RawRing::tx(&stage.liar) };
    ring.offer(SLOTS);
    stage.expect_tx_fault(RingFault::DescriptorIndex { index: SLOTS, size: SLOTS.into() });
    stage.bench.receive(&stage.victim);
    assert_eq!(stage.victim.received_frames(), [sent]);
    stage.bench.transmit(&stage.liar);
    stage.check_the_others();
}

/// Holds that a buffer that the switch still reads cannot be offered again, in a later batch or in the same,
/// and that the port can then be detached: nothing of it is in flight for ever.
#[test]
fn a_head_that_is_in_flight_cannot_be_offered_again() {
    for same_batch in [false, true] {
        let mut stage = Stage::new(VmConfig::default());
        let sent = frame(stage.liar.port, stage.victim.port, 300, 1);
        stage.liar.poke(stage.liar.tx_addr(0), &[&VnetHdr::PLAIN.encode(0), &sent[..]].concat());
        let mut ring = RawRing::tx(&stage.liar);
        ring.descriptor(5, stage.liar.tx_addr(0), 312, 0, 0);
        ring.offer(5);
        if !same_batch {
            assert_eq!(stage.bench.transmit(&stage.liar).frames, 1);
        }
        ring.offer(5);
        stage.expect_tx_fault(RingFault::HeadInUse(5));
        stage.bench.receive(&stage.victim);
        assert_eq!(stage.victim.received_frames(), [sent]);
        stage.bench.detach(stage.liar.port);
        assert!((0..3).any(|_| stage.bench.reap()), "nothing of the port is left");
        stage.check_the_others();
    }
}

/// Holds that a driver that never looks at its used ring harms nobody: entries are overwritten, frames pass.
#[test]
fn a_used_ring_that_is_never_read() {
    let mut stage = Stage::new(VmConfig::default());
    let sent = frame(stage.liar.port, stage.victim.port, 100, 1);
    stage.liar.poke(stage.liar.tx_addr(0), &[&VnetHdr::PLAIN.encode(0), &sent[..]].concat());
    let mut ring = RawRing::tx(&stage.liar);
    ring.descriptor(0, stage.liar.tx_addr(0), 112, 0, 0);
    for _ in 0..3 * SLOTS {
        ring.offer(0);
        stage.bench.transmit(&stage.liar);
        stage.bench.receive(&stage.victim);
        assert_eq!(stage.victim.received_frames(), [&sent[..]]);
    }
    assert_eq!(stage.bench.state(stage.liar.port), PortState::Up);
    stage.check_the_others();
}

/// An IPv4 or IPv6 frame of `bytes` whose headers are then made to lie by `lie`.
fn lying_ip(ip: u8, bytes: usize, lie: impl Fn(&mut [u8])) -> Vec<u8> {
    let mut frame = vec![0; bytes];
    if ip == 4 {
        frame[12..16].copy_from_slice(&[0x08, 0x00, 0x45, 0]);
        frame[16..18].copy_from_slice(&(bytes as u16 - 14).to_be_bytes());
        frame[23] = 17;
    } else {
        frame[12..15].copy_from_slice(&[0x86, 0xdd, 0x60]);
        frame[18..20].copy_from_slice(&(bytes as u16 - 54).to_be_bytes());
        frame[20] = 17;
    }
    lie(&mut frame);
    frame
}

#[test]
fn a_frame_that_cannot_be_is_a_counted_drop() {
    use DropReason::{BadIpLength, BadVlan, BadVnetHdr, TooLong, Truncated};
    let plain = |frame: Vec<u8>| [&VnetHdr::PLAIN.encode(0), &frame[..]].concat();
    let with = |vnet: VnetHdr| [&vnet.encode(0), &lying_ip(4, 200, |_| ())[..]].concat();
    let tagged = |tags: &[u8]| plain([&[2; 12], tags].concat());
    let csum = VnetHdr { flags: F_NEEDS_CSUM, csum_start: 34, csum_offset: 6, ..VnetHdr::PLAIN };
    let gso = VnetHdr { gso: GsoType::Tcp4, gso_size: 100, ..csum };
    let raw_gso_type = |gso_type| {
        let mut bytes = with(VnetHdr::PLAIN);
        bytes[1] = gso_type;
        bytes
    };
    let cases: Vec<(&str, DropReason, Vec<u8>)> = vec![
        ("no byte behind half a header", Truncated, vec![0; 5]),
        ("a header alone", Truncated, vec![0; 12]),
        ("a byte less than an Ethernet header", Truncated, plain(vec![0; 13])),
        ("a byte more than the longest frame", TooLong, plain(vec![0; MAX_FRAME_BYTES + 1])),
        ("a tag that is cut off", BadVlan, tagged(&[0x81, 0, 0])),
        ("an inner tag that is cut off", BadVlan, tagged(&[0x88, 0xa8, 0, 1, 0x81, 0, 0])),
        ("IPv4 without a header", BadIpLength, plain(lying_ip(4, 34, |_| ())[..33].to_vec())),
        ("IPv4 longer than the frame", BadIpLength, plain(lying_ip(4, 60, |f| f[17] += 1))),
        ("IPv4 shorter than its header", BadIpLength, plain(lying_ip(4, 60, |f| f[16..18].fill(0)))),
        ("an IHL of 4", BadIpLength, plain(lying_ip(4, 60, |f| f[14] = 0x44))),
        ("an IHL beyond the packet", BadIpLength, plain(lying_ip(4, 54, |f| f[14] = 0x4f))),
        ("IPv6 without a header", BadIpLength, plain(lying_ip(6, 54, |_| ())[..53].to_vec())),
        ("IPv6 longer than the frame", BadIpLength, plain(lying_ip(6, 60, |f| f[19] += 1))),
        ("a gso_size of 0", BadVnetHdr, with(VnetHdr { gso_size: 0, ..gso })),
        ("segmentation without a checksum", BadVnetHdr, with(VnetHdr { flags: 0, ..gso })),
        ("a checksum behind the end", BadVnetHdr, with(VnetHdr { csum_start: 193, ..csum })),
        (
            "a checksum far behind the end",
            BadVnetHdr,
            with(VnetHdr { csum_start: 0xffff, csum_offset: 0xffff, ..csum }),
        ),
        ("gso_type 2", BadVnetHdr, raw_gso_type(2)),
        ("gso_type 6 with ECN", BadVnetHdr, raw_gso_type(0x86)),
    ];
    let mut stage = Stage::new(VmConfig::default());
    let mut dropped = [0; DROP_REASONS];
    for (what, reason, bytes) in cases {
        assert!(stage.liar.send_raw(&bytes));
        assert_eq!(stage.bench.transmit(&stage.liar).frames, 1, "{what}");
        dropped[reason as usize] += 1;
        assert_eq!(stage.bench.counters(stage.liar.port).tx_drops, dropped, "{what}");
        assert_eq!(stage.liar.completions(), 1, "{what}: the buffer comes back");
        assert_eq!(stage.bench.receive(&stage.victim).copied, 0, "{what}");
    }
    assert_eq!(stage.bench.state(stage.liar.port), PortState::Up, "a bad frame is no fault of the ring");
    stage.check_the_others();
}

/// Holds that a frame in as many pieces as a chain may have, cut anywhere in its headers, arrives whole.
#[test]
fn a_frame_in_many_pieces_arrives_whole() {
    for piece_bytes in [1_usize, 3, 11, 12, 13, 26, 64, 139, 140, 141] {
        let mut stage = Stage::new(VmConfig::default());
        let frame_bytes = (64 * piece_bytes - VNET_HDR_BYTES).min(300);
        let sent = frame(stage.liar.port, stage.victim.port, frame_bytes, 7);
        let bytes = [&VnetHdr::PLAIN.encode(0), &sent[..]].concat();
        let base = stage.liar.tx_addr(0);
        stage.liar.poke(base, &bytes);
        let mut ring = RawRing::tx(&stage.liar);
        let pieces: Vec<_> = bytes.chunks(piece_bytes).collect();
        for (index, piece) in pieces.iter().enumerate() {
            let flags = if index + 1 < pieces.len() { NEXT } else { 0 };
            let addr = base + (index * piece_bytes) as u64;
            ring.descriptor(index as u16, addr, piece.len() as u32, flags, index as u16 + 1);
        }
        ring.offer(0);
        stage.bench.transmit(&stage.liar);
        stage.bench.receive(&stage.victim);
        assert_eq!(stage.victim.received_frames(), [sent], "pieces of {piece_bytes}");
        stage.check_the_others();
    }
}

/// Holds that a receiver without buffers costs its senders no more than the queue's bound, and for no longer
/// than patience lasts.
#[test]
fn a_receiver_that_posts_no_buffer_holds_a_bounded_number_for_a_bounded_time() {
    let mut stage = Stage::new(VmConfig { posted: 0, ..VmConfig::default() });
    for number in 0..20 {
        assert!(stage.victim.send(&frame(stage.victim.port, stage.liar.port, 100, number)));
    }
    stage.bench.transmit(&stage.victim);
    stage.bench.assert_rx_drops(stage.liar.port, &[(DropReason::RxQueueFull, 4)]);
    assert_eq!(stage.victim.completions(), 4, "what is over the bound comes back at once");
    assert_eq!(stage.bench.receive(&stage.liar).copied, 0);

    let patience = stage.bench.switch.config().patience;
    stage.bench.host.advance(patience - Duration::from_millis(1));
    assert_eq!(stage.bench.host.take_due(), []);
    stage.bench.expire(&stage.liar);
    assert_eq!(stage.victim.completions(), 0, "it is not time yet");
    stage.bench.host.advance(Duration::from_millis(1));
    assert!(stage.bench.host.take_due().contains(&stage.liar.port), "a timer was asked for");
    stage.bench.expire(&stage.liar);
    stage
        .bench
        .assert_rx_drops(stage.liar.port, &[(DropReason::RxQueueFull, 4), (DropReason::RxStalled, 16)]);
    assert_eq!(stage.victim.completions(), 16);
    assert_eq!(stage.bench.state(stage.liar.port), PortState::Up);
    stage.check_the_others();
}

#[test]
fn a_frame_longer_than_the_buffers_is_dropped_and_the_next_one_fits() {
    // Bytes of a buffer, whether a frame may be spread over several, and the longest frame that can be had.
    for (buffer, mergeable, longest) in
        [(100, false, Some(88)), (100, true, Some(64 * 100 - 12)), (1, true, Some(64 - 12)), (1, false, None)]
    {
        let liar = VmConfig { slots: 128, rx_buffer_bytes: buffer, mergeable, ..VmConfig::default() };
        let mut stage = Stage::new(liar);
        let to_liar = |bytes| frame(stage.victim.port, stage.liar.port, bytes, 3);
        let (too_long, fits) = (to_liar(longest.map_or(60, |bytes| bytes + 1)), longest.map(to_liar));
        assert!([&too_long].into_iter().chain(&fits).all(|frame| stage.victim.send(frame)));
        stage.bench.transmit(&stage.victim);
        stage.bench.receive(&stage.liar);
        stage.bench.assert_rx_drops(stage.liar.port, &[(DropReason::RxTooLong, 1)]);
        assert_eq!(stage.liar.received_frames(), Vec::from_iter(fits), "{buffer}-byte buffers");
        stage.victim.completions();
        assert_eq!(stage.victim.outstanding(), 0);
        stage.check_the_others();
    }
}

/// Holds that memory which changes while it is read, rings and buffers alike, breaks nothing but its own port.
/// A second thread writes there without pause, mostly what could be true, so that the lies get far.
#[test]
fn memory_that_changes_while_it_is_read() {
    for ring in [RingFormat::Split, RingFormat::Packed] {
        memory_changes_while_it_is_read(ring);
    }
}

fn memory_changes_while_it_is_read(ring: RingFormat) {
    const ROUNDS: usize = 10_000;
    let config = VmConfig { ring, rx_buffer_bytes: 2048, ..VmConfig::default() };
    let mut stage = Stage::new(config);
    let target = Mutex::new(stage.liar.memory.clone());
    let (rings, stop) = ([stage.liar.tx_addrs, stage.liar.rx_addrs], AtomicBool::new(false));
    std::thread::scope(|scope| {
        // Stops the scribbler also when an assertion fails here.
        let _stop = StopAtEnd(&stop);
        scope.spawn(|| scribble(&target, ring, rings, &stop));
        let mut faults = 0;
        for round in 0..ROUNDS {
            if stage.victim.outstanding() < 32 {
                assert!(stage.victim.send(&frame(stage.victim.port, stage.liar.port, 1000, round as u64)));
            }
            for vm in [&stage.liar, &stage.victim] {
                stage.bench.transmit(vm);
                stage.bench.receive(vm);
            }
            stage.victim.received();
            stage.victim.completions();
            if round % 64 == 0 {
                stage.check_the_others();
            }
            if stage.bench.state(stage.liar.port) != PortState::Up {
                faults += 1;
                stage.bench.detach(stage.liar.port);
                let port = stage.liar.port;
                assert!((0..3).any(|_| stage.bench.reap()), "nothing of the port is left");
                stage.liar = stage.bench.vm_with("liar", config);
                assert_eq!(stage.liar.port, port, "the number is free again");
                *target.lock().unwrap() = stage.liar.memory.clone();
            }
        }
        assert!(faults > 0, "the scribbler was heard");
    });
    stage.check_the_others();
    stage.bench.receive(&stage.liar);
    stage.bench.detach(stage.liar.port);
    assert!((0..3).any(|_| stage.bench.reap()));
    stage.victim.completions();
    assert_eq!(stage.victim.outstanding(), 0, "the victim has all its buffers back");
}

struct StopAtEnd<'a>(&'a AtomicBool);

impl Drop for StopAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn scribble(target: &Mutex<Arc<GuestMemory>>, format: RingFormat, rings: [QueueAddrs; 2], stop: &AtomicBool) {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = move || {
        // Xorshift (Marsaglia 2003): any sequence will do.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    while !stop.load(Ordering::Relaxed) {
        let memory = target.lock().unwrap().clone();
        let write = |addr: u64, bytes: &[u8]| {
            let segment =
                memory.translate_whole(addr, bytes.len() as u32).expect("rings and buffers are mapped");
            // SAFETY: `memory` is held; that others use it at the same time is what is being tested.
            unsafe { segment.write(bytes) }
        };
        for _ in 0..64 {
            let (choice, value) = (random(), random());
            let ring = rings[(choice & 1) as usize];
            let index = (choice >> 8) % u64::from(SLOTS);
            let desc = ring.desc + 16 * index;
            let slot = ((value % u64::from(SLOTS)) as u16).to_le_bytes();
            if format == RingFormat::Packed {
                match (choice >> 1) % 16 {
                    // Whose the descriptor is, which way it goes, and whether the chain goes on.
                    0..8 => write(desc + 14, &(value as u16 & 0x8087).to_le_bytes()),
                    8..12 => write(desc + 12, &slot),
                    12 => write(desc, &value.to_le_bytes()),
                    _ => write(value % (memory.bytes() - 8), &choice.to_le_bytes()),
                }
                continue;
            }
            match (choice >> 1) % 16 {
                0 => write(ring.avail + 2, &(value as u16).to_le_bytes()),
                1..5 => write(ring.avail + 4 + 2 * index, &slot),
                5 => write(ring.avail + 4 + 2 * index, &(value as u16).to_le_bytes()),
                6..9 => write(desc + 8, &((value % 4096) as u32).to_le_bytes()),
                9 => write(desc, &value.to_le_bytes()),
                10 => write(desc + 12, &((value % 8) as u16).to_le_bytes()),
                11 => write(desc + 14, &slot),
                _ => write(value % (memory.bytes() - 8), &choice.to_le_bytes()),
            }
        }
        if format == RingFormat::Packed {
            continue;
        }
        // Honest progress in between, so that the lies meet frames: the index moves on by one.
        let ring = rings[0];
        let segment = memory.translate_whole(ring.avail + 2, 2).expect("the ring is mapped");
        let mut index = [0; 2];
        // SAFETY: as above, both accesses.
        unsafe {
            segment.read(&mut index);
            segment.write(&u16::from_le_bytes(index).wrapping_add(1).to_le_bytes());
        }
    }
}
