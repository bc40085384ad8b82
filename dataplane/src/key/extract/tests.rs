use super::*;
use crate::key::frames::{Body, L4, Spec, spec};
use crate::key::usual::{self, START_BYTES};
use crate::key::{FLAG_COLD, HEADER_BYTES, Match};
use etherparse::{LinkExtSlice, NetSlice, SlicedPacket, TransportSlice};
use proptest::prelude::*;
use std::vec::Vec;

const PORT: PortId = PortId(7);

/// Extracts as the switch does: from the copied bytes, into a key that a packet of another kind left behind.
fn parse(frame: &[u8]) -> Result<(FlowKey, Layout), Malformed> {
    let mut key = FlowKey { flags: FLAG_COLD, ..FlowKey::ZERO };
    (key.ip6_src, key.nd_target, key.hw_src, key.metadata) = ([9; 16], [9; 16], [9; 6], 9);
    (key.ip6_exthdr, key.ip4_dst, key.l4_dst, key.inner_vlan_tci) = (9, 9, 9, 9);
    let window = &frame[..frame.len().min(HEADER_BYTES)];
    let layout = extract(window, frame.len() as u32, PORT, 0x1_0000_0001, &mut key)?;
    assert_eq!(key, key.with_flags(), "FLAG_COLD says what is in the second line");
    assert_usual(frame, &key);
    Ok((key, layout))
}

/// Holds that the fast way, for the packets that it knows, makes the same key; and that it knows no others.
fn assert_usual(frame: &[u8], key: &FlowKey) {
    let Some(start) = frame.first_chunk::<START_BYTES>() else { return };
    let mut fast = FlowKey { ip6_src: [9; 16], flags: FLAG_COLD, ..FlowKey::ZERO };
    let line = usual::key_line(transmute!(*start), frame.len() as u32, PORT);
    let is_usual = key.eth_type == ETH_IPV4
        && (key.vlan_tpid, key.ip_frag) == (0, 0)
        && matches!(key.ip_proto, IP_TCP | IP_UDP)
        && frame[14] == 0x45
        && usize::from(be16([frame[16], frame[17]])) >= if key.ip_proto == IP_TCP { 40 } else { 28 };
    assert_eq!(line.is_some(), is_usual);
    if let Some(line) = line {
        fast.set_line(line);
        assert_eq!(FlowKey { tunnel_id: key.tunnel_id, ..fast }, *key);
    }
}

/// What the key of a frame holds before anything of the frame is in it.
fn blank() -> FlowKey {
    FlowKey { in_port: 7, tunnel_id: 0x1_0000_0001, ..FlowKey::ZERO }
}

