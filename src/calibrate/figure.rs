//! A figure: what several batches of a measurement came to.

use serde::Serialize;
use std::time::{Duration, Instant};

/// A time in nanoseconds: the median of several batches, and the quartiles on both sides of it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Figure {
    /// Half of the batches took less.
    pub median_ns: f64,
    /// A quarter of them took less.
    pub low_ns: f64,
    /// A quarter of them took more.
    pub high_ns: f64,
}

/// What is computed from other figures can come out as nothing or less where those vary more than it is; no work takes
/// less than this, in nanoseconds.
const LEAST_NS: f64 = 0.1;

impl Figure {
    /// What these batches, at least one, came to.
    pub(super) fn of(mut batches: Vec<f64>) -> Figure {
        batches.sort_by(f64::total_cmp);
        let at = |quarter: usize| batches[(batches.len() - 1) * quarter / 4].max(LEAST_NS);
        Figure { median_ns: at(2), low_ns: at(1), high_ns: at(3) }
    }

    /// What is left of it without a part that takes so long.
    pub(super) fn less(self, ns: f64) -> Figure {
        let left = |of: f64| (of - ns).max(LEAST_NS);
        Figure { median_ns: left(self.median_ns), low_ns: left(self.low_ns), high_ns: left(self.high_ns) }
    }
}

/// The middle one of a batch's times, which one that was disturbed does not move.
pub(super) fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

/// A clock that knows what a look at it takes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Clock {
    look_ns: f64,
}

impl Clock {
    pub(super) fn new() -> Clock {
        let looks = (0..1_000).map(|_| nanoseconds(Instant::now().elapsed()));
        Clock { look_ns: median(looks.collect()) }
    }

    /// Nanoseconds since `begin`, without those that the look at the clock took.
    pub(super) fn since(&self, begin: Instant) -> f64 {
        (nanoseconds(begin.elapsed()) - self.look_ns).max(0.0)
    }
}

pub(super) fn nanoseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e9
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Holds that the median and the quartiles are those of the batches, in whatever order they came, and that none
    /// is less than any work takes.
    #[test]
    fn quartiles() {
        let figure = Figure::of(vec![9.0, 1.0, 3.0, 5.0, 7.0]);
        assert_eq!(figure, Figure { median_ns: 5.0, low_ns: 3.0, high_ns: 7.0 });
        let figure = Figure::of(vec![-3.0]);
        assert_eq!(figure, Figure { median_ns: LEAST_NS, low_ns: LEAST_NS, high_ns: LEAST_NS });
        assert_eq!(Figure::of(vec![5.0, 9.0]).less(3.0).median_ns, 2.0);
        assert_eq!(Figure::of(vec![5.0]).less(7.0).median_ns, LEAST_NS);
        assert_eq!(median(vec![5.0, 1_000.0, 4.0]), 5.0);
    }
}
