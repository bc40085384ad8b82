//! A plan: an experiment as a file of TOML. What all its points have in common, what differs between them, and what has
//! been published to be shown beside.

mod embedded;
mod matrix;

pub use embedded::embedded;
pub use matrix::{Axis, Load, Matrix, Point, Scaled};

use crate::costs::{Cost, CostError, CostRow, CostTable, Kind, Row};
use crate::guest::program::Workload;
use crate::machine::Machine;
use crate::scenario::{Arch, HostKind, Scenario, ScenarioError, VmSpec};
use crate::scheduler::SchedulerConfig;
use hyper_switch_dataplane::policy::Optimisations;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A plan with every key:
///
#[doc = concat!("```toml\n", include_str!("../plans/example.toml"), "```")]
pub const EXAMPLE: &str = include_str!("../plans/example.toml");

/// A plan.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// Its name.
    pub name: String,
    /// What its reports are called.
    pub title: String,
    /// What it shows, in a few sentences.
    pub shows: String,
    /// Seeds whatever is random.
    #[serde(default = "defaults::seed")]
    pub seed: u64,
    /// The name of a cost table that the program carries, or the path of a file with one.
    #[serde(default = "defaults::costs")]
    pub costs: String,
    /// Costs that are other than in the table.
    #[serde(default)]
    pub set: BTreeMap<Cost, f64>,
    /// The machine.
    pub machine: MachinePlan,
    /// How long a run is.
    pub run: RunPlan,
    /// What the pairs do.
    pub workload: Workload,
    /// Who runs where.
    #[serde(default)]
    pub scheduler: SchedulerConfig,
    /// What differs.
    pub matrix: Matrix,
    /// What has been published.
    #[serde(default)]
    pub published: Vec<Published>,
}

/// A plan's machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MachinePlan {
    /// Cores, where the matrix does not say.
    pub cores: u16,
    /// Neighbours that share a cache.
    pub cores_per_cache: u16,
    /// Of the driver domain.
    #[serde(default = "defaults::domain_vcpus")]
    pub domain_vcpus: usize,
    /// What the switch is in, where it is this one.
    #[serde(default)]
    pub host: HostKind,
    /// If given: the memory of the cost table, and the driver domain's vCPUs, are those of a machine of so many cores,
    /// and a larger one has more of both in proportion, as it has more sockets.
    #[serde(default)]
    pub of_cores: Option<u16>,
    /// Guests are without a kernel that copies between sockets and packets, and touch no more of a frame than its
    /// headers: as those of `pair --workload raw`.
    #[serde(default)]
    pub bare_guests: bool,
}

/// How long a run is.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunPlan {
    /// What is measured.
    pub duration_ms: f64,
    /// What passes before.
    #[serde(default = "defaults::warmup_ms")]
    pub warmup_ms: f64,
    /// A task's step: shorter is truer, and slower to simulate.
    #[serde(default = "defaults::quantum_us")]
    pub quantum_us: f64,
    /// By how much of itself an entry into the hypervisor varies.
    #[serde(default = "defaults::jitter")]
    pub jitter: f64,
}

/// A result that was published.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Published {
    /// Of what.
    pub arch: Arch,
    /// With how many pairs; without it, it is the highest of the curve, wherever that is.
    #[serde(default)]
    pub pairs: Option<u16>,
    /// Net throughput, in Gb/s.
    pub gbps: f64,
    /// Where.
    pub source: String,
}

mod defaults {
    pub(super) fn seed() -> u64 {
        1
    }
    pub(super) fn costs() -> String {
        "opteron".to_owned()
    }
    pub(super) fn domain_vcpus() -> usize {
        7
    }
    pub(super) fn warmup_ms() -> f64 {
        50.0
    }
    pub(super) fn quantum_us() -> f64 {
        20.0
    }
    pub(super) fn jitter() -> f64 {
        0.1
    }
}

/// Why a text is no plan, or a plan cannot be run.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// No TOML, or not of a plan's form: the error has the place.
    #[error("{}", .0.message())]
    Form(#[from] toml::de::Error),
    /// A length of time that is none.
    #[error("`run.{key}` is {value}, not a number above 0 and up to {MOST_MS}")]
    Length {
        /// Which.
        key: &'static str,
        /// What it says.
        value: f64,
    },
    /// What was published names no pairs of the plan, or is none.
    #[error("`published` number {number}: {why}")]
    Published {
        /// Which, from 1.
        number: usize,
        /// What is wrong.
        why: &'static str,
    },
    /// A point that cannot be run.
    #[error("point {number}, {point}: {error}")]
    Point {
        /// Which, from 1.
        number: usize,
        /// What it is.
        point: Point,
        /// Why.
        error: ScenarioError,
    },
    /// A cost that is scaled to an impossible one.
    #[error("point {number}, {point}: {error}")]
    Scale {
        /// Which, from 1.
        number: usize,
        /// What it is.
        point: Point,
        /// Why.
        error: Box<CostError>,
    },
    /// A cost that is set to an impossible one.
    #[error("`set`: {error}")]
    Set {
        /// Why.
        error: Box<CostError>,
    },
    /// The cost table's file cannot be read.
    #[error("there is no cost table `{name}` in the program, nor a file {}: {error}", .path.display())]
    NoCosts {
        /// What the plan says.
        name: String,
        /// Where the file would be.
        path: PathBuf,
        /// Why not.
        error: std::io::Error,
    },
    /// The file is no cost table.
    #[error("{}: {error}", .path.display())]
    Costs {
        /// The file.
        path: PathBuf,
        /// Why.
        error: Box<CostError>,
    },
}

