//! The host as the switch sees it: [`Host`] on virtual cores.
//!
//! What a core tells others while it works (an interrupt, a message, a timer) is left here with the moment at which it came
//! to that, and carried out when its step is over or is put aside.

use crate::clock::{Account, Clock, PS};
use crate::memory::Memory;
use crate::prices::Prices;
use crate::random::Random;
use crate::scenario::{HostKind, Scenario};
use hyper_switch_dataplane::api::{Nanos, PortId};
use hyper_switch_dataplane::host::{CoreId, CoreSet, Host, Ring, RunState, Work};
use hyper_switch_dataplane::policy::offload::next_pause;
use std::cell::{Cell, RefCell};

/// What a task is known by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct TaskId(pub(crate) u16);

/// What a step does to others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Effect {
    /// A task has been signalled; if it was blocked it is to wake up: at once, if it is at home where it was signalled.
    Signal(TaskId, bool),
    /// An idle core is sent the message to work.
    Message(CoreId),
    /// A VM's timer is to fire then.
    Timer(PortId, Nanos),
    /// Somebody is to look for upcalls, and, if it is said, for ports that broke.
    Upcalls { faulted: bool },
}

/// The stream of random numbers that tells how entries vary.
const ENTRIES: u64 = 2 << 32;

/// Nobody has signalled.
const NEVER: u64 = u64::MAX;

/// The host.
pub(crate) struct SimHost {
    pub(crate) clock: Clock,
    pub(crate) prices: Prices,
    /// Of each task: since when a signal waits for it.
    signals: Vec<Cell<u64>>,
    states: Vec<Cell<RunState>>,
    homes: Vec<Cell<CoreId>>,
    /// When each task blocked last, in nanoseconds.
    blocked_ns: Vec<Cell<u64>>,
    /// The core that last copied for each VM.
    copiers: Vec<Cell<CoreId>>,
    idle: Cell<CoreSet>,
    effects: RefCell<Vec<(u64, Effect)>>,
    kind: HostKind,
    /// When each VM's timer is due.
    timers: Vec<Cell<u64>>,
    /// The task that lets timers fire, where it is one, and until when it sleeps; 0 while it is awake.
    timekeeper: TaskId,
    timekeeper_until_ns: Cell<u64>,
    /// How often each core is still to be passed over.
    passes: Vec<Cell<u32>>,
    /// Whoever comes to this time lets others go first.
    horizon_ns: Cell<u64>,
    pub(crate) memory: Memory,
    /// Guests read and write what they send and receive, not only its headers.
    touches_payload: bool,
    /// By how much entries vary, and the stream that tells how.
    jitter: f64,
    random: RefCell<Random>,
    /// Cores that were put aside in the midst of the switch, and the one that is there.
    pub(crate) inside: Cell<usize>,
    /// Somebody reads all of the frames that guests take.
    pub(crate) copies_payload: bool,
    /// VMs that the switch named since this was last asked, if anybody asks.
    touched: Option<RefCell<Vec<u16>>>,
}

impl SimHost {
    /// A host of so many tasks, whose first are the VMs. The next is the timekeeper, where that is a task.
    ///
    /// If the run is checked, it notes which VMs the switch names.
    pub(crate) fn new(scenario: &Scenario, tasks: usize) -> SimHost {
        let prices = Prices::new(&scenario.costs, scenario.machine);
        let vms = scenario.vms.len();
        // One core more: the control plane's.
        let cores = usize::from(prices.machine.cores) + 1;
        SimHost {
            clock: Clock::new(cores),
            signals: vec![Cell::new(NEVER); tasks],
            states: vec![Cell::new(RunState::Blocked); tasks],
            homes: vec![Cell::default(); tasks],
            blocked_ns: vec![Cell::default(); tasks],
            copiers: vec![Cell::default(); tasks],
            idle: Cell::new(CoreSet::EMPTY),
            effects: RefCell::new(Vec::with_capacity(64)),
            kind: scenario.host,
            timers: vec![Cell::new(NEVER); vms],
            timekeeper: TaskId(vms as u16),
            timekeeper_until_ns: Cell::new(0),
            passes: vec![Cell::new(0); cores],
            horizon_ns: Cell::new(NEVER),
            memory: Memory::new(prices.memory_byte_ns),
            touches_payload: scenario.socket_copies,
            jitter: scenario.jitter,
            random: RefCell::new(Random::new(scenario.seed, ENTRIES)),
            prices,
            inside: Cell::new(0),
            copies_payload: scenario.verifies,
            touched: scenario.verifies.then(RefCell::default),
        }
    }

