//! Rounds: a plan's costs calibrated, its points measured on real threads, and the same simulated by these costs, several
//! times in turn. A machine that changes its speed from minute to minute has one speed in most rounds, and so real and
//! simulated are compared within each.

use super::counterpart::counterpart;
use super::validation::Validation;
use super::{Chosen, PointReport, SimReport, jobs, make_folder};
use crate::calibrate;
use crate::cli::{PairOptions, SimRun};
use crate::exit::{Failure, FailureKind};
use crate::experiment::ExperimentReport;
use crate::host::usable_cpus;
use crate::pair::{explore_once, interruption};
use crate::progress::Progress;
use crate::table::span;
use hyper_switch_sim::costs::CostTable;
use hyper_switch_sim::plan::Point;
use std::fs;
use std::num::NonZeroU16;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// What one round came to.
struct Round {
    /// As they were calibrated.
    calibrated: CostTable,
    /// With what the plan sets.
    costs: CostTable,
    measured: ExperimentReport,
    simulated: Vec<PointReport>,
}

/// Runs as many rounds as the options say. An interruption ends them early, with those that are complete.
///
/// # Errors
/// The plan cannot be measured; a round that fails; an interruption in the first.
pub(super) fn run(mut chosen: Chosen, options: &SimRun) -> Result<SimReport, Failure> {
    let points: Vec<Point> = chosen.points.iter().map(|(_, point)| *point).collect();
    let real = counterpart(&chosen.plan, &points, &usable_cpus())?;
    if let Some(folder) = &options.report {
        make_folder(folder)?;
    }
    let wanted = options.measure.map_or(1, NonZeroU16::get);
    let interrupted = interruption()?;
    let mut watch = Watch::start(&chosen, options, &real, wanted);
    let mut rounds = Vec::new();
    for number in 1..=wanted {
        match round(&chosen, options, &real, &interrupted, &mut watch) {
            Err(_) if interrupted.load(Ordering::Relaxed) => break,
            ended => rounds.push(ended?),
        }
        if let (Some(folder), Some(round)) = (&options.report, rounds.last()) {
            round.keep(&folder.join(format!("round-{number}")))?;
        }
    }
    drop(watch);
    if rounds.is_empty() {
        return Err(interruption_of("any round"));
    }

    let compared: Vec<_> = rounds.iter().map(|round| (&round.measured, round.simulated.as_slice())).collect();
    let mut validation = Validation::of(rounds[0].measured.command.clone(), &compared)?;
    let complete = rounds.len() == usize::from(wanted);
    let shown = middle(rounds.iter().map(Round::simulated_gbps).collect());
    validation.shown_round = shown + 1;
    let Round { costs, simulated, .. } = rounds.swap_remove(shown);
    chosen.plan.costs = costs.name().to_owned();
    let report = SimReport::new(chosen.plan, costs, complete, simulated, chosen.text);
    Ok(SimReport { validation: Some(validation), ..report })
}

/// One round. If it is interrupted, that is an error.
fn round(
    chosen: &Chosen,
    options: &SimRun,
    real: &PairOptions,
    interrupted: &AtomicBool,
    watch: &mut Watch,
) -> Result<Round, Failure> {
    let go_on = || match interrupted.load(Ordering::Relaxed) {
        true => Err(interruption_of("the round")),
        false => Ok(()),
    };
    let calibrated = calibrate::cost_table(options.quick, &mut |what| {
        watch.at(watch.of_expected(), what);
        go_on()
    })?;
    watch.complete();

    let (points, mut begun) = (chosen.points.len() as f64, 0.0);
    let measured = explore_once(real, interrupted, |point| {
        watch.at(begun / points, &point.to_string());
        begun += 1.0;
    })?;
    let measured = measured.ok_or_else(|| interruption_of("the round"))?;
    watch.complete();

    let costs = chosen.plan.set_in(calibrated.clone()).map_err(|error| chosen.refused(error))?;
    let scenarios = chosen.scenarios(&costs)?;
    let simulated = chosen.simulate(&scenarios, options.jobs, interrupted, None, |done| {
        let words = format!("{} of {} points simulated", done.runs, scenarios.len());
        watch.at(done.part, &words);
    })?;
    go_on()?;
    watch.complete();
    Ok(Round { calibrated, costs, measured, simulated })
}

fn interruption_of(what: &str) -> Failure {
    Failure::new(FailureKind::Runtime, format!("interrupted before {what} was complete"))
}

impl Round {
    /// All that was simulated, as one number.
    fn simulated_gbps(&self) -> f64 {
        self.simulated.iter().map(|point| point.throughput_gbps).sum()
    }

