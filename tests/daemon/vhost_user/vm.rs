//! A VM: memory in a file, rings in it, a driver for them, and the front-end that hands them to the switch.

use super::front_end::{
    FrontEnd, GET_FEATURES, GET_VRING_BASE, Message, SET_FEATURES, SET_MEM_TABLE, SET_OWNER,
    SET_PROTOCOL_FEATURES, SET_VRING_ADDR, SET_VRING_BASE, SET_VRING_CALL, SET_VRING_ENABLE, SET_VRING_KICK,
    SET_VRING_NUM,
};
use crate::world::{DEADLINE, eventually};
use hyper_switch_pvnet::header::VNET_HDR_BYTES;
use hyper_switch_pvnet::mem::GuestMemory;
use hyper_switch_pvnet::ring::driver::{DriverFeatures, DriverQueue, IndirectTables};
use hyper_switch_pvnet::ring::{QueueAddrs, RingFormat};
use hyper_switch_pvnet::vhost_user::event::EventFd;
use hyper_switch_pvnet::vhost_user::features::{Features, ProtocolFeatures};
use hyper_switch_pvnet::vhost_user::memory::MemoryTable;
use hyper_switch_pvnet::vhost_user::message::MemoryRegion;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Entries of each ring.
pub const RING: u16 = 64;
/// Where the guest sees its memory, where the VMM does, and how much it is: rings, then buffers.
pub const GUEST: u64 = 0x4000_0000;
pub const USER: u64 = 0x7f12_3456_0000;
pub const BYTES: u64 = 0x100_0000;
/// Bytes from one ring to the next, of which the second half is for indirect tables.
pub const RING_BYTES: u64 = 0x2000;
const BUFFERS: u64 = 0x10_0000;
/// Bytes from one buffer to the next. Those for reception have but a quarter of it.
const BUFFER_BYTES: u64 = 8192;
const RX_BUFFER_BYTES: u32 = 2048;

/// Numbers of frames that were used for talking: not those that tests use by themselves.
static TALKED: AtomicU64 = AtomicU64::new(TALK);
const TALK: u64 = 1 << 32;

/// What a VM's driver takes of what it is offered.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub format: RingFormat,
    pub event_idx: bool,
    pub indirect: bool,
    pub mergeable: bool,
    pub pairs: u16,
}

impl Shape {
    pub const SPLIT: Shape =
        Shape { format: RingFormat::Split, event_idx: true, indirect: true, mergeable: true, pairs: 1 };

    pub fn features(self) -> u64 {
        let all = Features::VERSION_1.0 | Features::PROTOCOL_FEATURES.0;
        let chosen = [
            (self.format == RingFormat::Packed, Features::RING_PACKED),
            (self.event_idx, Features::RING_EVENT_IDX),
            (self.indirect, Features::RING_INDIRECT_DESC),
            (self.mergeable, Features::MRG_RXBUF),
            (self.pairs > 1, Features::MQ),
        ];
        chosen.into_iter().filter(|(taken, _)| *taken).fold(all, |all, (_, feature)| all | feature.0)
    }
}

/// One ring, seen by the VM.
pub struct Ring {
    pub queue: DriverQueue<u16>,
    pub kick: OwnedFd,
    pub call: OwnedFd,
    /// Its number.
    index: u32,
    /// Buffers that hold nothing.
    free: Vec<u16>,
}

impl Ring {
    fn new(index: u32, shape: Shape, memory: &Arc<GuestMemory>) -> Ring {
        let tables = IndirectTables { addr: GUEST + ring_at(index) + RING_BYTES / 2, entries: 4 };
        let features =
            DriverFeatures { event_idx: shape.event_idx, indirect: shape.indirect.then_some(tables) };
        let addrs = QueueAddrs::contiguous(GUEST + ring_at(index), RING);
        let queue = DriverQueue::with_format(shape.format, memory, RING, addrs, features).unwrap();
        // Chains have two buffers, and each has a descriptor where there are no tables.
        Ring { queue, kick: event(), call: event(), index, free: (0..RING / 2).collect() }
    }

    fn buffer(&self, token: u16) -> u64 {
        BUFFERS + (u64::from(self.index) * u64::from(RING) + u64::from(token)) * BUFFER_BYTES
    }

