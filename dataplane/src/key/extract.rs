//! Extraction: one pass over the first bytes of a frame, which fills in its [`FlowKey`] and remembers in a
//! [`Layout`] where the headers lie, so that a later edit needs no second parse.
//!
//! The order is the frame's: Ethernet, up to two VLAN tags, then one of IPv4, IPv6, ARP and MPLS, then L4.
//! Each layer makes one bounds check, by splitting a fixed-size array off the slice. A layer hands its fields
//! on in registers and the first cache line of the key is stored once, at the end, as eight whole words: a
//! hash that reads the words right afterwards would otherwise wait for many small stores to leave the store
//! buffer (15 ns for both instead of 29, benches/flow_key.rs).
//!
//! What lies behind the copied bytes or behind the end of the IP packet (Ethernet padding) reads as a field
//! that the packet lacks, which is zero. Only lengths that contradict the frame are errors, see [`Malformed`].
//! Every loop consumes at least eight of at most [`HEADER_BYTES`](super::HEADER_BYTES) bytes a turn.

use super::{FLAG_COLD, FRAG_ANY, FRAG_LATER, FlowKey, VLAN_PRESENT};
use crate::api::{DropReason, PortId};
use zerocopy::transmute;

pub(crate) const ETH_IPV4: u16 = 0x0800;
pub(crate) const ETH_ARP: u16 = 0x0806;
pub(crate) const ETH_VLAN: u16 = 0x8100;
pub(crate) const ETH_IPV6: u16 = 0x86dd;
pub(crate) const ETH_MPLS: u16 = 0x8847;
pub(crate) const ETH_MPLS_MULTICAST: u16 = 0x8848;
pub(crate) const ETH_SERVICE_VLAN: u16 = 0x88a8;
/// Smaller values are lengths of IEEE 802.3 frames, not types.
pub(crate) const ETH_TYPE_MIN: u16 = 0x600;

pub(crate) const IP_ICMP: u8 = 1;
pub(crate) const IP_TCP: u8 = 6;
pub(crate) const IP_UDP: u8 = 17;
pub(crate) const IP_ICMPV6: u8 = 58;
pub(crate) const IP_SCTP: u8 = 132;

const IP6_HOP: u8 = 0;
const IP6_ROUTING: u8 = 43;
const IP6_FRAGMENT: u8 = 44;
const IP6_ESP: u8 = 50;
const IP6_AUTH: u8 = 51;
const IP6_NO_NEXT: u8 = 59;
const IP6_DEST: u8 = 60;

/// Next headers that [`Extensions::walk`] knows, a bit each: all of them are below 64.
const IP6_EXTENSIONS: u64 = 1 << IP6_HOP
    | 1 << IP6_ROUTING
    | 1 << IP6_FRAGMENT
    | 1 << IP6_ESP
    | 1 << IP6_AUTH
    | 1 << IP6_NO_NEXT
    | 1 << IP6_DEST;

/// Bits of [`FlowKey::ip6_exthdr`]: `ofp_ipv6exthdr_flags` (OpenFlow 1.3.5, clause 7.2.3.7).
pub mod exthdr {
    /// There is nothing behind the headers (`OFPIEH_NONEXT`).
    pub const NO_NEXT: u16 = 1 << 0;
    /// Encapsulating security payload (`OFPIEH_ESP`); nothing behind it is parsed.
    pub const ESP: u16 = 1 << 1;
    /// Authentication header (`OFPIEH_AUTH`).
    pub const AUTH: u16 = 1 << 2;
    /// One or two destination options headers (`OFPIEH_DEST`).
    pub const DEST: u16 = 1 << 3;
    /// Fragment header (`OFPIEH_FRAG`).
    pub const FRAG: u16 = 1 << 4;
    /// Routing header (`OFPIEH_ROUTER`).
    pub const ROUTER: u16 = 1 << 5;
    /// Hop-by-hop options as the first header (`OFPIEH_HOP`).
    pub const HOP: u16 = 1 << 6;
    /// A header came more often than it should (`OFPIEH_UNREP`).
    pub const UNREP: u16 = 1 << 7;
    /// The headers are not in the order that RFC 2460, clause 4.1, prefers (`OFPIEH_UNSEQ`).
    pub const UNSEQ: u16 = 1 << 8;
}

