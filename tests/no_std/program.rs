//! A program without the standard library that has one VM send a frame to another across the switch.
//!
//! It links only as long as nothing that it uses needs `std`, which would bring a second panic handler
//! (E0152): the switch can live where there is no operating system. It has one of its own to run on, of which
//! it uses the allocator and the exit code.

#![no_std]
#![no_main]

extern crate alloc;
#[cfg(feature = "std")]
extern crate std;

use alloc::sync::Arc;
use alloc::vec;
use core::alloc::{GlobalAlloc, Layout};
use core::panic::PanicInfo;
use hyper_switch_dataplane::api::{Action, FlowId, FlowKey, FlowSpec, Match, Nanos, PortId, VlanMode};
use hyper_switch_dataplane::host::{CoreId, CoreSet, Host, Ring, RunState};
use hyper_switch_dataplane::{Backend, Control, PortConfig, QueuePair, Switch, SwitchConfig, VmBackend};
use hyper_switch_pvnet::header::{Offloads, VNET_HDR_BYTES, VnetHdr};
use hyper_switch_pvnet::mem::GuestMemory;
use hyper_switch_pvnet::ring::device::QueueFeatures;
use hyper_switch_pvnet::ring::driver::{DriverFeatures, DriverQueue};
use hyper_switch_pvnet::ring::{QueueAddrs, QueueLayout};

#[link(name = "c")]
unsafe extern "C" {
    fn aligned_alloc(align: usize, bytes: usize) -> *mut u8;
    fn free(memory: *mut u8);
    fn abort() -> !;
}

struct Heap;

// SAFETY: the C library's allocator keeps the contract, as the size is a multiple of the alignment.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let layout = layout.pad_to_align();
        // SAFETY: any size and any power of two will do.
        unsafe { aligned_alloc(layout.align(), layout.size()) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, _: Layout) {
        // SAFETY: the memory is from `alloc`.
        unsafe { free(memory) }
    }
}

#[global_allocator]
static HEAP: Heap = Heap;

#[panic_handler]
fn panic(_: &PanicInfo<'_>) -> ! {
    // SAFETY: it takes nothing and does not return.
    unsafe { abort() }
}

/// The prebuilt `alloc` refers to the routine that unwinds, which nobody calls where a panic aborts.
#[unsafe(no_mangle)]
extern "C" fn rust_eh_personality() {}

/// A machine on which nothing happens by itself.
struct Still;

impl Host for Still {
    fn now(&self) -> Nanos {
        Nanos(0)
    }

    fn run_state(&self, _: PortId) -> RunState {
        RunState::Blocked
    }

    fn home(&self, _: PortId) -> CoreId {
        CoreId(0)
    }

    fn notify(&self, _: PortId, _: Ring) {}

    fn idle_cores(&self) -> CoreSet {
        CoreSet::EMPTY
    }

    fn wake(&self, _: CoreId) {}

    fn arm(&self, _: PortId, _: Nanos) {}
}

const SLOTS: u16 = 4;
/// Where a VM's receive ring starts and where its one buffer does; the transmit ring is at 0.
const RX_RING: u64 = 4096;
const BUFFER: u64 = 2 * 4096;
const BUFFER_BYTES: u32 = 2048;

struct Vm {
    port: PortId,
    memory: Arc<GuestMemory>,
    tx: DriverQueue<()>,
    rx: DriverQueue<()>,
}

impl Vm {
    fn attach(control: &mut Control) -> Vm {
        let memory = Arc::new(GuestMemory::anonymous(3 * 4096));
        let queue = |start| {
            let features = DriverFeatures { event_idx: false, indirect: None };
            DriverQueue::new(&memory, SLOTS, QueueAddrs::contiguous(start, SLOTS), features).unwrap()
        };
        let (tx, rx) = (queue(0), queue(RX_RING));
        let features = QueueFeatures { event_idx: false, indirect: false };
        let backend = Backend::Vm(VmBackend {
            queues: vec![QueuePair::new(&memory, tx.layout(), rx.layout(), features)],
            mergeable: false,
            offloads: Offloads::NONE,
        });
        let vlan = VlanMode::Transparent;
        let port = control.attach(PortConfig { name: "vm".into(), vlan, backend }).unwrap();
        Vm { port, memory, tx, rx }
    }
}

#[unsafe(no_mangle)]
extern "C" fn main() -> i32 {
    assert!(QueueLayout::bytes(SLOTS) <= RX_RING);
    let config = SwitchConfig { max_ports: 2, cores: 1, max_flows: 16, ..SwitchConfig::default() };
    let (switch, mut control) = Switch::new(config);
    let mut cx = switch.core_context(CoreId(0)).unwrap();
    let (mut sender, mut receiver) = (Vm::attach(&mut control), Vm::attach(&mut control));
    let key = FlowKey { in_port: sender.port.0.into(), ..FlowKey::ZERO };
    let matches = Match::new(key, FlowKey { in_port: u32::MAX, ..FlowKey::ZERO });
    let actions = Arc::new([Action::Output(receiver.port)]);
    control.install(&FlowSpec { id: FlowId(1), matches, actions }, Nanos(0)).unwrap();

    let mut sent = vec![0; VNET_HDR_BYTES + 60];
    sent[..VNET_HDR_BYTES].copy_from_slice(&VnetHdr::PLAIN.encode(0));
    sent[VNET_HDR_BYTES..].fill(0x5a);
    let buffer = |vm: &Vm| vm.memory.translate_whole(BUFFER, BUFFER_BYTES).unwrap();
    // SAFETY: the memory is mapped, and its guest is this thread.
    unsafe { buffer(&sender).write(&sent) };
    sender.tx.add(&[(BUFFER, sent.len() as u32)], &[], ()).unwrap();
    sender.tx.publish();
    receiver.rx.add(&[], &[(BUFFER, BUFFER_BYTES)], ()).unwrap();
    receiver.rx.publish();

    let entered = switch.transmit(&mut cx, &Still, sender.port);
    assert_eq!((entered.frames, entered.copied), (1, 1));
    assert_eq!(switch.receive(&mut cx, &Still, receiver.port).copied, 0);
    assert_eq!(receiver.rx.pop_used().unwrap().unwrap().bytes as usize, sent.len());
    let mut received = vec![0; sent.len()];
    // SAFETY: as above.
    unsafe { buffer(&receiver).read(&mut received) };
    assert_eq!(received[VNET_HDR_BYTES..], sent[VNET_HDR_BYTES..]);
    0
}
