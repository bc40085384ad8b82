//! A switch on real threads: in-process VMs talk TCP across it. Its control plane dies, by a clock that panics whenever
//! the test wants, and the switch goes on; idle workers do the VMs' work, and end with it.

use super::*;
use hyper_switch_dataplane::QueuePair;
use hyper_switch_dataplane::host::CoreSet;
use hyper_switch_pvnet::guest::workload::{EchoServer, RequestClient, Workload};
use hyper_switch_pvnet::guest::{Guest, GuestConfig, Hypercall, Nic, NicConfig, Poll, Stack};
use std::net::SocketAddrV4;
use std::sync::Weak;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Instant;

const DEADLINE: Duration = Duration::from_secs(20);

/// Waits for a condition; only a failure reaches the deadline.
fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let started = Instant::now();
    while !condition() {
        assert!(started.elapsed() < DEADLINE, "{what}: not within {DEADLINE:?}");
        thread::sleep(Duration::from_millis(1));
    }
}

/// A VM's entries to the switch.
struct Entries {
    entrance: Entrance,
    vm: PortId,
    bell: Arc<GuestBell>,
}

impl Hypercall for Entries {
    fn transmit(&mut self) {
        self.entrance.transmit(self.vm);
    }

    fn receive(&mut self) {
        self.entrance.receive(self.vm);
    }

    fn take_interrupt(&mut self) -> bool {
        self.bell.take()
    }
}

/// Runs VM number `n` on the calling thread until `done`.
fn run_vm<W: Workload>(runtime: &Runtime, n: u16, done: &AtomicBool, work: impl FnOnce(&mut Stack) -> W) {
    let mut guest = Guest::new(GuestConfig::numbered(n)).unwrap();
    let mut work = work(guest.stack());
    let nic = guest.nic();
    let backend = VmBackend {
        queues: vec![QueuePair::new(nic.memory(), nic.tx_layout(), nic.rx_layout(), nic.queue_features())],
        mergeable: true,
        offloads: nic.offloads(),
    };
    let bell = Arc::new(GuestBell::of_this_thread());
    let vm = runtime.attach_vm(&format!("vm{n}"), backend, bell.clone()).unwrap();
    let mut entries = Entries { entrance: runtime.entrance().unwrap(), vm, bell };
    while !done.load(Ordering::Relaxed) {
        if let Poll::Idle { .. } = guest.poll(now().0, &mut entries, &mut work).unwrap() {
            // Not for longer, so that the end of the test is seen.
            entries.bell.wait(Some(Duration::from_millis(10)));
        }
    }
}

/// Two echo servers, on ports 7 and 8.
fn servers(stack: &mut Stack) -> Vec<EchoServer> {
    [7, 8].map(|port| EchoServer::new(stack, port).unwrap()).into()
}

/// A client of the echo server of VM 0 that counts its round trips, without end.
fn client<'a>(stack: &mut Stack, port: u16, trips: &'a AtomicU64) -> impl Workload + use<'a> {
    let server = SocketAddrV4::new(GuestConfig::numbered(0).ip, port);
    let count = |_| {
        trips.fetch_add(1, Ordering::Relaxed);
    };
    RequestClient::new(stack, server, None, count).unwrap()
}

/// Ends the VMs, also when the test fails.
struct Finish<'a>(&'a AtomicBool);

impl Drop for Finish<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// The upcalls and the drops of a VM's port; zeroes as long as it has none.
fn upcalls_and_drops(runtime: &Runtime, n: u16) -> (u64, u64) {
    let ports = runtime.snapshot().unwrap().ports;
    let port = ports.iter().find(|port| port.info.name == format!("vm{n}"));
    port.map_or((0, 0), |port| {
        let counters = &port.counters;
        (counters.tx.upcalls, counters.tx_drops.iter().chain(&counters.rx_drops).sum())
    })
}

/// Holds: while the control plane dies, and dies again whenever it is started, two VMs whose flows are there talk
/// on without a drop or an upcall, and what a third one sends is dropped in time and counted. The control plane
/// that lives then knows what the first one had known, and the third VM comes to talk.
#[test]
fn the_switch_outlives_its_control_plane() {
    let (broken, deaths) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let (breaks, died) = (broken.clone(), deaths.clone());
    let clock = move || {
        if breaks.load(Ordering::Relaxed) {
            died.fetch_add(1, Ordering::Relaxed);
            // A panic without its report.
            std::panic::resume_unwind(Box::new("the clock is broken"));
        }
        now()
    };
    let config = HostConfig {
        workers: vec![],
        guests: 3,
        learning: LearningConfig::default(),
        optimisations: Optimisations::ALL,
        pace: Pace::default(),
    };
    let runtime = Runtime::start_with_clock(&config, clock).unwrap();
    let (done, first, late) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    let macs_known = || runtime.macs().map_or(0, |macs| macs.len());
    let talking = || [0, 1].map(|n| upcalls_and_drops(&runtime, n));

    thread::scope(|scope| {
        let _finish = Finish(&done);
        scope.spawn(|| run_vm(&runtime, 0, &done, servers));
        // A client that were alone on the switch would speak to nobody, which is a counted drop.
        wait_until("the server is there", || runtime.snapshot().unwrap().ports.len() == 1);
        scope.spawn(|| run_vm(&runtime, 1, &done, |stack| client(stack, 7, &first)));
        wait_until("the VMs talk", || first.load(Ordering::Relaxed) >= 100);
        let before = talking();
        assert!(before.iter().all(|(_, drops)| *drops == 0), "{before:?}");

        broken.store(true, Ordering::Relaxed);
        // The last question that it answers, if it does: what wakes it makes it look at its clock.
        wait_until("the control plane has ended", || runtime.macs().is_none());
        scope.spawn(|| run_vm(&runtime, 2, &done, |stack| client(stack, 8, &late)));
        wait_until("what nobody decides on is dropped", || upcalls_and_drops(&runtime, 2).1 > 0);
        wait_until("each new control plane dies", || deaths.load(Ordering::Relaxed) >= 3);
        let so_far = first.load(Ordering::Relaxed);
        wait_until("the VMs talk on", || first.load(Ordering::Relaxed) >= so_far + 1000);
        assert_eq!(runtime.macs(), None, "there was none all the time");
        assert_eq!(talking(), before, "nothing missed, nothing was dropped");
        assert_eq!(late.load(Ordering::Relaxed), 0);

        broken.store(false, Ordering::Relaxed);
        wait_until("the addresses are known again", || macs_known() >= 2);
        wait_until("the late VM talks", || late.load(Ordering::Relaxed) >= 100);
        assert_eq!(macs_known(), 3);
        assert!(talking().iter().all(|(_, drops)| *drops == 0));
    });
}

