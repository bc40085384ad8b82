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
//! thread, as a hypercall does; [`Bell`] is how it is woken. Where there are such VMs, each core that they may use has
//! an idle worker besides (`idle`), which runs when they leave the core alone; `cores` knows when that is. A device
//! needs none: it is served by a worker, which is nobody's processor time but the switch's.

mod bell;
mod cores;
mod idle;
mod runtime;
mod service;
mod timers;
mod topology;
mod vm_threads;
mod worker;

pub use bell::{Bell, GuestBell};
pub use runtime::{AttachFailure, Entrance, HostConfig, NetDevice, Runtime};
pub use service::Snapshot;
pub use topology::pin_to;
pub use vm_threads::VmThreads;

use arc_swap::ArcSwapOption;
use cores::Cores;
use hyper_switch_dataplane::api::{Nanos, PortId};
use hyper_switch_dataplane::host::{CoreId, CoreSet, Host, RunState};
use rustix::time::{ClockId, clock_gettime};
use std::sync::Arc;
use timers::Timers;

/// Nanoseconds of the system's monotonic clock.
pub fn now() -> Nanos {
    let time = clock_gettime(ClockId::Monotonic);
    Nanos(time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64)
}

/// Who tells a VM's run state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RunSource {
    /// The VM itself, a thread of this process: it blocks in one place only.
    OwnWord,
    /// The scheduler.
    Bpf,
    /// Nobody.
    Unknown,
}

/// What the switch asks of this process.
pub struct ThreadHost {
    bells: Box<[ArcSwapOption<GuestBell>]>,
    vms: Box<[ArcSwapOption<VmThreads>]>,
    timers: Timers,
    /// Wakes the service for a timer.
    alarm: Bell,
    cores: Arc<Cores>,
}

impl ThreadHost {
    fn new(ports: usize, alarm: Bell, cores: Cores) -> ThreadHost {
        let bells = (0..ports).map(|_| ArcSwapOption::empty()).collect();
        let vms = (0..ports).map(|_| ArcSwapOption::empty()).collect();
        ThreadHost { bells, vms, timers: Timers::new(ports), alarm, cores: Arc::new(cores) }
    }

    /// Has `bell` rung for notifications of `vm`; none for no longer.
    fn set_bell(&self, vm: PortId, bell: Option<Arc<GuestBell>>) {
        if let Some(bell) = &bell {
            bell.count_on(self.cores.clone());
        }
        self.bells[usize::from(vm.0)].store(bell);
    }

    /// Has these threads tell the run state of `vm`; none for no longer.
    fn set_threads(&self, vm: PortId, threads: Option<Arc<VmThreads>>) {
        self.vms[usize::from(vm.0)].store(threads);
    }

    /// What `vm` does, if anybody knows, and who says so.
    fn seen(&self, vm: PortId) -> (Option<RunState>, RunSource) {
        let vm = usize::from(vm.0);
        if let Some(bell) = &*self.bells[vm].load() {
            return (Some(bell.run_state()), RunSource::OwnWord);
        }
        match &*self.vms[vm].load() {
            Some(threads) => (threads.run_state(), RunSource::Bpf),
            None => (None, RunSource::Unknown),
        }
    }
}

impl Host for ThreadHost {
    fn now(&self) -> Nanos {
        now()
    }

    fn run_state(&self, vm: PortId) -> RunState {
        // A VM of which nothing is known is taken as one that waits: it is told at once.
        self.seen(vm).0.unwrap_or(RunState::Blocked)
    }

    fn home(&self, vm: PortId) -> CoreId {
        self.bells[usize::from(vm.0)].load().as_ref().map_or(CoreId::default(), |bell| bell.home())
    }

    fn notify(&self, vm: PortId) {
        if let Some(bell) = &*self.bells[usize::from(vm.0)].load() {
            bell.ring();
        }
    }

    fn idle_cores(&self) -> CoreSet {
        self.cores.idle()
    }

    fn wake(&self, core: CoreId) {
        self.cores.wake(core);
    }

    fn arm(&self, vm: PortId, at: Nanos) {
        if self.timers.arm(vm, at) {
            self.alarm.ring();
        }
    }
}