    /// Notes that something happened at a VM's port.
    #[inline]
    pub(crate) fn touch(&self, vm: PortId) {
        if let Some(touched) = &self.touched {
            touched.borrow_mut().push(vm.0);
        }
    }

    /// The VMs that were touched since this was last called, each once.
    pub(crate) fn take_touched(&self, into: &mut Vec<u16>) {
        into.clear();
        if let Some(touched) = &self.touched {
            into.append(&mut touched.borrow_mut());
        }
        into.sort_unstable();
        into.dedup();
    }

    /// What steps did to others since this was last called, in the order in which they did it.
    pub(crate) fn take_effects(&self, into: &mut Vec<(u64, Effect)>) {
        into.append(&mut self.effects.borrow_mut());
    }

    /// Has `effect` take place now.
    pub(crate) fn affect(&self, effect: Effect) {
        let now_ns = self.clock.now().0;
        self.effects.borrow_mut().push((now_ns, effect));
        // What comes of it has to be known before time goes on.
        self.horizon_ns.set(self.horizon_ns.get().min(now_ns));
    }

    /// Something happens at this time: nobody goes on beyond it before that.
    pub(crate) fn set_horizon(&self, next_ns: Option<u64>) {
        self.horizon_ns.set(next_ns.unwrap_or(NEVER));
    }

    /// Whether the core that is at work has come to where others go first.
    #[inline]
    pub(crate) fn is_ahead(&self) -> bool {
        self.clock.now().0 > self.horizon_ns.get()
    }

    pub(crate) fn set_state(&self, task: TaskId, state: RunState) {
        let task = usize::from(task.0);
        self.states[task].set(state);
        if let RunState::Running(core) = state {
            self.homes[task].set(core);
        }
    }

    /// A task blocks at this time.
    pub(crate) fn block(&self, task: TaskId, now_ns: u64) {
        self.set_state(task, RunState::Blocked);
        self.blocked_ns[usize::from(task.0)].set(now_ns);
    }

    /// Whether the core of a task that blocks is still about to fall asleep.
    fn is_drowsy(&self, task: TaskId, now_ns: u64) -> bool {
        let since_ns = self.blocked_ns[usize::from(task.0)].get();
        now_ns.saturating_sub(since_ns) * PS < self.prices.fall_asleep
    }

    /// From now, when it is notified on another core than its own, until a task begins to be dispatched.
    pub(crate) fn wake_latency_ns(&self, task: TaskId, now_ns: u64) -> u64 {
        let Prices { wake_latency, wake_latency_soon, .. } = self.prices;
        (if self.is_drowsy(task, now_ns) { wake_latency_soon } else { wake_latency }) / PS
    }

    pub(crate) fn set_home(&self, task: TaskId, core: CoreId) {
        self.homes[usize::from(task.0)].set(core);
    }

    pub(crate) fn home_of(&self, task: TaskId) -> CoreId {
        self.homes[usize::from(task.0)].get()
    }

    pub(crate) fn is_blocked(&self, task: TaskId) -> bool {
        self.states[usize::from(task.0)].get() == RunState::Blocked
    }

    pub(crate) fn copier(&self, vm: u16) -> CoreId {
        self.copiers[usize::from(vm)].get()
    }

    pub(crate) fn set_copier(&self, vm: u16, core: CoreId) {
        self.copiers[usize::from(vm)].set(core);
    }

    fn vms(&self) -> impl Iterator<Item = PortId> + use<> {
        (0..self.timers.len() as u16).map(PortId)
    }

    /// Takes the timer of a VM, if it is due.
    pub(crate) fn take_timer(&self, vm: PortId, now_ns: u64) -> bool {
        let at = &self.timers[usize::from(vm.0)];
        at.get() <= now_ns && at.replace(NEVER) <= now_ns
    }

    /// Says which cores are idle.
    pub(crate) fn set_idle(&self, core: CoreId, is_idle: bool) {
        let idle = self.idle.get();
        self.idle.set(if is_idle { idle.with(core) } else { idle.without(core) });
    }