/// Has two VMs talk until there were 1000 round trips and `enough` was done, then stops the switch while they go on.
/// Answers what was done, and what is left of the switch's idle workers.
fn talk(
    optimisations: Optimisations,
    enough: impl Fn(&CoreActivity) -> bool,
) -> (CoreActivity, Weak<Cores>, usize) {
    let config = HostConfig {
        workers: vec![],
        guests: 2,
        learning: LearningConfig::default(),
        optimisations,
        pace: Pace::default(),
    };
    let runtime = Runtime::start(&config).unwrap();
    let (done, trips) = (AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|scope| {
        let _finish = Finish(&done);
        scope.spawn(|| run_vm(&runtime, 0, &done, servers));
        wait_until("the server is there", || runtime.snapshot().unwrap().ports.len() == 1);
        scope.spawn(|| run_vm(&runtime, 1, &done, |stack| client(stack, 7, &trips)));
        wait_until("the VMs talk", || trips.load(Ordering::Relaxed) >= 1000);
        wait_until("enough was done", || enough(&runtime.total_activity()));
        let drops = [0, 1].map(|n| upcalls_and_drops(&runtime, n).1);
        assert_eq!(drops, [0, 0]);
    });
    let (activity, idle_workers) = (runtime.total_activity(), runtime.idle_workers.len());
    (activity, Arc::downgrade(&runtime.host.cores), idle_workers)
}

/// Holds that idle workers, where a core is left to them, do work that VMs leave to them, and are gone when the switch
/// is. By two VMs of which mostly one is awake.
#[test]
fn idle_workers_work_for_vms_and_end() {
    let offload = Optimisations { offload: true, ..Optimisations::NONE };
    for optimisations in [offload, Optimisations::ALL] {
        let cores = usable_cpus().len();
        // A lone core is never idle when a VM has work for it.
        let enough = |did: &CoreActivity| cores == 1 || (did.handovers > 3 && did.idle_entries > 3);
        let (did, left, idle_workers) = talk(optimisations, enough);
        assert_eq!(idle_workers, cores.min(usize::from(CoreSet::CAPACITY)));
        // Each entry is for a message, but for the few that go on where an earlier one had done enough.
        assert!(cores == 1 || did.idle_entries <= 2 * did.handovers, "{did:?}");
        assert!(left.upgrade().is_none(), "nobody is left who could be woken");
    }
}

/// Holds that without offload there are no idle workers, and nothing is left to any.
#[test]
fn without_offload_nothing_is_left_to_others() {
    let optimisations = Optimisations { offload: false, ..Optimisations::ALL };
    let (did, _, idle_workers) = talk(optimisations, |_| true);
    assert_eq!((idle_workers, did.idle_entries, did.handovers), (0, 0, 0));
}

/// Holds that a VM which is about to block hears of frames that another core has copied for it while it was awake: their
/// interrupt was put off, and its own entry takes its place, though that copies nothing.
#[test]
fn who_is_about_to_block_hears_what_was_put_off() {
    let config = HostConfig {
        workers: vec![],
        guests: 3,
        learning: LearningConfig::default(),
        optimisations: Optimisations { batching: true, ..Optimisations::NONE },
        pace: Pace { delay: Duration::MAX, count: u32::MAX },
    };
    let runtime = Runtime::start(&config).unwrap();
    let [(mut sender, from), (mut receiver, to)] = ["a", "b"].map(|name| {
        let mut nic = Nic::new(NicConfig::default()).unwrap();
        nic.publish_rx();
        let queues = QueuePair::new(nic.memory(), nic.tx_layout(), nic.rx_layout(), nic.queue_features());
        let backend = VmBackend { queues: vec![queues], mergeable: true, offloads: nic.offloads() };
        let bell = Arc::new(GuestBell::of_this_thread());
        (nic, runtime.attach_vm(name, backend, bell).unwrap())
    });
    assert!(!receiver.enable_interrupts());
    sender.send(60, |frame| frame[..12].copy_from_slice(&[2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1])).unwrap();
    sender.publish_tx(now().0);
    let [mut own, mut other] = [(); 2].map(|()| runtime.entrance().unwrap());
    other.transmit(from);

    // The control plane decides on its own thread where the frame goes.
    let started = Instant::now();
    while receiver.standing().rx_unread == 0 {
        assert!(started.elapsed() < DEADLINE, "the frame was not copied");
        other.switch.idle(&mut other.cx, &*other.host);
        thread::yield_now();
    }
    assert!(own.receive(to), "the VM is told of what was copied before");
    assert!(!own.receive(to), "once");
    assert!(receiver.next_frame().unwrap().is_some());
}
