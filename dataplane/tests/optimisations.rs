//! The three optimisations on a host without threads, with a clock, run states and idle cores by script: what each of
//! the eight combinations costs, exactly; that nothing put off is lost, by random schedules; that whoever is told finds
//! nothing held; and that those who flood a receiver share it.

mod support;

use hyper_switch_dataplane::api::{Action, Nanos, PortId};
use hyper_switch_dataplane::host::{CoreId, CoreSet, Host, Ring, RunState};
use hyper_switch_dataplane::policy::notification::Pace;
use hyper_switch_dataplane::policy::offload::HANDOVER_LIMIT;
use hyper_switch_dataplane::policy::{Optimisations, offload};
use hyper_switch_dataplane::{CoreContext, Switch, SwitchConfig};
use proptest::prelude::*;
use std::cell::{Cell, RefCell};
use std::sync::Arc;
use std::time::Duration;
use support::{Bench, ScriptedHost, TestVm, VmConfig, combinations, frame};

const IDLE: CoreId = CoreId(1);

fn config(optimisations: Optimisations) -> SwitchConfig {
    SwitchConfig { max_ports: 8, cores: 2, max_flows: 32, optimisations, ..SwitchConfig::default() }
}

/// A switch with VMs that act when they are interrupted, and an idle core that comes when it is woken.
struct World {
    bench: Bench,
    idle: CoreContext,
    vms: Vec<Vm>,
}

struct Vm {
    vm: TestVm,
    /// It has asked for interrupts, and looks at its rings when one came; otherwise it looks all the time.
    sleeps: bool,
    interrupted: bool,
    received: u64,
    sent: u64,
}

impl World {
    fn new(config: SwitchConfig, vms: usize) -> World {
        let mut bench = Bench::with(config);
        let idle = bench.switch.core_context(IDLE).unwrap();
        let made = |_| {
            let mut vm = bench.vm("vm");
            // Transmit buffers are taken back when the next frames are sent.
            vm.tx.disable_interrupts();
            Vm { vm, sleeps: true, interrupted: false, received: 0, sent: 0 }
        };
        World { vms: (0..vms).map(made).collect(), bench, idle }
    }

    fn port(&self, vm: usize) -> PortId {
        self.vms[vm].vm.port
    }

    fn send(&mut self, from: usize, count: usize) {
        let Vm { vm, sent, .. } = &mut self.vms[from];
        vm.completions();
        for _ in 0..count {
            *sent += u64::from(vm.send(&frame(vm.port, PortId(0), 100, *sent)));
        }
    }

    fn transmit(&mut self, from: usize) {
        self.bench.transmit(&self.vms[from].vm);
    }

    fn idle(&mut self) -> bool {
        self.bench.switch.idle(&mut self.idle, &self.bench.host).more
    }

    /// Time passes, and the timers that are due by then fire, each at its time.
    fn pass(&mut self, time: Duration) {
        let end = self.bench.host.now.get() + time.as_nanos() as u64;
        loop {
            let next = self.bench.host.armed.borrow().iter().map(|(_, at)| at.0).min();
            let next = next.filter(|at| *at <= end);
            self.bench.host.now.set(next.unwrap_or(end).max(self.bench.host.now.get()));
            for port in self.bench.host.take_due() {
                let Bench { switch, cx, host, .. } = &mut self.bench;
                switch.expire(cx, host, port);
            }
            self.react();
            if next.is_none() {
                return;
            }
        }
    }

    /// VMs that are told, or look by themselves, act; until nobody has more to do.
    fn react(&mut self) {
        loop {
            for port in self.bench.host.take_notified() {
                self.vms.iter_mut().filter(|vm| vm.vm.port == port).for_each(|vm| vm.interrupted = true);
            }
            let Some(at) =
                self.vms.iter().position(|vm| vm.interrupted || (!vm.sleeps && vm.vm.rx.has_used()))
            else {
                return;
            };
            self.look(at);
        }
    }

    /// What a VM does when it looks: its hypercall, if frames come by that, and its rings.
    fn look(&mut self, at: usize) {
        let Vm { vm, sleeps, interrupted, received, .. } = &mut self.vms[at];
        *interrupted = false;
        let Bench { switch, cx, .. } = &mut self.bench;
        if !switch.config().optimisations.preemptive_copy && switch.frames_wait(cx, vm.port) {
            self.bench.receive(vm);
        }
        loop {
            *received += vm.take_received().len() as u64;
            if vm.post(u16::MAX) {
                self.bench.receive(vm);
            }
            if !*sleeps {
                vm.rx.disable_interrupts();
                return;
            }
            if !vm.rx.enable_interrupts() {
                return;
            }
        }
    }

