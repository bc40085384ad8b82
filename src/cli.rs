//! The command line: what the user may say, and what is made of it.

mod sim;
mod swarm;
mod vm;

pub use sim::{SimOptions, SimRun};
pub use swarm::SwarmOptions;
pub use vm::{AccelChoice, VmOptions};

use crate::config::{self, CommandLine, ConfigFile, RunOptions};
use crate::core_list::CoreList;
use crate::ctl::{protocol::Query, socket};
use crate::exit::{Failure, FailureKind, exit_codes_help};
use crate::experiment::{Matrix, Point};
use crate::log_filter::LogFilter;
use crate::optimisations::{OptimisationSet, SetError};
use crate::port_spec::PortSpec;
use crate::vm::workload::Part;
use clap::{Args, Parser, Subcommand, ValueEnum};
use hyper_switch_dataplane::policy::notification;
use hyper_switch_pvnet::guest::{doorbell, raw};
use std::num::NonZeroU64;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

/// The fewest and most bytes of a frame of the `udp` workload, without the frame check sequence: the
/// minimum and maximum of Ethernet (IEEE 802.3-2018, clause 3.2.7).
pub const FRAME_BYTES: RangeInclusive<usize> = 60..=1514;

/// The most that an entry may cost in nanoseconds: far more than any machine's.
pub(crate) const ENTRY_COST_NS: u64 = 1_000_000;

/// The most pairs that talk at the same time.
pub(crate) const MOST_PAIRS: u16 = 64;

/// What the user wants.
#[derive(Clone, Debug, PartialEq)]
pub struct Invocation {
    /// Which log events to show.
    pub log: LogFilter,
    /// What to do.
    pub command: Command,
}

/// What to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Command {
    /// Run a switch until it is told to stop.
    Run(RunOptions),
    /// Measure pairs of VMs that talk to each other.
    Pair(PairOptions),
    /// Simulate machines that we do not have.
    Sim(SimOptions),
    /// Boot two guests on a switch.
    Vm(VmOptions),
    /// Ask a running switch.
    Ctl(CtlOptions),
    /// Measure what the switch's work costs on this machine.
    Calibrate(CalibrateOptions),
    /// Play a part inside a guest of `vm`.
    Guest(Part),
}

/// What `hyper-switch pair` is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PairOptions {
    /// What the VMs are.
    pub backend: Backend,
    /// The workloads, one after the other; at least one.
    pub workloads: Vec<Workload>,
    /// What carries the frames of VMs of this process: at least one, and none twice.
    pub archs: Vec<Arch>,
    /// Sets of optimisations that Hyper-Switch is measured with: at least one, and none twice.
    pub optimisations: Vec<OptimisationSet>,
    /// Numbers of pairs that talk at the same time: at least one, each at least 1, and none twice.
    pub pairs: Vec<u16>,
    /// How often each point of the matrix is measured, at least once.
    pub repeat: u16,
    /// The folder for a report with figures.
    pub report: Option<PathBuf>,
    /// How long each workload is measured; `rr` beside another one for half of it, but at least a second.
    pub duration: Duration,
    /// Print one JSON document instead of tables.
    pub json: bool,
    /// Seeds whatever is random.
    pub seed: u64,
    /// Bytes of each frame of the `udp` and `raw` workloads, without the frame check sequence.
    pub frame_bytes: usize,
    /// Packets of these workloads that each pair sends a second; without it, as many as go.
    pub rate_per_s: Option<NonZeroU64>,
    /// What each entry into the hypervisor, and each interrupt taken, costs these VMs, in nanoseconds.
    pub entry_cost_ns: u64,
    /// The cores that the VMs' threads are pinned to, in turn; none leaves that to the scheduler.
    pub cores: Option<CoreList>,
    /// How VMs of this process and the switch batch, where they do. Not asked for: `benches/pace.rs` alone sweeps them.
    pub paces: Paces,
}

/// The parameters of batching, both ways.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Paces {
    /// Of the switch's notifications.
    pub notification: notification::Pace,
    /// Of the VMs' doorbells.
    pub doorbell: doorbell::Pace,
}

