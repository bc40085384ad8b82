//! A train: packets in a row that have one key, told by their first bytes without making it again.
//!
//! Most packets come in trains, as a sender's segments and datagrams do. Only what the key is made of is compared, and what
//! makes a packet a usual one (`usual`); checksums, identifications, sequence numbers and lengths differ from packet
//! to packet. That a packet's length fits its frame is checked of each.

use super::usual::{self, FRAGMENT, START_WORDS};

/// A train, by the first words of one of its packets.
#[derive(Clone, Copy)]
pub struct Train([u64; START_WORDS]);

impl Train {
    /// No packet is of this train: none with these words is a usual one.
    pub const NONE: Train = Train([0; START_WORDS]);

    /// The train of a usual packet, which starts with these words as they lie in memory.
    #[inline(always)]
    pub fn of(start: [u64; START_WORDS]) -> Train {
        Train(start)
    }

    /// Whether the frame that starts with these words and has `frame_bytes`, at least
    /// [`START_BYTES`](super::usual::START_BYTES), is a usual packet with the key of this train.
    #[inline(always)]
    pub fn has(&self, start: [u64; START_WORDS], frame_bytes: u32) -> bool {
        let differ = |word: usize| u64::from_le(start[word] ^ self.0[word]);
        // The addresses behind the header's checksum and the ports, in which packets of two flows differ.
        if differ(3) >> 16 | differ(4) << 16 != 0 {
            return false;
        }
        // Of the third word what says whether it is a fragment, and the protocol.
        if differ(0) | differ(1) | differ(2) & (FRAGMENT << 32 | 0xff << 56) != 0 {
            return false;
        }
        usual::fits(u64::from_le(start[2]), frame_bytes)
    }
}

#[cfg(test)]
mod tests {
    //! A packet is of another's train exactly if extraction takes it and makes the same key of it.
    use super::*;
    use crate::api::PortId;
    use crate::key::frames::{Body, L4, Spec};
    use crate::key::usual::{START_BYTES, key_line};
    use crate::key::{FlowKey, HEADER_BYTES, extract};
    use proptest::prelude::*;
    use std::vec::Vec;

    const PORT: PortId = PortId(3);

    fn start(frame: &[u8]) -> [u64; START_WORDS] {
        let start: [u8; START_BYTES] = frame[..START_BYTES].try_into().unwrap();
        zerocopy::transmute!(start)
    }

    /// What extraction makes of a frame, of which it may refuse the length.
    fn key(frame: &[u8]) -> Option<FlowKey> {
        let mut key = FlowKey::ZERO;
        let header = &frame[..frame.len().min(HEADER_BYTES)];
        extract(header, frame.len() as u32, PORT, 0, &mut key).ok().map(|_| key)
    }

    /// Whether a frame is of the train of a usual one; also held against extraction.
    fn follows(first: &[u8], frame: &[u8]) -> bool {
        let follows = Train::of(start(first)).has(start(frame), frame.len() as u32);
        let is_usual = key_line(start(frame), frame.len() as u32, PORT).is_some();
        assert_eq!(follows, is_usual && key(frame) == key(first));
        assert!(!Train::NONE.has(start(frame), frame.len() as u32));
        follows
    }

    /// A frame that is the first of a train.
    fn usual() -> impl Strategy<Value = Vec<u8>> {
        let l4 = (any::<bool>(), any::<(u16, u16)>());
        let l4 = l4.prop_map(|(tcp, (src, dst))| if tcp { L4::Tcp(src, dst) } else { L4::Udp(src, dst) });
        let payload = proptest::collection::vec(any::<u8>(), 0..200);
        (any::<([u8; 6], [u8; 6], [u8; 4], [u8; 4], u8)>(), l4, payload).prop_map(
            |((eth_src, eth_dst, src, dst, tos), l4, payload)| {
                let body = Body::Ip4 { src, dst, tos, option_words: 0, l4, payload };
                Spec { eth_src, eth_dst, tags: Vec::new(), body }.build()
            },
        )
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4000))]

        /// Holds it of frames that differ from the first one in some bytes and in length.
        #[test]
        fn it_agrees_with_extraction(
            first in usual(),
            changes in proptest::collection::vec((0..48_usize, any::<u8>()), 0..4),
            frame_bytes in START_BYTES..300,
        ) {
            let mut frame = first.clone();
            for (at, bits) in changes {
                if let Some(byte) = frame.get_mut(at) {
                    *byte ^= bits;
                }
            }
            follows(&first, &frame);
            frame.resize(frame_bytes, 0);
            follows(&first, &frame);
        }

        /// Holds it of each byte alone, and which bytes they are that packets of a train differ in.
        #[test]
        fn it_leaves_out_what_no_key_has(first in usual(), bits in 1..=u8::MAX) {
            for at in 0..START_BYTES {
                let mut frame = first.clone();
                frame[at] ^= bits;
                let is_left_out = match at {
                    // The total length, which is to fit.
                    16 | 17 => key(&frame).is_some() && key_line(start(&frame), frame.len() as u32, PORT).is_some(),
                    // "Don't fragment", and the bit above it.
                    20 => bits & 0x3f == 0,
                    18 | 19 | 22 | 24 | 25 | 38 | 39 => true,
                    _ => false,
                };
                assert_eq!(follows(&first, &frame), is_left_out, "byte {at}");
            }
        }
    }
}
