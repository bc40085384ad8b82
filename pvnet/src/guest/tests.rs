//! Two guests at the two ends of a wire that moves frames between their rings by the device side, as the
//! switch does. The clock is a number. A guest that says it is idle is left alone until it is interrupted or
//! its time has come, so a lost wake-up shows as a stall, and what takes longer than a lossless network
//! takes shows as time. Then one guest against a device that lies.

use super::doorbell::Pace;
use super::raw::{Address, RawConfig, RawGuest};
use super::workload::*;
use super::*;
use crate::MAX_FRAME_BYTES;
use crate::header::{F_DATA_VALID, Offloads, VNET_HDR_BYTES, VnetHdr};
use crate::ring::RingFormat;
use crate::ring::device::{DeviceQueue, Direction, Segments};
use crate::ring::driver::DeviceLied;
use std::collections::VecDeque;
use std::net::SocketAddrV4;

/// A host moves a guest to the thread that is its VM.
const _: fn() = || {
    fn moves_to_a_thread<T: Send>() {}
    moves_to_a_thread::<Guest>();
};

const PORT: u16 = 5001;
const SECOND_NS: u64 = 1_000_000_000;

/// The switch's side of one guest.
struct End {
    tx: DeviceQueue,
    rx: DeviceQueue,
    offloads: Offloads,
    /// Frames with their headers, that wait to be copied.
    waiting: VecDeque<Vec<u8>>,
    interrupt: bool,
}

impl End {
    fn new(nic: &Nic) -> End {
        let (memory, features) = (nic.memory(), nic.queue_features());
        let mut rx = DeviceQueue::new(memory.clone(), nic.rx_layout(), Direction::Writable, features);
        rx.disable_kicks();
        End {
            tx: DeviceQueue::new(memory.clone(), nic.tx_layout(), Direction::Readable, features),
            rx,
            offloads: nic.offloads(),
            waiting: VecDeque::new(),
            interrupt: false,
        }
    }

    /// Takes one transmitted frame, header first.
    fn take(&mut self) -> Option<Vec<u8>> {
        if self.tx.available().unwrap() == 0 && !self.tx.enable_kicks().unwrap() {
            return None;
        }
        let head = self.tx.pop().unwrap();
        let mut segments = Segments::new();
        self.tx.walk(head, &mut segments).unwrap();
        let mut frame = Vec::new();
        for segment in segments {
            let start = frame.len();
            frame.resize(start + segment.len() as usize, 0);
            // SAFETY: the segment is guest memory that this end keeps mapped; the guest is not running.
            unsafe { segment.read(&mut frame[start..]) };
        }
        self.tx.push_used(head, 0);
        self.tx.publish();
        self.interrupt |= self.tx.wants_interrupt();
        Some(frame)
    }

    /// Copies waiting frames to the receive ring, each into as many buffers as it takes.
    fn copy(&mut self) {
        while let Some(mut frame) = self.waiting.pop_front() {
            let mut parts = Vec::new();
            let mut room = 0;
            while room < frame.len() && (self.rx.available().unwrap() > 0 || self.rx.enable_kicks().unwrap())
            {
                let head = self.rx.pop().unwrap();
                let mut segments = Segments::new();
                room += self.rx.walk(head, &mut segments).unwrap() as usize;
                parts.push((head, segments[0]));
            }
            if room < frame.len() {
                parts.iter().rev().for_each(|(head, _)| self.rx.unpop(*head));
                self.waiting.push_front(frame);
                break;
            }
            frame[10..12].copy_from_slice(&(parts.len() as u16).to_le_bytes());
            let mut left = frame.as_slice();
            for (head, segment) in parts {
                let (now, later) = left.split_at(left.len().min(segment.len() as usize));
                // SAFETY: as for reading, and the buffer is on offer, so it is the device's.
                unsafe { segment.write(now) };
                self.rx.push_used(head, now.len() as u32);
                left = later;
            }
        }
        self.rx.publish();
    }
}

/// What the wire does to the frames that it carries.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Mischief {
    None,
    DropEvery(u64),
    /// Puts a frame behind the one that follows it.
    DelayEvery(u64),
}

struct Wire {
    ends: [End; 2],
    preemptive: bool,
    mischief: Mischief,
    carried: u64,
    dropped: u64,
    delayed: Option<Vec<u8>>,
}

