//! How a key and a match are written: `in_port=1,eth_type=0x0800,ipv4_src=10.0.0.0/8,tcp_dst=80`.
//!
//! Fields have OpenFlow's names and the order of the frame. A field without a bit in the mask is not written;
//! one with all its bits is `name=value`; any other is `name=value/mask`, as a prefix length where an address
//! has one. Places of the key that several fields share are written as the field that `eth_type` and
//! `ip_proto` make them, or under the place's own name if these are not matched on. A match on
//! everything is `any`.

use super::extract::{
    ETH_ARP, ETH_IPV4, ETH_IPV6, ETH_MPLS, ETH_MPLS_MULTICAST, IP_ICMP, IP_ICMPV6, IP_SCTP, IP_TCP, IP_UDP,
    ND_ADVERT, ND_SOLICIT,
};
use super::{FRAG_ANY, FRAG_LATER, FlowKey, Match, VLAN_PRESENT};
use core::fmt::{self, Display, Formatter};
use core::net::{Ipv4Addr, Ipv6Addr};

impl Display for FlowKey {
    /// Writes the fields that the packet has.
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        Match::new(*self, self.present()).fmt(f)
    }
}

impl Display for Match {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let mut fields = Fields { f, any: true };
        fields.ethernet(&self.key, &self.mask)?;
        fields.network(&self.key, &self.mask)?;
        fields.transport(&self.key, &self.mask)?;
        if fields.any { fields.f.write_str("any") } else { Ok(()) }
    }
}

impl FlowKey {
    /// The mask of the fields that a packet with this key has: a match on all of it.
    pub fn present(&self) -> FlowKey {
        const ALL16: u16 = u16::MAX;
        const ALL32: u32 = u32::MAX;
        let mut mask = FlowKey {
            in_port: ALL32,
            eth_dst: [0xff; 6],
            eth_src: [0xff; 6],
            eth_type: ALL16,
            metadata: if self.metadata == 0 { 0 } else { u64::MAX },
            tunnel_id: if self.tunnel_id == 0 { 0 } else { u64::MAX },
            ..FlowKey::ZERO
        };
        if self.vlan_tci != 0 {
            (mask.vlan_tpid, mask.vlan_tci) = (ALL16, ALL16);
        }
        if self.inner_vlan_tci != 0 {
            (mask.inner_vlan_tpid, mask.inner_vlan_tci) = (ALL16, ALL16);
        }
        match self.eth_type {
            ETH_ARP => {
                (mask.l4_src, mask.ip4_src, mask.ip4_dst) = (ALL16, ALL32, ALL32);
                (mask.hw_src, mask.hw_dst) = ([0xff; 6], [0xff; 6]);
            }
            ETH_MPLS | ETH_MPLS_MULTICAST => mask.ip4_src = 0xffff_ff00,
            ETH_IPV4 => (mask.ip4_src, mask.ip4_dst) = (ALL32, ALL32),
            ETH_IPV6 => {
                (mask.ip6_src, mask.ip6_dst) = ([0xff; 16], [0xff; 16]);
                (mask.ip6_flabel, mask.ip6_exthdr) = (0xf_ffff, 0x1ff);
            }
            _ => {}
        }
        if matches!(self.eth_type, ETH_IPV4 | ETH_IPV6) {
            (mask.ip_proto, mask.ip_tos, mask.ip_frag) = (0xff, 0xff, FRAG_ANY | FRAG_LATER);
            let has_ports = matches!(self.ip_proto, IP_TCP | IP_UDP | IP_SCTP);
            if self.ip_frag & FRAG_LATER == 0 && (has_ports || self.icmp().is_some()) {
                (mask.l4_src, mask.l4_dst) = (ALL16, ALL16);
            }
            if self.is_neighbour() {
                mask.nd_target = [0xff; 16];
                let address = if self.l4_src == ND_SOLICIT { &mut mask.hw_src } else { &mut mask.hw_dst };
                *address = [0xff; 6];
            }
        }
        mask
    }

    /// The names of an ICMP message's type and code, if it is one.
    fn icmp(&self) -> Option<[&'static str; 2]> {
        match (self.eth_type, self.ip_proto) {
            (ETH_IPV4, IP_ICMP) => Some(["icmpv4_type", "icmpv4_code"]),
            (ETH_IPV6, IP_ICMPV6) => Some(["icmpv6_type", "icmpv6_code"]),
            _ => None,
        }
    }

