//! Several threads, each a core of its own, transmit and receive for any VM at the same time, while the control
//! changes flows, decides on packets that wait, replaces a port and maps VMs' memory anew. In the end everything is drained: every
//! buffer has come back, every ledger is even, and at every receiver every stream came in order, none twice.

mod support;

use hyper_switch_dataplane::api::{
    Action, FlowId, FlowKey, FlowSpec, Match, Nanos, PortId, Verdict, VlanMode,
};
use hyper_switch_dataplane::host::{CoreId, CoreSet, Host, Ring, RunState};
use hyper_switch_dataplane::{Control, CoreContext, Map, Switch, SwitchConfig};
use hyper_switch_pvnet::ring::QueueLayout;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use support::pages::Pages;
use support::{Bench, TestVm, VmConfig, frame};

/// Worker threads, each with a VM whose driver it is.
const WORKERS: usize = 3;
const ROUNDS: u64 = 3000;
const BURST: u64 = 8;

/// A host for threads: its clock is moved by whoever wants, and it counts what it is asked.
#[derive(Default)]
struct SharedHost {
    now: AtomicU64,
    notified: AtomicUsize,
    /// No core is said to be idle any more.
    draining: AtomicBool,
}

impl Host for SharedHost {
    fn now(&self) -> Nanos {
        Nanos(self.now.load(Ordering::Relaxed))
    }
    fn run_state(&self, _: PortId) -> RunState {
        RunState::Preempted
    }
    fn home(&self, _: PortId) -> CoreId {
        CoreId(0)
    }
    fn notify(&self, _: PortId, _: Ring) {
        self.notified.fetch_add(1, Ordering::Relaxed);
    }
    /// Every core enters as an idle one now and then, and so does what is left to any.
    fn idle_cores(&self) -> CoreSet {
        if self.draining.load(Ordering::Relaxed) { CoreSet::EMPTY } else { CoreSet::EMPTY.with(CoreId(1)) }
    }
    fn wake(&self, _: CoreId) {}
    fn arm(&self, _: PortId, _: Nanos) {}
}

/// One VM's driver, and what it has seen of each sender.
struct Driver {
    vm: TestVm,
    pages: Arc<Pages>,
    /// The number of its first frame: a port's streams go on where those of its predecessor ended.
    first: u64,
    sent: u64,
    seen: HashMap<[u8; 6], u64>,
    received: u64,
}

impl Driver {
    fn new(control: &mut Control, first: u64) -> Driver {
        let config = VmConfig { rx_buffer_bytes: 2048, ..VmConfig::default() };
        let mut pages = None;
        let mut vm = [TestVm::new(config, |bytes| pages.insert(Pages::new(bytes)).map().0)];
        let port = control.reserve("vm".into(), VlanMode::Transparent).unwrap();
        TestVm::connect(control, port, &mut vm);
        let ([vm], pages) = (vm, Arc::new(pages.expect("the VM has memory")));
        Driver { vm, pages, first, sent: first, seen: HashMap::new(), received: 0 }
    }

    /// Makes further maps of the VM's memory, for the switch.
    fn maps(&self) -> impl Fn() -> Map + use<> {
        let (pages, slots) = (self.pages.clone(), self.vm.config.slots);
        let (tx, rx) = (self.vm.tx_addrs, self.vm.rx_addrs);
        move || {
            let memory = Arc::new(pages.map().0);
            let ring = |addrs| QueueLayout::new(&memory, slots, addrs).unwrap();
            let (tx, rx) = (ring(tx), ring(rx));
            Map { memory, tx, rx }
        }
    }

    fn send(&mut self) {
        self.vm.completions();
        for _ in 0..BURST {
            let bytes = 60 + (self.sent as usize * 37) % 1400;
            if self.vm.send(&frame(self.vm.port, PortId(0), bytes, self.sent)) {
                self.sent += 1;
            }
        }
    }

