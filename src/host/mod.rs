//! The thread host: the switch on threads of this process.
//!
//! ```text
//!   worker 0 .. n-1      service                       control plane       supervisor
//!   pinned to a core;    owns the switch's control:    learns, decides;    restarts the control
//!   sleeps in epoll on   requests, upcalls, timers,    sees only events    plane if it dies
//!   its ports' devices   barriers                      and requests
//!        |                    ^   |     ^                   |   ^
//!        +--- doorbell -------+   +-----|------ events -----|---+
//!                                       +------ requests ---+
//! ```
//!
//! Nobody polls: with no packet moving every thread sleeps. A VM of this process enters the switch on its own
//! thread, as a hypercall does; [`Bell`] is how it is woken.

mod bell;
mod runtime;
mod service;
mod worker;

pub use bell::{Bell, GuestBell};
pub use runtime::{AttachFailure, Entrance, HostConfig, NetDevice, Runtime};
pub use service::Snapshot;

use arc_swap::ArcSwapOption;
use crossbeam_channel::Sender;
use hyper_switch_dataplane::api::{Nanos, PortId};
use hyper_switch_dataplane::host::{CoreId, CoreSet, Host, RunState};
use rustix::time::{ClockId, clock_gettime};
use std::sync::Arc;

/// Nanoseconds of the system's monotonic clock.
pub fn now() -> Nanos {
    let time = clock_gettime(ClockId::Monotonic);
    Nanos(time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64)
}

/// What the switch asks of this process.
pub struct ThreadHost {
    bells: Box<[ArcSwapOption<GuestBell>]>,
    timers: Sender<(PortId, Nanos)>,
}

impl ThreadHost {
    fn new(ports: usize, timers: Sender<(PortId, Nanos)>) -> ThreadHost {
        ThreadHost { bells: (0..ports).map(|_| ArcSwapOption::empty()).collect(), timers }
    }

    /// Has `bell` rung for notifications of `vm`; none for no longer.
    fn set_bell(&self, vm: PortId, bell: Option<Arc<GuestBell>>) {
        self.bells[usize::from(vm.0)].store(bell);
    }
}

impl Host for ThreadHost {
    fn now(&self) -> Nanos {
        now()
    }

    fn run_state(&self, vm: PortId) -> RunState {
        match &*self.bells[usize::from(vm.0)].load() {
            Some(bell) => bell.run_state(),
            // A device has no state of its own: whatever comes, it takes.
            None => RunState::Blocked,
        }
    }

    fn home(&self, _vm: PortId) -> CoreId {
        // Asked only where there are idle cores to choose from.
        CoreId(0)
    }

    fn notify(&self, vm: PortId) {
        if let Some(bell) = &*self.bells[usize::from(vm.0)].load() {
            bell.ring();
        }
    }

    fn idle_cores(&self) -> CoreSet {
        CoreSet::EMPTY
    }

    fn wake(&self, _core: CoreId) {
        // No core is ever offered as idle, so none is woken.
    }

    fn arm(&self, vm: PortId, at: Nanos) {
        // Fails only when the service has ended, and with it the switch.
        let _ = self.timers.send((vm, at));
    }
}
