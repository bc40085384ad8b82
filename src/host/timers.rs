//! The timers that the switch asks for: of each port the earliest.
//!
//! Any core arms one by two atomic steps. The service, which lets them fire, is woken only if it would sleep past it: it
//! says until when it sleeps, then looks at all times once more; who arms sets the time, then looks at that word. One of
//! them sees the other.

use hyper_switch_dataplane::api::{Nanos, PortId};
use std::sync::atomic::{AtomicU64, Ordering};

/// No time: that of a port without a timer.
const NEVER: u64 = u64::MAX;

/// The times, by port.
pub(super) struct Timers {
    due: Box<[AtomicU64]>,
    /// Until when the service sleeps at most; 0 while it is awake.
    asleep_until: AtomicU64,
}

impl Timers {
    pub(super) fn new(ports: usize) -> Timers {
        let due = (0..ports).map(|_| AtomicU64::new(NEVER)).collect();
        Timers { due, asleep_until: AtomicU64::new(0) }
    }

    /// Has the timer of `port` fire at `at`, unless it does so earlier. Answers whether the service is to be woken.
    pub(super) fn arm(&self, port: PortId, at: Nanos) -> bool {
        self.due[usize::from(port.0)].fetch_min(at.0, Ordering::SeqCst);
        at.0 < self.asleep_until.load(Ordering::SeqCst)
    }

    /// The service is about to sleep: answers until when, if there is a timer; it may wake up earlier.
    pub(super) fn sleep(&self) -> Option<Nanos> {
        let mut until = NEVER;
        loop {
            self.asleep_until.store(until, Ordering::SeqCst);
            let next = self.due.iter().map(|due| due.load(Ordering::SeqCst)).min().unwrap_or(NEVER);
            if next >= until {
                return (until != NEVER).then_some(Nanos(until));
            }
            until = next;
        }
    }

    /// The service is awake.
    pub(super) fn wake(&self) {
        self.asleep_until.store(0, Ordering::SeqCst);
    }

    /// Takes the timers that are due at `now`.
    pub(super) fn take_due(&self, now: Nanos) -> impl Iterator<Item = PortId> + '_ {
        let ports = self.due.iter().zip(0..);
        ports.filter(move |(due, _)| fires(due, now)).map(|(_, port)| PortId(port))
    }
}

/// Whether a port's timer fires, and has then none.
fn fires(due: &AtomicU64, now: Nanos) -> bool {
    let is_due = due.load(Ordering::Relaxed) <= now.0;
    if is_due {
        // What comes in between is an earlier time, and due as well.
        due.swap(NEVER, Ordering::SeqCst);
    }
    is_due
}

#[cfg(test)]
mod tests {
    use super::*;

    fn due(timers: &Timers, now: u64) -> Vec<u16> {
        timers.take_due(Nanos(now)).map(|port| port.0).collect()
    }

    #[test]
    fn of_a_ports_timers_the_earliest_fires_once() {
        let timers = Timers::new(4);
        for (port, at) in [(1, 50), (2, 20), (1, 30), (1, 40), (2, 60)] {
            timers.arm(PortId(port), Nanos(at));
        }
        assert_eq!((timers.sleep(), due(&timers, 19)), (Some(Nanos(20)), vec![]));
        assert_eq!(due(&timers, 100), [1, 2]);
        timers.arm(PortId(2), Nanos(25));
        assert_eq!((timers.sleep(), due(&timers, 30)), (Some(Nanos(25)), vec![2]));
        assert_eq!((due(&timers, 30), timers.sleep()), (vec![], None));
    }

    #[test]
    fn the_service_is_woken_only_if_it_would_be_late() {
        let timers = Timers::new(2);
        assert!(!timers.arm(PortId(0), Nanos(70)), "it has not begun to sleep");
        assert_eq!(timers.sleep(), Some(Nanos(70)));
        assert!(!timers.arm(PortId(1), Nanos(70)));
        assert!(timers.arm(PortId(1), Nanos(69)));
        timers.wake();
        assert!(!timers.arm(PortId(1), Nanos(1)));
        assert_eq!((due(&timers, 69), timers.sleep()), (vec![1], Some(Nanos(70))));
        assert_eq!((due(&timers, 70), timers.sleep()), (vec![0], None));
        assert!(timers.arm(PortId(0), Nanos(1_000_000)), "it would sleep for ever");
    }
}