    fn receive(&mut self) {
        for bytes in self.vm.received_frames() {
            let source: [u8; 6] = *bytes[6..].first_chunk().expect("a whole frame");
            let number = u64::from_be_bytes(*bytes[14..].first_chunk().expect("a whole frame"));
            let sender = PortId(u16::from_be_bytes([source[4], source[5]]));
            assert_eq!(bytes, frame(sender, PortId(0), bytes.len(), number), "the frame is intact");
            let next = self.seen.entry(source).or_default();
            assert!(number >= *next, "frame {number} of port {sender} came after {next}");
            *next = number + 1;
            self.received += 1;
        }
    }
}

/// A core's part: it serves its own VM, and any other as well.
fn work(switch: &Switch, cx: &mut CoreContext, host: &SharedHost, driver: &mut Driver, others: u16) {
    for round in 0..ROUNDS {
        driver.send();
        switch.transmit(cx, host, driver.vm.port);
        let other = PortId(((round * 7 + u64::from(driver.vm.port.0)) % u64::from(others)) as u16);
        match round % 5 {
            0 => drop(switch.transmit(cx, host, other)),
            1 => drop(switch.receive(cx, host, other)),
            2 => drop(switch.expire(cx, host, other)),
            3 => drop(switch.idle(cx, host)),
            _ => {}
        }
        switch.receive(cx, host, driver.vm.port);
        driver.receive();
    }
}

fn spec(id: u64, from: PortId, actions: &[Action]) -> FlowSpec {
    let key = FlowKey { in_port: from.0.into(), ..FlowKey::ZERO };
    let mask = FlowKey { in_port: u32::MAX, ..FlowKey::ZERO };
    FlowSpec { id: FlowId(id), matches: Match::new(key, mask), actions: actions.into() }
}

/// The control's part, until the workers are done: flows come, change and go; upcalls are answered; the last
/// port is detached and attached again; memory is mapped anew. Answers how often the port came again.
fn control(
    control: &mut Control,
    cx: &mut CoreContext,
    host: &SharedHost,
    ports: &[PortId],
    maps: &[impl Fn() -> Map],
    guest: &mut Driver,
    done: impl Fn() -> bool,
) -> u64 {
    let sets = |round: u64| -> Vec<Action> {
        let chosen = ports.iter().enumerate().filter(|(at, _)| round >> at & 1 != 0);
        chosen.map(|(_, port)| Action::Output(*port)).chain([Action::Output(guest.vm.port)]).collect()
    };
    let sets: Vec<_> = (0..8).map(sets).collect();
    let (mut id, mut replaced) = (0, 0);
    let mut installed = vec![None; ports.len()];
    let mut leaving = false;
    // At least so many, however fast the workers are.
    for round in 0_u64.. {
        if done() && round > 200 {
            if !leaving {
                break;
            }
            // Nobody takes what the guest has sent any more, so that only patience ends its leaving.
            host.now.fetch_add(1_000_000_000, Ordering::Relaxed);
            for port in ports {
                control.switch().clone().expire(cx, host, *port);
            }
        }
        let at = round as usize % ports.len();
        let actions = &sets[(round / 3 % 8) as usize];
        match installed[at] {
            None => {
                id += 1;
                control.install(&spec(id, ports[at], actions), Nanos(0)).expect("there is room");
                installed[at] = Some(FlowId(id));
            }
            Some(flow) if round % 11 == 0 => {
                assert!(control.remove(flow));
                installed[at] = None;
                let barrier = control.barrier();
                while !control.passed(barrier) {
                    std::thread::yield_now();
                }
            }
            Some(flow) => assert_eq!(control.modify(flow, &actions[..].into()), Ok(true)),
        }
        if round % 7 == 3 {
            control.exchange(cx, host, ports[at], &[maps[at]()]).expect("a VM is there");
        }
        // A bounded number: what is tried again without a flow asks at once.
        for _ in 0..4 {
            let Some(upcall) = control.next_upcall() else { break };
            let verdict = match round % 3 {
                0 => Verdict::Drop,
                1 => Verdict::Execute(actions[..].into()),
                _ => Verdict::Retry,
            };
            control.resolve(cx, host, upcall.id, verdict);
        }
        // The guest that comes and goes sends and receives, too.
        if !leaving {
            guest.send();
            control.switch().clone().transmit(cx, host, guest.vm.port);
            control.switch().clone().receive(cx, host, guest.vm.port);
        }
        guest.receive();
        if round % 20 == 19 && !leaving {
            // All that it has sent is taken first, by whoever has its ring.
            let switch = control.switch().clone();
            while control.port(guest.vm.port).unwrap().counters.tx.frames < guest.sent - guest.first {
                switch.transmit(cx, host, guest.vm.port);
                switch.idle(cx, host);
            }
            assert!(control.detach(guest.vm.port));
            leaving = true;
        }
        if !control.reap(cx, host).gone.is_empty() {
            guest.receive();
            guest.vm.completions();
            assert_eq!(guest.vm.outstanding(), 0, "a port that is gone has its buffers back");
            let number = guest.vm.port;
            *guest = Driver::new(control, guest.sent);
            assert_eq!(guest.vm.port, number);
            (leaving, replaced) = (false, replaced + 1);
        }
    }
    replaced
}

