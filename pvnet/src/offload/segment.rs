//! Segmentation in software: one large frame becomes the wire frames that it stands for.
//!
//! A [`Segmenter`] is made from a frame's headers and its length; it never sees the payload. For each
//! cut it yields the headers of that wire frame and which of the large frame's bytes follow them, so
//! that the caller moves every payload byte once, from the sender's memory to the receiver's.
//!
//! | field | in the cuts |
//! | --- | --- |
//! | IPv4 total length, IPv6 payload length, UDP length | the cut's own |
//! | IPv4 identification | counts up by one a cut |
//! | IPv4 header checksum | computed |
//! | TCP sequence number | moves on by the payload before the cut |
//! | TCP FIN, PSH | only in the last |
//! | TCP CWR | only in the first (RFC 3168, 6.1.2: one window, reduced once) |
//! | L4 checksum | partial, with the pseudo-header's length replaced; [`Cut::finish`] completes it |

use alloc::vec::Vec;
use core::ops::Range;

use super::layout::{IPV6_BYTES, Ip, Layout, protocol, u16_at};
use super::{LayoutFault, Sum, TCP_CSUM_OFFSET, UDP_CSUM_OFFSET, Unfinishable};
use super::{finish, put_u16, sum, write_checksum};
use crate::header::{F_NEEDS_CSUM, GsoType, Offloads, VnetFault, VnetHdr};

/// The most bytes of headers, Ethernet's to L4's, that a frame to be cut may have. IPv4 with every
/// option needs 142; IPv6 is left 154 for extension headers beside a TCP header with every option.
pub const MAX_HEADER_BYTES: usize = 256;

/// The most wire frames that one frame may become: 64 KiB in the least segments that Linux sends, 48
/// bytes (`TCP_MIN_SND_MSS`). A sender could else make the switch work 65,000 times for one descriptor.
pub const MAX_CUTS: u32 = 65_536_u32.div_ceil(48);

const TCP_MIN_BYTES: usize = 20;
const UDP_BYTES: usize = 8;

const TCP_FIN: u8 = 0x01;
const TCP_PSH: u8 = 0x08;
const TCP_CWR: u8 = 0x80;

/// Why a frame cannot be cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unsegmentable {
    /// The frame is a wire frame as it is.
    #[error("the frame asks for no segmentation")]
    NotAsked,
    /// UDP fragmentation, which Linux gave up in 4.14 and the switch offers to no sender.
    #[error("UDP fragmentation offload is not supported")]
    Ufo,
    /// The `virtio_net_hdr` cannot be true of a frame of this length.
    #[error(transparent)]
    Header(#[from] VnetFault),
    /// The headers cannot be followed to the payload.
    #[error(transparent)]
    Layout(#[from] LayoutFault),
    /// The frame's headers are not what its `gso_type` says.
    #[error("{gso:?} segmentation asked for a frame of protocol {protocol}")]
    WrongProtocol {
        /// How the frame was to be cut.
        gso: GsoType,
        /// The frame's L4 protocol, perhaps the right one over the wrong version of IP.
        protocol: u8,
    },
    /// The partial checksum is not that of the L4 header to be repeated.
    #[error("checksum at {csum_start}+{csum_offset} is not that of the L4 header at {l4}")]
    ChecksumElsewhere {
        /// First byte that the checksum covers.
        csum_start: u16,
        /// Where the checksum goes, from `csum_start`.
        csum_offset: u16,
        /// Where the L4 header is.
        l4: usize,
    },
    /// The headers are longer than [`MAX_HEADER_BYTES`].
    #[error("{0} bytes of headers exceed {MAX_HEADER_BYTES}")]
    HeadersTooLong(usize),
    /// A length field of the IP or UDP header is not the frame's.
    #[error("a header says {said} bytes where the frame has {bytes}")]
    Length {
        /// What the length field says.
        said: u16,
        /// What the frame has.
        bytes: usize,
    },
    /// More than [`MAX_CUTS`] wire frames.
    #[error("{0} wire frames exceed {MAX_CUTS}")]
    TooManyCuts(u32),
    /// A frame that need not be cut has a checksum that cannot be finished.
    #[error(transparent)]
    Unfinishable(#[from] Unfinishable),
}

/// What the cuts' L4 headers start from.
#[derive(Clone, Copy, Debug)]
enum Transport {
    Tcp { sequence: u32, flags: u8 },
    Udp,
}

/// One wire frame of a larger one.
#[derive(Debug)]
pub struct Cut<'a> {
    /// Its first bytes, Ethernet header to L4 header. The L4 checksum is partial.
    pub headers: &'a mut [u8],
    /// Its `virtio_net_hdr`: nothing to cut, and the checksum to be finished.
    pub header: VnetHdr,
    /// The bytes that follow the headers, as offsets in the large frame.
    pub payload: Range<u32>,
}

impl Cut<'_> {
    /// Completes the L4 checksum, for a receiver that takes no partial ones, given the sum of the cut's
    /// payload. Its `header` then asks for nothing. A second call changes nothing.
    pub fn finish(&mut self, payload: Sum) {
        if self.header.needs_csum() {
            write_checksum(self.headers, &mut self.header, payload);
        }
    }
}