/// A run's parts are no longer than this, in the unit of their key: an hour of milliseconds.
const MOST_MS: f64 = 3_600_000.0;

impl Plan {
    /// The plan that a text in TOML is.
    ///
    /// # Errors
    /// The text is none.
    pub fn parse(text: &str) -> Result<Plan, PlanError> {
        let plan: Plan = toml::from_str(text)?;
        let RunPlan { duration_ms, warmup_ms, quantum_us, .. } = plan.run;
        for (key, value, is_sound) in [
            ("duration_ms", duration_ms, duration_ms > 0.0),
            ("warmup_ms", warmup_ms, warmup_ms >= 0.0),
            ("quantum_us", quantum_us, quantum_us > 0.0),
        ] {
            if !is_sound || value > MOST_MS {
                return Err(PlanError::Length { key, value });
            }
        }
        let points = plan.points();
        for (published, number) in plan.published.iter().zip(1..) {
            let has = |point: &Point| {
                point.arch == published.arch && published.pairs.is_none_or(|pairs| pairs == point.pairs)
            };
            let why = match () {
                () if !(published.gbps > 0.0 && published.gbps.is_finite()) => "`gbps` is not above 0",
                () if published.source.trim().is_empty() => "it has no `source`",
                () if !points.iter().any(has) => "no point of the matrix is of its `arch` and `pairs`",
                () => continue,
            };
            return Err(PlanError::Published { number, why });
        }
        Ok(plan)
    }

    /// The costs that it names: a table that the program carries, else a file, in `folder` if its path is relative.
    ///
    /// # Errors
    /// There is neither, or the file is no table.
    pub fn cost_table(&self, folder: &Path) -> Result<CostTable, PlanError> {
        self.set_in(self.named_table(folder)?)
    }

    /// A table with the costs that it has otherwise.
    ///
    /// # Errors
    /// One of these is impossible.
    pub fn set_in(&self, mut table: CostTable) -> Result<CostTable, PlanError> {
        for (name, value) in &self.set {
            let source = "As the plan has it.".to_owned();
            let row = CostRow { name: *name, value: *value, unit: name.unit(), kind: Kind::Assumed, source };
            table.set(row).map_err(|error| PlanError::Set { error: error.into() })?;
        }
        Ok(table)
    }

    fn named_table(&self, folder: &Path) -> Result<CostTable, PlanError> {
        if let Some(table) = CostTable::embedded(&self.costs) {
            return Ok(table);
        }
        let path = folder.join(&self.costs);
        let text = std::fs::read_to_string(&path).map_err(|error| PlanError::NoCosts {
            name: self.costs.clone(),
            path: path.clone(),
            error,
        })?;
        CostTable::load(&text).map_err(|error| PlanError::Costs { path, error: error.into() })
    }

    /// All points.
    pub fn points(&self) -> Vec<Point> {
        self.matrix.points(self.machine.cores, self.seed)
    }

    /// What is run at each point.
    ///
    /// # Errors
    /// A point cannot be run.
    pub fn scenarios(&self, costs: &CostTable) -> Result<Vec<Scenario>, PlanError> {
        let scenario = |(point, number): (Point, usize)| {
            let scenario = self.scenario(&point, costs).map_err(|error| PlanError::Scale {
                number,
                point,
                error: error.into(),
            })?;
            scenario.check().map_err(|error| PlanError::Point { number, point, error })?;
            Ok(scenario)
        };
        self.points().into_iter().zip(1..).map(scenario).collect()
    }

    fn scenario(&self, point: &Point, costs: &CostTable) -> Result<Scenario, CostError> {
        let mut costs = costs.clone();
        let mut domain_vcpus = self.machine.domain_vcpus;
        if let Some(of_cores) = self.machine.of_cores {
            let times = f64::from(point.cores) / f64::from(of_cores.max(1));
            costs.scale(Row::Cost(Cost::MemoryByte), 1.0 / times)?;
            domain_vcpus = (domain_vcpus as f64 * times).ceil() as usize;
        }
        if let Some(Scaled { row, factor }) = point.scaled {
            costs.scale(row, factor)?;
        }
        let mut vms = Scenario::pairs(point.pairs, self.workload);
        let idle = VmSpec { peer: 0, side: crate::Side::Client, workload: Workload::Idle };
        vms.extend(std::iter::repeat_n(idle, usize::from(point.idle_vms)));
        Ok(Scenario {
            seed: point.seed,
            machine: Machine { cores: point.cores, cores_per_cache: self.machine.cores_per_cache },
            scheduler: self.scheduler,
            costs,
            arch: point.arch,
            host: self.machine.host,
            optimisations: point.optimisations.map_or(Optimisations::ALL, Optimisations::from),
            pace: Default::default(),
            doorbell: Default::default(),
            domain_vcpus,
            vms,
            socket_copies: !self.machine.bare_guests,
            verifies: false,
            quantum: Duration::from_secs_f64(self.run.quantum_us / 1e6),
            jitter: self.run.jitter,
            warmup: Duration::from_secs_f64(self.run.warmup_ms / 1e3),
            duration: Duration::from_secs_f64(self.run.duration_ms / 1e3),
        })
    }
}

#[cfg(test)]
mod tests;