    fn is_neighbour(&self) -> bool {
        let is_icmpv6 = (self.eth_type, self.ip_proto) == (ETH_IPV6, IP_ICMPV6);
        is_icmpv6 && self.ip_frag & FRAG_LATER == 0 && matches!(self.l4_src, ND_SOLICIT | ND_ADVERT)
    }
}

/// Writes fields with commas between them.
struct Fields<'a, 'b> {
    f: &'a mut Formatter<'b>,
    /// None was written yet.
    any: bool,
}

impl Fields<'_, '_> {
    fn name(&mut self, name: &str) -> fmt::Result {
        let comma = if self.any { "" } else { "," };
        self.any = false;
        write!(self.f, "{comma}{name}=")
    }

    /// A number of which `all` are the bits; in decimal unless masked.
    fn decimal(&mut self, name: &str, key: u16, mask: u16, all: u16) -> fmt::Result {
        if mask == 0 {
            return Ok(());
        }
        self.name(name)?;
        if mask == all { write!(self.f, "{key}") } else { write!(self.f, "{key:#x}/{mask:#x}") }
    }

    /// A number of which `all` are the bits, in hexadecimal, `width` characters with the `0x`.
    fn hex(&mut self, name: &str, key: u64, mask: u64, all: u64, width: usize) -> fmt::Result {
        if mask == 0 {
            return Ok(());
        }
        self.name(name)?;
        write!(self.f, "{key:#0width$x}")?;
        if mask == all { Ok(()) } else { write!(self.f, "/{mask:#x}") }
    }

    fn hardware(&mut self, name: &str, key: [u8; 6], mask: [u8; 6]) -> fmt::Result {
        if mask == [0; 6] {
            return Ok(());
        }
        self.name(name)?;
        self.colons(key)?;
        if mask == [0xff; 6] {
            return Ok(());
        }
        self.f.write_str("/")?;
        self.colons(mask)
    }

    fn colons(&mut self, [a, b, c, d, e, f]: [u8; 6]) -> fmt::Result {
        write!(self.f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}")
    }

    /// An address of `bits` bits whose mask, seen as a number of as many, is `number`.
    fn address<A: Display>(&mut self, name: &str, key: A, mask: A, number: u128, bits: u32) -> fmt::Result {
        if number == 0 {
            return Ok(());
        }
        self.name(name)?;
        write!(self.f, "{key}")?;
        let prefix = number.count_ones();
        match (prefix, prefix + number.trailing_zeros()) {
            (prefix, _) if prefix == bits => Ok(()),
            (prefix, end) if end == bits => write!(self.f, "/{prefix}"),
            _ => write!(self.f, "/{mask}"),
        }
    }

    fn ip4(&mut self, name: &str, key: u32, mask: u32) -> fmt::Result {
        self.address(name, Ipv4Addr::from(key), Ipv4Addr::from(mask), mask.into(), 32)
    }

    fn ip6(&mut self, name: &str, key: [u8; 16], mask: [u8; 16]) -> fmt::Result {
        self.address(name, Ipv6Addr::from(key), Ipv6Addr::from(mask), u128::from_be_bytes(mask), 128)
    }

    fn ethernet(&mut self, key: &FlowKey, mask: &FlowKey) -> fmt::Result {
        // A PortId has 16 bits; the place has 32.
        self.decimal("in_port", key.in_port as u16, mask.in_port as u16, u16::MAX)?;
        self.hex("tunnel_id", key.tunnel_id, mask.tunnel_id, u64::MAX, 0)?;
        self.hex("metadata", key.metadata, mask.metadata, u64::MAX, 0)?;
        self.hardware("eth_src", key.eth_src, mask.eth_src)?;
        self.hardware("eth_dst", key.eth_dst, mask.eth_dst)?;
        let names = ["vlan_tpid", "vlan_vid", "vlan_pcp"];
        self.tag(names, [key.vlan_tpid, key.vlan_tci], [mask.vlan_tpid, mask.vlan_tci])?;
        let names = ["inner_vlan_tpid", "inner_vlan_vid", "inner_vlan_pcp"];
        let inner = |key: &FlowKey| [key.inner_vlan_tpid, key.inner_vlan_tci];
        self.tag(names, inner(key), inner(mask))?;
        self.hex("eth_type", key.eth_type.into(), mask.eth_type.into(), 0xffff, 6)
    }

