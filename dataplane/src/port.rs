//! A port: a VM's two rings or a device, and all that waits there.

use crate::api::{PortId, PortInfo, Upcall, Verdict, VlanMode};
use crate::claim::Claim;
use crate::counters::PortCounters;
use crate::frame::{FrameStore, NO_EDIT};
use crate::inbox::Inbox;
use crate::shares::Shares;
use crate::sync::UnsafeCell;
use crate::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering};
use alloc::collections::VecDeque;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use crossbeam_queue::ArrayQueue;
use crossbeam_utils::CachePadded;
use hyper_switch_pvnet::MAX_FRAME_BYTES;
use hyper_switch_pvnet::device::{Device, DeviceFault};
use hyper_switch_pvnet::header::{Offloads, VNET_HDR_BYTES};
use hyper_switch_pvnet::mem::{GuestMemory, Segment};
use hyper_switch_pvnet::ring::QueueLayout;
use hyper_switch_pvnet::ring::device::{DeviceQueue, Direction, QueueFeatures, RingFault};

/// A VM's side of a port: its memory and where its rings are.
pub struct VmBackend {
    /// The VM's memory; the port keeps it until its last frame is complete.
    pub memory: Arc<GuestMemory>,
    /// The ring that the VM transmits into.
    pub tx: QueueLayout,
    /// The ring that the VM receives from.
    pub rx: QueueLayout,
    /// What both rings' sides agreed on.
    pub features: QueueFeatures,
    /// Whether a frame may be spread over several receive buffers (`VIRTIO_NET_F_MRG_RXBUF`).
    pub mergeable: bool,
    /// What the VM takes unfinished.
    pub offloads: Offloads,
}

/// What is behind a port.
pub enum Backend {
    /// A VM with two rings in its memory.
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
    /// It broke, and stays down until it is detached.
    Faulted(PortFault),
    /// It is being detached: its last frames are being completed.
    Leaving,
}

/// The time at which no timer fires.
pub(crate) const NO_TIMER: u64 = u64::MAX;

const UP: u8 = 0;
const FAULTING: u8 = 1;
const FAULTED: u8 = 2;
const LEAVING: u8 = 3;

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
    Ring { queue: DeviceQueue, mergeable: bool },
    Device,
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

/// The transmit side: used by one core at a time.
pub(crate) struct TxSide {
    pub(crate) source: Source,
    pub(crate) free_edits: Vec<u16>,
    pub(crate) held: VecDeque<Held>,
    pub(crate) next_upcall: u32,
}

/// One port.
pub(crate) struct Port {
    pub(crate) info: PortInfo,
    pub(crate) offloads: Offloads,
    pub(crate) device: Option<Arc<dyn Device>>,
    state: AtomicU8,
    fault: UnsafeCell<Option<PortFault>>,
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
    /// What the counters of this number were when the port was attached.
    pub(crate) base: PortCounters,
}

// SAFETY: `fault` is written by the core that moved `state` to FAULTING, and read only in state FAULTED; all
// else is Sync by itself.
unsafe impl Sync for Port {}

/// The bounds that each port gets.
pub(crate) struct PortBounds {
    pub(crate) rx_queue_frames: usize,
    pub(crate) held_frames: usize,
}

impl Port {
    pub(crate) fn new(id: PortId, config: PortConfig, bounds: &PortBounds, base: PortCounters) -> Port {
        let PortConfig { name, vlan, backend } = config;
        let (source, sink, offloads, device, slots) = match backend {
            Backend::Vm(vm) => {
                let queue =
                    |layout, direction| DeviceQueue::new(vm.memory.clone(), layout, direction, vm.features);
                let (tx, rx) = (queue(vm.tx, Direction::Readable), queue(vm.rx, Direction::Writable));
                let slots = usize::from(tx.size());
                let sink = Sink::Ring { queue: rx, mergeable: vm.mergeable };
                (Source::Ring(tx), sink, vm.offloads, None, slots)
            }
            Backend::Device(device) => {
                let buffers = Buffers::new();
                let free = (0..DEVICE_BUFFERS as u16).rev().collect();
                let source =
                    Source::Device { device: device.clone(), buffers, free, batch: crate::switch::BATCH };
                (source, Sink::Device, device.offloads(), Some(device), DEVICE_BUFFERS)
            }
        };
        let is_ring = device.is_none();
        Port {
            info: PortInfo { id, name, vlan },
            offloads,
            device,
            state: AtomicU8::new(UP),
            fault: UnsafeCell::new(None),
            tx: Claim::new(TxSide {
                source,
                free_edits: (0..slots.min(usize::from(NO_EDIT)) as u16).collect(),
                held: VecDeque::with_capacity(bounds.held_frames),
                // Goes on where the port that had this number before stopped: its verdicts may still come.
                next_upcall: base.tx.upcalls as u32,
            }),
            rx: Claim::new(sink),
            frames: FrameStore::new(slots, is_ring, slots),
            waiting: CachePadded::new(Inbox::new(bounds.rx_queue_frames)),
            shares: Shares::new(),
            completed: CachePadded::new(Inbox::new(slots)),
            upcalls: ArrayQueue::new(bounds.held_frames),
            verdicts: ArrayQueue::new(bounds.held_frames),
            held: AtomicUsize::new(0),
            wants_notice: AtomicBool::new(true),
            notified_at: AtomicU64::new(0),
            put_off: AtomicBool::new(false),
            unserved: AtomicBool::new(false),
            timer_at: AtomicU64::new(NO_TIMER),
            base,
        }
    }

    pub(crate) fn id(&self) -> PortId {
        self.info.id
    }

    #[inline]
    pub(crate) fn is_up(&self) -> bool {
        self.state.load(Ordering::Acquire) == UP
    }

    pub(crate) fn state(&self) -> PortState {
        match self.state.load(Ordering::Acquire) {
            FAULTED => {
                // SAFETY: in state FAULTED the fault is not written any more.
                let fault = unsafe { *self.fault.get() };
                PortState::Faulted(fault.expect("a faulted port has its fault"))
            }
            LEAVING => PortState::Leaving,
            _ => PortState::Up,
        }
    }

    /// Takes the port down. Only the first fault counts.
    #[cold]
    pub(crate) fn fail(&self, fault: PortFault) -> bool {
        let first = self.state.compare_exchange(UP, FAULTING, Ordering::AcqRel, Ordering::Relaxed).is_ok();
        if first {
            // SAFETY: the exchange above is won once.
            unsafe { *self.fault.get_mut() = Some(fault) };
            // Unless the port has begun to leave meanwhile: then it goes on leaving.
            let _ = self.state.compare_exchange(FAULTING, FAULTED, Ordering::Release, Ordering::Relaxed);
        }
        first
    }

    pub(crate) fn leave(&self) {
        self.state.store(LEAVING, Ordering::Release);
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