/// Cuts one large frame into wire frames, in order.
#[derive(Debug)]
pub struct Segmenter {
    headers: [u8; MAX_HEADER_BYTES],
    /// Bytes of `headers` that are the frame's; at most [`MAX_HEADER_BYTES`].
    header_bytes: usize,
    layout: Layout,
    transport: Transport,
    /// IPv4's identification of the first cut.
    identification: u16,
    /// The L4 checksum's partial sum without the pseudo-header's length.
    partial: Sum,
    csum_offset: u16,
    gso_size: u32,
    frame_bytes: u32,
    /// The next cut's first payload byte, from the start of the frame; none when all is cut.
    next: Option<u32>,
}

impl Segmenter {
    /// Prepares to cut a frame of `frame_bytes` with the `header` that came with it. `head` is its first
    /// bytes, all of its headers among them; more do no harm.
    ///
    /// Nothing of the frame is believed: its headers are followed anew, `hdr_len` is ignored (it is a
    /// hint, VIRTIO 1.2, clause 5.1.6.2), and every length must be the frame's own. But the partial
    /// checksum is taken as it is and only its length replaced, so that it stays right when the
    /// destination in it is not the header's, as with an IPv6 routing header.
    pub fn new(head: &[u8], frame_bytes: u32, header: &VnetHdr) -> Result<Segmenter, Unsegmentable> {
        match header.gso {
            GsoType::None => return Err(Unsegmentable::NotAsked),
            GsoType::Ufo => return Err(Unsegmentable::Ufo),
            GsoType::Tcp4 | GsoType::Tcp6 | GsoType::UdpL4 => header.check(frame_bytes)?,
        }
        let head = &head[..head.len().min(frame_bytes as usize)];
        let layout = Layout::parse(head)?;
        let Layout { ip, l3, l4, protocol } = layout;

        let (transport, l4_header_bytes, csum_offset) = match (header.gso, ip, protocol) {
            (GsoType::Tcp4, Ip::V4, protocol::TCP) | (GsoType::Tcp6, Ip::V6, protocol::TCP) => {
                let tcp = head.get(l4..l4 + TCP_MIN_BYTES).ok_or(LayoutFault::Truncated)?;
                let sequence = u32::from_be_bytes([tcp[4], tcp[5], tcp[6], tcp[7]]);
                (Transport::Tcp { sequence, flags: tcp[13] }, usize::from(tcp[12] >> 4) * 4, TCP_CSUM_OFFSET)
            }
            (GsoType::UdpL4, _, protocol::UDP) => (Transport::Udp, UDP_BYTES, UDP_CSUM_OFFSET),
            (gso, ..) => return Err(Unsegmentable::WrongProtocol { gso, protocol }),
        };
        if matches!(transport, Transport::Tcp { .. }) && l4_header_bytes < TCP_MIN_BYTES {
            return Err(LayoutFault::Malformed.into());
        }
        let header_bytes = l4 + l4_header_bytes;
        if header_bytes > MAX_HEADER_BYTES {
            return Err(Unsegmentable::HeadersTooLong(header_bytes));
        }
        let head = head.get(..header_bytes).ok_or(LayoutFault::Truncated)?;
        if usize::from(header.csum_start) != l4 || header.csum_offset != csum_offset {
            let VnetHdr { csum_start, csum_offset, .. } = *header;
            return Err(Unsegmentable::ChecksumElsewhere { csum_start, csum_offset, l4 });
        }

        // `head` is within the frame, so neither of these lengths can be negative.
        let behind = |at: usize| frame_bytes as usize - at;
        match ip {
            Ip::V4 => agree(u16_at(head, l3 + 2)?, behind(l3))?,
            Ip::V6 => agree(u16_at(head, l3 + 4)?, behind(l3 + IPV6_BYTES))?,
        }
        let l4_bytes = behind(l4) as u16;
        if let Transport::Udp = transport {
            agree(u16_at(head, l4 + 4)?, behind(l4))?;
        }
        let gso_size = u32::from(header.gso_size);
        let cuts = (frame_bytes - header_bytes as u32).div_ceil(gso_size);
        if cuts > MAX_CUTS {
            return Err(Unsegmentable::TooManyCuts(cuts));
        }

        let partial = Sum::from(u16_at(head, l4 + usize::from(csum_offset))?).join((!l4_bytes).into());
        let identification = u16_at(head, l3 + 4)?;
        let mut headers = [0; MAX_HEADER_BYTES];
        headers[..header_bytes].copy_from_slice(head);
        Ok(Segmenter {
            headers,
            header_bytes,
            layout,
            transport,
            identification,
            partial,
            csum_offset,
            gso_size,
            frame_bytes,
            next: Some(header_bytes as u32),
        })
    }