    /// Entries by senders, receivers, idle cores and timers; notifications and copies of the VM `of`.
    fn costs(&self, of: usize) -> [u64; 6] {
        let mut sum = self.bench.switch.activity(CoreId(0));
        sum.add(&self.bench.switch.activity(IDLE));
        let rx = self.bench.counters(self.port(of)).rx;
        [
            sum.transmit_entries,
            sum.receive_entries,
            sum.idle_entries,
            sum.timer_entries,
            rx.notifications,
            rx.copies,
        ]
    }
}

/// 100 frames in 10 bursts, 10 µs apart, to a VM that runs and is interrupted for what comes; a core is idle. All
/// that varies is who does what and how often.
#[test]
fn each_combination_costs_what_it_should() {
    let costs = |optimisations| {
        let pace = Pace { delay: Duration::from_micros(50), count: 64 };
        let mut world = World::new(SwitchConfig { pace, ..config(optimisations) }, 2);
        let (a, b) = (world.port(0), world.port(1));
        world.bench.connect(a, &[Action::Output(b)]);
        world.bench.host.states.borrow_mut().insert(b, RunState::Running(CoreId(0)));
        world.bench.host.idle.set(CoreSet::EMPTY.with(IDLE));
        world.pass(Duration::from_millis(10));
        for _ in 0..10 {
            world.send(0, 10);
            world.transmit(0);
            for core in world.bench.host.take_woken() {
                assert_eq!(core, IDLE);
                assert!(!world.idle());
            }
            world.react();
            world.pass(Duration::from_micros(10));
        }
        world.pass(Duration::from_micros(50));
        assert_eq!(world.vms[1].received, 100);
        world.bench.check_ledger();
        world.costs(1)
    };
    let expected = |optimisations: Optimisations| {
        let Optimisations { preemptive_copy, batching, offload } = optimisations;
        // Batching: the first burst at once, those of the next 50 µs by the timer, and so on.
        let (notifications, timers) = if batching { (3, 2) } else { (10, 0) };
        // In the basic form each notification makes the VM enter.
        let receive_entries = if preemptive_copy || offload { 0 } else { notifications };
        [10, receive_entries, if offload { 10 } else { 0 }, timers, notifications, 100]
    };
    for optimisations in combinations() {
        assert_eq!(costs(optimisations), expected(optimisations), "{optimisations:?}");
    }
}

/// Without an idle core, offload changes nothing; and a blocked VM is told at once, whatever is on.
#[test]
fn a_blocked_vm_is_told_at_once() {
    for optimisations in combinations() {
        let mut world = World::new(config(optimisations), 2);
        let (a, b) = (world.port(0), world.port(1));
        world.bench.connect(a, &[Action::Output(b)]);
        for round in 1..=5 {
            world.send(0, 1);
            world.transmit(0);
            world.react();
            assert_eq!(world.vms[1].received, round, "{optimisations:?}");
        }
        let receive_entries = if optimisations.preemptive_copy { 0 } else { 5 };
        assert_eq!(world.costs(1), [5, receive_entries, 0, 0, 5, 5], "{optimisations:?}");
    }
}

/// Holds that a count of frames ends the delay, and that the VM's own next entry does.
#[test]
fn a_count_or_the_next_entry_end_the_delay() {
    for preemptive_copy in [false, true] {
        let optimisations = Optimisations { preemptive_copy, batching: true, offload: false };
        let pace = Pace { delay: Duration::from_micros(50), count: 8 };
        let mut world = World::new(SwitchConfig { pace, ..config(optimisations) }, 2);
        let (a, b) = (world.port(0), world.port(1));
        world.bench.connect(a, &[Action::Output(b)]);
        world.bench.host.states.borrow_mut().insert(b, RunState::Preempted);
        world.pass(Duration::from_millis(10));
        let send = |world: &mut World, count, received| {
            world.send(0, count);
            world.transmit(0);
            world.react();
            assert_eq!(world.vms[1].received, received);
        };
        send(&mut world, 1, 1);
        send(&mut world, 7, 1);
        send(&mut world, 1, 9);
        send(&mut world, 2, 9);
        world.transmit(1);
        world.react();
        assert_eq!(world.vms[1].received, 11);
    }
}

