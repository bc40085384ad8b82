//! The swarm finds each planted fault within so many seeds, and says by which rule. Without a fault the same seeds are
//! clean, or nothing would be shown by that. One after the other, as a fault is planted in the whole process.

use hyper_switch_dataplane::faults::Fault;
use hyper_switch_sim::swarm::{Hunt, catch_panics};

/// Seeds within which each is found.
const SEEDS: u64 = 1_000;
/// Seeds that are clean.
const CLEAN: u64 = 2_000;

fn main() {
    catch_panics();
    let jobs = std::thread::available_parallelism().map_or(1, usize::from);
    let hunt = |seeds, until_found| Hunt::run(0..seeds, jobs, until_found, |_| {});
    let clean = hunt(CLEAN, false);
    println!("no fault: {} seeds, {} events, {} failed", clean.seeds, clean.events, clean.failed.len());
    for verdict in &clean.failed {
        println!("  seed {}: {:?}", verdict.seed, verdict.violation);
    }
    let mut missed = Vec::new();
    for fault in Fault::ALL {
        fault.plant();
        let hunt = hunt(SEEDS, true);
        match hunt
            .failed
            .first()
            .and_then(|verdict| verdict.violation.as_ref().map(|found| (verdict.seed, found)))
        {
            None => missed.push(fault.name()),
            Some((seed, found)) => {
                println!("{}: after {} seeds, in seed {seed}: {found}", fault.name(), hunt.seeds);
            }
        }
    }
    assert!(clean.failed.is_empty(), "seeds without a fault failed");
    assert!(missed.is_empty(), "not found within {SEEDS} seeds: {missed:?}");
}
