//! The VM's network interface: a paravirtual driver over two rings, and a smoltcp [`Device`] above it.
//!
//! Frames are built and read in place. Behind every descriptor lies one buffer: `virtio_net_hdr` first, then
//! the frame. smoltcp writes a frame straight into its transmit buffer and reads one straight from its
//! receive buffer; only a frame that came in several buffers (`VIRTIO_NET_F_MRG_RXBUF`) is copied together.
//!
//! How large, and why: a receive buffer takes the largest frame, so that a 64 KiB segmentation frame needs no
//! copying together, and there are few of them (64): the ring goes through all its buffers in turn, so
//! each one more is 64 KiB more for the cache to hold. Transmit buffers are many (256) at no such price, since the
//! one that came back last is used first. Buffers start an odd number of cache lines apart: were it a power
//! of two, all headers would fight for the same cache set.

use super::checksum;
use super::doorbell::{Doorbell, Pace};
use crate::header::{F_DATA_VALID, GsoType, Offloads, VNET_HDR_BYTES, VnetHdr};
use crate::mem::{GuestMemory, MemoryFault, Segment};
use crate::ring::device::QueueFeatures;
use crate::ring::driver::{DeviceLied, DriverFeatures, DriverQueue};
use crate::ring::{QueueAddrs, QueueLayout, QueueSizeError, RingFormat};
use crate::{MAX_FRAME_BYTES, MIN_FRAME_BYTES};
use smoltcp::phy::{Checksum, Device, DeviceCapabilities, Medium, PacketMeta, RxToken, TxToken};
use smoltcp::time::Instant;
use std::num::{NonZeroU16, NonZeroUsize};
use std::ops::Range;
use std::sync::Arc;

const CACHE_LINE_BYTES: u32 = 64;
/// The largest frame with its header: no buffer needs to be longer.
const FULL_BUFFER_BYTES: u32 = (VNET_HDR_BYTES + MAX_FRAME_BYTES) as u32;
/// The largest TCP frame that is handed over uncut: an IPv4 packet of 65,535 bytes behind an Ethernet header.
const GSO_FRAME_BYTES: usize = 65_535 + MIN_FRAME_BYTES;

/// What a [`Nic`] negotiates and how much memory it takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NicConfig {
    /// What goes unfinished, in both directions: `CSUM` and, only beside it, `TSO4` change what is sent; any
    /// offload may be accepted.
    pub offloads: Offloads,
    /// How both rings are laid out.
    pub ring: RingFormat,
    /// Notifications by index (`VIRTIO_F_EVENT_IDX`).
    pub event_idx: bool,
    /// The largest IP packet on the wire, in bytes: at least 576, as RFC 791 demands of a host.
    pub mtu_bytes: u16,
    /// Receive buffers; a power of two, unless the ring is packed.
    pub rx_slots: u16,
    /// Bytes of a receive buffer, `virtio_net_hdr` included. All together must take the largest frame; one
    /// alone takes no more than that.
    pub rx_buffer_bytes: u32,
    /// Transmit buffers; likewise.
    pub tx_slots: u16,
    /// How the doorbell of the transmit ring is batched; if not at all, each frame rings.
    pub batching: Option<Pace>,
}

impl Default for NicConfig {
    fn default() -> NicConfig {
        NicConfig {
            offloads: Offloads::CSUM | Offloads::TSO4,
            ring: RingFormat::Split,
            event_idx: true,
            mtu_bytes: 1500,
            rx_slots: 64,
            rx_buffer_bytes: FULL_BUFFER_BYTES,
            tx_slots: 256,
            batching: Some(Pace::default()),
        }
    }
}

/// Why a [`Nic`] cannot be made as configured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NicConfigError {
    /// A ring cannot have that size.
    #[error(transparent)]
    Queue(#[from] QueueSizeError),
    /// Segmentation offload without checksum offload (VIRTIO 1.2, clause 5.1.3.1).
    #[error("TSO4 needs CSUM")]
    TsoWithoutCsum,
    /// An MTU that no IPv4 host may have.
    #[error("an MTU of {0} bytes is less than 576")]
    Mtu(u16),
    /// The receive buffers together do not hold the largest frame with its header, or one does not hold even
    /// the header or would hold more than that frame.
    #[error("{slots} receive buffers of {bytes} bytes do not suit frames of up to {MAX_FRAME_BYTES} bytes")]
    RxBuffers {
        /// Receive buffers.
        slots: u16,
        /// Bytes of each.
        bytes: u32,
    },
}

