//! Frames built by etherparse are left unfinished, finished and cut here, and read again by etherparse,
//! which knows nothing of this code: every length and checksum must be what it computes, every other
//! header field what was sent, and the payloads together the payload. Lies come as tables, one error
//! each, and as arbitrary bytes and broken frames, which must never panic.

use alloc::vec;
use alloc::vec::Vec;

use etherparse::checksum::Sum16BitWords;
use etherparse::{
    IpHeaders, IpNumber, Ipv4Header, Ipv4Options, Ipv6Extensions, Ipv6Header, Ipv6RawExtHeader,
    Ipv6RoutingExtensions, NetSlice, PacketBuilder, SlicedPacket, TcpHeader, TransportSlice, UdpHeader,
    VlanId,
};
use proptest::collection::vec as bytes;
use proptest::prelude::*;

use super::*;
use crate::header::{F_DATA_VALID, F_NEEDS_CSUM, Offloads, VnetFault};

const FIN: u8 = 0x01;
const PSH: u8 = 0x08;
const ACK: u8 = 0x10;
const ECE: u8 = 0x40;
const CWR: u8 = 0x80;

/// What a frame is built from.
#[derive(Clone, Copy, Debug)]
struct Shape {
    vlan_tags: usize,
    v6: bool,
    /// 32-bit words of IPv4 options, or how many of three kinds of IPv6 extension headers.
    ip_options: usize,
    udp: bool,
    /// 32-bit words of TCP options.
    tcp_options: usize,
    tcp_flags: u8,
    sequence: u32,
    identification: u16,
}

const PLAIN: Shape = Shape {
    vlan_tags: 0,
    v6: false,
    ip_options: 0,
    udp: false,
    tcp_options: 0,
    tcp_flags: ACK,
    sequence: 1,
    identification: 1,
};

fn shapes() -> impl Strategy<Value = Shape> {
    (0..=2_usize, any::<bool>(), 0..=10_usize, any::<bool>(), 0..=10_usize, any::<(u8, u32, u16)>()).prop_map(
        |(vlan_tags, v6, ip_options, udp, tcp_options, (tcp_flags, sequence, identification))| Shape {
            vlan_tags,
            v6,
            ip_options: if v6 { ip_options % 4 } else { ip_options },
            udp,
            tcp_options,
            tcp_flags,
            sequence,
            identification,
        },
    )
}

impl Shape {
    fn l3(&self) -> usize {
        14 + 4 * self.vlan_tags
    }

    fn l4(&self) -> usize {
        self.l3() + if self.v6 { 40 + 8 * self.ip_options } else { 20 + 4 * self.ip_options }
    }

    fn header_bytes(&self) -> usize {
        self.l4() + if self.udp { 8 } else { 20 + 4 * self.tcp_options }
    }

    fn csum_offset(&self) -> u16 {
        if self.udp { 6 } else { 16 }
    }

    fn ip(&self) -> IpHeaders {
        if self.v6 {
            let ip =
                Ipv6Header { hop_limit: 9, source: [0xfd; 16], destination: [7; 16], ..Default::default() };
            let padding = Ipv6RawExtHeader::new_raw(IpNumber::TCP, &[1, 4, 0, 0, 0, 0]).unwrap();
            let routing = Ipv6RoutingExtensions { routing: padding.clone(), final_destination_options: None };
            let extensions = Ipv6Extensions {
                hop_by_hop_options: (self.ip_options > 0).then(|| padding.clone()),
                destination_options: (self.ip_options > 1).then_some(padding),
                routing: (self.ip_options > 2).then_some(routing),
                ..Default::default()
            };
            return IpHeaders::Ipv6(ip, extensions);
        }
        let mut ip = Ipv4Header::new(0, 9, IpNumber::TCP, [192, 0, 2, 1], [198, 51, 100, 200]).unwrap();
        ip.identification = self.identification;
        ip.options = Ipv4Options::try_from(&vec![1; 4 * self.ip_options][..]).unwrap();
        IpHeaders::Ipv4(ip, Default::default())
    }

    fn tcp(&self) -> TcpHeader {
        let mut tcp = TcpHeader::new(49_152, 443, self.sequence, 8192);
        tcp.acknowledgment_number = 0x1234_5678;
        tcp.set_options_raw(&vec![1; 4 * self.tcp_options]).unwrap();
        (tcp.fin, tcp.psh, tcp.ack) =
            (self.tcp_flags & FIN != 0, self.tcp_flags & PSH != 0, self.tcp_flags & ACK != 0);
        (tcp.ece, tcp.cwr) = (self.tcp_flags & ECE != 0, self.tcp_flags & CWR != 0);
        tcp
    }

