//! Offloads in software: what a port needs whose receiver did not negotiate them.
//!
//! A frame crosses the switch as its sender left it, with a partial checksum or 64 KiB long, and most
//! receivers take it so. For the others it is finished here, at the last moment: [`finish`] completes
//! a checksum, [`Segmenter`] cuts a large frame into wire frames.
//!
//! The scattered forms come first. The headers are in memory of the switch, where they were copied to
//! be parsed; the payload is still in the sender's memory and goes from there to the receiver's,
//! summed on the way by [`Sum::add_copied`]. The headers are written last, when the sum is known.
//! [`finish`] and [`segment_into`] do the same for frames that are in one piece.
//!
//! Everything here works on bytes that a guest chose. A lie is a typed error and a dropped frame.

mod checksum;
mod layout;
mod segment;
#[cfg(test)]
mod tests;

pub use checksum::{Sum, pseudo_v4, pseudo_v6, sum, update};
pub use layout::LayoutFault;
pub use segment::{Cut, MAX_CUTS, MAX_HEADER_BYTES, Segmenter, Unsegmentable, segment_into};

use crate::header::{GsoType, VnetHdr};
use layout::Layout;

/// Where TCP's checksum is in its header (RFC 9293, 3.1).
const TCP_CSUM_OFFSET: u16 = 16;

/// Where UDP's checksum is in its header (RFC 768).
const UDP_CSUM_OFFSET: u16 = 6;

/// Why a partial checksum cannot be finished. The frame is dropped; it was not touched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unfinishable {
    /// The frame is to be cut first: each cut has a checksum of its own.
    #[error("a frame to be segmented has no checksum of its own")]
    Uncut,
    /// The checksum field is not among the bytes that are there.
    #[error("checksum at {field} lies beyond the {bytes} bytes at hand")]
    FieldBeyond {
        /// Offset of the field in the frame.
        field: usize,
        /// Bytes at hand.
        bytes: usize,
    },
    /// The field is where the frame has other headers, which a checksum must not overwrite.
    #[error("byte {field} of the frame holds no checksum of protocol {protocol}")]
    NotAChecksum {
        /// Offset of the field in the frame.
        field: usize,
        /// The frame's L4 protocol.
        protocol: u8,
    },
    /// The headers cannot be followed to the checksum.
    #[error(transparent)]
    Layout(#[from] LayoutFault),
}

/// Completes the checksum of a frame that is in one piece, and says so in its `header`. A frame whose
/// checksum is not partial is left as it is.
///
/// The checksum covers `csum_start` to the frame's end, and its field holds the pseudo-header's partial
/// sum, which is thereby added (VIRTIO 1.2, clause 5.1.6.2). The `header` then asks for nothing and
/// claims nothing: its flags are 0, as clause 5.1.6.4.1 demands towards a receiver without
/// `VIRTIO_NET_F_GUEST_CSUM`, the only kind that a checksum is finished for. `DATA_VALID` would claim a
/// verification that did not take place: a sum that was computed says nothing about the bytes under it.
pub fn finish(frame: &mut [u8], header: &mut VnetHdr) -> Result<(), Unfinishable> {
    finish_head(frame, header, Sum::default())
}

/// As [`finish`], for a frame of which only the first bytes, `head`, are at hand. `tail` is the sum of
/// all the bytes behind them.
pub fn finish_head(head: &mut [u8], header: &mut VnetHdr, tail: Sum) -> Result<(), Unfinishable> {
    if header.gso != GsoType::None {
        return Err(Unfinishable::Uncut);
    }
    if !header.needs_csum() {
        return Ok(());
    }
    let field = usize::from(header.csum_start) + usize::from(header.csum_offset);
    if field + 2 > head.len() {
        return Err(Unfinishable::FieldBeyond { field, bytes: head.len() });
    }
    let layout = Layout::parse(head)?;
    if !layout.allows_checksum_at(field) {
        return Err(Unfinishable::NotAChecksum { field, protocol: layout.protocol });
    }
    write_checksum(head, header, tail);
    Ok(())
}

/// Writes the checksum and resets the `header`, whose field is known to be in `head`.
///
/// A sum of 0 is sent as 0xffff where 0 would mean "no checksum" (RFC 768, and RFC 8200, 8.1, which
/// forbids it). That is UDP, told by its `csum_offset`: of the other protocols, TCP has its checksum
/// elsewhere, and to DCCP and UDP-Lite, which have it in the same place, the two are the same number.
fn write_checksum(head: &mut [u8], header: &mut VnetHdr, tail: Sum) {
    let start = usize::from(header.csum_start);
    let checksum = match sum(&head[start..]).join(tail).checksum() {
        0 if header.csum_offset == UDP_CSUM_OFFSET => 0xffff,
        checksum => checksum,
    };
    put_u16(head, start + usize::from(header.csum_offset), checksum);
    *header = VnetHdr::default();
}

/// Writes a big-endian 16-bit number to a place that is known to exist.
fn put_u16(bytes: &mut [u8], at: usize, value: u16) {
    bytes[at..at + 2].copy_from_slice(&value.to_be_bytes());
}