    /// Signals a task, which costs so much if it is blocked and so much if it is not, or was signalled already.
    pub(crate) fn signal(&self, task: TaskId, blocked_ps: u64, awake_ps: u64) {
        let signal = &self.signals[usize::from(task.0)];
        let was_signalled = signal.get() != NEVER;
        signal.set(signal.get().min(self.clock.now().0));
        if was_signalled {
            return self.clock.charge(Account::Notifying, awake_ps);
        }
        // Its core needs no message if it is this one.
        let is_here = self.home_of(task) == self.clock.core();
        self.affect(Effect::Signal(task, is_here));
        let price = match self.is_blocked(task) {
            false => awake_ps,
            true if is_here => blocked_ps.min(self.prices.notify_here),
            true if self.is_drowsy(task, self.clock.now().0) => blocked_ps.min(self.prices.notify_soon),
            true => blocked_ps,
        };
        self.clock.charge(Account::Notifying, price);
    }

    /// Takes the timers that are due at `now_ns`: answers whose they are. The timekeeper, if there is one, is awake.
    pub(crate) fn due_timers(&self, now_ns: u64) -> Vec<PortId> {
        self.timekeeper_until_ns.set(0);
        self.vms().filter(|vm| self.take_timer(*vm, now_ns)).collect()
    }

    /// The timekeeper heard that it was signalled, if it was.
    pub(crate) fn take_timekeeper_signal(&self) -> bool {
        self.take_signal(self.timekeeper)
    }

    /// The timekeeper goes to sleep: answers until when, if any timer is armed.
    pub(crate) fn sleep_until(&self) -> Option<u64> {
        let next_ns = self.timers.iter().map(Cell::get).min().unwrap_or(NEVER);
        self.timekeeper_until_ns.set(next_ns);
        (next_ns != NEVER).then_some(next_ns)
    }

    /// An idle core is done with the work that it was woken for: that was worth so much, and it took so long to come.
    pub(crate) fn weigh(&self, core: CoreId, pause: u32, wake_ns: u64, work_ns: u64) -> u32 {
        let pause = next_pause(pause, wake_ns, work_ns);
        self.passes[usize::from(core.0)].set(pause);
        pause
    }

    fn is_passed_over(&self, core: CoreId) -> bool {
        let passes = &self.passes[usize::from(core.0)];
        let is_passed_over = passes.get() > 0;
        passes.set(passes.get().saturating_sub(1));
        is_passed_over
    }

    /// Since when a signal waits for a task, if one does.
    pub(crate) fn signalled(&self, task: TaskId) -> Option<u64> {
        Some(self.signals[usize::from(task.0)].get()).filter(|at| *at != NEVER)
    }

    /// Takes the signal of a task, if there has been one.
    pub(crate) fn take_signal(&self, task: TaskId) -> bool {
        let signal = &self.signals[usize::from(task.0)];
        let came = signal.get() <= self.clock.now().0;
        if came {
            signal.set(NEVER);
        }
        came
    }

    /// A way into the hypervisor and back. What it takes varies a little from one time to the next.
    pub(crate) fn pay_entry(&self) {
        let unit = self.random.borrow_mut().unit();
        let factor = 1.0 + self.jitter * (2.0 * unit - 1.0);
        self.clock.charge(Account::Entry, (self.prices.hypervisor_entry as f64 * factor) as u64);
    }

    /// Takes the interrupt of a VM, if one is pending, which costs what it costs.
    pub(crate) fn take_interrupt(&self, vm: u16) -> bool {
        let came = self.take_signal(TaskId(vm));
        if came {
            self.clock.charge(Account::Entry, self.prices.interrupt);
        }
        came
    }

    /// What it costs to look at something that the core `from` has written.
    pub(crate) fn lines(&self, from: CoreId) -> u64 {
        if from == self.clock.core() { 0 } else { self.prices.line }
    }

    /// Copies so many bytes that lie in the cache of `from`.
    pub(crate) fn copy(&self, account: Account, from: CoreId, bytes: usize) {
        self.copy_through(account, from, bytes, 1.0);
    }

    /// As [`SimHost::copy`], to or from a kernel's own packet.
    pub(crate) fn copy_cold(&self, from: CoreId, bytes: usize) {
        self.copy_through(Account::Copying, from, bytes, self.prices.cold_copy);
    }

