//! Key extraction and edits, against etherparse and against each other.
//!
//! Input: the number of actions, 17 bytes each, and a frame.
//!
//! - The key of a frame that etherparse understands has the fields that etherparse finds.
//! - The fast way for the usual packet makes the same key.
//! - Edits that apply make the packet whose key is the one that they were said to make, touch no byte behind the
//!   headers, and leave every checksum right that was right.

use super::input::Input;
use etherparse::{LinkExtSlice, LinkSlice, NetSlice, SlicedPacket, TransportSlice};
use hyper_switch_dataplane::action::{Action, FieldValue, Header, edit};
use hyper_switch_dataplane::api::{FlowKey, PortId};
use hyper_switch_dataplane::key::usual::{self, START_BYTES};
use hyper_switch_dataplane::key::{HEADER_BYTES, Layout, Transport, VLAN_PRESENT, extract};
use hyper_switch_pvnet::MAX_FRAME_BYTES;
use hyper_switch_pvnet::header::VnetHdr;

const PORT: PortId = PortId(7);
const IP_PROTOCOLS: [u8; 2] = [6, 17];

pub fn run(input: &[u8]) {
    let mut input = Input(input);
    let actions: Vec<_> = (0..input.u8() % 8).map(|_| action(&mut input)).collect();
    let frame = input.run(MAX_FRAME_BYTES);
    let window = &frame[..frame.len().min(HEADER_BYTES)];
    let Some((key, layout)) = parse(window, frame.len()) else { return };
    assert_usual(frame, &key);
    if let Ok(packet) = SlicedPacket::from_ethernet(frame) {
        assert_agrees(&packet, &key, &layout);
    }
    assert_edits(frame, &key, layout, &actions);
}

fn parse(window: &[u8], frame_bytes: usize) -> Option<(FlowKey, Layout)> {
    let mut key = FlowKey::ZERO;
    let layout = extract(window, frame_bytes as u32, PORT, 0, &mut key).ok()?;
    assert_eq!(key, key.with_flags(), "the flags say what is in the second line");
    Some((key, layout))
}

/// The fast way makes the same key, where it makes one.
fn assert_usual(frame: &[u8], key: &FlowKey) {
    let Some(start) = frame.first_chunk::<START_BYTES>() else { return };
    let mut words = start.chunks_exact(8).map(|word| u64::from_ne_bytes(word.try_into().unwrap()));
    let start = std::array::from_fn(|_| words.next().unwrap());
    if let Some(line) = usual::key_line(start, frame.len() as u32, PORT) {
        assert_eq!(line, key.words()[..8]);
    }
}

/// Each field that etherparse finds is in the key. Where the two differ by design, nothing is said: in more tags than
/// two, in fragments, behind an authentication header, and behind the bytes that the switch copies.
fn assert_agrees(packet: &SlicedPacket<'_>, key: &FlowKey, layout: &Layout) {
    let Some(LinkSlice::Ethernet2(eth)) = &packet.link else { panic!("no Ethernet") };
    assert_eq!((key.eth_src, key.eth_dst), (eth.source(), eth.destination()));
    let mut tpid = eth.ether_type().0;
    let mut tags = Vec::new();
    for extension in &packet.link_exts {
        let LinkExtSlice::Vlan(tag) = extension else { return };
        if !matches!(tpid, 0x8100 | 0x88a8) || tags.len() == 2 {
            return;
        }
        let header = tag.to_header();
        let tci = u16::from(header.pcp.value()) << 13 | VLAN_PRESENT | header.vlan_id.value();
        tags.push((tpid, tci));
        tpid = tag.ether_type().0;
    }
    tags.resize(2, (0, 0));
    let found = [(key.vlan_tpid, key.vlan_tci), (key.inner_vlan_tpid, key.inner_vlan_tci)];
    assert_eq!(found, tags[..]);
    match &packet.net {
        Some(NetSlice::Ipv4(ip)) => {
            let ip = ip.header();
            assert_eq!((key.ip4_src, key.ip4_dst), (ip.source_addr().into(), ip.destination_addr().into()));
            assert_eq!((key.ip_proto, key.eth_type), (ip.protocol().0, 0x0800));
        }
        Some(NetSlice::Ipv6(ip)) => {
            let ip = ip.header();
            assert_eq!((key.ip6_src, key.ip6_dst), (ip.source(), ip.destination()));
            assert_eq!((key.ip6_flabel, key.ip_tos), (ip.flow_label().value(), ip.traffic_class()));
            assert_eq!(key.eth_type, 0x86dd);
            // No bytes, as the header says, or as many as there are, as etherparse takes it for a jumbogram's.
            if ip.payload_length() == 0 {
                return;
            }
        }
        _ => return,
    }
    if !IP_PROTOCOLS.contains(&key.ip_proto) || layout.transport == Transport::Beyond {
        return;
    }
    let ports = match &packet.transport {
        Some(TransportSlice::Tcp(tcp)) => (tcp.source_port(), tcp.destination_port()),
        Some(TransportSlice::Udp(udp)) => (udp.source_port(), udp.destination_port()),
        _ => return,
    };
    assert_eq!((key.l4_src, key.l4_dst), ports);
}

