//! Random numbers: a stream of its own for each component, so that one that draws more does not change the others.

use rand_core::Rng;
use rand_pcg::Pcg32;

/// A stream.
pub(crate) struct Random(Pcg32);

impl Random {
    /// The stream number `component` of a run with that seed.
    pub(crate) fn new(seed: u64, component: u64) -> Random {
        Random(Pcg32::new(seed, component))
    }

    /// Any number.
    pub(crate) fn word(&mut self) -> u64 {
        self.0.next_u64()
    }

    /// A number of `0..1`.
    pub(crate) fn unit(&mut self) -> f64 {
        (self.word() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// A number of `0..count`, of which there is at least one.
    pub(crate) fn below(&mut self, count: u64) -> u64 {
        self.word() % count
    }

    /// A number of `from..=to`.
    pub(crate) fn within(&mut self, from: u64, to: u64) -> u64 {
        from + self.below(to - from + 1)
    }

    /// Yes, with this probability.
    pub(crate) fn chance(&mut self, probability: f64) -> bool {
        self.unit() < probability
    }

    /// One of these.
    pub(crate) fn pick<T: Clone>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize].clone()
    }

    /// A number of exponential distribution with that mean.
    pub(crate) fn exponential(&mut self, mean: f64) -> f64 {
        -mean * (1.0 - self.unit()).ln()
    }
}