/// What `hyper-switch ctl` is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CtlOptions {
    /// What to ask.
    pub query: Query,
    /// Print one JSON document instead of a table.
    pub json: bool,
    /// The control socket of the daemon.
    pub ctl_socket: PathBuf,
}

/// What `hyper-switch calibrate` is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CalibrateOptions {
    /// Print one JSON document instead of tables.
    pub json: bool,
    /// The file that the cost table is written to.
    pub out: Option<PathBuf>,
    /// Measure few batches, to see that it works.
    pub quick: bool,
}

/// What the VMs of `pair` are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Backend {
    /// TCP/IP stacks in this process, each with its own memory and VIRTIO rings. Needs no rights
    Inprocess,
    /// Network namespaces behind TAP interfaces. Needs root
    Tap,
}

/// What carries the frames of the VMs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, ValueEnum, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Arch {
    /// This switch: VMs enter it, and each packet is copied once
    HyperSwitch,
    /// A model of Xen's: the switch is in a VM of its own, two copies
    DriverDomain,
    /// A model of KVM's: the switch is in the host, with a thread for each VM, two copies
    Vhost,
}

/// What the VMs of a pair do with each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, ValueEnum, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Workload {
    /// One TCP connection, as fast as it goes: throughput
    Stream,
    /// One byte there and one back over TCP: transactions a second, and their latency
    Rr,
    /// UDP datagrams in frames of --frame-bytes: packets a second
    Udp,
    /// Bare frames of --frame-bytes, without a TCP/IP stack: what the switch itself costs
    Raw,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum WorkloadChoice {
    /// One TCP connection, as fast as it goes: throughput
    Stream,
    /// One byte there and one back over TCP: transactions a second, and their latency
    Rr,
    /// UDP datagrams in frames of --frame-bytes: packets a second
    Udp,
    /// Bare frames of --frame-bytes, without a TCP/IP stack: what the switch itself costs
    Raw,
    /// stream, then rr
    All,
}

/// A virtual switch for VMs: flow-based, and one copy a packet.
///
/// Frames go straight from the memory of the VM that sends into the memory of the VM that receives. Where
/// they go is decided by flows, which a learning control plane installs.
#[derive(Parser)]
#[command(name = "hyper-switch", version, after_help = top_help(), arg_required_else_help = true)]
struct Cli {
    /// Which log events to show on standard error, as in warn,hyper_switch=debug
    ///
    /// Without it the environment variable RUST_LOG decides, then the configuration file; else it is `info`
    /// for `run` and `vm`, and `warn` for the rest.
    #[arg(long, global = true, value_name = "FILTER", display_order = 100)]
    log: Option<LogFilter>,

    #[command(subcommand)]
    command: Subcommands,
}

#[derive(Subcommand)]
enum Subcommands {
    /// Run a switch until SIGINT or SIGTERM
    #[command(after_help = RUN_EXAMPLES, after_long_help = run_long_help())]
    Run(RunArgs),
    /// Measure pairs of VMs that talk to each other across the switch
    #[command(after_help = PAIR_EXAMPLES)]
    Pair(PairArgs),
    /// Simulate the switch on machines that we do not have: the paper's figure, and plans of one's own
    #[command(after_help = sim::EXAMPLES, after_long_help = sim::long_help())]
    Sim(sim::SimArgs),
    /// Boot two small Linux guests in QEMU on a switch, and measure what they do with each other
    #[command(after_help = vm::EXAMPLES)]
    Vm(vm::VmArgs),
    /// Ask a running switch what it has and does
    #[command(after_help = CTL_EXAMPLES)]
    Ctl(CtlArgs),
    /// Measure on this machine what the simulator charges for
    ///
    /// It takes some seconds. Shown are copies of 64 bytes to 64 KiB of what this core or another one wrote, the
    /// switch's work for an entry and for a frame, a guest's driver, how threads wake each other up, fall asleep and
    /// take turns, and the exits of a virtual machine where this user may have one (/dev/kvm): medians of batches, with
    /// the quartiles on both sides. The last table adds the rows up for a frame from ring to ring and compares that with
    /// the switch as a whole. Nothing else should run meanwhile.
    ///
    /// With --out all of it becomes a cost table for the simulator: TOML, a row for each cost, with its unit, its kind
    /// (measured, cited, fitted or assumed) and its source. What a machine cannot be asked, such as Xen's hypercalls, is
    /// taken from the table `opteron` that the program carries, or assumed; its source says so.
    #[command(after_help = CALIBRATE_EXAMPLES)]
    Calibrate(CalibrateArgs),
    /// Play a part inside a guest of `vm`
    #[command(hide = true)]
    Guest(vm::GuestArgs),
}

