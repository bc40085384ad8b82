//! VMs of this process: each a thread with guest memory, two rings and what runs on them. The thread itself enters the
//! switch, as a hypercall does, and blocks in one place, until its interrupt comes.

use super::arch::{self, Architecture};
use super::cost::{EntryCost, Priced, other_threads_cpu_ns, thread_cpu_ns};
use super::tenant::Tenant;
use super::trial::{StopOnDrop, Trial, Vm};
use super::{Outcome, cannot, joined};
use crate::cli::{Arch, Paces};
use crate::exit::Failure;
use crate::host::{GuestBell, now, pin_to};
use crate::progress::Progress;
use crate::report::SwitchingReport;
use crossbeam_channel::{Receiver, Sender, bounded};
use hyper_switch_dataplane::api::Nanos;
use hyper_switch_dataplane::policy::Optimisations;
use hyper_switch_dataplane::{QueuePair, VmBackend};
use hyper_switch_pvnet::guest::{GuestCounters, Poll};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread;
use std::time::Instant;

/// What VMs are put on, and how they use it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Setting<'a> {
    /// What carries their frames.
    pub(super) arch: Arch,
    /// What is on of that, if it is this switch.
    pub(super) optimisations: Optimisations,
    /// What their entries cost.
    pub(super) cost: EntryCost,
    /// How it and they batch, where they do.
    pub(super) paces: Paces,
    /// The cores that their threads are pinned to, in turn; none leaves that to the scheduler.
    pub(super) cores: &'a [usize],
}

/// Runs `trial` on a switch of its own, which nothing of an earlier trial has warmed.
pub(super) fn run(
    trial: &Trial,
    setting: Setting<'_>,
    interrupted: &AtomicBool,
    progress: &mut Progress,
) -> Result<Outcome, Failure> {
    let architecture = arch::of(&setting, trial.vms().len())?;
    let switch = &*architecture;
    let (measured, costs, switching_ns, elapsed) = thread::scope(|scope| {
        let (attached, attaching) = bounded(trial.vms().len());
        // Nobody talks before all are there, lest the first question be flooded past the one it is for.
        let (go, start) = bounded(0);
        let stop = StopOnDrop(trial);
        let mut threads = Vec::new();
        for vm in trial.vms() {
            let (attached, start) = (attached.clone(), start.clone());
            let spawned = thread::Builder::new()
                .name(vm.name())
                .spawn_scoped(scope, move || live(vm, trial, setting, switch, attached, &start));
            threads.push((vm, spawned.map_err(cannot("start the thread of a VM"))?));
        }
        drop(attached);
        // Ends when every VM is attached, or has given up and so let go of its end of the channel.
        let ready = attaching.iter().count();
        switch.start()?;
        let (begin, before_ns) = (Instant::now(), other_threads_cpu_ns());
        drop(go);
        let watched = if ready == threads.len() {
            let ended = || threads.iter().any(|(_, thread)| thread.is_finished());
            trial.watch(interrupted, ended, progress)
        } else {
            Ok(None)
        };
        drop(stop);
        let costs = joined(threads)?;
        let others_ns = other_threads_cpu_ns().saturating_sub(before_ns);
        let switching_ns = others_ns.saturating_sub(costs.iter().map(|cost| cost.cpu_ns).sum());
        watched.map(|measured| (measured, costs, switching_ns, begin.elapsed()))
    })?;
    let mut carried = architecture.finish()?;
    for (vm, cost) in carried.vms.iter_mut().zip(costs) {
        vm.transmit_calls = cost.counters.transmit_hypercalls;
        vm.receive_calls = cost.counters.receive_hypercalls;
        vm.cpu_ns = Some(cost.cpu_ns);
    }
    let switching = SwitchingReport {
        elapsed_ns: u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX),
        cpu_ns: switching_ns,
        entries: carried.entries,
        wakeups: carried.wakeups,
    };
    Ok(Outcome { measured, vms: carried.vms, switching: Some(switching) })
}

/// What a VM came to cost.
struct VmCost {
    counters: GuestCounters,
    cpu_ns: u64,
}

/// The life of a VM's thread, until the trial stops. The error says what went wrong in the VM.
fn live(
    vm: Vm,
    trial: &Trial,
    setting: Setting<'_>,
    switch: &dyn Architecture,
    attached: Sender<()>,
    start: &Receiver<()>,
) -> Result<VmCost, String> {
    if let Some(core) = setting.cores.get(vm.number() % setting.cores.len().max(1)) {
        pin_to(*core).map_err(|error| format!("cannot run on core {core}: {error}"))?;
    }
    let batching = setting.optimisations.batching.then_some(setting.paces.doorbell);
    let mut tenant = Tenant::new(vm, trial, batching)?;
    let bell = Arc::new(GuestBell::of_this_thread());
    let nic = tenant.nic();
    let rings = VmBackend {
        queues: vec![QueuePair::new(nic.memory(), nic.tx_layout(), nic.rx_layout(), nic.queue_features())],
        mergeable: true,
        offloads: nic.offloads(),
    };
    let way = switch.attach(vm, rings, bell.clone())?;
    let mut hypercall = Priced { way, cost: setting.cost };
    trial.wake_at_stop(bell.clone());
    // The other end of the channel is there for as long as this thread.
    let _ = attached.send(());
    drop(attached);
    // Answers when the channel is closed, which is the sign to start.
    let _ = start.recv();

    let began_ns = thread_cpu_ns();
    while !trial.is_stopping() {
        if let Poll::Idle { until_ns } = tenant.poll(now().0, &mut hypercall)? {
            let timeout = until_ns.map(|until| Nanos(until).since(now()));
            bell.wait(timeout);
        } else if let Some(arrived) = tenant.arrived()? {
            trial.arrived(vm.pair, arrived.total);
        }
    }
    if let Some(sequence) = tenant.arrived()?.and_then(|arrived| arrived.sequence) {
        trial.ended_with(vm.pair, sequence);
    }
    Ok(VmCost { counters: tenant.counters(), cpu_ns: thread_cpu_ns().saturating_sub(began_ns) })
}