    /// A buffer holds nothing any more.
    pub fn give(&mut self, token: u16) {
        self.free.push(token);
    }

    fn kick(&self) {
        rustix::io::write(&self.kick, &1_u64.to_ne_bytes()).unwrap();
    }

    fn publish(&mut self) {
        if self.queue.publish() {
            self.kick();
        }
    }
}

/// Where a ring begins in the VM's memory.
pub fn ring_at(index: u32) -> u64 {
    u64::from(index) * RING_BYTES
}

pub fn event() -> OwnedFd {
    eventfd(0, EventfdFlags::CLOEXEC).unwrap()
}

/// Memory in a file, of so many bytes.
pub fn memory(bytes: u64) -> OwnedFd {
    let file = memfd_create("guest", MemfdFlags::CLOEXEC).unwrap();
    ftruncate(&file, bytes).unwrap();
    file
}

/// A VM. What it has in its memory outlives its connections.
pub struct Vm {
    pub n: u8,
    pub shape: Shape,
    pub file: OwnedFd,
    /// By their numbers: of each pair the one that it receives from, then the one that it transmits into.
    pub rings: Vec<Ring>,
    /// Where the rings begin at the next connection.
    bases: Vec<Option<u32>>,
}

impl Vm {
    /// The VM with address number `n`, not connected to anything.
    pub fn new(n: u8, shape: Shape) -> Vm {
        let file = memory(BYTES);
        let region = MemoryRegion { guest_addr: GUEST, bytes: BYTES, user_addr: USER, mmap_offset: 0 };
        let table = MemoryTable::empty(Arc::new(EventFd::new().unwrap())).with(region, &file).unwrap();
        let queues = 2 * u32::from(shape.pairs);
        let rings: Vec<_> = (0..queues).map(|index| Ring::new(index, shape, &table.memory())).collect();
        let bases = vec![None; rings.len()];
        let mut vm = Vm { n, shape, file, rings, bases };
        (0..shape.pairs).for_each(|pair| vm.offer_buffers(pair));
        vm
    }

    /// The VM, connected to a port, all its pairs enabled and running.
    pub fn start(n: u8, shape: Shape, socket: &Path) -> (Vm, FrontEnd) {
        let mut vm = Vm::new(n, shape);
        let front_end = FrontEnd::connect(socket);
        vm.attach(&front_end);
        (vm, front_end)
    }

    /// The handshake. The rings go on from where they stood.
    pub fn attach(&mut self, front_end: &FrontEnd) {
        // Answered when the port has done with whoever was there before.
        let offered = front_end.ask_number(GET_FEATURES);
        assert_eq!(self.shape.features() & !offered, 0, "all is offered");
        for message in self.handshake() {
            // Only a front-end that has said so may want acknowledgements.
            if message.request == SET_PROTOCOL_FEATURES {
                front_end.tell(&message);
            } else {
                front_end.order(message);
            }
        }
    }

    /// All messages that it takes.
    pub fn handshake(&self) -> Vec<Message> {
        let protocol = ProtocolFeatures::ALL.0;
        let mut messages = vec![
            Message::numbers(SET_PROTOCOL_FEATURES, &[protocol]),
            Message::new(SET_OWNER, Vec::new()),
            Message::numbers(SET_FEATURES, &[self.shape.features()]),
            self.table(),
        ];
        messages.extend((0..self.rings.len() as u32).flat_map(|index| self.ring_messages(index)));
        messages
    }

    /// Its memory as one region.
    pub fn table(&self) -> Message {
        Message::numbers(SET_MEM_TABLE, &[1, GUEST, BYTES, USER, 0]).with(&self.file)
    }

    /// What has a ring run.
    pub fn ring_messages(&self, index: u32) -> Vec<Message> {
        let ring = &self.rings[index as usize];
        let base = self.bases[index as usize].unwrap_or_else(|| self.used(index));
        vec![
            Message::state(SET_VRING_NUM, index, RING.into()),
            Message::state(SET_VRING_BASE, index, base),
            addr_message(index, USER + ring_at(index), RING),
            Message::numbers(SET_VRING_CALL, &[index.into()]).with(&ring.call),
            Message::numbers(SET_VRING_KICK, &[index.into()]).with(&ring.kick),
            Message::state(SET_VRING_ENABLE, index, 1),
        ]
    }