#[derive(Args)]
struct RunArgs {
    /// A port: tap:NAME, packet:INTERFACE or vhost-user:PATH[,server|,client][,queues=N], then as wanted ,name=PORT ,vm=PID
    /// and ,access=VID or ,trunk=VID+VID
    ///
    /// A `tap` port is a TAP interface, made if it is not there; a VMM or a namespace takes it from there.
    /// A `packet` port attaches to an interface that exists, by AF_PACKET. The port's name is the
    /// interface's unless `name=` gives another. With `access=` its frames belong to that one VLAN,
    /// untagged; with `trunk=` it carries those VLANs, tagged; with neither, frames pass as they are. With
    /// `vm=` the threads of that process, a VMM's or whoever reads in a namespace, are watched to know whether
    /// the port's VM runs, was preempted or blocks; that needs root or CAP_BPF and CAP_PERFMON, and without the
    /// port works all the same.
    #[arg(long = "port", value_name = "SPEC")]
    ports: Vec<PortSpec>,

    /// The cores that switch, as in 0,2-3; all that this process may use if left out
    #[arg(long, value_name = "LIST")]
    cores: Option<CoreList>,

    /// The optimisations that are on: all, none, or a list of preempt, batch and offload [default: all]
    #[arg(long, value_name = "SET")]
    optimisations: Option<OptimisationSet>,

    /// A TOML file with more ports, and with what this command line leaves out
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,

    /// The control socket to listen on
    #[arg(long, value_name = "PATH", long_help = socket_help("to listen on"))]
    ctl: Option<PathBuf>,
}

#[derive(Args)]
struct PairArgs {
    /// What the VMs are
    #[arg(long, value_enum, default_value_t = Backend::Inprocess)]
    backend: Backend,

    /// What the VMs of a pair do with each other
    #[arg(long, value_enum, default_value_t = WorkloadChoice::All)]
    workload: WorkloadChoice,

    /// Pairs that talk at the same time; several numbers, as in 1,2,4, are measured one after the other
    #[arg(long, value_name = "N", value_delimiter = ',', default_value = "1",
          value_parser = clap::value_parser!(u16).range(1..=i64::from(MOST_PAIRS)))]
    pairs: Vec<u16>,

    /// What carries the frames, between VMs of this process; several, as in hyper-switch,vhost, are measured one after
    /// the other
    #[arg(long, value_name = "ARCH", value_enum, value_delimiter = ',', default_value = "hyper-switch")]
    arch: Vec<Arch>,

    /// Hyper-Switch's optimisations that are on: all, none, a list of preempt, batch and offload, or each of the
    /// eight combinations [default: all]
    #[arg(long, value_name = "SET")]
    optimisations: Option<OptimisationChoice>,

    /// How often each point is measured, in turn with the others; the median is reported
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1000))]
    repeat: u16,

    /// Write results.csv, results.json, figures as SVG and a page with all of it, index.html, to this folder
    #[arg(long, value_name = "DIR")]
    report: Option<PathBuf>,

    /// Seconds that a workload is measured for; rr after stream takes half of it, at least 1
    #[arg(long, value_name = "SECS", default_value = "5", value_parser = seconds)]
    duration: Duration,

    /// Print one JSON document instead of tables
    #[arg(long)]
    json: bool,

    /// Seeds whatever is random: the same seed gives the same traffic
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,

    /// Bytes of each frame, without the frame check sequence: of `udp`, 60 to 1514; of `raw`, 60 to 65536, such as
    /// 64, 1500 or 65536 [default: 60]
    #[arg(long, value_name = "BYTES")]
    frame_bytes: Option<usize>,

    /// Packets that each pair sends a second, of `udp` or `raw`; without it, as many as go
    #[arg(long, value_name = "PACKETS_PER_S")]
    rate: Option<NonZeroU64>,

    /// Nanoseconds that each entry into the hypervisor, and each interrupt taken, costs a VM of this process
    ///
    /// They are spun by the thread that makes the entry or takes the interrupt, and stated in the report. To compare:
    /// `hyper-switch calibrate` measures an exit of KVM, as `hypervisor_entry`.
    #[arg(long, value_name = "NS", default_value_t = 0, value_parser = clap::value_parser!(u64).range(..=ENTRY_COST_NS))]
    entry_cost: u64,

    /// Pin the VMs of this process to these cores, as in 0,2-3, in turn: the two of a pair behind each other
    ///
    /// Without it the scheduler places them, and a latency can fall into two groups: that of two VMs which share a core,
    /// and that of two which do not. One core puts all on it. The threads of --arch vhost and driver-domain come behind the VMs.
    #[arg(long, value_name = "LIST")]
    cores: Option<CoreList>,
}