    /// A VLAN tag: `vlan_vid=none` without one, `vlan_vid=any` if its id does not matter.
    fn tag(&mut self, names: [&str; 3], key: [u16; 2], mask: [u16; 2]) -> fmt::Result {
        let ([tpid, tci], [tpid_mask, tci_mask]) = (key, mask);
        self.hex(names[0], tpid.into(), tpid_mask.into(), 0xffff, 6)?;
        if tci_mask & VLAN_PRESENT != 0 && tci & VLAN_PRESENT == 0 {
            self.name(names[1])?;
            return self.f.write_str("none");
        }
        if tci_mask & 0x1fff == VLAN_PRESENT {
            self.name(names[1])?;
            self.f.write_str("any")?;
        }
        self.decimal(names[1], tci & 0xfff, tci_mask & 0xfff, 0xfff)?;
        self.decimal(names[2], tci >> 13, tci_mask >> 13, 7)
    }

    fn network(&mut self, key: &FlowKey, mask: &FlowKey) -> fmt::Result {
        self.decimal("ip_proto", key.ip_proto.into(), mask.ip_proto.into(), 0xff)?;
        self.decimal("ip_dscp", u16::from(key.ip_tos) >> 2, u16::from(mask.ip_tos) >> 2, 0x3f)?;
        self.decimal("ip_ecn", u16::from(key.ip_tos) & 3, u16::from(mask.ip_tos) & 3, 3)?;
        if mask.ip_frag == FRAG_ANY | FRAG_LATER {
            self.name("ip_frag")?;
            self.f.write_str(match key.ip_frag {
                0 => "no",
                FRAG_ANY => "first",
                _ => "later",
            })?;
        } else {
            self.hex("ip_frag", key.ip_frag.into(), mask.ip_frag.into(), 3, 0)?;
        }
        let (src, dst) = match key.eth_type {
            ETH_MPLS | ETH_MPLS_MULTICAST => {
                let field = |shift: u32, bits: u32| {
                    let all = (1 << bits) - 1;
                    (
                        u64::from(key.ip4_src >> shift & all),
                        u64::from(mask.ip4_src >> shift & all),
                        all.into(),
                    )
                };
                for (name, (key, mask, all)) in
                    [("mpls_label", field(12, 20)), ("mpls_tc", field(9, 3)), ("mpls_bos", field(8, 1))]
                {
                    self.hex(name, key, mask, all, 0)?;
                }
                return Ok(());
            }
            ETH_ARP => ("arp_spa", "arp_tpa"),
            ETH_IPV4 => ("ipv4_src", "ipv4_dst"),
            _ => ("ip4_src", "ip4_dst"),
        };
        self.ip4(src, key.ip4_src, mask.ip4_src)?;
        self.ip4(dst, key.ip4_dst, mask.ip4_dst)?;
        self.ip6("ipv6_src", key.ip6_src, mask.ip6_src)?;
        self.ip6("ipv6_dst", key.ip6_dst, mask.ip6_dst)?;
        self.hex("ipv6_flabel", key.ip6_flabel.into(), mask.ip6_flabel.into(), 0xf_ffff, 0)?;
        self.hex("ipv6_exthdr", key.ip6_exthdr.into(), mask.ip6_exthdr.into(), 0x1ff, 0)
    }

