//! A scenario: everything that a run is made of. And its outcome: everything that came of it.

use crate::clock::Account;
use crate::costs::CostTable;
use crate::guest::program::{Side, Workload};
use crate::machine::Machine;
use crate::scheduler::SchedulerConfig;
use hyper_switch_dataplane::host::CoreSet;
use hyper_switch_dataplane::policy::Optimisations;
use hyper_switch_dataplane::policy::notification::Pace;
use hyper_switch_pvnet::guest::doorbell::Pace as DoorbellPace;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// What carries frames between the VMs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Arch {
    /// The shipping switch, in the hypervisor.
    HyperSwitch,
    /// Xen's: a switch in a driver domain.
    DriverDomain,
    /// KVM's: a switch in the host, with a worker for each VM.
    Vhost,
}

impl Arch {
    /// All.
    pub const ALL: [Arch; 3] = [Arch::HyperSwitch, Arch::DriverDomain, Arch::Vhost];

    /// Its name in plans and reports.
    pub fn name(self) -> &'static str {
        match self {
            Arch::HyperSwitch => "hyper-switch",
            Arch::DriverDomain => "driver-domain",
            Arch::Vhost => "vhost",
        }
    }
}

/// What the switch is in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HostKind {
    /// A hypervisor, as in the paper: an idle core's work for the switch is not interrupted by a task that comes, and
    /// timers are interrupts.
    #[default]
    Hypervisor,
    /// A process, as this project's daemon: an idle core's worker is a thread that gives way wherever it is, and
    /// timers are a thread's as well.
    Threads,
}

/// A VM.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct VmSpec {
    /// Whom it talks to: that VM's number.
    pub peer: u16,
    /// Which end it is.
    pub side: Side,
    /// What the two do.
    pub workload: Workload,
}

/// What a run is made of.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// Seeds whatever is random.
    pub seed: u64,
    /// The cores.
    pub machine: Machine,
    /// Who runs where.
    pub scheduler: SchedulerConfig,
    /// What work costs.
    pub costs: CostTable,
    /// What the switch is in, where it is this one.
    pub host: HostKind,
    /// What carries the frames.
    pub arch: Arch,
    /// Of [`Arch::HyperSwitch`]: which optimisations are on. Batching is also the guests' doorbells'.
    pub optimisations: Optimisations,
    /// Of [`Arch::HyperSwitch`]: the parameters of batching.
    pub pace: Pace,
    /// How guests batch their doorbells where they do: without batching of [`Arch::HyperSwitch`] they do not.
    pub doorbell: DoorbellPace,
    /// Of [`Arch::DriverDomain`]: the domain's vCPUs.
    pub domain_vcpus: usize,
    /// The VMs, in the order of their numbers.
    pub vms: Vec<VmSpec>,
    /// Guests copy data between sockets and packets, as kernels do.
    pub socket_copies: bool,
    /// Each byte that arrives is compared with what was sent.
    pub verifies: bool,
    /// How long a step of a task is: shorter is truer, and slower to simulate.
    pub quantum: Duration,
    /// By how much of itself what an entry into the hypervisor takes varies, of `0..1`. No machine does the same thing in the
    /// same time twice; without it, cores that meet once meet at every turn, or never.
    pub jitter: f64,
    /// What passes before the measurement begins.
    pub warmup: Duration,
    /// What is measured.
    pub duration: Duration,
}

/// Why a scenario cannot be run.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum ScenarioError {
    /// A machine that the switch cannot be on.
    #[error("a machine has 1 to {most} cores, not {cores}", most = CoreSet::CAPACITY)]
    Cores {
        /// What was asked for.
        cores: u16,
    },
    /// Too few or too many VMs.
    #[error("a run has 1 to {MOST_VMS} VMs, not {0}")]
    Vms(usize),
    /// Somebody talks to a VM that is not there, or to itself.
    #[error("VM {vm} cannot talk to VM {peer}")]
    Peer {
        /// Who.
        vm: usize,
        /// To whom.
        peer: u16,
    },
    /// Frames of this workload cannot be so short or long.
    #[error("frames of {bytes} bytes: this workload's have {least} to {most}")]
    FrameBytes {
        /// What was asked for.
        bytes: usize,
        /// The fewest.
        least: usize,
        /// The most.
        most: usize,
    },
    /// A rate, a duration or a window that is none.
    #[error("{what} is to be more than 0")]
    Zero {
        /// What.
        what: &'static str,
    },
    /// Nothing varies by so much.
    #[error("entries vary by 0 to less than 1 of themselves, not by {0}")]
    Jitter(f64),
    /// There is no memory for the stacks of so many tasks.
    #[error("no memory for the tasks' stacks: {0}")]
    Stack(String),
    /// A guest's interface cannot be had.
    #[error("VM {vm}: {why}")]
    Nic {
        /// Whose.
        vm: usize,
        /// What is wrong with it.
        why: String,
    },
}

impl From<std::io::Error> for ScenarioError {
    fn from(error: std::io::Error) -> ScenarioError {
        ScenarioError::Stack(error.to_string())
    }
}