#[derive(Args)]
struct CtlArgs {
    /// What to show
    #[arg(value_enum)]
    query: Query,

    /// Print one JSON document instead of a table
    #[arg(long)]
    json: bool,

    /// The control socket of the daemon
    #[arg(long, value_name = "PATH", long_help = socket_help("of the daemon"))]
    ctl: Option<PathBuf>,
}

#[derive(Args)]
struct CalibrateArgs {
    /// Print one JSON document instead of tables
    #[arg(long)]
    json: bool,

    /// Write a complete cost table to this file
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,

    /// Measure a few batches only: a look in less than a second, with figures that are less sure
    #[arg(long)]
    quick: bool,
}

fn socket_help(role: &str) -> String {
    format!(
        "The control socket {role}. Without it: {} for root, $XDG_RUNTIME_DIR/hyper-switch.sock \
         for others, or /tmp/hyper-switch-UID.sock where that variable is not set",
        socket::ROOT_PATH
    )
}

fn top_help() -> String {
    format!(
        "\
Examples:
  Throughput and latency between two VMs in this process:
      hyper-switch pair
  The same between two Linux guests in QEMU:
      hyper-switch vm
  The paper's figure, on its 32 cores, simulated:
      hyper-switch sim fig2 --report out
  A switch with two TAP ports, and a look at what it learned:
      hyper-switch run --port tap:hp0 --port tap:hp1
      hyper-switch ctl flows

{}",
        exit_codes_help()
    )
}

const RUN_EXAMPLES: &str = "\
Examples:
  Two TAP interfaces on one network:
      hyper-switch run --port tap:hp0 --port tap:hp1
  Two VLANs and an uplink that carries both:
      hyper-switch run --port tap:hp0,name=web,access=10 --port tap:hp1,name=db,access=20 \\
                       --port packet:eth1,trunk=10+20
  From a file (shown by run --help), but on these two cores:
      hyper-switch run --config switch.toml --cores 2-3";

fn run_long_help() -> String {
    format!("{RUN_EXAMPLES}\n\nA configuration file with every key:\n\n{}", config::EXAMPLE)
}

const PAIR_EXAMPLES: &str = "\
Examples:
  Throughput and latency of one pair:
      hyper-switch pair
  Four pairs at once, for a script:
      hyper-switch pair --workload stream --pairs 4 --duration 10 --json
  The smallest frames, which cost a switch most:
      hyper-switch pair --workload udp --frame-bytes 60
  What the switch itself costs, against KVM's way, where an entry takes a microsecond:
      hyper-switch pair --workload raw --frame-bytes 1500 --pairs 4 --entry-cost 1000 --arch hyper-switch,vhost
  The three architectures as the number of pairs grows, with figures:
      hyper-switch pair --pairs 1,2,4,8 --arch hyper-switch,driver-domain,vhost --repeat 5 --report out
  What each optimisation gives, alone and with others:
      hyper-switch pair --pairs 4 --optimisations each --repeat 5 --report out";

