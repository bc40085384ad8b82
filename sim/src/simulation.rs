//! The simulation: cores run tasks in steps, in one order of events.
//!
//! ```text
//!   a core gives a task its turn ──> a step: real code works at once, and time is charged for what it did
//!          ^                                            |
//!          |                                            v
//!   the step's end, that much later  <── effects on others: signals, messages, timers, each at its moment
//! ```
//!
//! In the hypervisor's switch a step's effects come one by one, each at its time: where others have something to do
//! before, the step is put aside, in the midst of the code (`fiber`). So cores that are in the switch at once meet there
//! as on a real machine. With the other architectures, whose switches are models, a step has all of its effects when it begins.
//!
//! A task gives up its core between steps only, unless the scheduler takes it at once: a VM's step is then broken off where it
//! was put aside, and goes on when the VM has a core again.

use crate::arch::driver_domain::DriverDomain;
use crate::arch::entrance::{Pause, Seat};
use crate::arch::hyper_switch::HyperSwitch;
use crate::arch::vhost::Vhost;
use crate::arch::{Fabric, Shift, Way};
use crate::check::{Broken, Violation};
use crate::clock::{ACCOUNTS, Account};
use crate::event::Events;
use crate::fiber::Fiber;
use crate::guest::program::Score;
use crate::guest::{Guest, GuestConfig, Step};
use crate::host::{Effect, SimHost, TaskId};
use crate::memory::MemoryBook;
use crate::random::Random;
use crate::scenario::{Arch, HostKind, Latency, Outcome, Scenario, ScenarioError, VmOutcome};
use crate::scheduler::Scheduler;
use crate::trace::Trace;
use crate::trial::{Setup, Trial};
use hdrhistogram::Histogram;
use hyper_switch_dataplane::api::{Nanos, PortId};
use hyper_switch_dataplane::host::{CoreId, RunState};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io::Write;
use std::rc::Rc;

/// What happens.
#[derive(Clone, Copy, Debug)]
enum Event {
    /// A core's step is over, if it is still this one.
    StepEnd(CoreId, u32),
    /// A core's step goes on, likewise.
    GoOn(CoreId, u32),
    /// A task that was blocked is to be ready; if it sleeps, if it is still this sleep.
    Wake(TaskId),
    /// A task that blocked until now, if it is still this time.
    Alarm(TaskId, u32),
    /// The message to a core that was idle arrives.
    Message(CoreId),
    /// A VM's timer fires, if none has earlier.
    Timer(PortId),
    /// The control plane's answer comes.
    ControlPlane,
    /// The warm-up is over.
    Measure,
    /// Something is done from outside, of the list of a trial.
    Deed(u32),
    /// VMs that were disconnected may be gone.
    Reap,
}

impl Event {
    /// Two words that tell events apart.
    fn words(&self) -> [u64; 2] {
        match *self {
            Event::StepEnd(core, step) => [1 << 32 | u64::from(core.0), step.into()],
            Event::Wake(task) => [2 << 32 | u64::from(task.0), 0],
            Event::Alarm(task, sleep) => [3 << 32 | u64::from(task.0), sleep.into()],
            Event::Message(core) => [4 << 32 | u64::from(core.0), 0],
            Event::Timer(vm) => [5 << 32 | u64::from(vm.0), 0],
            Event::ControlPlane => [6 << 32, 0],
            Event::Measure => [7 << 32, 0],
            Event::Deed(number) => [9 << 32 | u64::from(number), 0],
            Event::Reap => [10 << 32, 0],
            Event::GoOn(core, step) => [8 << 32 | u64::from(core.0), step.into()],
        }
    }
}

/// What a core does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Idle,
    /// Its task's step is put aside.
    Aside,
    /// The time of its task's step passes, after which the task goes on, or blocks, until an alarm if it has one.
    Task(Option<Option<u64>>),
    /// Work for the switch, as it had nothing else, is put aside.
    IdlingAside,
    /// The time of such work passes; whether there is more.
    Idling {
        more: bool,
    },
}