/// The key as etherparse sees the frame. Neighbour messages, SCTP and MPLS, which it leaves as payload, are
/// taken from what the frame was made of.
fn oracle(spec: &Spec, frame: &[u8]) -> FlowKey {
    let packet = SlicedPacket::from_ethernet(frame).expect("well-formed");
    let Some(etherparse::LinkSlice::Ethernet2(eth)) = &packet.link else { panic!("no Ethernet") };
    let mut key = FlowKey { eth_src: eth.source(), eth_dst: eth.destination(), ..blank() };
    key.eth_type = packet.ether_payload().map_or(0, |payload| payload.ether_type.0);
    let mut tpid = eth.ether_type().0;
    let mut tags = packet.link_exts.iter().map(|ext| {
        let LinkExtSlice::Vlan(tag) = ext else { panic!("no VLAN tag") };
        let pcp = u16::from(tag.priority_code_point().value()) << 13;
        let tci = pcp | VLAN_PRESENT | tag.vlan_identifier().value();
        (core::mem::replace(&mut tpid, tag.ether_type().0), tci)
    });
    (key.vlan_tpid, key.vlan_tci) = tags.next().unwrap_or_default();
    (key.inner_vlan_tpid, key.inner_vlan_tci) = tags.next().unwrap_or_default();
    match &packet.net {
        Some(NetSlice::Arp(arp)) => {
            key.l4_src = arp.operation().0;
            key.hw_src = arp.sender_hw_addr().try_into().unwrap();
            key.hw_dst = arp.target_hw_addr().try_into().unwrap();
            key.ip4_src = u32::from_be_bytes(arp.sender_protocol_addr().try_into().unwrap());
            key.ip4_dst = u32::from_be_bytes(arp.target_protocol_addr().try_into().unwrap());
        }
        Some(NetSlice::Ipv4(ip)) => {
            key.ip4_src = u32::from(ip.header().source_addr());
            key.ip4_dst = u32::from(ip.header().destination_addr());
            key.ip_tos = ip.header().dcp().value() << 2 | ip.header().ecn().value();
            key.ip_proto = ip.header().protocol().0;
        }
        Some(NetSlice::Ipv6(ip)) => {
            key.ip6_src = ip.header().source();
            key.ip6_dst = ip.header().destination();
            key.ip6_flabel = ip.header().flow_label().value();
            key.ip_tos = ip.header().traffic_class();
            key.ip_proto = ip.header().next_header().0;
        }
        None => {}
    }
    match &packet.transport {
        Some(TransportSlice::Tcp(tcp)) => {
            (key.l4_src, key.l4_dst) = (tcp.source_port(), tcp.destination_port());
        }
        Some(TransportSlice::Udp(udp)) => {
            (key.l4_src, key.l4_dst) = (udp.source_port(), udp.destination_port());
        }
        Some(TransportSlice::Icmpv4(icmp)) => {
            (key.l4_src, key.l4_dst) = (icmp.type_u8().into(), icmp.code_u8().into());
        }
        Some(TransportSlice::Icmpv6(icmp)) => {
            (key.l4_src, key.l4_dst) = (icmp.type_u8().into(), icmp.code_u8().into());
        }
        _ => {}
    }
    match spec.body {
        Body::Mpls { entry } => key.ip4_src = entry & !0xff,
        Body::Ip6 { l4: L4::Nd(solicit, target, address), .. } => {
            key.nd_target = target;
            *(if solicit { &mut key.hw_src } else { &mut key.hw_dst }) = address;
        }
        Body::Ip4 { l4: L4::Sctp(src, dst), .. } | Body::Ip6 { l4: L4::Sctp(src, dst), .. } => {
            (key.l4_src, key.l4_dst) = (src, dst);
        }
        _ => {}
    }
    key.with_flags()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// Holds that extraction and etherparse see the same in frames of every kind, whether Ethernet padding
    /// follows or not.
    #[test]
    fn extraction_agrees_with_etherparse(spec in spec(), padding in 0..40usize) {
        let frame = spec.build();
        let expected = oracle(&spec, &frame);
        let padded = [&frame[..], &std::vec![0xee; padding]].concat();
        prop_assert_eq!(parse(&padded).unwrap().0, expected);
    }

    /// Holds that arbitrary bytes neither panic nor give a layout that points out of the copied bytes, and that
    /// bytes which look like a header by their first few get as far as possible.
    #[test]
    fn arbitrary_bytes_do_not_panic(
        mut bytes in proptest::collection::vec(any::<u8>(), 0..300),
        tags in 0..3usize,
        eth_type in proptest::sample::select(std::vec![0x0800u16, 0x86dd, 0x0806, 0x8847, 0x8100, 5, 0x9000]),
        proto in proptest::sample::select(std::vec![0u8, 1, 6, 17, 43, 44, 50, 51, 58, 59, 60, 132]),
        ihl in 0..16u8,
    ) {
        let l3 = 14 + 4 * tags;
        if bytes.len() > l3 + 10 {
            (0..tags).for_each(|tag| bytes[12 + 4 * tag..][..2].copy_from_slice(&[0x81, 0]));
            bytes[l3 - 2..l3].copy_from_slice(&eth_type.to_be_bytes());
            let ip_bytes = (bytes.len() - l3) as u16;
            if eth_type == 0x0800 {
                (bytes[l3], bytes[l3 + 9]) = (0x40 | ihl, proto);
                bytes[l3 + 2..l3 + 4].copy_from_slice(&ip_bytes.to_be_bytes());
            } else {
                bytes[l3 + 4..l3 + 6].copy_from_slice(&ip_bytes.saturating_sub(40).to_be_bytes());
                bytes[l3 + 6] = proto;
            }
        }
        if let Ok((_, layout)) = parse(&bytes) {
            let window = bytes.len().min(HEADER_BYTES);
            prop_assert!(usize::from(layout.l3) <= window);
            for at in [layout.l4, layout.nd_sll, layout.nd_tll] {
                prop_assert!(at == 0 || usize::from(at) + 6 <= window);
            }
        }
    }

    /// Holds the prefix property: with fewer bytes at hand than the frame has, each field is that of the whole
    /// frame or zero, or the frame is refused.
    #[test]
    fn fewer_bytes_give_no_other_fields(spec in spec(), cut in 0..HEADER_BYTES) {
        let frame = spec.build();
        let (whole, _) = parse(&frame).unwrap();
        let mut key = FlowKey::ZERO;
        let header = &frame[..cut.min(frame.len())];
        if extract(header, frame.len() as u32, PORT, 0x1_0000_0001, &mut key).is_ok() {
            for (field, whole) in fields(&key).iter().zip(fields(&whole)) {
                prop_assert!(*field == whole || field.iter().all(|byte| *byte == 0), "{}", key);
            }
        }
    }
}

