//! Many runs on all cores: the longest first, so that none is left alone at the end. What comes of each does not depend on
//! when and beside which others it runs, as no two share anything.

use crate::guest::program::Workload;
use crate::scenario::{Outcome, Scenario, ScenarioError};
use crate::simulation::Simulation;
use std::cmp::Reverse;
use std::io::Write;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

/// Events between two looks at whether to stop.
const LOOK_EVERY: u32 = 4_096;
/// Between two reports of progress where no run ends.
const TELL_EVERY: Duration = Duration::from_millis(100);

/// How far a sweep is.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Progress {
    /// Runs that are complete.
    pub runs: usize,
    /// Simulated time so far, over all runs.
    pub simulated: Duration,
    /// The part of the work that is done, of `0..=1`: simulated time by the number of VMs that are at work in it.
    pub part: f64,
}

/// Why a sweep ended early.
#[derive(Debug, thiserror::Error)]
pub enum SweepError {
    /// A scenario cannot be run.
    #[error("run {number}: {error}")]
    Scenario {
        /// Which, from 1.
        number: usize,
        /// Why.
        error: ScenarioError,
    },
    /// The trace cannot be written.
    #[error("cannot write the trace: {0}")]
    Trace(std::io::Error),
}

/// Where one run's trace goes.
pub type Lines<'w> = &'w mut (dyn Write + Send);

/// What the threads of a sweep share.
struct Shared<'s, 'w> {
    scenarios: &'s [Scenario],
    /// The numbers of the scenarios, those with most work first.
    order: Vec<usize>,
    next: AtomicUsize,
    stop: &'s AtomicBool,
    /// Of each run.
    simulated_ns: Vec<AtomicU64>,
    trace: Mutex<Option<Lines<'w>>>,
}

/// The work of a scenario, of no unit.
fn work(scenario: &Scenario) -> f64 {
    let active = scenario.vms.iter().filter(|vm| vm.workload != Workload::Idle).count();
    (scenario.warmup + scenario.duration).as_secs_f64() * active.max(1) as f64
}

