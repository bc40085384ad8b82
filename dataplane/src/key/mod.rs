//! The flow key: every field of a packet that a flow may match, up to L4 (OpenFlow 1.3.5, clause 7.2.3.7).
//!
//! A key is 128 bytes, two cache lines. All that an IPv4 packet has is in the first; the second (IPv6
//! addresses, ND and ARP hardware addresses) is zero for it, and [`FlowKey::has_cold`] says so, so that
//! hashing and comparing such keys touches one line.
//!
//! Numbers are in host order; a field that the packet lacks is zero. Fields that no packet can have at the
//! same time share a place, as their OpenFlow prerequisites already tell them apart:
//!
//! | place | IPv4, IPv6 | ARP | MPLS |
//! | --- | --- | --- | --- |
//! | `ip4_src` | `ipv4_src` | `arp_spa` | label stack entry on top |
//! | `ip4_dst` | `ipv4_dst` | `arp_tpa` | - |
//! | `l4_src` | port, ICMP type | `arp_op` | - |
//! | `l4_dst` | port, ICMP code | - | - |
//! | `hw_src`, `hw_dst` | ND link-layer addresses | `arp_sha`, `arp_tha` | - |

mod display;
pub mod extract;
#[cfg(test)]
pub(crate) mod frames;
pub mod train;
pub mod usual;

pub use extract::{Layout, Malformed, Network, Transport, exthdr, extract};

use crate::api::PortId;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Bytes at the start of a frame that are copied into memory of the switch: all that is parsed.
pub const HEADER_BYTES: usize = 128;

/// Set in [`FlowKey::vlan_tci`] beside the tag's priority and VLAN id: there is a tag (as `OFPVID_PRESENT`).
pub const VLAN_PRESENT: u16 = 0x1000;

/// In [`FlowKey::ip_frag`]: the packet is a fragment.
pub const FRAG_ANY: u8 = 1;
/// In [`FlowKey::ip_frag`], beside [`FRAG_ANY`]: it is not the first one, so there is no L4 header.
pub const FRAG_LATER: u8 = 2;

/// In [`FlowKey::flags`]: the second cache line is not zero.
pub const FLAG_COLD: u8 = 1;

/// The fields of one packet; or, in a [`Match`], which of their bits count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(64))]
pub struct FlowKey {
    /// The port that the packet came from (`in_port`), a [`PortId`].
    pub in_port: u32,
    /// `ip_proto`: IPv4 protocol, or the last IPv6 next header that was reached.
    pub ip_proto: u8,
    /// Traffic class: `ip_dscp` in the upper six bits, `ip_ecn` in the lower two.
    pub ip_tos: u8,
    /// [`FRAG_ANY`], [`FRAG_LATER`].
    pub ip_frag: u8,
    /// [`FLAG_COLD`]; about the key, not about the packet, and never part of a mask.
    pub flags: u8,

    /// `eth_dst`.
    pub eth_dst: [u8; 6],
    /// `eth_type` behind all VLAN tags that were parsed; 0 for an IEEE 802.3 length field.
    pub eth_type: u16,
    /// `eth_src`.
    pub eth_src: [u8; 6],
    /// Tag protocol of the outer VLAN tag (0x8100, 0x88a8), 0 without.
    pub vlan_tpid: u16,

    /// Outer VLAN tag: priority, VLAN id (`vlan_pcp`, `vlan_vid`) and [`VLAN_PRESENT`]; 0 without.
    pub vlan_tci: u16,
    /// Tag protocol of the inner VLAN tag, 0 without.
    pub inner_vlan_tpid: u16,
    /// Inner VLAN tag, as [`FlowKey::vlan_tci`].
    pub inner_vlan_tci: u16,
    /// `ipv6_exthdr`: which extension headers there are (bits of `ofp_ipv6exthdr_flags`).
    pub ip6_exthdr: u16,
    /// `ipv4_src`, `arp_spa`, or the top MPLS label stack entry (`mpls_label`, `mpls_tc`, `mpls_bos`, TTL zeroed).
    pub ip4_src: u32,
    /// `ipv4_dst` or `arp_tpa`.
    pub ip4_dst: u32,

    /// `tcp_src`, `udp_src`, `sctp_src`, `icmpv4_type`, `icmpv6_type` or `arp_op`.
    pub l4_src: u16,
    /// `tcp_dst`, `udp_dst`, `sctp_dst`, `icmpv4_code` or `icmpv6_code`.
    pub l4_dst: u16,
    /// `ipv6_flabel`, 20 bits.
    pub ip6_flabel: u32,
    /// `metadata`: written between tables; 0 when a packet comes in.
    pub metadata: u64,
    /// `tunnel_id`: 0 unless the port is a tunnel's.
    pub tunnel_id: u64,

    /// `ipv6_src`.
    pub ip6_src: [u8; 16],
    /// `ipv6_dst`.
    pub ip6_dst: [u8; 16],
    /// `ipv6_nd_target`.
    pub nd_target: [u8; 16],
    /// `arp_sha` or `ipv6_nd_sll`.
    pub hw_src: [u8; 6],
    /// `arp_tha` or `ipv6_nd_tll`.
    pub hw_dst: [u8; 6],
    /// Always zero.
    pub reserved: [u8; 4],
}

