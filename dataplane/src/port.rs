//! A port, or one lane of it: a VM's two rings or a device, and all that waits there.

use crate::api::{PortId, Upcall, Verdict, VlanMode};
use crate::claim::Claim;
use crate::exchange::Exchange;
use crate::frame::{FrameRef, FrameStore, NO_EDIT};
use crate::inbox::Inbox;
use crate::lanes::Lanes;
use crate::shares::Shares;
use crate::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize};
use alloc::collections::VecDeque;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;
use crossbeam_queue::ArrayQueue;
use crossbeam_utils::CachePadded;
use hyper_switch_pvnet::MAX_FRAME_BYTES;
use hyper_switch_pvnet::device::{Device, DeviceFault};
use hyper_switch_pvnet::header::{Offloads, VNET_HDR_BYTES};
use hyper_switch_pvnet::mem::{GuestMemory, Segment};
use hyper_switch_pvnet::ring::QueueLayout;
use hyper_switch_pvnet::ring::device::{DeviceQueue, Direction, QueueFeatures, RingFault};

/// The device sides of a VM's two rings. They keep the VM's memory.
pub struct QueuePair {
    /// The ring that the VM transmits into.
    pub tx: DeviceQueue,
    /// The ring that the VM receives from.
    pub rx: DeviceQueue,
    /// Whether frames may go to the VM by it from the start: see [`Control::set_lanes`](crate::Control::set_lanes).
    pub enabled: bool,
}

impl QueuePair {
    /// The pair of the rings at `tx` and `rx` in `memory`, from their first entries on, enabled.
    pub fn new(
        memory: &Arc<GuestMemory>,
        tx: QueueLayout,
        rx: QueueLayout,
        features: QueueFeatures,
    ) -> QueuePair {
        let queue = |layout, direction| DeviceQueue::new(memory.clone(), layout, direction, features);
        QueuePair { tx: queue(tx, Direction::Readable), rx: queue(rx, Direction::Writable), enabled: true }
    }
}

/// A VM's side of a port.
pub struct VmBackend {
    /// Its queue pairs, at most [`MAX_LANES`](crate::MAX_LANES): each becomes a lane.
    pub queues: Vec<QueuePair>,
    /// Whether a frame may be spread over several receive buffers (`VIRTIO_NET_F_MRG_RXBUF`).
    pub mergeable: bool,
    /// What the VM takes unfinished.
    pub offloads: Offloads,
}

/// What is behind a port.
pub enum Backend {
    /// A VM with pairs of rings in its memory.
    Vm(VmBackend),
    /// A device, whose frames come and go by system call.
    Device(Arc<dyn Device>),
}

/// A port to be attached.
pub struct PortConfig {
    /// Its name, for people.
    pub name: String,
    /// Its part in VLANs.
    pub vlan: VlanMode,
    /// What is behind it.
    pub backend: Backend,
}

/// Why a port went down by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PortFault {
    /// The VM broke the rules of its transmit ring.
    #[error("transmit ring: {0}")]
    TxRing(RingFault),
    /// The VM broke the rules of its receive ring.
    #[error("receive ring: {0}")]
    RxRing(RingFault),
    /// The device failed.
    #[error("device: {0}")]
    Device(DeviceFault),
}

/// Whether a port works.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PortState {
    /// It does.
    Up,
    /// It broke, and stays down until its backend is disconnected.
    Faulted(PortFault),
    /// Its backend is being disconnected: its last frames are being completed.
    Disconnecting,
    /// It has no backend. Frames for it are dropped ([`DropReason::PortAbsent`](crate::api::DropReason::PortAbsent)).
    Absent,
    /// It is being detached: its last frames are being completed.
    Leaving,
}

/// The time at which no timer fires.
pub(crate) const NO_TIMER: u64 = u64::MAX;

/// Buffers of a device port. Each is as long as the longest frame with its header, and a whole number of
/// cache lines that is no multiple of a page, so that the frames' first lines do not all meet in one set.
const DEVICE_BUFFERS: usize = 128;
const DEVICE_BUFFER_BYTES: usize = (VNET_HDR_BYTES + MAX_FRAME_BYTES + 16).next_multiple_of(64);

/// Where a port's frames come from.
pub(crate) enum Source {
    Ring(DeviceQueue),
    Device {
        device: Arc<dyn Device>,
        buffers: Buffers,
        /// Buffers that hold no frame, the one used last on top: it is still in the cache.
        free: Vec<u16>,
        /// How many frames to pull at once: fewer when they are large, so that they stay in the cache.
        batch: usize,
    },
}

