//! Frames for tests: well-formed ones with random content, which etherparse builds, and their parts.

use core::iter::repeat_n;
use etherparse::{
    ArpHardwareId, ArpOperation, ArpPacket, DoubleVlanHeader, EtherType, IpHeaders, IpNumber, Ipv4Header,
    Ipv6FlowLabel, Ipv6Header, PacketBuilder, SingleVlanHeader, VlanHeader, VlanId, VlanPcp,
};
use proptest::prelude::*;
use std::vec::Vec;

/// What a frame is to be made of.
#[derive(Clone, Debug)]
pub(crate) struct Spec {
    pub(crate) eth_src: [u8; 6],
    pub(crate) eth_dst: [u8; 6],
    /// Priority, drop eligibility and VLAN id, the outer tag first.
    pub(crate) tags: Vec<(u8, bool, u16)>,
    pub(crate) body: Body,
}

#[derive(Clone, Debug)]
pub(crate) enum Body {
    Arp { op: u16, sha: [u8; 6], spa: [u8; 4], tha: [u8; 6], tpa: [u8; 4] },
    Ip4 { src: [u8; 4], dst: [u8; 4], tos: u8, option_words: usize, l4: L4, payload: Vec<u8> },
    Ip6 { src: [u8; 16], dst: [u8; 16], tos: u8, flabel: u32, l4: L4, payload: Vec<u8> },
    Mpls { entry: u32 },
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum L4 {
    Tcp(u16, u16),
    Udp(u16, u16),
    Sctp(u16, u16),
    /// Type and code of an ICMP message of the IP version at hand.
    Icmp(u8, u8),
    /// A neighbour solicitation or advertisement of a target, and its link-layer address option.
    Nd(bool, [u8; 16], [u8; 6]),
}

impl Spec {
    /// The frame's bytes, all checksums right.
    pub(crate) fn build(&self) -> Vec<u8> {
        let eth = PacketBuilder::ethernet2(self.eth_src, self.eth_dst);
        let tag = |&(pcp, drop_eligible_indicator, vid): &(u8, bool, u16)| SingleVlanHeader {
            pcp: VlanPcp::try_new(pcp).unwrap(),
            drop_eligible_indicator,
            vlan_id: VlanId::try_new(vid).unwrap(),
            ether_type: EtherType(0),
        };
        let vlan = match &self.tags[..] {
            [] => None,
            [one] => Some(VlanHeader::Single(tag(one))),
            [outer, inner, ..] => {
                Some(VlanHeader::Double(DoubleVlanHeader { outer: tag(outer), inner: tag(inner) }))
            }
        };
        let mut frame = Vec::new();
        match &self.body {
            Body::Mpls { entry } => {
                // The builder does not know MPLS: an ARP frame lends its Ethernet header and tags.
                let body = Body::Arp { op: 1, sha: [0; 6], spa: [0; 4], tha: [0; 6], tpa: [0; 4] };
                frame = Spec { body, ..self.clone() }.build();
                frame.truncate(14 + 4 * self.tags.len());
                let type_at = frame.len() - 2;
                frame[type_at..].copy_from_slice(&0x8847u16.to_be_bytes());
                frame.extend(entry.to_be_bytes());
                frame.extend([0x45; 42]);
            }
            Body::Arp { op, sha, spa, tha, tpa } => {
                let (hw, proto) = (ArpHardwareId::ETHERNET, EtherType::IPV4);
                let arp = ArpPacket::new(hw, proto, ArpOperation(*op), sha, spa, tha, tpa).unwrap();
                match vlan {
                    Some(vlan) => eth.vlan(vlan).arp(arp).write(&mut frame),
                    None => eth.arp(arp).write(&mut frame),
                }
                .unwrap();
            }
            Body::Ip4 { l4, payload, .. } | Body::Ip6 { l4, payload, .. } => {
                let ip = match vlan {
                    Some(vlan) => eth.vlan(vlan).ip(self.ip()),
                    None => eth.ip(self.ip()),
                };
                let version4 = matches!(self.body, Body::Ip4 { .. });
                match *l4 {
                    L4::Tcp(src, dst) => ip.tcp(src, dst, 1, 2).write(&mut frame, payload).unwrap(),
                    L4::Udp(src, dst) => ip.udp(src, dst).write(&mut frame, payload).unwrap(),
                    L4::Icmp(kind, code) if version4 => {
                        ip.icmpv4_raw(kind, code, [1, 2, 3, 4]).write(&mut frame, payload).unwrap();
                    }
                    L4::Icmp(kind, code) => {
                        ip.icmpv6_raw(kind, code, [1, 2, 3, 4]).write(&mut frame, payload).unwrap();
                    }
                    L4::Nd(solicit, target, address) => {
                        let (kind, option) = if solicit { (135, 1) } else { (136, 2) };
                        // A nonce option (RFC 3971) goes first, so that the wanted one has to be looked for.
                        let message =
                            [&target[..], &[14, 1, 1, 2, 3, 4, 5, 6], &[option, 1], &address].concat();
                        ip.icmpv6_raw(kind, 0, [0; 4]).write(&mut frame, &message).unwrap();
                    }
                    L4::Sctp(src, dst) => {
                        let mut message = [&src.to_be_bytes()[..], &dst.to_be_bytes(), &[7; 8]].concat();
                        message[8..].fill(0);
                        message.extend(payload);
                        let crc = crc32c(&message);
                        message[8..12].copy_from_slice(&crc.to_le_bytes());
                        ip.write(&mut frame, IpNumber(132), &message).unwrap();
                    }
                }
            }
        }
        frame
    }