const _: () = assert!(size_of::<FlowKey>() == 128);

impl FlowKey {
    /// No field at all: the mask of a match on everything.
    pub const ZERO: FlowKey = FlowKey {
        in_port: 0,
        ip_proto: 0,
        ip_tos: 0,
        ip_frag: 0,
        flags: 0,
        eth_dst: [0; 6],
        eth_type: 0,
        eth_src: [0; 6],
        vlan_tpid: 0,
        vlan_tci: 0,
        inner_vlan_tpid: 0,
        inner_vlan_tci: 0,
        ip6_exthdr: 0,
        ip4_src: 0,
        ip4_dst: 0,
        l4_src: 0,
        l4_dst: 0,
        ip6_flabel: 0,
        metadata: 0,
        tunnel_id: 0,
        ip6_src: [0; 16],
        ip6_dst: [0; 16],
        nd_target: [0; 16],
        hw_src: [0; 6],
        hw_dst: [0; 6],
        reserved: [0; 4],
    };

    /// The key as sixteen words: how it is hashed, masked and compared.
    #[inline]
    pub fn words(&self) -> &[u64; 16] {
        zerocopy::transmute_ref!(self)
    }

    /// Whether the second cache line has anything in it.
    #[inline]
    pub fn has_cold(&self) -> bool {
        self.flags & FLAG_COLD != 0
    }

    /// The port that the packet came from.
    #[inline]
    pub fn port(&self) -> PortId {
        PortId(self.in_port as u16)
    }

    /// Sets or clears [`FLAG_COLD`] as the second line is; for keys that were made by hand.
    #[must_use]
    pub fn with_flags(mut self) -> FlowKey {
        self.flags = self.cold_flag();
        self
    }

    /// What [`FlowKey::flags`] must be for the second line as it is.
    #[inline]
    fn cold_flag(&self) -> u8 {
        let any = self.words()[8..].iter().fold(0, |any, word| any | word);
        if any == 0 { 0 } else { FLAG_COLD }
    }

    /// The first cache line as words, to be stored whole.
    #[inline]
    fn hot_words(&mut self) -> &mut [u64; 8] {
        let words: &mut [u64; 16] = zerocopy::transmute_mut!(self);
        words.first_chunk_mut().expect("eight of sixteen")
    }

    /// Makes this the key with this first cache line and nothing in the second.
    #[inline(always)]
    pub(crate) fn set_line(&mut self, line: [u64; 8]) {
        if self.has_cold() {
            self.clear_cold();
        }
        *self.hot_words() = line;
    }

    /// The first word: `in_port`, then `ip_proto`, `ip_tos`, `ip_frag` and `flags`.
    #[inline]
    fn word_of_port(port: PortId, ip: [u8; 4]) -> u64 {
        zerocopy::transmute!([u32::from(port.0), u32::from_ne_bytes(ip)])
    }

    /// A word that is the first six of `bytes` and a number: a hardware address and what follows it. Eight
    /// bytes come in because one load of eight is cheaper than one of four and one of two.
    #[inline]
    fn word_of_address(bytes: [u8; 8], number: u16) -> u64 {
        const ADDRESS: u64 = u64::from_ne_bytes([0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0]);
        let number: u64 = zerocopy::transmute!([0, 0, 0, number]);
        u64::from_ne_bytes(bytes) & ADDRESS | number
    }

    #[inline]
    fn clear_cold(&mut self) {
        (self.ip6_src, self.ip6_dst, self.nd_target) = ([0; 16], [0; 16], [0; 16]);
        (self.hw_src, self.hw_dst, self.reserved) = ([0; 6], [0; 6], [0; 4]);
    }
}

/// A set of packets: those whose key is `key` wherever `mask` has a bit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Match {
    /// The wanted values; zero where the mask is zero.
    pub key: FlowKey,
    /// The bits that count.
    pub mask: FlowKey,
}

impl Match {
    /// The match on `key` wherever `mask` has a bit: bits of `key` outside of it are cleared.
    pub fn new(key: FlowKey, mask: FlowKey) -> Match {
        let mask = FlowKey { flags: 0, ..mask };
        let mut words = [0; 16];
        for (word, (k, m)) in words.iter_mut().zip(key.words().iter().zip(mask.words())) {
            *word = k & m;
        }
        Match { key: zerocopy::transmute!(words), mask }
    }

    /// Whether a packet with `key` is in the set.
    #[inline]
    pub fn covers(&self, key: &FlowKey) -> bool {
        self.covers_line::<0>(key) && self.covers_line::<8>(key)
    }

    /// Whether a packet with `key` has what the set asks of one cache line: that from word `FIRST` on.
    #[inline]
    pub(crate) fn covers_line<const FIRST: usize>(&self, key: &FlowKey) -> bool {
        let line = FIRST..FIRST + 8;
        let masks = self.mask.words()[line.clone()].iter().zip(&self.key.words()[line.clone()]);
        key.words()[line].iter().zip(masks).fold(0, |differ, (k, (m, want))| differ | ((k & m) ^ want)) == 0
    }
}
