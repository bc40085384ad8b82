//! Work on a core of its own.

use crate::exit::Failure;
use crate::host::pin_to;
use rustix::io::Errno;
use std::panic::resume_unwind;
use std::thread::{Scope, ScopedJoinHandle, Thread};

/// Work that is done on one core.
pub(super) struct OnCore<'scope, T> {
    core: usize,
    thread: ScopedJoinHandle<'scope, Result<T, Errno>>,
}

/// Begins `work` in a thread that runs on `core` and nowhere else.
pub(super) fn on_core<'scope, T: Send + 'scope>(
    scope: &'scope Scope<'scope, '_>,
    core: usize,
    work: impl FnOnce() -> T + Send + 'scope,
) -> OnCore<'scope, T> {
    let thread = scope.spawn(move || pin_to(core).map(|()| work()));
    OnCore { core, thread }
}

impl<T> OnCore<'_, T> {
    /// Its thread, to be woken up.
    pub(super) fn thread(&self) -> Thread {
        self.thread.thread().clone()
    }

    /// Waits for it to end.
    ///
    /// # Errors
    /// The core is not there, or not for us.
    pub(super) fn join(self) -> Result<T, Failure> {
        let answer = self.thread.join().unwrap_or_else(|panic| resume_unwind(panic));
        answer.map_err(|error| {
            Failure::from_io(format_args!("cannot run on core {}", self.core), &error.into())
        })
    }
}
