//! A bell: how a thread that may sleep is told that there is work.
//!
//! The same protocol for both kinds: whoever rings sets the flag and then wakes; whoever sleeps clears the flag
//! before it looks for work, and sleeps only while the flag is clear. A ring between the look and the sleep is
//! found in the flag, so none is lost; many rings are one.

use super::cores::Cores;
use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};
use hyper_switch_dataplane::host::{CoreId, RunState};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use sync::{AtomicBool, AtomicU32, Ordering, Thread, fence, thread};

/// What a guest's bell is made of; the model checker's own, if it is built for that.
mod sync {
    #[cfg(loom)]
    pub(super) use loom::{
        sync::atomic::{AtomicBool, AtomicU32, Ordering, fence},
        thread::{self, Thread},
    };
    #[cfg(not(loom))]
    pub(super) use std::{
        sync::atomic::{AtomicBool, AtomicU32, Ordering, fence},
        thread::{self, Thread},
    };
}

/// The bell of a thread that waits on channels.
#[derive(Clone)]
pub struct Bell(Sender<()>);

impl Bell {
    /// A bell, and the channel on which a ring arrives.
    pub fn new() -> (Bell, Receiver<()>) {
        let (bell, rung) = bounded(1);
        (Bell(bell), rung)
    }

    /// Rings. Costs little when it was rung already and not yet heard.
    pub fn ring(&self) {
        match self.0.try_send(()) {
            // Heard by nobody: the thread has ended. Or rung already.
            Ok(()) | Err(TrySendError::Full(()) | TrySendError::Disconnected(())) => {}
        }
    }
}

/// In the state of a guest: it blocks. The rest is the core on which it ran last.
const BLOCKED: u32 = 1 << 16;

/// The bell of a guest's thread: its virtual interrupt line, and what the thread is doing. Once it is told of the cores
/// that VMs share, it is counted there as long as it is awake.
pub struct GuestBell {
    rung: AtomicBool,
    state: AtomicU32,
    cores: OnceLock<Arc<Cores>>,
    thread: Thread,
}

impl GuestBell {
    /// The bell of the calling thread.
    pub fn of_this_thread() -> GuestBell {
        GuestBell {
            rung: AtomicBool::new(false),
            state: AtomicU32::new(0),
            cores: OnceLock::new(),
            thread: thread::current(),
        }
    }

    /// Counts the guest on `cores` from now on. It is awake, or about to be.
    pub(super) fn count_on(&self, cores: Arc<Cores>) {
        self.cores.get_or_init(|| {
            cores.awoke(self.home());
            cores
        });
    }

    /// Injects the interrupt, waking the thread if it blocks.
    pub fn ring(&self) {
        if !self.rung.swap(true, Ordering::AcqRel) {
            // The flag is set before the sleeper is looked for, and `wait` says that it sleeps before it looks at the flag:
            // one of the two sees the other.
            fence(Ordering::SeqCst);
            if self.wake() {
                self.thread.unpark();
            }
        }
    }

    /// Takes a pending interrupt.
    pub fn take(&self) -> bool {
        self.rung.load(Ordering::Relaxed) && self.rung.swap(false, Ordering::Acquire)
    }

    /// Blocks until an interrupt is pending, or for `timeout` if there is one. Only for the bell's own thread.
    pub fn wait(&self, timeout: Option<Duration>) {
        self.state.fetch_or(BLOCKED, Ordering::Relaxed);
        if let Some(cores) = self.cores.get() {
            cores.blocked(self.home());
        }
        fence(Ordering::SeqCst);
        // A wake-up may also come from elsewhere; the caller looks for work and waits again.
        if !self.rung.load(Ordering::Relaxed) {
            match timeout {
                // To the model checker time may pass at once.
                #[cfg(loom)]
                Some(_) => thread::yield_now(),
                #[cfg(not(loom))]
                Some(timeout) => thread::park_timeout(timeout),
                None => thread::park(),
            }
        }
        self.wake();
        self.note_core();
    }

    /// What the guest is doing, as far as its own word goes: it blocks in one place only.
    pub fn run_state(&self) -> RunState {
        match self.state.load(Ordering::Relaxed) {
            state if state & BLOCKED != 0 => RunState::Blocked,
            core => RunState::Running(CoreId(core as u16)),
        }
    }

    /// The core on which the guest ran last, as far as it knows.
    pub(super) fn home(&self) -> CoreId {
        CoreId(self.state.load(Ordering::Relaxed) as u16)
    }

    /// The guest is awake, from before it runs. Answers whether it blocked until now.
    fn wake(&self) -> bool {
        let was = self.state.fetch_and(!BLOCKED, Ordering::Relaxed);
        if was & BLOCKED == 0 {
            return false;
        }
        if let Some(cores) = self.cores.get() {
            cores.awoke(CoreId(was as u16));
        }
        true
    }

    /// The guest, which is awake and calls this, may run on another core than before.
    fn note_core(&self) {
        let Some(cores) = self.cores.get() else { return };
        let (before, here) = (self.home(), cores.here());
        if before != here {
            // While it is awake nobody else changes the state.
            self.state.store(here.0.into(), Ordering::Relaxed);
            cores.moved(before, here);
        }
    }
}

impl Drop for GuestBell {
    fn drop(&mut self) {
        if let Some(cores) = self.cores.get()
            && self.run_state() != RunState::Blocked
        {
            cores.blocked(self.home());
        }
    }
}

#[cfg(all(test, loom))]
mod models {
    //! A guest that blocks while others ring, in every order of their steps that needs few interruptions.

    use super::GuestBell;
    use loom::sync::atomic::{AtomicU32, Ordering};
    use loom::thread;
    use std::sync::Arc;

    /// Whoever leaves work and rings has it found: the guest does not sleep for ever. Caught: no fence in `ring`, none in
    /// `wait`, a relaxed swap of the flag in `take` or `ring`, a ring that does not wake, and a look at the flag before
    /// it is said that the guest sleeps.
    #[test]
    fn no_ring_is_lost() {
        let mut builder = loom::model::Builder::new();
        builder.preemption_bound = Some(3);
        builder.check(|| {
            let work = Arc::new(AtomicU32::new(0));
            let bell = Arc::new(GuestBell::of_this_thread());
            // Nobody joins them: to the model checker that is sleeping, too, which a late ring would disturb.
            for bit in [1, 2] {
                let (work, bell) = (work.clone(), bell.clone());
                thread::spawn(move || {
                    work.fetch_or(bit, Ordering::Relaxed);
                    bell.ring();
                });
            }
            let mut seen = 0;
            while seen != 3 {
                if bell.take() {
                    seen = work.load(Ordering::Relaxed);
                } else {
                    bell.wait(None);
                }
            }
        });
    }
}
