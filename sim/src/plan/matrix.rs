//! What differs between the points of a plan, and all combinations of it.

use crate::costs::Row;
use crate::optimisations::{OptimisationSet, SetError, system};
use crate::scenario::Arch;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::num::NonZeroU16;

/// What is simulated at one place of the matrix.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Point {
    /// What switches.
    pub arch: Arch,
    /// Which of Hyper-Switch's optimisations are on; `None` for an architecture that has none of them.
    pub optimisations: Option<OptimisationSet>,
    /// Cores of the machine.
    pub cores: u16,
    /// Pairs that talk at the same time.
    pub pairs: u16,
    /// VMs beside that do nothing.
    pub idle_vms: u16,
    /// A cost that is another one here.
    pub scaled: Option<Scaled>,
    /// Seeds whatever is random.
    pub seed: u64,
}

/// A cost that is changed.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Scaled {
    /// Which.
    pub row: Row,
    /// How many times as high it is.
    pub factor: f64,
}

impl Point {
    /// What switches, in words: the architecture, and what is on of its optimisations.
    pub fn system(&self) -> String {
        system(self.arch.name(), self.optimisations)
    }
}

impl fmt::Display for Point {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let pairs = if self.pairs == 1 { "pair" } else { "pairs" };
        write!(f, "{}, {} {pairs} on {} cores", self.system(), self.pairs, self.cores)?;
        if self.idle_vms > 0 {
            write!(f, ", {} idle VMs", self.idle_vms)?;
        }
        self.scaled.map_or(Ok(()), |scaled| write!(f, ", {scaled}"))
    }
}

impl fmt::Display for Scaled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} x {}", self.row, self.factor)
    }
}

/// The values that something takes: at least one, and none twice.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Vec<T>", into = "Vec<T>")]
#[serde(bound(
    deserialize = "T: Deserialize<'de> + PartialEq + fmt::Debug",
    serialize = "T: Serialize + Clone"
))]
pub struct Axis<T>(Vec<T>);

/// Why a list is no axis.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AxisError {
    /// It is empty.
    #[error("the list is empty; leave the key out, or give it a value")]
    Empty,
    /// A value comes twice.
    #[error("the list has {0} twice")]
    Twice(String),
}

impl<T: PartialEq + fmt::Debug> TryFrom<Vec<T>> for Axis<T> {
    type Error = AxisError;

    fn try_from(values: Vec<T>) -> Result<Axis<T>, AxisError> {
        if values.is_empty() {
            return Err(AxisError::Empty);
        }
        match values.iter().enumerate().find(|(at, value)| values[..*at].contains(value)) {
            Some((_, twice)) => Err(AxisError::Twice(format!("{twice:?}"))),
            None => Ok(Axis(values)),
        }
    }
}

impl<T> From<Axis<T>> for Vec<T> {
    fn from(axis: Axis<T>) -> Vec<T> {
        axis.0
    }
}

/// Sets of optimisations: the word `each` stands for all eight.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Vec<String>", into = "Vec<OptimisationSet>")]
struct Sets(Axis<OptimisationSet>);

/// Why a list is none of sets.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
enum SetsError {
    #[error("{0}; or each of the eight sets")]
    Set(#[from] SetError),
    #[error(transparent)]
    Axis(#[from] AxisError),
}

impl TryFrom<Vec<String>> for Sets {
    type Error = SetsError;

    fn try_from(names: Vec<String>) -> Result<Sets, SetsError> {
        let mut sets = Vec::new();
        for name in names {
            match name.as_str() {
                "each" => sets.extend(OptimisationSet::each()),
                one => sets.push(one.parse()?),
            }
        }
        Ok(Sets(sets.try_into()?))
    }
}

impl From<Sets> for Vec<OptimisationSet> {
    fn from(sets: Sets) -> Vec<OptimisationSet> {
        sets.0.0
    }
}

/// How many pairs talk.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Load {
    /// So many.
    Pairs(Axis<u16>),
    /// As many as make so many VMs a core.
    VmsPerCore(Axis<f64>),
}

/// The values that each dimension takes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Draft")]
pub struct Matrix {
    archs: Axis<Arch>,
    optimisations: Sets,
    #[serde(flatten)]
    load: Load,
    cores: Option<Axis<u16>>,
    idle_vms: Axis<u16>,
    scale: BTreeMap<Row, Axis<f64>>,
    repeat: NonZeroU16,
}

/// A matrix as a plan writes it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Draft {
    arch: Option<Axis<Arch>>,
    optimisations: Option<Sets>,
    pairs: Option<Axis<u16>>,
    vms_per_core: Option<Axis<f64>>,
    cores: Option<Axis<u16>>,
    idle_vms: Option<Axis<u16>>,
    #[serde(default)]
    scale: BTreeMap<Row, Axis<f64>>,
    scale_each: Option<Axis<f64>>,
    repeat: Option<NonZeroU16>,
}

