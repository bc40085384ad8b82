//! An experiment: the same measurement at every point of a matrix, and what that came to, for people and programs.
//!
//! | module | noun |
//! | --- | --- |
//! | `matrix` | what differs between the points, and all combinations of it |
//! | `metric` | what is measured at each point, and its spread over the repeats |
//! | `figures` | which figures the points make |
//! | `page` | all of it as a page of HTML |
//! | `folder` | the files: `results.csv`, `results.json`, the figures, the page |
//!
//! This module is the report itself: its fields are the keys of the JSON document.

mod figures;
mod folder;
mod matrix;
mod metric;
mod page;

pub use matrix::{Matrix, Point};
pub use metric::{Metric, Spread};

use crate::machine::Machine;
use crate::report::WorkloadReport;
use crate::table::{Column, Table};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What an experiment came to. With `--json` printed as it is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ExperimentReport {
    /// The version of this program.
    pub version: String,
    /// The command line that makes it again.
    pub command: String,
    /// What the VMs were: `inprocess` or `tap`.
    pub backend: String,
    /// How long a run was to be, in seconds; of `rr` beside another workload, half of it.
    pub seconds: f64,
    /// How often each point was to be measured.
    pub repeat: u16,
    /// The seed of all that was random.
    pub seed: u64,
    /// Bytes of each frame, of the workloads that have them all alike: `udp` and `raw`.
    pub frame_bytes: Option<usize>,
    /// Packets that each pair was to send a second in these workloads; without it, as many as went.
    pub rate_per_s: Option<u64>,
    /// What was spun for each entry into the hypervisor and for each interrupt taken, in nanoseconds.
    pub entry_cost_ns: u64,
    /// Whether every point was measured as often as it was to be; else a signal or a failure ended it before.
    pub complete: bool,
    /// What it was measured on.
    pub machine: Machine,
    /// What each point came to, in the order of the matrix.
    pub points: Vec<PointReport>,
}

/// What one point came to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PointReport {
    /// Where in the matrix it is.
    #[serde(flatten)]
    pub point: Point,
    /// What was measured there, by [`Metric::key`].
    pub metrics: BTreeMap<Metric, Spread>,
}

/// A row's cells: what the point is, its metrics, and how far the repeats lie apart.
const COLUMNS: usize = 4 + Metric::ALL.len() + 1;
/// So many of the first columns are words; the others are numbers.
const WORDS: usize = 3;

impl PointReport {
    /// What `runs` at `point` came to.
    pub fn of(point: Point, runs: &[WorkloadReport]) -> PointReport {
        let spread = |metric: Metric| {
            let samples = runs.iter().filter_map(|run| metric.of(run)).collect();
            Some((metric, Spread::of(samples)?))
        };
        PointReport { point, metrics: Metric::ALL.into_iter().filter_map(spread).collect() }
    }

    /// The metric that says how fast it was: throughput where there is one.
    fn leading(&self) -> Metric {
        [Metric::Throughput, Metric::Transactions]
            .into_iter()
            .find(|metric| self.metrics.contains_key(metric))
            .unwrap_or(Metric::P50)
    }

    fn cells(&self) -> [String; COLUMNS] {
        let number = |value: Option<f64>, decimals: usize| {
            value.map_or("-".to_owned(), |value| format!("{value:.decimals$}"))
        };
        let median =
            |metric: &Metric| number(self.metrics.get(metric).map(|spread| spread.median), metric.decimals());
        let apart = self.metrics.get(&self.leading());
        let apart = apart.map(|spread| 100.0 * (spread.max - spread.min) / spread.median);
        let Point { workload, arch, optimisations, pairs } = self.point;
        let set = optimisations.map_or("-".to_owned(), |set| set.to_string());
        let mut cells = vec![workload.name().to_owned(), arch.name().to_owned(), set, pairs.to_string()];
        cells.extend(Metric::ALL.iter().map(median));
        cells.push(number(apart, 0));
        cells.try_into().expect("as many cells as columns")
    }
}

impl ExperimentReport {
    fn titles() -> [&'static str; COLUMNS] {
        let mut titles = vec!["workload", "arch", "optimisations", "pairs"];
        titles.extend(Metric::ALL.map(Metric::title));
        titles.push("spread %");
        titles.try_into().expect("as many titles as columns")
    }

