//! A bell: how a thread that may sleep is told that there is work.
//!
//! The same protocol for both kinds: whoever rings sets the flag and then wakes; whoever sleeps clears the flag
//! before it looks for work, and sleeps only while the flag is clear. A ring between the look and the sleep is
//! found in the flag, so none is lost; many rings are one.

use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};
use hyper_switch_dataplane::host::{CoreId, RunState};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, Thread};
use std::time::Duration;

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

/// The bell of a guest's thread: its virtual interrupt line.
pub struct GuestBell {
    rung: AtomicBool,
    blocked: AtomicBool,
    thread: Thread,
}

impl GuestBell {
    /// The bell of the calling thread.
    pub fn of_this_thread() -> GuestBell {
        GuestBell { rung: AtomicBool::new(false), blocked: AtomicBool::new(false), thread: thread::current() }
    }

    /// Injects the interrupt, waking the thread if it blocks.
    pub fn ring(&self) {
        if !self.rung.swap(true, Ordering::SeqCst) && self.blocked.load(Ordering::SeqCst) {
            self.thread.unpark();
        }
    }

    /// Takes a pending interrupt.
    pub fn take(&self) -> bool {
        self.rung.load(Ordering::Relaxed) && self.rung.swap(false, Ordering::Acquire)
    }

    /// Blocks until an interrupt is pending, or for `timeout` if there is one. Only for the bell's own thread.
    pub fn wait(&self, timeout: Option<Duration>) {
        self.blocked.store(true, Ordering::SeqCst);
        // A wake-up may also come from elsewhere; the caller looks for work and waits again.
        if !self.rung.load(Ordering::SeqCst) {
            match timeout {
                Some(timeout) => thread::park_timeout(timeout),
                None => thread::park(),
            }
        }
        self.blocked.store(false, Ordering::Relaxed);
    }

    /// What the guest is doing, as far as its own word goes: it blocks in one place only.
    pub fn run_state(&self) -> RunState {
        if self.blocked.load(Ordering::Relaxed) { RunState::Blocked } else { RunState::Running(CoreId(0)) }
    }
}
