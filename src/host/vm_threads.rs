//! The threads of a VM that is another process: what the scheduler says of them, together.

use super::RunState;
use hyper_switch_dataplane::host::CoreId;
use hyper_switch_pvnet::run_state::Observed;
use hyper_switch_pvnet::sched::{Process, ProcessError, WatchThreadError, WatchedThread, Watcher};
use std::sync::Arc;

/// A VM's process, and all threads that it had when it was looked at: they are watched.
pub struct VmThreads {
    watcher: Arc<Watcher>,
    process: Arc<Process>,
    threads: Vec<WatchedThread>,
}

impl VmThreads {
    /// Watches all threads of `process`.
    ///
    /// # Errors
    /// The process has ended.
    pub fn watch(watcher: Arc<Watcher>, process: Process) -> Result<VmThreads, ProcessError> {
        let tids = process.threads()?;
        Ok(VmThreads::of(watcher, Arc::new(process), tids))
    }

    fn of(watcher: Arc<Watcher>, process: Arc<Process>, tids: Vec<u32>) -> VmThreads {
        let watched = tids.into_iter().filter_map(|tid| match watcher.watch(tid) {
            Ok(thread) => Some(thread),
            Err(WatchThreadError::NoThread(_)) => None,
            Err(error) => {
                tracing::warn!(pid = process.pid(), %error, "the VM's run state is told without this thread");
                None
            }
        });
        let threads = watched.collect();
        VmThreads { watcher, process, threads }
    }

    /// What the VM does: it runs if one of its threads does, and blocks only if all do. None if none lives.
    pub fn run_state(&self) -> Option<RunState> {
        let together = Observed::together(self.threads.iter().filter_map(|thread| thread.state().alive()))?;
        Some(match together {
            // The scheduler always tells the core.
            Observed::Running { core } => RunState::Running(CoreId(core.unwrap_or_default())),
            Observed::Preempted => RunState::Preempted,
            Observed::Blocked => RunState::Blocked,
        })
    }

    /// The threads that the process has now, if they are others.
    ///
    /// # Errors
    /// The process has ended.
    pub(super) fn rescan(&self) -> Result<Option<VmThreads>, ProcessError> {
        let tids = self.process.threads()?;
        let same = self.threads.iter().map(WatchedThread::tid).eq(tids.iter().copied());
        Ok((!same).then(|| VmThreads::of(self.watcher.clone(), self.process.clone(), tids)))
    }
}
