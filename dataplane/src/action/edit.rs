//! Edits: a packet's first bytes in an editable copy, and the actions that change them.
//!
//! The payload never moves: a [`Header`] has room in front for two VLAN tags, and what it holds is sent in
//! place of the bytes that it was copied from. Checksums are kept, not recomputed: each changed 16-bit word
//! adjusts them by the difference (RFC 1624, equation 3), so a checksum that was wrong stays wrong and the
//! receiver finds out. If `virtio_net_hdr` says that the L4 checksum is still partial, its field holds the sum
//! over the pseudo-header: addresses adjust that sum, and nothing else does. SCTP's CRC is linear as well, and
//! is adjusted by what the changed ports are worth at their distance from the end of the packet.

use super::{Action, FieldValue};
use crate::api::DropReason;
use crate::key::extract::{ND_ADVERT, ND_SOLICIT, is_vlan};
use crate::key::{HEADER_BYTES, Layout, Network, Transport};
use hyper_switch_pvnet::header::VnetHdr;

/// Bytes of a VLAN tag (IEEE 802.1Q).
const TAG_BYTES: u8 = 4;

/// Room in front of a [`Header`]: two VLAN tags.
pub const HEADROOM: usize = 2 * TAG_BYTES as usize;

/// Why an action cannot be applied to a packet. Each is a counted drop, [`DropReason::BadEdit`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EditError {
    /// The packet lacks the field (its OpenFlow prerequisite, clause 7.2.3.6, is not met).
    #[error("the packet has no {}", .0.name())]
    Missing(FieldValue),
    /// The packet has no VLAN tag to pop.
    #[error("the packet has no VLAN tag")]
    NoTag,
    /// The tag protocol is neither 0x8100 nor 0x88a8.
    #[error("{0:#06x} is no VLAN tag protocol")]
    BadTag(u16),
    /// The packet has grown by two tags already.
    #[error("more than {HEADROOM} bytes of VLAN tags pushed")]
    NoHeadroom,
    /// The field, or a checksum that it changes, lies behind the copied bytes.
    #[error("the field or its checksum lies behind the first {HEADER_BYTES} bytes")]
    OutOfReach,
    /// `csum_start` cannot follow the L4 header: it lies in front of what moved, or beyond 65535.
    #[error("csum_start {0} cannot be moved")]
    BadCsumStart(u16),
}

impl From<EditError> for DropReason {
    fn from(_: EditError) -> DropReason {
        DropReason::BadEdit
    }
}

/// An editable copy of a packet's first bytes. Plain memory of a fixed size, for fixed pools.
#[derive(Clone, Copy, Debug)]
pub struct Header {
    bytes: [u8; HEADROOM + HEADER_BYTES],
    start: u8,
    end: u8,
}

impl Header {
    /// No bytes.
    pub const EMPTY: Header =
        Header { bytes: [0; HEADROOM + HEADER_BYTES], start: HEADROOM as u8, end: HEADROOM as u8 };

    /// A copy of the first [`HEADER_BYTES`] of `frame`, or of all of it if it has fewer.
    pub fn new(frame: &[u8]) -> Header {
        let len = frame.len().min(HEADER_BYTES);
        let mut header = Header { end: (HEADROOM + len) as u8, ..Header::EMPTY };
        header.bytes[HEADROOM..HEADROOM + len].copy_from_slice(&frame[..len]);
        header
    }

    /// The bytes as they are now.
    #[inline]
    pub fn bytes(&self) -> &[u8] {
        self.bytes.get(usize::from(self.start)..usize::from(self.end)).unwrap_or_default()
    }

    /// How many bytes at the start of the original frame these are sent in place of.
    #[inline]
    pub fn replaces(&self) -> usize {
        usize::from(self.end) - HEADROOM
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        self.bytes.get_mut(usize::from(self.start)..usize::from(self.end)).unwrap_or_default()
    }

    fn get<const N: usize>(&self, at: usize) -> Result<[u8; N], EditError> {
        self.bytes().get(at..).and_then(|bytes| bytes.first_chunk()).copied().ok_or(EditError::OutOfReach)
    }