    /// How many cuts are still to come. A new segmenter has one at least, even without any payload.
    pub fn remaining(&self) -> u32 {
        self.next.map_or(0, |next| (self.frame_bytes - next).div_ceil(self.gso_size).max(1))
    }

    /// Leaves out the next `cuts` wire frames: all that there are, if there are no more.
    pub fn skip(&mut self, cuts: u32) {
        let Some(next) = self.next.filter(|_| cuts > 0) else { return };
        let after = cuts.checked_mul(self.gso_size).and_then(|bytes| next.checked_add(bytes));
        self.next = after.filter(|after| *after < self.frame_bytes);
    }

    /// The next wire frame. Its headers are overwritten by the one after it.
    pub fn next_cut(&mut self) -> Option<Cut<'_>> {
        let start = self.next?;
        let end = self.frame_bytes.min(start + self.gso_size);
        self.next = (end < self.frame_bytes).then_some(end);

        let Layout { ip, l3, l4, .. } = self.layout;
        let before = start - self.header_bytes as u32;
        let headers = &mut self.headers[..self.header_bytes];
        // No longer than the whole frame, whose own length fits its 16-bit field.
        let l4_bytes = (headers.len() - l4) as u16 + (end - start) as u16;
        match ip {
            Ip::V4 => {
                let index = (before / self.gso_size) as u16;
                put_u16(headers, l3 + 2, (l4 - l3) as u16 + l4_bytes);
                put_u16(headers, l3 + 4, self.identification.wrapping_add(index));
                put_u16(headers, l3 + 10, 0);
                let checksum = sum(&headers[l3..l4]).checksum();
                put_u16(headers, l3 + 10, checksum);
            }
            Ip::V6 => put_u16(headers, l3 + 4, (l4 - l3 - IPV6_BYTES) as u16 + l4_bytes),
        }
        match self.transport {
            Transport::Tcp { sequence, flags } => {
                let not_first = if before > 0 { TCP_CWR } else { 0 };
                let not_last = if self.next.is_some() { TCP_FIN | TCP_PSH } else { 0 };
                headers[l4 + 4..l4 + 8].copy_from_slice(&sequence.wrapping_add(before).to_be_bytes());
                headers[l4 + 13] = flags & !not_first & !not_last;
            }
            Transport::Udp => put_u16(headers, l4 + 4, l4_bytes),
        }
        let partial = self.partial.join(l4_bytes.into()).fold();
        put_u16(headers, l4 + usize::from(self.csum_offset), partial);

        let header = VnetHdr {
            flags: F_NEEDS_CSUM,
            csum_start: l4 as u16,
            csum_offset: self.csum_offset,
            ..VnetHdr::default()
        };
        Some(Cut { headers, header, payload: start..end })
    }
}

fn agree(said: u16, bytes: usize) -> Result<(), Unsegmentable> {
    if usize::from(said) == bytes { Ok(()) } else { Err(Unsegmentable::Length { said, bytes }) }
}

/// Hands `emit` what a receiver with the offloads `accept` is to get of a `frame` in one piece: the
/// frame itself if it takes that, else the frame finished, or its wire frames in order.
///
/// Everything is decided before the first call of `emit`, so a frame that is refused was not begun. It
/// allocates; where speed counts, use [`Segmenter`].
pub fn segment_into(
    frame: &[u8],
    header: &VnetHdr,
    accept: Offloads,
    emit: &mut dyn FnMut(&[u8], VnetHdr),
) -> Result<(), Unsegmentable> {
    if accept.accept(header) {
        emit(frame, *header);
        return Ok(());
    }
    let mut wire = Vec::new();
    if header.gso == GsoType::None {
        let mut header = *header;
        wire.extend_from_slice(frame);
        finish(&mut wire, &mut header)?;
        emit(&wire, header);
        return Ok(());
    }
    let frame_bytes = u32::try_from(frame.len()).unwrap_or(u32::MAX);
    let mut segmenter = Segmenter::new(frame, frame_bytes, header)?;
    while let Some(mut cut) = segmenter.next_cut() {
        let payload = &frame[cut.payload.start as usize..cut.payload.end as usize];
        if !accept.contains(Offloads::CSUM) {
            cut.finish(sum(payload));
        }
        wire.clear();
        wire.extend_from_slice(cut.headers);
        wire.extend_from_slice(payload);
        emit(&wire, cut.header);
    }
    Ok(())
}
