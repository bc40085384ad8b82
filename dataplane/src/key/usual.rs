//! The usual packet, the fast way: IPv4 without tags, options or fragments, with TCP or UDP.
//!
//! Its fields lie in the frame's first 40 bytes, always at the same places. Those bytes come in as five words, which
//! the caller has just read and keeps in registers, and the key's first line goes out as eight: no byte is loaded
//! from memory, none is stored before the whole key is there. Any other packet is [`extract`](super::extract())'s, which
//! makes the same key of a usual one.

use super::FlowKey;
use super::extract::{ETH_IPV4, IP_TCP, IP_UDP};
use crate::api::PortId;
use zerocopy::transmute;

/// Words from a frame's start on that hold all that a usual packet's key is made of.
pub const START_WORDS: usize = 5;
/// Their bytes.
pub const START_BYTES: usize = 8 * START_WORDS;

const ETH_BYTES: u32 = 14;
const IPV4_BYTES: u32 = 20;
/// The fixed parts.
const TCP_BYTES: u32 = 20;
const UDP_BYTES: u32 = 8;
/// Bytes 12 to 14 of a frame, as they lie in a little-endian word: the type, and IP version 4 with a header of five words.
const IPV4_WITHOUT_OPTIONS: u64 = (ETH_IPV4.swap_bytes() as u64) | 0x45 << 16;
/// Bytes 20 and 21, likewise: "more fragments" and the offset.
pub(super) const FRAGMENT: u64 = 0xff3f;

/// The first line of the key of a frame that starts with these words, as they lie in memory, and has `frame_bytes`,
/// at least [`START_BYTES`]; none if the packet is not a usual one.
#[inline(always)]
pub fn key_line(start: [u64; START_WORDS], frame_bytes: u32, in_port: PortId) -> Option<[u64; 8]> {
    let [w0, w1, w2, w3, w4] = start.map(u64::from_le);
    if w1 >> 32 & 0xff_ffff != IPV4_WITHOUT_OPTIONS || w2 >> 32 & FRAGMENT != 0 || !fits(w2, frame_bytes) {
        return None;
    }
    let ip_proto = (w2 >> 56) as u8;
    let ip_tos = (w1 >> 56) as u8;
    let ip4_src = (w3 >> 16) as u32;
    let ip4_dst = (w3 >> 48 | w4 << 16) as u32;
    let (l4_src, l4_dst) = ((w4 >> 16) as u16, (w4 >> 32) as u16);
    Some([
        FlowKey::word_of_port(in_port, [ip_proto, ip_tos, 0, 0]),
        FlowKey::word_of_address(w0.to_le_bytes(), ETH_IPV4),
        FlowKey::word_of_address((w0 >> 48 | w1 << 16).to_le_bytes(), 0),
        0,
        transmute!([ip4_src.swap_bytes(), ip4_dst.swap_bytes()]),
        transmute!([transmute!([l4_src.swap_bytes(), l4_dst.swap_bytes()]), 0u32]),
        0,
        0,
    ])
}

/// Whether the third word is one of a TCP or UDP packet whose total length has room for both headers and fits its frame.
#[inline(always)]
pub(super) fn fits(w2: u64, frame_bytes: u32) -> bool {
    let l4_bytes = match (w2 >> 56) as u8 {
        IP_TCP => TCP_BYTES,
        IP_UDP => UDP_BYTES,
        _ => return false,
    };
    let total_bytes = u32::from((w2 as u16).swap_bytes());
    (IPV4_BYTES + l4_bytes..=frame_bytes - ETH_BYTES).contains(&total_bytes)
}
