//! Whole entries into the switch at the same time, in every order of their steps that needs few interruptions: no
//! frame and no wish is lost, no buffer comes back twice or never, and nothing that is used is freed.
//!
//! Built with `--cfg loom` only. Rings are no part of the model: an access there is one with the step before it.
#![cfg(loom)]

mod support;

use hyper_switch_dataplane::api::{Action, FlowId, FlowKey, FlowSpec, Match, Nanos, PortId, Verdict};
use hyper_switch_dataplane::host::{CoreId, CoreSet, Host, Ring, RunState};
use hyper_switch_dataplane::policy::Optimisations;
use hyper_switch_dataplane::{Control, CoreContext, Switch, SwitchConfig};
use loom::model::Builder;
use loom::sync::{Condvar, Mutex};
use loom::thread::JoinHandle;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use support::{TestVm, VmConfig, frame};

const PATIENCE: Duration = Duration::from_millis(10);

/// A VM's interrupt line.
#[derive(Default)]
struct Line {
    raised: Mutex<bool>,
    changed: Condvar,
}

impl Line {
    fn raise(&self) {
        *self.raised.lock().unwrap() = true;
        self.changed.notify_one();
    }

    /// Takes a pending interrupt.
    fn take(&self) -> bool {
        std::mem::take(&mut *self.raised.lock().unwrap())
    }

    /// Blocks until an interrupt comes. One that never comes is a deadlock, which the model checker reports.
    fn wait(&self) {
        let mut raised = self.raised.lock().unwrap();
        while !std::mem::take(&mut *raised) {
            raised = self.changed.wait(raised).unwrap();
        }
    }
}

/// A host with a clock that the model moves and timers that it lets fire. What is not modelled (clock, timers,
/// messages) is one step with what is.
struct ModelHost {
    /// Whether VMs are running, as far as the host says; otherwise they block.
    awake: bool,
    idle: CoreSet,
    /// Messages to the idle core that it has not answered.
    messages: AtomicU64,
    now: AtomicU64,
    lines: [Line; 3],
    armed: std::sync::Mutex<Vec<(PortId, Nanos)>>,
}

impl ModelHost {
    /// Moves the clock to the earliest timer and answers whose it is.
    fn next_timer(&self) -> Option<PortId> {
        let mut armed = self.armed.lock().unwrap();
        armed.sort_by_key(|(_, at)| std::cmp::Reverse(*at));
        let (vm, at) = armed.pop()?;
        self.now.fetch_max(at.0, Ordering::Relaxed);
        Some(vm)
    }
}

impl Host for ModelHost {
    fn now(&self) -> Nanos {
        Nanos(self.now.load(Ordering::Relaxed))
    }
    fn run_state(&self, _: PortId) -> RunState {
        if self.awake { RunState::Running(CoreId(0)) } else { RunState::Blocked }
    }
    fn home(&self, _: PortId) -> CoreId {
        CoreId(0)
    }
    fn notify(&self, vm: PortId, _: Ring) {
        self.lines[usize::from(vm.0)].raise();
    }
    fn idle_cores(&self) -> CoreSet {
        self.idle
    }
    fn wake(&self, core: CoreId) {
        assert!(self.idle.contains(core));
        self.messages.fetch_add(1, Ordering::Relaxed);
    }
    fn arm(&self, vm: PortId, at: Nanos) {
        self.armed.lock().unwrap().push((vm, at));
    }
}

/// The machine that a model runs on.
struct World {
    host: Arc<ModelHost>,
    switch: Arc<Switch>,
    control: Control,
    cores: Vec<CoreContext>,
}

impl World {
    fn new(cores: u16) -> World {
        World::with(cores, Optimisations::NONE, false)
    }

    fn with(cores: u16, optimisations: Optimisations, awake: bool) -> World {
        let (switch, control) = Switch::new(SwitchConfig {
            max_ports: 3,
            cores: cores.into(),
            max_flows: 1,
            max_masks: 1,
            rx_queue_frames: 2,
            held_frames: 1,
            upcalls: 1,
            patience: PATIENCE,
            optimisations,
            ..SwitchConfig::default()
        });
        let cores: Vec<_> = (0..cores).rev().map(|core| switch.core_context(CoreId(core)).unwrap()).collect();
        let host = Arc::new(ModelHost {
            awake,
            // The last core is idle; it enters as such alone.
            idle: CoreSet::EMPTY.with(cores[0].core()),
            messages: AtomicU64::new(0),
            // Some time after the start, so that nothing is ever overdue by accident.
            now: AtomicU64::new(1_000_000_000),
            lines: Default::default(),
            armed: Default::default(),
        });
        World { host, switch, control, cores }
    }

