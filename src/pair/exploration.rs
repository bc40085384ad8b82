//! An exploration: all points of a matrix measured in turn, and that as often as is asked for, so that whatever
//! changes on the machine meanwhile changes for all of them.

use super::{backend_name, cannot, interruption, measure, nothing_measured, trial};
use crate::cli::PairOptions;
use crate::exit::Failure;
use crate::experiment::{ExperimentReport, Point, PointReport};
use crate::machine::Machine;
use crate::progress::{Progress, time_left};
use crate::report::WorkloadReport;
use crate::table::span;
use std::num::NonZeroU64;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use std::{env, fs, iter};

/// Measures all points. Answers the report and, where it ended early because of it, the failure; SIGINT or SIGTERM
/// ends it early too, without the run that it interrupts.
///
/// # Errors
/// As of [`run`](super::run), where nothing was measured before; a folder for the report that cannot be made.
pub fn explore(options: &PairOptions) -> Result<(ExperimentReport, Result<(), Failure>), Failure> {
    if let Some(folder) = &options.report {
        // Now, lest all be measured for nothing.
        fs::create_dir_all(folder).map_err(cannot(format_args!("make the folder {}", folder.display())))?;
    }
    let interrupted = interruption()?;
    let points = options.points();
    let start = Instant::now();
    let planned = |point: Point| trial(point, options).duration;
    let all = points.iter().copied().map(planned).sum::<Duration>() * u32::from(options.repeat);
    let of = points.len() * usize::from(options.repeat);
    let (mut number, mut begun) = (0, Duration::ZERO);
    let mut begin = |point: Point| {
        let left = span(time_left(start.elapsed(), begun, all));
        number += 1;
        begun += planned(point);
        let label = format!("{number}/{of}, {left} left: {point}");
        Progress::start(&label, planned(point), options.json)
    };
    let mut runs = vec![Vec::new(); points.len()];
    let outcome = measure_all(&points, options, &interrupted, &mut runs, &mut begin);
    if runs.iter().all(Vec::is_empty) {
        return Err(outcome.err().unwrap_or_else(nothing_measured));
    }
    Ok((report(options, points, &runs), outcome))
}

/// Measures all points once, unless it is interrupted. `begin` is told of each before it is measured.
///
/// # Errors
/// As of [`run`](super::run).
pub(crate) fn explore_once(
    options: &PairOptions,
    interrupted: &AtomicBool,
    mut begin: impl FnMut(Point),
) -> Result<Option<ExperimentReport>, Failure> {
    let options = PairOptions { repeat: 1, ..options.clone() };
    let points = options.points();
    let mut runs = vec![Vec::new(); points.len()];
    let mut begin = |point| {
        begin(point);
        Progress::silent()
    };
    measure_all(&points, &options, interrupted, &mut runs, &mut begin)?;
    let report = report(&options, points, &runs);
    Ok(report.complete.then_some(report))
}

/// Adds to the runs of each point, until all are there or something ends it. `begin` is told of each run before it is one,
/// and answers where it shows itself.
fn measure_all(
    points: &[Point],
    options: &PairOptions,
    interrupted: &AtomicBool,
    runs: &mut [Vec<WorkloadReport>],
    begin: &mut dyn FnMut(Point) -> Progress,
) -> Result<(), Failure> {
    for _ in 0..options.repeat {
        for (point, runs) in points.iter().zip(&mut *runs) {
            let run = measure(*point, options, interrupted, begin(*point))
                .map_err(|failure| Failure { message: format!("{point}: {}", failure.message), ..failure })?;
            if interrupted.load(Ordering::Relaxed) {
                return Ok(());
            }
            runs.extend(run);
        }
    }
    Ok(())
}

/// The report on what the runs of each point came to.
fn report(options: &PairOptions, points: Vec<Point>, runs: &[Vec<WorkloadReport>]) -> ExperimentReport {
    ExperimentReport {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        // The name only: where the program lies is of no use to others.
        command: iter::once("hyper-switch".to_owned())
            .chain(env::args().skip(1))
            .collect::<Vec<_>>()
            .join(" "),
        backend: backend_name(options.backend).to_owned(),
        seconds: options.duration.as_secs_f64(),
        repeat: options.repeat,
        seed: options.seed,
        entry_cost_ns: options.entry_cost_ns,
        frame_bytes: options.frames_are_alike().then_some(options.frame_bytes),
        rate_per_s: options.rate_per_s.map(NonZeroU64::get),
        complete: runs.iter().all(|runs| runs.len() == usize::from(options.repeat)),
        machine: Machine::this(),
        points: points
            .into_iter()
            .zip(runs)
            .filter(|(_, runs)| !runs.is_empty())
            .map(|(point, runs)| PointReport::of(point, runs))
            .collect(),
    }
}