const CTL_EXAMPLES: &str = "\
Examples:
  The flows with their counters:
      hyper-switch ctl flows
  Why packets were dropped, and what each core did:
      hyper-switch ctl stats
  All ports that are down, with jq:
      hyper-switch ctl ports --json | jq '.ports[] | select(.state != \"up\")'";

const CALIBRATE_EXAMPLES: &str = "\
Examples:
  What work costs on this machine:
      hyper-switch calibrate
  A cost table for the simulator:
      hyper-switch calibrate --out this-machine.toml
  The slowest copies, with jq:
      hyper-switch calibrate --json | jq '.copies | sort_by(.ns / .bytes) | last'";

/// Reads a span of time: seconds, with a fraction if wanted, more than 0 and at most an hour.
fn seconds(text: &str) -> Result<Duration, String> {
    let seconds = text.parse::<f64>().ok().filter(|s| *s > 0.0 && *s <= 3600.0);
    let duration = seconds.and_then(|s| Duration::try_from_secs_f64(s).ok()).filter(|d| !d.is_zero());
    duration.ok_or_else(|| "it takes seconds, more than 0 and at most 3600".to_owned())
}

/// What `--optimisations` says.
#[derive(Clone, Copy)]
enum OptimisationChoice {
    Set(OptimisationSet),
    Each,
}

impl FromStr for OptimisationChoice {
    type Err = SetError;

    fn from_str(text: &str) -> Result<OptimisationChoice, SetError> {
        if text == "each" { Ok(OptimisationChoice::Each) } else { text.parse().map(OptimisationChoice::Set) }
    }
}

impl Arch {
    /// Its name, as the user writes it.
    pub fn name(self) -> &'static str {
        match self {
            Arch::HyperSwitch => "hyper-switch",
            Arch::DriverDomain => "driver-domain",
            Arch::Vhost => "vhost",
        }
    }
}

impl Workload {
    /// Its name, as the user writes it.
    pub fn name(self) -> &'static str {
        match self {
            Workload::Stream => "stream",
            Workload::Rr => "rr",
            Workload::Udp => "udp",
            Workload::Raw => "raw",
        }
    }
}

impl Invocation {
    /// Reads the command line of this process, and the configuration file that it names. Prints help and
    /// exits the process if that is what the user wants, or if the command line cannot be read.
    ///
    /// # Errors
    /// The configuration file, or what both say together, makes no sense.
    pub fn from_command_line() -> Result<Invocation, Failure> {
        Invocation::from_cli(Cli::parse())
    }

    fn from_cli(cli: Cli) -> Result<Invocation, Failure> {
        let (command, file_log) = match cli.command {
            Subcommands::Run(args) => {
                let mut file = args.config.as_deref().map(ConfigFile::read).transpose()?.unwrap_or_default();
                let file_log = file.log.take();
                let RunArgs { ports, cores, optimisations, ctl, .. } = args;
                let line = CommandLine { ports, cores, optimisations, ctl };
                (Command::Run(RunOptions::combine(line, file)?), file_log)
            }
            Subcommands::Pair(args) => (Command::Pair(args.into_options()?), None),
            Subcommands::Sim(args) => (Command::Sim(args.into_options()), None),
            Subcommands::Vm(args) => (Command::Vm(args.into_options()?), None),
            Subcommands::Ctl(args) => (Command::Ctl(args.into_options()), None),
            Subcommands::Calibrate(CalibrateArgs { json, out, quick }) => {
                (Command::Calibrate(CalibrateOptions { json, out, quick }), None)
            }
            Subcommands::Guest(args) => (Command::Guest(args.part), None),
        };
        let default = if matches!(command, Command::Run(_) | Command::Vm(_)) { "info" } else { "warn" };
        Ok(Invocation { log: log_filter(cli.log, file_log, default)?, command })
    }
}