    /// The frame with every checksum complete, by etherparse.
    fn complete(&self, payload: &[u8]) -> Vec<u8> {
        let ethernet = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]);
        let vlan = |id| VlanId::try_new(id).unwrap();
        let ip = match self.vlan_tags {
            0 => ethernet.ip(self.ip()),
            1 => ethernet.single_vlan(vlan(100)).ip(self.ip()),
            _ => ethernet.double_vlan(vlan(200), vlan(100)).ip(self.ip()),
        };
        let mut frame = Vec::new();
        if self.udp {
            ip.udp(49_152, 443).write(&mut frame, payload).unwrap();
        } else {
            ip.tcp_header(self.tcp()).write(&mut frame, payload).unwrap();
        }
        assert_eq!(frame.len(), self.header_bytes() + payload.len());
        frame
    }

    /// The frame as a driver sends it: the pseudo-header's sum, by etherparse, where the checksum goes.
    fn partial(&self, payload: &[u8]) -> (Vec<u8>, VnetHdr) {
        let mut frame = self.complete(payload);
        let protocol = if self.udp { 17 } else { 6 };
        let mut pseudo = Sum16BitWords::new();
        pseudo = match self.ip() {
            IpHeaders::Ipv4(ip, _) => pseudo.add_4bytes(ip.source).add_4bytes(ip.destination),
            IpHeaders::Ipv6(ip, _) => pseudo.add_16bytes(ip.source).add_16bytes(ip.destination),
        };
        let l4_bytes = (frame.len() - self.l4()) as u16;
        let pseudo = pseudo.add_2bytes([0, protocol]).add_2bytes(l4_bytes.to_be_bytes());
        let field = self.l4() + usize::from(self.csum_offset());
        frame[field..field + 2].copy_from_slice(&(!pseudo.ones_complement()).to_ne_bytes());
        let header = VnetHdr {
            flags: F_NEEDS_CSUM,
            csum_start: self.l4() as u16,
            csum_offset: self.csum_offset(),
            ..VnetHdr::default()
        };
        (frame, header)
    }

    /// As `partial`, to be cut.
    fn large(&self, payload: &[u8], gso_size: u16) -> (Vec<u8>, VnetHdr) {
        let (frame, header) = self.partial(payload);
        let gso = match (self.udp, self.v6) {
            (true, _) => GsoType::UdpL4,
            (false, true) => GsoType::Tcp6,
            (false, false) => GsoType::Tcp4,
        };
        (frame, VnetHdr { gso, gso_size, ..header })
    }

    /// Reads a finished wire frame that should have this shape: holds it against what etherparse
    /// computes, and answers its payload.
    fn read<'a>(&self, wire: &'a [u8]) -> &'a [u8] {
        let packet = SlicedPacket::from_ethernet(wire).expect("a wire frame parses");
        assert_eq!(packet.link_exts.len(), self.vlan_tags);
        let udp_header = |udp: &etherparse::UdpSlice<'_>| {
            let sent = UdpHeader { source_port: 49_152, destination_port: 443, ..udp.to_header() };
            assert_eq!((udp.to_header(), usize::from(udp.length())), (sent.clone(), wire.len() - self.l4()));
            sent
        };
        let tcp_header = |tcp: &etherparse::TcpSlice<'_>| {
            let sent = TcpHeader { checksum: tcp.checksum(), ..self.tcp() };
            assert_eq!(tcp.to_header(), sent);
            sent
        };
        let (l4, computed, payload) = match (packet.net.unwrap(), packet.transport.unwrap()) {
            (NetSlice::Ipv4(slice), transport) => {
                let ip = slice.header().to_header();
                assert_eq!(ip.header_checksum, ip.calc_header_checksum());
                assert_eq!(usize::from(ip.total_len), wire.len() - self.l3());
                let IpHeaders::Ipv4(mut sent, _) = self.ip() else { panic!("IPv4 came of IPv6") };
                (sent.total_len, sent.header_checksum, sent.protocol) =
                    (ip.total_len, ip.header_checksum, ip.protocol);
                assert_eq!(ip, sent);
                match transport {
                    TransportSlice::Udp(udp) => {
                        let header = udp_header(&udp);
                        let computed = header.calc_checksum_ipv4(&ip, udp.payload()).unwrap();
                        (header.checksum, computed, udp.payload())
                    }
                    TransportSlice::Tcp(tcp) => {
                        let header = tcp_header(&tcp);
                        let computed = header.calc_checksum_ipv4(&ip, tcp.payload()).unwrap();
                        (header.checksum, computed, tcp.payload())
                    }
                    other => panic!("{other:?}"),
                }
            }
            (NetSlice::Ipv6(slice), transport) => {
                let ip = slice.header().to_header();
                assert_eq!(usize::from(ip.payload_length), wire.len() - self.l3() - 40);
                match transport {
                    TransportSlice::Udp(udp) => {
                        let header = udp_header(&udp);
                        let computed = header.calc_checksum_ipv6(&ip, udp.payload()).unwrap();
                        (header.checksum, computed, udp.payload())
                    }
                    TransportSlice::Tcp(tcp) => {
                        let header = tcp_header(&tcp);
                        let computed = header.calc_checksum_ipv6(&ip, tcp.payload()).unwrap();
                        (header.checksum, computed, tcp.payload())
                    }
                    other => panic!("{other:?}"),
                }
            }
            other => panic!("{other:?}"),
        };
        assert_eq!(l4, computed, "L4 checksum");
        payload
    }
}