pub(crate) const ND_SOLICIT: u16 = 135;
pub(crate) const ND_ADVERT: u16 = 136;
const ND_OPTION_SLL: u8 = 1;
const ND_OPTION_TLL: u8 = 2;

/// Why a frame has no key. Each is a counted drop at the sender's port, see [`DropReason`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// The frame is shorter than an Ethernet header.
    #[error("the frame is shorter than the 14 bytes of an Ethernet header")]
    Truncated,
    /// The frame ends inside a VLAN tag.
    #[error("a VLAN tag is cut off by the end of the frame")]
    BadVlan,
    /// IPv4: IHL below 5, or the header or the total length beyond the frame, or the total length smaller
    /// than the header (RFC 791, clause 3.1). IPv6: the header or the payload length beyond the frame
    /// (RFC 8200, clause 3).
    #[error("an IP header's lengths contradict each other or the frame")]
    BadIpLength,
}

impl From<Malformed> for DropReason {
    fn from(malformed: Malformed) -> DropReason {
        match malformed {
            Malformed::Truncated => DropReason::Truncated,
            Malformed::BadVlan => DropReason::BadVlan,
            Malformed::BadIpLength => DropReason::BadIpLength,
        }
    }
}

/// Which L3 header a frame has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Network {
    /// None that the key has fields for.
    #[default]
    None,
    /// IPv4.
    Ipv4,
    /// IPv6.
    Ipv6,
    /// ARP for Ethernet and IPv4.
    Arp,
    /// MPLS; what is behind the top label stack entry is not parsed.
    Mpls,
}

/// Which L4 header a packet has, if all of its fixed part is among the copied bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Transport {
    /// None that the key has fields for, or the packet is a later fragment or ends inside it.
    #[default]
    None,
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
    /// ICMP of IPv4.
    Icmpv4,
    /// ICMP of IPv6.
    Icmpv6,
    /// There may be one, but behind the copied bytes: a checksum in it cannot be kept right.
    Beyond,
}

/// Where the headers of a frame lie: offsets in bytes from its start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Layout {
    /// The L3 header: the first byte behind the EtherType.
    pub l3: u8,
    /// The L4 header; 0 if [`Layout::transport`] is none that is in reach.
    pub l4: u8,
    /// What is at `l3`.
    pub network: Network,
    /// What is at `l4`.
    pub transport: Transport,
    /// The link-layer address in the source option of a neighbour solicitation; 0 without.
    pub nd_sll: u8,
    /// The link-layer address in the target option of a neighbour advertisement; 0 without.
    pub nd_tll: u8,
    /// An IPv6 routing header has segments left: the L4 checksum is about the last segment instead of the
    /// destination address (RFC 8200, clause 8.1).
    pub routed: bool,
    /// The packet is a fragment, first or later.
    pub fragment: bool,
}

impl Layout {
    /// VLAN tags that were parsed.
    #[inline]
    pub fn vlan_tags(&self) -> u8 {
        self.l3.saturating_sub(14) / 4
    }
}

/// Fills `key` from the first bytes of a frame.
///
/// `header` is the frame's first [`HEADER_BYTES`](super::HEADER_BYTES), or the whole frame if that is
/// shorter; `frame_bytes` is the length of the frame. `key` may hold anything that this function or
/// [`FlowKey::with_flags`] left in it: its second cache line is written only if the old or the new content is
/// not zero. After an error the key's content means nothing, but it may be used here again.
#[inline]
pub fn extract(
    header: &[u8],
    frame_bytes: u32,
    in_port: PortId,
    tunnel_id: u64,
    key: &mut FlowKey,
) -> Result<Layout, Malformed> {
    if key.has_cold() {
        key.clear_cold();
    }
    let (eth, behind) = header.split_first_chunk::<14>().ok_or(Malformed::Truncated)?;
    let frame = Frame { eth, behind, frame_bytes, in_port, tunnel_id };
    // Each of these is the same code, compiled for what is known of its frames: where there is no tag and one L3
    // protocol, all else is a constant. Compiled once for all, IPv4 took 194 instructions and 12.8 ns instead of
    // 161 and 9.6 (benches/flow_key.rs).
    let outer_type = be16([eth[12], eth[13]]);
    match outer_type {
        ETH_IPV4 => frame.parse(Tags::none(ETH_IPV4), key),
        ETH_IPV6 => frame.parse_ipv6(key),
        _ => frame.parse_any(outer_type, key),
    }
}