/// The fields of a key, one by one; without `flags`, which is about the key.
fn fields(key: &FlowKey) -> Vec<Vec<u8>> {
    let FlowKey { ip_proto, ip_tos, ip_frag, eth_dst, eth_src, ip6_src, ip6_dst, nd_target, .. } = *key;
    let numbers = [
        u64::from(key.in_port),
        ip_proto.into(),
        ip_tos.into(),
        ip_frag.into(),
        key.eth_type.into(),
        key.vlan_tpid.into(),
        key.vlan_tci.into(),
        key.inner_vlan_tpid.into(),
        key.inner_vlan_tci.into(),
        key.ip6_exthdr.into(),
        key.ip4_src.into(),
        key.ip4_dst.into(),
        key.l4_src.into(),
        key.l4_dst.into(),
        key.ip6_flabel.into(),
        key.metadata,
        key.tunnel_id,
    ];
    let mut fields: Vec<Vec<u8>> = numbers.iter().map(|number| number.to_be_bytes().to_vec()).collect();
    fields.extend([ip6_src, ip6_dst, nd_target].map(|bytes| bytes.to_vec()));
    fields.extend([eth_dst, eth_src, key.hw_src, key.hw_dst].map(|bytes| bytes.to_vec()));
    fields
}

/// An Ethernet header with these tags and types behind the addresses, then `rest`.
fn ethernet(types: &[u8], rest: &[u8]) -> Vec<u8> {
    [&[0xd; 6], &[0x5; 6], types, rest].concat()
}

/// An IPv4 packet of UDP from port 1 to port 2, with these bytes for flags and fragment offset.
fn udp4(fragment: [u8; 2]) -> Vec<u8> {
    let [f0, f1] = fragment;
    let ip = [0x45, 0, 0, 28, 0, 0, f0, f1, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2];
    [&ip[..], &[0, 1, 0, 2, 0, 8, 0, 0]].concat()
}

/// An IPv6 packet whose first next header is `next`, with `payload`.
fn ip6(next: u8, payload: &[u8]) -> Vec<u8> {
    let [l0, l1] = (payload.len() as u16).to_be_bytes();
    [&[0x6a, 0xb1, 0x23, 0x45, l0, l1, next, 64], &[0xaa; 16][..], &[0xbb; 16], payload].concat()
}

const UDP: [u8; 8] = [0, 1, 0, 2, 0, 8, 0, 0];

