//! Files that are truncated after they were mapped: the pages beyond their new end are gone, and whoever touches
//! one is sent SIGBUS, which would end the process and every port with it.
//!
//! So each mapping of a front-end's file is entered in a table that a signal handler can read. The handler puts
//! zeros in the place of the whole mapping that the address is in, marks it lost and signals an eventfd: the
//! copy that was interrupted goes on, and the owner, woken, takes the port down. An address that is in no mapping
//! of the table is left to the handler that was there before.
//!
//! The handler allocates nothing, takes no lock and calls nothing but `mmap` and `write` (`signal-safety(7)`;
//! `mmap` is not on that list, but is one system call and nothing else on Linux). An entry is written under a
//! lock by the mapping's owner, and read under a sequence number: odd while it is written, and higher after.

use super::event::EventFd;
use core::ffi::{c_int, c_void};
use core::mem::MaybeUninit;
use core::ptr;
use core::sync::atomic::{AtomicBool, AtomicI32, AtomicUsize, Ordering, fence};
use std::os::fd::{AsFd, AsRawFd};
use std::sync::{Arc, Mutex, OnceLock};

/// Mappings that may be watched at a time, of all ports together: 32 times as many as one port may have.
const ENTRIES: usize = 16_384;

static TABLE: [Entry; ENTRIES] = [const { Entry::free() }; ENTRIES];

/// Which entries are free: those given back, and all from `next` on.
static FREE: Mutex<Free> = Mutex::new(Free { given_back: Vec::new(), next: 0 });

struct Free {
    given_back: Vec<usize>,
    next: usize,
}

/// Entries that were ever used; the handler looks no further.
static USED: AtomicUsize = AtomicUsize::new(0);

struct Entry {
    sequence: AtomicUsize,
    start: AtomicUsize,
    /// 0 if the entry is free.
    bytes: AtomicUsize,
    event: AtomicI32,
    lost: AtomicBool,
}

impl Entry {
    const fn free() -> Entry {
        Entry {
            sequence: AtomicUsize::new(0),
            start: AtomicUsize::new(0),
            bytes: AtomicUsize::new(0),
            event: AtomicI32::new(-1),
            lost: AtomicBool::new(false),
        }
    }

    /// Writes the entry. The caller is the only one who does.
    fn set(&self, start: usize, bytes: usize, event: i32) {
        self.sequence.fetch_add(1, Ordering::Relaxed);
        fence(Ordering::Release);
        self.start.store(start, Ordering::Relaxed);
        self.bytes.store(bytes, Ordering::Relaxed);
        self.event.store(event, Ordering::Relaxed);
        self.lost.store(false, Ordering::Relaxed);
        self.sequence.fetch_add(1, Ordering::Release);
    }

    /// Start, bytes and eventfd, if `address` is in the entry's range. An entry that is being written is of a range
    /// that nobody uses, so `address` is not in it.
    fn covering(&self, address: usize) -> Option<(usize, usize, c_int)> {
        let before = self.sequence.load(Ordering::Acquire);
        let start = self.start.load(Ordering::Relaxed);
        let bytes = self.bytes.load(Ordering::Relaxed);
        let event = self.event.load(Ordering::Relaxed);
        fence(Ordering::Acquire);
        let whole = before.is_multiple_of(2) && self.sequence.load(Ordering::Relaxed) == before;
        (whole && address.wrapping_sub(start) < bytes).then_some((start, bytes, event))
    }
}

/// A range of mapped memory that may lose its pages without harm.
#[derive(Debug)]
pub(super) struct Guard {
    entry: usize,
    /// Kept open for the handler, which knows its number alone.
    _event: Arc<EventFd>,
}

/// As many mappings are watched as can be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{ENTRIES} mappings are watched for truncation, and no more can be")]
pub struct TableFull;

