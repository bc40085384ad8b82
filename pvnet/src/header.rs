//! `virtio_net_hdr`: what travels in front of every frame (VIRTIO 1.2, clause 5.1.6).
//!
//! The switch takes this header as metadata of the packet. It is copied out of the sender's memory
//! once, checked against the frame once ([`VnetHdr::check`]), and carried to every receiver, so that
//! a 64 KiB segmentation packet crosses the switch whole and a partial checksum stays partial until
//! a port needs it finished.

use core::ops::{BitAnd, BitOr};

/// Bytes of a `virtio_net_hdr` as VIRTIO 1.x lays it out, `num_buffers` included.
pub const VNET_HDR_BYTES: usize = 12;

/// The checksum from `csum_start` to the end is still to be written (`VIRTIO_NET_HDR_F_NEEDS_CSUM`).
pub const F_NEEDS_CSUM: u8 = 1;
/// The checksum was verified by a device (`VIRTIO_NET_HDR_F_DATA_VALID`).
pub const F_DATA_VALID: u8 = 2;

/// Set beside a TCP segmentation type: the segment carries ECN's CWR (`VIRTIO_NET_HDR_GSO_ECN`).
const GSO_ECN: u8 = 0x80;

/// How a large frame is to be cut into wire frames: `gso_type` without its ECN bit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum GsoType {
    /// One wire frame: nothing to cut.
    #[default]
    None = 0,
    /// TCP over IPv4 (`VIRTIO_NET_HDR_GSO_TCPV4`).
    Tcp4 = 1,
    /// UDP datagram to be fragmented by IP (`VIRTIO_NET_HDR_GSO_UDP`, "UFO").
    Ufo = 3,
    /// TCP over IPv6 (`VIRTIO_NET_HDR_GSO_TCPV6`).
    Tcp6 = 4,
    /// UDP datagrams of `gso_size` each (`VIRTIO_NET_HDR_GSO_UDP_L4`, "USO").
    UdpL4 = 5,
}

/// A `virtio_net_hdr`, taken apart. All numbers are in host order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct VnetHdr {
    /// [`F_NEEDS_CSUM`] and [`F_DATA_VALID`].
    pub flags: u8,
    /// How to cut the frame.
    pub gso: GsoType,
    /// Whether the TCP segment carries CWR, so that only the first cut may keep it.
    pub ecn: bool,
    /// Bytes of headers up to and with the L4 header, as the sender says; a hint (clause 5.1.6.2).
    pub hdr_len: u16,
    /// Payload bytes a cut, 0 without segmentation.
    pub gso_size: u16,
    /// First byte that the checksum covers, from the start of the frame.
    pub csum_start: u16,
    /// Where the checksum goes, from `csum_start`.
    pub csum_offset: u16,
}

/// Why a frame's `virtio_net_hdr` cannot be true. Each is a counted drop at the sender's port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VnetFault {
    /// `gso_type` is none that VIRTIO 1.2 defines.
    #[error("gso_type {0:#x} is not defined by VIRTIO 1.2")]
    UnknownGso(u8),
    /// Segmentation asked for with `gso_size` 0.
    #[error("segmentation asked for into cuts of no bytes")]
    GsoSizeZero,
    /// Segmentation without a partial checksum (clause 5.1.6.2 demands `NEEDS_CSUM`).
    #[error("segmentation asked for without NEEDS_CSUM")]
    GsoWithoutCsum,
    /// The checksum field lies beyond the frame.
    #[error("checksum at {csum_start}+{csum_offset} lies beyond a frame of {frame_bytes} bytes")]
    CsumBeyondFrame {
        /// First byte that the checksum covers.
        csum_start: u16,
        /// Where the checksum goes, from `csum_start`.
        csum_offset: u16,
        /// Bytes of the frame.
        frame_bytes: u32,
    },
}

impl VnetHdr {
    /// An ordinary frame: nothing asked for.
    pub const PLAIN: VnetHdr = VnetHdr {
        flags: 0,
        gso: GsoType::None,
        ecn: false,
        hdr_len: 0,
        gso_size: 0,
        csum_start: 0,
        csum_offset: 0,
    };

    /// Whether a header that starts with these two bytes, flags and type, asks for nothing: the usual frame's. Its
    /// other fields then mean nothing.
    #[inline]
    pub fn is_plain_start(start: [u8; 2]) -> bool {
        start == [0, 0]
    }

    /// As [`VnetHdr::is_plain_start`], of a header that was taken apart.
    #[inline]
    pub fn asks_nothing(&self) -> bool {
        self.flags == 0 && self.gso == GsoType::None
    }

