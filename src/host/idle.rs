//! An idle worker: the thread that works for VMs on a core that none of them uses.
//!
//! It is pinned to its core and runs only when no other thread wants it (`SCHED_IDLE`): a VM that wakes up there takes
//! the core at once. It sleeps until the switch knows of work for it, works until there is none, and never polls.

use super::cores::Cores;
use super::{Bell, ThreadHost};
use hyper_switch_dataplane::host::CoreId;
use hyper_switch_dataplane::{CoreContext, Switch};
use hyper_switch_pvnet::priority::run_only_when_idle;
use rustix::thread::{CpuSet, sched_setaffinity};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

/// A running idle worker. Dropped, it stops.
pub(super) struct IdleWorker {
    core: CoreId,
    cores: Arc<Cores>,
    stopping: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl IdleWorker {
    /// Starts the one of `core`, whose context `cx` is.
    pub(super) fn start(
        core: CoreId,
        switch: Arc<Switch>,
        cx: CoreContext,
        host: Arc<ThreadHost>,
        service: Bell,
    ) -> io::Result<IdleWorker> {
        let cores = host.cores.clone();
        let stopping = Arc::new(AtomicBool::new(false));
        let stop = stopping.clone();
        let name = format!("idle-{}", core.0);
        let thread = std::thread::Builder::new().name(name).spawn(move || {
            if let Err(error) = take_place(host.cores.cpus()[usize::from(core.0)]) {
                // Elsewhere, or as others do, it would take what VMs need.
                tracing::warn!(core = core.0, %error, "no work is left to this core when it is idle");
                return;
            }
            work(core, &stop, &switch, cx, &host, &service);
        })?;
        Ok(IdleWorker { core, cores, stopping, thread: Some(thread) })
    }
}

impl Drop for IdleWorker {
    fn drop(&mut self) {
        self.stopping.store(true, Ordering::Relaxed);
        self.cores.wake(self.core);
        if let Some(thread) = self.thread.take() {
            // A panic of the thread has been reported by the panic hook.
            let _ = thread.join();
        }
    }
}

fn take_place(cpu: usize) -> io::Result<()> {
    let mut only = CpuSet::new();
    only.set(cpu);
    sched_setaffinity(None, &only)?;
    Ok(run_only_when_idle()?)
}

fn work(
    core: CoreId,
    stopping: &AtomicBool,
    switch: &Switch,
    mut cx: CoreContext,
    host: &ThreadHost,
    service: &Bell,
) {
    loop {
        host.cores.sleep(core);
        loop {
            // Seen after the wake-up that came with it.
            if stopping.load(Ordering::Relaxed) {
                return;
            }
            let entered = switch.idle(&mut cx, host);
            if entered.upcalls || entered.faulted {
                service.ring();
            }
            if !entered.more {
                break;
            }
        }
    }
}