/// What a receiver that accepts `accept` gets.
fn cut(frame: &[u8], header: &VnetHdr, accept: Offloads) -> Result<Vec<(Vec<u8>, VnetHdr)>, Unsegmentable> {
    let mut cuts = Vec::new();
    segment_into(frame, header, accept, &mut |wire, header| cuts.push((wire.to_vec(), header)))?;
    Ok(cuts)
}

/// Cuts a frame of `shape`, holds every wire frame against what it should be, and counts them.
fn check_cuts(shape: Shape, payload: &[u8], gso_size: u16) -> usize {
    let (frame, header) = shape.large(payload, gso_size);
    let cuts = cut(&frame, &header, Offloads::NONE).unwrap();
    let chunk = usize::from(gso_size);
    assert_eq!(cuts.len(), payload.len().div_ceil(chunk).max(1));
    for (index, (wire, header)) in cuts.iter().enumerate() {
        let mut expected = shape;
        expected.sequence = shape.sequence.wrapping_add((index * chunk) as u32);
        expected.identification = shape.identification.wrapping_add(index as u16);
        if index > 0 {
            expected.tcp_flags &= !CWR;
        }
        if index + 1 < cuts.len() {
            expected.tcp_flags &= !(FIN | PSH);
        }
        // Outside the IP header nothing changes before L4, and inside an IPv6 header only its length.
        assert_eq!(wire[..shape.l3()], frame[..shape.l3()]);
        if shape.v6 {
            assert_eq!(wire[shape.l3()..][..4], frame[shape.l3()..][..4]);
            assert_eq!(wire[shape.l3() + 6..shape.l4()], frame[shape.l3() + 6..shape.l4()]);
        }
        let part = payload.chunks(chunk).nth(index).unwrap_or(&[]);
        assert_eq!(expected.read(wire), part, "payload of cut {index}");
        assert_eq!(*header, VnetHdr::default());
    }
    cuts.len()
}

#[test]
fn the_largest_frames_are_cut_and_no_further_than_the_bound() {
    let payload: Vec<u8> = (0..65_535_u32).map(|at| ((at * 31) >> 3) as u8).collect();
    for (v6, udp) in [(false, false), (false, true), (true, false), (true, true)] {
        // The IP length field is at its largest.
        let shape = Shape { v6, udp, vlan_tags: 2, sequence: u32::MAX - 9, identification: 65_530, ..PLAIN };
        let l4_header_bytes = if udp { 8 } else { 20 };
        let payload = &payload[..65_535 - l4_header_bytes - if v6 { 0 } else { 20 }];
        check_cuts(shape, payload, 1448);
        assert!(check_cuts(shape, payload, 48) <= MAX_CUTS as usize);
        let (frame, header) = shape.large(payload, 47);
        let refused = cut(&frame, &header, Offloads::NONE).unwrap_err();
        assert_eq!(refused, Unsegmentable::TooManyCuts(payload.len().div_ceil(47) as u32));
    }
}

