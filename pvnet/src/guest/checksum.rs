//! TCP and UDP checksums as a VM's driver sees them: left partial on the way out, verified on the way in.

use crate::header::{F_NEEDS_CSUM, GsoType, VnetHdr};
use smoltcp::wire::{
    EthernetFrame, EthernetProtocol, IpAddress, IpProtocol, Ipv4Packet, TcpPacket, UdpPacket, checksum,
};
use std::num::NonZeroU16;

/// Leaves the checksum of a TCP or UDP frame to the switch: puts the pseudo header's sum in its place
/// (VIRTIO 1.2, clause 5.1.6.2) and answers the header that says so. With `gso_size`, a TCP frame is to be cut
/// into wire frames with so many bytes of payload each. Any other frame is left as it is.
pub(super) fn leave_partial(frame: &mut [u8], gso_size: Option<NonZeroU16>) -> VnetHdr {
    let Some(Transport { protocol, start, src, dst, payload }) = Transport::of(frame) else {
        return VnetHdr::default();
    };
    let pseudo = checksum::pseudo_header(&src, &dst, protocol, payload.len() as u32);
    let (csum_offset, header_bytes) = match protocol {
        IpProtocol::Tcp => match TcpPacket::new_checked(payload) {
            Ok(segment) => (16, usize::from(segment.header_len())),
            Err(_) => return VnetHdr::default(),
        },
        _ => (6, 8),
    };
    let field = start + csum_offset;
    let Some(field) = frame.get_mut(field..field + 2) else { return VnetHdr::default() };
    field.copy_from_slice(&pseudo.to_be_bytes());
    let gso_size = gso_size.filter(|_| protocol == IpProtocol::Tcp);
    VnetHdr {
        flags: F_NEEDS_CSUM,
        gso: if gso_size.is_some() { GsoType::Tcp4 } else { GsoType::None },
        ecn: false,
        hdr_len: (start + header_bytes) as u16,
        gso_size: gso_size.map_or(0, NonZeroU16::get),
        csum_start: start as u16,
        csum_offset: csum_offset as u16,
    }
}

/// Whether the frame's TCP or UDP checksum is right. True also of a frame that has none.
pub(super) fn is_good(frame: &[u8]) -> bool {
    let Some(Transport { protocol, src, dst, payload, .. }) = Transport::of(frame) else {
        return true;
    };
    match protocol {
        IpProtocol::Tcp => TcpPacket::new_checked(payload).is_ok_and(|p| p.verify_checksum(&src, &dst)),
        _ => UdpPacket::new_checked(payload).is_ok_and(|p| p.verify_checksum(&src, &dst)),
    }
}

/// The TCP or UDP part of a frame: whole, in IPv4, untagged, as the stack speaks it.
struct Transport<'f> {
    protocol: IpProtocol,
    /// Where it starts in the frame.
    start: usize,
    src: IpAddress,
    dst: IpAddress,
    payload: &'f [u8],
}

impl<'f> Transport<'f> {
    fn of(frame: &'f [u8]) -> Option<Transport<'f>> {
        let frame = EthernetFrame::new_checked(frame).ok()?;
        if frame.ethertype() != EthernetProtocol::Ipv4 {
            return None;
        }
        let packet = Ipv4Packet::new_checked(frame.payload()).ok()?;
        let protocol = packet.next_header();
        let fragment = packet.more_frags() || packet.frag_offset() != 0;
        if fragment || !matches!(protocol, IpProtocol::Tcp | IpProtocol::Udp) {
            return None;
        }
        Some(Transport {
            protocol,
            start: EthernetFrame::<&[u8]>::header_len() + usize::from(packet.header_len()),
            src: packet.src_addr().into(),
            dst: packet.dst_addr().into(),
            payload: packet.payload(),
        })
    }
}

#[cfg(test)]
mod tests {
    //! Checksums against etherparse, which computes its own.
    use super::*;
    use crate::header::VNET_HDR_BYTES;
    use proptest::prelude::*;

    /// A TCP or a UDP frame with its checksum complete.
    fn frame(tcp: bool, payload: &[u8]) -> Vec<u8> {
        let builder =
            etherparse::PacketBuilder::ethernet2([2; 6], [4; 6]).ipv4([10, 1, 0, 1], [10, 1, 2, 3], 64);
        let mut bytes = Vec::new();
        match tcp {
            true => builder.tcp(5001, 49152, 0x8000_0001, 65_000).write(&mut bytes, payload).unwrap(),
            false => builder.udp(5001, 49152).write(&mut bytes, payload).unwrap(),
        }
        bytes
    }

    proptest! {
        /// Holds that what is left partial is completed, as VIRTIO says a device does it, to the right checksum.
        #[test]
        fn partial_checksums_complete(tcp: bool, payload in prop::collection::vec(any::<u8>(), 0..300)) {
            let whole = frame(tcp, &payload);
            let mut partial = whole.clone();
            let header = leave_partial(&mut partial, NonZeroU16::new(100));
            let at = usize::from(header.csum_start);
            let field = at + usize::from(header.csum_offset);
            prop_assert_eq!((header.csum_start, header.csum_offset), (34, if tcp { 16 } else { 6 }));
            prop_assert_eq!((header.gso, header.gso_size), if tcp { (GsoType::Tcp4, 100) } else { (GsoType::None, 0) });
            prop_assert_eq!(header.hdr_len, if tcp { 54 } else { 42 });
            let words = partial[at..].chunks(2).map(|w| u64::from(w[0]) << 8 | u64::from(*w.get(1).unwrap_or(&0)));
            let mut sum: u64 = words.sum();
            while sum > 0xffff {
                sum = (sum >> 16) + (sum & 0xffff);
            }
            // For UDP 0 means that there is none, so it is sent as 0xffff (RFC 768).
            let complete = match !(sum as u16) {
                0 if !tcp => 0xffff,
                complete => complete,
            };
            partial[field..field + 2].copy_from_slice(&complete.to_be_bytes());
            prop_assert_eq!(partial, whole);
        }

        /// Holds that a right checksum is good and that no flipped bit behind the IP header goes unseen, but in
        /// UDP's length, which may make the datagram end before the flip, or turn the checksum off.
        #[test]
        fn wrong_bits_are_seen(tcp: bool, payload in prop::collection::vec(any::<u8>(), 1..300), bit: prop::sample::Index) {
            let mut bytes = frame(tcp, &payload);
            prop_assert!(is_good(&bytes));
            let first = if tcp { 34 } else { 42 };
            let bit = bit.index((bytes.len() - first) * 8);
            bytes[first + bit / 8] ^= 1 << (bit % 8);
            prop_assert!(!is_good(&bytes));
        }

        /// Holds that no bytes whatsoever make either function panic.
        #[test]
        fn nonsense_is_left_alone(
            mut bytes in prop::collection::vec(any::<u8>(), 0..80),
            protocol in prop::sample::select(vec![6_u8, 17, 1]),
            mss: u16,
        ) {
            if let Some(ip) = bytes.get_mut(12..24) {
                ip[..3].copy_from_slice(&[8, 0, 0x45]);
                ip[4..6].copy_from_slice(&[0, 40]);
                ip[8..12].copy_from_slice(&[0, 0, 64, protocol]);
            }
            is_good(&bytes);
            let header = leave_partial(&mut bytes, NonZeroU16::new(mss));
            prop_assert_eq!(header.encode(0).len(), VNET_HDR_BYTES);
            prop_assert!(header.gso != GsoType::None || header.check(bytes.len() as u32).is_ok());
        }
    }
}