impl Wire {
    fn new(nics: [&Nic; 2], preemptive: bool) -> Wire {
        let ends = nics.map(End::new);
        Wire { ends, preemptive, mischief: Mischief::None, carried: 0, dropped: 0, delayed: None }
    }

    fn entry(&mut self, me: usize) -> Entry<'_> {
        Entry { wire: self, me }
    }

    fn transmit(&mut self, from: usize) {
        let to = 1 - from;
        while let Some(frame) = self.ends[from].take() {
            self.carried += 1;
            let header = VnetHdr::decode(frame.first_chunk().unwrap()).unwrap();
            header.check((frame.len() - VNET_HDR_BYTES) as u32).unwrap();
            assert!(self.ends[to].offloads.accept(&header), "{header:?} was not negotiated");
            let due = |n| self.carried.is_multiple_of(n);
            match self.mischief {
                Mischief::DropEvery(n) if due(n) => self.dropped += 1,
                Mischief::DelayEvery(n) if due(n) && self.delayed.is_none() => self.delayed = Some(frame),
                _ => {
                    self.ends[to].waiting.push_back(frame);
                    self.ends[to].waiting.extend(self.delayed.take());
                }
            }
        }
        let end = &mut self.ends[to];
        if self.preemptive {
            end.copy();
            end.interrupt |= end.rx.wants_interrupt();
        } else {
            end.interrupt |= !end.waiting.is_empty();
        }
    }
}

/// One guest's way into the wire.
struct Entry<'w> {
    wire: &'w mut Wire,
    me: usize,
}

impl Hypercall for Entry<'_> {
    fn transmit(&mut self) {
        self.wire.transmit(self.me);
    }

    fn receive(&mut self) {
        self.wire.ends[self.me].copy();
    }

    fn take_interrupt(&mut self) -> bool {
        std::mem::take(&mut self.wire.ends[self.me].interrupt)
    }

    fn frames_wait(&mut self) -> bool {
        !self.wire.ends[self.me].waiting.is_empty()
    }
}

/// Two guests, the wire between them and the time.
struct Network {
    guests: [Guest; 2],
    wire: Wire,
    polls: [Poll; 2],
    now_ns: u64,
}

impl Network {
    fn new(nic: NicConfig, preemptive: bool) -> Network {
        let guests = [0, 1].map(|n| Guest::new(GuestConfig { nic, ..GuestConfig::numbered(n) }).unwrap());
        let wire = Wire::new([guests[0].nic(), guests[1].nic()], preemptive);
        Network { guests, wire, polls: [Poll::Busy; 2], now_ns: 0 }
    }

    /// The address of the second guest, where servers are.
    fn server(&mut self) -> SocketAddrV4 {
        SocketAddrV4::new(self.guests[1].stack().ip(), PORT)
    }

    /// Polls whoever has something to do, until both have nothing: for ever, or before the time `end_ns`.
    fn run_until(&mut self, end_ns: u64, works: [&mut dyn Workload; 2]) {
        let [first, second] = works;
        let mut works = [first, second];
        self.polls = [Poll::Busy; 2];
        while self.now_ns < end_ns {
            self.now_ns += 1_000;
            let mut polled = false;
            for (me, work) in works.iter_mut().enumerate() {
                let due = match self.polls[me] {
                    Poll::Busy => true,
                    Poll::Idle { until_ns } => until_ns.is_some_and(|until| until <= self.now_ns),
                };
                if due || self.wire.ends[me].interrupt {
                    polled = true;
                    let mut entry = self.wire.entry(me);
                    self.polls[me] = self.guests[me].poll(self.now_ns, &mut entry, *work).unwrap();
                }
            }
            if !polled {
                let until = |poll| match poll {
                    Poll::Idle { until_ns } => until_ns,
                    Poll::Busy => None,
                };
                let Some(next) = self.polls.into_iter().filter_map(until).min() else { return };
                self.now_ns = next.min(end_ns);
            }
        }
    }

    /// Holds that nothing was dropped on the way and every frame was accounted for.
    fn assert_lossless(&self) {
        let [a, b] = [0, 1].map(|n| self.guests[n].nic().counters());
        assert_eq!((a.tx_frames, a.tx_bytes), (b.rx_frames, b.rx_bytes));
        assert_eq!((b.tx_frames, b.tx_bytes), (a.rx_frames, a.rx_bytes));
        for counters in [a, b] {
            let drops = [counters.rx_bad_header, counters.rx_bad_checksum, counters.tx_no_buffer];
            assert_eq!(drops, [0; 3]);
        }
    }
}