#[test]
fn flags_stand_where_they_belong() {
    // The flags sent, the segments' worth of payload, and the flags of each cut.
    let table: [(u8, usize, &[u8]); 6] = [
        (ACK, 2, &[ACK, ACK]),
        (ACK | PSH | FIN, 3, &[ACK, ACK, ACK | PSH | FIN]),
        (ACK | CWR, 3, &[ACK | CWR, ACK, ACK]),
        (ACK | CWR | ECE | PSH, 2, &[ACK | CWR | ECE, ACK | ECE | PSH]),
        (ACK | CWR | FIN | PSH, 1, &[ACK | CWR | FIN | PSH]),
        (ACK | FIN, 0, &[ACK | FIN]),
    ];
    for (tcp_flags, segments, expected) in table {
        for v6 in [false, true] {
            let shape = Shape { tcp_flags, v6, ..PLAIN };
            let (frame, mut header) = shape.large(&vec![5; 50 * segments], 50);
            header.ecn = tcp_flags & CWR != 0;
            let cuts = cut(&frame, &header, Offloads::NONE).unwrap();
            let flags: Vec<u8> = cuts.iter().map(|(wire, _)| wire[shape.l4() + 13]).collect();
            assert_eq!(flags, expected, "of {tcp_flags:#x} in {segments} segments");
        }
    }
}

#[test]
fn a_receiver_gets_what_it_accepts() {
    let (frame, header) = PLAIN.large(&[3; 100], 60);
    let shapes = |accept| -> Vec<(usize, GsoType, bool)> {
        let cuts = cut(&frame, &header, accept).unwrap();
        cuts.iter().map(|(wire, header)| (wire.len(), header.gso, header.needs_csum())).collect()
    };
    assert_eq!(shapes(Offloads::CSUM | Offloads::TSO4), [(frame.len(), GsoType::Tcp4, true)]);
    assert_eq!(
        shapes(Offloads::CSUM | Offloads::TSO6),
        [(114, GsoType::None, true), (94, GsoType::None, true)]
    );
    assert_eq!(shapes(Offloads::TSO4), [(114, GsoType::None, false), (94, GsoType::None, false)]);

    let (frame, header) = PLAIN.partial(&[3; 100]);
    assert_eq!(cut(&frame, &header, Offloads::CSUM).unwrap(), [(frame.clone(), header)]);
    assert_eq!(
        cut(&frame, &header, Offloads::NONE).unwrap(),
        [(PLAIN.complete(&[3; 100]), VnetHdr::default())]
    );
}