/// VMs at most: their tasks, and those of a fabric, are numbered in 16 bits.
pub const MOST_VMS: usize = 4_096;

impl Scenario {
    /// Pairs of VMs, of which the even ones are the clients.
    pub fn pairs(pairs: u16, workload: Workload) -> Vec<VmSpec> {
        let vm = |number: u16| {
            let side = if number.is_multiple_of(2) { Side::Client } else { Side::Server };
            VmSpec { peer: number ^ 1, side, workload }
        };
        // What is more than numbers go is more than a run may have, too.
        (0..pairs.saturating_mul(2)).map(vm).collect()
    }

    /// Says why it cannot be run, if so.
    ///
    /// # Errors
    /// It cannot.
    pub fn check(&self) -> Result<(), ScenarioError> {
        let cores = self.machine.cores;
        if !(1..=CoreSet::CAPACITY).contains(&cores) {
            return Err(ScenarioError::Cores { cores });
        }
        if self.vms.is_empty() || self.vms.len() > MOST_VMS {
            return Err(ScenarioError::Vms(self.vms.len()));
        }
        if !(0.0..1.0).contains(&self.jitter) {
            return Err(ScenarioError::Jitter(self.jitter));
        }
        for (what, is_zero) in [
            ("the quantum", self.quantum.is_zero()),
            ("the duration", self.duration.is_zero()),
            ("the number of cores that share a cache", self.machine.cores_per_cache == 0),
        ] {
            if is_zero {
                return Err(ScenarioError::Zero { what });
            }
        }
        if let Some(what) = self.scheduler.zero() {
            return Err(ScenarioError::Zero { what });
        }
        for (vm, VmSpec { peer, workload, .. }) in self.vms.iter().enumerate() {
            if usize::from(*peer) >= self.vms.len() || usize::from(*peer) == vm {
                return Err(ScenarioError::Peer { vm, peer: *peer });
            }
            workload.check()?;
        }
        Ok(())
    }
}

/// What came of one VM.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct VmOutcome {
    /// Frames with data that its program took.
    pub taken: u64,
    /// Bytes of these frames.
    pub taken_bytes: u64,
    /// Frames that it sent once more.
    pub again: u64,
    /// Entries for its transmit ring.
    pub transmit_calls: u64,
    /// Entries for its receive ring.
    pub receive_calls: u64,
    /// Interrupts that it took.
    pub interrupts: u64,
}

/// What came of a run, between warm-up and end.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// Nanoseconds that were measured.
    pub measured_ns: u64,
    /// Each VM.
    pub vms: Vec<VmOutcome>,
    /// Latency of answers at these quantiles, in nanoseconds; none if nobody asked.
    pub latency_ns: Option<Latency>,
    /// What each core did: nanoseconds by account, in the order of [`Account::ALL`].
    pub cores_ns: Vec<Vec<u64>>,
    /// For how long each task had a core, in nanoseconds: the VMs in the order of their numbers, then what the
    /// architecture has beside them (a driver domain's vCPUs, a vhost worker for each VM).
    pub tasks_ns: Vec<u64>,
    /// How many times as long as alone the copies took on average, by their bytes, as all cores share the memory.
    pub memory_slowdown: f64,
    /// Frames dropped by what carries them, from the beginning on.
    pub dropped: u64,
    /// Events that happened, from the beginning on.
    pub events: u64,
    /// The hash of all that happened. 16 hexadecimal digits in files, as not every reader of JSON has 64 bits.
    #[serde(with = "hexadecimal")]
    pub hash: u64,
}

mod hexadecimal {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(hash: &u64, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{hash:016x}"))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
        u64::from_str_radix(&String::deserialize(deserializer)?, 16).map_err(D::Error::custom)
    }
}

/// Quantiles of a latency, in nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Latency {
    /// The median.
    pub p50: u64,
    /// 99 of a hundred are no longer.
    pub p99: u64,
    /// The longest.
    pub max: u64,
}

impl Outcome {
    /// Bits a second that programs took, headers of frames included.
    pub fn bits_per_s(&self) -> f64 {
        self.vms.iter().map(|vm| vm.taken_bytes).sum::<u64>() as f64 * 8e9 / self.measured_ns as f64
    }

    /// Frames a second that programs took.
    pub fn frames_per_s(&self) -> f64 {
        self.vms.iter().map(|vm| vm.taken).sum::<u64>() as f64 * 1e9 / self.measured_ns as f64
    }

    /// The part of all cores' time that went to `account`, of `0..=1`.
    pub fn share(&self, account: Account) -> f64 {
        let all = self.measured_ns as f64 * self.cores_ns.len() as f64;
        self.cores_ns.iter().map(|core| core[account as usize]).sum::<u64>() as f64 / all
    }

    /// The part of all cores' time in which they did anything.
    pub fn busy(&self) -> f64 {
        Account::ALL.iter().map(|account| self.share(*account)).sum()
    }
}
