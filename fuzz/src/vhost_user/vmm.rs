//! The VMM's end: its socket, the files of its guest's memory, and the messages that it sends.

use super::super::input::Input;
use hyper_switch_pvnet::vhost_user::features::{Features, ProtocolFeatures};
use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::net::{RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, recv, sendmsg};
use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};

/// Where the guest sees its memory, and where the VMM does.
const GUEST: u64 = 0x4000_0000;
const USER: u64 = 0x7f12_3456_0000;
const PAGE: u64 = 4096;
/// The most files that it keeps.
const FILES: usize = 8;

const SET_FEATURES: u32 = 2;
const SET_MEM_TABLE: u32 = 5;
const SET_VRING_NUM: u32 = 8;
const SET_VRING_ADDR: u32 = 9;
const SET_VRING_BASE: u32 = 10;
const GET_VRING_BASE: u32 = 11;
const SET_VRING_KICK: u32 = 12;
const SET_VRING_CALL: u32 = 13;
const SET_VRING_ERR: u32 = 14;
const SET_PROTOCOL_FEATURES: u32 = 16;
const SET_VRING_ENABLE: u32 = 18;
const GET_INFLIGHT_FD: u32 = 31;
const SET_INFLIGHT_FD: u32 = 32;
const ADD_MEM_REG: u32 = 37;
const REM_MEM_REG: u32 = 38;
/// In a header's flags, version 1; that an acknowledgement is wanted.
const VERSION: u32 = 1;
const NEED_REPLY: u32 = 1 << 3;
/// Beside a ring's number, that no file descriptor comes.
const NO_FD: u64 = 1 << 8;

/// A VMM.
pub struct Vmm {
    socket: OwnedFd,
    /// Of its guest's memory, the last ones.
    files: Vec<OwnedFd>,
    /// In the flags of each of its messages.
    flags: u32,
    /// Bytes of answers that it read.
    pub read: usize,
}

impl Vmm {
    pub fn new(socket: OwnedFd) -> Vmm {
        Vmm { socket, files: Vec::new(), flags: VERSION, read: 0 }
    }

    /// Says one thing, or a few that belong together.
    pub fn speak(&mut self, input: &mut Input<'_>, inflight: Option<&OwnedFd>) {
        match input.u8() % 12 {
            // Any bytes.
            0 => {
                let fds = self.any_fds(input);
                let bytes = input.u8().max(1);
                let bytes = input.run(bytes.into());
                self.send_bytes(if bytes.is_empty() { &[0] } else { bytes }, &fds);
            }
            // A message of any content.
            1 => {
                let fds = self.any_fds(input);
                let [request, flags, bytes] = input.array();
                let payload = input.run(bytes.into());
                let head = [request.into(), u32::from(flags) ^ self.flags, payload.len() as u32];
                self.send_bytes(&[&head.map(u32::to_ne_bytes).concat(), payload].concat(), &fds);
            }
            2 => self.flags ^= NEED_REPLY,
            // Features: mostly some that go together.
            3 => {
                let bits = input.u8();
                const EACH: [Features; 8] = [
                    Features::RING_PACKED,
                    Features::RING_EVENT_IDX,
                    Features::RING_INDIRECT_DESC,
                    Features::MRG_RXBUF,
                    Features(Features::GUEST_CSUM.0 | Features::GUEST_TSO4.0 | Features::GUEST_TSO6.0),
                    Features(Features::CSUM.0 | Features::HOST_TSO4.0),
                    Features::VERSION_1,
                    Features::PROTOCOL_FEATURES,
                ];
                let usual = Features::VERSION_1.0 | Features::PROTOCOL_FEATURES.0;
                let chosen = EACH.iter().enumerate().filter(|(at, _)| bits >> at & 1 != 0);
                self.send_numbers(SET_FEATURES, &[chosen.fold(usual, |set, (_, each)| set ^ each.0)]);
            }
            4 => {
                let without = u64::from(input.u16()) << 3;
                self.send_numbers(SET_PROTOCOL_FEATURES, &[ProtocolFeatures::ALL.0 & !without]);
            }
            // Memory.
            5 => {
                let regions: Vec<_> = (0..input.u8() % 4).map(|_| self.region(input)).collect();
                let (regions, files): (Vec<_>, Vec<_>) = regions.into_iter().unzip();
                self.send(SET_MEM_TABLE, &[&[regions.len() as u64], &regions.concat()[..]].concat(), &files);
            }
            6 => {
                let (region, file) = self.region(input);
                self.send(ADD_MEM_REG, &[&[0], &region[..]].concat(), &[file]);
            }
            7 => {
                let (region, _) = self.region(input);
                self.send_numbers(REM_MEM_REG, &[&[0], &region[..]].concat());
            }
            // Something about a ring.
            8 => {
                let [queue, what] = input.array();
                let queue = u64::from(queue % 20);
                match what % 8 {
                    0 => self.send_state(SET_VRING_NUM, queue, size(input)),
                    1 => self.send_addrs(queue, input.array()),
                    2 => self.send_state(SET_VRING_BASE, queue, u32::from_le_bytes(input.array())),
                    3 => self.send_event(SET_VRING_KICK, queue, input),
                    4 => self.send_event(SET_VRING_CALL, queue, input),
                    5 => self.send_event(SET_VRING_ERR, queue, input),
                    6 => self.send_state(SET_VRING_ENABLE, queue, u32::from(input.u8() % 3)),
                    _ => self.send_state(GET_VRING_BASE, queue, 0),
                }
            }
            // All that a pair of rings takes.
            9 => {
                let pair = u64::from(input.u8() % 8);
                let size = size(input);
                for (queue, place) in [(2 * pair, 0), (2 * pair + 1, 4)] {
                    self.send_state(SET_VRING_NUM, queue, size);
                    let first = place + 8 * (pair as u8);
                    self.send_addrs(queue, [first, 0, first + 1, 0, first + 2, 0]);
                    self.send(SET_VRING_CALL, &[queue], &[event()]);
                    self.send(SET_VRING_KICK, &[queue], &[event()]);
                    self.send_state(SET_VRING_ENABLE, queue, 1);
                }
            }
            // What is in flight: a region asked for, written or given back.
            10 => {
                let [queues, what] = input.array();
                let (queues, size) = (u64::from(queues % 20), size(input));
                let shape = queues | u64::from(size & 0xffff) << 16;
                if what & 1 == 0 {
                    return self.send_numbers(GET_INFLIGHT_FD, &[0, 0, shape]);
                }
                let Some(file) = inflight else { return };
                let bytes = input.u8();
                // A file that was sealed or truncated is written as far as it goes.
                let _ = rustix::io::pwrite(file, input.run(bytes.into()), u64::from(input.u8()) * 2);
                let bytes = rustix::fs::fstat(file).map_or(0, |stat| stat.st_size as u64);
                self.send(SET_INFLIGHT_FD, &[bytes, 0, shape], &[file.try_clone().unwrap()]);
            }
            // A file that is shared already becomes shorter or longer.
            _ => {
                let [which, pages] = input.array();
                if let Some(file) = self.files.get(usize::from(which) % FILES) {
                    ftruncate(file, u64::from(pages) * PAGE).unwrap();
                }
            }
        }
    }