#[test]
fn a_lie_is_a_typed_error() {
    let udp = Shape { udp: true, ..PLAIN };
    let v6 = Shape { v6: true, ip_options: 1, ..PLAIN };
    let refuse = |shape: Shape, lie: &dyn Fn(&mut Vec<u8>, &mut VnetHdr)| {
        let (mut frame, mut header) = shape.large(&[9; 200], 100);
        lie(&mut frame, &mut header);
        cut(&frame, &header, Offloads::NONE).unwrap_err()
    };
    let length = |said, bytes| Unsegmentable::Length { said, bytes };
    let wrong = |gso, protocol| Unsegmentable::WrongProtocol { gso, protocol };
    let layout = Unsegmentable::Layout;

    let table = [
        // The type is not the frame's.
        (refuse(PLAIN, &|_, h| h.gso = GsoType::Tcp6), wrong(GsoType::Tcp6, 6)),
        (refuse(PLAIN, &|_, h| h.gso = GsoType::UdpL4), wrong(GsoType::UdpL4, 6)),
        (refuse(v6, &|_, h| h.gso = GsoType::Tcp4), wrong(GsoType::Tcp4, 6)),
        (refuse(udp, &|_, h| h.gso = GsoType::Tcp4), wrong(GsoType::Tcp4, 17)),
        (refuse(udp, &|_, h| h.gso = GsoType::Ufo), Unsegmentable::Ufo),
        // Lengths are not the frame's.
        (refuse(PLAIN, &|f, _| f[17] += 1), length(241, 240)),
        (refuse(PLAIN, &|f, _| f.push(0)), length(240, 241)),
        (refuse(v6, &|f, _| f[19] -= 1), length(227, 228)),
        (refuse(udp, &|f, _| f[39] += 1), length(209, 208)),
        // Headers that are none, are cut short, or are longer than any.
        (refuse(PLAIN, &|f, _| f[12] = 9), layout(LayoutFault::NotIp(0x0900))),
        (refuse(PLAIN, &|f, _| f[14] = 0x65), layout(LayoutFault::Malformed)),
        (refuse(PLAIN, &|f, _| f[14] = 0x44), layout(LayoutFault::Malformed)),
        (refuse(PLAIN, &|f, _| f[20] = 0x20), layout(LayoutFault::Fragment)),
        (refuse(PLAIN, &|f, _| f[21] = 1), layout(LayoutFault::Fragment)),
        (refuse(PLAIN, &|f, _| f[46] = 0x40), layout(LayoutFault::Malformed)),
        (refuse(v6, &|f, _| f[20] = 44), layout(LayoutFault::Fragment)),
        (refuse(v6, &|f, _| f[55] = 255), layout(LayoutFault::Truncated)),
        // Checksums that are not the L4 header's.
        (refuse(PLAIN, &|_, h| h.flags = 0), VnetFault::GsoWithoutCsum.into()),
        (
            refuse(PLAIN, &|_, h| h.csum_start = 14),
            Unsegmentable::ChecksumElsewhere { csum_start: 14, csum_offset: 16, l4: 34 },
        ),
        (
            refuse(PLAIN, &|_, h| h.csum_offset = 6),
            Unsegmentable::ChecksumElsewhere { csum_start: 34, csum_offset: 6, l4: 34 },
        ),
        // Cuts of nothing.
        (refuse(PLAIN, &|_, h| h.gso_size = 0), VnetFault::GsoSizeZero.into()),
    ];
    for (row, (error, expected)) in table.into_iter().enumerate() {
        assert_eq!(error, expected, "row {row}");
    }

    // Headers that go on behind the bytes at hand, at every length of those, and too many headers.
    let (frame, header) = v6.large(&[9; 200], 100);
    for len in 0..v6.header_bytes() {
        let error = Segmenter::new(&frame[..len], frame.len() as u32, &header).unwrap_err();
        assert_eq!(error, layout(LayoutFault::Truncated), "{len} bytes at hand");
    }
    let (mut frame, mut header) = v6.large(&[0; 400], 100);
    // The one extension header grows by 25 units, over what was payload, whose 0 bytes say nothing of
    // TCP; a data offset makes it a header again.
    frame[55] = 25;
    header.csum_start += 25 * 8;
    frame[usize::from(header.csum_start) + 12] = 0x50;
    assert_eq!(cut(&frame, &header, Offloads::NONE), Err(Unsegmentable::HeadersTooLong(282)));
    let plain = Segmenter::new(&frame, frame.len() as u32, &VnetHdr::default());
    assert_eq!(plain.unwrap_err(), Unsegmentable::NotAsked);
}

#[test]
fn a_checksum_of_zero_is_sent_as_ones_by_udp_alone() {
    for (udp, expected) in [(true, [0xff, 0xff]), (false, [0, 0])] {
        let shape = Shape { udp, ..PLAIN };
        // With the checksum itself in the payload, the words add up to 0xffff.
        let (mut frame, mut header) = shape.partial(&[0, 0]);
        finish(&mut frame, &mut header).unwrap();
        let field = shape.l4() + usize::from(shape.csum_offset());
        let word = [frame[field], frame[field + 1]];
        let (mut frame, mut header) = shape.partial(&word);
        finish(&mut frame, &mut header).unwrap();
        assert_eq!(frame[field..field + 2], expected, "udp: {udp}");
    }
}

#[test]
fn a_finished_header_claims_nothing_and_a_plain_one_is_left() {
    let (mut frame, mut header) = PLAIN.partial(b"payload");
    header.flags |= F_DATA_VALID;
    finish(&mut frame, &mut header).unwrap();
    assert_eq!((header, frame.as_slice()), (VnetHdr::default(), PLAIN.complete(b"payload").as_slice()));

    let verified = VnetHdr { flags: F_DATA_VALID, ..VnetHdr::default() };
    let (mut nothing, mut header) = ([], verified);
    finish(&mut nothing, &mut header).unwrap();
    assert_eq!(header, verified);
}