    /// What holds for all points, in a line.
    fn conditions(&self) -> String {
        let ExperimentReport { backend, seconds, repeat, seed, entry_cost_ns, .. } = self;
        let frames = self.frame_bytes.map_or(String::new(), |bytes| format!(", frames of {bytes} bytes"));
        let rate = self.rate_per_s.map_or(String::new(), |rate| format!(", {rate} packets/s a pair"));
        let incomplete = if self.complete { "" } else { ", ended early" };
        format!(
            "{backend}, {seconds} s a run, median of {repeat}, seed {seed}, entry cost {entry_cost_ns} ns{frames}{rate}\
             {incomplete}"
        )
    }

    /// The report as text that ends with a newline.
    pub fn render(&self) -> String {
        let titles = ExperimentReport::titles();
        let column =
            |index| if index < WORDS { Column::left(titles[index]) } else { Column::right(titles[index]) };
        let mut table = Table::new(std::array::from_fn(column));
        for point in &self.points {
            table.row(point.cells());
        }
        format!("{}\n\n{table}\n{LEGEND}\n", self.conditions())
    }
}

/// What the titles of the columns do not say.
const LEGEND: &str = "entries, notified, wake-ups (of switching threads) and copies are for each packet \
                      delivered; cores are CPU seconds a second; spread is between the lowest and the highest run, of the first metric that there is";

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::cli::{Arch, Workload};
    use crate::optimisations::OptimisationSet;

    fn run(throughput_gbps: f64) -> WorkloadReport {
        WorkloadReport {
            workload: Workload::Stream,
            seconds: 1.0,
            throughput_gbps: Some(throughput_gbps),
            memcpy_gbps: None,
            transactions_per_s: Some(throughput_gbps * 1e6),
            p50_us: None,
            p99_us: None,
            max_us: None,
            lost: None,
            reordered: None,
            switching: None,
            vms: vec![],
        }
    }

    /// A report of streams by two architectures, the first in two forms, with one and four pairs.
    pub(crate) fn report() -> ExperimentReport {
        let matrix = Matrix {
            workloads: vec![Workload::Stream],
            archs: vec![Arch::HyperSwitch, Arch::Vhost],
            optimisations: vec![OptimisationSet::NONE, "preempt,batch".parse().unwrap()],
            pairs: vec![1, 4],
        };
        let runs = [run(8.0), run(10.0), run(9.0)];
        ExperimentReport {
            version: "0.1.0".into(),
            command: "hyper-switch pair --report <here>".into(),
            backend: "inprocess".into(),
            seconds: 0.5,
            repeat: 3,
            seed: 7,
            entry_cost_ns: 1_000,
            frame_bytes: Some(1_500),
            rate_per_s: None,
            complete: true,
            machine: Machine {
                cpu: "AMD EPYC & co.".into(),
                cores: "0-1".into(),
                caches: "L1d 32K (cores 0)".into(),
                kernel: "Linux 6.1".into(),
                governor: "unknown".into(),
                memory: "24000 kB".into(),
            },
            points: matrix.points().into_iter().map(|point| PointReport::of(point, &runs)).collect(),
        }
    }

    /// The table as a person sees it: a row a point, what was not measured is a dash, and the last column is how far
    /// the runs lie apart.
    #[test]
    fn a_report_is_rendered() {
        let mut report = report();
        report.points.truncate(2);
        report.complete = false;
        let expected = "\
inprocess, 0.5 s a run, median of 3, seed 7, entry cost 1000 ns, frames of 1500 bytes, ended early

workload  arch          optimisations  pairs  Gb/s  memcpy  Gb/s/core    per s  p50 us  p99 us  entries  notified  wake-ups  copies  VM cores  switch cores  loss %  spread %
stream    hyper-switch  none               1  9.00       -          -  9000000       -       -        -         -         -       -         -             -       -        22
stream    hyper-switch  none               4  9.00       -          -  9000000       -       -        -         -         -       -         -             -       -        22

entries, notified, wake-ups (of switching threads) and copies are for each packet delivered; cores are CPU seconds a \
second; spread is between the lowest and the highest run, of the first metric that there is
";
        assert_eq!(report.render(), expected);
    }

    /// Programs read the same report from JSON, a point's place beside its metrics.
    #[test]
    fn a_report_survives_json() {
        let json = serde_json::to_string(&report()).unwrap();
        let point = r#"{"workload":"stream","arch":"hyper-switch","optimisations":"preempt,batch","pairs":4,"metrics":{"throughput_gbps":{"median":9.0,"min":8.0,"max":10.0,"samples":[8.0,10.0,9.0]},"#;
        assert!(json.contains(point), "{json}");
        assert_eq!(serde_json::from_str::<ExperimentReport>(&json).unwrap(), report());
    }
}