/// Runs all `scenarios` on so many threads and answers what came of each, in their order. When `stop` is set it ends with
/// `None` for those that are not complete. `watch` is called every now and then. The first scenario's trace goes to `trace`.
///
/// # Errors
/// The first scenario that cannot be run; a trace that cannot be written.
pub fn sweep(
    scenarios: &[Scenario],
    jobs: usize,
    stop: &AtomicBool,
    trace: Option<Lines<'_>>,
    mut watch: impl FnMut(Progress),
) -> Result<Vec<Option<Outcome>>, SweepError> {
    for (scenario, number) in scenarios.iter().zip(1..) {
        scenario.check().map_err(|error| SweepError::Scenario { number, error })?;
    }
    let mut order: Vec<_> = (0..scenarios.len()).collect();
    order.sort_by_key(|at| Reverse((work(&scenarios[*at]) * 1e9) as u64));
    let shared = Shared {
        scenarios,
        order,
        next: AtomicUsize::new(0),
        stop,
        simulated_ns: scenarios.iter().map(|_| AtomicU64::new(0)).collect(),
        trace: Mutex::new(trace),
    };
    let mut outcomes = vec![None; scenarios.len()];
    let (sender, receiver) = mpsc::channel();
    thread::scope(|scope| {
        for _ in 0..jobs.clamp(1, scenarios.len().max(1)) {
            let (sender, shared) = (sender.clone(), &shared);
            scope.spawn(move || shared.run_some(&sender));
        }
        drop(sender);
        let mut error = None;
        loop {
            match receiver.recv_timeout(TELL_EVERY) {
                Ok((at, Ok(outcome))) => outcomes[at] = outcome,
                Ok((_, Err(failed))) => error = error.or(Some(failed)),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            watch(shared.progress(outcomes.iter().flatten().count()));
        }
        error.map_or(Ok(()), Err)
    })?;
    Ok(outcomes)
}

type Ended = (usize, Result<Option<Outcome>, SweepError>);

impl Shared<'_, '_> {
    fn run_some(&self, ended: &mpsc::Sender<Ended>) {
        while let Some(at) = self.order.get(self.next.fetch_add(1, Ordering::Relaxed)) {
            if self.stop.load(Ordering::Relaxed) {
                break;
            }
            ended.send((*at, self.run(*at))).expect("whoever listens does so until all have ended");
        }
    }

    /// Runs one; nothing if it is stopped meanwhile.
    fn run(&self, at: usize) -> Result<Option<Outcome>, SweepError> {
        let mut trace = match at {
            0 => self.trace.lock().unwrap_or_else(PoisonError::into_inner).take(),
            _ => None,
        };
        let lines = trace.as_mut().map(|lines| &mut **lines as &mut dyn Write);
        let mut simulation = Simulation::new(self.scenarios[at].clone(), lines)
            .map_err(|error| SweepError::Scenario { number: at + 1, error })?;
        loop {
            let goes_on = (0..LOOK_EVERY).all(|_| simulation.step());
            self.simulated_ns[at].store(simulation.now_ns(), Ordering::Relaxed);
            if !goes_on {
                break;
            }
            if self.stop.load(Ordering::Relaxed) {
                return Ok(None);
            }
        }
        let outcome = simulation.outcome();
        if let Some(error) = simulation.trace_error() {
            return Err(SweepError::Trace(error));
        }
        drop(simulation);
        trace.map_or(Ok(()), Write::flush).map_err(SweepError::Trace)?;
        Ok(Some(outcome))
    }

    fn progress(&self, runs: usize) -> Progress {
        let (mut simulated, mut done, mut all) = (Duration::ZERO, 0.0, 0.0);
        for (scenario, ns) in self.scenarios.iter().zip(&self.simulated_ns) {
            let run = Duration::from_nanos(ns.load(Ordering::Relaxed));
            simulated += run;
            all += work(scenario);
            done += work(scenario) * run.as_secs_f64() / (scenario.warmup + scenario.duration).as_secs_f64();
        }
        Progress { runs, simulated, part: done / all }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Plan;

    fn scenarios() -> Vec<Scenario> {
        let (_, text) = crate::plan::embedded().find(|(name, _)| *name == "smoke").unwrap();
        let plan = Plan::parse(text).unwrap();
        plan.scenarios(&plan.cost_table("".as_ref()).unwrap()).unwrap()
    }

    /// Holds that the outcomes are in the scenarios' order and the same, whoever runs them, and that progress grows to all.
    #[test]
    fn jobs_change_nothing() {
        let scenarios = scenarios();
        let never = AtomicBool::new(false);
        let alone: Vec<_> = scenarios
            .iter()
            .map(|scenario| Some(Simulation::new(scenario.clone(), None).unwrap().run()))
            .collect();
        for jobs in [1, 2, 100] {
            let mut told = vec![Progress::default()];
            let outcomes = sweep(&scenarios, jobs, &never, None, |progress| told.push(progress)).unwrap();
            assert_eq!(outcomes, alone);
            assert!(told.is_sorted_by(|a, b| a.simulated <= b.simulated && a.part <= b.part), "{told:?}");
            let end = told.last().unwrap();
            assert_eq!(end.runs, scenarios.len());
            assert!((end.part - 1.0).abs() < 1e-9, "{end:?}");
        }
    }

    /// Holds that a sweep that is stopped answers what is complete, and nothing for what is not.
    #[test]
    fn a_sweep_can_be_stopped() {
        let stop = AtomicBool::new(false);
        let mut scenarios = scenarios();
        scenarios.truncate(2);
        scenarios[0].duration = Duration::from_secs(3_600);
        let outcomes = sweep(&scenarios, 2, &stop, None, |progress| {
            stop.store(progress.runs > 0, Ordering::Relaxed);
        });
        assert_eq!(outcomes.unwrap().iter().map(Option::is_some).collect::<Vec<_>>(), [false, true]);
    }

    /// Holds that a trace that cannot be written is an error.
    #[test]
    fn a_broken_trace_is_an_error() {
        struct Full;
        impl Write for Full {
            fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
                Err(std::io::ErrorKind::StorageFull.into())
            }
            fn flush(&mut self) -> std::io::Result<()> {
                Ok(())
            }
        }
        let result = sweep(&scenarios()[..1], 1, &AtomicBool::new(false), Some(&mut Full), |_| {});
        assert!(matches!(result, Err(SweepError::Trace(_))), "{result:?}");
    }
}
