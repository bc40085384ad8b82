//! `hyper-switch pair`: pairs of VMs that talk to each other across a switch, and what that came to.
//!
//! Each workload has a switch and VMs of its own, so that none profits from what an earlier one warmed. The VMs
//! find each other as all do: by ARP, which the switch floods, and by the learning of the control plane.
//!
//! | module | noun |
//! | --- | --- |
//! | `exploration` | all points of a matrix, in turn, as often as is asked for |
//! | `trial` | one workload between all pairs: who takes part, what arrived when, when to stop |
//! | `inprocess` | VMs that are threads of this process, with VIRTIO rings |
//! | `tenant` | what runs in such a VM |
//! | `arch` | what carries frames between them: this switch, or what it is measured against |
//! | `cost` | what an entry costs, and who used the processor |
//! | `memcpy` | what a bare copy of the same frames does here |
//! | `tap` | VMs that are network namespaces behind TAPs |

mod arch;
mod cost;
mod exploration;
mod inprocess;
mod memcpy;
mod tap;
mod tenant;
mod trial;

pub(crate) use arch::{Contender, Relay, by_hand};
pub use exploration::explore;
pub(crate) use exploration::explore_once;

use crate::cli::{Backend, PairOptions, Workload};
use crate::core_list::CoreList;
use crate::ctl::status::Traffic;
use crate::exit::{Failure, FailureKind};
use crate::experiment::Point;
use crate::host::Snapshot;
use crate::optimisations::OptimisationSet;
use crate::progress::Progress;
use crate::report::{PairReport, SwitchingReport, VmReport, WorkloadReport};
use hyper_switch_dataplane::PortStatus;
use hyper_switch_dataplane::api::DropReason;
use hyper_switch_dataplane::counters::DROP_REASONS;
use hyper_switch_dataplane::policy::Optimisations;
use signal_hook::consts::{SIGINT, SIGTERM};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::ScopedJoinHandle;
use std::time::Duration;
use trial::{Measured, Trial, Vm};

/// The least time that request/response is measured for where another workload ran before it.
const RR_AT_LEAST: Duration = Duration::from_secs(1);

/// Runs the workloads of a single point one after the other and answers what was measured. SIGINT or SIGTERM ends
/// it early, with what was measured until then; a second one ends the process.
///
/// # Errors
/// The backend needs rights that we do not have; a thread, a TAP or a namespace that cannot be had; a VM that
/// failed; data that did not arrive, or not as it was sent; an interruption before anything was measured.
pub fn run(options: &PairOptions) -> Result<PairReport, Failure> {
    let interrupted = interruption()?;
    let points = options.points();
    let mut report = PairReport {
        backend: backend_name(options.backend).to_owned(),
        arch: points[0].arch,
        entry_cost_ns: options.entry_cost_ns,
        pairs: points[0].pairs,
        seed: options.seed,
        interrupted: false,
        workloads: Vec::new(),
    };
    for point in points {
        let progress = Progress::start(point.workload.name(), trial(point, options).duration, options.json);
        report.workloads.extend(measure(point, options, &interrupted, progress)?);
        report.interrupted = interrupted.load(Ordering::Relaxed);
        if report.interrupted {
            break;
        }
    }
    if report.workloads.is_empty() {
        return Err(nothing_measured());
    }
    Ok(report)
}

/// A flag that the first SIGINT or SIGTERM sets. The second ends the process.
pub(crate) fn interruption() -> Result<Arc<AtomicBool>, Failure> {
    let interrupted = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        // In this order: the first signal finds the flag clear, and sets it.
        signal_hook::flag::register_conditional_shutdown(signal, 128 + signal, interrupted.clone())
            .and_then(|_| signal_hook::flag::register(signal, interrupted.clone()))
            .map_err(cannot("catch signals"))?;
    }
    Ok(interrupted)
}