fn assert_edits(frame: &[u8], key: &FlowKey, mut layout: Layout, actions: &[Action]) {
    // Under a third tag, nothing of a packet is parsed.
    let pushed = actions.iter().filter(|action| matches!(action, Action::PushVlan(_))).count();
    if usize::from(layout.vlan_tags()) + pushed > 2 {
        return;
    }
    let routed = layout.routed;
    let mut header = Header::new(frame);
    let mut vnet = VnetHdr::PLAIN;
    if edit(actions, &mut header, &mut layout, &mut vnet).is_err() {
        return;
    }
    assert_eq!(vnet, VnetHdr::PLAIN, "nothing was asked for");
    let edited = [header.bytes(), &frame[header.replaces()..]].concat();
    let (found, layout_now) = parse(header.bytes(), edited.len()).expect("an edited packet is still one");
    let mut expected = *key;
    actions.iter().for_each(|action| action.apply_to_key(&mut expected));
    assert_eq!(found, expected.with_flags(), "{actions:?}");
    assert_eq!(layout_now, layout, "{actions:?}");
    if checksums_are_right(frame) && !routed {
        assert!(checksums_are_right(&edited), "{actions:?}");
    }
}

/// Whether etherparse finds the checksums right that the packet has, where it and the switch agree on what it has.
fn checksums_are_right(frame: &[u8]) -> bool {
    let Ok(packet) = SlicedPacket::from_ethernet(frame) else { return false };
    match (&packet.net, &packet.transport) {
        (Some(NetSlice::Ipv4(ip)), transport) => {
            let header = ip.header().to_header();
            header.header_checksum == header.calc_header_checksum()
                && match transport {
                    Some(TransportSlice::Tcp(tcp)) => {
                        tcp.calc_checksum_ipv4(header.source, header.destination) == Ok(tcp.checksum())
                    }
                    Some(TransportSlice::Udp(udp)) if udp.checksum() != 0 => {
                        udp.to_header().calc_checksum_ipv4(&header, udp.payload()) == Ok(udp.checksum())
                    }
                    _ => true,
                }
        }
        // To etherparse all that is there is a jumbogram's payload; to the switch there is none.
        (Some(NetSlice::Ipv6(ip)), _) if ip.header().payload_length() == 0 => false,
        (Some(NetSlice::Ipv6(ip)), transport) => {
            let (source, destination) = (ip.header().source(), ip.header().destination());
            match transport {
                Some(TransportSlice::Tcp(tcp)) => {
                    tcp.calc_checksum_ipv6(source, destination) == Ok(tcp.checksum())
                }
                Some(TransportSlice::Udp(udp)) => {
                    let header = ip.header().to_header();
                    udp.to_header().calc_checksum_ipv6(&header, udp.payload()) == Ok(udp.checksum())
                }
                Some(TransportSlice::Icmpv6(icmp)) => icmp.is_checksum_valid(source, destination),
                _ => true,
            }
        }
        _ => false,
    }
}

/// An action that changes a packet. Not among them: types, which change what is parsed behind them.
fn action(input: &mut Input<'_>) -> Action {
    use FieldValue as F;
    let kind = input.u8();
    let value = input.array::<16>();
    let [a, b, c, d, e, f, ..] = value;
    let (mac, half, word) =
        ([a, b, c, d, e, f], u16::from_le_bytes([a, b]), u32::from_le_bytes([a, b, c, d]));
    Action::Set(match kind % 23 {
        0 => return Action::PushVlan(0x8100),
        1 => return Action::PushVlan(0x88a8),
        2 => return Action::PopVlan,
        3 => F::EthDst(mac),
        4 => F::EthSrc(mac),
        5 => F::VlanVid(half),
        6 => F::VlanPcp(a),
        7 => F::IpDscp(a),
        8 => F::IpEcn(a),
        9 => F::Ipv4Src(word),
        10 => F::Ipv4Dst(word),
        11 => F::Ipv6Src(value),
        12 => F::Ipv6Dst(value),
        13 => F::Ipv6Flabel(word),
        14 => F::L4Src(half),
        15 => F::L4Dst(half),
        16 => F::ArpOp(half),
        17 => F::ArpSpa(word),
        18 => F::ArpTha(mac),
        19 => F::NdTarget(value),
        20 => F::NdSll(mac),
        21 => F::NdTll(mac),
        _ => F::MplsLabel(word),
    })
}