    fn copy_through(&self, account: Account, from: CoreId, bytes: usize, traffic: f64) {
        let alone_ps = self.prices.copy(self.prices.machine.locality(self.clock.core(), from), bytes);
        let slowdown = self.memory.slowdown(self.clock.began_ns(), bytes as f64 * traffic);
        self.clock.charge(account, (alone_ps as f64 * traffic * slowdown) as u64);
    }
}

impl Host for SimHost {
    fn now(&self) -> Nanos {
        self.clock.now()
    }

    fn run_state(&self, vm: PortId) -> RunState {
        let task = usize::from(vm.0);
        match self.states[task].get() {
            // It was woken, and waits for a core.
            RunState::Blocked if self.signals[task].get() != NEVER => RunState::Preempted,
            state => state,
        }
    }

    fn home(&self, vm: PortId) -> CoreId {
        self.homes[usize::from(vm.0)].get()
    }

    fn notify(&self, vm: PortId, _ring: Ring) {
        self.touch(vm);
        self.signal(TaskId(vm.0), self.prices.notify, self.prices.notify_awake);
    }

    fn idle_cores(&self) -> CoreSet {
        let idle = self.idle.get();
        match self.kind {
            HostKind::Hypervisor => idle,
            // As the daemon has it: a core of a VM that is awake is about to be used, and as many VMs as there are cores
            // will use all of them.
            HostKind::Threads => {
                let awake = || self.vms().filter(|vm| self.run_state(*vm) != RunState::Blocked);
                if idle.is_empty() || awake().count() >= usize::from(self.prices.machine.cores) {
                    return CoreSet::EMPTY;
                }
                let idle = awake().map(|vm| self.home(vm)).fold(idle, CoreSet::without);
                let passed = idle.iter().filter(|core| self.is_passed_over(*core));
                passed.fold(idle, CoreSet::without)
            }
        }
    }

    fn wake(&self, core: CoreId) {
        // Who is woken has work, and is not asked again.
        self.set_idle(core, false);
        self.affect(Effect::Message(core));
        let price = match self.kind {
            HostKind::Hypervisor => self.prices.notify_awake,
            // An idle worker is woken as any thread.
            HostKind::Threads => self.prices.notify,
        };
        self.clock.charge(Account::Notifying, price);
    }

    fn arm(&self, vm: PortId, at: Nanos) {
        self.touch(vm);
        let timer = &self.timers[usize::from(vm.0)];
        if at.0 >= timer.get() {
            return;
        }
        timer.set(at.0);
        match self.kind {
            HostKind::Hypervisor => self.affect(Effect::Timer(vm, at)),
            HostKind::Threads => {
                if at.0 < self.timekeeper_until_ns.get() {
                    self.signal(self.timekeeper, self.prices.notify, self.prices.notify_awake);
                }
            }
        }
    }

    fn spent(&self, work: Work) {
        let Prices { switch_frame, flow_miss, copy_frame, .. } = self.prices;
        match work {
            Work::Switched { from, frames } => {
                self.touch(from);
                // The ring's index, and a line of each frame.
                let lines = (u64::from(frames) + 1) * self.lines(self.home(from));
                self.clock.charge(Account::Switching, u64::from(frames) * switch_frame + lines);
            }
            Work::Completed { of, .. } => {
                let lines = self.lines(self.home(of));
                self.clock.charge(Account::Copying, self.prices.complete + lines);
            }
            Work::Missed { from } => {
                self.touch(from);
                self.clock.charge(Account::Switching, flow_miss);
            }
            Work::Copied { from, to, bytes } => {
                self.touch(from);
                self.touch(to);
                self.set_copier(to.0, self.clock.core());
                self.clock.charge(Account::Copying, copy_frame);
                if self.touches_payload {
                    self.copy(Account::Copying, self.home(from), bytes as usize);
                } else {
                    // What nobody touches stays in the cache of whoever copies it; headers come from elsewhere.
                    self.copy(Account::Copying, self.clock.core(), bytes as usize);
                    let lines = self.lines(self.home(from)) + self.lines(self.home(to));
                    self.clock.charge(Account::Copying, lines);
                }
            }
        }
    }
}