/// What [`extract`] is given, but for the key.
#[derive(Clone, Copy)]
struct Frame<'a> {
    eth: &'a [u8; 14],
    behind: &'a [u8],
    frame_bytes: u32,
    in_port: PortId,
    tunnel_id: u64,
}

impl Frame<'_> {
    #[inline(never)]
    fn parse_ipv6(self, key: &mut FlowKey) -> Result<Layout, Malformed> {
        self.parse(Tags::none(ETH_IPV6), key)
    }

    #[inline(never)]
    fn parse_any(self, outer_type: u16, key: &mut FlowKey) -> Result<Layout, Malformed> {
        let tags =
            if is_vlan(outer_type) { Tags::parse(outer_type, self.behind)? } else { Tags::none(outer_type) };
        self.parse(tags, key)
    }

    /// Parses what is behind the `tags`.
    #[inline(always)]
    fn parse(self, tags: Tags, key: &mut FlowKey) -> Result<Layout, Malformed> {
        let l3 = 14 + 4 * usize::from(tags.count);
        let packet = self.behind.get(l3 - 14..).ok_or(Malformed::BadVlan)?;
        let packet_bytes = (self.frame_bytes as usize).saturating_sub(l3);
        // Each case stores by itself, as it knows most of the fields as constants.
        match tags.eth_type {
            ETH_IPV4 => Ok(self.store(l3, &tags, &ipv4(packet, packet_bytes, l3)?, key)),
            ETH_IPV6 => Ok(self.store(l3, &tags, &ipv6(packet, packet_bytes, l3, key)?, key)),
            ETH_ARP => Ok(self.store(l3, &tags, &arp(packet, key), key)),
            ETH_MPLS | ETH_MPLS_MULTICAST => Ok(self.store(l3, &tags, &mpls(packet), key)),
            _ => Ok(self.store(l3, &tags, &Upper::default(), key)),
        }
    }

    /// Stores the first cache line of the key and says where the headers were.
    #[inline(always)]
    fn store(&self, l3: usize, tags: &Tags, upper: &Upper, key: &mut FlowKey) -> Layout {
        let [dst @ .., _, _, _, _, _, _] = *self.eth;
        let [_, _, _, _, _, _, src @ ..] = *self.eth;
        let eth_type = if tags.eth_type < ETH_TYPE_MIN { 0 } else { tags.eth_type };
        *key.hot_words() = [
            FlowKey::word_of_port(self.in_port, [upper.ip_proto, upper.ip_tos, upper.ip_frag, upper.flags]),
            FlowKey::word_of_address(dst, eth_type),
            FlowKey::word_of_address(src, tags.tpid),
            transmute!([tags.tci, tags.inner_tpid, tags.inner_tci, upper.ip6_exthdr]),
            transmute!([upper.ip4_src, upper.ip4_dst]),
            transmute!([transmute!([upper.l4_src, upper.l4_dst]), upper.ip6_flabel]),
            0,
            self.tunnel_id,
        ];
        Layout {
            l3: l3 as u8,
            l4: upper.l4,
            network: upper.network,
            transport: upper.transport,
            nd_sll: upper.nd_sll,
            nd_tll: upper.nd_tll,
            routed: upper.routed,
            fragment: upper.ip_frag != 0,
        }
    }
}

#[inline]
pub(crate) fn is_vlan(eth_type: u16) -> bool {
    matches!(eth_type, ETH_VLAN | ETH_SERVICE_VLAN)
}

#[inline]
fn be16(bytes: [u8; 2]) -> u16 {
    u16::from_be_bytes(bytes)
}

/// The tag protocols and tags of a frame, and the type behind them.
struct Tags {
    count: u8,
    tpid: u16,
    tci: u16,
    inner_tpid: u16,
    inner_tci: u16,
    eth_type: u16,
}

impl Tags {
    #[inline]
    fn none(eth_type: u16) -> Tags {
        Tags { count: 0, tpid: 0, tci: 0, inner_tpid: 0, inner_tci: 0, eth_type }
    }

