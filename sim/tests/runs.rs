//! Whole runs: what holds for each, and what the architectures and optimisations come to beside each other.

use hyper_switch_dataplane::policy::Optimisations;
use hyper_switch_sim::costs::{CostRow, CostTable, Unit};
use hyper_switch_sim::machine::Machine;
use hyper_switch_sim::scenario::{Arch, HostKind, Outcome, Scenario, ScenarioError};
use hyper_switch_sim::scheduler::SchedulerConfig;
use hyper_switch_sim::simulation::Simulation;
use hyper_switch_sim::{Account, Workload};
use std::time::Duration;

const STREAM: Workload = Workload::Stream { frame_bytes: 1514, window_bytes: 1 << 18, ack_every: 2 };
const LARGE: Workload = Workload::Stream { frame_bytes: 65_226, window_bytes: 1 << 20, ack_every: 2 };
const REQUESTS: Workload = Workload::Requests { frame_bytes: 60, think_us: 0.0, server_computes: false };

fn scenario(arch: Arch, pairs: u16, workload: Workload) -> Scenario {
    Scenario {
        seed: 7,
        machine: Machine { cores: 8, cores_per_cache: 4 },
        scheduler: SchedulerConfig::Credit { slice_us: 2_000, bonus_us: 1_000, pinned: false },
        costs: CostTable::embedded("opteron").unwrap(),
        host: Default::default(),
        arch,
        optimisations: Optimisations::ALL,
        pace: Default::default(),
        doorbell: Default::default(),
        domain_vcpus: 2,
        vms: Scenario::pairs(pairs, workload),
        socket_copies: true,
        verifies: true,
        quantum: Duration::from_micros(10),
        jitter: 0.1,
        warmup: Duration::from_millis(5),
        duration: Duration::from_millis(20),
    }
}

/// Runs it, and holds that no rule was broken in it.
fn run(scenario: Scenario) -> Outcome {
    let mut simulation = Simulation::new(scenario, None).unwrap();
    let outcome = simulation.run();
    assert_eq!(simulation.violation(), None);
    outcome
}

/// Holds that each workload gets somewhere on each architecture, however many VMs share the cores, that no core is at
/// work for longer than there is time, and that nothing is dropped where the workload has a window.
#[test]
fn every_workload_runs_everywhere() {
    let workloads = [
        STREAM,
        LARGE,
        REQUESTS,
        Workload::Datagrams { frame_bytes: 60, rate_per_s: Some(10_000.0) },
        Workload::Bursts { frame_bytes: 1514, rate_per_s: 50_000.0, on_us: 500.0, off_us: 500.0 },
    ];
    for arch in Arch::ALL {
        for workload in workloads {
            for pairs in [1, 8] {
                let outcome = run(scenario(arch, pairs, workload));
                let case = format!("{} {workload:?} {pairs}: {outcome:?}", arch.name());
                let takers = outcome.vms.iter().filter(|vm| vm.taken > 0).count();
                let expected = if matches!(workload, Workload::Requests { .. }) { 2 * pairs } else { pairs };
                assert_eq!(takers, usize::from(expected), "{case}");
                let most = outcome.cores_ns.iter().map(|core| core.iter().sum::<u64>()).max().unwrap();
                assert!(most <= outcome.measured_ns * 101 / 100, "a core worked for {most} ns: {case}");
                assert!(outcome.busy() > 0.0, "{case}");
                assert_eq!(outcome.dropped, 0, "{case}");
            }
        }
    }
}

/// Holds that a run can be had again, to the last event, and that another seed is another run.
#[test]
fn a_run_can_be_had_again() {
    let bursts = Workload::Bursts { frame_bytes: 600, rate_per_s: 100_000.0, on_us: 200.0, off_us: 200.0 };
    for arch in Arch::ALL {
        let first = run(scenario(arch, 4, bursts));
        assert_eq!(first, run(scenario(arch, 4, bursts)));
        let other = run(Scenario { seed: 8, ..scenario(arch, 4, bursts) });
        assert_ne!(first.hash, other.hash);
    }
}

/// Holds that a run in which nobody reads frames beyond their heads, and nobody copies the rest, is the same to the last
/// event as one in which all is copied and compared.
#[test]
fn what_nobody_reads_makes_no_difference() {
    for arch in Arch::ALL {
        for workload in [STREAM, LARGE] {
            let compared = run(scenario(arch, 3, workload));
            let unread = run(Scenario { verifies: false, ..scenario(arch, 3, workload) });
            assert_eq!(unread, compared, "{} {workload:?}", arch.name());
        }
    }
}

/// Holds that the trace has a line for each event, and that writing it changes nothing.
#[test]
fn a_trace_has_every_event() {
    let mut lines = Vec::new();
    let mut simulation = Simulation::new(scenario(Arch::HyperSwitch, 2, REQUESTS), Some(&mut lines)).unwrap();
    let traced = simulation.run();
    drop(simulation);
    assert_eq!(lines.iter().filter(|byte| **byte == b'\n').count() as u64, traced.events);
    assert_eq!(traced, run(scenario(Arch::HyperSwitch, 2, REQUESTS)));
}

/// Holds that VMs without work cost nothing: after the beginning nothing happens at all.
#[test]
fn idle_vms_cost_nothing() {
    for arch in Arch::ALL {
        let outcome = run(scenario(arch, 100, Workload::Idle));
        assert_eq!((outcome.busy(), outcome.bits_per_s()), (0.0, 0.0), "{}", arch.name());
    }
}