struct Core {
    mode: Mode,
    /// Counts its steps.
    step: u32,
    /// What interrupts have taken of the step's time.
    stolen_ns: u64,
    /// What the scheduler knows of the step's time.
    accounted_ns: u64,
    /// A message came that it has not obeyed.
    is_asked: bool,
    /// When the message was sent for which it works, or last worked.
    asked_ns: u64,
    /// What that work is worth so far, if it is not weighed yet.
    worth: Option<Worth>,
    /// How often it was passed over after the last.
    pause: u32,
    /// Work for the switch was put off in its midst.
    is_put_off: bool,
    /// What is left of the time of work for the switch that was put off.
    owed_ns: u64,
    last: Option<TaskId>,
}

/// How long an idle core took to come to its work, and how long it worked.
#[derive(Clone, Copy)]
struct Worth {
    wake_ns: u64,
    work_ns: u64,
}

#[derive(Clone, Copy, Default)]
pub(crate) struct Sleep {
    /// Counts its sleeps.
    number: u32,
    /// A wake-up is on its way.
    pub(crate) is_waking: bool,
    /// It is ready or runs.
    pub(crate) is_awake: bool,
}

/// The streams of random numbers from here on tell when tasks begin, which is within this time.
const BEGINNINGS: u64 = 1 << 32;
const WITHIN_NS: u64 = 1_000_000;

/// No timer is armed.
const NEVER: u64 = u64::MAX;

/// A run in progress.
pub struct Simulation<'w> {
    pub(crate) scenario: Scenario,
    pub(crate) host: Rc<SimHost>,
    pub(crate) fabric: Fabric,
    pub(crate) guests: Vec<Rc<RefCell<Guest>>>,
    pub(crate) scores: Vec<Rc<RefCell<Score>>>,
    /// Of the hypervisor's switch: its VMs, and its idle cores.
    vms: Vec<Fiber>,
    idlers: Vec<Fiber>,
    scheduler: Box<dyn Scheduler>,
    /// Of each VM whose step was broken off in its midst: what is left of the time that it had come to.
    broken_off: Vec<Option<u64>>,
    cores: Vec<Core>,
    pub(crate) sleeps: Vec<Sleep>,
    /// For how long each task has had a core.
    tasks_ns: Vec<u64>,
    /// When the control plane is called next.
    control_plane_ns: u64,
    events: Events<Event>,
    effects: Vec<(u64, Effect)>,
    trace: Trace<'w>,
    pub(crate) now_ns: u64,
    end_ns: u64,
    base: Option<Base>,
    /// What is checked and done, if it is.
    trial: Option<Box<Trial>>,
}

/// What had been when the measurement began.
struct Base {
    vms: Vec<VmOutcome>,
    books: Vec<[u64; ACCOUNTS]>,
    tasks_ns: Vec<u64>,
    memory: MemoryBook,
}