/// All that an interface may negotiate: with offloads and without, rings of both formats, notified by index and by
/// flag, with buffers for a whole frame and with small ones that are merged.
fn nics() -> impl Iterator<Item = NicConfig> {
    let offloads = [Offloads::NONE, Offloads::CSUM, Offloads::CSUM | Offloads::TSO4];
    let notified = offloads.into_iter().flat_map(|offloads| {
        [false, true].map(|event_idx| NicConfig { offloads, event_idx, ..NicConfig::default() })
    });
    let small = |nic| NicConfig { rx_slots: 256, rx_buffer_bytes: 1024, ..nic };
    // A packed ring may have any size.
    let packed = |nic| NicConfig { ring: RingFormat::Packed, rx_slots: 67, tx_slots: 131, ..nic };
    notified.flat_map(move |nic| {
        [nic, small(nic), packed(nic), NicConfig { rx_slots: 257, ..small(packed(nic)) }]
    })
}

/// Sends `bytes` from the first guest to the second and holds that all arrive, whole, before `end_ns`.
fn stream(network: &mut Network, bytes: u64, end_ns: u64) {
    let remote = network.server();
    let [a, b] = &mut network.guests;
    let config = StreamConfig::default();
    let mut receiver = StreamReceiver::new(b.stack(), PORT, config).unwrap();
    let mut sender = StreamSender::new(a.stack(), remote, Some(bytes), config).unwrap();
    network.run_until(end_ns, [&mut sender, &mut receiver]);
    assert_eq!((sender.status(), receiver.status()), (Status::Done, Status::Done));
    assert_eq!((sender.sent_bytes(), receiver.received_bytes()), (bytes, bytes));
    assert_eq!(receiver.corrupt_at(), None);
}

/// Holds that TCP, ARP before it, arrives whole in every configuration and way of being notified, that offloads
/// are used where they were negotiated and nowhere else, and that no wake-up is lost: what waits for a
/// retransmission waits for a second, which is longer than this network has.
#[test]
fn a_stream_arrives_in_every_configuration() {
    const BYTES: u64 = 4_000_037;
    for nic in nics() {
        for preemptive in [false, true] {
            let mut network = Network::new(nic, preemptive);
            stream(&mut network, BYTES, SECOND_NS);
            network.assert_lossless();
            let received = network.guests[1].nic().counters();
            let tso = nic.offloads.contains(Offloads::TSO4);
            assert_eq!(received.rx_gso_frames > 0, tso);
            assert_eq!(received.rx_frames < BYTES / 1460, tso, "{} frames", received.rx_frames);
            assert_eq!(received.rx_merged_frames > 0, nic.rx_buffer_bytes == 1024);
        }
    }
}

/// Holds that the stream gets through a wire that loses frames: data, acknowledgements, and the frames that open
/// and close the connection. Each loss may cost one of TCP's timeouts, which start at a second.
#[test]
fn a_stream_survives_loss() {
    for every in (5..60).step_by(6) {
        let mut network = Network::new(NicConfig::default(), every % 4 == 1);
        network.wire.mischief = Mischief::DropEvery(every);
        stream(&mut network, 8_000_000, 1_000 * SECOND_NS);
        assert!(network.wire.dropped > 0);
    }
}

/// Holds that the receiver is no bystander: a stream from another seed is corrupt from its first byte.
#[test]
fn a_stream_from_another_seed_is_corrupt() {
    let mut network = Network::new(NicConfig::default(), true);
    let remote = network.server();
    let [a, b] = &mut network.guests;
    let [one, other] = [1, 2].map(|seed| StreamConfig { seed, ..StreamConfig::default() });
    let mut receiver = StreamReceiver::new(b.stack(), PORT, one).unwrap();
    let mut sender = StreamSender::new(a.stack(), remote, Some(1000), other).unwrap();
    network.run_until(SECOND_NS, [&mut sender, &mut receiver]);
    assert_eq!((receiver.received_bytes(), receiver.corrupt_at()), (1000, Some(0)));
}

