//! What the lanes of a port have in common while a backend is connected to it: which there are, which of them are
//! enabled, and whether the port works.
//!
//! A lane is one of a port's queue pairs: a [`Port`](crate::port::Port) of its own, with a number of its own, its own
//! claims and internal receive queue. The first has the port's number. All count as the port, and go down together.
//! A flow's frames go to one lane, so that they stay in order, until lanes are enabled or disabled.

use crate::api::PortId;
use crate::port::PortFault;
use crate::sync::UnsafeCell;
use crate::sync::atomic::{AtomicU8, Ordering};
use alloc::boxed::Box;

/// The most queue pairs that a port can have.
pub const MAX_LANES: usize = 8;

/// How a connected backend does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Condition {
    Up,
    Faulted(PortFault),
    Leaving,
}

const UP: u8 = 0;
const FAULTING: u8 = 1;
const FAULTED: u8 = 2;
const LEAVING: u8 = 3;

/// The lanes of one port.
pub(crate) struct Lanes {
    numbers: Box<[PortId]>,
    /// Which lanes frames may go to: a bit each.
    enabled: AtomicU8,
    state: AtomicU8,
    fault: UnsafeCell<Option<PortFault>>,
}

// SAFETY: `fault` is written by the core that moved `state` to FAULTING, and read only in state FAULTED; all
// else is Sync by itself.
unsafe impl Sync for Lanes {}

impl Lanes {
    /// Lanes with these numbers, at most [`MAX_LANES`], the port's first; `enabled` has a bit for each.
    pub(crate) fn new(numbers: Box<[PortId]>, enabled: u8) -> Lanes {
        debug_assert!((1..=MAX_LANES).contains(&numbers.len()));
        let state = AtomicU8::new(UP);
        Lanes { numbers, enabled: AtomicU8::new(enabled), state, fault: UnsafeCell::new(None) }
    }

    pub(crate) fn numbers(&self) -> &[PortId] {
        &self.numbers
    }

    pub(crate) fn enable(&self, lanes: u8) {
        self.enabled.store(lanes, Ordering::Relaxed);
    }

    #[inline]
    pub(crate) fn enabled(&self) -> Enabled {
        Enabled(self.enabled.load(Ordering::Relaxed) & (u8::MAX >> (MAX_LANES - self.numbers.len())))
    }

    #[inline]
    pub(crate) fn is_up(&self) -> bool {
        self.state.load(Ordering::Acquire) == UP
    }

    pub(crate) fn condition(&self) -> Condition {
        match self.state.load(Ordering::Acquire) {
            FAULTED => {
                // SAFETY: in state FAULTED the fault is not written any more.
                let fault = unsafe { *self.fault.get() };
                Condition::Faulted(fault.expect("a faulted port has its fault"))
            }
            LEAVING => Condition::Leaving,
            _ => Condition::Up,
        }
    }

    /// Takes the port down. Only the first fault counts.
    #[cold]
    pub(crate) fn fail(&self, fault: PortFault) -> bool {
        let first = self.state.compare_exchange(UP, FAULTING, Ordering::AcqRel, Ordering::Relaxed).is_ok();
        if first {
            // SAFETY: the exchange above is won once.
            unsafe { *self.fault.get_mut() = Some(fault) };
            // Unless the port has begun to leave meanwhile: then it goes on leaving.
            let _ = self.state.compare_exchange(FAULTING, FAULTED, Ordering::Release, Ordering::Relaxed);
        }
        first
    }

    pub(crate) fn leave(&self) {
        self.state.store(LEAVING, Ordering::Release);
    }
}

/// The lanes that were enabled at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Enabled(u8);

impl Enabled {
    /// The first lane and no other: the usual port.
    pub(crate) const FIRST: Enabled = Enabled(1);

    #[inline]
    pub(crate) fn has(self, lane: u8) -> bool {
        self.0 >> lane & 1 != 0
    }

    pub(crate) fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The lane for frames whose keys have this hash; none if none is enabled.
    pub(crate) fn lane(self, hash: u32) -> Option<usize> {
        // The hash as a fraction of its range, so that all lanes get as much.
        let nth = (u64::from(hash) * u64::from(self.0.count_ones())) >> 32;
        (0..MAX_LANES).filter(|lane| self.has(*lane as u8)).nth(nth as usize)
    }
}

#[cfg(test)]
mod tests {
    //! Every hash has a lane, an enabled one, and all enabled lanes get the same share of the hashes.
    use super::*;

    #[test]
    fn hashes_are_spread_over_the_enabled_lanes() {
        for enabled in 1..=u8::MAX {
            let mut shares = [0_u32; MAX_LANES];
            for step in 0..840_u32 {
                shares[Enabled(enabled).lane(step * (u32::MAX / 840)).unwrap()] += 1;
            }
            for (lane, share) in shares.into_iter().enumerate() {
                let fair = if enabled >> lane & 1 != 0 { 840 / enabled.count_ones() } else { 0 };
                assert!(share.abs_diff(fair) <= 1, "lane {lane} of {enabled:#b} has {share}");
            }
        }
        assert_eq!(Enabled(0).lane(7), None);
    }

    #[test]
    fn a_port_has_no_lanes_beyond_its_own() {
        let lanes = Lanes::new([PortId(3), PortId(9)].into(), u8::MAX);
        assert_eq!(lanes.enabled(), Enabled(0b11));
        lanes.enable(0b1110);
        assert_eq!(lanes.enabled().lane(u32::MAX), Some(1));
    }
}