/// Where a port's frames go.
pub(crate) enum Sink {
    Ring { queue: DeviceQueue, mergeable: bool, cutting: Cutting },
    Device,
}

/// How far the first waiting frame has come, if it is cut for its receiver and that had too few buffers for all of it.
#[derive(Default)]
pub(crate) struct Cutting {
    /// Cuts that the receiver has.
    pub(crate) cuts: u32,
    /// Bytes written for them.
    pub(crate) written: u32,
}

/// A packet that waits for the control plane, or behind one that does.
pub(crate) struct Held {
    pub(crate) slot: u16,
    /// Hash of its key: packets with the same one keep their order.
    pub(crate) hash: u64,
    /// The upcall that was made for it; none if it waits behind another's.
    pub(crate) upcall: Option<u32>,
    /// Whether an action asked for the upcall: then the verdict is for this packet alone.
    pub(crate) by_action: bool,
    pub(crate) since_ms: u16,
}

/// A question to the control plane that is open.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Asked {
    /// Of its packet's key.
    pub(crate) hash: u64,
    /// Whether packets with the same key wait for the answer, too.
    pub(crate) for_flow: bool,
}

/// The transmit side: used by one core at a time.
pub(crate) struct TxSide {
    pub(crate) source: Source,
    pub(crate) free_edits: Vec<u16>,
    pub(crate) held: VecDeque<Held>,
    /// The hashes of held packets that the control plane is asked about, for their flows or for themselves alone.
    pub(crate) asked: Vec<Asked>,
    pub(crate) next_upcall: u32,
}

impl TxSide {
    /// The control plane's answer came, or is waited for no longer.
    pub(crate) fn answered(&mut self, asked: Asked) {
        if let Some(at) = self.asked.iter().position(|other| *other == asked) {
            self.asked.swap_remove(at);
        }
    }
}

/// What one lane of a backend is.
#[allow(clippy::large_enum_variant, reason = "one is made when a lane is connected, and taken apart at once")]
pub(crate) enum End {
    Ring { queues: QueuePair, mergeable: bool, offloads: Offloads },
    Device(Arc<dyn Device>),
}

impl Backend {
    /// What its lanes are.
    pub(crate) fn into_ends(self) -> Vec<End> {
        match self {
            Backend::Vm(VmBackend { queues, mergeable, offloads }) => {
                queues.into_iter().map(|queues| End::Ring { queues, mergeable, offloads }).collect()
            }
            Backend::Device(device) => vec![End::Device(device)],
        }
    }
}

/// One lane of a port; the port itself, if it has no other.
pub(crate) struct Port {
    /// The lane's own number, which is what it is in the switch.
    pub(crate) id: PortId,
    /// The port's number, which is what it is outside.
    pub(crate) in_port: PortId,
    /// Which of the port's lanes it is.
    pub(crate) lane: u8,
    pub(crate) lanes: Arc<Lanes>,
    pub(crate) offloads: Offloads,
    pub(crate) device: Option<Arc<dyn Device>>,
    pub(crate) tx: Claim<TxSide>,
    pub(crate) rx: Claim<Sink>,
    pub(crate) frames: FrameStore,
    /// The internal receive queue: frames for this port, in their senders' memory.
    pub(crate) waiting: CachePadded<Inbox>,
    /// Who has how many places there.
    pub(crate) shares: Shares,
    /// Slots of this port's frames whose last copy is made, plus one.
    pub(crate) completed: CachePadded<Inbox>,
    pub(crate) upcalls: ArrayQueue<Upcall>,
    pub(crate) verdicts: ArrayQueue<(u32, Verdict)>,
    /// Frames that wait for the control plane, for whoever asks.
    pub(crate) held: AtomicUsize,
    /// The VM found nothing more to receive and wants to be notified.
    pub(crate) wants_notice: AtomicBool,
    /// When the VM was last notified of frames, in nanoseconds; 0 for never.
    pub(crate) notified_at: AtomicU64,
    /// The VM is to be notified by the timer; its own next entry may do so before. A hint: the timer knows by itself.
    pub(crate) put_off: AtomicBool,
    /// The transmit ring was left for an idle core or the timer to go on with.
    pub(crate) unserved: AtomicBool,
    /// When the timer fires that is running for this port, in nanoseconds; [`NO_TIMER`] if none is.
    pub(crate) timer_at: AtomicU64,
    /// Entries of the transmit and of the receive ring; none of a device.
    pub(crate) ring_sizes: Option<(u16, u16)>,
    /// Memory that the rings are to be found in from now on.
    pub(crate) exchange: Exchange,
}