/// Holds that each round trip is timed, and the paper's first optimisation in entries: with preemptive copy
/// the answer is in the ring when the interrupt comes, and one entry a packet is saved.
#[test]
fn request_and_response() {
    let receive_hypercalls = [false, true].map(|preemptive| {
        let mut network = Network::new(NicConfig::default(), preemptive);
        let remote = network.server();
        let [a, b] = &mut network.guests;
        let mut server = EchoServer::new(b.stack(), PORT).unwrap();
        let mut latencies = Vec::new();
        let record = |latency_ns| latencies.push(latency_ns);
        let mut client = RequestClient::new(a.stack(), remote, Some(500), record).unwrap();
        network.run_until(SECOND_NS, [&mut client, &mut server]);
        assert_eq!((client.status(), client.completed()), (Status::Done, 500));
        assert_eq!((server.status(), server.echoed_bytes()), (Status::Done, 500));
        assert_eq!(latencies.len(), 500);
        assert!(latencies.iter().all(|&ns| (1..=10_000).contains(&ns)), "{latencies:?}");
        network.assert_lossless();
        network.guests[0].counters().receive_hypercalls
    });
    assert!(receive_hypercalls[0] >= 500, "{receive_hypercalls:?}");
    assert!(receive_hypercalls[1] < 10, "{receive_hypercalls:?}");
}

fn datagrams(mischief: Mischief, sent: u64) -> (DatagramReceiver, Network) {
    let mut network = Network::new(NicConfig::default(), false);
    let remote = network.server();
    let [a, b] = &mut network.guests;
    let mut receiver = DatagramReceiver::new(b.stack(), PORT).unwrap();
    let mut sender = DatagramSender::new(a.stack(), remote, 1400, Some(sent)).unwrap();
    // ARP comes first, so that what the wire does, it does to datagrams.
    network.run_until(100_000, [&mut sender, &mut receiver]);
    network.wire.mischief = mischief;
    network.run_until(SECOND_NS, [&mut sender, &mut receiver]);
    assert_eq!(sender.sent(), sent);
    (receiver, network)
}

/// Holds that datagrams are counted as they come: all of them, those lost and those late.
#[test]
fn datagrams_are_counted() {
    let (receiver, network) = datagrams(Mischief::None, 100_000);
    assert_eq!(
        (receiver.sequence().received(), receiver.sequence().lost(), receiver.sequence().reordered()),
        (100_000, 0, 0)
    );
    network.assert_lossless();

    let (receiver, network) = datagrams(Mischief::DropEvery(7), 100_000);
    let dropped = network.wire.dropped;
    assert!(dropped > 1000);
    assert_eq!(receiver.sequence().received(), 100_000 - dropped);
    assert!(
        (dropped - 1..=dropped).contains(&receiver.sequence().lost()),
        "the last is not missed if it was lost"
    );
    assert_eq!((receiver.sequence().reordered(), receiver.malformed()), (0, 0));

    let (receiver, _) = datagrams(Mischief::DelayEvery(10), 100_000);
    assert!(receiver.sequence().reordered() > 1000);
    assert_eq!(receiver.sequence().lost() + receiver.sequence().received(), 100_000);
}

/// Runs a raw sender and a raw receiver until `end_ns`, each left alone while it sleeps.
fn raw(
    config: RawConfig,
    schedule: Schedule,
    preemptive: bool,
    mischief: Mischief,
    end_ns: u64,
) -> ([RawGuest; 2], Wire) {
    let peer = RawConfig { own: config.peer, peer: config.own, ..config };
    let mut guests = [RawGuest::sender(config, schedule).unwrap(), RawGuest::receiver(peer).unwrap()];
    let mut wire = Wire::new([guests[0].nic(), guests[1].nic()], preemptive);
    let mut due_ns = [Some(0); 2];
    for now_ns in (0..end_ns).step_by(1_000) {
        for (me, guest) in guests.iter_mut().enumerate() {
            if wire.ends[me].interrupt || due_ns[me].is_some_and(|due| due <= now_ns) {
                due_ns[me] = match guest.poll(now_ns, &mut wire.entry(me)).unwrap() {
                    Poll::Busy => Some(now_ns),
                    Poll::Idle { until_ns } => until_ns,
                };
            }
        }
        // What the two greet each other with is not what is lost or delayed.
        if wire.carried >= 3 {
            wire.mischief = mischief;
        }
    }
    (guests, wire)
}

