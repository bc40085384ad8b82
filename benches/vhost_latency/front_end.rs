//! A front-end's side of a vhost-user socket: what a VMM says to hand over a NIC with one queue pair (QEMU's
//! `docs/interop/vhost-user.rst`).

use hyper_switch_pvnet::ring::QueueAddrs;
use hyper_switch_pvnet::vhost_user::event::EventFd;
use hyper_switch_pvnet::vhost_user::features::Features;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use std::io::{IoSlice, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

/// Version 1, no reply wanted.
const FLAGS: u32 = 1;
const HEADER_BYTES: usize = 12;

const GET_FEATURES: u32 = 1;
const SET_FEATURES: u32 = 2;
const SET_OWNER: u32 = 3;
const SET_MEM_TABLE: u32 = 5;
const SET_VRING_NUM: u32 = 8;
const SET_VRING_ADDR: u32 = 9;
const SET_VRING_BASE: u32 = 10;
const SET_VRING_KICK: u32 = 12;
const SET_VRING_CALL: u32 = 13;
const SET_PROTOCOL_FEATURES: u32 = 16;
const SET_VRING_ENABLE: u32 = 18;

/// A connection to the switch.
pub struct FrontEnd {
    socket: UnixStream,
}

impl FrontEnd {
    pub fn new(socket: UnixStream) -> FrontEnd {
        FrontEnd { socket }
    }

    /// Agrees on these features, all of which the switch must have.
    pub fn agree(&mut self, features: Features) {
        self.say(SET_OWNER, &[], None);
        self.say(GET_FEATURES, &[], None);
        let mut reply = [0; HEADER_BYTES + 8];
        self.socket.read_exact(&mut reply).expect("the switch answers");
        let offered = Features(u64::from_ne_bytes(reply[HEADER_BYTES..].try_into().expect("8 bytes")));
        assert!(offered.has(features), "the switch offers {offered:?}");
        self.say(SET_PROTOCOL_FEATURES, &[0], None);
        self.say(SET_FEATURES, &[features.0], None);
    }

    /// Hands over memory of so many bytes, which the guest and this front-end see at address 0.
    pub fn share(&mut self, file: BorrowedFd<'_>, bytes: u64) {
        self.say(SET_MEM_TABLE, &[1, 0, bytes, 0, 0], Some(file));
    }

    /// Has a ring run.
    pub fn start(&mut self, ring: u32, size: u16, addrs: QueueAddrs, kick: &EventFd, call: &EventFd) {
        let state = |number: u32| u64::from(ring) | u64::from(number) << 32;
        self.say(SET_VRING_NUM, &[state(size.into())], None);
        self.say(SET_VRING_BASE, &[state(0)], None);
        self.say(SET_VRING_ADDR, &[state(0), addrs.desc, addrs.used, addrs.avail, 0], None);
        self.say(SET_VRING_CALL, &[ring.into()], Some(call.as_fd()));
        self.say(SET_VRING_KICK, &[ring.into()], Some(kick.as_fd()));
        self.say(SET_VRING_ENABLE, &[state(1)], None);
    }

    /// Sends a request whose payload, taken as words, is this.
    fn say(&mut self, request: u32, payload: &[u64], fd: Option<BorrowedFd<'_>>) {
        let head = [request, FLAGS, 8 * payload.len() as u32].map(u32::to_ne_bytes).concat();
        let payload: Vec<u8> = payload.iter().flat_map(|word| word.to_ne_bytes()).collect();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        assert!(control.push(SendAncillaryMessage::ScmRights(fd.as_slice())), "there is room for one");
        let message = [head, payload].concat();
        let sent = sendmsg(&self.socket, &[IoSlice::new(&message)], &mut control, SendFlags::NOSIGNAL);
        assert_eq!(sent, Ok(message.len()), "the switch listens");
    }
}
