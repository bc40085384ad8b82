//! `hyper-switch sim`: all points of a plan simulated, and what came of them.
//!
//! | module | noun |
//! | --- | --- |
//! | `report` | what came of a plan: table, CSV, JSON |
//! | `figures` | which figures its points make |
//! | `page` | all of it as a page of HTML |
//! | `validation` | what real threads came to, beside it |
//! | `counterpart` | what of a plan real threads can run |
//! | `rounds` | a plan calibrated, measured and simulated, several times |

mod counterpart;
mod figures;
mod page;
mod report;
mod rounds;
mod validation;

pub use report::{Comparison, PointReport, SimReport};
pub use validation::{Validated, Validation};

use crate::cli::SimRun;
use crate::exit::{Failure, FailureKind};
use crate::pair::interruption;
use crate::progress::{Progress, time_left};
use crate::source::Source;
use crate::table::{Column, Table, span};
use hyper_switch_sim::costs::CostTable;
use hyper_switch_sim::plan::{Plan, PlanError, Point, embedded};
use hyper_switch_sim::saturation::limits;
use hyper_switch_sim::scenario::{Outcome, Scenario};
use hyper_switch_sim::sweep::{self, Lines, SweepError};
use std::fs::{self, File};
use std::io::BufWriter;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::thread;
use std::time::{Duration, Instant};

/// The plans that the program carries, and what each shows.
pub fn list() -> String {
    let mut table =
        Table::new([Column::left("plan"), Column::right("points"), Column::left("what it shows")]);
    for (name, text) in embedded() {
        let plan = Plan::parse(text).expect("the plans that the program carries are sound");
        table.row([name.to_owned(), plan.points().len().to_string(), plan.title]);
    }
    format!(
        "{table}\nhyper-switch sim PLAN simulates it, hyper-switch sim PLAN --print shows all that it says\n"
    )
}

/// The text of the plan of that name, or at that path.
///
/// # Errors
/// There is none.
pub fn text(plan: &str) -> Result<String, Failure> {
    if let Some((_, text)) = embedded().find(|(name, _)| *name == plan) {
        return Ok(text.to_owned());
    }
    let is_path = plan.ends_with(".toml") || plan.contains('/');
    if !is_path && !Path::new(plan).exists() {
        let names: Vec<_> = embedded().map(|(name, _)| name).collect();
        let message = format!("the program carries no plan `{plan}`, and there is no file of that name");
        return Err(Failure::new(FailureKind::Usage, message)
            .with_help(format!("there are {}; or give the path of a TOML file", names.join(", "))));
    }
    fs::read_to_string(plan).map_err(|error| {
        Failure::new(FailureKind::Configuration, format!("cannot read the plan {plan}: {error}"))
    })
}