    /// Where a split ring goes on whose switch is gone: at its used index. A packed ring begins.
    fn used(&self, index: u32) -> u32 {
        match self.shape.format {
            RingFormat::Split => {
                let at = QueueAddrs::contiguous(ring_at(index), RING).used + 2;
                u16::from_le_bytes(self.read(at)).into()
            }
            RingFormat::Packed => 0x8000_8000,
        }
    }

    /// Stops all rings and keeps where they stand.
    pub fn stop(&mut self, front_end: &FrontEnd) {
        for (index, base) in (0_u32..).zip(&mut self.bases) {
            let (state, _) = front_end.ask(&Message::state(GET_VRING_BASE, index, 0));
            assert_eq!(state[..4], index.to_ne_bytes());
            *base = Some(u32::from_ne_bytes(state[4..].try_into().unwrap()));
        }
    }

    pub fn read<const N: usize>(&self, at: u64) -> [u8; N] {
        let mut bytes = [0; N];
        assert_eq!(rustix::io::pread(&self.file, &mut bytes, at).unwrap(), N);
        bytes
    }

    pub fn write(&self, at: u64, bytes: &[u8]) {
        assert_eq!(rustix::io::pwrite(&self.file, bytes, at).unwrap(), bytes.len());
    }

    /// Has all buffers of a pair's receiving ring wait for frames.
    pub fn offer_buffers(&mut self, pair: u16) {
        let ring = &mut self.rings[2 * usize::from(pair)];
        while let Some(token) = ring.free.pop() {
            let addr = GUEST + ring.buffer(token);
            if ring.queue.add(&[], &[(addr, RX_BUFFER_BYTES)], token).is_err() {
                panic!("a descriptor for each buffer");
            }
        }
        ring.publish();
    }

    /// Takes back what the switch has sent on of a pair's.
    pub fn reap(&mut self, pair: u16) {
        let ring = &mut self.rings[2 * usize::from(pair) + 1];
        while let Some(used) = ring.queue.pop_used().expect("chains come back once") {
            ring.give(used.token);
        }
    }

    /// Transmits a frame by a pair, once there is a buffer for it.
    pub fn send(&mut self, pair: u16, frame: &[u8]) {
        let at = 2 * usize::from(pair) + 1;
        let token = eventually(&format!("VM {} has a buffer to send", self.n), || {
            self.reap(pair);
            self.rings[at].free.pop()
        });
        let offset = self.rings[at].buffer(token);
        self.write(offset, &[&[0; VNET_HDR_BYTES], frame].concat());
        let header = VNET_HDR_BYTES as u32;
        let chain = [(GUEST + offset, header), (GUEST + offset + u64::from(header), frame.len() as u32)];
        let ring = &mut self.rings[at];
        ring.queue.add(&chain, &[], token).unwrap_or_else(|_| panic!("two descriptors for each buffer"));
        ring.publish();
    }

    /// Frames that have come by a pair, whose buffers wait again for others.
    pub fn receive(&mut self, pair: u16) -> Vec<Vec<u8>> {
        let at = 2 * usize::from(pair);
        let mut frames = Vec::new();
        let mut buffers = 0;
        while let Some(used) = self.rings[at].queue.pop_used().expect("buffers come back once") {
            let offset = self.rings[at].buffer(used.token);
            let mut bytes = vec![0; used.bytes as usize];
            rustix::io::pread(&self.file, &mut bytes, offset).unwrap();
            if buffers == 0 {
                buffers = u16::from_le_bytes([bytes[10], bytes[11]]);
                assert!(buffers == 1 || buffers > 1 && self.shape.mergeable, "{buffers} buffers");
                frames.push(bytes[VNET_HDR_BYTES..].to_vec());
            } else {
                frames.last_mut().unwrap().extend(bytes);
            }
            buffers -= 1;
            self.rings[at].give(used.token);
        }
        assert_eq!(buffers, 0, "a frame's buffers are published together");
        self.offer_buffers(pair);
        frames
    }

    /// Waits, asleep until interrupted, for so many frames that `wanted` wants.
    pub fn await_frames(&mut self, count: usize, wanted: impl Fn(&[u8]) -> bool) -> Vec<Vec<u8>> {
        let mut frames = Vec::new();
        loop {
            for pair in 0..self.shape.pairs {
                frames.extend(self.receive(pair).into_iter().filter(|frame| wanted(frame)));
            }
            if frames.len() >= count {
                return frames;
            }
            self.sleep(&format!("{} of {count} frames came", frames.len()));
        }
    }

