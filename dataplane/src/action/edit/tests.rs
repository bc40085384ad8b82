use super::*;
use crate::api::PortId;
use crate::key::frames::{Body, L4, Spec, crc32c, ones_sum, spec};
use crate::key::{FlowKey, extract};
use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use hyper_switch_pvnet::header::F_NEEDS_CSUM;
use proptest::prelude::*;
use std::vec::Vec;

fn parse(frame: &[u8]) -> (FlowKey, Layout) {
    let mut key = FlowKey::ZERO;
    let window = &frame[..frame.len().min(HEADER_BYTES)];
    let layout = extract(window, frame.len() as u32, PortId(1), 0, &mut key).expect("well-formed");
    (key, layout)
}

/// The frame that is sent: the header, and what it does not replace of the original.
fn sent(header: &Header, original: &[u8]) -> Vec<u8> {
    [header.bytes(), &original[header.replaces()..]].concat()
}

/// Asserts that etherparse finds all checksums of `frame` right, and a UDP checksum of zero as it was. SCTP,
/// which etherparse does not know, and ICMP of IPv4 are computed here.
fn assert_checksums(frame: &[u8]) {
    let (_, layout) = parse(frame);
    let packet = SlicedPacket::from_ethernet(frame).expect("well-formed");
    let Some(NetSlice::Ipv4(_) | NetSlice::Ipv6(_)) = packet.net else { return };
    if layout.transport == Transport::Sctp {
        let message = &frame[usize::from(layout.l4)..];
        let crc = crc32c(&[&message[..8], &[0; 4], &message[12..]].concat());
        assert_eq!(message[8..12], crc.to_le_bytes(), "SCTP");
    }
    match (packet.net.unwrap(), packet.transport) {
        (NetSlice::Ipv4(ip), transport) => {
            assert_eq!(ip.header().header_checksum(), ip.header().to_header().calc_header_checksum(), "IPv4");
            match transport {
                Some(TransportSlice::Tcp(tcp)) => {
                    let (src, dst) = (ip.header().source(), ip.header().destination());
                    assert_eq!(tcp.checksum(), tcp.calc_checksum_ipv4(src, dst).unwrap(), "TCP");
                }
                Some(TransportSlice::Udp(udp)) if udp.checksum() != 0 => {
                    let sum = udp.to_header().calc_checksum_ipv4(&ip.header().to_header(), udp.payload());
                    assert_eq!(udp.checksum(), sum.unwrap(), "UDP");
                }
                Some(TransportSlice::Icmpv4(icmp)) => assert_eq!(ones_sum(icmp.slice()), 0xffff, "ICMP"),
                _ => {}
            }
        }
        (NetSlice::Ipv6(ip), transport) => {
            let (src, dst) = (ip.header().source(), ip.header().destination());
            match transport {
                Some(TransportSlice::Tcp(tcp)) => {
                    assert_eq!(tcp.checksum(), tcp.calc_checksum_ipv6(src, dst).unwrap(), "TCP");
                }
                Some(TransportSlice::Udp(udp)) if udp.checksum() != 0 => {
                    let sum = udp.to_header().calc_checksum_ipv6(&ip.header().to_header(), udp.payload());
                    assert_eq!(udp.checksum(), sum.unwrap(), "UDP");
                }
                Some(TransportSlice::Icmpv6(icmp)) => assert!(icmp.is_checksum_valid(src, dst), "ICMPv6"),
                _ => {}
            }
        }
        _ => {}
    }
}

fn field() -> impl Strategy<Value = FieldValue> {
    use FieldValue as F;
    // Values beyond a field's width are among them: their excess is to be ignored.
    let links = any::<[u8; 6]>();
    prop_oneof![
        (links, 0..6usize).prop_map(|(address, which)| {
            [F::EthDst, F::EthSrc, F::ArpSha, F::ArpTha, F::NdSll, F::NdTll][which](address)
        }),
        (any::<u16>(), 0..4usize)
            .prop_map(|(number, which)| [F::VlanVid, F::L4Src, F::L4Dst, F::ArpOp][which](number)),
        (any::<u8>(), 0..5usize).prop_map(|(number, which)| {
            [F::VlanPcp, F::IpDscp, F::IpEcn, F::IcmpCode, F::MplsTc][which](number)
        }),
        (any::<u32>(), 0..6usize).prop_map(|(number, which)| {
            [F::Ipv4Src, F::Ipv4Dst, F::Ipv6Flabel, F::ArpSpa, F::ArpTpa, F::MplsLabel][which](number)
        }),
        (any::<[u8; 16]>(), 0..3usize)
            .prop_map(|(address, which)| [F::Ipv6Src, F::Ipv6Dst, F::NdTarget][which](address)),
        // Types that change neither what is parsed behind them nor what etherparse demands of the length.
        (1..5u8).prop_map(F::IcmpType),
        (0x88b5..0x88b7u16).prop_map(F::EthType),
    ]
}

