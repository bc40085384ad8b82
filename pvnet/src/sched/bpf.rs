//! The system calls: maps, programs, and what ties a program to a tracepoint. Layouts are those of the kernel's
//! `include/uapi/linux/bpf.h` and `perf_event.h`.

use super::program::Insn;
use crate::sys;
use core::mem::size_of;
use core::ops::Deref;
use core::ptr::NonNull;
use core::sync::atomic::AtomicU64;
use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use std::ffi::{c_int, c_long};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::Arc;

const MAP_CREATE: c_int = 0;
const MAP_UPDATE: c_int = 2;
const MAP_DELETE: c_int = 3;
const PROGRAM_LOAD: c_int = 5;

/// `bpf(2)`.
///
/// # Safety
/// `attributes` is what the command takes, and addresses in it are of memory that is as the command expects.
unsafe fn bpf<T>(command: c_int, attributes: &T) -> Result<c_long, Errno> {
    // SAFETY: the kernel reads as many bytes as it is told; the rest is the caller's word.
    let answer =
        unsafe { libc::syscall(libc::SYS_bpf, command, core::ptr::from_ref(attributes), size_of::<T>()) };
    sys::check(answer as isize).map(|answer| answer as c_long)
}

/// The descriptor that a system call answered.
///
/// # Safety
/// It is a new one.
unsafe fn owned(answer: c_long) -> OwnedFd {
    // SAFETY: by the caller's word nobody else has it.
    unsafe { OwnedFd::from_raw_fd(answer as c_int) }
}

#[repr(C)]
struct MapCreate {
    kind: u32,
    key_bytes: u32,
    value_bytes: u32,
    entries: u32,
    flags: u32,
}

fn create_map(kind: u32, value_bytes: u32, entries: u32, flags: u32) -> Result<OwnedFd, Errno> {
    let attributes = MapCreate { kind, key_bytes: size_of::<u32>() as u32, value_bytes, entries, flags };
    // SAFETY: without addresses; the answer is a new descriptor.
    unsafe { bpf(MAP_CREATE, &attributes).map(|answer| owned(answer)) }
}

/// A map from one number to another, of the kernel's; the programs look numbers up in it.
#[derive(Debug)]
pub(super) struct NumberMap(OwnedFd);

#[repr(C)]
struct MapElement {
    map: u32,
    key: u64,
    value: u64,
    flags: u64,
}

impl NumberMap {
    /// An empty map that holds up to `entries`.
    pub(super) fn new(entries: u32) -> Result<NumberMap, Errno> {
        const HASH: u32 = 1;
        create_map(HASH, size_of::<u32>() as u32, entries, 0).map(NumberMap)
    }

    pub(super) fn insert(&self, key: u32, value: u32) -> Result<(), Errno> {
        self.change(MAP_UPDATE, key, value)
    }

    pub(super) fn remove(&self, key: u32) -> Result<(), Errno> {
        self.change(MAP_DELETE, key, 0)
    }

    fn change(&self, command: c_int, key: u32, value: u32) -> Result<(), Errno> {
        let element = MapElement {
            map: self.0.as_raw_fd() as u32,
            key: &raw const key as u64,
            // A removal demands that there is none.
            value: if command == MAP_UPDATE { &raw const value as u64 } else { 0 },
            flags: 0,
        };
        // SAFETY: key and value live until the call is over, and have the sizes that the map was made with.
        unsafe { bpf(command, &element) }.map(drop)
    }
}

impl AsFd for NumberMap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// The words that programs write and this process reads: an array map's memory, mapped.
#[derive(Debug)]
pub(super) struct Words {
    base: NonNull<AtomicU64>,
    count: usize,
    map: OwnedFd,
}

// SAFETY: the memory is shared with the kernel anyway; all access is by atomics.
unsafe impl Send for Words {}
// SAFETY: as above.
unsafe impl Sync for Words {}

impl Words {
    /// As many words, all of them 0.
    pub(super) fn new(count: u32) -> Result<Words, Errno> {
        const ARRAY: u32 = 2;
        const MAPPABLE: u32 = 1 << 10;
        let map = create_map(ARRAY, size_of::<AtomicU64>() as u32, count, MAPPABLE)?;
        let (bytes, prot) = (count as usize * size_of::<AtomicU64>(), ProtFlags::READ | ProtFlags::WRITE);
        // SAFETY: a new mapping at an address of the kernel's choice.
        let base = unsafe { mmap(core::ptr::null_mut(), bytes, prot, MapFlags::SHARED, &map, 0) }?;
        // Address 0 cannot be mapped.
        let base = NonNull::new(base.cast()).ok_or(Errno::FAULT)?;
        Ok(Words { base, count: count as usize, map })
    }
}

