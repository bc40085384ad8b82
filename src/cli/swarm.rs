//! The command line of `sim swarm`.

use clap::Args;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::path::PathBuf;
use std::str::FromStr;

pub(super) const EXAMPLES: &str = "\
Examples:
  Ten thousand trials:
      hyper-switch sim swarm --seeds 0..10000
  One of them again, with all that happens in it:
      hyper-switch sim swarm --seeds 17..18 --trace trace.txt";

/// What `hyper-switch sim swarm` is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SwarmOptions {
    /// The seeds of the trials; at least one.
    pub seeds: Range<u64>,
    /// Threads that run them.
    pub jobs: usize,
    /// Where what happens in the one trial is written.
    pub trace: Option<PathBuf>,
    /// Print one JSON document instead of tables.
    pub json: bool,
    /// The fault that is planted first.
    #[cfg(feature = "planted-faults")]
    pub fault: Option<hyper_switch_dataplane::faults::Fault>,
}

#[derive(Args)]
pub(super) struct SwarmArgs {
    /// The seeds: from the first up to, and without, the last
    #[arg(long, value_name = "A..B", default_value = "0..1000")]
    seeds: Seeds,

    /// How many trials run at once; without it, as many as there are cores
    #[arg(long, value_name = "N")]
    jobs: Option<NonZeroUsize>,

    /// Write each event of the trial to this file; for one seed
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,

    /// Print one JSON document instead of tables
    #[arg(long)]
    json: bool,

    /// Plant this fault in the switch
    #[cfg(feature = "planted-faults")]
    #[arg(long, value_name = "NAME", value_parser = fault)]
    fault: Option<hyper_switch_dataplane::faults::Fault>,
}

#[cfg(feature = "planted-faults")]
fn fault(name: &str) -> Result<hyper_switch_dataplane::faults::Fault, String> {
    let all = hyper_switch_dataplane::faults::Fault::ALL;
    let names = || all.iter().map(|fault| fault.name()).collect::<Vec<_>>().join(", ");
    let found = all.iter().find(|fault| fault.name() == name).copied();
    found.ok_or_else(|| format!("`{name}` is no fault; there are {}", names()))
}

impl From<SwarmArgs> for SwarmOptions {
    fn from(args: SwarmArgs) -> SwarmOptions {
        let cores = || std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
        SwarmOptions {
            seeds: args.seeds.0,
            jobs: args.jobs.map_or_else(cores, NonZeroUsize::get),
            trace: args.trace,
            json: args.json,
            #[cfg(feature = "planted-faults")]
            fault: args.fault,
        }
    }
}

/// A range of seeds, as the user writes it.
#[derive(Clone, Debug)]
struct Seeds(Range<u64>);

impl FromStr for Seeds {
    type Err = String;

    fn from_str(text: &str) -> Result<Seeds, String> {
        let number = |text: &str| text.parse::<u64>().map_err(|_| format!("`{text}` is no seed"));
        let (from, to) = text.split_once("..").ok_or_else(|| format!("`{text}` is not as 0..1000"))?;
        let seeds = number(from)?..number(to)?;
        if seeds.is_empty() { Err(format!("there is no seed in {text}")) } else { Ok(Seeds(seeds)) }
    }
}