fn action() -> impl Strategy<Value = Action> {
    prop_oneof![
        12 => field().prop_map(Action::Set),
        1 => Just(Action::PushVlan(0x8100)),
        1 => Just(Action::PushVlan(0x88a8)),
        2 => Just(Action::PopVlan),
    ]
}

/// Turns the L4 checksum into a partial one and describes it; the packet is left alone if it has none.
fn make_partial(frame: &mut [u8], layout: Layout) -> VnetHdr {
    let (csum_offset, proto) = match layout.transport {
        Transport::Tcp => (16, 6),
        Transport::Udp => (6, 17),
        Transport::Icmpv6 => (2, 58),
        Transport::Sctp => (8, 132),
        _ => return VnetHdr::default(),
    };
    let (l3, l4) = (usize::from(layout.l3), usize::from(layout.l4));
    let message_bytes = (frame.len() - l4) as u16;
    let addresses =
        if layout.network == Network::Ipv4 { &frame[l3 + 12..l3 + 20] } else { &frame[l3 + 8..l3 + 40] };
    let sum = ones_sum(&[addresses, &[0, proto], &message_bytes.to_be_bytes()].concat());
    if layout.transport != Transport::Sctp {
        frame[l4 + csum_offset..][..2].copy_from_slice(&sum.to_be_bytes());
    }
    VnetHdr {
        flags: F_NEEDS_CSUM,
        csum_start: l4 as u16,
        csum_offset: csum_offset as u16,
        hdr_len: l4 as u16 + 8,
        ..VnetHdr::default()
    }
}

