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
mod lane;
mod line;
mod polling;
mod runtime;
mod service;
mod timers;
mod topology;
mod vhost_user;
mod vm_threads;
mod worker;

pub use bell::{Bell, GuestBell};
use line::Line;
pub use runtime::{AttachFailure, Entrance, HostConfig, NetDevice, Runtime, VhostUserFailure};
pub use service::Snapshot;
pub use topology::pin_to;
pub(crate) use topology::{topology, usable_cpus};
pub use vhost_user::{EndpointError, VmmRings, VmmStanding};
pub use vm_threads::VmThreads;

use arc_swap::ArcSwapOption;
use cores::Cores;
use hyper_switch_dataplane::api::{Nanos, PortId};
use hyper_switch_dataplane::host::{CoreId, CoreSet, Host, Ring, RunState};
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
    lines: Box<[ArcSwapOption<Line>]>,
    vms: Box<[ArcSwapOption<VmThreads>]>,
    timers: Timers,
    /// Wakes the service for a timer.
    alarm: Bell,
    cores: Arc<Cores>,
}

impl ThreadHost {
    fn new(ports: usize, alarm: Bell, cores: Cores) -> ThreadHost {
        let lines = (0..ports).map(|_| ArcSwapOption::empty()).collect();
        let vms = (0..ports).map(|_| ArcSwapOption::empty()).collect();
        ThreadHost { lines, vms, timers: Timers::new(ports), alarm, cores: Arc::new(cores) }
    }

    /// The host of these VMs of this process, numbered in turn, and of nothing else: there are no idle workers, and nobody
    /// waits for timers.
    pub(crate) fn of_guests(bells: &[Arc<GuestBell>]) -> ThreadHost {
        let (alarm, _) = Bell::new();
        let host = ThreadHost::new(bells.len(), alarm, Cores::new(usable_cpus()));
        for (vm, bell) in bells.iter().enumerate() {
            host.set_line(PortId(vm as u16), Some(Line::Bell(bell.clone())));
        }
        host
    }

    /// Has notifications of `vm` go by `line`; none for no longer.
    fn set_line(&self, vm: PortId, line: Option<Line>) {
        if let Some(Line::Bell(bell)) = &line {
            bell.count_on(self.cores.clone());
        }
        self.lines[usize::from(vm.0)].store(line.map(Arc::new));
    }

    /// Tells the VMM of a lane that it does not work any more, if it has one.
    fn report_fault(&self, lane: PortId) {
        if let Some(line) = &*self.lines[usize::from(lane.0)].load() {
            line.report_fault();
        }
    }

    /// Has these threads tell the run state of `vm`; none for no longer.
    fn set_threads(&self, vm: PortId, threads: Option<Arc<VmThreads>>) {
        self.vms[usize::from(vm.0)].store(threads);
    }

    /// What `vm` does, if anybody knows, and who says so.
    fn seen(&self, vm: PortId) -> (Option<RunState>, RunSource) {
        let vm = usize::from(vm.0);
        if let Some(Line::Bell(bell)) = self.lines[vm].load().as_deref() {
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
        match self.lines[usize::from(vm.0)].load().as_deref() {
            Some(Line::Bell(bell)) => bell.home(),
            _ => CoreId::default(),
        }
    }

    fn notify(&self, vm: PortId, ring: Ring) {
        if let Some(line) = &*self.lines[usize::from(vm.0)].load() {
            line.interrupt(ring);
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