/// Measures one point once; nothing, if it was interrupted before that began.
fn measure(
    point: Point,
    options: &PairOptions,
    interrupted: &AtomicBool,
    mut progress: Progress,
) -> Result<Option<WorkloadReport>, Failure> {
    let trial = trial(point, options);
    let optimisations = Optimisations::from(point.optimisations.unwrap_or(OptimisationSet::ALL));
    let outcome = match options.backend {
        Backend::Inprocess => {
            let setting = inprocess::Setting {
                arch: point.arch,
                optimisations,
                cost: cost::EntryCost { ns: options.entry_cost_ns },
                paces: options.paces,
                cores: options.cores.as_ref().map_or(&[], CoreList::cores),
            };
            inprocess::run(&trial, setting, interrupted, &mut progress)?
        }
        Backend::Tap => tap::run(&trial, optimisations, interrupted, &mut progress)?,
    };
    Ok(outcome.report(&trial))
}

fn nothing_measured() -> Failure {
    Failure::new(FailureKind::Runtime, "interrupted before anything was measured")
}

fn backend_name(backend: Backend) -> &'static str {
    match backend {
        Backend::Inprocess => "inprocess",
        Backend::Tap => "tap",
    }
}

/// One point. Latency takes fewer samples than throughput: beside other workloads, `rr` takes half the time.
fn trial(point: Point, options: &PairOptions) -> Trial {
    let Point { workload, pairs, .. } = point;
    let PairOptions { duration, seed, frame_bytes, rate_per_s, .. } = *options;
    let duration = match workload {
        Workload::Rr if options.workloads.len() > 1 => (duration / 2).max(RR_AT_LEAST),
        _ => duration,
    };
    Trial::new(workload, pairs, duration, seed, frame_bytes, rate_per_s)
}

/// What came of a trial.
struct Outcome {
    /// Nothing, if it was interrupted before it was measured.
    measured: Option<Measured>,
    /// What the switch did for each VM, from before the first frame until all had ended.
    vms: Vec<VmReport>,
    /// What the switch's own threads did meanwhile, where it is known.
    switching: Option<SwitchingReport>,
}

impl Outcome {
    fn between(
        trial: &Trial,
        measured: Option<Measured>,
        before: Option<Snapshot>,
        after: Option<Snapshot>,
    ) -> Result<Outcome, Failure> {
        let (Some(before), Some(after)) = (before, after) else {
            return Err(Failure::new(FailureKind::Runtime, "the switch stopped during the measurement"));
        };
        Ok(Outcome { measured, vms: vm_reports(trial.vms(), &before, &after), switching: None })
    }

    fn report(self, trial: &Trial) -> Option<WorkloadReport> {
        let measured = self.measured?;
        let rate = measured.per_second();
        let payload_bytes_per_s = match trial.workload {
            Workload::Stream => Some(rate),
            Workload::Udp => Some(rate * trial.datagram_bytes() as f64),
            Workload::Raw => Some(rate * trial.frame_bytes as f64),
            Workload::Rr => None,
        };
        let (lost, reordered) = trial.lost_and_reordered().unzip();
        let latencies = trial.latencies_ns();
        let latency_us = |ns: u64| (!latencies.is_empty()).then_some(ns as f64 / 1e3);
        Some(WorkloadReport {
            workload: trial.workload,
            seconds: measured.elapsed.as_secs_f64(),
            memcpy_gbps: (trial.workload == Workload::Raw).then(|| memcpy::gbps(trial.frame_bytes)),
            throughput_gbps: payload_bytes_per_s.map(|bytes| bytes * 8.0 / 1e9),
            transactions_per_s: (trial.workload != Workload::Stream).then_some(rate),
            p50_us: latency_us(latencies.value_at_quantile(0.5)),
            p99_us: latency_us(latencies.value_at_quantile(0.99)),
            max_us: latency_us(latencies.max()),
            lost,
            reordered,
            vms: self.vms,
            switching: self.switching,
        })
    }
}

/// What the switch did for each of `vms` between two moments.
fn vm_reports(vms: impl Iterator<Item = Vm>, before: &Snapshot, after: &Snapshot) -> Vec<VmReport> {
    let port =
        |snapshot: &Snapshot, vm: Vm| snapshot.ports.iter().find(|port| port.info.name == vm.name()).cloned();
    vms.filter_map(|vm| Some(vm_report(&port(before, vm)?, &port(after, vm)?))).collect()
}

