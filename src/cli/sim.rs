//! The command line of `sim`.

use super::swarm::{self, SwarmArgs, SwarmOptions};
use clap::{ArgGroup, Args, Subcommand};
use hyper_switch_sim::plan;
use std::num::{NonZeroU16, NonZeroUsize};
use std::path::PathBuf;

/// What `hyper-switch sim` is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SimOptions {
    /// Show the plans that the program carries.
    List,
    /// Print a plan.
    Print(String),
    /// Simulate a plan.
    Run(SimRun),
    /// Try the switch on machines that are drawn at random.
    Swarm(SwarmOptions),
}

/// How a plan is to be simulated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SimRun {
    /// The name of a plan that the program carries, or the path of one.
    pub plan: String,
    /// In place of the plan's seed.
    pub seed: Option<u64>,
    /// In place of the plan's costs.
    pub costs: Option<String>,
    /// What `pair --report` wrote, to be compared.
    pub measured: Option<PathBuf>,
    /// Calibrate, measure and simulate so often, in turn.
    pub measure: Option<NonZeroU16>,
    /// Calibrate by few batches only.
    pub quick: bool,
    /// Only this point, numbered from 1.
    pub point: Option<usize>,
    /// The folder for a report with figures.
    pub report: Option<PathBuf>,
    /// The file for what happened at the only point.
    pub trace: Option<PathBuf>,
    /// Threads; as many as this process may use cores if not said.
    pub jobs: Option<NonZeroUsize>,
    /// Print one JSON document instead of a table.
    pub json: bool,
}

#[derive(Subcommand)]
enum SimCommand {
    /// Try the switch on machines that are drawn at random, with hostile VMs, dying ones and a control plane that fails, and
    /// check it after each event
    #[command(after_help = swarm::EXAMPLES)]
    Swarm(SwarmArgs),
}

#[derive(Args)]
#[command(subcommand_negates_reqs = true, args_conflicts_with_subcommands = true)]
#[command(group = ArgGroup::new("what").args(["plan", "list"]).required(true))]
#[command(group = ArgGroup::new("run").multiple(true))]
pub(super) struct SimArgs {
    #[command(subcommand)]
    command: Option<SimCommand>,

    /// A plan: one that the program carries, as --list shows them, or the path of a file
    plan: Option<String>,

    /// Show the plans that the program carries
    #[arg(long, conflicts_with = "run")]
    list: bool,

    /// Print the plan as it is written, to start one's own from
    #[arg(long, conflicts_with_all = ["run", "list"])]
    print: bool,

    /// Seeds whatever is random; without it, the plan says
    #[arg(long, value_name = "N", group = "run")]
    seed: Option<u64>,

    /// What work costs: a table that the program carries, or the path of one; without it, the plan says
    #[arg(long, value_name = "TABLE", group = "run")]
    costs: Option<String>,

    /// Compare with the results.json that `hyper-switch pair --report DIR` wrote on real threads
    #[arg(long, value_name = "FILE", group = "run")]
    measured: Option<PathBuf>,

    /// See how true it is on this machine: so often in turn calibrate, run the plan's points on real threads, and simulate
    /// them by what was calibrated [default: 5]
    ///
    /// For plans of threads and guests without a stack, such as `validation`. What was real and what was simulated are
    /// compared within each round, as a machine may change its speed from minute to minute, and the median of the rounds
    /// is each point's error. A real run is as long as a simulated one. Nothing else should run meanwhile. --report also
    /// keeps what each round measured.
    #[arg(long, value_name = "ROUNDS", group = "run", num_args = 0..=1, default_missing_value = "5",
          conflicts_with_all = ["costs", "measured", "trace"])]
    measure: Option<NonZeroU16>,

    /// With --measure: calibrate by a few batches only, to see that it works
    #[arg(long, group = "run", requires = "measure")]
    quick: bool,

    /// Simulate only this point of the plan, by its number in the table
    #[arg(long, value_name = "N", group = "run")]
    point: Option<usize>,

    /// Write results.csv, results.json, figures as SVG and a page with all of it, index.html, to this folder
    #[arg(long, value_name = "DIR", group = "run")]
    report: Option<PathBuf>,

    /// Write all that happens to this file, a line an event; for one point, which --point chooses
    ///
    /// A simulated second is some hundred thousand to some ten million lines. To compare two runs it is enough that the
    /// column `trace`, a hash of all events, is the same.
    #[arg(long, value_name = "FILE", group = "run")]
    trace: Option<PathBuf>,

    /// Threads that simulate, each a point at a time; without it, as many as there are cores. They change no result
    #[arg(long, value_name = "N", group = "run")]
    jobs: Option<NonZeroUsize>,

    /// Print one JSON document instead of a table
    #[arg(long, group = "run")]
    json: bool,
}

