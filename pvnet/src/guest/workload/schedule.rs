//! When packets are sent: as fast as they are taken, or at an even rate.

use std::num::NonZeroU64;

const SECOND_NS: u128 = 1_000_000_000;

/// When the packets of a sender are due. What is sent late is caught up with, so that the rate holds over time.
#[derive(Clone, Copy, Debug)]
pub struct Schedule {
    /// Packets a second; without it, each is due at once.
    per_s: Option<NonZeroU64>,
    start_ns: Option<u64>,
}

impl Schedule {
    /// Each packet is due at once.
    pub fn saturating() -> Schedule {
        Schedule::at_rate(None)
    }

    /// So many packets are due a second, evenly; all at once without a rate. Time begins with the first question.
    pub fn at_rate(per_s: Option<NonZeroU64>) -> Schedule {
        Schedule { per_s, start_ns: None }
    }

    /// When packet `number`, counted from 0, is due, in nanoseconds, if that is after `now_ns`.
    #[inline]
    pub fn next_ns(&mut self, now_ns: u64, number: u64) -> Option<u64> {
        let per_s = self.per_s?;
        let start_ns = *self.start_ns.get_or_insert(now_ns);
        let after_ns = u128::from(number) * SECOND_NS / u128::from(per_s.get());
        let due_ns = start_ns.saturating_add(u64::try_from(after_ns).unwrap_or(u64::MAX));
        (due_ns > now_ns).then_some(due_ns)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Holds that packets are due evenly from the first question on, that a late one moves no other, and that without
    /// a rate all are due at once.
    #[test]
    fn packets_are_due_evenly() {
        let mut schedule = Schedule::at_rate(NonZeroU64::new(3));
        assert_eq!(schedule.next_ns(1_000, 0), None);
        assert_eq!(schedule.next_ns(1_000, 1), Some(333_334_333));
        assert_eq!(schedule.next_ns(900_000_000, 2), None);
        assert_eq!(schedule.next_ns(900_000_000, 3), Some(1_000_001_000));
        assert_eq!(Schedule::saturating().next_ns(0, u64::MAX), None);
        let mut slow = Schedule::at_rate(NonZeroU64::new(1));
        assert_eq!(slow.next_ns(1, u64::MAX), Some(u64::MAX), "further than a clock goes");
    }
}