impl<'w> Simulation<'w> {
    /// A run that is about to begin. What happens is written to `lines`, if that is wanted. With
    /// [`verifies`](Scenario::verifies) it is checked, see [`Simulation::violation`].
    ///
    /// # Errors
    /// The scenario cannot be run.
    pub fn new(
        scenario: Scenario,
        lines: Option<&'w mut dyn Write>,
    ) -> Result<Simulation<'w>, ScenarioError> {
        let setup = Setup::of(&scenario);
        Simulation::with(scenario, setup, lines)
    }

    /// As [`Simulation::new`], with a trial's further particulars.
    pub(crate) fn with(
        scenario: Scenario,
        setup: Setup,
        lines: Option<&'w mut dyn Write>,
    ) -> Result<Simulation<'w>, ScenarioError> {
        scenario.check()?;
        let Scenario { machine, arch, .. } = scenario;
        let guest = |number: usize| {
            let random = Random::new(scenario.seed, number as u64);
            Guest::new(&guest_config(&scenario, &setup, number), random)
                .map_err(|why| ScenarioError::Nic { vm: number, why: why.to_string() })
        };
        let mut guests = (0..scenario.vms.len()).map(guest).collect::<Result<Vec<_>, _>>()?;
        let switch_config = setup.switch.clone();
        let trial = scenario.verifies.then(|| Box::new(Trial::new(&scenario, setup)));
        if let Some(trial) = &trial {
            guests.iter_mut().enumerate().for_each(|(number, guest)| trial.watch(number, guest));
        }
        // Whatever carries the frames has at most a task for each VM, and at most one more.
        let tasks = 2 * guests.len() + 1;
        let host = Rc::new(SimHost::new(&scenario, tasks));
        let nics = || guests.iter().map(Guest::nic);
        let fabric = match arch {
            Arch::HyperSwitch => {
                let mut switch = HyperSwitch::new(&host, guests.len(), scenario.host, switch_config);
                for (number, nic) in nics().enumerate() {
                    let port = switch.attach(format!("vm{number}"), nic);
                    assert_eq!(usize::from(port.0), number, "ports are numbered as VMs are");
                }
                Fabric::HyperSwitch(Box::new(switch))
            }
            Arch::DriverDomain => Fabric::DriverDomain(DriverDomain::new(nics(), scenario.domain_vcpus)),
            Arch::Vhost => Fabric::Vhost(Vhost::new(nics())),
        };
        let scores = guests.iter().map(Guest::score).collect();
        let guests: Vec<_> = guests.into_iter().map(|guest| Rc::new(RefCell::new(guest))).collect();
        let (mut vms, mut idlers) = (Vec::new(), Vec::new());
        if let Fabric::HyperSwitch(switch) = &fabric {
            let quantum_ns = nanos(scenario.quantum);
            for (number, guest) in guests.iter().enumerate() {
                let entrance = switch.vm_entrance(&host, number);
                vms.push(Fiber::vm(
                    host.clone(),
                    entrance,
                    guest.clone(),
                    PortId(number as u16),
                    quantum_ns,
                )?);
            }
            for core in 0..machine.cores {
                idlers.push(Fiber::idler(host.clone(), switch.idle_entrance(CoreId(core)))?);
            }
        }
        let core = || Core {
            mode: Mode::Idle,
            step: 0,
            stolen_ns: 0,
            accounted_ns: 0,
            is_asked: false,
            asked_ns: 0,
            worth: None,
            pause: 0,
            is_put_off: false,
            owed_ns: 0,
            last: None,
        };
        let measure_ns = nanos(scenario.warmup);
        let mut simulation = Simulation {
            cores: (0..machine.cores).map(|_| core()).collect(),
            scheduler: scenario.scheduler.scheduler(machine, tasks),
            broken_off: vec![None; guests.len()],
            sleeps: vec![Sleep::default(); tasks],
            tasks_ns: vec![0; guests.len() + fabric.workers()],
            control_plane_ns: NEVER,
            events: Events::new(),
            effects: Vec::with_capacity(64),
            trace: Trace::new(lines),
            now_ns: 0,
            end_ns: measure_ns + nanos(scenario.duration),
            base: None,
            scenario,
            host,
            fabric,
            guests,
            scores,
            vms,
            idlers,
            trial,
        };
        simulation.begin(measure_ns);
        Ok(simulation)
    }

    /// Places all tasks and has each look around once.
    fn begin(&mut self, measure_ns: u64) {
        let cores = self.scenario.machine.cores;
        (0..cores).for_each(|core| self.host.set_idle(CoreId(core), true));
        self.events.push(measure_ns, Event::Measure);
        let deeds = self.trial.iter().flat_map(|trial| &trial.setup.deeds);
        for (number, (at_ns, _)) in deeds.enumerate() {
            self.events.push(*at_ns, Event::Deed(number as u32));
        }
        if matches!(self.fabric, Fabric::HyperSwitch(_)) {
            self.call_control_plane(0);
        }
        for task in 0..self.guests.len() + self.fabric.workers() {
            let (task, core) = (TaskId(task as u16), CoreId(task as u16 % cores));
            self.scheduler.place(task, core);
            self.host.set_home(task, core);
            // Not all at once, lest they go in step for ever.
            let mut random = Random::new(self.scenario.seed, BEGINNINGS + u64::from(task.0));
            self.events.push(random.word() % WITHIN_NS, Event::Wake(task));
        }
    }

    /// The time that the run has come to, in nanoseconds.
    pub fn now_ns(&self) -> u64 {
        self.now_ns
    }

    /// When it ends.
    pub fn end_ns(&self) -> u64 {
        self.end_ns
    }

    /// The hash of all that happened so far.
    pub(crate) fn hash(&self) -> u64 {
        self.trace.hash()
    }

    /// Events so far.
    pub fn events(&self) -> u64 {
        self.trace.events()
    }

    /// The rule that was broken first, in a run that is checked: with it the run is over.
    pub fn violation(&self) -> Option<&Violation> {
        self.trial.as_ref()?.violation.as_ref()
    }

    /// What happened how often in a run that is checked.
    pub(crate) fn take_coverage(&mut self) -> BTreeMap<&'static str, u64> {
        self.trial.as_mut().map(|trial| std::mem::take(&mut trial.coverage)).unwrap_or_default()
    }

    /// Has the next event happen; `false` if the run is over.
    pub fn step(&mut self) -> bool {
        if self.violation().is_some() {
            return false;
        }
        let Some((at_ns, event)) = self.events.pop() else { return false };
        if at_ns > self.end_ns {
            self.now_ns = self.end_ns;
            return false;
        }
        self.now_ns = at_ns;
        self.trace.note(at_ns, event.words(), &event);
        match event {
            Event::StepEnd(core, step) => self.step_ended(core, step),
            Event::GoOn(core, step) => self.go_on(core, step),
            Event::Wake(task) => self.wake(task),
            Event::Alarm(task, sleep) => {
                let now = self.sleeps[usize::from(task.0)];
                if now.number == sleep && !now.is_awake {
                    self.wake(task);
                }
            }
            Event::Message(core) => self.message(core),
            Event::Timer(vm) => self.timer(vm),
            Event::ControlPlane => self.control_plane(),
            Event::Measure => self.measure(),
            Event::Deed(number) => {
                self.with_trial(&event, |trial, run| trial.carry_out(run, number as usize));
            }
            Event::Reap => self.reap(),
        }
        self.with_trial(&event, Trial::check);
        true
    }

    /// The run is over and everything has come to rest: checks what must hold then.
    pub(crate) fn come_to_rest(&mut self) {
        self.with_trial(&"the end", Trial::rest);
    }

    /// Has the trial look, or do, if there is one.
    #[inline]
    fn with_trial(
        &mut self,
        happened: &dyn std::fmt::Debug,
        look: impl FnOnce(&mut Trial, &mut Simulation<'w>) -> Result<(), Broken>,
    ) {
        let Some(mut trial) = self.trial.take() else { return };
        if trial.violation.is_none()
            && let Err((rule, says)) = look(&mut trial, self)
        {
            let (at_ns, event, happened) = (self.now_ns, self.events(), format!("{happened:?}"));
            trial.violation = Some(Violation { at_ns, event, happened, rule, says });
        }
        self.trial = Some(trial);
    }

    /// A deed is done once more, so much later.
    pub(crate) fn do_again(&mut self, number: usize, after_ns: u64) {
        self.events.push(self.now_ns + after_ns, Event::Deed(number as u32));
    }

    /// VMs that were disconnected are looked at from now on until they are gone.
    pub(crate) fn begin_reaping(&mut self) {
        self.events.push(self.now_ns, Event::Reap);
    }

    fn reap(&mut self) {
        self.host.clock.begin(CoreId(self.scenario.machine.cores), self.now_ns);
        let Fabric::HyperSwitch(switch) = &mut self.fabric else { return };
        if !switch.reap(&self.host) {
            self.events.push(self.now_ns + REAP_EVERY_NS, Event::Reap);
        }
        self.carry_out();
    }

    /// A task is to look around, whatever it does.
    pub(crate) fn wake_now(&mut self, task: TaskId) {
        self.events.push(self.now_ns, Event::Wake(task));
    }

    /// Runs to the end.
    pub fn run(&mut self) -> Outcome {
        while self.step() {}
        self.outcome()
    }

    fn measure(&mut self) {
        self.scores.iter().for_each(|score| score.borrow_mut().latencies_ns.reset());
        self.base = Some(Base {
            vms: self.vm_outcomes(),
            books: self.host.clock.books(),
            tasks_ns: self.tasks_ns.clone(),
            memory: self.host.memory.book(),
        });
    }

    fn vm_outcomes(&self) -> Vec<VmOutcome> {
        let outcome = |score: &Rc<RefCell<Score>>| {
            let score = score.borrow();
            let counters = score.counters;
            VmOutcome {
                taken: score.taken,
                taken_bytes: score.taken_bytes,
                again: score.again,
                transmit_calls: counters.transmit_hypercalls,
                receive_calls: counters.receive_hypercalls,
                interrupts: counters.interrupts,
            }
        };
        self.scores.iter().map(outcome).collect()
    }

    /// What came of the run so far.
    pub fn outcome(&mut self) -> Outcome {
        let mut vms = self.vm_outcomes();
        let mut books = self.host.clock.books();
        let (mut tasks_ns, mut memory) = (self.tasks_ns.clone(), MemoryBook::default());
        let measure_ns = nanos(self.scenario.warmup);
        if let Some(base) = &self.base {
            for (vm, base) in vms.iter_mut().zip(&base.vms) {
                vm.taken -= base.taken;
                vm.taken_bytes -= base.taken_bytes;
                vm.again -= base.again;
                vm.transmit_calls -= base.transmit_calls;
                vm.receive_calls -= base.receive_calls;
                vm.interrupts -= base.interrupts;
            }
            for (book, base) in books.iter_mut().zip(&base.books) {
                book.iter_mut().zip(base).for_each(|(ns, base)| *ns -= base);
            }
            tasks_ns.iter_mut().zip(&base.tasks_ns).for_each(|(ns, base)| *ns -= base);
            memory = base.memory;
        }
        // The last is the control plane's, which is on no core of the machine.
        books.pop();
        let mut latencies: Option<Histogram<u64>> = None;
        for score in &self.scores {
            let one = &score.borrow().latencies_ns;
            match &mut latencies {
                _ if one.is_empty() => {}
                None => latencies = Some(one.clone()),
                Some(all) => all.add(one).expect("all histograms have the same bounds"),
            }
        }
        let latency = |all: Histogram<u64>| Latency {
            p50: all.value_at_quantile(0.5),
            p99: all.value_at_quantile(0.99),
            max: all.max(),
        };
        Outcome {
            measured_ns: self.now_ns.saturating_sub(measure_ns).max(1),
            vms,
            latency_ns: latencies.map(latency),
            cores_ns: books.into_iter().map(|book| book.to_vec()).collect(),
            tasks_ns,
            memory_slowdown: self.host.memory.book().slowdown_since(memory),
            dropped: self.dropped(),
            events: self.trace.events(),
            hash: self.trace.hash(),
        }
    }

    fn dropped(&self) -> u64 {
        let vms = 0..self.guests.len();
        match &self.fabric {
            Fabric::HyperSwitch(switch) => {
                let drops = |port: &hyper_switch_dataplane::PortStatus| {
                    port.counters.drops().map(|(_, count)| count).sum::<u64>()
                };
                switch.control.ports().iter().map(drops).sum()
            }
            Fabric::DriverDomain(domain) => vms.map(|vm| domain.dropped(vm)).sum(),
            Fabric::Vhost(vhost) => vms.map(|vm| vhost.dropped(vm)).sum(),
        }
    }

    /// A core begins a step: time is charged to it from now on.
    fn enter(&mut self, core: CoreId) {
        let at = &mut self.cores[usize::from(core.0)];
        at.step = at.step.wrapping_add(1);
        (at.stolen_ns, at.accounted_ns) = (0, 0);
        self.host.clock.begin(core, self.now_ns);
    }

    /// The step of `core` has had its effects; it ends when its time is over.
    fn spend(&mut self, core: CoreId, mode: Mode) {
        // Time goes on, whatever a table of costs says.
        if self.host.clock.spent_ns() == 0 {
            self.host.clock.wait(1);
        }
        if let Some(trial) = &mut self.trial {
            trial.checker.note_step(self.host.clock.spent_ns());
        }
        let at = &mut self.cores[usize::from(core.0)];
        at.mode = mode;
        self.events.push(self.host.clock.now().0, Event::StepEnd(core, at.step));
        self.host.set_idle(core, false);
        self.carry_out();
    }

    /// The step of `core` goes on when it is its time.
    fn put_aside(&mut self, core: CoreId, mode: Mode) {
        let at = &mut self.cores[usize::from(core.0)];
        at.mode = mode;
        self.events.push(self.host.clock.now().0, Event::GoOn(core, at.step));
        self.host.set_idle(core, false);
        self.carry_out();
    }

    /// A step that was put aside goes on.
    fn go_on(&mut self, core: CoreId, step: u32) {
        let at = &mut self.cores[usize::from(core.0)];
        if at.step != step {
            return;
        }
        self.host.clock.resume(core);
        self.host.clock.wait(std::mem::take(&mut at.stolen_ns));
        match at.mode {
            Mode::IdlingAside => self.run_idler(core),
            _ => self.run_vm(core),
        }
    }

    /// Runs the VM that has `core` until its step is over or others go first.
    fn run_vm(&mut self, core: CoreId) {
        let task = self.scheduler.running(core).expect("a step is of a task that has its core");
        self.host.touch(PortId(task.0));
        self.host.set_horizon(self.events.next_ns());
        match self.vms[usize::from(task.0)].go_on() {
            Pause::Ahead => self.put_aside(core, Mode::Aside),
            Pause::Over(blocks) => self.spend_task(core, blocks),
        }
    }

    fn spend_task(&mut self, core: CoreId, blocks: Option<Option<u64>>) {
        if blocks.is_some() {
            self.host.clock.charge(Account::Dispatch, self.host.prices.block);
        }
        self.spend(core, Mode::Task(blocks));
    }

    /// Likewise an idle core's work for the switch.
    fn run_idler(&mut self, core: CoreId) {
        self.host.set_horizon(self.events.next_ns());
        match self.idlers[usize::from(core.0)].go_on() {
            Pause::Ahead => self.put_aside(core, Mode::IdlingAside),
            Pause::Over(blocks) => self.spend(core, Mode::Idling { more: blocks.is_none() }),
        }
    }

    /// Carries out what a step did to others.
    fn carry_out(&mut self) {
        let mut effects = std::mem::take(&mut self.effects);
        self.host.take_effects(&mut effects);
        for (at_ns, effect) in effects.drain(..) {
            match effect {
                Effect::Signal(task, is_here) => self.signalled(task, at_ns, is_here),
                Effect::Message(core) => {
                    self.cores[usize::from(core.0)].asked_ns = at_ns;
                    self.events.push(at_ns + self.host.prices.idle_wake / 1_000, Event::Message(core));
                }
                Effect::Timer(vm, at) => self.events.push(at.0.max(self.now_ns), Event::Timer(vm)),
                Effect::Upcalls { faulted } => {
                    let Fabric::HyperSwitch(switch) = &mut self.fabric else { continue };
                    switch.plane.is_fault_near |= faulted;
                    let takes_ns = self.host.prices.control_plane / 1_000 * switch.plane.slowness;
                    self.call_control_plane(at_ns + takes_ns);
                }
            }
        }
        self.effects = effects;
    }

    fn signalled(&mut self, task: TaskId, at_ns: u64, is_here: bool) {
        let sleep = &mut self.sleeps[usize::from(task.0)];
        // Who is awake looks before it blocks.
        if !sleep.is_awake && !sleep.is_waking {
            sleep.is_waking = true;
            let latency_ns = if is_here { 0 } else { self.host.wake_latency_ns(task, at_ns) };
            self.events.push(at_ns + latency_ns, Event::Wake(task));
        }
    }

    fn wake(&mut self, task: TaskId) {
        let sleep = &mut self.sleeps[usize::from(task.0)];
        if sleep.is_awake {
            return;
        }
        (sleep.is_awake, sleep.is_waking) = (true, false);
        self.host.set_state(task, RunState::Preempted);
        self.account(self.host.home_of(task));
        let cores = &self.cores;
        let ready = self.scheduler.ready(task, &|core| cores[usize::from(core.0)].mode != Mode::Idle);
        let core = ready.core;
        self.host.set_home(task, core);
        let at = &mut self.cores[usize::from(core.0)];
        if at.mode == Mode::Idle {
            return self.next(core);
        }
        if at.mode == Mode::Aside && ready.takes_it {
            return self.break_off(core);
        }
        if self.scenario.host == HostKind::Hypervisor {
            return;
        }
        // A thread that runs only when its core is idle gives way wherever it is.
        let left_ns = self.host.clock.now_of(core).since(Nanos(self.now_ns)).as_nanos() as u64;
        match at.mode {
            Mode::Idling { more } => {
                at.owed_ns += left_ns;
                at.is_asked |= more;
                self.next(core);
            }
            Mode::IdlingAside => {
                at.owed_ns += left_ns;
                at.is_put_off = true;
                self.next(core);
            }
            Mode::Idle | Mode::Task(_) | Mode::Aside => {}
        }
    }

    /// Tells the scheduler for how long the task that has `core` has run.
    fn account(&mut self, core: CoreId) {
        let Some(task) = self.scheduler.running(core) else { return };
        let passed_ns = self.now_ns.saturating_sub(self.host.clock.began_of(core));
        let at = &mut self.cores[usize::from(core.0)];
        let ns = passed_ns.saturating_sub(std::mem::replace(&mut at.accounted_ns, passed_ns));
        self.tasks_ns[usize::from(task.0)] += ns;
        self.scheduler.ran(core, ns, self.now_ns);
    }

    /// The step of the VM that has `core`, which is put aside, goes on when the VM has a core again, and its quantum begins anew.
    fn break_off(&mut self, core: CoreId) {
        let left_ns = self.host.clock.now_of(core).since(Nanos(self.now_ns)).as_nanos() as u64;
        let task = self.scheduler.preempt(core).expect("a step is of a task that has its core");
        self.broken_off[usize::from(task.0)] = Some(left_ns);
        self.host.set_state(task, RunState::Preempted);
        self.next(core);
    }

    /// A core has nothing in hand: its next step.
    fn next(&mut self, core: CoreId) {
        let number = usize::from(core.0);
        if self.scheduler.running(core).is_none() && self.scheduler.pick(core, self.now_ns).is_none() {
            let at = &mut self.cores[number];
            if at.is_asked || at.is_put_off || at.owed_ns > 0 {
                return self.work_idly(core);
            }
            at.mode = Mode::Idle;
            if let Some(Worth { wake_ns, work_ns }) = at.worth.take() {
                at.pause = self.host.weigh(core, at.pause, wake_ns, work_ns);
            }
            // Its next step has another number.
            at.step = at.step.wrapping_add(1);
            return self.host.set_idle(core, true);
        }
        let task = self.scheduler.running(core).expect("one was picked if none was running");
        self.enter(core);
        if self.cores[number].last != Some(task) {
            self.cores[number].last = Some(task);
            self.host.clock.charge(Account::Dispatch, self.host.prices.dispatch);
        }
        self.host.set_state(task, RunState::Running(core));
        if let Some(left_ns) = self.broken_off.get_mut(usize::from(task.0)).and_then(Option::take) {
            self.host.clock.wait(left_ns);
            return self.run_vm(core);
        }
        if self.trial.as_ref().is_some_and(|trial| trial.is_dead(task)) {
            // What it is told does not keep it awake.
            self.host.take_signal(task);
            return self.spend_task(core, Some(None));
        }
        if usize::from(task.0) < self.vms.len() {
            return self.run_vm(core);
        }
        let blocks = self.run_task(task);
        self.spend_task(core, blocks);
    }

    /// A step of a task that is not put aside. Answers whether it blocks then, and until when if it knows.
    fn run_task(&mut self, task: TaskId) -> Option<Option<u64>> {
        let quantum_ns = nanos(self.scenario.quantum);
        let number = usize::from(task.0);
        let Simulation { host, fabric, guests, .. } = self;
        let Some(guest) = guests.get(number) else {
            return match fabric.step(host, number - guests.len(), quantum_ns) {
                Shift::Busy => None,
                Shift::Blocks(until_ns) => Some(until_ns),
            };
        };
        let mut way = Way { fabric, host, vm: task.0 };
        match guest.borrow_mut().step(Seat::alone(host), quantum_ns, &mut way) {
            Ok(Step::Busy) => None,
            Ok(Step::Blocks(until_ns)) => Some(until_ns),
            // A guest whose rings were broken is dead; that shows by its doing nothing.
            Err(_) => Some(None),
        }
    }

    fn step_ended(&mut self, core: CoreId, step: u32) {
        let at = &mut self.cores[usize::from(core.0)];
        if at.step != step {
            return;
        }
        self.host.clock.resume(core);
        if at.stolen_ns > 0 {
            self.host.clock.wait(std::mem::take(&mut at.stolen_ns));
            return self.events.push(self.host.clock.now().0, Event::StepEnd(core, step));
        }
        let took_ns = self.host.clock.spent_ns();
        match at.mode {
            Mode::Idle | Mode::Aside | Mode::IdlingAside => {}
            Mode::Idling { more } => {
                at.is_asked |= more;
                if let Some(worth) = &mut at.worth {
                    worth.work_ns += took_ns;
                }
            }
            Mode::Task(blocks) => {
                self.account(core);
                let task = self.scheduler.running(core).expect("a task's step is over");
                match blocks {
                    Some(until_ns) if self.host.signalled(task).is_none_or(|at_ns| at_ns > self.now_ns) => {
                        self.block(core, task, until_ns);
                    }
                    _ if self.scheduler.is_over(core, self.now_ns) => {
                        self.scheduler.preempt(core);
                        self.host.set_state(task, RunState::Preempted);
                    }
                    _ => {}
                }
            }
        }
        self.next(core);
    }

    fn block(&mut self, core: CoreId, task: TaskId, until_ns: Option<u64>) {
        self.scheduler.block(core);
        self.host.block(task, self.now_ns);
        let sleep = &mut self.sleeps[usize::from(task.0)];
        sleep.is_awake = false;
        sleep.number = sleep.number.wrapping_add(1);
        if let Some(until_ns) = until_ns {
            self.events.push(until_ns.max(self.now_ns), Event::Alarm(task, sleep.number));
        }
        // A signal of a step that is still under way.
        if let Some(at_ns) = self.host.signalled(task) {
            self.signalled(task, at_ns, false);
        }
    }

    fn message(&mut self, core: CoreId) {
        let at = &mut self.cores[usize::from(core.0)];
        at.is_asked = true;
        if at.mode == Mode::Idle {
            self.next(core);
        }
    }

    /// An idle core works for the switch, or pays what it owes for that.
    fn work_idly(&mut self, core: CoreId) {
        let at = &mut self.cores[usize::from(core.0)];
        let owed_ns = std::mem::take(&mut at.owed_ns);
        let goes_on = std::mem::take(&mut at.is_put_off);
        let works = goes_on || std::mem::take(&mut at.is_asked);
        at.last = None;
        if works && !goes_on && at.worth.is_none() {
            at.worth = Some(Worth { wake_ns: self.now_ns.saturating_sub(at.asked_ns), work_ns: 0 });
        }
        self.enter(core);
        self.host.clock.wait(owed_ns);
        if works && !self.idlers.is_empty() {
            self.run_idler(core);
        } else {
            self.spend(core, Mode::Idling { more: false });
        }
    }

    /// A timer fires on the core where its VM is at home.
    fn timer(&mut self, vm: PortId) {
        if !self.host.take_timer(vm, self.now_ns) {
            return;
        }
        let core = self.host.home_of(TaskId(vm.0));
        let aside = self.host.clock.interrupt(core, self.now_ns);
        if let Fabric::HyperSwitch(switch) = &mut self.fabric {
            switch.expire(&self.host, vm);
        }
        let at = &mut self.cores[usize::from(core.0)];
        at.stolen_ns += self.host.clock.spent_ns();
        self.carry_out();
        self.host.clock.return_to(core, aside);
    }

    pub(crate) fn call_control_plane(&mut self, at_ns: u64) {
        if at_ns < self.control_plane_ns {
            self.control_plane_ns = at_ns;
            self.events.push(at_ns, Event::ControlPlane);
        }
    }

    fn control_plane(&mut self) {
        if self.control_plane_ns > self.now_ns {
            return;
        }
        self.control_plane_ns = NEVER;
        self.host.clock.begin(CoreId(self.scenario.machine.cores), self.now_ns);
        let Fabric::HyperSwitch(switch) = &mut self.fabric else { return };
        let next = switch.run_control_plane(&self.host);
        if let Some(Nanos(at_ns)) = next {
            self.call_control_plane(at_ns.max(self.now_ns + 1));
        }
        self.carry_out();
        self.with_trial(&Event::ControlPlane, |trial, run| {
            trial.learned(run);
            Ok(())
        });
    }

    /// Why the trace's lines end early, if they do.
    pub fn trace_error(&mut self) -> Option<std::io::Error> {
        self.trace.broken()
    }
}

/// What a VM is made for.
pub(crate) fn guest_config(scenario: &Scenario, setup: &Setup, number: usize) -> GuestConfig {
    let (vm, extra) = (scenario.vms[number], &setup.vms[number]);
    let batches = scenario.arch != Arch::HyperSwitch || scenario.optimisations.batching;
    GuestConfig {
        own: number as u16,
        peer: vm.peer,
        side: vm.side,
        workload: vm.workload,
        batching: batches.then_some(scenario.doorbell),
        copies: scenario.socket_copies,
        verifies: scenario.verifies,
        others: extra.others.clone(),
        is_eager: extra.is_eager,
        shape: extra.shape,
    }
}

/// Between two looks whether VMs that were disconnected are gone.
const REAP_EVERY_NS: u64 = 50_000;

fn nanos(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