/// Holds that a driver which masks its interrupts has its frames at once, without a timer, an entry or an interrupt.
#[test]
fn a_polling_driver_waits_for_nothing() {
    let optimisations = Optimisations { offload: false, ..Optimisations::ALL };
    let mut world = World::new(config(optimisations), 2);
    let (a, b) = (world.port(0), world.port(1));
    world.bench.connect(a, &[Action::Output(b)]);
    world.bench.host.states.borrow_mut().insert(b, RunState::Running(CoreId(0)));
    world.vms[1].sleeps = false;
    world.look(1);
    for round in 1..=20 {
        world.send(0, 1);
        world.transmit(0);
        world.react();
        assert_eq!(world.vms[1].received, round);
    }
    assert_eq!(world.costs(1), [20, 0, 0, 0, 0, 20]);
    assert!(world.bench.host.armed.borrow().is_empty());
}

#[test]
fn an_idle_core_near_the_vm_is_woken_and_others_in_turn() {
    let near = |cores: [u16; 2]| cores.iter().fold(CoreSet::EMPTY, |set, core| set.with(CoreId(*core)));
    // The VMs live on cores 0 and 1, by their numbers.
    let topology = offload::Topology::new([near([0, 3]), near([1, 4])]);
    let optimisations = Optimisations { offload: true, ..Optimisations::NONE };
    let mut world = World::new(SwitchConfig { topology, ..config(optimisations) }, 2);
    let mut woken = |idle: &[u16], from| {
        world.bench.host.idle.set(idle.iter().fold(CoreSet::EMPTY, |set, core| set.with(CoreId(*core))));
        world.transmit(from);
        world.bench.host.take_woken().iter().map(|core| core.0).collect::<Vec<_>>()
    };
    assert_eq!((woken(&[3, 4], 0), woken(&[3, 4], 1)), (vec![3], vec![4]));
    let turns: Vec<_> = (0..4).flat_map(|_| woken(&[5, 6], 0)).collect();
    assert!(turns == [5, 6, 5, 6] || turns == [6, 5, 6, 5], "{turns:?}");
    assert_eq!(woken(&[0], 1), [], "a core is not left work by itself");
    assert_eq!(woken(&[], 0), []);
}

/// Holds that an idle core's entry ends within its budget and says so, and that all is done in the end.
#[test]
fn an_idle_core_keeps_to_its_budget() {
    const PAIRS: usize = 24;
    const FRAMES: usize = 64;
    let optimisations = Optimisations { offload: true, ..Optimisations::NONE };
    let mut world = World::new(SwitchConfig { max_ports: 2 * PAIRS, ..config(optimisations) }, 2 * PAIRS);
    world.bench.host.idle.set(CoreSet::EMPTY.with(IDLE));
    for pair in 0..PAIRS {
        let to = world.port(PAIRS + pair);
        world.bench.connect(world.port(pair), &[Action::Output(to)]);
        world.send(pair, FRAMES);
        world.transmit(pair);
    }
    let mut entries = 0;
    loop {
        let entered = world.bench.switch.idle(&mut world.idle, &world.bench.host);
        entries += 1;
        assert!(entered.frames <= 1024 + FRAMES as u32, "{entered:?}");
        if !entered.more {
            break;
        }
    }
    assert!(entries > 1);
    world.react();
    assert!(world.vms[PAIRS..].iter().all(|vm| vm.received == FRAMES as u64));
}

/// A host on which whoever is told acts at once, on another core, while the one that tells is still in its call.
struct Prompt {
    switch: Arc<Switch>,
    other: RefCell<CoreContext>,
    idle: Cell<CoreSet>,
    copied: Cell<u32>,
}

impl Host for Prompt {
    fn now(&self) -> Nanos {
        Nanos(1_000_000_000)
    }
    fn run_state(&self, _: PortId) -> RunState {
        RunState::Blocked
    }
    fn home(&self, _: PortId) -> CoreId {
        CoreId(0)
    }
    fn notify(&self, vm: PortId, _: Ring) {
        let entered = self.switch.receive(&mut self.other.borrow_mut(), self, vm);
        self.copied.set(self.copied.get() + entered.copied);
    }
    fn idle_cores(&self) -> CoreSet {
        self.idle.get()
    }
    fn wake(&self, _: CoreId) {
        let entered = self.switch.idle(&mut self.other.borrow_mut(), self);
        self.copied.set(self.copied.get() + entered.copied);
    }
    fn arm(&self, _: PortId, _: Nanos) {}
}