/// The device did something that no honest device does. The interface is of no more use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NicFault {
    /// A ring is broken.
    #[error(transparent)]
    Ring(#[from] DeviceLied),
    /// A frame's first buffer does not even hold its `virtio_net_hdr`.
    #[error("a received frame of {0} bytes has no header")]
    NoHeader(u32),
    /// `num_buffers` is 0 or more than came with it (clause 5.1.6.4.1).
    #[error("a received frame claims {claimed} buffers, {present} are there")]
    NumBuffers {
        /// What `num_buffers` says.
        claimed: u16,
        /// Buffers that the device gave back.
        present: u16,
    },
    /// A frame in several buffers is longer than any frame.
    #[error("a received frame is longer than {MAX_FRAME_BYTES} bytes")]
    TooLong,
}

/// What went through a [`Nic`] and what did not. Bytes are those of frames, without `virtio_net_hdr`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NicCounters {
    /// Frames handed up to the stack.
    pub rx_frames: u64,
    /// Bytes of those.
    pub rx_bytes: u64,
    /// Of those, frames to be cut, taken whole.
    pub rx_gso_frames: u64,
    /// Of those, frames that came in several buffers and were copied together.
    pub rx_merged_frames: u64,
    /// Dropped: `virtio_net_hdr` is impossible, or asks for an offload that was not negotiated.
    pub rx_bad_header: u64,
    /// Dropped: the TCP or UDP checksum is wrong.
    pub rx_bad_checksum: u64,
    /// Frames handed to the switch.
    pub tx_frames: u64,
    /// Bytes of those.
    pub tx_bytes: u64,
    /// Of those, frames that the switch is to cut.
    pub tx_gso_frames: u64,
    /// Dropped: an answer to a received frame found no transmit buffer free.
    pub tx_no_buffer: u64,
}

/// Where the parts of an interface lie in its memory, as guest addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NicPlaces {
    /// The receive ring.
    pub rx_ring: QueueAddrs,
    /// The transmit ring.
    pub tx_ring: QueueAddrs,
    /// The receive buffers, and how far each begins from the one before.
    pub rx_buffers: (Range<u64>, u64),
    /// The transmit buffers, likewise.
    pub tx_buffers: (Range<u64>, u64),
}

/// How many buffers are where.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NicStanding {
    /// Receive buffers that were offered and not taken back.
    pub rx_out: u16,
    /// Of those, the ones that the switch has given back.
    pub rx_unread: u16,
    /// Transmit buffers that are in the ring, offered or not, and not taken back.
    pub tx_out: u16,
    /// Of those, the ones that the switch has given back.
    pub tx_unread: u16,
}

/// The VM's network interface.
///
/// # Who owns a buffer
/// A buffer belongs to the device from [`DriverQueue::add`] until [`DriverQueue::pop_used`] returns it, and
/// to the interface otherwise; a Rust reference to its bytes exists only while it belongs to the interface:
///
/// - *rx*: all buffers are posted; the one whose frame the stack reads is `held`, and is posted again before
///   the next is taken;
/// - *tx*: all buffers are in `idle`; a token takes one, lets the stack fill it, and posts it.
///
/// A switch that writes to a buffer it gave back breaks this. It is in the same process, so it can be held to it.
pub struct Nic {
    config: NicConfig,
    memory: Arc<GuestMemory>,
    places: NicPlaces,
    rx: Receiver,
    tx: Transmitter,
    fault: Option<NicFault>,
}