    /// Sleeps until an interrupt of a receiving ring.
    pub fn sleep(&mut self, so_far: &str) {
        let (mut come, mut calls) = (false, Vec::new());
        for ring in self.rings.iter_mut().step_by(2) {
            come |= ring.queue.enable_interrupts();
            calls.push(PollFd::new(&ring.call, PollFlags::IN));
        }
        if come {
            return;
        }
        let deadline = Timespec::try_from(DEADLINE).unwrap();
        let ready = poll(&mut calls, Some(&deadline)).unwrap();
        assert!(ready > 0, "VM {}: no interrupt within {DEADLINE:?}; {so_far}", self.n);
        for call in calls.iter().filter(|call| !call.revents().is_empty()) {
            rustix::io::read(call, &mut [0; 8]).unwrap();
        }
    }

    /// Frame number `number` to VM `to`, of `bytes` in all.
    pub fn frame(&self, to: u8, number: u64, bytes: usize) -> Vec<u8> {
        let mut frame = [mac(to), mac(self.n)].concat();
        frame.extend([0x88, 0xb5]);
        frame.extend(number.to_be_bytes());
        frame.extend((frame.len()..bytes).map(|at| (at as u64 ^ number) as u8));
        frame
    }

    /// Sends until the first frame arrives: the control plane hears of a port a moment after its VMM does.
    pub fn find(&mut self, other: &mut Vm) {
        let (from, to) = (self.n, other.n);
        eventually(&format!("VM {from} finds VM {to}"), || {
            let number = TALKED.fetch_add(1, Ordering::Relaxed);
            self.send(0, &self.frame(to, number, 60));
            let mut came = (0..other.shape.pairs).flat_map(|pair| other.receive(pair)).collect::<Vec<_>>();
            came.retain(|frame| number_of(frame, from, to).is_some_and(|number| number >= TALK));
            came.pop()
        });
    }

    /// Sends so many numbered frames to another VM, which has to receive them all, once and unchanged.
    pub fn talk_to(&mut self, other: &mut Vm, count: u64) {
        let (from, to) = (self.n, other.n);
        // Of each round others than of those before, some of which may still be under way.
        let begin = TALKED.fetch_add(count, Ordering::Relaxed);
        for first in (begin..begin + count).step_by(16) {
            let numbers = first..(begin + count).min(first + 16);
            for number in numbers.clone() {
                let bytes = if number % 5 == 4 && other.shape.mergeable {
                    5_000
                } else {
                    60 + number as usize % 1000
                };
                self.send((number % u64::from(self.shape.pairs)) as u16, &self.frame(to, number, bytes));
            }
            let wanted = |frame: &[u8]| number_of(frame, from, to).is_some_and(|n| numbers.contains(&n));
            let mut came = other.await_frames(numbers.clone().count(), wanted);
            came.sort_by_key(|frame| number_of(frame, from, to));
            let came_numbers: Vec<_> = came.iter().filter_map(|frame| number_of(frame, from, to)).collect();
            assert!(came_numbers.iter().copied().eq(numbers), "{came_numbers:?}");
            for (frame, number) in came.iter().zip(came_numbers) {
                assert_eq!(*frame, self.frame(to, number, frame.len()), "frame {number}");
            }
        }
    }
}

/// The number of a frame that VM `from` sent to VM `to`; none of others.
pub fn number_of(frame: &[u8], from: u8, to: u8) -> Option<u64> {
    let head = [&mac(to)[..], &mac(from), &[0x88, 0xb5]].concat();
    let number = frame.strip_prefix(&head[..])?.first_chunk()?;
    Some(u64::from_be_bytes(*number))
}

fn mac(n: u8) -> [u8; 6] {
    [2, 0, 0, 0, 0, n]
}

/// Where a ring of `size` is.
pub fn addr_message(index: u32, at: u64, size: u16) -> Message {
    let QueueAddrs { desc, avail, used } = QueueAddrs::contiguous(at, size);
    Message::numbers(SET_VRING_ADDR, &[index.into(), desc, used, avail, 0])
}
