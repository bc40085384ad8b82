//! A vhost-user NIC without a VM: memory, a ring each way, and a driver that is us.

use crate::front_end::FrontEnd;
use hyper_switch_pvnet::header::VNET_HDR_BYTES;
use hyper_switch_pvnet::mem::{GuestMemory, Segment};
use hyper_switch_pvnet::ring::driver::{DriverFeatures, DriverQueue};
use hyper_switch_pvnet::ring::{QueueAddrs, QueueLayout};
use hyper_switch_pvnet::vhost_user::event::EventFd;
use hyper_switch_pvnet::vhost_user::features::Features;
use hyper_switch_pvnet::vhost_user::memory::MemoryTable;
use hyper_switch_pvnet::vhost_user::message::MemoryRegion;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

const SLOTS: u16 = 256;
/// Bytes of a slot's buffer: the longest frame and what stands before it, in an odd number of cache lines.
const BUFFER_BYTES: u32 = 2048 + 64;

/// Of the frames: receiver, sender, an EtherType for experiments (IEEE 802), the frame's number.
const TYPE_AT: usize = VNET_HDR_BYTES + 12;
const NUMBER_AT: usize = TYPE_AT + 2;
const HEAD_BYTES: usize = NUMBER_AT + 8;
const EXPERIMENTAL: [u8; 2] = [0x88, 0xb5];

/// An Ethernet address.
pub type Mac = [u8; 6];

/// A NIC. Dropped, it is gone for the switch.
pub struct Nic {
    _front_end: FrontEnd,
    memory: Arc<GuestMemory>,
    mac: Mac,
    tx: Side,
    rx: Side,
    /// Transmit slots without a frame.
    free: Vec<u16>,
    /// Receive slots whose frames were taken, not yet posted again.
    taken: Vec<u16>,
}

struct Side {
    queue: DriverQueue<u16>,
    kick: EventFd,
    call: EventFd,
}

impl Side {
    fn publish(&mut self) {
        if self.queue.publish() {
            self.kick.signal();
        }
    }
}

impl Nic {
    /// The NIC with this address, at the switch that is behind `socket`.
    pub fn new(socket: UnixStream, mac: Mac) -> Nic {
        let ring_bytes = QueueLayout::bytes(SLOTS).next_multiple_of(4096);
        let slots_bytes = u64::from(SLOTS) * u64::from(BUFFER_BYTES);
        let bytes = 2 * (ring_bytes + slots_bytes).next_multiple_of(4096);
        let file = memfd_create("nic", MemfdFlags::CLOEXEC).expect("memory in a file");
        ftruncate(&file, bytes).expect("memory in a file");
        let region = MemoryRegion { guest_addr: 0, bytes, user_addr: 0, mmap_offset: 0 };
        let ours = file.try_clone().expect("a file descriptor");
        let table = MemoryTable::empty(Arc::new(event())).replaced([(region, ours)]);
        let memory = table.expect("the memory is mapped").memory();

        let mut front_end = FrontEnd::new(socket);
        front_end.agree(Features(
            Features::VERSION_1.0
                | Features::RING_EVENT_IDX.0
                | Features::MRG_RXBUF.0
                | Features::PROTOCOL_FEATURES.0,
        ));
        front_end.share(file.as_fd(), bytes);
        let features = DriverFeatures { event_idx: true, indirect: None };
        let sides = [ring_bytes, 0].map(|at| {
            let addrs = QueueAddrs::contiguous(at, SLOTS);
            let queue = DriverQueue::new(&memory, SLOTS, addrs, features).expect("the ring is in memory");
            (addrs, Side { queue, kick: event(), call: event() })
        });
        let [(rx_addrs, rx), (tx_addrs, mut tx)] = sides;
        tx.queue.disable_interrupts();
        for (ring, addrs, side) in [(0, rx_addrs, &rx), (1, tx_addrs, &tx)] {
            front_end.start(ring, SLOTS, addrs, &side.kick, &side.call);
        }
        // No more frames at a time than the other NIC has buffers posted at all times: no switch need drop any.
        let (free, taken) = ((0..SLOTS / 2).collect(), (0..SLOTS).collect());
        let mut nic = Nic { _front_end: front_end, memory, mac, tx, rx, free, taken };
        nic.post();
        nic
    }