/// The bounds that each port gets.
pub(crate) struct PortBounds {
    pub(crate) rx_queue_frames: usize,
    pub(crate) held_frames: usize,
    pub(crate) upcalls: usize,
}

impl Port {
    /// Lane number `lane` of `lanes`. Its upcalls are numbered from `next_upcall` on.
    pub(crate) fn new(
        lanes: Arc<Lanes>,
        lane: usize,
        end: End,
        bounds: &PortBounds,
        next_upcall: u32,
    ) -> Port {
        let mut ring_sizes = None;
        let (source, sink, offloads, device, slots) = match end {
            End::Ring { queues: QueuePair { tx, rx, .. }, mergeable, offloads } => {
                let slots = usize::from(tx.size());
                ring_sizes = Some((tx.size(), rx.size()));
                let cutting = Cutting::default();
                (Source::Ring(tx), Sink::Ring { queue: rx, mergeable, cutting }, offloads, None, slots)
            }
            End::Device(device) => {
                let buffers = Buffers::new();
                let free = (0..DEVICE_BUFFERS as u16).rev().collect();
                let source =
                    Source::Device { device: device.clone(), buffers, free, batch: crate::switch::BATCH };
                (source, Sink::Device, device.offloads(), Some(device), DEVICE_BUFFERS)
            }
        };
        let is_ring = device.is_none();
        Port {
            id: lanes.numbers()[lane],
            in_port: lanes.numbers()[0],
            lane: lane as u8,
            lanes,
            offloads,
            device,
            tx: Claim::new(TxSide {
                source,
                free_edits: (0..slots.min(usize::from(NO_EDIT)) as u16).collect(),
                held: VecDeque::with_capacity(bounds.held_frames),
                asked: Vec::with_capacity(bounds.upcalls),
                next_upcall,
            }),
            rx: Claim::new(sink),
            frames: FrameStore::new(slots, is_ring, slots),
            waiting: CachePadded::new(Inbox::new(bounds.rx_queue_frames)),
            shares: Shares::new(),
            completed: CachePadded::new(Inbox::new(slots)),
            upcalls: ArrayQueue::new(bounds.upcalls),
            verdicts: ArrayQueue::new(bounds.upcalls),
            held: AtomicUsize::new(0),
            wants_notice: AtomicBool::new(true),
            notified_at: AtomicU64::new(0),
            put_off: AtomicBool::new(false),
            unserved: AtomicBool::new(false),
            timer_at: AtomicU64::new(NO_TIMER),
            ring_sizes,
            exchange: Exchange::new(),
        }
    }

    #[inline]
    pub(crate) fn is_up(&self) -> bool {
        self.lanes.is_up()
    }

    /// Whether frames may go to the VM by this lane.
    pub(crate) fn is_enabled(&self) -> bool {
        self.lanes.enabled().has(self.lane)
    }

    /// Lets frames of `sender` wait here, from the first on, as far as there is room and its share goes. Answers how many.
    #[inline]
    pub(crate) fn take_in(&self, sender: PortId, frames: &[FrameRef]) -> usize {
        let admitted = self.shares.admit(&self.waiting, sender, frames.len());
        let taken = self.waiting.put(frames[..admitted].iter().map(|frame| frame.word()));
        self.shares.give_back(sender, admitted - taken);
        taken
    }

    /// What is left when nobody can reach the port any more: its rings, and the number of its next upcall.
    pub(crate) fn into_rest(self) -> (Option<QueuePair>, u32) {
        let enabled = self.is_enabled();
        let TxSide { source, next_upcall, .. } = self.tx.into_inner();
        let queues = match (source, self.rx.into_inner()) {
            (Source::Ring(tx), Sink::Ring { queue: rx, .. }) => Some(QueuePair { tx, rx, enabled }),
            _ => None,
        };
        (queues, next_upcall)
    }
}

/// Memory for a device's frames, in slots. Only pages that were used take memory.
pub(crate) struct Buffers {
    memory: GuestMemory,
}

impl Buffers {
    fn new() -> Buffers {
        Buffers { memory: GuestMemory::anonymous(DEVICE_BUFFERS * DEVICE_BUFFER_BYTES) }
    }

    /// The memory of one slot, reached by address alone, never by reference, while a frame is in it.
    pub(crate) fn slot(&self, slot: u16) -> Segment {
        let start = u64::from(slot) * DEVICE_BUFFER_BYTES as u64;
        let slot = self.memory.translate_whole(start, DEVICE_BUFFER_BYTES as u32);
        slot.expect("the memory was made for all slots")
    }
}
