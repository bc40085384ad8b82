//! The switch's policies: each a small file of pure functions, a snapshot in, a decision out.
//!
//! | optimisation | its rule | where it is carried out |
//! | --- | --- | --- |
//! | preemptive copy | whoever delivers a notification copies first: no decision, so no file | `switch/attend.rs` |
//! | batching | [`notification`]: the interrupt is put off, never the copy | `switch/attend.rs` |
//! | offload | [`offload`] | `switch/attend.rs`, [`Switch::transmit`](crate::Switch::transmit), [`Switch::idle`](crate::Switch::idle) |
//!
//! A device port is its own receive context. What is for it is written by whoever switches it, in the same step,
//! so preemptive copy is how a device always works; a visit to it is a batch already, and nothing is put off; and
//! where an idle core does the switching, it does the writing. A device's own frames are switched by whoever is
//! told that there are some: that is a host's thread, not a VM's time.

pub mod notification;
pub mod offload;

/// Which of the three optimisations are on. Each can be switched by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Optimisations {
    /// Whoever delivers a notification to a VM copies what waits for it first.
    pub preemptive_copy: bool,
    /// A VM that is awake is notified of several frames at once.
    pub batching: bool,
    /// Idle cores copy and switch in place of the VMs.
    pub offload: bool,
}

impl Optimisations {
    /// All of them.
    pub const ALL: Optimisations = Optimisations { preemptive_copy: true, batching: true, offload: true };

    /// None: the basic form of each stage.
    pub const NONE: Optimisations = Optimisations { preemptive_copy: false, batching: false, offload: false };
}

impl Default for Optimisations {
    fn default() -> Optimisations {
        Optimisations::ALL
    }
}