    /// The buffer of a slot: those of transmission first, behind the rings.
    fn buffer(&self, slot: u16, receives: bool) -> (u64, u32) {
        let rings = 2 * QueueLayout::bytes(SLOTS).next_multiple_of(4096);
        let index = u64::from(slot) + if receives { u64::from(SLOTS) } else { 0 };
        (rings + index * u64::from(BUFFER_BYTES), BUFFER_BYTES)
    }

    fn memory(&self, (addr, bytes): (u64, u32)) -> Segment {
        self.memory.translate_whole(addr, bytes).expect("buffers are in memory")
    }

    /// Sends a frame of so many bytes with this number, and answers when it was shown to the switch; none if the switch
    /// has all buffers.
    pub fn send(&mut self, to: Mac, number: u64, frame_bytes: usize) -> Option<Instant> {
        while let Some(used) = self.tx.queue.pop_used().expect("the switch does not lie") {
            self.free.push(used.token);
        }
        let slot = self.free.pop()?;
        let mut frame = vec![0; VNET_HDR_BYTES];
        for part in [&to[..], &self.mac, &EXPERIMENTAL, &number.to_ne_bytes()] {
            frame.extend_from_slice(part);
        }
        frame.resize(VNET_HDR_BYTES + frame_bytes, number as u8);
        let (addr, _) = self.buffer(slot, false);
        let bytes = frame.len() as u32;
        // SAFETY: the memory is mapped for as long as `self.memory` lives, and nobody else has the slot's buffer.
        unsafe { self.memory((addr, bytes)).write(&frame) };
        self.tx.queue.add(&[(addr, bytes)], &[], slot).expect("a slot is a descriptor");
        let shown = Instant::now();
        self.tx.publish();
        Some(shown)
    }

    /// Takes a frame that has come: its number. Its bytes must be those of a frame of this size for us.
    pub fn receive(&mut self, frame_bytes: usize) -> Option<u64> {
        let used = self.rx.queue.pop_used().expect("the switch does not lie")?;
        let mut frame = vec![0; used.bytes as usize];
        let (addr, _) = self.buffer(used.token, true);
        // SAFETY: as in `send`; the switch has given the buffer back.
        unsafe { self.memory((addr, used.bytes)).read(&mut frame) };
        assert_eq!(frame.len(), VNET_HDR_BYTES + frame_bytes, "a frame's length");
        assert_eq!(frame[VNET_HDR_BYTES..][..6], self.mac, "a frame for somebody else");
        assert_eq!(frame[TYPE_AT..NUMBER_AT], EXPERIMENTAL, "a frame of somebody else's");
        let number = u64::from_ne_bytes(frame[NUMBER_AT..HEAD_BYTES].try_into().expect("8 bytes"));
        assert!(frame[HEAD_BYTES..].iter().all(|byte| *byte == number as u8), "a frame's content");
        self.taken.push(used.token);
        // As Linux's driver does, buffers are posted many at a time.
        if self.taken.len() >= usize::from(SLOTS / 2) {
            self.post();
        }
        Some(number)
    }

    fn post(&mut self) {
        for slot in std::mem::take(&mut self.taken) {
            let buffer = self.buffer(slot, true);
            self.rx.queue.add(&[], &[buffer], slot).expect("a slot is a descriptor");
        }
        self.rx.publish();
    }

    /// From now on looks at the ring, without interrupts.
    pub fn poll(&mut self) {
        self.rx.queue.disable_interrupts();
    }

    /// Sleeps until a frame is there, at most so long.
    pub fn sleep(&mut self, at_most: Duration) {
        if !self.rx.queue.enable_interrupts() {
            let at_most = Timespec::try_from(at_most).expect("a short time");
            let mut interrupt = [PollFd::new(&self.rx.call, PollFlags::IN)];
            poll(&mut interrupt, Some(&at_most)).expect("an eventfd can be waited for");
            self.rx.call.drain();
        }
        self.rx.queue.disable_interrupts();
    }
}

fn event() -> EventFd {
    EventFd::new().expect("an eventfd")
}
