//! A trial: a run that is checked after each event, and in which things are done to VMs and to the control plane from
//! outside.

use crate::arch::Fabric;
use crate::check::witness::Witness;
use crate::check::{Bounds, Broken, Checker, EVERY, Look, NicLook, Parts, Rule, Violation, VmLook};
use crate::guest::{Guest, NicShape};
use crate::host::TaskId;
use crate::lies::Lie;
use crate::random::Random;
use crate::scenario::{HostKind, Scenario};
use crate::simulation::Simulation;
use hyper_switch_dataplane::api::{Action, FlowId, FlowSpec, PortId};
use hyper_switch_dataplane::policy::offload::HANDOVER_LIMIT;
use hyper_switch_dataplane::{Barrier, PortState, SwitchConfig};
use hyper_switch_pvnet::MAX_FRAME_BYTES;
use hyper_switch_pvnet::guest::GuestConfig;
use hyper_switch_pvnet::header::VNET_HDR_BYTES;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

/// What is done from outside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Deed {
    /// A VM writes to its memory what it must not.
    Lie(u16, Lie),
    /// A VM dies: it does nothing any more, and is disconnected.
    Kill(u16),
    /// Another comes in its place, as soon as the port is free.
    Revive(u16),
    /// The control plane is gone.
    CrashPlane,
    /// It says nothing for a while.
    SilencePlane,
    /// It takes so many times as long as usual.
    SlowPlane(u64),
    /// It works again.
    RestorePlane,
    /// The flow from one VM to another is changed, with a barrier: its frames go to these.
    Redirect { from: u16, to: u16, now_to: Vec<u16>, by: Change },
    /// VMs send nothing any more, and everybody else does what there is to do.
    Quiet,
}

/// How a flow is changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// It gets other actions.
    Modify,
    /// It is removed, and another one installed.
    Replace,
}

impl Deed {
    /// What it counts as.
    fn name(&self) -> &'static str {
        match self {
            Deed::Lie(..) => "deed: lie",
            Deed::Kill(_) => "deed: a VM dies",
            Deed::Revive(_) => "deed: a VM comes back",
            Deed::CrashPlane => "deed: the control plane crashes",
            Deed::SilencePlane => "deed: the control plane falls silent",
            Deed::SlowPlane(_) => "deed: the control plane is slow",
            Deed::RestorePlane => "deed: the control plane comes back",
            Deed::Redirect { .. } => "deed: a flow is changed",
            Deed::Quiet => "deed: quiet",
        }
    }
}

/// What a VM of a trial has beside what its scenario says.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct VmSetup {
    pub(crate) others: Vec<u16>,
    pub(crate) is_eager: bool,
    pub(crate) shape: Option<NicShape>,
    /// It may lie: what it says is not believed, and what befalls it is not held against the switch.
    pub(crate) is_liar: bool,
}

/// What a trial is made of, beside its scenario.
#[derive(Clone, Debug)]
pub(crate) struct Setup {
    pub(crate) vms: Vec<VmSetup>,
    /// Bounds of the switch; the rest of it is the scenario's.
    pub(crate) switch: SwitchConfig,
    /// In the order of their times.
    pub(crate) deeds: Vec<(u64, Deed)>,
}