    /// A VM with so many receive buffers.
    fn vm(&mut self, posted: u16) -> TestVm {
        let config = VmConfig { slots: 2, rx_buffer_bytes: 2048, posted, ..VmConfig::default() };
        TestVm::attach(&mut self.control, "vm", config)
    }

    /// Has every packet go to `to`.
    fn connect(&mut self, to: PortId) {
        let matches = Match::new(FlowKey::ZERO, FlowKey::ZERO);
        let spec = FlowSpec { id: FlowId(1), matches, actions: [Action::Output(to)].into() };
        self.control.install(&spec, self.host.now()).unwrap();
    }

    /// Starts a core with a context and what it does.
    fn core<A: Send + 'static>(
        &mut self,
        run: impl FnOnce(&Switch, &mut CoreContext, &ModelHost) -> A + Send + 'static,
    ) -> JoinHandle<A> {
        let (switch, host) = (self.switch.clone(), self.host.clone());
        let mut cx = self.cores.pop().expect("a core for everyone");
        start(move || run(&switch, &mut cx, &host))
    }

    /// Lets timers fire until none is left.
    fn run_out(&mut self) {
        let cx = &mut self.cores[0];
        while let Some(vm) = self.host.next_timer() {
            self.switch.expire(cx, &*self.host, vm);
        }
    }

    /// Holds that nothing waits any more, and that what came is what went or was dropped.
    fn assert_settled(&self) {
        for port in self.control.ports() {
            assert_eq!((port.waiting, port.held, port.in_flight), (0, 0, 0), "{:?}", port.info);
            let counters = port.counters;
            let dropped = |drops: &[u64]| drops.iter().sum::<u64>();
            assert_eq!(counters.tx.frames, counters.tx.forwarded + dropped(&counters.tx_drops));
            assert_eq!(counters.rx.offered, counters.rx.frames + dropped(&counters.rx_drops));
        }
    }
}

/// Starts a thread with a stack for the switch; the model checker's own are small.
fn start<A: Send + 'static>(run: impl FnOnce() -> A + Send + 'static) -> JoinHandle<A> {
    loom::thread::Builder::new().stack_size(0x8000).spawn(run).unwrap()
}

/// Checks `model` in every order in which threads that could go on are interrupted at most `preemptions` times.
fn check(preemptions: usize, model: impl Fn() + Copy + Send + Sync + 'static) {
    let mut builder = Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.max_branches = 10_000;
    builder.check(move || start(model).join().unwrap());
}

/// Sends a frame in a hypercall of its own.
fn send(switch: &Switch, cx: &mut CoreContext, host: &ModelHost, vm: &mut TestVm, number: u64) {
    vm.completions();
    assert!(vm.send(&frame(vm.port, PortId(0), 60, number)));
    switch.transmit(cx, host, vm.port);
}

/// Receives so many frames, blocking while there are none.
fn receive(switch: &Switch, cx: &mut CoreContext, host: &ModelHost, vm: &mut TestVm, count: usize) {
    let mut frames = 0;
    loop {
        switch.receive(cx, host, vm.port);
        frames += vm.received().len();
        if frames == count {
            return;
        }
        host.lines[usize::from(vm.port.0)].wait();
    }
}

/// A receiver that blocks whenever it finds nothing, while frames come: it is woken for each, and the sender has its
/// buffers back, whoever has its transmit side when their copies are made.
///
/// Caught: no fence in `Entry::attend` or in `fill`, no second look at the queue there, a wish that is stored after
/// it, and buffers given back without word to who has the transmit side.
#[test]
fn a_receiver_is_woken_for_every_frame() {
    check(2, || {
        let mut world = World::new(3);
        let (mut a, mut b) = (world.vm(0), world.vm(2));
        world.connect(b.port);
        let sender = world.core(move |switch, cx, host| {
            send(switch, cx, host, &mut a, 1);
            send(switch, cx, host, &mut a, 2);
            a
        });
        let receiver = world.core(move |switch, cx, host| receive(switch, cx, host, &mut b, 2));
        receiver.join().unwrap();
        let mut a = sender.join().unwrap();
        a.completions();
        assert_eq!(a.outstanding(), 0, "every buffer has come back");
        world.assert_settled();
    });
}

/// Two senders at once, to a receiver that blocks.
#[test]
fn two_senders_wake_one_receiver() {
    check(1, || {
        let mut world = World::new(3);
        let (a, b, mut c) = (world.vm(0), world.vm(0), world.vm(2));
        world.connect(c.port);
        let senders = [a, b].map(|mut vm| {
            world.core(move |switch, cx, host| {
                send(switch, cx, host, &mut vm, 1);
                vm
            })
        });
        let receiver = world.core(move |switch, cx, host| receive(switch, cx, host, &mut c, 2));
        receiver.join().unwrap();
        for sender in senders {
            let mut vm = sender.join().unwrap();
            vm.completions();
            assert_eq!(vm.outstanding(), 0, "every buffer has come back");
        }
        world.assert_settled();
    });
}

