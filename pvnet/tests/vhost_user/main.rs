//! vhost-user from a front-end's side: sessions as QEMU, Cloud Hypervisor and others hold them, the `vhost` crate's
//! front-end as a peer that is not ours, front-ends that lie, and connections that end at any byte. No file
//! descriptor is left over by any of them.

mod peer;
mod session;
mod sigbus;
mod socket;
mod vmm;

use std::fs::read_dir;
use std::sync::{Mutex, MutexGuard, PoisonError};

static FDS: Mutex<()> = Mutex::new(());

/// Counts this process's file descriptors from here on. Every test has one, as tests run at the same time.
struct OpenFds {
    before: usize,
    _alone: MutexGuard<'static, ()>,
}

impl OpenFds {
    fn count() -> OpenFds {
        let alone = FDS.lock().unwrap_or_else(PoisonError::into_inner);
        OpenFds { before: open(), _alone: alone }
    }

    fn assert_none_left(&self) {
        assert_eq!(open(), self.before, "file descriptors");
    }
}

fn open() -> usize {
    read_dir("/proc/self/fd").unwrap().count()
}
