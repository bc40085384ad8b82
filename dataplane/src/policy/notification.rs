//! When a VM is told that packets wait for it.
//!
//! This is the basic form: at once, whatever the VM is doing. The snapshot already holds what the paper's
//! VM-state-aware batching decides by.

use crate::host::RunState;

/// When to notify.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// Without delay.
    Now,
}

/// Decides when a VM in `state` that sleeps on an empty receive queue is notified of what was just queued.
pub fn when(_state: RunState) -> When {
    When::Now
}