fn raw_config(frame_bytes: usize, batching: Option<Pace>) -> RawConfig {
    let [own, peer] = [0, 1].map(|n| {
        let GuestConfig { mac, ip, .. } = GuestConfig::numbered(n);
        Address { mac, ip }
    });
    RawConfig { own, peer, frame_bytes, batching }
}

/// Holds that bare frames of any size arrive whole and in order, in either way of being notified; and what batching
/// is for: without it each frame is an entry, with it a batch is.
#[test]
fn raw_frames_arrive_in_order() {
    for frame_bytes in [60, 64, 1500, 65_536] {
        for (batching, preemptive) in [(None, false), (None, true), (Some(Pace::default()), true)] {
            let config = raw_config(frame_bytes, batching);
            let schedule = Schedule::saturating();
            let ([sender, receiver], wire) = raw(config, schedule, preemptive, Mischief::None, 100_000);
            let received = receiver.sequence().received();
            assert!(received > 500, "{received} frames of {frame_bytes}");
            assert_eq!((receiver.sequence().lost(), receiver.sequence().reordered()), (0, 0));
            assert_eq!(sender.sequence().received(), 2, "two greetings");
            let bytes = receiver.nic().counters().rx_bytes;
            assert_eq!(bytes, received * frame_bytes as u64);
            let entries = sender.counters().transmit_hypercalls;
            match batching {
                None => assert_eq!(entries, sender.sent()),
                Some(_) => assert!(entries <= sender.sent() / 16 + 1, "{entries} for {}", sender.sent()),
            }
            assert_eq!(wire.dropped, 0);
        }
    }
}

/// Holds that a raw sender keeps its rate, sleeping between frames, and that all are announced before it does.
#[test]
fn raw_frames_are_paced() {
    let schedule = Schedule::at_rate(std::num::NonZeroU64::new(10_000));
    let config = raw_config(64, Some(Pace::default()));
    let ([sender, receiver], _) = raw(config, schedule, true, Mischief::None, SECOND_NS / 10);
    assert!((999..=1_001).contains(&receiver.sequence().received()), "{:?}", receiver.sequence());
    assert_eq!(sender.counters().transmit_hypercalls, sender.sent(), "each frame was alone");
}

/// Holds that what the wire loses or delays is counted as that.
#[test]
fn raw_loss_and_order_are_counted() {
    let config = raw_config(1500, None);
    let schedule = Schedule::saturating();
    let ([sender, receiver], wire) = raw(config, schedule, true, Mischief::DropEvery(7), 500_000);
    assert!(wire.dropped > 100);
    assert!((wire.dropped - 1..=wire.dropped).contains(&receiver.sequence().lost()));
    assert_eq!(receiver.sequence().received(), sender.sent() - wire.dropped);
    let ([_, receiver], _) = raw(config, schedule, true, Mischief::DelayEvery(10), 500_000);
    assert!(receiver.sequence().reordered() > 100);
    assert!(receiver.sequence().lost() <= 1, "the last may be on its way");
}

/// Holds that a raw frame is what it says: headers that other software reads, with a right checksum.
#[test]
fn raw_frames_are_valid() {
    let config = raw_config(1500, None);
    let guest = RawGuest::receiver(RawConfig { own: config.peer, peer: config.own, ..config });
    let mut guest = guest.unwrap();
    let mut end = End::new(guest.nic());
    guest.poll(0, &mut Deaf).unwrap();
    let frame = end.take().unwrap();
    let headers = etherparse::PacketHeaders::from_ethernet_slice(&frame[VNET_HDR_BYTES..]).unwrap();
    let Some(etherparse::NetHeaders::Ipv4(ip, _)) = headers.net else { panic!("{headers:?}") };
    assert_eq!((ip.source, ip.destination), (config.peer.ip.octets(), config.own.ip.octets()));
    assert_eq!(ip.header_checksum, ip.calc_header_checksum());
    let Some(etherparse::TransportHeader::Udp(udp)) = headers.transport else { panic!("{:?}", ip) };
    assert_eq!((usize::from(udp.length), udp.checksum), (frame.len() - VNET_HDR_BYTES - 34, 0));
}

