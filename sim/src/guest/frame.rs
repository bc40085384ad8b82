//! The frames of modelled guests: real headers, then three numbers.
//!
//! ```text
//!   Ethernet 14 | IPv4 20 | UDP 8 or TCP 20 | ordinal 8 | word 8 | pattern
//! ```
//!
//! The ordinal counts a sender's frames, so that a receiver sees whether they come in order; the word is what they say.

use etherparse::PacketBuilder;
use hyper_switch_pvnet::guest::GuestConfig;
use std::ops::RangeInclusive;

/// Bytes of a frame's numbers.
const NUMBER_BYTES: usize = 16;
/// Bytes of the headers below the transport's.
const LOWER_BYTES: usize = 14 + 20;
/// Bytes of a frame that its receiver reads at most, where it does not look at the pattern.
pub(crate) const HEAD_BYTES: usize = LOWER_BYTES + Transport::Tcp.header_bytes() + NUMBER_BYTES;

/// The port that both sides use.
const PORT: u16 = 5001;
const TTL: u8 = 64;
/// What a TCP header says of the window: it is not looked at.
const TCP_WINDOW: u16 = u16::MAX;

/// What a frame says, in a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Says {
    /// Data, with their number in the flow.
    Data(u64),
    /// All data before this number have come.
    Acked(u64),
    /// Likewise, and the next is missing though later ones came.
    Missing(u64),
    /// Here is where I am.
    Hello,
    /// A question, asked at this time.
    Question(u64),
    /// The answer to a question that was asked at this time.
    Answer(u64),
}

const KIND_SHIFT: u32 = 60;
const VALUE: u64 = (1 << KIND_SHIFT) - 1;

impl Says {
    fn word(self) -> u64 {
        let (kind, value) = match self {
            Says::Data(number) => (0, number),
            Says::Acked(number) => (1, number),
            Says::Missing(number) => (2, number),
            Says::Hello => (3, 0),
            Says::Question(at_ns) => (4, at_ns),
            Says::Answer(at_ns) => (5, at_ns),
        };
        kind << KIND_SHIFT | value & VALUE
    }

    fn of(word: u64) -> Option<Says> {
        let value = word & VALUE;
        Some(match word >> KIND_SHIFT {
            0 => Says::Data(value),
            1 => Says::Acked(value),
            2 => Says::Missing(value),
            3 => Says::Hello,
            4 => Says::Question(value),
            5 => Says::Answer(value),
            _ => return None,
        })
    }
}

/// What is above IPv4.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Transport {
    Udp,
    Tcp,
}

impl Transport {
    const fn header_bytes(self) -> usize {
        match self {
            Transport::Udp => 8,
            Transport::Tcp => 20,
        }
    }

    /// Bytes that a frame may have: no fewer than Ethernet allows (IEEE 802.3-2018, clause 3.2.7) and its numbers take,
    /// no more than the guests' buffers hold.
    pub(crate) fn frame_bytes(self) -> RangeInclusive<usize> {
        (LOWER_BYTES + self.header_bytes() + NUMBER_BYTES).max(60)..=65_536
    }
}

/// How frames of one guest to another begin.
#[derive(Clone, Debug)]
pub(crate) struct Template {
    headers: Vec<u8>,
    /// How frames that come back begin: both Ethernet addresses.
    back: [u8; 12],
}

impl Template {
    /// Of frames of `bytes` from the guest `own` to the guest `peer`, by their numbers.
    pub(crate) fn new(own: u16, peer: u16, transport: Transport, bytes: usize) -> Template {
        let (own, peer) = (GuestConfig::numbered(own), GuestConfig::numbered(peer));
        let start = PacketBuilder::ethernet2(own.mac, peer.mac).ipv4(own.ip.octets(), peer.ip.octets(), TTL);
        let header_bytes = LOWER_BYTES + transport.header_bytes();
        let payload = vec![0; bytes - header_bytes];
        let mut headers = Vec::with_capacity(bytes);
        let written = match transport {
            Transport::Udp => start.udp(PORT, PORT).write(&mut headers, &payload),
            Transport::Tcp => start.tcp(PORT, PORT, 0, TCP_WINDOW).write(&mut headers, &payload),
        };
        written.expect("a frame within the bounds can be written to memory");
        headers.truncate(header_bytes);
        let mut back = [0; 12];
        back[..6].copy_from_slice(&own.mac);
        back[6..].copy_from_slice(&peer.mac);
        Template { headers, back }
    }

    /// Writes the beginning of a frame.
    #[inline]
    pub(crate) fn write(&self, frame: &mut [u8], ordinal: u64, says: Says) {
        let at = self.headers.len();
        frame[..at].copy_from_slice(&self.headers);
        frame[at..at + 8].copy_from_slice(&ordinal.to_be_bytes());
        frame[at + 8..at + 16].copy_from_slice(&says.word().to_be_bytes());
    }

