//! Actions: what a flow does with its packets (OpenFlow 1.3.5, clause 5.12).

pub mod edit;

use crate::api::PortId;

/// One thing to do with a packet. A flow's actions are applied in order; each output sends the packet as
/// the actions before it left it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// Send the packet out of a port (`OFPAT_OUTPUT`).
    Output(PortId),
    /// Show the packet to the control plane (`OFPP_CONTROLLER`); the packet ends there. Only as the last action.
    Controller,
    /// Write a header field (`OFPAT_SET_FIELD`). Checksums follow.
    Set(FieldValue),
    /// Put a VLAN tag with this tag protocol (0x8100 or 0x88a8) in front, with the priority and VLAN id of
    /// the tag that was outermost, or zero (`OFPAT_PUSH_VLAN`).
    PushVlan(u16),
    /// Take the outermost VLAN tag away (`OFPAT_POP_VLAN`).
    PopVlan,
}

/// A header field and the value to be written to it. Names and widths are OpenFlow's (clause 7.2.3.7);
/// numbers are in host order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FieldValue {
    /// `eth_dst`.
    EthDst([u8; 6]),
    /// `eth_src`.
    EthSrc([u8; 6]),
    /// `eth_type`.
    EthType(u16),
    /// `vlan_vid`, 12 bits, of the outermost tag.
    VlanVid(u16),
    /// `vlan_pcp`, 3 bits, of the outermost tag.
    VlanPcp(u8),
    /// `ip_dscp`, 6 bits.
    IpDscp(u8),
    /// `ip_ecn`, 2 bits.
    IpEcn(u8),
    /// `ipv4_src`.
    Ipv4Src(u32),
    /// `ipv4_dst`.
    Ipv4Dst(u32),
    /// `ipv6_src`.
    Ipv6Src([u8; 16]),
    /// `ipv6_dst`.
    Ipv6Dst([u8; 16]),
    /// `ipv6_flabel`, 20 bits.
    Ipv6Flabel(u32),
    /// `tcp_src`, `udp_src` or `sctp_src`, whichever the packet has.
    L4Src(u16),
    /// `tcp_dst`, `udp_dst` or `sctp_dst`.
    L4Dst(u16),
    /// `icmpv4_type` or `icmpv6_type`.
    IcmpType(u8),
    /// `icmpv4_code` or `icmpv6_code`.
    IcmpCode(u8),
    /// `arp_op`.
    ArpOp(u16),
    /// `arp_spa`.
    ArpSpa(u32),
    /// `arp_tpa`.
    ArpTpa(u32),
    /// `arp_sha`.
    ArpSha([u8; 6]),
    /// `arp_tha`.
    ArpTha([u8; 6]),
    /// `ipv6_nd_target`.
    NdTarget([u8; 16]),
    /// `ipv6_nd_sll`.
    NdSll([u8; 6]),
    /// `ipv6_nd_tll`.
    NdTll([u8; 6]),
    /// `mpls_label`, 20 bits.
    MplsLabel(u32),
    /// `mpls_tc`, 3 bits.
    MplsTc(u8),
}
