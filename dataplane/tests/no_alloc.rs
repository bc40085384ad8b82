//! The data path allocates nothing, from its first frame on: an allocator that counts this thread's allocations is
//! asked before and after every entry into the switch, with each combination of the optimisations.

mod support;

use hyper_switch_dataplane::api::{Action, Nanos, PortId, VlanMode};
use hyper_switch_dataplane::host::{CoreId, CoreSet, Host, Ring, RunState};
use hyper_switch_dataplane::{Backend, Entered, PortConfig, SwitchConfig};
use hyper_switch_pvnet::device::{Device, DeviceFault, PullSlot, PushError, PushFrame};
use hyper_switch_pvnet::header::Offloads;
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use support::{Bench, TestVm, frame};

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

/// The system's allocator, counting. Freeing counts as well: what frees has allocated somewhere.
struct Counting;

fn count() {
    // A thread that ends may allocate after its counter is gone.
    let _ = ALLOCATIONS.try_with(|allocations| allocations.set(allocations.get() + 1));
}

// SAFETY: everything is passed on to the system's allocator; the counter is a plain cell of this thread.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller's word, as in all of these.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: as above.
        unsafe { System.realloc(ptr, layout, size) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        count();
        // SAFETY: as above.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// A host that does nothing, and so allocates nothing: its VMs run, a core is idle, and time stands still, so that
/// deliveries are put off and rings left to the idle core where that is on.
struct Quiet;

impl Host for Quiet {
    fn now(&self) -> Nanos {
        Nanos(1)
    }
    fn run_state(&self, _: PortId) -> RunState {
        RunState::Running(CoreId(0))
    }
    fn home(&self, _: PortId) -> CoreId {
        CoreId(0)
    }
    fn notify(&self, _: PortId, _: Ring) {}
    fn idle_cores(&self) -> CoreSet {
        CoreSet::EMPTY.with(CoreId(1))
    }
    fn wake(&self, _: CoreId) {}
    fn arm(&self, _: PortId, _: Nanos) {}
}

/// A device that has as many frames as it is told, all the same, and counts what it is given.
struct Plain {
    frame: Vec<u8>,
    waiting: AtomicUsize,
    taken: AtomicUsize,
}

impl Device for Plain {
    fn pull(&self, slots: &mut [PullSlot]) -> Result<usize, DeviceFault> {
        let count = slots.len().min(self.waiting.load(Ordering::Relaxed));
        for slot in &mut slots[..count] {
            // SAFETY: the switch vouches for its buffers.
            unsafe { slot.buffer.write(&self.frame) };
            slot.bytes = self.frame.len() as u32;
        }
        self.waiting.fetch_sub(count, Ordering::Relaxed);
        Ok(count)
    }

    fn push(&self, frames: &[PushFrame<'_>], _: &mut [Result<(), PushError>]) {
        self.taken.fetch_add(frames.len(), Ordering::Relaxed);
    }

    fn offloads(&self) -> Offloads {
        Offloads::ALL
    }
}

/// What a path is fed with, round by round.
const ROUND: usize = 40;
const ROUNDS: usize = 10_000 / ROUND;

struct Path {
    bench: Bench,
    allocations: u64,
}

impl Path {
    fn enter(&mut self, entry: impl Fn(&mut Bench) -> Entered) -> Entered {
        let before = ALLOCATIONS.get();
        let entered = entry(&mut self.bench);
        self.allocations += ALLOCATIONS.get() - before;
        entered
    }

    /// Enters for a sender until nothing is left, as a host does; as the idle core to which the ring may have been left,
    /// likewise.
    fn transmit(&mut self, port: PortId) {
        while self.enter(|bench| bench.switch.transmit(&mut bench.cx, &Quiet, port)).more {}
        if self.bench.switch.config().optimisations.offload {
            while self.enter(|bench| bench.switch.idle(&mut bench.cx, &Quiet)).more {}
        }
    }

    /// Enters for a receiver by the timer that what was put off waits for, and by its hypercall.
    fn receive(&mut self, port: PortId) {
        self.enter(|bench| bench.switch.expire(&mut bench.cx, &Quiet, port));
        self.enter(|bench| bench.switch.receive(&mut bench.cx, &Quiet, port));
    }

    /// Runs `round`, which answers how many frames arrived, until 10,000 were sent. Nothing is laid out on the
    /// way, so that not even the first round may allocate.
    fn run(mut self, arrive: usize, mut round: impl FnMut(&mut Path) -> usize) {
        for number in 0..ROUNDS {
            assert_eq!(round(&mut self), arrive, "all frames of round {number} arrive");
        }
        assert_eq!(self.allocations, 0, "allocations and frees within the switch");
        self.bench.check_ledger();
    }
}

/// Runs `way` with each combination of the optimisations.
fn each_way(way: impl Fn(Path)) {
    for optimisations in support::combinations() {
        let config = SwitchConfig { max_ports: 4, cores: 1, optimisations, ..SwitchConfig::default() };
        way(Path { bench: Bench::with(config), allocations: 0 });
    }
}

/// A round's frames, of several lengths and more than one flow.
fn send_round(vm: &mut TestVm) {
    for number in 0..ROUND {
        let frame = frame(vm.port, PortId(number as u16 % 7), 60 + 300 * (number % 5), number as u64);
        assert!(vm.send(&frame));
    }
}

fn device(bench: &mut Bench) -> (PortId, Arc<Plain>) {
    let frame = [&[0; 12], &frame(PortId(9), PortId(8), 700, 0)[..]].concat();
    let device = Arc::new(Plain { frame, waiting: AtomicUsize::new(0), taken: AtomicUsize::new(0) });
    let backend = Backend::Device(device.clone());
    let config = PortConfig { name: "device".into(), vlan: VlanMode::Transparent, backend };
    (bench.control.attach(config).unwrap(), device)
}

#[test]
fn the_counter_counts() {
    let mut path = Path { bench: Bench::new(), allocations: 0 };
    path.enter(|_| {
        drop(std::hint::black_box(vec![0_u8; 100]));
        Entered::default()
    });
    assert_eq!(path.allocations, 2);
}

#[test]
fn from_vm_to_vm() {
    each_way(|mut path| {
        let (mut a, mut b) = (path.bench.vm("a"), path.bench.vm("b"));
        path.bench.connect(a.port, &[Action::Output(b.port)]);
        path.run(ROUND, |path| {
            send_round(&mut a);
            path.transmit(a.port);
            path.receive(b.port);
            assert_eq!(a.completions(), ROUND);
            b.received().len()
        });
    });
}

#[test]
fn flooded_to_two() {
    each_way(|mut path| {
        let (mut a, mut b, mut c) = (path.bench.vm("a"), path.bench.vm("b"), path.bench.vm("c"));
        path.bench.connect(a.port, &[Action::Output(b.port), Action::Output(c.port)]);
        path.run(2 * ROUND, |path| {
            send_round(&mut a);
            path.transmit(a.port);
            path.receive(b.port);
            path.receive(c.port);
            assert_eq!(a.completions(), ROUND);
            b.received().len() + c.received().len()
        });
    });
}

#[test]
fn from_vm_to_device() {
    each_way(|mut path| {
        let mut a = path.bench.vm("a");
        let (to, device) = device(&mut path.bench);
        path.bench.connect(a.port, &[Action::Output(to)]);
        path.run(ROUND, |path| {
            send_round(&mut a);
            path.transmit(a.port);
            assert_eq!(a.completions(), ROUND);
            device.taken.swap(0, Ordering::Relaxed)
        });
    });
}

#[test]
fn from_device_to_vm() {
    each_way(|mut path| {
        let mut a = path.bench.vm("a");
        let (from, device) = device(&mut path.bench);
        path.bench.connect(from, &[Action::Output(a.port)]);
        path.run(ROUND, |path| {
            device.waiting.store(ROUND, Ordering::Relaxed);
            path.transmit(from);
            path.receive(a.port);
            a.received().len()
        });
    });
}

/// Holds that flows with as many outputs as there may be, mixed with flows with one, stay within what was laid
/// out for them: here to a device, which takes them at once.
#[test]
fn most_outputs_beside_single_ones() {
    use hyper_switch_dataplane::api::FlowKey;
    const OUTPUTS: usize = 300;
    each_way(|mut path| {
        let mut a = path.bench.vm("a");
        let (to, device) = device(&mut path.bench);
        let wide = vec![Action::Output(to); OUTPUTS];
        let mask = FlowKey { eth_dst: [0xff; 6], ..FlowKey::ZERO };
        for (number, actions) in [&wide[..], &wide[..OUTPUTS - 24], &wide[..1]].into_iter().enumerate() {
            let eth_dst = support::mac(PortId(number as u16));
            path.bench.flow(FlowKey { eth_dst, ..FlowKey::ZERO }, mask, actions);
        }
        // Two wide ones that fill the list of outputs to its last place, and then single ones.
        path.run(2 * OUTPUTS - 24 + ROUND, |path| {
            for number in 0..ROUND + 2 {
                assert!(a.send(&frame(a.port, PortId(number.min(2) as u16), 60, number as u64)));
            }
            path.transmit(a.port);
            assert_eq!(a.completions(), ROUND + 2);
            device.taken.swap(0, Ordering::Relaxed)
        });
    });
}