/// Finishes a partial checksum as a device does (VIRTIO 1.2, clause 5.1.6.2).
fn finish(frame: &mut [u8], vnet: &VnetHdr, sctp: bool) {
    if !vnet.needs_csum() {
        return;
    }
    let (start, offset) = (usize::from(vnet.csum_start), usize::from(vnet.csum_offset));
    if sctp {
        frame[start + 8..start + 12].fill(0);
        let crc = crc32c(&frame[start..]);
        frame[start + 8..start + 12].copy_from_slice(&crc.to_le_bytes());
        return;
    }
    let sum = match !ones_sum(&frame[start..]) {
        0 => 0xffff,
        sum => sum,
    };
    frame[start + offset..][..2].copy_from_slice(&sum.to_be_bytes());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// Holds that an edited packet is what its key says: after each of some actions the frame that would be
    /// sent is extracted again and must give the key that `apply_to_key` foretold and the layout that `edit`
    /// left; an action that is refused must leave everything alone. Its checksums are right, whether they
    /// were complete, partial (then they are finished naively first), or a UDP zero, which must stay zero.
    #[test]
    fn editing_agrees_with_extraction_and_keeps_checksums(
        spec in spec(),
        actions in proptest::collection::vec(action(), 1..12),
        partial: bool,
        no_udp_checksum: bool,
    ) {
        let mut original = spec.build();
        let (mut key, mut layout) = parse(&original);
        let mut vnet = VnetHdr::default();
        let l4 = usize::from(layout.l4);
        let udp_zero = layout.transport == Transport::Udp && no_udp_checksum && !partial;
        if udp_zero {
            original[l4 + 6..l4 + 8].fill(0);
        }
        if partial {
            vnet = make_partial(&mut original, layout);
        }
        let mut header = Header::new(&original);
        for action in actions {
            let full = matches!(action, Action::PushVlan(_)) && layout.vlan_tags() == 2;
            if full {
                continue;
            }
            let (mut new_header, mut new_layout, mut new_vnet) = (header, layout, vnet);
            match edit(&[action], &mut new_header, &mut new_layout, &mut new_vnet) {
                Ok(()) => {
                    (header, layout, vnet) = (new_header, new_layout, new_vnet);
                    action.apply_to_key(&mut key);
                    let (again, again_layout) = parse(&sent(&header, &original));
                    prop_assert_eq!(again, key, "{:?}", action);
                    prop_assert_eq!(again_layout, layout, "{:?}", action);
                }
                Err(error) => {
                    prop_assert!(matches!(error, EditError::Missing(_) | EditError::NoTag | EditError::NoHeadroom));
                    prop_assert_eq!(new_header.bytes(), header.bytes());
                    prop_assert_eq!((new_layout, new_vnet), (layout, vnet));
                }
            }
        }
        let mut frame = sent(&header, &original);
        prop_assert_eq!(vnet.hdr_len == 0, !vnet.needs_csum());
        if layout.transport != Transport::None && vnet.needs_csum() {
            prop_assert_eq!(vnet.csum_start, u16::from(layout.l4));
            prop_assert_eq!(vnet.hdr_len, vnet.csum_start + 8);
        }
        finish(&mut frame, &vnet, vnet.csum_offset == 8);
        assert_checksums(&frame);
        if udp_zero && layout.transport == Transport::Udp {
            let at = usize::from(layout.l4) + 6;
            prop_assert_eq!(&frame[at..at + 2], &[0, 0]);
        }
    }

    /// Holds that no layout and no bytes make an edit panic: both are random and do not fit each other.
    #[test]
    fn edits_of_nonsense_do_not_panic(
        bytes in proptest::collection::vec(any::<u8>(), 0..160),
        places in any::<[u8; 4]>(),
        kinds in (0..5usize, 0..7usize),
        vnet in any::<(u8, u16, u16, u16)>(),
        actions in proptest::collection::vec(action(), 1..8),
    ) {
        use Network::{Arp, Ipv4, Ipv6, Mpls};
        use Transport::{Beyond, Icmpv4, Icmpv6, Sctp, Tcp, Udp};
        let mut layout = Layout {
            l3: places[0],
            l4: places[1],
            nd_sll: places[2],
            nd_tll: places[3],
            network: [Network::None, Ipv4, Ipv6, Arp, Mpls][kinds.0],
            transport: [Transport::None, Tcp, Udp, Sctp, Icmpv4, Icmpv6, Beyond][kinds.1],
            ..Layout::default()
        };
        let (flags, hdr_len, csum_start, csum_offset) = vnet;
        let mut vnet = VnetHdr { flags: flags & 1, hdr_len, csum_start, csum_offset, ..VnetHdr::default() };
        let mut header = Header::new(&bytes);
        let _ = edit(&actions, &mut header, &mut layout, &mut vnet);
        prop_assert!(header.bytes().len() <= HEADER_BYTES + HEADROOM);
        prop_assert_eq!(header.replaces(), bytes.len().min(HEADER_BYTES));
    }
}

fn ip4(l4: L4) -> Body {
    Body::Ip4 {
        src: [10, 0, 0, 1],
        dst: [10, 0, 0, 2],
        tos: 0,
        option_words: 0,
        l4,
        payload: [9; 30].to_vec(),
    }
}

fn ip6(l4: L4) -> Body {
    Body::Ip6 { src: [1; 16], dst: [2; 16], tos: 0, flabel: 0, l4, payload: [9; 30].to_vec() }
}

fn spec_of(tags: &[(u8, bool, u16)], body: Body) -> Spec {
    Spec { eth_src: [2, 0, 0, 0, 0, 1], eth_dst: [2, 0, 0, 0, 0, 2], tags: tags.to_vec(), body }
}

const EVERY_FIELD: [FieldValue; 26] = [
    FieldValue::EthDst([1; 6]),
    FieldValue::EthSrc([1; 6]),
    FieldValue::EthType(0x88b5),
    FieldValue::VlanVid(1),
    FieldValue::VlanPcp(1),
    FieldValue::IpDscp(1),
    FieldValue::IpEcn(1),
    FieldValue::Ipv4Src(1),
    FieldValue::Ipv4Dst(1),
    FieldValue::Ipv6Src([1; 16]),
    FieldValue::Ipv6Dst([1; 16]),
    FieldValue::Ipv6Flabel(1),
    FieldValue::L4Src(1),
    FieldValue::L4Dst(1),
    FieldValue::IcmpType(1),
    FieldValue::IcmpCode(1),
    FieldValue::ArpOp(1),
    FieldValue::ArpSpa(1),
    FieldValue::ArpTpa(1),
    FieldValue::ArpSha([1; 6]),
    FieldValue::ArpTha([1; 6]),
    FieldValue::NdTarget([1; 16]),
    FieldValue::NdSll([1; 6]),
    FieldValue::NdTll([1; 6]),
    FieldValue::MplsLabel(1),
    FieldValue::MplsTc(1),
];

