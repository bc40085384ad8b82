//! The Internet checksum (RFC 1071): the one's complement sum of the 16-bit words of some bytes.
//!
//! One's complement addition is addition modulo 65,535, which is what makes it fast. The words may be
//! added in the machine's own byte order and the result swapped once (RFC 1071, 2(B)); they may be
//! added as 32-bit words into 64-bit lanes and folded once, since 2^16 - 1 divides 2^32 - 1 and
//! 2^64 - 1 (2(C)); and a run that starts at an odd byte is its sum with the two bytes swapped. So a
//! [`Sum`] can be continued over any runs of bytes, wherever a frame happens to be split.
//!
//! With the feature `std` on x86-64, AVX2 is used when the machine has it: the same loop, compiled
//! once more with wider registers. Without `std` there is nobody to ask, and the loop runs as the
//! target was compiled.

use crate::mem::Segment;

/// Bytes that go through the lanes at once: two registers of AVX2, widened to 64-bit lanes.
const BLOCK_BYTES: usize = 64;

/// From this length on, asking for AVX2 and calling the wide loop pays.
#[cfg(all(feature = "std", target_arch = "x86_64"))]
const WIDE_BYTES: usize = 256;

/// Bytes that [`Sum::add_copied`] holds at a time, small enough to stay in the first-level cache.
const BOUNCE_BYTES: usize = 1024;

/// An unfinished one's complement sum, to be continued over as many runs of bytes as there are.
///
/// A sum of no bytes, or of zeros only, folds to 0; every other folds to 1..=0xffff.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sum {
    /// The 16-bit words, as this machine reads them from memory, added modulo 2^64 - 1.
    total: u64,
    /// Whether an odd number of bytes was added, so that the next run starts inside a word.
    odd: bool,
}

/// The sum of `bytes`, the last one taken as the high half of a word if their number is odd.
#[inline]
pub fn sum(bytes: &[u8]) -> Sum {
    #[cfg(all(feature = "std", target_arch = "x86_64"))]
    if bytes.len() >= WIDE_BYTES && std::arch::is_x86_feature_detected!("avx2") {
        // SAFETY: the machine was just asked for AVX2 (std caches the answer), the only thing that
        // `total_avx2` demands beyond what safe code gives it.
        let total = unsafe { total_avx2(bytes) };
        return Sum { total, odd: bytes.len() % 2 == 1 };
    }
    Sum { total: total(bytes), odd: bytes.len() % 2 == 1 }
}

impl Sum {
    /// Continues the sum over `bytes`, which follow what was added so far.
    #[inline]
    pub fn add(&mut self, bytes: &[u8]) {
        *self = self.join(sum(bytes));
    }

    /// The sum of two runs of bytes, `next` following this one: as if they had been added in one go.
    #[inline]
    #[must_use]
    pub fn join(self, next: Sum) -> Sum {
        // Swapping the two bytes of every word multiplies by 2^8, and so does this rotation.
        let total = if self.odd { next.total.rotate_left(8) } else { next.total };
        Sum { total: add_with_carry(self.total, total), odd: self.odd != next.odd }
    }

    /// Copies all of `from` to the start of `to` and continues the sum over what was copied.
    ///
    /// The sum is over the very bytes that were delivered, even if a guest writes `from` meanwhile:
    /// they go through memory of the switch's own, which stays in the cache.
    ///
    /// # Safety
    /// As for [`Segment::copy_to`]: both ranges are mapped, and `to` is writable and at least as long
    /// as `from`.
    pub unsafe fn add_copied(&mut self, mut from: Segment, mut to: Segment) {
        debug_assert!(from.len() <= to.len());
        let mut bounce = [0; BOUNCE_BYTES];
        while !from.is_empty() {
            let step = from.len().min(BOUNCE_BYTES as u32);
            let block = &mut bounce[..step as usize];
            // SAFETY: the caller vouches for both ranges, of which `step` bytes are left.
            unsafe {
                from.read(block);
                to.write(block);
            }
            self.add(block);
            (from, to) = (from.skip(step), to.skip(step));
        }
    }

    /// Folds to 16 bits, as a number: big-endian bytes of it go on the wire. This is the partial sum
    /// that VIRTIO 1.2, clause 5.1.6.2, wants in a field that is still to be finished.
    #[inline]
    pub fn fold(self) -> u16 {
        let mut total = (self.total >> 32) + (self.total & 0xffff_ffff);
        // 33 bits become 18, then 17, then 16.
        for _ in 0..3 {
            total = (total >> 16) + (total & 0xffff);
        }
        u16::from_be(total as u16)
    }

