//! Actions: what a flow does with its packets (OpenFlow 1.3.5, clause 5.12).

mod display;
pub mod edit;

pub use edit::{EditError, HEADROOM, Header, edit};

use crate::api::PortId;
use crate::key::extract::{ETH_TYPE_MIN, ND_ADVERT, ND_SOLICIT};
use crate::key::{FlowKey, VLAN_PRESENT};

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

impl Action {
    /// Makes `key` what extraction would say of the packet after this action, if that can be applied to it.
    pub fn apply_to_key(&self, key: &mut FlowKey) {
        match *self {
            Action::Output(_) | Action::Controller => {}
            Action::Set(field) => field.apply_to_key(key),
            Action::PushVlan(tpid) => {
                (key.inner_vlan_tpid, key.inner_vlan_tci) = (key.vlan_tpid, key.vlan_tci);
                (key.vlan_tpid, key.vlan_tci) = (tpid, key.vlan_tci | VLAN_PRESENT);
            }
            Action::PopVlan => {
                (key.vlan_tpid, key.vlan_tci) = (key.inner_vlan_tpid, key.inner_vlan_tci);
                (key.inner_vlan_tpid, key.inner_vlan_tci) = (0, 0);
            }
        }
    }
}

impl FieldValue {
    /// The field's name as OpenFlow spells it (`tp_src` and `tp_dst` for the ports of any protocol).
    pub fn name(&self) -> &'static str {
        match self {
            FieldValue::EthDst(_) => "eth_dst",
            FieldValue::EthSrc(_) => "eth_src",
            FieldValue::EthType(_) => "eth_type",
            FieldValue::VlanVid(_) => "vlan_vid",
            FieldValue::VlanPcp(_) => "vlan_pcp",
            FieldValue::IpDscp(_) => "ip_dscp",
            FieldValue::IpEcn(_) => "ip_ecn",
            FieldValue::Ipv4Src(_) => "ipv4_src",
            FieldValue::Ipv4Dst(_) => "ipv4_dst",
            FieldValue::Ipv6Src(_) => "ipv6_src",
            FieldValue::Ipv6Dst(_) => "ipv6_dst",
            FieldValue::Ipv6Flabel(_) => "ipv6_flabel",
            FieldValue::L4Src(_) => "tp_src",
            FieldValue::L4Dst(_) => "tp_dst",
            FieldValue::IcmpType(_) => "icmp_type",
            FieldValue::IcmpCode(_) => "icmp_code",
            FieldValue::ArpOp(_) => "arp_op",
            FieldValue::ArpSpa(_) => "arp_spa",
            FieldValue::ArpTpa(_) => "arp_tpa",
            FieldValue::ArpSha(_) => "arp_sha",
            FieldValue::ArpTha(_) => "arp_tha",
            FieldValue::NdTarget(_) => "ipv6_nd_target",
            FieldValue::NdSll(_) => "ipv6_nd_sll",
            FieldValue::NdTll(_) => "ipv6_nd_tll",
            FieldValue::MplsLabel(_) => "mpls_label",
            FieldValue::MplsTc(_) => "mpls_tc",
        }
    }

    /// Writes the value into `key` as [`edit()`] writes it into a packet that has the field. Fields that the
    /// packet loses with its type (of the frame, or of the ICMP message) become zero.
    pub fn apply_to_key(&self, key: &mut FlowKey) {
        match *self {
            FieldValue::EthDst(address) => key.eth_dst = address,
            FieldValue::EthSrc(address) => key.eth_src = address,
            FieldValue::EthType(eth_type) if eth_type != key.eth_type => {
                *key = FlowKey {
                    in_port: key.in_port,
                    eth_dst: key.eth_dst,
                    eth_src: key.eth_src,
                    eth_type: if eth_type < ETH_TYPE_MIN { 0 } else { eth_type },
                    vlan_tpid: key.vlan_tpid,
                    vlan_tci: key.vlan_tci,
                    inner_vlan_tpid: key.inner_vlan_tpid,
                    inner_vlan_tci: key.inner_vlan_tci,
                    metadata: key.metadata,
                    tunnel_id: key.tunnel_id,
                    ..FlowKey::ZERO
                }
            }
            FieldValue::EthType(_) => {}
            FieldValue::VlanVid(vid) => key.vlan_tci = key.vlan_tci & 0xf000 | vid & 0x0fff,
            FieldValue::VlanPcp(pcp) => key.vlan_tci = key.vlan_tci & 0x1fff | u16::from(pcp) << 13,
            FieldValue::IpDscp(dscp) => key.ip_tos = key.ip_tos & 0x03 | dscp << 2,
            FieldValue::IpEcn(ecn) => key.ip_tos = key.ip_tos & 0xfc | ecn & 0x03,
            FieldValue::Ipv4Src(address) | FieldValue::ArpSpa(address) => key.ip4_src = address,
            FieldValue::Ipv4Dst(address) | FieldValue::ArpTpa(address) => key.ip4_dst = address,
            FieldValue::Ipv6Src(address) => key.ip6_src = address,
            FieldValue::Ipv6Dst(address) => key.ip6_dst = address,
            FieldValue::Ipv6Flabel(label) => key.ip6_flabel = label & 0xf_ffff,
            FieldValue::L4Src(number) | FieldValue::ArpOp(number) => key.l4_src = number,
            FieldValue::L4Dst(number) => key.l4_dst = number,
            FieldValue::IcmpType(kind) => {
                key.l4_src = kind.into();
                if !matches!(key.l4_src, ND_SOLICIT | ND_ADVERT) {
                    (key.nd_target, key.hw_src, key.hw_dst) = ([0; 16], [0; 6], [0; 6]);
                }
            }
            FieldValue::IcmpCode(code) => key.l4_dst = code.into(),
            FieldValue::ArpSha(address) | FieldValue::NdSll(address) => key.hw_src = address,
            FieldValue::ArpTha(address) | FieldValue::NdTll(address) => key.hw_dst = address,
            FieldValue::NdTarget(address) => key.nd_target = address,
            FieldValue::MplsLabel(label) => key.ip4_src = key.ip4_src & 0x0000_0f00 | label << 12,
            FieldValue::MplsTc(tc) => key.ip4_src = key.ip4_src & !0x0e00 | u32::from(tc & 7) << 9,
        }
        *key = key.with_flags();
    }
}