impl Nic {
    /// An interface with guest memory of its own, and all receive buffers ready to be
    /// [published](Nic::publish_rx).
    ///
    /// # Errors
    /// A configuration that cannot be had.
    pub fn new(config: NicConfig) -> Result<Nic, NicConfigError> {
        let NicConfig { offloads, ring, event_idx, mtu_bytes, rx_slots, rx_buffer_bytes, tx_slots, batching } =
            config;
        if offloads.contains(Offloads::TSO4) && !offloads.contains(Offloads::CSUM) {
            return Err(NicConfigError::TsoWithoutCsum);
        }
        if mtu_bytes < 576 {
            return Err(NicConfigError::Mtu(mtu_bytes));
        }
        let rx_bytes = u64::from(rx_slots) * u64::from(rx_buffer_bytes);
        let one_buffer = VNET_HDR_BYTES as u32..=FULL_BUFFER_BYTES;
        if rx_bytes < FULL_BUFFER_BYTES.into() || !one_buffer.contains(&rx_buffer_bytes) {
            return Err(NicConfigError::RxBuffers { slots: rx_slots, bytes: rx_buffer_bytes });
        }
        for size in [rx_slots, tx_slots] {
            ring.check_size(size)?;
        }
        let tx_frame_bytes =
            if offloads.contains(Offloads::TSO4) { GSO_FRAME_BYTES } else { frame_bytes(mtu_bytes) };
        let tx_buffer_bytes = (VNET_HDR_BYTES + tx_frame_bytes) as u32;

        let mut end = 0;
        let mut take = |bytes: u64| {
            let start = end;
            end = (start + bytes).next_multiple_of(CACHE_LINE_BYTES.into());
            start
        };
        let rx_ring = QueueAddrs::contiguous(take(QueueLayout::bytes(rx_slots)), rx_slots);
        let tx_ring = QueueAddrs::contiguous(take(QueueLayout::bytes(tx_slots)), tx_slots);
        let rx_buffers = take(Buffers::bytes(rx_slots.into(), rx_buffer_bytes));
        // One transmit buffer is spare: it is never posted, see `TxToken`.
        let tx_count = u32::from(tx_slots) + 1;
        let tx_buffers = take(Buffers::bytes(tx_count, tx_buffer_bytes));
        let memory = Arc::new(GuestMemory::anonymous(end as usize));

        let area = |start: u64, count: u32, bytes: u32| {
            (start..start + Buffers::bytes(count, bytes), Buffers::stride(bytes).into())
        };
        let places = NicPlaces {
            rx_ring,
            tx_ring,
            rx_buffers: area(rx_buffers, rx_slots.into(), rx_buffer_bytes),
            tx_buffers: area(tx_buffers, tx_count, tx_buffer_bytes),
        };
        let features = DriverFeatures { event_idx, indirect: None };
        let mut rx = Receiver {
            queue: DriverQueue::with_format(ring, &memory, rx_slots, rx_ring, features)?,
            buffers: Buffers::new(&memory, rx_buffers, rx_slots.into(), rx_buffer_bytes),
            held: None,
            merged: Vec::with_capacity(MAX_FRAME_BYTES),
            accepted: offloads,
            counters: NicCounters::default(),
        };
        (0..rx_slots).for_each(|index| rx.post(index));
        let tx = Transmitter {
            queue: DriverQueue::with_format(ring, &memory, tx_slots, tx_ring, features)?,
            buffers: Buffers::new(&memory, tx_buffers, tx_count, tx_buffer_bytes),
            idle: (0..tx_slots).rev().collect(),
            spare: tx_slots,
            checksum_offload: offloads.contains(Offloads::CSUM),
            starved: false,
            doorbell: Doorbell::new(batching),
            counters: NicCounters::default(),
        };
        Ok(Nic { config, memory, places, rx, tx, fault: None })
    }

    /// The VM's memory, for the switch to attach to.
    pub fn memory(&self) -> &Arc<GuestMemory> {
        &self.memory
    }

    /// Where its parts lie in [`memory`](Nic::memory).
    pub fn places(&self) -> &NicPlaces {
        &self.places
    }

    /// How many buffers are where.
    pub fn standing(&self) -> NicStanding {
        NicStanding {
            rx_out: self.rx.queue.outstanding(),
            rx_unread: self.rx.queue.unread(),
            tx_out: self.config.tx_slots - self.tx.idle.len() as u16,
            tx_unread: self.tx.queue.unread(),
        }
    }

    /// Where the buffer begins that [`next_frame`](Nic::next_frame) gave the last frame in, if one did.
    pub fn held_buffer(&self) -> Option<u64> {
        self.rx.held.map(|index| self.rx.buffers.addr(index))
    }

    /// Reads the VM's memory, as the VM may at any time.
    ///
    /// # Errors
    /// That is not in its memory.
    pub fn peek(&self, addr: u64, into: &mut [u8]) -> Result<(), MemoryFault> {
        let from = self.memory.translate_whole(addr, into.len() as u32)?;
        // SAFETY: the range was just translated; the copy reads bytes that the device may be writing, as any of ours.
        unsafe { from.read(into) };
        Ok(())
    }