    /// The checksum: the one's complement of the folded sum (RFC 1071, 1).
    #[inline]
    pub fn checksum(self) -> u16 {
        !self.fold()
    }
}

impl From<u16> for Sum {
    /// The sum of one word, given as a number.
    #[inline]
    fn from(word: u16) -> Sum {
        Sum { total: u64::from(word.to_be()), odd: false }
    }
}

/// The sum of the pseudo-header of TCP and UDP over IPv4 (RFC 9293, 3.1; RFC 768): addresses as on the
/// wire, and the bytes of the L4 header and its payload together.
#[inline]
pub fn pseudo_v4(source: [u8; 4], destination: [u8; 4], protocol: u8, l4_bytes: u16) -> Sum {
    sum(&source).join(sum(&destination)).join(u16::from(protocol).into()).join(l4_bytes.into())
}

/// The sum of the pseudo-header over IPv6 (RFC 8200, 8.1). `destination` is the final one, which a
/// routing header may hold; `protocol` is that of the L4 header, behind all extension headers.
#[inline]
pub fn pseudo_v6(source: [u8; 16], destination: [u8; 16], protocol: u8, l4_bytes: u32) -> Sum {
    let length = sum(&l4_bytes.to_be_bytes());
    sum(&source).join(sum(&destination)).join(length).join(u16::from(protocol).into())
}

/// The checksum after `old` bytes under it, at an even offset, became `new` (RFC 1624, equation 3).
///
/// A UDP checksum of 0 is none at all and stays so: that is the caller's to look at. A partial sum is
/// not complemented, so that it is updated as `!update(!partial, old, new)`.
#[inline]
pub fn update(old_checksum: u16, old: &[u8], new: &[u8]) -> u16 {
    Sum::from(!old_checksum).join((!sum(old).fold()).into()).join(sum(new)).checksum()
}

/// Addition modulo 2^64 - 1: a carry out of the top comes in at the bottom. It is 0 only for 0 + 0.
#[inline]
fn add_with_carry(a: u64, b: u64) -> u64 {
    let (total, carry) = a.overflowing_add(b);
    // A sum that overflowed is at most 2^64 - 2, so there is always room for its carry.
    total + u64::from(carry)
}

/// The wide loop for machines with AVX2.
#[cfg(all(feature = "std", target_arch = "x86_64"))]
#[target_feature(enable = "avx2")]
fn total_avx2(bytes: &[u8]) -> u64 {
    total(bytes)
}

/// Adds the native-endian 32-bit words of `bytes` in independent 64-bit lanes, which the compiler
/// turns into vector registers. It is inlined so that each caller compiles it for its own features.
///
/// No addition can overflow: that takes 2^32 words, 16 GiB.
#[inline(always)]
fn total(bytes: &[u8]) -> u64 {
    let mut lanes = [0_u64; BLOCK_BYTES / 4];
    let (blocks, rest) = bytes.as_chunks::<BLOCK_BYTES>();
    for block in blocks {
        for (lane, word) in lanes.iter_mut().zip(block.as_chunks().0) {
            *lane += u64::from(u32::from_ne_bytes(*word));
        }
    }
    let mut total: u64 = lanes.iter().sum();
    let (words, rest) = rest.as_chunks();
    for word in words {
        total += u64::from(u32::from_ne_bytes(*word));
    }
    let (halves, last) = rest.as_chunks();
    for half in halves {
        total += u64::from(u16::from_ne_bytes(*half));
    }
    for byte in last {
        total += u64::from(u16::from_ne_bytes([*byte, 0]));
    }
    total
}

#[cfg(test)]
mod tests {
    //! The sum is held against the textbook loop and against etherparse, over every way to split the
    //! bytes into runs; the incremental update against summing anew.
    use super::*;
    use alloc::vec;
    use etherparse::checksum::Sum16BitWords;
    use proptest::collection::vec as bytes;
    use proptest::prelude::*;

    /// RFC 1071, 4.1: one word at a time, the carry brought round at once.
    fn textbook(bytes: &[u8]) -> u16 {
        bytes.chunks(2).fold(0_u16, |sum, word| {
            let word = u16::from_be_bytes([word[0], word.get(1).copied().unwrap_or(0)]);
            let (sum, carry) = sum.overflowing_add(word);
            sum + u16::from(carry)
        })
    }