#[test]
fn a_checksum_is_written_nowhere_but_where_checksums_are() {
    let frame = |shape: Shape, protocol: u8| {
        let mut frame = shape.complete(&[7; 64]);
        let field = if shape.v6 { shape.l3() + 6 } else { shape.l3() + 9 };
        frame[field] = protocol;
        frame
    };
    let v6 = Shape { v6: true, ..PLAIN };
    // The L4 protocol, where its header is, and from and to which place (from there) it may be written.
    let table = [
        (PLAIN, 6, 16, usize::MAX),
        (v6, 6, 16, usize::MAX),
        (Shape { vlan_tags: 2, ..PLAIN }, 17, 6, usize::MAX),
        (v6, 136, 6, usize::MAX),
        (PLAIN, 33, 6, usize::MAX),
        (PLAIN, 1, 2, 2),
        (v6, 58, 2, 2),
        (PLAIN, 47, 4, usize::MAX),
        (PLAIN, 50, usize::MAX, 0),
        (PLAIN, 51, usize::MAX, 0),
    ];
    for (shape, protocol, from, to) in table {
        let whole = frame(shape, protocol);
        for field in 0..whole.len() + 2 {
            // The two ways to name a place: from the frame's first byte, and from the L4 header.
            let starts = [0, shape.l4().min(field)];
            for start in starts {
                let mut header = VnetHdr {
                    flags: F_NEEDS_CSUM,
                    csum_start: start as u16,
                    csum_offset: (field - start) as u16,
                    ..VnetHdr::default()
                };
                let mut finished = whole.clone();
                let outcome = finish(&mut finished, &mut header);
                let expected = if field + 2 > whole.len() {
                    Err(Unfinishable::FieldBeyond { field, bytes: whole.len() })
                } else if field.checked_sub(shape.l4()).is_some_and(|offset| (from..=to).contains(&offset)) {
                    Ok(())
                } else {
                    Err(Unfinishable::NotAChecksum { field, protocol })
                };
                assert_eq!(outcome, expected, "protocol {protocol}, field {field} from {start}");
                let unchanged = |range: core::ops::Range<usize>| finished[range.clone()] == whole[range];
                match outcome {
                    Ok(()) => assert!(unchanged(0..field) && unchanged(field + 2..whole.len())),
                    Err(_) => assert!(finished == whole && header.needs_csum()),
                }
            }
        }
    }

    let header = VnetHdr { flags: F_NEEDS_CSUM, csum_start: 14, csum_offset: 14, ..VnetHdr::default() };
    let mut arp = frame(PLAIN, 6);
    arp[13] = 6;
    let not_ip = Unfinishable::Layout(LayoutFault::NotIp(0x0806));
    assert_eq!(finish(&mut arp, &mut header.clone()), Err(not_ip));
    let mut large = VnetHdr { gso: GsoType::Tcp4, gso_size: 9, ..header };
    assert_eq!(finish(&mut arp, &mut large), Err(Unfinishable::Uncut));
}

#[test]
fn a_tunnelled_checksum_is_finished() {
    let inner = Shape { v6: true, ..PLAIN };
    let (packet, header) = inner.partial(b"inside");
    let outer = Shape { udp: true, ..PLAIN };
    let vxlan = [&[8, 0, 0, 0, 0, 0, 77, 0], packet.as_slice()].concat();
    let mut frame = outer.complete(&vxlan);
    let inner_at = outer.header_bytes() + 8;
    let mut header = VnetHdr { csum_start: header.csum_start + inner_at as u16, ..header };
    finish(&mut frame, &mut header).unwrap();
    assert_eq!(inner.read(&frame[inner_at..]), b"inside");
}

