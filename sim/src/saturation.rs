//! What was used up in a run, so that there was not more of it: read off the time that cores and tasks spent.
//!
//! Of the memory it is known at once: copies that take longer than alone wait for it. Cores are used up together if
//! hardly any of their time is left; a kind of task is if half of it or more have their core nearly all the time, however many
//! cores are free, as each is on one at a time. If nothing is used up, all wait: for each other, for messages and wake-ups,
//! or for the next packet that is due.

use crate::guest::program::Side;
use crate::scenario::{Arch, Outcome, Scenario};
use serde::{Deserialize, Serialize};
use std::fmt;

/// From this part of the time on somebody counts as busy all the time: a window that is exhausted for a moment, or a
/// wait for a core, does not make room for more.
const FULL: f64 = 0.95;
/// From this slowdown of copies on the memory is used up.
const SLOW: f64 = 1.05;

/// Somebody who works, of whom there are several.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Who {
    /// The VMs that send, or ask.
    Clients,
    /// The VMs that receive, or answer.
    Servers,
    /// Vhost workers of the clients.
    ClientWorkers,
    /// Vhost workers of the servers.
    ServerWorkers,
    /// The vCPUs of the driver domain.
    Domain,
}

impl Who {
    const ALL: [Who; 5] = [Who::Clients, Who::Servers, Who::ClientWorkers, Who::ServerWorkers, Who::Domain];
}

impl fmt::Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Who::Clients => "senders' vCPUs",
            Who::Servers => "receivers' vCPUs",
            Who::ClientWorkers => "senders' workers",
            Who::ServerWorkers => "receivers' workers",
            Who::Domain => "driver domain's vCPUs",
        })
    }
}

/// Something that there is not more of.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "what")]
pub enum Limit {
    /// The memory that all cores share.
    Memory {
        /// How many times as long as alone copies take.
        slowdown: f64,
    },
    /// All cores.
    Cores {
        /// The part of their time that they were at work.
        busy: f64,
    },
    /// So many of a kind have their core all the time.
    Tasks {
        /// Who.
        who: Who,
        /// How many of them.
        full: usize,
        /// Of how many that do anything.
        of: usize,
    },
    /// There is enough of all.
    Nothing {
        /// Who has least left, and the part of the time that the busiest of them has a core.
        busiest: Option<(Who, f64)>,
    },
}

impl Limit {
    /// What it is, without how much of it.
    pub fn name(&self) -> String {
        match self {
            Limit::Memory { .. } => "memory".to_owned(),
            Limit::Cores { .. } => "all cores".to_owned(),
            Limit::Tasks { who, .. } => who.to_string(),
            Limit::Nothing { .. } => "nothing".to_owned(),
        }
    }
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name())?;
        match self {
            Limit::Memory { slowdown } => write!(f, " (copies take {slowdown:.2} times as long)"),
            Limit::Cores { busy } => write!(f, " ({:.0} % busy)", 100.0 * busy),
            Limit::Tasks { full, of, .. } => write!(f, " ({full} of {of})"),
            Limit::Nothing { busiest: None } => Ok(()),
            Limit::Nothing { busiest: Some((who, share)) } => {
                write!(f, " (busiest of the {who}: {:.0} %)", 100.0 * share)
            }
        }
    }
}

/// What was used up, the widest first: at least one answer, which may be [`Limit::Nothing`].
pub fn limits(scenario: &Scenario, outcome: &Outcome) -> Vec<Limit> {
    let mut limits = Vec::new();
    if outcome.memory_slowdown >= SLOW {
        limits.push(Limit::Memory { slowdown: outcome.memory_slowdown });
    }
    if outcome.busy() >= FULL {
        limits.push(Limit::Cores { busy: outcome.busy() });
    }
    let shares = |who: Who| {
        let tasks = outcome.tasks_ns.iter().enumerate();
        let of_kind = tasks.filter(move |(task, _)| kind(scenario, *task) == Some(who));
        of_kind.map(|(_, ns)| *ns as f64 / outcome.measured_ns as f64).filter(|share| *share > 0.0)
    };
    for who in Who::ALL {
        let (full, of) = (shares(who).filter(|share| *share >= FULL).count(), shares(who).count());
        // A few of many do not hold the others back.
        if full > 0 && 2 * full >= of {
            limits.push(Limit::Tasks { who, full, of });
        }
    }
    if limits.is_empty() {
        let busiest = Who::ALL.into_iter().filter_map(|who| Some((who, shares(who).reduce(f64::max)?)));
        limits.push(Limit::Nothing { busiest: busiest.max_by(|(_, one), (_, other)| one.total_cmp(other)) });
    }
    limits
}

