//! `hyper-switch sim swarm`: trials of the switch on simulated machines, drawn at random and checked after each event.

use crate::cli::SwarmOptions;
use crate::exit::{Failure, FailureKind};
use crate::progress::{Progress, time_left};
use crate::table::{Column, Table};
use hyper_switch_sim::swarm::{self, Hunt};
use serde::Serialize;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// What a trial is planned to take, on one core: only its ratio to the others' counts.
const PLANNED: Duration = Duration::from_millis(20);

/// Trials that failed are shown up to so many.
const MOST_SHOWN: usize = 20;

/// What came of a swarm.
#[derive(Serialize)]
pub struct SwarmReport {
    #[serde(flatten)]
    hunt: Hunt,
    /// Seconds that it took.
    seconds: f64,
}

/// Runs the trials.
///
/// # Errors
/// The trace cannot be written.
pub fn run(options: &SwarmOptions) -> Result<SwarmReport, Failure> {
    swarm::catch_panics();
    #[cfg(feature = "planted-faults")]
    if let Some(fault) = options.fault {
        fault.plant();
    }
    let begin = Instant::now();
    if let Some(path) = &options.trace {
        if options.seeds.end - options.seeds.start > 1 {
            return Err(Failure::new(FailureKind::Usage, "--trace is for one seed"));
        }
        let cannot_write = |error| Failure::from_io(format_args!("cannot write {}", path.display()), &error);
        let mut lines = BufWriter::new(File::create(path).map_err(cannot_write)?);
        swarm::run_seed(options.seeds.start, Some(&mut lines));
        lines.flush().map_err(cannot_write)?;
    }
    let seeds = options.seeds.end - options.seeds.start;
    let planned = |seeds: u64| PLANNED.mul_f64(seeds as f64);
    let progress = Mutex::new(Progress::start("swarm", planned(seeds) / options.jobs as u32, options.json));
    let each = |now: swarm::Progress| {
        let elapsed = begin.elapsed();
        let left = time_left(elapsed, planned(now.done), planned(seeds)).as_secs();
        let words = format!("{} of {seeds} seeds, {} failed, {left} s left", now.done, now.failed);
        if let Ok(mut progress) = progress.lock() {
            progress.update(elapsed, &words);
        }
    };
    let hunt = Hunt::run(options.seeds.clone(), options.jobs, false, each);
    Ok(SwarmReport { hunt, seconds: begin.elapsed().as_secs_f64() })
}

impl SwarmReport {
    /// For people.
    pub fn render(&self) -> String {
        let Hunt { seeds, events, failed, coverage, .. } = &self.hunt;
        let mut table =
            Table::new([Column::left("what was drawn, and what happened"), Column::right("times")]);
        for (what, count) in coverage {
            table.row([(*what).to_owned(), count.to_string()]);
        }
        let mut text = table.to_string();
        for verdict in failed.iter().take(MOST_SHOWN) {
            let (seed, next) = (verdict.seed, verdict.seed + 1);
            if let Some(violation) = &verdict.violation {
                text += &format!(
                    "\nseed {seed}: {violation}\n  again: hyper-switch sim swarm --seeds {seed}..{next} --trace FILE\n"
                );
            }
        }
        text + &format!("\n{seeds} seeds, {events} events, {} failed, {:.0} s\n", failed.len(), self.seconds)
    }

    /// A failure if any trial failed.
    pub fn outcome(&self) -> Result<(), Failure> {
        match self.hunt.failed.len() {
            0 => Ok(()),
            failed => {
                let says = format!("{failed} of {} trials broke a rule", self.hunt.seeds);
                Err(Failure::new(FailureKind::Runtime, says))
            }
        }
    }
}