/// Holds OpenFlow's prerequisites: on one frame of each kind every field is tried, and exactly those that the
/// kind has can be set.
#[test]
fn a_field_can_be_set_exactly_where_a_packet_has_it() {
    const ETH: &[&str] = &["eth_dst", "eth_src", "eth_type"];
    const IP4: &[&str] = &["ip_dscp", "ip_ecn", "ipv4_src", "ipv4_dst"];
    const IP6: &[&str] = &["ip_dscp", "ip_ecn", "ipv6_src", "ipv6_dst", "ipv6_flabel"];
    const PORTS: &[&str] = &["tp_src", "tp_dst"];
    const ICMP: &[&str] = &["icmp_type", "icmp_code"];
    let arp = Body::Arp { op: 1, sha: [3; 6], spa: [3; 4], tha: [3; 6], tpa: [3; 4] };
    let kinds: [(Spec, &[&[&str]]); 12] = [
        (spec_of(&[], arp), &[&["arp_op", "arp_spa", "arp_tpa", "arp_sha", "arp_tha"]]),
        (spec_of(&[], Body::Mpls { entry: 0x0001_0100 }), &[&["mpls_label", "mpls_tc"]]),
        (spec_of(&[], ip4(L4::Tcp(1, 2))), &[IP4, PORTS]),
        (spec_of(&[(0, false, 1)], ip4(L4::Udp(1, 2))), &[&["vlan_vid", "vlan_pcp"], IP4, PORTS]),
        (spec_of(&[], ip4(L4::Sctp(1, 2))), &[IP4, PORTS]),
        (spec_of(&[], ip4(L4::Icmp(8, 0))), &[IP4, ICMP]),
        (spec_of(&[], ip6(L4::Tcp(1, 2))), &[IP6, PORTS]),
        (spec_of(&[], ip6(L4::Udp(1, 2))), &[IP6, PORTS]),
        (spec_of(&[], ip6(L4::Sctp(1, 2))), &[IP6, PORTS]),
        (spec_of(&[], ip6(L4::Icmp(3, 0))), &[IP6, ICMP]),
        (spec_of(&[], ip6(L4::Nd(true, [5; 16], [6; 6]))), &[IP6, ICMP, &["ipv6_nd_target", "ipv6_nd_sll"]]),
        (spec_of(&[], ip6(L4::Nd(false, [5; 16], [6; 6]))), &[IP6, ICMP, &["ipv6_nd_target", "ipv6_nd_tll"]]),
    ];
    for (spec, has) in kinds {
        let original = spec.build();
        for field in EVERY_FIELD {
            let (_, mut layout) = parse(&original);
            let result = edit(
                &[Action::Set(field)],
                &mut Header::new(&original),
                &mut layout,
                &mut VnetHdr::default(),
            );
            let wanted = ETH.contains(&field.name()) || has.concat().contains(&field.name());
            let expected = if wanted { Ok(()) } else { Err(EditError::Missing(field)) };
            assert_eq!(result, expected, "{spec:?}");
        }
    }
}

/// Holds the bounds of tags: the third push has no room, the pop of a missing tag and a push of something that
/// is no tag protocol are refused, and a `csum_start` that cannot follow is reported. Pops give the room back.
#[test]
fn pushes_and_pops_are_bounded() {
    let original = spec_of(&[], ip4(L4::Udp(1, 2))).build();
    let run = |actions: &[Action], csum_start| {
        let (_, mut layout) = parse(&original);
        let mut vnet = VnetHdr { flags: F_NEEDS_CSUM, csum_start, csum_offset: 6, ..VnetHdr::default() };
        edit(actions, &mut Header::new(&original), &mut layout, &mut vnet)
    };
    let (push, pop) = (Action::PushVlan(0x8100), Action::PopVlan);
    assert_eq!(run(&[push, push, pop, push, pop, pop], 34), Ok(()));
    assert_eq!(run(&[push, push, push], 34), Err(EditError::NoHeadroom));
    assert_eq!(run(&[push, pop, pop], 34), Err(EditError::NoTag));
    assert_eq!(run(&[Action::PushVlan(0x9100)], 34), Err(EditError::BadTag(0x9100)));
    assert_eq!(run(&[push], 0xfffe), Err(EditError::BadCsumStart(0xfffe)));
    assert_eq!(DropReason::from(EditError::NoTag), DropReason::BadEdit);
}