/// Simulates a plan, or measures it as well. SIGINT or SIGTERM ends it early, with the points, or else the rounds, that
/// are complete; a second one ends the process.
///
/// # Errors
/// There is no such plan, or it makes no sense, or cannot be measured; a file that cannot be written; a measurement that
/// fails; an interruption before any point, or round, is complete.
pub fn run(options: &SimRun) -> Result<SimReport, Failure> {
    let mut chosen = Chosen::of(options)?;
    let measured = options.measured.as_deref().map(validation::read).transpose()?;
    let costs = cost_table(&mut chosen.plan, options)?;
    let scenarios = chosen.scenarios(&costs)?;
    if options.trace.is_some() && scenarios.len() > 1 {
        let message = format!("--trace is for one point, and {} has {}", chosen.plan.name, scenarios.len());
        return Err(Failure::new(FailureKind::Usage, message).with_help("choose one by --point N"));
    }
    if options.measure.is_some() {
        return rounds::run(chosen, options);
    }
    if let Some(folder) = &options.report {
        make_folder(folder)?;
    }
    let mut trace = match &options.trace {
        Some(path) => Some(BufWriter::new(File::create(path).map_err(|error| {
            Failure::from_io(format_args!("cannot write the trace {}", path.display()), &error)
        })?)),
        None => None,
    };

    let interrupted = interruption()?;
    let all = scenarios.iter().map(|scenario| scenario.warmup + scenario.duration).sum();
    let mut progress = Progress::start(&chosen.plan.name, all, options.json);
    let start = Instant::now();
    let watch = |done: sweep::Progress| {
        let whole = Duration::from_secs(1);
        let left = time_left(start.elapsed(), whole.mul_f64(done.part.clamp(0.0, 1.0)), whole);
        // Until something is done nobody knows.
        let left = if done.part > 0.0 { format!(", {} left", span(left)) } else { String::new() };
        progress.update(done.simulated, &format!("{} of {} points{left}", done.runs, scenarios.len()));
    };
    let lines = trace.as_mut().map(|file| file as Lines<'_>);
    let points = chosen.simulate(&scenarios, options.jobs, &interrupted, lines, watch)?;
    drop(progress);

    let complete = points.len() == chosen.points.len();
    if points.is_empty() {
        return Err(Failure::new(FailureKind::Runtime, "interrupted before any point was complete"));
    }
    let validation = measured
        .map(|measured| Validation::of(measured.command.clone(), &[(&measured, &points)]))
        .transpose()?;
    Ok(SimReport { validation, ..SimReport::new(chosen.plan, costs, complete, points, chosen.text) })
}

/// A plan, and which of its points are wanted.
struct Chosen {
    /// As the command line has it.
    name: String,
    /// As it was written.
    text: String,
    plan: Plan,
    /// With their numbers, from 1.
    points: Vec<(usize, Point)>,
}

impl Chosen {
    fn of(options: &SimRun) -> Result<Chosen, Failure> {
        let (name, text) = (options.plan.clone(), text(&options.plan)?);
        let mut plan = Plan::parse(&text).map_err(|error| refused(&name, &text, error))?;
        plan.seed = options.seed.unwrap_or(plan.seed);
        let mut points: Vec<_> = (1..).zip(plan.points()).collect();
        if let Some(number) = options.point {
            let Some(at) = number.checked_sub(1).filter(|at| *at < points.len()) else {
                let message = format!("--point {number}: {} has points 1 to {}", plan.name, points.len());
                return Err(Failure::new(FailureKind::Usage, message));
            };
            points = vec![points.swap_remove(at)];
        }
        Ok(Chosen { name, text, plan, points })
    }

    fn refused(&self, error: PlanError) -> Failure {
        refused(&self.name, &self.text, error)
    }

    /// What is run at each point.
    fn scenarios(&self, costs: &CostTable) -> Result<Vec<Scenario>, Failure> {
        let all = self.plan.scenarios(costs).map_err(|error| self.refused(error))?;
        let is_chosen = |number| self.points.iter().any(|(chosen, _)| *chosen == number);
        Ok((1..).zip(all).filter(|(number, _)| is_chosen(*number)).map(|(_, scenario)| scenario).collect())
    }

    /// What came of the points that are complete, whose `scenarios` these are.
    fn simulate(
        &self,
        scenarios: &[Scenario],
        jobs: Option<NonZeroUsize>,
        interrupted: &AtomicBool,
        trace: Option<Lines<'_>>,
        watch: impl FnMut(sweep::Progress),
    ) -> Result<Vec<PointReport>, Failure> {
        let outcomes = sweep::sweep(scenarios, self::jobs(jobs), interrupted, trace, watch).map_err(
            |error| match error {
                SweepError::Trace(error) => Failure::from_io("cannot write the trace", &error),
                SweepError::Scenario { .. } => Failure::new(FailureKind::Configuration, error.to_string()),
            },
        )?;
        let ran = self.points.iter().zip(scenarios).zip(outcomes);
        let report =
            |(((number, point), scenario), outcome): ((&(usize, Point), &Scenario), Option<Outcome>)| {
                let outcome = outcome?;
                Some(PointReport::of(*number, *point, limits(scenario, &outcome), outcome))
            };
        Ok(ran.filter_map(report).collect())
    }
}

/// So many threads simulate.
fn jobs(wanted: Option<NonZeroUsize>) -> usize {
    wanted.or(thread::available_parallelism().ok()).map_or(1, NonZeroUsize::get)
}

/// Makes a folder for results. Before there are any, lest all be simulated or measured for nothing.
fn make_folder(folder: &Path) -> Result<(), Failure> {
    fs::create_dir_all(folder).map_err(|error| {
        Failure::from_io(format_args!("cannot make the folder {}", folder.display()), &error)
    })
}

/// The costs of the command line, which are found from here, or else of the plan, which are found from where it lies.
fn cost_table(plan: &mut Plan, options: &SimRun) -> Result<CostTable, Failure> {
    let mut folder = PathBuf::from(&options.plan).parent().map(Path::to_owned).unwrap_or_default();
    if let Some(costs) = &options.costs {
        folder = PathBuf::new();
        plan.costs.clone_from(costs);
    }
    plan.cost_table(&folder).map_err(|error| {
        let tables: Vec<_> = CostTable::embedded_names().collect();
        let help =
            format!("the program carries the tables {}; or give the path of a TOML file", tables.join(", "));
        Failure::new(FailureKind::Configuration, error.to_string()).with_help(help)
    })
}

/// What is wrong with a plan, and where in its text if that is known.
fn refused(plan: &str, text: &str, error: PlanError) -> Failure {
    let failure = match &error {
        PlanError::Form(form) => {
            Source { path: Path::new(plan), text }.fault(form.span().unwrap_or_default(), form.message())
        }
        _ => Failure::new(FailureKind::Configuration, format!("{plan}: {error}")),
    };
    failure.with_help("`hyper-switch sim fig2 --print` shows a plan, `hyper-switch sim --help` every key")
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use hyper_switch_sim::scenario::Latency;

    /// How `plan` is simulated if nothing else is said.
    fn options(plan: &str) -> SimRun {
        SimRun {
            plan: plan.to_owned(),
            seed: None,
            costs: None,
            measured: None,
            measure: None,
            quick: false,
            point: None,
            report: None,
            trace: None,
            jobs: None,
            json: true,
        }
    }

    /// A report on a plan of which nothing was simulated: a point's throughput is by its number, its time went to
    /// one account.
    pub(crate) fn report(text: &str) -> SimReport {
        let plan = Plan::parse(text).unwrap();
        let costs = plan.cost_table(Path::new("")).unwrap();
        let scenarios = plan.scenarios(&costs).unwrap();
        let outcome = |(number, point): (usize, Point)| {
            let scenario = &scenarios[number - 1];
            let mut outcome = Outcome {
                measured_ns: 1_000_000_000,
                vms: vec![Default::default(); scenario.vms.len()],
                latency_ns: Some(Latency { p50: 5_000, p99: 9_000, max: 9_000 })
                    .filter(|_| text.contains("requests")),
                cores_ns: vec![vec![100_000_000; hyper_switch_sim::Account::ALL.len()]],
                tasks_ns: vec![990_000_000; scenario.vms.len()],
                memory_slowdown: 1.0,
                dropped: 0,
                events: 1,
                hash: number as u64,
            };
            (outcome.vms[1].taken, outcome.vms[1].taken_bytes) = (1_000, 125_000_000 * number as u64);
            PointReport::of(number, point, limits(scenario, &outcome), outcome)
        };
        let points: Vec<_> = (1..).zip(plan.points()).map(outcome).collect();
        SimReport::new(plan, costs, true, points, text.to_owned())
    }

    /// Holds that a plan simulated again, by however many threads, is the same to the last event, and that the seed is the
    /// command line's.
    #[test]
    fn the_same_comes_again() {
        let json = |jobs| {
            let report = run(&SimRun { jobs: NonZeroUsize::new(jobs), ..options("smoke") }).unwrap();
            assert!(report.complete);
            serde_json::to_string(&report).unwrap()
        };
        let first = json(1);
        assert!(first == json(1) && first == json(2));
        let other = run(&SimRun { seed: Some(9), point: Some(1), ..options("smoke") }).unwrap();
        assert_eq!((other.plan.seed, other.points.len(), other.points[0].number), (9, 1, 1));
    }

    /// Holds that costs are found beside the plan that names them, and from here if the command line does.
    #[test]
    fn costs_lie_beside_the_plan() {
        let folder = tempfile::tempdir().unwrap();
        let mut table = CostTable::embedded("opteron").unwrap();
        table.rename("other".to_owned(), "Another.".to_owned());
        fs::write(folder.path().join("costs.toml"), table.to_string()).unwrap();
        let path = folder.path().join("plan.toml");
        let smoke = text("smoke").unwrap();
        fs::write(&path, format!("costs = 'costs.toml'\n{smoke}")).unwrap();
        let options = SimRun { point: Some(1), ..options(path.to_str().unwrap()) };
        assert_eq!(run(&options).unwrap().costs.name(), "other");
        let embedded = SimRun { costs: Some("opteron".to_owned()), ..options.clone() };
        assert_eq!(run(&embedded).unwrap().costs.name(), "opteron");
        let nowhere = SimRun { costs: Some("costs.toml".to_owned()), ..options };
        assert_eq!(run(&nowhere).unwrap_err().kind, FailureKind::Configuration);
    }
}