/// What kind of task this is; none if it is a VM that computes besides, whose time says nothing.
fn kind(scenario: &Scenario, task: usize) -> Option<Who> {
    let vms = &scenario.vms;
    let (vm, is_worker) = (task % vms.len(), task >= vms.len());
    if is_worker && scenario.arch == Arch::DriverDomain {
        return Some(Who::Domain);
    }
    match (vms[vm].side, is_worker) {
        (side, false) if vms[vm].workload.computes(side) => None,
        (Side::Client, false) => Some(Who::Clients),
        (Side::Server, false) => Some(Who::Servers),
        (Side::Client, true) => Some(Who::ClientWorkers),
        (Side::Server, true) => Some(Who::ServerWorkers),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Plan;

    const PLAN: &str = "name = 'x'\ntitle = 'x'\nshows = 'x'\nmachine = { cores = 4, cores_per_cache = 4 }\n\
                        run = { duration_ms = 1 }\nworkload = { kind = 'idle' }\nmatrix = { pairs = [2] }";

    /// The limits of two pairs on 4 cores, whose tasks were busy for such parts of the time.
    fn limits_of(arch: Arch, busy: f64, memory_slowdown: f64, tasks: &[f64]) -> Vec<String> {
        let plan = Plan::parse(PLAN).unwrap();
        let mut scenario = plan.scenarios(&plan.cost_table("".as_ref()).unwrap()).unwrap().remove(0);
        scenario.arch = arch;
        let mut core = vec![0; crate::Account::ALL.len()];
        core[0] = (1_000.0 * busy) as u64;
        let outcome = Outcome {
            measured_ns: 1_000,
            vms: vec![],
            latency_ns: None,
            cores_ns: vec![core; 4],
            tasks_ns: tasks.iter().map(|share| (share * 1_000.0) as u64).collect(),
            memory_slowdown,
            dropped: 0,
            events: 0,
            hash: 0,
        };
        limits(&scenario, &outcome).iter().map(Limit::to_string).collect()
    }

    /// Holds that each thing that can be used up is named, with who of several, and that what is not is not.
    #[test]
    fn what_is_used_up_is_named() {
        let vms = [0.96, 0.5, 0.2, 0.5];
        let of = |arch, busy, slowdown, workers: &[f64]| {
            limits_of(arch, busy, slowdown, &[&vms, workers].concat()).join("; ")
        };
        assert_eq!(of(Arch::HyperSwitch, 0.5, 1.0, &[]), "senders' vCPUs (1 of 2)");
        assert_eq!(
            of(Arch::HyperSwitch, 0.99, 1.7, &[]),
            "memory (copies take 1.70 times as long); all cores (99 % busy); senders' vCPUs (1 of 2)"
        );
        assert_eq!(
            of(Arch::Vhost, 0.5, 1.0, &[0.9, 1.0, 0.9, 0.97]),
            "senders' vCPUs (1 of 2); receivers' workers (2 of 2)"
        );
        assert_eq!(
            of(Arch::DriverDomain, 0.5, 1.04, &[1.0, 0.0]),
            "senders' vCPUs (1 of 2); driver domain's vCPUs (1 of 1)"
        );
        let few = of(Arch::DriverDomain, 0.5, 1.0, &[1.0, 0.9, 0.9]);
        assert_eq!(few, "senders' vCPUs (1 of 2)", "one of three");
        let idle = limits_of(Arch::HyperSwitch, 0.5, 1.0, &[0.1, 0.5, 0.2, 0.4]);
        assert_eq!(idle, ["nothing (busiest of the receivers' vCPUs: 50 %)"]);
        assert_eq!(limits_of(Arch::HyperSwitch, 0.0, 1.0, &[0.0; 4]), ["nothing"]);
    }
}