/// The filter of the command line, else the environment's, else the file's, else the default.
fn log_filter(line: Option<LogFilter>, file: Option<LogFilter>, default: &str) -> Result<LogFilter, Failure> {
    let invalid = |error| {
        Failure::new(FailureKind::Usage, format!("RUST_LOG is no log filter: {error}"))
            .with_help("write for example RUST_LOG=info or RUST_LOG=warn,hyper_switch=debug")
    };
    match line {
        Some(filter) => Ok(filter),
        None => match LogFilter::from_environment().map_err(invalid)?.or(file) {
            Some(filter) => Ok(filter),
            None => default.parse().map_err(invalid),
        },
    }
}

impl PairArgs {
    fn into_options(self) -> Result<PairOptions, Failure> {
        let refused = |message: &str, help: &str| {
            Err(Failure::new(FailureKind::Usage, message.to_owned()).with_help(help.to_owned()))
        };
        let sized = match self.workload {
            WorkloadChoice::Udp => Some(FRAME_BYTES),
            WorkloadChoice::Raw => Some(raw::FRAME_BYTES),
            _ => None,
        };
        let frame_bytes = match (self.frame_bytes, &sized) {
            (None, _) => *FRAME_BYTES.start(),
            (Some(_), None) => {
                let message = "--frame-bytes is for the udp and raw workloads; TCP chooses its own frames";
                return refused(message, "add --workload udp");
            }
            (Some(bytes), Some(sizes)) if sizes.contains(&bytes) => bytes,
            (Some(bytes), Some(sizes)) => {
                let message = format!("--frame-bytes {bytes} is not in {}..={}", sizes.start(), sizes.end());
                return Err(Failure::new(FailureKind::Usage, message));
            }
        };
        if self.rate.is_some() && sized.is_none() {
            return refused("--rate is for the udp and raw workloads", "add --workload raw");
        }
        let inprocess_only = [
            (self.workload == WorkloadChoice::Raw, "--workload raw"),
            (self.rate.is_some(), "--rate"),
            (self.arch != [Arch::HyperSwitch], "--arch"),
            (self.entry_cost > 0, "--entry-cost"),
            (self.cores.is_some(), "--cores"),
        ];
        if let Some((_, option)) = inprocess_only.iter().find(|(given, _)| *given)
            && self.backend != Backend::Inprocess
        {
            return refused(&format!("{option} is for VMs of this process"), "leave out --backend tap");
        }
        let workloads = match self.workload {
            WorkloadChoice::Stream => vec![Workload::Stream],
            WorkloadChoice::Rr => vec![Workload::Rr],
            WorkloadChoice::Udp => vec![Workload::Udp],
            WorkloadChoice::Raw => vec![Workload::Raw],
            WorkloadChoice::All => vec![Workload::Stream, Workload::Rr],
        };
        if self.optimisations.is_some() && !self.arch.contains(&Arch::HyperSwitch) {
            let message =
                "--optimisations are of hyper-switch, which is not among the architectures of --arch";
            return refused(message, "add hyper-switch to --arch");
        }
        let optimisations = match self.optimisations {
            None => vec![OptimisationSet::ALL],
            Some(OptimisationChoice::Set(set)) => vec![set],
            Some(OptimisationChoice::Each) => OptimisationSet::each().into(),
        };
        no_duplicate("--pairs", &self.pairs, u16::to_string)?;
        no_duplicate("--arch", &self.arch, |arch| arch.name().to_owned())?;
        let PairArgs {
            backend,
            pairs,
            duration,
            json,
            seed,
            rate,
            arch,
            entry_cost,
            cores,
            repeat,
            report,
            ..
        } = self;
        Ok(PairOptions {
            backend,
            workloads,
            archs: arch,
            optimisations,
            pairs,
            repeat,
            report,
            duration,
            json,
            seed,
            frame_bytes,
            rate_per_s: rate,
            entry_cost_ns: entry_cost,
            cores,
            paces: Paces::default(),
        })
    }
}

/// Refuses a list that names a thing twice.
fn no_duplicate<T: PartialEq>(option: &str, list: &[T], name: fn(&T) -> String) -> Result<(), Failure> {
    match list.iter().enumerate().find(|(index, value)| list[..*index].contains(value)) {
        Some((_, twice)) => {
            Err(Failure::new(FailureKind::Usage, format!("{option} names {} twice", name(twice))))
        }
        None => Ok(()),
    }
}