    /// Takes one tag or two from `behind`, the bytes behind the outer `tpid`. A third stays as `eth_type`.
    #[inline]
    fn parse(tpid: u16, behind: &[u8]) -> Result<Tags, Malformed> {
        let (&[c0, c1, t0, t1], behind) = behind.split_first_chunk().ok_or(Malformed::BadVlan)?;
        let tci = be16([c0, c1]) | VLAN_PRESENT;
        let inner_tpid = be16([t0, t1]);
        if !is_vlan(inner_tpid) {
            return Ok(Tags { count: 1, tpid, tci, ..Tags::none(inner_tpid) });
        }
        let &[c0, c1, t0, t1] = behind.first_chunk().ok_or(Malformed::BadVlan)?;
        let inner_tci = be16([c0, c1]) | VLAN_PRESENT;
        Ok(Tags { count: 2, tpid, tci, inner_tpid, inner_tci, eth_type: be16([t0, t1]) })
    }
}

/// What the layers behind Ethernet have; offsets from the start of the frame, all below `HEADER_BYTES`.
#[derive(Default)]
struct Upper {
    ip_proto: u8,
    ip_tos: u8,
    ip_frag: u8,
    flags: u8,
    ip6_exthdr: u16,
    ip4_src: u32,
    ip4_dst: u32,
    l4_src: u16,
    l4_dst: u16,
    ip6_flabel: u32,
    network: Network,
    transport: Transport,
    l4: u8,
    nd_sll: u8,
    nd_tll: u8,
    routed: bool,
}

#[inline]
fn ipv4(packet: &[u8], packet_bytes: usize, l3: usize) -> Result<Upper, Malformed> {
    let &[version_ihl, ip_tos, t0, t1, _, _, f0, f1, _, ip_proto, _, _, s0, s1, s2, s3, d0, d1, d2, d3] =
        packet.first_chunk::<20>().ok_or(Malformed::BadIpLength)?;
    let header_bytes = usize::from(version_ihl & 0xf) * 4;
    let total_bytes = usize::from(be16([t0, t1]));
    if header_bytes < 20 || total_bytes < header_bytes || total_bytes > packet_bytes {
        return Err(Malformed::BadIpLength);
    }
    let end = total_bytes.min(packet.len());
    let l4 = packet.get(header_bytes..end).ok_or(Malformed::BadIpLength)?;
    let mut upper = Upper {
        ip_proto,
        ip_tos,
        ip4_src: u32::from_be_bytes([s0, s1, s2, s3]),
        ip4_dst: u32::from_be_bytes([d0, d1, d2, d3]),
        network: Network::Ipv4,
        ..Upper::default()
    };
    let fragment = be16([f0, f1]);
    upper.ip_frag = frag_bits(fragment & 0x2000 != 0, fragment & 0x1fff);
    if upper.ip_frag & FRAG_LATER == 0 {
        upper.transport(l4, l3 + header_bytes, Transport::Icmpv4, total_bytes > packet.len());
    }
    Ok(upper)
}

#[inline]
fn frag_bits(more: bool, offset: u16) -> u8 {
    let later = offset != 0;
    (u8::from(more | later) * FRAG_ANY) | (u8::from(later) * FRAG_LATER)
}

