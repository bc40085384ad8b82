//! How many events a second a core simulates, tracing off: what an event costs is the engine, and the switch's and the
//! guests' real code that it stands for. `cargo bench -p hyper-switch-sim --bench events`
//!
//! Requests are small frames, in which everything is copied; of a stream's 64 KiB frames only what guests read is, as in all
//! runs that do not compare contents.

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use hyper_switch_dataplane::policy::Optimisations;
use hyper_switch_sim::Workload;
use hyper_switch_sim::costs::CostTable;
use hyper_switch_sim::machine::Machine;
use hyper_switch_sim::scenario::{Arch, Scenario};
use hyper_switch_sim::scheduler::SchedulerConfig;
use hyper_switch_sim::simulation::Simulation;
use std::time::Duration;

const REQUESTS: Workload = Workload::Requests { frame_bytes: 60, think_us: 0.0, server_computes: false };
const STREAM: Workload = Workload::Stream { frame_bytes: 65_226, window_bytes: 1 << 20, ack_every: 2 };

/// Eight pairs on the paper's machine, for 20 ms.
fn scenario(arch: Arch, workload: Workload) -> Scenario {
    Scenario {
        seed: 1,
        machine: Machine { cores: 32, cores_per_cache: 8 },
        scheduler: SchedulerConfig::default(),
        costs: CostTable::embedded("opteron").expect("the program carries that table"),
        host: Default::default(),
        arch,
        optimisations: Optimisations::ALL,
        pace: Default::default(),
        doorbell: Default::default(),
        domain_vcpus: 7,
        vms: Scenario::pairs(8, workload),
        socket_copies: true,
        verifies: false,
        quantum: Duration::from_micros(20),
        jitter: 0.1,
        warmup: Duration::from_millis(1),
        duration: Duration::from_millis(19),
    }
}

fn events(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("events");
    group.sample_size(20);
    for (name, workload) in [("requests", REQUESTS), ("stream", STREAM)] {
        for arch in Arch::ALL {
            let ready = || Simulation::new(scenario(arch, workload), None).expect("the scenario is sound");
            group.throughput(Throughput::Elements(ready().run().events));
            group.bench_function(format!("{name}/{}", arch.name()), |bencher| {
                bencher.iter_batched_ref(ready, Simulation::run, BatchSize::PerIteration);
            });
        }
    }
}

criterion_group!(benches, events);
criterion_main!(benches);