    /// Writes `new` and tells by what sums over the bytes change. `at` and `N` are even from wherever a
    /// checksum begins.
    fn put<const N: usize>(&mut self, at: usize, new: [u8; N]) -> Result<Change, EditError> {
        let place = self.bytes_mut().get_mut(at..).and_then(|bytes| bytes.first_chunk_mut());
        let old = core::mem::replace(place.ok_or(EditError::OutOfReach)?, new);
        Ok(Change::between(&old, &new))
    }
}

/// The difference that new bytes make to a one's complement sum: the sum of `~old + new`.
#[derive(Clone, Copy)]
struct Change(u32);

impl Change {
    fn between(old: &[u8], new: &[u8]) -> Change {
        let words = old.chunks_exact(2).zip(new.chunks_exact(2));
        Change(words.fold(0, |sum, (old, new)| {
            sum + u32::from(!u16::from_be_bytes([old[0], old[1]]))
                + u32::from(u16::from_be_bytes([new[0], new[1]]))
        }))
    }

    /// `sum` with the difference in it.
    fn added_to(self, sum: u16) -> u16 {
        let mut sum = u32::from(sum) + self.0;
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        sum as u16
    }
}

/// Applies the actions that change a packet, in order; outputs between them are the caller's.
///
/// `layout` is what extraction said of the bytes in `header`, `vnet` the packet's `virtio_net_hdr`; both follow
/// the packet as it grows and shrinks. Bits of a value beyond its field's width are ignored. After an error the
/// packet is to be dropped: some of the actions are applied.
pub fn edit(
    actions: &[Action],
    header: &mut Header,
    layout: &mut Layout,
    vnet: &mut VnetHdr,
) -> Result<(), EditError> {
    let mut packet = Packet { header, layout, vnet };
    for action in actions {
        match *action {
            Action::Output(_) | Action::Controller => {}
            Action::Set(field) => packet.set(field)?,
            Action::PushVlan(tpid) => packet.push_vlan(tpid)?,
            Action::PopVlan => packet.pop_vlan()?,
        }
    }
    Ok(())
}

/// All that an edit changes.
struct Packet<'a> {
    header: &'a mut Header,
    layout: &'a mut Layout,
    vnet: &'a mut VnetHdr,
}