/// What the switch did for one VM between two moments.
fn vm_report(start: &PortStatus, end: &PortStatus) -> VmReport {
    let counters = end.counters.clone().since(&start.counters);
    let traffic = |frames, bytes, drops: [u64; DROP_REASONS], work_ns| Traffic {
        frames,
        bytes,
        drops: DropReason::ALL.iter().copied().zip(drops).collect(),
        work_ns,
    };
    let (tx, rx) = (counters.tx, counters.rx);
    VmReport {
        name: end.info.name.clone(),
        tx: traffic(tx.frames, tx.bytes, counters.tx_drops, tx.switching_ns),
        rx: traffic(rx.frames, rx.bytes, counters.rx_drops, rx.copying_ns),
        transmit_calls: tx.entries,
        receive_calls: rx.entries,
        notifications: rx.notifications,
        copies: rx.copies,
        copied_bytes: rx.copied_bytes,
        cpu_ns: None,
    }
}

/// Waits for the threads of VMs, which have been told to stop, and answers what each came to.
///
/// # Errors
/// The first VM that failed, and how.
fn joined<T>(threads: Vec<(Vm, ScopedJoinHandle<'_, Result<T, String>>)>) -> Result<Vec<T>, Failure> {
    let (mut ended, mut failed) = (Vec::new(), None);
    for (vm, thread) in threads {
        let error = match thread.join() {
            Ok(Ok(end)) => {
                ended.push(end);
                continue;
            }
            Ok(Err(error)) => error,
            // What it said is on standard error already.
            Err(_) => "its thread panicked".to_owned(),
        };
        failed
            .get_or_insert_with(|| Failure::new(FailureKind::Runtime, format!("VM {}: {error}", vm.name())));
    }
    failed.map_or(Ok(ended), Err)
}

/// Names what could not be done in a failure.
fn cannot(what: impl fmt::Display) -> impl FnOnce(std::io::Error) -> Failure {
    move |error| Failure::from_io(format_args!("cannot {what}"), &error)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{Arch, Paces};
    use std::thread;

    fn options(workloads: &[Workload], seconds: f64) -> PairOptions {
        PairOptions {
            backend: Backend::Inprocess,
            workloads: workloads.to_vec(),
            archs: vec![Arch::HyperSwitch],
            optimisations: vec![OptimisationSet::ALL],
            pairs: vec![1],
            repeat: 1,
            report: None,
            duration: Duration::from_secs_f64(seconds),
            json: true,
            seed: 1,
            frame_bytes: 60,
            rate_per_s: None,
            entry_cost_ns: 0,
            cores: None,
            paces: Paces::default(),
        }
    }

    /// Holds that `rr` takes half the time behind a stream but never less than a second, and alone all of it.
    #[test]
    fn requests_take_half_the_time() {
        let seconds = |workloads: &[Workload], seconds| {
            let options = options(workloads, seconds);
            let seconds = |point| trial(point, &options).duration.as_secs_f64();
            options.points().into_iter().map(seconds).collect::<Vec<_>>()
        };
        let both = [Workload::Stream, Workload::Rr];
        assert_eq!(seconds(&both, 5.0), [5.0, 2.5]);
        assert_eq!(seconds(&both, 0.5), [0.5, 1.0]);
        assert_eq!(seconds(&[Workload::Rr], 0.5), [0.5]);
    }

    /// Holds that a VM that failed or panicked ends the command, by the name of the first such VM.
    #[test]
    fn a_vm_that_failed_is_named() {
        let vms: Vec<_> = Trial::new(Workload::Rr, 2, Duration::ZERO, 1, 60, None).vms().collect();
        let end = |outcomes: [fn() -> Result<(), String>; 3]| {
            thread::scope(|scope| {
                joined(vms.iter().copied().zip(outcomes.map(|outcome| scope.spawn(outcome))).collect())
            })
        };
        assert_eq!(end([|| Ok(()); 3]), Ok(vec![(); 3]));
        let failure = end([|| Ok(()), || Err("the ring is broken".into()), || panic!("as the test wants")]);
        assert_eq!(failure.unwrap_err().message, "VM b0: the ring is broken");
        let failure = end([|| Ok(()), || Ok(()), || panic!("as the test wants")]).unwrap_err();
        assert_eq!(
            (failure.kind, failure.message.as_str()),
            (FailureKind::Runtime, "VM a1: its thread panicked")
        );
    }
}