proptest! {
    #[test]
    fn cuts_are_the_wire_frames_that_were_meant(
        shape in shapes(), payload in bytes(any::<u8>(), 0..4000), gso_size in 20_u16..1500,
    ) {
        check_cuts(shape, &payload, gso_size);
    }

    /// From the headers alone, with the payload summed apart, and with checksums left partial.
    #[test]
    fn the_ways_to_cut_agree(
        shape in shapes(), payload in bytes(any::<u8>(), 100..4000), gso_size in 20_u16..100,
        more in 0..50_usize,
    ) {
        let (frame, header) = shape.large(&payload, gso_size);
        let finished = cut(&frame, &header, Offloads::NONE).unwrap();
        let head = &frame[..shape.header_bytes() + more];
        let mut segmenter = Segmenter::new(head, frame.len() as u32, &header).unwrap();
        let mut partial = cut(&frame, &header, Offloads::CSUM).unwrap().into_iter();
        for (index, (wire, _)) in finished.iter().enumerate() {
            prop_assert_eq!(segmenter.remaining() as usize, finished.len() - index);
            let mut cut = segmenter.next_cut().unwrap();
            let payload = &frame[cut.payload.start as usize..cut.payload.end as usize];
            cut.finish(sum(payload));
            cut.finish(sum(payload));
            prop_assert_eq!(&[&*cut.headers, payload].concat(), wire);

            let (mut left, mut header) = partial.next().unwrap();
            prop_assert!(header.check(left.len() as u32).is_ok() && header.needs_csum());
            finish(&mut left, &mut header).unwrap();
            prop_assert_eq!(&left, wire);
        }
        prop_assert_eq!(segmenter.remaining(), 0);
        prop_assert!(segmenter.next_cut().is_none() && partial.next().is_none());
        for left_out in 0..=finished.len() {
            let mut segmenter = Segmenter::new(head, frame.len() as u32, &header).unwrap();
            segmenter.skip(left_out as u32);
            prop_assert_eq!(segmenter.remaining() as usize, finished.len() - left_out);
            let next = segmenter.next_cut().map(|cut| cut.headers.len());
            prop_assert_eq!(next, finished.get(left_out).map(|_| shape.header_bytes()));
        }
    }

    #[test]
    fn a_finished_frame_is_the_one_that_etherparse_builds(
        shape in shapes(), payload in bytes(any::<u8>(), 0..2000), split in any::<prop::sample::Index>(),
    ) {
        let complete = shape.complete(&payload);
        let (mut frame, header) = shape.partial(&payload);
        finish(&mut frame, &mut header.clone()).unwrap();
        prop_assert_eq!(&frame, &complete);

        let (mut frame, mut header) = shape.partial(&payload);
        let (head, tail) = frame.split_at_mut(shape.header_bytes() + split.index(payload.len() + 1));
        finish_head(head, &mut header, sum(tail)).unwrap();
        prop_assert_eq!(&frame, &complete);
    }

    /// Of a frame with some bytes broken, what is cut is cut rightly or not at all.
    #[test]
    fn broken_frames_never_panic(
        shape in shapes(), payload in bytes(any::<u8>(), 0..600), mut header in headers(),
        believe in any::<(bool, bool)>(),
        broken in bytes((any::<prop::sample::Index>(), any::<u8>()), 0..4),
    ) {
        let (mut frame, true_header) = shape.large(&payload, header.gso_size);
        for (place, value) in broken {
            // Most breaks are in the headers, where they tell.
            let place = place.index(shape.header_bytes() + 4).min(frame.len() - 1);
            frame[place] = value;
        }
        if believe.0 {
            header = VnetHdr { gso_size: header.gso_size, ..true_header };
        }
        let accept = if believe.1 { Offloads::CSUM } else { Offloads::NONE };
        if let Ok(cuts) = cut(&frame, &header, accept) && header.gso != GsoType::None {
            let headers: Vec<usize> = cuts.iter().map(|(wire, _)| wire.len()).collect();
            let header_bytes = (headers.iter().sum::<usize>() - frame.len()) / (cuts.len() - 1).max(1);
            if cuts.len() > 1 {
                let payload: Vec<u8> = cuts.iter().flat_map(|(wire, _)| &wire[header_bytes..]).copied().collect();
                prop_assert_eq!(&payload, &frame[header_bytes..]);
            }
        }
    }

    #[test]
    fn arbitrary_bytes_never_panic(
        mut frame in bytes(any::<u8>(), 0..300), mut header in headers(), frame_bytes: u32,
    ) {
        let _ = Segmenter::new(&frame, frame_bytes, &header);
        let _ = cut(&frame, &header, Offloads::NONE);
        let _ = finish(&mut frame, &mut header);
    }
}

fn headers() -> impl Strategy<Value = VnetHdr> {
    let gso =
        prop::sample::select(vec![GsoType::None, GsoType::Tcp4, GsoType::Ufo, GsoType::Tcp6, GsoType::UdpL4]);
    (0..4_u8, gso, any::<bool>(), prop_oneof![0..400_u16, any::<u16>()], 0..100_u16, 0..40_u16).prop_map(
        |(flags, gso, ecn, gso_size, csum_start, csum_offset)| {
            let hdr_len = csum_start ^ csum_offset;
            VnetHdr { flags, gso, ecn, hdr_len, gso_size, csum_start, csum_offset }
        },
    )
}