/// Holds that a checksum which is complete is kept complete although `virtio_net_hdr` leaves another one, of
/// a header further in, to be finished.
#[test]
fn a_partial_checksum_further_in_leaves_the_outer_one_complete() {
    let original = spec_of(&[], ip4(L4::Udp(1, 4789))).build();
    let (_, mut layout) = parse(&original);
    let mut vnet = VnetHdr { flags: F_NEEDS_CSUM, csum_start: 50, csum_offset: 6, ..VnetHdr::default() };
    let mut header = Header::new(&original);
    let actions = [Action::Set(FieldValue::Ipv4Dst(0x0a01_0203)), Action::Set(FieldValue::L4Src(77))];
    edit(&actions, &mut header, &mut layout, &mut vnet).expect("the fields are there");
    assert_checksums(&sent(&header, &original));
}

/// Holds that a checksum which would become zero is sent as its other spelling by UDP: ports are set so that the
/// sum over everything is all ones.
#[test]
fn a_udp_checksum_never_becomes_zero() {
    let original = spec_of(&[], ip4(L4::Udp(0, 2))).build();
    let (_, mut layout) = parse(&original);
    let checksum = u16::from_be_bytes([original[40], original[41]]);
    let mut header = Header::new(&original);
    let set = Action::Set(FieldValue::L4Src(checksum));
    edit(&[set], &mut header, &mut layout, &mut VnetHdr::default()).expect("UDP has ports");
    assert_eq!(header.bytes()[40..42], [0xff, 0xff]);
    assert_checksums(header.bytes());
}

/// An IPv6 packet with `extension`, of type `kind`, in front of a TCP header.
fn with_extension(kind: u8, extension: &[u8]) -> Vec<u8> {
    let mut frame = spec_of(&[], ip6(L4::Tcp(1, 2))).build();
    let payload_bytes = (frame.len() - 54 + extension.len()) as u16;
    frame[18..20].copy_from_slice(&payload_bytes.to_be_bytes());
    frame[20] = kind;
    frame.splice(54..54, extension.iter().copied());
    frame
}

/// Holds what an address is worth to the L4 checksum when IPv6 extension headers are there: the destination
/// nothing while a routing header has segments left, the source always; and that an edit is refused when the
/// checksum is behind the copied bytes. The checksum's bytes are compared before and after.
#[test]
fn extension_headers_decide_about_the_pseudo_header() {
    let run = |frame: &[u8], field| {
        let (_, mut layout) = parse(frame);
        let mut header = Header::new(frame);
        let set = [Action::Set(field)];
        edit(&set, &mut header, &mut layout, &mut VnetHdr::default()).map(|()| header)
    };
    for (segments_left, dst_counts) in [(0, true), (1, false)] {
        let frame = with_extension(43, &[6, 0, 0, segments_left, 0, 0, 0, 0]);
        let checksum = |header: Header| header.bytes()[62 + 16..62 + 18] != frame[62 + 16..62 + 18];
        assert_eq!(run(&frame, FieldValue::Ipv6Dst([7; 16])).map(checksum), Ok(dst_counts));
        assert_eq!(run(&frame, FieldValue::Ipv6Src([7; 16])).map(checksum), Ok(true));
    }
    let mut options = [0; 72];
    options[..2].copy_from_slice(&[6, 8]);
    let far = with_extension(60, &options);
    let refused = run(&far, FieldValue::Ipv6Src([7; 16])).map(|_| ());
    assert_eq!(refused, Err(EditError::OutOfReach));
    assert!(run(&far, FieldValue::Ipv6Flabel(7)).is_ok());
}

/// Holds that a fragment's SCTP port is refused, as its CRC covers bytes of other packets, while its addresses,
/// which the CRC does not cover, can be set.
#[test]
fn sctp_ports_of_fragments_are_refused() {
    let mut original = spec_of(&[], ip4(L4::Sctp(1, 2))).build();
    original[20] = 0x20;
    for (field, expected) in
        [(FieldValue::L4Dst(9), Err(EditError::OutOfReach)), (FieldValue::Ipv4Dst(9), Ok(()))]
    {
        let (_, mut layout) = parse(&original);
        let mut header = Header::new(&original);
        let set = [Action::Set(field)];
        assert_eq!(edit(&set, &mut header, &mut layout, &mut VnetHdr::default()), expected);
    }
}