pub(super) const EXAMPLES: &str = "\
Examples:
  Which plans there are:
      hyper-switch sim --list
  The paper's figure, with pictures:
      hyper-switch sim fig2 --report out
  A plan of one's own, from one that is there:
      hyper-switch sim fig2 --print >mine.toml
      hyper-switch sim mine.toml
  The same on another machine, whose costs are in a table of one's own:
      hyper-switch sim fig2 --costs mine-costs.toml
  How true it is on this machine, in about two minutes:
      hyper-switch sim validation --measure --report out
  Whether the switch stands a thousand strange machines:
      hyper-switch sim swarm --seeds 0..1000
  What happens at the third point, event by event:
      hyper-switch sim smoke --point 3 --trace events.txt
  Whether two seeds give the same, for a script:
      hyper-switch sim smoke --seed 2 --json | jq '.points[].outcome.hash'";

pub(super) fn long_help() -> String {
    format!(
        "{EXAMPLES}\n\nA plan with every key; behind each that may be left out, what it is then:\n\n{}",
        plan::EXAMPLE
    )
}

impl SimArgs {
    pub(super) fn into_options(self) -> SimOptions {
        if let Some(SimCommand::Swarm(args)) = self.command {
            return SimOptions::Swarm(args.into());
        }
        let SimArgs {
            plan,
            print,
            seed,
            costs,
            measured,
            measure,
            quick,
            point,
            report,
            trace,
            jobs,
            json,
            ..
        } = self;
        match plan {
            None => SimOptions::List,
            Some(plan) if print => SimOptions::Print(plan),
            Some(plan) => SimOptions::Run(SimRun {
                plan,
                seed,
                costs,
                measured,
                measure,
                quick,
                point,
                report,
                trace,
                jobs,
                json,
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::Command;
    use crate::cli::tests::{command, refusal};

    /// `sim` has the documented defaults, and each option arrives.
    #[test]
    fn sim_is_read() {
        let mut expected = SimRun {
            plan: "fig2".to_owned(),
            seed: None,
            costs: None,
            measured: None,
            measure: None,
            quick: false,
            point: None,
            report: None,
            trace: None,
            jobs: None,
            json: false,
        };
        assert_eq!(command("sim fig2"), Command::Sim(SimOptions::Run(expected.clone())));
        expected.seed = Some(7);
        expected.costs = Some("mine.toml".to_owned());
        expected.measured = Some("real.json".into());
        expected.point = Some(3);
        expected.report = Some("out".into());
        expected.trace = Some("t".into());
        expected.jobs = NonZeroUsize::new(2);
        expected.json = true;
        let line = "sim fig2 --seed 7 --costs mine.toml --measured real.json --point 3 --report out --trace t --jobs 2 --json";
        assert_eq!(command(line), Command::Sim(SimOptions::Run(expected)));
        let measure = |line| match command(line) {
            Command::Sim(SimOptions::Run(SimRun { measure, quick, .. })) => {
                (measure.map(NonZeroU16::get), quick)
            }
            other => panic!("read as {other:?}"),
        };
        assert_eq!(measure("sim validation --measure"), (Some(5), false));
        assert_eq!(measure("sim validation --measure 3 --quick --json"), (Some(3), true));
        assert_eq!(command("sim --list"), Command::Sim(SimOptions::List));
        let Command::Sim(SimOptions::Swarm(swarm)) = command("sim swarm --seeds 3..5") else { panic!() };
        assert_eq!(swarm.seeds, 3..5);
        assert_eq!(command("sim fig2 --print"), Command::Sim(SimOptions::Print("fig2".to_owned())));
    }

    /// What excludes each other, or is missing, is refused.
    #[test]
    fn nonsense_is_refused() {
        for (line, part) in [
            ("sim", "<PLAN|--list>"),
            ("sim fig2 --list", "cannot be used with"),
            ("sim fig2 --print --json", "cannot be used with"),
            ("sim --list --seed 1", "cannot be used with"),
            ("sim fig2 --jobs 0", "number would be zero"),
            ("sim fig2 swarm", "swarm"),
            ("sim validation --measure 0", "number would be zero"),
            ("sim validation --measure --costs c.toml", "cannot be used with"),
            ("sim validation --measure --measured m.json", "cannot be used with"),
            ("sim validation --measure --point 1 --trace t", "cannot be used with"),
            ("sim validation --quick", "--measure"),
        ] {
            let text = refusal(line);
            assert!(text.contains(part), "{line}: {text}");
        }
    }
}