/// Holds the layers below IP by hand-written frames: tag protocols, a third tag, length fields, MPLS, and ARP of
/// other networks.
#[test]
fn ethernet_frames() {
    let key_of = |types: &[u8], rest: &[u8]| parse(&ethernet(types, rest)).unwrap();
    let eth = FlowKey { eth_dst: [0xd; 6], eth_src: [0x5; 6], ..blank() };

    let (key, layout) = key_of(&[0x88, 0xa8, 0xb0, 5, 0x81, 0, 0x10, 7, 0x90, 0], &[]);
    let tagged = FlowKey {
        vlan_tpid: 0x88a8,
        vlan_tci: 0xb005,
        inner_vlan_tpid: 0x8100,
        inner_vlan_tci: 0x1007,
        eth_type: 0x9000,
        ..eth
    };
    assert_eq!((key, layout.vlan_tags(), layout.l3), (tagged, 2, 22));

    let (key, layout) = key_of(&[0x88, 0xa8, 0xb0, 5, 0x81, 0, 0x10, 7, 0x81, 0, 0, 9, 8, 0], &udp4([0, 0]));
    assert_eq!((key, layout.network), (FlowKey { eth_type: 0x8100, ..tagged }, Network::None));

    let (key, _) = key_of(&[0x05, 0xdc], &[0xaa; 50]);
    assert_eq!(key, eth);

    for eth_type in [0x8847, 0x8848u16] {
        let (key, layout) = key_of(&eth_type.to_be_bytes(), &[0x12, 0x34, 0x5b, 64, 0x45]);
        assert_eq!(key, FlowKey { eth_type, ip4_src: 0x1234_5b00, ..eth });
        assert_eq!(layout.network, Network::Mpls);
    }
    let (key, layout) = key_of(&[0x88, 0x47], &[0x12, 0x34, 0x5b]);
    assert_eq!((key, layout.network), (FlowKey { eth_type: 0x8847, ..eth }, Network::None));

    let infiniband = [&[0, 32, 8, 0, 20, 4, 0, 1][..], &[1; 48]].concat();
    let (key, layout) = key_of(&[8, 6], &infiniband);
    assert_eq!((key, layout.network), (FlowKey { eth_type: 0x0806, ..eth }, Network::None));
}

/// Holds that the first fragment has its L4 header and later ones have none, in both IP versions.
#[test]
fn fragments() {
    let first = FRAG_ANY;
    let later = FRAG_ANY | FRAG_LATER;
    for (fragment, frag, ports) in [
        ([0x40, 0], 0, (1, 2)),
        ([0x20, 0], first, (1, 2)),
        ([0x20, 5], later, (0, 0)),
        ([0, 5], later, (0, 0)),
    ] {
        let (key, layout) = parse(&ethernet(&[8, 0], &udp4(fragment))).unwrap();
        assert_eq!((key.ip_proto, key.ip_frag, (key.l4_src, key.l4_dst)), (17, frag, ports));
        assert_eq!((layout.l4 != 0, layout.fragment), (ports != (0, 0), frag != 0));
    }
    for (offset, frag, ports) in
        [([0, 0], 0, (1, 2)), ([0, 1], first, (1, 2)), ([0, 9], later, (0, 0)), ([0, 8], later, (0, 0))]
    {
        let payload = [&[17, 0, offset[0], offset[1], 0, 0, 0, 1], &UDP[..]].concat();
        let (key, layout) = parse(&ethernet(&[0x86, 0xdd], &ip6(44, &payload))).unwrap();
        assert_eq!((key.ip_proto, key.ip_frag, (key.l4_src, key.l4_dst)), (17, frag, ports));
        assert_eq!((key.ip6_exthdr, layout.fragment), (exthdr::FRAG, frag != 0));
    }
}

