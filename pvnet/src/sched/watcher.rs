//! Who is watched: the programs at work, and each watched thread's slot.
//!
//! A thread's id is entered in the programs' map first and its state is read from procfs then, into a word that
//! no program has written yet: whatever happens in between is a program's to say, and wins.

use super::bpf::{self, NumberMap, Word, Words};
use super::process::ThreadStat;
use super::program::{self, Maps};
use super::tracepoint::{FormatError, Tracepoint, tracefs};
use super::word::{self, ThreadState};
use rustix::io::Errno;
use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError, Weak};

/// The most threads that a process can watch at a time.
pub const CAPACITY: u32 = 4096;

/// Why the scheduler cannot be watched, and what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum WatchError {
    /// The process may not do that.
    #[error(
        "not permitted to watch the scheduler ({step}): run as root, or with CAP_BPF and CAP_PERFMON, and in a \
         container with a seccomp profile that allows bpf(2) and perf_event_open(2)"
    )]
    NotPermitted {
        /// What was tried.
        step: &'static str,
    },
    /// The description of the tracepoints cannot be had.
    #[error(
        "tracefs is not mounted where it can be read, and could not be mounted: run `mount -t tracefs tracefs \
         /sys/kernel/tracing` as root, or run with CAP_SYS_ADMIN"
    )]
    NoTracefs(#[source] io::Error),
    /// The scheduler's thread ids are not ours.
    #[error(
        "this process is in a PID namespace of its own, and the scheduler tells the machine's thread ids: run it \
         in the machine's (`--pid=host` of a container)"
    )]
    PidNamespace,
    /// A tracepoint is not as the programs need it.
    #[error("tracepoint {name} of this kernel cannot be used")]
    Tracepoint {
        /// The tracepoint.
        name: &'static str,
        /// What is wrong.
        source: FormatError,
    },
    /// A step failed that should not; kernels before 5.8 lack some.
    #[error("cannot watch the scheduler: {step} failed")]
    System {
        /// What was tried.
        step: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
}

impl WatchError {
    fn at<E: Into<io::Error>>(step: &'static str) -> impl Fn(E) -> WatchError {
        move |source| {
            let source = source.into();
            match source.kind() {
                io::ErrorKind::PermissionDenied => WatchError::NotPermitted { step },
                _ => WatchError::System { step, source },
            }
        }
    }
}

/// Why a thread cannot be watched.
#[derive(Debug, thiserror::Error)]
pub enum WatchThreadError {
    /// There is no such thread.
    #[error("there is no thread {0}")]
    NoThread(u32),
    /// All places are taken.
    #[error("{CAPACITY} threads are watched, which is as many as can be")]
    Full,
    /// The kernel took it not.
    #[error("thread {tid} cannot be watched")]
    System {
        /// The thread.
        tid: u32,
        /// What the kernel said.
        source: io::Error,
    },
}

/// The scheduler's watcher: one a process, at work for as long as somebody has it.
pub struct Watcher {
    words: Arc<Words>,
    tids: NumberMap,
    slots: Mutex<Slots>,
    /// What ties the programs to their tracepoints; closed, they run no more.
    _events: [OwnedFd; 2],
}

/// Which thread has which word.
struct Slots {
    /// By thread id: the slot, and how many watch it.
    taken: HashMap<u32, (u32, usize)>,
    /// The one longest free is taken first.
    free: VecDeque<u32>,
}

impl Watcher {
    /// The process's watcher; started if none is at work.
    ///
    /// # Errors
    /// The scheduler cannot be watched here, by us, or by this kernel's means.
    pub fn get() -> Result<Arc<Watcher>, WatchError> {
        static AT_WORK: Mutex<Weak<Watcher>> = Mutex::new(Weak::new());
        let mut at_work = AT_WORK.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(watcher) = at_work.upgrade() {
            return Ok(watcher);
        }
        let watcher = Arc::new(Watcher::start()?);
        *at_work = Arc::downgrade(&watcher);
        Ok(watcher)
    }

