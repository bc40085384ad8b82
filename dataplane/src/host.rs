//! What the switch asks of the machine that it is embedded in: one trait, and nothing else.
//!
//! Three hosts implement it: the daemon's worker threads, a hypervisor whose vCPU threads enter the switch
//! themselves, and the simulator.

use crate::api::{Nanos, PortId};

/// One of the machine's cores, or whatever the host lets enter the switch as one (a guest's own thread).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CoreId(pub u16);

/// What a VM's virtual CPU is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RunState {
    /// It executes on this core.
    Running(CoreId),
    /// It would, but another has its core.
    Preempted,
    /// It waits for an event: a notification makes it run.
    Blocked,
}

/// One of a VM's two rings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ring {
    /// The one that it transmits into.
    Transmit,
    /// The one that it receives from.
    Receive,
}

/// A set of cores.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CoreSet([u64; CORE_WORDS]);

/// One cache line.
const CORE_WORDS: usize = 8;

impl CoreSet {
    /// How many cores a set can tell apart: those with lower numbers than this.
    pub const CAPACITY: u16 = 64 * CORE_WORDS as u16;

    /// No core.
    pub const EMPTY: CoreSet = CoreSet([0; CORE_WORDS]);

    /// The set of the cores whose bits are set in words of 64, the lowest bit of the first being core 0's. What is
    /// beyond [`CoreSet::CAPACITY`] is left out.
    #[must_use]
    pub fn from_words(words: impl IntoIterator<Item = u64>) -> CoreSet {
        let mut set = CoreSet::EMPTY;
        set.0.iter_mut().zip(words).for_each(|(word, bits)| *word = bits);
        set
    }

    /// The set with `core` in it too; unchanged for a core beyond [`CoreSet::CAPACITY`].
    #[must_use]
    pub fn with(mut self, core: CoreId) -> CoreSet {
        if let Some(word) = self.0.get_mut(usize::from(core.0 / 64)) {
            *word |= 1 << (core.0 % 64);
        }
        self
    }

    /// The set without `core`.
    #[must_use]
    pub fn without(mut self, core: CoreId) -> CoreSet {
        if let Some(word) = self.0.get_mut(usize::from(core.0 / 64)) {
            *word &= !(1 << (core.0 % 64));
        }
        self
    }

    /// The cores that are in both sets.
    #[must_use]
    pub fn and(mut self, other: CoreSet) -> CoreSet {
        self.0.iter_mut().zip(other.0).for_each(|(word, other)| *word &= other);
        self
    }

    /// Whether there is no core in it.
    pub fn is_empty(self) -> bool {
        self == CoreSet::EMPTY
    }

    /// How many cores are in it.
    pub fn len(self) -> usize {
        self.0.iter().map(|word| word.count_ones() as usize).sum()
    }

    /// Whether `core` is in the set.
    pub fn contains(self, core: CoreId) -> bool {
        self.0.get(usize::from(core.0 / 64)).is_some_and(|word| word & 1 << (core.0 % 64) != 0)
    }

    /// The cores in the set, lowest first.
    pub fn iter(self) -> impl Iterator<Item = CoreId> {
        self.0.into_iter().enumerate().flat_map(|(at, mut word)| {
            core::iter::from_fn(move || {
                let bit = (word != 0).then(|| word.trailing_zeros())?;
                word &= word - 1;
                Some(CoreId((64 * at) as u16 + bit as u16))
            })
        })
    }
}

/// A piece of work that a core has just done in the switch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// So many frames came off a VM's transmit ring, were looked up and queued for their receivers.
    Switched {
        /// Whose ring it was.
        from: PortId,
        /// How many came.
        frames: u32,
    },
    /// The control plane is asked about a frame.
    Missed {
        /// Who sent it.
        from: PortId,
    },
    /// Buffers are being given back to the VM that sent them. Meanwhile its transmit side is this core's.
    Completed {
        /// Whose they are.
        of: PortId,
        /// How many.
        frames: u32,
    },
    /// A frame was copied from one VM's memory into another's.
    Copied {
        /// Where it was.
        from: PortId,
        /// Where it is now.
        to: PortId,
        /// Bytes written, `virtio_net_hdr` included.
        bytes: u32,
    },
}

