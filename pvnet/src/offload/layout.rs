//! Where a frame's headers are, as far as finishing and cutting it need to know.

use super::UDP_CSUM_OFFSET;

/// VLAN tags that may stand before the IP header, as many as [`crate::MAX_FRAME_BYTES`] leaves room for.
const MAX_VLAN_TAGS: usize = 2;

/// Bytes of an IPv6 header without extensions (RFC 8200, 3).
pub(super) const IPV6_BYTES: usize = 40;

/// Numbers of the IANA registry "Assigned Internet Protocol Numbers".
pub(super) mod protocol {
    pub(in super::super) const TCP: u8 = 6;
    pub(in super::super) const UDP: u8 = 17;
    pub(super) const ICMP: u8 = 1;
    pub(super) const DCCP: u8 = 33;
    pub(super) const ESP: u8 = 50;
    pub(super) const AH: u8 = 51;
    pub(super) const ICMPV6: u8 = 58;
    pub(super) const UDP_LITE: u8 = 136;
}

/// Why the switch cannot tell where a frame's L4 header is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LayoutFault {
    /// Behind the Ethernet header and at most two VLAN tags is something else than IP.
    #[error("ethertype {0:#06x} is not IP")]
    NotIp(u16),
    /// The headers go on behind the bytes that are there.
    #[error("the headers are cut short")]
    Truncated,
    /// A header's version or length field cannot be true.
    #[error("a header's version or length is impossible")]
    Malformed,
    /// A fragment, which has no L4 checksum of its own. The "atomic" fragment of RFC 6946 counts as one.
    #[error("the frame is an IP fragment")]
    Fragment,
}

/// The IP version of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ip {
    V4,
    V6,
}

/// The headers of an unfragmented IP frame: offsets from its first byte, none beyond its headers' end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Layout {
    pub(super) ip: Ip,
    /// Where the IP header starts.
    pub(super) l3: usize,
    /// Where the L4 header starts, behind all options and extension headers.
    pub(super) l4: usize,
    /// What the L4 header is.
    pub(super) protocol: u8,
}

impl Layout {
    /// Finds the headers in the first bytes of a frame.
    pub(super) fn parse(headers: &[u8]) -> Result<Layout, LayoutFault> {
        let mut l3 = crate::MIN_FRAME_BYTES;
        let mut ethertype = u16_at(headers, l3 - 2)?;
        for _ in 0..MAX_VLAN_TAGS {
            // IEEE 802.1Q's customer and service tags.
            if !matches!(ethertype, 0x8100 | 0x88a8) {
                break;
            }
            ethertype = u16_at(headers, l3 + 2)?;
            l3 += 4;
        }
        let layout = match ethertype {
            0x0800 => Layout::parse_v4(headers, l3)?,
            0x86dd => Layout::parse_v6(headers, l3)?,
            other => return Err(LayoutFault::NotIp(other)),
        };
        if layout.l4 > headers.len() { Err(LayoutFault::Truncated) } else { Ok(layout) }
    }

    fn parse_v4(headers: &[u8], l3: usize) -> Result<Layout, LayoutFault> {
        let (version, words) = (u8_at(headers, l3)? >> 4, u8_at(headers, l3)? & 0xf);
        if version != 4 || words < 5 {
            return Err(LayoutFault::Malformed);
        }
        // "More fragments", or an offset.
        if u16_at(headers, l3 + 6)? & 0x3fff != 0 {
            return Err(LayoutFault::Fragment);
        }
        let protocol = u8_at(headers, l3 + 9)?;
        Ok(Layout { ip: Ip::V4, l3, l4: l3 + usize::from(words) * 4, protocol })
    }

    fn parse_v6(headers: &[u8], l3: usize) -> Result<Layout, LayoutFault> {
        if u8_at(headers, l3)? >> 4 != 6 {
            return Err(LayoutFault::Malformed);
        }
        let mut protocol = u8_at(headers, l3 + 6)?;
        let mut l4 = l3 + IPV6_BYTES;
        loop {
            match protocol {
                // Hop-by-hop options, routing, destination options: 8 bytes and 8 more a unit. Each
                // step moves on by 8 at least, so the walk ends with the bytes.
                0 | 43 | 60 => {
                    protocol = u8_at(headers, l4)?;
                    l4 += (usize::from(u8_at(headers, l4 + 1)?) + 1) * 8;
                }
                44 => return Err(LayoutFault::Fragment),
                _ => return Ok(Layout { ip: Ip::V6, l3, l4, protocol }),
            }
        }
    }

    /// Whether a checksum may be written to `field`, the offset of its first byte.
    ///
    /// The switch has decided on the frame's headers, and the sender chooses both where a checksum goes
    /// and, by the bytes under it, what it will be. Unchecked, that would let it rewrite an address, a
    /// port or a neighbour advertisement after it was admitted. So nothing is written before the
    /// checksum of the outermost L4 header. Behind it, the headers of a tunnelled packet are payload to
    /// the switch, and any place is the sender's own.
    pub(super) fn allows_checksum_at(&self, field: usize) -> bool {
        let Some(offset) = field.checked_sub(self.l4) else { return false };
        match self.protocol {
            protocol::TCP => offset >= usize::from(super::TCP_CSUM_OFFSET),
            protocol::UDP | protocol::UDP_LITE | protocol::DCCP => offset >= usize::from(UDP_CSUM_OFFSET),
            // Flow keys reach into ICMPv6's neighbour discovery, behind the checksum.
            protocol::ICMP | protocol::ICMPV6 => offset == 2,
            // What is authenticated or encrypted has its checksum already.
            protocol::AH | protocol::ESP => false,
            // Ports, where there are any, are in the first 4 bytes; GRE's checksum comes after them.
            _ => offset >= 4,
        }
    }
}

fn u8_at(bytes: &[u8], at: usize) -> Result<u8, LayoutFault> {
    bytes.get(at).copied().ok_or(LayoutFault::Truncated)
}

/// The big-endian 16-bit number at `at`.
pub(super) fn u16_at(bytes: &[u8], at: usize) -> Result<u16, LayoutFault> {
    Ok(u16::from_be_bytes([u8_at(bytes, at)?, u8_at(bytes, at + 1)?]))
}
