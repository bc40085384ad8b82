//! How much of a processor the kernel gives a thread that competes with others.

use rustix::io::Errno;

/// Has the kernel run the calling thread only where no other wants to run (`SCHED_IDLE`, sched(7)). A thread that wakes
/// up takes the core from it at once, as from an idle one.
///
/// # Errors
/// The kernel refuses.
pub fn run_only_when_idle() -> Result<(), Errno> {
    let param = libc::sched_param { sched_priority: 0 };
    // SAFETY: the kernel reads one sched_param, which lives until then; 0 is the calling thread.
    let answer = unsafe { libc::sched_setscheduler(0, libc::SCHED_IDLE, &raw const param) };
    crate::sys::check(answer as isize).map(drop)
}