impl Packet<'_> {
    fn set(&mut self, field: FieldValue) -> Result<(), EditError> {
        use FieldValue as F;
        let (l3, l4) = (usize::from(self.layout.l3), usize::from(self.layout.l4));
        if !self.has(field)? {
            return Err(EditError::Missing(field));
        }
        match field {
            F::EthDst(address) => self.plain(0, address),
            F::EthSrc(address) => self.plain(6, address),
            F::EthType(eth_type) => self.eth_type(eth_type),
            F::VlanVid(vid) => self.bits16(14, 0x0fff, vid),
            F::VlanPcp(pcp) => self.bits16(14, 0xe000, u16::from(pcp) << 13),
            F::IpDscp(dscp) => self.traffic_class(0xfc, dscp << 2),
            F::IpEcn(ecn) => self.traffic_class(0x03, ecn),
            F::Ipv4Src(address) => self.address4(l3 + 12, address),
            F::Ipv4Dst(address) => self.address4(l3 + 16, address),
            F::Ipv6Src(address) => {
                let change = self.header.put(l3 + 8, address)?;
                self.pseudo_header(change)
            }
            F::Ipv6Dst(address) => {
                let change = self.header.put(l3 + 24, address)?;
                // The checksum is about the last segment of the route, which stays.
                if self.layout.routed { Ok(()) } else { self.pseudo_header(change) }
            }
            F::Ipv6Flabel(label) => self.bits32(l3, 0x000f_ffff, label),
            F::L4Src(port) => self.port(l4, port),
            F::L4Dst(port) => self.port(l4 + 2, port),
            F::IcmpType(kind) => {
                // What options the message has depends on its type.
                (self.layout.nd_sll, self.layout.nd_tll) = (0, 0);
                let [_, code] = self.header.get(l4)?;
                self.body(l4, [kind, code])
            }
            F::IcmpCode(code) => {
                let [kind, _] = self.header.get(l4)?;
                self.body(l4, [kind, code])
            }
            F::ArpOp(op) => self.plain(l3 + 6, op.to_be_bytes()),
            F::ArpSha(address) => self.plain(l3 + 8, address),
            F::ArpSpa(address) => self.plain(l3 + 14, address.to_be_bytes()),
            F::ArpTha(address) => self.plain(l3 + 18, address),
            F::ArpTpa(address) => self.plain(l3 + 24, address.to_be_bytes()),
            F::NdTarget(address) => self.body(l4 + 8, address),
            F::NdSll(address) => self.body(usize::from(self.layout.nd_sll), address),
            F::NdTll(address) => self.body(usize::from(self.layout.nd_tll), address),
            F::MplsLabel(label) => self.bits32(l3, 0xffff_f000, label << 12),
            F::MplsTc(tc) => self.bits32(l3, 0x0000_0e00, u32::from(tc) << 9),
        }
    }

    /// Whether the packet has the field: the prerequisites of OpenFlow 1.3.5, clause 7.2.3.6.
    fn has(&self, field: FieldValue) -> Result<bool, EditError> {
        use FieldValue as F;
        let (network, transport) = (self.layout.network, self.layout.transport);
        Ok(match field {
            F::EthDst(_) | F::EthSrc(_) | F::EthType(_) => true,
            F::VlanVid(_) | F::VlanPcp(_) => self.layout.vlan_tags() > 0,
            F::IpDscp(_) | F::IpEcn(_) => matches!(network, Network::Ipv4 | Network::Ipv6),
            F::Ipv4Src(_) | F::Ipv4Dst(_) => network == Network::Ipv4,
            F::Ipv6Src(_) | F::Ipv6Dst(_) | F::Ipv6Flabel(_) => network == Network::Ipv6,
            F::L4Src(_) | F::L4Dst(_) => {
                matches!(transport, Transport::Tcp | Transport::Udp | Transport::Sctp)
            }
            F::IcmpType(_) | F::IcmpCode(_) => matches!(transport, Transport::Icmpv4 | Transport::Icmpv6),
            F::ArpOp(_) | F::ArpSpa(_) | F::ArpTpa(_) | F::ArpSha(_) | F::ArpTha(_) => {
                network == Network::Arp
            }
            F::NdTarget(_) if transport == Transport::Icmpv6 => {
                let l4 = usize::from(self.layout.l4);
                let [kind] = self.header.get(l4)?;
                matches!(u16::from(kind), ND_SOLICIT | ND_ADVERT) && self.ip_end()? >= l4 + 24
            }
            F::NdTarget(_) => false,
            F::NdSll(_) => self.layout.nd_sll != 0,
            F::NdTll(_) => self.layout.nd_tll != 0,
            F::MplsLabel(_) | F::MplsTc(_) => network == Network::Mpls,
        })
    }

    /// Writes bytes that no checksum covers.
    fn plain<const N: usize>(&mut self, at: usize, new: [u8; N]) -> Result<(), EditError> {
        self.header.put(at, new).map(|_| ())
    }

    fn bits16(&mut self, at: usize, mask: u16, bits: u16) -> Result<(), EditError> {
        let old = u16::from_be_bytes(self.header.get(at)?);
        self.plain(at, (old & !mask | bits & mask).to_be_bytes())
    }

    fn bits32(&mut self, at: usize, mask: u32, bits: u32) -> Result<(), EditError> {
        let old = u32::from_be_bytes(self.header.get(at)?);
        self.plain(at, (old & !mask | bits & mask).to_be_bytes())
    }

    /// Writes the type behind the tags. What is behind a type that was changed is no longer known.
    fn eth_type(&mut self, eth_type: u16) -> Result<(), EditError> {
        let Layout { l3, .. } = *self.layout;
        let at = usize::from(l3).checked_sub(2).ok_or(EditError::OutOfReach)?;
        if u16::from_be_bytes(self.header.get(at)?) != eth_type {
            *self.layout = Layout { l3, ..Layout::default() };
        }
        self.plain(at, eth_type.to_be_bytes())
    }

    fn traffic_class(&mut self, mask: u8, bits: u8) -> Result<(), EditError> {
        let l3 = usize::from(self.layout.l3);
        if self.layout.network == Network::Ipv6 {
            return self.bits32(l3, u32::from(mask) << 20, u32::from(bits) << 20);
        }
        let [version_ihl, tos] = self.header.get(l3)?;
        let change = self.header.put(l3, [version_ihl, tos & !mask | bits & mask])?;
        self.ipv4_checksum(change)
    }

    fn address4(&mut self, at: usize, address: u32) -> Result<(), EditError> {
        let change = self.header.put(at, address.to_be_bytes())?;
        self.ipv4_checksum(change)?;
        self.pseudo_header(change)
    }

    fn port(&mut self, at: usize, port: u16) -> Result<(), EditError> {
        if self.layout.transport == Transport::Sctp {
            self.sctp_port(at, port)
        } else {
            self.body(at, port.to_be_bytes())
        }
    }

    /// Writes bytes that the L4 checksum covers, but for SCTP's.
    fn body<const N: usize>(&mut self, at: usize, new: [u8; N]) -> Result<(), EditError> {
        let change = self.header.put(at, new)?;
        match self.l4_checksum() {
            Some(checksum) if !checksum.partial => self.complete(checksum, change),
            _ => Ok(()),
        }
    }

    fn ipv4_checksum(&mut self, change: Change) -> Result<(), EditError> {
        let at = usize::from(self.layout.l3) + 10;
        self.complete(Checksum { at, partial: false, optional: false }, change)
    }

    /// Adjusts the L4 checksum, if it is over a pseudo-header, for a changed address.
    fn pseudo_header(&mut self, change: Change) -> Result<(), EditError> {
        match (self.layout.transport, self.l4_checksum()) {
            (Transport::Beyond, _) => Err(EditError::OutOfReach),
            (Transport::Icmpv4, _) | (_, None) => Ok(()),
            (_, Some(checksum)) if checksum.partial => {
                let sum = u16::from_be_bytes(self.header.get(checksum.at)?);
                self.plain(checksum.at, change.added_to(sum).to_be_bytes())
            }
            (_, Some(checksum)) => self.complete(checksum, change),
        }
    }

    /// Where the L4 checksum is; none for SCTP, which has a CRC.
    fn l4_checksum(&self) -> Option<Checksum> {
        let (offset, optional) = match self.layout.transport {
            Transport::Tcp => (16, false),
            Transport::Udp => (6, true),
            Transport::Icmpv4 | Transport::Icmpv6 => (2, false),
            Transport::Sctp | Transport::None | Transport::Beyond => return None,
        };
        let at = usize::from(self.layout.l4) + usize::from(offset);
        Some(Checksum { at, partial: self.is_partial(offset), optional })
    }

    /// Whether `virtio_net_hdr` leaves the checksum `offset` bytes into the L4 header to be finished. It may as
    /// well be about a header further in, of a tunnel in the guest; then the one here is complete.
    fn is_partial(&self, offset: u16) -> bool {
        let at_l4 = self.vnet.csum_start == u16::from(self.layout.l4) && self.vnet.csum_offset == offset;
        self.vnet.needs_csum() && at_l4
    }

    /// Adjusts a complete checksum (RFC 1624, equation 3).
    fn complete(&mut self, checksum: Checksum, change: Change) -> Result<(), EditError> {
        let old = u16::from_be_bytes(self.header.get(checksum.at)?);
        if checksum.optional && old == 0 {
            return Ok(());
        }
        let new = match !change.added_to(!old) {
            // Zero would say that there is none (RFC 768).
            0 if checksum.optional => 0xffff,
            new => new,
        };
        self.plain(checksum.at, new.to_be_bytes())
    }

    /// Writes a port of SCTP and adjusts its CRC32c (RFC 9260, clause 6.8) for it.
    fn sctp_port(&mut self, at: usize, port: u16) -> Result<(), EditError> {
        let l4 = usize::from(self.layout.l4);
        let old = u32::from_le_bytes(self.header.get(l4)?);
        self.plain(at, port.to_be_bytes())?;
        if self.is_partial(8) {
            return Ok(());
        }
        if self.layout.fragment {
            // The CRC covers bytes that are in other packets, and nobody here knows how many.
            return Err(EditError::OutOfReach);
        }
        let difference = old ^ u32::from_le_bytes(self.header.get(l4)?);
        let bytes = self.ip_end()?.checked_sub(l4).ok_or(EditError::OutOfReach)?;
        let crc = u32::from_le_bytes(self.header.get(l4 + 8)?);
        self.plain(l4 + 8, (crc ^ crc32c::moved_up(difference, bytes)).to_le_bytes())
    }

    /// Where the IP packet ends, in bytes from the start of the frame.
    fn ip_end(&self) -> Result<usize, EditError> {
        let l3 = usize::from(self.layout.l3);
        let bytes_at = |at| Ok(usize::from(u16::from_be_bytes(self.header.get(at)?)));
        match self.layout.network {
            Network::Ipv6 => Ok(l3 + 40 + bytes_at(l3 + 4)?),
            _ => Ok(l3 + bytes_at(l3 + 2)?),
        }
    }

    fn push_vlan(&mut self, tpid: u16) -> Result<(), EditError> {
        if !is_vlan(tpid) {
            return Err(EditError::BadTag(tpid));
        }
        let tci = if self.layout.vlan_tags() > 0 { self.header.get(14)? } else { [0; 2] };
        let addresses: [u8; 12] = self.header.get(0)?;
        self.header.start = self.header.start.checked_sub(TAG_BYTES).ok_or(EditError::NoHeadroom)?;
        self.plain(0, addresses)?;
        self.plain(12, tpid.to_be_bytes())?;
        self.plain(14, tci)?;
        self.moved(|at| at.checked_add(TAG_BYTES.into()))
    }

    fn pop_vlan(&mut self) -> Result<(), EditError> {
        if self.layout.vlan_tags() == 0 {
            return Err(EditError::NoTag);
        }
        let addresses: [u8; 12] = self.header.get(0)?;
        self.header.start += TAG_BYTES;
        self.plain(0, addresses)?;
        self.moved(|at| at.checked_sub(TAG_BYTES.into()))
    }

    /// Lets everything that is said about the packet follow its headers to where `to` moves them.
    fn moved(&mut self, to: impl Fn(u16) -> Option<u16>) -> Result<(), EditError> {
        let Layout { l3, l4, nd_sll, nd_tll, .. } = self.layout;
        for at in [l3, l4, nd_sll, nd_tll].into_iter().filter(|at| **at != 0) {
            *at = to((*at).into()).and_then(|at| at.try_into().ok()).ok_or(EditError::OutOfReach)?;
        }
        if self.vnet.needs_csum() {
            let csum_start = self.vnet.csum_start;
            self.vnet.csum_start = to(csum_start).ok_or(EditError::BadCsumStart(csum_start))?;
        }
        // A hint: zero says nothing, and one that cannot be true may become so.
        if self.vnet.hdr_len != 0 {
            self.vnet.hdr_len = to(self.vnet.hdr_len).unwrap_or(0);
        }
        Ok(())
    }
}