/// A frame that comes while the timer for an earlier one fires, for a receiver that posts no more buffers: it has a
/// timer, too, and its buffer comes back when that has fired. The earlier one waits still, or was copied long since.
///
/// Caught: no fence in `Switch::expire` or `Entry::attend`, a timer's time cleared after what waits was looked at, or
/// not at all.
#[test]
fn no_frame_waits_without_a_timer() {
    for buffers in [0, 1] {
        check(3, move || send_while_the_timer_fires(buffers));
    }
}

fn send_while_the_timer_fires(buffers: u16) {
    let mut world = World::new(3);
    let (mut a, b) = (world.vm(0), world.vm(buffers));
    world.connect(b.port);
    send(&world.switch, &mut world.cores[0], &world.host, &mut a, 1);
    world.switch.receive(&mut world.cores[0], &*world.host, b.port);
    assert_eq!(world.host.next_timer(), Some(b.port));
    let timer = world.core(move |switch, cx, host| {
        switch.expire(cx, host, b.port);
    });
    let sender = world.core(move |switch, cx, host| {
        send(switch, cx, host, &mut a, 2);
        a
    });
    timer.join().unwrap();
    let mut a = sender.join().unwrap();
    world.run_out();
    a.completions();
    assert_eq!(a.outstanding(), 0, "every buffer has come back");
    world.assert_settled();
}

/// An idle core that serves everybody, beside the VMs' own hypercalls.
#[test]
fn an_idle_core_takes_nothing_away() {
    check(2, || {
        let mut world = World::new(4);
        let (mut a, mut b) = (world.vm(0), world.vm(2));
        world.connect(b.port);
        let idle = world.core(|switch, cx, host| {
            switch.idle(cx, host);
        });
        let sender = world.core(move |switch, cx, host| {
            send(switch, cx, host, &mut a, 1);
            a
        });
        let receiver = world.core(move |switch, cx, host| receive(switch, cx, host, &mut b, 1));
        idle.join().unwrap();
        receiver.join().unwrap();
        let mut a = sender.join().unwrap();
        a.completions();
        assert_eq!(a.outstanding(), 0, "every buffer has come back");
        world.assert_settled();
    });
}

/// A port that goes while frames are sent to it and copied for it: they are copied or dropped, and it is freed when
/// nobody can see it any more. Caught: a port that is drained or freed before its epoch has passed.
#[test]
fn a_port_that_goes_is_seen_by_nobody() {
    check(2, || {
        let mut world = World::new(3);
        let (mut a, b) = (world.vm(0), world.vm(2));
        world.connect(b.port);
        let sender = world.core(move |switch, cx, host| {
            send(switch, cx, host, &mut a, 1);
            a
        });
        let port = b.port;
        let receiver = world.core(move |switch, cx, host| {
            switch.receive(cx, host, port);
        });
        assert!(world.control.detach(port));
        // Drained, unlinked, freed: each as soon as it may be.
        for _ in 0..3 {
            world.control.reap(&mut world.cores[0], &*world.host);
        }
        receiver.join().unwrap();
        let mut a = sender.join().unwrap();
        while !world.control.reap(&mut world.cores[0], &*world.host).done {}
        a.completions();
        assert_eq!(a.outstanding(), 0, "every buffer has come back");
        assert!(world.control.port(port).is_none());
    });
}

/// A port that comes while frames are sent to it already: they are dropped, or find it whole. Caught: a relaxed store of
/// it.
#[test]
fn a_port_that_comes_is_seen_whole() {
    check(3, || {
        let mut world = World::new(2);
        let mut a = world.vm(0);
        world.connect(PortId(1));
        let sender = world.core(move |switch, cx, host| {
            send(switch, cx, host, &mut a, 1);
            a
        });
        let mut b = world.vm(2);
        assert_eq!(b.port, PortId(1));
        let mut a = sender.join().unwrap();
        let frames = fall_asleep(&world.switch, &mut world.cores[0], &world.host, &mut b);
        assert_eq!(frames as u64, world.control.port(b.port).unwrap().counters.rx.offered);
        a.completions();
        assert_eq!(a.outstanding(), 0, "every buffer has come back");
        world.assert_settled();
    });
}