/// Holds that whoever is notified or woken finds no claim held by the core that did it.
#[test]
fn who_is_told_finds_nothing_held() {
    for (idle, offload) in [(CoreSet::EMPTY, false), (CoreSet::EMPTY.with(IDLE), true)] {
        let optimisations = Optimisations { offload, ..Optimisations::NONE };
        let World { mut bench, idle: other, mut vms } = World::new(config(optimisations), 2);
        let (a, b) = (vms[0].vm.port, vms[1].vm.port);
        bench.connect(a, &[Action::Output(b)]);
        // The idle core finds its VM masked: it is not to be told from within.
        vms[1].vm.rx.disable_interrupts();
        assert!((0..10).all(|number| vms[0].vm.send(&frame(a, b, 100, number))));
        let switch = bench.switch.clone();
        let host = Prompt { switch, other: RefCell::new(other), idle: Cell::new(idle), copied: Cell::new(0) };
        bench.switch.transmit(&mut bench.cx, &host, a);
        assert_eq!(host.copied.get(), 10);
    }
}

/// A host whose VM comes for what waits just when another core is deciding whether to notify it of that.
struct Crossing<'a> {
    host: &'a ScriptedHost,
    switch: &'a Switch,
    vm: RefCell<CoreContext>,
}

impl Host for Crossing<'_> {
    fn now(&self) -> Nanos {
        self.host.now()
    }
    fn run_state(&self, vm: PortId) -> RunState {
        self.switch.receive(&mut self.vm.borrow_mut(), self.host, vm);
        RunState::Blocked
    }
    fn home(&self, vm: PortId) -> CoreId {
        self.host.home(vm)
    }
    fn notify(&self, vm: PortId, ring: Ring) {
        self.host.notify(vm, ring);
    }
    fn idle_cores(&self) -> CoreSet {
        self.host.idle_cores()
    }
    fn wake(&self, core: CoreId) {
        self.host.wake(core);
    }
    fn arm(&self, vm: PortId, at: Nanos) {
        self.host.arm(vm, at);
    }
}

/// Holds that a VM that is notified of what it has just taken enters all the same, and so is notified of the next.
#[test]
fn who_is_told_of_nothing_says_that_it_looked() {
    let optimisations = Optimisations { batching: true, ..Optimisations::NONE };
    let World { mut bench, idle: context, mut vms } = World::new(config(optimisations), 2);
    let (a, b) = (vms[0].vm.port, vms[1].vm.port);
    bench.connect(a, &[Action::Output(b)]);
    bench.host.advance(Duration::from_secs(1));
    let switch = bench.switch.clone();
    vms[0].vm.send(&frame(a, b, 100, 0));
    let crossing = Crossing { host: &bench.host, switch: &switch, vm: RefCell::new(context) };
    switch.transmit(&mut bench.cx, &crossing, a);
    assert_eq!((vms[1].vm.take_received().len(), bench.host.take_notified()), (1, vec![b]));

    assert!(switch.frames_wait(&mut bench.cx, b), "it has not said that it looked");
    bench.receive(&vms[1].vm);
    assert!(!switch.frames_wait(&mut bench.cx, b));
    vms[0].vm.send(&frame(a, b, 100, 1));
    bench.transmit(&vms[0].vm);
    assert_eq!(bench.host.take_notified(), [b]);
}

/// Two VMs flood a third, whose driver takes so many frames at a time.
#[test]
fn who_floods_a_receiver_gets_no_more_than_its_share() {
    for optimisations in combinations() {
        for (a, b, taken) in [(1, 1, 16), (3, 1, 16), (1, 4, 8), (7, 2, 16)] {
            let mut world = World::new(SwitchConfig { rx_queue_frames: 64, ..config(optimisations) }, 2);
            let config = VmConfig { posted: taken, ..VmConfig::default() };
            let mut c = world.bench.vm_with("c", config);
            for vm in 0..2 {
                world.bench.connect(world.port(vm), &[Action::Output(c.port)]);
            }
            let mut received = [0_u32; 2];
            for _ in 0..150 {
                for (vm, entries) in [(0, a), (1, b)] {
                    for _ in 0..entries {
                        world.send(vm, 64);
                        world.transmit(vm);
                    }
                }
                for (_, frame) in c.take_received() {
                    received[usize::from(frame[11])] += 1;
                }
                c.post(taken);
                world.bench.receive(&c);
            }
            let [from_a, from_b] = received;
            assert!(from_a + from_b >= 149 * u32::from(taken), "the receiver waits for nobody");
            let ratio = f64::from(from_a) / f64::from(from_b);
            assert!((0.9..1.1).contains(&ratio), "{optimisations:?}, {a} to {b} entries: {received:?}");
            world.bench.check_ledger();
        }
    }
}