    /// Reads all answers.
    pub fn listen(&mut self) {
        let mut bytes = [0; 512];
        while let Ok((read @ 1.., _)) = recv(&self.socket, &mut bytes, RecvFlags::DONTWAIT) {
            self.read += read;
        }
    }

    /// A region, usually of a file that is long enough.
    fn region(&mut self, input: &mut Input<'_>) -> ([u64; 4], OwnedFd) {
        let [guest, user, pages, offset, file] = input.array();
        let bytes = u64::from(pages) * PAGE / 2;
        let offset = u64::from(offset % 16) * PAGE / 4;
        let file = match self.files.get(usize::from(file) % (FILES + 8)) {
            Some(file) => file.try_clone().unwrap(),
            None => self.file(offset + bytes),
        };
        ([GUEST + u64::from(guest) * PAGE, bytes, USER + u64::from(user) * PAGE, offset], file)
    }

    /// A new file, which is kept beside the last ones.
    fn file(&mut self, bytes: u64) -> OwnedFd {
        let file = memfd_create("guest", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&file, bytes).unwrap();
        if self.files.len() == FILES {
            self.files.remove(0);
        }
        self.files.push(file.try_clone().unwrap());
        file
    }

    /// File descriptors that may be what they should be.
    fn any_fds(&mut self, input: &mut Input<'_>) -> Vec<OwnedFd> {
        let kinds = input.u8();
        let count = [0_u32, 0, 1, 1, 2, 3, 8, 9][usize::from(kinds & 7)];
        let fd = |at| if kinds >> (3 + at % 5) & 1 == 0 { event() } else { self.file(8 * PAGE) };
        (0..count).map(fd).collect()
    }

    fn send_state(&self, request: u32, index: u64, num: u32) {
        self.send_numbers(request, &[index | u64::from(num) << 32]);
    }

    /// Where a ring lies: descriptors, available and used ring, each a page and 16 bytes within it.
    fn send_addrs(&self, queue: u64, places: [u8; 6]) {
        let (places, _) = places.as_chunks::<2>();
        let [desc, avail, used] = [places[0], places[1], places[2]]
            .map(|[page, within]| USER + u64::from(page) * PAGE + u64::from(within) * 16);
        self.send_numbers(SET_VRING_ADDR, &[queue, desc, used, avail, 0]);
    }

    fn send_event(&self, request: u32, queue: u64, input: &mut Input<'_>) {
        if input.u8() & 1 == 0 {
            self.send(request, &[queue], &[event()]);
        } else {
            self.send_numbers(request, &[queue | NO_FD]);
        }
    }

    fn send_numbers(&self, request: u32, numbers: &[u64]) {
        self.send(request, numbers, &[]);
    }

    fn send(&self, request: u32, numbers: &[u64], fds: &[OwnedFd]) {
        let head = [request, self.flags, 8 * numbers.len() as u32].map(u32::to_ne_bytes).concat();
        let payload = numbers.iter().flat_map(|number| number.to_ne_bytes());
        self.send_bytes(&head.into_iter().chain(payload).collect::<Vec<_>>(), fds);
    }

    fn send_bytes(&self, bytes: &[u8], fds: &[OwnedFd]) {
        let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(16))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() {
            assert!(control.push(SendAncillaryMessage::ScmRights(&fds)));
        }
        // The switch may have hung up.
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        let _ = sendmsg(&self.socket, &[IoSlice::new(bytes)], &mut control, flags);
    }
}

/// A ring's size, usually one that it can have.
fn size(input: &mut Input<'_>) -> u32 {
    let [kind, number] = input.array();
    if kind & 0x80 == 0 { 1 << (kind % 17) } else { u32::from(number) }
}

fn event() -> OwnedFd {
    eventfd(0, EventfdFlags::CLOEXEC).unwrap()
}