impl Guard {
    /// Watches the `bytes` from `start` on, and signals `event` if any of them are lost. The handler is installed
    /// with the first.
    ///
    /// # Safety
    /// The range is a mapping of the caller's own, and is replaced by zeros when a page of it is gone. The guard is
    /// dropped before the range is unmapped.
    pub(super) unsafe fn new(start: *mut u8, bytes: usize, event: Arc<EventFd>) -> Result<Guard, TableFull> {
        install();
        let mut free = FREE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let entry = free.given_back.pop().unwrap_or(free.next);
        let place = TABLE.get(entry).ok_or(TableFull)?;
        place.set(start as usize, bytes, event.as_fd().as_raw_fd());
        free.next = free.next.max(entry + 1);
        USED.store(free.next, Ordering::Release);
        Ok(Guard { entry, _event: event })
    }

    /// Whether pages were lost, and zeros put in their place.
    pub(super) fn is_lost(&self) -> bool {
        TABLE[self.entry].lost.load(Ordering::Relaxed)
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        let mut free = FREE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        TABLE[self.entry].set(0, 0, -1);
        free.given_back.push(self.entry);
    }
}

/// What is done about a signal that is not ours.
static PREVIOUS: OnceLock<libc::sigaction> = OnceLock::new();
static INSTALLED: Mutex<bool> = Mutex::new(false);

fn install() {
    let mut installed = INSTALLED.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    if *installed {
        return;
    }
    let handler: extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void) = handle;
    let mut previous = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: zeros are a sigaction. The one before is asked for first, so that the handler never misses it.
    unsafe {
        libc::sigaction(libc::SIGBUS, ptr::null(), previous.as_mut_ptr());
        PREVIOUS.get_or_init(|| previous.assume_init());
        let mut action = MaybeUninit::<libc::sigaction>::zeroed().assume_init();
        action.sa_sigaction = handler as usize;
        // On the alternative stack, where there is one: the handler of a stack that overflowed may be behind.
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        libc::sigaction(libc::SIGBUS, &raw const action, ptr::null_mut());
    }
    *installed = true;
}

extern "C" fn handle(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    // SAFETY: the kernel hands a siginfo to a handler that was installed with SA_SIGINFO. The address is one of
    // SIGBUS's fields, and a code above 0 says that the kernel sent it for an access.
    let address = unsafe { ((*info).si_code > 0).then(|| (*info).si_addr() as usize) };
    if !address.is_some_and(replace) {
        pass_on(signal, info, context);
    }
}

/// Puts zeros in the place of the mapping that `address` is in, if it is one of ours.
fn replace(address: usize) -> bool {
    let used = USED.load(Ordering::Acquire);
    let found = TABLE.iter().take(used).find_map(|entry| Some((entry, entry.covering(address)?)));
    let Some((entry, (start, bytes, event))) = found else { return false };
    // SAFETY: `errno` is this thread's. The range is a mapping that its owner, who still has its guard, gave up for
    // zeros; a thread that touches it meanwhile waits in the kernel.
    unsafe {
        let errno = libc::__errno_location();
        let kept = *errno;
        let zeros = libc::mmap(
            start as *mut c_void,
            bytes,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED | libc::MAP_NORESERVE,
            -1,
            0,
        );
        if zeros != libc::MAP_FAILED {
            entry.lost.store(true, Ordering::Relaxed);
            let one = 1_u64;
            libc::write(event, (&raw const one).cast(), size_of::<u64>());
        }
        *errno = kept;
        zeros != libc::MAP_FAILED
    }
}

/// Does what would have been done without us.
fn pass_on(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    let previous = PREVIOUS.get();
    let handler = previous.map_or(libc::SIG_DFL, |previous| previous.sa_sigaction);
    let flags = previous.map_or(0, |previous| previous.sa_flags);
    // SAFETY: a handler is of the type that its flags say, as whoever installed it told the kernel. The default
    // is put back, and the access that is then made again ends the process.
    unsafe {
        if handler == libc::SIG_DFL || handler == libc::SIG_IGN {
            libc::signal(signal, libc::SIG_DFL);
        } else if flags & libc::SA_SIGINFO != 0 {
            let handler: extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void) =
                core::mem::transmute(handler);
            handler(signal, info, context);
        } else {
            let handler: extern "C" fn(c_int) = core::mem::transmute(handler);
            handler(signal);
        }
    }
}
