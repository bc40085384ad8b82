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
pub struct CoreSet(u128);

impl CoreSet {
    /// How many cores a set can tell apart: those with lower numbers than this.
    pub const CAPACITY: u16 = 128;

    /// No core.
    pub const EMPTY: CoreSet = CoreSet(0);

    /// The set of the cores whose bits are set, the lowest bit being core 0's.
    #[must_use]
    pub fn from_bits(bits: u128) -> CoreSet {
        CoreSet(bits)
    }

    /// The set with `core` in it too; unchanged for a core beyond [`CoreSet::CAPACITY`].
    #[must_use]
    pub fn with(self, core: CoreId) -> CoreSet {
        CoreSet(self.0 | 1u128.checked_shl(core.0.into()).unwrap_or(0))
    }

    /// The set without `core`.
    #[must_use]
    pub fn without(self, core: CoreId) -> CoreSet {
        CoreSet(self.0 & !CoreSet::EMPTY.with(core).0)
    }

    /// The cores that are in both sets.
    #[must_use]
    pub fn and(self, other: CoreSet) -> CoreSet {
        CoreSet(self.0 & other.0)
    }

    /// Whether there is no core in it.
    pub fn is_empty(self) -> bool {
        self == CoreSet::EMPTY
    }

    /// How many cores are in it.
    pub fn len(self) -> usize {
        self.0.count_ones() as usize
    }

    /// Whether `core` is in the set.
    pub fn contains(self, core: CoreId) -> bool {
        self.0 & 1u128.checked_shl(core.0.into()).unwrap_or(0) != 0
    }

    /// The cores in the set, lowest first.
    pub fn iter(self) -> impl Iterator<Item = CoreId> {
        (0..CoreSet::CAPACITY).map(CoreId).filter(move |core| self.contains(*core))
    }
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
}
