//! Which idle core, if any, does work in a VM's place.
//!
//! The work is on the VM's memory, so a core that shares a cache with the VM's home is preferred. Among equals the
//! work spreads: the caller's turn goes round. Where it takes a core long to wake up, a host passes over those whose
//! wake-ups were not worth it.

use crate::host::{CoreId, CoreSet};
use alloc::vec::Vec;
use core::time::Duration;

/// How long work that was left to an idle core may wait for it. A core that was idle when it was asked may be taken by
/// others before it begins; then a timer does the work. Far longer than it takes an idle core to wake up.
pub const HANDOVER_LIMIT: Duration = Duration::from_millis(1);

/// Which cores share a cache. Cores are numbered as the host numbers its idle cores and a VM's home.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Topology {
    sharing: Vec<CoreSet>,
}

impl Topology {
    /// For each core, from core 0 on, the set of cores that share a cache with it. Of those beyond, and in
    /// [`Topology::default`] of all, nothing is known.
    pub fn new(sharing: impl IntoIterator<Item = CoreSet>) -> Topology {
        Topology { sharing: sharing.into_iter().collect() }
    }

    /// The cores that share a cache with `core`, as far as is known.
    pub fn sharing(&self, core: CoreId) -> CoreSet {
        self.sharing.get(usize::from(core.0)).copied().unwrap_or_default()
    }
}

/// Chooses one of the `idle` cores for work on the memory of a VM whose home is `home`; none if there is none.
/// `turn` is to be another each time.
pub fn choose(topology: &Topology, idle: CoreSet, home: CoreId, turn: usize) -> Option<CoreId> {
    let near = idle.and(topology.sharing(home));
    let candidates = if near.is_empty() { idle } else { near };
    let count = candidates.len();
    if count == 0 { None } else { candidates.iter().nth(turn % count) }
}

/// The most often that a core is passed over before it is tried again: so what a trial costs is not felt.
pub const LONGEST_PAUSE: u32 = 1 << 16;

/// How often a core is passed over that took `wake_ns` to wake up and worked for `work_ns`, after `pause` the last time.
/// What it worked is processor time: a VM may have taken the core from it meanwhile.
///
/// A core that works no longer than it takes to wake up, and whoever waits for its work takes again, is worth nothing: who
/// woke it would have been done before. So is one that others than VMs use, where it comes late. After each such
/// wake-up it is passed over for a while, twice as long each time, and tried again then.
pub fn next_pause(pause: u32, wake_ns: u64, work_ns: u64) -> u32 {
    if work_ns >= 2 * wake_ns { 0 } else { (2 * pause).clamp(1, LONGEST_PAUSE) }
}

#[cfg(test)]
mod tests {
    //! The choice is idle, near if it can be, and goes round.
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn set(cores: &[u16]) -> CoreSet {
        cores.iter().fold(CoreSet::EMPTY, |set, core| set.with(CoreId(*core)))
    }

    #[test]
    fn a_core_near_the_home_is_preferred() {
        let topology = Topology::new([set(&[0, 1]), set(&[0, 1]), set(&[2, 3]), set(&[2, 3])]);
        let choose = |idle: &[u16], home| choose(&topology, set(idle), CoreId(home), 0).map(|core| core.0);
        assert_eq!(choose(&[], 0), None);
        assert_eq!(choose(&[1, 2], 0), Some(1));
        assert_eq!(choose(&[1, 2], 3), Some(2));
        assert_eq!(choose(&[2, 3], 0), Some(2), "a far one is better than none");
        assert_eq!(choose(&[1, 2], 9), Some(1), "nothing is known of core 9");
    }

    #[test]
    fn a_core_that_is_not_worth_it_is_tried_ever_less_often() {
        assert_eq!([0, 1, 2, LONGEST_PAUSE].map(|pause| next_pause(pause, 50, 99)), [1, 2, 4, LONGEST_PAUSE]);
        assert_eq!(next_pause(512, 50, 100), 0);
    }

    proptest! {
        #[test]
        fn turns_go_round_all_that_are_as_good(
            idle in prop::collection::vec(0..128_u16, 0..20),
            sharing in prop::collection::vec(prop::collection::vec(0..128_u16, 0..8), 0..20),
            home in 0..24_u16,
            turn in 0..1_000_usize,
        ) {
            let topology = Topology::new(sharing.iter().map(|cores| set(cores)));
            let near = sharing.get(usize::from(home)).cloned().unwrap_or_default();
            let idle_near: BTreeSet<_> = idle.iter().copied().filter(|core| near.contains(core)).collect();
            let best = if idle_near.is_empty() { idle.iter().copied().collect() } else { idle_near };
            let turns = turn..turn + best.len().max(1);
            let chosen = turns.filter_map(|turn| choose(&topology, set(&idle), CoreId(home), turn));
            assert_eq!(chosen.map(|core| core.0).collect::<BTreeSet<_>>(), best);
        }
    }
}