    fn start() -> Result<Watcher, WatchError> {
        if !in_the_machines_pid_namespace() {
            return Err(WatchError::PidNamespace);
        }
        // The maps come first: whoever may not use BPF is told that, and not of tracefs.
        let tids = NumberMap::new(CAPACITY).map_err(WatchError::at("making a BPF map"))?;
        let words = Words::new(CAPACITY).map_err(WatchError::at("making a BPF array that can be mapped"))?;
        let tracefs = tracefs().map_err(WatchError::NoTracefs)?;
        let maps = Maps { tids: tids.as_fd(), words: words.as_fd() };
        let start = |name: &'static str, assemble: Assemble| {
            let tracepoint = Tracepoint::read(&tracefs, name).map_err(WatchError::NoTracefs)?;
            let program = tracepoint.and_then(|tracepoint| Ok((tracepoint.id, assemble(maps, &tracepoint)?)));
            let (id, program) = program.map_err(|source| WatchError::Tracepoint { name, source })?;
            let program = bpf::load_program(&program).map_err(WatchError::at("loading a BPF program"))?;
            bpf::attach(program.as_fd(), id).map_err(WatchError::at("attaching to a tracepoint"))
        };
        let events =
            [start("sched/sched_switch", program::switch)?, start("sched/sched_wakeup", program::wakeup)?];
        let slots = Mutex::new(Slots { taken: HashMap::new(), free: (0..CAPACITY).collect() });
        Ok(Watcher { words: Arc::new(words), tids, slots, _events: events })
    }

    /// Watches a thread of any process, for as long as the answer lives.
    ///
    /// # Errors
    /// There is no such thread, or too many are watched.
    pub fn watch(self: &Arc<Self>, tid: u32) -> Result<WatchedThread, WatchThreadError> {
        if tid == 0 {
            // What runs on a core that nobody wants, which is no thread of a process.
            return Err(WatchThreadError::NoThread(tid));
        }
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        let slot = match slots.taken.get_mut(&tid) {
            Some((slot, watchers)) => {
                *watchers += 1;
                *slot
            }
            None => {
                let slot = slots.free.pop_front().ok_or(WatchThreadError::Full)?;
                slots.taken.insert(tid, (slot, 1));
                self.words[slot as usize].store(0, Ordering::Relaxed);
                slot
            }
        };
        drop(slots);
        // From here on a failure gives the slot back.
        let watched = WatchedThread { watcher: self.clone(), word: Word::of(&self.words, slot), tid };
        let system = |errno: Errno| WatchThreadError::System { tid, source: errno.into() };
        self.tids.insert(tid, slot).map_err(system)?;
        let word = &watched.word;
        let seen = word.load(Ordering::Relaxed);
        // A thread that has ended may have left its id to this one.
        if matches!(word::state_of(seen, tid), ThreadState::Unknown | ThreadState::Exited) {
            let ThreadStat { letter, core } = ThreadStat::read(tid).ok_or(WatchThreadError::NoThread(tid))?;
            // Fails when a program was faster, and knows better.
            let first = word::from_procfs(tid, letter, core);
            let _ = word.compare_exchange(seen, first, Ordering::Relaxed, Ordering::Relaxed);
        }
        Ok(watched)
    }

    /// One less watches the thread `tid`.
    fn unwatch(&self, tid: u32) {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((slot, watchers)) = slots.taken.get_mut(&tid) {
            *watchers -= 1;
            if *watchers == 0 {
                let slot = *slot;
                slots.taken.remove(&tid);
                slots.free.push_back(slot);
                // It is not there if it could not be entered.
                let _ = self.tids.remove(tid);
            }
        }
    }
}

type Assemble = fn(Maps<'_>, &Tracepoint) -> Result<Vec<program::Insn>, FormatError>;

/// Whether thread ids here are those that the scheduler tells.
fn in_the_machines_pid_namespace() -> bool {
    /// The first PID namespace's inode (`PROC_PID_INIT_INO`).
    const FIRST: &str = "pid:[4026531836]";
    std::fs::read_link("/proc/self/ns/pid").is_ok_and(|namespace| namespace.as_os_str() == FIRST)
}

/// A thread that is watched until this is dropped.
pub struct WatchedThread {
    watcher: Arc<Watcher>,
    word: Word,
    tid: u32,
}

impl fmt::Debug for Watcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watcher").finish_non_exhaustive()
    }
}

impl fmt::Debug for WatchedThread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WatchedThread").field("tid", &self.tid).field("state", &self.state()).finish()
    }
}

impl WatchedThread {
    /// The thread's id.
    pub fn tid(&self) -> u32 {
        self.tid
    }

    /// What the thread does: one load from memory, no system call.
    #[inline]
    pub fn state(&self) -> ThreadState {
        word::state_of(self.word.load(Ordering::Relaxed), self.tid)
    }
}

impl Drop for WatchedThread {
    fn drop(&mut self) {
        self.watcher.unwatch(self.tid);
    }
}
