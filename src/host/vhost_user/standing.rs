//! How it stands with a port's VMM, as whoever asks is told.

use hyper_switch_pvnet::header::Offloads;
use std::sync::{Arc, Mutex, PoisonError};

/// How it stands with a port's VMM.
#[derive(Clone, Debug, Default)]
pub struct VmmStanding {
    /// A VMM is there.
    pub is_present: bool,
    /// What the port waits for if none is, and why the last one's session ended if that was a fault.
    pub waits_for: String,
    /// The rings that are connected; none before the VM's driver has set them up.
    pub rings: Option<VmmRings>,
    /// VMMs that have come.
    pub sessions: u64,
    /// Sessions that ended by a fault of the VMM's.
    pub faults: u64,
    /// How the last session ended.
    pub last_end: Option<String>,
}

/// What a VM's driver agreed on for its rings.
#[derive(Clone, Copy, Debug)]
pub struct VmmRings {
    /// Queue pairs that run.
    pub queue_pairs: u16,
    /// Packed rings, not split ones.
    pub packed: bool,
    /// What the VM may send unfinished.
    pub sends: Offloads,
    /// What the VM takes unfinished.
    pub receives: Offloads,
}

/// What is known now, shared by the port's thread and whoever asks.
#[derive(Clone, Debug, Default)]
pub(super) struct Standing(Arc<Mutex<VmmStanding>>);

impl Standing {
    pub(super) fn update(&self, change: impl FnOnce(&mut VmmStanding)) {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }

    pub(super) fn now(&self) -> VmmStanding {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