#[inline]
fn ipv6(packet: &[u8], packet_bytes: usize, l3: usize, key: &mut FlowKey) -> Result<Upper, Malformed> {
    let ip = packet.first_chunk::<40>().ok_or(Malformed::BadIpLength)?;
    let total_bytes = 40 + usize::from(be16([ip[4], ip[5]]));
    if total_bytes > packet_bytes {
        return Err(Malformed::BadIpLength);
    }
    let word = u32::from_be_bytes([ip[0], ip[1], ip[2], ip[3]]);
    let mut upper = Upper {
        ip_proto: ip[6],
        ip_tos: (word >> 20) as u8,
        ip6_flabel: word & 0xf_ffff,
        network: Network::Ipv6,
        ..Upper::default()
    };
    key.ip6_src.copy_from_slice(&ip[8..24]);
    key.ip6_dst.copy_from_slice(&ip[24..40]);
    upper.flags = if ip[8..40] == [0; 32] { 0 } else { FLAG_COLD };

    let cut = total_bytes > packet.len();
    let packet = packet.get(..total_bytes).unwrap_or(packet);
    let mut at = 40;
    if upper.ip_proto < 64 && IP6_EXTENSIONS >> upper.ip_proto & 1 != 0 {
        let walked = Extensions::walk(packet, upper.ip_proto);
        (upper.ip_proto, upper.ip_frag) = (walked.next, walked.frag);
        (upper.ip6_exthdr, upper.routed) = (walked.bits, walked.routed);
        if walked.cut {
            upper.transport = if cut { Transport::Beyond } else { Transport::None };
            return Ok(upper);
        }
        at = walked.at;
    }
    if upper.ip_frag & FRAG_LATER == 0 {
        let l4 = packet.get(at..).unwrap_or_default();
        upper.transport(l4, l3 + at, Transport::Icmpv6, cut);
        let found = |option_at: u8| if option_at == 0 { 0 } else { upper.l4 + option_at };
        match (upper.transport, upper.l4_src) {
            (Transport::Icmpv6, ND_SOLICIT) => upper.nd_sll = found(neighbour(ND_OPTION_SLL, l4, key)),
            (Transport::Icmpv6, ND_ADVERT) => upper.nd_tll = found(neighbour(ND_OPTION_TLL, l4, key)),
            _ => {}
        }
        if upper.flags == 0 {
            upper.flags = key.cold_flag();
        }
    }
    Ok(upper)
}

impl Upper {
    /// Parses the L4 header in `l4`, which starts `at` bytes into the frame and ends with the packet or,
    /// if it is `cut`, with the copied bytes.
    #[inline]
    fn transport(&mut self, l4: &[u8], at: usize, icmp: Transport, cut: bool) {
        let (transport, fixed_bytes) = match self.ip_proto {
            IP_TCP => (Transport::Tcp, 20),
            IP_UDP => (Transport::Udp, 8),
            IP_SCTP => (Transport::Sctp, 12),
            IP_ICMP if icmp == Transport::Icmpv4 => (icmp, 8),
            IP_ICMPV6 if icmp == Transport::Icmpv6 => (icmp, 8),
            _ => return,
        };
        let Some(&[b0, b1, b2, b3]) = l4.first_chunk().filter(|_| l4.len() >= fixed_bytes) else {
            self.transport = if cut { Transport::Beyond } else { Transport::None };
            return;
        };
        (self.l4_src, self.l4_dst) =
            if transport == icmp { (u16::from(b0), u16::from(b1)) } else { (be16([b0, b1]), be16([b2, b3])) };
        self.transport = transport;
        self.l4 = at as u8;
    }
}

/// Parses a neighbour solicitation or advertisement (RFC 4861, clauses 4.3 and 4.4): the target, and the one
/// link-layer address option that OpenFlow has a field for. Returns where that address is in `l4`, or 0.
///
/// It gets and returns plain values: a reference to the caller's fields would keep all of them in memory.
#[cold]
fn neighbour(wanted_option: u8, l4: &[u8], key: &mut FlowKey) -> u8 {
    let Some(target) = l4.get(8..24) else { return 0 };
    key.nd_target.copy_from_slice(target);
    let mut at = 24;
    while let Some(&[kind, units, a0, a1, a2, a3, a4, a5]) = l4.get(at..).and_then(|rest| rest.first_chunk())
    {
        if kind == wanted_option && units == 1 {
            let address = [a0, a1, a2, a3, a4, a5];
            if kind == ND_OPTION_SLL {
                key.hw_src = address;
            } else {
                key.hw_dst = address;
            }
            return (at + 2) as u8;
        }
        if units == 0 {
            break;
        }
        at += usize::from(units) * 8;
    }
    0
}

/// What a walk over IPv6 extension headers found.
struct Extensions {
    /// The next header that the walk ended at, and where it is.
    next: u8,
    at: usize,
    bits: u16,
    frag: u8,
    routed: bool,
    /// The header that the walk ended at begins behind the bytes that there are.
    cut: bool,
}

