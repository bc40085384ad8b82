//! A VMM: memory in a file, eventfds, and the messages that it sends, made byte by byte.

use hyper_switch_pvnet::vhost_user::message::{Fds, Header, Message};
use hyper_switch_pvnet::vhost_user::session::{Effect, Handled, Session, SessionFault};
use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use std::os::fd::OwnedFd;

pub const NEED_REPLY: u32 = 1 << 3;
/// Where the guest sees its memory, where the VMM does, and how much it is.
pub const GUEST: u64 = 0x4000_0000;
pub const USER: u64 = 0x7f12_3456_0000;
pub const BYTES: u64 = 0x10_0000;

pub const GET_FEATURES: u32 = 1;
pub const SET_FEATURES: u32 = 2;
pub const SET_OWNER: u32 = 3;
pub const RESET_OWNER: u32 = 4;
pub const SET_MEM_TABLE: u32 = 5;
pub const SET_LOG_BASE: u32 = 6;
pub const SET_VRING_NUM: u32 = 8;
pub const SET_VRING_ADDR: u32 = 9;
pub const SET_VRING_BASE: u32 = 10;
pub const GET_VRING_BASE: u32 = 11;
pub const SET_VRING_KICK: u32 = 12;
pub const SET_VRING_CALL: u32 = 13;
pub const SET_PROTOCOL_FEATURES: u32 = 16;
pub const SET_VRING_ENABLE: u32 = 18;
pub const SEND_RARP: u32 = 19;
pub const NET_SET_MTU: u32 = 20;
pub const GET_CONFIG: u32 = 24;
pub const SET_CONFIG: u32 = 25;
pub const GET_INFLIGHT_FD: u32 = 31;
pub const SET_INFLIGHT_FD: u32 = 32;
pub const RESET_DEVICE: u32 = 34;
pub const ADD_MEM_REG: u32 = 37;
pub const REM_MEM_REG: u32 = 38;
pub const SET_STATUS: u32 = 39;
pub const GET_STATUS: u32 = 40;

/// One message to be sent.
pub struct Sent {
    pub request: u32,
    pub flags: u32,
    pub payload: Vec<u8>,
    pub fds: Vec<OwnedFd>,
}

impl Sent {
    pub fn new(request: u32, payload: impl AsRef<[u8]>) -> Sent {
        Sent { request, flags: 1, payload: payload.as_ref().to_vec(), fds: Vec::new() }
    }

    pub fn number(request: u32, value: u64) -> Sent {
        Sent::new(request, value.to_ne_bytes())
    }

    pub fn state(request: u32, index: u32, num: u32) -> Sent {
        Sent::new(request, [index.to_ne_bytes(), num.to_ne_bytes()].concat())
    }

    pub fn numbers(request: u32, values: &[u64]) -> Sent {
        Sent::new(request, values.iter().flat_map(|value| value.to_ne_bytes()).collect::<Vec<_>>())
    }

    /// Descriptors, available and used ring at these user addresses.
    pub fn addrs(index: u32, desc: u64, avail: u64, used: u64) -> Sent {
        Sent::numbers(SET_VRING_ADDR, &[index.into(), desc, used, avail, 0])
    }

    pub fn region(request: u32, region: [u64; 4]) -> Sent {
        Sent::numbers(request, &[&[0], &region[..]].concat())
    }

    pub fn table(regions: &[[u64; 4]]) -> Sent {
        Sent::numbers(SET_MEM_TABLE, &[&[regions.len() as u64], regions.concat().as_slice()].concat())
    }

    pub fn with(mut self, fd: OwnedFd) -> Sent {
        self.fds.push(fd);
        self
    }

    pub fn acked(mut self) -> Sent {
        self.flags |= NEED_REPLY;
        self
    }

    pub fn bytes(&self) -> Vec<u8> {
        let head = [self.request, self.flags, self.payload.len() as u32].map(u32::to_ne_bytes);
        [head.concat(), self.payload.clone()].concat()
    }

    /// Hands the message to a session, as the socket would.
    pub fn to(self, session: &mut Session) -> Result<Handled, SessionFault> {
        let size = self.payload.len() as u32;
        let header = Header { request: self.request, flags: self.flags, size };
        let payload = self.payload.as_slice().try_into().unwrap();
        session.handle(&Message { header, payload }, self.fds.into_iter().collect::<Fds>())
    }
}

/// The VMM's end of what it shares.
pub struct Vmm {
    pub file: OwnedFd,
}

impl Vmm {
    pub fn new() -> Vmm {
        Vmm { file: memory(BYTES) }
    }

    pub fn file(&self) -> OwnedFd {
        self.file.try_clone().unwrap()
    }

    pub fn map(&self) -> Sent {
        Sent::table(&[[GUEST, BYTES, USER, 0]]).with(self.file())
    }

    /// What makes a ring of 256 entries ready to be enabled, as QEMU and DPDK order it: the kick comes last.
    pub fn ring(&self, queue: u32) -> Vec<Sent> {
        let at = USER + u64::from(queue) * 0x4000;
        vec![
            Sent::state(SET_VRING_NUM, queue, 256),
            Sent::state(SET_VRING_BASE, queue, 0),
            Sent::addrs(queue, at, at + 0x1000, at + 0x2000),
            Sent::number(SET_VRING_CALL, queue.into()).with(event()),
            Sent::number(SET_VRING_KICK, queue.into()).with(event()),
        ]
    }

    /// A whole handshake for one pair, with these features.
    pub fn handshake(&self, features: u64) -> Vec<Sent> {
        let mut sent = vec![
            Sent::number(SET_PROTOCOL_FEATURES, 1 << 3),
            Sent::new(SET_OWNER, []),
            Sent::number(SET_FEATURES, features),
            self.map(),
        ];
        for queue in 0..2 {
            sent.extend(self.ring(queue));
            sent.push(Sent::state(SET_VRING_ENABLE, queue, 1));
        }
        sent
    }
}

/// Memory of a guest.
pub fn memory(bytes: u64) -> OwnedFd {
    let file = memfd_create("guest", MemfdFlags::CLOEXEC).unwrap();
    ftruncate(&file, bytes).unwrap();
    file
}

pub fn event() -> OwnedFd {
    eventfd(0, EventfdFlags::CLOEXEC).unwrap()
}

/// Sends all, none of which may be refused, and answers the effects that ask for something.
pub fn send_all(session: &mut Session, all: impl IntoIterator<Item = Sent>) -> Vec<Effect> {
    let effects = all.into_iter().map(|sent| sent.to(session).unwrap().effect);
    effects.filter(|effect| *effect != Effect::None).collect()
}