/// Holds `ipv6_exthdr`: chains of extension headers, in and out of the order that RFC 2460 prefers, their bits, and
/// the protocol and port that are found behind them.
#[test]
fn ipv6_extension_headers() {
    use exthdr::{AUTH, DEST, ESP, FRAG, HOP, NO_NEXT, ROUTER, UNREP, UNSEQ};
    let cases: [(&[u8], u8, u16); 17] = [
        (&[], 17, 0),
        (&[0], 17, HOP),
        (&[60], 17, DEST),
        (&[0, 60, 43, 44, 51, 60], 17, HOP | DEST | ROUTER | FRAG | AUTH),
        (&[43, 60], 17, ROUTER | DEST),
        (&[60, 60], 17, DEST),
        (&[60, 60, 60], 17, DEST | UNREP),
        (&[60, 60, 43], 17, DEST | ROUTER | UNSEQ),
        (&[0, 0], 17, HOP | UNREP | UNSEQ),
        (&[43, 0], 17, ROUTER | UNSEQ),
        (&[43, 43], 17, ROUTER | UNREP),
        (&[51, 44], 17, AUTH | FRAG | UNSEQ),
        (&[44, 44], 17, FRAG | UNREP),
        (&[], 50, ESP),
        (&[51], 50, AUTH | ESP),
        (&[60], 59, DEST | NO_NEXT),
        (&[], 59, NO_NEXT),
    ];
    for (chain, last, bits) in cases {
        let nexts = chain.iter().skip(1).copied().chain([last]);
        let headers = chain.iter().zip(nexts).flat_map(|(kind, next)| {
            // An authentication header counts its length in other units: 4 bytes, less 2.
            let length = if *kind == 51 { 4 } else { 0 };
            let bytes = if *kind == 51 { 24 } else { 8 };
            let mut header = std::vec![0; bytes];
            (header[0], header[1]) = (next, length);
            header
        });
        let payload: Vec<u8> = headers.chain(UDP).collect();
        let frame = ethernet(&[0x86, 0xdd], &ip6(*chain.first().unwrap_or(&last), &payload));
        let (key, layout) = parse(&frame).unwrap();
        assert_eq!((key.ip_proto, key.ip6_exthdr), (last, bits), "{chain:?}");
        let ports = if last == 17 { (1, 2) } else { (0, 0) };
        assert_eq!((key.l4_src, key.l4_dst), ports, "{chain:?}");
        assert_eq!(usize::from(layout.l4), if last == 17 { frame.len() - 8 } else { 0 }, "{chain:?}");
        assert_eq!((key.ip_tos, key.ip6_flabel), (0xab, 0x12345));
    }
}

/// Holds what is said of a header that is not there: behind the copied bytes it may be, behind the end of the
/// packet it is not. Padding is never read as a header.
#[test]
fn headers_out_of_reach() {
    let long = [&[17, 8], &[0; 70][..], &UDP].concat();
    let (key, layout) = parse(&ethernet(&[0x86, 0xdd], &ip6(60, &long))).unwrap();
    assert_eq!((key.ip_proto, key.l4_dst, layout.transport), (17, 0, Transport::Beyond));

    let longer = [&[43, 9], &[0; 78][..], &[17, 0, 0, 0, 0, 0, 0, 0], &UDP].concat();
    let (key, layout) = parse(&ethernet(&[0x86, 0xdd], &ip6(60, &longer))).unwrap();
    assert_eq!((key.ip_proto, layout.transport), (43, Transport::Beyond));
    assert_eq!(key.ip6_exthdr, exthdr::DEST | exthdr::ROUTER);

    let missing = [&ip6(60, &[17, 3, 0, 0, 0, 0, 0, 0])[..], &[0xee; 60]].concat();
    let (key, layout) = parse(&ethernet(&[0x86, 0xdd], &missing)).unwrap();
    assert_eq!((key.l4_src, layout.transport), (0, Transport::None));

    let mut empty = udp4([0, 0]);
    empty[3] = 20;
    let (key, layout) = parse(&ethernet(&[8, 0], &empty)).unwrap();
    assert_eq!((key.ip_proto, key.l4_src, layout.transport), (17, 0, Transport::None));
}