    /// Reads a frame of the peer: its ordinal and what it says. None of another's, or of none of ours.
    #[inline]
    pub(crate) fn read(&self, frame: &[u8]) -> Option<(u64, Says)> {
        let at = self.headers.len();
        let numbers = frame.get(at..at + NUMBER_BYTES)?;
        if !frame.starts_with(&self.back) {
            return None;
        }
        let (ordinal, word) = numbers.split_first_chunk::<8>()?;
        Some((u64::from_be_bytes(*ordinal), Says::of(u64::from_be_bytes(word.try_into().ok()?))?))
    }

    /// Where a frame's pattern begins.
    pub(crate) fn pattern_at(&self) -> usize {
        self.headers.len() + NUMBER_BYTES
    }
}

/// What any frame of any guest says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Letter {
    pub(crate) from: u16,
    pub(crate) to: u16,
    pub(crate) ordinal: u64,
    pub(crate) pattern_at: usize,
}

/// Reads a frame of any guest to any other; none of what no guest writes.
pub(crate) fn letter(frame: &[u8]) -> Option<Letter> {
    let (addresses, rest) = frame.split_first_chunk::<12>()?;
    let number = |mac: &[u8]| {
        let vm = u16::from_be_bytes([mac[4], mac[5]]).checked_sub(1)?;
        (mac == GuestConfig::numbered(vm).mac).then_some(vm)
    };
    let (to, from) = (number(&addresses[..6])?, number(&addresses[6..])?);
    // IPv4's field of the protocol (RFC 791, section 3.1).
    let transport = match *rest.get(LOWER_BYTES - 12 - 11)? {
        6 => Transport::Tcp,
        17 => Transport::Udp,
        _ => return None,
    };
    let numbers_at = LOWER_BYTES + transport.header_bytes();
    let ordinal = frame.get(numbers_at..numbers_at + NUMBER_BYTES)?.first_chunk()?;
    Some(Letter { from, to, ordinal: u64::from_be_bytes(*ordinal), pattern_at: numbers_at + NUMBER_BYTES })
}

/// Fills what is behind the numbers of a frame, so that no two frames of a run have the same bytes at one place.
pub(crate) fn fill(pattern: &mut [u8], ordinal: u64) {
    for (at, byte) in pattern.iter_mut().enumerate() {
        *byte = mixed(at, ordinal);
    }
}

/// Whether it came as it was filled.
pub(crate) fn is_intact(pattern: &[u8], ordinal: u64) -> bool {
    pattern.iter().enumerate().all(|(at, byte)| *byte == mixed(at, ordinal))
}

fn mixed(at: usize, ordinal: u64) -> u8 {
    // The multiplier of Steele and Vigna's 64-bit generator: any odd number without a pattern does.
    ((at as u64 ^ ordinal << 17).wrapping_mul(0xd134_2543_de82_ef95) >> 56) as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Holds that a frame is what the switch takes for one, and that the peer, and nobody else, reads what it says.
    #[test]
    fn a_frame_is_read_as_it_was_written() {
        for transport in [Transport::Udp, Transport::Tcp] {
            let lengths = transport.frame_bytes();
            for bytes in [*lengths.start(), 1514, *lengths.end()] {
                let says = [
                    Says::Data(7),
                    Says::Acked(8),
                    Says::Missing(9),
                    Says::Hello,
                    Says::Question(5),
                    Says::Answer(5),
                ];
                for (ordinal, says) in says.into_iter().enumerate() {
                    let mut frame = vec![0; bytes];
                    let template = Template::new(3, 4, transport, bytes);
                    template.write(&mut frame, ordinal as u64, says);
                    fill(&mut frame[template.pattern_at()..], 6);
                    assert!(is_intact(&frame[template.pattern_at()..], 6));
                    assert!(bytes < 100 || !is_intact(&frame[template.pattern_at()..], 5));
                    let read = |own, peer| Template::new(own, peer, transport, bytes).read(&frame);
                    assert_eq!(read(4, 3), Some((ordinal as u64, says)));
                    let expected =
                        Letter { from: 3, to: 4, ordinal: ordinal as u64, pattern_at: template.pattern_at() };
                    assert_eq!(letter(&frame), Some(expected));
                    assert_eq!((read(3, 4), read(5, 3), read(4, 5)), (None, None, None));
                    let packet = etherparse::SlicedPacket::from_ethernet(&frame).unwrap();
                    assert!(packet.net.is_some() && packet.transport.is_some());
                }
            }
        }
    }
}