impl PairOptions {
    /// All points that are to be measured.
    pub fn points(&self) -> Vec<Point> {
        let PairOptions { workloads, archs, optimisations, pairs, .. } = self.clone();
        Matrix { workloads, archs, optimisations, pairs }.points()
    }

    /// Whether all frames of the workload are of [`PairOptions::frame_bytes`].
    pub fn frames_are_alike(&self) -> bool {
        self.workloads.iter().all(|workload| matches!(workload, Workload::Udp | Workload::Raw))
    }

    /// Whether more is wanted than each workload measured once: a comparison, a spread or figures.
    pub fn is_experiment(&self) -> bool {
        self.points().len() > self.workloads.len() || self.repeat > 1 || self.report.is_some()
    }
}

impl CtlArgs {
    fn into_options(self) -> CtlOptions {
        let ctl_socket = self.ctl.unwrap_or_else(socket::default_path);
        CtlOptions { query: self.query, json: self.json, ctl_socket }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    pub(super) fn command(line: &str) -> Command {
        let words = std::iter::once("hyper-switch").chain(line.split_whitespace());
        Invocation::from_cli(Cli::try_parse_from(words).expect(line)).expect(line).command
    }

    pub(super) fn refusal(line: &str) -> String {
        let words = std::iter::once("hyper-switch").chain(line.split_whitespace());
        match Cli::try_parse_from(words) {
            Err(error) => error.to_string(),
            Ok(cli) => Invocation::from_cli(cli).expect_err(line).to_string(),
        }
    }

    /// clap's own check of names, defaults and conflicts.
    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    /// Each option of `run` arrives where the host will look for it.
    #[test]
    fn run_is_read() {
        let Command::Run(options) = command("run --port tap:a --port packet:b,access=3 --cores 0-1 --ctl /x")
        else {
            panic!("not read as run")
        };
        assert_eq!(options.ports, ["tap:a", "packet:b,access=3"].map(|spec| spec.parse().unwrap()));
        assert_eq!(options.cores, Some("0,1".parse().unwrap()));
        assert_eq!(options.ctl_socket, PathBuf::from("/x"));
    }

    /// `pair` has the documented defaults, and `all` means stream and then rr.
    #[test]
    fn pair_is_read() {
        let mut expected = PairOptions {
            backend: Backend::Inprocess,
            workloads: vec![Workload::Stream, Workload::Rr],
            archs: vec![Arch::HyperSwitch],
            optimisations: vec![OptimisationSet::ALL],
            pairs: vec![1],
            repeat: 1,
            report: None,
            duration: Duration::from_secs(5),
            json: false,
            seed: 1,
            frame_bytes: 60,
            rate_per_s: None,
            entry_cost_ns: 0,
            cores: None,
            paces: Paces::default(),
        };
        assert_eq!(command("pair"), Command::Pair(expected.clone()));
        expected.backend = Backend::Tap;
        expected.workloads = vec![Workload::Udp];
        expected.duration = Duration::from_millis(250);
        expected.frame_bytes = 1514;
        let line = "pair --backend tap --workload udp --duration 0.25 --frame-bytes 1514";
        assert_eq!(command(line), Command::Pair(expected.clone()));
        expected.backend = Backend::Inprocess;
        expected.workloads = vec![Workload::Raw];
        expected.frame_bytes = 65_536;
        expected.rate_per_s = NonZeroU64::new(1_000);
        expected.archs = vec![Arch::DriverDomain];
        expected.entry_cost_ns = 7_500;
        let line = "pair --duration 0.25 --workload raw --frame-bytes 65536 --rate 1000 --arch driver-domain \
                    --entry-cost 7500";
        assert_eq!(command(line), Command::Pair(expected));
    }

    /// Lists make a matrix, and it is an experiment as soon as there is something to compare or to repeat.
    #[test]
    fn a_matrix_is_read() {
        let pair = |line: &str| match command(line) {
            Command::Pair(options) => options,
            other => panic!("read as {other:?}"),
        };
        let options =
            pair("pair --pairs 1,2,4 --arch vhost,hyper-switch --optimisations batch,preempt --repeat 5");
        assert_eq!((options.pairs.as_slice(), options.repeat), (&[1, 2, 4][..], 5));
        assert_eq!(options.archs, [Arch::Vhost, Arch::HyperSwitch]);
        assert_eq!(options.optimisations, ["preempt,batch".parse().unwrap()]);
        assert_eq!(options.points().len(), 2 * 2 * 3);
        assert_eq!(pair("pair --optimisations each --workload rr").points().len(), 8);
        for (line, is_experiment) in [
            ("pair", false),
            ("pair --pairs 4 --arch vhost", false),
            ("pair --optimisations none", false),
            ("pair --pairs 1,2", true),
            ("pair --repeat 2", true),
            ("pair --report out", true),
        ] {
            assert_eq!(pair(line).is_experiment(), is_experiment, "{line}");
        }
    }

    /// `ctl` takes what to show and where to ask.
    #[test]
    fn ctl_is_read() {
        let expected = CtlOptions { query: Query::Macs, json: true, ctl_socket: "/x".into() };
        assert_eq!(command("ctl macs --json --ctl /x"), Command::Ctl(expected));
    }

    /// `calibrate` takes where to write and how much to measure.
    #[test]
    fn calibrate_is_read() {
        let expected = CalibrateOptions { json: true, out: Some("/x".into()), quick: true };
        assert_eq!(command("calibrate --json --quick --out /x"), Command::Calibrate(expected));
        let expected = CalibrateOptions { json: false, out: None, quick: false };
        assert_eq!(command("calibrate"), Command::Calibrate(expected));
    }

    /// Values out of bounds are refused, and the message holds the bound.
    #[test]
    fn nonsense_is_refused_with_the_bound() {
        for (line, part) in [
            ("run --port hp0", "`hp0` does not say what the port is"),
            ("run --port tap:a --cores 3-2", "the range 3-2 ends before it starts"),
            ("run --port tap:a --log x=loud", "expected one of \"off\", \"error\""),
            ("run", "the switch has no port"),
            ("pair --pairs 0", "0 is not in 1..=64"),
            ("pair --pairs 1,0", "0 is not in 1..=64"),
            ("pair --pairs 1,,2", "invalid value ''"),
            ("pair --pairs 2,4,2", "--pairs names 2 twice"),
            ("pair --arch xen", "[possible values: hyper-switch, driver-domain, vhost]"),
            ("pair --arch vhost,vhost", "--arch names vhost twice"),
            ("pair --arch=", "a value is required for '--arch"),
            ("pair --optimisations fast", "`fast` is no optimisation; there are preempt, batch and offload"),
            ("pair --optimisations batch,batch", "`batch` is named twice"),
            ("pair --arch vhost --optimisations none", "--optimisations are of hyper-switch"),
            ("pair --repeat 0", "0 is not in 1..=1000"),
            ("pair --duration 0", "more than 0 and at most 3600"),
            ("pair --duration 1e-12", "more than 0 and at most 3600"),
            ("pair --duration nan", "more than 0 and at most 3600"),
            ("pair --workload udp --frame-bytes 59", "59 is not in 60..=1514"),
            ("pair --frame-bytes 60", "--frame-bytes is for the udp and raw workloads"),
            ("pair --workload raw --frame-bytes 65537", "65537 is not in 60..=65536"),
            ("pair --rate 5", "--rate is for the udp and raw workloads"),
            ("pair --workload raw --rate 0", "number would be zero"),
            ("pair --workload raw --backend tap", "--workload raw is for VMs of this process"),
            ("pair --arch vhost --backend tap", "--arch is for VMs of this process"),
            ("pair --entry-cost 1000001", "1000001 is not in 0..=1000000"),
            ("sim swarm --seeds 5", "`5` is not as 0..1000"),
            ("sim swarm --seeds a..5", "`a` is no seed"),
            ("sim swarm --seeds 5..5", "there is no seed in 5..5"),
            ("ctl everything", "[possible values: ports, flows, macs, stats]"),
        ] {
            let text = refusal(line);
            assert!(text.contains(part), "{line}: {text}");
        }
    }
}