    /// Writes to the VM's memory, wherever that is: what a VM that keeps no rules does.
    ///
    /// # Errors
    /// That is not in its memory.
    pub fn poke(&mut self, addr: u64, from: &[u8]) -> Result<(), MemoryFault> {
        let to = self.memory.translate_whole(addr, from.len() as u32)?;
        // SAFETY: the range was just translated. References to buffers live only as long as `self` is borrowed for
        // them, and the driver trusts nothing that it reads from its rings.
        unsafe { to.write(from) };
        Ok(())
    }

    /// Where the receive ring lies in [`memory`](Nic::memory).
    pub fn rx_layout(&self) -> QueueLayout {
        self.rx.queue.layout()
    }

    /// Where the transmit ring lies in [`memory`](Nic::memory).
    pub fn tx_layout(&self) -> QueueLayout {
        self.tx.queue.layout()
    }

    /// What was negotiated for both rings.
    pub fn queue_features(&self) -> QueueFeatures {
        QueueFeatures { event_idx: self.config.event_idx, indirect: false }
    }

    /// What may be handed to the interface unfinished.
    pub fn offloads(&self) -> Offloads {
        self.config.offloads
    }

    /// What went through so far.
    pub fn counters(&self) -> NicCounters {
        let (rx, tx) = (self.rx.counters, self.tx.counters);
        NicCounters {
            tx_frames: tx.tx_frames,
            tx_bytes: tx.tx_bytes,
            tx_gso_frames: tx.tx_gso_frames,
            tx_no_buffer: tx.tx_no_buffer,
            ..rx
        }
    }

    /// The lie that the device told, if it told one. Nothing is sent or received afterwards.
    pub fn fault(&self) -> Option<NicFault> {
        self.fault
    }

    /// Offers the switch all frames sent since the last call; `true` if it wants a kick, and now is the time for it
    /// by [the doorbell's rules](super::doorbell). What is not yet kicked for is looked at again by the next call.
    pub fn publish_tx(&mut self, now_ns: u64) -> bool {
        let unannounced = self.tx.queue.offer();
        let outstanding = self.tx.queue.outstanding();
        let due = self.tx.doorbell.is_due(now_ns, unannounced.into(), outstanding.into());
        due && self.rings(now_ns)
    }

    /// As [`publish_tx`](Nic::publish_tx), for a VM that is about to block: nothing waits any longer.
    pub fn publish_tx_before_sleep(&mut self, now_ns: u64) -> bool {
        let unannounced = self.tx.queue.offer();
        self.tx.doorbell.is_due_before_sleep(unannounced.into()) && self.rings(now_ns)
    }

    fn rings(&mut self, now_ns: u64) -> bool {
        let rings = self.tx.queue.wants_kick();
        if rings {
            self.tx.doorbell.rang(now_ns);
        }
        rings
    }

    /// Whether several frames may share an entry to the switch.
    pub fn batches(&self) -> bool {
        self.tx.doorbell.batches()
    }

    /// Sends a frame of `bytes` that asks for no offload. `fill` writes what matters of it, where it lies; the rest
    /// is what the buffer last held. Answers `false`, and calls nobody, if there is no transmit buffer.
    ///
    /// # Errors
    /// The device lied, now or before.
    ///
    /// # Panics
    /// If a frame of the interface's MTU has less than `bytes`.
    #[inline]
    pub fn send(&mut self, bytes: usize, fill: impl FnOnce(&mut [u8])) -> Result<bool, NicFault> {
        self.alive()?;
        if self.tx.idle.is_empty() {
            self.reclaim()?;
        }
        self.tx.starved = self.tx.idle.is_empty();
        let Some(index) = self.tx.idle.pop() else { return Ok(false) };
        fill(&mut self.tx.buffer(index)[VNET_HDR_BYTES..][..bytes]);
        self.tx.post(index, bytes, VnetHdr::PLAIN);
        Ok(true)
    }

    /// Takes back the transmit buffers that the switch is done with: those used last are used next.
    ///
    /// # Errors
    /// The device lied, now or before.
    #[inline]
    pub fn reclaim(&mut self) -> Result<(), NicFault> {
        self.alive()?;
        self.tx.harvest().map_err(|lie| self.died(lie.into()))
    }