    /// Takes the 12 bytes apart. Fails only for a `gso_type` that is not defined; whether the rest can
    /// be true depends on the frame, see [`VnetHdr::check`].
    #[inline]
    pub fn decode(raw: &[u8; VNET_HDR_BYTES]) -> Result<VnetHdr, VnetFault> {
        let gso = match raw[1] & !GSO_ECN {
            0 => GsoType::None,
            1 => GsoType::Tcp4,
            3 => GsoType::Ufo,
            4 => GsoType::Tcp6,
            5 => GsoType::UdpL4,
            _ => return Err(VnetFault::UnknownGso(raw[1])),
        };
        let ecn = raw[1] & GSO_ECN != 0;
        // CWR is TCP's. No driver sets the bit beside another type, and a guest would refuse the frame.
        if ecn && !matches!(gso, GsoType::Tcp4 | GsoType::Tcp6) {
            return Err(VnetFault::UnknownGso(raw[1]));
        }
        let u16_at = |at: usize| u16::from_le_bytes([raw[at], raw[at + 1]]);
        Ok(VnetHdr {
            flags: raw[0] & (F_NEEDS_CSUM | F_DATA_VALID),
            gso,
            ecn,
            hdr_len: u16_at(2),
            gso_size: u16_at(4),
            csum_start: u16_at(6),
            csum_offset: u16_at(8),
        })
    }

    /// Puts the 12 bytes together, with `num_buffers` as the receiver's ring needs it.
    #[inline]
    pub fn encode(&self, num_buffers: u16) -> [u8; VNET_HDR_BYTES] {
        let mut raw = [0; VNET_HDR_BYTES];
        raw[0] = self.flags;
        raw[1] = self.gso as u8 | if self.ecn { GSO_ECN } else { 0 };
        raw[2..4].copy_from_slice(&self.hdr_len.to_le_bytes());
        raw[4..6].copy_from_slice(&self.gso_size.to_le_bytes());
        raw[6..8].copy_from_slice(&self.csum_start.to_le_bytes());
        raw[8..10].copy_from_slice(&self.csum_offset.to_le_bytes());
        raw[10..12].copy_from_slice(&num_buffers.to_le_bytes());
        raw
    }

    /// Whether the L4 checksum is still partial.
    #[inline]
    pub fn needs_csum(&self) -> bool {
        self.flags & F_NEEDS_CSUM != 0
    }

    /// Whether nothing is asked for: an ordinary frame.
    #[inline]
    pub fn is_plain(&self) -> bool {
        self.gso == GsoType::None && !self.needs_csum()
    }

    /// Holds the header against the length of its frame (bytes without this header).
    #[inline]
    pub fn check(&self, frame_bytes: u32) -> Result<(), VnetFault> {
        if self.is_plain() {
            return Ok(());
        }
        let (csum_start, csum_offset) = (self.csum_start, self.csum_offset);
        if self.needs_csum() && u32::from(csum_start) + u32::from(csum_offset) + 2 > frame_bytes {
            return Err(VnetFault::CsumBeyondFrame { csum_start, csum_offset, frame_bytes });
        }
        if self.gso != GsoType::None {
            if !self.needs_csum() && self.gso != GsoType::Ufo {
                return Err(VnetFault::GsoWithoutCsum);
            }
            // A frame of less than one cut is odd, but clause 5.1.6.2 allows it, and Linux takes it.
            if self.gso_size == 0 {
                return Err(VnetFault::GsoSizeZero);
            }
        }
        Ok(())
    }
}

/// A set of offloads: what a port's receiver accepts unfinished.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Offloads(u8);

impl Offloads {
    /// Everything must be finished before it is handed over.
    pub const NONE: Offloads = Offloads(0);
    /// Partial checksums (`VIRTIO_NET_F_GUEST_CSUM`, `TUN_F_CSUM`).
    pub const CSUM: Offloads = Offloads(1);
    /// TCP over IPv4, uncut (`VIRTIO_NET_F_GUEST_TSO4`, `TUN_F_TSO4`).
    pub const TSO4: Offloads = Offloads(1 << 1);
    /// TCP over IPv6, uncut (`VIRTIO_NET_F_GUEST_TSO6`, `TUN_F_TSO6`).
    pub const TSO6: Offloads = Offloads(1 << 2);
    /// Uncut TCP with ECN's CWR (`VIRTIO_NET_F_GUEST_ECN`, `TUN_F_TSO_ECN`).
    pub const ECN: Offloads = Offloads(1 << 3);
    /// UDP datagrams, uncut (`VIRTIO_NET_F_GUEST_USO4`/`_USO6`, `TUN_F_USO4`/`_USO6`).
    pub const USO: Offloads = Offloads(1 << 4);
    /// UDP to be fragmented, whole (`VIRTIO_NET_F_GUEST_UFO`).
    pub const UFO: Offloads = Offloads(1 << 5);
    /// All but UFO, which Linux gave up in 4.14.
    pub const ALL: Offloads = Offloads(0b1_1111);