    #[test]
    fn every_length_and_the_largest_words_sum_as_the_textbook_says() {
        // All-ones bytes make every lane and every fold carry as far as it can.
        let ones = vec![0xff; crate::MAX_FRAME_BYTES];
        let ramp: vec::Vec<u8> = (0..1200_u32).map(|at| (at * 7 + (at >> 8)) as u8).collect();
        for len in 0..ramp.len() {
            assert_eq!(sum(&ramp[..len]).fold(), textbook(&ramp[..len]), "{len} bytes of the ramp");
            assert_eq!(total(&ramp[..len]), sum(&ramp[..len]).total, "{len} bytes, wide against narrow");
            assert_eq!(sum(&ones[..len]).fold(), textbook(&ones[..len]), "{len} bytes of ones");
        }
        assert_eq!(sum(&ones).fold(), textbook(&ones));
        assert_eq!((sum(&[]).fold(), sum(&[0; 99]).fold()), (0, 0));
    }

    #[test]
    fn the_example_of_rfc_1071_comes_out() {
        assert_eq!(sum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]).fold(), 0xddf2);
    }

    #[test]
    fn the_example_of_rfc_1624_comes_out() {
        // Section 4: the field 0x5555 becomes 0x3285 under the checksum 0xdd2f.
        assert_eq!(update(0xdd2f, &[0x55, 0x55], &[0x32, 0x85]), 0x0000);
    }

    #[test]
    fn a_copy_is_summed_as_it_was_delivered() {
        let mut from: vec::Vec<u8> = (0..2 * BOUNCE_BYTES as u32 + 5).map(|at| (at * 11) as u8).collect();
        let mut to = vec![0; from.len()];
        let mut copied = sum(b"odd");
        let source = Segment::new(from.as_mut_ptr(), from.len() as u32);
        let target = Segment::new(to.as_mut_ptr(), to.len() as u32);
        // SAFETY: both vectors live on, do not overlap, and are as long as their segments say.
        unsafe { copied.add_copied(source, target) };
        assert_eq!(to, from);
        assert_eq!(copied.fold(), textbook(&[b"odd".as_slice(), &from].concat()));
    }

    proptest! {
        #[test]
        fn a_sum_is_what_etherparse_says(data in bytes(any::<u8>(), 0..5000)) {
            prop_assert_eq!(sum(&data).checksum(), Sum16BitWords::new().add_slice(&data).ones_complement().to_be());
        }

        #[test]
        fn runs_add_up_wherever_the_bytes_are_split(
            runs in bytes(bytes(any::<u8>(), 0..400), 0..6),
        ) {
            let mut whole = Sum::default();
            runs.iter().for_each(|run| whole.add(run));
            prop_assert_eq!(whole.fold(), textbook(&runs.concat()));
            // Joining is associative, so that a receiver may sum the payload before the headers.
            let tail = runs.iter().skip(1).fold(Sum::default(), |tail, run| tail.join(sum(run)));
            let head = runs.first().map_or(Sum::default(), |run| sum(run));
            prop_assert_eq!(head.join(tail).fold(), whole.fold());
        }

        #[test]
        fn pseudo_headers_are_those_of_the_rfcs(
            v4 in any::<[[u8; 4]; 2]>(), v6 in any::<[[u8; 16]; 2]>(), protocol: u8, length: u32,
        ) {
            let short = length as u16;
            let mut header = [v4[0], v4[1]].concat();
            header.extend([0, protocol]);
            header.extend(short.to_be_bytes());
            prop_assert_eq!(pseudo_v4(v4[0], v4[1], protocol, short).fold(), textbook(&header));
            let mut header = [v6[0], v6[1]].concat();
            header.extend(length.to_be_bytes());
            header.extend([0, 0, 0, protocol]);
            prop_assert_eq!(pseudo_v6(v6[0], v6[1], protocol, length).fold(), textbook(&header));
        }

        #[test]
        fn an_update_is_a_sum_anew(
            mut data in bytes(any::<u8>(), 40..80), at in 1_usize..10, new in bytes(any::<u8>(), 0..20),
        ) {
            // Some other word that is not zero keeps the two zeros of one's complement apart, as the
            // version field does in an IPv4 header (RFC 1624, 3).
            data[0] = 0x45;
            let old_checksum = sum(&data).checksum();
            let place = at * 2..at * 2 + new.len();
            let old = data[place.clone()].to_vec();
            data[place].copy_from_slice(&new);
            prop_assert_eq!(update(old_checksum, &old, &new), sum(&data).checksum());
        }
    }
}