/// Why keys that are each sound make no matrix.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum MatrixError {
    /// How many pairs talk is said not at all, or twice.
    #[error("a matrix has either `pairs` or `vms_per_core`")]
    Load,
    /// A number that cannot be.
    #[error("`{key}` has {value}, which is not above 0 and finite")]
    Value {
        /// Where.
        key: String,
        /// What.
        value: f64,
    },
}

impl TryFrom<Draft> for Matrix {
    type Error = MatrixError;

    fn try_from(draft: Draft) -> Result<Matrix, MatrixError> {
        let load = match (draft.pairs, draft.vms_per_core) {
            (Some(pairs), None) => Load::Pairs(pairs),
            (None, Some(vms)) => Load::VmsPerCore(vms),
            _ => return Err(MatrixError::Load),
        };
        let mut scale = draft.scale;
        if let Some(factors) = draft.scale_each {
            for row in Row::all() {
                scale.entry(row).or_insert_with(|| factors.clone());
            }
        }
        let sound = |key: &dyn fmt::Display, values: &[f64]| match values
            .iter()
            .find(|value| !(**value > 0.0 && value.is_finite()))
        {
            Some(value) => Err(MatrixError::Value { key: key.to_string(), value: *value }),
            None => Ok(()),
        };
        if let Load::VmsPerCore(vms) = &load {
            sound(&"vms_per_core", &vms.0)?;
        }
        scale.iter().try_for_each(|(row, factors)| sound(&format_args!("scale.{row}"), &factors.0))?;
        if let Load::Pairs(pairs) = &load {
            sound(&"pairs", &pairs.0.iter().map(|pairs| f64::from(*pairs)).collect::<Vec<_>>())?;
        }
        Ok(Matrix {
            archs: draft.arch.unwrap_or_else(|| Axis(Arch::ALL.into())),
            optimisations: draft.optimisations.unwrap_or_else(|| Sets(Axis(vec![OptimisationSet::ALL]))),
            load,
            cores: draft.cores,
            idle_vms: draft.idle_vms.unwrap_or_else(|| Axis(vec![0])),
            scale,
            repeat: draft.repeat.unwrap_or(NonZeroU16::MIN),
        })
    }
}

impl Matrix {
    /// All points: seeds vary fastest, from `seed` on, then scaled costs, pairs, idle VMs, cores, optimisations,
    /// architectures. A machine has `cores` where the matrix does not say.
    pub(super) fn points(&self, cores: u16, seed: u64) -> Vec<Point> {
        let scaled = |(row, factors): (&Row, &Axis<f64>)| {
            let row = *row;
            factors.0.clone().into_iter().map(move |factor| Some(Scaled { row, factor }))
        };
        let scales: Vec<_> = std::iter::once(None).chain(self.scale.iter().flat_map(scaled)).collect();
        let default_cores = Axis(vec![cores]);
        let mut points = Vec::new();
        for arch in self.archs.0.iter().copied() {
            let sets: Vec<_> = match arch {
                Arch::HyperSwitch => self.optimisations.0.0.iter().copied().map(Some).collect(),
                Arch::DriverDomain | Arch::Vhost => vec![None],
            };
            for optimisations in sets {
                for cores in self.cores.as_ref().unwrap_or(&default_cores).0.iter().copied() {
                    for idle_vms in self.idle_vms.0.iter().copied() {
                        for pairs in self.load.pairs(cores) {
                            for scaled in scales.iter().copied() {
                                let seeds = (0..self.repeat.get()).map(|n| seed.wrapping_add(n.into()));
                                points.extend(seeds.map(|seed| Point {
                                    arch,
                                    optimisations,
                                    cores,
                                    pairs,
                                    idle_vms,
                                    scaled,
                                    seed,
                                }));
                            }
                        }
                    }
                }
            }
        }
        points
    }
}

impl Load {
    /// The numbers of pairs on that many cores.
    fn pairs(&self, cores: u16) -> Vec<u16> {
        match self {
            Load::Pairs(pairs) => pairs.0.clone(),
            Load::VmsPerCore(vms) => {
                vms.0.iter().map(|vms| (vms * f64::from(cores) / 2.0).round().max(1.0) as u16).collect()
            }
        }
    }
}