    /// The next received frame, whose checksums nobody has verified. It lies in its buffer until the next call.
    ///
    /// # Errors
    /// The device lied, now or before.
    #[inline]
    pub fn next_frame(&mut self) -> Result<Option<&[u8]>, NicFault> {
        self.alive()?;
        match self.rx.take(Verify::No) {
            Ok(place) => Ok(place.map(|place| self.rx.frame(place))),
            Err(fault) => Err(self.died(fault)),
        }
    }

    #[inline]
    fn alive(&self) -> Result<(), NicFault> {
        self.fault.map_or(Ok(()), Err)
    }

    fn died(&mut self, fault: NicFault) -> NicFault {
        self.fault = Some(fault);
        fault
    }

    /// Offers the switch all receive buffers that are free again; `true` if it wants a kick.
    pub fn publish_rx(&mut self) -> bool {
        self.rx.post_held();
        self.rx.queue.publish()
    }

    /// Asks for interrupts: for the next frame, and for transmit buffers if there was none to send with.
    /// Answers `true` if something came in the meantime, which does not interrupt.
    #[must_use = "what came in the meantime does not interrupt"]
    pub fn enable_interrupts(&mut self) -> bool {
        let received = self.rx.queue.enable_interrupts();
        // Half of what is out, so that one interrupt brings back many buffers.
        let sent = self.tx.starved && self.tx.queue.set_interrupt_after(self.tx.queue.outstanding() / 2);
        received || sent
    }

    /// Asks for no interrupts: the VM is awake and looks for itself.
    pub fn disable_interrupts(&mut self) {
        self.rx.queue.disable_interrupts();
        self.tx.queue.disable_interrupts();
    }

    /// Whether a frame could not be sent for want of a transmit buffer.
    pub fn is_tx_starved(&self) -> bool {
        self.tx.starved
    }
}

/// Bytes of a frame that carries `mtu_bytes` of IP.
fn frame_bytes(mtu_bytes: u16) -> usize {
    MIN_FRAME_BYTES + usize::from(mtu_bytes)
}

impl Device for Nic {
    type RxToken<'a> = Received<'a>;
    type TxToken<'a> = Transmit<'a>;

    fn receive(&mut self, _: Instant) -> Option<(Received<'_>, Transmit<'_>)> {
        if self.fault.is_some() {
            return None;
        }
        // An answer needs a transmit buffer. Should there be none, it is dropped and the frame is taken all the
        // same: were receiving to wait for sending, two VMs with full rings could wait for each other.
        let taken = self.tx.harvest().map_err(NicFault::from).and_then(|()| self.rx.take(Verify::Yes));
        let place = taken.unwrap_or_else(|fault| {
            self.fault = Some(fault);
            None
        })?;
        let frame = self.rx.frame(place);
        Some((Received { frame }, Transmit { tx: &mut self.tx, gso_size: None }))
    }

    fn transmit(&mut self, _: Instant) -> Option<Transmit<'_>> {
        if self.fault.is_some() {
            return None;
        }
        if let Err(lie) = self.tx.harvest() {
            self.fault = Some(lie.into());
            return None;
        }
        self.tx.starved = self.tx.idle.is_empty();
        (!self.tx.starved).then_some(Transmit { tx: &mut self.tx, gso_size: None })
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = frame_bytes(self.config.mtu_bytes);
        // Received checksums are always verified here, where a bad one is counted.
        let sum = if self.tx.checksum_offload { Checksum::None } else { Checksum::Tx };
        capabilities.checksum.tcp = sum;
        capabilities.checksum.udp = sum;
        if self.config.offloads.contains(Offloads::TSO4) {
            capabilities.segmentation.tcpv4 = NonZeroUsize::new(GSO_FRAME_BYTES);
        }
        capabilities
    }
}

/// Equal buffers behind each other in guest memory.
struct Buffers {
    start: u64,
    all: Segment,
    bytes: u32,
}

impl Buffers {
    /// Bytes from one buffer to the next: an odd number of cache lines.
    fn stride(bytes: u32) -> u32 {
        (bytes.div_ceil(CACHE_LINE_BYTES) | 1) * CACHE_LINE_BYTES
    }

    fn bytes(count: u32, bytes: u32) -> u64 {
        u64::from(count) * u64::from(Buffers::stride(bytes))
    }

    fn new(memory: &GuestMemory, start: u64, count: u32, bytes: u32) -> Buffers {
        let all = u32::try_from(Buffers::bytes(count, bytes)).expect("a ring's buffers are less than 4 GiB");
        let all = memory.translate_whole(start, all).expect("memory was made to hold the buffers");
        Buffers { start, all, bytes }
    }

