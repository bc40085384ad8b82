//! What differs between the points of an experiment, and all combinations of it.

use crate::cli::{Arch, Workload};
use crate::optimisations::{OptimisationSet, system};
use serde::{Deserialize, Serialize};
use std::fmt;

/// What is measured at one place of the matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Point {
    /// What the VMs do.
    pub workload: Workload,
    /// What switches.
    pub arch: Arch,
    /// Which of Hyper-Switch's optimisations are on; `None` for an architecture that has none of them.
    pub optimisations: Option<OptimisationSet>,
    /// Pairs that talk at the same time.
    pub pairs: u16,
}

/// The values that each dimension takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Matrix {
    /// What the VMs do.
    pub workloads: Vec<Workload>,
    /// What switches.
    pub archs: Vec<Arch>,
    /// Sets of optimisations, for the architecture that has them.
    pub optimisations: Vec<OptimisationSet>,
    /// Numbers of pairs.
    pub pairs: Vec<u16>,
}

impl Matrix {
    /// All points: pairs vary fastest, then optimisations, architectures and workloads.
    pub fn points(&self) -> Vec<Point> {
        let mut points = Vec::new();
        for workload in self.workloads.iter().copied() {
            for arch in self.archs.iter().copied() {
                let sets: Vec<_> = match arch {
                    Arch::HyperSwitch => self.optimisations.iter().copied().map(Some).collect(),
                    Arch::DriverDomain | Arch::Vhost => vec![None],
                };
                for optimisations in sets {
                    let point = |pairs| Point { workload, arch, optimisations, pairs };
                    points.extend(self.pairs.iter().copied().map(point));
                }
            }
        }
        points
    }
}

impl Point {
    /// What switches at this point, in words: the architecture, and what is on of its optimisations.
    pub fn system(&self) -> String {
        system(self.arch.name(), self.optimisations)
    }
}

impl fmt::Display for Point {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let pairs = if self.pairs == 1 { "pair" } else { "pairs" };
        write!(f, "{}, {}, {} {pairs}", self.workload.name(), self.system(), self.pairs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Holds that every combination is there once, that optimisations are Hyper-Switch's alone, and the order.
    #[test]
    fn a_matrix_is_all_its_combinations() {
        let matrix = Matrix {
            workloads: vec![Workload::Stream, Workload::Rr],
            archs: vec![Arch::HyperSwitch, Arch::Vhost],
            optimisations: vec![OptimisationSet::NONE, OptimisationSet::ALL],
            pairs: vec![1, 4],
        };
        let points: Vec<_> = matrix.points().iter().map(Point::to_string).collect();
        let of = |workload: &str| {
            [
                "hyper-switch (none), 1 pair",
                "hyper-switch (none), 4 pairs",
                "hyper-switch (all), 1 pair",
                "hyper-switch (all), 4 pairs",
                "vhost, 1 pair",
                "vhost, 4 pairs",
            ]
            .map(|rest| format!("{workload}, {rest}"))
        };
        assert_eq!(points, [of("stream"), of("rr")].concat());
        let each = Matrix { optimisations: OptimisationSet::each().into(), ..matrix };
        assert_eq!(each.points().len(), 2 * (8 + 1) * 2);
    }
}