impl Deref for Words {
    type Target = [AtomicU64];

    #[inline]
    fn deref(&self) -> &[AtomicU64] {
        // SAFETY: mapped for as long as `self` lives, page-aligned, and as long as was mapped; every bit pattern is
        // a word, and programs write whole words only.
        unsafe { core::slice::from_raw_parts(self.base.as_ptr(), self.count) }
    }
}

impl AsFd for Words {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.map.as_fd()
    }
}

impl Drop for Words {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours and no reference into it outlives `self`.
        let _ = unsafe { munmap(self.base.as_ptr().cast(), self.count * size_of::<AtomicU64>()) };
    }
}

/// One of the words, by its address: a read follows no other pointer.
#[derive(Debug)]
pub(super) struct Word {
    at: NonNull<AtomicU64>,
    _mapped: Arc<Words>,
}

// SAFETY: an address of memory that is accessed by atomics only, and stays mapped.
unsafe impl Send for Word {}
// SAFETY: as above.
unsafe impl Sync for Word {}

impl Word {
    /// The word at `index`.
    pub(super) fn of(words: &Arc<Words>, index: u32) -> Word {
        Word { at: NonNull::from(&words[index as usize]), _mapped: words.clone() }
    }
}

impl Deref for Word {
    type Target = AtomicU64;

    #[inline]
    fn deref(&self) -> &AtomicU64 {
        // SAFETY: it was in bounds, and `_mapped` keeps it mapped.
        unsafe { self.at.as_ref() }
    }
}

#[repr(C)]
struct ProgramLoad {
    kind: u32,
    count: u32,
    instructions: u64,
    licence: u64,
    log_level: u32,
    log_bytes: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
}

/// Has the kernel verify and compile a program for tracepoints.
pub(super) fn load_program(instructions: &[Insn]) -> Result<OwnedFd, Errno> {
    const TRACEPOINT: u32 = 5;
    let attributes = ProgramLoad {
        kind: TRACEPOINT,
        count: instructions.len() as u32,
        instructions: instructions.as_ptr() as u64,
        licence: c"MIT OR Apache-2.0".as_ptr() as u64,
        log_level: 0,
        log_bytes: 0,
        log: 0,
        kernel_version: 0,
        flags: 0,
    };
    // SAFETY: instructions and licence live until the call is over; the answer is a new descriptor.
    unsafe { bpf(PROGRAM_LOAD, &attributes).map(|answer| owned(answer)) }
}

/// `perf_event_attr` in its first version, 64 bytes.
#[repr(C)]
#[derive(Default)]
struct EventAttributes {
    kind: u32,
    bytes: u32,
    config: u64,
    rest: [u64; 6],
}

/// Has `program` run whenever a core passes the tracepoint `id`, until the answer is dropped.
pub(super) fn attach(program: BorrowedFd<'_>, id: u64) -> Result<OwnedFd, Errno> {
    const TRACEPOINT: u32 = 2;
    const CLOSE_ON_EXEC: c_int = 8;
    const SET_BPF: u64 = 0x4004_2408;
    const ENABLE: u64 = 0x2400;
    let attributes = EventAttributes {
        kind: TRACEPOINT,
        bytes: size_of::<EventAttributes>() as u32,
        config: id,
        ..EventAttributes::default()
    };
    let (every_process, no_group): (c_int, c_int) = (-1, -1);
    // The event belongs to a core, but the program runs on all: it hangs on the tracepoint.
    let core = rustix::thread::sched_getcpu() as c_int;
    // SAFETY: the kernel reads as many bytes of the attributes as they say.
    let event = unsafe {
        let attributes = &raw const attributes;
        libc::syscall(libc::SYS_perf_event_open, attributes, every_process, core, no_group, CLOSE_ON_EXEC)
    };
    sys::check(event as isize)?;
    // SAFETY: it was just opened.
    let event = unsafe { owned(event) };
    for (request, value) in [(SET_BPF, program.as_raw_fd()), (ENABLE, 0)] {
        // SAFETY: both requests take their argument by value.
        let answer = unsafe { libc::ioctl(event.as_raw_fd(), request as _, value) };
        sys::check(answer as isize)?;
    }
    Ok(event)
}
