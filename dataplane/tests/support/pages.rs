//! A VM's memory as another process sees it: pages that are mapped at several places.

use hyper_switch_pvnet::mem::{GuestMemory, Region};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Weak};

/// Memory that can be mapped again and again.
pub struct Pages {
    file: OwnedFd,
    bytes: usize,
}

/// One map of it.
pub struct Mapped {
    at: usize,
    bytes: usize,
}

impl Drop for Mapped {
    fn drop(&mut self) {
        // SAFETY: it was mapped here, and whoever uses it keeps this.
        unsafe { munmap(self.at as *mut _, self.bytes).unwrap() }
    }
}

impl Pages {
    pub fn new(bytes: usize) -> Pages {
        let file = rustix::fs::memfd_create("guest", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        rustix::fs::ftruncate(&file, bytes as u64).unwrap();
        Pages { file, bytes }
    }

    /// A map, and what tells whether it is still there.
    pub fn map(&self) -> (GuestMemory, Weak<Mapped>) {
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new map, wherever there is room.
        let at = unsafe { mmap(std::ptr::null_mut(), self.bytes, access, MapFlags::SHARED, &self.file, 0) };
        let mapped = Arc::new(Mapped { at: at.unwrap() as usize, bytes: self.bytes });
        let there = Arc::downgrade(&mapped);
        // SAFETY: it is mapped until the owner is dropped, and there are no references to it.
        let region = unsafe { Region::new(0, self.bytes as u64, mapped.at as *mut u8, mapped) };
        (GuestMemory::new(vec![region]).unwrap(), there)
    }
}