    fn offset(&self, index: u16) -> u32 {
        u32::from(index) * Buffers::stride(self.bytes)
    }

    /// The buffer's guest address.
    fn addr(&self, index: u16) -> u64 {
        self.start + u64::from(self.offset(index))
    }

    /// The buffer's bytes.
    ///
    /// # Safety
    /// The buffer belongs to the interface, not to the device, for as long as the answer lives, and no other
    /// reference to it exists.
    #[expect(clippy::mut_from_ref, reason = "buffers are disjoint; the caller vouches for each")]
    unsafe fn slice(&self, index: u16) -> &mut [u8] {
        let at = self.all.skip(self.offset(index)).first(self.bytes);
        // SAFETY: `at` lies in guest memory that the interface keeps mapped, zeroed when it was made; the caller
        // vouches that nobody else looks at it.
        unsafe { std::slice::from_raw_parts_mut(at.as_ptr(), at.len() as usize) }
    }
}

/// Whether a received frame's TCP or UDP checksum is verified where no device has done so.
#[derive(Clone, Copy, PartialEq)]
enum Verify {
    Yes,
    No,
}

/// Where a received frame lies.
#[derive(Clone, Copy)]
enum Place {
    /// In the buffer that is held, behind its header: so many bytes of frame.
    Buffer { index: u16, bytes: usize },
    /// Copied together.
    Merged,
}

/// The receive side.
struct Receiver {
    queue: DriverQueue<u16>,
    buffers: Buffers,
    /// The buffer whose frame the stack reads.
    held: Option<u16>,
    /// The last frame that came in several buffers.
    merged: Vec<u8>,
    accepted: Offloads,
    counters: NicCounters,
}

impl Receiver {
    fn post(&mut self, index: u16) {
        let buffer = (self.buffers.addr(index), self.buffers.bytes);
        self.queue.add(&[], &[buffer], index).expect("there is a descriptor for every buffer");
    }

    fn post_held(&mut self) {
        if let Some(index) = self.held.take() {
            self.post(index);
        }
    }

    /// Takes the next frame that is fit to be handed up; drops and counts those that are not.
    fn take(&mut self, verify: Verify) -> Result<Option<Place>, NicFault> {
        loop {
            self.post_held();
            let Some((raw, place)) = self.take_any()? else { return Ok(None) };
            let frame = self.frame(place);
            let bytes = frame.len() as u64;
            let Some(header) = self.checked_header(&raw, bytes) else {
                self.counters.rx_bad_header += 1;
                continue;
            };
            let verified = header.needs_csum() || header.flags & F_DATA_VALID != 0;
            if verify == Verify::Yes && !verified && !checksum::is_good(frame) {
                self.counters.rx_bad_checksum += 1;
                continue;
            }
            self.counters.rx_frames += 1;
            self.counters.rx_bytes += bytes;
            self.counters.rx_gso_frames += u64::from(header.gso != GsoType::None);
            self.counters.rx_merged_frames += u64::from(matches!(place, Place::Merged));
            return Ok(Some(place));
        }
    }

    /// Takes the next frame, whatever it is: its raw `virtio_net_hdr`, and where its bytes lie.
    fn take_any(&mut self) -> Result<Option<([u8; VNET_HDR_BYTES], Place)>, NicFault> {
        let Some(first) = self.queue.pop_used()? else { return Ok(None) };
        // SAFETY: the queue just gave this buffer back, and it is not posted again before the end of this block.
        let buffer = unsafe { self.buffers.slice(first.token) };
        let used = &buffer[..first.bytes as usize];
        let Some((raw, frame)) = used.split_first_chunk::<VNET_HDR_BYTES>() else {
            return Err(NicFault::NoHeader(first.bytes));
        };
        let raw = *raw;
        let claimed = u16::from_le_bytes([raw[10], raw[11]]);
        if claimed == 1 {
            self.held = Some(first.token);
            return Ok(Some((raw, Place::Buffer { index: first.token, bytes: frame.len() })));
        }
        if claimed == 0 {
            return Err(NicFault::NumBuffers { claimed, present: 1 });
        }
        self.merged.clear();
        append(&mut self.merged, frame)?;
        self.post(first.token);
        for present in 1..claimed {
            // The device shows all buffers of a frame at once, or it is no honest device.
            let next = self.queue.pop_used()?.ok_or(NicFault::NumBuffers { claimed, present })?;
            // SAFETY: as for the first buffer.
            let buffer = unsafe { self.buffers.slice(next.token) };
            append(&mut self.merged, &buffer[..next.bytes as usize])?;
            self.post(next.token);
        }
        Ok(Some((raw, Place::Merged)))
    }