    /// Writes what the round compared into `folder`, to be compared again by `--costs` and `--measured`.
    fn keep(&self, folder: &Path) -> Result<(), Failure> {
        make_folder(folder)?;
        let json = serde_json::to_string_pretty(&self.measured)
            .map_err(|error| Failure::new(FailureKind::Runtime, format!("cannot write JSON: {error}")))?;
        for (name, text) in [("costs.toml", self.calibrated.to_string()), ("measured.json", json)] {
            let path = folder.join(name);
            fs::write(&path, text)
                .map_err(|error| Failure::from_io(format_args!("cannot write {}", path.display()), &error))?;
        }
        Ok(())
    }
}

/// Where the middle one of these values is, at least one; of an even number, the lower of the middle two.
fn middle(values: Vec<f64>) -> usize {
    let mut order: Vec<_> = (0..values.len()).collect();
    order.sort_by(|one, other| values[*one].total_cmp(&values[*other]));
    order[(order.len() - 1) / 2]
}

/// Shows how far the rounds are.
struct Watch {
    schedule: Schedule,
    progress: Progress,
    /// What all rounds were expected to take when they began.
    planned: Duration,
    /// When the part that is at work began.
    since: Instant,
}

impl Watch {
    fn start(chosen: &Chosen, options: &SimRun, real: &PairOptions, rounds: u16) -> Watch {
        let (points, run) = (chosen.points.len() as f64, chosen.plan.run);
        let jobs = jobs(options.jobs);
        // As long as it is real: nobody knows before the first.
        let simulated = Duration::from_secs_f64((run.duration_ms + run.warmup_ms) / 1e3 / jobs as f64);
        let parts =
            [calibrate::expected(options.quick), real.duration.mul_f64(points), simulated.mul_f64(points)];
        let schedule = Schedule { rounds, parts, complete: 0 };
        let planned = schedule.whole();
        let progress = Progress::start(&chosen.plan.name, planned, options.json);
        Watch { schedule, progress, planned, since: Instant::now() }
    }

    /// The part that is at work is so far, of `0..=1`.
    fn at(&mut self, of_part: f64, what: &str) {
        let Schedule { rounds, complete, .. } = self.schedule;
        let (whole, passed) = (self.schedule.whole(), self.schedule.passed(of_part));
        let left = span(whole.saturating_sub(passed));
        let words = format!("{left} left, round {} of {rounds}: {what}", complete / PARTS + 1);
        self.progress.update(self.planned.mul_f64(passed.as_secs_f64() / whole.as_secs_f64()), &words);
    }

    /// How far the part is if it takes as long as is expected.
    fn of_expected(&self) -> f64 {
        let expected = self.schedule.parts[self.schedule.complete % PARTS];
        self.since.elapsed().as_secs_f64() / expected.as_secs_f64()
    }

    /// The part that is at work is complete, and the next one begins.
    fn complete(&mut self) {
        self.schedule.complete(self.since.elapsed());
        self.since = Instant::now();
    }
}

/// The parts of a round: to calibrate, to measure, to simulate.
const PARTS: usize = 3;

/// How long the parts of a round take: as expected until one was complete, then as it was.
struct Schedule {
    rounds: u16,
    parts: [Duration; PARTS],
    /// Of all rounds.
    complete: usize,
}

impl Schedule {
    fn round(&self) -> Duration {
        self.parts.iter().sum()
    }

    /// What all rounds take.
    fn whole(&self) -> Duration {
        self.round() * u32::from(self.rounds)
    }

    /// How much of that has passed if the part at work is so far, of `0..=1`.
    fn passed(&self, of_part: f64) -> Duration {
        let (rounds, parts) = (self.complete / PARTS, self.complete % PARTS);
        let before = self.round() * rounds as u32 + self.parts[..parts].iter().sum::<Duration>();
        before + self.parts[parts].mul_f64(of_part.clamp(0.0, 1.0))
    }

    fn complete(&mut self, took: Duration) {
        self.parts[self.complete % PARTS] = took;
        self.complete += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Holds that a part is expected to take what it took last, and before that, as planned.
    #[test]
    fn a_schedule_follows_what_was() {
        let seconds = Duration::from_secs;
        let mut schedule = Schedule { rounds: 2, parts: [6, 10, 4].map(seconds), complete: 0 };
        assert_eq!((schedule.whole(), schedule.passed(0.5)), (seconds(40), seconds(3)));
        assert_eq!(schedule.passed(7.0), seconds(6), "it takes longer than expected");
        schedule.complete(seconds(8));
        assert_eq!((schedule.whole(), schedule.passed(0.5)), (seconds(44), seconds(13)));
        schedule.complete(seconds(10));
        schedule.complete(seconds(2));
        assert_eq!((schedule.whole(), schedule.passed(0.25)), (seconds(40), seconds(22)));
    }

    /// Holds which round is the middle one of odd and even numbers of them.
    #[test]
    fn the_middle_is_found() {
        for (values, at) in [(vec![1.0], 0), (vec![3.0, 1.0, 2.0], 2), (vec![4.0, 1.0, 3.0, 2.0], 3)] {
            assert_eq!(middle(values.clone()), at, "{values:?}");
        }
    }
}