impl Setup {
    /// That of a scenario in which nothing is done.
    pub(crate) fn of(scenario: &Scenario) -> Setup {
        let switch = SwitchConfig {
            max_flows: crate::arch::hyper_switch::max_flows(scenario.vms.len()),
            optimisations: scenario.optimisations,
            pace: scenario.pace,
            seed: scenario.seed,
            ..SwitchConfig::default()
        };
        Setup { vms: vec![VmSetup::default(); scenario.vms.len()], switch, deeds: Vec::new() }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Life {
    Honest,
    Liar,
    Dead,
}

/// Flows that are installed from outside have names from here on.
const OWN_FLOWS: u64 = 1 << 48;

/// Events in which what was sent is taken, and everybody falls asleep: far more than it takes.
const MOST_TO_REST: u64 = 100_000;

/// From a try to lie to the next one.
const LIE_AGAIN_NS: u64 = 1_000;

/// From a try to connect a VM to the next one, in nanoseconds.
const TRY_EVERY_NS: u64 = 100_000;

/// A trial under way.
pub(crate) struct Trial {
    pub(crate) setup: Setup,
    pub(crate) checker: Checker,
    lives: Vec<Life>,
    witnesses: Vec<Rc<RefCell<Witness>>>,
    largest_bytes: usize,
    random: Random,
    touched: Vec<u16>,
    /// VMs that were touched since their ports' books were last looked at.
    unaudited: BTreeSet<u16>,
    /// Barriers behind changes of flows that are not answered.
    barriers: Vec<(Barrier, (u16, u16))>,
    flows: u64,
    pub(crate) violation: Option<Violation>,
    /// How many events there had been when VMs fell silent.
    quiet_since: Option<u64>,
    /// What happened how often.
    pub(crate) coverage: BTreeMap<&'static str, u64>,
}

/// The stream of what is drawn while a trial runs.
const TRIAL_STREAM: u64 = 1 << 32;

impl Trial {
    pub(crate) fn new(scenario: &Scenario, setup: Setup) -> Trial {
        let prices = |costs: &[crate::costs::Cost]| {
            costs.iter().map(|cost| scenario.costs.get(*cost)).sum::<f64>().ceil() as u64
        };
        use crate::costs::Cost::{HypervisorEntry, IdleWake, SwitchEntry, Timer};
        let SwitchConfig { optimisations, pace, patience, .. } = &setup.switch;
        let nanos = |duration: std::time::Duration| duration.as_nanos() as u64;
        let entry_ns = prices(&[HypervisorEntry, IdleWake, SwitchEntry, Timer]);
        let handed_ns = if optimisations.offload { nanos(HANDOVER_LIMIT) } else { 0 };
        let put_off_ns = if optimisations.batching { nanos(pace.delay) } else { 0 };
        let bounds = Bounds {
            tell_ns: handed_ns + put_off_ns + entry_ns,
            serve_ns: handed_ns + entry_ns,
            // Waiting is measured in whole milliseconds, at both ends.
            patience_ns: nanos(*patience) + 3_000_000,
            copies_unasked: optimisations.preemptive_copy,
            // A thread that was put off in the midst of the switch comes back when there is an idle core.
            is_bound: scenario.host == HostKind::Hypervisor,
            longest_step_ns: 0,
        };
        let mut checker = Checker::new(scenario.vms.len(), bounds);
        let lives: Vec<_> =
            setup.vms.iter().map(|vm| if vm.is_liar { Life::Liar } else { Life::Honest }).collect();
        if lives.contains(&Life::Liar) {
            checker.routes.give_up();
        }
        let largest_bytes = scenario.vms.iter().map(|vm| vm.workload.frame_bytes(vm.side)).max();
        let liars: Vec<_> = setup.vms.iter().map(|vm| vm.is_liar).collect();
        let witness = |_: &Life| Rc::new(RefCell::new(Witness::new(liars.clone())));
        Trial {
            checker,
            witnesses: lives.iter().map(witness).collect(),
            largest_bytes: largest_bytes.unwrap_or_default(),
            random: Random::new(scenario.seed, TRIAL_STREAM),
            touched: Vec::new(),
            unaudited: BTreeSet::new(),
            barriers: Vec::new(),
            flows: OWN_FLOWS,
            violation: None,
            quiet_since: None,
            coverage: BTreeMap::new(),
            lives,
            setup,
        }
    }

    pub(crate) fn count(&mut self, what: &'static str) {
        *self.coverage.entry(what).or_default() += 1;
    }

    pub(crate) fn is_dead(&self, task: TaskId) -> bool {
        self.lives.get(usize::from(task.0)) == Some(&Life::Dead)
    }

    fn has_liars(&self) -> bool {
        self.setup.vms.iter().any(|vm| vm.is_liar)
    }

    /// Whether each frame for this VM lies in one buffer.
    fn comes_whole(&self, guest: &Guest) -> bool {
        !self.has_liars() && guest.rx_buffer_bytes() as usize >= VNET_HDR_BYTES + self.largest_bytes
    }

    /// From now on the guest is watched.
    pub(crate) fn watch(&self, number: usize, guest: &mut Guest) {
        guest.watch(self.witnesses[number].clone(), self.comes_whole(guest));
    }

    /// Looks at what the event touched.
    pub(crate) fn check(&mut self, run: &mut Simulation<'_>) -> Result<(), Broken> {
        self.answer_barriers(run);
        let mut touched = std::mem::take(&mut self.touched);
        run.host.take_touched(&mut touched);
        let checked = touched.iter().try_for_each(|vm| self.check_vm(run, *vm));
        self.unaudited.extend(touched.drain(..));
        self.touched = touched;
        checked?;
        if self.quiet_since.is_some_and(|since| run.events() - since > MOST_TO_REST) {
            return Err((Rule::Rest, format!("no rest after {MOST_TO_REST} events in which nobody sent")));
        }
        // What seems to have waited too long may have gone on without the switch having said so, or wait for a step that
        // is longer than any before.
        let is_overdue = self.checker.waits(run.now_ns).is_err();
        if is_overdue || run.events().is_multiple_of(EVERY) {
            return self.check_all(run);
        }
        self.audit(run)
    }

    /// Looks at everything.
    fn check_all(&mut self, run: &mut Simulation<'_>) -> Result<(), Broken> {
        self.checker.note_step(run.host.clock.longest_step_ns());
        let vms = 0..run.guests.len() as u16;
        self.unaudited.extend(vms.clone());
        for vm in vms {
            self.check_vm(run, vm)?;
        }
        self.checker.waits(run.now_ns)?;
        self.audit(run)
    }

    /// Looks at the books of the ports that were touched, if no core is in the midst of changing them.
    fn audit(&mut self, run: &Simulation<'_>) -> Result<(), Broken> {
        let Fabric::HyperSwitch(switch) = &run.fabric else { return Ok(()) };
        if run.host.inside.get() > 0 || self.unaudited.is_empty() {
            return Ok(());
        }
        self.count("audits");
        let is_all = self.unaudited.len() == run.guests.len();
        for vm in std::mem::take(&mut self.unaudited) {
            if let Some(look) = self.look(run, vm) {
                self.checker.audit(&look)?;
            }
        }
        if is_all { Checker::between(&switch.control.ports()) } else { Ok(()) }
    }

    fn check_vm(&mut self, run: &Simulation<'_>, vm: u16) -> Result<(), Broken> {
        self.check_witness(run, vm)?;
        if let Some(look) = self.look(run, vm) {
            self.checker.watch(run.now_ns, &look);
        }
        Ok(())
    }

    /// What the VM has taken since it was last looked at.
    fn check_witness(&mut self, run: &Simulation<'_>, vm: u16) -> Result<(), Broken> {
        let mut witness = self.witnesses[usize::from(vm)].borrow_mut();
        let (broken, arrivals) = (witness.broken.take(), std::mem::take(&mut witness.arrivals));
        drop(witness);
        *self.coverage.entry("frames taken").or_default() += arrivals.len() as u64;
        // What a liar reads may be what it wrote.
        if self.setup.vms[usize::from(vm)].is_liar {
            return Ok(());
        }
        if let Some(broken) = broken {
            return Err(broken);
        }
        for (arrival, bytes) in arrivals {
            let sender = self.witnesses.get(usize::from(arrival.from));
            let says = || format!("frame {} of VM {} came to VM {vm}", arrival.ordinal, arrival.from);
            match sender.and_then(|sender| sender.borrow().sent(arrival.ordinal)) {
                None => return Err((Rule::Damage, format!("{}, and was not sent", says()))),
                Some((_, sent)) if sent != bytes => {
                    return Err((Rule::Damage, format!("{} with {bytes} of {sent} bytes", says())));
                }
                Some((sent_ns, _)) if matches!(run.fabric, Fabric::HyperSwitch(_)) => {
                    self.checker.arrival(vm, &arrival, sent_ns)?;
                }
                Some(_) => {}
            }
        }
        Ok(())
    }

    fn look(&self, run: &Simulation<'_>, vm: u16) -> Option<Look> {
        let Fabric::HyperSwitch(switch) = &run.fabric else { return None };
        let port = switch.control.port(PortId(vm))?;
        let number = usize::from(vm);
        if self.lives[number] != Life::Honest {
            return Some(Look { port, vm: None, nic: None });
        }
        let sleep = &run.sleeps[number];
        let kicked = self.witnesses[number].borrow().kicked;
        let is_asleep = !sleep.is_awake && !sleep.is_waking && run.host.signalled(TaskId(vm)).is_none();
        // In the midst of its step a guest is not to be looked at.
        let nic = run.guests[number].try_borrow().ok().map(|guest| self.look_at_nic(&guest));
        Some(Look { port, vm: Some(VmLook { is_asleep, kicked }), nic })
    }

    fn look_at_nic(&self, guest: &Guest) -> NicLook {
        let nic = guest.nic();
        let has_liars = self.has_liars();
        let largest_bytes = if has_liars { MAX_FRAME_BYTES } else { self.largest_bytes };
        NicLook {
            standing: nic.standing(),
            counters: nic.counters(),
            is_starved: nic.is_tx_starved(),
            ample_buffers: (VNET_HDR_BYTES + largest_bytes).div_ceil(guest.rx_buffer_bytes() as usize) as u16,
            parts: match () {
                () if has_liars => Parts::Cut,
                () if self.comes_whole(guest) => Parts::Whole,
                () => Parts::Spread,
            },
        }
    }

    /// The control plane has worked: what it knows now is what flows say.
    pub(crate) fn learned(&mut self, run: &Simulation<'_>) {
        let Fabric::HyperSwitch(switch) = &run.fabric else { return };
        for vm in 0..run.guests.len() as u16 {
            let is_known = switch.plane.knows(GuestConfig::numbered(vm).mac, PortId(vm));
            self.checker.routes.know(run.now_ns, vm, is_known);
        }
    }

    /// Carries out what is to be done now.
    pub(crate) fn carry_out(&mut self, run: &mut Simulation<'_>, number: usize) -> Result<(), Broken> {
        let deed = self.setup.deeds[number].1.clone();
        let is_done = match &deed {
            Deed::Lie(vm, lie) => {
                // Between its steps.
                let guest = run.guests[usize::from(*vm)].clone();
                let Ok(mut guest) = guest.try_borrow_mut() else {
                    run.do_again(number, LIE_AGAIN_NS);
                    return Ok(());
                };
                lie.tell(guest.nic_mut(), &mut self.random);
                // A VM that lies does not wait to be asked.
                run.wake_now(TaskId(*vm));
                true
            }
            Deed::Kill(vm) => self.kill(run, *vm),
            Deed::Revive(vm) => match self.revive(run, *vm) {
                None => {
                    run.do_again(number, TRY_EVERY_NS);
                    return Ok(());
                }
                Some(is_done) => is_done,
            },
            Deed::Redirect { from, to, now_to, by } => self.redirect(run, (*from, *to), now_to, *by)?,
            Deed::CrashPlane | Deed::SilencePlane | Deed::SlowPlane(_) => {
                let Fabric::HyperSwitch(switch) = &mut run.fabric else { return Ok(()) };
                match deed {
                    Deed::CrashPlane => {
                        switch.plane.crash();
                        // Its successor learns from flows alone.
                        let vms = 0..run.guests.len() as u16;
                        vms.for_each(|vm| self.checker.routes.know(run.now_ns, vm, false));
                    }
                    Deed::SlowPlane(times) => switch.plane.slowness = times,
                    _ => switch.plane.fall_silent(),
                }
                true
            }
            Deed::RestorePlane => restore(run),
            Deed::Quiet => {
                self.quiet_since = Some(run.events());
                self.witnesses.iter().for_each(|witness| witness.borrow_mut().is_silent = true);
                // Liars that looked for what is not there would never rest.
                self.lives.iter_mut().filter(|life| **life == Life::Liar).for_each(|life| *life = Life::Dead);
                restore(run);
                true
            }
        };
        if is_done {
            self.count(deed.name());
        }
        self.check_all(run)
    }

    fn kill(&mut self, run: &mut Simulation<'_>, vm: u16) -> bool {
        let life = &mut self.lives[usize::from(vm)];
        let Fabric::HyperSwitch(switch) = &mut run.fabric else { return false };
        if *life == Life::Dead {
            return false;
        }
        *life = Life::Dead;
        self.checker.disconnected(PortId(vm));
        switch.disconnect(PortId(vm));
        run.call_control_plane(run.now_ns);
        run.begin_reaping();
        true
    }

    /// Answers whether it is done; none if it cannot be done yet.
    fn revive(&mut self, run: &mut Simulation<'_>, vm: u16) -> Option<bool> {
        let number = usize::from(vm);
        if self.lives[number] != Life::Dead || self.quiet_since.is_some() {
            return Some(false);
        }
        // Its last step is to be over.
        let guest = run.guests[number].clone();
        let mut guest = guest.try_borrow_mut().ok()?;
        let Fabric::HyperSwitch(switch) = &mut run.fabric else { return Some(false) };
        if switch.control.port(PortId(vm)).is_none_or(|port| port.state != PortState::Absent) {
            return None;
        }
        let stream = self.random.word();
        let config = crate::simulation::guest_config(&run.scenario, &self.setup, number);
        *guest = Guest::new(&config, Random::new(stream, number as u64)).expect("it was made before");
        self.watch(number, &mut guest);
        switch.connect(PortId(vm), guest.nic());
        if let Some(port) = switch.control.port(PortId(vm)) {
            self.checker.connected(&port);
        }
        run.scores[number] = guest.score();
        self.lives[number] = if self.setup.vms[number].is_liar { Life::Liar } else { Life::Honest };
        run.call_control_plane(run.now_ns);
        run.wake_now(TaskId(vm));
        Some(true)
    }

    /// Changes a flow that the control plane has made and has no reason to change.
    fn redirect(
        &mut self,
        run: &mut Simulation<'_>,
        (from, to): (u16, u16),
        now_to: &[u16],
        by: Change,
    ) -> Result<bool, Broken> {
        let Fabric::HyperSwitch(switch) = &mut run.fabric else { return Ok(false) };
        let mac = |vm| GuestConfig::numbered(vm).mac;
        if !switch.plane.knows(mac(to), PortId(to)) || !self.checker.routes.is_known(to) {
            return Ok(false);
        }
        let control = &mut switch.control;
        let flow = control.flows().into_iter().find(|flow| {
            let key = &flow.spec.matches.key;
            key.port() == PortId(from) && key.eth_src == mac(from) && key.eth_dst == mac(to)
        });
        let Some(flow) = flow else { return Ok(false) };
        let actions: Vec<_> = now_to.iter().map(|vm| Action::Output(PortId(*vm))).collect();
        let now = run.host.clock.now();
        let FlowSpec { id, matches, .. } = flow.spec;
        let refused = match by {
            Change::Modify => control.modify(id, &actions.into()).err(),
            Change::Replace => {
                control.remove(id);
                self.flows += 1;
                let spec = FlowSpec { id: FlowId(self.flows), matches, actions: actions.into() };
                control.install(&spec, now).err()
            }
        };
        if let Some(error) = refused {
            return Err((
                Rule::Route,
                format!("the flow of VM {from} for VM {to} cannot be changed: {error}"),
            ));
        }
        self.barriers.push((control.barrier(), (from, to)));
        self.checker.routes.change((from, to), now_to.to_vec());
        Ok(true)
    }

    /// Behind a barrier that is answered nothing goes by what was before.
    fn answer_barriers(&mut self, run: &Simulation<'_>) {
        let Fabric::HyperSwitch(switch) = &run.fabric else { return };
        let passed = self.barriers.iter().take_while(|(barrier, _)| switch.control.passed(*barrier)).count();
        for (_, pair) in self.barriers.drain(..passed) {
            self.checker.routes.answered(run.now_ns, pair);
        }
    }

    /// Looks at everything when nobody has sent for long.
    pub(crate) fn rest(&mut self, run: &mut Simulation<'_>) -> Result<(), Broken> {
        self.check_all(run)?;
        if run.host.inside.get() > 0 {
            return Err((Rule::Rest, "a core is still in the switch".into()));
        }
        for vm in 0..run.guests.len() as u16 {
            let number = usize::from(vm);
            let Some(look) = self.look(run, vm) else { continue };
            if self.lives[number] == Life::Honest {
                if run.sleeps[number].is_awake {
                    return Err((Rule::Rest, format!("VM {vm} is awake though there is nothing to do")));
                }
                self.witnesses[number].borrow().look_everywhere(vm, run.guests[number].borrow().nic())?;
            }
            Checker::rest(&look)?;
            for (reason, count) in look.port.counters.drops() {
                *self.coverage.entry(reason.name()).or_default() += count;
            }
        }
        Ok(())
    }
}

/// Has the control plane work. Answers whether it did not.
fn restore(run: &mut Simulation<'_>) -> bool {
    let Fabric::HyperSwitch(switch) = &mut run.fabric else { return false };
    let was_away = switch.plane.restore();
    run.call_control_plane(run.now_ns);
    was_away
}