/// Holds that datagrams keep the rate that they were given.
#[test]
fn datagrams_are_paced() {
    let mut network = Network::new(NicConfig::default(), true);
    let remote = network.server();
    let [a, b] = &mut network.guests;
    let mut receiver = DatagramReceiver::new(b.stack(), PORT).unwrap();
    let sender = DatagramSender::new(a.stack(), remote, 100, None).unwrap();
    let mut sender = sender.paced(Schedule::at_rate(std::num::NonZeroU64::new(1_000)));
    network.run_until(SECOND_NS, [&mut sender, &mut receiver]);
    assert!((999..=1_001).contains(&receiver.sequence().received()), "{:?}", receiver.sequence());
}

#[test]
fn workloads_that_cannot_start() {
    let mut guest = Guest::new(GuestConfig::numbered(0)).unwrap();
    let nowhere = SocketAddrV4::new(Ipv4Addr::new(10, 1, 0, 2), 0);
    let somewhere = SocketAddrV4::new(Ipv4Addr::new(10, 1, 0, 2), PORT);
    let config = StreamConfig::default();
    let stack = guest.stack();
    let unaddressable = Some(WorkloadError::Unaddressable);
    assert_eq!(StreamSender::new(stack, nowhere, None, config).err(), unaddressable);
    assert_eq!(StreamReceiver::new(stack, 0, config).err(), unaddressable);
    assert_eq!(DatagramSender::new(stack, nowhere, 64, None).err(), unaddressable);
    for bytes in [7, 1473] {
        let refused = WorkloadError::DatagramBytes { bytes, max: 1472 };
        assert_eq!(DatagramSender::new(stack, somewhere, bytes, None).err(), Some(refused));
    }
}

/// A switch that does nothing when it is called.
struct Deaf;

impl Hypercall for Deaf {
    fn transmit(&mut self) {}
    fn receive(&mut self) {}
    fn take_interrupt(&mut self) -> bool {
        false
    }
}

/// An ARP request for `target` with an empty header before it.
fn arp_request(target: Ipv4Addr) -> Vec<u8> {
    use smoltcp::wire::{ArpOperation, ArpPacket, ArpRepr, EthernetFrame, EthernetProtocol};
    let asker = EthernetAddress([2, 0, 0, 0, 0, 9]);
    let request = ArpRepr::EthernetIpv4 {
        operation: ArpOperation::Request,
        source_hardware_addr: asker,
        source_protocol_addr: Ipv4Addr::new(10, 1, 0, 9),
        target_hardware_addr: EthernetAddress::default(),
        target_protocol_addr: target,
    };
    let mut bytes = vec![0; VNET_HDR_BYTES + 14 + request.buffer_len()];
    let mut frame = EthernetFrame::new_unchecked(&mut bytes[VNET_HDR_BYTES..]);
    frame.set_src_addr(asker);
    frame.set_dst_addr(EthernetAddress::BROADCAST);
    frame.set_ethertype(EthernetProtocol::Arp);
    request.emit(&mut ArpPacket::new_unchecked(frame.payload_mut()));
    bytes
}

/// Holds that a guest whose transmit buffers are all out sleeps, still receives, dropping and counting the
/// answer that it cannot send, is woken by the return of its buffers, and goes on where it stopped.
#[test]
fn a_starved_transmitter_sleeps_until_buffers_return() {
    for event_idx in [false, true] {
        let nic = NicConfig { tx_slots: 4, event_idx, ..NicConfig::default() };
        let mut network = Network::new(nic, true);
        let remote = network.server();
        let mut receiver = DatagramReceiver::new(network.guests[1].stack(), PORT).unwrap();
        let mut sender = DatagramSender::new(network.guests[0].stack(), remote, 100, Some(1)).unwrap();
        network.run_until(SECOND_NS, [&mut sender, &mut receiver]);
        assert_eq!(receiver.sequence().received(), 1, "the neighbour is known from here on");

        let mut sender = DatagramSender::new(network.guests[0].stack(), remote, 100, Some(40)).unwrap();
        let guest = &mut network.guests[0];
        assert_eq!(guest.poll(network.now_ns, &mut Deaf, &mut sender), Ok(Poll::Busy));
        let asleep = Ok(Poll::Idle { until_ns: None });
        assert_eq!(guest.poll(network.now_ns, &mut Deaf, &mut sender), asleep);
        assert_eq!(guest.nic().counters().tx_no_buffer, 0);
        network.wire.ends[0].waiting.push_back(arp_request(guest.stack().ip()));
        network.wire.ends[0].copy();
        assert_eq!(guest.poll(network.now_ns, &mut Deaf, &mut sender), Ok(Poll::Busy));
        assert_eq!(guest.nic().counters().tx_no_buffer, 1);
        assert_eq!(guest.poll(network.now_ns, &mut Deaf, &mut sender), asleep);

        network.wire.ends[0].interrupt = false;
        network.wire.transmit(0);
        assert!(network.wire.ends[0].interrupt, "the buffers' return wakes the sender");
        network.run_until(SECOND_NS, [&mut sender, &mut receiver]);
        assert_eq!((receiver.sequence().received(), sender.sent()), (41, 40));
        // The second sender numbers from 0 again: its first datagram has the number of the only one before.
        assert_eq!((receiver.sequence().lost(), receiver.sequence().reordered()), (0, 1));
    }
}