    fn transport(&mut self, key: &FlowKey, mask: &FlowKey) -> fmt::Result {
        let [src, dst] = match (key.eth_type, key.ip_proto) {
            (ETH_ARP, _) => ["arp_op", "l4_dst"],
            (ETH_IPV4 | ETH_IPV6, IP_TCP) => ["tcp_src", "tcp_dst"],
            (ETH_IPV4 | ETH_IPV6, IP_UDP) => ["udp_src", "udp_dst"],
            (ETH_IPV4 | ETH_IPV6, IP_SCTP) => ["sctp_src", "sctp_dst"],
            _ => key.icmp().unwrap_or(["l4_src", "l4_dst"]),
        };
        self.decimal(src, key.l4_src, mask.l4_src, u16::MAX)?;
        self.decimal(dst, key.l4_dst, mask.l4_dst, u16::MAX)?;
        self.ip6("ipv6_nd_target", key.nd_target, mask.nd_target)?;
        let [src, dst] = match key.eth_type {
            ETH_ARP => ["arp_sha", "arp_tha"],
            ETH_IPV6 => ["ipv6_nd_sll", "ipv6_nd_tll"],
            _ => ["hw_src", "hw_dst"],
        };
        self.hardware(src, key.hw_src, mask.hw_src)?;
        self.hardware(dst, key.hw_dst, mask.hw_dst)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::string::ToString;

    /// Holds the notation of every field: packets of each kind, written as they are.
    #[test]
    fn a_key_is_written_with_the_fields_that_its_packet_has() {
        let eth = FlowKey { in_port: 3, eth_src: [2, 0, 0, 0, 0, 1], eth_dst: [0xff; 6], ..FlowKey::ZERO };
        let start = "in_port=3,eth_src=02:00:00:00:00:01,eth_dst=ff:ff:ff:ff:ff:ff,";
        let ip4 = FlowKey {
            eth_type: 0x0800,
            ip_tos: 0b1010_1001,
            ip4_src: 0x0a00_0001,
            ip4_dst: 0x0a00_0002,
            l4_src: 1,
            ..eth
        };
        let ip6 =
            FlowKey { eth_type: 0x86dd, ip6_src: [0xfd; 16], ip6_flabel: 0x12345, ip6_exthdr: 8, ..eth };
        let nd = FlowKey { ip_proto: 58, nd_target: [0xfe; 16], ..ip6 };
        let ip6_text = "ip_dscp=0,ip_ecn=0,ip_frag=no,ipv6_src=fdfd:fdfd:fdfd:fdfd:fdfd:fdfd:fdfd:fdfd,\
                        ipv6_dst=::,ipv6_flabel=0x12345,ipv6_exthdr=0x8";
        let target = "ipv6_nd_target=fefe:fefe:fefe:fefe:fefe:fefe:fefe:fefe";
        let ip4_text = "ip_dscp=42,ip_ecn=1,ip_frag=no,ipv4_src=10.0.0.1,ipv4_dst=10.0.0.2";
        let cases = [
            (FlowKey { tunnel_id: 5, metadata: 0xabc, ..eth }, "in_port=3,tunnel_id=0x5,metadata=0xabc,eth_src=02:00:00:00:00:01,eth_dst=ff:ff:ff:ff:ff:ff,eth_type=0x0000".to_string()),
            (FlowKey { vlan_tpid: 0x88a8, vlan_tci: 0xb005, inner_vlan_tpid: 0x8100, inner_vlan_tci: 0x1007, eth_type: 0x88cc, ..eth }, std::format!("{start}vlan_tpid=0x88a8,vlan_vid=5,vlan_pcp=5,inner_vlan_tpid=0x8100,inner_vlan_vid=7,inner_vlan_pcp=0,eth_type=0x88cc")),
            (FlowKey { ip_proto: 6, l4_dst: 80, ..ip4 }, std::format!("{start}eth_type=0x0800,ip_proto=6,{ip4_text},tcp_src=1,tcp_dst=80")),
            (FlowKey { ip_proto: 17, ip_frag: 1, ..ip4 }, std::format!("{start}eth_type=0x0800,ip_proto=17,{},udp_src=1,udp_dst=0", ip4_text.replace("=no", "=first"))),
            (FlowKey { ip_proto: 17, ip_frag: 3, ..ip4 }, std::format!("{start}eth_type=0x0800,ip_proto=17,{}", ip4_text.replace("=no", "=later"))),
            (FlowKey { ip_proto: 132, ..ip4 }, std::format!("{start}eth_type=0x0800,ip_proto=132,{ip4_text},sctp_src=1,sctp_dst=0")),
            (FlowKey { ip_proto: 1, ..ip4 }, std::format!("{start}eth_type=0x0800,ip_proto=1,{ip4_text},icmpv4_type=1,icmpv4_code=0")),
            (FlowKey { ip_proto: 47, ..ip4 }, std::format!("{start}eth_type=0x0800,ip_proto=47,{ip4_text}")),
            (FlowKey { l4_src: 135, hw_src: [1; 6], ..nd }, std::format!("{start}eth_type=0x86dd,ip_proto=58,{ip6_text},icmpv6_type=135,icmpv6_code=0,{target},ipv6_nd_sll=01:01:01:01:01:01")),
            (FlowKey { l4_src: 136, hw_dst: [1; 6], ..nd }, std::format!("{start}eth_type=0x86dd,ip_proto=58,{ip6_text},icmpv6_type=136,icmpv6_code=0,{target},ipv6_nd_tll=01:01:01:01:01:01")),
            (FlowKey { eth_type: 0x0806, l4_src: 2, ip4_src: 1, ip4_dst: 2, hw_src: [1; 6], ..eth }, std::format!("{start}eth_type=0x0806,arp_spa=0.0.0.1,arp_tpa=0.0.0.2,arp_op=2,arp_sha=01:01:01:01:01:01,arp_tha=00:00:00:00:00:00")),
            (FlowKey { eth_type: 0x8847, ip4_src: 0x0001_0b00, ..eth }, std::format!("{start}eth_type=0x8847,mpls_label=0x10,mpls_tc=0x5,mpls_bos=0x1")),
        ];
        for (key, expected) in cases {
            assert_eq!(key.to_string(), expected);
        }
    }

    /// Holds how partly masked fields are written, and that a match on everything has a word of its own.
    #[test]
    fn a_mask_follows_its_value() {
        let key = FlowKey {
            in_port: 1,
            eth_type: 0x0800,
            eth_dst: [1, 2, 3, 4, 5, 6],
            vlan_tci: 0xf005,
            ip_proto: 6,
            ip_frag: 3,
            ip4_src: 0x0a01_0203,
            l4_dst: 0x1234,
            ip6_dst: [0x20; 16],
            ..FlowKey::ZERO
        };
        let typed = FlowKey { eth_type: 0xffff, ip_proto: 0xff, ..FlowKey::ZERO };
        let mut v6_prefix = [0; 16];
        v6_prefix[..5].copy_from_slice(&[0xff, 0xff, 0xff, 0xff, 0x80]);
        let cases = [
            (FlowKey::ZERO, "any"),
            (FlowKey { in_port: 0xffff_ffff, ..FlowKey::ZERO }, "in_port=1"),
            (
                FlowKey { eth_dst: [0xff, 0xff, 0xff, 0, 0, 0], ..FlowKey::ZERO },
                "eth_dst=01:02:03:00:00:00/ff:ff:ff:00:00:00",
            ),
            (FlowKey { eth_type: 0xff00, ..FlowKey::ZERO }, "eth_type=0x0800/0xff00"),
            (FlowKey { vlan_tci: 0x1000, ..FlowKey::ZERO }, "vlan_vid=any"),
            (FlowKey { vlan_tci: 0x1fff, ..FlowKey::ZERO }, "vlan_vid=5"),
            (FlowKey { vlan_tci: 0x100f, ..FlowKey::ZERO }, "vlan_vid=0x5/0xf"),
            (FlowKey { vlan_tci: 0xf000, ..FlowKey::ZERO }, "vlan_vid=any,vlan_pcp=7"),
            (FlowKey { inner_vlan_tci: 0x1000, ..FlowKey::ZERO }, "inner_vlan_vid=none"),
            (FlowKey { ip_frag: 1, ..FlowKey::ZERO }, "ip_frag=0x1/0x1"),
            (FlowKey { ip4_src: 0xffff_ff00, ..typed }, "eth_type=0x0800,ip_proto=6,ipv4_src=10.1.2.0/24"),
            (
                FlowKey { ip4_src: 0xff00_ff00, ..typed },
                "eth_type=0x0800,ip_proto=6,ipv4_src=10.0.2.0/255.0.255.0",
            ),
            (
                FlowKey { ip4_src: 0x8000_0000, l4_dst: 0xfff0, ..typed },
                "eth_type=0x0800,ip_proto=6,ipv4_src=0.0.0.0/1,tcp_dst=0x1230/0xfff0",
            ),
            (
                FlowKey { ip4_src: 0xffff_ffff, l4_dst: 0xffff, ..FlowKey::ZERO },
                "ip4_src=10.1.2.3,l4_dst=4660",
            ),
            (FlowKey { ip6_dst: v6_prefix, ..FlowKey::ZERO }, "ipv6_dst=2020:2020::/33"),
        ];
        for (mask, expected) in cases {
            assert_eq!(Match::new(key, mask).to_string(), expected);
        }
    }
}