    /// The header, if it can be true of a frame of `bytes` and asks only for what was negotiated.
    fn checked_header(&self, raw: &[u8; VNET_HDR_BYTES], bytes: u64) -> Option<VnetHdr> {
        let header = VnetHdr::decode(raw).ok()?;
        header.check(u32::try_from(bytes).ok()?).ok()?;
        self.accepted.accept(&header).then_some(header)
    }

    fn frame(&self, place: Place) -> &[u8] {
        match place {
            Place::Merged => &self.merged,
            Place::Buffer { index, bytes } => {
                // SAFETY: the buffer is held, so it is not posted; it is posted again through `&mut self` only.
                let buffer = unsafe { self.buffers.slice(index) };
                &buffer[VNET_HDR_BYTES..][..bytes]
            }
        }
    }
}

/// Appends to a frame that is copied together, within the capacity that it has.
fn append(merged: &mut Vec<u8>, part: &[u8]) -> Result<(), NicFault> {
    if merged.len() + part.len() > MAX_FRAME_BYTES {
        return Err(NicFault::TooLong);
    }
    merged.extend_from_slice(part);
    Ok(())
}

/// The transmit side.
struct Transmitter {
    queue: DriverQueue<u16>,
    buffers: Buffers,
    /// Buffers that may be filled; the last is the warmest.
    idle: Vec<u16>,
    /// The buffer for what nothing is sent with.
    spare: u16,
    checksum_offload: bool,
    /// Somebody wanted to send and found no buffer.
    starved: bool,
    doorbell: Doorbell,
    counters: NicCounters,
}

impl Transmitter {
    /// Takes back what was sent.
    fn harvest(&mut self) -> Result<(), DeviceLied> {
        while let Some(used) = self.queue.pop_used()? {
            self.idle.push(used.token);
            self.starved = false;
        }
        Ok(())
    }

    /// The bytes of a buffer that is not posted, header first.
    fn buffer(&mut self, index: u16) -> &mut [u8] {
        // SAFETY: a buffer that was taken out of `idle` is not posted, and the spare one never is; no other reference
        // to its bytes lives, as this is the only place that makes one and `self` is borrowed as long as it lives.
        unsafe { self.buffers.slice(index) }
    }

    /// Puts a buffer that holds a frame of `bytes` into the ring, with its header.
    fn post(&mut self, index: u16, bytes: usize, header: VnetHdr) {
        self.buffer(index)[..VNET_HDR_BYTES].copy_from_slice(&header.encode(0));
        let length = (VNET_HDR_BYTES + bytes) as u32;
        let posted = self.queue.add(&[(self.buffers.addr(index), length)], &[], index);
        posted.expect("there is a descriptor for every buffer");
        self.counters.tx_frames += 1;
        self.counters.tx_bytes += bytes as u64;
        self.counters.tx_gso_frames += u64::from(header.gso != GsoType::None);
    }
}

/// A received frame, read in its buffer.
pub struct Received<'a> {
    frame: &'a [u8],
}

impl RxToken for Received<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(self.frame)
    }
}

/// The right to send one frame, built in its buffer.
pub struct Transmit<'a> {
    tx: &'a mut Transmitter,
    /// Payload bytes a wire frame, if the frame is to be cut.
    gso_size: Option<NonZeroU16>,
}

impl TxToken for Transmit<'_> {
    fn set_meta(&mut self, meta: PacketMeta) {
        self.gso_size = meta.segmentation_offload_size;
    }

    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let Transmit { tx, gso_size } = self;
        let idle = tx.idle.pop();
        let frame = &mut tx.buffer(idle.unwrap_or(tx.spare))[VNET_HDR_BYTES..][..len];
        let result = f(frame);
        let Some(index) = idle else {
            tx.counters.tx_no_buffer += 1;
            return result;
        };
        let offload = match tx.checksum_offload {
            true => checksum::leave_partial(&mut tx.buffer(index)[VNET_HDR_BYTES..][..len], gso_size),
            false => VnetHdr::default(),
        };
        tx.post(index, len, offload);
        result
    }
}