/// Polls a guest to whose receive ring the device does `what` with the first buffers; answers what came of it.
fn lie(what: impl FnOnce(&mut End)) -> (Result<Poll, NicFault>, Guest) {
    let nic = NicConfig { rx_slots: 128, rx_buffer_bytes: 1024, ..NicConfig::default() };
    let mut guest = Guest::new(GuestConfig { nic, ..GuestConfig::numbered(0) }).unwrap();
    let mut end = End::new(guest.nic());
    assert_eq!(guest.poll(0, &mut Deaf, &mut ()), Ok(Poll::Idle { until_ns: None }));
    assert_eq!(end.rx.refresh(), Ok(128));
    what(&mut end);
    end.rx.publish();
    let first = guest.poll(0, &mut Deaf, &mut ());
    if first.is_err() {
        assert_eq!(guest.poll(0, &mut Deaf, &mut ()), first, "a guest that was lied to stays dead");
    }
    (first, guest)
}

/// Writes a header with `num_buffers` to the next buffer; answers its head.
fn headed(end: &mut End, num_buffers: u16) -> u16 {
    let head = end.rx.pop().unwrap();
    let mut segments = Segments::new();
    end.rx.walk(head, &mut segments).unwrap();
    // SAFETY: the buffer is on offer, so it is the device's, and longer than a header.
    unsafe { segments[0].write(&VnetHdr::default().encode(num_buffers)) };
    head
}

/// Holds that each lie of a device is its own typed fault, and none a panic.
#[test]
fn a_device_that_lies() {
    let fault = |what: fn(&mut End)| lie(what).0.unwrap_err();
    let ring = |lie| NicFault::Ring(lie);

    let beyond = fault(|end| end.rx.push_used(128, 100));
    assert_eq!(beyond, ring(DeviceLied::NoSuchChain { id: 128, size: 128 }));
    let long = fault(|end| {
        let head = headed(end, 1);
        end.rx.push_used(head, 1025);
    });
    assert_eq!(long, ring(DeviceLied::TooLong { id: 0, bytes: 1025, room: 1024 }));
    let transmitted = fault(|end| {
        end.tx.push_used(0, 0);
        end.tx.publish();
    });
    assert_eq!(transmitted, ring(DeviceLied::UsedIndex { returned: 1, outstanding: 0 }));

    for bytes in [0, 11] {
        assert_eq!(lie(|end| end.rx.push_used(0, bytes)).0, Err(NicFault::NoHeader(bytes)));
    }
    let none = fault(|end| {
        let head = headed(end, 0);
        end.rx.push_used(head, 100);
    });
    assert_eq!(none, NicFault::NumBuffers { claimed: 0, present: 1 });
    let missing = fault(|end| {
        let head = headed(end, u16::MAX);
        end.rx.push_used(head, 12);
        let head = end.rx.pop().unwrap();
        end.rx.push_used(head, 1024);
    });
    assert_eq!(missing, NicFault::NumBuffers { claimed: u16::MAX, present: 2 });
    let endless = fault(|end| {
        let head = headed(end, 100);
        end.rx.push_used(head, 1024);
        for _ in 1..100 {
            let head = end.rx.pop().unwrap();
            end.rx.push_used(head, 1024);
        }
    });
    assert_eq!(endless, NicFault::TooLong);
}

