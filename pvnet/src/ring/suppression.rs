//! What a driver's wish for interrupts tells about its VM: the fallback where the scheduler cannot be watched.
//!
//! A driver that polls its queue asks for no interrupts (NAPI does, until the queue is empty), so its VM is
//! awake. One that asks for the next interrupt has nothing to do with this queue; whether the VM blocks or
//! computes cannot be seen, and it is taken as blocked: a VM that blocks is then never kept waiting, and one that
//! computes is interrupted as often as without batching. The core and a preemption cannot be seen at all.
//!
//! Held by: the tests below over all positions of the event; `pvnet/tests/run_state.rs` counts how often it
//! agrees with a driver's own truth.

use super::split::layout::NO_NOTIFY;
use crate::run_state::Observed;

/// The driver's wish in one queue, as the device side read it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Suppression {
    /// With `VIRTIO_F_EVENT_IDX` (clauses 2.7.7.2, 2.8.14): an interrupt when the entry at `event` is used.
    Event {
        /// The driver's `used_event`; of a packed ring, as far from `next` as it is in the ring.
        event: u16,
        /// The used entry that the device writes next.
        next: u16,
        /// Entries in the queue.
        size: u16,
    },
    /// Without: the available ring's `flags`, or what means the same in a packed ring.
    Flags(u16),
}

impl Suppression {
    /// What the VM does, as far as the wish tells.
    #[inline]
    pub fn observed(self) -> Observed {
        let waits = match self {
            // An event that lies behind is not passed again until the index has wrapped, and one further ahead
            // than a ring's length is as good as behind.
            Suppression::Event { event, next, size } => event.wrapping_sub(next) < size,
            Suppression::Flags(flags) => flags & NO_NOTIFY == 0,
        };
        if waits { Observed::Blocked } else { Observed::Running { core: None } }
    }
}

#[cfg(test)]
mod tests {
    //! The wish is read right at every distance of the event, also where the index wraps.
    use super::*;

    #[test]
    fn an_event_within_the_ring_waits_and_any_other_polls() {
        const SIZE: u16 = 256;
        for next in [0u16, 1, 255, 0x7fff, 0xff80, 0xffff] {
            for distance in 0..=u16::MAX {
                let wish = Suppression::Event { event: next.wrapping_add(distance), next, size: SIZE };
                let expected =
                    if distance < SIZE { Observed::Blocked } else { Observed::Running { core: None } };
                assert_eq!(wish.observed(), expected, "{wish:?}");
            }
        }
    }

    #[test]
    fn only_the_one_flag_counts() {
        assert_eq!(Suppression::Flags(0).observed(), Observed::Blocked);
        assert_eq!(Suppression::Flags(!NO_NOTIFY).observed(), Observed::Blocked);
        assert_eq!(Suppression::Flags(NO_NOTIFY).observed(), Observed::Running { core: None });
    }
}