/// A verdict that comes while the packet that it is for is given up, and while its sender sends another: each goes
/// its way once.
#[test]
fn a_verdict_finds_its_packet_or_none() {
    check(2, || {
        let mut world = World::new(4);
        let (mut a, b) = (world.vm(0), world.vm(2));
        send(&world.switch, &mut world.cores[0], &world.host, &mut a, 1);
        let upcall = world.control.next_upcall().expect("there is no flow");
        assert_eq!(world.host.next_timer(), Some(a.port));
        let (from, to) = (a.port, b.port);
        let timer = world.core(move |switch, cx, host| {
            switch.expire(cx, host, from);
        });
        let sender = world.core(move |switch, cx, host| {
            send(switch, cx, host, &mut a, 2);
            a
        });
        let verdict = Verdict::Execute([Action::Output(to)].into());
        world.control.resolve(&mut world.cores[0], &*world.host, upcall.id, verdict);
        timer.join().unwrap();
        let mut a = sender.join().unwrap();
        world.run_out();
        world.switch.receive(&mut world.cores[0], &*world.host, to);
        a.completions();
        assert_eq!(a.outstanding(), 0, "every buffer has come back");
        world.assert_settled();
    });
}

/// What a driver does before it sleeps: takes what is there, and asks for an interrupt for what comes.
fn fall_asleep(switch: &Switch, cx: &mut CoreContext, host: &ModelHost, vm: &mut TestVm) -> usize {
    let mut frames = 0;
    loop {
        switch.receive(cx, host, vm.port);
        frames += vm.received().len();
        if !vm.rx.enable_interrupts() {
            return frames;
        }
    }
}

/// With each combination of the optimisations: a sender, a receiver that falls asleep, the receiver's timer and the
/// idle core all at once. After that whatever was left waits for something that comes: an interrupt that was raised, a
/// message to the idle core, or a timer that is not that of its patience.
///
/// Caught: an interrupt that is put off without a timer, or not asked for again; a timer that does not deliver; work
/// that is left to an idle core without a note, or without a message and a timer.
fn lose_no_delivery(optimisations: Optimisations) {
    // Only of a VM that is awake batching puts anything off.
    let mut world = World::with(4, optimisations, optimisations.batching);
    let (mut a, mut b) = (world.vm(0), world.vm(2));
    world.connect(b.port);
    let (from, to) = (a.port, b.port);
    // One was delivered just now, so that the next may be put off.
    send(&world.switch, &mut world.cores[1], &world.host, &mut a, 1);
    let idle_serves = |world: &mut World| {
        while world.host.messages.swap(0, Ordering::Relaxed) > 0 {
            while world.switch.idle(&mut world.cores[0], &*world.host).more {}
        }
    };
    idle_serves(&mut world);
    world.host.lines[usize::from(to.0)].take();
    let mut frames = fall_asleep(&world.switch, &mut world.cores[1], &world.host, &mut b);
    let sender = world.core(move |switch, cx, host| {
        send(switch, cx, host, &mut a, 2);
        a
    });
    let receiver = world.core(move |switch, cx, host| {
        let frames = fall_asleep(switch, cx, host, &mut b);
        (b, frames)
    });
    let timer = world.core(move |switch, cx, host| {
        switch.expire(cx, host, to);
    });
    if optimisations.offload {
        world.switch.idle(&mut world.cores[0], &*world.host);
    }
    timer.join().unwrap();
    let mut a = sender.join().unwrap();
    let (mut b, more) = receiver.join().unwrap();
    frames += more;
    let start = world.host.now();
    while frames < 2 {
        idle_serves(&mut world);
        if world.host.lines[usize::from(to.0)].take() {
            frames += fall_asleep(&world.switch, &mut world.cores[0], &world.host, &mut b);
            continue;
        }
        let vm = world.host.next_timer().expect("a frame waits, so something comes");
        assert!(world.host.now().since(start) < PATIENCE, "it was not forgotten until its patience ended");
        world.switch.expire(&mut world.cores[0], &*world.host, vm);
    }
    world.run_out();
    idle_serves(&mut world);
    world.switch.transmit(&mut world.cores[0], &*world.host, from);
    a.completions();
    assert_eq!(a.outstanding(), 0, "every buffer has come back");
    world.assert_settled();
}

fn lose_no_delivery_with(preemptive_copy: bool) {
    for (batching, offload) in [(false, false), (true, false), (false, true), (true, true)] {
        let optimisations = Optimisations { preemptive_copy, batching, offload };
        check(2, move || lose_no_delivery(optimisations));
    }
}

#[test]
fn no_delivery_is_lost_where_the_receiver_copies() {
    lose_no_delivery_with(false);
}

#[test]
fn no_delivery_is_lost_with_preemptive_copy() {
    lose_no_delivery_with(true);
}