/// Holds what the paper says of the architectures on its machine: this switch is ahead of both others, by throughput
/// and by latency.
#[test]
fn this_switch_is_ahead() {
    let machine = Machine { cores: 32, cores_per_cache: 8 };
    for pairs in [1, 4, 16] {
        let of = |workload| {
            let one = |arch| Scenario {
                machine,
                verifies: false,
                domain_vcpus: 7,
                quantum: Duration::from_micros(20),
                ..scenario(arch, pairs, workload)
            };
            Arch::ALL.map(|arch| run(one(arch)))
        };
        let [ours, others @ ..] = of(LARGE).map(|outcome| outcome.bits_per_s());
        assert!(others.iter().all(|other| ours > *other), "{pairs}: {ours} {others:?}");
        let [ours, others @ ..] = of(REQUESTS).map(|outcome| outcome.latency_ns.unwrap().p50);
        assert!(others.iter().all(|other| ours < *other), "{pairs}: {ours} {others:?}");
    }
}

/// Holds that each optimisation does what it is for. With preemptive copy the sender copies what it sends instead of
/// the receiver, with batching fewer entries carry as many frames, with offload others copy.
#[test]
fn optimisations_do_what_they_are_for() {
    let with = |optimisations| {
        let outcome = run(Scenario { optimisations, ..scenario(Arch::HyperSwitch, 1, STREAM) });
        let frames: u64 = outcome.vms.iter().map(|vm| vm.taken).sum();
        let calls: u64 = outcome.vms.iter().map(|vm| vm.transmit_calls).sum();
        let copying = |core: &Vec<u64>| core[Account::Copying as usize];
        let others = outcome.cores_ns[2..].iter().map(copying).sum::<u64>();
        (calls as f64 / frames as f64, copying(&outcome.cores_ns[0]), copying(&outcome.cores_ns[1]), others)
    };
    let (calls, sender, receiver, others) = with(Optimisations::NONE);
    assert!(calls >= 1.0 && receiver > 3 * sender && others == 0, "{calls} {sender} {receiver} {others}");
    let (_, sender, receiver, _) = with(Optimisations { preemptive_copy: true, ..Optimisations::NONE });
    assert!(sender > 3 * receiver, "{sender} {receiver}");
    let (batched, ..) = with(Optimisations { batching: true, ..Optimisations::NONE });
    assert!(batched < calls / 2.0, "{batched} {calls}");
    let (_, sender, receiver, others) = with(Optimisations { offload: true, ..Optimisations::NONE });
    assert!(others > 3 * (sender + receiver), "{sender} {receiver} {others}");
}

/// Holds that a driver domain gives its core up behind each batch: the VMs that it tells of frames have taken these before its
/// queue for them is full.
#[test]
fn a_driver_domain_is_preempted_behind_a_batch() {
    let datagrams = Workload::Datagrams { frame_bytes: 1_500, rate_per_s: None };
    let mut costs = CostTable::embedded("opteron").unwrap();
    // A core that is quick at everything: many batches to a quantum.
    for row in costs.rows().to_vec() {
        let value = if row.unit == Unit::Nanoseconds { row.value.min(20.0) } else { row.value };
        costs.set(CostRow { value, ..row }).unwrap();
    }
    let outcome = run(Scenario {
        machine: Machine { cores: 1, cores_per_cache: 1 },
        scheduler: SchedulerConfig::Eevdf { slice_us: 1_400, tick_us: 4_000 },
        costs,
        host: HostKind::Threads,
        domain_vcpus: 1,
        socket_copies: false,
        quantum: Duration::from_micros(200),
        ..scenario(Arch::DriverDomain, 1, datagrams)
    });
    let taken = outcome.vms[1].taken;
    assert!(outcome.dropped * 10 < taken, "{} of {taken} and these dropped", outcome.dropped);
}

/// Holds that what cannot be run is refused by name.
#[test]
fn impossible_scenarios_are_refused() {
    let check = |change: fn(&mut Scenario)| {
        let mut scenario = scenario(Arch::Vhost, 2, STREAM);
        change(&mut scenario);
        Simulation::new(scenario, None).err().unwrap()
    };
    assert_eq!(check(|one| one.machine.cores = 0), ScenarioError::Cores { cores: 0 });
    assert_eq!(check(|one| one.machine.cores = 513), ScenarioError::Cores { cores: 513 });
    assert_eq!(check(|one| one.vms.clear()), ScenarioError::Vms(0));
    assert_eq!(check(|one| one.vms[1].peer = 1), ScenarioError::Peer { vm: 1, peer: 1 });
    assert_eq!(check(|one| one.vms[0].peer = 4), ScenarioError::Peer { vm: 0, peer: 4 });
    assert_eq!(check(|one| one.quantum = Duration::ZERO), ScenarioError::Zero { what: "the quantum" });
    let short = Workload::Datagrams { frame_bytes: 59, rate_per_s: None };
    let mut one = scenario(Arch::Vhost, 2, STREAM);
    one.vms[3].workload = short;
    let error = Simulation::new(one, None).err().unwrap();
    assert_eq!(error, ScenarioError::FrameBytes { bytes: 59, least: 60, most: 65_536 });
}
