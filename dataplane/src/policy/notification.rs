//! When a VM is told that packets wait for it: VM-state-aware batching, the receive side.
//!
//! A blocked VM is told at once, as only then it runs and nobody gains by waiting. A VM that is awake, running or
//! preempted, has work to do already: it is told of the next packets no sooner than a delay after it was last told,
//! unless so many wait that one more interrupt is worth it.

use crate::api::Nanos;
use crate::host::RunState;
use core::time::Duration;

/// The parameters of batching.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    /// The least time between two notifications of a VM that is awake.
    pub delay: Duration,
    /// It is told of so many frames without delay.
    pub count: u32,
}

impl Default for Pace {
    fn default() -> Pace {
        Pace { delay: Duration::from_micros(50), count: 64 }
    }
}

/// What the decision rests on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// What the VM is doing.
    pub state: RunState,
    /// The time.
    pub now: Nanos,
    /// When it was last told; [`Nanos`] 0 for never.
    pub last: Nanos,
    /// Frames that it was not told of.
    pub waiting: u32,
}

/// When to notify.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// Without delay.
    Now,
    /// Not before this time, which is in the future.
    At(Nanos),
}

/// Decides when a VM is told of what waits for it.
pub fn when(pace: &Pace, snapshot: &Snapshot) -> When {
    let due = snapshot.last.after(pace.delay);
    if snapshot.state == RunState::Blocked || snapshot.waiting >= pace.count || due <= snapshot.now {
        return When::Now;
    }
    When::At(due)
}

#[cfg(test)]
mod tests {
    //! Each clause of the rule by itself, and what holds for any snapshot.
    use super::*;
    use crate::host::CoreId;
    use proptest::prelude::*;

    const PACE: Pace = Pace { delay: Duration::from_nanos(100), count: 4 };
    const AWAKE: Snapshot =
        Snapshot { state: RunState::Running(CoreId(3)), now: Nanos(1_050), last: Nanos(1_000), waiting: 3 };

    #[test]
    fn each_clause() {
        assert_eq!(when(&PACE, &AWAKE), When::At(Nanos(1_100)));
        assert_eq!(when(&PACE, &Snapshot { state: RunState::Preempted, ..AWAKE }), When::At(Nanos(1_100)));
        assert_eq!(when(&PACE, &Snapshot { state: RunState::Blocked, ..AWAKE }), When::Now);
        assert_eq!(when(&PACE, &Snapshot { waiting: 4, ..AWAKE }), When::Now);
        assert_eq!(when(&PACE, &Snapshot { now: Nanos(1_099), ..AWAKE }), When::At(Nanos(1_100)));
        assert_eq!(when(&PACE, &Snapshot { now: Nanos(1_100), ..AWAKE }), When::Now);
    }

    fn state() -> impl Strategy<Value = RunState> {
        prop_oneof![Just(RunState::Running(CoreId(0))), Just(RunState::Preempted), Just(RunState::Blocked)]
    }

    proptest! {
        #[test]
        fn a_delay_ends_in_time_and_deciding_again_then_delivers(
            state in state(), now: u32, last: u32, waiting: u32, delay_ns: u32, count: u32,
        ) {
            let pace = Pace { delay: Duration::from_nanos(delay_ns.into()), count };
            let (now, last) = (Nanos(now.into()), Nanos(last.into()));
            let snapshot = Snapshot { state, now, last, waiting };
            if let When::At(at) = when(&pace, &snapshot) {
                assert!(state != RunState::Blocked && waiting < count);
                assert!(now < at && at == last.after(pace.delay));
                assert_eq!(when(&pace, &Snapshot { now: at, ..snapshot }), When::Now);
            }
        }
    }
}
