//! The hash of a key: folded multiplication over its words, with secrets from the host's seed.
//!
//! Unseeded, a guest could choose packets that all meet in one place of the cache. A key without a second
//! cache line is hashed by its first alone: of its eight words those that most packets have, in three independent
//! multiplications, and one that scatters what they give.

use crate::key::FlowKey;

/// The secrets of one switch.
#[derive(Clone)]
pub(crate) struct Hasher {
    secrets: [u64; 16],
}

#[inline]
fn fold(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    product as u64 ^ (product >> 64) as u64
}

impl Hasher {
    pub(crate) fn new(seed: u64) -> Hasher {
        // SplitMix64 (Steele, Lea, Flood 2014): one seed, as many independent words as are wanted.
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let z = (state ^ state >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
            (z ^ z >> 31) | 1
        };
        Hasher { secrets: core::array::from_fn(|_| next()) }
    }

    /// The hash of a whole key.
    #[inline]
    pub(crate) fn key(&self, key: &FlowKey) -> u64 {
        let words = key.words();
        let hash = self.line(words.first_chunk().expect("eight of sixteen"));
        if key.has_cold() { self.cold(hash, words) } else { hash }
    }

    /// The hash of a key with this first cache line and nothing in the second.
    #[inline(always)]
    pub(crate) fn line(&self, words: &[u64; 8]) -> u64 {
        let secrets = &self.secrets;
        let pair = |i: usize, j: usize| fold(words[i] ^ secrets[i], words[j] ^ secrets[j]);
        let hash = pair(0, 1) ^ pair(2, 4).rotate_left(21) ^ pair(5, 3).rotate_left(42);
        // Few packets have a metadata or a tunnel id.
        let hash = if words[6] | words[7] == 0 { hash } else { hash ^ pair(6, 7).rotate_left(11) };
        // Neighbouring numbers give products in an even step, which this scatters.
        fold(hash ^ secrets[8], secrets[9])
    }

    #[cold]
    fn cold(&self, hash: u64, words: &[u64; 16]) -> u64 {
        let pair = |i: usize| fold(words[i] ^ self.secrets[i], words[i + 1] ^ self.secrets[i + 1]);
        let cold = pair(8) ^ pair(10).rotate_left(16) ^ pair(12).rotate_left(32) ^ pair(14).rotate_left(48);
        fold(hash ^ self.secrets[0], cold ^ self.secrets[1])
    }

    /// The hash of the bits of `key` that `mask` has, given the `words` in which it has any.
    #[inline]
    pub(crate) fn masked(&self, key: &[u64; 16], mask: &[u64; 16], words: &[u8]) -> u64 {
        let mut hash = self.secrets[15];
        for &word in words {
            let word = usize::from(word & 15);
            hash = fold(hash ^ (key[word] & mask[word]), self.secrets[word]);
        }
        hash
    }
}

#[cfg(test)]
mod tests {
    //! Neighbouring keys spread over a cache's buckets as random ones would, whatever the seed.
    use super::*;
    use std::collections::HashMap;

    /// The fullest bucket of 4,096, and how many are in use, for `keys`.
    fn spread(seed: u64, keys: impl Iterator<Item = FlowKey>) -> (usize, usize) {
        let hasher = Hasher::new(seed);
        let mut buckets = HashMap::<u64, usize>::new();
        keys.for_each(|key| *buckets.entry(hasher.key(&key) & 4095).or_default() += 1);
        (buckets.values().copied().max().unwrap_or(0), buckets.len())
    }

    #[test]
    fn neighbours_spread() {
        for seed in 0..32 {
            let sources =
                (0..4096).map(|n| FlowKey { in_port: 1, eth_type: 0x800, ip4_src: n, ..FlowKey::ZERO });
            let (fullest, used) = spread(seed, sources);
            // Random keys would use 1 - 1/e of the buckets, 2,589; the fullest would have about 6.
            assert!(fullest <= 12 && used > 2_400, "sources, seed {seed}: {fullest}, {used}");
            let ports = (0..4096).map(|n| FlowKey { in_port: 1, ip_proto: 6, l4_src: n, ..FlowKey::ZERO });
            let (fullest, used) = spread(seed, ports);
            assert!(fullest <= 12 && used > 2_400, "ports, seed {seed}: {fullest}, {used}");
            let hosts = (0..4096u32).map(|n| {
                let [.., a, b] = n.to_be_bytes();
                FlowKey { ip6_src: [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, a, b], ..FlowKey::ZERO }
                    .with_flags()
            });
            let (fullest, used) = spread(seed, hosts);
            assert!(fullest <= 12 && used > 2_400, "hosts, seed {seed}: {fullest}, {used}");
        }
    }
}