/// A checksum field in a packet.
struct Checksum {
    at: usize,
    /// It holds the sum over the pseudo-header, to be finished by whoever lacks the offload.
    partial: bool,
    /// Zero says that there is none.
    optional: bool,
}

/// CRC32c as polynomials over GF(2) modulo Castagnoli's; the highest bit is the coefficient of `x^0`.
mod crc32c {
    const POLYNOMIAL: u32 = 0x82f6_3b78;
    const ONE: u32 = 1 << 31;
    const X8: u32 = ONE >> 8;

    fn product(a: u32, mut b: u32) -> u32 {
        let mut product = 0;
        for power in 0..32 {
            if a & ONE >> power != 0 {
                product ^= b;
            }
            b = if b & 1 != 0 { b >> 1 ^ POLYNOMIAL } else { b >> 1 };
        }
        product
    }

    /// What `difference` in the first four (little-endian) of `bytes` bytes makes of their CRC: itself times
    /// `x^(8 * bytes)`. The exponent is worked off bit by bit.
    pub(super) fn moved_up(difference: u32, bytes: usize) -> u32 {
        let (mut result, mut power, mut left) = (difference, X8, bytes);
        while left != 0 {
            if left & 1 != 0 {
                result = product(result, power);
            }
            power = product(power, power);
            left >>= 1;
        }
        result
    }
}

#[cfg(test)]
mod tests;
