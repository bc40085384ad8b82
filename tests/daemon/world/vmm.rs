//! A VMM: a process that owns a TAP on the host and passes its guest's frames to it, with their offloads.

use super::Place;
use hyper_switch_pvnet::MAX_FRAME_BYTES;
use hyper_switch_pvnet::device::{Device, PullSlot, PushError, PushFrame};
use hyper_switch_pvnet::header::VNET_HDR_BYTES;
use hyper_switch_pvnet::mem::Segment;
use hyper_switch_pvnet::namespace::Interface;
use hyper_switch_pvnet::tap::Tap;
use rustix::event::{PollFd, PollFlags, poll};
use std::io::PipeWriter;
use std::os::fd::AsFd;
use std::thread::JoinHandle;

/// Bytes of a place for one frame.
const SLOT_BYTES: usize = VNET_HDR_BYTES + MAX_FRAME_BYTES;

/// A VMM with one guest. Dropped, it ends, and the interfaces that it made with it.
pub struct Vmm {
    /// Closed, it tells the thread to end.
    alive: Option<PipeWriter>,
    thread: Option<JoinHandle<()>>,
}

impl Vmm {
    /// Makes `host_interface` in `place`, and there too, to be taken by the guest, `guest_interface`.
    pub fn start(place: &Place, host_interface: &str, guest_interface: &str) -> Vmm {
        let (host, guest) = place
            .namespace()
            .run(|| {
                let taps = [host_interface, guest_interface].map(|name| Tap::open(name).unwrap());
                Interface::named(host_interface).unwrap().up().unwrap();
                taps.into()
            })
            .unwrap();
        let (ended, alive) = std::io::pipe().unwrap();
        let thread = std::thread::spawn(move || relay(&host, &guest, &ended));
        Vmm { alive: Some(alive), thread: Some(thread) }
    }
}

impl Drop for Vmm {
    fn drop(&mut self) {
        self.alive = None;
        if let Some(Err(panic)) = self.thread.take().map(JoinHandle::join)
            && !std::thread::panicking()
        {
            std::panic::resume_unwind(panic);
        }
    }
}

/// Passes frames both ways until the other end of `ended` is closed, or an interface is gone.
fn relay(left: &Tap, right: &Tap, ended: &impl AsFd) {
    let mut memory = vec![0; 32 * SLOT_BYTES];
    let slot = |bytes: &mut [u8]| Segment::new(bytes.as_mut_ptr(), bytes.len() as u32);
    let buffers: Vec<Segment> = memory.chunks_mut(SLOT_BYTES).map(slot).collect();
    let mut slots: Vec<_> = buffers.iter().map(|buffer| PullSlot { buffer: *buffer, bytes: 0 }).collect();
    loop {
        let mut fds = [left.as_fd(), right.as_fd(), ended.as_fd()]
            .map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN));
        poll(&mut fds, None).unwrap();
        if !fds[2].revents().is_empty() {
            return;
        }
        for (from, to) in [(left, right), (right, left)] {
            // The guest's namespace may go before its VMM does, and takes the interface along.
            let Ok(count) = from.pull(&mut slots) else { return };
            let parts: Vec<_> = slots[..count].iter().map(|slot| [slot.buffer.first(slot.bytes)]).collect();
            let frames: Vec<_> = parts.iter().map(|parts| PushFrame { parts }).collect();
            // A link that is down, or a full queue, loses frames here as in any VMM.
            to.push(&frames, &mut vec![Err(PushError::Full); count]);
        }
    }
}