#[derive(Clone, Debug)]
enum Operation {
    Send { from: usize, count: usize },
    Transmit(usize),
    Receive(usize),
    Look(usize),
    Idle,
    Pass(u64),
    State { vm: usize, state: u8 },
    Sleeps { vm: usize, sleeps: bool },
    IdleCore(bool),
}

const VMS: usize = 3;

fn operation() -> impl Strategy<Value = Operation> {
    use Operation::*;
    let vm = 0..VMS;
    prop_oneof![
        8 => (vm.clone(), 1..20_usize).prop_map(|(from, count)| Send { from, count }),
        8 => vm.clone().prop_map(Transmit),
        2 => vm.clone().prop_map(Receive),
        4 => vm.clone().prop_map(Look),
        2 => Just(Idle),
        4 => (0..200_u64).prop_map(Pass),
        4 => (vm.clone(), 0..3_u8).prop_map(|(vm, state)| State { vm, state }),
        2 => (vm, any::<bool>()).prop_map(|(vm, sleeps)| Sleeps { vm, sleeps }),
        2 => any::<bool>().prop_map(IdleCore),
    ]
}

fn apply(world: &mut World, operation: &Operation) {
    match *operation {
        Operation::Send { from, count } => world.send(from, count),
        Operation::Transmit(vm) => world.transmit(vm),
        Operation::Receive(vm) => {
            // It is awake, and looks at what its own entry brought without an interrupt.
            world.bench.receive(&world.vms[vm].vm);
            world.look(vm);
        }
        Operation::Look(vm) => world.look(vm),
        Operation::Idle => drop(world.idle()),
        Operation::Pass(us) => world.pass(Duration::from_micros(us)),
        Operation::State { vm, state } => {
            let states = [RunState::Running(CoreId(0)), RunState::Preempted, RunState::Blocked];
            world.bench.host.states.borrow_mut().insert(world.port(vm), states[usize::from(state)]);
        }
        Operation::Sleeps { vm, sleeps } => {
            world.vms[vm].sleeps = sleeps;
            world.look(vm);
        }
        Operation::IdleCore(is_idle) => {
            let cores = if is_idle { CoreSet::EMPTY.with(IDLE) } else { CoreSet::EMPTY };
            world.bench.host.idle.set(cores);
        }
    }
    world.bench.check_ledger();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    /// After anything at all, what the senders have kicked for arrives by timers alone, in bounded time: no VM enters
    /// unless it is interrupted, and no idle core comes, or but once, although one may have been woken.
    #[test]
    fn nothing_put_off_is_lost(
        operations in prop::collection::vec(operation(), 1..80),
        idle_comes: bool,
    ) {
        for optimisations in combinations() {
            let pace = Pace { delay: Duration::from_micros(50), count: 8 };
            let mut world = World::new(SwitchConfig { pace, ..config(optimisations) }, VMS);
            for vm in 0..VMS {
                let others = (0..VMS).filter(|other| *other != vm).map(|other| Action::Output(world.port(other)));
                let others: Vec<_> = others.collect();
                world.bench.connect(world.port(vm), &others);
            }
            for operation in &operations {
                apply(&mut world, operation);
            }
            (0..VMS).for_each(|vm| world.transmit(vm));
            if idle_comes {
                world.idle();
            }
            world.pass(2 * HANDOVER_LIMIT + pace.delay);
            let sent: u64 = world.vms.iter().map(|vm| vm.sent).sum();
            for vm in &world.vms {
                let waits = world.bench.control.port(vm.vm.port).unwrap().waiting;
                assert_eq!((vm.received, waits), (sent - vm.sent, 0), "{optimisations:?}");
            }
            world.bench.check_ledger();
        }
    }
}