    fn ip(&self) -> IpHeaders {
        match &self.body {
            Body::Ip4 { src, dst, tos, option_words, .. } => {
                let mut header = Ipv4Header::new(0, 64, IpNumber(0), *src, *dst).unwrap();
                header.dscp = (tos >> 2).try_into().unwrap();
                header.ecn = (tos & 3).try_into().unwrap();
                let options: Vec<u8> = repeat_n(1, option_words * 4).collect();
                header.options = options[..].try_into().unwrap();
                IpHeaders::Ipv4(header, Default::default())
            }
            Body::Ip6 { src, dst, tos, flabel, .. } => {
                let header = Ipv6Header {
                    traffic_class: *tos,
                    flow_label: Ipv6FlowLabel::try_new(*flabel).unwrap(),
                    hop_limit: 255,
                    source: *src,
                    destination: *dst,
                    ..Ipv6Header::default()
                };
                IpHeaders::Ipv6(header, Default::default())
            }
            Body::Arp { .. } | Body::Mpls { .. } => unreachable!("neither has an IP header"),
        }
    }
}

/// CRC32c of `bytes`, a bit at a time.
pub(crate) fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0u32, |crc, byte| {
        (0..8).fold(
            crc ^ u32::from(*byte),
            |crc, _| if crc & 1 != 0 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 },
        )
    })
}

/// One's complement sum of `bytes` (RFC 1071), a word at a time; 0xffff if a checksum among them is right.
pub(crate) fn ones_sum(bytes: &[u8]) -> u16 {
    bytes.chunks(2).fold(0, |sum, word| {
        let word = u16::from_be_bytes([word[0], word.get(1).copied().unwrap_or(0)]);
        let (sum, carry) = u16::overflowing_add(sum, word);
        sum + u16::from(carry)
    })
}

fn l4(version4: bool) -> impl Strategy<Value = L4> {
    // ICMP types whose message is not told apart by OpenFlow, and which etherparse takes at any length.
    let kind = if version4 { 0..9u8 } else { 1..5u8 };
    prop_oneof![
        any::<(u16, u16)>().prop_map(|(src, dst)| L4::Tcp(src, dst)),
        any::<(u16, u16)>().prop_map(|(src, dst)| L4::Udp(src, dst)),
        any::<(u16, u16)>().prop_map(|(src, dst)| L4::Sctp(src, dst)),
        (kind, any::<u8>()).prop_map(|(kind, code)| L4::Icmp(kind, code)),
        any::<(bool, [u8; 16], [u8; 6])>().prop_map(move |(solicit, target, address)| match version4 {
            true => L4::Icmp(3, 1),
            false => L4::Nd(solicit, target, address),
        }),
    ]
}

/// Any frame that a [`Spec`] can say.
pub(crate) fn spec() -> impl Strategy<Value = Spec> {
    let payload = || proptest::collection::vec(any::<u8>(), 0..200);
    let body =
        prop_oneof![
            any::<(u16, [u8; 6], [u8; 4], [u8; 6], [u8; 4])>()
                .prop_map(|(op, sha, spa, tha, tpa)| Body::Arp { op, sha, spa, tha, tpa }),
            (any::<([u8; 4], [u8; 4], u8)>(), 0..=10usize, l4(true), payload()).prop_map(
                |((src, dst, tos), option_words, l4, payload)| Body::Ip4 {
                    src,
                    dst,
                    tos,
                    option_words,
                    l4,
                    payload
                }
            ),
            (any::<([u8; 16], [u8; 16], u8)>(), 0..1u32 << 20, l4(false), payload()).prop_map(
                |((src, dst, tos), flabel, l4, payload)| Body::Ip6 { src, dst, tos, flabel, l4, payload }
            ),
            any::<u32>().prop_map(|entry| Body::Mpls { entry }),
        ];
    let tags = proptest::collection::vec((0..8u8, any::<bool>(), 0..4096u16), 0..=2);
    (any::<([u8; 6], [u8; 6])>(), tags, body).prop_map(|((eth_src, eth_dst), tags, body)| Spec {
        eth_src,
        eth_dst,
        tags,
        body,
    })
}