/// The machine, as the switch sees it. The VM that is asked about or told is named by one of its port's lanes: each has
/// an interrupt, a timer and, as far as the host can tell them apart, a virtual CPU of its own. Methods are called from inside the switch's entry points, on whichever
/// core is there; none may block, and none may enter the switch.
pub trait Host {
    /// The monotonic clock.
    fn now(&self) -> Nanos;

    /// What `vm` is doing, as far as the host knows.
    fn run_state(&self, vm: PortId) -> RunState;

    /// The core on which `vm` ran last, whose caches hold its memory; any if that is not known. Numbered as
    /// [`Host::idle_cores`] and the switch's [`Topology`](crate::policy::offload::Topology).
    fn home(&self, vm: PortId) -> CoreId;

    /// Injects the virtual interrupt of one of `vm`'s rings: it has packets to receive, or buffers come back. A VM that
    /// blocks wakes up; in its context [`Switch::receive`](crate::Switch::receive) is called, unless packets are copied
    /// preemptively. Called when the core that is in the switch holds nothing there that others wait for.
    fn notify(&self, vm: PortId, ring: Ring);

    /// The cores that have nothing to do now and may be woken. Numbered as the contexts that they enter with.
    fn idle_cores(&self) -> CoreSet;

    /// Sends an idle core the message that makes it call [`Switch::idle`](crate::Switch::idle); no scheduler.
    /// After every message it calls at least once more. Called when [`Host::notify`] may be.
    fn wake(&self, core: CoreId);

    /// Asks that [`Switch::expire`](crate::Switch::expire) be called for `vm` at `at` or soon after, once. Of the
    /// requests for the same VM that have not fired only the earliest need be kept.
    fn arm(&self, vm: PortId, at: Nanos);

    /// The core that is in the switch has just done this. For hosts that model what it costs; others need not care, and
    /// then nothing is left of it in the code.
    #[inline(always)]
    fn spent(&self, work: Work) {
        let _ = work;
    }

    /// Whether anybody reads what frames carry behind their headers. A host that models guests may know that nobody does: then
    /// what a VM receives has all its length, and behind the headers whatever was in the buffer before. For others this is a constant.
    #[inline(always)]
    fn copies_payload(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        /// A set of cores is a set of numbers below its capacity.
        #[test]
        fn a_core_set_is_a_set(
            cores in prop::collection::vec(0..600_u16, 0..40),
            others in prop::collection::vec(0..600_u16, 0..40),
        ) {
            let set = |cores: &[u16]| cores.iter().fold(CoreSet::EMPTY, |set, core| set.with(CoreId(*core)));
            let model = |cores: &[u16]| -> BTreeSet<u16> {
                cores.iter().copied().filter(|core| *core < CoreSet::CAPACITY).collect()
            };
            let list = |set: CoreSet| set.iter().map(|core| core.0).collect::<Vec<_>>();
            let (ours, theirs) = (set(&cores), set(&others));
            let (our_model, their_model) = (model(&cores), model(&others));
            prop_assert_eq!(list(ours), our_model.iter().copied().collect::<Vec<_>>());
            prop_assert_eq!((ours.len(), ours.is_empty()), (our_model.len(), our_model.is_empty()));
            prop_assert_eq!(list(ours.and(theirs)), our_model.intersection(&their_model).copied().collect::<Vec<_>>());
            let rest = others.iter().fold(ours, |set, core| set.without(CoreId(*core)));
            prop_assert_eq!(list(rest), our_model.difference(&their_model).copied().collect::<Vec<_>>());
            prop_assert!((0..600).all(|core| ours.contains(CoreId(core)) == our_model.contains(&core)));
            prop_assert_eq!(CoreSet::from_words(ours.0), ours);
        }
    }
}