/// Hands one frame, header first, to a guest; answers what the guest counted.
fn received(nic: NicConfig, frame: Vec<u8>) -> NicCounters {
    let mut guest = Guest::new(GuestConfig { nic, ..GuestConfig::numbered(0) }).unwrap();
    let mut end = End::new(guest.nic());
    guest.poll(0, &mut Deaf, &mut ()).unwrap();
    end.waiting.push_back(frame);
    end.copy();
    guest.poll(0, &mut Deaf, &mut ()).unwrap();
    guest.nic().counters()
}

/// Holds that a frame is dropped and counted if its header cannot be, asks for what was not negotiated, or
/// its checksum is wrong and nobody vouches for it; and taken otherwise, whatever nonsense it carries.
#[test]
fn frames_that_are_not_fit_for_the_stack() {
    let builder = || {
        etherparse::PacketBuilder::ethernet2([2, 0, 0, 0, 0, 9], [2, 0, 10, 1, 0, 1])
            .ipv4([10, 1, 0, 9], [10, 1, 0, 1], 64)
            .udp(7, 9)
    };
    let frame = |header: VnetHdr, flip: u8| {
        let mut bytes = header.encode(1).to_vec();
        builder().write(&mut bytes, b"payload").unwrap();
        *bytes.last_mut().unwrap() ^= flip;
        bytes
    };
    let nic = NicConfig::default();
    let plain = VnetHdr::default();
    let vouched = VnetHdr { flags: F_DATA_VALID, ..plain };
    let partial = VnetHdr { flags: crate::header::F_NEEDS_CSUM, csum_start: 34, csum_offset: 6, ..plain };
    let beyond = VnetHdr { csum_start: 48, ..partial };
    let bare = NicConfig { offloads: Offloads::NONE, ..nic };
    let outcome = |nic, frame| {
        let NicCounters { rx_frames, rx_bad_header, rx_bad_checksum, .. } = received(nic, frame);
        (rx_frames, rx_bad_header, rx_bad_checksum)
    };
    let (taken, bad_header, bad_checksum) = ((1, 0, 0), (0, 1, 0), (0, 0, 1));
    assert_eq!(outcome(nic, frame(plain, 0)), taken);
    assert_eq!(outcome(nic, frame(plain, 1)), bad_checksum);
    assert_eq!(outcome(bare, frame(plain, 1)), bad_checksum);
    assert_eq!(outcome(nic, frame(vouched, 1)), taken);
    assert_eq!(outcome(nic, frame(partial, 1)), taken);
    assert_eq!(outcome(bare, frame(partial, 0)), bad_header);
    assert_eq!(outcome(nic, frame(beyond, 0)), bad_header);
    let mut unknown = frame(plain, 0);
    unknown[1] = 0x7f;
    assert_eq!(outcome(nic, unknown), bad_header);
    for bytes in [VNET_HDR_BYTES, VNET_HDR_BYTES + 1, VNET_HDR_BYTES + MAX_FRAME_BYTES] {
        assert_eq!(outcome(nic, vec![0; bytes]), taken);
    }
}

#[test]
fn interfaces_that_cannot_be() {
    let nic = NicConfig::default();
    let refused = |nic| Nic::new(nic).err().unwrap();
    assert_eq!(refused(NicConfig { offloads: Offloads::TSO4, ..nic }), NicConfigError::TsoWithoutCsum);
    assert_eq!(refused(NicConfig { mtu_bytes: 575, ..nic }), NicConfigError::Mtu(575));
    for (slots, bytes) in [(64, 1024), (64, 11), (64, u32::MAX), (0, 2048)] {
        let config = NicConfig { rx_slots: slots, rx_buffer_bytes: bytes, ..nic };
        assert_eq!(refused(config), NicConfigError::RxBuffers { slots, bytes });
    }
    let size = |size| NicConfigError::Queue(crate::ring::QueueSizeError::Size(size));
    assert_eq!(refused(NicConfig { tx_slots: 100, ..nic }), size(100));
    assert_eq!(refused(NicConfig { tx_slots: 0, ..nic }), size(0));
    let size = |size| NicConfigError::Queue(crate::ring::QueueSizeError::PackedSize(size));
    let packed = NicConfig { ring: RingFormat::Packed, ..nic };
    assert_eq!(refused(NicConfig { tx_slots: 40_000, ..packed }), size(40_000));
    assert!(Nic::new(NicConfig { tx_slots: 100, ..packed }).is_ok());
}