#[test]
fn cores_and_control_at_the_same_time() {
    let config = SwitchConfig {
        max_ports: WORKERS + 1,
        cores: WORKERS + 1,
        max_flows: 8,
        rx_queue_frames: 64,
        held_frames: 16,
        upcalls: 16,
        ..SwitchConfig::default()
    };
    let mut bench = Bench::with(config);
    let host = SharedHost::default();
    let mut drivers: Vec<_> = (0..WORKERS).map(|_| Driver::new(&mut bench.control, 0)).collect();
    let mut guest = Driver::new(&mut bench.control, 0);
    let ports: Vec<_> = drivers.iter().map(|driver| driver.vm.port).collect();
    let maps: Vec<_> = drivers.iter().map(Driver::maps).collect();
    let (done, switch) = (AtomicUsize::new(0), bench.switch.clone());
    let replaced = std::thread::scope(|scope| {
        for (driver, core) in drivers.iter_mut().zip(1..) {
            let (switch, host, done): (&Arc<Switch>, _, _) = (&switch, &host, &done);
            scope.spawn(move || {
                let mut cx = switch.core_context(CoreId(core)).expect("a core of its own");
                work(switch, &mut cx, host, driver, WORKERS as u16 + 1);
                done.fetch_add(1, Ordering::Release);
            });
        }
        let done = || done.load(Ordering::Acquire) == WORKERS;
        control(&mut bench.control, &mut bench.cx, &host, &ports, &maps, &mut guest, done)
    });
    assert!(drivers.iter().all(|driver| driver.received > 0));
    assert!(replaced > 0, "the guest was replaced while the others worked");

    host.draining.store(true, Ordering::Relaxed);
    // Everyone takes what there is, and what was left to idle cores.
    drivers.push(guest);
    for _ in 0..4 {
        for driver in &mut drivers {
            switch.transmit(&mut bench.cx, &host, driver.vm.port);
            switch.receive(&mut bench.cx, &host, driver.vm.port);
            driver.receive();
        }
    }
    // Time passes for what still waits for a decision.
    host.now.fetch_add(5_000_000_000, Ordering::Relaxed);
    for driver in &mut drivers {
        switch.expire(&mut bench.cx, &host, driver.vm.port);
    }
    bench.control.reap(&mut bench.cx, &host);
    for driver in &mut drivers {
        assert!(!bench.control.is_exchanging(driver.vm.port), "nothing needs older maps");
        driver.vm.completions();
        assert_eq!(driver.vm.outstanding(), 0, "every buffer has come back");
        let status = bench.control.port(driver.vm.port).unwrap();
        assert_eq!((status.in_flight, status.waiting, status.held), (0, 0, 0));
        assert_eq!(status.counters.tx.frames, driver.sent - driver.first, "every frame was taken once");
        assert_eq!(status.counters.rx.frames, driver.received, "every frame was delivered once");
        let (tx, rx) = (status.counters.tx, status.counters.rx);
        let drops = |drops: &[u64]| drops.iter().sum::<u64>();
        assert_eq!(tx.frames + tx.replicated, tx.forwarded + drops(&status.counters.tx_drops));
        assert_eq!(rx.offered, rx.frames + drops(&status.counters.rx_drops));
    }
}
