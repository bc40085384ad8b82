//! A wire: the frames of an interface as they are, tags and offloads included.

use super::DEADLINE;
use hyper_switch_pvnet::MAX_FRAME_BYTES;
use hyper_switch_pvnet::device::{Device, PullSlot, PushError, PushFrame};
use hyper_switch_pvnet::header::{VNET_HDR_BYTES, VnetHdr};
use hyper_switch_pvnet::mem::Segment;
use hyper_switch_pvnet::packet::PacketSocket;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::time::Instant;

/// An interface of a guest, read and written below its kernel's stack.
pub struct Wire(PacketSocket);

impl Wire {
    /// The interface of this name in the calling thread's namespace.
    pub fn attach(interface: &str) -> Wire {
        Wire(PacketSocket::attach(interface).unwrap())
    }

    /// Receives until a frame is the wanted one.
    pub fn pull_until(&self, wanted: impl Fn(&[u8]) -> bool) -> (VnetHdr, Vec<u8>) {
        let mut memory = vec![0_u8; VNET_HDR_BYTES + MAX_FRAME_BYTES];
        let started = Instant::now();
        loop {
            let left = DEADLINE.checked_sub(started.elapsed()).expect("the frame comes before the deadline");
            let mut fds = [PollFd::new(&self.0, PollFlags::IN)];
            poll(&mut fds, Some(&Timespec::try_from(left).unwrap())).unwrap();
            let buffer = Segment::new(memory.as_mut_ptr(), memory.len() as u32);
            let mut slots = [PullSlot { buffer, bytes: 0 }];
            if self.0.pull(&mut slots).unwrap() == 0 {
                continue;
            }
            let (raw, frame) = memory[..slots[0].bytes as usize].split_first_chunk().unwrap();
            if wanted(frame) {
                return (VnetHdr::decode(raw).unwrap(), frame.to_vec());
            }
        }
    }

    /// Sends one frame that asks for no offload.
    pub fn push(&self, frame: &[u8]) {
        let mut memory = [&VnetHdr::PLAIN.encode(0), frame].concat();
        let parts = [Segment::new(memory.as_mut_ptr(), memory.len() as u32)];
        let mut outcome = [Err(PushError::Full)];
        self.0.push(&[PushFrame { parts: &parts }], &mut outcome);
        assert_eq!(outcome, [Ok(())]);
    }
}