    /// Whether every offload of `other` is in this set.
    #[inline]
    pub const fn contains(self, other: Offloads) -> bool {
        self.0 & other.0 == other.0
    }

    /// Whether a receiver with these offloads takes a frame with `header` as it is.
    #[inline]
    pub const fn accept(self, header: &VnetHdr) -> bool {
        let mut needed = if header.flags & F_NEEDS_CSUM != 0 { Offloads::CSUM.0 } else { 0 };
        needed |= match header.gso {
            GsoType::None => 0,
            GsoType::Tcp4 => Offloads::TSO4.0,
            GsoType::Tcp6 => Offloads::TSO6.0,
            GsoType::UdpL4 => Offloads::USO.0,
            GsoType::Ufo => Offloads::UFO.0,
        };
        if header.ecn {
            needed |= Offloads::ECN.0;
        }
        self.0 & needed == needed
    }
}

impl BitOr for Offloads {
    type Output = Offloads;
    fn bitor(self, other: Offloads) -> Offloads {
        Offloads(self.0 | other.0)
    }
}

impl BitAnd for Offloads {
    type Output = Offloads;
    fn bitand(self, other: Offloads) -> Offloads {
        Offloads(self.0 & other.0)
    }
}

#[cfg(test)]
mod tests {
    //! The header: what is decoded is what was encoded, for every type there is; a header that cannot be
    //! true of its frame is refused, by a table and by the same bounds stated again in wide numbers; a
    //! receiver is offered only what it accepts.
    use super::*;
    use proptest::prelude::*;

    const TCP4: VnetHdr = VnetHdr {
        flags: F_NEEDS_CSUM,
        gso: GsoType::Tcp4,
        ecn: false,
        hdr_len: 54,
        gso_size: 1448,
        csum_start: 34,
        csum_offset: 16,
    };
    const FRAME_BYTES: u32 = 5000;

    #[test]
    fn only_the_types_of_the_specification_are_decoded() {
        // VIRTIO 1.2, clause 5.1.6: the types, and ECN's bit beside TCP's.
        let defined = [0, 1, 3, 4, 5, 0x81, 0x84];
        for gso_type in 0..=u8::MAX {
            let mut raw = [0; VNET_HDR_BYTES];
            raw[1] = gso_type;
            match VnetHdr::decode(&raw) {
                Ok(header) => {
                    assert!(defined.contains(&gso_type), "{gso_type:#x} was taken for {header:?}");
                    assert_eq!(header.encode(0), raw);
                }
                Err(fault) => {
                    assert_eq!(fault, VnetFault::UnknownGso(gso_type));
                    assert!(!defined.contains(&gso_type), "{gso_type:#x} was refused");
                }
            }
        }
    }

    #[test]
    fn the_layout_is_that_of_the_specification() {
        let header = VnetHdr { ecn: true, hdr_len: 0x0102, gso_size: 0x0304, csum_start: 0x0506, ..TCP4 };
        let raw = [1, 0x81, 2, 1, 4, 3, 6, 5, 16, 0, 8, 7];
        assert_eq!(header.encode(0x0708), raw);
        assert_eq!(VnetHdr::decode(&raw), Ok(header));
    }

