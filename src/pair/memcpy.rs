//! What a bare copy of a workload's bytes costs on this machine: the limit that a switch which copies is measured by.

use std::hint::black_box;
use std::time::{Duration, Instant};

/// How long it is measured.
const TIME: Duration = Duration::from_millis(20);

/// The buffers of a ring of bare frames together.
const RING_BYTES: usize = 1 << 20;

/// Copies frames of `frame_bytes` from one ring's buffers to another's, on one core, and answers the rate in 10^9 bits
/// a second.
pub(super) fn gbps(frame_bytes: usize) -> f64 {
    let ring = RING_BYTES.next_multiple_of(frame_bytes);
    let (from, mut to) = (vec![1u8; ring], vec![0u8; ring]);
    let (begin, mut rounds) = (Instant::now(), 0u32);
    while begin.elapsed() < TIME {
        for (from, to) in from.chunks_exact(frame_bytes).zip(to.chunks_exact_mut(frame_bytes)) {
            black_box(to).copy_from_slice(black_box(from));
        }
        rounds += 1;
    }
    f64::from(rounds) * ring as f64 * 8.0 / 1e9 / begin.elapsed().as_secs_f64()
}

#[cfg(test)]
mod tests {
    /// Holds that frames of any size are copied at a rate that a machine can have.
    #[test]
    fn a_copy_takes_its_time() {
        for bytes in [60, 1_500, 65_536] {
            let gbps = super::gbps(bytes);
            assert!(gbps > 0.0 && gbps < 1e6, "{bytes} bytes: {gbps}");
        }
    }
}