/// Holds the walk over ND options: one of length zero ends it, one of another length is not an address.
#[test]
fn neighbour_options_are_bounded() {
    let nd = |options: &[u8]| {
        let message = [&[135, 0, 0, 0, 0, 0, 0, 0], &[0xcc; 16][..], options].concat();
        let (key, layout) = parse(&ethernet(&[0x86, 0xdd], &ip6(58, &message))).unwrap();
        (key.nd_target, key.hw_src, layout.nd_sll)
    };
    let sll = [1, 1, 2, 2, 2, 2, 2, 2];
    assert_eq!(nd(&sll), ([0xcc; 16], [2; 6], 80));
    assert_eq!(nd(&[&[1, 2][..], &[3; 14], &sll].concat()), ([0xcc; 16], [2; 6], 96));
    assert_eq!(nd(&[&[5, 0, 0, 0, 0, 0, 0, 0][..], &sll].concat()), ([0xcc; 16], [0; 6], 0));
    assert_eq!(nd(&[5, 255, 0, 0, 0, 0, 0, 0]), ([0xcc; 16], [0; 6], 0));
    assert_eq!(nd(&sll[..7]), ([0xcc; 16], [0; 6], 0));
}

/// Holds each way to be malformed, at its boundary: one byte or one unit more would be well-formed.
#[test]
fn malformed_frames() {
    let patch = |at: usize, value: u8| {
        let mut frame = ethernet(&[8, 0], &udp4([0, 0]));
        frame[at] = value;
        parse(&frame).err()
    };
    let cut = |types: &[u8], rest: &[u8], bytes: usize| parse(&ethernet(types, rest)[..bytes]).err();
    assert_eq!(cut(&[0x90, 0], &[], 13), Some(Malformed::Truncated));
    assert_eq!(cut(&[0x90, 0], &[], 14), None);
    assert_eq!(cut(&[0x81, 0, 0, 1, 0x90, 0], &[], 17), Some(Malformed::BadVlan));
    assert_eq!(cut(&[0x81, 0, 0, 1, 0x90, 0], &[], 18), None);
    assert_eq!(cut(&[0x81, 0, 0, 1, 0x81, 0, 0, 2, 0x90, 0], &[], 21), Some(Malformed::BadVlan));
    assert_eq!(cut(&[8, 0], &udp4([0, 0]), 33), Some(Malformed::BadIpLength));
    assert_eq!(cut(&[8, 0], &udp4([0, 0]), 41), Some(Malformed::BadIpLength));
    assert_eq!(cut(&[8, 0], &udp4([0, 0]), 42), None);
    assert_eq!(patch(14, 0x44), Some(Malformed::BadIpLength));
    assert_eq!(patch(14, 0x47), None);
    assert_eq!(patch(14, 0x48), Some(Malformed::BadIpLength));
    assert_eq!(patch(17, 19), Some(Malformed::BadIpLength));
    assert_eq!(patch(17, 20), None);
    assert_eq!(patch(17, 29), Some(Malformed::BadIpLength));
    assert_eq!(cut(&[0x86, 0xdd], &ip6(17, &UDP), 53), Some(Malformed::BadIpLength));
    assert_eq!(cut(&[0x86, 0xdd], &ip6(17, &UDP), 61), Some(Malformed::BadIpLength));
    assert_eq!(cut(&[0x86, 0xdd], &ip6(17, &UDP), 62), None);
    let reasons = [Malformed::Truncated, Malformed::BadVlan, Malformed::BadIpLength].map(DropReason::from);
    assert_eq!(reasons, [DropReason::Truncated, DropReason::BadVlan, DropReason::BadIpLength]);
}

/// Holds that a match covers exactly the keys that agree with it wherever its mask has a bit: each bit of the key
/// in turn is flipped, inside of the mask and outside.
#[test]
fn a_match_covers_what_differs_outside_of_its_mask_only() {
    let frame = ethernet(&[0x86, 0xdd], &ip6(17, &UDP));
    let (key, _) = parse(&frame).unwrap();
    let mask = FlowKey { l4_dst: 0xff00, ip6_src: [0xf0; 16], eth_type: 0xffff, ..FlowKey::ZERO };
    let matches = Match::new(key, mask);
    for bit in 0..1024 {
        let mut words = *key.words();
        words[bit / 64] ^= 1 << (bit % 64);
        let flipped: FlowKey = transmute!(words);
        let counts = mask.words()[bit / 64] >> (bit % 64) & 1 != 0;
        assert_eq!(matches.covers(&flipped), !counts, "bit {bit}");
    }
}