impl Extensions {
    /// Walks `packet`, which starts with an IPv6 header, to the first header that is no extension, that hides
    /// the rest (ESP), or that is not in the packet (behind the header of a later fragment).
    #[cold]
    fn walk(packet: &[u8], first: u8) -> Extensions {
        let mut found = Extensions { next: first, at: 40, bits: 0, frag: 0, routed: false, cut: false };
        let mut order = Order::default();
        loop {
            found.bits |= order.meet(found.next);
            if !matches!(found.next, IP6_HOP | IP6_ROUTING | IP6_FRAGMENT | IP6_AUTH | IP6_DEST) {
                return found;
            }
            let Some(&[next, length, b2, b3, ..]) =
                packet.get(found.at..).and_then(|rest| rest.first_chunk::<8>())
            else {
                found.cut = true;
                return found;
            };
            let length = usize::from(length);
            found.at += match found.next {
                IP6_FRAGMENT => 8,
                IP6_AUTH => (length + 2) * 4,
                _ => (length + 1) * 8,
            };
            if found.next == IP6_ROUTING {
                // Byte 3 is Segments Left, whatever the routing type (RFC 8200, clause 4.4).
                found.routed |= b3 != 0;
            }
            let fragment = found.next == IP6_FRAGMENT;
            found.next = next;
            if fragment {
                let offset = be16([b2, b3]);
                found.frag |= frag_bits(offset & 1 != 0, offset >> 3);
                if found.frag & FRAG_LATER != 0 {
                    return found;
                }
            }
        }
    }
}

/// Checks the order of extension headers against the one that RFC 2460, clause 4.1, prefers: hop-by-hop,
/// destination options, routing, fragment, authentication, ESP, destination options.
#[derive(Default)]
struct Order {
    bits: u16,
    rank: u8,
    destinations: u8,
}

impl Order {
    /// Takes the next header in and returns all bits so far.
    fn meet(&mut self, next: u8) -> u16 {
        let (bit, rank) = match next {
            IP6_HOP => (exthdr::HOP, 0),
            IP6_DEST if self.rank < 2 && self.destinations == 0 => (exthdr::DEST, 1),
            IP6_DEST => (exthdr::DEST, 6),
            IP6_ROUTING => (exthdr::ROUTER, 2),
            IP6_FRAGMENT => (exthdr::FRAG, 3),
            IP6_AUTH => (exthdr::AUTH, 4),
            IP6_ESP => (exthdr::ESP, 5),
            IP6_NO_NEXT => (exthdr::NO_NEXT, 7),
            _ => return self.bits,
        };
        let repeated = if bit == exthdr::DEST { self.destinations == 2 } else { self.bits & bit != 0 };
        if repeated {
            self.bits |= exthdr::UNREP;
        }
        // Hop-by-hop options count as such only in the first place.
        let misplaced_hop = bit == exthdr::HOP && self.bits != 0;
        if rank < self.rank || misplaced_hop {
            self.bits |= exthdr::UNSEQ;
        }
        if !misplaced_hop {
            self.bits |= bit;
        }
        self.rank = self.rank.max(rank);
        self.destinations = self.destinations.saturating_add(u8::from(bit == exthdr::DEST)).min(2);
        self.bits
    }
}

/// ARP for Ethernet and IPv4 (RFC 826); other kinds have no fields.
#[inline]
fn arp(packet: &[u8], key: &mut FlowKey) -> Upper {
    let Some(arp) = packet.first_chunk::<28>().filter(|arp| arp[..6] == [0, 1, 8, 0, 6, 4]) else {
        return Upper::default();
    };
    key.hw_src.copy_from_slice(&arp[8..14]);
    key.hw_dst.copy_from_slice(&arp[18..24]);
    Upper {
        l4_src: be16([arp[6], arp[7]]),
        ip4_src: u32::from_be_bytes([arp[14], arp[15], arp[16], arp[17]]),
        ip4_dst: u32::from_be_bytes([arp[24], arp[25], arp[26], arp[27]]),
        flags: if arp[8..14] == [0; 6] && arp[18..24] == [0; 6] { 0 } else { FLAG_COLD },
        network: Network::Arp,
        ..Upper::default()
    }
}

/// The top label stack entry (RFC 3032, clause 2.1) without its time to live.
#[inline]
fn mpls(packet: &[u8]) -> Upper {
    match packet.first_chunk() {
        Some(entry) => {
            Upper { ip4_src: u32::from_be_bytes(*entry) & !0xff, network: Network::Mpls, ..Upper::default() }
        }
        None => Upper::default(),
    }
}

#[cfg(test)]
mod tests;