    #[test]
    fn an_impossible_header_is_refused() {
        let beyond = |csum_start, csum_offset, frame_bytes| {
            Err(VnetFault::CsumBeyondFrame { csum_start, csum_offset, frame_bytes })
        };
        let csum = VnetHdr { gso: GsoType::None, gso_size: 0, ..TCP4 };
        let udp = VnetHdr { gso: GsoType::UdpL4, csum_offset: 6, ..TCP4 };
        let ufo = VnetHdr { gso: GsoType::Ufo, flags: 0, ..TCP4 };
        let table = [
            (TCP4, FRAME_BYTES, Ok(())),
            (csum, 52, Ok(())),
            // A plain frame's other fields mean nothing, whatever they say.
            (VnetHdr { flags: F_DATA_VALID, csum_start: u16::MAX, ..csum }, 14, Ok(())),
            // The checksum's last byte, or all of it, lies beyond the frame.
            (csum, 51, beyond(34, 16, 51)),
            (csum, 0, beyond(34, 16, 0)),
            (VnetHdr { csum_start: u16::MAX, ..csum }, FRAME_BYTES, beyond(u16::MAX, 16, FRAME_BYTES)),
            (VnetHdr { csum_offset: u16::MAX, ..csum }, FRAME_BYTES, beyond(34, u16::MAX, FRAME_BYTES)),
            (
                VnetHdr { csum_start: u16::MAX, csum_offset: u16::MAX, ..csum },
                65_549,
                beyond(u16::MAX, u16::MAX, 65_549),
            ),
            // Cuts of nothing are none; one larger than the whole is the whole.
            (VnetHdr { gso_size: 0, ..TCP4 }, FRAME_BYTES, Err(VnetFault::GsoSizeZero)),
            (VnetHdr { gso_size: 0, ..udp }, FRAME_BYTES, Err(VnetFault::GsoSizeZero)),
            (VnetHdr { gso_size: 5001, ..TCP4 }, FRAME_BYTES, Ok(())),
            (VnetHdr { gso_size: u16::MAX, ..udp }, FRAME_BYTES, Ok(())),
            // Each cut needs a checksum of its own; fragments of one datagram share the datagram's.
            (VnetHdr { flags: 0, ..TCP4 }, FRAME_BYTES, Err(VnetFault::GsoWithoutCsum)),
            (VnetHdr { flags: F_DATA_VALID, ..udp }, FRAME_BYTES, Err(VnetFault::GsoWithoutCsum)),
            (ufo, FRAME_BYTES, Ok(())),
            (VnetHdr { gso_size: 0, ..ufo }, FRAME_BYTES, Err(VnetFault::GsoSizeZero)),
        ];
        for (header, frame_bytes, expected) in table {
            assert_eq!(header.check(frame_bytes), expected, "{header:?} in {frame_bytes} bytes");
        }
    }

    #[test]
    fn a_receiver_is_offered_what_it_accepts() {
        let with = |gso, ecn| VnetHdr { gso, ecn, ..TCP4 };
        let verified = VnetHdr { flags: F_DATA_VALID, ..VnetHdr::default() };
        // A header, and the least offloads that take it.
        let table = [
            (VnetHdr::default(), Offloads::NONE),
            (verified, Offloads::NONE),
            (with(GsoType::None, false), Offloads::CSUM),
            (with(GsoType::Tcp4, false), Offloads::CSUM | Offloads::TSO4),
            (with(GsoType::Tcp6, false), Offloads::CSUM | Offloads::TSO6),
            (with(GsoType::Tcp4, true), Offloads::CSUM | Offloads::TSO4 | Offloads::ECN),
            (with(GsoType::Tcp6, true), Offloads::CSUM | Offloads::TSO6 | Offloads::ECN),
            (with(GsoType::UdpL4, false), Offloads::CSUM | Offloads::USO),
            (with(GsoType::Ufo, false), Offloads::CSUM | Offloads::UFO),
        ];
        for (header, needed) in table {
            // Every set of the six offloads takes it exactly if it has all that is needed.
            for bits in 0..1 << 6 {
                let offloads = Offloads(bits);
                assert_eq!(offloads.accept(&header), bits & needed.0 == needed.0, "{offloads:?}: {header:?}");
                assert_eq!(offloads.contains(needed), offloads & needed == needed);
            }
            assert_eq!(Offloads::ALL.accept(&header), header.gso != GsoType::Ufo);
        }
    }

    proptest! {
        #[test]
        fn what_is_decoded_is_what_was_encoded(raw: [u8; VNET_HDR_BYTES]) {
            if let Ok(header) = VnetHdr::decode(&raw) {
                let num_buffers = u16::from_le_bytes([raw[10], raw[11]]);
                let mut expected = raw;
                // Flags that the switch does not know are not passed on.
                expected[0] &= F_NEEDS_CSUM | F_DATA_VALID;
                prop_assert_eq!(header.encode(num_buffers), expected);
                prop_assert_eq!(VnetHdr::decode(&expected), Ok(header));
            }
        }

        #[test]
        fn no_impossible_header_passes_and_no_possible_one_is_refused(
            mut raw: [u8; VNET_HDR_BYTES],
            gso_type in prop::sample::select(vec![0_u8, 1, 3, 4, 5, 0x81, 0x84]),
            frame_bytes in prop_oneof![0..200_u32, 0..140_000_u32, any::<u32>()],
        ) {
            raw[1] = gso_type;
            let header = VnetHdr::decode(&raw).unwrap();
            let csum_end = u64::from(header.csum_start) + u64::from(header.csum_offset) + 2;
            let csum_fits = !header.needs_csum() || csum_end <= u64::from(frame_bytes);
            let gso_fits = header.gso == GsoType::None
                || header.gso_size != 0 && (header.needs_csum() || header.gso == GsoType::Ufo);
            prop_assert_eq!(header.check(frame_bytes).is_ok(), csum_fits && gso_fits);
        }
    }
}
